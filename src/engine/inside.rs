// SPDX-License-Identifier: MIT OR Apache-2.0
//! The tree of a container for those who are not in its mount: to read it, and to change it.
//!
//! A mounted container is read from its layers and its upper, as a stopped one, after its dirty pages are written; what
//! only the mount has (tmpfs) is read through it. It is changed only through its mount, whose daemon would not know of
//! anything else, and so with the rights that the caller has there. A stopped one is changed as its mount would.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use crate::fs::{Fs, build};
use crate::store::container::{ContainerRecord, MountSource, MountedRecord};
use crate::store::{Lock, Store};
use crate::sys::proc;

use super::assemble::{self, OpenAs, open_path};
use super::look::{self, Part, Target, View};
use super::state::{State, find, lock, state};
use super::{EngineError, OrFail, Result, host};

/// The tree of a container, opened to be changed.
#[derive(Debug)]
pub struct Writable {
    /// The tree; ids as the mount shows them.
    pub fs: Fs,
    /// Keeps a stopped container from being mounted meanwhile.
    _lock: Option<Lock>,
}

/// Opens a container to be changed. `path` is where; a tmpfs is there only while the container is mounted.
pub fn open_writable(store: &Store, name: &str, path: &[u8]) -> Result<Writable> {
    let record = find(store, name)?;
    let lock = lock(store, &record)?;
    let record = find(store, &record.id)?;
    if state(store, &record)? == State::Mounted {
        // The end of a mount takes the lock: it must not wait for us.
        drop(lock);
        return Ok(Writable { fs: open_mount(&record)?, _lock: None });
    }
    proc::set_umask(0);
    let spec = assemble::open_stopped(store, &record)?;
    let fs = Fs::new(spec).or_fail(|| format!("cannot open {}", record.name))?;
    if let Some(target) = find_tmpfs(&fs, &record, path)? {
        return Err(EngineError::failed(format!("{target} is a tmpfs, which is there only while {name} is mounted")));
    }
    Ok(Writable { fs, _lock: Some(lock) })
}

/// A tree to read.
#[derive(Debug)]
pub enum Readable {
    /// From layers, upper and volumes.
    View(Box<View>),
    /// Through the mount.
    Mount(Box<Fs>),
}

impl Readable {
    /// The tree; ids as the mount shows them.
    pub fn fs(&self) -> &Fs {
        match self {
            Readable::View(view) => &view.fs,
            Readable::Mount(fs) => fs,
        }
    }
}

/// Opens a container to be read at `path`.
pub fn open_readable(store: &Store, name: &str, path: &[u8]) -> Result<Readable> {
    let record = find(store, name)?;
    let is_mounted = state(store, &record)? == State::Mounted;
    if is_mounted {
        flush(&record);
    }
    let view = look::open(store, &Target::Container(Box::new(record.clone())), Part::Whole)?;
    if is_mounted && find_tmpfs(&view.fs, &record, path)?.is_some() {
        return Ok(Readable::Mount(Box::new(open_mount(&record)?)));
    }
    Ok(Readable::View(Box::new(view)))
}

/// The tmpfs of a container in which a path lies, symlinks followed.
fn find_tmpfs<'r>(fs: &Fs, record: &'r ContainerRecord, path: &[u8]) -> Result<Option<&'r str>> {
    let canonical = |path: &[u8]| fs.canonical(path).or_fail(|| format!("cannot look at {}", record.name));
    let names = canonical(path)?;
    for mount in &record.mounts {
        if let MountSource::Tmpfs { .. } = mount.source
            && names.starts_with(&canonical(mount.target.as_bytes())?)
        {
            return Ok(Some(&mount.target));
        }
    }
    Ok(None)
}

/// Makes what programs have written through shared mappings reach the upper. What cannot be reached needs nobody to wait.
pub fn flush(record: &ContainerRecord) {
    let synced = open_root(record).and_then(|(root, _)| rustix::fs::syncfs(root).map_err(std::io::Error::from));
    if let Err(error) = synced {
        log::debug!("cannot flush {}: {error}", record.name);
    }
}

fn open_mount(record: &ContainerRecord) -> Result<Fs> {
    let (root, path) = open_root(record)
        .map_err(|e| EngineError::failed(format!("cannot reach the mount of {}", record.name)).because(e))
        .map_err(|e| e.advise("run this where it is mounted, or unmount it first"))?;
    Fs::new(assemble::host_tree(root, path.display().to_string()))
        .or_fail(|| format!("cannot open the mount of {}", record.name))
}

/// Opens the root of the mount, in another mount namespace too; nothing else that may stand at its place.
fn open_root(record: &ContainerRecord) -> std::io::Result<(OwnedFd, PathBuf)> {
    let absent = || std::io::Error::from(std::io::ErrorKind::NotFound);
    let mounted: &MountedRecord = record.mounted.as_ref().ok_or_else(absent)?;
    let path = if mounted.namespace == host::mount_namespace() {
        PathBuf::from(&mounted.mountpoint)
    } else {
        let inside = mounted.mountpoint.trim_start_matches('/');
        Path::new("/proc").join(mounted.pid.to_string()).join("root").join(inside)
    };
    let root = open_path(&path, OpenAs::Directory)?;
    let dev = rustix::fs::fstat(&root)?.st_dev;
    if (rustix::fs::major(dev), rustix::fs::minor(dev)) != mounted.dev {
        return Err(std::io::Error::other(format!("something else is mounted at {}", path.display())));
    }
    Ok((root, path))
}

/// A path of these names.
pub fn path_of(names: &[Vec<u8>]) -> Vec<u8> {
    build::join(names)
}
