// SPDX-License-Identifier: MIT OR Apache-2.0
//! What mends an upper. The caller holds the upper's lock. Each repair is one system call that counts, or several in an
//! order in which every moment is as it was or as it must be.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, linkat, symlinkat, unlinkat};
use rustix::io::Errno;

use super::marks::{dir_of, of};
use super::records::can_carry;
use super::{Checker, beside};
use crate::model::{FsError, Kind, Name, NameBuf};
use crate::sys::xattr::SetMode;
use crate::sys::{Dir, Place, xattr};
use crate::upper::links::{beside_name, is_recorded};
use crate::upper::recover;
use crate::upper::stage::rename_new;

/// The folder in staging by which the kernel marks a volatile mount.
pub(super) const KERNEL_MARK: &[u8] = b"incompat";

/// A repair of an upper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpperRepair {
    /// Take marks away that mean nothing, or nothing that is right.
    RemoveMarks {
        /// The object in the upper.
        path: Vec<NameBuf>,
        /// Names of attributes.
        marks: Vec<Vec<u8>>,
    },
    /// Make a directory opaque whose redirect leads nowhere: it goes on showing what it shows.
    MakeOpaque {
        /// The directory.
        path: Vec<NameBuf>,
        /// The attribute that leads nowhere.
        redirect: Vec<u8>,
    },
    /// Let a directory say that it holds whiteouts by attribute.
    HoldWhiteouts {
        /// The directory.
        dir: Vec<NameBuf>,
        /// `trusted.overlay.` or `user.overlay.`, as its whiteouts have it.
        like: Vec<u8>,
    },
    /// Empty the staging folder: what has content is kept beside it, since a rename that was cut short may have left the
    /// only copy of a file there.
    ClearStaging,
    /// Put something of the work directory beside it, into `WORK.lost+found/`.
    MoveAside {
        /// The folder it lies in; `None` for the work directory itself.
        folder: Option<Vec<u8>>,
        /// Its name.
        name: NameBuf,
    },
    /// Remove something of the work directory.
    RemoveWork {
        /// The folder it lies in.
        folder: Vec<u8>,
        /// Its name.
        name: NameBuf,
    },
    /// Make the missing record of a copied-up group.
    Record {
        /// The copy.
        path: Vec<NameBuf>,
        /// Where its record belongs.
        folder: Vec<u8>,
        /// Under which name.
        name: NameBuf,
    },
    /// Write on a recorded file which record is its own.
    MarkRecord {
        /// Where the record lies.
        folder: Vec<u8>,
        /// Its name.
        name: NameBuf,
        /// The value of the mark.
        value: Vec<u8>,
    },
    /// Remove a record, and from its file what says that it has one.
    Forget {
        /// Where the record lies.
        folder: Vec<u8>,
        /// Its name.
        name: NameBuf,
    },
    /// Correct a kept link count.
    CountLinks {
        /// Where the record lies.
        folder: Vec<u8>,
        /// Its name.
        name: NameBuf,
        /// Links to show minus links of the host.
        excess: i64,
    },
}

impl UpperRepair {
    /// What it does, as a participle.
    pub fn describe(&self) -> String {
        match self {
            UpperRepair::RemoveMarks { .. } => "the mark is removed".into(),
            UpperRepair::MakeOpaque { .. } => "made opaque: it goes on showing what it shows now".into(),
            UpperRepair::HoldWhiteouts { .. } => "its directory is marked to hold whiteouts".into(),
            UpperRepair::ClearStaging => {
                "removed, or with content: moved to lost+found beside the work directory".into()
            }
            UpperRepair::RemoveWork { .. } => "removed".into(),
            UpperRepair::MoveAside { .. } => "moved to lost+found beside the work directory".into(),
            UpperRepair::Record { .. } => "recorded again".into(),
            UpperRepair::MarkRecord { .. } => "the mark is written".into(),
            UpperRepair::Forget { .. } => "the record is removed, its file stays".into(),
            UpperRepair::CountLinks { .. } => "the count is corrected".into(),
        }
    }
}

impl Checker {
    /// Carries a repair out. Call it while holding the lock of [`Checker::lock`].
    pub fn repair(&self, repair: &UpperRepair) -> Result<(), FsError> {
        match repair {
            UpperRepair::RemoveMarks { path, marks } => {
                let place = self.place_of(path)?;
                let stat = place.stat()?;
                if !can_carry(&stat) && marks.iter().any(|mark| mark == b"user.overlay.mlfs.group") {
                    return self.forget_beside(stat.st_ino);
                }
                marks.iter().try_for_each(|mark| remove_mark(&place, mark))?;
                sync(&place)
            }
            UpperRepair::MakeOpaque { path, redirect } => {
                let place = self.place_of(path)?;
                let space: &[u8] =
                    if redirect.starts_with(b"trusted.") { b"trusted.overlay." } else { b"user.overlay." };
                xattr::set(&place, &[space, b"opaque"].concat(), b"y", SetMode::Any)?;
                remove_mark(&place, redirect)?;
                sync(&place)
            }
            UpperRepair::HoldWhiteouts { dir, like } => {
                let place = Place::Dir(dir_of(&self.root, dir)?);
                xattr::set(&place, &[like.as_slice(), b"opaque"].concat(), b"x", SetMode::Any)?;
                sync(&place)
            }
            UpperRepair::ClearStaging => self.clear_staging(),
            UpperRepair::MoveAside { folder, name } => self.move_aside(folder.as_deref(), name),
            UpperRepair::RemoveWork { folder, name } => match self.work_folder(folder)? {
                // A repair before this one may have made the record whose marks these are.
                Some(folder) if is_of_a_record(&folder, name)? => Ok(()),
                Some(folder) => recover::remove(&folder, name.as_name()),
                None => Ok(()),
            },
            UpperRepair::Record { path, folder, name } => self.record(path, folder, name),
            UpperRepair::MarkRecord { folder, name, value } => {
                let mark: &[u8] = if folder == recover::LINKS { b"mlfs.group" } else { b"origin" };
                let place = self.record_place(folder, name)?;
                let own = self.mark_name(&place, mark)?;
                if !can_carry(&place.stat()?) && own.starts_with(b"user.") {
                    return self.mark_beside(&place, name);
                }
                xattr::set(&place, &own, value, SetMode::Any)
            }
            UpperRepair::Forget { folder, name } => {
                let folder = self.work_folder(folder)?.ok_or(FsError::NotFound)?;
                // By descriptor: the name goes first, so that a mark without a record is all that a crash leaves.
                let held = Place::at(&folder, name.as_name()).hold()?;
                unlink(&folder, name.as_name())?;
                let place = Place::Fd(held);
                for (mark, _) in of(&place)? {
                    if mark.ends_with(b".overlay.mlfs.group") || mark.ends_with(b".overlay.nlink") {
                        remove_mark(&place, &mark)?;
                    }
                }
                let stat = place.stat()?;
                if can_carry(&stat) { Ok(()) } else { self.forget_beside(stat.st_ino) }
            }
            UpperRepair::CountLinks { folder, name, excess } => {
                let place = self.record_place(folder, name)?;
                let value = format!("U{excess:+}");
                xattr::set(&place, &self.mark_name(&place, b"nlink")?, value.as_bytes(), SetMode::Any)
            }
        }
    }

    /// Removes the marks that stand beside the record of a copy.
    fn forget_beside(&self, inode: u64) -> Result<(), FsError> {
        let Some(links) = self.work_folder(recover::LINKS)? else { return Ok(()) };
        recover::remove(&links, beside_name(inode)?.as_name())
    }

    /// Writes beside the record at `place`, which can carry no marks, that it is one. Its links are those of the host.
    fn mark_beside(&self, place: &Place, record: &NameBuf) -> Result<(), FsError> {
        let links = self.work_folder(recover::LINKS)?.ok_or(FsError::NotFound)?;
        let name = beside_name(place.stat()?.st_ino)?;
        recover::remove(&links, name.as_name())?;
        let value = [b"U+0 ", record.as_name().bytes()].concat();
        symlinkat(value, &*links.open()?, name.as_name().os())?;
        links.sync()
    }

    fn place_of(&self, path: &[NameBuf]) -> Result<Place, FsError> {
        let Some((name, parent)) = path.split_last() else { return Ok(Place::Dir(Arc::clone(&self.root))) };
        let dir = dir_of(&self.root, parent)?;
        match dir.open_child(name.as_name()) {
            Ok(child) => Ok(Place::Dir(child)),
            Err(FsError::NotDir) => Ok(Place::at(&dir, name.as_name())),
            Err(error) => Err(error),
        }
    }

    fn record_place(&self, folder: &[u8], name: &NameBuf) -> Result<Place, FsError> {
        Ok(Place::at(&self.work_folder(folder)?.ok_or(FsError::NotFound)?, name.as_name()))
    }

    /// A mark's name in the space in which the object has its other marks, else in that which we can write.
    fn mark_name(&self, place: &Place, mark: &[u8]) -> Result<Vec<u8>, FsError> {
        let is_trusted = match of(place)?.first() {
            Some((name, _)) => name.starts_with(b"trusted."),
            None => crate::sys::proc::is_real_root(),
        };
        let space: &[u8] = if is_trusted { b"trusted.overlay." } else { b"user.overlay." };
        Ok([space, mark].concat())
    }

    fn record(&self, path: &[NameBuf], folder: &[u8], name: &NameBuf) -> Result<(), FsError> {
        let work = self.work.as_ref().ok_or(FsError::Unsupported)?;
        match rustix::fs::mkdirat(&*work.open()?, Name::new(folder)?.os(), Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        let records = work.open_child(Name::new(folder)?)?;
        let Some((last, parent)) = path.split_last() else { return Err(FsError::Invalid) };
        let dir = dir_of(&self.root, parent)?;
        let linked =
            linkat(&*dir.open()?, last.as_name().os(), &*records.open()?, name.as_name().os(), AtFlags::empty());
        match linked {
            Ok(()) | Err(Errno::EXIST) => records.sync(),
            Err(errno) => Err(errno.into()),
        }
    }

    fn clear_staging(&self) -> Result<(), FsError> {
        let Some(stage) = self.work_folder(recover::STAGE)? else { return Ok(()) };
        for entry in stage.read_all()? {
            let name = Name::new(&entry.name)?;
            let stat = stage.stat_child(name)?;
            let has_content = match Kind::from_mode(stat.st_mode) {
                Some(Kind::Dir) => name.bytes() != KERNEL_MARK && !stage.child(name, &stat).read_all()?.is_empty(),
                Some(Kind::File) => stat.st_size > 0,
                Some(Kind::Symlink) => true,
                _ => false,
            };
            if has_content {
                self.move_aside(Some(recover::STAGE), &name.to_buf())?;
            } else {
                recover::remove(&stage, name)?;
            }
        }
        Ok(())
    }

    /// Renames something of the work directory into the folder beside it.
    fn move_aside(&self, folder: Option<&[u8]>, name: &NameBuf) -> Result<(), FsError> {
        let work = self.work.as_ref().ok_or(FsError::Unsupported)?;
        let from = match folder {
            Some(folder) => self.work_folder(folder)?.ok_or(FsError::NotFound)?,
            None => Arc::clone(work),
        };
        let lost = self.lost()?;
        for number in 0..10_000 {
            let mut target = name.as_name().bytes().to_vec();
            target.truncate(240);
            if number > 0 {
                target.extend_from_slice(format!(".{number}").as_bytes());
            }
            match rename_new(&*from.open()?, name.as_name(), &lost, Name::new(&target)?) {
                Err(FsError::Exists) => {}
                Err(error) => return Err(error),
                Ok(()) => {
                    rustix::fs::fsync(&lost)?;
                    return from.sync();
                }
            }
        }
        Err(FsError::Exists)
    }

    fn lost(&self) -> Result<OwnedFd, FsError> {
        let path = beside(&self.work_path, ".lost+found");
        match rustix::fs::mkdir(&path, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        let flags = rustix::fs::OFlags::RDONLY
            | rustix::fs::OFlags::DIRECTORY
            | rustix::fs::OFlags::NOFOLLOW
            | rustix::fs::OFlags::CLOEXEC;
        Ok(rustix::fs::open(&path, flags, Mode::empty())?)
    }
}

/// Does this stand beside a record, and tell its marks?
fn is_of_a_record(folder: &Arc<Dir>, name: &NameBuf) -> Result<bool, FsError> {
    match name.as_name().bytes().starts_with(b"of-") {
        true => is_recorded(folder, name.as_name()),
        false => Ok(false),
    }
}

fn remove_mark(place: &Place, mark: &[u8]) -> Result<(), FsError> {
    match xattr::remove(place, mark) {
        Ok(()) | Err(FsError::NoAttribute) => Ok(()),
        Err(error) => Err(error),
    }
}

fn unlink(dir: &Arc<Dir>, name: Name<'_>) -> Result<(), FsError> {
    match unlinkat(&*dir.open()?, name.os(), AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Makes a directory's marks durable; files' go with the next sync of the host.
fn sync(place: &Place) -> Result<(), FsError> {
    match place {
        Place::Dir(dir) if Kind::from_mode(dir.stat()?.st_mode) == Some(Kind::Dir) => dir.sync(),
        _ => Ok(()),
    }
}
