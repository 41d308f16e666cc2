// SPDX-License-Identifier: MIT OR Apache-2.0
//! Locks of the store, on files in `locks/`: they end with their process, whatever ends it. One store uses one kind of
//! lock (flock, or fcntl where its filesystem refuses flock), chosen when it is made and recorded in `meta.json`.
//!
//! - The store's own lock: shared to use (a load that publishes, a create that refers to an image), exclusive to
//!   collect (removing what nobody needs). Mounted containers hold neither: their records keep their image.
//! - `loads`: shared by every load from before it looks what the store has until its end; exclusive, without waiting,
//!   by a failed load that takes back what it has published: while another is under way, that one may rely on it.
//! - `publish`: exclusive from the first file moved into place until all are kept or taken back.
//! - Named locks, one per record: `lock_record("container", id)`.
//!
//! Order: the store's lock, `loads`, `publish`, a named one; one named lock at a time, containers before volumes.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};

use crate::sys::lock::{self, Kind};
pub use crate::sys::lock::{Mode, Wait};

use super::atomic::is_at;
use super::error::{At, StoreError};
use super::plain;

/// A held lock; freed when dropped. It may be carried over a fork: it is held until the last copy is closed.
#[derive(Debug)]
pub struct Lock {
    /// `None` where a read-only store has no lock file: nobody can change it.
    file: Option<File>,
    path: PathBuf,
    kind: Kind,
}

impl Lock {
    /// Takes the lock of the file at `path`, making the file when missing.
    pub fn take(path: &Path, kind: Kind, mode: Mode, wait: Wait) -> Result<Self, StoreError> {
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(path)
                .writing("open the lock", path)?;
            if !acquire(&file, path, kind, mode, wait)? {
                return Err(StoreError::Locked { path: path.to_owned() });
            }
            // The file may have been removed by its holder while we waited: then the lock is of nothing.
            if is_at(&file, path) {
                return Ok(Lock { file: Some(file), path: path.to_owned(), kind });
            }
        }
    }

    /// Takes the shared lock of an existing file; a store on read-only media may have none.
    pub fn take_read_only(path: &Path, kind: Kind) -> Result<Self, StoreError> {
        let file = match plain::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Lock { file: None, path: path.to_owned(), kind });
            }
            Err(e) => return Err(StoreError::reading("open the lock", path, e)),
        };
        acquire(&file, path, kind, Mode::Shared, Wait::Block)?;
        Ok(Lock { file: Some(file), path: path.to_owned(), kind })
    }

    /// Makes a shared lock exclusive, if nobody else holds it. If not, it may be lost: for those who are about to end.
    pub fn try_alone(&self) -> Result<bool, StoreError> {
        self.file.as_ref().map_or(Ok(false), |file| acquire(file, &self.path, self.kind, Mode::Exclusive, Wait::Try))
    }

    /// Frees the lock and removes its file: for records that are gone.
    pub fn remove(self) -> Result<(), StoreError> {
        match fs::remove_file(&self.path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(StoreError::writing("remove", &self.path, e)),
            _ => Ok(()),
        }
    }

    /// The descriptor that holds the lock, to hand it on.
    pub fn file(&self) -> Option<&File> {
        self.file.as_ref()
    }
}

/// False when the lock is held and we do not wait.
pub(super) fn acquire(file: &File, path: &Path, kind: Kind, mode: Mode, wait: Wait) -> Result<bool, StoreError> {
    match lock::acquire(file, kind, mode, wait) {
        Err(errno) if lock::is_unsupported(errno) => {
            Err(StoreError::NoLocks { path: path.to_owned(), kind: Some(kind), source: errno.into() })
        }
        other => other.reading("lock", path),
    }
}

/// May a file be made to try a lock?
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Make {
    Yes,
    No,
}

/// The kind of lock that the filesystem of a store without record has, tried on the file at `path`.
///
/// Errors: `NoLocks` where it has none.
pub(super) fn probe(path: &Path, make: Make) -> Result<Kind, StoreError> {
    let file = OpenOptions::new().read(true).write(true).create(make == Make::Yes).truncate(false).open(path);
    let file = file.writing("open the lock", path)?;
    lock::probe(&file).reading("lock", path)?.ok_or_else(|| StoreError::NoLocks {
        path: path.to_owned(),
        kind: None,
        source: rustix::io::Errno::NOLCK.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_locks_meet_and_exclusive_ones_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("l");
        let a = Lock::take(&path, Kind::Flock, Mode::Shared, Wait::Try).unwrap();
        let b = Lock::take(&path, Kind::Flock, Mode::Shared, Wait::Try).unwrap();
        assert!(matches!(Lock::take(&path, Kind::Flock, Mode::Exclusive, Wait::Try), Err(StoreError::Locked { .. })));
        assert!(!a.try_alone().unwrap());
        drop(a);
        assert!(b.try_alone().unwrap());
        assert!(matches!(Lock::take(&path, Kind::Flock, Mode::Shared, Wait::Try), Err(StoreError::Locked { .. })));
        drop(b);
        Lock::take(&path, Kind::Flock, Mode::Exclusive, Wait::Try).unwrap().remove().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_waiter_does_not_get_the_lock_of_a_removed_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("l");
        let held = Lock::take(&path, Kind::Flock, Mode::Exclusive, Wait::Block).unwrap();
        let waiter = {
            let path = path.clone();
            std::thread::spawn(move || Lock::take(&path, Kind::Flock, Mode::Exclusive, Wait::Block).unwrap())
        };
        std::thread::sleep(std::time::Duration::from_millis(50));
        held.remove().unwrap();
        let second = waiter.join().unwrap();
        assert!(path.exists() && is_at(second.file().unwrap(), &path));
    }
}
