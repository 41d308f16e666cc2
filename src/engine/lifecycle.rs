// SPDX-License-Identifier: MIT OR Apache-2.0
//! The life of a container: created, mounted, stopped (or dead), mounted again, removed.
//!
//! Whoever changes a container's record or its mount holds its lock; the daemon takes it only at the end of its mount,
//! so nobody may hold it while waiting for a daemon to end. A record says `incomplete` until all is there.

use std::cell::OnceCell;
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::PidfdFlags;

use crate::fs::Fs;
use crate::fuse::{self, FuseMount, MountOptions, WITHOUT};
use crate::model::FsError;
use crate::store::container::{self, ContainerRecord, LOG, MountedRecord};
use crate::store::{Lock, Store, StoreError, Wait, timestamp};
use crate::sys::inherited;
use crate::sys::namespace::{enter_private, forbidden_by};
use crate::sys::proc::{self, DaemonEnd, Fork};
use crate::sys::signal;

use super::assemble::{self, Made};
use super::control::ControlSocket;
use super::daemon::{self, Duty, End, Outcome, Served};
use super::ending::{Discard, clear_dead, clear_incomplete, finish};
use super::load::Progress;
use super::mount::{self, MountRequest, Plan};
use super::state::{State, find, fsname, lock, state};
use super::{EngineError, OrFail, Result, host, log_sink};

/// A container that has just become usable.
#[derive(Clone, Debug)]
pub struct Usable {
    /// Its name.
    pub name: String,
    /// What the user should know.
    pub notices: Vec<String>,
}

/// Who serves, and whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Front {
    /// A daemon serves; the caller returns when the mount is usable.
    Daemon,
    /// The caller serves until the mount is gone.
    Foreground,
    /// The caller serves one command, in a mount namespace of their own.
    Command(Vec<OsString>),
}

/// Creates a container and mounts it. `tell` is called once it is usable, in the process that the user waits for.
pub fn mount(
    open_store: impl FnOnce() -> Result<Store>,
    request: &MountRequest,
    front: &Front,
    progress: &dyn Progress,
    tell: &mut dyn FnMut(&Usable) -> Result<()>,
) -> Result<Option<ExitStatus>> {
    let Plan { store, record, in_use } = mount::plan(open_store, request, progress)?;
    if let Err(error) = clear_incomplete(&store) {
        log::debug!("what a crash left cannot be cleared: {error}");
    }
    let lock = lock(&store, &record)?;
    if let Err(error) = mount::register(&store, &record) {
        lock.remove().or_fail(|| "cannot unlock")?;
        return Err(error);
    }
    drop(in_use);
    let mut made = Made::default();
    let mountpoint = request_mountpoint(&record)?;
    let result = make_upper(&store, &record, &mut made)
        .and_then(|()| bring_up(&store, record.clone(), lock, &mountpoint, front, First::Yes, &mut made, tell));
    if result.is_err() && !made.is_usable {
        take_back(&store, &record, &made);
    }
    result
}

/// Mounts a stopped or dead container again.
pub fn start(
    store: &Store,
    name: &str,
    mountpoint: Option<&Path>,
    front: &Front,
    tell: &mut dyn FnMut(&Usable) -> Result<()>,
) -> Result<()> {
    let record = find(store, name)?;
    let lock = lock(store, &record)?;
    let mut record = find(store, &record.id)?;
    if state(store, &record)? == State::Mounted {
        let place = record.mounted.map(|m| format!(" at {}", m.mountpoint)).unwrap_or_default();
        return Err(EngineError::failed(format!("{} is mounted already{place}", record.name)));
    }
    clear_dead(store, &mut record)?;
    let place = match (mountpoint, &record.mountpoint) {
        (Some(path), _) => path.to_owned(),
        (None, Some(path)) => PathBuf::from(path),
        (None, None) => {
            return Err(EngineError::failed("it was never mounted").advise("say where: start NAME MOUNTPOINT"));
        }
    };
    let place = mount::check_mountpoint(&place)?;
    let id = record.id.clone();
    let mut made = Made::default();
    let result = bring_up(store, record, lock, &place, front, First::No, &mut made, tell).map(drop);
    if result.is_err() && !made.is_usable {
        made.take_back_sources();
        // What was noted of the mount must not make the container a dead one.
        if let Err(error) = finish(store, &id, Discard::Never) {
            log::warn!("{error}");
        }
    }
    result
}

/// Gives a container another name, mounted or not: its daemon knows it by its id.
pub fn rename(store: &Store, old: &str, new: &str) -> Result<()> {
    mount::check_name(new)?;
    let record = find(store, old)?;
    let _lock = lock(store, &record)?;
    let record = find(store, &record.id)?;
    if record.name == new {
        return Err(EngineError::failed(format!("the container has the name {new} already")));
    }
    store.rename_container(&record, new).or_fail(|| format!("cannot rename {old}"))
}

/// Is this the first mount of the container?
#[derive(Clone, Copy, PartialEq, Eq)]
enum First {
    Yes,
    No,
}

fn request_mountpoint(record: &ContainerRecord) -> Result<PathBuf> {
    record.mountpoint.as_ref().map(PathBuf::from).ok_or_else(|| EngineError::failed("no mountpoint"))
}

/// Makes the directories of the upper.
fn make_upper(store: &Store, record: &ContainerRecord, made: &mut Made) -> Result<()> {
    if record.upper.is_none() {
        return container::create_upper(store, &record.id).or_fail(|| "cannot make the upper");
    }
    let (upper, work) = mount::work_of(store, record);
    match crate::upper::recover::check_work(&work) {
        Ok(()) | Err(FsError::NotFound) => {}
        Err(FsError::Exists | FsError::NotDir) => {
            let what = format!("{} is not a work directory of mlfs", work.display());
            return Err(EngineError::failed(what).advise("move it away, or choose another upper"));
        }
        Err(error) => {
            return Err(EngineError::failed(format!("cannot use the work directory {}", work.display())).because(error));
        }
    }
    for (dir, mode) in [(upper, 0o755), (work, 0o700)] {
        match fs::DirBuilder::new().mode(mode).create(&dir) {
            Ok(()) => made.dirs.push(dir),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(EngineError::failed(format!("cannot make {}", dir.display())).because(e)),
        }
    }
    Ok(())
}

/// Undoes a mount that failed: the container and the volumes that were made for it.
fn take_back(store: &Store, record: &ContainerRecord, made: &Made) {
    let told = |what: &str, result: std::result::Result<(), StoreError>| {
        if let Err(error) = result {
            log::warn!("cannot take back {what}: {error}");
        }
    };
    if store.container_dir(&record.id).exists() {
        told(&format!("the container {}", record.name), store.remove_container(&record.id));
    }
    // A daemon that failed is about to end and to let go of the lock.
    if let Ok(lock) = store.lock_container(&record.id, Wait::Block) {
        told("its lock", lock.remove());
    }
    let (_, work) = mount::work_of(store, record);
    for dir in &made.dirs {
        // What is in a work directory is ours; a named upper goes only as empty as it was made.
        let removed = if *dir == work { fs::remove_dir_all(dir) } else { fs::remove_dir(dir) };
        if let Err(error) = removed {
            log::warn!("cannot take back {}: {error}", dir.display());
        }
    }
    made.take_back_sources();
    for volume in &made.volumes {
        if let Err(error) = super::volumes::remove(store, volume) {
            log::warn!("cannot take back the volume {volume}: {error}");
        }
    }
}

/// Opens everything, mounts, and serves (in a daemon, or here).
#[expect(clippy::too_many_arguments, reason = "one step of `mount` and `start`, which differ in each of them")]
fn bring_up(
    store: &Store,
    mut record: ContainerRecord,
    lock: Lock,
    mountpoint: &Path,
    front: &Front,
    first: First,
    made: &mut Made,
    tell: &mut dyn FnMut(&Usable) -> Result<()>,
) -> Result<Option<ExitStatus>> {
    if let Front::Command(_) = front {
        enter_private().map_err(|e| {
            let remedy = match forbidden_by() {
                Some(sysctl) => {
                    format!("{sysctl} forbids user namespaces, which an ordinary user needs: let root change it")
                }
                None => "an ordinary user needs user namespaces; in a container its engine may forbid them".to_owned(),
            };
            EngineError::failed("cannot make a mount namespace").because(e).advise(format!("{remedy}; {WITHOUT}"))
        })?;
    }
    record.mountpoint = Some(host::path_text(mountpoint)?);
    let spec = assemble::open_for_mount(store, &record, first == First::Yes, made)?;
    let limit = proc::raise_nofile_limit();
    crate::sys::dir::set_cache_capacity(limit);
    // Asked before: building makes mount points.
    let needs_root = first == First::Yes && !record.read_only && is_upper_new(store, &record)?;
    let umask = proc::set_umask(0);
    let fs = Fs::new(spec).or_fail(|| format!("cannot mount {}", record.name));
    let fs = fs.and_then(|fs| {
        if needs_root {
            super::populate::copy_root(store, &record, &fs)?;
        }
        Ok(Arc::new(fs))
    });
    proc::set_umask(umask);
    let fs = fs?;
    let notices = notices(&fs, &record);
    let live = store.take_live_lock(&record.id).or_fail(|| format!("{} is mounted already", record.name))?;
    let claim = mount::claim_mountpoint(mountpoint)?;
    let fuse = fuse::mount(mountpoint, &mount_options(&record))
        .or_fail(|| format!("cannot mount at {}", mountpoint.display()))?;
    drop(claim);
    let served = match Served::find(mountpoint) {
        Ok(served) => served,
        Err(error) => {
            daemon::clear_mount(mountpoint, None);
            return Err(error);
        }
    };
    record.mounted = Some(mounted_record(&served, None)?);
    // Noted before anybody serves: if we are killed now, the next command finds what to clear.
    if let Err(error) = store.save_container(&record) {
        daemon::clear_mount(mountpoint, Some(served.dev));
        return Err(EngineError::failed("cannot write the container's record").because(error));
    }
    let usable = Usable { name: record.name.clone(), notices };
    let dev = served.dev;
    let is_usable = &mut made.is_usable;
    let mut told = || {
        *is_usable = true;
        tell(&usable)
    };
    let task = Task { store, record, served, fs, fuse, lock, live };
    let mut child: Option<Child> = None;
    let result = match front {
        Front::Foreground => task.serve(&mut |_| told(), None),
        Front::Command(command) => task.serve(
            &mut |duty| {
                child = Some(spawn(command, duty)?);
                told()
            },
            None,
        ),
        Front::Daemon => match proc::fork_daemon().or_fail(|| "cannot start the daemon")? {
            Fork::Parent(end) => {
                // Closes the parent's copies; what is mounted stays.
                drop(task);
                end.wait().map_err(EngineError::failed).and_then(|()| told())
            }
            Fork::Daemon(end) => be_daemon(task, end),
        },
    };
    if result.is_err() && !made.is_usable {
        daemon::clear_mount(mountpoint, Some(dev));
    }
    result?;
    child.map(|mut child| child.wait().or_fail(|| "cannot wait for the command")).transpose()
}

/// Starts the command of a mount that is served for it alone.
fn spawn(command: &[OsString], duty: &Duty<'_>) -> Result<Child> {
    let Some((program, args)) = command.split_first() else {
        return Err(EngineError::usage("there is no command to run"));
    };
    // Nobody uses the mount yet, so nothing is made in it under this mask.
    let own = proc::set_umask(inherited::umask());
    let child = signal::spawn_with_defaults(Command::new(program).args(args));
    proc::set_umask(own);
    let child = child.map_err(|e| EngineError::no_command(format!("cannot run {}", program.to_string_lossy()), e))?;
    let process = rustix::process::pidfd_open(rustix::process::Pid::from_child(&child), PidfdFlags::empty())
        .map_err(std::io::Error::from)
        .or_fail(|| "cannot watch the command")?;
    if duty.command.set(process).is_err() {
        log::error!("there is a command already");
    }
    Ok(child)
}

/// A new upper has the root directory of whoever made it: it is to get what the root of the layers has. One with content
/// stays as it is.
fn is_upper_new(store: &Store, record: &ContainerRecord) -> Result<bool> {
    let (upper, _) = mount::work_of(store, record);
    Ok(fs::read_dir(&upper).or_fail(|| "cannot look at the upper")?.next().is_none())
}

/// The life of a daemon; it does not return to the command line. The caller takes everything back if it fails early.
fn be_daemon(task: Task<'_>, end: DaemonEnd) -> ! {
    inherited::close();
    let log = task.store.container_dir(&task.record.id).join(LOG);
    let mut end = Some(end);
    let mut ready = |_: &Duty<'_>| end.take().map_or(Ok(()), |end| end.ready().or_fail(|| "the caller is gone"));
    let result = task.serve(&mut ready, Some(&log));
    let Err(error) = result else { std::process::exit(0) };
    log::error!("{error}");
    if let Some(end) = end
        && let Err(e) = end.failed(&error.sentence())
    {
        log::error!("the caller is gone: {e}");
    }
    std::process::exit(1)
}

fn mount_options(record: &ContainerRecord) -> MountOptions {
    MountOptions {
        fsname: fsname(record),
        subtype: "mlfs".to_owned(),
        allow_other: record.allow_other,
        read_only: false,
        is_suid: record.suid,
        is_dev: record.dev,
    }
}

/// What a user should know about a mount that works otherwise than he may expect.
fn notices(fs: &Fs, record: &ContainerRecord) -> Vec<String> {
    let mut notices = Vec::new();
    let caller = host::caller();
    if caller.0 != 0
        && let Ok((root, _)) = fs.getattr(crate::model::ids::NodeId::ROOT)
        && root.uid == 0
        && !record.read_only
    {
        notices.push("the files of this image belong to root; `--owner me` makes them yours to write".to_owned());
    }
    notices
}

/// What a record tells of a mount that this process makes or serves.
fn mounted_record(served: &Served, socket: Option<&ControlSocket>) -> Result<MountedRecord> {
    Ok(MountedRecord {
        mountpoint: host::path_text(&served.target)?,
        dev: served.dev,
        pid: std::process::id(),
        boot_id: host::boot_id()?,
        host: proc::host_name(),
        namespace: host::mount_namespace(),
        socket: socket.and_then(|s| s.path().to_str().map(str::to_owned)),
        since: timestamp::now(),
    })
}

/// A mount that is about to be served.
struct Task<'a> {
    store: &'a Store,
    record: ContainerRecord,
    served: Served,
    fs: Arc<Fs>,
    fuse: FuseMount,
    lock: Lock,
    live: File,
}

impl Task<'_> {
    /// Serves until the mount is gone, then brings the record up to date. `ready` is called once it is usable.
    fn serve(mut self, ready: &mut dyn FnMut(&Duty<'_>) -> Result<()>, log: Option<&Path>) -> Result<()> {
        if let Some(log) = log {
            proc::redirect_stdio(None).or_fail(|| "cannot let go of the terminal")?;
            log_sink::turn_to_file(log, log_sink::Follow::Stdio).or_fail(|| "cannot open the log")?;
        }
        let socket = match ControlSocket::bind(&self.record.id) {
            Ok(socket) => Some(socket),
            Err(error) => {
                log::warn!("without a control socket, only umount(8) and signals end this mount: {error}");
                None
            }
        };
        self.record.mounted = Some(mounted_record(&self.served, socket.as_ref())?);
        self.record.incomplete = false;
        self.store.save_container(&self.record).or_fail(|| "cannot write the container's record")?;
        let umask = proc::set_umask(0);
        let duty = Duty {
            served: self.served,
            socket: socket.as_ref(),
            stop_timeout: Duration::from_millis(self.record.stop_timeout_ms),
            io: self.record.io,
            id: self.record.id.clone(),
            command: OnceCell::new(),
        };
        let mut lock = Some(self.lock);
        let mut usable = |duty: &Duty<'_>| {
            // From now on others may wait for this daemon, and it must not keep them from the record.
            drop(lock.take());
            log::info!("mounted");
            ready(duty)
        };
        let (end, outcome) = daemon::run(self.fuse, self.fs, &duty, &mut usable)?;
        proc::set_umask(umask);
        log::info!("unmounted ({end:?})");
        let was_cut = end == End::Unmounted && is_left(&duty.served, &self.record);
        if let Some(socket) = socket {
            socket.remove();
        }
        let discard = if outcome == Outcome::Clean && !was_cut { Discard::AsRecorded } else { Discard::Never };
        let finished = finish(self.store, &self.record.id, discard);
        drop(self.live);
        finished
    }
}

/// Is the mount still there although its session has ended (the connection was aborted)? Then that was no end that
/// anybody asked for. What is left is detached; its source tells it from a mount that others have made there since.
fn is_left(served: &Served, record: &ContainerRecord) -> bool {
    let found = crate::sys::mount::mount_at(&served.target).ok().flatten();
    if !found.is_some_and(|m| m.dev == served.dev && m.source == *fsname(record)) {
        return false;
    }
    log::error!("the connection was cut while mounted: nothing is discarded");
    daemon::clear_mount(&served.target, Some(served.dev));
    true
}
