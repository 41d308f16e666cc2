// SPDX-License-Identifier: MIT OR Apache-2.0
//! Open files. A handle carries nothing that could not be opened again: the node, and how it was opened.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

use dashmap::DashMap;

use crate::layer::Body;
use crate::model::FsError;
use crate::model::ids::HandleId;
use crate::model::sync::{read, write};
use crate::tree::Node;

/// Where the content of an open file is read and written.
#[derive(Clone, Debug)]
pub enum Content {
    /// A file of the upper, opened for writing too.
    Writable(Arc<OwnedFd>),
    /// A file of the upper, opened for reading.
    Readable(Arc<OwnedFd>),
    /// A file of a layer: left for the upper's once the node is copied up.
    Layer(Arc<Body>),
}

impl Content {
    /// The host's file that holds the content; `None` where no single file does.
    pub fn file(&self) -> Option<&OwnedFd> {
        match self {
            Content::Writable(file) | Content::Readable(file) => Some(file),
            Content::Layer(body) => match &**body {
                Body::File(file) => Some(file),
                Body::Bytes(_) => None,
            },
        }
    }
}

/// Who reads and writes the content of an open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Io {
    /// We do, for the kernel's cache.
    Ours,
    /// The kernel, straight on its backing file.
    Passed,
}

/// An open file.
#[derive(Debug)]
pub struct Handle {
    node: Arc<Node>,
    content: RwLock<Content>,
    io: Io,
}

impl Handle {
    /// A handle of `node` on `content`.
    pub fn new(node: Arc<Node>, content: Content, io: Io) -> Self {
        Handle { node, content: RwLock::new(content), io }
    }

    /// Who reads and writes it.
    pub fn io(&self) -> Io {
        self.io
    }

    /// The file.
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Where it is read and written now.
    pub fn content(&self) -> Content {
        read(&self.content).clone()
    }

    /// It is read and written here from now on.
    pub fn switch(&self, content: Content) {
        *write(&self.content) = content;
    }

    /// The descriptor, if it was opened for writing.
    pub fn writable_file(&self) -> Option<Arc<OwnedFd>> {
        match self.content() {
            Content::Writable(file) => Some(file),
            Content::Readable(_) | Content::Layer(_) => None,
        }
    }
}

/// The open files of a mount.
#[derive(Debug, Default)]
pub struct HandleTable {
    handles: DashMap<u64, Arc<Handle>>,
    next: AtomicU64,
}

impl HandleTable {
    /// Enters an open file.
    pub fn insert(&self, handle: Handle) -> HandleId {
        let id = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        self.handles.insert(id, Arc::new(handle));
        HandleId(id)
    }

    /// The open file of a number. `BadHandle` for an unknown one.
    pub fn get(&self, id: HandleId) -> Result<Arc<Handle>, FsError> {
        self.handles.get(&id.0).map(|handle| Arc::clone(&handle)).ok_or(FsError::BadHandle)
    }

    /// A descriptor of the file of `node`, if it is open somewhere. Looks through all open files.
    pub fn find_file(&self, node: &Arc<Node>) -> Option<Arc<OwnedFd>> {
        self.of_node(node).iter().find_map(|handle| match handle.content() {
            Content::Writable(file) | Content::Readable(file) => Some(file),
            Content::Layer(_) => None,
        })
    }

    /// Is the file of `node` open for writing? Looks through all open files.
    pub fn is_written(&self, node: &Arc<Node>) -> bool {
        self.of_node(node).iter().any(|handle| handle.writable_file().is_some())
    }

    // Taken out first: no second lock while a guard of the table lives.
    fn of_node(&self, node: &Arc<Node>) -> Vec<Arc<Handle>> {
        let is_it = |handle: &Arc<Handle>| Arc::ptr_eq(handle.node().inode(), node.inode());
        self.handles.iter().filter(|handle| is_it(handle)).map(|handle| Arc::clone(&handle)).collect()
    }

    /// The file was closed.
    pub fn remove(&self, id: HandleId) -> Option<Arc<Handle>> {
        self.handles.remove(&id.0).map(|(_, handle)| handle)
    }

    /// How many files are open.
    pub fn len(&self) -> usize {
        self.handles.len()
    }

    /// Is none open?
    pub fn is_empty(&self) -> bool {
        self.handles.is_empty()
    }
}
