// SPDX-License-Identifier: MIT OR Apache-2.0
//! Access control lists: shown, inherited, changed by chmod, enforced, and malformed ones refused.

use fuse_tests::{Scene, scenarios};

// As `linux/posix_acl_xattr.h` lays them out.
const TOOLS: &str = "
UO, U, GO, G, M, O = 1, 2, 4, 8, 16, 32
def acl(*lines, version=2):
    return struct.pack('<I', version) + b''.join(struct.pack('<HHI', tag, perm, who) for tag, perm, who in lines)
NONE = 0xffffffff
ACCESS, DEFAULT = 'system.posix_acl_access', 'system.posix_acl_default'
def show(name):
    found = []
    for which in (ACCESS, DEFAULT):
        try:
            value = os.getxattr(name, which)
            found.append([struct.unpack_from('<HHI', value, at) for at in range(4, len(value), 8)])
        except OSError as error: found.append(errno.errorcode[error.errno])
    return mode_of(name), found
me, mine = os.getuid(), os.getgid()
";

fn set_and_shown(s: &mut Scene) {
    s.layer(|l| {
        l.file("lower", "l").mode(0o640);
        l.dir("dir").mode(0o750);
        l.file("big", vec![b'b'; 100_000]).mode(0o644);
    });
    s.mount();
    let script = "
put('new', b'n')
os.mkdir('newdir')
small = acl((UO, 6, NONE), (GO, 4, NONE), (O, 0, NONE))
named = acl((UO, 7, NONE), (U, 6, me), (GO, 5, NONE), (G, 3, mine), (M, 6, NONE), (O, 1, NONE))
for name in ('lower', 'new', 'dir', 'newdir', 'big'):
    for which in (ACCESS, DEFAULT):
        for value in (small, named, acl(), b'', b'x', acl(version=1), acl((UO, 6, NONE)), acl((UO, 6, NONE), (GO, 4, NONE)),
                      acl((UO, 8, NONE), (GO, 4, NONE), (O, 0, NONE)), acl((UO, 6, NONE), (GO, 4, NONE), (O, 0, NONE))[:-1],
                      acl((UO, 6, NONE), (U, 6, me), (GO, 4, NONE), (O, 0, NONE)), acl((64, 6, NONE)),
                      acl((O, 6, NONE), (GO, 4, NONE), (UO, 0, NONE)),
                      acl((UO, 7, NONE), (U, 6, me), (U, 4, me), (GO, 5, NONE), (M, 6, NONE), (O, 1, NONE)),
                      acl((UO, 7, NONE), (U, 6, NONE), (GO, 5, NONE), (M, 6, NONE), (O, 1, NONE)), named):
            t('set %s %s' % (name, which[17:]), lambda: os.setxattr(name, which, value))
            t('show %s' % name, lambda: show(name))
    for mode in (0o700, 0o777, 0o640, 0o4711, 0o2750):
        t('chmod %s' % name, lambda: (os.chmod(name, mode), show(name)))
    t('create', lambda: os.setxattr(name, ACCESS, small, os.XATTR_CREATE))
    t('show', lambda: show(name))
    t('replace', lambda: os.setxattr(name, ACCESS, small, os.XATTR_REPLACE))
    t('show', lambda: show(name))
    t('listed', lambda: [a for a in os.listxattr(name) if a.startswith('system.')])
    t('remove access', lambda: os.removexattr(name, ACCESS))
    t('remove default', lambda: os.removexattr(name, DEFAULT))
    t('again', lambda: os.removexattr(name, ACCESS))
    t('show', lambda: show(name))
    t('listed', lambda: [a for a in os.listxattr(name) if a.startswith('system.')])
t('time', lambda: os.stat('lower').st_mtime == os.stat('lower').st_mtime)
os.setxattr('big', ACCESS, named)
os.symlink('lower', 'link')
t('link', lambda: os.setxattr('link', ACCESS, named, follow_symlinks=False))
t('link', lambda: os.getxattr('link', ACCESS, follow_symlinks=False))
t('small buffer', lambda: call('getxattr', 'big', ACCESS, ctypes.create_string_buffer(4), 4))
t('size', lambda: call('getxattr', 'big', ACCESS, None, 0))
";
    s.as_on_host(&format!("{TOOLS}{script}"));
}

fn inherited(s: &mut Scene) {
    s.layer(|l| {
        l.dir("dir").mode(0o750);
        l.dir("plain");
    });
    s.mount();
    let script = "
lists = {
    'minimal': acl((UO, 7, NONE), (GO, 5, NONE), (O, 0, NONE)),
    'named': acl((UO, 7, NONE), (U, 6, me), (GO, 5, NONE), (M, 6, NONE), (O, 1, NONE)),
    'closed': acl((UO, 0, NONE), (U, 7, me), (GO, 7, NONE), (M, 7, NONE), (O, 0, NONE)),
    'open': acl((UO, 7, NONE), (GO, 7, NONE), (O, 7, NONE)),
}
for kind, value in lists.items():
    for base in ('dir', 'made'):
        if base == 'made' and not os.path.exists(base): os.mkdir(base)
        os.setxattr(base, DEFAULT, value)
        for umask in (0, 0o022, 0o077, 0o777):
            os.umask(umask)
            for mode in (0o777, 0o666, 0o600, 0o4755, 0):
                at = '%s/%s-%o-%o' % (base, kind, umask, mode)
                t(at, lambda: (os.close(os.open(at + 'f', os.O_CREAT | os.O_WRONLY, mode)), show(at + 'f')))
                t(at, lambda: (os.mkdir(at + 'd', mode), show(at + 'd')))
                t(at, lambda: (os.mkfifo(at + 'p', mode), show(at + 'p')))
                t(at, lambda: (os.mknod(at + 'n', mode | stat.S_IFREG), show(at + 'n')))
                t(at, lambda: (os.symlink('x', at + 'l'), mode_of(at + 'l')))
        os.umask(0o022)
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(base + '/sock' + kind)
            t('socket', lambda: show(base + '/sock' + kind))
for umask in (0, 0o022, 0o077, 0o777):
    os.umask(umask)
    for mode in (0o777, 0o666, 0o600, 0o4755, 0o6755, 0o1777, 0):
        at = 'plain/%o-%o' % (umask, mode)
        t(at, lambda: (os.close(os.open(at + 'f', os.O_CREAT | os.O_WRONLY, mode)), mode_of(at + 'f')))
        t(at, lambda: (os.mkdir(at + 'd', mode), mode_of(at + 'd')))
        t(at, lambda: (os.mkfifo(at + 'p', mode), mode_of(at + 'p')))
        t(at, lambda: (os.mknod(at + 'n', mode | stat.S_IFREG), mode_of(at + 'n')))
os.umask(0o022)
for base, dirs, files in os.walk('.'):
    for name in dirs: os.chmod(os.path.join(base, name), 0o700)
";
    s.as_on_host(&format!("{TOOLS}{script}"));
}

fn enforced(s: &mut Scene) {
    s.needs_ids("other users");
    s.layer(|l| {
        l.file("f", "f").mode(0o640);
        l.dir("d").mode(0o750);
        l.file("d/inside", "i").mode(0o666);
        l.file("grouped", "g").owner(1000, 2000).mode(0o664);
    });
    s.mount();
    let script = "
def as_user(uid, gid, groups, action):
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        os.setgroups(groups); os.setgid(gid); os.setuid(uid)
        action()
        sys.stdout.flush()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
def tries(who):
    def action():
        for name in ('f', 'd', 'd/inside', 'grouped', 'made', 'made/in'):
            t('%s read %s' % (who, name), lambda: os.close(os.open(name, os.O_RDONLY)))
            t('%s write %s' % (who, name), lambda: os.close(os.open(name, os.O_WRONLY)))
            t('%s access %s' % (who, name), lambda: [os.access(name, mode) for mode in (4, 2, 1, 6, 7)])
            t('%s stat %s' % (who, name), lambda: mode_of(name))
            t('%s acl %s' % (who, name), lambda: os.setxattr(name, ACCESS, acl((UO, 7, NONE), (GO, 7, NONE), (O, 7, NONE))))
        t('%s list' % who, lambda: sorted(os.listdir('d')))
        t('%s new' % who, lambda: put('d/by-' + who, b'x'))
        t('%s unlink' % who, lambda: os.unlink('d/by-' + who))
        t('%s new' % who, lambda: put('made/by-' + who, b'x'))
        t('%s of' % who, lambda: (os.stat('made/by-' + who).st_uid, show('made/by-' + who)))
    return action
os.mkdir('made')
put('made/in', b'i')
os.setxattr('f', ACCESS, acl((UO, 6, NONE), (U, 6, 1111), (U, 7, 1112), (GO, 4, NONE), (G, 6, 3333), (G, 2, 3334), (M, 6, NONE), (O, 0, NONE)))
os.setxattr('d', ACCESS, acl((UO, 7, NONE), (U, 5, 1111), (U, 7, 1112), (GO, 0, NONE), (G, 1, 3333), (M, 5, NONE), (O, 0, NONE)))
os.setxattr('grouped', ACCESS, acl((UO, 6, NONE), (U, 0, 1111), (GO, 6, NONE), (M, 4, NONE), (O, 6, NONE)))
os.setxattr('made', DEFAULT, acl((UO, 7, NONE), (U, 7, 1111), (GO, 5, NONE), (M, 7, NONE), (O, 0, NONE)))
os.setxattr('made', ACCESS, acl((UO, 7, NONE), (U, 7, 1111), (U, 7, 1112), (GO, 5, NONE), (G, 7, 3333), (M, 7, NONE), (O, 0, NONE)))
for mask in (None, 0o600, 0o660, 0o640):
    if mask is not None: os.chmod('f', mask)
    for who, uid, gid, groups in (('named', 1111, 1111, []), ('mask', 1112, 1112, []), ('group', 1113, 3333, []),
                                  ('extra', 1114, 1114, [3333]), ('two', 1115, 1115, [3333, 3334]), ('other', 1116, 1116, []),
                                  ('owner', 1000, 1000, []), ('ingroup', 1117, 2000, [])):
        as_user(uid, gid, groups, tries(who))
";
    s.as_on_host(&format!("{TOOLS}{script}"));
}

// As chmod does: who is not in the group of a set-group-id file takes the bit from it.
fn of_set_group_id_files(s: &mut Scene) {
    s.needs_ids("other users");
    s.layer(|l| {
        for who in ["out", "in", "extra", "root"] {
            l.file(who, who).owner(1111, 2222).mode(0o2755);
            l.dir(format!("dir-{who}")).owner(1111, 2222).mode(0o2755);
        }
    });
    s.mount();
    let script = "
for who, uid, gid, groups in (('out', 1111, 1111, []), ('in', 1111, 2222, []), ('extra', 1111, 1111, [5, 2222]), ('root', 0, 0, [])):
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        os.setgroups(groups); os.setgid(gid); os.setuid(uid)
        for name in (who, 'dir-' + who):
            t(name, lambda: (os.setxattr(name, ACCESS, acl((UO, 7, NONE), (U, 6, 1234), (GO, 5, NONE), (M, 7, NONE), (O, 0, NONE))), show(name)))
            t(name, lambda: (os.removexattr(name, ACCESS), show(name)))
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(pid, 0)
";
    s.as_on_host(&format!("{TOOLS}{script}"));
}

scenarios! { set_and_shown, inherited, enforced, of_set_group_id_files }
