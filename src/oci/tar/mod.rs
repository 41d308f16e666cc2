// SPDX-License-Identifier: MIT OR Apache-2.0
//! A streaming reader of tar archives: ustar, pax, GNU (long names, sparse), star, v7.
//!
//! Written for archives of strangers: a declared size never decides how much memory is taken, extended headers are
//! bounded, every number is checked. It knows the format only; what the members mean together (duplicates, hard links,
//! whiteouts) is decided where an index is built. Reads forward only, and never past the end mark: what follows is the
//! caller's to drain.

use std::io::{self, Read};

mod header;
mod pax;
mod sparse;
pub mod write;

use header::Header;
use pax::Pax;
use sparse::Segment;

use crate::model::Time;

/// The unit of the format.
const BLOCK: usize = 512;

/// Why an archive cannot be read further.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The bytes are no tar.
    #[error("the tar is damaged at byte {offset}: {what}")]
    Damaged {
        /// Where in the uncompressed archive.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// The archive ends in the middle.
    #[error("the tar is cut short at byte {offset}")]
    Truncated {
        /// Where in the uncompressed archive.
        offset: u64,
    },
    /// The bytes could not be had.
    #[error("the tar cannot be read beyond byte {offset}")]
    Io {
        /// Where in the uncompressed archive.
        offset: u64,
        /// The reason.
        source: io::Error,
    },
}

/// What a member is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemberKind {
    /// Regular file.
    #[default]
    File,
    /// Another name of an earlier member.
    HardLink,
    /// Symbolic link.
    Symlink,
    /// Character device.
    Char,
    /// Block device.
    Block,
    /// Directory.
    Dir,
    /// Named pipe.
    Fifo,
}

/// One member, without its content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// Where its header begins in the uncompressed archive.
    pub offset: u64,
    /// Its kind.
    pub kind: MemberKind,
    /// Its path as written.
    pub path: Vec<u8>,
    /// Target of a link as written.
    pub link: Vec<u8>,
    /// Permission bits, `0..=0o7777`.
    pub perm: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification.
    pub mtime: Time,
    /// Size of the content, holes included.
    pub size: u64,
    /// Major and minor of a device.
    pub device: (u32, u32),
    /// Extended attributes (`SCHILY.xattr.*`), in the order of the archive.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A piece of a member's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunk {
    /// So many bytes were read.
    Data(usize),
    /// So many zero bytes stand here; nothing was read.
    Hole(u64),
    /// The content is complete.
    End,
}

/// How an archive ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// By two blocks of zeros.
    Mark,
    /// The bytes just ended, between members.
    Eof,
}

/// A source that can pass over bytes.
pub trait Forward: Read + Sized {
    /// Passes over `count` bytes. `UnexpectedEof` where fewer are left.
    fn forward(&mut self, count: u64) -> io::Result<()> {
        let passed = io::copy(&mut self.by_ref().take(count), &mut io::sink())?;
        if passed < count { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }
}

impl Forward for &[u8] {}

/// Any reader as a source; bytes are passed over by reading them.
#[derive(Debug)]
pub struct Stream<R>(pub R);

impl<R: Read> Read for Stream<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl<R: Read> Forward for Stream<R> {}

/// Reads an archive member by member.
#[derive(Debug)]
pub struct TarReader<R> {
    inner: R,
    offset: u64,
    header_limit: u64,
    /// Stored bytes of the current member that were not read yet.
    stored: u64,
    /// Zeros after them, up to the block.
    padding: u64,
    /// The current member's map, reversed (next piece last), no piece empty; empty for an ordinary file.
    map: Vec<Segment>,
    is_sparse: bool,
    /// Where in the current member's content we are, and its size.
    position: u64,
    size: u64,
    ending: Option<Ending>,
}

impl<R: Forward> TarReader<R> {
    /// Reads from `inner`; extended headers and sparse maps above `header_limit` bytes are refused.
    pub fn new(inner: R, header_limit: u64) -> Self {
        TarReader {
            inner,
            offset: 0,
            header_limit,
            stored: 0,
            padding: 0,
            map: Vec::new(),
            is_sparse: false,
            position: 0,
            size: 0,
            ending: None,
        }
    }

    /// How the archive ended, after [`TarReader::next_member`] answered `None`.
    pub fn ending(&self) -> Option<Ending> {
        self.ending
    }

    /// Where the reader stands; before the first [`TarReader::read_chunk`]: where the member's stored bytes begin.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Is the current member stored with holes?
    pub fn is_sparse(&self) -> bool {
        self.is_sparse
    }

    /// Gives back the source, which stands behind the end mark.
    pub fn into_inner(self) -> R {
        self.inner
    }

    /// The next member; what is left of the current one is passed over. `None` at the end.
    pub fn next_member(&mut self) -> Result<Option<Member>, TarError> {
        self.pass_content()?;
        let mut pax = Pax::default();
        let mut long_path = None;
        let mut long_link = None;
        let mut is_extended = false;
        loop {
            let at = self.offset;
            let Some(block) = self.read_header()? else {
                if is_extended {
                    return Err(TarError::Truncated { offset: at });
                }
                return Ok(None);
            };
            let header = Header::parse(&block, at)?;
            match header.kind {
                b'x' | b'X' => pax = Pax::parse(&self.load_extended(&header)?, at)?,
                b'L' => long_path = Some(until_nul(self.load_extended(&header)?)),
                b'K' => long_link = Some(until_nul(self.load_extended(&header)?)),
                // Defaults for all members, and volume labels: neither names a file.
                b'g' | b'V' => {
                    self.begin_stored(header.size)?;
                    self.pass_content()?;
                    continue;
                }
                _ => return self.begin(header, &block, pax, long_path, long_link).map(Some),
            }
            is_extended = true;
        }
    }

    /// Reads a piece of the current member's content into `buf`, which must not be empty.
    pub fn read_chunk(&mut self, buf: &mut [u8]) -> Result<Chunk, TarError> {
        if self.position >= self.size {
            return Ok(Chunk::End);
        }
        let left = if self.is_sparse {
            while self.map.pop_if(|segment| segment.end() <= self.position).is_some() {}
            match self.map.last() {
                Some(segment) if segment.offset > self.position => {
                    let hole = segment.offset - self.position;
                    self.position = segment.offset;
                    return Ok(Chunk::Hole(hole));
                }
                Some(segment) => segment.end() - self.position,
                None => {
                    let hole = self.size - self.position;
                    self.position = self.size;
                    return Ok(Chunk::Hole(hole));
                }
            }
        } else {
            self.size - self.position
        };
        let want = usize::try_from(left.min(self.stored)).unwrap_or(usize::MAX).min(buf.len());
        let target = buf.get_mut(..want).unwrap_or_default();
        let count = retry(|| self.inner.read(target)).map_err(|source| TarError::Io { offset: self.offset, source })?;
        if count == 0 {
            return Err(TarError::Truncated { offset: self.offset });
        }
        self.offset += count as u64;
        self.stored -= count as u64;
        self.position += count as u64;
        Ok(Chunk::Data(count))
    }

    fn begin(
        &mut self,
        header: Header,
        block: &[u8; BLOCK],
        mut pax: Pax,
        long_path: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Member, TarError> {
        let at = header.offset;
        let damaged = |what: String| TarError::Damaged { offset: at, what };
        let mut stored = pax.size.unwrap_or(header.size);
        let path = pax.path.take().or(long_path).unwrap_or_else(|| header.path.clone());
        let kind = match header.kind {
            b'\0' if path.ends_with(b"/") => MemberKind::Dir,
            b'0' if path.ends_with(b"/") && stored == 0 => MemberKind::Dir,
            b'\0' | b'0' | b'7' | b'S' => MemberKind::File,
            b'1' => MemberKind::HardLink,
            b'2' => MemberKind::Symlink,
            b'3' => MemberKind::Char,
            b'4' => MemberKind::Block,
            b'5' => MemberKind::Dir,
            b'6' => MemberKind::Fifo,
            other => {
                let name = path.escape_ascii();
                return Err(damaged(format!("\"{name}\" is of the unknown type '{}'", other.escape_ascii())));
            }
        };
        if kind != MemberKind::File {
            // As Go's archive/tar: these have no content, whatever the size says (link sizes are common).
            stored = 0;
        }
        self.begin_stored(stored)?;
        self.size = stored;
        let map = if header.kind == b'S' {
            Some(self.load_gnu_map(block, at)?)
        } else if kind == MemberKind::File && pax.is_sparse() {
            Some(self.load_pax_map(&pax, at)?)
        } else {
            None
        };
        if let Some((map, size)) = map {
            sparse::check(&map, size, self.stored).map_err(damaged)?;
            self.is_sparse = true;
            self.size = size;
            self.map = map;
            // GNU tar ends a map by an empty piece; more of them are of no use to anybody.
            self.map.retain(|segment| segment.len > 0);
            self.map.reverse();
        }
        let id = |from_pax: Option<u64>, own: u64, what: &str| {
            u32::try_from(from_pax.unwrap_or(own)).map_err(|_| damaged(format!("the {what} exceeds 32 bits")))
        };
        Ok(Member {
            offset: at,
            kind,
            path: pax.sparse_name.take().unwrap_or(path),
            link: pax.link.take().or(long_link).unwrap_or_else(|| header.link.clone()),
            perm: header.perm,
            uid: id(pax.uid, header.uid, "owner")?,
            gid: id(pax.gid, header.gid, "group")?,
            mtime: pax.mtime.unwrap_or(Time { secs: header.mtime, nanos: 0 }),
            size: self.size,
            device: header.device,
            xattrs: std::mem::take(&mut pax.xattrs),
        })
    }

    fn begin_stored(&mut self, stored: u64) -> Result<(), TarError> {
        let block = BLOCK as u64;
        if stored > i64::MAX as u64 - block {
            return Err(TarError::Damaged { offset: self.offset, what: "the size exceeds 63 bits".to_owned() });
        }
        self.stored = stored;
        self.padding = (block - stored % block) % block;
        self.position = 0;
        self.size = 0;
        self.is_sparse = false;
        self.map.clear();
        Ok(())
    }

    fn pass_content(&mut self) -> Result<(), TarError> {
        let (stored, padding) = (std::mem::take(&mut self.stored), std::mem::take(&mut self.padding));
        let offset = self.offset;
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::UnexpectedEof => TarError::Truncated { offset },
            _ => TarError::Io { offset, source },
        };
        self.inner.forward(stored).map_err(failed)?;
        match self.inner.forward(padding) {
            // As in Go: an archive may end without the padding of its last member (`umoci insert` writes such).
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => self.ending = Some(Ending::Eof),
            other => other.map_err(failed)?,
        }
        self.offset += stored + padding;
        Ok(())
    }

    /// A header's block, `None` at the end of the archive.
    fn read_header(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        if self.ending.is_some() {
            return Ok(None);
        }
        let mut block = [0; BLOCK];
        if !self.fill_block(&mut block, true)? {
            self.ending = Some(Ending::Eof);
            return Ok(None);
        }
        if block.iter().any(|b| *b != 0) {
            return Ok(Some(block));
        }
        // One lone block of zeros also ends an archive, as in GNU tar and Go.
        let at = self.offset;
        let ending = match self.fill_block(&mut block, true)? {
            false => Ending::Eof,
            true if block.iter().all(|b| *b == 0) => Ending::Mark,
            true => return Err(TarError::Damaged { offset: at, what: "a block of zeros between members".to_owned() }),
        };
        self.ending = Some(ending);
        Ok(None)
    }

    /// Fills `block`; false when nothing is left and the archive may end here.
    fn fill_block(&mut self, block: &mut [u8; BLOCK], may_end: bool) -> Result<bool, TarError> {
        let mut filled = 0;
        while filled < BLOCK {
            let rest = block.get_mut(filled..).unwrap_or_default();
            match retry(|| self.inner.read(rest)) {
                Ok(0) if filled == 0 && may_end => return Ok(false),
                Ok(0) => return Err(TarError::Truncated { offset: self.offset + filled as u64 }),
                Ok(count) => filled += count,
                Err(source) => return Err(TarError::Io { offset: self.offset, source }),
            }
        }
        self.offset += BLOCK as u64;
        Ok(true)
    }

    /// The next block of the current member's stored bytes.
    fn read_stored_block(&mut self) -> Result<[u8; BLOCK], TarError> {
        let mut block = [0; BLOCK];
        self.fill_block(&mut block, false)?;
        let from_stored = self.stored.min(BLOCK as u64);
        self.padding = self.padding.saturating_sub(BLOCK as u64 - from_stored);
        self.stored -= from_stored;
        Ok(block)
    }

    /// The content of an extended header.
    fn load_extended(&mut self, header: &Header) -> Result<Vec<u8>, TarError> {
        if header.size > self.header_limit {
            let what = format!("an extended header of {} bytes (allowed are {})", header.size, self.header_limit);
            return Err(TarError::Damaged { offset: header.offset, what });
        }
        self.begin_stored(header.size)?;
        let mut bytes = Vec::new();
        let wanted = header.size;
        let offset = self.offset;
        let got = self
            .inner
            .by_ref()
            .take(wanted)
            .read_to_end(&mut bytes)
            .map_err(|source| TarError::Io { offset, source })? as u64;
        self.offset += got;
        if got < wanted {
            return Err(TarError::Truncated { offset: self.offset });
        }
        self.stored = 0;
        self.pass_content()?;
        Ok(bytes)
    }

    fn load_gnu_map(&mut self, header: &[u8; BLOCK], at: u64) -> Result<(Vec<Segment>, u64), TarError> {
        let no_number = || TarError::Damaged { offset: at, what: "the sparse map is no number".to_owned() };
        let mut map = Vec::new();
        let mut is_extended = sparse::gnu_first(header, &mut map).ok_or_else(no_number)?;
        // The map's own blocks are not counted in the member's size.
        while is_extended {
            let mut block = [0; BLOCK];
            self.fill_block(&mut block, false)?;
            is_extended = sparse::gnu_next(&block, &mut map).ok_or_else(no_number)?;
            self.check_map_size(map.len(), at)?;
        }
        let size = header::number(header.get(483..495).unwrap_or_default())
            .and_then(|n| u64::try_from(n).ok())
            .ok_or_else(|| TarError::Damaged { offset: at, what: "the real size is no number".to_owned() })?;
        Ok((map, size))
    }

    fn load_pax_map(&mut self, pax: &Pax, at: u64) -> Result<(Vec<Segment>, u64), TarError> {
        let damaged = |what: &str| TarError::Damaged { offset: at, what: what.to_owned() };
        let size = pax.sparse_size.ok_or_else(|| damaged("a sparse file without its real size"))?;
        if !pax.has_map_in_data {
            return Ok((pax.sparse_map.clone(), size));
        }
        let mut text = sparse::MapText::default();
        loop {
            if let Some(map) = text.finished() {
                return Ok((map, size));
            }
            if self.stored == 0 {
                return Err(damaged("the sparse map is incomplete"));
            }
            let block = self.read_stored_block()?;
            text.push(&block).ok_or_else(|| damaged("the sparse map is no list of numbers"))?;
            self.check_map_size(text.len(), at)?;
        }
    }

    fn check_map_size(&self, segments: usize, at: u64) -> Result<(), TarError> {
        if (segments * size_of::<Segment>()) as u64 > self.header_limit {
            return Err(TarError::Damaged { offset: at, what: format!("a sparse map of over {segments} pieces") });
        }
        Ok(())
    }
}

/// Reads again after a signal.
fn retry(mut read: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match read() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    bytes.truncate(end);
    bytes
}

#[cfg(test)]
mod tests;
