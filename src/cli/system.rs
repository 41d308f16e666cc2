// SPDX-License-Identifier: MIT OR Apache-2.0
//! `mlfs system`.

use clap::Subcommand;
use serde_json::{Value, json};

use crate::engine::system::{self, Total, Usage};
use crate::engine::{Result, host};
use crate::store::Access;

use super::Context;
use super::output::{self, Row};

/// `mlfs system ...`
#[derive(Debug, Subcommand)]
pub enum SystemCommand {
    /// Tell every value of the configuration and where it comes from
    Info,
    /// Tell what the store holds: bytes on disk, inodes, what is shared, what is not in use
    Df,
    /// Remove what no record names: images without a name and anonymous volumes that no container needs, blobs and
    /// objects of nobody, what crashes left. Never a container's upper, never a named volume
    Prune {
        /// Do not ask
        #[arg(short, long)]
        force: bool,
    },
}

/// Runs `mlfs system ...`.
pub fn run(context: &Context, command: &SystemCommand) -> Result<()> {
    match command {
        SystemCommand::Info => info(context),
        SystemCommand::Df => df(context),
        SystemCommand::Prune { force } => prune(context, *force),
    }
}

fn info(context: &Context) -> Result<()> {
    let values = system::values(&context.said, &host::default_root().unwrap_or_default());
    if context.format == output::Format::Json {
        let settings: Vec<Value> =
            values.iter().map(|v| json!({"Key": v.key, "Value": v.value, "Origin": v.origin})).collect();
        return output::print_json(vec![json!({"Version": env!("CARGO_PKG_VERSION"), "Settings": settings})]);
    }
    let rows = values.into_iter().map(|value| Row {
        name: value.key.as_bytes().to_vec(),
        cells: vec![value.key.to_owned(), value.value, value.origin],
        json: Value::Null,
    });
    output::print_rows(context.format, context.is_quiet, &["KEY", "VALUE", "ORIGIN"], rows.collect())
}

fn df(context: &Context) -> Result<()> {
    let disk = system::disk_use(&context.store(Access::Read)?)?;
    let rows = [
        ("Images", disk.images),
        ("Containers", disk.containers),
        ("Volumes", disk.volumes),
        ("Unnamed", disk.unnamed),
    ];
    let usage = |usage: Usage| json!({"Bytes": usage.bytes, "Inodes": usage.inodes});
    let rows = rows.into_iter().map(|(kind, Total { count, active, usage: all, shared, reclaimable })| Row {
        name: kind.as_bytes().to_vec(),
        cells: vec![
            kind.to_owned(),
            count.to_string(),
            active.to_string(),
            output::size(all.bytes),
            all.inodes.to_string(),
            output::size(shared.bytes),
            output::size(reclaimable.bytes),
        ],
        json: json!({
            "Type": kind,
            "TotalCount": count,
            "Active": active,
            "Size": all.bytes,
            "Inodes": all.inodes,
            "Shared": usage(shared),
            "Reclaimable": usage(reclaimable),
        }),
    });
    let head = ["TYPE", "TOTAL", "ACTIVE", "SIZE", "INODES", "SHARED", "RECLAIMABLE"];
    output::print_rows(context.format, context.is_quiet, &head, rows.collect())
}

fn prune(context: &Context, is_forced: bool) -> Result<()> {
    let question = "This removes images without a name and anonymous volumes that no container needs, and what no record \
                    names. Go on?";
    if !is_forced && !output::confirm(question, "--force")? {
        return Ok(());
    }
    let pruned = system::prune(&context.store(Access::Write)?)?;
    let images = pruned.images.iter().map(|digest| format!("Deleted: {digest}\n"));
    let volumes = pruned.volumes.iter().map(|name| format!("Deleted: volume {name}\n"));
    let lines: String = images.chain(volumes).collect();
    output::print_text(&format!("{lines}Total reclaimed space: {}\n", output::size(pruned.bytes)))
}
