// SPDX-License-Identifier: MIT OR Apache-2.0
//! What kernel overlayfs understands of an upper that mlfs has written.
//!
//! As root everything. In a user namespace the kernel reads the `user.overlay.` marks, but neither redirects nor
//! metadata-only copies, and knows nothing of `user.containers.override_stat`: that is read here, in its place.

use std::path::Path;

use crate::identity::{Identity, identity};
use crate::tree::{Body, Node, Tree};

const OVERRIDE_STAT: &[u8] = b"user.containers.override_stat";
/// What the kernel does not follow with `userxattr`: its own marks for root, and attributes that only root could set.
const MARKS: [&str; 3] = ["user.overlay.redirect", "user.overlay.metacopy", "user.overlay.mlfs.aside."];

/// The form of marks that whoever runs the suite shares with the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelForm {
    /// `trusted.overlay.`, everything is followed.
    Trusted,
    /// `user.overlay.`, mounted with `userxattr`.
    UserXattr,
}

impl KernelForm {
    /// The form of whoever runs the suite.
    pub fn of_identity() -> KernelForm {
        if identity() == Identity::Root { KernelForm::Trusted } else { KernelForm::UserXattr }
    }

    /// A mark in an upper that the kernel does not follow in this form, as `PATH has MARK`.
    pub fn find_unread_mark(self, upper: &Path) -> Option<String> {
        if self == KernelForm::Trusted {
            return None;
        }
        let unread = |name: &[u8]| MARKS.iter().any(|mark| name.starts_with(mark.as_bytes()));
        Tree::take(upper).nodes.iter().find_map(|(path, node)| {
            let mark = node.xattrs.keys().find(|name| unread(name))?;
            Some(format!("/{} has {}", path.escape_ascii(), mark.escape_ascii()))
        })
    }

    /// The tree that the kernel shows, with the owners and modes that stand in attributes put in their places.
    pub fn read(self, mut tree: Tree) -> Tree {
        if self == KernelForm::UserXattr {
            tree.nodes.values_mut().for_each(apply_override);
        }
        tree
    }
}

fn apply_override(node: &mut Node) {
    let Some(value) = node.xattrs.remove(OVERRIDE_STAT) else { return };
    let text = String::from_utf8(value).expect("override_stat is text");
    let words: Vec<&str> = text.splitn(4, ':').collect();
    let number = |word: &str| word.parse::<u32>().unwrap_or_else(|error| panic!("override_stat {text:?}: {error}"));
    (node.uid, node.gid) = (number(words[0]), number(words[1]));
    node.mode = u32::from_str_radix(words[2], 8).expect("octal") & 0o7777;
    let Some(kind) = words.get(3) else { return };
    let parts: Vec<&str> = kind.split('-').collect();
    match parts[..] {
        ["char", major, minor] => node.body = Body::Char(number(major), number(minor)),
        ["block", major, minor] => node.body = Body::Block(number(major), number(minor)),
        ["pipe"] => node.body = Body::Fifo,
        ["socket"] => node.body = Body::Socket,
        _ => {}
    }
}
