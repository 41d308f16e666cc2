// SPDX-License-Identifier: MIT OR Apache-2.0
//! A filesystem that behaves as an NFS mount does, for tests of what lies on one: it mirrors a directory and refuses
//! what NFS refuses.
//!
//! Every refusal has a [`Trait`], so that a test can take one away and see that it was the reason. What a user may do is
//! judged by the backing filesystem: each request is carried out with the caller's ids, those of uid 0 with nobody's.
//! It has one thread and remembers nothing of attributes or names. What it does not imitate: stale handles, and the
//! file system's number in statfs(2), which stays FUSE's. The kernel tells it of a close a moment late: a file that is
//! removed right after its last close may have a silly name for that moment.

mod export;
mod files;
mod nodes;
mod request;

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use fuser::{Config, MountOption, Session, SessionACL};

pub use export::Export;

/// One thing that NFS does otherwise than a local filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trait {
    /// Extended attributes, of access control lists too: EOPNOTSUPP.
    Xattr,
    /// Devices cannot be made: EPERM.
    Mknod,
    /// renameat2(2) takes no flags: EINVAL.
    RenameFlags,
    /// flock(2): ENOLCK.
    Flock,
    /// fcntl(2) locks: ENOLCK as well (not among the defaults).
    Fcntl,
    /// An open file that is removed becomes `.nfs..` until its last close.
    Silly,
    /// Listings do not tell kinds: DT_UNKNOWN.
    Dtype,
    /// Uid 0 is nobody.
    Squash,
    /// No fallocate(2).
    Fallocate,
}

const NAMES: [(&str, Trait); 9] = [
    ("xattr", Trait::Xattr),
    ("mknod", Trait::Mknod),
    ("rename-flags", Trait::RenameFlags),
    ("flock", Trait::Flock),
    ("fcntl", Trait::Fcntl),
    ("silly", Trait::Silly),
    ("dtype", Trait::Dtype),
    ("squash", Trait::Squash),
    ("fallocate", Trait::Fallocate),
];

/// In which things it behaves as NFS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traits(BTreeSet<Trait>);

impl Default for Traits {
    fn default() -> Self {
        Traits(NAMES.iter().map(|(_, it)| *it).filter(|it| *it != Trait::Fcntl).collect())
    }
}

impl Traits {
    /// None: a FUSE filesystem that mirrors a directory.
    pub fn none() -> Traits {
        Traits(BTreeSet::new())
    }

    /// Adds what a list of names says, separated by commas.
    pub fn with(mut self, names: &str) -> Result<Traits, String> {
        self.0.extend(parse(names)?);
        Ok(self)
    }

    /// Takes away what a list of names says.
    pub fn without(mut self, names: &str) -> Result<Traits, String> {
        for it in parse(names)? {
            self.0.remove(&it);
        }
        Ok(self)
    }

    fn has(&self, it: Trait) -> bool {
        self.0.contains(&it)
    }
}

fn parse(names: &str) -> Result<Vec<Trait>, String> {
    let known = |name: &str| NAMES.iter().find(|(known, _)| *known == name).map(|(_, it)| *it);
    let all = || NAMES.map(|(name, _)| name).join(", ");
    names.split(',').map(|name| known(name).ok_or_else(|| format!("{name}: none of {}", all()))).collect()
}

/// Mounts `backing` at `target` and serves it until it is unmounted; `ready` is called once it can be used.
pub fn serve(backing: &Path, target: &Path, traits: Traits, ready: impl FnOnce()) -> io::Result<()> {
    rustix::process::umask(rustix::fs::Mode::empty());
    // The directory of before the mount: the target may be the backing directory itself.
    let mirror = request::Mirror::new(backing, traits)?;
    let device = mirror.device();
    let is_root = rustix::process::geteuid().is_root();
    let mut config = Config::default();
    config.mount_options = vec![MountOption::FSName("nfs-like".into()), MountOption::Subtype("nfslike".into())];
    if is_root {
        config.mount_options.extend([MountOption::Suid, MountOption::Dev]);
        config.acl = SessionACL::All;
    }
    let session = Session::new(mirror, target, &config)?;
    device.set(session.as_fd().try_clone_to_owned()?).map_err(|_| io::Error::other("two devices"))?;
    if is_root {
        // The groups of who has started us are nobody's business; the serving thread inherits this.
        rustix::thread::set_thread_groups(&[]).or_else(|error| match error {
            // The root of a namespace whose groups are sealed.
            rustix::io::Errno::PERM => Ok(()),
            error => Err(error),
        })?;
    }
    ready();
    session.run()
}
