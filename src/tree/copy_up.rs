// SPDX-License-Identifier: MIT OR Apache-2.0
//! Copy-up of nodes: the way to every writable place. [`Tree::writable`] and [`Tree::writable_dir`] are the only
//! makers of places that may be written, so forgetting copy-up does not compile.

use std::os::fd::OwnedFd;
use std::sync::{Arc, MutexGuard};

use super::merge::physical;
use super::node::{Lower, Node, Whereabouts};
use super::{Branch, Tree};
use crate::model::sync::{lock, read, write};
use crate::model::{Attr, FsError, Kind, Name, NameBuf};
use crate::sys::node::{SetTime, attr_of};
use crate::sys::{Dir, FileId, Place};
use crate::upper::Upper;
use crate::upper::copy_up::{Extent, Source};
use crate::upper::links::Record;
use crate::upper::stage::{Physical, Staged};

/// A node that lies in the upper of a writable branch: what every change takes.
#[derive(Clone, Debug)]
pub struct Writable {
    place: Place,
}

impl Writable {
    /// Where it lies.
    pub fn place(&self) -> &Place {
        &self.place
    }
}

/// Which names a copy takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Naming {
    /// The node's newest name; others of its hard-link group lead to it by the record.
    Newest,
    /// None: the record of its hard-link group alone leads to it, because its name is about to go.
    Record,
}

impl Tree {
    /// The node in the upper, copied up if need be. `ReadOnly` where there is no upper to write to.
    ///
    /// The caller holds no lock of the tree. Others who want the same node wait for one copy.
    pub fn writable(&self, node: &Arc<Node>, extent: Extent) -> Result<Writable, FsError> {
        let branch = Arc::clone(node.branch());
        let upper = branch.writable_upper()?;
        let needs_content = node.kind() == Kind::File && extent == Extent::Whole;
        if let Some(place) = Tree::upper_place(node)
            && (!needs_content || matches!(self.content(node)?, Whereabouts::Upper))
        {
            return Ok(Writable { place });
        }
        let _copying = copying(node)?;
        if let Some(place) = Tree::upper_place(node) {
            if needs_content {
                self.complete(upper, node, extent)?;
            }
            return Ok(Writable { place });
        }
        Ok(Writable { place: self.copy_up(upper, node, extent, Naming::Newest)?.0 })
    }

    /// Makes a file empty whose content a layer holds, without copying that, and opens it for writing. `None` for a file
    /// that holds its content itself: then nothing was done. An error leaves the old content.
    pub fn emptied(&self, node: &Arc<Node>) -> Result<Option<Arc<OwnedFd>>, FsError> {
        let branch = Arc::clone(node.branch());
        let upper = branch.writable_upper()?;
        let is_above =
            || Ok::<_, FsError>(Tree::upper_place(node).is_some() && matches!(self.content(node)?, Whereabouts::Upper));
        if node.kind() != Kind::File || is_above()? {
            return Ok(None);
        }
        let _copying = copying(node)?;
        if Tree::upper_place(node).is_some() {
            return self.complete(upper, node, Extent::Nothing);
        }
        Ok(self.copy_up(upper, node, Extent::Nothing, Naming::Newest)?.1)
    }

    /// Copies a file up whose name in a layer is about to go while its hard-link group has others: the links are counted
    /// on the copy. It gets no name and, if that can be found again, no content.
    pub fn record_group(&self, node: &Arc<Node>) -> Result<(), FsError> {
        let branch = Arc::clone(node.branch());
        let upper = branch.writable_upper()?;
        let _copying = copying(node)?;
        if Tree::upper_place(node).is_none() {
            self.copy_up(upper, node, Extent::Mark, Naming::Record)?;
        }
        Ok(())
    }

    /// Gives a node of the upper its content, or makes it empty and opens it (`Extent::Nothing`), if a layer holds it.
    fn complete(&self, upper: &Upper, node: &Arc<Node>, extent: Extent) -> Result<Option<Arc<OwnedFd>>, FsError> {
        let branch = node.branch();
        let Whereabouts::Below(lower) = self.content(node)? else { return Ok(None) };
        let held = self.hold(node)?.ok_or(FsError::Stale)?;
        let attr = branch.attr_in_upper(&held)?;
        let layer = &**branch.layer(&lower)?;
        let content = Some((layer, &lower.entry));
        let source = Source { layer, entry: &lower.entry, attr: &attr, number: node.ino(), content, path: &[] };
        let file = upper.complete(source, &held, extent)?;
        write(&node.state).content = Some(Whereabouts::Upper);
        Ok(Some(file))
    }

    /// Copies a node of a layer up: where it lies now and, if it was made empty, its file. Under its copy-up lock.
    fn copy_up(
        &self,
        upper: &Upper,
        node: &Arc<Node>,
        extent: Extent,
        naming: Naming,
    ) -> Result<(Place, Option<Arc<OwnedFd>>), FsError> {
        let branch = node.branch();
        // Parents first: their locks are taken and released on the way.
        if let (Naming::Newest, Some((parent, _))) = (naming, newest_link(node)) {
            self.writable_dir(&parent)?;
        }
        let lower = read(&node.state).face().cloned().ok_or(FsError::Stale)?;
        let attr = branch.attr_in_layer(&lower)?;
        let below = if node.kind() == Kind::File { Some(self.content(node)?) } else { None };
        let below = match &below {
            Some(Whereabouts::Below(below)) => Some(below),
            _ => None,
        };
        let content = match below {
            Some(below) => Some((&**branch.layer(below)?, &below.entry)),
            None => None,
        };
        // The content's own path: a file found by way of a redirect may be called otherwise now.
        let is_marked = extent.of(&attr) == Extent::Mark;
        let path = if is_marked { self.path_of_content(node, &lower, below)? } else { None };
        let extent = if path.is_some() || !is_marked { extent.of(&attr) } else { Extent::Whole };
        let path = path.unwrap_or_default();
        let source = Source {
            layer: &**branch.layer(&lower)?,
            entry: &lower.entry,
            attr: &attr,
            number: node.ino(),
            content,
            path: &path,
        };
        let staged = upper.stage_copy(source, extent)?;
        // Opened before anybody can see it: what fails leaves the old file.
        let file = if extent == Extent::Nothing { Some(staged.open()?) } else { None };
        let content = match below {
            Some(below) if extent == Extent::Mark => Whereabouts::Below(below.clone()),
            _ => Whereabouts::Upper,
        };
        let place = self.publish(upper, node, naming, &lower, &attr, staged, content)?;
        log::debug!("copied up node {} of {}: {} bytes", node.id().0, branch.label(), attr.size);
        Ok((place, file))
    }

    /// The path of the content for a mark, if it can be found by it again: only a file that holds its content itself, at
    /// a name it still has, and not so deep that no attribute holds the path.
    fn path_of_content(
        &self,
        node: &Arc<Node>,
        face: &Lower,
        below: Option<&Lower>,
    ) -> Result<Option<Vec<NameBuf>>, FsError> {
        let Some(below) = below.filter(|below| below.layer == face.layer) else { return Ok(None) };
        let path = super::content::path_of(node)?;
        let found = super::merge::at_path(node.branch(), 0, &path)?;
        let is_found = found.lowers.first().is_some_and(|(lower, _)| lower.layer == below.layer);
        Ok((is_found && !path.is_empty() && Upper::can_hold(&path)).then_some(path))
    }

    /// Makes the staged copy the node's place: under a name it has now, or by descriptor if it has lost its last one.
    ///
    /// The node is found under the copy's identity before the copy can be seen, and its place is set before names may
    /// change again.
    #[expect(clippy::too_many_arguments, reason = "what copy-up has found out, in one call")]
    fn publish(
        &self,
        upper: &Upper,
        node: &Arc<Node>,
        naming: Naming,
        lower: &Lower,
        attr: &Attr,
        staged: Staged<'_>,
        content: Whereabouts,
    ) -> Result<Place, FsError> {
        let _resolving = self.resolving();
        let staged_place = staged.place()?;
        let id = FileId::of(&staged_place.stat()?);
        let record = node.branch().record(lower)?;
        loop {
            let link = if naming == Naming::Newest { link_in_upper(node)? } else { None };
            let Some((parent, dir, name)) = link else {
                // Nobody reaches it by a name we know. Other names of its group may lead to it still.
                let place = match &record {
                    Some(record) => upper.record_copy(record, &staged_place, attr.nlink)?,
                    None => Place::Fd(staged_place.hold()?),
                };
                self.settle(node, place.clone(), id, content);
                return Ok(place);
            };
            let _names = lock(&parent.names);
            if !node.has_name(&parent, name.as_name()) {
                // Removed between the look and the lock.
                continue;
            }
            self.nodes().add_key(node, id);
            let published =
                self.publish_at(upper, record.as_ref(), attr, &staged_place, staged, (&dir, name.as_name()));
            let place = match published {
                Ok(place) => place,
                Err(error) => {
                    self.nodes().remove_key(node, id);
                    return Err(error);
                }
            };
            self.settle(node, place.clone(), id, content);
            upper.reader().outdate_listing(&dir);
            return Ok(place);
        }
    }

    /// Gives what is staged its name in the upper, and its record before that if it has a hard-link group.
    fn publish_at(
        &self,
        upper: &Upper,
        record: Option<&Record>,
        attr: &Attr,
        staged_place: &Place,
        staged: Staged<'_>,
        (dir, name): (&Arc<Dir>, Name<'_>),
    ) -> Result<Place, FsError> {
        let before = attr_of(&dir.stat()?)?;
        let recorded = match record {
            Some(record) => Some((record, upper.record_copy(record, staged_place, attr.nlink)?)),
            None => None,
        };
        let marked = if recorded.is_some() { upper.mark_impure(dir, staged_place) } else { Ok(()) };
        if let Err(error) = marked.and_then(|()| staged.publish(dir, name, Physical::Nothing)) {
            // A record is a whole copy by itself, the names in their layers lead to it, and others may have found it by
            // now: it is not taken back. Only the name is missing in the upper, as the group's other names are.
            let Some((_, place)) = recorded else { return Err(error) };
            log::warn!("{name:?} has its copy in the record of its links only: {error}");
            return Ok(place);
        }
        let place = if attr.kind == Kind::Dir { Place::Dir(dir.open_child(name)?) } else { Place::at(dir, name) };
        let counted = if record.is_some() { upper.lose_layer_name(&place) } else { Ok(()) };
        // To users nothing has changed in the directory.
        let times = (SetTime::To(before.atime), SetTime::To(before.mtime));
        if let Err(error) = counted.and(Place::Dir(Arc::clone(dir)).utimens(times.0, times.1)) {
            log::warn!("links or times beside the copy of {name:?} could not be kept: {error}");
        }
        Ok(place)
    }

    /// The node lies at `place` from now on.
    fn settle(&self, node: &Arc<Node>, place: Place, id: FileId, content: Whereabouts) {
        {
            let mut state = write(&node.state);
            state.upper = Some(place);
            state.upper_id = Some(id);
            if node.kind() != Kind::Dir {
                state.lowers.clear();
                state.content = Some(content);
            }
        }
        self.nodes().add_key(node, id);
    }

    /// The node as a directory of the upper, copied up with its parents if need be. The same rules as for
    /// [`Tree::writable`]. `NotFound` for a removed directory: nothing can be made in it.
    pub fn writable_dir(&self, node: &Arc<Node>) -> Result<Arc<Dir>, FsError> {
        if node.kind() != Kind::Dir {
            return Err(FsError::NotDir);
        }
        // Walk up to the first ancestor in the upper, then copy downwards: depth costs no stack.
        let mut chain = vec![Arc::clone(node)];
        while let Some(last) = chain.last() {
            if Tree::upper_place(last).is_some() || last.branch().is_read_only() {
                break;
            }
            match newest_link(last) {
                Some((parent, _)) => chain.push(parent),
                None => break,
            }
        }
        let mut dir = None;
        for node in chain.iter().rev() {
            if node.is_removed() {
                return Err(FsError::NotFound);
            }
            dir = match self.writable(node, Extent::Whole)?.place {
                Place::Dir(dir) => Some(dir),
                Place::At(..) | Place::Fd(_) => return Err(FsError::NotDir),
            };
        }
        dir.ok_or(FsError::Stale)
    }

    /// Makes the name of a file whose hard-link group was copied up stand in the upper itself.
    pub(crate) fn materialize(
        &self,
        branch: &Branch,
        dir: &Arc<Dir>,
        name: Name<'_>,
        found: &super::merge::InUpper,
    ) -> Result<(), FsError> {
        if found.via != super::merge::Via::Group {
            return Ok(());
        }
        let upper = branch.writable_upper()?;
        upper.link(&found.place, dir, name, physical(branch, dir, name)?)?;
        upper.lose_layer_name(&found.place)
    }
}

/// A directory's node, the directory of the upper that it is, and a name in it.
type LinkInUpper = (Arc<Node>, Arc<Dir>, NameBuf);

/// A name of a node in a directory of the upper, the newest first: the one whose parents were copied up, or the one it
/// was moved to since. `None` for a node without a name.
fn link_in_upper(node: &Node) -> Result<Option<LinkInUpper>, FsError> {
    let links = read(&node.state).links.clone();
    if links.is_empty() || node.is_removed() {
        return Ok(None);
    }
    let in_upper = |(parent, name): (Arc<Node>, NameBuf)| Tree::upper_dir(&parent).map(|dir| (parent, dir, name));
    links.into_iter().rev().find_map(in_upper).map(Some).ok_or(FsError::Stale)
}

/// Takes the copy-up lock. `MustWait` for a file on a thread that may not: even a small one is synced, which may take
/// as long as everything else that is being written.
fn copying(node: &Node) -> Result<MutexGuard<'_, ()>, FsError> {
    if node.kind() == Kind::File && super::patience::is_hurried() {
        return Err(FsError::MustWait { ino: node.ino() });
    }
    Ok(lock(&node.copy_up))
}

/// The newest name of a node.
pub fn newest_link(node: &Node) -> Option<(Arc<Node>, NameBuf)> {
    read(&node.state).links.last().cloned()
}
