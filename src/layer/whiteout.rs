// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every convention by which a layer says "deleted" or "nothing below counts", and the attributes that say it.
//!
//! - Linux `Documentation/filesystems/overlayfs.rst`: a character device 0:0 is a whiteout; a directory with
//!   `overlay.opaque=y` is opaque; an empty regular file with `overlay.whiteout` is a whiteout too, which listings look
//!   for in directories with `overlay.opaque=x`. The attributes stand under `trusted.` or `user.`.
//! - OCI image-spec `layer.md` ("Whiteouts", from AUFS): `.wh.NAME` deletes NAME, `.wh..wh..opq` makes its directory
//!   opaque; other names that begin with `.wh..wh.` are AUFS's own and are never shown.
//! - fuse-overlayfs: `user.fuseoverlayfs.opaque=y`.

use crate::model::{Attr, Kind, Name, NameBuf};

/// The prefix of whiteouts in OCI layers.
pub const OCI_PREFIX: &[u8] = b".wh.";
/// The opaque mark in OCI layers.
pub const OCI_OPAQUE: &[u8] = b".wh..wh..opq";

/// What a name means in a layer of the OCI convention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OciName<'a> {
    /// An ordinary name.
    Plain,
    /// Deletes this name.
    Whiteout(Name<'a>),
    /// Makes its directory opaque.
    Opaque,
    /// AUFS's own (`.wh..wh.plnk` ...) or a whiteout of no possible name: not shown, means nothing.
    Reserved,
}

/// Decodes a name of an OCI layer.
pub fn oci_name(name: Name<'_>) -> OciName<'_> {
    let Some(rest) = name.bytes().strip_prefix(OCI_PREFIX) else { return OciName::Plain };
    if name.bytes() == OCI_OPAQUE {
        return OciName::Opaque;
    }
    if rest.starts_with(OCI_PREFIX) {
        return OciName::Reserved;
    }
    Name::new(rest).map_or(OciName::Reserved, OciName::Whiteout)
}

/// Attributes that mark a directory; the value says how.
pub const OPAQUE_XATTRS: [&[u8]; 3] = [b"trusted.overlay.opaque", b"user.overlay.opaque", b"user.fuseoverlayfs.opaque"];
/// Attributes that make an empty file a whiteout.
pub const WHITEOUT_XATTRS: [&[u8]; 2] = [b"trusted.overlay.whiteout", b"user.overlay.whiteout"];
/// Owner, mode and kind kept aside: `uid:gid:mode[:kind]`, as fuse-overlayfs and containers/storage write it.
pub const OVERRIDE_XATTR: &[u8] = b"user.containers.override_stat";

/// How a directory is marked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DirMarks {
    /// Nothing below counts.
    pub is_opaque: bool,
    /// Empty files in it may be whiteouts.
    pub has_xattr_whiteouts: bool,
    /// Deeper layers hold it elsewhere: a path from their roots, or (without a slash) another name.
    pub redirect: Option<Redirect>,
}

/// Where deeper layers hold a directory that was renamed (`overlay.redirect`, overlayfs.rst "Redirect").
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Redirect {
    /// From the root of each layer.
    Path(Vec<NameBuf>),
    /// Under another name, where the directory itself would be.
    Name(NameBuf),
}

impl Redirect {
    /// Reads an attribute's value. `None` for one that climbs or that holds no name or an empty one, as in the kernel.
    pub fn parse(value: &[u8]) -> Option<Self> {
        match value.strip_prefix(b"/") {
            Some(path) => {
                path.split(|b| *b == b'/').map(NameBuf::new).collect::<Result<_, _>>().ok().map(Redirect::Path)
            }
            None => Name::new(value).ok().map(|name| Redirect::Name(name.to_buf())),
        }
    }

    /// The attribute's value.
    pub fn value(&self) -> Vec<u8> {
        match self {
            Redirect::Name(name) => name.as_name().bytes().to_vec(),
            Redirect::Path(names) => names.iter().flat_map(|name| [b"/", name.as_name().bytes()].concat()).collect(),
        }
    }
}

/// Attributes that say where deeper layers hold a directory.
pub const REDIRECT_XATTRS: [&[u8]; 2] = [b"trusted.overlay.redirect", b"user.overlay.redirect"];
/// Attributes of a file whose content lies in a deeper layer.
pub const METACOPY_XATTRS: [&[u8]; 2] = [b"trusted.overlay.metacopy", b"user.overlay.metacopy"];

/// Is this the value of a metadata-only mark? Nothing, or version 0, the length, no flags, and a digest of the content
/// and its algorithm, which is not compared (the kernel's `verity=off`).
pub fn is_metacopy_value(value: &[u8]) -> bool {
    match value {
        [] => true,
        [0, length, 0, _, ..] => usize::from(*length) == value.len(),
        _ => false,
    }
}

impl DirMarks {
    /// Takes the value of one of [`OPAQUE_XATTRS`] into account.
    pub fn add(&mut self, value: &[u8]) {
        match value {
            b"y" => self.is_opaque = true,
            b"x" => self.has_xattr_whiteouts = true,
            _ => {}
        }
    }
}

/// Is this the whiteout device of the kernel?
pub fn is_whiteout_device(attr: &Attr) -> bool {
    attr.kind == Kind::Char && attr.rdev == 0
}

/// Is `name` an attribute of a layer format, to be hidden from users and never taken from them?
pub fn is_mark(name: &[u8]) -> bool {
    const PREFIXES: [&[u8]; 3] = [b"trusted.overlay.", b"user.overlay.", b"user.fuseoverlayfs."];
    name == OVERRIDE_XATTR || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oci_names_are_decoded() {
        let decode = |text: &'static [u8]| oci_name(Name::new(text).unwrap());
        assert_eq!(decode(b"a"), OciName::Plain);
        assert_eq!(decode(b".wh.a"), OciName::Whiteout(Name::new(b"a").unwrap()));
        assert_eq!(decode(b".wh..a"), OciName::Whiteout(Name::new(b".a").unwrap()));
        assert_eq!(decode(b".wh..wh..opq"), OciName::Opaque);
        for reserved in [&b".wh..wh.plnk"[..], b".wh.", b".wh..", b".wh...", b".wh..wh..opqx"] {
            assert_eq!(oci_name(Name::new(reserved).unwrap()), OciName::Reserved, "{reserved:?}");
        }
    }

    #[test]
    fn redirects_never_climb() {
        let path = |names: &[&[u8]]| names.iter().map(|name| NameBuf::new(*name).unwrap()).collect();
        assert_eq!(Redirect::parse(b"/a/b"), Some(Redirect::Path(path(&[b"a", b"b"]))));
        assert_eq!(Redirect::parse(b"a"), Some(Redirect::Name(NameBuf::new(*b"a").unwrap())));
        for bad in ["", "/", "..", ".", "../a", "a/b", "/..", "/a/..", "/a/../b", "//a", "/a/", "/a//b", "/./a", "/a\0"]
        {
            assert_eq!(Redirect::parse(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn metadata_only_marks_are_checked() {
        for good in [&[][..], &[0, 4, 0, 0], &[0, 6, 0, 1, 9, 9]] {
            assert!(is_metacopy_value(good), "{good:?}");
        }
        for bad in [&b"y"[..], &[0, 4, 0], &[1, 4, 0, 0], &[0, 5, 0, 0], &[0, 4, 1, 0]] {
            assert!(!is_metacopy_value(bad), "{bad:?}");
        }
    }

    #[test]
    fn marks_are_known() {
        for mark in ["user.overlay.opaque", "trusted.overlay.redirect", "user.containers.override_stat"] {
            assert!(is_mark(mark.as_bytes()), "{mark}");
        }
        assert!(!is_mark(b"user.overlay"));
        assert!(!is_mark(b"security.capability"));
    }
}
