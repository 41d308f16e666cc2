// SPDX-License-Identifier: MIT OR Apache-2.0
//! Contents of files: whole reads and writes at an offset, and copies that keep holes.

use std::io::IoSlice;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, SeekFrom, copy_file_range, ftruncate, ioctl_ficlone, seek};
use rustix::io::{Errno, ReadWriteFlags, pread, pwrite, pwritev2};

use crate::model::FsError;

/// Can the file be opened with `O_DIRECT`?
pub fn has_direct_io(fd: &OwnedFd) -> Result<bool, FsError> {
    let flags = OFlags::RDONLY | OFlags::DIRECT | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match rustix::fs::open(super::node::proc_path(fd), flags, Mode::empty()) {
        Ok(_) => Ok(true),
        Err(Errno::INVAL) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Reads until `buffer` is full or the file ends; the number of bytes read.
pub fn read_at(fd: impl AsFd, buffer: &mut [u8], offset: u64) -> Result<usize, FsError> {
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match pread(&fd, rest, offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(done)
}

/// Writes all of `data` at `offset`; on an error after some bytes, the number written.
pub fn write_at(fd: impl AsFd, data: &[u8], offset: u64) -> Result<usize, FsError> {
    let mut done = 0;
    while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
        match pwrite(&fd, rest, offset + done as u64) {
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(errno) if done == 0 => return Err(errno.into()),
            Err(_) => break,
        }
    }
    Ok(done)
}

/// Appends all of `data` at the end that the file has then; on an error after some bytes, the number written.
pub fn append(fd: impl AsFd, data: &[u8]) -> Result<usize, FsError> {
    let mut done = 0;
    while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
        match pwritev2(&fd, &[IoSlice::new(rest)], 0, ReadWriteFlags::APPEND) {
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(errno) if done == 0 => return Err(errno.into()),
            Err(_) => break,
        }
    }
    Ok(done)
}

/// Copies the whole of `from` into the empty file `to`: by reflink where the host can, else range by range, holes kept.
///
/// A source that ends before the size it had at the start is an input/output error, never a hole in the copy.
pub fn copy_file(from: BorrowedFd<'_>, to: BorrowedFd<'_>, pace: Pace) -> Result<(), FsError> {
    let size = rustix::fs::fstat(from)?.st_size.try_into().unwrap_or(0u64);
    if size == 0 {
        return Ok(());
    }
    if ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    ftruncate(to, size)?;
    let mut window = Window::new(pace);
    let mut offset = 0;
    while offset < size {
        let start = match seek(from, SeekFrom::Data(offset)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            // No holes to be seen here: everything is data.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => offset,
            Err(errno) => return Err(errno.into()),
        };
        let end = seek(from, SeekFrom::Hole(start)).unwrap_or(size).min(size);
        let mut at = start;
        while at < end {
            let next = end.min(at + WINDOW);
            copy_range(from, to, at, next)?;
            window.copied(to, at..next);
            at = next;
        }
        offset = end.max(start + 1);
    }
    // Where it was cut short meanwhile, a search for data finds the same as in a hole at the end.
    let left = rustix::fs::fstat(from)?.st_size.try_into().unwrap_or(0u64);
    if left < size { Err(FsError::IO) } else { Ok(()) }
}

/// How much is copied at a time, and how much of it the disk may still owe: what a journal has to wait for when somebody
/// else syncs meanwhile, and what others' writes are throttled for.
const WINDOW: u64 = 8 << 20;

/// Is what is copied synced afterwards?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Yes: the disk writes along, so that syncing finds little left to do and nobody else waits for all of it.
    Synced,
    /// No: it is written whenever the host likes.
    Unsynced,
}

/// What of a copy is being written to the disk.
struct Window {
    pace: Pace,
    begun: Option<Range<u64>>,
}

impl Window {
    fn new(pace: Pace) -> Self {
        Window { pace, begun: None }
    }

    /// The next range has been copied: begins to write it, and waits for the one before. Only a matter of pace: errors
    /// come out when the whole is synced.
    fn copied(&mut self, to: BorrowedFd<'_>, range: Range<u64>) {
        if self.pace == Pace::Unsynced || range.end - range.start < WINDOW {
            return;
        }
        sync_range(to, &range, libc::SYNC_FILE_RANGE_WRITE);
        if let Some(before) = self.begun.replace(range) {
            let all =
                libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
            sync_range(to, &before, all);
        }
    }
}

fn sync_range(fd: BorrowedFd<'_>, range: &Range<u64>, flags: libc::c_uint) {
    let (start, length) = (range.start.cast_signed(), (range.end - range.start).cast_signed());
    // SAFETY: the descriptor is open for the call, which touches no memory of ours.
    if unsafe { libc::sync_file_range(fd.as_raw_fd(), start, length, flags) } != 0 {
        log::trace!("sync_file_range: {}", std::io::Error::last_os_error());
    }
}

fn copy_range(from: BorrowedFd<'_>, to: BorrowedFd<'_>, start: u64, end: u64) -> Result<(), FsError> {
    copy_range_by(from, to, start..end, |source, target, length| {
        copy_file_range(from, Some(source), to, Some(target), length)
    })
}

/// Copies by `step`, which moves both offsets on, as long as it can; what is left then by a buffer.
fn copy_range_by(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    range: Range<u64>,
    mut step: impl FnMut(&mut u64, &mut u64, usize) -> Result<usize, Errno>,
) -> Result<(), FsError> {
    let (mut source, mut target) = (range.start, range.start);
    while source < range.end {
        let length = usize::try_from(range.end - source).unwrap_or(usize::MAX).min(1 << 30);
        match step(&mut source, &mut target, length) {
            // Some filesystems answer 0 in the middle of a file. Whether it is the end, reading tells.
            Ok(0) | Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::IO) => {
                return copy_by_buffer(from, to, source, range.end);
            }
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn copy_by_buffer(from: BorrowedFd<'_>, to: BorrowedFd<'_>, start: u64, end: u64) -> Result<(), FsError> {
    let mut buffer = vec![0u8; 1 << 20];
    let mut offset = start;
    while offset < end {
        let want = usize::try_from(end - offset).unwrap_or(usize::MAX).min(buffer.len());
        let part = buffer.get_mut(..want).ok_or(FsError::IO)?;
        let got = read_at(from, part, offset)?;
        let part = part.get(..got).ok_or(FsError::IO)?;
        if got == 0 {
            return Err(FsError::IO);
        }
        write_all_at(to, part, offset)?;
        offset += got as u64;
    }
    Ok(())
}

/// Writes all of `data` or fails.
pub fn write_all_at(fd: impl AsFd, data: &[u8], offset: u64) -> Result<(), FsError> {
    let mut done = 0;
    while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
        done += write_at(&fd, rest, offset + done as u64)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_keep_content_and_holes() {
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        from.set_len(10 << 20).unwrap();
        write_all_at(&from, b"start", 0).unwrap();
        write_all_at(&from, b"end", (10 << 20) - 3).unwrap();
        copy_file(from.as_fd(), to.as_fd(), Pace::Synced).unwrap();
        let mut buffer = [0; 3];
        assert_eq!(read_at(&to, &mut buffer, (10 << 20) - 3).unwrap(), 3);
        assert_eq!(&buffer, b"end");
        let stat = rustix::fs::fstat(&to).unwrap();
        assert_eq!(stat.st_size, 10 << 20);
        assert!(stat.st_blocks * 512 < 1 << 20, "holes were filled");
    }

    #[test]
    fn a_range_copy_that_stops_early_goes_on_by_buffer() {
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        write_all_at(&from, b"0123456789", 0).unwrap();
        let mut answers = vec![0, 4];
        copy_range_by(from.as_fd(), to.as_fd(), 0..10, |source, target, _| {
            let count = answers.pop().unwrap();
            write_all_at(&to, &b"0123456789"[..count], *target).unwrap();
            (*source, *target) = (*source + count as u64, *target + count as u64);
            Ok(count)
        })
        .unwrap();
        let mut buffer = [0; 11];
        assert_eq!(read_at(&to, &mut buffer, 0).unwrap(), 10);
        assert_eq!(&buffer[..10], b"0123456789");
    }

    #[test]
    fn a_source_that_ends_early_is_an_error_and_no_hole() {
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        write_all_at(&from, b"0123456789", 0).unwrap();
        to.set_len(20).unwrap();
        assert_eq!(copy_range(from.as_fd(), to.as_fd(), 0, 20), Err(FsError::IO));
        assert_eq!(copy_by_buffer(from.as_fd(), to.as_fd(), 0, 11), Err(FsError::IO));
        copy_range(from.as_fd(), to.as_fd(), 0, 10).unwrap();
    }
}
