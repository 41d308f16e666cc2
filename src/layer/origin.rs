// SPDX-License-Identifier: MIT OR Apache-2.0
//! Lasting names of files as kernel overlayfs writes them: values of `overlay.origin`, and in hexadecimal the names in
//! its `work/index` (overlayfs.rst, "Index of hard links"; the layout is what the attributes of a kernel mount show).
//!
//! ```text
//! 0       version, 0          3       flags: 1 big endian, 4 of the upper
//! 1       0xfb                4       type of the handle
//! 2       length of all       5..21   identity of the filesystem
//!                             21..    the handle
//! ```

use crate::model::FsError;
use crate::sys::Place;
use crate::sys::handle::{FileHandle, file_handle};

/// The identity of a filesystem.
pub type Uuid = [u8; 16];

/// Which side of an overlay a file lies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// A layer.
    Lower,
    /// The upper.
    Upper,
}

/// A file of a filesystem for as long as both exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin(Vec<u8>);

impl Origin {
    /// The origin of a handle on a filesystem. `None` for one too long for the layout.
    fn new(handle: &FileHandle, uuid: &Uuid, side: Side) -> Option<Self> {
        let length = u8::try_from(21 + handle.bytes.len()).ok()?;
        let endian = u8::from(cfg!(target_endian = "big"));
        let flags = match side {
            Side::Lower => endian,
            Side::Upper => endian | 4,
        };
        let mut bytes = vec![0, 0xfb, length, flags, handle.kind];
        bytes.extend_from_slice(uuid);
        bytes.extend_from_slice(&handle.bytes);
        Some(Origin(bytes))
    }

    /// The origin of the object at `place` on the filesystem `uuid`; `None` where files have no handles.
    pub fn of(place: &Place, uuid: &Uuid, side: Side) -> Result<Option<Self>, FsError> {
        Ok(file_handle(place)?.and_then(|handle| Self::new(&handle, uuid, side)))
    }

    /// A value that stands in an attribute; `None` for what is no origin.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let is_whole = value.len() > 21
            && value.starts_with(&[0, 0xfb])
            && value.get(2) == u8::try_from(value.len()).ok().as_ref();
        is_whole.then(|| Origin(value.to_vec()))
    }

    /// The value of an attribute.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The name in an index.
    pub fn index_name(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Seen with getfattr on what kernel overlayfs 6.18 wrote.
    #[test]
    fn the_layout_is_the_kernels() {
        let handle = FileHandle { kind: 1, bytes: vec![0xf0, 0xc0, 0x98, 0, 0xa8, 0xe0, 0xc3, 0x18] };
        let origin = Origin::new(&handle, &[0; 16], Side::Lower).unwrap();
        if cfg!(target_endian = "little") {
            assert_eq!(origin.index_name(), "00fb1d000100000000000000000000000000000000f0c09800a8e0c318");
        }
        assert_eq!(Origin::parse(origin.bytes()), Some(origin.clone()));
        assert_eq!(Origin::new(&handle, &[0; 16], Side::Upper).unwrap().bytes()[3] & 4, 4);
        for bad in [&b""[..], b"\0", b"\0\xfb\x02", &origin.bytes()[..20]] {
            assert_eq!(Origin::parse(bad), None);
        }
    }
}
