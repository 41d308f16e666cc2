// SPDX-License-Identifier: MIT OR Apache-2.0
//! The first change of something that a lower holds.

use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use fuse_tests::{Scene, scenarios};

fn content_changes(s: &mut Scene) {
    s.layer(|l| {
        for name in ["write", "append", "truncate", "shrink", "grow", "patch"] {
            l.file(format!("d/{name}"), "0123456789");
        }
        l.file("d/untouched", "u");
    });
    s.mount();
    s.write("d/write", "all new");
    let open = |name: &str, options: &mut std::fs::OpenOptions| options.open(s.p(format!("d/{name}"))).expect("open");
    open("append", std::fs::OpenOptions::new().append(true)).write_all(b"+").expect("append");
    open("truncate", std::fs::OpenOptions::new().write(true).truncate(true));
    open("shrink", std::fs::OpenOptions::new().write(true)).set_len(3).expect("shrink");
    open("grow", std::fs::OpenOptions::new().write(true)).set_len(12).expect("grow");
    let mut file = open("patch", std::fs::OpenOptions::new().read(true).write(true));
    file.seek(SeekFrom::Start(4)).expect("seek");
    file.write_all(b"XY").expect("write");
    file.rewind().expect("seek");
    let mut text = String::new();
    file.read_to_string(&mut text).expect("read");
    assert_eq!(text, "0123XY6789");
    drop(file);
    let check = |s: &Scene| {
        assert_eq!(s.read("d/write"), "all new");
        assert_eq!(s.read("d/append"), "0123456789+");
        assert_eq!(s.read("d/truncate"), "");
        assert_eq!(s.read("d/shrink"), "012");
        assert_eq!(s.read("d/grow"), "0123456789\0\0");
        assert_eq!(s.read("d/patch"), "0123XY6789");
    };
    check(s);
    s.remount();
    check(s);
}

// Seen wrong in rivals: 0700 and 01777 become 0755, times and xattrs are lost.
fn directories_keep_themselves(s: &mut Scene) {
    let modes = [0o700, 0o1777, 0o2777, 0o2750, 0o755, 0o711];
    s.layer(|l| {
        for mode in modes {
            l.dir(format!("d{mode:o}")).mode(mode).xattr("user.note", format!("{mode:o}"));
            l.file(format!("d{mode:o}/sub/file"), "f");
            l.dir(format!("d{mode:o}/sub")).mode(mode);
        }
    });
    s.mount();
    let before = s.tree();
    for mode in modes {
        s.write(&format!("d{mode:o}/sub/file"), "changed");
    }
    s.remount();
    let after = s.tree();
    for mode in modes {
        for dir in [format!("d{mode:o}"), format!("d{mode:o}/sub")] {
            let (was, is) = (before.node(&dir), after.node(&dir));
            assert_eq!(is.mode, mode, "{dir}");
            assert_eq!((was.uid, was.gid, &was.xattrs, was.mtime), (is.uid, is.gid, &is.xattrs, is.mtime), "{dir}");
        }
    }
}

fn metadata_changes_keep_the_content(s: &mut Scene) {
    let content: Vec<u8> = (0..300_000u32).map(|number| (number % 251) as u8).collect();
    s.layer(|l| {
        for name in ["chmod", "utime", "xattr", "rename", "link"] {
            l.file(name, &content).mode(0o640).xattr("user.kept", "yes").mtime(1_200_000_000, 42);
        }
    });
    s.mount();
    let before = s.tree();
    std::fs::set_permissions(s.p("chmod"), std::fs::Permissions::from_mode(0o4711)).expect("chmod");
    fuse_tests::layers::set_mtime(&s.p("utime"), (1_300_000_000, 987_654_321));
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(s.p("xattr"), "user.more", b"m", flags).expect("setxattr");
    std::fs::rename(s.p("rename"), s.p("renamed")).expect("rename");
    if s.has_index() {
        std::fs::hard_link(s.p("link"), s.p("link2")).expect("link");
    } else {
        std::fs::rename(s.p("link"), s.p("link2")).expect("rename");
    }
    let after = s.tree();
    for (was, is) in
        [("chmod", "chmod"), ("utime", "utime"), ("xattr", "xattr"), ("rename", "renamed"), ("link", "link2")]
    {
        let (was, is) = (before.node(was), after.node(is));
        assert_eq!(was.body, is.body);
        assert_eq!(is.xattrs.get(b"user.kept".as_slice()), Some(&b"yes".to_vec()));
    }
    assert_eq!(after.node("chmod").mode, 0o4711);
    assert_eq!(after.node("chmod").mtime, (1_200_000_000, 42));
    assert_eq!(after.node("utime").mtime, (1_300_000_000, 987_654_321));
    assert_eq!(after.node("renamed").mtime, (1_200_000_000, 42));
    assert_eq!(after.node("renamed").mode, 0o640);
    assert_eq!(after.node("xattr").xattrs.len(), 2);
}

fn reading_copies_nothing(s: &mut Scene) {
    s.layer(|l| {
        l.file("a/b/c", "x");
        l.symlink("link", "a/b/c");
    });
    s.mount();
    assert_eq!(s.read("link"), "x");
    drop(std::fs::File::open(s.p("a/b/c")).expect("open"));
    let upper = fuse_tests::Tree::take(&s.upper());
    assert_eq!(upper.names(), Vec::<String>::new(), "reading made something in the upper");
}

fn symlinks_and_their_times(s: &mut Scene) {
    s.layer(|l| {
        l.symlink("link", "target").mtime(1_000_000_123, 5);
        l.file("target", "t");
    });
    s.mount();
    fuse_tests::layers::set_mtime(&s.p("link"), (1_400_000_000, 7));
    let tree = s.tree();
    assert_eq!(tree.node("link").mtime, (1_400_000_000, 7));
    assert_ne!(tree.node("target").mtime, (1_400_000_000, 7), "the time of the target was set instead");
}

// One handle reads, another writes: both go on, and whoever opens afterwards sees the new content.
fn readers_while_writing(s: &mut Scene) {
    s.layer(|l| {
        l.file("f", "old content");
        l.file("big", vec![b'a'; 1 << 20]);
    });
    s.mount();
    for name in ["f", "big"] {
        let mut reader = std::fs::File::open(s.p(name)).expect("open");
        let mut start = [0u8; 3];
        reader.read_exact(&mut start).expect("read");
        let mut writer = std::fs::OpenOptions::new().write(true).open(s.p(name)).expect("open for writing");
        writer.write_all(b"new").expect("write");
        reader.read_exact(&mut start).expect("the old reader goes on");
        assert_eq!(&std::fs::read(s.p(name)).expect("read")[..3], b"new");
        assert_eq!(reader.metadata().expect("fstat").len(), writer.metadata().expect("fstat").len());
    }
    assert_eq!(s.read("f"), "new content");
}

fn umask_and_modes_of_new_files(s: &mut Scene) {
    s.layer(|l| {
        l.dir("d");
    });
    s.mount();
    s.sh("umask 027; echo x > d/file; mkdir d/dir; ln -s file d/link; umask 0; mkdir d/open; echo y > d/openfile").ok();
    let tree = s.tree();
    let mode = |path: &str| tree.node(path).mode;
    assert_eq!((mode("d/file"), mode("d/dir")), (0o640, 0o750));
    assert_eq!((mode("d/open"), mode("d/openfile")), (0o777, 0o666), "the daemon's own umask was applied");
    let created = s.python("fd = os.open('d/exact', os.O_CREAT | os.O_WRONLY, 0o400); os.write(fd, b'still writable')");
    created.ok();
    assert_eq!(s.tree().node("d/exact").mode, 0o400);
}

fn set_group_id_directories(s: &mut Scene) {
    s.needs_ids("files of another group");
    s.layer(|l| {
        l.dir("shared").mode(0o2775).owner(0, 1234);
        l.dir("plain").mode(0o777);
    });
    s.mount();
    s.sh("echo x > shared/file; mkdir shared/dir; echo x > plain/file").ok();
    let tree = s.tree();
    assert_eq!((tree.node("shared/file").gid, tree.node("shared/dir").gid), (1234, 1234));
    assert_eq!(tree.node("shared/dir").mode & 0o2000, 0o2000, "new directories hand the bit on");
    assert_eq!(tree.node("plain/file").gid, 0);
}

fn default_acl_is_inherited(s: &mut Scene) {
    s.skip_when(!fuse_tests::identity::has_program("setfacl"), "no setfacl on this machine");
    s.layer(|l| {
        l.dir("d");
    });
    s.mount();
    s.sh("setfacl -d -m u::rwx,g::r-x,o::--- d; umask 0; echo x > d/f; mkdir d/sub").ok();
    let tree = s.tree();
    assert_eq!(tree.node("d/f").mode, 0o640, "a default ACL replaces the umask");
    assert_eq!(tree.node("d/sub").mode, 0o750);
    assert_eq!(s.sh("getfacl -cdp d/sub").ok(), "user::rwx\ngroup::r-x\nother::---\n");
}

fn truncate_by_path_without_opening(s: &mut Scene) {
    s.layer(|l| {
        l.file("f", vec![7u8; 200_000]).mode(0o600);
    });
    s.mount();
    s.python("os.truncate('f', 70000)").ok();
    let meta = std::fs::metadata(s.p("f")).expect("stat");
    assert_eq!((meta.len(), meta.mode() & 0o7777), (70_000, 0o600));
    assert!(std::fs::read(s.p("f")).expect("read").iter().all(|byte| *byte == 7));
}

scenarios! {
    content_changes, directories_keep_themselves, metadata_changes_keep_the_content, reading_copies_nothing,
    symlinks_and_their_times, readers_while_writing, umask_and_modes_of_new_files, set_group_id_directories,
    default_acl_is_inherited, truncate_by_path_without_opening,
}
