// SPDX-License-Identifier: MIT OR Apache-2.0
//! A million inodes: the daemon's memory for them is bounded, and goes back when the kernel forgets them.
//!
//! Only with a release build (`MLFS_RELEASE_BIN`, which `scripts/test` sets): a debug build reads the image for a
//! minute.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use fuse_tests::cli::{bare, run_for};
use fuse_tests::image::{Compression, write_oci_of};
use fuse_tests::tar::Header;
use fuse_tests::world::{World, eventually, needs_root, world};
use fuse_tests::{Sandbox, skip};

const DIRS: usize = 1000;
const FILES: usize = 999;
/// What a known node may cost: the node, its name, its two tables.
const BYTES_PER_NODE: u64 = 2048;

#[test]
fn a_million_inodes_are_forgotten() {
    world(|w| {
        needs_root("only root can make the kernel forget the nodes of one mount");
        let Some(binary) = std::env::var_os("MLFS_RELEASE_BIN").map(PathBuf::from).filter(|path| path.exists()) else {
            skip("no release build: MLFS_RELEASE_BIN names none")
        };
        let target = mounted(w, &binary);
        let daemon = w.daemon("million").as_raw_nonzero().get();
        let before = own_memory(daemon);
        let found = walk(&target);
        assert_eq!(found, DIRS * (FILES + 1));
        let with_all = own_memory(daemon);
        let grown = with_all.saturating_sub(before);
        println!("{before} bytes at first, {with_all} with {found} nodes: {} each", grown / found as u64);
        assert!(grown < BYTES_PER_NODE * found as u64, "{grown} bytes for {found} nodes");
        // A remount lets the kernel drop what it knows of this mount alone.
        rustix::mount::mount_remount(&target, rustix::mount::MountFlags::empty(), c"").expect("remount");
        eventually("half of the memory goes back", || own_memory(daemon).saturating_sub(before) < grown / 2);
        println!("{} bytes after the kernel forgot", own_memory(daemon));
        assert_eq!(walk(&target.join("d0001")), FILES, "the mount goes on");
        run_for(&w.sandbox, mlfs(&w.sandbox, &binary).args(["umount", "million"]), PATIENCE).ok();
    });
}

const PATIENCE: std::time::Duration = std::time::Duration::from_secs(120);

fn mlfs(sandbox: &Sandbox, binary: &Path) -> Command {
    // As `bare`, but another build.
    let template = bare(sandbox);
    let mut command = Command::new(binary);
    command.env_clear().current_dir(sandbox.root()).stdin(std::process::Stdio::null());
    command.envs(template.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.arg("--root").arg(sandbox.path("store"));
    command
}

fn mounted(w: &World, binary: &Path) -> PathBuf {
    let layout = w.sandbox.path("image");
    let tar = w.sandbox.path("layer.tar.zst");
    let diff_id = write_layer(&tar);
    write_oci_of(&layout, &[(&tar, Compression::Zstd, diff_id)], "latest");
    let run = |args: &[&str]| run_for(&w.sandbox, mlfs(&w.sandbox, binary).args(args), PATIENCE).ok();
    run(&["image", "load", "-q", "--max-entries", "2000000", &format!("oci:{}", layout.display()), "million"]);
    let target = w.target("million");
    run(&["mount", "--name", "million", "million", &target.display().to_string()]);
    target
}

// The layer as it is compressed while it is made: half a gigabyte of headers that are almost the same. Its digest.
fn write_layer(path: &Path) -> String {
    struct Both<W: Write>(W, sha2::Sha256);
    impl<W: Write> Both<W> {
        fn put(&mut self, bytes: &[u8]) {
            use sha2::Digest;
            self.1.update(bytes);
            self.0.write_all(bytes).expect("layer");
        }
    }
    let file = std::fs::File::create(path).expect("layer");
    let mut out = Both(zstd::Encoder::new(file, 1).expect("zstd"), sha2::Digest::new());
    for dir in 0..DIRS {
        out.put(
            &Header { name: format!("d{dir:04}/").as_bytes(), mode: 0o755, flag: b'5', ..Header::default() }.block(),
        );
        let template = Header { name: format!("d{dir:04}/f0000").as_bytes(), ..Header::default() }.block();
        for file in 0..FILES {
            out.put(&numbered(template, file));
        }
    }
    out.put(&[0; 1024]);
    out.0.finish().expect("zstd");
    let sum: [u8; 32] = sha2::Digest::finalize(out.1).into();
    sum.iter().fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

// The header of a file whose name ends in `0000`, with another number there.
fn numbered(mut block: [u8; 512], number: usize) -> [u8; 512] {
    let digits = format!("{number:04}");
    block[7..11].copy_from_slice(digits.as_bytes());
    let added: u32 = digits.bytes().map(|digit| u32::from(digit - b'0')).sum();
    let sum = std::str::from_utf8(&block[148..154]).expect("octal");
    let sum = u32::from_str_radix(sum, 8).expect("octal") + added;
    block[148..154].copy_from_slice(format!("{sum:06o}").as_bytes());
    block
}

// Looks at everything below: names, kinds, attributes.
fn walk(root: &Path) -> usize {
    let mut found = 0;
    for entry in std::fs::read_dir(root).expect("list") {
        let entry = entry.expect("entry");
        let meta = entry.metadata().expect("stat");
        found += 1;
        if meta.is_dir() {
            found += walk(&entry.path());
        }
    }
    found
}

// What the daemon has for itself, the mapped index left out.
fn own_memory(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("RssAnon");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}
