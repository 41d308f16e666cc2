// SPDX-License-Identifier: MIT OR Apache-2.0
//! Times: any that the host can hold, set by anybody who may.

use fuse_tests::{Scene, scenarios};

fn any_time(s: &mut Scene) {
    s.layer(|l| {
        l.file("f", "f");
        l.file("before", "f").mtime(-1000, 250_000_000);
        l.file("long-before", "f").mtime(-2_147_483_647, 1);
        l.file("after", "f").mtime(4_000_000_000, 999_999_999);
        l.dir("d");
        l.symlink("link", "f");
    });
    s.mount();
    let script = "
G = 1_000_000_000
def times(name):
    st = os.lstat(name)
    return st.st_atime_ns, st.st_mtime_ns
for name in ('before', 'long-before', 'after'):
    t(name, lambda: os.stat(name).st_mtime_ns)
put('new', b'')
os.mkdir('m')
os.mkfifo('pipe')
for name in ('f', 'new', 'd', 'm', 'pipe', 'before'):
    for ns in (0, 1, -1, 999_999_999, G, -G, -1_200_000_000, -2_800_000_000, -500_000_000, -1_999_999_999, -2 * G,
               1_234_567_890_123_456_789, -1_234_567_890_123_456_789, -2147483648 * G, -2147483648 * G + 1, -2147483649 * G,
               2147483647 * G + 999_999_999, 2147483648 * G, 4294967296 * G + 5, 15032385535 * G + 999_999_999, 15032385536 * G):
        t('%s %d' % (name, ns), lambda: (os.utime(name, ns=(ns, ns)), times(name)))
class Spec(ctypes.Structure):
    _fields_ = [('sec', ctypes.c_long), ('nsec', ctypes.c_long)]
def utimensat(name, a, m, flags=0):
    call('utimensat', -100, name, (Spec * 2)(Spec(*a), Spec(*m)), flags)
    return times(name)
low, high = -(1 << 63), (1 << 63) - 1
for name in ('f', 'new', 'd'):
    for sec in (low, low + 1, -(1 << 62), -(1 << 55), 1 << 55, 1 << 62, high - 1, high):
        for nsec in (0, 1, 999_999_999):
            # The library for FUSE cannot tell the least second from the next one, where the host has it (tmpfs).
            t('%s %d %d' % (name, sec, nsec), lambda: utimensat(name, (sec, nsec), (sec, nsec)) and None)
            if sec > low: t('read', times, name)
    t('bad fraction', lambda: utimensat(name, (0, G), (0, 0)))
    t('negative fraction', lambda: utimensat(name, (0, -1), (0, 0)))
    OMIT, NOW = (1 << 30) - 2, (1 << 30) - 1
    t('reset', lambda: utimensat(name, (5, 5), (-7, 7)))
    t('omit both', lambda: utimensat(name, (0, OMIT), (0, OMIT)))
    t('omit atime', lambda: utimensat(name, (0, OMIT), (-9, 9)))
    t('omit mtime', lambda: utimensat(name, (-8, 8), (0, OMIT)))
    t('now atime', lambda: utimensat(name, (0, NOW), (1, 1))[1])
    t('now mtime', lambda: utimensat(name, (2, 2), (0, NOW))[0])
    t('now', lambda: abs(utimensat(name, (0, NOW), (0, NOW))[1] / 1e9 - time.time()) < 60)
t('link', lambda: (os.utime('link', ns=(3, -4), follow_symlinks=False), times('link')))
t('link', lambda: (os.utime('link', ns=(-6, 7)), times('f')))
os.utime('new', ns=(1, -1_700_000_000))
";
    s.as_on_host(script);
    s.remount();
    assert_eq!(s.tree().node("new").mtime, (-2, 300_000_000));
}

fn by_whom(s: &mut Scene) {
    s.needs_ids("other users");
    s.layer(|l| {
        l.file("owned", "f").owner(1111, 1111).mode(0o644);
        l.file("writable", "f").mode(0o666);
        l.file("readable", "f").mode(0o644);
        l.dir("d").mode(0o777);
    });
    s.mount();
    let script = "
os.setgid(1111); os.setuid(1111)
def set(name, ns):
    os.utime(name, ns=ns)
for name in ('owned', 'writable', 'readable', 'd'):
    t(name + ' now', lambda: os.utime(name))
    t(name + ' to', lambda: os.utime(name, ns=(5, -6_500_000_000)))
    t(name + ' omit', lambda: call('utimensat', -100, name, struct.pack('=llll', 0, (1 << 30) - 2, 0, (1 << 30) - 2), 0))
    t(name + ' one now', lambda: call('utimensat', -100, name, struct.pack('=llll', 0, (1 << 30) - 1, 0, (1 << 30) - 2), 0))
t('owned', lambda: os.stat('owned').st_mtime_ns)
";
    s.as_on_host(script);
}

scenarios! { any_time, by_whom }
