// SPDX-License-Identifier: MIT OR Apache-2.0
//! Containers on disk: `containers/ID/container.json` beside `upper/`, `work/`, the log and the liveness lock.
//!
//! A record is written with `incomplete` before anything else is made and without it when all is there: what a crash
//! leaves incomplete is removed by the next command that can take its lock. Whether a container is mounted is never
//! read from the record alone: the lock on `live`, held by its daemon, *is* its life; the record says where.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::model::ids::IdMap;

use super::error::At;
use super::{Listing, Lock, Mode, Store, StoreError, Wait, atomic, layout, lock, plain};

/// The upper in a container's folder.
pub const UPPER: &str = "upper";
/// Its work directory.
pub const WORK: &str = "work";
/// The file whose lock is the life of the container's daemon.
pub const LIVE: &str = "live";
/// The log in a container's folder; the older half has `.1` appended.
pub const LOG: &str = "mlfs.log";

/// How owners are kept in an upper or a volume; chosen once, never mixed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OwnershipForm {
    /// As the owners of the host's files.
    Native,
    /// In an extended attribute.
    Override,
    /// Not at all: everything belongs to the mount's fixed owner.
    Fixed,
}

impl OwnershipForm {
    /// The form in which this process can keep every owner: `Native` for a root with a range of ids.
    pub fn possible_here() -> Self {
        let has_range = crate::sys::proc::count_user_ids() >= 65_536;
        if crate::sys::proc::euid() == 0 && has_range { OwnershipForm::Native } else { OwnershipForm::Override }
    }
}

/// One layer of a container; in JSON a text: an absolute path, or a digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum LayerRecord {
    /// A directory of the host.
    Dir(String),
    /// A layer of the store: the digest of its uncompressed tar.
    Stored(crate::model::Digest),
}

impl From<String> for LayerRecord {
    fn from(text: String) -> Self {
        text.parse().map_or(LayerRecord::Dir(text), LayerRecord::Stored)
    }
}

impl From<LayerRecord> for String {
    fn from(layer: LayerRecord) -> String {
        match layer {
            LayerRecord::Dir(path) => path,
            LayerRecord::Stored(digest) => digest.to_string(),
        }
    }
}

/// One volume, bind or tmpfs of a container, resolved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MountRecord {
    /// Where in the tree.
    pub target: String,
    /// What stands there.
    pub source: MountSource,
    /// Refuse writes.
    #[serde(default)]
    pub read_only: bool,
}

/// What a mount of a container shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "type")]
pub enum MountSource {
    /// A volume of the store.
    #[serde(rename_all = "camelCase")]
    Volume {
        /// Its name; 64 hexadecimal digits for an anonymous one.
        name: String,
        /// It goes with the container.
        is_anonymous: bool,
        /// Do not fill it from the image.
        no_copy: bool,
        /// Labels for a volume that is made at first use.
        #[serde(default)]
        labels: BTreeMap<String, String>,
    },
    /// A file or directory of the host, by its absolute path.
    #[serde(rename_all = "camelCase")]
    Bind {
        /// The path.
        path: String,
        /// Make a missing directory, also at the next start.
        is_created: bool,
    },
    /// A tmpfs, empty at every start.
    #[serde(rename_all = "camelCase")]
    Tmpfs {
        /// Size limit in bytes; `None` is the default.
        size: Option<u64>,
        /// Size limit in hundredths of the memory.
        percent: Option<u8>,
        /// Mode of its root.
        mode: Option<u32>,
        /// Owner of its root.
        uid: Option<u32>,
        /// Group of its root.
        gid: Option<u32>,
    },
}

/// Where a container is mounted now, or was when its daemon died.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MountedRecord {
    /// The mountpoint, absolute, symlinks resolved.
    pub mountpoint: String,
    /// Device number (major, minor) of the FUSE filesystem: tells this mount from a later one at the same place.
    pub dev: (u32, u32),
    /// The daemon, for people to read; nothing is decided by it.
    pub pid: u32,
    /// The boot the mount belongs to.
    pub boot_id: String,
    /// The host the mount belongs to.
    pub host: String,
    /// The mount namespace it was made in.
    pub namespace: String,
    /// The daemon's control socket.
    pub socket: Option<String>,
    /// When.
    pub since: String,
}

/// `container.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerRecord {
    /// 64 hexadecimal digits.
    pub id: String,
    /// The name.
    pub name: String,
    /// Being made: to be removed if its maker is gone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub incomplete: bool,
    /// When it was made.
    pub created: String,
    /// The manifest's digest, for containers of an image.
    #[serde(default)]
    pub image: Option<crate::model::Digest>,
    /// The image as it was asked for.
    #[serde(default)]
    pub image_name: Option<String>,
    /// The layers, bottom first.
    pub layers: Vec<LayerRecord>,
    /// The upper where it is not in the container's folder (`--upper`); never deleted.
    #[serde(default)]
    pub upper: Option<String>,
    /// How the upper keeps owners.
    pub ownership: OwnershipForm,
    /// How user ids are shown.
    #[serde(default)]
    pub uids: IdMap,
    /// How group ids are shown.
    #[serde(default)]
    pub gids: IdMap,
    /// Volumes, binds and tmpfs, outer ones first.
    #[serde(default)]
    pub mounts: Vec<MountRecord>,
    /// The root refuses writes.
    #[serde(default)]
    pub read_only: bool,
    /// Discard it when it is unmounted.
    #[serde(default)]
    pub rm: bool,
    /// Other users may enter.
    #[serde(default)]
    pub allow_other: bool,
    /// Set-id bits count.
    #[serde(default)]
    pub suid: bool,
    /// Device nodes open.
    #[serde(default)]
    pub dev: bool,
    /// Who reads and writes contents.
    #[serde(default)]
    pub io: crate::model::IoMode,
    /// How long a busy mount is served after SIGTERM, in milliseconds.
    pub stop_timeout_ms: u64,
    /// Labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The last mountpoint, for `start` without one.
    #[serde(default)]
    pub mountpoint: Option<String>,
    /// Set while it is mounted; what a crash leaves here makes the container dead.
    #[serde(default)]
    pub mounted: Option<MountedRecord>,
    /// When it was unmounted last.
    #[serde(default)]
    pub finished: Option<String>,
}

/// A new id: 64 hexadecimal digits of chance. Also the names of anonymous volumes.
pub fn new_id() -> Result<String, StoreError> {
    let mut bytes = [0u8; 32];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        filled += rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty())
            .reading("get random bytes from", std::path::Path::new("getrandom(2)"))?;
    }
    Ok(crate::model::Digest(bytes).hex())
}

impl ContainerRecord {
    /// Does it use the volume?
    pub fn is_using_volume(&self, volume: &str) -> bool {
        self.mounts.iter().any(|m| matches!(&m.source, MountSource::Volume { name, .. } if name == volume))
    }

    /// Its anonymous volumes.
    pub fn anonymous_volumes(&self) -> impl Iterator<Item = &str> {
        self.mounts.iter().filter_map(|m| match &m.source {
            MountSource::Volume { name, is_anonymous: true, .. } => Some(name.as_str()),
            _ => None,
        })
    }
}

impl Store {
    /// The folder of a container.
    pub fn container_dir(&self, id: &str) -> PathBuf {
        self.layout().container(id)
    }

    /// The lock of one container: whoever changes its record or its mount holds it.
    pub fn lock_container(&self, id: &str, wait: Wait) -> Result<Lock, StoreError> {
        self.lock_record("container", id, wait)
    }

    /// Makes the folder and writes the first record. Call it under [`Store::lock_container`].
    ///
    /// Errors: `NameTaken` when another container has the name.
    pub fn create_container(&self, record: &ContainerRecord) -> Result<(), StoreError> {
        let _names = self.lock_free_name(&record.name)?;
        let dir = self.container_dir(&record.id);
        fs::DirBuilder::new().mode(0o700).create(&dir).writing("create", &dir)?;
        let written = self.save_container(record);
        if written.is_err()
            && let Err(e) = fs::remove_dir_all(&dir)
        {
            log::warn!("cannot remove {}: {e}", dir.display());
        }
        written
    }

    /// Gives a container another name. Call it under [`Store::lock_container`].
    ///
    /// Errors: `NameTaken` when a container has the name.
    pub fn rename_container(&self, record: &ContainerRecord, name: &str) -> Result<(), StoreError> {
        let _names = self.lock_free_name(name)?;
        self.save_container(&ContainerRecord { name: name.to_owned(), ..record.clone() })
    }

    /// The lock of all names, when this one is free.
    fn lock_free_name(&self, name: &str) -> Result<Lock, StoreError> {
        let names = self.lock_record("names", "containers", Wait::Block)?;
        match self.list_containers()?.whole.into_iter().find(|c| c.name == name) {
            None => Ok(names),
            Some(other) => Err(StoreError::NameTaken {
                kind: "container",
                name: name.to_owned(),
                path: self.container_dir(&other.id),
            }),
        }
    }

    /// Replaces the record. Call it under [`Store::lock_container`].
    pub fn save_container(&self, record: &ContainerRecord) -> Result<(), StoreError> {
        self.replace_record(&self.container_dir(&record.id), layout::CONTAINER_RECORD, record)
    }

    /// The record of the container with this id, if it is there.
    pub fn load_container(&self, id: &str) -> Result<Option<ContainerRecord>, StoreError> {
        self.load_record(&self.container_dir(id).join(layout::CONTAINER_RECORD))
    }

    /// All records, incomplete ones too, by name; an error when one cannot be read.
    pub fn load_containers(&self) -> Result<Vec<ContainerRecord>, StoreError> {
        self.list_containers()?.all()
    }

    /// All records, incomplete ones too, by name, and what is damaged among them.
    pub fn list_containers(&self) -> Result<Listing<ContainerRecord>, StoreError> {
        let mut listing: Listing<ContainerRecord> =
            self.list_records(&self.layout().containers(), layout::CONTAINER_RECORD)?;
        listing.whole.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(listing)
    }

    /// The container with this name, this id, or the only one whose id begins so (at least 6 digits).
    ///
    /// Errors: `NotFound`; `Damaged` when the id is that of a container whose record cannot be read.
    pub fn find_container(&self, name: &str) -> Result<ContainerRecord, StoreError> {
        let Listing { whole, damaged } = self.list_containers()?;
        if let Some(record) = whole.iter().find(|r| !r.incomplete && (r.name == name || r.id == name)) {
            return Ok(record.clone());
        }
        let is_prefix = |id: &str| name.len() >= 6 && id.starts_with(name);
        let whole = whole.into_iter().filter(|r| !r.incomplete && is_prefix(&r.id)).map(Ok);
        let damaged = damaged.into_iter().filter(|d| is_prefix(&d.id)).map(|d| Err(d.error));
        let mut fitting = whole.chain(damaged);
        match (fitting.next(), fitting.next()) {
            (Some(found), None) => found,
            _ => Err(StoreError::NotFound { kind: "container", name: name.to_owned(), path: self.root().to_owned() }),
        }
    }

    /// The id of the container whose record cannot be read and whose id is this or begins so (at least 6 digits).
    pub fn find_damaged_container(&self, name: &str) -> Result<Option<String>, StoreError> {
        if !matches!(self.find_container(name), Err(StoreError::Damaged { .. })) {
            return Ok(None);
        }
        Ok(self.list_containers()?.damaged.into_iter().map(|d| d.id).find(|id| id.starts_with(name)))
    }

    /// Removes the folder, renamed away first. Call it under [`Store::lock_container`].
    pub fn remove_container(&self, id: &str) -> Result<(), StoreError> {
        self.discard(&self.container_dir(id))
    }

    /// Is the container's daemon alive?
    pub fn is_container_live(&self, id: &str) -> Result<bool, StoreError> {
        let path = self.container_dir(id).join(LIVE);
        let file = match plain::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(StoreError::reading("open", &path, e)),
        };
        // A shared lock: two commands that look at the same time must not take each other for the daemon.
        Ok(!lock::acquire(&file, &path, self.lock_kind(), Mode::Shared, Wait::Try)?)
    }

    /// Takes the liveness lock for a daemon that is about to be: it is inherited by fork and freed by its end.
    ///
    /// Somebody may just be looking ([`Store::is_container_live`]); a daemon holds it for longer than the wait here.
    pub fn take_live_lock(&self, id: &str) -> Result<File, StoreError> {
        let path = self.container_dir(id).join(LIVE);
        let file = File::options().create(true).truncate(false).read(true).write(true).open(&path);
        let file = file.writing("create", &path)?;
        for _ in 0..100 {
            if lock::acquire(&file, &path, self.lock_kind(), Mode::Exclusive, Wait::Try)? {
                return Ok(file);
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        Err(StoreError::Locked { path })
    }

    /// Removes folders without a record: a crash came between the two.
    pub fn clear_empty_containers(&self) -> Result<(), StoreError> {
        let dir = self.layout().containers();
        for entry in fs::read_dir(&dir).reading("list", &dir)? {
            let entry = entry.reading("list", &dir)?;
            let is_empty = fs::read_dir(entry.path()).is_ok_and(|mut d| d.next().is_none());
            let Some(id) = entry.file_name().to_str().map(str::to_owned) else { continue };
            if is_empty && let Ok(lock) = self.lock_container(&id, Wait::Try) {
                // Only empty folders go this way; a maker that got further keeps its own.
                if let Err(e) = fs::remove_dir(entry.path()) {
                    log::debug!("cannot remove {}: {e}", entry.path().display());
                }
                lock.remove()?;
            }
        }
        Ok(())
    }
}

/// Makes `upper/` and `work/` in a container's folder, durable.
pub fn create_upper(store: &Store, id: &str) -> Result<(), StoreError> {
    let dir = store.container_dir(id);
    for (name, mode) in [(UPPER, 0o755), (WORK, 0o700)] {
        let path = dir.join(name);
        fs::DirBuilder::new().mode(mode).create(&path).writing("create", &path)?;
    }
    atomic::sync_dir(&dir)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::store::Access;

    pub(crate) fn record(name: &str) -> ContainerRecord {
        ContainerRecord {
            id: new_id().unwrap(),
            name: name.to_owned(),
            incomplete: false,
            created: super::super::timestamp::now(),
            image: None,
            image_name: None,
            layers: vec![LayerRecord::Dir("/l".into()), LayerRecord::Stored(crate::model::Digest([7; 32]))],
            upper: None,
            ownership: OwnershipForm::Native,
            uids: IdMap::Identity,
            gids: IdMap::Fixed(3),
            mounts: vec![MountRecord {
                target: "/data".into(),
                source: MountSource::Volume {
                    name: "data".into(),
                    is_anonymous: false,
                    no_copy: false,
                    labels: BTreeMap::new(),
                },
                read_only: true,
            }],
            read_only: false,
            rm: true,
            allow_other: false,
            suid: false,
            dev: false,
            io: crate::model::IoMode::Auto,
            stop_timeout_ms: 10_000,
            labels: BTreeMap::new(),
            mountpoint: None,
            mounted: None,
            finished: None,
        }
    }

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Access::Write).unwrap();
        (dir, store)
    }

    #[test]
    fn records_round_trip_and_are_found_by_name_id_and_prefix() {
        let (_dir, store) = store();
        let one = record("one");
        store.create_container(&one).unwrap();
        store.create_container(&record("two")).unwrap();
        assert_eq!(store.find_container("one").unwrap(), one);
        assert_eq!(store.find_container(&one.id).unwrap(), one);
        assert_eq!(store.find_container(&one.id[..12]).unwrap(), one);
        assert!(store.find_container("o").unwrap_err().is_not_found());
        assert!(matches!(store.create_container(&record("one")), Err(StoreError::NameTaken { .. })));
        assert_eq!(store.load_containers().unwrap().len(), 2);
        assert!(matches!(store.rename_container(&one, "two"), Err(StoreError::NameTaken { .. })));
        store.rename_container(&one, "three").unwrap();
        assert_eq!(store.find_container("three").unwrap().id, one.id);
        assert!(store.find_container("one").is_err());
        store.remove_container(&one.id).unwrap();
        assert!(store.find_container("three").is_err());
    }

    #[test]
    fn concurrent_makers_agree_on_one_owner_of_a_name() {
        let (_dir, store) = store();
        let won = std::thread::scope(|s| {
            let makers: Vec<_> = (0..8).map(|_| s.spawn(|| store.create_container(&record("same")).is_ok())).collect();
            makers.into_iter().filter(|_| true).map(|m| usize::from(m.join().unwrap())).sum::<usize>()
        });
        assert_eq!(won, 1);
    }

    #[test]
    fn a_damaged_record_hides_no_other() {
        let (_dir, store) = store();
        let one = record("one");
        let bad = record("bad");
        store.create_container(&one).unwrap();
        store.create_container(&bad).unwrap();
        fs::write(store.container_dir(&bad.id).join(layout::CONTAINER_RECORD), "{\"id\":").unwrap();
        assert_eq!(store.find_container("one").unwrap(), one);
        assert_eq!(store.find_container(&one.id[..12]).unwrap(), one);
        assert!(store.find_container("bad").unwrap_err().is_not_found());
        assert!(matches!(store.find_container(&bad.id[..12]), Err(StoreError::Damaged { .. })));
        assert_eq!(store.find_damaged_container(&bad.id[..12]).unwrap(), Some(bad.id.clone()));
        assert_eq!(store.find_damaged_container("one").unwrap(), None);
        store.create_container(&record("two")).unwrap();
        let listing = store.list_containers().unwrap();
        assert_eq!((listing.whole.len(), listing.damaged.len()), (2, 1));
        assert!(store.load_containers().is_err(), "who must know all is told");
        assert!(store.volume_users("data").is_err());
    }

    #[test]
    fn empty_folders_go() {
        let (_dir, store) = store();
        let one = record("one");
        store.create_container(&one).unwrap();
        fs::create_dir(store.container_dir("empty")).unwrap();
        store.clear_empty_containers().unwrap();
        assert!(store.load_container(&one.id).unwrap().is_some());
        assert!(!store.container_dir("empty").exists());
    }

    #[test]
    fn liveness_is_a_lock() {
        let (_dir, store) = store();
        let one = record("one");
        store.create_container(&one).unwrap();
        assert!(!store.is_container_live(&one.id).unwrap());
        let live = store.take_live_lock(&one.id).unwrap();
        assert!(store.is_container_live(&one.id).unwrap());
        drop(live);
        assert!(!store.is_container_live(&one.id).unwrap());
    }
}
