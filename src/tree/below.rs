// SPDX-License-Identifier: MIT OR Apache-2.0
//! The layers of a branch alone, asked by paths: for checks of an upper that lies over them.

use std::sync::Arc;

use super::content::content_below;
use super::merge::at_path;
use super::{Base, Branch, BranchSpec};
use crate::layer::whiteout::Redirect;
use crate::layer::{Layer, Metacopy};
use crate::model::{FsError, Kind, NameBuf};
use crate::upper::check::Below;

/// Layers without an upper.
#[derive(Debug)]
pub struct LayersAlone {
    branch: Branch,
}

impl LayersAlone {
    /// Takes layers, top first.
    pub fn new(label: String, lowers: Vec<Arc<dyn Layer>>) -> Result<Self, FsError> {
        let base = Base::Merge { upper: None, lowers };
        let branch = Branch::open(0, BranchSpec { label, base, is_read_only: true, is_shared: false })?;
        Ok(LayersAlone { branch })
    }
}

/// A path that leads through something else than directories leads to nothing.
fn nothing<T>(result: Result<Option<T>, FsError>) -> Result<Option<T>, FsError> {
    match result {
        Err(FsError::NotFound | FsError::NotDir) => Ok(None),
        other => other,
    }
}

impl Below for LayersAlone {
    fn kind_at(&self, path: &[NameBuf]) -> Result<Option<Kind>, FsError> {
        if path.is_empty() {
            return Ok(Some(Kind::Dir));
        }
        let found = at_path(&self.branch, 0, path);
        nothing(found.map(|sources| (!sources.lowers.is_empty()).then(|| sources.kind())))
    }

    fn content_size(&self, path: &[NameBuf], redirect: Option<Redirect>) -> Result<Option<u64>, FsError> {
        let found = match content_below(&self.branch, path.to_vec(), Metacopy { redirect }, 0) {
            Ok(lower) => self.branch.layer(&lower)?.attr(&lower.entry).map(|attr| Some(attr.size)),
            Err(FsError::Corrupt { .. }) => Ok(None),
            Err(error) => Err(error),
        };
        nothing(found)
    }
}
