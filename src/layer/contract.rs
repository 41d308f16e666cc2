// SPDX-License-Identifier: MIT OR Apache-2.0
//! One suite for all kinds of layers: each kind builds the same small tree and is held to the contract of [`Layer`].

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use super::dir::{DirLayer, HostForm};
use super::mem::MemLayer;
use super::*;
use crate::model::NameBuf;

/// The tree of the suite: `d/` opaque with `f` = "hello", `l` -> "d/f", 300 files `many/N`, `gone` whited out.
pub(crate) fn check(layer: &dyn Layer) {
    let name = |text: &'static str| Name::new(text.as_bytes()).unwrap();
    let root = layer.root().unwrap();
    assert_eq!(root.attr.kind, Kind::Dir);
    assert!(!layer.is_opaque(&root.entry).unwrap());
    let found = |dir: &Entry, text: &'static str| match layer.child(dir, name(text)).unwrap() {
        Child::Found(found) => found,
        other => panic!("{text}: {other:?}"),
    };
    assert!(matches!(layer.child(&root.entry, name("gone")).unwrap(), Child::Whiteout));
    assert!(matches!(layer.child(&root.entry, name("absent")).unwrap(), Child::Absent));
    let d = found(&root.entry, "d");
    assert!(layer.is_opaque(&d.entry).unwrap());
    let f = found(&d.entry, "f");
    assert_eq!((f.attr.kind, f.attr.size), (Kind::File, 5));
    assert_eq!(layer.attr(&f.entry).unwrap().size, 5);
    assert_eq!(layer.child(&f.entry, name("x")).unwrap_err(), FsError::NotDir);
    match layer.open(&f.entry).unwrap() {
        Body::Bytes(bytes) => assert_eq!(&*bytes, b"hello"),
        Body::File(fd) => {
            let mut buffer = [0; 9];
            assert_eq!(crate::sys::data::read_at(&fd, &mut buffer, 0).unwrap(), 5);
        }
    }
    let l = found(&root.entry, "l");
    assert_eq!(layer.read_link(&l.entry).unwrap(), b"d/f");
    assert_eq!(layer.xattr(&f.entry, b"user.none").unwrap(), None);
    assert!(layer.xattr_names(&d.entry).unwrap().is_empty(), "marks are hidden");
    check_listing(layer, &found(&root.entry, "many").entry);
    let mut seen = Vec::new();
    layer
        .list(&root.entry, Cookie::START, &mut |listed| {
            seen.push((listed.name.to_buf(), listed.what));
            ControlFlow::Continue(())
        })
        .unwrap();
    assert!(seen.contains(&(name("gone").to_buf(), ListedKind::Whiteout)));
    assert!(seen.contains(&(name("d").to_buf(), ListedKind::Entry(Kind::Dir))));
    assert_eq!(seen.len(), 4);
}

/// A listing continued after each cookie shows every name once, in order.
fn check_listing(layer: &dyn Layer, dir: &Entry) {
    let mut names = BTreeSet::new();
    let mut after = Cookie::START;
    loop {
        let mut batch: Vec<(NameBuf, Cookie)> = Vec::new();
        layer
            .list(dir, after, &mut |listed| {
                batch.push((listed.name.to_buf(), listed.cookie));
                if batch.len() == 7 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
            .unwrap();
        let Some((_, last)) = batch.last() else { break };
        assert!(*last > after);
        after = *last;
        for (name, _) in batch {
            assert!(names.insert(name), "a name came twice");
        }
    }
    assert_eq!(names.len(), 300);
}

#[test]
fn a_layer_in_memory_keeps_the_contract() {
    let mut layer = MemLayer::default();
    layer.opaque_dir("d").unwrap().file("d/f", b"hello").unwrap().link("l", "d/f").unwrap();
    layer.whiteout("gone").unwrap();
    for number in 0..300 {
        layer.file(&format!("many/{number}"), b"").unwrap();
    }
    check(&layer);
}

#[test]
fn a_directory_of_the_host_keeps_the_contract() {
    let temp = tempfile::tempdir().unwrap();
    let path = |name: &str| temp.path().join(name);
    std::fs::create_dir_all(path("many")).unwrap();
    std::fs::create_dir(path("d")).unwrap();
    std::fs::write(path("d/f"), "hello").unwrap();
    std::fs::write(path("d/.wh..wh..opq"), "").unwrap();
    std::fs::write(path(".wh.gone"), "").unwrap();
    std::os::unix::fs::symlink("d/f", path("l")).unwrap();
    for number in 0..300 {
        std::fs::write(path(&format!("many/{number}")), "").unwrap();
    }
    let fd = std::fs::File::open(temp.path()).unwrap().into();
    let form = HostForm { has_oci_names: true, ..HostForm::default() };
    check(&DirLayer::open(fd, "host".into(), form).unwrap());
}
