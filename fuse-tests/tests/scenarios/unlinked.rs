// SPDX-License-Identifier: MIT OR Apache-2.0
//! Files that are open and have no name any more.

use fuse_tests::{Scene, scenarios};

fn open_upper_file(s: &mut Scene) {
    s.layer(|l| {
        l.dir("d");
    });
    s.mount();
    let script = "
fd = os.open('d/f', os.O_CREAT | os.O_RDWR, 0o600)
os.write(fd, b'hello')
os.unlink('d/f')
assert os.fstat(fd).st_nlink == 0
assert os.listdir('d') == []
assert os.pread(fd, 5, 0) == b'hello'
os.pwrite(fd, b'J', 0); os.ftruncate(fd, 3); os.fchmod(fd, 0o640); os.fsync(fd)
st = os.fstat(fd)
assert (st.st_size, stat.S_IMODE(st.st_mode)) == (3, 0o640), st
assert os.pread(fd, 9, 0) == b'Jel'
with open('d/f', 'w') as g: g.write('another')
assert os.pread(fd, 9, 0) == b'Jel'
assert os.fstat(fd).st_ino != os.stat('d/f').st_ino
os.close(fd)
assert open('d/f').read() == 'another'
";
    s.python(script).ok();
}

fn open_lower_file(s: &mut Scene) {
    s.layer(|l| {
        l.file("f", "lower content");
        l.file("g", "lower content");
        l.file("h", "lower content");
    });
    s.mount();
    let script = "
fd = os.open('f', os.O_RDONLY)
os.unlink('f')
assert os.pread(fd, 5, 0) == b'lower'
assert os.fstat(fd).st_size == 13
w = os.open('g', os.O_RDWR)
os.unlink('g')
os.pwrite(w, b'UPPER', 0); os.ftruncate(w, 5)
assert os.pread(w, 9, 0) == b'UPPER'
assert os.fstat(w).st_size == 5
r = os.open('h', os.O_RDONLY)
with open('new', 'w') as n: n.write('replacement')
os.rename('new', 'h')
assert os.pread(r, 5, 0) == b'lower'
assert open('h').read() == 'replacement'
assert not os.path.exists('f') and not os.path.exists('g')
";
    s.python(script).ok();
    s.lists("", &["h"]);
}

fn removed_working_directory(s: &mut Scene) {
    s.layer(|l| {
        l.dir("lower");
    });
    s.mount();
    let script = "
top = os.getcwd()
for name in ('lower', 'upper'):
    if name == 'upper': os.mkdir(name)
    os.chdir(name)
    os.rmdir(os.path.join(top, name))
    assert os.listdir('.') == []
    try:
        open('x', 'w')
        raise SystemExit('a file was made in a removed directory')
    except FileNotFoundError:
        pass
    os.chdir(top)
assert os.listdir('.') == []
";
    s.python(script).ok();
}

fn number_is_not_reused_while_open(s: &mut Scene) {
    s.layer(|l| {
        l.dir("d");
    });
    s.mount();
    // ext4 gives a freed number to the next file at once; who holds the old file must still see his own.
    let script = "
held = []
for n in range(50):
    fd = os.open('d/f', os.O_CREAT | os.O_EXCL | os.O_RDWR)
    os.write(fd, b'%d' % n)
    os.unlink('d/f')
    held.append((fd, os.fstat(fd).st_ino))
for n, (fd, ino) in enumerate(held):
    assert os.pread(fd, 9, 0) == b'%d' % n
    assert os.fstat(fd).st_ino == ino
assert len({ino for fd, ino in held}) == 50
";
    s.python(script).ok();
}

scenarios! { open_upper_file, open_lower_file, removed_working_directory, number_is_not_reused_while_open }
