// SPDX-License-Identifier: MIT OR Apache-2.0
//! Copy-up: an entry of a layer becomes an object of the upper, staged whole with content, owner, mode, attributes,
//! times and the number it was born with, and made durable before it is published.

use std::os::fd::AsFd;

use super::Upper;
use super::ownership::Stat;
use super::stage::Staged;
use crate::layer::{Body, Entry, Layer};
use crate::model::{Attr, FsError, Kind};
use crate::sys::node::SetTime;
use crate::sys::xattr::SetMode;
use crate::sys::{Place, data};

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
}

/// How much of a regular file to copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// All of it.
    Whole,
    /// Nothing: it is about to be truncated.
    Nothing,
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
        if stat.kind == Kind::File && extent == Extent::Whole {
            let file = staged.open()?;
            match source.layer.open(source.entry)? {
                Body::File(body) => data::copy_file(body.as_fd(), file.as_fd())?,
                Body::Bytes(bytes) => data::write_all_at(&*file, &bytes, 0)?,
            }
        }
        // chown clears capabilities, so attributes come after it, and times last.
        self.hold_stat(&place, &stat)?;
        self.copy_xattrs(source, &place)?;
        self.set_birth_number(&place, source.number)?;
        place.utimens(SetTime::To(source.attr.atime), SetTime::To(source.attr.mtime))?;
        if stat.kind == Kind::File && !self.is_volatile {
            rustix::fs::fsync(&*staged.open()?)?;
        }
        Ok(staged)
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

fn guards_access(name: &[u8]) -> bool {
    name.starts_with(b"system.posix_acl") || name == b"security.capability"
}
