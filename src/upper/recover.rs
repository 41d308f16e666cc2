// SPDX-License-Identifier: MIT OR Apache-2.0
//! Removing what lies in staging: after an error, after a crash, and the remains of removed directories. And the work
//! directory itself: whose it is, and its end.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Mode, OFlags, unlinkat};
use rustix::io::Errno;

use crate::model::{FsError, Kind, Name};
use crate::sys::{Dir, lock};

/// The folder for staging in a work directory; kernel overlayfs uses the same name.
pub(super) const STAGE: &[u8] = b"work";
/// The folder for hard-link groups in a work directory.
pub(super) const LINKS: &[u8] = b"mlfs-links";
/// The folder for hard-link groups in the form of kernel overlayfs, and its name for it.
pub(super) const INDEX: &[u8] = b"index";
/// The file that is locked where the directory itself cannot be.
pub(super) const LOCK: &[u8] = lock::IN_DIRECTORY.as_bytes();
/// How long a mount that has just ended may take to let go of its work directory.
const PATIENCE: Duration = Duration::from_secs(3);

/// Takes the lock by which an upper has one writer. `Busy` when another mount goes on holding it.
pub(super) fn lock_work(work: &Arc<Dir>) -> Result<OwnedFd, FsError> {
    let start = Instant::now();
    loop {
        match lock::try_directory(work.open_readable()?, lock::Mode::Exclusive)? {
            Some(held) => return Ok(held),
            None if start.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(2)),
            None => return Err(FsError::Busy),
        }
    }
}

fn open_work(path: &Path) -> Result<Arc<Dir>, FsError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Dir::from_fd(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Is what stands at `path` a work directory of ours, or could it become one? `Exists` for a directory that holds
/// anything else, `NotDir` for what is none (a symlink included), `NotFound` for nothing.
pub fn check_work(path: &Path) -> Result<(), FsError> {
    let entries = open_work(path)?.read_all()?;
    if entries.iter().all(|entry| [STAGE, LINKS, INDEX, LOCK].contains(&&*entry.name)) {
        Ok(())
    } else {
        Err(FsError::Exists)
    }
}

/// Removes a work directory that no mount uses: staging, and itself if nothing is left. Hard-link groups stay, because
/// the upper beside it refers to them. Absence is no error; `Busy` while a mount uses it.
pub fn discard_work(path: &Path) -> Result<(), FsError> {
    let work = match open_work(path) {
        Ok(work) => work,
        Err(FsError::NotFound) => return Ok(()),
        Err(error) => return Err(error),
    };
    let _lock = lock_work(&work)?;
    remove(&work, Name::new(STAGE)?)?;
    if let Some(index) = open_index(&work)? {
        clear_index(&index)?;
    }
    remove(&work, Name::new(LOCK)?)?;
    for records in [LINKS, INDEX] {
        match unlinkat(&*work.open()?, Name::new(records)?.os(), AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY | Errno::NOTDIR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    match rustix::fs::rmdir(path) {
        Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// The kernel's index in a work directory, if there is one.
pub(super) fn open_index(work: &Arc<Dir>) -> Result<Option<Arc<Dir>>, FsError> {
    match work.open_child(Name::new(INDEX)?) {
        Ok(index) => Ok(Some(index)),
        Err(FsError::NotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes what kernel overlayfs keeps in an index while it is mounted: `#NUMBER`, whiteouts and what is on its way.
pub(super) fn clear_index(index: &Arc<Dir>) -> Result<(), FsError> {
    for entry in index.read_all()?.iter().filter(|entry| entry.name.starts_with(b"#")) {
        remove(index, Name::new(&entry.name)?)?;
    }
    Ok(())
}

/// Is any hard-link group recorded in these folders?
pub(super) fn has_records(links: &Arc<Dir>, index: Option<&Arc<Dir>>) -> Result<bool, FsError> {
    for records in std::iter::once(links).chain(index) {
        if !records.read_all()?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Empties `dir`, whatever is in it, without leaving its filesystem tree by a symlink.
pub fn empty(dir: &Arc<Dir>) -> Result<(), FsError> {
    for entry in dir.read_all()? {
        remove(dir, Name::new(&entry.name)?)?;
    }
    Ok(())
}

/// Removes `name` in `dir` with all that is below it. Absence is no error.
///
/// Works through directories with a stack of its own, so depth costs memory, not stack.
pub fn remove(dir: &Arc<Dir>, name: Name<'_>) -> Result<(), FsError> {
    let stat = match dir.stat_child(name) {
        Ok(stat) => stat,
        Err(FsError::NotFound) => return Ok(()),
        Err(error) => return Err(error),
    };
    if Kind::from_mode(stat.st_mode) != Some(Kind::Dir) {
        return unlink(dir, name, AtFlags::empty());
    }
    // An empty directory needs no descriptor: they may be what is wanting.
    if unlinkat(&*dir.open()?, name.os(), AtFlags::REMOVEDIR).is_ok() {
        return Ok(());
    }
    let mut stack = vec![(Arc::clone(dir), name.to_buf(), dir.child(name, &stat))];
    while let Some((parent, own_name, own)) = stack.last().cloned() {
        let mut has_dirs = false;
        for entry in own.read_all()? {
            let name = Name::new(&entry.name)?;
            let stat = own.stat_child(name)?;
            if Kind::from_mode(stat.st_mode) == Some(Kind::Dir) {
                stack.push((Arc::clone(&own), name.to_buf(), own.child(name, &stat)));
                has_dirs = true;
            } else {
                unlink(&own, name, AtFlags::empty())?;
            }
        }
        if !has_dirs {
            unlink(&parent, own_name.as_name(), AtFlags::REMOVEDIR)?;
            stack.pop();
        }
    }
    Ok(())
}

fn unlink(dir: &Arc<Dir>, name: Name<'_>, flags: AtFlags) -> Result<(), FsError> {
    match unlinkat(&*dir.open()?, name.os(), flags) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_removed_and_symlinks_are_not_followed() {
        let temp = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("keep"), "").unwrap();
        std::fs::create_dir_all(temp.path().join("a/b/c")).unwrap();
        std::fs::write(temp.path().join("a/b/f"), "").unwrap();
        std::os::unix::fs::symlink(outside.path(), temp.path().join("a/l")).unwrap();
        let dir = Dir::from_fd(std::fs::File::open(temp.path()).unwrap().into()).unwrap();
        remove(&dir, Name::new(b"a").unwrap()).unwrap();
        remove(&dir, Name::new(b"absent").unwrap()).unwrap();
        assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 0);
        assert!(outside.path().join("keep").exists());
    }
}
