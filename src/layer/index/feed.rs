// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reads a tar into a builder: small bodies into the index, the others to a sink.

use std::io;

use super::build::{BodyPlan, BuildError, Builder, NodeId};
use super::format::INLINE_MAX;
use crate::oci::tar::{Chunk, Ending, Forward, TarError, TarReader};

/// The most bytes handed to a sink at once.
pub const CHUNK: usize = 256 << 10;

/// Takes the bodies that go into the object store: begin, then pieces and holes in order, then end.
pub trait BodySink {
    /// A body of `size` bytes begins, that of `node`.
    fn begin(&mut self, node: NodeId, size: u64) -> io::Result<()>;
    /// The next bytes, at most [`CHUNK`].
    fn data(&mut self, bytes: Vec<u8>) -> io::Result<()>;
    /// The next bytes are so many zeros.
    fn hole(&mut self, len: u64) -> io::Result<()>;
    /// The body is complete.
    fn end(&mut self) -> io::Result<()>;
}

/// Why a tar could not be read into an index.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// The tar is at fault.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// What it holds is at fault, or the index could not be written.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// A body could not be stored.
    #[error("a file's content cannot be stored")]
    Sink(#[from] io::Error),
}

/// Reads all members of `tar`; answers how it ended. Its source then stands behind the end mark.
pub fn feed<R: Forward>(
    tar: &mut TarReader<R>,
    builder: &mut Builder<'_>,
    sink: &mut dyn BodySink,
) -> Result<Ending, FeedError> {
    let mut small = vec![0; INLINE_MAX as usize];
    while let Some(member) = tar.next_member()? {
        match builder.add(&member)? {
            BodyPlan::Skip => {}
            BodyPlan::Inline(node) => {
                let content = small.get_mut(..member.size as usize).unwrap_or_default();
                fill(tar, content)?;
                builder.set_inline(node, content)?;
            }
            BodyPlan::Object(node) => {
                sink.begin(node, member.size)?;
                pass_on(tar, member.size, sink)?;
                sink.end()?;
            }
        }
    }
    Ok(tar.ending().unwrap_or(Ending::Eof))
}

/// Fills `content` with the whole body of the current member.
fn fill<R: Forward>(tar: &mut TarReader<R>, content: &mut [u8]) -> Result<(), TarError> {
    let mut at = 0;
    loop {
        let rest = content.get_mut(at..).unwrap_or_default();
        match tar.read_chunk(rest)? {
            Chunk::End => return Ok(()),
            Chunk::Data(count) => at += count,
            Chunk::Hole(len) => {
                let end = at.saturating_add(len as usize).min(content.len());
                content.get_mut(at..end).unwrap_or_default().fill(0);
                at = end;
            }
        }
    }
}

fn pass_on<R: Forward>(tar: &mut TarReader<R>, size: u64, sink: &mut dyn BodySink) -> Result<(), FeedError> {
    let mut left = size;
    let mut buffer = Vec::new();
    let mut filled = 0;
    loop {
        if buffer.is_empty() {
            // A declared size takes at most one chunk of memory.
            buffer = vec![0; usize::try_from(left).unwrap_or(usize::MAX).clamp(1, CHUNK)];
        }
        match tar.read_chunk(buffer.get_mut(filled..).unwrap_or_default())? {
            Chunk::Data(count) => {
                filled += count;
                left = left.saturating_sub(count as u64);
                if filled == buffer.len() {
                    sink.data(std::mem::take(&mut buffer))?;
                    filled = 0;
                }
            }
            Chunk::Hole(len) => {
                flush(&mut buffer, &mut filled, sink)?;
                left = left.saturating_sub(len);
                sink.hole(len)?;
            }
            Chunk::End => return flush(&mut buffer, &mut filled, sink).map_err(FeedError::Sink),
        }
    }
}

fn flush(buffer: &mut Vec<u8>, filled: &mut usize, sink: &mut dyn BodySink) -> io::Result<()> {
    let mut bytes = std::mem::take(buffer);
    bytes.truncate(std::mem::take(filled));
    if bytes.is_empty() { Ok(()) } else { sink.data(bytes) }
}
