// SPDX-License-Identifier: MIT OR Apache-2.0
//! RENAME, with NOREPLACE and EXCHANGE.
//!
//! A directory with sources in layers moves too: a mark on it says where layers hold it (the kernel's `redirect_dir`).
//! Across branches: `CrossDevice`, and programs copy.

use std::sync::Arc;

use super::Fs;
use super::remove::hold;
use crate::layer::whiteout::Redirect;
use crate::model::ids::NodeId;
use crate::model::sync::write;
use crate::model::{FsError, Kind, Name};
use crate::sys::{Dir, Place};
use crate::tree::merge::{self, Resolved, Sources, Via};
use crate::tree::{Branch, Node, Renaming};
use crate::upper::copy_up::Extent;
use crate::upper::edit::{Below, Spot};

/// What to do with what stands at the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameMode {
    /// Replace it.
    Replace,
    /// Fail with `Exists`.
    NoReplace,
    /// Both change places.
    Exchange,
}

/// One end of a rename.
struct End<'a> {
    parent: Arc<Node>,
    dir: Arc<Dir>,
    name: Name<'a>,
}

impl<'a> End<'a> {
    fn spot(&self, is_dir: bool) -> Spot<'_> {
        Spot { dir: &self.dir, name: self.name, is_dir }
    }
}

impl Fs {
    /// RENAME of `from.1` in `from.0` to `to.1` in `to.0`.
    pub fn rename(&self, from: (NodeId, Name<'_>), to: (NodeId, Name<'_>), mode: RenameMode) -> Result<(), FsError> {
        let (from_parent, to_parent) = (self.tree.node(from.0)?, self.tree.node(to.0)?);
        if !Arc::ptr_eq(from_parent.branch(), to_parent.branch()) {
            return Err(FsError::CrossDevice);
        }
        let branch = Arc::clone(from_parent.branch());
        branch.writable_upper()?;
        self.prepare(&from_parent, from.1)?;
        match mode {
            RenameMode::Exchange => self.prepare(&to_parent, to.1)?,
            RenameMode::Replace => drop(self.record_links(&to_parent, to.1)?),
            RenameMode::NoReplace => {}
        }
        let from = End { dir: self.tree.writable_dir(&from_parent)?, parent: from_parent, name: from.1 };
        let to = End { dir: self.tree.writable_dir(&to_parent)?, parent: to_parent, name: to.1 };
        let renaming = self.tree.renaming();
        if to.parent.is_removed() || from.parent.is_removed() {
            return Err(FsError::NotFound);
        }
        match mode {
            RenameMode::Exchange => self.exchange(&renaming, &branch, &from, &to),
            RenameMode::Replace | RenameMode::NoReplace => self.move_name(&renaming, &branch, &from, &to, mode),
        }?;
        for end in [&from, &to] {
            branch.writable_upper()?.reader().outdate_listing(&end.dir);
        }
        Ok(())
    }

    /// Brings what stands at `name` into the upper, before the rename lock is taken.
    fn prepare(&self, parent: &Arc<Node>, name: Name<'_>) -> Result<(), FsError> {
        let node = {
            let resolving = self.tree.resolving();
            match self.tree.resolve(&resolving, parent, name)?.ok_or(FsError::NotFound)? {
                Resolved::Mounted(_) => return Err(FsError::Busy),
                Resolved::Found(sources) => self.tree.enter(parent, name, sources)?.0,
            }
        };
        let result = self.tree.writable(&node, Extent::Metadata).and_then(|_| self.tree.keep_content(&node));
        self.forget(node.id(), 1);
        result
    }

    /// What stands at an end, brought under its own name in the upper. Under the rename lock.
    fn source(&self, renaming: &Renaming<'_>, branch: &Branch, end: &End<'_>) -> Result<Sources, FsError> {
        let sources = self.find(renaming, end)?.ok_or(FsError::NotFound)?;
        let Some(found) = &sources.upper else { return Err(FsError::Stale) };
        if found.via == Via::Name {
            return Ok(sources);
        }
        self.tree.materialize(branch, &end.dir, end.name, found)?;
        self.find(renaming, end)?.ok_or(FsError::NotFound)
    }

    fn find(&self, renaming: &Renaming<'_>, end: &End<'_>) -> Result<Option<Sources>, FsError> {
        match self.tree.resolve(renaming, &end.parent, end.name)? {
            Some(Resolved::Mounted(_)) => Err(FsError::Busy),
            Some(Resolved::Found(sources)) => Ok(Some(sources)),
            None => Ok(None),
        }
    }

    fn move_name(
        &self,
        renaming: &Renaming<'_>,
        branch: &Branch,
        from: &End<'_>,
        to: &End<'_>,
        mode: RenameMode,
    ) -> Result<(), FsError> {
        let upper = branch.writable_upper()?;
        let source = self.source(renaming, branch, from)?;
        let target = self.find(renaming, to)?;
        let is_dir = source.kind() == Kind::Dir;
        let node = self.tree.peek(&from.parent, &source);
        if let Some(target) = &target {
            if mode == RenameMode::NoReplace {
                return Err(FsError::Exists);
            }
            if source.key(branch) == target.key(branch) {
                // Two names of one file: nothing to do (rename(2)).
                return Ok(());
            }
            self.check_replaceable(renaming, to, is_dir, target)?;
            if target.is_linked_below() {
                return Err(FsError::Stale);
            }
        }
        let known = target.as_ref().and_then(|target| self.tree.peek(&to.parent, target));
        let held = match &target {
            Some(target) => hold(known.as_deref(), target)?,
            None => None,
        };
        let over = merge::physical(branch, &to.dir, to.name)?;
        self.mark_moved(branch, &source, from, to)?;
        let left = merge::below(&from.parent, from.name)?;
        if upper.is_plain() && mode == RenameMode::NoReplace {
            upper.rename_new(from.spot(is_dir), to.spot(is_dir))?;
        } else {
            upper.rename(from.spot(is_dir), to.spot(is_dir), over, left)?;
        }
        if let Some(target) = &target {
            self.name_is_gone(branch, (&to.parent, to.name), target, known.as_ref(), held);
        }
        if let Some(node) = node {
            self.moved(&node, from, to);
        }
        Ok(())
    }

    /// Marks a directory that is about to move: where layers hold it, or that nothing they hold at the target is part
    /// of it.
    fn mark_moved(&self, branch: &Branch, moved: &Sources, from: &End<'_>, to: &End<'_>) -> Result<(), FsError> {
        let (Some(found), Kind::Dir) = (&moved.upper, moved.kind()) else { return Ok(()) };
        let upper = branch.writable_upper()?;
        if moved.lowers.is_empty() {
            return match merge::below(&to.parent, to.name)? {
                Below::Something => upper.set_opaque(&found.place),
                Below::Nothing => Ok(()),
            };
        }
        let redirect = match &found.place {
            Place::Dir(dir) => upper.reader().marks(dir)?.redirect,
            Place::At(..) | Place::Fd(_) => None,
        };
        // As the kernel: another name in the same directory, or a path, which holds wherever the directory moves.
        let is_beside = Arc::ptr_eq(&from.parent, &to.parent);
        let new = match redirect {
            Some(Redirect::Path(_)) => return Ok(()),
            Some(Redirect::Name(_)) if is_beside => return Ok(()),
            Some(Redirect::Name(other)) => Redirect::Path(merge::path_in_layers(&from.parent, other.as_name())?),
            None if is_beside => Redirect::Name(from.name.to_buf()),
            None => Redirect::Path(merge::path_in_layers(&from.parent, from.name)?),
        };
        upper
            .set_redirect(&found.place, &new)
            .map_err(|error| if error == FsError::NameTooLong { FsError::CrossDevice } else { error })
    }

    fn check_replaceable(
        &self,
        renaming: &Renaming<'_>,
        to: &End<'_>,
        is_dir: bool,
        target: &Sources,
    ) -> Result<(), FsError> {
        match (is_dir, target.kind() == Kind::Dir) {
            (true, false) => Err(FsError::NotDir),
            (false, true) => Err(FsError::IsDir),
            (false, false) => Ok(()),
            (true, true) => {
                let (node, _) = self.tree.enter(&to.parent, to.name, target.clone())?;
                let is_empty = self.tree.is_empty_dir(renaming, &node);
                self.forget(node.id(), 1);
                if is_empty? { Ok(()) } else { Err(FsError::NotEmpty) }
            }
        }
    }

    fn exchange(&self, renaming: &Renaming<'_>, branch: &Branch, from: &End<'_>, to: &End<'_>) -> Result<(), FsError> {
        let upper = branch.writable_upper()?;
        let (a, b) = (self.source(renaming, branch, from)?, self.source(renaming, branch, to)?);
        self.mark_moved(branch, &a, from, to)?;
        self.mark_moved(branch, &b, to, from)?;
        let (a_node, b_node) = (self.tree.peek(&from.parent, &a), self.tree.peek(&to.parent, &b));
        upper.exchange(from.spot(a.kind() == Kind::Dir), to.spot(b.kind() == Kind::Dir))?;
        if let Some(node) = a_node {
            self.moved(&node, from, to);
        }
        if let Some(node) = b_node {
            self.moved(&node, to, from);
        }
        Ok(())
    }

    /// A known node now stands at `to`.
    fn moved(&self, node: &Arc<Node>, from: &End<'_>, to: &End<'_>) {
        node.lose_name(&from.parent, from.name);
        node.gain_name(&to.parent, to.name);
        let mut state = write(&node.state);
        match &state.upper {
            Some(Place::Dir(dir)) => dir.moved(&to.dir, to.name),
            Some(Place::At(..)) => state.upper = Some(Place::at(&to.dir, to.name)),
            Some(Place::Fd(_)) | None => {}
        }
    }
}
