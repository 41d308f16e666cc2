// SPDX-License-Identifier: MIT OR Apache-2.0
//! System calls beside the everyday ones, each answered as the host's own filesystem answers it.

use fuse_tests::identity::Identity;
use fuse_tests::{Scene, scenarios};

fn paths(s: &mut Scene) {
    s.layer(|l| {
        l.file("f", "f");
        l.dir("d");
        l.symlink("to-f", "f");
        l.symlink("to-d", "d");
        l.symlink("nowhere", "missing");
        l.symlink("loop-a", "loop-b");
        l.symlink("loop-b", "loop-a");
    });
    s.mount();
    let script = "
for path in ('f/', 'to-f/', 'd/', 'to-d/', 'nowhere/', 'missing/', 'f/x', 'loop-a', 'loop-a/x', '', 'x' * 256, 'd/' + 'y' * 255):
    t('stat ' + path[:20], lambda: stat.S_IFMT(os.stat(path).st_mode))
    t('lstat ' + path[:20], lambda: stat.S_IFMT(os.lstat(path).st_mode))
    t('open ' + path[:20], lambda: os.close(os.open(path, os.O_RDONLY)))
    t('create ' + path[:20], lambda: os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)))
    t('unlink ' + path[:20], lambda: os.unlink(path) if path not in ('f', 'to-f') else None)
    t('readlink ' + path[:20], lambda: os.readlink(path))
    t('truncate ' + path[:20], lambda: os.truncate(path, 1))
t('open nofollow', lambda: os.open('to-f', os.O_RDONLY | os.O_NOFOLLOW))
t('open directory', lambda: os.open('f', os.O_RDONLY | os.O_DIRECTORY))
t('open dir for writing', lambda: os.open('d', os.O_WRONLY))
t('open dir rdwr', lambda: os.open('d', os.O_RDWR))
t('creat dir', lambda: os.open('d', os.O_RDONLY | os.O_CREAT))
t('creat excl on link', lambda: os.open('nowhere', os.O_WRONLY | os.O_CREAT | os.O_EXCL))
t('creat excl', lambda: os.open('f', os.O_WRONLY | os.O_CREAT | os.O_EXCL))
t('creat directory', lambda: os.open('both', os.O_RDONLY | os.O_CREAT | os.O_DIRECTORY))
t('symlink slash', lambda: os.symlink('x', 'new/'))
t('mkdir slash', lambda: os.mkdir('made/'))
t('mkdir over link', lambda: os.mkdir('nowhere'))
t('rmdir slash', lambda: os.rmdir('made/'))
t('rmdir dot', lambda: os.rmdir('d/.'))
t('rmdir dotdot', lambda: os.rmdir('d/..'))
t('rmdir link', lambda: os.rmdir('to-d/'))
t('rmdir file', lambda: os.rmdir('f'))
t('unlink dir', lambda: os.unlink('d'))
t('rename dot', lambda: os.rename('d/.', 'e'))
t('rename into itself', lambda: os.rename('d', 'd/e'))
t('link dir', lambda: os.link('d', 'e'))
t('link over', lambda: os.link('f', 'to-f'))
t('truncate dir', lambda: os.truncate('d', 0))
t('truncate minus', lambda: os.truncate('f', -1))
fd = os.open('f', os.O_RDONLY)
t('ftruncate readonly', lambda: os.ftruncate(fd, 0))
t('write readonly', lambda: os.write(fd, b'x'))
t('fallocate readonly', lambda: os.posix_fallocate(fd, 0, 10))
w = os.open('f', os.O_WRONLY)
t('read writeonly', lambda: os.read(w, 1))
t('read path', lambda: os.read(os.open('f', os.O_PATH), 1))
t('fchmod path', lambda: os.fchmod(os.open('f', os.O_PATH), 0o600))
t('fsync dir', lambda: os.fsync(os.open('d', os.O_RDONLY)))
t('fdatasync dir', lambda: os.fdatasync(os.open('d', os.O_RDONLY)))
t('syncfs', lambda: call('syncfs', fd))
t('listdir', lambda: sorted(os.listdir('.')))
";
    s.as_on_host(script);
}

fn symlinks(s: &mut Scene) {
    s.layer(|l| {
        l.symlink("lower-long", "l".repeat(4095));
        l.symlink("lower-short", "x");
    });
    s.mount();
    let script = "
for n in (0, 1, 59, 60, 255, 256, 1000, 4094, 4095, 4096):
    t('symlink %d' % n, lambda: os.symlink('s' * n, 'l%d' % n))
    t('readlink %d' % n, lambda: len(os.readlink('l%d' % n)))
    t('size %d' % n, lambda: os.lstat('l%d' % n).st_size)
t('long', lambda: os.readlink('lower-long') == 'l' * 4095)
t('short', lambda: os.readlink('lower-short'))
t('mode', lambda: mode_of('lower-long'))
os.rename('lower-long', 'renamed')
t('renamed', lambda: os.readlink('renamed') == 'l' * 4095)
t('follow', lambda: os.stat('renamed'))
os.symlink('b', 'a0')
for n in range(45): os.symlink('c%d' % (n + 1), 'c%d' % n)
put('c45', b'end')
t('forty links', lambda: content('c5'))
t('more links', lambda: content('c4'))
t('raw bytes', lambda: os.symlink(b'\\xff\\xfe /..', b'raw'))
t('raw bytes', lambda: os.readlink(b'raw'))
";
    s.as_on_host(script);
}

fn status(s: &mut Scene) {
    s.layer(|l| {
        l.file("f", "x".repeat(5000));
    });
    s.mount();
    let script = "
import ctypes
def statx(path, mask, flags=0):
    buffer = (ctypes.c_uint64 * 32)()
    call('statx', -100, path, flags, mask, ctypes.byref(buffer))
    raw = bytes(buffer)
    got, blksize, attributes, nlink, uid, gid, mode = struct.unpack_from('=IIQIIIH', raw, 0)
    ino, size, blocks = struct.unpack_from('=QQQ', raw, 32)
    return got, blksize, nlink, mode, size
put('new', b'y' * 10)
for name in ('f', 'new'):
    t('statx', lambda: (statx(name, 0x7ff)[0] & 0x7ff, statx(name, 0x7ff)[2:]))
    t('blocks', lambda: name == 'f' or os.stat(name).st_blocks)
    t('blksize', lambda: os.stat(name).st_blksize)
    t('sync', lambda: statx(name, 0x7ff, 0x2000)[2:])
    t('dont sync', lambda: statx(name, 0x7ff, 0x4000)[2:])
t('empty path', lambda: call('statx', os.open('f', os.O_PATH), '', 0x1000, 0x7ff, ctypes.byref((ctypes.c_uint64 * 32)())))
t('reserved', lambda: statx('f', 1 << 31))
";
    s.as_on_host(script);
}

fn ioctls_and_handles(s: &mut Scene) {
    s.layer(|l| {
        l.file("f", "f");
        l.dir("d");
    });
    s.mount();
    let script = "
fd = os.open('f', os.O_RDWR)
t('FIONREAD', lambda: struct.unpack('i', fcntl.ioctl(fd, 0x541b, b'0000'))[0])
t('unknown', lambda: fcntl.ioctl(fd, 0x1234))
t('TCGETS', lambda: fcntl.ioctl(fd, 0x5401, b'0' * 64))
t('F_GETFL', lambda: fcntl.fcntl(fd, fcntl.F_GETFL) & 0o3)
t('F_DUPFD', lambda: fcntl.fcntl(fd, fcntl.F_DUPFD, 10) >= 10)
t('fadvise', lambda: os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED))
t('sync_file_range', lambda: call('sync_file_range', fd, 0, 0, 7))
t('readahead', lambda: call('readahead', fd, 0, 100))
";
    s.as_on_host(script);
    if s.driver.is_mlfs() {
        // FS_IOC_GETFLAGS, FS_IOC_GETVERSION, FS_IOC_FSGETXATTR, FICLONE: ioctls are not forwarded.
        let script = "
fd = os.open('f', os.O_RDWR)
for number in (0x80086601, 0x80087601, 0x801c581f, 0x40049409):
    t('ioctl', lambda: fcntl.ioctl(fd, number, b'0' * 64))
t('handle', lambda: call('name_to_handle_at', -100, 'f', struct.pack('=Ii', 128, 0) + bytes(128), bytes(8), 0))
";
        assert_eq!(s.python(script).ok(), "ioctl ENOTTY\nioctl ENOTTY\nioctl ENOTTY\nioctl EBADF\nhandle 0");
    }
}

fn opening(s: &mut Scene) {
    s.layer(|l| {
        l.file("lower", "lower");
        l.file("run", std::fs::read("/bin/true").expect("a program")).mode(0o755);
        l.dir("d/e");
        l.file("d/e/f", "deep");
        l.symlink("d/up", "../lower");
        l.symlink("d/abs", "/etc/passwd");
    });
    s.mount();
    let script = "
def openat2(path, flags=0, resolve=0, mode=0, at=None):
    how = struct.pack('=QQQ', flags, mode, resolve)
    fd = call('syscall', 437, at if at is not None else -100, path, how, 24)
    os.close(fd)
    return 'opened'
NO_XDEV, NO_MAGIC, NO_SYMLINKS, BENEATH, IN_ROOT, CACHED = 1, 2, 4, 8, 16, 32
d = os.open('d', os.O_RDONLY)
for path in ('lower', 'd/up', 'd/abs', 'd/e/f', 'd/e/../../lower', '/etc', 'missing'):
    for resolve in (0, NO_XDEV, NO_SYMLINKS, BENEATH, IN_ROOT, NO_MAGIC):
        t('openat2 %s %d' % (path, resolve), lambda: openat2(path, resolve=resolve))
t('beneath', lambda: openat2('e/f', resolve=BENEATH, at=d))
t('beneath', lambda: openat2('../lower', resolve=BENEATH, at=d))
t('in root', lambda: openat2('../e/f', resolve=IN_ROOT, at=d))
t('in root', lambda: openat2('abs', resolve=IN_ROOT, at=d))
t('mode', lambda: openat2('new', os.O_CREAT | os.O_WRONLY, mode=0o644))
t('bad mode', lambda: openat2('new', os.O_WRONLY, mode=0o644))
# A running program cannot be written, a file that is written cannot be run.
p = subprocess.Popen(['sleep', '0'])
p.wait()
put('sleep', content('/bin/sleep')); os.chmod('sleep', 0o755)
p = subprocess.Popen(['./sleep', '100'])
t('write running', lambda: os.open('sleep', os.O_WRONLY))
t('truncate running', lambda: os.truncate('sleep', 0))
t('append running', lambda: os.open('sleep', os.O_WRONLY | os.O_APPEND))
t('unlink running', lambda: os.unlink('sleep'))
p.kill(); p.wait()
w = os.open('run', os.O_WRONLY)
t('run while written', lambda: subprocess.call(['./run']))
os.close(w)
t('run', lambda: subprocess.call(['./run']))
os.chmod('run', 0o644)
t('run 0644', lambda: subprocess.call(['./run']) if os.getuid() else 'EACCES')
fd = os.open('lower', os.O_PATH)
t('through /proc', lambda: content('/proc/self/fd/%d' % fd))
t('write through /proc', lambda: put('/proc/self/fd/%d' % fd, b'changed'))
t('changed', lambda: content('lower'))
r = os.open('lower', os.O_RDONLY)
os.unlink('lower')
t('unlinked through /proc', lambda: content('/proc/self/fd/%d' % r))
t('readlink', lambda: os.readlink('/proc/self/fd/%d' % r).endswith('/lower (deleted)'))
t('noatime', lambda: os.close(os.open('run', os.O_RDONLY | os.O_NOATIME)))
t('sync', lambda: os.close(os.open('run', os.O_RDWR | os.O_SYNC)))
t('nonblock', lambda: os.read(os.open('run', os.O_RDONLY | os.O_NONBLOCK), 0))
t('excl without creat', lambda: os.close(os.open('run', os.O_RDONLY | os.O_EXCL)))
t('trunc readonly', lambda: (os.close(os.open('run', os.O_RDONLY | os.O_TRUNC)), os.stat('run').st_size))
t('rdwr 3', lambda: os.close(os.open('run', 3)))
";
    s.as_on_host(script);
}

// No unnamed files: programs see the same as on NFS, and take a name instead, as O_TMPFILE's own manual says.
fn unnamed_files(s: &mut Scene) {
    s.layer(|l| {
        l.dir("d");
    });
    s.mount();
    let script = "
import tempfile
t('O_TMPFILE', lambda: bool(os.open('d', os.O_TMPFILE | os.O_RDWR)))
with tempfile.TemporaryFile(dir='d') as f:
    f.write(b'works'); f.flush(); f.seek(0)
    t('TemporaryFile', lambda: (f.read(), os.fstat(f.fileno()).st_nlink))
t('left', lambda: os.listdir('d'))
";
    let printed = s.python(script).ok();
    let unnamed = if s.driver.is_mlfs() { "O_TMPFILE ENOTSUP" } else { "O_TMPFILE True" };
    s.is_not_judged("the directory's time tells that a name was there");
    assert_eq!(printed, format!("{unnamed}\nTemporaryFile (b'works', 0)\nleft []"));
}

// A directory of 300 names, some long, read with buffers that hold one or two.
fn listing_with_small_buffers(s: &mut Scene) {
    s.layer(|l| {
        for number in 0..150 {
            l.file(format!("d/{number}-{}", "n".repeat(number)), "");
        }
    });
    s.mount();
    let script = "
for number in range(150): put('d/new%d' % number, b'')
def names(size):
    fd, found, types = os.open('d', os.O_RDONLY), [], set()
    buffer = ctypes.create_string_buffer(size)
    while True:
        n = call('syscall', 217, fd, buffer, size)
        if not n: break
        at, raw = 0, buffer.raw
        while at < n:
            length, kind = struct.unpack_from('<HB', raw, at + 16)
            found.append(raw[at + 19:at + length].split(b'\\0')[0])
            types.add(kind)
            at += length
    os.close(fd)
    return len(found), len(set(found)), sorted(found) == sorted(os.listdir(b'd') + [b'.', b'..']), sorted(types)
for size in (280, 300, 512, 4096, 1 << 20):
    t(size, lambda: names(size))
for size in (0, 1, 23):
    t(size, lambda: names(size))
t('not a directory', lambda: call('syscall', 217, os.open('d/new1', os.O_RDONLY), ctypes.create_string_buffer(512), 512))
";
    s.as_on_host(script);
}

fn noticed(s: &mut Scene) {
    s.layer(|l| {
        l.file("d/lower", "l");
    });
    s.mount();
    let script = "
fd = call('inotify_init1', os.O_NONBLOCK)
watch = call('inotify_add_watch', fd, 'd', 0xfff)
file = call('inotify_add_watch', fd, 'd/lower', 0xfff)
def events():
    try: raw, at, found = os.read(fd, 65536), 0, []
    except BlockingIOError: return []
    while at < len(raw):
        wd, mask, cookie, length = struct.unpack_from('=iIII', raw, at)
        found.append(('dir' if wd == watch else 'file', hex(mask), bool(cookie), raw[at + 16:at + 16 + length].rstrip(b'\\0')))
        at += 16 + length
    return found
for label, change in (('create', lambda: put('d/new', b'x')), ('read', lambda: content('d/lower')),
                      ('write', lambda: put('d/lower', b'longer', 'ab')), ('chmod', lambda: os.chmod('d/lower', 0o600)),
                      ('rename', lambda: os.rename('d/new', 'd/moved')), ('mkdir', lambda: os.mkdir('d/sub')),
                      ('link', lambda: os.link('d/moved', 'd/linked')), ('rmdir', lambda: os.rmdir('d/sub')),
                      ('unlink', lambda: os.unlink('d/moved')), ('utime', lambda: os.utime('d/lower')),
                      ('truncate', lambda: os.truncate('d/lower', 1)), ('out', lambda: os.rename('d/linked', 'out')),
                      ('last', lambda: os.unlink('d/lower'))):
    change()
    t(label, events)
";
    s.as_on_host(script);
}

fn another_root(s: &mut Scene) {
    s.skip_when(s.identity == Identity::User, "needs root: chroot");
    s.layer(|l| {
        l.file("etc/name", "inside");
        l.symlink("abs", "/etc/name");
        l.symlink("out", "../../../../../../../etc/name");
    });
    s.mount();
    let script = "
pid = os.fork()
if not pid:
    os.chroot('.'); os.chdir('/')
    t('absolute', lambda: content('/abs'))
    t('out', lambda: content('/out'))
    t('dotdot', lambda: sorted(os.listdir('..')))
    t('write', lambda: (put('/etc/new', b'x'), content('/etc/new')))
    t('cwd', lambda: os.getcwd())
    sys.stdout.flush()
    os._exit(0)
os.waitpid(pid, 0)
";
    s.as_on_host(script);
}

scenarios! {
    paths, symlinks, status, ioctls_and_handles, opening, unnamed_files, listing_with_small_buffers, noticed, another_root,
}
