// SPDX-License-Identifier: MIT OR Apache-2.0
//! Lasting names of the host's files: file handles and identities of filesystems, as kernel overlayfs keeps them.

use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;
use rustix::ioctl::{Getter, ioctl, opcode};

use super::Place;
use crate::model::FsError;

/// `MAX_HANDLE_SZ` of the kernel, in bytes.
const HANDLE_MAX: usize = 128;

/// A file handle: it leads to one file of its filesystem, and never to another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileHandle {
    /// The filesystem's type of handle.
    pub kind: u8,
    /// What the filesystem says.
    pub bytes: Vec<u8>,
}

/// `struct file_handle` with room.
#[repr(C)]
struct RawHandle {
    length: libc::c_uint,
    kind: libc::c_int,
    bytes: [u8; HANDLE_MAX],
}

/// The handle of the object at `place`; `None` where the filesystem has none that could be opened again.
pub fn file_handle(place: &Place) -> Result<Option<FileHandle>, FsError> {
    let (fd, name, flags) = match place {
        Place::At(dir, name) => (dir.open()?, name.to_vec(), 0),
        Place::Fd(fd) => (std::sync::Arc::clone(fd), Vec::new(), libc::AT_EMPTY_PATH),
        Place::Dir(dir) => (dir.open()?, Vec::new(), libc::AT_EMPTY_PATH),
    };
    let name = std::ffi::CString::new(name).map_err(|_| FsError::Invalid)?;
    let mut raw = RawHandle { length: HANDLE_MAX as libc::c_uint, kind: 0, bytes: [0; HANDLE_MAX] };
    let mut mount = 0;
    // SAFETY: the name is a C string; `raw` begins like `struct file_handle` and has as much room as its length says.
    let result =
        unsafe { libc::name_to_handle_at(fd.as_raw_fd(), name.as_ptr(), (&raw mut raw).cast(), &raw mut mount, flags) };
    if result != 0 {
        let error = std::io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::EOPNOTSUPP | libc::EOVERFLOW | libc::ENOSYS | libc::EPERM) => Ok(None),
            _ => Err(error.into()),
        };
    }
    let bytes = raw.bytes.get(..raw.length as usize).map(<[u8]>::to_vec);
    Ok(u8::try_from(raw.kind).ok().zip(bytes).map(|(kind, bytes)| FileHandle { kind, bytes }))
}

/// `struct fsuuid2`.
#[repr(C)]
struct RawUuid {
    length: u8,
    uuid: [u8; 16],
}

/// `FS_IOC_GETFSUUID` (Linux 6.9).
const GETFSUUID: rustix::ioctl::Opcode = opcode::read::<RawUuid>(0x15, 0);

/// The identity of the filesystem that `fd` (no `O_PATH`) lies on; `None` where the kernel does not tell it.
pub fn filesystem_uuid(fd: impl AsFd) -> Result<Option<[u8; 16]>, FsError> {
    // SAFETY: the request writes a `struct fsuuid2`, and `RawUuid` is one.
    match unsafe { ioctl(fd, Getter::<GETFSUUID, RawUuid>::new()) } {
        Ok(raw) => Ok((raw.length == 16).then_some(raw.uuid)),
        Err(Errno::NOTTY | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Name;
    use crate::sys::Dir;

    #[test]
    fn names_of_one_file_share_a_handle() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::write(temp.path().join("a"), "").unwrap();
        std::fs::hard_link(temp.path().join("a"), temp.path().join("b")).unwrap();
        std::fs::write(temp.path().join("c"), "").unwrap();
        let dir = Dir::from_fd(std::fs::File::open(temp.path()).unwrap().into()).unwrap();
        let [a, b, c] = [b"a", b"b", b"c"].map(|name| Place::at(&dir, Name::new(name).unwrap()));
        let handle = |place: &Place| file_handle(place).unwrap();
        assert_eq!(handle(&a), handle(&b));
        assert!(handle(&a).is_none() || handle(&a) != handle(&c));
        assert_eq!(handle(&a), handle(&Place::Fd(a.hold().unwrap())));
        // Descriptors of other processes' filesystems have none.
        let proc = Dir::from_fd(std::fs::File::open("/proc/self").unwrap().into()).unwrap();
        assert_eq!(handle(&Place::Dir(proc)), None);
    }
}
