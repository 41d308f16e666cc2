// SPDX-License-Identifier: MIT OR Apache-2.0
//! A layer of an image: its metadata from an index, its contents from the index and the object store.

use std::fs::File;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::index::format::Record;
use super::index::read::{Content, Slot};
use super::index::{Index, IndexError, Stats};
use super::whiteout::is_mark;
use super::{Birth, Body, Child, Entry, Found, Layer, Listed, ListedKind};
use crate::model::{Attr, Cookie, Digest, FsError, Kind, Name, Time};

/// Contents by digest.
pub trait Objects: Send + Sync + std::fmt::Debug {
    /// Opens an object for reading. `NotFound` when it is not there.
    fn open(&self, digest: &Digest) -> Result<OwnedFd, FsError>;
}

/// A layer of an image. Inode numbers are record numbers; all names of a hard-link group share one record.
///
/// The format knows no access and change times: both are shown as the modification time. Directories report one link,
/// which means "unknown".
#[derive(Debug)]
pub struct ImageLayer {
    index: Index,
    label: String,
    objects: Arc<dyn Objects>,
}

impl ImageLayer {
    /// Validates the index in `file`; `label` names the layer in messages.
    pub fn open(file: &File, label: String, objects: Arc<dyn Objects>) -> Result<Self, IndexError> {
        Ok(ImageLayer { index: Index::open(file)?, label, objects })
    }

    /// The digest of the layer's uncompressed tar.
    pub fn diff_id(&self) -> Digest {
        self.index.diff_id()
    }

    /// Sums over the layer.
    pub fn stats(&self) -> Stats {
        self.index.stats()
    }

    /// The object of a file, which must have the file's size: half an object must not read as half a file.
    fn object(&self, digest: &Digest, size: u64) -> Result<OwnedFd, FsError> {
        let damaged = |what: String| {
            log::error!("layer {}: {what}", self.label);
            FsError::Corrupt { layer: self.label.clone(), what }
        };
        let object = match self.objects.open(digest) {
            Err(FsError::NotFound) => return Err(damaged(format!("the object {digest} is missing"))),
            other => other?,
        };
        let found = rustix::fs::fstat(&object)?.st_size;
        if u64::try_from(found).ok() != Some(size) {
            return Err(damaged(format!("the object {digest} has {found} bytes instead of {size}")));
        }
        Ok(object)
    }

    /// The index itself.
    pub fn index(&self) -> &Index {
        &self.index
    }

    fn corrupt(&self, error: &IndexError) -> FsError {
        log::error!("layer {}: {error}", self.label);
        FsError::Corrupt { layer: self.label.clone(), what: error.to_string() }
    }

    fn read<T>(&self, result: Result<T, IndexError>) -> Result<T, FsError> {
        result.map_err(|e| self.corrupt(&e))
    }

    fn record(&self, entry: &Entry) -> Result<&Record, FsError> {
        match entry {
            Entry::Record(number) => self.read(self.index.record(*number)),
            Entry::HostDir(_) | Entry::HostFile(..) => Err(FsError::Invalid),
        }
    }

    fn dir(&self, entry: &Entry) -> Result<&Record, FsError> {
        let record = self.record(entry)?;
        if self.read(Index::kind(record))? == Kind::Dir { Ok(record) } else { Err(FsError::NotDir) }
    }

    fn attr_of(&self, number: u32, record: &Record) -> Result<Attr, FsError> {
        let kind = self.read(Index::kind(record))?;
        let time = Time { secs: record.mtime_secs.get(), nanos: record.mtime_nanos.get() };
        let size = match kind {
            Kind::File | Kind::Symlink => record.size.get(),
            Kind::Dir => 4096,
            Kind::Fifo | Kind::Char | Kind::Block | Kind::Socket => 0,
        };
        Ok(Attr {
            ino: u64::from(number),
            kind,
            perm: u32::from(record.mode.get()) & 0o7777,
            nlink: record.nlink.get(),
            uid: record.uid.get(),
            gid: record.gid.get(),
            rdev: if kind.is_device() { record.data.get() } else { 0 },
            size,
            blocks: if kind == Kind::File || kind == Kind::Dir { size.div_ceil(512) } else { 0 },
            blksize: 4096,
            atime: time,
            mtime: time,
            ctime: time,
        })
    }

    fn found(&self, number: u32) -> Result<Found, FsError> {
        let record = self.read(self.index.record(number))?;
        Ok(Found {
            entry: Entry::Record(number),
            birth: Birth { dev: 0, ino: u64::from(number) },
            attr: self.attr_of(number, record)?,
        })
    }
}

impl Layer for ImageLayer {
    fn label(&self) -> String {
        self.label.clone()
    }

    fn root(&self) -> Result<Found, FsError> {
        self.found(0)
    }

    fn child(&self, dir: &Entry, name: Name<'_>) -> Result<Child, FsError> {
        match self.read(self.index.find(self.dir(dir)?, name))? {
            None => Ok(Child::Absent),
            Some(Slot::Whiteout) => Ok(Child::Whiteout),
            Some(Slot::Record(number)) => self.found(number).map(Child::Found),
        }
    }

    fn is_opaque(&self, dir: &Entry) -> Result<bool, FsError> {
        self.dir(dir).map(Index::is_opaque)
    }

    fn is_implicit(&self, dir: &Entry) -> Result<bool, FsError> {
        self.dir(dir).map(Index::is_implicit)
    }

    fn list(
        &self,
        dir: &Entry,
        after: Cookie,
        sink: &mut dyn FnMut(Listed<'_>) -> ControlFlow<()>,
    ) -> Result<(), FsError> {
        for line in self.read(self.index.list(self.dir(dir)?, after))? {
            let (name, cookie, slot) = self.read(line)?;
            let what = match slot {
                Slot::Whiteout => ListedKind::Whiteout,
                Slot::Record(number) => ListedKind::Entry(self.read(self.index.record(number).and_then(Index::kind))?),
            };
            if sink(Listed { name, cookie, what }).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn attr(&self, entry: &Entry) -> Result<Attr, FsError> {
        let Entry::Record(number) = entry else { return Err(FsError::Invalid) };
        self.attr_of(*number, self.record(entry)?)
    }

    fn open(&self, entry: &Entry) -> Result<Body, FsError> {
        let record = self.record(entry)?;
        if self.read(Index::kind(record))? != Kind::File {
            return Err(FsError::Invalid);
        }
        match self.read(self.index.content(record))? {
            Content::Inline(bytes) => Ok(Body::Bytes(bytes.into())),
            Content::Object(digest) => self.object(&digest, record.size.get()).map(Body::File),
        }
    }

    fn read_link(&self, entry: &Entry) -> Result<Vec<u8>, FsError> {
        let record = self.record(entry)?;
        if self.read(Index::kind(record))? != Kind::Symlink {
            return Err(FsError::Invalid);
        }
        self.read(self.index.target(record)).map(<[u8]>::to_vec)
    }

    fn xattr(&self, entry: &Entry, name: &[u8]) -> Result<Option<Vec<u8>>, FsError> {
        let xattrs = self.read(self.index.xattrs(self.record(entry)?))?;
        let found = xattrs.into_iter().find(|(known, _)| *known == name && !is_mark(known));
        Ok(found.map(|(_, value)| value.to_vec()))
    }

    fn xattr_names(&self, entry: &Entry) -> Result<Vec<Vec<u8>>, FsError> {
        let xattrs = self.read(self.index.xattrs(self.record(entry)?))?;
        Ok(xattrs.into_iter().map(|(name, _)| name.to_vec()).filter(|name| !is_mark(name)).collect())
    }
}
