// SPDX-License-Identifier: MIT OR Apache-2.0
//! `mlfs volume`.

use std::ffi::OsString;
use std::fs::File;

use clap::Subcommand;
use serde_json::{Value, json};

use crate::engine::volumes::{self, VolumeRequest};
use crate::engine::{EngineError, OrFail, Result, settings};
use crate::store::volume::VolumeRecord;
use crate::store::{Access, Store};

use super::Context;
use super::output::{self, Row};

/// `mlfs volume ...`
#[derive(Debug, Subcommand)]
pub enum VolumeCommand {
    /// Make a volume, or do nothing when it is there with the same options
    #[command(after_help = "Examples:\n  mlfs volume create data\n  mlfs volume create --opt type=none --opt o=bind \
                            --opt device=/srv/data data")]
    Create {
        /// Its name; a volume without a name is anonymous
        name: Option<String>,
        /// A label
        #[arg(long, value_name = "KEY=VALUE")]
        label: Vec<String>,
        /// A driver option: type=none, o=bind, device=DIR make a volume of a host directory
        #[arg(short, long, value_name = "KEY=VALUE")]
        opt: Vec<String>,
    },
    /// List volumes
    Ls {
        /// Only those with name=TEXT, label=KEY[=VALUE], label!=KEY[=VALUE], dangling=true|false, driver=local
        #[arg(short, long, value_name = "KEY=VALUE")]
        filter: Vec<String>,
    },
    /// Tell all about volumes, as JSON
    Inspect {
        /// The volumes
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Write what a volume holds as a tar
    #[command(after_help = "Example:\n  mlfs volume export data -o data.tar")]
    Export {
        /// The volume
        #[arg(value_name = "VOL")]
        name: String,
        /// Write it to this file, whole or not at all [default: standard output, which must not be a terminal]
        #[arg(short, long, value_name = "FILE")]
        output: Option<OsString>,
    },
    /// Make a volume of a tar (plain, gzip or zstd), whole or not at all
    #[command(after_help = "Example:\n  mlfs volume export data | mlfs --root /other volume import data -")]
    Import {
        /// The volume, which must not be there
        #[arg(value_name = "VOL")]
        name: String,
        /// The archive; - is standard input
        #[arg(value_name = "FILE")]
        file: OsString,
    },
    /// Remove volumes that no container uses
    Rm {
        /// Do not mind volumes that do not exist
        #[arg(short, long)]
        force: bool,
        /// The volumes
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Remove anonymous volumes that no container uses
    Prune {
        /// Named ones too
        #[arg(short, long)]
        all: bool,
        /// Do not ask
        #[arg(short, long)]
        force: bool,
        /// Only those with label=KEY[=VALUE], label!=KEY[=VALUE], name=TEXT
        #[arg(long, value_name = "KEY=VALUE")]
        filter: Vec<String>,
    },
}

/// Runs `mlfs volume ...`.
pub fn run(context: &Context, command: VolumeCommand) -> Result<()> {
    match command {
        VolumeCommand::Create { name, label, opt } => {
            let labels = label.iter().map(|l| settings::parse_label(l)).collect::<Result<_>>()?;
            let options = opt.iter().map(|o| parse_option(o)).collect::<Result<_>>()?;
            let record = volumes::create(&context.store(Access::Write)?, &VolumeRequest { name, labels, options })?;
            output::print_text(&format!("{}\n", record.name))
        }
        VolumeCommand::Ls { filter } => {
            let filters = filter.iter().map(|f| volumes::parse_filter(f)).collect::<Result<Vec<_>>>()?;
            let store = context.store(Access::Read)?;
            let rows = volumes::list(&store, &filters)?.into_iter().map(|volume| Row {
                name: volume.name.clone().into_bytes(),
                cells: vec!["local".to_owned(), volume.name.clone()],
                json: object(&store, &volume),
            });
            output::print_rows(context.format, context.is_quiet, &["DRIVER", "VOLUME NAME"], rows.collect())
        }
        VolumeCommand::Inspect { names } => {
            let store = context.store(Access::Read)?;
            let find = |name: &String| store.find_volume(name).or_fail(|| "cannot inspect").map(|v| object(&store, &v));
            output::print_json(names.iter().map(find).collect::<Result<_>>()?)
        }
        VolumeCommand::Export { name, output } => {
            super::transfer::write_to(output.as_ref(), |out| volumes::export(&context.store(Access::Read)?, &name, out))
        }
        VolumeCommand::Import { name, file } => {
            volumes::check_import(&name)?;
            if file == "-" {
                return volumes::import(&context.store(Access::Write)?, &name, std::io::stdin());
            }
            let archive = File::open(&file).or_fail(|| format!("cannot open {}", file.to_string_lossy()))?;
            volumes::import(&context.store(Access::Write)?, &name, archive)
        }
        VolumeCommand::Rm { force, names } => {
            let store = context.store(Access::Write)?;
            super::for_each(&names, |name| {
                if force && matches!(store.load_volume(name), Ok(None)) {
                    return Ok(());
                }
                volumes::remove(&store, name)?;
                output::print_text(&format!("{name}\n"))
            })
        }
        VolumeCommand::Prune { all, force, filter } => {
            let filters = filter.iter().map(|f| volumes::parse_filter(f)).collect::<Result<Vec<_>>>()?;
            let what = if all { "all volumes" } else { "all anonymous volumes" };
            let question = format!("This removes {what} that no container uses, with their content. Go on?");
            if !force && !output::confirm(&question, "--force")? {
                return Ok(());
            }
            let pruned = volumes::prune(&context.store(Access::Write)?, all, &filters)?;
            let names: String = pruned.names.iter().map(|name| format!("{name}\n")).collect();
            output::print_text(&format!("{names}Total reclaimed space: {}\n", output::size(pruned.bytes)))
        }
    }
}

fn parse_option(text: &str) -> Result<(String, String)> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(EngineError::usage(format!("invalid option '{text}': write KEY=VALUE"))),
    }
}

/// A volume as Docker's inspect shows it.
fn object(store: &Store, volume: &VolumeRecord) -> Value {
    json!({
        "Name": volume.name,
        "Driver": "local",
        "Scope": "local",
        "Mountpoint": store.volume_data(volume),
        "CreatedAt": volume.created,
        "Labels": volume.labels,
        "Options": volume.options,
        "Anonymous": volume.is_anonymous,
        "Ownership": volume.ownership,
    })
}
