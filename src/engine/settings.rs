// SPDX-License-Identifier: MIT OR Apache-2.0
//! What can be said about a mount, by flags or by configuration: the values of `mount`'s options and their texts.
//!
//! Pure. `None` and empty lists mean "not said here"; [`Settings::over`] puts a later source over an earlier one.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::model::IoMode;
use crate::model::ids::{IdMap, IdRange};

use super::spec::MountSpec;
use super::{EngineError, Result};

/// How long a busy mount is served after SIGTERM, unless said otherwise.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// `--owner`: who the files of the mount belong to, as it shows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The caller.
    Me,
    /// These ids.
    Ids {
        /// User id.
        uid: u32,
        /// Group id.
        gid: u32,
    },
}

/// Everything that may be said about a mount.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The store.
    pub root: Option<PathBuf>,
    /// Least important messages that are logged.
    pub log_level: Option<log::LevelFilter>,
    /// The container's name.
    pub name: Option<String>,
    /// Where the upper is kept.
    pub upper: Option<PathBuf>,
    /// Volumes, binds and tmpfs, in the order given.
    pub mounts: Vec<MountSpec>,
    /// Refuse writes to the root.
    pub read_only: Option<bool>,
    /// Discard the container when it is unmounted.
    pub rm: Option<bool>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Who owns everything.
    pub owner: Option<Owner>,
    /// How user ids are shown.
    pub uidmap: Vec<IdRange>,
    /// How group ids are shown.
    pub gidmap: Vec<IdRange>,
    /// How long a busy mount is served after SIGTERM.
    pub stop_timeout: Option<Duration>,
    /// Let other users in.
    pub allow_other: Option<bool>,
    /// Who reads and writes contents.
    pub io: Option<IoMode>,
    /// Lift nosuid.
    pub suid: Option<bool>,
    /// Lift nodev.
    pub dev: Option<bool>,
    /// Stay in front.
    pub foreground: Option<bool>,
}

impl Settings {
    /// These settings over `earlier` ones: the later value wins, lists add.
    pub fn over(self, earlier: Settings) -> Settings {
        let mut labels = earlier.labels;
        labels.extend(self.labels);
        Settings {
            root: self.root.or(earlier.root),
            log_level: self.log_level.or(earlier.log_level),
            name: self.name.or(earlier.name),
            upper: self.upper.or(earlier.upper),
            mounts: earlier.mounts.into_iter().chain(self.mounts).collect(),
            read_only: self.read_only.or(earlier.read_only),
            rm: self.rm.or(earlier.rm),
            labels,
            owner: self.owner.or(earlier.owner),
            uidmap: earlier.uidmap.into_iter().chain(self.uidmap).collect(),
            gidmap: earlier.gidmap.into_iter().chain(self.gidmap).collect(),
            stop_timeout: self.stop_timeout.or(earlier.stop_timeout),
            allow_other: self.allow_other.or(earlier.allow_other),
            io: self.io.or(earlier.io),
            suid: self.suid.or(earlier.suid),
            dev: self.dev.or(earlier.dev),
            foreground: self.foreground.or(earlier.foreground),
        }
    }

    /// Everything that is said here, by the keys of the configuration files: one line per value of a list.
    pub fn entries(&self) -> Vec<(&'static str, String)> {
        // Taken apart, so that nobody forgets a new one here.
        let Settings {
            root,
            log_level,
            name,
            upper,
            mounts,
            read_only,
            rm,
            labels,
            owner,
            uidmap,
            gidmap,
            stop_timeout,
            allow_other,
            io,
            suid,
            dev,
            foreground,
        } = self;
        let mut entries = Vec::new();
        let mut say = |key: &'static str, value: Option<String>| entries.extend(value.map(|value| (key, value)));
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        let flag = |flag: &Option<bool>| flag.map(|flag| flag.to_string());
        say("root", path(root));
        say("log-level", log_level.map(|level| level.to_string().to_lowercase()));
        say("name", name.clone());
        say("upper", path(upper));
        for mount in mounts {
            say("mount", serde_json::to_string(mount).ok());
        }
        say("read-only", flag(read_only));
        say("rm", flag(rm));
        for (key, value) in labels {
            say("label", Some(format!("{key}={value}")));
        }
        say(
            "owner",
            owner.map(|owner| match owner {
                Owner::Me => "me".to_owned(),
                Owner::Ids { uid, gid } => format!("{uid}:{gid}"),
            }),
        );
        for (key, ranges) in [("uidmap", uidmap), ("gidmap", gidmap)] {
            for range in ranges {
                say(key, Some(format!("{}:{}:{}", range.inner, range.outer, range.count)));
            }
        }
        say("stop-timeout", stop_timeout.map(|time| format!("{}s", time.as_secs_f64())));
        say("allow-other", flag(allow_other));
        say("io", io.map(|io| io.word().to_owned()));
        say("suid", flag(suid));
        say("dev", flag(dev));
        say("foreground", flag(foreground));
        entries
    }

    /// Do the values of a key add up, rather than the later one win?
    pub fn is_list(key: &str) -> bool {
        ["mount", "label", "uidmap", "gidmap"].contains(&key)
    }

    /// The id maps of these settings for a caller with these ids: users, then groups.
    ///
    /// A single one of `--uidmap` and `--gidmap` speaks for both, as with podman.
    pub fn id_maps(&self, caller: (u32, u32)) -> Result<(IdMap, IdMap)> {
        match (self.owner, self.uidmap.is_empty() && self.gidmap.is_empty()) {
            (Some(_), false) => Err(EngineError::usage("--owner cannot be used with --uidmap or --gidmap")),
            (Some(Owner::Me), true) => Ok((IdMap::Fixed(caller.0), IdMap::Fixed(caller.1))),
            (Some(Owner::Ids { uid, gid }), true) => Ok((IdMap::Fixed(uid), IdMap::Fixed(gid))),
            (None, true) => Ok((IdMap::Identity, IdMap::Identity)),
            (None, false) => {
                let pick = |own: &[IdRange], other: &[IdRange]| {
                    IdMap::Ranges(if own.is_empty() { other.to_vec() } else { own.to_vec() })
                };
                check_ranges(&self.uidmap)?;
                check_ranges(&self.gidmap)?;
                Ok((pick(&self.uidmap, &self.gidmap), pick(&self.gidmap, &self.uidmap)))
            }
        }
    }
}

/// Ranges that overlap on either side would make the map ambiguous.
fn check_ranges(ranges: &[IdRange]) -> Result<()> {
    let is_overlapping = |a: (u32, u32), b: (u32, u32)| {
        u64::from(a.0) < u64::from(b.0) + u64::from(b.1) && u64::from(b.0) < u64::from(a.0) + u64::from(a.1)
    };
    for (index, a) in ranges.iter().enumerate() {
        for b in ranges.iter().skip(index + 1) {
            if is_overlapping((a.inner, a.count), (b.inner, b.count))
                || is_overlapping((a.outer, a.count), (b.outer, b.count))
            {
                let text = |r: &IdRange| format!("{}:{}:{}", r.inner, r.outer, r.count);
                return Err(EngineError::usage(format!("the id ranges {} and {} overlap", text(a), text(b))));
            }
        }
    }
    Ok(())
}

/// Parses `UID[:GID]` or `me`. Without a group, the group has the user's number.
pub fn parse_owner(text: &str) -> Result<Owner> {
    let bad = || EngineError::usage(format!("invalid owner '{text}': write UID, UID:GID or me"));
    if text == "me" {
        return Ok(Owner::Me);
    }
    let (uid, gid) = text.split_once(':').unwrap_or((text, text));
    // 2^32 - 1 means "no id" to chown(2).
    let id = |t: &str| parse_number(t).filter(|id| *id != u32::MAX);
    Ok(Owner::Ids { uid: id(uid).ok_or_else(bad)?, gid: id(gid).ok_or_else(bad)? })
}

/// Parses `C:H:N`: N ids from C in the image are shown from H on.
pub fn parse_id_range(text: &str) -> Result<IdRange> {
    let bad = || EngineError::usage(format!("invalid id map '{text}': write C:H:N (image id, shown id, how many)"));
    let numbers: Vec<u32> = text.split(':').map(parse_number).collect::<Option<_>>().ok_or_else(bad)?;
    match numbers.as_slice() {
        [inner, outer, count]
            if *count > 0 && inner.checked_add(*count).is_some() && outer.checked_add(*count).is_some() =>
        {
            Ok(IdRange { inner: *inner, outer: *outer, count: *count })
        }
        _ => Err(bad()),
    }
}

fn parse_number(text: &str) -> Option<u32> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// Parses a time: `10s`, `500ms`, `2m`, `1h`, or plain seconds.
pub fn parse_duration(text: &str) -> Result<Duration> {
    let bad = || EngineError::usage(format!("invalid time '{text}': write 10s, 500ms, 2m or 1h"));
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at_checked(end).ok_or_else(bad)?;
    let number: u64 = digits.parse().map_err(|_| bad())?;
    let millis = match unit {
        "ms" => Some(number),
        "" | "s" => number.checked_mul(1000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        _ => None,
    };
    millis.map(Duration::from_millis).ok_or_else(bad)
}

/// Parses `KEY[=VALUE]`.
pub fn parse_label(text: &str) -> Result<(String, String)> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    if key.is_empty() {
        return Err(EngineError::usage(format!("invalid label '{text}': write KEY=VALUE")));
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// Takes one comma-separated list of `-o`: `suid`, `dev` and their opposites.
pub fn add_options(settings: &mut Settings, text: &str) -> Result<()> {
    for option in text.split(',').filter(|o| !o.is_empty()) {
        match option {
            "suid" => settings.suid = Some(true),
            "nosuid" => settings.suid = Some(false),
            "dev" => settings.dev = Some(true),
            "nodev" => settings.dev = Some(false),
            "allow_other" => settings.allow_other = Some(true),
            "ro" => settings.read_only = Some(true),
            "rw" => settings.read_only = Some(false),
            _ => {
                return Err(EngineError::usage(format!(
                    "unknown mount option '{option}' (suid, nosuid, dev, nodev, ro, rw, allow_other)"
                )));
            }
        }
    }
    Ok(())
}

/// Parses who reads and writes contents.
pub fn parse_io(text: &str) -> Result<IoMode> {
    IoMode::parse(text)
        .ok_or_else(|| EngineError::usage(format!("invalid io '{text}': write auto, passthrough or cached")))
}

/// Parses a log level: error, warn, info, debug, trace or off.
pub fn parse_log_level(text: &str) -> Result<log::LevelFilter> {
    text.parse()
        .map_err(|_| EngineError::usage(format!("invalid log level '{text}': write error, warn, info, debug or trace")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_and_ranges() {
        assert_eq!(parse_owner("me").unwrap(), Owner::Me);
        assert_eq!(parse_owner("5").unwrap(), Owner::Ids { uid: 5, gid: 5 });
        assert_eq!(parse_owner("5:6").unwrap(), Owner::Ids { uid: 5, gid: 6 });
        for bad in ["", "you", "5:", ":6", "-1", "+1", "4294967295", "4294967296", "1:2:3"] {
            assert!(parse_owner(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_id_range("0:1000:1").unwrap(), IdRange { inner: 0, outer: 1000, count: 1 });
        for bad in ["", "0:1", "0:1:0", "0:4294967295:2", "a:b:c", "0:1:2:3"] {
            assert!(parse_id_range(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times() {
        for (text, millis) in [("10s", 10_000), ("10", 10_000), ("500ms", 500), ("2m", 120_000), ("1h", 3_600_000)] {
            assert_eq!(parse_duration(text).unwrap(), Duration::from_millis(millis));
        }
        for bad in ["", "s", "1d", "-1s", "1.5s", "99999999999999999999s", "18446744073709551615h"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn maps_follow_the_flags() {
        let me = Settings { owner: Some(Owner::Me), ..Settings::default() };
        assert_eq!(me.id_maps((7, 8)).unwrap(), (IdMap::Fixed(7), IdMap::Fixed(8)));
        let range = parse_id_range("0:1000:1").unwrap();
        let mapped = Settings { uidmap: vec![range], ..Settings::default() };
        assert_eq!(mapped.id_maps((7, 8)).unwrap(), (IdMap::Ranges(vec![range]), IdMap::Ranges(vec![range])));
        let both = Settings { owner: Some(Owner::Me), ..mapped };
        assert_eq!(both.id_maps((7, 8)).unwrap_err().class(), super::super::Class::Usage);
        let overlap = Settings { uidmap: vec![range, parse_id_range("5:1000:1").unwrap()], ..Settings::default() };
        assert!(overlap.id_maps((7, 8)).is_err());
    }

    #[test]
    fn later_settings_win_and_lists_add() {
        let mount = |t: &str| super::super::spec::parse_volume(t).unwrap();
        let labels = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        let earlier = Settings {
            name: Some("a".into()),
            rm: Some(true),
            mounts: vec![mount("a:/a")],
            labels: labels(&[("x", "1"), ("y", "1")]),
            ..Settings::default()
        };
        let later = Settings {
            name: Some("b".into()),
            mounts: vec![mount("b:/b")],
            labels: labels(&[("y", "2")]),
            ..Settings::default()
        };
        let merged = later.over(earlier);
        assert_eq!(merged.name.as_deref(), Some("b"));
        assert_eq!(merged.rm, Some(true));
        assert_eq!(merged.mounts.len(), 2);
        assert_eq!(merged.labels, labels(&[("x", "1"), ("y", "2")]));
    }
}
