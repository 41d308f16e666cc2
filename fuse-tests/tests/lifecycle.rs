// SPDX-License-Identifier: MIT OR Apache-2.0
//! Containers from the first mount to the last trace: every end of a mount is the same end.

use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fuse_tests::cli::{Mlfs, run_for};
use fuse_tests::identity::{Identity, identity};
use fuse_tests::sandbox::unmount;
use fuse_tests::world::{World, eventually, kill, list, needs_root, read, world, write};
use fuse_tests::{Compare, LayerSpec, Tree};
use rustix::process::{Signal, kill_process};

fn app(w: &World) {
    let mut layer = LayerSpec::new();
    layer.file("etc/conf", "conf");
    layer.file("bin/tool", "tool").mode(0o755);
    layer.file("gone/x", "x");
    w.load("app", &[layer]);
}

#[test]
fn from_mount_to_rm() {
    world(|w| {
        app(w);
        let root = w.mount("box", &["app"]);
        assert_eq!(w.state("box").as_deref(), Some("mounted"));
        write(root.join("etc/conf"), "changed");
        write(root.join("new"), "new");
        std::fs::remove_dir_all(root.join("gone")).expect("rm -r");
        let before = Tree::take(&root);
        w.umount("box");
        assert_eq!(list(&root), Vec::<String>::new());
        assert_eq!(w.state("box").as_deref(), Some("stopped"));
        assert_eq!(w.mlfs().json(["ps"]).len(), 0, "ps without -a shows what runs");
        w.mlfs().ok(["start", "box"]);
        before.assert_same(
            &Tree::take(&root),
            Compare { is_ino: true, ..Compare::ALL },
            "start shows everything as it was",
        );
        w.umount("box");
        // Started elsewhere.
        let other = w.target("elsewhere").display().to_string();
        w.mlfs().ok(["start", "box", &other]);
        assert_eq!(read(w.target("elsewhere").join("etc/conf")), "changed");
        w.retry_busy(&["umount", &other]).ok();
        w.mlfs().ok(["rm", "box"]);
        assert_eq!(w.state("box"), None);
        w.mlfs().fails(["start", "box"], 1, "box");
        let root = w.mount("box", &["app"]);
        assert_eq!(read(root.join("etc/conf")), "conf", "the upper is gone with the container");
        assert_eq!(list(&root), ["bin", "etc", "gone"]);
    });
}

#[test]
fn generated_names_are_printed() {
    world(|w| {
        app(w);
        let targets = [w.target("a").display().to_string(), w.target("b").display().to_string()];
        let names: Vec<String> = targets.iter().map(|target| w.mlfs().ok(["mount", "app", target])).collect();
        assert!(names.iter().all(|name| !name.is_empty() && !name.contains(char::is_whitespace)), "{names:?}");
        assert_ne!(names[0], names[1]);
        assert_eq!(w.mlfs().ok(["ps", "-q"]).lines().count(), 2);
        for name in &names {
            w.retry_busy(&["umount", name]).ok();
            w.mlfs().ok(["rm", name]);
        }
    });
}

#[test]
fn names_are_taken_once() {
    world(|w| {
        app(w);
        w.mount("box", &["app"]);
        let other = w.target("other").display().to_string();
        w.mlfs().fails(["mount", "--name", "box", "app", &other], 1, "box");
        w.mlfs().fails(["mount", "--name", "../box", "app", &other], 2, "../box");
        assert_eq!(list(&other), Vec::<String>::new());
        assert_eq!(w.state("box").as_deref(), Some("mounted"), "the first is not harmed");
    });
}

#[test]
fn inspect_tells() {
    world(|w| {
        app(w);
        w.mount("box", &["-v", "vol:/data", "--label", "k=v", "app"]);
        let inspected = w.mlfs().json(["inspect", "box"]);
        assert_eq!(inspected.len(), 1);
        assert_eq!(inspected[0]["Name"], "box");
        let text = inspected[0].to_string();
        for needle in ["mounted", "app", "vol", "/data", &w.target("box").display().to_string()] {
            assert!(text.contains(needle), "inspect does not tell {needle}: {text}");
        }
        let log = text.split('"').find(|word| word.starts_with('/') && word.ends_with("log"));
        assert!(std::path::Path::new(log.expect("the log's path")).is_file());
        w.mlfs().fails(["inspect", "nobody"], 1, "nobody");
    });
}

#[test]
fn diff_as_docker_prints_it() {
    world(|w| {
        let mut layer = LayerSpec::new();
        for path in ["a/keep", "a/change", "a/gone", "b/x/deep", "c/only", "d/old", "z/untouched", "meta"] {
            layer.file(path, path);
        }
        w.load("app", &[layer]);
        let root = w.mount("box", &["-v", "vol:/vol", "app"]);
        assert_eq!(w.mlfs().ok(["diff", "box"]).lines().filter(|line| *line != "A /vol").count(), 0);
        write(root.join("a/change"), "changed");
        std::fs::remove_file(root.join("a/gone")).expect("unlink");
        std::fs::remove_dir_all(root.join("b")).expect("rm -r");
        std::fs::remove_dir_all(root.join("d")).expect("rm -r");
        std::fs::create_dir(root.join("d")).expect("mkdir");
        write(root.join("d/new"), "n");
        std::fs::create_dir_all(root.join("new/dir")).expect("mkdir");
        write(root.join("new/dir/f"), "f");
        write(root.join("vol/not-shown"), "v");
        fuse_tests::host::sh(&w.sandbox, &root, "chmod 600 meta").ok();
        let expected = "C /a\nC /a/change\nD /a/gone\nD /b\nC /d\nA /d/new\nD /d/old\nC /meta\nA /new\nA /new/dir\nA /new/dir/f\nA /vol";
        assert_eq!(w.mlfs().ok(["diff", "box"]), expected);
        w.umount("box");
        assert_eq!(w.mlfs().ok(["diff", "box"]), expected, "the same without the mount");
    });
}

#[test]
fn rm_refuses_what_is_mounted() {
    world(|w| {
        app(w);
        let root = w.mount("box", &["app"]);
        write(root.join("f"), "f");
        w.mlfs().fails(["rm", "box"], 1, "box");
        assert_eq!(read(root.join("f")), "f");
        w.retry_busy(&["rm", "-f", "box"]).ok();
        assert_eq!(w.state("box"), None);
        assert!(!w.sandbox.mounts().contains(&root));
        w.mlfs().fails(["rm", "box"], 1, "box");
    });
}

#[test]
fn every_end_carries_out_rm() {
    world(|w| {
        app(w);
        type End = fn(&World, &PathBuf);
        let ends: [(&str, End); 5] = [
            ("by-umount", |w, _| w.umount("by-umount")),
            ("by-system", |_, root| fuse_tests::driver::patiently(|| unmount(root, false)).expect("umount(8)")),
            ("by-lazy", |_, root| unmount(root, true).expect("umount -l")),
            ("by-term", |w, _| kill_process(w.daemon("by-term"), Signal::TERM).expect("kill")),
            ("by-int", |w, _| kill_process(w.daemon("by-int"), Signal::INT).expect("kill")),
        ];
        for (name, end) in ends {
            let root = w.mount(name, &["--rm", "-v", "/anon", "app"]);
            write(root.join("f"), "f");
            end(w, &root);
            w.sandbox.wait_for_processes(Duration::from_secs(15)).unwrap_or_else(|left| panic!("{name}: {left}"));
            assert!(!w.sandbox.mounts().contains(&root), "{name} left the mount");
            assert_eq!(w.state(name), None, "{name}: --rm was not carried out");
        }
        assert_eq!(w.mlfs().ok(["volume", "ls", "-q"]), "", "anonymous volumes went with them");
        let uppers = Tree::take(&w.sandbox.path("store/containers"));
        assert_eq!(uppers.names(), Vec::<String>::new(), "the uppers are gone");
    });
}

#[test]
fn every_end_updates_the_record() {
    world(|w| {
        app(w);
        for (name, signal) in [("plain", None), ("term", Some(Signal::TERM))] {
            let root = w.mount(name, &["app"]);
            write(root.join("f"), "f");
            match signal {
                Some(signal) => kill_process(w.daemon(name), signal).expect("kill"),
                None => fuse_tests::driver::patiently(|| unmount(&root, false)).expect("umount(8)"),
            }
            w.sandbox.wait_for_processes(Duration::from_secs(15)).unwrap_or_else(|left| panic!("{name}: {left}"));
            assert_eq!(w.state(name).as_deref(), Some("stopped"), "{name}");
            w.mlfs().ok(["start", name]);
            assert_eq!(read(root.join("f")), "f");
            w.umount(name);
        }
    });
}

#[test]
fn killed_and_started_again() {
    world(|w| {
        app(w);
        let root = w.mount("box", &["--rm", "-v", "vol:/vol", "app"]);
        for path in ["synced", "vol/synced", "etc/conf"] {
            let mut file = std::fs::File::create(root.join(path)).expect("create");
            file.write_all(b"safe").expect("write");
            file.sync_all().expect("fsync");
        }
        std::fs::remove_file(root.join("bin/tool")).expect("unlink");
        std::fs::rename(root.join("synced"), root.join("renamed")).expect("rename");
        kill(w.daemon("box"));
        assert_eq!(w.state("box").as_deref(), Some("dead"), "and nothing is discarded, not even with --rm");
        w.mlfs().ok(["start", "box"]);
        for path in ["renamed", "vol/synced", "etc/conf"] {
            assert_eq!(read(root.join(path)), "safe", "{path}");
        }
        assert_eq!(list(root.join("bin")), Vec::<String>::new());
        assert_eq!(list(&root), ["bin", "etc", "gone", "renamed", "vol"]);
        w.umount("box");
    });
}

#[test]
fn dead_mounts_are_cleared() {
    world(|w| {
        app(w);
        for (name, args) in [("by-umount", vec!["umount", "by-umount"]), ("by-rm", vec!["rm", "by-rm"])] {
            let root = w.mount(name, &["app"]);
            kill(w.daemon(name));
            assert!(w.sandbox.mounts().contains(&root), "the kernel keeps the dead mount");
            w.mlfs().ok(args);
            assert!(!w.sandbox.mounts().contains(&root), "{name} clears it");
        }
        assert_eq!(w.state("by-umount").as_deref(), Some("stopped"));
        assert_eq!(w.state("by-rm"), None);
    });
}

#[test]
fn killed_while_writing() {
    world(|w| {
        app(w);
        let root = w.mount("box", &["app"]);
        let pid = w.daemon("box");
        let writer = std::thread::spawn({
            let root = root.clone();
            move || {
                let mut safe = Vec::new();
                for number in 0..10_000 {
                    let path = root.join(format!("f{number}"));
                    let written = std::fs::File::create(&path)
                        .and_then(|mut file| file.write_all(&vec![b'x'; 5000]).and_then(|()| file.sync_all()));
                    match written {
                        Ok(()) => safe.push(format!("f{number}")),
                        Err(_) => break,
                    }
                }
                safe
            }
        });
        std::thread::sleep(Duration::from_millis(300));
        kill(pid);
        let safe = writer.join().expect("writer");
        assert!(!safe.is_empty());
        w.mlfs().ok(["start", "box"]);
        for name in safe {
            assert_eq!(std::fs::read(root.join(&name)).expect("read"), vec![b'x'; 5000], "{name} was fsynced");
        }
        write(root.join("goes-on"), "yes");
        w.umount("box");
    });
}

#[test]
fn busy_umount_names_the_processes() {
    world(|w| {
        app(w);
        let root = w.mount("box", &["app"]);
        write(root.join("f"), "f");
        let mut sleeper = std::process::Command::new("sleep").arg("60").current_dir(&root).spawn().expect("sleep");
        let said = w.mlfs().run(["umount", "box"]).fails_saying(1, "in use by");
        assert!(said.contains(&sleeper.id().to_string()) || said.contains("sleep"), "names the processes: {said}");
        assert_eq!(read(root.join("f")), "f", "goes on serving");
        // Lazily: detached at once, served to the end.
        let mut held = std::fs::File::open(root.join("f")).expect("open");
        w.mlfs().ok(["umount", "-l", "box"]);
        assert!(!w.sandbox.mounts().contains(&root));
        let mut text = String::new();
        std::io::Read::read_to_string(&mut held, &mut text).expect("open files go on");
        assert_eq!(text, "f");
        drop(held);
        sleeper.kill().expect("kill");
        sleeper.wait().expect("wait");
        w.sandbox.wait_for_processes(Duration::from_secs(10)).expect("ends with the last file");
        assert_eq!(w.state("box").as_deref(), Some("stopped"));
    });
}

#[test]
fn a_detached_mount_serves_its_writers_to_the_end() {
    world(|w| {
        app(w);
        let root = w.mount("box", &["app"]);
        let mut log = std::fs::File::create(root.join("log")).expect("create");
        w.mlfs().ok(["umount", "-l", "box"]);
        w.mlfs().run(["umount", "box"]).fails_saying(1, "box is busy");
        // Longer than an unmounted session is given to end by itself.
        for line in 0..30 {
            writeln!(log, "{line}").expect("write after detaching");
            std::thread::sleep(Duration::from_millis(100));
        }
        log.sync_all().expect("sync");
        drop(log);
        w.sandbox.wait_for_processes(Duration::from_secs(10)).expect("ends with the last file");
        assert_eq!(w.state("box").as_deref(), Some("stopped"));
        w.mlfs().ok(["start", "box"]);
        assert_eq!(read(root.join("log")).lines().count(), 30);
        w.mlfs().ok(["umount", "box"]);
    });
}

#[test]
fn a_signal_ends_a_mount_that_only_a_copy_keeps() {
    world(|w| {
        needs_root("mount --bind");
        app(w);
        let root = w.mount("box", &["app"]);
        // As one in another mount namespace, which would copy the mounts of other tests too.
        let copy = w.sandbox.dir("copy");
        let status = std::process::Command::new("mount").arg("--bind").args([&root, &copy]).status().expect("mount");
        assert!(status.success());
        unmount(&root, false).expect("umount(8)");
        let pid = w.sandbox.processes()[0].0;
        let pid = rustix::process::Pid::from_raw(pid.cast_signed()).expect("pid");
        kill_process(pid, Signal::TERM).expect("kill");
        let ended = w.sandbox.wait_for_processes(Duration::from_secs(20));
        unmount(&copy, true).expect("umount the copy");
        ended.expect("ends although a copy of the mount is left");
        assert_eq!(w.state("box").as_deref(), Some("stopped"));
    });
}

#[test]
fn a_named_upper_is_never_deleted() {
    world(|w| {
        app(w);
        let upper = w.sandbox.dir("mine/upper");
        let text = upper.display().to_string();
        let root = w.mount("box", &["--upper", &text, "--rm", "app"]);
        write(root.join("f"), "f");
        let other = w.target("other").display().to_string();
        w.mlfs().fails(["mount", "--upper", &text, "app", &other], 1, "upper");
        w.umount("box");
        eventually("--rm removes the container", || w.state("box").is_none());
        assert_eq!(read(upper.join("f")), "f");
        let root = w.mount("again", &["--upper", &text, "app"]);
        assert_eq!(read(root.join("f")), "f");
        w.umount("again");
        w.mlfs().ok(["rm", "again"]);
        assert_eq!(read(upper.join("f")), "f");
    });
}

// `umount` waits for the daemon that it asked, not for one that somebody has started since.
#[test]
fn umount_while_somebody_starts_it_again() {
    world(|w| {
        app(w);
        w.mount("box", &["app"]);
        for _ in 0..6 {
            let is_over = AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !is_over.load(Ordering::Relaxed) && w.mlfs().run(["start", "box"]).code != 0 {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                });
                let patience = Duration::from_secs(20);
                let ended = run_for(&w.sandbox, w.mlfs().command().args(["umount", "box"]), patience);
                if !ended.is_busy() {
                    ended.ok();
                }
                let is_mounted = || w.state("box").as_deref() == Some("mounted");
                eventually("started again", is_mounted);
                is_over.store(true, Ordering::Relaxed);
            });
        }
        w.umount("box");
    });
}

// Removing is how one gets room.
#[test]
fn on_a_full_disk() {
    world(|w| {
        needs_root("mounts a small disk");
        let disk = w.sandbox.dir("full");
        let mlfs = Mlfs::with_store(&w.sandbox, "full/store");
        fuse_tests::host::sh(&w.sandbox, &disk, "mount -t tmpfs -o size=4m none .").ok();
        let layer = w.layer("l", |layer| {
            layer.file("f", "f");
        });
        let fill = |name: &str, flags: &[&str]| {
            let root = w.target(name);
            let head = ["mount", "--name", name].into_iter().chain(flags.iter().copied());
            mlfs.ok(head.chain(["--layer", &layer, &root.display().to_string()]));
            let mut file = std::fs::File::create(root.join("big")).expect("create");
            let full = (0..100_000).find_map(|_| file.write_all(&[b'x'; 4096]).err());
            assert!(full.is_some(), "the disk is full");
        };
        let is_empty = || list(disk.join("store/containers")).is_empty();
        fill("discarded", &["--rm"]);
        mlfs.ok(["umount", "discarded"]);
        eventually("--rm is carried out", is_empty);
        fill("killed", &[]);
        kill(w.daemon("killed"));
        mlfs.ok(["rm", "killed"]);
        fill("forced", &[]);
        mlfs.ok(["rm", "-f", "forced"]);
        assert!(is_empty());
        fill("stopped", &[]);
        let ended = mlfs.run(["umount", "stopped"]);
        assert!(ended.code == 0 && ended.stderr.contains("shown as dead"), "{ended:?}");
        mlfs.ok(["rm", "stopped"]);
        assert!(is_empty());
        eventually("no daemon", || w.sandbox.processes().is_empty());
        unmount(&disk, false).expect("umount");
    });
}

// A mount that lies below another cannot be reached by its path, and what lies over it is not ours to take.
#[test]
fn a_covered_mount_is_told() {
    world(|w| {
        needs_root("mounts over a mount");
        app(w);
        let root = w.mount("box", &["app"]);
        fuse_tests::host::sh(&w.sandbox, &root, "mount -t tmpfs none .").ok();
        let cover = |args: &[&str]| w.mlfs().fails(args, 1, "another mount covers it");
        cover(&["umount", "box"]);
        cover(&["umount", "-l", "box"]);
        cover(&["rm", "-f", "box"]);
        assert_eq!(w.state("box").as_deref(), Some("mounted"));
        kill(w.daemon("box"));
        cover(&["umount", "box"]);
        cover(&["rm", "-f", "box"]);
        unmount(&root, false).expect("umount");
        w.mlfs().ok(["rm", "-f", "box"]);
        assert!(!w.sandbox.mounts().contains(&root));
    });
}

// Of those who find a mountpoint free at once, one mounts there, and nothing is left of the others.
#[test]
fn one_mountpoint_has_one_winner() {
    world(|w| {
        app(w);
        for round in 0..4 {
            let target = w.target("one").display().to_string();
            let names: Vec<String> = (0..4).map(|number| format!("box{round}{number}")).collect();
            let won: Vec<&String> = std::thread::scope(|scope| {
                let mount = |name| w.mlfs().run(["mount", "--name", name, "app", &target]);
                let threads: Vec<_> = names.iter().map(|name| scope.spawn(move || (name, mount(name)))).collect();
                let ended = threads.into_iter().map(|thread| thread.join().expect("thread"));
                ended.filter(|(_, outcome)| outcome.code == 0).map(|(name, _)| name).collect()
            });
            assert_eq!(won.len(), 1, "{won:?}");
            assert_eq!(w.sandbox.mounts().len(), 1);
            assert_eq!(w.mlfs().json(["ps", "-a"]).len(), 1);
            w.retry_busy(&["rm", "-f", won[0]]).ok();
            assert_eq!(w.sandbox.mounts(), Vec::<PathBuf>::new());
        }
    });
}

// One damaged record concerns one container.
#[test]
fn a_damaged_container_concerns_no_other() {
    world(|w| {
        app(w);
        for name in ["bad", "live"] {
            w.mount(name, &["app"]);
        }
        w.mount("good", &["-v", "vol:/vol", "app"]);
        w.umount("bad");
        let id_of = |name: &str| {
            let inspected = w.mlfs().json(["inspect", name]);
            inspected[0]["Id"].as_str().expect("id").to_owned()
        };
        let (bad, live) = (id_of("bad"), id_of("live"));
        for id in [&bad, &live] {
            write(w.sandbox.path("store/containers").join(id).join("container.json"), "{\"id\":");
        }
        assert_eq!(w.state(&bad).as_deref(), Some("damaged"));
        w.umount("good");
        w.mlfs().ok(["start", "good"]);
        w.mlfs().ok(["volume", "ls"]);
        w.mount("new", &["app"]);
        w.mlfs().fails(["image", "rm", "app"], 1, "damaged");
        w.mlfs().fails(["volume", "rm", "vol"], 1, "damaged");
        w.mlfs().fails(["start", &bad], 1, "mlfs rm");
        w.mlfs().fails(["rm", &live], 1, "mounted");
        w.mlfs().ok(["rm", &bad[..12]]);
        assert_eq!(w.state(&bad), None);
        w.retry_busy(&["umount", &w.target("live").display().to_string()]).ok();
        eventually("its daemon ends", || w.mlfs().run(["rm", &live]).code == 0);
        for name in ["good", "new"] {
            w.retry_busy(&["rm", "-f", name]).ok();
        }
        w.unguard_store();
        w.mlfs().ok(["image", "rm", "app"]);
        w.mlfs().ok(["volume", "rm", "vol"]);
    });
}

#[test]
fn a_damaged_mounted_container_goes_by_force() {
    world(|w| {
        app(w);
        let root = w.mount("box", &["app"]);
        let id = w.mlfs().json(["inspect", "box"])[0]["Id"].as_str().expect("id").to_owned();
        write(w.sandbox.path("store/containers").join(&id).join("container.json"), "");
        w.retry_busy(&["rm", "-f", &id]).ok();
        assert!(!w.sandbox.mounts().contains(&root));
        assert_eq!(list(w.sandbox.path("store/containers")), Vec::<String>::new());
    });
}

// The control socket lies in a folder of root's own, and the last one takes its folder along.
#[test]
fn control_sockets_leave_nothing() {
    world(|w| {
        app(w);
        w.mount("box", &["app"]);
        assert_eq!(list(w.sandbox.path("run/mlfs")).len(), 1);
        w.umount("box");
        assert!(!w.sandbox.path("run/mlfs").exists());
        w.mlfs().ok(["start", "box"]);
        kill(w.daemon("box"));
        w.mlfs().ok(["umount", "box"]);
        assert!(!w.sandbox.path("run/mlfs").exists(), "of a dead one too");
        if identity() == Identity::Root {
            run_for(
                &w.sandbox,
                w.mlfs().command().env_remove("XDG_RUNTIME_DIR").args(["start", "box"]),
                Duration::from_secs(20),
            )
            .ok();
            let id = w.mlfs().json(["inspect", "box"])[0]["Id"].as_str().expect("id").to_owned();
            let record = read(w.sandbox.path("store/containers").join(id).join("container.json"));
            assert!(record.contains("\"/run/mlfs/"), "{record}");
            w.umount("box");
        }
    });
}

// A mount or start that fails leaves no directory on the host.
#[test]
fn bind_sources_are_taken_back() {
    world(|w| {
        app(w);
        let new = w.sandbox.path("new/deep");
        let bind = format!("{}:/etc/conf", new.display());
        w.try_mount("box", &["-v", &bind, "app"]).fails(1);
        assert!(!w.sandbox.path("new").exists());
        // A file that has gone does not come back as a directory, wherever its name leads now.
        let file = w.sandbox.file("host/f", "f");
        let bind = format!("{}:/etc/conf", file.display());
        w.mount("box", &["-v", &bind, "app"]);
        w.umount("box");
        std::fs::remove_dir_all(w.sandbox.path("host")).expect("rm -r");
        let elsewhere = w.sandbox.dir("elsewhere");
        symlink(&elsewhere, w.sandbox.path("host")).expect("symlink");
        w.mlfs().fails(["start", "box"], 1, "does not exist");
        assert_eq!(list(&elsewhere), Vec::<String>::new());
        // A directory that has gone is made again, as docker does, and only for a mount that works.
        let dir = w.sandbox.dir("dir/d");
        w.mount("dir", &["-v", &format!("{}:/bound", dir.display()), "app"]);
        w.umount("dir");
        std::fs::remove_dir_all(w.sandbox.path("dir")).expect("rm -r");
        w.mlfs().ok(["start", "dir"]);
        assert!(dir.is_dir());
        w.umount("dir");
    });
}

// fuser 0.18 unmounts by path on drop and tore down the successor within 30 quick remounts.
#[test]
fn quick_remounts_leave_the_successor_alone() {
    world(|w| {
        app(w);
        let root = w.mount("box", &["app"]);
        for number in 0..30 {
            write(root.join("round"), number.to_string());
            w.umount("box");
            w.mlfs().ok(["start", "box"]);
            assert_eq!(read(root.join("round")), number.to_string());
        }
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(read(root.join("round")), "29");
    });
}

#[test]
fn many_at_once() {
    world(|w| {
        app(w);
        let names: Vec<String> = (0..8).map(|number| format!("box{number}")).collect();
        std::thread::scope(|scope| {
            let threads: Vec<_> = names
                .iter()
                .map(|name| {
                    scope.spawn(move || {
                        let root = w.mount(name, &["-v", "shared:/shared", "-v", "/anon", "app"]);
                        write(root.join("shared").join(name), "x");
                        write(root.join("etc/conf"), name);
                        assert_eq!(read(root.join("etc/conf")), *name);
                        w.umount(name);
                        w.mlfs().ok(["rm", "-v", name]);
                    })
                })
                .collect();
            for thread in threads {
                thread.join().expect("thread");
            }
        });
        assert_eq!(list(w.sandbox.path("store/volumes/shared/_data")).len(), 8);
        assert_eq!(w.mlfs().json(["ps", "-a"]).len(), 0);
        assert_eq!(w.mlfs().ok(["volume", "ls", "-q"]), "shared");
    });
}

#[test]
fn in_the_foreground() {
    world(|w| {
        app(w);
        let root = w.target("box");
        let mut command = w.mlfs().command();
        command.args(["mount", "-f", "--name", "box", "app"]).arg(&root);
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let mut child = command.spawn().expect("spawn");
        eventually("mounted", || w.sandbox.mounts().contains(&root) && root.join("etc/conf").exists());
        assert!(child.try_wait().expect("wait").is_none(), "stays in front");
        w.umount("box");
        assert_eq!(child.wait().expect("wait").code(), Some(0));
    });
}

#[test]
fn dry_run_does_nothing() {
    world(|w| {
        app(w);
        let target = w.target("box").display().to_string();
        let plan = w.mlfs().ok(["mount", "--dry-run", "--name", "box", "-v", "vol:/data", "app", &target]);
        assert!(plan.contains("vol") && plan.contains("/data"), "{plan}");
        assert_eq!(w.state("box"), None);
        assert_eq!(w.mlfs().ok(["volume", "ls", "-q"]), "");
        assert_eq!(w.sandbox.mounts(), Vec::<PathBuf>::new());
    });
}

// Whoever calls reads standard output and error to their ends: a daemon that keeps them open hangs him.
#[test]
fn the_callers_pipes_are_closed() {
    world(|w| {
        app(w);
        let root = w.target("box");
        let started = std::time::Instant::now();
        let output = w.mlfs().command().args(["mount", "--name", "box", "app"]).arg(&root).output().expect("run");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(started.elapsed() < Duration::from_secs(20));
        assert_eq!(String::from_utf8_lossy(&output.stdout), "box\n");
        assert!(root.join("etc/conf").exists(), "usable when the command returns");
        let pid = w.daemon("box").as_raw_nonzero();
        for fd in 0..3 {
            let link = std::fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap_or_default();
            assert!(
                !link.to_string_lossy().starts_with("pipe:"),
                "descriptor {fd} of the daemon is the caller's {link:?}"
            );
        }
        assert_eq!(std::fs::read_link(format!("/proc/{pid}/cwd")).expect("cwd"), PathBuf::from("/"));
    });
}

#[test]
fn mountpoints_through_symlinks() {
    world(|w| {
        app(w);
        let real = w.target("real");
        let link = w.sandbox.path("link");
        symlink(&real, &link).expect("symlink");
        w.mlfs().ok(["mount", "--name", "box", "app", &link.display().to_string()]);
        assert!(real.join("etc/conf").exists());
        w.retry_busy(&["umount", &link.display().to_string()]).ok();
        assert_eq!(w.state("box").as_deref(), Some("stopped"));
    });
}

#[test]
fn what_the_mount_looks_like() {
    world(|w| {
        app(w);
        let root = w.mount("box", &["app"]);
        let mounts = read("/proc/self/mountinfo");
        let line = mounts.lines().find(|line| line.contains(&*root.to_string_lossy())).expect("mounted");
        assert!(line.contains("fuse.mlfs"), "{line}");
        assert!(line.contains("nosuid") && line.contains("nodev"), "{line}");
        assert_eq!(line.contains("allow_other"), identity() != Identity::User, "{line}");
        // The second column of mount(8)'s list is clean of anything private.
        assert!(!line.contains("store"), "{line}");
    });
}

#[test]
fn unknown_names() {
    world(|w| {
        app(w);
        for args in
            [["umount", "nobody"], ["start", "nobody"], ["rm", "nobody"], ["diff", "nobody"], ["inspect", "nobody"]]
        {
            w.mlfs().fails(args, 1, "nobody");
        }
        w.mlfs().fails(["frobnicate"], 2, "frobnicate");
        w.mlfs().fails(["ps", "--frobnicate"], 2, "--frobnicate");
    });
}

// `mount -- CMD`: a mount of its own for one command, which keeps the caller's uid; afterwards nothing is left.
#[test]
fn with_a_command() {
    world(|w| {
        app(w);
        let target = w.target("box").display().to_string();
        let script = format!("cat {target}/etc/conf; id -u; echo x > {target}/etc/conf; cat {target}/etc/conf");
        let said = w.mlfs().ok(["mount", "app", &target, "--", "sh", "-euc", &script]);
        let uid = fuse_tests::identity::own_ids().0.to_string();
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines, [&format!("conf{uid}") as &str, "x"], "the content has no line end");
        assert_eq!(list(&target), Vec::<String>::new(), "nobody else sees the mount");
        assert_eq!(w.mlfs().json(["ps", "-a"]).len(), 0, "the container is removed");
        let code = |args: &[&str]| w.mlfs().run(["mount", "app", &target, "--"].iter().chain(args)).code;
        assert_eq!(code(&["sh", "-c", "exit 42"]), 42);
        assert_eq!(code(&["sh", "-c", "kill -TERM $$"]), 143);
        assert_eq!(code(&["/no/such/program"]), 127);
        assert_eq!(code(&["/etc/passwd"]), 126);
        assert_eq!(w.mlfs().run(["mount", "no-such-image", &target, "--", "true"]).code, 125);
        assert_eq!(w.mlfs().run(["mount", "--frobnicate", "app", &target, "--", "true"]).code, 125);
        w.mlfs().ok(["mount", "--name", "kept", "app", &target, "--", "sh", "-c", &format!("echo y > {target}/new")]);
        assert_eq!(w.state("kept").as_deref(), Some("stopped"), "a named one stays");
        assert_eq!(w.mlfs().ok(["cat", "kept", "/new"]), "y");
    });
}

#[test]
fn on_a_terminal() {
    world(|w| {
        let mut layer = LayerSpec::new();
        layer.file("f", "x".repeat(3_000_000)).owner(0, 0);
        layer.dir("etc").owner(0, 0);
        layer.file("etc/conf", "c").owner(0, 0);
        let dir = w.sandbox.path("image");
        fuse_tests::image::write_oci(&dir, &fuse_tests::image::image_layers(&[layer]), "v1");
        // script(1) gives the command a terminal.
        let on_terminal = |args: &str| {
            let line =
                format!("'{}' --root '{}' {args}", fuse_tests::cli::mlfs_binary().display(), w.mlfs().root().display());
            let mut command = std::process::Command::new("script");
            command.args(["-qec", &line, "/dev/null"]).env("TERM", "xterm").env("HOME", w.sandbox.path("home"));
            command.env("XDG_RUNTIME_DIR", w.sandbox.path("run")).stdin(std::process::Stdio::null());
            fuse_tests::cli::run(&w.sandbox, &mut command).ok()
        };
        let loud = on_terminal(&format!("image load oci:{}:v1 app", dir.display()));
        assert!(loud.contains('\u{1b}') || loud.contains('\r'), "a progress bar: {loud:?}");
        let quiet = w.mlfs().run(["image", "load", &format!("oci:{}:v1", dir.display()), "app2"]);
        assert!(!quiet.stderr.contains('\u{1b}') && !quiet.stdout.contains('\u{1b}'), "no bar without a terminal");
        quiet.ok();
        if identity() == Identity::User {
            let hint = on_terminal(&format!("mount --name box app {}", w.target("box").display()));
            assert!(hint.contains("--owner me"), "a rootless mount of a root-owned image says how to write: {hint:?}");
            w.umount("box");
        }
    });
}

#[test]
fn allow_other_needs_leave() {
    world(|w| {
        if identity() != Identity::User {
            fuse_tests::skip("only an ordinary user needs user_allow_other");
        }
        let conf = std::fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
        if conf.lines().any(|line| line.trim() == "user_allow_other") {
            fuse_tests::skip("this machine's fuse.conf allows it");
        }
        app(w);
        let said = w.try_mount("box", &["--allow-other", "app"]).fails_saying(1, "user_allow_other");
        assert!(said.contains("fuse.conf"), "{said}");
        assert_eq!(w.state("box"), None);
        assert_eq!(w.sandbox.mounts(), Vec::<PathBuf>::new());
    });
}
