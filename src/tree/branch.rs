// SPDX-License-Identifier: MIT OR Apache-2.0
//! A branch: one thing that is mounted: an upper over lowers, only lowers, or only an upper.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::ids::Key;
use super::node::Lower;
use crate::layer::{Birth, Found, Layer};
use crate::model::{Attr, FsError, Kind};
use crate::sys::node::attr_of;
use crate::sys::{FileId, Place};
use crate::upper::links::{Group, Record};
use crate::upper::{Upper, UpperSpec};

/// What to mount.
#[derive(Debug)]
pub struct BranchSpec {
    /// Name for messages and inspection: a container, volume or host path.
    pub label: String,
    /// What it is made of.
    pub base: Base,
    /// Refuse writes.
    pub is_read_only: bool,
    /// Others may change it while it is mounted (volumes, binds).
    pub is_shared: bool,
}

/// What a branch is made of.
#[derive(Debug)]
pub enum Base {
    /// Directories: an upper, layers (top first), or both.
    Merge {
        /// The writable layer.
        upper: Option<UpperSpec>,
        /// Read-only layers, top first.
        lowers: Vec<Arc<dyn Layer>>,
    },
    /// One file of the host (an `O_PATH` descriptor).
    HostFile(OwnedFd),
}

/// A branch of the tree.
#[derive(Debug)]
pub struct Branch {
    number: u32,
    label: String,
    upper: Option<Upper>,
    host_file: Option<Arc<OwnedFd>>,
    lowers: Vec<Arc<dyn Layer>>,
    /// Device of the root of the upper (0) and of each layer by its number.
    root_devs: Vec<u64>,
    is_read_only: AtomicBool,
    is_shared: bool,
}

/// Can files of all layers be told apart by what lasting names hold: the identity of a filesystem and a file of it? Not
/// where layers lie on two copies of one filesystem, or on two that have no identity.
fn have_own_identities(layers: &[Arc<dyn Layer>]) -> bool {
    let filesystems: Vec<_> = layers.iter().filter_map(|layer| layer.filesystem()).collect();
    filesystems.iter().all(|(dev, uuid)| filesystems.iter().all(|(other, same)| dev == other || uuid != same))
}

impl Branch {
    pub(super) fn open(number: u32, spec: BranchSpec) -> Result<Self, FsError> {
        let (upper, lowers, host_file) = match spec.base {
            Base::Merge { upper, lowers } => {
                let upper = upper.map(|upper| Upper::open(upper, spec.label.clone())).transpose()?;
                (upper, lowers, None)
            }
            Base::HostFile(fd) => (Some(Upper::of_one_file(spec.label.clone())?), Vec::new(), Some(Arc::new(fd))),
        };
        if upper.is_none() && lowers.is_empty() {
            return Err(FsError::Invalid);
        }
        if let (Some(upper), Some(top)) = (&upper, lowers.first())
            && upper.uses_index()
        {
            if have_own_identities(&lowers) {
                upper.set_top_layer(top.origin(&top.root()?.entry)?);
            } else {
                upper.refuse_index();
            }
        }
        let upper_dev = match (&host_file, &upper) {
            (Some(fd), _) => rustix::fs::fstat(&**fd)?.st_dev,
            (None, Some(upper)) => upper.root().id().dev,
            (None, None) => 0,
        };
        let mut root_devs = vec![upper_dev];
        for layer in lowers.iter().rev() {
            root_devs.push(layer.root()?.birth.dev);
        }
        Ok(Branch {
            number,
            label: spec.label,
            upper,
            host_file,
            lowers,
            root_devs,
            is_read_only: AtomicBool::new(false),
            is_shared: spec.is_shared,
        })
    }

    /// Number of the branch; 0 is the root's.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Name for messages.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The upper, if there is one.
    pub fn upper(&self) -> Option<&Upper> {
        self.upper.as_ref()
    }

    /// The layers, top first.
    pub fn lowers(&self) -> &[Arc<dyn Layer>] {
        &self.lowers
    }

    /// The file of a one-file bind.
    pub fn host_file(&self) -> Option<&Arc<OwnedFd>> {
        self.host_file.as_ref()
    }

    /// May others change it?
    pub fn is_shared(&self) -> bool {
        self.is_shared
    }

    /// Are writes refused?
    pub fn is_read_only(&self) -> bool {
        self.is_read_only.load(Ordering::Relaxed) || self.upper.is_none()
    }

    /// Refuses writes from now on: mount points are made in a branch before it becomes read-only.
    pub fn seal(&self) {
        self.is_read_only.store(true, Ordering::Relaxed);
    }

    /// The upper for writing.
    pub fn writable_upper(&self) -> Result<&Upper, FsError> {
        match &self.upper {
            Some(upper) if !self.is_read_only() => Ok(upper),
            _ => Err(FsError::ReadOnly),
        }
    }

    /// The layer of a lower.
    pub fn layer(&self, lower: &Lower) -> Result<&Arc<dyn Layer>, FsError> {
        self.lowers.get(lower.layer).ok_or(FsError::Stale)
    }

    /// Number of the layer at `index` (0 is the top): 1 at the bottom.
    pub fn layer_number(&self, index: usize) -> u32 {
        self.lowers.len().saturating_sub(index) as u32
    }

    fn relative(&self, source: u32, birth: Birth) -> Birth {
        let root_dev = self.root_devs.get(source as usize).copied().unwrap_or(0);
        Birth { dev: if birth.dev == root_dev { 0 } else { birth.dev }, ino: birth.ino }
    }

    /// The key of something found in the upper.
    pub fn upper_key(&self, id: FileId) -> Key {
        let birth = self.relative(0, Birth { dev: id.dev, ino: id.ino });
        Key { branch: self.number, source: 0, birth }
    }

    /// The key of something found in the layer at `index`.
    pub fn layer_key(&self, index: usize, birth: Birth) -> Key {
        let source = self.layer_number(index);
        Key { branch: self.number, source, birth: self.relative(source, birth) }
    }

    /// The hard-link group of something found in the layer at `index`; `None` where it has one name.
    pub fn group(&self, index: usize, found: &Found) -> Option<Group> {
        let has_work = self.upper.as_ref().is_some_and(|upper| !upper.is_plain());
        (has_work && found.attr.kind != Kind::Dir && found.attr.nlink > 1).then(|| {
            let Key { source, birth, .. } = self.layer_key(index, found.birth);
            Group { layer: source, birth }
        })
    }

    /// Where the hard-link group of a lower is recorded; `None` for a file with one name.
    pub fn record(&self, lower: &Lower) -> Result<Option<Record>, FsError> {
        let (Some(group), Some(upper)) = (lower.group, &self.upper) else { return Ok(None) };
        let origin = if upper.uses_index() { self.layer(lower)?.origin(&lower.entry)? } else { None };
        Ok(Some(Record::of(group, origin)?))
    }

    /// The copy of the hard-link group of a lower, an entry of the kind `kind`, if it was copied up.
    pub fn find_copy(&self, lower: &Lower, kind: Kind) -> Result<Option<Place>, FsError> {
        match &self.upper {
            Some(upper) if lower.group.is_some() && upper.has_records() => match self.record(lower)? {
                Some(record) => upper.find_copy(&record, kind),
                None => Ok(None),
            },
            _ => Ok(None),
        }
    }

    /// Attributes of an object of the upper, with the links to show.
    pub fn attr_in_upper(&self, place: &Place) -> Result<Attr, FsError> {
        let stat = place.stat()?;
        let Some(upper) = &self.upper else { return attr_of(&stat) };
        let mut attr = upper.reader().attr_at(place, &stat)?;
        if attr.kind != Kind::Dir {
            attr.nlink = upper.count_links(place, attr.nlink)?;
        }
        Ok(attr)
    }

    /// Attributes of an entry of a layer.
    pub fn attr_in_layer(&self, lower: &Lower) -> Result<Attr, FsError> {
        self.layer(lower)?.attr(&lower.entry)
    }
}
