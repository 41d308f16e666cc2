// SPDX-License-Identifier: MIT OR Apache-2.0
//! OPEN and RELEASE of regular files: which file of the host holds the content, and who reads and writes it.
//!
//! The kernel may read and write the host's file by itself (passthrough); `policy.rs` decides, the [`Transport`] tells
//! the kernel. All handles of a node share one backing file then. Where another would be needed, because the file was
//! copied up under those who read the layer's, it gets another node: the open is answered `Stale`, the kernel looks the
//! name up again and finds it. Those who read before go on reading the layer; no layer's file is ever opened for
//! writing, nor behind a handle that can write.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::OFlags;

use super::Fs;
use super::handle::{Content, Handle, Io};
use super::policy::{Opening, Way, way};
use crate::model::ids::{Caller, HandleId, NodeId};
use crate::model::sync::{lock, read};
use crate::model::{FsError, Kind, NameBuf};
use crate::sys::{FileId, Place, data};
use crate::tree::node::{Backing, Opens};
use crate::tree::{Node, Whereabouts};
use crate::upper::copy_up::Extent;

/// How a file is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenFlags {
    /// For writing (`O_WRONLY`, `O_RDWR`).
    pub write: bool,
    /// Mappings of it can be written (`O_RDWR`).
    pub is_mappable: bool,
    /// `O_TRUNC`.
    pub truncate: bool,
    /// `O_DIRECT`.
    pub is_direct: bool,
    /// `O_APPEND`.
    pub appends: bool,
    /// Who has no right to keep set-id bits when the file is truncated.
    pub clears_for: Option<Caller>,
}

impl OpenFlags {
    /// From the flags of open(2).
    pub fn from_bits(bits: i32, clears_for: Option<Caller>) -> Self {
        OpenFlags {
            write: bits & libc::O_ACCMODE != libc::O_RDONLY,
            is_mappable: bits & libc::O_ACCMODE == libc::O_RDWR,
            truncate: bits & libc::O_TRUNC != 0,
            is_direct: bits & libc::O_DIRECT != 0,
            appends: bits & libc::O_APPEND != 0,
            clears_for,
        }
    }
}

/// An opened file.
#[derive(Clone, Copy, Debug)]
pub struct Opened {
    /// Its handle.
    pub handle: HandleId,
    /// May the kernel keep what it has cached of the content?
    pub keeps_data: bool,
    /// Must it pass on each write whole, its cache left aside? Others append too, and it would cut records at its pages.
    pub is_uncached: bool,
    /// The backing file that the kernel reads and writes.
    pub backing: Option<u64>,
}

/// What carries requests here, as far as an open needs it.
pub trait Transport {
    /// Can the kernel read and write the host's files by itself?
    fn can_pass(&self) -> bool;

    /// Makes the kernel know a file; the number by which it does. It stands for the file, not for how the descriptor was
    /// opened: which opens may use it is for the caller to decide.
    fn open_backing(&self, file: BorrowedFd<'_>) -> io::Result<u64>;

    /// Nobody uses that file any more.
    fn close_backing(&self, number: u64);

    /// Before the answer, the kernel must unlearn something.
    fn unlearn(&self, what: Unlearn);
}

/// What the kernel knows of a file that has been given another node.
#[derive(Clone, Debug)]
pub struct Unlearn {
    /// The node whose attributes change without its doing from now on.
    pub node: NodeId,
    /// Names that lead to another node now.
    pub names: Vec<(NodeId, NameBuf)>,
}

/// No kernel: everything is read and written here.
#[derive(Clone, Copy, Debug)]
pub struct Direct;

impl Transport for Direct {
    fn can_pass(&self) -> bool {
        false
    }

    fn open_backing(&self, _: BorrowedFd<'_>) -> io::Result<u64> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn close_backing(&self, _: u64) {}

    fn unlearn(&self, _: Unlearn) {}
}

impl Fs {
    /// OPEN of a regular file by somebody who has no kernel between himself and us.
    pub fn open(&self, id: NodeId, flags: OpenFlags) -> Result<Opened, FsError> {
        self.open_by(id, flags, &Direct)
    }

    /// OPEN of a regular file. With `truncate` the old content is not even copied up, and set-id bits and capabilities
    /// go as with every change of the content. `Stale`: the name must be looked up again.
    pub fn open_by(&self, id: NodeId, flags: OpenFlags, transport: &dyn Transport) -> Result<Opened, FsError> {
        let node = self.tree.node(id)?;
        match node.kind() {
            Kind::File => {}
            Kind::Dir => return Err(FsError::IsDir),
            Kind::Symlink | Kind::Fifo | Kind::Char | Kind::Block | Kind::Socket => return Err(FsError::Invalid),
        }
        let changes = flags.write || flags.truncate;
        if changes && !node.is_home() {
            return Err(FsError::Stale);
        }
        if changes && flags.is_direct && transport.can_pass() {
            self.check_direct_upper(&node)?;
        }
        // Content is copied before the node is held: others may open it meanwhile. Emptied and opened in one: an error
        // for want of descriptors leaves the old content.
        let emptied = if flags.truncate { self.tree.emptied(&node)? } else { None };
        let place = match &emptied {
            None if changes => Some(self.reach_writable(&node, Extent::Whole)?),
            _ => None,
        };
        let is_emptied = emptied.is_some();
        let mut opens = lock(&node.opens);
        let content = match (emptied, place) {
            (Some(file), _) => Content::Writable(file),
            (None, Some(place)) => Content::Writable(Arc::new(open_for_writing(&place)?)),
            (None, None) => self.open_for_reading(&node)?,
        };
        let (io, backing) = self.choose(&node, &mut opens, &content, flags, transport)?;
        if let (true, Content::Writable(file)) = (flags.truncate, &content) {
            let cut = if is_emptied { Ok(()) } else { rustix::fs::ftruncate(&**file, 0).map_err(FsError::from) };
            let place = Place::Fd(Arc::clone(file));
            if let Err(error) = cut.and_then(|()| self.clear_privileges(&node, &place, flags.clears_for)) {
                if let Some(number) = close(&mut opens, io) {
                    transport.close_backing(number);
                }
                return Err(error);
            }
        }
        drop(opens);
        Ok(self.insert_handle(node, content, flags, (io, backing)))
    }

    /// Before anything is changed by an open with `O_DIRECT`: can the host do that where the file will lie?
    fn check_direct_upper(&self, node: &Arc<Node>) -> Result<(), FsError> {
        let is_able = match (self.reach(node)?, self.tree.content(node)?) {
            (Some(place), Whereabouts::Upper) => data::has_direct_io(&place.open(OFlags::RDONLY | OFlags::NONBLOCK)?)?,
            _ => node.branch().writable_upper()?.has_direct_io()?,
        };
        if is_able { Ok(()) } else { Err(FsError::Invalid) }
    }

    /// Decides how a file is opened and counts it. The caller holds `node.opens`.
    fn choose(
        &self,
        node: &Arc<Node>,
        opens: &mut Opens,
        content: &Content,
        flags: OpenFlags,
        transport: &dyn Transport,
    ) -> Result<(Io, Option<u64>), FsError> {
        let stat = content.file().map(rustix::fs::fstat).transpose()?;
        let opening = Opening {
            can_pass: transport.can_pass(),
            is_in_layer: matches!(content, Content::Layer(_)),
            writes: flags.write,
            size: stat.map_or(0, |stat| stat.st_size.try_into().unwrap_or(0)),
            file: stat.as_ref().map(FileId::of),
        };
        match (way(&opening, opens), content.file(), opening.file) {
            (Way::Pass, Some(file), Some(id)) => {
                check_direct(flags, file)?;
                match transport.open_backing(file.as_fd()) {
                    Ok(number) => {
                        opens.backing = Some(Backing { number, file: id, handles: 1 });
                        return Ok(passed(node, flags, number));
                    }
                    Err(error) => log::debug!("node {} is opened without passthrough: {error}", node.id().0),
                }
            }
            (Way::Share, Some(file), _) => {
                check_direct(flags, file)?;
                if let Some(backing) = &mut opens.backing {
                    backing.handles += 1;
                    return Ok(passed(node, flags, backing.number));
                }
            }
            (Way::Elsewhere, ..) => {
                self.tree.nodes().rehome(node)?;
                let names = read(&node.state).links.iter().map(|(dir, name)| (dir.id(), name.clone())).collect();
                transport.unlearn(Unlearn { node: node.id(), names });
                return Err(FsError::Stale);
            }
            (Way::Pass | Way::Share | Way::Cached, ..) => {}
        }
        opens.cached += 1;
        Ok((Io::Ours, None))
    }

    /// Enters a file that was made and opened by one call.
    pub(super) fn insert_created(
        &self,
        node: &Arc<Node>,
        file: Arc<OwnedFd>,
        flags: OpenFlags,
        transport: &dyn Transport,
    ) -> Result<Opened, FsError> {
        let content = Content::Writable(file);
        let (io, backing) = self.choose(node, &mut lock(&node.opens), &content, flags, transport)?;
        Ok(self.insert_handle(Arc::clone(node), content, flags, (io, backing)))
    }

    fn insert_handle(
        &self,
        node: Arc<Node>,
        content: Content,
        flags: OpenFlags,
        (io, backing): (Io, Option<u64>),
    ) -> Opened {
        // What was cached before the kernel went to the file by itself is dropped: it would be stale afterwards.
        let keeps_data = io == Io::Ours && self.caching(&node).keeps_data;
        let is_uncached = io == Io::Ours && flags.write && flags.appends && node.branch().is_shared();
        Opened { handle: self.handles.insert(Handle::new(node, content, io)), keeps_data, is_uncached, backing }
    }

    pub(super) fn open_for_reading(&self, node: &Arc<Node>) -> Result<Content, FsError> {
        match self.tree.content(node)? {
            // Never by its name: another file, even a device, may stand there while names change.
            Whereabouts::Upper => {
                let place = self.reach(node)?.ok_or(FsError::Stale)?;
                Ok(Content::Readable(Arc::new(place.open(OFlags::RDONLY | OFlags::NONBLOCK)?)))
            }
            Whereabouts::Below(lower) => Ok(Content::Layer(Arc::new(node.branch().layer(&lower)?.open(&lower.entry)?))),
        }
    }

    /// RELEASE: the file was closed. The number of a backing file that nobody uses any more.
    pub fn release(&self, handle: HandleId) -> Option<u64> {
        let handle = self.handles.remove(handle)?;
        close(&mut lock(&handle.node().opens), handle.io())
    }
}

/// One handle less; the backing file that nobody uses any more.
fn close(opens: &mut Opens, io: Io) -> Option<u64> {
    if io == Io::Ours {
        opens.cached = opens.cached.saturating_sub(1);
        return None;
    }
    let backing = opens.backing.as_mut()?;
    backing.handles = backing.handles.saturating_sub(1);
    if backing.handles > 0 {
        return None;
    }
    opens.backing.take().map(|backing| backing.number)
}

/// A handle that the kernel serves.
fn passed(node: &Node, flags: OpenFlags, number: u64) -> (Io, Option<u64>) {
    if flags.is_mappable {
        // Mappings outlive the handle, and nobody tells of what is written there.
        node.is_mappable.store(true, Ordering::Relaxed);
    }
    (Io::Passed, Some(number))
}

/// A host that has no direct input and output says so; the kernel would say EIO.
fn check_direct(flags: OpenFlags, file: &OwnedFd) -> Result<(), FsError> {
    if flags.is_direct && !data::has_direct_io(file)? { Err(FsError::Invalid) } else { Ok(()) }
}

/// Opens a file of the upper for writing: readable too where the host lets us, since the kernel reads before it writes
/// parts of pages.
pub(super) fn open_for_writing(place: &Place) -> Result<OwnedFd, FsError> {
    match place.open(OFlags::RDWR | OFlags::NONBLOCK) {
        Err(FsError::Access) => place.open(OFlags::WRONLY | OFlags::NONBLOCK),
        other => other,
    }
}
