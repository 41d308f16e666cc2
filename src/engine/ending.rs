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
use crate::store::{Store, StoreError, Wait, timestamp};
use crate::sys::mount::{self as sys_mount, Unmount};

use super::control::{self, Answer, Request};
use super::state::{State, find, find_by_mountpoint, fsname, lock, state};
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

/// Clears the mount of a container whose daemon died: its liveness lock is free, wherever it ran. Detaches only what is
/// provably that mount: of this boot, with its device and source. Call it under the container's lock.
pub fn clear_dead(store: &Store, record: &mut ContainerRecord) -> Result<()> {
    let Some(mounted) = record.mounted.clone() else { return Ok(()) };
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

/// Removes containers whose making was cut short by a crash, with their mounts and anonymous volumes.
pub fn clear_incomplete(store: &Store) -> Result<()> {
    for record in store.load_containers().or_fail(|| "cannot list the containers")? {
        if !record.incomplete {
            continue;
        }
        // Its maker holds the lock while it lives.
        let lock = match store.lock_container(&record.id, Wait::Try) {
            Err(StoreError::Locked { .. }) => continue,
            other => other.or_fail(|| "cannot lock a container")?,
        };
        match store.load_container(&record.id).or_fail(|| "cannot read a container's record")? {
            Some(mut record) if record.incomplete => {
                clear_dead(store, &mut record)?;
                discard_container(store, &record, WithVolumes::Yes)?;
                lock.remove().or_fail(|| "cannot remove a container's lock")?;
            }
            // Finished, or gone, in between.
            _ => {}
        }
    }
    store.clear_empty_containers().or_fail(|| "cannot clear folders of containers")
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
        wait_for_end(&live, Some(KILL_PATIENCE))?;
        if let Some(process) = &process
            && store.is_container_live(&record.id).or_fail(|| "cannot look at the container")?
            && let Err(e) = rustix::process::pidfd_send_signal(process, rustix::process::Signal::KILL)
        {
            log::debug!("the daemon is gone: {e}");
        }
        wait_for_end(&live, None)?;
        wait_for_process(process.as_ref());
    }
    let lock = lock(store, &record)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Access;
    use crate::store::container::tests::record;

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
