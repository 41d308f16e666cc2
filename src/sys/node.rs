// SPDX-License-Identifier: MIT OR Apache-2.0
//! One object of the host: where it is, and the calls on it. No call follows a symlink.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{
    self, AtFlags, Gid, Mode, OFlags, Stat, Timestamps, Uid, chmod, chownat, fstat, readlinkat, statat, utimensat,
};
use rustix::io::Errno;

use super::Dir;
use crate::model::{Attr, FsError, Kind, Name, Time};

/// How an object of the host is reached.
#[derive(Clone, Debug)]
pub enum Place {
    /// By its name in a directory; anything but a directory.
    At(Arc<Dir>, Arc<[u8]>),
    /// By a descriptor (`O_PATH`): it has lost its name, or is a bind of one file.
    Fd(Arc<OwnedFd>),
    /// A directory.
    Dir(Arc<Dir>),
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// Leave it.
    Keep,
    /// The host's present time.
    Now,
    /// This time.
    To(Time),
}

impl Place {
    /// The place of `name` in `dir`.
    pub fn at(dir: &Arc<Dir>, name: Name<'_>) -> Self {
        Place::At(Arc::clone(dir), name.bytes().into())
    }

    /// `stat` of the object.
    pub fn stat(&self) -> Result<Stat, FsError> {
        match self {
            Place::At(dir, name) => Ok(statat(&*dir.open()?, &**name, AtFlags::SYMLINK_NOFOLLOW)?),
            Place::Fd(fd) => Ok(fstat(&**fd)?),
            Place::Dir(dir) => dir.stat(),
        }
    }

    /// Opens the object with `flags`. A symlink is refused by the host (ELOOP).
    pub fn open(&self, flags: OFlags) -> Result<OwnedFd, FsError> {
        let flags = flags | OFlags::CLOEXEC;
        match self {
            Place::At(dir, name) => Ok(fs::openat(&*dir.open()?, &**name, flags | OFlags::NOFOLLOW, Mode::empty())?),
            Place::Fd(fd) => Ok(fs::open(proc_path(fd), flags - OFlags::NOFOLLOW, Mode::empty())?),
            Place::Dir(dir) => Ok(fs::openat(&*dir.open()?, c".", flags, Mode::empty())?),
        }
    }

    /// An `O_PATH` descriptor: reaches the object whatever happens to its name.
    pub fn hold(&self) -> Result<Arc<OwnedFd>, FsError> {
        match self {
            Place::Fd(fd) => Ok(Arc::clone(fd)),
            Place::Dir(dir) => dir.open(),
            Place::At(..) => Ok(Arc::new(self.open(OFlags::PATH | OFlags::NOFOLLOW)?)),
        }
    }

    /// Sets the permission bits. Not for symlinks (`Unsupported`).
    pub fn chmod(&self, perm: u32) -> Result<(), FsError> {
        let fd = self.hold()?;
        Ok(chmod(proc_path(&fd), Mode::from_raw_mode(perm))?)
    }

    /// Sets owner and group; `None` keeps.
    pub fn chown(&self, uid: Option<u32>, gid: Option<u32>) -> Result<(), FsError> {
        let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
        match self {
            Place::At(dir, name) => Ok(chownat(&*dir.open()?, &**name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?),
            Place::Fd(fd) => Ok(chownat(&**fd, c"", uid, gid, AtFlags::EMPTY_PATH)?),
            Place::Dir(dir) => Ok(chownat(&*dir.open()?, c"", uid, gid, AtFlags::EMPTY_PATH)?),
        }
    }

    /// Sets access and modification time.
    pub fn utimens(&self, atime: SetTime, mtime: SetTime) -> Result<(), FsError> {
        let times = Timestamps { last_access: timespec(atime), last_modification: timespec(mtime) };
        match self {
            Place::At(dir, name) => Ok(utimensat(&*dir.open()?, &**name, &times, AtFlags::SYMLINK_NOFOLLOW)?),
            Place::Fd(fd) => Ok(utimensat(rustix::fs::CWD, proc_path(fd), &times, AtFlags::empty())?),
            Place::Dir(dir) => Ok(utimensat(&*dir.open()?, c".", &times, AtFlags::empty())?),
        }
    }

    /// The target of a symlink.
    pub fn read_link(&self) -> Result<Vec<u8>, FsError> {
        let target = match self {
            Place::At(dir, name) => readlinkat(&*dir.open()?, &**name, Vec::new())?,
            Place::Fd(fd) => readlinkat(&**fd, c"", Vec::new()).map_err(|errno| match errno {
                Errno::NOENT => FsError::Invalid,
                other => other.into(),
            })?,
            Place::Dir(_) => return Err(FsError::Invalid),
        };
        Ok(target.into_bytes())
    }
}

/// The magic link of a descriptor of ours.
pub fn proc_path(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

fn timespec(time: SetTime) -> fs::Timespec {
    match time {
        SetTime::Keep => fs::Timespec { tv_sec: 0, tv_nsec: fs::UTIME_OMIT },
        SetTime::Now => fs::Timespec { tv_sec: 0, tv_nsec: fs::UTIME_NOW },
        SetTime::To(time) => fs::Timespec { tv_sec: time.secs, tv_nsec: time.nanos.into() },
    }
}

/// The attributes in a host's `stat`; `ino` is the host's. `Corrupt`-free: an unknown kind is an I/O error.
pub fn attr_of(stat: &Stat) -> Result<Attr, FsError> {
    Ok(Attr {
        ino: stat.st_ino,
        kind: Kind::from_mode(stat.st_mode).ok_or(FsError::IO)?,
        perm: stat.st_mode & 0o7777,
        nlink: stat.st_nlink.try_into().unwrap_or(u32::MAX),
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: stat.st_rdev,
        size: stat.st_size.try_into().unwrap_or(0),
        blocks: stat.st_blocks.try_into().unwrap_or(0),
        blksize: stat.st_blksize.try_into().unwrap_or(4096),
        atime: time_of(stat.st_atime, stat.st_atime_nsec),
        mtime: time_of(stat.st_mtime, stat.st_mtime_nsec),
        ctime: time_of(stat.st_ctime, stat.st_ctime_nsec),
    })
}

fn time_of(secs: i64, nanos: impl TryInto<u32>) -> Time {
    Time { secs, nanos: nanos.try_into().unwrap_or(0) }
}
