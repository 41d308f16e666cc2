// SPDX-License-Identifier: MIT OR Apache-2.0
//! Translations between the kernel's words and FUSE's: attributes, times, listings.

use std::io::{IoSlice, Write};
use std::os::fd::OwnedFd;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo, TimeOrNow};
use rustix::fs::{Stat, Timespec, UTIME_NOW, UTIME_OMIT};

/// The kind of a mode.
pub fn kind_of(mode: u32) -> FileType {
    match mode & 0o170_000 {
        0o040_000 => FileType::Directory,
        0o120_000 => FileType::Symlink,
        0o010_000 => FileType::NamedPipe,
        0o140_000 => FileType::Socket,
        0o020_000 => FileType::CharDevice,
        0o060_000 => FileType::BlockDevice,
        _ => FileType::RegularFile,
    }
}

/// Attributes as FUSE wants them.
pub fn attr(stat: &Stat) -> FileAttr {
    let ctime = time(stat.st_ctime, stat.st_ctime_nsec);
    FileAttr {
        ino: INodeNo(stat.st_ino),
        size: u64::try_from(stat.st_size).unwrap_or(0),
        blocks: u64::try_from(stat.st_blocks).unwrap_or(0),
        atime: time(stat.st_atime, stat.st_atime_nsec),
        mtime: time(stat.st_mtime, stat.st_mtime_nsec),
        ctime,
        crtime: ctime,
        kind: kind_of(stat.st_mode),
        perm: u16::try_from(stat.st_mode & 0o7777).unwrap_or(0),
        nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: u32::try_from(stat.st_rdev).unwrap_or(0),
        blksize: 4096,
        flags: 0,
    }
}

fn time(seconds: i64, nanos: u64) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let at = if seconds < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    at.unwrap_or(UNIX_EPOCH) + Duration::from_nanos(nanos)
}

/// A time to set. fuser 0.18 decodes times before 1970 with a fraction wrong; this takes it back.
pub fn timespec(time: Option<TimeOrNow>) -> Timespec {
    let stamp = |seconds: i64, nanos: u32| Timespec { tv_sec: seconds, tv_nsec: i64::from(nanos) };
    match time {
        None => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        Some(TimeOrNow::Now) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        Some(TimeOrNow::SpecificTime(time)) => match time.duration_since(UNIX_EPOCH) {
            Ok(after) => stamp(i64::try_from(after.as_secs()).unwrap_or(i64::MAX), after.subsec_nanos()),
            Err(before) => {
                let before = before.duration();
                stamp(-i64::try_from(before.as_secs()).unwrap_or(i64::MAX), before.subsec_nanos())
            }
        },
    }
}

/// An entry of a listing whose kind is not told: fuser has no word for DT_UNKNOWN.
pub fn push_unknown(buffer: &mut Vec<u8>, number: u64, cookie: u64, name: &[u8]) {
    buffer.extend_from_slice(&number.to_ne_bytes());
    buffer.extend_from_slice(&cookie.to_ne_bytes());
    buffer.extend_from_slice(&u32::try_from(name.len()).unwrap_or(0).to_ne_bytes());
    buffer.extend_from_slice(&0u32.to_ne_bytes());
    buffer.extend_from_slice(name);
    buffer.resize(buffer.len().next_multiple_of(8), 0);
}

/// Answers a request on the device itself, past fuser.
pub fn answer_raw(device: &OwnedFd, unique: u64, data: &[u8]) -> std::io::Result<()> {
    let length = u32::try_from(16 + data.len()).map_err(std::io::Error::other)?;
    let mut header = Vec::with_capacity(16);
    header.extend_from_slice(&length.to_ne_bytes());
    header.extend_from_slice(&0i32.to_ne_bytes());
    header.extend_from_slice(&unique.to_ne_bytes());
    let mut device = std::fs::File::from(device.try_clone()?);
    device.write_vectored(&[IoSlice::new(&header), IoSlice::new(data)]).map(|_| ())
}
