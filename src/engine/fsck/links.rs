// SPDX-License-Identifier: MIT OR Apache-2.0
//! Counts hard links: what each layer has of its groups, and how many names the merged tree shows of a copied-up one.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use crate::fs::{Fs, FsSpec};
use crate::layer::{Birth, Child, Entry, Layer};
use crate::model::ids::{IdMap, NodeId};
use crate::model::{Cookie, FsError, Kind, NameBuf};
use crate::tree::ids::Key;
use crate::tree::{Base, BranchSpec};
use crate::upper::check::{Group, RecordFacts};
use crate::upper::{Ownership, UpperSpec};

use super::super::assemble::{OpenAs, open_path, top_first};
use super::super::{OrFail, Result};

/// The hard-link groups of all layers (bottom first), by the inode number under which they are shown.
pub(super) fn groups(layers: &[Arc<dyn Layer>]) -> std::result::Result<HashMap<u64, Group>, FsError> {
    let mut groups: HashMap<u64, Group> = HashMap::new();
    for (index, layer) in layers.iter().enumerate() {
        let root = layer.root()?;
        let source = u32::try_from(index + 1).unwrap_or(u32::MAX);
        let mut todo = vec![root.entry];
        while let Some(dir) = todo.pop() {
            for name in names(&**layer, &dir)? {
                let Child::Found(found) = layer.child(&dir, name.as_name())? else { continue };
                if found.attr.kind == Kind::Dir {
                    todo.push(found.entry);
                } else if found.attr.nlink > 1 {
                    let dev = if found.birth.dev == root.birth.dev { 0 } else { found.birth.dev };
                    let key = Key { branch: 0, source, birth: Birth { dev, ino: found.birth.ino } };
                    let group = groups.entry(key.number()).or_default();
                    group.nlink = found.attr.nlink;
                    group.names += 1;
                }
            }
        }
    }
    Ok(groups)
}

fn names(layer: &dyn Layer, dir: &Entry) -> std::result::Result<Vec<NameBuf>, FsError> {
    let mut names = Vec::new();
    layer.list(dir, Cookie::START, &mut |line| {
        names.push(line.name.to_buf());
        ControlFlow::Continue(())
    })?;
    Ok(names)
}

/// An upper to be looked at over its layers, as its mount would show it.
#[derive(Debug)]
pub(super) struct Walk {
    pub(super) upper: PathBuf,
    pub(super) work: PathBuf,
    pub(super) ownership: Ownership,
    pub(super) label: String,
}

impl Walk {
    /// How many names lead to the files of these records, by inode number.
    pub(super) fn count_names(&self, layers: &[Arc<dyn Layer>], records: &[RecordFacts]) -> Result<HashMap<u64, u32>> {
        let what = || "cannot count hard links";
        let wanted: HashSet<u64> = records.iter().filter_map(|record| record.number).collect();
        let upper = UpperSpec {
            dir: open_path(&self.upper, OpenAs::Directory).or_fail(what)?,
            work: Some(open_path(&self.work, OpenAs::Directory).or_fail(what)?),
            ownership: self.ownership,
            is_volatile: false,
            is_view: true,
        };
        let root = BranchSpec {
            label: self.label.clone(),
            base: Base::Merge { upper: Some(upper), lowers: top_first(layers.to_vec()) },
            is_read_only: true,
            is_shared: false,
        };
        let fs =
            Fs::new(FsSpec { root, mounts: Vec::new(), uids: IdMap::Identity, gids: IdMap::Identity }).or_fail(what)?;
        let mut seen: HashMap<u64, u32> = HashMap::new();
        let mut todo = vec![NodeId::ROOT];
        let mut counted = Vec::new();
        while let Some(dir) = todo.pop() {
            let mut found = Vec::new();
            fs.read_dir_plus(dir, Cookie::DOTDOT, &mut |_, _, entry| {
                // What cannot be read might be one of the names: then nothing is counted.
                found.push(entry.map(|entry| (entry.id, entry.attr.kind, entry.attr.ino)));
                true
            })
            .or_fail(what)?;
            for entry in found {
                let (id, kind, ino) = entry.map_err(|_| FsError::IO).or_fail(what)?;
                if kind == Kind::Dir {
                    todo.push(id);
                    counted.push(id);
                    continue;
                }
                fs.forget(id, 1);
                if wanted.contains(&ino) {
                    *seen.entry(ino).or_default() += 1;
                }
            }
        }
        counted.into_iter().for_each(|id| fs.forget(id, 1));
        Ok(seen)
    }
}
