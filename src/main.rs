// SPDX-License-Identifier: MIT OR Apache-2.0
//! The `mlfs` program: chooses the front by the program's name and sets the exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    mlfs::cli::main(std::env::args_os().collect())
}
