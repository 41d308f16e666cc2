// SPDX-License-Identifier: MIT OR Apache-2.0
//! Checks an upper for `fsck`: walks it as the host holds it, finds every mark (ours and the kernel's), says in one
//! sentence what it means, judges it against the layers below, and knows what would mend it.
//!
//! `marks.rs` explains and judges one mark, `records.rs` the work directory with its records of hard links, `repair.rs`
//! mends. Looking takes no lock; mending is done by whoever holds the upper's own (see [`Checker::lock`]).

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Ownership, recover};
use crate::layer::whiteout::{Redirect, is_whiteout_device};
use crate::model::finding::{Cure, Finding};
use crate::model::{FsError, Kind, Name, NameBuf};
use crate::sys::node::attr_of;
use crate::sys::{Dir, FileId, Place, lock};

mod marks;
mod records;
mod repair;

pub use records::{Group, RecordFacts};
pub use repair::UpperRepair;

/// Something that was found in an upper.
pub type UpperFinding = Finding<UpperRepair>;

/// What the layers below an upper hold.
pub trait Below {
    /// The kind of what stands at a path of the layers; `None` for nothing.
    fn kind_at(&self, path: &[NameBuf]) -> Result<Option<Kind>, FsError>;
    /// The size of the content that a metadata-only file finds, its own place in the layers being `path`. `None` when
    /// there is none.
    fn content_size(&self, path: &[NameBuf], redirect: Option<Redirect>) -> Result<Option<u64>, FsError>;
}

/// What is known of the layers below an upper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Certainty {
    /// They are what their digests say: what they lack was never there.
    Proven,
    /// Directories: what they lack may be back tomorrow (a filesystem that is not mounted, a layer that was forgotten).
    Claimed,
}

/// Where an upper is, and how it is to be read.
#[derive(Debug)]
pub struct UpperPlace {
    /// Its path, for messages.
    pub path: PathBuf,
    /// The path of its work directory; what is put aside goes beside it.
    pub work_path: PathBuf,
    /// Its directory.
    pub dir: OwnedFd,
    /// Its work directory, if there is one.
    pub work: Option<OwnedFd>,
    /// How owners are kept in it.
    pub ownership: Ownership,
    /// Whether what its layers lack is lost.
    pub certainty: Certainty,
}

/// An upper that is being checked.
#[derive(Debug)]
pub struct Checker {
    path: PathBuf,
    work_path: PathBuf,
    root: Arc<Dir>,
    work: Option<Arc<Dir>>,
    ownership: Ownership,
    certainty: Certainty,
}

/// A directory of the upper that is to be looked through.
struct Waiting {
    dir: Arc<Dir>,
    path: Vec<NameBuf>,
    /// Where layers hold it; `None` where nothing below counts.
    below: Option<Vec<NameBuf>>,
}

/// One object of the upper.
struct Object<'a> {
    place: Place,
    path: &'a [NameBuf],
    kind: Kind,
    size: u64,
    id: FileId,
    /// Where layers would hold what its name hides; `None` where nothing below counts.
    below: Option<&'a [NameBuf]>,
    /// Its directory holds whiteouts by attribute.
    in_xattr_dir: bool,
    /// Its marks, by name.
    marks: Vec<marks::Mark>,
}

/// What is gathered on the way.
#[derive(Default)]
struct Gathered {
    findings: Vec<UpperFinding>,
    /// Files by the number that is recorded on them.
    numbers: HashMap<u64, (FileId, PathBuf)>,
}

impl Checker {
    /// Opens an upper. `NotDir` for anything but directories.
    pub fn open(place: UpperPlace) -> Result<Self, FsError> {
        let UpperPlace { path, work_path, dir, work, ownership, certainty } = place;
        let work = work.map(Dir::from_fd).transpose()?;
        Ok(Checker { path, work_path, root: Dir::from_fd(dir)?, work, ownership, certainty })
    }

    /// Takes the lock by which an upper has one writer; `Busy` while it is mounted. Without a work directory nobody can.
    pub fn lock(&self) -> Result<Option<OwnedFd>, FsError> {
        self.work.as_ref().map(recover::lock_work).transpose()
    }

    /// Is it mounted now?
    pub fn is_mounted(&self) -> Result<bool, FsError> {
        let Some(work) = &self.work else { return Ok(false) };
        Ok(lock::try_directory(work.open_readable()?, lock::Mode::Shared)?.is_none())
    }

    /// Checks everything. `below`: the layers; `None` where they cannot be opened, then nothing is judged against them.
    pub fn check(&self, below: Option<&dyn Below>) -> Vec<UpperFinding> {
        let mut gathered = Gathered::default();
        self.check_root(below, &mut gathered);
        let mut todo = vec![Waiting { dir: Arc::clone(&self.root), path: Vec::new(), below: self.below_root() }];
        while let Some(waiting) = todo.pop() {
            if let Err(error) = self.check_dir(&waiting, below, &mut gathered, &mut todo) {
                gathered.findings.push(self.unreadable(&waiting.path, &error));
            }
        }
        self.check_work(&mut gathered.findings);
        gathered.findings
    }

    fn below_root(&self) -> Option<Vec<NameBuf>> {
        let is_opaque = marks::of(&Place::Dir(Arc::clone(&self.root)))
            .is_ok_and(|marks| marks.iter().any(|(name, value)| marks::is_opaque(name, value)));
        (!is_opaque).then(Vec::new)
    }

    fn check_root(&self, below: Option<&dyn Below>, gathered: &mut Gathered) {
        let place = Place::Dir(Arc::clone(&self.root));
        match marks::of(&place) {
            Ok(marks) => {
                let object = Object {
                    place,
                    path: &[],
                    kind: Kind::Dir,
                    size: 0,
                    id: self.root.id(),
                    below: Some(&[]),
                    in_xattr_dir: false,
                    marks,
                };
                self.judge(&object, below, gathered);
            }
            Err(error) => gathered.findings.push(self.unreadable(&[], &error)),
        }
    }

    fn check_dir(
        &self,
        waiting: &Waiting,
        below: Option<&dyn Below>,
        gathered: &mut Gathered,
        todo: &mut Vec<Waiting>,
    ) -> Result<(), FsError> {
        let own = marks::of(&Place::Dir(Arc::clone(&waiting.dir)))?;
        let in_xattr_dir = own.iter().any(|(name, value)| marks::holds_whiteouts(name, value));
        let mut entries = waiting.dir.read_all()?;
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        for entry in entries {
            let name = Name::new(&entry.name)?;
            let mut path = waiting.path.clone();
            path.push(name.to_buf());
            let hidden = waiting.below.as_ref().map(|base| [base.as_slice(), &[name.to_buf()]].concat());
            match self.object(&waiting.dir, name, &path, hidden.as_deref(), in_xattr_dir) {
                Ok(Some(object)) => {
                    let next = self.judge(&object, below, gathered);
                    if let Place::Dir(dir) = object.place {
                        todo.push(Waiting { dir, path, below: next });
                    }
                }
                Ok(None) => {}
                Err(error) => gathered.findings.push(self.unreadable(&path, &error)),
            }
        }
        Ok(())
    }

    /// Looks at one entry; `None` if it is gone by now.
    fn object<'a>(
        &self,
        dir: &Arc<Dir>,
        name: Name<'_>,
        path: &'a [NameBuf],
        below: Option<&'a [NameBuf]>,
        in_xattr_dir: bool,
    ) -> Result<Option<Object<'a>>, FsError> {
        let stat = match dir.stat_child(name) {
            Err(FsError::NotFound) => return Ok(None),
            other => other?,
        };
        let attr = attr_of(&stat)?;
        let place = if attr.kind == Kind::Dir { Place::Dir(dir.child(name, &stat)) } else { Place::at(dir, name) };
        let mut marks = self.marks_of(&place, &stat)?;
        if is_whiteout_device(&attr) {
            marks.push((marks::DEVICE.to_vec(), Vec::new()));
        }
        let id = FileId::of(&stat);
        Ok(Some(Object { place, path, kind: attr.kind, size: attr.size, id, below, in_xattr_dir, marks }))
    }

    /// A repair of what is wrong only if the layers are all there.
    fn if_proven(&self, repair: UpperRepair) -> Cure<UpperRepair> {
        match self.certainty {
            Certainty::Proven => Cure::Repair(repair),
            Certainty::Claimed => Cure::Refused(
                "bring the layer back: its layers are directories, and nothing tells whether they are all there".into(),
            ),
        }
    }

    /// The path on the host.
    fn host_path(&self, path: &[NameBuf]) -> PathBuf {
        let mut host = self.path.clone();
        host.extend(path.iter().map(|name| OsStr::from_bytes(name.as_name().bytes())));
        host
    }

    fn unreadable(&self, path: &[NameBuf], error: &FsError) -> UpperFinding {
        let why = match error {
            FsError::Access => "run fsck as its owner",
            _ => "look at the filesystem it lies on",
        };
        let says = format!("it cannot be looked at: {error}");
        Finding::damage(self.host_path(path), "upper", says, Cure::Refused(why.to_owned()))
    }
}

/// A path of the layers, for messages.
fn shown(path: &[NameBuf]) -> String {
    match Redirect::Path(path.to_vec()).value().escape_ascii().to_string() {
        empty if empty.is_empty() => "/".to_owned(),
        path => path,
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}
