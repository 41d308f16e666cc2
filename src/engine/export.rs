// SPDX-License-Identifier: MIT OR Apache-2.0
//! `export`: the merged tree of a container or an image as a tar, with ids as images hold them. As with Docker, what lies
//! in volumes, binds and tmpfs is not in it.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use crate::fs::Fs;
use crate::store::Store;
use crate::store::container::{OwnershipForm, new_id};

use super::look::{self, Part, Target, View};
use super::pack::{self, OwnersFrom, Plan};
use super::populate::open_image;
use super::state::{State, state};
use super::{OrFail, Result, inside};

/// The mode of an archive: what is in it may be for its owner alone.
pub const PRIVATE: u32 = 0o600;

/// The tree of a target and its layers, for packing.
#[derive(Debug)]
pub struct Packable {
    /// The tree with stored ids, without volumes.
    pub view: View,
    /// Its layers alone.
    pub layers: Fs,
    owners: OwnersFrom,
}

impl Packable {
    /// Opens a target.
    pub fn open(store: &Store, target: &Target) -> Result<Self> {
        let mut owners = OwnersFrom::Tree;
        if let Target::Container(record) = target {
            if record.ownership == OwnershipForm::Fixed {
                owners = OwnersFrom::Layers;
            }
            if state(store, record)? == State::Mounted {
                inside::flush(record);
            }
        }
        let view = look::open(store, target, Part::Stored)?;
        let layers = open_image(view.layers.iter().map(|info| Arc::clone(&info.layer)).collect())?;
        Ok(Packable { view, layers, owners })
    }

    /// The plan to pack all of it.
    pub fn plan(&self) -> Plan<'_> {
        Plan { layers: Some(&self.layers), owners: self.owners, ..Plan::whole(&self.view.fs) }
    }
}

/// Writes the merged tree of a target as a tar.
pub fn export(store: &Store, target: &str, out: &mut dyn Write) -> Result<()> {
    let packable = Packable::open(store, &look::find(store, target)?)?;
    let out = BufWriter::with_capacity(1 << 17, out);
    flushed(pack::pack(&packable.plan(), out)?)
}

/// Writes out what a buffer still holds.
pub fn flushed(mut out: impl Write) -> Result<()> {
    out.flush().or_fail(|| "cannot write the archive")
}

/// Writes a file whole or not at all: aside first, under a name that nobody can foresee. `mode` is that of a new file;
/// one that is there keeps its own. Where something stands that is no regular file (a pipe, a device), it is written to
/// as it is.
pub fn write_file(path: &Path, mode: u32, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let what = || format!("cannot write {}", path.display());
    let existing = fs::metadata(path).ok();
    if existing.as_ref().is_some_and(|meta| !meta.is_file()) {
        return write(&mut File::options().write(true).open(path).or_fail(what)?);
    }
    // A link is written through.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let id = new_id().or_fail(what)?;
    let aside = path.with_file_name(format!(".mlfs-{}", id.get(..16).unwrap_or_default()));
    let mut file = File::options().write(true).create_new(true).mode(mode).open(&aside).or_fail(what)?;
    let written = write(&mut file).and_then(|()| {
        if let Some(existing) = existing {
            // Only root can give it back; whoever replaces his own file has it already.
            if let Err(error) = std::os::unix::fs::fchown(&file, Some(existing.uid()), Some(existing.gid())) {
                log::debug!("{} changes its owner: {error}", path.display());
            }
            file.set_permissions(existing.permissions()).or_fail(what)?;
        }
        file.sync_all().or_fail(what)?;
        fs::rename(&aside, &path).or_fail(what)
    });
    if written.is_err()
        && let Err(error) = fs::remove_file(&aside)
    {
        log::warn!("cannot remove {}: {error}", aside.display());
    }
    written
}
