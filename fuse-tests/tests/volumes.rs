// SPDX-License-Identifier: MIT OR Apache-2.0
//! Volumes, binds and tmpfs inside the one mount: where writes go, and what stays.

use std::os::unix::fs::MetadataExt;

use fuse_tests::identity::Identity;
use fuse_tests::tree::Body;
use fuse_tests::world::{World, eventually, list, needs_root, read, world, write};
use fuse_tests::{LayerSpec, Tree};
use rustix::io::Errno;

fn base(w: &World) -> String {
    w.layer("base", |l| {
        l.file("etc/conf", "conf");
        l.file("data/from-image", "image").mode(0o640);
        l.dir("data").mode(0o751);
        l.dir("empty");
        l.symlink("link-in", "data");
        l.symlink("link-out", "/empty");
        l.symlink("link-escape", "../../../../../../tmp");
    })
}

fn errno_of<T>(result: std::io::Result<T>) -> Option<Errno> {
    result.err().and_then(|error| error.raw_os_error()).map(Errno::from_raw_os_error)
}

#[test]
fn a_named_volume_stays() {
    world(|w| {
        let base = base(w);
        let root = w.mount("one", &["-v", "vol:/empty", "--layer", &base]);
        write(root.join("empty/kept"), "kept");
        std::fs::create_dir(root.join("empty/dir")).expect("mkdir");
        write(root.join("etc/conf"), "changed in the upper");
        assert_eq!(read(w.sandbox.path("store/volumes/vol/_data/kept")), "kept", "a plain directory on the host");
        w.rm("one");
        assert_eq!(read(w.sandbox.path("store/volumes/vol/_data/kept")), "kept");
        let root = w.mount("two", &["-v", "vol:/empty", "--layer", &base]);
        assert_eq!(list(root.join("empty")), ["dir", "kept"]);
        assert_eq!(read(root.join("etc/conf")), "conf", "the upper's change is gone");
    });
}

#[test]
fn an_anonymous_volume_goes_with_the_container() {
    world(|w| {
        let base = base(w);
        let root = w.mount("kept", &["-v", "/empty", "--layer", &base]);
        write(root.join("empty/f"), "f");
        let names = list(w.sandbox.path("store/volumes"));
        let names: Vec<_> = names.into_iter().filter(|name| name.len() == 64).collect();
        assert_eq!(names.len(), 1, "64 hexadecimal characters");
        assert!(names[0].chars().all(|char| char.is_ascii_hexdigit()));
        w.umount("kept");
        w.mlfs().ok(["start", "kept"]);
        assert_eq!(read(root.join("empty/f")), "f", "stop and start keep it");
        w.umount("kept");
        w.mlfs().ok(["rm", "-v", "kept"]);
        assert!(!w.sandbox.path("store/volumes").join(&names[0]).exists(), "rm -v takes it away");

        w.mount("gone", &["--rm", "-v", "/empty", "-v", "named:/data2", "--layer", &base]);
        w.umount("gone");
        eventually("--rm takes the anonymous volume away", || {
            !list(w.sandbox.path("store/volumes")).iter().any(|name| name.len() == 64)
        });
        assert!(w.sandbox.path("store/volumes/named/_data").exists(), "named ones stay, always");
    });
}

#[test]
fn binds() {
    world(|w| {
        let base = base(w);
        let host = w.sandbox.dir("host");
        write(host.join("from-host"), "host");
        let bind = format!("{}:/empty", host.display());
        let read_only = format!("{}:/ro:ro", host.display());
        let root = w.mount("box", &["-v", &bind, "-v", &read_only, "--layer", &base]);
        assert_eq!(read(root.join("empty/from-host")), "host");
        write(root.join("empty/from-box"), "box");
        std::fs::create_dir(root.join("empty/d")).expect("mkdir");
        assert_eq!(read(host.join("from-box")), "box", "writes go to the host at once");
        assert_eq!(errno_of(std::fs::write(root.join("ro/x"), "x")), Some(Errno::ROFS));
        assert_eq!(errno_of(std::fs::remove_file(root.join("ro/from-host"))), Some(Errno::ROFS));
        assert_eq!(read(root.join("ro/from-host")), "host");
        // The host's changes are seen after the short life of caches.
        write(host.join("from-host"), "changed on the host");
        write(host.join("new"), "n");
        std::fs::remove_dir(host.join("d")).expect("rmdir");
        eventually("a changed file", || read(root.join("empty/from-host")) == "changed on the host");
        eventually("a new file", || list(root.join("empty")) == ["from-box", "from-host", "new"]);
        w.rm("box");
        assert_eq!(list(&host), ["from-box", "from-host", "new"], "rm never touches a bind");
    });
}

#[test]
fn binds_of_single_files() {
    world(|w| {
        let base = base(w);
        let file = w.sandbox.file("host.conf", "from the host");
        let other = w.sandbox.file("other.conf", "other");
        let (bind, ro) = (format!("{}:/etc/conf", file.display()), format!("{}:/new/file:ro", other.display()));
        let root = w.mount("box", &["-v", &bind, "-v", &ro, "--layer", &base]);
        assert_eq!(read(root.join("etc/conf")), "from the host");
        write(root.join("etc/conf"), "written inside");
        assert_eq!(read(&file), "written inside");
        assert_eq!(read(root.join("new/file")), "other");
        assert_eq!(errno_of(std::fs::write(root.join("new/file"), "x")), Some(Errno::ROFS));
        assert_eq!(errno_of(std::fs::remove_file(root.join("etc/conf"))), Some(Errno::BUSY), "a mount point");
        assert_eq!(list(root.join("etc")), ["conf"]);
        w.umount("box");

        let over_dir = format!("{}:/data", file.display());
        w.try_mount("no", &["-v", &over_dir, "--layer", &base]).fails_saying(1, "is a directory");
        let dir_over_file = format!("{}:/etc/conf", w.sandbox.dir("d").display());
        w.try_mount("no", &["-v", &dir_over_file, "--layer", &base]).fails_saying(1, "not a directory");
        assert!(!w.sandbox.mounts().contains(&w.target("no")), "nothing is mounted");
    });
}

#[test]
fn bind_sources() {
    world(|w| {
        let base = base(w);
        // Relative to the working directory of the command, which is the sandbox.
        let root = w.mount("box", &["-v", "./rel/deep:/empty", "--layer", &base]);
        write(root.join("empty/f"), "f");
        assert_eq!(read(w.sandbox.path("rel/deep/f")), "f", "a missing source of -v is made");
        let absent = w.sandbox.path("absent");
        let mount = format!("type=bind,src={},dst=/empty", absent.display());
        let said = format!("bind source path does not exist: {}", absent.display());
        w.try_mount("no", &["--mount", &mount, "--layer", &base]).fails_saying(1, &said);
        assert!(!absent.exists());
        w.rm("box");
    });
}

#[test]
fn nested_targets_in_any_order() {
    world(|w| {
        let base = base(w);
        let file = w.sandbox.file("deep.txt", "deep file");
        let deep = format!("{}:/a/b/c/file", file.display());
        let orders: [[&str; 6]; 2] =
            [["-v", &deep, "-v", "inner:/a/b", "-v", "outer:/a"], ["-v", "outer:/a", "-v", "inner:/a/b", "-v", &deep]];
        for (number, order) in orders.iter().enumerate() {
            let name = format!("box{number}");
            let root = w.mount(&name, &[order.as_slice(), &["--layer", &base]].concat());
            write(root.join("a/in-outer"), "o");
            write(root.join("a/b/in-inner"), "i");
            assert_eq!(read(root.join("a/b/c/file")), "deep file");
            assert_eq!(
                list(w.sandbox.path("store/volumes/outer/_data")),
                ["b", "in-outer"],
                "the mount point is made in the outer volume"
            );
            assert_eq!(list(w.sandbox.path("store/volumes/inner/_data")), ["c", "in-inner"]);
            assert_eq!(list(w.sandbox.path("store/volumes/outer/_data/b")), Vec::<String>::new());
            w.rm(&name);
        }
    });
}

#[test]
fn missing_mount_points_are_made_in_the_upper() {
    world(|w| {
        let base = base(w);
        let upper = w.sandbox.dir("upper");
        let args = ["--upper", &upper.display().to_string(), "-v", "vol:/data/new/deep/point", "--layer", &base];
        let root = w.mount("box", &args);
        write(root.join("data/new/deep/point/f"), "f");
        assert!(upper.join("data/new/deep/point").is_dir());
        assert_eq!(list(upper.join("data/new/deep/point")), Vec::<String>::new());
        assert_eq!(list(root.join("data")), ["from-image", "new"]);
        // The copied-up parent keeps itself.
        assert_eq!(std::fs::metadata(root.join("data")).expect("stat").mode() & 0o7777, 0o751);
    });
}

#[test]
fn targets_through_symlinks_stay_inside() {
    world(|w| {
        let base = base(w);
        let args =
            ["-v", "a:/link-in/sub", "-v", "b:/link-out", "-v", "c:/link-escape/mlfs-escape-test", "--layer", &base];
        let root = w.mount("box", &args);
        write(root.join("data/sub/f"), "a");
        write(root.join("empty/f"), "b");
        assert_eq!(read(w.sandbox.path("store/volumes/a/_data/f")), "a");
        assert_eq!(read(w.sandbox.path("store/volumes/b/_data/f")), "b");
        assert!(root.join("tmp/mlfs-escape-test").is_dir(), "`..` ends at the root");
        assert!(!std::path::Path::new("/tmp/mlfs-escape-test").exists(), "a target led out of the root");
    });
}

#[test]
fn tmpfs() {
    world(|w| {
        let base = base(w);
        let args =
            ["--tmpfs", "/scratch", "--mount", "type=tmpfs,dst=/data,tmpfs-mode=0700,tmpfs-size=1m", "--layer", &base];
        let root = w.mount("box", &args);
        assert_eq!(list(root.join("data")), Vec::<String>::new(), "it hides what the image holds there");
        assert_eq!(std::fs::metadata(root.join("data")).expect("stat").mode() & 0o7777, 0o700);
        assert_eq!(std::fs::metadata(root.join("scratch")).expect("stat").mode() & 0o7777, 0o1777);
        write(root.join("data/f"), "x".repeat(1000));
        let full = std::fs::write(root.join("data/large"), vec![0u8; 3 << 20]);
        assert_eq!(errno_of(full), Some(Errno::NOSPC), "1 MiB is 1 MiB");
        assert_eq!(read(root.join("data/f")).len(), 1000);
        w.umount("box");
        w.mlfs().ok(["start", "box"]);
        assert_eq!(list(root.join("data")), Vec::<String>::new(), "gone with the mount");
        w.rm("box");
    });
}

#[test]
fn read_only_root() {
    world(|w| {
        let base = base(w);
        let root = w.mount("box", &["--read-only", "-v", "vol:/empty", "--tmpfs", "/data", "--layer", &base]);
        assert_eq!(errno_of(std::fs::write(root.join("etc/conf"), "x")), Some(Errno::ROFS));
        assert_eq!(errno_of(std::fs::create_dir(root.join("new"))), Some(Errno::ROFS));
        assert_eq!(errno_of(std::fs::remove_file(root.join("etc/conf"))), Some(Errno::ROFS));
        write(root.join("empty/f"), "f");
        write(root.join("data/f"), "f");
        assert_eq!(read(root.join("etc/conf")), "conf");
    });
}

#[test]
fn populate() {
    world(|w| {
        let mut layer = LayerSpec::new();
        layer.dir("data").mode(0o2750);
        layer.file("data/seed", "seed").mode(0o600).xattr("user.x", "y").mtime(1_111_111_111, 5);
        layer.file("data/sub/deep", "deep");
        layer.symlink("data/link", "seed");
        layer.hardlink("data/hard", "data/seed");
        w.load("app", &[layer]);
        let root = w.mount("first", &["-v", "vol:/data", "-v", "no:/data2", "app"]);
        let data = w.sandbox.path("store/volumes/vol/_data");
        let seen = Tree::take(&data);
        assert_eq!(seen.node("seed").mode, 0o600);
        assert_eq!(seen.node("seed").mtime, (1_111_111_111, 5));
        assert_eq!(seen.node("seed").links, seen.node("hard").links, "hard links stay hard links");
        assert_eq!(seen.node("link").body, Body::Symlink(b"seed".to_vec()));
        let mode = std::fs::metadata(root.join("data")).expect("stat").mode() & 0o7777;
        assert_eq!(mode, 0o2750, "the volume's root takes the mode of the directory");
        assert_eq!(read(root.join("data/sub/deep")), "deep");
        write(root.join("data/seed"), "mine now");
        w.rm("first");
        // A volume with content is never touched, not even where the image has more.
        std::fs::remove_dir_all(data.join("sub")).expect("rm");
        let root = w.mount("second", &["-v", "vol:/data:ro", "app"]);
        assert_eq!(list(root.join("data")), ["hard", "link", "seed"]);
        assert_eq!(read(root.join("data/seed")), "mine now");
        w.rm("second");
        // nocopy, binds, and read-only first use.
        let host = w.sandbox.dir("host");
        let bind = format!("{}:/data", host.display());
        let root = w.mount("third", &["-v", "empty:/data:nocopy", "app"]);
        assert_eq!(list(root.join("data")), Vec::<String>::new());
        w.rm("third");
        let root = w.mount("fourth", &["-v", &bind, "app"]);
        assert_eq!(list(root.join("data")), Vec::<String>::new(), "a bind is never populated");
        w.rm("fourth");
        let root = w.mount("fifth", &["-v", "fresh:/data:ro", "app"]);
        assert_eq!(read(root.join("data/sub/deep")), "deep", "also when first used read-only");
        w.rm("fifth");
    });
}

#[test]
fn populate_keeps_owners() {
    world(|w| {
        needs_root("files of other users");
        let mut layer = LayerSpec::new();
        layer.dir("data").owner(999, 998).mode(0o700);
        layer.file("data/f", "f").owner(997, 996);
        w.load("app", &[layer]);
        let root = w.mount("box", &["-v", "vol:/data", "app"]);
        let (inside, host) = (Tree::take(&root.join("data")), Tree::take(&w.sandbox.path("store/volumes/vol/_data")));
        for tree in [inside, host] {
            assert_eq!((tree.nodes[b"".as_slice()].uid, tree.nodes[b"".as_slice()].gid), (999, 998));
            assert_eq!((tree.node("f").uid, tree.node("f").gid), (997, 996));
        }
    });
}

#[test]
fn two_containers_on_one_volume() {
    world(|w| {
        let base = base(w);
        let one = w.mount("one", &["-v", "vol:/empty", "--layer", &base]).join("empty");
        let two = w.mount("two", &["-v", "vol:/empty", "--layer", &base]).join("empty");
        write(one.join("f"), "from one");
        eventually("two sees one's file", || two.join("f").exists() && read(two.join("f")) == "from one");
        write(two.join("f"), "from two, longer");
        eventually("one sees two's change", || read(one.join("f")) == "from two, longer");
        std::fs::rename(two.join("f"), two.join("g")).expect("rename");
        eventually("one sees the rename", || list(&one) == ["g"]);
        std::fs::remove_file(one.join("g")).expect("unlink");
        eventually("two sees the removal", || list(&two).is_empty());
        // Exclusive creation has one winner.
        let mut winners = 0;
        for dir in [&one, &two] {
            let made = std::fs::OpenOptions::new().write(true).create_new(true).open(dir.join("lock"));
            winners += usize::from(made.is_ok());
        }
        assert_eq!(winners, 1);
        // Appending by both loses nothing.
        let script = |dir: &std::path::Path| format!("for i in $(seq 100); do echo x >> '{}/log'; done", dir.display());
        let both = format!("({}) & ({}) & wait", script(&one), script(&two));
        fuse_tests::host::sh(&w.sandbox, w.sandbox.root(), &both).ok();
        eventually("every line is there", || read(one.join("log")).lines().count() == 200);
    });
}

#[test]
fn crossing_branches_is_exdev() {
    world(|w| {
        let base = base(w);
        let root = w.mount("box", &["-v", "vol:/empty", "--layer", &base]);
        write(root.join("f"), "f");
        assert_eq!(errno_of(std::fs::rename(root.join("f"), root.join("empty/f"))), Some(Errno::XDEV));
        assert_eq!(errno_of(std::fs::hard_link(root.join("f"), root.join("empty/f"))), Some(Errno::XDEV));
        fuse_tests::host::sh(&w.sandbox, &root, "mv f empty/f; test ! -e f; cat empty/f").ok();
        assert_eq!(errno_of(std::fs::remove_dir(root.join("empty"))), Some(Errno::BUSY), "a mount point stays");
        assert_eq!(errno_of(std::fs::rename(root.join("empty"), root.join("e2"))), Some(Errno::BUSY));
        let device = |path: &str| std::fs::symlink_metadata(root.join(path)).expect("stat").ino();
        assert_ne!(device("empty/f"), device("etc/conf"));
    });
}

#[test]
fn grammar_of_targets() {
    world(|w| {
        let base = base(w);
        let root = w.mount("box", &["-v", "v:/m/../n", "-v", "w:/o/", "--layer", &base]);
        assert!(root.join("n").is_dir() && root.join("o").is_dir() && !root.join("m").exists());
        w.rm("box");
        let cases: [(&[&str], &str); 21] = [
            (&["-v", "vol:relative"], "mount path must be absolute"),
            (&["-v", "vol:/"], "destination can't be '/'"),
            (&["-v", "a:/m", "-v", "b:/m"], "Duplicate mount point: /m"),
            (&["-v", "a:/m", "--tmpfs", "/m/"], "Duplicate mount point: /m"),
            (&["-v", "a:/m", "--mount", "type=volume,src=b,dst=/x/../m"], "Duplicate mount point: /m"),
            (&["-v", "vol:/m:wrong"], "invalid mode: wrong"),
            (&["-v", "vol:/m:ro,rw"], "invalid mode: "),
            (&["-v", "vol:/m:shared"], "shared"),
            (&["-v", "some/path:/m"], "./"),
            (&["-v", "a b:/m"], "a b"),
            (&["--mount", "type=volume,dst=/m,bogus=1"], "unexpected key 'bogus' in 'bogus=1'"),
            (
                &["--mount", "type=bind,src=/tmp,dst=/m,volume-nocopy"],
                "cannot mix 'volume-*' options with mount type 'bind'",
            ),
            (&["--mount", "type=volume,src=v"], "target is required"),
            (&["--mount", "type=volume,dst=/m,readonly=maybe"], "invalid value for readonly: maybe"),
            (&["--mount", "type=tmpfs,src=x,dst=/m"], "tmpfs"),
            (&["--mount", "type=nonsense,dst=/m"], "nonsense"),
            (&["--uidmap", "1:2"], "1:2"),
            (&["--owner", "nobody-knows-him"], "nobody-knows-him"),
            (&["--no-such-flag"], "--no-such-flag"),
            (&["--tmpfs", "relative"], "mount path must be absolute"),
            (&["-v", ""], ""),
        ];
        for (args, text) in cases {
            let args = [args, &["--layer", base.as_str()]].concat();
            w.try_mount("no", &args).fails_saying(2, text);
            assert_eq!(w.sandbox.mounts(), Vec::<std::path::PathBuf>::new(), "{args:?} mounted something");
        }
        assert_eq!(w.state("no"), None, "nothing half-done remains");
        assert!(!w.mlfs().ok(["volume", "ls", "-q"]).contains("vol"), "nothing half-done remains");
    });
}

#[test]
fn volume_commands() {
    world(|w| {
        let base = base(w);
        assert_eq!(w.mlfs().ok(["volume", "create", "vol", "--label", "a=b"]), "vol");
        assert_eq!(w.mlfs().ok(["volume", "create", "vol", "--label", "a=b"]), "vol", "twice is the same volume");
        let inspected = w.mlfs().json(["volume", "inspect", "vol"]);
        assert_eq!(inspected.len(), 1);
        assert_eq!(inspected[0]["Name"], "vol");
        assert_eq!(inspected[0]["Labels"]["a"], "b");
        let mountpoint = inspected[0]["Mountpoint"].as_str().expect("Mountpoint");
        assert!(mountpoint.ends_with("volumes/vol/_data") && std::path::Path::new(mountpoint).is_dir(), "{mountpoint}");
        w.mount("box", &["-v", "vol:/empty", "-v", "other:/o", "-v", "/anon", "--layer", &base]);
        let names: Vec<String> = w.mlfs().ok(["volume", "ls", "-q"]).lines().map(str::to_owned).collect();
        assert!(names.contains(&"vol".into()) && names.contains(&"other".into()) && names.len() == 3, "{names:?}");
        w.mlfs().fails(["volume", "rm", "vol"], 1, "volume is in use - [box]");
        w.mlfs().fails(["volume", "rm", "-f", "vol"], 1, "volume is in use - [box]");
        w.mlfs().fails(["volume", "rm", "none"], 1, "none");
        w.mlfs().ok(["volume", "rm", "-f", "none"]);
        w.mlfs().fails(["volume", "prune"], 2, "--force");
        w.umount("box");
        w.mlfs().fails(["volume", "rm", "vol"], 1, "volume is in use - [box]");
        w.mlfs().ok(["volume", "prune", "--all", "--force"]);
        assert_eq!(w.mlfs().ok(["volume", "ls", "-q"]).lines().count(), 3, "a stopped container keeps its volumes");
        w.mlfs().ok(["rm", "box"]);
        w.mlfs().ok(["volume", "prune", "--force"]);
        let left = w.mlfs().ok(["volume", "ls", "-q"]);
        assert_eq!(left.lines().collect::<Vec<_>>(), ["other", "vol"], "prune takes anonymous ones only");
        w.mlfs().ok(["volume", "rm", "vol"]);
        assert!(!w.sandbox.path("store/volumes/vol").exists());
        w.mlfs().fails(["volume", "create", "bad/name"], 2, "bad/name");
    });
}

#[test]
fn configured_paths() {
    world(|w| {
        let base = base(w);
        let host = w.sandbox.dir("host");
        let config = format!(
            "[[mount]]\ntype = \"volume\"\nsource = \"cache\"\ntarget = \"/empty\"\n\n\
             [[mount]]\ntype = \"bind\"\nsource = \"{}\"\ntarget = \"/out\"\n",
            host.display()
        );
        let file = w.sandbox.file("mlfs.toml", config).display().to_string();
        let target = w.target("box").display().to_string();
        let args = ["--config", &file, "mount", "--name", "box", "-v", "extra:/extra", "--layer", &base, &target];
        w.mlfs().ok(args);
        let root = w.target("box");
        write(root.join("empty/f"), "f");
        write(root.join("out/f"), "f");
        write(root.join("extra/f"), "f");
        assert!(w.sandbox.path("store/volumes/cache/_data/f").exists() && host.join("f").exists());
        let wrong = w.sandbox.file("wrong.toml", "[[mount]]\ntarget = \"/x\"\nbogus = 1\n").display().to_string();
        w.mlfs().fails(["--config", &wrong, "mount", "--layer", &base, &target], 1, "bogus");
        let wrong = w.sandbox.file("wrong2.toml", "no-such-key = 1\n").display().to_string();
        w.mlfs().fails(["--config", &wrong, "mount", "--layer", &base, &target], 1, "no-such-key");
    });
}

// Seen through the volume, the mount would contain itself, and whoever walks into it would wait for himself.
#[test]
fn a_volume_of_a_directory_around_the_mountpoint() {
    world(|w| {
        let mut layer = LayerSpec::new();
        layer.file("f", "f");
        w.load("app", &[layer]);
        let around = w.sandbox.path("mnt");
        w.target("box");
        let device = format!("device={}", around.display());
        w.mlfs().ok(["volume", "create", "-o", "type=none", "-o", "o=bind", "-o", &device, "dev"]);
        let outcome = w.try_mount("box", &["-v", "dev:/v", "app"]);
        if outcome.code != 0 {
            outcome.fails_saying(1, "contains the mountpoint");
            return;
        }
        let walk = format!("find {} | wc -l", w.target("box").display());
        let mut command = std::process::Command::new("timeout");
        let found = fuse_tests::cli::run(&w.sandbox, command.args(["10", "sh", "-c", &walk])).ok();
        assert!(found.trim().parse::<u32>().expect("number") < 10, "{found}");
        w.umount("box");
    });
}

#[test]
fn filesystems_below_a_bind() {
    world(|w| {
        if fuse_tests::identity::identity() == Identity::User {
            fuse_tests::skip("needs root: mounting a tmpfs below the bind's source");
        }
        let base = base(w);
        let host = w.sandbox.dir("host");
        let inner = w.sandbox.dir("host/inner");
        let mount = format!("mount -t tmpfs tmpfs '{}'", inner.display());
        fuse_tests::host::sh(&w.sandbox, w.sandbox.root(), &mount).ok();
        write(inner.join("f"), "on the tmpfs");
        write(host.join("g"), "below");
        let bind = format!("{}:/empty", host.display());
        let root = w.mount("box", &["-v", &bind, "--layer", &base]);
        assert_eq!(read(root.join("empty/inner/f")), "on the tmpfs");
        let ino = |path: &str| std::fs::metadata(root.join(path)).expect("stat").ino();
        assert_ne!(ino("empty/inner/f"), ino("empty/g"), "numbers of two filesystems stay apart");
        w.umount("box");
    });
}

// As with mounts of the kernel: the directory above one may be renamed, and the mount goes with it.
#[test]
fn a_volume_goes_with_the_directory_above_it() {
    world(|w| {
        let base = base(w);
        let root = w.mount("box", &["--owner", "me", "-v", "vol:/a/deep/v", "--layer", &base]);
        write(root.join("a/deep/v/f"), "in the volume");
        std::fs::create_dir(root.join("empty2")).expect("mkdir");
        std::fs::rename(root.join("a"), root.join("b")).expect("rename of the directory above");
        assert_eq!(read(root.join("b/deep/v/f")), "in the volume");
        assert!(!root.join("a").exists());
        write(root.join("b/deep/v/g"), "g");
        for (what, result) in [
            ("removed", std::fs::remove_dir(root.join("b/deep/v"))),
            ("renamed", std::fs::rename(root.join("b/deep/v"), root.join("b/deep/w"))),
            ("replaced", std::fs::rename(root.join("empty2"), root.join("b/deep/v"))),
        ] {
            assert_eq!(errno_of(result), Some(Errno::BUSY), "{what}");
        }
        assert_eq!(errno_of(std::fs::rename(root.join("empty2"), root.join("b"))), Some(Errno::NOTEMPTY));
        let other = w.mount("other", &["-v", "vol:/v", "--layer", &base]);
        assert_eq!(list(other.join("v")), ["f", "g"]);
    });
}
