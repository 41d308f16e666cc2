// SPDX-License-Identifier: MIT OR Apache-2.0
//! Extended attributes of a place, symlinks never followed.
//!
//! The calls take paths, so a place is named through `/proc/self/fd`, which needs no path of our own and has no length
//! limit beyond one name.

use std::ffi::CString;
use std::os::fd::AsRawFd;

use rustix::fs::{XattrFlags, lgetxattr, llistxattr, lremovexattr, lsetxattr};
use rustix::io::Errno;

use super::node::Place;
use crate::model::FsError;

/// The largest value the kernel passes (`XATTR_SIZE_MAX`), in bytes.
pub const VALUE_MAX: usize = 65_536;

fn with_path<T>(place: &Place, call: impl FnOnce(&CString) -> Result<T, FsError>) -> Result<T, FsError> {
    let (fd, mut path) = match place {
        Place::At(dir, name) => {
            let fd = dir.open()?;
            let mut path = format!("/proc/self/fd/{}/", fd.as_raw_fd()).into_bytes();
            path.extend_from_slice(name);
            (fd, path)
        }
        // The magic link itself is followed, once, to the object: `/.` after it would need the right to search.
        Place::Fd(fd) => (std::sync::Arc::clone(fd), format!("/proc/self/fd/{}", fd.as_raw_fd()).into_bytes()),
        Place::Dir(dir) => {
            let fd = dir.open()?;
            let path = format!("/proc/self/fd/{}", fd.as_raw_fd()).into_bytes();
            (fd, path)
        }
    };
    path.retain(|b| *b != 0);
    let path = CString::new(path).map_err(|_| FsError::Invalid)?;
    let result = call(&path);
    drop(fd);
    result
}

fn follows(place: &Place) -> bool {
    matches!(place, Place::Fd(_) | Place::Dir(_))
}

/// The value of `name`; `None` when there is none, or the filesystem has no such attributes.
pub fn get(place: &Place, name: &[u8]) -> Result<Option<Vec<u8>>, FsError> {
    with_path(place, |path| {
        let mut buffer = vec![0u8; 256];
        loop {
            let got = if follows(place) {
                rustix::fs::getxattr(path, name, &mut buffer[..])
            } else {
                lgetxattr(path, name, &mut buffer[..])
            };
            match got {
                Ok(length) => {
                    buffer.truncate(length);
                    return Ok(Some(buffer));
                }
                Err(Errno::RANGE) if buffer.len() < VALUE_MAX => buffer.resize(VALUE_MAX, 0),
                Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(None),
                Err(errno) => return Err(errno.into()),
            }
        }
    })
}

/// The names; empty where the filesystem has none.
pub fn list(place: &Place) -> Result<Vec<Vec<u8>>, FsError> {
    with_path(place, |path| {
        let mut buffer = vec![0u8; 1024];
        loop {
            let got = if follows(place) {
                rustix::fs::listxattr(path, &mut buffer[..])
            } else {
                llistxattr(path, &mut buffer[..])
            };
            match got {
                Ok(length) => {
                    buffer.truncate(length);
                    let names = buffer.split(|b| *b == 0).filter(|n| !n.is_empty()).map(<[u8]>::to_vec).collect();
                    return Ok(names);
                }
                Err(Errno::RANGE) if buffer.len() < VALUE_MAX => buffer.resize(VALUE_MAX, 0),
                Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
                Err(errno) => return Err(errno.into()),
            }
        }
    })
}

/// What to do when the attribute is there, or is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetMode {
    /// Create or replace.
    Any,
    /// `XATTR_CREATE`: `Exists` when it is there.
    Create,
    /// `XATTR_REPLACE`: `NoAttribute` when it is not.
    Replace,
    /// Both flags: `Exists` or `NoAttribute`, as natively.
    CreateAndReplace,
}

/// Sets `name` to `value`.
pub fn set(place: &Place, name: &[u8], value: &[u8], mode: SetMode) -> Result<(), FsError> {
    let flags = match mode {
        SetMode::Any => XattrFlags::empty(),
        SetMode::Create => XattrFlags::CREATE,
        SetMode::Replace => XattrFlags::REPLACE,
        SetMode::CreateAndReplace => XattrFlags::CREATE.union(XattrFlags::REPLACE),
    };
    with_path(place, |path| {
        Ok(if follows(place) {
            rustix::fs::setxattr(path, name, value, flags)
        } else {
            lsetxattr(path, name, value, flags)
        }?)
    })
}

/// Removes `name`. `NoAttribute` when it is not there.
pub fn remove(place: &Place, name: &[u8]) -> Result<(), FsError> {
    with_path(place, |path| {
        Ok(if follows(place) { rustix::fs::removexattr(path, name) } else { lremovexattr(path, name) }?)
    })
}
