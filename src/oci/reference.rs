// SPDX-License-Identifier: MIT OR Apache-2.0
//! Names of images in a store, and the sources they are loaded from (`cli.md`, "Images and volumes").
//!
//! Names are kept as given: no `docker.io/library/` is added; only the tag has a default, `latest`.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::model::Digest;

/// The tag of a name without one.
pub const DEFAULT_TAG: &str = "latest";
/// The longest name, as in the distribution specification.
const NAME_LIMIT: usize = 255;
/// The longest tag, as in the distribution specification.
const TAG_LIMIT: usize = 128;

/// Why a name or source is none; one sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is no image name: {why}")]
pub struct BadReference {
    text: String,
    why: &'static str,
}

fn bad(text: &str, why: &'static str) -> BadReference {
    BadReference { text: text.to_owned(), why }
}

/// `NAME[:TAG][@DIGEST]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ImageName {
    name: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl ImageName {
    /// The name without tag and digest.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The tag; `latest` when neither tag nor digest was given, `None` when only a digest was.
    pub fn tag(&self) -> Option<&str> {
        match (&self.tag, &self.digest) {
            (Some(tag), _) => Some(tag),
            (None, None) => Some(DEFAULT_TAG),
            (None, Some(_)) => None,
        }
    }

    /// The digest of the manifest.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// `NAME:TAG`, as Docker's `RepoTags` have it; `None` when there is only a digest.
    pub fn repo_tag(&self) -> Option<String> {
        self.tag().map(|tag| format!("{}:{tag}", self.name))
    }
}

impl FromStr for ImageName {
    type Err = BadReference;

    fn from_str(text: &str) -> Result<Self, BadReference> {
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let digest = digest.parse().map_err(|_| bad(text, "what follows @ is no sha256 digest"))?;
                (rest, Some(digest))
            }
            None => (text, None),
        };
        // A colon before a slash belongs to HOST:PORT.
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        check_name(text, name)?;
        if let Some(tag) = tag {
            check_tag(text, tag)?;
        }
        Ok(ImageName { name: name.to_owned(), tag: tag.map(str::to_owned), digest })
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

fn check_name(text: &str, name: &str) -> Result<(), BadReference> {
    if name.is_empty() {
        return Err(bad(text, "the name is empty"));
    }
    if name.len() > NAME_LIMIT {
        return Err(bad(text, "the name is longer than 255 bytes"));
    }
    for (number, part) in name.split('/').enumerate() {
        let host = match part.split_once(':') {
            Some((host, port)) if number == 0 && name.contains('/') => {
                if port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) {
                    return Err(bad(text, "the port is no number"));
                }
                host
            }
            _ => part,
        };
        let is_word = |b: &u8| b.is_ascii_alphanumeric();
        if !host.as_bytes().first().is_some_and(is_word) || !host.as_bytes().last().is_some_and(is_word) {
            return Err(bad(text, "each part between slashes must begin and end with a letter or digit"));
        }
        if !host.bytes().all(|b| is_word(&b) || matches!(b, b'.' | b'_' | b'-')) {
            return Err(bad(text, "allowed are letters, digits, and . _ - / between them"));
        }
    }
    Ok(())
}

fn check_tag(text: &str, tag: &str) -> Result<(), BadReference> {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    if tag.is_empty() || tag.len() > TAG_LIMIT {
        return Err(bad(text, "a tag has 1 to 128 characters"));
    }
    if !tag.bytes().next().is_some_and(is_word) || !tag.bytes().all(|b| is_word(b) || matches!(b, b'.' | b'-')) {
        return Err(bad(text, "a tag has letters, digits, and _ . - after the first"));
    }
    Ok(())
}

/// Where a file comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A file.
    File(PathBuf),
    /// Standard input, `-`.
    Stdin,
}

/// An image outside the store, or the name of one inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// `oci:DIR[:TAG]`.
    Oci {
        /// The OCI image layout.
        dir: PathBuf,
        /// Which of its images.
        tag: Option<String>,
    },
    /// `oci-archive:FILE[:TAG]`: a tar of an OCI image layout.
    OciArchive {
        /// The tar.
        file: Input,
        /// Which of its images.
        tag: Option<String>,
    },
    /// `docker-archive:FILE[:TAG]`: what `docker save` writes.
    DockerArchive {
        /// The tar.
        file: Input,
        /// Which of its images.
        tag: Option<String>,
    },
    /// `rootfs:DIR`, `dir:DIR`: a directory as the only layer.
    Rootfs(PathBuf),
    /// An image in the store.
    Store(ImageName),
}

impl Source {
    /// Parses a SOURCE; text without a known prefix is the name of an image in the store.
    pub fn parse(text: &OsStr) -> Result<Self, BadReference> {
        let bytes = text.as_bytes();
        let shown = || text.to_string_lossy().into_owned();
        for (prefix, kind) in [("oci:", 0), ("oci-archive:", 1), ("docker-archive:", 2), ("rootfs:", 3), ("dir:", 3)] {
            let Some(rest) = bytes.strip_prefix(prefix.as_bytes()) else { continue };
            if kind == 3 {
                if rest.is_empty() {
                    return Err(bad(&shown(), "the directory is missing"));
                }
                return Ok(Source::Rootfs(path(rest)));
            }
            let (place, tag) = split_tag(rest);
            if place.is_empty() {
                return Err(bad(&shown(), "the path is missing"));
            }
            let tag = match tag.map(|t| std::str::from_utf8(t)).transpose() {
                Ok(tag) if tag != Some("") => tag.map(str::to_owned),
                _ => return Err(bad(&shown(), "the tag is empty or not UTF-8")),
            };
            let input = || if place == b"-" { Input::Stdin } else { Input::File(path(place)) };
            return Ok(match kind {
                0 => Source::Oci { dir: path(place), tag },
                1 => Source::OciArchive { file: input(), tag },
                _ => Source::DockerArchive { file: input(), tag },
            });
        }
        match text.to_str() {
            Some(name) => name.parse().map(Source::Store),
            None => Err(bad(&shown(), "it is not UTF-8")),
        }
    }
}

impl Source {
    /// When there is no file at the path but one before an earlier colon, then the tag was a whole name:
    /// `docker-archive:FILE:example/app:2.0`, `oci:DIR:debian:12`, as `skopeo` writes them.
    pub fn resolve(self, is_there: impl Fn(&Path) -> bool) -> Self {
        let (place, tag) = match &self {
            Source::Oci { dir, tag } => (dir, tag),
            Source::OciArchive { file: Input::File(file), tag }
            | Source::DockerArchive { file: Input::File(file), tag } => (file, tag),
            _ => return self,
        };
        if is_there(place) {
            return self;
        }
        let whole = match tag {
            Some(tag) => [place.as_os_str().as_bytes(), b":", tag.as_bytes()].concat(),
            None => place.as_os_str().as_bytes().to_vec(),
        };
        for (at, _) in whole.iter().enumerate().rev().filter(|(_, b)| **b == b':') {
            let (Some(before), Some(after)) = (whole.get(..at), whole.get(at + 1..)) else { continue };
            if before.is_empty() || after.is_empty() || !is_there(&path(before)) {
                continue;
            }
            let Ok(tag) = String::from_utf8(after.to_vec()) else { continue };
            let (file, tag) = (path(before), Some(tag));
            return match self {
                Source::Oci { .. } => Source::Oci { dir: file, tag },
                Source::OciArchive { .. } => Source::OciArchive { file: Input::File(file), tag },
                _ => Source::DockerArchive { file: Input::File(file), tag },
            };
        }
        self
    }
}

/// The last colon separates the tag, only when no slash follows.
fn split_tag(rest: &[u8]) -> (&[u8], Option<&[u8]>) {
    match rest.iter().rposition(|b| *b == b':') {
        Some(at) => match rest.split_at_checked(at) {
            Some((place, [_, tag @ ..])) if !tag.contains(&b'/') => (place, Some(tag)),
            _ => (rest, None),
        },
        None => (rest, None),
    }
}

fn path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_kept_as_given() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        for (text, name, tag) in [
            ("debian", "debian", Some("latest")),
            ("debian:12", "debian", Some("12")),
            ("host:5000/a/b", "host:5000/a/b", Some("latest")),
            ("host:5000/a/b:v1.0-rc_1", "host:5000/a/b", Some("v1.0-rc_1")),
            (&format!("a@{digest}"), "a", None),
            (&format!("a:t@{digest}"), "a", Some("t")),
        ] {
            let parsed: ImageName = text.parse().unwrap();
            assert_eq!((parsed.name(), parsed.tag(), parsed.to_string().as_str()), (name, tag, text));
        }
        for bad in ["", ":", "a:", ":t", "a//b", "/a", "a/", "-a", "a b", "a@x", "a:b:c", "../a", "a\n", "a:.t", "ä"] {
            assert!(bad.parse::<ImageName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_last_colon_separates_unless_a_slash_follows() {
        let parse = |s: &str| Source::parse(OsStr::new(s)).unwrap();
        let tag = Some("t".to_owned());
        assert_eq!(parse("oci:/a/b:t"), Source::Oci { dir: "/a/b".into(), tag: tag.clone() });
        assert_eq!(parse("oci:/a:b/c"), Source::Oci { dir: "/a:b/c".into(), tag: None });
        assert_eq!(parse("oci-archive:-:t"), Source::OciArchive { file: Input::Stdin, tag });
        assert_eq!(
            parse("docker-archive:x.tar"),
            Source::DockerArchive { file: Input::File("x.tar".into()), tag: None }
        );
        assert_eq!(parse("dir:/x:y"), Source::Rootfs("/x:y".into()));
        assert_eq!(parse("rootfs:/x"), Source::Rootfs("/x".into()));
        assert!(matches!(parse("debian:12"), Source::Store(_)));
        for bad in ["oci:", "oci:/a:", "docker-archive:", "rootfs:", "nope:a:b"] {
            assert!(Source::parse(OsStr::new(bad)).is_err(), "{bad}");
        }
        let there = |p: &Path| p == Path::new("/d/x.tar");
        let resolved = parse("docker-archive:/d/x.tar:example/app:2.0").resolve(there);
        let tag = Some("example/app:2.0".to_owned());
        assert_eq!(resolved, Source::DockerArchive { file: Input::File("/d/x.tar".into()), tag });
        assert_eq!(parse("oci:/none:t").resolve(there), parse("oci:/none:t"));
        let raw = Source::parse(OsStr::from_bytes(b"oci:/\xff")).unwrap();
        assert_eq!(raw, Source::Oci { dir: path(b"/\xff"), tag: None });
    }
}
