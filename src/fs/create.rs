// SPDX-License-Identifier: MIT OR Apache-2.0
//! New names: CREATE, MKNOD, MKDIR, SYMLINK, LINK.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::open::{Direct, OpenFlags, Opened, Transport};
use super::{EntryOut, Fs};
use crate::model::acl::{self, Acl};
use crate::model::ids::{Caller, NodeId};
use crate::model::sync::lock;
use crate::model::{Attr, FsError, Kind, Name};
use crate::sys::xattr::SetMode;
use crate::tree::merge::{self, Resolved, Via};
use crate::tree::{Node, Tree};
use crate::upper::copy_up::Extent;
use crate::upper::ownership::Stat;

/// What to make.
#[derive(Clone, Copy, Debug)]
pub struct NewNode<'a> {
    /// Kind.
    pub kind: Kind,
    /// Permission bits, the umask not applied.
    pub perm: u32,
    /// The caller's umask; a default ACL of the directory takes its place.
    pub umask: u32,
    /// Device number.
    pub rdev: u64,
    /// Target of a symlink.
    pub target: Option<&'a [u8]>,
}

/// Something new: its node, with a look-up counted, and a regular file as it was opened.
pub(super) struct Made {
    pub(super) node: Arc<Node>,
    attr: Attr,
    file: Option<Arc<OwnedFd>>,
}

/// What a new file gets of its directory's default ACL.
struct Lists {
    perm: u32,
    access: Option<Acl>,
    default: Option<Acl>,
}

impl Lists {
    fn of_new(default: Option<Acl>, new: &NewNode<'_>) -> Self {
        let Some(default) = default.filter(|_| new.kind != Kind::Symlink) else {
            return Lists { perm: new.perm & !new.umask, access: None, default: None };
        };
        let (access, perm) = default.inherited(new.perm);
        let access = (!access.is_trivial()).then_some(access);
        Lists { perm, access, default: (new.kind == Kind::Dir).then_some(default) }
    }

    fn is_empty(&self) -> bool {
        self.access.is_none() && self.default.is_none()
    }
}

impl Fs {
    /// CREATE: makes a regular file and opens it for reading and writing. `Exists` when the name is taken.
    pub fn create(
        &self,
        caller: Caller,
        parent: NodeId,
        name: Name<'_>,
        new: &NewNode<'_>,
    ) -> Result<(EntryOut, Opened), FsError> {
        let flags = OpenFlags { write: true, ..OpenFlags::default() };
        self.create_by(caller, parent, name, new, flags, &Direct)
    }

    /// The same, with what the kernel needs to know to read and write the file by itself.
    pub fn create_by(
        &self,
        caller: Caller,
        parent: NodeId,
        name: Name<'_>,
        new: &NewNode<'_>,
        flags: OpenFlags,
        transport: &dyn Transport,
    ) -> Result<(EntryOut, Opened), FsError> {
        let Made { node, attr, file } = self.make_in(caller, parent, name, new)?;
        let opened = file.ok_or(FsError::Stale).and_then(|file| self.insert_created(&node, file, flags, transport));
        match opened {
            Ok(opened) => Ok((self.entry(&node, attr), opened)),
            Err(error) => {
                self.forget(node.id(), 1);
                Err(error)
            }
        }
    }

    /// MKNOD, MKDIR, SYMLINK. `Perm` for the character device 0:0, which is the whiteout (as the kernel answers).
    pub fn make(&self, caller: Caller, parent: NodeId, name: Name<'_>, new: &NewNode<'_>) -> Result<EntryOut, FsError> {
        let Made { node, attr, .. } = self.make_in(caller, parent, name, new)?;
        Ok(self.entry(&node, attr))
    }

    fn make_in(&self, caller: Caller, parent: NodeId, name: Name<'_>, new: &NewNode<'_>) -> Result<Made, FsError> {
        let parent = self.tree.node(parent)?;
        let parent_attr = self.tree.attr(&parent)?;
        let lists = Lists::of_new(self.default_acl(&parent)?, new);
        let stat = Stat { kind: new.kind, perm: lists.perm & 0o7777, uid: 0, gid: 0, rdev: new.rdev };
        let stat = self.new_stat(caller, &parent_attr, stat)?;
        if !lists.is_empty() && !parent.branch().writable_upper()?.takes_attributes(&stat) {
            // Without its list it would be open to others than its directory says.
            return Err(FsError::Perm);
        }
        let Made { node, attr, file } = self.make_node(&parent, name, &stat, new.target)?;
        if lists.is_empty() {
            return Ok(Made { node, attr, file });
        }
        match self.set_lists(&node, &lists).and_then(|()| self.tree.attr(&node)) {
            Ok(attr) => Ok(Made { node, attr, file }),
            Err(error) => {
                // Without its lists it would be open to others than its directory says.
                if let Err(error) = self.take_back(&parent, name, &node) {
                    log::warn!("{name:?} could not be removed again: {error}");
                }
                self.forget(node.id(), 1);
                Err(error)
            }
        }
    }

    /// Removes what was just made, unless the name has become another's.
    fn take_back(&self, parent: &Arc<Node>, name: Name<'_>, made: &Node) -> Result<(), FsError> {
        let found = self.lookup(parent.id(), name)?.id;
        self.forget(found, 1);
        match made.kind() {
            _ if found != made.id() => Ok(()),
            Kind::Dir => self.rmdir(parent.id(), name),
            _ => self.unlink(parent.id(), name),
        }
    }

    fn default_acl(&self, parent: &Node) -> Result<Option<Acl>, FsError> {
        match self.stored_xattr(parent.id(), acl::DEFAULT) {
            Ok(value) => Ok(Acl::parse(&value)),
            Err(FsError::NoAttribute | FsError::Unsupported) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn set_lists(&self, node: &Node, lists: &Lists) -> Result<(), FsError> {
        let upper = node.branch().writable_upper()?;
        let place = Tree::upper_place(node).ok_or(FsError::Stale)?;
        for (name, list) in [(acl::ACCESS, &lists.access), (acl::DEFAULT, &lists.default)] {
            if let Some(list) = list {
                upper.set_xattr(&place, name, &list.to_bytes(), SetMode::Any)?;
            }
        }
        Ok(())
    }

    /// Makes a node of the stored `stat`; a look-up is counted.
    pub(super) fn make_node(
        &self,
        parent: &Arc<Node>,
        name: Name<'_>,
        stat: &Stat,
        target: Option<&[u8]>,
    ) -> Result<Made, FsError> {
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
        let file = upper.create(&dir, name, stat, target, over)?;
        upper.reader().outdate_listing(&dir);
        let (node, attr) = self.tree.lookup(&resolving, parent, name)?;
        Ok(Made { node, attr, file })
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
        let place = self.reach_writable(&node, Extent::Metadata)?;
        self.tree.keep_content(&node)?;
        let dir = self.tree.writable_dir(&parent)?;
        let resolving = self.tree.resolving();
        let _names = lock(&parent.names);
        if node.is_removed() {
            // As on ext4: what has lost its last name gets none again.
            return Err(FsError::NotFound);
        }
        self.check_absent(&resolving, &parent, name)?;
        let over = merge::physical(&branch, &dir, name)?;
        upper.link(&place, &dir, name, over)?;
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
