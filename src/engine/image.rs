// SPDX-License-Identifier: MIT OR Apache-2.0
//! Images and layers of the store, opened for mounting and looking.

use std::sync::Arc;

use crate::engine::load::rebuild_index;
use crate::engine::{EngineError, OrFail, Result};
use crate::layer::image::ImageLayer;
use crate::model::Digest;
use crate::oci::spec::BlobRef;
use crate::store::image::ImageParts;
use crate::store::{Access, Store, StoreError, plain};

/// An image with its layers open.
#[derive(Debug)]
pub struct OpenImage {
    /// The digest of its manifest.
    pub manifest: Digest,
    /// Its first name, else its digest.
    pub name: String,
    /// Manifest and configuration.
    pub parts: ImageParts,
    /// The layers, bottom first.
    pub layers: Vec<OpenLayer>,
}

/// A layer of an open image.
#[derive(Clone, Debug)]
pub struct OpenLayer {
    /// The layer; `ImageLayer::stats` tells sizes and counts.
    pub layer: Arc<ImageLayer>,
    /// The digest of its uncompressed tar.
    pub diff_id: Digest,
    /// Its blob.
    pub blob: BlobRef,
    /// The command that made it, as the image's history tells.
    pub created_by: Option<String>,
}

/// Opens the image with this name, digest, or beginning of a digest.
pub fn open_image(store: &Store, reference: &str) -> Result<OpenImage> {
    // A missing image is a sentence of its own.
    let image = store.find_image(reference).map_err(|e| match e {
        StoreError::NoImage { .. } => EngineError::failed(e.to_string()),
        other => EngineError::failed("cannot find the image").because(other),
    })?;
    let name = image.names.first().cloned().unwrap_or_else(|| image.manifest.to_string());
    open_manifest(store, &image.manifest, name)
}

/// Opens the image with this manifest, also when no name leads to it any more; `name` is for messages.
pub fn open_manifest(store: &Store, manifest: &Digest, name: String) -> Result<OpenImage> {
    let parts = store.load_parts(manifest).or_fail(|| format!("cannot open the image {name}"))?;
    let mut history = parts.config.image.history().iter().flatten().filter(|h| h.empty_layer() != Some(true));
    let mut layers = Vec::new();
    for (blob, diff_id) in parts.manifest.layers.iter().zip(&parts.config.diff_ids) {
        let layer = open_or_rebuild(store, blob, diff_id)
            .map_err(|e| EngineError::failed(format!("cannot open the image {name}")).because(e))?;
        let created_by = history.next().and_then(|h| h.created_by().clone());
        layers.push(OpenLayer { layer, diff_id: *diff_id, blob: blob.clone(), created_by });
    }
    Ok(OpenImage { manifest: *manifest, name, parts, layers })
}

/// Opens a layer of the store by the digest of its uncompressed tar.
pub fn open_stored_layer(store: &Store, diff_id: &Digest) -> Result<Arc<ImageLayer>> {
    let what = || format!("cannot open the layer {diff_id}");
    let path = store.layout().index(diff_id);
    let file = plain::open(&path).map_err(|e| StoreError::reading("open", &path, e)).or_fail(what)?;
    let layer = ImageLayer::open(&file, diff_id.to_string(), Arc::new(store.objects())).or_fail(what)?;
    if layer.diff_id() != *diff_id {
        return Err(EngineError::failed(what()).because(StoreError::damaged(&path, "it is of another layer")));
    }
    Ok(Arc::new(layer))
}

/// Indexes are derived: a missing or damaged one, or one of another version, is made anew from the blob.
fn open_or_rebuild(store: &Store, blob: &BlobRef, diff_id: &Digest) -> Result<Arc<ImageLayer>> {
    match open_stored_layer(store, diff_id) {
        Ok(layer) => Ok(layer),
        Err(error) => {
            log::info!("{error}; it is made anew");
            let writable =
                Store::open(store.root(), Access::Write).or_fail(|| "cannot rebuild the index of a layer")?;
            rebuild_index(&writable, blob, diff_id)?;
            open_stored_layer(store, diff_id)
        }
    }
}
