// SPDX-License-Identifier: MIT OR Apache-2.0
//! Checks the folders and records of containers and volumes. What lies in an upper is the business of `upper/check`.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use super::{LOST, StoreFinding, StoreRepair, chain, list, unreadable};
use crate::layer::whiteout::OVERRIDE_XATTR;
use crate::model::finding::{Cure, Finding};
use crate::store::container::{ContainerRecord, LIVE, LOG, MountSource, OwnershipForm, UPPER, WORK};
use crate::store::volume::VolumeRecord;
use crate::store::{Access, Store, StoreError, Wait, atomic, layout, plain};

/// Has it the form of a container's id?
fn is_id(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Can a volume be called so? (Docker's rule.)
fn is_volume_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

fn move_aside(path: &Path) -> Cure<StoreRepair> {
    Cure::Repair(StoreRepair::MoveAside(path.to_owned()))
}

impl Store {
    /// Checks all containers; answers those whose records can be used.
    pub fn check_containers(&self, findings: &mut Vec<StoreFinding>) -> Vec<ContainerRecord> {
        let dir = self.layout().containers();
        let mut records: Vec<ContainerRecord> = Vec::new();
        for name in list(&dir, "container", findings) {
            let path = dir.join(&name);
            if let Some(id) = name.to_str().filter(|name| is_id(name)) {
                records.extend(self.check_container(id, findings));
            } else {
                let says = "its name is no container's id: mlfs takes it for a second container of the same id";
                findings.push(Finding::damage(&path, "container", says, move_aside(&path)));
            }
        }
        self.check_names(&records, findings);
        records.sort_by(|a, b| a.name.cmp(&b.name));
        records
    }

    fn check_names(&self, records: &[ContainerRecord], findings: &mut Vec<StoreFinding>) {
        let mut by_name: HashMap<&str, &ContainerRecord> = HashMap::new();
        for record in records.iter().filter(|record| !record.incomplete) {
            if let Some(other) = by_name.insert(&record.name, record) {
                let short = |id: &str| id.chars().take(12).collect::<String>();
                let (own, other) = (short(&record.id), short(&other.id));
                let says = format!("the name {} is that of the container {other} too", record.name);
                let cure = Cure::Refused(format!("remove one of them by its id: `mlfs rm {own}` or `mlfs rm {other}`"));
                findings.push(Finding::damage(self.container_dir(&record.id), "container", says, cure));
            }
        }
    }

    fn check_container(&self, id: &str, findings: &mut Vec<StoreFinding>) -> Option<ContainerRecord> {
        let dir = self.container_dir(id);
        match fs::symlink_metadata(&dir) {
            Ok(meta) if meta.is_dir() => {}
            Ok(meta) => {
                let says = format!("it is {}, not the folder of a container", plain::kind_word(meta.file_type()));
                findings.push(Finding::damage(&dir, "container", says, move_aside(&dir)));
                return None;
            }
            Err(e) => {
                findings.push(unreadable(&dir, "container", &e));
                return None;
            }
        }
        let path = dir.join(layout::CONTAINER_RECORD);
        let record = match self.load_container(id) {
            Ok(Some(record)) => record,
            Ok(None) => {
                findings.push(self.without_record(&dir, "container"));
                return None;
            }
            Err(StoreError::Damaged { what, .. }) => {
                let says = format!("the record cannot be understood: {what}");
                let what = format!("mend it, or remove the container with `mlfs rm {}`", short(id));
                let cure = Cure::Refused(format!("{what} (what it has written lies in {})", dir.join(UPPER).display()));
                findings.push(Finding::damage(path, "container", says, cure));
                return None;
            }
            Err(e) => {
                findings.push(Finding::damage(
                    path,
                    "container",
                    chain(&e),
                    Cure::Refused("run fsck as its owner".into()),
                ));
                return None;
            }
        };
        self.check_leftovers_in(&dir, findings);
        if record.incomplete {
            if self.is_record_free("container", id) {
                let says = "a process ended while it made this container; it was never usable";
                findings.push(Finding::leftover(dir, "container", says, StoreRepair::ClearIncomplete));
            } else {
                findings.push(Finding::fine(dir, "container", "a running command is making it"));
            }
            return Some(record);
        }
        if record.id != id {
            let says =
                format!("its record is that of the container {}: the folder was copied or renamed", short(&record.id));
            let mended = ContainerRecord { id: id.to_owned(), mounted: None, ..record.clone() };
            let others = self.list_containers().map(|listing| listing.whole).unwrap_or_default();
            let is_copy = others.iter().filter(|other| other.name == record.name).count() > 1;
            let cure =
                if is_copy { move_aside(&dir) } else { Cure::Repair(StoreRepair::WriteContainer(Box::new(mended))) };
            findings.push(Finding::damage(&dir, "container", says, cure));
            return None;
        }
        self.check_upper_dirs(&record, findings);
        Some(record)
    }

    /// A folder without a record: an empty one is what a crash leaves.
    fn without_record(&self, dir: &Path, kind: &'static str) -> StoreFinding {
        if fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none()) {
            let says = "an empty folder without a record";
            return Finding::leftover(dir, kind, says, StoreRepair::RemoveEmpty(dir.to_owned()));
        }
        let says = "a folder without a record: no command knows what lies in it";
        Finding::damage(dir, kind, says, move_aside(dir))
    }

    fn check_leftovers_in(&self, dir: &Path, findings: &mut Vec<StoreFinding>) {
        let older = format!("{LOG}.1");
        let lost = format!("{WORK}.{LOST}");
        let known = [layout::CONTAINER_RECORD, UPPER, WORK, LIVE, LOG, &older, &lost];
        for name in list(dir, "container", findings) {
            let path = dir.join(&name);
            if name.to_str() == Some(&lost) {
                let says = "it holds what an earlier repair has put aside; look through it and remove it";
                findings.push(Finding::note(path, LOST, says));
            } else if name.to_str() == Some(LIVE) {
                match fs::symlink_metadata(&path) {
                    Ok(meta) if !meta.is_file() => {
                        let says = format!("it is {}, not a lock", plain::kind_word(meta.file_type()));
                        findings.push(Finding::damage(&path, "lock", says, move_aside(&path)));
                    }
                    _ => {}
                }
            } else if !known.iter().any(|known| name == **known) {
                findings.push(Finding::note(path, "foreign", "it is no part of a container; it is left alone"));
            }
        }
    }

    fn check_upper_dirs(&self, record: &ContainerRecord, findings: &mut Vec<StoreFinding>) {
        if let Some(upper) = &record.upper {
            if !Path::new(upper).is_dir() {
                let says = format!("the upper of the container {} is not there", record.name);
                let cure = Cure::Refused("bring it back, or remove the container with `mlfs rm`".into());
                findings.push(Finding::damage(upper, "upper", says, cure));
            }
            return;
        }
        let dir = self.container_dir(&record.id);
        for (name, what) in [(UPPER, "what it has written is gone"), (WORK, "it can be made anew")] {
            let path = dir.join(name);
            match fs::symlink_metadata(&path) {
                Ok(meta) if meta.is_dir() => {}
                Ok(meta) => {
                    let says = format!("it is {}, not a folder: {what}", plain::kind_word(meta.file_type()));
                    findings.push(Finding::damage(&path, "upper", says, made(record)));
                }
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                    let says = format!("the folder is missing from the container {}: {what}", record.name);
                    findings.push(Finding::damage(&path, "upper", says, made(record)));
                }
                Err(e) => findings.push(unreadable(&path, "upper", &e)),
            }
        }
    }

    /// Makes what is missing of upper and work directory. Call it under the container's lock.
    pub(super) fn make_upper(&self, id: &str) -> Result<(), StoreError> {
        let dir = self.container_dir(id);
        for (name, mode) in [(UPPER, 0o755), (WORK, 0o700)] {
            let path = dir.join(name);
            if fs::symlink_metadata(&path).is_ok_and(|meta| !meta.is_dir()) {
                self.move_aside(&path)?;
            }
            crate::store::make_dir(&path, mode)?;
        }
        atomic::sync_dir(&dir)
    }

    /// Does nobody hold the lock of this record?
    pub fn is_record_free(&self, kind: &str, id: &str) -> bool {
        let path = self.layout().locks().join(format!("{kind}-{id}"));
        match self.access() {
            Access::Write => !matches!(self.lock_record(kind, id, Wait::Try), Err(StoreError::Locked { .. })),
            Access::Read => atomic::is_abandoned(&path, self.lock_kind()) != Some(false),
        }
    }

    /// The record that a lock file is of, by the file's name.
    pub(super) fn record_of_lock(&self, name: &std::ffi::OsStr) -> Option<std::path::PathBuf> {
        match name.to_str()?.split_once('-')? {
            ("container", id) => Some(self.layout().container(id)),
            ("volume", name) => Some(self.layout().volume(name)),
            _ => None,
        }
    }

    /// Checks all volumes; answers those whose records can be used.
    pub fn check_volumes(&self, containers: &[ContainerRecord], findings: &mut Vec<StoreFinding>) -> Vec<VolumeRecord> {
        let dir = self.layout().volumes();
        let mut records = Vec::new();
        for name in list(&dir, "volume", findings) {
            let path = dir.join(&name);
            match name.to_str().filter(|name| is_volume_name(name)) {
                Some(name) => records.extend(self.check_volume(name, findings)),
                None => {
                    let says = "no volume can have this name";
                    findings.push(Finding::damage(&path, "volume", says, move_aside(&path)));
                }
            }
        }
        self.check_volume_users(containers, findings);
        records
    }

    /// Volumes that containers name and that are not there.
    fn check_volume_users(&self, containers: &[ContainerRecord], findings: &mut Vec<StoreFinding>) {
        for container in containers.iter().filter(|c| !c.incomplete) {
            for mount in &container.mounts {
                let MountSource::Volume { name, is_anonymous, labels, .. } = &mount.source else { continue };
                let path = self.layout().volume(name);
                if fs::symlink_metadata(&path).is_ok() {
                    continue;
                }
                let mut record = VolumeRecord::new(name, OwnershipForm::possible_here());
                (record.is_anonymous, record.labels) = (*is_anonymous, labels.clone());
                let says = format!("the volume {name} of the container {} is gone", container.name);
                findings.push(Finding::damage(path, "volume", says, Cure::Repair(StoreRepair::MakeVolume(record))));
            }
        }
    }

    fn check_volume(&self, name: &str, findings: &mut Vec<StoreFinding>) -> Option<VolumeRecord> {
        let dir = self.layout().volume(name);
        match fs::symlink_metadata(&dir) {
            Ok(meta) if meta.is_dir() => {}
            Ok(meta) => {
                let says = format!("it is {}, not the folder of a volume", plain::kind_word(meta.file_type()));
                findings.push(Finding::damage(&dir, "volume", says, move_aside(&dir)));
                return None;
            }
            Err(e) => {
                findings.push(unreadable(&dir, "volume", &e));
                return None;
            }
        }
        let path = dir.join(layout::VOLUME_RECORD);
        let data = dir.join(layout::VOLUME_DATA);
        let has_data = fs::symlink_metadata(&data).is_ok_and(|meta| meta.is_dir());
        let anew = |says: String| {
            let form = guess_form(&data);
            let mut record = VolumeRecord::new(name, form);
            record.is_anonymous = is_id(name);
            let says = format!("{says}; its content is whole, its labels and options are lost");
            Finding::damage(&path, "volume", says, Cure::Repair(StoreRepair::WriteVolume(record)))
        };
        let record = match self.load_volume(name) {
            Ok(Some(record)) => record,
            Ok(None) if has_data => {
                findings.push(anew("the record is missing".into()));
                return None;
            }
            Ok(None) => {
                findings.push(self.without_record(&dir, "volume"));
                return None;
            }
            Err(StoreError::Damaged { what, .. }) if has_data => {
                findings.push(anew(format!("the record cannot be understood: {what}")));
                return None;
            }
            Err(e) => {
                let cure = Cure::Refused(format!("mend it, or remove the volume with `mlfs volume rm {name}`"));
                findings.push(Finding::damage(path, "volume", chain(&e), cure));
                return None;
            }
        };
        if record.name != name {
            let says = format!("its record is that of the volume {}: the folder was copied or renamed", record.name);
            let mended = VolumeRecord { name: name.to_owned(), ..record };
            findings.push(Finding::damage(path, "volume", says, Cure::Repair(StoreRepair::WriteVolume(mended))));
            return None;
        }
        self.check_volume_data(&record, findings);
        Some(record)
    }

    fn check_volume_data(&self, record: &VolumeRecord, findings: &mut Vec<StoreFinding>) {
        let data = self.volume_data(record);
        let name = &record.name;
        match (fs::metadata(&data), record.device()) {
            (Ok(meta), _) if meta.is_dir() => {}
            (_, Some(device)) => {
                let says = format!("the directory of the volume {name} is not there");
                let cure = Cure::Refused("bring it back, or remove the volume with `mlfs volume rm`".into());
                findings.push(Finding::damage(device, "volume", says, cure));
                return;
            }
            _ => {
                let says = format!("the volume {name} has no content folder: what was in it is gone");
                findings.push(Finding::damage(data, "volume", says, Cure::Repair(StoreRepair::MakeData(name.clone()))));
                return;
            }
        }
        let copy = self.volume_copy(record);
        if record.incomplete {
            if self.is_record_free("volume", name) {
                let says = format!("a process ended while it filled the volume {name} from an image");
                findings.push(Finding::leftover(data, "volume", says, StoreRepair::Fill(name.clone())));
            } else {
                findings.push(Finding::fine(data, "volume", "a running command is filling it"));
            }
        } else if fs::symlink_metadata(&copy).is_ok() {
            let says = format!("a copy for filling the volume {name}, though its record says that it was filled");
            findings.push(Finding::damage(&copy, "volume", says, move_aside(&copy)));
        }
        let known = [layout::VOLUME_RECORD, layout::VOLUME_DATA, layout::VOLUME_COPY];
        let dir = self.layout().volume(name);
        for entry in list(&dir, "volume", findings) {
            if !known.iter().any(|known| entry == **known) {
                findings.push(Finding::note(dir.join(entry), "foreign", "it is no part of a volume; it is left alone"));
            }
        }
    }
}

fn made(record: &ContainerRecord) -> Cure<StoreRepair> {
    Cure::Repair(StoreRepair::MakeUpper(record.id.clone()))
}

fn short(id: &str) -> String {
    id.chars().take(12).collect()
}

/// How owners seem to be kept in a volume whose record is lost: by what stands on its entries.
fn guess_form(data: &Path) -> OwnershipForm {
    let has_override = |path: &Path| {
        let mut value = [0u8; 256];
        rustix::fs::lgetxattr(path, OVERRIDE_XATTR, &mut value[..]).is_ok()
    };
    let entries = fs::read_dir(data).into_iter().flatten().flatten();
    let is_override = has_override(data) || entries.take(1000).any(|entry| has_override(&entry.path()));
    if is_override { OwnershipForm::Override } else { OwnershipForm::possible_here() }
}
