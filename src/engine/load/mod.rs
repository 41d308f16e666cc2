// SPDX-License-Identifier: MIT OR Apache-2.0
//! Loads images and layers into the store.
//!
//! Everything is written and verified in a staging folder first: manifest, configuration, blobs, diffIDs. Then it is
//! made durable by one call, moved into place, and named; a failure at any point leaves the store's tree as it was
//! (but for what another load under way may already rely on).
//! Layers are loaded side by side, bounded by the cores; memory is bounded by the pipes between the threads and by
//! `--max-entries`.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::engine::{EngineError, OrFail, Result};
use crate::layer::index::stack::find_conflict;
use crate::layer::index::{Budget, Index, Limits};
use crate::model::Digest;
use crate::model::sync::lock;
use crate::oci::archive::Archive;
use crate::oci::layout::{Files, SourceImage, SourceLayer, find_docker, find_oci};
use crate::oci::reference::{DEFAULT_TAG, ImageName, Source};
use crate::oci::spec::{BlobRef, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, make_manifest};
use crate::store::blob::StagedBlob;
use crate::store::object::ObjectBatch;
use crate::store::{Existing, Lock, Mode, Publication, Store, StoreError, Wait, plain};

pub mod layer;
pub mod pipe;
pub mod pool;

use layer::{Failure, LayerSource, Shared, StagedLayer, stage_layer};
use pool::with_pool;

/// The most layers that are loaded side by side: each has four threads of its own, and a zstd window of up to 128 MiB.
const LAYERS_AT_ONCE: usize = 2;
/// The most threads that write objects.
const WRITERS: usize = 8;

/// Is told how far a load is. Called from several threads.
pub trait Progress: Sync {
    /// Layer `number` begins; it has so many bytes, if that is known.
    fn begin(&self, number: usize, label: &str, bytes: Option<u64>);
    /// So many bytes more of layer `number` were read.
    fn advance(&self, number: usize, bytes: u64);
    /// Layer `number` is done.
    fn end(&self, number: usize);
}

/// Tells nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _number: usize, _label: &str, _bytes: Option<u64>) {}
    fn advance(&self, _number: usize, _bytes: u64) {}
    fn end(&self, _number: usize) {}
}

/// A loaded image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The digest of its manifest.
    pub manifest: Digest,
    /// The names it has got, `NAME:TAG`.
    pub names: Vec<String>,
}

/// Loads the image at `source`; `name` is its name in the store, else the names the source has for it.
pub fn load_image(
    store: &Store,
    source: &Source,
    name: Option<&ImageName>,
    limits: &Limits,
    progress: &dyn Progress,
) -> Result<Loaded> {
    check_source(source)?;
    let source = &source.clone().resolve(Path::exists);
    let _lock = store.lock(Mode::Shared, Wait::Block).or_fail(|| "cannot lock the store")?;
    let load = store.lock_loads().or_fail(|| "cannot lock the store")?;
    if let Some(loaded) = find_loaded(store, source, name)? {
        return Ok(loaded);
    }
    let staging = store.stage("load").or_fail(|| "cannot load an image")?;
    let (files, image) = find(source, staging.path())?;
    if let (Some(wanted), Some((found, _))) = (name.and_then(ImageName::digest), &image.manifest)
        && *wanted != found.digest
    {
        return Err(EngineError::failed(format!("the image has the digest {}, not {wanted}", found.digest)));
    }
    let names = choose_names(source, &image, name);
    let staged = stage_layers(store, staging.path(), &files, &image, limits, progress)?;

    let (manifest, bytes) = match image.manifest {
        Some(manifest) => manifest,
        None => {
            let layers: Vec<BlobRef> = image.layers.iter().filter_map(|l| staged.blobs.get(&l.path)).cloned().collect();
            let bytes = make_manifest(&image.config.0, &layers);
            let blob =
                BlobRef { digest: Digest::of(&bytes), size: bytes.len() as u64, media_type: OCI_MANIFEST.to_owned() };
            (blob, bytes)
        }
    };
    if let Some(wanted) = name.and_then(ImageName::digest)
        && *wanted != manifest.digest
    {
        return Err(EngineError::failed(format!("the image has the digest {}, not {wanted}", manifest.digest)));
    }
    let whole =
        Whole { layers: &staged.layers, objects: &staged.objects, config: &image.config.1, manifest, bytes, names };
    publish_image(store, staging.path(), load, whole)
}

/// An image of which nothing is missing: what the store lacks of it is staged.
struct Whole<'a> {
    layers: &'a [StagedLayer],
    objects: &'a ObjectBatch,
    config: &'a [u8],
    manifest: BlobRef,
    /// The manifest itself.
    bytes: Vec<u8>,
    names: Vec<String>,
}

/// Moves an image into place and names it; all or nothing.
fn publish_image(store: &Store, staging: &Path, load: Lock, image: Whole<'_>) -> Result<Loaded> {
    let what = || "cannot store an image";
    let config = StagedBlob::of(staging, "config", image.config).or_fail(what)?;
    let root = StagedBlob::of(staging, "manifest", &image.bytes).or_fail(what)?;
    let mut publication = store.publish(load).or_fail(what)?;
    image.objects.publish(&mut publication).or_fail(what)?;
    for layer in image.layers {
        publish_layer(store, layer, Existing::Replace, &mut publication)?;
        if let Some(blob) = &layer.blob {
            blob.publish(store, &mut publication).or_fail(what)?;
        }
    }
    for blob in [config, root] {
        blob.publish(store, &mut publication).or_fail(what)?;
    }
    store.sync().or_fail(what)?;
    if let Err(error) = store.name_image(&image.manifest, &image.names) {
        // The line may be written and only its last sync have failed: then the image must stay whole.
        match store.load_images() {
            Ok(images) if images.iter().all(|i| i.manifest != image.manifest.digest) => {}
            Err(StoreError::Damaged { .. }) => {}
            _ => publication.commit(),
        }
        return Err(EngineError::failed("cannot name an image").because(error));
    }
    publication.commit();
    Ok(Loaded { manifest: image.manifest.digest, names: image.names })
}

/// A layer that is being written, and the image that it makes.
pub struct NewLayer<'a> {
    /// The layers below it.
    pub below: Vec<BlobRef>,
    /// Writes it, maybe compressed.
    pub write: Box<dyn FnOnce(io::PipeWriter) -> Result<()> + Send + 'a>,
    /// Its media type.
    pub media_type: String,
    /// The image's configuration, given the digest of the layer's uncompressed tar.
    pub configure: Box<dyn FnOnce(Digest) -> Result<Vec<u8>> + 'a>,
    /// The image's names, `NAME:TAG`.
    pub names: Vec<String>,
}

/// Stores a new layer and the image that it makes with those below it, as a load would.
pub fn store_layer(store: &Store, new: NewLayer<'_>) -> Result<Loaded> {
    let _lock = store.lock(Mode::Shared, Wait::Block).or_fail(|| "cannot lock the store")?;
    let load = store.lock_loads().or_fail(|| "cannot lock the store")?;
    let staging = store.stage("layer").or_fail(|| "cannot store a layer")?;
    let (reader, writer) = io::pipe().or_fail(|| "cannot make a pipe")?;
    let reader = Mutex::new(Some(reader));
    let open = |number: usize| -> Result<LayerSource<'static>> {
        let reader = lock(&reader).take().ok_or_else(|| EngineError::failed("a layer is read once"))?;
        let label = "the new layer".to_owned();
        Ok(LayerSource { number, label, reader: Box::new(reader), blob: None, diff_id: None, is_blob_kept: true })
    };
    // It is of our own making, whatever its size.
    let limits = Limits {
        max_entries: u64::MAX,
        max_depth: u32::MAX,
        max_xattr_bytes: 4 << 20,
        max_unpacked: u64::MAX,
        ..Limits::default()
    };
    let (written, staged) = std::thread::scope(|scope| {
        let writing = scope.spawn(move || (new.write)(writer));
        let staged = stage_all(store, staging.path(), 1, &open, &limits, &Silent);
        // Nobody reads any more: the writer must not wait for ever.
        drop(lock(&reader).take());
        (layer::joined(writing.join()), staged)
    });
    let (layers, objects) = match (written, staged) {
        // When the store cannot take it, the writer only knows that nobody reads.
        (Err(written), Err(staged)) => return Err(if written.is_broken_pipe() { staged } else { written }),
        (Err(error), Ok(_)) | (Ok(()), Err(error)) => return Err(error),
        (Ok(()), Ok(staged)) => staged,
    };
    let layer = layers.first().ok_or_else(|| EngineError::failed("there is no layer"))?;
    let blob = layer.blob.as_ref().ok_or_else(|| EngineError::failed("the layer has no blob"))?;
    let config = (new.configure)(layer.diff_id)?;
    let mut all = new.below;
    all.push(BlobRef { digest: blob.digest, size: blob.size, media_type: new.media_type });
    let of = |bytes: &[u8], media_type: &str| BlobRef {
        digest: Digest::of(bytes),
        size: bytes.len() as u64,
        media_type: media_type.to_owned(),
    };
    let bytes = make_manifest(&of(&config, OCI_CONFIG), &all);
    let manifest = of(&bytes, OCI_MANIFEST);
    let whole = Whole { layers: &layers, objects: &objects, config: &config, manifest, bytes, names: new.names };
    publish_image(store, staging.path(), load, whole)
}

/// Is the image of a layout in the store already, whole and under its names? Then there is nothing to do.
fn find_loaded(store: &Store, source: &Source, name: Option<&ImageName>) -> Result<Option<Loaded>> {
    let Source::Oci { dir, tag } = source else { return Ok(None) };
    let image = find_oci(&Files::Dir(dir.clone()), tag.as_deref()).or_fail(|| "cannot load an image")?;
    let Some((manifest, _)) = &image.manifest else { return Ok(None) };
    if name.and_then(ImageName::digest).is_some_and(|wanted| *wanted != manifest.digest) {
        return Ok(None);
    }
    let names = choose_names(source, &image, name);
    let known = store.load_images().or_fail(|| "cannot list images")?;
    let is_named = known.iter().any(|i| i.manifest == manifest.digest && names.iter().all(|n| i.names.contains(n)));
    let is_whole = is_named
        && store.load_parts(&manifest.digest).is_ok()
        && image.layers.iter().all(|layer| is_stored(store, layer));
    Ok(is_whole.then_some(Loaded { manifest: manifest.digest, names }))
}

/// Are blob, index and objects of the layer in the store? Objects are told by their sizes: a load repairs what a full
/// disk or a hand has cut short, and does not read all again.
fn is_stored(store: &Store, layer: &SourceLayer) -> bool {
    let has_blob = layer.blob.as_ref().is_some_and(|blob| store.has_blob(&blob.digest, blob.size));
    has_blob
        && sound_index(store, &layer.diff_id)
            .is_some_and(|index| index.sized_objects().all(|(digest, size)| store.has_object(&digest, size)))
}

/// Finds the image in its source; nothing of it is in the store yet.
fn find(source: &Source, spool: &Path) -> Result<(Files, SourceImage)> {
    let archive = |input| Archive::open(input, spool).map(Files::Archive).map_err(|e| spooling(spool, e));
    match source {
        Source::Oci { dir, tag } => {
            let files = Files::Dir(dir.clone());
            let image = find_oci(&files, tag.as_deref()).or_fail(|| "cannot load an image")?;
            Ok((files, image))
        }
        Source::OciArchive { file, tag } => {
            let files = archive(file)?;
            let image = find_oci(&files, tag.as_deref()).or_fail(|| "cannot load an image")?;
            Ok((files, image))
        }
        Source::DockerArchive { file, tag } => {
            let files = archive(file)?;
            let image = find_docker(&files, tag.as_deref()).or_fail(|| "cannot load an image")?;
            Ok((files, image))
        }
        Source::Rootfs(_) | Source::Store(_) => Err(EngineError::usage("no source to load from")),
    }
}

/// Can an image be loaded from there, as far as the words tell?
pub fn check_source(source: &Source) -> Result<()> {
    match source {
        Source::Oci { .. } | Source::OciArchive { .. } | Source::DockerArchive { .. } => Ok(()),
        Source::Rootfs(dir) => Err(EngineError::usage(format!(
            "a directory is no image to load; mount it with `mlfs mount --layer {} MOUNTPOINT`",
            dir.display()
        ))),
        Source::Store(name) => Err(EngineError::usage(format!(
            "\"{name}\" is no source; write oci:DIR[:TAG], oci-archive:FILE[:TAG] or docker-archive:FILE[:TAG]"
        ))),
    }
}

/// A full disk while an archive is spooled is told as the store's.
fn spooling(spool: &Path, error: crate::oci::OciError) -> EngineError {
    match error {
        crate::oci::OciError::Io { path, source } if path.starts_with(spool) => {
            EngineError::failed("cannot load an image").because(StoreError::writing("write", &path, source))
        }
        other => EngineError::failed("cannot load an image").because(other),
    }
}

/// The names an image gets: the one asked for, else those of its source, else the name of its file and its tag.
fn choose_names(source: &Source, image: &SourceImage, asked: Option<&ImageName>) -> Vec<String> {
    if let Some(name) = asked {
        return name.repo_tag().into_iter().collect();
    }
    let known = image.names.iter().filter_map(|n| n.parse::<ImageName>().ok()).filter_map(|n| n.repo_tag());
    let known: Vec<String> = known.collect();
    if !known.is_empty() {
        return known;
    }
    let place = match source {
        Source::Oci { dir, .. } => dir.canonicalize().unwrap_or_else(|_| dir.clone()),
        Source::OciArchive { file: crate::oci::reference::Input::File(path), .. } => path.with_extension(""),
        _ => return Vec::new(),
    };
    let tag = image.tag.as_deref().unwrap_or(DEFAULT_TAG);
    let name = place.file_name().map(|n| format!("{}:{tag}", n.to_string_lossy().to_lowercase()));
    name.filter(|n| n.parse::<ImageName>().is_ok()).into_iter().collect()
}

/// What an image lacks in the store, staged.
struct Staged {
    /// The blobs of all layers, by their paths in the source.
    blobs: HashMap<String, BlobRef>,
    layers: Vec<StagedLayer>,
    objects: ObjectBatch,
}

/// Stages the layers that the store lacks.
fn stage_layers(
    store: &Store,
    staging: &Path,
    files: &Files,
    image: &SourceImage,
    limits: &Limits,
    progress: &dyn Progress,
) -> Result<Staged> {
    let mut blobs = HashMap::new();
    let mut wanted: Vec<&SourceLayer> = Vec::new();
    for layer in &image.layers {
        if let Some(blob) = &layer.blob
            && is_stored(store, layer)
        {
            blobs.insert(layer.path.clone(), blob.clone());
        } else if !wanted.iter().any(|w| w.path == layer.path && w.diff_id == layer.diff_id) {
            wanted.push(layer);
        }
    }
    let open = |number: usize| -> Result<LayerSource<'_>> {
        let layer = wanted.get(number).ok_or_else(|| EngineError::failed("a layer without a number"))?;
        let part = files.open(&layer.path).or_fail(|| "cannot load an image")?;
        let part = part.ok_or_else(|| {
            let name = layer.blob.as_ref().map_or_else(|| layer.path.clone(), |b| b.digest.to_string());
            EngineError::failed(format!("{}: the layer {name} is missing", files.place().display()))
        })?;
        progress.begin(number, &layer.diff_id.short(), Some(part.size));
        Ok(LayerSource {
            number,
            label: format!("the layer {}", layer.blob.as_ref().map_or(layer.diff_id, |b| b.digest)),
            reader: part.reader,
            blob: layer.blob.as_ref().map(|b| (b.digest, b.size)),
            diff_id: Some(layer.diff_id),
            is_blob_kept: true,
        })
    };
    let (staged, objects) = stage_all(store, staging, wanted.len(), &open, limits, progress)?;
    check_stack(store, image, &staged)?;
    for (layer, source) in staged.iter().zip(&wanted) {
        if let Some(blob) = &layer.blob {
            let media_type = source.blob.as_ref().map_or(OCI_LAYER, |b| &b.media_type);
            let blob = BlobRef { digest: blob.digest, size: blob.size, media_type: media_type.to_owned() };
            blobs.insert(source.path.clone(), blob);
        }
    }
    Ok(Staged { blobs, layers: staged, objects })
}

/// Refuses an image whose layers cannot be shown as they would be unpacked.
fn check_stack(store: &Store, image: &SourceImage, staged: &[StagedLayer]) -> Result<()> {
    let open = |layer: &SourceLayer| -> Result<Index> {
        let staged = staged.iter().find(|s| s.diff_id == layer.diff_id).map(|s| s.index.clone());
        let path = staged.unwrap_or_else(|| store.layout().index(&layer.diff_id));
        let what = || format!("cannot open the index of the layer {}", layer.diff_id);
        Index::open(&plain::open(&path).or_fail(what)?).or_fail(what)
    };
    let indexes = image.layers.iter().map(open).collect::<Result<Vec<_>>>()?;
    let conflict = find_conflict(&indexes.iter().collect::<Vec<_>>()).or_fail(|| "cannot compare the layers")?;
    match conflict.and_then(|(number, what)| Some((image.layers.get(number)?, what))) {
        None => Ok(()),
        Some((layer, what)) => {
            let name = layer.blob.as_ref().map_or(layer.diff_id, |b| b.digest);
            Err(EngineError::failed(format!("the layer {name} is refused: {what}")))
        }
    }
}

fn publish_layer(store: &Store, layer: &StagedLayer, existing: Existing, publication: &mut Publication) -> Result<()> {
    // A sound index of the same layer stays: containers have it mapped, and its numbers are inode numbers.
    let existing = if sound_index(store, &layer.diff_id).is_some() { Existing::Keep } else { existing };
    publication.file(&layer.index, store.layout().index(&layer.diff_id), existing).or_fail(|| "cannot store a layer")
}

/// The index of this layer in the store, when there is a sound one.
fn sound_index(store: &Store, diff_id: &Digest) -> Option<Index> {
    let file = plain::open(&store.layout().index(diff_id)).ok()?;
    Index::open(&file).ok().filter(|index| index.diff_id() == *diff_id)
}

/// Stages `count` layers side by side.
fn stage_all<'s>(
    store: &Store,
    staging: &Path,
    count: usize,
    open: &(dyn Fn(usize) -> Result<LayerSource<'s>> + Sync),
    limits: &Limits,
    progress: &dyn Progress,
) -> Result<(Vec<StagedLayer>, ObjectBatch)> {
    let objects = ObjectBatch::new(store, staging).or_fail(|| "cannot store an image")?;
    let budget = Budget::new(*limits);
    let failure = Failure::default();
    let shared = Shared { staging, budget: &budget, progress, failure: &failure };
    let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<(usize, StagedLayer)>> = Mutex::default();
    with_pool(&objects, cores.clamp(1, WRITERS), |pool| {
        std::thread::scope(|scope| {
            for _ in 0..cores.min(LAYERS_AT_ONCE).min(count) {
                let pool = pool.clone();
                let (shared, next, done) = (&shared, &next, &done);
                scope.spawn(move || {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= count || shared.failure.is_set() {
                            return;
                        }
                        match open(number).and_then(|source| stage_layer(shared, pool.clone(), source)) {
                            Ok(layer) => lock(done).push((number, layer)),
                            Err(error) => shared.failure.set(error),
                        }
                    }
                });
            }
        });
    });
    failure.into_result()?;
    let mut done = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    done.sort_by_key(|(number, _)| *number);
    Ok((done.into_iter().map(|(_, layer)| layer).collect(), objects))
}

/// Loads a tar (plain, gzip or zstd) as a layer of its own, for `mlfs mount --layer FILE`; answers its diffID.
///
/// Hold the store's lock shared from before this call until a record of a container names the layer: until then a
/// collection may remove it.
pub fn load_layer_tar(store: &Store, path: &Path, limits: &Limits, progress: &dyn Progress) -> Result<Digest> {
    let what = || format!("cannot load the layer {}", path.display());
    let _lock = store.lock(Mode::Shared, Wait::Block).or_fail(what)?;
    let load = store.lock_loads().or_fail(what)?;
    let staging = store.stage("layer").or_fail(what)?;
    let open = |number: usize| -> Result<LayerSource<'static>> {
        let file = File::open(path).or_fail(what)?;
        let bytes = file.metadata().ok().filter(std::fs::Metadata::is_file).map(|m| m.len());
        progress.begin(number, &path.display().to_string(), bytes);
        Ok(LayerSource {
            number,
            label: "it".to_owned(),
            reader: Box::new(file),
            blob: None,
            diff_id: None,
            is_blob_kept: false,
        })
    };
    let (staged, objects) = stage_all(store, staging.path(), 1, &open, limits, progress)
        .map_err(|e| EngineError::failed(what()).because(e))?;
    let mut publication = store.publish(load).or_fail(what)?;
    objects.publish(&mut publication).or_fail(what)?;
    for layer in &staged {
        publish_layer(store, layer, Existing::Replace, &mut publication)?;
    }
    store.sync().or_fail(what)?;
    publication.commit();
    let diff_id = staged.first().map(|l| l.diff_id);
    diff_id.ok_or_else(|| EngineError::failed(what()))
}

/// Makes the index of a layer anew from its blob, because it is damaged or of another version.
pub fn rebuild_index(store: &Store, blob: &BlobRef, diff_id: &Digest) -> Result<()> {
    let what = || format!("cannot rebuild the index of the layer {diff_id}");
    let _lock = store.lock(Mode::Shared, Wait::Block).or_fail(what)?;
    let load = store.lock_loads().or_fail(what)?;
    let staging = store.stage("rebuild").or_fail(what)?;
    let open = |number: usize| -> Result<LayerSource<'static>> {
        let mut file = plain::open(&store.layout().blob(&blob.digest)).or_fail(what)?;
        file.rewind().or_fail(what)?;
        let reader: Box<dyn Read + Send> = Box::new(file);
        let blob = Some((blob.digest, blob.size));
        Ok(LayerSource { number, label: "it".to_owned(), reader, blob, diff_id: Some(*diff_id), is_blob_kept: false })
    };
    // It was within the limits when it was loaded, whatever they were.
    let limits = Limits { max_entries: u64::MAX, max_unpacked: u64::MAX, ..Limits::default() };
    let (staged, objects) = stage_all(store, staging.path(), 1, &open, &limits, &Silent)?;
    let mut publication = store.publish(load).or_fail(what)?;
    objects.publish(&mut publication).or_fail(what)?;
    for layer in &staged {
        publish_layer(store, layer, Existing::Replace, &mut publication)?;
    }
    store.sync().or_fail(what)?;
    publication.commit();
    Ok(())
}

#[cfg(test)]
mod tests;
