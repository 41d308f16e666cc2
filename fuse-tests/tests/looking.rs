// SPDX-License-Identifier: MIT OR Apache-2.0
//! Looking inside without mounting: `which`, `layers`, `ls`, `cat`.

use fuse_tests::world::{World, world, write};
use fuse_tests::{LayerSpec, Tree};

fn layers() -> Vec<LayerSpec> {
    let mut one = LayerSpec::new();
    one.file("etc/conf", "from layer 1");
    one.file("etc/gone", "gone").mode(0o600);
    one.file("data/big", vec![b'b'; 10_000]);
    one.symlink("etc/link", "conf");
    let mut two = LayerSpec::new();
    two.file("etc/conf", "from layer 2, longer").mode(0o640);
    two.whiteout("etc/gone");
    let mut three = LayerSpec::new();
    three.file("top", "t");
    three.opaque("data");
    three.file("data/new", "n");
    vec![one, two, three]
}

fn load(w: &World) {
    w.load("app", &layers());
}

#[test]
fn which_layer_provides_it() {
    world(|w| {
        load(w);
        for (path, layer) in [("/etc/conf", 2), ("/top", 3), ("/data/new", 3), ("/etc/link", 1)] {
            let said = w.mlfs().ok(["which", "app", path]);
            assert!(said.contains(&format!("layer {layer}")), "{path}: {said}");
        }
        let said = w.mlfs().ok(["which", "app", "/etc/conf"]);
        assert!(said.contains("layer 1"), "it tells what it hides: {said}");
        let deleted = w.mlfs().run(["which", "app", "/etc/gone"]);
        assert_eq!(deleted.code, 3, "{}", deleted.stderr);
        assert!(deleted.stdout.contains("layer 2"), "which layer deleted it: {}", deleted.stdout);
        let deleted = w.mlfs().run(["which", "app", "/data/big"]);
        assert_eq!(deleted.code, 3, "hidden by an opaque directory");
        assert!(deleted.stdout.contains("layer 3"), "{}", deleted.stdout);
        w.mlfs().fails(["which", "app", "/never/there"], 1, "/never/there");
        w.mlfs().fails(["which", "unknown", "/x"], 1, "unknown");
    });
}

#[test]
fn a_mountpoint_here_is_a_target_by_its_name() {
    world(|w| {
        load(w);
        let mnt = w.sandbox.dir("here");
        w.mlfs().ok(["mount", "--name", "box", "app", &mnt.display().to_string()]);
        // Commands run in the sandbox's folder.
        assert_eq!(w.mlfs().ok(["cat", "here", "/etc/conf"]), "from layer 2, longer");
        w.mlfs().ok(["image", "tag", "app", "here"]);
        assert!(w.mlfs().ok(["which", "here", "/etc/conf"]).contains("layer 2"), "an image comes first");
        w.mlfs().ok(["umount", "box"]);
        w.mlfs().fails(["cat", "nowhere", "/etc/conf"], 1, "no image nowhere in the store");
    });
}

#[test]
fn which_in_a_container() {
    world(|w| {
        load(w);
        let root = w.mount("box", &["-v", "vol:/vol", "app"]);
        write(root.join("etc/conf"), "from the upper");
        write(root.join("vol/f"), "f");
        std::fs::remove_file(root.join("top")).expect("unlink");
        let check = || {
            assert!(w.mlfs().ok(["which", "box", "/etc/conf"]).contains("upper"));
            assert!(w.mlfs().ok(["which", "box", "/vol/f"]).contains("vol"));
            assert!(w.mlfs().ok(["which", "box", "/data/new"]).contains("layer 3"));
            let deleted = w.mlfs().run(["which", "box", "/top"]);
            assert_eq!(deleted.code, 3);
            assert!(deleted.stdout.contains("upper"), "{}", deleted.stdout);
        };
        check();
        let target = w.target("box").display().to_string();
        assert!(w.mlfs().ok(["which", &target, "/etc/conf"]).contains("upper"), "by the mountpoint");
        w.umount("box");
        check();
    });
}

#[test]
fn layers_are_listed() {
    world(|w| {
        load(w);
        let text = w.mlfs().ok(["layers", "app"]);
        for number in 1..=3 {
            assert!(text.contains(&format!("fuse-tests layer {number}")), "the history's commands: {text}");
        }
        let listed = w.mlfs().json(["layers", "app"]);
        assert_eq!(listed.len(), 3);
        let all = listed.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert!(all[0].contains("sha256:"), "{all:?}");
    });
}

#[test]
fn ls_and_cat() {
    world(|w| {
        load(w);
        let listed = w.mlfs().ok(["ls", "app", "/etc"]);
        assert!(listed.contains("conf") && listed.contains("link") && !listed.contains("gone"), "{listed}");
        assert!(w.mlfs().ok(["ls", "app"]).contains("data"));
        let low = w.mlfs().ok(["ls", "app", "/etc", "--layer", "1"]);
        assert!(low.contains("gone"), "{low}");
        assert_eq!(w.mlfs().ok(["cat", "app", "/etc/conf"]), "from layer 2, longer");
        assert_eq!(w.mlfs().ok(["cat", "app", "/etc/conf", "--layer", "1"]), "from layer 1");
        assert_eq!(w.mlfs().ok(["cat", "app", "/etc/link"]), "from layer 2, longer", "links are followed inside");
        assert_eq!(w.mlfs().ok(["cat", "app", "/data/big", "--layer", "1"]).len(), 10_000);
        w.mlfs().fails(["cat", "app", "/etc/gone"], 1, "/etc/gone");
        w.mlfs().fails(["cat", "app", "/etc"], 1, "/etc");
        w.mlfs().fails(["ls", "app", "/none"], 1, "/none");
        w.mlfs().fails(["ls", "app", "/", "--layer", "9"], 1, "9");
    });
}

#[test]
fn every_kind_of_target() {
    world(|w| {
        load(w);
        let root = w.mount("box", &["app"]);
        write(root.join("mine"), "m");
        assert_eq!(w.mlfs().ok(["cat", "box", "/mine"]), "m");
        assert!(w.mlfs().ok(["ls", "box", "/"]).contains("mine"));
        let target = root.display().to_string();
        assert_eq!(w.mlfs().ok(["cat", &target, "/mine"]), "m");
        assert!(w.mlfs().ok(["layers", "box"]).contains("fuse-tests layer 1"));
    });
}

#[test]
fn looking_changes_nothing() {
    world(|w| {
        load(w);
        w.mount("box", &["app"]);
        w.umount("box");
        let before = Tree::take(&w.sandbox.path("store/containers"));
        for args in [vec!["ls", "box"], vec!["cat", "box", "/top"], vec!["which", "box", "/top"], vec!["diff", "box"]] {
            w.mlfs().ok(args);
        }
        let after = Tree::take(&w.sandbox.path("store/containers"));
        before.assert_same(&after, fuse_tests::Compare::ALL, "looking changed the container");
    });
}

#[test]
fn sources_that_are_not_loaded() {
    world(|w| {
        let dir = w.sandbox.path("oci");
        fuse_tests::image::write_oci(&dir, &fuse_tests::image::image_layers(&layers()), "v1");
        let source = format!("oci:{}:v1", dir.display());
        assert_eq!(w.mlfs().ok(["cat", &source, "/etc/conf"]), "from layer 2, longer");
        assert!(w.mlfs().ok(["which", &source, "/etc/conf"]).contains("layer 2"));
        assert_eq!(w.mlfs().json(["layers", &source]).len(), 3);
        let rootfs = w.layer("rootfs", |l| {
            l.file("etc/os-release", "ID=test");
        });
        let listed = w.mlfs().ok(["ls", &format!("rootfs:{rootfs}"), "/etc"]);
        assert!(listed.contains("os-release"), "{listed}");
    });
}
