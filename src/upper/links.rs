// SPDX-License-Identifier: MIT OR Apache-2.0
//! Hard-link groups of layers over copy-up, removal and remount: one file, whatever its names have lived through.
//!
//! The first change of a group copies it up once, and a **record**, a link to the copy, says so. A look-up that ends at
//! another name of the group, still in its layer, finds the copy by it: a write through one name is seen through all. A
//! name that goes is a change too: a copy without content is recorded before the whiteout is made.
//!
//! What is shown as link count is the host's plus a kept difference (`overlay.nlink` = `U+N`): names that exist only in
//! the layer are added, the record is not counted.
//!
//! Records have two homes and one mechanism. Where the layer's files have lasting names (file handles) and marks are
//! `trusted.`, it is the kernel's: `work/index/HANDLE` with `overlay.origin` on the copy, so that kernel overlayfs and
//! mlfs read each other's groups. Else it is `work/mlfs-links/copy-LAYER-DEVICE-INODE`, with that name on the copy. What
//! can carry no attribute without root (symlinks, pipes) has both beside the record: a symlink `of-INODE`, the copy's.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, linkat, renameat, symlinkat, unlinkat};
use rustix::io::Errno;

use super::edit::link_place;
use super::{MarkSpace, Upper, Work, open_or_make, recover};
use crate::layer::origin::{Origin, Side};
use crate::layer::{Birth, Layer as _};
use crate::model::sync::lock;
use crate::model::{FsError, Kind, Name, NameBuf};
use crate::sys::xattr::SetMode;
use crate::sys::{Dir, Place, xattr};

/// Which group of which layer: stable over remounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Group {
    /// Number of the layer in its branch, 1 at the bottom.
    pub layer: u32,
    /// Where the group was born; `dev` is 0 for the device of the layer's root.
    pub birth: Birth,
}

/// Where a group is recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// In the kernel's index.
    Index(Origin),
    /// In ours, under this name.
    Own(NameBuf),
}

impl Record {
    /// The record of a group of a layer; `origin`: its lasting name there, where the index is used.
    pub(crate) fn of(group: Group, origin: Option<Origin>) -> Result<Self, FsError> {
        if let Some(origin) = origin {
            return Ok(Record::Index(origin));
        }
        let Group { layer, birth } = group;
        Ok(Record::Own(NameBuf::new(format!("copy-{layer:x}-{:x}-{:x}", birth.dev, birth.ino).into_bytes())?))
    }

    fn name(&self) -> Result<NameBuf, FsError> {
        match self {
            Record::Index(origin) => NameBuf::new(origin.index_name().into_bytes()),
            Record::Own(name) => Ok(name.clone()),
        }
    }

    /// The attribute of the copy that leads back to the record, and its value.
    fn mark(&self) -> (&'static str, &[u8]) {
        match self {
            Record::Index(origin) => (ORIGIN, origin.bytes()),
            Record::Own(name) => (OWN_RECORD, name.as_name().bytes()),
        }
    }
}

const ORIGIN: &str = "origin";
const OWN_RECORD: &str = "mlfs.group";
const LINKS: &str = "nlink";

/// Links shown minus links of the host. `None` for a value that says something else.
fn parse_excess(value: &[u8]) -> Option<i64> {
    std::str::from_utf8(value).ok()?.strip_prefix('U')?.parse().ok()
}

impl Upper {
    /// Will groups of layers whose files have lasting names be recorded in the kernel's index?
    pub(crate) fn uses_index(&self) -> bool {
        let is_usable = |work: &Work| work.marks == MarkSpace::Trusted && !work.refuses_index.load(Ordering::Relaxed);
        self.work.as_ref().is_some_and(is_usable)
    }

    /// The layers' files cannot be told apart by lasting names: the index is not used (so does kernel overlayfs).
    pub(crate) fn refuse_index(&self) {
        let Some(work) = &self.work else { return };
        work.refuses_index.store(true, Ordering::Relaxed);
        let has_index = work.index.get().map(|index| recover::has_records(index, None));
        if !matches!(has_index, None | Some(Ok(false))) {
            let label = self.reader.label();
            log::warn!(
                "{label}: layers lie on filesystems of one identity: hard links in work/index are not looked up"
            );
        }
    }

    /// Are there any records? Spares the look for one.
    pub(crate) fn has_records(&self) -> bool {
        self.work.as_ref().is_some_and(|work| work.has_links.load(Ordering::Relaxed))
    }

    fn records_of<'a>(&self, work: &'a Work, record: &Record) -> Option<&'a Arc<Dir>> {
        match record {
            Record::Index(_) => work.index.get(),
            Record::Own(_) => Some(&work.links),
        }
    }

    /// The copy of a group, if it was copied up.
    pub(crate) fn find_copy(&self, record: &Record, kind: Kind) -> Result<Option<Place>, FsError> {
        let Some(records) = self.records_of(self.work()?, record) else { return Ok(None) };
        let name = record.name()?;
        match records.stat_child(name.as_name()) {
            Ok(stat) => {
                let place = Place::at(records, name.as_name());
                // Kernel overlayfs can leave a whiteout there.
                let is_copy = self.reader().attr_at(&place, &stat)?.kind == kind;
                Ok(is_copy.then_some(place))
            }
            Err(FsError::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The record of the copy at `place`; `None` for a file of no group.
    fn record_of(&self, place: &Place) -> Result<Option<Record>, FsError> {
        if !self.has_records() {
            return Ok(None);
        }
        if let Some(name) = xattr::get(place, &self.mark_name(OWN_RECORD)?)? {
            return Ok(NameBuf::new(name).ok().map(Record::Own));
        }
        if let Some((_, record)) = self.beside(place)? {
            return Ok(Some(record));
        }
        Ok(xattr::get(place, &self.mark_name(ORIGIN)?)?.and_then(|value| Origin::parse(&value)).map(Record::Index))
    }

    fn excess(&self, place: &Place) -> Result<Option<i64>, FsError> {
        match xattr::get(place, &self.mark_name(LINKS)?)? {
            Some(value) => Ok(parse_excess(&value)),
            None => Ok(self.beside(place)?.map(|(excess, _)| excess)),
        }
    }

    fn set_excess(&self, place: &Place, excess: i64) -> Result<(), FsError> {
        match self.beside(place)? {
            Some((_, record)) => self.set_beside(place, excess, &record),
            None => xattr::set(place, &self.mark_name(LINKS)?, format!("U{excess:+}").as_bytes(), SetMode::Any),
        }
    }

    /// The name under which marks of the copy at `place` stand beside its record; `None` where it can carry them.
    fn name_beside(&self, place: &Place) -> Result<Option<NameBuf>, FsError> {
        if self.work()?.marks == MarkSpace::Trusted {
            return Ok(None);
        }
        let stat = place.stat()?;
        match Kind::from_mode(stat.st_mode) {
            Some(Kind::File | Kind::Dir) => Ok(None),
            _ => Ok(Some(beside_name(stat.st_ino)?)),
        }
    }

    /// The marks of the copy at `place` that stand beside its record: kept difference and record.
    fn beside(&self, place: &Place) -> Result<Option<(i64, Record)>, FsError> {
        if self.name_beside(place)?.is_none() {
            return Ok(None);
        }
        let found = beside(&self.work()?.links, place.stat()?.st_ino)?;
        Ok(found.map(|(excess, record)| (excess, Record::Own(record))))
    }

    fn set_beside(&self, place: &Place, excess: i64, record: &Record) -> Result<(), FsError> {
        let Some(name) = self.name_beside(place)? else { return Err(FsError::Unsupported) };
        let work = self.work()?;
        let (aside, stage, links) = (work.next_name()?, work.stage.open()?, work.links.open()?);
        let value = [format!("U{excess:+} ").as_bytes(), record.name()?.as_name().bytes()].concat();
        symlinkat(value, &*stage, aside.as_name().os())?;
        let renamed = renameat(&*stage, aside.as_name().os(), &*links, name.as_name().os());
        if renamed.is_err() {
            recover::remove(&work.stage, aside.as_name())?;
        }
        Ok(renamed?)
    }

    /// Records the staged copy at `place` of a group with `nlink` names in its layer, none of which it has taken yet:
    /// when it takes one, [`Upper::lose_layer_name`] says so (a crash in between leaves a count too high, never one so
    /// low that the record would go too early). It is never taken back: the record alone is a whole copy, which others
    /// may have found by now. The place of the record.
    pub(crate) fn record_copy(&self, record: &Record, place: &Place, nlink: u32) -> Result<Place, FsError> {
        let work = self.work()?;
        let records = match record {
            Record::Index(_) => self.index()?,
            Record::Own(_) => Arc::clone(&work.links),
        };
        // The host counts the link here.
        let excess = i64::from(nlink) - 1;
        if self.name_beside(place)?.is_some() {
            self.set_beside(place, excess, record)?;
        } else {
            let (mark, value) = record.mark();
            xattr::set(place, &self.mark_name(mark)?, value, SetMode::Any)?;
            self.set_excess(place, excess)?;
        }
        work.has_links.store(true, Ordering::Relaxed);
        let name = record.name()?;
        if let Err(error) = link_place(place, &records, name.as_name()) {
            self.forget_beside(place)?;
            return Err(error);
        }
        Ok(Place::at(&records, name.as_name()))
    }

    fn forget_beside(&self, place: &Place) -> Result<(), FsError> {
        match self.name_beside(place)? {
            Some(name) => recover::remove(&self.work()?.links, name.as_name()),
            None => Ok(()),
        }
    }

    /// Drops the record of the copy at `place`.
    fn forget_record(&self, record: &Record, place: &Place) -> Result<(), FsError> {
        self.forget_beside(place)?;
        let Some(records) = self.records_of(self.work()?, record) else { return Ok(()) };
        match unlinkat(&*records.open()?, record.name()?.as_name().os(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// The links to show for the host's file at `place`, which has `host_nlink` links.
    pub fn count_links(&self, place: &Place, host_nlink: u32) -> Result<u32, FsError> {
        if !self.has_records() {
            return Ok(host_nlink);
        }
        let excess = self.excess(place)?.unwrap_or(0);
        Ok(u32::try_from(i64::from(host_nlink) + excess).unwrap_or(0))
    }

    /// A name of the group of the copy at `place` that exists only in its layer was removed or covered.
    pub(crate) fn lose_layer_name(&self, place: &Place) -> Result<(), FsError> {
        // Two names may go at once, in two directories.
        let _counting = lock(&self.work()?.counting);
        match self.excess(place)? {
            Some(excess) => self.set_excess(place, excess - 1),
            None => Ok(()),
        }
    }

    /// Drops the record of a copy of which no name is left to users.
    pub(crate) fn drop_empty_group(&self, place: &Place) -> Result<(), FsError> {
        let Some(record) = self.record_of(place)? else { return Ok(()) };
        let host_nlink = place.stat()?.st_nlink.try_into().unwrap_or(u32::MAX);
        if self.count_links(place, host_nlink)? == 0 { self.forget_record(&record, place) } else { Ok(()) }
    }

    /// The copy at `place` of a group is about to get a name in `dir`: kernel overlayfs looks for the inode numbers of
    /// such files only in directories that say so (`overlay.impure`).
    pub(crate) fn mark_impure(&self, dir: &Arc<Dir>, place: &Place) -> Result<(), FsError> {
        if !self.uses_index() || !matches!(self.record_of(place)?, Some(Record::Index(_))) {
            return Ok(());
        }
        let (dir, name) = (Place::Dir(Arc::clone(dir)), self.mark_name("impure")?);
        if xattr::get(&dir, &name)?.is_some() { Ok(()) } else { xattr::set(&dir, &name, b"y", SetMode::Any) }
    }

    /// The kernel's index, made if need be. As the kernel does, it is bound to this upper, and the upper to the topmost
    /// layer, so that neither is taken for another's.
    fn index(&self) -> Result<Arc<Dir>, FsError> {
        let work = self.work()?;
        let _counting = lock(&work.counting);
        if let Some(index) = work.index.get() {
            return Ok(Arc::clone(index));
        }
        let root = Place::Dir(Arc::clone(self.root()));
        let index = open_or_make(&work.dir, Name::new(recover::INDEX)?)?;
        index.pin()?;
        if let Some(upper) = self.reader().origin_at(&root, Side::Upper)? {
            xattr::set(&Place::Dir(Arc::clone(&index)), &self.mark_name("upper")?, upper.bytes(), SetMode::Any)?;
        }
        if let (Some(origin), None) = (lock(&work.top_layer).take(), xattr::get(&root, &self.mark_name(ORIGIN)?)?) {
            xattr::set(&root, &self.mark_name(ORIGIN)?, origin.bytes(), SetMode::Any)?;
        }
        Ok(Arc::clone(work.index.get_or_init(|| index)))
    }

    /// The lasting name of the root of the topmost layer, for the kernel to know its overlay by.
    pub(crate) fn set_top_layer(&self, origin: Option<Origin>) {
        if let Some(work) = &self.work {
            *lock(&work.top_layer) = origin;
        }
    }
}

/// Removes the marks in `links` (of [`Upper::set_beside`]) of copies that a crash has kept from being recorded: their
/// inode numbers will be those of other files.
pub(super) fn clear_marks_beside(links: &Arc<Dir>) -> Result<(), FsError> {
    for entry in links.read_all()? {
        let name = Name::new(&entry.name)?;
        if entry.name.starts_with(b"of-") && !is_recorded(links, name)? {
            recover::remove(links, name)?;
        }
    }
    Ok(())
}

/// The name in `mlfs-links` of the marks of a copy that can carry none.
pub(super) fn beside_name(inode: u64) -> Result<NameBuf, FsError> {
    NameBuf::new(format!("of-{inode:x}").into_bytes())
}

/// The marks that stand beside the record of the copy with this inode number: kept difference, and the record's name.
pub(super) fn beside(links: &Arc<Dir>, inode: u64) -> Result<Option<(i64, NameBuf)>, FsError> {
    let value = match Place::at(links, beside_name(inode)?.as_name()).read_link() {
        Ok(value) => value,
        Err(FsError::NotFound) => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut words = value.splitn(2, |byte| *byte == b' ');
    let excess = words.next().and_then(parse_excess);
    let record = words.next().and_then(|name| NameBuf::new(name.to_vec()).ok());
    Ok(excess.zip(record))
}

/// Is the copy recorded whose marks stand under `name` in `links`?
pub(super) fn is_recorded(links: &Arc<Dir>, name: Name<'_>) -> Result<bool, FsError> {
    let target = Place::at(links, name).read_link()?;
    let record = target.splitn(2, |byte| *byte == b' ').nth(1).and_then(|name| Name::new(name).ok());
    match record.map(|record| links.stat_child(record)).transpose() {
        Ok(Some(stat)) => Ok(beside_name(stat.st_ino)?.as_name() == name),
        Ok(None) | Err(FsError::NotFound) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Links the object of an open descriptor to a new name.
pub(crate) fn link_fd(fd: &OwnedFd, dir: &Arc<Dir>, name: Name<'_>) -> Result<(), FsError> {
    let source = crate::sys::node::proc_path(fd);
    Ok(linkat(rustix::fs::CWD, source, &*dir.open()?, name.os(), AtFlags::SYMLINK_FOLLOW)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_counts_are_the_kernels() {
        assert_eq!(parse_excess(b"U+1"), Some(1));
        assert_eq!(parse_excess(b"U-1"), Some(-1));
        assert_eq!(parse_excess(b"U+0"), Some(0));
        for other in [&b"L+1"[..], b"", b"U", b"\xff"] {
            assert_eq!(parse_excess(other), None);
        }
    }
}
