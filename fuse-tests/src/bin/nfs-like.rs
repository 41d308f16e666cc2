// SPDX-License-Identifier: MIT OR Apache-2.0
//! `nfs-like [-f] [--plain] [--with A,B] [--without A,B] BACKING MOUNTPOINT`: mounts a directory as if it came by NFS.
//!
//! Goes to the background once the mount is usable (`-f`: stays) and ends when it is unmounted.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use fuse_tests::nfs_like::{Traits, serve};

const USAGE: &str = "nfs-like [-f] [--plain] [--with A,B] [--without A,B] BACKING MOUNTPOINT";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nfs-like: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[String]) -> Result<(), String> {
    let (mut traits, mut places, mut is_front) = (Traits::default(), Vec::new(), false);
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        let mut value = || rest.next().ok_or(USAGE);
        match word.as_str() {
            "-f" => is_front = true,
            "--plain" => traits = Traits::none(),
            "--with" => traits = traits.with(value()?)?,
            "--without" => traits = traits.without(value()?)?,
            place => places.push(place),
        }
    }
    let [backing, target] = places[..] else { return Err(USAGE.into()) };
    if !is_front {
        return in_background(words);
    }
    let ready = || {
        let mut out = std::io::stdout();
        if let Err(error) = out.write_all(b"ready\n").and_then(|()| out.flush()) {
            eprintln!("nfs-like: nobody waits: {error}");
        }
    };
    serve(Path::new(backing), Path::new(target), traits, ready).map_err(|error| format!("{target}: {error}"))
}

// Starts itself again and waits until that one serves.
fn in_background(words: &[String]) -> Result<(), String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut child = Command::new(program);
    child.arg("-f").args(words).stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0);
    let mut child = child.spawn().map_err(|error| error.to_string())?;
    let mut line = String::new();
    let out = child.stdout.take().ok_or("no pipe")?;
    BufReader::new(out).read_line(&mut line).map_err(|error| error.to_string())?;
    if line == "ready\n" {
        return Ok(());
    }
    let status = child.wait().map_err(|error| error.to_string())?;
    Err(format!("it could not be mounted ({status})"))
}
