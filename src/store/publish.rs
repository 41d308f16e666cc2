// SPDX-License-Identifier: MIT OR Apache-2.0
//! Moves staged files into place, all or none: what was moved is removed again unless [`Publication::commit`] is called.
//!
//! Files are named by their content, so one that is there already is as good as ours, and several loads may publish
//! the same at once. A crash in the middle leaves files that nobody refers to; the next collection removes them.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::error::{At, StoreError};
use super::{Layout, Store};

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
}

impl Store {
    /// Begins to publish. Everything staged should be durable: see [`Store::sync`].
    pub fn publish(&self) -> Publication {
        Publication { layout: self.layout().clone(), files: Vec::new(), folders: Vec::new() }
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
        for file in &self.files {
            if let Err(e) = fs::remove_file(file) {
                log::warn!("cannot take back {}: {e}", file.display());
            }
        }
        for folder in &self.folders {
            match fs::remove_dir(folder) {
                // Another load has put something in.
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
    use crate::store::Access;

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
        let mut publication = store.publish();
        publication.objects(staged.path()).unwrap();
        assert!(there("aa/2") && there("bb/1"));
        drop(publication);
        assert!(!there("aa") && !there("bb"));

        let staged = stage(&["aa/1"]);
        let mut publication = store.publish();
        publication.objects(staged.path()).unwrap();
        publication.commit();
        let staged = stage(&["aa/1", "aa/3"]);
        let mut publication = store.publish();
        publication.objects(staged.path()).unwrap();
        assert!(there("aa/3"));
        drop(publication);
        assert!(there("aa/1") && !there("aa/3"));
    }
}
