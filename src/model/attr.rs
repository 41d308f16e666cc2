// SPDX-License-Identifier: MIT OR Apache-2.0
//! Attributes of a file, as plain values.

/// The kind of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Regular file.
    File,
    /// Directory.
    Dir,
    /// Symbolic link.
    Symlink,
    /// Named pipe.
    Fifo,
    /// Character device.
    Char,
    /// Block device.
    Block,
    /// Unix socket.
    Socket,
}

/// The bits of `st_mode` that hold the kind.
pub const S_IFMT: u32 = 0o170_000;

impl Kind {
    /// The `S_IFMT` bits of this kind.
    pub fn bits(self) -> u32 {
        match self {
            Kind::File => 0o100_000,
            Kind::Dir => 0o040_000,
            Kind::Symlink => 0o120_000,
            Kind::Fifo => 0o010_000,
            Kind::Char => 0o020_000,
            Kind::Block => 0o060_000,
            Kind::Socket => 0o140_000,
        }
    }

    /// The kind in a `st_mode`; `None` for a value that names none.
    pub fn from_mode(mode: u32) -> Option<Self> {
        Some(match mode & S_IFMT {
            0o100_000 => Kind::File,
            0o040_000 => Kind::Dir,
            0o120_000 => Kind::Symlink,
            0o010_000 => Kind::Fifo,
            0o020_000 => Kind::Char,
            0o060_000 => Kind::Block,
            0o140_000 => Kind::Socket,
            _ => return None,
        })
    }

    /// Is this a directory?
    pub fn is_dir(self) -> bool {
        self == Kind::Dir
    }

    /// Is this a character or block device?
    pub fn is_device(self) -> bool {
        matches!(self, Kind::Char | Kind::Block)
    }
}

/// A point in time: seconds since 1970 (negative before) and nanoseconds in `0..1_000_000_000` after them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time {
    /// Whole seconds, rounded down.
    pub secs: i64,
    /// Nanoseconds after `secs`.
    pub nanos: u32,
}

/// What `stat(2)` tells of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Inode number shown to users (not the node id).
    pub ino: u64,
    /// Kind of file.
    pub kind: Kind,
    /// Permission bits with suid, sgid and sticky: `0..=0o7777`.
    pub perm: u32,
    /// Hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a character or block device, as `makedev(3)` encodes it.
    pub rdev: u64,
    /// Size in bytes.
    pub size: u64,
    /// Space used, in units of 512 bytes.
    pub blocks: u64,
    /// Preferred unit of I/O in bytes.
    pub blksize: u32,
    /// Last access.
    pub atime: Time,
    /// Last modification of the content.
    pub mtime: Time,
    /// Last change of the attributes.
    pub ctime: Time,
}

impl Attr {
    /// The whole `st_mode`: kind and permission bits.
    pub fn mode(&self) -> u32 {
        self.kind.bits() | self.perm
    }
}

/// Combines major and minor as glibc's `makedev` does.
pub fn make_rdev(major: u32, minor: u32) -> u64 {
    let (ma, mi) = (u64::from(major), u64::from(minor));
    ((ma & 0xffff_f000) << 32) | ((ma & 0xfff) << 8) | ((mi & 0xffff_ff00) << 12) | (mi & 0xff)
}

/// Splits a device number into major and minor: the reverse of [`make_rdev`].
pub fn split_rdev(rdev: u64) -> (u32, u32) {
    let major = ((rdev >> 32) & 0xffff_f000) | ((rdev >> 8) & 0xfff);
    let minor = ((rdev >> 12) & 0xffff_ff00) | (rdev & 0xff);
    (major as u32, minor as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_round_trip() {
        for (ma, mi) in [(0, 0), (1, 3), (259, 70_000), (0xfff_ffff, 0xffff_ffff)] {
            assert_eq!(split_rdev(make_rdev(ma, mi)), (ma, mi));
        }
        assert_eq!(make_rdev(1, 3), 0x103);
    }

    #[test]
    fn kinds_round_trip() {
        for kind in [Kind::File, Kind::Dir, Kind::Symlink, Kind::Fifo, Kind::Char, Kind::Block, Kind::Socket] {
            assert_eq!(Kind::from_mode(kind.bits() | 0o755), Some(kind));
        }
        assert_eq!(Kind::from_mode(0o755), None);
    }
}
