// SPDX-License-Identifier: MIT OR Apache-2.0
//! Small numbers with a meaning of their own, and the owners that a mount shows.

/// The number by which the kernel knows a node (`nodeid`). 1 is the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The root of the mount (`FUSE_ROOT_ID`).
    pub const ROOT: NodeId = NodeId(1);
}

/// The number of an open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HandleId(pub u64);

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Effective (filesystem) user id, as the mount shows ids.
    pub uid: u32,
    /// Effective (filesystem) group id, as the mount shows ids.
    pub gid: u32,
    /// Process id in the daemon's pid namespace; 0 when unknown.
    pub pid: u32,
}

/// The id shown for an id that a map does not cover (the kernel's `overflowuid`).
pub const OVERFLOW_ID: u32 = 65_534;

/// One range of an id map: `count` ids from `inner` (in the image) are shown from `outer` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct IdRange {
    /// First id as stored in layers and upper ("C" of `--uidmap C:H:N`).
    pub inner: u32,
    /// First id as the mount shows it ("H").
    pub outer: u32,
    /// How many ids ("N").
    pub count: u32,
}

/// How stored ids are shown, and shown ids are stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IdMap {
    /// Ids are shown as they are stored.
    #[default]
    Identity,
    /// Every file shows this id (`--owner`).
    Fixed(u32),
    /// Ids are shown through these ranges; others as [`OVERFLOW_ID`].
    Ranges(Vec<IdRange>),
}

impl IdMap {
    /// The id to show for a stored one.
    pub fn to_outer(&self, stored: u32) -> u32 {
        match self {
            IdMap::Identity => stored,
            IdMap::Fixed(id) => *id,
            IdMap::Ranges(ranges) => ranges
                .iter()
                .find(|r| stored >= r.inner && stored - r.inner < r.count)
                .map_or(OVERFLOW_ID, |r| r.outer.saturating_add(stored - r.inner)),
        }
    }

    /// The id to store for a shown one; `None` when the map has no place for it.
    ///
    /// A fixed map stores nothing: it answers `Some` only for its own id.
    pub fn to_inner(&self, shown: u32) -> Option<u32> {
        match self {
            IdMap::Identity => Some(shown),
            IdMap::Fixed(id) => (*id == shown).then_some(shown),
            IdMap::Ranges(ranges) => ranges
                .iter()
                .find(|r| shown >= r.outer && shown - r.outer < r.count)
                .and_then(|r| r.inner.checked_add(shown - r.outer)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_map_both_ways() {
        let map = IdMap::Ranges(vec![
            IdRange { inner: 0, outer: 1000, count: 1 },
            IdRange { inner: 1, outer: 100_000, count: 65_535 },
        ]);
        assert_eq!(map.to_outer(0), 1000);
        assert_eq!(map.to_outer(33), 100_032);
        assert_eq!(map.to_outer(70_000), OVERFLOW_ID);
        assert_eq!(map.to_inner(100_032), Some(33));
        assert_eq!(map.to_inner(0), None);
        assert_eq!(IdMap::Fixed(7).to_outer(0), 7);
        assert_eq!(IdMap::Fixed(7).to_inner(0), None);
    }
}
