// SPDX-License-Identifier: MIT OR Apache-2.0
//! Streams of buffers between threads: bounded, so that a slow reader holds up its writer instead of filling memory.

use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use crate::oci::tar::Forward;

/// The size of the buffers that are passed on.
pub const BUFFER: usize = 256 << 10;
/// How many buffers may wait in one stream.
const WAITING: usize = 8;

type Item = io::Result<Arc<Vec<u8>>>;

/// The writing end. Whoever reads may have stopped; then there is nothing more to do.
pub type Sender = SyncSender<Item>;

/// A stream of buffers.
pub fn pipe() -> (Sender, PipeReader) {
    let (sender, receiver) = sync_channel(WAITING);
    (sender, PipeReader { receiver, current: Arc::default(), at: 0, is_over: false })
}

/// The reading end: ends when the writer is gone, fails with what the writer sent.
#[derive(Debug)]
pub struct PipeReader {
    receiver: Receiver<Item>,
    current: Arc<Vec<u8>>,
    at: usize,
    is_over: bool,
}

impl PipeReader {
    /// The next buffer as a whole; `None` at the end.
    pub fn next_buffer(&mut self) -> io::Result<Option<Arc<Vec<u8>>>> {
        if self.is_over {
            return Ok(None);
        }
        match self.receiver.recv() {
            Ok(Ok(buffer)) => Ok(Some(buffer)),
            Ok(Err(e)) => {
                self.is_over = true;
                Err(e)
            }
            Err(_) => {
                self.is_over = true;
                Ok(None)
            }
        }
    }
}

impl BufRead for PipeReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.at >= self.current.len() {
            match self.next_buffer()? {
                Some(buffer) => {
                    self.current = buffer;
                    self.at = 0;
                }
                None => return Ok(&[]),
            }
        }
        Ok(self.current.get(self.at..).unwrap_or_default())
    }

    fn consume(&mut self, count: usize) {
        self.at += count;
    }
}

impl Read for PipeReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(buf.len());
        if let (Some(to), Some(from)) = (buf.get_mut(..count), available.get(..count)) {
            to.copy_from_slice(from);
        }
        self.consume(count);
        Ok(count)
    }
}

impl Forward for PipeReader {
    fn forward(&mut self, count: u64) -> io::Result<()> {
        let mut left = count;
        while left > 0 {
            let available = self.fill_buf()?.len();
            if available == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let part = available.min(usize::try_from(left).unwrap_or(usize::MAX));
            self.consume(part);
            left -= part as u64;
        }
        Ok(())
    }
}

/// Fills a buffer as far as `source` goes, up to [`BUFFER`] bytes; empty at the end.
pub fn read_buffer(source: &mut dyn Read) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; BUFFER];
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|r| !r.is_empty()) {
        match source.read(rest) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    buffer.truncate(filled);
    Ok(buffer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_one_stream_and_errors_arrive() {
        let (sender, mut reader) = pipe();
        sender.send(Ok(Arc::new(b"abc".to_vec()))).unwrap();
        sender.send(Ok(Arc::default())).unwrap();
        sender.send(Ok(Arc::new(b"def".to_vec()))).unwrap();
        sender.send(Err(io::ErrorKind::InvalidData.into())).unwrap();
        reader.forward(2).unwrap();
        let mut two = [0; 2];
        reader.read_exact(&mut two).unwrap();
        assert_eq!(&two, b"cd");
        assert!(reader.forward(9).is_err());
        drop(sender);
        assert!(reader.next_buffer().unwrap().is_none());
    }
}
