// SPDX-License-Identifier: MIT OR Apache-2.0
//! Writes what a [`Builder`] built: numbers the records, sorts the directories, appends the tables.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};

use zerocopy::IntoBytes;

use super::build::{BuildError, Builder, Link, NONE, Node, NodeId, ROOT};
use super::format::{
    BODIES_AT, BodyKind, Dirent, FLAG_OPAQUE, Header, MAGIC, ObjectRef, Record, Section, VERSION, WHITEOUT,
};
use crate::model::Digest;

/// Sums over a layer, as its index keeps them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Bytes of the uncompressed tar.
    pub tar_size: u64,
    /// Bytes of all regular files, names of one inode counted once.
    pub unpacked: u64,
    /// Entries that are no whiteouts.
    pub files: u64,
    /// Whiteouts, and directories that are opaque.
    pub whiteouts: u64,
}

/// A finished index: its file (named `index` in the builder's folder) and the objects it refers to, sorted.
#[derive(Debug)]
pub struct Written {
    /// The file, not synced yet.
    pub file: File,
    /// Digests of the objects it needs.
    pub objects: Vec<Digest>,
    /// Sums.
    pub stats: Stats,
}

/// The order of the tables.
struct Order {
    /// The node of each record.
    records: Vec<u32>,
    /// The links of all directories, in the directories' order, sorted within each.
    links: Vec<u32>,
}

impl Builder<'_> {
    /// Writes the index of the layer whose tar has this digest and size. All objects must have been told.
    pub fn finish(mut self, diff_id: Digest, tar_size: u64) -> Result<Written, BuildError> {
        let order = self.number();
        let objects = self.used_objects(&order);
        let mut stats = Stats { tar_size, ..Stats::default() };
        let bodies_len = self.bodies_len;
        let heap = std::mem::replace(&mut self.heap, BufWriter::with_capacity(0, null()?));
        let bodies = std::mem::replace(&mut self.bodies, BufWriter::with_capacity(0, null()?));
        let file = bodies.into_inner().map_err(io::IntoInnerError::into_error)?;
        let mut out = Sections::new(file, BODIES_AT + bodies_len)?;

        out.copy(heap.into_inner().map_err(io::IntoInnerError::into_error)?)?;
        let heap = out.end();
        let mut name_places = Vec::with_capacity(order.links.len());
        for link in self.links_in(&order) {
            let name = self.name_of(link);
            name_places.push(out.position() as u32);
            out.write(name)?;
        }
        let names = out.end();
        for number in &order.records {
            let node = self.node(NodeId(*number));
            if node.body != BodyKind::None {
                stats.unpacked = stats.unpacked.saturating_add(node.size);
            }
            stats.whiteouts += u64::from(node.flags & FLAG_OPAQUE != 0);
            out.write(record(node, &objects, &self.objects).as_bytes())?;
        }
        let records = out.end();
        for (link, name_at) in self.links_in(&order).zip(name_places) {
            let is_whiteout = link.node == NONE;
            stats.whiteouts += u64::from(is_whiteout);
            stats.files += u64::from(!is_whiteout);
            let dirent = Dirent {
                hash: link.hash.0.into(),
                name_at: name_at.into(),
                name_len: link.name_len.into(),
                reserved: 0.into(),
                record: if is_whiteout { WHITEOUT.into() } else { self.node(NodeId(link.node)).record.into() },
            };
            out.write(dirent.as_bytes())?;
        }
        let entries = out.end();
        for object in &objects {
            out.write(object.as_bytes())?;
        }
        let objects_section = out.end();

        let mut header = Header {
            magic: MAGIC,
            version: VERSION.into(),
            header_crc: 0.into(),
            diff_id: diff_id.0,
            bodies: Section { offset: BODIES_AT.into(), len: bodies_len.into() },
            heap,
            names,
            records,
            entries,
            objects: objects_section,
            sections_crc: out.crc().into(),
            reserved: 0.into(),
            tar_size: tar_size.into(),
            unpacked: stats.unpacked.into(),
            files: stats.files.into(),
            whiteouts: stats.whiteouts.into(),
            spare: [0; 72],
        };
        header.header_crc = crc32fast::hash(header.as_bytes()).into();
        let file = out.finish(header.as_bytes())?;
        Ok(Written { file, objects: objects.iter().map(|o| Digest(o.digest)).collect(), stats })
    }

    fn links_in<'o>(&'o self, order: &'o Order) -> impl Iterator<Item = &'o Link> {
        order.links.iter().filter_map(|at| self.links.get(*at as usize))
    }

    /// Numbers the records breadth first from the root; sets the records, link counts and ranges of nodes.
    fn number(&mut self) -> Order {
        let mut children = self.children_by_parent();
        let mut order = Order { records: vec![ROOT.0], links: Vec::new() };
        let root = self.node_mut(ROOT);
        (root.record, root.refs) = (0, 1);
        let mut next = 0;
        while let Some(dir) = order.records.get(next).copied().map(NodeId) {
            next += 1;
            if !self.node(dir).is_dir() {
                continue;
            }
            let range = children.range(dir);
            range.sort_unstable_by(|a, b| self.sort_key(*a).cmp(&self.sort_key(*b)));
            let first = order.links.len() as u64;
            let count = range.len() as u64;
            for at in range.iter() {
                order.links.push(*at);
                let Some((node, is_whited)) = self.links.get(*at as usize).map(|l| (l.node, l.is_whited)) else {
                    continue;
                };
                if node == NONE {
                    continue;
                }
                let fresh = order.records.len() as u32;
                let child = self.node_mut(NodeId(node));
                child.refs += 1;
                if child.is_dir() && is_whited {
                    child.flags |= FLAG_OPAQUE;
                }
                if child.record == NONE {
                    child.record = fresh;
                    order.records.push(node);
                }
            }
            let node = self.node_mut(dir);
            (node.data, node.size) = (first, count);
        }
        order
    }

    fn sort_key(&self, at: u32) -> Option<(u64, &[u8])> {
        self.links.get(at as usize).map(|l| (l.hash.0, self.name_of(l)))
    }

    fn children_by_parent(&self) -> Children {
        let mut starts = vec![0u32; self.nodes.len() + 1];
        for link in &self.links {
            if let Some(count) = starts.get_mut(link.parent.0 as usize + 1) {
                *count += 1;
            }
        }
        let mut sum = 0;
        for start in &mut starts {
            sum += *start;
            *start = sum;
        }
        let mut filled = starts.clone();
        let mut sorted = vec![0u32; self.links.len()];
        for (at, link) in self.links.iter().enumerate() {
            if let Some(place) = filled.get_mut(link.parent.0 as usize) {
                if let Some(slot) = sorted.get_mut(*place as usize) {
                    *slot = at as u32;
                }
                *place += 1;
            }
        }
        Children { starts, sorted }
    }

    /// The objects that records in `order` refer to, sorted, each once.
    fn used_objects(&self, order: &Order) -> Vec<ObjectRef> {
        let used = order.records.iter().map(|n| self.node(NodeId(*n))).filter(|n| n.body == BodyKind::Object);
        let mut objects: Vec<_> = used.filter_map(|n| object_of(n, &self.objects)).collect();
        objects.sort_unstable_by_key(|o| o.digest);
        objects.dedup_by_key(|o| o.digest);
        objects
    }
}

/// The links of each directory together.
struct Children {
    starts: Vec<u32>,
    sorted: Vec<u32>,
}

impl Children {
    fn range(&mut self, dir: NodeId) -> &mut [u32] {
        let at = |number: usize| self.starts.get(number).map_or(0, |n| *n as usize);
        let (from, to) = (at(dir.0 as usize), at(dir.0 as usize + 1));
        self.sorted.get_mut(from..to).unwrap_or_default()
    }
}

fn object_of(node: &Node, told: &[(Digest, u64)]) -> Option<ObjectRef> {
    told.get(usize::try_from(node.data).ok()?)
        .map(|(digest, size)| ObjectRef { digest: digest.0, size: (*size).into() })
}

fn record(node: &Node, objects: &[ObjectRef], told: &[(Digest, u64)]) -> Record {
    let data = match node.body {
        BodyKind::Object => object_of(node, told)
            .and_then(|o| objects.binary_search_by_key(&o.digest, |x| x.digest).ok())
            .map_or(u64::MAX, |number| number as u64),
        BodyKind::None | BodyKind::Inline | BodyKind::Range => node.data,
    };
    Record {
        mode: node.mode.into(),
        flags: node.flags,
        body: node.body as u8,
        uid: node.uid.into(),
        gid: node.gid.into(),
        nlink: node.refs.into(),
        mtime_secs: node.mtime.secs.into(),
        mtime_nanos: node.mtime.nanos.into(),
        check: node.check.into(),
        size: node.size.into(),
        data: data.into(),
        xattrs_at: node.xattrs_at.into(),
        xattrs_len: node.xattrs_len.into(),
        reserved: 0.into(),
    }
}

/// A stand-in for writers that were taken apart.
fn null() -> io::Result<File> {
    File::options().write(true).open("/dev/null")
}

/// Appends sections to a file and sums them up.
struct Sections {
    out: BufWriter<File>,
    crc: crc32fast::Hasher,
    start: u64,
    at: u64,
}

impl Sections {
    fn new(mut file: File, start: u64) -> io::Result<Self> {
        file.seek(SeekFrom::Start(start))?;
        let out = BufWriter::with_capacity(1 << 17, file);
        Ok(Sections { out, crc: crc32fast::Hasher::new(), start, at: start })
    }

    /// Bytes since the section began.
    fn position(&self) -> u64 {
        self.at - self.start
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.crc.update(bytes);
        self.at += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    fn copy(&mut self, mut file: File) -> io::Result<()> {
        file.seek(SeekFrom::Start(0))?;
        let mut buf = vec![0; 1 << 16];
        loop {
            match file.read(&mut buf)? {
                0 => return Ok(()),
                count => self.write(buf.get(..count).unwrap_or_default())?,
            }
        }
    }

    fn end(&mut self) -> Section {
        let section = Section { offset: self.start.into(), len: self.position().into() };
        self.start = self.at;
        section
    }

    fn crc(&self) -> u32 {
        self.crc.clone().finalize()
    }

    fn finish(self, header: &[u8]) -> io::Result<File> {
        let mut file = self.out.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.seek(SeekFrom::Start(0))?;
        file.write_all(header)?;
        Ok(file)
    }
}
