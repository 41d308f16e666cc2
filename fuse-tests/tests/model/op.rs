// SPDX-License-Identifier: MIT OR Apache-2.0
//! The operations, and what each side answers to them.

use std::fmt::Debug;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{
    Access, AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags, RenameFlags, SeekFrom, Timespec, Timestamps,
    XattrFlags,
};

/// How many files are held open at most.
pub const SLOTS: usize = 4;

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flags {
    Read,
    Write,
    ReadWrite,
    Create,
    Append,
}

/// An operation on a tree, or on a file held open in a slot.
#[derive(Clone, Debug)]
pub enum Op {
    Write(String, u64),
    Truncating(String, u64),
    Append(String, u64),
    Truncate(String, u64),
    Unlink(String),
    Rmdir(String),
    Mkdir(String),
    Rename(String, String),
    NoReplace(String, String),
    Exchange(String, String),
    Link(String, String),
    Symlink(String, u64),
    Chmod(String, u32),
    Chown(String, u32),
    SetXattr(String, u64),
    RemoveXattr(String, u64),
    ListXattrs(String),
    Acl(String, u64, bool),
    Times(String, i64),
    Special(String, u64),
    Read(String),
    List(String),
    Stat(String),
    Access(String, u32),
    RemoveTree(String),
    /// Removes a directory with all below it, makes it again, and removes and makes it once more.
    MakeAgain(String),
    CopyRange(String, String, u64, u64),
    Open(usize, String, Flags),
    OpenDir(usize, String),
    WriteAt(usize, u64, u64),
    ReadAt(usize, u64),
    TruncateFd(usize, u64),
    StatFd(usize),
    ChmodFd(usize, u32),
    TimesFd(usize, i64),
    Allocate(usize, u64, u64, u64),
    Seek(usize, u64, bool),
    SetXattrFd(usize, u64),
    Sync(usize),
    Close(usize),
    /// Both are mounted again, mlfs by mlfs.
    Remount,
    /// Both are mounted again, the upper of mlfs by the kernel: what follows goes through the kernel until a remount.
    ByKernel,
}

/// A mounted tree with the files that are held open in it.
pub struct Side {
    pub root: PathBuf,
    slots: [Option<File>; SLOTS],
}

type Answer = io::Result<String>;

fn times(number: i64) -> Timestamps {
    // Far enough from now that it is compared; before 1970 too.
    let seconds = if number < 0 { number * 10_000_019 } else { 1_000_000_000 + number };
    let time = Timespec { tv_sec: seconds, tv_nsec: number.abs() * 1_000_003 };
    Timestamps { last_access: time, last_modification: time }
}

fn stamp(path: &Path, number: u64) -> io::Result<()> {
    Ok(rustix::fs::utimensat(CWD, path, &times(number as i64), AtFlags::empty())?)
}

fn words(value: impl Debug) -> String {
    format!("{value:?}")
}

/// Opens without waiting for the other end of a pipe; no devices.
fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let kind = std::fs::metadata(path).map(|meta| meta.file_type());
    if kind.is_ok_and(|kind| kind.is_char_device() || kind.is_block_device()) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    options.custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path)
}

/// The value of `system.posix_acl_*`: the owner, one more user, the group, the mask and the others.
fn acl(number: u64) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    let perm = |shift: u64| ((number >> shift) & 7) as u16;
    for (tag, perm, id) in [
        (1u16, 7, u32::MAX),
        (2, perm(0), 1234),
        (4, perm(1), u32::MAX),
        (16, perm(2), u32::MAX),
        (32, perm(3), u32::MAX),
    ] {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(perm.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

fn stat_words(meta: &std::fs::Metadata) -> String {
    // Sizes and counts of directories are the business of each filesystem.
    let size = if meta.is_dir() { (0, 0) } else { (meta.size(), meta.nlink()) };
    words((meta.mode(), meta.uid(), meta.gid(), size))
}

impl Side {
    /// A tree with nothing open.
    pub fn new(root: PathBuf) -> Side {
        Side { root, slots: Default::default() }
    }

    /// Closes whatever is open.
    pub fn close_all(&mut self) {
        self.slots = Default::default();
    }

    fn slot(&self, slot: usize) -> io::Result<&File> {
        self.slots[slot].as_ref().ok_or_else(|| io::Error::from_raw_os_error(9))
    }

    /// What an operation answers, in words that both sides can be compared by.
    pub fn apply(&mut self, op: &Op) -> String {
        let answer = match op {
            Op::Open(slot, path, flags) => self.open(*slot, path, *flags),
            Op::OpenDir(slot, path) => self.open_dir(*slot, path),
            Op::Close(slot) => {
                self.slots[*slot] = None;
                Ok(String::new())
            }
            Op::Write(..)
            | Op::Truncating(..)
            | Op::Append(..)
            | Op::Truncate(..)
            | Op::Read(_)
            | Op::CopyRange(..) => self.on_content(op),
            Op::Chmod(..)
            | Op::Chown(..)
            | Op::SetXattr(..)
            | Op::RemoveXattr(..)
            | Op::ListXattrs(_)
            | Op::Acl(..)
            | Op::Times(..)
            | Op::Stat(_)
            | Op::Access(..) => self.on_attributes(op),
            Op::Remount | Op::ByKernel => Ok(String::new()),
            _ if op.slot().is_some() => self.on_handle(op),
            _ => self.on_names(op),
        };
        answer.unwrap_or_else(|error| match error.raw_os_error() {
            Some(errno) => io::Error::from_raw_os_error(errno).to_string(),
            None => format!("{:?}", error.kind()),
        })
    }

    fn open(&mut self, slot: usize, path: &str, flags: Flags) -> Answer {
        let mut options = OpenOptions::new();
        match flags {
            Flags::Read => options.read(true),
            Flags::Write => options.write(true),
            Flags::ReadWrite => options.read(true).write(true),
            Flags::Create => options.read(true).write(true).create(true).truncate(false),
            Flags::Append => options.append(true),
        };
        self.slots[slot] = None;
        let path = self.root.join(path);
        let file = open(&mut options, &path)?;
        if flags != Flags::Read {
            // Overlayfs gives a file that was metadata only the time of its data's copy; mlfs and ext4 keep its time.
            stamp(&path, 7)?;
        }
        self.slots[slot] = Some(file);
        Ok("open".into())
    }

    fn open_dir(&mut self, slot: usize, path: &str) -> Answer {
        self.slots[slot] = None;
        let flags = OFlags::DIRECTORY.bits().cast_signed();
        self.slots[slot] = Some(OpenOptions::new().read(true).custom_flags(flags).open(self.root.join(path))?);
        Ok("open".into())
    }

    fn on_content(&self, op: &Op) -> Answer {
        let p = |path: &String| self.root.join(path);
        match op {
            Op::Write(path, number) => {
                let file = open(OpenOptions::new().write(true).create(true).truncate(false), &p(path))?;
                file.write_at(format!("W{number}").as_bytes(), *number)?;
                stamp(&p(path), *number)?;
            }
            Op::Truncating(path, number) => {
                let file = open(OpenOptions::new().write(true).create(true).truncate(true), &p(path))?;
                file.write_at(format!("T{number}").as_bytes(), 0)?;
                stamp(&p(path), *number)?;
            }
            Op::Append(path, number) => {
                io::Write::write_all(
                    &mut open(OpenOptions::new().append(true), &p(path))?,
                    format!("A{number}").as_bytes(),
                )?;
                stamp(&p(path), *number)?;
            }
            Op::Truncate(path, size) => {
                open(OpenOptions::new().write(true), &p(path))?.set_len(*size)?;
                stamp(&p(path), *size % 100)?;
            }
            Op::CopyRange(from, to, offset, number) => {
                let source = open(OpenOptions::new().read(true), &p(from))?;
                let target = open(OpenOptions::new().write(true).create(true).truncate(false), &p(to))?;
                stamp(&p(to), *number)?;
                let (mut from, mut into) = (*offset, number * 10);
                let copied = rustix::fs::copy_file_range(&source, Some(&mut from), &target, Some(&mut into), 5000)?;
                stamp(&p(to), *number)?;
                return Ok(words(copied));
            }
            Op::Read(path) => {
                let kind = std::fs::metadata(p(path))?.file_type();
                let readable = kind.is_file() || kind.is_dir();
                return Ok(words(if readable { std::fs::read(p(path))? } else { b"special".to_vec() }));
            }
            _ => unreachable!("{op:?} is about content"),
        }
        Ok("done".into())
    }

    fn on_names(&self, op: &Op) -> Answer {
        let p = |path: &String| self.root.join(path);
        match op {
            Op::Unlink(path) => rustix::fs::unlink(p(path))?,
            Op::Rmdir(path) => std::fs::remove_dir(p(path))?,
            Op::Mkdir(path) => std::fs::create_dir(p(path))?,
            Op::Rename(a, b) => std::fs::rename(p(a), p(b))?,
            Op::NoReplace(a, b) => rustix::fs::renameat_with(CWD, p(a), CWD, p(b), RenameFlags::NOREPLACE)?,
            Op::Exchange(a, b) => rustix::fs::renameat_with(CWD, p(a), CWD, p(b), RenameFlags::EXCHANGE)?,
            Op::Link(a, b) => std::fs::hard_link(p(a), p(b))?,
            Op::Symlink(path, number) => {
                std::os::unix::fs::symlink(format!("to{number}").repeat(1 + *number as usize), p(path))?;
            }
            Op::Special(path, number) => {
                let kinds = [FileType::Fifo, FileType::Socket, FileType::CharacterDevice, FileType::BlockDevice];
                let kind = kinds[*number as usize % if rustix::process::geteuid().is_root() { 4 } else { 2 }];
                let device = rustix::fs::makedev(7, 1 + *number as u32);
                rustix::fs::mknodat(CWD, p(path), kind, Mode::from_raw_mode(0o640), device)?;
            }
            Op::List(path) => {
                let mut names = Vec::new();
                for entry in std::fs::read_dir(p(path))? {
                    let entry = entry?;
                    names.push((entry.file_name(), words(entry.file_type()?)));
                }
                names.sort();
                return Ok(words(names));
            }
            Op::RemoveTree(path) => {
                if std::fs::symlink_metadata(p(path))?.is_dir() {
                    std::fs::remove_dir_all(p(path))?;
                }
            }
            Op::MakeAgain(path) => {
                if std::fs::symlink_metadata(p(path))?.is_dir() {
                    std::fs::remove_dir_all(p(path))?;
                    std::fs::create_dir(p(path))?;
                    std::fs::remove_dir(p(path))?;
                    std::fs::create_dir(p(path))?;
                }
            }
            _ => unreachable!("{op:?} is about names"),
        }
        Ok("done".into())
    }

    fn on_attributes(&self, op: &Op) -> Answer {
        let p = |path: &String| self.root.join(path);
        let none = XattrFlags::empty();
        match op {
            Op::Chmod(path, mode) => std::fs::set_permissions(p(path), std::fs::Permissions::from_mode(*mode))?,
            Op::Chown(path, id) => std::os::unix::fs::lchown(p(path), Some(*id), Some(*id + 1))?,
            Op::SetXattr(path, number) => {
                let name = format!("user.k{}", number % 3);
                rustix::fs::lsetxattr(p(path), name, number.to_string().as_bytes(), none)?;
            }
            Op::RemoveXattr(path, number) => rustix::fs::lremovexattr(p(path), format!("user.k{}", number % 3))?,
            Op::ListXattrs(path) => return list_xattrs(&p(path)),
            Op::Acl(path, number, is_default) => {
                let name = if *is_default { "system.posix_acl_default" } else { "system.posix_acl_access" };
                rustix::fs::setxattr(p(path), name, &acl(*number), none)?;
            }
            Op::Times(path, number) => {
                rustix::fs::utimensat(CWD, p(path), &times(*number), AtFlags::SYMLINK_NOFOLLOW)?;
            }
            Op::Stat(path) => return Ok(stat_words(&std::fs::symlink_metadata(p(path))?)),
            Op::Access(path, mode) => {
                rustix::fs::access(p(path), Access::from_bits_truncate(*mode))?;
            }
            _ => unreachable!("{op:?} is about attributes"),
        }
        Ok("done".into())
    }

    fn on_handle(&self, op: &Op) -> Answer {
        let file = self.slot(op.slot().unwrap_or(0))?;
        match op {
            Op::WriteAt(_, offset, number) => {
                let written = file.write_at(format!("H{number}").repeat(1 + *number as usize).as_bytes(), *offset)?;
                return Ok(words(written));
            }
            Op::ReadAt(_, offset) => {
                let mut block = [0u8; 300];
                let size = file.read_at(&mut block, *offset)?;
                return Ok(words(String::from_utf8_lossy(&block[..size])));
            }
            Op::TruncateFd(_, size) => file.set_len(*size)?,
            Op::StatFd(_) => return Ok(stat_words(&file.metadata()?)),
            Op::ChmodFd(_, mode) => file.set_permissions(std::fs::Permissions::from_mode(*mode))?,
            Op::TimesFd(_, number) => rustix::fs::futimens(file, &times(*number))?,
            Op::Allocate(_, kind, offset, length) => {
                let flags = match kind {
                    0 => FallocateFlags::empty(),
                    1 => FallocateFlags::KEEP_SIZE,
                    2 => FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE,
                    _ => FallocateFlags::ZERO_RANGE,
                };
                rustix::fs::fallocate(file, flags, *offset, *length)?;
            }
            // FUSE has no say in how the kernel seeks in directories.
            Op::Seek(..) if file.metadata()?.is_dir() => {}
            Op::Seek(_, offset, is_data) => {
                let to = if *is_data { SeekFrom::Data(*offset) } else { SeekFrom::Hole(*offset) };
                return Ok(words(rustix::fs::seek(file, to)?));
            }
            Op::SetXattrFd(_, number) => {
                let name = format!("user.k{}", number % 3);
                rustix::fs::fsetxattr(file, name, number.to_string().as_bytes(), XattrFlags::empty())?;
            }
            Op::Sync(_) => file.sync_all()?,
            _ => unreachable!("{op:?} is about handles"),
        }
        Ok("done".into())
    }
}

fn list_xattrs(path: &Path) -> Answer {
    std::fs::symlink_metadata(path)?;
    Ok(words(fuse_tests::tree::xattrs(path)))
}

impl Op {
    /// The slot of an operation on a file that is held open.
    pub fn slot(&self) -> Option<usize> {
        match self {
            Op::Open(slot, ..) | Op::OpenDir(slot, _) | Op::WriteAt(slot, ..) | Op::ReadAt(slot, _) => Some(*slot),
            Op::TruncateFd(slot, _) | Op::StatFd(slot) | Op::ChmodFd(slot, _) | Op::TimesFd(slot, _) => Some(*slot),
            Op::Allocate(slot, ..) | Op::Seek(slot, ..) | Op::SetXattrFd(slot, _) => Some(*slot),
            Op::Sync(slot) | Op::Close(slot) => Some(*slot),
            _ => None,
        }
    }
}
