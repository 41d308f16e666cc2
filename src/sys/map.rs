// SPDX-License-Identifier: MIT OR Apache-2.0
//! Files mapped into memory for reading.

use std::fs::File;
use std::io;
use std::ops::Deref;

use memmap2::Mmap;

/// A whole file, mapped read-only.
///
/// For files that are never written in place: the store replaces its files by rename, so that a mapped one keeps its
/// content and length. A disk that fails underneath ends in SIGBUS; so it does for every program that maps files.
#[derive(Debug)]
pub struct Map(Mmap);

impl Map {
    /// Maps `file` as long as it is now.
    pub fn read_only(file: &File) -> io::Result<Self> {
        // SAFETY: the bytes are only read, as plain bytes. Nobody writes or truncates the files of the store that are
        // mapped (see above); a change by force from outside yields wrong bytes, which every reader checks anyway.
        let map = unsafe { Mmap::map(file) }?;
        Ok(Map(map))
    }
}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}
