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
import socket, threading
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

scenarios! { pipes_and_sockets, device_nodes }
