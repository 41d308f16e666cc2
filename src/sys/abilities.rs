// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the filesystem under a directory can do, found by trying: in a directory of its own there, which is gone
//! afterwards.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, FlockOperation, Mode, OFlags, RawDir, RenameFlags, XattrFlags};
use rustix::io::Errno;

/// One thing that a filesystem can do, or why not.
pub type Ability = Result<(), Errno>;

/// What the filesystem under a directory can do for this process.
#[derive(Clone, Debug)]
pub struct Abilities {
    /// Its type, as the kernel lists the mount (`ext4`, `nfs4`); empty when it cannot be told.
    pub kind: String,
    /// Free to us, in bytes.
    pub free_bytes: u64,
    /// Free inodes; 0 where the filesystem does not count them.
    pub free_inodes: u64,
    /// May things be made there at all? The others say the same error if not.
    pub write: Ability,
    /// Attributes in `user.`.
    pub user_xattrs: Ability,
    /// Attributes in `trusted.`: root of the initial user namespace only.
    pub trusted_xattrs: Ability,
    /// Whiteouts as the kernel makes them: a character device 0:0.
    pub whiteouts: Ability,
    /// `O_TMPFILE` with a link made later.
    pub unnamed_files: Ability,
    /// `RENAME_NOREPLACE`.
    pub rename_noreplace: Ability,
    /// `RENAME_EXCHANGE`.
    pub rename_exchange: Ability,
    /// Hard links.
    pub links: Ability,
    /// Locks of flock(2).
    pub flock: Ability,
    /// Locks of fcntl(2) that belong to the open file (`F_OFD_SETLK`).
    pub fcntl_locks: Ability,
    /// Listings tell kinds (`d_type`).
    pub kinds_in_listings: Ability,
    /// Files that share their content (`FICLONE`).
    pub reflinks: Ability,
    /// Files may be given to other owners.
    pub chown: Ability,
}

/// Tries everything in a fresh directory inside `dir`. An error: `dir` cannot be looked at.
pub fn probe(dir: &Path) -> io::Result<Abilities> {
    let dir = fs::canonicalize(dir)?;
    let space = rustix::fs::statvfs(&dir)?;
    let mut found = Abilities::none(Errno::NOENT);
    found.kind = kind_of(&dir)?;
    found.free_bytes = space.f_bavail.saturating_mul(space.f_frsize);
    found.free_inodes = space.f_favail;
    match Probe::new(&dir).and_then(|probe| probe.run(&mut found)) {
        Ok(()) => Ok(found),
        Err(errno) => Ok(Abilities {
            kind: found.kind,
            free_bytes: found.free_bytes,
            free_inodes: found.free_inodes,
            ..Abilities::none(errno)
        }),
    }
}

impl Abilities {
    fn none(errno: Errno) -> Self {
        let no: Ability = Err(errno);
        Abilities {
            kind: String::new(),
            free_bytes: 0,
            free_inodes: 0,
            write: no,
            user_xattrs: no,
            trusted_xattrs: no,
            whiteouts: no,
            unnamed_files: no,
            rename_noreplace: no,
            rename_exchange: no,
            links: no,
            flock: no,
            fcntl_locks: no,
            kinds_in_listings: no,
            reflinks: no,
            chown: no,
        }
    }
}

/// The type of the mount that a path lies in: the last one listed whose device is the path's.
fn kind_of(path: &Path) -> io::Result<String> {
    let dev = fs::metadata(path)?.dev();
    let dev = (rustix::fs::major(dev), rustix::fs::minor(dev));
    let mounts = super::mount::mounts()?;
    let of_device = mounts.iter().rev().find(|mount| mount.dev == dev).map(|mount| mount.kind.clone());
    // Btrfs shows devices of its own: then the deepest mount point above the path.
    let above =
        || mounts.iter().filter(|mount| path.starts_with(&mount.target)).max_by_key(|m| m.target.as_os_str().len());
    Ok(of_device.or_else(|| above().map(|mount| mount.kind.clone())).unwrap_or_default())
}

/// The directory of a probe; it goes when this is dropped.
struct Probe {
    path: PathBuf,
}

impl Drop for Probe {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            log::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

impl Probe {
    fn new(dir: &Path) -> Result<Self, Errno> {
        for number in 0..100u32 {
            let path = dir.join(format!(".mlfs-probe-{}-{number}", std::process::id()));
            match rustix::fs::mkdirat(CWD, &path, Mode::RWXU) {
                Ok(()) => return Ok(Probe { path }),
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error),
            }
        }
        Err(Errno::EXIST)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn file(&self, name: &str) -> Result<File, Errno> {
        File::options().read(true).write(true).create_new(true).open(self.at(name)).map_err(|e| errno(&e))
    }

    fn run(&self, found: &mut Abilities) -> Result<(), Errno> {
        let file = self.file("file")?;
        self.file("other")?;
        found.write = Ok(());
        found.user_xattrs = set_xattr(&file, "user.mlfs.probe");
        found.trusted_xattrs = set_xattr(&file, "trusted.mlfs.probe");
        found.whiteouts = rustix::fs::mknodat(CWD, self.at("whiteout"), FileType::CharacterDevice, Mode::empty(), 0);
        found.unnamed_files = self.unnamed();
        found.links = rustix::fs::link(self.at("file"), self.at("link"));
        let rename =
            |from: &str, to: &str, flags| rustix::fs::renameat_with(CWD, self.at(from), CWD, self.at(to), flags);
        found.rename_exchange = rename("file", "other", RenameFlags::EXCHANGE);
        found.rename_noreplace = rename("other", "renamed", RenameFlags::NOREPLACE);
        found.flock = self.locked(|file| rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive));
        found.fcntl_locks = self.locked(lock_whole);
        found.kinds_in_listings = self.kinds();
        found.reflinks = self.reflink();
        // To an owner that nobody has; root of a namespace may have no such id, and cannot hold every owner then.
        found.chown = rustix::fs::fchown(&file, Some(rustix::fs::Uid::from_raw(65_533)), None);
        Ok(())
    }

    fn unnamed(&self) -> Ability {
        let file = rustix::fs::open(&self.path, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, Mode::RWXU)?;
        let source = format!("/proc/self/fd/{}", file.as_raw_fd());
        rustix::fs::linkat(CWD, source, CWD, self.at("unnamed"), AtFlags::SYMLINK_FOLLOW)
    }

    /// Does a lock taken by one open file keep another one out?
    fn locked(&self, lock: impl Fn(BorrowedFd<'_>) -> Result<(), Errno>) -> Ability {
        let name = self.at("lock");
        let open = || File::options().read(true).write(true).create(true).truncate(false).open(&name);
        let (one, two) = (open().map_err(|e| errno(&e))?, open().map_err(|e| errno(&e))?);
        lock(one.as_fd())?;
        match lock(two.as_fd()) {
            Err(Errno::AGAIN | Errno::ACCESS) => Ok(()),
            Ok(()) => Err(Errno::NOLCK),
            Err(error) => Err(error),
        }
    }

    fn kinds(&self) -> Ability {
        let dir = rustix::fs::open(&self.path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let mut buffer = Vec::with_capacity(4096);
        let mut entries = RawDir::new(&dir, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            if entry?.file_type() == FileType::Unknown {
                return Err(Errno::OPNOTSUPP);
            }
        }
        Ok(())
    }

    fn reflink(&self) -> Ability {
        let (from, to) = (self.file("from")?, self.file("to")?);
        rustix::io::pwrite(&from, &[7; 4096], 0)?;
        rustix::fs::ioctl_ficlone(&to, &from)
    }
}

fn set_xattr(file: &File, name: &str) -> Ability {
    rustix::fs::fsetxattr(file, name, b"y", XattrFlags::empty())
}

/// Locks a whole file for its open file, without waiting.
fn lock_whole(file: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: a plain structure of numbers, for which zero is a value.
    let mut range: libc::flock = unsafe { std::mem::zeroed() };
    range.l_type = libc::F_WRLCK as libc::c_short;
    range.l_whence = libc::SEEK_SET as libc::c_short;
    // SAFETY: the descriptor is open while borrowed, and the structure lives through the call.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const range) } {
        0 => Ok(()),
        _ => Err(errno(&io::Error::last_os_error())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_tells_what_works_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let found = probe(dir.path()).unwrap();
        for (what, ability) in [
            ("write", found.write),
            ("rename_noreplace", found.rename_noreplace),
            ("rename_exchange", found.rename_exchange),
            ("links", found.links),
            ("flock", found.flock),
            ("fcntl", found.fcntl_locks),
            ("d_type", found.kinds_in_listings),
        ] {
            assert_eq!(ability, Ok(()), "{what} on {}", found.kind);
        }
        assert_eq!(found.chown.is_ok(), rustix::process::geteuid().is_root());
        assert!(found.free_bytes > 0 && !found.kind.is_empty());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left");
    }

    #[test]
    fn a_directory_that_takes_nothing_says_so_for_everything() {
        let found = probe(Path::new("/proc")).unwrap();
        assert_eq!(found.kind, "proc");
        for ability in [found.write, found.user_xattrs, found.flock, found.reflinks] {
            assert!(ability.is_err());
        }
        assert!(probe(Path::new("/never/there")).is_err());
    }
}
