// SPDX-License-Identifier: MIT OR Apache-2.0
//! A directory of the host as a layer; also the reading half of an upper.
//!
//! Resolution goes one component at a time by descriptor, no symlink followed. Listings are read whole, sorted by
//! (name hash, name) and kept in a small cache; a listing that begins anew is checked against the directory's times,
//! one that goes on is served from what it began with. What it does not do: trust `.wh.` names unless the form says so.

use std::collections::VecDeque;
use std::ops::{Bound, ControlFlow};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use rustix::fs::{OFlags, Stat};

use super::origin::{Origin, Side, Uuid};
use super::whiteout::{self, DirMarks, OciName, OciName::Plain};
use super::{Birth, Body, Child, Entry, Found, Layer, Listed, ListedKind, Metacopy};
use crate::model::cookie::NameHash;
use crate::model::sync::lock;
use crate::model::{Attr, Cookie, FsError, Kind, Name, Time};
use crate::sys::handle::filesystem_uuid;
use crate::sys::node::attr_of;
use crate::sys::{Dir, FileId, Place, xattr};

/// How a directory of the host is to be read as a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostForm {
    /// Names that begin with `.wh.` are OCI whiteouts (layers unpacked by engines), not users' files.
    pub has_oci_names: bool,
    /// Owner, mode and kind may stand in `user.containers.override_stat`.
    pub has_override: bool,
    /// A plain directory (volume, bind): nothing in it is a mark, everything is shown.
    pub is_plain: bool,
    /// Redirects and metadata-only marks count under `user.` too, where whoever owns a file can write them. Without,
    /// only `trusted.` ones lead elsewhere.
    pub trusts_user_marks: bool,
    /// A layer that must stay as it is while it is mounted: something that it held and that is gone is an error, never
    /// absence, for nobody knows what it hid and what not.
    pub is_fixed: bool,
}

/// How many listings are kept.
const LISTINGS: usize = 32;

/// A directory of the host as a layer.
#[derive(Debug)]
pub struct DirLayer {
    root: Arc<Dir>,
    label: String,
    form: HostForm,
    /// Removed directories can be told by their link count: not on every filesystem of users.
    counts_links: bool,
    listings: Mutex<VecDeque<Cached>>,
    /// How often we have changed a directory: a listing that was read meanwhile may lack what was made.
    changes: AtomicU64,
    /// Identity of the root's filesystem, once somebody has asked.
    uuid: OnceLock<Option<Uuid>>,
}

/// A listing that is kept.
#[derive(Debug)]
struct Cached {
    dir: FileId,
    /// The directory's times when it was read; `None` once we changed the directory: only good to go on with.
    stamp: Option<Stamp>,
    listing: Arc<Listing>,
}

/// Tells whether a directory has changed: its modification and change times.
type Stamp = (Time, Time);

/// A whole directory, by (hash, name).
type Listing = std::collections::BTreeMap<(NameHash, Box<[u8]>), (Cookie, ListedKind)>;

impl DirLayer {
    /// Takes a descriptor of the layer's root. `NotDir` for anything but a directory.
    pub fn open(fd: OwnedFd, label: String, form: HostForm) -> Result<Self, FsError> {
        Ok(Self::from_dir(Dir::from_fd(fd)?, label, form))
    }

    /// Reads `root` as a layer.
    pub fn from_dir(root: Arc<Dir>, label: String, form: HostForm) -> Self {
        let counts_links = root.stat().is_ok_and(|stat| stat.st_nlink > 0);
        DirLayer {
            root,
            label,
            form,
            counts_links,
            listings: Mutex::default(),
            changes: AtomicU64::new(0),
            uuid: OnceLock::new(),
        }
    }

    /// The root directory.
    pub fn root_dir(&self) -> &Arc<Dir> {
        &self.root
    }

    /// The place of an entry of this layer.
    pub fn place(entry: &Entry) -> Result<Place, FsError> {
        match entry {
            Entry::HostDir(dir) => Ok(Place::Dir(Arc::clone(dir))),
            Entry::HostFile(dir, name) => Ok(Place::At(Arc::clone(dir), Arc::clone(name))),
            Entry::Record(_) => Err(FsError::Stale),
        }
    }

    fn dir(entry: &Entry) -> Result<&Arc<Dir>, FsError> {
        match entry {
            Entry::HostDir(dir) => Ok(dir),
            Entry::HostFile(..) | Entry::Record(_) => Err(FsError::NotDir),
        }
    }

    /// The attributes of the object at `place`, which `stat` describes, with what is kept aside in its attributes.
    pub fn attr_at(&self, place: &Place, stat: &Stat) -> Result<Attr, FsError> {
        let mut attr = attr_of(stat)?;
        if self.form.has_override && matches!(attr.kind, Kind::File | Kind::Dir) {
            match xattr::get(place, whiteout::OVERRIDE_XATTR) {
                Ok(Some(value)) => override_stat::apply(&value, &mut attr),
                // What we may not read was not written by us: our own files are kept readable.
                Ok(None) | Err(FsError::Access) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(attr)
    }

    /// The target of the symlink at `place`.
    pub fn read_link_at(&self, place: &Place) -> Result<Vec<u8>, FsError> {
        if self.form.has_override && Kind::from_mode(place.stat()?.st_mode) == Some(Kind::File) {
            return override_stat::read_target(place);
        }
        place.read_link()
    }

    /// Is this attribute ours, to be hidden from users and never taken from them? In a plain directory only what is
    /// read there: the attributes of the override form.
    pub fn hides(&self, name: &[u8]) -> bool {
        let is_held = name == whiteout::OVERRIDE_XATTR || override_stat::from_aside(name).is_some();
        if self.form.is_plain { self.form.has_override && is_held } else { whiteout::is_mark(name) }
    }

    /// A user's attribute of the object at `place`.
    pub fn xattr_at(&self, place: &Place, name: &[u8]) -> Result<Option<Vec<u8>>, FsError> {
        if self.hides(name) {
            return Ok(None);
        }
        match xattr::get(place, name)? {
            None if self.form.has_override => xattr::get(place, &override_stat::aside(name)),
            value => Ok(value),
        }
    }

    /// The names of the users' attributes of the object at `place`.
    pub fn xattr_names_at(&self, place: &Place) -> Result<Vec<Vec<u8>>, FsError> {
        let mut names = Vec::new();
        for name in xattr::list(place)? {
            if let Some(real) = override_stat::from_aside(&name).filter(|_| self.form.has_override) {
                names.push(real.to_vec());
            } else if !self.hides(&name) {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// How the directory is marked: opaque, holding whiteouts by attribute.
    pub fn marks(&self, dir: &Arc<Dir>) -> Result<DirMarks, FsError> {
        let place = Place::Dir(Arc::clone(dir));
        let mut marks = DirMarks::default();
        if self.form.is_plain {
            return Ok(marks);
        }
        for name in xattr::list(&place)? {
            if whiteout::OPAQUE_XATTRS.contains(&name.as_slice())
                && let Some(value) = xattr::get(&place, &name)?
            {
                marks.add(&value);
            } else if self.is_trusted(&whiteout::REDIRECT_XATTRS, &name)
                && let Some(value) = xattr::get(&place, &name)?
            {
                let damaged = || self.damaged(format!("redirect to {}", value.escape_ascii()));
                marks.redirect = Some(whiteout::Redirect::parse(&value).ok_or_else(damaged)?);
            }
        }
        if self.form.has_oci_names && !marks.is_opaque {
            let has_mark = match has_child(dir, Name::new(whiteout::OCI_OPAQUE)?) {
                // What we may not search is no less there: every name in it is refused before deeper layers are asked.
                Err(FsError::Access) => false,
                other => other?,
            };
            marks.is_opaque = has_mark || self.is_beside_its_whiteout(dir)?;
        }
        Ok(marks)
    }

    /// Is `name` one of these marks, in a place where not everybody can write it?
    fn is_trusted(&self, marks: &[&[u8]], name: &[u8]) -> bool {
        marks.contains(&name) && (self.form.trusts_user_marks || name.starts_with(b"trusted."))
    }

    /// The lasting name of the object at `place`; `None` where the filesystem has none, or is not the root's.
    pub fn origin_at(&self, place: &Place, side: Side) -> Result<Option<Origin>, FsError> {
        match self.uuid() {
            Some(uuid) if place.stat()?.st_dev == self.root.id().dev => Origin::of(place, uuid, side),
            _ => Ok(None),
        }
    }

    /// The identity of the root's filesystem. A root that cannot be opened has none.
    fn uuid(&self) -> &Option<Uuid> {
        self.uuid.get_or_init(|| self.root.open_readable().and_then(filesystem_uuid).unwrap_or_default())
    }

    fn damaged(&self, what: String) -> FsError {
        FsError::Corrupt { layer: self.label.clone(), what }
    }

    /// Does the file at `place` hold metadata only?
    pub fn metacopy_at(&self, place: &Place) -> Result<Option<Metacopy>, FsError> {
        if self.form.is_plain {
            return Ok(None);
        }
        let names = xattr::list(place)?;
        let is_mark = |marks: &[&[u8]]| names.iter().find(|name| self.is_trusted(marks, name));
        let Some(name) = is_mark(&whiteout::METACOPY_XATTRS) else { return Ok(None) };
        let value = xattr::get(place, name)?.unwrap_or_default();
        if !whiteout::is_metacopy_value(&value) {
            return Err(self.damaged(format!("metadata-only mark of {} bytes that says nothing we know", value.len())));
        }
        let Some(name) = is_mark(&whiteout::REDIRECT_XATTRS) else { return Ok(Some(Metacopy { redirect: None })) };
        let value = xattr::get(place, name)?.unwrap_or_default();
        let damaged = || self.damaged(format!("redirect to {}", value.escape_ascii()));
        Ok(Some(Metacopy { redirect: Some(whiteout::Redirect::parse(&value).ok_or_else(damaged)?) }))
    }

    /// Does `.wh.NAME` stand beside the directory NAME? Then the layer deletes what is below and makes it anew.
    fn is_beside_its_whiteout(&self, dir: &Arc<Dir>) -> Result<bool, FsError> {
        let Some((parent, name)) = dir.parent() else { return Ok(false) };
        match Name::new(&[whiteout::OCI_PREFIX, &*name].concat()) {
            Ok(mark) => has_child(&parent, mark),
            Err(_) => Ok(false),
        }
    }

    /// Is the empty file at `place` a whiteout by attribute? The mark on its directory only serves listings, as in the
    /// kernel: what lacks it is listed there by name, and not found.
    fn is_xattr_whiteout(place: &Place) -> Result<bool, FsError> {
        Ok(xattr::list(place)?.iter().any(|name| whiteout::WHITEOUT_XATTRS.contains(&name.as_slice())))
    }

    /// What `stat` of `name` in `dir` means: a whiteout, or an entry.
    fn decode(&self, dir: &Arc<Dir>, name: Name<'_>, stat: &Stat) -> Result<Child, FsError> {
        let raw = attr_of(stat)?;
        if whiteout::is_whiteout_device(&raw) && !self.form.is_plain {
            return Ok(Child::Whiteout);
        }
        let birth = Birth { dev: stat.st_dev, ino: stat.st_ino };
        if raw.kind == Kind::Dir {
            let child = dir.child(name, stat);
            let attr = self.attr_at(&Place::Dir(Arc::clone(&child)), stat)?;
            return Ok(Child::Found(Found { entry: Entry::HostDir(child), birth, attr }));
        }
        let place = Place::at(dir, name);
        let may_be_whiteout = raw.kind == Kind::File && raw.size == 0 && !self.form.is_plain;
        if may_be_whiteout && Self::is_xattr_whiteout(&place)? {
            return Ok(Child::Whiteout);
        }
        let attr = self.attr_at(&place, stat)?;
        let entry = Entry::HostFile(Arc::clone(dir), name.bytes().into());
        Ok(Child::Found(Found { entry, birth, attr }))
    }

    fn load_listing(&self, dir: &Arc<Dir>) -> Result<Arc<Listing>, FsError> {
        let marks = self.marks(dir)?;
        let raw = dir.read_all()?;
        let mut names: Vec<(NameHash, Box<[u8]>, ListedKind)> = Vec::with_capacity(raw.len());
        for entry in raw {
            let name = Name::new(&entry.name)?;
            if self.form.has_oci_names {
                match whiteout::oci_name(name) {
                    Plain => {}
                    OciName::Whiteout(of) => {
                        if !has_child(dir, of)? {
                            names.push((NameHash::of(of), of.bytes().into(), ListedKind::Whiteout));
                        }
                        continue;
                    }
                    OciName::Opaque | OciName::Reserved => continue,
                }
            }
            let needs_stat = match entry.kind {
                None => true,
                Some(Kind::Char) => !self.form.is_plain,
                Some(Kind::File) => marks.has_xattr_whiteouts || self.form.has_override,
                Some(_) => false,
            };
            let kind = match entry.kind {
                Some(kind) if !needs_stat => ListedKind::Entry(kind),
                _ => match self.child_of(dir, name)? {
                    Child::Absent => continue,
                    Child::Whiteout => ListedKind::Whiteout,
                    Child::Found(found) => ListedKind::Entry(found.attr.kind),
                },
            };
            names.push((NameHash::of(name), entry.name, kind));
        }
        names.sort_unstable_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
        let mut listing = Listing::new();
        let mut last = None;
        let mut ordinal = 0;
        for (hash, name, kind) in names {
            ordinal = if last == Some(hash) { ordinal + 1 } else { 0 };
            last = Some(hash);
            listing.insert((hash, name), (Cookie::new(hash, ordinal), kind));
        }
        Ok(Arc::new(listing))
    }

    fn listing(&self, dir: &Arc<Dir>, after: Cookie) -> Result<Arc<Listing>, FsError> {
        let stat = dir.stat()?;
        let attr = attr_of(&stat)?;
        let stamp = (attr.mtime, attr.ctime);
        let goes_on = after > Cookie::DOTDOT;
        let is_good = |cached: &&Cached| cached.dir == dir.id() && (goes_on || cached.stamp == Some(stamp));
        if let Some(cached) = lock(&self.listings).iter().find(is_good) {
            return Ok(Arc::clone(&cached.listing));
        }
        let changes = self.changes.load(Ordering::Acquire);
        let listing = self.load_listing(dir)?;
        let mut listings = lock(&self.listings);
        let is_current = changes == self.changes.load(Ordering::Acquire);
        listings.retain(|cached| cached.dir != dir.id());
        if listings.len() >= LISTINGS {
            listings.pop_front();
        }
        listings.push_back(Cached { dir: dir.id(), stamp: is_current.then_some(stamp), listing: Arc::clone(&listing) });
        Ok(listing)
    }

    /// The directory was changed by us: a listing that begins anew reads it again, whatever its times say (they may be
    /// coarser than two changes are apart).
    pub fn outdate_listing(&self, dir: &Arc<Dir>) {
        let mut listings = lock(&self.listings);
        self.changes.fetch_add(1, Ordering::Release);
        for cached in listings.iter_mut().filter(|cached| cached.dir == dir.id()) {
            cached.stamp = None;
        }
    }

    /// In a layer that must stay as it is, what is gone is an error.
    fn kept<T>(&self, result: Result<T, FsError>) -> Result<T, FsError> {
        match result {
            Err(FsError::NotFound | FsError::Stale) if self.form.is_fixed => {
                let error = self.damaged("something that it held has been removed from it".into());
                log::error!("{error}");
                Err(error)
            }
            other => other,
        }
    }

    /// Nothing was found in `dir`: an error if that has been removed.
    fn absent_in(&self, dir: &Arc<Dir>) -> Result<Child, FsError> {
        let is_gone = self.form.is_fixed && self.counts_links && dir.stat()?.st_nlink == 0;
        if is_gone { Err(FsError::Stale) } else { Ok(Child::Absent) }
    }

    fn child_of(&self, dir: &Arc<Dir>, name: Name<'_>) -> Result<Child, FsError> {
        if self.form.has_oci_names && whiteout::oci_name(name) != Plain {
            return Ok(Child::Absent);
        }
        match dir.stat_child(name) {
            Ok(stat) => self.decode(dir, name, &stat),
            Err(FsError::NotFound) if self.form.has_oci_names => {
                let mut mark = whiteout::OCI_PREFIX.to_vec();
                mark.extend_from_slice(name.bytes());
                match Name::new(&mark) {
                    Ok(mark) if has_child(dir, mark)? => Ok(Child::Whiteout),
                    _ => self.absent_in(dir),
                }
            }
            Err(FsError::NotFound) => self.absent_in(dir),
            Err(error) => Err(error),
        }
    }
}

fn has_child(dir: &Arc<Dir>, name: Name<'_>) -> Result<bool, FsError> {
    match dir.stat_child(name) {
        Ok(_) => Ok(true),
        Err(FsError::NotFound) => Ok(false),
        Err(error) => Err(error),
    }
}

impl Layer for DirLayer {
    fn label(&self) -> String {
        self.label.clone()
    }

    fn root(&self) -> Result<Found, FsError> {
        let stat = self.root.stat()?;
        let attr = self.attr_at(&Place::Dir(Arc::clone(&self.root)), &stat)?;
        let birth = Birth { dev: stat.st_dev, ino: stat.st_ino };
        Ok(Found { entry: Entry::HostDir(Arc::clone(&self.root)), birth, attr })
    }

    fn child(&self, dir: &Entry, name: Name<'_>) -> Result<Child, FsError> {
        self.kept(self.child_of(Self::dir(dir)?, name))
    }

    fn is_opaque(&self, dir: &Entry) -> Result<bool, FsError> {
        Ok(self.dir_marks(dir)?.is_opaque)
    }

    fn metacopy(&self, entry: &Entry) -> Result<Option<Metacopy>, FsError> {
        self.kept(self.metacopy_at(&Self::place(entry)?))
    }

    fn dir_marks(&self, dir: &Entry) -> Result<DirMarks, FsError> {
        self.kept(self.marks(Self::dir(dir)?))
    }

    fn origin(&self, entry: &Entry) -> Result<Option<Origin>, FsError> {
        self.origin_at(&Self::place(entry)?, Side::Lower)
    }

    fn filesystem(&self) -> Option<(u64, Uuid)> {
        self.uuid().map(|uuid| (self.root.id().dev, uuid))
    }

    fn list(
        &self,
        dir: &Entry,
        after: Cookie,
        sink: &mut dyn FnMut(Listed<'_>) -> ControlFlow<()>,
    ) -> Result<(), FsError> {
        let listing = self.kept(self.listing(Self::dir(dir)?, after))?;
        let from = (after.hash(), Box::<[u8]>::default());
        for ((_, name), (cookie, what)) in listing.range((Bound::Included(from), Bound::Unbounded)) {
            if *cookie <= after {
                continue;
            }
            let listed = Listed { name: Name::new(name)?, cookie: *cookie, what: *what };
            if sink(listed).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn attr(&self, entry: &Entry) -> Result<Attr, FsError> {
        let place = Self::place(entry)?;
        self.kept(place.stat().and_then(|stat| self.attr_at(&place, &stat)))
    }

    fn open(&self, entry: &Entry) -> Result<Body, FsError> {
        let Entry::HostFile(dir, name) = entry else { return Err(FsError::Invalid) };
        // NONBLOCK: should the host have put a FIFO there, opening must not wait for its writer.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        self.kept(dir.open_at(Name::new(name)?, flags, 0).map(Body::File))
    }

    fn read_link(&self, entry: &Entry) -> Result<Vec<u8>, FsError> {
        self.kept(self.read_link_at(&Self::place(entry)?))
    }

    fn xattr(&self, entry: &Entry, name: &[u8]) -> Result<Option<Vec<u8>>, FsError> {
        self.kept(self.xattr_at(&Self::place(entry)?, name))
    }

    fn xattr_names(&self, entry: &Entry) -> Result<Vec<Vec<u8>>, FsError> {
        self.kept(self.xattr_names_at(&Self::place(entry)?))
    }
}

/// The `override` ownership form: what the host cannot hold stands in attributes of a file that it can.
///
/// Owner, mode and kind are `uid:gid:mode[:kind]` with decimal ids, an octal mode and, for what is no regular file or
/// directory, `symlink`, `pipe`, `socket`, `char-MAJOR-MINOR`, `block-MAJOR-MINOR` (containers/storage). The target of
/// such a symlink is the file's content. Attributes that the host refuses us (`security.`, `trusted.`) stand aside
/// under a name that is hidden like all marks.
pub mod override_stat {
    use super::{Attr, FsError, Kind, OFlags, Place};
    use crate::model::attr::{make_rdev, split_rdev};
    use crate::sys::data::read_at;

    /// Prefix of attributes that stand aside.
    const ASIDE: &[u8] = b"user.overlay.mlfs.aside.";

    /// The name under which the attribute `name` stands aside.
    pub fn aside(name: &[u8]) -> Vec<u8> {
        [ASIDE, name].concat()
    }

    /// The attribute that stands aside under `name`, if it is such a name.
    pub fn from_aside(name: &[u8]) -> Option<&[u8]> {
        name.strip_prefix(ASIDE)
    }

    /// Applies a value to the host's attributes. A value that says nothing we understand changes nothing.
    pub fn apply(value: &[u8], attr: &mut Attr) {
        let Some((uid, gid, perm, kind, rdev)) = parse(value) else { return };
        (attr.uid, attr.gid, attr.perm) = (uid, gid, perm);
        if let Some(kind) = kind
            && attr.kind == Kind::File
        {
            attr.kind = kind;
            attr.rdev = rdev;
            if kind != Kind::Symlink && kind != Kind::File {
                attr.size = 0;
            }
        }
    }

    /// Does the value say something we understand?
    pub fn is_valid(value: &[u8]) -> bool {
        parse(value).is_some()
    }

    fn parse(value: &[u8]) -> Option<(u32, u32, u32, Option<Kind>, u64)> {
        let text = std::str::from_utf8(value).ok()?.trim_end_matches('\0');
        let mut words = text.splitn(4, ':');
        let uid = words.next()?.parse().ok()?;
        let gid = words.next()?.parse().ok()?;
        let mode = u32::from_str_radix(words.next()?, 8).ok()?;
        let Some(kind) = words.next() else { return Some((uid, gid, mode & 0o7777, None, 0)) };
        let mut parts = kind.split('-');
        let kind = match parts.next()? {
            "file" => Kind::File,
            "dir" => Kind::Dir,
            "symlink" => Kind::Symlink,
            "pipe" => Kind::Fifo,
            "socket" => Kind::Socket,
            "char" => Kind::Char,
            "block" => Kind::Block,
            _ => return None,
        };
        let rdev = match kind {
            Kind::Char | Kind::Block => make_rdev(parts.next()?.parse().ok()?, parts.next()?.parse().ok()?),
            _ => 0,
        };
        Some((uid, gid, mode & 0o7777, Some(kind), rdev))
    }

    /// The value that keeps `uid`, `gid`, `perm` and, where the host's file is not of that kind, kind and device.
    pub fn value(uid: u32, gid: u32, perm: u32, kind: Kind, rdev: u64) -> Vec<u8> {
        let (major, minor) = split_rdev(rdev);
        let kind = match kind {
            Kind::File | Kind::Dir => String::new(),
            Kind::Symlink => ":symlink".to_owned(),
            Kind::Fifo => ":pipe".to_owned(),
            Kind::Socket => ":socket".to_owned(),
            Kind::Char => format!(":char-{major}-{minor}"),
            Kind::Block => format!(":block-{major}-{minor}"),
        };
        format!("{uid}:{gid}:{perm:o}{kind}").into_bytes()
    }

    /// The target of a symlink that is kept as a file.
    pub fn read_target(place: &Place) -> Result<Vec<u8>, FsError> {
        let fd = place.open(OFlags::RDONLY | OFlags::NONBLOCK)?;
        let mut target = vec![0; 4096];
        let length = read_at(&fd, &mut target, 0)?;
        target.truncate(length);
        Ok(target)
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn values_round_trip() {
            for (kind, rdev) in [(Kind::Symlink, 0), (Kind::Char, make_rdev(1, 3)), (Kind::Block, make_rdev(259, 7))] {
                let (uid, gid, perm, got, dev) = parse(&value(1, 2, 0o4755, kind, rdev)).unwrap();
                assert_eq!((uid, gid, perm, got, dev), (1, 2, 0o4755, Some(kind), rdev));
            }
            assert_eq!(value(0, 0, 0o644, Kind::File, 0), b"0:0:644");
            assert_eq!(parse(b"0:5:0100644"), Some((0, 5, 0o644, None, 0)));
            for bad in [&b""[..], b"1", b"1:2", b"1:2:9", b"1:2:7:what", b"\xff"] {
                assert_eq!(parse(bad), None, "{bad:?}");
            }
        }
    }
}
