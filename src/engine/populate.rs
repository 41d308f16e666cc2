// SPDX-License-Identifier: MIT OR Apache-2.0
//! Copies what an image holds into a volume (`filling.rs` puts it in place, `copy.rs` copies).

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use crate::fs::{Fs, FsSpec};
use crate::layer::Layer;
use crate::model::ids::{IdMap, NodeId};
use crate::store::Store;
use crate::store::container::ContainerRecord;
use crate::store::volume::VolumeRecord;
use crate::tree::{Base, BranchSpec};
use crate::upper::UpperSpec;

use super::assemble::{self, OpenAs, open_path};
use super::copy::{Copy, Owners, finish};
use super::{OrFail, Result};

/// The layers (bottom first) as a filesystem.
pub(super) fn open_image(mut layers: Vec<Arc<dyn Layer>>) -> Result<Fs> {
    layers.reverse();
    let base = Base::Merge { upper: None, lowers: layers };
    let root = BranchSpec { label: "image".to_owned(), base, is_read_only: true, is_shared: false };
    let spec = FsSpec { root, mounts: Vec::new(), uids: IdMap::Identity, gids: IdMap::Identity };
    Fs::new(spec).or_fail(|| "cannot open the layers")
}

/// Gives the root of a new upper what the root of the layers has. Ids go through the maps of the mount.
pub fn copy_root(store: &Store, record: &ContainerRecord, fs: &Fs) -> Result<()> {
    let image = open_image(super::layers::open(store, record)?)?;
    let mut attr = image.getattr(NodeId::ROOT).or_fail(|| "cannot read the layers")?.0;
    attr.uid = record.uids.to_outer(attr.uid);
    attr.gid = record.gids.to_outer(attr.gid);
    finish(&image, NodeId::ROOT, fs, NodeId::ROOT, &attr, Owners::Exact).or_fail(|| "cannot set up the upper's root")
}

/// Writes a whole filesystem's dirty pages: after a crash the copy must be there or not be there.
pub(super) fn sync(path: &Path) -> Result<()> {
    let fd = open_path(path, OpenAs::Directory).or_fail(|| "cannot sync")?;
    rustix::fs::syncfs(&fd).map_err(std::io::Error::from).or_fail(|| "cannot sync")
}

/// A directory as the volume keeps its content.
pub(super) fn open_plain(dir: &Path, volume: &VolumeRecord) -> Result<Fs> {
    let fd: OwnedFd = open_path(dir, OpenAs::Directory).or_fail(|| format!("cannot open {}", dir.display()))?;
    let ownership = assemble::ownership(volume.ownership);
    let upper = UpperSpec { dir: fd, work: None, ownership, is_volatile: false, is_view: false };
    let base = Base::Merge { upper: Some(upper), lowers: Vec::new() };
    let root = BranchSpec { label: format!("volume {}", volume.name), base, is_read_only: false, is_shared: true };
    let spec = FsSpec { root, mounts: Vec::new(), uids: IdMap::Identity, gids: IdMap::Identity };
    Fs::new(spec).or_fail(|| format!("cannot open {}", dir.display()))
}

/// Copies what the directory `source` holds, and its attributes, into the empty directory `dir` of the host.
pub(super) fn copy_into(image: &Fs, source: NodeId, dir: &Path, volume: &VolumeRecord) -> Result<()> {
    let target = open_plain(dir, volume)?;
    Copy::new(image, &target, Owners::of(volume)).fill(source, NodeId::ROOT, String::new())
}
