// SPDX-License-Identifier: MIT OR Apache-2.0
//! `fsck`: walks the store, containers, volumes and uppers, gathers what the floors below find, carries their repairs
//! out, and tells. What is right and wrong with a format is known where the format is: `store/check`, `upper/check`.
//!
//! Looking holds the store's lock shared, so that nobody collects meanwhile; each repair takes what it needs for itself
//! (the store's exclusive one, a container's, a volume's). A container that is mounted is not looked into.

use std::path::{Path, PathBuf};

use crate::model::finding::{Cure, Finding, Grade};
use crate::store::check::{Readable, StoreFinding};
use crate::store::container::ContainerRecord;
use crate::store::{Access, Mode, Store, StoreError, Wait};

use super::load::Progress;
use super::{EngineError, OrFail, Result};

mod content;
mod links;
mod mend;
mod sockets;
mod upper;

pub use upper::UpperRequest;

/// What to check.
#[derive(Clone, Debug)]
pub enum What {
    /// The whole store.
    Everything,
    /// Containers, volumes and images by name.
    Names(Vec<String>),
    /// Images by name or digest, all of them without one.
    Images(Vec<String>),
    /// An upper that no container of the store has.
    Upper(UpperRequest),
}

/// Whether to mend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Only look.
    Look,
    /// Mend what can be mended.
    Repair,
}

/// What became of a finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing need be done.
    Nothing,
    /// It can be mended: how.
    Possible(String),
    /// It was mended: how.
    Repaired(String),
    /// It was not mended: why, and what the user can do.
    Refused(String),
}

/// A finding, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Where.
    pub path: PathBuf,
    /// What it is.
    pub kind: &'static str,
    /// How bad.
    pub grade: Grade,
    /// What is wrong.
    pub says: String,
    /// What became of it.
    pub outcome: Outcome,
}

impl Told {
    /// Is something wrong still?
    pub fn is_open(&self) -> bool {
        self.grade.is_fault() && !matches!(self.outcome, Outcome::Repaired(_))
    }
}

/// All that was found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// In the order in which it was looked at.
    pub told: Vec<Told>,
}

impl Report {
    /// How many faults there were, and how many there still are.
    pub fn count(&self) -> (usize, usize) {
        let faults = self.told.iter().filter(|told| told.grade.is_fault()).count();
        (faults, self.told.iter().filter(|told| told.is_open()).count())
    }

    /// Adds findings, mending them by `mend`; `None` only looks.
    fn add<R>(&mut self, findings: Vec<Finding<R>>, describe: impl Fn(&R) -> String, mend: Mend<'_, R>) {
        let mut mend = mend;
        for finding in findings {
            let Finding { path, kind, grade, says, cure } = finding;
            let outcome = match (cure, &mut mend) {
                (Cure::Nothing, _) => Outcome::Nothing,
                (Cure::Refused(why), _) => Outcome::Refused(why),
                (Cure::Repair(repair), None) => Outcome::Possible(describe(&repair)),
                (Cure::Repair(repair), Some(mend)) => match mend(&repair) {
                    Ok(Done::Whole) => Outcome::Repaired(describe(&repair)),
                    Ok(Done::InPart) => Outcome::Refused(describe(&repair)),
                    Err(error) => Outcome::Refused(format!("it could not be mended: {}", error.sentence())),
                },
            };
            let told = Told { path, kind, grade, says, outcome };
            // A second look tells what was not mended once more.
            let is_known = |known: &Told| known.path == told.path && known.says == told.says;
            if !self.told.iter().any(is_known) {
                self.told.push(told);
            }
        }
    }
}

/// Carries repairs out; `None` only looks.
type Mend<'a, R> = Option<&'a mut dyn FnMut(&R) -> Result<Done>>;

/// How far a repair has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Done {
    /// All is well.
    Whole,
    /// The user has to do the rest.
    InPart,
}

/// Checks, and mends if asked. `root` is where the store is.
pub fn run(root: impl FnOnce() -> Result<PathBuf>, what: &What, how: How, progress: &dyn Progress) -> Result<Report> {
    let mut report = Report::default();
    if let What::Upper(request) = what {
        upper::check_named(request, how, &mut report)?;
        return Ok(report);
    }
    let access = if how == How::Repair { Access::Write } else { Access::Read };
    let (store, readable, findings) = Store::open_to_check(&root()?, access).or_fail(|| "cannot check the store")?;
    if how == How::Repair && readable == Readable::ReadOnly {
        return Err(EngineError::failed("cannot repair the store: it has features that this mlfs may only read")
            .advise("use a newer mlfs"));
    }
    if how == How::Repair {
        check_owner(store.root())?;
    }
    let check = Check { store, how, progress };
    match what {
        What::Names(names) => check.names(names, &mut report)?,
        What::Images(names) => check.images(names, &mut report)?,
        What::Everything | What::Upper(_) => check.everything(findings, &mut report)?,
    }
    Ok(report)
}

/// What is repaired in a store belongs to whoever repairs it, and its owner decides what is done to which paths: so that
/// is its owner.
fn check_owner(root: &Path) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    match std::fs::metadata(root) {
        Ok(meta) if meta.uid() != crate::sys::proc::euid() => Err(EngineError::failed(format!(
            "cannot repair the store {}: it belongs to user {}",
            root.display(),
            meta.uid()
        ))
        .advise("run fsck --repair as its owner")),
        _ => Ok(()),
    }
}

/// A check of one store.
struct Check<'a> {
    store: Store,
    how: How,
    progress: &'a dyn Progress,
}

impl Check<'_> {
    fn everything(&self, head: Vec<StoreFinding>, report: &mut Report) -> Result<()> {
        // Without its folders and `meta.json` not even a lock can be taken.
        self.mend_all(head, report);
        self.mend_all(self.store.check_frame(), report);
        if !self.store.root().exists() {
            return Ok(());
        }
        let containers = self.records(report)?;
        self.content(&containers, report)?;
        sockets::check(self, &containers, report);
        for record in containers.iter().filter(|record| !record.incomplete) {
            upper::check_container(self, record, report)?;
        }
        Ok(())
    }

    /// Checks the records of containers and volumes. One repair may show what another one hid, so it looks again.
    fn records(&self, report: &mut Report) -> Result<Vec<ContainerRecord>> {
        for _ in 0..3 {
            let mut findings = Vec::new();
            let lock = self.lock()?;
            let containers = self.store.check_containers(&mut findings);
            self.store.check_volumes(&containers, &mut findings);
            drop(lock);
            let again = self.how == How::Repair && findings.iter().any(|f| matches!(f.cure, Cure::Repair(_)));
            self.mend_all(findings, report);
            if !again {
                return Ok(containers);
            }
        }
        Ok(self.store.check_containers(&mut Vec::new()))
    }

    /// Nobody collects while it is looked at. A store on read-only media may have no lock.
    fn lock(&self) -> Result<crate::store::Lock> {
        self.store.lock(Mode::Shared, Wait::Block).or_fail(|| "cannot lock the store")
    }

    fn images(&self, names: &[String], report: &mut Report) -> Result<()> {
        let images = match names {
            [] => self.store.load_images().or_fail(|| "cannot list images")?,
            names => names.iter().map(|name| crate::engine::images::find(&self.store, name)).collect::<Result<_>>()?,
        };
        images.iter().try_for_each(|image| self.image(image, report))
    }

    fn names(&self, names: &[String], report: &mut Report) -> Result<()> {
        for name in names {
            let mut findings = Vec::new();
            let containers = self.store.check_containers(&mut findings);
            let is_container = |c: &&ContainerRecord| c.name == *name || (name.len() >= 6 && c.id.starts_with(name));
            let found = containers.iter().find(is_container);
            let folder = match found {
                Some(record) => Some(self.store.container_dir(&record.id)),
                None => self.folder_of(name),
            };
            if let Some(folder) = folder {
                self.mend_below(&folder, findings, report);
                if let Some(record) = found {
                    upper::check_container(self, record, report)?;
                }
                continue;
            }
            let volume = self.store.layout().volume(name);
            if !name.contains('/') && volume.is_dir() {
                let mut findings = Vec::new();
                self.store.check_volumes(&containers, &mut findings);
                self.mend_below(&volume, findings, report);
                continue;
            }
            match self.store.find_image(name) {
                Ok(image) => self.image(&image, report)?,
                Err(StoreError::NoImage { .. }) => {
                    return Err(EngineError::failed(format!("no container, volume or image {name}"))
                        .advise("`mlfs ps -a`, `mlfs volume ls` and `mlfs image ls` list them"));
                }
                Err(error) => return Err(EngineError::failed(format!("cannot find {name}")).because(error)),
            }
        }
        Ok(())
    }

    /// The folder of a container whose record cannot be used, by its id or the beginning of it.
    fn folder_of(&self, name: &str) -> Option<PathBuf> {
        let is_prefix = name.len() >= 6 && name.bytes().all(|b| b.is_ascii_hexdigit());
        let entries = std::fs::read_dir(self.store.layout().containers()).ok().filter(|_| is_prefix)?;
        let mut found = entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(name));
        found.next().map(|entry| entry.path())
    }

    fn mend_below(&self, folder: &Path, mut findings: Vec<StoreFinding>, report: &mut Report) {
        findings.retain(|finding| finding.path.starts_with(folder));
        self.mend_all(findings, report);
    }
}
