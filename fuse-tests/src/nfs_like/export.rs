// SPDX-License-Identifier: MIT OR Apache-2.0
//! The NFS-like filesystem in a test's sandbox, served by a process of its own.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cli::{mlfs_binary, run};
use crate::driver::patiently;
use crate::sandbox::{Sandbox, unmount};

/// A directory and the mount that shows it as if it came by NFS. The sandbox unmounts what a test leaves.
pub struct Export {
    /// The directory on the server, so to speak: everybody may write to it.
    pub backing: PathBuf,
    /// Where it is mounted.
    pub target: PathBuf,
}

impl Export {
    /// Mounts a new directory of the sandbox; `options` are those of `nfs-like`.
    #[track_caller]
    pub fn mount(sandbox: &Sandbox, name: &str, options: &[&str]) -> Export {
        let backing = sandbox.dir(Path::new("backing").join(name));
        let target = sandbox.dir(Path::new("nfs").join(name));
        std::fs::set_permissions(&backing, std::fs::Permissions::from_mode(0o1777)).expect("chmod");
        run(sandbox, Command::new(binary()).args(options).arg(&backing).arg(&target)).ok();
        Export { backing, target }
    }

    /// Unmounts it, patient with other tests' forks.
    #[track_caller]
    pub fn umount(&self) {
        patiently(|| unmount(&self.target, false)).unwrap_or_else(|error| panic!("{}: {error}", self.target.display()));
    }
}

// Beside the program under test, else beside the test programs.
fn binary() -> PathBuf {
    let beside = mlfs_binary().with_file_name("nfs-like");
    let exe = std::env::current_exe().expect("own path");
    let built = exe.ancestors().nth(2).map(|target| target.join("nfs-like"));
    let found = std::iter::once(beside).chain(built).find(|path| path.exists());
    found.expect("nfs-like is missing: cargo build -p fuse-tests --bins")
}
