// SPDX-License-Identifier: MIT OR Apache-2.0
//! What `-v`, `--mount` and `--tmpfs` mean: the grammar of Docker's storage flags, and nothing else.
//!
//! Pure: no file is looked at, so every error here is wrong usage. Docker's texts are kept where Docker has one,
//! because people search for them. Keys that Docker knows and mlfs has not built are refused by name, never ignored.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What stands at a target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "type")]
pub enum Source {
    /// A volume by name; made when missing, with these labels.
    Volume {
        /// Its name.
        name: String,
        /// Labels for a volume that is made now.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        labels: BTreeMap<String, String>,
    },
    /// A volume without a name that goes with the container.
    Anonymous {
        /// Labels for the volume.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        labels: BTreeMap<String, String>,
    },
    /// A file or directory of the host.
    Bind {
        /// The path as given: absolute, or relative to the current directory.
        path: String,
        /// Make a missing directory (`-v`) or refuse (`--mount type=bind`).
        create: CreateSource,
    },
    /// A tmpfs of its own.
    Tmpfs(TmpfsOptions),
}

/// What happens to a bind whose source is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CreateSource {
    /// A directory is made.
    Make,
    /// It is an error.
    Refuse,
}

/// The options of a tmpfs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TmpfsOptions {
    /// Size limit; the default is half of the memory.
    pub size: Option<TmpfsSize>,
    /// Mode of its root; 1777 by default.
    pub mode: Option<u32>,
    /// Owner of its root.
    pub uid: Option<u32>,
    /// Group of its root.
    pub gid: Option<u32>,
}

/// The size limit of a tmpfs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TmpfsSize {
    /// In bytes; 0 is no limit, as the kernel has it.
    Bytes(u64),
    /// In hundredths of the memory.
    Percent(u8),
}

/// One storage flag, understood.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountSpec {
    /// Where in the tree: absolute and cleaned, never `/`.
    pub target: String,
    /// What stands there.
    #[serde(flatten)]
    pub source: Source,
    /// Refuse writes.
    #[serde(default)]
    pub read_only: bool,
    /// Do not fill an empty volume from the image.
    #[serde(default)]
    pub no_copy: bool,
}

/// Why a storage flag is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// The text has not the form of a volume flag.
    #[error("invalid volume specification '{0}': {1}")]
    Volume(String, &'static str),
    /// A target that is not absolute.
    #[error("invalid mount path '{0}': mount path must be absolute")]
    Relative(String),
    /// The root as a target.
    #[error("invalid specification '{0}': destination can't be '/'")]
    Root(String),
    /// Two flags for one target.
    #[error("Duplicate mount point: {0}")]
    Duplicate(String),
    /// An unknown option, or two that exclude each other.
    #[error("invalid mode: {mode} (in '{spec}'{why})")]
    Mode {
        /// The option.
        mode: String,
        /// The whole flag.
        spec: String,
        /// Why, where there is more to say; begins with ": ".
        why: &'static str,
    },
    /// A name that is no volume name.
    #[error("\"{name}\" is not a volume name: names match [a-zA-Z0-9][a-zA-Z0-9_.-]*{hint}")]
    Name {
        /// The name.
        name: String,
        /// What to write for a path; begins with "; ".
        hint: String,
    },
    /// `--mount` with an unknown key.
    #[error("unexpected key '{0}' in '{1}'")]
    Key(String, String),
    /// `--mount` with a word that is no `key=value`.
    #[error("invalid field '{0}' must be a key=value pair")]
    Field(String),
    /// A value that the key does not take.
    #[error("invalid value for {0}: {1}")]
    Value(String, String),
    /// Keys of one type with another.
    #[error("cannot mix '{0}-*' options with mount type '{1}'")]
    Mix(&'static str, &'static str),
    /// No target.
    #[error("target is required")]
    NoTarget,
    /// A bind without a source.
    #[error("source is required for mount type 'bind'")]
    NoSource,
    /// A tmpfs with a source.
    #[error("invalid mount for '{0}': a tmpfs has no source")]
    TmpfsSource(String),
    /// An unknown type.
    #[error("invalid mount type: {0} (volume, bind or tmpfs)")]
    Type(String),
    /// Known to Docker, not built in mlfs.
    #[error("{0} is not built yet in mlfs")]
    NotBuilt(String),
    /// Quotes that do not match.
    #[error("invalid quotes in '{0}'")]
    Quotes(String),
}

/// Is `name` a name for volumes and containers: `[a-zA-Z0-9][a-zA-Z0-9_.-]*`, at most 255 bytes?
pub fn is_valid_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    name.len() <= 255
        && bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

/// Checks a volume name; where it looks like a path, the error hints at `./`.
pub fn volume_name(name: &str) -> Result<(), SpecError> {
    if is_valid_name(name) {
        return Ok(());
    }
    let hint = if name.contains('/') || name.starts_with('.') || name.starts_with('~') {
        format!("; for a path of the host write ./{}", name.trim_start_matches("~/"))
    } else {
        String::new()
    };
    Err(SpecError::Name { name: name.to_owned(), hint })
}

/// Cleans a target: absolute, no empty component, `.` or `..`; `/` itself is refused.
pub fn clean_target(target: &str) -> Result<String, SpecError> {
    if !target.starts_with('/') {
        return Err(SpecError::Relative(target.to_owned()));
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            _ => parts.push(part),
        }
    }
    if parts.is_empty() {
        return Err(SpecError::Root(target.to_owned()));
    }
    Ok(format!("/{}", parts.join("/")))
}

/// Does a source of `-v` name a path of the host (and not a volume)?
fn is_host_path(source: &str) -> bool {
    source.starts_with('/') || source == "." || source == ".." || source.starts_with("./") || source.starts_with("../")
}

/// Parses `-v/--volume SRC:DST[:opts]` or `DST`.
pub fn parse_volume(spec: &str) -> Result<MountSpec, SpecError> {
    let invalid = |why| SpecError::Volume(spec.to_owned(), why);
    if spec.contains('\0') {
        return Err(invalid("a NUL byte"));
    }
    let parts: Vec<&str> = spec.split(':').collect();
    if spec.is_empty() {
        return Err(invalid("it is empty; write SRC:DST[:opts] or DST"));
    }
    if parts.iter().any(|part| part.is_empty()) {
        return Err(invalid("empty section between colons"));
    }
    match parts.as_slice() {
        [target] => Ok(MountSpec {
            target: clean_target(target)?,
            source: Source::Anonymous { labels: BTreeMap::new() },
            read_only: false,
            no_copy: false,
        }),
        [source, target] => parse_source(spec, source, target, ""),
        [source, target, modes] => parse_source(spec, source, target, modes),
        _ => Err(invalid("too many colons; write SRC:DST[:opts]")),
    }
}

fn parse_source(spec: &str, source: &str, target: &str, modes: &str) -> Result<MountSpec, SpecError> {
    let is_bind = is_host_path(source);
    if modes.is_empty() && !target.starts_with('/') && source.starts_with('/') && is_mode_list(target) {
        return Err(SpecError::Volume(spec.to_owned(), "an anonymous volume takes no mode"));
    }
    if !is_bind {
        volume_name(source)?;
    }
    let target = clean_target(target)?;
    let mode = parse_modes(spec, modes, is_bind)?;
    let source = if is_bind {
        Source::Bind { path: source.to_owned(), create: CreateSource::Make }
    } else {
        Source::Volume { name: source.to_owned(), labels: BTreeMap::new() }
    };
    Ok(MountSpec { target, source, read_only: mode.read_only, no_copy: mode.no_copy })
}

fn is_mode_list(text: &str) -> bool {
    text.split(',').all(|mode| KNOWN_MODES.contains(&mode))
}

const KNOWN_MODES: [&str; 11] =
    ["ro", "rw", "z", "Z", "cached", "delegated", "consistent", "nocopy", "private", "rprivate", "readonly"];

struct Modes {
    read_only: bool,
    no_copy: bool,
}

fn parse_modes(spec: &str, modes: &str, is_bind: bool) -> Result<Modes, SpecError> {
    let mut out = Modes { read_only: false, no_copy: false };
    // One of each group: a second one of the same group contradicts or repeats.
    let mut seen: Vec<&str> = Vec::new();
    for mode in modes.split(',').filter(|_| !modes.is_empty()) {
        let bad = |why| SpecError::Mode { mode: mode.to_owned(), spec: spec.to_owned(), why };
        let group = match mode {
            "ro" | "rw" => "access",
            "z" | "Z" => "label",
            "cached" | "delegated" | "consistent" => "consistency",
            "nocopy" if is_bind => return Err(bad(": a bind is never filled from the image")),
            "nocopy" => "nocopy",
            "private" | "rprivate" if !is_bind => return Err(bad(": only a bind has a propagation")),
            "private" | "rprivate" => "propagation",
            "shared" | "rshared" | "slave" | "rslave" => {
                return Err(bad(": mlfs makes no kernel mounts, so mounts cannot propagate; use rprivate"));
            }
            "U" => return Err(bad(": changing the owners of the source is not built yet; use --owner")),
            "idmap" => return Err(bad(": id-mapped sources are not built yet; use --uidmap and --gidmap")),
            _ => return Err(bad("")),
        };
        if seen.contains(&group) {
            return Err(bad(": it repeats or contradicts another option"));
        }
        seen.push(group);
        out.read_only |= mode == "ro";
        out.no_copy |= mode == "nocopy";
    }
    Ok(out)
}

/// The types of `--mount`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Type {
    Volume,
    Bind,
    Tmpfs,
}

impl Type {
    fn word(self) -> &'static str {
        match self {
            Type::Volume => "volume",
            Type::Bind => "bind",
            Type::Tmpfs => "tmpfs",
        }
    }
}

/// The fields of one `--mount`, before they are judged together.
#[derive(Default)]
struct Fields {
    kind: Option<Type>,
    source: Option<String>,
    target: Option<String>,
    read_only: bool,
    no_copy: bool,
    labels: BTreeMap<String, String>,
    tmpfs: TmpfsOptions,
    /// Families of keys that were seen: "volume", "bind", "tmpfs".
    families: Vec<&'static str>,
}

/// Parses `--mount type=..,key=value,..`.
pub fn parse_mount(spec: &str) -> Result<MountSpec, SpecError> {
    from_fields(&split_csv(spec)?)
}

/// Judges the `key=value` fields of one `--mount` (or of one `[[mount]]` table of the configuration).
pub fn from_fields(texts: &[String]) -> Result<MountSpec, SpecError> {
    let mut fields = Fields::default();
    for field in texts {
        parse_field(&mut fields, field)?;
    }
    let kind = fields.kind.unwrap_or(Type::Volume);
    let target = match fields.target.as_deref() {
        None | Some("") => return Err(SpecError::NoTarget),
        Some(target) => clean_target(target)?,
    };
    for family in ["volume", "bind", "tmpfs"] {
        if family != kind.word() && fields.families.contains(&family) {
            return Err(SpecError::Mix(family, kind.word()));
        }
    }
    let source = match (kind, fields.source) {
        (Type::Volume, None) => Source::Anonymous { labels: fields.labels },
        (Type::Volume, Some(name)) => {
            volume_name(&name)?;
            Source::Volume { name, labels: fields.labels }
        }
        (Type::Bind, None) => return Err(SpecError::NoSource),
        (Type::Bind, Some(path)) if !is_host_path(&path) => {
            return Err(SpecError::Relative(path));
        }
        (Type::Bind, Some(path)) => Source::Bind { path, create: CreateSource::Refuse },
        (Type::Tmpfs, Some(_)) => return Err(SpecError::TmpfsSource(target)),
        (Type::Tmpfs, None) => Source::Tmpfs(fields.tmpfs),
    };
    Ok(MountSpec { target, source, read_only: fields.read_only, no_copy: fields.no_copy })
}

fn parse_field(fields: &mut Fields, field: &str) -> Result<(), SpecError> {
    let (raw_key, value) = match field.split_once('=') {
        Some((key, value)) => (key, Some(value)),
        None => (field, None),
    };
    let key = raw_key.to_ascii_lowercase();
    let value = match (key.as_str(), value) {
        ("readonly" | "ro" | "volume-nocopy" | "bind-nonrecursive", value) => value.unwrap_or("true"),
        (_, Some(value)) => value,
        (_, None) => return Err(SpecError::Field(field.to_owned())),
    };
    let invalid = || SpecError::Value(key.clone(), value.to_owned());
    match key.as_str() {
        "type" => {
            fields.kind = Some(match value.to_ascii_lowercase().as_str() {
                "volume" => Type::Volume,
                "bind" => Type::Bind,
                "tmpfs" => Type::Tmpfs,
                "image" => return Err(SpecError::NotBuilt("mount type 'image'".to_owned())),
                _ => return Err(SpecError::Type(value.to_owned())),
            });
        }
        "source" | "src" => fields.source = Some(value.to_owned()).filter(|v| !v.is_empty()),
        "target" | "destination" | "dst" => fields.target = Some(value.to_owned()),
        "readonly" | "ro" => fields.read_only = parse_bool(value).ok_or_else(invalid)?,
        "bind-propagation" => {
            fields.families.push("bind");
            match value {
                "private" | "rprivate" => {}
                "shared" | "rshared" | "slave" | "rslave" => {
                    return Err(SpecError::NotBuilt(format!("bind-propagation={value}")));
                }
                _ => return Err(invalid()),
            }
        }
        "bind-nonrecursive" => {
            fields.families.push("bind");
            if parse_bool(value).ok_or_else(invalid)? {
                return Err(SpecError::NotBuilt("bind-nonrecursive".to_owned()));
            }
        }
        "volume-nocopy" => {
            fields.families.push("volume");
            fields.no_copy = parse_bool(value).ok_or_else(invalid)?;
        }
        "volume-label" => {
            fields.families.push("volume");
            let (name, text) = value.split_once('=').unwrap_or((value, ""));
            fields.labels.insert(name.to_owned(), text.to_owned());
        }
        "volume-driver" => {
            fields.families.push("volume");
            if value != "local" {
                return Err(SpecError::NotBuilt(format!("volume-driver={value}")));
            }
        }
        "tmpfs-size" => {
            fields.families.push("tmpfs");
            fields.tmpfs.size = Some(TmpfsSize::Bytes(parse_size(value).ok_or_else(invalid)?));
        }
        "tmpfs-mode" => {
            fields.families.push("tmpfs");
            fields.tmpfs.mode = Some(parse_octal(value).ok_or_else(invalid)?);
        }
        "volume-subpath" | "volume-opt" | "image-subpath" | "bind-recursive" | "consistency" => {
            return Err(SpecError::NotBuilt(format!("the --mount key '{key}'")));
        }
        _ => return Err(SpecError::Key(raw_key.to_owned(), field.to_owned())),
    }
    Ok(())
}

/// Splits a line of comma-separated values; a field in double quotes may hold commas, `""` is a quote in it.
fn split_csv(line: &str) -> Result<Vec<String>, SpecError> {
    let bad = || SpecError::Quotes(line.to_owned());
    let mut fields = Vec::new();
    let mut rest = line;
    loop {
        let mut field = String::new();
        if let Some(quoted) = rest.strip_prefix('"') {
            rest = quoted;
            loop {
                let (text, after) = rest.split_once('"').ok_or_else(bad)?;
                field.push_str(text);
                match after.strip_prefix('"') {
                    Some(more) => {
                        field.push('"');
                        rest = more;
                    }
                    None => {
                        rest = after;
                        break;
                    }
                }
            }
        } else {
            let (text, _) = rest.split_once(',').unwrap_or((rest, ""));
            if text.contains('"') {
                return Err(bad());
            }
            field.push_str(text);
            rest = rest.strip_prefix(text).unwrap_or("");
        }
        fields.push(field);
        match rest.strip_prefix(',') {
            Some(more) => rest = more,
            None if rest.is_empty() => return Ok(fields),
            None => return Err(bad()),
        }
    }
}

/// Parses `--tmpfs DST[:opts]`.
pub fn parse_tmpfs(spec: &str) -> Result<MountSpec, SpecError> {
    let (target, options) = spec.split_once(':').unwrap_or((spec, ""));
    let target = clean_target(target)?;
    let mut tmpfs = TmpfsOptions::default();
    let mut access: Option<&str> = None;
    for option in options.split(',').filter(|_| !options.is_empty()) {
        let bad = |why| SpecError::Mode { mode: option.to_owned(), spec: spec.to_owned(), why };
        let (key, value) = option.split_once('=').map_or((option, None), |(k, v)| (k, Some(v)));
        match (key, value) {
            ("ro" | "rw", None) => {
                if access.is_some() {
                    return Err(bad(": it repeats or contradicts another option"));
                }
                access = Some(key);
            }
            // What a tmpfs in the tree has anyway.
            ("nosuid" | "nodev" | "noexec" | "noatime" | "relatime", None) => {}
            ("exec" | "suid" | "dev", None) => {
                return Err(bad(": not for one tmpfs; `-o suid,dev` speaks for the whole mount"));
            }
            ("size", Some(size)) => {
                let percent = size.strip_suffix('%').map(|n| n.parse::<u8>().ok().filter(|n| *n <= 100));
                tmpfs.size = Some(match percent {
                    Some(percent) => TmpfsSize::Percent(percent.ok_or_else(|| bad(": not a percentage"))?),
                    None => TmpfsSize::Bytes(parse_size(size).ok_or_else(|| bad(": not a size"))?),
                });
            }
            ("mode", Some(mode)) => tmpfs.mode = Some(parse_octal(mode).ok_or_else(|| bad(": not an octal mode"))?),
            ("uid", Some(id)) => tmpfs.uid = Some(id.parse().map_err(|_| bad(": not a number"))?),
            ("gid", Some(id)) => tmpfs.gid = Some(id.parse().map_err(|_| bad(": not a number"))?),
            _ => return Err(bad("")),
        }
    }
    Ok(MountSpec { target, source: Source::Tmpfs(tmpfs), read_only: access == Some("ro"), no_copy: false })
}

/// The spellings of Go's `strconv.ParseBool`, as Docker takes them.
fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// A mode in octal, at most 7777.
fn parse_octal(text: &str) -> Option<u32> {
    let digits = text.strip_prefix("0o").unwrap_or(text);
    let is_octal = !digits.is_empty() && digits.bytes().all(|b| matches!(b, b'0'..=b'7'));
    is_octal.then(|| u32::from_str_radix(digits, 8).ok()).flatten().filter(|mode| *mode <= 0o7777)
}

/// A size: a number, then nothing, `b`, or `k`, `m`, `g`, `t` with or without `b` or `ib` (powers of 1024).
pub fn parse_size(text: &str) -> Option<u64> {
    let lower = text.to_ascii_lowercase();
    let digits_end = lower.find(|c: char| !c.is_ascii_digit()).unwrap_or(lower.len());
    let (digits, unit) = lower.split_at_checked(digits_end)?;
    let shift = match unit {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// Refuses two specs for one target, and sorts by depth: outer mounts first, then by target.
pub fn order(mut specs: Vec<MountSpec>) -> Result<Vec<MountSpec>, SpecError> {
    let depth = |spec: &MountSpec| spec.target.matches('/').count();
    specs.sort_by(|a, b| depth(a).cmp(&depth(b)).then_with(|| a.target.cmp(&b.target)));
    let twice = specs.iter().zip(specs.iter().skip(1)).find(|(a, b)| a.target == b.target);
    match twice {
        Some((spec, _)) => Err(SpecError::Duplicate(spec.target.clone())),
        None => Ok(specs),
    }
}

#[cfg(test)]
#[path = "spec_tests.rs"]
mod tests;
