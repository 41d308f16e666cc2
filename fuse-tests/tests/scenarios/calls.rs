// SPDX-License-Identifier: MIT OR Apache-2.0
//! System calls beside the everyday ones, each answered as the host's own filesystem answers it.

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
        let printed = s.python(script).ok();
        println!("{printed}");
    }
}

scenarios! { paths, symlinks, status, ioctls_and_handles }
