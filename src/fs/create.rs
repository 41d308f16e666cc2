// SPDX-License-Identifier: MIT OR Apache-2.0
//! New names: CREATE, MKNOD, MKDIR, SYMLINK, LINK.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::OFlags;

use super::handle::Content;
use super::io::Opened;
use super::{EntryOut, Fs};
use crate::model::ids::{Caller, NodeId};
use crate::model::sync::lock;
use crate::model::{Attr, FsError, Kind, Name};
use crate::tree::merge::{self, Resolved, Via};
use crate::tree::{Node, Tree};
use crate::upper::copy_up::Extent;
use crate::upper::ownership::Stat;

/// What to make.
#[derive(Clone, Copy, Debug)]
pub struct NewNode<'a> {
    /// Kind.
    pub kind: Kind,
    /// Permission bits, the umask applied.
    pub perm: u32,
    /// Device number.
    pub rdev: u64,
    /// Target of a symlink.
    pub target: Option<&'a [u8]>,
}

impl Fs {
    /// CREATE: makes a regular file and opens it for reading and writing. `Exists` when the name is taken.
    pub fn create(
        &self,
        caller: Caller,
        parent: NodeId,
        name: Name<'_>,
        perm: u32,
    ) -> Result<(EntryOut, Opened), FsError> {
        let new = NewNode { kind: Kind::File, perm, rdev: 0, target: None };
        let (node, attr) = self.make_in(caller, parent, name, &new)?;
        let entry = self.entry(&node, attr);
        let place = Tree::upper_place(&node).ok_or(FsError::Stale)?;
        let file: OwnedFd = match place.open(OFlags::RDWR | OFlags::NONBLOCK) {
            Ok(file) => file,
            Err(error) => {
                self.forget(entry.id, 1);
                return Err(error);
            }
        };
        Ok((entry, self.insert_handle(node, Content::Writable(Arc::new(file)))))
    }

    /// MKNOD, MKDIR, SYMLINK. `Perm` for the character device 0:0, which is the whiteout (as the kernel answers).
    pub fn make(&self, caller: Caller, parent: NodeId, name: Name<'_>, new: &NewNode<'_>) -> Result<EntryOut, FsError> {
        let (node, attr) = self.make_in(caller, parent, name, new)?;
        Ok(self.entry(&node, attr))
    }

    fn make_in(
        &self,
        caller: Caller,
        parent: NodeId,
        name: Name<'_>,
        new: &NewNode<'_>,
    ) -> Result<(Arc<Node>, Attr), FsError> {
        let parent = self.tree.node(parent)?;
        let parent_attr = self.tree.attr(&parent)?;
        let stat = Stat { kind: new.kind, perm: new.perm & 0o7777, uid: 0, gid: 0, rdev: new.rdev };
        let stat = self.new_stat(caller, &parent_attr, stat)?;
        self.make_node(&parent, name, &stat, new.target)
    }

    /// Makes a node of the stored `stat`; a look-up is counted.
    pub(super) fn make_node(
        &self,
        parent: &Arc<Node>,
        name: Name<'_>,
        stat: &Stat,
        target: Option<&[u8]>,
    ) -> Result<(Arc<Node>, Attr), FsError> {
        if stat.kind == Kind::Char && stat.rdev == 0 {
            return Err(FsError::Perm);
        }
        let branch = Arc::clone(parent.branch());
        let upper = branch.writable_upper()?;
        let dir = self.tree.writable_dir(parent)?;
        let resolving = self.tree.resolving();
        let _names = lock(&parent.names);
        self.check_absent(&resolving, parent, name)?;
        let over = merge::physical(&branch, &dir, name)?;
        upper.create(&dir, name, stat, target, over)?;
        upper.reader().outdate_listing(&dir);
        self.tree.lookup(&resolving, parent, name)
    }

    pub(super) fn check_absent(
        &self,
        resolving: &crate::tree::Resolving<'_>,
        parent: &Arc<Node>,
        name: Name<'_>,
    ) -> Result<(), FsError> {
        if parent.is_removed() {
            return Err(FsError::NotFound);
        }
        match self.tree.resolve(resolving, parent, name)? {
            Some(_) => Err(FsError::Exists),
            None => Ok(()),
        }
    }

    /// LINK: gives a file another name. Directories: `Perm`. Across branches: `CrossDevice`.
    pub fn link(&self, id: NodeId, parent: NodeId, name: Name<'_>) -> Result<EntryOut, FsError> {
        let (node, parent) = (self.tree.node(id)?, self.tree.node(parent)?);
        if !Arc::ptr_eq(node.branch(), parent.branch()) {
            return Err(FsError::CrossDevice);
        }
        if node.kind() == Kind::Dir {
            return Err(FsError::Perm);
        }
        let branch = Arc::clone(node.branch());
        let upper = branch.writable_upper()?;
        let writable = self.tree.writable(&node, Extent::Whole)?;
        let dir = self.tree.writable_dir(&parent)?;
        let resolving = self.tree.resolving();
        let _names = lock(&parent.names);
        if node.is_removed() {
            // As on ext4: what has lost its last name gets none again.
            return Err(FsError::NotFound);
        }
        self.check_absent(&resolving, &parent, name)?;
        let over = merge::physical(&branch, &dir, name)?;
        upper.link(writable.place(), &dir, name, over)?;
        upper.reader().outdate_listing(&dir);
        // The name leads to the same file, whatever its key was when the kernel learnt of it.
        let Some(Resolved::Found(sources)) = self.tree.resolve(&resolving, &parent, name)? else {
            return Err(FsError::Stale);
        };
        if let Some(found) = sources.upper.as_ref().filter(|found| found.via == Via::Name) {
            self.tree.moved_in_upper(&node, found.place.clone(), found.id);
        }
        let (node, attr) = self.tree.enter(&parent, name, sources)?;
        Ok(self.entry(&node, attr))
    }
}
