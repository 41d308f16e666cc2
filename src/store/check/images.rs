// SPDX-License-Identifier: MIT OR Apache-2.0
//! Checks the names of images and what manifests and configurations say: who needs which blob and which layer.

use std::collections::{BTreeMap, HashSet};
use std::fs;

use oci_spec::image::ImageIndex;

use super::{StoreFinding, StoreRepair, chain};
use crate::model::Digest;
use crate::model::finding::{Cure, Finding};
use crate::oci::reference::ImageName;
use crate::oci::spec::{BlobRef, CONFIG_LIMIT, MANIFEST_LIMIT, OCI_MANIFEST, parse_config, parse_manifest};
use crate::store::container::{ContainerRecord, LayerRecord};
use crate::store::image::{Image, digest_of, line_names, make_line, ref_name};
use crate::store::{Store, StoreError, layout, plain};

/// Why a blob is needed.
#[derive(Clone, Debug)]
pub struct BlobNeed {
    /// The size that its manifest tells; `None` for a manifest that only a container names.
    pub size: Option<u64>,
    /// "the manifest of the image app:latest".
    pub role: String,
}

/// Why a layer is needed, and what it can be made of.
#[derive(Clone, Debug)]
pub struct LayerNeed {
    /// "the image app:latest".
    pub who: String,
    /// Its blob; layers of archives have none.
    pub blob: Option<BlobRef>,
}

/// What images and containers need.
#[derive(Debug, Default)]
pub struct Census {
    /// By digest.
    pub blobs: BTreeMap<Digest, BlobNeed>,
    /// By the digest of the uncompressed tar.
    pub layers: BTreeMap<Digest, LayerNeed>,
    /// Something could not be read: what is not named here may be needed all the same.
    pub is_partial: bool,
    /// What is not named here is not asked for.
    pub is_selection: bool,
}

impl Store {
    /// Checks `index.json`, and every manifest and configuration; gathers what is needed.
    pub fn check_images(&self, containers: &[ContainerRecord], findings: &mut Vec<StoreFinding>) -> Census {
        let mut census = Census::default();
        for (manifest, who, size) in self.check_lines(containers, findings, &mut census) {
            self.check_image(&manifest, &who, size, findings, &mut census);
        }
        for container in containers {
            let who = format!("the container {}", container.name);
            if let Some(manifest) = &container.image
                && !census.blobs.contains_key(manifest)
            {
                let name = container.image_name.as_deref().unwrap_or("without a name");
                let who = format!("the image {name} (of {who}; no line of index.json names it)");
                self.check_image(manifest, &who, None, findings, &mut census);
            }
            for layer in &container.layers {
                if let LayerRecord::Stored(digest) = layer {
                    census.layers.entry(*digest).or_insert_with(|| LayerNeed { who: who.clone(), blob: None });
                }
            }
        }
        census
    }

    /// The images that `index.json` names: manifest, name, and the manifest's size.
    fn check_lines(
        &self,
        containers: &[ContainerRecord],
        findings: &mut Vec<StoreFinding>,
        census: &mut Census,
    ) -> Vec<(Digest, String, Option<u64>)> {
        let path = self.layout().oci_index();
        let broken = |says: String| Finding::damage(&path, "record", says, Cure::Repair(StoreRepair::WriteNames));
        let index: ImageIndex = match self.load_record(&path) {
            Ok(Some(index)) => index,
            Ok(None) if !self.layout().blobs().is_dir() => return Vec::new(),
            Ok(None) => {
                census.is_partial = true;
                findings.push(broken("it is missing: no image has a name".into()));
                return Vec::new();
            }
            Err(StoreError::Damaged { what, .. }) => {
                census.is_partial = true;
                findings.push(broken(format!("it cannot be understood, so that no image has a name: {what}")));
                return Vec::new();
            }
            Err(e) => {
                census.is_partial = true;
                let cure = Cure::Refused("run fsck as its owner".into());
                findings.push(Finding::damage(&path, "record", chain(&e), cure));
                return Vec::new();
            }
        };
        let mut images: BTreeMap<Digest, (String, Option<u64>)> = BTreeMap::new();
        for line in index.manifests() {
            let name = ref_name(line).map(str::to_owned);
            let Some(digest) = digest_of(line) else {
                let says = format!("the line of {} has no sha256 digest and is passed over", line.digest());
                findings.push(Finding::note(&path, "image", says));
                continue;
            };
            let who = name.or_else(|| self.name_in_containers(containers, &digest));
            let entry = images.entry(digest).or_insert_with(|| (String::new(), Some(line.size())));
            if let Some(who) = who
                && (entry.0.is_empty() || who.len() > entry.0.len() && who.starts_with(&entry.0))
            {
                entry.0 = who;
            }
        }
        let named = |(digest, (name, size)): (Digest, (String, Option<u64>))| {
            let name = if name.is_empty() { digest.to_string() } else { name };
            (digest, format!("the image {name}"), size)
        };
        images.into_iter().map(named).collect()
    }

    fn name_in_containers(&self, containers: &[ContainerRecord], manifest: &Digest) -> Option<String> {
        containers.iter().find(|c| c.image.as_ref() == Some(manifest)).and_then(|c| c.image_name.clone())
    }

    /// Checks manifest and configuration of one image alone.
    pub fn check_one_image(&self, image: &Image, findings: &mut Vec<StoreFinding>) -> Census {
        let mut census = Census { is_selection: true, ..Census::default() };
        let name = image.names.first().cloned().unwrap_or_else(|| image.manifest.to_string());
        self.check_image(&image.manifest, &format!("the image {name}"), None, findings, &mut census);
        census
    }

    /// Checks manifest and configuration of one image; notes its blobs and layers.
    fn check_image(
        &self,
        digest: &Digest,
        who: &str,
        size: Option<u64>,
        findings: &mut Vec<StoreFinding>,
        census: &mut Census,
    ) {
        census.blobs.insert(*digest, BlobNeed { size, role: format!("the manifest of {who}") });
        let advice = || Cure::Refused("load the image again, or remove it with `mlfs image rm`".to_owned());
        // What is missing or summed up wrong is told with the blobs; here, only what the bytes say counts.
        let Ok(bytes) = self.load_blob(digest, MANIFEST_LIMIT) else {
            census.is_partial = true;
            return;
        };
        let path = self.layout().blob(digest);
        let manifest = match parse_manifest(&bytes) {
            Ok(manifest) => manifest,
            Err(why) => {
                census.is_partial = true;
                let says = format!("the manifest of {who} cannot be understood: {why}");
                return findings.push(Finding::damage(path, "image", says, advice()));
            }
        };
        let mut need = |blob: &BlobRef, role: String| {
            census.blobs.entry(blob.digest).or_insert(BlobNeed { size: Some(blob.size), role });
        };
        need(&manifest.config, format!("the configuration of {who}"));
        for (number, layer) in manifest.layers.iter().enumerate() {
            need(layer, format!("layer {} of {who}", number + 1));
        }
        let Ok(bytes) = self.load_blob(&manifest.config.digest, CONFIG_LIMIT) else {
            census.is_partial = true;
            return;
        };
        let path = self.layout().blob(&manifest.config.digest);
        match parse_config(&bytes) {
            Ok(config) if config.diff_ids.len() == manifest.layers.len() => {
                for (blob, layer) in manifest.layers.iter().zip(&config.diff_ids) {
                    let need = || LayerNeed { who: who.to_owned(), blob: Some(blob.clone()) };
                    census.layers.entry(*layer).or_insert_with(need);
                }
            }
            Ok(config) => {
                census.is_partial = true;
                let (told, has) = (config.diff_ids.len(), manifest.layers.len());
                let says = format!("the configuration of {who} tells of {told} layers, its manifest has {has}");
                findings.push(Finding::damage(path, "image", says, advice()));
            }
            Err(why) => {
                census.is_partial = true;
                let says = format!("the configuration of {who} cannot be understood: {why}");
                findings.push(Finding::damage(path, "image", says, advice()));
            }
        }
    }

    /// Writes `index.json` from the whole images in the store, with the names that containers know for them.
    pub(super) fn write_names(&self) -> Result<(), StoreError> {
        let containers = self.list_containers()?.whole;
        let mut lines = Vec::new();
        let mut seen = HashSet::new();
        for name in super::list(&self.layout().blobs(), "blob", &mut Vec::new()) {
            let Some(digest) = name.to_str().and_then(Digest::from_hex) else { continue };
            let path = self.layout().blob(&digest);
            let size = fs::symlink_metadata(&path).map_or(u64::MAX, |meta| meta.len());
            // Layers need not be read: `load_blob` has a limit, and reads no further.
            if size > MANIFEST_LIMIT || self.load_parts(&digest).is_err() {
                continue;
            }
            let media_type = media_type_of(&path).unwrap_or_else(|| OCI_MANIFEST.to_owned());
            let blob = BlobRef { digest, size, media_type };
            let known = containers.iter().filter(|c| c.image == Some(digest)).filter_map(|c| c.image_name.as_deref());
            let known = known.filter_map(|name| name.parse::<ImageName>().ok()).filter_map(|name| name.repo_tag());
            let names: Vec<String> =
                known.flat_map(|name| line_names(&name)).filter(|name| seen.insert(name.clone())).collect();
            if names.is_empty() {
                lines.extend(make_line(&blob, None));
            }
            lines.extend(names.iter().filter_map(|name| make_line(&blob, Some(name))));
        }
        let empty = serde_json::from_str::<ImageIndex>(crate::store::EMPTY_INDEX);
        let mut index = empty.map_err(|e| StoreError::damaged(&self.layout().oci_index(), e.to_string()))?;
        index.set_manifests(lines);
        self.replace_record(self.root(), layout::OCI_INDEX, &index)
    }
}

fn media_type_of(path: &std::path::Path) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(&plain::read(path).ok()??).ok()?;
    value.get("mediaType")?.as_str().map(str::to_owned)
}
