// SPDX-License-Identifier: MIT OR Apache-2.0
//! Checks of everything a store holds, for `fsck`. A check only looks, and takes no lock of its own; what would mend a
//! finding is a [`StoreRepair`], carried out later, each under the lock it needs and after a second look.
//!
//! Nothing that could be somebody's data is deleted: what has no place in the store goes to `lost+found/`.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::{Access, CREATE_LOCK, Layout, Meta, OCI_LAYOUT_BYTES, READ_ONLY_COMPATIBLE, Store, StoreError};
use super::{atomic, layout, lock, plain};
use crate::model::finding::{Cure, Finding, Grade};
use crate::sys::lock::Kind;

pub mod content;
pub mod images;
pub mod records;
pub mod repair;

pub use content::Part;
pub use repair::StoreRepair;

/// Something that was found in a store.
pub type StoreFinding = Finding<StoreRepair>;

/// Where repairs put what they do not understand.
pub const LOST: &str = "lost+found";

/// May a check go on, and may it repair?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readable {
    /// It may do both.
    Yes,
    /// The store has features that this mlfs may only read.
    ReadOnly,
}

impl Store {
    /// Opens a store to check it: also one whose `meta.json` cannot be read. Nothing is made.
    ///
    /// Errors: `Newer` and `NotAStore`, since there is nothing that this mlfs could check.
    pub fn open_to_check(root: &Path, access: Access) -> Result<(Self, Readable, Vec<StoreFinding>), StoreError> {
        let root = std::path::absolute(root).map_err(|e| StoreError::reading("find", root, e))?;
        let mut store = Store { layout: Layout::new(root), access, locks: Kind::Flock };
        let mut readable = Readable::Yes;
        let path = store.layout.meta();
        let mut findings = Vec::new();
        match store.load_record::<Meta>(&path) {
            Ok(Some(meta)) => {
                Store { access: Access::Read, ..store.clone() }.check_meta(&meta)?;
                store.locks = meta.locks();
                if meta.read_only_compatible.iter().any(|f| !READ_ONLY_COMPATIBLE.contains(&f.as_str())) {
                    readable = Readable::ReadOnly;
                }
            }
            Ok(None) => {
                store.check_foreign()?;
                if store.layout.blobs().is_dir() || store.layout.containers().is_dir() {
                    let says = "it is missing: other versions of mlfs cannot tell whether they may use the store";
                    findings.push(Finding::damage(path, "record", says, Cure::Repair(StoreRepair::WriteMeta)));
                }
            }
            Err(StoreError::Damaged { what, .. }) => {
                let says = format!("it cannot be understood, so that no command opens the store: {what}");
                findings.push(Finding::damage(path, "record", says, Cure::Repair(StoreRepair::WriteMeta)));
            }
            Err(error) => return Err(error),
        }
        // Without a record, what was chosen when the store was made is what its filesystem has.
        if !findings.is_empty()
            && let Ok(kind) = lock::probe(&store.layout.locks().join(CREATE_LOCK), lock::Make::No)
        {
            store.locks = kind;
        }
        Ok((store, readable, findings))
    }

    /// Checks what is not an image, a container or a volume: the frame of the store.
    pub fn check_frame(&self) -> Vec<StoreFinding> {
        let mut findings = Vec::new();
        let root = self.root();
        if fs::symlink_metadata(root).is_err_and(|e| e.kind() == ErrorKind::NotFound) {
            return findings;
        }
        for (folder, _) in layout::FOLDERS {
            let path = root.join(folder);
            match fs::symlink_metadata(&path) {
                Ok(meta) if meta.is_dir() => {}
                // A link to a folder elsewhere is the user's way to spread a store.
                Ok(meta) if meta.is_symlink() && path.is_dir() && !layout::EMPTIED.contains(&folder) => {}
                Ok(meta) => {
                    let says = format!("it is {}, not a folder", plain::kind_word(meta.file_type()));
                    findings.push(Finding::damage(path, "folder", says, Cure::Repair(StoreRepair::MakeFolders)));
                }
                Err(e) if e.kind() == ErrorKind::NotFound => {
                    let says = "the folder is missing (copies of stores may lack empty ones)";
                    findings.push(Finding::leftover(path, "folder", says, StoreRepair::MakeFolders));
                }
                Err(e) => findings.push(unreadable(path, "folder", &e)),
            }
        }
        self.check_oci_layout(&mut findings);
        for name in list(root, "folder", &mut findings) {
            let text = name.to_string_lossy();
            if !Layout::is_ours(&text) && text != LOST {
                findings.push(Finding::note(root.join(&name), "foreign", "it is no part of a store; it is left alone"));
            }
        }
        self.check_staging(&mut findings);
        let lost = root.join(LOST);
        let kept = fs::read_dir(&lost).map_or(0, Iterator::count);
        if kept > 0 {
            let says = format!("it holds what earlier repairs have put aside ({kept}); look through it and remove it");
            findings.push(Finding::note(lost, LOST, says));
        }
        findings
    }

    fn check_oci_layout(&self, findings: &mut Vec<StoreFinding>) {
        let path = self.layout.oci_layout();
        let is_sound = |bytes: &[u8]| {
            let value: Option<serde_json::Value> = serde_json::from_slice(bytes).ok();
            value.is_some_and(|v| v.get("imageLayoutVersion").is_some_and(serde_json::Value::is_string))
        };
        let says = match plain::read(&path) {
            Ok(Some(bytes)) if is_sound(&bytes) => return,
            Ok(Some(_)) => "it cannot be understood: other programs do not read the images".to_owned(),
            Ok(None) => "it is missing: other programs do not read the images".to_owned(),
            Err(StoreError::Damaged { what, .. }) => what,
            Err(e) => return findings.push(Finding::damage(path, "record", chain(&e), Cure::Refused(MAY_NOT.into()))),
        };
        findings.push(Finding::damage(path, "record", says, Cure::Repair(StoreRepair::WriteOciLayout)));
    }

    /// What dead processes have left: staged files, trees on their way out, locks of records that are gone.
    fn check_staging(&self, findings: &mut Vec<StoreFinding>) {
        // A link in place of one of them was told with the folders, and what it leads to is not ours.
        let list = |folder: &Path, kind, findings: &mut Vec<StoreFinding>| match fs::symlink_metadata(folder) {
            Ok(meta) if meta.is_symlink() => Vec::new(),
            _ => list(folder, kind, findings),
        };
        let staging = self.layout.staging();
        for name in list(&staging, "folder", findings) {
            let path = staging.join(name);
            match atomic::is_abandoned(&path, self.lock_kind()) {
                Some(true) => {
                    let says = "a process that has ended was writing it; nothing of it was in use";
                    findings.push(Finding::leftover(path, "staging", says, StoreRepair::ClearStaging));
                }
                Some(false) => findings.push(Finding::fine(path, "staging", "a running command is writing it")),
                None => {
                    let says = "nothing of mlfs makes such a thing here";
                    let cure = Cure::Repair(StoreRepair::MoveAside(path.clone()));
                    findings.push(Finding::damage(path, "staging", says, cure));
                }
            }
        }
        let trash = self.layout.trash();
        for name in list(&trash, "folder", findings) {
            let says = "it was being removed when a process ended";
            findings.push(Finding::leftover(trash.join(name), "trash", says, StoreRepair::EmptyTrash));
        }
        let locks = self.layout.locks();
        for name in list(&locks, "folder", findings) {
            let path = locks.join(&name);
            match fs::symlink_metadata(&path) {
                Ok(meta) if meta.is_file() => {}
                Ok(meta) => {
                    let says = format!("it is {}, not a lock", plain::kind_word(meta.file_type()));
                    let cure = Cure::Repair(StoreRepair::MoveAside(path.clone()));
                    findings.push(Finding::damage(path, "lock", says, cure));
                    continue;
                }
                Err(_) => continue,
            }
            if let Some(record) = self.record_of_lock(&name)
                && fs::symlink_metadata(&record).is_err_and(|e| e.kind() == ErrorKind::NotFound)
                && atomic::is_abandoned(&path, self.lock_kind()) == Some(true)
            {
                let says = "what it locked is gone";
                findings.push(Finding::leftover(path, "lock", says, StoreRepair::RemoveLocks));
            }
        }
    }
}

/// What to say where the host forbids to look.
const MAY_NOT: &str = "run fsck as its owner";

/// An entry that cannot be looked at.
pub(super) fn unreadable(path: impl Into<PathBuf>, kind: &'static str, error: &std::io::Error) -> StoreFinding {
    Finding::damage(path, kind, format!("it cannot be looked at: {error}"), Cure::Refused(MAY_NOT.into()))
}

/// The names in a folder, sorted; one that is not there is empty, and what cannot be read is a finding.
pub(super) fn list(dir: &Path, kind: &'static str, findings: &mut Vec<StoreFinding>) -> Vec<std::ffi::OsString> {
    let read = || -> std::io::Result<Vec<std::ffi::OsString>> {
        fs::read_dir(dir)?.map(|entry| entry.map(|e| e.file_name())).collect()
    };
    match read() {
        Ok(mut names) => {
            names.sort();
            names
        }
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Vec::new(),
        Err(e) => {
            findings.push(unreadable(dir, kind, &e));
            Vec::new()
        }
    }
}

/// An error with its causes, in one clause.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}

/// Is there anything to be mended?
pub fn has_faults<R>(findings: &[Finding<R>]) -> bool {
    findings.iter().any(|finding| finding.grade >= Grade::Leftover)
}
