// SPDX-License-Identifier: MIT OR Apache-2.0
//! mlfs and its judge over the same layers, side by side.

use std::path::Path;
use std::process::Command;

use fuse_tests::cli::run as run_command;
use fuse_tests::driver::{Driver, Mount, patiently};
use fuse_tests::layers::{Convention, LayerSpec};
use fuse_tests::sandbox::{Sandbox, unmount};
use fuse_tests::tree::{Compare, Tree};

use super::op::{Op, Side};
use super::random::VOLUME;

struct World {
    // Dropped before the sandbox: what is open holds the mount.
    side: Side,
    mount: Mount,
    sandbox: Sandbox,
    has_volume: bool,
    /// Whether kernel overlayfs has the upper.
    is_kernel: bool,
}

impl World {
    fn new(driver: Driver, layers: &[LayerSpec], has_volume: bool) -> World {
        let sandbox = Sandbox::new();
        let volume = format!("{}:/{VOLUME}", sandbox.dir("volume").display());
        let options = if has_volume && driver.is_mlfs() { vec!["-v".to_owned(), volume] } else { Vec::new() };
        let mount = Mount::prepare(&sandbox, driver, layers, Convention::Trusted, &options);
        let side = Side::new(mount.target.clone());
        let mut world = World { sandbox, mount, side, has_volume, is_kernel: driver == Driver::KernelOverlay };
        world.mount.mount(&world.sandbox);
        world.bind();
        world
    }

    // What mlfs has inside is a bind mount for the kernel.
    fn bind(&self) {
        if self.has_volume && self.is_kernel {
            let (volume, target) = (self.sandbox.path("volume"), self.side.root.join(VOLUME));
            run_command(&self.sandbox, Command::new("mount").arg("--bind").arg(volume).arg(target)).ok();
        }
    }

    fn unmount(&mut self) {
        self.side.close_all();
        if self.has_volume && self.is_kernel {
            patiently(|| unmount(&self.side.root.join(VOLUME), false)).expect("umount");
        }
        if self.is_kernel { self.mount.unmount_by_kernel() } else { self.mount.unmount(&self.sandbox) }
    }

    fn mount_again(&mut self) {
        self.mount.mount(&self.sandbox);
        self.is_kernel = self.mount.is_judge();
        self.bind();
    }

    fn mount_by_kernel(&mut self) {
        self.mount.mount_by_kernel(&self.sandbox);
        self.is_kernel = true;
        self.bind();
    }
}

/// Runs a sequence on both; the first difference, if any.
pub fn run(layers: &[LayerSpec], has_volume: bool, ops: &[Op]) -> Result<(), String> {
    let own = if has_volume { Driver::MlfsMount } else { Driver::MlfsOverlay };
    let mut judge = World::new(Driver::KernelOverlay, layers, has_volume);
    let mut own = World::new(own, layers, has_volume);
    let lowers = Tree::take(&own.sandbox.path("lower"));
    check(&judge, &own, "at the start")?;
    for (index, op) in ops.iter().enumerate() {
        if matches!(op, Op::Remount | Op::ByKernel) {
            check(&judge, &own, &format!("before {index} {op:?}"))?;
            judge.unmount();
            judge.mount_again();
            own.unmount();
            if matches!(op, Op::ByKernel) {
                own.mount_by_kernel()
            } else {
                own.mount_again()
            }
            check(&judge, &own, &format!("after {index} {op:?}"))?;
            continue;
        }
        let (left, right) = (judge.side.apply(op), own.side.apply(op));
        if left != right && !is_known(has_volume, &left, &right) {
            return Err(format!("operation {index} {op:?}: judge {left}, mlfs {right}"));
        }
    }
    check(&judge, &own, "at the end")?;
    own.unmount();
    judge.unmount();
    unchanged(&lowers, &own.sandbox.path("lower"))
}

fn unchanged(lowers: &Tree, dir: &Path) -> Result<(), String> {
    let differences = lowers.difference(&Tree::take(dir), Compare { is_ino: true, ..Compare::ALL });
    if differences.is_empty() { Ok(()) } else { Err(format!("a lower was changed: {differences:#?}")) }
}

fn check(judge: &World, own: &World, when: &str) -> Result<(), String> {
    let compare = Compare { is_dir_mtime: false, recent: 1_500_000_000, ..Compare::ALL };
    let differences = Tree::take(&judge.side.root).difference(&Tree::take(&own.side.root), compare);
    if differences.is_empty() { Ok(()) } else { Err(format!("{when}: judge | mlfs: {differences:#?}")) }
}

/// A volume is a mount for the judge. The kernel looks at mounts before it looks at names, so EXDEV comes before any other
/// error.
fn is_known(has_volume: bool, judge: &str, own: &str) -> bool {
    has_volume && judge.contains("os error 18") && own.contains("os error")
}
