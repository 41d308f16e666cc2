// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the kernel knows of the mirrored tree: nodes by inode number, open files by handle, and silly names.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use fuser::Errno;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, Stat};

/// The result of a request.
pub type Answer<T> = Result<T, Errno>;

/// The errno of a system call's error.
pub fn errno(error: rustix::io::Errno) -> Errno {
    Errno::from_i32(error.raw_os_error())
}

/// A file of the backing tree, held by a descriptor: its number is not used again while the kernel knows it.
pub struct Node {
    /// An `O_PATH` descriptor.
    pub fd: Arc<OwnedFd>,
    lookups: u64,
    opens: u64,
    silly: Option<Silly>,
}

struct Silly {
    parent: Arc<OwnedFd>,
    name: OsString,
}

/// All that is known.
pub struct Nodes {
    root: u64,
    nodes: HashMap<u64, Node>,
    handles: HashMap<u64, (Arc<OwnedFd>, u64)>,
    next: u64,
}

/// The path that leads to what a descriptor holds.
pub fn magic(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

impl Nodes {
    /// The tree below a directory.
    pub fn new(root: OwnedFd) -> rustix::io::Result<Nodes> {
        let number = rustix::fs::fstat(&root)?.st_ino;
        let root = Node { fd: Arc::new(root), lookups: 1, opens: 0, silly: None };
        Ok(Nodes { root: number, nodes: HashMap::from([(number, root)]), handles: HashMap::new(), next: 1 })
    }

    fn key(&self, id: u64) -> u64 {
        if id == 1 { self.root } else { id }
    }

    /// The descriptor of a node.
    pub fn fd(&self, id: u64) -> Answer<Arc<OwnedFd>> {
        self.nodes.get(&self.key(id)).map(|node| Arc::clone(&node.fd)).ok_or(Errno::ESTALE)
    }

    /// Looks a name up: the kernel knows the node from now on.
    pub fn look_up(&mut self, parent: u64, name: &OsStr) -> Answer<Stat> {
        let fd = rustix::fs::openat(
            &*self.fd(parent)?,
            name,
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        );
        let fd = fd.map_err(errno)?;
        let stat = rustix::fs::fstat(&fd).map_err(errno)?;
        let node = (self.nodes.entry(stat.st_ino)).or_insert_with(|| Node {
            fd: Arc::new(fd),
            lookups: 0,
            opens: 0,
            silly: None,
        });
        node.lookups += 1;
        Ok(stat)
    }

    /// The kernel has forgotten look-ups.
    pub fn forget(&mut self, id: u64, count: u64) {
        let key = self.key(id);
        let Some(node) = self.nodes.get_mut(&key) else { return };
        node.lookups = node.lookups.saturating_sub(count);
        if node.lookups == 0 && node.opens == 0 && key != self.root {
            self.nodes.remove(&key);
        }
    }

    /// A handle of an open file or directory of a node.
    pub fn open(&mut self, id: u64, fd: OwnedFd) -> u64 {
        let key = self.key(id);
        if let Some(node) = self.nodes.get_mut(&key) {
            node.opens += 1;
        }
        self.next += 1;
        self.handles.insert(self.next, (Arc::new(fd), key));
        self.next
    }

    /// The open file of a handle.
    pub fn handle(&self, handle: u64) -> Answer<Arc<OwnedFd>> {
        self.handles.get(&handle).map(|(fd, _)| Arc::clone(fd)).ok_or(Errno::EBADF)
    }

    /// The last close of a handle: a silly name goes with the last one of its file.
    pub fn close(&mut self, handle: u64) -> Answer<()> {
        let Some((_, key)) = self.handles.remove(&handle) else { return Err(Errno::EBADF) };
        let Some(node) = self.nodes.get_mut(&key) else { return Ok(()) };
        node.opens = node.opens.saturating_sub(1);
        if node.opens > 0 {
            return Ok(());
        }
        let silly = node.silly.take();
        if node.lookups == 0 {
            self.nodes.remove(&key);
        }
        silly.map_or(Ok(()), |it| rustix::fs::unlinkat(&*it.parent, &it.name, AtFlags::empty()).map_err(errno))
    }

    /// Before a name is removed or replaced: an open file behind it gets a silly name. Says whether it got one.
    pub fn keep_open(&mut self, parent: u64, name: &OsStr) -> Answer<bool> {
        let dir = self.fd(parent)?;
        let Ok(stat) = rustix::fs::statat(&*dir, name, AtFlags::SYMLINK_NOFOLLOW) else { return Ok(false) };
        self.next += 1;
        let is_dir = stat.st_mode & 0o170_000 == 0o040_000;
        let Some(node) = self.nodes.get_mut(&stat.st_ino).filter(|node| node.opens > 0 && !is_dir) else {
            return Ok(false);
        };
        if node.silly.is_some() {
            // The client keeps the name for itself.
            return if name.as_encoded_bytes().starts_with(b".nfs") { Err(Errno::EBUSY) } else { Ok(false) };
        }
        let silly = OsString::from(format!(".nfs{:016x}{:08x}", stat.st_ino, self.next));
        rustix::fs::renameat(&*dir, name, &*dir, &silly).map_err(errno)?;
        node.silly = Some(Silly { parent: dir, name: silly });
        Ok(true)
    }

    /// Opens what a node is, with the rights of who asks.
    pub fn reopen(&self, id: u64, flags: OFlags) -> Answer<OwnedFd> {
        let fd = self.fd(id)?;
        rustix::fs::openat(CWD, magic(&fd), flags | OFlags::CLOEXEC, Mode::empty()).map_err(errno)
    }

    /// What a node is like.
    pub fn stat(&self, id: u64) -> Answer<Stat> {
        rustix::fs::fstat(self.fd(id)?.as_fd()).map_err(errno)
    }
}
