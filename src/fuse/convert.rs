// SPDX-License-Identifier: MIT OR Apache-2.0
//! Between our values and fuser's: errnos, attributes, times, flags.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{Errno, FileAttr, FileType, INodeNo, InitFlags, TimeOrNow};

use crate::model::{Attr, FsError, Kind, Time};
use crate::sys::SetTime;

/// The errno of an error: exhaustive, so that a new error cannot be forgotten.
pub fn errno(error: &FsError) -> Errno {
    match error {
        FsError::NotFound => Errno::ENOENT,
        FsError::Exists => Errno::EEXIST,
        FsError::NotEmpty => Errno::ENOTEMPTY,
        FsError::NotDir => Errno::ENOTDIR,
        FsError::IsDir => Errno::EISDIR,
        FsError::ReadOnly => Errno::EROFS,
        FsError::CrossDevice => Errno::EXDEV,
        FsError::NoSpace => Errno::ENOSPC,
        FsError::Quota => Errno::EDQUOT,
        FsError::Access => Errno::EACCES,
        FsError::Perm => Errno::EPERM,
        FsError::Invalid => Errno::EINVAL,
        FsError::NameTooLong => Errno::ENAMETOOLONG,
        FsError::Busy => Errno::EBUSY,
        FsError::Stale => Errno::ESTALE,
        FsError::NoAttribute => Errno::ENODATA,
        FsError::Range => Errno::ERANGE,
        FsError::Unsupported => Errno::ENOTSUP,
        FsError::Overflow => Errno::EOVERFLOW,
        FsError::BadHandle => Errno::EBADF,
        FsError::MustWait { .. } => Errno::EAGAIN,
        FsError::Corrupt { .. } => Errno::EIO,
        FsError::Host { errno } => Errno::from_i32(*errno),
    }
}

/// The attributes of a node for an entry reply: fuser shows the node's id in place of the inode number.
pub fn entry_attr(id: u64, attr: &Attr) -> FileAttr {
    FileAttr { ino: INodeNo(id), ..file_attr(attr) }
}

/// The attributes for a GETATTR reply.
pub fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: UNIX_EPOCH,
        kind: file_type(attr.kind),
        perm: attr.perm as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: fuse_rdev(attr.rdev),
        blksize: attr.blksize,
        flags: 0,
    }
}

/// FUSE carries device numbers in the kernel's 32-bit form (`new_encode_dev`).
fn fuse_rdev(rdev: u64) -> u32 {
    let (major, minor) = crate::model::attr::split_rdev(rdev);
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & !0xff) << 12)
}

/// The reverse of the kernel's 32-bit form.
pub fn rdev_of(fuse: u32) -> u64 {
    crate::model::attr::make_rdev((fuse >> 8) & 0xfff, (fuse & 0xff) | ((fuse >> 12) & 0xfff00))
}

/// A kind as fuser names it.
pub fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Dir => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Char => FileType::CharDevice,
        Kind::Block => FileType::BlockDevice,
        Kind::Socket => FileType::Socket,
    }
}

fn system_time(time: Time) -> SystemTime {
    let fraction = Duration::from_nanos(time.nanos.into());
    let whole = Duration::from_secs(time.secs.unsigned_abs());
    let base = if time.secs >= 0 { UNIX_EPOCH.checked_add(whole) } else { UNIX_EPOCH.checked_sub(whole) };
    base.and_then(|base| base.checked_add(fraction)).unwrap_or(UNIX_EPOCH)
}

/// A time from a request. fuser 0.18 decodes times before 1970 with a fraction wrongly: -2 s + 0.8 s arrives as
/// -(2 s + 0.8 s), so the distance to the epoch has the true seconds, negated, and the true fraction.
pub fn set_time(time: Option<TimeOrNow>) -> SetTime {
    match time {
        None => SetTime::Keep,
        Some(TimeOrNow::Now) => SetTime::Now,
        Some(TimeOrNow::SpecificTime(at)) => SetTime::To(match at.duration_since(UNIX_EPOCH) {
            Ok(after) => Time { secs: i64::try_from(after.as_secs()).unwrap_or(i64::MAX), nanos: after.subsec_nanos() },
            Err(before) => {
                let before = before.duration();
                let secs = i64::try_from(before.as_secs()).unwrap_or(i64::MAX);
                Time { secs: -secs, nanos: before.subsec_nanos() }
            }
        }),
    }
}

/// What is asked of the kernel at INIT; choices hold for the whole connection. `is_shared`: some branch changes without
/// our doing, so cached data must be dropped when size or mtime change. `can_pass`: the kernel can be given files of the
/// host to read and write by itself.
pub fn wanted_flags(is_shared: bool, can_pass: bool) -> InitFlags {
    let mut flags = InitFlags::FUSE_ASYNC_READ
        | InitFlags::FUSE_ATOMIC_O_TRUNC
        | InitFlags::FUSE_BIG_WRITES
        | InitFlags::FUSE_PARALLEL_DIROPS
        | InitFlags::FUSE_DO_READDIRPLUS
        | InitFlags::FUSE_READDIRPLUS_AUTO
        | InitFlags::FUSE_MAX_PAGES
        | InitFlags::FUSE_DONT_MASK
        // Without it every write asks for the file's capabilities first.
        | InitFlags::FUSE_HANDLE_KILLPRIV_V2
        | InitFlags::FUSE_POSIX_ACL;
    if can_pass {
        flags |= InitFlags::FUSE_PASSTHROUGH;
    }
    if is_shared {
        // Files opened for appending leave the cache aside, and can be mapped all the same.
        flags |= InitFlags::FUSE_AUTO_INVAL_DATA | InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP;
    } else {
        flags |= InitFlags::FUSE_CACHE_SYMLINKS;
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_survive_fuser() {
        // As fuser 0.18 decodes (secs, nanos) from the wire.
        let fuser_decodes = |secs: i64, nanos: u32| {
            if secs >= 0 {
                UNIX_EPOCH + Duration::new(secs as u64, nanos)
            } else {
                UNIX_EPOCH - Duration::new(secs.unsigned_abs(), nanos)
            }
        };
        for (secs, nanos) in [(0, 0), (5, 1), (-1, 0), (-2, 800_000_000), (-1, 999_999_999), (1 << 33, 7)] {
            let got = set_time(Some(TimeOrNow::SpecificTime(fuser_decodes(secs, nanos))));
            assert_eq!(got, SetTime::To(Time { secs, nanos }), "{secs}.{nanos}");
        }
    }

    #[test]
    fn device_numbers_survive_the_wire() {
        for (major, minor) in [(1, 3), (259, 70_000), (8, 255), (8, 256)] {
            let rdev = crate::model::attr::make_rdev(major, minor);
            assert_eq!(rdev_of(fuse_rdev(rdev)), rdev);
        }
    }
}
