// SPDX-License-Identifier: MIT OR Apache-2.0
//! The store in use: `image tag|history|save|prune`, `system info|df|prune`.

use fuse_tests::difficult;
use fuse_tests::host::sh;
use fuse_tests::identity::has_program;
use fuse_tests::image::{image_layers, write_docker, write_oci};
use fuse_tests::tar::layer_tar;
use fuse_tests::world::{World, list, read, world, write};
use fuse_tests::{Compare, LayerSpec, Tree, skip};

fn layer(content: &str) -> LayerSpec {
    let mut layer = LayerSpec::new();
    layer.file("own", content.repeat(100_000));
    layer.file("shared", "s".repeat(200_000));
    layer
}

fn store_tree(w: &World) -> Tree {
    Tree::take(w.mlfs().root())
}

#[test]
fn a_saved_layout_is_the_one_that_was_loaded() {
    world(|w| {
        let dir = w.sandbox.path("oci");
        let digests = write_oci(&dir, &image_layers(&difficult::layers()), "v1");
        w.mlfs().ok(["image", "load", "-q", &format!("oci:{}:v1", dir.display()), "app:3"]);
        let out = w.sandbox.path("out");
        w.mlfs().ok(["image", "save", "app:3", &format!("oci:{}", out.display())]);
        let blobs = |dir: &std::path::Path| Tree::take(&dir.join("blobs/sha256"));
        let compare = Compare { is_mtime: false, is_dir_mtime: false, is_root: false, ..Compare::ALL };
        blobs(&dir).assert_same(&blobs(&out), compare, "blobs as they came");
        assert!(
            read(out.join("index.json")).contains("\"org.opencontainers.image.ref.name\":\"3\""),
            "the image's tag"
        );
        // Added to: the other image stays; the same tag goes to the new one.
        w.load("other", &[layer("o")]);
        w.unguard_store();
        w.mlfs().ok(["image", "save", "other", &format!("oci:{}:two", out.display())]);
        w.mlfs().ok(["image", "save", "other", &format!("oci:{}:two", out.display())]);
        let index = read(out.join("index.json"));
        assert!(index.contains(&digests.manifest) && index.matches("sha256:").count() == 2, "{index}");
        w.mlfs().ok(["image", "load", "-q", &format!("oci:{}:3", out.display()), "again"]);
        let inspected = w.mlfs().json(["image", "inspect", "again"]);
        assert_eq!(inspected[0]["Digest"], digests.manifest.as_str());
        if has_program("skopeo") {
            let script =
                format!("skopeo inspect --raw oci:{}:two && skopeo copy -q oci:{0}:3 dir:copied", out.display());
            sh(&w.sandbox, w.sandbox.root(), &script).ok();
        }
    });
}

#[test]
fn two_saves_into_one_layout_lose_no_image() {
    world(|w| {
        let names = ["a", "b", "c", "d"];
        for name in names {
            w.load(name, &[layer(name)]);
            w.unguard_store();
        }
        let out = w.sandbox.path("out");
        std::thread::scope(|scope| {
            for name in names {
                let target = format!("oci:{}:{name}", out.display());
                scope.spawn(move || w.mlfs().ok(["image", "save", name, &target]));
            }
        });
        let index = read(out.join("index.json"));
        assert_eq!(index.matches("sha256:").count(), names.len(), "{index}");
        // A blob that is there and damaged is written anew.
        let blob = list(out.join("blobs/sha256")).remove(0);
        let blob = out.join("blobs/sha256").join(blob);
        let good = std::fs::read(&blob).expect("read");
        let mut bytes = good.clone();
        bytes[0] ^= 1;
        write(&blob, bytes);
        for name in names {
            w.mlfs().ok(["image", "save", name, &format!("oci:{}:{name}", out.display())]);
        }
        assert!(std::fs::read(&blob).expect("read") == good);
    });
}

#[test]
fn a_saved_archive_is_loaded_again() {
    world(|w| {
        w.load("example/app:2.0", &difficult::layers());
        w.unguard_store();
        let file = w.sandbox.path("app.tar");
        w.mlfs().ok(["image", "save", "example/app:2.0", &format!("docker-archive:{}", file.display())]);
        let piped =
            w.mlfs().command().args(["image", "save", "example/app:2.0", "docker-archive:-"]).output().expect("run");
        assert!(piped.stdout == std::fs::read(&file).expect("read"), "the same bytes through a pipe");
        let id = |name: &str| w.mlfs().json(["image", "inspect", name])[0]["Digest"].clone();
        let before = id("example/app:2.0");
        w.mlfs().ok(["image", "rm", "example/app:2.0"]);
        w.mlfs().ok(["image", "load", "-q", &format!("docker-archive:{}", file.display())]);
        assert_eq!(id("example/app:2.0"), before, "name and digest come back");
        if !has_program("skopeo") {
            skip("no skopeo on this machine");
        }
        let script =
            format!("skopeo copy -q docker-archive:{} oci:copied:x && skopeo inspect oci:copied:x", file.display());
        sh(&w.sandbox, w.sandbox.root(), &script).ok();
    });
}

#[test]
fn dockers_own_archive_goes_out_as_it_came_in() {
    world(|w| {
        let tars: Vec<Vec<u8>> = [layer("1"), layer("2"), layer("1")].iter().map(layer_tar).collect();
        write_docker(&w.sandbox.path("in.tar"), &tars, "app:latest");
        w.mlfs().ok(["image", "load", "-q", &format!("docker-archive:{}", w.sandbox.path("in.tar").display())]);
        let out = w.sandbox.path("out.tar");
        w.mlfs().ok(["image", "save", "app", &format!("docker-archive:{}", out.display())]);
        w.mlfs().ok(["image", "load", "-q", &format!("docker-archive:{}", out.display()), "again"]);
        let layers = |name: &str| w.mlfs().json(["image", "inspect", name])[0]["RootFS"].clone();
        assert_eq!(layers("app"), layers("again"), "a layer that comes twice too");
    });
}

#[test]
fn a_damaged_blob_is_not_saved_and_leaves_nothing() {
    world(|w| {
        w.load("app", &[layer("1")]);
        w.unguard_store();
        let digest = w.mlfs().json(["image", "inspect", "app"])[0]["Layers"][0]["Digest"].clone();
        let digest = digest.as_str().expect("a digest");
        let blob = w.mlfs().root().join("blobs/sha256").join(digest.trim_start_matches("sha256:"));
        let mut bytes = std::fs::read(&blob).expect("read");
        bytes[100] ^= 1;
        std::fs::remove_file(&blob).expect("unlink");
        write(&blob, bytes);
        let out = w.sandbox.path("out");
        let said = w.mlfs().fails(["image", "save", "app", &format!("oci:{}", out.display())], 1, digest);
        assert!(said.contains("its digest is"), "{said}");
        assert!(!out.exists());
        let file = w.sandbox.file("kept.tar", "as it was");
        w.mlfs().fails(["image", "save", "app", &format!("docker-archive:{}", file.display())], 1, digest);
        assert_eq!(read(&file), "as it was");
        // A directory with other things in it is not written into.
        w.load("good", &[layer("2")]);
        w.unguard_store();
        let foreign = w.sandbox.file("foreign/file", "mine");
        let foreign = foreign.parent().expect("a folder");
        w.mlfs().fails(["image", "save", "good", &format!("oci:{}", foreign.display())], 1, "no OCI layout");
        assert_eq!(list(foreign), ["file"]);
        w.mlfs().fails(["image", "save", "good", "dir:/x"], 2, "oci:DIR");
        w.mlfs().fails(["image", "save", "good", "good2"], 2, "oci:DIR");
        w.mlfs().fails(["image", "save", "unknown", &format!("oci:{}", out.display())], 1, "no image unknown");
    });
}

#[test]
fn names_and_history() {
    world(|w| {
        w.load("app", &[layer("1"), layer("2")]);
        w.load("other", &[layer("3")]);
        w.unguard_store();
        w.mlfs().ok(["image", "tag", "app", "app:stable"]);
        w.mlfs().ok(["image", "tag", "app", "team/name"]);
        let inspected = w.mlfs().json(["image", "inspect", "team/name"]);
        let names = serde_json::json!(["app:latest", "app:stable", "team/name:latest"]);
        assert_eq!(inspected[0]["RepoTags"], names);
        w.mlfs().ok(["image", "tag", "other", "app:stable"]);
        assert_eq!(
            w.mlfs().json(["image", "inspect", "app:stable"])[0]["Id"],
            w.mlfs().json(["image", "inspect", "other"])[0]["Id"]
        );
        w.mlfs().fails(["image", "tag", "unknown", "x"], 1, "no image unknown");
        w.mlfs().fails(["image", "tag", "app", "Bad Name"], 2, "no image name");
        let steps = w.mlfs().json(["image", "history", "app"]);
        let by: Vec<&str> = steps.iter().filter_map(|step| step["CreatedBy"].as_str()).collect();
        assert_eq!(by, ["fuse-tests layer 2", "fuse-tests layer 1"], "the newest first");
        assert_eq!(steps[0]["Size"], 300_000);
        assert!(w.mlfs().ok(["image", "history", "app"]).contains("fuse-tests layer 1"));
    });
}

#[test]
fn prune_takes_only_what_nobody_names_or_uses() {
    world(|w| {
        w.load("app", &[layer("1")]);
        w.load("used", &[layer("2")]);
        w.unguard_store();
        w.mount("box", &["used"]);
        w.umount("box");
        // Their names go to another image: both are nameless, one is in use.
        w.load("new", &[layer("3")]);
        w.unguard_store();
        w.mlfs().ok(["image", "tag", "new", "app"]);
        w.mlfs().ok(["image", "tag", "new", "used"]);
        let before = store_tree(w);
        w.mlfs().fails(["image", "prune"], 2, "--force");
        w.mlfs().fails(["system", "prune"], 2, "--force");
        before.assert_same(&store_tree(w), Compare::ALL, "nothing without a terminal");
        let said = w.mlfs().ok(["image", "prune", "--force"]);
        assert_eq!(said.matches("Deleted: sha256:").count(), 1, "{said}");
        w.mlfs().ok(["start", "box"]);
        assert_eq!(read(w.target("box").join("own")).len(), 100_000, "what a container needs stays");
        w.umount("box");
        let said = w.mlfs().ok(["image", "prune", "-a", "-f"]);
        assert!(said.contains("Untagged: new:latest"), "{said}");
        assert_eq!(w.mlfs().json(["image", "ls"]).len(), 1);
        w.mlfs().ok(["start", "box"]);
        w.umount("box");
    });
}

#[test]
fn system_prune_removes_what_no_record_names() {
    world(|w| {
        w.load("app", &[layer("1")]);
        w.unguard_store();
        let root = w.mount("box", &["--owner", "me", "-v", "named:/named", "-v", "/anonymous", "app"]);
        write(root.join("mine"), "mine");
        write(root.join("named/f"), "f");
        w.umount("box");
        w.mlfs().ok(["volume", "create", "unused"]);
        w.mlfs().ok(["volume", "create"]);
        let clean = store_tree(w);
        // What a crash may leave: staged work, trash, files that no image needs.
        for path in ["staging/load-dead/blob", "trash/t-1/old"] {
            w.sandbox.file(format!("store/{path}"), vec![b'x'; 10_000]);
        }
        let orphan = "ab".repeat(32);
        w.sandbox.file(format!("store/blobs/sha256/{orphan}"), "orphan");
        w.sandbox.file(format!("store/objects/ab/{}", &orphan[2..]), "orphan");
        let unnamed = |df: &[serde_json::Value]| df[3]["TotalCount"].as_u64().expect("a count");
        assert_eq!(unnamed(&w.mlfs().json(["system", "df"])), 4);
        let said = w.mlfs().ok(["system", "prune", "--force"]);
        assert_eq!(said.matches("Deleted: volume").count(), 1, "{said}");
        assert_eq!(unnamed(&w.mlfs().json(["system", "df"])), 0);
        assert_eq!(w.mlfs().ok(["volume", "ls", "-q"]).lines().count(), 3, "named, unused and the container's own");
        let mut clean = clean;
        let left = store_tree(w);
        clean.nodes.retain(|path, _| left.nodes.contains_key(path) || !path.starts_with(b"volumes/"));
        clean.nodes.retain(|path, _| left.nodes.contains_key(path) || !path.starts_with(b"locks/volume-"));
        let compare = Compare { is_dir_mtime: false, is_mtime: false, ..Compare::ALL };
        clean.assert_same(&left, compare, "everything else is as it was");
        w.mlfs().ok(["start", "box"]);
        assert_eq!((read(root.join("mine")), read(root.join("named/f"))), ("mine".into(), "f".into()));
        w.umount("box");
    });
}

#[test]
fn df_counts_bytes_inodes_and_what_is_shared() {
    world(|w| {
        assert_eq!(w.mlfs().json(["system", "df"])[0]["Size"], 0, "a store that is not there is empty");
        w.load("one", &[layer("1")]);
        w.load("two", &[layer("2")]);
        w.unguard_store();
        let root = w.mount("box", &["--owner", "me", "-v", "vol:/vol", "one"]);
        write(root.join("mine"), vec![b'm'; 50_000]);
        write(root.join("vol/f"), vec![b'v'; 70_000]);
        let df = w.mlfs().json(["system", "df"]);
        let of = |kind: usize, key: &str| df[kind].pointer(key).and_then(serde_json::Value::as_u64).expect("a number");
        assert_eq!((of(0, "/TotalCount"), of(0, "/Active"), of(1, "/Active"), of(2, "/Active")), (2, 1, 1, 1));
        // The body of 200,000 bytes that both have, stored once.
        let shared = of(0, "/Shared/Bytes");
        assert!((200_000..400_000).contains(&shared), "{shared}");
        assert!(of(0, "/Reclaimable/Bytes") >= 100_000 && of(0, "/Reclaimable/Bytes") < of(0, "/Size") - shared);
        assert!(of(0, "/Inodes") >= 9, "blobs, indexes and objects: {}", of(0, "/Inodes"));
        assert!(of(1, "/Size") >= 50_000 && of(2, "/Size") >= 70_000);
        assert_eq!(of(1, "/Reclaimable/Bytes"), 0, "it is mounted");
        w.umount("box");
        assert!(w.mlfs().ok(["system", "df"]).contains("INODES"));
    });
}

#[test]
fn info_tells_where_each_value_comes_from() {
    world(|w| {
        let file = w.sandbox.file("home/.config/mlfs/config.toml", "stop-timeout = \"3s\"\nlabel = [\"a=1\"]\n");
        let own = w.sandbox.file("own.toml", "rm = true\nlabel = [\"b=2\"]\nvolume = \"data:/data\"\n");
        let mut command = w.mlfs().command();
        command.env("MLFS_LOG", "debug").args(["--config"]).arg(&own).args(["--format", "json", "system", "info"]);
        let text = fuse_tests::cli::run(&w.sandbox, &mut command).ok();
        let info: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let settings = info[0]["Settings"].as_array().expect("settings");
        let of = |key: &str| -> Vec<(String, String)> {
            let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
            settings.iter().filter(|s| s["Key"] == key).map(|s| (text(&s["Value"]), text(&s["Origin"]))).collect()
        };
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        let (file, own) = (file.display().to_string(), own.display().to_string());
        assert_eq!(of("root"), [pair(&w.mlfs().root().display().to_string(), "flag")]);
        assert_eq!(of("log-level"), [pair("debug", "MLFS_LOG")]);
        assert_eq!(of("stop-timeout"), [pair("3s", &file)]);
        assert_eq!(of("rm"), [pair("true", &own)]);
        assert_eq!(of("dev"), [pair("false", "default")]);
        assert_eq!(of("label"), [pair("a=1", &file), pair("b=2", &own)]);
        assert_eq!(of("mount").len(), 1);
        let table = w.mlfs().ok(["system", "info"]);
        assert!(table.starts_with("KEY") && table.contains("stop-timeout"), "{table}");
        write(&own, "rm = maybe");
        let mut command = w.mlfs().command();
        command.args(["--config", &own, "system", "info"]);
        fuse_tests::cli::run(&w.sandbox, &mut command).fails_saying(1, "own.toml:1");
    });
}

#[test]
fn verify_names_what_is_damaged() {
    world(|w| {
        w.load("good", &[layer("1")]);
        w.load("bad", &[layer("2")]);
        w.unguard_store();
        let before = store_tree(w);
        assert_eq!(w.mlfs().ok(["image", "verify", "-q"]), "");
        before.assert_same(&store_tree(w), Compare::ALL, "looking changes nothing");
        let of = |key: &str| w.mlfs().json(["image", "inspect", "bad"])[0].pointer(key).cloned().expect("a value");
        let blob = of("/Layers/0/Digest").as_str().expect("a digest").trim_start_matches("sha256:").to_owned();
        let index = of("/Layers/0/DiffID").as_str().expect("a digest").trim_start_matches("sha256:").to_owned();
        let object = fuse_tests::tree::sha256("2".repeat(100_000).as_bytes());
        for (path, name) in [
            (format!("blobs/sha256/{blob}"), &blob[..12]),
            (format!("indexes/{index}"), &index[..12]),
            (format!("objects/{}/{}", &object[..2], &object[2..]), &object[2..12]),
        ] {
            let path = w.mlfs().root().join(path);
            let good = std::fs::read(&path).expect("read");
            let mut bytes = good.clone();
            // The middle of an index may be padding between its parts.
            bytes[40] ^= 1;
            std::fs::remove_file(&path).expect("unlink");
            write(&path, bytes);
            for names in [&["bad"][..], &[]] {
                let outcome = w.mlfs().run(["image", "verify"].iter().chain(names));
                assert_eq!(outcome.code, 3, "{}: {}{}", path.display(), outcome.stdout, outcome.stderr);
                assert!(outcome.stdout.contains(name), "{} is named: {}", path.display(), outcome.stdout);
            }
            w.mlfs().ok(["image", "verify", "good"]);
            std::fs::remove_file(&path).expect("unlink");
            write(&path, good);
        }
        w.mlfs().ok(["image", "verify"]);
        w.mlfs().fails(["image", "verify", "unknown"], 1, "no image unknown");
    });
}
