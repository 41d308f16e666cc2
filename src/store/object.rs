// SPDX-License-Identifier: MIT OR Apache-2.0
//! Contents of files by their sha256, shared by all layers, images and containers: `objects/ab/cdef...`.
//!
//! An object is written once, never changed, and read-only. Each has its bytes and nothing else: modes, owners and
//! names are in the indexes. They are written in a staging folder and moved into place by [`super::Publication`]. One
//! that is there with another size than its bytes have was damaged later, and is replaced.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use sha2::{Digest as _, Sha256};

use super::error::{At, StoreError};
use super::{Existing, Layout, Publication, Store};
use crate::layer::image::Objects;
use crate::model::sync::lock;
use crate::model::{Digest, FsError};

/// The objects of one store, for reading.
#[derive(Clone, Debug)]
pub struct StoredObjects {
    layout: Layout,
}

impl Store {
    /// The objects, for the layers of images.
    pub fn objects(&self) -> StoredObjects {
        StoredObjects { layout: self.layout().clone() }
    }

    /// Is there an object of this size? Its bytes are not read.
    pub fn has_object(&self, digest: &Digest, size: u64) -> bool {
        is_sound(&self.layout().object(digest), size) == Some(true)
    }
}

/// Has the object at `path` the right size? `None` when nothing is there.
fn is_sound(path: &Path, size: u64) -> Option<bool> {
    fs::symlink_metadata(path).ok().map(|meta| meta.is_file() && meta.len() == size)
}

impl Objects for StoredObjects {
    fn open(&self, digest: &Digest) -> Result<OwnedFd, FsError> {
        Ok(OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(self.layout.object(digest))?
            .into())
    }
}

/// Objects being written by many threads, in `objects/` of a staging folder.
#[derive(Debug)]
pub struct ObjectBatch {
    layout: Layout,
    dir: PathBuf,
    /// Objects that replace damaged ones of the store; made when the first comes.
    repairs: PathBuf,
    staged: Mutex<HashSet<Digest>>,
}

impl ObjectBatch {
    /// A batch in the staging folder `staging`.
    pub fn new(store: &Store, staging: &Path) -> Result<Self, StoreError> {
        let dir = staging.join("objects");
        fs::create_dir(&dir).writing("create", &dir)?;
        let repairs = staging.join("repairs");
        Ok(ObjectBatch { layout: store.layout().clone(), dir, repairs, staged: Mutex::default() })
    }

    /// Where the new objects are staged.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Moves all objects into place.
    pub fn publish(&self, publication: &mut Publication) -> Result<(), StoreError> {
        publication.objects(&self.dir)?;
        for digest in lock(&self.staged).iter() {
            let repair = self.repairs.join(digest.hex());
            if repair.exists() {
                publication.file(&repair, self.layout.object(digest), Existing::Replace)?;
            }
        }
        Ok(())
    }

    /// Stores a whole body, unless the store or the batch has it.
    pub fn put(&self, bytes: &[u8]) -> Result<Digest, StoreError> {
        let digest = Digest::of(bytes);
        if let Some((path, mut file)) = self.create(&digest, bytes.len() as u64)? {
            file.write_all(bytes).writing("write", &path)?;
        }
        Ok(digest)
    }

    /// Begins a body that comes in pieces; `number` tells the batch's unfinished bodies apart.
    pub fn begin(&self, number: u64) -> Result<ObjectWriter<'_>, StoreError> {
        let path = self.dir.with_file_name(format!("body.{number}"));
        let file = new_file(&path).writing("create", &path)?;
        Ok(ObjectWriter { batch: self, path, file, hash: Sha256::new(), size: 0 })
    }

    /// The file for a new object; `None` when there is one.
    fn create(&self, digest: &Digest, size: u64) -> Result<Option<(PathBuf, File)>, StoreError> {
        let Some(path) = self.claim(digest, size) else { return Ok(None) };
        let file = match new_file(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                self.make_folder(&path)?;
                new_file(&path)
            }
            other => other,
        };
        file.writing("create", &path).map(|file| Some((path, file)))
    }

    /// Where a new object is to be staged; `None` when there is one.
    fn claim(&self, digest: &Digest, size: u64) -> Option<PathBuf> {
        if !lock(&self.staged).insert(*digest) {
            return None;
        }
        let hex = digest.hex();
        match is_sound(&self.layout.object(digest), size) {
            Some(true) => None,
            Some(false) => {
                log::warn!("the object {digest} in the store has not {size} bytes and is written anew");
                Some(self.repairs.join(hex))
            }
            None => {
                let (fan, rest) = hex.split_at(2);
                Some(self.dir.join(fan).join(rest))
            }
        }
    }

    fn make_folder(&self, path: &Path) -> Result<(), StoreError> {
        let folder = path.parent().unwrap_or(&self.dir);
        match fs::create_dir(folder) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => Err(StoreError::writing("create", folder, e)),
            _ => Ok(()),
        }
    }
}

fn new_file(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o444).open(path)
}

/// A body that comes in pieces.
#[derive(Debug)]
pub struct ObjectWriter<'b> {
    batch: &'b ObjectBatch,
    path: PathBuf,
    file: File,
    hash: Sha256,
    size: u64,
}

impl ObjectWriter<'_> {
    /// Appends bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.hash.update(bytes);
        self.size += bytes.len() as u64;
        self.file.write_all(bytes).writing("write", &self.path)
    }

    /// Appends zeros, as a hole.
    pub fn skip(&mut self, len: u64) -> Result<(), StoreError> {
        const ZEROS: [u8; 4096] = [0; 4096];
        let mut left = len;
        while left > 0 {
            let part = usize::try_from(left).unwrap_or(usize::MAX).min(ZEROS.len());
            self.hash.update(ZEROS.get(..part).unwrap_or_default());
            left -= part as u64;
        }
        self.size += len;
        self.file.seek(SeekFrom::Start(self.size)).map(|_| ()).writing("write", &self.path)
    }

    /// Ends the body; it becomes an object of the batch unless there is one.
    pub fn finish(self) -> Result<Digest, StoreError> {
        // A hole at the end has not been written by anything.
        self.file.set_len(self.size).writing("write", &self.path)?;
        let digest = Digest(self.hash.finalize().into());
        match self.batch.claim(&digest, self.size) {
            None => fs::remove_file(&self.path).writing("remove", &self.path)?,
            Some(target) => {
                self.batch.make_folder(&target)?;
                fs::rename(&self.path, &target).writing("write", &target)?;
            }
        }
        Ok(digest)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::store::Access;

    fn read(objects: &StoredObjects, digest: &Digest) -> Vec<u8> {
        let mut bytes = Vec::new();
        File::from(objects.open(digest).unwrap()).read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn equal_bodies_are_one_read_only_object() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Access::Write).unwrap();
        let publish = |bodies: &[&[u8]]| {
            let staging = store.stage("t").unwrap();
            let batch = ObjectBatch::new(&store, staging.path()).unwrap();
            let digests: Vec<_> = bodies.iter().map(|b| batch.put(b).unwrap()).collect();
            let mut writer = batch.begin(0).unwrap();
            writer.write(b"st").unwrap();
            writer.skip(100_000).unwrap();
            let streamed = writer.finish().unwrap();
            let mut publication = store.publish(store.lock_loads().unwrap()).unwrap();
            batch.publish(&mut publication).unwrap();
            publication.commit();
            (digests, streamed)
        };
        let (first, streamed) = publish(&[b"one", b"two", b"one"]);
        let (second, again) = publish(&[b"two", b"three"]);
        let objects = store.objects();
        assert_eq!((first[0], first[1], streamed), (first[2], second[0], again));
        assert_eq!(read(&objects, &second[1]), b"three");
        let whole = read(&objects, &streamed);
        assert_eq!((whole.len(), &whole[..2], Digest::of(&whole)), (100_002, &b"st"[..], streamed));
        let meta = fs::metadata(store.layout().object(&streamed)).unwrap();
        assert_eq!(meta.mode() & 0o7777 & !0o044, 0o400);
        assert!(meta.blocks() * 512 < 100_000, "holes stay holes");
        assert_eq!(objects.open(&Digest([0; 32])).unwrap_err(), FsError::NotFound);
        assert_eq!(fs::read_dir(store.layout().staging()).unwrap().count(), 0);
    }
}
