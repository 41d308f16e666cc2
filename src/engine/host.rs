// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the engine must know of the host and of itself: who we are, which boot, which namespaces, where the store is.

use std::fs;
use std::path::{Path, PathBuf};

use crate::sys::proc;

use super::{EngineError, OrFail, Result};

/// The effective user and group.
pub fn caller() -> (u32, u32) {
    (proc::euid(), proc::egid())
}

/// Where the store is, unless said otherwise.
pub fn default_root() -> Result<PathBuf> {
    if proc::is_real_root() {
        return Ok(PathBuf::from("/var/lib/mlfs"));
    }
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    folder("XDG_DATA_HOME")
        .or_else(|| folder("HOME").map(|home| home.join(".local/share")))
        .map(|data| data.join("mlfs"))
        .ok_or_else(|| EngineError::failed("there is no place for the store: HOME is not set").advise("use --root DIR"))
}

/// The configuration of fusermount3.
pub const FUSE_CONF: &str = "/etc/fuse.conf";

/// May ordinary users let others into their mounts?
pub fn is_allow_other_allowed() -> bool {
    fs::read_to_string(FUSE_CONF).is_ok_and(|text| text.lines().any(|line| line.trim() == "user_allow_other"))
}

/// The id of this boot.
pub fn boot_id() -> Result<String> {
    proc::boot_id().or_fail(|| "cannot read the id of this boot")
}

/// The mount namespace of this process, as a text that tells it from others.
pub fn mount_namespace() -> String {
    fs::read_link("/proc/self/ns/mnt").map(|p| p.to_string_lossy().into_owned()).unwrap_or_default()
}

/// The memory that this process may use: that of the machine or of its cgroup, whichever is less.
pub fn memory() -> u64 {
    let machine = rustix::system::sysinfo();
    let all = machine.totalram.saturating_mul(u64::from(machine.mem_unit));
    cgroup_memory().map_or(all, |limit| limit.min(all))
}

/// The least `memory.max` on the way from our cgroup (version 2) to the root.
fn cgroup_memory() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let root = Path::new("/sys/fs/cgroup");
    root.join(path)
        .ancestors()
        .take_while(|dir| dir.starts_with(root))
        .filter_map(|dir| fs::read_to_string(dir.join("memory.max")).ok()?.trim().parse().ok())
        .min()
}

/// A path as records keep it: absolute and UTF-8.
pub fn path_text(path: &Path) -> Result<String> {
    let absolute = std::path::absolute(path).or_fail(|| format!("cannot find {}", path.display()))?;
    absolute.into_os_string().into_string().map_err(|path| {
        EngineError::failed(format!("the path {} is not UTF-8, which records cannot hold", Path::new(&path).display()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_answers() {
        assert_eq!(boot_id().unwrap().len(), 36);
        assert!(mount_namespace().starts_with("mnt:["));
        assert!(memory() > 1 << 20);
        assert!(path_text(Path::new("x")).unwrap().ends_with("/x"));
    }
}
