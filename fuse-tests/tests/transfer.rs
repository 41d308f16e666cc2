// SPDX-License-Identifier: MIT OR Apache-2.0
//! Out of containers and into them: `export`, `cp`.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use fuse_tests::difficult;
use fuse_tests::host::sh;
use fuse_tests::identity::{Identity, has_program, identity, own_ids};
use fuse_tests::world::{World, list, needs_root, read, world, write};
use fuse_tests::{Compare, LayerSpec, Tree, skip};

// What a tar keeps: no inode numbers, and the count of links only as far as names are in it.
const KEPT: Compare = Compare { is_link_count: false, ..Compare::ALL };

fn small(w: &World) {
    let mut layer = LayerSpec::new();
    layer.file("etc/conf", "conf");
    layer.file("etc/deep/er", "er");
    layer.symlink("abs", "/etc/conf");
    layer.symlink("dirlink", "etc/deep");
    layer.symlink("dangling", "/etc/fresh");
    layer.symlink("out", "../../../../../../tmp");
    layer.symlink("etc/up", "../../../..");
    w.load("small", &[layer]);
}

#[test]
fn an_exported_tree_is_the_merged_tree() {
    world(|w| {
        w.load("difficult", &difficult::layers());
        // Everything is the caller's to change: the same changes for everybody.
        let root = w.mount("box", &["--owner", "me", "-v", "vol:/vol", "difficult"]);
        write(root.join("etc/shadow"), "changed");
        write(root.join("links/b"), "changed by one of its names");
        std::fs::rename(root.join("names"), root.join("renamed")).expect("rename");
        std::fs::remove_dir_all(root.join("del")).expect("remove");
        write(root.join("vol/in-a-volume"), "v");
        let tar = w.sandbox.path("box.tar");
        w.mlfs().ok(["export", "box", "-o", &tar.display().to_string()]);
        w.umount("box");
        let stopped = w.sandbox.path("stopped.tar");
        w.mlfs().ok(["export", "box", "-o", &stopped.display().to_string()]);
        assert!(std::fs::read(&tar).expect("read") == std::fs::read(&stopped).expect("read"), "mounted and stopped");

        w.unguard_store();
        let again = w.mount("again", &["--owner", "me", "--layer", &tar.display().to_string()]);
        w.mlfs().ok(["start", "box"]);
        let mut original = Tree::take(&root);
        original.nodes.remove(b"vol/in-a-volume".as_slice()).expect("the volume is not exported");
        // A mount point shows the root of what is mounted there.
        original.nodes.remove(b"vol".as_slice());
        let mut seen = Tree::take(&again);
        seen.nodes.remove(b"vol".as_slice()).expect("its mount point is");
        original.assert_same(&seen, KEPT, "the container | its export as a layer");
        w.umount("box");
    });
}

#[test]
fn an_export_keeps_owners_devices_and_holes() {
    world(|w| {
        w.load("difficult", &difficult::layers());
        let tar = w.sandbox.path("image.tar");
        // An image, without any mount, and through a pipe.
        let script = format!(
            "'{}' --root '{}' export difficult | cat > '{}'",
            fuse_tests::cli::mlfs_binary().display(),
            w.mlfs().root().display(),
            tar.display()
        );
        sh(&w.sandbox, w.sandbox.root(), &script).ok();
        let listed = sh(&w.sandbox, w.sandbox.root(), &format!("tar --numeric-owner -tvf '{}'", tar.display())).ok();
        for (line, part) in
            [("big-id", "4000000000/3000000000"), ("dev/disk", "259,70000"), ("home/u/notes", "1000/1001")]
        {
            let found = listed.lines().find(|l| l.ends_with(line)).unwrap_or_else(|| panic!("{line} is missing"));
            assert!(found.contains(part), "{found}");
        }
        if identity() != Identity::Root {
            return;
        }
        let unpacked = w.sandbox.dir("unpacked");
        let script = format!(
            "tar --numeric-owner --xattrs --xattrs-include='*' -xpf '{}' -C '{}'",
            tar.display(),
            unpacked.display()
        );
        sh(&w.sandbox, w.sandbox.root(), &script).ok();
        let root = w.mount("box", &["difficult"]);
        let what = "the mount | its export, unpacked by GNU tar";
        Tree::take(&root).assert_same(&Tree::take(&unpacked), Compare { is_root: false, ..KEPT }, what);
        w.umount("box");
    });
}

#[test]
fn holes_stay_holes() {
    world(|w| {
        small(w);
        let root = w.mount("box", &["--owner", "me", "small"]);
        let file = std::fs::File::create(root.join("sparse")).expect("create");
        std::os::unix::fs::FileExt::write_all_at(&file, b"end", 64 << 20).expect("write");
        file.set_len(96 << 20).expect("truncate");
        drop(file);
        w.umount("box");
        let tar = w.sandbox.path("box.tar");
        w.mlfs().ok(["export", "box", "-o", &tar.display().to_string()]);
        assert!(std::fs::metadata(&tar).expect("stat").len() < 1 << 20);
        let unpack = format!("mkdir u && tar -xf '{}' -C u sparse", tar.display());
        sh(&w.sandbox, w.sandbox.root(), &unpack).ok();
        let copied = w.sandbox.path("copied");
        w.mlfs().ok(["cp", "box:/sparse", &copied.display().to_string()]);
        w.mlfs().ok(["cp", &copied.display().to_string(), "box:/second"]);
        w.mlfs().ok(["start", "box"]);
        for file in [w.sandbox.path("u/sparse"), copied, root.join("second")] {
            let meta = std::fs::metadata(&file).expect("stat");
            assert_eq!(meta.len(), 96 << 20, "{}", file.display());
            assert!(meta.blocks() * 512 < 1 << 20, "{}: {} blocks", file.display(), meta.blocks());
            let bytes = std::fs::read(&file).expect("read");
            assert_eq!(&bytes[64 << 20..][..4], b"end\0");
        }
        w.umount("box");
    });
}

#[test]
fn a_failed_export_leaves_nothing() {
    world(|w| {
        small(w);
        let file = w.sandbox.path("none.tar");
        w.mlfs().fails(["export", "unknown", "-o", &file.display().to_string()], 1, "no image unknown");
        assert!(!file.exists());
        let kept = w.sandbox.file("kept.tar", "as it was");
        let missing = w.sandbox.path("store/objects");
        w.unguard_store();
        w.mount("box", &["small"]);
        w.umount("box");
        std::fs::rename(&missing, w.sandbox.path("aside")).expect("hide the objects");
        std::fs::create_dir(&missing).expect("mkdir");
        let outcome = w.mlfs().run(["export", "box", "-o", &kept.display().to_string()]);
        std::fs::remove_dir(&missing).expect("rmdir");
        std::fs::rename(w.sandbox.path("aside"), &missing).expect("back");
        // Small bodies stand in the index: then there is nothing to miss.
        if outcome.code != 0 {
            outcome.fails(1);
            assert_eq!(read(&kept), "as it was");
        }
        assert_eq!(list(w.sandbox.root()).iter().filter(|name| name.contains(".mlfs-")).count(), 0);
    });
}

#[test]
fn an_archive_is_not_written_to_a_terminal() {
    world(|w| {
        if !has_program("script") {
            skip("no script(1) on this machine");
        }
        small(w);
        w.mount("box", &["small"]);
        w.umount("box");
        for words in ["export small", "cp box:/etc -"] {
            let line =
                format!("{} --root {} {words}", fuse_tests::cli::mlfs_binary().display(), w.mlfs().root().display());
            let outcome = sh(&w.sandbox, w.sandbox.root(), &format!("script -qec '{line}' /dev/null </dev/null"));
            assert_eq!(outcome.code, 2, "{words}: {}", outcome.stdout);
            assert!(outcome.stdout.contains("terminal"), "{words}: {}", outcome.stdout);
        }
    });
}

// Runs the body with the container mounted, then stopped: what holds for one holds for the other.
fn mounted_and_stopped(args: &[&str], body: impl Fn(&World, &str)) {
    world(|w| {
        small(w);
        for name in ["mounted", "stopped"] {
            let mut all = vec!["--owner", "me"];
            all.extend(args);
            all.push("small");
            w.mount(name, &all);
            if name == "stopped" {
                w.umount(name);
            }
            body(w, name);
            if name == "mounted" {
                w.umount(name);
            }
        }
    });
}

fn cat(w: &World, name: &str, path: &str) -> String {
    w.mlfs().ok(["cat", name, path])
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

#[test]
fn cp_into_a_container_follows_dockers_rules() {
    mounted_and_stopped(&[], |w, name| {
        let file = text(&w.sandbox.file("host/file", "file"));
        let dir = w.sandbox.path("host/dir");
        w.sandbox.file("host/dir/sub/x", "x");
        let (dir, content) = (text(&dir), format!("{}/.", text(&dir)));
        let at = |path: &str| format!("{name}:{path}");
        // A file: to a new name, over a file, into a directory, not to a directory that is not there.
        w.mlfs().ok(["cp", &file, &at("/new")]);
        assert_eq!(cat(w, name, "/new"), "file");
        w.mlfs().ok(["cp", &file, &at("etc/conf")]);
        assert_eq!(cat(w, name, "/etc/conf"), "file");
        w.mlfs().ok(["cp", &file, &at("/etc")]);
        assert_eq!(cat(w, name, "/etc/file"), "file");
        w.mlfs().fails(["cp", &file, &at("/absent/")], 1, "does not exist");
        w.mlfs().fails(["cp", &file, &at("/absent/file")], 1, "does not exist");
        // A directory: becomes what is not there, goes into what is, not over a file.
        w.mlfs().ok(["cp", &dir, &at("/made")]);
        assert_eq!(cat(w, name, "/made/sub/x"), "x");
        w.mlfs().ok(["cp", &dir, &at("/made")]);
        assert_eq!(cat(w, name, "/made/dir/sub/x"), "x");
        w.mlfs().ok(["cp", &content, &at("/etc")]);
        assert_eq!(cat(w, name, "/etc/sub/x"), "x");
        assert_eq!(cat(w, name, "/etc/deep/er"), "er", "what was there stays");
        w.mlfs().ok(["cp", &content, &at("/contents")]);
        assert_eq!(cat(w, name, "/contents/sub/x"), "x");
        w.mlfs().fails(["cp", &dir, &at("/etc/conf")], 1, "cannot copy a directory");
        // A directory never replaces a file inside, nor a file a directory.
        w.sandbox.file("host/clash/etc", "a file");
        let clash = format!("{}/.", text(&w.sandbox.path("host/clash")));
        w.mlfs().fails(["cp", &clash, &at("/")], 1, "cannot overwrite a directory");
        assert_eq!(cat(w, name, "/etc/deep/er"), "er");
        let left = w.mlfs().ok(["ls", "-q", name, "/"]);
        assert!(!left.contains(".mlfs"), "{left}");
    });
}

#[test]
fn cp_out_of_a_container_follows_dockers_rules() {
    mounted_and_stopped(&[], |w, name| {
        let at = |path: &str| format!("{name}:{path}");
        let out = w.sandbox.dir(format!("out-{name}"));
        let to = |path: &str| text(&out.join(path));
        w.mlfs().ok(["cp", &at("/etc/conf"), &to("new")]);
        w.mlfs().ok(["cp", &at("/etc/conf"), &text(&out)]);
        assert_eq!((read(out.join("new")), read(out.join("conf"))), ("conf".into(), "conf".into()));
        w.mlfs().ok(["cp", &at("/etc"), &to("made")]);
        w.mlfs().ok(["cp", &at("/etc"), &to("made")]);
        w.mlfs().ok(["cp", &at("/etc/."), &text(&out)]);
        for path in ["made/deep/er", "made/etc/deep/er", "deep/er"] {
            assert_eq!(read(out.join(path)), "er", "{path}");
        }
        w.mlfs().fails(["cp", &at("/etc"), &to("new")], 1, "cannot copy a directory");
        w.mlfs().fails(["cp", &at("/etc/conf"), &to("absent/")], 1, "does not exist");
        w.mlfs().fails(["cp", &at("/etc/conf"), &to("absent/x")], 1, "does not exist");
        w.mlfs().fails(["cp", &at("/nothing"), &text(&out)], 1, &format!("{name} has no /nothing"));
        w.mlfs().fails(["cp", &at("/etc/conf/"), &text(&out)], 1, "is no directory");
        let meta = std::fs::metadata(out.join("conf")).expect("stat");
        assert_eq!((meta.uid(), meta.gid()), own_ids(), "copies are the caller's");
        assert!(list(&out).iter().all(|found| !found.starts_with(".mlfs")));
    });
}

#[test]
fn cp_and_symlinks() {
    mounted_and_stopped(&[], |w, name| {
        let at = |path: &str| format!("{name}:{path}");
        let out = w.sandbox.dir(format!("out-{name}"));
        let to = |path: &str| text(&out.join(path));
        let target = |path: &str| std::fs::read_link(out.join(path)).expect("a link");
        // At the end of the source: as it is, unless asked for.
        w.mlfs().ok(["cp", &at("/abs"), &to("link")]);
        assert_eq!(target("link"), Path::new("/etc/conf"));
        w.mlfs().ok(["cp", "-L", &at("/abs"), &to("followed")]);
        assert_eq!(read(out.join("followed")), "conf");
        w.mlfs().ok(["cp", &at("/dirlink"), &to("dirlink")]);
        assert_eq!(target("dirlink"), Path::new("etc/deep"));
        w.mlfs().ok(["cp", &at("/dirlink/."), &to("dir")]);
        assert_eq!(read(out.join("dir/er")), "er");
        // On the way, and upwards: inside the container.
        w.mlfs().ok(["cp", &at("/dirlink/er"), &to("er")]);
        w.mlfs().ok(["cp", &at("/etc/up/up/../etc/conf"), &to("up")]);
        assert_eq!(read(out.join("up")), "conf");
        // At the end of the destination: followed, inside the container; one that leads to nothing is made there.
        let file = text(&w.sandbox.file("host/file", "file"));
        w.mlfs().ok(["cp", &file, &at("/dirlink")]);
        assert_eq!(cat(w, name, "/etc/deep/file"), "file");
        w.mlfs().ok(["cp", &file, &at("/dangling")]);
        assert_eq!(cat(w, name, "/etc/fresh"), "file");
        w.mlfs().ok(["cp", &file, &at("/abs")]);
        assert_eq!(cat(w, name, "/etc/conf"), "file");
        let inside = format!("mlfs-life-{}", std::process::id());
        let outcome = w.mlfs().run(["cp", &file, &at(&format!("/out/{inside}"))]);
        assert!(outcome.code == 1, "the container has no /tmp: {}", outcome.stderr);
        assert!(!Path::new("/tmp").join(&inside).exists());
        // A link inside what is copied is data, and one in its way is replaced, not followed.
        let tree = w.sandbox.dir(format!("tree-{name}"));
        symlink("/etc/passwd", tree.join("l")).expect("symlink");
        write(tree.join("over"), "over");
        w.mlfs().ok(["cp", &text(&tree), &at("/tree")]);
        symlink(&file, out.join("over")).expect("symlink");
        w.mlfs().ok(["cp", &at("/tree/."), &text(&out)]);
        assert_eq!(target("l"), Path::new("/etc/passwd"));
        assert_eq!((read(out.join("over")), read(&file)), ("over".into(), "file".into()));
        let is_file = std::fs::symlink_metadata(out.join("over")).expect("stat").is_file();
        assert!(is_file, "the link was replaced");
    });
}

#[test]
fn cp_as_tar_and_volumes() {
    mounted_and_stopped(&["-v", "vol:/vol"], |w, name| {
        let at = |path: &str| format!("{name}:{path}");
        let tar = w.sandbox.path(format!("{name}.tar"));
        write(&tar, []);
        let saved = w.mlfs().command().args(["cp", &at("/etc"), "-"]).output().expect("run");
        assert!(saved.status.success());
        write(&tar, &saved.stdout);
        let listed = sh(&w.sandbox, w.sandbox.root(), &format!("tar -tf '{}'", tar.display())).ok();
        assert!(listed.lines().any(|l| l == "etc/deep/er"), "{listed}");
        w.mlfs().run_with_input(["cp", "-", &at("/vol")], &tar).ok();
        assert_eq!(cat(w, name, "/vol/etc/deep/er"), "er");
        assert_eq!(read(w.sandbox.path("store/volumes/vol/_data/etc/conf")), "conf");
        let out = w.sandbox.path(format!("back-{name}"));
        w.mlfs().ok(["cp", &at("/vol/etc/conf"), &text(&out)]);
        assert_eq!(read(&out), "conf");
        w.mlfs().run_with_input(["cp", "-", &at("/etc/conf")], &tar).fails_saying(1, "no directory");
        w.mlfs().run_with_input(["cp", "-", &at("/absent")], &tar).fails_saying(1, "no directory");
        let empty = w.sandbox.file("empty", "");
        w.mlfs().run_with_input(["cp", "-", &at("/vol")], &empty).fails_saying(1, "empty");
        let cut = w.sandbox.file("cut", &saved.stdout[..saved.stdout.len() - 1024]);
        w.mlfs().run_with_input(["cp", "-", &at("/vol")], &cut).fails_saying(1, "cut short");
    });
}

#[test]
fn an_archive_that_climbs_is_refused() {
    mounted_and_stopped(&[], |w, name| {
        w.sandbox.file("evil", "evil");
        let script = "tar -cPf climbs.tar --transform='s,evil,../../evil,' evil";
        sh(&w.sandbox, w.sandbox.root(), script).ok();
        let at = format!("{name}:/etc");
        w.mlfs().run_with_input(["cp", "-", &at], &w.sandbox.path("climbs.tar")).fails_saying(1, "leads out");
    });
}

#[test]
fn cp_keeps_modes_times_links_and_attributes() {
    mounted_and_stopped(&[], |w, name| {
        let tree = w.sandbox.dir(format!("tree-{name}"));
        for (file, mode) in [("plain", 0o640), ("program", 0o755), ("closed/in", 0o400)] {
            w.sandbox.file(tree.join(file), "content");
            std::fs::set_permissions(tree.join(file), std::fs::Permissions::from_mode(mode)).expect("chmod");
        }
        std::fs::hard_link(tree.join("plain"), tree.join("second")).expect("link");
        rustix::fs::setxattr(tree.join("plain"), "user.note", b"n", rustix::fs::XattrFlags::empty()).expect("setxattr");
        std::fs::set_permissions(tree.join("closed"), std::fs::Permissions::from_mode(0o555)).expect("chmod");
        let before = Tree::take(&tree);
        w.mlfs().ok(["cp", &text(&tree), &format!("{name}:/tree")]);
        let back = w.sandbox.path(format!("back-{name}"));
        w.mlfs().ok(["cp", &format!("{name}:/tree"), &text(&back)]);
        before.assert_same(&Tree::take(&back), Compare::ALL, "the original | in and out again");
    });
}

#[test]
fn owners_of_copies() {
    world(|w| {
        needs_root("gives files away");
        small(w);
        let file = w.sandbox.file("host/file", "file");
        std::os::unix::fs::chown(&file, Some(12), Some(34)).expect("chown");
        let root = w.mount("box", &["small"]);
        for state in ["mounted", "stopped"] {
            w.mlfs().ok(["cp", &text(&file), &format!("box:/{state}")]);
            w.mlfs().ok(["cp", "-a", &text(&file), &format!("box:/{state}-a")]);
            if state == "mounted" {
                w.umount("box");
            }
        }
        w.mlfs().ok(["cp", "box:/stopped-a", &text(&w.sandbox.path("out"))]);
        w.mlfs().ok(["cp", "-a", "box:/stopped-a", &text(&w.sandbox.path("out-a"))]);
        w.mlfs().ok(["start", "box"]);
        let ids = |path: &Path| std::fs::metadata(path).map(|m| (m.uid(), m.gid())).expect("stat");
        for (path, wanted) in [
            (root.join("mounted"), (0, 0)),
            (root.join("mounted-a"), (12, 34)),
            (root.join("stopped"), (0, 0)),
            (root.join("stopped-a"), (12, 34)),
            (w.sandbox.path("out"), (0, 0)),
            (w.sandbox.path("out-a"), (12, 34)),
        ] {
            assert_eq!(ids(&path), wanted, "{}", path.display());
        }
        w.umount("box");
    });
}

#[test]
fn a_stopped_container_takes_what_its_mount_would_not_let_an_ordinary_user_write() {
    world(|w| {
        let mut layer = LayerSpec::new();
        layer.dir("etc").owner(0, 0).mode(0o755);
        w.load("small", &[layer]);
        let file = text(&w.sandbox.file("file", "file"));
        let root = w.mount("box", &["small"]);
        if identity() == Identity::User {
            let said = w.mlfs().fails(["cp", &file, "box:/etc/mine"], 1, "ermission denied");
            assert!(said.contains("unmount box first"), "{said}");
        }
        w.umount("box");
        w.mlfs().ok(["cp", &file, "box:/etc/mine"]);
        w.mlfs().ok(["start", "box"]);
        let meta = std::fs::metadata(root.join("etc/mine")).expect("stat");
        assert_eq!((meta.uid(), meta.gid()), (0, 0), "it belongs to the container's root");
        w.umount("box");
    });
}

#[test]
fn tmpfs_is_there_while_it_is_mounted() {
    world(|w| {
        small(w);
        let root = w.mount("box", &["--owner", "me", "--tmpfs", "/scratch", "small"]);
        write(root.join("scratch/f"), "f");
        let out = w.sandbox.path("out");
        w.mlfs().ok(["cp", "box:/scratch/f", &text(&out)]);
        w.mlfs().ok(["cp", &text(&out), "box:/scratch/g"]);
        assert_eq!((read(&out), read(root.join("scratch/g"))), ("f".into(), "f".into()));
        w.umount("box");
        w.mlfs().fails(["cp", &text(&out), "box:/scratch/h"], 1, "is a tmpfs");
    });
}

#[test]
fn wrong_words_for_cp_are_wrong_usage() {
    world(|w| {
        small(w);
        for (from, to, says) in [
            ("a:/x", "b:/y", "between containers"),
            ("./x", "./y", "one end must be in a container"),
            ("-", "-", "one end must be in a container"),
            (":x", "y", "NAME:PATH"),
            ("box:", "y", "NAME:PATH"),
        ] {
            w.mlfs().fails(["cp", from, to], 2, says);
        }
        w.mlfs().fails(["cp", "unknown:/x", "y"], 1, "no container unknown");
        w.mlfs().fails(["cp", "small:/x", "y"], 1, "no container small");
    });
}

#[test]
fn a_copy_gives_nobody_the_power_of_another() {
    world(|w| {
        needs_root("gives files away");
        let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let mut layer = LayerSpec::new();
        layer.file("theirs", "x").owner(1000, 1000).mode(0o6755).xattr("security.capability", capability);
        layer.file("roots", "x").owner(0, 0).mode(0o4755).xattr("user.kept", "k");
        w.load("app", &[layer]);
        w.mount("box", &["app"]);
        w.umount("box");
        let (plain, kept) = (w.sandbox.dir("plain"), w.sandbox.dir("kept"));
        w.mlfs().ok(["cp", "box:/.", &text(&plain)]);
        w.mlfs().ok(["cp", "-a", "box:/.", &text(&kept)]);
        let (plain, kept) = (Tree::take(&plain), Tree::take(&kept));
        for name in ["theirs", "roots"] {
            assert_eq!((plain.node(name).mode, plain.node(name).uid), (0o755, 0), "{name}");
            assert!(!plain.node(name).xattrs.contains_key(b"security.capability".as_slice()), "{name}");
        }
        assert!(plain.node("roots").xattrs.contains_key(b"user.kept".as_slice()));
        assert_eq!((kept.node("theirs").mode, kept.node("theirs").uid), (0o6755, 1000), "-a keeps it with its owner");
        assert!(kept.node("theirs").xattrs.contains_key(b"security.capability".as_slice()));
    });
}

#[test]
fn an_export_follows_no_planted_link_and_keeps_the_files_mode() {
    world(|w| {
        small(w);
        let file = w.sandbox.file("out/x.tar", "old");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).expect("chmod");
        let victim = w.sandbox.file("victim", "mine");
        // The name of the unfinished work cannot be foreseen from the number of the process: the shell keeps its own.
        let script = format!(
            "ln -s '{}' '{}'.mlfs-$$; exec '{}' --root '{}' export small -o '{}'",
            victim.display(),
            file.display(),
            fuse_tests::cli::mlfs_binary().display(),
            w.mlfs().root().display(),
            file.display()
        );
        sh(&w.sandbox, w.sandbox.root(), &script).ok();
        assert_eq!(read(&victim), "mine");
        assert!(std::fs::metadata(&file).expect("stat").len() > 1024);
        assert_eq!(std::fs::metadata(&file).expect("stat").mode() & 0o777, 0o640);
        assert!(list(w.sandbox.path("out")).iter().all(|name| !name.starts_with(".mlfs")));
    });
}

#[test]
fn a_volume_goes_out_and_comes_in_again_whole_or_not_at_all() {
    world(|w| {
        w.load("difficult", &difficult::layers());
        w.unguard_store();
        // Filled from the image, with owners that an ordinary user's host cannot hold.
        let root = w.mount("box", &["-v", "home:/home", "-v", "links:/links", "difficult"]);
        let (home, links) = (Tree::take(&root.join("home")), Tree::take(&root.join("links")));
        w.umount("box");
        for name in ["home", "links"] {
            let tar = w.sandbox.path(format!("{name}.tar"));
            w.mlfs().ok(["volume", "export", name, "-o", &text(&tar)]);
            w.mlfs().ok(["volume", "import", &format!("{name}-1"), &text(&tar)]);
            w.mlfs().run_with_input(["volume", "import", &format!("{name}-2"), "-"], &tar).ok();
        }
        let tar = w.sandbox.path("home.tar");
        let listed = sh(&w.sandbox, w.sandbox.root(), &format!("tar --numeric-owner -tvf '{}'", text(&tar))).ok();
        assert!(listed.lines().any(|l| l.contains("1000/1001") && l.ends_with("u/notes")), "{listed}");
        let root = w.mount("again", &["-v", "home-1:/home", "-v", "links-2:/links", "difficult"]);
        home.assert_same(&Tree::take(&root.join("home")), KEPT, "a volume | exported and imported");
        links.assert_same(&Tree::take(&root.join("links")), KEPT, "a volume | exported and imported");
        w.umount("again");
        // Whole or not at all.
        let whole = std::fs::read(&tar).expect("read");
        let cut = w.sandbox.file("cut.tar", &whole[..whole.len() - 1024]);
        let before = w.mlfs().ok(["volume", "ls", "-q"]);
        w.mlfs().fails(["volume", "import", "cut", &text(&cut)], 1, "cut short");
        w.mlfs().fails(["volume", "import", "none", &text(&w.sandbox.path("none.tar"))], 1, "cannot open");
        w.mlfs().fails(["volume", "import", "home", &text(&tar)], 1, "the volume home exists");
        w.mlfs().fails(["volume", "import", "a/b", &text(&tar)], 2, "volume name");
        w.mlfs().fails(["volume", "export", "unknown", "-o", &text(&w.sandbox.path("x.tar"))], 1, "unknown");
        assert!(!w.sandbox.path("x.tar").exists());
        assert_eq!(w.mlfs().ok(["volume", "ls", "-q"]), before);
        assert_eq!(list(w.mlfs().root().join("staging")), Vec::<String>::new());
    });
}
