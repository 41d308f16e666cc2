// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the kernel leaves to us of its rules about set-id bits: it does not say in a request who may keep them.

use super::Fs;
use crate::model::Attr;
use crate::model::ids::Caller;
use crate::sys::proc;

impl Fs {
    /// May `caller` leave the set-group-id bit on a file of these attributes as shown (`setattr_should_drop_sgid` in the
    /// kernel)? Root may, and who is in the file's group.
    pub(super) fn may_keep_set_group_id(&self, caller: Caller, shown: &Attr) -> bool {
        caller.uid == 0 || caller.gid == shown.gid || proc::groups_of(caller.pid).contains(&shown.gid)
    }
}
