// SPDX-License-Identifier: MIT OR Apache-2.0
//! `mlfs doctor`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use crate::engine::doctor::{self, Check, State};
use crate::engine::{Class, Result};

use super::output::{self, Format};
use super::{Context, exit_code};

/// `mlfs doctor`
#[derive(Args, Debug)]
#[command(after_help = "\
What can be tried is tried, and nothing stays behind.

Exit status: 0 mounting is possible, 3 there is no way to mount.

Examples:
  mlfs doctor
  mlfs doctor /scratch/me
  mlfs doctor --format json")]
pub struct DoctorArgs {
    /// A directory that a store, an upper or a volume is in or is to be in [default: the store's]
    dir: Option<PathBuf>,
}

/// Runs `mlfs doctor`.
pub fn run(context: &Context, args: &DoctorArgs) -> Result<ExitCode> {
    let dir = match &args.dir {
        Some(dir) => dir.clone(),
        None => context.root()?,
    };
    let found = doctor::examine(&dir)?;
    let code = if found.ways.is_empty() { exit_code(Class::Found) } else { ExitCode::SUCCESS };
    if context.format == Format::Json {
        output::print_json(found.checks.iter().map(object).collect())?;
        return Ok(code);
    }
    let is_shown = |check: &&Check| !context.is_quiet || check.state != State::Ok;
    let mut text: String = found.checks.iter().filter(is_shown).map(lines).collect();
    text.push_str(&match found.ways.as_slice() {
        [] => "\nThere is no way to mount here. `mlfs ls`, `cat`, `which`, `layers` and `export` work.\n".to_owned(),
        ways => format!("\nYou can mount by: {}\n", ways.join(", ")),
    });
    output::print_text(&text)?;
    Ok(code)
}

fn object(check: &Check) -> serde_json::Value {
    json!({
        "Name": check.name,
        "State": check.state.word(),
        "Value": check.value,
        "Cost": check.cost,
        "Remedy": check.remedy,
    })
}

fn lines(check: &Check) -> String {
    let mut text = format!("{:<18} {:<8} {}\n", check.name, check.state.word(), check.value);
    for (what, said) in [("costs", check.cost), ("remedy", check.remedy)] {
        if !said.is_empty() {
            text.push_str(&format!("    {what}: {said}\n"));
        }
    }
    text
}
