// SPDX-License-Identifier: MIT OR Apache-2.0
//! Nodes and the table of them: what the kernel knows, by number, and what was born where, by key.
//!
//! A node is a number by which the kernel knows a file; what it knows is the [`Inode`], a file and not a name. Almost
//! always there is one node for an inode. There are more when a file was copied up while programs read the layer's
//! content through the kernel itself: the kernel takes one backing file for all handles of a number, so those who open
//! it afterwards get another number (re-homing, [`NodeTable::rehome`]). A number is never decoded: the table maps it to
//! a place, so copy-up and rename change the place and not the number. It lives until the kernel forgets it.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry as Slot;

use super::branch::Branch;
use super::ids::{Key, RESERVED};
use super::merge::Sources;
use crate::layer::Entry;
use crate::model::ids::NodeId;
use crate::model::sync::{read, write};
use crate::model::{FsError, Kind, Name, NameBuf};
use crate::sys::{FileId, Place};
use crate::upper::links::Group;

/// An entry of one of the branch's layers.
#[derive(Clone, Debug)]
pub struct Lower {
    /// Index of the layer, 0 at the top.
    pub layer: usize,
    /// The entry.
    pub entry: Entry,
    /// Its hard-link group, if it has several names.
    pub group: Option<Group>,
    /// A directory that says nothing about its attributes.
    pub is_implicit: bool,
}

/// What can change about a node.
#[derive(Debug, Default)]
pub struct State {
    /// Names by which it is known, the newest last. Empty: a root, or without a name.
    pub links: Vec<(Arc<Node>, NameBuf)>,
    /// Where it lies in the upper.
    pub upper: Option<Place>,
    /// Device and inode of what lies there: others may put another file in its place in a shared branch.
    pub upper_id: Option<FileId>,
    /// Where it lies in layers, top first; more than one only for a directory.
    pub lowers: Vec<Lower>,
    /// Where the content of a regular file lies, once somebody has asked.
    pub content: Option<Whereabouts>,
    /// It has lost its last name.
    pub is_removed: bool,
    pub(super) keys: Vec<Key>,
    /// The nodes by which the kernel knows it, the one that look-ups lead to last.
    pub(super) homes: Vec<NodeValue>,
}

/// A node's number and serial.
pub(super) type NodeValue = (u64, u64);

/// Where the content of a regular file lies.
#[derive(Clone, Debug)]
pub enum Whereabouts {
    /// With its attributes, in the upper.
    Upper,
    /// In a layer, whatever holds its attributes.
    Below(Lower),
}

impl State {
    /// The lower whose attributes are shown: the topmost that says something about them.
    pub fn face(&self) -> Option<&Lower> {
        self.lowers.iter().find(|lower| !lower.is_implicit).or(self.lowers.first())
    }

    /// Is it a directory of more than one source?
    pub fn is_merged(&self) -> bool {
        self.lowers.len() + usize::from(self.upper.is_some()) > 1
    }
}

/// A number by which the kernel knows a file.
#[derive(Debug)]
pub struct Node {
    id: NodeId,
    /// Tells nodes apart that had the same id one after the other.
    serial: u64,
    lookups: AtomicU64,
    inode: Arc<Inode>,
    /// How the kernel has it open; held while one more open is decided. See the locks in `tree/mod.rs`.
    pub opens: Mutex<Opens>,
}

/// How the kernel has a node open now: through its page cache, or straight on one backing file.
#[derive(Debug, Default)]
pub struct Opens {
    /// Handles that read and write through the kernel's cache.
    pub cached: usize,
    /// The backing file that all other handles share.
    pub backing: Option<Backing>,
}

/// A file that the kernel reads and writes by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backing {
    /// Its number, as the transport knows it.
    pub number: u64,
    /// Device and inode.
    pub file: FileId,
    /// How many handles use it.
    pub handles: usize,
}

/// Whether a file is known to have no set-id bits and no capability, so that not every write need look.
#[derive(Debug, Default)]
pub struct Privileges {
    /// How often they may have been given.
    given: AtomicU64,
    /// One more than `given` was when they were last taken.
    taken_at: AtomicU64,
}

impl Privileges {
    /// Is it known that there are none?
    pub fn are_gone(&self) -> bool {
        self.taken_at.load(Ordering::Acquire) == self.given.load(Ordering::Acquire) + 1
    }

    /// They may have been given just now.
    pub fn give(&self) {
        self.given.fetch_add(1, Ordering::AcqRel);
    }

    /// Takes them by `take`; only if that succeeds, and none were given meanwhile, they are known to be gone.
    pub fn take(&self, take: impl FnOnce() -> Result<(), FsError>) -> Result<(), FsError> {
        let given = self.given.load(Ordering::Acquire);
        take()?;
        self.taken_at.store(given + 1, Ordering::Release);
        Ok(())
    }
}

/// A file that the kernel knows.
#[derive(Debug)]
pub struct Inode {
    ino: u64,
    kind: Kind,
    branch: Arc<Branch>,
    /// It may be mapped and written without a word to us: it was opened so that the kernel can do that by itself.
    pub is_mappable: AtomicBool,
    /// What a write would have to take away.
    pub privileges: Privileges,
    /// See the locks in `tree/mod.rs`.
    pub state: RwLock<State>,
    /// Held while the node is copied up.
    pub copy_up: Mutex<()>,
    /// Held while names in this directory change.
    pub names: Mutex<()>,
    /// Roots of branches mounted at names in this directory.
    pub mounts: RwLock<BTreeMap<NameBuf, Arc<Node>>>,
}

impl Deref for Node {
    type Target = Inode;

    fn deref(&self) -> &Inode {
        &self.inode
    }
}

impl Node {
    /// The number by which the kernel knows it.
    pub fn id(&self) -> NodeId {
        self.id
    }

    fn value(&self) -> NodeValue {
        (self.id.0, self.serial)
    }

    /// The file.
    pub fn inode(&self) -> &Arc<Inode> {
        &self.inode
    }

    /// Do look-ups of the file lead to this node?
    pub fn is_home(&self) -> bool {
        read(&self.state).homes.last() == Some(&self.value())
    }

    /// Does the kernel know it?
    pub fn is_known(&self) -> bool {
        self.lookups.load(Ordering::Relaxed) > 0
    }

    /// One more look-up is counted; the caller holds the node, so it is in the table or of no table's concern.
    pub fn add_lookup(&self) {
        self.lookups.fetch_add(1, Ordering::Relaxed);
    }

    /// Keeps it in the table for ever: roots and mount points.
    pub(super) fn pin(&self) {
        self.lookups.fetch_add(PINNED, Ordering::Relaxed);
    }

    fn is_pinned(&self) -> bool {
        self.lookups.load(Ordering::Relaxed) >= PINNED
    }
}

/// Look-ups that nobody takes back.
const PINNED: u64 = 1 << 40;

impl Inode {
    /// Does the kernel know it by more than one number?
    pub fn has_many_nodes(&self) -> bool {
        read(&self.state).homes.len() > 1
    }

    /// The inode number to show.
    pub fn ino(&self) -> u64 {
        self.ino
    }

    /// Its kind.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Its branch.
    pub fn branch(&self) -> &Arc<Branch> {
        &self.branch
    }

    /// The root of the branch mounted at `name` in this directory.
    pub fn mounted(&self, name: Name<'_>) -> Option<Arc<Node>> {
        let mounts = read(&self.mounts);
        if mounts.is_empty() { None } else { mounts.get(&name.to_buf()).cloned() }
    }

    /// Has it lost its last name?
    pub fn is_removed(&self) -> bool {
        read(&self.state).is_removed
    }

    /// The name it has lost.
    pub fn lose_name(&self, parent: &Arc<Node>, name: Name<'_>) {
        let mut state = write(&self.state);
        state.links.retain(|(p, n)| !(Arc::ptr_eq(p, parent) && n.as_name() == name));
    }

    /// Has it this name?
    pub fn has_name(&self, parent: &Arc<Node>, name: Name<'_>) -> bool {
        read(&self.state).links.iter().any(|(p, n)| Arc::ptr_eq(p, parent) && n.as_name() == name)
    }

    /// A name it has.
    pub fn gain_name(&self, parent: &Arc<Node>, name: Name<'_>) {
        let mut state = write(&self.state);
        if !state.links.iter().any(|(p, n)| Arc::ptr_eq(p, parent) && n.as_name() == name) {
            // A parent that the kernel had forgotten has come back as another node of the same file.
            state.links.retain(|(p, n)| !(p.ino() == parent.ino() && n.as_name() == name));
            // In a shared branch names may go without our knowledge: the old ones are not kept for ever.
            if self.branch.is_shared() && state.links.len() >= 4 {
                state.links.remove(0);
            }
            state.links.push((Arc::clone(parent), name.to_buf()));
        }
        state.is_removed = false;
    }
}

impl Drop for Inode {
    /// Chains of parents are as long as paths are deep: they are unwound in a loop, not by recursion.
    fn drop(&mut self) {
        let mut todo = std::mem::take(&mut write(&self.state).links);
        while let Some((parent, _)) = todo.pop() {
            if let Some(inode) = Arc::into_inner(parent).and_then(|parent| Arc::into_inner(parent.inode)) {
                todo.append(&mut write(&inode.state).links);
            }
        }
    }
}

/// The table of nodes.
#[derive(Debug, Default)]
pub struct NodeTable {
    nodes: DashMap<u64, Arc<Node>>,
    /// Key to id and serial.
    keys: DashMap<Key, NodeValue>,
    next_reserved: AtomicU64,
    next_serial: AtomicU64,
}

impl NodeTable {
    /// The node of a number.
    pub fn get(&self, id: NodeId) -> Option<Arc<Node>> {
        self.nodes.get(&id.0).map(|node| Arc::clone(&node))
    }

    /// How many nodes are known.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Is the table empty?
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// The node of the root of the first branch.
    pub(super) fn insert_root(&self, branch: &Arc<Branch>) -> Result<Arc<Node>, FsError> {
        let sources = Sources::of_root(branch)?;
        let key = sources.key(branch).ok_or(FsError::Invalid)?;
        let number = sources.number(branch)?;
        let node = self.new_node(NodeId::ROOT, number, branch, sources);
        node.pin();
        write(&node.state).keys.push(key);
        self.nodes.insert(NodeId::ROOT.0, Arc::clone(&node));
        self.keys.insert(key, node.value());
        Ok(node)
    }

    /// The node of the root of a mounted branch.
    pub(super) fn insert_mount(&self, branch: &Arc<Branch>) -> Result<Arc<Node>, FsError> {
        let node = self.find_or_insert(branch, Sources::of_root(branch)?)?;
        node.pin();
        Ok(node)
    }

    /// The node of what was found, known or new, with one more look-up counted.
    pub(super) fn find_or_insert(&self, branch: &Arc<Branch>, sources: Sources) -> Result<Arc<Node>, FsError> {
        let key = sources.key(branch).ok_or(FsError::NotFound)?;
        if let Some(node) = self.count_lookup(key, sources.kind()) {
            return Ok(node);
        }
        let number = sources.number(branch)?;
        let kind = sources.kind();
        let node = self.insert_new(number, branch, sources);
        write(&node.state).keys.push(key);
        // Two look-ups may have come here at once: the first one to enter the key wins.
        let is_first = match self.keys.entry(key) {
            Slot::Vacant(slot) => {
                slot.insert(node.value());
                true
            }
            Slot::Occupied(_) => false,
        };
        if !is_first {
            if let Some(winner) = self.count_lookup(key, kind) {
                self.nodes.remove(&node.id.0);
                return Ok(winner);
            }
            // The other is gone, or of another kind: a number of the host was used again.
            self.keys.insert(key, node.value());
        }
        Ok(node)
    }

    /// The known node of a key, if it still is of that kind, with one more look-up counted.
    fn count_lookup(&self, key: Key, kind: Kind) -> Option<Arc<Node>> {
        let (id, serial) = self.peek(key)?.value();
        let node = {
            let node = self.nodes.get(&id)?;
            if node.serial != serial {
                return None;
            }
            // Under the shard's lock, so that `forget` cannot remove it in between.
            node.lookups.fetch_add(1, Ordering::Relaxed);
            Arc::clone(&node)
        };
        if node.kind != kind || node.is_removed() {
            self.forget(NodeId(id), 1);
            return None;
        }
        Some(node)
    }

    /// The known node of a key; no look-up is counted. A key may still name a node that the file had before it was
    /// re-homed.
    pub fn peek(&self, key: Key) -> Option<Arc<Node>> {
        let value = *self.keys.get(&key)?;
        let known = self.with_value(value)?;
        let home = read(&known.state).homes.last().copied()?;
        if home == known.value() { Some(known) } else { self.with_value(home) }
    }

    fn with_value(&self, (id, serial): NodeValue) -> Option<Arc<Node>> {
        self.get(NodeId(id)).filter(|node| node.serial == serial)
    }

    fn insert_new(&self, number: u64, branch: &Arc<Branch>, sources: Sources) -> Arc<Node> {
        let node = match self.nodes.entry(number) {
            Slot::Vacant(slot) => {
                let node = self.new_node(NodeId(number), number, branch, sources);
                node.lookups.store(1, Ordering::Relaxed);
                slot.insert(Arc::clone(&node));
                return node;
            }
            Slot::Occupied(_) => {
                // The number is still held by a file that the kernel has not forgotten.
                self.new_node(self.next_reserved(), number, branch, sources)
            }
        };
        node.lookups.store(1, Ordering::Relaxed);
        self.nodes.insert(node.id.0, Arc::clone(&node));
        node
    }

    fn next_reserved(&self) -> NodeId {
        NodeId(RESERVED | self.next_reserved.fetch_add(1, Ordering::Relaxed))
    }

    /// Gives the file of `node` another number, to which look-ups lead from now on; `node` stays for those who hold it.
    /// Nothing happens if they lead elsewhere already. `Stale` for the root of a branch: its number stands for a place.
    ///
    /// The caller holds `node.opens`, so one of several openers does it.
    pub fn rehome(&self, node: &Arc<Node>) -> Result<(), FsError> {
        if node.is_pinned() {
            return Err(FsError::Stale);
        }
        let new = Arc::new(Node {
            id: self.next_reserved(),
            serial: self.next_serial.fetch_add(1, Ordering::Relaxed),
            lookups: AtomicU64::new(0),
            inode: Arc::clone(&node.inode),
            opens: Mutex::default(),
        });
        self.nodes.insert(new.id.0, Arc::clone(&new));
        let keys = {
            let mut state = write(&node.state);
            if state.homes.last() != Some(&node.value()) {
                drop(state);
                self.nodes.remove(&new.id.0);
                return Ok(());
            }
            state.homes.push(new.value());
            state.keys.clone()
        };
        self.redirect_keys(&keys, node.value(), new.value());
        Ok(())
    }

    fn redirect_keys(&self, keys: &[Key], from: NodeValue, to: NodeValue) {
        for key in keys {
            self.keys.alter(key, |_, value| if value == from { to } else { value });
        }
    }

    /// The file is no longer found there.
    pub(super) fn remove_key(&self, inode: &Inode, id: FileId) {
        let key = inode.branch.upper_key(id);
        let homes = {
            let mut state = write(&inode.state);
            state.keys.retain(|known| *known != key);
            state.homes.clone()
        };
        self.keys.remove_if(&key, |_, value| homes.contains(value));
    }

    /// The file is now also found under where it lies in the upper.
    pub(super) fn add_key(&self, inode: &Inode, id: FileId) {
        let key = inode.branch.upper_key(id);
        let home = {
            let mut state = write(&inode.state);
            if !state.keys.contains(&key) {
                state.keys.push(key);
            }
            state.homes.last().copied()
        };
        if let Some(home) = home {
            self.keys.insert(key, home);
        }
    }

    /// The file has lost its last name: what is born under the same key is another file.
    pub fn release_keys(&self, inode: &Inode) {
        let (keys, homes) = {
            let mut state = write(&inode.state);
            (std::mem::take(&mut state.keys), state.homes.clone())
        };
        for key in keys {
            self.keys.remove_if(&key, |_, value| homes.contains(value));
        }
    }

    /// The kernel has forgotten `count` look-ups.
    pub fn forget(&self, id: NodeId, count: u64) {
        let Some(node) = self.get(id) else { return };
        let before = node.lookups.fetch_sub(count, Ordering::Relaxed);
        if before < count {
            log::warn!("the kernel forgot node {} more often than it looked it up", id.0);
            node.lookups.store(0, Ordering::Relaxed);
        }
        if before <= count {
            self.drop_unknown(&node);
        }
    }

    /// Drops a node that the kernel no longer knows. Where look-ups lead they go on leading as long as the kernel knows
    /// the file by any number: such a node goes with the last of its predecessors.
    fn drop_unknown(&self, node: &Arc<Node>) {
        let homes = read(&node.state).homes.clone();
        let Some(home) = homes.last().copied() else { return };
        if home == node.value() && homes.len() > 1 {
            return;
        }
        // Before it goes, so that nobody finds a key without a node.
        let keys = read(&node.state).keys.clone();
        self.redirect_keys(&keys, node.value(), home);
        if !self.remove_unknown(node.value()) {
            return;
        }
        let rest = {
            let mut state = write(&node.state);
            state.homes.retain(|known| *known != node.value());
            state.homes.clone()
        };
        if let [home] = rest.as_slice()
            && self.remove_unknown(*home)
        {
            write(&node.state).homes.clear();
        } else if !rest.is_empty() {
            return;
        }
        for key in keys {
            self.keys.remove_if(&key, |_, value| homes.contains(value));
        }
    }

    fn remove_unknown(&self, (id, serial): NodeValue) -> bool {
        self.nodes.remove_if(&id, |_, node| node.serial == serial && !node.is_known()).is_some()
    }

    fn new_node(&self, id: NodeId, ino: u64, branch: &Arc<Branch>, sources: Sources) -> Arc<Node> {
        let kind = sources.kind();
        let serial = self.next_serial.fetch_add(1, Ordering::Relaxed);
        let state = State { homes: vec![(id.0, serial)], ..sources.into_state() };
        let inode = Arc::new(Inode {
            ino,
            kind,
            branch: Arc::clone(branch),
            is_mappable: AtomicBool::new(false),
            privileges: Privileges::default(),
            state: RwLock::new(state),
            copy_up: Mutex::new(()),
            names: Mutex::new(()),
            mounts: RwLock::default(),
        });
        Arc::new(Node { id, serial, lookups: AtomicU64::new(0), inode, opens: Mutex::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn privileges_are_gone_only_when_they_were_taken_and_none_given_since() {
        let privileges = Privileges::default();
        assert!(!privileges.are_gone());
        assert_eq!(privileges.take(|| Err(FsError::NoSpace)), Err(FsError::NoSpace));
        assert!(!privileges.are_gone(), "what failed has taken nothing");
        privileges.take(|| Ok(())).unwrap();
        assert!(privileges.are_gone());
        privileges.give();
        assert!(!privileges.are_gone());
        let give = || {
            privileges.give();
            Ok(())
        };
        privileges.take(give).unwrap();
        assert!(!privileges.are_gone(), "given while they were taken");
    }
}
