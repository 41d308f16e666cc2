// SPDX-License-Identifier: MIT OR Apache-2.0
//! From a tree to a tar: the whole of it (`export`, `cp ... -`), or what has changed against layers below it, as one
//! layer in the OCI convention (`commit`).
//!
//! Members come in the order of their names, so that equal trees give equal bytes. Sockets have no form in a tar and
//! are left out. Walked are names, not marks: renamed directories and files of which only the attributes were copied up
//! come out with their content, as [`Fs`] shows it.

use std::collections::HashMap;
use std::io::Write;
use std::ops::ControlFlow;

use crate::fs::io::Whence;
use crate::fs::{EntryOut, Fs, OpenFlags};
use crate::layer::whiteout::{OCI_OPAQUE, OCI_PREFIX};
use crate::model::attr::split_rdev;
use crate::model::ids::{HandleId, NodeId};
use crate::model::{Attr, Cookie, FsError, Kind, NameBuf, Time};
use crate::oci::tar::write::TarWriter;
use crate::oci::tar::{Member, MemberKind};

use super::{EngineError, OrFail, Result};

/// Files from this size on are looked through for holes.
const HOLES_FROM: u64 = 32 << 10;

/// What is written of a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// All of it, for whoever unpacks it.
    Whole,
    /// All of it, as a layer.
    Layer,
    /// What has changed against its layers, as a layer with whiteouts.
    Changes,
}

/// What becomes of holes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holes {
    /// They stay holes (`GNU.sparse` 1.0).
    Kept,
    /// They become zeros: not every reader of layers knows holes.
    Zeros,
}

/// Whose the members are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnersFrom {
    /// As the tree tells.
    Tree,
    /// The tree keeps none for what was changed (`--owner`): those of the file in the layers, else of the directory.
    Layers,
}

/// What is packed, and how.
#[derive(Clone, Debug)]
pub struct Plan<'a> {
    /// The tree.
    pub fs: &'a Fs,
    /// Its layers alone.
    pub layers: Option<&'a Fs>,
    /// What is written of it.
    pub extent: Extent,
    /// Only what lies at this path, and directories on the way that the layers lack.
    pub only: Vec<Vec<u8>>,
    /// What becomes of holes.
    pub holes: Holes,
    /// Whose the members are.
    pub owners: OwnersFrom,
    /// No member is later than this.
    pub latest: Option<i64>,
}

impl<'a> Plan<'a> {
    /// The whole tree as it is.
    pub fn whole(fs: &'a Fs) -> Self {
        Plan {
            fs,
            layers: None,
            extent: Extent::Whole,
            only: Vec::new(),
            holes: Holes::Kept,
            owners: OwnersFrom::Tree,
            latest: None,
        }
    }
}

impl Plan<'_> {
    fn is_delta(&self) -> bool {
        self.extent == Extent::Changes
    }
}

/// Writes the planned tree as a tar.
pub fn pack<W: Write>(plan: &Plan<'_>, out: W) -> Result<W> {
    let mut packer = Packer::new(plan, out);
    packer.root()?;
    packer.finish()
}

/// Writes one entry, a directory with everything in it, as `name`.
pub fn pack_entry<W: Write>(fs: &Fs, id: NodeId, name: &[u8], out: W) -> Result<W> {
    let plan = Plan::whole(fs);
    let mut packer = Packer::new(&plan, out);
    let attr = fs.getattr(id).or_fail(|| format!("cannot read {}", shown(name)))?.0;
    packer.member(id, name, &attr, (attr.uid, attr.gid))?;
    if attr.kind == Kind::Dir {
        let level = packer.level(id, None, name.to_vec(), (attr.uid, attr.gid), 0)?;
        packer.walk(level)?;
    }
    packer.finish()
}

/// A directory on the way.
struct Level {
    dir: NodeId,
    /// The same directory of the layers.
    layer_dir: Option<NodeId>,
    path: Vec<u8>,
    owner: (u32, u32),
    depth: usize,
    /// Still to be packed, the next one last.
    rest: Vec<NameBuf>,
    /// Look-ups to give back at its end: of the tree, of the layers.
    found: Option<NodeId>,
    below: Option<NodeId>,
}

struct Packer<'p, 'a, W> {
    plan: &'p Plan<'a>,
    tar: TarWriter<W>,
    /// The first name of each file with several, by its inode number.
    links: HashMap<u64, Vec<u8>>,
    /// Names that were not touched may have changed: their file was, by another name.
    has_groups: bool,
    buffer: Vec<u8>,
}

impl<'p, 'a, W: Write> Packer<'p, 'a, W> {
    fn new(plan: &'p Plan<'a>, out: W) -> Self {
        let has_groups = plan.is_delta() && plan.fs.has_link_groups();
        Packer { plan, tar: TarWriter::new(out), links: HashMap::new(), has_groups, buffer: vec![0; 1 << 20] }
    }

    fn finish(self) -> Result<W> {
        self.tar.finish().or_fail(written)
    }

    fn root(&mut self) -> Result<()> {
        let plan = self.plan;
        let attr = plan.fs.getattr(NodeId::ROOT).or_fail(|| "cannot read /")?.0;
        let below = plan.layers.map(|layers| layers.getattr(NodeId::ROOT)).transpose().or_fail(|| "cannot read /")?;
        let owner = match (&below, plan.owners) {
            (Some((below, _)), OwnersFrom::Layers) => (below.uid, below.gid),
            _ => (attr.uid, attr.gid),
        };
        let is_same = below.is_some_and(|(b, _)| (b.perm, (b.uid, b.gid), b.mtime) == (attr.perm, owner, attr.mtime));
        if !plan.is_delta() || (plan.only.is_empty() && !is_same) {
            self.member(NodeId::ROOT, b".", &attr, owner)?;
        }
        let below = plan.layers.map(|_| NodeId::ROOT);
        let level = self.level(NodeId::ROOT, below, Vec::new(), owner, 0)?;
        self.walk(level)
    }

    /// Packs what lies in a directory, without recursion: paths may be deep.
    fn walk(&mut self, first: Level) -> Result<()> {
        let mut levels = vec![first];
        while let Some(level) = levels.last_mut() {
            let Some(name) = level.rest.pop() else {
                if let Some(level) = levels.pop() {
                    level.found.iter().for_each(|id| self.plan.fs.forget(*id, 1));
                    self.forget_below(level.below);
                }
                continue;
            };
            let (dir, layer_dir, owner, depth) = (level.dir, level.layer_dir, level.owner, level.depth);
            let path = join(&level.path, name.as_name().bytes());
            let what = || format!("cannot read /{}", shown(&path));
            let found = match self.plan.fs.lookup(dir, name.as_name()) {
                // A running container: gone since it was listed.
                Err(FsError::NotFound | FsError::Stale) => continue,
                other => other.or_fail(what)?,
            };
            let below = layer_dir.map(|dir| self.find_below(dir, &name)).transpose().or_fail(what)?.flatten();
            match self.entry(&path, &found, below, owner, depth + 1)? {
                Some(level) => {
                    levels.push(Level { found: Some(found.id), below: below.map(|b| b.id), ..level });
                }
                None => {
                    self.plan.fs.forget(found.id, 1);
                    self.forget_below(below.map(|b| b.id));
                }
            }
        }
        Ok(())
    }

    fn forget_below(&self, id: Option<NodeId>) {
        if let (Some(layers), Some(id)) = (self.plan.layers, id) {
            layers.forget(id, 1);
        }
    }

    fn find_below(&self, dir: NodeId, name: &NameBuf) -> Result<Option<EntryOut>, FsError> {
        let Some(layers) = self.plan.layers else { return Ok(None) };
        match layers.lookup(dir, name.as_name()) {
            Ok(found) => Ok(Some(found)),
            Err(FsError::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Packs one name; a directory that is to be looked through is returned.
    fn entry(
        &mut self,
        path: &[u8],
        found: &EntryOut,
        below: Option<EntryOut>,
        parent_owner: (u32, u32),
        depth: usize,
    ) -> Result<Option<Level>> {
        let (plan, attr) = (self.plan, found.attr);
        let what = || format!("cannot read /{}", shown(path));
        let is_own = plan.layers.is_some() && plan.fs.is_in_upper(found.id).or_fail(what)?;
        let owner = match (&below, plan.owners == OwnersFrom::Layers && is_own) {
            (_, false) => (attr.uid, attr.gid),
            (Some(below), true) if below.attr.kind == attr.kind => (below.attr.uid, below.attr.gid),
            (_, true) => parent_owner,
        };
        let layer_dir = below.as_ref().filter(|b| b.attr.kind == Kind::Dir).map(|b| b.id);
        let is_changed = !plan.is_delta() || is_own || below.as_ref().is_none_or(|b| b.attr.ino != attr.ino);
        // Directories on the way to what alone was asked for.
        let is_on_the_way = depth < plan.only.len();
        if is_changed && !(plan.is_delta() && is_on_the_way && layer_dir.is_some()) {
            match attr.kind {
                Kind::Socket if plan.is_delta() && below.is_some() => {
                    self.mark(parent_of(path), OCI_PREFIX, name_of(path))?
                }
                Kind::Socket => log::info!("/{} is a socket, which no archive can hold", shown(path)),
                _ => self.member(found.id, path, &attr, owner)?,
            }
        }
        if attr.kind != Kind::Dir || !(is_changed || is_on_the_way || self.has_groups) {
            return Ok(None);
        }
        let mut layer_dir = layer_dir;
        if plan.is_delta()
            && !is_on_the_way
            && let (Some(dir), Some(layers)) = (layer_dir, plan.layers)
            && !plan.fs.has_layers(found.id).or_fail(what)?
        {
            layer_dir = None;
            if !list(layers, dir).or_fail(what)?.is_empty() {
                self.mark(path, OCI_OPAQUE, b"")?;
            }
        }
        self.level(found.id, layer_dir, path.to_vec(), owner, depth).map(Some)
    }

    /// Lists a directory, and in a delta writes whiteouts for what it lacks of its layers.
    fn level(
        &mut self,
        dir: NodeId,
        layer_dir: Option<NodeId>,
        path: Vec<u8>,
        owner: (u32, u32),
        depth: usize,
    ) -> Result<Level> {
        let plan = self.plan;
        let what = || format!("cannot list /{}", shown(&path));
        let is_wanted = |name: &NameBuf| plan.only.get(depth).is_none_or(|only| name.as_name().bytes() == only);
        let mut rest = match list(plan.fs, dir) {
            Err(FsError::NotFound | FsError::Stale) => Vec::new(),
            other => other.or_fail(what)?,
        };
        rest.retain(is_wanted);
        if let (true, Some(layers), Some(layer_dir)) = (plan.is_delta(), plan.layers, layer_dir) {
            for name in list(layers, layer_dir).or_fail(what)? {
                if is_wanted(&name) && rest.binary_search(&name).is_err() {
                    self.mark(&path, OCI_PREFIX, name.as_name().bytes())?;
                }
            }
        }
        rest.reverse();
        Ok(Level { dir, layer_dir, path, owner, depth, rest, found: None, below: None })
    }

    /// Writes a whiteout or an opaque mark into the directory `dir`.
    fn mark(&mut self, dir: &[u8], prefix: &[u8], name: &[u8]) -> Result<()> {
        let name = [prefix, name].concat();
        if name.len() > 255 {
            return Err(EngineError::failed(format!(
                "/{} was deleted, and its name is too long for a whiteout in an OCI layer",
                shown(&join(dir, name.get(prefix.len()..).unwrap_or_default()))
            )));
        }
        let member = Member { path: join(dir, &name), perm: 0o600, ..Member::default() };
        self.tar.begin(&member).or_fail(written)
    }

    /// Writes one member with its content.
    fn member(&mut self, id: NodeId, path: &[u8], attr: &Attr, owner: (u32, u32)) -> Result<()> {
        let what = || format!("cannot read /{}", shown(path));
        if self.plan.extent != Extent::Whole && name_of(path).starts_with(OCI_PREFIX) {
            return Err(EngineError::failed(format!(
                "/{} cannot be put into an OCI layer, where names beginning with .wh. delete others",
                shown(path)
            ))
            .advise("rename or remove it first"));
        }
        let mut member = self.describe(attr, owner, path)?;
        let is_linked = attr.kind != Kind::Dir && attr.nlink > 1;
        if is_linked && let Some(first) = self.links.get(&attr.ino) {
            let link = Member { kind: MemberKind::HardLink, link: first.clone(), size: 0, ..member };
            return self.tar.begin(&link).or_fail(written);
        }
        let file = match self.gather(id, attr, &mut member) {
            // A running container: gone since it was found.
            Err(FsError::NotFound | FsError::Stale) => {
                log::info!("/{} has gone while it was packed", shown(path));
                return Ok(());
            }
            other => other.or_fail(what)?,
        };
        if is_linked {
            self.links.insert(attr.ino, path.to_vec());
        }
        let Some(file) = file else { return self.tar.begin(&member).or_fail(written) };
        let result = self.content(file, &member);
        self.plan.fs.release(file);
        result.map_err(|error| EngineError::failed(what()).because(error))
    }

    /// Everything of an entry but its content, which is opened.
    fn gather(&self, id: NodeId, attr: &Attr, member: &mut Member) -> Result<Option<HandleId>, FsError> {
        let fs = self.plan.fs;
        for name in fs.listxattr(id)? {
            match fs.getxattr(id, &name) {
                Ok(value) => member.xattrs.push((name, value)),
                Err(FsError::NoAttribute) => {}
                Err(error) => return Err(error),
            }
        }
        member.xattrs.sort();
        match attr.kind {
            Kind::Symlink => {
                member.link = fs.read_link(id)?;
                Ok(None)
            }
            Kind::File => fs.open(id, OpenFlags::default()).map(|opened| Some(opened.handle)),
            _ => Ok(None),
        }
    }

    fn describe(&self, attr: &Attr, (uid, gid): (u32, u32), path: &[u8]) -> Result<Member> {
        let kind = match attr.kind {
            Kind::File => MemberKind::File,
            Kind::Dir => MemberKind::Dir,
            Kind::Symlink => MemberKind::Symlink,
            Kind::Fifo => MemberKind::Fifo,
            Kind::Char => MemberKind::Char,
            Kind::Block => MemberKind::Block,
            Kind::Socket => return Err(EngineError::failed(format!("{} is a socket", shown(path)))),
        };
        let mut path = path.to_vec();
        if attr.kind == Kind::Dir {
            path.push(b'/');
        }
        let mtime = match self.plan.latest {
            Some(latest) if attr.mtime.secs >= latest => Time { secs: latest, nanos: 0 },
            _ => attr.mtime,
        };
        Ok(Member {
            kind,
            path,
            perm: attr.perm,
            uid,
            gid,
            mtime,
            size: if attr.kind == Kind::File { attr.size } else { 0 },
            device: if attr.kind.is_device() { split_rdev(attr.rdev) } else { (0, 0) },
            ..Member::default()
        })
    }

    fn content(&mut self, file: HandleId, member: &Member) -> Result<()> {
        let all = [(0, member.size)];
        let pieces = match self.plan.holes {
            Holes::Kept if member.size >= HOLES_FROM => pieces(self.plan.fs, file, member.size).or_fail(|| "holes")?,
            _ => all.to_vec(),
        };
        if pieces == all { self.tar.begin(member) } else { self.tar.begin_sparse(member, &pieces) }.or_fail(written)?;
        for (start, length) in pieces {
            let (mut offset, end) = (start, start + length);
            while offset < end {
                let room = usize::try_from(end - offset).unwrap_or(usize::MAX).min(self.buffer.len());
                let buffer = self.buffer.get_mut(..room).unwrap_or_default();
                let mut count = self.plan.fs.read(file, offset, buffer).or_fail(|| "reading")?;
                if count == 0 {
                    // Its size has been written: as GNU tar does.
                    log::warn!("/{} has shrunk while it was packed: zeros stand for the rest", shown(&member.path));
                    buffer.fill(0);
                    count = room;
                }
                self.tar.data(buffer.get(..count).unwrap_or_default()).or_fail(written)?;
                offset += count as u64;
            }
        }
        Ok(())
    }
}

/// The pieces of a file that hold data.
pub(super) fn pieces(fs: &Fs, file: HandleId, size: u64) -> Result<Vec<(u64, u64)>, FsError> {
    let mut pieces = Vec::new();
    let mut offset = 0;
    while offset < size {
        let start = match fs.lseek(file, offset, Whence::Data) {
            Ok(start) if start < size => start,
            Ok(_) | Err(FsError::Host { errno: libc::ENXIO }) => break,
            // The host cannot tell: then it is all data.
            Err(FsError::Invalid | FsError::Unsupported) => return Ok(vec![(0, size)]),
            Err(error) => return Err(error),
        };
        let end = fs.lseek(file, start, Whence::Hole)?.min(size);
        if end <= start {
            break;
        }
        pieces.push((start, end - start));
        offset = end;
    }
    Ok(pieces)
}

/// The names in a directory, sorted.
fn list(fs: &Fs, dir: NodeId) -> Result<Vec<NameBuf>, FsError> {
    let mut names = Vec::new();
    fs.read_dir(dir, Cookie::START, &mut |line| {
        names.push(line.name);
        ControlFlow::Continue(())
    })?;
    names.sort();
    Ok(names)
}

fn written() -> &'static str {
    "cannot write the archive"
}

fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}

fn name_of(path: &[u8]) -> &[u8] {
    path.rsplit(|b| *b == b'/').next().unwrap_or(path)
}

fn parent_of(path: &[u8]) -> &[u8] {
    path.iter().rposition(|b| *b == b'/').and_then(|at| path.get(..at)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::engine::assemble::{OpenAs, host_tree, open_path};
    use crate::engine::copy::{Copy, Owners};

    fn open(path: &Path) -> Fs {
        Fs::new(host_tree(open_path(path, OpenAs::Directory).unwrap(), "t".into())).unwrap()
    }

    #[test]
    fn what_was_packed_or_copied_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        std::fs::create_dir(&to).unwrap();
        for number in 0..300 {
            let sub = from.join(format!("d{}", number % 10));
            std::fs::create_dir_all(&sub).unwrap();
            std::fs::write(sub.join(number.to_string()), "x").unwrap();
        }
        std::fs::hard_link(from.join("d0/0"), from.join("link")).unwrap();
        let tree = open(&from);
        let plan = Plan { layers: Some(&tree), ..Plan::whole(&tree) };
        let bytes = pack(&plan, Vec::new()).unwrap();
        assert!(bytes.len() > 300 * 512);
        assert_eq!(tree.tree().nodes().len(), 1, "the root");
        let target = open(&to);
        let mut copy = Copy::new(&tree, &target, Owners::AsPossible);
        copy.put_content(NodeId::ROOT, NodeId::ROOT).unwrap();
        copy.put_content(NodeId::ROOT, NodeId::ROOT).unwrap();
        assert_eq!(tree.tree().nodes().len(), 1);
        assert!(target.tree().nodes().len() <= 4, "files with several names: {}", target.tree().nodes().len());
        assert_eq!(std::fs::read_dir(to.join("d3")).unwrap().count(), 30);
    }

    #[test]
    fn what_goes_or_shrinks_meanwhile_does_not_end_the_archive() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("gone"), "gone").unwrap();
        std::fs::write(dir.path().join("shrunk"), "0123456789").unwrap();
        let tree = open(dir.path());
        let look = |name: &str| tree.lookup(NodeId::ROOT, crate::model::Name::new(name.as_bytes()).unwrap()).unwrap();
        let (gone, shrunk) = (look("gone"), look("shrunk"));
        std::fs::remove_file(dir.path().join("gone")).unwrap();
        std::fs::write(dir.path().join("shrunk"), "01").unwrap();
        let plan = Plan::whole(&tree);
        let mut packer = Packer::new(&plan, Vec::new());
        packer.member(gone.id, b"gone", &gone.attr, (0, 0)).unwrap();
        packer.member(shrunk.id, b"shrunk", &shrunk.attr, (0, 0)).unwrap();
        let bytes = packer.finish().unwrap();
        let mut reader = crate::oci::tar::TarReader::new(bytes.as_slice(), 1 << 20);
        let member = reader.next_member().unwrap().unwrap();
        assert_eq!((member.path.as_slice(), member.size), (&b"shrunk"[..], 10));
        let mut content = [9; 10];
        reader.read_chunk(&mut content).unwrap();
        assert_eq!(&content, b"01\0\0\0\0\0\0\0\0");
        assert!(reader.next_member().unwrap().is_none());
    }
}
