// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who may do what, as the host's own filesystem decides it: set-id bits, groups, ownership, access(2), sticky directories.

use fuse_tests::{Scene, scenarios};

const TOOLS: &str = "
def as_user(uid, gid, groups, action):
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        try:
            os.setgroups(groups); os.setgid(gid); os.setuid(uid)
            action()
        except BaseException as error: print('uncaught', error)
        sys.stdout.flush()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
def owner(name):
    st = os.lstat(name)
    return oct(stat.S_IMODE(st.st_mode)), st.st_uid, st.st_gid
PEOPLE = (('root', 0, 0, []), ('root-in-group', 0, 0, [2222]), ('alice', 1111, 1111, []), ('grouped', 1112, 2222, []), ('extra', 1113, 1113, [2222]), ('other', 1114, 1114, []))
";

fn set_group_id(s: &mut Scene) {
    s.needs_ids("other users");
    s.layer(|l| {
        l.dir("sgid").owner(1111, 2222).mode(0o2777);
        l.dir("plain").owner(1111, 2222).mode(0o777);
        l.file("alices", "a").owner(1111, 2222).mode(0o2711);
    });
    s.mount();
    let script = "
os.mkdir('made'); os.chown('made', 1111, 2222); os.chmod('made', 0o2777)
for who, uid, gid, groups in PEOPLE:
    def action():
        os.umask(0)
        for base in ('sgid', 'plain', 'made'):
            for mode in (0o777, 0o2777, 0o2767, 0o2755, 0o6755, 0o4755, 0o2745, 0o1777):
                at = '%s/%s-%o' % (base, who, mode)
                t(at, lambda: (os.close(os.open(at + 'f', os.O_CREAT | os.O_WRONLY, mode)), owner(at + 'f')))
                t(at, lambda: (os.mkdir(at + 'd', mode), owner(at + 'd')))
                t(at, lambda: (os.mknod(at + 'n', mode | stat.S_IFREG), owner(at + 'n')))
                t(at, lambda: (os.mkfifo(at + 'p', mode), owner(at + 'p')))
                t(at, lambda: (os.symlink('x', at + 'l'), owner(at + 'l')))
                for name in ('f', 'd', 'p'):
                    t('chmod ' + at + name, lambda: (os.chmod(at + name, 0o2775), owner(at + name)))
                    t('chmod ' + at + name, lambda: (os.chmod(at + name, 0o6744), owner(at + name)))
                    t('chgrp ' + at + name, lambda: (os.chown(at + name, -1, gid), owner(at + name)))
                    t('chgrp ' + at + name, lambda: (os.chown(at + name, -1, 2222), owner(at + name)))
            nested = base + '/' + who + '-nested'
            t('nested', lambda: (os.makedirs(nested + '/a/b'), owner(nested), owner(nested + '/a/b')))
        t('tmpfile', lambda: 0)
    as_user(uid, gid, groups, action)
t('alices', lambda: owner('alices'))
as_user(1111, 1111, [], lambda: t('not in its group', lambda: (os.chmod('alices', 0o2711), owner('alices'))))
";
    s.as_on_host(&format!("{TOOLS}{script}"));
}

fn cleared_by_changes(s: &mut Scene) {
    s.needs_ids("other users");
    s.layer(|l| {
        for mode in [0o6777, 0o6767, 0o4777, 0o2777, 0o2767, 0o1777] {
            for how in HOW.split_whitespace() {
                for who in ["root", "alice", "grouped", "other", "owner"] {
                    l.file(format!("{mode:o}-{how}-{who}"), "0123456789").owner(1111, 2222).mode(mode);
                }
            }
        }
    });
    s.mount();
    let script = "
def mapped(name):
    with open(name, 'r+b') as f:
        m = mmap.mmap(f.fileno(), 0)
        m[0:1] = b'X'
        m.flush()
def opened(flags, action):
    def run(name):
        fd = os.open(name, flags)
        action(fd)
        os.close(fd)
    return run
HOW = {
    'write': opened(os.O_RDWR, lambda fd: os.write(fd, b'x')),
    'append': opened(os.O_WRONLY | os.O_APPEND, lambda fd: os.write(fd, b'x')),
    'empty-write': opened(os.O_WRONLY, lambda fd: os.write(fd, b'')),
    'ftruncate': opened(os.O_WRONLY, lambda fd: os.ftruncate(fd, 5)),
    'same-size': opened(os.O_WRONLY, lambda fd: os.ftruncate(fd, 10)),
    'truncate': lambda name: os.truncate(name, 3),
    'extend': lambda name: os.truncate(name, 300),
    'o-trunc': opened(os.O_WRONLY | os.O_TRUNC, lambda fd: None),
    'creat': opened(os.O_WRONLY | os.O_TRUNC | os.O_CREAT, lambda fd: None),
    'open': opened(os.O_RDWR, lambda fd: None),
    'fallocate': opened(os.O_RDWR, lambda fd: call('fallocate', fd, 0, 0, 100)),
    'punch': opened(os.O_RDWR, lambda fd: call('fallocate', fd, 3, 0, 5)),
    'copy-range': opened(os.O_RDWR, lambda fd: os.copy_file_range(fd, fd, 2, 0, 5)),
    'utime': lambda name: os.utime(name),
    'chown-self': lambda name: os.chown(name, 1111, 2222),
    'chown-none': lambda name: os.chown(name, -1, -1),
    'chgrp': lambda name: os.chown(name, -1, os.getgid()),
    'xattr': lambda name: os.setxattr(name, 'user.x', b'x'),
    'rename': lambda name: os.rename(name, name),
}
for who, uid, gid, groups in (('root', 0, 0, []), ('alice', 1111, 1111, []), ('owner', 1111, 2222, []), ('grouped', 1112, 2222, []), ('other', 1114, 1114, [])):
    def action():
        for mode in ('6777', '6767', '4777', '2777', '2767', '1777'):
            for how, change in HOW.items():
                name = mode + '-' + how + '-' + who
                if not os.path.exists(name): continue
                t(name, lambda: (change(name), owner(name))[1])
                t(name + ' again', lambda: owner(name))
    as_user(uid, gid, groups, action)
";
    s.as_on_host(&format!("{TOOLS}{script}"));
}

const HOW: &str = "write append empty-write ftruncate same-size truncate extend o-trunc creat open fallocate punch copy-range \
                   utime chown-self chown-none chgrp xattr";

fn decided_by_the_kernel(s: &mut Scene) {
    s.skip_when(!s.has_index(), "kernel overlayfs: index=on works in the initial namespace only");
    s.needs_ids("other users");
    s.layer(|l| {
        for mode in [0o000, 0o400, 0o040, 0o004, 0o777, 0o111, 0o755, 0o640, 0o077] {
            l.file(format!("f{mode:o}"), "f").owner(1111, 2222).mode(mode);
            l.file(format!("d{mode:o}/in"), "f").owner(1111, 2222).mode(0o666);
            l.dir(format!("d{mode:o}")).owner(1111, 2222).mode(mode);
        }
        l.dir("sticky").owner(1111, 1111).mode(0o1777);
        for who in ["root", "alice", "grouped", "other"] {
            l.file(format!("sticky/of-{who}"), "s").owner(1112, 2222).mode(0o666);
            l.dir(format!("sticky/dir-of-{who}")).owner(1112, 2222).mode(0o777);
        }
        l.file("sticky/alices", "s").owner(1111, 2222).mode(0o666);
        l.file("roots", "r").owner(0, 0).mode(0o600);
    });
    s.mount();
    let script = "
for who, uid, gid, groups in PEOPLE:
    def action():
        for mode in ('0', '400', '40', '4', '777', '111', '755', '640', '77'):
            f, d = 'f' + mode, 'd' + mode
            for name in (f, d, d + '/in'):
                t('%s access %s' % (who, name), lambda: [os.access(name, bits) for bits in range(8)])
                t('%s effective %s' % (who, name), lambda: [os.access(name, bits, effective_ids=True) for bits in range(8)])
                t('%s read %s' % (who, name), lambda: os.close(os.open(name, os.O_RDONLY)))
                t('%s write %s' % (who, name), lambda: os.close(os.open(name, os.O_WRONLY)))
                t('%s stat %s' % (who, name), lambda: owner(name))
                t('%s chmod %s' % (who, name), lambda: os.chmod(name, int(mode, 8)) if uid else 0)
                t('%s getxattr %s' % (who, name), lambda: os.getxattr(name, 'user.none'))
                t('%s setxattr %s' % (who, name), lambda: os.setxattr(name, 'user.' + who, b'x'))
                t('%s chown %s' % (who, name), lambda: os.chown(name, 1111, -1) if uid else 0)
                t('%s chown to 5 %s' % (who, name), lambda: os.chown(name, 5, -1) if uid else 0)
            t('%s exec %s' % (who, f), lambda: subprocess.call(['./' + f]) if uid else 0)
            t('%s list %s' % (who, d), lambda: sorted(os.listdir(d)))
            t('%s chdir %s' % (who, d), lambda: (os.chdir(d), os.chdir('..')))
            t('%s make %s' % (who, d), lambda: put(d + '/' + who, b'x'))
            t('%s link %s' % (who, d), lambda: os.link(f, d + '/l' + who))
            t('%s rename %s' % (who, d), lambda: os.rename(d + '/' + who, d + '/r' + who))
            t('%s remove %s' % (who, d), lambda: os.unlink(d + '/r' + who))
            t('%s rmdir %s' % (who, d), lambda: os.rmdir(d))
        t('%s sticky unlink' % who, lambda: os.unlink('sticky/of-' + who))
        t('%s sticky rmdir' % who, lambda: os.rmdir('sticky/dir-of-' + who))
        t('%s sticky rename' % who, lambda: os.rename('sticky/alices', 'sticky/by-' + who))
        t('%s sticky over' % who, lambda: (put('sticky/mine-' + who, b'x'), os.rename('sticky/mine-' + who, 'sticky/of-root')))
        t('%s roots' % who, lambda: content('roots'))
        t('%s mknod' % who, lambda: os.mknod('sticky/null-' + who, 0o666 | stat.S_IFCHR, os.makedev(1, 3)) if uid else 0)
        t('%s trusted' % who, lambda: os.setxattr('f777', 'trusted.x', b'x') if uid else 0)
        t('%s security' % who, lambda: os.setxattr('f777', 'security.x', b'x') if uid else 0)
    as_user(uid, gid, groups, action)
";
    s.as_on_host(&format!("{TOOLS}{script}"));
}

scenarios! { set_group_id, cleared_by_changes, decided_by_the_kernel }
