// SPDX-License-Identifier: MIT OR Apache-2.0
//! Volumes on disk: `volumes/NAME/volume.json` beside `volumes/NAME/_data`, a plain directory.
//!
//! Or, with the options `type=none,o=bind,device=DIR`, a directory of the host. A volume is made whole in `staging/`
//! and renamed into place. Its lock (`lock_record("volume", NAME)`) is held to make, fill and remove it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::container::OwnershipForm;
use super::error::At;
use super::{Listing, Lock, Store, StoreError, Wait, atomic, layout, timestamp};

/// `volume.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeRecord {
    /// The name.
    pub name: String,
    /// When it was made.
    pub created: String,
    /// It was made for one container and goes with it.
    #[serde(default)]
    pub is_anonymous: bool,
    /// Labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Driver options as given.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    /// How owners are kept in it.
    pub ownership: OwnershipForm,
    /// It is being filled from an image, or a crash has ended that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub incomplete: bool,
}

impl VolumeRecord {
    /// A new, empty volume.
    pub fn new(name: &str, ownership: OwnershipForm) -> Self {
        VolumeRecord {
            name: name.to_owned(),
            created: timestamp::now(),
            is_anonymous: false,
            labels: BTreeMap::new(),
            options: BTreeMap::new(),
            ownership,
            incomplete: false,
        }
    }

    /// The directory of the host that it stands for, if it is such a volume.
    pub fn device(&self) -> Option<&str> {
        self.options.get("device").map(String::as_str)
    }
}

/// A volume that nobody sees yet; it disappears when dropped.
#[derive(Debug)]
pub struct StagedVolume {
    staged: atomic::StagingDir,
    name: String,
}

impl StagedVolume {
    /// Where its content lies meanwhile.
    pub fn data(&self) -> PathBuf {
        self.staged.path().join("v").join(layout::VOLUME_DATA)
    }

    /// Puts it in place. Call it under [`Store::lock_volume`].
    pub fn publish(self, store: &Store) -> Result<(), StoreError> {
        let target = store.layout().volume(&self.name);
        fs::rename(self.staged.path().join("v"), &target).writing("create", &target)?;
        atomic::sync_dir(&store.layout().volumes())
    }
}

impl Store {
    /// The lock of one volume.
    pub fn lock_volume(&self, name: &str, wait: Wait) -> Result<Lock, StoreError> {
        self.lock_record("volume", name, wait)
    }

    /// Where the content of a volume lies.
    pub fn volume_data(&self, record: &VolumeRecord) -> PathBuf {
        match record.device() {
            Some(device) => PathBuf::from(device),
            None => self.layout().volume(&record.name).join(layout::VOLUME_DATA),
        }
    }

    /// Where the copy for a volume of this store lies whole while its entries are moved into the content.
    pub fn volume_copy(&self, record: &VolumeRecord) -> PathBuf {
        self.layout().volume(&record.name).join(layout::VOLUME_COPY)
    }

    /// The record of a volume, if it is there.
    pub fn load_volume(&self, name: &str) -> Result<Option<VolumeRecord>, StoreError> {
        self.load_record(&self.layout().volume(name).join(layout::VOLUME_RECORD))
    }

    /// The volume with this name; `NotFound` otherwise.
    pub fn find_volume(&self, name: &str) -> Result<VolumeRecord, StoreError> {
        self.load_volume(name)?.ok_or_else(|| StoreError::NotFound {
            kind: "volume",
            name: name.to_owned(),
            path: self.root().to_owned(),
        })
    }

    /// All volumes, by name, and what is damaged among them.
    pub fn list_volumes(&self) -> Result<Listing<VolumeRecord>, StoreError> {
        let mut listing: Listing<VolumeRecord> = self.list_records(&self.layout().volumes(), layout::VOLUME_RECORD)?;
        listing.whole.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(listing)
    }

    /// Makes a volume that is not there yet, empty. Call it under [`Store::lock_volume`].
    pub fn create_volume(&self, record: &VolumeRecord) -> Result<(), StoreError> {
        self.stage_volume(record)?.publish(self)
    }

    /// Makes a volume aside, empty: nobody sees it before [`StagedVolume::publish`].
    pub fn stage_volume(&self, record: &VolumeRecord) -> Result<StagedVolume, StoreError> {
        let staged = self.stage("volume")?;
        let made = staged.path().join("v");
        fs::DirBuilder::new().mode(0o755).create(&made).writing("create", &made)?;
        if record.device().is_none() {
            let data = made.join(layout::VOLUME_DATA);
            fs::DirBuilder::new().mode(0o755).create(&data).writing("create", &data)?;
        }
        self.replace_record(&made, layout::VOLUME_RECORD, record)?;
        Ok(StagedVolume { staged, name: record.name.clone() })
    }

    /// Writes the record of a volume anew. Call it under [`Store::lock_volume`].
    pub fn replace_volume(&self, record: &VolumeRecord) -> Result<(), StoreError> {
        self.replace_record(&self.layout().volume(&record.name), layout::VOLUME_RECORD, record)
    }

    /// Removes a volume and its content (never a directory of the host). Call it under [`Store::lock_volume`].
    pub fn remove_volume(&self, name: &str) -> Result<(), StoreError> {
        self.discard(&self.layout().volume(name))
    }

    /// The names of the containers that use a volume, whatever their state.
    pub fn volume_users(&self, name: &str) -> Result<Vec<String>, StoreError> {
        let records = self.load_containers()?;
        Ok(records.into_iter().filter(|c| c.is_using_volume(name)).map(|c| c.name).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Access;

    #[test]
    fn volumes_are_made_found_used_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Access::Write).unwrap();
        assert!(store.find_volume("data").unwrap_err().is_not_found());
        let record = VolumeRecord::new("data", OwnershipForm::Override);
        store.create_volume(&record).unwrap();
        assert_eq!(store.find_volume("data").unwrap(), record);
        assert!(store.volume_data(&record).is_dir());
        assert_eq!(store.volume_data(&record), dir.path().join("volumes/data/_data"));
        store.create_container(&super::super::container::tests::record("user")).unwrap();
        assert_eq!(store.volume_users("data").unwrap(), ["user"]);
        store.remove_volume("data").unwrap();
        assert!(store.list_volumes().unwrap().whole.is_empty());
    }

    #[test]
    fn a_volume_of_a_host_directory_leaves_it_alone() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("s"), Access::Write).unwrap();
        let device = dir.path().join("d");
        fs::create_dir(&device).unwrap();
        fs::write(device.join("f"), "x").unwrap();
        let mut record = VolumeRecord::new("d", OwnershipForm::Native);
        record.options.insert("device".into(), device.to_str().unwrap().into());
        store.create_volume(&record).unwrap();
        assert_eq!(store.volume_data(&record), device);
        store.remove_volume("d").unwrap();
        assert!(device.join("f").exists());
    }
}
