// SPDX-License-Identifier: MIT OR Apache-2.0
//! `mlfs fsck`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use crate::engine::fsck::{self, How, Outcome, Report, Told, UpperRequest, What};
use crate::engine::{Class, EngineError, Result};
use crate::model::finding::Grade;

use super::output::{self, Format};
use super::progress::Bars;
use super::{Context, exit_code};

/// `mlfs fsck`
#[derive(Args, Debug)]
#[command(after_help = "\
Without a name it checks the whole store: records, names of images, blobs and objects (summed up again), indexes, \
volumes, locks and sockets of dead processes, and the upper of each container that is not mounted. It changes nothing \
without --repair. What cannot be explained is moved to `lost+found`, never deleted.

Exit status: 0 nothing is wrong, 3 something was found (with --repair: something could not be mended).

Examples:
  mlfs fsck
  mlfs fsck --repair
  mlfs fsck box
  mlfs fsck --marks --format json box
  mlfs fsck --upper /srv/up --work /srv/work --layer /srv/base --layer /srv/app")]
pub struct FsckArgs {
    /// Mend what can be mended
    #[arg(long)]
    repair: bool,
    /// Tell every mark in the uppers and what it means, not only what is wrong
    #[arg(long)]
    marks: bool,
    /// Check this upper, which no container has
    #[arg(long, value_name = "DIR", conflicts_with = "names")]
    upper: Option<PathBuf>,
    /// Its work directory, which --repair needs [default: DIR.work, if it is there]
    #[arg(long, value_name = "DIR", requires = "upper")]
    work: Option<PathBuf>,
    /// A directory that is one of its layers; bottom first
    #[arg(long, value_name = "DIR", requires = "upper")]
    layer: Vec<PathBuf>,
    /// Containers, volumes and images [default: everything]
    #[arg(value_name = "NAME")]
    names: Vec<String>,
}

/// Runs `mlfs fsck`.
pub fn run(context: &Context, args: &FsckArgs) -> Result<ExitCode> {
    if let Some(layer) = args.layer.iter().find(|layer| layer.is_file()) {
        return Err(EngineError::usage(format!(
            "{} is no directory: fsck takes layers as directories",
            layer.display()
        )));
    }
    let what = match &args.upper {
        Some(upper) => {
            What::Upper(UpperRequest { upper: upper.clone(), work: args.work.clone(), layers: args.layer.clone() })
        }
        None if args.names.is_empty() => What::Everything,
        None => What::Names(args.names.clone()),
    };
    let how = if args.repair { How::Repair } else { How::Look };
    let bars = Bars::default();
    let report = fsck::run(|| context.root(), &what, how, bars.shown(context));
    bars.clear();
    tell(context, &report?, how, args.marks)
}

/// Tells what was found; exit code 3 where something is wrong still.
pub fn tell(context: &Context, report: &Report, how: How, has_marks: bool) -> Result<ExitCode> {
    let is_shown = |told: &&Told| match told.grade {
        Grade::Fine => has_marks,
        Grade::Note => !context.is_quiet,
        Grade::Leftover | Grade::Damage => true,
    };
    let told: Vec<&Told> = report.told.iter().filter(is_shown).collect();
    match context.format {
        Format::Json => output::print_json(told.into_iter().map(object).collect())?,
        Format::Table => {
            output::print_lines(told.into_iter().map(|told| line(told).into_bytes()))?;
            output::notice(context.is_quiet, &summary(report, how));
        }
    }
    let (_, open) = report.count();
    Ok(if open == 0 { ExitCode::SUCCESS } else { exit_code(Class::Found) })
}

/// `damage: PATH: what is wrong; what to do`.
fn line(told: &Told) -> String {
    let path = told.path.as_os_str().as_encoded_bytes().escape_ascii().to_string();
    let action = match &told.outcome {
        Outcome::Nothing => String::new(),
        Outcome::Possible(what) => format!("; with --repair: {what}"),
        Outcome::Repaired(what) => format!("; repaired: {what}"),
        Outcome::Refused(why) => format!("; not repaired: {why}"),
    };
    format!("{}: {path}: {}{action}", told.grade.word(), told.says).replace('\n', " ")
}

fn object(told: &Told) -> serde_json::Value {
    let (outcome, action) = match &told.outcome {
        Outcome::Nothing => ("none", None),
        Outcome::Possible(what) => ("possible", Some(what)),
        Outcome::Repaired(what) => ("repaired", Some(what)),
        Outcome::Refused(why) => ("refused", Some(why)),
    };
    json!({
        "Path": told.path.to_string_lossy(),
        "Kind": told.kind,
        "Grade": told.grade.word(),
        "Finding": told.says,
        "Repair": outcome,
        "Action": action,
    })
}

fn summary(report: &Report, how: How) -> String {
    match (report.count(), how) {
        ((0, _), _) => "nothing is wrong".to_owned(),
        ((faults, open), How::Repair) => format!("{faults} found, {} repaired, {open} not", faults - open),
        ((faults, _), How::Look) => {
            let can = report.told.iter().filter(|t| t.grade.is_fault() && matches!(t.outcome, Outcome::Possible(_)));
            format!("{faults} found; `mlfs fsck --repair` can mend {}", can.count())
        }
    }
}
