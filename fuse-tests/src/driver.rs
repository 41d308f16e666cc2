// SPDX-License-Identifier: MIT OR Apache-2.0
//! The filesystems that scenarios run on.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::cli::{Mlfs, Outcome, bare, run};
use crate::identity::{Identity, fuse_reason, has_program, identity};
use crate::image::{image_layers, write_oci};
use crate::layers::{BASE_TIME, Convention, LayerSpec, What};
use crate::sandbox::{Sandbox, unmount};

/// A filesystem that merges layers under an upper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// Overlayfs of the kernel, the judge.
    KernelOverlay,
    /// The C fuse-overlayfs, the rival.
    FuseOverlayfs,
    /// `mlfs overlay -o lowerdir=..`.
    MlfsOverlay,
    /// `mlfs mount --layer DIR..`, remounted by `mlfs start`.
    MlfsMount,
    /// `mlfs image load` and `mlfs mount IMAGE`, remounted by `mlfs start`.
    MlfsImage,
}

impl Driver {
    /// Whether this is mlfs.
    pub fn is_mlfs(self) -> bool {
        matches!(self, Driver::MlfsOverlay | Driver::MlfsMount | Driver::MlfsImage)
    }

    /// Why it cannot run here.
    pub fn skip_reason(self) -> Option<String> {
        match self {
            Driver::KernelOverlay if identity() == Identity::User => {
                Some("kernel overlayfs: an ordinary user cannot mount it".into())
            }
            Driver::KernelOverlay => {
                let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
                (!known.contains("\toverlay\n")).then(|| "kernel overlayfs: not in this kernel".into())
            }
            Driver::FuseOverlayfs if !has_program("fuse-overlayfs") => Some("fuse-overlayfs: not installed".into()),
            _ => fuse_reason(),
        }
    }

    /// The whiteout convention that its lowers are written in unless a scenario asks for another.
    pub fn convention(self) -> Convention {
        match (self, identity()) {
            (_, Identity::Root) => Convention::Trusted,
            (Driver::FuseOverlayfs, _) => Convention::FuseOverlayfs,
            _ => Convention::UserXattr,
        }
    }
}

/// Layers that are or were mounted.
pub struct Mount {
    driver: Driver,
    /// The mount point.
    pub target: PathBuf,
    /// The upper, where the driver lets us choose it.
    pub upper: PathBuf,
    work: PathBuf,
    lowers: Vec<PathBuf>,
    options: Vec<String>,
    is_new: bool,
}

impl Mount {
    /// Writes the layers (bottom first) below the sandbox and prepares the mount.
    pub fn prepare(
        sandbox: &Sandbox,
        driver: Driver,
        layers: &[LayerSpec],
        convention: Convention,
        options: &[String],
    ) -> Mount {
        let target = sandbox.dir("merged");
        let ground = if driver.is_mlfs() { sandbox.ground() } else { sandbox.root() };
        let upper = ground.join("upper");
        // `mlfs mount --upper X` works beside it.
        let work = ground.join(if driver == Driver::MlfsMount { "upper.work" } else { "work" });
        std::fs::create_dir(&upper).expect("upper");
        std::fs::create_dir(&work).expect("work");
        let mut lowers = Vec::new();
        if driver == Driver::MlfsImage {
            let image = sandbox.path("image");
            write_oci(&image, &image_layers(&with_own_root(layers)), "test");
            Mlfs::new(sandbox).ok(["image", "load", "-q", &format!("oci:{}:test", image.display()), "test"]);
        } else {
            for (position, layer) in layers.iter().enumerate() {
                let dir = sandbox.dir(format!("lower/{}", position + 1));
                layer.write_dir(&dir, convention);
                lowers.push(dir);
            }
        }
        Mount { driver, target, upper, work, lowers, options: options.to_vec(), is_new: true }
    }

    /// What must not change while containers write: the lowers, or the image part of the store.
    pub fn untouchable(&self, sandbox: &Sandbox) -> Vec<PathBuf> {
        if self.driver != Driver::MlfsImage {
            return self.lowers.clone();
        }
        let parts = untouchable_of_store(Mlfs::new(sandbox).root());
        assert!(!parts.is_empty(), "a loaded image leaves something in the store");
        parts
    }

    /// Whether this is the judge's.
    pub fn is_judge(&self) -> bool {
        self.driver == Driver::KernelOverlay
    }

    /// Mounts (again).
    pub fn mount(&mut self, sandbox: &Sandbox) {
        // The kernel holds an upper for a moment after its unmount: "already mounted or mount point busy".
        let is_judge = self.driver == Driver::KernelOverlay;
        let attempt = || match self.try_mount(sandbox) {
            outcome if is_judge && outcome.code != 0 && is_held(&outcome.stderr) => Err(outcome.stderr),
            outcome => Ok(outcome),
        };
        patiently(attempt).unwrap_or_else(|error| panic!("mount: {error}")).ok();
        self.is_new = false;
        let mounted = sandbox.mounts();
        assert!(mounted.contains(&self.target), "{:?} returned 0 before the mount was there", self.driver);
    }

    /// Mounts the same lowers and the same upper with kernel overlayfs. mlfs must have let go of them.
    pub fn mount_by_kernel(&self, sandbox: &Sandbox) {
        let attempt = || match self.try_kernel(sandbox) {
            outcome if outcome.code != 0 && is_held(&outcome.stderr) => Err(outcome.stderr),
            outcome => Ok(outcome),
        };
        patiently(attempt).unwrap_or_else(|error| panic!("mount by the kernel: {error}")).ok();
    }

    /// Takes back [`Mount::mount_by_kernel`].
    pub fn unmount_by_kernel(&self) {
        patiently(|| unmount(&self.target, false)).unwrap_or_else(|error| panic!("umount: {error}"));
    }

    fn try_kernel(&self, sandbox: &Sandbox) -> Outcome {
        let form = match identity() {
            Identity::Root => "redirect_dir=on,index=on,metacopy=on",
            _ => "userxattr",
        };
        let options = format!("{},{form}", self.overlay_options());
        let mut command = Command::new("mount");
        run(sandbox, command.args(["-t", "overlay", "overlay", "-o", &options]).arg(&self.target))
    }

    fn overlay_options(&self) -> String {
        let top_first: Vec<String> = self.lowers.iter().rev().map(|dir| dir.display().to_string()).collect();
        let (lowers, upper, work) = (top_first.join(":"), self.upper.display(), self.work.display());
        format!("lowerdir={lowers},upperdir={upper},workdir={work}")
    }

    fn try_mount(&self, sandbox: &Sandbox) -> Outcome {
        let options = std::iter::once(self.overlay_options()).chain(self.options.clone()).collect::<Vec<_>>().join(",");
        let mlfs = Mlfs::new(sandbox);
        match self.driver {
            Driver::KernelOverlay => self.try_kernel(sandbox),
            Driver::FuseOverlayfs => {
                run(sandbox, Command::new("fuse-overlayfs").args(["-o", &options]).arg(&self.target))
            }
            Driver::MlfsOverlay => run(sandbox, bare(sandbox).args(["overlay", "-o", &options]).arg(&self.target)),
            Driver::MlfsMount | Driver::MlfsImage if !self.is_new => {
                run(sandbox, mlfs.command().args(["start", "box"]).arg(&self.target))
            }
            Driver::MlfsMount => {
                let mut command = mlfs.command();
                command.args(["mount", "--name", "box"]).arg("--upper").arg(&self.upper).args(&self.options);
                for lower in &self.lowers {
                    command.arg("--layer").arg(lower);
                }
                run(sandbox, command.arg(&self.target))
            }
            Driver::MlfsImage => {
                let mut command = mlfs.command();
                run(sandbox, command.args(["mount", "--name", "box"]).args(&self.options).arg("test").arg(&self.target))
            }
        }
    }

    /// Unmounts and waits for the daemon.
    pub fn unmount(&self, sandbox: &Sandbox) {
        match self.driver {
            Driver::MlfsMount | Driver::MlfsImage => {
                patiently(|| match Mlfs::new(sandbox).run(["umount", "box"]) {
                    outcome if outcome.is_busy() => Err(outcome.stderr),
                    outcome => Ok(outcome),
                })
                .unwrap_or_else(|error| panic!("umount: {error}"))
                .ok();
                // umount's promise: when it returns 0, no process and no mount is left.
                assert_eq!(sandbox.processes(), [], "mlfs umount left a process behind");
            }
            _ => {
                patiently(|| unmount(&self.target, false)).unwrap_or_else(|error| panic!("umount: {error}"));
                let left = sandbox.wait_for_processes(Duration::from_secs(10));
                left.unwrap_or_else(|left| panic!("the daemon goes on after the unmount: {left}"));
            }
        }
        assert!(!sandbox.mounts().contains(&self.target), "still mounted after the unmount");
    }
}

/// Layers of an image whose root directory belongs to whoever runs the suite, as a directory as a layer does.
pub fn with_own_root(layers: &[LayerSpec]) -> Vec<LayerSpec> {
    let mut layers = layers.to_vec();
    if let Some(bottom) = layers.first_mut() {
        let mut root = LayerSpec::new();
        root.raw(".", What::Dir).mtime(BASE_TIME, 0);
        bottom.items.splice(0..0, root.items);
    }
    layers
}

/// The folders of a store that hold images: all but those of containers and volumes, locks and what is on its way.
pub fn untouchable_of_store(store: &Path) -> Vec<PathBuf> {
    let is_state = |name: &std::ffi::OsStr| STATE.iter().any(|state| name == *state);
    let entries = std::fs::read_dir(store).expect("store").flatten();
    entries.filter(|entry| !is_state(&entry.file_name()) && entry.path().is_dir()).map(|entry| entry.path()).collect()
}

const STATE: [&str; 5] = ["containers", "volumes", "locks", "staging", "trash"];

/// Does the kernel still hold an upper? mount(8) says so in two ways.
fn is_held(stderr: &str) -> bool {
    stderr.contains("busy") || stderr.contains("already mounted")
}

/// Tries an unmount for a while: another test's child holds copies of our descriptors between its fork and its exec.
pub fn patiently<T>(mut attempt: impl FnMut() -> Result<T, String>) -> Result<T, String> {
    for _ in 0..60 {
        match attempt() {
            Err(error) if is_held(&error) || error.contains("is in use") => {
                std::thread::sleep(Duration::from_millis(30))
            }
            other => return other,
        }
    }
    attempt()
}

/// The path of a lower of a sandbox, for tests that mount by themselves.
pub fn lower(sandbox: &Sandbox, name: &str, layer: &LayerSpec, convention: Convention) -> PathBuf {
    let dir = sandbox.dir(Path::new("lower").join(name));
    layer.write_dir(&dir, convention);
    dir
}
