// SPDX-License-Identifier: MIT OR Apache-2.0
//! Files that appear whole or not at all, and staging folders that disappear when dropped.
//!
//! Everything is first written in the store's own `staging/` (the same filesystem as its destination), never in
//! `$TMPDIR`. A staging folder is flocked by its owner: one whose lock can be had was left by a dead process.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FlockOperation, flock};

use super::error::{At, StoreError};

/// Replaces `dir/name` by a file with `bytes`: written aside in `staging`, synced, renamed, and the folder synced.
///
/// After an error the old file is still whole (if only the last sync failed, either file may be there after a crash).
pub fn replace(staging: &Path, dir: &Path, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
    let target = dir.join(name);
    let aside = staging.join(fresh_name(name));
    let written = write_synced(&aside, bytes).and_then(|()| fs::rename(&aside, &target).writing("write", &target));
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

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let mut file = File::create_new(path).writing("create", path)?;
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

/// Removes the staging folders of dead processes. What cannot be removed is left for the next time.
fn clear_abandoned(staging: &Path) -> Result<(), StoreError> {
    for entry in fs::read_dir(staging).reading("list", staging)? {
        let path = entry.reading("list", staging)?.path();
        let Ok(dir) = File::open(&path) else { continue };
        if !dir.metadata().is_ok_and(|m| m.is_dir()) {
            // A file of `replace`, left by a crash (a live one exists for milliseconds).
            let age = dir.metadata().and_then(|m| m.modified()).ok().and_then(|m| m.elapsed().ok());
            if age.is_some_and(|a| a.as_secs() > 3600)
                && let Err(e) = fs::remove_file(&path)
            {
                log::debug!("cannot remove {}: {e}", path.display());
            }
            continue;
        }
        if flock(&dir, FlockOperation::NonBlockingLockExclusive).is_ok()
            && is_at(&dir, &path)
            && let Err(e) = fs::remove_dir_all(&path)
        {
            log::debug!("cannot remove {}: {e}", path.display());
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
        let other = StagingDir::new(dir.path(), "other").unwrap();
        assert!(live.path().exists() && other.path().exists() && !dir.path().join("dead").exists());
        drop((live, other));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
