// SPDX-License-Identifier: MIT OR Apache-2.0
//! Locks of one mount: posix, of open file descriptions, flock, leases; waiting for them, and being woken.

use fuse_tests::{Scene, scenarios};

const TOOLS: &str = "
def child(script, *args):
    head = 'import errno, fcntl, os, signal, struct, sys, time\\n'
    return subprocess.Popen([sys.executable, '-c', head + script, *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
def lock(kind, start=0, length=0):
    return struct.pack('hhqqi4x', kind, 0, start, length, 0)
R, W, U = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK
OFD_GET, OFD_SET, OFD_WAIT = 36, 37, 38
def tested(fd, command, kind, start=0, length=0):
    kind, _, start, length, pid = struct.unpack('hhqqi4x', fcntl.fcntl(fd, command, lock(kind, start, length)))
    return kind, start, length, pid if pid <= 0 else 'a pid'
";

fn ranges_and_kinds(s: &mut Scene) {
    s.layer(|l| {
        l.file("lower", "0123456789");
    });
    s.mount();
    let script = "
put('new', b'0123456789')
asks = '''
fd = os.open(sys.argv[1], os.O_RDWR)
for command in (fcntl.F_GETLK, 36):
    for kind in (fcntl.F_RDLCK, fcntl.F_WRLCK):
        for start in (0, 3, 5, 9, 100):
            found = struct.unpack('hhqqi4x', fcntl.fcntl(fd, command, struct.pack('hhqqi4x', kind, 0, start, 1, 0)))
            print(command, kind, start, found[0], found[2:4] if found[0] != 2 else '', found[4] == int(sys.argv[2]) or found[4] == -1)
'''
def others(name):
    process = child(asks, name, str(os.getpid()))
    return process.communicate()[0]
for name in ('lower', 'new'):
    a, b = os.open(name, os.O_RDWR), os.open(name, os.O_RDWR)
    t('posix', lambda: fcntl.fcntl(a, fcntl.F_SETLK, lock(W, 3, 3)) and None)
    t('own', lambda: tested(b, fcntl.F_GETLK, W, 3, 3)[0])
    t('others', lambda: others(name))
    t('split', lambda: fcntl.fcntl(a, fcntl.F_SETLK, lock(U, 4, 1)) and None)
    t('others', lambda: others(name))
    t('read', lambda: fcntl.fcntl(a, fcntl.F_SETLK, lock(R, 0, 10)) and None)
    t('others', lambda: others(name))
    os.close(os.dup(b)); os.close(b)
    t('closing any descriptor drops them', lambda: others(name))
    b = os.open(name, os.O_RDWR)
    t('ofd', lambda: fcntl.fcntl(a, OFD_SET, lock(W, 0, 5)) and None)
    t('ofd other', lambda: fcntl.fcntl(b, OFD_SET, lock(W, 4, 5)))
    t('ofd get', lambda: tested(b, OFD_GET, W, 0, 9))
    t('posix against ofd', lambda: fcntl.fcntl(b, fcntl.F_SETLK, lock(R, 0, 1)))
    c = os.dup(a); os.close(a)
    t('still held by the copy', lambda: fcntl.fcntl(b, OFD_SET, lock(W, 4, 5)))
    os.close(c)
    t('released', lambda: fcntl.fcntl(b, OFD_SET, lock(W, 4, 5)) and None)
    os.close(b)
    r, w = os.open(name, os.O_RDONLY), os.open(name, os.O_WRONLY)
    t('write lock, readonly', lambda: fcntl.fcntl(r, fcntl.F_SETLK, lock(W)))
    t('read lock, writeonly', lambda: fcntl.fcntl(w, fcntl.F_SETLK, lock(R)))
    t('read lock, readonly', lambda: fcntl.fcntl(r, fcntl.F_SETLK, lock(R)) and None)
    t('invalid', lambda: fcntl.fcntl(r, fcntl.F_SETLK, lock(R, -1)))
    t('backwards', lambda: fcntl.fcntl(r, fcntl.F_SETLK, lock(R, 10, -5)) and None)
    os.close(r); os.close(w)
    a, b = os.open(name, os.O_RDONLY), os.open(name, os.O_RDONLY)
    t('flock', lambda: fcntl.flock(a, fcntl.LOCK_SH))
    t('flock shared', lambda: fcntl.flock(b, fcntl.LOCK_SH | fcntl.LOCK_NB))
    t('flock upgrade', lambda: fcntl.flock(b, fcntl.LOCK_EX | fcntl.LOCK_NB))
    t('flock released', lambda: (fcntl.flock(a, fcntl.LOCK_UN), fcntl.flock(b, fcntl.LOCK_EX | fcntl.LOCK_NB)))
    t('flock taken', lambda: fcntl.flock(a, fcntl.LOCK_SH | fcntl.LOCK_NB))
    t('beside posix', lambda: fcntl.fcntl(os.open(name, os.O_RDWR), fcntl.F_SETLK, lock(W)) and None)
    os.close(b)
    t('flock free', lambda: fcntl.flock(a, fcntl.LOCK_EX | fcntl.LOCK_NB))
d = os.open('.', os.O_RDONLY)
t('flock of a directory', lambda: fcntl.flock(d, fcntl.LOCK_EX | fcntl.LOCK_NB))
t('flock of it again', lambda: fcntl.flock(os.open('.', os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB))
";
    s.as_on_host(&format!("{TOOLS}{script}"));
}

fn waiting(s: &mut Scene) {
    s.layer(|l| {
        l.file("lower", "0123456789");
    });
    s.mount();
    let script = "
waits = '''
fd = os.open(sys.argv[1], os.O_RDWR)
class Woken(Exception): pass
def woken(*_): raise Woken()
signal.signal(signal.SIGUSR1, woken)
print('waiting', flush=True)
try:
    if sys.argv[2] == 'flock': fcntl.flock(fd, fcntl.LOCK_EX)
    else: fcntl.fcntl(fd, int(sys.argv[2]), struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 0, 0, 0))
    print('got it', flush=True)
except Woken:
    print('interrupted', flush=True)
sys.stdin.read()
'''
def blocked(pid):
    # In the kernel's wait for a lock, not on its way there.
    for _ in range(500):
        with open('/proc/%d/wchan' % pid) as f: where = f.read()
        with open('/proc/%d/syscall' % pid) as f: number = f.read().split()[0]
        if number in ('72', '73'): return True
        time.sleep(0.01)
    return where
put('new', b'0123456789')
for name in ('lower', 'new'):
    for kind in ('flock', str(fcntl.F_SETLKW), str(OFD_WAIT)):
        fd = os.open(name, os.O_RDWR)
        if kind == 'flock': fcntl.flock(fd, fcntl.LOCK_EX)
        elif kind == str(OFD_WAIT): fcntl.fcntl(fd, OFD_SET, lock(W))
        else: fcntl.fcntl(fd, fcntl.F_SETLK, lock(W))
        # One is interrupted by a signal, one is killed, one gets it.
        first, second, third = (child(waits, name, kind) for _ in range(3))
        for process in (first, second, third):
            assert process.stdout.readline() == 'waiting\\n'
            t('blocked', lambda: blocked(process.pid))
        first.send_signal(signal.SIGUSR1)
        t('signal', lambda: first.stdout.readline())
        second.kill()
        t('killed', lambda: second.wait())
        # Other operations go on meanwhile.
        t('others', lambda: (os.stat(name).st_size, content(name), os.pwrite(fd, b'0', 0)))
        os.close(fd)
        t('released', lambda: third.stdout.readline())
        for process in (first, third): process.communicate()
def deadlock():
    a = os.open('new', os.O_RDWR)
    fcntl.fcntl(a, fcntl.F_SETLK, lock(W, 0, 1))
    other = child('''
fd = os.open('new', os.O_RDWR)
fcntl.fcntl(fd, fcntl.F_SETLK, struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 1, 1, 0))
print('has one', flush=True)
fcntl.fcntl(fd, fcntl.F_SETLKW, struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 0, 1, 0))
print('has both', flush=True)
''')
    other.stdout.readline()
    blocked(other.pid)
    try: fcntl.fcntl(a, fcntl.F_SETLKW, lock(W, 1, 1))
    finally:
        os.close(a)
        print(other.communicate()[0])
t('deadlock', deadlock)
";
    s.as_on_host(&format!("{TOOLS}{script}"));
}

fn leases(s: &mut Scene) {
    s.layer(|l| {
        l.file("lower", "0123456789");
    });
    s.mount();
    let script = "
put('new', b'0123456789')
for name in ('lower', 'new'):
    fd = os.open(name, os.O_RDONLY)
    t('read lease', lambda: fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK))
    t('get', lambda: fcntl.fcntl(fd, fcntl.F_GETLEASE))
    t('release', lambda: fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK))
    os.close(fd)
    fd = os.open(name, os.O_RDWR)
    t('write lease', lambda: fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK))
    os.close(fd)
t('notify', lambda: fcntl.fcntl(os.open('.', os.O_RDONLY), fcntl.F_NOTIFY, fcntl.DN_CREATE))
";
    s.as_on_host(script);
}

scenarios! { ranges_and_kinds, waiting, leases }
