// SPDX-License-Identifier: MIT OR Apache-2.0
//! Extended attributes: GETXATTR, LISTXATTR, SETXATTR, REMOVEXATTR. Marks of layer formats are invisible and cannot be
//! set, except in plain directories (volumes, binds), where nothing is a mark.

use std::sync::Arc;

use super::Fs;
use super::privilege::SETGID;
use crate::layer::whiteout::is_mark;
use crate::model::FsError;
use crate::model::acl::{self, Acl};
use crate::model::ids::{Caller, NodeId};
use crate::model::sync::read;
use crate::sys::Place;
use crate::sys::xattr::SetMode;
use crate::tree::Node;
use crate::upper::copy_up::Extent;
use crate::upper::ownership::Stat;

impl Fs {
    /// GETXATTR: the value, ids in access control lists as the mount shows them. `NoAttribute` where there is none.
    pub fn getxattr(&self, id: NodeId, name: &[u8]) -> Result<Vec<u8>, FsError> {
        let stored = self.stored_xattr(id, name)?;
        map_acl(name, stored, |uid| Some(self.uids.to_outer(uid)), |gid| Some(self.gids.to_outer(gid)))
    }

    /// The value as it is stored.
    pub(super) fn stored_xattr(&self, id: NodeId, name: &[u8]) -> Result<Vec<u8>, FsError> {
        check_kind(name)?;
        let node = self.tree.node(id)?;
        let branch = node.branch();
        let value = match (self.reach(&node)?, branch.upper()) {
            (Some(place), Some(upper)) => upper.reader().xattr_at(&place, name)?,
            _ => {
                let lower = read(&node.state).face().cloned().ok_or(FsError::Stale)?;
                branch.layer(&lower)?.xattr(&lower.entry, name)?
            }
        };
        value.ok_or(FsError::NoAttribute)
    }

    /// LISTXATTR: the names.
    pub fn listxattr(&self, id: NodeId) -> Result<Vec<Vec<u8>>, FsError> {
        let node = self.tree.node(id)?;
        let branch = node.branch();
        match (self.reach(&node)?, branch.upper()) {
            (Some(place), Some(upper)) => upper.reader().xattr_names_at(&place),
            _ => {
                let lower = read(&node.state).face().cloned().ok_or(FsError::Stale)?;
                branch.layer(&lower)?.xattr_names(&lower.entry)
            }
        }
    }

    /// SETXATTR.
    pub fn setxattr(
        &self,
        caller: Caller,
        id: NodeId,
        name: &[u8],
        value: &[u8],
        mode: SetMode,
    ) -> Result<(), FsError> {
        let node = self.tree.node(id)?;
        check_mark(&node, name, FsError::Perm)?;
        let branch = Arc::clone(node.branch());
        let upper = branch.writable_upper()?;
        if mode != SetMode::Any {
            // Decided before copy-up, so that a refused call changes nothing.
            let is_there = self.getxattr(id, name).map_or_else(
                |error| if error == FsError::NoAttribute { Ok(false) } else { Err(error) },
                |_| Ok(true),
            )?;
            match (mode, is_there) {
                (SetMode::Create, true) => return Err(FsError::Exists),
                (SetMode::Replace, false) => return Err(FsError::NoAttribute),
                _ => {}
            }
        }
        let place = self.reach_writable(&node, Extent::Metadata)?;
        let stored = map_acl(name, value.to_vec(), |uid| self.uids.to_inner(uid), |gid| self.gids.to_inner(gid))?;
        let result = match Acl::parse(value).filter(|_| name == acl::ACCESS) {
            Some(list) => self.set_access_list(caller, &node, &place, &list, &stored),
            None => upper.set_xattr(&place, name, &stored, SetMode::Any),
        };
        node.privileges.give();
        result
    }

    /// Sets the list that is checked at access, and the mode that follows from it.
    fn set_access_list(
        &self,
        caller: Caller,
        node: &Node,
        place: &Place,
        list: &Acl,
        stored: &[u8],
    ) -> Result<(), FsError> {
        let upper = node.branch().writable_upper()?;
        let before = node.branch().attr_in_upper(place)?;
        let mut perm = list.perm(before.perm);
        if perm & SETGID != 0 && !self.may_keep_set_group_id(caller, &self.show(before)) {
            perm &= !SETGID;
        }
        // Where the host holds lists, it makes the mode follow, and keeps no list that says no more than the mode.
        let is_kept = !upper.ownership().uses_override() || !list.is_trivial();
        if is_kept {
            upper.set_xattr(place, acl::ACCESS, stored, SetMode::Any)?;
        } else if upper.reader().xattr_at(place, acl::ACCESS)?.is_some() {
            upper.remove_xattr(place, acl::ACCESS)?;
        }
        upper.hold_stat(place, &Stat { perm, ..Stat::of(&before) })
    }

    /// REMOVEXATTR. `NoAttribute` where there is none, but for access control lists.
    pub fn removexattr(&self, id: NodeId, name: &[u8]) -> Result<(), FsError> {
        let node = self.tree.node(id)?;
        check_mark(&node, name, FsError::NoAttribute)?;
        let branch = Arc::clone(node.branch());
        let upper = branch.writable_upper()?;
        match self.getxattr(id, name) {
            // Where there is no list, none is left: acl(5) knows no absent lists.
            Err(FsError::NoAttribute) if name == acl::ACCESS || name == acl::DEFAULT => return Ok(()),
            other => drop(other?),
        }
        let place = self.reach_writable(&node, Extent::Metadata)?;
        upper.remove_xattr(&place, name)
    }
}

/// There are attributes of the user, of root, of security modules, and access control lists. `Unsupported` for others.
fn check_kind(name: &[u8]) -> Result<(), FsError> {
    let has_kind = [&b"user."[..], b"trusted.", b"security."].iter().any(|kind| name.starts_with(kind));
    if has_kind || name == acl::ACCESS || name == acl::DEFAULT { Ok(()) } else { Err(FsError::Unsupported) }
}

fn check_mark(node: &Node, name: &[u8], refusal: FsError) -> Result<(), FsError> {
    let is_hidden = match node.branch().upper() {
        Some(upper) => upper.reader().hides(name),
        None => is_mark(name),
    };
    if is_hidden { Err(refusal) } else { Ok(()) }
}

/// The value of an access control list with its ids mapped; other attributes as they are. A list that cannot be read is
/// left to the kernel to refuse.
fn map_acl(
    name: &[u8],
    value: Vec<u8>,
    user: impl Fn(u32) -> Option<u32>,
    group: impl Fn(u32) -> Option<u32>,
) -> Result<Vec<u8>, FsError> {
    if name != acl::ACCESS && name != acl::DEFAULT {
        return Ok(value);
    }
    match Acl::parse(&value) {
        Some(list) => Ok(list.map_ids(user, group).ok_or(FsError::Overflow)?.to_bytes()),
        None => Ok(value),
    }
}
