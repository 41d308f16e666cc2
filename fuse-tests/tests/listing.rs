// SPDX-License-Identifier: MIT OR Apache-2.0
//! Listings by position: of very large directories while they change, and continued after anything, a restart of the
//! mount's process included.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use fuse_tests::LayerSpec;
use fuse_tests::layers::{Convention, What};
use fuse_tests::world::{World, world, write};
use rustix::fs::{FileType, RawDir, SeekFrom, seek};

/// One line as the kernel tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    name: String,
    ino: u64,
    kind: FileType,
    /// The listing goes on after it.
    next: u64,
}

// The next lines of an open directory, at most as many as one system call of this buffer gives; empty at the end.
fn read_some(dir: &File, size: usize) -> Vec<Line> {
    let mut buffer = Vec::with_capacity(size);
    let mut raw = RawDir::new(dir, buffer.spare_capacity_mut());
    let mut lines = Vec::new();
    while let Some(entry) = raw.next() {
        let entry = entry.expect("getdents");
        let name = entry.file_name().to_string_lossy().into_owned();
        lines.push(Line { name, ino: entry.ino(), kind: entry.file_type(), next: entry.next_entry_cookie() });
        if raw.is_buffer_empty() {
            break;
        }
    }
    lines
}

fn read_all(dir: &File) -> Vec<Line> {
    let mut lines = Vec::new();
    loop {
        let some = read_some(dir, 32 * 1024);
        if some.is_empty() {
            return lines;
        }
        lines.extend(some);
    }
}

fn names(lines: &[Line]) -> Vec<&str> {
    lines.iter().map(|line| line.name.as_str()).filter(|name| *name != "." && *name != "..").collect()
}

// Files in a directory of the host, without what a declared layer would cost.
fn many_files(dir: &Path, names: impl Iterator<Item = String>) {
    for name in names {
        File::create(dir.join(name)).expect("create");
    }
}

// 200,000 names of two layers, whiteouts between them; while they are listed others are made, removed and renamed.
#[test]
fn two_hundred_thousand_entries_while_they_change() {
    world(|w| {
        let (bottom, top) = (w.sandbox.dir("changing/bottom/d"), w.sandbox.dir("changing/top/d"));
        let stays = |number: usize| format!("stays-{number:06}");
        many_files(&bottom, (0..150_000).map(stays));
        many_files(&bottom, (0..2_000).map(|number| format!("goes-{number}")));
        many_files(&bottom, (0..500).map(|number| format!("hidden-{number}")));
        many_files(&top, (100_000..200_000).map(stays));
        many_files(&top, (0..500).map(|number| format!(".wh.hidden-{number}")));
        let path = |dir: &Path| dir.parent().expect("layer").display().to_string();
        let root = w.mount("box", &["--layer", &path(&bottom), "--layer", &path(&top)]);
        let dir = root.join("d");
        let is_done = AtomicBool::new(false);
        let (lines, changes) = std::thread::scope(|scope| {
            let changer = scope.spawn(|| {
                let mut changes = 0;
                for number in 0..2_000 {
                    let at = |what: &str| dir.join(format!("{what}-{number}"));
                    File::create(at("made")).expect("create");
                    std::fs::remove_file(at("goes")).expect("unlink");
                    std::fs::rename(at("made"), at("moved")).expect("rename");
                    changes += 1;
                    if is_done.load(Ordering::Relaxed) {
                        break;
                    }
                }
                changes
            });
            let lines = read_all(&File::open(&dir).expect("open"));
            is_done.store(true, Ordering::Relaxed);
            (lines, changer.join().expect("changer"))
        });
        assert!(changes > 10, "the directory changed while it was listed: {changes}");
        let mut seen = BTreeSet::new();
        for name in names(&lines) {
            assert!(seen.insert(name), "{name} comes twice");
            assert!(!name.starts_with("hidden-"), "{name} is back");
        }
        let missing = (0..200_000).map(stays).find(|name| !seen.contains(name.as_str()));
        assert_eq!(missing, None, "missed");
        w.umount("box");
    });
}

fn declared() -> Vec<LayerSpec> {
    let mut bottom = LayerSpec::new();
    for number in 0..700 {
        bottom.file(format!("d/file-{number}"), "f");
    }
    bottom.symlink("d/link", "file-1");
    bottom.file("d/dir/x", "x");
    bottom.node("d/pipe", What::Fifo);
    bottom.file("d/gone", "g");
    bottom.file("d/kind", "a file below");
    let mut top = LayerSpec::new();
    for number in 600..900 {
        top.file(format!("d/file-{number}"), "ff");
    }
    top.whiteout("d/gone");
    top.file("d/kind/x", "a directory above");
    top.file("d/dir/y", "y");
    vec![bottom, top]
}

// The container on each kind of branch: layers of the host, an image, a volume.
fn on_each_kind(w: &World) -> Vec<(&'static str, PathBuf)> {
    let layers = declared();
    w.load("app", &layers);
    let dirs: Vec<String> = layers
        .iter()
        .enumerate()
        .map(|(number, layer)| {
            let dir = w.sandbox.dir(format!("changing/{number}"));
            layer.write_dir(&dir, if number == 0 { Convention::Trusted } else { Convention::Aufs });
            dir.display().to_string()
        })
        .collect();
    let host = w.mount("host", &["--layer", &dirs[0], "--layer", &dirs[1]]);
    let image = w.mount("image", &["-v", "vol:/vol", "app"]);
    std::fs::create_dir(image.join("vol/d")).expect("mkdir");
    for number in 0..900 {
        write(image.join(format!("vol/d/file-{number}")), "f");
    }
    write(image.join("vol/d/gone"), "g");
    std::fs::remove_file(image.join("vol/d/gone")).expect("unlink");
    vec![("host", host.join("d")), ("image", image.join("d")), ("image", image.join("vol/d"))]
}

fn start(w: &World, name: &str) {
    w.mlfs().ok(["start", name, &w.target(name).display().to_string()]);
}

// telldir and seekdir: a position means the same in another handle, after changes, and after a restart.
#[test]
fn positions_outlive_handles_changes_and_restarts() {
    world(|w| {
        for (container, dir) in on_each_kind(w) {
            write(dir.join("made"), "m");
            write(dir.join("file-650"), "changed");
            std::fs::remove_file(dir.join("file-10")).expect("unlink");
            let open = File::open(&dir).expect("open");
            let all = read_all(&open);
            let order = names(&all);
            assert!(order.len() >= 900 && !order.contains(&"gone") && !order.contains(&"file-10"), "{}", order.len());
            let at = |part: usize| &all[all.len() * part / 4];
            // In the same handle, backwards, with small buffers.
            seek(&open, SeekFrom::Start(at(1).next)).expect("seek");
            let following = all.iter().position(|line| line == at(1)).expect("there") + 1;
            assert_eq!(read_some(&open, 700)[0].name, all[following].name);
            drop(open);
            w.umount(container);
            start(w, container);
            for part in 1..4 {
                let open = File::open(&dir).expect("open");
                seek(&open, SeekFrom::Start(at(part).next)).expect("seek");
                let rest = read_all(&open);
                let from = all.iter().position(|line| line == at(part)).expect("there") + 1;
                assert_eq!(names(&rest), names(&all[from..]), "{container}: the rest after a restart");
            }
            // After the entry of the position itself has gone, and others before and after it.
            let (gone, from) = (at(2).clone(), all.iter().position(|line| line == at(2)).expect("there") + 1);
            if gone.kind == FileType::RegularFile {
                std::fs::remove_file(dir.join(&gone.name)).expect("unlink");
            }
            std::fs::write(dir.join("made-later"), "m").expect("write");
            let open = File::open(&dir).expect("open");
            seek(&open, SeekFrom::Start(gone.next)).expect("seek");
            let rest = read_all(&open);
            let rest: Vec<&str> = names(&rest).into_iter().filter(|name| *name != "made-later").collect();
            assert_eq!(rest, names(&all[from..]), "{container}: the rest after its entry has gone");
            seek(&open, SeekFrom::Start(0)).expect("rewind");
            assert!(names(&read_all(&open)).contains(&"made-later"), "rewinddir sees what was made");
        }
        w.umount("host");
        w.umount("image");
    });
}

// What a listing says of an entry is what stat says, whether the kernel asks with attributes (small) or without.
#[test]
fn lines_tell_the_number_and_kind_of_their_entries() {
    world(|w| {
        for (container, dir) in on_each_kind(w) {
            std::os::unix::fs::symlink("x", dir.join("new-link")).expect("symlink");
            std::fs::create_dir(dir.join("new-dir")).expect("mkdir");
            fuse_tests::layers::make_node(&dir.join("new-pipe"), FileType::Fifo, 0, 0);
            write(dir.join("file-3"), "copied up");
            std::fs::rename(dir.join("file-4"), dir.join("renamed")).expect("rename");
            std::fs::hard_link(dir.join("file-5"), dir.join("linked")).expect("link");
            for when in ["live", "after a restart", "again"] {
                let open = File::open(&dir).expect("open");
                let lines: BTreeMap<String, Line> =
                    read_all(&open).into_iter().map(|line| (line.name.clone(), line)).collect();
                assert!(lines.len() > 900);
                for (name, line) in &lines {
                    let meta = dir.join(name).symlink_metadata().unwrap_or_else(|error| panic!("{name}: {error}"));
                    assert_eq!(line.kind, FileType::from_raw_mode(meta.mode()), "{container} {when}: kind of {name}");
                    // `..` tells the directory's own number here: nobody asks for the parent's.
                    if name != ".." {
                        assert_eq!(line.ino, meta.ino(), "{container} {when}: number of {name}");
                    }
                }
                drop(open);
                if when == "live" {
                    w.umount(container);
                    start(w, container);
                }
            }
        }
        w.umount("host");
        w.umount("image");
    });
}
