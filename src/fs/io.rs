// SPDX-License-Identifier: MIT OR Apache-2.0
//! Contents: OPEN, READ, WRITE, FSYNC, FALLOCATE, LSEEK, COPY_FILE_RANGE, RELEASE.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, OFlags, SeekFrom};

use super::Fs;
use super::handle::{Content, Handle};
use crate::layer::Body;
use crate::model::ids::{HandleId, NodeId};
use crate::model::sync::read;
use crate::model::{FsError, Kind};
use crate::sys::{FileId, Place, data};
use crate::tree::{Node, Tree, Whereabouts};
use crate::upper::copy_up::Extent;

/// How a file is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenFlags {
    /// For writing (`O_WRONLY`, `O_RDWR`).
    pub write: bool,
    /// `O_TRUNC`.
    pub truncate: bool,
    /// Truncating takes set-id bits: the caller is not root.
    pub clears_set_id: bool,
}

impl OpenFlags {
    /// From the flags of open(2) by a user. The kernel does not say who may keep set-id bits, so only root does.
    pub fn from_bits(bits: i32, uid: u32) -> Self {
        OpenFlags {
            write: bits & libc::O_ACCMODE != libc::O_RDONLY,
            truncate: bits & libc::O_TRUNC != 0,
            clears_set_id: uid != 0,
        }
    }
}

/// An opened file.
#[derive(Clone, Copy, Debug)]
pub struct Opened {
    /// Its handle.
    pub handle: HandleId,
    /// May the kernel keep what it has cached of the content?
    pub keeps_data: bool,
}

/// Where LSEEK looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whence {
    /// `SEEK_DATA`.
    Data,
    /// `SEEK_HOLE`.
    Hole,
}

impl Fs {
    /// OPEN of a regular file. With `truncate` the old content is not even copied up, and set-id bits and capabilities
    /// go as with every change of the content.
    pub fn open(&self, id: NodeId, flags: OpenFlags) -> Result<Opened, FsError> {
        let node = self.tree.node(id)?;
        match node.kind() {
            Kind::File => {}
            Kind::Dir => return Err(FsError::IsDir),
            Kind::Symlink | Kind::Fifo | Kind::Char | Kind::Block | Kind::Socket => return Err(FsError::Invalid),
        }
        let content = if flags.write || flags.truncate {
            // Emptied and opened in one: an error for want of descriptors leaves the old content.
            let file = match if flags.truncate { self.tree.emptied(&node)? } else { None } {
                Some(file) => file,
                None => Arc::new(open_for_writing(&self.reach_writable(&node, Extent::Whole)?)?),
            };
            if flags.truncate {
                rustix::fs::ftruncate(&*file, 0)?;
                self.clear_privileges(&node, &Place::Fd(Arc::clone(&file)), flags.clears_set_id)?;
            }
            Content::Writable(file)
        } else {
            self.open_for_reading(&node)?
        };
        Ok(self.insert_handle(node, content))
    }

    pub(super) fn insert_handle(&self, node: Arc<Node>, content: Content) -> Opened {
        let keeps_data = self.caching(&node).keeps_data;
        Opened { handle: self.handles.insert(Handle::new(node, content)), keeps_data }
    }

    fn open_for_reading(&self, node: &Arc<Node>) -> Result<Content, FsError> {
        match self.tree.content(node)? {
            Whereabouts::Upper => {
                let place = Tree::upper_place(node).ok_or(FsError::Stale)?;
                let file = match place.open(OFlags::RDONLY | OFlags::NONBLOCK) {
                    Ok(file) if is_file_of(node, &file)? => file,
                    // Even an error may be another object's: a whiteout, a socket, a link that stands there since.
                    Ok(_) | Err(_) => {
                        let place = self.reach(node)?.ok_or(FsError::Stale)?;
                        place.open(OFlags::RDONLY | OFlags::NONBLOCK)?
                    }
                };
                Ok(Content::Readable(Arc::new(file)))
            }
            Whereabouts::Below(lower) => Ok(Content::Layer(Arc::new(node.branch().layer(&lower)?.open(&lower.entry)?))),
        }
    }

    /// The content of a handle; one that was opened in a layer before its file was copied up is switched to the copy.
    fn content(&self, handle: &Handle) -> Result<Content, FsError> {
        let content = handle.content();
        if matches!(content, Content::Layer(_))
            && matches!(read(&handle.node().state).content, Some(Whereabouts::Upper))
        {
            let content = self.open_for_reading(handle.node())?;
            handle.switch(content.clone());
            return Ok(content);
        }
        Ok(content)
    }

    /// READ: fills `buffer` from `offset`; the number of bytes, fewer only at the end of the file.
    pub fn read(&self, handle: HandleId, offset: u64, buffer: &mut [u8]) -> Result<usize, FsError> {
        let handle = self.handles.get(handle)?;
        match self.content(&handle)? {
            Content::Writable(file) | Content::Readable(file) => data::read_at(&*file, buffer, offset),
            Content::Layer(body) => match &*body {
                Body::File(file) => data::read_at(file, buffer, offset),
                Body::Bytes(bytes) => {
                    let start = usize::try_from(offset).unwrap_or(usize::MAX);
                    let rest = bytes.get(start..).unwrap_or_default();
                    let length = rest.len().min(buffer.len());
                    if let (Some(to), Some(from)) = (buffer.get_mut(..length), rest.get(..length)) {
                        to.copy_from_slice(from);
                    }
                    Ok(length)
                }
            },
        }
    }

    /// WRITE at `offset`.
    pub fn write(&self, handle: HandleId, offset: u64, bytes: &[u8]) -> Result<usize, FsError> {
        let handle = self.handles.get(handle)?;
        let file = handle.writable_file().ok_or(FsError::BadHandle)?;
        data::write_at(&*file, bytes, offset)
    }

    /// WRITE through a descriptor that has `O_APPEND`. In a shared branch others append too, and only the host can find
    /// the end; in a private one the kernel has found it: `offset`.
    pub fn append(&self, handle: HandleId, offset: u64, bytes: &[u8]) -> Result<usize, FsError> {
        let open = self.handles.get(handle)?;
        if !open.node().branch().is_shared() {
            return self.write(handle, offset, bytes);
        }
        let file = open.writable_file().ok_or(FsError::BadHandle)?;
        data::append(&*file, bytes)
    }

    /// FSYNC of a file.
    pub fn fsync(&self, handle: HandleId, is_data_only: bool) -> Result<(), FsError> {
        let handle = self.handles.get(handle)?;
        match self.content(&handle)? {
            Content::Writable(file) | Content::Readable(file) => {
                Ok(if is_data_only { rustix::fs::fdatasync(&*file) } else { rustix::fs::fsync(&*file) }?)
            }
            Content::Layer(_) => Ok(()),
        }
    }

    /// FSYNCDIR: the names of a directory.
    pub fn fsyncdir(&self, id: NodeId) -> Result<(), FsError> {
        let node = self.tree.node(id)?;
        match Tree::upper_dir(&node) {
            Some(dir) => dir.sync(),
            None => Ok(()),
        }
    }

    /// FALLOCATE, all modes that the host supports.
    pub fn fallocate(&self, handle: HandleId, offset: u64, length: u64, mode: u32) -> Result<(), FsError> {
        let handle = self.handles.get(handle)?;
        let file = handle.writable_file().ok_or(FsError::BadHandle)?;
        let mode = FallocateFlags::from_bits(mode).ok_or(FsError::Unsupported)?;
        Ok(rustix::fs::fallocate(&*file, mode, offset, length)?)
    }

    /// LSEEK for data and holes.
    pub fn lseek(&self, handle: HandleId, offset: u64, whence: Whence) -> Result<u64, FsError> {
        let handle = self.handles.get(handle)?;
        let seek = |file: &OwnedFd| {
            let from = match whence {
                Whence::Data => SeekFrom::Data(offset),
                Whence::Hole => SeekFrom::Hole(offset),
            };
            Ok(rustix::fs::seek(file, from)?)
        };
        match self.content(&handle)? {
            Content::Writable(file) | Content::Readable(file) => seek(&file),
            Content::Layer(body) => match &*body {
                Body::File(file) => seek(file),
                // All data, and the hole that every file has at its end.
                Body::Bytes(bytes) if offset >= bytes.len() as u64 => Err(FsError::Host { errno: libc::ENXIO }),
                Body::Bytes(bytes) => Ok(match whence {
                    Whence::Data => offset,
                    Whence::Hole => bytes.len() as u64,
                }),
            },
        }
    }

    /// COPY_FILE_RANGE between two open files; the number of bytes copied. `CrossDevice` makes the kernel copy itself.
    pub fn copy_file_range(&self, from: (HandleId, u64), to: (HandleId, u64), length: u64) -> Result<usize, FsError> {
        let (source, target) = (self.handles.get(from.0)?, self.handles.get(to.0)?);
        let target = target.writable_file().ok_or(FsError::BadHandle)?;
        let length = usize::try_from(length).unwrap_or(usize::MAX).min(1 << 30);
        let (mut at, mut to_at) = (from.1, to.1);
        let content = self.content(&source)?;
        let file: &OwnedFd = match &content {
            Content::Writable(file) | Content::Readable(file) => file,
            Content::Layer(body) => match &**body {
                Body::File(file) => file,
                Body::Bytes(_) => return Err(FsError::CrossDevice),
            },
        };
        Ok(rustix::fs::copy_file_range(file, Some(&mut at), &*target, Some(&mut to_at), length)?)
    }

    /// RELEASE: the file was closed.
    pub fn release(&self, handle: HandleId) {
        self.handles.remove(handle);
    }
}

/// Is what was opened by name the file that was looked up, and not one put there since?
fn is_file_of(node: &Node, file: &OwnedFd) -> Result<bool, FsError> {
    Ok(read(&node.state).upper_id == Some(FileId::of(&rustix::fs::fstat(file)?)))
}

/// Opens a file of the upper for writing: readable too where the host lets us, since the kernel reads before it writes
/// parts of pages.
pub(super) fn open_for_writing(place: &Place) -> Result<OwnedFd, FsError> {
    match place.open(OFlags::RDWR | OFlags::NONBLOCK) {
        Err(FsError::Access) => place.open(OFlags::WRONLY | OFlags::NONBLOCK),
        other => other,
    }
}
