// SPDX-License-Identifier: MIT OR Apache-2.0
//! Copies from one [`Fs`] to another, so that every ownership form is written as a mount would write it: modes, owners,
//! times, extended attributes, holes and hard links.
//!
//! What is new at its place is made aside and renamed, so that it is there whole or not at all. Directories that are on
//! both sides become one. No symlink is followed on either side.

use std::collections::HashMap;
use std::ops::ControlFlow;

use crate::fs::create::NewNode;
use crate::fs::{Fs, OpenFlags, RenameMode, SetAttr};
use crate::model::ids::{Caller, HandleId, NodeId};
use crate::model::{Attr, Cookie, FsError, Kind, Name, NameBuf};
use crate::store::container::new_id;
use crate::store::volume::VolumeRecord;
use crate::sys::node::SetTime;
use crate::sys::proc;
use crate::sys::xattr::SetMode;

use super::pack::pieces;
use super::{EngineError, OrFail, Result};

/// Whose a copy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owners {
    /// As the original's; it must.
    Exact,
    /// As the original's where the caller may give files away, else the caller's.
    AsPossible,
    /// These where the caller may give files away, else the caller's.
    Given {
        /// User.
        uid: u32,
        /// Group.
        gid: u32,
    },
}

impl Owners {
    /// What the copy in this volume must have. A directory of the host that an ordinary user brought in holds what is his.
    pub(super) fn of(volume: &VolumeRecord) -> Self {
        if volume.device().is_some() && proc::euid() != 0 { Owners::AsPossible } else { Owners::Exact }
    }

    fn ids(self, attr: &Attr) -> (u32, u32) {
        match self {
            Owners::Exact | Owners::AsPossible => (attr.uid, attr.gid),
            Owners::Given { uid, gid } => (uid, gid),
        }
    }

    /// By whom a file is made: by its owner, as it were, so that what the host cannot hold is made in the right form at once.
    fn maker(self, attr: &Attr) -> Caller {
        let (uid, gid) = match self {
            Owners::Exact => (attr.uid, attr.gid),
            Owners::AsPossible | Owners::Given { .. } => (proc::euid(), proc::egid()),
        };
        Caller { uid, gid, pid: 0 }
    }
}

/// A copy from one tree to another. Hard links are known over all its calls.
pub struct Copy<'a> {
    from: &'a Fs,
    to: &'a Fs,
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
    /// Look-ups of both directories to give back at its end.
    counted: (u64, u64),
}

impl<'a> Copy<'a> {
    /// Nothing is copied yet. Of the copy, only files with several names stay known.
    pub fn new(from: &'a Fs, to: &'a Fs, owners: Owners) -> Self {
        Copy { from, to, owners, links: HashMap::new(), buffer: vec![0; 1 << 20] }
    }

    /// Copies what the directory `source` holds, and its attributes, into the empty directory `target`.
    pub fn fill(&mut self, source: NodeId, target: NodeId, path: String) -> Result<()> {
        let attr = self.from.getattr(source).or_fail(|| "cannot read the original")?.0;
        let mut levels = vec![self.level((source, 0), (target, 0), attr, path)?];
        while let Some(level) = levels.last_mut() {
            let Some(name) = level.rest.pop() else {
                let Some(level) = levels.pop() else { break };
                self.finish(&level)?;
                continue;
            };
            let (from, to) = (level.from, level.to);
            let path = format!("{}/{}", level.path, name.as_name());
            let what = || format!("cannot copy {path}");
            let source = self.from.lookup(from, name.as_name()).or_fail(what)?;
            let made = self.make(source.id, &source.attr, to, name.as_name()).or_fail(what)?;
            if source.attr.kind == Kind::Dir {
                let level = self.level((source.id, 1), (made, 1), source.attr, path)?;
                levels.push(level);
                continue;
            }
            self.from.forget(source.id, 1);
            self.forget_made(made, &source.attr);
        }
        Ok(())
    }

    /// Puts `source` at `name` in the directory `dir`: into a directory that is there if it is one itself, else in place
    /// of whatever is there.
    pub fn put(&mut self, source: NodeId, dir: NodeId, name: Name<'_>) -> Result<()> {
        let attr = self.from.getattr(source).or_fail(|| "cannot read the original")?.0;
        let mut levels = Vec::new();
        levels.extend(self.put_one((source, 0), attr, dir, name, name.to_string())?);
        while let Some(level) = levels.last_mut() {
            let Some(name) = level.rest.pop() else {
                let Some(level) = levels.pop() else { break };
                self.finish(&level)?;
                continue;
            };
            let (from, to) = (level.from, level.to);
            let path = format!("{}/{}", level.path, name.as_name());
            let source = self.from.lookup(from, name.as_name()).or_fail(|| format!("cannot copy {path}"))?;
            match self.put_one((source.id, 1), source.attr, to, name.as_name(), path)? {
                Some(level) => levels.push(level),
                None => self.from.forget(source.id, 1),
            }
        }
        Ok(())
    }

    /// The copy of a file with several names stays known, to be linked to.
    fn forget_made(&self, made: NodeId, attr: &Attr) {
        if attr.kind == Kind::Dir || attr.nlink <= 1 {
            self.to.forget(made, 1);
        }
    }

    /// Puts every entry of the directory `source` into the directory `dir`, whose own attributes stay.
    pub fn put_content(&mut self, source: NodeId, dir: NodeId) -> Result<()> {
        let attr = self.from.getattr(source).or_fail(|| "cannot read the original")?.0;
        for name in self.level((source, 0), (dir, 0), attr, String::new())?.rest {
            let found =
                self.from.lookup(source, name.as_name()).or_fail(|| format!("cannot copy {}", name.as_name()))?;
            self.put(found.id, dir, name.as_name())?;
            self.from.forget(found.id, 1);
        }
        Ok(())
    }

    /// Puts one entry; of two directories that become one the way in is returned.
    fn put_one(
        &mut self,
        (source, counted): (NodeId, u64),
        attr: Attr,
        dir: NodeId,
        name: Name<'_>,
        path: String,
    ) -> Result<Option<Level>> {
        let what = || format!("cannot copy {path}");
        let existing = match self.to.lookup(dir, name) {
            Ok(existing) => Some(existing),
            Err(FsError::NotFound) => None,
            Err(error) => return Err(EngineError::failed(what()).because(error)),
        };
        match (attr.kind == Kind::Dir, existing.as_ref().map(|e| e.attr.kind == Kind::Dir)) {
            (true, Some(true)) => {
                let to = existing.map_or(dir, |e| e.id);
                return self.level((source, counted), (to, 1), attr, path).map(Some);
            }
            (true, Some(false)) => return Err(clash(&path, "a directory", "what is no directory")),
            (false, Some(true)) => return Err(clash(&path, "what is no directory", "a directory")),
            (_, None) | (false, Some(false)) => {}
        }
        let staged = new_id().or_fail(what)?;
        let staged = format!(".mlfs-copy-{}", staged.get(..12).unwrap_or_default());
        let staged = Name::new(staged.as_bytes()).or_fail(what)?;
        let made = self.make(source, &attr, dir, staged).or_fail(what);
        let result = made.and_then(|made| {
            if attr.kind == Kind::Dir {
                self.fill(source, made, path.clone())?;
            }
            // Two names of one file: renaming one to the other would do nothing and leave both.
            if existing.as_ref().is_some_and(|e| e.id == made) {
                return self.to.unlink(dir, staged).or_fail(what);
            }
            self.to.rename((dir, staged), (dir, name), RenameMode::Replace).or_fail(what)?;
            self.forget_made(made, &attr);
            Ok(())
        });
        if let Some(existing) = existing {
            self.to.forget(existing.id, 1);
        }
        if result.is_err()
            && let Err(error) = remove_tree(self.to, dir, staged)
        {
            log::debug!("what was copied of {path} cannot be removed: {error}");
        }
        result.map(|()| None)
    }

    fn level(&self, from: (NodeId, u64), to: (NodeId, u64), attr: Attr, path: String) -> Result<Level> {
        let rest = names(self.from, from.0).or_fail(|| format!("cannot list {path}/"))?;
        Ok(Level { from: from.0, to: to.0, attr, rest, path, counted: (from.1, to.1) })
    }

    fn finish(&self, level: &Level) -> Result<()> {
        finish(self.from, level.from, self.to, level.to, &level.attr, self.owners)
            .or_fail(|| format!("cannot copy {}/", level.path))?;
        self.from.forget(level.from, level.counted.0);
        self.to.forget(level.to, level.counted.1);
        Ok(())
    }

    /// Makes the copy of one entry; a directory is left empty and without its attributes.
    fn make(&mut self, source: NodeId, attr: &Attr, to: NodeId, name: Name<'_>) -> Result<NodeId, FsError> {
        let is_linked = attr.kind != Kind::Dir && attr.nlink > 1;
        if is_linked && let Some(first) = self.links.get(&attr.ino) {
            match self.to.link(*first, to, name) {
                // Its first name went into another volume: it is copied there too.
                Err(FsError::CrossDevice) => {}
                linked => return linked.map(|entry| entry.id),
            }
        }
        let caller = self.owners.maker(attr);
        let made = if attr.kind == Kind::File {
            let new = NewNode { kind: Kind::File, perm: 0o600, umask: 0, rdev: 0, target: None };
            let (entry, opened) = self.to.create(caller, to, name, &new)?;
            let copied = self.content(source, opened.handle, entry.id);
            self.to.release(opened.handle);
            copied?;
            entry
        } else {
            let link = (attr.kind == Kind::Symlink).then(|| self.from.read_link(source)).transpose()?;
            let perm = if attr.kind == Kind::Dir { 0o700 } else { attr.perm };
            let new = NewNode { kind: attr.kind, perm, umask: 0, rdev: attr.rdev, target: link.as_deref() };
            self.to.make(caller, to, name, &new)?
        };
        if is_linked {
            self.links.insert(attr.ino, made.id);
        }
        if attr.kind != Kind::Dir {
            finish(self.from, source, self.to, made.id, attr, self.owners)?;
        }
        Ok(made.id)
    }

    fn content(&mut self, from: NodeId, to: HandleId, target: NodeId) -> Result<(), FsError> {
        let size = self.from.getattr(from)?.0.size;
        let opened = self.from.open(from, OpenFlags::default())?;
        let result = self.pieces(opened.handle, to, size);
        self.from.release(opened.handle);
        // A hole at the end has not been written by anything.
        if result? < size {
            self.to.setattr(target, Some(to), &SetAttr { size: Some(size), ..SetAttr::default() })?;
        }
        Ok(())
    }

    /// Copies the data between holes; answers where the last of it ends.
    fn pieces(&mut self, from: HandleId, to: HandleId, size: u64) -> Result<u64, FsError> {
        let mut written_to = 0;
        for (start, length) in pieces(self.from, from, size)? {
            let (mut offset, end) = (start, start + length);
            while offset < end {
                let room = usize::try_from(end - offset).unwrap_or(usize::MAX).min(self.buffer.len());
                let buffer = self.buffer.get_mut(..room).unwrap_or_default();
                let count = self.from.read(from, offset, buffer)?;
                if count == 0 {
                    break;
                }
                let mut rest = buffer.get(..count).unwrap_or_default();
                while !rest.is_empty() {
                    let written = self.to.write(to, offset, rest)?;
                    offset += written as u64;
                    rest = rest.get(written..).unwrap_or_default();
                }
            }
            written_to = offset;
        }
        Ok(written_to)
    }
}

fn clash(path: &str, new: &str, old: &str) -> EngineError {
    EngineError::failed(format!("cannot overwrite {old} with {new}: {path}"))
}

fn names(fs: &Fs, dir: NodeId) -> Result<Vec<NameBuf>, FsError> {
    let mut names = Vec::new();
    fs.read_dir(dir, Cookie::START, &mut |line| {
        names.push(line.name);
        ControlFlow::Continue(())
    })?;
    Ok(names)
}

/// Removes a tree that we made; one that is not there is as good as removed.
pub fn remove_tree(fs: &Fs, dir: NodeId, name: Name<'_>) -> Result<(), FsError> {
    let mut way = vec![(dir, name.to_buf())];
    while let Some((dir, name)) = way.last().cloned() {
        let found = match fs.lookup(dir, name.as_name()) {
            Err(FsError::NotFound) => {
                way.pop();
                continue;
            }
            other => other?,
        };
        if found.attr.kind != Kind::Dir {
            fs.unlink(dir, name.as_name())?;
            way.pop();
            continue;
        }
        fs.setattr(found.id, None, &SetAttr { perm: Some(0o700), ..SetAttr::default() })?;
        let below = names(fs, found.id)?;
        if below.is_empty() {
            fs.rmdir(dir, name.as_name())?;
            way.pop();
        }
        way.extend(below.into_iter().map(|below| (found.id, below)));
    }
    Ok(())
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
    let mut xattrs = Vec::new();
    for name in image.listxattr(from)? {
        let value = image.getxattr(from, &name)?;
        xattrs.push((name, value));
    }
    set_all(target, to, attr, &xattrs, owners)
}

/// As [`finish`], with the attributes at hand.
pub(super) fn set_all(
    target: &Fs,
    to: NodeId,
    attr: &Attr,
    xattrs: &[(Vec<u8>, Vec<u8>)],
    owners: Owners,
) -> Result<(), FsError> {
    let (uid, gid) = owners.ids(attr);
    let owner = SetAttr { uid: Some(uid), gid: Some(gid), ..SetAttr::default() };
    let is_given = match target.setattr(to, None, &owner) {
        Err(FsError::Perm | FsError::Overflow | FsError::Invalid) if owners != Owners::Exact => false,
        other => other.map(|_| true)?,
    };
    // Under another owner, set-id bits and capabilities would be somebody else's power: as with cp(1), they go.
    let keeps_power = is_given && !matches!(owners, Owners::Given { .. });
    if attr.kind != Kind::Symlink {
        let perm = if keeps_power { attr.perm } else { attr.perm & 0o1777 };
        target.setattr(to, None, &SetAttr { perm: Some(perm), ..SetAttr::default() })?;
    }
    let is_power = |name: &[u8]| name.starts_with(b"security.") || name.starts_with(b"trusted.");
    // Nobody takes set-id bits from a copy.
    let root = Caller { uid: 0, gid: 0, pid: 0 };
    for (name, value) in xattrs.iter().filter(|(name, _)| keeps_power || !is_power(name)) {
        match target.setxattr(root, to, name, value, SetMode::Any) {
            // The host cannot hold it (trusted and security attributes without privilege): as `cp -a` does.
            Err(FsError::Perm | FsError::Unsupported) => {
                log::warn!("the attribute {} could not be copied", String::from_utf8_lossy(name));
            }
            other => other?,
        }
    }
    let times = SetAttr { atime: SetTime::To(attr.atime), mtime: SetTime::To(attr.mtime), ..SetAttr::default() };
    target.setattr(to, None, &times)?;
    Ok(())
}
