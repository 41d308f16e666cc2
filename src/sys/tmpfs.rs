// SPDX-License-Identifier: MIT OR Apache-2.0
//! Detached tmpfs filesystems: mounted nowhere, gone when their last descriptor is closed.
//!
//! Root (of any user namespace that owns its mount namespace) makes one by fsopen/fsmount, everybody else in a user
//! namespace of his own.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use super::namespace::{is_denied, open_in_namespace};
use super::proc;

/// What a tmpfs is like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TmpfsSpec {
    /// Size limit in bytes; 0 is none.
    pub size: u64,
    /// Mode of the root.
    pub mode: u32,
    /// Owner of the root.
    pub uid: u32,
    /// Group of the root.
    pub gid: u32,
}

/// Makes a detached tmpfs and opens its root. Call it while the process has one thread: it may fork.
///
/// Error: why the host does not let us (user namespaces switched off, for example).
pub fn open_tmpfs(spec: &TmpfsSpec) -> io::Result<OwnedFd> {
    match make(spec) {
        Err(error) if is_denied(&error) => {
            // Only our own ids exist there.
            open_in_namespace(&|| make(&TmpfsSpec { uid: proc::euid(), gid: proc::egid(), ..spec.clone() }))
        }
        other => other,
    }
}

fn make(spec: &TmpfsSpec) -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let set = |key: &str, value: String| rustix::mount::fsconfig_set_string(context.as_fd(), key, value);
    set("source", "mlfs".to_owned())?;
    set("size", spec.size.to_string())?;
    set("mode", format!("{:o}", spec.mode))?;
    set("uid", spec.uid.to_string())?;
    set("gid", spec.gid.to_string())?;
    rustix::mount::fsconfig_create(context.as_fd())?;
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    let mount = rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, flags)?;
    // An ordinary descriptor: the one of fsmount is O_PATH and cannot list.
    let open = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    Ok(rustix::fs::openat(&mount, ".", open, rustix::fs::Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{AtFlags, Mode, OFlags};

    #[test]
    fn a_tmpfs_is_made_and_has_its_mode_and_size() {
        let spec = TmpfsSpec { size: 1 << 20, mode: 0o1770, uid: proc::euid(), gid: proc::egid() };
        let root = match open_tmpfs(&spec) {
            Ok(root) => root,
            // Where user namespaces are switched off there is nothing to test.
            Err(error) if is_denied(&error) => return,
            Err(error) => panic!("{error}"),
        };
        let stat = rustix::fs::statat(&root, "", AtFlags::EMPTY_PATH).unwrap();
        assert_eq!((stat.st_mode & 0o7777, stat.st_uid), (0o1770, spec.uid));
        let space = rustix::fs::fstatvfs(&root).unwrap();
        assert_eq!(space.f_blocks * space.f_frsize, 1 << 20);
        let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
        rustix::fs::openat(&root, "f", flags, Mode::from_raw_mode(0o644)).unwrap();
    }
}
