// SPDX-License-Identifier: MIT OR Apache-2.0
//! A layer in memory: for tests of merging, and a second opinion for the contract suite.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::{Birth, Body, Child, Entry, Found, Layer, Listed, ListedKind};
use crate::model::cookie::NameHash;
use crate::model::name::components;
use crate::model::{Attr, Cookie, FsError, Kind, Name, NameBuf, Time};

/// What a node holds.
#[derive(Debug)]
enum Content {
    Dir { children: BTreeMap<(NameHash, NameBuf), Option<u32>>, is_opaque: bool },
    File(Arc<[u8]>),
    Link(Vec<u8>),
}

#[derive(Debug)]
struct Node {
    attr: Attr,
    content: Content,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// A layer in memory. Paths given to its builders are made of names and `/`; parents are made as needed.
#[derive(Debug)]
pub struct MemLayer {
    nodes: Vec<Node>,
}

impl Default for MemLayer {
    fn default() -> Self {
        MemLayer { nodes: vec![Node::new(0, Kind::Dir, 0o755, Content::empty_dir())] }
    }
}

impl Content {
    fn empty_dir() -> Self {
        Content::Dir { children: BTreeMap::new(), is_opaque: false }
    }
}

impl Node {
    fn new(number: u64, kind: Kind, perm: u32, content: Content) -> Self {
        let size = match &content {
            Content::Dir { .. } => 0,
            Content::File(bytes) => bytes.len() as u64,
            Content::Link(target) => target.len() as u64,
        };
        let time = Time { secs: 1_000_000_000, nanos: 0 };
        let attr = Attr {
            ino: number,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size,
            blocks: size.div_ceil(512),
            blksize: 4096,
            atime: time,
            mtime: time,
            ctime: time,
        };
        Node { attr, content, xattrs: BTreeMap::new() }
    }
}

impl MemLayer {
    fn node(&self, entry: &Entry) -> Result<&Node, FsError> {
        let Entry::Record(number) = entry else { return Err(FsError::Stale) };
        self.nodes.get(*number as usize).ok_or(FsError::Stale)
    }

    fn insert(&mut self, path: &str, node: Option<Node>) -> Result<&mut Self, FsError> {
        let names = components(path.as_bytes())?;
        let (last, parents) = names.split_last().ok_or(FsError::Invalid)?;
        let mut at = 0usize;
        for name in parents {
            at = match self.child_number(at, *name)? {
                Some(number) => number,
                None => self.attach(
                    at,
                    *name,
                    Some(Node::new(self.nodes.len() as u64, Kind::Dir, 0o755, Content::empty_dir())),
                )?,
            };
        }
        self.attach(at, *last, node)?;
        Ok(self)
    }

    fn child_number(&self, at: usize, name: Name<'_>) -> Result<Option<usize>, FsError> {
        match self.nodes.get(at).map(|node| &node.content) {
            Some(Content::Dir { children, .. }) => {
                Ok(children.get(&(NameHash::of(name), name.to_buf())).copied().flatten().map(|n| n as usize))
            }
            _ => Err(FsError::NotDir),
        }
    }

    fn attach(&mut self, at: usize, name: Name<'_>, node: Option<Node>) -> Result<usize, FsError> {
        let number = self.nodes.len();
        let Some(Content::Dir { children, .. }) = self.nodes.get_mut(at).map(|node| &mut node.content) else {
            return Err(FsError::NotDir);
        };
        children.insert((NameHash::of(name), name.to_buf()), node.as_ref().map(|_| number as u32));
        if let Some(node) = node {
            self.nodes.push(node);
        }
        Ok(number)
    }

    /// Adds a directory.
    pub fn dir(&mut self, path: &str, perm: u32) -> Result<&mut Self, FsError> {
        self.insert(path, Some(Node::new(self.nodes.len() as u64, Kind::Dir, perm, Content::empty_dir())))
    }

    /// Adds an opaque directory.
    pub fn opaque_dir(&mut self, path: &str) -> Result<&mut Self, FsError> {
        let content = Content::Dir { children: BTreeMap::new(), is_opaque: true };
        self.insert(path, Some(Node::new(self.nodes.len() as u64, Kind::Dir, 0o755, content)))
    }

    /// Adds a file.
    pub fn file(&mut self, path: &str, content: &[u8]) -> Result<&mut Self, FsError> {
        self.insert(path, Some(Node::new(self.nodes.len() as u64, Kind::File, 0o644, Content::File(content.into()))))
    }

    /// Adds a symlink.
    pub fn link(&mut self, path: &str, target: &str) -> Result<&mut Self, FsError> {
        let content = Content::Link(target.as_bytes().to_vec());
        self.insert(path, Some(Node::new(self.nodes.len() as u64, Kind::Symlink, 0o777, content)))
    }

    /// Adds a whiteout.
    pub fn whiteout(&mut self, path: &str) -> Result<&mut Self, FsError> {
        self.insert(path, None)
    }
}

impl Layer for MemLayer {
    fn label(&self) -> String {
        "memory".to_owned()
    }

    fn root(&self) -> Result<Found, FsError> {
        let entry = Entry::Record(0);
        Ok(Found { attr: self.node(&entry)?.attr, birth: Birth { dev: 0, ino: 0 }, entry })
    }

    fn child(&self, dir: &Entry, name: Name<'_>) -> Result<Child, FsError> {
        let Content::Dir { children, .. } = &self.node(dir)?.content else { return Err(FsError::NotDir) };
        Ok(match children.get(&(NameHash::of(name), name.to_buf())) {
            None => Child::Absent,
            Some(None) => Child::Whiteout,
            Some(Some(number)) => {
                let entry = Entry::Record(*number);
                let attr = self.node(&entry)?.attr;
                Child::Found(Found { birth: Birth { dev: 0, ino: u64::from(*number) }, attr, entry })
            }
        })
    }

    fn is_opaque(&self, dir: &Entry) -> Result<bool, FsError> {
        Ok(matches!(&self.node(dir)?.content, Content::Dir { is_opaque: true, .. }))
    }

    fn list(
        &self,
        dir: &Entry,
        after: Cookie,
        sink: &mut dyn FnMut(Listed<'_>) -> ControlFlow<()>,
    ) -> Result<(), FsError> {
        let Content::Dir { children, .. } = &self.node(dir)?.content else { return Err(FsError::NotDir) };
        let (mut last, mut ordinal) = (None, 0);
        for ((hash, name), number) in children {
            ordinal = if last == Some(*hash) { ordinal + 1 } else { 0 };
            last = Some(*hash);
            let cookie = Cookie::new(*hash, ordinal);
            if cookie <= after {
                continue;
            }
            let what = match number {
                None => ListedKind::Whiteout,
                Some(number) => ListedKind::Entry(self.node(&Entry::Record(*number))?.attr.kind),
            };
            if sink(Listed { name: name.as_name(), cookie, what }).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn attr(&self, entry: &Entry) -> Result<Attr, FsError> {
        Ok(self.node(entry)?.attr)
    }

    fn open(&self, entry: &Entry) -> Result<Body, FsError> {
        match &self.node(entry)?.content {
            Content::File(bytes) => Ok(Body::Bytes(Arc::clone(bytes))),
            Content::Dir { .. } | Content::Link(_) => Err(FsError::Invalid),
        }
    }

    fn read_link(&self, entry: &Entry) -> Result<Vec<u8>, FsError> {
        match &self.node(entry)?.content {
            Content::Link(target) => Ok(target.clone()),
            Content::Dir { .. } | Content::File(_) => Err(FsError::Invalid),
        }
    }

    fn xattr(&self, entry: &Entry, name: &[u8]) -> Result<Option<Vec<u8>>, FsError> {
        Ok(self.node(entry)?.xattrs.get(name).cloned())
    }

    fn xattr_names(&self, entry: &Entry) -> Result<Vec<Vec<u8>>, FsError> {
        Ok(self.node(entry)?.xattrs.keys().cloned().collect())
    }
}
