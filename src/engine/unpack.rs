// SPDX-License-Identifier: MIT OR Apache-2.0
//! From a tar into a tree: `cp - NAME:DIR`, `volume import`.
//!
//! Symlinks of the tree are followed inside it, as a program in the container would; none leads out of it. A name in the
//! archive that climbs (`..`) is refused. Each entry is there whole or not at all; the archive as a whole is not.

use std::io::{BufReader, Read};

use crate::fs::create::NewNode;
use crate::fs::{EntryOut, Follow, Fs, RenameMode, SetAttr};
use crate::model::attr::make_rdev;
use crate::model::ids::{Caller, HandleId, NodeId};
use crate::model::{Attr, FsError, Kind, Name};
use crate::oci::compression::Compression;
use crate::oci::tar::{Chunk, Ending, Member, MemberKind, Stream, TarReader};
use crate::store::container::new_id;
use crate::sys::proc;

use super::copy::{Owners, remove_tree, set_all};
use super::inside::path_of;
use super::{EngineError, OrFail, Result};

/// The largest extended header.
const HEADER_LIMIT: u64 = 4 << 20;

/// Unpacks an archive (plain, gzip or zstd) into the directory `base` (names from the root of `fs`).
///
/// The entry for the archive's own root gives `base` its attributes.
pub fn unpack(fs: &Fs, base: &[Vec<u8>], input: impl Read + Send, owners: Owners) -> Result<()> {
    let read = || "cannot read the archive";
    let mut input = BufReader::with_capacity(1 << 17, input);
    let head = std::io::BufRead::fill_buf(&mut input).or_fail(read)?;
    if head.is_empty() {
        return Err(EngineError::failed("the archive is empty"));
    }
    let plain = Compression::detect(head).decode(input).or_fail(read)?;
    let mut reader = TarReader::new(Stream(plain), HEADER_LIMIT);
    let mut unpacker = Unpacker { fs, base, owners, dirs: Vec::new(), buffer: vec![0; 1 << 20] };
    while let Some(member) = reader.next_member().or_fail(read)? {
        let name = String::from_utf8_lossy(&member.path).into_owned();
        unpacker
            .member(&member, &mut reader)
            .map_err(|error| EngineError::failed(format!("cannot unpack {name}")).because(error))?;
    }
    if reader.ending() != Some(Ending::Mark) {
        return Err(EngineError::failed("the archive is cut short: it has no end mark"));
    }
    unpacker.finish()
}

/// Names and values.
type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

struct Unpacker<'a> {
    fs: &'a Fs,
    base: &'a [Vec<u8>],
    owners: Owners,
    /// Directories whose attributes are set at the end: their content changes them.
    dirs: Vec<(NodeId, Attr, Xattrs)>,
    buffer: Vec<u8>,
}

impl Unpacker<'_> {
    fn member<R: Read>(&mut self, member: &Member, reader: &mut TarReader<Stream<R>>) -> Result<()> {
        let attr = attr_of(member);
        let mut names = components(&member.path)?;
        let Some(last) = names.pop() else {
            if member.kind == MemberKind::Dir {
                let base = self.fs.resolve(&path_of(self.base), Follow::Yes).or_fail(|| "its directory is gone")?;
                self.dirs.push((base.id, attr, member.xattrs.clone()));
            }
            return Ok(());
        };
        let parent = self.parent(&names)?;
        let name = Name::new(&last).or_fail(|| "its name is none")?;
        let existing = match self.fs.lookup(parent, name) {
            Ok(existing) => Some(existing),
            Err(FsError::NotFound) => None,
            Err(error) => return Err(EngineError::failed("its place cannot be read").because(error)),
        };
        match (member.kind == MemberKind::Dir, existing.map(|e| (e.id, e.attr.kind))) {
            (true, Some((id, Kind::Dir))) => {
                self.dirs.push((id, attr, member.xattrs.clone()));
                return Ok(());
            }
            (true, Some(_)) => {
                return Err(EngineError::failed("cannot overwrite what is no directory with a directory"));
            }
            (false, Some((_, Kind::Dir))) => {
                return Err(EngineError::failed("cannot overwrite a directory with what is no directory"));
            }
            (true, None) => {
                let made = self.make(parent, name, &attr, None).or_fail(|| "it cannot be made")?;
                self.dirs.push((made.id, attr, member.xattrs.clone()));
                return Ok(());
            }
            (false, _) => {}
        }
        let staged = new_id().or_fail(|| "it cannot be named")?;
        let staged = format!(".mlfs-copy-{}", staged.get(..12).unwrap_or_default());
        let staged = Name::new(staged.as_bytes()).or_fail(|| "it cannot be named")?;
        let made = self.stage(parent, staged, member, &attr, reader).and_then(|made| {
            if existing.is_some_and(|e| e.id == made) {
                return self.fs.unlink(parent, staged).or_fail(|| "it cannot be put in place");
            }
            let ends = ((parent, staged), (parent, name));
            self.fs.rename(ends.0, ends.1, RenameMode::Replace).or_fail(|| "it cannot be put in place")
        });
        if made.is_err()
            && let Err(error) = remove_tree(self.fs, parent, staged)
        {
            log::debug!("what was unpacked aside cannot be removed: {error}");
        }
        made
    }

    /// Makes everything but a directory under another name.
    fn stage<R: Read>(
        &mut self,
        parent: NodeId,
        staged: Name<'_>,
        member: &Member,
        attr: &Attr,
        reader: &mut TarReader<Stream<R>>,
    ) -> Result<NodeId> {
        let cannot = || "it cannot be made";
        let made = match member.kind {
            MemberKind::HardLink => {
                let mut names = components(&member.link)?;
                let last = names.pop().ok_or_else(|| EngineError::failed("it is a link to the root"))?;
                let dir = self.parent(&names)?;
                let target = Name::new(&last).and_then(|last| self.fs.lookup(dir, last));
                let target = target.or_fail(|| "the file that it is a link to is not there")?;
                return self.fs.link(target.id, parent, staged).or_fail(cannot).map(|entry| entry.id);
            }
            MemberKind::File => {
                let new = NewNode { kind: Kind::File, perm: 0o600, umask: 0, rdev: 0, target: None };
                let (entry, opened) = self.fs.create(self.maker(attr), parent, staged, &new).or_fail(cannot)?;
                let written = self.content(opened.handle, entry.id, member.size, reader);
                self.fs.release(opened.handle);
                written?;
                entry
            }
            _ => self.make(parent, staged, attr, Some(&member.link)).or_fail(cannot)?,
        };
        set_all(self.fs, made.id, attr, &member.xattrs, self.owners).or_fail(|| "its attributes cannot be set")?;
        Ok(made.id)
    }

    fn content<R: Read>(
        &mut self,
        handle: HandleId,
        id: NodeId,
        size: u64,
        reader: &mut TarReader<Stream<R>>,
    ) -> Result<()> {
        let (mut offset, mut written_to) = (0, 0);
        loop {
            let count = match reader.read_chunk(&mut self.buffer).or_fail(|| "cannot read the archive")? {
                Chunk::End => break,
                Chunk::Hole(count) => {
                    offset += count;
                    continue;
                }
                Chunk::Data(count) => count,
            };
            let mut rest = self.buffer.get(..count).unwrap_or_default();
            while !rest.is_empty() {
                let written = self.fs.write(handle, offset, rest).or_fail(|| "it cannot be written")?;
                offset += written as u64;
                rest = rest.get(written..).unwrap_or_default();
            }
            written_to = offset;
        }
        if written_to < size {
            let set = SetAttr { size: Some(size), ..SetAttr::default() };
            self.fs.setattr(id, Some(handle), &set).or_fail(|| "it cannot be written")?;
        }
        Ok(())
    }

    fn make(
        &self,
        parent: NodeId,
        name: Name<'_>,
        attr: &Attr,
        link: Option<&[u8]>,
    ) -> std::result::Result<EntryOut, FsError> {
        let target = link.filter(|_| attr.kind == Kind::Symlink);
        let perm = if attr.kind == Kind::Dir { 0o700 } else { attr.perm };
        let new = NewNode { kind: attr.kind, perm, umask: 0, rdev: attr.rdev, target };
        self.fs.make(self.maker(attr), parent, name, &new)
    }

    fn maker(&self, attr: &Attr) -> Caller {
        let (uid, gid) = match self.owners {
            Owners::Exact => (attr.uid, attr.gid),
            _ => (proc::euid(), proc::egid()),
        };
        Caller { uid, gid, pid: 0 }
    }

    /// The directory of these names below the base; missing ones are made.
    fn parent(&self, names: &[Vec<u8>]) -> Result<NodeId> {
        let mut path = self.base.to_vec();
        let cannot = || "its directory cannot be reached";
        let mut here = self.fs.resolve(&path_of(&path), Follow::Yes).or_fail(cannot)?;
        for name in names {
            path.push(name.clone());
            here = match self.fs.resolve(&path_of(&path), Follow::Yes) {
                Ok(found) => found,
                Err(FsError::NotFound) => {
                    let new = NewNode { kind: Kind::Dir, perm: 0o755, umask: 0, rdev: 0, target: None };
                    let caller = Caller { uid: proc::euid(), gid: proc::egid(), pid: 0 };
                    let name = Name::new(name).or_fail(cannot)?;
                    self.fs.make(caller, here.id, name, &new).or_fail(cannot)?
                }
                Err(error) => return Err(EngineError::failed(cannot()).because(error)),
            };
        }
        Ok(here.id)
    }

    fn finish(self) -> Result<()> {
        for (id, attr, xattrs) in self.dirs.iter().rev() {
            set_all(self.fs, *id, attr, xattrs, self.owners).or_fail(|| "cannot set the attributes of a directory")?;
        }
        Ok(())
    }
}

/// The names of a path in an archive; absolute ones are taken as relative to the root.
fn components(path: &[u8]) -> Result<Vec<Vec<u8>>> {
    let names: Vec<Vec<u8>> =
        path.split(|b| *b == b'/').filter(|name| !name.is_empty() && *name != b".").map(<[u8]>::to_vec).collect();
    if names.iter().any(|name| name == b"..") {
        return Err(EngineError::failed("its name leads out of the archive"));
    }
    Ok(names)
}

fn attr_of(member: &Member) -> Attr {
    Attr {
        ino: 0,
        kind: match member.kind {
            MemberKind::File | MemberKind::HardLink => Kind::File,
            MemberKind::Symlink => Kind::Symlink,
            MemberKind::Char => Kind::Char,
            MemberKind::Block => Kind::Block,
            MemberKind::Dir => Kind::Dir,
            MemberKind::Fifo => Kind::Fifo,
        },
        perm: member.perm,
        nlink: 1,
        uid: member.uid,
        gid: member.gid,
        rdev: make_rdev(member.device.0, member.device.1),
        size: member.size,
        blocks: 0,
        blksize: 4096,
        atime: member.mtime,
        mtime: member.mtime,
        ctime: member.mtime,
    }
}
