// SPDX-License-Identifier: MIT OR Apache-2.0
//! Images: names and the manifests they lead to, in the OCI layout's own `index.json`.
//!
//! A name is kept in the annotation `org.opencontainers.image.ref.name`, so `skopeo inspect oci:STORE:NAME:TAG` reads
//! the store. For the tag `latest` there is a second line without the tag: `oci:STORE:NAME` works too. An image whose
//! last name went to another image stays, nameless, until it is removed by digest.

use std::collections::HashMap;

use oci_spec::image::{Descriptor, ImageIndex, MediaType};

use super::error::StoreError;
use super::{Store, Wait, layout};
use crate::model::Digest;
use crate::oci::reference::{DEFAULT_TAG, ImageName};
use crate::oci::spec::{self, BlobRef, CONFIG_LIMIT, Config, MANIFEST_LIMIT, Manifest, REF_NAME};

/// An image of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The digest of its manifest.
    pub manifest: Digest,
    /// Its names, `NAME:TAG`, sorted.
    pub names: Vec<String>,
}

/// The manifest and configuration of an image.
#[derive(Clone, Debug)]
pub struct ImageParts {
    /// What the manifest refers to.
    pub manifest: Manifest,
    /// Bytes of the manifest.
    pub manifest_size: u64,
    /// What we need of the configuration.
    pub config: Config,
    /// The whole configuration.
    pub raw_config: serde_json::Value,
}

/// The name of a line: with its tag.
fn full_name(ref_name: &str) -> String {
    match ref_name.parse::<ImageName>() {
        Ok(name) => name.repo_tag().unwrap_or_else(|| ref_name.to_owned()),
        Err(_) => ref_name.to_owned(),
    }
}

/// The lines a name is written as.
pub(super) fn line_names(name: &str) -> Vec<String> {
    let bare = name.strip_suffix(DEFAULT_TAG).and_then(|n| n.strip_suffix(':'));
    std::iter::once(name.to_owned()).chain(bare.map(str::to_owned)).collect()
}

pub(super) fn ref_name(line: &Descriptor) -> Option<&str> {
    line.annotations().as_ref()?.get(REF_NAME).map(String::as_str)
}

/// A line for an image, with a name or without.
pub(super) fn make_line(manifest: &BlobRef, name: Option<&str>) -> Option<Descriptor> {
    let digest: oci_spec::image::Digest = manifest.digest.to_string().parse().ok()?;
    let mut line = Descriptor::new(MediaType::from(manifest.media_type.as_str()), manifest.size, digest);
    line.set_annotations(name.map(|n| HashMap::from([(REF_NAME.to_owned(), n.to_owned())])));
    Some(line)
}

pub(super) fn digest_of(line: &Descriptor) -> Option<Digest> {
    line.digest().to_string().parse().ok()
}

impl Store {
    /// All images, by their first name; nameless ones last.
    pub fn load_images(&self) -> Result<Vec<Image>, StoreError> {
        let mut images: Vec<Image> = Vec::new();
        for line in self.load_lines()? {
            let Some(manifest) = digest_of(&line) else { continue };
            let name = ref_name(&line).map(full_name);
            let image = match images.iter_mut().position(|i| i.manifest == manifest).and_then(|at| images.get_mut(at)) {
                Some(image) => image,
                None => {
                    images.push(Image { manifest, names: Vec::new() });
                    match images.last_mut() {
                        Some(image) => image,
                        None => continue,
                    }
                }
            };
            if let Some(name) = name
                && !image.names.contains(&name)
            {
                image.names.push(name);
            }
        }
        for image in &mut images {
            image.names.sort();
        }
        images.sort_by_key(|i| (i.names.is_empty(), i.names.first().cloned(), i.manifest));
        Ok(images)
    }

    /// The image with this name, digest, or beginning of a digest (of the manifest or the configuration).
    ///
    /// Errors: `NoImage`, `Ambiguous`.
    pub fn find_image(&self, reference: &str) -> Result<Image, StoreError> {
        let images = self.load_images()?;
        let missing = || StoreError::NoImage { name: reference.to_owned(), path: self.root().to_owned() };
        if let Ok(name) = reference.parse::<ImageName>() {
            let named = |i: &&Image| name.repo_tag().is_none_or(|n| i.names.contains(&n));
            let same_name =
                |i: &&Image| i.names.iter().any(|n| n.rsplit_once(':').is_some_and(|(n, _)| n == name.name()));
            let found = match name.digest() {
                Some(digest) => images.iter().find(|i| i.manifest == *digest && named(i) && same_name(i)),
                None => images.iter().find(named),
            };
            if let Some(image) = found {
                return Ok(image.clone());
            }
        }
        let hex = reference.strip_prefix("sha256:").unwrap_or(reference);
        let is_hex = hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !is_hex || !(4..=64).contains(&hex.len()) {
            return Err(missing());
        }
        let mut fitting = Vec::new();
        for image in images {
            let is_it = image.manifest.hex().starts_with(hex) || self.config_digest(&image)?.hex().starts_with(hex);
            if is_it {
                fitting.push(image);
            }
        }
        match fitting.as_slice() {
            [] => Err(missing()),
            [image] => Ok(image.clone()),
            several => Err(StoreError::Ambiguous {
                name: reference.to_owned(),
                candidates: several.iter().map(|i| i.manifest.to_string()).collect(),
                path: self.root().to_owned(),
            }),
        }
    }

    /// The digest of an image's configuration: Docker's image id.
    fn config_digest(&self, image: &Image) -> Result<Digest, StoreError> {
        Ok(self.load_manifest(&image.manifest)?.0.config.digest)
    }

    /// The manifest with this digest, and its size.
    pub fn load_manifest(&self, digest: &Digest) -> Result<(Manifest, u64), StoreError> {
        let bytes = self.load_blob(digest, MANIFEST_LIMIT)?;
        let manifest = spec::parse_manifest(&bytes);
        let manifest = manifest.map_err(|e| StoreError::damaged(&self.layout().blob(digest), e))?;
        Ok((manifest, bytes.len() as u64))
    }

    /// The manifest and configuration of the image with this manifest digest.
    pub fn load_parts(&self, digest: &Digest) -> Result<ImageParts, StoreError> {
        let (manifest, manifest_size) = self.load_manifest(digest)?;
        let bytes = self.load_blob(&manifest.config.digest, CONFIG_LIMIT)?;
        let damaged = |e: String| StoreError::damaged(&self.layout().blob(&manifest.config.digest), e);
        let config = spec::parse_config(&bytes).map_err(damaged)?;
        let raw_config = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
        if config.diff_ids.len() != manifest.layers.len() {
            return Err(damaged(format!(
                "it tells of {} layers, the manifest has {}",
                config.diff_ids.len(),
                manifest.layers.len()
            )));
        }
        Ok(ImageParts { manifest, manifest_size, config, raw_config })
    }

    /// Lets `names` (`NAME:TAG`) lead to `manifest`; without names the image is only listed. The blobs must be there.
    pub fn name_image(&self, manifest: &BlobRef, names: &[String]) -> Result<(), StoreError> {
        self.change_lines(|lines| {
            let line = |name: Option<&str>| make_line(manifest, name);
            let names: Vec<String> = names.iter().flat_map(|n| line_names(n)).collect();
            // Whoever had the name keeps a line without one, unless it has other names.
            let mut nameless = Vec::new();
            lines.retain(|l| {
                let is_taken = ref_name(l).is_some_and(|n| names.iter().any(|x| x == n));
                if is_taken {
                    nameless.push(l.clone());
                }
                !is_taken && (digest_of(l) != Some(manifest.digest) || ref_name(l).is_some())
            });
            match names.is_empty() && !lines.iter().any(|l| digest_of(l) == Some(manifest.digest)) {
                true => lines.extend(line(None)),
                false => lines.extend(names.iter().filter_map(|n| line(Some(n)))),
            }
            for mut old in nameless {
                if !lines.iter().any(|l| digest_of(l) == digest_of(&old)) {
                    old.set_annotations(None);
                    lines.push(old);
                }
            }
        })
    }

    /// Takes one name from an image; the image goes with its last name. Call it under the exclusive store lock.
    pub fn unname_image(&self, name: &str) -> Result<(), StoreError> {
        let names = line_names(name);
        self.change_lines(|lines| lines.retain(|l| !ref_name(l).is_some_and(|n| names.iter().any(|x| x == n))))
    }

    /// Forgets an image and all its names. Call it under the exclusive store lock.
    pub fn forget_image(&self, manifest: &Digest) -> Result<(), StoreError> {
        self.change_lines(|lines| lines.retain(|l| digest_of(l) != Some(*manifest)))
    }

    fn load_lines(&self) -> Result<Vec<Descriptor>, StoreError> {
        let index: Option<ImageIndex> = self.load_record(&self.layout().oci_index())?;
        Ok(index.map(|i| i.manifests().clone()).unwrap_or_default())
    }

    fn change_lines(&self, change: impl FnOnce(&mut Vec<Descriptor>)) -> Result<(), StoreError> {
        let _lock = self.lock_record("names", "images", Wait::Block)?;
        let path = self.layout().oci_index();
        let index: Option<ImageIndex> = self.load_record(&path)?;
        let mut index = index.ok_or_else(|| StoreError::damaged(&path, "it is missing"))?;
        let mut lines = index.manifests().clone();
        change(&mut lines);
        index.set_manifests(lines);
        self.replace_record(self.root(), layout::OCI_INDEX, &index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Access;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Access::Write).unwrap();
        (dir, store)
    }

    /// An image without layers, published by hand.
    fn add(store: &Store, seed: u8, name: Option<&str>) -> BlobRef {
        let put = |bytes: &[u8], media_type: &str| {
            let digest = Digest::of(bytes);
            std::fs::write(store.layout().blob(&digest), bytes).unwrap();
            BlobRef { digest, size: bytes.len() as u64, media_type: media_type.to_owned() }
        };
        let config = format!(
            "{{\"author\":\"{seed}\",\"architecture\":\"amd64\",\"os\":\"linux\",\"rootfs\":{{\"type\":\"layers\",\"diff_ids\":[]}}}}"
        );
        let config = put(config.as_bytes(), spec::OCI_CONFIG);
        let manifest = put(&spec::make_manifest(&config, &[]), spec::OCI_MANIFEST);
        store.name_image(&manifest, &name.map(str::to_owned).into_iter().collect::<Vec<_>>()).unwrap();
        manifest
    }

    #[test]
    fn names_lead_to_images_and_move() {
        let (_dir, store) = store();
        let first = add(&store, 1, Some("app:latest"));
        let find = |name: &str| store.find_image(name).map(|i| i.manifest);
        assert_eq!(find("app").unwrap(), first.digest);
        assert_eq!(find("app:latest").unwrap(), first.digest);
        assert_eq!(find(&format!("app@{}", first.digest)).unwrap(), first.digest);
        assert!(find("app:1").is_err() && find("other").is_err());
        let text = find("nope").unwrap_err().to_string();
        assert_eq!(text, "no image nope in the store; load it with `mlfs image load docker-archive:FILE nope`");

        let second = add(&store, 2, Some("app:latest"));
        store.name_image(&first, &["old:1".to_owned()]).unwrap();
        assert_eq!((find("app").unwrap(), find("old:1").unwrap()), (second.digest, first.digest));
        add(&store, 2, Some("old:1"));
        let images = store.load_images().unwrap();
        assert_eq!(images.len(), 2);
        assert_eq!(images[0].names, ["app:latest", "old:1"]);
        assert!(images[1].names.is_empty() && images[1].manifest == first.digest);

        assert_eq!(find(&first.digest.to_string()).unwrap(), first.digest);
        assert_eq!(find(&first.digest.hex()[..10]).unwrap(), first.digest);
        let config = store.load_parts(&first.digest).unwrap().manifest.config.digest;
        assert_eq!(find(&config.hex()[..12]).unwrap(), first.digest);

        store.unname_image("app:latest").unwrap();
        assert!(find("app").is_err() && find("old:1").is_ok());
        store.forget_image(&second.digest).unwrap();
        assert_eq!(store.load_images().unwrap().len(), 1);
    }

    #[test]
    fn the_default_tag_has_two_lines() {
        let (_dir, store) = store();
        add(&store, 1, Some("app:latest"));
        add(&store, 1, Some("app:2"));
        let text = std::fs::read_to_string(store.layout().oci_index()).unwrap();
        for name in ["\"app:latest\"", "\"app\"", "\"app:2\""] {
            assert_eq!(text.matches(name).count(), 1, "{name} in {text}");
        }
        add(&store, 3, None);
        assert_eq!(store.load_images().unwrap().len(), 2);
    }
}
