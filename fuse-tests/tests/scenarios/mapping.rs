// SPDX-License-Identifier: MIT OR Apache-2.0
//! Mappings of files: what is written through them is there, with its time, for whoever reads in another way.

use fuse_tests::{Scene, scenarios};

fn written_after_close(s: &mut Scene) {
    s.layer(|l| {
        l.file("lower", vec![b'l'; 10_000]);
        l.file("big", vec![b'b'; 300_000]);
    });
    s.mount();
    let script = "
put('new', b'n' * 10000)
for name in ('lower', 'new', 'big'):
    fd = os.open(name, os.O_RDWR)
    m = mmap.mmap(fd, 0)
    os.close(fd)
    before = os.stat(name).st_mtime_ns
    m[5000:5005] = b'AFTER'
    t('read', lambda: content(name)[4999:5006])
    m.flush()
    t('read', lambda: content(name)[4999:5006])
    t('time', lambda: os.stat(name).st_mtime_ns > before)
    m[0:5] = b'UNSYN'
    m.close()
    t('unmapped', lambda: content(name)[:6])
fd = os.open('new', os.O_RDWR)
m = mmap.mmap(fd, 0)
os.unlink('new')
m[0:4] = b'GONE'
t('unlinked', lambda: os.pread(fd, 5, 0))
os.close(fd)
t('without a descriptor', lambda: m[0:5])
m[100:103] = b'yes'
m.flush()
t('flushed', lambda: m[99:104])
m.close()
";
    s.as_on_host(script);
    s.remount();
    for name in ["lower", "big"] {
        let text = s.read(name);
        assert_eq!((&text[..5], &text[5000..5005]), ("UNSYN", "AFTER"), "{name}");
    }
}

fn kinds(s: &mut Scene) {
    s.layer(|l| {
        l.file("lower", vec![b'l'; 10_000]);
        l.file("script", "#!/bin/sh\n").mode(0o755);
    });
    s.mount();
    let script = "
put('new', b'n' * 10000)
for name in ('lower', 'new'):
    w, r, rw = os.open(name, os.O_WRONLY), os.open(name, os.O_RDONLY), os.open(name, os.O_RDWR)
    t('shared of readonly', lambda: mmap.mmap(r, 0, access=mmap.ACCESS_WRITE))
    t('writeonly', lambda: mmap.mmap(w, 0, access=mmap.ACCESS_READ))
    t('executable', lambda: mmap.mmap(r, 0, prot=mmap.PROT_READ | mmap.PROT_EXEC, flags=mmap.MAP_PRIVATE)[0:2])
    private = mmap.mmap(r, 0, access=mmap.ACCESS_COPY)
    shared = mmap.mmap(rw, 0)
    read = mmap.mmap(r, 0, access=mmap.ACCESS_READ)
    private[0:4] = b'MINE'
    shared[4:8] = b'OURS'
    t('private', lambda: private[0:8])
    t('read', lambda: read[0:8])
    t('pread', lambda: os.pread(r, 8, 0))
    os.pwrite(w, b'WRIT', 4092)
    t('written', lambda: (shared[4090:4098], read[4090:4098]))
    os.pwrite(rw, b'more', 12000)
    t('size', lambda: (shared.size(), len(shared)))
    os.ftruncate(w, 5000)
    t('zeros behind the end', lambda: (shared[4998:5010], os.fstat(r).st_size))
    os.ftruncate(w, 9000)
    t('extended', lambda: (os.pread(r, 10, 4998), os.fstat(r).st_size))
    for m in (private, shared, read): m.close()
def killed_by(action):
    pid = os.fork()
    if not pid:
        try: action()
        finally: os._exit(0)
    return os.waitpid(pid, 0)[1]
def beyond():
    fd = os.open('new', os.O_RDWR)
    m = mmap.mmap(fd, 0)
    os.ftruncate(fd, 100)
    m[8000]
t('SIGBUS behind the end', lambda: killed_by(beyond))
fd = os.open('grown', os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, 1 << 20)
m = mmap.mmap(fd, 0)
m[1 << 19:(1 << 19) + 4] = b'hole'
m.flush()
t('blocks', lambda: os.fstat(fd).st_blocks < 100)
t('MADV', lambda: (m.madvise(mmap.MADV_DONTNEED), m[1 << 19:(1 << 19) + 4]))
t('remap', lambda: (m.resize(2 << 20), os.fstat(fd).st_size))
t('msync', lambda: [call('msync', ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(m))), 1 << 20, flag) for flag in (1, 4, 2)])
";
    s.as_on_host(script);
}

fn by_two_processes(s: &mut Scene) {
    s.layer(|l| {
        l.file("counters", vec![0u8; 8192]);
    });
    s.mount();
    // Eight processes count in one mapping, each in its own place, and in turn by a lock in a common one.
    let script = "
def count(number):
    fd = os.open('counters', os.O_RDWR)
    m = mmap.mmap(fd, 0)
    for _ in range(200):
        at = 8 * number
        m[at:at + 8] = struct.pack('q', struct.unpack('q', m[at:at + 8])[0] + 1)
        fcntl.lockf(fd, fcntl.LOCK_EX)
        m[4096:4104] = struct.pack('q', struct.unpack('q', m[4096:4104])[0] + 1)
        fcntl.lockf(fd, fcntl.LOCK_UN)
    os._exit(0)
pids = []
for number in range(8):
    pid = os.fork()
    if not pid: count(number)
    pids.append(pid)
t('ended', lambda: [os.waitpid(pid, 0)[1] for pid in pids])
t('own', lambda: struct.unpack('8q', content('counters')[:64]))
t('common', lambda: struct.unpack('q', content('counters')[4096:4104]))
# When mappings change the time is not asked here, and tmpfs does not tell.
fd = os.open('counters', os.O_RDWR)
os.fsync(fd)
os.close(fd)
os.utime('counters', (9, 9))
";
    s.as_on_host(script);
}

scenarios! { written_after_close, kinds, by_two_processes }
