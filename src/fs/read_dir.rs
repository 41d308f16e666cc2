// SPDX-License-Identifier: MIT OR Apache-2.0
//! READDIR and READDIRPLUS: a function of the directory and a position, no handle.

use std::ops::ControlFlow;

use super::{EntryOut, Fs};
use crate::model::ids::NodeId;
use crate::model::{Cookie, FsError, Kind, NameBuf};
use crate::tree::merge::Resolved;

/// How many names are read at a time: locks are not held while entries are resolved and sent.
const BATCH: usize = 128;

/// The inode number of what cannot be read: nothing has it.
const UNKNOWN: u64 = u64::MAX;

/// One line of a listing.
#[derive(Clone, Debug)]
pub struct DirLine {
    /// The name; `.` and `..` are told by the position.
    pub name: NameBuf,
    /// The listing goes on after it.
    pub cookie: Cookie,
    /// Inode number to show.
    pub ino: u64,
    /// Kind.
    pub kind: Kind,
}

/// Takes a line of READDIRPLUS: what was looked up, or the line alone where that failed. `false`: no room.
type PlusSink<'a> = dyn FnMut(&NameBuf, Cookie, Result<&EntryOut, DirLine>) -> bool + 'a;

impl Fs {
    /// READDIR: passes the lines after `after` to `sink` until it breaks, `.` and `..` left out.
    pub fn read_dir(
        &self,
        id: NodeId,
        after: Cookie,
        sink: &mut dyn FnMut(DirLine) -> ControlFlow<()>,
    ) -> Result<(), FsError> {
        self.each_name(id, after, &mut |name, cookie, hint| {
            let parent = self.tree.node(id)?;
            let resolved = {
                let resolving = self.tree.resolving();
                self.tree.resolve(&resolving, &parent, name.as_name())
            };
            let line = match resolved {
                // Gone since it was listed.
                Ok(None) => return Ok(ControlFlow::Continue(())),
                Ok(Some(Resolved::Mounted(root))) => DirLine { name, cookie, ino: root.ino(), kind: root.kind() },
                Ok(Some(Resolved::Found(sources))) => {
                    // What is renamed or copied up keeps its number, so a known node knows better.
                    let ino = match self.tree.peek(&parent, &sources) {
                        Some(node) => node.ino(),
                        None => sources.number(parent.branch()).unwrap_or(UNKNOWN),
                    };
                    DirLine { name, cookie, ino, kind: sources.kind() }
                }
                Err(error) => {
                    // One bad entry does not hide the others.
                    log::warn!("{name:?} is listed but cannot be read: {error}");
                    DirLine { name, cookie, ino: UNKNOWN, kind: hint }
                }
            };
            Ok(sink(line))
        })
    }

    /// READDIRPLUS: as [`Fs::read_dir`], with a look-up counted for each line that `sink` takes (returns `true`).
    /// Where `sink` does not, the look-up is given back and the listing ends. An entry that cannot be read is passed as
    /// a line without one.
    pub fn read_dir_plus(&self, id: NodeId, after: Cookie, sink: &mut PlusSink<'_>) -> Result<(), FsError> {
        self.each_name(id, after, &mut |name, cookie, kind| match self.lookup(id, name.as_name()) {
            Err(FsError::NotFound) => Ok(ControlFlow::Continue(())),
            Err(error) => {
                // One bad entry does not hide the others, and those sent already have been counted.
                log::warn!("{name:?} is listed but cannot be read: {error}");
                let goes_on = sink(&name, cookie, Err(DirLine { name: name.clone(), cookie, ino: UNKNOWN, kind }));
                Ok(if goes_on { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
            }
            Ok(entry) => {
                if sink(&name, cookie, Ok(&entry)) {
                    Ok(ControlFlow::Continue(()))
                } else {
                    self.forget(entry.id, 1);
                    Ok(ControlFlow::Break(()))
                }
            }
        })
    }

    fn each_name(
        &self,
        id: NodeId,
        after: Cookie,
        sink: &mut dyn FnMut(NameBuf, Cookie, Kind) -> Result<ControlFlow<()>, FsError>,
    ) -> Result<(), FsError> {
        let node = self.tree.node(id)?;
        let mut after = after;
        loop {
            let mut batch: Vec<(NameBuf, Cookie, Kind)> = Vec::with_capacity(BATCH);
            {
                let resolving = self.tree.resolving();
                self.tree.list(&resolving, &node, after, &mut |name, cookie, kind| {
                    batch.push((name.to_buf(), cookie, kind));
                    if batch.len() == BATCH { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                })?;
            }
            let is_last = batch.len() < BATCH;
            for (name, cookie, kind) in batch {
                after = cookie;
                if sink(name, cookie, kind)?.is_break() {
                    return Ok(());
                }
            }
            if is_last {
                return Ok(());
            }
        }
    }
}
