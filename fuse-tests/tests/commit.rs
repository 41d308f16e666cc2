// SPDX-License-Identifier: MIT OR Apache-2.0
//! `commit`: what a container has changed, as a layer that others read as we do.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use fuse_tests::difficult;
use fuse_tests::driver::with_own_root;
use fuse_tests::host::sh;
use fuse_tests::identity::has_program;
use fuse_tests::image::{Compression, image_layers, write_oci};
use fuse_tests::world::{World, list, needs_root, world, write};
use fuse_tests::{Compare, LayerSpec, Tree, skip};

const KEPT: Compare = Compare { is_link_count: false, ..Compare::ALL };

fn chmod(path: impl AsRef<Path>, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("chmod");
}

// Every way in which an upper says something: additions, changes, whiteouts, opaque and renamed directories, attributes
// without content, hard links of layers changed by one name.
fn change(root: &Path) {
    write(root.join("added"), "added");
    std::fs::hard_link(root.join("added"), root.join("added-too")).expect("link");
    std::fs::remove_file(root.join("etc/shadow")).expect("unlink");
    std::fs::remove_dir_all(root.join("del")).expect("remove");
    std::fs::remove_dir_all(root.join("opq")).expect("remove");
    std::fs::create_dir(root.join("opq")).expect("mkdir");
    write(root.join("opq/own"), "own");
    std::fs::rename(root.join("names"), root.join("renamed")).expect("rename");
    write(root.join("renamed/in-it"), "in it");
    std::fs::create_dir(root.join("moved")).expect("mkdir");
    std::fs::rename(root.join("was-dir"), root.join("moved/dir")).expect("rename");
    write(root.join("was-dir"), "a file now");
    std::fs::remove_file(root.join("twice")).expect("unlink");
    std::fs::create_dir(root.join("twice")).expect("mkdir");
    chmod(root.join("bodies/3000000"), 0o600);
    std::fs::rename(root.join("bodies/65537"), root.join("bodies/renamed")).expect("rename");
    write(root.join("links/b"), "changed by one of its names");
    std::fs::remove_file(root.join("links/c")).expect("unlink");
    symlink("/nowhere", root.join("link")).expect("symlink");
    chmod(root.join("home"), 0o700);
    rustix::fs::setxattr(root.join("replaced"), "user.new", b"1", rustix::fs::XattrFlags::empty()).expect("setxattr");
}

fn changed(w: &World) -> std::path::PathBuf {
    w.load("difficult", &difficult::layers());
    w.unguard_store();
    let root = w.mount("box", &["--owner", "me", "-v", "vol:/vol", "difficult"]);
    change(&root);
    write(root.join("vol/in-a-volume"), "v");
    root
}

#[test]
fn a_committed_image_shows_the_containers_tree() {
    world(|w| {
        let root = changed(w);
        let mounted = w.mlfs().ok(["commit", "--timestamp", "4000000000", "box", "made:1"]);
        w.umount("box");
        let stopped = w.mlfs().ok(["commit", "--timestamp", "4000000000", "box", "made:2"]);
        assert_eq!(mounted, stopped, "one digest, mounted or not");
        w.mlfs().ok(["start", "box"]);
        std::fs::remove_file(root.join("vol/in-a-volume")).expect("unlink");
        let committed = w.mount("again", &["--owner", "me", "made:1"]);
        let (mut original, mut seen) = (Tree::take(&root), Tree::take(&committed));
        for tree in [&mut original, &mut seen] {
            tree.nodes.remove(b"vol".as_slice()).expect("the mount point");
        }
        original.assert_same(&seen, KEPT, "the container | its image");
        let layers = w.mlfs().json(["layers", "made:1"]);
        assert_eq!(layers.len(), 4, "one more layer");
        assert!(layers[3]["CreatedBy"].as_str().is_some_and(|by| by == "mlfs commit"), "{}", layers[3]);
        assert!(layers[3]["Files"].as_u64() < Some(60), "only what has changed: {}", layers[3]);
        // The image is one of ours: what was deleted in the container is deleted by this layer.
        let deleted = w.mlfs().run(["which", "made:1", "/etc/shadow"]);
        assert!(deleted.code == 3 && deleted.stdout.contains("layer 4"), "{}", deleted.stdout);
        w.umount("box");
        w.umount("again");
    });
}

#[test]
fn umoci_and_skopeo_read_it_as_we_do() {
    world(|w| {
        needs_root("unpacks with owners");
        if !has_program("umoci") || !has_program("skopeo") {
            skip("no umoci and skopeo on this machine");
        }
        // umoci sets no attributes of its own choice, and knows no device 0:0 as content.
        let mut layers = difficult::layers();
        layers[0].items.retain(|item| item.path != b"dev/zero-zero");
        // This umoci knows no zstd.
        let mut layers = image_layers(&with_own_root(&layers));
        layers.iter_mut().for_each(|layer| layer.compression = Compression::Gzip);
        write_oci(&w.sandbox.path("oci"), &layers, "v1");
        w.mlfs().ok(["image", "load", "-q", &format!("oci:{}:v1", w.sandbox.path("oci").display()), "difficult"]);
        let root = w.mount("box", &["difficult"]);
        change(&root);
        std::os::unix::fs::chown(root.join("added"), Some(12), Some(34)).expect("chown");
        w.mlfs().ok(["commit", "box", "made:1"]);
        let store = w.mlfs().root().display().to_string();
        let script = format!(
            "skopeo copy -q oci:{store}:made:1 oci:copied:one && umoci raw unpack --keep-dirlinks --image copied:one bundle"
        );
        sh(&w.sandbox, w.sandbox.root(), &script).ok();
        let unpacked = Tree::take(&w.sandbox.path("bundle"));
        let compare = Compare { is_root: false, is_dir_mtime: false, ..KEPT };
        Tree::take(&root).assert_same(&unpacked, compare, "the container | its image, unpacked by umoci");
        w.umount("box");
    });
}

#[test]
fn equal_changes_make_equal_digests() {
    world(|w| {
        w.load("difficult", &difficult::layers());
        w.unguard_store();
        let made = ["one", "two"].map(|name| {
            let root = w.mount(name, &["--owner", "me", "difficult"]);
            change(&root);
            let id = w.mlfs().ok(["commit", "--timestamp", "1700000000", name, name]);
            w.umount(name);
            id
        });
        assert_eq!(made[0], made[1]);
        let inspected = w.mlfs().json(["image", "inspect", "one"]);
        assert_eq!(inspected[0]["RepoTags"], serde_json::json!(["one:latest", "two:latest"]));
        assert!(inspected[0]["Created"].as_str().is_some_and(|c| c.starts_with("2023-11-14T22:13:20")));
        let root = w.mount("check", &["one"]);
        assert_eq!(std::fs::metadata(root.join("added")).expect("stat").mtime(), 1_700_000_000);
        w.umount("check");
    });
}

#[test]
fn only_a_path() {
    world(|w| {
        let root = changed(w);
        write(root.join("renamed/more"), "more");
        std::fs::create_dir_all(root.join("opt/venv/bin")).expect("mkdir");
        write(root.join("opt/venv/bin/tool"), "tool");
        write(root.join("opt/other"), "other");
        for (path, name) in
            [("/opt/venv", "venv"), ("opq", "opq"), ("/etc/shadow", "deleted"), ("/bodies/../opt/", "opt")]
        {
            w.mlfs().ok(["commit", "--only", path, "box", name]);
        }
        let names = |image: &str, path: &str| w.mlfs().ok(["ls", "-q", image, path]);
        assert_eq!(names("venv", "/opt"), "venv");
        assert_eq!(w.mlfs().ok(["cat", "venv", "/opt/venv/bin/tool"]), "tool");
        assert!(names("venv", "/").lines().any(|name| name == "names"), "nothing else has changed");
        assert_eq!(names("opq", "/opq"), "own");
        assert!(names("opq", "/etc").contains("shadow"));
        assert!(!names("deleted", "/etc").contains("shadow"));
        assert!(names("deleted", "/").contains("del"));
        assert_eq!(names("opt", "/opt"), "other\nvenv");
        w.mlfs().fails(["commit", "--only", "/absent", "box", "none"], 1, "box has no /absent");
        w.mlfs().fails(["image", "inspect", "none"], 1, "no image none");
        w.umount("box");
    });
}

#[test]
fn a_container_of_layers_becomes_an_image_of_one() {
    world(|w| {
        let lower = w.layer("lower", |l| {
            l.file("a", "a");
            l.file("gone", "gone");
        });
        let root = w.mount("box", &["--owner", "me", "--layer", &lower]);
        std::fs::remove_file(root.join("gone")).expect("unlink");
        write(root.join("b"), "b");
        w.mlfs().ok(["commit", "-m", "why", "-a", "who", "box", "made"]);
        w.umount("box");
        assert_eq!(w.mlfs().json(["layers", "made"]).len(), 1);
        assert_eq!(w.mlfs().ok(["ls", "-q", "made"]), "a\nb");
        let inspected = w.mlfs().json(["image", "inspect", "made"]);
        assert_eq!((&inspected[0]["Author"], &inspected[0]["Os"]), (&"who".into(), &"linux".into()));
    });
}

#[test]
fn the_configuration_is_carried_over() {
    world(|w| {
        let mut layer = LayerSpec::new();
        layer.file("f", "f");
        w.load("app", &[layer]);
        w.unguard_store();
        w.mount("box", &["--owner", "me", "app"]);
        w.mlfs().ok(["commit", "box", "app:2"]);
        w.umount("box");
        let of = |name: &str| w.mlfs().json(["image", "inspect", name]).remove(0);
        let (old, new) = (of("app"), of("app:2"));
        for key in ["Config", "Architecture", "Os"] {
            assert_eq!(old[key], new[key], "{key}");
        }
        let layers = |image: &serde_json::Value| image["RootFS"]["Layers"].as_array().expect("layers").clone();
        assert_eq!(layers(&new)[..1], layers(&old)[..]);
        assert_eq!(layers(&new).len(), 2);
    });
}

#[test]
fn what_no_layer_can_hold_is_refused_and_nothing_stays() {
    world(|w| {
        w.load("difficult", &difficult::layers());
        let root = w.mount("box", &["--owner", "me", "difficult"]);
        let images = w.mlfs().ok(["image", "ls"]);
        // A name that would delete another.
        write(root.join("etc/.wh.passwd"), "just a file");
        w.mlfs().fails(["commit", "box", "made"], 1, "/etc/.wh.passwd cannot be put into an OCI layer");
        std::fs::remove_file(root.join("etc/.wh.passwd")).expect("unlink");
        // A name whose whiteout would be too long.
        let long = list(root.join("names")).into_iter().find(|name| name.len() == 255).expect("a long name");
        std::fs::remove_file(root.join("names").join(long)).expect("unlink");
        w.mlfs().fails(["commit", "box", "made"], 1, "too long for a whiteout");
        assert_eq!(w.mlfs().ok(["image", "ls"]), images);
        w.umount("box");
        w.mlfs().fails(["commit", "unknown", "made"], 1, "no container unknown");
        w.mlfs().fails(["commit", "box", "Not A Name"], 2, "no image name");
        w.mlfs().fails(["commit", "--timestamp", "soon", "box", "made"], 2, "timestamp");
    });
}

#[test]
fn sockets_of_the_layers_place_stay_deleted() {
    world(|w| {
        let mut layer = LayerSpec::new();
        layer.file("run/s", "a file in the image");
        w.load("app", &[layer]);
        w.unguard_store();
        let root = w.mount("box", &["--owner", "me", "app"]);
        std::fs::remove_file(root.join("run/s")).expect("unlink");
        // The path of a socket has room for 107 bytes.
        std::os::unix::fs::symlink(root.join("run"), w.sandbox.path("r")).expect("symlink");
        let socket = std::os::unix::net::UnixListener::bind(w.sandbox.path("r/s")).expect("bind");
        w.mlfs().ok(["commit", "box", "made"]);
        assert_eq!(w.mlfs().ok(["ls", "-q", "made", "/run"]), "");
        drop(socket);
        w.umount("box");
    });
}
