// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reading and writing: mappings, appending, holes, locks, large files.

use fuse_tests::{Scene, scenarios};

fn mapped_writes(s: &mut Scene) {
    s.layer(|l| {
        l.file("lower", vec![b'l'; 10_000]);
        l.dir("d");
    });
    s.mount();
    let script = "
open('d/new', 'wb').write(b'n' * 10000)
for name in ('lower', 'd/new'):
    with open(name, 'r+b') as f:
        m = mmap.mmap(f.fileno(), 0)
        m[5000:5004] = b'MMAP'
        m.flush()
        m.close()
    with open(name, 'rb') as f:
        data = f.read()
        assert data[5000:5004] == b'MMAP' and len(data) == 10000, name
        m = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        assert m[5000:5004] == b'MMAP'
        m.close()
# A private mapping of a lower file changes nothing.
with open('lower', 'rb') as f:
    m = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_COPY)
    m[0:4] = b'copy'
    assert f.read(4) == b'llll'
";
    s.python(script).ok();
    s.remount();
    assert_eq!(&s.read("lower")[5000..5004], "MMAP");
    assert_eq!(&s.read("d/new")[5000..5004], "MMAP");
}

fn appending(s: &mut Scene) {
    s.layer(|l| {
        l.file("log", "start\n");
    });
    s.mount();
    s.sh("for w in 1 2 3 4; do (for i in $(seq 200); do echo $w$i >> log; done) & done; wait").ok();
    assert_eq!(s.read("log").lines().count(), 801, "lines were lost between writers");
    let script = "
a = os.open('log', os.O_WRONLY | os.O_APPEND); b = os.open('log', os.O_WRONLY | os.O_APPEND)
size = os.stat('log').st_size
for n in range(100):
    os.write(a, b'aaaa\\n'); os.write(b, b'bbbb\\n')
assert os.stat('log').st_size == size + 1000
os.ftruncate(a, 10)
os.write(b, b'end\\n')
assert os.stat('log').st_size == 14
";
    s.python(script).ok();
    s.is_not_judged("the order of concurrent lines is free");
}

fn large_and_sparse(s: &mut Scene) {
    let block: Vec<u8> = (0..1u32 << 20).map(|number| (number.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    s.layer(|l| {
        l.file("lower", block.repeat(3));
    });
    s.mount();
    let script = "
import hashlib
data = open('lower', 'rb').read()
assert len(data) == 3 << 20
with open('copy', 'wb') as f: f.write(data)
assert hashlib.sha256(open('copy', 'rb').read()).digest() == hashlib.sha256(data).digest()
fd = os.open('lower', os.O_RDWR)
os.pwrite(fd, b'X', (1 << 20) + 5)
os.pwrite(fd, b'Y', (8 << 20))
assert os.fstat(fd).st_size == (8 << 20) + 1
assert os.pread(fd, 10, 5 << 20) == bytes(10)
os.fdatasync(fd)
now = open('lower', 'rb').read()
assert now[:1 << 20] == data[:1 << 20] and now[(1 << 20) + 5] == ord('X') and now[3 << 20:8 << 20] == bytes(5 << 20)
os.close(fd)
fd = os.open('holes', os.O_CREAT | os.O_RDWR)
os.ftruncate(fd, 1 << 30)
os.pwrite(fd, b'end', (1 << 30) - 3)
assert os.fstat(fd).st_blocks < 1000, os.fstat(fd).st_blocks
os.close(fd)
os.unlink('holes')
";
    s.python(script).ok();
}

fn preallocate_and_copy_ranges(s: &mut Scene) {
    s.layer(|l| {
        l.file("source", "0123456789".repeat(1000));
    });
    s.mount();
    let script = "
fd = os.open('pre', os.O_CREAT | os.O_RDWR)
os.posix_fallocate(fd, 0, 100000)
assert os.fstat(fd).st_size == 100000
src = os.open('source', os.O_RDONLY)
left = 10000
while left:
    n = os.copy_file_range(src, fd, left, 10000 - left, 10000 - left)
    assert n > 0
    left -= n
assert os.pread(fd, 10000, 0) == b'0123456789' * 1000
assert os.fstat(fd).st_size == 100000
";
    s.python(script).ok();
}

fn locks(s: &mut Scene) {
    s.layer(|l| {
        l.file("f", "f");
    });
    s.mount();
    let script = "
import subprocess
fd = os.open('f', os.O_RDWR)
child = '''
import fcntl, os, sys
fd = os.open(\"f\", os.O_RDWR)
try:
    getattr(fcntl, sys.argv[1])(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    sys.exit(7)
'''
for kind in ('flock', 'lockf'):
    getattr(fcntl, kind)(fd, fcntl.LOCK_EX)
    assert subprocess.run([sys.executable, '-c', child, kind]).returncode == 7, kind
    getattr(fcntl, kind)(fd, fcntl.LOCK_UN)
    assert subprocess.run([sys.executable, '-c', child, kind]).returncode == 0, kind
";
    s.python(script).ok();
}

fn statfs_says_something(s: &mut Scene) {
    s.layer(|l| {
        l.file("f", "f");
    });
    s.mount();
    let found = rustix::fs::statfs(s.root()).expect("statfs");
    assert!(found.f_blocks > 0 && found.f_bavail > 0, "df shows an empty filesystem");
    assert!(found.f_bfree >= found.f_bavail && found.f_blocks >= found.f_bfree);
    assert_eq!(found.f_namelen, 255);
    if s.driver.is_mlfs() {
        assert_eq!(found.f_type, 0x6573_5546, "engines recognise FUSE mounts by the type");
    }
}

fn executing(s: &mut Scene) {
    s.layer(|l| {
        l.file("script", "#!/bin/sh\necho from the lower\n").mode(0o755);
    });
    s.mount();
    assert_eq!(s.sh("./script").ok(), "from the lower");
    s.sh("cp /bin/sleep sleep; ./sleep 0; sed -i 's/lower/upper/' script").ok();
    assert_eq!(s.sh("./script").ok(), "from the upper");
}

fn times_of_changes(s: &mut Scene) {
    s.layer(|l| {
        l.file("d/f", "f");
        l.dir("d");
    });
    s.mount();
    let script = "
def times(p):
    st = os.stat(p); return st.st_mtime_ns, st.st_ctime_ns
for change in (lambda: open('d/new', 'w').close(), lambda: os.rename('d/new', 'd/n2'), lambda: os.unlink('d/n2'),
               lambda: os.mkdir('d/m'), lambda: os.rmdir('d/m'), lambda: os.unlink('d/f')):
    before = times('d'); time.sleep(0.02); change(); after = times('d')
    assert after[0] > before[0] and after[1] > before[1], (before, after)
open('g', 'w').close()
before = times('g'); time.sleep(0.02)
with open('g', 'w') as f: f.write('x')
after = times('g')
assert after[0] > before[0] and after[1] > before[1]
before = times('g'); time.sleep(0.02); os.chmod('g', 0o600); after = times('g')
assert after[0] == before[0] and after[1] > before[1]
os.utime('g', ns=(1, 1_234_567_890_123_456_789))
assert os.stat('g').st_mtime_ns == 1_234_567_890_123_456_789
os.utime('g', ns=(1, -1_200_000_000))
assert os.stat('g').st_mtime_ns == -1_200_000_000, os.stat('g').st_mtime_ns
";
    s.python(script).ok();
}

scenarios! {
    mapped_writes, appending, large_and_sparse, preallocate_and_copy_ranges, locks, statfs_says_something, executing,
    times_of_changes,
}
