// SPDX-License-Identifier: MIT OR Apache-2.0
//! Files that appear whole or not at all, and staging folders that disappear when dropped.
//!
//! Everything is first written in the store's own `staging/` (the same filesystem as its destination), never in
//! `$TMPDIR`. What lies there is locked by its owner: what has a lock that can be had was left by a dead process. A file is
//! locked itself; a folder `X` by the file `X.lock` beside it, made before it and removed after it: on NFS a directory's
//! lock ends at the node, and fcntl has none for directories.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{CWD, Mode, OFlags, openat};

use crate::sys::lock::{self, Kind, Wait};

use super::error::{At, StoreError};

/// Replaces `dir/name` by a file with `bytes`: written aside in `staging`, synced, renamed, and the folder synced.
///
/// After an error the old file is still whole (if only the last sync failed, either file may be there after a crash).
pub fn replace(staging: &Path, kind: Kind, dir: &Path, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
    let target = dir.join(name);
    let (aside, mut file) = create_aside(staging, kind, name)?;
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

/// A new file in `staging`, locked: one whose lock can be had was left by a dead process.
fn create_aside(staging: &Path, kind: Kind, name: &str) -> Result<(PathBuf, File), StoreError> {
    loop {
        let path = staging.join(fresh_name(name));
        if let Some(file) = create_locked(&path, kind)? {
            return Ok((path, file));
        }
    }
}

/// Makes a file and locks it. `None` when another process took it for an abandoned one between the two, and removes it.
fn create_locked(path: &Path, kind: Kind) -> Result<Option<File>, StoreError> {
    let file = File::options().read(true).write(true).create_new(true).open(path).writing("create", path)?;
    let is_locked = match super::lock::acquire(&file, path, kind, lock::Mode::Exclusive, Wait::Try) {
        Ok(is_locked) => is_locked,
        Err(error) => {
            if let Err(e) = fs::remove_file(path) {
                log::debug!("cannot remove {}: {e}", path.display());
            }
            return Err(error);
        }
    };
    Ok((is_locked && is_at(&file, path)).then_some(file))
}

/// The lock beside a staging folder.
fn lock_beside(folder: &Path) -> PathBuf {
    let mut name = folder.as_os_str().to_owned();
    name.push(".lock");
    name.into()
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
    pub fn new(staging: &Path, kind: Kind, hint: &str) -> Result<Self, StoreError> {
        clear_abandoned(staging, kind)?;
        loop {
            let path = staging.join(fresh_name(hint));
            let Some(lock) = create_locked(&lock_beside(&path), kind)? else { continue };
            let staged = StagingDir { path, _lock: lock };
            fs::DirBuilder::new().mode(0o700).create(&staged.path).writing("create", &staged.path)?;
            return Ok(staged);
        }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for StagingDir {
    fn drop(&mut self) {
        let is_gone = |e: &std::io::Error| e.kind() == ErrorKind::NotFound;
        for removed in [fs::remove_dir_all(&self.path), fs::remove_file(lock_beside(&self.path))] {
            if let Err(e) = removed
                && !is_gone(&e)
            {
                log::warn!("cannot remove {}: {e}", self.path.display());
            }
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

/// Opens a file for its lock. Never waits, whatever somebody has put there.
fn open_lock(path: &Path, access: &mut fs::OpenOptions) -> std::io::Result<File> {
    access.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)
}

/// Has the staged file or folder at `path` been left by a dead process? `None` for what can have no lock.
pub(super) fn is_abandoned(path: &Path, kind: Kind) -> Option<bool> {
    let is_dir = fs::symlink_metadata(path).ok()?.is_dir();
    let lock_path = if is_dir { lock_beside(path) } else { path.to_owned() };
    match open_lock(&lock_path, &mut File::options()) {
        // A folder's lock is made before it and removed after it.
        Err(e) if is_dir && e.kind() == ErrorKind::NotFound => Some(true),
        Err(_) => None,
        Ok(file) if !file.metadata().ok()?.is_file() => None,
        Ok(file) => {
            let is_free = lock::acquire(&file, kind, lock::Mode::Shared, Wait::Try).is_ok_and(|taken| taken);
            Some(is_free && is_at(&file, &lock_path))
        }
    }
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
pub(super) fn clear_abandoned(staging: &Path, kind: Kind) -> Result<(), StoreError> {
    let folder = Folder::open(staging)?;
    for name in folder.names()? {
        if let Err(e) = clear_one(&folder, &name, kind) {
            log::debug!("cannot remove {}: {e}", staging.join(name).display());
        }
    }
    Ok(())
}

/// Removes one entry of `staging/` if nobody holds its lock; a folder with the lock beside it.
fn clear_one(folder: &Folder, name: &OsStr, kind: Kind) -> std::io::Result<()> {
    // A lock goes after the folder that it is of.
    let name = match name.as_encoded_bytes().strip_suffix(b".lock") {
        Some(of) => OsStr::from_bytes(of),
        None => name,
    };
    let path = folder.path(name);
    let is_folder = fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir());
    let beside = lock_beside(&path);
    let is_beside = is_folder || fs::symlink_metadata(&beside).is_ok();
    let lock_path = if is_beside { beside } else { path.clone() };
    let _held = match open_lock(&lock_path, File::options().write(true)) {
        Err(e) if is_folder && e.kind() == ErrorKind::NotFound => None,
        Err(e) => return Err(e),
        Ok(file) => {
            if !lock::acquire(&file, kind, lock::Mode::Exclusive, Wait::Try)? || !is_at(&file, &lock_path) {
                return Ok(());
            }
            Some(file)
        }
    };
    folder.remove(name)?;
    match is_beside {
        true => fs::remove_file(&lock_path).or_else(|e| if e.kind() == ErrorKind::NotFound { Ok(()) } else { Err(e) }),
        false => Ok(()),
    }
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
            replace(&staging, Kind::Fcntl, dir.path(), "f", bytes).unwrap();
            assert_eq!(fs::read(dir.path().join("f")).unwrap(), bytes);
        }
        assert!(replace(&staging, Kind::Fcntl, &dir.path().join("missing"), "f", b"x").is_err());
        assert_eq!(fs::read_dir(&staging).unwrap().count(), 0);
    }

    #[test]
    fn staging_folders_of_the_dead_are_removed_and_live_ones_kept() {
        let dir = tempfile::tempdir().unwrap();
        let live = StagingDir::new(dir.path(), Kind::Fcntl, "live").unwrap();
        fs::create_dir(dir.path().join("dead")).unwrap();
        fs::write(dir.path().join("oci-layout.1.2.3"), "x").unwrap();
        let (aside, file) = create_aside(dir.path(), Kind::Fcntl, "live").unwrap();
        let other = StagingDir::new(dir.path(), Kind::Fcntl, "other").unwrap();
        assert!(live.path().exists() && other.path().exists() && !dir.path().join("dead").exists());
        assert!(aside.exists() && !dir.path().join("oci-layout.1.2.3").exists());
        drop(file);
        fs::remove_file(aside).unwrap();
        drop((live, other));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
