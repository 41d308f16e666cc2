// SPDX-License-Identifier: MIT OR Apache-2.0
//! Extended headers of POSIX (pax): records `LENGTH KEY=VALUE\n`.

use super::TarError;
use super::sparse::Segment;
use crate::model::Time;

/// What one extended header says about the member that follows it.
#[derive(Debug, Default)]
pub(super) struct Pax {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u64>,
    pub gid: Option<u64>,
    pub mtime: Option<Time>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// GNU.sparse 0.0 and 0.1: the map.
    pub sparse_map: Vec<Segment>,
    /// GNU.sparse 1.0: the map stands before the content.
    pub has_map_in_data: bool,
    pub sparse_name: Option<Vec<u8>>,
    pub sparse_size: Option<u64>,
    has_sparse_map: bool,
}

impl Pax {
    /// Is the member a sparse file?
    pub fn is_sparse(&self) -> bool {
        self.has_sparse_map || self.has_map_in_data
    }

    /// Parses the records in `bytes`, the content of the header at `offset`.
    pub fn parse(mut bytes: &[u8], offset: u64) -> Result<Self, TarError> {
        let mut pax = Pax::default();
        while !bytes.is_empty() {
            let damaged = |what: String| TarError::Damaged { offset, what };
            let (key, value, rest) =
                record(bytes).ok_or_else(|| damaged("a malformed record in an extended header".to_owned()))?;
            pax.take(key, value).ok_or_else(|| {
                damaged(format!("\"{}\" in an extended header has a malformed value", key.escape_ascii()))
            })?;
            bytes = rest;
        }
        Ok(pax)
    }

    /// Takes one record; `None` when its value is malformed.
    fn take(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            if name.is_empty() || name.contains(&0) {
                return None;
            }
            self.xattrs.push((name.to_vec(), value.to_vec()));
            return Some(());
        }
        match key {
            b"GNU.sparse.offset" => {
                self.sparse_map.push(Segment { offset: unsigned(value)?, len: 0 });
                self.has_sparse_map = true;
            }
            b"GNU.sparse.numbytes" => {
                let last = self.sparse_map.last_mut()?;
                last.len = unsigned(value)?;
                last.offset.checked_add(last.len)?;
            }
            b"GNU.sparse.map" => {
                self.sparse_map = sparse_list(value)?;
                self.has_sparse_map = true;
            }
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse_size = Some(unsigned(value)?),
            b"GNU.sparse.name" => self.sparse_name = Some(path(value)?),
            b"GNU.sparse.major" => self.has_map_in_data = value == b"1",
            // An empty value takes back what came before: the header's own field counts.
            b"path" if value.is_empty() => self.path = None,
            b"linkpath" if value.is_empty() => self.link = None,
            b"size" | b"uid" | b"gid" | b"mtime" if value.is_empty() => {}
            b"path" => self.path = Some(path(value)?),
            b"linkpath" => self.link = Some(path(value)?),
            b"size" => self.size = Some(unsigned(value)?),
            b"uid" => self.uid = Some(unsigned(value)?),
            b"gid" => self.gid = Some(unsigned(value)?),
            b"mtime" => self.mtime = Some(time(value)?),
            _ => {}
        }
        Some(())
    }
}

/// Splits the first record off: key, value, rest.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(21).position(|b| *b == b' ')?;
    let len = usize::try_from(unsigned(bytes.get(..space)?)?).ok()?;
    let (whole, rest) = bytes.split_at_checked(len)?;
    let record = whole.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|b| *b == b'=')?;
    Some((record.get(..equals)?, record.get(equals + 1..)?, rest))
}

fn path(value: &[u8]) -> Option<Vec<u8>> {
    (!value.contains(&0)).then(|| value.to_vec())
}

/// Decimal digits.
pub(super) fn unsigned(value: &[u8]) -> Option<u64> {
    if value.is_empty() {
        return None;
    }
    value.iter().try_fold(0u64, |n, b| match b {
        b'0'..=b'9' => n.checked_mul(10)?.checked_add(u64::from(b - b'0')),
        _ => None,
    })
}

/// `OFFSET,LENGTH,OFFSET,LENGTH...`
fn sparse_list(value: &[u8]) -> Option<Vec<Segment>> {
    let mut numbers = value.split(|b| *b == b',');
    let mut map = Vec::new();
    while let Some(offset) = numbers.next() {
        if offset.is_empty() && map.is_empty() {
            break;
        }
        let segment = Segment { offset: unsigned(offset)?, len: unsigned(numbers.next()?)? };
        segment.offset.checked_add(segment.len)?;
        map.push(segment);
    }
    Some(map)
}

/// Seconds with a decimal fraction, maybe negative: -1.2 is 0.8 s after second -2.
fn time(value: &[u8]) -> Option<Time> {
    let (is_negative, value) = match value.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, value),
    };
    let mut parts = value.splitn(2, |b| *b == b'.');
    let whole = i64::try_from(unsigned(parts.next()?)?).ok()?;
    let mut nanos = 0u32;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    for place in 0..9 {
        nanos = nanos * 10 + fraction.get(place).map_or(0, |b| u32::from(b - b'0'));
    }
    Some(match (is_negative, nanos) {
        (false, _) => Time { secs: whole, nanos },
        (true, 0) => Time { secs: -whole, nanos: 0 },
        (true, _) => Time { secs: (-whole).checked_sub(1)?, nanos: 1_000_000_000 - nanos },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_have_positive_nanoseconds() {
        for (text, secs, nanos) in [
            ("0", 0, 0),
            ("1.5", 1, 500_000_000),
            ("-1.2", -2, 800_000_000),
            ("-0.000000001", -1, 999_999_999),
            ("-3", -3, 0),
            ("7.1234567899", 7, 123_456_789),
            ("9.", 9, 0),
        ] {
            assert_eq!(time(text.as_bytes()), Some(Time { secs, nanos }), "{text}");
        }
        for bad in ["", "x", "1.x", "--1", "99999999999999999999"] {
            assert_eq!(time(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn records_are_bounded_by_their_length() {
        assert_eq!(record(b"6 a=bc\n"), None);
        assert_eq!(record(b"7 a=bc\nx"), Some((&b"a"[..], &b"bc"[..], &b"x"[..])));
        for bad in [&b""[..], b"7", b"7 ", b"99 a=b\n", b"0 a=b\n", b"6 abc\n", b"18446744073709551615 a=b\n"] {
            assert_eq!(record(bad), None);
        }
        // Values may hold newlines and NULs.
        let pax = Pax::parse(b"29 SCHILY.xattr.user.a=x\n\0=y\n", 0).unwrap();
        assert_eq!(pax.xattrs, [(b"user.a".to_vec(), b"x\n\0=y".to_vec())]);
        assert!(Pax::parse(b"12 path=a\0b\n", 0).is_err());
    }
}
