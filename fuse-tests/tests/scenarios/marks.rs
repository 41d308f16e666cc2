// SPDX-License-Identifier: MIT OR Apache-2.0
//! Layers in which kernel overlayfs has written: redirects, metadata-only files, whiteouts by attribute.

use fuse_tests::driver::Driver;
use fuse_tests::identity::Identity;
use fuse_tests::layers::Item;
use fuse_tests::{LayerSpec, Scene, scenarios};

// Marks that lead elsewhere count for root under `trusted.` only; for others, where the kernel does not follow them.
fn needs_marks(s: &mut Scene) {
    s.skip_when(s.driver == Driver::MlfsImage, "marks of the kernel are for directories as layers");
    s.skip_when(
        s.driver == Driver::KernelOverlay && s.identity != Identity::Root,
        "kernel overlayfs follows redirects and metadata-only files in the initial namespace only",
    );
    if s.identity != Identity::Root {
        s.is_not_shared_with_kernel("without root, kernel overlayfs refuses what it may not follow in layers");
    }
}

trait Marked {
    fn mark(&mut self, mark: &str, value: impl AsRef<[u8]>) -> &mut Item;
}

impl Marked for Item {
    fn mark(&mut self, mark: &str, value: impl AsRef<[u8]>) -> &mut Item {
        self.xattr(&fuse_tests::layers::mark(mark), value)
    }
}

fn redirects(s: &mut Scene) {
    needs_marks(s);
    s.layer(|l| {
        l.file("a/f", "a");
        l.file("b/sub/g", "b");
        l.file("p/a/beside", "p");
        l.file("deep/in/side/h", "h");
        l.file("q/z", "q");
    });
    s.layer(|l| {
        l.dir("x").mark("redirect", "/a");
        l.dir("p/q").mark("redirect", "a");
        l.dir("y").mark("redirect", "/b/sub");
        l.dir("m").mark("redirect", "/deep");
        l.dir("m/n").mark("redirect", "in");
        l.whiteout("deep");
        l.whiteout("b");
    });
    s.layer(|l| {
        l.whiteout("y");
        l.dir("z").mark("redirect", "/x");
        l.dir("zz").mark("redirect", "y");
        l.dir("k").mark("redirect", "/m/n");
        l.file("k/side/top", "t");
        l.dir("m/self").mark("redirect", "/m");
    });
    s.mount();
    for (dir, names) in [
        ("x", &["f"][..]),
        ("p", &["a", "q"]),
        ("p/q", &["beside"]),
        ("z", &["f"]),
        ("zz", &["g"]),
        ("m", &["in", "n", "self"]),
        ("m/n", &["side"]),
        ("m/n/side", &["h"]),
        ("k", &["side"]),
        ("k/side", &["h", "top"]),
        ("m/self", &["in", "n"]),
    ] {
        s.lists(dir, names);
    }
    // What is reached by a redirect is changed and found again like anything else.
    s.write("zz/g", "changed");
    std::fs::remove_file(s.p("z/f")).expect("unlink");
    std::fs::rename(s.p("zz"), s.p("moved")).expect("rename of a redirected directory");
    s.remount();
    assert_eq!(s.read("moved/g"), "changed");
    s.lists("z", &[]);
    s.lists("x", &["f"]);
    s.lists("moved", &["g"]);
}

// A redirect may lead in a circle by name, for each step goes to a deeper layer.
fn redirects_in_a_circle(s: &mut Scene) {
    needs_marks(s);
    s.layer(|l| {
        l.file("x/one", "x");
        l.file("y/one", "y");
    });
    for layer in ["two", "three"] {
        s.layer(|l| {
            l.dir("x").mark("redirect", "/y");
            l.dir("y").mark("redirect", "/x");
            l.file(format!("x/{layer}"), "x");
            l.file(format!("y/{layer}"), "y");
        });
    }
    s.mount();
    s.lists("x", &["one", "three", "two"]);
    assert_eq!((s.read("x/three"), s.read("x/two"), s.read("x/one")), ("x".into(), "y".into(), "x".into()));
    assert_eq!((s.read("y/three"), s.read("y/two"), s.read("y/one")), ("y".into(), "x".into(), "y".into()));
}

// A redirect finds what a walk would find: nothing behind files, symlinks, whiteouts and opaque directories.
fn redirects_to_what_is_no_directory(s: &mut Scene) {
    needs_marks(s);
    s.layer(|l| {
        l.file("file", "f");
        l.symlink("link", "dir");
        l.file("whited/x", "w");
        l.file("dir/in", "i");
        l.file("dir/sub/old", "o");
        l.file("opaque/sub/old", "o");
    });
    s.layer(|l| {
        l.whiteout("whited");
        l.opaque("opaque");
        l.whiteout("dir/sub");
    });
    let targets =
        ["/file", "/link", "/whited", "/file/x", "/link/sub", "/opaque/sub", "/dir/sub", "/none", "/none/at/all"];
    s.layer(|l| {
        for (number, target) in targets.iter().enumerate() {
            l.dir(format!("r{number}")).mark("redirect", target);
        }
        l.dir("right").mark("redirect", "/dir");
        let opaque = l.dir("opaque-too");
        opaque.mark("opaque", "y").mark("redirect", "/dir");
    });
    s.mount();
    for number in 0..targets.len() {
        s.lists(&format!("r{number}"), &[]);
    }
    s.lists("right", &["in"]);
    s.lists("opaque-too", &[]);
}

const CONTENT: &str = "the content of a file of which another layer has the attributes";

fn metadata_only<'a>(l: &'a mut LayerSpec, path: &str) -> &'a mut Item {
    l.file(path, vec![0u8; CONTENT.len()]).mode(0o604).mark("metacopy", "")
}

fn metadata_only_files(s: &mut Scene) {
    needs_marks(s);
    s.layer(|l| {
        for name in ["same", "absolute", "beside", "chain", "digest"] {
            l.file(format!("src/{name}"), CONTENT);
        }
        l.file("dir/same", CONTENT);
        l.file("dir/beside", CONTENT);
        l.file("old/deep/f", CONTENT);
    });
    s.layer(|l| {
        metadata_only(l, "src/same");
        metadata_only(l, "moved").mark("redirect", "/src/absolute");
        metadata_only(l, "src/renamed").mark("redirect", "beside");
        metadata_only(l, "chain-2").mark("redirect", "/src/chain");
        // What `verity=on` writes: version, length, flags, algorithm, digest. Not asked for, it is not compared.
        let digest = [&[0u8, 36, 0, 1][..], &[7; 32]].concat();
        l.file("src/digest", vec![0u8; CONTENT.len()]).mark("metacopy", digest);
        // In a directory that is somewhere else below.
        l.dir("new").mark("redirect", "/dir");
        metadata_only(l, "new/same");
        metadata_only(l, "new/renamed").mark("redirect", "beside");
        l.whiteout("dir");
        l.dir("new-deep").mark("redirect", "/old");
        metadata_only(l, "new-deep/deep/f");
        l.whiteout("old");
    });
    s.layer(|l| {
        metadata_only(l, "chain-3").mark("redirect", "/chain-2");
        metadata_only(l, "src/same");
    });
    s.mount();
    let files = [
        "src/same",
        "moved",
        "src/renamed",
        "chain-2",
        "chain-3",
        "src/digest",
        "new/same",
        "new/renamed",
        "new-deep/deep/f",
    ];
    for path in files {
        assert_eq!(s.read(path), CONTENT, "{path}");
    }
    assert_eq!(s.tree().node("moved").mode, 0o604, "the attributes of the upper half");
    // Changed in part: the rest comes from below.
    for path in files {
        let mut file = std::fs::OpenOptions::new().append(true).open(s.p(path)).expect("open for appending");
        std::io::Write::write_all(&mut file, b"+").expect("append");
        assert_eq!(s.read(path), format!("{CONTENT}+"), "{path}");
    }
    std::fs::rename(s.p("new/same"), s.p("elsewhere")).expect("rename");
    s.remount();
    assert_eq!(s.read("elsewhere"), format!("{CONTENT}+"));
    assert_eq!(s.read("new-deep/deep/f"), format!("{CONTENT}+"));
}

// An empty file with `overlay.whiteout`, looked for by listings where the directory says so.
fn whiteouts_by_attribute(s: &mut Scene) {
    s.skip_when(s.driver == Driver::MlfsImage, "marks of the kernel are for directories as layers");
    s.layer(|l| {
        for path in ["gone", "kept", "d/a", "d/b", "tree/sub/f"] {
            l.file(path, "below");
        }
    });
    s.layer(|l| {
        l.raw("", fuse_tests::layers::What::Dir).mark("opaque", "x");
        l.file("gone", "").mark("whiteout", "y");
        l.dir("d").mark("opaque", "x");
        l.file("d/a", "").mark("whiteout", "y");
        l.file("d/not-empty", "content").mark("whiteout", "y");
        l.dir("tree").mark("opaque", "x");
        l.file("tree/sub", "").mark("whiteout", "");
    });
    s.layer(|l| {
        l.file("tree/sub/new", "n");
    });
    s.mount();
    s.lists("", &["d", "kept", "tree"]);
    s.lists("d", &["b", "not-empty"]);
    s.lists("tree/sub", &["new"]);
    for path in ["gone", "d/a", "tree/sub/f"] {
        assert!(!s.has(path), "{path} is back");
    }
    assert_eq!(s.read("d/not-empty"), "content");
    s.write("gone", "new");
    std::fs::create_dir(s.p("d/a")).expect("mkdir over a whiteout");
    s.remount();
    assert_eq!(s.read("gone"), "new");
    s.lists("d/a", &[]);
    s.lists("", &["d", "gone", "kept", "tree"]);
}

// The kernel finds such a file nowhere, but lists it in a directory without the mark, which cannot be removed then.
fn whiteouts_by_attribute_without_the_directory_s_mark(s: &mut Scene) {
    s.skip_when(s.driver == Driver::KernelOverlay, "kernel overlayfs lists whiteouts of directories without opaque=x");
    s.skip_when(s.driver == Driver::MlfsImage, "marks of the kernel are for directories as layers");
    s.is_not_judged("the judge lists what it does not find");
    s.layer(|l| {
        l.file("d/a", "below");
        l.file("d/kept", "below");
        l.file("only/x", "below");
    });
    s.layer(|l| {
        l.file("d/a", "").mark("whiteout", "y");
        l.file("only/x", "").mark("whiteout", "y");
        l.file("single/y", "").mark("whiteout", "y");
    });
    s.mount();
    s.lists("d", &["kept"]);
    for dir in ["only", "single"] {
        s.lists(dir, &[]);
        std::fs::remove_dir(s.p(dir)).expect("a directory that lists nothing is empty");
    }
    s.write("d/a", "new");
    s.remount();
    s.lists("", &["d"]);
    assert_eq!(s.read("d/a"), "new");
}

scenarios! {
    redirects, redirects_in_a_circle, redirects_to_what_is_no_directory, metadata_only_files, whiteouts_by_attribute,
    whiteouts_by_attribute_without_the_directory_s_mark,
}
