// SPDX-License-Identifier: MIT OR Apache-2.0
//! Positions in a directory listing.
//!
//! A position depends on the name alone, so a listing can be continued after changes, in another handle, and by
//! another process. Listings come in the order of (hash, name); see `ARCHITECTURE.md`, "Right from the first day".
//! The hash is part of the index format: changing it needs a new format version.

use std::hash::Hasher;

use siphasher::sip::SipHasher13;

use super::Name;

/// Bits of a cookie that number names of equal hash within one directory.
const ORDINAL_BITS: u32 = 3;
/// Cookies below this value are free for the start of the listing, `.` and `..`.
const FIRST_HASH: u64 = 2;

/// A position in a listing: "after this entry". 63 bits, never zero; zero means the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cookie(pub u64);

impl Cookie {
    /// Before the first entry.
    pub const START: Cookie = Cookie(0);
    /// After `.`.
    pub const DOT: Cookie = Cookie(1);
    /// After `..`, before the first name.
    pub const DOTDOT: Cookie = Cookie(2);

    /// The cookie of the `ordinal`th name (from 0) among those of one directory that share `hash`.
    ///
    /// Ordinals above 7 share the last cookie: eight collisions of 60 bits in one directory do not happen by chance.
    pub fn new(hash: NameHash, ordinal: u32) -> Self {
        Cookie((hash.0 << ORDINAL_BITS) | u64::from(ordinal.min((1 << ORDINAL_BITS) - 1)))
    }

    /// The hash of the name that this cookie stands for.
    pub fn hash(self) -> NameHash {
        NameHash(self.0 >> ORDINAL_BITS)
    }

    /// The number of the name among those of equal hash.
    pub fn ordinal(self) -> u32 {
        (self.0 & ((1 << ORDINAL_BITS) - 1)) as u32
    }
}

/// A 60-bit hash of a name (SipHash-1-3, key zero), at least 2: the major sort key of every listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NameHash(pub u64);

impl NameHash {
    /// The hash of `name`.
    pub fn of(name: Name<'_>) -> Self {
        let mut hasher = SipHasher13::new();
        hasher.write(name.bytes());
        NameHash((hasher.finish() >> (ORDINAL_BITS + 1)).max(FIRST_HASH))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_are_positive_and_after_the_dots() {
        let hash = NameHash::of(Name::new(b"a").unwrap());
        let cookie = Cookie::new(hash, 0);
        assert!(cookie > Cookie::DOTDOT && cookie.0 <= i64::MAX as u64);
        assert_eq!(cookie.hash(), hash);
        assert!(Cookie::new(hash, 1) > cookie);
        assert_eq!(Cookie::new(hash, 1).ordinal(), 1);
    }

    #[test]
    fn the_hash_is_part_of_the_format() {
        assert_eq!(NameHash::of(Name::new(b"etc").unwrap()).0, 66_464_806_796_607_229);
    }
}
