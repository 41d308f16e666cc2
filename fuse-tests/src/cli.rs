// SPDX-License-Identifier: MIT OR Apache-2.0
//! mlfs by its command line, and any other command, always with an end.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::sandbox::Sandbox;

/// How a command ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The command, for messages.
    pub line: String,
    /// The exit code; 128 + signal when killed.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Outcome {
    /// Whether an unmount was refused because somebody uses the mount.
    pub fn is_busy(&self) -> bool {
        self.code == 1 && (self.stderr.contains("busy") || self.stderr.contains("is in use"))
    }

    /// Panics unless the command succeeded; hands out its standard output without the last line end.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{} failed\nstdout: {}\nstderr: {}", self.line, self.stdout, self.stderr);
        self.stdout.strip_suffix('\n').unwrap_or(&self.stdout).to_owned()
    }

    /// Panics unless the command ended with this code and something on standard error, which it hands out.
    #[track_caller]
    pub fn fails(self, code: i32) -> String {
        let Outcome { line, code: was, stdout, stderr } = self;
        assert_eq!(was, code, "{line}: wrong exit code\nstdout: {stdout}\nstderr: {stderr}");
        assert!(!stderr.trim().is_empty(), "{line}: failed without a word");
        assert!(!stderr.contains("panicked at"), "{line}: panicked: {stderr}");
        stderr
    }

    /// As [`Outcome::fails`], and the message must contain a text.
    #[track_caller]
    pub fn fails_saying(self, code: i32, text: &str) -> String {
        let line = self.line.clone();
        let stderr = self.fails(code);
        assert!(stderr.contains(text), "{line}: the message should contain {text:?}: {stderr}");
        stderr
    }
}

/// Runs a command to its end with its output in files: a daemon that keeps a descriptor does not stop the test.
pub fn run(sandbox: &Sandbox, command: &mut Command) -> Outcome {
    run_for(sandbox, command, Duration::from_secs(120))
}

/// [`run`] with a limit of its own.
pub fn run_for(sandbox: &Sandbox, command: &mut Command, patience: Duration) -> Outcome {
    let line = shown(sandbox, command);
    let out = tempfile(sandbox, "out");
    let err = tempfile(sandbox, "err");
    command.stdout(File::create(&out).expect("stdout")).stderr(File::create(&err).expect("stderr"));
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{line}: {error}"));
    let deadline = Instant::now() + patience;
    let status = loop {
        if let Some(status) = child.try_wait().expect("wait") {
            break status;
        }
        if Instant::now() > deadline {
            child.kill().expect("kill");
            child.wait().expect("wait");
            let said = std::fs::read(&err).unwrap_or_default();
            panic!("{line}: no end after {patience:?}: {}", String::from_utf8_lossy(&said));
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    let read = |path: &Path| String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned();
    let (stdout, stderr) = (read(&out), read(&err));
    for path in [&out, &err] {
        std::fs::remove_file(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
    Outcome { line, code, stdout, stderr }
}

// The program's name and its arguments, the sandbox's path shortened to `BOX`.
fn shown(sandbox: &Sandbox, command: &Command) -> String {
    let name = Path::new(command.get_program()).file_name().unwrap_or_default();
    let words = std::iter::once(name).chain(command.get_args()).map(|word| word.to_string_lossy());
    words.collect::<Vec<_>>().join(" ").replace(&*sandbox.root().to_string_lossy(), "BOX")
}

fn tempfile(sandbox: &Sandbox, what: &str) -> PathBuf {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    sandbox.dir("io").join(format!("{what}-{}", NEXT.fetch_add(1, Ordering::Relaxed)))
}

/// The program under test: `MLFS_BIN`, else the one built beside the tests.
pub fn mlfs_binary() -> PathBuf {
    if let Some(path) = std::env::var_os("MLFS_BIN") {
        return PathBuf::from(path);
    }
    let exe = std::env::current_exe().expect("own path");
    let target = exe.parent().and_then(Path::parent).expect("target folder");
    let binary = target.join("mlfs");
    assert!(binary.exists(), "{} is missing: run `cargo build` first", binary.display());
    binary
}

/// mlfs with the sandbox's store, home and runtime folder.
pub struct Mlfs<'a> {
    sandbox: &'a Sandbox,
    root: PathBuf,
}

impl Mlfs<'_> {
    /// mlfs over the store `store` of a sandbox.
    pub fn new(sandbox: &Sandbox) -> Mlfs<'_> {
        Mlfs::with_store(sandbox, "store")
    }

    /// mlfs over a store of another name in the sandbox.
    pub fn with_store<'a>(sandbox: &'a Sandbox, name: &str) -> Mlfs<'a> {
        Mlfs { sandbox, root: sandbox.ground().join(name) }
    }

    /// The store's folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A command without arguments, in a clean environment. The store is named in the arguments, so that
    /// [`Sandbox::processes`] sees every daemon.
    pub fn command(&self) -> Command {
        let mut command = bare(self.sandbox);
        command.arg("--root").arg(&self.root);
        command
    }

    /// Runs mlfs.
    pub fn run<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Outcome {
        run(self.sandbox, self.command().args(args))
    }

    /// Runs mlfs with bytes on standard input.
    pub fn run_with_input<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>, input: &Path) -> Outcome {
        let input = File::open(input).unwrap_or_else(|error| panic!("{}: {error}", input.display()));
        run(self.sandbox, self.command().args(args).stdin(input))
    }

    /// Runs mlfs, which must succeed; hands out its standard output.
    #[track_caller]
    pub fn ok<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> String {
        self.run(args).ok()
    }

    /// Runs mlfs, which must fail with this code and a message containing a text.
    #[track_caller]
    pub fn fails<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>, code: i32, text: &str) -> String {
        self.run(args).fails_saying(code, text)
    }

    /// Runs mlfs with `--format json` and hands out the array.
    #[track_caller]
    pub fn json<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Vec<serde_json::Value> {
        let mut command = self.command();
        let outcome = run(self.sandbox, command.args(["--format", "json"]).args(args));
        let line = outcome.line.clone();
        let text = outcome.ok();
        match serde_json::from_str(&text) {
            Ok(serde_json::Value::Array(values)) => values,
            Ok(other) => panic!("{line}: not an array: {other}"),
            Err(error) => panic!("{line}: {error}: {text}"),
        }
    }
}

/// mlfs without a store argument.
pub fn bare(sandbox: &Sandbox) -> Command {
    let mut command = Command::new(mlfs_binary());
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", sandbox.path("home"))
        .env("XDG_RUNTIME_DIR", sandbox.path("run"))
        .env("RUST_BACKTRACE", "1")
        .env("MLFS_LOG", std::env::var_os("MLFS_LOG").unwrap_or_else(|| "info".into()))
        .current_dir(sandbox.root())
        .stdin(Stdio::null());
    command
}
