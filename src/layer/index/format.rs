// SPDX-License-Identifier: MIT OR Apache-2.0
//! The bytes of an index. All numbers are little-endian and need no alignment.
//!
//! ```text
//! header (256 bytes, in a block of 4096)
//! bodies     contents of small files, each with a checksum in its record
//! heap       symlink targets and blocks of extended attributes
//! names      names of entries
//! records    one per inode: [`Record`]; number 0 is the root directory
//! entries    one per name: [`Dirent`]; those of one directory together, sorted by (hash, name)
//! objects    digests and sizes of the bodies in the object store, sorted: [`ObjectRef`]
//! ```
//! Records are numbered breadth first: the entries of directories follow each other in the order of the directories'
//! numbers, and a directory's number is above its parent's. So a pass over the file proves that it is a tree.
//! Extended attributes of a record are one block of the heap: per attribute the length of the name (u16), of the
//! value (u32), the name, the value; sorted by name.

use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The first bytes of every index.
pub const MAGIC: [u8; 8] = *b"mlfs\0idx";
/// The version this mlfs writes and reads. An index of another version is rebuilt from its layer.
pub const VERSION: u32 = 1;
/// Where the bodies begin.
pub const BODIES_AT: u64 = 4096;
/// Files up to this size are written into the index; see `docs/decisions/0002-small-bodies.md`.
pub const INLINE_MAX: u64 = 4096;
/// The largest inline body a reader accepts, so that writers may change their mind.
pub const INLINE_READ_MAX: u64 = 1 << 20;

/// A part of the file.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Section {
    /// Where it begins.
    pub offset: U64,
    /// Its bytes.
    pub len: U64,
}

/// The head of an index.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: [u8; 8],
    /// [`VERSION`].
    pub version: U32,
    /// CRC-32 of this header, this field taken as zero.
    pub header_crc: U32,
    /// The digest of the layer's uncompressed tar.
    pub diff_id: [u8; 32],
    /// See the module.
    pub bodies: Section,
    /// See the module.
    pub heap: Section,
    /// See the module.
    pub names: Section,
    /// See the module.
    pub records: Section,
    /// See the module.
    pub entries: Section,
    /// See the module.
    pub objects: Section,
    /// CRC-32 of all sections but the bodies, in the order of the module.
    pub sections_crc: U32,
    /// Zero.
    pub reserved: U32,
    /// Bytes of the uncompressed tar.
    pub tar_size: U64,
    /// Bytes of all regular files, names of one inode counted once.
    pub unpacked: U64,
    /// Entries that are no whiteouts.
    pub files: U64,
    /// Whiteouts, and directories that are opaque.
    pub whiteouts: U64,
    /// Zero.
    pub spare: [u8; 72],
}

/// The directory hides everything below it in deeper layers.
pub const FLAG_OPAQUE: u8 = 1;
/// The tar has no member for this directory, only for things inside it.
pub const FLAG_IMPLICIT: u8 = 2;

/// Where the content of a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum BodyKind {
    /// It has none: everything but regular files.
    None = 0,
    /// In the section of bodies, at `data`; `check` is its CRC-32.
    Inline = 1,
    /// In the object store; `data` is the number in the section of objects.
    Object = 2,
    /// Kept for ranges of a compressed blob that are read in place. Version 1 never has it.
    Range = 3,
}

impl BodyKind {
    /// The kind with this number.
    pub fn from_u8(number: u8) -> Option<Self> {
        [BodyKind::None, BodyKind::Inline, BodyKind::Object, BodyKind::Range]
            .into_iter()
            .find(|kind| *kind as u8 == number)
    }
}

/// One inode.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Record {
    /// Kind and permissions, as `st_mode`.
    pub mode: U16,
    /// `FLAG_*`.
    pub flags: u8,
    /// A [`BodyKind`].
    pub body: u8,
    /// Owner.
    pub uid: U32,
    /// Group.
    pub gid: U32,
    /// Names in this layer; 1 for directories.
    pub nlink: U32,
    /// Last modification, seconds since 1970.
    pub mtime_secs: I64,
    /// Nanoseconds after that.
    pub mtime_nanos: U32,
    /// Checksum of an inline body.
    pub check: U32,
    /// Bytes of a regular file or of a symlink's target; the count of a directory's entries.
    pub size: U64,
    /// Place of the body or of the symlink's target; device number; a directory's first entry.
    pub data: U64,
    /// Place of the extended attributes in the heap.
    pub xattrs_at: U64,
    /// Their bytes; 0 when there are none.
    pub xattrs_len: U32,
    /// Zero.
    pub reserved: U32,
}

/// The number of a record that stands for a whiteout.
pub const WHITEOUT: u32 = u32::MAX;

/// One name in a directory.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Dirent {
    /// The name's hash, the major sort key.
    pub hash: U64,
    /// Place of the name in the section of names.
    pub name_at: U32,
    /// Its bytes.
    pub name_len: U16,
    /// Zero.
    pub reserved: U16,
    /// The record, or [`WHITEOUT`].
    pub record: U32,
}

/// One body in the object store.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct ObjectRef {
    /// Its sha256.
    pub digest: [u8; 32],
    /// Its size.
    pub size: U64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_part_of_the_format() {
        assert_eq!((size_of::<Header>(), size_of::<Record>()), (256, 64));
        assert_eq!((size_of::<Dirent>(), size_of::<ObjectRef>()), (20, 40));
        assert_eq!(BodyKind::from_u8(2), Some(BodyKind::Object));
        assert_eq!(BodyKind::from_u8(4), None);
    }
}
