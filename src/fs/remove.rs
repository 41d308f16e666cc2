// SPDX-License-Identifier: MIT OR Apache-2.0
//! Names that go: UNLINK, RMDIR. A node that the kernel knows stays reachable by a descriptor until it is forgotten.

use std::sync::Arc;

use super::Fs;
use crate::model::ids::NodeId;
use crate::model::sync::{lock, write};
use crate::model::{FsError, Kind, Name};
use crate::sys::{Dir, Place};
use crate::tree::merge::{self, Resolved, Sources, Via};
use crate::tree::{Branch, Node, Tree};

impl Fs {
    /// UNLINK. `IsDir` for a directory, `Busy` for a mount point.
    pub fn unlink(&self, parent: NodeId, name: Name<'_>) -> Result<(), FsError> {
        self.remove(parent, name, false)
    }

    /// RMDIR. `NotDir` for anything else, `NotEmpty`, `Busy` for a mount point.
    pub fn rmdir(&self, parent: NodeId, name: Name<'_>) -> Result<(), FsError> {
        self.remove(parent, name, true)
    }

    fn remove(&self, parent: NodeId, name: Name<'_>, wants_dir: bool) -> Result<(), FsError> {
        let parent = self.tree.node(parent)?;
        let branch = Arc::clone(parent.branch());
        let upper = branch.writable_upper()?;
        // What is not there needs no copy-up of its directory.
        if !self.record_links(&parent, name)? {
            return Err(FsError::NotFound);
        }
        let dir = self.tree.writable_dir(&parent)?;
        let resolving = self.tree.resolving();
        let _names = lock(&parent.names);
        let sources = match self.tree.resolve(&resolving, &parent, name)?.ok_or(FsError::NotFound)? {
            Resolved::Mounted(_) => return Err(FsError::Busy),
            Resolved::Found(sources) => sources,
        };
        let mut own = None;
        match (sources.kind(), wants_dir) {
            (Kind::Dir, false) => return Err(FsError::IsDir),
            (Kind::Dir, true) => {
                let (node, _) = self.tree.enter(&parent, name, sources.clone())?;
                self.forget(node.id(), 1);
                own = Some(node);
            }
            (_, true) => return Err(FsError::NotDir),
            (_, false) if sources.is_linked_below() => return Err(FsError::Stale),
            (_, false) => {}
        }
        // Held to the end: what is empty stays empty until it is gone, because all that is in it goes with it.
        let _own_names = own.as_ref().map(|own| lock(&own.names));
        if let Some(own) = &own
            && !self.tree.is_empty_dir(&resolving, own)?
        {
            return Err(FsError::NotEmpty);
        }
        let known = self.tree.peek(&parent, &sources);
        let hold = hold(known.as_deref(), &sources)?;
        let below = merge::below(&parent, name)?;
        let is_physical = sources.upper.as_ref().is_some_and(|found| found.via == Via::Name);
        match (is_physical, wants_dir) {
            (true, true) => upper.rmdir(&dir, name, below)?,
            (true, false) => upper.unlink(&dir, name, below)?,
            (false, _) => upper.white_out(&dir, name)?,
        }
        upper.reader().outdate_listing(&dir);
        self.name_is_gone(&branch, (&parent, name), &sources, known.as_ref(), hold);
        Ok(())
    }

    /// Prepares a name that is about to go, before locks are taken: where it is one of several of a file of a layer, the
    /// others are counted on a copy from now on. Is there anything at the name?
    pub(super) fn record_links(&self, parent: &Arc<Node>, name: Name<'_>) -> Result<bool, FsError> {
        let node = {
            let resolving = self.tree.resolving();
            match self.tree.resolve(&resolving, parent, name)? {
                None => return Ok(false),
                Some(Resolved::Found(sources)) if sources.is_linked_below() => {
                    self.tree.enter(parent, name, sources)?.0
                }
                Some(_) => return Ok(true),
            }
        };
        let recorded = self.tree.record_group(&node);
        self.forget(node.id(), 1);
        recorded.map(|()| true)
    }

    /// The name has gone: nodes and links follow. What fails here is logged, because the operation itself has happened.
    pub(super) fn name_is_gone(
        &self,
        branch: &Branch,
        (parent, name): (&Arc<Node>, Name<'_>),
        sources: &Sources,
        known: Option<&Arc<Node>>,
        held: Option<Place>,
    ) {
        if let Some(node) = known {
            node.lose_name(parent, name);
            if let Some(place) = &held {
                // Its name may lead to another file from now on.
                write(&node.state).upper = Some(place.clone());
            }
        }
        let counted = self.count_lost_name(branch, sources).and_then(|()| match (known, &held) {
            (Some(node), _) => self.lose(node, sources, held.clone()),
            (None, Some(place)) => branch.writable_upper()?.drop_empty_group(place),
            (None, None) => Ok(()),
        });
        if let Err(error) = counted {
            log::warn!("the links of {name:?} in {} could not be counted: {error}", branch.label());
        }
    }

    /// Keeps the links of a hard-link group right when a name that stands in a layer is gone.
    fn count_lost_name(&self, branch: &Branch, sources: &Sources) -> Result<(), FsError> {
        match &sources.upper {
            Some(found) if found.via == Via::Group => branch.writable_upper()?.lose_layer_name(&found.place),
            _ => Ok(()),
        }
    }

    /// Takes a name from a known node. `hold`: the object by descriptor, taken before the name went.
    fn lose(&self, node: &Arc<Node>, sources: &Sources, hold: Option<Place>) -> Result<(), FsError> {
        let Some(place) = hold else {
            // It lies in a layer, where it stays readable.
            if sources.lowers.first().is_none_or(|(_, found)| found.attr.nlink < 2 || node.kind() == Kind::Dir) {
                self.forget_name(node);
            }
            return Ok(());
        };
        if node.kind() == Kind::Dir {
            self.forget_name(node);
            return Ok(());
        }
        let branch = node.branch();
        let upper = branch.writable_upper()?;
        upper.drop_empty_group(&place)?;
        if branch.attr_in_upper(&place)?.nlink == 0 {
            write(&node.state).upper = Some(place);
            self.forget_name(node);
        } else {
            // Another name leads to it; until that is looked up, the descriptor does.
            let other = self.find_other_name(node, &place)?;
            write(&node.state).upper = Some(other.unwrap_or(place));
        }
        Ok(())
    }

    fn forget_name(&self, node: &Arc<Node>) {
        write(&node.state).is_removed = true;
        self.tree.nodes().release_keys(node);
    }

    /// A place by name of a file that has lost one: so that no descriptor is held for each file of a linked tree.
    fn find_other_name(&self, node: &Arc<Node>, held: &Place) -> Result<Option<Place>, FsError> {
        let links = crate::model::sync::read(&node.state).links.clone();
        let wanted = held.stat()?;
        for (parent, name) in links {
            let Some(dir) = Tree::upper_dir(&parent) else { continue };
            if let Ok(stat) = dir.stat_child(name.as_name())
                && (stat.st_dev, stat.st_ino) == (wanted.st_dev, wanted.st_ino)
            {
                return Ok(Some(Place::at(&dir, name.as_name())));
            }
        }
        Ok(None)
    }
}

/// The object of a name that is about to go, held by descriptor, where it lies in the upper and somebody needs it:
/// the kernel knows it, or its hard-link group must be looked after.
pub(super) fn hold(known: Option<&Node>, sources: &Sources) -> Result<Option<Place>, FsError> {
    let Some(found) = &sources.upper else { return Ok(None) };
    if let (Place::Dir(_), Some(node)) = (&found.place, known) {
        let dir: Option<Arc<Dir>> = Tree::upper_dir(node);
        if let Some(dir) = &dir {
            dir.pin()?;
        }
        return Ok(dir.map(Place::Dir));
    }
    let is_dir = matches!(found.place, Place::Dir(_));
    if is_dir || (known.is_none() && found.attr.nlink < 2 && found.via == Via::Name) {
        // A last name of a group counts one link here, but two on the host: `attr` has the shown count.
        let has_host_links = !is_dir && found.place.stat()?.st_nlink > 1;
        if !has_host_links {
            return Ok(None);
        }
    }
    Ok(Some(Place::Fd(found.place.hold()?)))
}
