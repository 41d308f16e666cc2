// SPDX-License-Identifier: MIT OR Apache-2.0
//! Floor 3: read-only layers.
//!
//! A layer is a small contract over entries, without path strings: an entry is a record number in an index layer and
//! a (directory, name) in a directory layer. Layers are shared by threads and keep no look-up counts. **Whiteouts end
//! here**: every convention is decoded in `whiteout.rs`, above this floor there are only [`Child::Whiteout`] and
//! [`Layer::is_opaque`]. One suite in `layer/contract.rs` tests all kinds of layers.

use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::model::{Attr, Cookie, FsError, Kind, Name};
use crate::sys::Dir;

pub mod dir;
pub mod image;
pub mod index;
pub mod mem;
pub mod origin;
pub mod whiteout;

#[cfg(test)]
pub(crate) mod contract;

/// An object of a layer. Cheap to clone; valid as long as its layer.
#[derive(Clone, Debug)]
pub enum Entry {
    /// A record of an index layer.
    Record(u32),
    /// A directory of the host.
    HostDir(Arc<Dir>),
    /// Anything else of the host: its directory and its name there.
    HostFile(Arc<Dir>, Arc<[u8]>),
}

/// Where an entry was born, the base of inode numbers: stable over remounts for one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Birth {
    /// Device of a host file; 0 in an index layer.
    pub dev: u64,
    /// Inode number on that device, or the record number in an index layer (all names of a hard-link group share it).
    pub ino: u64,
}

/// An entry together with what its look-up learnt anyway.
#[derive(Clone, Debug)]
pub struct Found {
    /// The entry.
    pub entry: Entry,
    /// Where it was born.
    pub birth: Birth,
    /// Its attributes; `ino` is not yet the number shown to users.
    pub attr: Attr,
}

/// What a layer holds at a name.
#[derive(Clone, Debug)]
pub enum Child {
    /// Nothing: layers below decide.
    Absent,
    /// A whiteout: nothing here, and nothing below counts.
    Whiteout,
    /// An entry.
    Found(Found),
}

/// One line of a listing.
#[derive(Clone, Copy, Debug)]
pub struct Listed<'a> {
    /// The name.
    pub name: Name<'a>,
    /// Its position: the listing continues after it.
    pub cookie: Cookie,
    /// What stands there.
    pub what: ListedKind,
}

/// What stands at a listed name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListedKind {
    /// A whiteout.
    Whiteout,
    /// An entry of this kind.
    Entry(Kind),
}

/// The content of a regular file.
#[derive(Debug)]
pub enum Body {
    /// A descriptor, opened read-only.
    File(OwnedFd),
    /// Bytes in memory (inline bodies of an index, tests).
    Bytes(Arc<[u8]>),
}

/// A file that holds metadata only (`overlay.metacopy`, overlayfs.rst "Metadata only copy up").
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metacopy {
    /// Where deeper layers hold the content, if not at the file's own path.
    pub redirect: Option<whiteout::Redirect>,
}

/// A read-only layer.
///
/// Errors of all methods: what the host answered (`Access` for a directory that may not be read, `Host` for I/O
/// errors), `Corrupt` for damaged indexes, `Stale` when a host directory was replaced under us. Never a shorter answer
/// in place of an error.
pub trait Layer: Send + Sync + std::fmt::Debug {
    /// Digest or path, for messages.
    fn label(&self) -> String;

    /// The root directory.
    fn root(&self) -> Result<Found, FsError>;

    /// What the layer holds at `name` in the directory `dir`. `NotDir` if `dir` is no directory.
    fn child(&self, dir: &Entry, name: Name<'_>) -> Result<Child, FsError>;

    /// Does `dir` hide everything below it in deeper layers?
    fn is_opaque(&self, dir: &Entry) -> Result<bool, FsError>;

    /// All marks of `dir`: opaque, and where deeper layers hold it.
    fn dir_marks(&self, dir: &Entry) -> Result<whiteout::DirMarks, FsError> {
        Ok(whiteout::DirMarks { is_opaque: self.is_opaque(dir)?, ..whiteout::DirMarks::default() })
    }

    /// Was the directory only made because something lies in it (a tar may lack members for parents)? Then the attributes of
    /// the same directory in deeper layers count, not these.
    fn is_implicit(&self, _dir: &Entry) -> Result<bool, FsError> {
        Ok(false)
    }

    /// Does the file `entry` hold metadata only, its content lying in a deeper layer? Then where: at its own path (`None`
    /// inside), or elsewhere.
    fn metacopy(&self, _entry: &Entry) -> Result<Option<Metacopy>, FsError> {
        Ok(None)
    }

    /// The file's lasting name on the host, as kernel overlayfs writes it. `None` where the layer has no such names.
    fn origin(&self, _entry: &Entry) -> Result<Option<origin::Origin>, FsError> {
        Ok(None)
    }

    /// The device and the identity of the filesystem that such names are of. `None` where there are none.
    fn filesystem(&self) -> Option<(u64, origin::Uuid)> {
        None
    }

    /// Passes the names of `dir` after `after` to `sink`, whiteouts included, in the order of (name hash, name), each
    /// name once, until `sink` breaks. `.` and `..` are not passed.
    fn list(
        &self,
        dir: &Entry,
        after: Cookie,
        sink: &mut dyn FnMut(Listed<'_>) -> ControlFlow<()>,
    ) -> Result<(), FsError>;

    /// The attributes of `entry`.
    fn attr(&self, entry: &Entry) -> Result<Attr, FsError>;

    /// Opens the content of a regular file for reading. `Invalid` for other kinds.
    fn open(&self, entry: &Entry) -> Result<Body, FsError>;

    /// The target of a symlink, at most 4095 bytes. `Invalid` for other kinds.
    fn read_link(&self, entry: &Entry) -> Result<Vec<u8>, FsError>;

    /// The value of one extended attribute; `None` when absent. Marks of layer formats are not shown.
    fn xattr(&self, entry: &Entry, name: &[u8]) -> Result<Option<Vec<u8>>, FsError>;

    /// The names of the extended attributes, marks of layer formats left out.
    fn xattr_names(&self, entry: &Entry) -> Result<Vec<Vec<u8>>, FsError>;
}
