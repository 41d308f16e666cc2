// SPDX-License-Identifier: MIT OR Apache-2.0
//! Extended attributes: the user's are kept, ours are never seen.

use fuse_tests::identity::Identity;
use fuse_tests::tree::xattrs;
use fuse_tests::{Scene, scenarios};
use rustix::fs::{XattrFlags, getxattr, lremovexattr, lsetxattr, removexattr, setxattr};
use rustix::io::Errno;

fn change_and_list(s: &mut Scene) {
    s.layer(|l| {
        l.file("lower", "l").xattr("user.one", "1").xattr("user.two", vec![0u8, 255, 10]);
        l.dir("dir").xattr("user.dir", "d");
        l.file("dir/x", "x");
    });
    s.mount();
    let lower = s.p("lower");
    assert_eq!(xattrs(&lower).len(), 2);
    setxattr(&lower, "user.three", b"3", XattrFlags::empty()).expect("set");
    setxattr(&lower, "user.one", b"changed", XattrFlags::REPLACE).expect("replace");
    removexattr(&lower, "user.two").expect("remove");
    assert_eq!(setxattr(&lower, "user.one", b"", XattrFlags::CREATE), Err(Errno::EXIST));
    assert_eq!(setxattr(&lower, "user.none", b"", XattrFlags::REPLACE), Err(Errno::NODATA));
    assert_eq!(removexattr(&lower, "user.none"), Err(Errno::NODATA));
    let expected = [(b"user.one".to_vec(), b"changed".to_vec()), (b"user.three".to_vec(), b"3".to_vec())];
    assert_eq!(xattrs(&lower), expected.into());
    setxattr(s.p("dir"), "user.more", vec![b'm'; 2000].as_slice(), XattrFlags::empty()).expect("set");
    assert_eq!(xattrs(&s.p("dir")).len(), 2);
    s.write("upper", "u");
    setxattr(s.p("upper"), "user.empty", b"", XattrFlags::empty()).expect("set");
    s.remount();
    assert_eq!(xattrs(&s.p("upper")), [(b"user.empty".to_vec(), Vec::new())].into());
    assert_eq!(s.read("lower"), "l");
}

fn sizes(s: &mut Scene) {
    s.layer(|l| {
        l.file("f", "f").xattr("user.note", "0123456789");
    });
    s.mount();
    let mut small = [0u8; 4];
    assert_eq!(getxattr(s.p("f"), "user.note", &mut small[..]), Err(Errno::RANGE));
    let mut exact = [0u8; 10];
    assert_eq!(getxattr(s.p("f"), "user.note", &mut exact[..]), Ok(10));
    assert_eq!(getxattr(s.p("f"), "user.absent", &mut small[..]), Err(Errno::NODATA));
    let mut list = [0u8; 3];
    assert_eq!(rustix::fs::listxattr(s.p("f"), &mut list[..]), Err(Errno::RANGE));
}

fn of_symlinks(s: &mut Scene) {
    s.layer(|l| {
        l.symlink("link", "f");
        l.file("f", "f");
    });
    s.mount();
    assert_eq!(lsetxattr(s.p("link"), "user.x", b"x", XattrFlags::empty()), Err(Errno::PERM));
    setxattr(s.p("link"), "user.x", b"through", XattrFlags::empty()).expect("through the link");
    assert_eq!(xattrs(&s.p("f")).len(), 1);
}

fn of_root(s: &mut Scene) {
    s.needs_root("trusted.* and security.* attributes");
    s.layer(|l| {
        // VFS_CAP_REVISION_2, effective, cap_net_raw.
        let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        l.file("ping", "p").mode(0o755).xattr("security.capability", capability).xattr("trusted.mine", "t");
    });
    s.mount();
    assert_eq!(xattrs(&s.p("ping")).len(), 2);
    s.sh("chmod 0711 ping").ok();
    assert_eq!(xattrs(&s.p("ping")).len(), 2, "chmod keeps capabilities, over copy-up too");
    setxattr(s.p("ping"), "trusted.other", b"o", XattrFlags::empty()).expect("trusted");
    lremovexattr(s.p("ping"), "trusted.mine").expect("remove");
    s.sh("echo more >> ping").ok();
    let names: Vec<String> =
        xattrs(&s.p("ping")).into_keys().map(|name| String::from_utf8_lossy(&name).into_owned()).collect();
    assert_eq!(names, ["trusted.other"], "a write clears the capability");
}

// Copy-up, opaque marks, whiteouts, origins and ownership leave marks in the upper: not one may be visible.
fn internal_ones_are_hidden(s: &mut Scene) {
    s.layer(|l| {
        l.file("d/f", "f");
        l.file("gone/x", "x");
        l.file("r/x", "x");
    });
    s.layer(|l| {
        l.opaque("gone");
        l.file("gone/y", "y");
    });
    s.mount();
    s.sh("echo c > d/f; rm -r gone; mkdir gone; echo n > gone/n; chmod 700 r; mv d/f d/g; ln d/g d/h").ok();
    s.remount();
    for (path, node) in &s.tree().nodes {
        let ours = node.xattrs.keys().filter(|name| {
            let is_acl = name.starts_with(b"system.");
            !is_acl && (s.identity == Identity::Root || name.starts_with(b"user."))
        });
        let ours: Vec<_> = ours.map(|name| String::from_utf8_lossy(name)).collect();
        assert!(ours.is_empty(), "/{} shows {ours:?}", String::from_utf8_lossy(path));
    }
}

// As many and as large as the host takes, with its errors; nothing changes where it refuses.
fn as_the_host_takes_them(s: &mut Scene) {
    s.layer(|l| {
        l.file("lower", "l").xattr("user.one", "1");
        l.file("big", vec![b'b'; 100_000]).xattr("user.one", "1");
        l.dir("dir");
    });
    s.mount();
    let script = "
put('new', b'')
for name in ('lower', 'new', 'dir', 'big'):
    def listed(): return sorted(a for a in os.listxattr(name) if a.startswith('user.'))
    for size in (0, 1, 255, 1000, 2000):
        t('%s %d' % (name, size), lambda: (os.setxattr(name, 'user.v', b'x' * size), len(os.getxattr(name, 'user.v'))))
    for size in (65535, 65536, 65537):
        t('%s %d' % (name, size), lambda: os.setxattr(name, 'user.large', b'x' * size))
    t('listed', listed)
    for length in (1, 249, 250, 251, 300):
        t('name of %d' % length, lambda: os.setxattr(name, 'user.' + 'n' * length, b''))
        t('removed', lambda: os.removexattr(name, 'user.' + 'n' * length))
    for bad in ('user.', 'none.x', 'system.x', '', 'x'):
        t('set %r' % bad, lambda: os.setxattr(name, bad, b'x'))
        t('get %r' % bad, lambda: os.getxattr(name, bad))
        t('remove %r' % bad, lambda: os.removexattr(name, bad))
    t('create', lambda: os.setxattr(name, 'user.v', b'', os.XATTR_CREATE))
    t('replace', lambda: os.setxattr(name, 'user.absent', b'', os.XATTR_REPLACE))
    t('both', lambda: os.setxattr(name, 'user.v', b'', 3))
    t('unknown flag', lambda: os.setxattr(name, 'user.v', b'', 8))
    t('removed', lambda: os.removexattr(name, 'user.v'))
    t('again', lambda: os.removexattr(name, 'user.v'))
    for number in range(20): os.setxattr(name, 'user.n%02d' % number, b'%d' % number * 10)
    t('many', lambda: [(a, os.getxattr(name, a)) for a in listed()])
    t('list size', lambda: call('listxattr', name, ctypes.create_string_buffer(10), 10))
    t('value size', lambda: call('getxattr', name, 'user.n11', ctypes.create_string_buffer(10), 10))
    t('exact size', lambda: call('getxattr', name, 'user.n11', ctypes.create_string_buffer(20), 20))
    fd = os.open(name, os.O_RDONLY)
    t('by descriptor', lambda: (os.setxattr(fd, 'user.fd', b'fd'), os.getxattr(fd, 'user.fd'), os.removexattr(fd, 'user.fd')))
    t('by O_PATH', lambda: os.getxattr(os.open(name, os.O_PATH), 'user.n11'))
os.mkfifo('pipe'); os.symlink('new', 'link')
t('pipe', lambda: os.setxattr('pipe', 'user.x', b'x'))
t('link', lambda: os.setxattr('link', 'user.x', b'x', follow_symlinks=False))
t('link', lambda: os.listxattr('link', follow_symlinks=False))
t('gone', lambda: os.getxattr('gone', 'user.x'))
";
    s.as_on_host(script);
}

scenarios! { change_and_list, sizes, of_symlinks, of_root, internal_ones_are_hidden, as_the_host_takes_them }
