// SPDX-License-Identifier: MIT OR Apache-2.0
//! Floor 2: formats of others: image names, manifests, layouts, archives, tar.
//!
//! Everything here reads what others wrote, so nothing is believed: sizes never decide how much memory is taken, paths
//! never lead out of their layout, and digests are checked by whoever reads a blob.

use std::path::{Path, PathBuf};

pub mod archive;
pub mod compression;
pub mod layout;
pub mod reference;
pub mod spec;
pub mod tar;

/// Why an image of others could not be read.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// A file could not be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The host's answer.
        source: std::io::Error,
    },
    /// Something in the source is not as its format says.
    #[error("{}: {what}", path.display())]
    Malformed {
        /// The layout or archive.
        path: PathBuf,
        /// What is wrong, naming the part.
        what: String,
    },
    /// The source holds several images, or none, of the wanted tag.
    #[error("{}: {what}", path.display())]
    Choice {
        /// The layout or archive.
        path: PathBuf,
        /// Which tags it has.
        what: String,
    },
}

impl OciError {
    /// A malformed part of `path`.
    pub fn malformed(path: &Path, what: impl Into<String>) -> Self {
        OciError::Malformed { path: path.to_owned(), what: what.into() }
    }

    /// A failed read of `path`.
    pub fn io(path: &Path, source: std::io::Error) -> Self {
        OciError::Io { path: path.to_owned(), source }
    }
}
