// SPDX-License-Identifier: MIT OR Apache-2.0
//! Checks what is named by its content: blobs and objects are summed up again, indexes are validated to their last byte.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::Read;
use std::path::PathBuf;

use sha2::{Digest as _, Sha256};

use super::images::{Census, LayerNeed};
use super::{StoreFinding, StoreRepair, list};
use crate::layer::index::{Index, IndexError};
use crate::model::Digest;
use crate::model::finding::{Cure, Finding, Grade};
use crate::store::{Store, plain};

/// A part of the store whose files are named by digests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// A blob of an image.
    Blob,
    /// The content of a file.
    Object,
    /// The index of a layer.
    Index,
}

impl Part {
    /// Where it lies.
    pub fn path(self, store: &Store, digest: &Digest) -> PathBuf {
        match self {
            Part::Blob => store.layout().blob(digest),
            Part::Object => store.layout().object(digest),
            Part::Index => store.layout().index(digest),
        }
    }

    fn word(self) -> &'static str {
        match self {
            Part::Blob => "blob",
            Part::Object => "object",
            Part::Index => "index",
        }
    }

    /// Is it what its name says? The error is one clause. `told` is called with the bytes read.
    pub fn sum(self, store: &Store, digest: &Digest, told: &mut dyn FnMut(u64)) -> Result<(), String> {
        let path = self.path(store, digest);
        let mut file = plain::open(&path).map_err(|e| e.to_string())?;
        if self == Part::Index {
            let index = Index::open(&file).and_then(|index| index.check_bodies().map(|()| index));
            return match index {
                Ok(index) if index.diff_id() == *digest => Ok(()),
                Ok(index) => Err(format!("it is the index of another layer, {}", index.diff_id())),
                Err(IndexError::Damaged(what)) => Err(what),
                Err(e) => Err(e.to_string()),
            };
        }
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        loop {
            let count = file.read(&mut buffer).map_err(|e| format!("it cannot be read: {e}"))?;
            if count == 0 {
                break;
            }
            hash.update(buffer.get(..count).unwrap_or_default());
            told(count as u64);
        }
        let found = Digest(hash.finalize().into());
        if found == *digest { Ok(()) } else { Err(format!("its bytes have the digest {found}")) }
    }
}

/// The files of a part of the store, by digest, and what else lies there.
struct Files {
    sound: BTreeMap<Digest, u64>,
    other: Vec<(PathBuf, String)>,
}

/// Who is told of the progress: bytes that were summed up.
pub type Told<'a> = &'a mut dyn FnMut(u64);

/// An object that layers need.
struct ObjectNeed {
    size: u64,
    layers: Vec<Digest>,
}

impl Store {
    /// The bytes that [`Store::check_content`] will sum up.
    pub fn bytes_to_sum(&self, census: &Census) -> u64 {
        let sum = |files: Files| files.sound.values().sum::<u64>();
        if census.is_selection {
            return census.blobs.values().filter_map(|need| need.size).sum();
        }
        sum(self.files(Part::Blob, &mut Vec::new())) + sum(self.files(Part::Object, &mut Vec::new()))
    }

    /// Sums up all blobs and objects, and validates all indexes.
    pub fn check_content(&self, census: &Census, findings: &mut Vec<StoreFinding>, told: Told<'_>) {
        let sound = self.check_blobs(census, findings, told);
        let (objects, all_known) = self.check_indexes(census, &sound, findings);
        self.check_objects(&objects, census, &sound, all_known, findings, told);
    }

    fn files(&self, part: Part, findings: &mut Vec<StoreFinding>) -> Files {
        let mut files = Files { sound: BTreeMap::new(), other: Vec::new() };
        let layout = self.layout();
        let folders = match part {
            Part::Blob => vec![(layout.blobs(), String::new())],
            Part::Index => vec![(layout.indexes(), String::new())],
            Part::Object => {
                let fan = list(&layout.objects(), part.word(), findings).into_iter();
                fan.map(|name| (layout.objects().join(&name), name.to_string_lossy().into_owned())).collect()
            }
        };
        for (folder, prefix) in folders {
            match fs::symlink_metadata(&folder) {
                Ok(meta) if meta.is_dir() || part != Part::Object => {}
                Ok(meta) => {
                    files.other.push((folder, format!("it is {}, not a folder", plain::kind_word(meta.file_type()))));
                    continue;
                }
                Err(_) => continue,
            }
            for name in list(&folder, part.word(), findings) {
                let path = folder.join(&name);
                let digest = name.to_str().and_then(|name| Digest::from_hex(&format!("{prefix}{name}")));
                match (digest, fs::symlink_metadata(&path)) {
                    (_, Err(_)) => {}
                    (None, _) => files.other.push((path, "its name is no digest".to_owned())),
                    (Some(digest), Ok(meta)) if meta.is_file() => {
                        files.sound.insert(digest, meta.len());
                    }
                    (Some(_), Ok(meta)) => {
                        let what = format!("it is {}, not a file", plain::kind_word(meta.file_type()));
                        files.other.push((path, what));
                    }
                }
            }
        }
        for (path, says) in files.other.drain(..) {
            let cure = Cure::Repair(StoreRepair::MoveAside(path.clone()));
            findings.push(Finding::damage(path, part.word(), says, cure));
        }
        files
    }

    /// Checks the blobs; answers the sound ones.
    fn check_blobs(&self, census: &Census, findings: &mut Vec<StoreFinding>, told: Told<'_>) -> HashSet<Digest> {
        let mut files = self.files(Part::Blob, findings);
        let mut sound = HashSet::new();
        for (digest, need) in &census.blobs {
            let path = self.layout().blob(digest);
            let Some(size) = files.sound.remove(digest) else {
                let says = format!("{} is missing", need.role);
                let cure = Cure::Refused("load the image again, or remove it with `mlfs image rm`".into());
                findings.push(Finding::damage(path, "blob", says, cure));
                continue;
            };
            let summed = match need.size.filter(|wanted| *wanted != size) {
                Some(wanted) => Err(format!("it has {size} bytes instead of {wanted}")),
                None => Part::Blob.sum(self, digest, told),
            };
            match summed {
                Ok(()) => drop(sound.insert(*digest)),
                Err(why) => {
                    let says = format!("{} is damaged: {why}", need.role);
                    let then = Some("load the image again".to_owned());
                    let cure = Cure::Repair(StoreRepair::MoveDamaged { part: Part::Blob, digest: *digest, then });
                    findings.push(Finding::damage(path, "blob", says, cure));
                }
            }
        }
        self.check_unneeded(Part::Blob, files.sound, (!census.is_partial, census.is_selection), findings, told);
        sound
    }

    /// What nobody needs is summed up too (a load would rely on it), and counted in a note.
    fn check_unneeded(
        &self,
        part: Part,
        files: BTreeMap<Digest, u64>,
        (all_known, is_selection): (bool, bool),
        findings: &mut Vec<StoreFinding>,
        told: Told<'_>,
    ) {
        let (mut count, mut bytes) = (0u64, 0u64);
        for (digest, size) in files.into_iter().filter(|_| !is_selection) {
            if let Err(why) = part.sum(self, &digest, told) {
                let cure = Cure::Repair(StoreRepair::MoveDamaged { part, digest, then: None });
                let says = format!("nobody is known to need it, and it is damaged: {why}");
                findings.push(Finding::damage(part.path(self, &digest), part.word(), says, cure));
                continue;
            }
            count += 1;
            bytes += size;
        }
        if count > 0 && all_known {
            let folder = match part {
                Part::Blob => self.layout().blobs(),
                Part::Object => self.layout().objects(),
                Part::Index => self.layout().indexes(),
            };
            let says = format!(
                "{count} {}{} that no image and no container needs ({bytes} bytes); `mlfs system prune` removes them",
                part.word(),
                match (part, count) {
                    (_, 1) => "",
                    (Part::Index, _) => "es",
                    _ => "s",
                }
            );
            findings.push(Finding::note(folder, part.word(), says));
        }
    }

    /// Checks the indexes; answers the objects that layers need, and whether all are known.
    fn check_indexes(
        &self,
        census: &Census,
        sound_blobs: &HashSet<Digest>,
        findings: &mut Vec<StoreFinding>,
    ) -> (BTreeMap<Digest, ObjectNeed>, bool) {
        let mut files = self.files(Part::Index, findings);
        let mut objects: BTreeMap<Digest, ObjectNeed> = BTreeMap::new();
        let mut all_known = !census.is_partial;
        for (layer, need) in &census.layers {
            let is_there = files.sound.remove(layer).is_some();
            let path = self.layout().index(layer);
            let why =
                if is_there { Part::Index.sum(self, layer, &mut |_| {}).err() } else { Some("it is missing".into()) };
            let Some(why) = why else {
                let index = plain::open(&path).map_err(IndexError::Io).and_then(|file| Index::open(&file));
                match index {
                    Ok(index) => {
                        for (digest, size) in index.sized_objects() {
                            let entry = objects.entry(digest).or_insert(ObjectNeed { size, layers: Vec::new() });
                            entry.layers.push(*layer);
                        }
                    }
                    Err(e) => {
                        all_known = false;
                        log::debug!("{}: {e}", path.display());
                    }
                }
                continue;
            };
            all_known = false;
            let says = format!("the index of a layer of {} is not usable: {why}", need.who);
            let damaged = is_there.then_some((Part::Index, *layer));
            let (grade, cure) = match rebuildable(need, sound_blobs) {
                // Derived: the next use of the image makes it anew.
                Some(blob) if !is_there => {
                    (Grade::Leftover, Cure::Repair(StoreRepair::Rebuild { layer: *layer, blob, damaged }))
                }
                Some(blob) => (Grade::Damage, Cure::Repair(StoreRepair::Rebuild { layer: *layer, blob, damaged })),
                None => (Grade::Damage, Cure::Refused(bring_back(need))),
            };
            findings.push(Finding { path, kind: "index", grade, says, cure });
        }
        self.check_unneeded(Part::Index, files.sound, (all_known, census.is_selection), findings, &mut |_| {});
        (objects, all_known)
    }

    fn check_objects(
        &self,
        needed: &BTreeMap<Digest, ObjectNeed>,
        census: &Census,
        sound_blobs: &HashSet<Digest>,
        all_known: bool,
        findings: &mut Vec<StoreFinding>,
        told: Told<'_>,
    ) {
        let mut files = self.files(Part::Object, findings);
        for (digest, need) in needed {
            let size = files.sound.remove(digest);
            let why = match size {
                None => Some("is missing".to_owned()),
                Some(size) if size != need.size => Some(format!("has {size} bytes instead of {}", need.size)),
                Some(_) => Part::Object.sum(self, digest, told).err().map(|why| format!("is damaged: {why}")),
            };
            let Some(why) = why else { continue };
            let layers = need.layers.iter().filter_map(|layer| Some((layer, census.layers.get(layer)?)));
            let who: Vec<&str> = layers.clone().map(|(_, need)| need.who.as_str()).collect();
            let says = format!("the content of files in {} {why}", who.join(", "));
            let damaged = size.map(|_| (Part::Object, *digest));
            let mut sources = layers.clone().filter_map(|(layer, need)| Some((layer, rebuildable(need, sound_blobs)?)));
            let cure = match sources.next() {
                Some((layer, blob)) => Cure::Repair(StoreRepair::Rebuild { layer: *layer, blob, damaged }),
                None => {
                    let what = layers.map(|(_, need)| bring_back(need)).next().unwrap_or_default();
                    match damaged {
                        // As long as it lies there, a load takes it for sound.
                        Some((part, digest)) => {
                            Cure::Repair(StoreRepair::MoveDamaged { part, digest, then: Some(what) })
                        }
                        None => Cure::Refused(what),
                    }
                }
            };
            findings.push(Finding::damage(self.layout().object(digest), "object", says, cure));
        }
        self.check_unneeded(Part::Object, files.sound, (all_known, census.is_selection), findings, told);
    }
}

/// The blob of which a layer can be made anew.
fn rebuildable(need: &LayerNeed, sound: &HashSet<Digest>) -> Option<crate::oci::spec::BlobRef> {
    need.blob.clone().filter(|blob| sound.contains(&blob.digest))
}

fn bring_back(need: &LayerNeed) -> String {
    match need.blob {
        Some(_) => format!("load {} again, since its blob is no help", need.who),
        None => format!(
            "mount the archive that {} was made of once with `mlfs mount --layer` (the store does not keep it)",
            need.who
        ),
    }
}
