// SPDX-License-Identifier: MIT OR Apache-2.0
//! A whole life of containers, on every filesystem that a store and its uppers may lie on.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use fuse_tests::LayerSpec;
use fuse_tests::ground::Ground;
use fuse_tests::host::sh;
use fuse_tests::world::{World, list, read, world_on, write};

fn load(w: &World) {
    let mut bottom = LayerSpec::new();
    bottom.file("etc/conf", "below");
    bottom.file("etc/old", "old");
    bottom.file("etc/gone", "gone");
    bottom.file("tree/leaf", "leaf");
    bottom.file("tool", "tool").mode(0o644);
    let mut top = LayerSpec::new();
    top.file("etc/conf", "above");
    w.load("app", &[bottom, top]);
}

fn change(root: &Path) {
    write(root.join("etc/conf"), "changed");
    std::fs::rename(root.join("etc/old"), root.join("etc/new")).expect("rename a file");
    std::fs::remove_file(root.join("etc/gone")).expect("delete");
    std::fs::rename(root.join("tree"), root.join("moved")).expect("rename a directory");
    std::fs::set_permissions(root.join("tool"), std::fs::Permissions::from_mode(0o755)).expect("chmod");
    std::fs::create_dir(root.join("made")).expect("mkdir");
    write(root.join("made/file"), "made");
}

#[track_caller]
fn assert_changed(root: &Path) {
    assert_eq!(list(root.join("etc")), ["conf", "new"]);
    assert_eq!(read(root.join("etc/conf")), "changed");
    assert_eq!(read(root.join("etc/new")), "old");
    assert_eq!(read(root.join("moved/leaf")), "leaf");
    assert!(!root.join("tree").exists());
    assert_eq!(std::fs::metadata(root.join("tool")).expect("stat").mode() & 0o7777, 0o755);
    assert_eq!(read(root.join("tool")), "tool");
    assert_eq!(read(root.join("made/file")), "made");
}

const DIFF: &str = "A /data\nC /etc\nC /etc/conf\nD /etc/gone\nA /etc/new\nD /etc/old\nA /made\nA /made/file\nA /moved\nA /moved/leaf\n\
    A /shared\nC /tool\nD /tree";

fn life(w: &World) {
    load(w);
    let shared = w.sandbox.dir("shared");
    let bind = format!("{}:/shared", shared.display());
    let root = w.mount("box", &["--owner", "me", "-v", "data:/data", "-v", &bind, "app"]);
    change(&root);
    write(root.join("data/kept"), "kept");
    write(root.join("shared/seen"), "seen");
    assert_changed(&root);
    let before = w.mlfs().ok(["diff", "box"]);
    w.umount("box");
    assert_eq!(read(shared.join("seen")), "seen");
    w.mlfs().ok(["start", "box"]);
    assert_changed(&root);
    assert_eq!(read(root.join("data/kept")), "kept");
    assert_eq!(read(root.join("shared/seen")), "seen");
    assert_eq!(w.mlfs().ok(["diff", "box"]), before, "after another start");
    assert_eq!(before, DIFF);
    hand_on(w);
    end(w);
}

// Out of the container, by every way.
fn hand_on(w: &World) {
    let path = |name: &str| w.sandbox.path(name).display().to_string();
    w.unguard_store();
    w.mlfs().ok(["commit", "box", "made"]);
    w.guard_store();
    assert_changed(&w.mount("second", &["--owner", "me", "made"]));
    w.umount("second");
    w.mlfs().ok(["export", "box", "-o", &path("box.tar")]);
    let unpacked = w.sandbox.dir("unpacked");
    sh(&w.sandbox, &unpacked, "tar -xf ../box.tar --no-same-owner").ok();
    assert_changed(&unpacked);
    w.mlfs().ok(["cp", "box:/etc/conf", &path("out")]);
    assert_eq!(read(w.sandbox.path("out")), "changed");
    w.mlfs().ok(["cp", &w.sandbox.file("in", "put in").display().to_string(), "box:/etc/in"]);
    assert_eq!(read(w.target("box").join("etc/in")), "put in");
}

// Everything goes, and nothing of it is left.
fn end(w: &World) {
    w.umount("box");
    w.mlfs().ok(["fsck"]);
    for args in [&["rm", "box", "second"][..], &["volume", "rm", "data"]] {
        w.mlfs().ok(args);
    }
    w.unguard_store();
    w.mlfs().ok(["image", "rm", "app", "made"]);
    for listing in [&["ps", "-a"][..], &["volume", "ls"], &["image", "ls"]] {
        assert_eq!(w.mlfs().json(listing), Vec::<serde_json::Value>::new(), "{listing:?}");
    }
    w.mlfs().ok(["fsck"]);
    let mounts: Vec<PathBuf> = w.sandbox.mounts().into_iter().filter(|path| path != w.sandbox.root()).collect();
    assert_eq!(mounts, Vec::<PathBuf>::new());
    assert_eq!(w.sandbox.processes(), []);
}

#[test]
fn a_life_on_the_ordinary_filesystem() {
    world_on(Ground::Ordinary, life);
}

#[test]
fn a_life_on_tmpfs() {
    world_on(Ground::Tmpfs, life);
}

#[test]
fn a_life_on_overlayfs() {
    world_on(Ground::Overlayfs, life);
}

#[test]
fn a_life_on_btrfs() {
    world_on(Ground::Btrfs, life);
}

#[test]
fn a_life_on_xfs() {
    world_on(Ground::Xfs, life);
}

const LARGE: usize = 64 << 20;

// What a filesystem has given away, once it has written everything.
fn used(w: &World) -> u64 {
    let dir = std::fs::File::open(w.sandbox.root()).expect("open");
    rustix::fs::syncfs(&dir).expect("syncfs");
    let stat = rustix::fs::fstatvfs(&dir).expect("statvfs");
    (stat.f_blocks - stat.f_bfree) * stat.f_frsize
}

// 64 MiB that no filesystem makes smaller by itself.
fn large_layer(w: &World) -> PathBuf {
    let mut state = 1u64;
    let mut content = Vec::with_capacity(LARGE);
    while content.len() < LARGE {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        content.extend((state ^ (state >> 29)).to_le_bytes());
    }
    w.sandbox.file("lower/large/file", content);
    w.sandbox.path("lower/large")
}

fn append(path: &Path) {
    let mut file = OpenOptions::new().append(true).open(path).expect("open");
    file.write_all(b"end").and_then(|()| file.sync_all()).expect("append");
}

// Copying up takes no room for the content where the filesystem can share it, and the layer's file stays what it was.
fn copy_up_shares(w: &World) {
    let empty = used(w);
    let layer = large_layer(w);
    assert!(used(w) - empty >= LARGE as u64, "a written file takes room");
    let content = std::fs::read(layer.join("file")).expect("read");
    let mut spec = LayerSpec::new();
    spec.file("file", &content);
    w.load("large", &[spec]);
    let layer = layer.display().to_string();
    for (name, source) in [("dir", &["--layer", layer.as_str()][..]), ("image", &["large"])] {
        let root = w.mount(name, &[&["--owner", "me"], source].concat());
        let before = used(w);
        append(&root.join("file"));
        let taken = used(w).saturating_sub(before);
        assert!(taken < 8 << 20, "copy-up from a {name} took {taken} bytes");
        let copied = std::fs::read(root.join("file")).expect("read");
        assert!(copied[..LARGE] == content && &copied[LARGE..] == b"end", "the copy of a {name} differs");
        w.umount(name);
    }
    assert!(std::fs::read(w.sandbox.path("lower/large/file")).expect("read") == content, "the layer was changed");
}

#[test]
fn a_copy_up_shares_its_extents_on_btrfs() {
    world_on(Ground::Btrfs, copy_up_shares);
}

#[test]
fn a_copy_up_shares_its_extents_on_xfs() {
    world_on(Ground::Xfs, copy_up_shares);
}
