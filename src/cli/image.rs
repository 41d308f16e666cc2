// SPDX-License-Identifier: MIT OR Apache-2.0
//! `mlfs image`.

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::engine::fsck;
use crate::engine::images::{self, ImageFacts};
use crate::engine::load;
use crate::engine::{EngineError, OrFail, Result, commit, save};
use crate::layer::index::Limits;
use crate::oci::reference::{ImageName, Input, Source};
use crate::store::gc::Force;
use crate::store::{Access, timestamp};

use super::Context;
use super::output::{self, Format, Row};
use super::progress::Bars;

/// `mlfs image ...`
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Load an image into the store
    #[command(after_help = "Examples:\n  docker save app | mlfs image load docker-archive:- app\n  \
                            mlfs image load oci:/srv/layouts/debian:12 debian:12")]
    Load {
        /// oci:DIR[:TAG], oci-archive:FILE[:TAG] or docker-archive:FILE[:TAG]; FILE may be - for standard input
        #[arg(value_name = "SOURCE")]
        source: OsString,
        /// Its name in the store, NAME[:TAG] [default: the names the source has for it]
        #[arg(value_name = "NAME")]
        name: Option<String>,
        /// Bounds for images of strangers.
        #[command(flatten)]
        limits: LimitArgs,
    },
    /// List images
    Ls,
    /// Tell all about images, as JSON
    Inspect {
        /// The images, by name or digest
        #[arg(required = true, value_name = "IMAGE")]
        names: Vec<String>,
    },
    /// Tell how an image was made, the newest step first
    History {
        /// The image, by name or digest
        #[arg(value_name = "IMAGE")]
        name: String,
    },
    /// Give an image one more name
    #[command(after_help = "Example:\n  mlfs image tag app:latest app:stable")]
    Tag {
        /// The image, by name or digest
        #[arg(value_name = "IMAGE")]
        name: String,
        /// NAME[:TAG]; an image that has it loses it
        #[arg(value_name = "NAME")]
        new: String,
    },
    /// Write an image to an OCI layout or an archive, its blobs as they are
    #[command(after_help = "Examples:\n  mlfs image save app oci:/srv/layouts/app:2\n  \
                            mlfs image save app docker-archive:- | docker load")]
    Save {
        /// The image, by name or digest
        #[arg(value_name = "IMAGE")]
        name: String,
        /// oci:DIR[:TAG], made or added to, or docker-archive:FILE[:TAG]; FILE may be - for standard output. The tag is the
        /// image's own, unless said
        #[arg(value_name = "TARGET")]
        target: OsString,
    },
    /// Sum up the blobs, indexes and objects of images again; exit code 3 names what is damaged
    #[command(after_help = "`mlfs fsck --repair` mends what can be mended.\n\nExamples:\n  mlfs image verify\n  \
                            mlfs image verify app:2 debian:12")]
    Verify {
        /// The images, by name or digest [default: all]
        #[arg(value_name = "IMAGE")]
        names: Vec<String>,
    },
    /// Remove images without a name that no container needs
    Prune {
        /// Those with names too
        #[arg(short, long)]
        all: bool,
        /// Do not ask
        #[arg(short, long)]
        force: bool,
    },
    /// Take names from images; an image goes with its last name
    Rm {
        /// Remove an image with all its names
        #[arg(short, long)]
        force: bool,
        /// The images, by name or digest
        #[arg(required = true, value_name = "IMAGE")]
        names: Vec<String>,
    },
}

/// The limits of a load.
#[derive(Args, Clone, Copy, Debug)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    /// Files of all layers together [default: 1000000]
    #[arg(long, value_name = "N")]
    max_entries: Option<u64>,
    /// Directories above a file [default: 1024]
    #[arg(long, value_name = "N")]
    max_depth: Option<u32>,
    /// Bytes of one name [default: 255, which is the most]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..=255))]
    max_name: Option<u32>,
    /// Bytes of the extended attributes of one file [default: 128k]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    max_xattr_bytes: Option<u64>,
    /// Bytes of all files of all layers, and of their uncompressed archives [default: 128g]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    max_unpacked: Option<u64>,
}

impl LimitArgs {
    /// The limits, defaults filled in.
    pub fn limits(&self) -> Limits {
        let default = Limits::default();
        Limits {
            max_entries: self.max_entries.unwrap_or(default.max_entries),
            max_depth: self.max_depth.unwrap_or(default.max_depth),
            max_name: self.max_name.unwrap_or(default.max_name),
            max_xattr_bytes: self.max_xattr_bytes.unwrap_or(default.max_xattr_bytes),
            max_unpacked: self.max_unpacked.unwrap_or(default.max_unpacked),
        }
    }
}

/// A size with Docker's suffixes: powers of 1024.
fn parse_size(text: &str) -> std::result::Result<u64, String> {
    let lower = text.to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match lower.get(digits.len()..).unwrap_or_default() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        other => return Err(format!("\"{other}\" is no unit (k, m, g, t)")),
    };
    let number: u64 = digits.parse().map_err(|_| "write a number, maybe with k, m, g or t".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "too large".to_owned())
}

/// Runs `mlfs image ...`.
pub fn run(context: &Context, command: ImageCommand) -> Result<ExitCode> {
    if let ImageCommand::Verify { names } = command {
        let bars = Bars::default();
        let report = fsck::run(|| context.root(), &fsck::What::Images(names), fsck::How::Look, bars.shown(context));
        bars.clear();
        return super::fsck::tell(context, &report?, fsck::How::Look, false);
    }
    act(context, command).map(|()| ExitCode::SUCCESS)
}

fn act(context: &Context, command: ImageCommand) -> Result<()> {
    match command {
        ImageCommand::Verify { .. } => Ok(()),
        ImageCommand::Load { source, name, limits } => load(context, &source, name.as_deref(), &limits.limits()),
        ImageCommand::Ls => list(context),
        ImageCommand::Inspect { names } => {
            let store = context.store(Access::Read)?;
            output::print_json(
                names.iter().map(|n| images::facts(&store, n).map(|f| object(&f))).collect::<Result<_>>()?,
            )
        }
        ImageCommand::History { name } => history(context, &name),
        ImageCommand::Tag { name, new } => {
            let new = commit::parse_name(&new)?;
            save::tag(&context.store(Access::Write)?, &name, &new)
        }
        ImageCommand::Save { name, target } => {
            let target = Source::parse(&target).map_err(|e| EngineError::usage(e.to_string()))?;
            save::check_target(&target)?;
            let mut out: Box<dyn Write> = match &target {
                Source::DockerArchive { file: Input::Stdin, .. } => Box::new(super::transfer::stdout()?),
                _ => Box::new(std::io::sink()),
            };
            save::save(&context.store(Access::Read)?, &name, &target, &mut out)
        }
        ImageCommand::Prune { all, force } => {
            let what = if all { "all images" } else { "all images without a name" };
            if !force && !output::confirm(&format!("This removes {what} that no container needs. Go on?"), "--force")? {
                return Ok(());
            }
            let (images, bytes) =
                context.store(Access::Write)?.prune_images(all).or_fail(|| "cannot prune the images")?;
            let mut text = String::new();
            for image in images {
                text.extend(image.names.iter().map(|name| format!("Untagged: {name}\n")));
                text += &format!("Deleted: {}\n", image.manifest);
            }
            output::print_text(&format!("{text}Total reclaimed space: {}\n", output::size(bytes)))
        }
        ImageCommand::Rm { force, names } => {
            let store = context.store(Access::Write)?;
            let force = if force { Force::Yes } else { Force::No };
            super::for_each(&names, |name| {
                let removed = images::remove(&store, name, force)?;
                let mut text: String = removed.untagged.iter().map(|n| format!("Untagged: {n}\n")).collect();
                if let Some(digest) = removed.deleted {
                    text += &format!("Deleted: {digest}\n");
                }
                output::print_text(&text)
            })
        }
    }
}

fn load(context: &Context, source: &OsString, name: Option<&str>, limits: &Limits) -> Result<()> {
    let source = Source::parse(source).map_err(|e| EngineError::usage(e.to_string()))?;
    load::check_source(&source)?;
    let name: Option<ImageName> = name
        .map(str::parse)
        .transpose()
        .map_err(|e: crate::oci::reference::BadReference| EngineError::usage(e.to_string()))?;
    let store = context.store(Access::Write)?;
    let bars = Bars::default();
    let loaded = load::load_image(&store, &source, name.as_ref(), limits, bars.shown(context));
    bars.clear();
    let loaded = loaded?;
    if context.format == Format::Json {
        return output::print_json(vec![object(&images::facts(&store, &loaded.manifest.to_string())?)]);
    }
    match loaded.names.as_slice() {
        [] => output::print_text(&format!("Loaded image: {}\n", loaded.manifest)),
        names => output::print_text(&names.iter().map(|n| format!("Loaded image: {n}\n")).collect::<String>()),
    }
}

fn history(context: &Context, name: &str) -> Result<()> {
    let rows = save::history(&context.store(Access::Read)?, name)?.into_iter().map(|step| {
        let (digest, size) = step.layer.map_or((None, None), |(digest, size)| (Some(digest), size));
        let digest_text = digest.map(|digest| digest.to_string());
        let created = step.created.as_deref();
        Row {
            name: digest_text.clone().unwrap_or_else(|| "<none>".to_owned()).into_bytes(),
            cells: vec![
                digest.map_or_else(|| "<none>".to_owned(), |digest| digest.short()),
                output::age(created.and_then(timestamp::seconds)),
                super::look::shortened(&step.created_by, 60),
                output::size(size.unwrap_or(0)),
                step.comment.clone(),
            ],
            json: json!({
                "Layer": digest_text,
                "Created": created,
                "CreatedBy": step.created_by,
                "Comment": step.comment,
                "Size": size.unwrap_or(0),
                "EmptyLayer": digest.is_none(),
            }),
        }
    });
    let head = ["LAYER", "CREATED", "CREATED BY", "SIZE", "COMMENT"];
    output::print_rows(context.format, context.is_quiet, &head, rows.collect())
}

fn list(context: &Context) -> Result<()> {
    let store = context.store(Access::Read)?;
    let all = store.load_images().or_fail(|| "cannot list images")?;
    let facts = all.iter().map(|i| images::facts(&store, &i.manifest.to_string())).collect::<Result<Vec<_>>>()?;
    let mut rows = Vec::new();
    for image in &facts {
        // People see a line per name, JSON has an object per image.
        let is_once = context.format == Format::Json;
        let names: Vec<Option<&String>> = match image.names.as_slice() {
            [] => vec![None],
            names if is_once => names.iter().take(1).map(Some).collect(),
            names => names.iter().map(Some).collect(),
        };
        for name in names {
            let (repository, tag) = name.and_then(|n| n.rsplit_once(':')).unwrap_or(("<none>", "<none>"));
            rows.push(Row {
                name: name.cloned().unwrap_or_else(|| image.manifest.to_string()).into_bytes(),
                cells: vec![
                    repository.to_owned(),
                    tag.to_owned(),
                    image.id.short(),
                    output::age(image.created.as_deref().and_then(timestamp::seconds)),
                    output::size(image.unpacked),
                ],
                json: object(image),
            });
        }
    }
    output::print_rows(context.format, context.is_quiet, &["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"], rows)
}

/// An image as Docker's inspect shows it.
pub fn object(image: &ImageFacts) -> Value {
    let layers: Vec<Value> = image
        .layers
        .iter()
        .map(|l| {
            json!({
                "Digest": l.blob.digest.to_string(),
                "DiffID": l.diff_id.to_string(),
                "MediaType": l.blob.media_type,
                "Size": l.blob.size,
                "UnpackedSize": l.unpacked,
            })
        })
        .collect();
    let digests: Vec<String> =
        image.names.iter().filter_map(|n| n.rsplit_once(':')).map(|(n, _)| format!("{n}@{}", image.manifest)).collect();
    let text = |key: &str| image.raw_config.get(key).cloned().unwrap_or(Value::Null);
    json!({
        "Id": image.id.to_string(),
        "Digest": image.manifest.to_string(),
        "RepoTags": image.names,
        "RepoDigests": digests,
        "Created": image.created,
        "Author": text("author"),
        "Architecture": text("architecture"),
        "Os": text("os"),
        "Variant": text("variant"),
        "Size": image.unpacked,
        "Config": text("config"),
        "RootFS": { "Type": "layers", "Layers": image.layers.iter().map(|l| l.diff_id.to_string()).collect::<Vec<_>>() },
        "Layers": layers,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [("0", 0), ("12", 12), ("128k", 131_072), ("2G", 2 << 30), ("1tib", 1 << 40)] {
            assert_eq!(parse_size(text), Ok(bytes));
        }
        for bad in ["", "k", "1x", "-1", "99999999999t", "1.5g"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
