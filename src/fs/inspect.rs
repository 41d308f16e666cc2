// SPDX-License-Identifier: MIT OR Apache-2.0
//! Answers about the tree: what has changed against the layers, and where a path comes from.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::Fs;
use super::lookup::Follow;
use crate::layer::whiteout::Redirect;
use crate::layer::{Child, Entry, Layer, ListedKind};
use crate::model::ids::NodeId;
use crate::model::sync::read;
use crate::model::{Cookie, FsError, Kind, Name, NameBuf};
use crate::tree::{Branch, Node, Tree, merge};
use crate::upper::Upper;
use crate::upper::edit::Below;

/// What happened to a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChangeKind {
    /// Not in the layers.
    Added,
    /// In the layers, and in the upper.
    Changed,
    /// In the layers, and hidden by the upper.
    Deleted,
}

/// A path of the root branch that the upper has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What happened.
    pub kind: ChangeKind,
    /// Absolute path.
    pub path: Vec<u8>,
}

/// A source of a branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The upper (or the directory of a volume or bind).
    Upper,
    /// A layer by number, 1 at the bottom.
    Layer(u32),
}

/// Where a path comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provenance {
    /// Number of the branch: 0 is the root's.
    pub branch: u32,
    /// Label of the branch.
    pub label: String,
    /// Path inside the branch, symlinks on the way followed.
    pub path: Vec<u8>,
    /// Who provides it; `None` for a deleted path.
    pub provider: Option<(Source, Kind)>,
    /// Further directories merged into it, from top to bottom.
    pub merged: Vec<Source>,
    /// What it (or a deletion) hides, from top to bottom.
    pub hidden: Vec<(Source, Kind)>,
    /// Who deleted it, if nobody provides it.
    pub deleted_by: Option<Source>,
}

/// What one source alone says of a path.
enum Says {
    Nothing,
    /// Deleted here, or replaced on the way: nothing deeper counts.
    Stops,
    Entry {
        kind: Kind,
        stops: bool,
    },
}

impl Fs {
    /// Does anything of a node lie in the upper: its attributes, its content, or names of a directory?
    pub fn is_in_upper(&self, id: NodeId) -> Result<bool, FsError> {
        Ok(read(&self.tree.node(id)?.state).upper.is_some())
    }

    /// Does a directory show anything of layers?
    pub fn has_layers(&self, id: NodeId) -> Result<bool, FsError> {
        Ok(!read(&self.tree.node(id)?.state).lowers.is_empty())
    }

    /// Has a file of a layer with several names been changed? Then names that the upper does not hold lead to it too.
    pub fn has_link_groups(&self) -> bool {
        self.tree.root().branch().upper().is_some_and(Upper::has_records)
    }

    /// Everything the upper of the root branch has changed, sorted by path bytewise; changed parents are included, as
    /// `docker diff` does. Empty without an upper.
    pub fn changes(&self) -> Result<Vec<Change>, FsError> {
        let mut changes = Vec::new();
        let mut todo = vec![(Arc::clone(self.tree.root()), Vec::new())];
        let mut counted = Vec::new();
        let result = loop {
            let Some((node, path)) = todo.pop() else { break Ok(()) };
            if let Err(error) = self.changes_in(&node, &path, &mut changes, &mut todo, &mut counted) {
                break Err(error);
            }
        };
        for id in counted {
            self.forget(id, 1);
        }
        result?;
        changes.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(changes)
    }

    fn changes_in(
        &self,
        node: &Arc<Node>,
        path: &[u8],
        changes: &mut Vec<Change>,
        todo: &mut Vec<(Arc<Node>, Vec<u8>)>,
        counted: &mut Vec<crate::model::ids::NodeId>,
    ) -> Result<(), FsError> {
        let branch = node.branch();
        let (Some(dir), Some(upper)) = (Tree::upper_dir(node), branch.upper()) else { return Ok(()) };
        let mut listed: Vec<(NameBuf, ListedKind)> = Vec::new();
        upper.reader().list(&Entry::HostDir(dir), Cookie::START, &mut |line| {
            listed.push((line.name.to_buf(), line.what));
            ControlFlow::Continue(())
        })?;
        for (name, what) in listed {
            let name = name.as_name();
            let mut own = path.to_vec();
            own.push(b'/');
            own.extend_from_slice(name.bytes());
            if what == ListedKind::Whiteout {
                changes.push(Change { kind: ChangeKind::Deleted, path: own });
                continue;
            }
            let kind = match merge::below(node, name)? {
                Below::Something => ChangeKind::Changed,
                Below::Nothing => ChangeKind::Added,
            };
            changes.push(Change { kind, path: own.clone() });
            let resolving = self.tree.resolving();
            let Some(merge::Resolved::Found(sources)) = self.tree.resolve_unmounted(&resolving, node, name)? else {
                continue;
            };
            if sources.kind() != Kind::Dir {
                continue;
            }
            let (child, _) = self.tree.enter(node, name, sources)?;
            counted.push(child.id());
            if kind == ChangeKind::Added && !read(&child.state).lowers.is_empty() {
                // It was renamed: everything in it is new here.
                drop(resolving);
                self.added_below(&child, &own, changes, counted)?;
                continue;
            }
            if kind == ChangeKind::Changed {
                self.hidden_in(node, &child, name, &own, changes)?;
            }
            todo.push((child, own));
        }
        Ok(())
    }

    /// Everything in a directory that is itself new at its place.
    fn added_below(
        &self,
        node: &Arc<Node>,
        path: &[u8],
        changes: &mut Vec<Change>,
        counted: &mut Vec<crate::model::ids::NodeId>,
    ) -> Result<(), FsError> {
        let mut todo = vec![(Arc::clone(node), path.to_vec())];
        while let Some((node, path)) = todo.pop() {
            let mut names = Vec::new();
            let resolving = self.tree.resolving();
            self.tree.list(&resolving, &node, Cookie::START, &mut |name, _, _| {
                names.push(name.to_buf());
                ControlFlow::Continue(())
            })?;
            for name in names {
                let own = [&path, &b"/"[..], name.as_name().bytes()].concat();
                changes.push(Change { kind: ChangeKind::Added, path: own.clone() });
                let found = self.tree.resolve_unmounted(&resolving, &node, name.as_name())?;
                let Some(merge::Resolved::Found(sources)) = found else { continue };
                if sources.kind() == Kind::Dir {
                    let (child, _) = self.tree.enter(&node, name.as_name(), sources)?;
                    counted.push(child.id());
                    todo.push((child, own));
                }
            }
        }
        Ok(())
    }

    /// An opaque directory of the upper deletes what layers hold in it, unless it was made again.
    fn hidden_in(
        &self,
        parent: &Arc<Node>,
        child: &Arc<Node>,
        name: Name<'_>,
        path: &[u8],
        changes: &mut Vec<Change>,
    ) -> Result<(), FsError> {
        if !read(&child.state).lowers.is_empty() {
            return Ok(());
        }
        let Some(dir) = Tree::upper_dir(child) else { return Ok(()) };
        let branch = parent.branch();
        let Some(upper) = branch.upper() else { return Ok(()) };
        for below in merge::names_below(parent, name)? {
            let is_there =
                matches!(upper.reader().child(&Entry::HostDir(Arc::clone(&dir)), below.as_name())?, Child::Found(_));
            let mut own = path.to_vec();
            own.push(b'/');
            own.extend_from_slice(below.as_name().bytes());
            if !is_there {
                changes.push(Change { kind: ChangeKind::Deleted, path: own });
            }
        }
        Ok(())
    }

    /// Who provides an absolute path, and what it hides. A symlink at its end is not followed. `NotFound` for a path
    /// that no source holds and none deletes.
    pub fn which(&self, path: &[u8]) -> Result<Provenance, FsError> {
        let Located { branch, names, in_layers } = self.locate(path)?;
        let mut provenance = Provenance {
            branch: branch.number(),
            label: branch.label().to_owned(),
            path: super::build::join(&names),
            provider: None,
            merged: Vec::new(),
            hidden: Vec::new(),
            deleted_by: None,
        };
        let mut stopped = None;
        for (source, layer) in sources_of(&branch) {
            let own = if source == Source::Upper { &names } else { &in_layers };
            match says(layer, own)? {
                Says::Nothing => {}
                Says::Stops => stopped = stopped.or(Some(source)),
                Says::Entry { kind, stops } => {
                    match (&provenance.provider, stopped) {
                        (None, None) => provenance.provider = Some((source, kind)),
                        (Some((_, Kind::Dir)), None) if kind == Kind::Dir => provenance.merged.push(source),
                        _ => provenance.hidden.push((source, kind)),
                    }
                    if stops || kind != Kind::Dir {
                        stopped = stopped.or(Some(source));
                    }
                }
            }
        }
        if provenance.provider.is_none() {
            if let Some(file) = branch.host_file().filter(|_| names.is_empty()) {
                let stat = rustix::fs::fstat(&**file)?;
                let kind = Kind::from_mode(stat.st_mode).unwrap_or(Kind::File);
                provenance.provider = Some((Source::Upper, kind));
            } else if provenance.hidden.is_empty() {
                return Err(FsError::NotFound);
            }
            provenance.deleted_by = stopped;
        }
        Ok(provenance)
    }

    /// The branch in which a path lies, and its names there: symlinks on the way followed where they exist.
    fn locate(&self, path: &[u8]) -> Result<Located, FsError> {
        let trimmed = path.strip_suffix(b"/").unwrap_or(path);
        let cut = trimmed.iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1);
        let (parent, last) = trimmed.split_at_checked(cut).unwrap_or((b"", trimmed));
        let mut all = self.canonical(parent)?;
        match last {
            b"" | b"." => {}
            b".." => {
                all.pop();
            }
            name => all.push(Name::new(name)?.bytes().to_vec()),
        }
        let branch = Arc::clone(self.tree.root().branch());
        let mut located = Located { branch, names: Vec::new(), in_layers: Vec::new() };
        for (index, name) in all.iter().enumerate() {
            located.names.push(name.clone());
            located.in_layers.push(name.clone());
            let so_far = all.get(..=index).unwrap_or_default();
            let Ok((node, _)) = self.walk(&super::build::join(so_far), Follow::No) else { continue };
            let redirect = merge::redirect_of(&node);
            self.forget(node.id(), 1);
            if !Arc::ptr_eq(node.branch(), &located.branch) {
                located = Located { branch: Arc::clone(node.branch()), names: Vec::new(), in_layers: Vec::new() };
            }
            match redirect? {
                Some(Redirect::Path(path)) => {
                    located.in_layers = path.iter().map(|name| name.as_name().bytes().to_vec()).collect();
                }
                Some(Redirect::Name(other)) => {
                    located.in_layers.pop();
                    located.in_layers.push(other.as_name().bytes().to_vec());
                }
                None => {}
            }
        }
        Ok(located)
    }
}

/// Where a path lies.
struct Located {
    branch: Arc<Branch>,
    /// Its names in the branch.
    names: Vec<Vec<u8>>,
    /// Its names in the branch's layers: others, below a directory that was renamed.
    in_layers: Vec<Vec<u8>>,
}

fn sources_of(branch: &Branch) -> Vec<(Source, &dyn Layer)> {
    let mut sources: Vec<(Source, &dyn Layer)> = Vec::new();
    if let (Some(upper), None) = (branch.upper(), branch.host_file()) {
        sources.push((Source::Upper, upper.reader()));
    }
    for (index, layer) in branch.lowers().iter().enumerate() {
        sources.push((Source::Layer(branch.layer_number(index)), &**layer));
    }
    sources
}

fn says(layer: &dyn Layer, names: &[Vec<u8>]) -> Result<Says, FsError> {
    let mut found = layer.root()?;
    let mut stops = layer.is_opaque(&found.entry)?;
    for name in names {
        if found.attr.kind != Kind::Dir {
            return Ok(Says::Stops);
        }
        match layer.child(&found.entry, Name::new(name)?)? {
            Child::Absent if stops => return Ok(Says::Stops),
            Child::Absent => return Ok(Says::Nothing),
            Child::Whiteout => return Ok(Says::Stops),
            Child::Found(next) => found = next,
        }
        stops |= found.attr.kind == Kind::Dir && layer.is_opaque(&found.entry)?;
    }
    Ok(Says::Entry { kind: found.attr.kind, stops })
}
