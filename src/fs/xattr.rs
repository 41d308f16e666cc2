// SPDX-License-Identifier: MIT OR Apache-2.0
//! Extended attributes: GETXATTR, LISTXATTR, SETXATTR, REMOVEXATTR. Marks of layer formats are invisible and cannot be
//! set, except in plain directories (volumes, binds), where nothing is a mark.

use std::sync::Arc;

use super::Fs;
use crate::layer::whiteout::is_mark;
use crate::model::FsError;
use crate::model::acl::{self, Acl};
use crate::model::ids::NodeId;
use crate::model::sync::read;
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
    pub fn setxattr(&self, id: NodeId, name: &[u8], value: &[u8], mode: SetMode) -> Result<(), FsError> {
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
        upper.set_xattr(&place, name, &stored, SetMode::Any)?;
        node.privileges.give();
        if let (true, Some(list)) = (name == acl::ACCESS && upper.ownership().uses_override(), Acl::parse(value)) {
            // The host does this by itself where it holds the list.
            let stat = Stat::of(&branch.attr_in_upper(&place)?);
            upper.hold_stat(&place, &Stat { perm: list.perm(stat.perm), ..stat })?;
        }
        Ok(())
    }

    /// REMOVEXATTR. `NoAttribute` where there is none.
    pub fn removexattr(&self, id: NodeId, name: &[u8]) -> Result<(), FsError> {
        let node = self.tree.node(id)?;
        check_mark(&node, name, FsError::NoAttribute)?;
        let branch = Arc::clone(node.branch());
        let upper = branch.writable_upper()?;
        self.getxattr(id, name)?;
        let place = self.reach_writable(&node, Extent::Metadata)?;
        upper.remove_xattr(&place, name)
    }
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
