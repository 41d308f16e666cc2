// SPDX-License-Identifier: MIT OR Apache-2.0
//! Semantics of the filesystem without a mount: layers in memory under an upper in a scratch directory.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::create::NewNode;
use super::*;
use crate::layer::Layer;
use crate::layer::dir::{DirLayer, HostForm};
use crate::layer::mem::MemLayer;
use crate::model::ids::IdMap;
use crate::model::{Cookie, Kind, Name};
use crate::tree::Base;
use crate::upper::{Ownership, UpperSpec};

mod open;

fn caller() -> Caller {
    Caller { uid: crate::sys::proc::euid(), gid: crate::sys::proc::egid(), pid: 1 }
}

struct Sandbox {
    temp: tempfile::TempDir,
}

impl Sandbox {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        for dir in ["upper", "work", "volume", "lower"] {
            std::fs::create_dir(temp.path().join(dir)).unwrap();
        }
        Sandbox { temp }
    }

    fn open(&self, dir: &str) -> std::os::fd::OwnedFd {
        File::open(self.temp.path().join(dir)).unwrap().into()
    }

    fn ownership() -> Ownership {
        if crate::sys::proc::euid() == 0 { Ownership::Native } else { Ownership::Override }
    }

    fn spec(&self, lowers: Vec<Arc<dyn Layer>>) -> FsSpec {
        let ownership = Self::ownership();
        let upper = UpperSpec {
            dir: self.open("upper"),
            work: Some(self.open("work")),
            ownership,
            is_volatile: true,
            is_view: false,
        };
        let base = Base::Merge { upper: Some(upper), lowers };
        let root = BranchSpec { label: "test".into(), base, is_read_only: false, is_shared: false };
        FsSpec { root, mounts: Vec::new(), uids: IdMap::Identity, gids: IdMap::Identity }
    }

    fn volume(&self) -> BranchSpec {
        let upper = UpperSpec {
            dir: self.open("volume"),
            work: None,
            ownership: Ownership::Native,
            is_volatile: false,
            is_view: false,
        };
        let base = Base::Merge { upper: Some(upper), lowers: Vec::new() };
        BranchSpec { label: "volume".into(), base, is_read_only: false, is_shared: true }
    }

    fn fs(&self, lowers: Vec<Arc<dyn Layer>>) -> Fs {
        Fs::new(self.spec(lowers)).unwrap()
    }

    fn host_layer(&self) -> Arc<dyn Layer> {
        let form = HostForm { is_fixed: true, ..HostForm::default() };
        Arc::new(DirLayer::open(self.open("lower"), "lower".into(), form).unwrap())
    }
}

fn name(text: &str) -> Name<'_> {
    Name::new(text.as_bytes()).unwrap()
}

fn new_node(kind: Kind, perm: u32) -> NewNode<'static> {
    NewNode { kind, perm, umask: 0, rdev: 0, target: None }
}

fn layer(build: impl FnOnce(&mut MemLayer)) -> Arc<dyn Layer> {
    let mut layer = MemLayer::default();
    build(&mut layer);
    Arc::new(layer)
}

impl Fs {
    fn at(&self, path: &str) -> EntryOut {
        self.resolve(path.as_bytes(), Follow::No).unwrap()
    }

    fn cat(&self, path: &str) -> String {
        let opened = self.open(self.at(path).id, OpenFlags::default()).unwrap();
        let mut buffer = vec![0; 100];
        let length = self.read(opened.handle, 0, &mut buffer).unwrap();
        self.release(opened.handle);
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    fn put(&self, path: &str, text: &str) {
        let write = OpenFlags { write: true, truncate: true, ..OpenFlags::default() };
        let (parent, last) = path.rsplit_once('/').unwrap();
        let parent = self.resolve(parent.as_bytes(), Follow::Yes).unwrap().id;
        let handle = match self.lookup(parent, name(last)) {
            Ok(entry) => self.open(entry.id, write).unwrap().handle,
            Err(_) => self.create(caller(), parent, name(last), &new_node(Kind::File, 0o644)).unwrap().1.handle,
        };
        assert_eq!(self.write(handle, 0, text.as_bytes()).unwrap(), text.len());
        self.release(handle);
    }

    fn mkdir(&self, path: &str) {
        let (parent, last) = path.rsplit_once('/').unwrap();
        let new = new_node(Kind::Dir, 0o755);
        self.make(caller(), self.at(parent).id, name(last), &new).unwrap();
    }

    fn mv(&self, from: &str, to: &str) -> Result<(), FsError> {
        let split = |path: &'_ str| path.rsplit_once('/').map(|(p, n)| (p.to_owned(), n.to_owned())).unwrap();
        let ((fp, f), (tp, t)) = (split(from), split(to));
        self.rename((self.at(&fp).id, name(&f)), (self.at(&tp).id, name(&t)), RenameMode::Replace)
    }

    fn rm(&self, path: &str) -> Result<(), FsError> {
        let (parent, last) = path.rsplit_once('/').unwrap();
        self.unlink(self.at(parent).id, name(last))
    }

    fn rm_dir(&self, path: &str) -> Result<(), FsError> {
        let (parent, last) = path.rsplit_once('/').unwrap();
        self.rmdir(self.at(parent).id, name(last))
    }

    /// Path -> content or kind, of everything below `path`.
    fn tree_at(&self, path: &str) -> BTreeMap<String, String> {
        let mut all = BTreeMap::new();
        let mut names = Vec::new();
        self.read_dir(self.at(path).id, Cookie::START, &mut |line| {
            names.push((String::from_utf8_lossy(line.name.as_name().bytes()).into_owned(), line.kind));
            ControlFlow::Continue(())
        })
        .unwrap();
        for (text, kind) in names {
            let own = format!("{path}/{text}");
            match kind {
                Kind::Dir => {
                    all.insert(own.clone(), "dir".into());
                    all.extend(self.tree_at(&own));
                }
                Kind::File => {
                    let content = self.cat(&own);
                    all.insert(own, content);
                }
                _ => {
                    all.insert(own, format!("{kind:?}"));
                }
            }
        }
        all
    }
}

fn tree(lines: &[(&str, &str)]) -> BTreeMap<String, String> {
    lines.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
}

#[test]
fn layers_merge_and_whiteouts_stop_what_is_below() {
    let sandbox = Sandbox::new();
    let bottom = layer(|l| {
        l.file("a/x", b"bottom").unwrap().file("a/deep/y", b"old").unwrap().file("gone", b"").unwrap();
        l.file("d/hidden", b"").unwrap();
    });
    let middle = layer(|l| {
        l.whiteout("a/deep").unwrap().whiteout("gone").unwrap().opaque_dir("d").unwrap();
    });
    let top = layer(|l| {
        l.file("a/deep/z", b"new").unwrap().file("a/x", b"top").unwrap();
    });
    let fs = sandbox.fs(vec![top, middle, bottom]);
    let expected = tree(&[("/a", "dir"), ("/a/deep", "dir"), ("/a/deep/z", "new"), ("/a/x", "top"), ("/d", "dir")]);
    assert_eq!(fs.tree_at(""), expected);
}

#[test]
fn changes_survive_a_remount_and_lowers_stay() {
    let sandbox = Sandbox::new();
    std::fs::create_dir_all(sandbox.temp.path().join("lower/d/e")).unwrap();
    std::fs::write(sandbox.temp.path().join("lower/d/f"), "lower").unwrap();
    std::fs::write(sandbox.temp.path().join("lower/d/g"), "lower").unwrap();
    let ino = {
        let fs = sandbox.fs(vec![sandbox.host_layer()]);
        let before = fs.at("/d/f").attr;
        let parent_mtime = fs.at("/d").attr.mtime;
        let handle = fs.open(fs.at("/d/f").id, OpenFlags::default()).unwrap().handle;
        fs.put("/d/f", "upper");
        let mut buffer = [0; 9];
        assert_eq!(fs.read(handle, 0, &mut buffer).unwrap(), 5);
        assert_eq!(&buffer[..5], b"upper", "an old reader sees the copy");
        assert_eq!(fs.at("/d/f").attr.ino, before.ino);
        assert_eq!(fs.at("/d").attr.mtime, parent_mtime, "copy-up keeps the directory's time");
        fs.rm("/d/g").unwrap();
        fs.rm_dir("/d/e").unwrap();
        fs.mkdir("/d/e");
        fs.put("/d/e/new", "1");
        fs.put("/.wh.user", "mine");
        before.ino
    };
    let fs = sandbox.fs(vec![sandbox.host_layer()]);
    let expected = tree(&[("/.wh.user", "mine"), ("/d", "dir"), ("/d/e", "dir"), ("/d/e/new", "1"), ("/d/f", "upper")]);
    assert_eq!(fs.tree_at(""), expected);
    assert_eq!(fs.at("/d/f").attr.ino, ino, "numbers survive copy-up and remount");
    assert_eq!(std::fs::read_to_string(sandbox.temp.path().join("lower/d/f")).unwrap(), "lower");
    assert!(sandbox.temp.path().join("lower/d/g").exists());
    let changes: Vec<String> =
        fs.changes().unwrap().iter().map(|c| format!("{:?} {}", c.kind, String::from_utf8_lossy(&c.path))).collect();
    let expected = ["Added /.wh.user", "Changed /d", "Changed /d/e", "Added /d/e/new", "Changed /d/f", "Deleted /d/g"];
    assert_eq!(changes, expected);
}

#[test]
fn a_removed_and_remade_directory_is_opaque_on_disk() {
    let sandbox = Sandbox::new();
    std::fs::create_dir_all(sandbox.temp.path().join("lower/d/sub")).unwrap();
    std::fs::write(sandbox.temp.path().join("lower/d/old"), "").unwrap();
    for round in 0..2 {
        let fs = sandbox.fs(vec![sandbox.host_layer()]);
        if round == 0 {
            fs.rm("/d/old").unwrap();
            assert_eq!(fs.rm_dir("/d"), Err(FsError::NotEmpty));
            fs.rm_dir("/d/sub").unwrap();
            fs.rm_dir("/d").unwrap();
            fs.mkdir("/d");
        }
        assert_eq!(fs.tree_at(""), tree(&[("/d", "dir")]));
    }
}

#[test]
fn renames_leave_whiteouts_and_cover_what_is_below() {
    let sandbox = Sandbox::new();
    for dir in ["a", "full"] {
        std::fs::create_dir_all(sandbox.temp.path().join("lower").join(dir)).unwrap();
    }
    std::fs::write(sandbox.temp.path().join("lower/a/f"), "f").unwrap();
    std::fs::write(sandbox.temp.path().join("lower/a/g"), "g").unwrap();
    std::fs::write(sandbox.temp.path().join("lower/full/old"), "").unwrap();
    for round in 0..2 {
        let fs = sandbox.fs(vec![sandbox.host_layer()]);
        if round == 0 {
            fs.mv("/a/f", "/a/h").unwrap();
            fs.mv("/a/g", "/a/h").unwrap();
            fs.mkdir("/n");
            fs.put("/n/file", "n");
            assert_eq!(fs.mv("/n", "/full"), Err(FsError::NotEmpty));
            fs.rm("/full/old").unwrap();
            fs.mv("/n", "/full").unwrap();
        }
        let expected = tree(&[("/a", "dir"), ("/a/h", "g"), ("/full", "dir"), ("/full/file", "n")]);
        assert_eq!(fs.tree_at(""), expected, "round {round}");
    }
}

#[test]
fn hard_links_of_a_layer_stay_links_over_copy_up_and_remount() {
    let sandbox = Sandbox::new();
    let path = |text: &str| sandbox.temp.path().join("lower").join(text);
    std::fs::write(path("a"), "one").unwrap();
    std::fs::hard_link(path("a"), path("b")).unwrap();
    std::fs::hard_link(path("a"), path("c")).unwrap();
    {
        let fs = sandbox.fs(vec![sandbox.host_layer()]);
        assert_eq!(fs.at("/a").attr.nlink, 3);
        fs.put("/a", "two");
        assert_eq!((fs.cat("/b").as_str(), fs.at("/b").attr.nlink), ("two", 3));
        fs.rm("/c").unwrap();
        assert_eq!(fs.at("/a").attr.nlink, 2);
        // The name that stands in the upper goes: the copy has one link on the host, and is shown with one.
        fs.rm("/a").unwrap();
        assert_eq!(fs.at("/b").attr.nlink, 1);
        fs.link(fs.at("/b").id, NodeId::ROOT, name("a")).unwrap();
    }
    let fs = sandbox.fs(vec![sandbox.host_layer()]);
    assert_eq!(fs.tree_at(""), tree(&[("/a", "two"), ("/b", "two")]));
    assert_eq!((fs.at("/a").attr.nlink, fs.at("/b").attr.nlink), (2, 2));
    assert_eq!(fs.at("/a").attr.ino, fs.at("/b").attr.ino);
    fs.mv("/b", "/moved").unwrap();
    assert_eq!(fs.at("/moved").attr.nlink, 2);
    fs.rm("/a").unwrap();
    assert_eq!(fs.at("/moved").attr.nlink, 1);
    fs.put("/moved", "three");
    fs.rm("/moved").unwrap();
    assert_eq!(fs.tree_at(""), tree(&[]));
    assert_eq!(std::fs::read_dir(sandbox.temp.path().join("work/mlfs-links")).unwrap().count(), 0);
}

#[test]
fn links_of_a_layer_are_counted_when_names_go_without_copy_up() {
    let sandbox = Sandbox::new();
    let path = |text: &str| sandbox.temp.path().join("lower").join(text);
    std::fs::write(path("a"), "one").unwrap();
    std::fs::hard_link(path("a"), path("b")).unwrap();
    std::fs::hard_link(path("a"), path("c")).unwrap();
    for round in 0..2 {
        let fs = sandbox.fs(vec![sandbox.host_layer()]);
        if round == 0 {
            fs.rm("/c").unwrap();
        }
        assert_eq!(fs.at("/a").attr.nlink, 2, "round {round}");
        if round == 1 {
            fs.put("/a", "two");
            assert_eq!((fs.at("/a").attr.nlink, fs.cat("/b").as_str()), (2, "two"));
        }
    }
}

#[test]
fn an_open_unlinked_file_lives_on() {
    let sandbox = Sandbox::new();
    std::fs::write(sandbox.temp.path().join("lower/f"), "lower").unwrap();
    let fs = sandbox.fs(vec![sandbox.host_layer()]);
    let entry = fs.at("/f");
    let handle = fs.open(entry.id, OpenFlags::default()).unwrap().handle;
    fs.rm("/f").unwrap();
    let set = SetAttr { perm: Some(0o600), ..SetAttr::default() };
    assert_eq!(fs.setattr(entry.id, Some(handle), &set).unwrap().0.perm, 0o600);
    let mut buffer = [0; 9];
    assert_eq!(fs.read(handle, 0, &mut buffer).unwrap(), 5);
    assert!(fs.resolve(b"/f", Follow::No).is_err());
    let upper = std::fs::read_dir(sandbox.temp.path().join("work/work")).unwrap().count();
    assert_eq!(upper, 0, "nothing is left in staging");
    // A new file of the same name is another file.
    fs.put("/f", "new");
    assert_ne!(fs.at("/f").id, entry.id);
    assert_eq!(fs.read(handle, 0, &mut buffer).unwrap(), 5);
    assert_eq!(&buffer[..5], b"lower");
}

#[test]
fn volumes_are_mounted_nested_and_borders_are_kept() {
    let sandbox = Sandbox::new();
    let base = layer(|l| {
        l.dir("data", 0o755).unwrap().link("link", "/data/inner").unwrap();
    });
    let mut spec = sandbox.spec(vec![base]);
    spec.mounts.push(MountAt { target: b"/link/deep".to_vec(), branch: sandbox.volume() });
    let fs = Fs::new(spec).unwrap();
    fs.put("/data/inner/deep/f", "volume");
    assert_eq!(std::fs::read_to_string(sandbox.temp.path().join("volume/f")).unwrap(), "volume");
    assert_eq!(fs.mv("/data/inner/deep/f", "/data/f"), Err(FsError::CrossDevice));
    assert_eq!(fs.rm_dir("/data/inner/deep"), Err(FsError::Busy));
    std::fs::write(sandbox.temp.path().join("volume/host"), "host").unwrap();
    assert_eq!(fs.cat("/data/inner/deep/host"), "host");
    let provenance = fs.which(b"/link/deep/f").unwrap();
    assert_eq!((provenance.label.as_str(), provenance.path.as_slice()), ("volume", &b"/f"[..]));
}

#[test]
fn which_names_the_layer_and_what_it_hides() {
    let sandbox = Sandbox::new();
    let bottom = layer(|l| {
        l.file("etc/conf", b"1").unwrap().file("gone/f", b"").unwrap();
    });
    let top = layer(|l| {
        l.file("etc/conf", b"2").unwrap().whiteout("gone").unwrap();
    });
    let fs = sandbox.fs(vec![top, bottom]);
    let conf = fs.which(b"/etc/conf").unwrap();
    assert_eq!(conf.provider, Some((inspect::Source::Layer(2), Kind::File)));
    assert_eq!(conf.hidden, [(inspect::Source::Layer(1), Kind::File)]);
    let gone = fs.which(b"/gone/f").unwrap();
    assert_eq!((gone.provider, gone.deleted_by), (None, Some(inspect::Source::Layer(2))));
    assert_eq!(fs.which(b"/never"), Err(FsError::NotFound));
    let etc = fs.which(b"/etc").unwrap();
    assert_eq!(etc.merged, [inspect::Source::Layer(1)]);
}

#[test]
fn attributes_of_all_kinds_are_held() {
    let sandbox = Sandbox::new();
    for round in 0..2 {
        let mut spec = sandbox.spec(vec![layer(|_| {})]);
        if let Base::Merge { upper: Some(upper), .. } = &mut spec.root.base {
            upper.ownership = Ownership::Override;
        }
        let fs = Fs::new(spec).unwrap();
        if round == 0 {
            let kinds = [
                ("file", Kind::File, 0),
                ("dir", Kind::Dir, 0),
                ("link", Kind::Symlink, 0),
                ("pipe", Kind::Fifo, 0),
                ("char", Kind::Char, 0x103),
            ];
            for (text, kind, rdev) in kinds {
                let target = (kind == Kind::Symlink).then_some(&b"target"[..]);
                let new = NewNode { rdev, target, ..new_node(kind, 0o640) };
                fs.make(caller(), NodeId::ROOT, name(text), &new).unwrap();
                let id = fs.at(&format!("/{text}")).id;
                let set = SetAttr { uid: Some(33), gid: Some(44), perm: Some(0o4711), ..SetAttr::default() };
                let attr = fs.setattr(id, None, &set).unwrap().0;
                assert_eq!((attr.uid, attr.gid, attr.kind), (33, 44, kind), "{text}");
            }
        }
        for (text, kind) in [("file", Kind::File), ("link", Kind::Symlink), ("char", Kind::Char), ("pipe", Kind::Fifo)]
        {
            let attr = fs.at(&format!("/{text}")).attr;
            assert_eq!((attr.uid, attr.gid, attr.kind), (33, 44, kind), "round {round} {text}");
            if kind != Kind::Symlink {
                assert_eq!(attr.perm, 0o4711, "round {round} {text}");
            }
        }
        assert_eq!(fs.read_link(fs.at("/link").id).unwrap(), b"target");
        assert_eq!(fs.at("/char").attr.rdev, 0x103);
    }
}

#[test]
fn marks_are_invisible_and_cannot_be_forged() {
    let sandbox = Sandbox::new();
    let fs = sandbox.fs(vec![layer(|l| {
        l.file("d/f", b"1").unwrap();
    })]);
    fs.put("/d/f", "2");
    let id = fs.at("/d/f").id;
    assert_eq!(fs.listxattr(id).unwrap(), Vec::<Vec<u8>>::new());
    for mark in ["trusted.overlay.opaque", "user.overlay.opaque", "user.containers.override_stat"] {
        let mark = mark.as_bytes();
        assert_eq!(fs.setxattr(caller(), id, mark, b"y", crate::sys::xattr::SetMode::Any), Err(FsError::Perm));
        assert_eq!(fs.getxattr(id, mark), Err(FsError::NoAttribute));
        assert_eq!(fs.removexattr(id, mark), Err(FsError::NoAttribute));
    }
}

#[test]
fn a_listing_goes_on_while_the_directory_changes() {
    let sandbox = Sandbox::new();
    let fs = sandbox.fs(vec![layer(|l| {
        for number in 0..500 {
            l.file(&format!("d/lower{number}"), b"").unwrap();
        }
    })]);
    for number in 0..500 {
        fs.put(&format!("/d/upper{number}"), "");
    }
    let id = fs.at("/d").id;
    let (mut after, mut seen) = (Cookie::START, Vec::new());
    loop {
        let mut batch = Vec::new();
        fs.read_dir(id, after, &mut |line| {
            batch.push(line);
            if batch.len() == 50 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap();
        let Some(last) = batch.last() else { break };
        after = last.cookie;
        for line in batch {
            let text = String::from_utf8(line.name.as_name().bytes().to_vec()).unwrap();
            fs.rm(&format!("/d/{text}")).unwrap();
            seen.push(text);
        }
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 1000);
    assert_eq!(fs.tree_at("/d"), tree(&[]));
    fs.rm_dir("/d").unwrap();
}

#[test]
fn nodes_are_given_back() {
    let sandbox = Sandbox::new();
    let fs = sandbox.fs(vec![layer(|l| {
        for number in 0..100 {
            l.file(&format!("d/{number}"), b"").unwrap();
        }
    })]);
    let d = fs.lookup(NodeId::ROOT, name("d")).unwrap().id;
    let mut ids = Vec::new();
    fs.read_dir_plus(d, Cookie::START, &mut |_, _, out| {
        ids.push(out.unwrap().id);
        true
    })
    .unwrap();
    assert_eq!(fs.tree().nodes().len(), 102);
    for id in ids {
        fs.forget(id, 1);
    }
    fs.forget(d, 1);
    assert_eq!(fs.tree().nodes().len(), 1);
}

#[test]
fn an_open_file_that_the_host_replaced_is_never_mistaken_for_its_successor() {
    let sandbox = Sandbox::new();
    let mut spec = sandbox.spec(vec![layer(|_| {})]);
    spec.mounts.push(MountAt { target: b"/v".to_vec(), branch: sandbox.volume() });
    let fs = Fs::new(spec).unwrap();
    fs.put("/v/f", "old");
    let entry = fs.at("/v/f");
    let write = OpenFlags { write: true, ..OpenFlags::default() };
    let handle = fs.open(entry.id, write).unwrap().handle;
    let volume = sandbox.temp.path().join("volume");
    std::fs::write(volume.join("next"), "successor").unwrap();
    std::fs::rename(volume.join("next"), volume.join("f")).unwrap();
    assert_eq!(fs.getattr(entry.id).unwrap().0.size, 3, "fstat of the open file");
    fs.write(handle, 0, b"OLD").unwrap();
    assert_eq!(fs.cat("/v/f"), "successor");
    fs.release(handle);
    std::fs::write(volume.join("next"), "third").unwrap();
    let second = fs.at("/v/f").id;
    std::fs::rename(volume.join("next"), volume.join("f")).unwrap();
    assert_eq!(fs.open(second, write).unwrap_err(), FsError::Stale);
    assert_eq!(fs.cat("/v/f"), "third");
}

#[test]
fn what_opening_by_name_answers_is_not_believed_once_the_name_leads_elsewhere() {
    let sandbox = Sandbox::new();
    let mut spec = sandbox.spec(vec![layer(|_| {})]);
    spec.mounts.push(MountAt { target: b"/v".to_vec(), branch: sandbox.volume() });
    let fs = Fs::new(spec).unwrap();
    let volume = sandbox.temp.path().join("volume");
    for replace in [
        |path: &std::path::Path| drop(std::os::unix::net::UnixListener::bind(path).unwrap()),
        |path: &std::path::Path| std::os::unix::fs::symlink("elsewhere", path).unwrap(),
    ] {
        fs.put("/v/f", "old");
        let id = fs.at("/v/f").id;
        // Its number stays taken.
        std::fs::rename(volume.join("f"), volume.join("moved")).unwrap();
        // A socket cannot be opened (ENXIO), a symlink is not followed (ELOOP): neither is said of the file.
        replace(&volume.join("f"));
        assert_eq!(fs.open(id, OpenFlags::default()).unwrap_err(), FsError::Stale);
        std::fs::remove_file(volume.join("f")).unwrap();
    }
}

#[test]
fn truncating_takes_set_id_bits_from_others_than_root() {
    let sandbox = Sandbox::new();
    let fs = sandbox.fs(vec![layer(|_| {})]);
    for (uid, expected) in [(0, 0o6775), (1000, 0o775)] {
        fs.put("/f", "x");
        let id = fs.at("/f").id;
        fs.setattr(id, None, &SetAttr { perm: Some(0o6775), ..SetAttr::default() }).unwrap();
        fs.open(
            id,
            OpenFlags::from_bits(
                libc::O_WRONLY | libc::O_TRUNC,
                (uid != 0).then_some(Caller { uid, gid: uid, pid: 0 }),
            ),
        )
        .unwrap();
        assert_eq!(fs.getattr(id).unwrap().0.perm, expected, "uid {uid}");
    }
}

#[test]
fn a_directory_beside_its_whiteout_hides_what_is_below() {
    let sandbox = Sandbox::new();
    let lower = sandbox.temp.path().join("lower");
    std::fs::create_dir(lower.join("d")).unwrap();
    std::fs::write(lower.join("d/new"), "").unwrap();
    std::fs::write(lower.join(".wh.d"), "").unwrap();
    let form = HostForm { has_oci_names: true, ..HostForm::default() };
    let top = Arc::new(DirLayer::open(sandbox.open("lower"), "lower".into(), form).unwrap());
    let bottom = layer(|l| {
        l.file("d/old", b"").unwrap();
    });
    let fs = sandbox.fs(vec![top, bottom]);
    assert_eq!(fs.tree_at(""), tree(&[("/d", "dir"), ("/d/new", "")]));
}

#[test]
fn default_acls_are_inherited_in_place_of_the_umask() {
    for ownership in [Sandbox::ownership(), Ownership::Override] {
        let sandbox = Sandbox::new();
        let mut spec = sandbox.spec(vec![layer(|_| {})]);
        if let Base::Merge { upper: Some(upper), .. } = &mut spec.root.base {
            upper.ownership = ownership;
        }
        let fs = Fs::new(spec).unwrap();
        fs.mkdir("/d");
        // u::rwx u:1000:rw- g::r-x m::rwx o::---
        let mut value = 2u32.to_le_bytes().to_vec();
        for (tag, perm, id) in [(1u16, 7u16, !0u32), (2, 6, 1000), (4, 5, !0), (0x10, 7, !0), (0x20, 0, !0)] {
            value.extend(tag.to_le_bytes());
            value.extend(perm.to_le_bytes());
            value.extend(id.to_le_bytes());
        }
        let any = crate::sys::xattr::SetMode::Any;
        fs.setxattr(caller(), fs.at("/d").id, crate::model::acl::DEFAULT, &value, any).unwrap();
        let d = fs.at("/d").id;
        for (kind, text) in [(Kind::File, "f"), (Kind::Dir, "sub")] {
            let new = NewNode { umask: 0o077, ..new_node(kind, 0o666) };
            let entry = fs.make(caller(), d, name(text), &new).unwrap();
            assert_eq!(entry.attr.perm, 0o660, "{ownership:?} {text}");
            assert_eq!(fs.getxattr(entry.id, crate::model::acl::DEFAULT).is_ok(), kind == Kind::Dir);
            assert!(fs.getxattr(entry.id, crate::model::acl::ACCESS).is_ok());
        }
        // chmod changes the mask, and setting a list changes the mode.
        let f = fs.at("/d/f").id;
        fs.setattr(f, None, &SetAttr { perm: Some(0o604), ..SetAttr::default() }).unwrap();
        let list = crate::model::acl::Acl::parse(&fs.getxattr(f, crate::model::acl::ACCESS).unwrap()).unwrap();
        assert_eq!(list.perm(0), 0o604, "{ownership:?}");
        fs.setxattr(caller(), f, crate::model::acl::ACCESS, &value, any).unwrap();
        assert_eq!(fs.getattr(f).unwrap().0.perm, 0o770, "{ownership:?}");
    }
}

#[test]
fn appends_through_two_handles_of_a_volume_all_arrive() {
    let sandbox = Sandbox::new();
    let mut spec = sandbox.spec(vec![layer(|_| {})]);
    spec.mounts.push(MountAt { target: b"/v".to_vec(), branch: sandbox.volume() });
    let fs = Fs::new(spec).unwrap();
    let write = OpenFlags { write: true, ..OpenFlags::default() };
    let v = fs.at("/v").id;
    let first = fs.create(caller(), v, name("log"), &new_node(Kind::File, 0o644)).unwrap().1.handle;
    let second = fs.open(fs.at("/v/log").id, write).unwrap().handle;
    // Each is told the offset that its kernel believes in.
    fs.append(second, 0, b"second\n").unwrap();
    fs.append(first, 0, b"first\n").unwrap();
    // What comes from a mapping of the same descriptor has its place.
    fs.write(first, 0, b"SEC").unwrap();
    assert_eq!(fs.cat("/v/log"), "SECond\nfirst\n");
}

#[test]
fn directories_of_layers_are_renamed_and_found_again() {
    let sandbox = Sandbox::new();
    std::fs::create_dir_all(sandbox.temp.path().join("lower/a/sub")).unwrap();
    std::fs::create_dir(sandbox.temp.path().join("lower/empty")).unwrap();
    std::fs::write(sandbox.temp.path().join("lower/a/sub/f"), "f").unwrap();
    std::fs::write(sandbox.temp.path().join("lower/a/g"), "g").unwrap();
    let bottom = || {
        layer(|l| {
            l.file("a/sub/deep", b"deep").unwrap().file("a/hidden", b"").unwrap();
        })
    };
    let expected = tree(&[
        ("/b", "dir"),
        ("/b/empty", "dir"),
        ("/b/empty/deep", "deep"),
        ("/b/empty/f", "f"),
        ("/b/g", "changed"),
        ("/b/new", "new"),
        ("/b/sub", "dir"),
        ("/b/sub/fresh", "1"),
    ]);
    let ino = {
        let fs = sandbox.fs(vec![sandbox.host_layer(), bottom()]);
        let ino = fs.at("/a/sub").attr.ino;
        fs.mv("/a", "/b").unwrap();
        fs.mv("/b/sub", "/empty").unwrap();
        fs.mv("/empty", "/b/empty").unwrap();
        fs.mkdir("/b/sub");
        fs.put("/b/sub/fresh", "1");
        fs.put("/b/new", "new");
        fs.put("/b/g", "changed");
        fs.rm("/b/hidden").unwrap();
        assert_eq!(fs.tree_at(""), expected);
        let which = fs.which(b"/b/empty/deep").unwrap();
        assert_eq!(which.provider, Some((inspect::Source::Layer(1), Kind::File)));
        ino
    };
    let fs = sandbox.fs(vec![sandbox.host_layer(), bottom()]);
    assert_eq!(fs.tree_at(""), expected, "after a remount");
    assert_eq!(fs.at("/b/empty").attr.ino, ino);
    let changes = fs.changes().unwrap();
    let has = |kind, path: &str| changes.contains(&Change { kind, path: path.as_bytes().to_vec() });
    assert!(has(ChangeKind::Deleted, "/a") && has(ChangeKind::Added, "/b") && has(ChangeKind::Added, "/b/empty/f"));
    assert!(has(ChangeKind::Deleted, "/empty"), "{changes:?}");
}

#[test]
fn changing_attributes_of_a_big_file_copies_no_data() {
    let sandbox = Sandbox::new();
    let lower = |text: &str| sandbox.temp.path().join("lower").join(text);
    let upper = |text: &str| sandbox.temp.path().join("upper").join(text);
    let space = |path: &std::path::Path| {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(path).unwrap().blocks() * 512
    };
    let big = "0123456789abcdef".repeat(100_000);
    for file in ["chmod", "mv", "link", "write", "cut", "empty"] {
        std::fs::write(lower(file), &big).unwrap();
    }
    let start = |fs: &Fs, path: &str| {
        let handle = fs.open(fs.at(path).id, OpenFlags::default()).unwrap().handle;
        let mut buffer = vec![0; big.len() + 1];
        let length = fs.read(handle, 0, &mut buffer).unwrap();
        fs.release(handle);
        (length, String::from_utf8(buffer[..20.min(length)].to_vec()).unwrap())
    };
    let whole = (big.len(), big[..20].to_owned());
    let chmod = SetAttr { perm: Some(0o600), ..SetAttr::default() };
    {
        let fs = sandbox.fs(vec![sandbox.host_layer()]);
        for file in ["/chmod", "/write", "/cut", "/empty"] {
            fs.setattr(fs.at(file).id, None, &chmod).unwrap();
            assert_eq!(start(&fs, file), whole, "{file}");
        }
        fs.mv("/mv", "/moved").unwrap();
        fs.link(fs.at("/link").id, NodeId::ROOT, name("second")).unwrap();
        for file in ["chmod", "moved", "second"] {
            assert!(space(&upper(file)) < 65_536, "{file} was copied");
        }
        assert_eq!(fs.at("/chmod").attr.size, big.len() as u64);
    }
    let fs = sandbox.fs(vec![sandbox.host_layer()]);
    for file in ["/chmod", "/moved", "/link", "/second"] {
        assert_eq!(start(&fs, file), whole, "{file} after a remount");
    }
    // The data follows with the first change of the content; an old reader goes along.
    let reader = fs.open(fs.at("/write").id, OpenFlags::default()).unwrap().handle;
    let write = OpenFlags { write: true, ..OpenFlags::default() };
    let handle = fs.open(fs.at("/write").id, write).unwrap().handle;
    fs.write(handle, 3, b"XX").unwrap();
    let mut buffer = [0; 6];
    fs.read(reader, 0, &mut buffer).unwrap();
    assert_eq!(&buffer, b"012XX5");
    assert_eq!(start(&fs, "/write").0, big.len());
    assert!(space(&upper("write")) >= big.len() as u64);
    fs.setattr(fs.at("/cut").id, None, &SetAttr { size: Some(5), ..SetAttr::default() }).unwrap();
    assert_eq!(start(&fs, "/cut"), (5, "01234".into()));
    fs.open(fs.at("/empty").id, OpenFlags { truncate: true, ..write }).unwrap();
    assert_eq!(start(&fs, "/empty"), (0, String::new()));
    drop(fs);
    let fs = sandbox.fs(vec![sandbox.host_layer()]);
    assert_eq!((start(&fs, "/write").1.as_str(), start(&fs, "/cut").0), ("012XX56789abcdef0123", 5));
    assert_eq!(std::fs::read_to_string(lower("write")).unwrap(), big);
}

#[test]
fn metadata_only_files_of_layers_are_read_from_below() {
    if crate::sys::proc::euid() != 0 {
        return;
    }
    // A layer that the kernel, or an upper of ours, has left: metadata above, content below under another name.
    let sandbox = Sandbox::new();
    let lower = |text: &str| sandbox.temp.path().join("lower").join(text);
    std::fs::write(lower("new"), "").unwrap();
    File::options().write(true).open(lower("new")).unwrap().set_len(5).unwrap();
    let set = |name: &str, value: &[u8]| {
        rustix::fs::setxattr(lower("new"), name, value, rustix::fs::XattrFlags::empty()).unwrap();
    };
    set("trusted.overlay.metacopy", b"");
    set("trusted.overlay.redirect", b"/dir/old");
    let bottom = || {
        layer(|l| {
            l.file("dir/old", b"hello").unwrap();
        })
    };
    let fs = sandbox.fs(vec![sandbox.host_layer(), bottom()]);
    assert_eq!(fs.cat("/new"), "hello");
    fs.setattr(fs.at("/new").id, None, &SetAttr { perm: Some(0o600), ..SetAttr::default() }).unwrap();
    assert_eq!(fs.cat("/new"), "hello");
    drop(fs);
    assert_eq!(sandbox.fs(vec![sandbox.host_layer(), bottom()]).cat("/new"), "hello");
    // Without what it refers to it is an error, never zeros.
    let fs = sandbox.fs(vec![layer(|_| {}), sandbox.host_layer()]);
    std::fs::remove_dir_all(sandbox.temp.path().join("upper/new")).ok();
    std::fs::remove_file(sandbox.temp.path().join("upper/new")).ok();
    let entry = fs.at("/new");
    assert!(matches!(fs.open(entry.id, OpenFlags::default()), Err(FsError::Corrupt { .. })));
}

#[test]
fn what_has_no_name_counts_no_links() {
    let sandbox = Sandbox::new();
    let fs = sandbox.fs(vec![layer(|l| {
        l.file("f", b"f").unwrap().dir("d", 0o755).unwrap();
    })]);
    let (file, dir) = (fs.at("/f").id, fs.at("/d").id);
    fs.rm("/f").unwrap();
    fs.rm_dir("/d").unwrap();
    assert_eq!((fs.getattr(file).unwrap().0.nlink, fs.getattr(dir).unwrap().0.nlink), (0, 0));
}

#[test]
fn a_write_to_a_link_whose_known_name_is_gone_is_kept() {
    let sandbox = Sandbox::new();
    let lower = |text: &str| sandbox.temp.path().join("lower").join(text);
    std::fs::write(lower("a"), "old").unwrap();
    std::fs::hard_link(lower("a"), lower("b")).unwrap();
    {
        let fs = sandbox.fs(vec![sandbox.host_layer()]);
        let a = fs.at("/a").id;
        let handle = fs.open(a, OpenFlags::default()).unwrap().handle;
        fs.rm("/a").unwrap();
        fs.setattr(a, Some(handle), &SetAttr { perm: Some(0o600), ..SetAttr::default() }).unwrap();
        fs.put("/b", "NEW");
        assert_eq!(fs.at("/b").attr.nlink, 1);
    }
    let fs = sandbox.fs(vec![sandbox.host_layer()]);
    assert_eq!((fs.cat("/b").as_str(), fs.at("/b").attr.nlink), ("NEW", 1));
}

#[test]
fn changes_to_a_file_that_the_host_replaced_never_hit_its_successor() {
    use std::os::unix::fs::PermissionsExt;
    let sandbox = Sandbox::new();
    let mut spec = sandbox.spec(vec![layer(|_| {})]);
    spec.mounts.push(MountAt { target: b"/v".to_vec(), branch: sandbox.volume() });
    let fs = Fs::new(spec).unwrap();
    fs.put("/v/f", "old");
    let entry = fs.at("/v/f");
    let handle = fs.open(entry.id, OpenFlags { write: true, ..OpenFlags::default() }).unwrap().handle;
    let volume = sandbox.temp.path().join("volume");
    std::fs::write(volume.join("next"), "successor").unwrap();
    std::fs::set_permissions(volume.join("next"), std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::rename(volume.join("next"), volume.join("f")).unwrap();
    let set = SetAttr { perm: Some(0o600), size: Some(1), ..SetAttr::default() };
    assert_eq!(fs.setattr(entry.id, Some(handle), &set).unwrap().0.size, 1);
    fs.setattr(entry.id, None, &set).unwrap();
    let meta = std::fs::metadata(volume.join("f")).unwrap();
    assert_eq!((meta.len(), meta.permissions().mode() & 0o777), (9, 0o644));
}

#[test]
fn a_file_replaced_by_rename_is_never_mistaken_for_its_successor() {
    let sandbox = Sandbox::new();
    let fs = sandbox.fs(vec![layer(|_| {})]);
    fs.put("/target", &"a".repeat(50));
    let is_over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..400u32 {
                let (letter, length) = if round % 2 == 0 { ("b", 90) } else { ("a", 50) };
                fs.put("/tmp", &letter.repeat(length));
                fs.mv("/tmp", "/target").unwrap();
            }
            is_over.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        for _ in 0..2 {
            scope.spawn(|| {
                while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                    let Ok(entry) = fs.resolve(b"/target", Follow::No) else { continue };
                    if let Ok(opened) = fs.open(entry.id, OpenFlags::default()) {
                        let mut buffer = [0; 100];
                        let length = fs.read(opened.handle, 0, &mut buffer).unwrap();
                        assert_eq!(length as u64, entry.attr.size, "another file's content");
                        assert_eq!(fs.getattr(entry.id).unwrap().0.size, entry.attr.size, "another file's size");
                        fs.release(opened.handle);
                    }
                    fs.forget(entry.id, 1);
                }
            });
        }
    });
}

#[test]
fn what_is_made_in_a_directory_never_goes_with_its_removal() {
    const ROUNDS: usize = 200;
    let sandbox = Sandbox::new();
    let fs = sandbox.fs(vec![layer(|l| {
        for round in 0..ROUNDS {
            l.file(&format!("d{round}/gone"), b"").unwrap();
        }
    })]);
    for round in 0..ROUNDS {
        // The whiteout in it is no entry, but it keeps the host from removing the directory as an empty one.
        fs.rm(&format!("/d{round}/gone")).unwrap();
        let (dir, own) = (fs.at(&format!("/d{round}")).id, format!("d{round}"));
        let start = std::sync::Barrier::new(2);
        let (made, removed) = std::thread::scope(|scope| {
            let maker = scope.spawn(|| {
                start.wait();
                fs.create(caller(), dir, name("made"), &new_node(Kind::File, 0o600)).map(|_| ())
            });
            start.wait();
            let removed = fs.rmdir(NodeId::ROOT, name(&own));
            (maker.join().unwrap(), removed)
        });
        assert!(made.is_err() || removed.is_err(), "round {round}: both succeeded");
        assert_eq!(made.is_ok(), fs.lookup(NodeId::ROOT, name(&own)).is_ok(), "round {round}: {made:?} {removed:?}");
    }
}

#[test]
fn deep_directories_cost_no_stack() {
    let sandbox = Sandbox::new();
    let fs = sandbox.fs(vec![layer(|_| {})]);
    let mut here = NodeId::ROOT;
    let mut counted = Vec::new();
    for _ in 0..6000 {
        here = fs.make(caller(), here, name("d"), &new_node(Kind::Dir, 0o755)).unwrap().id;
        counted.push(here);
    }
    crate::sys::dir::forget_descriptors();
    fs.make(caller(), here, name("end"), &new_node(Kind::Dir, 0o755)).unwrap();
    drop(fs);
}

#[test]
fn a_file_made_without_the_right_to_write_is_open_for_writing() {
    let sandbox = Sandbox::new();
    let mut spec = sandbox.spec(vec![layer(|_| {})]);
    spec.mounts.push(MountAt { target: b"/v".to_vec(), branch: sandbox.volume() });
    let fs = Fs::new(spec).unwrap();
    for dir in ["/", "/v"] {
        let parent = fs.at(dir).id;
        let (entry, opened) = fs.create(caller(), parent, name("obj"), &new_node(Kind::File, 0o444)).unwrap();
        assert_eq!((entry.attr.perm, fs.write(opened.handle, 0, b"data").unwrap()), (0o444, 4));
        assert_eq!(fs.cat(&format!("{}/obj", dir.trim_end_matches('/'))), "data");
    }
}

#[test]
fn owners_cannot_be_forged_in_a_volume_of_the_override_form() {
    let sandbox = Sandbox::new();
    let mut branch = sandbox.volume();
    if let Base::Merge { upper: Some(upper), .. } = &mut branch.base {
        upper.ownership = Ownership::Override;
    }
    let mut spec = sandbox.spec(vec![layer(|_| {})]);
    spec.mounts.push(MountAt { target: b"/v".to_vec(), branch });
    let fs = Fs::new(spec).unwrap();
    fs.put("/v/f", "");
    let id = fs.at("/v/f").id;
    for mark in ["user.containers.override_stat", "user.overlay.mlfs.aside.security.capability"] {
        let any = crate::sys::xattr::SetMode::Any;
        assert_eq!(fs.setxattr(caller(), id, mark.as_bytes(), b"0:0:4755", any), Err(FsError::Perm));
        assert_eq!(fs.getxattr(id, mark.as_bytes()), Err(FsError::NoAttribute));
    }
    assert_eq!(fs.at("/v/f").attr.perm, 0o644);
}

#[test]
fn access_lists_are_mapped_as_owners_are() {
    use crate::model::ids::IdRange;
    let sandbox = Sandbox::new();
    let mut spec = sandbox.spec(vec![layer(|_| {})]);
    if let Base::Merge { upper: Some(upper), .. } = &mut spec.root.base {
        upper.ownership = Ownership::Override;
    }
    let range = vec![IdRange { inner: 0, outer: 100_000, count: 65_536 }];
    (spec.uids, spec.gids) = (IdMap::Ranges(range.clone()), IdMap::Ranges(range));
    let fs = Fs::new(spec).unwrap();
    let own = Caller { uid: 100_000, gid: 100_000, pid: 1 };
    let id = fs.make(own, NodeId::ROOT, name("f"), &new_node(Kind::File, 0o600)).unwrap().id;
    let list = |user: u32| {
        let mut value = 2u32.to_le_bytes().to_vec();
        for (tag, perm, id) in [(1u16, 6u16, !0u32), (2, 4, user), (4, 0, !0), (0x10, 4, !0), (0x20, 0, !0)] {
            value.extend(tag.to_le_bytes());
            value.extend(perm.to_le_bytes());
            value.extend(id.to_le_bytes());
        }
        value
    };
    let any = crate::sys::xattr::SetMode::Any;
    fs.setxattr(caller(), id, crate::model::acl::ACCESS, &list(101_000), any).unwrap();
    assert_eq!(fs.getxattr(id, crate::model::acl::ACCESS).unwrap(), list(101_000));
    assert_eq!(fs.stored_xattr(id, crate::model::acl::ACCESS).unwrap(), list(1000));
    assert_eq!(fs.setxattr(caller(), id, crate::model::acl::ACCESS, &list(1000), any), Err(FsError::Overflow));
}

#[test]
fn redirects_on_the_way_of_a_redirect_are_followed() {
    if crate::sys::proc::euid() != 0 {
        return;
    }
    // middle: a was renamed from b; the upper then moves a/x to y.
    let sandbox = Sandbox::new();
    std::fs::create_dir_all(sandbox.temp.path().join("lower/a/x")).unwrap();
    std::fs::write(sandbox.temp.path().join("lower/a/x/new"), "").unwrap();
    let a = sandbox.temp.path().join("lower/a");
    rustix::fs::setxattr(a, "trusted.overlay.redirect", b"/b", rustix::fs::XattrFlags::empty()).unwrap();
    let bottom = || {
        layer(|l| {
            l.file("b/x/f", b"").unwrap();
        })
    };
    for round in 0..2 {
        let fs = sandbox.fs(vec![sandbox.host_layer(), bottom()]);
        if round == 0 {
            fs.mv("/a/x", "/y").unwrap();
        }
        assert_eq!(fs.tree_at("/y"), tree(&[("/y/f", ""), ("/y/new", "")]), "round {round}");
    }
}

#[test]
fn one_bad_entry_does_not_hide_the_others() {
    if crate::sys::proc::euid() != 0 {
        return;
    }
    let sandbox = Sandbox::new();
    for dir in ["good", "bad"] {
        std::fs::create_dir(sandbox.temp.path().join("lower").join(dir)).unwrap();
    }
    let bad = sandbox.temp.path().join("lower/bad");
    rustix::fs::setxattr(bad, "trusted.overlay.redirect", b"../x", rustix::fs::XattrFlags::empty()).unwrap();
    let bottom = layer(|l| {
        l.dir("good", 0o755).unwrap();
    });
    let fs = sandbox.fs(vec![sandbox.host_layer(), bottom]);
    let mut names = Vec::new();
    fs.read_dir_plus(NodeId::ROOT, Cookie::START, &mut |name, _, out| {
        names.push((name.clone(), out.is_ok()));
        true
    })
    .unwrap();
    names.sort();
    assert_eq!(names, [(name("bad").to_buf(), false), (name("good").to_buf(), true)]);
    let mut plain = 0;
    fs.read_dir(NodeId::ROOT, Cookie::START, &mut |_| {
        plain += 1;
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(plain, 2);
}
