// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tar archives written byte by byte, so that difficult and damaged ones can be made as easily as good ones.

use crate::layers::{Item, LayerSpec, What};

/// One header with everything a test may want to falsify.
#[derive(Clone, Debug)]
pub struct Header<'a> {
    /// Name, at most 100 bytes here.
    pub name: &'a [u8],
    /// Permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Declared size of the body.
    pub size: u64,
    /// Seconds.
    pub mtime: i64,
    /// Type flag.
    pub flag: u8,
    /// Link target, at most 100 bytes here.
    pub link: &'a [u8],
    /// Device numbers.
    pub device: (u32, u32),
}

impl Default for Header<'_> {
    fn default() -> Self {
        let (mode, flag) = (0o644, b'0');
        Header { name: b"", mode, uid: 0, gid: 0, size: 0, mtime: 0, flag, link: b"", device: (0, 0) }
    }
}

impl Header<'_> {
    /// The 512 bytes.
    pub fn block(&self) -> [u8; 512] {
        let mut block = [0u8; 512];
        put(&mut block[0..100], self.name);
        number(&mut block[100..108], i128::from(self.mode));
        number(&mut block[108..116], i128::from(self.uid));
        number(&mut block[116..124], i128::from(self.gid));
        number(&mut block[124..136], i128::from(self.size));
        number(&mut block[136..148], i128::from(self.mtime));
        block[148..156].copy_from_slice(b"        ");
        block[156] = self.flag;
        put(&mut block[157..257], self.link);
        put(&mut block[257..265], b"ustar\x0000");
        number(&mut block[329..337], i128::from(self.device.0));
        number(&mut block[337..345], i128::from(self.device.1));
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        put(&mut block[148..156], format!("{sum:06o}\0 ").as_bytes());
        block
    }
}

fn put(field: &mut [u8], value: &[u8]) {
    let size = value.len().min(field.len());
    field[..size].copy_from_slice(&value[..size]);
}

// Octal where it fits, else base 256.
fn number(field: &mut [u8], value: i128) {
    let digits = field.len() - 1;
    if value >= 0 && value < 1 << (3 * digits) {
        put(field, format!("{value:0digits$o}\0").as_bytes());
        return;
    }
    let bytes = value.to_be_bytes();
    let size = field.len();
    field.copy_from_slice(&bytes[bytes.len() - size..]);
    field[0] = if value < 0 { 0xff } else { 0x80 };
}

/// An archive under construction.
#[derive(Clone, Debug, Default)]
pub struct Tar {
    /// What has been written.
    pub bytes: Vec<u8>,
}

impl Tar {
    /// An empty archive.
    pub fn new() -> Tar {
        Tar::default()
    }

    /// A header followed by a body, padded. The header's declared size is left as it is.
    pub fn entry(&mut self, header: &Header, body: &[u8]) -> &mut Tar {
        self.bytes.extend_from_slice(&header.block());
        self.bytes.extend_from_slice(body);
        self.pad();
        self
    }

    /// A plain file with a content.
    pub fn file(&mut self, name: &str, body: &[u8]) -> &mut Tar {
        let size = body.len() as u64;
        self.entry(&Header { name: name.as_bytes(), size, ..Header::default() }, body)
    }

    /// A pax extended header for the next entry.
    pub fn pax(&mut self, records: &[(&[u8], &[u8])]) -> &mut Tar {
        let mut body = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + rest.to_string().len();
            if length.to_string().len() != rest.to_string().len() {
                length = rest + length.to_string().len();
            }
            body.extend_from_slice(length.to_string().as_bytes());
            body.push(b' ');
            body.extend_from_slice(key);
            body.push(b'=');
            body.extend_from_slice(value);
            body.push(b'\n');
        }
        let header = Header { name: b"PaxHeaders/0", size: body.len() as u64, flag: b'x', ..Header::default() };
        self.entry(&header, &body)
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
    }

    /// Adds an item of a layer, whiteouts in the OCI convention, with pax records where ustar is too small.
    pub fn item(&mut self, item: &Item) -> &mut Tar {
        let mut path = item.path.clone();
        let mut records: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        let mut header = Header { mode: item.mode, mtime: item.mtime.0, ..Header::default() };
        (header.uid, header.gid) = (u64::from(item.uid), u64::from(item.gid));
        let mut body: &[u8] = b"";
        let mut link: &[u8] = b"";
        match &item.what {
            What::Dir => {
                header.flag = b'5';
                path.push(b'/');
            }
            What::File(content) => body = content,
            What::Symlink(target) => (header.flag, link) = (b'2', target),
            What::Hardlink(target) => (header.flag, link) = (b'1', target),
            What::Char(major, minor) => (header.flag, header.device) = (b'3', (*major, *minor)),
            What::Block(major, minor) => (header.flag, header.device) = (b'4', (*major, *minor)),
            What::Fifo => header.flag = b'6',
            What::Whiteout => {
                let start = path.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
                path.splice(start..start, b".wh.".iter().copied());
            }
            What::Opaque => path.extend_from_slice(b"/.wh..wh..opq"),
        }
        header.size = body.len() as u64;
        if path.len() > 100 {
            records.push((b"path".to_vec(), path.clone()));
            path.truncate(100);
        }
        if link.len() > 100 {
            records.push((b"linkpath".to_vec(), link.to_vec()));
            link = &link[..100];
        }
        if item.mtime.1 != 0 || item.mtime.0 < 0 {
            records.push((b"mtime".to_vec(), pax_time(item.mtime).into_bytes()));
        }
        for (name, value) in &item.xattrs {
            records.push((format!("SCHILY.xattr.{name}").into_bytes(), value.clone()));
        }
        if !records.is_empty() {
            let records: Vec<(&[u8], &[u8])> = records.iter().map(|(key, value)| (&key[..], &value[..])).collect();
            self.pax(&records);
        }
        (header.name, header.link) = (&path, link);
        self.entry(&header, body)
    }

    /// Closes the archive and hands out its bytes.
    pub fn finish(&self) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        bytes.resize(bytes.len() + 1024, 0);
        bytes
    }
}

// -1.25 s is (-2 s, 750 ms) in a timespec and "-1.25" in pax.
fn pax_time((seconds, nanos): (i64, u32)) -> String {
    if seconds >= 0 || nanos == 0 {
        return format!("{seconds}.{nanos:09}");
    }
    format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanos)
}

/// A layer as a tar.
pub fn layer_tar(layer: &LayerSpec) -> Vec<u8> {
    let mut tar = Tar::new();
    for item in &layer.items {
        tar.item(item);
    }
    tar.finish()
}
