// SPDX-License-Identifier: MIT OR Apache-2.0
//! The work directory: what a crash has left in staging, and the records of hard-link groups (`links.rs`): ours in
//! `mlfs-links`, the kernel's in `index`.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::Stat;

use super::marks::{Mark, Verdict, of};
use super::repair::KERNEL_MARK;
use super::{Certainty, Checker, Object, UpperFinding, UpperRepair};
use crate::layer::origin::Origin;
use crate::model::finding::{Cure, Finding};
use crate::model::{FsError, Kind, Name, NameBuf};
use crate::sys::node::attr_of;
use crate::sys::{Dir, FileId, Place};
use crate::upper::links::{beside, is_recorded};
use crate::upper::recover::{INDEX, LINKS, LOCK, STAGE};

/// What a layer has of a hard-link group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// Its link count.
    pub nlink: u32,
    /// The names of it that the layer has: fewer, where others have links to it too.
    pub names: u32,
}

/// A record of a group that was copied up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordFacts {
    /// `mlfs-links` or `index`.
    pub home: &'static str,
    /// Its name there.
    pub name: NameBuf,
    /// The inode number under which the group is shown, where it is recorded.
    pub number: Option<u64>,
    /// Links of the host, the record among them.
    pub host_links: u32,
    /// Links shown minus links of the host.
    pub excess: Option<i64>,
}

/// The mark `wanted` of an object, whichever space it stands in.
fn mark<'a>(marks: &'a [Mark], wanted: &str) -> Option<&'a Mark> {
    let is_it = |space: &str, name: &[u8]| name == format!("{space}.overlay.{wanted}").as_bytes();
    marks.iter().find(|(name, _)| is_it("trusted", name) || is_it("user", name))
}

/// Links shown minus links of the host (`U+1`), or minus links in the layer (`L-1`, which only the kernel writes).
fn parse_count(value: &[u8]) -> Option<(u8, i64)> {
    let (base, count) = value.split_first()?;
    let count = std::str::from_utf8(count).ok()?.parse().ok()?;
    matches!(base, b'U' | b'L').then_some((*base, count))
}

/// Can an object carry marks that need no root?
pub(super) fn can_carry(stat: &Stat) -> bool {
    matches!(Kind::from_mode(stat.st_mode), Some(Kind::File | Kind::Dir))
}

/// Is it a name that a record of ours can have: `copy-LAYER-DEVICE-INODE`?
fn is_own_name(name: &[u8]) -> bool {
    let Some(rest) = std::str::from_utf8(name).ok().and_then(|name| name.strip_prefix("copy-")) else { return false };
    let parts: Vec<&str> = rest.split('-').collect();
    parts.len() == 3 && parts.iter().all(|part| u64::from_str_radix(part, 16).is_ok())
}

/// The file of a layer that the name of an index entry stands for.
fn origin_of(name: &[u8]) -> Option<Origin> {
    let digit = |b: u8| char::from(b).to_digit(16).filter(|_| !b.is_ascii_uppercase());
    let bytes: Option<Vec<u8>> = name
        .chunks(2)
        .map(|pair| match pair {
            [high, low] => u8::try_from(digit(*high)? << 4 | digit(*low)?).ok(),
            _ => None,
        })
        .collect();
    Origin::parse(&bytes?)
}

impl Checker {
    fn work_place(&self, parts: &[&[u8]]) -> PathBuf {
        use std::os::unix::ffi::OsStrExt;
        let mut path = self.work_path.clone();
        path.extend(parts.iter().map(|part| std::ffi::OsStr::from_bytes(part)));
        path
    }

    /// A folder of the work directory, if it is there.
    pub(super) fn work_folder(&self, name: &[u8]) -> Result<Option<Arc<Dir>>, FsError> {
        let Some(work) = &self.work else { return Ok(None) };
        match work.open_child(Name::new(name)?) {
            Ok(dir) => Ok(Some(dir)),
            Err(FsError::NotFound | FsError::NotDir) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn check_work(&self, findings: &mut Vec<UpperFinding>) {
        if let Err(error) = self.check_work_dir(findings) {
            let says = format!("the work directory cannot be looked at: {error}");
            let cure = Cure::Refused("run fsck as its owner".into());
            findings.push(Finding::damage(&self.work_path, "work", says, cure));
        }
    }

    fn check_work_dir(&self, findings: &mut Vec<UpperFinding>) -> Result<(), FsError> {
        let Some(work) = &self.work else { return Ok(()) };
        let mut entries = work.read_all()?;
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        for entry in entries {
            let name = Name::new(&entry.name)?;
            let path = self.work_place(&[name.bytes()]);
            let is_dir = Kind::from_mode(work.stat_child(name)?.st_mode) == Some(Kind::Dir);
            let is_ours = [STAGE, LINKS, INDEX].contains(&name.bytes());
            match (is_ours, is_dir) {
                (false, false) if name.bytes() == LOCK => {}
                (false, _) => {
                    findings.push(Finding::note(path, "work", "it is no part of a work directory; it is left alone"));
                }
                (true, false) => {
                    let says = "it must be a folder: the upper cannot be mounted";
                    let repair = UpperRepair::MoveAside { folder: None, name: name.to_buf() };
                    findings.push(Finding::damage(path, "work", says, Cure::Repair(repair)));
                }
                (true, true) if name.bytes() == STAGE => self.check_staging(findings)?,
                (true, true) if name.bytes() == LINKS => self.check_records(LINKS, findings)?,
                (true, true) => self.check_records(INDEX, findings)?,
            }
        }
        Ok(())
    }

    fn check_staging(&self, findings: &mut Vec<UpperFinding>) -> Result<(), FsError> {
        let Some(stage) = self.work_folder(STAGE)? else { return Ok(()) };
        for entry in stage.read_all()? {
            let says = match &*entry.name {
                KERNEL_MARK => {
                    "the kernel's mark of a volatile mount that has not ended: what was not synced may be lost"
                }
                _ => "a process that has ended was making or removing it; no name of the upper leads to it",
            };
            findings.push(Finding::leftover(
                self.work_place(&[STAGE, &entry.name]),
                "staging",
                says,
                UpperRepair::ClearStaging,
            ));
        }
        Ok(())
    }

    fn check_records(&self, home: &'static [u8], findings: &mut Vec<UpperFinding>) -> Result<(), FsError> {
        let Some(records) = self.work_folder(home)? else { return Ok(()) };
        let mut entries = records.read_all()?;
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        for entry in entries {
            let name = Name::new(&entry.name)?;
            let path = self.work_place(&[home, name.bytes()]);
            let stat = records.stat_child(name)?;
            let attr = attr_of(&stat)?;
            let aside = || UpperRepair::MoveAside { folder: Some(home.to_vec()), name: name.to_buf() };
            if home == INDEX && name.bytes().starts_with(b"#") {
                let says = "what kernel overlayfs had under way in its index when it ended";
                let repair = UpperRepair::RemoveWork { folder: home.to_vec(), name: name.to_buf() };
                findings.push(Finding::leftover(path, "record", says, repair));
                continue;
            }
            if home == LINKS && name.bytes().starts_with(b"of-") && attr.kind == Kind::Symlink {
                findings.push(if is_recorded(&records, name)? {
                    let says = "the marks of a recorded copy, which cannot carry them itself";
                    Finding::fine(path, "record", says)
                } else {
                    let says = "marks of a copy that is not recorded: another file may get its inode number";
                    let repair = UpperRepair::RemoveWork { folder: home.to_vec(), name: name.to_buf() };
                    Finding::leftover(path, "record", says, repair)
                });
                continue;
            }
            let wanted = if home == LINKS {
                is_own_name(name.bytes()).then(|| name.bytes().to_vec())
            } else {
                origin_of(name.bytes()).map(|o| o.bytes().to_vec())
            };
            let Some(wanted) = wanted else {
                let says = "its name is not that of a record of hard links: it belongs to nothing in this upper";
                findings.push(Finding::damage(path, "record", says, Cure::Repair(aside())));
                continue;
            };
            if home == INDEX && (attr.kind == Kind::Dir || (attr.kind == Kind::Char && attr.rdev == 0)) {
                findings.push(Finding::fine(path, "record", "kept by kernel overlayfs for file handles (nfs_export)"));
                continue;
            }
            if attr.kind == Kind::Dir {
                findings.push(Finding::damage(path, "record", "a directory has no hard links", Cure::Repair(aside())));
                continue;
            }
            let marks = self.marks_of(&Place::at(&records, name), &stat)?;
            let mark_name = if home == LINKS { "mlfs.group" } else { "origin" };
            match mark(&marks, mark_name) {
                Some((_, value)) if *value == wanted => {
                    let says =
                        "a file of a layer with several names that was copied up: its other names find the copy here";
                    findings.push(Finding::fine(path, "record", says));
                }
                _ => {
                    let says =
                        format!("its file has no mark {mark_name} that leads back here: its link count is wrong");
                    let repair = UpperRepair::MarkRecord { folder: home.to_vec(), name: name.to_buf(), value: wanted };
                    findings.push(Finding::damage(path, "record", says, Cure::Repair(repair)));
                }
            }
        }
        Ok(())
    }

    /// The file of an upper says that it is the copy of a group.
    pub(super) fn own_record(&self, object: &Object<'_>, value: &[u8]) -> Verdict {
        let remove = || self.forget_group_marks(object);
        if !is_own_name(value) {
            let says = format!("{} is no record's name: the file is none of a group", value.escape_ascii());
            return Verdict::Wrong(says, Cure::Repair(remove()));
        }
        self.led_back(object, LINKS, value)
    }

    /// The marks of an object, those among them that stand beside its record since it can carry none.
    pub(super) fn marks_of(&self, place: &Place, stat: &Stat) -> Result<Vec<Mark>, FsError> {
        let mut marks = of(place)?;
        if can_carry(stat) || mark(&marks, "mlfs.group").is_some() {
            return Ok(marks);
        }
        if let Some(links) = self.work_folder(LINKS)?
            && let Some((excess, record)) = beside(&links, stat.st_ino)?
        {
            marks.push((b"user.overlay.mlfs.group".to_vec(), record.as_name().bytes().to_vec()));
            marks.push((b"user.overlay.nlink".to_vec(), format!("U{excess:+}").into_bytes()));
        }
        Ok(marks)
    }

    /// Is the record that a file names really a link to it?
    fn led_back(&self, object: &Object<'_>, home: &'static [u8], name: &[u8]) -> Verdict {
        if self.work.is_none() {
            let says = "one of the names of a file that has several in its layer; its record is not looked at: where its \
                        work directory is was not said";
            return Verdict::Note(says.into());
        }
        let found = self.work_folder(home).and_then(|records| {
            let Some(records) = records else { return Ok(None) };
            match records.stat_child(Name::new(name)?) {
                Ok(stat) => Ok(Some(FileId::of(&stat))),
                Err(FsError::NotFound) => Ok(None),
                Err(error) => Err(error),
            }
        });
        match found {
            Ok(Some(id)) if id == object.id => {
                Verdict::Fine("one of the names of a file that has several in its layer; all show this copy".into())
            }
            Ok(Some(_)) => {
                let says = "another file is recorded as the copy of its group: this one is on its own";
                Verdict::Wrong(says.into(), Cure::Repair(self.forget_group_marks(object)))
            }
            Ok(None) => {
                let says =
                    "its record is missing: its other names, still in their layer, show what was before the copy";
                let name = NameBuf::new(name);
                match name {
                    Ok(name) => {
                        let path = object.path.to_vec();
                        Verdict::Wrong(
                            says.into(),
                            Cure::Repair(UpperRepair::Record { path, folder: home.to_vec(), name }),
                        )
                    }
                    Err(_) => Verdict::Wrong(says.into(), Cure::Repair(self.forget_group_marks(object))),
                }
            }
            Err(error) => Verdict::Note(format!("its record cannot be looked at: {error}")),
        }
    }

    fn forget_group_marks(&self, object: &Object<'_>) -> UpperRepair {
        let found = ["mlfs.group", "nlink"].iter().filter_map(|wanted| mark(&object.marks, wanted));
        UpperRepair::RemoveMarks { path: object.path.to_vec(), marks: found.map(|(name, _)| name.clone()).collect() }
    }

    pub(super) fn link_count(&self, object: &Object<'_>, value: &[u8]) -> Verdict {
        let remove = || self.forget_group_marks(object);
        let Some((base, count)) = parse_count(value) else {
            let says = format!("{} is no link count", value.escape_ascii());
            // A group's is made anew with the count of its names.
            let is_of_group = mark(&object.marks, "mlfs.group").is_some() || mark(&object.marks, "origin").is_some();
            let own = mark(&object.marks, "nlink").map(|(name, _)| name.clone());
            let only = UpperRepair::RemoveMarks { path: object.path.to_vec(), marks: own.into_iter().collect() };
            return Verdict::Wrong(says, Cure::Repair(if is_of_group { only } else { remove() }));
        };
        if mark(&object.marks, "mlfs.group").is_some() {
            return Verdict::Fine(format!("shows {count:+} links to those that the host counts"));
        }
        match mark(&object.marks, "origin") {
            Some((_, value)) => {
                match Origin::parse(value).map(|o| self.led_back(object, INDEX, o.index_name().as_bytes())) {
                    None => {
                        let says = "its origin is no handle of a file: the group it belongs to is lost";
                        Verdict::Wrong(says.into(), Cure::Repair(remove()))
                    }
                    Some(Verdict::Fine(_)) if base == b'U' => {
                        Verdict::Fine(format!("shows {count:+} links to those that the host counts"))
                    }
                    Some(Verdict::Fine(_)) => {
                        Verdict::Fine(format!("shows {count:+} links to those that the layer counts"))
                    }
                    Some(other) => other,
                }
            }
            None => Verdict::Stray("it counts the links of a group, but the file is of none".into()),
        }
    }

    /// The records of groups. Empty without a work directory.
    pub fn records(&self) -> Result<Vec<RecordFacts>, FsError> {
        let mut facts = Vec::new();
        for (home, shown) in [(LINKS, "mlfs-links"), (INDEX, "index")] {
            let Some(records) = self.work_folder(home)? else { continue };
            for entry in records.read_all()? {
                let name = Name::new(&entry.name)?;
                let stat = records.stat_child(name)?;
                let is_file = Kind::from_mode(stat.st_mode).is_some_and(|kind| kind != Kind::Dir);
                let is_record = if home == LINKS { is_own_name(&entry.name) } else { origin_of(&entry.name).is_some() };
                if !is_file || !is_record {
                    continue;
                }
                let marks = self.marks_of(&Place::at(&records, name), &stat)?;
                let number = mark(&marks, "mlfs.ino").and_then(|(_, value)| <[u8; 8]>::try_from(value.as_slice()).ok());
                let count = mark(&marks, "nlink").and_then(|(_, value)| parse_count(value));
                facts.push(RecordFacts {
                    home: shown,
                    name: name.to_buf(),
                    number: number.map(u64::from_le_bytes),
                    host_links: stat.st_nlink.try_into().unwrap_or(u32::MAX),
                    excess: count.filter(|(base, _)| *base == b'U').map(|(_, count)| count),
                });
            }
        }
        Ok(facts)
    }

    /// Judges records against the layers' groups and the names that the merged tree shows, both by inode number.
    pub fn check_groups(
        &self,
        records: &[RecordFacts],
        groups: &HashMap<u64, Group>,
        seen: &HashMap<u64, u32>,
    ) -> Vec<UpperFinding> {
        records.iter().filter_map(|record| self.check_group(record, groups, seen)).collect()
    }

    fn check_group(
        &self,
        record: &RecordFacts,
        groups: &HashMap<u64, Group>,
        seen: &HashMap<u64, u32>,
    ) -> Option<UpperFinding> {
        // Without a number it was recorded by the kernel, or where attributes of this kind cannot be set.
        let number = record.number?;
        let folder = record.home.as_bytes().to_vec();
        let path = self.work_place(&[&folder, record.name.as_name().bytes()]);
        let name = record.name.clone();
        let Some(group) = groups.get(&number) else {
            let says = "no layer has the file whose copy it records";
            let repair = if record.host_links > 1 {
                UpperRepair::Forget { folder, name }
            } else {
                UpperRepair::MoveAside { folder: Some(folder), name }
            };
            return Some(Finding::damage(path, "record", says, self.if_proven(repair)));
        };
        let names = seen.get(&number).copied().unwrap_or(0);
        let shown = i64::from(record.host_links) + record.excess.unwrap_or(0);
        let right = i64::from(names) + i64::from(group.nlink.saturating_sub(group.names));
        if names == 0 && record.host_links == 1 {
            let says = "no name leads to the copy any more";
            // The count agrees: its last name was deleted. Else nobody knows why there is none.
            return Some(if self.certainty == Certainty::Claimed {
                Finding::note(path, "record", format!("{says}; it is kept, since a layer may be missing"))
            } else if shown <= 0 || shown == right {
                Finding::leftover(path, "record", says, UpperRepair::RemoveWork { folder, name })
            } else {
                let repair = UpperRepair::MoveAside { folder: Some(folder), name };
                Finding::damage(path, "record", says, Cure::Repair(repair))
            });
        }
        if shown == right {
            return None;
        }
        let says = format!("its file shows {shown} links, but {right} names lead to it");
        let repair = UpperRepair::CountLinks { folder, name, excess: right - i64::from(record.host_links) };
        Some(Finding::damage(path, "record", says, self.if_proven(repair)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_records_are_known() {
        assert!(is_own_name(b"copy-1-0-2f"));
        for bad in [&b"copy-1-0"[..], b"copy-1-0-zz", b"lost-1-0-2", b"\xff", b"copy-1-0-2-3"] {
            assert!(!is_own_name(bad), "{bad:?}");
        }
        let name = b"00fb1d000100000000000000000000000000000000f0c09800a8e0c318";
        assert_eq!(origin_of(name).unwrap().index_name().as_bytes(), name);
        for bad in [&b"00fb"[..], b"00FB1d000100000000000000000000000000000000f0c09800a8e0c318", b"xyz", b"0"] {
            assert!(origin_of(bad).is_none(), "{bad:?}");
        }
        assert_eq!(parse_count(b"U+1"), Some((b'U', 1)));
        assert_eq!(parse_count(b"L-2"), Some((b'L', -2)));
        assert_eq!(parse_count(b"+1"), None);
    }
}
