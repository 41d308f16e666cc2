// SPDX-License-Identifier: MIT OR Apache-2.0
//! Hard-link groups of layers over copy-up, removal and remount. All in `work/mlfs-links`:
//!
//! - `copy-GROUP`: a link to the copy of a copied-up group. A look-up that ends at another name of the group, still in
//!   its layer, finds the copy there: a write through one name is seen through all.
//! - `lost-GROUP`: a symlink whose target is the number of names that a group **not** copied up has lost.
//!
//! The shown link count of a copy is the host's plus a kept difference (`overlay.mlfs.links`): names that exist only
//! in the layer are added, the name in `mlfs-links` is not counted.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, linkat, renameat, symlinkat, unlinkat};
use rustix::io::Errno;

use super::edit::link_place;
use super::{Upper, recover};
use crate::layer::Birth;
use crate::model::{FsError, Name, NameBuf};
use crate::sys::xattr::SetMode;
use crate::sys::{Dir, Place, xattr};

/// Which group of which layer: stable over remounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Group {
    /// Number of the layer in its branch, 1 at the bottom.
    pub layer: u32,
    /// Where the group was born; `dev` is 0 for the device of the layer's root.
    pub birth: Birth,
}

impl Group {
    fn name(self, what: &str) -> Result<NameBuf, FsError> {
        let Group { layer, birth } = self;
        NameBuf::new(format!("{what}-{layer:x}-{:x}-{:x}", birth.dev, birth.ino).into_bytes())
    }
}

/// What is kept on the copy of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Links {
    /// Links shown minus links of the host.
    pub excess: i64,
    /// The group.
    pub group: Group,
}

impl Links {
    fn to_bytes(self) -> Vec<u8> {
        let Links { excess, group } = self;
        let mut bytes = excess.to_le_bytes().to_vec();
        bytes.extend(group.layer.to_le_bytes());
        bytes.extend(group.birth.dev.to_le_bytes());
        bytes.extend(group.birth.ino.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (excess, rest) = bytes.split_first_chunk::<8>()?;
        let (layer, rest) = rest.split_first_chunk::<4>()?;
        let (dev, rest) = rest.split_first_chunk::<8>()?;
        let ino = <[u8; 8]>::try_from(rest).ok()?;
        let birth = Birth { dev: u64::from_le_bytes(*dev), ino: u64::from_le_bytes(ino) };
        let group = Group { layer: u32::from_le_bytes(*layer), birth };
        Some(Links { excess: i64::from_le_bytes(*excess), group })
    }
}

impl Upper {
    /// The copy of a group, if it was copied up.
    pub fn find_group(&self, group: Group) -> Result<Option<Place>, FsError> {
        let Some(links) = self.links_dir() else { return Ok(None) };
        let name = group.name("copy")?;
        match links.stat_child(name.as_name()) {
            Ok(_) => Ok(Some(Place::at(links, name.as_name()))),
            Err(FsError::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn links_dir(&self) -> Option<&Arc<Dir>> {
        let work = self.work.as_ref()?;
        work.has_links.load(Ordering::Relaxed).then_some(&work.links)
    }

    /// What is kept on the copy at `place`; `None` for a file of no group.
    pub fn links(&self, place: &Place) -> Result<Option<Links>, FsError> {
        if self.links_dir().is_none() {
            return Ok(None);
        }
        Ok(xattr::get(place, &self.mark_name("mlfs.links")?)?.and_then(|bytes| Links::from_bytes(&bytes)))
    }

    fn set_links(&self, place: &Place, links: Links) -> Result<(), FsError> {
        xattr::set(place, &self.mark_name("mlfs.links")?, &links.to_bytes(), SetMode::Any)
    }

    /// Records the staged copy at `place` of a group with `nlink` names in its layer, none of which it has taken yet:
    /// when it takes one, [`Upper::lose_layer_name`] says so (a crash in between leaves a count too high, never one so
    /// low that the record would go too early). A copy that is not published is taken back by
    /// [`Upper::forget_group`]. The place of the record.
    pub(crate) fn record_group(&self, group: Group, place: &Place, nlink: u32) -> Result<Place, FsError> {
        let work = self.work()?;
        let lost = self.count_lost_names(group)?;
        work.has_links.store(true, Ordering::Relaxed);
        // The host counts the link here.
        let excess = i64::from(nlink) - i64::from(lost) - 1;
        self.set_links(place, Links { excess, group })?;
        let name = group.name("copy")?;
        link_place(place, &work.links, name.as_name())?;
        Ok(Place::at(&work.links, name.as_name()))
    }

    /// Drops the record of a copy.
    pub(crate) fn forget_group(&self, group: Group) -> Result<(), FsError> {
        let work = self.work()?;
        match unlinkat(&*work.links.open()?, group.name("copy")?.as_name().os(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// The links to show for the host's file at `place`, which has `host_nlink` links.
    pub fn count_links(&self, place: &Place, host_nlink: u32) -> Result<u32, FsError> {
        let excess = self.links(place)?.map_or(0, |links| links.excess);
        Ok(u32::try_from(i64::from(host_nlink) + excess).unwrap_or(0))
    }

    /// How many names a group that is not copied up has lost.
    pub fn count_lost_names(&self, group: Group) -> Result<u32, FsError> {
        let Some(links) = self.links_dir() else { return Ok(0) };
        match Place::at(links, group.name("lost")?.as_name()).read_link() {
            Ok(count) => Ok(std::str::from_utf8(&count).ok().and_then(|text| text.parse().ok()).unwrap_or(0)),
            Err(FsError::NotFound) => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// A name of `group` that exists only in its layer was removed or covered. `copy`: the group's copy, if any.
    pub(crate) fn lose_layer_name(&self, group: Group, copy: Option<&Place>) -> Result<(), FsError> {
        if let Some(place) = copy {
            return match self.links(place)? {
                Some(links) => self.set_links(place, Links { excess: links.excess - 1, ..links }),
                None => Ok(()),
            };
        }
        let work = self.work()?;
        work.has_links.store(true, Ordering::Relaxed);
        let count = self.count_lost_names(group)? + 1;
        let (aside, name) = (work.next_name()?, group.name("lost")?);
        symlinkat(count.to_string(), &*work.stage.open()?, aside.as_name().os())?;
        let renamed = renameat(&*work.stage.open()?, aside.as_name().os(), &*work.links.open()?, name.as_name().os());
        if renamed.is_err() {
            recover::remove(&work.stage, aside.as_name())?;
        }
        Ok(renamed?)
    }

    /// Drops the record of a copy of which no name is left to users.
    pub(crate) fn drop_empty_group(&self, place: &Place) -> Result<(), FsError> {
        let Some(links) = self.links(place)? else { return Ok(()) };
        let host_nlink = place.stat()?.st_nlink.try_into().unwrap_or(u32::MAX);
        if self.count_links(place, host_nlink)? == 0 { self.forget_group(links.group) } else { Ok(()) }
    }
}

/// Links the object of an open descriptor to a new name.
pub(crate) fn link_fd(fd: &OwnedFd, dir: &Arc<Dir>, name: Name<'_>) -> Result<(), FsError> {
    let source = crate::sys::node::proc_path(fd);
    Ok(linkat(rustix::fs::CWD, source, &*dir.open()?, name.os(), AtFlags::SYMLINK_FOLLOW)?)
}
