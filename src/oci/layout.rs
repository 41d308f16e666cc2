// SPDX-License-Identifier: MIT OR Apache-2.0
//! Images in OCI layouts and in what `docker save` writes, in a directory or in an archive.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::OciError;
use super::archive::Archive;
use super::spec::{self, BlobRef, CONFIG_LIMIT, IndexLine, MANIFEST_LIMIT};
use crate::model::Digest;

/// How deep indexes may refer to indexes.
const NESTING_LIMIT: u32 = 4;

/// Where the files of a layout lie.
#[derive(Debug)]
pub enum Files {
    /// In a directory.
    Dir(PathBuf),
    /// In a tar.
    Archive(Archive),
}

/// One file of a layout.
pub struct Part {
    /// Its bytes.
    pub reader: Box<dyn Read + Send>,
    /// How many there are.
    pub size: u64,
}

impl Files {
    /// The directory or archive, for messages.
    pub fn place(&self) -> &Path {
        match self {
            Files::Dir(dir) => dir,
            Files::Archive(archive) => archive.place(),
        }
    }

    /// Opens the file at `name`, a relative path with slashes; `None` when there is none.
    pub fn open(&self, name: &str) -> Result<Option<Part>, OciError> {
        match self {
            Files::Dir(dir) => open_in_dir(dir, name),
            Files::Archive(archive) => archive.open_member(name),
        }
    }

    /// The whole file at `name`, refused above `limit` bytes; `None` when there is none.
    pub fn load(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, OciError> {
        let Some(part) = self.open(name)? else { return Ok(None) };
        let too_big = || OciError::malformed(self.place(), format!("{name} is above {limit} bytes"));
        if part.size > limit {
            return Err(too_big());
        }
        let mut bytes = Vec::new();
        part.reader.take(limit + 1).read_to_end(&mut bytes).map_err(|e| OciError::io(&self.place().join(name), e))?;
        if bytes.len() as u64 > limit { Err(too_big()) } else { Ok(Some(bytes)) }
    }

    /// A blob that must be there, checked against its digest and size.
    pub fn load_blob(&self, what: &str, blob: &BlobRef, limit: u64) -> Result<Vec<u8>, OciError> {
        let name = blob_path(&blob.digest);
        let bytes = self
            .load(&name, limit)?
            .ok_or_else(|| OciError::malformed(self.place(), format!("the {what} {} is missing", blob.digest)))?;
        let found = Digest::of(&bytes);
        if found != blob.digest {
            let what = format!("the {what} {} is damaged: its digest is {found}", blob.digest);
            return Err(OciError::malformed(self.place(), what));
        }
        if bytes.len() as u64 != blob.size {
            let what = format!("the {what} {} has {} bytes, not {}", blob.digest, bytes.len(), blob.size);
            return Err(OciError::malformed(self.place(), what));
        }
        Ok(bytes)
    }
}

/// The path of a blob in a layout.
pub fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn open_in_dir(dir: &Path, name: &str) -> Result<Option<Part>, OciError> {
    let path = dir.join(name);
    let open = || {
        // Without waiting for a writer, should it be a pipe.
        let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&path)?;
        let meta = file.metadata()?;
        Ok::<_, std::io::Error>((file, meta))
    };
    match open() {
        Ok((_, meta)) if !meta.is_file() => Err(OciError::malformed(dir, format!("{name} is no regular file"))),
        Ok((file, meta)) => Ok(Some(Part { reader: Box::new(file), size: meta.len() })),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && dir.is_dir() => Ok(None),
        Err(e) => Err(OciError::io(&path, e)),
    }
}

/// A layer of an image that is not in a store yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceLayer {
    /// Its path among the files.
    pub path: String,
    /// What the manifest says of it; unknown in `docker save`'s own format.
    pub blob: Option<BlobRef>,
    /// The digest of its uncompressed tar.
    pub diff_id: Digest,
}

/// An image that is not in a store yet. Manifest and configuration are checked, the layers are not.
#[derive(Clone, Debug)]
pub struct SourceImage {
    /// The manifest with its digest and type; `None` in `docker save`'s own format.
    pub manifest: Option<(BlobRef, Vec<u8>)>,
    /// The configuration.
    pub config: (BlobRef, Vec<u8>),
    /// The layers, bottom first.
    pub layers: Vec<SourceLayer>,
    /// `NAME:TAG`s the source has for it.
    pub names: Vec<String>,
    /// The tag in a layout, when it is no whole name.
    pub tag: Option<String>,
}

/// Finds the image with `tag`, or the only one, in an OCI layout.
pub fn find_oci(files: &Files, tag: Option<&str>) -> Result<SourceImage, OciError> {
    let place = files.place();
    if files.load("oci-layout", MANIFEST_LIMIT)?.is_none() {
        return Err(OciError::malformed(place, "no OCI image layout (it has no file oci-layout)"));
    }
    let lines = load_lines(files)?;
    let matching = choose(place, &lines, tag)?;
    let names = matching.iter().filter_map(|l| l.full_name.clone().or_else(|| l.ref_name.clone()));
    let (names, tags): (Vec<_>, Vec<_>) = names.partition(|n| n.contains([':', '/']));
    let first = matching.first().ok_or_else(|| OciError::malformed(place, "no image"))?;
    let mut image = load_manifest(files, first, NESTING_LIMIT)?;
    image.names = names;
    image.tag = tags.into_iter().next();
    Ok(image)
}

fn load_lines(files: &Files) -> Result<Vec<IndexLine>, OciError> {
    let bytes = files
        .load("index.json", MANIFEST_LIMIT)?
        .ok_or_else(|| OciError::malformed(files.place(), "no OCI image layout (it has no index.json)"))?;
    let lines =
        spec::parse_index(&bytes).map_err(|e| OciError::malformed(files.place(), format!("index.json: {e}")))?;
    Ok(lines.into_iter().filter(|l| l.is_index() || l.is_manifest()).collect())
}

/// The lines of the wanted image: all of one digest.
fn choose<'a>(place: &Path, lines: &'a [IndexLine], tag: Option<&str>) -> Result<Vec<&'a IndexLine>, OciError> {
    let is_exact = |l: &&IndexLine| [&l.ref_name, &l.full_name].iter().any(|n| n.as_deref() == tag && tag.is_some());
    let ends_with =
        |name: &Option<String>| name.as_deref().and_then(|n| n.rsplit_once(':')).is_some_and(|(_, t)| Some(t) == tag);
    let is_tagged = |l: &&IndexLine| ends_with(&l.ref_name) || ends_with(&l.full_name);
    let mut matching: Vec<_> = match tag {
        None => lines.iter().collect(),
        Some(_) => lines.iter().filter(is_exact).collect(),
    };
    if matching.is_empty() {
        matching = lines.iter().filter(is_tagged).collect();
    }
    let mut digests: BTreeMap<Digest, ()> = BTreeMap::new();
    for line in &matching {
        digests.insert(line.blob.digest, ());
    }
    let known = || {
        let names: Vec<_> =
            lines.iter().map(|l| l.ref_name.clone().unwrap_or_else(|| l.blob.digest.to_string())).collect();
        names.join(", ")
    };
    let choice = |what: String| OciError::Choice { path: place.to_owned(), what };
    match (digests.len(), tag) {
        (1, _) => Ok(matching),
        (0, None) => Err(choice("the layout has no image".to_owned())),
        (0, Some(tag)) => Err(choice(format!("no image with the tag \"{tag}\"; it has: {}", known()))),
        (_, None) => Err(choice(format!("several images; say which with :TAG; it has: {}", known()))),
        (_, Some(tag)) => Err(choice(format!("several images fit \"{tag}\"; it has: {}", known()))),
    }
}

fn load_manifest(files: &Files, line: &IndexLine, nesting: u32) -> Result<SourceImage, OciError> {
    let place = files.place();
    let malformed = |what: String| OciError::malformed(place, what);
    let bytes = files.load_blob("manifest", &line.blob, MANIFEST_LIMIT)?;
    if line.is_index() {
        let Some(nesting) = nesting.checked_sub(1) else {
            return Err(malformed("indexes refer to indexes too deeply".to_owned()));
        };
        let lines = spec::parse_index(&bytes).map_err(malformed)?;
        return load_manifest(files, for_this_host(place, &lines)?, nesting);
    }
    let manifest = spec::parse_manifest(&bytes).map_err(|e| malformed(format!("{e} ({})", line.blob.digest)))?;
    let config_bytes = files.load_blob("configuration", &manifest.config, CONFIG_LIMIT)?;
    let config =
        spec::parse_config(&config_bytes).map_err(|e| malformed(format!("{e} ({})", manifest.config.digest)))?;
    check_counts(place, config.diff_ids.len(), manifest.layers.len())?;
    let layers = manifest.layers.into_iter().zip(config.diff_ids).map(|(blob, diff_id)| SourceLayer {
        path: blob_path(&blob.digest),
        blob: Some(blob),
        diff_id,
    });
    Ok(SourceImage {
        manifest: Some((line.blob.clone(), bytes)),
        config: (manifest.config, config_bytes),
        layers: layers.collect(),
        names: Vec::new(),
        tag: None,
    })
}

fn check_counts(place: &Path, diff_ids: usize, layers: usize) -> Result<(), OciError> {
    if diff_ids == layers {
        return Ok(());
    }
    Err(OciError::malformed(place, format!("the configuration tells of {diff_ids} layers, the manifest has {layers}")))
}

/// The manifest for Linux on this machine's architecture, or the only one.
fn for_this_host<'a>(place: &Path, lines: &'a [IndexLine]) -> Result<&'a IndexLine, OciError> {
    let is_usable =
        |l: &&IndexLine| (l.is_manifest() || l.is_index()) && l.platform.as_ref().is_none_or(|(os, _)| os != "unknown");
    let usable: Vec<_> = lines.iter().filter(is_usable).collect();
    let wanted = ("linux".to_owned(), spec::host_architecture().to_owned());
    match (usable.iter().find(|l| l.platform.as_ref() == Some(&wanted)), usable.as_slice()) {
        (Some(line), _) => Ok(line),
        (None, [only]) => Ok(only),
        (None, _) => {
            let what = format!("the index has no image for {}/{}", wanted.0, wanted.1);
            Err(OciError::Choice { path: place.to_owned(), what })
        }
    }
}

/// Finds the image with `tag`, or the only one, in what `docker save` wrote.
///
/// Newer archives are OCI layouts too: then the image's own manifest is kept, and with it its digest.
pub fn find_docker(files: &Files, tag: Option<&str>) -> Result<SourceImage, OciError> {
    let place = files.place();
    let malformed = |what: String| OciError::malformed(place, what);
    let Some(bytes) = files.load("manifest.json", MANIFEST_LIMIT)? else {
        return match files.load("oci-layout", MANIFEST_LIMIT)? {
            Some(_) => find_oci(files, tag),
            None => Err(malformed("no archive of `docker save` (it has no manifest.json)".to_owned())),
        };
    };
    let images = spec::parse_docker_manifest(&bytes).map_err(malformed)?;
    let tags = |image: &spec::DockerImage| image.repo_tags.clone().unwrap_or_default();
    let fits = |image: &&spec::DockerImage| match tag {
        None => true,
        Some(tag) => tags(image).iter().any(|t| t == tag || t.rsplit_once(':').is_some_and(|(_, x)| x == tag)),
    };
    let fitting: Vec<_> = images.iter().filter(fits).collect();
    let [image] = fitting.as_slice() else {
        let known: Vec<_> = images.iter().flat_map(tags).collect();
        let what = match (fitting.len(), tag) {
            (0, Some(tag)) => format!("no image with the tag \"{tag}\"; it has: {}", known.join(", ")),
            (0, None) => "the archive has no image".to_owned(),
            _ => format!("several images; say which with :TAG; it has: {}", known.join(", ")),
        };
        return Err(OciError::Choice { path: place.to_owned(), what });
    };
    let config_bytes = files
        .load(&image.config, CONFIG_LIMIT)?
        .ok_or_else(|| malformed(format!("the configuration {} is missing", image.config)))?;
    let digest = Digest::of(&config_bytes);
    check_name_is_digest("configuration", place, &image.config, digest)?;
    if let Some(mut found) = find_by_config(files, digest)? {
        found.names = tags(image);
        return Ok(found);
    }
    let config = spec::parse_config(&config_bytes).map_err(|e| malformed(format!("{e} ({digest})")))?;
    check_counts(place, config.diff_ids.len(), image.layers.len())?;
    let layers = image.layers.iter().zip(config.diff_ids);
    let blob = BlobRef { digest, size: config_bytes.len() as u64, media_type: spec::OCI_CONFIG.to_owned() };
    Ok(SourceImage {
        manifest: None,
        config: (blob, config_bytes),
        layers: layers.map(|(path, diff_id)| SourceLayer { path: path.clone(), blob: None, diff_id }).collect(),
        names: tags(image),
        tag: None,
    })
}

/// `docker save` names configurations by their digest: `HEX.json`, or `blobs/sha256/HEX`.
fn check_name_is_digest(what: &str, place: &Path, name: &str, found: Digest) -> Result<(), OciError> {
    let stem = name.rsplit('/').next().unwrap_or(name);
    let stem = stem.strip_suffix(".json").unwrap_or(stem);
    match Digest::from_hex(stem) {
        Some(said) if said != found => {
            Err(OciError::malformed(place, format!("the {what} {said} is damaged: its digest is {found}")))
        }
        _ => Ok(()),
    }
}

/// The manifest, in an archive that is an OCI layout too, of the image with this configuration.
fn find_by_config(files: &Files, config: Digest) -> Result<Option<SourceImage>, OciError> {
    if files.load("oci-layout", MANIFEST_LIMIT)?.is_none() || files.open("index.json")?.is_none() {
        return Ok(None);
    }
    for line in load_lines(files)? {
        if files.open(&blob_path(&line.blob.digest))?.is_none() {
            continue;
        }
        // Other images of the archive may be for other machines, or incomplete: only ours must be whole.
        match load_manifest(files, &line, NESTING_LIMIT) {
            Ok(image) if image.config.0.digest == config => return Ok(Some(image)),
            Ok(_) | Err(OciError::Choice { .. }) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(None)
}
