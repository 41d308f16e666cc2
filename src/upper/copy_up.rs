// SPDX-License-Identifier: MIT OR Apache-2.0
//! Copy-up: an entry of a layer becomes an object of the upper, staged whole with content, owner, mode, attributes,
//! times and the number it was born with, and made durable before it is published.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::OFlags;

use super::Upper;
use super::ownership::Stat;
use super::stage::Staged;
use crate::layer::{Body, Entry, Layer};
use crate::model::{Attr, FsError, Kind, NameBuf};
use crate::sys::data::{self, Pace};
use crate::sys::node::SetTime;
use crate::sys::xattr::SetMode;
use crate::sys::{Place, xattr};

/// What to copy.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// The layer.
    pub layer: &'a dyn Layer,
    /// The entry in it.
    pub entry: &'a Entry,
    /// The entry's attributes.
    pub attr: &'a Attr,
    /// The inode number shown to users.
    pub number: u64,
    /// The content of a regular file.
    pub content: Option<(&'a dyn Layer, &'a Entry)>,
    /// The path at which the layers hold it.
    pub path: &'a [NameBuf],
}

/// How much of a regular file to copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// All of it.
    Whole,
    /// Nothing: it is about to be truncated.
    Nothing,
    /// Nothing for now, but a mark that says where the content is; small files are copied whole.
    Metadata,
    /// Nothing for now, but a mark, whatever the size.
    Mark,
}

/// What a program may do beyond its user.
const CAPABILITY: &[u8] = b"security.capability";

/// Files from this size on, in bytes, are copied up without their content where that is possible.
pub const METACOPY_MIN: u64 = 64 * 1024;

impl Extent {
    /// What is really copied of a file of these attributes: never `Metadata`.
    pub fn of(self, attr: &Attr) -> Self {
        match self {
            Extent::Metadata | Extent::Mark if attr.kind != Kind::File => Extent::Whole,
            Extent::Metadata if attr.size < METACOPY_MIN => Extent::Whole,
            Extent::Metadata => Extent::Mark,
            other => other,
        }
    }
}

impl Upper {
    /// Stages a copy of `source`. Dropping it leaves nothing behind.
    pub(crate) fn stage_copy(&self, source: Source<'_>, extent: Extent) -> Result<Staged<'_>, FsError> {
        let stat = Stat::of(source.attr);
        let target = match stat.kind {
            Kind::Symlink => Some(source.layer.read_link(source.entry)?),
            // A character device 0:0 is content in an image layer, but would be a whiteout here.
            Kind::Char if stat.rdev == 0 && self.host_kind(&stat) == Kind::Char => return Err(FsError::Perm),
            _ => None,
        };
        let staged = self.stage(&stat, target.as_deref())?;
        let place = staged.place()?;
        let extent = extent.of(source.attr);
        if stat.kind == Kind::File {
            match extent {
                Extent::Whole => copy_content(source, staged.open()?.as_ref(), self.pace())?,
                Extent::Nothing => {}
                Extent::Metadata | Extent::Mark => {
                    rustix::fs::ftruncate(&*staged.open()?, source.attr.size)?;
                    self.set_metacopy(&place, source.path)?;
                }
            }
        }
        // chown clears capabilities, so attributes come after it, and times last.
        self.hold_stat(&place, &stat)?;
        self.copy_xattrs(source, &place)?;
        self.set_birth_number(&place, source.number)?;
        let mtime = if extent == Extent::Nothing { SetTime::Now } else { SetTime::To(source.attr.mtime) };
        place.utimens(SetTime::To(source.attr.atime), mtime)?;
        if stat.kind == Kind::File {
            self.make_durable(&*staged.open()?)?;
        }
        Ok(staged)
    }

    /// Gives a file that holds metadata only its content, or makes it empty (`Extent::Nothing`); the file, open. At every
    /// moment it reads as before or as after; what an error leaves takes no space.
    pub(crate) fn complete(&self, source: Source<'_>, place: &Place, extent: Extent) -> Result<Arc<OwnedFd>, FsError> {
        let before = crate::sys::node::attr_of(&place.stat()?)?;
        let file = Arc::new(place.open(OFlags::RDWR | OFlags::NONBLOCK)?);
        let times = (SetTime::To(before.atime), SetTime::To(before.mtime));
        if extent == Extent::Nothing {
            // Only the mark stands between what is there, zeros, and what is read: it goes at the very end.
            rustix::fs::ftruncate(&*file, 0)?;
            if let Err(error) = self.clear_metacopy(place) {
                rustix::fs::ftruncate(&*file, before.size)?;
                place.utimens(times.0, times.1)?;
                return Err(error);
            }
            return Ok(file);
        }
        let copied = self.keep_capability(place, || copy_content(source, &file, self.pace())).and_then(|()| {
            place.utimens(times.0, times.1)?;
            self.make_durable(&file)?;
            self.clear_metacopy(place)
        });
        if let Err(error) = copied {
            rustix::fs::ftruncate(&*file, 0)?;
            rustix::fs::ftruncate(&*file, before.size)?;
            place.utimens(times.0, times.1)?;
            return Err(error);
        }
        Ok(file)
    }

    /// Carries out `write`. The host takes a file's capabilities when it is written to, but nobody has changed it yet.
    fn keep_capability(&self, place: &Place, write: impl FnOnce() -> Result<(), FsError>) -> Result<(), FsError> {
        let value = xattr::get(place, CAPABILITY)?;
        write()?;
        match value {
            Some(value) => xattr::set(place, CAPABILITY, &value, SetMode::Any),
            None => Ok(()),
        }
    }

    fn pace(&self) -> Pace {
        if self.is_volatile { Pace::Unsynced } else { Pace::Synced }
    }

    fn make_durable(&self, file: &OwnedFd) -> Result<(), FsError> {
        if self.is_volatile { Ok(()) } else { Ok(rustix::fs::fsync(file)?) }
    }

    fn copy_xattrs(&self, source: Source<'_>, place: &Place) -> Result<(), FsError> {
        for name in source.layer.xattr_names(source.entry)? {
            let Some(value) = source.layer.xattr(source.entry, &name)? else { continue };
            match self.set_xattr(place, &name, &value, SetMode::Any) {
                // As the kernel does: what the host cannot hold is left out, unless access depends on it.
                Err(FsError::Unsupported | FsError::Perm) if !guards_access(&name) => {
                    log::debug!("copy-up leaves out the attribute {}", name.escape_ascii());
                }
                other => other?,
            }
        }
        Ok(())
    }
}

fn copy_content(source: Source<'_>, file: &OwnedFd, pace: Pace) -> Result<(), FsError> {
    let (layer, entry) = source.content.ok_or(FsError::Stale)?;
    match layer.open(entry)? {
        Body::File(body) => data::copy_file(body.as_fd(), file.as_fd(), pace),
        Body::Bytes(bytes) => data::write_all_at(file, &bytes, 0),
    }
}

fn guards_access(name: &[u8]) -> bool {
    name.starts_with(b"system.posix_acl") || name == CAPABILITY
}
