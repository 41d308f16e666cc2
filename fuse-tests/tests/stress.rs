// SPDX-License-Identifier: MIT OR Apache-2.0
//! Eight threads at once on the same names: no errno that names alone do not explain, no hang, nothing lost; and the tree
//! is the same after a remount, and to the kernel.
//!
//! The operations are seeded (`MLFS_STRESS_SEED`), their order between threads is free.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use fuse_tests::driver::{Driver, Mount};
use fuse_tests::identity::fuse_reason;
use fuse_tests::kernel::KernelForm;
use fuse_tests::layers::LayerSpec;
use fuse_tests::random::Random;
use fuse_tests::sandbox::Sandbox;
use fuse_tests::world::{eventually, world};
use fuse_tests::{Compare, Tree, check, note, skip};
use rustix::fs::{CWD, RenameFlags, XattrFlags, renameat_with};
use rustix::io::Errno;

const THREADS: usize = 8;
const OPERATIONS: usize = 400;
/// Far more than it takes, far less than a CI job has.
const PATIENCE: Duration = Duration::from_secs(300);

/// What may happen to names that others change at the same time.
const EXPLAINED: [Errno; 7] =
    [Errno::NOENT, Errno::EXIST, Errno::NOTDIR, Errno::ISDIR, Errno::NOTEMPTY, Errno::INVAL, Errno::LOOP];

fn layers() -> Vec<LayerSpec> {
    (0..3)
        .map(|number| {
            let mut l = LayerSpec::new();
            for (at, dir) in ["a", "b", "a/c", "b/c", "a/c/d"].iter().enumerate() {
                l.dir(*dir).mode(0o755);
                for name in 0..4 {
                    if (at + name + number) % 3 == 0 {
                        let size = if name == 1 { 100_000 } else { 10 };
                        l.file(format!("{dir}/f{name}"), vec![b'0' + number as u8; size]);
                    }
                }
            }
            if number == 0 {
                (0..THREADS).for_each(|thread| {
                    l.file(format!("held-{thread}"), vec![b'.'; 70_000]);
                });
            }
            if number == 2 {
                l.whiteout("b/f2");
            }
            l
        })
        .collect()
}

fn path(random: &mut Random) -> PathBuf {
    let dirs = ["", "a", "b", "a/c", "b/c", "a/c/d", "a/e", "e"];
    Path::new(*random.pick(&dirs)).join(*random.pick(&["f0", "f1", "f2", "f3", "c", "d", "e"]))
}

fn operation(random: &mut Random) -> (&'static str, PathBuf, PathBuf) {
    let names = [
        "create", "append", "truncate", "chmod", "rename", "rename", "exchange", "link", "unlink", "unlink", "mkdir",
        "rmdir", "list", "list", "read", "setxattr", "symlink", "replace",
    ];
    (*random.pick(&names), path(random), path(random))
}

fn apply(name: &str, a: &Path, b: &Path) -> io::Result<()> {
    match name {
        "create" => OpenOptions::new().write(true).create_new(true).open(a)?.write_all(b"created"),
        "append" => OpenOptions::new().append(true).open(a)?.write_all(b"appended"),
        "truncate" => OpenOptions::new().write(true).open(a)?.set_len(5),
        "chmod" => std::fs::set_permissions(a, std::fs::Permissions::from_mode(0o751)),
        "rename" => std::fs::rename(a, b),
        "exchange" => Ok(renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE)?),
        "link" => match std::fs::hard_link(a, b) {
            // Of a directory.
            Err(error) if error.raw_os_error() == Some(Errno::PERM.raw_os_error()) => Ok(()),
            other => other,
        },
        "unlink" => std::fs::remove_file(a),
        "mkdir" => std::fs::create_dir(a),
        "rmdir" => std::fs::remove_dir(a),
        "list" => list(a.parent().expect("a parent")),
        "read" => std::fs::read(a).map(drop),
        "setxattr" => Ok(rustix::fs::setxattr(a, "user.s", b"value", XattrFlags::empty())?),
        "symlink" => std::os::unix::fs::symlink("f0", a),
        "replace" => {
            let aside = a.with_file_name(format!("aside-{:?}", std::thread::current().id()));
            std::fs::write(&aside, "replaced")?;
            let renamed = std::fs::rename(&aside, a);
            if renamed.is_err() {
                // Its directory may have moved away meanwhile.
                std::fs::remove_file(&aside).or(renamed)
            } else {
                renamed
            }
        }
        other => unreachable!("{other}"),
    }
}

// No name twice, and nothing that stays there all along is missed.
fn list(dir: &Path) -> io::Result<()> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        names.push(entry?.file_name());
    }
    names.sort();
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{} lists a name twice: {names:?}", dir.display());
    Ok(())
}

/// Aborts the program if it is not dropped in time.
struct Guard(Arc<Watch>);

impl Drop for Guard {
    fn drop(&mut self) {
        if let Ok(mut is_done) = self.0.is_done.lock() {
            *is_done = true;
        }
        self.0.done.notify_all();
    }
}

/// What every thread is doing, for the case that one never ends.
struct Watch {
    doing: Mutex<Vec<String>>,
    is_done: Mutex<bool>,
    done: Condvar,
}

impl Watch {
    fn start() -> Guard {
        let watch =
            Watch { doing: Mutex::new(vec![String::new(); THREADS]), is_done: Mutex::new(false), done: Condvar::new() };
        let watch = Arc::new(watch);
        let own = Arc::clone(&watch);
        std::thread::spawn(move || {
            let is_done = own.is_done.lock().expect("lock");
            let (is_done, _) = own.done.wait_timeout_while(is_done, PATIENCE, |is_done| !*is_done).expect("lock");
            if !*is_done {
                eprintln!("stress: no end after {PATIENCE:?}; the threads are at {:#?}", own.doing.lock());
                std::process::abort();
            }
        });
        Guard(watch)
    }
}

fn seed() -> u64 {
    std::env::var("MLFS_STRESS_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// One thread's operations below a folder. What it holds open is its own, however names move.
fn work(thread: usize, root: &Path, held: Option<File>, watch: &Watch, also: &[Errno]) {
    let mut random = Random::new(seed() * 1000 + thread as u64);
    let mut written = Vec::new();
    for number in 0..OPERATIONS {
        let (name, a, b) = operation(&mut random);
        watch.doing.lock().expect("lock")[thread] = format!("{number}: {name} {} {}", a.display(), b.display());
        if let Err(error) = apply(name, &root.join(&a), &root.join(&b)) {
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
            let is_explained = EXPLAINED.contains(&errno) || also.contains(&errno);
            assert!(is_explained, "{name} {} {}: {error}", a.display(), b.display());
        }
        if let Some(held) = &held {
            written.extend(format!("{thread}:{number};").bytes());
            held.write_at(
                format!("{thread}:{number};").as_bytes(),
                (written.len() - format!("{thread}:{number};").len()) as u64,
            )
            .expect("a write to what is held open");
        }
    }
    if let Some(held) = held {
        let mut found = vec![0; written.len()];
        held.read_exact_at(&mut found, 0).expect("a read of what is held open");
        assert!(found == written, "thread {thread}: something else stands in the file that it alone writes");
    }
}

fn on_layers(driver: Driver) {
    if let Some(reason) = fuse_reason() {
        skip(reason);
    }
    let sandbox = Sandbox::new();
    let mut mount = Mount::prepare(&sandbox, driver, &layers(), driver.convention(), &[]);
    let untouchable: Vec<_> =
        mount.untouchable(&sandbox).into_iter().map(|dir| (dir.clone(), Tree::take(&dir))).collect();
    mount.mount(&sandbox);
    let (root, watch) = (mount.target.clone(), Watch::start());
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (root, watch) = (&root, &watch.0);
            let held = OpenOptions::new().read(true).write(true).open(root.join(format!("held-{thread}")));
            scope.spawn(move || work(thread, root, Some(held.expect("held")), watch, &[]));
        }
    });
    let before = Tree::take(&root);
    mount.unmount(&sandbox);
    mount.mount(&sandbox);
    before.assert_same(&Tree::take(&root), Compare { is_ino: true, ..Compare::ALL }, "before and after a remount");
    mount.unmount(&sandbox);
    if driver != Driver::MlfsImage && Driver::KernelOverlay.skip_reason().is_none() {
        compare_with_kernel(&sandbox, &mount, &before);
    }
    for (dir, tree) in &untouchable {
        let what = format!("{} was changed", dir.display());
        tree.assert_same(&Tree::take(dir), Compare { is_ino: true, ..Compare::ALL }, &what);
    }
}

fn compare_with_kernel(sandbox: &Sandbox, mount: &Mount, shown: &Tree) {
    let form = KernelForm::of_identity();
    if let Some(mark) = form.find_unread_mark(&mount.upper) {
        note(&format!("the kernel does not mount the upper: {mark}"));
        return;
    }
    mount.mount_by_kernel(sandbox);
    let by_kernel = form.read(Tree::take(&mount.target));
    mount.unmount_by_kernel();
    shown.assert_same(&by_kernel, Compare::ALL, "mlfs and kernel overlayfs over the same upper");
}

#[test]
fn eight_threads_on_directory_layers() {
    check(|| on_layers(Driver::MlfsMount));
}

#[test]
fn eight_threads_on_an_image() {
    check(|| on_layers(Driver::MlfsImage));
}

#[test]
fn two_mounts_over_one_volume() {
    world(|w| {
        let layer = w.layer("one", |l| {
            l.dir("v");
        });
        let roots = ["one", "two"].map(|name| w.mount(name, &["--layer", &layer, "-v", "vol:/v"]).join("v"));
        for dir in ["a", "b", "a/c"] {
            std::fs::create_dir(roots[0].join(dir)).expect("mkdir");
        }
        let watch = Watch::start();
        // What another mount removes while a name is being walked may be stale.
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (root, watch) = (&roots[thread % 2], &watch.0);
                scope.spawn(move || work(thread, root, None, watch, &[Errno::STALE]));
            }
        });
        let data = w.sandbox.path("store/volumes/vol/_data");
        let compare = Compare { is_root: false, ..Compare::ALL };
        for root in &roots {
            eventually("both mounts show what the host has", || {
                Tree::take(&data).difference(&Tree::take(root), compare).is_empty()
            });
        }
        w.rm("one");
        w.rm("two");
    });
}
