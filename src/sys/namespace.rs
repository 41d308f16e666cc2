// SPDX-License-Identifier: MIT OR Apache-2.0
//! What an ordinary user may do in a user namespace of his own: a child enters one, opens something there, and passes
//! the descriptor back over a socket. The child maps our ids to themselves, so files keep the owner we have outside.

use std::io::{self, IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::MountPropagationFlags;
use rustix::net::{AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType};

use super::mount::{FuseOptions, mount_direct, receive_fd};
use super::proc;

/// Is the error a matter of privilege?
pub(super) fn is_denied(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|errno| errno == libc::EPERM || errno == libc::EACCES)
}

/// Calls `open` in a child that is root of a new user and mount namespace, and hands back what it opened. Call it while
/// the process has one thread: it forks.
pub(super) fn open_in_namespace(open: &dyn Fn() -> io::Result<OwnedFd>) -> io::Result<OwnedFd> {
    let (uid, gid) = (proc::euid(), proc::egid());
    open_in_child(&|| enter(uid, gid).and_then(|()| open()))
}

/// Can a FUSE filesystem be mounted at `target` by mount(2), here or in a user namespace of our own? It is tried in a
/// child with mounts of its own; nobody else sees the mount, and it ends with this call. Call it with one thread.
pub fn try_mount(target: &Path, privilege: Privilege) -> io::Result<()> {
    let options =
        FuseOptions { fsname: "mlfs".into(), subtype: "mlfs".into(), root_mode: libc::S_IFDIR, ..Default::default() };
    let mount = || mount_direct(target, &options);
    let device = match privilege {
        Privilege::Ours => open_in_child(&|| enter_mounts().and_then(|()| mount()))?,
        Privilege::OfNamespace => open_in_namespace(&mount)?,
    };
    drop(device);
    Ok(())
}

/// Whose right to mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// That of this process.
    Ours,
    /// That of the root of a new user namespace.
    OfNamespace,
}

fn open_in_child(open: &dyn Fn() -> io::Result<OwnedFd>) -> io::Result<OwnedFd> {
    let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: called with one thread (documented), so the child finds no lock held; it ends by _exit.
    let child = match unsafe { libc::fork() } {
        -1 => return Err(io::Error::last_os_error()),
        0 => {
            let status = match open().and_then(|fd| send(&theirs, &fd)) {
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

/// What forbids user namespaces here by a setting of the administrator, in the words of sysctl(8).
pub fn forbidden_by() -> Option<&'static str> {
    let settings = [
        ("user.max_user_namespaces", "/proc/sys/user/max_user_namespaces", "0"),
        ("kernel.unprivileged_userns_clone", "/proc/sys/kernel/unprivileged_userns_clone", "0"),
        ("kernel.apparmor_restrict_unprivileged_userns", "/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1"),
    ];
    let is_set = |path: &str, to: &str| std::fs::read_to_string(path).is_ok_and(|value| value.trim() == to);
    settings.into_iter().find(|(_, path, to)| is_set(path, to)).map(|(name, _, _)| name)
}

/// Moves this process into a mount namespace of its own, whose mounts nobody else gets: as root into just that, as an
/// ordinary user into a user namespace with it, in which our ids are themselves. Call it with one thread.
pub fn enter_private() -> io::Result<()> {
    let (uid, gid) = (proc::euid(), proc::egid());
    match enter_mounts() {
        Err(error) if is_denied(&error) => enter(uid, gid).and_then(|()| keep_mounts_private()),
        other => other,
    }
}

/// Moves this process into a mount namespace of its own, by its own right.
fn enter_mounts() -> io::Result<()> {
    // SAFETY: changes only what this process sees of the mounts.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
        return Err(io::Error::last_os_error());
    }
    keep_mounts_private()
}

fn keep_mounts_private() -> io::Result<()> {
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    Ok(rustix::mount::mount_change("/", private)?)
}

fn enter(uid: u32, gid: u32) -> io::Result<()> {
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
    Ok(())
}

fn send(socket: &OwnedFd, fd: &OwnedFd) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd.as_fd()];
    if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(b"t")], &mut control, SendFlags::empty())?;
    Ok(())
}
