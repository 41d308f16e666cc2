// SPDX-License-Identifier: MIT OR Apache-2.0
//! Uppers that users name: what belongs to the user stays, and one upper has one mount.

use std::process::Command;

use fuse_tests::cli::{bare, run};
use fuse_tests::driver::patiently;
use fuse_tests::sandbox::unmount;
use fuse_tests::world::{World, eventually, list, needs_root, read, world, write};
use rustix::fs::{AtFlags, CWD};

fn linked(w: &World) -> String {
    w.layer("linked", |l| {
        l.file("a", "old");
        l.hardlink("b", "a");
    })
}

#[test]
fn a_foreign_directory_beside_the_upper_is_refused_and_stays() {
    world(|w| {
        let layer = linked(w);
        let upper = w.sandbox.path("mine/up").display().to_string();
        w.sandbox.file("mine/up.work/thesis", "precious");
        let error = w.try_mount("box", &["--upper", &upper, "--layer", &layer]).fails(1);
        assert!(error.contains("up.work"), "{error}");
        assert_eq!(list(w.sandbox.path("mine")), ["up.work"], "nothing half-done stays");
        assert_eq!(read(w.sandbox.path("mine/up.work/thesis")), "precious");
        // A symlink is not followed.
        let victim = w.sandbox.dir("victim");
        std::fs::create_dir(w.sandbox.path("other")).expect("mkdir");
        std::os::unix::fs::symlink(&victim, w.sandbox.path("other/up.work")).expect("symlink");
        let upper = w.sandbox.path("other/up").display().to_string();
        w.try_mount("box", &["--upper", &upper, "--layer", &layer]).fails(1);
        assert_eq!(list(&victim), Vec::<String>::new());
    });
}

#[test]
fn a_kept_upper_keeps_what_was_written_to_linked_files() {
    world(|w| {
        let layer = linked(w);
        let upper = w.sandbox.path("up").display().to_string();
        let root = w.mount("first", &["--upper", &upper, "--layer", &layer]);
        write(root.join("a"), "WRITTEN");
        assert_eq!(read(root.join("b")), "WRITTEN");
        w.rm("first");
        let root = w.mount("second", &["--upper", &upper, "--layer", &layer]);
        assert_eq!((read(root.join("a")), read(root.join("b"))), ("WRITTEN".into(), "WRITTEN".into()));
        w.rm("second");
    });
}

#[test]
fn one_upper_has_one_mount() {
    world(|w| {
        let layer = linked(w);
        let upper = w.sandbox.path("up").display().to_string();
        w.mount("first", &["--upper", &upper, "--layer", &layer]);
        w.umount("first");
        let root = w.mount("second", &["--upper", &upper, "--layer", &layer]);
        w.mlfs().run(["start", "first"]).fails(1);
        write(root.join("a"), "second");
        // The first one goes: what the second one works with stays.
        w.mlfs().ok(["rm", "first"]);
        write(root.join("b"), "still");
        assert_eq!(read(root.join("a")), "still");
        w.rm("second");
    });
}

#[test]
fn overlays_that_lie_in_one_another_are_refused() {
    world(|w| {
        let lower = linked(w);
        let target = w.target("overlay");
        let dirs = [w.sandbox.dir("up"), w.sandbox.dir("up/inner"), w.sandbox.dir("work")];
        w.sandbox.file("up/work/user", "mine");
        let [upper, inner, work] = dirs.map(|dir| dir.display().to_string());
        for (upper, work, lower) in [
            (&upper, &upper, &lower),
            (&upper, &inner, &lower),
            (&inner, &upper, &lower),
            (&inner, &work, &upper),
            (&upper, &work, &inner),
        ] {
            let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
            let said = run(&w.sandbox, bare(&w.sandbox).args(["overlay", "-o", &options]).arg(&target)).fails(1);
            assert!(said.contains("overlap"), "{options}: {said}");
        }
        assert_eq!(read(w.sandbox.path("up/work/user")), "mine");
    });
}

#[test]
fn a_second_overlay_on_one_upper_is_refused_and_one_after_the_other_is_not() {
    world(|w| {
        let lower = linked(w);
        let (upper, work) = (w.sandbox.dir("up"), w.sandbox.dir("work"));
        let options = format!("lowerdir={lower},upperdir={},workdir={}", upper.display(), work.display());
        let mount =
            |name: &str| run(&w.sandbox, bare(&w.sandbox).args(["overlay", "-o", &options]).arg(w.target(name)));
        mount("one").ok();
        mount("two").fails(1);
        patiently(|| unmount(&w.target("one"), false)).expect("umount");
        // At once, as engines do.
        mount("two").ok();
        patiently(|| unmount(&w.target("two"), false)).expect("umount");
    });
}

#[test]
fn a_write_to_a_link_survives_though_another_name_went_while_open() {
    world(|w| {
        let layer = linked(w);
        let root = w.mount("box", &["--layer", &layer]);
        let open = std::fs::File::open(root.join("a")).expect("open");
        std::fs::remove_file(root.join("a")).expect("unlink");
        rustix::fs::fchmod(&open, rustix::fs::Mode::from_raw_mode(0o600)).expect("fchmod");
        write(root.join("b"), "NEW");
        drop(open);
        w.umount("box");
        w.mlfs().ok(["start", "box"]);
        assert_eq!(read(root.join("b")), "NEW");
        let stat = rustix::fs::statat(CWD, root.join("b"), AtFlags::SYMLINK_NOFOLLOW).expect("stat");
        assert_eq!(stat.st_nlink, 1);
        w.rm("box");
    });
}

#[test]
fn a_connection_that_is_cut_discards_nothing() {
    world(|w| {
        needs_root("only root may abort a connection by its number");
        let layer = linked(w);
        let root = w.mount("box", &["--rm", "--layer", &layer]);
        write(root.join("keep"), "keep");
        let minor = rustix::fs::minor(rustix::fs::stat(&root).expect("stat").st_dev);
        let control = w.sandbox.dir("fusectl");
        run(&w.sandbox, Command::new("mount").args(["-t", "fusectl", "none"]).arg(&control)).ok();
        write(control.join(format!("{minor}/abort")), "1");
        unmount(&control, false).expect("umount");
        eventually("the daemon ends", || w.state("box").as_deref() != Some("mounted"));
        assert_eq!(w.sandbox.mounts(), Vec::<std::path::PathBuf>::new());
        w.mlfs().ok(["start", "box"]);
        assert_eq!(read(root.join("keep")), "keep");
        w.umount("box");
    });
}
