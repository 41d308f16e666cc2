// SPDX-License-Identifier: MIT OR Apache-2.0
//! Directories of the host that cannot be escaped.
//!
//! A [`Dir`] knows its parent and its name and opens itself when needed, one component at a time and never through a
//! symlink; every re-opening is checked against the device and inode seen first. Descriptors are `O_PATH` (so a
//! directory may be searched that may not be read) and kept in one cache of bounded size, so that the number of known
//! directories is not bounded by `RLIMIT_NOFILE`. What a `Dir` deliberately does not do: follow a rename by others.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock, Weak};

use rustix::fs::{AtFlags, Mode, OFlags, RawDir, Stat, fstat, openat, statat};

use crate::model::sync::{lock, read, write};
use crate::model::{FsError, Kind, Name};

/// Device and inode of a host file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId {
    /// `st_dev`.
    pub dev: u64,
    /// `st_ino`.
    pub ino: u64,
}

impl FileId {
    /// The identity in a `stat`.
    pub fn of(stat: &Stat) -> Self {
        FileId { dev: stat.st_dev, ino: stat.st_ino }
    }
}

/// Where a directory lies.
#[derive(Debug)]
enum Place {
    /// Its descriptor is the only way to it (a root, or removed and still known): never evicted.
    Pinned(Arc<OwnedFd>),
    /// At a name in another directory.
    In(Arc<Dir>, Box<[u8]>),
    /// Being dropped.
    Gone,
}

/// A directory of the host. See the module's header.
#[derive(Debug)]
pub struct Dir {
    id: FileId,
    place: RwLock<Place>,
    cached: Mutex<Option<Arc<OwnedFd>>>,
    was_used: AtomicBool,
}

/// One line of a host directory.
#[derive(Clone, Debug)]
pub struct RawEntry {
    /// The name.
    pub name: Box<[u8]>,
    /// The kind, where the host tells it.
    pub kind: Option<Kind>,
}

impl Dir {
    /// Takes a descriptor of a directory (any access mode) as a root.
    pub fn from_fd(fd: OwnedFd) -> Result<Arc<Self>, FsError> {
        let stat = fstat(&fd)?;
        if Kind::from_mode(stat.st_mode) != Some(Kind::Dir) {
            return Err(FsError::NotDir);
        }
        Ok(Arc::new(Dir {
            id: FileId::of(&stat),
            place: RwLock::new(Place::Pinned(Arc::new(fd))),
            cached: Mutex::new(None),
            was_used: AtomicBool::new(false),
        }))
    }

    /// The directory `name` in `self`, whose `stat` the caller has just made. Nothing is opened yet.
    pub fn child(self: &Arc<Self>, name: Name<'_>, stat: &Stat) -> Arc<Self> {
        Arc::new(Dir {
            id: FileId::of(stat),
            place: RwLock::new(Place::In(Arc::clone(self), name.bytes().into())),
            cached: Mutex::new(None),
            was_used: AtomicBool::new(false),
        })
    }

    /// Device and inode of the directory and of all that it lies in, nearest first, up to the root of the process.
    pub fn ancestry(self: &Arc<Self>) -> Result<Vec<FileId>, FsError> {
        let mut ids = vec![self.id];
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut fd = openat(&*self.open()?, c".", flags, Mode::empty())?;
        loop {
            fd = openat(&fd, c"..", flags, Mode::empty())?;
            let id = FileId::of(&fstat(&fd)?);
            if ids.last() == Some(&id) {
                return Ok(ids);
            }
            ids.push(id);
        }
    }

    /// Opens the directory at `name` in `self`. `NotDir` for anything else, symlinks included.
    pub fn open_child(self: &Arc<Self>, name: Name<'_>) -> Result<Arc<Self>, FsError> {
        let stat = self.stat_child(name)?;
        if Kind::from_mode(stat.st_mode) != Some(Kind::Dir) {
            return Err(FsError::NotDir);
        }
        Ok(self.child(name, &stat))
    }

    /// Device and inode.
    pub fn id(&self) -> FileId {
        self.id
    }

    /// The parent and the name, unless it is a root or has lost its name.
    pub fn parent(&self) -> Option<(Arc<Dir>, Box<[u8]>)> {
        match &*read(&self.place) {
            Place::Pinned(_) | Place::Gone => None,
            Place::In(parent, name) => Some((Arc::clone(parent), name.clone())),
        }
    }

    /// A descriptor (`O_PATH`, or what a root was made of), opened if need be. `Stale` when another directory took the
    /// place of this one.
    pub fn fd(&self) -> Result<Arc<OwnedFd>, FsError> {
        if let Place::Pinned(fd) = &*read(&self.place) {
            return Ok(Arc::clone(fd));
        }
        if let Some(fd) = lock(&self.cached).as_ref() {
            self.was_used.store(true, Ordering::Relaxed);
            return Ok(Arc::clone(fd));
        }
        self.reopen()
    }

    /// Opens it from the nearest ancestor that is open, in a loop: paths may be deeper than a stack.
    fn reopen(&self) -> Result<Arc<OwnedFd>, FsError> {
        let Some((parent, name)) = self.parent() else { return self.fd() };
        // The way down to here, nearest first; each step knows what it must find.
        let mut way = vec![(name, self.id)];
        let mut here = parent;
        let mut fd = loop {
            if let Some(fd) = here.known_fd() {
                break fd;
            }
            let Some((parent, name)) = here.parent() else { break here.fd()? };
            way.push((name, here.id));
            here = parent;
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        while let Some((name, id)) = way.pop() {
            let next = openat(&*fd, &*name, flags, Mode::empty()).map_err(|errno| match errno.into() {
                // The directory was there when we learnt of it.
                FsError::NotFound | FsError::NotDir => FsError::Stale,
                other => other,
            })?;
            if FileId::of(&fstat(&next)?) != id {
                return Err(FsError::Stale);
            }
            fd = Arc::new(next);
        }
        *lock(&self.cached) = Some(Arc::clone(&fd));
        Ok(fd)
    }

    fn known_fd(&self) -> Option<Arc<OwnedFd>> {
        if let Place::Pinned(fd) = &*read(&self.place) {
            return Some(Arc::clone(fd));
        }
        lock(&self.cached).clone()
    }

    /// Like [`Dir::fd`], and remembers the descriptor in the process-wide cache.
    pub fn open(self: &Arc<Self>) -> Result<Arc<OwnedFd>, FsError> {
        let is_known = lock(&self.cached).is_some();
        let fd = self.fd()?;
        if !is_known && matches!(&*read(&self.place), Place::In(..)) {
            CACHE.remember(self);
        }
        Ok(fd)
    }

    /// The directory was moved by us to `name` in `parent`.
    pub fn moved(&self, parent: &Arc<Dir>, name: Name<'_>) {
        let mut place = write(&self.place);
        if matches!(&*place, Place::In(..)) {
            *place = Place::In(Arc::clone(parent), name.bytes().into());
        }
    }

    /// Holds the descriptor until the value is dropped: for a directory that is about to lose its name.
    pub fn pin(&self) -> Result<(), FsError> {
        let fd = self.fd()?;
        *write(&self.place) = Place::Pinned(fd);
        Ok(())
    }

    /// `stat` of the directory itself.
    pub fn stat(self: &Arc<Self>) -> Result<Stat, FsError> {
        Ok(fstat(&*self.open()?)?)
    }

    /// `lstat` of an entry.
    pub fn stat_child(self: &Arc<Self>, name: Name<'_>) -> Result<Stat, FsError> {
        Ok(statat(&*self.open()?, name.os(), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Opens an entry relative to the directory, never following a symlink at `name`.
    pub fn open_at(self: &Arc<Self>, name: Name<'_>, flags: OFlags, mode: u32) -> Result<OwnedFd, FsError> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(openat(&*self.open()?, name.os(), flags, Mode::from_raw_mode(mode))?)
    }

    /// A readable descriptor of the directory itself, for listing and fsync.
    pub fn open_readable(self: &Arc<Self>) -> Result<OwnedFd, FsError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(openat(&*self.open()?, c".", flags, Mode::empty())?)
    }

    /// All entries but `.` and `..`, in the host's order. `Access` when the directory may not be read.
    pub fn read_all(self: &Arc<Self>) -> Result<Vec<RawEntry>, FsError> {
        let fd = self.open_readable()?;
        let mut buffer = Vec::with_capacity(64 * 1024);
        let mut entries = Vec::new();
        let mut raw = RawDir::new(fd.as_fd(), buffer.spare_capacity_mut());
        while let Some(entry) = raw.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                entries.push(RawEntry { name: name.into(), kind: kind_of(entry.file_type()) });
            }
        }
        Ok(entries)
    }

    /// Makes the directory's entries durable.
    pub fn sync(self: &Arc<Self>) -> Result<(), FsError> {
        Ok(rustix::fs::fsync(self.open_readable()?)?)
    }
}

impl Drop for Dir {
    /// Chains of parents are unwound in a loop, not by recursion.
    fn drop(&mut self) {
        let mut next = take_parent(&self.place);
        while let Some(parent) = next {
            next = Arc::into_inner(parent).and_then(|parent| take_parent(&parent.place));
        }
    }
}

/// Takes the parent out of the place of a directory that is being dropped.
fn take_parent(place: &RwLock<Place>) -> Option<Arc<Dir>> {
    let mut place = write(place);
    match std::mem::replace(&mut *place, Place::Gone) {
        Place::In(parent, _) => Some(parent),
        Place::Pinned(_) | Place::Gone => None,
    }
}

fn kind_of(file_type: rustix::fs::FileType) -> Option<Kind> {
    Kind::from_mode(file_type.as_raw_mode())
}

/// Descriptors of directories that can be re-opened, second-chance order, bounded.
struct FdCache {
    known: Mutex<VecDeque<Weak<Dir>>>,
    capacity: AtomicUsize,
}

static CACHE: FdCache = FdCache { known: Mutex::new(VecDeque::new()), capacity: AtomicUsize::new(256) };

/// Sets how many descriptors of directories may stay open: a quarter of the process's limit, at most 16,384.
pub fn set_cache_capacity(nofile: u64) {
    let capacity = (nofile / 4).clamp(64, 16_384) as usize;
    CACHE.capacity.store(capacity, Ordering::Relaxed);
}

/// Closes every descriptor that can be opened again.
pub fn forget_descriptors() {
    let known: Vec<_> = lock(&CACHE.known).drain(..).collect();
    for dir in known.iter().filter_map(Weak::upgrade) {
        *lock(&dir.cached) = None;
    }
}

impl FdCache {
    fn remember(&self, dir: &Arc<Dir>) {
        let mut dropped = Vec::new();
        {
            let mut known = lock(&self.known);
            known.push_back(Arc::downgrade(dir));
            let mut chances = known.len();
            while known.len() > self.capacity.load(Ordering::Relaxed) && chances > 0 {
                chances -= 1;
                let Some(oldest) = known.pop_front() else { break };
                let Some(dir) = oldest.upgrade() else { continue };
                if dir.was_used.swap(false, Ordering::Relaxed) {
                    known.push_back(oldest);
                } else {
                    dropped.push(dir);
                }
            }
        }
        for dir in dropped {
            *lock(&dir.cached) = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> (tempfile::TempDir, Arc<Dir>) {
        let temp = tempfile::tempdir().unwrap();
        let fd = std::fs::File::open(temp.path()).unwrap().into();
        (temp, Dir::from_fd(fd).unwrap())
    }

    #[test]
    fn a_replaced_directory_is_stale() {
        let (temp, root) = root();
        std::fs::create_dir(temp.path().join("a")).unwrap();
        let a = root.open_child(Name::new(b"a").unwrap()).unwrap();
        std::fs::rename(temp.path().join("a"), temp.path().join("old")).unwrap();
        std::fs::create_dir(temp.path().join("a")).unwrap();
        assert_eq!(a.fd().unwrap_err(), FsError::Stale);
    }

    #[test]
    fn symlinks_are_not_directories() {
        let (temp, root) = root();
        std::os::unix::fs::symlink("/etc", temp.path().join("l")).unwrap();
        assert_eq!(root.open_child(Name::new(b"l").unwrap()).unwrap_err(), FsError::NotDir);
    }

    #[test]
    fn a_pinned_directory_survives_its_removal() {
        let (temp, root) = root();
        std::fs::create_dir(temp.path().join("a")).unwrap();
        let a = root.open_child(Name::new(b"a").unwrap()).unwrap();
        a.pin().unwrap();
        std::fs::remove_dir(temp.path().join("a")).unwrap();
        assert_eq!(a.stat().unwrap().st_nlink, 0);
    }
}
