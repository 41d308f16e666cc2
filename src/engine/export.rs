// SPDX-License-Identifier: MIT OR Apache-2.0
//! `export`: the merged tree of a container or an image as a tar, with ids as images hold them. As with Docker, what lies
//! in volumes, binds and tmpfs is not in it.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::fs::Fs;
use crate::store::Store;
use crate::store::container::OwnershipForm;

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

/// Writes a file whole or not at all: aside first. Where something stands that is no regular file (a pipe, a device), it
/// is written to as it is.
pub fn write_file(path: &Path, mode: u32, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let what = || format!("cannot write {}", path.display());
    let open = |path: &Path| File::options().write(true).create(true).truncate(true).mode(mode).open(path);
    if fs::metadata(path).is_ok_and(|meta| !meta.is_file()) {
        return write(&mut open(path).or_fail(what)?);
    }
    // A link is written through.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mut aside = path.clone().into_os_string();
    aside.push(format!(".mlfs-{}", std::process::id()));
    let aside = PathBuf::from(aside);
    let mut file = open(&aside).or_fail(what)?;
    let written = write(&mut file).and_then(|()| {
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
