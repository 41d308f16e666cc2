// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where the content of a file lies: with its attributes, or in a deeper layer (metadata-only copies, of ours and of the
//! kernel's in layers).

use std::sync::Arc;

use super::merge::{at_path, beside, follow, lowers_of, path_in_layers};
use super::node::{Lower, Node, Whereabouts};
use super::{Branch, Tree};
use crate::layer::Metacopy;
use crate::layer::whiteout::Redirect;
use crate::model::sync::{read, write};
use crate::model::{FsError, Kind, NameBuf};

impl Tree {
    /// Where the content of the regular file `node` lies.
    pub fn content(&self, node: &Arc<Node>) -> Result<Whereabouts, FsError> {
        if let Some(known) = read(&node.state).content.clone() {
            return Ok(known);
        }
        let found = self.find_content(node)?;
        let mut state = write(&node.state);
        // A copy-up or a completion that came in between knows better.
        Ok(state.content.get_or_insert(found).clone())
    }

    fn find_content(&self, node: &Arc<Node>) -> Result<Whereabouts, FsError> {
        let branch = node.branch();
        let (place, face) = {
            let state = read(&node.state);
            (state.upper.clone(), state.face().cloned())
        };
        let (mark, first) = match (place, branch.upper(), &face) {
            (Some(_), Some(upper), _) if upper.is_plain() => return Ok(Whereabouts::Upper),
            (Some(_), Some(upper), _) => {
                // Not by name: another file's mark, or its absence, would be believed for as long as the node lives.
                let place = self.hold(node)?.ok_or(FsError::Stale)?;
                match upper.reader().metacopy_at(&place)? {
                    None => return Ok(Whereabouts::Upper),
                    // A crash came between its truncation and the end of its mark: what the size says has happened.
                    Some(_) if place.stat()?.st_size == 0 => {
                        if !branch.is_read_only() {
                            upper.clear_metacopy(&place)?;
                        }
                        return Ok(Whereabouts::Upper);
                    }
                    Some(mark) => (mark, 0),
                }
            }
            (_, _, Some(face)) => match branch.layer(face)?.metacopy(&face.entry)? {
                None => return Ok(Whereabouts::Below(face.clone())),
                Some(mark) => (mark, face.layer + 1),
            },
            _ => return Err(FsError::Stale),
        };
        let (parent, name) = super::copy_up::newest_link(node).ok_or(FsError::Stale)?;
        Ok(Whereabouts::Below(content_below(branch, &lowers_of(&parent), name, mark, first)?))
    }

    /// A file of the upper is about to get another name: if it holds metadata only and no path to its content (as kernel
    /// overlayfs leaves it), it gets one, because its name will no longer lead there. The caller holds no lock.
    pub(crate) fn keep_content(&self, node: &Arc<Node>) -> Result<(), FsError> {
        let branch = node.branch();
        let Some(upper) = branch.upper().filter(|upper| !upper.is_plain() && !branch.lowers().is_empty()) else {
            return Ok(());
        };
        if node.kind() != Kind::File || !matches!(self.content(node)?, Whereabouts::Below(_)) {
            return Ok(());
        }
        let Some(place) = self.hold(node)? else { return Ok(()) };
        match upper.reader().metacopy_at(&place)? {
            Some(Metacopy { redirect: None }) => upper.set_redirect(&place, &Redirect::Path(path_of(node)?)),
            Some(Metacopy { redirect: Some(Redirect::Name(other)) }) => match super::copy_up::newest_link(node) {
                Some((parent, _)) => {
                    upper.set_redirect(&place, &Redirect::Path(path_in_layers(&parent, other.as_name())?))
                }
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }
}

/// Follows the marks of a file that holds metadata only, down to its content: beside it at `name`, in what layers from
/// index `first` on hold of its directory (`dir`), or at a path from their roots.
pub(super) fn content_below(
    branch: &Branch,
    dir: &[Lower],
    mut name: NameBuf,
    mut mark: Metacopy,
    mut first: usize,
) -> Result<Lower, FsError> {
    let mut path: Option<Vec<NameBuf>> = None;
    loop {
        match (mark.redirect, &mut path) {
            (redirect, Some(path)) => follow(path, redirect),
            (Some(Redirect::Path(other)), None) => path = Some(other),
            (Some(Redirect::Name(other)), None) => name = other,
            (None, None) => {}
        }
        let found = match &path {
            Some(path) => at_path(branch, first, path)?,
            None => beside(branch, dir, first, name.as_name())?,
        };
        let Some((lower, _)) = found.lowers.into_iter().next().filter(|(_, found)| found.attr.kind == Kind::File)
        else {
            let at = path.map_or(Redirect::Name(name), Redirect::Path).value();
            let what = format!("the content of a metadata-only copy is not at {}", at.escape_ascii());
            return Err(FsError::Corrupt { layer: branch.label().to_owned(), what });
        };
        match branch.layer(&lower)?.metacopy(&lower.entry)? {
            None => return Ok(lower),
            Some(deeper) => (mark, first) = (deeper, lower.layer + 1),
        }
    }
}

/// The path at which layers hold the newest name of a node.
pub(super) fn path_of(node: &Node) -> Result<Vec<NameBuf>, FsError> {
    match super::copy_up::newest_link(node) {
        Some((parent, name)) => path_in_layers(&parent, name.as_name()),
        None => Ok(Vec::new()),
    }
}
