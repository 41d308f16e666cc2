// SPDX-License-Identifier: MIT OR Apache-2.0
//! Floor 2: system calls. All `unsafe` of the package lives here, each block with its SAFETY reason.
//!
//! Most calls go through `rustix`; what is added is the escape-proof [`Dir`] and errors as [`FsError`].
#![allow(unsafe_code)]

use rustix::io::Errno;

use crate::model::FsError;

pub mod abilities;
pub mod bind;
pub mod data;
pub mod dir;
pub mod handle;
pub mod inherited;
pub mod lock;
pub mod map;
pub mod memory;
pub mod mount;
pub mod namespace;
pub mod node;
pub mod proc;
pub mod signal;
pub mod tmpfs;
pub mod xattr;

pub use dir::{Dir, FileId};
pub use map::Map;
pub use node::{Place, SetTime};

impl From<Errno> for FsError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::NOENT => FsError::NotFound,
            Errno::EXIST => FsError::Exists,
            Errno::NOTEMPTY => FsError::NotEmpty,
            Errno::NOTDIR => FsError::NotDir,
            Errno::ISDIR => FsError::IsDir,
            Errno::ROFS => FsError::ReadOnly,
            Errno::XDEV => FsError::CrossDevice,
            Errno::NOSPC => FsError::NoSpace,
            Errno::DQUOT => FsError::Quota,
            Errno::ACCESS => FsError::Access,
            Errno::PERM => FsError::Perm,
            Errno::INVAL => FsError::Invalid,
            Errno::NAMETOOLONG => FsError::NameTooLong,
            Errno::BUSY => FsError::Busy,
            Errno::STALE => FsError::Stale,
            Errno::NODATA => FsError::NoAttribute,
            Errno::RANGE => FsError::Range,
            Errno::OPNOTSUPP => FsError::Unsupported,
            Errno::OVERFLOW => FsError::Overflow,
            Errno::BADF => FsError::BadHandle,
            other => FsError::Host { errno: other.raw_os_error() },
        }
    }
}

impl From<std::io::Error> for FsError {
    fn from(error: std::io::Error) -> Self {
        error.raw_os_error().map_or(FsError::IO, |errno| Errno::from_raw_os_error(errno).into())
    }
}
