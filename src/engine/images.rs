// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is to be told about images, and their removal.

use serde_json::Value;

use crate::engine::{EngineError, OrFail, Result};
use crate::layer::index::Index;
use crate::model::Digest;
use crate::oci::spec::BlobRef;
use crate::store::gc::{Force, Removed};
use crate::store::image::Image;
use crate::store::{Store, StoreError, plain};

/// An image, to be told.
#[derive(Clone, Debug)]
pub struct ImageFacts {
    /// The digest of its configuration: Docker's image id.
    pub id: Digest,
    /// The digest of its manifest.
    pub manifest: Digest,
    /// `NAME:TAG`s.
    pub names: Vec<String>,
    /// When it was made, as its configuration tells.
    pub created: Option<String>,
    /// Bytes of all files of all layers.
    pub unpacked: u64,
    /// The layers, bottom first.
    pub layers: Vec<LayerFacts>,
    /// The whole configuration.
    pub raw_config: Value,
}

/// A layer, to be told.
#[derive(Clone, Debug)]
pub struct LayerFacts {
    /// The digest of its uncompressed tar.
    pub diff_id: Digest,
    /// Its blob.
    pub blob: BlobRef,
    /// Bytes of its files; `None` when its index cannot tell.
    pub unpacked: Option<u64>,
}

/// Finds the image with this name, digest, or beginning of a digest.
pub fn find(store: &Store, reference: &str) -> Result<Image> {
    store.find_image(reference).map_err(|e| missing(e, "cannot find the image"))
}

/// Tells about the image with this name, digest, or beginning of a digest.
pub fn facts(store: &Store, reference: &str) -> Result<ImageFacts> {
    let image = find(store, reference)?;
    let parts = store.load_parts(&image.manifest).or_fail(|| format!("cannot read the image {reference}"))?;
    let layers: Vec<LayerFacts> = parts
        .manifest
        .layers
        .iter()
        .zip(&parts.config.diff_ids)
        .map(|(blob, diff_id)| {
            let index = plain::open(&store.layout().index(diff_id));
            let stats = index.ok().and_then(|file| Index::read_stats(&file).ok());
            LayerFacts { diff_id: *diff_id, blob: blob.clone(), unpacked: stats.map(|s| s.unpacked) }
        })
        .collect();
    Ok(ImageFacts {
        id: parts.manifest.config.digest,
        manifest: image.manifest,
        names: image.names,
        created: parts.config.image.created().clone(),
        unpacked: layers.iter().filter_map(|l| l.unpacked).sum(),
        layers,
        raw_config: parts.raw_config,
    })
}

/// Takes a name from an image, or removes it; see [`Store::remove_image`].
pub fn remove(store: &Store, reference: &str, force: Force) -> Result<Removed> {
    store.remove_image(reference, force).map_err(|e| missing(e, "cannot remove the image"))
}

/// A missing image is a sentence of its own.
fn missing(error: StoreError, what: &str) -> EngineError {
    match error {
        StoreError::NoImage { .. } => EngineError::failed(error.to_string()),
        error @ StoreError::Damaged { .. } => EngineError::failed(what)
            .because(error)
            .advise("mend what is damaged or remove it (`mlfs ps -a` shows damaged containers)"),
        other => EngineError::failed(what).because(other),
    }
}
