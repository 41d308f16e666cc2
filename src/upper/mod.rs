// SPDX-License-Identifier: MIT OR Apache-2.0
//! Floor 4: the writable layer, a directory of the host.
//!
//! `ownership.rs` says how owners and modes are held, `format.rs` how marks are written (whiteouts, opaque, numbers),
//! `stage.rs` how something becomes visible whole or not at all, `edit.rs` how names change, `copy_up.rs` how an entry
//! of a layer becomes ours, `links.rs` how hard-link groups of layers survive it, `recover.rs` what a crash leaves.
//! The namespace of an upper belongs to the user: a file called `.wh.foo` is just a file.
//!
//! An upper **with** a work directory may lie over layers; one **without** is a plain directory (volume, bind, tmpfs):
//! it knows no whiteouts and no marks, and others may change it.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, OnceLock};

use crate::layer::dir::{DirLayer, HostForm};
use crate::layer::origin::Origin;
use crate::model::{FsError, Name};
use crate::sys::xattr::SetMode;
use crate::sys::{Dir, Place, proc, xattr};

pub mod check;
pub mod copy_up;
pub mod edit;
pub mod format;
pub mod links;
pub mod ownership;
pub mod recover;
pub mod stage;

pub use ownership::Ownership;

/// What an upper is made of.
#[derive(Debug)]
pub struct UpperSpec {
    /// The directory that holds what was written.
    pub dir: OwnedFd,
    /// A directory on the same filesystem for staging; `None` for a plain directory (volume, bind, tmpfs).
    pub work: Option<OwnedFd>,
    /// How owners are held.
    pub ownership: Ownership,
    /// Leave out syncing what is copied up (`-o volatile`).
    pub is_volatile: bool,
    /// Only to look at: nothing is cleared, and nothing may be written. A mount may be using it meanwhile.
    pub is_view: bool,
}

/// Where marks are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MarkSpace {
    /// `trusted.overlay.`: only root of the initial namespace can.
    Trusted,
    /// `user.overlay.`: the kernel's `userxattr` form.
    User,
}

/// The work side of an upper that lies over layers.
#[derive(Debug)]
pub(crate) struct Work {
    /// The work directory itself.
    pub(crate) dir: Arc<Dir>,
    /// Staging.
    pub(crate) stage: Arc<Dir>,
    /// Records of hard-link groups of layers, in our form.
    pub(crate) links: Arc<Dir>,
    /// Records in the kernel's form, once there are any.
    pub(crate) index: OnceLock<Arc<Dir>>,
    /// The lasting name of the topmost layer's root, until the index is made.
    pub(crate) top_layer: Mutex<Option<Origin>>,
    /// Held while a kept link count is changed, and while the index is made.
    pub(crate) counting: Mutex<()>,
    /// Where marks are written.
    pub(crate) marks: MarkSpace,
    /// The number of the next staged name.
    pub(crate) next: AtomicU64,
    /// The host has no whiteout devices: the attribute form is used.
    pub(crate) needs_xattr_whiteouts: AtomicBool,
    /// The host has no unnamed files.
    pub(crate) lacks_tmpfile: AtomicBool,
    /// Is there any hard-link group recorded? Spares a look-up per linked file.
    pub(crate) has_links: AtomicBool,
    /// Lasting names of layers' files are ambiguous: the kernel's index is not used.
    pub(crate) refuses_index: AtomicBool,
    /// Held while this process may write: one upper has one writer. `None` for a view.
    _lock: Option<OwnedFd>,
}

/// A writable layer.
#[derive(Debug)]
pub struct Upper {
    reader: DirLayer,
    ownership: Ownership,
    work: Option<Work>,
    is_volatile: bool,
}

impl Upper {
    /// Opens an upper and clears what a crash has left in its work directory.
    ///
    /// Errors: `Unsupported` when marks are needed and the host has no extended attributes for us, `CrossDevice` when
    /// work lies on another filesystem, and what the host answers.
    pub fn open(spec: UpperSpec, label: String) -> Result<Self, FsError> {
        let root = Dir::from_fd(spec.dir)?;
        let form = HostForm {
            has_oci_names: false,
            has_override: spec.ownership.uses_override(),
            is_plain: spec.work.is_none(),
            trusts_user_marks: true,
            is_fixed: false,
        };
        let work = match spec.work {
            None => None,
            Some(fd) if spec.is_view => Some(Work::view(&Dir::from_fd(fd)?)?),
            Some(fd) => Some(Work::open(Dir::from_fd(fd)?, &root)?),
        };
        let reader = DirLayer::from_dir(root, label, form);
        Ok(Upper { reader, ownership: spec.ownership, work, is_volatile: spec.is_volatile })
    }

    /// The upper of a branch that is one file of the host: it has no names, so its root is never reached.
    pub fn of_one_file(label: String) -> Result<Self, FsError> {
        let dir = rustix::fs::open(c"/proc/self", rustix::fs::OFlags::PATH, rustix::fs::Mode::empty())?;
        let ownership = Ownership::Native;
        Self::open(UpperSpec { dir, work: None, ownership, is_volatile: false, is_view: false }, label)
    }

    /// The reading half.
    pub fn reader(&self) -> &DirLayer {
        &self.reader
    }

    /// The root directory.
    pub fn root(&self) -> &Arc<Dir> {
        self.reader.root_dir()
    }

    /// How owners are held.
    pub fn ownership(&self) -> Ownership {
        self.ownership
    }

    /// Is it a plain directory that others may change, rather than an upper over layers?
    pub fn is_plain(&self) -> bool {
        self.work.is_none()
    }

    pub(crate) fn work(&self) -> Result<&Work, FsError> {
        self.work.as_ref().ok_or(FsError::Unsupported)
    }
}

impl Work {
    fn open(work: Arc<Dir>, root: &Arc<Dir>) -> Result<Self, FsError> {
        if work.id().dev != root.id().dev {
            return Err(FsError::CrossDevice);
        }
        // Before anything is emptied: the user's files in an upper, or another mount's, must not be taken for staging.
        if overlaps(&work, root)? {
            return Err(FsError::Invalid);
        }
        let lock = recover::lock_work(&work)?;
        let stage = open_or_make(&work, Name::new(recover::STAGE)?)?;
        let links = open_or_make(&work, Name::new(recover::LINKS)?)?;
        // What fails for want of descriptors must still be able to clean up.
        stage.pin()?;
        links.pin()?;
        recover::empty(&stage)?;
        let marks = probe_marks(&stage)?;
        let index = recover::open_index(&work)?;
        if let Some(index) = &index {
            recover::clear_index(index)?;
            index.pin()?;
        }
        links::clear_marks_beside(&links)?;
        let has_links = recover::has_records(&links, index.as_ref())?;
        Ok(Work {
            has_links: AtomicBool::new(has_links),
            _lock: Some(lock),
            ..Work::new(work, stage, links, index, marks)
        })
    }

    /// The work side for looking only: what was never made is not there.
    fn view(work: &Arc<Dir>) -> Result<Self, FsError> {
        let open = |name| match work.open_child(name) {
            Ok(dir) => Ok((dir, true)),
            Err(FsError::NotFound) => Ok((Arc::clone(work), false)),
            Err(error) => Err(error),
        };
        let (stage, _) = open(Name::new(recover::STAGE)?)?;
        let (links, has_links) = open(Name::new(recover::LINKS)?)?;
        let index = recover::open_index(work)?;
        let has_links = (has_links && recover::has_records(&links, None)?)
            || index.as_ref().map_or(Ok(false), |index| recover::has_records(index, None))?;
        let marks = if proc::is_real_root() { MarkSpace::Trusted } else { MarkSpace::User };
        let work = Work::new(Arc::clone(work), stage, links, index, marks);
        Ok(Work { has_links: AtomicBool::new(has_links), ..work })
    }

    /// These folders, nothing learnt of them yet, and no lock.
    fn new(dir: Arc<Dir>, stage: Arc<Dir>, links: Arc<Dir>, index: Option<Arc<Dir>>, marks: MarkSpace) -> Self {
        Work {
            dir,
            stage,
            links,
            index: index.map_or_else(OnceLock::new, OnceLock::from),
            top_layer: Mutex::default(),
            counting: Mutex::default(),
            marks,
            next: AtomicU64::new(0),
            needs_xattr_whiteouts: AtomicBool::new(false),
            lacks_tmpfile: AtomicBool::new(false),
            has_links: AtomicBool::new(false),
            refuses_index: AtomicBool::new(false),
            _lock: None,
        }
    }
}

/// Is one of two directories the other, or inside it?
pub fn overlaps(a: &Arc<Dir>, b: &Arc<Dir>) -> Result<bool, FsError> {
    Ok(a.ancestry()?.contains(&b.id()) || b.ancestry()?.contains(&a.id()))
}

fn open_or_make(parent: &Arc<Dir>, name: Name<'_>) -> Result<Arc<Dir>, FsError> {
    match rustix::fs::mkdirat(&*parent.open()?, name.os(), rustix::fs::Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => parent.open_child(name),
        Err(errno) => Err(errno.into()),
    }
}

/// Which attributes may we set here?
fn probe_marks(stage: &Arc<Dir>) -> Result<MarkSpace, FsError> {
    let place = Place::Dir(Arc::clone(stage));
    for (space, probe) in
        [(MarkSpace::Trusted, &b"trusted.overlay.mlfs.probe"[..]), (MarkSpace::User, b"user.overlay.mlfs.probe")]
    {
        if xattr::set(&place, probe, b"y", SetMode::Any).is_ok() {
            xattr::remove(&place, probe)?;
            return Ok(space);
        }
    }
    Err(FsError::Unsupported)
}

/// The ownership form in which this process can hold every owner in `dir`: `Native` when it may give files away
/// (root of the initial namespace, or of one with a range of ids), else `Override`.
pub fn probe_ownership(_dir: BorrowedFd<'_>) -> Ownership {
    if proc::euid() == 0 && proc::count_user_ids() > 65_535 { Ownership::Native } else { Ownership::Override }
}
