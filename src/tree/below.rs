// SPDX-License-Identifier: MIT OR Apache-2.0
//! The layers of a branch alone, asked by paths: for checks of an upper that lies over them.

use std::sync::Arc;

use super::content::content_below;
use super::merge::{Sources, at_path};
use super::node::Lower;
use super::{Base, Branch, BranchSpec};
use crate::layer::whiteout::Redirect;
use crate::layer::{Found, Layer, Metacopy};
use crate::model::{FsError, Kind, NameBuf};
use crate::upper::check::Below;

/// Layers without an upper.
#[derive(Debug)]
pub struct LayersAlone {
    branch: Arc<Branch>,
}

impl LayersAlone {
    /// Takes layers, top first.
    pub fn new(label: String, lowers: Vec<Arc<dyn Layer>>) -> Result<Self, FsError> {
        let base = Base::Merge { upper: None, lowers };
        let branch = Branch::open(0, BranchSpec { label, base, is_read_only: true, is_shared: false })?;
        Ok(LayersAlone { branch: Arc::new(branch) })
    }

    /// What takes part in the directory at a path.
    fn lowers_at(&self, path: &[NameBuf]) -> Result<Vec<Lower>, FsError> {
        let sources = match path.is_empty() {
            true => Sources::of_root(&self.branch)?,
            false => nothing(at_path(&self.branch, 0, path).map(Some))?.unwrap_or_default(),
        };
        let is_dir = |lower: &(Lower, Found)| lower.1.attr.kind == Kind::Dir;
        Ok(sources.lowers.into_iter().filter(is_dir).map(|(lower, _)| lower).collect())
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
        let (dir, name) = match (path.split_last(), &redirect) {
            (Some((name, parent)), _) => (self.lowers_at(parent)?, name.clone()),
            // From the roots of the layers: its own place does not count.
            (None, Some(Redirect::Path(target))) => match target.last() {
                Some(name) => (Vec::new(), name.clone()),
                None => return Ok(None),
            },
            (None, _) => return Ok(None),
        };
        let found = match content_below(&self.branch, &dir, name, Metacopy { redirect }, 0) {
            Ok(lower) => self.branch.layer(&lower)?.attr(&lower.entry).map(|attr| Some(attr.size)),
            Err(FsError::Corrupt { .. }) => Ok(None),
            Err(error) => Err(error),
        };
        nothing(found)
    }
}
