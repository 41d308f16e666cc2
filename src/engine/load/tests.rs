// SPDX-License-Identifier: MIT OR Apache-2.0
//! Loads of small images, good and bad; the command line's own table of bad input is in `fuse-tests`.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::PathBuf;

use super::*;
use crate::engine::image::{open_image, open_stored_layer};
use crate::layer::{Body, Child, Layer};
use crate::model::Name;
use crate::oci::reference::Input;
use crate::oci::spec::OCI_CONFIG;
use crate::store::Access;
use crate::store::gc::Force;

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

struct World {
    dir: tempfile::TempDir,
    store: Store,
}

fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store"), Access::Write).unwrap();
    // The files of locks are there from the first use on.
    drop(store.lock_record("names", "images", Wait::Block).unwrap());
    drop(store.lock(Mode::Shared, Wait::Block).unwrap());
    drop(store.publish(store.lock_loads().unwrap()).unwrap());
    World { dir, store }
}

fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, path, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn big(seed: u8) -> Vec<u8> {
    (0..700_000u32).map(|i| (i / 251) as u8 ^ (i as u8) ^ seed).collect()
}

/// Writes a layout; `(tar, blob, type)` per layer. Answers the digest of the manifest.
fn layout(dir: &Path, layers: &[(Vec<u8>, Vec<u8>, &str)]) -> Digest {
    fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
    let put = |bytes: &[u8], media_type: &str| {
        let digest = Digest::of(bytes);
        fs::write(dir.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        BlobRef { digest, size: bytes.len() as u64, media_type: media_type.to_owned() }
    };
    let diff_ids: Vec<_> = layers.iter().map(|(tar, ..)| Digest::of(tar).to_string()).collect();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "created": "2024-01-02T03:04:05Z",
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
        "history": [{ "created_by": "one" }, { "created_by": "none", "empty_layer": true }, { "created_by": "two" }],
    });
    let config = put(config.to_string().as_bytes(), OCI_CONFIG);
    let blobs: Vec<_> = layers.iter().map(|(_, blob, media_type)| put(blob, media_type)).collect();
    let manifest = put(&make_manifest(&config, &blobs), OCI_MANIFEST);
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [{
        "mediaType": OCI_MANIFEST, "digest": manifest.digest.to_string(), "size": manifest.size,
        "annotations": { "org.opencontainers.image.ref.name": "v1" },
    }]});
    fs::write(dir.join("index.json"), index.to_string()).unwrap();
    fs::write(dir.join("oci-layout"), "{\"imageLayoutVersion\":\"1.0.0\"}").unwrap();
    manifest.digest
}

fn three_layers() -> Vec<(Vec<u8>, Vec<u8>, &'static str)> {
    let one = tar_of(&[("etc/a", b"a"), ("big", &big(1)), ("same", &big(9))]);
    let two = tar_of(&[("etc/b", b"b"), ("mid", &big(2)[..10_000]), ("same2", &big(9))]);
    let three = tar_of(&[("etc/.wh.a", b"")]);
    let blobs = [gzip(&one), zstd::encode_all(&two[..], 1).unwrap(), three.clone()];
    let [a, b, c] = blobs;
    vec![(one, a, GZIP), (two, b, ZSTD), (three, c, OCI_LAYER)]
}

fn load(w: &World, source: &Source, name: Option<&str>) -> Result<Loaded> {
    let name: Option<ImageName> = name.map(|n| n.parse().unwrap());
    load_image(&w.store, source, name.as_ref(), &Limits::default(), &Silent)
}

fn oci(dir: &Path) -> Source {
    Source::Oci { dir: dir.to_owned(), tag: None }
}

/// Names and contents of all there is in the store.
fn tree(w: &World) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut stack = vec![w.store.root().to_owned()];
    while let Some(dir) = stack.pop() {
        all.insert(dir.clone(), Vec::new());
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                stack.push(path);
            } else {
                all.insert(path.clone(), fs::read(&path).unwrap());
            }
        }
    }
    all
}

fn read(layer: &dyn Layer, path: &str) -> Option<Vec<u8>> {
    let mut at = layer.root().unwrap();
    for part in path.split('/') {
        match layer.child(&at.entry, Name::new(part.as_bytes()).unwrap()).unwrap() {
            Child::Found(found) => at = found,
            _ => return None,
        }
    }
    Some(match layer.open(&at.entry).unwrap() {
        Body::Bytes(bytes) => bytes.to_vec(),
        Body::File(fd) => {
            let mut bytes = Vec::new();
            File::from(fd).read_to_end(&mut bytes).unwrap();
            bytes
        }
    })
}

#[test]
fn an_image_of_all_compressions_is_loaded_opened_and_removed() {
    let w = world();
    let empty = tree(&w);
    let dir = w.dir.path().join("app");
    let manifest = layout(&dir, &three_layers());
    let loaded = load(&w, &oci(&dir), None).unwrap();
    assert_eq!(loaded, Loaded { manifest, names: vec!["app:v1".to_owned()] });
    let image = open_image(&w.store, "app:v1").unwrap();
    let commands: Vec<_> = image.layers.iter().map(|l| l.created_by.as_deref()).collect();
    assert_eq!(commands, [Some("one"), Some("two"), None]);
    assert_eq!(read(&*image.layers[0].layer, "big").unwrap(), big(1));
    assert_eq!(read(&*image.layers[1].layer, "etc/b").unwrap(), b"b");
    assert_eq!(read(&*image.layers[1].layer, "same2").unwrap(), big(9));
    assert_eq!(image.layers[2].layer.stats().whiteouts, 1);
    let objects = tree(&w).keys().filter(|p| p.starts_with(w.store.layout().objects()) && p.is_file()).count();
    assert_eq!(objects, 3, "equal bodies are one object");
    // Loading it again, under another name too, adds nothing but the name.
    let before = tree(&w);
    load(&w, &oci(&dir), None).unwrap();
    assert!(tree(&w) == before);
    load(&w, &oci(&dir), Some("other")).unwrap();
    assert_eq!(tree(&w).len(), before.len());

    drop(image);
    w.store.remove_image("other", Force::No).unwrap();
    let removed = w.store.remove_image("app:v1", Force::No).unwrap();
    assert!(removed.deleted == Some(manifest) && removed.bytes > 700_000);
    let index = w.store.layout().oci_index();
    let left: Vec<_> = tree(&w).into_keys().collect();
    assert_eq!(left, empty.into_keys().collect::<Vec<_>>());
    assert!(!fs::read_to_string(index).unwrap().contains("app:v1"));
}

#[test]
fn a_load_repairs_objects_of_a_wrong_size() {
    use std::os::unix::fs::PermissionsExt;
    let w = world();
    let layers = three_layers();
    let dir = w.dir.path().join("app");
    layout(&dir, &layers);
    load(&w, &oci(&dir), None).unwrap();
    let whole = tree(&w);
    // A body that travels in pieces and one that travels whole.
    let (large, small) = (Digest::of(&big(1)), Digest::of(&big(2)[..10_000]));
    type Damage = fn(&Path);
    let cases: [(&str, Damage); 4] = [
        ("cut short", |path| fs::write(path, "short").unwrap()),
        ("too long", |path| {
            let mut file = fs::OpenOptions::new().append(true).open(path).unwrap();
            file.write_all(b"more").unwrap();
        }),
        ("missing", |path| fs::remove_file(path).unwrap()),
        ("a symlink", |path| {
            fs::remove_file(path).unwrap();
            std::os::unix::fs::symlink("/etc/passwd", path).unwrap();
        }),
    ];
    let tar = w.dir.path().join("one.tar");
    fs::write(&tar, &layers[0].0).unwrap();
    for (name, damage) in cases {
        for digest in [&large, &small] {
            let path = w.store.layout().object(digest);
            if path.is_file() {
                fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
            }
            damage(&path);
        }
        let image = open_image(&w.store, "app:v1").unwrap();
        let at = image.layers[0].layer.root().unwrap();
        let Child::Found(at) = image.layers[0].layer.child(&at.entry, Name::new(b"big").unwrap()).unwrap() else {
            panic!("{name}")
        };
        assert!(image.layers[0].layer.open(&at.entry).is_err(), "{name}");
        // A tar by itself is always read; it repairs its own object, the image the rest.
        load_layer_tar(&w.store, &tar, &Limits::default(), &Silent).unwrap();
        assert_eq!(read(&*image.layers[0].layer, "big").unwrap(), big(1), "{name}");
        load(&w, &oci(&dir), None).unwrap();
        assert_eq!(read(&*image.layers[1].layer, "mid").unwrap(), big(2)[..10_000], "{name}");
        assert!(tree(&w) == whole, "{name}: nothing else has changed");
    }
}

#[test]
fn what_other_images_and_layers_need_stays() {
    let w = world();
    let layers = three_layers();
    let (first, second) = (w.dir.path().join("first"), w.dir.path().join("second"));
    layout(&first, &layers);
    layout(&second, &layers[1..]);
    load(&w, &oci(&first), None).unwrap();
    load(&w, &oci(&second), None).unwrap();
    w.store.remove_image("first:v1", Force::No).unwrap();
    let image = open_image(&w.store, "second:v1").unwrap();
    assert_eq!(read(&*image.layers[0].layer, "same2").unwrap(), big(9));
    assert!(!w.store.layout().index(&Digest::of(&layers[0].0)).exists());
    assert!(!w.store.layout().object(&Digest::of(&big(1))).exists());
}

/// Says that a layer is staged, and waits until it may end.
struct Halt {
    staged: std::sync::mpsc::SyncSender<()>,
    go_on: Mutex<std::sync::mpsc::Receiver<()>>,
}

impl Progress for Halt {
    fn begin(&self, _number: usize, _label: &str, _bytes: Option<u64>) {}
    fn advance(&self, _number: usize, _bytes: u64) {}
    fn end(&self, _number: usize) {
        self.staged.send(()).unwrap();
        lock(&self.go_on).recv().unwrap();
    }
}

/// Loads `source`, which fails when all is published, while `meanwhile` runs.
fn fail_when_published(w: &World, source: &Source, manifest: &Digest, meanwhile: impl FnOnce()) {
    let index = w.store.layout().oci_index();
    let good = fs::read(&index).unwrap();
    let names = w.store.lock_record("names", "images", Wait::Block).unwrap();
    std::thread::scope(|scope| {
        let failing = scope.spawn(|| load(w, source, None));
        while !w.store.layout().blob(manifest).exists() && !failing.is_finished() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        meanwhile();
        fs::write(&index, "damaged").unwrap();
        drop(names);
        failing.join().unwrap().unwrap_err();
        fs::write(&index, good).unwrap();
    });
}

#[test]
fn a_failed_load_leaves_another_load_what_it_relies_on() {
    let w = world();
    let before = tree(&w);
    let layers = three_layers();
    let first = w.dir.path().join("first");
    let manifest = layout(&first, &layers);
    fail_when_published(&w, &oci(&first), &manifest, || {});
    assert!(tree(&w) == before, "alone, it takes back all");

    // One layer as it is in the first image, and one of its bodies in another layer.
    let own = tar_of(&[("own", &big(1)), ("other", &big(3))]);
    let second = w.dir.path().join("second");
    layout(&second, &[layers[1].clone(), (own.clone(), own, OCI_LAYER)]);
    let (staged, is_staged) = std::sync::mpsc::sync_channel(0);
    let (release, go_on) = std::sync::mpsc::sync_channel(1);
    let halt = Halt { staged, go_on: Mutex::new(go_on) };
    std::thread::scope(|scope| {
        let mut loading = None;
        fail_when_published(&w, &oci(&first), &manifest, || {
            let source = oci(&second);
            let (w, halt) = (&w, &halt);
            loading = Some(scope.spawn(move || load_image(&w.store, &source, None, &Limits::default(), halt)));
            is_staged.recv().unwrap();
        });
        release.send(()).unwrap();
        loading.unwrap().join().unwrap().unwrap();
    });
    let image = open_image(&w.store, "second:v1").unwrap();
    assert_eq!(read(&*image.layers[0].layer, "same2").unwrap(), big(9));
    assert_eq!(read(&*image.layers[1].layer, "own").unwrap(), big(1));
    assert_eq!(read(&*image.layers[1].layer, "other").unwrap(), big(3));
}

#[test]
fn damage_is_named_and_leaves_nothing() {
    let w = world();
    let good = three_layers();
    let blob = |dir: &Path, digest: &Digest| dir.join("blobs/sha256").join(digest.hex());
    let flipped = |bytes: &[u8], at: usize| {
        let mut bytes = bytes.to_vec();
        bytes[at] ^= 1;
        bytes
    };
    type Damage<'a> = Box<dyn Fn(&Path) -> String + 'a>;
    let of_layer = |number: usize, bytes: Vec<u8>| -> Damage<'_> {
        let digest = Digest::of(&good[number].1);
        Box::new(move |dir: &Path| {
            fs::write(blob(dir, &digest), &bytes).unwrap();
            digest.to_string()
        })
    };
    let cases: Vec<(&str, Damage<'_>)> = vec![
        ("a flipped byte in gzip", of_layer(0, flipped(&good[0].1, good[0].1.len() / 2))),
        ("a flipped byte in zstd", of_layer(1, flipped(&good[1].1, good[1].1.len() / 2))),
        ("a flipped byte in a tar", of_layer(2, flipped(&good[2].1, 3))),
        ("a cut blob", of_layer(0, good[0].1[..good[0].1.len() - 100].to_vec())),
        ("a longer blob", of_layer(1, [&good[1].1[..], b"x"].concat())),
        ("an empty blob", of_layer(2, Vec::new())),
        (
            "a missing blob",
            Box::new(|dir: &Path| {
                let digest = Digest::of(&good[1].1);
                fs::remove_file(blob(dir, &digest)).unwrap();
                digest.to_string()
            }),
        ),
    ];
    let before = tree(&w);
    for (name, damage) in cases {
        let dir = tempfile::tempdir().unwrap();
        layout(dir.path(), &good);
        let said = damage(dir.path());
        let error = load(&w, &oci(dir.path()), Some("x")).unwrap_err().sentence();
        assert!(error.contains(&said), "{name}: {error}");
        assert!(tree(&w) == before, "{name}");
    }
    // Blobs that are what the manifest says, but not what the configuration says.
    let mut layers = good.clone();
    layers[1].0 = tar_of(&[("other", b"")]);
    let dir = w.dir.path().join("diff");
    layout(&dir, &layers);
    let error = load(&w, &oci(&dir), Some("x")).unwrap_err().sentence();
    assert!(error.contains(&Digest::of(&layers[1].0).to_string()) && error.contains("diffID"), "{error}");
    assert!(tree(&w) == before);
}

#[test]
fn documents_that_do_not_fit_are_refused() {
    let w = world();
    let before = tree(&w);
    let good = three_layers();
    let dir = w.dir.path().join("a");
    let manifest = layout(&dir, &good);
    let wrong = format!("x@{}", Digest([7; 32]));
    assert!(load(&w, &oci(&dir), Some(&wrong)).unwrap_err().sentence().contains(&manifest.to_string()));
    let path = dir.join("blobs/sha256").join(manifest.hex());
    fs::write(&path, fs::read_to_string(&path).unwrap() + " ").unwrap();
    assert!(load(&w, &oci(&dir), Some("x")).unwrap_err().sentence().contains(&manifest.to_string()));

    // One layer less in the manifest than in the configuration.
    let text = fs::read(&path).unwrap();
    let mut document: serde_json::Value = serde_json::from_slice(&text).unwrap();
    document["layers"].as_array_mut().unwrap().pop();
    let bytes = document.to_string();
    let digest = Digest::of(bytes.as_bytes());
    fs::write(dir.join("blobs/sha256").join(digest.hex()), &bytes).unwrap();
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [{
        "mediaType": OCI_MANIFEST, "digest": digest.to_string(), "size": bytes.len() }]});
    fs::write(dir.join("index.json"), index.to_string()).unwrap();
    let error = load(&w, &oci(&dir), Some("x")).unwrap_err().sentence();
    assert!(error.contains("3 layers, the manifest has 2"), "{error}");
    assert!(tree(&w) == before);
}

#[test]
fn limits_hold_over_all_layers() {
    let w = world();
    let before = tree(&w);
    let dir = w.dir.path().join("a");
    layout(&dir, &three_layers());
    for (limits, flag) in [
        (Limits { max_unpacked: 1_500_000, ..Limits::default() }, "--max-unpacked"),
        (Limits { max_entries: 7, ..Limits::default() }, "--max-entries"),
    ] {
        let error = load_image(&w.store, &oci(&dir), None, &limits, &Silent).unwrap_err().sentence();
        assert!(error.contains(flag), "{error}");
        assert!(tree(&w) == before);
    }
    // A bomb behind the end mark counts as well.
    let tar = [tar_of(&[("a", b"")]), vec![0; 3_000_000]].concat();
    let dir = w.dir.path().join("bomb");
    layout(&dir, &[(tar.clone(), gzip(&tar), GZIP)]);
    let limits = Limits { max_unpacked: 1_000_000, ..Limits::default() };
    let error = load_image(&w.store, &oci(&dir), None, &limits, &Silent).unwrap_err().sentence();
    assert!(error.contains("--max-unpacked"), "{error}");
    assert!(tree(&w) == before);
}

#[test]
fn docker_archives_have_symlinked_layers() {
    let w = world();
    let layers = three_layers();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux",
        "rootfs": { "type": "layers", "diff_ids": [
            Digest::of(&layers[0].0).to_string(), Digest::of(&layers[2].0).to_string(), Digest::of(&layers[0].0).to_string(),
        ]},
    })
    .to_string();
    let name = format!("{}.json", Digest::of(config.as_bytes()).hex());
    let manifest = serde_json::json!([{ "Config": name, "RepoTags": ["app:1", "app:latest"],
        "Layers": ["one/layer.tar", "two/layer.tar", "three/layer.tar"] }]);
    let mut builder = tar::Builder::new(Vec::new());
    let mut add = |path: &str, content: &[u8], link: Option<&str>| {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        match link {
            Some(target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                builder.append_link(&mut header, path, target).unwrap();
            }
            None => builder.append_data(&mut header, path, content).unwrap(),
        }
    };
    add("one/layer.tar", &layers[0].0, None);
    add("two/layer.tar", &layers[2].0, None);
    add("three/layer.tar", b"", Some("../one/layer.tar"));
    add(&name, config.as_bytes(), None);
    add("manifest.json", manifest.to_string().as_bytes(), None);
    let bytes = builder.into_inner().unwrap();
    for (file, bytes) in [("saved.tar", bytes.clone()), ("saved.tar.gz", gzip(&bytes))] {
        let path = w.dir.path().join(file);
        fs::write(&path, bytes).unwrap();
        let source = Source::DockerArchive { file: Input::File(path), tag: Some("1".to_owned()) };
        let loaded = load(&w, &source, None).unwrap();
        assert_eq!(loaded.names, ["app:1", "app:latest"]);
        let image = open_image(&w.store, "app").unwrap();
        assert_eq!((image.manifest, image.layers.len()), (loaded.manifest, 3));
        assert_eq!(read(&*image.layers[2].layer, "big").unwrap(), big(1));
    }
}

#[test]
fn archives_are_layers_of_their_own() {
    let w = world();
    let tar = three_layers().remove(0).0;
    let write = |name: &str, bytes: &[u8]| {
        let path = w.dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    for (name, bytes) in
        [("a.tar", tar.clone()), ("a.tar.gz", gzip(&tar)), ("a.tar.zst", zstd::encode_all(&tar[..], 1).unwrap())]
    {
        let digest = load_layer_tar(&w.store, &write(name, &bytes), &Limits::default(), &Silent).unwrap();
        assert_eq!(digest, Digest::of(&tar));
        assert_eq!(read(&*open_stored_layer(&w.store, &digest).unwrap(), "same").unwrap(), big(9));
    }
    let before = tree(&w);
    for (bytes, says) in
        [(&tar[..tar.len() - 1024], "cut short"), (&b""[..], "cut short"), (&b"hello"[..], "cut short")]
    {
        let error = load_layer_tar(&w.store, &write("bad.tar", bytes), &Limits::default(), &Silent).unwrap_err();
        assert!(error.sentence().contains(says) && error.sentence().contains("bad.tar"), "{}", error.sentence());
    }
    assert!(tree(&w) == before);
    // Nobody needs them: they go with the next collection.
    w.store.collect().unwrap();
    assert!(open_stored_layer(&w.store, &Digest::of(&tar)).is_err());
}

#[test]
fn a_damaged_index_is_made_anew() {
    let w = world();
    let dir = w.dir.path().join("app");
    let layers = three_layers();
    layout(&dir, &layers);
    load(&w, &oci(&dir), None).unwrap();
    let path = w.store.layout().index(&Digest::of(&layers[0].0));
    let whole = fs::read(&path).unwrap();
    for damaged in [Vec::new(), whole[..whole.len() - 1].to_vec(), vec![0; 5000]] {
        fs::write(&path, damaged).unwrap();
        let image = open_image(&w.store, "app:v1").unwrap();
        assert_eq!(read(&*image.layers[0].layer, "big").unwrap(), big(1));
        assert!(fs::read(&path).unwrap() == whole, "the same tar gives the same index");
    }
    fs::remove_file(&path).unwrap();
    open_image(&w.store, "app:v1").unwrap();
}

#[test]
fn an_image_in_use_is_not_removed() {
    let w = world();
    let dir = w.dir.path().join("app");
    let manifest = layout(&dir, &three_layers());
    load(&w, &oci(&dir), Some("app")).unwrap();
    load(&w, &oci(&dir), Some("alias:2")).unwrap();
    let record = serde_json::json!({
        "id": "c1", "name": "box", "created": "", "image": manifest.to_string(), "layers": [], "ownership": "native",
        "stopTimeoutMs": 0, "incomplete": true,
    });
    let container = w.store.layout().container("c1");
    fs::create_dir(&container).unwrap();
    fs::write(container.join("container.json"), record.to_string()).unwrap();
    // Another name may go; the last one may not.
    assert_eq!(w.store.remove_image("alias:2", Force::No).unwrap().untagged, ["alias:2"]);
    for force in [Force::No, Force::Yes] {
        let error = w.store.remove_image("app", force).unwrap_err().to_string();
        assert!(error.contains("container box"), "{error}");
    }
    let second = w.dir.path().join("second");
    layout(&second, &three_layers()[..1]);
    // The name moves on; the image stays, nameless, for its container.
    load(&w, &oci(&second), Some("app")).unwrap();
    assert!(w.store.remove_image(&manifest.to_string(), Force::Yes).is_err());
    w.store.collect().unwrap();
    fs::remove_dir_all(&container).unwrap();
    w.store.remove_image(&manifest.to_string(), Force::No).unwrap();
    assert!(open_image(&w.store, "app").is_ok());
}

#[test]
fn loads_side_by_side_agree() {
    let w = world();
    let layers = three_layers();
    std::thread::scope(|scope| {
        for number in 0..4 {
            let dir = w.dir.path().join(format!("par{}", number % 2));
            let (w, layers) = (&w, &layers);
            if number < 2 {
                layout(&dir, &layers[number..]);
            }
            scope.spawn(move || load(w, &oci(&dir), None).unwrap());
        }
    });
    for name in ["par0:v1", "par1:v1"] {
        let image = open_image(&w.store, name).unwrap();
        assert_eq!(image.layers.last().unwrap().layer.stats().whiteouts, 1);
    }
}

/// A store of format version 1, as it was written when that version was new: it must be readable for ever.
fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuse-tests/fixtures/store-v1")
}

#[test]
fn a_store_of_version_1_is_read() {
    let store = Store::open(&fixture(), Access::Read).unwrap();
    let image = open_image(&store, "fixture:1").unwrap();
    assert_eq!(image.manifest.short(), "89f9482f737f");
    let [bottom, top] = image.layers.as_slice() else { panic!("{} layers", image.layers.len()) };
    let found = |path: &str| {
        let mut at = bottom.layer.root().unwrap();
        for part in path.split('/').filter(|p| !p.is_empty()) {
            match bottom.layer.child(&at.entry, Name::new(part.as_bytes()).unwrap()).unwrap() {
                Child::Found(next) => at = next,
                other => panic!("{path}: {other:?}"),
            }
        }
        at
    };
    assert_eq!(read(&*bottom.layer, "etc/passwd").unwrap(), b"root\n");
    assert_eq!(found("etc/passwd").birth, found("etc/hard").birth);
    assert_eq!(found("etc/hard").attr.nlink, 2);
    assert_eq!(bottom.layer.read_link(&found("bin/link").entry).unwrap(), b"../etc/passwd");
    assert_eq!((found("null").attr.rdev, found("tmp").attr.perm), (0x103, 0o1777));
    let old = found("etc/old").attr;
    assert_eq!((old.uid, old.gid, old.mtime.secs, old.mtime.nanos), (1000, 1000, -2, 750_000_000));
    let big = found("etc/big");
    assert_eq!(bottom.layer.xattr(&big.entry, b"user.x").unwrap().unwrap(), b"y");
    assert_eq!(read(&*bottom.layer, "etc/big").unwrap().len(), 6393);
    assert_eq!((top.layer.stats().whiteouts, top.layer.stats().files), (2, 3));
    assert!(read(&*top.layer, "etc/old").is_none());
}

#[test]
fn a_copy_of_a_store_without_empty_folders_is_used() {
    let w = world();
    let copy = w.dir.path().join("copy");
    let done = std::process::Command::new("cp").arg("-r").arg(fixture()).arg(&copy).status().unwrap();
    assert!(done.success());
    let store = Store::open(&copy, Access::Write).unwrap();
    store.remove_image("fixture:1", Force::No).unwrap();
    assert_eq!(fs::read_dir(store.layout().blobs()).unwrap().count(), 0);
    fs::write(store.layout().meta(), "{\"version\": 2}").unwrap();
    let error = Store::open(&copy, Access::Read).unwrap_err().to_string();
    assert!(error.contains("format version 2") && error.contains("use a newer mlfs"), "{error}");
}

#[test]
fn entries_below_a_symlink_of_a_lower_layer_are_refused() {
    let w = world();
    let link = {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, kind, target) in [
            ("bin", tar::EntryType::Symlink, "usr/bin"),
            ("usr/bin/", tar::EntryType::Directory, ""),
            ("file", tar::EntryType::Regular, ""),
        ] {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(0);
            header.set_mode(0o755);
            if !target.is_empty() {
                header.set_link_name(target).unwrap();
            }
            builder.append_data(&mut header, path, &b""[..]).unwrap();
        }
        builder.into_inner().unwrap()
    };
    let with_dir = {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_size(0);
        header.set_mode(0o755);
        builder.append_data(&mut header, "bin/", &b""[..]).unwrap();
        builder.into_inner().unwrap()
    };
    let plain = |tar: Vec<u8>| (tar.clone(), tar, OCI_LAYER);
    let middle = tar_of(&[("etc/x", b"")]);
    for (number, (top, says)) in [
        (tar_of(&[("bin/x", b"")]), Some("\"/bin\", which is a symlink in a lower layer")),
        (tar_of(&[("file/x", b"")]), Some("\"/file\", which is no directory")),
        (tar_of(&[("usr/bin/x", b""), ("etc/x", b"")]), None),
        // Removed and made anew, or made anew by an entry of its own: the symlink is gone.
        (tar_of(&[(".wh.bin", b""), ("bin/x", b"")]), None),
        (with_dir, None),
    ]
    .into_iter()
    .enumerate()
    {
        let before = tree(&w);
        let dir = w.dir.path().join(format!("s{number}"));
        layout(&dir, &[plain(link.clone()), plain(middle.clone()), plain(top)]);
        match (load(&w, &oci(&dir), None), says) {
            (Ok(_), None) => {}
            (Err(error), Some(says)) => {
                assert!(error.sentence().contains(says), "{}", error.sentence());
                assert!(tree(&w) == before);
            }
            (result, says) => panic!("{number}: {result:?} {says:?}"),
        }
    }
}
