// SPDX-License-Identifier: MIT OR Apache-2.0
//! `system info|df|prune`: where each value of the configuration comes from, what the store holds, and the removal of what
//! no record names.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::layer::index::Index;
use crate::model::Digest;
use crate::model::io_mode::IoMode;
use crate::store::container::{ContainerRecord, LayerRecord};
use crate::store::image::Image;
use crate::store::{Store, StoreError};

use super::config::Said;
use super::settings::{STOP_TIMEOUT, Settings};
use super::{OrFail, Result, volumes};

/// A value of the configuration, and who says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// The key, as in configuration files.
    pub key: &'static str,
    /// The value.
    pub value: String,
    /// A file, a variable, a flag, or `default`.
    pub origin: String,
}

/// Every value of the configuration. `said` is in order: of what is no list, the last word counts.
pub fn values(said: &[Said], default_root: &Path) -> Vec<Value> {
    let default = Settings {
        root: Some(default_root.to_owned()),
        log_level: Some(log::LevelFilter::Warn),
        read_only: Some(false),
        rm: Some(false),
        stop_timeout: Some(STOP_TIMEOUT),
        allow_other: Some(super::host::caller().0 == 0),
        io: Some(IoMode::default()),
        suid: Some(false),
        dev: Some(false),
        foreground: Some(false),
        ..Settings::default()
    };
    let default = [Said { by: "default".to_owned(), settings: default }];
    let mut values: Vec<Value> = Vec::new();
    for source in default.iter().chain(said) {
        for (key, value) in source.settings.entries() {
            let value = Value { key, value, origin: source.by.clone() };
            match values.iter_mut().find(|known| known.key == key && !Settings::is_list(key)) {
                Some(known) => *known = value,
                None => values.push(value),
            }
        }
    }
    values
}

/// What files take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// On disk, in bytes.
    pub bytes: u64,
    /// Files, directories and links.
    pub inodes: u64,
}

impl Usage {
    fn add(&mut self, other: Usage) {
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.inodes = self.inodes.saturating_add(other.inodes);
    }

    /// What a tree takes: each file once, whatever it is called. What cannot be read does not count.
    pub fn of(path: &Path) -> Usage {
        let mut usage = Usage::default();
        let mut linked = HashSet::new();
        let mut todo: Vec<PathBuf> = vec![path.to_owned()];
        while let Some(path) = todo.pop() {
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            if meta.nlink() > 1 && !meta.is_dir() && !linked.insert((meta.dev(), meta.ino())) {
                continue;
            }
            usage.add(Usage { bytes: meta.blocks().saturating_mul(512), inodes: 1 });
            if meta.is_dir() {
                todo.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
            }
        }
        usage
    }
}

/// A kind of thing in the store, summed up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Total {
    /// How many.
    pub count: usize,
    /// How many are in use: images by containers, volumes by containers, containers that are mounted.
    pub active: usize,
    /// What they take together.
    pub usage: Usage,
    /// What of it more than one of them needs.
    pub shared: Usage,
    /// What would be free without those that are not in use.
    pub reclaimable: Usage,
}

/// The store, summed up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskUse {
    /// Images: blobs, indexes, objects.
    pub images: Total,
    /// Containers: uppers (where they are in the store), work directories, logs.
    pub containers: Total,
    /// Volumes; those of host directories take nothing here.
    pub volumes: Total,
    /// What no record names, the work of processes that are gone.
    pub unnamed: Total,
}

/// Sums up the store.
pub fn disk_use(store: &Store) -> Result<DiskUse> {
    let containers = store.load_containers().or_fail(|| "cannot read the containers")?;
    let mut disk = DiskUse::default();
    for container in &containers {
        let usage = Usage::of(&store.container_dir(&container.id));
        let is_live = store.is_container_live(&container.id).or_fail(|| "cannot look at a container")?;
        disk.containers.tell(usage, is_live);
    }
    for volume in store.list_volumes().or_fail(|| "cannot list the volumes")?.whole {
        let usage =
            if volume.device().is_none() { Usage::of(&store.layout().volume(&volume.name)) } else { Usage::default() };
        disk.volumes.tell(usage, containers.iter().any(|c| c.is_using_volume(&volume.name)));
    }
    let images = store.load_images().or_fail(|| "cannot list images")?;
    add_images(store, &images, &containers, &mut disk)?;
    let layout = store.layout();
    for dir in [layout.staging(), layout.trash()] {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            disk.unnamed.tell(Usage::of(&entry.path()), false);
        }
    }
    Ok(disk)
}

impl Total {
    fn tell(&mut self, usage: Usage, is_active: bool) {
        self.count += 1;
        self.usage.add(usage);
        match is_active {
            true => self.active += 1,
            false => self.reclaimable.add(usage),
        }
    }
}

/// Who needs a file of the image part.
#[derive(Clone, Copy, Debug, Default)]
struct Need {
    images: usize,
    is_active: bool,
}

fn add_images(store: &Store, images: &[Image], containers: &[ContainerRecord], disk: &mut DiskUse) -> Result<()> {
    let layout = store.layout();
    let mut needs: HashMap<PathBuf, Need> = HashMap::new();
    let mut need = |path: PathBuf, is_image: bool, is_active: bool| {
        let need = needs.entry(path).or_default();
        need.images += usize::from(is_image);
        need.is_active |= is_active;
    };
    for image in images {
        let is_active = containers.iter().any(|c| c.image == Some(image.manifest));
        disk.images.count += 1;
        disk.images.active += usize::from(is_active);
        let mut files = HashSet::from([layout.blob(&image.manifest)]);
        match store.load_parts(&image.manifest) {
            Ok(parts) => {
                files.insert(layout.blob(&parts.manifest.config.digest));
                files.extend(parts.manifest.layers.iter().map(|layer| layout.blob(&layer.digest)));
                for diff_id in &parts.config.diff_ids {
                    files.extend(layer_files(store, diff_id));
                }
            }
            Err(error) => log::warn!("{error}"),
        }
        files.into_iter().for_each(|file| need(file, true, is_active));
    }
    for layer in containers.iter().flat_map(|container| &container.layers) {
        if let LayerRecord::Stored(diff_id) = layer {
            layer_files(store, diff_id).into_iter().for_each(|file| need(file, false, true));
        }
    }
    for dir in [layout.blobs(), layout.indexes()] {
        add_files(&dir, &needs, disk)?;
    }
    for dir in fs::read_dir(layout.objects()).into_iter().flatten().flatten() {
        add_files(&dir.path(), &needs, disk)?;
    }
    Ok(())
}

/// The index of a layer and its objects, as far as the index can be read.
fn layer_files(store: &Store, diff_id: &Digest) -> Vec<PathBuf> {
    let path = store.layout().index(diff_id);
    let index = fs::File::open(&path).ok().and_then(|file| Index::open(&file).ok());
    let objects = index.iter().flat_map(|index| index.objects().map(|object| store.layout().object(&object)));
    objects.chain([path.clone()]).collect()
}

fn add_files(dir: &Path, needs: &HashMap<PathBuf, Need>, disk: &mut DiskUse) -> Result<()> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        // A store that was never written to.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(StoreError::reading("list", dir, e)).or_fail(|| "cannot look at the store"),
    };
    for path in entries.flatten().map(|entry| entry.path()) {
        let usage = Usage::of(&path);
        let Some(need) = needs.get(&path) else {
            disk.unnamed.tell(usage, false);
            continue;
        };
        disk.images.usage.add(usage);
        if need.images > 1 {
            disk.images.shared.add(usage);
        }
        if !need.is_active {
            disk.images.reclaimable.add(usage);
        }
    }
    Ok(())
}

/// What a prune removed.
#[derive(Clone, Debug, Default)]
pub struct Pruned {
    /// Images without a name, by their digests.
    pub images: Vec<Digest>,
    /// Anonymous volumes.
    pub volumes: Vec<String>,
    /// Bytes freed.
    pub bytes: u64,
}

/// Removes what no record names: images without a name and anonymous volumes that no container needs; blobs, objects and
/// indexes of nobody; what processes that are gone left behind. Never a container, its upper, or a named volume.
pub fn prune(store: &Store) -> Result<Pruned> {
    let what = || "cannot prune the store";
    // Without this, what a damaged container needs would be taken for nobody's.
    store.load_containers().or_fail(what)?;
    let left = [store.layout().staging(), store.layout().trash()];
    let before: u64 = left.iter().map(|dir| Usage::of(dir).bytes).sum();
    super::ending::clear_incomplete(store)?;
    store.clear_trash().or_fail(what)?;
    let after: u64 = left.iter().map(|dir| Usage::of(dir).bytes).sum();
    let volumes = volumes::prune(store, false, &[])?;
    let (images, bytes) = store.prune_images(false).or_fail(what)?;
    Ok(Pruned {
        images: images.into_iter().map(|image| image.manifest).collect(),
        volumes: volumes.names,
        bytes: bytes.saturating_add(volumes.bytes).saturating_add(before.saturating_sub(after)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_counts_and_lists_add() {
        let said = |by: &str, text: &str| Said {
            by: by.into(),
            settings: super::super::config::parse(text, Path::new("/c/config.toml")).unwrap(),
        };
        let values = values(
            &[
                said("one", "rm = true\nvolume = \"a:/a\"\nname = \"x\""),
                said("two", "rm = false\nvolume = \"b:/b\"\nstop-timeout = \"3s\""),
            ],
            Path::new("/root"),
        );
        let of = |key: &str| -> Vec<(&str, &str)> {
            values.iter().filter(|v| v.key == key).map(|v| (v.value.as_str(), v.origin.as_str())).collect()
        };
        assert_eq!(of("root"), [("/root", "default")]);
        assert_eq!(of("rm"), [("false", "two")]);
        assert_eq!(of("name"), [("x", "one")]);
        assert_eq!(of("stop-timeout"), [("3s", "two")]);
        assert_eq!(of("dev"), [("false", "default")]);
        assert_eq!(of("mount").iter().map(|(_, by)| *by).collect::<Vec<_>>(), ["one", "two"]);
    }
}
