// SPDX-License-Identifier: MIT OR Apache-2.0
//! The real image (`scripts/real-image`: Debian, numpy, a layer that deletes and replaces) beside what `umoci` unpacks.

use std::path::{Path, PathBuf};
use std::process::Command;

use fuse_tests::cli::run;
use fuse_tests::identity::{Identity, has_program, identity};
use fuse_tests::tree::Body;
use fuse_tests::world::{World, read, world, write};
use fuse_tests::{Compare, Tree, skip};

fn image(_w: &World) -> PathBuf {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name(".cache").join("real-image");
    let dir = std::env::var_os("MLFS_REAL_IMAGE").map_or(default, PathBuf::from).join("oci");
    if !dir.join("index.json").exists() {
        skip("the real image is not here: scripts/real-image makes it");
    }
    dir
}

fn load(w: &World) -> PathBuf {
    let dir = image(w);
    w.mlfs().ok(["image", "load", "-q", &format!("oci:{}:latest", dir.display()), "real"]);
    w.guard_store();
    dir
}

// Names, kinds, modes, owners, sizes, contents, links, xattrs and times: every entry as umoci unpacks it.
#[test]
fn equals_what_umoci_unpacks() {
    world(|w| {
        if identity() != Identity::Root {
            skip("needs root: umoci gives files to their owners");
        }
        if !has_program("umoci") {
            skip("no umoci on this machine");
        }
        let dir = load(w);
        let bundle = w.sandbox.path("bundle");
        let source = format!("{}:latest", dir.display());
        run(&w.sandbox, Command::new("umoci").args(["unpack", "--keep-dirlinks", "--image", &source]).arg(&bundle))
            .ok();
        let unpacked = Tree::take(&bundle.join("rootfs"));
        let root = w.mount("box", &["real"]);
        let mounted = Tree::take(&root);
        assert!(unpacked.nodes.len() > 5000, "a real image has many entries: {}", unpacked.nodes.len());
        // Directories into which umoci unpacks later layers get the time of that; those it restores are compared.
        let compare = Compare { is_root: false, ..Compare::ALL };
        unpacked.assert_same(&mounted, compare, "umoci and mlfs");
    });
}

#[test]
fn what_the_third_layer_did() {
    world(|w| {
        load(w);
        let root = w.mount("box", &["real"]);
        assert!(!root.join("usr/share/doc").exists() && !root.join("usr/share/locale").exists());
        assert_eq!(read(root.join("etc/debian_version/README")), "a directory where a file was\n");
        assert_eq!(std::fs::read_dir(root.join("usr/lib/python3/dist-packages/numpy/tests")).expect("list").count(), 1);
        let tree = Tree::take(&root.join("usr/bin"));
        assert_eq!(tree.node("mlfs-one").mode, 0o4755);
        assert_eq!(tree.node("mlfs-one").links, tree.node("mlfs-two").links);
        let deleted = w.mlfs().run(["which", "real", "/usr/share/doc"]);
        assert_eq!((deleted.code, deleted.stdout.contains("layer 3")), (3, true), "{}", deleted.stdout);
        assert!(w.mlfs().ok(["which", "real", "/usr/lib/python3/dist-packages/numpy/__init__.py"]).contains("layer 2"));
        assert!(matches!(Tree::take(&root.join("etc")).node("motd-link").body, Body::Symlink(_)));
    });
}

// The main job: change, install, run; the store stays untouched (checked at the world's end).
#[test]
fn programs_of_the_image_run() {
    world(|w| {
        if identity() != Identity::Root {
            skip("needs root: chroot");
        }
        load(w);
        let root = w.mount("box", &["-v", "ckpt:/ckpt", "-o", "suid,dev", "real"]);
        let script = "import numpy, os\n\
            numpy.save('/ckpt/weights.npy', numpy.arange(1000).reshape(10, 100) * 2)\n\
            assert numpy.load('/ckpt/weights.npy')[9][99] == 1998\n\
            open('/etc/hostname', 'a').write('changed')\n\
            __import__('shutil').move('/usr/share/perl5', '/usr/share/perl5-moved')\n";
        write(root.join("tmp/job.py"), script);
        let mut command = Command::new("chroot");
        run(&w.sandbox, command.arg(&root).args(["/usr/bin/python3", "/tmp/job.py"])).ok();
        let mut command = Command::new("chroot");
        let packages = run(&w.sandbox, command.arg(&root).args(["/usr/bin/dpkg", "-l"])).ok();
        assert!(packages.lines().count() > 50, "dpkg reads its database through the mount");
        w.rm("box");
        let root = w.mount("again", &["-v", "ckpt:/ckpt", "real"]);
        assert_eq!(read(root.join("etc/hostname")), "mlfs-real-image\n", "the upper is gone");
        assert!(root.join("ckpt/weights.npy").exists(), "the checkpoint stays");
        w.umount("again");
    });
}

#[test]
fn an_ordinary_user_sees_true_owners() {
    world(|w| {
        if identity() == Identity::Root {
            skip("root's view is compared with umoci");
        }
        load(w);
        let root = w.mount("box", &["real"]);
        let tree = Tree::take(&root.join("etc"));
        let shadow = tree.node("shadow");
        assert_eq!(shadow.mode, 0o640);
        match identity() {
            Identity::User => assert_eq!((shadow.uid, shadow.gid), (0, 42)),
            _ => assert_eq!((shadow.uid, shadow.gid), (0, 65_534), "gid 42 has no mapping here"),
        }
        assert!(tree.nodes.len() > 100);
    });
}
