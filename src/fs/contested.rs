// SPDX-License-Identifier: MIT OR Apache-2.0
//! Names of shared branches whose files others replace while they are opened. The kernel looks a name up once more when
//! an operation found its file replaced; what these look-ups find is held by descriptor in its node, so that the
//! operation that follows reaches it whatever happens to the name. It is let go when the kernel forgets the node, which
//! it is asked to do right after the look-up. Here are names only: no file is held for want of traffic.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::model::ids::NodeId;
use crate::model::sync::{lock, read};
use crate::model::{Name, NameBuf};
use crate::tree::Node;

/// So many look-ups of the name hold their file after one was replaced: what was replaced once often is again, and each
/// spared answer of `Stale` is one that cannot come twice.
const LOOKUPS: u8 = 64;
/// At most so many names are remembered.
const NAMES_MAX: usize = 64;

#[derive(Debug)]
struct Contested {
    dir: NodeId,
    name: NameBuf,
    lookups: u8,
}

/// The names whose next look-ups hold what they find.
#[derive(Debug, Default)]
pub(super) struct ContestedNames {
    names: Mutex<VecDeque<Contested>>,
    /// How many there are: look-ups take no lock while there is none.
    len: AtomicUsize,
}

impl ContestedNames {
    /// An operation found that others have replaced its file.
    pub(super) fn note_replaced(&self, node: &Node) {
        let links: Vec<_> = read(&node.state).links.iter().map(|(dir, name)| (dir.id(), name.clone())).collect();
        let mut names = lock(&self.names);
        for (dir, name) in links {
            names.retain(|known| known.dir != dir || known.name != name);
            if names.len() >= NAMES_MAX {
                names.pop_front();
            }
            names.push_back(Contested { dir, name, lookups: LOOKUPS });
        }
        self.len.store(names.len(), Ordering::Relaxed);
    }

    /// Must a look-up of `name` hold what it finds?
    pub(super) fn take(&self, dir: NodeId, name: Name<'_>) -> bool {
        if self.len.load(Ordering::Relaxed) == 0 {
            return false;
        }
        let mut names = lock(&self.names);
        let Some(found) = names.iter_mut().find(|known| known.dir == dir && known.name.as_name() == name) else {
            return false;
        };
        found.lookups = found.lookups.saturating_sub(1);
        names.retain(|known| known.lookups > 0);
        self.len.store(names.len(), Ordering::Relaxed);
        true
    }
}
