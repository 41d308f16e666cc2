// SPDX-License-Identifier: MIT OR Apache-2.0
//! How an upper holds owners, modes and kinds: one form per upper, chosen at creation, recorded, never mixed.

use serde::{Deserialize, Serialize};

use super::Upper;
use crate::layer::dir::override_stat;
use crate::layer::whiteout::OVERRIDE_XATTR;
use crate::model::{Attr, FsError, Kind};
use crate::sys::xattr::SetMode;
use crate::sys::{Place, proc, xattr};

/// The ownership form of an upper.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ownership {
    /// The host holds everything: every id can be given.
    Native,
    /// What the host cannot hold stands in `user.containers.override_stat`; the host's mode keeps u+rw (u+rwx on
    /// directories) so that the daemon can always open.
    Override,
    /// As `Override`, but owners are not kept: the mount shows one owner (`--owner`).
    Fixed,
}

impl Ownership {
    /// May attributes stand in `user.containers.override_stat`?
    pub fn uses_override(self) -> bool {
        match self {
            Ownership::Native => false,
            Ownership::Override | Ownership::Fixed => true,
        }
    }
}

/// Owner, mode and kind as they are to be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Kind.
    pub kind: Kind,
    /// Permission bits, `0..=0o7777`.
    pub perm: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number.
    pub rdev: u64,
}

impl Stat {
    /// The part of `attr` that an ownership form holds.
    pub fn of(attr: &Attr) -> Self {
        Stat { kind: attr.kind, perm: attr.perm, uid: attr.uid, gid: attr.gid, rdev: attr.rdev }
    }
}

impl Upper {
    /// The stat to hold for a wanted one: a fixed upper keeps no owners.
    fn held(&self, stat: &Stat) -> Stat {
        match self.ownership() {
            Ownership::Native | Ownership::Override => *stat,
            Ownership::Fixed => Stat { uid: proc::euid(), gid: proc::egid(), ..*stat },
        }
    }

    /// The kind of host file that holds a node of this stat: itself, or a regular file with an override.
    pub(crate) fn host_kind(&self, stat: &Stat) -> Kind {
        let held = self.held(stat);
        let is_natural = held.uid == proc::euid() && held.gid == proc::egid();
        match (self.ownership(), stat.kind) {
            (Ownership::Native, kind) => kind,
            (_, Kind::File | Kind::Dir) => stat.kind,
            (_, Kind::Symlink) if is_natural => stat.kind,
            // A pipe or socket of the host takes no attributes; in a plain directory it is there for the host to use too.
            (_, Kind::Fifo | Kind::Socket) if is_natural && self.is_plain() => stat.kind,
            (_, Kind::Char | Kind::Block | Kind::Symlink | Kind::Fifo | Kind::Socket) => Kind::File,
        }
    }

    /// The permission bits of the host file that holds a node of this stat.
    pub(crate) fn host_perm(&self, stat: &Stat) -> u32 {
        match (self.ownership(), stat.kind) {
            (Ownership::Native, _) => stat.perm,
            (_, Kind::Dir) => (stat.perm & 0o777) | 0o700,
            (_, _) => (stat.perm & 0o777) | 0o600,
        }
    }

    /// Can the host object at `place` hold this stat, or must another kind of object take its place?
    pub(crate) fn needs_conversion(&self, place: &Place, stat: &Stat) -> Result<bool, FsError> {
        let host_kind = Kind::from_mode(place.stat()?.st_mode).ok_or(FsError::IO)?;
        Ok(host_kind != Kind::File && self.host_kind(stat) != host_kind)
    }

    /// Gives the object at `place` owner and mode. `Unsupported` where [`Upper::needs_conversion`].
    pub(crate) fn hold_stat(&self, place: &Place, stat: &Stat) -> Result<(), FsError> {
        let now = place.stat()?;
        let host_kind = Kind::from_mode(now.st_mode).ok_or(FsError::IO)?;
        if self.ownership() == Ownership::Native {
            let (uid, gid) = (differs(now.st_uid, stat.uid), differs(now.st_gid, stat.gid));
            if uid.is_some() || gid.is_some() {
                place.chown(uid, gid)?;
            }
            // chown clears set-id bits, so the mode comes after it.
            if host_kind != Kind::Symlink {
                place.chmod(stat.perm)?;
            }
            return Ok(());
        }
        if self.host_kind(stat) != host_kind && host_kind != Kind::File {
            return Err(FsError::Unsupported);
        }
        match host_kind {
            Kind::Symlink => return Ok(()),
            Kind::Fifo | Kind::Socket => return place.chmod(stat.perm & 0o777),
            Kind::File | Kind::Dir | Kind::Char | Kind::Block => {}
        }
        let held = self.held(stat);
        let perm = self.host_perm(&held);
        place.chmod(perm)?;
        let is_natural = held.kind == host_kind && (held.uid, held.gid, held.perm) == (now.st_uid, now.st_gid, perm);
        if is_natural {
            return match xattr::remove(place, OVERRIDE_XATTR) {
                Ok(()) | Err(FsError::NoAttribute | FsError::Unsupported) => Ok(()),
                Err(error) => Err(error),
            };
        }
        let value = override_stat::value(held.uid, held.gid, held.perm, held.kind, held.rdev);
        xattr::set(place, OVERRIDE_XATTR, &value, SetMode::Any)
    }

    /// Sets a user's attribute; what the host refuses us stands aside in the override forms.
    pub fn set_xattr(&self, place: &Place, name: &[u8], value: &[u8], mode: SetMode) -> Result<(), FsError> {
        xattr::set(place, &self.held_name(name), value, mode)
    }

    /// Removes a user's attribute.
    pub fn remove_xattr(&self, place: &Place, name: &[u8]) -> Result<(), FsError> {
        xattr::remove(place, &self.held_name(name))
    }

    fn held_name(&self, name: &[u8]) -> Vec<u8> {
        // An ACL of the host would be checked against us, with the mode that the host has.
        let is_ours = [&b"security."[..], b"trusted.", b"system.posix_acl"].iter().any(|p| name.starts_with(p));
        if self.ownership().uses_override() && is_ours { override_stat::aside(name) } else { name.to_vec() }
    }
}

fn differs(now: u32, wanted: u32) -> Option<u32> {
    (now != wanted).then_some(wanted)
}
