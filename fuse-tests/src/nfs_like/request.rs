// SPDX-License-Identifier: MIT OR Apache-2.0
//! The requests: each is carried out on the backing tree with the ids of its caller.

use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use nix::unistd::{setfsgid, setfsuid};
use rustix::fs::{
    Access, AtFlags, CWD, FallocateFlags, FileType as Kind, Gid, Mode, OFlags, RawDir, SeekFrom, Timestamps, Uid,
    XattrFlags,
};

use super::files::{answer_raw, attr, kind_of, push_unknown, timespec};
use super::nodes::{Answer, Nodes, errno, magic};
use super::{Trait, Traits};

const NOBODY: u32 = 65_534;
/// Nothing is remembered: the kernel asks again.
const TTL: Duration = Duration::ZERO;

/// The filesystem.
pub struct Mirror {
    nodes: Mutex<Nodes>,
    traits: Traits,
    is_root: bool,
    device: Arc<OnceLock<OwnedFd>>,
}

// Answers with a value, or with the error.
macro_rules! answer {
    ($reply:ident, $result:expr, $($pattern:pat)? => $send:expr) => {
        match $result {
            Ok($($pattern)?) => $send,
            Err(error) => $reply.error(error),
        }
    };
}

impl Mirror {
    /// Mirrors a directory.
    pub fn new(backing: &Path, traits: Traits) -> std::io::Result<Mirror> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, backing, flags, Mode::empty())?;
        let is_root = rustix::process::geteuid().is_root();
        Ok(Mirror { nodes: Mutex::new(Nodes::new(root)?), traits, is_root, device: Arc::default() })
    }

    /// Where the descriptor of the connection is put once there is one.
    pub fn device(&self) -> Arc<OnceLock<OwnedFd>> {
        Arc::clone(&self.device)
    }

    /// The tree, with the caller's rights from now on in this thread.
    fn act(&self, req: &Request) -> MutexGuard<'_, Nodes> {
        if self.is_root {
            let is_squashed = self.traits.has(Trait::Squash);
            let squash = |id: u32| if is_squashed && id == 0 { NOBODY } else { id };
            let gid = if is_squashed && req.uid() == 0 { NOBODY } else { squash(req.gid()) };
            // A failure would leave the rights of the request before: the backing filesystem's answer tells.
            setfsgid(gid.into());
            setfsuid(squash(req.uid()).into());
        }
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn xattrs(&self) -> Answer<()> {
        // Not ENOSYS: then the kernel would ask no more, and say ENODATA for access control lists.
        if self.traits.has(Trait::Xattr) { Err(Errno::EOPNOTSUPP) } else { Ok(()) }
    }

    fn list(&self, nodes: &Nodes, req: &Request, handle: u64, offset: u64, mut reply: ReplyDirectory) {
        let mut raw = Vec::new();
        let filled = (|| {
            let dir = nodes.handle(handle)?;
            rustix::fs::seek(&*dir, SeekFrom::Start(offset)).map_err(errno)?;
            let mut space = [MaybeUninit::uninit(); 16_384];
            let mut entries = RawDir::new(&*dir, &mut space);
            while let Some(entry) = entries.next() {
                let entry = entry.map_err(errno)?;
                let name = entry.file_name().to_bytes();
                let kind = match entry.file_type() {
                    Kind::Unknown => Kind::RegularFile,
                    kind => kind,
                };
                let (number, cookie) = (entry.ino(), entry.next_entry_cookie());
                if reply.add(INodeNo(number), cookie, kind_of(kind.as_raw_mode()), OsStr::from_bytes(name)) {
                    break;
                }
                push_unknown(&mut raw, number, cookie, name);
            }
            Ok(())
        })();
        match filled {
            Err(error) => reply.error(error),
            Ok(()) if self.traits.has(Trait::Dtype) => {
                let sent = self.device.get().ok_or_else(|| std::io::Error::other("no device"));
                match sent.and_then(|device| answer_raw(device, req.unique().into(), &raw)) {
                    // The kernel has its answer: what fuser says now is about a request that is over.
                    Ok(()) => reply.error(Errno::EIO),
                    Err(error) => {
                        eprintln!("nfs-like: a listing could not be sent: {error}");
                        reply.error(Errno::EIO);
                    }
                }
            }
            Ok(()) => reply.ok(),
        }
    }
}

fn permissions(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & 0o7777)
}

fn flags_of(flags: i32) -> OFlags {
    // The kernel has dealt with these, or gives the place of every write.
    let done = OFlags::CREATE | OFlags::EXCL | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::APPEND | OFlags::DIRECT;
    OFlags::from_bits_retain(u32::from_ne_bytes(flags.to_ne_bytes())) - done
}

fn set_attributes(nodes: &Nodes, id: u64, change: &Change) -> Answer<()> {
    let fd = nodes.fd(id)?;
    if change.uid.is_some() || change.gid.is_some() {
        let (uid, gid) = (change.uid.map(Uid::from_raw), change.gid.map(Gid::from_raw));
        rustix::fs::chownat(&*fd, "", uid, gid, AtFlags::EMPTY_PATH).map_err(errno)?;
    }
    if let Some(mode) = change.mode {
        rustix::fs::chmodat(CWD, magic(&fd), permissions(mode), AtFlags::empty()).map_err(errno)?;
    }
    if let Some(size) = change.size {
        let file = match change.handle {
            Some(handle) => nodes.handle(handle)?,
            None => Arc::new(nodes.reopen(id, OFlags::WRONLY)?),
        };
        rustix::fs::ftruncate(&*file, size).map_err(errno)?;
    }
    if change.atime.is_some() || change.mtime.is_some() {
        let times = Timestamps { last_access: timespec(change.atime), last_modification: timespec(change.mtime) };
        rustix::fs::utimensat(CWD, magic(&fd), &times, AtFlags::empty()).map_err(errno)?;
    }
    Ok(())
}

struct Change {
    mode: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
    size: Option<u64>,
    atime: Option<TimeOrNow>,
    mtime: Option<TimeOrNow>,
    handle: Option<u64>,
}

fn read(file: &OwnedFd, offset: u64, size: u32) -> Answer<Vec<u8>> {
    let mut buffer = vec![0; size as usize];
    let mut at = 0;
    while at < buffer.len() {
        match rustix::io::pread(file, &mut buffer[at..], offset + at as u64).map_err(errno)? {
            0 => break,
            count => at += count,
        }
    }
    buffer.truncate(at);
    Ok(buffer)
}

fn sized(reply: ReplyXattr, size: u32, value: &[u8]) {
    match u32::try_from(value.len()) {
        Ok(length) if size == 0 => reply.size(length),
        Ok(length) if length <= size => reply.data(value),
        _ => reply.error(Errno::ERANGE),
    }
}

impl Filesystem for Mirror {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // Locks that are not asked for are the kernel's own, within this mount.
        for (it, flag) in [(Trait::Flock, InitFlags::FUSE_FLOCK_LOCKS), (Trait::Fcntl, InitFlags::FUSE_POSIX_LOCKS)] {
            if self.traits.has(it) {
                config.add_capabilities(flag).map_err(|_| std::io::Error::other("the kernel forwards no locks"))?;
            }
        }
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        answer!(reply, self.act(req).look_up(parent.0, name), stat => reply.entry(&TTL, &attr(&stat), Generation(0)));
    }

    fn forget(&self, req: &Request, ino: INodeNo, nlookup: u64) {
        self.act(req).forget(ino.0, nlookup);
    }

    fn getattr(&self, req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        answer!(reply, self.act(req).stat(ino.0), stat => reply.attr(&TTL, &attr(&stat)));
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let nodes = self.act(req);
        let change = Change { mode, uid, gid, size, atime, mtime, handle: fh.map(|it| it.0) };
        let done = set_attributes(&nodes, ino.0, &change).and_then(|()| nodes.stat(ino.0));
        answer!(reply, done, stat => reply.attr(&TTL, &attr(&stat)));
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        let fd = self.act(req).fd(ino.0);
        let target = fd.and_then(|fd| rustix::fs::readlinkat(&*fd, "", Vec::new()).map_err(errno));
        answer!(reply, target, target => reply.data(target.as_bytes()));
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let mut nodes = self.act(req);
        let kind = Kind::from_raw_mode(mode);
        let is_device = matches!(kind, Kind::CharacterDevice | Kind::BlockDevice);
        let made = if is_device && self.traits.has(Trait::Mknod) {
            Err(Errno::EPERM)
        } else {
            nodes.fd(parent.0).and_then(|dir| {
                rustix::fs::mknodat(&*dir, name, kind, permissions(mode), u64::from(rdev)).map_err(errno)
            })
        };
        let made = made.and_then(|()| nodes.look_up(parent.0, name));
        answer!(reply, made, stat => reply.entry(&TTL, &attr(&stat), Generation(0)));
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        let mut nodes = self.act(req);
        let made = nodes.fd(parent.0);
        let made = made.and_then(|dir| rustix::fs::mkdirat(&*dir, name, permissions(mode)).map_err(errno));
        let made = made.and_then(|()| nodes.look_up(parent.0, name));
        answer!(reply, made, stat => reply.entry(&TTL, &attr(&stat), Generation(0)));
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let mut nodes = self.act(req);
        let kept = if self.traits.has(Trait::Silly) { nodes.keep_open(parent.0, name) } else { Ok(false) };
        let done = kept.and_then(|is_kept| {
            let dir = nodes.fd(parent.0)?;
            if is_kept { Ok(()) } else { rustix::fs::unlinkat(&*dir, name, AtFlags::empty()).map_err(errno) }
        });
        answer!(reply, done, () => reply.ok());
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let dir = self.act(req).fd(parent.0);
        let done = dir.and_then(|dir| rustix::fs::unlinkat(&*dir, name, AtFlags::REMOVEDIR).map_err(errno));
        answer!(reply, done, () => reply.ok());
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let mut nodes = self.act(req);
        let made = nodes.fd(parent.0);
        let made = made.and_then(|dir| rustix::fs::symlinkat(target, &*dir, name).map_err(errno));
        let made = made.and_then(|()| nodes.look_up(parent.0, name));
        answer!(reply, made, stat => reply.entry(&TTL, &attr(&stat), Generation(0)));
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mut nodes = self.act(req);
        let done = (|| {
            if !flags.is_empty() && self.traits.has(Trait::RenameFlags) {
                return Err(Errno::EINVAL);
            }
            let (from, to) = (nodes.fd(parent.0)?, nodes.fd(newparent.0)?);
            let stat = |dir: &OwnedFd, name| rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(errno);
            let is_other = stat(&from, name)?.st_ino != stat(&to, newname).map_or(0, |target| target.st_ino);
            if self.traits.has(Trait::Silly) && flags.is_empty() && is_other {
                nodes.keep_open(newparent.0, newname)?;
            }
            let flags = rustix::fs::RenameFlags::from_bits_retain(flags.bits());
            rustix::fs::renameat_with(&*from, name, &*to, newname, flags).map_err(errno)
        })();
        answer!(reply, done, () => reply.ok());
    }

    fn link(&self, req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let mut nodes = self.act(req);
        let made = (|| {
            let (file, dir) = (nodes.fd(ino.0)?, nodes.fd(newparent.0)?);
            rustix::fs::linkat(CWD, magic(&file), &*dir, newname, AtFlags::SYMLINK_FOLLOW).map_err(errno)?;
            nodes.look_up(newparent.0, newname)
        })();
        answer!(reply, made, stat => reply.entry(&TTL, &attr(&stat), Generation(0)));
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let mut nodes = self.act(req);
        let opened = nodes.reopen(ino.0, flags_of(flags.0));
        answer!(reply, opened, fd => reply.opened(FileHandle(nodes.open(ino.0, fd)), FopenFlags::empty()));
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let mut nodes = self.act(req);
        let made = (|| {
            let is_exclusive = OFlags::from_bits_retain(u32::from_ne_bytes(flags.to_ne_bytes())) & OFlags::EXCL;
            let flags = flags_of(flags) | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC | is_exclusive;
            let fd = rustix::fs::openat(&*nodes.fd(parent.0)?, name, flags, permissions(mode)).map_err(errno)?;
            let stat = nodes.look_up(parent.0, name)?;
            Ok((stat, nodes.open(stat.st_ino, fd)))
        })();
        answer!(reply, made, (stat, fh) => {
            reply.created(&TTL, &attr(&stat), Generation(0), FileHandle(fh), FopenFlags::empty());
        });
    }

    fn read(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let data = self.act(req).handle(fh.0).and_then(|file| read(&file, offset, size));
        answer!(reply, data, data => reply.data(&data));
    }

    fn write(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let file = self.act(req).handle(fh.0);
        let written = file.and_then(|file| rustix::io::pwrite(&*file, data, offset).map_err(errno));
        answer!(reply, written, count => reply.written(u32::try_from(count).unwrap_or(u32::MAX)));
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        answer!(reply, self.act(req).close(fh.0), () => reply.ok());
    }

    fn fsync(&self, req: &Request, _ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        let sync = |file: &OwnedFd| if datasync { rustix::fs::fdatasync(file) } else { rustix::fs::fsync(file) };
        let done = self.act(req).handle(fh.0).and_then(|file| sync(&file).map_err(errno));
        answer!(reply, done, () => reply.ok());
    }

    fn opendir(&self, req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let mut nodes = self.act(req);
        let opened = nodes.reopen(ino.0, OFlags::RDONLY | OFlags::DIRECTORY);
        answer!(reply, opened, fd => reply.opened(FileHandle(nodes.open(ino.0, fd)), FopenFlags::empty()));
    }

    fn readdir(&self, req: &Request, _ino: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectory) {
        let nodes = self.act(req);
        self.list(&nodes, req, fh.0, offset, reply);
    }

    fn releasedir(&self, req: &Request, _ino: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        answer!(reply, self.act(req).close(fh.0), () => reply.ok());
    }

    fn fsyncdir(&self, req: &Request, ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.fsync(req, ino, fh, datasync, reply);
    }

    fn statfs(&self, req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        let found = self.act(req).fd(ino.0).and_then(|fd| rustix::fs::fstatvfs(&*fd).map_err(errno));
        let small = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        answer!(reply, found, f => {
            let (size, names, fragment) = (small(f.f_bsize), small(f.f_namemax), small(f.f_frsize));
            reply.statfs(f.f_blocks, f.f_bfree, f.f_bavail, f.f_files, f.f_ffree, size, names, fragment);
        });
    }

    fn access(&self, req: &Request, ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        let access = Access::from_bits_truncate(u32::from_ne_bytes(mask.bits().to_ne_bytes()));
        let done = self.act(req).fd(ino.0).and_then(|fd| {
            // With the ids that this thread acts with, not those of the process.
            rustix::fs::accessat(CWD, magic(&fd), access, AtFlags::EACCESS).map_err(errno)
        });
        answer!(reply, done, () => reply.ok());
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let flags = XattrFlags::from_bits_retain(u32::from_ne_bytes(flags.to_ne_bytes()));
        let fd = self.xattrs().and_then(|()| self.act(req).fd(ino.0));
        let done = fd.and_then(|fd| rustix::fs::setxattr(magic(&fd), name, value, flags).map_err(errno));
        answer!(reply, done, () => reply.ok());
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let fd = self.xattrs().and_then(|()| self.act(req).fd(ino.0));
        let mut space = vec![0; 65_536];
        let found = fd.and_then(|fd| rustix::fs::getxattr(magic(&fd), name, &mut space[..]).map_err(errno));
        answer!(reply, found, length => sized(reply, size, &space[..length]));
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let fd = self.xattrs().and_then(|()| self.act(req).fd(ino.0));
        let mut space = vec![0; 65_536];
        let found = fd.and_then(|fd| rustix::fs::listxattr(magic(&fd), &mut space[..]).map_err(errno));
        answer!(reply, found, length => sized(reply, size, &space[..length]));
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let fd = self.xattrs().and_then(|()| self.act(req).fd(ino.0));
        let done = fd.and_then(|fd| rustix::fs::removexattr(magic(&fd), name).map_err(errno));
        answer!(reply, done, () => reply.ok());
    }

    fn setlk(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        _start: u64,
        _end: u64,
        _typ: i32,
        _pid: u32,
        _sleep: bool,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOLCK);
    }

    fn getlk(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        _start: u64,
        _end: u64,
        _typ: i32,
        _pid: u32,
        reply: fuser::ReplyLock,
    ) {
        reply.error(Errno::ENOLCK);
    }

    fn fallocate(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let mode = FallocateFlags::from_bits_retain(u32::from_ne_bytes(mode.to_ne_bytes()));
        let file = if self.traits.has(Trait::Fallocate) { Err(Errno::EOPNOTSUPP) } else { self.act(req).handle(fh.0) };
        let done = file.and_then(|file| rustix::fs::fallocate(&*file, mode, offset, length).map_err(errno));
        answer!(reply, done, () => reply.ok());
    }
}
