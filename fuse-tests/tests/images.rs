// SPDX-License-Identifier: MIT OR Apache-2.0
//! Images: every source gives the same tree, for everybody, and the store stays what it promises to be.

use std::path::Path;

use fuse_tests::difficult;
use fuse_tests::identity::{Identity, has_program, identity};
use fuse_tests::image::{Compression, ImageLayer, image_layers, pack_oci, write_docker, write_oci};
use fuse_tests::tree::Body;
use fuse_tests::world::{World, eventually, list, needs_root, read, world, write};
use fuse_tests::{Compare, LayerSpec, Tree, skip};

// Counts of hard links are those of the layer; names of the group may be deleted above. Parents that no entry names have
// no time of their own.
const AGAINST_ORACLE: Compare = Compare { is_dir_mtime: false, is_root: false, is_link_count: false, ..Compare::ALL };

fn assert_difficult(w: &World, name: &str, source: &str) {
    let root = w.mount(name, &[source]);
    let mut seen = Tree::take(&root);
    let mut expected = difficult::as_seen(&difficult::layers());
    if identity() == Identity::Namespace {
        // The kernel rewrites capabilities of other namespaces.
        for node in seen.nodes.values_mut().chain(expected.nodes.values_mut()) {
            node.xattrs.remove(b"security.capability".as_slice());
        }
    }
    expected.assert_same(&seen, AGAINST_ORACLE, &format!("{source}: declared and mounted"));
    let named = ["times", "home/u", "etc", "opq", "tmp"];
    for path in named {
        assert_eq!(expected.node(path).mtime, seen.node(path).mtime, "{path}: a named directory's time");
    }
}

#[test]
fn difficult_cases() {
    world(|w| {
        w.load("difficult:1", &difficult::layers());
        assert_difficult(w, "box", "difficult:1");
        // The same after a remount, inode numbers too.
        let root = w.target("box");
        let before = Tree::take(&root);
        w.umount("box");
        w.mlfs().ok(["start", "box"]);
        before.assert_same(&Tree::take(&root), Compare { is_ino: true, ..Compare::ALL }, "over a remount");
    });
}

#[test]
fn every_compression() {
    world(|w| {
        for compression in [Compression::Plain, Compression::Gzip, Compression::Zstd] {
            let mut layers = image_layers(&difficult::layers());
            layers.iter_mut().for_each(|layer| layer.compression = compression);
            let name = format!("{compression:?}").to_lowercase();
            let dir = w.sandbox.path(&name);
            write_oci(&dir, &layers, "v1");
            w.mlfs().ok(["image", "load", "-q", &format!("oci:{}:v1", dir.display()), &name]);
            assert_difficult(w, &format!("box-{name}"), &name);
        }
    });
}

#[test]
fn every_archive() {
    world(|w| {
        let layers = difficult::layers();
        let dir = w.sandbox.path("oci");
        write_oci(&dir, &image_layers(&layers), "v1");
        let archive = w.sandbox.path("oci.tar");
        pack_oci(&dir, &archive);
        let docker = w.sandbox.path("docker.tar");
        let tars: Vec<Vec<u8>> = image_layers(&layers).into_iter().map(|layer| layer.tar).collect();
        write_docker(&docker, &tars, "example/app:2.0");

        w.mlfs().ok(["image", "load", "-q", &format!("oci-archive:{}:v1", archive.display()), "a"]);
        w.mlfs().ok(["image", "load", "-q", &format!("docker-archive:{}", docker.display()), "b"]);
        w.mlfs().ok(["image", "load", "-q", &format!("docker-archive:{}:2.0", docker.display()), "c"]);
        w.mlfs().run_with_input(["image", "load", "-q", "docker-archive:-", "d"], &docker).ok();
        w.mlfs().run_with_input(["image", "load", "-q", "oci-archive:-", "e"], &archive).ok();
        for name in ["a", "b", "c", "d", "e"] {
            assert_difficult(w, &format!("box-{name}"), name);
        }
    });
}

#[test]
fn docker_archive_with_a_repeated_layer() {
    world(|w| {
        let mut base = LayerSpec::new();
        base.file("f", "base");
        let mut change = LayerSpec::new();
        change.file("f", "changed").mode(0o600);
        change.file("g", "g");
        let tars: Vec<Vec<u8>> = [&base, &change, &base].into_iter().map(fuse_tests::tar::layer_tar).collect();
        let file = w.sandbox.path("saved.tar");
        // The third layer is the first again: its layer.tar is a symlink.
        write_docker(&file, &tars, "repeated:latest");
        w.mlfs().ok(["image", "load", "-q", &format!("docker-archive:{}", file.display())]);
        let root = w.mount("box", &["repeated"]);
        assert_eq!(read(root.join("f")), "base", "the repeated layer lies on top");
        assert_eq!(list(&root), ["f", "g"]);
    });
}

#[test]
fn names_tags_and_digests() {
    world(|w| {
        let mut layer = LayerSpec::new();
        layer.file("f", "one");
        let dir = w.sandbox.path("oci");
        let digests = write_oci(&dir, &image_layers(&[layer]), "v1");
        w.mlfs().ok(["image", "load", "-q", &format!("oci:{}:v1", dir.display()), "example.org/team/app:1.2"]);
        let by_digest = format!("example.org/team/app@{}", digests.manifest);
        for (number, name) in ["example.org/team/app:1.2", &by_digest].iter().enumerate() {
            let root = w.mount(&format!("box{number}"), &[name]);
            assert_eq!(read(root.join("f")), "one");
        }
        let listed = w.mlfs().ok(["image", "ls"]);
        assert!(listed.contains("example.org/team/app") && listed.contains("1.2"), "{listed}");
        let inspected = w.mlfs().ok(["image", "inspect", "example.org/team/app:1.2"]);
        assert!(inspected.contains(&digests.manifest) || inspected.contains(&digests.config), "{inspected}");
        w.mlfs().fails(["image", "inspect", "example.org/team/app:9"], 1, "example.org/team/app:9");
        let target = w.target("none").display().to_string();
        let said = w.mlfs().fails(["mount", "unknown", &target], 1, "no image unknown in the store");
        assert!(said.contains("mlfs image load"), "{said}");
    });
}

#[test]
fn loading_again_changes_nothing() {
    world(|w| {
        let dir = w.sandbox.path("oci");
        write_oci(&dir, &image_layers(&difficult::layers()), "v1");
        let source = format!("oci:{}:v1", dir.display());
        w.mlfs().ok(["image", "load", "-q", &source, "app"]);
        w.guard_store();
        w.mlfs().ok(["image", "load", "-q", &source, "app"]);
    });
}

#[test]
fn bodies_are_shared() {
    world(|w| {
        let body = vec![b'x'; 1_500_000];
        let mut one = LayerSpec::new();
        one.file("a", &body);
        one.file("b", &body);
        let mut two = LayerSpec::new();
        two.file("elsewhere/c", &body);
        w.load("one", &[one]);
        let store = w.sandbox.path("store");
        let before = bytes_of(&store, &body);
        assert_eq!(before, 1, "one body, one object");
        w.unguard_store();
        w.load("two", &[two]);
        assert_eq!(bytes_of(&store, &body), 1, "bodies are shared over images");
    });
}

// How many files of a folder have this content.
fn bytes_of(dir: &Path, body: &[u8]) -> usize {
    let wanted = Body::File(body.len() as u64, fuse_tests::tree::sha256(body));
    Tree::take(dir).nodes.values().filter(|node| node.body == wanted).count()
}

#[test]
fn the_store_is_a_layout_that_skopeo_reads() {
    world(|w| {
        if !has_program("skopeo") {
            skip("no skopeo on this machine");
        }
        let mut layer = LayerSpec::new();
        layer.file("f", "one");
        let dir = w.sandbox.path("oci");
        let digests = write_oci(&dir, &image_layers(&[layer]), "v1");
        w.mlfs().ok(["image", "load", "-q", &format!("oci:{}:v1", dir.display()), "app:1"]);
        let store = w.sandbox.path("store").display().to_string();
        let script = format!("skopeo inspect --raw oci:{store}:app:1 || skopeo inspect --raw oci:{store}");
        let raw = fuse_tests::host::sh(&w.sandbox, w.sandbox.root(), &script).ok();
        assert!(raw.contains(&digests.config), "{raw}");
        let copy = w.sandbox.path("copied");
        let script = format!(
            "skopeo copy -q oci:{store}:app:1 oci:{0}:x || skopeo copy -q oci:{store} oci:{0}:x",
            copy.display()
        );
        fuse_tests::host::sh(&w.sandbox, w.sandbox.root(), &script).ok();
        assert!(copy.join("blobs/sha256").join(digests.blobs[0].trim_start_matches("sha256:")).exists());
    });
}

#[test]
fn removing_an_image() {
    world(|w| {
        let layer = |content: &str| {
            let mut layer = LayerSpec::new();
            layer.file("own", content.repeat(100_000));
            layer.file("shared", "s".repeat(200_000));
            layer
        };
        w.load("one", &[layer("1")]);
        w.load("two", &[layer("2")]);
        w.mount("box", &["one"]);
        w.mlfs().fails(["image", "rm", "one"], 1, "box");
        w.umount("box");
        w.mlfs().fails(["image", "rm", "one"], 1, "box");
        w.mlfs().ok(["rm", "box"]);
        w.unguard_store();
        w.mlfs().ok(["image", "rm", "one"]);
        w.mlfs().fails(["image", "rm", "one"], 1, "one");
        assert!(!w.mlfs().ok(["image", "ls", "-q"]).contains("one"));
        let root = w.mount("box", &["two"]);
        assert_eq!(read(root.join("own")).len(), 100_000);
        assert_eq!(read(root.join("shared")).len(), 200_000);
        w.rm("box");
        w.mlfs().ok(["image", "rm", "two"]);
        assert_eq!(w.mlfs().json(["image", "ls"]).len(), 0);
        let left = Tree::take(&w.sandbox.path("store"));
        let large =
            left.nodes.values().filter(|node| matches!(node.body, Body::File(size, _) if size >= 50_000)).count();
        assert_eq!(large, 0, "objects that nothing needs stay: {:?}", left.names());
    });
}

#[test]
fn archives_as_layers() {
    world(|w| {
        let mut files = Vec::new();
        for (number, (layer, end)) in difficult::layers().iter().zip(["tar", "tar.gz", "tar.zst"]).enumerate() {
            let kind = [Compression::Plain, Compression::Gzip, Compression::Zstd][number];
            let tar = fuse_tests::tar::layer_tar(layer);
            let file = w.sandbox.file(format!("{number}.{end}"), fuse_tests::image::compress(&tar, kind));
            files.push(file.display().to_string());
        }
        let args: Vec<&str> = files.iter().flat_map(|file| ["--layer", file.as_str()]).collect();
        let root = w.mount("box", &args);
        let seen = Tree::take(&root);
        assert_eq!(seen.node("replaced").body, Body::File(13, fuse_tests::tree::sha256(b"by the middle")));
        assert_eq!(seen.node("times/1969").mtime, (-2, 750_000_000));
        write(root.join("tmp/mine"), "m");
    });
}

#[test]
fn owner_me_makes_it_writable() {
    world(|w| {
        let mut layer = LayerSpec::new();
        layer.file("etc/conf", "c").owner(0, 0);
        layer.dir("etc").owner(0, 0);
        layer.file("home/f", "f").owner(1234, 1234).mode(0o600);
        w.load("app", &[layer]);
        let (uid, gid) = fuse_tests::identity::own_ids();
        let root = w.mount("box", &["--owner", "me", "app"]);
        let tree = Tree::take(&root);
        for path in ["etc", "etc/conf", "home/f"] {
            assert_eq!((tree.node(path).uid, tree.node(path).gid), (uid, gid), "{path}");
        }
        write(root.join("etc/conf"), "changed");
        write(root.join("home/f"), "changed");
        write(root.join("etc/new"), "new");
        w.umount("box");
        w.mlfs().ok(["start", "box"]);
        assert_eq!(read(root.join("etc/conf")), "changed");
        let tree = Tree::take(&root);
        assert_eq!((tree.node("etc/new").uid, tree.node("home/f").mode), (uid, 0o600));
    });
}

#[test]
fn owner_as_numbers() {
    world(|w| {
        needs_root("files shown as another user's");
        let lower = w.layer("l", |l| {
            l.file("f", "f");
        });
        let root = w.mount("box", &["--owner", "1111:2222", "--layer", &lower]);
        write(root.join("new"), "n");
        let tree = Tree::take(&root);
        for path in ["f", "new"] {
            assert_eq!((tree.node(path).uid, tree.node(path).gid), (1111, 2222), "{path}");
        }
        let said = fuse_tests::host::sh_as(&w.sandbox, &root, 1111, 2222, "echo more >> f; mkdir d; cat f").ok();
        assert_eq!(said, "fmore");
    });
}

#[test]
fn id_maps() {
    world(|w| {
        needs_root("files of other users");
        let lower = w.layer("l", |l| {
            l.file("root", "r").owner(0, 0);
            l.file("user", "u").owner(1000, 1000).mode(0o600);
        });
        let maps = ["--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536", "--layer", &lower];
        let root = w.mount("box", &maps);
        let tree = Tree::take(&root);
        assert_eq!((tree.node("root").uid, tree.node("user").uid, tree.node("user").gid), (100_000, 101_000, 101_000));
        let said = fuse_tests::host::sh_as(&w.sandbox, &root, 101_000, 101_000, "echo more >> user; cat user").ok();
        assert_eq!(said, "umore");
        w.umount("box");
        w.mlfs().ok(["start", "box"]);
        assert_eq!(Tree::take(&root).node("user").uid, 101_000);
    });
}

#[test]
fn large_images_load_in_parallel_with_mounts() {
    world(|w| {
        // Concurrent commands on one store: four loads of two images, and a mount of each.
        let mut kinds = Vec::new();
        for number in 0..2u32 {
            let mut layers = Vec::new();
            for layer in 0..3u32 {
                let mut spec = LayerSpec::new();
                for file in 0..300u32 {
                    spec.file(format!("l{layer}/f{file}"), format!("{number} {layer} {file}"));
                }
                layers.push(spec);
            }
            let dir = w.sandbox.path(format!("par{number}"));
            let layers: Vec<ImageLayer> = image_layers(&layers);
            write_oci(&dir, &layers, "latest");
            kinds.push(format!("oci:{}", dir.display()));
        }
        std::thread::scope(|scope| {
            let runs: Vec<_> = (0..4)
                .map(|run| {
                    let (source, name) = (&kinds[run % 2], format!("par{}", run % 2));
                    scope.spawn(move || w.mlfs().run(["image", "load", "-q", source, &name]))
                })
                .collect();
            for run in runs {
                run.join().expect("thread").ok();
            }
        });
        for number in 0..2 {
            let root = w.mount(&format!("box{number}"), &[&format!("par{number}")]);
            assert_eq!(read(root.join("l2/f299")), format!("{number} 2 299"));
            eventually("all files are listed", || list(root.join("l0")).len() == 300);
        }
    });
}
