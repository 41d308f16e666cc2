// SPDX-License-Identifier: MIT OR Apache-2.0
//! Ways to mount, tried in order: mount(2), `fusermount3`, `fusermount`. fuser gets a descriptor and never unmounts by
//! path: a mount that is gone may have a successor at the same place.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::io_choice::IoChoice;
use super::session::Session;
use crate::fs::Fs;
use crate::sys::mount::{self as sys, FuseOptions, MountInfo, Unmount};
use crate::sys::namespace;

/// How to mount.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// Shown as the source of the mount.
    pub fsname: String,
    /// Shown as `fuse.SUBTYPE`.
    pub subtype: String,
    /// Let other users in.
    pub allow_other: bool,
    /// Refuse writes in the kernel.
    pub read_only: bool,
    /// Honour set-id bits.
    pub is_suid: bool,
    /// Honour device nodes.
    pub is_dev: bool,
}

/// What is left to those who cannot mount.
pub const WITHOUT: &str = "without a mount `mlfs ls`, `cat`, `export` and `layers` work";

/// Why a mount failed.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// `/dev/fuse` cannot be opened.
    #[error(
        "/dev/fuse cannot be opened ({0}); let root load the fuse module and allow the device to all (modprobe fuse; \
         chmod 666 /dev/fuse), or start the container with --device /dev/fuse; {WITHOUT}"
    )]
    NoDevice(#[source] io::Error),
    /// An ordinary user has no helper.
    #[error(
        "{target} cannot be mounted: an ordinary user needs fusermount3, which is not in PATH; let root install it \
         (Debian: apt-get install fuse3){namespaces}; {WITHOUT}", target = target.display()
    )]
    NoHelper {
        /// The mount point.
        target: PathBuf,
        /// What of user namespaces, the third way.
        namespaces: String,
    },
    /// None of the ways worked.
    #[error("{target} cannot be mounted: mount(2): {direct}; {helpers}", target = target.display())]
    Refused {
        /// The mount point.
        target: PathBuf,
        /// What mount(2) said.
        direct: io::Error,
        /// What the helpers said.
        helpers: String,
    },
    /// The kernel did not talk to us after mounting.
    #[error("the FUSE connection could not be started: {0}")]
    Session(#[source] io::Error),
}

/// A mounted connection that nobody serves yet.
#[derive(Debug)]
pub struct FuseMount {
    device: OwnedFd,
    target: PathBuf,
    info: Option<MountInfo>,
}

/// Mounts at `target`, which must be absolute and free of symlinks.
pub fn mount(target: &Path, options: &MountOptions) -> Result<FuseMount, MountError> {
    sys::open_fuse_device().map_err(MountError::NoDevice)?;
    let options = FuseOptions {
        fsname: options.fsname.clone(),
        subtype: options.subtype.clone(),
        allow_other: options.allow_other,
        default_permissions: true,
        read_only: options.read_only,
        suid: options.is_suid,
        dev: options.is_dev,
        root_mode: libc::S_IFDIR,
    };
    let device = match sys::mount_direct(target, &options) {
        Ok(device) => device,
        Err(direct) if direct.raw_os_error() == Some(libc::EPERM) => by_helper(target, &options, direct)?,
        Err(direct) => {
            let helpers = "not a matter of privilege, so no helper was asked".to_owned();
            return Err(MountError::Refused { target: target.to_owned(), direct, helpers });
        }
    };
    let info = sys::mount_at(target).ok().flatten();
    Ok(FuseMount { device, target: target.to_owned(), info })
}

fn by_helper(target: &Path, options: &FuseOptions, direct: io::Error) -> Result<OwnedFd, MountError> {
    let mut said = Vec::new();
    let mut has_helper = false;
    for helper in ["fusermount3", "fusermount"] {
        match sys::mount_by_helper(OsStr::new(helper), target, options) {
            Ok(device) => return Ok(device),
            Err(error) if error.kind() == io::ErrorKind::NotFound => said.push(format!("{helper} is not in PATH")),
            Err(error) => {
                has_helper = true;
                said.push(format!("{helper}: {error}"));
            }
        }
    }
    if !has_helper {
        let namespaces = match namespace::forbidden_by() {
            None => ", or use a user namespace: `mlfs mount ... -- CMD`".to_owned(),
            Some(sysctl) => format!(", or allow user namespaces, which {sysctl} forbids, for `mlfs mount ... -- CMD`"),
        };
        return Err(MountError::NoHelper { target: target.to_owned(), namespaces });
    }
    Err(MountError::Refused { target: target.to_owned(), direct, helpers: said.join("; ") })
}

impl FuseMount {
    /// The mount point.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// The mount as the kernel lists it: its device number names the connection.
    pub fn info(&self) -> Option<&MountInfo> {
        self.info.as_ref()
    }

    /// Answers the kernel's first message and is ready to serve. Threads are started here: fork before.
    pub fn serve(self, fs: Arc<Fs>, io: IoChoice) -> Result<Session, MountError> {
        Session::start(self.device, fs, io).map_err(MountError::Session)
    }

    /// Gives up: takes the mount down again, if it is still ours.
    pub fn unmount(self) -> io::Result<()> {
        let FuseMount { device, target, info } = self;
        drop(device);
        match info {
            Some(info) => unmount_if(&target, &info, Unmount::Lazy),
            None => Ok(()),
        }
    }
}

/// Unmounts `target` if the mount on top there is the one of `info`; otherwise does nothing.
pub fn unmount_if(target: &Path, info: &MountInfo, how: Unmount) -> io::Result<()> {
    match sys::mount_at(target)? {
        Some(now) if now.id == info.id && now.dev == info.dev => sys::unmount(target, how),
        _ => Ok(()),
    }
}
