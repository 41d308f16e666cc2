// SPDX-License-Identifier: MIT OR Apache-2.0
//! Building the filesystem of a mount: branches at their targets, outer ones first, missing mount points made.

use std::sync::Arc;

use super::lookup::{Follow, split};
use super::{Fs, FsSpec, MountAt};
use crate::model::attr::Kind;
use crate::model::{FsError, Name};
use crate::sys::proc;
use crate::tree::{Base, Node, Tree};
use crate::upper::ownership::Stat;

/// Why a filesystem could not be built; the message names the branch or the target.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A branch could not be opened.
    #[error("{label} cannot be mounted: {error}")]
    Branch {
        /// The branch.
        label: String,
        /// Why.
        error: FsError,
    },
    /// An upper lies where there are no attributes for its marks.
    #[error(
        "the filesystem of its upper has no extended attributes, which hold whiteouts and owners; put the upper or the \
         store elsewhere: `mlfs doctor DIR` tells what a directory can"
    )]
    NoAttributes,
    /// A mount point could not be found or made.
    #[error("mount point {target}: {error}")]
    Target {
        /// The target.
        target: String,
        /// Why.
        error: FsError,
    },
    /// A directory on a file, or a file on a directory.
    #[error("{label} cannot be mounted at {target}: {why}")]
    Kind {
        /// The branch.
        label: String,
        /// The target.
        target: String,
        /// "not a directory" or "is a directory".
        why: FsError,
    },
}

pub(super) fn build(spec: FsSpec) -> Result<Fs, BuildError> {
    let is_read_only = spec.root.is_read_only;
    let label = spec.root.label.clone();
    let tree = Tree::new(spec.root).map_err(|error| match error {
        FsError::Unsupported => BuildError::NoAttributes,
        error => BuildError::Branch { label, error },
    })?;
    let mut fs = Fs {
        tree,
        handles: super::handle::HandleTable::default(),
        contested: super::contested::ContestedNames::default(),
        uids: spec.uids,
        gids: spec.gids,
        stats: super::stats::Stats::default(),
    };
    let mut mounts = spec.mounts;
    // Outer mounts first: a target lies in what is mounted above it.
    mounts.sort_by_key(|mount| mount.target.split(|b| *b == b'/').filter(|part| !part.is_empty()).count());
    let mut sealed = Vec::new();
    for mount in mounts {
        let is_read_only = mount.branch.is_read_only;
        let root = fs.attach(mount)?;
        if is_read_only {
            sealed.push(root);
        }
    }
    // Mount points are made in read-only branches too, as engines do; from here on they refuse writes.
    for root in sealed {
        root.branch().seal();
    }
    if is_read_only {
        fs.tree.root().branch().seal();
    }
    Ok(fs)
}

impl Fs {
    fn attach(&mut self, mount: MountAt) -> Result<Arc<Node>, BuildError> {
        let target = String::from_utf8_lossy(&mount.target).into_owned();
        let wants = match &mount.branch.base {
            Base::Merge { .. } => Kind::Dir,
            Base::HostFile(_) => Kind::File,
        };
        let at_target = |error| BuildError::Target { target: target.clone(), error };
        let (parent, name) = self.mount_point(&mount.target, wants).map_err(at_target)?;
        let name = Name::new(&name).map_err(at_target)?;
        let covered = self.lookup(parent.id(), name).map_err(at_target)?;
        self.forget(covered.id, 1);
        let label = mount.branch.label.clone();
        match (wants, covered.attr.kind) {
            (Kind::Dir, Kind::Dir) => {}
            (Kind::Dir, _) => return Err(BuildError::Kind { label, target, why: FsError::NotDir }),
            (_, Kind::Dir) => return Err(BuildError::Kind { label, target, why: FsError::IsDir }),
            _ => {}
        }
        let mounted = self.tree.mount(&parent, name, mount.branch);
        // The tree has pinned the parent.
        self.forget(parent.id(), 1);
        mounted.map_err(|error| BuildError::Branch { label, error })
    }

    /// The directory and name of a mount point, everything missing made: directories, and at the end what `wants`
    /// says. A look-up of the directory is counted.
    fn mount_point(&self, target: &[u8], wants: Kind) -> Result<(Arc<Node>, Vec<u8>), FsError> {
        let mut path = self.canonical(target)?;
        let name = path.pop().ok_or(FsError::Invalid)?;
        let (mut parent, _) = self.walk(b"/", Follow::No)?;
        for part in path {
            let next = self.enter_or_make(&parent, Name::new(&part)?, Kind::Dir);
            self.forget(parent.id(), 1);
            parent = next?;
        }
        match self.enter_or_make(&parent, Name::new(&name)?, wants) {
            Ok(node) => {
                self.forget(node.id(), 1);
                Ok((parent, name))
            }
            Err(error) => {
                self.forget(parent.id(), 1);
                Err(error)
            }
        }
    }

    fn enter_or_make(&self, parent: &Arc<Node>, name: Name<'_>, kind: Kind) -> Result<Arc<Node>, FsError> {
        let found = {
            let resolving = self.tree.resolving();
            self.tree.lookup(&resolving, parent, name)
        };
        match found {
            Err(FsError::NotFound) => {
                let stat = self.mount_point_stat(parent, kind);
                Ok(self.make_node(parent, name, &stat, None)?.node)
            }
            other => Ok(other?.0),
        }
    }

    /// Mount points belong to root, as engines make them; in a plain directory that we cannot give away, to us.
    fn mount_point_stat(&self, parent: &Node, kind: Kind) -> Stat {
        let is_plain = parent.branch().upper().is_some_and(crate::upper::Upper::is_plain);
        let (uid, gid) = if is_plain { (proc::euid(), proc::egid()) } else { (0, 0) };
        Stat { kind, perm: 0o755, uid, gid, rdev: 0 }
    }

    /// The components of a path with every symlink in it followed inside the root, the last one too; what does not
    /// exist stays as it is.
    pub fn canonical(&self, path: &[u8]) -> Result<Vec<Vec<u8>>, FsError> {
        let mut rest: Vec<Vec<u8>> = split(path);
        let mut done: Vec<Vec<u8>> = Vec::new();
        let mut links = 0;
        while let Some(part) = rest.pop() {
            if part == b".." {
                done.pop();
                continue;
            }
            done.push(part);
            let so_far = join(&done);
            let Ok(entry) = self.resolve(&so_far, Follow::No) else { continue };
            let target = if entry.attr.kind == Kind::Symlink { Some(self.read_link(entry.id)) } else { None };
            self.forget(entry.id, 1);
            let Some(target) = target.transpose()? else { continue };
            links += 1;
            if links > 40 {
                return Err(FsError::Host { errno: libc::ELOOP });
            }
            done.pop();
            if target.first() == Some(&b'/') {
                done.clear();
            }
            rest.extend(split(&target));
        }
        Ok(done)
    }
}

/// The path of these names from the root.
pub fn join(parts: &[Vec<u8>]) -> Vec<u8> {
    let mut path = Vec::new();
    for part in parts {
        path.push(b'/');
        path.extend_from_slice(part);
    }
    if path.is_empty() { b"/".to_vec() } else { path }
}
