// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who runs the suite, and what that allows.

use std::path::Path;

/// Who runs the suite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// Uid 0 of the initial user namespace.
    Root,
    /// An ordinary user.
    User,
    /// Uid 0 of another user namespace (`unshare -Urm`).
    Namespace,
}

/// Finds out who runs the suite.
pub fn identity() -> Identity {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let is_initial = map.split_whitespace().collect::<Vec<_>>() == ["0", "0", "4294967295"];
    match (rustix::process::geteuid().is_root(), is_initial) {
        (true, true) => Identity::Root,
        (true, false) => Identity::Namespace,
        (false, _) => Identity::User,
    }
}

/// The uid and gid that new files of the suite get.
pub fn own_ids() -> (u32, u32) {
    (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
}

/// Whether files can be given to other users here: as root, and in a namespace with a range of ids (newuidmap).
pub fn has_ids() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let counts = map.lines().filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok());
    rustix::process::geteuid().is_root() && counts.sum::<u64>() >= 65_536
}

/// Whether a program is in `PATH`.
pub fn has_program(name: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(name).is_file()))
}

/// Whether FUSE mounts are possible here: root and namespace roots open the device themselves, users have fusermount3.
pub fn fuse_reason() -> Option<String> {
    let device = Path::new("/dev/fuse");
    if !device.exists() {
        return Some("no /dev/fuse on this machine".into());
    }
    let can_open = std::fs::OpenOptions::new().read(true).write(true).open(device).is_ok();
    match identity() {
        Identity::User if !has_program("fusermount3") => Some("no fusermount3 for an ordinary user's mounts".into()),
        Identity::Root | Identity::Namespace if !can_open => Some("/dev/fuse cannot be opened".into()),
        _ => None,
    }
}

impl Identity {
    /// The word used in `expected-skips`.
    pub fn word(self) -> &'static str {
        match self {
            Identity::Root => "root",
            Identity::User => "user",
            Identity::Namespace => "namespace",
        }
    }
}
