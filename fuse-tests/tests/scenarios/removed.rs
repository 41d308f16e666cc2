// SPDX-License-Identifier: MIT OR Apache-2.0
//! Lower files and directories that are used after their last name went.
//!
//! The judge refuses every change of a lower file that was opened for reading and has no name any more (EEXIST), and
//! counts one link on it; ext4 allows the change and counts none, and so does mlfs.

use fuse_tests::{Scene, scenarios};

const ANSWERS: &str = "
def fails(number, call, *args, **more):
    try:
        call(*args, **more)
    except OSError as error:
        assert error.errno == number, (call, args, error)
    else:
        raise SystemExit('%s %s should fail' % (call, args))
def mode(fd): return stat.S_IMODE(os.fstat(fd).st_mode)
";

fn python(s: &Scene, script: &str) {
    s.python(&format!("{ANSWERS}{script}")).ok();
}

fn lower_files_opened_for_reading(s: &mut Scene) {
    s.skip_when(!s.driver.is_mlfs(), "changes of removed lower files are refused by the kernel");
    s.is_not_judged("the judge refuses the changes");
    s.layer(|l| {
        for name in ["unlinked", "covered"] {
            l.file(name, "lower content").mode(0o644).xattr("user.old", "o");
            l.file(format!("{name}-big"), vec![b'B'; 100_000]);
        }
    });
    s.mount();
    let has_passthrough = if s.identity == fuse_tests::identity::Identity::Root { "True" } else { "False" };
    python(
        s,
        &format!(
            "has_passthrough = {has_passthrough}
{LOWER_FILES}"
        ),
    );
}

const LOWER_FILES: &str = "
for name in ('unlinked', 'unlinked-big', 'covered', 'covered-big'):
    size = os.stat(name).st_size
    ino = os.stat(name).st_ino
    fd = os.open(name, os.O_RDONLY)
    if name.startswith('unlinked'):
        os.unlink(name)
    else:
        with open('new', 'w') as new: new.write('new content')
        os.rename('new', name)
    st = os.fstat(fd)
    assert (st.st_nlink, st.st_size, st.st_ino) == (0, size, ino), st
    first = os.pread(fd, 9, 0)
    os.fchmod(fd, 0o751); os.utime(fd, (5, 6)); os.setxattr(fd, 'user.k', b'v')
    st = os.fstat(fd)
    assert (st.st_nlink, st.st_mtime, mode(fd), st.st_ino) == (0, 6.0, 0o751, ino), st
    assert os.getxattr(fd, 'user.k') == b'v' and os.pread(fd, 9, 0) == first
    assert ('user.old' in os.listxattr(fd)) == ('big' not in name)
    os.removexattr(fd, 'user.k')
    # With passthrough the reader holds the layer's file, and a writer would need another node, found by a name.
    if not has_passthrough:
        writer = os.open('/proc/self/fd/%d' % fd, os.O_RDWR)
        os.pwrite(writer, b'UP', 0); os.ftruncate(writer, 5); os.posix_fallocate(writer, 0, 50)
        assert os.pread(writer, 9, 0)[:2] == b'UP' and os.fstat(writer).st_size == 50
        os.close(writer)
    if name.startswith('covered'):
        assert open(name).read() == 'new content' and os.stat(name).st_ino != ino
    os.close(fd)
assert sorted(os.listdir('.')) == ['covered', 'covered-big']
";

fn files_opened_for_writing(s: &mut Scene) {
    s.layer(|l| {
        for name in ["unlinked", "covered"] {
            l.file(name, "lower content");
        }
    });
    s.mount();
    python(
        s,
        "
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
for name in ('unlinked', 'covered'):
    fd = os.open(name, os.O_RDWR)
    if name == 'unlinked':
        os.unlink(name)
    else:
        with open('new', 'w') as new: new.write('new content')
        os.rename('new', name)
    assert os.fstat(fd).st_nlink == 0
    os.pwrite(fd, b'XX', 0); os.ftruncate(fd, 4); os.posix_fallocate(fd, 0, 4096); os.fchmod(fd, 0o600)
    os.fchown(fd, os.getuid(), os.getgid()); os.utime(fd, (5, 6)); os.setxattr(fd, 'user.k', b'v'); os.fsync(fd)
    shared = mmap.mmap(fd, 4096)
    shared[0:2] = b'MM'; shared.flush()
    assert os.pread(fd, 4, 0) == b'MMwe' and os.fstat(fd).st_nlink == 0 and mode(fd) == 0o600
    # As on ext4, what has lost its last name gets none again.
    for flags, path in ((0x1000, b''), (0x400, b'/proc/self/fd/%d' % fd)):
        assert libc.linkat(fd if flags == 0x1000 else -100, path, -100, b'back', flags) == -1
        assert ctypes.get_errno() == errno.ENOENT, ctypes.get_errno()
assert open('covered').read() == 'new content'
assert os.listdir('.') == ['covered']
",
    );
}

fn directories(s: &mut Scene) {
    s.layer(|l| {
        l.dir("lower");
        l.dir("merged");
        l.file("emptied/x", "x");
        l.dir("parent/child");
        l.dir("covered");
        l.file("file", "f");
    });
    s.layer(|l| {
        l.dir("merged");
    });
    s.mount();
    python(
        s,
        "
os.mkdir('upper'); os.unlink('emptied/x')
for name in ('lower', 'merged', 'emptied', 'parent/child', 'upper', 'covered'):
    fd = os.open(name, os.O_RDONLY)
    above = os.stat(os.path.dirname(name) or '.').st_ino
    if name == 'covered':
        os.mkdir('new'); os.rename('new', name); open('covered/inside', 'w').close()
    else:
        os.rmdir(name)
    assert os.listdir(fd) == [], name
    fails(errno.ENOENT, os.mkdir, 'x', dir_fd=fd)
    fails(errno.ENOENT, os.open, 'x', os.O_CREAT | os.O_WRONLY, dir_fd=fd)
    fails(errno.ENOENT, os.symlink, 'to', 'x', dir_fd=fd)
    fails(errno.ENOENT, os.mknod, 'x', stat.S_IFIFO | 0o600, dir_fd=fd)
    fails(errno.ENOENT, os.link, 'file', 'x', dst_dir_fd=fd)
    fails(errno.ENOENT, os.rename, 'file', 'x', dst_dir_fd=fd)
    fails(errno.ENOENT, os.stat, 'inside', dir_fd=fd)
    assert os.stat('..', dir_fd=fd).st_ino == above
    os.fsync(fd); os.close(fd)
assert os.listdir('covered') == ['inside']
",
    );
    s.lists("", &["covered", "file", "parent"]);
}

// The judge answers ENOTDIR for a directory that it did not copy up before its removal; ext4 and mlfs change it.
fn directories_are_still_changed(s: &mut Scene) {
    s.skip_when(!s.driver.is_mlfs(), "changes of removed lower directories are refused by the kernel");
    s.is_not_judged("the judge refuses the changes");
    s.layer(|l| {
        l.dir("lower").mode(0o755);
        l.dir("merged").mode(0o755);
    });
    s.layer(|l| {
        l.dir("merged").mode(0o755);
    });
    s.mount();
    python(
        s,
        "
os.mkdir('upper')
for name in ('lower', 'merged', 'upper'):
    fd = os.open(name, os.O_RDONLY)
    ino = os.fstat(fd).st_ino
    os.rmdir(name)
    os.fchmod(fd, 0o711); os.utime(fd, (5, 6)); os.setxattr(fd, 'user.k', b'v')
    st = os.fstat(fd)
    assert (st.st_nlink, mode(fd), st.st_mtime, st.st_ino) == (0, 0o711, 6.0, ino), (name, st)
    assert os.listdir(fd) == [] and os.getxattr(fd, 'user.k') == b'v'
    os.mkdir(name)
    assert os.stat(name).st_ino != ino and os.listxattr(name) == []
    os.close(fd)
",
    );
}

// A group of links: the count falls with every name, the file stays while anybody has it open.
fn linked_lower_files(s: &mut Scene) {
    s.skip_when(!s.has_index(), "kernel overlayfs: index=on works in the initial namespace only");
    s.layer(|l| {
        l.file("a", "linked");
        l.hardlink("d/b", "a");
        l.hardlink("c", "a");
        l.file("x", "other");
        l.hardlink("d/y", "x");
    });
    s.mount();
    python(
        s,
        "
fd = os.open('a', os.O_RDWR)
for name, left in (('a', 2), ('d/b', 1), ('c', 0)):
    os.unlink(name)
    assert os.fstat(fd).st_nlink == left, (name, os.fstat(fd))
    os.pwrite(fd, b'L', 0)
    assert os.pread(fd, 9, 0) == b'Linked'
os.ftruncate(fd, 3); os.fchmod(fd, 0o600)
assert os.pread(fd, 9, 0) == b'Lin'
reader = os.open('x', os.O_RDONLY)
os.unlink('x')
assert os.stat('d/y').st_nlink == 1
with open('d/y', 'a') as file: file.write('+')
os.unlink('d/y')
assert os.pread(reader, 5, 0) == b'other'
",
    );
    s.lists("", &["d"]);
    s.lists("d", &[]);
    s.remount();
    s.lists("d", &[]);
}

scenarios! {
    lower_files_opened_for_reading, files_opened_for_writing, directories, directories_are_still_changed,
    linked_lower_files,
}
