// SPDX-License-Identifier: MIT OR Apache-2.0
//! Floor 6: the filesystem itself, one file per family of operations. It knows no transport: one method per operation,
//! named as the kernel names it, returning a value or an [`FsError`]. Tests and the commands that need no mount
//! (`ls`, `cat`, `which`, `diff`) call it directly.

use std::time::Duration;

use crate::model::ids::{Caller, IdMap, NodeId};
use crate::model::{Attr, FsError};
use crate::tree::{BranchSpec, Tree};
use crate::upper::ownership::Stat;

pub mod attr;
pub mod build;
mod contested;
pub mod create;
pub mod handle;
pub mod inspect;
pub mod io;
pub mod lookup;
pub mod open;
pub mod policy;
mod privilege;
pub mod read_dir;
pub mod remove;
pub mod rename;
pub mod stats;
#[cfg(test)]
mod tests;
pub mod xattr;

pub use attr::SetAttr;
pub use build::BuildError;
pub use inspect::{Change, ChangeKind, Provenance};
pub use lookup::Follow;
pub use open::{OpenFlags, Opened, Transport, Unlearn};
pub use rename::RenameMode;

/// What a mount is made of.
#[derive(Debug)]
pub struct FsSpec {
    /// The root.
    pub root: BranchSpec,
    /// Branches mounted in it, in any order.
    pub mounts: Vec<MountAt>,
    /// How stored user ids are shown.
    pub uids: IdMap,
    /// How stored group ids are shown.
    pub gids: IdMap,
}

/// A branch and where it is mounted.
#[derive(Debug)]
pub struct MountAt {
    /// Absolute path in the root, cleaned (no `.`, `..`, double slashes). Symlinks in it are followed inside the root.
    pub target: Vec<u8>,
    /// The branch.
    pub branch: BranchSpec,
}

/// A node together with how long the kernel may believe in it.
#[derive(Clone, Copy, Debug)]
pub struct EntryOut {
    /// The node's number; a look-up has been counted.
    pub id: NodeId,
    /// Its attributes as shown.
    pub attr: Attr,
    /// Is its file held by descriptor until the kernel forgets the node? It must be asked to.
    pub is_held: bool,
    /// How long the name may be cached.
    pub entry_ttl: Duration,
    /// How long the attributes may be cached.
    pub attr_ttl: Duration,
}

/// The filesystem of one mount.
#[derive(Debug)]
pub struct Fs {
    tree: Tree,
    handles: handle::HandleTable,
    contested: contested::ContestedNames,
    uids: IdMap,
    gids: IdMap,
    stats: stats::Stats,
}

impl Fs {
    /// Builds the filesystem: opens the branches, makes missing mount points, mounts.
    pub fn new(spec: FsSpec) -> Result<Self, BuildError> {
        build::build(spec)
    }

    /// The merged tree.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// What happened so far.
    pub fn stats(&self) -> &stats::Stats {
        &self.stats
    }

    /// Does any branch change without our doing?
    pub fn is_shared(&self) -> bool {
        self.tree.branches().iter().any(|branch| branch.is_shared())
    }

    /// How many files are open.
    pub fn open_files(&self) -> usize {
        self.handles.len()
    }

    /// Attributes as the mount shows them.
    fn show(&self, mut attr: Attr) -> Attr {
        attr.uid = self.uids.to_outer(attr.uid);
        attr.gid = self.gids.to_outer(attr.gid);
        attr
    }

    /// The stored ids of a new file of `caller` in a directory of these (stored) attributes: a set-gid directory gives
    /// its group (and, to directories, the bit).
    fn new_stat(&self, caller: Caller, parent: &Attr, mut stat: Stat) -> Result<Stat, FsError> {
        const SETGID: u32 = 0o2000;
        stat.uid = self.uids.to_inner(caller.uid).or(self.fallback_id(&self.uids)).ok_or(FsError::Overflow)?;
        stat.gid = self.gids.to_inner(caller.gid).or(self.fallback_id(&self.gids)).ok_or(FsError::Overflow)?;
        if parent.perm & SETGID != 0 {
            stat.gid = parent.gid;
            if stat.kind.is_dir() {
                stat.perm |= SETGID;
            }
        }
        Ok(stat)
    }

    /// Under one shown owner everybody's files are his.
    fn fallback_id(&self, map: &IdMap) -> Option<u32> {
        match map {
            IdMap::Fixed(id) => Some(*id),
            IdMap::Identity | IdMap::Ranges(_) => None,
        }
    }
}
