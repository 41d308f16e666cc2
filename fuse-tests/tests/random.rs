// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random operations on mlfs and on kernel overlayfs at once: every answer and the trees must be the same.
//!
//! A seed is a run: `MLFS_TEST_SEED=N` repeats one. A run that failed once becomes a named scenario.

use std::fmt::Debug;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use fuse_tests::cli::{bare, run};
use fuse_tests::driver::patiently;
use fuse_tests::layers::{Convention, What};
use fuse_tests::sandbox::unmount;
use fuse_tests::world::{World, needs_root, world};
use fuse_tests::{Compare, LayerSpec, Tree};
use rustix::fs::{CWD, RenameFlags, XattrFlags, renameat_with};

/// A small generator: reproducible anywhere.
struct Random(u64);

impl Random {
    fn next(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 16).unwrap_or(0) % bound
    }

    fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.next(of.len())]
    }

    // A path of one to three names out of few: collisions are the point.
    fn path(&mut self) -> String {
        let depth = [1, 1, 2, 2, 3][self.next(5)];
        (0..depth).map(|_| self.one(&["a", "b", "c", "d", "e"])).collect::<Vec<_>>().join("/")
    }
}

fn layers(random: &mut Random) -> Vec<LayerSpec> {
    (0..3)
        .map(|number| {
            let mut layer = LayerSpec::new();
            for item in 0..12 {
                let path = random.path();
                let stands = |layer: &LayerSpec, path: &str| layer.items.iter().any(|i| i.path == path.as_bytes());
                let parents: Vec<&str> = path.match_indices('/').map(|(at, _)| &path[..at]).collect();
                let is_dir = |i: &&fuse_tests::layers::Item, p: &&str| i.path == p.as_bytes() && i.what != What::Dir;
                let is_blocked = parents.iter().any(|parent| layer.items.iter().any(|i| is_dir(&i, parent)));
                if stands(&layer, &path) || is_blocked {
                    continue;
                }
                match random.next(8) {
                    0 => layer.symlink(&path, "a"),
                    1 | 2 => layer.dir(&path).mode([0o755, 0o700, 0o1777][random.next(3)]),
                    // At the top only: the judge shows whiteouts in directories that are not merged.
                    3 if number > 0 && parents.is_empty() => layer.whiteout(&path),
                    4 if number > 0 => {
                        layer.opaque(&path);
                        continue;
                    }
                    _ => layer.file(&path, format!("layer {number} item {item} ").repeat(random.next(400))).mode(0o644),
                };
            }
            layer.file("always", "there");
            layer
        })
        .collect()
}

fn outcome<T: Debug>(result: std::io::Result<T>) -> String {
    match result {
        Ok(value) => format!("{value:?}"),
        Err(error) => {
            format!("error {}", error.raw_os_error().map_or_else(|| error.to_string(), |code| code.to_string()))
        }
    }
}

fn names(path: &Path) -> std::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

type Operation = Box<dyn Fn(&Path) -> String>;

/// One operation, drawn once and done on both roots.
fn operation(random: &mut Random) -> (String, Operation) {
    let (one, two) = (random.path(), random.path());
    let (size, offset) = (random.next(9000), random.next(9000) as u64);
    let kind = random.next(20);
    let text = format!("{kind} {one} {two} {size} {offset}");
    let run = move |root: &Path| -> String {
        let (path, other) = (root.join(&one), root.join(&two));
        let body = vec![b'a' + (size % 26) as u8; size];
        match kind {
            0 | 1 => outcome(std::fs::write(&path, &body)),
            2 => {
                outcome(std::fs::OpenOptions::new().append(true).open(&path).and_then(|mut file| file.write_all(&body)))
            }
            3 => outcome(std::fs::OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(offset))),
            4 => outcome(std::fs::OpenOptions::new().read(true).write(true).open(&path).and_then(|mut file| {
                file.seek(SeekFrom::Start(offset))?;
                file.write_all(&body)?;
                file.rewind()?;
                let mut all = Vec::new();
                file.read_to_end(&mut all)?;
                Ok(fuse_tests::tree::sha256(&all))
            })),
            5 => outcome(std::fs::OpenOptions::new().write(true).create_new(true).open(&path).map(|_| ())),
            6 => outcome(std::fs::create_dir(&path)),
            7 => outcome(std::fs::remove_dir(&path)),
            8 | 9 => outcome(std::fs::remove_file(&path)),
            10 => outcome(std::fs::remove_dir_all(&path)),
            11 | 12 => outcome(std::fs::rename(&path, &other)),
            13 => outcome(std::fs::hard_link(&path, &other)),
            14 => outcome(std::os::unix::fs::symlink(&one, &other)),
            15 => {
                let mode = [0o600, 0o755, 0o4711, 0o1777][size % 4];
                let is_link = path.symlink_metadata().is_ok_and(|meta| meta.is_symlink());
                if is_link {
                    "a link".into()
                } else {
                    outcome(std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)))
                }
            }
            16 => {
                let set = rustix::fs::lsetxattr(&path, "user.mark", &body[..size.min(200)], XattrFlags::empty());
                outcome(set.map_err(std::io::Error::from))
            }
            17 => {
                let flags = if size % 2 == 0 { RenameFlags::EXCHANGE } else { RenameFlags::NOREPLACE };
                outcome(renameat_with(CWD, &path, CWD, &other, flags).map_err(std::io::Error::from))
            }
            18 => outcome(names(&path)),
            _ => outcome(std::fs::read(&path).map(|all| fuse_tests::tree::sha256(&all))),
        }
    };
    (text, Box::new(run))
}

struct Pair {
    ours: PathBuf,
    judge: PathBuf,
}

fn mount(w: &World, lowers: &[String]) -> Pair {
    let (ours, judge) = (w.target("ours"), w.target("judge"));
    for (target, name) in [(&ours, "ours"), (&judge, "judge")] {
        let (upper, work) = (w.sandbox.dir(format!("upper-{name}")), w.sandbox.dir(format!("work-{name}")));
        let options = format!("lowerdir={},upperdir={},workdir={}", lowers.join(":"), upper.display(), work.display());
        let mut command = if name == "ours" { bare(&w.sandbox) } else { Command::new("mount") };
        if name == "ours" {
            command.args(["overlay", "-o", &options]).arg(target);
        } else {
            let options = format!("{options},redirect_dir=on,index=on,metacopy=off");
            command.args(["-t", "overlay", "overlay", "-o", &options]).arg(target);
        }
        run(&w.sandbox, &mut command).ok();
    }
    Pair { ours, judge }
}

fn run_seed(w: &World, seed: u64, steps: usize) {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut lowers = Vec::new();
    for (number, layer) in layers(&mut random).iter().enumerate() {
        let dir = w.sandbox.dir(format!("lower-{seed}/{number}"));
        layer.write_dir(&dir, Convention::Trusted);
        lowers.insert(0, dir.display().to_string());
    }
    let before: Vec<Tree> = lowers.iter().map(|dir| Tree::take(Path::new(dir))).collect();
    let mut pair = mount(w, &lowers);
    let compare = Compare { is_mtime: false, is_dir_mtime: false, is_root: false, ..Compare::ALL };
    let mut log: Vec<String> = Vec::new();
    let same = |pair: &Pair, log: &[String]| {
        let what = format!("seed {seed}: judge and mlfs after\n{}", log.join("\n"));
        Tree::take(&pair.judge).assert_same(&Tree::take(&pair.ours), compare, &what);
    };
    same(&pair, &log);
    for step in 0..steps {
        let (text, operation) = operation(&mut random);
        let (judge, ours) = (operation(&pair.judge), operation(&pair.ours));
        log.push(format!("{step}: {text} -> {judge}"));
        assert_eq!(
            judge,
            ours,
            "seed {seed}: the judge and mlfs answer differently to the last of\n{}",
            log.join("\n")
        );
        if step % 25 == 24 {
            same(&pair, &log);
        }
        if step % 60 == 59 {
            for target in [&pair.ours, &pair.judge] {
                patiently(|| unmount(target, false)).expect("umount");
            }
            pair = mount(w, &lowers);
            log.push("remount".into());
            same(&pair, &log);
        }
    }
    for target in [&pair.ours, &pair.judge] {
        patiently(|| unmount(target, false)).expect("umount");
    }
    for (dir, tree) in lowers.iter().zip(before) {
        tree.assert_same(&Tree::take(Path::new(dir)), Compare { is_ino: true, ..Compare::ALL }, "a lower was changed");
    }
    for name in ["ours", "judge"] {
        for part in ["upper", "work"] {
            std::fs::remove_dir_all(w.sandbox.path(format!("{part}-{name}"))).expect("rm");
        }
    }
}

#[test]
fn the_judge_agrees() {
    world(|w| {
        needs_root("kernel overlayfs as the judge with trusted attributes");
        if let Ok(seed) = std::env::var("MLFS_TEST_SEED") {
            return run_seed(w, seed.parse().expect("a number"), 300);
        }
        let seeds = std::env::var("MLFS_TEST_SEEDS").ok().and_then(|count| count.parse().ok()).unwrap_or(12);
        for seed in 1..=seeds {
            run_seed(w, seed, 180);
        }
    });
}
