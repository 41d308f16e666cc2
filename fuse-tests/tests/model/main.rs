// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random sequences of operations on random layers, on mlfs and on a judge: every result and errno, and the whole tree,
//! must be equal, live and after remounts.
//!
//! As root the judge is kernel overlayfs, and it mounts the upper of mlfs in the middle of a sequence and works in it;
//! every third sequence has a volume inside, which is a bind mount for the judge. Else the judge is a plain directory with
//! a copy of the merged tree. `MLFS_MODEL_SEQUENCES`, `MLFS_MODEL_SEED` and `MLFS_MODEL_THREADS` choose how many (300 over
//! all identities unless told), from which seed and how many at once. A failing sequence is shrunk (whole runs of
//! operations are left out while it still fails) and printed; it should become a named test.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use fuse_tests::driver::Driver;
use fuse_tests::identity::{Identity, fuse_reason, identity};
use fuse_tests::layers::{Item, LayerSpec, What};
use fuse_tests::skip::skip;

use op::Op;
use pair::Judge;
use random::Random;

mod op;
mod pair;
mod random;

fn judge() -> Judge {
    if identity() == Identity::Root { Judge::Overlay } else { Judge::Plain }
}

/// A sequence of operations over layers.
struct Sequence {
    layers: Vec<LayerSpec>,
    has_volume: bool,
    ops: Vec<Op>,
}

fn sequence(seed: u64) -> Sequence {
    let mut random = Random::new(seed);
    random.is_plain = judge() == Judge::Plain;
    random.has_volume = judge() == Judge::Overlay && seed.is_multiple_of(3);
    let layers = random::layers(&mut random);
    let mut ops: Vec<Op> = (0..120).map(|_| random::operation(&mut random)).collect();
    for (at, op) in [(30, Op::Remount), (60, Op::ByKernel), (75, Op::Remount), (100, Op::Remount)] {
        ops[at] = op;
    }
    Sequence { layers, has_volume: random.has_volume, ops }
}

/// The fewest operations that still fail.
fn shrink(sequence: &Sequence) -> Vec<Op> {
    let mut ops = sequence.ops.clone();
    let mut length = ops.len() / 2;
    while length > 0 {
        let mut start = 0;
        while start < ops.len() {
            let mut fewer = ops.clone();
            fewer.drain(start..(start + length).min(ops.len()));
            if pair::run(judge(), &sequence.layers, sequence.has_volume, &fewer).is_err() {
                ops = fewer;
            } else {
                start += length;
            }
        }
        length /= 2;
    }
    ops
}

fn try_seed(seed: u64) -> Result<(), String> {
    let sequence = sequence(seed);
    let Err(difference) = pair::run(judge(), &sequence.layers, sequence.has_volume, &sequence.ops) else {
        return Ok(());
    };
    let fewest = shrink(&sequence);
    let last = pair::run(judge(), &sequence.layers, sequence.has_volume, &fewest).err().unwrap_or(difference);
    let said = format!("{fewest:?}");
    let layers: Vec<_> = sequence.layers.iter().map(|layer| shown(layer, &said)).collect();
    let ops: Vec<_> = fewest.iter().map(|op| format!("{op:?}")).collect();
    Err(format!("seed {seed}: {last}\nlayers: {layers:#?}\noperations: {ops:#?}"))
}

// A line per item below the names that the operations speak of; contents are long.
fn shown(layer: &LayerSpec, operations: &str) -> Vec<String> {
    let is_touched = |item: &&Item| {
        let top = item.path.split(|byte| *byte == b'/').next().unwrap_or_default();
        let top = String::from_utf8_lossy(top);
        operations.contains(&format!("\"{top}\"")) || operations.contains(&format!("\"{top}/"))
    };
    let line = |item: &Item| {
        let what = match &item.what {
            What::File(content) => format!("File of {}", content.len()),
            What::Hardlink(target) => format!("Hardlink of {}", target.escape_ascii()),
            other => format!("{other:?}"),
        };
        format!("{} {what} {:o} {}:{}", item.path.escape_ascii(), item.mode, item.uid, item.gid)
    };
    layer.items.iter().filter(is_touched).map(line).collect()
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn random_sequences_equal_the_judge() {
    fuse_tests::check(random_sequences);
}

fn random_sequences() {
    let reason = if judge() == Judge::Overlay { Driver::KernelOverlay.skip_reason() } else { fuse_reason() };
    if let Some(reason) = reason {
        skip(reason);
    }
    let usual = if judge() == Judge::Overlay { 180 } else { 60 };
    let (first, count) = (setting("MLFS_MODEL_SEED", 1), setting("MLFS_MODEL_SEQUENCES", usual));
    let (next, failures) = (AtomicU64::new(first), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..setting("MLFS_MODEL_THREADS", 4) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count || failures.lock().expect("lock").len() >= 3 {
                        return;
                    }
                    if let Err(failure) = try_seed(seed) {
                        eprintln!("{failure}");
                        failures.lock().expect("lock").push(failure);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().expect("lock");
    let heads: Vec<&str> = failures.iter().filter_map(|failure| failure.lines().next()).collect();
    assert!(failures.is_empty(), "sequences differ: {heads:#?}");
}
