// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random numbers, operations and layers: all from one seed.

use std::collections::BTreeSet;

use fuse_tests::identity::{Identity, identity};
use fuse_tests::layers::{LayerSpec, What};

use super::op::{Flags, Op, SLOTS};

/// The names that paths are made of.
pub const NAMES: [&str; 7] = ["a", "b", "c", "d", "e", "h0", "h1"];
/// Where a volume is mounted, if there is one. No layer hides it.
pub const VOLUME: &str = "v";

/// Random numbers, and what may come of them.
pub struct Random {
    numbers: fuse_tests::random::Random,
    /// Whether paths lead into the volume now and then.
    pub has_volume: bool,
    /// Whether the judge is a plain directory: names of a hard-link group that a higher layer covers do not count there, and
    /// an ordinary user must be able to walk the tree.
    pub is_plain: bool,
}

impl Random {
    /// A sequence of its own for every seed.
    pub fn new(seed: u64) -> Random {
        Random { numbers: fuse_tests::random::Random::new(seed), has_volume: false, is_plain: false }
    }

    fn below(&mut self, bound: usize) -> usize {
        self.numbers.below(bound)
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        self.numbers.pick(from)
    }

    fn path(&mut self) -> String {
        let depth = 1 + self.below(4);
        let mut names: Vec<&str> = (0..depth).map(|_| *self.pick(&NAMES)).collect();
        if self.has_volume && self.below(4) == 0 {
            names[0] = VOLUME;
        }
        names.join("/")
    }

    fn number(&mut self) -> u64 {
        self.below(100) as u64
    }

    fn mode(&mut self) -> u32 {
        let mode = *self.pick(&[0o600, 0o755, 0o7777, 0o444, 0o640]);
        if self.is_plain { mode | 0o700 } else { mode }
    }
}

/// One operation.
pub fn operation(random: &mut Random) -> Op {
    match random.below(20) {
        0..13 => by_name(random),
        13..19 => by_handle(random),
        // The kernel copies ranges within one filesystem only; a volume of mlfs is within its mount.
        _ if random.has_volume => Op::Read(random.path()),
        _ => {
            let (from, to) = (random.path(), random.path());
            Op::CopyRange(from, to, random.number() * 100, random.number())
        }
    }
}

fn by_name(random: &mut Random) -> Op {
    let (a, b) = (random.path(), random.path());
    let number = random.number();
    match random.below(36) {
        0 | 1 => Op::Write(a, number),
        2 => Op::Truncating(a, number),
        3 => Op::Append(a, number),
        4 => Op::Truncate(a, number * 17),
        5 | 6 => Op::Unlink(a),
        7 => Op::Rmdir(a),
        8 | 9 => Op::Mkdir(a),
        10..=13 => Op::Rename(a, b),
        14 => Op::NoReplace(a, b),
        15 => Op::Exchange(a, b),
        16 | 17 => Op::Link(a, b),
        18 => Op::Symlink(a, number),
        19 => Op::Chmod(a, random.mode()),
        20 => Op::Chown(a, number as u32),
        21 => Op::SetXattr(a, number),
        22 => Op::RemoveXattr(a, number),
        23 => Op::ListXattrs(a),
        24 | 25 => Op::Times(a, number as i64 - 50),
        26 => Op::Special(a, number),
        27 => Op::Read(a),
        28 | 29 => Op::List(a),
        30 => Op::Acl(a, number, random.below(2) == 0),
        31 => Op::MakeAgain(a),
        32 if random.below(3) == 0 => Op::RemoveTree(a),
        33 => Op::Access(a, number as u32 % 8),
        _ => Op::Stat(a),
    }
}

fn by_handle(random: &mut Random) -> Op {
    let slot = random.below(SLOTS);
    let (offset, number) = (random.number() * 1000, random.number());
    match random.below(18) {
        0..=4 => {
            let flags = *random.pick(&[Flags::Read, Flags::Write, Flags::ReadWrite, Flags::Create, Flags::Append]);
            Op::Open(slot, random.path(), flags)
        }
        5 => Op::OpenDir(slot, random.path()),
        6 | 7 => Op::WriteAt(slot, offset, number),
        8 => Op::ReadAt(slot, offset),
        9 => Op::TruncateFd(slot, offset),
        10 => Op::StatFd(slot),
        11 => Op::ChmodFd(slot, random.mode()),
        12 => Op::TimesFd(slot, number as i64 - 50),
        13 => Op::Allocate(slot, number % 4, offset, 4096 * (1 + number)),
        14 => Op::Seek(slot, offset, random.below(2) == 0),
        15 => Op::SetXattrFd(slot, number),
        16 => Op::Sync(slot),
        _ => Op::Close(slot),
    }
}

/// Three layers of files, directories, links and what hides what is below.
pub fn layers(random: &mut Random) -> Vec<LayerSpec> {
    let mut visible = BTreeSet::new();
    let mut layers: Vec<LayerSpec> = (0..3)
        .map(|number| {
            let mut layer = LayerSpec::new();
            fill(random, &mut layer, "", 0, number, &mut visible);
            layer
        })
        .collect();
    if random.has_volume {
        layers[0].dir(VOLUME);
    }
    layers
}

fn owner(random: &mut Random) -> (u32, u32) {
    let (own_uid, own_gid) = fuse_tests::identity::own_ids();
    let (uid, gid) = (*random.pick(&[0, 1000]), *random.pick(&[0, 50]));
    if identity() == Identity::Root { (uid, gid) } else { (own_uid, own_gid) }
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
        let (uid, gid) = owner(random);
        match random.below(100) {
            0..30 => {
                let mode = *random.pick(&[0o644, 0o600, 0o755, 0o4755]);
                // Some are big enough to be copied up without their content.
                let times = if random.below(4) == 0 { 20_000 } else { random.below(5) };
                let item = layer.file(&path, format!("{number}:{path}").repeat(times)).mode(mode).owner(uid, gid);
                if random.below(3) == 0 {
                    item.xattr("user.t", "x");
                }
                if random.below(4) == 0 && (number == 2 || !random.is_plain) {
                    let link = if dir.is_empty() { "h0".to_owned() } else { format!("{dir}/h0") };
                    if !layer.items.iter().any(|item| item.path == link.as_bytes()) {
                        layer.hardlink(&link, &path);
                    }
                }
            }
            30..58 if depth < 3 => {
                layer.dir(&path).mode(*random.pick(&[0o755, 0o700, 0o1777, 0o2755])).owner(uid, gid);
                if number > 0 && random.below(5) == 0 {
                    layer.opaque(&path);
                    hide_below(visible, &path);
                }
                fill(random, layer, &path, depth + 1, number, visible);
            }
            58..65 => {
                layer.symlink(&path, *random.pick(&["a", "../b", "/nowhere/x"]));
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
