// SPDX-License-Identifier: MIT OR Apache-2.0
//! Floor 7: the only folder that names `fuser`: decode, call, answer. Mounting is in `mount.rs`, the session in
//! `session.rs`. How a request is served, and on which thread, is in `server.rs`: a panic in an operation becomes EIO for
//! its caller, is counted and logged, and the mount lives on (fuser 0.18 would unmount).

use std::ffi::OsStr;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags as FuseOpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use crate::fs::create::NewNode;
use crate::fs::io::Whence;
use crate::fs::{EntryOut, Fs, OpenFlags, Opened, RenameMode, SetAttr, Transport, Unlearn};
use crate::model::ids::{Caller, HandleId, NodeId};
use crate::model::{Attr, Cookie, FsError, Kind, Name};
use crate::sys::proc;
use crate::sys::xattr::SetMode;

mod backing;
pub mod convert;
mod copier;
pub mod io_choice;
pub mod mount;
mod server;
pub mod session;

pub use io_choice::IoChoice;
pub use mount::{FuseMount, MountError, MountOptions, WITHOUT, mount};
pub use session::{IoMeter, Session};

use backing::{Opener, OpensBacking};
use convert::{entry_attr, file_attr, file_type, set_time};
use server::Server;

/// Generations are not used: ids are never reused while the kernel knows them.
const GENERATION: Generation = Generation(0);

/// Translates between the kernel and [`Fs`].
#[derive(Debug)]
pub(crate) struct Adapter {
    server: Arc<Server>,
    io: IoChoice,
    /// Root of the machine keeps set-id bits when it writes; as for the kernel, root of a namespace does not.
    is_initial_namespace: bool,
}

impl Adapter {
    pub(crate) fn new(server: Arc<Server>, io: IoChoice) -> Self {
        Adapter { server, io, is_initial_namespace: proc::is_initial_user_namespace() }
    }

    fn call<T>(&self, what: &'static str, run: impl FnOnce(&Fs) -> Result<T, FsError>) -> Result<T, Errno> {
        self.server.call(what, run)
    }

    /// The caller, if set-id bits must go when he changes content: fuser shows what the kernel has decided for WRITE only.
    fn clears_for(&self, request: &Request) -> Option<Caller> {
        (request.uid() != 0 || !self.is_initial_namespace).then(|| caller(request))
    }
}

fn caller(request: &Request) -> Caller {
    Caller { uid: request.uid(), gid: request.gid(), pid: request.pid() }
}

fn node(ino: INodeNo) -> NodeId {
    NodeId(ino.0)
}

fn handle(fh: FileHandle) -> HandleId {
    HandleId(fh.0)
}

fn open_flags(opened: &Opened) -> FopenFlags {
    let mut flags = FopenFlags::empty();
    flags.set(FopenFlags::FOPEN_KEEP_CACHE, opened.keeps_data);
    flags.set(FopenFlags::FOPEN_DIRECT_IO, opened.is_uncached);
    flags
}

/// An open that ended: with a file, or with what the kernel must unlearn before it looks the name up again.
type OpenEnd<T> = Result<T, Vec<Unlearn>>;

/// Runs an open that may tell the kernel of backing files.
fn run_open<R: OpensBacking, T>(
    server: &Server,
    reply: &R,
    run: impl FnOnce(&dyn Transport) -> Result<T, FsError>,
) -> Result<OpenEnd<T>, FsError> {
    let opener = Opener::new(&server.backings, reply);
    match run(&opener) {
        Err(FsError::Stale) => match opener.into_unlearn() {
            nothing if nothing.is_empty() => Err(FsError::Stale),
            what => Ok(Err(what)),
        },
        other => other.map(Ok),
    }
}

fn send_open(server: &Server, reply: ReplyOpen, result: Result<OpenEnd<Opened>, Errno>) {
    let opened = match result {
        Ok(Ok(opened)) => opened,
        Ok(Err(what)) => return server.unlearn(what, move || reply.error(Errno::ESTALE)),
        Err(errno) => return reply.error(errno),
    };
    let (fh, flags) = (FileHandle(opened.handle.0), open_flags(&opened));
    match opened.backing {
        None => reply.opened(fh, flags),
        Some(number) => match server.backings.get(number) {
            Some(id) => reply.opened_passthrough(fh, flags, &id),
            None => reply.error(Errno::EIO),
        },
    }
}

fn send_create(server: &Server, reply: ReplyCreate, result: Result<OpenEnd<(EntryOut, Opened)>, Errno>) {
    let (out, opened) = match result {
        Ok(Ok(both)) => both,
        Ok(Err(what)) => {
            // The kernel holds the directory until it is answered, and unlearning a name takes it too.
            reply.error(Errno::ESTALE);
            return server.unlearn(what, || {});
        }
        Err(errno) => return reply.error(errno),
    };
    // One TTL serves name and attributes here: the shorter one.
    let ttl = out.attr_ttl.min(out.entry_ttl);
    let attr = entry_attr(out.id.0, &out.attr);
    let (fh, flags) = (FileHandle(opened.handle.0), open_flags(&opened));
    match opened.backing {
        None => reply.created(&ttl, &attr, GENERATION, fh, flags),
        Some(number) => match server.backings.get(number) {
            Some(id) => reply.created_passthrough(&ttl, &attr, GENERATION, fh, flags, &id),
            None => reply.error(Errno::EIO),
        },
    }
}

fn reply_attr(reply: ReplyAttr, result: Result<(Attr, Duration), Errno>) {
    match result {
        Ok((attr, ttl)) => reply.attr(&ttl, &file_attr(&attr)),
        Err(errno) => reply.error(errno),
    }
}

fn reply_entry(reply: ReplyEntry, result: Result<EntryOut, Errno>) {
    match result {
        Ok(out) => {
            reply.entry_with_ttls(&out.attr_ttl, &out.entry_ttl, &entry_attr(out.id.0, &out.attr), GENERATION);
        }
        Err(errno) => reply.error(errno),
    }
}

fn reply_empty(reply: ReplyEmpty, result: Result<(), Errno>) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = convert::wanted_flags(self.server.fs.is_shared(), self.io.passes);
        // What an older kernel lacks is left out: none of it changes what a file is, only how often we are asked.
        if let Err(missing) = config.add_capabilities(wanted) {
            log::info!("this kernel lacks {missing:?}");
            if config.add_capabilities(wanted - missing).is_err() {
                return Err(io::Error::from_raw_os_error(libc::EPROTO));
            }
        }
        // Files on plain filesystems only: then others can be stacked on us.
        if self.io.passes
            && config.capabilities().contains(InitFlags::FUSE_PASSTHROUGH)
            && config.set_max_stack_depth(1).is_ok()
        {
            self.server.backings.allow();
        }
        if let Err(nearest) = config.set_max_write(1 << 20) {
            log::info!("the largest write is {nearest} bytes");
        }
        if let Err(nearest) = config.set_max_background(64) {
            log::info!("at most {nearest} requests in the background");
        }
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let result = self.call("lookup", |fs| match fs.lookup(node(parent), Name::from_os(name)?) {
            Err(FsError::NotFound) => Ok(Err(fs.negative_ttl(node(parent)))),
            other => Ok(Ok(other?)),
        });
        match result {
            Ok(Ok(out)) => {
                reply_entry(reply, Ok(out));
                if out.is_held {
                    let names =
                        Name::from_os(name).map_or_else(|_| Vec::new(), |name| vec![(node(parent), name.to_buf())]);
                    self.server.unlearn(vec![Unlearn { node: out.id, names }], || {});
                }
            }
            Ok(Err(Duration::ZERO)) => reply.error(Errno::ENOENT),
            // An entry without a node is absence that may be remembered.
            Ok(Err(ttl)) => reply.entry_with_ttls(&Duration::ZERO, &ttl, &absent(), GENERATION),
            Err(errno) => reply.error(errno),
        }
    }

    fn forget(&self, _: &Request, ino: INodeNo, nlookup: u64) {
        if self
            .call("forget", |fs| {
                fs.forget(node(ino), nlookup);
                fs.tree().nodes().give_memory_back();
                Ok(())
            })
            .is_err()
        {
            log::error!("node {} could not be forgotten", ino.0);
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply_attr(reply, self.call("getattr", |fs| fs.getattr(node(ino))));
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        // Nothing at all: the kernel is about to write a backing file from which something must go, set-id bits or, if the
        // caller may keep those, capabilities alone. Or chown(2) was called with no ids, which takes them from anybody.
        let sets_nothing = mode.is_none() && uid.is_none() && gid.is_none() && size.is_none();
        let is_about_to_write = sets_nothing && atime.is_none() && mtime.is_none() && ctime.is_none();
        let set = SetAttr {
            perm: mode.map(|mode| mode & 0o7777),
            uid,
            gid,
            size,
            atime: set_time(atime),
            mtime: set_time(mtime),
            clears_for: match (is_about_to_write, sets_nothing) {
                (true, _) => Some(caller(request)),
                (false, true) => None,
                (false, false) => self.clears_for(request),
            },
        };
        let may_keep = is_about_to_write && self.clears_for(request).is_none();
        let run = move |server: &Server, _: &ReplyAttr| {
            let clears_for = set.clears_for.filter(|_| !may_keep || !server.fs.is_written(node(ino)));
            server.fs.setattr(node(ino), fh.map(handle), &SetAttr { clears_for, ..set })
        };
        self.server.answer("setattr", reply, run, |_, reply, result| reply_attr(reply, result));
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        match self.call("readlink", |fs| fs.read_link(node(ino))) {
            Ok(target) => reply.data(&target),
            Err(errno) => reply.error(errno),
        }
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let result = self.call("mknod", |fs| {
            let kind = Kind::from_mode(mode).unwrap_or(Kind::File);
            let rdev = if kind.is_device() { convert::rdev_of(rdev) } else { 0 };
            let new = NewNode { kind, perm: mode & 0o7777, umask, rdev, target: None };
            fs.make(caller(request), node(parent), Name::from_os(name)?, &new)
        });
        reply_entry(reply, result);
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let result = self.call("mkdir", |fs| {
            let new = NewNode { kind: Kind::Dir, perm: mode & 0o7777, umask, rdev: 0, target: None };
            fs.make(caller(request), node(parent), Name::from_os(name)?, &new)
        });
        reply_entry(reply, result);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        let run = move |server: &Server, _: &ReplyEmpty| server.fs.unlink(node(parent), Name::from_os(&name)?);
        self.server.answer("unlink", reply, run, |_, reply, result| reply_empty(reply, result));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty(reply, self.call("rmdir", |fs| fs.rmdir(node(parent), Name::from_os(name)?)));
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let result = self.call("symlink", |fs| {
            let target = target.as_os_str().as_bytes();
            let new = NewNode { kind: Kind::Symlink, perm: 0o777, umask: 0, rdev: 0, target: Some(target) };
            fs.make(caller(request), node(parent), Name::from_os(name)?, &new)
        });
        reply_entry(reply, result);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (name, newname) = (name.to_owned(), newname.to_owned());
        let run = move |server: &Server, _: &ReplyEmpty| {
            let mode = if flags.is_empty() {
                RenameMode::Replace
            } else if flags == RenameFlags::RENAME_NOREPLACE {
                RenameMode::NoReplace
            } else if flags == RenameFlags::RENAME_EXCHANGE {
                RenameMode::Exchange
            } else {
                // RENAME_WHITEOUT and what is not known: as kernel overlayfs answers.
                return Err(FsError::Invalid);
            };
            let from = (node(parent), Name::from_os(&name)?);
            server.fs.rename(from, (node(newparent), Name::from_os(&newname)?), mode)
        };
        self.server.answer("rename", reply, run, |_, reply, result| reply_empty(reply, result));
    }

    fn link(&self, _: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let newname = newname.to_owned();
        let run =
            move |server: &Server, _: &ReplyEntry| server.fs.link(node(ino), node(newparent), Name::from_os(&newname)?);
        self.server.answer("link", reply, run, |_, reply, result| reply_entry(reply, result));
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: FuseOpenFlags, reply: ReplyOpen) {
        let flags = OpenFlags::from_bits(flags.0, self.clears_for(request));
        let run = move |server: &Server, reply: &ReplyOpen| {
            run_open(server, reply, |transport| server.fs.open_by(node(ino), flags, transport))
        };
        self.server.answer("open", reply, run, send_open);
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (caller, name, parent) = (caller(request), name.to_owned(), node(parent));
        let open_flags = OpenFlags::from_bits(flags, self.clears_for(request));
        let run = move |server: &Server, reply: &ReplyCreate| {
            let (fs, name) = (&server.fs, Name::from_os(&name)?);
            let new = NewNode { kind: Kind::File, perm: mode & 0o7777, umask, rdev: 0, target: None };
            run_open(server, reply, |transport| {
                match fs.create_by(caller, parent, name, &new, open_flags, transport) {
                    // In a shared branch somebody else may have made it since the kernel looked.
                    Err(FsError::Exists) if flags & libc::O_EXCL == 0 => {
                        let out = fs.lookup(parent, name)?;
                        match fs.open_by(out.id, open_flags, transport) {
                            Ok(opened) => Ok((out, opened)),
                            Err(error) => {
                                fs.forget(out.id, 1);
                                Err(error)
                            }
                        }
                    }
                    other => other,
                }
            })
        };
        self.server.answer("create", reply, run, send_create);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _: FuseOpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut buffer = vec![0u8; size as usize];
        match self.call("read", |fs| fs.read(handle(fh), offset, &mut buffer)) {
            Ok(length) => reply.data(buffer.get(..length).unwrap_or_default()),
            Err(errno) => reply.error(errno),
        }
    }

    fn write(
        &self,
        request: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: FuseOpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        // What comes from the page cache (a mapping) has its place.
        let clears_set_id = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let appends = flags.0 & libc::O_APPEND != 0 && !write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let result = self.call("write", |fs| {
            if clears_set_id {
                fs.clear_before_write(handle(fh), caller(request))?;
            }
            match appends {
                true => fs.append(handle(fh), offset, data),
                false => fs.write(handle(fh), offset, data),
            }
        });
        match result {
            Ok(length) => reply.written(length as u32),
            Err(errno) => reply.error(errno),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // Writes go through, so nothing is left to say at close; the kernel need not ask again.
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        _: FuseOpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        reply_empty(
            reply,
            self.call("release", |fs| {
                if let Some(number) = fs.release(handle(fh)) {
                    self.server.backings.close(number);
                }
                Ok(())
            }),
        );
    }

    fn fsync(&self, _: &Request, _: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.server.answer_later("fsync", fh.0, reply, move |fs| fs.fsync(handle(fh), datasync), reply_empty);
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: FuseOpenFlags, reply: ReplyOpen) {
        // A listing needs no handle. The kernel caches none either: that is for later, with its invalidation.
        reply.opened(FileHandle(0), FopenFlags::empty());
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let result = self.call("readdir", |fs| {
            for (position, name) in [(Cookie::DOT, "."), (Cookie::DOTDOT, "..")] {
                if Cookie(offset) < position && reply.add(ino, position.0, fuser::FileType::Directory, name) {
                    return Ok(());
                }
            }
            fs.read_dir(node(ino), Cookie(offset), &mut |line| {
                let name = line.name.as_name().os();
                if reply.add(INodeNo(line.ino), line.cookie.0, file_type(line.kind), name) {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            })
        });
        match result {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdirplus(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let result = self.call("readdirplus", |fs| {
            let own = fs.getattr(node(ino))?.0;
            for (position, name) in [(Cookie::DOT, "."), (Cookie::DOTDOT, "..")] {
                // The kernel takes no look-up for these.
                let attr = entry_attr(ino.0, &own);
                if Cookie(offset) < position && reply.add(ino, position.0, name, &Duration::ZERO, &attr, GENERATION) {
                    return Ok(());
                }
            }
            fs.read_dir_plus(node(ino), Cookie(offset), &mut |name, cookie, out| {
                let out = match out {
                    Ok(out) => out,
                    Err(line) => {
                        let attr = unreadable(line.ino, line.kind);
                        let name = name.as_name().os();
                        return !reply.add(INodeNo(line.ino), cookie.0, name, &Duration::ZERO, &attr, GENERATION);
                    }
                };
                // One TTL serves name and attributes here: the shorter one.
                let ttl = out.attr_ttl.min(out.entry_ttl);
                let attr = entry_attr(out.id.0, &out.attr);
                !reply.add(INodeNo(out.id.0), cookie.0, name.as_name().os(), &ttl, &attr, GENERATION)
            })
        });
        match result {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply_empty(reply, self.call("fsyncdir", |fs| fs.fsyncdir(node(ino))));
    }

    fn statfs(&self, _: &Request, ino: INodeNo, reply: ReplyStatfs) {
        match self.call("statfs", |fs| fs.statfs(node(ino))) {
            Ok(vfs) => reply.statfs(
                vfs.f_blocks,
                vfs.f_bfree,
                vfs.f_bavail,
                vfs.f_files,
                vfs.f_ffree,
                vfs.f_bsize as u32,
                vfs.f_namemax as u32,
                vfs.f_frsize as u32,
            ),
            Err(errno) => reply.error(errno),
        }
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        let mode = match flags {
            0 => SetMode::Any,
            libc::XATTR_REPLACE => SetMode::Replace,
            libc::XATTR_CREATE => SetMode::Create,
            _ => SetMode::CreateAndReplace,
        };
        let (caller, name, value) = (caller(request), name.to_owned(), value.to_owned());
        let run =
            move |server: &Server, _: &ReplyEmpty| server.fs.setxattr(caller, node(ino), name.as_bytes(), &value, mode);
        self.server.answer("setxattr", reply, run, |_, reply, result| reply_empty(reply, result));
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        reply_xattr(reply, size, self.call("getxattr", |fs| fs.getxattr(node(ino), name.as_bytes())));
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let joined = self.call("listxattr", |fs| {
            let mut joined = Vec::new();
            for name in fs.listxattr(node(ino))? {
                joined.extend(name);
                joined.push(0);
            }
            Ok(joined)
        });
        reply_xattr(reply, size, joined);
    }

    fn removexattr(&self, _: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        let run = move |server: &Server, _: &ReplyEmpty| server.fs.removexattr(node(ino), name.as_bytes());
        self.server.answer("removexattr", reply, run, |_, reply, result| reply_empty(reply, result));
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        reply_empty(reply, self.call("fallocate", |fs| fs.fallocate(handle(fh), offset, length, mode as u32)));
    }

    fn lseek(&self, _: &Request, _: INodeNo, fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let result = self.call("lseek", |fs| {
            let whence = match whence {
                libc::SEEK_DATA => Whence::Data,
                libc::SEEK_HOLE => Whence::Hole,
                _ => return Err(FsError::Invalid),
            };
            let offset = u64::try_from(offset).map_err(|_| FsError::Host { errno: libc::ENXIO })?;
            fs.lseek(handle(fh), offset, whence)
        });
        match result {
            Ok(offset) => reply.offset(offset as i64),
            Err(errno) => reply.error(errno),
        }
    }

    fn copy_file_range(
        &self,
        _: &Request,
        _: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        _: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        length: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let result = self.call("copy_file_range", |fs| {
            fs.copy_file_range((handle(fh_in), offset_in), (handle(fh_out), offset_out), length)
        });
        match result {
            Ok(length) => reply.written(length as u32),
            Err(errno) => reply.error(errno),
        }
    }
}

fn reply_xattr(reply: ReplyXattr, size: u32, result: Result<Vec<u8>, Errno>) {
    match result {
        Err(errno) => reply.error(errno),
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
    }
}

/// The attributes of nothing: node 0.
fn absent() -> fuser::FileAttr {
    let time = crate::model::Time::default();
    let attr = crate::model::Attr {
        ino: 0,
        kind: Kind::File,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        size: 0,
        blocks: 0,
        blksize: 0,
        atime: time,
        mtime: time,
        ctime: time,
    };
    entry_attr(0, &attr)
}

/// The attributes of what a listing names and nobody can read. The kernel (since 5.5) emits the line before it looks at
/// the attributes; for a size that is none it makes no inode and forgets the number, so that whoever asks for the name
/// gets the error of a look-up. Node 0 would do that too, but C libraries skip lines of inode 0.
fn unreadable(ino: u64, kind: Kind) -> fuser::FileAttr {
    fuser::FileAttr { ino: INodeNo(ino), kind: file_type(kind), size: u64::MAX, ..absent() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::FsSpec;
    use crate::layer::mem::MemLayer;
    use crate::model::ids::IdMap;
    use crate::tree::{Base, BranchSpec};

    #[test]
    fn a_panic_is_an_io_error_and_counted() {
        let base = Base::Merge { upper: None, lowers: vec![Arc::new(MemLayer::default())] };
        let root = BranchSpec { label: "test".into(), base, is_read_only: false, is_shared: false };
        let spec = FsSpec { root, mounts: Vec::new(), uids: IdMap::Identity, gids: IdMap::Identity };
        let server = Server::new(Arc::new(Fs::new(spec).unwrap()), Arc::default(), None);
        let result: Result<(), Errno> = server.call("test", |_| panic!("on purpose"));
        assert_eq!(result.unwrap_err().code(), libc::EIO);
        assert_eq!(server.fs.stats().snapshot(), (1, 1, 1));
        assert!(server.call("test", |_| Ok(())).is_ok());
    }
}
