// SPDX-License-Identifier: MIT OR Apache-2.0
//! Copies what an image holds into a volume (`filling.rs` puts it in place): modes, owners, times, extended attributes
//! and hard links.
//!
//! Copied from one [`Fs`] to another, so that every ownership form is written as a mount would write it.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use crate::fs::create::NewNode;
use crate::fs::{Fs, FsSpec, OpenFlags, SetAttr};
use crate::layer::Layer;
use crate::model::ids::{Caller, HandleId, IdMap, NodeId};
use crate::model::{Attr, Cookie, FsError, Kind, NameBuf};
use crate::store::Store;
use crate::store::container::ContainerRecord;
use crate::store::volume::VolumeRecord;
use crate::sys::node::SetTime;
use crate::sys::proc;
use crate::sys::xattr::SetMode;
use crate::tree::{Base, BranchSpec};
use crate::upper::UpperSpec;

use super::assemble::{self, OpenAs, open_path};
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
    let mut copy =
        Copy { image, target: &target, owners: Owners::of(volume), links: HashMap::new(), buffer: vec![0; 1 << 20] };
    copy.tree(source)
}

struct Copy<'a> {
    image: &'a Fs,
    target: &'a Fs,
    owners: Owners,
    /// The copy of each file with several names, by its inode number.
    links: HashMap<u64, NodeId>,
    buffer: Vec<u8>,
}

/// A directory on the way: its own attributes are set after its content, which changes its times.
struct Level {
    from: NodeId,
    to: NodeId,
    attr: Attr,
    /// What is still to be copied, and the path for messages.
    rest: Vec<NameBuf>,
    path: String,
}

impl Copy<'_> {
    fn tree(&mut self, source: NodeId) -> Result<()> {
        let attr = self.image.getattr(source).or_fail(|| "cannot read the image")?.0;
        let mut levels = vec![self.level(source, NodeId::ROOT, attr, String::new())?];
        while let Some(level) = levels.last_mut() {
            let Some(name) = level.rest.pop() else {
                let Some(level) = levels.pop() else { break };
                finish(self.image, level.from, self.target, level.to, &level.attr, self.owners)
                    .or_fail(|| format!("cannot copy {}/", level.path))?;
                continue;
            };
            let (from, to) = (level.from, level.to);
            let path = format!("{}/{}", level.path, name.as_name());
            let entered = self.entry(from, to, &name).or_fail(|| format!("cannot copy {path}"))?;
            if let Some((from, to, attr)) = entered {
                let level = self.level(from, to, attr, path)?;
                levels.push(level);
            }
        }
        Ok(())
    }

    fn level(&self, from: NodeId, to: NodeId, attr: Attr, path: String) -> Result<Level> {
        let mut rest = Vec::new();
        self.image
            .read_dir(from, Cookie::START, &mut |line| {
                rest.push(line.name);
                ControlFlow::Continue(())
            })
            .or_fail(|| format!("cannot list {path}/"))?;
        Ok(Level { from, to, attr, rest, path })
    }

    /// Copies one name; a directory is only made, and returned to be entered.
    ///
    /// Look-ups are never given back: both filesystems end with this copy, and numbers must stay theirs until then.
    fn entry(&mut self, from: NodeId, to: NodeId, name: &NameBuf) -> Result<Option<(NodeId, NodeId, Attr)>, FsError> {
        let source = self.image.lookup(from, name.as_name())?;
        let attr = source.attr;
        let is_linked = attr.kind != Kind::Dir && attr.nlink > 1;
        if is_linked && let Some(first) = self.links.get(&attr.ino) {
            self.target.link(*first, to, name.as_name())?;
            return Ok(None);
        }
        // Made by its owner, as it were: what the host cannot hold is made in the right form at once.
        let (uid, gid) = match self.owners {
            Owners::Exact => (attr.uid, attr.gid),
            Owners::AsPossible => (proc::euid(), proc::egid()),
        };
        let caller = Caller { uid, gid, pid: 0 };
        let made = if attr.kind == Kind::File {
            let new = NewNode { kind: Kind::File, perm: 0o600, umask: 0, rdev: 0, target: None };
            let (entry, opened) = self.target.create(caller, to, name.as_name(), &new)?;
            let copied = self.content(source.id, opened.handle);
            self.target.release(opened.handle);
            copied?;
            entry
        } else {
            let link = (attr.kind == Kind::Symlink).then(|| self.image.read_link(source.id)).transpose()?;
            let perm = if attr.kind == Kind::Dir { 0o700 } else { attr.perm };
            let new = NewNode { kind: attr.kind, perm, umask: 0, rdev: attr.rdev, target: link.as_deref() };
            self.target.make(caller, to, name.as_name(), &new)?
        };
        if is_linked {
            self.links.insert(attr.ino, made.id);
        }
        if attr.kind == Kind::Dir {
            return Ok(Some((source.id, made.id, attr)));
        }
        finish(self.image, source.id, self.target, made.id, &attr, self.owners)?;
        Ok(None)
    }

    fn content(&mut self, from: NodeId, to: HandleId) -> Result<(), FsError> {
        let opened = self.image.open(from, OpenFlags::default())?;
        let mut offset = 0;
        let result = loop {
            let read = match self.image.read(opened.handle, offset, &mut self.buffer) {
                Ok(0) => break Ok(()),
                Ok(read) => read,
                Err(error) => break Err(error),
            };
            let mut rest = self.buffer.get(..read).unwrap_or_default();
            while !rest.is_empty() {
                let written = self.target.write(to, offset, rest)?;
                offset += written as u64;
                rest = rest.get(written..).unwrap_or_default();
            }
        };
        self.image.release(opened.handle);
        result
    }
}

/// Whether a copy must have its owner.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Owners {
    /// It must.
    Exact,
    /// A directory of the host that an ordinary user brought in holds what is his.
    AsPossible,
}

impl Owners {
    /// What the copy in this volume must have.
    pub(super) fn of(volume: &VolumeRecord) -> Self {
        if volume.device().is_some() && proc::euid() != 0 { Owners::AsPossible } else { Owners::Exact }
    }
}

/// Gives a copy its owner, mode, extended attributes and times, in this order: each would change what came before.
pub(super) fn finish(
    image: &Fs,
    from: NodeId,
    target: &Fs,
    to: NodeId,
    attr: &Attr,
    owners: Owners,
) -> Result<(), FsError> {
    let perm = (attr.kind != Kind::Symlink).then_some(attr.perm);
    let stat = SetAttr { perm, uid: Some(attr.uid), gid: Some(attr.gid), ..SetAttr::default() };
    match target.setattr(to, None, &stat) {
        Err(FsError::Perm | FsError::Overflow) if owners == Owners::AsPossible => {
            target.setattr(to, None, &SetAttr { uid: None, gid: None, ..stat })?;
        }
        other => drop(other?),
    }
    // Nobody takes set-id bits from a copy.
    let root = Caller { uid: 0, gid: 0, pid: 0 };
    for name in image.listxattr(from)? {
        let value = image.getxattr(from, &name)?;
        match target.setxattr(root, to, &name, &value, SetMode::Any) {
            // The host cannot hold it (trusted and security attributes without privilege): as `cp -a` does.
            Err(FsError::Perm | FsError::Unsupported) => {
                log::warn!("the attribute {} could not be copied", String::from_utf8_lossy(&name));
            }
            other => other?,
        }
    }
    let times = SetAttr { atime: SetTime::To(attr.atime), mtime: SetTime::To(attr.mtime), ..SetAttr::default() };
    target.setattr(to, None, &times)?;
    Ok(())
}
