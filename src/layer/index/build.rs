// SPDX-License-Identifier: MIT OR Apache-2.0
//! From the members of a tar to the tree of a layer.
//!
//! What members mean together is decided here, once, as `umoci unpack` and Docker do: the last of several members with
//! one path wins, a directory that comes again keeps its children, parents that have no member are made (marked
//! implicit), `.wh.NAME` beside `NAME` hides only what lies below, hard links join earlier names of this layer.
//! Nothing is believed: paths that climb, parents that are symlinks, and everything above the limits are refused,
//! and the error names the member. Nothing is removed while building: what lost is not reached from the root.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::format::{BODIES_AT, BodyKind, FLAG_IMPLICIT, FLAG_OPAQUE, INLINE_MAX};
use crate::layer::whiteout::{OCI_PREFIX, OciName, oci_name};
use crate::model::attr::make_rdev;
use crate::model::cookie::NameHash;
use crate::model::{Digest, Kind, Name, Time};
use crate::oci::tar::{Member, MemberKind};

/// Bounds for layers of strangers. `mlfs image load` has one flag for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Members of all layers together, parents without a member included (`--max-entries`).
    pub max_entries: u64,
    /// Components of a path (`--max-depth`).
    pub max_depth: u32,
    /// Bytes of one name, at most 255 (`--max-name`).
    pub max_name: u32,
    /// Bytes of the names and values of one member's extended attributes (`--max-xattr-bytes`).
    pub max_xattr_bytes: u64,
    /// Bytes of all files of all layers, and of their uncompressed tars (`--max-unpacked`).
    pub max_unpacked: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_entries: 1_000_000,
            max_depth: 1024,
            max_name: 255,
            max_xattr_bytes: 128 << 10,
            max_unpacked: 128 << 30,
        }
    }
}

/// Bytes of names allowed per allowed entry, on average: it bounds memory.
const NAME_BYTES_PER_ENTRY: u64 = 64;
/// The longest target of a symlink (`PATH_MAX` without its NUL).
const TARGET_MAX: usize = 4095;
/// The longest name of an extended attribute (`XATTR_NAME_MAX`).
const XATTR_NAME_MAX: usize = 255;

/// What the layers of one image have used of the limits together.
#[derive(Debug)]
pub struct Budget {
    limits: Limits,
    entries: AtomicU64,
    name_bytes: AtomicU64,
    unpacked: AtomicU64,
    tar_bytes: AtomicU64,
}

impl Budget {
    /// Nothing is used yet.
    pub fn new(limits: Limits) -> Self {
        let zero = || AtomicU64::new(0);
        Budget { limits, entries: zero(), name_bytes: zero(), unpacked: zero(), tar_bytes: zero() }
    }

    /// The limits.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Counts bytes of an uncompressed tar.
    pub fn take_tar_bytes(&self, count: u64) -> Result<(), BuildError> {
        take(&self.tar_bytes, count, self.limits.max_unpacked, "bytes of uncompressed layers", "--max-unpacked")
    }

    fn take_entry(&self, name: Name<'_>) -> Result<(), BuildError> {
        take(&self.entries, 1, self.limits.max_entries, "entries", "--max-entries")?;
        let name_limit = self.limits.max_entries.saturating_mul(NAME_BYTES_PER_ENTRY);
        take(&self.name_bytes, name.bytes().len() as u64, name_limit, "bytes of names", "--max-entries")
    }

    fn take_unpacked(&self, count: u64) -> Result<(), BuildError> {
        take(&self.unpacked, count, self.limits.max_unpacked, "unpacked bytes", "--max-unpacked")
    }
}

fn take(used: &AtomicU64, count: u64, limit: u64, what: &'static str, flag: &'static str) -> Result<(), BuildError> {
    let before = used.fetch_add(count.min(1 << 62), Ordering::Relaxed);
    if before.saturating_add(count) > limit {
        return Err(BuildError::Limit { what, limit, flag });
    }
    Ok(())
}

/// Why a tar is no layer.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A member cannot be part of a layer.
    #[error("the entry \"{path}\" {what}")]
    Entry {
        /// Its path, escaped.
        path: String,
        /// What is wrong with it.
        what: String,
    },
    /// A limit is exceeded.
    #[error("more than {limit} {what} (raise the limit with {flag} if you trust the image)")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        limit: u64,
        /// Its flag.
        flag: &'static str,
    },
    /// The index could not be written.
    #[error("the index cannot be written")]
    Write(#[source] io::Error),
}

impl From<io::Error> for BuildError {
    fn from(error: io::Error) -> Self {
        BuildError::Write(error)
    }
}

/// A path for a message: escaped, and short.
fn shown(path: &[u8]) -> String {
    const ENDS: usize = 100;
    let whole = |part: &[u8]| part.escape_ascii().to_string();
    match (path.split_at_checked(ENDS), path.len().checked_sub(ENDS).and_then(|at| path.split_at_checked(at))) {
        (Some((first, rest)), Some((_, last))) if rest.len() > ENDS => format!("{}[...]{}", whole(first), whole(last)),
        _ => whole(path),
    }
}

/// `.wh..wh.NAME`: a file of AUFS itself.
fn is_aufs(name: Name<'_>) -> bool {
    name.bytes().strip_prefix(OCI_PREFIX).is_some_and(|rest| rest.starts_with(OCI_PREFIX))
}

/// What to do with the content of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyPlan {
    /// Nothing: it has none, or is not part of the layer.
    Skip,
    /// Read it (at most [`INLINE_MAX`] bytes) and call [`Builder::set_inline`].
    Inline(NodeId),
    /// Put it into the object store; its digest comes with [`Builder::set_object`], in any order.
    Object(NodeId),
}

/// A node while building.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeId(pub(super) u32);

pub(super) const ROOT: NodeId = NodeId(0);
pub(super) const NONE: u32 = u32::MAX;

#[derive(Debug)]
pub(super) struct Node {
    pub mode: u16,
    pub flags: u8,
    pub body: BodyKind,
    pub uid: u32,
    pub gid: u32,
    /// Names that lead here; counted when writing.
    pub refs: u32,
    pub mtime: Time,
    pub check: u32,
    pub size: u64,
    pub data: u64,
    pub xattrs_at: u64,
    pub xattrs_len: u32,
    /// The number of the record; given when writing.
    pub record: u32,
}

impl Node {
    fn new(kind: Kind, perm: u32) -> Self {
        Node {
            mode: (kind.bits() | perm) as u16,
            flags: 0,
            body: BodyKind::None,
            uid: 0,
            gid: 0,
            refs: 0,
            mtime: Time::default(),
            check: 0,
            size: 0,
            data: 0,
            xattrs_at: 0,
            xattrs_len: 0,
            record: NONE,
        }
    }

    fn implicit_dir() -> Self {
        Node { flags: FLAG_IMPLICIT, ..Node::new(Kind::Dir, 0o755) }
    }

    pub fn is_dir(&self) -> bool {
        self.kind() == Some(Kind::Dir)
    }

    pub fn kind(&self) -> Option<Kind> {
        Kind::from_mode(u32::from(self.mode))
    }
}

/// A name in a directory.
#[derive(Debug)]
pub(super) struct Link {
    pub hash: NameHash,
    pub parent: NodeId,
    /// [`NONE`] for a whiteout.
    pub node: u32,
    /// The next name of the same parent and hash.
    next: u32,
    pub name_at: u32,
    pub name_len: u16,
    /// What lies below is hidden, whatever stands here.
    pub is_whited: bool,
}

/// Builds one index. Files `index` and `heap` are made in the folder given; both are gone with it.
#[derive(Debug)]
pub struct Builder<'a> {
    budget: &'a Budget,
    pub(super) nodes: Vec<Node>,
    pub(super) links: Vec<Link>,
    pub(super) names: Vec<u8>,
    by_name: HashMap<(u32, u64), u32>,
    pub(super) objects: Vec<(Digest, u64)>,
    pub(super) bodies: BufWriter<File>,
    pub(super) bodies_len: u64,
    pub(super) heap: BufWriter<File>,
    pub(super) heap_len: u64,
    /// The parent of the last member: most members follow their siblings.
    last_parent: Option<(Vec<u8>, NodeId)>,
}

impl<'a> Builder<'a> {
    /// An empty layer, to be written in the folder `dir`.
    pub fn new(dir: &Path, budget: &'a Budget) -> Result<Self, BuildError> {
        let create = |name: &str| File::options().read(true).write(true).create_new(true).open(dir.join(name));
        let mut bodies = BufWriter::with_capacity(1 << 17, create("index")?);
        bodies.write_all(&[0; BODIES_AT as usize])?;
        Ok(Builder {
            budget,
            nodes: vec![Node::implicit_dir()],
            links: Vec::new(),
            names: Vec::new(),
            by_name: HashMap::new(),
            objects: Vec::new(),
            bodies,
            bodies_len: 0,
            heap: BufWriter::new(create("heap")?),
            heap_len: 0,
            last_parent: None,
        })
    }

    /// Takes a member; answers what to do with its content.
    pub fn add(&mut self, member: &Member) -> Result<BodyPlan, BuildError> {
        let refuse = |what: String| BuildError::Entry { path: shown(&member.path), what };
        let parts = self.split(&member.path).map_err(&refuse)?;
        let Some((last, parents)) = parts.split_last() else {
            return match member.kind {
                MemberKind::Dir => self.update_dir(ROOT, member).map(|()| BodyPlan::Skip),
                _ => Err(refuse("stands for the root, which must be a directory".to_owned())),
            };
        };
        for parent in parents {
            match oci_name(*parent) {
                OciName::Plain => {}
                // Folders of AUFS (.wh..wh.plnk): not part of the layer, nor is what they hold.
                OciName::Reserved if is_aufs(*parent) => return Ok(BodyPlan::Skip),
                OciName::Reserved => return Err(refuse("lies below a whiteout of no possible name".to_owned())),
                OciName::Whiteout(_) | OciName::Opaque => {
                    return Err(refuse("lies below a whiteout".to_owned()));
                }
            }
        }
        match oci_name(*last) {
            OciName::Plain => {
                let parent = self.parent(&member.path, parents, *last)?;
                self.add_named(parent, *last, member)
            }
            OciName::Whiteout(name) => {
                let parent = self.parent(&member.path, parents, *last)?;
                self.add_whiteout(parent, name).map(|()| BodyPlan::Skip)
            }
            OciName::Opaque => {
                let parent = self.parent(&member.path, parents, *last)?;
                self.node_mut(parent).flags |= FLAG_OPAQUE;
                Ok(BodyPlan::Skip)
            }
            OciName::Reserved if is_aufs(*last) => Ok(BodyPlan::Skip),
            OciName::Reserved => Err(refuse("is a whiteout of no possible name".to_owned())),
        }
    }

    /// Writes the content of a small file.
    pub fn set_inline(&mut self, node: NodeId, content: &[u8]) -> Result<(), BuildError> {
        self.bodies.write_all(content)?;
        let at = self.bodies_len;
        self.bodies_len += content.len() as u64;
        let node = self.node_mut(node);
        node.body = BodyKind::Inline;
        node.check = crc32fast::hash(content);
        node.size = content.len() as u64;
        node.data = at;
        Ok(())
    }

    /// Tells the digest of a file that went into the object store.
    pub fn set_object(&mut self, node: NodeId, digest: Digest) {
        let number = self.objects.len() as u64;
        let node = self.node_mut(node);
        node.data = number;
        let size = node.size;
        self.objects.push((digest, size));
    }

    /// The names of a path, checked against the limits; the error is one clause.
    fn split<'m>(&self, path: &'m [u8]) -> Result<Vec<Name<'m>>, String> {
        let limits = &self.budget.limits;
        let mut parts = Vec::new();
        for part in path.split(|b| *b == b'/').filter(|part| !part.is_empty() && *part != b".") {
            if part == b".." {
                return Err("climbs with \"..\"".to_owned());
            }
            if part.len() as u64 > u64::from(limits.max_name) {
                return Err(format!("has a name of more than {} bytes (--max-name)", limits.max_name));
            }
            if parts.len() as u64 >= u64::from(limits.max_depth) {
                return Err(format!("lies more than {} directories deep (--max-depth)", limits.max_depth));
            }
            parts.push(Name::new(part).map_err(|e| format!("has an impossible name: {e}"))?);
        }
        Ok(parts)
    }

    /// The directory in which the member at `path` lies; made when there is none.
    fn parent(&mut self, path: &[u8], parents: &[Name<'_>], last: Name<'_>) -> Result<NodeId, BuildError> {
        // What stands before the last name; `None` for odd paths (`a/b/.`), which are looked up anew.
        let end = path.iter().rposition(|b| *b != b'/').map_or(0, |at| at + 1);
        let key = path.get(..end).unwrap_or_default().strip_suffix(last.bytes());
        if let (Some((known, node)), Some(key)) = (&self.last_parent, key)
            && known == key
        {
            return Ok(*node);
        }
        let mut dir = ROOT;
        for name in parents {
            dir = match self.find(dir, *name) {
                None => {
                    self.budget.take_entry(*name)?;
                    let node = self.push(Node::implicit_dir())?;
                    self.link(dir, *name, node.0)?;
                    node
                }
                Some(at) => match self.links.get(at).map(|l| l.node) {
                    Some(NONE) | None => {
                        let node = self.push(Node::implicit_dir())?;
                        self.relink(at, node);
                        node
                    }
                    Some(node) if self.node(NodeId(node)).is_dir() => NodeId(node),
                    Some(node) => {
                        let what = match self.node(NodeId(node)).kind() {
                            Some(Kind::Symlink) => "a symlink",
                            _ => "no directory",
                        };
                        return Err(BuildError::Entry {
                            path: shown(path),
                            what: format!("lies below \"{name}\", which is {what}"),
                        });
                    }
                },
            };
        }
        self.last_parent = key.map(|key| (key.to_vec(), dir));
        Ok(dir)
    }

    fn add_named(&mut self, parent: NodeId, name: Name<'_>, member: &Member) -> Result<BodyPlan, BuildError> {
        self.budget.take_entry(name)?;
        let found = self.find(parent, name);
        let existing = found.and_then(|at| self.links.get(at)).map(|l| l.node).filter(|n| *n != NONE).map(NodeId);
        if member.kind == MemberKind::Dir
            && let Some(dir) = existing
            && self.node(dir).is_dir()
        {
            self.update_dir(dir, member)?;
            return Ok(BodyPlan::Skip);
        }
        let (node, plan) = if member.kind == MemberKind::HardLink {
            (self.hard_link_target(member)?, BodyPlan::Skip)
        } else {
            self.make_node(member)?
        };
        match found {
            None => self.link(parent, name, node.0)?,
            Some(_) if existing == Some(node) => {}
            Some(at) => self.relink(at, node),
        }
        Ok(plan)
    }

    /// A node for any member but a hard link.
    fn make_node(&mut self, member: &Member) -> Result<(NodeId, BodyPlan), BuildError> {
        let refuse = |what: String| BuildError::Entry { path: shown(&member.path), what };
        let (kind, perm) = match member.kind {
            MemberKind::File | MemberKind::HardLink => (Kind::File, member.perm),
            MemberKind::Symlink => (Kind::Symlink, 0o777),
            MemberKind::Char => (Kind::Char, member.perm),
            MemberKind::Block => (Kind::Block, member.perm),
            MemberKind::Dir => (Kind::Dir, member.perm),
            MemberKind::Fifo => (Kind::Fifo, member.perm),
        };
        let mut node = Node::new(kind, perm & 0o7777);
        self.set_metadata(&mut node, member)?;
        match kind {
            Kind::File => {
                self.budget.take_unpacked(member.size)?;
                node.size = member.size;
                node.body = if member.size <= INLINE_MAX { BodyKind::Inline } else { BodyKind::Object };
            }
            Kind::Symlink => {
                if member.link.is_empty() || member.link.len() > TARGET_MAX || member.link.contains(&0) {
                    return Err(refuse(format!("is a symlink with a target of {} bytes", member.link.len())));
                }
                node.size = member.link.len() as u64;
                node.data = self.push_heap(&member.link)?;
            }
            Kind::Char | Kind::Block => node.data = make_rdev(member.device.0, member.device.1),
            Kind::Dir | Kind::Fifo | Kind::Socket => {}
        }
        let body = node.body;
        let id = self.push(node)?;
        let plan = match body {
            BodyKind::Inline => BodyPlan::Inline(id),
            BodyKind::Object => BodyPlan::Object(id),
            BodyKind::None | BodyKind::Range => BodyPlan::Skip,
        };
        Ok((id, plan))
    }

    fn update_dir(&mut self, dir: NodeId, member: &Member) -> Result<(), BuildError> {
        let mut node = Node::new(Kind::Dir, member.perm & 0o7777);
        self.set_metadata(&mut node, member)?;
        let old = self.node_mut(dir);
        node.flags = old.flags & !FLAG_IMPLICIT;
        *old = node;
        Ok(())
    }

    fn set_metadata(&mut self, node: &mut Node, member: &Member) -> Result<(), BuildError> {
        node.uid = member.uid;
        node.gid = member.gid;
        node.mtime = member.mtime;
        if member.xattrs.is_empty() {
            return Ok(());
        }
        let refuse = |what: String| BuildError::Entry { path: shown(&member.path), what };
        // Of attributes given twice the last counts.
        let xattrs: std::collections::BTreeMap<&[u8], &[u8]> =
            member.xattrs.iter().map(|(n, v)| (n.as_slice(), v.as_slice())).collect();
        let bytes: u64 = member.xattrs.iter().map(|(n, v)| (n.len() + v.len()) as u64).sum();
        if bytes > self.budget.limits.max_xattr_bytes {
            let limit = self.budget.limits.max_xattr_bytes;
            return Err(refuse(format!("has more than {limit} bytes of extended attributes (--max-xattr-bytes)")));
        }
        self.budget.take_unpacked(bytes)?;
        let mut block = Vec::new();
        for (name, value) in xattrs {
            if name.is_empty() || name.len() > XATTR_NAME_MAX || name.contains(&0) {
                return Err(refuse(format!("has an extended attribute with a name of {} bytes", name.len())));
            }
            block.extend_from_slice(&(name.len() as u16).to_le_bytes());
            block.extend_from_slice(&(value.len() as u32).to_le_bytes());
            block.extend_from_slice(name);
            block.extend_from_slice(value);
        }
        node.xattrs_len = u32::try_from(block.len()).map_err(|_| refuse("has too many attributes".to_owned()))?;
        node.xattrs_at = self.push_heap(&block)?;
        Ok(())
    }

    fn hard_link_target(&self, member: &Member) -> Result<NodeId, BuildError> {
        let target = shown(&member.link);
        let refuse = |what: String| BuildError::Entry { path: shown(&member.path), what };
        let parts =
            self.split(&member.link).map_err(|e| refuse(format!("is a hard link to \"{target}\", which {e}")))?;
        let mut node = ROOT;
        for (number, part) in parts.iter().enumerate() {
            if number > 0 && self.node(node).kind() == Some(Kind::Symlink) {
                return Err(refuse(format!("is a hard link to \"{target}\", which lies below a symlink")));
            }
            let found = self.find(node, *part).and_then(|at| self.links.get(at)).map(|l| l.node);
            node = found.filter(|n| *n != NONE).map(NodeId).ok_or_else(|| {
                refuse(format!("is a hard link to \"{target}\", which this layer does not have before it"))
            })?;
        }
        if self.node(node).is_dir() {
            return Err(refuse(format!("is a hard link to \"{target}\", which is a directory")));
        }
        Ok(node)
    }

    /// An entry of this layer wins over its whiteout; a directory then hides what lies below it.
    fn add_whiteout(&mut self, parent: NodeId, name: Name<'_>) -> Result<(), BuildError> {
        self.budget.take_entry(name)?;
        match self.find(parent, name) {
            Some(at) => {
                if let Some(link) = self.links.get_mut(at) {
                    link.is_whited = true;
                }
            }
            None => {
                self.link(parent, name, NONE)?;
                if let Some(link) = self.links.last_mut() {
                    link.is_whited = true;
                }
            }
        }
        Ok(())
    }

    fn find(&self, parent: NodeId, name: Name<'_>) -> Option<usize> {
        let mut at = *self.by_name.get(&(parent.0, NameHash::of(name).0))?;
        loop {
            let link = self.links.get(at as usize)?;
            if self.name_of(link) == name.bytes() {
                return Some(at as usize);
            }
            at = link.next;
        }
    }

    pub(super) fn name_of(&self, link: &Link) -> &[u8] {
        let at = link.name_at as usize;
        self.names.get(at..at + usize::from(link.name_len)).unwrap_or_default()
    }

    fn link(&mut self, parent: NodeId, name: Name<'_>, node: u32) -> Result<(), BuildError> {
        let too_many = || BuildError::Limit { what: "bytes of names", limit: u64::from(NONE), flag: "--max-entries" };
        let name_at = u32::try_from(self.names.len()).map_err(|_| too_many())?;
        let at = u32::try_from(self.links.len()).ok().filter(|n| *n < NONE).ok_or_else(too_many)?;
        let hash = NameHash::of(name);
        let next = self.by_name.insert((parent.0, hash.0), at).unwrap_or(NONE);
        self.names.extend_from_slice(name.bytes());
        let name_len = name.bytes().len() as u16;
        self.links.push(Link { hash, parent, node, next, name_at, name_len, is_whited: false });
        Ok(())
    }

    /// Lets an existing name lead to another node. What stood there before, if it was no directory, had already
    /// hidden what lies below.
    fn relink(&mut self, at: usize, node: NodeId) {
        self.last_parent = None;
        let was_file = self.links.get(at).is_some_and(|l| l.node != NONE && !self.node(NodeId(l.node)).is_dir());
        if let Some(link) = self.links.get_mut(at) {
            link.node = node.0;
            link.is_whited |= was_file;
        }
    }

    fn push(&mut self, node: Node) -> Result<NodeId, BuildError> {
        let limit = BuildError::Limit { what: "entries", limit: u64::from(NONE), flag: "--max-entries" };
        let id = u32::try_from(self.nodes.len()).ok().filter(|n| *n < NONE).ok_or(limit)?;
        self.nodes.push(node);
        Ok(NodeId(id))
    }

    fn push_heap(&mut self, bytes: &[u8]) -> Result<u64, BuildError> {
        self.heap.write_all(bytes)?;
        let at = self.heap_len;
        self.heap_len += bytes.len() as u64;
        Ok(at)
    }

    /// Every id comes from `push`, so the node is there; the root stands in for what cannot be.
    #[expect(clippy::indexing_slicing, reason = "ids come from push, nodes are never removed")]
    pub(super) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    #[expect(clippy::indexing_slicing, reason = "ids come from push, nodes are never removed")]
    pub(super) fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.0 as usize]
    }
}
