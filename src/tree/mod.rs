// SPDX-License-Identifier: MIT OR Apache-2.0
//! Floor 5: the merged tree: branches, nodes, resolution, copy-up.
//!
//! # Locks, in the order in which they may be taken
//! 1. copy-up lock of a node ([`Node::copy_up`]); a parent's is taken and released before its child's;
//! 2. rename lock of the tree ([`Tree::rename`]): rename writes, everything that resolves names reads;
//! 3. name lock of a directory ([`Node::names`]): changes of names in it, and publishing a copy-up into it;
//! 4. state of a node ([`Node::state`]) and the shards of the tables: no input or output, no second lock under them.
//!
//! Data is copied under (1) alone, so nobody but users of the same file waits for it; under (2) and (3) there are only
//! calls on names. Whoever needs copy-up does it before taking (2).

use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::model::ids::NodeId;
use crate::model::sync::{read, write};
use crate::model::{Attr, FsError, Kind, Name};
use crate::sys::{Dir, FileId, Place};

pub mod branch;
pub mod content;
pub mod copy_up;
pub mod ids;
pub mod list;
pub mod merge;
pub mod node;

pub use branch::{Base, Branch, BranchSpec};
pub use node::{Node, NodeTable, State, Whereabouts};

/// The merged tree of a mount.
#[derive(Debug)]
pub struct Tree {
    branches: Vec<Arc<Branch>>,
    nodes: NodeTable,
    root: Arc<Node>,
    rename: RwLock<()>,
}

/// Proof that names stay where they are while they are resolved: the rename lock is held, for reading or writing.
pub trait NamesHeld {}
impl NamesHeld for Resolving<'_> {}
impl NamesHeld for Renaming<'_> {}

/// Proof that names may be resolved: the rename lock is held for reading.
pub type Resolving<'a> = RwLockReadGuard<'a, ()>;
/// Proof that names may be moved: the rename lock is held for writing.
pub type Renaming<'a> = RwLockWriteGuard<'a, ()>;

impl Tree {
    /// A tree of one branch.
    pub fn new(root: BranchSpec) -> Result<Self, FsError> {
        let branch = Arc::new(Branch::open(0, root)?);
        let nodes = NodeTable::default();
        let root = nodes.insert_root(&branch)?;
        Ok(Tree { branches: vec![branch], nodes, root, rename: RwLock::new(()) })
    }

    /// Mounts a branch at `name` in the directory `parent`; the name is found at the branch's root from now on.
    pub fn mount(&mut self, parent: &Arc<Node>, name: Name<'_>, spec: BranchSpec) -> Result<Arc<Node>, FsError> {
        let branch = Arc::new(Branch::open(self.branches.len() as u32, spec)?);
        let root = self.nodes.insert_mount(&branch)?;
        parent.pin();
        write(&parent.mounts).insert(name.to_buf(), Arc::clone(&root));
        self.branches.push(branch);
        Ok(root)
    }

    /// The root.
    pub fn root(&self) -> &Arc<Node> {
        &self.root
    }

    /// The table of nodes.
    pub fn nodes(&self) -> &NodeTable {
        &self.nodes
    }

    /// All branches, the root's first.
    pub fn branches(&self) -> &[Arc<Branch>] {
        &self.branches
    }

    /// Takes the rename lock for resolving.
    pub fn resolving(&self) -> Resolving<'_> {
        read(&self.rename)
    }

    /// Takes the rename lock for renaming.
    pub fn renaming(&self) -> Renaming<'_> {
        write(&self.rename)
    }

    /// The node the kernel means. `Stale` for a number it should not know.
    pub fn node(&self, id: NodeId) -> Result<Arc<Node>, FsError> {
        self.nodes.get(id).ok_or(FsError::Stale)
    }

    /// Attributes of a node as stored, with the inode number and link count to show.
    pub fn attr(&self, node: &Node) -> Result<Attr, FsError> {
        let branch = node.branch();
        let (upper, lower, content) = {
            let state = read(&node.state);
            (state.upper.clone(), state.face().cloned(), state.content.clone())
        };
        let is_in_upper = upper.is_some();
        let mut attr = match (upper, lower) {
            (Some(place), _) => branch.attr_in_upper(&place)?,
            (None, Some(lower)) => branch.attr_in_layer(&lower)?,
            (None, None) => return Err(FsError::Stale),
        };
        if is_in_upper && let Some(Whereabouts::Below(_)) = content {
            // The space is taken in the layer.
            attr.blocks = attr.blocks.max(attr.size.div_ceil(512));
        }
        attr.ino = node.ino();
        if node.kind() == Kind::Dir {
            attr.nlink = if read(&node.state).is_merged() { 1 } else { attr.nlink };
        }
        Ok(attr)
    }

    /// The node now lies at `place` in the upper, an object of identity `id`.
    pub(crate) fn moved_in_upper(&self, node: &Node, place: Place, id: FileId) {
        {
            let mut state = write(&node.state);
            state.upper = Some(place);
            state.upper_id = Some(id);
        }
        self.nodes.add_key(node, id);
    }

    /// Does the node's name still lead to it? In a shared branch others may have removed it, or put another file in its
    /// place: then nothing must be read from or written to what stands there.
    pub fn is_at_its_name(&self, node: &Node) -> Result<bool, FsError> {
        if !node.branch().is_shared() {
            return Ok(true);
        }
        let (place, id) = {
            let state = read(&node.state);
            (state.upper.clone(), state.upper_id)
        };
        match place {
            Some(place @ Place::At(..)) => match place.stat() {
                Ok(stat) => Ok(id == Some(FileId::of(&stat))),
                Err(FsError::NotFound | FsError::Stale) => Ok(false),
                Err(error) => Err(error),
            },
            _ => Ok(true),
        }
    }

    /// Where a node lies in the upper, if it does.
    pub fn upper_place(node: &Node) -> Option<Place> {
        read(&node.state).upper.clone()
    }

    /// The directory of the upper that a node is, if it is one.
    pub fn upper_dir(node: &Node) -> Option<Arc<Dir>> {
        match &read(&node.state).upper {
            Some(Place::Dir(dir)) => Some(Arc::clone(dir)),
            _ => None,
        }
    }
}
