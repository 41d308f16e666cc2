// SPDX-License-Identifier: MIT OR Apache-2.0
//! Manifests, configurations and indexes of the OCI image specification and of Docker (schema 2).

use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest};
use serde::Deserialize;

use crate::model::Digest;

/// The largest manifest, index or `manifest.json` that is read (registries allow 4 MiB).
pub const MANIFEST_LIMIT: u64 = 4 << 20;
/// The largest configuration that is read.
pub const CONFIG_LIMIT: u64 = 8 << 20;
/// The most layers of one image (overlayfs mounts at most 500).
pub const LAYERS_LIMIT: usize = 1000;

/// The annotation that names an image in an OCI layout.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The annotation in which containerd and Docker keep the full name.
pub const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// The media type of an OCI manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// The media type of an OCI configuration.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// The media type of an OCI layer without compression.
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A blob that something refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobRef {
    /// Its digest.
    pub digest: Digest,
    /// Its size.
    pub size: u64,
    /// Its media type.
    pub media_type: String,
}

impl BlobRef {
    /// Takes what we need of a descriptor; the error is one clause.
    pub fn of(descriptor: &Descriptor) -> Result<Self, String> {
        let digest = descriptor.digest().to_string().parse().map_err(|e| format!("{e}"))?;
        Ok(BlobRef { digest, size: descriptor.size(), media_type: descriptor.media_type().to_string() })
    }
}

/// What a manifest refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The configuration.
    pub config: BlobRef,
    /// The layers, bottom first.
    pub layers: Vec<BlobRef>,
}

/// Parses a manifest; the error is one clause.
pub fn parse_manifest(bytes: &[u8]) -> Result<Manifest, String> {
    let manifest: ImageManifest =
        serde_json::from_slice(bytes).map_err(|e| format!("the manifest is malformed: {e}"))?;
    if manifest.schema_version() != 2 {
        return Err(format!("the manifest has schema version {}, known is 2", manifest.schema_version()));
    }
    if manifest.layers().len() > LAYERS_LIMIT {
        return Err(format!("the manifest has {} layers, allowed are {LAYERS_LIMIT}", manifest.layers().len()));
    }
    let config = BlobRef::of(manifest.config())?;
    let layers = manifest.layers().iter().map(BlobRef::of).collect::<Result<Vec<_>, _>>()?;
    for layer in &layers {
        check_layer_type(&layer.media_type)?;
    }
    Ok(Manifest { config, layers })
}

/// Only tars are layers. How they are compressed is read from their first bytes, whatever the type says.
fn check_layer_type(media_type: &str) -> Result<(), String> {
    let known = [
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
    ];
    let rest = known.iter().find_map(|k| media_type.strip_prefix(k));
    match rest {
        Some("" | "+gzip" | ".gzip" | "+zstd" | ".zstd") => Ok(()),
        _ => Err(format!("a layer is of type \"{media_type}\", which is no tar that mlfs reads")),
    }
}

/// The OCI media type of a layer that may have one of Docker's.
pub fn oci_layer_type(media_type: &str) -> String {
    let docker =
        ["application/vnd.docker.image.rootfs.diff.tar", "application/vnd.docker.image.rootfs.foreign.diff.tar"];
    match docker.iter().find_map(|known| media_type.strip_prefix(known)) {
        Some("") => OCI_LAYER.to_owned(),
        Some(".gzip" | "+gzip") => format!("{OCI_LAYER}+gzip"),
        Some(".zstd" | "+zstd") => format!("{OCI_LAYER}+zstd"),
        _ => media_type.to_owned(),
    }
}

/// What we need of a configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The whole of it, typed.
    pub image: ImageConfiguration,
    /// Digests of the uncompressed layers, bottom first.
    pub diff_ids: Vec<Digest>,
}

/// Parses a configuration; the error is one clause.
pub fn parse_config(bytes: &[u8]) -> Result<Config, String> {
    let image: ImageConfiguration =
        serde_json::from_slice(bytes).map_err(|e| format!("the configuration is malformed: {e}"))?;
    if image.rootfs().typ() != "layers" {
        return Err(format!("the configuration's rootfs is of type \"{}\", known is \"layers\"", image.rootfs().typ()));
    }
    let diff_ids = image.rootfs().diff_ids().iter().map(|d| d.parse().map_err(|e| format!("{e}")));
    let diff_ids = diff_ids.collect::<Result<Vec<_>, String>>()?;
    if diff_ids.len() > LAYERS_LIMIT {
        return Err(format!("the configuration has {} layers, allowed are {LAYERS_LIMIT}", diff_ids.len()));
    }
    Ok(Config { image, diff_ids })
}

/// One line of an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexLine {
    /// The manifest, or an index again.
    pub blob: BlobRef,
    /// The annotation [`REF_NAME`].
    pub ref_name: Option<String>,
    /// The annotation [`CONTAINERD_NAME`].
    pub full_name: Option<String>,
    /// Operating system and architecture, where given.
    pub platform: Option<(String, String)>,
}

impl IndexLine {
    /// Is it an index again?
    pub fn is_index(&self) -> bool {
        [OCI_INDEX, DOCKER_LIST].contains(&self.blob.media_type.as_str())
    }

    /// Is it a manifest?
    pub fn is_manifest(&self) -> bool {
        [OCI_MANIFEST, DOCKER_MANIFEST].contains(&self.blob.media_type.as_str())
    }
}

/// Parses an index; the error is one clause.
pub fn parse_index(bytes: &[u8]) -> Result<Vec<IndexLine>, String> {
    let index: ImageIndex = serde_json::from_slice(bytes).map_err(|e| format!("the index is malformed: {e}"))?;
    let line = |descriptor: &Descriptor| {
        let annotation = |key: &str| descriptor.annotations().as_ref().and_then(|a| a.get(key)).cloned();
        Ok(IndexLine {
            blob: BlobRef::of(descriptor)?,
            ref_name: annotation(REF_NAME),
            full_name: annotation(CONTAINERD_NAME),
            platform: descriptor.platform().as_ref().map(|p| (p.os().to_string(), p.architecture().to_string())),
        })
    };
    index.manifests().iter().map(line).collect()
}

/// One image of `docker save`'s `manifest.json`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DockerImage {
    /// Path of the configuration in the archive.
    pub config: String,
    /// `NAME:TAG`s; null when the image has none.
    #[serde(default)]
    pub repo_tags: Option<Vec<String>>,
    /// Paths of the layers in the archive, bottom first.
    pub layers: Vec<String>,
}

/// Parses `docker save`'s `manifest.json`; the error is one clause.
pub fn parse_docker_manifest(bytes: &[u8]) -> Result<Vec<DockerImage>, String> {
    serde_json::from_slice(bytes).map_err(|e| format!("manifest.json is malformed: {e}"))
}

/// The manifest of an image that came without one.
pub fn make_manifest(config: &BlobRef, layers: &[BlobRef]) -> Vec<u8> {
    let blob =
        |b: &BlobRef| serde_json::json!({ "mediaType": b.media_type, "digest": b.digest.to_string(), "size": b.size });
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": blob(config),
        "layers": layers.iter().map(blob).collect::<Vec<_>>(),
    });
    manifest.to_string().into_bytes()
}

/// This machine's architecture in Go's words.
pub fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        "loongarch64" => "loong64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(byte: u8, media_type: &str) -> BlobRef {
        BlobRef { digest: Digest([byte; 32]), size: u64::from(byte), media_type: media_type.to_owned() }
    }

    #[test]
    fn a_made_manifest_is_read_again() {
        let manifest = Manifest { config: blob(1, OCI_CONFIG), layers: vec![blob(2, OCI_LAYER), blob(3, OCI_LAYER)] };
        assert_eq!(parse_manifest(&make_manifest(&manifest.config, &manifest.layers)).unwrap(), manifest);
    }

    #[test]
    fn layers_that_are_no_tars_are_refused() {
        for (media_type, is_known) in [
            ("application/vnd.oci.image.layer.v1.tar+zstd", true),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", true),
            ("application/vnd.oci.image.layer.v1.tar+encrypted", false),
            ("application/vnd.cncf.helm.chart", false),
        ] {
            let bytes = make_manifest(&blob(1, OCI_CONFIG), &[blob(2, media_type)]);
            assert_eq!(parse_manifest(&bytes).is_ok(), is_known, "{media_type}");
        }
    }

    #[test]
    fn dockers_layer_types_have_an_oci_name() {
        for (docker, oci) in [
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", "application/vnd.oci.image.layer.v1.tar+gzip"),
            ("application/vnd.docker.image.rootfs.diff.tar", OCI_LAYER),
            ("application/vnd.oci.image.layer.v1.tar+zstd", "application/vnd.oci.image.layer.v1.tar+zstd"),
        ] {
            assert_eq!(oci_layer_type(docker), oci);
        }
    }

    #[test]
    fn configurations_without_usable_layers_are_refused() {
        let config = |rootfs: &str| format!("{{\"architecture\":\"amd64\",\"os\":\"linux\",\"rootfs\":{rootfs}}}");
        let good = config(&format!("{{\"type\":\"layers\",\"diff_ids\":[\"{}\"]}}", Digest([1; 32])));
        assert_eq!(parse_config(good.as_bytes()).unwrap().diff_ids, [Digest([1; 32])]);
        for bad in ["null", "{\"type\":\"x\",\"diff_ids\":[]}", "{\"type\":\"layers\",\"diff_ids\":[\"md5:0\"]}", "{"] {
            assert!(parse_config(config(bad).as_bytes()).is_err(), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            drop((parse_manifest(&bytes), parse_config(&bytes), parse_index(&bytes), parse_docker_manifest(&bytes)));
        }
    }
}
