// SPDX-License-Identifier: MIT OR Apache-2.0
//! Floor 10: words, flags, tables, JSON, progress. It judges the command line, asks the engine, and tells the answer.
//!
//! An error is one line on standard error: what failed, why, and what to do. Exit codes: 0 done, 1 failed, 2 wrong
//! usage, 3 a check found something.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::compat::mount_program;
use crate::engine::config::{self, Environment, Said};
use crate::engine::settings::{self, Settings};
use crate::engine::{Class, EngineError, OrFail, Result, host, log_sink};
use crate::store::{Access, Store};

pub mod args;
pub mod container;
pub mod doctor;
pub mod fsck;
pub mod image;
pub mod look;
pub mod manual;
pub mod mount;
pub mod output;
pub mod progress;
pub mod reference;
pub mod system;
pub mod transfer;
pub mod volume;

use args::{Cli, Command, Global};
use output::Format;

/// What every command gets.
#[derive(Debug)]
pub struct Context {
    /// Configuration files, environment and the global flags, in this order.
    pub settings: Settings,
    /// The same, by who says it.
    pub said: Vec<Said>,
    /// How to answer.
    pub format: Format,
    /// `-q`.
    pub is_quiet: bool,
}

impl Context {
    fn new(global: &Global) -> Result<Self> {
        let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty());
        let absolute = |name: &str| variable(name).map(PathBuf::from).filter(|p| p.is_absolute());
        let environment = Environment {
            system_file: Some("/etc/mlfs/config.toml".into()),
            config_home: absolute("XDG_CONFIG_HOME").or_else(|| absolute("HOME").map(|h| h.join(".config"))),
            root: variable("MLFS_ROOT").map(PathBuf::from),
            log: variable("MLFS_LOG").map(|v| v.to_string_lossy().into_owned()),
            config: global.config.clone().or_else(|| variable("MLFS_CONFIG").map(PathBuf::from)),
        };
        let flags = Settings {
            root: global.root.clone(),
            log_level: global.log_level.as_deref().map(settings::parse_log_level).transpose()?,
            ..Settings::default()
        };
        let mut said = config::load_sources(&environment)?;
        said.push(Said { by: "flag".to_owned(), settings: flags });
        let settings = said.iter().fold(Settings::default(), |earlier, said| said.settings.clone().over(earlier));
        if let Some(level) = settings.log_level {
            log_sink::set_level(level);
        }
        Ok(Context { settings, said, format: global.format, is_quiet: global.quiet })
    }

    /// The store.
    pub fn store(&self, access: Access) -> Result<Store> {
        Store::open(&self.root()?, access).or_fail(|| "cannot open the store")
    }

    /// Where the store is.
    pub fn root(&self) -> Result<PathBuf> {
        self.settings.root.clone().map_or_else(host::default_root, Ok)
    }
}

/// Runs the program with its arguments, `args[0]` being its name.
pub fn main(args: Vec<OsString>) -> ExitCode {
    log_sink::install();
    // Before clap: every word after it is the client's, `--version` too.
    if let [_, command, rest @ ..] = args.as_slice()
        && command == "overlay"
    {
        return mount_program::main("mlfs", rest);
    }
    let runs_command = is_running_command(&args);
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) if runs_command && error.use_stderr() => {
            tell_usage(&error);
            return ExitCode::from(OWN_FAILURE);
        }
        Err(error) => return tell_usage(&error),
    };
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            output::tell_error(&format!("mlfs: {}", error.sentence()));
            match error.class() {
                Class::Failed | Class::Usage | Class::Found if runs_command => ExitCode::from(OWN_FAILURE),
                class => exit_code(class),
            }
        }
    }
}

/// The exit code of commands that run a command, for every failure of ours.
const OWN_FAILURE: u8 = 125;

/// Is this `mlfs mount ... -- CMD`? Asked of the bare words, since wrong usage counts too.
fn is_running_command(args: &[OsString]) -> bool {
    let words: Vec<&OsString> = args.iter().skip(1).take_while(|arg| *arg != "--").collect();
    words.len() + 2 < args.len() && words.iter().any(|word| *word == "mount")
}

fn exit_code(class: Class) -> ExitCode {
    ExitCode::from(match class {
        Class::Failed => 1,
        Class::Usage => 2,
        Class::Found => 3,
        Class::NotExecutable => 126,
        Class::NoCommand => 127,
    })
}

/// Help and version go to standard output; wrong usage is one line.
fn tell_usage(error: &clap::Error) -> ExitCode {
    use clap::error::ErrorKind::{DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, DisplayVersion};
    match error.kind() {
        DisplayHelp | DisplayVersion => match output::print_text(&error.render().to_string()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        DisplayHelpOnMissingArgumentOrSubcommand => {
            output::tell_error(error.render().to_string().trim_end());
            exit_code(Class::Usage)
        }
        _ => {
            let text = error.render().to_string();
            let first: Vec<&str> = text.lines().map(str::trim).take_while(|line| !line.is_empty()).collect();
            let sentence = first.join(" ");
            let sentence = sentence.strip_prefix("error: ").unwrap_or(&sentence);
            output::tell_error(&format!("mlfs: {sentence}; see `mlfs --help`"));
            exit_code(Class::Usage)
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Command::Overlay { args } => return Ok(mount_program::main("mlfs", &args)),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "mlfs", &mut script);
            output::print_bytes(&script)?;
        }
        Command::Man { words, dir } => match dir {
            Some(dir) => manual::write(&Cli::command(), &dir)?,
            None => output::print_bytes(&manual::page(&Cli::command(), &words)?.text)?,
        },
        Command::Mount(args) => return mount::run(&Context::new(&cli.global)?, &args),
        Command::Umount(args) => container::umount(&Context::new(&cli.global)?, &args)?,
        Command::Start(args) => mount::start(&Context::new(&cli.global)?, &args)?,
        Command::Ps(args) => container::ps(&Context::new(&cli.global)?, &args)?,
        Command::Inspect(args) => container::inspect(&Context::new(&cli.global)?, &args)?,
        Command::Rename(args) => container::rename(&Context::new(&cli.global)?, &args)?,
        Command::Rm(args) => container::rm(&Context::new(&cli.global)?, &args)?,
        Command::Image(command) => return image::run(&Context::new(&cli.global)?, command),
        Command::Export(args) => transfer::export(&Context::new(&cli.global)?, &args)?,
        Command::Commit(args) => transfer::commit(&Context::new(&cli.global)?, &args)?,
        Command::Cp(args) => transfer::cp(&Context::new(&cli.global)?, &args)?,
        Command::Diff(args) => look::diff(&Context::new(&cli.global)?, &args)?,
        Command::Which(args) => return look::which(&Context::new(&cli.global)?, &args),
        Command::Layers(args) => look::layers(&Context::new(&cli.global)?, &args)?,
        Command::Ls(args) => look::ls(&Context::new(&cli.global)?, &args)?,
        Command::Cat(args) => look::cat(&Context::new(&cli.global)?, &args)?,
        Command::Fsck(args) => return fsck::run(&Context::new(&cli.global)?, &args),
        Command::Doctor(args) => return doctor::run(&Context::new(&cli.global)?, &args),
        Command::System(command) => system::run(&Context::new(&cli.global)?, &command)?,
        Command::Volume(command) => volume::run(&Context::new(&cli.global)?, command)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Does the same to each name; a failure is told and the others still have their turn.
pub fn for_each(names: &[String], mut act: impl FnMut(&str) -> Result<()>) -> Result<()> {
    let mut failed: Vec<EngineError> = names.iter().filter_map(|name| act(name).err()).collect();
    let last = failed.pop();
    for error in failed {
        output::tell_error(&format!("mlfs: {}", error.sentence()));
    }
    last.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
