// SPDX-License-Identifier: MIT OR Apache-2.0
//! Blobs of images as they came: manifests, configurations, layers. `blobs/sha256/HEX`.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::error::{At, StoreError};
use super::{Publication, Store, plain};
use crate::model::Digest;
use crate::store::publish::Existing;

/// A blob being written in a staging folder, summed up on the way.
#[derive(Debug)]
pub struct BlobWriter {
    path: PathBuf,
    file: File,
    hash: Sha256,
    size: u64,
}

/// A blob that is complete but not published.
#[derive(Clone, Debug)]
pub struct StagedBlob {
    path: PathBuf,
    /// Its digest.
    pub digest: Digest,
    /// Its size.
    pub size: u64,
}

impl BlobWriter {
    /// A blob in the staging folder `staging`, under a `name` of its own there.
    pub fn new(staging: &Path, name: &str) -> Result<Self, StoreError> {
        let path = staging.join(name);
        let file = File::create_new(&path).writing("create", &path)?;
        Ok(BlobWriter { path, file, hash: Sha256::new(), size: 0 })
    }

    /// Appends bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.hash.update(bytes);
        self.size += bytes.len() as u64;
        self.file.write_all(bytes).writing("write", &self.path)
    }

    /// Ends the blob.
    pub fn finish(self) -> StagedBlob {
        StagedBlob { path: self.path, digest: Digest(self.hash.finalize().into()), size: self.size }
    }
}

impl StagedBlob {
    /// Stages a small blob.
    pub fn of(staging: &Path, name: &str, bytes: &[u8]) -> Result<Self, StoreError> {
        let mut writer = BlobWriter::new(staging, name)?;
        writer.write(bytes)?;
        Ok(writer.finish())
    }

    /// Moves the blob into place.
    pub fn publish(&self, store: &Store, publication: &mut Publication) -> Result<(), StoreError> {
        publication.file(&self.path, store.layout().blob(&self.digest), Existing::Keep)
    }
}

impl Store {
    /// Is there a blob of this digest and size?
    pub fn has_blob(&self, digest: &Digest, size: u64) -> bool {
        fs::symlink_metadata(self.layout().blob(digest)).is_ok_and(|m| m.is_file() && m.len() == size)
    }

    /// The size of a blob, as it is stored; 0 when it is not there (layers of archives have none).
    pub fn blob_size(&self, digest: &Digest) -> u64 {
        fs::metadata(self.layout().blob(digest)).map_or(0, |m| m.len())
    }

    /// Reads a small blob and checks its digest.
    pub fn load_blob(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, StoreError> {
        let path = self.layout().blob(digest);
        let file = match plain::open(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                return Err(StoreError::NotFound {
                    kind: "blob",
                    name: digest.to_string(),
                    path: self.root().to_owned(),
                });
            }
            Err(e) if e.kind() == ErrorKind::InvalidData => return Err(StoreError::damaged(&path, e.to_string())),
            other => other.reading("open", &path)?,
        };
        let mut bytes = Vec::new();
        file.take(limit + 1).read_to_end(&mut bytes).reading("read", &path)?;
        if bytes.len() as u64 > limit {
            return Err(StoreError::damaged(&path, format!("it is above {limit} bytes")));
        }
        let found = Digest::of(&bytes);
        if found != *digest {
            return Err(StoreError::damaged(&path, format!("its digest is {found}")));
        }
        Ok(bytes)
    }
}
