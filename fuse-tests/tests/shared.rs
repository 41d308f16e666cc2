// SPDX-License-Identifier: MIT OR Apache-2.0
//! Volumes and binds while others change them: the host, and other containers.

use std::path::{Path, PathBuf};

use fuse_tests::host::python;
use fuse_tests::world::{World, eventually, list, read, world, write};
use rustix::io::Errno;

fn base(w: &World) -> String {
    w.layer("base", |l| {
        l.file("etc/conf", "conf");
        l.dir("v");
    })
}

fn errno_of<T>(result: std::io::Result<T>) -> Option<Errno> {
    result.err().and_then(|error| error.raw_os_error()).map(Errno::from_raw_os_error)
}

// A bind and where it is seen inside.
fn bound(w: &World) -> (PathBuf, PathBuf) {
    let host = w.sandbox.dir("host");
    let bind = format!("{}:/v", host.display());
    let inside = w.mount("box", &["-v", &bind, "--layer", &base(w)]).join("v");
    (host, inside)
}

fn script(w: &World, host: &Path, inside: &Path, text: &str) -> String {
    let head = format!("H, I = {:?} + '/', {:?} + '/'\n", host.display().to_string(), inside.display().to_string());
    python(&w.sandbox, w.sandbox.root(), &format!("{head}{text}")).ok()
}

// What the host has done is there for whoever opens or begins to read afterwards: no waiting, no luck.
#[test]
fn content_is_the_hosts_at_the_next_open() {
    world(|w| {
        let (host, inside) = bound(w);
        let text = "
held = None
for number in range(200):
    size = number * 37 % 5000
    data = b'%d' % (number % 10) * size
    if number % 3 == 0:                      # another file in its place
        put(H + 'aside', data); os.rename(H + 'aside', H + 'f')
    elif number % 3 == 1:                    # shorter or longer in place
        put(H + 'f', data)
    else:                                    # the same size, other bytes, the same times
        st = os.stat(H + 'f')
        data = b'S' * st.st_size
        put(H + 'f', data, 'r+b')
        os.utime(H + 'f', ns=(st.st_atime_ns, st.st_mtime_ns))
    assert content(I + 'f') == data, number
    assert os.stat(I + 'f').st_size == len(data), number
    os.chmod(H + 'f', 0o600 + number % 8)
    assert mode_of(I + 'f') == oct(0o600 + number % 8), number
print('same')
";
        assert_eq!(script(w, &host, &inside, text), "same");
    });
}

// An open file follows what is done to it in place; the file that it was opened on stays behind when it is replaced.
#[test]
fn an_open_file_follows_changes_in_place() {
    world(|w| {
        let (host, inside) = bound(w);
        let text = "
put(H + 'f', b'x' * 10000)
fd = os.open(I + 'f', os.O_RDWR)
assert os.pread(fd, 20000, 0) == b'x' * 10000
for number in range(100):
    data = b'%03d' % number * (100 + number)
    put(H + 'f', data)
    assert os.fstat(fd).st_size == len(data), (number, os.fstat(fd).st_size)
    assert os.pread(fd, 20000, 0) == data, number
put(H + 'new', b'another'); os.rename(H + 'new', H + 'f')
assert os.pread(fd, 3, 0) == b'099' and os.fstat(fd).st_nlink == 0
assert content(I + 'f') == b'another'
os.pwrite(fd, b'old', 0)
assert content(H + 'f') == b'another'
os.unlink(H + 'f')
assert os.pread(fd, 3, 0) == b'old' and not os.path.exists(I + 'f')
print('same')
";
        assert_eq!(script(w, &host, &inside, text), "same");
    });
}

#[test]
fn names_are_the_hosts_within_a_second() {
    world(|w| {
        let (host, inside) = bound(w);
        let text = "
def soon(what, is_true):
    begun = time.monotonic()
    while not is_true():
        assert time.monotonic() < begun + 10, what
    spent = time.monotonic() - begun
    assert spent < 5, (what, spent)
def fails(number, function):
    try: function()
    except OSError as error: return error.errno == number
    return False
# Absence that becomes presence, and back.
for number in range(50):
    name = 'n%d' % number
    assert fails(errno.ENOENT, lambda: os.stat(I + name))
    put(H + name, b'x')
    soon('a new name', lambda: os.path.exists(I + name))
    soon('listed', lambda: name in os.listdir(I))
    os.unlink(H + name)
    soon('a name that goes', lambda: not os.path.exists(I + name))
    soon('not listed', lambda: name not in os.listdir(I))
# One kind in the place of another.
kinds = (('file', lambda: put(H + 'k', b'x'), lambda: os.unlink(H + 'k'), stat.S_ISREG),
         ('dir', lambda: os.mkdir(H + 'k'), lambda: os.rmdir(H + 'k'), stat.S_ISDIR),
         ('link', lambda: os.symlink('x', H + 'k'), lambda: os.unlink(H + 'k'), stat.S_ISLNK),
         ('pipe', lambda: os.mkfifo(H + 'k'), lambda: os.unlink(H + 'k'), stat.S_ISFIFO))
for turn in range(3):
    for what, make, remove, is_it in kinds:
        make()
        soon(what, lambda: os.path.lexists(I + 'k') and is_it(os.lstat(I + 'k').st_mode))
        if what == 'dir':
            put(H + 'k/in', b'deep')
            soon('in a new directory', lambda: os.path.exists(I + 'k/in') and content(I + 'k/in') == b'deep')
            os.unlink(H + 'k/in')
        remove()
# A directory moved by the host, with somebody inside.
os.makedirs(H + 'a/b'); put(H + 'a/b/f', b'f')
d = os.open(I + 'a/b', os.O_RDONLY)
assert os.listdir(d) == ['f']
os.rename(H + 'a', H + 'c')
soon('moved', lambda: os.path.exists(I + 'c/b/f') and not os.path.exists(I + 'a'))
put(I + 'c/b/g', b'g')
assert content(H + 'c/b/g') == b'g'
soon('the directory that was open', lambda: sorted(os.listdir(d)) == ['f', 'g'])
# Owners and times, links.
os.utime(H + 'c/b/f', (5, 6)); os.link(H + 'c/b/f', H + 'linked')
soon('times', lambda: os.stat(I + 'c/b/f').st_mtime == 6)
soon('links', lambda: os.stat(I + 'c/b/f').st_nlink == 2 and os.stat(I + 'linked').st_ino == os.stat(I + 'c/b/f').st_ino)
os.setxattr(H + 'linked', 'user.x', b'host')
soon('attributes', lambda: os.getxattr(I + 'linked', 'user.x') == b'host')
os.symlink('one', H + 'target'); soon('link', lambda: os.readlink(I + 'target') == 'one')
os.unlink(H + 'target'); os.symlink('two', H + 'target')
soon('changed link', lambda: os.readlink(I + 'target') == 'two')
print('same')
";
        assert_eq!(script(w, &host, &inside, text), "same");
    });
}

// Replaced again and again while it is opened by name: no open fails, and each sees a whole file.
#[test]
fn a_file_replaced_all_the_time_can_be_opened() {
    world(|w| {
        let (host, inside) = bound(w);
        let text = "
put(H + 'f', b'0' * 100)
pid = os.fork()
if not pid:
    number = 0
    while not os.path.exists(H + 'stop'):
        number += 1
        put(H + 'new', b'%d' % (number % 10) * 100); os.rename(H + 'new', H + 'f')
    os._exit(0)
failed = {}
try:
    end, opened = time.monotonic() + 3, 0
    while time.monotonic() < end:
        for how in (lambda: content(I + 'f'), lambda: os.stat(I + 'f').st_size, lambda: os.getxattr(I + 'f', 'user.none'),
                    lambda: os.access(I + 'f', os.R_OK) or os.stat(I + 'f')):
            try:
                got = how()
                assert not isinstance(got, bytes) or (len(got) == 100 and len(set(got)) == 1), got
                opened += 1
            except OSError as error:
                name = errno.errorcode[error.errno]
                if name != 'ENODATA': failed[name] = failed.get(name, 0) + 1
finally:
    put(H + 'stop', b'')
    os.waitpid(pid, 0)
assert opened > 100, opened
print(failed)
";
        assert_eq!(script(w, &host, &inside, text), "{}");
    });
}

// The reader's mapping ends where the host cut the file: SIGBUS for him alone, and the mount goes on.
#[test]
fn cut_by_the_host_while_mapped() {
    world(|w| {
        let (host, inside) = bound(w);
        let text = "
put(H + 'f', b'x' * 100000)
fd = os.open(I + 'f', os.O_RDWR)
pid = os.fork()
if not pid:
    m = mmap.mmap(fd, 0)
    os.truncate(H + 'f', 10)
    os.fstat(fd)
    m.madvise(mmap.MADV_DONTNEED)
    m[90000]
    os._exit(0)
print(os.waitpid(pid, 0)[1] == signal.SIGBUS, content(I + 'f'), os.pread(fd, 100, 0))
put(I + 'g', b'goes on')
print(content(H + 'g'))
";
        let printed = script(w, &host, &inside, text);
        assert_eq!(printed, "True b'xxxxxxxxxx' b'xxxxxxxxxx'\nb'goes on'");
    });
}

#[test]
fn borders() {
    world(|w| {
        let args = ["-v", "one:/v", "-v", "two:/w", "--layer", &base(w)];
        let root = w.mount("box", &args);
        let text = "
def exchange(a, b):
    call('syscall', 316, -100, a, -100, b, 2)
put(I + 'f', b'root'); put(I + 'v/f', b'one'); put(I + 'w/f', b'two')
os.mkdir(I + 'd'); os.mkdir(I + 'v/d'); os.symlink('f', I + 'v/l')
for a in ('', 'v/', 'w/'):
    for b in ('', 'v/', 'w/'):
        if a == b: continue
        for name in ('f', 'd') if a != 'w/' else ('f',):
            t('rename', lambda: os.rename(I + a + name, I + b + 'x'))
            t('onto', lambda: os.rename(I + a + name, I + b + 'f') if name == 'f' else 0)
        t('exchange', lambda: exchange(I + a + 'f', I + b + 'f'))
        t('link', lambda: os.link(I + a + 'f', I + b + 'x'))
        s, d = os.open(I + a + 'f', os.O_RDONLY), os.open(I + b + 'copy', os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        t('copy_file_range', lambda: (os.copy_file_range(s, d, 100), content(I + b + 'copy') == content(I + a + 'f')))
        t('sendfile', lambda: os.sendfile(d, s, 0, 100) > 0)
s, d = os.open(I + 'etc/conf', os.O_RDONLY), os.open(I + 'v/conf', os.O_RDWR | os.O_CREAT)
t('of a layer', lambda: (os.copy_file_range(s, d, 100), content(I + 'v/conf')))
t('inside', lambda: os.rename(I + 'v/d', I + 'v/e'))
t('rmdir of a mount point', lambda: os.rmdir(I + 'v'))
t('rename of one', lambda: os.rename(I + 'v', I + 'x'))
t('over one', lambda: os.rename(I + 'd', I + 'v'))
t('exchange of one', lambda: exchange(I + 'd', I + 'v'))
t('dotdot', lambda: os.stat(I + 'v/..').st_ino == os.stat(I).st_ino)
";
        let printed = script(w, &root, &root, text);
        let across = printed
            .lines()
            .filter(|line| ["rename EXDEV", "onto EXDEV", "exchange EXDEV", "link EXDEV"].contains(line));
        assert_eq!(across.count(), 10 + 6 + 6 + 6, "{printed}");
        let copies = printed.lines().filter(|line| line.starts_with("copy_file_range") && line.ends_with(", True)"));
        assert_eq!(copies.count(), 6, "{printed}");
        let rest = [
            "of a layer (4, b'conf')",
            "inside None",
            "rmdir of a mount point EBUSY",
            "rename of one EBUSY",
            "over one EBUSY",
            "exchange of one EBUSY",
            "dotdot True",
        ];
        assert!(printed.ends_with(&rest.join("\n")), "{printed}");
    });
}

// What is deleted in a volume or bind leaves nothing, and nothing of ours is on the host's files.
#[test]
fn no_marks_on_the_host() {
    world(|w| {
        let host = w.sandbox.dir("host");
        for name in ["f", "g", ".wh.mine", "d/x", "e/y"] {
            w.sandbox.file(format!("host/{name}"), name);
        }
        let volume = w.sandbox.path("store/volumes/vol/_data");
        let bind = format!("{}:/v", host.display());
        let root = w.mount("box", &["-v", &bind, "-v", "vol:/w", "--layer", &base(w)]);
        let text = "
for at in (I + 'v/', I + 'w/'):
    if at.endswith('w/'):
        for d in ('d', 'e'): os.mkdir(at + d)
        for f in ('f', 'g', '.wh.mine', 'd/x', 'e/y'): put(at + f, b'x')
    os.unlink(at + 'f')
    os.rename(at + 'g', at + 'h')
    subprocess.check_call(['rm', '-r', at + 'd']); os.mkdir(at + 'd')
    os.rename(at + 'e', at + 'd')
    os.unlink(at + '.wh.mine'); put(at + '.wh.f', b'mine')
    os.chmod(at + 'h', 0o640)
    with open(at + 'h', 'ab') as f: f.write(b'more')
";
        script(w, &host, &root, text);
        for dir in [&host, &volume] {
            assert_eq!(list(dir), [".wh.f", "d", "h"]);
            assert_eq!(list(dir.join("d")), ["y"]);
            for (path, node) in fuse_tests::Tree::take(dir).nodes {
                let path = String::from_utf8_lossy(&path).into_owned();
                // An ordinary user's volume holds the mode aside where the host's has more rights for us.
                let marks: Vec<_> = node
                    .xattrs
                    .keys()
                    .filter(|name| name.starts_with(b"user.overlay") || name.starts_with(b"trusted."))
                    .collect();
                assert!(marks.is_empty(), "{path} has marks");
            }
        }
        let seen = fuse_tests::Tree::take(&host);
        assert_eq!(seen.node("h").mode, 0o640, "a bind holds modes as they are");
        assert!(seen.nodes.values().all(|node| node.xattrs.is_empty()), "a bind gets no attributes of ours");
    });
}

// Two containers on one volume make, rename and delete in it at once: each call succeeds or says what is true.
#[test]
fn two_containers_at_once() {
    world(|w| {
        let base = base(w);
        let one = w.mount("one", &["-v", "vol:/v", "--layer", &base]).join("v");
        let two = w.mount("two", &["-v", "vol:/v", "--layer", &base]).join("v");
        let volume = w.sandbox.path("store/volumes/vol/_data");
        let text = "
import random
def busy(side, seed):
    rng, own = random.Random(seed), 0
    for number in range(400):
        name = side + 'n%d' % rng.randrange(6)
        what = rng.randrange(6)
        try:
            if what == 0: put(name, b'%03d' % number * 50)
            elif what == 1: os.rename(name, side + 'n%d' % rng.randrange(6))
            elif what == 2: os.unlink(name)
            elif what == 3:
                data = content(name)
                assert len(data) % 3 == 0, data
            elif what == 4: os.mkdir(side + 'd%d' % rng.randrange(3))
            else: os.rmdir(side + 'd%d' % rng.randrange(3))
        except FileNotFoundError: pass
        except FileExistsError: pass
        # Exclusive creation has one winner.
        try:
            os.close(os.open(side + 'lock%d' % number, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            own += 1
        except FileExistsError: pass
    return own
r, p = os.pipe()
pids = []
for side, seed in ((H, 1), (I, 2), (H, 3), (I, 4)):
    pid = os.fork()
    if not pid:
        try:
            os.write(p, struct.pack('i', busy(side, seed)))
            os._exit(0)
        except BaseException as error:
            print('uncaught', repr(error), flush=True)
            os._exit(1)
    pids.append(pid)
t('ended', lambda: [os.waitpid(pid, 0)[1] for pid in pids])
t('locks', lambda: sum(struct.unpack('4i', os.read(r, 16))))
";
        assert_eq!(script(w, &one, &two, text), "ended [0, 0, 0, 0]\nlocks 400");
        eventually("both see what is there", || list(&one) == list(&volume) && list(&two) == list(&volume));
        for name in list(&volume).iter().filter(|name| name.starts_with('n')) {
            assert_eq!(read(one.join(name)), read(volume.join(name)), "{name}");
            assert_eq!(read(two.join(name)), read(volume.join(name)), "{name}");
        }
    });
}

// Appending by two containers and the host loses no byte.
#[test]
fn appended_by_all_sides() {
    world(|w| {
        let base = base(w);
        let one = w.mount("one", &["-v", "vol:/v", "--layer", &base]).join("v");
        let two = w.mount("two", &["-v", "vol:/v", "--layer", &base]).join("v");
        let volume = w.sandbox.path("store/volumes/vol/_data");
        write(volume.join("log"), "");
        let text = "
sides = (H + 'log', I + 'log', V + 'log')
pids = []
for writer in range(6):
    pid = os.fork()
    if not pid:
        fd = os.open(sides[writer % 3], os.O_WRONLY | os.O_APPEND)
        for number in range(500):
            record = b'%d:%03d:' % (writer, number) + b'x' * (writer * 17) + b'\\n'
            assert os.write(fd, record) == len(record)
        os._exit(0)
    pids.append(pid)
t('ended', lambda: [os.waitpid(pid, 0)[1] for pid in pids])
for side in sides:
    lines = content(side).split(b'\\n')[:-1]
    t('records', lambda: (len(lines), len(set(lines)), all(line.count(b':') == 2 for line in lines)))
t('sizes', lambda: len({os.stat(side).st_size for side in sides}))
fd = os.open(H + 'log', os.O_RDWR | os.O_APPEND)
m = mmap.mmap(fd, 0)
m[0:4] = b'mmap'
m.flush()
t('mapped', lambda: [content(side)[:4] for side in sides])
t('read', lambda: os.pread(fd, 4, 0))
";
        let text = format!("V = {:?}\n{text}", format!("{}/", volume.display()));
        let printed = script(w, &one, &two, &text);
        let records = "records (3000, 3000, True)\n".repeat(3);
        assert_eq!(
            printed,
            format!(
                "ended [0, 0, 0, 0, 0, 0]\n{records}sizes 1\nmapped {}\nread b'mmap'",
                "[b'mmap', b'mmap', b'mmap']"
            )
        );
    });
}

// Written through one mount and read through another: whoever opens after the close sees it, and its size.
#[test]
fn close_to_open() {
    world(|w| {
        let base = base(w);
        let one = w.mount("one", &["-v", "vol:/v", "--layer", &base]).join("v");
        let two = w.mount("two", &["-v", "vol:/v", "--layer", &base]).join("v");
        let text = "
for number in range(300):
    a, b = (H, I) if number % 2 else (I, H)
    data = b'%d' % (number % 10) * (number * 61 % 9000)
    if number % 5 == 0:
        fd = os.open(a + 'f', os.O_RDWR | os.O_CREAT)
        os.ftruncate(fd, len(data))
        if data:
            m = mmap.mmap(fd, 0); m[:] = data; m.flush(); m.close()
        os.close(fd)
    else: put(a + 'f', data)
    assert content(b + 'f') == data, number
    assert os.stat(b + 'f').st_size == len(data), number
print('same')
";
        assert_eq!(script(w, &one, &two, text), "same");
    });
}

#[test]
fn ownership_is_the_hosts() {
    world(|w| {
        let (host, inside) = bound(w);
        write(inside.join("mine"), "m");
        let text = "
os.umask(0o027)
put(I + 'f', b'f'); os.mkdir(I + 'd'); os.mkfifo(I + 'p'); os.symlink('f', I + 'l')
for name in 'fdpl':
    a, b = os.lstat(H + name), os.lstat(I + name)
    print(name, (a.st_uid, a.st_gid, a.st_mode) == (b.st_uid, b.st_gid, b.st_mode), (a.st_uid, a.st_gid) == (os.getuid(), os.getgid()), oct(a.st_mode & 0o7777))
os.chmod(I + 'f', 0o4711)
print(mode_of(H + 'f'), mode_of(I + 'f'))
t('to another', lambda: os.chown(I + 'f', 4321, 4321))
";
        let printed = script(w, &host, &inside, text);
        let head =
            "f True True 0o640\nd True True 0o750\np True True 0o640\nl True True 0o777\n0o4711 0o4711\nto another ";
        let allowed = if fuse_tests::identity::has_ids() {
            "None"
        } else if rustix::process::geteuid().is_root() {
            "EINVAL"
        } else {
            "EPERM"
        };
        assert_eq!(printed, format!("{head}{allowed}"));
        assert_eq!(errno_of(std::fs::read(inside.join("absent"))), Some(Errno::NOENT));
    });
}

// What did not fit is an error of the call that wrote it, or of the next fsync or msync; what fitted is there.
#[test]
fn a_full_disk_loses_nothing_in_silence() {
    world(|w| {
        let args = ["--mount", "type=tmpfs,dst=/v,tmpfs-size=1m", "--layer", &base(w)];
        let inside = w.mount("box", &args).join("v");
        let text = "
fd = os.open(I + 'f', os.O_CREAT | os.O_RDWR)
written, error = 0, None
try:
    while True: written += os.write(fd, bytes([65 + written // 4096 % 26]) * 10000)
except OSError as e: error = errno.errorcode[e.errno]
t('error', lambda: error)
data = content(I + 'f')
t('kept', lambda: (len(data) == written, os.fstat(fd).st_size == written, written > 900000))
t('allocate', lambda: call('fallocate', fd, 0, 0, 4 << 20))
t('sparse', lambda: os.ftruncate(fd, 4 << 20))
pid = os.fork()
if not pid:
    m = mmap.mmap(fd, 0)
    try:
        m[3 << 20:(3 << 20) + 4096] = b'm' * 4096
        m.flush(); os.fsync(fd)
        os._exit(0)
    except OSError: os._exit(1)
t('told of the mapping', lambda: os.waitpid(pid, 0)[1] != 0)
t('other', lambda: put(I + 'g', b'x' * 100000))
os.close(fd); os.unlink(I + 'f')
t('after', lambda: (put(I + 'g', b'x' * 100000), len(content(I + 'g'))))
";
        let printed = script(w, &inside, &inside, text);
        let lines = "error ENOSPC\nkept (True, True, True)\nallocate ENOSPC\nsparse None\ntold of the mapping True\n";
        assert_eq!(printed, format!("{lines}other ENOSPC\nafter (None, 100000)"));
    });
}
