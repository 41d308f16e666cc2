// SPDX-License-Identifier: MIT OR Apache-2.0
//! A directory of the host as it is now: without what will be mounted below it later.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::OpenTreeFlags;

use super::namespace::{is_denied, open_in_namespace};

/// Opens a private copy of the mounts at and below `path` (open_tree(2)), mounted nowhere. Call it while the process has
/// one thread: an ordinary user needs a child with a user namespace for it.
pub fn open_private_copy(path: &Path) -> io::Result<OwnedFd> {
    match copy(path) {
        Err(error) if is_denied(&error) => open_in_namespace(&|| copy(path)),
        other => other,
    }
}

fn copy(path: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let copy = rustix::mount::open_tree(CWD, path, flags)?;
    // Else it would get the later mounts by propagation.
    let attr = libc::mount_attr { attr_set: 0, attr_clr: 0, propagation: libc::MS_PRIVATE, userns_fd: 0 };
    // SAFETY: the path is an empty C string, the attributes live until the call ends, and their true size is given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            copy.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // An ordinary descriptor, which can list.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(&copy, ".", flags, Mode::empty())?)
}
