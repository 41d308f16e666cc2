// SPDX-License-Identifier: MIT OR Apache-2.0
//! One mark: what it means, and whether it is right where it stands. `format.rs` has the table of marks.

use std::sync::Arc;

use super::{Below, Checker, Gathered, Object, UpperFinding, UpperRepair, shown};
use crate::layer::dir::override_stat;
use crate::layer::whiteout::{
    METACOPY_XATTRS, OPAQUE_XATTRS, OVERRIDE_XATTR, REDIRECT_XATTRS, Redirect, WHITEOUT_XATTRS, is_mark,
};
use crate::model::finding::{Cure, Finding};
use crate::model::{FsError, Kind, NameBuf};
use crate::sys::{Place, xattr};

/// What stands for the whiteout device among marks, which is no attribute.
pub(super) const DEVICE: &[u8] = b"char 0:0";

/// The name of a mark, and its value.
pub(super) type Mark = (Vec<u8>, Vec<u8>);

/// The marks of an object, by name.
pub(super) fn of(place: &Place) -> Result<Vec<Mark>, FsError> {
    let mut marks = Vec::new();
    for name in xattr::list(place)? {
        if is_mark(&name)
            && let Some(value) = xattr::get(place, &name)?
        {
            marks.push((name, value));
        }
    }
    marks.sort();
    Ok(marks)
}

pub(super) fn is_opaque(name: &[u8], value: &[u8]) -> bool {
    OPAQUE_XATTRS.contains(&name) && value == b"y"
}

pub(super) fn holds_whiteouts(name: &[u8], value: &[u8]) -> bool {
    OPAQUE_XATTRS.contains(&name) && value == b"x"
}

/// The mark's name without `trusted.overlay.` or `user.overlay.`
fn short(name: &[u8]) -> &[u8] {
    [&b"trusted.overlay."[..], b"user.overlay."].iter().find_map(|space| name.strip_prefix(*space)).unwrap_or(name)
}

/// A judgement: what the mark means, and what is wrong.
pub(super) enum Verdict {
    /// As it must be: the sentence.
    Fine(String),
    /// Told to everybody.
    Note(String),
    /// Left by a crash; removing the mark changes nothing.
    Stray(String),
    /// Wrong.
    Wrong(String, Cure<UpperRepair>),
}

impl Checker {
    /// Judges all marks of an object; answers where layers hold a directory's content.
    pub(super) fn judge(
        &self,
        object: &Object<'_>,
        below: Option<&dyn Below>,
        gathered: &mut Gathered,
    ) -> Option<Vec<NameBuf>> {
        let mut next = object.below.map(<[NameBuf]>::to_vec);
        for (name, value) in &object.marks {
            let verdict = self.verdict(object, name, value, below, gathered);
            gathered.findings.push(self.finding(object, name, verdict));
            if object.kind == Kind::Dir {
                if is_opaque(name, value) {
                    next = None;
                } else if REDIRECT_XATTRS.contains(&name.as_slice())
                    && let (Some(redirect), Some(own)) = (Redirect::parse(value), object.below)
                {
                    next = next.and_then(|_| followed(own, redirect));
                }
            }
        }
        // Opaque counts whatever the order of the marks.
        let is_opaque = object.kind == Kind::Dir && object.marks.iter().any(|(name, value)| is_opaque(name, value));
        if is_opaque { None } else { next }
    }

    fn finding(&self, object: &Object<'_>, name: &[u8], verdict: Verdict) -> UpperFinding {
        let path = self.host_path(object.path);
        let mark = String::from_utf8_lossy(name).into_owned();
        match verdict {
            Verdict::Fine(says) => Finding::fine(path, "mark", format!("{mark}: {says}")),
            Verdict::Note(says) => Finding::note(path, "mark", format!("{mark}: {says}")),
            Verdict::Stray(says) => {
                let repair = UpperRepair::RemoveMarks { path: object.path.to_vec(), marks: vec![name.to_vec()] };
                Finding::leftover(path, "mark", format!("{mark}: {says}"), repair)
            }
            Verdict::Wrong(says, cure) => Finding::damage(path, "mark", format!("{mark}: {says}"), cure),
        }
    }

    fn verdict(
        &self,
        object: &Object<'_>,
        name: &[u8],
        value: &[u8],
        below: Option<&dyn Below>,
        gathered: &mut Gathered,
    ) -> Verdict {
        let remove = || UpperRepair::RemoveMarks { path: object.path.to_vec(), marks: vec![name.to_vec()] };
        let stray = |says: &str| Verdict::Stray(says.to_owned());
        if name == DEVICE {
            return hides(object, below);
        }
        if WHITEOUT_XATTRS.contains(&name) {
            return self.xattr_whiteout(object, below, remove());
        }
        if OPAQUE_XATTRS.contains(&name) {
            return match (object.kind, value) {
                (Kind::Dir, b"y") => Verdict::Fine("nothing that layers hold in this directory counts".into()),
                (Kind::Dir, b"x") => {
                    Verdict::Fine("empty files with a whiteout mark in it delete names of the layers".into())
                }
                (Kind::Dir, _) => stray(&format!("the value {} means nothing", value.escape_ascii())),
                _ => stray("it means nothing on anything but a directory"),
            };
        }
        if REDIRECT_XATTRS.contains(&name) {
            return self.redirect(object, name, value, below);
        }
        if METACOPY_XATTRS.contains(&name) {
            return self.metacopy(object, below);
        }
        if name == OVERRIDE_XATTR {
            return self.override_stat(object, value, remove());
        }
        if let Some(real) = override_stat::from_aside(name) {
            let real = real.escape_ascii();
            return match self.ownership.uses_override() {
                true => Verdict::Fine(format!("the attribute {real}, which the host would refuse us")),
                false => Verdict::Note(format!(
                    "the attribute {real} of another form of upper; it has no effect in this one"
                )),
            };
        }
        match short(name) {
            b"mlfs.ino" => self.number(object, value, remove(), gathered),
            b"mlfs.group" => self.own_record(object, value),
            b"nlink" => self.link_count(object, value),
            b"origin" => Verdict::Fine("the file of a layer that it was copied from, by its handle".into()),
            b"upper" => Verdict::Fine("the directory that an index belongs to, by its handle".into()),
            b"uuid" => Verdict::Fine("the identity of the overlay that the kernel mounted".into()),
            b"protattr" => Verdict::Fine("inode flags that the kernel keeps for users (immutable, append-only)".into()),
            b"impure" if object.kind == Kind::Dir => Verdict::Fine(
                "entries in it came from elsewhere, which the kernel must know to show their numbers".into(),
            ),
            b"impure" => stray("it means nothing on anything but a directory"),
            b"mlfs.probe" => stray("left by a process that tried whether attributes can be set"),
            _ if name.starts_with(b"user.fuseoverlayfs.") => {
                Verdict::Note("a mark of fuse-overlayfs that mlfs does not use".into())
            }
            _ => Verdict::Note("no mark that this mlfs knows: it is hidden from users and left alone".into()),
        }
    }

    fn xattr_whiteout(&self, object: &Object<'_>, below: Option<&dyn Below>, remove: UpperRepair) -> Verdict {
        if object.kind != Kind::File || object.size > 0 {
            let says = "only an empty file can be a whiteout: the file is shown, and the mark means nothing";
            return Verdict::Wrong(says.into(), Cure::Repair(remove));
        }
        if object.in_xattr_dir {
            return hides(object, below);
        }
        let parent = object.path.split_last().map(|(_, parent)| parent.to_vec()).unwrap_or_default();
        let is_below = object.below.is_some();
        let says =
            "its directory does not say that it holds whiteouts (opaque=x): an empty file is shown instead of nothing";
        if !is_below {
            return Verdict::Wrong(
                "in an opaque directory there is nothing to delete: an empty file is shown".into(),
                Cure::Repair(remove),
            );
        }
        Verdict::Wrong(
            says.into(),
            Cure::Repair(UpperRepair::HoldWhiteouts { dir: parent, like: whiteout_space(object) }),
        )
    }

    fn redirect(&self, object: &Object<'_>, name: &[u8], value: &[u8], below: Option<&dyn Below>) -> Verdict {
        let has_metacopy = object.marks.iter().any(|(name, _)| METACOPY_XATTRS.contains(&name.as_slice()));
        match object.kind {
            Kind::File if has_metacopy => {
                return Verdict::Fine(format!("layers hold its content at {}", value.escape_ascii()));
            }
            Kind::File => return Verdict::Stray("the file has its content itself by now".into()),
            Kind::Dir => {}
            _ => return Verdict::Stray("it means nothing on anything but directories and files".into()),
        }
        if object.marks.iter().any(|(name, value)| is_opaque(name, value)) {
            return Verdict::Fine("without effect: the directory is opaque".into());
        }
        let opaque = || UpperRepair::MakeOpaque { path: object.path.to_vec(), redirect: name.to_vec() };
        let Some(redirect) = Redirect::parse(value) else {
            let says = format!("{} is no path: the directory cannot be entered", value.escape_ascii());
            return Verdict::Wrong(says, Cure::Repair(opaque()));
        };
        let Some(path) = object.below.and_then(|own| followed(own, redirect)) else {
            return Verdict::Fine("without effect: nothing below counts here".into());
        };
        let Some(below) = below else { return Verdict::Fine(format!("layers hold the directory at {}", shown(&path))) };
        match below.kind_at(&path) {
            Ok(Some(Kind::Dir)) => Verdict::Fine(format!("layers hold the directory at {}", shown(&path))),
            Ok(found) => {
                let what = if found.is_some() { "is no directory" } else { "is not there" };
                let says = format!("the directory was renamed, but what layers hold of it, {}, {what}", shown(&path));
                Verdict::Wrong(says, self.if_proven(opaque()))
            }
            Err(error) => Verdict::Note(format!("the layers cannot be looked at: {error}")),
        }
    }

    fn metacopy(&self, object: &Object<'_>, below: Option<&dyn Below>) -> Verdict {
        if object.kind != Kind::File {
            return Verdict::Stray("it means nothing on anything but a file".into());
        }
        // A crash came between its truncation and the end of its mark.
        if object.size == 0 {
            return Verdict::Fine("it holds owner, mode and attributes, and being empty it has no content".into());
        }
        let refuse = "bring the layer back, or delete the file in the mount; its owner, mode and attributes are whole";
        let wrong = |says: String| Verdict::Wrong(says, Cure::Refused(refuse.to_owned()));
        let mark = object.marks.iter().find(|(name, _)| REDIRECT_XATTRS.contains(&name.as_slice()));
        let redirect = match mark.map(|(_, value)| Redirect::parse(value)) {
            None => None,
            Some(Some(redirect)) => Some(redirect),
            Some(None) => {
                return wrong("it holds no content, and where layers hold it is no path: it cannot be read".into());
            }
        };
        let fine = || Verdict::Fine("it holds owner, mode and attributes; layers hold its content".into());
        let Some(below) = below else { return fine() };
        // In an opaque directory, only a path from the root can lead to content.
        let own = match (object.below, &redirect) {
            (Some(own), _) => own,
            (None, Some(Redirect::Path(_))) => &[],
            (None, _) => return wrong("it holds no content, and nothing below counts here: it cannot be read".into()),
        };
        match below.content_size(own, redirect) {
            Ok(Some(size)) if size == object.size => fine(),
            Ok(Some(size)) => {
                wrong(format!("layers hold content of {size} bytes, not {}: a layer was changed", object.size))
            }
            Ok(None) => wrong("it holds no content, and layers hold none for it: it cannot be read".into()),
            Err(error) => Verdict::Note(format!("the layers cannot be looked at: {error}")),
        }
    }

    fn override_stat(&self, object: &Object<'_>, value: &[u8], remove: UpperRepair) -> Verdict {
        if !self.ownership.uses_override() {
            return Verdict::Note("owner and mode of another form of upper; they have no effect in this one".into());
        }
        match override_stat::is_valid(value) {
            true if matches!(object.kind, Kind::File | Kind::Dir) => {
                Verdict::Fine(format!("shown with owner, mode and kind {}", value.escape_ascii()))
            }
            true => Verdict::Stray("it means nothing on anything but files and directories".into()),
            false => {
                let says = format!("{} cannot be understood: shown as the host has it", value.escape_ascii());
                Verdict::Wrong(says, Cure::Repair(remove))
            }
        }
    }

    fn number(&self, object: &Object<'_>, value: &[u8], remove: UpperRepair, gathered: &mut Gathered) -> Verdict {
        let Ok(bytes) = <[u8; 8]>::try_from(value) else {
            return Verdict::Wrong(
                "an inode number has 8 bytes: it is shown with another one".into(),
                Cure::Repair(remove),
            );
        };
        let number = u64::from_le_bytes(bytes);
        let path = self.host_path(object.path);
        match gathered.numbers.get(&number) {
            Some((id, other)) if *id != object.id => {
                let says = format!(
                    "the inode number {number} is that of {} too: programs take them for one file",
                    other.display()
                );
                Verdict::Wrong(says, Cure::Repair(remove))
            }
            _ => {
                gathered.numbers.insert(number, (object.id, path));
                Verdict::Fine(format!("shown with the inode number {number} that it had in its layer"))
            }
        }
    }
}

/// A whiteout that counts.
fn hides(object: &Object<'_>, below: Option<&dyn Below>) -> Verdict {
    let found = match (object.below, below) {
        (Some(path), Some(below)) => below.kind_at(path).map(|found| found.is_some()),
        (None, _) => Ok(false),
        (_, None) => Ok(true),
    };
    match found {
        Ok(true) => Verdict::Fine("deletes what layers hold under this name".into()),
        Ok(false) => Verdict::Fine("deletes nothing: no layer has this name (harmless)".into()),
        Err(error) => Verdict::Note(format!("deletes this name; the layers cannot be looked at: {error}")),
    }
}

/// `trusted.overlay.` or `user.overlay.`, as the whiteout's own mark.
fn whiteout_space(object: &Object<'_>) -> Vec<u8> {
    let mark = object.marks.iter().find(|(name, _)| WHITEOUT_XATTRS.contains(&name.as_slice()));
    let is_trusted = mark.is_some_and(|(name, _)| name.starts_with(b"trusted."));
    if is_trusted { b"trusted.overlay.".to_vec() } else { b"user.overlay.".to_vec() }
}

/// The path in the layers of a directory with this redirect, which would be at `own`.
fn followed(own: &[NameBuf], redirect: Redirect) -> Option<Vec<NameBuf>> {
    match redirect {
        Redirect::Path(path) => Some(path),
        Redirect::Name(name) => {
            let (_, parent) = own.split_last()?;
            Some([parent, &[name]].concat())
        }
    }
}

/// The directory of an object's place, for what follows from its path.
pub(super) fn dir_of(root: &Arc<crate::sys::Dir>, path: &[NameBuf]) -> Result<Arc<crate::sys::Dir>, FsError> {
    path.iter().try_fold(Arc::clone(root), |dir, name| dir.open_child(name.as_name()))
}
