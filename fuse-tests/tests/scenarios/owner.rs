// SPDX-License-Identifier: MIT OR Apache-2.0
//! Owners and permissions: shown, changed and enforced.

use fuse_tests::{Scene, scenarios};

fn shown_and_changed(s: &mut Scene) {
    s.needs_ids("files of other owners");
    s.layer(|l| {
        l.file("f", "f").owner(1000, 2000);
        l.file("d/x", "x").owner(3000, 3000);
        l.dir("d").owner(60_000, 61_000);
        l.symlink("link", "f").owner(5, 6);
    });
    s.mount();
    let tree = s.tree();
    let owner = |path: &str| (tree.node(path).uid, tree.node(path).gid);
    assert_eq!((owner("f"), owner("d"), owner("link")), ((1000, 2000), (60_000, 61_000), (5, 6)));
    s.sh("chown 11:12 f; chgrp 13 d; chown -h 14:15 link; echo y > d/y").ok();
    s.remount();
    let tree = s.tree();
    let owner = |path: &str| (tree.node(path).uid, tree.node(path).gid);
    assert_eq!((owner("f"), owner("d"), owner("link")), ((11, 12), (60_000, 13), (14, 15)));
    assert_eq!((owner("d/y"), owner("d/x")), ((0, 0), (3000, 3000)));
}

fn enforced(s: &mut Scene) {
    s.needs_ids("other users");
    s.layer(|l| {
        l.file("secret", "secret").mode(0o600);
        l.file("alices", "alices").owner(1111, 1111).mode(0o600);
        l.file("closed/x", "x");
        l.dir("closed").mode(0o700);
        l.dir("alice").owner(1111, 1111).mode(0o755);
        l.dir("tmp").mode(0o1777);
        l.file("tmp/roots", "r").mode(0o666);
        l.file("readable", "r").mode(0o644);
        l.file("group", "g").owner(0, 2222).mode(0o060);
    });
    s.mount();
    let try_as = |uid, script: &str| s.sh_as(uid, script).code == 0;
    assert!(!try_as(1111, "cat secret"), "0600 of root was read by 1111");
    assert!(try_as(1111, "cat alices"));
    assert!(!try_as(1112, "cat alices"));
    assert!(!try_as(1111, "ls closed"));
    assert!(!try_as(1111, "cat closed/x"));
    assert!(!try_as(1111, "echo x >> readable"));
    assert!(!try_as(1111, "chmod 777 readable"));
    assert!(!try_as(1111, "chown 1111 readable"));
    assert!(!try_as(1111, "rm -f readable"));
    assert!(!try_as(1111, "rm -f tmp/roots"), "the sticky bit was ignored");
    assert!(!try_as(1111, "mv tmp/roots tmp/stolen"), "the sticky bit was ignored");
    assert!(try_as(1111, "echo mine > tmp/mine; echo more >> tmp/mine; chmod 600 tmp/mine; rm tmp/mine"));
    assert!(try_as(1111, "umask 022; echo new > alice/new; mkdir alice/dir; ln -s new alice/link"));
    assert!(!try_as(1112, "echo x > alice/intruder"));
    assert!(try_as(2222, "cat group"), "gid 2222 is the group");
    let tree = s.tree();
    for path in ["alice/new", "alice/dir", "alice/link"] {
        assert_eq!((tree.node(path).uid, tree.node(path).gid), (1111, 1111), "{path} belongs to whoever made it");
    }
    assert!(s.has("tmp/roots") && s.has("readable") && !s.has("tmp/mine"));
}

fn supplementary_groups(s: &mut Scene) {
    s.needs_ids("other users");
    s.layer(|l| {
        l.file("f", "f").owner(0, 5555).mode(0o660);
        l.dir("d").owner(0, 5555).mode(0o2770);
    });
    s.mount();
    let script = "setpriv --reuid 1111 --regid 1111 --groups 5555 sh -euc 'echo more >> f; echo x > d/new'";
    s.sh(script).ok();
    assert_eq!(s.read("f"), "fmore\n");
    assert_eq!((s.tree().node("d/new").uid, s.tree().node("d/new").gid), (1111, 5555));
}

// A write or chown by somebody without the right takes the set-id bits away; seen wrong in rivals.
fn set_id_bits_are_cleared(s: &mut Scene) {
    s.needs_ids("other users");
    s.layer(|l| {
        for name in ["written", "truncated", "chowned", "by-root"] {
            l.file(name, "x").owner(0, 0).mode(0o6777);
        }
    });
    s.mount();
    s.sh_as(1111, "echo more >> written; : > truncated").ok();
    s.sh("chown 1:1 chowned").ok();
    let tree = s.tree();
    for name in ["written", "truncated", "chowned"] {
        assert_eq!(tree.node(name).mode, 0o777, "{name} kept set-id bits");
    }
    assert_eq!(tree.node("by-root").mode, 0o6777);
}

fn set_id_bits_are_cleared_cached(s: &mut Scene) {
    s.cached();
    set_id_bits_are_cleared(s);
}

// By every way to change content, through descriptors that were open when the bits came; root keeps them, and takes
// capabilities as everybody does.
fn set_id_bits_of_open_files(s: &mut Scene) {
    s.needs_root("other users, and capabilities");
    s.layer(|l| {
        for name in ["lower", "small"] {
            l.file(name, vec![b'l'; if name == "lower" { 200_000 } else { 10 }]).mode(0o666);
        }
        l.dir("d").mode(0o777);
    });
    s.mount();
    let script = "
CAP = 'security.capability'
VALUE = bytes.fromhex('0100000200200000000000000000000000000000')
open('d/new', 'wb').write(b'n' * 1000); os.chmod('d/new', 0o666)
def as_user(run):
    pid = os.fork()
    if pid == 0:
        os.setgid(1111); os.setuid(1111)
        try: run(); os._exit(0)
        except BaseException as error: print(repr(error), file=sys.stderr, flush=True); os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
def mode(name): return stat.S_IMODE(os.stat(name).st_mode)
def mapped(fd):
    with mmap.mmap(fd, 8) as m: m[0:1] = b'm'
ways = {
    'write': lambda fd, name: os.pwrite(fd, b'x', 0),
    'append': lambda fd, name: os.close(os.open(name, os.O_WRONLY | os.O_APPEND)) or os.write(fd, b'x'),
    'ftruncate': lambda fd, name: os.ftruncate(fd, 9),
    'truncate': lambda fd, name: os.truncate(name, 12),
    'fallocate': lambda fd, name: os.posix_fallocate(fd, 0, 20),
    'O_TRUNC': lambda fd, name: os.close(os.open(name, os.O_WRONLY | os.O_TRUNC)),
    'copy': lambda fd, name: os.copy_file_range(os.open('d/source', os.O_RDONLY), fd, 4),
}
open('d/source', 'wb').write(b'source'); os.chmod('d/source', 0o644)
for name in ('lower', 'small', 'd/new'):
    fd = os.open(name, os.O_RDWR)
    os.pwrite(fd, b'before', 0)
    for what, way in ways.items():
        for bits, left in ((0o6777, 0o777), (0o4755 | 0o066, 0o777), (0o2777, 0o777)):
            os.chmod(name, bits)
            as_user(lambda: way(fd, name))
            assert mode(name) == left, (name, what, oct(bits), oct(mode(name)))
        # Again at once: nothing was remembered that is no longer so.
        os.chmod(name, 0o6777)
        as_user(lambda: way(fd, name))
        assert mode(name) == 0o777, (name, what, 'again')
        os.chmod(name, 0o6777)
        way(fd, name)
        assert mode(name) == 0o6777, (name, what, 'by root')
        os.setxattr(name, CAP, VALUE)
        if what != 'fallocate':
            way(fd, name)
            assert CAP not in os.listxattr(name), (name, what, 'capability by root')
            assert mode(name) == 0o6777, (name, what, 'by root, with a capability')
            os.setxattr(name, CAP, VALUE)
        as_user(lambda: way(fd, name))
        assert CAP not in os.listxattr(name), (name, what, 'capability')
    os.chmod(name, 0o6777); os.setxattr(name, CAP, VALUE)
    os.chown(name, 5, 6)
    assert mode(name) == 0o777 and CAP not in os.listxattr(name), (name, oct(mode(name)))
    os.chown(name, 0, 0); os.chmod(name, 0o666)
";
    s.python(script).ok();
}

fn set_id_bits_of_open_files_cached(s: &mut Scene) {
    s.cached();
    set_id_bits_of_open_files(s);
}

fn own_modes_as_anybody(s: &mut Scene) {
    s.layer(|l| {
        l.file("f", "f").mode(0o640);
        l.file("d/x", "x");
        l.dir("d").mode(0o750);
    });
    s.mount();
    s.sh("chmod 400 f; chmod 500 d; echo n > n; chmod 0 n; mkdir m; chmod 0 m").ok();
    s.remount();
    let tree = s.tree();
    let modes: Vec<u32> = ["f", "d", "n", "m"].iter().map(|path| tree.node(path).mode).collect();
    assert_eq!(modes, [0o400, 0o500, 0, 0]);
    s.sh("chmod 600 n f; chmod 700 m d; echo y > m/y; echo more >> n; echo z > d/z").ok();
    assert_eq!(s.read("n"), "n\nmore\n");
}

fn mode_bits_are_enforced_on_ourselves(s: &mut Scene) {
    s.skip_when(s.identity != fuse_tests::identity::Identity::User, "root is not held back by modes");
    s.layer(|l| {
        l.file("none", "n").mode(0);
        l.file("readonly", "r").mode(0o444);
        l.file("d/x", "x");
        l.dir("d").mode(0o555);
    });
    s.mount();
    use std::io::ErrorKind::PermissionDenied;
    assert_eq!(std::fs::read(s.p("none")).expect_err("mode 0").kind(), PermissionDenied);
    assert_eq!(std::fs::write(s.p("readonly"), "x").expect_err("0444").kind(), PermissionDenied);
    assert_eq!(std::fs::write(s.p("d/new"), "x").expect_err("0555").kind(), PermissionDenied);
    assert_eq!(std::fs::remove_file(s.p("d/x")).expect_err("0555").kind(), PermissionDenied);
    s.sh("chmod 644 readonly; chmod 755 d; echo new > readonly; rm d/x").ok();
    assert_eq!(s.read("readonly"), "new\n");
}

scenarios! {
    shown_and_changed, enforced, supplementary_groups, set_id_bits_are_cleared, set_id_bits_are_cleared_cached, set_id_bits_of_open_files,
    set_id_bits_of_open_files_cached, own_modes_as_anybody,
    mode_bits_are_enforced_on_ourselves,
}
