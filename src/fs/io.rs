// SPDX-License-Identifier: MIT OR Apache-2.0
//! Contents of open files: READ, WRITE, FSYNC, FALLOCATE, LSEEK, COPY_FILE_RANGE. OPEN and RELEASE are in `open.rs`.

use std::os::fd::OwnedFd;

use rustix::fs::{FallocateFlags, SeekFrom};

use super::Fs;
use super::handle::{Content, Handle, Io};
use crate::layer::Body;
use crate::model::FsError;
use crate::model::ids::{HandleId, NodeId};
use crate::model::sync::read;
use crate::sys::data;
use crate::tree::{Tree, Whereabouts};

/// Where LSEEK looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whence {
    /// `SEEK_DATA`.
    Data,
    /// `SEEK_HOLE`.
    Hole,
}

impl Fs {
    /// The content of a handle; one that was opened in a layer before its file was copied up is switched to the copy,
    /// except where the kernel goes on reading the layer's file.
    fn content(&self, handle: &Handle) -> Result<Content, FsError> {
        let content = handle.content();
        if handle.io() == Io::Ours
            && matches!(content, Content::Layer(_))
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
        // In pieces: whoever answers is not held up for long, and programs go on where it ended.
        let length = usize::try_from(length).unwrap_or(usize::MAX).min(16 << 20);
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
}
