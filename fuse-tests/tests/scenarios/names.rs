// SPDX-License-Identifier: MIT OR Apache-2.0
//! Names at the limits, and large directories.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use fuse_tests::{Scene, scenarios};

fn not_utf8(s: &mut Scene) {
    let name: &[u8] = b"\xff\xfe caf\xe9\n\ttab";
    s.layer(|l| {
        l.file(name, "latin");
        l.file([b"dir-".as_slice(), name, b"/x"].concat(), "x");
    });
    s.mount();
    let path = s.p(OsStr::from_bytes(name));
    assert_eq!(std::fs::read(&path).expect("read"), b"latin");
    std::fs::write(&path, "changed").expect("write");
    let other = s.p(OsStr::from_bytes(b"\x80new"));
    std::fs::rename(&path, &other).expect("rename");
    assert!(path.symlink_metadata().is_err());
    assert_eq!(std::fs::read(&other).expect("read"), b"changed");
}

fn of_255_bytes(s: &mut Scene) {
    let lower = "l".repeat(255);
    let gone = "g".repeat(255);
    let upper = "u".repeat(255);
    s.layer(|l| {
        l.file(&lower, "lower");
        l.file(&gone, "gone");
        l.file(format!("{}/{}", "d".repeat(255), "e".repeat(255)), "deep");
    });
    s.mount();
    s.write(&lower, "changed");
    std::fs::remove_file(s.p(&gone)).expect("unlink a lower's name of 255 bytes");
    s.write(&upper, "new");
    std::fs::rename(s.p(&upper), s.p("v".repeat(255))).expect("rename");
    std::fs::remove_dir_all(s.p("d".repeat(255))).expect("rm -r");
    s.lists("", &[&lower, &"v".repeat(255)]);
    let error = std::fs::write(s.p("x".repeat(256)), "").expect_err("256 bytes");
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::NAMETOOLONG.raw_os_error()));
}

fn paths_beyond_4096(s: &mut Scene) {
    s.layer(|l| {
        l.file("base", "b");
    });
    s.mount();
    // Walks down by relative steps: no single path is longer than PATH_MAX.
    let script = "
name = 'n' * 200
for depth in range(30):
    os.mkdir(name); os.chdir(name)
open('f', 'w').write('deep')
assert open('f').read() == 'deep'
os.rename('f', 'g')
os.mkdir('d'); os.rmdir('d'); os.unlink('g')
for depth in range(29):
    os.chdir('..'); os.rmdir(name)
";
    s.python(script).ok();
    s.is_not_judged("only the outermost directory is left");
}

fn listed_while_deleting(s: &mut Scene) {
    s.layer(|l| {
        for number in 0..1500 {
            l.file(format!("big/lower-{number:05}"), "");
        }
        l.dir("big");
    });
    s.mount();
    let script = "
for n in range(1500): open('big/upper-%05d' % n, 'w').close()
seen = set()
with os.scandir('big') as entries:
    for e in entries:
        assert e.name not in seen, e.name
        seen.add(e.name)
        os.unlink(e.path)
assert len(seen) == 3000, len(seen)
assert os.listdir('big') == [], os.listdir('big')[:5]
os.rmdir('big')
os.mkdir('big')
assert os.listdir('big') == []
";
    s.python(script).ok();
}

fn listed_while_creating(s: &mut Scene) {
    s.layer(|l| {
        for number in 0..800 {
            l.file(format!("big/{number:05}"), "");
        }
    });
    s.mount();
    // Names that were there all the time appear exactly once, whatever is made meanwhile.
    let script = "
old = {'%05d' % n for n in range(800)}
seen = []
with os.scandir('big') as entries:
    for count, e in enumerate(entries):
        seen.append(e.name)
        if count < 400: open('big/new-%05d' % count, 'w').close()
assert len(seen) == len(set(seen))
assert old <= set(seen), len(old - set(seen))
assert len(os.listdir('big')) == 1200
";
    s.python(script).ok();
}

scenarios! { not_utf8, of_255_bytes, paths_beyond_4096, listed_while_deleting, listed_while_creating }
