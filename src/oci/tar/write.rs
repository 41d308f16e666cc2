// SPDX-License-Identifier: MIT OR Apache-2.0
//! A streaming writer of tar archives in the pax format: what ustar has no room for stands in extended headers
//! (`SCHILY.xattr.*` for attributes, `GNU.sparse.*` 1.0 for holes), and only that: the same members give the same bytes.

use std::io::{self, Write};

use super::{BLOCK, Member, MemberKind};
use crate::model::Time;

/// The largest numbers that the fields of seven and eleven octal digits hold.
const SMALL_MAX: u64 = 0o7_777_777;
const LARGE_MAX: u64 = 0o77_777_777_777;
/// The room for a name, and for a link's target.
const NAME_MAX: usize = 100;

/// Writes an archive member by member. Call [`TarWriter::finish`]: without its end mark an archive is cut short.
#[derive(Debug)]
pub struct TarWriter<W> {
    inner: W,
    /// Bytes of the current member that are still to come, and the zeros after them.
    left: u64,
    padding: usize,
}

impl<W: Write> TarWriter<W> {
    /// Writes to `inner`.
    pub fn new(inner: W) -> Self {
        TarWriter { inner, left: 0, padding: 0 }
    }

    /// Begins a member; of a regular file, `member.size` bytes have to follow by [`TarWriter::data`].
    pub fn begin(&mut self, member: &Member) -> io::Result<()> {
        let size = if member.kind == MemberKind::File { member.size } else { 0 };
        self.header(member, &member.path, size, Vec::new())
    }

    /// Begins a regular file with holes: of `pieces` (offset and length, ascending), the bytes have to follow.
    pub fn begin_sparse(&mut self, member: &Member, pieces: &[(u64, u64)]) -> io::Result<()> {
        // GNU tar finds a hole at the end by an empty piece after it.
        let end = pieces.last().is_none_or(|(offset, length)| offset + length < member.size);
        let end = end.then_some((member.size, 0));
        let mut map = format!("{}\n", pieces.len() + usize::from(end.is_some()));
        for (offset, length) in pieces.iter().copied().chain(end) {
            map.push_str(&format!("{offset}\n{length}\n"));
        }
        let mut map = map.into_bytes();
        map.resize(map.len().next_multiple_of(BLOCK), 0);
        let size = map.len() as u64 + pieces.iter().map(|(_, length)| length).sum::<u64>();
        let mut records = Vec::new();
        record(&mut records, b"GNU.sparse.major", b"1");
        record(&mut records, b"GNU.sparse.minor", b"0");
        record(&mut records, b"GNU.sparse.name", &member.path);
        record(&mut records, b"GNU.sparse.realsize", member.size.to_string().as_bytes());
        // Readers that do not know the form at least do not take it for the file itself.
        self.header(member, b"GNUSparseFile.0/sparse", size, records)?;
        self.data(&map)
    }

    fn header(&mut self, member: &Member, path: &[u8], size: u64, mut records: Vec<u8>) -> io::Result<()> {
        self.end_member()?;
        for (key, text) in [(&b"path"[..], path), (b"linkpath", &member.link)] {
            if text.len() > NAME_MAX || !text.is_ascii() {
                record(&mut records, key, text);
            }
        }
        for (key, id) in [(&b"uid"[..], member.uid), (b"gid", member.gid)] {
            if u64::from(id) > SMALL_MAX {
                record(&mut records, key, id.to_string().as_bytes());
            }
        }
        if size > LARGE_MAX {
            record(&mut records, b"size", size.to_string().as_bytes());
        }
        let is_plain_time = member.mtime.nanos == 0 && u64::try_from(member.mtime.secs).is_ok_and(|s| s <= LARGE_MAX);
        if !is_plain_time {
            record(&mut records, b"mtime", time_text(member.mtime).as_bytes());
        }
        for (name, value) in &member.xattrs {
            record(&mut records, &[b"SCHILY.xattr.", name.as_slice()].concat(), value);
        }
        if !records.is_empty() {
            let extended = Member { kind: MemberKind::File, perm: 0o644, ..Member::default() };
            let mut block = block(&extended, b"PaxHeaders.0/member", records.len() as u64)?;
            block.set_entry_type(tar::EntryType::XHeader);
            block.set_cksum();
            self.inner.write_all(block.as_bytes())?;
            records.resize(records.len().next_multiple_of(BLOCK), 0);
            self.inner.write_all(&records)?;
        }
        self.inner.write_all(block(member, path, size)?.as_bytes())?;
        self.left = size;
        self.padding = usize::try_from(size.next_multiple_of(BLOCK as u64) - size).unwrap_or(0);
        Ok(())
    }

    /// Content of the current member.
    pub fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        let left = self.left.checked_sub(bytes.len() as u64);
        self.left = left.ok_or_else(|| io::Error::other("a file has grown while it was read"))?;
        self.inner.write_all(bytes)
    }

    fn end_member(&mut self) -> io::Result<()> {
        if self.left > 0 {
            return Err(io::Error::other("a file has shrunk while it was read"));
        }
        let zeros = [0; BLOCK];
        self.inner.write_all(zeros.get(..std::mem::take(&mut self.padding)).unwrap_or_default())
    }

    /// Writes the end mark; hands back what was written to.
    pub fn finish(mut self) -> io::Result<W> {
        self.end_member()?;
        self.inner.write_all(&[0; 2 * BLOCK])?;
        Ok(self.inner)
    }
}

/// The ustar header of a member.
fn block(member: &Member, path: &[u8], size: u64) -> io::Result<tar::Header> {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(match member.kind {
        MemberKind::File => tar::EntryType::Regular,
        MemberKind::HardLink => tar::EntryType::Link,
        MemberKind::Symlink => tar::EntryType::Symlink,
        MemberKind::Char => tar::EntryType::Char,
        MemberKind::Block => tar::EntryType::Block,
        MemberKind::Dir => tar::EntryType::Directory,
        MemberKind::Fifo => tar::EntryType::Fifo,
    });
    header.set_mode(member.perm);
    header.set_uid(u64::from(member.uid).min(SMALL_MAX));
    header.set_gid(u64::from(member.gid).min(SMALL_MAX));
    header.set_size(size.min(LARGE_MAX));
    header.set_mtime(u64::try_from(member.mtime.secs).unwrap_or(0).min(LARGE_MAX));
    header.set_device_major(member.device.0)?;
    header.set_device_minor(member.device.1)?;
    let fields = header.as_old_mut();
    for (field, text) in [(&mut fields.name, path), (&mut fields.linkname, &member.link)] {
        for (to, from) in field.iter_mut().zip(text) {
            *to = *from;
        }
    }
    header.set_cksum();
    Ok(header)
}

/// `LENGTH KEY=VALUE\n`, the length counting itself.
fn record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    out.extend_from_slice(length.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

/// Seconds with their fraction; before 1970 the fraction goes away from zero.
fn time_text(time: Time) -> String {
    let (sign, secs, nanos) = match (time.secs < 0, time.nanos) {
        (false, nanos) => ("", time.secs.unsigned_abs(), nanos),
        (true, 0) => ("-", time.secs.unsigned_abs(), 0),
        (true, nanos) => ("-", time.secs.unsigned_abs() - 1, 1_000_000_000 - nanos),
    };
    match nanos {
        0 => format!("{sign}{secs}"),
        _ => format!("{sign}{secs}.{:09}", nanos).trim_end_matches('0').to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Chunk, Ending, TarReader};
    use super::*;

    fn member(path: &str, kind: MemberKind) -> Member {
        Member { kind, path: path.into(), perm: 0o640, uid: 7, gid: 8, ..Member::default() }
    }

    /// Reads everything again; offsets are not compared.
    fn read(bytes: &[u8]) -> Vec<(Member, Vec<u8>)> {
        let mut reader = TarReader::new(bytes, 1 << 20);
        let mut all = Vec::new();
        while let Some(found) = reader.next_member().unwrap() {
            let mut content = Vec::new();
            let mut buffer = [0; 700];
            loop {
                match reader.read_chunk(&mut buffer).unwrap() {
                    Chunk::Data(count) => content.extend_from_slice(&buffer[..count]),
                    Chunk::Hole(count) => content.resize(content.len() + count as usize, 0),
                    Chunk::End => break,
                }
            }
            all.push((Member { offset: 0, ..found }, content));
        }
        assert_eq!(reader.ending(), Some(Ending::Mark));
        all
    }

    #[test]
    fn what_is_written_is_read_again() {
        let long = "d/".repeat(200) + "ä";
        let mut wanted = vec![
            Member { mtime: Time { secs: 5, nanos: 0 }, ..member("dir/", MemberKind::Dir) },
            Member { size: 1300, mtime: Time { secs: 1, nanos: 250 }, ..member("dir/file", MemberKind::File) },
            Member { uid: 4_000_000_000, gid: 3_000_000_000, ..member(&long, MemberKind::Fifo) },
            Member { link: long.clone().into(), ..member("dir/link", MemberKind::Symlink) },
            Member { link: b"dir/file".into(), ..member("hard", MemberKind::HardLink) },
            Member { device: (259, 70_000), ..member("null", MemberKind::Char) },
        ];
        for (secs, nanos) in [(-1, 0), (-2, 800_000_000), (1 << 40, 1)] {
            wanted.push(Member { mtime: Time { secs, nanos }, ..member("time", MemberKind::File) });
        }
        let xattrs = vec![(b"user.a".to_vec(), b"x\0=\ny".to_vec()), (b"user.b".to_vec(), vec![b'v'; 990])];
        wanted.push(Member { xattrs, ..member("xattrs", MemberKind::File) });
        let mut writer = TarWriter::new(Vec::new());
        for member in &wanted {
            writer.begin(member).unwrap();
            if member.size > 0 {
                writer.data(&[b'c'; 1000]).unwrap();
                writer.data(&[b'c'; 300]).unwrap();
            }
        }
        let found = read(&writer.finish().unwrap());
        assert_eq!(found.iter().map(|(member, _)| member.clone()).collect::<Vec<_>>(), wanted);
        assert_eq!(found[1].1, [b'c'; 1300]);
    }

    #[test]
    fn holes_are_kept() {
        let file = Member { size: 10_000, ..member("sparse", MemberKind::File) };
        let mut writer = TarWriter::new(Vec::new());
        writer.begin_sparse(&file, &[(512, 600), (9_000, 10)]).unwrap();
        writer.data(&[b'a'; 610]).unwrap();
        writer.begin(&member("next", MemberKind::File)).unwrap();
        let bytes = writer.finish().unwrap();
        assert!(bytes.len() < 8_000);
        let found = read(&bytes);
        let content = &found[0].1;
        assert_eq!((found[0].0.path.as_slice(), content.len()), (&b"sparse"[..], 10_000));
        assert_eq!(content.iter().filter(|b| **b == b'a').count(), 610);
        assert_eq!((content[511], content[512], content[1111], content[1112], content[9000]), (0, b'a', b'a', 0, b'a'));
        assert_eq!(found[1].0.path, b"next");
    }

    #[test]
    fn a_wrong_size_is_an_error() {
        let file = Member { size: 3, ..member("f", MemberKind::File) };
        let mut writer = TarWriter::new(Vec::new());
        writer.begin(&file).unwrap();
        assert!(writer.data(b"four").is_err());
        let mut writer = TarWriter::new(Vec::new());
        writer.begin(&file).unwrap();
        writer.data(b"tw").unwrap();
        assert!(writer.finish().is_err());
    }
}
