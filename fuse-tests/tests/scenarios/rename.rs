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

scenarios! { files, upper_directories, lower_directories_by_mv, lower_directories, flags, errors, replace_many_times }
