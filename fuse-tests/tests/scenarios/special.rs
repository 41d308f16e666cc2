// SPDX-License-Identifier: MIT OR Apache-2.0
//! Pipes, sockets and device nodes.

use fuse_tests::layers::What;
use fuse_tests::tree::Body;
use fuse_tests::{Scene, scenarios};

fn pipes_and_sockets(s: &mut Scene) {
    s.layer(|l| {
        l.node("pipe", What::Fifo).mode(0o600);
    });
    s.mount();
    assert_eq!(s.tree().node("pipe").body, Body::Fifo);
    let script = "
os.mkfifo('new', 0o640)
for name in ('pipe', 'new'):
    t = threading.Thread(target=lambda: open(name, 'w').write('through'))
    t.start()
    assert open(name).read() == 'through'
    t.join()
a = socket.socket(socket.AF_UNIX); a.bind('sock'); a.listen()
b = socket.socket(socket.AF_UNIX); b.connect('sock')
b.send(b'x'); assert a.accept()[0].recv(1) == b'x'
os.chmod('pipe', 0o622)
";
    s.python(script).ok();
    s.remount();
    let tree = s.tree();
    assert_eq!((&tree.node("new").body, &tree.node("sock").body), (&Body::Fifo, &Body::Socket));
    assert_eq!(tree.node("pipe").mode, 0o622);
}

// Between processes, over rename, link and unlink, with every mode, and nobody there.
fn used_by_processes(s: &mut Scene) {
    s.skip_when(!s.has_index(), "kernel overlayfs: index=on works in the initial namespace only");
    s.layer(|l| {
        l.node("pipe", What::Fifo).mode(0o600);
    });
    s.mount();
    let script = "
os.umask(0)
os.mkfifo('new', 0o4640)
for name in ('pipe', 'new'):
    for mode in (0o4755, 0o2711, 0o1777, 0o640):
        t('mode', lambda: (os.chmod(name, mode), mode_of(name)))
    t('nobody reads', lambda: os.open(name, os.O_WRONLY | os.O_NONBLOCK))
    r = os.open(name, os.O_RDONLY | os.O_NONBLOCK)
    os.link(name, name + '2'); os.rename(name, name + '3')
    pid = os.fork()
    if not pid:
        w = os.open(name + '2', os.O_WRONLY | os.O_NONBLOCK)
        os.write(w, b'from a child')
        os._exit(0)
    os.waitpid(pid, 0)
    t('through another name', lambda: os.read(r, 100))
    w = os.open(name + '3', os.O_WRONLY | os.O_NONBLOCK)
    os.unlink(name + '2'); os.unlink(name + '3')
    os.write(w, b'nameless')
    t('nameless', lambda: (os.read(r, 100), os.fstat(r).st_nlink))
    t('size', lambda: os.fstat(r).st_size)
a = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); a.bind('dgram')
os.chmod('dgram', 0o600)
os.rename('dgram', 'moved'); os.link('moved', 'linked')
b = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
for name in ('dgram', 'moved', 'linked'):
    t('send ' + name, lambda: b.sendto(b'to', name))
t('received', lambda: (a.recv(9), a.recv(9)))
t('taken', lambda: socket.socket(socket.AF_UNIX).bind('moved'))
t('open', lambda: os.open('moved', os.O_RDONLY))
a.close()
t('nobody listens', lambda: b.sendto(b'to', 'moved'))
t('mode', lambda: mode_of('moved'))
for kind, name in ((stat.S_IFIFO, 'mkn-p'), (stat.S_IFSOCK, 'mkn-s'), (stat.S_IFREG, 'mkn-f'), (0, 'mkn-0')):
    t(name, lambda: (os.mknod(name, kind | 0o6755), mode_of(name), stat.S_IFMT(os.lstat(name).st_mode)))
for kind in (stat.S_IFDIR, stat.S_IFLNK, 0o150000):
    t('mknod', lambda: os.mknod('no', kind | 0o644))
t('truncate', lambda: os.truncate('mkn-p', 0))
t('xattr', lambda: os.setxattr('mkn-p', 'user.x', b'x'))
t('exists', lambda: os.mkfifo('mkn-p'))
";
    s.as_on_host(script);
}

fn device_nodes(s: &mut Scene) {
    s.needs_root("mknod of devices");
    s.layer(|l| {
        l.node("null", What::Char(1, 3)).mode(0o666).owner(1, 2);
        l.node("loop", What::Block(7, 300)).mode(0o660);
    });
    s.mount();
    s.sh("mknod zero c 1 5; mknod disk b 259 70000; chmod 600 loop; mv null renamed").ok();
    s.remount();
    let tree = s.tree();
    assert_eq!(tree.node("renamed").body, Body::Char(1, 3));
    assert_eq!((tree.node("renamed").mode, tree.node("renamed").uid, tree.node("renamed").gid), (0o666, 1, 2));
    assert_eq!(tree.node("loop").body, Body::Block(7, 300));
    assert_eq!(tree.node("zero").body, Body::Char(1, 5));
    assert_eq!(tree.node("disk").body, Body::Block(259, 70_000));
}

// The character device 0:0 is the whiteout: nobody may make one, as kernel overlayfs answers.
fn device_0_0(s: &mut Scene) {
    s.layer(|l| {
        l.file("f", "f");
    });
    s.mount();
    let script = "
t('0:0', lambda: os.mknod('w', 0o644 | stat.S_IFCHR, 0))
t('over', lambda: os.mknod('f', 0o644 | stat.S_IFCHR, 0))
t('left', lambda: os.listdir('.'))
";
    assert_eq!(s.python(script).ok(), "0:0 EPERM\nover EEXIST\nleft ['f']");
}

fn opening_devices(s: &mut Scene) {
    s.needs_root("mknod of devices");
    s.layer(|l| {
        l.node("null", What::Char(1, 3)).mode(0o666);
    });
    // FUSE mounts of mlfs have no devices unless asked for.
    s.mount();
    let script = "
os.mknod('zero', 0o666 | stat.S_IFCHR, os.makedev(1, 5))
for name in ('null', 'zero'):
    t(name, lambda: os.close(os.open(name, os.O_RDWR)))
    t(name, lambda: os.stat(name).st_rdev)
    t(name, lambda: os.access(name, os.W_OK))
";
    let printed = s.python(script).ok();
    let opened = if s.driver.is_mlfs() { "EACCES" } else { "None" };
    assert_eq!(printed, format!("null {opened}\nnull 259\nnull True\nzero {opened}\nzero 261\nzero True"));
}

scenarios! { pipes_and_sockets, used_by_processes, device_nodes, device_0_0, opening_devices }
