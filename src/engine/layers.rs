// SPDX-License-Identifier: MIT OR Apache-2.0
//! The layers of a container: found in the store or on the host, opened once by descriptor.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;

use crate::layer::Layer;
use crate::layer::dir::{DirLayer, HostForm};
use crate::layer::index::Limits;
use crate::model::Digest;
use crate::oci::reference::Source;
use crate::store::Store;
use crate::store::container::{ContainerRecord, LayerRecord};

use super::load::{self, Progress};
use super::{EngineError, OrFail, Result, image};

/// An image of the store, resolved.
#[derive(Clone, Debug)]
pub struct ResolvedImage {
    /// Its manifest.
    pub manifest: Digest,
    /// Its layers by the digests of their uncompressed tars, bottom first.
    pub diff_ids: Vec<Digest>,
}

/// Finds an image of the store by name or digest; one that lies elsewhere (`oci:DIR`, ...) is loaded first.
pub fn resolve_image(store: &Store, name: &str, progress: &dyn Progress) -> Result<ResolvedImage> {
    let image = match parse_source(name)? {
        Source::Store(_) => image::open_image(store, name)?,
        source => {
            let loaded = load::load_image(store, &source, None, &Limits::default(), progress)?;
            image::open_manifest(store, &loaded.manifest, name.to_owned())?
        }
    };
    let diff_ids = image.layers.iter().map(|layer| layer.diff_id).collect();
    Ok(ResolvedImage { manifest: image.manifest, diff_ids })
}

/// Where an image is to be found. A text that is no image's name may still be the beginning of a digest.
pub fn parse_source(text: &str) -> Result<Source> {
    Source::parse(OsStr::new(text)).map_err(|e| EngineError::failed(e.to_string()))
}

/// Loads a layer archive into the store; the digest of its uncompressed tar.
pub fn load_archive(store: &Store, path: &Path, progress: &dyn Progress) -> Result<Digest> {
    load::load_layer_tar(store, path, &Limits::default(), progress)
}

/// Opens the layers of a container, bottom first.
pub fn open(store: &Store, record: &ContainerRecord) -> Result<Vec<Arc<dyn Layer>>> {
    Ok(describe(store, record)?.into_iter().map(|info| info.layer).collect())
}

/// A layer, opened, and what is known of it.
#[derive(Clone, Debug)]
pub struct LayerInfo {
    /// The digest of its blob, or its path.
    pub name: String,
    /// The digest of its uncompressed tar, for a layer of an image.
    pub diff_id: Option<Digest>,
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
        LayerInfo { name: layer.label(), diff_id: None, created_by: None, stored: None, layer }
    }
}

/// Opens the layers of a container, bottom first, with what is known of them.
pub fn describe(store: &Store, record: &ContainerRecord) -> Result<Vec<LayerInfo>> {
    if let Some(manifest) = &record.image {
        let name = record.image_name.clone().unwrap_or_else(|| manifest.to_string());
        return Ok(infos(image::open_manifest(store, manifest, name)?));
    }
    let open = |layer: &LayerRecord| match layer {
        LayerRecord::Dir(path) => open_dir(Path::new(path)).map(LayerInfo::of),
        LayerRecord::Stored(digest) => {
            let layer: Arc<dyn Layer> = image::open_stored_layer(store, digest)?;
            Ok(LayerInfo::of(layer))
        }
    };
    record.layers.iter().map(open).collect()
}

/// Opens the layers of an image, bottom first, with what is known of them.
pub fn describe_image(store: &Store, name: &str) -> Result<Vec<LayerInfo>> {
    Ok(infos(image::open_image(store, name)?))
}

fn infos(image: image::OpenImage) -> Vec<LayerInfo> {
    let info = |layer: image::OpenLayer| LayerInfo {
        name: layer.blob.digest.to_string(),
        diff_id: Some(layer.diff_id),
        created_by: layer.created_by,
        stored: Some(layer.blob.size),
        layer: layer.layer,
    };
    image.layers.into_iter().map(info).collect()
}

/// Opens a directory of the host as a layer: all whiteout conventions, and owners kept in attributes, are understood.
pub fn open_dir(path: &Path) -> Result<Arc<dyn Layer>> {
    let fd = super::assemble::open_path(path, super::assemble::OpenAs::Directory)
        .or_fail(|| format!("cannot open the layer {}", path.display()))?;
    // As root, attributes that any owner of a file can write give nobody an owner or another place.
    let trusts_users = !crate::sys::proc::is_real_root();
    let form = HostForm {
        has_oci_names: true,
        has_override: trusts_users,
        is_plain: false,
        trusts_user_marks: trusts_users,
        is_fixed: true,
    };
    let layer = DirLayer::open(fd, path.display().to_string(), form)
        .or_fail(|| format!("cannot open the layer {}", path.display()))?;
    Ok(Arc::new(layer))
}
