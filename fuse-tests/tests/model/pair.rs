// SPDX-License-Identifier: MIT OR Apache-2.0
//! mlfs and its judge over the same layers, side by side.

use std::path::Path;
use std::process::Command;

use fuse_tests::cli::run as run_command;
use fuse_tests::driver::{Driver, Mount, patiently};
use fuse_tests::identity::{Identity, identity};
use fuse_tests::kernel::KernelForm;
use fuse_tests::layers::{Item, LayerSpec, What};
use fuse_tests::sandbox::{Sandbox, unmount};
use fuse_tests::tree::{Compare, Tree};

use super::op::{Op, Side};
use super::random::VOLUME;

/// Where the judge's tree comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judge {
    /// Kernel overlayfs over the same layers.
    Overlay,
    /// A plain directory: a copy of what mlfs shows at first. For those who cannot mount what the kernel does as root.
    Plain,
}

struct World {
    // Dropped before the sandbox: what is open holds the mount.
    side: Side,
    mount: Option<Mount>,
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
        let mut mount = Mount::prepare(&sandbox, driver, layers, driver.convention(), &options);
        mount.mount(&sandbox);
        let side = Side::new(mount.target.clone());
        let is_kernel = driver == Driver::KernelOverlay;
        let world = World { side, mount: Some(mount), sandbox, has_volume, is_kernel };
        world.bind();
        world
    }

    fn copy_of(other: &World) -> World {
        let sandbox = Sandbox::new();
        let plain = sandbox.dir("plain");
        let source = other.side.root.join(".");
        run_command(&sandbox, Command::new("cp").arg("-a").arg(source).arg(&plain)).ok();
        World { side: Side::new(plain), mount: None, sandbox, has_volume: false, is_kernel: false }
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
        let Some(mount) = &self.mount else { return };
        if self.has_volume && self.is_kernel {
            patiently(|| unmount(&self.side.root.join(VOLUME), false)).expect("umount");
        }
        if self.is_kernel { mount.unmount_by_kernel() } else { mount.unmount(&self.sandbox) }
    }

    fn mount_again(&mut self) {
        let Some(mount) = &mut self.mount else { return };
        mount.mount(&self.sandbox);
        self.is_kernel = mount.is_judge();
        self.bind();
    }

    fn mount_by_kernel(&mut self) {
        let Some(mount) = &self.mount else { return };
        mount.mount_by_kernel(&self.sandbox);
        self.is_kernel = true;
        self.bind();
    }

    // Whether the kernel shows all of what mlfs has written here: it has no index for hard links of layers without root.
    // What it does itself differs there too, so nothing more than a look is asked of it.
    fn is_shown_by_kernel(&self, layers: &[LayerSpec]) -> bool {
        let is_link = |item: &Item| matches!(item.what, What::Hardlink(_));
        if layers.iter().any(|layer| layer.items.iter().any(is_link)) {
            return false;
        }
        let upper = self.mount.as_ref().map(|mount| &mount.upper);
        Driver::KernelOverlay.skip_reason().is_none()
            && upper.is_some_and(|upper| KernelForm::of_identity().find_unread_mark(upper).is_none())
    }
}

/// Runs a sequence on both; the first difference, if any.
pub fn run(judge: Judge, layers: &[LayerSpec], has_volume: bool, ops: &[Op]) -> Result<(), String> {
    let driver = if has_volume { Driver::MlfsMount } else { Driver::MlfsOverlay };
    let mut own = World::new(driver, layers, has_volume);
    let mut judge = match judge {
        Judge::Overlay => World::new(Driver::KernelOverlay, layers, has_volume),
        Judge::Plain => World::copy_of(&own),
    };
    let lowers = Tree::take(&own.sandbox.path("lower"));
    check(&judge, &own, "at the start")?;
    for (index, op) in ops.iter().enumerate() {
        if matches!(op, Op::Remount | Op::ByKernel) {
            let is_shown = own.is_shown_by_kernel(layers);
            remount(&mut judge, &mut own, op, is_shown).map_err(|difference| format!("{index}: {difference}"))?;
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

fn remount(judge: &mut World, own: &mut World, op: &Op, is_shown: bool) -> Result<(), String> {
    check(judge, own, &format!("before {op:?}"))?;
    judge.unmount();
    judge.mount_again();
    own.unmount();
    match (op, identity()) {
        (Op::ByKernel, Identity::Root) => own.mount_by_kernel(),
        (Op::ByKernel, _) if is_shown => {
            own.mount_by_kernel();
            check(judge, own, "by the kernel")?;
            own.unmount();
            own.mount_again();
        }
        _ => own.mount_again(),
    }
    check(judge, own, &format!("after {op:?}"))
}

fn unchanged(lowers: &Tree, dir: &Path) -> Result<(), String> {
    let differences = lowers.difference(&Tree::take(dir), Compare { is_ino: true, ..Compare::ALL });
    if differences.is_empty() { Ok(()) } else { Err(format!("a lower was changed: {differences:#?}")) }
}

fn check(judge: &World, own: &World, when: &str) -> Result<(), String> {
    let compare = Compare { is_dir_mtime: false, recent: 1_500_000_000, ..Compare::ALL };
    let shown = Tree::take(&own.side.root);
    let shown = if own.is_kernel { KernelForm::of_identity().read(shown) } else { shown };
    let differences = Tree::take(&judge.side.root).difference(&shown, compare);
    if differences.is_empty() { Ok(()) } else { Err(format!("{when}: judge | mlfs: {differences:#?}")) }
}

/// A volume is a mount for the judge. The kernel looks at mounts before it looks at names, so EXDEV comes before any other
/// error.
fn is_known(has_volume: bool, judge: &str, own: &str) -> bool {
    has_volume && judge.contains("os error 18") && own.contains("os error")
}
