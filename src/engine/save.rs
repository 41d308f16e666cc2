// SPDX-License-Identifier: MIT OR Apache-2.0
//! `image save`: an image of the store into an OCI layout, or into an archive as `docker save` writes it (which is a
//! layout too). Blobs are written as they are, and every digest is verified on the way.

use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::model::Digest;
use crate::oci::layout::blob_path;
use crate::oci::reference::{DEFAULT_TAG, Input, Source};
use crate::oci::spec::{BlobRef, MANIFEST_LIMIT, OCI_MANIFEST, REF_NAME};
use crate::oci::tar::write::TarWriter;
use crate::oci::tar::{Member, MemberKind};
use crate::store::image::ImageParts;
use crate::store::{Mode, Store, StoreError, Wait};

use super::{EngineError, OrFail, Result, export, images};

/// The mode of the files of a layout.
const MODE: u32 = 0o644;
const LAYOUT: &[u8] = b"{\"imageLayoutVersion\":\"1.0.0\"}";

/// Can an image be saved there, as far as the words tell?
pub fn check_target(target: &Source) -> Result<()> {
    match target {
        Source::Oci { .. } | Source::DockerArchive { .. } => Ok(()),
        _ => Err(EngineError::usage("an image is saved to oci:DIR[:TAG] or docker-archive:FILE")),
    }
}

/// Saves an image; `stdout` takes `docker-archive:-`.
pub fn save(store: &Store, reference: &str, target: &Source, stdout: &mut dyn Write) -> Result<()> {
    check_target(target)?;
    let _lock = store.lock(Mode::Shared, Wait::Block).or_fail(|| "cannot lock the store")?;
    let found = images::find(store, reference)?;
    let parts = store.load_parts(&found.manifest).or_fail(|| format!("cannot read the image {reference}"))?;
    // The name that was asked for, else the first.
    let asked = reference.parse::<crate::oci::reference::ImageName>().ok().and_then(|name| name.repo_tag());
    let name = asked.filter(|name| found.names.contains(name)).or(found.names.first().cloned());
    let saved = Saved { store, manifest: found.manifest, parts, name };
    match target.clone().resolve(Path::exists) {
        Source::Oci { dir, tag } => saved.to_layout(&dir, tag.as_deref()),
        Source::DockerArchive { file: Input::Stdin, tag } => saved.to_archive(tag.as_deref(), stdout),
        Source::DockerArchive { file: Input::File(path), tag } => {
            export::write_file(&path, export::PRIVATE, |out| saved.to_archive(tag.as_deref(), out))
        }
        other => check_target(&other),
    }
    .map_err(|error| EngineError::failed(format!("cannot save the image {reference}")).because(error))
}

/// An image on its way out.
struct Saved<'s> {
    store: &'s Store,
    manifest: Digest,
    parts: ImageParts,
    name: Option<String>,
}

impl Saved<'_> {
    /// Every blob once: layers, configuration, manifest.
    fn blobs(&self) -> Vec<BlobRef> {
        let manifest = self.manifest_blob();
        let all = self.parts.manifest.layers.iter().chain([&self.parts.manifest.config, &manifest]);
        let mut blobs: Vec<BlobRef> = Vec::new();
        for blob in all {
            if !blobs.iter().any(|known| known.digest == blob.digest) {
                blobs.push(blob.clone());
            }
        }
        blobs
    }

    fn manifest_blob(&self) -> BlobRef {
        // Its own word for itself, which an image of Docker's form has too.
        let bytes = self.store.load_blob(&self.manifest, MANIFEST_LIMIT).unwrap_or_default();
        let value: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let media_type = value.get("mediaType").and_then(Value::as_str).unwrap_or(OCI_MANIFEST).to_owned();
        BlobRef { digest: self.manifest, size: self.parts.manifest_size, media_type }
    }

    /// The tag in a layout: the one asked for, else the image's own, else `latest`.
    fn tag<'t>(&'t self, asked: Option<&'t str>) -> &'t str {
        let own = self.name.as_deref().and_then(|name| name.rsplit_once(':')).map(|(_, tag)| tag);
        asked.or(own).unwrap_or(DEFAULT_TAG)
    }

    /// Copies a blob, summing it up.
    fn copy(&self, blob: &BlobRef, write: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let path = self.store.layout().blob(&blob.digest);
        let what = || format!("cannot read the blob {}", blob.digest);
        let mut file = File::open(&path).map_err(|e| StoreError::reading("open", &path, e)).or_fail(what)?;
        let found = sum(&mut file, write)?;
        if found == blob.digest {
            return Ok(());
        }
        Err(EngineError::failed(what()).because(StoreError::damaged(&path, format!("its digest is {found}"))))
    }

    /// Adds the image to an OCI layout, which is made where there is none. The index comes last: an image that it names
    /// is there.
    fn to_layout(&self, dir: &Path, tag: Option<&str>) -> Result<()> {
        let what = || format!("cannot write {}", dir.display());
        let is_new = match fs::create_dir(dir) {
            Ok(()) => true,
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => false,
            Err(e) => return Err(EngineError::failed(what()).because(e)),
        };
        // Others that save here wait: the index is read, changed and written.
        let lock = File::open(dir).or_fail(what)?;
        lock.lock().or_fail(what)?;
        let mut made = Vec::new();
        let lines = known_lines(dir, &dir.join("index.json"));
        let result = lines.and_then(|lines| self.fill_layout(dir, lines, tag, &mut made));
        if result.is_err() {
            made.iter().try_for_each(fs::remove_file).or_fail(what)?;
            // What is not ours alone stays.
            let dirs = [dir.join("blobs/sha256"), dir.join("blobs"), dir.to_owned()];
            if is_new && dirs.iter().try_for_each(fs::remove_dir).is_err() {
                log::debug!("{} is not empty", dir.display());
            }
        }
        result
    }

    /// `made` takes the files that were not there before.
    fn fill_layout(&self, dir: &Path, mut lines: Vec<Value>, tag: Option<&str>, made: &mut Vec<PathBuf>) -> Result<()> {
        let what = || format!("cannot write {}", dir.display());
        fs::create_dir_all(dir.join("blobs/sha256")).or_fail(what)?;
        for blob in self.blobs() {
            let path = dir.join(blob_path(&blob.digest));
            let is_there = path.exists();
            if is_there && sum(&mut File::open(&path).or_fail(what)?, &mut |_| Ok(()))? == blob.digest {
                continue;
            }
            export::write_file(&path, MODE, |out| self.copy(&blob, &mut |bytes| out.write_all(bytes).or_fail(what)))?;
            made.extend((!is_there).then_some(path));
        }
        let mark = dir.join("oci-layout");
        if !mark.exists() {
            export::write_file(&mark, MODE, |out| out.write_all(LAYOUT).or_fail(what))?;
            made.push(mark);
        }
        let tag = self.tag(tag);
        let ref_name = |line: &Value| line.pointer("/annotations").and_then(|a| a.get(REF_NAME)).cloned();
        lines.retain(|line| ref_name(line) != Some(json!(tag)));
        lines.push(self.line(tag));
        let index = index_of(&lines);
        export::write_file(&dir.join("index.json"), MODE, |out| out.write_all(&index).or_fail(what))
    }

    /// The image's line in an index.
    fn line(&self, tag: &str) -> Value {
        let manifest = self.manifest_blob();
        json!({
            "mediaType": manifest.media_type,
            "digest": manifest.digest.to_string(),
            "size": manifest.size,
            "annotations": { REF_NAME: tag },
        })
    }

    /// Writes an archive as `docker save` does: an OCI layout with a `manifest.json`.
    fn to_archive(&self, tag: Option<&str>, out: &mut dyn Write) -> Result<()> {
        let mut tar = TarWriter::new(BufWriter::with_capacity(1 << 17, out));
        let what = || "cannot write the archive";
        for dir in ["blobs/", "blobs/sha256/"] {
            let member = Member { kind: MemberKind::Dir, path: dir.into(), perm: 0o755, ..Member::default() };
            tar.begin(&member).or_fail(what)?;
        }
        for blob in self.blobs() {
            tar.begin(&file(&blob_path(&blob.digest), blob.size)).or_fail(what)?;
            self.copy(&blob, &mut |bytes| tar.data(bytes).or_fail(what))?;
        }
        let repository = self.name.as_deref().and_then(|name| name.rsplit_once(':')).map(|(name, _)| name);
        let full = match (tag, repository) {
            // A whole name, or a tag for the name that it has.
            (Some(tag), _) if tag.contains([':', '/']) => Some(tag.to_owned()),
            (Some(tag), Some(repository)) => Some(format!("{repository}:{tag}")),
            _ => self.name.clone(),
        };
        let layers: Vec<String> = self.parts.manifest.layers.iter().map(|layer| blob_path(&layer.digest)).collect();
        let manifest = json!([{
            "Config": blob_path(&self.parts.manifest.config.digest),
            "RepoTags": full.iter().collect::<Vec<_>>(),
            "Layers": layers,
        }]);
        let mut line = self.line(self.tag(tag));
        if let (Some(full), Some(annotations)) = (full, line.pointer_mut("/annotations").and_then(Value::as_object_mut))
        {
            annotations.insert("io.containerd.image.name".into(), json!(full));
        }
        let index = index_of(&[line]);
        for (name, bytes) in [
            ("index.json", index.as_slice()),
            ("manifest.json", manifest.to_string().as_bytes()),
            ("oci-layout", LAYOUT),
        ] {
            tar.begin(&file(name, bytes.len() as u64)).or_fail(what)?;
            tar.data(bytes).or_fail(what)?;
        }
        export::flushed(tar.finish().or_fail(what)?)
    }
}

/// Passes the bytes of a file on, and sums them up.
fn sum(file: &mut File, pass: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<Digest> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        let count = file.read(&mut buffer).or_fail(|| "cannot read a blob")?;
        let bytes = buffer.get(..count).unwrap_or_default();
        if bytes.is_empty() {
            return Ok(Digest(hash.finalize().into()));
        }
        hash.update(bytes);
        pass(bytes)?;
    }
}

fn file(name: &str, size: u64) -> Member {
    Member { path: name.into(), perm: 0o644, size, ..Member::default() }
}

fn index_of(lines: &[Value]) -> Vec<u8> {
    let media_type = "application/vnd.oci.image.index.v1+json";
    json!({"schemaVersion": 2, "mediaType": media_type, "manifests": lines}).to_string().into_bytes()
}

/// The lines of a layout that is there; none where there is nothing. Other directories are not written into.
fn known_lines(dir: &Path, index: &Path) -> Result<Vec<Value>> {
    let what = || format!("cannot read {}", index.display());
    if !dir.exists() || fs::read_dir(dir).or_fail(what)?.next().is_none() {
        return Ok(Vec::new());
    }
    if !dir.join("oci-layout").exists() {
        return Err(EngineError::failed(format!("{} is no OCI layout, and not empty", dir.display()))
            .advise("choose another directory"));
    }
    let value: Value = serde_json::from_slice(&fs::read(index).or_fail(what)?).or_fail(what)?;
    let lines = value.get("manifests").and_then(Value::as_array);
    lines.cloned().ok_or_else(|| EngineError::failed(format!("{} names no manifests", index.display())))
}

/// One step of an image's history, the newest first.
#[derive(Clone, Debug)]
pub struct Step {
    /// When.
    pub created: Option<String>,
    /// By what.
    pub created_by: String,
    /// Why.
    pub comment: String,
    /// The layer that it made, by the digest of its blob, and the bytes of its files.
    pub layer: Option<(Digest, Option<u64>)>,
}

/// The history of an image, the newest step first. Layers that it does not tell of are steps too.
pub fn history(store: &Store, reference: &str) -> Result<Vec<Step>> {
    let facts = images::facts(store, reference)?;
    let parts = store.load_parts(&facts.manifest).or_fail(|| format!("cannot read the image {reference}"))?;
    let mut layers = facts.layers.iter().map(|layer| (layer.blob.digest, layer.unpacked));
    let mut steps = Vec::new();
    for step in parts.config.image.history().iter().flatten() {
        let layer = if step.empty_layer() == Some(true) { None } else { layers.next() };
        steps.push(Step {
            created: step.created().clone(),
            created_by: step.created_by().clone().unwrap_or_default(),
            comment: step.comment().clone().unwrap_or_default(),
            layer,
        });
    }
    let untold = |layer| Step { created: None, created_by: String::new(), comment: String::new(), layer: Some(layer) };
    steps.extend(layers.map(untold));
    steps.reverse();
    Ok(steps)
}

/// Gives an image one more name.
pub fn tag(store: &Store, reference: &str, name: &crate::oci::reference::ImageName) -> Result<()> {
    let _lock = store.lock(Mode::Shared, Wait::Block).or_fail(|| "cannot lock the store")?;
    let found = images::find(store, reference)?;
    let parts = store.load_parts(&found.manifest).or_fail(|| format!("cannot read the image {reference}"))?;
    let saved = Saved { store, manifest: found.manifest, parts, name: None };
    let names: Vec<String> = name.repo_tag().into_iter().collect();
    store.name_image(&saved.manifest_blob(), &names).or_fail(|| format!("cannot name the image {reference}"))
}
