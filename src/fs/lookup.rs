// SPDX-License-Identifier: MIT OR Apache-2.0
//! Look-up, forgetting, and paths inside the root.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::policy::{Attributes, Caching, Profile, caching};
use super::{EntryOut, Fs};
use crate::model::ids::NodeId;
use crate::model::sync::write;
use crate::model::{Attr, FsError, Kind, Name};
use crate::sys::Place;
use crate::tree::Node;

/// How many symlinks one path may go through, as in the kernel.
const LINKS_MAX: usize = 40;

/// How often a look-up tries to hold a file that others replace all the time; then it is not held.
const HOLDS_MAX: u32 = 256;

/// What to do with a symlink at the end of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follow {
    /// Go to its target.
    Yes,
    /// It is what was asked for.
    No,
}

impl Fs {
    pub(super) fn caching(&self, node: &Node) -> Caching {
        let profile = if node.branch().is_shared() { Profile::Shared } else { Profile::Private };
        let attributes = if node.has_many_nodes() || node.is_mappable.load(Ordering::Relaxed) {
            Attributes::Unsettled
        } else if node.id().0 == node.ino() {
            Attributes::Settled
        } else {
            Attributes::Numbered
        };
        caching(profile, attributes)
    }

    pub(super) fn entry(&self, node: &Node, attr: Attr) -> EntryOut {
        let caching = self.caching(node);
        EntryOut {
            id: node.id(),
            attr: self.show(attr),
            is_held: false,
            entry_ttl: caching.entry,
            attr_ttl: caching.attr,
        }
    }

    /// LOOKUP: the node at `name` in `parent`, with one more look-up counted.
    pub fn lookup(&self, parent: NodeId, name: Name<'_>) -> Result<EntryOut, FsError> {
        let parent = self.tree.node(parent)?;
        let is_contested = parent.branch().is_shared() && self.contested.take(parent.id(), name);
        let mut rounds = if is_contested { HOLDS_MAX } else { 0 };
        loop {
            let (node, attr) = {
                let resolving = self.tree.resolving();
                self.tree.lookup(&resolving, &parent, name)?
            };
            let mut entry = self.entry(&node, attr);
            if rounds == 0 || node.kind() == Kind::Dir {
                return Ok(entry);
            }
            match self.tree.hold(&node) {
                Ok(place) => {
                    entry.is_held = matches!(place, Some(Place::Fd(_)));
                    write(&node.state).upper = place;
                    return Ok(entry);
                }
                // Replaced between the two looks.
                Err(FsError::Stale) => rounds -= 1,
                Err(error) => {
                    self.forget(node.id(), 1);
                    return Err(error);
                }
            }
            self.forget(node.id(), 1);
        }
    }

    /// How long the absence of a name in `parent` may be believed.
    pub fn negative_ttl(&self, parent: NodeId) -> Duration {
        self.tree.node(parent).map_or(Duration::ZERO, |parent| self.caching(&parent).negative)
    }

    /// FORGET: the kernel has dropped `count` look-ups of a node.
    pub fn forget(&self, id: NodeId, count: u64) {
        self.tree.nodes().forget(id, count);
    }

    /// The node at an absolute path, symlinks followed inside the root and never out of it. Counts one look-up of the
    /// node at the end (give it back with [`Fs::forget`]).
    ///
    /// `Host { ELOOP }` after 40 symlinks.
    pub fn resolve(&self, path: &[u8], follow: Follow) -> Result<EntryOut, FsError> {
        let (node, attr) = self.walk(path, follow)?;
        Ok(self.entry(&node, attr))
    }

    pub(super) fn walk(&self, path: &[u8], follow: Follow) -> Result<(Arc<Node>, Attr), FsError> {
        // Look-ups are counted on the way, so that no node on it is forgotten and born again meanwhile.
        let mut counted = Vec::new();
        let result = self.walk_counting(path, follow, &mut counted);
        if let Ok((node, _)) = &result {
            node.add_lookup();
        }
        for id in counted {
            self.forget(id, 1);
        }
        result
    }

    fn walk_counting(
        &self,
        path: &[u8],
        follow: Follow,
        counted: &mut Vec<NodeId>,
    ) -> Result<(Arc<Node>, Attr), FsError> {
        let mut rest: Vec<Vec<u8>> = split(path);
        // The way from the root to here, for `..`.
        let mut way: Vec<Arc<Node>> = vec![Arc::clone(self.tree.root())];
        let mut links = 0;
        while let Some(part) = rest.pop() {
            if part == b".." {
                if way.len() > 1 {
                    way.pop();
                }
                continue;
            }
            let here = way.last().ok_or(FsError::NotFound)?;
            let (node, attr) = {
                let resolving = self.tree.resolving();
                self.tree.lookup(&resolving, here, Name::new(&part)?)?
            };
            counted.push(node.id());
            if node.kind() == Kind::Symlink && (!rest.is_empty() || follow == Follow::Yes) {
                links += 1;
                if links > LINKS_MAX {
                    return Err(FsError::Host { errno: libc::ELOOP });
                }
                let target = self.read_link(node.id())?;
                if target.first() == Some(&b'/') {
                    way.truncate(1);
                }
                rest.extend(split(&target));
                continue;
            }
            if rest.is_empty() {
                return Ok((node, attr));
            }
            way.push(node);
        }
        let node = way.pop().ok_or(FsError::NotFound)?;
        let attr = self.tree.attr(&node)?;
        Ok((node, attr))
    }
}

/// The components of a path, the first one last.
pub(super) fn split(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|b| *b == b'/').filter(|p| !p.is_empty() && *p != b".").rev().map(<[u8]>::to_vec).collect()
}
