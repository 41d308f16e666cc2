// SPDX-License-Identifier: MIT OR Apache-2.0
//! Policy as a pure function: how long the kernel may believe us, and how files are opened.
//!
//! A *private* branch changes only through this mount, so everything about it may be cached for ever: the kernel drops
//! what its own operations change. A *shared* branch (volume, bind) changes through other mounts and the host, so
//! names, attributes and absence are asked for each time, and cached data is dropped at every open.

use std::time::Duration;

use crate::sys::FileId;
use crate::tree::node::Opens;

/// How long "for ever" is: the kernel counts in jiffies, so no largest value.
const ENDLESS: Duration = Duration::from_secs(365 * 24 * 3600);

/// Who may change a branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Only this mount.
    Private,
    /// Others too.
    Shared,
}

/// What the kernel may cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caching {
    /// How long a name may be believed.
    pub entry: Duration,
    /// How long the attributes of an entry reply may be believed.
    pub attr: Duration,
    /// How long the answer to GETATTR may be believed.
    pub getattr: Duration,
    /// How long the absence of a name may be believed.
    pub negative: Duration,
    /// Does cached data outlive an open?
    pub keeps_data: bool,
}

/// What is known of a node's attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attributes {
    /// They change by operations on this node alone.
    Settled,
    /// The same, but an entry reply would show the node's id in place of its inode number: GETATTR tells.
    Numbered,
    /// They change without the kernel's telling this node: the file has another number too, or may be mapped and
    /// written straight on its backing file.
    Unsettled,
}

/// The caching of a branch.
pub fn caching(profile: Profile, attributes: Attributes) -> Caching {
    match profile {
        Profile::Private => Caching {
            entry: ENDLESS,
            attr: if attributes == Attributes::Settled { ENDLESS } else { Duration::ZERO },
            getattr: if attributes == Attributes::Unsettled { Duration::ZERO } else { ENDLESS },
            negative: ENDLESS,
            keeps_data: true,
        },
        Profile::Shared => Caching {
            entry: Duration::ZERO,
            attr: Duration::ZERO,
            getattr: Duration::ZERO,
            negative: Duration::ZERO,
            keeps_data: false,
        },
    }
}

/// Smaller files of layers are opened cached: reading them is as fast, and their first change needs no new number.
pub const PASS_MIN: u64 = 64 * 1024;

/// An open of a regular file that is about to be answered.
#[derive(Clone, Copy, Debug)]
pub struct Opening {
    /// Can the kernel read and write the host's files by itself?
    pub can_pass: bool,
    /// The content lies in a layer: nobody may write there.
    pub is_in_layer: bool,
    /// It is opened for writing.
    pub writes: bool,
    /// Size of the content.
    pub size: u64,
    /// The host's file that holds the content; `None` where no single file does.
    pub file: Option<FileId>,
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Reads and writes come to us, through the kernel's cache.
    Cached,
    /// The kernel reads and writes the host's file, which it must be told first.
    Pass,
    /// The same, with the file that other handles of the node use already.
    Share,
    /// Not on this node: the kernel reads another file for those who have it open. The name must be looked up again,
    /// and lead to another node.
    Elsewhere,
}

/// The way to open a file, given how its node is open now. The kernel allows one way at a time for a node, and one
/// backing file; and no file of a layer is ever behind a handle that can write.
pub fn way(opening: &Opening, now: &Opens) -> Way {
    let is_writable_lower = opening.writes && opening.is_in_layer;
    match (now.backing, opening.file) {
        (Some(backing), Some(file)) if backing.file == file && !is_writable_lower => Way::Share,
        (Some(_), _) => Way::Elsewhere,
        (None, None) => Way::Cached,
        (None, Some(_)) => {
            let is_worth_it = !opening.is_in_layer || opening.size >= PASS_MIN;
            let passes = opening.can_pass && now.cached == 0 && is_worth_it && !is_writable_lower;
            if passes { Way::Pass } else { Way::Cached }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::node::Backing;

    #[test]
    fn shared_branches_are_never_believed_and_private_ones_are() {
        use Attributes::{Numbered, Settled, Unsettled};
        let zero = Duration::ZERO;
        for (profile, attributes, entry, attr, getattr) in [
            (Profile::Private, Settled, ENDLESS, ENDLESS, ENDLESS),
            (Profile::Private, Numbered, ENDLESS, zero, ENDLESS),
            (Profile::Private, Unsettled, ENDLESS, zero, zero),
            (Profile::Shared, Settled, zero, zero, zero),
            (Profile::Shared, Numbered, zero, zero, zero),
            (Profile::Shared, Unsettled, zero, zero, zero),
        ] {
            let caching = caching(profile, attributes);
            let got = (caching.entry, caching.attr, caching.getattr);
            assert_eq!(got, (entry, attr, getattr), "{profile:?} {attributes:?}");
            assert_eq!(caching.keeps_data, profile == Profile::Private);
            assert_eq!(caching.negative, entry);
        }
    }

    #[test]
    fn one_way_and_one_file_at_a_time_and_no_layer_behind_a_writer() {
        const LOWER: FileId = FileId { dev: 1, ino: 1 };
        const UPPER: FileId = FileId { dev: 1, ino: 2 };
        let passing = |file| Opens { cached: 0, backing: Some(Backing { number: 7, file, handles: 1 }) };
        let (closed, cached) = (Opens::default, || Opens { cached: 1, backing: None });
        let big = Opening { can_pass: true, is_in_layer: true, writes: false, size: PASS_MIN, file: Some(LOWER) };
        let small = Opening { size: PASS_MIN - 1, ..big };
        let upper = Opening { is_in_layer: false, size: 1, file: Some(UPPER), ..big };
        let writer = Opening { writes: true, ..upper };
        let inline = Opening { file: None, ..big };
        let unable = |opening| Opening { can_pass: false, ..opening };
        for (what, opening, now, expected) in [
            ("a big file of a layer", big, closed(), Way::Pass),
            ("a small one", small, closed(), Way::Cached),
            ("one of the upper", upper, closed(), Way::Pass),
            ("a writer", writer, closed(), Way::Pass),
            ("no descriptor", inline, closed(), Way::Cached),
            ("not able", unable(big), closed(), Way::Cached),
            ("not able, upper", unable(writer), closed(), Way::Cached),
            ("open cached", big, cached(), Way::Cached),
            ("open cached, upper", writer, cached(), Way::Cached),
            ("the same file", big, passing(LOWER), Way::Share),
            ("the same file, however small now", small, passing(LOWER), Way::Share),
            ("the same file of the upper", upper, passing(UPPER), Way::Share),
            ("a writer of the same file", writer, passing(UPPER), Way::Share),
            ("copied up under readers", writer, passing(LOWER), Way::Elsewhere),
            ("copied up under readers, read again", upper, passing(LOWER), Way::Elsewhere),
            ("no descriptor any more", inline, passing(LOWER), Way::Elsewhere),
            ("a writer never on a layer", Opening { writes: true, ..big }, closed(), Way::Cached),
            ("a writer never shares a layer", Opening { writes: true, ..big }, passing(LOWER), Way::Elsewhere),
        ] {
            assert_eq!(way(&opening, &now), expected, "{what}");
        }
    }
}
