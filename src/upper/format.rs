// SPDX-License-Identifier: MIT OR Apache-2.0
//! The marks of an upper that lies over layers: the kernel's (overlayfs.rst) wherever it has one, and three of ours.
//!
//! | mark | on | meaning |
//! |---|---|---|
//! | char 0:0, or an empty file with `overlay.whiteout` | a name | deleted |
//! | `overlay.opaque` = `y` / `x` | a directory | nothing below counts / holds whiteouts by attribute |
//! | `overlay.redirect` | a renamed directory | the path at which layers hold it |
//! | `overlay.metacopy` | a copied-up file | it holds metadata only, `overlay.redirect` says where layers hold its content |
//! | `overlay.mlfs.ino` (8 bytes, little endian) | anything copied up | the inode number it was born with |
//! | `overlay.nlink` = `U+N` | a copied-up file of a hard-link group | links shown minus links of the host |
//! | `overlay.origin`, `overlay.impure`, `overlay.upper` | such a file, its directories, the index and the root | the kernel's index of hard links (`links.rs`) |
//! | `overlay.mlfs.group` | such a file, without lasting names in its layer | the name of its record |

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{FileType, Mode, mknodat};
use rustix::io::Errno;

use super::{MarkSpace, Upper};
use crate::layer::whiteout::Redirect;
use crate::model::{FsError, Name, NameBuf};
use crate::sys::xattr::SetMode;
use crate::sys::{Dir, Place, xattr};

/// The longest path kept as a redirect, in bytes: attributes of one file share a block on ext4.
const REDIRECT_MAX: usize = 2048;

impl Upper {
    pub(super) fn mark_name(&self, mark: &str) -> Result<Vec<u8>, FsError> {
        let space = match self.work()?.marks {
            MarkSpace::Trusted => "trusted",
            MarkSpace::User => "user",
        };
        Ok(format!("{space}.overlay.{mark}").into_bytes())
    }

    /// Makes `dir` opaque: nothing in deeper layers counts from the moment this returns.
    pub(crate) fn set_opaque(&self, dir: &Place) -> Result<(), FsError> {
        xattr::set(dir, &self.mark_name("opaque")?, b"y", SetMode::Any)
    }

    /// Is the path short enough for a redirect?
    pub(crate) fn can_hold(path: &[NameBuf]) -> bool {
        path.iter().map(|name| name.as_name().bytes().len() + 1).sum::<usize>() <= REDIRECT_MAX
    }

    /// Keeps where layers hold a directory that is about to be renamed. `NameTooLong` for a path that no attribute holds.
    pub(crate) fn set_redirect(&self, dir: &Place, redirect: &Redirect) -> Result<(), FsError> {
        let value = redirect.value();
        if value.len() > REDIRECT_MAX {
            return Err(FsError::NameTooLong);
        }
        xattr::set(dir, &self.mark_name("redirect")?, &value, SetMode::Any)
    }

    /// Marks a file that holds metadata only: its content lies in the layers at `path`.
    pub(crate) fn set_metacopy(&self, file: &Place, path: &[NameBuf]) -> Result<(), FsError> {
        self.set_redirect(file, &Redirect::Path(path.to_vec()))?;
        xattr::set(file, &self.mark_name("metacopy")?, b"", SetMode::Any)
    }

    /// The file holds its content itself from now on.
    pub(crate) fn clear_metacopy(&self, file: &Place) -> Result<(), FsError> {
        for mark in ["metacopy", "redirect"] {
            for space in ["trusted", "user"] {
                match xattr::remove(file, format!("{space}.overlay.{mark}").as_bytes()) {
                    Ok(()) | Err(FsError::NoAttribute | FsError::Unsupported | FsError::Perm) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Keeps the inode number something was born with. The user form has no place for it on links and special files.
    pub(crate) fn set_birth_number(&self, place: &Place, number: u64) -> Result<(), FsError> {
        if self.is_plain() {
            return Ok(());
        }
        match xattr::set(place, &self.mark_name("mlfs.ino")?, &number.to_le_bytes(), SetMode::Any) {
            Err(FsError::Perm | FsError::Unsupported) => Ok(()),
            other => other,
        }
    }

    /// The inode number something was born with, if it was copied up.
    pub fn birth_number(&self, place: &Place) -> Result<Option<u64>, FsError> {
        if self.is_plain() {
            return Ok(None);
        }
        let value = xattr::get(place, &self.mark_name("mlfs.ino")?)?;
        Ok(value.and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes))
    }

    /// Makes a whiteout device called `name` in `dir`; `false` where the host has none.
    pub(super) fn make_whiteout_device(&self, dir: &Arc<Dir>, name: Name<'_>) -> Result<bool, FsError> {
        let work = self.work()?;
        if work.needs_xattr_whiteouts.load(Ordering::Relaxed) {
            return Ok(false);
        }
        match mknodat(&*dir.open()?, name.os(), FileType::CharacterDevice, Mode::empty(), 0) {
            Ok(()) => Ok(true),
            Err(Errno::PERM | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL) => {
                work.needs_xattr_whiteouts.store(true, Ordering::Relaxed);
                Ok(false)
            }
            Err(errno) => Err(errno.into()),
        }
    }

    /// Makes the empty file at `place` a whiteout.
    pub(super) fn set_whiteout(&self, place: &Place) -> Result<(), FsError> {
        xattr::set(place, &self.mark_name("whiteout")?, b"y", SetMode::Any)
    }

    /// Listings of `dir` look for whiteouts of the attribute form from now on.
    pub(super) fn hold_xattr_whiteouts(&self, dir: &Arc<Dir>) -> Result<(), FsError> {
        let (dir, opaque) = (Place::Dir(Arc::clone(dir)), self.mark_name("opaque")?);
        if xattr::get(&dir, &opaque)?.is_some() { Ok(()) } else { xattr::set(&dir, &opaque, b"x", SetMode::Any) }
    }
}
