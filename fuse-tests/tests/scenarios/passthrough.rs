// SPDX-License-Identifier: MIT OR Apache-2.0
//! Files that are open while they are copied up. As root the kernel reads and writes backing files by itself
//! (passthrough): a write must never land in a layer, and a file keeps its number whatever node it has become. That no
//! layer has changed is checked after every scenario.

use fuse_tests::{Scene, scenarios};

/// Big enough to be passed to the kernel.
const BIG: usize = 200_000;

fn lower(s: &mut Scene, names: &[&str]) {
    s.layer(|l| {
        for name in names {
            l.file(*name, vec![b'l'; BIG]);
        }
    });
}

fn readers_before_a_copy_up(s: &mut Scene) {
    lower(s, &["f", "d/g"]);
    s.mount();
    let script = "
for name in ('f', 'd/g'):
    ino = os.stat(name).st_ino
    old = os.open(name, os.O_RDONLY)
    mapped = mmap.mmap(old, 0, access=mmap.ACCESS_READ)
    private = mmap.mmap(old, 0, access=mmap.ACCESS_COPY)
    private[0:3] = b'pri'
    assert os.pread(old, 4, 0) == b'llll' and mapped[100:104] == b'llll'
    writer = os.open(name, os.O_RDWR)
    assert os.pwrite(writer, b'NEW', 0) == 3 and os.pread(writer, 4, 0) == b'NEWl'
    os.lseek(writer, 0, os.SEEK_END); os.write(writer, b'more')
    # Who opens now sees it; who had it open sees the old or the new, whole.
    assert open(name, 'rb').read(4) == b'NEWl'
    assert os.pread(old, 4, 0) in (b'llll', b'NEWl') and mapped[0:4] in (b'llll', b'NEWl')
    assert private[0:4] == b'pril'
    for each in (os.stat(name), os.fstat(old), os.fstat(writer)):
        assert (each.st_ino, each.st_size) == (ino, 200004), (name, each, ino)
    # More readers and writers, in every order.
    again = os.open(name, os.O_RDONLY); second = os.open(name, os.O_WRONLY | os.O_APPEND)
    os.write(second, b'!')
    assert os.pread(again, 10, 200000) == b'more!' and os.fstat(again).st_size == 200005
    os.close(writer); os.close(second)
    assert os.stat(name).st_ino == ino == os.fstat(old).st_ino
    os.close(old); os.close(again)
    assert open(name, 'rb').read() == b'NEW' + b'l' * (200000 - 3) + b'more!'
    assert os.stat(name).st_ino == ino
";
    s.python(script).ok();
}

fn truncated_under_readers(s: &mut Scene) {
    lower(s, &["path", "open", "fd", "empty"]);
    s.mount();
    let script = "
olds = {name: os.open(name, os.O_RDONLY) for name in ('path', 'open', 'fd', 'empty')}
inos = {name: os.stat(name).st_ino for name in olds}
os.truncate('path', 1000)
os.truncate('empty', 0)
os.close(os.open('open', os.O_WRONLY | os.O_TRUNC))
fd = os.open('fd', os.O_RDWR); os.ftruncate(fd, 5); os.close(fd)
for name, size in (('path', 1000), ('open', 0), ('fd', 5), ('empty', 0)):
    assert os.stat(name).st_size == size == os.fstat(olds[name]).st_size, name
    assert open(name, 'rb').read() == b'l' * size, name
    assert os.stat(name).st_ino == inos[name], name
    with open(name, 'ab') as f: f.write(b'end')
    assert open(name, 'rb').read() == b'l' * size + b'end', name
";
    s.python(script).ok();
}

fn attributes_through_the_old_descriptor(s: &mut Scene) {
    lower(s, &["f"]);
    s.mount();
    let script = "
old = os.open('f', os.O_RDONLY)
with open('f', 'r+b') as f: f.write(b'copied up')
os.fchmod(old, 0o640)
assert stat.S_IMODE(os.stat('f').st_mode) == 0o640 == stat.S_IMODE(os.fstat(old).st_mode)
os.chmod('f', 0o604)
assert stat.S_IMODE(os.fstat(old).st_mode) == 0o604
os.utime(old, ns=(1_000_000_001, 2_000_000_002))
assert os.stat('f').st_mtime_ns == 2_000_000_002
os.setxattr(old, 'user.note', b'n')
assert os.getxattr('f', 'user.note') == b'n' and 'user.note' in os.listxattr(old)
os.link('f', 'other')
assert os.fstat(old).st_nlink == 2 == os.stat('f').st_nlink
os.unlink('f')
assert os.fstat(old).st_nlink == 1 == os.stat('other').st_nlink
os.rename('other', 'third')
assert os.fstat(old).st_ino == os.stat('third').st_ino
os.fchmod(old, 0o600)
assert stat.S_IMODE(os.stat('third').st_mode) == 0o600
os.utime('third', ns=(5, 7))
";
    s.python(script).ok();
}

fn attributes_alone_move_nobody(s: &mut Scene) {
    lower(s, &["f"]);
    s.mount();
    let script = "
old = os.open('f', os.O_RDONLY)
os.chmod('f', 0o600); os.rename('f', 'g'); os.link('g', 'h')
again = os.open('h', os.O_RDONLY)
assert os.pread(old, 4, 0) == b'llll' == os.pread(again, 4, 0)
# The content follows under all of them.
with open('g', 'r+b') as f: f.write(b'NEW')
assert open('h', 'rb').read(4) == b'NEWl' and os.stat('h').st_ino == os.fstat(old).st_ino
assert os.pread(old, 4, 100) == b'llll'
";
    s.python(script).ok();
}

// A write through one name is seen through all, at once, whoever has which open.
fn hard_links_under_readers(s: &mut Scene) {
    s.skip_when(!s.has_index(), "kernel overlayfs breaks hard links without index=on");
    s.has_lower_links();
    s.layer(|l| {
        l.file("a", vec![b'l'; BIG]);
        l.hardlink("b", "a");
        l.hardlink("d/c", "a");
    });
    s.mount();
    let script = "
names = ('a', 'b', 'd/c')
inos = {os.stat(name).st_ino for name in names}
old = os.open('a', os.O_RDONLY)
other = os.open('d/c', os.O_RDONLY)
with open('b', 'r+b') as f: f.write(b'NEW')
with open('b', 'ab') as f: f.write(b'more')
for name in names:
    assert os.stat(name).st_size == 200004, name
    assert open(name, 'rb').read(4) == b'NEWl', name
    assert os.stat(name).st_nlink == 3, name
with open('d/c', 'r+b') as f: f.write(b'2')
assert open('a', 'rb').read(4) == b'2EWl'
assert {os.stat(name).st_ino for name in names} == inos and len(inos) == 1
os.unlink('a')
assert os.fstat(old).st_nlink == 2 == os.stat('b').st_nlink
os.close(old); os.close(other)
assert open('b', 'rb').read(4) == b'2EWl' == open('d/c', 'rb').read(4)
";
    s.python(script).ok();
}

fn names_that_go_under_readers(s: &mut Scene) {
    lower(s, &["gone", "moved", "replaced"]);
    s.mount();
    let script = "
olds = {name: os.open(name, os.O_RDONLY) for name in ('gone', 'moved', 'replaced')}
for name in olds:
    with open(name, 'r+b') as f: f.write(b'NEW')
os.unlink('gone')
with open('gone', 'wb') as f: f.write(b'another')
os.rename('moved', 'there')
with open('new', 'wb') as f: f.write(b'third')
os.rename('new', 'replaced')
assert open('gone', 'rb').read() == b'another' and open('replaced', 'rb').read() == b'third'
assert open('there', 'rb').read(4) == b'NEWl'
for name, nlink in (('gone', 0), ('moved', 1), ('replaced', 0)):
    assert os.fstat(olds[name]).st_nlink == nlink, name
    assert os.pread(olds[name], 4, 100) == b'llll'
    os.fchmod(olds[name], 0o640)
    assert stat.S_IMODE(os.fstat(olds[name]).st_mode) == 0o640, name
assert os.stat('gone').st_ino != os.fstat(olds['gone']).st_ino
";
    s.python(script).ok();
}

// The kernel reopens a descriptor by its node, not by a name: where the node reads the layer, that is refused, and what
// is written never reaches the layer.
fn reopened_by_descriptor(s: &mut Scene) {
    lower(s, &["f"]);
    s.mount();
    let passes = if s.passes() { "True" } else { "False" };
    let script = format!(
        "
old = os.open('f', os.O_RDONLY)
try:
    with open(f'/proc/self/fd/{{old}}', 'r+b') as f: f.write(b'NEW')
    assert not {passes}, 'not refused'
except OSError as error:
    assert {passes} and error.errno == errno.ESTALE, error
    with open('f', 'r+b') as f: f.write(b'NEW')
assert open('f', 'rb').read(4) == b'NEWl'
"
    );
    s.python(&script).ok();
}

fn eight_threads_and_one_file(s: &mut Scene) {
    s.layer(|l| {
        for number in 0..6 {
            l.file(format!("f{number}"), vec![b'l'; 2 << 20]);
        }
    });
    s.mount();
    let script = "
import threading
failures = []
def work(number, name):
    try:
        for turn in range(12):
            what = (number + turn) % 4
            if what == 0:
                with open(name, 'rb') as f:
                    while True:
                        part = f.read(1 << 18)
                        if not part: break
                        assert not part.strip(b'lu\\0'), part[:20]
            elif what == 1:
                with open(name, 'r+b') as f: f.write(b'u' * 5000)
            elif what == 2:
                with open(name, 'ab') as f: f.write(b'u' * 100)
            elif turn > 6:
                os.truncate(name, 1 << 20)
            else:
                assert os.stat(name).st_ino == ino[name]
    except Exception as error:
        failures.append((name, number, repr(error)))
ino = {f'f{n}': os.stat(f'f{n}').st_ino for n in range(6)}
for name in ino:
    threads = [threading.Thread(target=work, args=(number, name)) for number in range(8)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert os.stat(name).st_ino == ino[name]
    assert open(name, 'rb').read(5000) == b'u' * 5000
assert not failures, failures
";
    s.python(script).ok();
    s.is_not_judged("who comes last is free");
}

// The time of change follows what is written through a mapping, also after its descriptor was closed (Python's own
// mappings keep a copy of it).
fn mapped_and_closed(s: &mut Scene) {
    lower(s, &["lower"]);
    s.mount();
    let script = "
import ctypes
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
with open('new', 'wb') as f: f.write(b'n' * 200000)
os.close(os.open('lower', os.O_RDWR))
for name in ('lower', 'new'):
    os.utime(name, ns=(1_000_000_000, 1_000_000_000))
    fd = os.open(name, os.O_RDWR)
    place = libc.mmap(None, 200000, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, 0)
    assert os.stat(name).st_mtime_ns == 1_000_000_000, name
    os.close(fd)
    ctypes.memmove(place + 4096, b'MMAP', 4)
    assert libc.msync(ctypes.c_void_p(place), ctypes.c_size_t(200000), 4) == 0
    assert os.stat(name).st_mtime_ns > 1_000_000_000, name
    assert open(name, 'rb').read()[4096:4100] == b'MMAP'
    libc.munmap(ctypes.c_void_p(place), ctypes.c_size_t(200000))
    os.utime(name, ns=(1_000_000_000, 1_000_000_000))
    assert os.stat(name).st_mtime_ns == 1_000_000_000, name
";
    s.python(script).ok();
}

fn mapped_and_closed_cached(s: &mut Scene) {
    s.cached();
    mapped_and_closed(s);
}

fn cached_readers_see_a_copy_up(s: &mut Scene) {
    s.cached();
    readers_before_a_copy_up(s);
}

fn direct_and_appending(s: &mut Scene) {
    lower(s, &["lower"]);
    s.mount();
    let script = "
with open('new', 'wb') as f: f.write(b'l' * 200000)
for name in ('lower', 'new'):
    fd = os.open(name, os.O_RDWR | os.O_DIRECT)
    page = mmap.mmap(-1, 4096)
    assert os.preadv(fd, [page], 4096) == 4096 and page[:4] == b'llll'
    page[:4] = b'DIRE'
    assert os.pwritev(fd, [page], 8192) == 4096
    plain = os.open(name, os.O_RDONLY)
    assert os.pread(plain, 5, 8192) == b'DIREl'
    a = os.open(name, os.O_WRONLY | os.O_APPEND); b = os.open(name, os.O_RDWR)
    os.write(a, b'1'); os.pwrite(b, b'2', os.fstat(b).st_size); os.write(a, b'3')
    fcntl.fcntl(b, fcntl.F_SETFL, os.O_APPEND)
    os.write(b, b'4')
    assert open(name, 'rb').read()[200000:] == b'1234', name
    for each in (fd, plain, a, b): os.close(each)
";
    s.python(script).ok();
}

scenarios! {
    readers_before_a_copy_up, truncated_under_readers, attributes_through_the_old_descriptor,
    attributes_alone_move_nobody, hard_links_under_readers, names_that_go_under_readers, reopened_by_descriptor,
    eight_threads_and_one_file, mapped_and_closed, mapped_and_closed_cached, cached_readers_see_a_copy_up,
    direct_and_appending,
}
