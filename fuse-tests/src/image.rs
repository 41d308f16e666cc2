// SPDX-License-Identifier: MIT OR Apache-2.0
//! Images made of declared layers: OCI layouts, `oci-archive` and `docker save` archives.

use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};

use crate::layers::LayerSpec;
use crate::tar::{Header, Tar, layer_tar};
use crate::tree::sha256;

/// How a layer's tar is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// As it is.
    Plain,
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
}

/// Compresses bytes.
pub fn compress(bytes: &[u8], compression: Compression) -> Vec<u8> {
    match compression {
        Compression::Plain => bytes.to_vec(),
        Compression::Gzip => {
            let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            writer.write_all(bytes).and_then(|()| writer.finish()).expect("gzip")
        }
        Compression::Zstd => zstd::encode_all(bytes, 1).expect("zstd"),
    }
}

/// A layer of an image under construction: its tar and how to store it.
#[derive(Clone, Debug)]
pub struct ImageLayer {
    /// The uncompressed tar.
    pub tar: Vec<u8>,
    /// How it is stored.
    pub compression: Compression,
}

/// The digests of a written image.
#[derive(Clone, Debug, Default)]
pub struct Digests {
    /// `sha256:..` of the manifest.
    pub manifest: String,
    /// `sha256:..` of the configuration.
    pub config: String,
    /// `sha256:..` of each stored layer.
    pub blobs: Vec<String>,
    /// `sha256:..` of each uncompressed layer.
    pub diff_ids: Vec<String>,
}

/// Layers as an image's, compressed in turn by gzip, zstd and not at all.
pub fn image_layers(layers: &[LayerSpec]) -> Vec<ImageLayer> {
    let kinds = [Compression::Gzip, Compression::Zstd, Compression::Plain];
    let tars = layers.iter().map(layer_tar).zip(kinds.into_iter().cycle());
    tars.map(|(tar, compression)| ImageLayer { tar, compression }).collect()
}

/// The configuration of an image of layers with these digests.
pub fn config(diff_ids: &[String]) -> Value {
    let history: Vec<Value> =
        (1..=diff_ids.len()).map(|number| json!({"created_by": format!("fuse-tests layer {number}")})).collect();
    json!({
        "architecture": "amd64", "os": "linux", "created": "2001-09-09T01:46:40Z",
        "config": {"Env": ["PATH=/usr/bin:/bin"], "Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids}, "history": history,
    })
}

/// `sha256:..` of some bytes.
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", sha256(bytes))
}

fn put_blob(dir: &Path, bytes: &[u8]) -> String {
    let name = sha256(bytes);
    std::fs::write(dir.join("blobs/sha256").join(&name), bytes).expect("blob");
    format!("sha256:{name}")
}

/// Writes an OCI layout with one tagged image.
pub fn write_oci(dir: &Path, layers: &[ImageLayer], tag: &str) -> Digests {
    let stored =
        layers.iter().map(|layer| (compress(&layer.tar, layer.compression), layer.compression, digest(&layer.tar)));
    write_stored(dir, stored, tag)
}

/// [`write_oci`] of layers that lie in files as they are to be stored, with the digests of their tars.
pub fn write_oci_of(dir: &Path, layers: &[(&Path, Compression, String)], tag: &str) -> Digests {
    let stored = layers
        .iter()
        .map(|(file, compression, diff_id)| (std::fs::read(file).expect("layer"), *compression, diff_id.clone()));
    write_stored(dir, stored, tag)
}

fn write_stored(dir: &Path, layers: impl Iterator<Item = (Vec<u8>, Compression, String)>, tag: &str) -> Digests {
    std::fs::create_dir_all(dir.join("blobs/sha256")).expect("layout");
    std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("layout");
    let mut digests = Digests::default();
    let mut described = Vec::new();
    for (bytes, compression, diff_id) in layers {
        let kind = match compression {
            Compression::Plain => "application/vnd.oci.image.layer.v1.tar",
            Compression::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Compression::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        };
        let name = put_blob(dir, &bytes);
        described.push(json!({"mediaType": kind, "digest": name, "size": bytes.len()}));
        digests.blobs.push(name);
        digests.diff_ids.push(diff_id);
    }
    let config = config(&digests.diff_ids).to_string().into_bytes();
    digests.config = put_blob(dir, &config);
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digests.config, "size": config.len()},
        "layers": described,
    });
    let manifest = manifest.to_string().into_bytes();
    digests.manifest = put_blob(dir, &manifest);
    let index = json!({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digests.manifest, "size": manifest.len(),
            "annotations": {"org.opencontainers.image.ref.name": tag},
        }],
    });
    std::fs::write(dir.join("index.json"), index.to_string()).expect("index");
    digests
}

/// Packs an OCI layout as an `oci-archive`.
pub fn pack_oci(dir: &Path, file: &Path) {
    let mut tar = Tar::new();
    for name in ["oci-layout", "index.json"] {
        tar.file(name, &std::fs::read(dir.join(name)).expect("layout"));
    }
    let mut blobs: Vec<_> = std::fs::read_dir(dir.join("blobs/sha256")).expect("blobs").flatten().collect();
    blobs.sort_by_key(std::fs::DirEntry::file_name);
    for blob in blobs {
        let name = format!("blobs/sha256/{}", blob.file_name().to_string_lossy());
        tar.file(&name, &std::fs::read(blob.path()).expect("blob"));
    }
    std::fs::write(file, tar.finish()).expect("archive");
}

/// Writes what `docker save` wrote before it turned to OCI: a folder per layer with `layer.tar`, which for a layer that
/// occurs twice is a symlink to the first one's.
pub fn write_docker(file: &Path, layers: &[Vec<u8>], name: &str) -> Digests {
    let diff_ids: Vec<String> = layers.iter().map(|tar| digest(tar)).collect();
    let config = config(&diff_ids).to_string().into_bytes();
    let config_name = format!("{}.json", sha256(&config));
    let mut tar = Tar::new();
    let mut names: Vec<String> = Vec::new();
    let mut seen: Vec<(String, String)> = Vec::new();
    let mut digests = Digests { config: digest(&config), ..Digests::default() };
    for (position, layer) in layers.iter().enumerate() {
        let sum = sha256(layer);
        let folder = sha256(format!("layer {position} {sum}").as_bytes());
        let path = format!("{folder}/layer.tar");
        tar.entry(&Header { name: format!("{folder}/").as_bytes(), mode: 0o755, flag: b'5', ..Header::default() }, b"");
        tar.file(&format!("{folder}/VERSION"), b"1.0");
        match seen.iter().find(|(known, _)| *known == sum) {
            Some((_, first)) => {
                // Longer than 100 bytes only with deeper folders: `../<64 hex>/layer.tar` is 77.
                let link = format!("../{first}/layer.tar");
                let header = Header { name: path.as_bytes(), link: link.as_bytes(), flag: b'2', ..Header::default() };
                tar.entry(&header, b"");
            }
            None => {
                tar.file(&path, layer);
                seen.push((sum.clone(), folder.clone()));
            }
        }
        names.push(path);
        digests.diff_ids.push(format!("sha256:{sum}"));
    }
    tar.file(&config_name, &config);
    let manifest = json!([{"Config": config_name, "RepoTags": [name], "Layers": names}]);
    tar.file("manifest.json", manifest.to_string().as_bytes());
    std::fs::write(file, tar.finish()).expect("archive");
    digests
}
