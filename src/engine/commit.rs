// SPDX-License-Identifier: MIT OR Apache-2.0
//! `commit`: what a container has changed becomes one layer on its image, a new image of the store.
//!
//! The layer is found by comparing the merged tree with the layers alone, so renamed directories and files of which
//! only the attributes were copied up are in it with their content. A container of layers without an image becomes an
//! image of one layer that holds its whole tree.

use std::io::{BufWriter, PipeWriter, Write};
use std::time::{Duration, UNIX_EPOCH};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use crate::fs::Follow;
use crate::model::{Digest, FsError};
use crate::oci::reference::ImageName;
use crate::oci::spec::{BlobRef, OCI_LAYER, host_architecture, oci_layer_type};
use crate::store::image::ImageParts;
use crate::store::{Store, timestamp};

use super::export::Packable;
use super::inside::path_of;
use super::load::{self, Loaded, NewLayer};
use super::look::Target;
use super::pack::{self, Extent, Holes, Plan};
use super::{EngineError, OrFail, Result, state};

/// How hard the layer is compressed: it is written once and mostly read here, where its bodies are objects.
const LEVEL: u32 = 3;

/// What `commit` was asked for.
#[derive(Clone, Debug, Default)]
pub struct CommitRequest {
    /// Only what lies here.
    pub only: Option<Vec<u8>>,
    /// The time of the image, and the latest of its new files; now, if not said.
    pub timestamp: Option<u64>,
    /// Who made it.
    pub author: Option<String>,
    /// Why.
    pub message: Option<String>,
}

/// Parses the name of an image to be made.
pub fn parse_name(text: &str) -> Result<ImageName> {
    let name: ImageName =
        text.parse().map_err(|e: crate::oci::reference::BadReference| EngineError::usage(e.to_string()))?;
    match name.digest() {
        None => Ok(name),
        Some(_) => Err(EngineError::usage(format!("\"{text}\" has a digest, which a new image cannot have by wish"))),
    }
}

/// Makes an image of a container.
pub fn commit(store: &Store, container: &str, name: &ImageName, request: &CommitRequest) -> Result<Loaded> {
    let record = state::find(store, container)?;
    let base = record.image.map(|manifest| store.load_parts(&manifest)).transpose();
    let base = base.or_fail(|| format!("cannot read the image of {container}"))?;
    let packable = Packable::open(store, &Target::Container(Box::new(record)))?;
    let mut plan = Plan {
        extent: if base.is_some() { Extent::Changes } else { Extent::Layer },
        holes: Holes::Zeros,
        latest: request.timestamp.map(|seconds| i64::try_from(seconds).unwrap_or(i64::MAX)),
        ..packable.plan()
    };
    if let Some(only) = &request.only {
        plan.only = find_only(&packable, container, only)?;
    }
    let below = base.iter().flat_map(|parts| &parts.manifest.layers);
    let below = below.map(|blob| BlobRef { media_type: oci_layer_type(&blob.media_type), ..blob.clone() });
    let new = NewLayer {
        below: below.collect(),
        write: Box::new(|pipe| write_layer(&plan, pipe)),
        media_type: format!("{OCI_LAYER}+gzip"),
        configure: Box::new(|diff_id| configure(base.as_ref(), diff_id, request)),
        names: name.repo_tag().into_iter().collect(),
    };
    load::store_layer(store, new)
        .map_err(|error| EngineError::failed(format!("cannot commit {container}")).because(error))
}

fn write_layer(plan: &Plan<'_>, pipe: PipeWriter) -> Result<()> {
    let out = GzEncoder::new(BufWriter::with_capacity(1 << 17, pipe), Compression::new(LEVEL));
    let what = || "cannot write the layer";
    let mut out = pack::pack(plan, out)?.finish().or_fail(what)?;
    out.flush().or_fail(what)
}

/// The names of the path that alone is wanted, links on the way followed.
fn find_only(packable: &Packable, container: &str, path: &[u8]) -> Result<Vec<Vec<u8>>> {
    let what = || format!("cannot look at {}", String::from_utf8_lossy(path));
    let fs = &packable.view.fs;
    let mut written: Vec<&[u8]> = path.split(|b| *b == b'/').filter(|n| !n.is_empty() && *n != b".").collect();
    let names = match written.pop() {
        None => return Ok(Vec::new()),
        Some(b"..") => fs.canonical(path).or_fail(what)?,
        Some(last) => {
            let mut names = fs.canonical(&written.join(&b'/')).or_fail(what)?;
            names.push(last.to_vec());
            names
        }
    };
    let is_in = |fs: &crate::fs::Fs| match fs.resolve(&path_of(&names), Follow::No) {
        Ok(_) => Ok(true),
        Err(FsError::NotFound | FsError::NotDir) => Ok(false),
        Err(error) => Err(error),
    };
    if !is_in(fs).or_fail(what)? && !is_in(&packable.layers).or_fail(what)? {
        return Err(EngineError::failed(format!("{container} has no {}", String::from_utf8_lossy(path))));
    }
    Ok(names)
}

/// The configuration of the new image: that of the old one with one more layer.
fn configure(base: Option<&ImageParts>, diff_id: Digest, request: &CommitRequest) -> Result<Vec<u8>> {
    let mut config = base.map_or_else(
        || json!({"architecture": host_architecture(), "os": "linux", "config": {}}),
        |parts| parts.raw_config.clone(),
    );
    let created = match request.timestamp {
        Some(seconds) => timestamp::format(UNIX_EPOCH + Duration::from_secs(seconds)),
        None => timestamp::now(),
    };
    let mut step = json!({"created": created, "created_by": "mlfs commit"});
    let mut diff_ids: Vec<Value> = base.iter().flat_map(|p| &p.config.diff_ids).map(|d| json!(d.to_string())).collect();
    diff_ids.push(json!(diff_id.to_string()));
    let Some(fields) = config.as_object_mut() else {
        return Err(EngineError::failed("the configuration of the image is no object"));
    };
    if let (Some(step), Some(message)) = (step.as_object_mut(), &request.message) {
        step.insert("comment".into(), json!(message));
    }
    if let (Some(step), Some(author)) = (step.as_object_mut(), &request.author) {
        step.insert("author".into(), json!(author));
        fields.insert("author".into(), json!(author));
    }
    let mut history = match fields.remove("history") {
        Some(Value::Array(history)) => history,
        _ => Vec::new(),
    };
    history.push(step);
    fields.insert("history".into(), Value::Array(history));
    fields.insert("created".into(), json!(created));
    fields.insert("rootfs".into(), json!({"type": "layers", "diff_ids": diff_ids}));
    serde_json::to_vec(&config).or_fail(|| "cannot write the configuration")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Class;

    #[test]
    fn a_new_image_cannot_wish_for_a_digest() {
        assert_eq!(parse_name("a:b").unwrap().repo_tag().unwrap(), "a:b");
        let digest = format!("a@sha256:{}", "0".repeat(64));
        for bad in [digest.as_str(), "", "A b"] {
            assert_eq!(parse_name(bad).unwrap_err().class(), Class::Usage, "{bad}");
        }
    }

    #[test]
    fn the_same_request_makes_the_same_configuration() {
        let request = CommitRequest { timestamp: Some(7), message: Some("m".into()), ..CommitRequest::default() };
        let config = |request: &CommitRequest| configure(None, Digest([1; 32]), request).unwrap();
        assert_eq!(config(&request), config(&request));
        let text = String::from_utf8(config(&request)).unwrap();
        assert!(text.contains("1970-01-01T00:00:07") && text.contains("\"comment\":\"m\""), "{text}");
        assert!(crate::oci::spec::parse_config(text.as_bytes()).is_ok());
    }
}
