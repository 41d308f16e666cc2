// SPDX-License-Identifier: MIT OR Apache-2.0
//! Files of shared branches that others replace while they are opened by name. After the first operation that found
//! its file replaced, look-ups hold what they find for a moment: the kernel looks the name up once more, and what it
//! finds then stays reachable for the operation that follows, whatever happens to the name. Nothing is held at other
//! times, for deleted files would go on taking space.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::model::sync::lock;
use crate::tree::Node;

/// How long look-ups go on holding after the last replaced file, and how long each file is held.
const LIFE: Duration = Duration::from_secs(1);
/// At most so many files are held.
const FILES_MAX: usize = 64;

#[derive(Debug)]
struct File {
    node: Arc<Node>,
    descriptor: Arc<OwnedFd>,
    since: Instant,
}

#[derive(Debug, Default)]
struct State {
    last_replaced: Option<Instant>,
    files: VecDeque<File>,
}

/// Files held between a look-up and what follows it.
#[derive(Debug, Default)]
pub(super) struct Held(Mutex<State>);

impl Held {
    /// An operation found that others have replaced its file.
    pub(super) fn note_replaced(&self) {
        lock(&self.0).last_replaced = Some(Instant::now());
    }

    /// Must look-ups hold what they find? Files that were held long enough are let go.
    pub(super) fn is_needed(&self) -> bool {
        let mut state = lock(&self.0);
        if state.last_replaced.is_none() {
            return false;
        }
        while state.files.front().is_some_and(|file| file.since.elapsed() > LIFE) {
            state.files.pop_front();
        }
        if state.last_replaced.is_some_and(|at| at.elapsed() > LIFE) && state.files.is_empty() {
            state.last_replaced = None;
        }
        state.last_replaced.is_some_and(|at| at.elapsed() <= LIFE)
    }

    /// Holds the file of a node.
    pub(super) fn hold(&self, node: &Arc<Node>, descriptor: Arc<OwnedFd>) {
        let mut state = lock(&self.0);
        if state.files.len() >= FILES_MAX {
            state.files.pop_front();
        }
        state.files.push_back(File { node: Arc::clone(node), descriptor, since: Instant::now() });
    }

    /// The file of a node, if it is held.
    pub(super) fn find(&self, node: &Arc<Node>) -> Option<Arc<OwnedFd>> {
        let state = lock(&self.0);
        let found = state.files.iter().rev().find(|file| Arc::ptr_eq(file.node.inode(), node.inode()))?;
        Some(Arc::clone(&found.descriptor))
    }
}
