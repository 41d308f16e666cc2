// SPDX-License-Identifier: MIT OR Apache-2.0
//! Ranges of files: preallocating, punching, seeking for data and holes, copying, splicing, the largest offsets.

use fuse_tests::{Scene, scenarios};

// A lower with data, a hole of 1 MiB, and data again.
fn sparse() -> Vec<u8> {
    let mut content = vec![b'a'; 65536];
    content.resize(65536 + (1 << 20), 0);
    content.resize(65536 + (1 << 20) + 4096, b'b');
    content
}

fn allocate(s: &mut Scene) {
    s.layer(|l| {
        l.file("f", vec![b'f'; 100_000]);
    });
    s.mount();
    let script = "
KEEP, PUNCH, COLLAPSE, ZERO, INSERT, UNSHARE = 1, 2, 8, 16, 32, 64
put('new', b'n' * 100000)
for name in ('f', 'new'):
    fd = os.open(name, os.O_RDWR)
    def allocate(mode, offset, length):
        call('fallocate', fd, mode, offset, length)
        data = os.pread(fd, 1 << 20, 0)
        return os.fstat(fd).st_size, [(byte, data.count(byte)) for byte in sorted(set(data))]
    for mode in (0, KEEP, PUNCH, PUNCH | KEEP, ZERO, ZERO | KEEP, COLLAPSE | KEEP, INSERT | KEEP, UNSHARE, UNSHARE | KEEP,
                 ZERO | PUNCH, 256, 1 << 20):
        for offset, length in ((0, 4096), (4096, 8192), (10, 100), (0, 200000), (-1, 10), (0, 0), (0, -1), (1 << 62, 1 << 62)):
            t('%s %d %d %d' % (name, mode, offset, length), lambda: allocate(mode, offset, length))
    t('after', lambda: os.fstat(fd).st_size)
    t('append', lambda: call('fallocate', os.open(name, os.O_WRONLY | os.O_APPEND), PUNCH | KEEP, 0, 4096))
    t('readonly', lambda: call('fallocate', os.open(name, os.O_RDONLY), 0, 0, 4096))
t('directory', lambda: call('fallocate', os.open('.', os.O_RDONLY), 0, 0, 4096))
os.mkfifo('pipe')
t('pipe', lambda: call('fallocate', os.open('pipe', os.O_RDWR), 0, 0, 4096))
fd = os.open('space', os.O_CREAT | os.O_RDWR)
t('keep size', lambda: (call('fallocate', fd, KEEP, 0, 1 << 20), os.fstat(fd).st_size, os.fstat(fd).st_blocks))
t('punched', lambda: (call('fallocate', fd, PUNCH | KEEP, 0, 1 << 20), os.fstat(fd).st_blocks))
";
    s.as_on_host(script);
    if s.driver.is_mlfs() {
        // FUSE in the kernel passes on neither of these (fs/fuse/file.c, fuse_file_fallocate).
        let script = "
for mode in (8, 32):
    t(mode, lambda: call('fallocate', os.open('new', os.O_RDWR), mode, 0, 4096))
";
        assert_eq!(s.python(script).ok(), "8 ENOTSUP\n32 ENOTSUP");
    }
}

fn data_and_holes(s: &mut Scene) {
    s.layer(|l| {
        l.file("lower", sparse());
        l.file("dense", vec![b'd'; 200_000]);
        l.file("empty", "");
    });
    s.mount();
    // A layer may hold holes where the host's file has none; whatever is said to be a hole reads as zeros, and all else is
    // the same.
    let script = "
def zeros_in_holes(name):
    fd = os.open(name, os.O_RDONLY)
    size, at, data = os.fstat(fd).st_size, 0, content(name)
    while at < size:
        try: start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            assert error.errno == errno.ENXIO
            start = size
        assert start >= at and not any(data[at:start]), (name, at, start)
        if start == size: break
        at = os.lseek(fd, start, os.SEEK_HOLE)
        assert start < at <= size, (name, start, at)
    return size
for name in ('lower', 'dense', 'empty'):
    t(name, lambda: zeros_in_holes(name))
    fd = os.open(name, os.O_RDONLY)
    for whence in (os.SEEK_DATA, os.SEEK_HOLE):
        for offset in (-1, os.fstat(fd).st_size, os.fstat(fd).st_size + 1, 1 << 62):
            t('%s %d %d' % (name, whence, offset), lambda: os.lseek(fd, offset, whence))
    t('bad whence', lambda: os.lseek(fd, 0, 9))
    t('set', lambda: os.lseek(fd, -1, os.SEEK_SET))
    t('end', lambda: os.lseek(fd, 5, os.SEEK_END))
fd = os.open('new', os.O_CREAT | os.O_RDWR)
os.pwrite(fd, b'x' * 4096, 1 << 20)
os.pwrite(fd, b'x' * 4096, 4 << 20)
os.ftruncate(fd, 8 << 20)
for whence in (os.SEEK_DATA, os.SEEK_HOLE):
    for offset in (0, 5, 1 << 20, (1 << 20) + 4096, 4 << 20, 5 << 20, 8 << 20):
        t('new %d %d' % (whence, offset), lambda: os.lseek(fd, offset, whence))
t('punch', lambda: call('fallocate', fd, 3, 1 << 20, 4096))
t('after punch', lambda: os.lseek(fd, 0, os.SEEK_DATA))
t('holes', lambda: zeros_in_holes('new'))
w = os.open('lower', os.O_RDWR)
os.pwrite(w, b'X', 100)
t('copied up', lambda: zeros_in_holes('lower'))
";
    s.as_on_host(script);
}

fn copying_ranges(s: &mut Scene) {
    s.layer(|l| {
        l.file("lower", sparse());
        l.file("small", "0123456789");
        l.file("target", vec![b't'; 50_000]);
    });
    s.mount();
    let script = "
def copy(source, at, target, to, length):
    a, b = os.open(source, os.O_RDONLY), os.open(target, os.O_RDWR | os.O_CREAT)
    done = 0
    while done < length:
        n = os.copy_file_range(a, b, length - done, at + done, to + done)
        if not n: break
        done += n
    os.close(a); os.close(b)
    return done, os.stat(target).st_size, content(target)[to:to + done] == content(source)[at:at + done]
t('lower to new', lambda: copy('lower', 0, 'new', 0, 2 << 20))
t('same', lambda: content('lower') == content('new'))
t('lower to lower', lambda: copy('lower', 65530, 'target', 10, 20000))
t('new to new', lambda: copy('new', 100, 'new2', 50, 70000))
t('inside', lambda: copy('new', 0, 'new', 1 << 21, 65536))
t('overlap', lambda: copy('new', 0, 'new', 10, 100))
t('past the end', lambda: copy('small', 10, 'new3', 0, 5))
t('small', lambda: copy('small', 3, 'new3', 100, 50))
t('onto itself', lambda: copy('small', 0, 'small', 20, 10))
t('text', lambda: content('small'))
t('directory', lambda: os.copy_file_range(os.open('.', os.O_RDONLY), os.open('new3', os.O_RDWR), 1))
t('readonly', lambda: os.copy_file_range(os.open('small', os.O_RDONLY), os.open('new3', os.O_RDONLY), 1))
t('writeonly', lambda: os.copy_file_range(os.open('small', os.O_WRONLY), os.open('new3', os.O_WRONLY), 1))
t('append', lambda: os.copy_file_range(os.open('small', os.O_RDONLY), os.open('new3', os.O_WRONLY | os.O_APPEND), 1))
t('flags', lambda: call('copy_file_range', os.open('small', os.O_RDONLY), None, os.open('new3', os.O_RDWR), None, 1, 1))
a, b = os.open('small', os.O_RDONLY), os.open('moved', os.O_RDWR | os.O_CREAT)
t('positions', lambda: (os.copy_file_range(a, b, 4), os.lseek(a, 0, 1), os.lseek(b, 0, 1)))
t('sendfile', lambda: (os.sendfile(b, a, 0, 100), content('moved')))
r, w = os.pipe()
t('splice in', lambda: os.splice(a, w, 5, offset_src=0))
t('splice out', lambda: os.splice(r, b, 5, offset_dst=100))
t('spliced', lambda: content('moved')[-5:])
t('splice append', lambda: os.splice(r, os.open('moved', os.O_WRONLY | os.O_APPEND), 5))
t('vmsplice', lambda: os.writev(b, [b'one', b'two']))
t('readv', lambda: os.preadv(b, [bytearray(4), bytearray(4)], 0))
t('negative', lambda: os.pread(b, 1, -1))
";
    s.as_on_host(script);
}

fn largest_offsets(s: &mut Scene) {
    s.layer(|l| {
        l.file("f", "f");
    });
    s.mount();
    let script = "
for name in ('f', 'new'):
    fd = os.open(name, os.O_RDWR | os.O_CREAT)
    for power in (32, 40, 43, 44, 45, 53, 60, 62):
        for off in (-4097, -4096, -1, 0):
            size = (1 << power) + off
            t('truncate 2^%d%d' % (power, off), lambda: (os.ftruncate(fd, size), os.fstat(fd).st_size))
            t('write 2^%d%d' % (power, off), lambda: (os.pwrite(fd, b'x', size), os.fstat(fd).st_size))
            t('read 2^%d%d' % (power, off), lambda: os.pread(fd, 3, size))
            t('allocate 2^%d%d' % (power, off), lambda: call('fallocate', fd, 1, size, 1) if power > 44 else 0)
    top = (1 << 63) - 1
    t('truncate', lambda: os.ftruncate(fd, top))
    t('truncate path', lambda: os.truncate(name, top))
    t('write', lambda: os.pwrite(fd, b'x', top))
    t('write', lambda: os.pwrite(fd, b'xy', top - 1))
    t('read', lambda: os.pread(fd, 1, top))
    t('seek data', lambda: os.lseek(fd, top, os.SEEK_DATA))
    t('copy', lambda: os.copy_file_range(fd, fd, 10, 0, top))
    t('size', lambda: os.fstat(fd).st_size)
    os.unlink(name)
";
    s.as_on_host(script);
}

scenarios! { allocate, data_and_holes, copying_ranges, largest_offsets }
