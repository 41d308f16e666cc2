// SPDX-License-Identifier: MIT OR Apache-2.0
//! The NFS-like filesystem: that it refuses what it says it refuses, and what mlfs does with a directory on it.

use std::fs::File;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use fuse_tests::LayerSpec;
use fuse_tests::host::python;
use fuse_tests::nfs_like::Export;
use fuse_tests::world::{World, eventually, list, needs_root, read, world, write};
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, FlockOperation, Mode, OFlags, RawDir, RenameFlags, XattrFlags,
};
use rustix::io::Errno;

const ALL_TRAITS: &str = "xattr,mknod,rename-flags,flock,silly,dtype,squash,fallocate";

// An export of its own: what is done sees the mount and the directory behind it.
fn export(w: &World, options: &[&str], body: impl FnOnce(&Path, &Path)) {
    let name = format!("export-{}", list(w.sandbox.dir("nfs")).len());
    let export = Export::mount(&w.sandbox, &name, options);
    body(&export.target, &export.backing);
    export.umount();
}

fn open_rw(path: &Path) -> File {
    File::options().read(true).write(true).create(true).truncate(false).open(path).expect("open")
}

fn rename_with(from: &Path, to: &Path, flags: RenameFlags) -> rustix::io::Result<()> {
    rustix::fs::renameat_with(CWD, from, CWD, to, flags)
}

fn is_silly(name: &str) -> bool {
    name.starts_with(".nfs")
}

fn silly_names(dir: &Path) -> Vec<String> {
    list(dir).into_iter().filter(|name| is_silly(name)).collect()
}

#[test]
fn attributes_are_refused() {
    world(|w| {
        export(w, &[], |m, _| {
            write(m.join("f"), "f");
            let path = m.join("f");
            let mut space = [0; 64];
            // A list that says what mode 644 says: the kernel looks at it first.
            let entry = |tag: u8, mode: u8| [tag, 0, mode, 0, 255, 255, 255, 255];
            let list = [vec![2, 0, 0, 0], [entry(1, 6), entry(4, 4), entry(32, 4)].concat()].concat();
            for (name, value) in [("user.a", &b"v"[..]), ("system.posix_acl_access", &list)] {
                let set = rustix::fs::setxattr(&path, name, value, XattrFlags::empty());
                assert_eq!(set, Err(Errno::OPNOTSUPP), "setxattr {name}");
                let get = rustix::fs::getxattr(&path, name, &mut space);
                assert_eq!(get, Err(Errno::OPNOTSUPP), "getxattr {name}");
                assert_eq!(rustix::fs::removexattr(&path, name), Err(Errno::OPNOTSUPP), "removexattr {name}");
            }
            assert_eq!(rustix::fs::listxattr(&path, &mut space), Err(Errno::OPNOTSUPP));
        });
    });
}

#[test]
fn trusted_attributes_are_refused_to_root() {
    world(|w| {
        needs_root("trusted attributes are root's");
        export(w, &[], |m, _| {
            write(m.join("f"), "f");
            let set = rustix::fs::setxattr(m.join("f"), "trusted.a", b"v", XattrFlags::empty());
            assert_eq!(set, Err(Errno::OPNOTSUPP));
        });
    });
}

#[test]
fn attributes_are_kept_without_that_trait() {
    world(|w| {
        export(w, &["--without", "xattr"], |m, _| {
            write(m.join("f"), "f");
            let mut space = [0; 64];
            rustix::fs::setxattr(m.join("f"), "user.a", b"value", XattrFlags::empty()).expect("setxattr");
            let length = rustix::fs::getxattr(m.join("f"), "user.a", &mut space).expect("getxattr");
            assert_eq!(&space[..length], b"value");
            let length = rustix::fs::listxattr(m.join("f"), &mut space).expect("listxattr");
            assert!(space[..length].windows(6).any(|name| name == b"user.a"));
            rustix::fs::removexattr(m.join("f"), "user.a").expect("removexattr");
            assert_eq!(rustix::fs::getxattr(m.join("f"), "user.a", &mut space), Err(Errno::NODATA));
        });
    });
}

#[test]
fn pipes_and_sockets_are_made() {
    world(|w| {
        export(w, &[], |m, b| {
            for (name, kind) in [("pipe", FileType::Fifo), ("socket", FileType::Socket)] {
                rustix::fs::mknodat(CWD, m.join(name), kind, Mode::RUSR, 0).expect(name);
            }
            assert!(b.join("pipe").symlink_metadata().expect("pipe").file_type().is_fifo());
            assert!(b.join("socket").symlink_metadata().expect("socket").file_type().is_socket());
        });
    });
}

#[test]
fn devices_are_refused_to_root() {
    world(|w| {
        needs_root("devices are root's");
        export(w, &[], |m, b| {
            for kind in [FileType::CharacterDevice, FileType::BlockDevice] {
                let made = rustix::fs::mknodat(CWD, m.join("dev"), kind, Mode::RUSR, rustix::fs::makedev(0, 0));
                assert_eq!(made, Err(Errno::PERM), "{kind:?}");
            }
            assert_eq!(list(b), Vec::<String>::new());
        });
        // Root on the server too: the refusal was the trait's.
        export(w, &["--without", "mknod,squash"], |m, b| {
            let device = rustix::fs::makedev(1, 3);
            rustix::fs::mknodat(CWD, m.join("dev"), FileType::CharacterDevice, Mode::RUSR, device).expect("mknod");
            assert_eq!(b.join("dev").metadata().expect("stat").rdev(), device);
        });
    });
}

#[test]
fn nameless_files_and_holes_are_refused() {
    world(|w| {
        export(w, &[], |m, _| {
            let nameless = rustix::fs::openat(CWD, m, OFlags::TMPFILE | OFlags::RDWR, Mode::RUSR | Mode::WUSR);
            assert_eq!(nameless.err(), Some(Errno::OPNOTSUPP));
            let file = open_rw(&m.join("f"));
            let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            assert_eq!(rustix::fs::fallocate(&file, hole, 0, 4096), Err(Errno::OPNOTSUPP));
            assert_eq!(rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 4096), Err(Errno::OPNOTSUPP));
        });
        export(w, &["--without", "fallocate"], |m, _| {
            rustix::fs::fallocate(open_rw(&m.join("f")), FallocateFlags::empty(), 0, 4096).expect("fallocate");
            assert_eq!(m.join("f").metadata().expect("stat").len(), 4096);
        });
    });
}

#[test]
fn renames_take_no_flags() {
    world(|w| {
        export(w, &[], |m, _| {
            let (a, b, new) = (m.join("a"), m.join("b"), m.join("new"));
            write(&a, "a");
            write(&b, "b");
            for flags in [RenameFlags::NOREPLACE, RenameFlags::EXCHANGE, RenameFlags::WHITEOUT] {
                // Only the exchange needs the second name.
                let to = if flags == RenameFlags::EXCHANGE { &b } else { &new };
                let renamed = rename_with(&a, to, flags);
                // Without the right to make devices the kernel refuses whiteouts before it asks.
                let is_right = renamed == Err(Errno::INVAL);
                let is_kernels = flags == RenameFlags::WHITEOUT && renamed == Err(Errno::PERM);
                assert!(is_right || is_kernels, "{flags:?}: {renamed:?}");
            }
            assert_eq!((read(&a), read(&b), list(m)), ("a".into(), "b".into(), vec!["a".to_owned(), "b".to_owned()]));
            std::fs::rename(&a, &b).expect("rename");
            assert_eq!(read(&b), "a");
            eventually("one name is left", || list(m) == ["b"]);
        });
        export(w, &["--without", "rename-flags"], |m, _| {
            let (a, b) = (m.join("a"), m.join("b"));
            write(&a, "a");
            write(&b, "b");
            rename_with(&a, &b, RenameFlags::EXCHANGE).expect("exchange");
            assert_eq!((read(&a), read(&b)), ("b".into(), "a".into()));
            assert_eq!(rename_with(&a, &b, RenameFlags::NOREPLACE), Err(Errno::EXIST));
        });
    });
}

// What another process gets: an answer by name.
fn lock_elsewhere(w: &World, path: &Path, call: &str) -> String {
    let script = format!(
        "import errno, fcntl\nf = open('{}', 'r+')\ntry:\n    fcntl.{call}(f, fcntl.LOCK_EX | fcntl.LOCK_NB)\n    \
         print('locked')\nexcept OSError as e:\n    print(errno.errorcode[e.errno])",
        path.display()
    );
    python(&w.sandbox, w.sandbox.root(), &script).ok()
}

#[test]
fn flock_is_refused_and_fcntl_works() {
    world(|w| {
        export(w, &[], |m, _| {
            let file = open_rw(&m.join("f"));
            for operation in [FlockOperation::NonBlockingLockExclusive, FlockOperation::NonBlockingLockShared] {
                assert_eq!(rustix::fs::flock(&file, operation), Err(Errno::NOLCK), "{operation:?}");
            }
            rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive).expect("fcntl");
            assert_eq!(lock_elsewhere(w, &m.join("f"), "lockf"), "EAGAIN", "it is held");
            rustix::fs::fcntl_lock(&file, FlockOperation::Unlock).expect("fcntl");
            assert_eq!(lock_elsewhere(w, &m.join("f"), "lockf"), "locked", "it is free again");
        });
    });
}

#[test]
fn with_fcntl_refused_no_lock_is_left() {
    world(|w| {
        export(w, &["--with", "fcntl"], |m, _| {
            let file = open_rw(&m.join("f"));
            assert_eq!(rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive), Err(Errno::NOLCK));
            assert_eq!(rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive), Err(Errno::NOLCK));
            assert_eq!(lock_elsewhere(w, &m.join("f"), "lockf"), "ENOLCK");
        });
        export(w, &["--without", "flock"], |m, _| {
            let file = open_rw(&m.join("f"));
            rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).expect("flock");
            assert_eq!(lock_elsewhere(w, &m.join("f"), "flock"), "EAGAIN");
        });
    });
}

#[test]
fn a_removed_open_file_stays_under_a_silly_name() {
    world(|w| {
        export(w, &[], |m, b| {
            std::fs::create_dir(m.join("d")).expect("mkdir");
            write(m.join("d/f"), "content");
            let (one, two) = (open_rw(&m.join("d/f")), open_rw(&m.join("d/f")));
            std::fs::remove_file(m.join("d/f")).expect("unlink");
            let names = list(m.join("d"));
            assert!(names.len() == 1 && is_silly(&names[0]), "{names:?}");
            let removed = std::fs::remove_dir(m.join("d")).expect_err("not empty");
            assert_eq!(removed.raw_os_error(), Some(Errno::NOTEMPTY.raw_os_error()));
            let removed = std::fs::remove_file(m.join("d").join(&names[0])).expect_err("in use");
            assert_eq!(removed.raw_os_error(), Some(Errno::BUSY.raw_os_error()));
            assert_eq!(std::io::read_to_string(&one).expect("read"), "content");
            drop(one);
            assert_eq!(list(b.join("d")), names, "it is still open once");
            drop(two);
            eventually("the silly name goes at the last close", || list(m.join("d")).is_empty());
            std::fs::remove_dir(m.join("d")).expect("rmdir");
        });
        export(w, &["--without", "silly"], |m, _| {
            write(m.join("f"), "content");
            let open = open_rw(&m.join("f"));
            std::fs::remove_file(m.join("f")).expect("unlink");
            assert_eq!(list(m), Vec::<String>::new());
            assert_eq!(std::io::read_to_string(&open).expect("read"), "content");
        });
    });
}

#[test]
fn a_rename_over_an_open_file_leaves_a_silly_name() {
    world(|w| {
        export(w, &[], |m, _| {
            write(m.join("old"), "old");
            write(m.join("new"), "new");
            let open = open_rw(&m.join("old"));
            std::fs::rename(m.join("new"), m.join("old")).expect("rename");
            assert_eq!(silly_names(m).len(), 1, "{:?}", list(m));
            assert_eq!(
                (read(m.join("old")), std::io::read_to_string(&open).expect("read")),
                ("new".into(), "old".into())
            );
            drop(open);
            eventually("the silly name goes at the last close", || list(m) == ["old"]);
            // A name that is renamed while open is no removal, nor is the rename of a link over itself.
            let open = open_rw(&m.join("old"));
            std::fs::hard_link(m.join("old"), m.join("link")).expect("link");
            std::fs::rename(m.join("link"), m.join("old")).expect("rename");
            std::fs::rename(m.join("old"), m.join("moved")).expect("rename");
            assert_eq!(silly_names(m), Vec::<String>::new());
            drop(open);
        });
    });
}

fn kinds(dir: &Path) -> Vec<(String, FileType)> {
    let dir = File::open(dir).expect("open");
    let mut buffer = Vec::with_capacity(32 * 1024);
    let mut raw = RawDir::new(&dir, buffer.spare_capacity_mut());
    let mut found = Vec::new();
    while let Some(entry) = raw.next() {
        let entry = entry.expect("getdents");
        found.push((entry.file_name().to_string_lossy().into_owned(), entry.file_type()));
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

#[test]
fn listings_tell_no_kinds() {
    world(|w| {
        let fill = |m: &Path| {
            write(m.join("file"), "f");
            std::fs::create_dir(m.join("dir")).expect("mkdir");
            symlink("file", m.join("link")).expect("symlink");
        };
        export(w, &[], |m, _| {
            fill(m);
            let found = kinds(m);
            let names: Vec<_> = found.iter().map(|(name, _)| name.as_str()).collect();
            assert_eq!(names, [".", "..", "dir", "file", "link"]);
            assert!(found.iter().all(|(_, kind)| *kind == FileType::Unknown), "{found:?}");
            assert!(m.join("dir").is_dir() && m.join("link").is_symlink(), "stat tells");
        });
        export(w, &["--without", "dtype"], |m, _| {
            fill(m);
            let found: Vec<_> = kinds(m).into_iter().map(|(_, kind)| kind).skip(2).collect();
            assert_eq!(found, [FileType::Directory, FileType::RegularFile, FileType::Symlink]);
        });
    });
}

#[test]
fn large_directories_are_listed_whole() {
    world(|w| {
        export(w, &[], |m, b| {
            let names: Vec<String> = (0..3_000).map(|number| format!("a-name-of-some-length-{number:05}")).collect();
            for name in &names {
                File::create(b.join(name)).expect("create");
            }
            assert_eq!(list(m), names);
            std::fs::create_dir(m.join("of-files")).expect("mkdir");
            std::fs::remove_dir_all(m.join("of-files")).expect("rm -r");
            assert_eq!(list(m), names);
        });
    });
}

#[test]
fn root_is_nobody() {
    world(|w| {
        needs_root("an ordinary user is squashed nowhere");
        export(w, &[], |m, b| {
            write(m.join("mine"), "m");
            let stat = b.join("mine").metadata().expect("stat");
            assert_eq!((stat.uid(), stat.gid()), (65_534, 65_534));
            write(b.join("private"), "p");
            std::fs::set_permissions(b.join("private"), std::fs::Permissions::from_mode(0o600)).expect("chmod");
            let refused = std::fs::read(m.join("private")).expect_err("0600 of another");
            assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied);
            let access = rustix::fs::accessat(CWD, m.join("private"), rustix::fs::Access::READ_OK, AtFlags::empty());
            assert_eq!(access, Err(Errno::ACCESS));
            let given = std::os::unix::fs::chown(m.join("mine"), Some(0), Some(0)).expect_err("chown");
            assert_eq!(given.kind(), std::io::ErrorKind::PermissionDenied);
        });
        export(w, &["--without", "squash"], |m, b| {
            write(m.join("mine"), "m");
            assert_eq!(b.join("mine").metadata().expect("stat").uid(), 0);
            std::os::unix::fs::chown(m.join("mine"), Some(12), Some(34)).expect("chown");
            assert_eq!(b.join("mine").metadata().expect("stat").gid(), 34);
        });
    });
}

#[test]
fn links_and_numbers_are_the_servers() {
    world(|w| {
        export(w, &[], |m, b| {
            write(m.join("a"), "a");
            std::fs::hard_link(m.join("a"), m.join("b")).expect("link");
            let stat = |path: &Path| path.symlink_metadata().expect("stat");
            let number = stat(&b.join("a")).ino();
            assert_eq!((stat(&m.join("a")).nlink(), stat(&m.join("b")).ino()), (2, number));
            write(m.join("b"), "written");
            assert_eq!(read(m.join("a")), "written");
            std::fs::rename(m.join("a"), m.join("c")).expect("rename");
            assert_eq!(stat(&m.join("c")).ino(), number, "a rename keeps it");
            std::fs::remove_file(m.join("b")).expect("unlink");
            // The reader's close may come after the removal: a silly name for a moment.
            eventually("one name is left", || stat(&m.join("c")).nlink() == 1);
            assert_eq!(stat(&m.join("c")).ino(), number);
        });
    });
}

#[test]
fn numbers_outlive_the_mount() {
    world(|w| {
        let export = Export::mount(&w.sandbox, "export", &[]);
        write(export.target.join("f"), "f");
        let number = |export: &Export| export.target.join("f").metadata().expect("stat").ino();
        let before = number(&export);
        export.umount();
        let export = Export::mount(&w.sandbox, "export", &[]);
        assert_eq!((number(&export), read(export.target.join("f"))), (before, "f".into()));
        export.umount();
    });
}

#[test]
fn mappings_are_shared() {
    world(|w| {
        export(w, &[], |m, b| {
            write(m.join("f"), "0123456789");
            let script = "import mmap\nwith open('f', 'r+b') as f, open('f', 'r+b') as g:\n    \
                          a, b = mmap.mmap(f.fileno(), 10), mmap.mmap(g.fileno(), 10)\n    \
                          a[2:5] = b'abc'\n    print(b[:].decode())\n    a.flush()";
            assert_eq!(python(&w.sandbox, m, script).ok(), "01abc56789");
            eventually("the server has it", || read(b.join("f")) == "01abc56789");
        });
    });
}

#[test]
fn umount_ends_it() {
    world(|w| {
        let export = Export::mount(&w.sandbox, "export", &[]);
        assert_eq!(w.sandbox.mounts(), std::slice::from_ref(&export.target));
        assert_eq!(w.sandbox.processes().len(), 1);
        write(export.target.join("f"), "f");
        export.umount();
        assert_eq!(w.sandbox.mounts(), Vec::<std::path::PathBuf>::new());
        w.sandbox.wait_for_processes(std::time::Duration::from_secs(5)).expect("its process ends");
        assert_eq!((list(&export.target), list(&export.backing)), (vec![], vec!["f".to_owned()]));
    });
}

#[test]
fn plain_and_all_traits_are_accepted_by_name() {
    world(|w| {
        export(w, &["--plain", "--with", ALL_TRAITS], |m, _| {
            write(m.join("f"), "f");
            assert_eq!(rustix::fs::flock(open_rw(&m.join("f")), FlockOperation::LockShared), Err(Errno::NOLCK));
        });
        export(w, &["--plain"], |m, _| {
            write(m.join("f"), "f");
            rustix::fs::flock(open_rw(&m.join("f")), FlockOperation::LockShared).expect("flock");
            assert_eq!(kinds(m).last().map(|(_, kind)| *kind), Some(FileType::RegularFile));
        });
    });
}

// What mlfs says today. Once uppers on NFS work, this test is to be replaced by the scenarios on such a ground.
#[test]
fn an_upper_on_it_is_refused_in_a_sentence() {
    world(|w| {
        let export = Export::mount(&w.sandbox, "export", &[]);
        let layer = w.layer("layer", |l| {
            l.file("f", "f");
        });
        let upper = export.target.join("upper");
        let said = w.try_mount("box", &["--upper", &upper.display().to_string(), "--layer", &layer]).fails(1);
        assert_eq!(said.trim().lines().count(), 1, "{said}");
        assert!(said.contains("box cannot be mounted: operation not supported"), "{said}");
        assert_eq!(w.sandbox.mounts(), std::slice::from_ref(&export.target));
        assert_eq!(w.state("box"), None);
        assert_eq!(list(&export.target), Vec::<String>::new(), "nothing half-done stays: {said}");
        export.umount();
    });
}

fn lower() -> LayerSpec {
    let mut layer = LayerSpec::new();
    layer.file("etc/conf", "conf");
    layer.file("bin/tool", "tool").mode(0o755);
    layer.file("gone/deep/x", "x");
    layer.symlink("link", "etc/conf");
    layer.hardlink("bin/alias", "bin/tool");
    layer.file("a/b/c", "c");
    layer
}

#[test]
fn layers_lie_on_it() {
    world(|w| {
        let export = Export::mount(&w.sandbox, "export", &[]);
        // Written on the server, with names for whiteouts: a top layer hides what is below.
        let mut top = LayerSpec::new();
        top.file("etc/top", "top");
        for (name, layer) in [("bottom", lower()), ("top", top)] {
            let dir = w.sandbox.dir(format!("backing/export/{name}"));
            layer.write_dir(&dir, fuse_tests::layers::Convention::Aufs);
        }
        write(export.backing.join("top/.wh.a"), "");
        let path = |name: &str| export.target.join(name).display().to_string();
        let before = fuse_tests::Tree::take(&export.backing);
        let root = w.mount("box", &["--layer", &path("bottom"), "--layer", &path("top")]);
        assert_eq!(list(&root), ["bin", "etc", "gone", "link"]);
        assert_eq!(list(root.join("etc")), ["conf", "top"]);
        assert_eq!((read(root.join("link")), read(root.join("bin/tool"))), ("conf".into(), "tool".into()));
        let mode = root.join("bin/tool").metadata().expect("stat").mode();
        assert_eq!(mode & 0o7777, 0o755);
        // Copied up: by writing, by mode, by a new name, and through a hard link.
        write(root.join("etc/conf"), "changed");
        std::fs::set_permissions(root.join("etc/top"), std::fs::Permissions::from_mode(0o640)).expect("chmod");
        write(root.join("bin/alias"), "both");
        assert_eq!(read(root.join("bin/tool")), "both");
        std::fs::rename(root.join("link"), root.join("moved")).expect("rename");
        std::fs::remove_dir_all(root.join("gone")).expect("rm -r");
        std::fs::create_dir(root.join("a")).expect("mkdir over a whiteout");
        assert_eq!(list(root.join("a")), Vec::<String>::new());
        std::fs::remove_dir(root.join("a")).expect("rmdir");
        let look = |root: &Path| (list(root), read(root.join("etc/conf")), read(root.join("moved")));
        let expected = (["bin", "etc", "moved"].map(str::to_owned).to_vec(), "changed".into(), "changed".into());
        assert_eq!(look(&root), expected);
        w.umount("box");
        w.mlfs().ok(["start", "box"]);
        assert_eq!(look(&root), expected, "after a start too");
        w.rm("box");
        before.assert_same(&fuse_tests::Tree::take(&export.backing), fuse_tests::Compare::ALL, "the layers");
        export.umount();
    });
}

#[test]
fn images_are_loaded_from_it() {
    world(|w| {
        let export = Export::mount(&w.sandbox, "export", &[]);
        let layers = fuse_tests::driver::with_own_root(&[lower()]);
        let dir = w.sandbox.path("backing/export/image");
        fuse_tests::image::write_oci(&dir, &fuse_tests::image::image_layers(&layers), "latest");
        let source = format!("oci:{}", export.target.join("image").display());
        w.mlfs().ok(["image", "load", "-q", &source, "app"]);
        let root = w.mount("box", &["app"]);
        assert_eq!(list(&root), ["a", "bin", "etc", "gone", "link"]);
        write(root.join("etc/conf"), "changed");
        assert_eq!(read(root.join("link")), "changed");
        w.rm("box");
        export.umount();
    });
}
