// SPDX-License-Identifier: MIT OR Apache-2.0
//! Locks of the store, by flock on files in `locks/`: they end with their process, whatever ends it.
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

use rustix::fs::{FlockOperation, flock};
use rustix::io::{Errno, retry_on_intr};

use super::atomic::is_at;
use super::error::{At, StoreError};
use super::plain;

/// Together with others, or alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Many holders at once.
    Shared,
    /// One holder.
    Exclusive,
}

/// Whether to wait for a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Until it is free.
    Block,
    /// Not at all: [`StoreError::Locked`].
    Try,
}

/// A held lock; freed when dropped. It may be carried over a fork: it is held until the last copy is closed.
#[derive(Debug)]
pub struct Lock {
    /// `None` where a read-only store has no lock file: nobody can change it.
    file: Option<File>,
    path: PathBuf,
}

impl Lock {
    /// Takes the lock of the file at `path`, making the file when missing.
    pub fn take(path: &Path, mode: Mode, wait: Wait) -> Result<Self, StoreError> {
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(path)
                .writing("open the lock", path)?;
            if !acquire(&file, path, mode, wait)? {
                return Err(StoreError::Locked { path: path.to_owned() });
            }
            // The file may have been removed by its holder while we waited: then the lock is of nothing.
            if is_at(&file, path) {
                return Ok(Lock { file: Some(file), path: path.to_owned() });
            }
        }
    }

    /// Takes the shared lock of an existing file; a store on read-only media may have none.
    pub fn take_read_only(path: &Path) -> Result<Self, StoreError> {
        let file = match plain::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Lock { file: None, path: path.to_owned() });
            }
            Err(e) => return Err(StoreError::reading("open the lock", path, e)),
        };
        acquire(&file, path, Mode::Shared, Wait::Block)?;
        Ok(Lock { file: Some(file), path: path.to_owned() })
    }

    /// Makes a shared lock exclusive, if nobody else holds it. If not, it may be lost: for those who are about to end.
    pub fn try_alone(&self) -> Result<bool, StoreError> {
        self.file.as_ref().map_or(Ok(false), |file| acquire(file, &self.path, Mode::Exclusive, Wait::Try))
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
fn acquire(file: &File, path: &Path, mode: Mode, wait: Wait) -> Result<bool, StoreError> {
    let operation = match (mode, wait) {
        (Mode::Shared, Wait::Block) => FlockOperation::LockShared,
        (Mode::Shared, Wait::Try) => FlockOperation::NonBlockingLockShared,
        (Mode::Exclusive, Wait::Block) => FlockOperation::LockExclusive,
        (Mode::Exclusive, Wait::Try) => FlockOperation::NonBlockingLockExclusive,
    };
    match retry_on_intr(|| flock(file, operation)) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(e) => Err(e).reading("lock", path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_locks_meet_and_exclusive_ones_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("l");
        let a = Lock::take(&path, Mode::Shared, Wait::Try).unwrap();
        let b = Lock::take(&path, Mode::Shared, Wait::Try).unwrap();
        assert!(matches!(Lock::take(&path, Mode::Exclusive, Wait::Try), Err(StoreError::Locked { .. })));
        assert!(!a.try_alone().unwrap());
        drop(a);
        assert!(b.try_alone().unwrap());
        assert!(matches!(Lock::take(&path, Mode::Shared, Wait::Try), Err(StoreError::Locked { .. })));
        drop(b);
        Lock::take(&path, Mode::Exclusive, Wait::Try).unwrap().remove().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_waiter_does_not_get_the_lock_of_a_removed_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("l");
        let held = Lock::take(&path, Mode::Exclusive, Wait::Block).unwrap();
        let waiter = {
            let path = path.clone();
            std::thread::spawn(move || Lock::take(&path, Mode::Exclusive, Wait::Block).unwrap())
        };
        std::thread::sleep(std::time::Duration::from_millis(50));
        held.remove().unwrap();
        let second = waiter.join().unwrap();
        assert!(path.exists() && is_at(second.file().unwrap(), &path));
    }
}
