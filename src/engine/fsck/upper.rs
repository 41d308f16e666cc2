// SPDX-License-Identifier: MIT OR Apache-2.0
//! Uppers: of containers, and such as only a mount program knows. Who mends one holds its lock; a mounted one is told
//! and left alone.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::layer::Layer;
use crate::model::FsError;
use crate::model::finding::{Cure, Finding};
use crate::store::container::{ContainerRecord, LayerRecord, OwnershipForm};
use crate::store::{StoreError, Wait};
use crate::tree::below::LayersAlone;
use crate::upper::check::{Below, Certainty, Checker, UpperFinding, UpperPlace, UpperRepair};

use super::super::assemble::{OpenAs, open_path, ownership, top_first};
use super::super::state::{State, state};
use super::super::{EngineError, OrFail, Result, image, layers, mount};
use super::links::Walk;
use super::{Check, Done, How, Mend, Report};

/// An upper by its directories.
#[derive(Clone, Debug)]
pub struct UpperRequest {
    /// The upper.
    pub upper: PathBuf,
    /// Its work directory; `UPPER.work` where it is there and nothing is said.
    pub work: Option<PathBuf>,
    /// Its layers, bottom first; without them its marks are explained but not judged against them.
    pub layers: Vec<PathBuf>,
}

/// An upper that can be checked.
struct Opened {
    checker: Checker,
    /// Bottom first; `None` where one cannot be opened.
    layers: Option<Vec<Arc<dyn Layer>>>,
    walk: Walk,
}

fn open_checker(upper: &Path, work: Option<&Path>, form: OwnershipForm, certainty: Certainty) -> Result<Checker> {
    let open = |path: &Path| open_path(path, OpenAs::Directory).or_fail(|| format!("cannot open {}", path.display()));
    let place = UpperPlace {
        path: upper.to_owned(),
        work_path: work.map_or_else(|| super::super::mount::work_beside(upper), Path::to_owned),
        dir: open(upper)?,
        work: work.map(open).transpose()?,
        ownership: ownership(form),
        certainty,
    };
    Checker::open(place).or_fail(|| format!("cannot check the upper {}", upper.display()))
}

/// Checks the upper of a container, unless it is mounted.
pub(super) fn check_container(check: &Check<'_>, record: &ContainerRecord, report: &mut Report) -> Result<()> {
    let (upper, work) = mount::work_of(&check.store, record);
    let name = &record.name;
    let tell = |report: &mut Report, says: String| {
        report.add::<()>(vec![Finding::note(&upper, "container", says)], |()| String::new(), None);
    };
    let lock = match check.how {
        How::Look => None,
        How::Repair => match check.store.lock_container(&record.id, Wait::Try) {
            Ok(lock) => Some(lock),
            Err(StoreError::Locked { .. }) => {
                tell(report, format!("another command is changing the container {name}: its upper is not looked into"));
                return Ok(());
            }
            Err(error) => return Err(EngineError::failed(format!("cannot lock the container {name}")).because(error)),
        },
    };
    match state(&check.store, record) {
        Ok(State::Mounted) => {
            tell(report, format!("the container {name} is mounted: its upper is not looked into"));
            return Ok(());
        }
        Ok(State::Dead) => tell(
            report,
            format!(
                "the daemon of the container {name} has died: `mlfs start {name}` mounts it again, `mlfs umount {name}` \
                 clears what it has left"
            ),
        ),
        Ok(State::Created | State::Stopped) => {}
        Err(error) => {
            tell(report, format!("whether the container {name} is mounted cannot be told: {error}"));
            return Ok(());
        }
    }
    let layers = open_layers(check, record, report);
    // What is missing was told with the records.
    if !upper.is_dir() || !work.is_dir() {
        return Ok(());
    }
    // A stored layer is what its digest says; a directory may be a mount point of what is not mounted.
    let is_stored = |layer: &LayerRecord| matches!(layer, LayerRecord::Stored(_));
    let certainty = if record.layers.iter().all(is_stored) { Certainty::Proven } else { Certainty::Claimed };
    let checker = open_checker(&upper, Some(&work), record.ownership, certainty)?;
    let walk = Walk { upper, work, ownership: ownership(record.ownership), label: name.clone() };
    let opened = Opened { checker, layers, walk };
    opened.check(check.how, report)?;
    drop(lock);
    Ok(())
}

/// The layers of a container, bottom first. Nothing is rebuilt here: a damaged index was told with the content.
fn open_layers(check: &Check<'_>, record: &ContainerRecord, report: &mut Report) -> Option<Vec<Arc<dyn Layer>>> {
    let mut opened: Vec<Arc<dyn Layer>> = Vec::new();
    for layer in &record.layers {
        match layer {
            LayerRecord::Stored(digest) => opened.push(image::open_stored_layer(&check.store, digest).ok()?),
            LayerRecord::Dir(path) => match layers::open_dir(Path::new(path)) {
                Ok(layer) => opened.push(layer),
                Err(error) => {
                    let says = format!("a layer of the container {} cannot be used: {}", record.name, error.sentence());
                    let cure = Cure::Refused("bring it back, or remove the container with `mlfs rm`".into());
                    report.add::<()>(vec![Finding::damage(path, "layer", says, cure)], |()| String::new(), None);
                    return None;
                }
            },
        }
    }
    Some(opened)
}

/// Checks an upper by its directories.
pub(super) fn check_named(request: &UpperRequest, how: How, report: &mut Report) -> Result<()> {
    let real = |path: &Path| std::fs::canonicalize(path).or_fail(|| format!("cannot use {}", path.display()));
    let upper = real(&request.upper)?;
    let text = super::super::host::path_text(&upper)?;
    let work = match &request.work {
        Some(work) => Some(real(work)?),
        None => Some(mount::work_beside(&upper)).filter(|work| work.is_dir()),
    };
    if how == How::Repair && work.is_none() {
        return Err(EngineError::usage(format!("--repair needs the work directory of {text}: name it by --work"))
            .advise("its lock is what keeps a mounted upper from being changed"));
    }
    let form = mount::upper_form(Some(&text), false)?;
    let mut layers = Vec::new();
    for path in &request.layers {
        layers.push(layers::open_dir(path)?);
    }
    let checker = open_checker(&upper, work.as_deref(), form, Certainty::Claimed)?;
    let work = work.unwrap_or_else(|| mount::work_beside(&upper));
    let walk = Walk { upper, work, ownership: ownership(form), label: "upper".to_owned() };
    Opened { checker, layers: (!layers.is_empty()).then_some(layers), walk }.check(how, report)
}

impl Opened {
    fn check(&self, how: How, report: &mut Report) -> Result<()> {
        let what = || format!("cannot check the upper {}", self.walk.upper.display());
        let busy = |report: &mut Report| {
            let says = "it is mounted: it is not looked into".to_owned();
            report.add::<()>(vec![Finding::note(&self.walk.upper, "upper", says)], |()| String::new(), None);
        };
        let _lock = match how {
            How::Look if self.checker.is_mounted().or_fail(what)? => {
                busy(report);
                return Ok(());
            }
            How::Look => None,
            How::Repair => match self.checker.lock() {
                Err(FsError::Busy) => {
                    busy(report);
                    return Ok(());
                }
                other => other.or_fail(what)?,
            },
        };
        let below = match &self.layers {
            Some(layers) if !layers.is_empty() => {
                let alone = LayersAlone::new(self.walk.label.clone(), top_first(layers.clone()));
                Some(alone.or_fail(what)?)
            }
            _ => None,
        };
        let below = below.as_ref().map(|below| below as &dyn Below);
        let found = self.checker.check(below);
        if how == How::Look && self.checker.is_mounted().or_fail(what)? {
            busy(report);
            return Ok(());
        }
        self.mend(found, how, report);
        self.check_links(how, report);
        Ok(())
    }

    fn mend(&self, found: Vec<UpperFinding>, how: How, report: &mut Report) {
        let mut mend = |repair: &UpperRepair| {
            self.checker.repair(repair).or_fail(|| format!("cannot repair the upper {}", self.walk.upper.display()))?;
            Ok(Done::Whole)
        };
        let mend: Mend<'_, UpperRepair> = if how == How::Repair { Some(&mut mend) } else { None };
        report.add(found, UpperRepair::describe, mend);
    }

    /// Records of hard links against the layers, and against the names that the mount would show.
    fn check_links(&self, how: How, report: &mut Report) {
        let found = (|| -> Result<Vec<UpperFinding>> {
            let what = || "cannot look at the records of hard links";
            let records = self.checker.records().or_fail(what)?;
            let Some(layers) = self.layers.as_ref().filter(|_| !records.is_empty()) else { return Ok(Vec::new()) };
            let groups = super::links::groups(layers).or_fail(what)?;
            let seen = self.walk.count_names(layers, &records)?;
            Ok(self.checker.check_groups(&records, &groups, &seen))
        })();
        match found {
            Ok(found) => self.mend(found, how, report),
            Err(error) => {
                let says = format!("its hard links are not counted: {}", error.sentence());
                report.add::<()>(vec![Finding::note(&self.walk.upper, "upper", says)], |()| String::new(), None);
            }
        }
    }
}
