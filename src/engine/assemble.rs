// SPDX-License-Identifier: MIT OR Apache-2.0
//! From a container's record to a filesystem: opens what the record names, once, by descriptor.
//!
//! The same record is opened for a mount (with its work directory, writable), or only to look at (`ls`, `which`,
//! `diff` of a container, mounted or not: nothing is written).

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use crate::fs::{FsSpec, MountAt};
use crate::layer::Layer;
use crate::model::ids::IdMap;
use crate::store::container::{ContainerRecord, MountRecord, MountSource, OwnershipForm};
use crate::store::{Store, Wait};
use crate::sys::bind::open_private_copy;
use crate::sys::proc;
use crate::sys::tmpfs::{TmpfsSpec, open_tmpfs};
use crate::tree::{Base, BranchSpec};
use crate::upper::{Ownership, UpperSpec};

use super::{EngineError, OrFail, Result, host, layers, mount, volumes};

/// What a path is opened as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenAs {
    /// A directory to read.
    Directory,
    /// Anything, without touching it.
    Path,
}

/// Opens a path of the host, following symlinks: it is the user who names it.
pub fn open_path(path: &Path, how: OpenAs) -> io::Result<OwnedFd> {
    let flags = match how {
        OpenAs::Directory => OFlags::RDONLY | OFlags::DIRECTORY,
        OpenAs::Path => OFlags::PATH,
    };
    Ok(rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())?)
}

/// The ownership form of the filesystem for that of a record.
pub fn ownership(form: OwnershipForm) -> Ownership {
    match form {
        OwnershipForm::Native => Ownership::Native,
        OwnershipForm::Override => Ownership::Override,
        OwnershipForm::Fixed => Ownership::Fixed,
    }
}

/// What the making of a mount has made on the way, to be taken back when it fails.
#[derive(Debug, Default)]
pub struct Made {
    /// Volumes that were not there before.
    pub volumes: Vec<String>,
    /// The directories of a named upper (itself, its work directory) that were not there before.
    pub dirs: Vec<PathBuf>,
    /// Missing directories that binds show, innermost first.
    pub sources: Vec<PathBuf>,
    /// The mount was usable: from then on nothing is taken back, it may hold somebody's work.
    pub is_usable: bool,
}

/// Opens a container for a mount: makes missing volumes and bind sources, and fills empty volumes if `is_first`.
pub fn open_for_mount(store: &Store, record: &ContainerRecord, is_first: bool, made: &mut Made) -> Result<FsSpec> {
    let layers = layers::open(store, record)?;
    let (upper, work) = mount::work_of(store, record);
    if !mount::is_same_filesystem(&upper, &work) {
        return Err(EngineError::failed(format!(
            "the work directory {} and the upper {} lie on different filesystems",
            work.display(),
            upper.display()
        ))
        .advise("choose an upper that is not itself a mountpoint"));
    }
    let open = |path: &Path| {
        open_path(path, OpenAs::Directory).or_fail(|| format!("cannot open the upper {}", path.display()))
    };
    let spec = UpperSpec {
        dir: open(&upper)?,
        work: Some(open(&work)?),
        ownership: ownership(record.ownership),
        is_volatile: false,
        is_view: false,
    };
    let mut mounts = Vec::new();
    for mount in &record.mounts {
        let branch = match &mount.source {
            MountSource::Volume { name, is_anonymous, no_copy, labels } => {
                let is_made = ensure_volume(store, name, *is_anonymous, labels)?;
                if is_made {
                    made.volumes.push(name.clone());
                }
                if is_first && !*no_copy {
                    super::filling::fill(store, name, &layers, &mount.target)?;
                } else {
                    super::filling::complete(store, name)?;
                }
                open_volume(store, name, mount.read_only, record.mountpoint.as_deref())?
            }
            MountSource::Bind { path, is_created } => {
                if *is_created {
                    make_bind_source(Path::new(path), &mut made.sources)?;
                }
                open_bind(path, mount, record.mountpoint.as_deref())?
            }
            MountSource::Tmpfs { .. } => open_tmpfs_branch(mount)?,
        };
        mounts.push(MountAt { target: mount.target.clone().into_bytes(), branch });
    }
    Ok(FsSpec {
        root: root_branch(record, Some(spec), top_first(layers)),
        mounts,
        uids: record.uids.clone(),
        gids: record.gids.clone(),
    })
}

/// Opens a container that is not mounted, to be changed: its root, volumes and binds. Call it under its lock.
pub fn open_stopped(store: &Store, record: &ContainerRecord) -> Result<FsSpec> {
    let (upper, work) = mount::work_of(store, record);
    let open = |path: &Path| open_path(path, OpenAs::Directory).or_fail(|| format!("cannot open {}", path.display()));
    let upper = UpperSpec {
        dir: open(&upper)?,
        work: Some(open(&work)?),
        ownership: ownership(record.ownership),
        is_volatile: false,
        is_view: false,
    };
    let mut mounts = Vec::new();
    for mount in &record.mounts {
        let branch = match &mount.source {
            MountSource::Volume { name, .. } => {
                super::filling::complete(store, name)?;
                open_volume(store, name, mount.read_only, None)?
            }
            MountSource::Bind { path, .. } => open_bind(path, mount, None)?,
            MountSource::Tmpfs { .. } => continue,
        };
        mounts.push(MountAt { target: mount.target.clone().into_bytes(), branch });
    }
    Ok(FsSpec {
        root: root_branch(record, Some(upper), top_first(layers::open(store, record)?)),
        mounts,
        uids: record.uids.clone(),
        gids: record.gids.clone(),
    })
}

/// A directory of the host as it is: what lies in it belongs to whom it belongs there.
pub fn host_tree(dir: OwnedFd, label: String) -> FsSpec {
    let root = plain_branch(label, dir, OwnershipForm::Native, false, true);
    FsSpec { root, mounts: Vec::new(), uids: IdMap::Identity, gids: IdMap::Identity }
}

/// Layers as a branch wants them: top first.
pub fn top_first(mut layers: Vec<Arc<dyn Layer>>) -> Vec<Arc<dyn Layer>> {
    layers.reverse();
    layers
}

fn root_branch(record: &ContainerRecord, upper: Option<UpperSpec>, lowers: Vec<Arc<dyn Layer>>) -> BranchSpec {
    BranchSpec {
        label: record.name.clone(),
        base: Base::Merge { upper, lowers },
        is_read_only: record.read_only,
        is_shared: false,
    }
}

/// Makes a volume unless it is there; was it made now?
fn ensure_volume(
    store: &Store,
    name: &str,
    is_anonymous: bool,
    labels: &std::collections::BTreeMap<String, String>,
) -> Result<bool> {
    let _lock = store.lock_volume(name, Wait::Block).or_fail(|| format!("cannot use the volume {name}"))?;
    if store.load_volume(name).or_fail(|| format!("cannot read the volume {name}"))?.is_some() {
        return Ok(false);
    }
    let record = mount::new_volume(name, is_anonymous, labels);
    store.create_volume(&record).or_fail(|| format!("cannot create the volume {name}"))?;
    Ok(true)
}

/// Opens a volume as a branch. `mountpoint` is where the whole will be mounted.
pub fn open_volume(store: &Store, name: &str, is_read_only: bool, mountpoint: Option<&str>) -> Result<BranchSpec> {
    let volume = store.find_volume(name).or_fail(|| "cannot use the volume")?;
    let data = store.volume_data(&volume);
    let dir = open_shared_dir(&data, mountpoint)
        .map_err(|e| EngineError::failed(format!("cannot open the volume {name}")).because(e))?;
    Ok(plain_branch(format!("volume {name}"), dir, volume.ownership, is_read_only, true))
}

fn plain_branch(label: String, dir: OwnedFd, form: OwnershipForm, is_read_only: bool, is_shared: bool) -> BranchSpec {
    let upper = UpperSpec { dir, work: None, ownership: ownership(form), is_volatile: false, is_view: false };
    BranchSpec { label, base: Base::Merge { upper: Some(upper), lowers: Vec::new() }, is_read_only, is_shared }
}

impl Made {
    /// Takes back the directories that were made for binds. What somebody has put something into stays.
    pub fn take_back_sources(&self) {
        for dir in &self.sources {
            if let Err(error) = fs::remove_dir(dir) {
                log::warn!("cannot take back {}: {error}", dir.display());
            }
        }
    }
}

/// Makes the missing directory that a bind shows, and its parents, as docker does.
fn make_bind_source(path: &Path, made: &mut Vec<PathBuf>) -> Result<()> {
    let mut missing = Vec::new();
    for dir in path.ancestors() {
        match fs::symlink_metadata(dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => missing.push(dir),
            _ => break,
        }
    }
    for dir in missing.into_iter().rev() {
        match fs::DirBuilder::new().mode(0o755).create(dir) {
            Ok(()) => made.insert(0, dir.to_owned()),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => {
                return Err(EngineError::failed(format!("cannot make the bind source {}", path.display())).because(e));
            }
        }
    }
    Ok(())
}

/// Opens a directory that is shared with the host. One that contains the mountpoint is opened as it is now: seen through
/// it, the mount would contain itself, and whoever walks into it would wait for himself.
fn open_shared_dir(path: &Path, mountpoint: Option<&str>) -> Result<OwnedFd> {
    let what = || format!("cannot open {}", path.display());
    let real = fs::canonicalize(path).or_fail(what)?;
    let is_around = mountpoint.is_some_and(|place| Path::new(place) != real && Path::new(place).starts_with(&real));
    if !is_around {
        return open_path(&real, OpenAs::Directory).or_fail(what);
    }
    open_private_copy(&real).map_err(|e| {
        EngineError::failed(format!("{} contains the mountpoint", path.display()))
            .because(e)
            .advise("choose a mountpoint outside of it")
    })
}

/// Opens a path of the host as a branch: a directory, or one file. `mountpoint` is where the whole will be mounted.
pub fn open_bind(path: &str, mount: &MountRecord, mountpoint: Option<&str>) -> Result<BranchSpec> {
    let meta = match fs::metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(EngineError::failed(format!("bind source path does not exist: {path}")));
        }
        other => other.or_fail(|| format!("cannot use the bind source {path}"))?,
    };
    let label = format!("bind {path}");
    if meta.is_dir() {
        let dir = open_shared_dir(Path::new(path), mountpoint)?;
        return Ok(plain_branch(label, dir, OwnershipForm::Native, mount.read_only, true));
    }
    let file = open_path(Path::new(path), OpenAs::Path).or_fail(|| format!("cannot open the bind source {path}"))?;
    Ok(BranchSpec { label, base: Base::HostFile(file), is_read_only: mount.read_only, is_shared: true })
}

fn open_tmpfs_branch(mount: &MountRecord) -> Result<BranchSpec> {
    let MountSource::Tmpfs { size, percent, mode, uid, gid } = &mount.source else {
        return Err(EngineError::failed(format!("{} is no tmpfs", mount.target)));
    };
    let caller = host::caller();
    let size = match (size, percent) {
        (Some(bytes), _) => *bytes,
        (None, Some(percent)) => host::memory() / 100 * u64::from(*percent),
        (None, None) => host::memory() / 2,
    };
    let spec =
        TmpfsSpec { size, mode: mode.unwrap_or(0o1777), uid: uid.unwrap_or(caller.0), gid: gid.unwrap_or(caller.1) };
    if !proc::is_real_root() && (spec.uid, spec.gid) != caller {
        return Err(EngineError::failed(format!("a tmpfs of user {} at {} needs root", spec.uid, mount.target)));
    }
    let dir = open_tmpfs(&spec).map_err(|e| {
        EngineError::failed(format!("cannot make the tmpfs at {}", mount.target))
            .because(e)
            .advise("an ordinary user needs user namespaces for it (sysctl user.max_user_namespaces)")
    })?;
    Ok(plain_branch("tmpfs".to_owned(), dir, volumes::default_form(), mount.read_only, false))
}
