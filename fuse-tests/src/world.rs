// SPDX-License-Identifier: MIT OR Apache-2.0
//! The world of the tests that are about mlfs alone: a store, layers and images, containers by name.
//!
//! At its end the lowers and the image part of the store must be what they were, whatever the test did.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::cli::{Mlfs, Outcome};
use crate::driver::{patiently, untouchable_of_store, with_own_root};
use crate::ground::Ground;
use crate::identity::{Identity, fuse_reason, identity};
use crate::image::{image_layers, write_oci};
use crate::layers::{Convention, LayerSpec};
use crate::sandbox::Sandbox;
use crate::skip::{check, skip};
use crate::tree::{Compare, Tree};

/// A sandbox with a store.
pub struct World {
    /// The sandbox.
    pub sandbox: Sandbox,
    untouchable: Mutex<Vec<(PathBuf, Tree)>>,
}

/// Runs a test body in a world of its own; skips where FUSE cannot be mounted.
pub fn world(body: impl FnOnce(&World)) {
    world_on(Ground::Ordinary, body);
}

/// [`world`] on a filesystem of its own.
pub fn world_on(ground: Ground, body: impl FnOnce(&World)) {
    check(|| {
        if let Some(reason) = fuse_reason() {
            skip(reason);
        }
        let world = World { sandbox: Sandbox::on(ground), untouchable: Mutex::default() };
        body(&world);
        world.assert_untouched();
    });
}

/// Skips unless root runs the suite.
pub fn needs_root(why: &str) {
    if identity() != Identity::Root {
        skip(format!("needs root: {why}"));
    }
}

impl World {
    /// mlfs over the world's store.
    pub fn mlfs(&self) -> Mlfs<'_> {
        Mlfs::new(&self.sandbox)
    }

    /// Writes a layer as a directory and hands out its path.
    pub fn layer(&self, name: &str, declare: impl FnOnce(&mut LayerSpec)) -> String {
        let mut layer = LayerSpec::new();
        declare(&mut layer);
        let dir = self.sandbox.dir(format!("lower/{name}"));
        layer.write_dir(&dir, if identity() == Identity::Root { Convention::Trusted } else { Convention::UserXattr });
        self.untouchable.lock().expect("lock").push((dir.clone(), Tree::take(&dir)));
        dir.display().to_string()
    }

    /// Loads an image of declared layers (bottom first) into the store under a name.
    pub fn load(&self, name: &str, layers: &[LayerSpec]) {
        let dir = self.sandbox.path(format!("image-{}", name.replace(['/', ':'], "-")));
        write_oci(&dir, &image_layers(&with_own_root(layers)), "latest");
        self.mlfs().ok(["image", "load", "-q", &format!("oci:{}", dir.display()), name]);
        self.guard_store();
    }

    /// From now on the image part of the store must stay as it is.
    pub fn guard_store(&self) {
        let mut untouchable = self.untouchable.lock().expect("lock");
        let store = self.sandbox.path("store");
        untouchable.retain(|(dir, _)| !dir.starts_with(&store));
        untouchable.extend(untouchable_of_store(&store).into_iter().map(|dir| (dir.clone(), Tree::take(&dir))));
    }

    /// The image part of the store may change (images are removed or loaded).
    pub fn unguard_store(&self) {
        let store = self.sandbox.path("store");
        self.untouchable.lock().expect("lock").retain(|(dir, _)| !dir.starts_with(&store));
    }

    fn assert_untouched(&self) {
        for (dir, tree) in self.untouchable.lock().expect("lock").iter() {
            let what = format!("{} was changed", dir.display());
            tree.assert_same(&Tree::take(dir), Compare { is_ino: true, ..Compare::ALL }, &what);
        }
    }

    /// A mount point of the world, made where it is missing.
    pub fn target(&self, name: &str) -> PathBuf {
        self.sandbox.dir(Path::new("mnt").join(name))
    }

    /// `mlfs mount --name NAME ARGS.. SOURCE? TARGET`: the arguments are everything before the mount point.
    pub fn try_mount(&self, name: &str, args: &[&str]) -> Outcome {
        let target = self.target(name).display().to_string();
        let head = ["mount", "--name", name];
        self.mlfs().run(head.iter().chain(args).copied().chain([target.as_str()]))
    }

    /// [`World::try_mount`] that must succeed; hands out the mount point.
    #[track_caller]
    pub fn mount(&self, name: &str, args: &[&str]) -> PathBuf {
        let printed = self.try_mount(name, args).ok();
        assert_eq!(printed, name, "mount prints the name");
        self.target(name)
    }

    /// `mlfs umount NAME`, patient with other tests' forks.
    #[track_caller]
    pub fn umount(&self, name: &str) {
        self.retry_busy(&["umount", name]).ok();
        assert!(!self.sandbox.mounts().contains(&self.target(name)), "{name} is still mounted");
    }

    /// Runs a command again for a while as long as it says that something is busy.
    pub fn retry_busy(&self, args: &[&str]) -> Outcome {
        let attempt = || match self.mlfs().run(args) {
            outcome if outcome.is_busy() => Err(outcome.stderr),
            outcome => Ok(outcome),
        };
        patiently(attempt).unwrap_or_else(|error| panic!("{args:?}: {error}"))
    }

    /// `mlfs rm NAME` of a stopped container, or `rm -f`.
    #[track_caller]
    pub fn rm(&self, name: &str) {
        self.umount(name);
        self.mlfs().ok(["rm", name]);
    }

    /// The state that `ps -a` tells of a container, or `None` where it is not listed.
    pub fn state(&self, name: &str) -> Option<String> {
        let listed = self.mlfs().json(["ps", "-a"]);
        let named = |value: &&serde_json::Value| {
            ["Name", "Names"].iter().any(|key| value[*key].as_str().is_some_and(|found| found == name))
        };
        let found = listed.iter().find(named)?;
        let state = ["State", "Status"].iter().find_map(|key| {
            let state = &found[*key];
            state.as_str().or_else(|| state["Status"].as_str()).map(str::to_owned)
        });
        Some(state.unwrap_or_else(|| panic!("no state in {found}")))
    }

    /// The pid of the process that serves a container: the one of this sandbox that names its mount point or name.
    pub fn daemon(&self, name: &str) -> rustix::process::Pid {
        let target = self.target(name).display().to_string();
        let all = self.sandbox.processes();
        let is_it = |line: &str| line.split(' ').any(|word| word == name || word == target);
        let found: Vec<_> = all.iter().filter(|(_, line)| is_it(line)).collect();
        assert_eq!(found.len(), 1, "one process serves {name}: {all:?}");
        rustix::process::Pid::from_raw(i32::try_from(found[0].0).expect("pid")).expect("pid")
    }
}

/// Kills a process with a signal and waits until nothing of it is left, its locks included.
pub fn kill(pid: rustix::process::Pid) {
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("kill");
    // A dying process has no command line any more while its threads still hold files.
    let dir = format!("/proc/{}", pid.as_raw_nonzero());
    eventually("a killed process is gone", || {
        let state = std::fs::read_to_string(format!("{dir}/stat")).unwrap_or_default();
        let threads = std::fs::read_dir(format!("{dir}/task")).map_or(0, Iterator::count);
        !Path::new(&dir).exists() || (threads <= 1 && state.contains(") Z "))
    });
}

/// The text of a file.
#[track_caller]
pub fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()));
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Writes a file.
#[track_caller]
pub fn write(path: impl AsRef<Path>, content: impl AsRef<[u8]>) {
    let path = path.as_ref();
    std::fs::write(path, content).unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
}

/// The names in a directory, sorted.
#[track_caller]
pub fn list(path: impl AsRef<Path>) -> Vec<String> {
    let path = path.as_ref();
    let dir = std::fs::read_dir(path).unwrap_or_else(|error| panic!("list {}: {error}", path.display()));
    let mut names: Vec<String> = dir.map(|e| e.expect("entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Waits for something that a cache may hold back for up to its life of a second.
#[track_caller]
pub fn eventually(what: &str, mut is_true: impl FnMut() -> bool) {
    for _ in 0..150 {
        if is_true() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    panic!("not within 3 s: {what}");
}
