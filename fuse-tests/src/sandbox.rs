// SPDX-License-Identifier: MIT OR Apache-2.0
//! A folder of its own for every test, which always unmounts and removes itself, after a panic too.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::ground::Ground;
use crate::identity::{Identity, identity};

/// A scratch folder. Dropping it unmounts everything below it, waits for the daemons and removes it.
pub struct Sandbox {
    root: PathBuf,
    /// A folder on another filesystem, if uppers are to lie on one.
    ground: Option<PathBuf>,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

impl Default for Sandbox {
    fn default() -> Self {
        Self::new()
    }
}

impl Sandbox {
    /// Makes a new sandbox below `MLFS_TEST_SCRATCH`, else the system's temporary folder.
    pub fn new() -> Sandbox {
        Sandbox::on(Ground::Ordinary)
    }

    /// [`Sandbox::new`] on a filesystem of its own, mounted over its folder.
    pub fn on(ground: Ground) -> Sandbox {
        let base = std::env::var_os("MLFS_TEST_SCRATCH").map_or_else(std::env::temp_dir, PathBuf::from);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let root = base.join(format!("mlfs-t-{}-{number}", std::process::id()));
        std::fs::create_dir(&root).unwrap_or_else(|error| panic!("{}: {error}", root.display()));
        let sandbox = Sandbox { root, ground: None };
        ground.mount_over(&sandbox.root);
        // Other users must be able to walk in: some tests ask what they may do.
        std::fs::set_permissions(&sandbox.root, std::fs::Permissions::from_mode(0o755)).expect("chmod");
        std::fs::set_permissions(sandbox.dir("run"), std::fs::Permissions::from_mode(0o700)).expect("chmod");
        sandbox.dir("home");
        sandbox
    }

    /// A sandbox whose uppers, work directories and store lie in a folder of their own below `MLFS_TEST_UPPER_GROUND`, if
    /// that is set: a tmpfs, say.
    pub fn on_ground() -> Sandbox {
        let mut sandbox = Sandbox::new();
        if let Some(base) = std::env::var_os("MLFS_TEST_UPPER_GROUND") {
            let ground = PathBuf::from(base).join(sandbox.root.file_name().expect("a name"));
            std::fs::create_dir(&ground).unwrap_or_else(|error| panic!("{}: {error}", ground.display()));
            sandbox.ground = Some(ground);
        }
        sandbox
    }

    /// Where uppers, work directories and the store lie.
    pub fn ground(&self) -> &Path {
        self.ground.as_deref().unwrap_or(&self.root)
    }

    /// Whether uppers lie on kernel overlayfs.
    pub fn is_ground_overlayfs(&self) -> bool {
        rustix::fs::statfs(self.ground()).is_ok_and(|found| found.f_type == 0x794c_7630)
    }

    /// The sandbox's own folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A path in the sandbox.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.root.join(name)
    }

    /// A folder in the sandbox, made with its parents where it is missing.
    pub fn dir(&self, name: impl AsRef<Path>) -> PathBuf {
        let dir = self.root.join(name);
        std::fs::create_dir_all(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        dir
    }

    /// A file in the sandbox with a content; its parents are made.
    pub fn file(&self, name: impl AsRef<Path>, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.root.join(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).expect("parents");
        }
        std::fs::write(&path, content).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        path
    }

    /// The mount points below the sandbox, innermost last.
    pub fn mounts(&self) -> Vec<PathBuf> {
        mounts_below(&self.root)
    }

    /// The processes of this sandbox: those whose command line names it. Only pids, this process excluded.
    pub fn processes(&self) -> Vec<(u32, String)> {
        let needle = self.root.as_os_str().as_bytes();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            // Sandbox 1 is not sandbox 10.
            let ends = |at: usize| line.get(at).is_none_or(|byte| !byte.is_ascii_digit());
            let is_ours = line.windows(needle.len()).enumerate().any(|(at, w)| w == needle && ends(at + needle.len()));
            if is_ours && pid != std::process::id() {
                found.push((pid, String::from_utf8_lossy(&line).replace('\0', " ")));
            }
        }
        found
    }

    /// Waits until no daemon of this sandbox is left; tells those that stay.
    pub fn wait_for_processes(&self, patience: Duration) -> Result<(), String> {
        let deadline = Instant::now() + patience;
        loop {
            let left = self.processes();
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(left.into_iter().map(|(pid, line)| format!("{pid}: {line}\n")).collect());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    // The logs of the sandbox's containers, as (path, text).
    fn logs(&self) -> Vec<(PathBuf, String)> {
        let mut find = Command::new("find");
        find.arg(&self.root).args(&self.ground).args(["-xdev", "-name", "mlfs*log*", "-type", "f"]);
        let find = find.output();
        let paths = find.iter().flat_map(|found| found.stdout.split(|byte| *byte == b'\n'));
        let paths = paths.map(|path| PathBuf::from(OsStr::from_bytes(path)));
        paths
            .filter_map(|path| Some((path.clone(), String::from_utf8_lossy(&std::fs::read(path).ok()?).into_owned())))
            .collect()
    }

    fn print_logs(&self) {
        for (path, text) in self.logs() {
            let lines: Vec<&str> = text.lines().collect();
            eprintln!("--- {}\n{}", path.display(), lines[lines.len().saturating_sub(30)..].join("\n"));
        }
    }
}

/// The mount points at or below a folder, innermost last.
pub fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for line in std::fs::read("/proc/self/mountinfo").unwrap_or_default().split(|byte| *byte == b'\n') {
        let Some(field) = line.split(|byte| *byte == b' ').nth(4) else { continue };
        let path = PathBuf::from(OsStr::from_bytes(&unescape(field)));
        if path.starts_with(dir) {
            found.push(path);
        }
    }
    found
}

fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut at = 0;
    while at < field.len() {
        let octal = field.get(at + 1..at + 4).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if field[at] == b'\\' => {
                out.push(byte);
                at += 4;
            }
            _ => {
                out.push(field[at]);
                at += 1;
            }
        }
    }
    out
}

/// Unmounts by the means of whoever runs the suite. `is_lazy` detaches busy mounts.
pub fn unmount(target: &Path, is_lazy: bool) -> Result<(), String> {
    let mut command = match identity() {
        Identity::User => Command::new("fusermount3"),
        Identity::Root | Identity::Namespace => Command::new("umount"),
    };
    if identity() == Identity::User {
        command.arg("-u");
    }
    if is_lazy {
        command.arg(if identity() == Identity::User { "-z" } else { "-l" });
    }
    let output = command.arg(target).output().map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let is_failing = std::thread::panicking();
        if is_failing {
            self.print_logs();
        }
        let mut trouble = Vec::new();
        // A panic in an operation is EIO for its caller and the mount goes on: no test may overlook it.
        for (_, text) in self.logs() {
            trouble.extend(text.lines().filter(|line| line.contains("panic in ")).map(str::to_owned));
        }
        for target in self.mounts().iter().rev() {
            if unmount(target, false).is_err() {
                trouble.extend(unmount(target, true).err());
            }
        }
        if let Err(left) = self.wait_for_processes(Duration::from_secs(if is_failing { 2 } else { 12 })) {
            trouble.push(format!("still running: {left}"));
            for (pid, _) in self.processes() {
                let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
                let killed = pid.map(|pid| rustix::process::kill_process(pid, rustix::process::Signal::KILL));
                trouble.extend(killed.and_then(Result::err).map(|error| error.to_string()));
            }
        }
        for dir in std::iter::once(&self.root).chain(&self.ground) {
            make_removable(dir);
            if let Err(error) = std::fs::remove_dir_all(dir) {
                trouble.push(format!("{}: {error}", dir.display()));
            }
        }
        match (is_failing, trouble.is_empty()) {
            (_, true) => {}
            (true, false) => eprintln!("sandbox: {}", trouble.join("; ")),
            (false, false) => panic!("the sandbox could not be cleaned: {}", trouble.join("; ")),
        }
    }
}

// An ordinary user cannot remove what lies in a folder without u+rwx.
fn make_removable(root: &Path) {
    // `find` complains about what it cannot enter before chmod has run: until it is content, a few times at most.
    for _ in 0..8 {
        let mut find = Command::new("find");
        find.arg(root).args(["-xdev", "-type", "d", "!", "-perm", "-700", "-exec", "chmod", "u+rwx", "{}", ";"]);
        match find.output() {
            Ok(output) if !output.stderr.is_empty() => {}
            Ok(_) => return,
            Err(error) => {
                eprintln!("find in {}: {error}", root.display());
                return;
            }
        }
    }
}
