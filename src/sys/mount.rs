// SPDX-License-Identifier: MIT OR Apache-2.0
//! Mounting a FUSE connection and taking it down: mount(2), the protocol of `fusermount3`, `/proc/self/mountinfo`.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};

use super::lock;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType};

/// What the kernel is asked for when mounting.
#[derive(Clone, Debug, Default)]
pub struct FuseOptions {
    /// Shown as the source of the mount.
    pub fsname: String,
    /// Shown as `fuse.SUBTYPE`.
    pub subtype: String,
    /// Let other users in.
    pub allow_other: bool,
    /// The kernel checks permissions.
    pub default_permissions: bool,
    /// Refuse writes in the kernel.
    pub read_only: bool,
    /// Honour set-id bits.
    pub suid: bool,
    /// Honour device nodes.
    pub dev: bool,
    /// Kind bits of the root (`S_IFDIR`, or `S_IFREG` for a one-file mount).
    pub root_mode: u32,
}

/// Opens `/dev/fuse`, if it is that device (misc 229, Documentation/admin-guide/devices.txt): some containers put
/// something else there.
pub fn open_fuse_device() -> io::Result<OwnedFd> {
    let file = File::options().read(true).write(true).open("/dev/fuse")?;
    let stat = rustix::fs::fstat(&file)?;
    let is_device = rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::CharacterDevice;
    if !is_device || stat.st_rdev != rustix::fs::makedev(10, 229) {
        return Err(io::Error::other("it is not the FUSE device"));
    }
    Ok(file.into())
}

/// Mounts by mount(2): needs root, or root in a user namespace that owns the mount namespace.
pub fn mount_direct(target: &Path, options: &FuseOptions) -> io::Result<OwnedFd> {
    let device = open_fuse_device()?;
    let mut data = format!(
        "fd={},rootmode={:o},user_id={},group_id={}",
        device.as_raw_fd(),
        options.root_mode,
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw()
    );
    if options.allow_other {
        data.push_str(",allow_other");
    }
    if options.default_permissions {
        data.push_str(",default_permissions");
    }
    let mut flags = MountFlags::NOATIME;
    flags.set(MountFlags::NOSUID, !options.suid);
    flags.set(MountFlags::NODEV, !options.dev);
    flags.set(MountFlags::RDONLY, options.read_only);
    let data = CString::new(data).map_err(|_| io::ErrorKind::InvalidInput)?;
    let kind = format!("fuse.{}", options.subtype);
    rustix::mount::mount(options.fsname.as_str(), target, kind.as_str(), flags, Some(data.as_c_str()))?;
    Ok(device)
}

/// Mounts by a setuid helper (`fusermount3` or `fusermount`): it mounts and passes the descriptor over a socket.
///
/// Protocol: the helper finds its end of a socket pair in `_FUSE_COMMFD` and sends one byte with `SCM_RIGHTS`.
pub fn mount_by_helper(helper: &OsStr, target: &Path, options: &FuseOptions) -> io::Result<OwnedFd> {
    let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    let mut words = vec![format!("fsname={}", escape_option(&options.fsname)), format!("subtype={}", options.subtype)];
    for (is_set, word) in [
        (options.allow_other, "allow_other"),
        (options.default_permissions, "default_permissions"),
        (options.read_only, "ro"),
        (options.suid, "suid"),
        (options.dev, "dev"),
        (true, "noatime"),
    ] {
        if is_set {
            words.push(word.to_owned());
        }
    }
    rustix::io::fcntl_setfd(&theirs, rustix::io::FdFlags::empty())?;
    let child = Command::new(helper)
        .arg("-o")
        .arg(words.join(","))
        .arg("--")
        .arg(target)
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    drop(theirs);
    let received = receive_fd(&ours);
    let output = child.wait_with_output()?;
    match received {
        Ok(fd) if output.status.success() => Ok(fd),
        _ => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(io::Error::other(if said.is_empty() { format!("it ended with {}", output.status) } else { said }))
        }
    }
}

/// A comma would end an option of fusermount.
fn escape_option(value: &str) -> String {
    value.replace('\\', "\\\\").replace(',', "\\,")
}

/// Receives one descriptor over a socket.
pub fn receive_fd(socket: &OwnedFd) -> io::Result<OwnedFd> {
    let mut byte = [0u8; 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message
            && let Some(fd) = fds.next()
        {
            return Ok(fd);
        }
    }
    Err(io::Error::from(io::ErrorKind::UnexpectedEof))
}

/// How thoroughly to unmount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmount {
    /// Fails with EBUSY while files are open.
    WhenIdle,
    /// Detaches now; open files live on until closed.
    Lazy,
}

/// Unmounts what is mounted on top at `target`: umount2(2), else the setuid helper. The caller has made sure that it
/// is the right mount.
pub fn unmount(target: &Path, how: Unmount) -> io::Result<()> {
    let mut flags = UnmountFlags::NOFOLLOW;
    flags.set(UnmountFlags::DETACH, how == Unmount::Lazy);
    match rustix::mount::unmount(target, flags) {
        Err(rustix::io::Errno::PERM) => {}
        other => return Ok(other?),
    }
    let mut last = io::Error::from(io::ErrorKind::PermissionDenied);
    for helper in ["fusermount3", "fusermount"] {
        let mut command = Command::new(helper);
        command.arg("-u");
        if how == Unmount::Lazy {
            command.arg("-z");
        }
        match command.arg("--").arg(target).stdin(Stdio::null()).output() {
            Ok(output) if output.status.success() => return Ok(()),
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                let is_busy = said.contains("busy");
                last = if is_busy {
                    io::Error::from_raw_os_error(libc::EBUSY)
                } else {
                    io::Error::other(format!("{helper}: {said}"))
                };
                break;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// A line of `/proc/self/mountinfo` (proc(5)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountInfo {
    /// Mount id, unique while mounted.
    pub id: u64,
    /// Major and minor of `st_dev`; the minor names the FUSE connection.
    pub dev: (u32, u32),
    /// Where it is mounted.
    pub target: PathBuf,
    /// Filesystem type.
    pub kind: String,
    /// Source.
    pub source: OsString,
}

/// All mounts of this mount namespace, in mounting order.
pub fn mounts() -> io::Result<Vec<MountInfo>> {
    let text = std::fs::read("/proc/self/mountinfo")?;
    Ok(text.split(|b| *b == b'\n').filter_map(parse_mountinfo).collect())
}

/// The mount on top at `target`, if `target` is a mount point.
pub fn mount_at(target: &Path) -> io::Result<Option<MountInfo>> {
    Ok(mounts()?.into_iter().rfind(|mount| mount.target == target))
}

/// How long another command may take between its look at a mountpoint and its mount there.
const CLAIM_PATIENCE: Duration = Duration::from_secs(5);

/// Claims a directory for a mount by the flock of the directory itself, so that of two commands that find it free one
/// mounts, and the other one looks again. It is the same directory whoever mounts for whichever store; what is mounted
/// over it has another lock. `ResourceBusy` when somebody goes on holding it. Drop the claim after mounting.
pub fn claim_mountpoint(target: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(target, flags, Mode::empty())?;
    let start = Instant::now();
    loop {
        let claim = match lock::acquire(&dir, lock::Kind::Flock, lock::Mode::Exclusive, lock::Wait::Try) {
            Ok(taken) => taken.then(|| dir.try_clone()).transpose()?,
            Err(errno) if lock::is_unsupported(errno) => claim_by_name(&dir)?,
            Err(errno) => return Err(errno.into()),
        };
        match claim {
            Some(claim) => return Ok(claim),
            None if start.elapsed() < CLAIM_PATIENCE => std::thread::sleep(Duration::from_millis(2)),
            None => return Err(io::ErrorKind::ResourceBusy.into()),
        }
    }
}

/// Claims a directory whose filesystem has no flock: by a socket's name that one process of this host can have, and that
/// ends with it. Nothing is left in the directory. `None` when another has it.
fn claim_by_name(dir: &OwnedFd) -> io::Result<Option<OwnedFd>> {
    let stat = rustix::fs::fstat(dir)?;
    let name = format!("mlfs-mount-{}-{}", stat.st_dev, stat.st_ino);
    match UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?) {
        Ok(claim) => Ok(Some(claim.into())),
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => Ok(None),
        Err(e) => Err(e),
    }
}

/// How a mount stands at its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is what one finds there.
    OnTop,
    /// Another mount lies over it: unmounting by the path would take that one.
    Covered,
    /// It is not there.
    Gone,
}

impl Standing {
    /// How the mount that is meant stands at `target`, in this mount namespace.
    pub fn find(target: &Path, is_meant: impl Fn(&MountInfo) -> bool) -> io::Result<Standing> {
        Ok(Self::among(&mounts()?, target, is_meant))
    }

    fn among(mounts: &[MountInfo], target: &Path, is_meant: impl Fn(&MountInfo) -> bool) -> Standing {
        let mut there = mounts.iter().rev().filter(|mount| mount.target == target);
        match there.next() {
            Some(top) if is_meant(top) => Standing::OnTop,
            Some(_) if there.any(&is_meant) => Standing::Covered,
            _ => Standing::Gone,
        }
    }
}

fn parse_mountinfo(line: &[u8]) -> Option<MountInfo> {
    let mut words = line.split(|b| *b == b' ');
    let id = std::str::from_utf8(words.next()?).ok()?.parse().ok()?;
    let _parent = words.next()?;
    let (major, minor) = std::str::from_utf8(words.next()?).ok()?.split_once(':')?;
    let _root = words.next()?;
    let target = unescape(words.next()?);
    let mut rest = words.skip_while(|word| *word != b"-").skip(1);
    let kind = String::from_utf8_lossy(rest.next()?).into_owned();
    let source = OsString::from_vec(unescape(rest.next()?));
    Some(MountInfo {
        id,
        dev: (major.parse().ok()?, minor.parse().ok()?),
        target: PathBuf::from(OsStr::from_bytes(&target)),
        kind,
        source,
    })
}

/// Undoes the kernel's octal escapes (`\040` for a space).
fn unescape(word: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((first, tail)) = rest.split_first() {
        if *first == b'\\'
            && let Some(digits) = tail.get(..3)
            && let Ok(text) = std::str::from_utf8(digits)
            && let Ok(byte) = u8::from_str_radix(text, 8)
        {
            out.push(byte);
            rest = tail.get(3..).unwrap_or_default();
            continue;
        }
        out.push(*first);
        rest = tail;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_lines_are_read() {
        let line = br"36 35 98:0 /mnt1 /mnt\0402 rw,noatime master:1 - fuse.mlfs a\134b rw,errors=continue";
        let info = parse_mountinfo(line).unwrap();
        assert_eq!((info.id, info.dev), (36, (98, 0)));
        assert_eq!(info.target, Path::new("/mnt 2"));
        assert_eq!((info.kind.as_str(), info.source.as_os_str()), ("fuse.mlfs", OsStr::new(r"a\b")));
        assert!(parse_mountinfo(b"36 35").is_none());
    }

    #[test]
    fn a_mount_below_another_is_covered() {
        let lines =
            ["1 0 0:30 / /m rw - fuse.mlfs a rw", "2 1 0:31 / /m rw - tmpfs b rw", "3 0 0:32 / /n rw - tmpfs b rw"];
        let mounts: Vec<_> = lines.iter().filter_map(|line| parse_mountinfo(line.as_bytes())).collect();
        let standing = |minor| Standing::among(&mounts, Path::new("/m"), |m| m.dev == (0, minor));
        assert_eq!([standing(30), standing(31), standing(32)], [Standing::Covered, Standing::OnTop, Standing::Gone]);
    }
}
