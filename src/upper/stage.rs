// SPDX-License-Identifier: MIT OR Apache-2.0
//! Staging: what is made here is invisible until it is published whole, and gone when it is dropped before.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::edit::link_place;
use super::ownership::Stat;
use super::{Upper, Work, recover};
use crate::model::{FsError, Kind, Name, NameBuf};
use crate::sys::{Dir, Place, proc};

/// What stands at a name of the upper, physically.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Physical {
    /// Nothing.
    Nothing,
    /// A whiteout.
    Whiteout,
    /// An entry.
    Entry,
}

/// Something made in the staging directory.
#[derive(Debug)]
pub struct Staged<'a> {
    work: &'a Work,
    form: Form,
    kind: Kind,
}

#[derive(Debug)]
enum Form {
    /// A file without a name.
    Unnamed(Arc<OwnedFd>),
    /// A name in the staging directory.
    Named(NameBuf),
    /// Published: nothing to clean up.
    Published,
}

impl Work {
    /// A name that nothing else is staged under.
    pub(crate) fn next_name(&self) -> Result<NameBuf, FsError> {
        NameBuf::new(format!("#{:x}", self.next.fetch_add(1, Ordering::Relaxed)).into_bytes())
    }
}

impl Upper {
    /// Makes an empty object that will hold `stat` (owner and mode are not yet given) in staging.
    /// `target` is the content of a symlink.
    pub(crate) fn stage(&self, stat: &Stat, target: Option<&[u8]>) -> Result<Staged<'_>, FsError> {
        let work = self.work()?;
        let kind = self.host_kind(stat);
        if kind == Kind::File && target.is_none() && !work.lacks_tmpfile.load(Ordering::Relaxed) {
            let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
            match rustix::fs::openat(&*work.stage.open()?, c".", flags, Mode::from_raw_mode(0o600)) {
                Ok(fd) => return Ok(Staged { work, form: Form::Unnamed(Arc::new(fd)), kind }),
                Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
                    work.lacks_tmpfile.store(true, Ordering::Relaxed);
                }
                Err(errno) => return Err(errno.into()),
            }
        }
        let name = work.next_name()?;
        drop(make_node(&work.stage, name.as_name(), kind, stat.rdev, target)?);
        Ok(Staged { work, form: Form::Named(name), kind })
    }

    /// Can the files that are made here be opened with `O_DIRECT`?
    pub(crate) fn has_direct_io(&self) -> Result<bool, FsError> {
        let stat = Stat { kind: Kind::File, perm: 0o600, uid: proc::euid(), gid: proc::egid(), rdev: 0 };
        let staged = self.stage(&stat, None)?;
        crate::sys::data::has_direct_io(staged.open()?.as_ref())
    }

    /// Stages a whiteout that will stand in `dir`.
    pub(crate) fn stage_whiteout(&self, dir: &Arc<Dir>) -> Result<Staged<'_>, FsError> {
        let work = self.work()?;
        let name = work.next_name()?;
        if self.make_whiteout_device(&work.stage, name.as_name())? {
            return Ok(Staged { work, form: Form::Named(name), kind: Kind::Char });
        }
        self.hold_xattr_whiteouts(dir)?;
        drop(make_node(&work.stage, name.as_name(), Kind::File, 0, None)?);
        let staged = Staged { work, form: Form::Named(name), kind: Kind::File };
        self.set_whiteout(&staged.place()?)?;
        Ok(staged)
    }

    /// Stages another name of the object at `place`, which is no directory.
    pub(crate) fn stage_link(&self, place: &Place) -> Result<Staged<'_>, FsError> {
        let work = self.work()?;
        let name = work.next_name()?;
        link_place(place, &work.stage, name.as_name())?;
        Ok(Staged { work, form: Form::Named(name), kind: Kind::File })
    }
}

/// Makes one object of a kind that the host holds itself; a symlink held as a file has its target as content. A regular
/// file is handed out as it was opened: its mode may not allow to open it again.
pub(crate) fn make_node(
    dir: &Arc<Dir>,
    name: Name<'_>,
    kind: Kind,
    rdev: u64,
    target: Option<&[u8]>,
) -> Result<Option<OwnedFd>, FsError> {
    let fd = dir.open()?;
    let mode = Mode::from_raw_mode(0o600);
    match kind {
        Kind::File => {
            let file = dir.open_at(name, OFlags::CREATE | OFlags::EXCL | OFlags::RDWR, 0o600)?;
            if let Some(target) = target {
                crate::sys::data::write_all_at(&file, target, 0)?;
            }
            return Ok(Some(file));
        }
        Kind::Dir => rustix::fs::mkdirat(&*fd, name.os(), Mode::from_raw_mode(0o700))?,
        Kind::Symlink => rustix::fs::symlinkat(target.unwrap_or_default(), &*fd, name.os())?,
        Kind::Fifo => rustix::fs::mknodat(&*fd, name.os(), FileType::Fifo, mode, 0)?,
        Kind::Socket => rustix::fs::mknodat(&*fd, name.os(), FileType::Socket, mode, 0)?,
        Kind::Char => rustix::fs::mknodat(&*fd, name.os(), FileType::CharacterDevice, mode, rdev)?,
        Kind::Block => rustix::fs::mknodat(&*fd, name.os(), FileType::BlockDevice, mode, rdev)?,
    }
    Ok(None)
}

impl Staged<'_> {
    /// The place of what is staged.
    pub(crate) fn place(&self) -> Result<Place, FsError> {
        match &self.form {
            Form::Unnamed(fd) => Ok(Place::Fd(Arc::clone(fd))),
            Form::Named(name) if self.kind == Kind::Dir => Ok(Place::Dir(self.work.stage.open_child(name.as_name())?)),
            Form::Named(name) => Ok(Place::at(&self.work.stage, name.as_name())),
            Form::Published => Err(FsError::Stale),
        }
    }

    /// A writable descriptor of a staged regular file.
    pub(crate) fn open(&self) -> Result<Arc<OwnedFd>, FsError> {
        match &self.form {
            Form::Unnamed(fd) => Ok(Arc::clone(fd)),
            Form::Named(_) | Form::Published => Ok(Arc::new(self.place()?.open(OFlags::RDWR)?)),
        }
    }

    /// Makes it visible as `name` in `dir`, whole. `Exists` when something else took the name.
    pub(crate) fn publish(mut self, dir: &Arc<Dir>, name: Name<'_>, over: Physical) -> Result<(), FsError> {
        let dir_fd = dir.open()?;
        if let Form::Unnamed(fd) = &self.form {
            let source = crate::sys::node::proc_path(fd);
            let link = |to: &Arc<OwnedFd>, name: Name<'_>| {
                rustix::fs::linkat(rustix::fs::CWD, source.as_str(), &**to, name.os(), AtFlags::SYMLINK_FOLLOW)
            };
            if over == Physical::Nothing {
                link(&dir_fd, name)?;
                self.form = Form::Published;
                return Ok(());
            }
            let aside = self.work.next_name()?;
            link(&self.work.stage.open()?, aside.as_name())?;
            self.form = Form::Named(aside);
        }
        let Form::Named(staged) = &self.form else { return Err(FsError::Stale) };
        let stage_fd = self.work.stage.open()?;
        match (over, self.kind) {
            (Physical::Nothing, _) => rename_new(&stage_fd, staged.as_name(), &dir_fd, name)?,
            // One rename takes the place of a whiteout or another file.
            (Physical::Whiteout | Physical::Entry, kind) if kind != Kind::Dir => {
                rustix::fs::renameat(&*stage_fd, staged.as_name().os(), &*dir_fd, name.os())?;
            }
            // A directory cannot replace a file: they change places, and the whiteout goes with the staging.
            _ => {
                exchange(&stage_fd, staged.as_name(), &dir_fd, name)?;
                // It has happened: what was there goes now, or else with the next mount.
                if let Err(error) = recover::remove(&self.work.stage, staged.as_name()) {
                    log::warn!("what stood at {name:?} could not be removed: {error}");
                }
            }
        }
        self.form = Form::Published;
        Ok(())
    }

    /// Makes a staged name visible as `name` in `dir`; what stands there is staged instead: it goes with this, or comes
    /// back by [`Staged::swap_out`].
    pub(crate) fn swap_in(&self, dir: &Arc<Dir>, name: Name<'_>, over: Physical) -> Result<(), FsError> {
        let Form::Named(staged) = &self.form else { return Err(FsError::Stale) };
        let (stage_fd, dir_fd) = (self.work.stage.open()?, dir.open()?);
        match over {
            Physical::Nothing => rename_new(&stage_fd, staged.as_name(), &dir_fd, name),
            Physical::Whiteout | Physical::Entry => exchange(&stage_fd, staged.as_name(), &dir_fd, name),
        }
    }

    /// Takes [`Staged::swap_in`] back.
    pub(crate) fn swap_out(&self, dir: &Arc<Dir>, name: Name<'_>, over: Physical) -> Result<(), FsError> {
        match over {
            Physical::Nothing => Ok(rustix::fs::unlinkat(&*dir.open()?, name.os(), AtFlags::empty())?),
            Physical::Whiteout | Physical::Entry => self.swap_in(dir, name, over),
        }
    }
}

impl Drop for Staged<'_> {
    fn drop(&mut self) {
        if let Form::Named(name) = &self.form
            && let Err(error) = recover::remove(&self.work.stage, name.as_name())
        {
            log::warn!("staged {name:?} could not be removed: {error}");
        }
    }
}

/// Renames without replacing, also where the host has no `RENAME_NOREPLACE`.
pub(crate) fn rename_new(from_dir: &OwnedFd, from: Name<'_>, to_dir: &OwnedFd, to: Name<'_>) -> Result<(), FsError> {
    match rustix::fs::renameat_with(from_dir, from.os(), to_dir, to.os(), RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS) => match rustix::fs::statat(to_dir, to.os(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Err(FsError::Exists),
            Err(Errno::NOENT) => Ok(rustix::fs::renameat(from_dir, from.os(), to_dir, to.os())?),
            Err(errno) => Err(errno.into()),
        },
        other => Ok(other?),
    }
}

/// Exchanges two names.
pub(crate) fn exchange(a_dir: &OwnedFd, a: Name<'_>, b_dir: &OwnedFd, b: Name<'_>) -> Result<(), FsError> {
    Ok(rustix::fs::renameat_with(a_dir, a.os(), b_dir, b.os(), RenameFlags::EXCHANGE)?)
}
