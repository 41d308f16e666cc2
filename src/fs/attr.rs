// SPDX-License-Identifier: MIT OR Apache-2.0
//! Attributes: GETATTR, SETATTR, READLINK, STATFS.

use std::sync::Arc;
use std::time::Duration;

use rustix::fs::OFlags;

use super::Fs;
use crate::model::acl::{self, Acl};
use crate::model::ids::{Caller, HandleId, NodeId};
use crate::model::sync::read;
use crate::model::{Attr, FsError, Kind};
use crate::sys::node::SetTime;
use crate::sys::xattr::SetMode;
use crate::sys::{FileId, Place};
use crate::tree::{Node, Tree};
use crate::upper::Upper;
use crate::upper::copy_up::Extent;
use crate::upper::ownership::Stat;

/// What SETATTR asks for; `None` and `Keep` leave as is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetAttr {
    /// Permission bits.
    pub perm: Option<u32>,
    /// Owner as the mount shows ids.
    pub uid: Option<u32>,
    /// Group as the mount shows ids.
    pub gid: Option<u32>,
    /// Size in bytes.
    pub size: Option<u64>,
    /// Access time.
    pub atime: SetTime,
    /// Modification time.
    pub mtime: SetTime,
    /// Who has no right to keep set-id bits and capabilities over this change.
    pub clears_for: Option<Caller>,
}

impl Default for SetAttr {
    fn default() -> Self {
        SetAttr {
            perm: None,
            uid: None,
            gid: None,
            size: None,
            atime: SetTime::Keep,
            mtime: SetTime::Keep,
            clears_for: None,
        }
    }
}

impl SetAttr {
    /// Does it set nothing, not even a time?
    fn is_nothing(&self) -> bool {
        *self == SetAttr { clears_for: self.clears_for, ..SetAttr::default() }
    }
}

impl Fs {
    /// A place in the upper that leads to `node` and nothing else. One that others have removed or replaced in a shared
    /// branch is reached through a file open on it; without one it is `Stale`, and the kernel looks the name up again.
    pub(super) fn reach(&self, node: &Arc<Node>) -> Result<Option<Place>, FsError> {
        match self.tree.hold(node) {
            Err(FsError::Stale) if node.branch().is_shared() => {
                let Some(file) = self.handles.find_file(node) else {
                    self.contested.note_replaced(node);
                    return Err(FsError::Stale);
                };
                let place = Place::Fd(file);
                crate::model::sync::write(&node.state).upper = Some(place.clone());
                Ok(Some(place))
            }
            other => other,
        }
    }

    /// The attributes as stored, of a file that others have replaced too.
    fn stored_attr(&self, node: &Arc<Node>) -> Result<Attr, FsError> {
        match self.tree.attr(node) {
            Err(FsError::Stale) => {
                self.reach(node)?;
                self.tree.attr(node)
            }
            other => other,
        }
    }

    /// A place to change `node` at: copied up, and leading to nothing else.
    pub(super) fn reach_writable(&self, node: &Arc<Node>, extent: Extent) -> Result<Place, FsError> {
        self.tree.writable(node, extent)?;
        self.reach(node)?.ok_or(FsError::Stale)
    }

    /// GETATTR: the attributes and how long they may be believed.
    pub fn getattr(&self, id: NodeId) -> Result<(Attr, Duration), FsError> {
        let node = self.tree.node(id)?;
        let attr = self.stored_attr(&node)?;
        // This answer shows the true inode number, so it may be believed even where an entry reply may not.
        Ok((self.show(attr), self.caching(&node).getattr))
    }

    /// SETATTR. `handle`: the open file through which a size is set.
    pub fn setattr(&self, id: NodeId, handle: Option<HandleId>, set: &SetAttr) -> Result<(Attr, Duration), FsError> {
        let node = self.tree.node(id)?;
        let branch = Arc::clone(node.branch());
        if set.is_nothing() {
            self.check_clearing(&node, set.clears_for)?;
        }
        let extent = if set.size.is_some() { Extent::Whole } else { Extent::Metadata };
        // Ids that have no place in the map are refused before anything changes.
        if set.uid.is_some() || set.gid.is_some() {
            self.changed_stat(Stat::of(&self.stored_attr(&node)?), set)?;
        }
        let emptied = if set.size == Some(0) { self.tree.emptied(&node)? } else { None };
        let upper = branch.writable_upper()?;
        let mut place = match (emptied, set.size) {
            (Some(file), _) => Place::Fd(file),
            (None, size) => {
                let place = self.reach_writable(&node, extent)?;
                if let Some(size) = size {
                    self.truncate(&node, &place, handle, size)?;
                }
                place
            }
        };
        if (set.size.is_some() || set.is_nothing()) && node.kind() == Kind::File {
            self.clear_privileges(&node, &place, set.clears_for)?;
        }
        let changes_stat = set.perm.is_some() || set.uid.is_some() || set.gid.is_some();
        if changes_stat {
            let now = branch.attr_in_upper(&place)?;
            let mut stat = self.changed_stat(Stat::of(&now), set)?;
            if set.perm.is_none() && node.kind() != Kind::Dir {
                // Whoever gives a file away gives no rights of his with it.
                stat.perm = self.without_set_id(&now, set.clears_for);
            }
            if upper.needs_conversion(&place, &stat)? {
                self.convert(upper, &node, &stat)?;
                place = self.reach(&node)?.ok_or(FsError::Stale)?;
            } else {
                upper.hold_stat(&place, &stat)?;
            }
            if set.perm.is_some() && upper.ownership().uses_override() {
                // The host does this by itself where it holds the list.
                self.follow_mode(upper, &place, stat.perm)?;
            }
            node.privileges.give();
        }
        if set.atime != SetTime::Keep || set.mtime != SetTime::Keep {
            place.utimens(set.atime, set.mtime)?;
        }
        self.getattr(id)
    }

    /// chmod(2) changes the access control list too.
    fn follow_mode(&self, upper: &Upper, place: &Place, perm: u32) -> Result<(), FsError> {
        let value = upper.reader().xattr_at(place, acl::ACCESS)?;
        match value.and_then(|value| Acl::parse(&value)) {
            Some(list) => upper.set_xattr(place, acl::ACCESS, &list.with_perm(perm).to_bytes(), SetMode::Any),
            None => Ok(()),
        }
    }

    /// The stored stat after a change of shown ids and mode.
    fn changed_stat(&self, mut stat: Stat, set: &SetAttr) -> Result<Stat, FsError> {
        use crate::model::ids::IdMap;
        let inner = |map: &IdMap, shown: u32, stored: u32| match map {
            // One shown owner: giving to him changes nothing, to others is not possible.
            IdMap::Fixed(id) if *id == shown => Ok(stored),
            IdMap::Fixed(_) => Err(FsError::Perm),
            map => map.to_inner(shown).ok_or(FsError::Overflow),
        };
        if let Some(uid) = set.uid {
            stat.uid = inner(&self.uids, uid, stat.uid)?;
        }
        if let Some(gid) = set.gid {
            stat.gid = inner(&self.gids, gid, stat.gid)?;
        }
        stat.perm = set.perm.unwrap_or(stat.perm) & 0o7777;
        Ok(stat)
    }

    /// Puts an object of another kind in the place of one that cannot hold `stat` (a symlink given to another owner
    /// under the override form becomes a file with the link's target).
    fn convert(&self, upper: &Upper, node: &Arc<Node>, stat: &Stat) -> Result<(), FsError> {
        let _resolving = self.tree.resolving();
        let (parent, name) = crate::tree::copy_up::newest_link(node).ok_or(FsError::Unsupported)?;
        let dir = Tree::upper_dir(&parent).ok_or(FsError::Stale)?;
        let _names = crate::model::sync::lock(&parent.names);
        let old = Place::at(&dir, name.as_name());
        let place = upper.convert(&old, stat, node.ino())?;
        self.tree.moved_in_upper(node, place.clone(), FileId::of(&place.stat()?));
        upper.reader().outdate_listing(&dir);
        Ok(())
    }

    fn truncate(&self, node: &Arc<Node>, place: &Place, handle: Option<HandleId>, size: u64) -> Result<(), FsError> {
        if node.kind() == Kind::Dir {
            return Err(FsError::IsDir);
        }
        if let Some(handle) = handle.and_then(|id| self.handles.get(id).ok())
            && let Some(file) = handle.writable_file()
        {
            return Ok(rustix::fs::ftruncate(&*file, size)?);
        }
        let file = place.open(OFlags::WRONLY | OFlags::NONBLOCK)?;
        Ok(rustix::fs::ftruncate(&file, size)?)
    }

    /// READLINK.
    pub fn read_link(&self, id: NodeId) -> Result<Vec<u8>, FsError> {
        let node = self.tree.node(id)?;
        if node.kind() != Kind::Symlink {
            return Err(FsError::Invalid);
        }
        let branch = node.branch();
        if let (Some(place), Some(upper)) = (self.reach(&node)?, branch.upper()) {
            return upper.reader().read_link_at(&place);
        }
        let lower = read(&node.state).face().cloned().ok_or(FsError::Stale)?;
        branch.layer(&lower)?.read_link(&lower.entry)
    }

    /// STATFS of the branch of a node: of the host's filesystem under its upper.
    pub fn statfs(&self, id: NodeId) -> Result<rustix::fs::StatVfs, FsError> {
        let node = self.tree.node(id)?;
        let branch = node.branch();
        if let Some(file) = branch.host_file() {
            return Ok(rustix::fs::fstatvfs(&**file)?);
        }
        if let Some(upper) = branch.upper() {
            return Ok(rustix::fs::fstatvfs(&*upper.root().open()?)?);
        }
        // Only layers: nothing is free; the size is of no filesystem in particular.
        let root = rustix::fs::statvfs(c"/")?;
        Ok(rustix::fs::StatVfs {
            f_blocks: 0,
            f_bfree: 0,
            f_bavail: 0,
            f_files: 0,
            f_ffree: 0,
            f_favail: 0,
            f_namemax: 255,
            ..root
        })
    }
}
