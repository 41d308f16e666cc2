// SPDX-License-Identifier: MIT OR Apache-2.0
//! Errors of the store. Each names the path it is about; sources carry the host's reason.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::sys::lock::Kind;

/// Why an operation on the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The host refused a step.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was tried, as a verb: "read", "rename".
        what: &'static str,
        /// What it was tried on.
        path: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
    /// The store lies where we may not write.
    #[error("the store cannot be written at {} (choose another with --root)", path.display())]
    NotWritable {
        /// The file or directory that could not be written.
        path: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
    /// The store was opened for reading only.
    #[error("the store {} is used read-only", path.display())]
    OpenedReadOnly {
        /// The store.
        path: PathBuf,
    },
    /// The disk or the quota is full.
    #[error("no space left for the store at {} (free some, or choose another with --root)", path.display())]
    NoSpace {
        /// What was being written.
        path: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
    /// The store was written by a newer mlfs.
    #[error("the store {} has {what}, which this mlfs does not know; use a newer mlfs", path.display())]
    Newer {
        /// The store.
        path: PathBuf,
        /// The unknown version or feature.
        what: String,
    },
    /// The directory holds other things.
    #[error("{} is not empty and no mlfs store (it has \"{found}\")", path.display())]
    NotAStore {
        /// The directory.
        path: PathBuf,
        /// One name that is none of ours.
        found: String,
    },
    /// Stored data is damaged.
    #[error("{} is damaged: {what}", path.display())]
    Damaged {
        /// The damaged file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Another process holds the lock.
    #[error("{} is in use by another mlfs process", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// The filesystem refuses locks: nothing would keep two processes apart.
    #[error(
        "the filesystem of {} refuses {} locks; use a store on a local disk with --root, or have it mounted with locks \
         (NFS: local_lock=all or nolock, for a store that one host uses; Lustre: flock)",
        path.display(), match kind { Some(Kind::Flock) => "flock", Some(Kind::Fcntl) => "fcntl", None => "flock and fcntl" }
    )]
    NoLocks {
        /// The lock file.
        path: PathBuf,
        /// The kind that the store uses; `None` where neither works.
        kind: Option<Kind>,
        /// The host's answer.
        source: io::Error,
    },
    /// The store has no such thing.
    #[error("no {kind} {name} in the store {}", path.display())]
    NotFound {
        /// "image", "layer", "object", ...
        kind: &'static str,
        /// Its name or digest.
        name: String,
        /// The store.
        path: PathBuf,
    },
    /// Another one has the name.
    #[error("the {kind} name \"{name}\" is taken (by {})", path.display())]
    NameTaken {
        /// "container".
        kind: &'static str,
        /// The name.
        name: String,
        /// The folder of the one that has it.
        path: PathBuf,
    },
    /// The store has no such image.
    #[error("no image {name} in the store; load it with `mlfs image load docker-archive:FILE {name}`")]
    NoImage {
        /// What was asked for.
        name: String,
        /// The store.
        path: PathBuf,
    },
    /// Something else needs it.
    #[error("{name} is needed by {} (in {})", users.join(", "), path.display())]
    InUse {
        /// What was to be removed.
        name: String,
        /// Who needs it, as `container NAME`.
        users: Vec<String>,
        /// The store.
        path: PathBuf,
    },
    /// A name matches several things.
    #[error("\"{name}\" fits several images in {}: {}", path.display(), candidates.join(", "))]
    Ambiguous {
        /// What was asked for.
        name: String,
        /// What it fits.
        candidates: Vec<String>,
        /// The store.
        path: PathBuf,
    },
}

impl StoreError {
    /// The error of a step that only reads.
    pub fn reading(what: &'static str, path: &Path, source: io::Error) -> Self {
        StoreError::Io { what, path: path.to_owned(), source }
    }

    /// The error of a step that writes: a full or read-only place gets its own sentence.
    pub fn writing(what: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::NOSPC | Errno::DQUOT) => StoreError::NoSpace { path, source },
            Some(Errno::ROFS | Errno::ACCESS | Errno::PERM) => StoreError::NotWritable { path, source },
            _ => StoreError::Io { what, path, source },
        }
    }

    /// Damaged data at `path`.
    pub fn damaged(path: &Path, what: impl Into<String>) -> Self {
        StoreError::Damaged { path: path.to_owned(), what: what.into() }
    }

    /// Is the reason that something does not exist?
    pub fn is_not_found(&self) -> bool {
        match self {
            StoreError::NotFound { .. } | StoreError::NoImage { .. } => true,
            StoreError::Io { source, .. } => source.kind() == io::ErrorKind::NotFound,
            _ => false,
        }
    }
}

/// Adds what was tried, and on what, to an error of the host.
pub trait At<T> {
    /// For steps that read.
    fn reading(self, what: &'static str, path: &Path) -> Result<T, StoreError>;
    /// For steps that write; see [`StoreError::writing`].
    fn writing(self, what: &'static str, path: &Path) -> Result<T, StoreError>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn reading(self, what: &'static str, path: &Path) -> Result<T, StoreError> {
        self.map_err(|e| StoreError::reading(what, path, e.into()))
    }

    fn writing(self, what: &'static str, path: &Path) -> Result<T, StoreError> {
        self.map_err(|e| StoreError::writing(what, path, e.into()))
    }
}
