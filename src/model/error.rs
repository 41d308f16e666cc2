// SPDX-License-Identifier: MIT OR Apache-2.0
//! The errors of the filesystem. `fuse/convert.rs` turns each into an errno in one exhaustive match.

/// Why an operation of the filesystem failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FsError {
    /// No such file or directory (ENOENT).
    #[error("no such file or directory")]
    NotFound,
    /// The name is taken (EEXIST).
    #[error("file exists")]
    Exists,
    /// The directory has entries (ENOTEMPTY).
    #[error("directory not empty")]
    NotEmpty,
    /// A directory was needed (ENOTDIR).
    #[error("not a directory")]
    NotDir,
    /// A directory was not expected (EISDIR).
    #[error("is a directory")]
    IsDir,
    /// The branch refuses writes (EROFS).
    #[error("read-only file system")]
    ReadOnly,
    /// The two names lie in different branches (EXDEV).
    #[error("invalid cross-device link")]
    CrossDevice,
    /// No space left (ENOSPC).
    #[error("no space left on device")]
    NoSpace,
    /// The host's quota is used up (EDQUOT).
    #[error("disk quota exceeded")]
    Quota,
    /// The host denies access (EACCES).
    #[error("permission denied")]
    Access,
    /// Not permitted (EPERM).
    #[error("operation not permitted")]
    Perm,
    /// Wrong argument (EINVAL).
    #[error("invalid argument")]
    Invalid,
    /// A name above 255 bytes (ENAMETOOLONG).
    #[error("file name too long")]
    NameTooLong,
    /// A mount point or otherwise in use (EBUSY).
    #[error("device or resource busy")]
    Busy,
    /// The node is no longer what the kernel thinks (ESTALE): it looks the name up again.
    #[error("stale file handle")]
    Stale,
    /// No such extended attribute (ENODATA).
    #[error("no such attribute")]
    NoAttribute,
    /// The caller's buffer is too small (ERANGE).
    #[error("result too large for the buffer")]
    Range,
    /// Not supported by the place where the file lies (EOPNOTSUPP).
    #[error("operation not supported")]
    Unsupported,
    /// An id outside the id map (EOVERFLOW).
    #[error("value too large for the id map")]
    Overflow,
    /// The handle is unknown (EBADF).
    #[error("bad file descriptor")]
    BadHandle,
    /// Content would have to be copied, or a copy waited for, by a thread that others need (EAGAIN, but never answered:
    /// the operation is done again where it may wait).
    #[error("the copy of file {ino:x} must be waited for")]
    MustWait {
        /// Its inode number: whoever waits for the same file waits together.
        ino: u64,
    },
    /// Stored data is damaged (EIO); logged with the layer and what is wrong.
    #[error("layer {layer} is damaged: {what}")]
    Corrupt {
        /// Digest or path of the layer.
        layer: String,
        /// What is wrong, with the offset or record.
        what: String,
    },
    /// Any other error of the host, passed through as its errno.
    #[error("{}", std::io::Error::from_raw_os_error(*errno))]
    Host {
        /// The errno of the failed system call.
        errno: i32,
    },
}

impl FsError {
    /// An input/output error (EIO).
    pub const IO: FsError = FsError::Host { errno: 5 };
}
