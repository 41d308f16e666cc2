// SPDX-License-Identifier: MIT OR Apache-2.0
//! Signals as a descriptor that can be polled, so that a daemon's one loop hears of everything.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

/// A descriptor that becomes readable when one of its signals arrives (signalfd(2)).
#[derive(Debug)]
pub struct SignalFd(OwnedFd);

impl SignalFd {
    /// Blocks `signals` for this thread and all that it starts from now on, and reads them from a descriptor instead.
    ///
    /// Call it before other threads are started: a thread without the block would take the signal's default action.
    pub fn new(signals: &[i32]) -> io::Result<Self> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset initialises the set it is given; the others work on that set; all pointers live here.
        let fd = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in signals {
                libc::sigaddset(set.as_mut_ptr(), *signal);
            }
            let error = libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut());
            if error != 0 {
                return Err(io::Error::from_raw_os_error(error));
            }
            libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: signalfd gave us this new descriptor; nobody else owns it.
        Ok(SignalFd(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The next signal that arrived; `None` when there is none.
    pub fn next(&self) -> io::Result<Option<i32>> {
        let mut info = MaybeUninit::<libc::signalfd_siginfo>::uninit();
        let size = size_of::<libc::signalfd_siginfo>();
        // SAFETY: the buffer is exactly one siginfo large, and a signalfd writes whole ones.
        let read = unsafe { libc::read(self.0.as_raw_fd(), info.as_mut_ptr().cast(), size) };
        match usize::try_from(read) {
            // SAFETY: the kernel wrote the whole structure.
            Ok(n) if n == size => Ok(Some(unsafe { info.assume_init() }.ssi_signo.cast_signed())),
            Ok(_) => Ok(None),
            Err(_) => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
                e => Err(e),
            },
        }
    }
}

impl AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Starts a command with no signal blocked, whatever this process has done to its own.
pub fn spawn_with_defaults(command: &mut Command) -> io::Result<Child> {
    let restore = || {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: async-signal-safe calls only, as after fork; sigemptyset initialises the set before it is read.
        let error = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            libc::pthread_sigmask(libc::SIG_SETMASK, set.as_ptr(), std::ptr::null_mut())
        };
        if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
    };
    // SAFETY: the closure makes no allocation and takes no lock.
    unsafe { command.pre_exec(restore) };
    command.spawn()
}

/// SIGTERM: end.
pub const TERM: i32 = libc::SIGTERM;
/// SIGHUP: the terminal is gone.
pub const HUP: i32 = libc::SIGHUP;
/// SIGINT: end, from a terminal.
pub const INT: i32 = libc::SIGINT;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_read_from_the_descriptor() {
        std::thread::spawn(|| {
            let signals = SignalFd::new(&[libc::SIGUSR1]).unwrap();
            assert_eq!(signals.next().unwrap(), None);
            // SAFETY: a signal to this thread, which has it blocked.
            unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGUSR1) };
            assert_eq!(signals.next().unwrap(), Some(libc::SIGUSR1));
        })
        .join()
        .unwrap();
    }
}
