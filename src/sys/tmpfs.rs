// SPDX-License-Identifier: MIT OR Apache-2.0
//! Detached tmpfs filesystems: mounted nowhere, gone when their last descriptor is closed.
//!
//! Root (of any user namespace that owns its mount namespace) makes one by fsopen/fsmount. Everybody else forks a child
//! into a new user and mount namespace, which makes it and passes its root over a socket. The child maps our ids to
//! themselves, so files keep the owner that we have outside.

use std::io::{self, IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use rustix::net::{AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType};

use super::mount::receive_fd;
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
        Err(error) if is_denied(&error) => make_in_child(spec),
        other => other,
    }
}

fn is_denied(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|errno| errno == libc::EPERM || errno == libc::EACCES)
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

/// Makes the tmpfs in a child with a user namespace of its own, where we are allowed to.
fn make_in_child(spec: &TmpfsSpec) -> io::Result<OwnedFd> {
    let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    let (uid, gid) = (proc::euid(), proc::egid());
    // SAFETY: called with one thread (documented), so the child finds no lock held; it ends by _exit.
    let child = match unsafe { libc::fork() } {
        -1 => return Err(io::Error::last_os_error()),
        0 => {
            let status = match child_work(spec, uid, gid, &theirs) {
                Ok(()) => 0,
                Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
            };
            // SAFETY: ends the child without running the parent's exit handlers.
            unsafe { libc::_exit(status) }
        }
        pid => pid,
    };
    drop(theirs);
    let received = receive_fd(&ours);
    let pid = rustix::process::Pid::from_raw(child).ok_or(io::ErrorKind::Other)?;
    let status = loop {
        match rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()) {
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(status) => break status.and_then(|(_, status)| status.exit_status()),
        }
    };
    match (received, status) {
        (Ok(fd), Some(0)) => Ok(fd),
        (_, Some(errno)) if errno != 0 => Err(io::Error::from_raw_os_error(errno)),
        (Err(error), _) => Err(error),
        (Ok(_), _) => Err(io::ErrorKind::Other.into()),
    }
}

fn child_work(spec: &TmpfsSpec, uid: u32, gid: u32, socket: &OwnedFd) -> io::Result<()> {
    // SAFETY: the child has one thread; its namespaces are its own business and end with it.
    if unsafe { libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS) } != 0 {
        return Err(io::Error::last_os_error());
    }
    for (path, text) in [
        ("/proc/self/setgroups", "deny".to_owned()),
        ("/proc/self/uid_map", format!("{uid} {uid} 1")),
        ("/proc/self/gid_map", format!("{gid} {gid} 1")),
    ] {
        std::fs::File::options().write(true).open(path)?.write_all(text.as_bytes())?;
    }
    // Only our own ids exist here.
    let root = make(&TmpfsSpec { uid, gid, ..spec.clone() })?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [root.as_fd()];
    if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(b"t")], &mut control, SendFlags::empty())?;
    Ok(())
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
