// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where things lie in a store. `docs/store.md` describes them.

use std::path::{Path, PathBuf};

use crate::model::Digest;

/// The format version and the features of the store.
pub const META: &str = "meta.json";
/// The mark of an OCI image layout.
pub const OCI_LAYOUT: &str = "oci-layout";
/// Names of images: the index of the OCI image layout.
pub const OCI_INDEX: &str = "index.json";
/// The record in each container's folder.
pub const CONTAINER_RECORD: &str = "container.json";
/// The record in each volume's folder.
pub const VOLUME_RECORD: &str = "volume.json";
/// The content in each volume's folder.
pub const VOLUME_DATA: &str = "_data";
/// The copy of the image's content in a volume's folder, while the volume is filled.
pub const VOLUME_COPY: &str = "_fill";

/// The folders of a store and their modes: what holds live files of containers is closed to others.
pub(super) const FOLDERS: [(&str, u32); 9] = [
    ("locks", 0o755),
    ("staging", 0o700),
    ("trash", 0o700),
    ("blobs", 0o755),
    ("blobs/sha256", 0o755),
    ("objects", 0o755),
    ("indexes", 0o755),
    ("containers", 0o700),
    ("volumes", 0o700),
];

/// Those whose content is removed. A user may spread a store over filesystems by links to other folders, but never these:
/// whatever such a link leads to would be emptied.
pub(super) const EMPTIED: [&str; 3] = ["locks", "staging", "trash"];

/// The paths of one store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The paths of the store at `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Layout { root: root.into() }
    }

    /// The store itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `meta.json`.
    pub fn meta(&self) -> PathBuf {
        self.root.join(META)
    }

    /// `oci-layout`.
    pub fn oci_layout(&self) -> PathBuf {
        self.root.join(OCI_LAYOUT)
    }

    /// `index.json`.
    pub fn oci_index(&self) -> PathBuf {
        self.root.join(OCI_INDEX)
    }

    /// The folder of blobs.
    pub fn blobs(&self) -> PathBuf {
        self.root.join("blobs/sha256")
    }

    /// One blob.
    pub fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(digest.hex())
    }

    /// The folder of objects.
    pub fn objects(&self) -> PathBuf {
        self.root.join("objects")
    }

    /// One object: `objects/ab/cdef...`.
    pub fn object(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        let (fan, rest) = hex.split_at(2);
        self.objects().join(fan).join(rest)
    }

    /// The folder of layer indexes.
    pub fn indexes(&self) -> PathBuf {
        self.root.join("indexes")
    }

    /// The index of the layer whose uncompressed tar has this digest.
    pub fn index(&self, diff_id: &Digest) -> PathBuf {
        self.indexes().join(diff_id.hex())
    }

    /// The folder of containers.
    pub fn containers(&self) -> PathBuf {
        self.root.join("containers")
    }

    /// The folder of one container.
    pub fn container(&self, id: &str) -> PathBuf {
        self.containers().join(id)
    }

    /// The folder of volumes.
    pub fn volumes(&self) -> PathBuf {
        self.root.join("volumes")
    }

    /// The folder of one volume.
    pub fn volume(&self, name: &str) -> PathBuf {
        self.volumes().join(name)
    }

    /// Where files are written before they are renamed into place.
    pub fn staging(&self) -> PathBuf {
        self.root.join("staging")
    }

    /// Where trees are renamed to before they are removed.
    pub fn trash(&self) -> PathBuf {
        self.root.join("trash")
    }

    /// The lock files.
    pub fn locks(&self) -> PathBuf {
        self.root.join("locks")
    }

    /// May a store have this name in its root?
    pub(super) fn is_ours(name: &str) -> bool {
        [META, OCI_LAYOUT, OCI_INDEX].contains(&name) || FOLDERS.iter().any(|(folder, _)| *folder == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_fan_out_by_their_first_byte() {
        let layout = Layout::new("/s");
        let digest = Digest([0xab; 32]);
        assert_eq!(layout.object(&digest), Path::new("/s/objects/ab").join("ab".repeat(31)));
        assert_eq!(layout.blob(&digest), Path::new("/s/blobs/sha256").join("ab".repeat(32)));
        assert!(Layout::is_ours("blobs") && !Layout::is_ours("etc"));
    }
}
