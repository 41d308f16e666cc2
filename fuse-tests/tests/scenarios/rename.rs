// SPDX-License-Identifier: MIT OR Apache-2.0
//! Renames of what the lowers and the upper hold.

use fuse_tests::{Scene, scenarios};
use rustix::fs::{CWD, RenameFlags, renameat_with};

fn files(s: &mut Scene) {
    s.layer(|l| {
        l.file("a", "a");
        l.file("b", "b");
        l.file("c", "c");
        l.dir("d");
        l.symlink("link", "a");
    });
    s.mount();
    s.write("new", "new");
    let rename = |from: &str, to: &str| std::fs::rename(s.p(from), s.p(to)).unwrap_or_else(|e| panic!("{from}: {e}"));
    rename("a", "d/a");
    rename("b", "c");
    rename("new", "d/new");
    rename("link", "d/link");
    s.lists("", &["c", "d"]);
    s.lists("d", &["a", "link", "new"]);
    assert_eq!((s.read("c"), s.read("d/a")), ("b".into(), "a".into()));
    s.write("a", "again");
    s.write("b", "again");
    s.remount();
    assert_eq!((s.read("a"), s.read("b"), s.read("c")), ("again".into(), "again".into(), "b".into()));
    s.lists("", &["a", "b", "c", "d"]);
}

fn upper_directories(s: &mut Scene) {
    s.layer(|l| {
        l.file("target/x", "lower");
        l.file("gone/x", "lower");
    });
    s.mount();
    s.sh("mkdir -p one/two; echo deep > one/two/f; mv one moved; test \"$(cat moved/two/f)\" = deep").ok();
    assert!(!s.has("one"));
    let not_empty = std::fs::rename(s.p("moved"), s.p("target")).expect_err("target holds something");
    assert_eq!(not_empty.raw_os_error(), Some(rustix::io::Errno::NOTEMPTY.raw_os_error()));
    s.sh("rm target/x; mkdir fresh; echo f > fresh/f").ok();
    std::fs::rename(s.p("fresh"), s.p("target")).expect("over an emptied directory");
    s.lists("target", &["f"]);
    s.sh("rm -r gone; mv moved gone").ok();
    s.remount();
    s.lists("target", &["f"]);
    s.lists("gone", &["two"]);
    s.lists("", &["gone", "target"]);
}

// mv works whether rename(2) does or answers EXDEV.
fn lower_directories_by_mv(s: &mut Scene) {
    s.layer(|l| {
        l.file("d/a", "a").mode(0o600);
        l.file("d/sub/b", "b");
        l.dir("d").mode(0o710);
        l.dir("d/sub").mode(0o750);
        l.file("into/old", "old");
    });
    s.layer(|l| {
        l.file("d/c", "c");
        l.whiteout("d/gone");
    });
    s.mount();
    s.write("d/sub/upper", "u");
    s.sh("mv d e; mkdir d; echo new > d/new; mv e into/moved").ok();
    s.remount();
    s.lists("", &["d", "into"]);
    s.lists("d", &["new"]);
    s.lists("into", &["moved", "old"]);
    s.lists("into/moved", &["a", "c", "sub"]);
    s.lists("into/moved/sub", &["b", "upper"]);
    let tree = s.tree();
    assert_eq!(tree.node("into/moved/a").mode, 0o600);
    assert_eq!(tree.node("into/moved/sub").mode, 0o750);
}

// rename(2) itself, with all that layers hold below, and whatever is made at the old name afterwards.
fn lower_directories(s: &mut Scene) {
    s.skip_when(!s.has_index(), "kernel overlayfs: redirect_dir works in the initial namespace only");
    s.layer(|l| {
        l.file("d/deep/f", "one");
        l.file("d/gone", "one");
        l.file("other/x", "x");
        l.dir("d").mode(0o710).xattr("user.note", "n");
    });
    s.layer(|l| {
        l.file("d/two", "two");
        l.file("d/deep/f", "from two");
        l.whiteout("d/gone");
    });
    s.mount();
    let before = s.tree();
    std::fs::rename(s.p("d"), s.p("moved")).expect("rename of a merged directory");
    s.lists("moved", &["deep", "two"]);
    s.lists("", &["moved", "other"]);
    std::fs::create_dir(s.p("d")).expect("mkdir at the old name");
    s.lists("d", &[]);
    std::fs::rename(s.p("moved/deep"), s.p("other/deeper")).expect("rename of a child");
    std::fs::rename(s.p("moved"), s.p("other/moved")).expect("rename again");
    s.write("other/deeper/f", "written");
    s.remount();
    s.lists("", &["d", "other"]);
    s.lists("other", &["deeper", "moved", "x"]);
    s.lists("other/moved", &["two"]);
    assert_eq!(s.read("other/deeper/f"), "written");
    let (was, is) = (before.node("d").clone(), s.tree().node("other/moved").clone());
    assert_eq!((was.mode, was.uid, was.xattrs), (is.mode, is.uid, is.xattrs));
    s.write("other/moved/gone", "new");
    assert_eq!(s.read("other/moved/gone"), "new");
}

fn flags(s: &mut Scene) {
    s.layer(|l| {
        l.file("a", "a");
        l.file("b", "b");
        l.file("dir/x", "x");
    });
    s.mount();
    let exists = renameat_with(CWD, s.p("a"), CWD, s.p("b"), RenameFlags::NOREPLACE).expect_err("b exists");
    assert_eq!(exists, rustix::io::Errno::EXIST);
    renameat_with(CWD, s.p("a"), CWD, s.p("c"), RenameFlags::NOREPLACE).expect("NOREPLACE to a free name");
    renameat_with(CWD, s.p("b"), CWD, s.p("c"), RenameFlags::EXCHANGE).expect("EXCHANGE of lower files");
    assert_eq!((s.read("b"), s.read("c")), ("a".into(), "b".into()));
    s.write("up", "up");
    renameat_with(CWD, s.p("up"), CWD, s.p("b"), RenameFlags::EXCHANGE).expect("EXCHANGE of upper and lower");
    assert_eq!((s.read("up"), s.read("b")), ("a".into(), "up".into()));
    s.remount();
    s.lists("", &["b", "c", "dir", "up"]);
}

fn errors(s: &mut Scene) {
    s.layer(|l| {
        l.file("f", "f");
        l.file("d/x", "x");
        l.dir("empty");
    });
    s.mount();
    let code = |from: &str, to: &str| std::fs::rename(s.p(from), s.p(to)).map_err(|error| error.raw_os_error());
    use rustix::io::Errno;
    assert_eq!(code("none", "x"), Err(Some(Errno::NOENT.raw_os_error())));
    assert_eq!(code("f", "empty"), Err(Some(Errno::ISDIR.raw_os_error())));
    assert_eq!(code("f", "d/x/y"), Err(Some(Errno::NOTDIR.raw_os_error())));
    assert_eq!(code("empty", "f"), Err(Some(Errno::NOTDIR.raw_os_error())));
    assert_eq!(code("d", "d/inside"), Err(Some(Errno::INVAL.raw_os_error())));
    assert_eq!(code("f", "f"), Ok(()));
    s.lists("", &["d", "empty", "f"]);
    assert_eq!(fuse_tests::Tree::take(&s.upper()).names(), Vec::<String>::new(), "failed renames copied something up");
    s.is_not_judged("nothing changed");
}

// Editors and databases: write aside, sync, rename over, again and again.
fn replace_many_times(s: &mut Scene) {
    s.layer(|l| {
        l.file("conf", "0");
    });
    s.mount();
    for number in 1..=50 {
        s.write("conf.tmp", number.to_string());
        std::fs::File::open(s.p("conf.tmp")).and_then(|file| file.sync_all()).expect("fsync");
        std::fs::rename(s.p("conf.tmp"), s.p("conf")).expect("rename");
        assert_eq!(s.read("conf"), number.to_string());
    }
    s.lists("", &["conf"]);
}

// Trees of layers in which every directory has children of its own, of both layers and of one only.
fn many_directories(s: &mut Scene) {
    s.skip_when(!s.has_index(), "kernel overlayfs: redirect_dir works in the initial namespace only");
    s.layer(|l| {
        for dir in ["a", "b", "c", "e"] {
            for file in ["x", "y", "sub/z", "sub/deep/w"] {
                l.file(format!("{dir}/{file}"), format!("{dir}-{file}"));
            }
        }
        l.dir("empty");
        l.file("f1", "f1");
        l.file("f2", "f2");
        l.file("p/q/r/s", "s");
        l.file("whited/old", "old");
    });
    s.layer(|l| {
        l.file("a/two", "two");
        l.file("b/sub/two", "two");
        l.whiteout("a/y");
        l.file("c/new", "n");
        l.opaque("c");
        l.dir("empty");
    });
    s.mount();
}

fn step(s: &Scene, from: &str, to: &str) {
    std::fs::rename(s.p(from), s.p(to)).unwrap_or_else(|error| panic!("{from} to {to}: {error}"));
}

fn swap(s: &Scene, a: &str, b: &str) {
    renameat_with(CWD, s.p(a), CWD, s.p(b), RenameFlags::EXCHANGE)
        .unwrap_or_else(|error| panic!("{a} and {b}: {error}"));
}

// Twice, to each other's names, with a parent that moves afterwards, with children whited out and made again.
fn directories_again_and_again(s: &mut Scene) {
    many_directories(s);
    for (from, to) in
        [("a", "a1"), ("a1", "a2"), ("b", "a1"), ("a2", "a"), ("p/q", "e/q"), ("e", "p/e"), ("p", "pp"), ("c", "pp/c")]
    {
        step(s, from, to);
    }
    s.lists("a", &["sub", "two", "x"]);
    s.write("pp/e/q/r/new", "n");
    std::fs::remove_file(s.p("pp/e/q/r/s")).expect("unlink");
    step(s, "pp/e/q/r", "r");
    step(s, "pp/e/sub", "empty");
    step(s, "pp", "sub");
    s.remount();
    s.lists("", &["a", "a1", "empty", "f1", "f2", "r", "sub", "whited"]);
    s.lists("r", &["new"]);
    s.lists("empty", &["deep", "z"]);
    s.lists("a1/sub", &["deep", "two", "z"]);
    s.lists("sub/e", &["q", "x", "y"]);
    s.lists("sub/c", &["new"]);
    assert_eq!((s.read("a1/sub/deep/w"), s.read("sub/e/x")), ("b-sub/deep/w".into(), "e-x".into()));
    // What is below goes with a directory that has moved, and does not come back at either name.
    s.sh("rm a/x; echo new > a/x; rm -r a/sub; mkdir a/sub; mv a t; mv t a; rm -r a1 sub; mkdir a1 sub b p p/q e").ok();
    s.remount();
    s.lists("a", &["sub", "two", "x"]);
    assert_eq!(s.read("a/x"), "new\n");
    for dir in ["a/sub", "a1", "sub", "b", "p/q", "e"] {
        s.lists(dir, &[]);
    }
}

fn directories_over_others(s: &mut Scene) {
    many_directories(s);
    // Over merged directories that were emptied, over a whiteout, into an opaque directory and out of it.
    s.sh("rm -r a/* b/* whited f1; mkdir up; echo u > up/u").ok();
    for (from, to) in [("e", "a"), ("a", "c/a"), ("c/a", "b"), ("p", "empty"), ("empty", "whited"), ("whited", "f1")] {
        step(s, from, to);
    }
    s.lists("b", &["sub", "x", "y"]);
    step(s, "up", "e");
    step(s, "e", "whited");
    step(s, "c/new", "whited/new");
    step(s, "b/sub", "c/new");
    s.remount();
    s.lists("", &["b", "c", "f1", "f2", "whited"]);
    s.lists("b", &["x", "y"]);
    s.lists("c", &["new"]);
    s.lists("c/new", &["deep", "z"]);
    s.lists("f1", &["q"]);
    s.lists("whited", &["new", "u"]);
    let taken = renameat_with(CWD, s.p("b"), CWD, s.p("c"), RenameFlags::NOREPLACE).expect_err("c exists");
    assert_eq!(taken, rustix::io::Errno::EXIST);
    renameat_with(CWD, s.p("b"), CWD, s.p("whited/b"), RenameFlags::NOREPLACE).expect("a free name");
    s.lists("whited/b", &["x", "y"]);
}

fn directories_change_places(s: &mut Scene) {
    many_directories(s);
    swap(s, "a", "f1");
    swap(s, "f1", "b");
    swap(s, "b/sub", "c");
    swap(s, "b/sub", "e/sub");
    std::os::unix::fs::symlink("f2", s.p("link")).expect("symlink");
    swap(s, "link", "p");
    swap(s, "link/q", "f2");
    swap(s, "empty", "whited");
    let code =
        |a: &str, b: &str| renameat_with(CWD, s.p(a), CWD, s.p(b), RenameFlags::EXCHANGE).map_err(|e| e.raw_os_error());
    use rustix::io::Errno;
    assert_eq!(code("e", "e/sub"), Err(Errno::INVAL.raw_os_error()), "with its own child");
    assert_eq!(code("e", "gone"), Err(Errno::NOENT.raw_os_error()));
    assert_eq!(code("gone", "e"), Err(Errno::NOENT.raw_os_error()));
    s.remount();
    s.lists("", &["a", "b", "c", "e", "empty", "f1", "f2", "link", "p", "whited"]);
    assert_eq!((s.read("a"), s.read("link/q")), ("f1".into(), "f2".into()));
    s.lists("whited", &[]);
    s.lists("empty", &["old"]);
    s.lists("f2", &["r"]);
    assert_eq!(s.read("f2/r/s"), "s");
    // Out of the way again: the names that layers have stay free.
    s.sh("rm -r empty f1 f2 link/q; mkdir empty f2; echo new > f1").ok();
    s.remount();
    s.lists("empty", &[]);
    s.lists("f2", &[]);
}

fn flags_that_are_refused(s: &mut Scene) {
    s.layer(|l| {
        l.file("a", "a");
        l.file("d/x", "x");
    });
    s.mount();
    let invalid = rustix::io::Errno::INVAL;
    let both = RenameFlags::EXCHANGE | RenameFlags::NOREPLACE;
    for flags in
        [RenameFlags::WHITEOUT, both, RenameFlags::WHITEOUT | RenameFlags::EXCHANGE, RenameFlags::from_bits_retain(8)]
    {
        assert_eq!(renameat_with(CWD, s.p("a"), CWD, s.p("b"), flags).expect_err("refused"), invalid, "{flags:?}");
    }
    let code = |from: &str, to: &str| std::fs::rename(s.p(from), s.p(to)).map_err(|error| error.raw_os_error());
    assert_eq!(code("d", "d/x/y"), Err(Some(rustix::io::Errno::NOTDIR.raw_os_error())));
    assert_eq!(code("d", "d/sub"), Err(Some(invalid.raw_os_error())), "into itself");
    assert_eq!(code("d/x", "d"), Err(Some(rustix::io::Errno::NOTEMPTY.raw_os_error())), "over what it lies in");
    s.lists("", &["a", "d"]);
}

// The rules of others: sticky directories, and that a directory which gets another parent is written itself (its `..`).
fn rights_of_others(s: &mut Scene) {
    s.needs_root("other users");
    s.layer(|l| {
        l.dir("open").mode(0o777);
        l.dir("sticky").mode(0o1777);
        for dir in ["mine", "theirs", "read-only"] {
            l.file(format!("open/{dir}/f"), "f").owner(1234, 1234);
            l.dir(format!("open/{dir}")).owner(1234, 1234).mode(0o755);
            l.file(format!("sticky/{dir}/f"), "f").owner(1234, 1234);
            l.dir(format!("sticky/{dir}")).owner(1234, 1234).mode(0o755);
        }
        l.dir("open/theirs").owner(77, 77);
        l.dir("sticky/theirs").owner(77, 77);
        l.dir("open/read-only").mode(0o555);
        l.file("sticky/file", "f").owner(77, 77);
        l.file("open/file", "f").owner(77, 77);
    });
    s.mount();
    let refused = |script: &str| assert_ne!(s.sh_as(1234, script).code, 0, "{script}");
    refused("mv -T sticky/theirs sticky/taken");
    refused("mv -T sticky/file sticky/taken");
    refused("rm -f sticky/file");
    refused("rmdir sticky/theirs");
    refused("mv -T open/file sticky/file");
    // Another name in the same directory needs the right to write there; another parent, to write the directory itself.
    s.sh_as(1234, "mv -T open/theirs open/renamed; mv -T open/read-only open/still-read-only").ok();
    refused("python3 -c 'import os; os.rename(\"open/renamed\", \"sticky/renamed\")'");
    refused("python3 -c 'import os; os.rename(\"open/still-read-only\", \"sticky/moved\")'");
    s.sh_as(1234, "mv -T open/mine sticky/moved; mv -T sticky/mine open/mine; mv open/file open/mine").ok();
    s.remount();
    s.lists("open", &["mine", "renamed", "still-read-only"]);
    s.lists("sticky", &["file", "moved", "read-only", "theirs"]);
    s.lists("open/mine", &["f", "file"]);
}

scenarios! {
    files, upper_directories, lower_directories_by_mv, lower_directories, flags, errors, replace_many_times,
    directories_again_and_again, directories_over_others, directories_change_places, flags_that_are_refused,
    rights_of_others,
}
