// SPDX-License-Identifier: MIT OR Apache-2.0
//! One upper, written by mlfs and by kernel overlayfs in turn: what one leaves, the other goes on with.
//!
//! A scenario is a list of shell steps over linked and large files of layers. It is run by the kernel alone, and then
//! with every hand-over from mlfs to the kernel, from the kernel to mlfs, and there and back after each step; the tree
//! at the end, its inodes and link counts included, must be the same.

use std::process::Command;

use fuse_tests::cli::{bare, run};
use fuse_tests::driver::{lower, patiently};
use fuse_tests::layers::Convention;
use fuse_tests::sandbox::unmount;
use fuse_tests::world::needs_root;
use fuse_tests::{Compare, LayerSpec, Sandbox, Tree, host};

/// Who has the upper mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Runner {
    Kernel,
    Mlfs,
}
use Runner::{Kernel, Mlfs};

/// Overlays of one upper in a sandbox of its own.
struct Relay {
    sandbox: Sandbox,
    options: String,
}

impl Relay {
    fn new(layers: &[LayerSpec]) -> Relay {
        let sandbox = Sandbox::new();
        let lowers: Vec<String> = (layers.iter().enumerate().rev())
            .map(|(number, layer)| {
                lower(&sandbox, &number.to_string(), layer, Convention::Trusted).display().to_string()
            })
            .collect();
        let (upper, work) = (sandbox.dir("upper"), sandbox.dir("work"));
        let options = format!("lowerdir={},upperdir={},workdir={}", lowers.join(":"), upper.display(), work.display());
        sandbox.dir("merged");
        Relay { sandbox, options }
    }

    /// Runs a script on a mount of its own; the tree it leaves.
    fn leg(&self, runner: Runner, script: &str) -> Tree {
        let target = self.sandbox.path("merged");
        patiently(|| {
            let options = &self.options;
            let mut kernel = Command::new("mount");
            let options = format!("{options},redirect_dir=on,index=on,metacopy=on");
            kernel.args(["-t", "overlay", "overlay", "-o", &options]).arg(&target);
            let mut mlfs = bare(&self.sandbox);
            mlfs.args(["overlay", "-o", &self.options]).arg(&target);
            let outcome = run(&self.sandbox, if runner == Kernel { &mut kernel } else { &mut mlfs });
            if outcome.code != 0 && (outcome.stderr.contains("busy") || outcome.stderr.contains("already mounted")) {
                Err(outcome.stderr)
            } else {
                Ok(outcome)
            }
        })
        .unwrap_or_else(|error| panic!("mount by {runner:?}: {error}"))
        .ok();
        let outcome = host::sh(&self.sandbox, &target, &format!("set -e; {script}"));
        let tree = Tree::take(&target);
        patiently(|| unmount(&target, false)).expect("umount");
        self.sandbox.wait_for_processes(std::time::Duration::from_secs(60)).expect("the daemon ends");
        outcome.ok();
        tree
    }

    /// Nothing that is on its way stays, and every record has a name to users.
    fn is_tidy(&self) {
        let work = self.sandbox.path("work");
        for (dir, what) in [("work", "staged"), ("mlfs-links", "a record in our form")] {
            if work.join(dir).exists() {
                assert_eq!(fuse_tests::world::list(work.join(dir)), Vec::<String>::new(), "{what} is left");
            }
        }
    }
}

fn relay(layers: &[LayerSpec], steps: &[&str]) {
    fuse_tests::check(|| {
        needs_root("kernel overlayfs with an index");
        let judge = Relay::new(layers).leg(Kernel, &steps.join("\n"));
        let compare = Compare { recent: 1_600_000_000, is_root: false, ..Compare::ALL };
        let whole = Relay::new(layers);
        let tree = whole.leg(Mlfs, &steps.join("\n"));
        judge.assert_same(&tree, compare, "by the kernel and by mlfs");
        judge.assert_same(&whole.leg(Kernel, ""), compare, "by mlfs, seen by the kernel");
        whole.is_tidy();
        for (first, second) in [(Mlfs, Kernel), (Kernel, Mlfs)] {
            for cut in 1..steps.len() {
                let (before, after) = steps.split_at(cut);
                let relay = Relay::new(layers);
                let left = relay.leg(first, &before.join("\n"));
                let what = format!("{first:?} did {before:?}, {second:?}");
                left.assert_same(&relay.leg(second, ""), compare, &format!("{what} looked"));
                let tree = relay.leg(second, &after.join("\n"));
                judge.assert_same(&tree, compare, &format!("{what} went on"));
                judge.assert_same(&relay.leg(first, ""), compare, &format!("{what} went on, {first:?} looked"));
                relay.is_tidy();
            }
        }
        let relay = Relay::new(layers);
        let mut tree = Tree::default();
        for (number, step) in steps.iter().enumerate() {
            tree = relay.leg(if number % 2 == 0 { Mlfs } else { Kernel }, step);
        }
        judge.assert_same(&tree, compare, "in turn");
    });
}

fn layer(declare: impl FnOnce(&mut LayerSpec)) -> LayerSpec {
    let mut layer = LayerSpec::new();
    declare(&mut layer);
    layer
}

fn linked() -> LayerSpec {
    layer(|l| {
        l.file("a", "old").mode(0o640).xattr("user.note", "n");
        l.hardlink("b", "a");
        l.hardlink("d/c", "a");
        l.dir("d");
        l.dir("e");
        l.file("single", "alone");
    })
}

#[test]
fn a_group_is_written_by_one_name() {
    relay(&[linked()], &["echo new > b", "echo more >> d/c", "chmod 600 a", "touch -d @1500000000 d/c"]);
}

#[test]
fn names_of_a_group_go_and_come() {
    relay(&[linked()], &["rm a", "ln d/c e/x", "echo changed > b", "rm b", "ln e/x a", "rm d/c e/x"]);
}

#[test]
fn the_last_names_of_a_group_go() {
    relay(&[linked()], &["rm a b", "mv d/c e/moved", "rm e/moved", "echo again > a"]);
}

#[test]
fn names_of_a_group_are_renamed() {
    relay(
        &[linked()],
        &["mv a e/a", "mv -T d/c single", "mkdir f; mv single f/s", "mv b d/b", "echo end > d/b", "mv d/b f/b"],
    );
}

#[test]
fn a_group_is_replaced_by_renames() {
    relay(&[linked()], &["echo 1 > n", "mv n a", "echo 2 > n", "mv n d/c", "chmod 644 b", "echo last >> b"]);
}

#[test]
fn directories_of_a_group_are_moved() {
    relay(&[linked()], &["mv d e/d", "echo new > e/d/c", "mv e g", "ln a g/d/z", "rm b", "rm -r g"]);
}

#[test]
fn large_groups_hold_metadata_only() {
    let layer = layer(|l| {
        l.file("big", vec![b'x'; 200_000]).mode(0o755);
        l.hardlink("big2", "big");
        l.hardlink("d/big3", "big");
        l.dir("d");
        l.dir("e");
    });
    relay(
        &[layer],
        &["chmod 700 big", "mv big2 e/big2", "ln big e/other", "rm d/big3", "echo tail >> e/big2", "rm big"],
    );
}

#[test]
fn large_files_hold_metadata_only() {
    let below = layer(|l| {
        l.file("d/chmod", vec![b'1'; 100_000]).xattr("user.note", "n");
        l.file("d/moved", vec![b'2'; 100_000]);
        l.file("d/linked", vec![b'3'; 100_000]);
        l.file("top", vec![b'4'; 100_000]);
        l.dir("d");
    });
    let above = layer(|l| {
        l.dir("d").mode(0o711);
        l.file("d/above", vec![b'5'; 100_000]);
    });
    relay(
        &[below, above],
        &[
            "chmod 600 d/chmod; chmod 4711 d/above",
            "mv d/moved top-moved; ln d/linked d/link2; setfattr -n user.x -v y top",
            "mv d d2; chown 12:13 d2/above",
            "mv d2/chmod d2/linked .; rm d2/link2; mkdir d",
            "mv d2/above d/above; touch -d @1500000000 top-moved",
            "echo tail >> chmod; truncate -s 50000 linked; truncate -s 150000 top",
            "printf X | dd of=top-moved conv=notrunc seek=7 bs=1 status=none",
        ],
    );
}

#[test]
fn linked_symlinks_and_pipes_stay_one() {
    let layer = layer(|l| {
        l.symlink("s", "target");
        l.hardlink("d/s2", "s");
        l.node("p", fuse_tests::layers::What::Fifo);
        l.hardlink("d/p2", "p");
        l.dir("d");
    });
    relay(&[layer], &["chown -h 5:6 s", "chmod 600 d/p2", "mv d/s2 d/s3", "rm p", "rm s"]);
}

#[test]
fn groups_of_two_layers_stay_apart() {
    let above = layer(|l| {
        l.file("b", "upper b");
        l.hardlink("e/b2", "b");
        l.dir("e");
    });
    relay(&[linked(), above], &["echo 1 >> a", "echo 2 >> e/b2", "ln a e/a2", "rm b", "mv d/c e/c", "rm a"]);
}

// Equal handles on filesystems of equal identity are those of different files: the kernel goes without an index there.
#[test]
fn layers_on_copies_of_one_filesystem_stay_apart() {
    fuse_tests::check(|| {
        needs_root("loop devices");
        let sandbox = Sandbox::new();
        for dir in ["below", "above", "upper", "work", "merged"] {
            sandbox.dir(dir);
        }
        let made = host::sh(
            &sandbox,
            sandbox.root(),
            "truncate -s 8M image; mkfs.ext4 -q -O ^has_journal image; mount -o loop image below
             echo below > below/a; ln below/a below/b; umount below; cp image copy
             mount -o loop image below; mount -o loop copy above
             mv above/a above/x1; mv above/b above/x2; echo above > above/x1",
        );
        if made.code != 0 {
            fuse_tests::skip(format!("no loop devices here: {}", made.stderr));
        }
        let path = |name: &str| sandbox.path(name).display().to_string();
        let (below, above, upper, work) = (path("below"), path("above"), path("upper"), path("work"));
        let options = format!("lowerdir={above}:{below},upperdir={upper},workdir={work}");
        let relay = Relay { sandbox, options };
        relay.leg(Mlfs, "echo more >> x2; test \"$(cat a b)\" = \"$(printf 'below\\nbelow')\"");
        let script = "test \"$(cat a b)\" = \"$(printf 'below\\nbelow')\"
             test \"$(cat x1)\" = \"$(printf 'above\\nmore')\"; test x1 -ef x2; test a -ef b; ! test a -ef x1
             echo other >> a; test \"$(cat b)\" = \"$(printf 'below\\nother')\"; test \"$(cat x2)\" = \"$(cat x1)\"";
        relay.leg(Mlfs, script);
    });
}
