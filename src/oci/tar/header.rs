// SPDX-License-Identifier: MIT OR Apache-2.0
//! The 512-byte header block of a tar member.

use super::{BLOCK, TarError};

/// The fields of a header.
#[derive(Debug)]
pub(super) struct Header {
    pub offset: u64,
    pub kind: u8,
    pub path: Vec<u8>,
    pub link: Vec<u8>,
    pub perm: u32,
    pub uid: u64,
    pub gid: u64,
    pub size: u64,
    pub mtime: i64,
    pub device: (u32, u32),
}

impl Header {
    /// Parses and checks `block`, which stands at `offset`.
    pub fn parse(block: &[u8; BLOCK], offset: u64) -> Result<Self, TarError> {
        let damaged = |what: &str| TarError::Damaged { offset, what: what.to_owned() };
        let field = |from: usize, len: usize| block.get(from..from + len).unwrap_or_default();
        let sum = number(field(148, 8)).ok_or_else(|| damaged("no tar header"))?;
        if !checksums(block).contains(&sum) {
            return Err(damaged("wrong header checksum"));
        }
        let unsigned = |from, len, what: &str| {
            number(field(from, len))
                .and_then(|n| u64::try_from(n).ok())
                .ok_or_else(|| damaged(&format!("the {what} is no number")))
        };
        let kind = field(156, 1).first().copied().unwrap_or(0);
        let is_device = matches!(kind, b'3' | b'4');
        // Only devices have device numbers; other members carry anything there, GNU ones even other fields.
        let device_number = |from, what| match is_device {
            true => unsigned(from, 8, what)?.try_into().map_err(|_| damaged("a device number exceeds 32 bits")),
            false => Ok(0),
        };
        Ok(Header {
            offset,
            kind,
            path: path(block),
            link: text(field(157, 100)).to_vec(),
            perm: (unsigned(100, 8, "mode")? & 0o7777) as u32,
            uid: unsigned(108, 8, "owner")?,
            gid: unsigned(116, 8, "group")?,
            size: unsigned(124, 12, "size")?,
            mtime: number(field(136, 12)).ok_or_else(|| damaged("the time is no number"))?,
            device: (device_number(329, "major number")?, device_number(337, "minor number")?),
        })
    }
}

/// The path, with the prefix field where the variant has one (GNU's headers hold times there).
fn path(block: &[u8; BLOCK]) -> Vec<u8> {
    let field = |from: usize, to: usize| text(block.get(from..to).unwrap_or_default());
    let name = field(0, 100);
    let is_ustar = block.get(257..263) == Some(b"ustar\0");
    let prefix = match (is_ustar, block.get(508..512) == Some(b"tar\0")) {
        (true, false) => field(345, 500),
        (true, true) => field(345, 476),
        (false, _) => &[],
    };
    if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
}

/// Bytes up to the first NUL.
fn text(field: &[u8]) -> &[u8] {
    field.split(|b| *b == 0).next().unwrap_or_default()
}

/// Sums of the header's bytes, taken as unsigned and (old programs) as signed, the checksum field as spaces.
fn checksums(block: &[u8; BLOCK]) -> [i64; 2] {
    let bytes = || block.iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { b' ' } else { *b });
    [bytes().map(i64::from).sum(), bytes().map(|b| i64::from(b as i8)).sum()]
}

/// A number in octal digits, or in base 256 when its first bit is set. An empty field is 0.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    let first = *field.first()?;
    if first & 0x80 != 0 {
        // Two's complement; the marker bit is not part of the number, the next one is its sign.
        let start: i64 = if first & 0x40 != 0 { -1 } else { 0 };
        let low = i64::from(first & 0x3f);
        let head = if start < 0 { (-1 << 6) | low } else { low };
        return field.iter().skip(1).try_fold(head, |n, b| n.checked_mul(256).map(|n| n | i64::from(*b)));
    }
    let digits = text(field).trim_ascii();
    digits.iter().try_fold(0i64, |n, b| match b {
        b'0'..=b'7' => n.checked_mul(8)?.checked_add(i64::from(b - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn numbers_in_all_writings() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"  644 \0\0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0"), Some(0));
        assert_eq!(number(b"0009"), None);
        assert_eq!(number(b"-1"), None);
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]), Some(256));
        assert_eq!(number(&[0xff; 12]), Some(-1));
        assert_eq!(number(&[0x80, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]), None);
        assert_eq!(number(b"77777777777"), Some(0o77_777_777_777));
    }
}
