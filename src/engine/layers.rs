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
    record
        .layers
        .iter()
        .map(|layer| match layer {
            LayerRecord::Dir(path) => open_dir(Path::new(path)),
            LayerRecord::Stored(digest) => open_stored(store, digest),
        })
        .collect()
}

/// Opens a directory of the host as a layer: all whiteout conventions, and owners kept in attributes, are understood.
fn open_dir(path: &Path) -> Result<Arc<dyn Layer>> {
    let fd = super::assemble::open_path(path, super::assemble::OpenAs::Directory)
        .or_fail(|| format!("cannot open the layer {}", path.display()))?;
    let form = HostForm { has_oci_names: true, has_override: true, is_plain: false };
    let layer = DirLayer::open(fd, path.display().to_string(), form)
        .or_fail(|| format!("cannot open the layer {}", path.display()))?;
    Ok(Arc::new(layer))
}
