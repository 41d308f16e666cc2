// SPDX-License-Identifier: MIT OR Apache-2.0
//! The main thread of a process that serves a mount: it hears signals, the control socket, and the end of the session.
//!
//! Every end of a mount is the same end: whoever unmounts, the session ends and [`serve`] returns. A stop that finds
//! files open is tried again until its time is up; then the mount is detached and open files are served until closed.
//! Nothing is unmounted that is not provably this mount: a new one may sit at the path by now.

use std::cell::OnceCell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::fs::Fs;
use crate::fuse::{FuseMount, IoChoice, IoMeter, Session};
use crate::model::IoMode;
use crate::sys::mount::{self, Standing, Unmount};
use crate::sys::signal::{self, SignalFd};

use super::control::{self, Answer, ControlSocket, Request};
use super::{EngineError, OrFail, Result};

/// How often a busy mount is tried again.
const RETRY: Duration = Duration::from_millis(50);
/// How long an unmounted session may take to end. A copy of the mount in another mount namespace keeps the connection
/// alive for ever; then the process ends instead, which ends the connection.
const GRACE: Duration = Duration::from_secs(2);

/// The mount that is served, to tell it from others.
#[derive(Clone, Debug)]
pub struct Served {
    /// Where it was mounted.
    pub target: PathBuf,
    /// Its device number.
    pub dev: (u32, u32),
}

impl Served {
    /// The FUSE mount that has just been made at a place.
    pub fn find(target: &Path) -> Result<Served> {
        match mount::mount_at(target).or_fail(|| "cannot list the mounts")? {
            Some(found) if found.kind.starts_with("fuse") => Ok(Served { target: target.to_owned(), dev: found.dev }),
            _ => Err(EngineError::failed(format!("the mount at {} has vanished", target.display()))),
        }
    }

    /// How it stands at its place.
    pub fn standing(&self) -> io::Result<Standing> {
        Standing::find(&self.target, |m| m.dev == self.dev && m.kind.starts_with("fuse"))
    }

    fn unmount(&self, how: Unmount) -> io::Result<()> {
        match self.standing()? {
            Standing::OnTop => mount::unmount(&self.target, how),
            Standing::Covered => Err(covered(&self.target)),
            Standing::Gone => Ok(()),
        }
    }
}

/// The error of a mount that cannot be reached by its path.
pub fn covered(place: &Path) -> io::Error {
    io::Error::other(format!("another mount covers it at {}; unmount that one first", place.display()))
}

/// Is the mount on top at `target` a FUSE mount with this device number?
pub fn is_mounted(target: &Path, dev: (u32, u32)) -> io::Result<bool> {
    Ok(mount::mount_at(target)?.is_some_and(|m| m.dev == dev && m.kind.starts_with("fuse")))
}

/// How the serving ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The session ended: unmounted, and the last file closed.
    Unmounted,
    /// The mount is gone, but something keeps the connection: the process must end.
    Abandoned,
    /// We were told to end whatever is open.
    Killed,
}

#[derive(Clone, Copy)]
enum State {
    Serving,
    /// To be unmounted when idle, at the latest then.
    Stopping(Instant),
    /// Unmounted while idle; the session ends now, or something else holds it.
    Unmounted(Instant),
    /// Detached; open files are served until closed.
    Detached,
}

/// Clears away a mount of ours that nobody serves; with a device number only if that one is at the place.
pub fn clear_mount(target: &Path, dev: Option<(u32, u32)>) {
    let is_ours = dev.is_none_or(|dev| is_mounted(target, dev).unwrap_or(false));
    if is_ours && let Err(error) = mount::unmount(target, Unmount::Lazy) {
        log::warn!("cannot unmount {}: {error}", target.display());
    }
}

/// What a serving process attends to.
#[derive(Debug)]
pub struct Duty<'a> {
    /// The mount.
    pub served: Served,
    /// Where commands come from.
    pub socket: Option<&'a ControlSocket>,
    /// How long a busy mount is served after a signal.
    pub stop_timeout: Duration,
    /// Who reads and writes contents.
    pub io: IoMode,
    /// The container's id, for those who ask.
    pub id: String,
    /// The process that is served alone: its end is the end of the mount, and signals are passed to it. It is set when
    /// the mount is usable.
    pub command: OnceCell<OwnedFd>,
}

/// Starts the session, calls `ready` once it is usable, and serves until the mount is gone. Call it before this process
/// has started other threads.
///
/// Returns how it ended, and whether the session itself ended without a failure.
pub fn run(
    fuse: FuseMount,
    fs: Arc<Fs>,
    duty: &Duty<'_>,
    ready: &mut dyn FnMut(&Duty<'_>) -> Result<()>,
) -> Result<(End, Outcome)> {
    // A daemon has no terminal that could hang up; in front, that is an end like the others.
    let signals = SignalFd::new(&[signal::TERM, signal::INT, signal::HUP]).or_fail(|| "cannot hear signals")?;
    let (ended, end) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(io::Error::from)
        .or_fail(|| "cannot make a pipe")?;
    let io = IoChoice::for_this_process(duty.io);
    let open = Arc::clone(&fs);
    let session = fuse.serve(fs, io).or_fail(|| "cannot serve the mount")?;
    let io = session.io().clone();
    log::info!("input and output: {}: {}", io.choice().word(), io.choice().why);
    let waiter = std::thread::spawn(move || wait(session, end));
    ready(duty)?;
    let end = serve(duty, &Life { fs: open, io }, &signals, &ended).or_fail(|| "the daemon's loop failed")?;
    let outcome = match end {
        End::Unmounted => waiter.join().unwrap_or(Outcome::Failed),
        End::Abandoned | End::Killed => Outcome::Clean,
    };
    Ok((end, outcome))
}

/// What the running session tells.
struct Life {
    fs: Arc<Fs>,
    io: IoMeter,
}

/// How the session itself ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// By an unmount.
    Clean,
    /// By a failure.
    Failed,
}

/// Waits for the end of the session; the pipe hangs up when it has come.
fn wait(session: Session, end: OwnedFd) -> Outcome {
    let result = session.wait();
    drop(end);
    match result {
        Ok(()) => Outcome::Clean,
        Err(error) => {
            log::error!("the session failed: {error}");
            Outcome::Failed
        }
    }
}

/// The loop: until the mount is gone. `ended` becomes readable (or hangs up) when the session has ended.
fn serve(duty: &Duty<'_>, life: &Life, signals: &SignalFd, ended: &OwnedFd) -> io::Result<End> {
    let Duty { served, socket, .. } = duty;
    let Life { fs, io } = life;
    let socket = *socket;
    let status = || Answer::Status {
        pid: std::process::id(),
        id: duty.id.clone(),
        io: io.choice().word().to_owned(),
        io_why: io.choice().why.clone(),
        backing_files: io.backing_files() as u64,
    };
    let mut state = State::Serving;
    loop {
        let wait = match state {
            State::Serving | State::Detached => None,
            State::Stopping(_) => Some(RETRY),
            State::Unmounted(since) => Some(GRACE.saturating_sub(since.elapsed())),
        };
        let command = duty.command.get().filter(|_| matches!(state, State::Serving));
        wait_for(signals, socket, ended, command, wait)?;
        if is_readable(ended)? {
            return Ok(End::Unmounted);
        }
        if let Some(command) = command
            && is_readable(command)?
        {
            state = State::Stopping(Instant::now() + duty.stop_timeout);
        }
        while let Some(signal) = signals.next()? {
            if let Some(command) = duty.command.get() {
                // A terminal sends the other signals to the command too.
                if signal == signal::TERM
                    && let Err(e) = rustix::process::pidfd_send_signal(command, rustix::process::Signal::TERM)
                {
                    log::debug!("the command is gone: {e}");
                }
            } else if let State::Serving | State::Detached = state {
                log::info!("told to stop by a signal");
                state = State::Stopping(Instant::now() + duty.stop_timeout);
            }
        }
        if let Some((mut stream, request)) = socket.and_then(ControlSocket::accept) {
            match hear(served, fs, &mut stream, request, &status) {
                Some(Next::State(next)) => state = next,
                Some(Next::Kill) => return Ok(End::Killed),
                None => {}
            }
        }
        match state {
            State::Stopping(deadline) => state = stop(served, fs, deadline),
            State::Unmounted(since) if since.elapsed() >= GRACE => return Ok(End::Abandoned),
            _ => {}
        }
        // What the command left running goes with the mount.
        if duty.command.get().is_some() && matches!(state, State::Detached) {
            return Ok(End::Killed);
        }
    }
}

enum Next {
    State(State),
    Kill,
}

/// Unmounts what nobody uses.
fn unmount_idle(served: &Served, fs: &Fs) -> io::Result<()> {
    if served.standing()? == Standing::Gone && fs.open_files() > 0 {
        return Err(rustix::io::Errno::BUSY.into());
    }
    served.unmount(Unmount::WhenIdle)
}

fn hear(
    served: &Served,
    fs: &Fs,
    stream: &mut UnixStream,
    request: Request,
    status: &dyn Fn() -> Answer,
) -> Option<Next> {
    let done = |result: io::Result<()>| match result {
        Ok(()) => Answer::Done,
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::BUSY.raw_os_error()) => Answer::Busy,
        Err(e) => Answer::Failed(e.to_string()),
    };
    let (answer, next) = match request {
        Request::Status => (status(), None),
        Request::Unmount => (done(unmount_idle(served, fs)), Some(Next::State(State::Unmounted(Instant::now())))),
        Request::Detach => (done(served.unmount(Unmount::Lazy)), Some(Next::State(State::Detached))),
        Request::Shutdown { timeout } => {
            let deadline = Instant::now() + Duration::from_millis(timeout.min(1 << 40));
            (Answer::Done, Some(Next::State(State::Stopping(deadline))))
        }
        Request::Kill => (done(served.unmount(Unmount::Lazy)), Some(Next::Kill)),
    };
    control::answer(stream, &answer);
    next.filter(|_| answer == Answer::Done)
}

fn stop(served: &Served, fs: &Fs, deadline: Instant) -> State {
    match unmount_idle(served, fs) {
        Ok(()) => State::Unmounted(Instant::now()),
        Err(_) if Instant::now() < deadline => State::Stopping(deadline),
        Err(error) => {
            log::info!("still in use at the end of the stop timeout ({error}): detaching");
            match served.unmount(Unmount::Lazy) {
                Ok(()) => State::Detached,
                Err(error) => {
                    log::error!("cannot detach {}: {error}", served.target.display());
                    State::Stopping(Instant::now() + Duration::from_secs(1))
                }
            }
        }
    }
}

fn wait_for(
    signals: &SignalFd,
    socket: Option<&ControlSocket>,
    ended: &OwnedFd,
    command: Option<&OwnedFd>,
    timeout: Option<Duration>,
) -> io::Result<()> {
    let mut fds = vec![PollFd::new(ended, PollFlags::IN), PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN)];
    if let Some(socket) = socket {
        fds.push(PollFd::new(socket.listener(), PollFlags::IN));
    }
    if let Some(command) = command {
        fds.push(PollFd::new(command, PollFlags::IN));
    }
    let timeout = timeout.map(|t| Timespec { tv_sec: t.as_secs().cast_signed(), tv_nsec: t.subsec_nanos().into() });
    match poll(&mut fds, timeout.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn is_readable(fd: &OwnedFd) -> io::Result<bool> {
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    Ok(fds.iter().any(|fd| !fd.revents().is_empty()))
}
