// SPDX-License-Identifier: MIT OR Apache-2.0
//! The life of a container: created, mounted, stopped (or dead), mounted again, removed.
//!
//! Whoever changes a container's record or its mount holds its lock; the daemon takes it only at the end of its mount,
//! so nobody may hold it while waiting for a daemon to end. A record says `incomplete` until all is there.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::PidfdFlags;

use crate::fs::Fs;
use crate::fuse::{self, FuseMount, MountOptions};
use crate::store::container::{self, ContainerRecord, LIVE, LOG, MountedRecord};
use crate::store::{Lock, Store, StoreError, Wait, timestamp};
use crate::sys::mount::{self as sys_mount, Unmount};
use crate::sys::proc::{self, DaemonEnd, Fork};

use super::assemble::{self, Made};
use super::control::{self, Answer, ControlSocket, Request};
use super::daemon::{self, Duty, Outcome, Served};
use super::mount::{self, MountRequest, Plan};
use super::{EngineError, OrFail, Result, host, log_sink};

/// What a container is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Never mounted.
    Created,
    /// Mounted: its daemon lives.
    Mounted,
    /// Unmounted.
    Stopped,
    /// Its daemon died without unmounting.
    Dead,
}

impl State {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            State::Created => "created",
            State::Mounted => "mounted",
            State::Stopped => "stopped",
            State::Dead => "dead",
        }
    }
}

/// What a container is doing now.
pub fn state(store: &Store, record: &ContainerRecord) -> Result<State> {
    let is_live = store.is_container_live(&record.id).or_fail(|| format!("cannot look at {}", record.name))?;
    Ok(match (is_live, &record.mounted, &record.finished) {
        (true, ..) => State::Mounted,
        (false, Some(_), _) => State::Dead,
        (false, None, Some(_)) => State::Stopped,
        (false, None, None) => State::Created,
    })
}

/// A container that has just become usable.
#[derive(Clone, Debug)]
pub struct Usable {
    /// Its name.
    pub name: String,
    /// What the user should know.
    pub notices: Vec<String>,
}

/// Whether the process that mounts also serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Front {
    /// A daemon serves; the caller returns when the mount is usable.
    Daemon,
    /// The caller serves until the mount is gone.
    Foreground,
}

/// Creates a container and mounts it. `tell` is called once it is usable, in the process that the user waits for.
pub fn mount(
    open_store: impl FnOnce() -> Result<Store>,
    request: &MountRequest,
    tell: &mut dyn FnMut(&Usable) -> Result<()>,
) -> Result<()> {
    let Plan { store, record, in_use } = mount::plan(open_store, request)?;
    if let Err(error) = store.clear_incomplete_containers() {
        log::debug!("what a crash left cannot be cleared: {error}");
    }
    let lock = lock_container(&store, &record)?;
    if let Err(error) = mount::register(&store, &record) {
        lock.remove().or_fail(|| "cannot unlock")?;
        return Err(error);
    }
    drop(in_use);
    let mut made = Made::default();
    let front = if request.settings.foreground == Some(true) { Front::Foreground } else { Front::Daemon };
    let mountpoint = request_mountpoint(&record)?;
    let result = make_upper(&store, &record)
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
    front: Front,
    tell: &mut dyn FnMut(&Usable) -> Result<()>,
) -> Result<()> {
    let record = find(store, name)?;
    let lock = lock_container(store, &record)?;
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
    bring_up(store, record, lock, &place, front, First::No, &mut Made::default(), tell)
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

fn lock_container(store: &Store, record: &ContainerRecord) -> Result<Lock> {
    store.lock_container(&record.id, Wait::Block).or_fail(|| format!("cannot lock the container {}", record.name))
}

/// The container with this name or id.
pub fn find(store: &Store, name: &str) -> Result<ContainerRecord> {
    match store.find_container(name) {
        Err(StoreError::NotFound { .. }) => {
            Err(EngineError::failed(format!("no container {name}")).advise("`mlfs ps -a` lists them"))
        }
        other => other.or_fail(|| format!("cannot find the container {name}")),
    }
}

/// Makes the directories of the upper.
fn make_upper(store: &Store, record: &ContainerRecord) -> Result<()> {
    if record.upper.is_none() {
        return container::create_upper(store, &record.id).or_fail(|| "cannot make the upper");
    }
    let (upper, work) = mount::work_of(store, record);
    for (dir, mode) in [(upper, 0o755), (work, 0o700)] {
        match fs::DirBuilder::new().mode(mode).create(&dir) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(EngineError::failed(format!("cannot make {}", dir.display())).because(e));
            }
            _ => {}
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
    front: Front,
    first: First,
    made: &mut Made,
    tell: &mut dyn FnMut(&Usable) -> Result<()>,
) -> Result<()> {
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
    let fuse = fuse::mount(mountpoint, &mount_options(&record))
        .or_fail(|| format!("cannot mount at {}", mountpoint.display()))?;
    let served = match Served::find(mountpoint) {
        Ok(served) => served,
        Err(error) => {
            daemon::clear_mount(mountpoint, None);
            return Err(error);
        }
    };
    let usable = Usable { name: record.name.clone(), notices };
    let dev = served.dev;
    let is_usable = &mut made.is_usable;
    let mut told = || {
        *is_usable = true;
        tell(&usable)
    };
    let task = Task { store, record, served, fs, fuse, lock, live };
    let result = match front {
        Front::Foreground => task.serve(&mut told, None),
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
    result
}

/// A new upper has the root directory of whoever made it: it is to get what the root of the layers has. One with content
/// stays as it is.
fn is_upper_new(store: &Store, record: &ContainerRecord) -> Result<bool> {
    let (upper, _) = mount::work_of(store, record);
    Ok(fs::read_dir(&upper).or_fail(|| "cannot look at the upper")?.next().is_none())
}

/// The life of a daemon; it does not return to the command line. The caller takes everything back if it fails early.
fn be_daemon(task: Task<'_>, end: DaemonEnd) -> ! {
    let log = task.store.container_dir(&task.record.id).join(LOG);
    let mut end = Some(end);
    let mut ready = || end.take().map_or(Ok(()), |end| end.ready().or_fail(|| "the caller is gone"));
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

/// The source that `mount` shows: it names the container, whatever it is called later.
fn fsname(record: &ContainerRecord) -> String {
    format!("mlfs-{}", record.id.chars().take(12).collect::<String>())
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
    fn serve(mut self, ready: &mut dyn FnMut() -> Result<()>, log: Option<&Path>) -> Result<()> {
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
        let since = timestamp::now();
        self.record.mounted = Some(MountedRecord {
            mountpoint: host::path_text(&self.served.target)?,
            dev: self.served.dev,
            pid: std::process::id(),
            boot_id: host::boot_id()?,
            host: proc::host_name(),
            namespace: host::mount_namespace(),
            socket: socket.as_ref().and_then(|s| s.path().to_str().map(str::to_owned)),
            since,
        });
        self.record.incomplete = false;
        self.store.save_container(&self.record).or_fail(|| "cannot write the container's record")?;
        let umask = proc::set_umask(0);
        let duty = Duty {
            served: self.served,
            socket: socket.as_ref(),
            stop_timeout: Duration::from_millis(self.record.stop_timeout_ms),
            id: self.record.id.clone(),
        };
        let mut lock = Some(self.lock);
        let mut usable = || {
            // From now on others may wait for this daemon, and it must not keep them from the record.
            drop(lock.take());
            log::info!("mounted");
            ready()
        };
        let (end, outcome) = daemon::run(self.fuse, self.fs, &duty, &mut usable)?;
        proc::set_umask(umask);
        log::info!("unmounted ({end:?})");
        if let Some(socket) = socket {
            socket.remove();
        }
        let discard = if outcome == Outcome::Clean { Discard::AsRecorded } else { Discard::Never };
        let finished = finish(self.store, &self.record.id, discard);
        drop(self.live);
        finished
    }
}

/// Whether the end of a mount may discard a `--rm` container.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Discard {
    /// If the record says so.
    AsRecorded,
    /// Not after a failure: what is there may be all that is left of somebody's work.
    Never,
}

/// The end of a mount: the record is brought up to date, and `--rm` carried out.
fn finish(store: &Store, id: &str, discard: Discard) -> Result<()> {
    let lock = store.lock_container(id, Wait::Block).or_fail(|| "cannot lock the container")?;
    let Some(mut record) = store.load_container(id).or_fail(|| "cannot read the container's record")? else {
        return lock.remove().or_fail(|| "cannot remove the container's lock");
    };
    record.mounted = None;
    record.finished = Some(timestamp::now());
    store.save_container(&record).or_fail(|| "cannot write the container's record")?;
    if record.rm && discard == Discard::AsRecorded {
        discard_container(store, &record, WithVolumes::Yes)?;
        lock.remove().or_fail(|| "cannot remove the container's lock")?;
    }
    Ok(())
}

/// Whether anonymous volumes go with their container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WithVolumes {
    /// They go.
    Yes,
    /// They stay.
    No,
}

/// Removes a container that is not mounted: its folder with the upper, its work directory beside a named upper (never
/// the named upper itself), its anonymous volumes.
fn discard_container(store: &Store, record: &ContainerRecord, volumes: WithVolumes) -> Result<()> {
    let (_, work) = mount::work_of(store, record);
    if record.upper.is_some()
        && let Err(e) = fs::remove_dir_all(&work)
        && e.kind() != std::io::ErrorKind::NotFound
    {
        return Err(EngineError::failed(format!("cannot remove the work directory {}", work.display())).because(e));
    }
    store.remove_container(&record.id).or_fail(|| format!("cannot remove the container {}", record.name))?;
    if volumes == WithVolumes::Yes {
        for volume in record.anonymous_volumes() {
            if let Err(error) = super::volumes::remove(store, volume) {
                log::warn!("cannot remove the anonymous volume {volume}: {error}");
            }
        }
    }
    Ok(())
}

/// Clears the mount of a container whose daemon died. Detaches only what is provably that mount. Call it under the
/// container's lock.
fn clear_dead(store: &Store, record: &mut ContainerRecord) -> Result<()> {
    let Some(mounted) = record.mounted.clone() else { return Ok(()) };
    if mounted.host != proc::host_name() && mounted.boot_id != host::boot_id()? {
        return Err(EngineError::failed(format!("{} was mounted on the host {}", record.name, mounted.host))
            .advise("unmount it there"));
    }
    let place = Path::new(&mounted.mountpoint);
    let found = sys_mount::mount_at(place).or_fail(|| "cannot list the mounts")?;
    let is_ours = mounted.boot_id == host::boot_id()?
        && found.is_some_and(|m| m.dev == mounted.dev && m.kind == "fuse.mlfs" && m.source == *fsname(record));
    if is_ours {
        sys_mount::unmount(place, Unmount::Lazy)
            .or_fail(|| format!("cannot clear the dead mount at {}", mounted.mountpoint))?;
    }
    if let Some(socket) = &mounted.socket
        && let Err(e) = fs::remove_file(socket)
    {
        log::debug!("cannot remove {socket}: {e}");
    }
    record.mounted = None;
    record.finished = Some(timestamp::now());
    store.save_container(record).or_fail(|| "cannot write the container's record")
}

/// How `umount` goes about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Only when idle.
    WhenIdle,
    /// Detach now, files stay open.
    Lazy,
}

/// Unmounts a container, by name or mountpoint. When it returns, no mount and (unless lazy) no process is left.
pub fn unmount(store: &Store, name: &str, how: How) -> Result<()> {
    let record = match store.find_container(name) {
        Ok(record) => record,
        Err(StoreError::NotFound { .. }) => match find_by_mountpoint(store, Path::new(name))? {
            Some(record) => record,
            None => return unmount_stranger(name, how),
        },
        Err(error) => return Err(EngineError::failed(format!("cannot find {name}")).because(error)),
    };
    match state(store, &record)? {
        State::Mounted => unmount_live(store, &record, how),
        State::Dead => {
            let _lock = lock_container(store, &record)?;
            let mut record = find(store, &record.id)?;
            if state(store, &record)? == State::Dead { clear_dead(store, &mut record) } else { Ok(()) }
        }
        State::Created | State::Stopped => Err(EngineError::failed(format!("{} is not mounted", record.name))),
    }
}

/// The container that is (or was, when its daemon died) mounted at a place.
pub fn find_by_mountpoint(store: &Store, path: &Path) -> Result<Option<ContainerRecord>> {
    let place = mount::place_of(path)?;
    let records = store.load_containers().or_fail(|| "cannot list the containers")?;
    let is_there = |r: &ContainerRecord| r.mounted.as_ref().is_some_and(|m| Path::new(&m.mountpoint) == place);
    // A dead one may have been at the place before the one that lives there.
    let mut dead = None;
    for record in records.into_iter().filter(is_there) {
        if state(store, &record)? == State::Mounted {
            return Ok(Some(record));
        }
        dead = Some(record);
    }
    Ok(dead)
}

/// A mount of mlfs without a container: `mlfs overlay`.
fn unmount_stranger(name: &str, how: How) -> Result<()> {
    let place = mount::place_of(Path::new(name))?;
    let found = sys_mount::mount_at(&place).or_fail(|| "cannot list the mounts")?;
    if found.is_none_or(|m| m.kind != "fuse.mlfs") {
        return Err(EngineError::failed(format!("no container {name}, and no mlfs mount at {}", place.display()))
            .advise("`mlfs ps -a` lists the containers"));
    }
    let how = if how == How::Lazy { Unmount::Lazy } else { Unmount::WhenIdle };
    sys_mount::unmount(&place, how).or_fail(|| format!("cannot unmount {}", place.display()))
}

fn unmount_live(store: &Store, record: &ContainerRecord, how: How) -> Result<()> {
    // Opened first: with --rm the file is gone when the daemon ends, but its lock can still be waited for.
    let live = open_live(store, record)?;
    let process = open_process(record);
    let request = if how == How::Lazy { Request::Detach } else { Request::Unmount };
    match ask(record, &request) {
        Ok(Answer::Done) => {}
        Ok(Answer::Busy) => return Err(busy(record)),
        Ok(Answer::Failed(why)) => return Err(EngineError::failed(format!("cannot unmount {}: {why}", record.name))),
        Ok(answer @ Answer::Status { .. }) => {
            return Err(EngineError::failed(format!("{} answered {answer:?}", record.name)));
        }
        // Just ended, or without a socket: by the path then, if it is provably this mount.
        Err(error) => {
            log::debug!("the control socket of {} does not answer: {error}", record.name);
            unmount_by_path(store, record, how)?;
        }
    }
    let patience = if how == How::Lazy { Some(Duration::from_secs(1)) } else { None };
    wait_for_end(&live, patience)?;
    wait_for_process(process.as_ref());
    Ok(())
}

/// The daemon's process, if it is one that we can see and that runs our program.
fn open_process(record: &ContainerRecord) -> Option<OwnedFd> {
    let pid = i32::try_from(record.mounted.as_ref()?.pid).ok()?;
    let process = rustix::process::pidfd_open(rustix::process::Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    // Looked at after opening: it is this process then, and not a later one with its number.
    let command = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    let own = fs::read_to_string("/proc/self/comm").ok()?;
    (command == own).then_some(process)
}

/// Waits until the process has ended: the liveness lock is free a moment before.
fn wait_for_process(process: Option<&OwnedFd>) {
    let Some(process) = process else { return };
    let mut fds = [PollFd::new(process, PollFlags::IN)];
    if let Err(error) = poll(&mut fds, Some(&Timespec { tv_sec: 5, tv_nsec: 0 })) {
        log::debug!("cannot wait for the daemon's process: {error}");
    }
}

fn open_live(store: &Store, record: &ContainerRecord) -> Result<Option<File>> {
    match File::open(store.container_dir(&record.id).join(LIVE)) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(EngineError::failed(format!("cannot look at {}", record.name)).because(e)),
    }
}

fn ask(record: &ContainerRecord, request: &Request) -> std::io::Result<Answer> {
    let socket = record.mounted.as_ref().and_then(|m| m.socket.as_deref());
    let socket = socket.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotFound))?;
    control::ask(Path::new(socket), request, Duration::from_secs(30))
}

fn unmount_by_path(store: &Store, record: &ContainerRecord, how: How) -> Result<()> {
    let Some(mounted) = &record.mounted else { return Ok(()) };
    let place = Path::new(&mounted.mountpoint);
    if !daemon::is_mounted(place, mounted.dev).or_fail(|| "cannot list the mounts")? {
        if !store.is_container_live(&record.id).or_fail(|| "cannot look at the container")? {
            return Ok(());
        }
        return Err(EngineError::failed(format!(
            "the daemon of {} (pid {}) does not answer, and its mount is not in this mount namespace",
            record.name, mounted.pid
        )));
    }
    match sys_mount::unmount(place, if how == How::Lazy { Unmount::Lazy } else { Unmount::WhenIdle }) {
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::BUSY.raw_os_error()) => Err(busy(record)),
        other => other.or_fail(|| format!("cannot unmount {}", mounted.mountpoint)),
    }
}

/// Waits until the daemon's liveness lock is free.
fn wait_for_end(live: &Option<File>, patience: Option<Duration>) -> Result<()> {
    let Some(live) = live else { return Ok(()) };
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        match rustix::fs::flock(live, rustix::fs::FlockOperation::NonBlockingLockShared) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => {}
            Err(e) => return Err(EngineError::failed("cannot wait for the daemon").because(std::io::Error::from(e))),
        }
        if patience.is_some_and(|patience| start.elapsed() > patience) {
            return Ok(());
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// The error of a busy mount, with the processes that use it.
fn busy(record: &ContainerRecord) -> EngineError {
    let users = record.mounted.as_ref().map(super::users::find).unwrap_or_default();
    let lazily = format!("detach it with `mlfs umount -l {}`", record.name);
    if users.is_empty() {
        return EngineError::failed(format!("{} is busy", record.name))
            .advise(format!("close what is open in it, or {lazily}"));
    }
    EngineError::failed(format!("{} is busy: in use by {}", record.name, users.join(", ")))
        .advise(format!("end them, or {lazily}"))
}

/// How `rm` goes about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoveOptions {
    /// Unmount a mounted one, whatever is open.
    pub is_forced: bool,
    /// Anonymous volumes too.
    pub volumes: WithVolumes,
}

/// Removes a container with its upper.
pub fn remove(store: &Store, name: &str, options: RemoveOptions) -> Result<()> {
    let record = find(store, name)?;
    if state(store, &record)? == State::Mounted {
        if !options.is_forced {
            return Err(EngineError::failed(format!("{} is mounted", record.name))
                .advise(format!("unmount it first with `mlfs umount {}`, or use rm -f", record.name)));
        }
        let live = open_live(store, &record)?;
        let process = open_process(&record);
        match ask(&record, &Request::Kill) {
            Ok(Answer::Done) => {}
            Ok(other) => return Err(EngineError::failed(format!("cannot unmount {}: {other:?}", record.name))),
            Err(error) => {
                log::debug!("the control socket of {} does not answer: {error}", record.name);
                unmount_by_path(store, &record, How::Lazy)?;
            }
        }
        wait_for_end(&live, None)?;
        wait_for_process(process.as_ref());
    }
    let lock = lock_container(store, &record)?;
    // `--rm` may have been quicker.
    let Some(mut record) = store.load_container(&record.id).or_fail(|| "cannot read the container's record")? else {
        return lock.remove().or_fail(|| "cannot remove the container's lock");
    };
    if state(store, &record)? == State::Mounted {
        return Err(EngineError::failed(format!("{} has been mounted again", record.name)));
    }
    clear_dead(store, &mut record)?;
    discard_container(store, &record, options.volumes)?;
    lock.remove().or_fail(|| "cannot remove the container's lock")
}
