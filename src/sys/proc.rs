// SPDX-License-Identifier: MIT OR Apache-2.0
//! The process itself: becoming a daemon, limits, identity of the machine and of the user namespace.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Which side of a fork this is.
#[derive(Debug)]
pub enum Fork {
    /// The caller's process: waits for the daemon's word.
    Parent(ParentEnd),
    /// The daemon-to-be.
    Daemon(DaemonEnd),
}

/// The parent's end of the pipe that the daemon reports on.
#[derive(Debug)]
pub struct ParentEnd(File);

/// The daemon's end: dropping it without a word means failure.
#[derive(Debug)]
pub struct DaemonEnd(File);

impl ParentEnd {
    /// Waits until the daemon is usable. `Err` holds what the daemon said when it failed.
    pub fn wait(mut self) -> Result<(), String> {
        let mut word = String::new();
        if let Err(error) = self.0.read_to_string(&mut word) {
            return Err(format!("reading from the daemon: {error}"));
        }
        match word.strip_prefix("ok") {
            Some(_) => Ok(()),
            None if word.is_empty() => Err("the daemon ended before the mount was usable".to_owned()),
            None => Err(word),
        }
    }
}

impl DaemonEnd {
    /// Tells the parent that all is well, and lets it go.
    pub fn ready(mut self) -> io::Result<()> {
        self.0.write_all(b"ok")
    }

    /// Tells the parent why there is no daemon.
    pub fn failed(mut self, why: &str) -> io::Result<()> {
        self.0.write_all(why.as_bytes())
    }
}

/// Forks; the child starts a session of its own and changes to `/`. Call while the process has one thread: only the
/// calling thread lives on in the child. Its standard streams are the caller's to redirect ([`redirect_stdio`]).
pub fn fork_daemon() -> io::Result<Fork> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    // SAFETY: the documented condition is one thread, so no lock of another thread can be left held in the child.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            drop(read);
            rustix::process::setsid()?;
            rustix::process::chdir("/")?;
            Ok(Fork::Daemon(DaemonEnd(write.into())))
        }
        _ => {
            drop(write);
            Ok(Fork::Parent(ParentEnd(read.into())))
        }
    }
}

/// The supplementary groups of a process, which FUSE does not carry; none of a process that is gone or not to be seen.
pub fn groups_of(pid: u32) -> Vec<u32> {
    let groups = status_line(&pid.to_string(), "Groups:").unwrap_or_default();
    groups.split_whitespace().filter_map(|group| group.parse().ok()).collect()
}

/// What a line of `/proc/PID/status` says; `None` of a process that is gone or not to be seen.
fn status_line(pid: &str, field: &str) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix(field)).map(|said| said.trim().to_owned())
}

/// Points standard input at `/dev/null`, output and errors at `log` or at `/dev/null`.
pub fn redirect_stdio(log: Option<&OwnedFd>) -> io::Result<()> {
    let null: OwnedFd = File::options().read(true).write(true).open("/dev/null")?.into();
    rustix::stdio::dup2_stdin(&null)?;
    let sink = log.unwrap_or(&null);
    rustix::stdio::dup2_stdout(sink)?;
    rustix::stdio::dup2_stderr(sink)?;
    Ok(())
}

/// Raises the soft limit of open files to the hard one; the limit in force afterwards.
pub fn raise_nofile_limit() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = maximum.unwrap_or(1 << 20);
    let now = current.unwrap_or(1024);
    let new = Rlimit { current: Some(wanted.max(now)), maximum };
    match setrlimit(Resource::Nofile, new) {
        Ok(()) => wanted.max(now),
        Err(_) => now,
    }
}

/// The kernel's id of this boot.
pub fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// The name of this host.
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Effective user id.
pub fn euid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Effective group id.
pub fn egid() -> u32 {
    rustix::process::getegid().as_raw()
}

/// Is this the initial user namespace (where ids mean themselves)?
pub fn is_initial_user_namespace() -> bool {
    std::fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| {
        let words: Vec<&str> = map.split_whitespace().collect();
        words == ["0", "0", "4294967295"]
    })
}

/// Is this root of the machine, and not only of a user namespace?
pub fn is_real_root() -> bool {
    euid() == 0 && is_initial_user_namespace()
}

/// Have we the right to administer the machine (`CAP_SYS_ADMIN` in the initial user namespace)?
pub fn is_administrator() -> bool {
    const CAP_SYS_ADMIN: u64 = 1 << 21;
    let effective = || u64::from_str_radix(&status_line("self", "CapEff:")?, 16).ok();
    is_initial_user_namespace() && effective().is_some_and(|set| set & CAP_SYS_ADMIN != 0)
}

/// Our effective user id as the parent of this user namespace knows it; `None` when it is not mapped.
pub fn outer_uid() -> Option<u32> {
    outer_id(&std::fs::read_to_string("/proc/self/uid_map").ok()?, euid())
}

fn outer_id(map: &str, id: u32) -> Option<u32> {
    map.lines().find_map(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u32>);
        let (inner, outer, count) = (numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?);
        let offset = id.checked_sub(inner).filter(|offset| *offset < count)?;
        outer.checked_add(offset)
    })
}

/// How many user ids exist in this namespace (4294967295 in the initial one).
pub fn count_user_ids() -> u64 {
    std::fs::read_to_string("/proc/self/uid_map")
        .map(|map| map.lines().filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok()).sum())
        .unwrap_or(0)
}

/// The process's file mode creation mask, set to `mask`; the old one.
pub fn set_umask(mask: u32) -> u32 {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(mask)).as_raw_mode()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_found_in_a_map() {
        let map = "         0       1000          1\n         1     100000      65536\n";
        assert_eq!(
            [0, 1, 65_536, 65_537].map(|id| outer_id(map, id)),
            [Some(1000), Some(100_000), Some(165_535), None]
        );
        assert_eq!(outer_id("0 0 4294967295", 7), Some(7));
    }
}
