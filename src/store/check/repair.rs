// SPDX-License-Identifier: MIT OR Apache-2.0
//! What mends a store. Each repair takes its lock, looks again, and changes one thing by a rename: killed at any moment,
//! it leaves either what was there or what is right, and the next one goes on.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::content::Part;
use super::{LOST, OCI_LAYOUT_BYTES, chain};
use crate::model::Digest;
use crate::oci::spec::BlobRef;
use crate::store::container::ContainerRecord;
use crate::store::error::At;
use crate::store::volume::VolumeRecord;
use crate::store::{Lock, Mode, Store, StoreError, Wait, atomic, layout};

/// A repair of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreRepair {
    /// Write `meta.json` anew.
    WriteMeta,
    /// Write `oci-layout` anew.
    WriteOciLayout,
    /// Write `index.json` anew, from the manifests in the store and the names that containers know.
    WriteNames,
    /// Make the folders of a store.
    MakeFolders,
    /// Remove what dead processes were writing.
    ClearStaging,
    /// Remove what was being removed.
    EmptyTrash,
    /// Remove locks of records that are gone.
    RemoveLocks,
    /// Put something that has no place here into `lost+found/`.
    MoveAside(PathBuf),
    /// Put a damaged blob, object or index into `lost+found/`, if it is still damaged.
    MoveDamaged {
        /// What it is.
        part: Part,
        /// Its name.
        digest: Digest,
        /// What the user has to do then, if somebody needs it.
        then: Option<String>,
    },
    /// Make a layer's index and missing objects anew from its blob; the damaged object goes to `lost+found/` before.
    /// Carried out by the engine, which knows how layers are read.
    Rebuild {
        /// The digest of the layer's uncompressed tar.
        layer: Digest,
        /// Its blob.
        blob: BlobRef,
        /// The damaged object or index.
        damaged: Option<(Part, Digest)>,
    },
    /// Remove an empty folder.
    RemoveEmpty(PathBuf),
    /// Remove containers whose making was cut short. Carried out by the engine, which knows what belongs to them.
    ClearIncomplete,
    /// Write the record of a container.
    WriteContainer(Box<ContainerRecord>),
    /// Make the upper and work directory of a container where they are missing.
    MakeUpper(String),
    /// Write the record of a volume.
    WriteVolume(VolumeRecord),
    /// Make a volume that a container names, empty.
    MakeVolume(VolumeRecord),
    /// Make the missing content folder of a volume.
    MakeData(String),
    /// Fill a volume to its end. Carried out by the engine.
    Fill(String),
}

impl StoreRepair {
    /// Does something remain to be done by the user?
    pub fn is_partial(&self) -> bool {
        matches!(self, StoreRepair::MoveDamaged { then: Some(_), .. })
    }

    /// What it does, as a participle.
    pub fn describe(&self) -> String {
        match self {
            StoreRepair::WriteMeta | StoreRepair::WriteOciLayout => "written anew".into(),
            StoreRepair::WriteNames => {
                "written anew from the manifests in the store; names that no container knows are lost".into()
            }
            StoreRepair::MakeFolders | StoreRepair::MakeData(_) | StoreRepair::MakeUpper(_) => {
                "made anew, empty".into()
            }
            StoreRepair::ClearStaging
            | StoreRepair::EmptyTrash
            | StoreRepair::RemoveLocks
            | StoreRepair::RemoveEmpty(_)
            | StoreRepair::ClearIncomplete => "removed".into(),
            StoreRepair::MoveAside(_) => format!("moved to the store's {LOST}/"),
            StoreRepair::MoveDamaged { then, .. } => {
                let then = then.as_ref().map(|then| format!("; then {then}")).unwrap_or_default();
                format!("moved to the store's {LOST}/{then}")
            }
            StoreRepair::Rebuild { damaged: None | Some((Part::Index, _)), .. } => {
                "made anew from the layer's blob".into()
            }
            StoreRepair::Rebuild { .. } => {
                format!("made anew from the layer's blob; the damaged one is in the store's {LOST}/")
            }
            StoreRepair::WriteContainer(_) | StoreRepair::WriteVolume(_) => "its record is written anew".into(),
            StoreRepair::MakeVolume(_) => "the volume is made anew, empty".into(),
            StoreRepair::Fill(_) => "filled to its end".into(),
        }
    }
}

impl Store {
    /// Carries a repair out. Those that are the engine's answer `Damaged`.
    pub fn repair(&self, repair: &StoreRepair) -> Result<(), StoreError> {
        self.check_writable()?;
        match repair {
            StoreRepair::WriteMeta => {
                self.make_folders()?;
                self.keep_aside(&self.layout().meta())?;
                self.write_meta()
            }
            StoreRepair::WriteOciLayout => {
                self.keep_aside(&self.layout().oci_layout())?;
                self.replace(self.root(), layout::OCI_LAYOUT, OCI_LAYOUT_BYTES.as_bytes())
            }
            StoreRepair::WriteNames => {
                let _lock = self.lock(Mode::Exclusive, Wait::Block)?;
                self.keep_aside(&self.layout().oci_index())?;
                self.write_names()
            }
            StoreRepair::MakeFolders => {
                for (folder, _) in layout::FOLDERS {
                    let path = self.root().join(folder);
                    let is_link_to_keep = path.is_dir() && !layout::EMPTIED.contains(&folder);
                    if fs::symlink_metadata(&path).is_ok_and(|meta| !meta.is_dir()) && !is_link_to_keep {
                        self.move_aside(&path)?;
                    }
                }
                self.make_folders()
            }
            StoreRepair::ClearStaging => atomic::clear_abandoned(&self.layout().staging(), self.lock_kind()),
            StoreRepair::EmptyTrash => self.clear_trash(),
            StoreRepair::RemoveLocks => self.clear_leftovers(),
            StoreRepair::MoveAside(path) => {
                let lock = self.lock_of(path)?;
                self.move_aside(path)?;
                self.drop_lock(lock, path)
            }
            StoreRepair::MoveDamaged { part, digest, .. } => self.move_damaged(*part, digest),
            StoreRepair::RemoveEmpty(path) => {
                let lock = self.lock_of(path)?;
                match fs::remove_dir(path) {
                    Err(e) if e.kind() != ErrorKind::NotFound => Err(StoreError::writing("remove", path, e)),
                    _ => self.drop_lock(lock, path),
                }
            }
            StoreRepair::WriteContainer(record) => {
                let _lock = self.lock_container(&record.id, Wait::Try)?;
                let dir = self.container_dir(&record.id);
                self.keep_aside(&dir.join(layout::CONTAINER_RECORD))?;
                self.save_container(record)
            }
            StoreRepair::MakeUpper(id) => {
                let _lock = self.lock_container(id, Wait::Try)?;
                self.make_upper(id)
            }
            StoreRepair::WriteVolume(record) => {
                let _lock = self.lock_volume(&record.name, Wait::Try)?;
                self.keep_aside(&self.layout().volume(&record.name).join(layout::VOLUME_RECORD))?;
                self.replace_volume(record)
            }
            StoreRepair::MakeVolume(record) => {
                let _lock = self.lock_volume(&record.name, Wait::Try)?;
                if self.load_volume(&record.name)?.is_some() { Ok(()) } else { self.create_volume(record) }
            }
            StoreRepair::MakeData(name) => {
                let _lock = self.lock_volume(name, Wait::Try)?;
                let data = self.layout().volume(name).join(layout::VOLUME_DATA);
                if fs::symlink_metadata(&data).is_ok() {
                    self.move_aside(&data)?;
                }
                crate::store::make_dir(&data, 0o755)?;
                atomic::sync_dir(&self.layout().volume(name))
            }
            StoreRepair::Rebuild { .. } | StoreRepair::ClearIncomplete | StoreRepair::Fill(_) => {
                Err(StoreError::damaged(self.root(), "this repair is not the store's"))
            }
        }
    }

    /// Moves a damaged blob, object or index away, if it is still damaged: loads are kept off meanwhile.
    pub fn move_damaged(&self, part: Part, digest: &Digest) -> Result<(), StoreError> {
        let _lock = self.lock(Mode::Exclusive, Wait::Block)?;
        let path = part.path(self, digest);
        match part.sum(self, digest, &mut |_| {}) {
            Ok(()) => Ok(()),
            Err(why) => {
                log::info!("{} is put aside: {why}", path.display());
                // An index is derived from its layer: nobody misses it.
                if part == Part::Index { self.discard(&path) } else { self.move_aside(&path) }
            }
        }
    }

    /// The lock under which something at `path` may be moved: of its container or volume, else the store's own.
    fn lock_of(&self, path: &Path) -> Result<Lock, StoreError> {
        let below = |folder: PathBuf| {
            let rest = path.strip_prefix(folder).ok()?;
            rest.components().next().and_then(|c| c.as_os_str().to_str().map(str::to_owned))
        };
        if let Some(id) = below(self.layout().containers()) {
            return self.lock_container(&id, Wait::Try);
        }
        if let Some(name) = below(self.layout().volumes()) {
            return self.lock_volume(&name, Wait::Try);
        }
        self.lock(Mode::Exclusive, Wait::Block)
    }

    /// Frees the lock of [`Store::lock_of`]; where the record itself has gone, its file goes too.
    fn drop_lock(&self, lock: Lock, path: &Path) -> Result<(), StoreError> {
        let layout = self.layout();
        let is_record = path.parent().is_some_and(|parent| parent == layout.containers() || parent == layout.volumes());
        if is_record { lock.remove() } else { Ok(()) }
    }

    /// Renames something into `lost+found/`, under a name that tells where it was. Absence is no error.
    pub(super) fn move_aside(&self, path: &Path) -> Result<(), StoreError> {
        let lost = self.lost()?;
        let target = self.lost_name(&lost, path);
        match fs::rename(path, &target) {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(StoreError::writing("move", path, e)),
        }
        atomic::sync_dir(&lost)?;
        path.parent().map_or(Ok(()), atomic::sync_dir)
    }

    /// Keeps the record at `path`, which is about to be replaced: a second name in `lost+found/`. What is no file moves.
    fn keep_aside(&self, path: &Path) -> Result<(), StoreError> {
        match fs::symlink_metadata(path) {
            Ok(meta) if meta.is_file() => {
                let lost = self.lost()?;
                let target = self.lost_name(&lost, path);
                if let Err(e) = fs::hard_link(path, &target) {
                    log::debug!("no second name for {}: {}", path.display(), chain(&e));
                    fs::copy(path, &target).writing("copy", path)?;
                }
                atomic::sync_dir(&lost)
            }
            Ok(_) => self.move_aside(path),
            Err(_) => Ok(()),
        }
    }

    fn lost(&self) -> Result<PathBuf, StoreError> {
        let lost = self.root().join(LOST);
        crate::store::make_dir(&lost, 0o700)?;
        atomic::sync_dir(self.root())?;
        Ok(lost)
    }

    fn lost_name(&self, lost: &Path, path: &Path) -> PathBuf {
        use std::os::unix::ffi::{OsStrExt, OsStringExt};
        let inner = path.strip_prefix(self.root()).unwrap_or(path);
        let mut name: Vec<u8> =
            inner.as_os_str().as_bytes().iter().map(|b| if *b == b'/' { b'_' } else { *b }).collect();
        name.truncate(180);
        name.extend_from_slice(atomic::fresh_name("").as_bytes());
        lost.join(std::ffi::OsString::from_vec(name))
    }
}
