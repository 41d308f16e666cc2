// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a merged image must look like, computed from the declared layers alone.
//!
//! Deliberately naive: layers are applied to a map, bottom first; in one layer whiteouts act on what lies below, so
//! entries win wherever they stand in the tar, and of two entries of one name the last one wins.

use std::collections::BTreeMap;

use crate::layers::{Item, LayerSpec, What};
use crate::tree::{Body, Node, Tree, sha256};

/// The merged tree of some layers, bottom first.
pub fn merged(layers: &[LayerSpec]) -> Tree {
    // The value is the item and the inode it stands for: hard links share one.
    let mut map: BTreeMap<Vec<u8>, (Item, usize)> = BTreeMap::new();
    let mut next = 0usize;
    for layer in layers {
        for item in &layer.items {
            let below = [&item.path[..], b"/"].concat();
            match item.what {
                What::Whiteout => map.retain(|name, _| *name != item.path && !name.starts_with(&below)),
                What::Opaque => map.retain(|name, _| !name.starts_with(&below)),
                _ => {}
            }
        }
        for item in layer.items.iter().filter(|item| !matches!(item.what, What::Whiteout | What::Opaque)) {
            let mut parent = Vec::new();
            for part in item.path.split(|byte| *byte == b'/').collect::<Vec<_>>().split_last().expect("a path").1 {
                if !parent.is_empty() {
                    parent.push(b'/');
                }
                parent.extend_from_slice(part);
                next += 1;
                // A parent no entry names: a directory root:root 0755 of no particular time.
                map.entry(parent.clone()).or_insert_with(|| (implied(&parent), next));
            }
            next += 1;
            let is_dir = item.what == What::Dir;
            let keeps_children = is_dir && map.get(&item.path).is_some_and(|(old, _)| old.what == What::Dir);
            if !keeps_children {
                let below = [&item.path[..], b"/"].concat();
                map.retain(|name, _| !name.starts_with(&below));
            }
            let placed = match &item.what {
                What::Hardlink(target) => map.get(target).cloned().expect("a hard link's target"),
                _ => (item.clone(), next),
            };
            map.insert(item.path.clone(), placed);
        }
    }
    to_tree(&map)
}

fn implied(path: &[u8]) -> Item {
    let (path, xattrs) = (path.to_vec(), Vec::new());
    Item { path, what: What::Dir, mode: 0o755, uid: 0, gid: 0, mtime: (0, 0), xattrs }
}

fn to_tree(map: &BTreeMap<Vec<u8>, (Item, usize)>) -> Tree {
    let mut groups: BTreeMap<usize, (u64, Vec<u8>)> = BTreeMap::new();
    for (name, (_, inode)) in map {
        groups.entry(*inode).or_insert_with(|| (0, name.clone())).0 += 1;
    }
    let root = (implied(b""), usize::MAX);
    let entries =
        std::iter::once((Vec::new(), root)).chain(map.iter().map(|(name, placed)| (name.clone(), placed.clone())));
    let mut tree = Tree::default();
    for (name, (item, inode)) in entries {
        let body = match &item.what {
            What::Dir => Body::Dir,
            What::File(content) => Body::File(content.len() as u64, sha256(content)),
            What::Symlink(target) => Body::Symlink(target.clone()),
            What::Char(major, minor) => Body::Char(*major, *minor),
            What::Block(major, minor) => Body::Block(*major, *minor),
            What::Fifo => Body::Fifo,
            What::Hardlink(_) | What::Whiteout | What::Opaque => continue,
        };
        let links = (body != Body::Dir).then(|| groups[&inode].clone());
        let xattrs = item.xattrs.iter().map(|(key, value)| (key.clone().into_bytes(), value.clone())).collect();
        let mode = if matches!(body, Body::Symlink(_)) { 0o777 } else { item.mode };
        let (uid, gid, mtime) = (item.uid, item.gid, item.mtime);
        tree.nodes.insert(name, Node { body, mode, uid, gid, mtime, xattrs, links, ino: 0 });
    }
    tree
}
