// SPDX-License-Identifier: MIT OR Apache-2.0
//! Ways to mount: what is left when one of them is missing, and the one sentence when none is.

use std::path::{Path, PathBuf};
use std::process::Command;

use fuse_tests::LayerSpec;
use fuse_tests::cli::{Outcome, mlfs_binary, run};
use fuse_tests::identity::{Identity, identity};
use fuse_tests::skip::skip;
use fuse_tests::world::{World, world};

const WITHOUT: &str = "without a mount `mlfs ls`, `cat`, `export` and `layers` work";

fn load(w: &World) -> PathBuf {
    let mut layer = LayerSpec::new();
    layer.file("etc/motd", "from the image");
    w.load("app", &[layer]);
    w.sandbox.dir("mnt")
}

/// A PATH with a shell and nothing that mounts.
fn poor_path(w: &World) -> PathBuf {
    let bin = w.sandbox.dir("bin");
    for name in ["sh", "cat"] {
        let link = bin.join(name);
        std::os::unix::fs::symlink(Path::new("/bin").join(name), link).expect("symlink");
    }
    bin
}

fn without_helper(w: &World, args: &[&str]) -> Outcome {
    let mut command = w.mlfs().command();
    command.env("PATH", w.sandbox.path("bin")).args(args);
    run(&w.sandbox, &mut command)
}

fn needs_namespaces() {
    let probe = Command::new("unshare").args(["-Urm", "true"]).output();
    if !probe.is_ok_and(|output| output.status.success()) {
        skip("no user namespace in this one");
    }
}

/// Runs a script as the root of a namespace of its own: `$1` is mlfs, `$2` the store, `$3` a mountpoint.
fn in_namespace(w: &World, script: &str, mnt: &Path) -> Outcome {
    needs_namespaces();
    let mut command = Command::new("unshare");
    command.args(["-Urm", "sh", "-euc", script, "sh"]).arg(mlfs_binary()).arg(w.mlfs().root()).arg(mnt);
    command.current_dir(w.sandbox.root());
    run(&w.sandbox, &mut command)
}

fn assert_nothing_is_left(w: &World) {
    assert_eq!(w.mlfs().ok(["ps", "-a", "-q"]), "", "a mount that failed leaves no container");
}

#[test]
fn without_fusermount3() {
    world(|w| {
        let mnt = load(w);
        poor_path(w);
        let target = mnt.display().to_string();
        let outcome = without_helper(w, &["mount", "--name", "box", "app", &target]);
        if identity() == Identity::User {
            let said = outcome.fails_saying(1, "fusermount3, which is not in PATH");
            assert!(
                said.contains("apt-get install fuse3") && said.contains("-- CMD") && said.contains(WITHOUT),
                "{said}"
            );
            assert_eq!(said.trim().lines().count(), 1, "one sentence: {said}");
            assert_nothing_is_left(w);
        } else {
            outcome.ok();
            assert_eq!(std::fs::read_to_string(mnt.join("etc/motd")).expect("read"), "from the image");
            without_helper(w, &["umount", "box"]).ok();
        }
    });
}

#[test]
fn a_command_needs_no_fusermount3() {
    world(|w| {
        needs_namespaces();
        let mnt = load(w);
        poor_path(w);
        let target = mnt.display().to_string();
        let script = format!("cat {target}/etc/motd; exit 7");
        let outcome = without_helper(w, &["mount", "-q", "app", &target, "--", "sh", "-c", &script]);
        assert_eq!((outcome.code, outcome.stdout.as_str()), (7, "from the image"), "{}", outcome.stderr);
        assert_eq!(without_helper(w, &["mount", "app", &target, "--", "no-such-command"]).code, 127);
        assert_eq!(without_helper(w, &["mount", "never-loaded", &target, "--", "sh"]).code, 125);
        assert_nothing_is_left(w);
    });
}

#[test]
fn without_the_device() {
    world(|w| {
        let mnt = load(w);
        let masked = "mount --bind /dev/null /dev/fuse; exec \"$1\" --root \"$2\"";
        let said =
            in_namespace(w, &format!("{masked} mount app \"$3\""), &mnt).fails_saying(1, "/dev/fuse cannot be opened");
        assert!(
            said.contains("modprobe fuse") && said.contains("--device /dev/fuse") && said.contains(WITHOUT),
            "{said}"
        );
        let said = in_namespace(w, &format!("{masked} mount app \"$3\" -- true"), &mnt).fails(125);
        assert!(said.contains("/dev/fuse cannot be opened"), "{said}");
        assert_nothing_is_left(w);
        for (words, wanted) in
            [("cat app /etc/motd", "from the image"), ("ls app /", "etc"), ("layers app", "fuse-tests layer 1")]
        {
            let outcome = in_namespace(w, &format!("{masked} {words}"), &mnt);
            assert!(outcome.clone().ok().contains(wanted), "{words}: {}", outcome.stdout);
        }
        in_namespace(w, &format!("{masked} export app -o /dev/null"), &mnt).ok();
    });
}

/// Root of a namespace that has no right left: its own is taken away, and it may make no other.
#[test]
fn without_any_right() {
    world(|w| {
        let mnt = load(w);
        let script = format!(
            "echo 0 > /proc/sys/user/max_user_namespaces
             exec setpriv --bounding-set -all --inh-caps -all env PATH={} \"$1\" --root \"$2\" mount app \"$3\"",
            poor_path(w).display()
        );
        let said = in_namespace(w, &script, &mnt).fails(1);
        assert!(said.contains("fusermount3, which is not in PATH") && said.contains(WITHOUT), "{said}");
        assert!(said.contains("user.max_user_namespaces forbids"), "{said}");
        let said = in_namespace(w, &format!("{script} -- true"), &mnt).fails(125);
        assert!(said.contains("user.max_user_namespaces forbids") && said.contains(WITHOUT), "{said}");
        assert_nothing_is_left(w);
    });
}

#[test]
fn a_helper_that_fails_is_quoted() {
    world(|w| {
        if identity() != Identity::User {
            skip("only an ordinary user asks the helper");
        }
        let mnt = load(w);
        let bin = poor_path(w);
        let helper = w.sandbox.file("bin/fusermount3", "#!/bin/sh\necho 'fusermount3: no luck today' >&2\nexit 1\n");
        std::fs::set_permissions(&helper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("chmod");
        assert!(bin.join("fusermount3").exists());
        without_helper(w, &["mount", "app", &mnt.display().to_string()]).fails_saying(1, "no luck today");
        assert_nothing_is_left(w);
    });
}
