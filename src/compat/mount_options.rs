// SPDX-License-Identifier: MIT OR Apache-2.0
//! The arguments of a mount program, as podman, buildah, dockerd, containerd and mount(8) give them. Pure.
//!
//! Commas separate options, also doubled and trailing ones; `\,` is a comma, and between quotes after `=` all are.
//! Colons separate lowers; `\:` is a colon. What is known but means nothing here is taken in silence, what is unknown is
//! told and ignored: clients count on it.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use crate::model::IoMode;
use crate::model::ids::{IdMap, IdRange};

/// What the arguments say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// `--version`.
    Version,
    /// `--help`.
    Help,
    /// Mount.
    Mount(Box<OverlayOptions>),
}

/// Where permissions live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Permissions {
    /// Wherever the host can hold them.
    #[default]
    Host,
    /// In `user.containers.override_stat` (`xattr_permissions=2`).
    Override,
    /// All files belong to one (`squash_to_uid`, `squash_to_root`).
    Squashed,
}

/// A mount of layers, in the words of overlayfs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OverlayOptions {
    /// Lowers, top first.
    pub lowers: Vec<PathBuf>,
    /// The upper.
    pub upper: Option<PathBuf>,
    /// Its work directory.
    pub work: Option<PathBuf>,
    /// Where.
    pub target: PathBuf,
    /// How user ids are shown.
    pub uids: IdMap,
    /// How group ids are shown.
    pub gids: IdMap,
    /// Where permissions live.
    pub permissions: Permissions,
    /// Refuse writes.
    pub is_read_only: bool,
    /// Do not sync.
    pub is_volatile: bool,
    /// Honour set-id bits.
    pub no_suid: bool,
    /// Honour device nodes.
    pub is_dev: bool,
    /// Who reads and writes contents.
    pub io: IoMode,
    /// Stay in front.
    pub is_foreground: bool,
    /// Options that nobody knows.
    pub unknown: Vec<String>,
}

/// Why the arguments make no mount.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// `-o` at the end.
    #[error("the option -o needs a value")]
    NoValue,
    /// No mountpoint, or too many words.
    #[error("one mountpoint is needed (usage: -o lowerdir=TOP:..:BOTTOM[,upperdir=U,workdir=W] MOUNTPOINT)")]
    Target,
    /// No lowers.
    #[error("no lowerdir is given")]
    NoLower,
    /// An upper without work, or the reverse.
    #[error("upperdir and workdir are needed together")]
    Work,
    /// A value that cannot be read.
    #[error("invalid value for {0}: {1}")]
    Value(String, String),
}

/// Options that are as they should be anyway, or that mean nothing to this implementation.
const IN_SILENCE: &[&str] = &[
    "rw",
    "nodev",
    "suid",
    "exec",
    "noexec",
    "atime",
    "noatime",
    "relatime",
    "norelatime",
    "lazytime",
    "default_permissions",
    "allow_other",
    "allow_root",
    "sync",
    "async",
    "dirsync",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "_netdev",
    "defaults",
    "fsync",
    "threaded",
    "noacl",
    "noxattr",
    "static_nlink",
    "redirect_dir",
    "timeout",
    "writeback",
    "context",
    "private",
    "rprivate",
    "metacopy",
    "index",
    "userxattr",
    "xino",
    "nfs_export",
    "max_idle_threads",
    "plugins",
    "fsname",
    "subtype",
    "nonempty",
    "noxattrs",
    "ino32_t",
    "fast_ino",
    "casefold",
    "clone_fd",
    "auto_unmount",
    "x-gvfs-hide",
];

/// Reads the arguments after the program's name.
pub fn parse(args: &[OsString]) -> Result<Asked, OptionError> {
    let mut options = OverlayOptions::default();
    let mut words: Vec<&OsStr> = Vec::new();
    let mut rest = args.iter();
    let mut is_over = false;
    while let Some(arg) = rest.next() {
        match arg.as_bytes() {
            _ if is_over => words.push(arg),
            b"--" => is_over = true,
            b"--version" | b"-V" => return Ok(Asked::Version),
            b"--help" | b"-h" => return Ok(Asked::Help),
            b"-f" => options.is_foreground = true,
            b"-o" => take_list(&mut options, rest.next().ok_or(OptionError::NoValue)?.as_bytes())?,
            [b'-', b'o', list @ ..] => take_list(&mut options, list)?,
            [b'-', _, ..] => options.unknown.push(arg.to_string_lossy().into_owned()),
            _ => words.push(arg),
        }
    }
    options.target = match words.as_slice() {
        [target] | [_, target] => PathBuf::from(target),
        _ => return Err(OptionError::Target),
    };
    match (&options.upper, &options.work, options.lowers.is_empty()) {
        (_, _, true) => Err(OptionError::NoLower),
        (Some(_), None, _) | (None, Some(_), _) => Err(OptionError::Work),
        _ => Ok(Asked::Mount(Box::new(options))),
    }
}

fn take_list(options: &mut OverlayOptions, list: &[u8]) -> Result<(), OptionError> {
    for option in split_options(list) {
        if !option.is_empty() {
            take(options, &option)?;
        }
    }
    Ok(())
}

/// Splits at commas. `\,` becomes a comma; other escapes stay, they are the value's business. Quotes open only after
/// `=`, and are dropped.
fn split_options(list: &[u8]) -> Vec<Vec<u8>> {
    let mut options = Vec::new();
    let mut option = Vec::new();
    let mut is_quoted = false;
    let mut bytes = list.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' if bytes.peek() == Some(&b',') => {
                bytes.next();
                option.push(b',');
            }
            b'\\' => {
                option.push(byte);
                option.extend(bytes.next());
            }
            b'"' if is_quoted => is_quoted = false,
            b'"' if option.last() == Some(&b'=') => is_quoted = true,
            b',' if !is_quoted => options.push(std::mem::take(&mut option)),
            _ => option.push(byte),
        }
    }
    options.push(option);
    options
}

fn take(options: &mut OverlayOptions, option: &[u8]) -> Result<(), OptionError> {
    let mut parts = option.splitn(2, |b| *b == b'=');
    let key = String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    let value = parts.next();
    let text = String::from_utf8_lossy(value.unwrap_or_default()).into_owned();
    let bad = || OptionError::Value(key.clone(), text.clone());
    match (key.as_str(), value) {
        ("lowerdir", Some(value)) => options.lowers = split_lowers(value),
        ("upperdir", Some(value)) => options.upper = Some(path(value)),
        ("workdir", Some(value)) => options.work = Some(path(value)),
        ("uidmapping", Some(_)) => options.uids = parse_map(&text).ok_or_else(bad)?,
        ("gidmapping", Some(_)) => options.gids = parse_map(&text).ok_or_else(bad)?,
        ("squash_to_uid", Some(_)) => {
            options.uids = IdMap::Fixed(text.parse().map_err(|_| bad())?);
            options.permissions = Permissions::Squashed;
        }
        ("squash_to_gid", Some(_)) => {
            options.gids = IdMap::Fixed(text.parse().map_err(|_| bad())?);
            options.permissions = Permissions::Squashed;
        }
        ("squash_to_root", _) => {
            options.uids = IdMap::Fixed(0);
            options.gids = IdMap::Fixed(0);
            options.permissions = Permissions::Squashed;
        }
        ("xattr_permissions", Some(_)) => match text.as_str() {
            "0" => {}
            "1" | "2" => options.permissions = Permissions::Override,
            _ => return Err(bad()),
        },
        ("ro", None) => options.is_read_only = true,
        ("rw", None) => options.is_read_only = false,
        ("volatile", _) => options.is_volatile = true,
        ("fsync", Some(b"0")) => options.is_volatile = true,
        ("io", Some(_)) => options.io = IoMode::parse(&text).ok_or_else(bad)?,
        ("nosuid", None) => options.no_suid = true,
        ("dev", None) => options.is_dev = true,
        _ if IN_SILENCE.contains(&key.as_str()) => {}
        _ => options.unknown.push(String::from_utf8_lossy(option).into_owned()),
    }
    Ok(())
}

/// Splits at colons that are not escaped; empty parts (a trailing colon) are no lowers.
fn split_lowers(value: &[u8]) -> Vec<PathBuf> {
    let mut lowers = Vec::new();
    let mut lower = Vec::new();
    let mut bytes = value.iter().copied();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => lower.extend(bytes.next()),
            b':' => lowers.push(std::mem::take(&mut lower)),
            _ => lower.push(byte),
        }
    }
    lowers.push(lower);
    lowers.into_iter().filter(|l| !l.is_empty()).map(|l| PathBuf::from(OsString::from_vec(l))).collect()
}

/// A path in which a backslash escapes the next byte.
fn path(value: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(value.len());
    let mut bytes = value.iter().copied();
    while let Some(byte) = bytes.next() {
        if byte == b'\\' { out.extend(bytes.next()) } else { out.push(byte) }
    }
    PathBuf::from(OsString::from_vec(out))
}

/// Triples ID-on-disk:ID-shown:count, with a leading colon or without.
fn parse_map(text: &str) -> Option<IdMap> {
    let numbers: Vec<u32> = text.split(':').filter(|t| !t.is_empty()).map(|t| t.parse().ok()).collect::<Option<_>>()?;
    if numbers.is_empty() || !numbers.len().is_multiple_of(3) {
        return None;
    }
    let range = |triple: &[u32]| match triple {
        [inner, outer, count] => Some(IdRange { inner: *inner, outer: *outer, count: *count }),
        _ => None,
    };
    Some(IdMap::Ranges(numbers.chunks(3).map(range).collect::<Option<_>>()?))
}

/// For the fuzz target: lines are arguments; they make a mount with lowers, or are refused.
///
/// # Panics
/// When a mount has no lowers.
pub fn fuzz(data: &[u8]) {
    let args: Vec<OsString> = data.split(|b| *b == b'\n').map(|line| OsStr::from_bytes(line).to_owned()).collect();
    if let Ok(Asked::Mount(options)) = parse(&args) {
        assert!(!options.lowers.is_empty(), "a mount without lowers");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse_words(words: &[&str]) -> Result<Asked, OptionError> {
        parse(&words.iter().map(OsString::from).collect::<Vec<_>>())
    }

    fn options(words: &[&str]) -> OverlayOptions {
        match parse_words(words) {
            Ok(Asked::Mount(options)) => *options,
            other => panic!("{other:?}"),
        }
    }

    fn paths(texts: &[&str]) -> Vec<PathBuf> {
        texts.iter().map(PathBuf::from).collect()
    }

    #[test]
    fn podman_and_buildah() {
        let read_write = options(&["-o", "lowerdir=l/A:l/B,upperdir=I/diff,workdir=I/work,,volatile", "I/merged"]);
        assert_eq!(read_write.lowers, paths(&["l/A", "l/B"]));
        assert_eq!((read_write.upper, read_write.work), (Some("I/diff".into()), Some("I/work".into())));
        assert!(read_write.is_volatile && read_write.unknown.is_empty());
        let trailing = options(&["-o", "lowerdir=l/A,upperdir=u,workdir=w,", "m"]);
        assert_eq!(trailing.target, PathBuf::from("m"));
        let image = options(&["-o", "lowerdir=I/diff:l/A", "m"]);
        assert!(image.upper.is_none());
        let quoted = options(&["-o", "lowerdir=a,context=\"a:b,c\",private,nodev,fsync=0,noxattr=1", "m"]);
        assert_eq!(quoted.unknown, Vec::<String>::new());
    }

    #[test]
    fn mount_and_containerd_put_options_last_and_in_pieces() {
        let mounted = options(&["overlay", "/t", "-o", "workdir=w,upperdir=u", "-o", "lowerdir=l,dev,suid"]);
        assert_eq!(mounted.target, PathBuf::from("/t"));
        assert_eq!(mounted.lowers, paths(&["l"]));
        assert!(mounted.is_dev && !mounted.no_suid);
        assert_eq!(options(&["-olowerdir=x", "--", "-m"]).target, PathBuf::from("-m"));
    }

    #[test]
    fn escapes() {
        let escaped = options(&["-o", r"lowerdir=a\:b:c\,d:e\\f,upperdir=u\:1,workdir=w\,2", "m"]);
        assert_eq!(escaped.lowers, paths(&["a:b", "c,d", r"e\f"]));
        assert_eq!((escaped.upper, escaped.work), (Some("u:1".into()), Some("w,2".into())));
    }

    #[test]
    fn maps() {
        let mapped = options(&["-o", "lowerdir=l,uidmapping=:0:1:1001:1001:0:1,gidmapping=0:5:1", "m"]);
        let range = |inner, outer, count| IdRange { inner, outer, count };
        assert_eq!(mapped.uids, IdMap::Ranges(vec![range(0, 1, 1001), range(1001, 0, 1)]));
        assert_eq!(mapped.gids, IdMap::Ranges(vec![range(0, 5, 1)]));
        let squashed = options(&["-o", "lowerdir=l,squash_to_uid=3,squash_to_gid=4", "m"]);
        assert_eq!((squashed.uids, squashed.permissions), (IdMap::Fixed(3), Permissions::Squashed));
        assert_eq!(options(&["-o", "lowerdir=l,xattr_permissions=2", "m"]).permissions, Permissions::Override);
    }

    #[test]
    fn unknown_words_are_kept_for_the_notice() {
        let strange = options(&["-o", "lowerdir=l,strange=1,odd", "--what", "m"]);
        assert_eq!(strange.unknown, ["strange=1", "odd", "--what"]);
    }

    #[test]
    fn errors() {
        assert_eq!(parse_words(&["--version"]), Ok(Asked::Version));
        for (words, part) in [
            (&["-o"][..], "needs a value"),
            (&["-o", "lowerdir=l"], "one mountpoint"),
            (&["-o", "lowerdir=l", "a", "b", "c"], "one mountpoint"),
            (&["m"], "no lowerdir"),
            (&["-o", "lowerdir=:", "m"], "no lowerdir"),
            (&["-o", "lowerdir=l,upperdir=u", "m"], "needed together"),
            (&["-o", "lowerdir=l,workdir=u", "m"], "needed together"),
            (&["-o", "lowerdir=l,uidmapping=0:1", "m"], "invalid value for uidmapping"),
            (&["-o", "lowerdir=l,squash_to_uid=x", "m"], "invalid value for squash_to_uid"),
        ] {
            let error = parse_words(words).expect_err("").to_string();
            assert!(error.contains(part), "{words:?}: {error}");
        }
    }

    #[test]
    fn seeds_are_replayed() {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/mount_program");
        let mut count = 0;
        for entry in std::fs::read_dir(dir).unwrap() {
            fuzz(&std::fs::read(entry.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count > 0);
    }

    proptest! {
        #[test]
        fn parsing_never_panics(words in proptest::collection::vec("(-o|--)?[a-z=:,\\\\\"]{0,12}(lowerdir=)?", 0..5)) {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            if let Ok(Asked::Mount(options)) = parse_words(&words) {
                prop_assert!(!options.lowers.is_empty());
            }
        }
    }
}
