// SPDX-License-Identifier: MIT OR Apache-2.0
//! Directories as layers that scenarios cannot declare: damaged, unreadable, vanished, failing, very many, very deep.
//!
//! Kernel overlayfs, where it can be asked, answered the same on the same layers; where it differs, the test says how.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use fuse_tests::cli::run;
use fuse_tests::host::{errno, python};
use fuse_tests::identity::{Identity, identity};
use fuse_tests::world::{World, kill, list, needs_root, read, world, write};
use fuse_tests::{LayerSpec, skip};
use rustix::io::Errno;

// A layer that is no longer what it was at the end of the test.
fn changing_layer(w: &World, name: &str, declare: impl FnOnce(&mut LayerSpec)) -> String {
    let mut layer = LayerSpec::new();
    declare(&mut layer);
    let dir = w.sandbox.dir(format!("changing/{name}"));
    layer.write_dir(&dir, fuse_tests::layers::Convention::UserXattr);
    dir.display().to_string()
}

fn code<T>(result: std::io::Result<T>) -> i32 {
    result.map_or_else(|error| error.raw_os_error().unwrap_or(-1), |_| 0)
}

const EIO: i32 = Errno::IO.raw_os_error();

fn three_layers(w: &World) -> (PathBuf, String) {
    let bottom = w.layer("bottom", |l| {
        l.file("d/bottom", "b");
        l.file("single/f", "s");
    });
    let middle = changing_layer(w, "middle", |l| {
        l.file("d/middle", "m");
        l.file("file", "f");
        l.file("known/deep/f", "k");
    });
    let top = w.layer("top", |l| {
        l.file("top", "t");
        l.file("d/top", "t");
        l.file("opaque/f", "o");
        l.opaque("opaque");
    });
    let root = w.mount("box", &["--layer", &bottom, "--layer", &middle, "--layer", &top]);
    (root, middle)
}

// What answers and what does not when the middle layer does not answer any more: kernel overlayfs says the same when the
// device below a layer fails. What lies above is found without looking into it; whatever it may have held or hidden is
// an error, never absent and never what lies deeper.
fn assert_middle_fails(root: &Path, expected: i32) {
    assert_eq!(read(root.join("top")), "t");
    assert_eq!(list(root.join("opaque")), ["f"]);
    for path in ["file", "d", "d/bottom", "d/middle", "single", "never-there"] {
        assert_eq!(code(root.join(path).symlink_metadata()), expected, "{path}");
    }
    let listed = std::fs::read_dir(root).and_then(|dir| dir.collect::<Result<Vec<_>, _>>());
    assert_eq!(code(listed), expected, "a listing must not be shorter in silence");
    assert_eq!(code(std::fs::create_dir(root.join("new"))), expected);
    assert_eq!(code(std::fs::write(root.join("file"), "new")), expected);
    write(root.join("top"), "changed");
    assert_eq!(read(root.join("top")), "changed");
}

#[test]
fn a_layer_that_vanishes_is_an_error_on_what_it_held() {
    world(|w| {
        let (root, middle) = three_layers(w);
        let mut open = File::open(root.join("known/deep/f")).expect("open");
        std::fs::remove_dir_all(&middle).expect("rm -r of a layer");
        assert_middle_fails(&root, EIO);
        let known = std::fs::read(root.join("known/deep/f"));
        assert_eq!(code(known), EIO, "kernel overlayfs still reads what it has seen before");
        let mut text = String::new();
        std::io::Read::read_to_string(&mut open, &mut text).expect("an open file stays readable");
        assert_eq!(text, "k");
        drop(open);
        w.umount("box");
        let said = w.mlfs().run(["start", "box"]).fails(1);
        assert!(said.contains(&middle), "the missing layer is named: {said}");
    });
}

#[test]
fn a_layer_that_fails_is_an_error_on_what_it_held() {
    world(|w| {
        needs_root("a loop device that loses its file");
        let bottom = w.layer("bottom", |l| {
            l.file("d/bottom", "b");
            l.file("single/f", "s");
        });
        let top = w.layer("top", |l| {
            l.file("top", "t");
            l.file("d/top", "t");
            l.file("opaque/f", "o");
            l.opaque("opaque");
        });
        let (image, disk) = (w.sandbox.path("disk.img"), w.sandbox.dir("disk"));
        let shell = |script: &str| fuse_tests::host::sh(&w.sandbox, w.sandbox.root(), script);
        let paths = format!("I='{}'; D='{}'", image.display(), disk.display());
        let made = shell(&format!(
            "{paths}; truncate -s 16M $I; mkfs.ext4 -q -O ^has_journal $I; mount -o loop $I $D; mkdir -p $D/l/d $D/l/known/deep
            echo m > $D/l/d/middle; echo f > $D/l/file; echo k > $D/l/known/deep/f; umount $D; mount -o loop,ro $I $D"
        ));
        if made.code != 0 {
            skip(format!("needs root: loop devices: {}", made.stderr));
        }
        let middle = disk.join("l").display().to_string();
        let root = w.mount("box", &["--layer", &bottom, "--layer", &middle, "--layer", &top]);
        shell(&format!("{paths}; truncate -s 0 $I; echo 3 > /proc/sys/vm/drop_caches")).ok();
        assert_middle_fails(&root, EIO);
        w.umount("box");
    });
}

// The daemon of a FUSE filesystem below a layer dies: its error is passed on.
#[test]
fn a_layer_whose_filesystem_is_dead_is_an_error_on_what_it_held() {
    world(|w| {
        let below = w.layer("below", |l| {
            l.file("file", "f");
            l.file("d/middle", "m");
        });
        let inner = w.mount("inner", &["--layer", &below]);
        let daemon = w.daemon("inner");
        let bottom = w.layer("bottom", |l| {
            l.file("d/bottom", "b");
            l.file("single/f", "s");
        });
        let top = w.layer("top", |l| {
            l.file("top", "t");
            l.file("d/top", "t");
            l.file("opaque/f", "o");
            l.opaque("opaque");
        });
        let inner = inner.display().to_string();
        let root = w.mount("box", &["--layer", &bottom, "--layer", &inner, "--layer", &top]);
        assert_eq!(read(root.join("file")), "f");
        kill(daemon);
        assert_middle_fails(&root, Errno::NOTCONN.raw_os_error());
        w.umount("box");
        w.mlfs().ok(["umount", "inner"]);
    });
}

#[test]
fn a_directory_that_may_not_be_read_is_no_shorter_tree() {
    world(|w| {
        if identity() != Identity::User {
            skip("root is not held back by modes");
        }
        let bottom = w.layer("bottom", |l| {
            l.file("d/bottom", "b");
            l.file("searchable/known", "s");
        });
        let top = changing_layer(w, "top", |l| {
            l.file("d/top", "t");
            l.file("searchable/top", "t");
            l.file("beside", "b");
        });
        let set = |dir: &str, mode: u32| {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
            std::fs::set_permissions(Path::new(&top).join(dir), mode).expect("chmod");
        };
        set("d", 0o000);
        set("searchable", 0o311);
        let root = w.mount("box", &["--layer", &bottom, "--layer", &top]);
        let access = Errno::ACCESS.raw_os_error();
        assert_eq!(list(&root), ["beside", "d", "searchable"]);
        assert_eq!(code(root.join("d").symlink_metadata()), 0);
        assert_eq!(code(std::fs::read_dir(root.join("d"))), access);
        for path in ["d/top", "d/bottom", "d/none"] {
            assert_eq!(code(root.join(path).symlink_metadata()), access, "{path}");
        }
        let listed = std::fs::read_dir(root.join("searchable")).and_then(|dir| dir.collect::<Result<Vec<_>, _>>());
        assert_eq!(code(listed), access);
        assert_eq!((read(root.join("searchable/top")), read(root.join("searchable/known"))), ("t".into(), "s".into()));
        w.umount("box");
        set("d", 0o755);
        set("searchable", 0o755);
    });
}

// Marks that lead nowhere: an error on the one name, which is still listed. Kernel overlayfs says EINVAL, EACCES or EIO.
#[test]
fn damaged_marks_are_errors_on_their_names_only() {
    world(|w| {
        let bottom = w.layer("bottom", |l| {
            l.file("d/f", "f");
            l.file("opaque/file", "hidden");
        });
        let mark = fuse_tests::layers::mark;
        let redirects = ["", "/", ".", "..", "../d", "/../d", "/d/../d", "a/b", "//d", "/d/", "/d//f", "/."];
        let top = w.layer("top", |l| {
            for (number, target) in redirects.iter().enumerate() {
                l.dir(format!("dir-{number}")).xattr(&mark("redirect"), target);
            }
            let mut metadata_only = |path: &str, redirect: &str, value: &[u8]| {
                let item = l.file(path, vec![0; 100]).xattr(&mark("metacopy"), value);
                if !redirect.is_empty() {
                    item.xattr(&mark("redirect"), redirect);
                }
            };
            metadata_only("no-content", "", b"");
            metadata_only("content-nowhere", "/none", b"");
            metadata_only("content-is-a-directory", "/d", b"");
            metadata_only("climbs", "../d/f", b"");
            metadata_only("unknown-mark", "/d/f", b"what");
            metadata_only("opaque/file", "", b"");
            l.opaque("opaque");
            l.file("good", "g");
        });
        let root = w.mount("box", &["--layer", &bottom, "--layer", &top]);
        let mut names: Vec<String> = (0..redirects.len()).map(|number| format!("dir-{number}")).collect();
        let files =
            ["no-content", "content-nowhere", "content-is-a-directory", "climbs", "unknown-mark", "opaque/file"];
        for name in &names {
            assert_eq!(code(root.join(name).symlink_metadata()), EIO, "{name}");
        }
        for name in files {
            assert_eq!(code(std::fs::read(root.join(name))), EIO, "{name} is never read as zeros");
            assert_eq!(code(std::fs::OpenOptions::new().append(true).open(root.join(name))), EIO, "{name}");
        }
        names.extend(files[..5].iter().map(|name| (*name).to_owned()));
        names.extend(["d", "good", "opaque"].map(str::to_owned));
        names.sort();
        assert_eq!(list(&root), names);
        assert_eq!(read(root.join("good")), "g");
        w.umount("box");
    });
}

// Directories of which one descriptor each stays open: the soft limit of an ordinary shell is enough.
#[test]
fn five_hundred_layers() {
    world(|w| {
        let layers: Vec<String> = (0..500)
            .map(|number| {
                w.layer(&format!("{number:03}"), |l| {
                    l.file("last", number.to_string());
                    l.file(format!("dir/{:02}", number % 50), number.to_string());
                })
            })
            .collect();
        let mut args = vec!["-n", "1024", "sh", "-c"];
        let mut script = String::from("ulimit -S -n 1024; exec \"$@\"");
        args.clear();
        let target = w.target("box");
        let mut command = std::process::Command::new("sh");
        let mlfs = w.mlfs();
        let inner = mlfs.command();
        command.env_clear().envs(inner.get_envs().filter_map(|(key, value)| Some((key, value?))));
        script.insert_str(0, "set -e; ");
        command.args(["-c", &script, "sh"]).arg(inner.get_program()).args(inner.get_args());
        command.args(["mount", "--name", "box"]).current_dir(w.sandbox.root());
        for layer in &layers {
            command.args(["--layer", layer]);
        }
        let started = std::time::Instant::now();
        run(&w.sandbox, command.arg(&target)).ok();
        eprintln!("500 layers were mounted in {:?}", started.elapsed());
        assert_eq!(read(target.join("last")), "499");
        assert_eq!(list(target.join("dir")).len(), 50);
        assert_eq!(read(target.join("dir/00")), "450");
        assert_eq!(code(target.join("dir/none").symlink_metadata()), Errno::NOENT.raw_os_error());
        write(target.join("dir/00"), "written");
        w.umount("box");
        w.mlfs().ok(["start", "box", &target.display().to_string()]);
        assert_eq!(read(target.join("dir/00")), "written");
        w.umount("box");
    });
}

// A path of more than 4096 bytes in every layer, entered by relative steps, as its layers must be made.
#[test]
fn layers_deeper_than_a_path_is_long() {
    world(|w| {
        let (bottom, top) = (w.sandbox.dir("changing/bottom"), w.sandbox.dir("changing/top"));
        let descend = "
def down(make):
    for depth in range(30):
        name = ('n' * 200) + str(depth)
        if make: os.mkdir(name)
        os.chdir(name)
";
        let in_dir = |dir: &Path, script: &str| python(&w.sandbox, dir, &format!("{descend}{script}")).ok();
        in_dir(
            &bottom,
            "down(True); os.mkdir('d'); open('d/x', 'w'); open('gone', 'w'); open('below', 'w').write('below')
open('big', 'w').write('b' * 300000)",
        );
        in_dir(&top, "down(True); open('above', 'w').write('above'); open('.wh.gone', 'w')");
        let (bottom, top) = (bottom.display().to_string(), top.display().to_string());
        let root = w.mount("box", &["--layer", &bottom, "--layer", &top]);
        in_dir(
            &root,
            "
down(False)
assert sorted(os.listdir('.')) == ['above', 'below', 'big', 'd'], os.listdir('.')
assert open('below').read() == 'below'
open('below', 'a').write('+')
os.chmod('big', 0o600); os.rename('big', 'large')
os.rename('d', 'moved'); os.rename('moved', 'e'); os.unlink('above'); os.mkdir('above')
os.link('below', 'linked'); os.symlink('below', 's'); os.setxattr('below', 'user.x', b'y')
",
        );
        w.umount("box");
        w.mlfs().ok(["start", "box", &root.display().to_string()]);
        in_dir(
            &root,
            "
down(False)
assert sorted(os.listdir('.')) == ['above', 'below', 'e', 'large', 'linked', 's'], os.listdir('.')
assert open('large').read() == 'b' * 300000; os.unlink('large')
assert open('linked').read() == 'below+' and os.listdir('e') == ['x'] and os.listdir('above') == []
assert os.getxattr('s', 'user.x') == b'y'
os.unlink('below'); os.rmdir('above'); os.unlink('e/x'); os.rmdir('e'); os.unlink('linked'); os.unlink('s')
for depth in reversed(range(30)):
    os.chdir('..'); os.rmdir(('n' * 200) + str(depth))
",
        );
        assert_eq!(list(&root), Vec::<String>::new());
        w.umount("box");
        for dir in [bottom, top] {
            remove_deep(Path::new(&dir));
        }
    });
}

// The sandbox's own removal goes by paths.
fn remove_deep(dir: &Path) {
    let fd: OwnedFd = File::open(dir).expect("open").into();
    let names: Vec<CString> = std::fs::read_dir(dir)
        .expect("list")
        .map(|entry| CString::new(entry.expect("entry").file_name().as_bytes()).expect("name"))
        .collect();
    drop(fd);
    for name in names {
        let path = dir.join(std::ffi::OsStr::from_bytes(name.as_bytes()));
        let status = std::process::Command::new("rm").arg("-rf").arg(&path).status().expect("rm");
        assert!(status.success());
    }
}

#[test]
fn roots_that_are_no_directories_are_refused_by_name() {
    world(|w| {
        let good = w.layer("good", |l| {
            l.file("f", "f");
        });
        let file = w.sandbox.file("changing/file", "f");
        let link = w.sandbox.path("changing/link");
        std::os::unix::fs::symlink(&file, &link).expect("symlink");
        let dangling = w.sandbox.path("changing/dangling");
        std::os::unix::fs::symlink("nowhere", &dangling).expect("symlink");
        for (number, bad) in [file, link, dangling, w.sandbox.path("changing/none")].iter().enumerate() {
            let bad = bad.display().to_string();
            let outcome = w.try_mount(&format!("box{number}"), &["--layer", &good, "--layer", &bad]);
            let said = outcome.fails(1);
            assert!(said.contains(&bad), "the layer is named: {said}");
        }
        // A symlink to a directory is that directory, as for the kernel.
        let to_good = w.sandbox.path("changing/to-good");
        std::os::unix::fs::symlink(&good, &to_good).expect("symlink");
        let root = w.mount("linked", &["--layer", &to_good.display().to_string()]);
        assert_eq!(list(&root), ["f"]);
        assert_eq!(errno(std::fs::read(root.join("none"))), Errno::NOENT.raw_os_error());
        w.umount("linked");
    });
}
