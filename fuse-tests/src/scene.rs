// SPDX-License-Identifier: MIT OR Apache-2.0
//! A scenario's world: layers, a mount, and the checks that hold after every scenario.
//!
//! After the scenario's own assertions the tree is taken, mounted again and compared; no byte of a lower, object or blob
//! may have changed. Where the format of the upper is shared, the kernel mounts what mlfs has written and must show the
//! same tree, and mlfs once more after the kernel. As root the tree that mlfs shows is also compared with the one that
//! kernel overlayfs shows after the same scenario.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::cli::Outcome;
use crate::driver::{Driver, Mount};
use crate::host;
use crate::identity::{Identity, has_ids, identity};
use crate::kernel::KernelForm;
use crate::layers::{Convention, LayerSpec};
use crate::sandbox::Sandbox;
use crate::skip::{note, panic_message, skip};
use crate::tree::{Compare, Tree};

/// The world of one scenario on one driver.
pub struct Scene {
    /// Its sandbox.
    pub sandbox: Sandbox,
    /// The filesystem it runs on.
    pub driver: Driver,
    /// Who runs it.
    pub identity: Identity,
    layers: Vec<LayerSpec>,
    convention: Convention,
    options: Vec<String>,
    mount: Option<Mount>,
    untouchable: Vec<(PathBuf, Tree)>,
    compare: Compare,
    is_judged: bool,
    not_shared: Option<String>,
}

/// A scenario.
pub type Scenario = fn(&mut Scene);

impl Scene {
    fn new(driver: Driver) -> Scene {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let recent = i64::try_from(started).unwrap_or(i64::MAX) - 1;
        Scene {
            sandbox: if driver.is_mlfs() { Sandbox::on_ground() } else { Sandbox::new() },
            driver,
            identity: identity(),
            layers: Vec::new(),
            convention: driver.convention(),
            options: Vec::new(),
            mount: None,
            untouchable: Vec::new(),
            compare: Compare { recent, is_root: false, ..Compare::ALL },
            is_judged: true,
            not_shared: None,
        }
    }

    /// Declares the next layer, bottom first.
    pub fn layer(&mut self, declare: impl FnOnce(&mut LayerSpec)) {
        let mut layer = LayerSpec::new();
        declare(&mut layer);
        self.layers.push(layer);
    }

    /// Lowers are written in this whiteout convention.
    pub fn convention(&mut self, convention: Convention) {
        self.convention = convention;
    }

    /// Does not compare the outcome with kernel overlayfs, for a reason.
    pub fn is_not_judged(&mut self, _reason: &str) {
        self.is_judged = false;
    }

    /// What mlfs leaves in the upper is not what the kernel reads, for a reason that `docs/semantics.md` tells.
    pub fn is_not_shared_with_kernel(&mut self, reason: &str) {
        self.not_shared = Some(reason.to_owned());
    }

    /// Contents are read and written through the kernel's cache, also where the kernel could do so by itself.
    pub fn cached(&mut self) {
        self.options = match self.driver {
            Driver::MlfsOverlay => vec!["io=cached".into()],
            Driver::MlfsMount | Driver::MlfsImage => vec!["--io".into(), "cached".into()],
            Driver::KernelOverlay | Driver::FuseOverlayfs => Vec::new(),
        };
    }

    /// Does the kernel read and write backing files by itself here, and readers of before a copy-up the layer's?
    pub fn passes(&self) -> bool {
        // An image's bodies lie in the store: the kernel stacks nothing on files of overlayfs.
        let is_stacked = self.driver == Driver::MlfsImage && self.sandbox.is_ground_overlayfs();
        self.driver.is_mlfs() && self.identity == Identity::Root && self.options.is_empty() && !is_stacked
    }

    /// The scenario changes hard links of layers: the kernel reads the records of root only.
    pub fn has_lower_links(&mut self) {
        if self.identity != Identity::Root {
            self.is_not_shared_with_kernel("without root, kernel overlayfs has no index of hard links");
        }
    }

    /// Skips the scenario here.
    pub fn skip_when(&self, condition: bool, reason: &str) {
        if condition {
            skip(reason);
        }
    }

    /// Whether hard links of lowers stay one file: kernel overlayfs needs index=on, which user namespaces lack.
    pub fn has_index(&self) -> bool {
        !(self.driver == Driver::KernelOverlay && self.identity == Identity::Namespace)
    }

    /// Only root's scenario: it needs other users, devices or every id.
    pub fn needs_root(&self, why: &str) {
        if self.identity != Identity::Root {
            skip(format!("needs root: {why}"));
        }
    }

    /// Only where files can be given to other users: as root, and in a namespace with a range of ids.
    pub fn needs_ids(&self, why: &str) {
        if !has_ids() {
            skip(format!("needs root: {why}"));
        }
    }

    /// Mounts what was declared.
    pub fn mount(&mut self) {
        let mut mount = Mount::prepare(&self.sandbox, self.driver, &self.layers, self.convention, &self.options);
        self.untouchable =
            mount.untouchable(&self.sandbox).into_iter().map(|dir| (dir.clone(), Tree::take(&dir))).collect();
        mount.mount(&self.sandbox);
        self.mount = Some(mount);
    }

    /// Unmounts and mounts again.
    pub fn remount(&mut self) {
        self.unmount();
        self.mounted().mount_again();
    }

    /// Unmounts.
    pub fn unmount(&mut self) {
        let Scene { sandbox, mount, .. } = self;
        mount.as_ref().expect("mounted").unmount(sandbox);
    }

    fn mounted(&mut self) -> Mounted<'_> {
        let Scene { sandbox, mount, .. } = self;
        Mounted { sandbox, mount: mount.as_mut().expect("mounted") }
    }

    /// The merged directory.
    pub fn root(&self) -> PathBuf {
        self.sandbox.path("merged")
    }

    /// A path in the merged directory.
    pub fn p(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root().join(path)
    }

    /// The upper's folder, for the drivers that take one.
    pub fn upper(&self) -> PathBuf {
        self.mount.as_ref().expect("mounted").upper.clone()
    }

    /// The merged tree.
    pub fn tree(&self) -> Tree {
        Tree::take(&self.root())
    }

    /// The content of a file of the merged tree.
    #[track_caller]
    pub fn read(&self, path: &str) -> String {
        let bytes = std::fs::read(self.p(path)).unwrap_or_else(|error| panic!("read {path}: {error}"));
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Writes a file of the merged tree.
    #[track_caller]
    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.p(path), content).unwrap_or_else(|error| panic!("write {path}: {error}"));
    }

    /// Whether a name exists, symlinks not followed.
    pub fn has(&self, path: &str) -> bool {
        self.p(path).symlink_metadata().is_ok()
    }

    /// Asserts that a directory lists exactly these names.
    #[track_caller]
    pub fn lists(&self, path: &str, names: &[&str]) {
        let dir = std::fs::read_dir(self.p(path)).unwrap_or_else(|error| panic!("list {path}: {error}"));
        let mut found: Vec<String> =
            dir.map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned()).collect();
        found.sort();
        assert_eq!(found, names, "{path} lists something else");
        for name in names {
            assert!(self.p(path).join(name).symlink_metadata().is_ok(), "{path}/{name} is listed but not found");
        }
    }

    /// A shell script in the merged directory.
    pub fn sh(&self, script: &str) -> Outcome {
        host::sh(&self.sandbox, &self.root(), script)
    }

    /// A shell script in the merged directory as another user (root only).
    pub fn sh_as(&self, uid: u32, script: &str) -> Outcome {
        host::sh_as(&self.sandbox, &self.root(), uid, uid, script)
    }

    /// A Python script in the merged directory.
    pub fn python(&self, script: &str) -> Outcome {
        host::python(&self.sandbox, &self.root(), script)
    }

    /// A Python script in the merged directory must print what it prints in a plain directory of the host that holds the
    /// same files (declared without marks), and both trees must be equal afterwards: the host's own filesystem is the
    /// judge, in the place of kernel overlayfs where that deviates from it. Once in a scenario.
    #[track_caller]
    pub fn as_on_host(&mut self, script: &str) {
        // The filesystem that the upper's files lie on in the end has the last word on sizes, times and attributes.
        let ground = if self.sandbox.is_ground_overlayfs() { self.sandbox.root() } else { self.sandbox.ground() };
        let host = ground.join("host");
        std::fs::create_dir(&host).unwrap_or_else(|error| panic!("{}: {error}", host.display()));
        for layer in &self.layers {
            layer.write_dir(&host, self.convention);
        }
        let expected = host::python(&self.sandbox, &host, script).ok();
        let got = self.python(script).ok();
        let differences = differing(&expected, &got);
        if self.driver == Driver::KernelOverlay && !differences.is_empty() {
            skip(format!("kernel overlayfs deviates from its host: {}", differences.replace('\n', " ")));
        }
        assert!(differences.is_empty(), "other than on the host (-):\n{differences}");
        if self.driver.is_mlfs() {
            Tree::take(&host).assert_same(&self.tree(), self.compare, "the host and mlfs after the same script");
        }
        self.is_judged = false;
    }

    // What holds after every scenario; hands out the final tree.
    fn finish(&mut self) -> Tree {
        let before = self.tree();
        self.remount();
        let after = self.tree();
        // The rival is not held to inode numbers and to the times that its write-back cache invents.
        let is_ino = self.driver.is_mlfs();
        let recent = if self.driver == Driver::FuseOverlayfs { self.compare.recent } else { i64::MAX };
        before.assert_same(&after, Compare { is_ino, recent, ..self.compare }, "before and after a remount");
        self.unmount();
        if let Some(form) = self.form_shared_with_kernel() {
            self.compare_with_kernel(&before, form);
        }
        for (dir, tree) in &self.untouchable {
            let what = format!("{} was changed by the mount", dir.display());
            tree.assert_same(&Tree::take(dir), Compare { is_ino: true, ..Compare::ALL }, &what);
        }
        before
    }
}

// The lines that differ, those of `expected` behind a `-`.
fn differing(expected: &str, got: &str) -> String {
    let (expected, got): (Vec<&str>, Vec<&str>) = (expected.lines().collect(), got.lines().collect());
    let lines = expected.len().max(got.len());
    let pairs = (0..lines).map(|at| (expected.get(at), got.get(at))).filter(|(a, b)| a != b);
    pairs.map(|(a, b)| format!("- {}\n+ {}\n", a.unwrap_or(&""), b.unwrap_or(&""))).collect()
}

// In which form the kernel can read what mlfs has left in the upper. Why it cannot is printed.
impl Scene {
    fn form_shared_with_kernel(&self) -> Option<KernelForm> {
        if !matches!(self.driver, Driver::MlfsMount | Driver::MlfsOverlay)
            || Driver::KernelOverlay.skip_reason().is_some()
        {
            return None;
        }
        let form = KernelForm::of_identity();
        let reason = if let Some(reason) = &self.not_shared {
            reason.clone()
        } else if self.convention != Driver::KernelOverlay.convention() {
            "its layers are not in the kernel's convention".into()
        } else if self.sandbox.is_ground_overlayfs() {
            "the kernel takes no upper on overlayfs".into()
        } else if let Some(mark) = form.find_unread_mark(&self.upper()) {
            mark
        } else {
            return Some(form);
        };
        note(&format!("the kernel does not mount the upper: {reason}"));
        None
    }

    // The kernel mounts the upper and shows the same tree; then mlfs shows it again.
    fn compare_with_kernel(&mut self, shown: &Tree, form: KernelForm) {
        let mounted = self.mounted();
        mounted.mount.mount_by_kernel(mounted.sandbox);
        let by_kernel = self.tree();
        self.mounted().mount.unmount_by_kernel();
        let compare = Compare { recent: i64::MAX, is_ino: false, ..self.compare };
        shown.assert_same(&form.read(by_kernel), compare, "mlfs and kernel overlayfs over the same upper");
        self.mounted().mount_again();
        let again = self.tree();
        self.unmount();
        let compare = Compare { recent: i64::MAX, is_ino: true, ..self.compare };
        shown.assert_same(&again, compare, "before and after the kernel had the upper");
    }
}

struct Mounted<'a> {
    sandbox: &'a Sandbox,
    mount: &'a mut Mount,
}

impl Mounted<'_> {
    fn mount_again(&mut self) {
        self.mount.mount(self.sandbox);
    }
}

/// Runs a scenario on a driver.
pub fn run(driver: Driver, name: &str, scenario: Scenario) {
    if let Some(reason) = driver.skip_reason() {
        skip(reason);
    }
    if driver == Driver::FuseOverlayfs {
        // The rival's mistakes are told, not held against us; some of them come and go with the load of the machine.
        let message = panic_message(|| {
            run_once(driver, scenario);
        });
        if let Some(message) = message {
            let seen = message.lines().next().unwrap_or_default();
            skip(known_wrong(name).map_or_else(
                || format!("wrong in fuse-overlayfs, not listed in rival-failures: {seen}"),
                |known| format!("wrong in fuse-overlayfs: {known}"),
            ));
        }
        return;
    }
    let (tree, compare, is_judged) = run_once(driver, scenario);
    let has_judge = identity() == Identity::Root && Driver::KernelOverlay.skip_reason().is_none();
    if driver == Driver::MlfsOverlay && is_judged && has_judge {
        let (judge, ..) = run_once(Driver::KernelOverlay, scenario);
        judge.assert_same(&tree, compare, "kernel overlayfs and mlfs after the same scenario");
    }
}

fn run_once(driver: Driver, scenario: Scenario) -> (Tree, Compare, bool) {
    let mut scene = Scene::new(driver);
    scenario(&mut scene);
    (scene.finish(), scene.compare, scene.is_judged)
}

// `fuse-tests/rival-failures`: what the rival is known to do wrong, so that the suite says it instead of failing.
fn known_wrong(name: &str) -> Option<&'static str> {
    let lines = include_str!("../rival-failures").lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.split_once(' ')).find(|(known, _)| *known == name).map(|(_, reason)| reason.trim())
}

/// Makes a test of every named scenario on every driver: `kernel::NAME`, `fuse_overlayfs::NAME`, ..
#[macro_export]
macro_rules! scenarios {
    ($($name:ident),* $(,)?) => {
        $crate::scenarios!(@driver kernel KernelOverlay: $($name),*);
        $crate::scenarios!(@driver fuse_overlayfs FuseOverlayfs: $($name),*);
        $crate::scenarios!(@driver mlfs_overlay MlfsOverlay: $($name),*);
        $crate::scenarios!(@driver mlfs_mount MlfsMount: $($name),*);
        $crate::scenarios!(@driver mlfs_image MlfsImage: $($name),*);
    };
    (@driver $module:ident $driver:ident: $($name:ident),*) => {
        mod $module {
            $(
                #[test]
                fn $name() {
                    let name = concat!(module_path!(), "::", stringify!($name));
                    let name = name.split("::").filter(|part| *part != stringify!($module)).skip(1);
                    let name = name.collect::<Vec<_>>().join("::");
                    $crate::check(|| $crate::scene::run($crate::driver::Driver::$driver, &name, super::$name));
                }
            )*
        }
    };
}
