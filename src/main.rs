// SPDX-License-Identifier: MIT OR Apache-2.0
//! The `mlfs` program: chooses the front by the program's name and sets the exit code.

use std::process::ExitCode;

use mlfs::cli;
use mlfs::compat::mount_program;
use mlfs::engine::log_sink;
use mlfs::sys::inherited;

fn main() -> ExitCode {
    inherited::remember();
    let args: Vec<_> = std::env::args_os().collect();
    match args.split_first() {
        Some((program, rest)) if mount_program::is_called(program) => {
            log_sink::install();
            mount_program::main(mount_program::FUSE_OVERLAYFS, rest)
        }
        _ => cli::main(args),
    }
}
