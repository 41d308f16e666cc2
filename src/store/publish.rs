// SPDX-License-Identifier: MIT OR Apache-2.0
//! Moves staged files into place, all or none: what was moved is removed again unless [`Publication::commit`] is called.
//!
//! Files are named by their content, so one that is there already is as good as ours: a load does not stage what the
//! store has. Hence two locks. One load at a time publishes and commits, so nobody can have ended a load that relies on
//! what may still be taken back. And what others, still under way, may rely on is not taken back: it is left to the next
//! collection, as is what a crash in the middle leaves.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::error::{At, StoreError};
use super::{Layout, Lock, Mode, Store, Wait};

/// Whether a file that is there already gives way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// It stays; ours is dropped with its staging folder.
    Keep,
    /// It is replaced, atomically.
    Replace,
}

/// Files and folders that were moved into place and are not yet kept.
#[derive(Debug)]
pub struct Publication {
    layout: Layout,
    files: Vec<PathBuf>,
    folders: Vec<PathBuf>,
    load: Lock,
    /// Held until all is kept or taken back.
    _alone: Lock,
}

impl Store {
    /// Begins to publish: makes all that is staged durable, then waits for other loads that publish.
    ///
    /// `load` is the lock of [`Store::lock_loads`].
    pub fn publish(&self, load: Lock) -> Result<Publication, StoreError> {
        self.sync()?;
        let alone = Lock::take(&self.layout().locks().join("publish"), self.lock_kind(), Mode::Exclusive, Wait::Block)?;
        Ok(Publication { layout: self.layout().clone(), files: Vec::new(), folders: Vec::new(), load, _alone: alone })
    }

    /// Makes all files of the store durable: one call for thousands of files.
    pub fn sync(&self) -> Result<(), StoreError> {
        let dir = fs::File::open(self.root()).reading("open", self.root())?;
        rustix::fs::syncfs(&dir).writing("sync", self.root())
    }
}

impl Publication {
    /// Moves the staged file `from` to `to`.
    pub fn file(&mut self, from: &Path, to: PathBuf, existing: Existing) -> Result<(), StoreError> {
        match existing {
            Existing::Replace => {
                let is_new = !to.exists();
                fs::rename(from, &to).writing("write", &to)?;
                if is_new {
                    self.files.push(to);
                }
            }
            Existing::Keep => {
                if move_new(from, &to)? {
                    self.files.push(to);
                }
            }
        }
        Ok(())
    }

    /// Moves all objects staged in `from`, in folders by their first byte.
    pub fn objects(&mut self, from: &Path) -> Result<(), StoreError> {
        for folder in fs::read_dir(from).reading("list", from)? {
            let folder = folder.reading("list", from)?;
            let staged = folder.path();
            let target = self.layout.objects().join(folder.file_name());
            // In a young store whole folders can be moved.
            if move_new(&staged, &target)? {
                self.note_folder(target)?;
                continue;
            }
            for object in fs::read_dir(&staged).reading("list", &staged)? {
                let object = object.reading("list", &staged)?;
                let to = target.join(object.file_name());
                if move_new(&object.path(), &to)? {
                    self.files.push(to);
                }
            }
        }
        Ok(())
    }

    fn note_folder(&mut self, target: PathBuf) -> Result<(), StoreError> {
        for object in fs::read_dir(&target).reading("list", &target)? {
            self.files.push(object.reading("list", &target)?.path());
        }
        self.folders.push(target);
        Ok(())
    }

    /// Keeps what was moved.
    pub fn commit(mut self) {
        self.files.clear();
        self.folders.clear();
    }
}

impl Drop for Publication {
    fn drop(&mut self) {
        if self.files.is_empty() && self.folders.is_empty() {
            return;
        }
        match self.load.try_alone() {
            Ok(true) => {}
            Ok(false) => {
                return log::debug!("what was published is left to the next collection: another load may need it");
            }
            Err(e) => return log::warn!("what was published is left to the next collection: {e}"),
        }
        // Indexes before their objects: a layer with an index is taken for whole.
        for file in self.files.iter().rev() {
            if let Err(e) = fs::remove_file(file) {
                log::warn!("cannot take back {}: {e}", file.display());
            }
        }
        for folder in &self.folders {
            match fs::remove_dir(folder) {
                Err(e) if e.kind() != ErrorKind::DirectoryNotEmpty => {
                    log::warn!("cannot take back {}: {e}", folder.display());
                }
                _ => {}
            }
        }
    }
}

/// Moves `from` to `to`; false when something is there.
fn move_new(from: &Path, to: &Path) -> Result<bool, StoreError> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST | Errno::NOTEMPTY) => Ok(false),
        // Not every filesystem knows the flag. What is there has the same content, so replacing it does no harm.
        Err(Errno::INVAL | Errno::NOSYS) if to.exists() => Ok(false),
        Err(Errno::INVAL | Errno::NOSYS) => fs::rename(from, to).writing("write", to).map(|()| true),
        Err(e) => Err(e).writing("write", to),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Digest;
    use crate::store::Access;
    use crate::store::object::ObjectBatch;

    #[test]
    fn what_is_not_committed_is_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Access::Write).unwrap();
        let stage = |names: &[&str]| {
            let staged = store.stage("test").unwrap();
            for name in names {
                let path = staged.path().join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, name).unwrap();
            }
            staged
        };
        let there = |name: &str| store.layout().objects().join(name).exists();
        let staged = stage(&["aa/1", "aa/2", "bb/1"]);
        let mut publication = store.publish(store.lock_loads().unwrap()).unwrap();
        publication.objects(staged.path()).unwrap();
        assert!(there("aa/2") && there("bb/1"));
        drop(publication);
        assert!(!there("aa") && !there("bb"));

        let staged = stage(&["aa/1"]);
        let mut publication = store.publish(store.lock_loads().unwrap()).unwrap();
        publication.objects(staged.path()).unwrap();
        publication.commit();
        let staged = stage(&["aa/1", "aa/3"]);
        let mut publication = store.publish(store.lock_loads().unwrap()).unwrap();
        publication.objects(staged.path()).unwrap();
        assert!(there("aa/3"));
        drop(publication);
        assert!(there("aa/1") && !there("aa/3"));
    }

    /// Stages one object as a load does: nothing when the store has it.
    fn stage_object(store: &Store, bytes: &[u8]) -> (super::super::StagingDir, ObjectBatch, Digest) {
        let staging = store.stage("load").unwrap();
        let batch = ObjectBatch::new(store, staging.path()).unwrap();
        let digest = batch.put(bytes).unwrap();
        (staging, batch, digest)
    }

    #[test]
    fn what_a_load_under_way_relies_on_is_not_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Access::Write).unwrap();
        let failing = store.lock_loads().unwrap();
        let (_staged, batch, digest) = stage_object(&store, b"shared");
        let mut publication = store.publish(failing).unwrap();
        publication.objects(batch.dir()).unwrap();
        let object = store.layout().object(&digest);

        let other = store.lock_loads().unwrap();
        let (_other_staged, other_batch, _) = stage_object(&store, b"shared");
        assert_eq!(fs::read_dir(other_batch.dir()).unwrap().count(), 0, "the other load skips it");
        drop(publication);
        let mut publication = store.publish(other).unwrap();
        publication.objects(other_batch.dir()).unwrap();
        publication.commit();
        assert!(object.exists());
    }

    #[test]
    fn nobody_commits_while_another_may_take_back() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Access::Write).unwrap();
        let (staged, batch, _) = stage_object(&store, b"one");
        let mut publication = store.publish(store.lock_loads().unwrap()).unwrap();
        publication.objects(batch.dir()).unwrap();
        let waiting = {
            let (store, load) = (store.clone(), store.lock_loads().unwrap());
            std::thread::spawn(move || store.publish(load).unwrap().commit())
        };
        std::thread::sleep(std::time::Duration::from_millis(100));
        assert!(!waiting.is_finished());
        publication.commit();
        waiting.join().unwrap();
        drop(staged);
    }
}
