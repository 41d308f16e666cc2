// SPDX-License-Identifier: MIT OR Apache-2.0
//! `mlfs overlay`, or the program called `fuse-overlayfs`: the mount program of podman, buildah, dockerd, containerd.
//!
//! No store, no HOME, no writable directory but the upper and its work directory. Every lower is opened once, by
//! descriptor, before the daemon starts: the client may take the paths away as soon as this program has ended. The
//! client reads standard error to its end, so the daemon lets go of it.

use std::cell::OnceCell;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use crate::engine::assemble::{OpenAs, open_path};
use crate::engine::daemon::{self, Duty, Served};
use crate::engine::settings::STOP_TIMEOUT;
use crate::engine::{EngineError, OrFail, Result, host, log_sink};
use crate::fs::{Fs, FsSpec};
use crate::fuse::{self, MountOptions};
use crate::layer::Layer;
use crate::layer::dir::{DirLayer, HostForm};
use crate::sys::Dir;
use crate::sys::dir::FileId;
use crate::sys::inherited;
use crate::sys::proc::{self, DaemonEnd, Fork};
use crate::tree::{Base, BranchSpec};
use crate::upper::{Ownership, UpperSpec, probe_ownership};

use super::mount_options::{self, Asked, OverlayOptions, Permissions};

/// The name under which engines know such a program.
pub const FUSE_OVERLAYFS: &str = "fuse-overlayfs";

/// Is this program called as a mount program? The last part of its name decides.
pub fn is_called(program: &OsStr) -> bool {
    Path::new(program).file_name() == Some(OsStr::new(FUSE_OVERLAYFS))
}

/// Runs the program under the name `name` with the arguments after it.
pub fn main(name: &str, args: &[OsString]) -> ExitCode {
    match run(name, args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(std::io::stderr(), &format!("{name}: {}", error.sentence()));
            ExitCode::FAILURE
        }
    }
}

/// Writes a line; a client that has closed the stream does not want it.
fn tell(mut stream: impl Write, line: &str) {
    if let Err(e) = writeln!(stream, "{line}") {
        log::debug!("cannot tell \"{line}\": {e}");
    }
}

fn run(name: &str, args: &[OsString]) -> Result<()> {
    let options = match mount_options::parse(args).map_err(|e| EngineError::usage(e.to_string()))? {
        Asked::Version => {
            tell(std::io::stdout(), &format!("{name}: version {}", env!("CARGO_PKG_VERSION")));
            return Ok(());
        }
        Asked::Help => {
            tell(
                std::io::stdout(),
                &format!("usage: {name} -o lowerdir=TOP:..:BOTTOM[,upperdir=U,workdir=W][,options] MOUNTPOINT"),
            );
            return Ok(());
        }
        Asked::Mount(options) => *options,
    };
    for unknown in &options.unknown {
        tell(std::io::stderr(), &format!("unknown argument ignored: {unknown}"));
    }
    mount(name, &options)
}

fn mount(name: &str, options: &OverlayOptions) -> Result<()> {
    let target =
        fs::canonicalize(&options.target).or_fail(|| format!("cannot mount at {}", options.target.display()))?;
    let limit = proc::raise_nofile_limit();
    crate::sys::dir::set_cache_capacity(limit);
    proc::set_umask(0);
    let spec = open(options, &target)?;
    let fs = Arc::new(Fs::new(spec).or_fail(|| "cannot put the layers together")?);
    let fuse = fuse::mount(&target, &fuse_options(name, options))
        .or_fail(|| format!("cannot mount at {}", target.display()))?;
    let served = match Served::find(&target) {
        Ok(served) => served,
        Err(error) => {
            daemon::clear_mount(&target, None);
            return Err(error);
        }
    };
    let duty = Duty {
        served: served.clone(),
        socket: None,
        stop_timeout: STOP_TIMEOUT,
        io: options.io,
        id: String::new(),
        command: OnceCell::new(),
    };
    if options.is_foreground {
        let mut ready = |_: &Duty<'_>| Ok(());
        return daemon::run(fuse, fs, &duty, &mut ready).map(|_| ());
    }
    match proc::fork_daemon().or_fail(|| "cannot start the daemon")? {
        Fork::Parent(end) => {
            // Closes the parent's copy; what is mounted stays.
            drop(fuse);
            let result = end.wait().map_err(EngineError::failed);
            if result.is_err() {
                daemon::clear_mount(&target, Some(served.dev));
            }
            result
        }
        Fork::Daemon(end) => be_daemon(fuse, fs, &duty, end),
    }
}

fn be_daemon(fuse: fuse::FuseMount, fs: Arc<Fs>, duty: &Duty<'_>, end: DaemonEnd) -> ! {
    inherited::close();
    let mut end = Some(end);
    let mut ready = |_: &Duty<'_>| {
        log_sink::turn_off();
        end.take().map_or(Ok(()), |end| end.ready().or_fail(|| "the caller is gone"))
    };
    let result = proc::redirect_stdio(None)
        .or_fail(|| "cannot let go of the terminal")
        .and_then(|()| daemon::run(fuse, fs, duty, &mut ready));
    let Err(error) = result else { std::process::exit(0) };
    if let Some(end) = end
        && let Err(e) = end.failed(&error.sentence())
    {
        log::debug!("the caller is gone: {e}");
    }
    std::process::exit(1)
}

/// Opens lowers, upper and work; none of them may contain the mountpoint.
fn open(options: &OverlayOptions, target: &Path) -> Result<FsSpec> {
    let open_dir =
        |path: &Path| open_path(path, OpenAs::Directory).or_fail(|| format!("cannot open {}", path.display()));
    check_not_around(options, target)?;
    let upper = match (&options.upper, &options.work) {
        (Some(upper), Some(work)) => {
            let dir = open_dir(upper)?;
            let ownership = match options.permissions {
                Permissions::Host => probe_ownership(std::os::fd::AsFd::as_fd(&dir)),
                Permissions::Override => Ownership::Override,
                Permissions::Squashed => Ownership::Fixed,
            };
            Some(UpperSpec {
                dir,
                work: Some(open_dir(work)?),
                ownership,
                is_volatile: options.is_volatile,
                is_view: false,
            })
        }
        _ => None,
    };
    let has_override = options.permissions != Permissions::Host
        || upper.as_ref().is_some_and(|upper| upper.ownership != Ownership::Native)
        || proc::euid() != 0;
    let form = HostForm {
        has_oci_names: true,
        has_override,
        is_plain: false,
        trusts_user_marks: !proc::is_real_root(),
        is_fixed: true,
    };
    let mut lowers: Vec<Arc<dyn Layer>> = Vec::new();
    for path in &options.lowers {
        let layer = DirLayer::open(open_dir(path)?, path.display().to_string(), form)
            .or_fail(|| format!("cannot open {}", path.display()))?;
        if let (Some(spec), Some(upper)) = (&upper, &options.upper) {
            check_separate(("lowerdir", path), &layer, ("upperdir", upper), spec.dir.as_fd())?;
        }
        if let (Some(UpperSpec { work: Some(fd), .. }), Some(work)) = (&upper, &options.work) {
            check_separate(("lowerdir", path), &layer, ("workdir", work), fd.as_fd())?;
        }
        lowers.push(Arc::new(layer));
    }
    if let (Some(UpperSpec { dir, work: Some(fd), .. }), Some(upper), Some(work)) =
        (&upper, &options.upper, &options.work)
    {
        let layer = DirLayer::open(dir.try_clone().or_fail(|| "cannot use the upperdir")?, String::new(), form)
            .or_fail(|| "cannot use the upperdir")?;
        check_separate(("upperdir", upper), &layer, ("workdir", work), fd.as_fd())?;
    }
    let root = BranchSpec {
        label: "overlay".to_owned(),
        base: Base::Merge { upper, lowers },
        is_read_only: options.is_read_only,
        is_shared: false,
    };
    Ok(FsSpec { root, mounts: Vec::new(), uids: options.uids.clone(), gids: options.gids.clone() })
}

/// Refuses a mountpoint inside of a directory that the mount shows or writes to: whoever walks into it there would wait
/// for himself.
fn check_not_around(options: &OverlayOptions, target: &Path) -> Result<()> {
    let what = || format!("cannot mount at {}", target.display());
    let place = Dir::from_fd(open_path(target, OpenAs::Path).or_fail(what)?).or_fail(what)?;
    let around: Vec<FileId> = place.ancestry().or_fail(what)?.split_off(1);
    let lowers = options.lowers.iter().map(|path| ("lowerdir", path));
    let others = [("upperdir", &options.upper), ("workdir", &options.work)];
    for (kind, path) in lowers.chain(others.iter().filter_map(|(kind, path)| Some((*kind, path.as_ref()?)))) {
        let cannot_open = || format!("cannot open {}", path.display());
        let dir = Dir::from_fd(open_path(path, OpenAs::Path).or_fail(cannot_open)?).or_fail(cannot_open)?;
        if around.contains(&dir.id()) {
            let what = format!("the mountpoint {} lies inside the {kind} {}", target.display(), path.display());
            return Err(EngineError::failed(what).advise("choose another mountpoint"));
        }
    }
    Ok(())
}

/// Refuses two directories of which one lies in the other: writes would land in a layer, or the user's files be taken
/// for staging.
fn check_separate(a: (&str, &Path), layer: &DirLayer, b: (&str, &Path), fd: BorrowedFd<'_>) -> Result<()> {
    let what = || format!("cannot compare {} with {}", a.1.display(), b.1.display());
    let other = fd.try_clone_to_owned().or_fail(what)?;
    let other = Dir::from_fd(other).or_fail(what)?;
    if crate::upper::overlaps(layer.root_dir(), &other).or_fail(what)? {
        let what = format!("{} {} and {} {} overlap", a.0, a.1.display(), b.0, b.1.display());
        return Err(EngineError::failed(what).advise("use separate directories"));
    }
    Ok(())
}

fn fuse_options(name: &str, options: &OverlayOptions) -> MountOptions {
    let is_root = proc::euid() == 0;
    let allow_other = is_root || host::is_allow_other_allowed();
    if !allow_other {
        tell(
            std::io::stderr(),
            &format!("{name}: mounted for this user alone: /etc/fuse.conf has no user_allow_other"),
        );
    }
    MountOptions {
        fsname: name.to_owned(),
        subtype: if name == FUSE_OVERLAYFS { FUSE_OVERLAYFS.to_owned() } else { "mlfs".to_owned() },
        allow_other,
        read_only: options.is_read_only,
        // fusermount3 refuses `suid` from an ordinary user.
        is_suid: is_root && !options.no_suid,
        is_dev: is_root && options.is_dev,
    }
}
