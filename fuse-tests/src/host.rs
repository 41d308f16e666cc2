// SPDX-License-Identifier: MIT OR Apache-2.0
//! What scenarios do on the mounted tree beyond `std::fs`: other users, umasks, mappings, by ordinary programs.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::cli::{Outcome, run};
use crate::sandbox::Sandbox;

/// A shell script in a directory.
pub fn sh(sandbox: &Sandbox, dir: &Path, script: &str) -> Outcome {
    let dir = dir.to_owned();
    run(sandbox, Command::new("sh").args(["-euc", &format!("cd '{}'; {script}", dir.display())]))
}

/// A shell script as another user without supplementary groups. Only root can ask for it.
pub fn sh_as(sandbox: &Sandbox, dir: &Path, uid: u32, gid: u32, script: &str) -> Outcome {
    let script = format!("cd '{}'; {script}", dir.display());
    run(sandbox, Command::new("sh").args(["-euc", &script]).uid(uid).gid(gid).current_dir("/"))
}

/// A Python script in a directory: for calls that `std` lacks and that need no `unsafe` there. `prelude.py` stands before
/// it.
pub fn python(sandbox: &Sandbox, dir: &Path, script: &str) -> Outcome {
    let program = if Path::new("/usr/bin/python3").exists() { "/usr/bin/python3" } else { "python3" };
    let script = format!("{}\n{script}", include_str!("prelude.py"));
    run(sandbox, Command::new(program).args(["-c", &script]).current_dir(dir))
}

/// The errno of an operation that must fail.
#[track_caller]
pub fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    result.expect_err("should fail").raw_os_error().expect("a system error")
}
