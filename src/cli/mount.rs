// SPDX-License-Identifier: MIT OR Apache-2.0
//! `mlfs mount` and `mlfs start`.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use crate::engine::lifecycle::{self, Front, Usable};
use crate::engine::mount::{self, MountRequest, Origin, Purpose};
use crate::engine::settings::{self, Settings};
use crate::engine::{EngineError, Result, spec};
use crate::store::Access;

use super::Context;
use super::output;
use super::progress::Bars;

/// `mlfs mount`
#[derive(Args, Debug)]
#[command(
    override_usage = "mlfs mount [OPTIONS] IMAGE MOUNTPOINT [-- CMD...]\n       mlfs mount [OPTIONS] --layer L [--layer L]... MOUNTPOINT [-- CMD...]",
    after_help = "Examples:\n  mlfs mount -v data:/var/lib/data -v ./src:/src:ro debian:12 /mnt\n  \
                  mlfs mount --layer base.tar.gz --layer ./changes --rm --name try /mnt\n  \
                  mlfs mount --owner me --mount type=tmpfs,dst=/tmp,tmpfs-size=1g app ~/app"
)]
pub struct MountArgs {
    /// The image (unless there are layers), and where to mount it: an empty directory
    #[arg(required = true, num_args = 1..=2, value_names = ["IMAGE", "MOUNTPOINT"])]
    places: Vec<PathBuf>,
    /// A layer: a directory or an archive (.tar, .tar.gz, .tar.zst); bottom first
    #[arg(long, value_name = "DIR|TAR")]
    layer: Vec<PathBuf>,
    /// The container's name [default: generated; printed when the mount is usable]
    #[arg(long)]
    name: Option<String>,
    /// Keep the upper in this directory (a work directory is made beside it); it is never deleted
    #[arg(long, value_name = "DIR")]
    upper: Option<PathBuf>,
    /// A volume or bind: NAME:DST[:opts], /HOST:DST[:opts], ./REL:DST[:opts], or DST for an anonymous volume
    #[arg(short, long, value_name = "SRC:DST[:opts]", short_aliases = ['B'], aliases = ["bind"])]
    volume: Vec<String>,
    /// A volume, bind or tmpfs: type=volume|bind|tmpfs,source=..,target=..,readonly,...
    #[arg(long, value_name = "type=..,key=..")]
    mount: Vec<String>,
    /// A tmpfs: DST[:size=..,mode=..,ro]
    #[arg(long, value_name = "DST[:opts]")]
    tmpfs: Vec<String>,
    /// Refuse writes to the root (volumes, binds and tmpfs stay writable)
    #[arg(long)]
    read_only: bool,
    /// Discard the upper and anonymous volumes when it is unmounted
    #[arg(long)]
    rm: bool,
    /// A label
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<String>,
    /// Everything belongs to this owner: UID, UID:GID, or me
    #[arg(long, value_name = "UID[:GID]|me")]
    owner: Option<String>,
    /// Show N user ids from C (in the image) as those from H on
    #[arg(long, value_name = "C:H:N")]
    uidmap: Vec<String>,
    /// Show N group ids from C (in the image) as those from H on
    #[arg(long, value_name = "C:H:N")]
    gidmap: Vec<String>,
    /// How long a busy mount is served after SIGTERM, before it is detached
    #[arg(long, value_name = "TIME")]
    stop_timeout: Option<String>,
    /// Let other users in (an ordinary user needs user_allow_other in /etc/fuse.conf)
    #[arg(long)]
    allow_other: bool,
    /// Who reads and writes contents: the kernel by itself (passthrough: root only), or mlfs for the kernel's cache
    /// (cached); auto takes passthrough where it works
    #[arg(long, value_name = "auto|passthrough|cached")]
    io: Option<String>,
    /// Mount options: suid, dev
    #[arg(short, long, value_name = "OPTIONS")]
    option: Vec<String>,
    /// Stay in front; log to standard error
    #[arg(short, long)]
    foreground: bool,
    /// Print what would be done
    #[arg(long)]
    dry_run: bool,
    /// Run this in a mount namespace of its own, then unmount; the container goes too, unless it has a --name. The exit
    /// code is the command's; 125 when mlfs fails, 126 and 127 when the command cannot be run
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

impl MountArgs {
    /// The flags as settings.
    fn settings(&self) -> Result<Settings> {
        let wrong = |e: spec::SpecError| EngineError::usage(e.to_string());
        let yes = |flag: bool| flag.then_some(true);
        let mut mounts = Vec::new();
        for text in &self.volume {
            mounts.push(spec::parse_volume(text).map_err(wrong)?);
        }
        for text in &self.mount {
            mounts.push(spec::parse_mount(text).map_err(wrong)?);
        }
        for text in &self.tmpfs {
            mounts.push(spec::parse_tmpfs(text).map_err(wrong)?);
        }
        let mut settings = Settings {
            name: self.name.clone(),
            upper: self.upper.clone(),
            mounts,
            read_only: yes(self.read_only),
            rm: yes(self.rm),
            labels: self.label.iter().map(|l| settings::parse_label(l)).collect::<Result<_>>()?,
            owner: self.owner.as_deref().map(settings::parse_owner).transpose()?,
            uidmap: self.uidmap.iter().map(|m| settings::parse_id_range(m)).collect::<Result<_>>()?,
            gidmap: self.gidmap.iter().map(|m| settings::parse_id_range(m)).collect::<Result<_>>()?,
            stop_timeout: self.stop_timeout.as_deref().map(settings::parse_duration).transpose()?,
            allow_other: yes(self.allow_other),
            io: self.io.as_deref().map(settings::parse_io).transpose()?,
            foreground: yes(self.foreground),
            ..Settings::default()
        };
        for text in &self.option {
            settings::add_options(&mut settings, text)?;
        }
        Ok(settings)
    }

    /// The image or the layers, and the mountpoint.
    fn origin(&self) -> Result<(Origin, PathBuf)> {
        match (self.places.as_slice(), self.layer.is_empty()) {
            ([image, mountpoint], true) => {
                let name = image.to_str().ok_or_else(|| EngineError::usage("the image's name is not UTF-8"))?;
                Ok((Origin::Image(name.to_owned()), mountpoint.clone()))
            }
            ([mountpoint], false) => Ok((Origin::Layers(self.layer.clone()), mountpoint.clone())),
            ([_], true) => Err(EngineError::usage("an image and a mountpoint are needed, or --layer and a mountpoint")),
            _ => Err(EngineError::usage("with --layer there is no image: only the mountpoint is needed")),
        }
    }
}

/// Runs `mlfs mount`.
pub fn run(context: &Context, args: &MountArgs) -> Result<ExitCode> {
    // Wrong usage first, also in settings that a configuration file will be under.
    let flags = args.settings()?;
    spec::order(flags.mounts.clone()).map_err(|e| EngineError::usage(e.to_string()))?;
    let (origin, mountpoint) = args.origin()?;
    let purpose = if args.dry_run { Purpose::Show } else { Purpose::Mount };
    let settings = flags.over(context.settings.clone());
    let mut request = MountRequest { origin, mountpoint, settings, purpose };
    let settings = &mut request.settings;
    let front = if !args.command.is_empty() {
        settings.rm = settings.rm.or(Some(settings.name.is_none()));
        Front::Command(args.command.clone())
    } else if settings.foreground == Some(true) {
        Front::Foreground
    } else {
        Front::Daemon
    };
    let bars = Bars::default();
    if args.dry_run {
        let plan = mount::plan(|| context.store(Access::Read), &request, bars.shown(context))?;
        bars.clear();
        let mut steps = mount::describe(&plan.store, &plan.record)?;
        steps.extend(args.command.first().map(|command| format!("run {}", command.to_string_lossy())));
        output::print_steps(context.format, steps)?;
        return Ok(ExitCode::SUCCESS);
    }
    let has_command = matches!(front, Front::Command(_));
    let mut told = |usable: &Usable| {
        bars.clear();
        if has_command { Ok(()) } else { tell(context, usable) }
    };
    let open = || context.store(Access::Write);
    let status = lifecycle::mount(open, &request, &front, bars.shown(context), &mut told)?;
    let code = status.and_then(|s| s.code().or(s.signal().map(|signal| 128 + signal))).unwrap_or(0);
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)))
}

/// `mlfs start`
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  mlfs start try /mnt")]
pub struct StartArgs {
    /// The container
    name: String,
    /// Where; where it was before, if not said
    mountpoint: Option<PathBuf>,
    /// Stay in front; log to standard error
    #[arg(short, long)]
    foreground: bool,
}

/// Runs `mlfs start`.
pub fn start(context: &Context, args: &StartArgs) -> Result<()> {
    let store = context.store(Access::Write)?;
    let front = if args.foreground { Front::Foreground } else { Front::Daemon };
    let place = args.mountpoint.as_deref().map(Path::new);
    lifecycle::start(&store, &args.name, place, &front, &mut |usable| tell(context, usable))
}

fn tell(context: &Context, usable: &Usable) -> Result<()> {
    if output::is_terminal() {
        for notice in &usable.notices {
            output::notice(context.is_quiet, notice);
        }
    }
    output::print_text(&format!("{}\n", usable.name))
}
