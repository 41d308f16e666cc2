// SPDX-License-Identifier: MIT OR Apache-2.0
//! Names of directory entries: one path component, proven by type.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;

use super::FsError;

/// The longest name the kernel passes and ext4 stores, in bytes (`NAME_MAX`).
pub const NAME_MAX: usize = 255;

/// One path component, borrowed: not empty, not `.` or `..`, without `/` and NUL, at most [`NAME_MAX`] bytes.
///
/// Holding one means that a system call relative to a directory descriptor cannot leave that directory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name<'a>(&'a [u8]);

impl<'a> Name<'a> {
    /// Checks `bytes`. Errors: `NameTooLong` above 255 bytes, `Invalid` for everything else that is no name.
    pub fn new(bytes: &'a [u8]) -> Result<Self, FsError> {
        if bytes.len() > NAME_MAX {
            return Err(FsError::NameTooLong);
        }
        let is_dots = bytes == b"." || bytes == b"..";
        if bytes.is_empty() || is_dots || bytes.iter().any(|b| matches!(b, b'/' | 0)) {
            return Err(FsError::Invalid);
        }
        Ok(Self(bytes))
    }

    /// The name of an `OsStr`; see [`Name::new`].
    pub fn from_os(name: &'a OsStr) -> Result<Self, FsError> {
        Self::new(name.as_bytes())
    }

    /// The bytes of the name.
    pub fn bytes(self) -> &'a [u8] {
        self.0
    }

    /// The name as an `OsStr`, for system calls.
    pub fn os(self) -> &'a OsStr {
        OsStr::from_bytes(self.0)
    }

    /// An owned copy.
    pub fn to_buf(self) -> NameBuf {
        NameBuf(self.0.into())
    }
}

impl fmt::Debug for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

/// One path component, owned. See [`Name`].
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NameBuf(Box<[u8]>);

impl NameBuf {
    /// Checks and takes `bytes`; see [`Name::new`].
    pub fn new(bytes: impl Into<Box<[u8]>>) -> Result<Self, FsError> {
        let bytes = bytes.into();
        Name::new(&bytes)?;
        Ok(Self(bytes))
    }

    /// The borrowed form.
    pub fn as_name(&self) -> Name<'_> {
        Name(&self.0)
    }
}

impl fmt::Debug for NameBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_name().fmt(f)
    }
}

/// Splits a path into names, ignoring empty components and `.`.
///
/// Errors: `Invalid` for `..` or a NUL byte (a path here is data from outside; it may not climb), `NameTooLong`.
pub fn components(path: &[u8]) -> Result<Vec<Name<'_>>, FsError> {
    path.split(|b| *b == b'/').filter(|part| !part.is_empty() && *part != b".").map(Name::new).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_climb() {
        for bad in [&b""[..], b".", b"..", b"a/b", b"/", b"a\0", &[b'x'; 256]] {
            assert!(Name::new(bad).is_err(), "{bad:?}");
        }
        for good in [&b"a"[..], b"...", b".wh.x", b"\xff\xfe", &[b'x'; 255]] {
            assert!(Name::new(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn components_refuse_dotdot() {
        assert_eq!(components(b"/a//./b/").unwrap().len(), 2);
        assert!(components(b"a/../b").is_err());
    }
}
