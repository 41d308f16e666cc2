// SPDX-License-Identifier: MIT OR Apache-2.0
//! The ends of mounts and of containers: unmounting, clearing what a dead daemon left, discarding, removing.
//!
//! Nobody holds a container's lock while waiting for its daemon: the daemon takes it to bring the record up to date.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::PidfdFlags;

use crate::store::container::{ContainerRecord, LIVE};
use crate::store::{Mode, Store, StoreError, Wait, timestamp};
use crate::sys::lock as sys_lock;
use crate::sys::mount::{self as sys_mount, MountInfo, Standing, Unmount};

use super::control::{self, Answer, Request};
use super::state::{State, find, find_by_mountpoint, fsname, fsname_of, lock, state};
use super::{EngineError, OrFail, Result, daemon, host, mount};

/// How long a daemon that was told to end at once may take, before it is killed.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// Whether the end of a mount may discard a `--rm` container.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Discard {
    /// If the record says so.
    AsRecorded,
    /// Not after a failure: what is there may be all that is left of somebody's work.
    Never,
}

/// The end of a mount: the record is brought up to date, and `--rm` carried out.
pub fn finish(store: &Store, id: &str, discard: Discard) -> Result<()> {
    let lock = store.lock_container(id, Wait::Block).or_fail(|| "cannot lock the container")?;
    let Some(mut record) = store.load_container(id).or_fail(|| "cannot read the container's record")? else {
        return lock.remove().or_fail(|| "cannot remove the container's lock");
    };
    // Discarding needs no record: on a full disk there may be no room for one.
    if record.rm && discard == Discard::AsRecorded {
        discard_container(store, &record, WithVolumes::Yes)?;
        return lock.remove().or_fail(|| "cannot remove the container's lock");
    }
    record.mounted = None;
    record.finished = Some(timestamp::now());
    store.save_container(&record).or_fail(|| "cannot write the container's record")
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
    // Something foreign, or in use by another mount of the same upper, is not ours to remove.
    if record.upper.is_some()
        && let Err(error) = crate::upper::recover::discard_work(&work)
    {
        log::warn!("the work directory {} stays: {error}", work.display());
    }
    store.remove_container(&record.id).or_fail(|| format!("cannot remove the container {}", record.name))?;
    if volumes == WithVolumes::Yes {
        for volume in record.anonymous_volumes() {
            // One whose container was never mounted may not have been made.
            if matches!(store.load_volume(volume), Ok(None)) {
                continue;
            }
            if let Err(error) = super::volumes::remove(store, volume) {
                log::warn!("cannot remove the anonymous volume {volume}: {error}");
            }
        }
    }
    Ok(())
}

/// Clears the mount of a container whose daemon died, and says so in its record. Call it under the container's lock.
pub fn clear_dead(store: &Store, record: &mut ContainerRecord) -> Result<()> {
    if record.mounted.is_none() {
        return Ok(());
    }
    detach_dead(record)?;
    record.mounted = None;
    record.finished = Some(timestamp::now());
    store.save_container(record).or_fail(|| "cannot write the container's record")
}

/// Detaches the mount of a container whose daemon died: its liveness lock is free, wherever it ran. Only what is
/// provably that mount goes: of this boot, with its device and source. Nothing is written.
fn detach_dead(record: &ContainerRecord) -> Result<()> {
    let Some(mounted) = &record.mounted else { return Ok(()) };
    let place = Path::new(&mounted.mountpoint);
    let is_this_boot = mounted.boot_id == host::boot_id()?;
    let is_ours = |m: &MountInfo| m.dev == mounted.dev && m.kind == "fuse.mlfs" && m.source == *fsname(record);
    match Standing::find(place, is_ours).or_fail(|| "cannot list the mounts")? {
        Standing::OnTop if is_this_boot => sys_mount::unmount(place, Unmount::Lazy)
            .or_fail(|| format!("cannot clear the dead mount at {}", mounted.mountpoint))?,
        Standing::Covered if is_this_boot => {
            return Err(EngineError::failed(format!("cannot clear the dead mount of {}", record.name))
                .because(daemon::covered(place)));
        }
        _ => {}
    }
    if let Some(socket) = &mounted.socket {
        control::remove_socket_of(&record.id, Path::new(socket));
    }
    Ok(())
}

/// Removes containers whose making was cut short by a crash, with their mounts and anonymous volumes.
pub fn clear_incomplete(store: &Store) -> Result<()> {
    for record in store.list_containers().or_fail(|| "cannot list the containers")?.whole {
        if !record.incomplete {
            continue;
        }
        // Its maker holds the lock while it lives.
        let lock = match store.lock_container(&record.id, Wait::Try) {
            Err(StoreError::Locked { .. }) => continue,
            other => other.or_fail(|| "cannot lock a container")?,
        };
        match store.load_container(&record.id).or_fail(|| "cannot read a container's record")? {
            Some(record) if record.incomplete => {
                detach_dead(&record)?;
                discard_container(store, &record, WithVolumes::Yes)?;
                lock.remove().or_fail(|| "cannot remove a container's lock")?;
            }
            // Finished, or gone, in between.
            _ => {}
        }
    }
    store.clear_empty_containers().or_fail(|| "cannot clear folders of containers")?;
    store.clear_leftovers().or_fail(|| "cannot clear what dead processes left")
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
        State::Mounted => match settled(store, &record)? {
            Some((record, State::Mounted)) => unmount_live(store, &record, how),
            // It has ended by itself meanwhile.
            _ => Ok(()),
        },
        State::Dead => {
            let _lock = lock(store, &record)?;
            let mut record = find(store, &record.id)?;
            if state(store, &record)? == State::Dead { clear_dead(store, &mut record) } else { Ok(()) }
        }
        State::Created | State::Stopped => Err(EngineError::failed(format!("{} is not mounted", record.name))),
    }
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

/// The record and the state of a container that was just seen mounted; `None` if it is gone. A start that is under way
/// holds the lock until its daemon can be asked, and the record names it.
fn settled(store: &Store, record: &ContainerRecord) -> Result<Option<(ContainerRecord, State)>> {
    let lock = lock(store, record)?;
    match store.load_container(&record.id).or_fail(|| "cannot read the container's record")? {
        None => lock.remove().or_fail(|| "cannot remove the container's lock").map(|()| None),
        Some(record) => state(store, &record).map(|state| Some((record, state))),
    }
}

fn unmount_live(store: &Store, record: &ContainerRecord, how: How) -> Result<()> {
    let asked = AskedDaemon::find(store, record)?;
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
    // Detached is detached: the process ends with the last file.
    let patience = (how == How::Lazy).then_some(Duration::from_secs(1));
    if asked.wait(patience)? {
        asked.wait_for_process();
    }
    let now = store.load_container(&record.id).or_fail(|| "cannot read the container's record")?;
    if how == How::WhenIdle && now.is_some_and(|now| now.mounted == record.mounted) {
        log::warn!("the record of {} could not be brought up to date: the container is shown as dead", record.name);
    }
    Ok(())
}

/// The daemon that is asked to end. Another one may serve the container a moment later: its life is not waited for.
struct AskedDaemon<'a> {
    store: &'a Store,
    record: &'a ContainerRecord,
    /// Opened first: with --rm the file is gone when the daemon ends, but its lock can still be waited for.
    live: Option<File>,
    process: Option<OwnedFd>,
}

impl<'a> AskedDaemon<'a> {
    fn find(store: &'a Store, record: &'a ContainerRecord) -> Result<Self> {
        let live = match File::open(store.container_dir(&record.id).join(LIVE)) {
            Ok(file) => Some(file),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            Err(e) => return Err(EngineError::failed(format!("cannot look at {}", record.name)).because(e)),
        };
        Ok(AskedDaemon { store, record, live, process: open_process(record) })
    }

    /// Has it ended? Its lock is free, its process is gone, or the record tells of a mount after its own.
    fn is_gone(&self) -> Result<bool> {
        let Some(live) = &self.live else { return Ok(true) };
        let what = || "cannot wait for the daemon";
        let kind = self.store.lock_kind();
        if sys_lock::acquire(live, kind, Mode::Shared, Wait::Try).map_err(std::io::Error::from).or_fail(what)? {
            // Looking must not keep a successor from starting.
            sys_lock::release(live, kind).map_err(std::io::Error::from).or_fail(what)?;
            return Ok(true);
        }
        if self.has_process_ended(Duration::ZERO) {
            return Ok(true);
        }
        let now = self.store.load_container(&self.record.id).or_fail(|| "cannot read the container's record")?;
        Ok(match (now.and_then(|now| now.mounted), &self.record.mounted) {
            (Some(now), Some(asked)) => {
                (now.pid, &now.since, &now.boot_id, &now.host) != (asked.pid, &asked.since, &asked.boot_id, &asked.host)
            }
            // Its own last words: it holds the lock for a moment more.
            _ => false,
        })
    }

    /// Waits until it has ended, or the patience has. Has it ended?
    fn wait(&self, patience: Option<Duration>) -> Result<bool> {
        let start = Instant::now();
        let mut pause = Duration::from_millis(1);
        while !self.is_gone()? {
            if patience.is_some_and(|patience| start.elapsed() > patience) {
                return Ok(false);
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        }
        Ok(true)
    }

    /// Waits for the process too: the liveness lock is free a moment before.
    fn wait_for_process(&self) {
        self.has_process_ended(Duration::from_secs(5));
    }

    /// Has the process, one that we can see, ended within this time?
    fn has_process_ended(&self, patience: Duration) -> bool {
        let Some(process) = &self.process else { return false };
        let mut fds = [PollFd::new(process, PollFlags::IN)];
        let timeout = Timespec { tv_sec: patience.as_secs().cast_signed(), tv_nsec: patience.subsec_nanos().into() };
        match poll(&mut fds, Some(&timeout)) {
            Ok(count) => count > 0,
            Err(error) => {
                log::debug!("cannot wait for the daemon's process: {error}");
                false
            }
        }
    }

    /// Ends the process, and no successor of it.
    fn kill(&self) {
        if let Some(process) = &self.process
            && let Err(e) = rustix::process::pidfd_send_signal(process, rustix::process::Signal::KILL)
        {
            log::debug!("the daemon is gone: {e}");
        }
    }
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

/// Asks the daemon of a mounted container.
pub fn ask(record: &ContainerRecord, request: &Request) -> std::io::Result<Answer> {
    let socket = record.mounted.as_ref().and_then(|m| m.socket.as_deref());
    let socket = socket.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotFound))?;
    control::ask(Path::new(socket), request, Duration::from_secs(30))
}

fn unmount_by_path(store: &Store, record: &ContainerRecord, how: How) -> Result<()> {
    let Some(mounted) = &record.mounted else { return Ok(()) };
    let place = Path::new(&mounted.mountpoint);
    let is_ours = |m: &MountInfo| m.dev == mounted.dev && m.kind.starts_with("fuse");
    match Standing::find(place, is_ours).or_fail(|| "cannot list the mounts")? {
        Standing::OnTop => {}
        Standing::Covered => {
            return Err(EngineError::failed(format!("cannot unmount {}", record.name)).because(daemon::covered(place)));
        }
        Standing::Gone if !store.is_container_live(&record.id).or_fail(|| "cannot look at the container")? => {
            return Ok(());
        }
        Standing::Gone => {
            return Err(EngineError::failed(format!(
                "the daemon of {} (pid {}) does not answer, and its mount is not in this mount namespace",
                record.name, mounted.pid
            )));
        }
    }
    match sys_mount::unmount(place, if how == How::Lazy { Unmount::Lazy } else { Unmount::WhenIdle }) {
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::BUSY.raw_os_error()) => Err(busy(record)),
        other => other.or_fail(|| format!("cannot unmount {}", mounted.mountpoint)),
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

/// Ends the mount of a container whatever is open in it.
fn end_by_force(store: &Store, record: &ContainerRecord) -> Result<()> {
    let Some((record, State::Mounted)) = settled(store, record)? else { return Ok(()) };
    let asked = AskedDaemon::find(store, &record)?;
    match ask(&record, &Request::Kill) {
        Ok(Answer::Done) => {}
        Ok(Answer::Failed(why)) => {
            return Err(EngineError::failed(format!("cannot unmount {}: {why}", record.name)));
        }
        Ok(other) => return Err(EngineError::failed(format!("cannot unmount {}: {other:?}", record.name))),
        Err(error) => {
            log::debug!("the control socket of {} does not answer: {error}", record.name);
            unmount_by_path(store, &record, How::Lazy)?;
        }
    }
    asked.wait(Some(KILL_PATIENCE))?;
    if !asked.is_gone()? {
        asked.kill();
    }
    asked.wait(None)?;
    asked.wait_for_process();
    Ok(())
}

/// Removes a container with its upper.
pub fn remove(store: &Store, name: &str, options: RemoveOptions) -> Result<()> {
    if let Some(id) = store.find_damaged_container(name).or_fail(|| format!("cannot find the container {name}"))? {
        return remove_damaged(store, &id, options.is_forced);
    }
    let record = find(store, name)?;
    if state(store, &record)? == State::Mounted {
        if !options.is_forced {
            return Err(is_mounted(&record));
        }
        end_by_force(store, &record)?;
    }
    let lock = lock(store, &record)?;
    // `--rm` may have been quicker.
    let Some(record) = store.load_container(&record.id).or_fail(|| "cannot read the container's record")? else {
        return lock.remove().or_fail(|| "cannot remove the container's lock");
    };
    if state(store, &record)? == State::Mounted {
        return Err(EngineError::failed(format!("{} has been mounted again", record.name)));
    }
    // Nothing is written from here on: on a full disk this is the way to get room.
    detach_dead(&record)?;
    discard_container(store, &record, options.volumes)?;
    lock.remove().or_fail(|| "cannot remove the container's lock")
}

/// What [`remove`] would do, as steps; its errors as far as they can be known before.
pub fn describe_removal(store: &Store, name: &str, options: RemoveOptions) -> Result<Vec<String>> {
    if let Some(id) = store.find_damaged_container(name).or_fail(|| format!("cannot find the container {name}"))? {
        return Ok(vec![format!("remove the damaged container {id} with all in its folder")]);
    }
    let record = find(store, name)?;
    let mut steps = Vec::new();
    match (state(store, &record)?, &record.mounted) {
        (State::Mounted, _) if !options.is_forced => return Err(is_mounted(&record)),
        (State::Mounted, Some(mounted)) => steps.push(format!("unmount {}, whatever is open", mounted.mountpoint)),
        (State::Dead, Some(mounted)) => steps.push(format!("clear the dead mount at {}", mounted.mountpoint)),
        _ => {}
    }
    let (upper, work) = mount::work_of(store, &record);
    match &record.upper {
        Some(kept) => {
            steps.push(format!("remove the work directory {}", work.display()));
            steps.push(format!("remove the container {}", record.name));
            steps.push(format!("keep the upper {kept}"));
        }
        None => {
            let bytes = super::volumes::disk_bytes(&upper);
            steps.push(format!("remove the container {} with its upper ({bytes} bytes)", record.name));
        }
    }
    for volume in record.anonymous_volumes() {
        let verb = if options.volumes == WithVolumes::Yes { "remove" } else { "keep" };
        steps.push(format!("{verb} the anonymous volume {volume}"));
    }
    Ok(steps)
}

fn is_mounted(record: &ContainerRecord) -> EngineError {
    EngineError::failed(format!("{} is mounted", record.name))
        .advise(format!("unmount it first with `mlfs umount {}`, or use rm -f", record.name))
}

/// Removes a container whose record cannot be read. Nobody can tell which anonymous volumes and which named upper it
/// had: they stay.
fn remove_damaged(store: &Store, id: &str, is_forced: bool) -> Result<()> {
    let is_live = || store.is_container_live(id).or_fail(|| "cannot look at the container");
    if is_live()? {
        if !is_forced {
            return Err(EngineError::failed(format!("{id} is mounted")).advise("unmount it first, or use rm -f"));
        }
        detach_by_source(id)?;
        let start = Instant::now();
        while is_live()? {
            if start.elapsed() > KILL_PATIENCE {
                return Err(EngineError::failed(format!("{id} is detached, and its daemon serves open files"))
                    .advise("end the processes that hold them"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    let lock = store.lock_container(id, Wait::Block).or_fail(|| "cannot lock the container")?;
    if is_live()? {
        return Err(EngineError::failed(format!("{id} has been mounted again")));
    }
    detach_by_source(id)?;
    store.remove_container(id).or_fail(|| format!("cannot remove the container {id}"))?;
    lock.remove().or_fail(|| "cannot remove the container's lock")
}

/// Detaches every mount that names the container as its source.
fn detach_by_source(id: &str) -> Result<()> {
    let source = fsname_of(id);
    let is_ours = |m: &MountInfo| m.kind == "fuse.mlfs" && m.source == *source;
    for mount in sys_mount::mounts().or_fail(|| "cannot list the mounts")?.iter().filter(|m| is_ours(m)) {
        match Standing::find(&mount.target, is_ours).or_fail(|| "cannot list the mounts")? {
            Standing::OnTop => sys_mount::unmount(&mount.target, Unmount::Lazy)
                .or_fail(|| format!("cannot unmount {}", mount.target.display()))?,
            Standing::Covered => {
                return Err(EngineError::failed(format!("cannot unmount {id}")).because(daemon::covered(&mount.target)));
            }
            Standing::Gone => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Access;
    use crate::store::container::MountedRecord;
    use crate::store::container::tests::record;

    fn mounted(since: &str) -> MountedRecord {
        MountedRecord {
            mountpoint: "/nowhere".to_owned(),
            dev: (0, 1),
            // No process has this number.
            pid: u32::MAX,
            boot_id: "another".to_owned(),
            host: "another".to_owned(),
            namespace: String::new(),
            socket: None,
            since: since.to_owned(),
        }
    }

    #[test]
    fn a_daemon_is_gone_when_another_one_serves() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Access::Write).unwrap();
        let mut asked = ContainerRecord { mounted: Some(mounted("1")), ..record("c") };
        store.create_container(&asked).unwrap();
        let live = store.take_live_lock(&asked.id).unwrap();
        let daemon = AskedDaemon::find(&store, &asked).unwrap();
        assert!(!daemon.is_gone().unwrap(), "it lives");
        store.save_container(&ContainerRecord { mounted: None, ..asked.clone() }).unwrap();
        assert!(!daemon.is_gone().unwrap(), "it is about to end");
        store.save_container(&ContainerRecord { mounted: Some(mounted("2")), ..asked.clone() }).unwrap();
        assert!(daemon.is_gone().unwrap(), "another one lives");
        daemon.wait(None).unwrap();
        drop(live);
        asked.mounted = Some(mounted("2"));
        assert!(AskedDaemon::find(&store, &asked).unwrap().is_gone().unwrap(), "nobody lives");
    }

    #[test]
    fn discarding_writes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Access::Write).unwrap();
        let dead = ContainerRecord { mounted: Some(mounted("1")), rm: false, ..record("dead") };
        let ended = ContainerRecord { mounted: Some(mounted("1")), rm: true, ..record("ended") };
        store.create_container(&dead).unwrap();
        store.create_container(&ended).unwrap();
        // As on a full disk: no record can be written.
        fs::remove_dir(store.layout().staging()).unwrap();
        assert!(store.save_container(&dead).is_err());
        remove(&store, "dead", RemoveOptions { is_forced: false, volumes: WithVolumes::Yes }).unwrap();
        finish(&store, &ended.id, Discard::AsRecorded).unwrap();
        assert_eq!(store.load_containers().unwrap(), []);
        assert_eq!(fs::read_dir(store.layout().containers()).unwrap().count(), 0);
    }

    #[test]
    fn what_a_crash_left_incomplete_goes_and_work_in_progress_stays() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Access::Write).unwrap();
        let dead = ContainerRecord { incomplete: true, ..record("dead") };
        let busy = ContainerRecord { incomplete: true, ..record("busy") };
        let whole = record("whole");
        for one in [&dead, &busy, &whole] {
            store.create_container(one).unwrap();
        }
        let _held = store.lock_container(&busy.id, Wait::Try).unwrap();
        clear_incomplete(&store).unwrap();
        let names: Vec<String> = store.load_containers().unwrap().into_iter().map(|c| c.name).collect();
        assert_eq!(names, ["busy", "whole"]);
    }
}
