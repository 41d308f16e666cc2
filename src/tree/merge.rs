// SPDX-License-Identifier: MIT OR Apache-2.0
//! Resolution: what stands at a name, one component at a time, a descriptor or record per layer.
//!
//! The rules (overlayfs.rst): the topmost source wins; a whiteout, an opaque directory or a non-directory in any source
//! stops everything below it; directories are merged down to that point. Because a directory's node holds only the
//! sources that take part, what was stopped at a parent is stopped for all its descendants.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::branch::Branch;
use super::ids::Key;
use super::node::{Lower, Node, State};
use super::{NamesHeld, Tree};
use crate::layer::whiteout::{DirMarks, Redirect};
use crate::layer::{Child, Entry, Found, Layer, ListedKind};
use crate::model::sync::{read, write};
use crate::model::{Attr, Cookie, FsError, Kind, Name, NameBuf};
use crate::sys::node::attr_of;
use crate::sys::{Dir, FileId, Place};
use crate::upper::edit::Below;
use crate::upper::stage::Physical;

/// How a name leads to its object in the upper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// The name stands in the upper.
    Name,
    /// The name stands only in a layer; its hard-link group was copied up.
    Group,
}

/// An object found in the upper.
#[derive(Clone, Debug)]
pub struct InUpper {
    /// Where.
    pub place: Place,
    /// Device and inode.
    pub id: FileId,
    /// Attributes, with the links to show.
    pub attr: Attr,
    /// How the name leads there.
    pub via: Via,
}

/// Everything that takes part at one name: never empty.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// In the upper.
    pub upper: Option<InUpper>,
    /// In layers, top first; more than one only for a directory.
    pub lowers: Vec<(Lower, Found)>,
}

impl Sources {
    /// Does the name stand only in a layer, as one of several of a file that was not copied up?
    pub fn is_linked_below(&self) -> bool {
        self.upper.is_none() && self.lowers.first().is_some_and(|(lower, _)| lower.group.is_some())
    }

    /// The sources of a branch's root.
    pub(super) fn of_root(branch: &Arc<Branch>) -> Result<Self, FsError> {
        let mut sources = Sources::default();
        if let Some(fd) = branch.host_file() {
            let place = Place::Fd(Arc::clone(fd));
            let stat = place.stat()?;
            sources.upper = Some(InUpper { place, id: FileId::of(&stat), attr: attr_of(&stat)?, via: Via::Name });
            return Ok(sources);
        }
        if let Some(upper) = branch.upper() {
            let found = upper.reader().root()?;
            let place = Place::Dir(Arc::clone(upper.root()));
            let id = upper.root().id();
            sources.upper = Some(InUpper { place, id, attr: found.attr, via: Via::Name });
            if !upper.is_plain() && upper.reader().is_opaque(&found.entry)? {
                return Ok(sources);
            }
        }
        for (index, layer) in branch.lowers().iter().enumerate() {
            let found = layer.root()?;
            let is_last = layer.is_opaque(&found.entry)?;
            let is_implicit = layer.is_implicit(&found.entry)?;
            let lower = Lower { layer: index, entry: found.entry.clone(), group: None, is_implicit };
            sources.lowers.push((lower, found));
            if is_last {
                break;
            }
        }
        Ok(sources)
    }

    /// The lower whose attributes are shown: the topmost that says something about them.
    fn face(&self) -> Option<&(Lower, Found)> {
        self.lowers.iter().find(|(lower, _)| !lower.is_implicit).or(self.lowers.first())
    }

    /// Attributes of the source that shows them, with the links to show. A bug if there is none.
    pub fn attr(&self) -> Result<Attr, FsError> {
        match (&self.upper, self.face()) {
            (Some(upper), _) => Ok(upper.attr),
            (None, Some((_, found))) => Ok(found.attr),
            (None, None) => Err(FsError::NotFound),
        }
    }

    /// Kind of the topmost source.
    pub fn kind(&self) -> Kind {
        self.attr().map_or(Kind::File, |attr| attr.kind)
    }

    /// The key of the source that shows its attributes.
    pub fn key(&self, branch: &Branch) -> Option<Key> {
        match (&self.upper, self.face()) {
            (Some(upper), _) => Some(branch.upper_key(upper.id)),
            (None, Some((lower, found))) => Some(branch.layer_key(lower.layer, found.birth)),
            (None, None) => None,
        }
    }

    /// The inode number to show: of where the file was born.
    pub fn number(&self, branch: &Branch) -> Result<u64, FsError> {
        if let (Some(found), Some(upper)) = (&self.upper, branch.upper())
            && let Some(number) = upper.birth_number(&found.place)?
        {
            return Ok(number);
        }
        self.key(branch).map(Key::number).ok_or(FsError::NotFound)
    }

    /// The attributes to show, given the number.
    pub fn shown(&self, number: u64) -> Result<Attr, FsError> {
        let is_merged = self.lowers.len() + usize::from(self.upper.is_some()) > 1;
        let mut attr = self.attr()?;
        attr.ino = number;
        if attr.kind == Kind::Dir && is_merged {
            attr.nlink = 1;
        }
        Ok(attr)
    }

    pub(super) fn into_state(self) -> State {
        State {
            upper_id: self.upper.as_ref().map(|found| found.id),
            upper: self.upper.map(|found| found.place),
            lowers: self.lowers.into_iter().map(|(lower, _)| lower).collect(),
            ..State::default()
        }
    }
}

/// What stands at a name: a mounted branch, or sources of the parent's branch.
#[derive(Clone, Debug)]
pub enum Resolved {
    /// The root of a branch mounted there.
    Mounted(Arc<Node>),
    /// Sources.
    Found(Sources),
}

impl Tree {
    /// What stands at `name` in `parent`; `None` for nothing. `NotDir` if `parent` is none.
    pub fn resolve(&self, _: &impl NamesHeld, parent: &Node, name: Name<'_>) -> Result<Option<Resolved>, FsError> {
        if let Some(root) = parent.mounted(name) {
            return Ok(Some(Resolved::Mounted(root)));
        }
        Ok(find(parent, name)?.map(Resolved::Found))
    }

    /// What stands at `name` in `parent` under anything that is mounted there.
    pub fn resolve_unmounted(
        &self,
        _: &impl NamesHeld,
        parent: &Node,
        name: Name<'_>,
    ) -> Result<Option<Resolved>, FsError> {
        Ok(find(parent, name)?.map(Resolved::Found))
    }

    /// The node at `name` in `parent`, with one more look-up counted; `NotFound` for nothing.
    pub fn lookup(
        &self,
        resolving: &impl NamesHeld,
        parent: &Arc<Node>,
        name: Name<'_>,
    ) -> Result<(Arc<Node>, Attr), FsError> {
        match self.resolve(resolving, parent, name)?.ok_or(FsError::NotFound)? {
            Resolved::Mounted(root) => {
                let attr = self.attr(&root)?;
                Ok((root, attr))
            }
            Resolved::Found(sources) => self.enter(parent, name, sources),
        }
    }

    /// The node of what was found at `name`, with one more look-up counted.
    pub fn enter(&self, parent: &Arc<Node>, name: Name<'_>, sources: Sources) -> Result<(Arc<Node>, Attr), FsError> {
        let place = sources.upper.as_ref().map(|found| found.place.clone());
        let mut attr = sources.attr()?;
        let is_merged = sources.lowers.len() + usize::from(sources.upper.is_some()) > 1;
        let node = self.nodes().find_or_insert(parent.branch(), sources)?;
        node.gain_name(parent, name);
        if let Some(place) = place
            && let Err(error) = renew_place(&node, place, name)
        {
            self.nodes().forget(node.id(), 1);
            return Err(error);
        }
        attr.ino = node.ino();
        if attr.kind == Kind::Dir && is_merged {
            attr.nlink = 1;
        }
        Ok((node, attr))
    }

    /// The known node of what was found, if the kernel knows it; no look-up is counted.
    pub fn peek(&self, parent: &Node, sources: &Sources) -> Option<Arc<Node>> {
        self.nodes().peek(sources.key(parent.branch())?)
    }
}

/// A look-up has found a known node at `place`: a place it held by descriptor, or one that others have moved, is
/// renewed.
fn renew_place(node: &Arc<Node>, place: Place, name: Name<'_>) -> Result<(), FsError> {
    let mut state = write(&node.state);
    match (&state.upper, &place) {
        (Some(Place::Dir(known)), Place::Dir(found)) => {
            if let Some((parent, _)) = state.links.last()
                && node.branch().is_shared()
                && !Arc::ptr_eq(known, found)
                && let Some(dir) = Tree::upper_dir(parent)
            {
                known.moved(&dir, name);
            }
        }
        (Some(Place::Dir(_)), _) | (_, Place::Dir(_)) if state.upper.is_some() => return Err(FsError::Stale),
        // A copy-up by way of another name has set the place already; any name of the object is as good.
        _ => state.upper = Some(place),
    }
    Ok(())
}

/// The sources at `name` in the directory `parent`, mounts left aside.
pub(super) fn find(parent: &Node, name: Name<'_>) -> Result<Option<Sources>, FsError> {
    if parent.kind() != Kind::Dir {
        return Err(FsError::NotDir);
    }
    let branch = parent.branch();
    let (upper, lowers) = sources_of(parent);
    let mut sources = Sources::default();
    if let (Some(dir), Some(upper)) = (&upper, branch.upper()) {
        match upper.reader().child(&Entry::HostDir(Arc::clone(dir)), name)? {
            Child::Absent => {}
            Child::Whiteout => return Ok(None),
            Child::Found(found) => {
                let has_layers = found.attr.kind == Kind::Dir && !branch.lowers().is_empty();
                let marks = if has_layers { Some(upper.reader().dir_marks(&found.entry)?) } else { None };
                sources.upper = Some(in_upper(branch, found, Via::Name)?);
                let Some(marks) = marks.filter(|marks| !marks.is_opaque) else { return Ok(Some(sources)) };
                find_below(branch, &lowers, name, marks.redirect, 0, &mut sources)?;
                return Ok(Some(sources));
            }
        }
    }
    find_in_layers(branch, &lowers, name, &mut sources)?;
    if sources.upper.is_none()
        && let Some((lower, found)) = sources.lowers.first()
        && let Some(copy) = branch.find_copy(lower, found.attr.kind)?
    {
        let stat = copy.stat()?;
        let attr = branch.attr_in_upper(&copy)?;
        sources.upper = Some(InUpper { place: copy, id: FileId::of(&stat), attr, via: Via::Group });
        sources.lowers.clear();
    }
    let is_empty = sources.upper.is_none() && sources.lowers.is_empty();
    Ok((!is_empty).then_some(sources))
}

fn in_upper(branch: &Branch, found: Found, via: Via) -> Result<InUpper, FsError> {
    let place = crate::layer::dir::DirLayer::place(&found.entry)?;
    let id = FileId { dev: found.birth.dev, ino: found.birth.ino };
    let mut attr = found.attr;
    if let Some(upper) = branch.upper()
        && attr.kind != Kind::Dir
    {
        attr.nlink = upper.count_links(&place, attr.nlink)?;
    }
    Ok(InUpper { place, id, attr, via })
}

fn sources_of(parent: &Node) -> (Option<Arc<Dir>>, Vec<Lower>) {
    let state = read(&parent.state);
    let upper = match &state.upper {
        Some(Place::Dir(dir)) => Some(Arc::clone(dir)),
        _ => None,
    };
    (upper, state.lowers.clone())
}

/// Adds what the layers hold of a directory found above: at its name, or where it was before it was renamed. `first`:
/// index of the topmost layer that is deeper than what was found.
fn find_below(
    branch: &Branch,
    lowers: &[Lower],
    name: Name<'_>,
    redirect: Option<Redirect>,
    first: usize,
    sources: &mut Sources,
) -> Result<(), FsError> {
    match redirect {
        None => find_in_layers(branch, lowers, name, sources),
        Some(Redirect::Name(other)) => find_in_layers(branch, lowers, other.as_name(), sources),
        Some(Redirect::Path(path)) => find_at_path(branch, first, path, sources),
    }
}

/// Adds what the layers hold at `name`; a directory found above is in `sources` already.
fn find_in_layers(branch: &Branch, lowers: &[Lower], name: Name<'_>, sources: &mut Sources) -> Result<(), FsError> {
    for (position, lower) in lowers.iter().enumerate() {
        let layer = branch.layer(lower)?;
        match layer.child(&lower.entry, name)? {
            Child::Absent => {}
            Child::Whiteout => break,
            Child::Found(found) => match add_lower(branch, lower.layer, found, sources)? {
                Next::Stop => break,
                Next::Go(None) => {}
                Next::Go(redirect) => {
                    let rest = lowers.get(position + 1..).unwrap_or_default();
                    return find_below(branch, rest, name, redirect, lower.layer + 1, sources);
                }
            },
        }
    }
    Ok(())
}

/// Adds what the layers from index `first` on hold at a path from their roots.
fn find_at_path(branch: &Branch, first: usize, mut path: Vec<NameBuf>, sources: &mut Sources) -> Result<(), FsError> {
    for (index, layer) in branch.lowers().iter().enumerate().skip(first) {
        let mut found = Some(layer.root()?);
        let mut is_last = false;
        // Where deeper layers hold it: a directory on the way may have been renamed here.
        let mut deeper: Vec<NameBuf> = Vec::with_capacity(path.len());
        for (position, name) in path.iter().enumerate() {
            deeper.push(name.clone());
            let Some(dir) = found.take() else { continue };
            if dir.attr.kind != Kind::Dir {
                return Ok(());
            }
            is_last |= position == 0 && layer.is_opaque(&dir.entry)?;
            match layer.child(&dir.entry, name.as_name())? {
                Child::Absent if is_last => return Ok(()),
                Child::Absent => {}
                Child::Whiteout => return Ok(()),
                Child::Found(next) => {
                    let is_on_the_way = position + 1 < path.len() && next.attr.kind == Kind::Dir;
                    let marks = if is_on_the_way { layer.dir_marks(&next.entry)? } else { DirMarks::default() };
                    is_last |= marks.is_opaque;
                    follow(&mut deeper, marks.redirect);
                    found = Some(next);
                }
            }
        }
        if let Some(found) = found {
            match add_lower(branch, index, found, sources)? {
                Next::Stop => return Ok(()),
                Next::Go(_) if is_last => return Ok(()),
                Next::Go(redirect) => follow(&mut deeper, redirect),
            }
        }
        path = deeper;
    }
    Ok(())
}

/// The path of a directory in deeper layers, given where this layer's redirect says they hold it.
pub(super) fn follow(path: &mut Vec<NameBuf>, redirect: Option<Redirect>) {
    match redirect {
        None => {}
        Some(Redirect::Path(other)) => *path = other,
        Some(Redirect::Name(other)) => {
            path.pop();
            path.push(other);
        }
    }
}

/// What the layers from index `first` on hold at a path from their roots.
pub(super) fn at_path(branch: &Branch, first: usize, path: &[NameBuf]) -> Result<Sources, FsError> {
    let mut sources = Sources::default();
    find_at_path(branch, first, path.to_vec(), &mut sources)?;
    Ok(sources)
}

/// What the layers from index `first` on, of those that take part in a directory, hold at `name` in it.
pub(super) fn beside(branch: &Branch, dir: &[Lower], first: usize, name: Name<'_>) -> Result<Sources, FsError> {
    let lowers: Vec<Lower> = dir.iter().filter(|lower| lower.layer >= first).cloned().collect();
    let mut sources = Sources::default();
    find_in_layers(branch, &lowers, name, &mut sources)?;
    Ok(sources)
}

/// The layers that take part in a directory.
pub(super) fn lowers_of(dir: &Node) -> Vec<Lower> {
    sources_of(dir).1
}

/// How resolution goes on below a source.
enum Next {
    /// Nothing deeper counts.
    Stop,
    /// On, where the redirect says.
    Go(Option<Redirect>),
}

fn add_lower(branch: &Branch, index: usize, found: Found, sources: &mut Sources) -> Result<Next, FsError> {
    let has_above = sources.upper.is_some() || !sources.lowers.is_empty();
    let is_dir = found.attr.kind == Kind::Dir;
    if has_above && !is_dir {
        return Ok(Next::Stop);
    }
    let layer = branch.lowers().get(index).ok_or(FsError::Stale)?;
    let is_bottom = index + 1 == branch.lowers().len();
    let marks = if is_dir && !is_bottom { Some(layer.dir_marks(&found.entry)?) } else { None };
    let group = branch.group(index, &found);
    let entry = found.entry.clone();
    let is_implicit = is_dir && layer.is_implicit(&entry)?;
    sources.lowers.push((Lower { layer: index, entry, group, is_implicit }, found));
    Ok(match marks {
        Some(marks) if !marks.is_opaque => Next::Go(marks.redirect),
        _ => Next::Stop,
    })
}

/// Do the layers that take part in `parent` show anything at `name`?
pub fn below(parent: &Node, name: Name<'_>) -> Result<Below, FsError> {
    let sources = beside(parent.branch(), &lowers_of(parent), 0, name)?;
    Ok(if sources.lowers.is_empty() { Below::Nothing } else { Below::Something })
}

/// What stands physically at `name` in the upper directory `dir` of `branch`.
pub fn physical(branch: &Branch, dir: &Arc<Dir>, name: Name<'_>) -> Result<Physical, FsError> {
    let upper = branch.upper().ok_or(FsError::ReadOnly)?;
    Ok(match upper.reader().child(&Entry::HostDir(Arc::clone(dir)), name)? {
        Child::Absent => Physical::Nothing,
        Child::Whiteout => Physical::Whiteout,
        Child::Found(_) => Physical::Entry,
    })
}

/// The names that layers show in the directory `name` of `parent`, the upper left aside.
pub fn names_below(parent: &Node, name: Name<'_>) -> Result<Vec<NameBuf>, FsError> {
    let sources = beside(parent.branch(), &lowers_of(parent), 0, name)?;
    let mut names = std::collections::BTreeMap::new();
    for (lower, found) in &sources.lowers {
        if found.attr.kind != Kind::Dir {
            continue;
        }
        parent.branch().layer(lower)?.list(&lower.entry, Cookie::START, &mut |line| {
            names.entry(line.name.to_buf()).or_insert(line.what);
            ControlFlow::Continue(())
        })?;
    }
    Ok(names.into_iter().filter(|(_, what)| *what != ListedKind::Whiteout).map(|(name, _)| name).collect())
}

/// The path at which layers hold what stands at `name` in the directory `parent`, when that is not redirected itself.
pub fn path_in_layers(parent: &Arc<Node>, name: Name<'_>) -> Result<Vec<NameBuf>, FsError> {
    let mut path = vec![name.to_buf()];
    let mut here = Arc::clone(parent);
    loop {
        let link = super::copy_up::newest_link(&here);
        match redirect_of(&here)? {
            Some(Redirect::Path(base)) => {
                path.extend(base.into_iter().rev());
                break;
            }
            Some(Redirect::Name(other)) => path.push(other),
            None => match &link {
                Some((_, name)) => path.push(name.clone()),
                None => break,
            },
        }
        match link {
            Some((parent, _)) => here = parent,
            None => break,
        }
    }
    path.reverse();
    Ok(path)
}

/// The redirect of a directory of the upper.
pub fn redirect_of(node: &Node) -> Result<Option<Redirect>, FsError> {
    match (Tree::upper_dir(node), node.branch().upper()) {
        (Some(dir), Some(upper)) => Ok(upper.reader().marks(&dir)?.redirect),
        _ => Ok(None),
    }
}
