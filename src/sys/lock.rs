// SPDX-License-Identifier: MIT OR Apache-2.0
//! Locks of whole files, of two kinds: flock, and fcntl's locks of an open file description where a filesystem refuses
//! flock (NFS without its lock service, Lustre without `flock`, some FUSE filesystems). Both end with the last copy of
//! the descriptor, whatever ends its process, and are carried over a fork.
//!
//! The two know nothing of each other: all who lock one file must use the same kind, which callers record or derive.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{AtFlags, FlockOperation, OFlags, flock, fstat, openat, statat};
use rustix::io::{Errno, retry_on_intr};

/// How files are locked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// By flock.
    #[default]
    Flock,
    /// By fcntl, for the open file description. To lock alone needs a descriptor that writes: never a directory.
    Fcntl,
}

/// Together with others, or alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Many holders at once.
    Shared,
    /// One holder.
    Exclusive,
}

/// Whether to wait for a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Until it is free.
    Block,
    /// Not at all.
    Try,
}

/// Takes the lock, or changes its mode. False when it is held and we do not wait.
pub fn acquire(file: impl AsFd, kind: Kind, mode: Mode, wait: Wait) -> rustix::io::Result<bool> {
    let taken = match kind {
        Kind::Flock => retry_on_intr(|| flock(&file, operation(mode, wait))),
        Kind::Fcntl => retry_on_intr(|| set(&file, lock_type(mode), wait)),
    };
    match taken {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK | Errno::ACCESS) if wait == Wait::Try => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Frees the lock, for all who have copies of the descriptor.
pub fn release(file: impl AsFd, kind: Kind) -> rustix::io::Result<()> {
    match kind {
        Kind::Flock => flock(&file, FlockOperation::Unlock),
        Kind::Fcntl => set(&file, libc::F_UNLCK, Wait::Try),
    }
}

/// The first kind that the filesystem of a regular file, opened for reading and writing, has; `None` where it has none.
/// The lock that is tried is held afterwards, unless another holds it.
pub fn probe(file: impl AsFd) -> rustix::io::Result<Option<Kind>> {
    for kind in [Kind::Flock, Kind::Fcntl] {
        match acquire(&file, kind, Mode::Exclusive, Wait::Try) {
            Ok(_) => return Ok(Some(kind)),
            Err(errno) if is_unsupported(errno) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(None)
}

/// Does the answer mean that the filesystem (or the kernel) has no such locks?
pub fn is_unsupported(errno: Errno) -> bool {
    matches!(errno, Errno::NOLCK | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL)
}

/// The lock of a directory: by flock on itself, which leaves nothing behind; where its filesystem refuses that, by fcntl on
/// a file of this name in it.
pub const IN_DIRECTORY: &str = "mlfs-lock";

/// Takes the lock of a directory, opened for reading, without waiting. `None` when it is held. [`Mode::Shared`] is for
/// those who only look: it makes no file, and a missing one is held by nobody.
pub fn try_directory(dir: OwnedFd, mode: Mode) -> rustix::io::Result<Option<OwnedFd>> {
    match acquire(&dir, Kind::Flock, mode, Wait::Try) {
        Ok(taken) => return Ok(taken.then_some(dir)),
        Err(errno) if is_unsupported(errno) => {}
        Err(errno) => return Err(errno),
    }
    try_file_in(&dir, mode).map(|file| match file {
        InDir::Locked(file) => Some(file),
        InDir::Absent => Some(dir),
        InDir::Held => None,
    })
}

/// What became of the lock of a file in a directory.
#[derive(Debug)]
enum InDir {
    Locked(OwnedFd),
    Held,
    Absent,
}

fn try_file_in(dir: &OwnedFd, mode: Mode) -> rustix::io::Result<InDir> {
    let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let flags = flags | if mode == Mode::Exclusive { OFlags::RDWR | OFlags::CREATE } else { OFlags::RDONLY };
    loop {
        let file = match openat(dir, IN_DIRECTORY, flags, rustix::fs::Mode::from_raw_mode(0o600)) {
            Err(Errno::NOENT) if mode == Mode::Shared => return Ok(InDir::Absent),
            other => other?,
        };
        if !acquire(&file, Kind::Fcntl, mode, Wait::Try)? {
            return Ok(InDir::Held);
        }
        // Its holder may have removed it meanwhile: then the lock is of nothing.
        let (held, there) = (fstat(&file)?, statat(dir, IN_DIRECTORY, AtFlags::SYMLINK_NOFOLLOW));
        if there.is_ok_and(|there| (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino)) {
            return Ok(InDir::Locked(file));
        }
    }
}

fn operation(mode: Mode, wait: Wait) -> FlockOperation {
    match (mode, wait) {
        (Mode::Shared, Wait::Block) => FlockOperation::LockShared,
        (Mode::Shared, Wait::Try) => FlockOperation::NonBlockingLockShared,
        (Mode::Exclusive, Wait::Block) => FlockOperation::LockExclusive,
        (Mode::Exclusive, Wait::Try) => FlockOperation::NonBlockingLockExclusive,
    }
}

fn lock_type(mode: Mode) -> libc::c_int {
    match mode {
        Mode::Shared => libc::F_RDLCK,
        Mode::Exclusive => libc::F_WRLCK,
    }
}

fn set(file: impl AsFd, lock_type: libc::c_int, wait: Wait) -> rustix::io::Result<()> {
    let command = if wait == Wait::Block { libc::F_OFD_SETLKW } else { libc::F_OFD_SETLK };
    // All of the file: from 0, without an end. The kernel wants no process id.
    let lock = libc::flock {
        l_type: libc::c_short::try_from(lock_type).map_err(|_| Errno::INVAL)?,
        l_whence: libc::c_short::try_from(libc::SEEK_SET).map_err(|_| Errno::INVAL)?,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: the descriptor is borrowed for the call, and `lock` is a whole `struct flock` that outlives it.
    match unsafe { libc::fcntl(file.as_fd().as_raw_fd(), command, &raw const lock) } {
        -1 => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    fn open(path: &std::path::Path) -> File {
        File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap()
    }

    #[test]
    fn both_kinds_know_together_and_alone() {
        let dir = tempfile::tempdir().unwrap();
        for kind in [Kind::Flock, Kind::Fcntl] {
            let path = dir.path().join(format!("{kind:?}"));
            let (a, b) = (open(&path), open(&path));
            let take = |file: &File, mode| acquire(file, kind, mode, Wait::Try).unwrap();
            assert!(take(&a, Mode::Shared) && take(&b, Mode::Shared), "{kind:?}");
            assert!(!take(&a, Mode::Exclusive), "{kind:?}");
            assert!(take(&a, Mode::Shared), "{kind:?}");
            release(&b, kind).unwrap();
            assert!(take(&a, Mode::Exclusive) && !take(&b, Mode::Shared), "{kind:?}");
            // A copy of the descriptor, as a fork makes, holds it on.
            let copy = a.try_clone().unwrap();
            drop(a);
            assert!(!take(&b, Mode::Shared), "{kind:?}");
            drop(copy);
            assert!(take(&b, Mode::Exclusive), "{kind:?}");
        }
    }

    #[test]
    fn a_file_in_a_directory_locks_it_and_looking_makes_none() {
        let temp = tempfile::tempdir().unwrap();
        let dir = OwnedFd::from(File::open(temp.path()).unwrap());
        assert!(matches!(try_file_in(&dir, Mode::Shared).unwrap(), InDir::Absent));
        assert!(!temp.path().join(IN_DIRECTORY).exists());
        let held = try_file_in(&dir, Mode::Exclusive).unwrap();
        assert!(matches!(held, InDir::Locked(_)));
        assert!(matches!(try_file_in(&dir, Mode::Exclusive).unwrap(), InDir::Held));
        assert!(matches!(try_file_in(&dir, Mode::Shared).unwrap(), InDir::Held));
        drop(held);
        assert!(matches!(try_file_in(&dir, Mode::Shared).unwrap(), InDir::Locked(_)));
    }

    #[test]
    fn waiting_ends_with_the_holder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("l");
        let held = open(&path);
        assert!(acquire(&held, Kind::Fcntl, Mode::Exclusive, Wait::Try).unwrap());
        std::thread::scope(|s| {
            let waiter = s.spawn(|| acquire(open(&path), Kind::Fcntl, Mode::Exclusive, Wait::Block).unwrap());
            drop(held);
            assert!(waiter.join().unwrap());
        });
    }
}
