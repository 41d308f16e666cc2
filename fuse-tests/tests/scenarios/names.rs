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

// Every operation on names of 252 to 255 bytes: nothing that is put before or after a name may make it too long.
fn of_252_to_255_bytes(s: &mut Scene) {
    s.layer(|l| {
        for length in 252..=255 {
            let name = |first: char| format!("{first}{}", "n".repeat(length - 1));
            for first in ['c', 'u', 'r', 't', 'w', 'm'] {
                l.file(name(first), "lower").mode(0o640);
            }
            l.file(name('k'), "linked");
            l.file(format!("{}/x", name('d')), "x");
            l.file(format!("{}/x", name('o')), "x");
            l.file(format!("{}/x", name('e')), "x");
        }
    });
    s.layer(|l| {
        for length in 252..=255 {
            // A whiteout of 252 bytes or more cannot be written by name: `.wh.` and it have more than 255.
            l.file(format!("{}/y", "v".repeat(length)), "y");
        }
    });
    s.mount();
    let script = "
for length in range(252, 256):
    name = lambda first: first + 'n' * (length - 1)
    with open(name('c'), 'a') as file: file.write('+')
    os.chmod(name('m'), 0o600); os.utime(name('m'), (1, 2)); os.setxattr(name('m'), 'user.x', b'y')
    os.unlink(name('u'))
    os.rename(name('r'), name('s'))
    os.rename(name('t'), name('w'))
    with open(name('u'), 'w') as file: file.write('again')
    open(name('f'), 'x').close(); os.mkdir(name('g')); os.symlink(name('f'), name('h')); os.mkfifo(name('i'))
    os.link(name('f'), name('j')); os.unlink(name('j')); os.rmdir(name('g')); os.mkdir(name('g')); os.rmdir(name('g'))
    os.unlink(name('d') + '/x'); os.rmdir(name('d')); os.mkdir(name('d'))
    os.unlink(name('e') + '/x'); os.mkdir(name('q')); os.rename(name('q'), name('e'))
    os.unlink(name('v')[:1] * length + '/y')
    assert os.listdir(name('d')) == [] and os.listdir(name('e')) == []
    for long in ('n' * 256, 'n' * 300):
        for call in (os.mkdir, os.stat, os.unlink, lambda path: open(path, 'w'), lambda path: os.rename(name('f'), path)):
            try: call(long)
            except OSError as error: assert error.errno == errno.ENAMETOOLONG, error
            else: raise SystemExit('a name of %d bytes' % len(long))
";
    s.python(script).ok();
    s.remount();
    for length in 252..=255 {
        let name = |first: char| format!("{first}{}", "n".repeat(length - 1));
        assert_eq!((s.read(&name('c')), s.read(&name('u'))), ("lower+".into(), "again".into()));
        assert!(!s.has(&name('r')) && !s.has(&name('t')));
        s.lists(&name('d'), &[]);
        s.lists(&name('e'), &[]);
        s.lists(&"v".repeat(length), &[]);
    }
}

fn of_255_bytes_in_lower_directories(s: &mut Scene) {
    s.skip_when(!s.has_index(), "kernel overlayfs: redirect_dir and index work in the initial namespace only");
    let (dir, linked) = ("d".repeat(255), "l".repeat(255));
    s.layer(|l| {
        l.file(format!("{dir}/{dir}/f"), "f");
        l.file(&linked, vec![b'l'; 70_000]);
        l.hardlink("other", &linked);
    });
    s.mount();
    let moved = "m".repeat(255);
    std::fs::rename(s.p(&dir), s.p(&moved)).expect("rename of a lower directory");
    let inner = format!("{moved}/{}", "i".repeat(255));
    std::fs::rename(s.p(format!("{moved}/{dir}")), s.p(&inner)).expect("and of the one in it");
    std::fs::hard_link(s.p(&linked), s.p("h".repeat(255))).expect("link");
    s.python("os.chmod('h' * 255, 0o600); os.rename('l' * 255, 'k' * 255)").ok();
    s.remount();
    assert_eq!(s.read(&format!("{inner}/f")), "f");
    assert_eq!(s.tree().node("other").mode, 0o600);
}

// Sixty levels, layers in between: at each some levels are replaced, deleted, made opaque, made again.
fn sixty_levels(s: &mut Scene) {
    let path = |depth: usize| (0..depth).map(|level| format!("l{level}")).collect::<Vec<_>>().join("/");
    s.layer(|l| {
        for depth in 1..=60 {
            l.file(format!("{}/one", path(depth)), depth.to_string());
        }
    });
    s.layer(|l| {
        for depth in (1..=60).step_by(3) {
            l.file(format!("{}/two", path(depth)), depth.to_string());
        }
        l.whiteout(format!("{}/one", path(20)));
        l.opaque(path(40));
    });
    s.layer(|l| {
        l.file(format!("{}/three", path(50)), "three");
        l.whiteout(path(55));
    });
    s.layer(|l| {
        l.file(format!("{}/four", path(60)), "four");
    });
    s.mount();
    let check = |s: &Scene, depth: usize, names: &[&str]| {
        let mut names = names.to_vec();
        let next = format!("l{depth}");
        if depth < 60 {
            names.insert(0, &next);
        }
        s.lists(&path(depth), &names);
    };
    check(s, 1, &["one", "two"]);
    check(s, 19, &["one", "two"]);
    check(s, 20, &[]);
    check(s, 39, &["one"]);
    check(s, 40, &["two"]);
    check(s, 41, &[]);
    check(s, 50, &["three"]);
    check(s, 54, &[]);
    check(s, 55, &[]);
    check(s, 60, &["four"]);
    s.write(&format!("{}/five", path(60)), "five");
    std::fs::remove_file(s.p(format!("{}/one", path(30)))).expect("unlink");
    std::fs::remove_dir_all(s.p(path(52))).expect("rm -r");
    std::fs::create_dir_all(s.p(path(60))).expect("mkdir -p");
    s.remount();
    check(s, 30, &[]);
    check(s, 60, &[]);
    check(s, 52, &[]);
    check(s, 51, &[]);
}

// The names that conventions and mlfs itself use are the user's like any other.
fn that_look_like_marks(s: &mut Scene) {
    let names = [
        ".wh.",
        ".wh..",
        ".wh...",
        ".wh..wh.",
        ".wh..wh..opq",
        ".wh..wh.plnk",
        ".wh..wh.aufs",
        ".wh.lower",
        ".wh.dir",
        "#1",
        "#12",
        "index",
        "indexes",
        "mlfs-links",
        "work",
        "incompat",
        "copy-1-0-1",
    ];
    s.layer(|l| {
        l.file("lower", "l");
        l.file("dir/lower", "l");
    });
    s.mount();
    let check = |s: &Scene| {
        for dir in ["", "dir/", "new/"] {
            for name in names {
                assert_eq!(s.read(&format!("{dir}{name}")), "mine", "{dir}{name}");
            }
        }
        let mut all: Vec<&str> = names.to_vec();
        all.push("lower");
        all.sort_unstable();
        s.lists("dir", &all);
        assert_eq!(s.read("lower"), "l");
    };
    std::fs::create_dir(s.p("new")).expect("mkdir");
    for dir in ["", "dir/", "new/"] {
        for name in names {
            s.write(&format!("{dir}{name}"), "mine");
        }
    }
    check(s);
    s.remount();
    check(s);
    for name in names {
        std::fs::rename(s.p(format!("dir/{name}")), s.p(format!("{name}-moved"))).expect("rename");
        std::fs::remove_file(s.p(name)).expect("unlink");
        std::fs::remove_file(s.p(format!("new/{name}"))).expect("unlink");
        std::fs::create_dir(s.p(format!("dir/{name}"))).expect("mkdir");
        std::fs::write(s.p(format!("dir/{name}/.wh.x")), "mine").expect("write");
    }
    s.lists("new", &[]);
    s.remount();
    for name in names {
        s.lists(&format!("dir/{name}"), &[".wh.x"]);
        std::fs::remove_dir_all(s.p(format!("dir/{name}"))).expect("rm -r");
    }
    s.lists("dir", &["lower"]);
    std::fs::remove_dir(s.p("new")).expect("rmdir");
}

scenarios! {
    not_utf8, of_255_bytes, of_252_to_255_bytes, of_255_bytes_in_lower_directories, paths_beyond_4096, sixty_levels,
    that_look_like_marks, listed_while_deleting, listed_while_creating,
}
