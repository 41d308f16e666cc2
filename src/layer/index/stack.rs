// SPDX-License-Identifier: MIT OR Apache-2.0
//! What layers of one image must not do to each other.
//!
//! A tar may hold `bin/x` without `bin`. When a lower layer has a symlink `bin`, programs that unpack follow it; an index
//! knows its own tar only, and the implicit directory would hide the symlink and all that is reached through it. Such
//! images are refused instead of shown wrong.

use std::ops::ControlFlow;

use super::format::Record;
use super::read::Slot;
use super::{Index, IndexError};
use crate::model::{Cookie, Kind, Name};

/// A conflict between layers: one clause that names the path.
pub type Conflict = String;

/// Directories of lower layers at one path, top first.
type Below<'a> = Vec<(&'a Index, u32)>;

/// Looks for directories without a member that would hide something else than a directory of a lower layer.
/// `layers` are bottom first; the answer names the layer by its place there.
pub fn find_conflict(layers: &[&Index]) -> Result<Option<(usize, Conflict)>, IndexError> {
    for (number, layer) in layers.iter().enumerate() {
        let below: Below<'_> = layers.iter().take(number).rev().map(|index| (*index, 0)).collect();
        let below = until_opaque(below)?;
        if below.is_empty() || !layer.has_implicit()? {
            continue;
        }
        if let Some(conflict) = check_layer(layer, below)? {
            return Ok(Some((number, conflict)));
        }
    }
    Ok(None)
}

/// A directory that is still to be looked into.
struct Waiting<'a> {
    number: u32,
    /// Its name, and how many directories lie above it; the root has neither.
    name: Option<Name<'a>>,
    depth: usize,
    below: Below<'a>,
}

fn check_layer<'a>(layer: &'a Index, below: Below<'a>) -> Result<Option<Conflict>, IndexError> {
    let mut stack = vec![Waiting { number: 0, name: None, depth: 0, below }];
    // The names on the way to the directory at hand. Nobody that waits has a path of its own: siblings deep down are
    // many, and their path is long.
    let mut path: Vec<Name<'a>> = Vec::new();
    while let Some(Waiting { number, name, depth, below }) = stack.pop() {
        path.truncate(depth.saturating_sub(1));
        path.extend(name);
        let dir = layer.record(number)?;
        if Index::is_opaque(dir) {
            continue;
        }
        for line in layer.list(dir, Cookie::START)? {
            let (name, _, slot) = line?;
            let Slot::Record(child) = slot else { continue };
            let record = layer.record(child)?;
            if Index::kind(record)? != Kind::Dir {
                continue;
            }
            match descend(&below, name, record)? {
                ControlFlow::Break(kind) => {
                    let what = if kind == Kind::Symlink { "a symlink" } else { "no directory" };
                    let way = path.iter().chain([&name]);
                    let path: String = way.map(|part| format!("/{}", part.bytes().escape_ascii())).collect();
                    return Ok(Some(format!("it has entries below \"{path}\", which is {what} in a lower layer")));
                }
                ControlFlow::Continue(below) if below.is_empty() => {}
                ControlFlow::Continue(below) => {
                    stack.push(Waiting { number: child, name: Some(name), depth: depth + 1, below });
                }
            }
        }
    }
    Ok(None)
}

/// The directories called `name` in those of `below`; breaks when an implicit directory would hide another kind.
fn descend<'a>(below: &Below<'a>, name: Name<'_>, own: &Record) -> Result<ControlFlow<Kind, Below<'a>>, IndexError> {
    let mut found = Vec::new();
    if Index::is_opaque(own) {
        return Ok(ControlFlow::Continue(found));
    }
    for (index, dir) in below {
        match index.find(index.record(*dir)?, name)? {
            None => {}
            Some(Slot::Whiteout) => break,
            Some(Slot::Record(number)) => {
                let kind = Index::kind(index.record(number)?)?;
                if kind != Kind::Dir {
                    // Below a directory of a layer in between it is hidden anyway.
                    let is_hidden_by_own = found.is_empty() && Index::is_implicit(own);
                    if is_hidden_by_own {
                        return Ok(ControlFlow::Break(kind));
                    }
                    break;
                }
                found.push((*index, number));
            }
        }
    }
    until_opaque(found).map(ControlFlow::Continue)
}

fn until_opaque(mut dirs: Below<'_>) -> Result<Below<'_>, IndexError> {
    for (at, (index, number)) in dirs.iter().enumerate() {
        if Index::is_opaque(index.record(*number)?) {
            dirs.truncate(at + 1);
            break;
        }
    }
    Ok(dirs)
}
