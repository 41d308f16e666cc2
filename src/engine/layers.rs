// SPDX-License-Identifier: MIT OR Apache-2.0
//! The layers of a container: found in the store or on the host, opened once by descriptor.

use std::path::Path;
use std::sync::Arc;

use crate::layer::Layer;
use crate::layer::dir::{DirLayer, HostForm};
use crate::model::Digest;
use crate::store::Store;
use crate::store::container::{ContainerRecord, LayerRecord};

use super::{EngineError, OrFail, Result};

/// An image of the store, resolved.
#[derive(Clone, Debug)]
pub struct ResolvedImage {
    /// Its manifest.
    pub manifest: Digest,
    /// Its layers by the digests of their uncompressed tars, bottom first.
    pub diff_ids: Vec<Digest>,
}

/// Finds an image of the store by name or digest.
pub fn resolve_image(_store: &Store, name: &str) -> Result<ResolvedImage> {
    Err(EngineError::failed(format!("no image {name} in the store")))
}

/// Loads a layer archive into the store.
pub fn load_archive(_store: &Store, path: &Path) -> Result<Digest> {
    Err(EngineError::failed(format!("cannot load the layer {}", path.display())))
}

/// Are the stored layers of a container (still) there?
pub fn check_present(_store: &Store, _record: &ContainerRecord) -> Result<()> {
    Ok(())
}

fn open_stored(_store: &Store, digest: &Digest) -> Result<Arc<dyn Layer>> {
    Err(EngineError::failed(format!("no layer {digest}")))
}

/// Opens the layers of a container, bottom first.
pub fn open(store: &Store, record: &ContainerRecord) -> Result<Vec<Arc<dyn Layer>>> {
    Ok(describe(store, record)?.into_iter().map(|info| info.layer).collect())
}

/// A layer, opened, and what is known of it.
#[derive(Clone, Debug)]
pub struct LayerInfo {
    /// Its digest, or its path.
    pub name: String,
    /// The command that made it, as the image's history tells.
    pub created_by: Option<String>,
    /// The size of its blob in the store.
    pub stored: Option<u64>,
    /// The layer.
    pub layer: Arc<dyn Layer>,
}

impl LayerInfo {
    /// A layer of which nothing more is known.
    pub fn of(layer: Arc<dyn Layer>) -> Self {
        LayerInfo { name: layer.label(), created_by: None, stored: None, layer }
    }
}

/// Opens the layers of a container, bottom first, with what is known of them.
pub fn describe(store: &Store, record: &ContainerRecord) -> Result<Vec<LayerInfo>> {
    let open = |layer: &LayerRecord| match layer {
        LayerRecord::Dir(path) => open_dir(Path::new(path)).map(LayerInfo::of),
        LayerRecord::Stored(digest) => open_stored(store, digest).map(LayerInfo::of),
    };
    record.layers.iter().map(open).collect()
}

/// Opens the layers of an image, bottom first, with what is known of them.
pub fn describe_image(store: &Store, name: &str) -> Result<Vec<LayerInfo>> {
    let image = resolve_image(store, name)?;
    image.diff_ids.iter().map(|digest| open_stored(store, digest).map(LayerInfo::of)).collect()
}

/// Opens a directory of the host as a layer: all whiteout conventions, and owners kept in attributes, are understood.
pub fn open_dir(path: &Path) -> Result<Arc<dyn Layer>> {
    let fd = super::assemble::open_path(path, super::assemble::OpenAs::Directory)
        .or_fail(|| format!("cannot open the layer {}", path.display()))?;
    let form = HostForm { has_oci_names: true, has_override: true, is_plain: false };
    let layer = DirLayer::open(fd, path.display().to_string(), form)
        .or_fail(|| format!("cannot open the layer {}", path.display()))?;
    Ok(Arc::new(layer))
}
