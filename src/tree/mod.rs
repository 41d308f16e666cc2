// SPDX-License-Identifier: MIT OR Apache-2.0
//! Floor 5: the merged tree: branches, nodes, resolution, copy-up.
//!
//! # Locks, in the order in which they may be taken
//! 1. copy-up lock of a node ([`Inode::copy_up`]); a parent's is taken and released before its child's;
//! 2. how the kernel has a node open ([`Node::opens`]): its file is opened under it, nothing is copied;
//! 3. rename lock of the tree ([`Tree::rename`]): rename writes, everything that resolves names reads;
//! 4. name lock of a directory ([`Inode::names`]): changes of names in it, and publishing a copy-up into it;
//! 5. state of a node ([`Inode::state`]) and the shards of the tables: no input or output, no second lock under them.
//!
//! Data is copied under (1) alone, so nobody but users of the same file waits for it, and they only on threads that may
//! (`patience.rs`); under (3) and (4) there are only calls on names. Whoever needs copy-up does it before taking (2).

use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::model::ids::NodeId;
use crate::model::sync::{read, write};
use crate::model::{Attr, FsError, Kind, Name};
use crate::sys::{Dir, FileId, Place};

pub mod below;
pub mod branch;
pub mod content;
pub mod copy_up;
pub mod ids;
pub mod list;
pub mod merge;
pub mod node;
pub mod patience;

pub use branch::{Base, Branch, BranchSpec};
pub use node::{Inode, Node, NodeTable, State, Whereabouts};

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
        let (upper, id, lower, content) = {
            let state = read(&node.state);
            (state.upper.clone(), state.upper_id, state.face().cloned(), state.content.clone())
        };
        let is_in_upper = upper.is_some();
        let mut attr = match (upper, lower) {
            (Some(place), _) => match branch.attr_in_upper(&place) {
                Ok(attr) if id.is_none_or(|id| id.ino == attr.ino) => attr,
                // The name leads elsewhere by now.
                Ok(_) | Err(FsError::NotFound | FsError::Stale) => {
                    branch.attr_in_upper(&self.hold(node)?.ok_or(FsError::Stale)?)?
                }
                Err(error) => return Err(error),
            },
            (None, Some(lower)) => branch.attr_in_layer(&lower)?,
            (None, None) => return Err(FsError::Stale),
        };
        if is_in_upper && let Some(Whereabouts::Below(_)) = content {
            // The space is taken in the layer.
            attr.blocks = attr.blocks.max(attr.size.div_ceil(512));
        }
        attr.ino = node.ino();
        let state = read(&node.state);
        if state.is_removed {
            attr.nlink = 0;
        } else if node.kind() == Kind::Dir && state.is_merged() {
            attr.nlink = 1;
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

    /// A place that leads to the node whatever happens to names; `None` if it does not lie in the upper. Names change
    /// while they are used: what a name leads to is compared with what the node is, and the name is read again.
    ///
    /// `Stale` when others have removed or replaced it (in a shared branch). The caller holds no lock of the tree but
    /// copy-up's.
    pub fn hold(&self, node: &Node) -> Result<Option<Place>, FsError> {
        for _ in 0..3 {
            let (place, id) = {
                let state = read(&node.state);
                (state.upper.clone(), state.upper_id)
            };
            let place = match place {
                None => return Ok(None),
                Some(place @ Place::At(..)) => place,
                Some(place) => return Ok(Some(place)),
            };
            match place.hold() {
                Ok(fd) if id == Some(FileId::of(&rustix::fs::fstat(&*fd)?)) => return Ok(Some(Place::Fd(fd))),
                Ok(_) | Err(FsError::NotFound | FsError::Stale) => {}
                Err(error) => return Err(error),
            }
            // Whoever is changing the name holds one of these until the node knows.
            let _resolving = self.resolving();
            if let Some((parent, _)) = copy_up::newest_link(node) {
                drop(crate::model::sync::lock(&parent.names));
            }
        }
        Err(FsError::Stale)
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
