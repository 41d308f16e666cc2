// SPDX-License-Identifier: MIT OR Apache-2.0
//! A directory tree taken as a value, with a readable difference.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::identity::{Identity, identity};

/// What an entry is, with what only that kind has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// A directory.
    Dir,
    /// A regular file: its size, and its content as a digest (or the error that reading gave).
    File(u64, String),
    /// A symbolic link and its target.
    Symlink(Vec<u8>),
    /// A character device.
    Char(u32, u32),
    /// A block device.
    Block(u32, u32),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its kind and content.
    pub body: Body,
    /// Permissions with the set-id and sticky bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Extended attributes, `security.selinux` left out.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// `st_nlink` and the first name of the same inode; `(1, own name)` for a lone file. Not for directories.
    pub links: Option<(u64, Vec<u8>)>,
    /// `st_ino`; 0 where it means nothing (oracle trees).
    pub ino: u64,
}

/// A tree: every entry by its path below the root (`b""` is the root itself).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    /// The entries.
    pub nodes: BTreeMap<Vec<u8>, Node>,
}

/// What a comparison looks at beside names, kinds, modes, owners, contents and targets.
#[derive(Clone, Copy, Debug)]
pub struct Compare {
    /// Times of files and links.
    pub is_mtime: bool,
    /// Times of directories.
    pub is_dir_mtime: bool,
    /// Extended attributes.
    pub is_xattrs: bool,
    /// Hard links: which names are one file.
    pub is_links: bool,
    /// The counts of hard links too.
    pub is_link_count: bool,
    /// Inode numbers.
    pub is_ino: bool,
    /// Times after this second need not be equal when both sides are after it.
    pub recent: i64,
    /// The attributes of the root directory itself.
    pub is_root: bool,
}

impl Compare {
    /// Everything but inode numbers.
    pub const ALL: Compare = Compare {
        is_mtime: true,
        is_dir_mtime: true,
        is_xattrs: true,
        is_links: true,
        is_link_count: true,
        is_ino: false,
        recent: i64::MAX,
        is_root: true,
    };
}

/// Extended attributes of a path, symlinks not followed.
pub fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut list = vec![0u8; 65536];
    let size = match rustix::fs::llistxattr(path, &mut list[..]) {
        Ok(size) => size,
        Err(rustix::io::Errno::NOTSUP | rustix::io::Errno::PERM | rustix::io::Errno::ACCESS) => 0,
        Err(error) => panic!("llistxattr {}: {error}", path.display()),
    };
    let mut found = BTreeMap::new();
    for name in list[..size].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        if name == b"security.selinux" {
            continue;
        }
        let mut value = vec![0u8; 65536];
        let value = match rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..]) {
            Ok(size) => value[..size].to_vec(),
            Err(error) => format!("unreadable: {error}").into_bytes(),
        };
        found.insert(name.to_vec(), value);
    }
    found
}

/// The hexadecimal digest of some bytes.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string");
        text
    })
}

fn sha256_of(path: &Path) -> String {
    let mut file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) => return format!("unreadable: {:?}", error.kind()),
    };
    let mut sum = Sha256::new();
    let mut block = vec![0u8; 1 << 17];
    loop {
        match file.read(&mut block) {
            Ok(0) => return hex(&sum.finalize()),
            Ok(size) => sum.update(&block[..size]),
            Err(error) => return format!("unreadable: {error}"),
        }
    }
}

impl Tree {
    /// Takes the tree below a directory. What cannot be read is recorded as such, never left out in silence.
    pub fn take(root: &Path) -> Tree {
        let mut tree = Tree::default();
        let mut first: BTreeMap<(u64, u64), Vec<u8>> = BTreeMap::new();
        tree.walk(root, Vec::new(), &mut first);
        tree
    }

    fn walk(&mut self, path: &Path, name: Vec<u8>, first: &mut BTreeMap<(u64, u64), Vec<u8>>) {
        let meta = match std::fs::symlink_metadata(path) {
            Ok(meta) => meta,
            Err(error) => panic!("stat {}: {error}", path.display()),
        };
        let kind = meta.file_type();
        let (major, minor) = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
        let body = if kind.is_dir() {
            Body::Dir
        } else if kind.is_symlink() {
            let target = std::fs::read_link(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            Body::Symlink(target.as_os_str().as_bytes().to_vec())
        } else if kind.is_char_device() {
            Body::Char(major, minor)
        } else if kind.is_block_device() {
            Body::Block(major, minor)
        } else if kind.is_fifo() {
            Body::Fifo
        } else if kind.is_socket() {
            Body::Socket
        } else {
            Body::File(meta.len(), sha256_of(path))
        };
        let links = (!kind.is_dir())
            .then(|| (meta.nlink(), first.entry((meta.dev(), meta.ino())).or_insert_with(|| name.clone()).clone()));
        let node = Node {
            body,
            mode: meta.mode() & 0o7777,
            uid: meta.uid(),
            gid: meta.gid(),
            mtime: (meta.mtime(), u32::try_from(meta.mtime_nsec()).unwrap_or(u32::MAX)),
            xattrs: xattrs(path),
            links,
            ino: meta.ino(),
        };
        self.nodes.insert(name.clone(), node);
        if kind.is_dir() {
            match std::fs::read_dir(path) {
                Ok(entries) => {
                    let mut names: Vec<Vec<u8>> = entries
                        .map(|entry| entry.unwrap_or_else(|error| panic!("readdir {}: {error}", path.display())))
                        .map(|entry| entry.file_name().as_bytes().to_vec())
                        .collect();
                    names.sort();
                    for pair in names.windows(2) {
                        assert_ne!(pair[0], pair[1], "{} lists a name twice", path.display());
                    }
                    for child in names {
                        let mut below = name.clone();
                        if !below.is_empty() {
                            below.push(b'/');
                        }
                        below.extend_from_slice(&child);
                        self.walk(&path.join(OsStr::from_bytes(&child)), below, first);
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {}
                Err(error) => panic!("readdir {}: {error}", path.display()),
            }
        }
    }

    /// The names below the root, for messages and quick checks.
    pub fn names(&self) -> Vec<String> {
        self.nodes.keys().skip(1).map(|name| String::from_utf8_lossy(name).into_owned()).collect()
    }

    /// The entry at a path.
    pub fn node(&self, path: &str) -> &Node {
        self.nodes.get(path.as_bytes()).unwrap_or_else(|| panic!("{path} is missing; there is {:?}", self.names()))
    }

    /// The differences to another tree, one line each; empty when equal.
    pub fn difference(&self, other: &Tree, compare: Compare) -> Vec<String> {
        let mut lines = Vec::new();
        for (name, left) in &self.nodes {
            let shown = format!("/{}", String::from_utf8_lossy(name));
            match other.nodes.get(name) {
                None => lines.push(format!("{shown}: only left ({})", left.body.word())),
                Some(right) if name.is_empty() && !compare.is_root => {
                    if left.body != right.body {
                        lines.push(format!("{shown}: {:?} | {:?}", left.body, right.body));
                    }
                }
                Some(right) => left.difference(right, compare, &shown, &mut lines),
            }
        }
        for (name, right) in &other.nodes {
            if !self.nodes.contains_key(name) {
                lines.push(format!("/{}: only right ({})", String::from_utf8_lossy(name), right.body.word()));
            }
        }
        lines
    }

    /// Panics with the difference unless the trees are equal.
    #[track_caller]
    pub fn assert_same(&self, other: &Tree, compare: Compare, what: &str) {
        let lines = self.difference(other, compare);
        let shown: Vec<&String> = lines.iter().take(40).collect();
        assert!(lines.is_empty(), "{what}: {} differences (left | right):\n{shown:#?}", lines.len());
    }
}

impl Body {
    fn word(&self) -> &'static str {
        match self {
            Body::Dir => "directory",
            Body::File(..) => "file",
            Body::Symlink(_) => "symlink",
            Body::Char(..) => "character device",
            Body::Block(..) => "block device",
            Body::Fifo => "pipe",
            Body::Socket => "socket",
        }
    }
}

impl Node {
    fn difference(&self, other: &Node, compare: Compare, shown: &str, lines: &mut Vec<String>) {
        if self.body != other.body {
            lines.push(format!("{shown}: {:?} | {:?}", self.body, other.body));
        }
        if self.mode != other.mode {
            lines.push(format!("{shown}: mode {:04o} | {:04o}", self.mode, other.mode));
        }
        if (self.uid, self.gid) != (other.uid, other.gid) {
            lines.push(format!("{shown}: owner {}:{} | {}:{}", self.uid, self.gid, other.uid, other.gid));
        }
        let is_time = if self.body == Body::Dir { compare.is_dir_mtime } else { compare.is_mtime };
        let are_recent = self.mtime.0 >= compare.recent && other.mtime.0 >= compare.recent;
        if is_time && !are_recent && self.mtime != other.mtime {
            lines.push(format!("{shown}: mtime {:?} | {:?}", self.mtime, other.mtime));
        }
        if compare.is_xattrs && self.xattrs != other.xattrs {
            let show = |map: &BTreeMap<Vec<u8>, Vec<u8>>| {
                let pairs = map.iter().map(|(k, v)| format!("{}={}", k.escape_ascii(), v.escape_ascii()));
                pairs.collect::<Vec<_>>().join(" ")
            };
            lines.push(format!("{shown}: xattrs {} | {}", show(&self.xattrs), show(&other.xattrs)));
        }
        let links = |node: &Node| {
            let (count, first) = node.links.as_ref()?;
            let first = String::from_utf8_lossy(first).into_owned();
            Some(if compare.is_link_count { format!("{count} of {first}") } else { first })
        };
        if compare.is_links && links(self) != links(other) {
            lines.push(format!("{shown}: links {:?} | {:?}", links(self), links(other)));
        }
        // Where only user.* attributes can be written, nothing can be kept on symlinks and special files.
        let can_keep = matches!(self.body, Body::Dir | Body::File(..)) || identity() == Identity::Root;
        if compare.is_ino && can_keep && self.ino != other.ino {
            lines.push(format!("{shown}: inode {} | {}", self.ino, other.ino));
        }
    }
}
