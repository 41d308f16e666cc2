// SPDX-License-Identifier: MIT OR Apache-2.0
//! Removing what lies in staging: after an error, after a crash, and the remains of removed directories.

use std::sync::Arc;

use rustix::fs::{AtFlags, unlinkat};
use rustix::io::Errno;

use crate::model::{FsError, Kind, Name};
use crate::sys::Dir;

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
