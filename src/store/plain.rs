// SPDX-License-Identifier: MIT OR Apache-2.0
//! Files of the store, opened as what they must be: a FIFO, a symlink or a device in the place of a record must neither
//! hold a command up nor lead it elsewhere.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use super::StoreError;
use super::error::At;

/// The most bytes of a record.
pub const RECORD_LIMIT: u64 = 64 << 20;

/// Opens a regular file for reading; anything else is an error that says what it is.
pub fn open(path: &Path) -> io::Result<File> {
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path);
    let file = match opened {
        Err(e) if matches!(e.raw_os_error(), Some(libc::ELOOP | libc::ENXIO)) => {
            let kind = std::fs::symlink_metadata(path).map_or("no regular file", |meta| kind_word(meta.file_type()));
            return Err(other_kind(kind));
        }
        other => other?,
    };
    let kind = file.metadata()?.file_type();
    if kind.is_file() { Ok(file) } else { Err(other_kind(kind_word(kind))) }
}

fn other_kind(kind: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("it is {kind}, not a file"))
}

/// What stands in the place of a file.
pub fn kind_word(kind: std::fs::FileType) -> &'static str {
    match kind {
        kind if kind.is_file() => "a file",
        kind if kind.is_dir() => "a directory",
        kind if kind.is_symlink() => "a symlink",
        kind if kind.is_fifo() => "a FIFO",
        kind if kind.is_socket() => "a socket",
        _ => "a device",
    }
}

/// Reads a record; `None` when there is no such file, `Damaged` when it is no file or too big for a record.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    let file = match open(path) {
        Ok(file) => file,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        Err(e) if e.kind() == ErrorKind::InvalidData => return Err(StoreError::damaged(path, e.to_string())),
        Err(e) => return Err(StoreError::reading("read", path, e)),
    };
    let mut bytes = Vec::new();
    file.take(RECORD_LIMIT + 1).read_to_end(&mut bytes).reading("read", path)?;
    if bytes.len() as u64 > RECORD_LIMIT {
        return Err(StoreError::damaged(path, format!("it is above {RECORD_LIMIT} bytes")));
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_are_read_and_nothing_hangs() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("file"), "x").unwrap();
        std::fs::create_dir(path("dir")).unwrap();
        std::os::unix::fs::symlink("file", path("link")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, path("fifo"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        drop(std::os::unix::net::UnixListener::bind(path("socket")).unwrap());
        assert_eq!(read(&path("file")).unwrap().unwrap(), b"x");
        assert!(read(&path("absent")).unwrap().is_none());
        for (name, what) in [("dir", "a directory"), ("link", "a symlink"), ("fifo", "a FIFO"), ("socket", "a socket")]
        {
            let error = read(&path(name)).unwrap_err().to_string();
            assert!(error.contains(what), "{name}: {error}");
        }
        std::fs::File::create(path("huge")).unwrap().set_len(RECORD_LIMIT + 1).unwrap();
        assert!(read(&path("huge")).unwrap_err().to_string().contains("above"));
    }
}
