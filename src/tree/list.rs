// SPDX-License-Identifier: MIT OR Apache-2.0
//! Merged listings: sorted streams of one directory's sources, a function of (node, cookie) that needs no handle.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::node::{Lower, Node};
use super::{NamesHeld, Tree};
use crate::layer::{Entry, Layer, ListedKind};
use crate::model::cookie::NameHash;
use crate::model::sync::read;
use crate::model::{Cookie, FsError, Kind, Name, NameBuf};
use crate::sys::Place;

/// How many names a stream reads at a time.
const BATCH: usize = 256;

/// One source of a listing.
struct Stream<'a> {
    layer: &'a dyn Layer,
    entry: Entry,
    buffer: VecDeque<(NameHash, NameBuf, ListedKind, Cookie)>,
    after: Cookie,
    is_done: bool,
}

impl Stream<'_> {
    fn fill(&mut self) -> Result<(), FsError> {
        if !self.buffer.is_empty() || self.is_done {
            return Ok(());
        }
        let buffer = &mut self.buffer;
        let mut error = None;
        self.layer.list(&self.entry, self.after, &mut |listed| {
            buffer.push_back((listed.cookie.hash(), listed.name.to_buf(), listed.what, listed.cookie));
            if buffer.len() >= BATCH { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        self.is_done = self.buffer.len() < BATCH;
        if let Some((_, _, _, cookie)) = self.buffer.back() {
            if *cookie <= self.after {
                error = Some(FsError::Corrupt { layer: self.layer.label(), what: "a listing goes back".into() });
            }
            self.after = *cookie;
        }
        error.map_or(Ok(()), Err)
    }

    fn head(&self) -> Option<(NameHash, &NameBuf)> {
        self.buffer.front().map(|(hash, name, _, _)| (*hash, name))
    }
}

impl Tree {
    /// Passes the names of the directory `node` after `after` to `sink`, until it breaks: name, position and kind. The
    /// kind is a hint where the upper keeps kinds aside. A removed directory has no names.
    pub fn list(
        &self,
        _: &impl NamesHeld,
        node: &Arc<Node>,
        after: Cookie,
        sink: &mut dyn FnMut(Name<'_>, Cookie, Kind) -> ControlFlow<()>,
    ) -> Result<(), FsError> {
        if node.kind() != Kind::Dir {
            return Err(FsError::NotDir);
        }
        let (upper, lowers, is_removed) = {
            let state = read(&node.state);
            (state.upper.clone(), state.lowers.clone(), state.is_removed)
        };
        if is_removed {
            return Ok(());
        }
        let mut streams = self.open_streams(node, upper, &lowers, after)?;
        // Positions of merged names number equal hashes anew, so the group of `after` is read again and skipped.
        let (mut last, mut ordinal) = (None, 0);
        loop {
            for stream in &mut streams {
                stream.fill()?;
            }
            let Some((hash, name)) =
                streams.iter().filter_map(Stream::head).min().map(|(hash, name)| (hash, name.clone()))
            else {
                return Ok(());
            };
            let mut winner = None;
            for stream in &mut streams {
                if stream.head().is_some_and(|head| head == (hash, &name)) {
                    let entry = stream.buffer.pop_front();
                    winner = winner.or(entry.map(|(_, _, what, _)| what));
                }
            }
            let Some(ListedKind::Entry(kind)) = winner else { continue };
            ordinal = if last == Some(hash) { ordinal + 1 } else { 0 };
            last = Some(hash);
            let cookie = Cookie::new(hash, ordinal);
            if cookie > after && sink(name.as_name(), cookie, kind).is_break() {
                return Ok(());
            }
        }
    }

    fn open_streams<'a>(
        &self,
        node: &'a Node,
        upper: Option<Place>,
        lowers: &[Lower],
        after: Cookie,
    ) -> Result<Vec<Stream<'a>>, FsError> {
        let branch = node.branch();
        // Before the first name of the same hash.
        let from = if after <= Cookie::DOTDOT { after } else { Cookie(Cookie::new(after.hash(), 0).0 - 1) };
        let mut streams = Vec::with_capacity(lowers.len() + 1);
        let mut push = |layer: &'a dyn Layer, entry: Entry| {
            streams.push(Stream { layer, entry, buffer: VecDeque::new(), after: from, is_done: false });
        };
        if let (Some(Place::Dir(dir)), Some(upper)) = (upper, branch.upper()) {
            push(upper.reader(), Entry::HostDir(dir));
        }
        for lower in lowers {
            push(&**branch.layer(lower)?, lower.entry.clone());
        }
        Ok(streams)
    }

    /// Has the directory no names to show? A name that is listed and not found (a whiteout that only look-ups tell) is
    /// none.
    pub fn is_empty_dir(&self, held: &impl NamesHeld, node: &Arc<Node>) -> Result<bool, FsError> {
        let mut found = Ok(None);
        self.list(held, node, Cookie::START, &mut |name, _, _| {
            found = self.resolve(held, node, name);
            if matches!(found, Ok(None)) { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        Ok(found?.is_none())
    }
}
