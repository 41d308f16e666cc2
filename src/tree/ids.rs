// SPDX-License-Identifier: MIT OR Apache-2.0
//! Inode numbers: from where a file was born, so they are unique over layers and branches and stay over remounts.

use std::hash::Hasher;

use siphasher::sip::SipHasher13;

use crate::layer::Birth;

/// Where something was born: the key under which its node is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Number of the branch.
    pub branch: u32,
    /// 0 in the upper, else the number of the layer, 1 at the bottom.
    pub source: u32,
    /// Where in it; `dev` is 0 for the device of its root.
    pub birth: Birth,
}

/// Bits for the number within a source.
const LOW_BITS: u32 = 40;
/// Bits for the layer.
const SOURCE_BITS: u32 = 12;
/// Bits for the branch.
const BRANCH_BITS: u32 = 10;
/// Set in numbers that did not fit and are hashed.
const HASHED: u64 = 1 << 62;
/// Set in node ids that are not inode numbers.
pub const RESERVED: u64 = 1 << 63;

impl Key {
    /// The inode number to show. Numbers below 2 mean something else to FUSE and never come out.
    pub fn number(self) -> u64 {
        let Key { branch, source, birth } = self;
        let fits =
            birth.dev == 0 && birth.ino < 1 << LOW_BITS && source < 1 << SOURCE_BITS && branch < 1 << (BRANCH_BITS - 1);
        if fits {
            // The branch is counted from 1, so that no number is small.
            let high = (u64::from(branch) + 1) << SOURCE_BITS | u64::from(source);
            return (high << LOW_BITS | birth.ino) & !(HASHED | RESERVED);
        }
        let mut hasher = SipHasher13::new();
        hasher.write_u32(branch);
        hasher.write_u32(source);
        hasher.write_u64(birth.dev);
        hasher.write_u64(birth.ino);
        (hasher.finish() & !RESERVED) | HASHED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_differ_over_sources_and_branches() {
        let mut seen = std::collections::HashSet::new();
        for branch in 0..20 {
            for source in 0..20 {
                for ino in [0, 1, 2, 1 << 39, 1 << 45] {
                    for dev in [0, 7] {
                        let number = Key { branch, source, birth: Birth { dev, ino } }.number();
                        assert!(number > 1 && number < RESERVED);
                        assert!(seen.insert(number));
                    }
                }
            }
        }
    }
}
