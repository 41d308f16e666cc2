// SPDX-License-Identifier: MIT OR Apache-2.0
//! Policy as a pure function: how long the kernel may believe us, and how files are opened.
//!
//! A *private* branch changes only through this mount, so everything about it may be cached for ever: the kernel drops
//! what its own operations change. A *shared* branch (volume, bind) changes through other mounts and the host, so
//! names, attributes and absence are asked for each time, and cached data is dropped at every open.

use std::time::Duration;

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
    /// How long attributes may be believed.
    pub attr: Duration,
    /// How long the absence of a name may be believed.
    pub negative: Duration,
    /// Does cached data outlive an open?
    pub keeps_data: bool,
}

/// The caching of a branch. `has_number`: the node's id is its inode number; otherwise its attributes are asked for,
/// because an entry reply shows the id in place of the number.
pub fn caching(profile: Profile, has_number: bool) -> Caching {
    match profile {
        Profile::Private => Caching {
            entry: ENDLESS,
            attr: if has_number { ENDLESS } else { Duration::ZERO },
            negative: ENDLESS,
            keeps_data: true,
        },
        Profile::Shared => {
            Caching { entry: Duration::ZERO, attr: Duration::ZERO, negative: Duration::ZERO, keeps_data: false }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_branches_are_never_believed_and_private_ones_are() {
        for (profile, has_number, entry, attr) in [
            (Profile::Private, true, ENDLESS, ENDLESS),
            (Profile::Private, false, ENDLESS, Duration::ZERO),
            (Profile::Shared, true, Duration::ZERO, Duration::ZERO),
            (Profile::Shared, false, Duration::ZERO, Duration::ZERO),
        ] {
            let caching = caching(profile, has_number);
            assert_eq!((caching.entry, caching.attr), (entry, attr), "{profile:?} {has_number}");
            assert_eq!(caching.keeps_data, profile == Profile::Private);
            assert_eq!(caching.negative, entry);
        }
    }
}
