// SPDX-License-Identifier: MIT OR Apache-2.0
//! Writing by several at once: appended records, direct and cached, by processes that know nothing of each other.

use fuse_tests::{Scene, scenarios};

// Each of eight processes appends a thousand records; none is lost, none is torn.
fn records_of_eight_processes(s: &mut Scene) {
    s.layer(|l| {
        l.file("lower", "first\n");
        l.file("big", vec![b'\n'; 100_000]);
    });
    s.mount();
    let script = "
put('new', b'first\\n')
for name in ('lower', 'new', 'big'):
    pids = []
    for writer in range(8):
        pid = os.fork()
        if not pid:
            fd = os.open(name, os.O_WRONLY | os.O_APPEND)
            for number in range(1000):
                record = b'%d:%04d:' % (writer, number) + b'x' * (writer * 13) + b'\\n'
                assert os.write(fd, record) == len(record)
                if number % 100 == 50:
                    os.close(fd)
                    fd = os.open(name, os.O_WRONLY | os.O_APPEND)
            os._exit(0)
        pids.append(pid)
    t('ended', lambda: [os.waitpid(pid, 0)[1] for pid in pids])
    lines = [line for line in content(name).split(b'\\n') if line and line != b'first']
    t('records', lambda: (len(lines), len(set(lines))))
    seen = [-1] * 8
    for line in lines:
        writer, number, rest = line.split(b':')
        assert rest == b'x' * (int(writer) * 13) and int(number) == seen[int(writer)] + 1, line
        seen[int(writer)] = int(number)
    os.unlink(name)
";
    s.as_on_host(script);
}

fn positions(s: &mut Scene) {
    s.layer(|l| {
        l.file("lower", "0123456789");
    });
    s.mount();
    let script = "
for name in ('lower', 'new'):
    if name == 'new': put(name, b'0123456789')
    a, w = os.open(name, os.O_RDWR | os.O_APPEND), os.open(name, os.O_RDWR)
    t('pwrite appends', lambda: (os.pwrite(a, b'AA', 0), os.fstat(a).st_size, os.lseek(a, 0, 1)))
    t('write', lambda: (os.write(a, b'BB'), os.lseek(a, 0, 1)))
    os.ftruncate(w, 4)
    t('after truncation', lambda: (os.write(a, b'CC'), content(name)))
    os.ftruncate(w, 100)
    t('after growth', lambda: (os.write(a, b'DD'), content(name)[-4:]))
    fcntl.fcntl(w, fcntl.F_SETFL, os.O_APPEND)
    t('set later', lambda: (os.pwrite(w, b'EE', 0), content(name)[-4:]))
    t('pwritev2 append', lambda: os.pwritev(a, [b'GG'], 0, 0x10) and content(name)[-4:])
    t('vector', lambda: (os.writev(w, [b'1', b'22', b'333']), content(name)[-6:]))
    m = mmap.mmap(w, 0)
    m[0:2] = b'mm'
    m.flush()
    t('mapped', lambda: (content(name)[:3], os.fstat(w).st_size))
    b = os.dup(w)
    t('shared position', lambda: (os.lseek(b, 0, 0), os.write(w, b'HH'), os.lseek(b, 0, 1)))
    t('zero bytes', lambda: os.write(w, b''))
    t('content', lambda: content(name))
t('exclusive', lambda: os.open('x', os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_WRONLY))
";
    s.as_on_host(script);
}

// By two users who may write, the owner and somebody of the group: neither loses a byte.
fn by_two_users(s: &mut Scene) {
    s.needs_ids("other users");
    s.layer(|l| {
        l.file("log", "").owner(1111, 2222).mode(0o660);
    });
    s.mount();
    let script = "
pids = []
for uid, gid in ((1111, 1111), (1112, 2222)):
    pid = os.fork()
    if not pid:
        os.setgroups([]); os.setgid(gid); os.setuid(uid)
        fd = os.open('log', os.O_WRONLY | os.O_APPEND)
        for number in range(500): os.write(fd, b'%d %03d\\n' % (uid, number))
        os._exit(0)
    pids.append(pid)
t('ended', lambda: [os.waitpid(pid, 0)[1] for pid in pids])
lines = content('log').split(b'\\n')[:-1]
t('lines', lambda: (len(lines), len(set(lines))))
put('log', b'')
";
    s.as_on_host(script);
}

fn direct(s: &mut Scene) {
    s.layer(|l| {
        l.file("lower", vec![b'l'; 20_000]);
    });
    s.mount();
    let script = "
put('new', b'n' * 20000)
page = mmap.mmap(-1, 16384)
page.write(b'D' * 16384)
view = memoryview(page)
into = memoryview(mmap.mmap(-1, 16384))
for name in ('lower', 'new'):
    fd = os.open(name, os.O_RDWR | os.O_DIRECT)
    t('flags', lambda: bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT))
    t('aligned write', lambda: (os.pwritev(fd, [view[:4096]], 4096), content(name)[4094:4098], content(name)[8190:8194]))
    t('aligned read', lambda: (os.preadv(fd, [into[:4096]], 4096), bytes(into[:4])))
    t('at the end', lambda: os.preadv(fd, [into[:8192]], 16384))
    t('behind the end', lambda: os.preadv(fd, [into[:4096]], 1 << 20))
    t('extend', lambda: (os.pwritev(fd, [view[:4096]], 20480), os.fstat(fd).st_size))
    with open(name, 'r+b') as cached:
        m = mmap.mmap(cached.fileno(), 0)
        m[100:104] = b'MMAP'
        t('sees mapped', lambda: (os.preadv(fd, [into[:4096]], 0), bytes(into[100:104])))
        t('direct', lambda: os.pwritev(fd, [view[:4096]], 0))
        t('mapping sees direct', lambda: m[100:104])
        t('cached sees direct', lambda: os.pread(cached.fileno(), 4, 100))
        m.close()
    t('truncate', lambda: (os.ftruncate(fd, 100), os.fstat(fd).st_size))
    t('read short', lambda: os.preadv(fd, [into[:4096]], 0))
    a = os.open(name, os.O_WRONLY | os.O_DIRECT | os.O_APPEND)
    os.ftruncate(fd, 4096)
    t('append', lambda: (os.writev(a, [view[:4096]]), os.fstat(a).st_size))
";
    s.as_on_host(script);
    if s.driver.is_mlfs() {
        // Without passthrough even what is not aligned as the host's disk asks for.
        let script = "
fd = os.open('new', os.O_RDWR | os.O_DIRECT)
t('unaligned', lambda: (os.pwrite(fd, b'123', 1), os.pread(fd, 5, 0)[1:4]))
";
        let printed = s.python(script).ok();
        assert!(["unaligned (3, b'123')", "unaligned EINVAL"].contains(&printed.as_str()), "{printed}");
    }
}

scenarios! { records_of_eight_processes, positions, by_two_users, direct }
