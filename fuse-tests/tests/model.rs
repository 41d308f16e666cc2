// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random sequences of operations on random layers, on mlfs and on the judge: every result and errno, and the whole tree,
//! must be equal, live and after remounts.
//!
//! `MLFS_MODEL_SEQUENCES` and `MLFS_MODEL_SEED` choose how many and from which seed. A failing sequence is shrunk (whole
//! runs of operations are left out while it still fails) and printed; it should become a named test.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use fuse_tests::driver::{Driver, Mount};
use fuse_tests::identity::{Identity, identity};
use fuse_tests::layers::{Convention, LayerSpec, What};
use fuse_tests::sandbox::Sandbox;
use fuse_tests::skip::skip;
use fuse_tests::tree::{Compare, Tree};
use rustix::fs::{AtFlags, CWD, FileType, Mode, RenameFlags, Timespec, Timestamps, XattrFlags};

const NAMES: [&str; 7] = ["a", "b", "c", "d", "e", "h0", "h1"];

/// xorshift64*: small, seeded, the same everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    fn path(&mut self) -> String {
        let depth = 1 + self.below(4);
        (0..depth).map(|_| *self.pick(&NAMES)).collect::<Vec<_>>().join("/")
    }
}

#[derive(Clone, Debug)]
enum Op {
    Write(String, u64),
    Truncating(String, u64),
    Append(String, u64),
    Truncate(String, u64),
    Unlink(String),
    Rmdir(String),
    Mkdir(String),
    Rename(String, String),
    NoReplace(String, String),
    Exchange(String, String),
    Link(String, String),
    Symlink(String, u64),
    Chmod(String, u32),
    Chown(String, u32),
    SetXattr(String, u64),
    RemoveXattr(String, u64),
    Times(String, u64),
    Fifo(String),
    Read(String),
    List(String),
    Stat(String),
    RemoveTree(String),
    Remount,
}

fn random_op(random: &mut Random) -> Op {
    let (a, b) = (random.path(), random.path());
    let number = random.below(100) as u64;
    match random.below(26) {
        0 | 1 => Op::Write(a, number),
        2 => Op::Truncating(a, number),
        3 => Op::Append(a, number),
        4 => Op::Truncate(a, number),
        5 | 6 => Op::Unlink(a),
        7 => Op::Rmdir(a),
        8 | 9 => Op::Mkdir(a),
        10..=12 => Op::Rename(a, b),
        13 => Op::NoReplace(a, b),
        14 => Op::Exchange(a, b),
        15 => Op::Link(a, b),
        16 => Op::Symlink(a, number),
        17 => Op::Chmod(a, *random.pick(&[0o600, 0o755, 0o7777, 0o444])),
        18 => Op::Chown(a, number as u32),
        19 => Op::SetXattr(a, number),
        20 => Op::RemoveXattr(a, number),
        21 => Op::Times(a, number),
        22 => Op::Fifo(a),
        23 => Op::Read(a),
        24 => Op::List(a),
        _ if random.below(4) == 0 => Op::RemoveTree(a),
        _ => Op::Stat(a),
    }
}

fn stamp(path: &Path, number: u64, flags: AtFlags) -> std::io::Result<()> {
    let at = |tv_sec: i64| Timespec { tv_sec, tv_nsec: number as i64 * 1_000_003 };
    let times = Timestamps { last_access: at(5), last_modification: at(1_000_000_000 + number as i64) };
    Ok(rustix::fs::utimensat(CWD, path, &times, flags)?)
}

/// What an operation answered, in words that both sides can be compared by.
fn answer<T: Debug>(result: std::io::Result<T>) -> String {
    match result {
        Ok(value) => format!("{value:?}"),
        Err(error) => {
            format!("{:?}", error.raw_os_error().map(|errno| std::io::Error::from_raw_os_error(errno).to_string()))
        }
    }
}

/// Opens without waiting for the other end of a pipe.
fn open(options: &mut OpenOptions, path: &Path) -> std::io::Result<File> {
    options.custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed()).open(path)
}

fn apply(root: &Path, op: &Op) -> String {
    let p = |path: &String| root.join(path);
    let at_link = AtFlags::SYMLINK_NOFOLLOW;
    match op {
        Op::Write(path, number) => answer((|| {
            let file = open(OpenOptions::new().write(true).create(true).truncate(false), &p(path))?;
            file.write_at(format!("W{number}").as_bytes(), *number)?;
            stamp(&p(path), *number, AtFlags::empty())
        })()),
        Op::Truncating(path, number) => answer((|| {
            let file = open(OpenOptions::new().write(true).create(true).truncate(true), &p(path))?;
            file.write_at(format!("T{number}").as_bytes(), 0)?;
            stamp(&p(path), *number, AtFlags::empty())
        })()),
        Op::Append(path, number) => answer((|| {
            use std::io::Write;
            open(OpenOptions::new().append(true), &p(path))?.write_all(format!("A{number}").as_bytes())?;
            stamp(&p(path), *number, AtFlags::empty())
        })()),
        Op::Truncate(path, number) => answer((|| {
            open(OpenOptions::new().write(true), &p(path))?.set_len(*number)?;
            stamp(&p(path), *number, AtFlags::empty())
        })()),
        Op::Unlink(path) => answer(rustix::fs::unlink(p(path)).map_err(Into::into)),
        Op::Rmdir(path) => answer(std::fs::remove_dir(p(path))),
        Op::Mkdir(path) => answer(std::fs::create_dir(p(path))),
        Op::Rename(a, b) => answer(std::fs::rename(p(a), p(b))),
        Op::NoReplace(a, b) => {
            answer(rustix::fs::renameat_with(CWD, p(a), CWD, p(b), RenameFlags::NOREPLACE).map_err(Into::into))
        }
        Op::Exchange(a, b) => {
            answer(rustix::fs::renameat_with(CWD, p(a), CWD, p(b), RenameFlags::EXCHANGE).map_err(Into::into))
        }
        Op::Link(a, b) => answer(std::fs::hard_link(p(a), p(b))),
        Op::Symlink(path, number) => answer(std::os::unix::fs::symlink(format!("to{number}"), p(path))),
        Op::Chmod(path, mode) => answer(std::fs::set_permissions(p(path), std::fs::Permissions::from_mode(*mode))),
        Op::Chown(path, id) => answer(std::os::unix::fs::lchown(p(path), Some(*id), Some(*id + 1))),
        Op::SetXattr(path, number) => answer(
            rustix::fs::lsetxattr(
                p(path),
                format!("user.k{}", number % 3),
                format!("{number}").as_bytes(),
                XattrFlags::empty(),
            )
            .map_err(Into::into),
        ),
        Op::RemoveXattr(path, number) => {
            answer(rustix::fs::lremovexattr(p(path), format!("user.k{}", number % 3)).map_err(Into::into))
        }
        Op::Times(path, number) => answer(stamp(&p(path), *number, at_link)),
        Op::Fifo(path) => {
            answer(rustix::fs::mknodat(CWD, p(path), FileType::Fifo, Mode::from_raw_mode(0o640), 0).map_err(Into::into))
        }
        Op::Read(path) => answer((|| {
            let kind = std::fs::metadata(p(path))?.file_type();
            if kind.is_file() || kind.is_dir() { std::fs::read(p(path)) } else { Ok(b"special".to_vec()) }
        })()),
        Op::List(path) => answer((|| {
            let mut names = Vec::new();
            for entry in std::fs::read_dir(p(path))? {
                names.push(entry?.file_name());
            }
            names.sort();
            Ok(names)
        })()),
        Op::Stat(path) => answer(std::fs::symlink_metadata(p(path)).map(|meta| {
            let size = if meta.is_dir() { (0, 0) } else { (meta.size(), meta.nlink()) };
            (meta.mode(), meta.uid(), meta.gid(), size)
        })),
        Op::RemoveTree(path) => answer((|| {
            if std::fs::symlink_metadata(p(path))?.is_dir() {
                std::fs::remove_dir_all(p(path))?;
            }
            Ok(())
        })()),
        Op::Remount => String::new(),
    }
}

/// Three layers of files, directories, links and what hides what is below.
fn random_layers(random: &mut Random) -> Vec<LayerSpec> {
    let mut visible = BTreeSet::new();
    (0..3)
        .map(|number| {
            let mut layer = LayerSpec::new();
            fill(random, &mut layer, "", 0, number, &mut visible);
            layer
        })
        .collect()
}

fn fill(
    random: &mut Random,
    layer: &mut LayerSpec,
    dir: &str,
    depth: usize,
    number: usize,
    visible: &mut BTreeSet<String>,
) {
    for name in &NAMES[..5] {
        let path = if dir.is_empty() { (*name).to_owned() } else { format!("{dir}/{name}") };
        let owner = (*random.pick(&[0, 1000]), *random.pick(&[0, 50]));
        match random.below(100) {
            0..30 => {
                let mode = *random.pick(&[0o644, 0o600, 0o755, 0o4755]);
                // Some are big enough to be copied up without their content.
                let times = if random.below(4) == 0 { 20_000 } else { random.below(5) };
                let content = format!("{number}:{path}").repeat(times);
                let item = layer.file(&path, content).mode(mode).owner(owner.0, owner.1);
                if random.below(3) == 0 {
                    item.xattr("user.t", "x");
                }
                if random.below(4) == 0 {
                    let link = if dir.is_empty() { "h0".to_owned() } else { format!("{dir}/h0") };
                    if !layer.items.iter().any(|item| item.path == link.as_bytes()) {
                        layer.hardlink(&link, &path);
                    }
                }
            }
            30..58 if depth < 3 => {
                layer.dir(&path).mode(*random.pick(&[0o755, 0o700, 0o1777, 0o2755])).owner(owner.0, owner.1);
                if number > 0 && random.below(5) == 0 {
                    layer.opaque(&path);
                    hide_below(visible, &path);
                }
                fill(random, layer, &path, depth + 1, number, visible);
            }
            58..65 => {
                layer.symlink(&path, *random.pick(&["a", "../b", "/x"]));
            }
            // A whiteout of nothing is shown by the kernel in directories of one layer only.
            65..75 if visible.remove(&path) => {
                hide_below(visible, &path);
                layer.whiteout(&path);
                continue;
            }
            75..78 => {
                layer.node(&path, What::Fifo);
            }
            _ => continue,
        }
        if !layer.items.iter().any(|item| item.path == path.as_bytes() && item.what == What::Dir) {
            hide_below(visible, &path);
        }
        visible.insert(path);
    }
}

fn hide_below(visible: &mut BTreeSet<String>, path: &str) {
    visible.retain(|other| !other.strip_prefix(path).is_some_and(|rest| rest.starts_with('/')));
}

/// Runs a sequence on both; the first difference, if any.
fn run(layers: &[LayerSpec], ops: &[Op]) -> Result<(), String> {
    let worlds: Vec<(Sandbox, Mount)> = [Driver::KernelOverlay, Driver::MlfsOverlay]
        .into_iter()
        .map(|driver| {
            let sandbox = Sandbox::new();
            let mut mount = Mount::prepare(&sandbox, driver, layers, Convention::Trusted, &[]);
            mount.mount(&sandbox);
            (sandbox, mount)
        })
        .collect();
    let [(judge_box, mut judge), (own_box, mut own)] =
        <[_; 2]>::try_from(worlds).unwrap_or_else(|_| panic!("two worlds"));
    let roots: [PathBuf; 2] = [judge.target.clone(), own.target.clone()];
    let lowers = Tree::take(&own_box.path("lower"));
    let compare = Compare { is_dir_mtime: false, recent: 1_500_000_000, ..Compare::ALL };
    let check = |when: String| {
        let (left, right) = (Tree::take(&roots[0]), Tree::take(&roots[1]));
        let differences = left.difference(&right, compare);
        if differences.is_empty() { Ok(()) } else { Err(format!("{when}: judge | mlfs: {differences:#?}")) }
    };
    check("at the start".into())?;
    for (index, op) in ops.iter().enumerate() {
        if let Op::Remount = op {
            judge.unmount(&judge_box);
            judge.mount(&judge_box);
            own.unmount(&own_box);
            own.mount(&own_box);
            check(format!("after the remount at {index}"))?;
            continue;
        }
        let (left, right) = (apply(&roots[0], op), apply(&roots[1], op));
        if left != right {
            return Err(format!("operation {index} {op:?}: judge {left}, mlfs {right}"));
        }
        if index % 20 == 19 {
            check(format!("after operation {index}"))?;
        }
    }
    check("at the end".into())?;
    own.unmount(&own_box);
    judge.unmount(&judge_box);
    let differences = lowers.difference(&Tree::take(&own_box.path("lower")), Compare::ALL);
    if differences.is_empty() { Ok(()) } else { Err(format!("a lower was changed: {differences:#?}")) }
}

fn shrink(layers: &[LayerSpec], mut ops: Vec<Op>) -> Vec<Op> {
    let mut length = ops.len() / 2;
    while length > 0 {
        let mut start = 0;
        while start < ops.len() {
            let mut fewer = ops.clone();
            fewer.drain(start..(start + length).min(ops.len()));
            if run(layers, &fewer).is_err() {
                ops = fewer;
            } else {
                start += length;
            }
        }
        length /= 2;
    }
    ops
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn random_sequences_equal_the_judge() {
    fuse_tests::check(random_sequences);
}

fn random_sequences() {
    if identity() != Identity::Root {
        skip("needs root: the judge with trusted marks and every owner");
    }
    if let Some(reason) = Driver::KernelOverlay.skip_reason() {
        skip(reason);
    }
    let (first, count) = (setting("MLFS_MODEL_SEED", 1), setting("MLFS_MODEL_SEQUENCES", 40));
    for seed in first..first + count {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let layers = random_layers(&mut random);
        let mut ops: Vec<Op> = (0..120).map(|_| random_op(&mut random)).collect();
        for at in [40, 80] {
            ops[at] = Op::Remount;
        }
        if let Err(difference) = run(&layers, &ops) {
            let fewest = shrink(&layers, ops);
            let last = run(&layers, &fewest).err().unwrap_or(difference);
            panic!("seed {seed}: {last}\nlayers: {layers:#?}\noperations: {fewest:#?}");
        }
    }
}
