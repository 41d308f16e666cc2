// SPDX-License-Identifier: MIT OR Apache-2.0
//! The words of the command line. `docs/cli.md` is generated from them; what is not built has no word here.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use super::container::{InspectArgs, PsArgs, RenameArgs, RmArgs, UmountArgs};
use super::doctor::DoctorArgs;
use super::fsck::FsckArgs;
use super::image::ImageCommand;
use super::look::{CatArgs, DiffArgs, LayersArgs, LsArgs, WhichArgs};
use super::mount::{MountArgs, StartArgs};
use super::output::Format;
use super::system::SystemCommand;
use super::transfer::{CommitArgs, CpArgs, ExportArgs};
use super::volume::VolumeCommand;

/// Layered container storage in one FUSE mount: image layers, an upper, volumes and binds.
#[derive(Debug, Parser)]
#[command(name = "mlfs", version, disable_help_subcommand = true, arg_required_else_help = true)]
pub struct Cli {
    /// What every command understands.
    #[command(flatten)]
    pub global: Global,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Args, Clone, Debug, Default)]
pub struct Global {
    /// The store [default: $MLFS_ROOT, else /var/lib/mlfs for root, else ~/.local/share/mlfs]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Global options")]
    pub root: Option<PathBuf>,
    /// A configuration file, read after the others [default: $MLFS_CONFIG]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Global options")]
    pub config: Option<PathBuf>,
    /// How to answer
    #[arg(long, global = true, value_enum, default_value_t, help_heading = "Global options")]
    pub format: Format,
    /// Least important messages to log: error, warn, info, debug, trace [default: $MLFS_LOG, else warn]
    #[arg(long, global = true, value_name = "LEVEL", help_heading = "Global options")]
    pub log_level: Option<String>,
    /// Names only in listings; elsewhere no progress and no notices
    #[arg(short, long, global = true, help_heading = "Global options")]
    pub quiet: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Mount an image or layers, with an upper, volumes, binds and tmpfs
    Mount(Box<MountArgs>),
    /// Unmount containers
    Umount(UmountArgs),
    /// Mount a stopped or dead container again, everything as it was
    Start(StartArgs),
    /// List containers
    Ps(PsArgs),
    /// Tell all about containers, as JSON
    Inspect(InspectArgs),
    /// Give a container another name
    Rename(RenameArgs),
    /// Remove containers with their uppers
    Rm(RmArgs),
    /// Images
    #[command(subcommand)]
    Image(ImageCommand),
    /// Write the merged tree of a container or an image as a tar, without what lies in volumes and binds
    Export(ExportArgs),
    /// Make an image of what a container has changed: one more layer on its own
    Commit(CommitArgs),
    /// Copy between a container, mounted or not, and the host, as `docker cp`
    Cp(CpArgs),
    /// Tell what a container has changed: A added, C changed, D deleted
    Diff(DiffArgs),
    /// Tell which layer, volume or bind provides a path, and what it hides
    Which(WhichArgs),
    /// List layers with their sizes and what later ones hide
    Layers(LayersArgs),
    /// List a directory without mounting
    Ls(LsArgs),
    /// Print a file without mounting
    Cat(CatArgs),
    /// Volumes
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Check the store, its containers, volumes and uppers, and mend them
    Fsck(FsckArgs),
    /// The store and the configuration
    #[command(subcommand)]
    System(SystemCommand),
    /// Tell what this machine and a directory can do for mlfs, what each missing thing costs, and how to get it
    Doctor(DoctorArgs),
    /// Mount in the words of overlayfs: the mount program of podman, buildah, dockerd and containerd
    #[command(
        disable_help_flag = true,
        override_usage = "mlfs overlay -o lowerdir=TOP:..:BOTTOM[,upperdir=U,workdir=W][,options] MOUNTPOINT"
    )]
    Overlay {
        /// The arguments of a mount program
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
        args: Vec<std::ffi::OsString>,
    },
    /// Print a completion script for a shell
    #[command(after_help = "Example:\n  mlfs completions bash > /etc/bash_completion.d/mlfs")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print a manual page: mlfs's own or that of a command; or write them all
    #[command(
        after_help = "Examples:\n  mlfs man volume create | man -l -\n  mlfs man --dir /usr/local/share/man/man1"
    )]
    Man {
        /// The words of a command
        #[arg(value_name = "COMMAND", conflicts_with = "dir")]
        words: Vec<String>,
        /// Write the page of every command into this directory
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
}
