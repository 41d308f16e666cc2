// SPDX-License-Identifier: MIT OR Apache-2.0
//! An image of difficult cases, and what whoever looks at it may see.

use crate::identity::{Identity, identity};
use crate::layers::{LayerSpec, What};
use crate::oracle::merged;
use crate::tree::{Body, Tree};

/// The layers, bottom first. All owners are true ones, whoever runs the suite.
pub fn layers() -> Vec<LayerSpec> {
    vec![bottom(), middle(), top()]
}

fn bottom() -> LayerSpec {
    let mut l = LayerSpec::new();
    l.raw("etc", What::Dir).owner(0, 0);
    l.raw("etc/passwd", What::File(b"root:x:0:0::/:/bin/sh\n".to_vec())).owner(0, 42);
    l.raw("etc/shadow", What::File(b"root:*:\n".to_vec())).owner(0, 42).mode(0o640);
    l.raw("usr/bin/su", What::File(vec![b's'; 3000])).owner(0, 0).mode(0o4755);
    l.raw("home", What::Dir).owner(0, 0).mode(0o755).mtime(1_500_000_000, 1);
    l.raw("home/u", What::Dir).owner(1000, 1001).mode(0o2751);
    l.raw("home/u/notes", What::File(b"notes".to_vec())).owner(1000, 1001).xattr("user.note", [0u8, 255, 7]);
    l.raw("tmp", What::Dir).owner(0, 0).mode(0o1777);
    l.raw("root", What::Dir).owner(0, 0).mode(0o700);
    l.raw("root/secret", What::File(b"secret".to_vec())).owner(0, 0).mode(0o600);
    // VFS_CAP_REVISION_2, effective, cap_net_raw.
    let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    l.raw("usr/bin/ping", What::File(vec![b'p'; 100])).owner(0, 0).mode(0o755).xattr("security.capability", capability);
    // Times: nanoseconds, before 1970, far in the future.
    l.raw("times", What::Dir).owner(0, 0);
    l.raw("times/ns", What::File(Vec::new())).owner(0, 0).mtime(1_234_567_890, 987_654_321);
    l.raw("times/1969", What::File(Vec::new())).owner(0, 0).mtime(-2, 750_000_000);
    l.raw("times/2100", What::File(Vec::new())).owner(0, 0).mtime(4_102_444_800, 0);
    // Numbers that need more than octal digits.
    l.raw("big-id", What::File(b"b".to_vec())).owner(4_000_000_000, 3_000_000_000);
    // Names: not UTF-8, 255 bytes, long paths, odd characters.
    l.raw("names", What::Dir).owner(0, 0);
    l.raw(b"names/\xff\xfe caf\xe9", What::File(b"latin".to_vec())).owner(0, 0);
    l.raw(format!("names/{}", "n".repeat(255)), What::File(b"long".to_vec())).owner(0, 0);
    l.raw("names/new\nline \"quoted\" \\back", What::File(b"odd".to_vec())).owner(0, 0);
    l.raw("names/.wh", What::File(b"not a whiteout".to_vec())).owner(0, 0);
    let deep = vec!["d".repeat(60); 20].join("/");
    l.raw(format!("{deep}/file"), What::File(b"deep, and no parent is named".to_vec())).owner(0, 0);
    // Links.
    l.raw("links", What::Dir).owner(0, 0);
    l.raw("links/a", What::File(b"linked".to_vec())).owner(0, 7).mode(0o755).xattr("user.l", "l");
    l.raw("links/b", What::Hardlink(b"links/a".to_vec())).owner(0, 0);
    l.raw("links/c", What::Hardlink(b"links/b".to_vec())).owner(0, 0);
    l.raw("links/sym", What::Symlink(b"/etc/passwd".to_vec())).owner(5, 6).mtime(1_000_000_000, 5);
    l.raw("links/up", What::Symlink(b"../../../../..".to_vec())).owner(0, 0);
    l.raw("links/long", What::Symlink("s/".repeat(1500).into_bytes())).owner(0, 0);
    l.raw("links/gone-target", What::File(b"stays by the other name".to_vec())).owner(0, 0);
    l.raw("links/gone-other", What::Hardlink(b"links/gone-target".to_vec())).owner(0, 0);
    // Special files; 0:0 in a tar is content, not a whiteout.
    l.raw("dev", What::Dir).owner(0, 0);
    l.raw("dev/null", What::Char(1, 3)).owner(0, 0).mode(0o666);
    l.raw("dev/disk", What::Block(259, 70_000)).owner(0, 6).mode(0o660);
    l.raw("dev/zero-zero", What::Char(0, 0)).owner(0, 0).mode(0o600);
    l.raw("dev/pipe", What::Fifo).owner(0, 0).mode(0o622);
    // Duplicates: the last one wins, whatever it is.
    l.raw("twice", What::File(b"first".to_vec())).owner(0, 0).mode(0o600);
    l.raw("twice", What::File(b"second".to_vec())).owner(1, 1).mode(0o644);
    l.raw("file-then-dir", What::File(b"f".to_vec())).owner(0, 0);
    l.raw("file-then-dir", What::Dir).owner(0, 0).mode(0o711);
    l.raw("file-then-dir/in", What::File(b"i".to_vec())).owner(0, 0);
    // Bodies: empty, one block more or less, large, the same twice.
    l.raw("bodies", What::Dir).owner(0, 0);
    for size in [0, 1, 511, 512, 513, 4095, 4096, 4097, 65_535, 65_536, 65_537, 3_000_000] {
        let body: Vec<u8> = (0..size as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
        l.raw(format!("bodies/{size}"), What::File(body)).owner(0, 0);
    }
    l.raw("bodies/once-more", What::File(vec![b's'; 3000])).owner(0, 0);
    // What the next layers delete or replace.
    for path in ["del/file", "del/dir/a", "del/dir/b/c", "opq/old", "opq/sub/old", "replaced", "kept/x", "was-dir/x"] {
        l.raw(path, What::File(path.as_bytes().to_vec())).owner(0, 0);
    }
    l
}

fn middle() -> LayerSpec {
    let mut l = LayerSpec::new();
    // Before and after the entry: the entry wins.
    l.raw("replaced", What::Whiteout);
    l.raw("replaced", What::File(b"by the middle".to_vec())).owner(8, 8).mode(0o604);
    l.raw("twice", What::File(b"third".to_vec())).owner(0, 0);
    l.raw("twice", What::Whiteout);
    l.raw("del/file", What::Whiteout);
    l.raw("del/dir", What::Whiteout);
    l.raw("opq", What::Dir).owner(3, 3).mode(0o755);
    l.raw("opq/new", What::File(b"n".to_vec())).owner(0, 0);
    l.raw("opq", What::Opaque);
    l.raw("was-dir", What::File(b"now a file".to_vec())).owner(0, 0);
    l.raw("links/gone-target", What::Whiteout);
    l.raw("never-there", What::Whiteout);
    l.raw("etc", What::Dir).owner(0, 0).mode(0o755).mtime(1_600_000_000, 3);
    l.raw("etc/passwd", What::Dir).owner(0, 0);
    l.raw("etc/passwd/now-a-directory", What::File(b"!".to_vec())).owner(0, 0);
    l
}

fn top() -> LayerSpec {
    let mut l = LayerSpec::new();
    l.raw("del/dir/b/again", What::File(b"only this".to_vec())).owner(0, 0);
    l.raw("opq/sub/top", What::File(b"t".to_vec())).owner(0, 0);
    l.raw("was-dir", What::Dir).owner(0, 0);
    l.raw("was-dir/y", What::File(b"y".to_vec())).owner(0, 0);
    l.raw("home/u/notes", What::File(b"rewritten".to_vec())).owner(1000, 1001).mode(0o600);
    l
}

/// What whoever runs the suite sees of the merged image: an ordinary user cannot look into others' private folders, and
/// in a user namespace ids without a mapping are shown as 65534.
pub fn as_seen(layers: &[LayerSpec]) -> Tree {
    seen_by(merged(layers), identity(), crate::identity::own_ids().0)
}

fn seen_by(mut tree: Tree, who: Identity, own: u32) -> Tree {
    if who == Identity::Root {
        return tree;
    }
    let mut closed: Vec<Vec<u8>> = Vec::new();
    for (path, node) in &mut tree.nodes {
        let is_unmapped = who == Identity::Namespace && (node.uid != 0 || node.gid != 0);
        let bits = match who {
            Identity::Namespace if !is_unmapped => 0o7,
            Identity::User | Identity::Namespace if node.uid == own => node.mode >> 6,
            _ => node.mode,
        };
        match &mut node.body {
            Body::Dir if bits & 5 != 5 => closed.push([path.as_slice(), b"/"].concat()),
            Body::File(_, sum) if bits & 4 == 0 => *sum = "unreadable: PermissionDenied".into(),
            _ => {}
        }
        if who == Identity::Namespace {
            node.uid = if node.uid == 0 { 0 } else { 65_534 };
            node.gid = if node.gid == 0 { 0 } else { 65_534 };
        }
    }
    tree.nodes.retain(|path, _| !closed.iter().any(|dir| path.starts_with(dir)));
    tree
}
