// SPDX-License-Identifier: MIT OR Apache-2.0
//! Floor 10: words, flags, tables, JSON, progress.

use std::ffi::OsString;
use std::process::ExitCode;

/// Runs the program with its arguments, `args[0]` being its name.
pub fn main(args: Vec<OsString>) -> ExitCode {
    eprintln!("mlfs: {} arguments", args.len());
    ExitCode::FAILURE
}
