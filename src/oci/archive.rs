// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tars that hold a layout: read once for where their members lie, then by position.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::OciError;
use super::compression::Compression;
use super::layout::Part;
use super::reference::Input;
use super::tar::{Forward, MemberKind, TarReader};

/// The most members of an archive of images: each layer has a few.
const MEMBERS_LIMIT: usize = 100_000;
/// The longest path in such an archive.
const PATH_LIMIT: usize = 4096;
/// How many links may follow each other.
const LINKS_LIMIT: usize = 40;

/// Where a member's bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// In the archive.
    At { offset: u64, size: u64 },
    /// Under another name.
    Link(String),
}

/// A tar whose members can be read in any order.
#[derive(Debug)]
pub struct Archive {
    place: PathBuf,
    file: Arc<File>,
    members: HashMap<String, Place>,
}

impl Archive {
    /// Opens an archive. Standard input, pipes and compressed archives are first written to a file in `spool`.
    pub fn open(input: &Input, spool: &Path) -> Result<Self, OciError> {
        let (place, file) = match input {
            Input::File(path) => (path.clone(), File::open(path).map_err(|e| OciError::io(path, e))?),
            Input::Stdin => {
                let stdin = rustix::io::dup(rustix::stdio::stdin());
                let file = stdin.map_err(|e| OciError::io(Path::new("standard input"), e.into()))?;
                (PathBuf::from("standard input"), File::from(file))
            }
        };
        let meta = file.metadata().map_err(|e| OciError::io(&place, e))?;
        if meta.is_dir() {
            return Err(OciError::malformed(&place, "an archive is expected, this is a directory"));
        }
        let mut head = [0; 4];
        let is_plain_file = meta.is_file()
            && *input != Input::Stdin
            && read_at_most(&file, &mut head).map_err(|e| OciError::io(&place, e))? == 4
            && Compression::detect(&head) == Compression::Plain;
        let file = if is_plain_file { file } else { spooled(file, &place, spool)? };
        let file = Arc::new(file);
        let members = list(&file, &place)?;
        Ok(Archive { place, file, members })
    }

    /// The archive's path, for messages.
    pub fn place(&self) -> &Path {
        &self.place
    }

    /// Opens the member at `name`, through links; `None` when there is none.
    pub fn open_member(&self, name: &str) -> Result<Option<Part>, OciError> {
        let Some(mut name) = clean(name) else {
            return Err(OciError::malformed(&self.place, format!("\"{name}\" leads out of the archive")));
        };
        for _ in 0..LINKS_LIMIT {
            match self.members.get(&name) {
                None => return Ok(None),
                Some(Place::Link(target)) => name = target.clone(),
                Some(Place::At { offset, size }) => {
                    let cursor = Cursor { file: Arc::clone(&self.file), offset: *offset, end: offset + size };
                    return Ok(Some(Part { reader: Box::new(cursor), size: *size }));
                }
            }
        }
        Err(OciError::malformed(&self.place, format!("\"{name}\" is a link in a circle")))
    }
}

fn read_at_most(file: &File, buf: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buf.get_mut(filled..).filter(|r| !r.is_empty()) {
        match file.read_at(rest, filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(filled)
}

/// Writes what `file` holds, uncompressed, to a nameless file in `spool`.
fn spooled(file: File, place: &Path, spool: &Path) -> Result<File, OciError> {
    let path = spool.join("archive");
    let written = |e| OciError::io(&path, e);
    let mut out = File::options().read(true).write(true).create_new(true).open(&path).map_err(written)?;
    std::fs::remove_file(&path).map_err(written)?;
    let mut source = BufReader::with_capacity(1 << 17, file);
    let head = io::BufRead::fill_buf(&mut source).map_err(|e| OciError::io(place, e))?;
    let compression = Compression::detect(head);
    let mut plain = compression.decode(source).map_err(|e| OciError::io(place, e))?;
    let mut buf = vec![0; 1 << 17];
    loop {
        match plain.read(&mut buf) {
            Ok(0) => return Ok(out),
            Ok(count) => out.write_all(buf.get(..count).unwrap_or_default()).map_err(written)?,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(OciError::io(place, e)),
        }
    }
}

fn list(file: &Arc<File>, place: &Path) -> Result<HashMap<String, Place>, OciError> {
    let end = file.metadata().map_err(|e| OciError::io(place, e))?.len();
    let mut reader = TarReader::new(Cursor { file: Arc::clone(file), offset: 0, end }, 1 << 20);
    let mut members = HashMap::new();
    loop {
        let member = reader.next_member().map_err(|e| match e {
            super::tar::TarError::Io { source, .. } => OciError::io(place, source),
            other => OciError::malformed(place, other.to_string()),
        })?;
        let Some(member) = member else { return Ok(members) };
        if members.len() >= MEMBERS_LIMIT || member.path.len() > PATH_LIMIT {
            return Err(OciError::malformed(place, "too many or too long names for an archive of images"));
        }
        // Names that are not UTF-8 or lead outside cannot be asked for.
        let Some(name) = std::str::from_utf8(&member.path).ok().and_then(clean) else { continue };
        let link = std::str::from_utf8(&member.link).ok();
        let found = match member.kind {
            MemberKind::File if reader.is_sparse() => {
                return Err(OciError::malformed(place, format!("\"{name}\" is stored as a sparse file")));
            }
            MemberKind::File => Some(Place::At { offset: reader.offset(), size: member.size }),
            MemberKind::HardLink => link.and_then(clean).map(Place::Link),
            MemberKind::Symlink => {
                let parent = name.rsplit_once('/').map_or("", |(parent, _)| parent);
                link.filter(|l| !l.starts_with('/')).and_then(|l| clean(&format!("{parent}/{l}"))).map(Place::Link)
            }
            _ => None,
        };
        if let Some(found) = found {
            members.insert(name, found);
        }
    }
}

/// A path without `.`, `..` and doubled slashes; `None` when it leads outside or is empty.
fn clean(path: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            _ => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

/// Reads a part of a file by position, so that parts can be read side by side.
#[derive(Debug)]
struct Cursor {
    file: Arc<File>,
    offset: u64,
    end: u64,
}

impl Read for Cursor {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end.saturating_sub(self.offset)).unwrap_or(usize::MAX);
        let want = left.min(buf.len());
        let count = self.file.read_at(buf.get_mut(..want).unwrap_or_default(), self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}

impl Forward for Cursor {
    fn forward(&mut self, count: u64) -> io::Result<()> {
        let target = self.offset.checked_add(count).filter(|t| *t <= self.end);
        self.offset = target.ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(build: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> (tempfile::TempDir, Result<Archive, OciError>) {
        let mut builder = tar::Builder::new(Vec::new());
        build(&mut builder);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.tar");
        std::fs::write(&path, builder.into_inner().unwrap()).unwrap();
        let archive = Archive::open(&Input::File(path), dir.path());
        (dir, archive)
    }

    fn add(builder: &mut tar::Builder<Vec<u8>>, path: &str, kind: tar::EntryType, link: &str, content: &[u8]) {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        if !link.is_empty() {
            header.set_link_name(link).unwrap();
        }
        builder.append_data(&mut header, path, content).unwrap();
    }

    fn content(archive: &Archive, name: &str) -> Option<Vec<u8>> {
        let mut part = archive.open_member(name).unwrap()?;
        let mut bytes = Vec::new();
        part.reader.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len() as u64, part.size);
        Some(bytes)
    }

    #[test]
    fn members_are_found_through_links_and_never_outside() {
        let (_dir, archive) = archive(|b| {
            add(b, "aa/layer.tar", tar::EntryType::Regular, "", b"layer");
            add(b, "bb/layer.tar", tar::EntryType::Symlink, "../aa/layer.tar", b"");
            add(b, "cc", tar::EntryType::Link, "bb/layer.tar", b"");
            add(b, "out", tar::EntryType::Symlink, "../../etc/passwd", b"");
            add(b, "root", tar::EntryType::Symlink, "/etc/passwd", b"");
            add(b, "circle", tar::EntryType::Symlink, "circle", b"");
        });
        let archive = archive.unwrap();
        for name in ["aa/layer.tar", "./bb//layer.tar", "cc"] {
            assert_eq!(content(&archive, name).unwrap(), b"layer");
        }
        for name in ["out", "root", "none"] {
            assert!(archive.open_member(name).unwrap().is_none(), "{name}");
        }
        assert!(archive.open_member("circle").is_err() && archive.open_member("../x").is_err());
    }

    #[test]
    fn compressed_archives_are_spooled() {
        let (dir, plain) = archive(|b| add(b, "f", tar::EntryType::Regular, "", b"content"));
        assert!(plain.is_ok());
        let bytes = std::fs::read(dir.path().join("a.tar")).unwrap();
        let path = dir.path().join("a.tar.zst");
        std::fs::write(&path, zstd::encode_all(&bytes[..], 1).unwrap()).unwrap();
        let archive = Archive::open(&Input::File(path), dir.path()).unwrap();
        assert_eq!(content(&archive, "f").unwrap(), b"content");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn an_archive_cut_short_is_refused() {
        let (dir, _) = archive(|b| add(b, "f", tar::EntryType::Regular, "", &[1; 2000]));
        let bytes = std::fs::read(dir.path().join("a.tar")).unwrap();
        let path = dir.path().join("cut");
        std::fs::write(&path, &bytes[..1500]).unwrap();
        assert!(Archive::open(&Input::File(path), dir.path()).is_err());
    }
}
