// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where log lines go: to standard error, or to a container's file of at most 2 x 10 MiB.
//!
//! One sink per process, installed once by the program; a daemon turns it to its container's file. Standard output and
//! error of the daemon follow the file, so that a panic's message is kept too.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use log::{LevelFilter, Log, Metadata, Record};

use crate::model::sync::lock;
use crate::store::timestamp;

/// A file above this size becomes the older half.
const HALF: u64 = 10 << 20;

struct Sink {
    out: Mutex<Out>,
}

enum Out {
    Stderr,
    File(LogFile),
    Nowhere,
}

struct LogFile {
    path: PathBuf,
    file: File,
    size: u64,
    follow: Follow,
}

static SINK: Sink = Sink { out: Mutex::new(Out::Stderr) };
/// Did the user choose a level?
static IS_CHOSEN: AtomicBool = AtomicBool::new(false);

/// Installs the sink; warnings and errors go to standard error. Does nothing when called again.
pub fn install() {
    if log::set_logger(&SINK).is_ok() {
        log::set_max_level(LevelFilter::Warn);
    }
}

/// Logs at this level from now on, on standard error and in files.
pub fn set_level(level: LevelFilter) {
    IS_CHOSEN.store(true, Ordering::Relaxed);
    log::set_max_level(level);
}

/// Whether standard output and error go to the log too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follow {
    /// They follow the file.
    Stdio,
    /// They stay as they are.
    Nothing,
}

/// Turns the sink to the file at `path`.
pub fn turn_to_file(path: &Path, follow: Follow) -> std::io::Result<()> {
    let log_file = LogFile::open(path, follow)?;
    // A file that nobody has to look at may tell more than a terminal.
    if !IS_CHOSEN.load(Ordering::Relaxed) {
        log::set_max_level(LevelFilter::Info);
    }
    *lock(&SINK.out) = Out::File(log_file);
    Ok(())
}

/// Drops all further lines: for a daemon whose standard error is closed and that has no file.
pub fn turn_off() {
    *lock(&SINK.out) = Out::Nowhere;
}

impl LogFile {
    fn open(path: &Path, follow: Follow) -> std::io::Result<Self> {
        let file = File::options().append(true).create(true).mode(0o600).open(path)?;
        if follow == Follow::Stdio {
            rustix::stdio::dup2_stdout(&file)?;
            rustix::stdio::dup2_stderr(&file)?;
        }
        Ok(LogFile { path: path.to_owned(), size: file.metadata()?.len(), file, follow })
    }

    fn write(&mut self, line: &[u8]) -> std::io::Result<()> {
        if self.size >= HALF {
            let mut older = self.path.clone().into_os_string();
            older.push(".1");
            match std::fs::rename(&self.path, older) {
                Ok(()) => *self = LogFile::open(&self.path, self.follow)?,
                // The container's folder is gone (rm): nobody can read more of this log.
                Err(_) => self.file.set_len(0)?,
            }
            self.size = 0;
        }
        self.file.write_all(line)?;
        self.size = self.size.saturating_add(line.len() as u64);
        Ok(())
    }
}

impl Log for Sink {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level() && metadata.target().starts_with("mlfs")
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let result = match &mut *lock(&self.out) {
            Out::Stderr => {
                writeln!(std::io::stderr(), "mlfs: {}: {}", record.level().as_str().to_lowercase(), record.args())
            }
            Out::File(file) => {
                let line = format!("{} {:5} {}\n", timestamp::now(), record.level(), record.args());
                file.write(line.as_bytes())
            }
            Out::Nowhere => Ok(()),
        };
        // There is nowhere left to tell of a log that cannot be written.
        drop(result);
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_becomes_the_older_half() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mlfs.log");
        let mut file = LogFile::open(&path, Follow::Nothing).unwrap();
        file.write(b"one\n").unwrap();
        file.size = HALF;
        file.write(b"two\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two\n");
        assert_eq!(std::fs::read(dir.path().join("mlfs.log.1")).unwrap(), b"one\n");
        std::fs::remove_dir_all(dir.path()).unwrap();
        file.size = HALF;
        file.write(b"three\n").unwrap();
    }
}
