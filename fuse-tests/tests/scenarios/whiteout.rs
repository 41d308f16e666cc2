// SPDX-License-Identifier: MIT OR Apache-2.0
//! Deleting: whiteouts and opaque directories in every convention, in every place, and those we make ourselves.

use fuse_tests::driver::Driver;
use fuse_tests::identity::Identity;
use fuse_tests::layers::Convention;
use fuse_tests::{Scene, scenarios};

fn deep_stack(s: &mut Scene) {
    s.layer(|l| {
        l.file("gone", "1");
        l.file("back", "1");
        l.file("dir/a", "1");
        l.file("dir/b", "1");
        l.file("tree/x/y/z", "1");
        l.file("opaque/old", "1");
        l.file("opaque/sub/old", "1");
        l.file("opaque/both", "1");
    });
    s.layer(|l| {
        l.whiteout("gone");
        l.whiteout("back");
        l.whiteout("dir/a");
        l.whiteout("tree");
        l.opaque("opaque");
        l.file("opaque/new", "2");
        l.file("opaque/both", "2");
    });
    s.layer(|l| {
        l.file("back", "3");
        l.file("tree/x/new", "3");
        l.file("opaque/sub/top", "3");
        l.file("dir/c", "3");
    });
}

fn assert_deep_stack(s: &Scene) {
    s.lists("", &["back", "dir", "opaque", "tree"]);
    assert_eq!(s.read("back"), "3");
    s.lists("dir", &["b", "c"]);
    s.lists("tree", &["x"]);
    s.lists("tree/x", &["new"]);
    s.lists("opaque", &["both", "new", "sub"]);
    s.lists("opaque/sub", &["top"]);
    assert_eq!(s.read("opaque/both"), "2");
    for path in ["gone", "dir/a", "tree/x/y", "tree/x/y/z", "opaque/old", "opaque/sub/old"] {
        assert!(!s.has(path), "{path} is back");
    }
    // The marks themselves are never seen.
    for name in s.tree().names() {
        assert!(!name.contains(".wh."), "{name} is visible");
    }
}

fn own_convention(s: &mut Scene) {
    deep_stack(s);
    s.mount();
    assert_deep_stack(s);
}

fn convention_aufs(s: &mut Scene) {
    s.skip_when(s.driver == Driver::KernelOverlay, "kernel overlayfs does not know .wh. names");
    s.skip_when(s.driver == Driver::MlfsImage, "images have the OCI convention only: own_convention covers it");
    s.is_not_judged("the judge does not know this convention");
    s.convention(Convention::Aufs);
    deep_stack(s);
    s.mount();
    assert_deep_stack(s);
}

fn convention_user_xattr(s: &mut Scene) {
    s.skip_when(
        s.driver == Driver::KernelOverlay && s.identity == Identity::Root,
        "kernel overlayfs reads user.overlay.* only with userxattr",
    );
    s.skip_when(s.driver == Driver::MlfsImage, "images have the OCI convention only: own_convention covers it");
    s.is_not_judged("the judge does not read this convention as root");
    s.convention(Convention::UserXattr);
    deep_stack(s);
    s.mount();
    assert_deep_stack(s);
}

fn convention_fuse_overlayfs(s: &mut Scene) {
    s.skip_when(s.driver == Driver::KernelOverlay, "kernel overlayfs does not know user.fuseoverlayfs.opaque");
    s.skip_when(s.driver == Driver::MlfsImage, "images have the OCI convention only: own_convention covers it");
    s.is_not_judged("the judge does not know this convention");
    s.convention(Convention::FuseOverlayfs);
    deep_stack(s);
    s.mount();
    assert_deep_stack(s);
}

// OCI: whiteouts act on lower layers only; an entry of the same layer stays.
fn entry_beside_its_whiteout_wins(s: &mut Scene) {
    s.skip_when(s.driver == Driver::KernelOverlay, "kernel overlayfs does not know .wh. names");
    s.is_not_judged("the judge does not know this convention");
    s.convention(Convention::Aufs);
    s.layer(|l| {
        l.file("file", "1");
        l.file("dir/old", "1");
        l.file("gone", "1");
    });
    s.layer(|l| {
        l.file("file", "2");
        l.whiteout("file");
        l.whiteout("dir");
        l.file("dir/new", "2");
        l.whiteout("gone");
    });
    s.mount();
    s.lists("", &["dir", "file"]);
    assert_eq!(s.read("file"), "2");
    s.lists("dir", &["new"]);
}

fn whiteout_of_nothing(s: &mut Scene) {
    s.layer(|l| {
        l.file("a", "1");
        l.file("dir/gone", "1");
    });
    s.layer(|l| {
        l.whiteout("never-there");
        l.whiteout("dir/gone");
        l.whiteout("dir/never-there");
    });
    s.mount();
    s.lists("", &["a", "dir"]);
    s.lists("dir", &[]);
    std::fs::remove_dir(s.p("dir")).expect("a directory of whiteouts only is empty");
    s.lists("", &["a"]);
}

fn in_an_unmerged_directory(s: &mut Scene) {
    s.skip_when(s.driver == Driver::KernelOverlay, "kernel overlayfs shows whiteouts in directories of one layer only");
    s.is_not_judged("the judge shows the whiteout itself");
    s.layer(|l| {
        l.file("a", "1");
    });
    s.layer(|l| {
        l.file("dir/kept", "2");
        l.whiteout("dir/never-there");
    });
    s.mount();
    s.lists("dir", &["kept"]);
    std::fs::remove_dir_all(s.p("dir")).expect("rm -r");
    s.lists("", &["a"]);
}

fn unlink_and_recreate(s: &mut Scene) {
    s.layer(|l| {
        l.file("f", "lower, and longer than what comes").mode(0o600);
        l.file("to-dir", "lower");
        l.file("dir/x", "x");
    });
    s.mount();
    std::fs::remove_file(s.p("f")).expect("unlink");
    assert!(!s.has("f"));
    s.lists("", &["dir", "to-dir"]);
    s.write("f", "new");
    assert_eq!(s.read("f"), "new");
    assert_ne!(s.tree().node("f").mode, 0o600);
    std::fs::remove_file(s.p("to-dir")).expect("unlink");
    std::fs::create_dir(s.p("to-dir")).expect("mkdir");
    s.lists("to-dir", &[]);
    std::fs::remove_dir_all(s.p("dir")).expect("rm -r");
    s.write("dir", "now a file");
    s.remount();
    assert_eq!(s.read("f"), "new");
    assert_eq!(s.read("dir"), "now a file");
    s.lists("to-dir", &[]);
}

// Seen wrong in fuse-overlayfs 2.0: no opaque mark, the old content is back after a remount.
fn removed_and_made_again(s: &mut Scene) {
    s.layer(|l| {
        l.file("d/old", "old");
        l.file("d/sub/old", "old");
        l.file("e/old", "old");
        l.file("f/old", "old");
    });
    s.mount();
    std::fs::remove_dir_all(s.p("d")).expect("rm -r d");
    std::fs::create_dir(s.p("d")).expect("mkdir d");
    s.lists("d", &[]);
    s.write("d/new", "new");
    std::fs::create_dir(s.p("d/sub")).expect("mkdir d/sub");
    // The same by a rename over it.
    std::fs::remove_file(s.p("e/old")).expect("unlink");
    std::fs::create_dir(s.p("other")).expect("mkdir");
    s.write("other/mine", "m");
    std::fs::rename(s.p("other"), s.p("e")).expect("rename over an emptied lower directory");
    s.lists("e", &["mine"]);
    std::fs::remove_dir_all(s.p("f")).expect("rm -r f");
    std::fs::create_dir(s.p("fresh")).expect("mkdir");
    std::fs::rename(s.p("fresh"), s.p("f")).expect("rename to a deleted lower directory's name");
    s.lists("f", &[]);
    s.remount();
    s.lists("d", &["new", "sub"]);
    s.lists("d/sub", &[]);
    s.lists("e", &["mine"]);
    s.lists("f", &[]);
    s.lists("", &["d", "e", "f"]);
}

fn removing_a_directory_needs_it_empty(s: &mut Scene) {
    s.layer(|l| {
        l.file("d/lower", "l");
    });
    s.mount();
    let not_empty = Some(rustix::io::Errno::NOTEMPTY.raw_os_error());
    assert_eq!(std::fs::remove_dir(s.p("d")).expect_err("not empty").raw_os_error(), not_empty);
    std::fs::remove_file(s.p("d/lower")).expect("unlink");
    s.write("d/upper", "u");
    assert_eq!(std::fs::remove_dir(s.p("d")).expect_err("not empty").raw_os_error(), not_empty);
    std::fs::remove_file(s.p("d/upper")).expect("unlink");
    std::fs::remove_dir(s.p("d")).expect("now it is empty");
    assert!(!s.has("d"));
    s.remount();
    assert!(!s.has("d"));
}

fn users_own_wh_names(s: &mut Scene) {
    s.layer(|l| {
        l.file("foo", "lower");
        l.file("dir/kept", "lower");
    });
    s.mount();
    s.write(".wh.foo", "just a file");
    s.write("dir/.wh..wh..opq", "just a file too");
    std::fs::create_dir(s.p(".wh.dir")).expect("mkdir");
    s.remount();
    s.lists("", &[".wh.dir", ".wh.foo", "dir", "foo"]);
    s.lists("dir", &[".wh..wh..opq", "kept"]);
    assert_eq!(s.read("foo"), "lower");
    assert_eq!(s.read(".wh.foo"), "just a file");
    std::fs::remove_file(s.p("foo")).expect("unlink");
    s.lists("", &[".wh.dir", ".wh.foo", "dir"]);
}

// A name at every place of a stack of three: what the layers say about it, bottom first, and who shows it.
fn every_place(s: &mut Scene) {
    const SAYS: [&str; 5] = ["nothing", "file", "dir", "whiteout", "opaque"];
    let name = |says: [usize; 3]| says.map(|say| SAYS[say].as_bytes()[0] as char).iter().collect::<String>();
    let all = || (0..125).map(|number| [number / 25, number / 5 % 5, number % 5]);
    for layer in 0..3 {
        s.layer(|l| {
            for says in all() {
                let path = format!("at/{}", name(says));
                match SAYS[says[layer]] {
                    "file" => drop(l.file(&path, format!("{layer}"))),
                    // Grandchildren: one shared by all layers, one of its own.
                    "dir" => {
                        l.file(format!("{path}/sub/both"), format!("{layer}"));
                        l.file(format!("{path}/sub/{layer}"), "");
                    }
                    "whiteout" => drop(l.whiteout(&path)),
                    "opaque" => {
                        l.file(format!("{path}/sub/{layer}"), "");
                        l.opaque(&path);
                    }
                    _ => {}
                }
            }
            l.dir("at");
        });
    }
    s.mount();
    let mut listed = Vec::new();
    for says in all() {
        let path = format!("at/{}", name(says));
        // The topmost that says anything decides; directories go on to the next below until something stops them.
        let (mut is_there, mut names, mut both) = (false, Vec::new(), None);
        for layer in (0..3).rev() {
            match SAYS[says[layer]] {
                "file" if !is_there => {
                    assert_eq!(s.read(&path), layer.to_string(), "{path}");
                    listed.push(name(says));
                    break;
                }
                "file" | "whiteout" => break,
                "dir" => {
                    is_there = true;
                    names.push(layer.to_string());
                    both = both.or(Some(layer));
                }
                "opaque" => {
                    is_there = true;
                    names.push(layer.to_string());
                    break;
                }
                _ => {}
            }
        }
        if is_there {
            listed.push(name(says));
            names.extend(both.map(|_| "both".to_owned()));
            names.sort();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            s.lists(&format!("{path}/sub"), &names);
            if let Some(layer) = both {
                assert_eq!(s.read(&format!("{path}/sub/both")), layer.to_string(), "{path}");
            }
        }
    }
    listed.sort();
    let listed: Vec<&str> = listed.iter().map(String::as_str).collect();
    s.lists("at", &listed);
}

fn every_place_aufs(s: &mut Scene) {
    s.skip_when(s.driver == Driver::KernelOverlay, "kernel overlayfs does not know .wh. names");
    s.skip_when(s.driver == Driver::MlfsImage, "images have the OCI convention only: own_convention covers it");
    s.is_not_judged("the judge does not know this convention");
    s.convention(Convention::Aufs);
    every_place(s);
}

fn every_place_by_attribute(s: &mut Scene) {
    s.skip_when(s.driver == Driver::KernelOverlay, "kernel overlayfs lists the lowest layer's whiteouts by attribute");
    s.is_not_judged("the judge lists the lowest layer's whiteouts by attribute");
    s.skip_when(s.driver == Driver::MlfsImage, "images have the OCI convention only: own_convention covers it");
    s.convention(Convention::Attribute);
    every_place(s);
}

fn convention_attribute(s: &mut Scene) {
    s.skip_when(s.driver == Driver::MlfsImage, "images have the OCI convention only: own_convention covers it");
    s.convention(Convention::Attribute);
    deep_stack(s);
    s.mount();
    assert_deep_stack(s);
}

// mkdir, rmdir and mkdir again where layers have a directory: each state is on disk before the call returns.
fn made_removed_and_made(s: &mut Scene) {
    s.layer(|l| {
        l.file("d/sub/old", "old");
        l.file("file", "old");
    });
    s.layer(|l| {
        l.file("d/top", "t");
    });
    s.mount();
    let script = "
import shutil
shutil.rmtree('d')
for round in range(3):
    os.mkdir('d')
    assert os.listdir('d') == []
    os.mkdir('d/sub')
    assert os.listdir('d/sub') == []
    os.rmdir('d/sub'); os.rmdir('d')
    assert not os.path.lexists('d')
os.mkdir('d'); os.mkdir('d/sub')
os.unlink('file'); os.mkdir('file'); os.rmdir('file'); os.symlink('d', 'file'); os.unlink('file'); os.mkdir('file')
";
    s.python(script).ok();
    s.remount();
    s.lists("d", &["sub"]);
    s.lists("d/sub", &[]);
    s.lists("file", &[]);
    std::fs::remove_dir(s.p("d/sub")).expect("rmdir");
    std::fs::remove_dir(s.p("d")).expect("rmdir");
    s.remount();
    s.lists("", &["file"]);
}

scenarios! {
    every_place, every_place_aufs, every_place_by_attribute, convention_attribute, made_removed_and_made,
    own_convention, convention_aufs, convention_user_xattr, convention_fuse_overlayfs, entry_beside_its_whiteout_wins,
    whiteout_of_nothing, in_an_unmerged_directory, unlink_and_recreate, removed_and_made_again, removing_a_directory_needs_it_empty,
    users_own_wh_names,
}
