// SPDX-License-Identifier: MIT OR Apache-2.0
//! Filesystems other than the ordinary one, made for a test and mounted over its sandbox.

use std::path::Path;
use std::process::Command;

use crate::identity::{Identity, has_program, identity};
use crate::skip::skip;

/// What a sandbox lies on: everything in it, the store too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ground {
    /// The filesystem of `MLFS_TEST_SCRATCH`.
    Ordinary,
    /// Memory.
    Tmpfs,
    /// The kernel's overlayfs, itself on the ordinary filesystem.
    Overlayfs,
    /// btrfs in a sparse file.
    Btrfs,
    /// xfs with reflinks in a sparse file.
    Xfs,
}

/// Room for a file of 64 MiB that is not shared after all, and above the least that mkfs.xfs takes.
const SIZE: u64 = 1 << 30;

impl Ground {
    /// Mounts it over an empty folder, whose own content (the image of a disk) stays hidden below. Unmounting that folder
    /// gives everything back, the loop device too. Skips where it cannot be had.
    pub fn mount_over(self, dir: &Path) {
        match self {
            Ground::Ordinary => {}
            Ground::Tmpfs => {
                self.needs_mount();
                run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=1g,mode=755", "none"]).arg(dir));
            }
            Ground::Overlayfs => {
                self.needs_mount();
                let [lower, upper, work] = ["lower", "upper", "work"].map(|name| dir.join(name));
                for part in [&lower, &upper, &work] {
                    std::fs::create_dir(part).unwrap_or_else(|error| panic!("{}: {error}", part.display()));
                }
                let marks = if identity() == Identity::Root { "xino=auto" } else { "userxattr" };
                let [lower, upper, work] = [lower, upper, work].map(|part| part.display().to_string());
                let options = format!("{marks},lowerdir={lower},upperdir={upper},workdir={work}");
                run(Command::new("mount").args(["-t", "overlay", "-o", &options, "none"]).arg(dir));
            }
            Ground::Btrfs => self.mount_disk("btrfs", &[], dir),
            Ground::Xfs => self.mount_disk("xfs", &["-m", "reflink=1"], dir),
        }
    }

    fn needs_mount(self) {
        if identity() == Identity::User {
            skip(format!("needs root: to mount {self:?}"));
        }
    }

    fn mount_disk(self, kind: &str, options: &[&str], dir: &Path) {
        if identity() != Identity::Root {
            skip(format!("needs root: to mount {self:?} from a loop device"));
        }
        let mkfs = format!("mkfs.{kind}");
        if !has_program(&mkfs) {
            skip(format!("no {mkfs} on this machine"));
        }
        if !Path::new("/dev/loop-control").exists() {
            skip("no loop devices on this machine");
        }
        let disk = dir.join("disk");
        std::fs::File::create(&disk).and_then(|file| file.set_len(SIZE)).expect("a sparse file");
        run(Command::new(mkfs).args(options).arg("-q").arg(&disk));
        run(Command::new("mount").args(["-t", kind, "-o", "loop"]).arg(&disk).arg(dir));
    }
}

#[track_caller]
fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
