// SPDX-License-Identifier: MIT OR Apache-2.0
//! `mlfs fsck`: one row per kind of damage: what is done, what fsck must say, whether --repair mends it, and what the
//! container shows after that. Without --repair nothing may change; with it, a second look must find nothing.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use fuse_tests::cli::{Mlfs, Outcome, bare, run};
use fuse_tests::identity::{Identity, identity};
use fuse_tests::layers::make_node;
use fuse_tests::world::{World, kill, list, read, world, write};
use fuse_tests::{Compare, LayerSpec, Tree};
use rustix::fs::{FileType, XattrFlags, lgetxattr, lremovexattr, lsetxattr};

/// What --repair must come to.
#[derive(Clone, Copy)]
enum Cure {
    /// All is well again.
    Mended,
    /// It stays as it is, with this reason.
    Refused(&'static str),
    /// What was wrong is put aside, and this is left to the user.
    InPart(&'static str),
}
use Cure::{InPart, Mended, Refused};

/// One kind of damage: its name, the deed, what fsck says, what --repair comes to, what the mount shows then (`None`: it
/// is not mounted).
type Row = (&'static str, fn(&Store), &'static str, Cure, Option<fn(&Path)>);

/// A store with the container `box` of the image `app`, that has changed something of every kind.
struct Store {
    root: PathBuf,
}

impl Store {
    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn container(&self) -> PathBuf {
        let all = list(self.path("containers"));
        self.path("containers").join(all.iter().find(|name| name.len() == 64).expect("a container"))
    }

    fn upper(&self, name: &str) -> PathBuf {
        self.container().join("upper").join(name)
    }

    fn volume(&self, name: &str) -> PathBuf {
        self.path("volumes/vol").join(name)
    }

    /// The blob, index or object that is the largest: that of the layer with the large file, or of that file.
    fn largest(&self, folder: &str) -> PathBuf {
        let mut found = Vec::new();
        files(&self.path(folder), &mut found);
        found.into_iter().max_by_key(|path| std::fs::metadata(path).expect("stat").len()).expect("a file")
    }

    /// A blob that begins so.
    fn blob(&self, has: &str) -> PathBuf {
        let mut found = Vec::new();
        files(&self.path("blobs"), &mut found);
        found.into_iter().find(|path| read(path).contains(has)).expect("a blob")
    }

    fn change(&self, path: &Path, from: &str, to: &str) {
        let text = read(path);
        assert!(text.contains(from), "{from} in {text}");
        write(path, text.replace(from, to));
    }
}

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for name in list(dir) {
        let path = dir.join(name);
        if path.is_dir() { files(&path, found) } else { found.push(path) }
    }
}

fn writable(path: &Path) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).expect("chmod");
}

/// Turns one bit, as a bad disk does.
fn flip(path: &Path) {
    let mut bytes = std::fs::read(path).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    writable(path);
    write(path, bytes);
}

fn replace(path: &Path, by: fn(&Path)) {
    if path.is_dir() {
        std::fs::remove_dir_all(path).expect("remove");
    } else {
        std::fs::remove_file(path).expect("remove");
    }
    by(path);
}

fn fifo(path: &Path) {
    make_node(path, FileType::Fifo, 0, 0);
}

fn dir(path: &Path) {
    std::fs::create_dir(path).expect("mkdir");
}

fn link(path: &Path) {
    symlink("/etc/passwd", path).expect("symlink");
}

/// The mark's name in the space in which whoever runs the suite has marks.
fn mark(name: &str) -> String {
    let space = if identity() == Identity::Root { "trusted" } else { "user" };
    format!("{space}.overlay.{name}")
}

fn set(path: &Path, name: &str, value: &[u8]) {
    lsetxattr(path, name, value, XattrFlags::empty()).unwrap_or_else(|e| panic!("{name} on {}: {e}", path.display()));
}

fn get(path: &Path, name: &str) -> Vec<u8> {
    let mut value = vec![0; 4096];
    let length = lgetxattr(path, name, &mut value[..]).unwrap_or_else(|e| panic!("{name} of {}: {e}", path.display()));
    value.truncate(length);
    value
}

fn layers() -> [LayerSpec; 2] {
    let (mut bottom, mut top) = (LayerSpec::new(), LayerSpec::new());
    bottom.file("etc/conf", "conf");
    bottom.file("gone", "gone");
    bottom.file("large", large());
    bottom.file("d/a", "linked");
    bottom.hardlink("d/b", "d/a");
    bottom.file("opq/old", "old");
    bottom.file("other/x", "x");
    top.file("top", "top");
    [bottom, top]
}

fn large() -> Vec<u8> {
    (0..60_000u32).flat_map(u32::to_le_bytes).collect()
}

/// Makes the store once, and lets it be copied for each row.
fn prepare(w: &World) {
    w.load("app", &layers());
    w.unguard_store();
    let mut args = vec!["-v", "vol:/vol"];
    if identity() == Identity::User {
        args.extend(["--owner", "me"]);
    }
    args.push("app");
    let root = w.mount("box", &args);
    write(root.join("etc/conf"), "changed");
    std::fs::remove_file(root.join("gone")).expect("rm");
    std::fs::rename(root.join("d"), root.join("moved")).expect("rename");
    write(root.join("moved/a"), "WRITTEN");
    std::fs::set_permissions(root.join("large"), std::fs::Permissions::from_mode(0o600)).expect("chmod");
    std::fs::remove_dir_all(root.join("opq")).expect("rm -r");
    dir(&root.join("opq"));
    write(root.join("vol/f"), "in the volume");
    w.umount("box");
    whole(&w.mlfs().ok(["start", "box"]).lines().next().map(|_| root.clone()).expect("a mount"));
    w.umount("box");
}

/// Everything is as the container has left it.
fn whole(root: &Path) {
    but(root, "");
}

/// The same, but for one thing that the row judges itself.
fn but(root: &Path, what: &str) {
    let is = |name: &str| what != name;
    if is("conf") {
        assert_eq!(read(root.join("etc/conf")), "changed");
    }
    if is("gone") {
        assert!(!root.join("gone").exists());
    }
    if is("moved") {
        assert!(!root.join("d").exists());
        assert_eq!((read(root.join("moved/a")), read(root.join("moved/b"))), ("WRITTEN".into(), "WRITTEN".into()));
        let meta = |name: &str| std::fs::metadata(root.join(name)).expect("stat");
        assert_eq!((meta("moved/a").ino(), meta("moved/a").nlink()), (meta("moved/b").ino(), 2));
    }
    if is("large") {
        assert_eq!(std::fs::read(root.join("large")).expect("read"), large());
        assert_eq!(std::fs::metadata(root.join("large")).expect("stat").mode() & 0o777, 0o600);
    }
    if is("opq") {
        assert_eq!(list(root.join("opq")), Vec::<String>::new());
    }
    if is("vol") {
        assert_eq!(read(root.join("vol/f")), "in the volume");
    }
    assert_eq!((read(root.join("other/x")), read(root.join("top"))), ("x".into(), "top".into()));
}

fn copy(w: &World, number: usize) -> (Store, String) {
    let name = format!("store-{number}");
    let (from, to) = (w.sandbox.path("store"), w.sandbox.path(&name));
    run(&w.sandbox, Command::new("cp").arg("-a").arg(from).arg(&to)).ok();
    (Store { root: to }, name)
}

fn said(outcome: &Outcome) -> String {
    format!("exit {}\n{}{}", outcome.code, outcome.stdout, outcome.stderr)
}

fn run_rows(rows: &[Row]) {
    world(|w| {
        prepare(w);
        let mut wrong = Vec::new();
        for (number, (name, damage, says, cure, then)) in rows.iter().enumerate() {
            let (store, folder) = copy(w, number);
            let mlfs = Mlfs::with_store(&w.sandbox, &folder);
            damage(&store);
            let mut complain = |what: &str, outcome: &Outcome| wrong.push(format!("{name}: {what}: {}", said(outcome)));
            let before = Tree::take(&store.root);
            let look = mlfs.run(["fsck"]);
            if look.code != 3 || !look.stdout.contains(says) || look.stderr.contains("panicked") {
                complain(&format!("it should find {says:?}"), &look);
            }
            let changed = before.difference(&Tree::take(&store.root), Compare::ALL);
            if !changed.is_empty() {
                complain(&format!("looking changed {changed:?}"), &look);
            }
            let repair = mlfs.run(["fsck", "--repair"]);
            let again = mlfs.run(["fsck"]);
            let (code, text, then_code) = match cure {
                Mended => (0, "repaired: ", 0),
                Refused(text) | InPart(text) => (3, *text, 3),
            };
            if repair.code != code || !repair.stdout.contains(text) {
                complain(&format!("--repair should end with {code} and say {text:?}"), &repair);
            }
            if again.code != then_code {
                complain(&format!("the second look should end with {then_code}"), &again);
            }
            let Some(then) = then else { continue };
            let started = mlfs.run(["start", "box"]);
            if started.code != 0 {
                complain("it should start", &started);
                continue;
            }
            if let Some(message) = fuse_tests::skip::panic_message(|| then(&w.target("box"))) {
                complain(&format!("then the mount should be right: {message}"), &repair);
            }
            fuse_tests::driver::patiently(|| match mlfs.run(["umount", "box"]) {
                outcome if outcome.is_busy() => Err(outcome.stderr),
                outcome => Ok(outcome.ok()),
            })
            .expect("umount");
        }
        assert!(wrong.is_empty(), "{} complaints:\n{}", wrong.len(), wrong.join("\n"));
    });
}

#[test]
fn a_sound_store_is_clean_and_every_mark_is_explained() {
    world(|w| {
        prepare(w);
        let clean = w.mlfs().run(["fsck"]);
        assert_eq!((clean.code, clean.stdout.as_str()), (0, ""), "{}", clean.stderr);
        assert!(clean.stderr.contains("nothing is wrong"));
        assert_eq!(w.mlfs().json(["fsck"]), Vec::<serde_json::Value>::new());
        let marks = w.mlfs().ok(["fsck", "--marks", "box"]);
        for said in [
            "/gone: ",
            "deletes what layers hold under this name",
            "layers hold the directory at /d",
            "it holds owner, mode and attributes; layers hold its content",
            "nothing that layers hold in this directory counts",
            "shown with the inode number",
            "one of the names of a file that has several in its layer",
            "links to those that the host counts",
            "its other names find the copy here",
        ] {
            assert!(marks.contains(said), "{said:?} is not in\n{marks}");
        }
        assert!(!marks.contains("no mark that this mlfs knows"), "{marks}");
        let all = w.mlfs().json(["fsck", "--marks"]);
        assert!(all.iter().all(|finding| finding["Grade"] == "ok" && finding["Repair"] == "none"), "{all:?}");
        for name in ["app", "vol", "box"] {
            w.mlfs().ok(["fsck", name]);
        }
        w.mlfs().fails(["fsck", "nobody"], 1, "no container, volume or image nobody");
        w.mlfs().fails(["fsck", "--work", "x"], 2, "--upper");
        w.mlfs().ok(["fsck", "--repair"]);
    });
}

#[test]
fn a_mounted_container_is_left_alone() {
    world(|w| {
        prepare(w);
        w.mlfs().ok(["start", "box"]);
        let store = Store { root: w.sandbox.path("store") };
        let stray = store.container().join("work/work/stray");
        write(&stray, "");
        for args in [&["fsck"][..], &["fsck", "--repair"], &["fsck", "--repair", "box"]] {
            let said = w.mlfs().ok(args);
            assert!(said.contains("the container box is mounted: its upper is not looked into"), "{said}");
        }
        assert!(stray.exists());
        // The rest of the store goes on: what a dead process was staging goes.
        dir(&store.path("staging/left"));
        assert!(w.mlfs().ok(["fsck", "--repair"]).contains("repaired: removed"));
        assert!(!store.path("staging/left").exists() && stray.exists());
        whole(&w.target("box"));
        kill(w.daemon("box"));
        let said = w.mlfs().run(["fsck"]);
        assert!(said.stdout.contains("the daemon of the container box has died"), "{}", said.stdout);
        assert!(said.stdout.contains("nobody listens to this socket"), "{}", said.stdout);
        assert_eq!(said.code, 3);
        w.mlfs().ok(["fsck", "--repair"]);
        assert!(!stray.exists());
        w.mlfs().ok(["fsck"]);
        w.mlfs().ok(["start", "box"]);
        whole(&w.target("box"));
        w.umount("box");
    });
}

#[test]
fn records_of_the_store() {
    run_rows(&[
        (
            "meta.json is garbage",
            |s| write(s.path("meta.json"), "{\"version\":"),
            "no command opens the store",
            Mended,
            Some(whole),
        ),
        (
            "meta.json is missing",
            |s| std::fs::remove_file(s.path("meta.json")).expect("rm"),
            "it is missing",
            Mended,
            Some(whole),
        ),
        ("meta.json is a FIFO", |s| replace(&s.path("meta.json"), fifo), "it is a FIFO", Mended, Some(whole)),
        ("meta.json is a symlink", |s| replace(&s.path("meta.json"), link), "it is a symlink", Mended, Some(whole)),
        (
            "meta.json is huge",
            |s| std::fs::File::create(s.path("meta.json")).and_then(|f| f.set_len((64 << 20) + 1)).expect("truncate"),
            "it is above",
            Mended,
            Some(whole),
        ),
        (
            "oci-layout is garbage",
            |s| write(s.path("oci-layout"), "x"),
            "other programs do not read",
            Mended,
            Some(whole),
        ),
        (
            "oci-layout is missing",
            |s| std::fs::remove_file(s.path("oci-layout")).expect("rm"),
            "it is missing",
            Mended,
            Some(whole),
        ),
        ("index.json is garbage", |s| write(s.path("index.json"), "[]"), "no image has a name", Mended, Some(whole)),
        (
            "index.json is missing",
            |s| std::fs::remove_file(s.path("index.json")).expect("rm"),
            "no image has a name",
            Mended,
            Some(whole),
        ),
        (
            "index.json is a directory",
            |s| replace(&s.path("index.json"), dir),
            "it is a directory",
            Mended,
            Some(whole),
        ),
        (
            "a folder is missing",
            |s| std::fs::remove_dir_all(s.path("locks")).expect("rm"),
            "the folder is missing",
            Mended,
            Some(whole),
        ),
        (
            "a folder is a file",
            |s| replace(&s.path("trash"), |p| write(p, "")),
            "it is a file, not a folder",
            Mended,
            Some(whole),
        ),
        (
            "something was being staged",
            |s| dir(&s.path("staging/load.1.2.3")),
            "a process that has ended was writing it",
            Mended,
            Some(whole),
        ),
        ("a FIFO in staging", |s| fifo(&s.path("staging/pipe")), "staging/pipe: ", Mended, Some(whole)),
        (
            "a symlink in staging",
            |s| link(&s.path("staging/link")),
            "nothing of mlfs makes such a thing",
            Mended,
            Some(whole),
        ),
        (
            "something was being removed",
            |s| {
                dir(&s.path("trash/t.1"));
                dir(&s.path("trash/t.1/shut"));
                write(s.path("trash/t.1/shut/f"), "");
                std::fs::set_permissions(s.path("trash/t.1/shut"), std::fs::Permissions::from_mode(0o000))
                    .expect("chmod");
            },
            "it was being removed",
            Mended,
            Some(whole),
        ),
        (
            "a lock of nothing",
            |s| write(s.path("locks/volume-absent"), ""),
            "what it locked is gone",
            Mended,
            Some(whole),
        ),
        (
            "a lock is a directory",
            |s| dir(&s.path("locks/container-x")),
            "it is a directory, not a lock",
            Mended,
            Some(whole),
        ),
    ]);
}

#[test]
fn containers() {
    run_rows(&[
        (
            "a record is garbage",
            |s| write(s.container().join("container.json"), "{\"id\":"),
            "the record cannot be understood",
            Refused("mend it, or remove the container with `mlfs rm"),
            None,
        ),
        (
            "a record is a FIFO",
            |s| replace(&s.container().join("container.json"), fifo),
            "it is a FIFO",
            Refused("mend it, or remove"),
            None,
        ),
        (
            "a record is of another container",
            |s| {
                let other = s.path("containers").join("0".repeat(64));
                std::fs::rename(s.container(), other).expect("rename");
            },
            "the folder was copied or renamed",
            Mended,
            Some(whole),
        ),
        (
            "a folder without a record",
            |s| {
                let other = s.path("containers").join("0".repeat(64));
                dir(&other);
                write(other.join("thesis"), "precious");
            },
            "a folder without a record",
            Mended,
            None,
        ),
        ("an empty folder", |s| dir(&s.path("containers").join("0".repeat(64))), "an empty folder", Mended, None),
        ("a name that is no id", |s| dir(&s.path("containers/box.bak")), "no container's id", Mended, Some(whole)),
        (
            "a file among containers",
            |s| write(s.path("containers").join("0".repeat(64)), ""),
            "not the folder of a container",
            Mended,
            None,
        ),
        (
            "its making was cut short",
            |s| s.change(&s.container().join("container.json"), "\"created\"", "\"incomplete\": true, \"created\""),
            "a process ended while it made this container",
            Mended,
            None,
        ),
        (
            "the upper is gone",
            |s| std::fs::remove_dir_all(s.upper("")).expect("rm"),
            "what it has written is gone",
            Mended,
            Some(|root| assert_eq!(read(root.join("etc/conf")), "conf")),
        ),
        (
            "the work directory is gone",
            |s| std::fs::remove_dir_all(s.container().join("work")).expect("rm"),
            "it can be made anew",
            Mended,
            Some(|root| {
                // With it, the records of hard links: they are made again.
                but(root, "moved");
                assert_eq!(read(root.join("moved/a")), "WRITTEN");
            }),
        ),
        (
            "the work directory is a file",
            |s| replace(&s.container().join("work"), |p| write(p, "")),
            "it is a file, not a folder",
            Mended,
            Some(|root| but(root, "moved")),
        ),
        (
            "the liveness lock is a FIFO",
            |s| replace(&s.container().join("live"), fifo),
            "it is a FIFO, not a lock",
            Mended,
            Some(whole),
        ),
    ]);
}

#[test]
fn volumes() {
    run_rows(&[
        (
            "the record is missing",
            |s| std::fs::remove_file(s.volume("volume.json")).expect("rm"),
            "the record is missing; its content is whole",
            Mended,
            Some(whole),
        ),
        (
            "the record is garbage",
            |s| write(s.volume("volume.json"), "{}"),
            "the record cannot be understood",
            Mended,
            Some(whole),
        ),
        (
            "the record is a symlink",
            |s| replace(&s.volume("volume.json"), link),
            "it is a symlink",
            Mended,
            Some(whole),
        ),
        (
            "the record is of another volume",
            |s| s.change(&s.volume("volume.json"), "\"vol\"", "\"other\""),
            "its record is that of the volume other",
            Mended,
            Some(whole),
        ),
        (
            "the content is gone",
            |s| std::fs::remove_dir_all(s.volume("_data")).expect("rm"),
            "what was in it is gone",
            Mended,
            Some(|root| but(root, "vol")),
        ),
        (
            "the content is a file",
            |s| replace(&s.volume("_data"), |p| write(p, "")),
            "has no content folder",
            Mended,
            Some(|root| but(root, "vol")),
        ),
        (
            "the volume is gone",
            |s| std::fs::remove_dir_all(s.volume("")).expect("rm"),
            "the volume vol of the container box is gone",
            Mended,
            Some(|root| but(root, "vol")),
        ),
        ("an empty folder", |s| dir(&s.path("volumes/empty")), "an empty folder without a record", Mended, Some(whole)),
        (
            "a folder with something else",
            |s| {
                dir(&s.path("volumes/mine"));
                write(s.path("volumes/mine/thesis"), "precious");
            },
            "a folder without a record",
            Mended,
            Some(whole),
        ),
        (
            "a name that no volume can have",
            |s| dir(&s.path("volumes/-x")),
            "no volume can have this name",
            Mended,
            Some(whole),
        ),
        (
            "filling was cut short",
            |s| {
                s.change(&s.volume("volume.json"), "\"created\"", "\"incomplete\": true, \"created\"");
                dir(&s.volume("_fill"));
                write(s.volume("_fill/from-image"), "image");
            },
            "a process ended while it filled the volume vol",
            Mended,
            Some(|root| {
                whole(root);
                assert_eq!(read(root.join("vol/from-image")), "image");
            }),
        ),
        (
            "filling had not begun",
            |s| s.change(&s.volume("volume.json"), "\"created\"", "\"incomplete\": true, \"created\""),
            "while it filled",
            Mended,
            Some(whole),
        ),
        (
            "a copy that nobody knows of",
            |s| {
                dir(&s.volume("_fill"));
                write(s.volume("_fill/f"), "old");
            },
            "though its record says that it was filled",
            Mended,
            Some(whole),
        ),
    ]);
}

#[test]
fn contents() {
    run_rows(&[
        (
            "an object has flipped",
            |s| flip(&s.largest("objects")),
            "is damaged: its bytes have the digest",
            Mended,
            Some(whole),
        ),
        (
            "an object is cut short",
            |s| {
                let path = s.largest("objects");
                writable(&path);
                std::fs::File::options().write(true).open(path).and_then(|f| f.set_len(100)).expect("truncate");
            },
            "has 100 bytes instead of",
            Mended,
            Some(whole),
        ),
        (
            "an object is missing",
            |s| std::fs::remove_file(s.largest("objects")).expect("rm"),
            "is missing",
            Mended,
            Some(whole),
        ),
        (
            "an object is a FIFO",
            |s| replace(&s.largest("objects"), fifo),
            "it is a FIFO, not a file",
            Mended,
            Some(whole),
        ),
        (
            "an object is a symlink",
            |s| replace(&s.largest("objects"), link),
            "it is a symlink, not a file",
            Mended,
            Some(whole),
        ),
        (
            "a strange name among objects",
            |s| write(s.path("objects/readme"), "x"),
            "it is a file, not a folder",
            Mended,
            Some(whole),
        ),
        (
            "all objects are gone",
            |s| {
                std::fs::remove_dir_all(s.path("objects")).expect("rm");
                dir(&s.path("objects"));
            },
            "is missing",
            Mended,
            Some(whole),
        ),
        (
            "the tables of an index have flipped",
            |s| {
                // Its last bytes: digests of objects.
                let path = s.largest("indexes");
                let mut bytes = std::fs::read(&path).expect("read");
                let last = bytes.len() - 1;
                bytes[last] ^= 1;
                writable(&path);
                write(&path, bytes);
            },
            "is not usable: ",
            Mended,
            Some(whole),
        ),
        (
            "a body in an index has flipped",
            |s| {
                for name in list(s.path("indexes")) {
                    let path = s.path("indexes").join(name);
                    let mut bytes = std::fs::read(&path).expect("read");
                    bytes[4096] ^= 1;
                    writable(&path);
                    write(&path, bytes);
                }
            },
            "wrong checksum of the body",
            Mended,
            Some(whole),
        ),
        (
            "an index is of another version",
            |s| {
                let path = s.largest("indexes");
                let mut bytes = std::fs::read(&path).expect("read");
                bytes[8] = 99;
                writable(&path);
                write(&path, bytes);
            },
            "of another version",
            Mended,
            Some(whole),
        ),
        (
            "an index is empty",
            |s| {
                let path = s.largest("indexes");
                writable(&path);
                write(path, "");
            },
            "it is too short",
            Mended,
            Some(whole),
        ),
        (
            "an index is that of another layer",
            |s| {
                let all = list(s.path("indexes"));
                let path = |n: usize| s.path("indexes").join(&all[n]);
                std::fs::remove_file(path(0)).expect("rm");
                std::fs::copy(path(1), path(0)).expect("copy");
            },
            "it is the index of another layer",
            Mended,
            Some(whole),
        ),
        (
            "an index is missing",
            |s| std::fs::remove_file(s.largest("indexes")).expect("rm"),
            "it is missing",
            Mended,
            Some(whole),
        ),
        (
            "an index is a directory",
            |s| replace(&s.largest("indexes"), dir),
            "it is a directory, not a file",
            Mended,
            Some(whole),
        ),
        (
            "a strange name among indexes",
            |s| write(s.path("indexes/readme"), "x"),
            "its name is no digest",
            Mended,
            Some(whole),
        ),
        (
            "the blob of a layer has flipped",
            |s| flip(&s.largest("blobs")),
            "layer 1 of the image app:latest is damaged",
            InPart("then load the image again"),
            Some(whole),
        ),
        (
            "the blob of a layer is missing",
            |s| std::fs::remove_file(s.largest("blobs")).expect("rm"),
            "layer 1 of the image app:latest is missing",
            Refused("load the image again"),
            Some(whole),
        ),
        (
            "the manifest has flipped",
            |s| flip(&s.blob("image.manifest.v1+json")),
            "the manifest of the image app:latest is damaged",
            InPart("load the image again"),
            None,
        ),
        (
            "the configuration is missing",
            |s| std::fs::remove_file(s.blob("\"rootfs\"")).expect("rm"),
            "the configuration of the image app:latest is missing",
            Refused("load the image again"),
            None,
        ),
        (
            "a blob is a FIFO",
            |s| replace(&s.largest("blobs"), fifo),
            "it is a FIFO, not a file",
            Refused("load the image again"),
            Some(whole),
        ),
        (
            "a strange name among blobs",
            |s| write(s.path("blobs/sha256/readme"), "x"),
            "its name is no digest",
            Mended,
            Some(whole),
        ),
        (
            "blob and object are damaged",
            |s| {
                flip(&s.largest("blobs"));
                flip(&s.largest("objects"));
            },
            "the content of files in the image app:latest is damaged",
            InPart("load the image app:latest again"),
            Some(|root| but(root, "large")),
        ),
    ]);
}

#[test]
fn uppers() {
    run_rows(&[
        (
            "left in staging",
            |s| write(s.container().join("work/work/#7"), "half"),
            "no name of the upper leads to it",
            Mended,
            Some(whole),
        ),
        (
            "the kernel's mark of a volatile mount",
            |s| {
                std::fs::create_dir_all(s.container().join("work/work/incompat/volatile")).expect("mkdir");
            },
            "volatile mount",
            Mended,
            Some(whole),
        ),
        (
            "staging is a file",
            |s| replace(&s.container().join("work/work"), |p| write(p, "")),
            "it must be a folder",
            Mended,
            Some(whole),
        ),
        (
            "a redirect to nothing",
            |s| set(&s.upper("moved"), &mark("redirect"), b"/nowhere"),
            "/nowhere, is not there",
            Mended,
            Some(|root| {
                but(root, "moved");
                assert_eq!(list(root.join("moved")), ["a"]);
            }),
        ),
        (
            "a redirect to a file",
            |s| set(&s.upper("moved"), &mark("redirect"), b"/top"),
            "/top, is no directory",
            Mended,
            Some(|root| but(root, "moved")),
        ),
        (
            "a redirect that is no path",
            |s| set(&s.upper("moved"), &mark("redirect"), b"/../etc"),
            "is no path: the directory cannot be entered",
            Mended,
            Some(|root| {
                but(root, "moved");
                assert_eq!(read(root.join("moved/a")), "WRITTEN");
            }),
        ),
        (
            "a redirect on a whole file",
            |s| set(&s.upper("etc/conf"), &mark("redirect"), b"/x"),
            "the file has its content itself by now",
            Mended,
            Some(whole),
        ),
        (
            "content that no layer has",
            |s| set(&s.upper("large"), &mark("redirect"), b"/nowhere"),
            "layers hold none for it",
            Refused("bring the layer back"),
            Some(|root| {
                but(root, "large");
                assert!(std::fs::read(root.join("large")).is_err());
            }),
        ),
        (
            "content of another size",
            |s| set(&s.upper("large"), &mark("redirect"), b"/top"),
            "layers hold content of 3 bytes",
            Refused("bring the layer back"),
            Some(|root| but(root, "large")),
        ),
        (
            "a metadata mark on a directory",
            |s| set(&s.upper("opq"), &mark("metacopy"), b""),
            "it means nothing on anything but a file",
            Mended,
            Some(whole),
        ),
        (
            "opaque with a value of nobody",
            |s| set(&s.upper("etc"), &mark("opaque"), b"z"),
            "the value z means nothing",
            Mended,
            Some(whole),
        ),
        (
            "opaque on a file",
            |s| set(&s.upper("etc/conf"), &mark("opaque"), b"y"),
            "it means nothing on anything but a directory",
            Mended,
            Some(whole),
        ),
        (
            "a whiteout mark on a file with content",
            |s| set(&s.upper("etc/conf"), &mark("whiteout"), b"y"),
            "only an empty file can be a whiteout",
            Mended,
            Some(whole),
        ),
        (
            "a whiteout mark in a directory that does not say so",
            |s| {
                write(s.upper("etc/new"), "");
                set(&s.upper("etc/new"), &mark("whiteout"), b"y");
            },
            "its directory does not say that it holds whiteouts",
            Mended,
            Some(|root| {
                whole(root);
                assert_eq!(list(root.join("etc")), ["conf"]);
            }),
        ),
        (
            "a number of 3 bytes",
            |s| set(&s.upper("etc/conf"), &mark("mlfs.ino"), b"abc"),
            "an inode number has 8 bytes",
            Mended,
            Some(whole),
        ),
        (
            "one number for two files",
            |s| {
                let number = get(&s.upper("etc/conf"), &mark("mlfs.ino"));
                set(&s.upper("large"), &mark("mlfs.ino"), &number);
            },
            "programs take them for one file",
            Mended,
            Some(|root| {
                whole(root);
                let ino = |name: &str| std::fs::metadata(root.join(name)).expect("stat").ino();
                assert_ne!(ino("large"), ino("etc/conf"));
            }),
        ),
        (
            "left by a probe",
            |s| set(&s.upper("etc"), &mark("mlfs.probe"), b"y"),
            "tried whether attributes can be set",
            Mended,
            Some(whole),
        ),
        (
            "a record of links is missing",
            |s| {
                let links = s.container().join("work/mlfs-links");
                std::fs::remove_dir_all(&links).expect("rm");
                dir(&links);
            },
            "its record is missing",
            Mended,
            Some(whole),
        ),
        (
            "the folder of records is missing",
            |s| std::fs::remove_dir_all(s.container().join("work/mlfs-links")).expect("rm"),
            "its record is missing",
            Mended,
            Some(whole),
        ),
        (
            "a strange name among records",
            |s| write(s.container().join("work/mlfs-links/thesis"), "x"),
            "not that of a record of hard links",
            Mended,
            Some(whole),
        ),
        (
            "a record that its file does not know",
            |s| {
                let links = s.container().join("work/mlfs-links");
                let record = links.join(&list(&links)[0]);
                lremovexattr(&record, mark("mlfs.group").as_str()).expect("remove");
            },
            "has no mark mlfs.group",
            Mended,
            Some(whole),
        ),
        (
            "a record that is a directory",
            |s| dir(&s.container().join("work/mlfs-links/copy-1-0-ff")),
            "a directory has no hard links",
            Mended,
            Some(whole),
        ),
        (
            "a record of a file that no layer has",
            |s| {
                let record = s.container().join("work/mlfs-links/copy-1-0-ffff");
                write(&record, "lost words");
                set(&record, &mark("mlfs.group"), b"copy-1-0-ffff");
                set(&record, &mark("mlfs.ino"), &u64::MAX.to_le_bytes());
                set(&record, &mark("nlink"), b"U+1");
            },
            "no layer has the file whose copy it records",
            Mended,
            Some(whole),
        ),
        (
            "a group that its record does not know",
            |s| {
                let path = s.upper("etc/conf");
                let group = get(&s.upper("moved/a"), &mark("mlfs.group"));
                set(&path, &mark("mlfs.group"), &group);
            },
            "another file is recorded as the copy of its group",
            Mended,
            Some(whole),
        ),
        (
            "a group's name that is none",
            |s| set(&s.upper("etc/conf"), &mark("mlfs.group"), b"../x"),
            "is no record's name",
            Mended,
            Some(whole),
        ),
        (
            "a link count that does not fit",
            |s| set(&s.upper("moved/a"), &mark("nlink"), b"U+5"),
            "its file shows 7 links, but 2 names lead to it",
            Mended,
            Some(whole),
        ),
        (
            "a link count that is none",
            |s| set(&s.upper("moved/a"), &mark("nlink"), b"many"),
            "many is no link count",
            Mended,
            Some(whole),
        ),
        (
            "a link count of no group",
            |s| set(&s.upper("etc/conf"), &mark("nlink"), b"U+1"),
            "the file is of none",
            Mended,
            Some(whole),
        ),
        (
            "names of a group that went unseen",
            |s| {
                // A whiteout that a hand has made: the group has lost a name, and its count does not know.
                if identity() == Identity::Root {
                    make_node(&s.upper("moved/b"), FileType::CharacterDevice, 0, 0);
                } else {
                    write(s.upper("moved/b"), "");
                    set(&s.upper("moved"), &mark("opaque"), b"x");
                    set(&s.upper("moved/b"), &mark("whiteout"), b"y");
                }
            },
            "shows 2 links, but 1 names lead to it",
            Mended,
            Some(|root| {
                but(root, "moved");
                assert_eq!(list(root.join("moved")), ["a"]);
                assert_eq!(std::fs::metadata(root.join("moved/a")).expect("stat").nlink(), 1);
            }),
        ),
        (
            "a copy that no name leads to",
            |s| {
                std::fs::remove_dir_all(s.upper("moved")).expect("rm");
            },
            "no name leads to the copy any more",
            Mended,
            Some(|root| but(root, "moved")),
        ),
    ]);
}

#[test]
fn override_stat_is_judged_where_it_counts() {
    world(|w| {
        prepare(w);
        let store = Store { root: w.sandbox.path("store") };
        let name = "user.containers.override_stat";
        set(&store.upper("etc/conf"), name, b"rubbish");
        let said = w.mlfs().run(["fsck", "box"]);
        if identity() == Identity::Root {
            // This upper keeps owners on the host.
            assert_eq!(said.code, 0, "{}", said.stdout);
            assert!(said.stdout.contains("of another form of upper"), "{}", said.stdout);
        } else {
            assert_eq!(said.code, 3, "{}", said.stdout);
            assert!(said.stdout.contains("rubbish cannot be understood"), "{}", said.stdout);
            w.mlfs().ok(["fsck", "--repair", "box"]);
            w.mlfs().ok(["fsck"]);
        }
        w.mlfs().ok(["start", "box"]);
        whole(&w.target("box"));
        w.umount("box");
    });
}

#[test]
fn names_and_marks_need_not_be_utf8() {
    world(|w| {
        prepare(w);
        use std::os::unix::ffi::OsStrExt;
        let store = Store { root: w.sandbox.path("store") };
        let odd = std::ffi::OsStr::from_bytes(b"\xff\xfe\n");
        for folder in ["", "staging", "trash", "locks", "blobs/sha256", "objects", "indexes", "containers", "volumes"] {
            write(store.path(folder).join(odd), "x");
        }
        write(store.upper("").join(odd), "");
        set(&store.upper("").join(odd), &mark("mlfs.group"), b"\xff");
        write(store.container().join("work/mlfs-links").join(odd), "");
        write(store.container().join("work/work").join(odd), "");
        let look = w.mlfs().run(["fsck"]);
        assert_eq!(look.code, 3, "{}", look.stderr);
        assert!(look.stdout.is_ascii() && !look.stderr.contains("panicked"), "{}{}", look.stdout, look.stderr);
        let json = w.mlfs().run(["fsck", "--format", "json"]);
        let told: Vec<serde_json::Value> = serde_json::from_str(&json.stdout).expect("one array");
        assert!(json.code == 3 && told.len() > 8, "{}", json.stdout);
        let repair = w.mlfs().run(["fsck", "--repair"]);
        assert_eq!(repair.code, 0, "{}{}", repair.stdout, repair.stderr);
        w.mlfs().ok(["fsck"]);
        w.mlfs().ok(["start", "box"]);
        whole(&w.target("box"));
        w.umount("box");
    });
}

#[test]
fn what_is_put_aside_is_not_lost() {
    world(|w| {
        prepare(w);
        let store = Store { root: w.sandbox.path("store") };
        let container = store.container();
        dir(&store.path("containers").join("0".repeat(64)));
        write(store.path("containers").join("0".repeat(64)).join("thesis"), "precious");
        write(container.join("work/mlfs-links/poem"), "words");
        write(store.volume("volume.json"), "labels of mine");
        // A rename that was cut short between its two steps: the only copy is in staging.
        std::fs::rename(container.join("upper/etc/conf"), container.join("work/work/#9")).expect("rename");
        dir(&container.join("work/work/#a"));
        write(container.join("work/work/#a/chapter"), "one");
        write(container.join("work/work/#b"), "");
        let said = w.mlfs().ok(["fsck", "--repair"]);
        assert!(said.contains("lost+found"), "{said}");
        let mut kept = Vec::new();
        files(&store.path("lost+found"), &mut kept);
        let kept: Vec<String> = kept.iter().map(read).collect();
        assert!(kept.contains(&"precious".into()) && kept.contains(&"labels of mine".into()), "{kept:?}");
        assert_eq!(read(container.join("work.lost+found/poem")), "words");
        let beside = container.join("work.lost+found");
        assert_eq!(list(&beside), ["#9", "#a", "poem"]);
        assert_eq!((read(beside.join("#9")), read(beside.join("#a/chapter"))), ("changed".into(), "one".into()));
        assert_eq!(list(container.join("work/work")), Vec::<String>::new());
        // It is told of, and nothing is wrong with it.
        let said = w.mlfs().ok(["fsck"]);
        assert!(said.contains("put aside"), "{said}");
    });
}

#[test]
fn an_upper_of_a_mount_program() {
    world(|w| {
        let lower = w.layer("base", |l| {
            l.file("d/a", "linked");
            l.hardlink("d/b", "d/a");
            l.file("conf", "conf");
        });
        let (upper, work) = (w.sandbox.dir("up"), w.sandbox.dir("wk"));
        let options = format!("lowerdir={lower},upperdir={},workdir={}", upper.display(), work.display());
        let mount = || run(&w.sandbox, bare(&w.sandbox).args(["overlay", "-o", &options]).arg(w.target("o"))).ok();
        let unmount =
            || fuse_tests::driver::patiently(|| fuse_tests::sandbox::unmount(&w.target("o"), false)).expect("umount");
        let fsck = |args: &[&str]| {
            let (upper, work) = (upper.display().to_string(), work.display().to_string());
            let all = ["fsck", "--upper", &upper, "--work", &work, "--layer", &lower];
            run(&w.sandbox, bare(&w.sandbox).args(all).args(args))
        };
        mount();
        let root = w.target("o");
        write(root.join("d/a"), "WRITTEN");
        std::fs::rename(root.join("d"), root.join("e")).expect("rename");
        assert!(fsck(&[]).ok().contains("it is mounted"));
        unmount();
        assert_eq!(fsck(&[]).ok(), "");
        assert!(fsck(&["--marks"]).ok().contains("layers hold the directory at /d"));
        // In whichever form the record is, it goes.
        for folder in ["index", "mlfs-links"] {
            for name in if work.join(folder).is_dir() { list(work.join(folder)) } else { Vec::new() } {
                std::fs::remove_file(work.join(folder).join(name)).expect("rm");
            }
        }
        write(work.join("work/half"), "half");
        let said = fsck(&[]);
        assert_eq!(said.code, 3, "{}", said.stdout);
        assert!(said.stdout.contains("its record is missing") && said.stdout.contains("work/half"), "{}", said.stdout);
        fsck(&["--repair"]).ok();
        assert_eq!(fsck(&[]).ok(), "");
        mount();
        assert_eq!((read(root.join("e/a")), read(root.join("e/b"))), ("WRITTEN".into(), "WRITTEN".into()));
        assert_eq!(std::fs::metadata(root.join("e/b")).expect("stat").nlink(), 2);
        unmount();
        assert!(!w.sandbox.path("store").exists(), "it needs no store");
    });
}

#[test]
fn a_repair_that_is_killed_goes_on() {
    world(|w| {
        prepare(w);
        let damage = |s: &Store| {
            flip(&s.largest("objects"));
            std::fs::remove_file(s.largest("indexes")).expect("rm");
            write(s.path("index.json"), "[]");
            write(s.path("meta.json"), "");
            write(s.volume("volume.json"), "{}");
            write(s.container().join("work/work/half"), "half");
            set(&s.upper("moved/a"), &mark("nlink"), b"U+5");
            std::fs::remove_dir_all(s.container().join("work/mlfs-links")).expect("rm");
            dir(&s.path("containers").join("0".repeat(64)));
            write(s.path("containers").join("0".repeat(64)).join("thesis"), "precious");
        };
        // Killed after ever more milliseconds, up to its end: each time at another place.
        let mut was_killed = 0;
        for number in 0..40 {
            let (store, folder) = copy(w, number);
            damage(&store);
            let mlfs = Mlfs::with_store(&w.sandbox, &folder);
            let mut child = mlfs
                .command()
                .args(["fsck", "--repair", "-q"])
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null())
                .spawn()
                .expect("spawn");
            std::thread::sleep(std::time::Duration::from_millis(number as u64 * 6));
            child.kill().expect("kill");
            let ended = child.wait().expect("wait");
            was_killed += usize::from(ended.code().is_none());
            let again = mlfs.run(["fsck", "--repair"]);
            assert_eq!(again.code, 0, "after {number}: {}{}", again.stdout, again.stderr);
            let look = mlfs.run(["fsck"]);
            assert_eq!(look.code, 0, "after {number}: {}{}", look.stdout, look.stderr);
            mlfs.ok(["start", "box"]);
            whole(&w.target("box"));
            fuse_tests::driver::patiently(|| match mlfs.run(["umount", "box"]) {
                outcome if outcome.is_busy() => Err(outcome.stderr),
                outcome => Ok(outcome.ok()),
            })
            .expect("umount");
            std::fs::remove_dir_all(&store.root).expect("rm");
            if ended.code().is_some() {
                break;
            }
        }
        assert!(was_killed > 3, "killed {was_killed} times only");
    });
}

#[test]
fn a_newer_or_foreign_store_is_refused_and_a_read_only_one_is_looked_at() {
    world(|w| {
        prepare(w);
        let meta = w.sandbox.path("store/meta.json");
        let before = read(&meta);
        write(&meta, "{\"version\": 9}");
        w.mlfs().fails(["fsck"], 1, "use a newer mlfs");
        w.mlfs().fails(["fsck", "--repair"], 1, "use a newer mlfs");
        write(&meta, "{\"version\": 1, \"incompatible\": [\"x\"]}");
        w.mlfs().fails(["fsck"], 1, "the feature \"x\"");
        write(&meta, "{\"version\": 1, \"readOnlyCompatible\": [\"x\"]}");
        w.mlfs().ok(["fsck"]);
        w.mlfs().fails(["fsck", "--repair"], 1, "may only read");
        write(&meta, before);
        w.mlfs().ok(["fsck", "--repair"]);
        let foreign = w.sandbox.dir("foreign");
        write(foreign.join("thesis"), "");
        Mlfs::with_store(&w.sandbox, "foreign").fails(["fsck", "--repair"], 1, "no mlfs store");
        assert_eq!(list(&foreign), ["thesis"]);
        let absent = Mlfs::with_store(&w.sandbox, "absent");
        absent.ok(["fsck"]);
        assert!(!w.sandbox.path("absent").exists(), "nothing is made");
        if identity() == Identity::Root {
            return;
        }
        let shut =
            |mode| std::fs::set_permissions(w.sandbox.path("store/volumes"), std::fs::Permissions::from_mode(mode));
        shut(0o000).expect("chmod");
        let said = w.mlfs().run(["fsck"]);
        shut(0o700).expect("chmod");
        if identity() == Identity::User {
            assert_eq!(said.code, 3, "{}", said.stdout);
            assert!(said.stdout.contains("cannot be looked at"), "{}", said.stdout);
        }
    });
}

/// A container over a directory, with a renamed directory and a changed link group.
fn over_a_directory(w: &World) -> (Store, PathBuf) {
    let lower = w.layer("base", |l| {
        l.file("d/x", "in d");
        l.file("g1", "g");
        l.hardlink("g2", "g1");
        l.file("g3", "g");
        l.hardlink("g4", "g3");
    });
    let target = w.target("box");
    w.mlfs().ok(["mount", "--name", "box", "--layer", &lower, target.to_str().expect("UTF-8")]);
    std::fs::rename(target.join("d"), target.join("e")).expect("rename");
    write(target.join("g1"), "WRITTEN");
    std::fs::remove_file(target.join("g3")).expect("rm");
    std::fs::remove_file(target.join("g4")).expect("rm");
    w.umount("box");
    (Store { root: w.sandbox.path("store") }, PathBuf::from(lower))
}

#[test]
fn a_layer_that_is_away_for_a_while_costs_nothing() {
    world(|w| {
        let (store, lower) = over_a_directory(w);
        w.mlfs().ok(["fsck", "--repair"]);
        let away = lower.with_file_name("away");
        std::fs::rename(&lower, &away).expect("rename");
        dir(&lower);
        let before = Tree::take(&store.container());
        let said = w.mlfs().run(["fsck", "--repair", "box"]);
        assert_eq!(said.code, 3, "{}", said.stdout);
        assert!(said.stdout.contains("/d, is not there") && said.stdout.contains("bring the layer back"), "{said:?}");
        let changed = before.difference(&Tree::take(&store.container()), Compare::ALL);
        assert!(changed.is_empty(), "{changed:?}: {}", said.stdout);
        std::fs::remove_dir(&lower).expect("rmdir");
        std::fs::rename(&away, &lower).expect("rename");
        assert_eq!(w.mlfs().ok(["fsck", "box"]), "");
        w.mlfs().ok(["start", "box"]);
        let root = w.target("box");
        assert_eq!((list(root.join("e")), read(root.join("g1"))), (vec!["x".into()], "WRITTEN".into()));
        assert_eq!((read(root.join("g2")), list(&root)), ("WRITTEN".into(), ["e", "g1", "g2"].map(Into::into).into()));
        w.umount("box");
    });
}

#[test]
fn marks_beside_records_are_known() {
    world(|w| {
        let lower = w.layer("base", |l| {
            l.symlink("s1", "target");
            l.hardlink("s2", "s1");
            l.file("f1", "f");
            l.hardlink("f2", "f1");
        });
        let target = w.target("box");
        w.mlfs().ok(["mount", "--name", "box", "--layer", &lower, target.to_str().expect("UTF-8")]);
        std::fs::rename(target.join("s1"), target.join("s3")).expect("rename");
        write(target.join("f1"), "WRITTEN");
        w.umount("box");
        let counts = || {
            w.mlfs().ok(["start", "box"]);
            let counts =
                ["s2", "s3", "f1", "f2"].map(|n| std::fs::symlink_metadata(target.join(n)).expect("stat").nlink());
            w.umount("box");
            counts
        };
        assert_eq!(counts(), [2; 4]);
        let store = Store { root: w.sandbox.path("store") };
        let before = Tree::take(&store.container());
        assert_eq!(w.mlfs().ok(["fsck", "--repair"]), "");
        let changed = before.difference(&Tree::take(&store.container()), Compare::ALL);
        assert!(changed.is_empty(), "{changed:?}");
        assert_eq!(counts(), [2; 4]);
        let links = store.container().join("work/mlfs-links");
        let marks: Vec<String> = if links.is_dir() { list(&links) } else { Vec::new() };
        let Some(beside) = marks.iter().find(|name| name.starts_with("of-")) else {
            assert_eq!(identity(), Identity::Root, "{marks:?}");
            return;
        };
        assert!(w.mlfs().ok(["fsck", "--marks", "box"]).contains("which cannot carry them itself"));
        // One of a copy that was never recorded goes; a missing one is written again.
        symlink("U+1 copy-1-0-fffff", links.join("of-fffff")).expect("symlink");
        std::fs::remove_file(links.join(beside)).expect("rm");
        let said = w.mlfs().run(["fsck"]);
        assert!(said.code == 3 && said.stdout.contains("of-fffff"), "{said:?}");
        w.mlfs().ok(["fsck", "--repair"]);
        assert!(links.join(beside).is_symlink() && !links.join("of-fffff").is_symlink());
        assert_eq!(w.mlfs().ok(["fsck"]), "");
    });
}

#[test]
fn an_upper_is_repaired_only_with_its_work_directory() {
    world(|w| {
        let lower = w.layer("base", |l| {
            l.file("a", "linked");
            l.hardlink("b", "a");
        });
        // As podman lays them out: nothing tells which one belongs to it.
        let (upper, work) = (w.sandbox.dir("c/diff"), w.sandbox.dir("c/work"));
        let options = format!("lowerdir={lower},upperdir={},workdir={}", upper.display(), work.display());
        run(&w.sandbox, bare(&w.sandbox).args(["overlay", "-o", &options]).arg(w.target("o"))).ok();
        write(w.target("o").join("a"), "WRITTEN");
        write(w.target("o").join("stray"), "");
        set(&upper.join("stray"), &mark("redirect"), b"/x");
        let fsck = |args: &[&str]| run(&w.sandbox, bare(&w.sandbox).args(["fsck", "--upper"]).arg(&upper).args(args));
        let refused = fsck(&["--repair"]);
        assert!(refused.code == 2 && refused.stderr.contains("--work"), "{refused:?}");
        get(&upper.join("stray"), &mark("redirect"));
        lremovexattr(upper.join("stray"), mark("redirect").as_str()).expect("remove");
        fuse_tests::driver::patiently(|| fuse_tests::sandbox::unmount(&w.target("o"), false)).expect("umount");
        let look = fsck(&["--layer", &lower]);
        assert!(look.code == 0 && !look.stdout.contains("its record is missing"), "{look:?}");
        assert!(look.stdout.contains("where its work directory is was not said"), "{look:?}");
    });
}
