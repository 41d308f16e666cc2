// SPDX-License-Identifier: MIT OR Apache-2.0
//! `mlfs export`, `mlfs cp`, `mlfs commit`: out of containers and into them.

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use clap::Args;

use crate::engine::commit::{self, CommitRequest};
use crate::engine::cp::{self, CopyOptions, End};
use crate::engine::{EngineError, Result, export, images};
use crate::store::Access;

use super::Context;
use super::output::{self, Format};

/// `mlfs export`
#[derive(Args, Debug)]
#[command(
    after_help = "Owners are those of the image, whatever the mount shows. Names, times with nanoseconds, extended \
                  attributes (SCHILY.xattr), hard links, devices and holes are kept; sockets are left out.\n\n\
                  Examples:\n  mlfs export try -o try.tar\n  mlfs export debian:12 | tar -tf -"
)]
pub struct ExportArgs {
    /// A container, mounted or not, an image, or a mountpoint
    #[arg(value_name = "TARGET")]
    target: String,
    /// Write it to this file, whole or not at all [default: standard output, which must not be a terminal]
    #[arg(short, long, value_name = "FILE")]
    output: Option<OsString>,
}

/// Runs `mlfs export`.
pub fn export(context: &Context, args: &ExportArgs) -> Result<()> {
    write_to(args.output.as_ref(), |out| export::export(&context.store(Access::Read)?, &args.target, out))
}

/// Writes to a file, or to standard output where that is no terminal.
pub fn write_to(output: Option<&OsString>, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    match output {
        Some(file) if file != "-" => export::write_file(Path::new(file), export::PRIVATE, write),
        _ => write(&mut stdout()?),
    }
}

/// Standard output for an archive.
pub fn stdout() -> Result<io::Stdout> {
    let out = io::stdout();
    if out.is_terminal() {
        return Err(EngineError::usage("an archive is not written to a terminal; redirect it, or use -o FILE"));
    }
    Ok(out)
}

/// `mlfs cp`
#[derive(Args, Debug)]
#[command(
    override_usage = "mlfs cp [OPTIONS] NAME:SRC DST|-\n       mlfs cp [OPTIONS] SRC|- NAME:DST",
    after_help = "SRC that ends in /. means what the directory holds. A symlink at the end of SRC is copied, at the end of DST \
                  it is followed. - is a tar. A path of the host with a colon begins with ./ or /. Copies in a container belong \
                  to its root, copies on the host to the caller. A mounted container is changed through its mount, with the \
                  rights the caller has there.\n\n\
                  Examples:\n  mlfs cp try:/etc/os-release .\n  mlfs cp ./conf/. try:/etc/app\n  \
                  mlfs cp try:/var/log - | tar -tf -"
)]
pub struct CpArgs {
    /// Keep owners
    #[arg(short, long)]
    archive: bool,
    /// Follow a symlink at the end of SRC
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// What to copy
    #[arg(value_name = "SRC")]
    from: OsString,
    /// Where to
    #[arg(value_name = "DST")]
    to: OsString,
}

/// Runs `mlfs cp`.
pub fn cp(context: &Context, args: &CpArgs) -> Result<()> {
    let (from, to) = (cp::parse_end(&args.from)?, cp::parse_end(&args.to)?);
    cp::check_ends(&from, &to)?;
    let options = CopyOptions { keeps_owners: args.archive, follows: args.follow_link };
    let access = if matches!(to, End::Container { .. }) { Access::Write } else { Access::Read };
    let mut out: Box<dyn Write> = if to == End::Stream { Box::new(stdout()?) } else { Box::new(io::sink()) };
    cp::copy(&context.store(access)?, &from, &to, options, io::stdin(), &mut out)
}

/// `mlfs commit`
#[derive(Args, Debug)]
#[command(
    after_help = "The layer has OCI whiteouts, and nothing of volumes, binds and tmpfs. A container of layers without an \
                  image becomes an image of one layer. With --timestamp, the same content makes the same digests.\n\n\
                  Examples:\n  mlfs commit try app:2\n  mlfs commit --only /opt/venv --timestamp 0 try venv:1"
)]
pub struct CommitArgs {
    /// Only what lies at this path
    #[arg(long, value_name = "PATH")]
    only: Option<OsString>,
    /// Seconds since 1970: the image's time, and the latest of its new files [default: now, and files as they are]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(..=253_402_300_799))]
    timestamp: Option<u64>,
    /// Who made it
    #[arg(short, long)]
    author: Option<String>,
    /// Why, for the image's history
    #[arg(short, long)]
    message: Option<String>,
    /// The container
    name: String,
    /// The new image: NAME[:TAG]
    #[arg(value_name = "IMAGE")]
    image: String,
}

/// Runs `mlfs commit`.
pub fn commit(context: &Context, args: &CommitArgs) -> Result<()> {
    let name = commit::parse_name(&args.image)?;
    let request = CommitRequest {
        only: args.only.as_ref().map(|path| path.as_bytes().to_vec()),
        timestamp: args.timestamp,
        author: args.author.clone(),
        message: args.message.clone(),
    };
    let store = context.store(Access::Write)?;
    let made = commit::commit(&store, &args.name, &name, &request)?;
    let facts = images::facts(&store, &made.manifest.to_string())?;
    if context.format == Format::Json {
        return output::print_json(vec![super::image::object(&facts)]);
    }
    output::print_text(&format!("{}\n", facts.id))
}
