// SPDX-License-Identifier: MIT OR Apache-2.0
//! `mlfs doctor`: it tells what is there, in environments where something is missing too, and leaves nothing.

use std::process::Command;

use fuse_tests::cli::{mlfs_binary, run};
use fuse_tests::identity::{Identity, identity};
use fuse_tests::skip::skip;
use fuse_tests::world::{World, world};
use serde_json::Value;

fn state<'a>(found: &'a [Value], name: &str) -> &'a str {
    let check = found.iter().find(|check| check["Name"] == name);
    check.unwrap_or_else(|| panic!("{name} is not told: {found:?}"))["State"].as_str().expect("a word")
}

#[test]
fn what_is_there_is_told_and_nothing_stays() {
    world(|w| {
        let dir = w.sandbox.dir("looked-at");
        let found = w.mlfs().json(["doctor", &dir.display().to_string()]);
        assert_eq!(std::fs::read_dir(&dir).expect("list").count(), 0, "the probe leaves nothing");
        for name in ["kernel", "/dev/fuse", "user namespaces", "directory", "writing", "marks", "flock", "hard links"] {
            assert_eq!(state(&found, name), "ok", "{name}: {found:?}");
        }
        // Who may do what is no secret of this machine.
        let is_root = identity() == Identity::Root;
        assert_eq!(state(&found, "passthrough") == "ok", is_root, "{found:?}");
        assert_eq!(state(&found, "mount(2)") == "ok", identity() != Identity::User, "{found:?}");
        for check in &found {
            let is_ok = check["State"] == "ok";
            assert_eq!(
                check["Cost"] == "" && check["Remedy"] == "",
                is_ok,
                "missing things have cost and remedy: {check}"
            );
        }
        let text = w.mlfs().ok(["doctor"]);
        assert!(text.contains("You can mount by: "), "{text}");
        assert!(!w.mlfs().root().exists(), "no store is made by looking");
        w.mlfs().fails(["doctor", "a", "b"], 2, "unexpected argument");
    });
}

#[test]
fn a_directory_that_takes_nothing_is_told() {
    world(|w| {
        let found = w.mlfs().json(["doctor", "/proc"]);
        assert_eq!(state(&found, "writing"), "missing");
        assert!(found.iter().all(|check| check["Name"] != "flock"), "what cannot be tried is not judged");
    });
}

#[test]
fn a_helper_that_is_not_in_path() {
    world(|w| {
        let mut command = w.mlfs().command();
        command.env("PATH", w.sandbox.dir("empty")).args(["--format", "json", "doctor"]);
        let found: Vec<Value> = serde_json::from_str(&run(&w.sandbox, &mut command).ok()).expect("JSON");
        assert_eq!(state(&found, "fusermount3"), "missing");
    });
}

/// Runs a script in a namespace in which it may do what it likes with mounts and limits.
fn in_namespace(w: &World, script: &str) -> fuse_tests::cli::Outcome {
    let probe = Command::new("unshare").args(["-Urm", "true"]).output();
    if !probe.is_ok_and(|output| output.status.success()) {
        skip("no user namespace in this one");
    }
    let mut command = Command::new("unshare");
    command.args(["-Urm", "sh", "-euc", script, "sh"]).arg(mlfs_binary()).arg(w.mlfs().root());
    run(&w.sandbox, &mut command)
}

#[test]
fn a_masked_device_is_no_way() {
    world(|w| {
        let outcome = in_namespace(w, "mount --bind /dev/null /dev/fuse; exec \"$1\" --root \"$2\" doctor");
        assert_eq!(outcome.code, 3, "{}{}", outcome.stdout, outcome.stderr);
        assert!(outcome.stdout.contains("There is no way to mount here"), "{}", outcome.stdout);
        assert!(outcome.stdout.contains("--device /dev/fuse"), "{}", outcome.stdout);
    });
}

#[test]
fn user_namespaces_that_are_switched_off() {
    world(|w| {
        let script = "echo 0 > /proc/sys/user/max_user_namespaces; exec \"$1\" --root \"$2\" --format json doctor";
        let found: Vec<Value> = serde_json::from_str(&in_namespace(w, script).ok()).expect("JSON");
        assert_eq!(state(&found, "user namespaces"), "limited");
        assert_eq!(state(&found, "mount(2)"), "ok", "the namespace's own right is left");
    });
}

#[test]
fn an_upper_where_no_attributes_are_is_refused_with_the_reason() {
    world(|w| {
        let mut layer = fuse_tests::LayerSpec::new();
        layer.file("etc/motd", "from the image");
        w.load("app", &[layer]);
        let (ground, mnt) = (w.sandbox.dir("ground"), w.sandbox.dir("mnt"));
        let (ground, mnt) = (ground.display(), mnt.display());
        let on_ramfs = |command: &str| {
            let script = format!("mount -t ramfs none {ground}; exec \"$1\" --root \"$2\" {command}");
            in_namespace(w, &script)
        };
        let said =
            on_ramfs(&format!("mount --upper {ground}/up app {mnt}")).fails_saying(1, "has no extended attributes");
        assert!(said.contains("mlfs doctor DIR") && said.trim().lines().count() == 1, "{said}");
        assert_eq!(w.mlfs().ok(["ps", "-a", "-q"]), "", "nothing is left");
        let found: Vec<Value> =
            serde_json::from_str(&on_ramfs(&format!("--format json doctor {ground}")).ok()).expect("JSON");
        assert_eq!(state(&found, "marks"), "missing", "{found:?}");
        assert_eq!(state(&found, "flock"), "ok");
    });
}
