// SPDX-License-Identifier: MIT OR Apache-2.0
//! `mlfs overlay` in its plain form: what podman, buildah and mount(8) expect of a mount_program.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use fuse_tests::cli::{Outcome, bare, mlfs_binary, run};
use fuse_tests::driver::patiently;
use fuse_tests::identity::{Identity, identity};
use fuse_tests::sandbox::unmount;
use fuse_tests::world::{World, list, read, world, write};
use rustix::io::Errno;
use rustix::process::{Signal, kill_process};

struct Dirs {
    low: String,
    top: String,
    upper: PathBuf,
    work: PathBuf,
    target: PathBuf,
}

fn dirs(w: &World) -> Dirs {
    let low = w.layer("low", |l| {
        l.file("f", "low");
        l.file("only-low", "l");
    });
    let top = w.layer("top", |l| {
        l.file("f", "top");
    });
    Dirs { low, top, upper: w.sandbox.dir("upper"), work: w.sandbox.dir("work"), target: w.target("m") }
}

impl Dirs {
    fn options(&self) -> String {
        format!("lowerdir={}:{},upperdir={},workdir={}", self.top, self.low, self.upper.display(), self.work.display())
    }
}

fn overlay(w: &World, args: &[&str]) -> Outcome {
    run(&w.sandbox, bare(&w.sandbox).arg("overlay").args(args))
}

fn end(w: &World, target: &Path) {
    patiently(|| unmount(target, false)).expect("umount");
    w.sandbox.wait_for_processes(Duration::from_secs(10)).expect("ends by itself");
}

#[test]
fn plain_form() {
    world(|w| {
        let d = dirs(w);
        overlay(w, &["-o", &d.options(), &d.target.display().to_string()]).ok();
        assert_eq!(read(d.target.join("f")), "top", "the first lower lies on top");
        assert_eq!(list(&d.target), ["f", "only-low"]);
        write(d.target.join("f"), "upper");
        assert_eq!(read(d.upper.join("f")), "upper");
        end(w, &d.target);
    });
}

#[test]
fn needs_nothing_but_upper_and_work() {
    world(|w| {
        let d = dirs(w);
        let mut command = bare(&w.sandbox);
        command.env_remove("HOME").env_remove("XDG_RUNTIME_DIR").env_remove("MLFS_LOG").current_dir("/");
        command.args(["overlay", "-o", &d.options()]).arg(&d.target);
        let before = list(w.sandbox.root());
        run(&w.sandbox, &mut command).ok();
        write(d.target.join("new"), "n");
        end(w, &d.target);
        let after: Vec<String> = list(w.sandbox.root()).into_iter().filter(|name| name != "io").collect();
        let before: Vec<String> = before.into_iter().filter(|name| name != "io").collect();
        assert_eq!(before, after, "it made something outside of upper and work");
        assert_eq!(list(w.sandbox.path("home")), Vec::<String>::new());
    });
}

#[test]
fn by_the_programs_name() {
    world(|w| {
        let d = dirs(w);
        let link = w.sandbox.dir("bin").join("fuse-overlayfs");
        symlink(mlfs_binary(), &link).expect("symlink");
        let copy = w.sandbox.dir("bin2").join("fuse-overlayfs");
        std::fs::copy(mlfs_binary(), &copy).expect("copy");
        for program in [link, copy] {
            let version = run(&w.sandbox, Command::new(&program).arg("--version")).ok();
            let has_name = version.contains("mlfs") || version.contains("fuse-overlayfs");
            assert!(has_name && version.contains(|char: char| char.is_ascii_digit()), "{version}");
            run(&w.sandbox, Command::new(&program).args(["-o", &d.options()]).arg(&d.target)).ok();
            assert_eq!(read(d.target.join("f")), "top");
            let mounts = read("/proc/self/mountinfo");
            let line = mounts.lines().find(|line| line.contains(&*d.target.to_string_lossy())).expect("mounted");
            assert!(line.contains("fuse.fuse-overlayfs") || line.contains("fuse.mlfs"), "{line}");
            end(w, &d.target);
        }
    });
}

#[test]
fn relative_paths_and_odd_commas() {
    world(|w| {
        let d = dirs(w);
        let options = "lowerdir=lower/top:lower/low,upperdir=upper,workdir=work,,";
        overlay(w, &["-o", options, "mnt/m"]).ok();
        assert_eq!(read(d.target.join("f")), "top");
        write(d.target.join("f"), "by relative paths");
        assert_eq!(read(d.upper.join("f")), "by relative paths");
        end(w, &d.target);
    });
}

#[test]
fn arguments_in_any_order() {
    world(|w| {
        let d = dirs(w);
        let target = d.target.display().to_string();
        // mount(8): two positionals first, options last.
        overlay(w, &["overlay", &target, "-o", &d.options()]).ok();
        assert_eq!(read(d.target.join("f")), "top");
        end(w, &d.target);
        // Several -o.
        let (first, rest) = d.options().split_once(',').map(|(a, b)| (a.to_owned(), b.to_owned())).expect("comma");
        overlay(w, &["-o", &first, "-o", &rest, &target]).ok();
        assert_eq!(read(d.target.join("f")), "top");
        end(w, &d.target);
    });
}

#[test]
fn without_an_upper_it_is_read_only() {
    world(|w| {
        let d = dirs(w);
        let options = format!("lowerdir={}:{}", d.top, d.low);
        overlay(w, &["-o", &options, &d.target.display().to_string()]).ok();
        assert_eq!(read(d.target.join("f")), "top");
        let error = std::fs::write(d.target.join("f"), "x").expect_err("no upper");
        assert_eq!(error.raw_os_error(), Some(Errno::ROFS.raw_os_error()));
        let error = std::fs::remove_file(d.target.join("f")).expect_err("no upper");
        assert_eq!(error.raw_os_error(), Some(Errno::ROFS.raw_os_error()));
        end(w, &d.target);
    });
}

#[test]
fn unknown_options_are_told_and_ignored() {
    world(|w| {
        let d = dirs(w);
        let options = format!("{},lazytime,nodev,fsync=0,threaded=1,noacl,unheard=of", d.options());
        let outcome = overlay(w, &["-o", &options, &d.target.display().to_string()]);
        assert!(outcome.stderr.contains("unknown argument ignored: unheard=of"), "{}", outcome.stderr);
        outcome.ok();
        assert_eq!(read(d.target.join("f")), "top");
        end(w, &d.target);
    });
}

#[test]
fn failures_leave_nothing() {
    world(|w| {
        let d = dirs(w);
        let target = d.target.display().to_string();
        let absent = w.sandbox.path("absent").display().to_string();
        let (upper, work) = (d.upper.display(), d.work.display());
        let cases = [
            format!("lowerdir={absent},upperdir={upper},workdir={work}"),
            format!("lowerdir={},upperdir={absent},workdir={work}", d.low),
            format!("lowerdir={},upperdir={upper},workdir={absent}", d.low),
        ];
        for options in cases {
            let outcome = overlay(w, &["-o", &options, &target]);
            assert_ne!(outcome.code, 0, "{options}");
            let said = outcome.clone().fails(outcome.code);
            assert!(said.contains(&absent), "names the path: {said}");
            assert_eq!(w.sandbox.mounts(), Vec::<PathBuf>::new());
        }
        let outcome = overlay(w, &["-o", &d.options(), &absent]);
        assert_ne!(outcome.code, 0, "a missing mount point");
        let outcome = overlay(w, &[&target]);
        assert_ne!(outcome.code, 0, "no lowerdir");
        w.sandbox.wait_for_processes(Duration::from_secs(2)).expect("no daemon is left");
    });
}

#[test]
fn the_callers_pipes_are_closed() {
    world(|w| {
        let d = dirs(w);
        let output = bare(&w.sandbox).args(["overlay", "-o", &d.options()]).arg(&d.target).output().expect("run");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(read(d.target.join("f")), "top", "usable at once");
        end(w, &d.target);
    });
}

// Whoever walks to the mountpoint through the mount would wait for himself.
#[test]
fn the_mountpoint_lies_in_no_layer() {
    world(|w| {
        let d = dirs(w);
        let inside = w.sandbox.dir("around/m").display().to_string();
        let around = w.sandbox.path("around").display().to_string();
        let [upper, work, lower] =
            ["o/upper", "o/work", "o/lower"].map(|name| w.sandbox.dir(name).display().to_string());
        for (options, kind) in [
            (format!("lowerdir={around}"), "lowerdir"),
            (format!("lowerdir={lower}:{around},upperdir={upper},workdir={work}"), "lowerdir"),
            (format!("lowerdir={lower},upperdir={around},workdir={work}"), "upperdir"),
            (format!("lowerdir={lower},upperdir={upper},workdir={around}"), "workdir"),
        ] {
            overlay(w, &["-o", &options, &inside]).fails_saying(1, kind);
        }
        assert_eq!(w.sandbox.mounts(), Vec::<std::path::PathBuf>::new());
        // Upon a lower it may be mounted: the layer is what lies below.
        let (options, target) = (format!("lowerdir={lower}"), &lower);
        overlay(w, &["-o", &options, target]).ok();
        assert_eq!(std::fs::read_dir(target).expect("list").count(), 0);
        end(w, std::path::Path::new(target));
        drop(d);
    });
}

#[test]
fn signals_unmount() {
    world(|w| {
        let d = dirs(w);
        for signal in [Signal::TERM, Signal::INT] {
            overlay(w, &["-o", &d.options(), &d.target.display().to_string()]).ok();
            write(d.target.join("g"), "g");
            kill_process(w.daemon("m"), signal).expect("kill");
            w.sandbox.wait_for_processes(Duration::from_secs(15)).expect("ends");
            assert_eq!(w.sandbox.mounts(), Vec::<PathBuf>::new(), "{signal:?} left the mount behind");
            assert_eq!(read(d.upper.join("g")), "g");
        }
    });
}

#[test]
fn lazy_unmount_ends_with_the_last_file() {
    world(|w| {
        let d = dirs(w);
        overlay(w, &["-o", &d.options(), &d.target.display().to_string()]).ok();
        let mut held = std::fs::OpenOptions::new().append(true).open(d.target.join("f")).expect("open");
        unmount(&d.target, true).expect("umount -l");
        std::io::Write::write_all(&mut held, b" and more").expect("open files go on");
        drop(held);
        w.sandbox.wait_for_processes(Duration::from_secs(10)).expect("ends by itself");
        assert_eq!(read(d.upper.join("f")), "top and more");
    });
}

// A build mounts the same upper hundreds of times, each right after the last.
#[test]
fn quick_remounts() {
    world(|w| {
        let d = dirs(w);
        for round in 0..40 {
            overlay(w, &["-o", &d.options(), &d.target.display().to_string()]).ok();
            write(d.target.join("round"), round.to_string());
            assert_eq!(read(d.target.join("f")), "top");
            patiently(|| unmount(&d.target, false)).expect("umount");
            assert_eq!(read(d.upper.join("round")), round.to_string());
        }
        w.sandbox.wait_for_processes(Duration::from_secs(10)).expect("all ended");
    });
}

// As root with a uid map podman detaches the lowers right after the program exits: no path may be opened again.
#[test]
fn lowers_are_held_by_descriptor() {
    world(|w| {
        let d = dirs(w);
        let links = w.sandbox.dir("l");
        for (name, dir) in [("TOP", &d.top), ("LOW", &d.low)] {
            symlink(dir, links.join(name)).expect("symlink");
        }
        let options = format!("lowerdir=l/TOP:l/LOW,upperdir={},workdir={}", d.upper.display(), d.work.display());
        overlay(w, &["-o", &options, &d.target.display().to_string()]).ok();
        std::fs::remove_dir_all(&links).expect("rm");
        assert_eq!(read(d.target.join("only-low")), "l");
        write(d.target.join("only-low"), "copied up");
        assert_eq!(list(&d.target), ["f", "only-low"]);
        end(w, &d.target);
    });
}

#[test]
fn a_hundred_lowers() {
    world(|w| {
        let d = dirs(w);
        let mut lowers = Vec::new();
        for number in 0..100 {
            lowers.push(w.layer(&format!("a-name-that-is-long-enough-for-a-string-beyond-a-page-{number}"), |l| {
                l.file("last", number.to_string());
                l.file(format!("f{number}"), "x");
            }));
        }
        lowers.reverse();
        let options =
            format!("lowerdir={},upperdir={},workdir={}", lowers.join(":"), d.upper.display(), d.work.display());
        assert!(options.len() > 4096);
        overlay(w, &["-o", &options, &d.target.display().to_string()]).ok();
        assert_eq!(read(d.target.join("last")), "99");
        assert_eq!(list(&d.target).len(), 101);
        end(w, &d.target);
    });
}

#[test]
fn escaped_colons_and_spaces() {
    world(|w| {
        let d = dirs(w);
        let odd = w.layer("odd: name, with \"all\"", |l| {
            l.file("odd", "o");
        });
        let escaped = odd.replace(':', "\\:").replace(',', "\\,");
        let options =
            format!("lowerdir={escaped}:{},upperdir={},workdir={}", d.low, d.upper.display(), d.work.display());
        overlay(w, &["-o", &options, &d.target.display().to_string()]).ok();
        assert_eq!(list(&d.target), ["f", "odd", "only-low"]);
        end(w, &d.target);
    });
}

// The upper of a container is a lower of its commit, read through a second mount while the first lives.
#[test]
fn an_upper_as_a_lower() {
    world(|w| {
        let d = dirs(w);
        overlay(w, &["-o", &d.options(), &d.target.display().to_string()]).ok();
        std::fs::remove_file(d.target.join("only-low")).expect("unlink");
        std::fs::create_dir(d.target.join("d")).expect("mkdir");
        write(d.target.join("d/x"), "x");
        let second = w.target("second");
        let options = format!("lowerdir={}:{}:{}", d.upper.display(), d.top, d.low);
        overlay(w, &["-o", &options, &second.display().to_string()]).ok();
        assert_eq!(list(&second), ["d", "f"], "its whiteouts are understood");
        assert_eq!(read(second.join("d/x")), "x");
        patiently(|| unmount(&second, false)).expect("umount");
        end(w, &d.target);
    });
}

#[test]
fn who_may_look() {
    world(|w| {
        let d = dirs(w);
        overlay(w, &["-o", &d.options(), &d.target.display().to_string()]).ok();
        let mounts = read("/proc/self/mountinfo");
        let line = mounts.lines().find(|line| line.contains(&*d.target.to_string_lossy())).expect("mounted");
        assert!(line.contains("default_permissions"), "{line}");
        let is_root = identity() == Identity::Root;
        assert!(!is_root || line.contains("allow_other"), "{line}");
        if is_root {
            assert_eq!(fuse_tests::host::sh_as(&w.sandbox, &d.target, 1234, 1234, "cat f").ok(), "top");
        }
        end(w, &d.target);
    });
}
