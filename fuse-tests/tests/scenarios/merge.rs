// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a stack of layers looks like.

use fuse_tests::tree::Body;
use fuse_tests::{Scene, scenarios};

fn shadowing(s: &mut Scene) {
    s.layer(|l| {
        l.file("only-bottom", "bottom");
        l.file("both", "bottom").mode(0o600);
        l.file("dir/bottom", "b");
        l.dir("dir").mode(0o700);
        l.file("empty", "");
    });
    s.layer(|l| {
        l.file("both", "top").mode(0o640);
        l.dir("dir").mode(0o751).mtime(1_100_000_000, 7);
        l.file("dir/top", "t");
    });
    s.mount();
    assert_eq!(s.read("only-bottom"), "bottom");
    assert_eq!(s.read("both"), "top");
    s.lists("dir", &["bottom", "top"]);
    s.lists("", &["both", "dir", "empty", "only-bottom"]);
    let tree = s.tree();
    assert_eq!(tree.node("both").mode, 0o640);
    assert_eq!((tree.node("dir").mode, tree.node("dir").mtime), (0o751, (1_100_000_000, 7)), "the topmost directory's");
    assert_eq!(tree.node("only-bottom").mtime.1, 123_456_789, "nanoseconds are kept");
}

fn kinds_replace_each_other(s: &mut Scene) {
    s.layer(|l| {
        l.file("file-then-dir", "f");
        l.file("dir-then-file/deep/er", "d");
        l.symlink("link-then-dir", "elsewhere");
        l.file("elsewhere/secret", "s");
        l.file("dir-then-link/x", "x");
    });
    s.layer(|l| {
        l.file("file-then-dir/inside", "i");
        l.file("dir-then-file", "now a file");
        l.file("link-then-dir/own", "o");
        l.symlink("dir-then-link", "elsewhere");
    });
    s.mount();
    s.lists("file-then-dir", &["inside"]);
    assert_eq!(s.read("dir-then-file"), "now a file");
    s.lists("link-then-dir", &["own"]);
    s.lists("elsewhere", &["secret"]);
    assert_eq!(s.tree().node("dir-then-link").body, Body::Symlink(b"elsewhere".to_vec()));
    s.lists("dir-then-link/", &["secret"]);
    assert!(!s.has("file-then-dir/deep"));
}

// A file in a middle layer ends the merge of a directory: what lies below it stays hidden.
fn file_in_the_middle_cuts(s: &mut Scene) {
    s.layer(|l| {
        l.file("d/old", "old");
    });
    s.layer(|l| {
        l.file("d", "a file");
    });
    s.layer(|l| {
        l.file("d/new", "new");
    });
    s.mount();
    s.lists("d", &["new"]);
    s.write("d/written", "w");
    s.lists("d", &["new", "written"]);
}

fn many_layers(s: &mut Scene) {
    for number in 0..24 {
        s.layer(|l| {
            l.file(format!("from-{number:02}"), number.to_string());
            l.file("last-wins", number.to_string());
            l.file(format!("d/{}", number % 5), number.to_string());
        });
    }
    s.mount();
    assert_eq!(s.read("last-wins"), "23");
    assert_eq!(s.read("d/0"), "20");
    assert_eq!(s.tree().names().len(), 24 + 2 + 5);
    s.write("last-wins", "upper");
    std::fs::remove_file(s.p("d/0")).expect("unlink");
    s.lists("d", &["1", "2", "3", "4"]);
}

fn symlinks_stay_symlinks(s: &mut Scene) {
    s.layer(|l| {
        l.symlink("absolute", "/etc/passwd");
        l.symlink("out", "../../../../etc");
        l.symlink("dangling", "nowhere");
        l.symlink("loop", "loop");
        l.symlink("long", "x/".repeat(1000)).mtime(999_999_999, 1);
        l.file("real", "r");
        l.symlink("inside", "real");
    });
    s.mount();
    let tree = s.tree();
    assert_eq!(tree.node("absolute").body, Body::Symlink(b"/etc/passwd".to_vec()));
    assert_eq!(tree.node("long").body, Body::Symlink("x/".repeat(1000).into_bytes()));
    assert_eq!(tree.node("long").mtime, (999_999_999, 1));
    assert_eq!(s.read("inside"), "r");
    std::fs::remove_file(s.p("out")).expect("unlink");
    std::os::unix::fs::symlink("real", s.p("out")).expect("symlink");
    assert_eq!(s.read("out"), "r");
}

// A layer whose directory stands where a lower has a symlink out of the tree: nothing may be found or written outside.
fn hostile_symlink_parents(s: &mut Scene) {
    let outside = s.sandbox.dir("outside");
    std::fs::write(outside.join("victim"), "untouched").expect("write");
    s.layer(|l| {
        l.symlink("etc", outside.as_os_str().as_encoded_bytes());
        l.symlink("up", "../outside");
    });
    s.layer(|l| {
        l.file("etc/own", "own");
        l.file("up/own", "own");
    });
    s.mount();
    for dir in ["etc", "up"] {
        s.lists(dir, &["own"]);
        assert!(!s.has(&format!("{dir}/victim")), "{dir} leads out of the layers");
        s.write(&format!("{dir}/victim"), "written inside");
        s.write(&format!("{dir}/own"), "changed");
        s.lists(dir, &["own", "victim"]);
    }
    assert_eq!(std::fs::read_to_string(outside.join("victim")).expect("read"), "untouched");
    assert_eq!(std::fs::read_dir(&outside).expect("list").count(), 1);
}

fn listing_agrees_with_stat(s: &mut Scene) {
    s.layer(|l| {
        l.file("d/lower", "l");
        l.file("d/changed", "l");
        l.symlink("d/link", "lower");
        l.file("d/merged/a", "a");
    });
    s.layer(|l| {
        l.file("d/merged/b", "b");
        l.file("d/middle", "m");
    });
    s.mount();
    s.write("d/upper", "u");
    s.write("d/changed", "c");
    let script = "
for root, dirs, files in os.walk('.'):
    for e in os.scandir(root):
        st = os.lstat(e.path)
        assert e.inode() == st.st_ino, (e.path, e.inode(), st.st_ino)
        kind = {stat.S_IFDIR: e.is_dir, stat.S_IFLNK: e.is_symlink, stat.S_IFREG: e.is_file}[stat.S_IFMT(st.st_mode)]
        assert kind(follow_symlinks=False) if kind != e.is_symlink else kind(), e.path
numbers = [os.lstat(os.path.join(r, n)).st_ino for r, d, f in os.walk('.') for n in d + f]
assert len(numbers) == len(set(numbers)), numbers
";
    s.python(script).ok();
}

// Numbers stay when a file is copied up: programs that watch a file by number must not see another one.
fn copy_up_keeps_the_number(s: &mut Scene) {
    s.layer(|l| {
        l.file("f", "lower");
        l.file("d/x", "x");
    });
    s.mount();
    let number = |path: &str| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(s.p(path)).expect("stat"));
    let (file, dir) = (number("f"), number("d"));
    s.write("f", "upper");
    s.write("d/y", "y");
    assert_eq!((number("f"), number("d")), (file, dir));
}

// One file, one number: over copy-up, rename, links and a remount, and no two files the same, in whatever layer they are.
fn numbers_are_kept_and_unique(s: &mut Scene) {
    s.skip_when(!s.driver.is_mlfs(), "kernel overlayfs numbers a renamed or merged file anew in some of these cases");
    s.is_not_judged("numbers are not compared");
    for layer in 0..3 {
        s.layer(|l| {
            for name in ["read", "written", "moved", "linked", "swapped", "replaced"] {
                l.file(format!("from-{layer}/{name}"), name);
                l.file(format!("merged/{name}-{layer}"), name);
            }
            l.file("merged/everywhere", format!("{layer}"));
            l.dir(format!("from-{layer}/moved-dir/sub"));
            l.file(format!("from-{layer}/moved-dir/sub/f"), "f");
        });
    }
    s.mount();
    let number = |s: &Scene, path: &str| {
        std::os::unix::fs::MetadataExt::ino(&s.p(path).symlink_metadata().unwrap_or_else(|e| panic!("{path}: {e}")))
    };
    let mut moves: Vec<(String, String)> = Vec::new();
    for layer in 0..3 {
        let here = format!("from-{layer}");
        for (from, to) in [
            ("read", "read"),
            ("written", "written"),
            ("moved", "moved-away"),
            ("linked", "link"),
            ("swapped", "replaced"),
            ("replaced", "swapped"),
            ("moved-dir", "new-place"),
            ("moved-dir/sub", "new-place/sub"),
            ("moved-dir/sub/f", "new-place/sub/f"),
            ("", ""),
        ] {
            moves.push((format!("{here}/{from}"), format!("{here}/{to}")));
        }
    }
    for name in ["merged", "merged/everywhere", "merged/written-0", "merged/read-1", "merged/read-2"] {
        moves.push((name.into(), name.into()));
    }
    let before: Vec<u64> = moves.iter().map(|(from, _)| number(s, from)).collect();
    let distinct: std::collections::BTreeSet<_> = before.iter().collect();
    assert_eq!(distinct.len(), before.len());
    let script = "
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
for layer in range(3):
    here = 'from-%d/' % layer
    for name in (here + 'written', 'merged/written-0', 'merged/everywhere'):
        with open(name, 'a') as file: file.write('+')
    os.rename(here + 'moved', here + 'moved-away')
    os.link(here + 'linked', here + 'link')
    assert libc.renameat2(-100, (here + 'swapped').encode(), -100, (here + 'replaced').encode(), 2) == 0
    os.rename(here + 'moved-dir', here + 'new-place')
    os.chmod(here + 'new-place/sub/f', 0o600)
    with open(here + 'made', 'w') as file: file.write('new')
for root, dirs, files in os.walk('.'):
    for entry in os.scandir(root):
        assert entry.inode() == os.lstat(entry.path).st_ino, entry.path
files = [os.path.join(root, name) for root, dirs, names in os.walk('.') for name in dirs + names]
assert len({os.lstat(path).st_ino for path in files}) == len(files) - 3, 'three files have two names each'
";
    s.python(script).ok();
    let check = |s: &Scene, when: &str| {
        for ((_, to), before) in moves.iter().zip(&before) {
            assert_eq!(number(s, to), *before, "{to} {when}");
        }
    };
    check(s, "after the changes");
    s.remount();
    check(s, "after a remount");
    s.python(&script[script.find("for root, dirs, files").expect("there")..]).ok();
}

scenarios! {
    shadowing, kinds_replace_each_other, file_in_the_middle_cuts, many_layers, symlinks_stay_symlinks,
    hostile_symlink_parents, listing_agrees_with_stat, copy_up_keeps_the_number,
    numbers_are_kept_and_unique,
}
