// SPDX-License-Identifier: MIT OR Apache-2.0
//! Files that appear whole or not at all, and staging folders that disappear when dropped.
//!
//! Everything is first written in the store's own `staging/` (the same filesystem as its destination), never in
//! `$TMPDIR`. A staging folder is flocked by its owner: one whose lock can be had was left by a dead process.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, flock, openat};

use super::error::{At, StoreError};

/// Replaces `dir/name` by a file with `bytes`: written aside in `staging`, synced, renamed, and the folder synced.
///
/// After an error the old file is still whole (if only the last sync failed, either file may be there after a crash).
pub fn replace(staging: &Path, dir: &Path, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
    let target = dir.join(name);
    let (aside, mut file) = create_aside(staging, name)?;
    let written = write_synced(&mut file, &aside, bytes);
    let written = written.and_then(|()| fs::rename(&aside, &target).writing("write", &target));
    if let Err(error) = written {
        if let Err(e) = fs::remove_file(&aside)
            && e.kind() != std::io::ErrorKind::NotFound
        {
            log::warn!("cannot remove {}: {e}", aside.display());
        }
        return Err(error);
    }
    sync_dir(dir)
}

/// A new file in `staging`, flocked: one whose lock can be had was left by a dead process.
fn create_aside(staging: &Path, name: &str) -> Result<(PathBuf, File), StoreError> {
    loop {
        let path = staging.join(fresh_name(name));
        let file = File::create_new(&path).writing("create", &path)?;
        // Between the two calls another process may take the file for an abandoned one and remove it.
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) if is_at(&file, &path) => return Ok((path, file)),
            Ok(()) | Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e).writing("lock", &path),
        }
    }
}

fn write_synced(file: &mut File, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    file.write_all(bytes).writing("write", path)?;
    file.sync_all().writing("sync", path)
}

/// Makes the names in `dir` durable.
pub fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    File::open(dir).and_then(|d| d.sync_all()).writing("sync", dir)
}

/// A name that no other thread or process uses: `HINT.PID.TIME.COUNT`.
pub fn fresh_name(hint: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |t| t.as_nanos());
    format!("{hint}.{}.{time:x}.{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// A folder in `staging/` that is removed, with all in it, when dropped.
#[derive(Debug)]
pub struct StagingDir {
    path: PathBuf,
    /// Holds the lock that says: alive.
    _lock: File,
}

impl StagingDir {
    /// Makes a folder in `staging`, after removing those that dead processes left.
    pub fn new(staging: &Path, hint: &str) -> Result<Self, StoreError> {
        clear_abandoned(staging)?;
        loop {
            let path = staging.join(fresh_name(hint));
            fs::DirBuilder::new().mode(0o700).create(&path).writing("create", &path)?;
            // Between the two calls another process may take the folder for an abandoned one and remove it.
            let Ok(lock) = File::open(&path) else { continue };
            if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() && is_at(&lock, &path) {
                return Ok(StagingDir { path, _lock: lock });
            }
        }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for StagingDir {
    fn drop(&mut self) {
        if let Err(e) = fs::remove_dir_all(&self.path)
            && e.kind() != std::io::ErrorKind::NotFound
        {
            log::warn!("cannot remove {}: {e}", self.path.display());
        }
    }
}

/// Is `file` what `path` names?
pub(super) fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

/// Opens a file or a folder for its lock. Never waits, whatever somebody has put there.
fn open_any(path: &Path) -> std::io::Result<File> {
    File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)
}

/// Has the staged file or folder at `path` been left by a dead process? `None` for what can have no lock.
pub(super) fn is_abandoned(path: &Path) -> Option<bool> {
    let file = open_any(path).ok()?;
    Some(flock(&file, FlockOperation::NonBlockingLockShared).is_ok() && is_at(&file, path))
}

/// A folder of the store whose content is removed: held, so that no link can be put in its place.
#[derive(Debug)]
pub(super) struct Folder {
    /// Its path, for messages.
    path: PathBuf,
    fd: OwnedFd,
}

impl Folder {
    /// Opens it. A link to a folder is refused: whatever it leads to would be emptied.
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let fd = open_dir(CWD, path.as_os_str()).reading("open", path)?;
        Ok(Folder { path: path.to_owned(), fd })
    }

    /// The names in it.
    pub(super) fn names(&self) -> Result<Vec<OsString>, StoreError> {
        let entries = fs::read_dir(held(&self.fd)).reading("list", &self.path)?;
        entries.map(|entry| Ok(entry.reading("list", &self.path)?.file_name())).collect()
    }

    /// The path of an entry, which leads nowhere else.
    pub(super) fn path(&self, name: &OsStr) -> PathBuf {
        held(&self.fd).join(name)
    }

    /// Removes an entry with all that is in it. Absence is no error.
    pub(super) fn remove(&self, name: &OsStr) -> std::io::Result<()> {
        match remove_tree(&self.path(name)) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}

/// The path of what a descriptor holds.
fn held(fd: &OwnedFd) -> PathBuf {
    Path::new("/proc/self/fd").join(fd.as_raw_fd().to_string())
}

/// Opens a directory that need not be readable, never through a link.
fn open_dir(parent: impl AsFd, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}

/// Removes the staging folders and files of dead processes. What cannot be removed is left for the next time.
pub(super) fn clear_abandoned(staging: &Path) -> Result<(), StoreError> {
    let folder = Folder::open(staging)?;
    for name in folder.names()? {
        let path = folder.path(&name);
        let Ok(file) = open_any(&path) else { continue };
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() || !is_at(&file, &path) {
            continue;
        }
        if let Err(e) = folder.remove(&name) {
            log::debug!("cannot remove {}: {e}", staging.join(name).display());
        }
    }
    Ok(())
}

/// Removes a tree that may hold directories that forbid it. No link in it is followed, whoever changes it meanwhile.
pub fn remove_tree(path: &Path) -> std::io::Result<()> {
    let remove = || match fs::symlink_metadata(path) {
        // It goes down by descriptors.
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) => Err(e),
    };
    match remove() {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) if e.kind() == ErrorKind::PermissionDenied => {
            open_up(path)?;
            remove()
        }
        other => other,
    }
}

fn open_up(path: &Path) -> std::io::Result<()> {
    let mut dirs: Vec<(Rc<OwnedFd>, Option<OsString>)> = vec![(Rc::new(open_dir(CWD, path.as_os_str())?), None)];
    while let Some((parent, name)) = dirs.pop() {
        let dir = match name {
            None => parent,
            Some(name) => Rc::new(open_dir(&*parent, &name)?),
        };
        fs::set_permissions(held(&dir), fs::Permissions::from_mode(0o700))?;
        for entry in fs::read_dir(held(&dir))? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                dirs.push((Rc::clone(&dir), Some(entry.file_name())));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_and_nothing_stays_aside() {
        let dir = tempfile::tempdir().unwrap();
        let staging = dir.path().join("staging");
        fs::create_dir(&staging).unwrap();
        for bytes in [&b"one"[..], b"two"] {
            replace(&staging, dir.path(), "f", bytes).unwrap();
            assert_eq!(fs::read(dir.path().join("f")).unwrap(), bytes);
        }
        assert!(replace(&staging, &dir.path().join("missing"), "f", b"x").is_err());
        assert_eq!(fs::read_dir(&staging).unwrap().count(), 0);
    }

    #[test]
    fn staging_folders_of_the_dead_are_removed_and_live_ones_kept() {
        let dir = tempfile::tempdir().unwrap();
        let live = StagingDir::new(dir.path(), "live").unwrap();
        fs::create_dir(dir.path().join("dead")).unwrap();
        fs::write(dir.path().join("oci-layout.1.2.3"), "x").unwrap();
        let (aside, file) = create_aside(dir.path(), "live").unwrap();
        let other = StagingDir::new(dir.path(), "other").unwrap();
        assert!(live.path().exists() && other.path().exists() && !dir.path().join("dead").exists());
        assert!(aside.exists() && !dir.path().join("oci-layout.1.2.3").exists());
        drop(file);
        fs::remove_file(aside).unwrap();
        drop((live, other));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
