// SPDX-License-Identifier: MIT OR Apache-2.0
//! Set-id bits and capabilities that go when somebody changes a file who has no right to keep them: the kernel leaves
//! this to us (`FUSE_HANDLE_KILLPRIV_V2`), and does not carry supplementary groups.

use std::sync::Arc;

use super::Fs;
use crate::model::ids::{Caller, HandleId, NodeId};
use crate::model::{Attr, FsError};
use crate::sys::{Place, proc};
use crate::tree::Node;
use crate::upper::ownership::Stat;

const SETUID: u32 = 0o4000;
pub(super) const SETGID: u32 = 0o2000;
const GROUP_EXEC: u32 = 0o010;

impl Fs {
    /// May `caller` leave the set-group-id bit on a file of these attributes as shown? Root may, and who is in its group.
    pub(super) fn may_keep_set_group_id(&self, caller: Caller, shown: &Attr) -> bool {
        caller.uid == 0 || caller.gid == shown.gid || proc::groups_of(caller.pid).contains(&shown.gid)
    }

    /// The mode of a file of these stored attributes without its set-id bits. Set-group-id without group execution once
    /// meant mandatory locking: it goes only by somebody outside of the group (`setattr_should_drop_sgid` in the kernel).
    pub(super) fn without_set_id(&self, stored: &Attr, caller: Option<Caller>) -> u32 {
        let perm = stored.perm & !SETUID;
        if perm & (SETGID | GROUP_EXEC) != SETGID {
            return perm & !SETGID;
        }
        let keeps = caller.is_none_or(|caller| self.may_keep_set_group_id(caller, &self.show(*stored)));
        if keeps { perm } else { perm & !SETGID }
    }

    /// The content of a file was changed in a way that the kernel leaves to us: capabilities go, and set-id bits too if
    /// `caller` may not keep them.
    pub(super) fn clear_privileges(&self, node: &Node, place: &Place, caller: Option<Caller>) -> Result<(), FsError> {
        const CAPABILITY: &[u8] = b"security.capability";
        let upper = node.branch().writable_upper()?;
        if upper.reader().xattr_at(place, CAPABILITY)?.is_some() {
            upper.remove_xattr(place, CAPABILITY)?;
        }
        let attr = node.branch().attr_in_upper(place)?;
        if caller.is_none() || attr.perm & (SETUID | SETGID) == 0 {
            return Ok(());
        }
        let perm = self.without_set_id(&attr, caller);
        if perm & SETGID != 0 {
            // Not for everybody: who is not in the group must take it.
            node.privileges.give();
        }
        if perm == attr.perm {
            return Ok(());
        }
        upper.hold_stat(place, &Stat { perm, ..Stat::of(&attr) })
    }

    /// Has anybody the node open for writing?
    pub fn is_written(&self, id: NodeId) -> bool {
        self.tree.node(id).is_ok_and(|node| self.handles.is_written(&node))
    }

    /// A write by `caller`, who may not keep set-id bits, is about to come: they go, and capabilities.
    pub fn clear_before_write(&self, handle: HandleId, caller: Caller) -> Result<(), FsError> {
        let handle = self.handles.get(handle)?;
        let node = handle.node();
        if !node.branch().is_shared() && node.privileges.are_gone() {
            return Ok(());
        }
        let file = handle.writable_file().ok_or(FsError::BadHandle)?;
        node.privileges.take(|| self.clear_privileges(node, &Place::Fd(file), Some(caller)))
    }

    /// A SETATTR that sets nothing comes before the kernel writes a backing file, and from chown(2) with neither owner nor
    /// group, which is the owner's to call: nobody else may take set-id bits from a file that he has not opened.
    pub(super) fn check_clearing(&self, node: &Arc<Node>, caller: Option<Caller>) -> Result<(), FsError> {
        let Some(caller) = caller.filter(|caller| caller.uid != 0) else { return Ok(()) };
        let stored = self.tree.attr(node)?;
        let is_harmless = self.without_set_id(&stored, Some(caller)) == stored.perm;
        let is_owner = caller.uid == self.show(stored).uid;
        if is_harmless || is_owner || self.handles.is_written(node) { Ok(()) } else { Err(FsError::Perm) }
    }
}
