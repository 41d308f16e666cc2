// SPDX-License-Identifier: MIT OR Apache-2.0
//! What each layer of a stack holds, and what of it later layers hide: one walk over all layers at once.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::sync::Arc;

use crate::layer::{Birth, Child, Entry, Layer};
use crate::model::{Cookie, FsError, Kind, NameBuf};

/// The sums of one layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerSums {
    /// Files of every kind, directories too; a file with several names counts for each.
    pub files: u64,
    /// Bytes of regular files, each once.
    pub bytes: u64,
    /// Whiteouts.
    pub whiteouts: u64,
    /// Bytes of regular files that no name shows any more.
    pub hidden: u64,
}

/// A directory as one layer has it.
struct Part {
    layer: usize,
    entry: Entry,
    /// Later layers hide it.
    is_hidden: bool,
}

/// A regular file of one layer, by where it was born; visible if any of its names is.
#[derive(Default)]
struct Body {
    size: u64,
    is_visible: bool,
}

/// Sums up layers given bottom first; the result is in the same order.
pub fn sum(layers: &[Arc<dyn Layer>]) -> Result<Vec<LayerSums>, FsError> {
    let mut sums = vec![LayerSums::default(); layers.len()];
    let mut linked: HashMap<(usize, Birth), Body> = HashMap::new();
    let mut top = Vec::new();
    let mut is_covered = false;
    for (index, layer) in layers.iter().enumerate().rev() {
        let root = layer.root()?;
        let is_opaque = layer.is_opaque(&root.entry)?;
        top.push(Part { layer: index, entry: root.entry, is_hidden: is_covered });
        is_covered |= is_opaque;
    }
    let mut todo = vec![top];
    while let Some(parts) = todo.pop() {
        for (name, holders) in names(layers, &parts)? {
            let below = one_name(layers, &parts, &name, &holders, &mut sums, &mut linked)?;
            if !below.is_empty() {
                todo.push(below);
            }
        }
    }
    for ((layer, _), body) in linked {
        if let Some(sums) = sums.get_mut(layer) {
            sums.bytes += body.size;
            sums.hidden += if body.is_visible { 0 } else { body.size };
        }
    }
    Ok(sums)
}

/// All names in a directory, with the indexes of the parts that have them, top first.
fn names(layers: &[Arc<dyn Layer>], parts: &[Part]) -> Result<BTreeMap<NameBuf, Vec<usize>>, FsError> {
    let mut names: BTreeMap<NameBuf, Vec<usize>> = BTreeMap::new();
    for (index, part) in parts.iter().enumerate() {
        let Some(layer) = layers.get(part.layer) else { continue };
        layer.list(&part.entry, Cookie::START, &mut |line| {
            names.entry(line.name.to_buf()).or_default().push(index);
            ControlFlow::Continue(())
        })?;
    }
    Ok(names)
}

/// Counts one name in all layers that have it; returns the directories to go on with.
fn one_name(
    layers: &[Arc<dyn Layer>],
    parts: &[Part],
    name: &NameBuf,
    holders: &[usize],
    sums: &mut [LayerSums],
    linked: &mut HashMap<(usize, Birth), Body>,
) -> Result<Vec<Part>, FsError> {
    let mut below = Vec::new();
    let mut is_covered = false;
    let mut has_dir = false;
    for holder in holders {
        let Some(part) = parts.get(*holder) else { continue };
        let (Some(layer), Some(sums)) = (layers.get(part.layer), sums.get_mut(part.layer)) else { continue };
        let found = match layer.child(&part.entry, name.as_name())? {
            Child::Absent => continue,
            Child::Whiteout => {
                sums.whiteouts += 1;
                is_covered = true;
                continue;
            }
            Child::Found(found) => found,
        };
        sums.files += 1;
        let is_hidden = part.is_hidden || is_covered;
        if found.attr.kind == Kind::Dir {
            let is_opaque = layer.is_opaque(&found.entry)?;
            below.push(Part { layer: part.layer, entry: found.entry, is_hidden });
            is_covered |= is_opaque;
            has_dir = true;
            continue;
        }
        let is_hidden = is_hidden || has_dir;
        if found.attr.kind == Kind::File {
            if found.attr.nlink > 1 {
                let body = linked.entry((part.layer, found.birth)).or_default();
                body.size = found.attr.size;
                body.is_visible |= !is_hidden;
            } else {
                sums.bytes += found.attr.size;
                sums.hidden += if is_hidden { found.attr.size } else { 0 };
            }
        }
        is_covered = true;
    }
    Ok(below)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::dir::{DirLayer, HostForm};
    use std::fs;

    #[test]
    fn hidden_bytes_are_found_whatever_hides_them() {
        let dir = tempfile::tempdir().unwrap();
        let layer = |name: &str, files: &[(&str, usize)]| -> Arc<dyn Layer> {
            let root = dir.path().join(name);
            fs::create_dir(&root).unwrap();
            for (path, size) in files {
                let path = root.join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, vec![0; *size]).unwrap();
            }
            let fd = super::super::assemble::open_path(&root, super::super::assemble::OpenAs::Directory).unwrap();
            let form = HostForm { has_oci_names: true, ..HostForm::default() };
            Arc::new(DirLayer::open(fd, name.into(), form).unwrap())
        };
        let bottom = layer("1", &[("a/x", 1), ("a/y", 2), ("b", 4), ("c/z", 8), ("d/k", 16), ("e", 32)]);
        fs::hard_link(dir.path().join("1/e"), dir.path().join("1/f")).unwrap();
        let top =
            layer("2", &[("a/.wh.x", 0), (".wh.b", 0), ("c", 64), ("d/.wh..wh..opq", 0), ("d/n", 128), (".wh.e", 0)]);
        let sums = sum(&[bottom, top]).unwrap();
        assert_eq!(sums[0], LayerSums { files: 10, bytes: 63, whiteouts: 0, hidden: 1 + 4 + 8 + 16 });
        assert_eq!((sums[1].bytes, sums[1].whiteouts, sums[1].hidden), (192, 3, 0));
    }
}
