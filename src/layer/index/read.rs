// SPDX-License-Identifier: MIT OR Apache-2.0
//! Opens, validates and reads an index.
//!
//! Everything is checked once when an index is opened: checksums, then every bound, order and reference, so that the
//! file is proven to be one tree without circles. Readers still look up every place with a bounds check (a file may
//! change under its map by force), and answer [`IndexError`] instead of assuming.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use zerocopy::FromBytes;

use super::format::{
    BODIES_AT, BodyKind, Dirent, FLAG_IMPLICIT, FLAG_OPAQUE, Header, INLINE_READ_MAX, MAGIC, ObjectRef, Record,
    Section, VERSION, WHITEOUT,
};
use super::write::Stats;
use crate::model::cookie::NameHash;
use crate::model::{Cookie, Digest, Kind, Name};
use crate::sys::Map;

/// The longest target of a symlink.
const TARGET_MAX: u64 = 4095;

/// Why an index is of no use. It can be rebuilt from its layer.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The file could not be read.
    #[error("the index cannot be read")]
    Io(#[from] io::Error),
    /// Another version, or no index at all.
    #[error("the index is of another version")]
    Version,
    /// Something is not as the format says.
    #[error("the index is damaged: {0}")]
    Damaged(String),
}

fn damaged(what: impl Into<String>) -> IndexError {
    IndexError::Damaged(what.into())
}

/// Where the bytes are.
#[derive(Debug)]
enum Bytes {
    Mapped(Map),
    Owned(Vec<u8>),
}

impl Bytes {
    fn all(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Owned(bytes) => bytes,
        }
    }
}

/// A validated index.
#[derive(Debug)]
pub struct Index {
    bytes: Bytes,
    header: Header,
}

/// What stands at a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// A whiteout.
    Whiteout,
    /// A record.
    Record(u32),
}

/// One entry of a listing.
pub type Line<'a> = Result<(Name<'a>, Cookie, Slot), IndexError>;

/// An extended attribute: name and value.
pub type Xattr<'a> = (&'a [u8], &'a [u8]);

/// Where the content of a regular file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content<'a> {
    /// In the index; its checksum was verified.
    Inline(&'a [u8]),
    /// In the object store.
    Object(Digest),
}

impl Index {
    /// Maps and validates the index in `file`.
    pub fn open(file: &File) -> Result<Self, IndexError> {
        if file.metadata()?.len() < BODIES_AT {
            return Err(damaged("it is too short"));
        }
        Self::validate(Bytes::Mapped(Map::read_only(file)?))
    }

    /// Validates an index in memory.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, IndexError> {
        Self::validate(Bytes::Owned(bytes))
    }

    /// Reads only the sums in the head of an index; nothing else of it is checked.
    pub fn read_stats(file: &File) -> Result<Stats, IndexError> {
        let mut head = [0; size_of::<Header>()];
        file.read_exact_at(&mut head, 0)?;
        check_header(&head).map(|header| stats_of(&header))
    }

    /// The digest of the layer's uncompressed tar.
    pub fn diff_id(&self) -> Digest {
        Digest(self.header.diff_id)
    }

    /// Sums over the layer.
    pub fn stats(&self) -> Stats {
        stats_of(&self.header)
    }

    /// The objects the layer needs, sorted.
    pub fn objects(&self) -> impl ExactSizeIterator<Item = Digest> + '_ {
        self.object_refs().iter().map(|o| Digest(o.digest))
    }

    /// The same, each with its size.
    pub fn sized_objects(&self) -> impl ExactSizeIterator<Item = (Digest, u64)> + '_ {
        self.object_refs().iter().map(|o| (Digest(o.digest), o.size.get()))
    }

    /// The record with this number.
    pub fn record(&self, number: u32) -> Result<&Record, IndexError> {
        self.records().get(number as usize).ok_or_else(|| damaged(format!("there is no record {number}")))
    }

    /// The kind of a record.
    pub fn kind(record: &Record) -> Result<Kind, IndexError> {
        Kind::from_mode(u32::from(record.mode.get())).ok_or_else(|| damaged("a record without a kind"))
    }

    /// Does the directory hide everything below it?
    pub fn is_opaque(record: &Record) -> bool {
        record.flags & FLAG_OPAQUE != 0
    }

    /// Is it a directory without a member of its own?
    pub fn is_implicit(record: &Record) -> bool {
        record.flags & FLAG_IMPLICIT != 0
    }

    /// Has the layer directories without a member, beside the root?
    pub fn has_implicit(&self) -> Result<bool, IndexError> {
        Ok(self.records().iter().skip(1).any(Self::is_implicit))
    }

    /// What the directory `dir` holds at `name`; `None` for nothing.
    pub fn find(&self, dir: &Record, name: Name<'_>) -> Result<Option<Slot>, IndexError> {
        let entries = self.entries_of(dir)?;
        let hash = NameHash::of(name).0;
        let from = entries.partition_point(|e| e.hash.get() < hash);
        for entry in entries.get(from..).unwrap_or_default() {
            if entry.hash.get() != hash {
                break;
            }
            if self.name(entry)? == name {
                return Ok(Some(slot(entry)));
            }
        }
        Ok(None)
    }

    /// The entries of `dir` after a cookie, in the order of listings.
    pub fn list(&self, dir: &Record, after: Cookie) -> Result<impl Iterator<Item = Line<'_>>, IndexError> {
        let entries = self.entries_of(dir)?;
        let from = entries.partition_point(|e| e.hash.get() < after.hash().0);
        let mut last = None;
        let entries = entries.get(from..).unwrap_or_default().iter();
        let numbered = entries.map(move |entry| {
            let hash = entry.hash.get();
            let ordinal = match last {
                Some((known, ordinal)) if known == hash => ordinal + 1,
                _ => 0u32,
            };
            last = Some((hash, ordinal));
            (entry, Cookie::new(NameHash(hash), ordinal))
        });
        Ok(numbered
            .filter(move |(_, cookie)| *cookie > after)
            .map(|(entry, cookie)| Ok((self.name(entry)?, cookie, slot(entry)))))
    }

    /// The content of a regular file.
    pub fn content(&self, record: &Record) -> Result<Content<'_>, IndexError> {
        match BodyKind::from_u8(record.body) {
            Some(BodyKind::Inline) => {
                let body = self.slice(&self.header.bodies, record.data.get(), record.size.get(), "a body")?;
                if crc32fast::hash(body) != record.check.get() {
                    return Err(damaged(format!("wrong checksum of the body at {}", record.data.get())));
                }
                Ok(Content::Inline(body))
            }
            Some(BodyKind::Object) => {
                let number = usize::try_from(record.data.get()).ok();
                let object = number.and_then(|n| self.object_refs().get(n));
                object.map(|o| Content::Object(Digest(o.digest))).ok_or_else(|| damaged("an object without a number"))
            }
            Some(BodyKind::None | BodyKind::Range) | None => Err(damaged("a file without content")),
        }
    }

    /// Verifies the checksums of all inline bodies, which opening leaves out.
    pub fn check_bodies(&self) -> Result<(), IndexError> {
        let is_inline = |record: &&Record| BodyKind::from_u8(record.body) == Some(BodyKind::Inline);
        self.records().iter().filter(is_inline).try_for_each(|record| self.content(record).map(drop))
    }

    /// The target of a symlink.
    pub fn target(&self, record: &Record) -> Result<&[u8], IndexError> {
        self.slice(&self.header.heap, record.data.get(), record.size.get(), "a target")
    }

    /// The extended attributes of a record: names and values, sorted by name.
    pub fn xattrs(&self, record: &Record) -> Result<Vec<Xattr<'_>>, IndexError> {
        let len = u64::from(record.xattrs_len.get());
        let mut block = self.slice(&self.header.heap, record.xattrs_at.get(), len, "attributes")?;
        let mut xattrs = Vec::new();
        while !block.is_empty() {
            let (name, value, rest) = split_xattr(block).ok_or_else(|| damaged("malformed attributes"))?;
            xattrs.push((name, value));
            block = rest;
        }
        Ok(xattrs)
    }

    fn name(&self, entry: &Dirent) -> Result<Name<'_>, IndexError> {
        let (at, len) = (u64::from(entry.name_at.get()), u64::from(entry.name_len.get()));
        let bytes = self.slice(&self.header.names, at, len, "a name")?;
        Name::new(bytes).map_err(|_| damaged(format!("the name at {at} is none")))
    }

    fn entries_of(&self, dir: &Record) -> Result<&[Dirent], IndexError> {
        let range = usize::try_from(dir.data.get()).ok().zip(usize::try_from(dir.size.get()).ok());
        let range = range.and_then(|(first, count)| Some(first..first.checked_add(count)?));
        range.and_then(|r| self.entries().get(r)).ok_or_else(|| damaged("a directory beyond the entries"))
    }

    fn section(&self, section: &Section) -> &[u8] {
        bounds(section).and_then(|range| self.bytes.all().get(range)).unwrap_or_default()
    }

    fn slice(&self, section: &Section, at: u64, len: u64, what: &str) -> Result<&[u8], IndexError> {
        let part = Section { offset: at.into(), len: len.into() };
        let found = bounds(&part).and_then(|range| self.section(section).get(range));
        found.ok_or_else(|| damaged(format!("{what} beyond its section, at {at}")))
    }

    fn records(&self) -> &[Record] {
        table(self.section(&self.header.records))
    }

    fn entries(&self) -> &[Dirent] {
        table(self.section(&self.header.entries))
    }

    fn object_refs(&self) -> &[ObjectRef] {
        table(self.section(&self.header.objects))
    }

    fn validate(bytes: Bytes) -> Result<Self, IndexError> {
        let header = check_header(bytes.all())?;
        let index = Index { bytes, header };
        index.check_sections()?;
        index.check_records()?;
        index.check_entries()?;
        Ok(index)
    }

    /// The sections follow each other without gaps up to the end of the file.
    fn check_sections(&self) -> Result<(), IndexError> {
        let header = &self.header;
        let summed = [&header.heap, &header.names, &header.records, &header.entries, &header.objects];
        let mut end = BODIES_AT;
        for section in std::iter::once(&header.bodies).chain(summed) {
            if section.offset.get() != end || bounds(section).is_none() {
                return Err(damaged("a section at a wrong place"));
            }
            end = end.saturating_add(section.len.get());
        }
        if end != self.bytes.all().len() as u64 {
            return Err(damaged("its length is wrong"));
        }
        let mut crc = crc32fast::Hasher::new();
        for section in summed {
            crc.update(self.section(section));
        }
        if crc.finalize() != header.sections_crc.get() {
            return Err(damaged("wrong checksum of the tables"));
        }
        let is_whole = |section: &Section, size: usize| section.len.get().is_multiple_of(size as u64);
        if !is_whole(&header.records, size_of::<Record>())
            || !is_whole(&header.entries, size_of::<Dirent>())
            || !is_whole(&header.objects, size_of::<ObjectRef>())
        {
            return Err(damaged("a table with half a line"));
        }
        if !self.object_refs().is_sorted_by(|a, b| a.digest < b.digest) {
            return Err(damaged("the objects are out of order"));
        }
        Ok(())
    }

    fn check_records(&self) -> Result<(), IndexError> {
        let mut next_entry = 0;
        for (number, record) in self.records().iter().enumerate() {
            self.check_record(record, &mut next_entry).map_err(|e| match e {
                IndexError::Damaged(what) => damaged(format!("record {number}: {what}")),
                other => other,
            })?;
        }
        if next_entry != self.entries().len() as u64 {
            return Err(damaged("entries that belong to no directory"));
        }
        match self.records().first() {
            Some(root) if Self::kind(root)? == Kind::Dir => Ok(()),
            _ => Err(damaged("the root is no directory")),
        }
    }

    fn check_record(&self, record: &Record, next_entry: &mut u64) -> Result<(), IndexError> {
        let kind = Self::kind(record)?;
        if record.mtime_nanos.get() >= 1_000_000_000 {
            return Err(damaged("a time with too many nanoseconds"));
        }
        if record.flags != 0 && (kind != Kind::Dir || record.flags & !(FLAG_OPAQUE | FLAG_IMPLICIT) != 0) {
            return Err(damaged("unknown flags"));
        }
        let mut last: Option<&[u8]> = None;
        for (name, _) in self.xattrs(record)? {
            if last.is_some_and(|l| l >= name) {
                return Err(damaged("attributes out of order"));
            }
            last = Some(name);
        }
        let body = BodyKind::from_u8(record.body);
        if (kind == Kind::File) != matches!(body, Some(BodyKind::Inline | BodyKind::Object)) {
            return Err(damaged("a body of an unknown kind"));
        }
        let size = record.size.get();
        match (kind, body) {
            (Kind::File, Some(BodyKind::Inline)) if size > INLINE_READ_MAX => Err(damaged("too big a body")),
            // The checksum of a body is verified when it is read: opening an index does not read the bodies.
            (Kind::File, Some(BodyKind::Inline)) => {
                self.slice(&self.header.bodies, record.data.get(), size, "a body").map(|_| ())
            }
            (Kind::File, _) => {
                let number = usize::try_from(record.data.get()).ok();
                match number.and_then(|n| self.object_refs().get(n)) {
                    Some(object) if object.size.get() == size => Ok(()),
                    _ => Err(damaged("an object that is not listed, or of another size")),
                }
            }
            (Kind::Dir, _) => {
                if record.data.get() != *next_entry {
                    return Err(damaged("its entries do not follow"));
                }
                *next_entry = next_entry.saturating_add(size);
                let entries = self.entries_of(record)?;
                self.check_order(entries)
            }
            (Kind::Symlink, _) => {
                if size == 0 || size > TARGET_MAX || self.target(record)?.contains(&0) {
                    return Err(damaged("an impossible target"));
                }
                Ok(())
            }
            (Kind::Char | Kind::Block | Kind::Fifo | Kind::Socket, _) => Ok(()),
        }
    }

    /// The entries of one directory: true hashes, ascending, each name once.
    fn check_order(&self, entries: &[Dirent]) -> Result<(), IndexError> {
        let mut last: Option<(u64, Name<'_>)> = None;
        for entry in entries {
            let name = self.name(entry)?;
            let key = (entry.hash.get(), name);
            if key.0 != NameHash::of(name).0 || last.is_some_and(|l| l >= key) {
                return Err(damaged("names out of order"));
            }
            last = Some(key);
        }
        Ok(())
    }

    /// Every record has as many names as it says, a directory one, in a directory with a lower number.
    fn check_entries(&self) -> Result<(), IndexError> {
        let records = self.records();
        let mut names = vec![0u32; records.len()];
        for (number, record) in records.iter().enumerate() {
            if Self::kind(record)? != Kind::Dir {
                continue;
            }
            for entry in self.entries_of(record)? {
                let target = entry.record.get();
                if target == WHITEOUT {
                    continue;
                }
                let is_dir = Self::kind(self.record(target)?)? == Kind::Dir;
                if is_dir && target as usize <= number {
                    return Err(damaged(format!("directory {target} lies in directory {number}")));
                }
                if let Some(count) = names.get_mut(target as usize) {
                    *count += 1;
                }
            }
        }
        if let Some(root) = names.first_mut() {
            *root += 1;
        }
        for (number, (record, count)) in records.iter().zip(&names).enumerate() {
            let is_dir = Self::kind(record)? == Kind::Dir;
            if *count != record.nlink.get() || *count == 0 || (is_dir && *count != 1) {
                return Err(damaged(format!("record {number} has {count} names, not {}", record.nlink.get())));
            }
        }
        Ok(())
    }
}

fn check_header(bytes: &[u8]) -> Result<Header, IndexError> {
    let (header, _) = Header::read_from_prefix(bytes).map_err(|_| damaged("it is too short"))?;
    if header.magic != MAGIC || header.version.get() != VERSION {
        return Err(IndexError::Version);
    }
    let mut unsigned = header;
    unsigned.header_crc = 0.into();
    if crc32fast::hash(zerocopy::IntoBytes::as_bytes(&unsigned)) != header.header_crc.get() {
        return Err(damaged("wrong checksum of the header"));
    }
    Ok(header)
}

fn stats_of(header: &Header) -> Stats {
    Stats {
        tar_size: header.tar_size.get(),
        unpacked: header.unpacked.get(),
        files: header.files.get(),
        whiteouts: header.whiteouts.get(),
    }
}

fn slot(entry: &Dirent) -> Slot {
    match entry.record.get() {
        WHITEOUT => Slot::Whiteout,
        record => Slot::Record(record),
    }
}

fn bounds(section: &Section) -> Option<std::ops::Range<usize>> {
    let start = usize::try_from(section.offset.get()).ok()?;
    let len = usize::try_from(section.len.get()).ok()?;
    Some(start..start.checked_add(len)?)
}

/// The lines of a table; its length was checked, so the cast is of all of it.
fn table<T: FromBytes + zerocopy::Immutable + zerocopy::KnownLayout + zerocopy::Unaligned>(bytes: &[u8]) -> &[T] {
    <[T]>::ref_from_bytes(bytes).unwrap_or_default()
}

/// Splits the first attribute off a block: name, value, rest.
fn split_xattr(block: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (name_len, rest) = block.split_first_chunk::<2>()?;
    let (value_len, rest) = rest.split_first_chunk::<4>()?;
    let (name, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*name_len)))?;
    let (value, rest) = rest.split_at_checked(usize::try_from(u32::from_le_bytes(*value_len)).ok()?)?;
    (!name.is_empty() && !name.contains(&0)).then_some((name, value, rest))
}
