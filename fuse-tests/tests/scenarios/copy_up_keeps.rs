// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the first change of something must not change: everything else about it, and about the directories above it.

use std::os::unix::fs::PermissionsExt;

use fuse_tests::identity::has_program;
use fuse_tests::layers::{What, set_mtime};
use fuse_tests::{Scene, scenarios};

// Before 1970, after 2038 (ext4 with 256-byte inodes holds both), and with every nanosecond.
fn times_of_all_kinds(s: &mut Scene) {
    let times = [(-86_400 * 365, 999_999_999), (-1, 1), (0, 0), (4_102_444_800, 123_456_789)];
    s.layer(|l| {
        for (number, (seconds, nanos)) in times.into_iter().enumerate() {
            l.dir(format!("d{number}")).mtime(seconds, nanos);
            l.file(format!("d{number}/f"), "f").mtime(seconds, nanos);
            l.file(format!("d{number}/big"), vec![b'b'; 100_000]).mtime(seconds, nanos);
            l.symlink(format!("d{number}/l"), "f").mtime(seconds, nanos);
            l.node(format!("d{number}/p"), What::Fifo).mtime(seconds, nanos);
        }
    });
    s.mount();
    let before = s.tree();
    for number in 0..times.len() {
        s.sh(&format!("chmod 600 d{number}/f d{number}/big d{number}/p; setfattr -n user.x -v y d{number} || true"))
            .ok();
        let own = rustix::process::geteuid();
        rustix::fs::chownat(
            rustix::fs::CWD,
            s.p(format!("d{number}/l")),
            Some(own),
            None,
            rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
        )
        .expect("lchown");
    }
    let same_times = |s: &Scene| {
        let after = s.tree();
        for (path, node) in &before.nodes {
            if !path.is_empty() {
                assert_eq!(after.nodes[path].mtime, node.mtime, "{}", path.escape_ascii());
            }
        }
    };
    same_times(s);
    s.remount();
    same_times(s);
}

fn modes_of_files(s: &mut Scene) {
    let mut modes = vec![0o4755, 0o2755, 0o6711, 0o1644, 0o400, 0o666];
    if s.identity != fuse_tests::identity::Identity::User {
        // What an ordinary user may not read he cannot copy.
        modes.push(0o000);
    }
    s.layer(|l| {
        for &mode in &modes {
            l.file(format!("small{mode:o}"), "content").mode(mode).xattr("user.kept", "k");
            l.file(format!("big{mode:o}"), vec![b'b'; 100_000]).mode(mode).xattr("user.kept", "k");
        }
    });
    s.mount();
    for &mode in &modes {
        for name in [format!("small{mode:o}"), format!("big{mode:o}")] {
            set_mtime(&s.p(&name), (1_500_000_000, 5));
            std::fs::rename(s.p(&name), s.p(format!("moved-{name}"))).expect("rename");
        }
    }
    s.remount();
    let tree = s.tree();
    for &mode in &modes {
        for name in [format!("moved-small{mode:o}"), format!("moved-big{mode:o}")] {
            let node = tree.node(&name);
            assert_eq!((node.mode, node.mtime), (mode, (1_500_000_000, 5)), "{name}");
        }
    }
}

// A file that was copied up without its content gets it when it is opened for writing: nobody has written yet.
fn capabilities(s: &mut Scene) {
    s.needs_root("security.capability");
    s.is_not_judged(
        "kernel overlayfs gives a file a new time when its content follows; ext4 does not when it is opened",
    );
    // VFS_CAP_REVISION_2, effective, CAP_NET_RAW.
    let mut capability = vec![1, 0, 0, 2, 0, 0x20, 0, 0];
    capability.extend([0; 12]);
    s.layer(|l| {
        l.file("small", "s").mode(0o755).xattr("security.capability", &capability);
        l.file("big", vec![b'b'; 100_000]).mode(0o755).xattr("security.capability", &capability);
    });
    s.mount();
    let has = |s: &Scene| {
        for name in ["small", "big"] {
            let xattrs = fuse_tests::tree::xattrs(&s.p(name));
            assert_eq!(xattrs.get(b"security.capability".as_slice()), Some(&capability), "{name}");
        }
    };
    s.sh("chmod 711 small big").ok();
    has(s);
    for name in ["small", "big"] {
        drop(std::fs::OpenOptions::new().write(true).open(s.p(name)).expect("open for writing"));
    }
    has(s);
    s.remount();
    has(s);
    s.sh("echo x >> big").ok();
    assert!(
        !fuse_tests::tree::xattrs(&s.p("big")).contains_key(b"security.capability".as_slice()),
        "a write takes them"
    );
}

fn access_control_lists(s: &mut Scene) {
    s.skip_when(!has_program("setfacl"), "no setfacl on this machine");
    if s.identity == fuse_tests::identity::Identity::Namespace {
        s.needs_ids("other users in a list");
    }
    s.layer(|l| {
        l.dir("d");
        l.file("d/f", "f");
    });
    s.mount();
    s.sh("setfacl -m u:7:rwx,g:8:r-- d/f; setfacl -m u:9:r-x d; setfacl -d -m u:7:rwx,m::r-x d").ok();
    let list = |s: &Scene| s.sh("getfacl -nc d d/f").ok();
    let before = list(s);
    s.sh("echo more >> d/f; touch d/new; rm d/new; chown -h $(id -u) d/f").ok();
    assert_eq!(list(s), before);
    s.remount();
    assert_eq!(list(s), before);
    assert!(before.contains("default:user:7:rwx"), "{before}");
}

fn attributes_of_many_sizes(s: &mut Scene) {
    s.layer(|l| {
        for size in [0usize, 1, 255, 256, 257, 2000] {
            l.file(format!("f{size}"), "f").xattr("user.value", vec![b'v'; size]).xattr("user.other", "");
            l.dir(format!("d{size}")).xattr("user.value", vec![b'v'; size]);
            l.file(format!("d{size}/child"), "c");
        }
    });
    s.mount();
    let before = s.tree();
    for size in [0, 1, 255, 256, 257, 2000] {
        s.sh(&format!("echo x >> f{size}; echo x >> d{size}/child")).ok();
    }
    s.remount();
    let after = s.tree();
    for (path, node) in &before.nodes {
        if !path.is_empty() {
            assert_eq!(after.nodes[path].xattrs, node.xattrs, "{}", path.escape_ascii());
        }
    }
}

/// Where data begins and ends, as the file system tells it.
fn extents(s: &Scene, path: &str) -> String {
    let script = format!(
        "f = os.open('{path}', os.O_RDONLY); size = os.fstat(f).st_size; at = 0; out = []\n\
         while at < size:\n\
         \x20   try: start = os.lseek(f, at, os.SEEK_DATA)\n\
         \x20   except OSError: break\n\
         \x20   at = os.lseek(f, start, os.SEEK_HOLE); out.append((start, at))\n\
         print(size, out)"
    );
    s.python(&script).ok()
}

fn holes(s: &mut Scene) {
    const MIB: usize = 1 << 20;
    s.layer(|l| {
        let mut middle = vec![0u8; 8 * MIB];
        middle[3 * MIB..3 * MIB + 4096].fill(b'm');
        l.file("middle", middle);
        l.file("all-hole", vec![0u8; 2 * MIB]);
    });
    s.skip_when(s.driver == fuse_tests::driver::Driver::MlfsImage, "what an image holds has no holes");
    s.mount();
    // Layers are written without holes: the upper's own file is made sparse, copied by the kernel, and grown.
    s.sh("truncate -s 8M sparse; printf data | dd of=sparse bs=1 seek=3145728 conv=notrunc status=none").ok();
    s.sh("truncate -s 64M middle; truncate -s 70000 all-hole").ok();
    let sparse = extents(s, "sparse");
    s.sh("chmod 600 sparse; ln sparse other").ok();
    assert_eq!(extents(s, "other"), sparse);
    s.remount();
    assert_eq!(extents(s, "sparse"), sparse);
    let blocks = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(s.p("middle")).expect("stat"));
    assert!(blocks * 512 <= 9 * MIB as u64, "growing filled the hole: {blocks} blocks");
}

// Copying a child up is no change of its directory.
fn directory_times_stay_when_a_child_is_copied_up(s: &mut Scene) {
    s.has_lower_links();
    s.layer(|l| {
        for dir in ["a", "a/b", "a/b/c"] {
            l.dir(dir).mtime(1_100_000_000, 11);
        }
        l.file("a/b/c/f", "f");
        l.file("a/b/c/big", vec![1; 100_000]);
        l.file("a/b/one", "linked");
        l.hardlink("a/two", "a/b/one");
    });
    s.mount();
    s.sh("chmod 600 a/b/c/f; echo x >> a/b/c/big; chmod 600 a/b/one").ok();
    for _ in 0..2 {
        let tree = s.tree();
        for dir in ["a", "a/b", "a/b/c"] {
            assert_eq!(tree.node(dir).mtime, (1_100_000_000, 11), "{dir}");
        }
        s.remount();
    }
    let mode = std::fs::metadata(s.p("a/b/c/f")).expect("stat").permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
}

// Marks of layer formats, ours included, are never a user's: not when a layer carries them, nor after a copy-up, and what
// sets them says no and changes nothing.
fn marks_are_hidden_and_not_forged(s: &mut Scene) {
    s.skip_when(!s.driver.is_mlfs(), "the rivals hide fewer names");
    s.is_not_judged("kernel overlayfs hides its own form only, and takes the other for a user's");
    let mut marks = vec!["user.overlay.foo", "user.overlay.mlfs.ino", "user.overlay.mlfs.group", "user.overlay.nlink"];
    marks.extend(["user.fuseoverlayfs.opaque", "user.overlay.protattr"]);
    let aside = "user.overlay.mlfs.aside.security.capability";
    let root = ["trusted.overlay.origin", "trusted.overlay.mlfs.ino", "trusted.overlay.overlay.opaque"];
    s.layer(|l| {
        for name in ["small", "d/f"] {
            let item = l.file(name, "content").xattr("user.mine", "m");
            for mark in &marks {
                item.xattr(mark, "y");
            }
        }
        l.file("big", vec![b'b'; 100_000]).xattr("user.mine", "m");
        l.symlink("link", "small");
        l.dir("d").xattr("user.overlay.foo", "y");
        l.dir("plain");
        l.file("plain/f", "f");
    });
    s.mount();
    let before = s.tree();
    let forge = |s: &Scene| {
        for path in ["small", "big", "d", "d/f", "link", "plain"] {
            for mark in
                marks.iter().chain(&root).chain(&[aside, "user.containers.override_stat", "user.overlay.opaque"])
            {
                let (path, what) = (s.p(path), format!("{mark} on {path}"));
                let set = rustix::fs::lsetxattr(&path, *mark, b"y", rustix::fs::XattrFlags::empty());
                assert!(set.is_err(), "{what} was set");
                assert!(rustix::fs::lgetxattr(&path, *mark, &mut [0u8; 9][..]).is_err(), "{what} is shown");
                assert!(rustix::fs::lremovexattr(&path, *mark).is_err(), "{what} was removed");
            }
        }
    };
    forge(s);
    s.tree().assert_same(&before, fuse_tests::Compare::ALL, "after what was refused");
    s.sh("chmod 600 small big d/f; chmod 711 d plain; chown -h $(id -u) link").ok();
    forge(s);
    let after = s.tree();
    for path in ["small", "d/f", "big"] {
        let names: Vec<_> = after.node(path).xattrs.keys().map(|name| name.escape_ascii().to_string()).collect();
        assert_eq!(names, ["user.mine"], "{path}");
    }
    for path in ["d", "plain", "link"] {
        assert!(after.node(path).xattrs.is_empty(), "{path}");
    }
}

/// Blocks that hold content in the upper, by name: of whoever copied data there.
fn blocks_in_upper(s: &Scene, path: &str) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(s.upper().join(path)).expect("in the upper").blocks() * 512
}

// Five changes that are none of the content copy none; what changes the content does.
fn attributes_of_a_large_file_copy_no_content(s: &mut Scene) {
    const SIZE: usize = 4 << 20;
    s.skip_when(matches!(s.driver, fuse_tests::driver::Driver::MlfsImage), "its upper is the store's");
    s.skip_when(s.driver == fuse_tests::driver::Driver::FuseOverlayfs, "the rival copies whole files");
    let is_partial = s.driver.is_mlfs() || s.identity == fuse_tests::identity::Identity::Root;
    s.skip_when(!is_partial, "kernel overlayfs: metacopy=on works in the initial namespace only");
    s.has_lower_links();
    let changes = ["chmod", "chown", "utime", "xattr", "rename", "link"];
    let follow = ["write", "mmap", "truncate", "fallocate", "copy_file_range"];
    s.layer(|l| {
        for name in changes.iter().chain(&follow) {
            l.file(*name, vec![b'x'; SIZE]);
        }
        l.file("source", vec![b's'; 10]);
    });
    s.mount();
    s.sh("chmod 600 chmod; chown $(id -u):$(id -g) chown; setfattr -n user.a -v b xattr").ok();
    // touch(1) would open it for writing.
    set_mtime(&s.p("utime"), (1_500_000_000, 5));
    s.sh("mv rename renamed; ln link linked; chmod 640 write mmap truncate fallocate copy_file_range").ok();
    for name in ["chmod", "chown", "utime", "xattr", "renamed", "linked", "link"].iter().chain(&follow) {
        assert!(blocks_in_upper(s, name) < 65_536, "{name} was copied: {} bytes", blocks_in_upper(s, name));
    }
    s.python(
        "import mmap\n\
         f = os.open('write', os.O_RDWR); os.pwrite(f, b'new', 5)\n\
         f = os.open('mmap', os.O_RDWR); m = mmap.mmap(f, 0); m[5:8] = b'new'; m.flush()\n\
         os.truncate('truncate', 1 << 20)\n\
         f = os.open('fallocate', os.O_RDWR); os.posix_fallocate(f, 0, 5 << 20)\n\
         f, g = os.open('source', os.O_RDONLY), os.open('copy_file_range', os.O_RDWR)\n\
         assert os.copy_file_range(f, g, 10, 0, 5) == 10",
    )
    .ok();
    let check = |s: &Scene| {
        let expect = |name: &str, size: usize, at: std::ops::Range<usize>, text: &[u8]| {
            let content = std::fs::read(s.p(name)).expect("read");
            assert_eq!((content.len(), &content[at.clone()]), (size, text), "{name}");
            let rest = content[..at.start].iter().chain(&content[at.end..SIZE.min(size)]);
            assert!(rest.into_iter().all(|byte| *byte == b'x'), "{name} lost its content");
        };
        expect("write", SIZE, 5..8, b"new");
        expect("mmap", SIZE, 5..8, b"new");
        expect("truncate", 1 << 20, 0..0, b"");
        expect("fallocate", 5 << 20, 0..0, b"");
        expect("copy_file_range", SIZE, 5..15, b"ssssssssss");
    };
    check(s);
    s.remount();
    check(s);
}

scenarios! {
    marks_are_hidden_and_not_forged, attributes_of_a_large_file_copy_no_content,
    times_of_all_kinds, modes_of_files, capabilities, access_control_lists, attributes_of_many_sizes, holes,
    directory_times_stay_when_a_child_is_copied_up,
}
