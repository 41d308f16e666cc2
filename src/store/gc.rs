// SPDX-License-Identifier: MIT OR Apache-2.0
//! Removing images, and what nobody needs after that: blobs, indexes, objects.
//!
//! Mark and sweep over the whole store under its exclusive lock, so what crashes left is collected too. Marked is what
//! images with a line in `index.json` need, and what records of containers name (incomplete ones too): mounted
//! containers hold no lock, their record keeps their layers.

use std::collections::HashSet;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use super::container::LayerRecord;
use super::error::{At, StoreError};
use super::image::Image;
use super::{Mode, Store, Wait, plain};
use crate::layer::index::Index;
use crate::model::Digest;

/// Which image to remove, and how much of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Force {
    /// Refuse an image with several names that was asked for by digest.
    No,
    /// Remove all its names.
    Yes,
}

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Names that are gone.
    pub untagged: Vec<String>,
    /// The image, when it went with its last name.
    pub deleted: Option<Digest>,
    /// Bytes freed.
    pub bytes: u64,
}

impl Store {
    /// Takes the name away, or removes the image when it was the last one, with all that nobody else needs.
    ///
    /// Errors: `NoImage`; `InUse` while a container needs the image (naming the containers), or when it was asked for by
    /// digest and has several names.
    pub fn remove_image(&self, reference: &str, force: Force) -> Result<Removed, StoreError> {
        let _lock = self.lock(Mode::Exclusive, Wait::Block)?;
        let image = self.find_image(reference)?;
        let asked: Option<String> = match reference.parse::<crate::oci::reference::ImageName>() {
            Ok(name) if name.digest().is_none() => name.repo_tag().filter(|n| image.names.contains(n)),
            _ => None,
        };
        if let Some(name) = &asked
            && image.names.len() > 1
            && force == Force::No
        {
            self.unname_image(name)?;
            return Ok(Removed { untagged: vec![name.clone()], ..Removed::default() });
        }
        let in_use = |users: Vec<String>| {
            let name = asked.clone().unwrap_or_else(|| image.manifest.to_string());
            StoreError::InUse { name: format!("the image {name}"), users, path: self.root().to_owned() }
        };
        if asked.is_none() && image.names.len() > 1 && force == Force::No {
            return Err(in_use(image.names.iter().map(|n| format!("the name {n}")).collect()));
        }
        let users = self.containers_of(&image)?;
        if !users.is_empty() {
            return Err(in_use(users));
        }
        self.forget_image(&image.manifest)?;
        let bytes = self.collect()?;
        Ok(Removed { untagged: image.names, deleted: Some(image.manifest), bytes })
    }

    /// Removes images that no container needs: those without a name, and with `is_all` the others too; then all that
    /// nobody needs any more. Answers the images, and how many bytes are free.
    pub fn prune_images(&self, is_all: bool) -> Result<(Vec<Image>, u64), StoreError> {
        let _lock = self.lock(Mode::Exclusive, Wait::Block)?;
        let mut pruned = Vec::new();
        for image in self.load_images()? {
            if (is_all || image.names.is_empty()) && self.containers_of(&image)?.is_empty() {
                self.forget_image(&image.manifest)?;
                pruned.push(image);
            }
        }
        let bytes = self.collect()?;
        Ok((pruned, bytes))
    }

    /// The containers that need the image, as `container NAME`.
    fn containers_of(&self, image: &Image) -> Result<Vec<String>, StoreError> {
        let containers = self.load_containers()?.into_iter().filter(|c| c.image == Some(image.manifest));
        Ok(containers.map(|c| format!("container {}", c.name)).collect())
    }

    /// Removes what no image and no container needs; answers how many bytes that were. Call it under the exclusive lock.
    pub fn collect(&self) -> Result<u64, StoreError> {
        let mut blobs = HashSet::new();
        let mut layers = HashSet::new();
        let mut manifests: HashSet<Digest> = self.load_images()?.into_iter().map(|i| i.manifest).collect();
        for container in self.load_containers()? {
            manifests.extend(container.image);
            layers.extend(container.layers.iter().filter_map(|l| match l {
                LayerRecord::Stored(diff_id) => Some(*diff_id),
                LayerRecord::Dir(_) => None,
            }));
        }
        for manifest in manifests {
            let parts = match self.load_parts(&manifest) {
                Ok(parts) => parts,
                Err(e) => {
                    log::warn!("nothing is collected, because what {manifest} needs is not known: {e}");
                    return Ok(0);
                }
            };
            blobs.extend([manifest, parts.manifest.config.digest]);
            blobs.extend(parts.manifest.layers.iter().map(|l| l.digest));
            layers.extend(parts.config.diff_ids);
        }
        let objects = self.objects_of(&layers);
        let layout = self.layout();
        let keep = |kept: &HashSet<Digest>, hex: &str| Digest::from_hex(hex).is_none_or(|d| kept.contains(&d));
        let mut bytes = sweep(&layout.blobs(), |name| keep(&blobs, name))?;
        bytes += sweep(&layout.indexes(), |name| keep(&layers, name))?;
        let Some(objects) = objects else {
            log::warn!("objects are kept because the index of a layer cannot be read");
            return Ok(bytes);
        };
        for folder in list(&layout.objects())? {
            let path = layout.objects().join(&folder);
            bytes += sweep(&path, |name| keep(&objects, &format!("{folder}{name}")))?;
            match fs::remove_dir(&path) {
                Err(e) if e.kind() != ErrorKind::DirectoryNotEmpty => {
                    return Err(StoreError::writing("remove", &path, e));
                }
                _ => {}
            }
        }
        Ok(bytes)
    }

    /// The objects of all these layers; `None` when an index cannot tell. A layer without an index needs none.
    fn objects_of(&self, layers: &HashSet<Digest>) -> Option<HashSet<Digest>> {
        let mut objects = HashSet::new();
        for layer in layers {
            let path = self.layout().index(layer);
            let index = match plain::open(&path) {
                Ok(file) => Index::open(&file),
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                Err(e) => Err(e.into()),
            };
            match index {
                Ok(index) => objects.extend(index.objects()),
                Err(e) => {
                    log::warn!("{}: {e}", path.display());
                    return None;
                }
            }
        }
        Some(objects)
    }
}

fn list(dir: &Path) -> Result<Vec<String>, StoreError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).reading("list", dir)? {
        // Names that are not UTF-8 are none of ours.
        names.extend(entry.reading("list", dir)?.file_name().into_string());
    }
    Ok(names)
}

/// Removes the files of `dir` that are not kept; answers their bytes.
fn sweep(dir: &Path, is_kept: impl Fn(&str) -> bool) -> Result<u64, StoreError> {
    let mut bytes = 0;
    for name in list(dir)? {
        if is_kept(&name) {
            continue;
        }
        let path = dir.join(name);
        bytes += fs::symlink_metadata(&path).map_or(0, |m| m.len());
        fs::remove_file(&path).writing("remove", &path)?;
    }
    Ok(bytes)
}
