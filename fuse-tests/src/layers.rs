// SPDX-License-Identifier: MIT OR Apache-2.0
//! Layers as values: declared once, written as a directory in any whiteout convention or as a tar.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};

use crate::identity::own_ids;

/// What an item of a layer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A directory.
    Dir,
    /// A file with its content.
    File(Vec<u8>),
    /// A symbolic link.
    Symlink(Vec<u8>),
    /// Another name of a file of the same layer.
    Hardlink(Vec<u8>),
    /// A character device.
    Char(u32, u32),
    /// A block device.
    Block(u32, u32),
    /// A named pipe.
    Fifo,
    /// Hides the name in the layers below.
    Whiteout,
    /// Hides what the layers below hold in this directory (which must be declared too).
    Opaque,
}

/// One item of a layer.
#[derive(Clone, Debug)]
pub struct Item {
    /// Its path below the layer's root.
    pub path: Vec<u8>,
    /// What it is.
    pub what: What,
    /// Permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time.
    pub mtime: (i64, u32),
    /// Extended attributes.
    pub xattrs: Vec<(String, Vec<u8>)>,
}

impl Item {
    /// Sets the permissions.
    pub fn mode(&mut self, mode: u32) -> &mut Item {
        self.mode = mode;
        self
    }
    /// Sets the owner.
    pub fn owner(&mut self, uid: u32, gid: u32) -> &mut Item {
        (self.uid, self.gid) = (uid, gid);
        self
    }
    /// Sets the modification time.
    pub fn mtime(&mut self, seconds: i64, nanos: u32) -> &mut Item {
        self.mtime = (seconds, nanos);
        self
    }
    /// Adds an extended attribute.
    pub fn xattr(&mut self, name: &str, value: impl AsRef<[u8]>) -> &mut Item {
        self.xattrs.push((name.to_owned(), value.as_ref().to_vec()));
        self
    }
}

/// How a directory says that something of the layers below is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Convention {
    /// Character device 0:0, `trusted.overlay.opaque=y`.
    Trusted,
    /// Character device 0:0, `user.overlay.opaque=y` (what `userxattr` mounts use).
    UserXattr,
    /// Character device 0:0, `user.fuseoverlayfs.opaque=y`.
    FuseOverlayfs,
    /// `.wh.NAME` and `.wh..wh..opq` (AUFS and OCI).
    Aufs,
    /// Empty files with `overlay.whiteout`, in directories with `overlay.opaque=x`; `overlay.opaque=y`. Under `trusted.`
    /// as root, else under `user.`.
    Attribute,
}

/// The second that undated items carry; each item adds its position, so that no two are equal.
pub const BASE_TIME: i64 = 1_000_000_000;

/// A layer as a value.
#[derive(Clone, Debug, Default)]
pub struct LayerSpec {
    /// The items in the order of declaration (which is the order in a tar).
    pub items: Vec<Item>,
}

impl LayerSpec {
    /// An empty layer.
    pub fn new() -> LayerSpec {
        LayerSpec::default()
    }

    /// Adds an item as it stands, without parents.
    pub fn raw(&mut self, path: impl AsRef<[u8]>, what: What) -> &mut Item {
        let mode = match what {
            What::Dir => 0o755,
            What::Symlink(_) => 0o777,
            _ => 0o644,
        };
        let (uid, gid) = own_ids();
        let position = i64::try_from(self.items.len()).unwrap_or(0);
        let mtime = (BASE_TIME + position, 123_456_789);
        self.items.push(Item { path: path.as_ref().to_vec(), what, mode, uid, gid, mtime, xattrs: Vec::new() });
        self.items.last_mut().expect("just pushed")
    }

    fn with_parents(&mut self, path: &[u8], what: What) -> &mut Item {
        for (at, byte) in path.iter().enumerate() {
            let is_known = |item: &Item| item.what != What::Whiteout && item.path == path[..at];
            if *byte == b'/' && !self.items.iter().any(is_known) {
                self.raw(&path[..at], What::Dir);
            }
        }
        self.raw(path, what)
    }

    /// A directory, or the one already declared there; missing parents are declared.
    pub fn dir(&mut self, path: impl AsRef<[u8]>) -> &mut Item {
        let path = path.as_ref();
        match self.items.iter().position(|item| item.what == What::Dir && item.path == path) {
            Some(known) => &mut self.items[known],
            None => self.with_parents(path, What::Dir),
        }
    }
    /// A file; missing parents are declared.
    pub fn file(&mut self, path: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> &mut Item {
        self.with_parents(path.as_ref(), What::File(content.as_ref().to_vec()))
    }
    /// A symbolic link; missing parents are declared.
    pub fn symlink(&mut self, path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> &mut Item {
        self.with_parents(path.as_ref(), What::Symlink(target.as_ref().to_vec()))
    }
    /// Another name of a file; missing parents are declared.
    pub fn hardlink(&mut self, path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> &mut Item {
        self.with_parents(path.as_ref(), What::Hardlink(target.as_ref().to_vec()))
    }
    /// A special file; missing parents are declared.
    pub fn node(&mut self, path: impl AsRef<[u8]>, what: What) -> &mut Item {
        self.with_parents(path.as_ref(), what)
    }
    /// Deletes a name of the layers below; missing parents are declared.
    pub fn whiteout(&mut self, path: impl AsRef<[u8]>) -> &mut Item {
        self.with_parents(path.as_ref(), What::Whiteout)
    }
    /// An opaque directory; missing parents are declared.
    pub fn opaque(&mut self, path: impl AsRef<[u8]>) {
        if !self.items.iter().any(|item| item.path == path.as_ref()) {
            self.dir(path.as_ref());
        }
        self.raw(path, What::Opaque);
    }

    /// Writes the layer as a directory, which must exist.
    pub fn write_dir(&self, root: &Path, convention: Convention) {
        let at = |path: &[u8]| root.join(OsStr::from_bytes(path));
        for item in &self.items {
            let path = at(&item.path);
            let fail = |error: &dyn std::fmt::Display| panic!("layer item {}: {error}", path.display());
            match &item.what {
                What::Dir if path.is_dir() => {}
                What::Dir => std::fs::create_dir(&path).unwrap_or_else(|error| fail(&error)),
                What::File(content) => std::fs::write(&path, content).unwrap_or_else(|error| fail(&error)),
                What::Symlink(target) => {
                    std::os::unix::fs::symlink(OsStr::from_bytes(target), &path).unwrap_or_else(|error| fail(&error));
                }
                What::Hardlink(target) => {
                    std::fs::hard_link(at(target), &path).unwrap_or_else(|error| fail(&error));
                    continue;
                }
                What::Char(major, minor) => make_node(&path, FileType::CharacterDevice, *major, *minor),
                What::Block(major, minor) => make_node(&path, FileType::BlockDevice, *major, *minor),
                What::Fifo => make_node(&path, FileType::Fifo, 0, 0),
                What::Whiteout => write_whiteout(&path, convention),
                What::Opaque => write_opaque(&path, convention),
            }
            if matches!(item.what, What::Whiteout | What::Opaque) {
                continue;
            }
            let is_symlink = matches!(item.what, What::Symlink(_));
            let (uid, gid) = (Uid::from_raw(item.uid), Gid::from_raw(item.gid));
            rustix::fs::chownat(CWD, &path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                .unwrap_or_else(|error| fail(&error));
            for (name, value) in &item.xattrs {
                rustix::fs::lsetxattr(&path, name.as_str(), value, XattrFlags::empty())
                    .unwrap_or_else(|error| fail(&error));
            }
            if !is_symlink && item.what != What::Dir {
                set_mode(&path, item.mode);
            }
        }
        // Modes of directories and all times last: writing below changes them.
        for item in self.items.iter().rev().filter(|item| !matches!(item.what, What::Whiteout | What::Opaque)) {
            let path = at(&item.path);
            if item.what == What::Dir {
                set_mode(&path, item.mode);
            }
            if !matches!(item.what, What::Hardlink(_)) {
                set_mtime(&path, item.mtime);
            }
        }
        set_mtime(root, (BASE_TIME, 0));
    }
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .unwrap_or_else(|error| panic!("chmod {}: {error}", path.display()));
}

/// Sets a modification time with nanoseconds, symlinks not followed.
pub fn set_mtime(path: &Path, (seconds, nanos): (i64, u32)) {
    let time = Timespec { tv_sec: seconds, tv_nsec: i64::from(nanos) };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
        .unwrap_or_else(|error| panic!("utimensat {}: {error}", path.display()));
}

/// Makes a special file.
pub fn make_node(path: &Path, kind: FileType, major: u32, minor: u32) {
    rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o644), rustix::fs::makedev(major, minor))
        .unwrap_or_else(|error| panic!("mknod {}: {error}", path.display()));
}

fn write_whiteout(path: &Path, convention: Convention) {
    if convention == Convention::Aufs {
        let mut name = b".wh.".to_vec();
        name.extend_from_slice(path.file_name().expect("a name").as_bytes());
        std::fs::write(path.with_file_name(OsStr::from_bytes(&name)), b"").expect("whiteout");
    } else if convention == Convention::Attribute {
        std::fs::write(path, b"").expect("whiteout");
        set_mark(path, "whiteout", b"y");
        let dir = path.parent().expect("a parent");
        if !crate::tree::xattrs(dir).contains_key(mark("opaque").as_bytes()) {
            set_mark(dir, "opaque", b"x");
        }
    } else {
        // The kernel lets everybody make 0:0 since 5.8.
        make_node(path, FileType::CharacterDevice, 0, 0);
    }
}

/// The name under which the kernel keeps a mark: `trusted.` for root, else `user.`.
pub fn mark(name: &str) -> String {
    let space = if crate::identity::identity() == crate::identity::Identity::Root { "trusted" } else { "user" };
    format!("{space}.overlay.{name}")
}

fn set_mark(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, mark(name), value, XattrFlags::empty())
        .unwrap_or_else(|error| panic!("{name}: {error}"));
}

fn write_opaque(path: &Path, convention: Convention) {
    let name = match convention {
        Convention::Attribute => return set_mark(path, "opaque", b"y"),
        Convention::Trusted => "trusted.overlay.opaque",
        Convention::UserXattr => "user.overlay.opaque",
        Convention::FuseOverlayfs => "user.fuseoverlayfs.opaque",
        Convention::Aufs => {
            std::fs::write(path.join(".wh..wh..opq"), b"").expect("opaque mark");
            return;
        }
    };
    rustix::fs::lsetxattr(path, name, b"y", XattrFlags::empty()).unwrap_or_else(|error| panic!("{name}: {error}"));
}
