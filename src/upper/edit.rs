// SPDX-License-Identifier: MIT OR Apache-2.0
//! Changes of names in an upper: create, link, remove, rename, with the whiteouts they leave.
//!
//! The caller holds the lock of the directories and says what stands at a name physically and whether layers below
//! hold the name (then a removal leaves a whiteout). In a plain directory neither exists. Every change is visible
//! whole or not at all. Hosts without `RENAME_EXCHANGE` are refused by the host's own error where it is needed.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, RenameFlags, linkat, renameat, renameat_with, unlinkat};
use rustix::io::Errno;

use super::links::link_fd;
use super::ownership::Stat;
use super::stage::{Physical, exchange, make_node, rename_new};
use super::{Upper, recover};
use crate::model::{FsError, Kind, Name};
use crate::sys::node::SetTime;
use crate::sys::{Dir, Place};

/// Does a removed name exist in layers below, so that a whiteout must take its place?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Below {
    /// Nothing below.
    Nothing,
    /// A layer has the name.
    Something,
}

impl Upper {
    /// Makes a new object; over a whiteout a directory is opaque from its first moment. A regular file is handed out as it
    /// was opened.
    pub(crate) fn create(
        &self,
        dir: &Arc<Dir>,
        name: Name<'_>,
        stat: &Stat,
        target: Option<&[u8]>,
        over: Physical,
    ) -> Result<Option<Arc<OwnedFd>>, FsError> {
        match over {
            Physical::Entry => Err(FsError::Exists),
            Physical::Whiteout => {
                let staged = self.stage(stat, target)?;
                let place = staged.place()?;
                let file = if stat.kind == Kind::File { Some(staged.open()?) } else { None };
                self.hold_stat(&place, stat)?;
                if stat.kind == Kind::Dir {
                    self.set_opaque(&place)?;
                }
                staged.publish(dir, name, over)?;
                Ok(file)
            }
            Physical::Nothing => {
                let kind = self.host_kind(stat);
                let file = make_node(dir, name, kind, stat.rdev, target)?;
                let place = self.place_of(dir, name, kind)?;
                if let Err(error) = self.hold_stat(&place, stat) {
                    // Not recursively: in a volume somebody may have filled a directory already.
                    let flags = if kind == Kind::Dir { AtFlags::REMOVEDIR } else { AtFlags::empty() };
                    if let Err(errno) = unlinkat(&*dir.open()?, name.os(), flags) {
                        log::warn!("{name:?} could not be removed again: {errno}");
                    }
                    return Err(error);
                }
                Ok(file.map(Arc::new))
            }
        }
    }

    /// The place of `name` in `dir`, an object of the host kind `kind`.
    fn place_of(&self, dir: &Arc<Dir>, name: Name<'_>, kind: Kind) -> Result<Place, FsError> {
        match kind {
            Kind::Dir => Ok(Place::Dir(dir.open_child(name)?)),
            _ => Ok(Place::at(dir, name)),
        }
    }

    /// Puts an object that can hold `stat` in the place of the symlink, pipe or socket at `old`; its new place.
    pub(crate) fn convert(&self, old: &Place, stat: &Stat, number: u64) -> Result<Place, FsError> {
        let Place::At(dir, name) = old else { return Err(FsError::Unsupported) };
        let attr = crate::sys::node::attr_of(&old.stat()?)?;
        let before = crate::sys::node::attr_of(&dir.stat()?)?;
        let target = if stat.kind == Kind::Symlink { Some(old.read_link()?) } else { None };
        let name = Name::new(name)?;
        let fill = |place: &Place| {
            self.hold_stat(place, stat)?;
            self.set_birth_number(place, number)?;
            place.utimens(SetTime::To(attr.atime), SetTime::To(attr.mtime))
        };
        if self.is_plain() {
            replace_beside(dir, name, attr.ino, target.as_deref().unwrap_or_default(), fill)?;
        } else {
            let staged = self.stage(stat, target.as_deref())?;
            fill(&staged.place()?)?;
            staged.publish(dir, name, Physical::Entry)?;
        }
        // To users no name has changed.
        Place::Dir(Arc::clone(dir)).utimens(SetTime::To(before.atime), SetTime::To(before.mtime))?;
        Ok(old.clone())
    }

    /// Gives the object at `place` another name.
    pub(crate) fn link(&self, place: &Place, dir: &Arc<Dir>, name: Name<'_>, over: Physical) -> Result<(), FsError> {
        self.mark_impure(dir, place)?;
        match over {
            Physical::Entry => Err(FsError::Exists),
            Physical::Nothing => link_place(place, dir, name),
            Physical::Whiteout => self.stage_link(place)?.publish(dir, name, over),
        }
    }

    /// Removes a name that stands in the upper; anything but a directory.
    pub(crate) fn unlink(&self, dir: &Arc<Dir>, name: Name<'_>, below: Below) -> Result<(), FsError> {
        match below {
            Below::Nothing => Ok(unlinkat(&*dir.open()?, name.os(), AtFlags::empty())?),
            Below::Something => self.stage_whiteout(dir)?.publish(dir, name, Physical::Entry),
        }
    }

    /// Whites out a name that stands only in layers.
    pub(crate) fn white_out(&self, dir: &Arc<Dir>, name: Name<'_>) -> Result<(), FsError> {
        // A device stands whole; a file becomes a whiteout first.
        if self.make_whiteout_device(dir, name)? {
            return Ok(());
        }
        self.stage_whiteout(dir)?.publish(dir, name, Physical::Nothing)
    }

    /// Removes a directory that is empty to users; whiteouts in it go with it.
    pub(crate) fn rmdir(&self, dir: &Arc<Dir>, name: Name<'_>, below: Below) -> Result<(), FsError> {
        let dir_fd = dir.open()?;
        if below == Below::Nothing {
            match unlinkat(&*dir_fd, name.os(), AtFlags::REMOVEDIR) {
                Err(Errno::NOTEMPTY | Errno::EXIST) if !self.is_plain() => {}
                other => return Ok(other?),
            }
        }
        if below == Below::Something {
            return self.stage_whiteout(dir)?.swap_in(dir, name, Physical::Entry);
        }
        let work = self.work()?;
        let aside = work.next_name()?;
        rename_new(&dir_fd, name, &*work.stage.open()?, aside.as_name())?;
        // The directory is gone. What is left of it goes with the next mount at the latest.
        if let Err(error) = recover::remove(&work.stage, aside.as_name()) {
            log::warn!("the remains of {name:?} could not be removed: {error}");
        }
        Ok(())
    }

    /// Moves a name within the upper, replacing what stands at the target (the caller has checked that it may).
    pub(crate) fn rename(&self, from: Spot<'_>, to: Spot<'_>, over: Physical, below: Below) -> Result<(), FsError> {
        if self.is_plain() {
            return Ok(renameat(&*from.dir.open()?, from.name.os(), &*to.dir.open()?, to.name.os())?);
        }
        if !from.is_dir {
            self.mark_impure(to.dir, &Place::at(from.dir, from.name))?;
        }
        if !from.is_dir || over == Physical::Nothing {
            return self.rename_leaving(from, to, over, below);
        }
        if over == Physical::Whiteout && below == Below::Something {
            return self.change_places(from, to);
        }
        if over == Physical::Entry && below == Below::Something {
            // For a moment the target stands where layers have a directory: it must not merge with that one.
            self.set_opaque(&Place::Dir(to.dir.open_child(to.name)?))?;
        }
        exchange(&*from.dir.open()?, from.name, &*to.dir.open()?, to.name)?;
        match over {
            Physical::Entry => self.rmdir(from.dir, from.name, below),
            _ => Ok(unlinkat(&*from.dir.open()?, from.name.os(), AtFlags::empty())?),
        }
    }

    /// Moves a name and leaves a whiteout where layers have it. The target is nothing, or both are no directories.
    fn rename_leaving(&self, from: Spot<'_>, to: Spot<'_>, over: Physical, below: Below) -> Result<(), FsError> {
        let (from_fd, to_fd) = (from.dir.open()?, to.dir.open()?);
        if below == Below::Nothing {
            return Ok(renameat(&*from_fd, from.name.os(), &*to_fd, to.name.os())?);
        }
        if !self.work()?.needs_xattr_whiteouts.load(Ordering::Relaxed) {
            match renameat_with(&*from_fd, from.name.os(), &*to_fd, to.name.os(), RenameFlags::WHITEOUT) {
                Err(Errno::INVAL | Errno::PERM | Errno::NOSYS) => {}
                other => return Ok(other?),
            }
        }
        // What moves keeps a name in the tree all the while: a crash empties staging.
        match over {
            Physical::Whiteout => self.change_places(from, to),
            Physical::Nothing if from.is_dir => {
                self.stage_whiteout(to.dir)?.publish(to.dir, to.name, over)?;
                let moved = self.change_places(from, to);
                if moved.is_err() {
                    unlinkat(&*to_fd, to.name.os(), AtFlags::empty())?;
                }
                moved
            }
            Physical::Nothing | Physical::Entry => self.rename_by_link(from, to, over),
        }
    }

    /// Exchanges a name and the whiteout at `to`.
    fn change_places(&self, from: Spot<'_>, to: Spot<'_>) -> Result<(), FsError> {
        if Kind::from_mode(to.dir.stat_child(to.name)?.st_mode) == Some(Kind::File) {
            self.hold_xattr_whiteouts(from.dir)?;
        }
        exchange(&*from.dir.open()?, from.name, &*to.dir.open()?, to.name)
    }

    /// Moves what is no directory by giving it the new name before the old one goes: for a moment it has both.
    fn rename_by_link(&self, from: Spot<'_>, to: Spot<'_>, over: Physical) -> Result<(), FsError> {
        let whiteout = self.stage_whiteout(from.dir)?;
        let link = self.stage_link(&Place::at(from.dir, from.name))?;
        link.swap_in(to.dir, to.name, over)?;
        let left = whiteout.publish(from.dir, from.name, Physical::Entry);
        if left.is_err() {
            link.swap_out(to.dir, to.name, over)?;
        }
        left
    }

    /// Exchanges two names of the upper.
    pub(crate) fn exchange(&self, a: Spot<'_>, b: Spot<'_>) -> Result<(), FsError> {
        for (from, to) in [(&a, &b), (&b, &a)] {
            if !from.is_dir {
                self.mark_impure(to.dir, &Place::at(from.dir, from.name))?;
            }
        }
        exchange(&*a.dir.open()?, a.name, &*b.dir.open()?, b.name)
    }

    /// Renames in a plain directory without replacing.
    pub(crate) fn rename_new(&self, from: Spot<'_>, to: Spot<'_>) -> Result<(), FsError> {
        rename_new(&*from.dir.open()?, from.name, &*to.dir.open()?, to.name)
    }
}

/// A name in a directory of the upper.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spot<'a> {
    /// The directory.
    pub(crate) dir: &'a Arc<Dir>,
    /// The name.
    pub(crate) name: Name<'a>,
    /// Is the object there a directory?
    pub(crate) is_dir: bool,
}

/// Puts a file with `content` that `fill` completes in the place of the object `name`, whose inode is `ino`. In a plain
/// directory there is no place for staging: for that moment the file stands there under a name that says whose it is.
fn replace_beside(
    dir: &Arc<Dir>,
    name: Name<'_>,
    ino: u64,
    content: &[u8],
    fill: impl FnOnce(&Place) -> Result<(), FsError>,
) -> Result<(), FsError> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let aside = format!(".mlfs-aside-{:x}-{:x}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let aside = Name::new(aside.as_bytes())?;
    drop(make_node(dir, aside, Kind::File, 0, Some(content))?);
    let replaced = fill(&Place::at(dir, aside)).and_then(|()| {
        // Others change this directory too.
        if dir.stat_child(name)?.st_ino != ino {
            return Err(FsError::Stale);
        }
        Ok(renameat(&*dir.open()?, aside.os(), &*dir.open()?, name.os())?)
    });
    if replaced.is_err() {
        recover::remove(dir, aside)?;
    }
    replaced
}

/// Links the object at `place` to a new name.
pub(crate) fn link_place(place: &Place, dir: &Arc<Dir>, name: Name<'_>) -> Result<(), FsError> {
    match place {
        Place::At(from, old) => Ok(linkat(&*from.open()?, &**old, &*dir.open()?, name.os(), AtFlags::empty())?),
        Place::Fd(fd) => link_fd(fd, dir, name),
        Place::Dir(_) => Err(FsError::Perm),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upper::{Ownership, UpperSpec};

    // `chown -R` in a volume without root: links and pipes of the daemon's own become files that hold their owner.
    #[test]
    fn links_and_pipes_of_a_plain_directory_are_given_away() {
        let temp = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("target", temp.path().join("l")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, temp.path().join("p"), rustix::fs::FileType::Fifo, 0o600.into(), 0)
            .unwrap();
        let dir = std::fs::File::open(temp.path()).unwrap().into();
        let ownership = Ownership::Override;
        let spec = UpperSpec { dir, work: None, ownership, is_volatile: false, is_view: false };
        let upper = Upper::open(spec, "volume".into()).unwrap();
        let before = upper.root().stat().unwrap();
        for (name, kind) in [(b"l", Kind::Symlink), (b"p", Kind::Fifo)] {
            let place = Place::at(upper.root(), Name::new(name).unwrap());
            let stat = Stat { kind, perm: 0o640, uid: 4242, gid: 4343, rdev: 0 };
            assert!(upper.needs_conversion(&place, &stat).unwrap());
            upper.convert(&place, &stat, 1).unwrap();
            let attr = upper.reader().attr_at(&place, &place.stat().unwrap()).unwrap();
            assert_eq!((attr.kind, attr.perm, attr.uid, attr.gid), (kind, 0o640, 4242, 4343));
        }
        assert_eq!(upper.reader().read_link_at(&Place::at(upper.root(), Name::new(b"l").unwrap())).unwrap(), b"target");
        let mut names: Vec<_> = upper.root().read_all().unwrap().into_iter().map(|entry| entry.name).collect();
        names.sort();
        assert_eq!(names, [b"l".to_vec().into_boxed_slice(), b"p".to_vec().into_boxed_slice()]);
        let after = upper.root().stat().unwrap();
        assert_eq!((before.st_mtime, before.st_mtime_nsec), (after.st_mtime, after.st_mtime_nsec));
    }
}
