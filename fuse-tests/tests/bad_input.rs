// SPDX-License-Identifier: MIT OR Apache-2.0
//! One row per kind of bad input: the exit code, the one sentence on standard error, and a store that stays as it was.

use std::path::{Path, PathBuf};
use std::process::Command;

use fuse_tests::host::sh;
use fuse_tests::identity::{Identity, identity};
use fuse_tests::image::{Compression, Digests, ImageLayer, compress, digest, write_docker, write_oci};
use fuse_tests::layers::What;
use fuse_tests::tar::{Header, Tar, layer_tar};
use fuse_tests::world::{World, world, write};
use fuse_tests::{Compare, LayerSpec, Tree, skip};

/// What a row prepares: the arguments of mlfs, and what its one sentence must contain.
struct Case {
    args: Vec<String>,
    code: i32,
    says: Vec<String>,
}

type Row = (&'static str, fn(&World) -> Case);

fn case(code: i32, says: &[&str], args: &[&str]) -> Case {
    let own = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    Case { args: own(args), code, says: own(says) }
}

fn good_layer() -> LayerSpec {
    let mut layer = LayerSpec::new();
    layer.file("etc/conf", "conf");
    layer.file("large", (0..200_000u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>());
    layer
}

// The store's tree: names, kinds, modes, contents; not the times of folders in which something was staged and removed.
fn store_tree(w: &World) -> Tree {
    let store = w.sandbox.path("store");
    if store.exists() { Tree::take(&store) } else { Tree::default() }
}

fn run_rows(rows: &[Row]) {
    world(|w| {
        w.load("good", &[good_layer()]);
        w.unguard_store();
        w.mount("kept", &["-v", "vol:/vol", "good"]);
        w.umount("kept");
        let before = store_tree(w);
        let mounts = w.sandbox.mounts();
        let mut wrong = Vec::new();
        for (name, prepare) in rows {
            let Case { args, code, says } = prepare(w);
            let outcome = w.mlfs().run(&args);
            let said = outcome.stderr.trim();
            let mut complain = |what: String| wrong.push(format!("{name}: {what}\n    said: {said}"));
            if outcome.code != code {
                complain(format!("exit code {} instead of {code}", outcome.code));
            }
            for text in says {
                if !said.contains(&text) {
                    complain(format!("does not say {text:?}"));
                }
            }
            if said.is_empty() || said.lines().count() > 4 || said.contains("panicked") || said.contains("Os {") {
                complain(format!("{} lines instead of one clear sentence", said.lines().count()));
            }
            let compare = Compare { is_mtime: false, is_dir_mtime: false, ..Compare::ALL };
            let changes = before.difference(&store_tree(w), compare);
            if !changes.is_empty() {
                complain(format!("the store changed: {changes:?}"));
            }
            if w.sandbox.mounts() != mounts {
                complain(format!("left mounted: {:?}", w.sandbox.mounts()));
                break;
            }
        }
        assert!(wrong.is_empty(), "{} of {} rows:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
        w.mlfs().ok(["start", "kept"]);
        w.umount("kept");
    });
}

fn plain(tar: Vec<u8>) -> ImageLayer {
    ImageLayer { tar, compression: Compression::Plain }
}

// Writes a layout of one layer and hands out how to load it.
fn oci(w: &World, name: &str, layer: ImageLayer) -> (PathBuf, Digests, [String; 5]) {
    let dir = w.sandbox.path(name);
    let digests = write_oci(&dir, &[layer], "v1");
    let source = format!("oci:{}:v1", dir.display());
    (dir, digests, ["image".into(), "load".into(), "-q".into(), source, "bad".into()])
}

// A layer whose stored form is damaged although its digest fits: the blob is written by hand.
fn oci_with_blob(w: &World, name: &str, tar: &[u8], blob: Vec<u8>, kind: &str) -> [String; 5] {
    let (dir, digests, args) = oci(w, name, plain(tar.to_vec()));
    let path = |digest: &str| dir.join("blobs/sha256").join(digest.trim_start_matches("sha256:"));
    let (new, size) = (digest(&blob), blob.len());
    write(path(&new), &blob);
    let manifest = fuse_tests::world::read(path(&digests.manifest));
    let mut manifest: serde_json::Value = serde_json::from_str(&manifest).expect("manifest");
    manifest["layers"][0]["digest"] = new.into();
    manifest["layers"][0]["size"] = size.into();
    manifest["layers"][0]["mediaType"] = format!("application/vnd.oci.image.layer.v1.tar{kind}").into();
    put_manifest(&dir, &manifest.to_string());
    args
}

fn put_manifest(dir: &Path, manifest: &str) {
    let new = digest(manifest.as_bytes());
    write(dir.join("blobs/sha256").join(new.trim_start_matches("sha256:")), manifest);
    let index = fuse_tests::world::read(dir.join("index.json"));
    let mut index: serde_json::Value = serde_json::from_str(&index).expect("index");
    index["manifests"][0]["digest"] = new.into();
    index["manifests"][0]["size"] = manifest.len().into();
    write(dir.join("index.json"), index.to_string());
}

fn load(args: [String; 5], says: &[&str]) -> Case {
    Case { args: args.to_vec(), code: 1, says: says.iter().map(|text| (*text).to_owned()).collect() }
}

fn hostile_tar(build: impl FnOnce(&mut Tar)) -> Vec<u8> {
    let mut tar = Tar::new();
    tar.file("harmless", b"h");
    build(&mut tar);
    tar.finish()
}

#[test]
fn damaged_layers() {
    run_rows(&[
        ("tar cut in a body", |w| {
            let mut tar = layer_tar(&good_layer());
            tar.truncate(100_000);
            load(oci(w, "cut-body", plain(tar)).2, &["cut short"])
        }),
        ("tar cut in a header", |w| {
            let mut tar = layer_tar(&good_layer());
            tar.truncate(512 + 100);
            load(oci(w, "cut-header", plain(tar)).2, &["tar"])
        }),
        ("tar header with a wrong checksum", |w| {
            let mut tar = layer_tar(&good_layer());
            tar[0] ^= 1;
            load(oci(w, "checksum", plain(tar)).2, &["damaged"])
        }),
        ("not a tar at all", |w| load(oci(w, "noise", plain(vec![b'x'; 5000])).2, &["tar"])),
        ("gzip cut short", |w| {
            let tar = layer_tar(&good_layer());
            let mut blob = compress(&tar, Compression::Gzip);
            blob.truncate(blob.len() / 2);
            load(oci_with_blob(w, "gzip-cut", &tar, blob, "+gzip"), &[])
        }),
        ("gzip with a flipped byte", |w| {
            let tar = layer_tar(&good_layer());
            let mut blob = compress(&tar, Compression::Gzip);
            let middle = blob.len() / 2;
            blob[middle] ^= 0x55;
            load(oci_with_blob(w, "gzip-flip", &tar, blob, "+gzip"), &[])
        }),
        ("gzip with a wrong trailer", |w| {
            let tar = layer_tar(&good_layer());
            let mut blob = compress(&tar, Compression::Gzip);
            let at = blob.len() - 6;
            blob[at] ^= 0xff;
            load(oci_with_blob(w, "gzip-crc", &tar, blob, "+gzip"), &[])
        }),
        ("zstd cut short", |w| {
            let tar = layer_tar(&good_layer());
            let mut blob = compress(&tar, Compression::Zstd);
            blob.truncate(blob.len() / 2);
            load(oci_with_blob(w, "zstd-cut", &tar, blob, "+zstd"), &[])
        }),
        ("zstd with a flipped byte", |w| {
            let tar = layer_tar(&good_layer());
            let mut blob = compress(&tar, Compression::Zstd);
            let middle = blob.len() / 2;
            blob[middle] ^= 0x55;
            load(oci_with_blob(w, "zstd-flip", &tar, blob, "+zstd"), &[])
        }),
        ("a declared size of 8 EiB", |w| {
            let tar = hostile_tar(|tar| {
                tar.entry(&Header { name: b"huge", size: u64::MAX / 2, ..Header::default() }, b"tiny");
            });
            load(oci(w, "huge", plain(tar)).2, &[])
        }),
        ("a pax size that is no number", |w| {
            let tar = hostile_tar(|tar| {
                tar.pax(&[(b"size", b"12x")]).file("f", b"f");
            });
            load(oci(w, "pax", plain(tar)).2, &[])
        }),
        ("a pax header of 1 GiB", |w| {
            let tar = hostile_tar(|tar| {
                tar.entry(&Header { name: b"pax", size: 1 << 30, flag: b'x', ..Header::default() }, b"");
            });
            load(oci(w, "pax-huge", plain(tar)).2, &[])
        }),
    ]);
}

#[test]
fn paths_that_lead_out() {
    run_rows(&[
        ("../", |w| {
            let tar = hostile_tar(|tar| {
                tar.file("../../evil", b"e");
            });
            load(oci(w, "dotdot", plain(tar)).2, &["../../evil"])
        }),
        ("../ in the middle", |w| {
            let tar = hostile_tar(|tar| {
                tar.file("a/../../evil", b"e");
            });
            load(oci(w, "dotdot2", plain(tar)).2, &["a/../../evil"])
        }),
        ("a whiteout of ../", |w| {
            let tar = hostile_tar(|tar| {
                tar.file("../.wh.evil", b"");
            });
            load(oci(w, "wh-dotdot", plain(tar)).2, &["../.wh.evil"])
        }),
        ("below a symlink", |w| {
            let tar = hostile_tar(|tar| {
                tar.entry(&Header { name: b"link", link: b"/etc", flag: b'2', ..Header::default() }, b"");
                tar.file("link/passwd", b"e");
            });
            load(oci(w, "below-link", plain(tar)).2, &["link"])
        }),
        ("below a file", |w| {
            let tar = hostile_tar(|tar| {
                tar.file("harmless/below", b"e");
            });
            load(oci(w, "below-file", plain(tar)).2, &["harmless"])
        }),
        ("a hard link to outside", |w| {
            let tar = hostile_tar(|tar| {
                let header = Header { name: b"hard", link: b"../../../etc/passwd", flag: b'1', ..Header::default() };
                tar.entry(&header, b"");
            });
            load(oci(w, "hard-out", plain(tar)).2, &["hard"])
        }),
        ("a hard link to nothing", |w| {
            let tar = hostile_tar(|tar| {
                tar.entry(&Header { name: b"hard", link: b"absent", flag: b'1', ..Header::default() }, b"");
            });
            load(oci(w, "hard-none", plain(tar)).2, &["absent"])
        }),
        ("a hard link to a directory", |w| {
            let tar = hostile_tar(|tar| {
                tar.entry(&Header { name: b"dir/", mode: 0o755, flag: b'5', ..Header::default() }, b"");
                tar.entry(&Header { name: b"hard", link: b"dir", flag: b'1', ..Header::default() }, b"");
            });
            load(oci(w, "hard-dir", plain(tar)).2, &["hard"])
        }),
        ("a name of 256 bytes", |w| {
            let name = "n".repeat(256);
            let tar = hostile_tar(|tar| {
                tar.pax(&[(b"path", name.as_bytes())]).file("short", b"f");
            });
            load(oci(w, "long-name", plain(tar)).2, &["255"])
        }),
        ("a name with NUL", |w| {
            let tar = hostile_tar(|tar| {
                tar.pax(&[(b"path", b"a\0b")]).file("short", b"f");
            });
            load(oci(w, "nul", plain(tar)).2, &[])
        }),
        ("2000 directories deep", |w| {
            let path = "d/".repeat(2000) + "f";
            let tar = hostile_tar(|tar| {
                tar.pax(&[(b"path", path.as_bytes())]).file("short", b"f");
            });
            load(oci(w, "deep", plain(tar)).2, &["deep"])
        }),
    ]);
}

// Absolute names are no attack: as every other tool does, the slash is dropped and they land inside.
#[test]
fn absolute_names_land_inside() {
    world(|w| {
        let tar = hostile_tar(|tar| {
            tar.file("/etc/mlfs-absolute", b"inside");
            tar.file(".//./x//y", b"odd");
        });
        w.mlfs().ok(oci(w, "absolute", plain(tar)).2);
        assert_eq!(w.mlfs().ok(["cat", "bad", "/etc/mlfs-absolute"]), "inside");
        assert_eq!(w.mlfs().ok(["cat", "bad", "/x/y"]), "odd");
        assert!(!Path::new("/etc/mlfs-absolute").exists());
    });
}

#[test]
fn limits_have_flags() {
    run_rows(&[
        ("too many entries", |w| limited(w, "entries", "--max-entries", "2")),
        ("too deep", |w| limited(w, "depth", "--max-depth", "1")),
        ("too long a name", |w| limited(w, "name", "--max-name", "3")),
        ("too many xattr bytes", |w| limited(w, "xattr", "--max-xattr-bytes", "10")),
        ("too large unpacked", |w| limited(w, "unpacked", "--max-unpacked", "1000")),
    ]);
}

fn limited(w: &World, name: &str, flag: &str, value: &str) -> Case {
    let mut layer = good_layer();
    layer.file("x", "x").xattr("user.long", "0123456789012345");
    let (_, _, args) = oci(w, &format!("limit-{name}"), plain(layer_tar(&layer)));
    let mut args = args.to_vec();
    args.splice(2..2, [flag.to_owned(), value.to_owned()]);
    Case { args, code: 1, says: vec![flag.to_owned()] }
}

#[test]
fn wrong_digests_and_documents() {
    run_rows(&[
        ("a blob's content", |w| {
            let (dir, digests, args) = oci(w, "blob", plain(layer_tar(&good_layer())));
            let path = dir.join("blobs/sha256").join(digests.blobs[0].trim_start_matches("sha256:"));
            let mut bytes = std::fs::read(&path).expect("read");
            bytes[700] ^= 1;
            write(&path, bytes);
            load(args, &[&digests.blobs[0]])
        }),
        ("a blob's size", |w| {
            let (dir, digests, args) = oci(w, "size", plain(layer_tar(&good_layer())));
            let path = dir.join("blobs/sha256").join(digests.blobs[0].trim_start_matches("sha256:"));
            let mut bytes = std::fs::read(&path).expect("read");
            bytes.push(0);
            write(&path, bytes);
            load(args, &[&digests.blobs[0]])
        }),
        ("a blob that is missing", |w| {
            let (dir, digests, args) = oci(w, "missing", plain(layer_tar(&good_layer())));
            let sum = digests.blobs[0].trim_start_matches("sha256:").to_owned();
            std::fs::remove_file(dir.join("blobs/sha256").join(&sum)).expect("rm");
            load(args, &[&sum])
        }),
        ("a diffID", |w| {
            let (dir, digests, args) = oci(w, "diffid", plain(layer_tar(&good_layer())));
            let path = |digest: &str| dir.join("blobs/sha256").join(digest.trim_start_matches("sha256:"));
            let wrong = format!("sha256:{}", "5".repeat(64));
            let config = fuse_tests::world::read(path(&digests.config)).replace(&digests.diff_ids[0], &wrong);
            let new = digest(config.as_bytes());
            write(path(&new), &config);
            let manifest = fuse_tests::world::read(path(&digests.manifest)).replace(&digests.config, &new);
            put_manifest(&dir, &manifest);
            load(args, &[&wrong])
        }),
        ("the configuration", |w| {
            let (dir, digests, args) = oci(w, "config", plain(layer_tar(&good_layer())));
            let path = dir.join("blobs/sha256").join(digests.config.trim_start_matches("sha256:"));
            let text = fuse_tests::world::read(&path).replace("amd64", "arm64");
            write(&path, text);
            load(args, &[&digests.config])
        }),
        ("the manifest", |w| {
            let (dir, digests, args) = oci(w, "manifest", plain(layer_tar(&good_layer())));
            let path = dir.join("blobs/sha256").join(digests.manifest.trim_start_matches("sha256:"));
            let text = fuse_tests::world::read(&path).replace("\"schemaVersion\":2", "\"schemaVersion\":3");
            write(&path, text);
            load(args, &[&digests.manifest])
        }),
        ("a manifest that is no JSON", |w| {
            let (dir, _, args) = oci(w, "manifest-json", plain(layer_tar(&good_layer())));
            put_manifest(&dir, "{\"schemaVersion\": 2, \"layers\": [");
            load(args, &["manifest"])
        }),
        ("a manifest without layers", |w| {
            let (dir, _, args) = oci(w, "manifest-empty", plain(layer_tar(&good_layer())));
            put_manifest(&dir, "{\"schemaVersion\": 2}");
            load(args, &["manifest"])
        }),
        ("a digest that climbs", |w| {
            let (dir, digests, args) = oci(w, "digest-climbs", plain(layer_tar(&good_layer())));
            let path = dir.join("blobs/sha256").join(digests.manifest.trim_start_matches("sha256:"));
            let text = fuse_tests::world::read(&path).replace(&digests.blobs[0], "sha256:../../../../etc/passwd");
            put_manifest(&dir, &text);
            load(args, &[])
        }),
        ("an index.json cut short", |w| {
            let (dir, _, args) = oci(w, "index", plain(layer_tar(&good_layer())));
            let text = fuse_tests::world::read(dir.join("index.json"));
            write(dir.join("index.json"), &text[..text.len() / 2]);
            load(args, &["index.json"])
        }),
        ("a folder that is no layout", |w| {
            let dir = w.sandbox.dir("nothing");
            case(1, &["nothing"], &["image", "load", "-q", &format!("oci:{}", dir.display()), "bad"])
        }),
        ("a tag that is not there", |w| {
            let (dir, _, _) = oci(w, "tag", plain(layer_tar(&good_layer())));
            case(1, &["v9"], &["image", "load", "-q", &format!("oci:{}:v9", dir.display()), "bad"])
        }),
        ("a source that is not there", |w| {
            let path = w.sandbox.path("no-such-file").display().to_string();
            case(1, &[&path], &["image", "load", "-q", &format!("docker-archive:{path}"), "bad"])
        }),
        ("a docker archive cut short", |w| {
            let file = w.sandbox.path("cut.tar");
            write_docker(&file, &[layer_tar(&good_layer())], "bad:1");
            let bytes = std::fs::read(&file).expect("read");
            write(&file, &bytes[..bytes.len() / 2]);
            case(1, &[], &["image", "load", "-q", &format!("docker-archive:{}", file.display())])
        }),
        ("a docker archive without a manifest", |w| {
            let mut tar = Tar::new();
            tar.file("something", b"else");
            let file = w.sandbox.file("empty.tar", tar.finish());
            case(1, &["manifest.json"], &["image", "load", "-q", &format!("docker-archive:{}", file.display())])
        }),
        ("a docker archive whose layers lie outside", |w| {
            let mut tar = Tar::new();
            tar.file("c.json", br#"{"rootfs":{"type":"layers","diff_ids":[]}}"#);
            tar.file("manifest.json", br#"[{"Config":"c.json","RepoTags":["x:1"],"Layers":["../../etc/passwd"]}]"#);
            let file = w.sandbox.file("outside.tar", tar.finish());
            case(1, &[], &["image", "load", "-q", &format!("docker-archive:{}", file.display())])
        }),
        ("a docker archive whose layer is a symlink out of it", |w| {
            let mut tar = Tar::new();
            let link = Header { name: b"a/layer.tar", link: b"/etc/passwd", flag: b'2', ..Header::default() };
            tar.entry(&link, b"");
            let diff = digest(b"x");
            tar.file("c.json", format!(r#"{{"rootfs":{{"type":"layers","diff_ids":["{diff}"]}}}}"#).as_bytes());
            tar.file("manifest.json", br#"[{"Config":"c.json","RepoTags":["x:1"],"Layers":["a/layer.tar"]}]"#);
            let file = w.sandbox.file("symlink.tar", tar.finish());
            case(1, &[], &["image", "load", "-q", &format!("docker-archive:{}", file.display())])
        }),
        ("an unknown kind of source", |_| case(2, &["floppy"], &["image", "load", "-q", "floppy:disk", "bad"])),
        ("an impossible name", |w| {
            let (_, _, args) = oci(w, "name", plain(layer_tar(&good_layer())));
            let mut case = load(args, &["Bad Name"]);
            (case.args[4], case.code) = ("Bad Name".into(), 2);
            case
        }),
    ]);
}

fn mount_args(target: &Path) -> Case {
    case(1, &[], &["mount", "--name", "bad", "good", &target.display().to_string()])
}

fn layer_dir(w: &World) -> PathBuf {
    let dir = w.sandbox.dir("plain-layer");
    write(dir.join("f"), "f");
    std::fs::create_dir_all(dir.join("inside")).expect("mkdir");
    dir
}

#[test]
fn mountpoints_and_layers() {
    run_rows(&[
        ("a missing mountpoint", |w| {
            let path = w.sandbox.path("absent");
            Case { says: vec![path.display().to_string()], ..mount_args(&path) }
        }),
        ("a file as a mountpoint", |w| {
            let path = w.sandbox.file("a-file", "x");
            Case { says: vec![path.display().to_string()], ..mount_args(&path) }
        }),
        ("a mountpoint that is not empty", |w| {
            let path = w.sandbox.file("full/something", "x").parent().expect("parent").to_owned();
            Case { says: vec!["not empty".into()], ..mount_args(&path) }
        }),
        ("a mountpoint inside a layer", |w| {
            let dir = layer_dir(w).display().to_string();
            case(1, &["layer"], &["mount", "--name", "bad", "--layer", &dir, &format!("{dir}/inside")])
        }),
        ("a mountpoint that is the upper", |w| {
            let (dir, upper) = (layer_dir(w).display().to_string(), w.sandbox.dir("up").display().to_string());
            case(1, &["upper"], &["mount", "--name", "bad", "--upper", &upper, "--layer", &dir, &upper])
        }),
        ("a layer that is the upper", |w| {
            let (dir, target) = (layer_dir(w).display().to_string(), w.target("t").display().to_string());
            case(1, &["upper"], &["mount", "--name", "bad", "--upper", &dir, "--layer", &dir, &target])
        }),
        ("a layer inside the upper", |w| {
            let (dir, target) = (layer_dir(w).display().to_string(), w.target("t").display().to_string());
            let inside = format!("{dir}/inside");
            case(1, &["upper"], &["mount", "--name", "bad", "--upper", &dir, "--layer", &inside, &target])
        }),
        ("an upper inside a layer", |w| {
            let (dir, target) = (layer_dir(w).display().to_string(), w.target("t").display().to_string());
            let inside = format!("{dir}/inside");
            case(1, &["layer"], &["mount", "--name", "bad", "--upper", &inside, "--layer", &dir, &target])
        }),
        ("a missing layer", |w| {
            let (absent, target) =
                (w.sandbox.path("absent").display().to_string(), w.target("t").display().to_string());
            case(1, &[&absent], &["mount", "--name", "bad", "--layer", &absent, &target])
        }),
        ("a layer that is no archive", |w| {
            let file = w.sandbox.file("noise.tar", "this is no tar").display().to_string();
            case(1, &["noise.tar"], &["mount", "--name", "bad", "--layer", &file, &w.target("t").display().to_string()])
        }),
        ("an image and layers", |w| {
            let (dir, target) = (layer_dir(w).display().to_string(), w.target("t").display().to_string());
            case(2, &[], &["mount", "--layer", &dir, "good", &target])
        }),
        ("neither an image nor layers", |w| case(2, &[], &["mount", &w.target("t").display().to_string()])),
        ("an unknown flag", |w| {
            case(2, &["--frobnicate"], &["mount", "--frobnicate", "good", &w.target("t").display().to_string()])
        }),
        ("an unknown key of a configuration", |w| {
            let file = w.sandbox.file("bad.toml", "frobnicate = true\n").display().to_string();
            case(1, &["frobnicate"], &["--config", &file, "mount", "good", &w.target("t").display().to_string()])
        }),
        ("a configuration that is no TOML", |w| {
            let file = w.sandbox.file("broken.toml", "[[mount\n").display().to_string();
            case(1, &["broken.toml"], &["--config", &file, "mount", "good", &w.target("t").display().to_string()])
        }),
        ("a missing configuration", |w| {
            let file = w.sandbox.path("absent.toml").display().to_string();
            case(1, &["absent.toml"], &["--config", &file, "mount", "good", &w.target("t").display().to_string()])
        }),
    ]);
}

#[test]
fn already_mounted() {
    world(|w| {
        w.load("good", &[good_layer()]);
        let target = w.mount("box", &["good"]);
        let text = target.display().to_string();
        w.mlfs().fails(["mount", "--name", "second", "good", &text], 1, &text);
        assert_eq!(w.state("second"), None);
        w.mlfs().fails(["start", "box"], 1, "box");
        assert!(target.join("etc/conf").exists(), "the first mount goes on");
        assert_eq!(w.sandbox.mounts().len(), 1);
    });
}

#[test]
fn a_read_only_store() {
    world(|w| {
        w.load("good", &[good_layer()]);
        w.unguard_store();
        let store = w.sandbox.path("store");
        match identity() {
            Identity::User => {
                sh(&w.sandbox, &store, "find . -type d -exec chmod a-w {} +").ok();
            }
            _ => {
                let script = "mount --bind . . && mount -o remount,bind,ro .";
                sh(&w.sandbox, &store, script).ok();
            }
        }
        let (_, _, args) = oci(w, "another", plain(layer_tar(&good_layer())));
        let said = w.mlfs().run(&args).fails(1);
        assert!(said.contains(&*store.to_string_lossy()), "names the store: {said}");
        let said = w.mlfs().run(["volume", "create", "vol"]).fails(1);
        assert!(said.contains(&*store.to_string_lossy()), "names the store: {said}");
        // Looking still works.
        assert_eq!(w.mlfs().ok(["cat", "good", "/etc/conf"]), "conf");
        w.mlfs().ok(["image", "ls"]);
        w.mlfs().ok(["ps", "-a"]);
        if identity() == Identity::User {
            sh(&w.sandbox, &store, "find . -type d -exec chmod u+w {} +").ok();
        }
    });
}

#[test]
fn a_full_disk() {
    world(|w| {
        if identity() == Identity::User {
            skip("needs root: mounting a small tmpfs for the store");
        }
        let store = w.sandbox.dir("store");
        sh(&w.sandbox, &store, "mount -t tmpfs -o size=4m tmpfs .").ok();
        let mut small = LayerSpec::new();
        small.file("f", "small");
        w.load("small", &[small]);
        w.unguard_store();
        let before = store_tree(w);
        let mut big = LayerSpec::new();
        for number in 0..40u32 {
            let mut state = number + 1;
            let noise = std::iter::repeat_with(|| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            });
            big.raw(format!("f{number}"), What::File(noise.take(300_000).collect()));
        }
        let (_, _, args) = oci(w, "big", ImageLayer { tar: layer_tar(&big), compression: Compression::Gzip });
        w.mlfs().run(&args).fails_saying(1, "No space left on device");
        let compare = Compare { is_mtime: false, is_dir_mtime: false, ..Compare::ALL };
        before.assert_same(&store_tree(w), compare, "nothing of it stays");
        // And there is room again.
        let mut another = LayerSpec::new();
        another.file("g", vec![b'g'; 500_000]);
        w.load("another", &[another]);
        w.unguard_store();
    });
}

// ENOSPC in the upper while copying up: the file stays what it was and the temporary goes.
#[test]
fn a_full_upper() {
    world(|w| {
        if identity() == Identity::User {
            skip("needs root: mounting a small tmpfs for the upper");
        }
        let mut layer = LayerSpec::new();
        layer.file("large", vec![b'l'; 3 << 20]);
        layer.file("small", "s");
        w.load("app", &[layer]);
        let disk = w.sandbox.dir("disk");
        sh(&w.sandbox, &disk, "mount -t tmpfs -o size=2m tmpfs . && mkdir up").ok();
        let root = w.mount("box", &["--upper", &disk.join("up").display().to_string(), "app"]);
        for _ in 0..3 {
            let failed = std::fs::OpenOptions::new().append(true).open(root.join("large"));
            let failed = failed.and_then(|mut file| {
                std::io::Write::write_all(&mut file, b"more")?;
                file.sync_all()
            });
            let error = failed.expect_err("3 MiB do not fit into 2");
            assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::NOSPC.raw_os_error()));
        }
        assert_eq!(std::fs::read(root.join("large")).expect("read"), vec![b'l'; 3 << 20], "still the lower's");
        write(root.join("small"), "changed: there is room");
        w.umount("box");
    });
}

#[test]
fn a_newer_store() {
    world(|w| {
        w.load("good", &[good_layer()]);
        w.unguard_store();
        let meta = w.sandbox.path("store/meta.json");
        let old = fuse_tests::world::read(&meta);
        let mut value: serde_json::Value = serde_json::from_str(&old).expect("meta.json");
        let key = value.as_object().expect("object").keys().find(|key| key.to_lowercase().contains("version")).cloned();
        value[key.expect("a version")] = 999.into();
        write(&meta, value.to_string());
        for args in [["image", "ls"], ["ps", "-a"], ["volume", "ls"]] {
            let said = w.mlfs().run(args).fails(1);
            assert!(said.contains("999"), "tells the version: {said}");
        }
        assert_eq!(fuse_tests::world::read(&meta), value.to_string(), "and touches nothing");
        write(&meta, old);
        w.mlfs().ok(["image", "ls"]);
    });
}

#[test]
fn damaged_records_and_indexes() {
    world(|w| {
        w.load("good", &[good_layer()]);
        w.mount("box", &["good"]);
        w.umount("box");
        w.unguard_store();
        // A record cut short: one sentence that names the file.
        let script = "find containers -name '*.json' | head -n 1";
        let record = w.sandbox.path("store").join(sh(&w.sandbox, &w.sandbox.path("store"), script).ok());
        let old = std::fs::read(&record).expect("record");
        write(&record, &old[..old.len() / 2]);
        let said = w.mlfs().run(["inspect", "box"]).fails(1);
        assert!(said.contains(&*record.file_name().expect("name").to_string_lossy()), "{said}");
        write(&record, old);
        w.mlfs().ok(["inspect", "box"]);
    });
}

// A store used by somebody else's mlfs at the same time is not corrupted by a killed load.
#[test]
fn a_killed_load() {
    world(|w| {
        w.load("good", &[good_layer()]);
        w.unguard_store();
        let mut layer = LayerSpec::new();
        for number in 0..400u32 {
            layer.file(format!("f{number}"), number.to_le_bytes().repeat(20_000));
        }
        let (_, _, args) = oci(w, "slow", ImageLayer { tar: layer_tar(&layer), compression: Compression::Gzip });
        let mut command: Command = w.mlfs().command();
        command.args(&args).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let mut child = command.spawn().expect("spawn");
        std::thread::sleep(std::time::Duration::from_millis(120));
        child.kill().expect("kill");
        child.wait().expect("wait");
        let listed = w.mlfs().ok(["image", "ls"]);
        assert!(!listed.contains("bad") || w.mlfs().run(["cat", "bad", "/f399"]).code == 0, "a half image is listed");
        w.mlfs().ok(&args);
        assert_eq!(w.mlfs().run(["cat", "bad", "/f399"]).code, 0);
        w.mlfs().ok(["cat", "good", "/etc/conf"]);
    });
}

// Damage in the store is an error that names what is damaged; what is not damaged goes on.
#[test]
fn damaged_objects_and_indexes() {
    world(|w| {
        w.load("good", &[good_layer()]);
        w.unguard_store();
        let store = w.sandbox.path("store");
        let largest = |dir: &str| {
            let script = format!("find {dir} -type f -printf '%s %p\\n' | sort -n | tail -n 1 | cut -d' ' -f2");
            store.join(sh(&w.sandbox, &store, &script).ok())
        };
        let damage = |path: &Path, change: &dyn Fn(&mut Vec<u8>)| {
            let old = std::fs::read(path).expect("read");
            let mut new = old.clone();
            change(&mut new);
            // Written aside, so that nobody's mapping is cut short.
            std::fs::remove_file(path).expect("rm");
            write(path, new);
            old
        };
        let object = largest("objects");
        let old = damage(&object, &|bytes| bytes.truncate(bytes.len() / 2));
        let root = w.mount("box", &["good"]);
        let failed = std::fs::read(root.join("large")).expect_err("half an object");
        assert_eq!(failed.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
        assert_eq!(fuse_tests::world::read(root.join("etc/conf")), "conf", "the rest goes on");
        w.umount("box");
        let log = sh(&w.sandbox, &store, "cat containers/*/mlfs.log").ok();
        let name = object.file_name().expect("name").to_string_lossy().into_owned();
        assert!(log.contains(&name[..8]), "the log names the object {name}: {log}");
        std::fs::remove_file(&object).expect("rm");
        write(&object, old);
        w.mlfs().ok(["start", "box"]);
        assert_eq!(std::fs::read(root.join("large")).expect("whole again").len(), 800_000);
        w.umount("box");

        let index = largest("indexes");
        for (what, change) in [
            ("cut short", Box::new(|bytes: &mut Vec<u8>| bytes.truncate(bytes.len() / 2)) as Box<dyn Fn(&mut Vec<u8>)>),
            ("of another version", Box::new(|bytes: &mut Vec<u8>| bytes[..16].fill(0x7f))),
            ("with noise", Box::new(|bytes: &mut Vec<u8>| bytes.iter_mut().step_by(13).for_each(|byte| *byte ^= 0x5a))),
        ] {
            let old = damage(&index, &*change);
            // Derived data: it may be rebuilt, or refused in one sentence; never believed.
            let outcome = w.mlfs().run(["cat", "good", "/etc/conf"]);
            match outcome.code {
                0 => assert_eq!(outcome.stdout, "conf", "{what}"),
                _ => drop(outcome.fails(1)),
            }
            std::fs::remove_file(&index).expect("rm");
            write(&index, old);
        }
        assert_eq!(w.mlfs().ok(["cat", "good", "/etc/conf"]), "conf");
    });
}
