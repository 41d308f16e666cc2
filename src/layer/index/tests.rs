// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tars with every difficult case, read into indexes.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use tar::{EntryType, Header};

use super::read::Content;
use super::*;
use crate::layer::contract;
use crate::layer::image::{ImageLayer, Objects};
use crate::layer::{Body, Child, Entry, Layer};
use crate::model::sync::lock;
use crate::model::{Attr, Digest, FsError, Kind, Name, Time};
use crate::oci::tar::{Stream, TarReader};

/// Objects in memory.
#[derive(Debug, Default)]
struct Memory(Mutex<BTreeMap<Digest, Vec<u8>>>);

impl Objects for Memory {
    fn open(&self, digest: &Digest) -> Result<OwnedFd, FsError> {
        let bytes = lock(&self.0).get(digest).cloned().ok_or(FsError::NotFound)?;
        let mut file = tempfile::tempfile()?;
        std::io::Write::write_all(&mut file, &bytes)?;
        Ok(file.into())
    }
}

struct MemorySink<'a> {
    objects: &'a Memory,
    current: Vec<u8>,
    node: Option<NodeId>,
    done: Vec<(NodeId, Digest)>,
}

impl BodySink for MemorySink<'_> {
    fn begin(&mut self, node: NodeId, _size: u64) -> std::io::Result<()> {
        self.node = Some(node);
        self.current.clear();
        Ok(())
    }
    fn data(&mut self, bytes: Vec<u8>) -> std::io::Result<()> {
        self.current.extend_from_slice(&bytes);
        Ok(())
    }
    fn hole(&mut self, len: u64) -> std::io::Result<()> {
        self.current.resize(self.current.len() + len as usize, 0);
        Ok(())
    }
    fn end(&mut self) -> std::io::Result<()> {
        let digest = Digest::of(&self.current);
        lock(&self.objects.0).insert(digest, std::mem::take(&mut self.current));
        self.done.push((self.node.take().unwrap(), digest));
        Ok(())
    }
}

fn index_file(tar: &[u8], limits: Limits, objects: &Memory) -> Result<File, FeedError> {
    let dir = tempfile::tempdir().unwrap();
    let budget = Budget::new(limits);
    let mut builder = Builder::new(dir.path(), &budget)?;
    let mut reader = TarReader::new(Stream(tar), 1 << 20);
    let mut sink = MemorySink { objects, current: Vec::new(), node: None, done: Vec::new() };
    feed(&mut reader, &mut builder, &mut sink)?;
    for (node, digest) in sink.done {
        builder.set_object(node, digest);
    }
    Ok(builder.finish(Digest::of(tar), tar.len() as u64)?.file)
}

fn layer_with(tar: &[u8], limits: Limits) -> Result<ImageLayer, FeedError> {
    let objects = Arc::new(Memory::default());
    let file = index_file(tar, limits, &objects)?;
    Ok(ImageLayer::open(&file, "test".to_owned(), objects).unwrap())
}

fn layer(tar: &[u8]) -> ImageLayer {
    layer_with(tar, Limits::default()).unwrap()
}

fn refusal(tar: &[u8]) -> String {
    layer_with(tar, Limits::default()).expect_err("must be refused").to_string()
}

/// Writes tars, also impossible ones.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn header(kind: EntryType, size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1000);
        header
    }

    /// Any member, its path and link written raw.
    fn raw(
        mut self,
        path: &[u8],
        kind: EntryType,
        link: &[u8],
        content: &[u8],
        edit: impl FnOnce(&mut Header),
    ) -> Self {
        for (bytes, long) in [(path, EntryType::GNULongName), (link, EntryType::GNULongLink)] {
            if bytes.len() > 100 {
                let mut header = Self::header(long, bytes.len() as u64);
                header.set_cksum();
                self.push(&header, bytes);
            }
        }
        let mut header = Self::header(kind, content.len() as u64);
        let old = header.as_old_mut();
        old.name[..path.len().min(100)].copy_from_slice(&path[..path.len().min(100)]);
        old.linkname[..link.len().min(100)].copy_from_slice(&link[..link.len().min(100)]);
        edit(&mut header);
        header.set_cksum();
        self.push(&header, content);
        self
    }

    fn push(&mut self, header: &Header, content: &[u8]) {
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
    }

    fn file(self, path: &str, content: &str) -> Self {
        self.raw(path.as_bytes(), EntryType::Regular, b"", content.as_bytes(), |_| ())
    }

    fn dir(self, path: &str, mode: u32) -> Self {
        self.raw(path.as_bytes(), EntryType::Directory, b"", b"", |h| h.set_mode(mode))
    }

    fn link(self, path: &str, kind: EntryType, target: &str) -> Self {
        self.raw(path.as_bytes(), kind, target.as_bytes(), b"", |_| ())
    }

    fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_pax_extensions(records.iter().copied()).unwrap();
        let bytes = builder.into_inner().unwrap();
        self.0.extend_from_slice(&bytes[..bytes.len() - 1024]);
        self
    }

    fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

fn tar() -> Tar {
    Tar::default()
}

fn look(layer: &ImageLayer, path: &str) -> Child {
    look_raw(layer, path.as_bytes())
}

fn look_raw(layer: &ImageLayer, path: &[u8]) -> Child {
    let mut at = layer.root().unwrap();
    let mut result = Child::Found(at.clone());
    for part in path.split(|b| *b == b'/').filter(|p| !p.is_empty()) {
        result = layer.child(&at.entry, Name::new(part).unwrap()).unwrap();
        match &result {
            Child::Found(found) => at = found.clone(),
            _ => return result,
        }
    }
    result
}

fn entry(layer: &ImageLayer, path: &str) -> Entry {
    match look(layer, path) {
        Child::Found(found) => found.entry,
        other => panic!("{path}: {other:?}"),
    }
}

fn attr(layer: &ImageLayer, path: &str) -> Attr {
    layer.attr(&entry(layer, path)).unwrap()
}

fn content(layer: &ImageLayer, path: &str) -> Vec<u8> {
    match layer.open(&entry(layer, path)).unwrap() {
        Body::Bytes(bytes) => bytes.to_vec(),
        Body::File(fd) => {
            let mut file = File::from(fd);
            let mut bytes = Vec::new();
            std::io::Seek::rewind(&mut file).unwrap();
            std::io::Read::read_to_end(&mut file, &mut bytes).unwrap();
            bytes
        }
    }
}

#[test]
fn the_contract_of_layers_holds() {
    let mut built = tar().file(".wh.gone", "").file("d/f", "hello").file("d/.wh..wh..opq", "");
    for number in 0..300 {
        built = built.file(&format!("many/{number}"), "");
    }
    contract::check(&layer(&built.link("l", EntryType::Symlink, "d/f").end()));
}

#[test]
fn the_last_of_several_members_wins() {
    let built = tar()
        .file("a", "one")
        .file("a", "two")
        .dir("d", 0o700)
        .file("d/x", "x")
        .dir("d/", 0o711)
        .file("was-dir/inside", "i")
        .file("was-dir", "file")
        .file("was-file", "f")
        .dir("was-file", 0o755)
        .file("was-file/in", "in");
    let layer = layer(&built.end());
    assert_eq!(content(&layer, "a"), b"two");
    assert_eq!((attr(&layer, "d").perm, content(&layer, "d/x")), (0o711, b"x".to_vec()));
    assert_eq!(content(&layer, "was-dir"), b"file");
    assert_eq!(content(&layer, "was-file/in"), b"in");
    // The file had hidden a lower directory; the directory after it does not bring it back.
    assert!(layer.is_opaque(&entry(&layer, "was-file")).unwrap());
    assert!(!layer.is_opaque(&entry(&layer, "d")).unwrap());
    assert_eq!(layer.stats().files, 6);
}

#[test]
fn missing_parents_are_implicit() {
    let built = tar().file("a/b/c", "x").dir("e", 0o700).file("./f/../x", "").end();
    assert!(refusal(&built).contains("\"./f/../x\" climbs"));
    let layer = layer(&tar().file("a/b/c", "x").dir("e", 0o700).file("t/y", "").dir("t", 0o1777).end());
    for (path, is_implicit, perm) in
        [("a", true, 0o755), ("a/b", true, 0o755), ("e", false, 0o700), ("t", false, 0o1777)]
    {
        assert_eq!(layer.is_implicit(&entry(&layer, path)).unwrap(), is_implicit, "{path}");
        assert_eq!(attr(&layer, path).perm, perm);
    }
    assert_eq!(attr(&layer, "a").mtime, Time::default());
    assert!(layer.is_implicit(&entry(&layer, "")).unwrap());
}

#[test]
fn the_root_has_attributes_too() {
    for root in ["./", "/", "."] {
        let layer = layer(&tar().dir(root, 0o751).end());
        assert_eq!(attr(&layer, "").perm, 0o751);
        assert!(!layer.is_implicit(&entry(&layer, "")).unwrap());
    }
    assert!(refusal(&tar().file("./", "x").end()).contains("root"));
}

#[test]
fn an_entry_wins_over_its_whiteout_in_either_order() {
    let built = tar()
        .file(".wh.gone", "")
        .file(".wh.a", "")
        .file("a", "a")
        .file("b", "b")
        .file(".wh.b", "")
        .file(".wh.c", "")
        .file("c/x", "")
        .dir("d", 0o755)
        .file(".wh.d", "")
        .file("e/.wh..wh..opq", "")
        .file("e/y", "")
        .file(".wh..wh.plnk/1", "")
        .file(".wh..wh.aufs", "");
    let layer = layer(&built.end());
    assert!(matches!(look(&layer, "gone"), Child::Whiteout));
    assert_eq!((content(&layer, "a"), content(&layer, "b")), (b"a".to_vec(), b"b".to_vec()));
    for opaque in ["c", "d", "e"] {
        assert!(layer.is_opaque(&entry(&layer, opaque)).unwrap(), "{opaque}");
    }
    assert!(matches!(look(&layer, ".wh..wh.plnk"), Child::Absent));
    assert_eq!(layer.stats().whiteouts, 4);
    assert!(refusal(&tar().file(".wh.a/b", "").end()).contains("below a whiteout"));
}

#[test]
fn hard_links_share_a_record() {
    let built = tar()
        .file("a", "content")
        .link("d/b", EntryType::Link, "./a")
        .link("c", EntryType::Link, "/d/b")
        .link("c", EntryType::Link, "c")
        .link("s", EntryType::Symlink, "target")
        .link("s2", EntryType::Link, "s")
        .file("a", "newer");
    let layer = layer(&built.end());
    assert_eq!((content(&layer, "a"), content(&layer, "c")), (b"newer".to_vec(), b"content".to_vec()));
    assert_eq!(attr(&layer, "c").ino, attr(&layer, "d/b").ino);
    assert_ne!(attr(&layer, "c").ino, attr(&layer, "a").ino);
    assert_eq!((attr(&layer, "a").nlink, attr(&layer, "c").nlink, attr(&layer, "s2").nlink), (1, 2, 2));
    for (target, what) in [
        ("../etc/passwd", "climbs"),
        ("none", "does not have before it"),
        ("d", "is a directory"),
        ("sym/x", "below a symlink"),
    ] {
        let built =
            tar().dir("d", 0o755).link("sym", EntryType::Symlink, "/etc").link("l", EntryType::Link, target).end();
        let text = refusal(&built);
        assert!(text.contains("\"l\"") && text.contains(what), "{text}");
    }
}

#[test]
fn paths_cannot_leave() {
    let layer = layer(&tar().file("/etc//./passwd", "x").end());
    assert_eq!(content(&layer, "etc/passwd"), b"x");
    for (built, what) in [
        (tar().file("../x", ""), "climbs"),
        (tar().file("a/../../x", ""), "climbs"),
        (tar().link("s", EntryType::Symlink, "/etc").file("s/x", ""), "lies below \"s\", which is a symlink"),
        (tar().link("a/s", EntryType::Symlink, "..").file("a/s/b/x", ""), "which is a symlink"),
        (tar().file("f", "").file("f/x", ""), "which is no directory"),
        (tar().link("s", EntryType::Symlink, ""), "target of 0 bytes"),
    ] {
        let text = refusal(&built.end());
        assert!(text.contains(what) && text.contains("the entry \""), "{text}");
    }
}

#[test]
fn odd_paths_do_not_confuse_the_parents() {
    let layer = layer(&tar().dir("a/b/.", 0o700).file("a/b/c", "1").file("a//b/d", "2").file("a/b/c/", "3").end());
    assert_eq!((content(&layer, "a/b/c"), content(&layer, "a/b/d")), (b"3".to_vec(), b"2".to_vec()));
    assert!(matches!(look(&layer, "a/c"), Child::Absent));
}

#[test]
fn special_files_and_all_metadata_are_data() {
    let device = |major, minor| {
        move |h: &mut Header| {
            h.set_device_major(major).unwrap();
            h.set_device_minor(minor).unwrap();
            h.set_mode(0o4755);
        }
    };
    let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let built = tar()
        .raw(b"null", EntryType::Char, b"", b"", device(1, 3))
        .raw(b"zero", EntryType::Char, b"", b"", device(0, 0))
        .raw(b"disk", EntryType::Block, b"", b"", device(259, 70_000))
        .raw(b"pipe", EntryType::Fifo, b"", b"", |_| ())
        .pax(&[
            ("mtime", b"-1.25"),
            ("uid", b"4000000000"),
            ("SCHILY.xattr.security.capability", capability),
            ("SCHILY.xattr.user.empty", b""),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
        ])
        .file("caps", "x");
    let layer = layer(&built.end());
    assert_eq!(
        (attr(&layer, "null").kind, attr(&layer, "null").rdev, attr(&layer, "null").perm),
        (Kind::Char, 0x103, 0o4755)
    );
    assert_eq!((attr(&layer, "zero").kind, attr(&layer, "zero").rdev), (Kind::Char, 0));
    assert_eq!(attr(&layer, "disk").rdev, crate::model::attr::make_rdev(259, 70_000));
    assert_eq!(attr(&layer, "pipe").kind, Kind::Fifo);
    let caps = entry(&layer, "caps");
    assert_eq!(attr(&layer, "caps").mtime, Time { secs: -2, nanos: 750_000_000 });
    assert_eq!(attr(&layer, "caps").uid, 4_000_000_000);
    assert_eq!(layer.xattr(&caps, b"security.capability").unwrap().unwrap(), capability);
    assert_eq!(layer.xattr(&caps, b"user.empty").unwrap().unwrap(), b"");
    assert_eq!(layer.xattr(&caps, b"user.overlay.opaque").unwrap(), None);
    assert_eq!(layer.xattr_names(&caps).unwrap().len(), 2);
    assert_eq!(layer.open(&entry(&layer, "pipe")).unwrap_err(), FsError::Invalid);
}

#[test]
fn names_of_all_bytes_and_255_of_them() {
    let long = [b'x'; 255];
    let deep = [&b"\xff\xfe/"[..], &long, b"/\x01 \xc3"].concat();
    let layer = layer(&tar().raw(&deep, EntryType::Regular, b"", b"c", |_| ()).end());
    assert!(matches!(look_raw(&layer, &deep), Child::Found(_)));
    let too_long = [b'x'; 256];
    let built = tar().raw(&too_long, EntryType::Regular, b"", b"", |_| ()).end();
    assert!(refusal(&built).contains("more than 255 bytes"));
}

#[test]
fn bodies_go_where_their_size_says() {
    let sizes = [0usize, 1, 4096, 4097, 300_000, 262_144];
    let mut built = tar();
    for size in sizes {
        let body: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
        built = built.raw(format!("f{size}").as_bytes(), EntryType::Regular, b"", &body, |_| ());
        built = built.raw(format!("g{size}").as_bytes(), EntryType::Regular, b"", &body, |_| ());
    }
    let layer = layer(&built.end());
    for size in sizes {
        let Entry::Record(number) = entry(&layer, &format!("f{size}")) else { panic!() };
        let record = *layer.index().record(number).unwrap();
        assert_eq!(matches!(layer.index().content(&record).unwrap(), Content::Inline(_)), size <= 4096);
        let body = content(&layer, &format!("g{size}"));
        assert!(body.iter().enumerate().all(|(i, b)| *b == (i % 251) as u8) && body.len() == size);
    }
    assert_eq!(layer.index().objects().count(), 3);
    assert_eq!(layer.stats().unpacked, 2 * sizes.iter().sum::<usize>() as u64);
}

#[test]
fn an_object_of_another_size_is_damage() {
    let body = vec![7u8; 10_000];
    let tar = tar().raw(b"f", EntryType::Regular, b"", &body, |_| ()).end();
    let objects = Arc::new(Memory::default());
    let file = index_file(&tar, Limits::default(), &objects).unwrap();
    let layer = ImageLayer::open(&file, "test".to_owned(), Arc::clone(&objects) as Arc<dyn Objects>).unwrap();
    let digest = Digest::of(&body);
    assert_eq!(layer.index().sized_objects().collect::<Vec<_>>(), [(digest, 10_000)]);
    assert_eq!(content(&layer, "f"), body);
    for size in [0, 10, 9_999, 10_001] {
        lock(&objects.0).insert(digest, vec![7u8; size]);
        match layer.open(&entry(&layer, "f")) {
            Err(FsError::Corrupt { layer, what }) => {
                assert!(layer == "test" && what.contains(&digest.to_string()), "{layer}: {what}");
            }
            other => panic!("{size}: {other:?}"),
        }
    }
    lock(&objects.0).clear();
    assert!(matches!(layer.open(&entry(&layer, "f")), Err(FsError::Corrupt { .. })));
}

#[test]
fn a_conflict_is_named_by_its_whole_path() {
    let objects = Memory::default();
    let index = |tar: Tar| Index::open(&index_file(&tar.end(), Limits::default(), &objects).unwrap()).unwrap();
    let below = ["a/b/c/x", "a/b/d/x", "a/e/f/x", "g/h/x"].iter().fold(tar(), |tar, path| tar.file(path, ""));
    let upper = ["a/b/c/y", "a/b/d/y", "a/e/f/y", "g/h/y"];
    for link in ["a/b/c", "a/b/d", "a/e/f", "g/h", "a", "g"] {
        let upper = index(upper.iter().fold(tar(), |tar, path| tar.file(path, "")));
        let plain = index(tar().link(link, EntryType::Symlink, "/"));
        let (number, what) = stack::find_conflict(&[&plain, &upper]).unwrap().unwrap();
        assert_eq!((number, what.contains(&format!("\"/{link}\"")) && what.contains("a symlink")), (1, true), "{what}");
    }
    let (below, upper) = (index(below), index(upper.iter().fold(tar(), |tar, path| tar.file(path, ""))));
    assert_eq!(stack::find_conflict(&[&below, &upper]).unwrap(), None);
}

/// The highest and the present resident memory of this process, in bytes.
fn memory() -> (u64, u64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let field = |name: &str| -> u64 {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    };
    (field("VmHWM:"), field("VmRSS:"))
}

#[test]
fn comparing_layers_takes_little_memory_however_deep_they_are() {
    const ME: &str = "layer::index::tests::comparing_layers_takes_little_memory_however_deep_they_are";
    // Memory is the process's: in one of its own no other test is counted.
    if std::env::var_os("MLFS_TEST_ALONE").is_none() {
        let mut alone = std::process::Command::new(std::env::current_exe().unwrap());
        let outcome = alone.args(["--exact", ME]).env("MLFS_TEST_ALONE", "1").output().unwrap();
        let said = String::from_utf8_lossy(&outcome.stdout).into_owned();
        assert!(outcome.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    // 3000 directories below a path of 20,000 bytes: 60 MB, if each had its path.
    let deep = vec!["d".repeat(199); 100].join("/");
    let tar = (0..3000).fold(tar(), |tar, number| tar.dir(&format!("{deep}/{number}/"), 0o755)).end();
    let index = Index::open(&index_file(&tar, Limits::default(), &Memory::default()).unwrap()).unwrap();
    drop(tar);
    assert!(index.has_implicit().unwrap());
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let (_, before) = memory();
    assert_eq!(stack::find_conflict(&[&index, &index]).unwrap(), None);
    let (highest, _) = memory();
    assert!(highest - before < 16 << 20, "{highest} after {before}");
}

#[test]
fn sparse_files_are_read_with_their_holes() {
    for size in [3000u64, 500_000] {
        let built = tar()
            .pax(&[
                ("GNU.sparse.size", size.to_string().as_bytes()),
                ("GNU.sparse.map", b"1000,4"),
                ("GNU.sparse.name", b"s"),
            ])
            .file("GNUSparseFile.1/s", "data")
            .file("next", "n");
        let layer = layer(&built.end());
        let mut expected = vec![0; size as usize];
        expected[1000..1004].copy_from_slice(b"data");
        assert!(content(&layer, "s") == expected, "{size}");
        assert_eq!(content(&layer, "next"), b"n");
        assert!(matches!(look(&layer, "GNUSparseFile.1"), Child::Absent));
    }
}

#[test]
fn every_limit_refuses_and_names_its_flag() {
    let narrow = |edit: fn(&mut Limits)| {
        let mut limits = Limits::default();
        edit(&mut limits);
        limits
    };
    let cases: [(&str, Limits, Limits, Tar); 5] = [
        (
            "--max-entries",
            narrow(|l| l.max_entries = 2),
            narrow(|l| l.max_entries = 3),
            tar().file("a/b", "").file("c", ""),
        ),
        ("--max-depth", narrow(|l| l.max_depth = 2), narrow(|l| l.max_depth = 3), tar().file("a/b/c", "")),
        ("--max-name", narrow(|l| l.max_name = 3), narrow(|l| l.max_name = 4), tar().file("abcd", "")),
        (
            "--max-xattr-bytes",
            narrow(|l| l.max_xattr_bytes = 7),
            narrow(|l| l.max_xattr_bytes = 8),
            tar().pax(&[("SCHILY.xattr.user.a", b"xx")]).file("a", ""),
        ),
        (
            "--max-unpacked",
            narrow(|l| l.max_unpacked = 4),
            narrow(|l| l.max_unpacked = 5),
            tar().file("a", "abc").file("b", "de"),
        ),
    ];
    for (flag, refused, allowed, built) in cases {
        let bytes = built.end();
        let text = layer_with(&bytes, refused).expect_err(flag).to_string();
        assert!(text.contains(flag), "{text}");
        assert!(layer_with(&bytes, allowed).is_ok(), "{flag}");
    }
}

#[test]
fn gigantic_declared_sizes_are_refused_at_once() {
    let huge = |h: &mut Header| {
        h.as_gnu_mut().unwrap().size.copy_from_slice(&[0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
    };
    let built = tar().raw(b"huge", EntryType::Regular, b"", b"", huge).end();
    assert!(refusal(&built).contains("--max-unpacked"));
    let built =
        tar().pax(&[("GNU.sparse.size", b"9000000000000000000"), ("GNU.sparse.map", b"0,0")]).file("s", "").end();
    assert!(refusal(&built).contains("--max-unpacked"));
    let built = tar().raw(b"big", EntryType::Regular, b"", b"", |h| h.set_size(1 << 36)).end();
    assert!(refusal(&built).contains("cut short"));
}

/// Reads all there is of an index; everything must answer.
fn walk(index: &Index) -> Result<usize, IndexError> {
    let mut count = 0;
    let mut stack = vec![0];
    while let Some(number) = stack.pop() {
        count += 1;
        let record = index.record(number)?;
        index.xattrs(record)?;
        match Index::kind(record)? {
            Kind::Dir => {
                for line in index.list(record, crate::model::Cookie::START)? {
                    let (name, _, slot) = line?;
                    assert_eq!(index.find(record, name)?, Some(slot));
                    if let read::Slot::Record(child) = slot {
                        stack.push(child);
                    }
                }
            }
            Kind::File => drop(index.content(record)?),
            Kind::Symlink => drop(index.target(record)?),
            _ => {}
        }
    }
    Ok(count)
}

fn sample() -> Vec<u8> {
    let built = tar()
        .dir("d", 0o755)
        .file("d/a", "content")
        .raw(b"d/big", EntryType::Regular, b"", &[7; 5000], |_| ())
        .link("d/h", EntryType::Link, "d/a")
        .link("s", EntryType::Symlink, "d/a")
        .file("d/.wh.w", "")
        .pax(&[("SCHILY.xattr.user.x", b"1"), ("SCHILY.xattr.user.y", b"22")])
        .file("x", "");
    let mut bytes = Vec::new();
    let mut file = index_file(&built.end(), Limits::default(), &Memory::default()).unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    std::io::Read::read_to_end(&mut file, &mut bytes).unwrap();
    bytes
}

/// Makes the checksums fit again, so that corruption reaches the checks behind them.
fn sign(bytes: &mut [u8]) {
    use zerocopy::{FromBytes, IntoBytes};
    let Ok((mut header, _)) = format::Header::read_from_prefix(bytes) else { return };
    let mut crc = crc32fast::Hasher::new();
    for section in [&header.heap, &header.names, &header.records, &header.entries, &header.objects] {
        let (from, len) = (section.offset.get() as usize, section.len.get() as usize);
        crc.update(bytes.get(from..from.saturating_add(len)).unwrap_or_default());
    }
    header.sections_crc = crc.finalize().into();
    header.header_crc = 0.into();
    header.header_crc = crc32fast::hash(header.as_bytes()).into();
    bytes[..size_of::<format::Header>()].copy_from_slice(header.as_bytes());
}

#[test]
fn every_cut_and_every_flipped_byte_is_noticed() {
    let whole = sample();
    assert_eq!(walk(&Index::from_bytes(whole.clone()).unwrap()).unwrap(), 7);
    for cut in (0..whole.len()).step_by(7).chain([whole.len() - 1]) {
        assert!(Index::from_bytes(whole[..cut].to_vec()).is_err(), "{cut}");
    }
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x11;
        match Index::from_bytes(bytes) {
            // The bodies have checksums of their own; between header and bodies there is nothing.
            Ok(index) => assert!((256..4096).contains(&at) || walk(&index).is_err(), "{at}"),
            Err(_) => assert!(!(256..4096).contains(&at), "{at}"),
        }
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 512, ..Default::default() })]

    #[test]
    fn arbitrary_bytes_are_no_layer_or_one(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..3000)) {
        drop(layer_with(&bytes, Limits::default()));
    }

    #[test]
    fn signed_corruption_is_an_error_or_reads_consistently(
        changes in proptest::collection::vec((0usize..1 << 20, proptest::num::u8::ANY), 1..4),
        cut in 0usize..100,
    ) {
        let mut bytes = sample();
        for (at, byte) in changes {
            // Mostly in the header's tables and in the sections.
            let at = if at % 3 == 0 { at % 256 } else { 4096 + at % (bytes.len() - 4096) };
            bytes[at] = byte;
        }
        if cut < 10 {
            bytes.truncate(bytes.len() - cut);
        }
        sign(&mut bytes);
        if let Ok(index) = Index::from_bytes(bytes) {
            drop(walk(&index));
        }
    }

    #[test]
    fn random_members_make_valid_indexes(
        members in proptest::collection::vec((0usize..8, 0usize..8, 0usize..7, 0usize..20), 0..40),
    ) {
        let names = ["a", "b", ".wh.a", ".wh.b", ".wh..wh..opq", "c", ".", "a/b"];
        let mut built = tar();
        for (first, second, kind, size) in members {
            let path = format!("{}/{}", names[first], names[second]);
            let kind = [
                EntryType::Regular, EntryType::Directory, EntryType::Symlink, EntryType::Link,
                EntryType::Char, EntryType::Fifo, EntryType::Regular,
            ][kind];
            let body = vec![1; if kind == EntryType::Regular { size * 300 } else { 0 }];
            built = built.raw(path.as_bytes(), kind, b"a/b", &body, |_| ());
            if let Ok(layer) = layer_with(&Tar(built.0.clone()).end(), Limits::default()) {
                walk(layer.index()).unwrap();
            } else {
                break;
            }
        }
    }
}
