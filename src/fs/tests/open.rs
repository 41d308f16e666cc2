// SPDX-License-Identifier: MIT OR Apache-2.0
//! Opens that pass files to the kernel, seen from a kernel that only counts.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::BorrowedFd;

use super::*;
use crate::fs::open::{Transport, Unlearn};
use crate::sys::FileId;

/// What the kernel would know.
#[derive(Default)]
struct Kernel {
    files: RefCell<BTreeMap<u64, FileId>>,
    next: Cell<u64>,
    unlearnt: RefCell<Vec<Unlearn>>,
    refuses: Cell<bool>,
}

impl Transport for Kernel {
    fn can_pass(&self) -> bool {
        true
    }

    fn open_backing(&self, file: BorrowedFd<'_>) -> io::Result<u64> {
        if self.refuses.get() {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.next.set(self.next.get() + 1);
        self.files.borrow_mut().insert(self.next.get(), FileId::of(&rustix::fs::fstat(file)?));
        Ok(self.next.get())
    }

    fn close_backing(&self, number: u64) {
        assert!(self.files.borrow_mut().remove(&number).is_some(), "closed twice");
    }

    fn unlearn(&self, what: Unlearn) {
        self.unlearnt.borrow_mut().push(what);
    }
}

const READ: OpenFlags =
    OpenFlags { write: false, is_mappable: false, truncate: false, is_direct: false, appends: false, clears_for: None };
const WRITE: OpenFlags = OpenFlags { write: true, ..READ };

/// A filesystem over one lower with a big file of two names and a small one, and its kernel.
struct World {
    sandbox: Sandbox,
    fs: Fs,
    kernel: Kernel,
}

impl World {
    fn new() -> Self {
        let sandbox = Sandbox::new();
        let lower = sandbox.temp.path().join("lower");
        std::fs::write(lower.join("big"), vec![b'l'; 100_000]).unwrap();
        std::fs::hard_link(lower.join("big"), lower.join("other")).unwrap();
        std::fs::write(lower.join("small"), b"small").unwrap();
        let fs = sandbox.fs(vec![sandbox.host_layer()]);
        World { sandbox, fs, kernel: Kernel::default() }
    }

    fn id(&self, path: &str) -> NodeId {
        let (parent, last) = path.rsplit_once('/').unwrap();
        assert_eq!(parent, "");
        self.fs.lookup(NodeId::ROOT, name(last)).unwrap().id
    }

    fn open(&self, id: NodeId, flags: OpenFlags) -> Result<crate::fs::Opened, FsError> {
        self.fs.open_by(id, flags, &self.kernel)
    }

    fn close(&self, opened: crate::fs::Opened) {
        if let Some(number) = self.fs.release(opened.handle) {
            self.kernel.close_backing(number);
        }
    }

    fn lower(&self, name: &str) -> FileId {
        FileId::of(&rustix::fs::stat(self.sandbox.temp.path().join("lower").join(name)).unwrap())
    }

    fn passed(&self) -> Vec<FileId> {
        self.kernel.files.borrow().values().copied().collect()
    }
}

#[test]
fn one_backing_file_is_shared_and_goes_with_the_last_handle() {
    let w = World::new();
    let id = w.id("/big");
    let (a, b) = (w.open(id, READ).unwrap(), w.open(id, READ).unwrap());
    assert!(a.backing.is_some() && a.backing == b.backing);
    assert_eq!(w.passed(), [w.lower("big")]);
    w.close(a);
    assert_eq!(w.passed().len(), 1);
    w.close(b);
    assert_eq!(w.passed(), []);
    let small = w.open(w.id("/small"), READ).unwrap();
    assert_eq!((small.backing, small.keeps_data), (None, true), "small files of layers are cached");
    let writer = w.open(w.id("/small"), WRITE).unwrap();
    assert_eq!(writer.backing, None, "cached as the other one is");
    w.close(small);
    w.close(writer);
    let again = w.open(w.id("/small"), WRITE).unwrap();
    assert!(again.backing.is_some() && !again.keeps_data);
    w.close(again);
    assert_eq!(w.passed(), []);
}

#[test]
fn what_the_kernel_refuses_is_cached_for_as_long_as_it_is_open() {
    let w = World::new();
    w.kernel.refuses.set(true);
    let a = w.open(w.id("/big"), READ).unwrap();
    assert_eq!(a.backing, None);
    w.kernel.refuses.set(false);
    let b = w.open(w.id("/big"), WRITE).unwrap();
    assert_eq!(b.backing, None);
    w.close(a);
    w.close(b);
    let c = w.open(w.id("/big"), READ).unwrap();
    assert!(c.backing.is_some());
    w.close(c);
}

#[test]
fn a_writer_under_readers_gets_another_node_of_the_same_file() {
    let w = World::new();
    let old = w.id("/big");
    assert_eq!(w.id("/other"), old);
    let ino = w.fs.getattr(old).unwrap().0.ino;
    let reader = w.open(old, READ).unwrap();
    assert_eq!(w.open(old, WRITE).unwrap_err(), FsError::Stale);
    let unlearnt = w.kernel.unlearnt.take();
    assert_eq!(unlearnt.len(), 1);
    assert_eq!((unlearnt[0].node, unlearnt[0].names.len()), (old, 2), "the node, and all names of the file");
    let new = w.id("/big");
    assert_ne!(new, old);
    assert_eq!(w.id("/other"), new);
    assert_eq!(w.fs.getattr(new).unwrap().0.ino, ino);
    let writer = w.open(new, WRITE).unwrap();
    assert_eq!(w.passed().iter().filter(|file| **file == w.lower("big")).count(), 1, "only the reader has the layer");
    assert_eq!(w.fs.write(writer.handle, 0, b"NEW").unwrap(), 3);
    // The old reader goes on, the old number changes the same file, and a writer never opens it.
    let mut buffer = [0; 3];
    w.fs.read(reader.handle, 0, &mut buffer).unwrap();
    assert_eq!(&buffer, b"lll");
    w.fs.setattr(old, None, &SetAttr { perm: Some(0o600), ..SetAttr::default() }).unwrap();
    assert_eq!(w.fs.getattr(new).unwrap().0.perm, 0o600);
    assert_eq!(w.open(old, READ).unwrap_err(), FsError::Stale);
    w.close(reader);
    assert_eq!(w.open(old, WRITE).unwrap_err(), FsError::Stale);
    w.close(writer);
    assert_eq!(w.passed(), []);
}

// A second writer between its look-up and its open would lose a second time if look-ups led back.
#[test]
fn look_ups_never_lead_back_to_a_number_that_has_readers() {
    let w = World::new();
    let old = w.id("/big");
    let reader = w.open(old, READ).unwrap();
    w.open(old, WRITE).unwrap_err();
    let new = w.id("/big");
    w.fs.forget(new, 1);
    assert_eq!(w.id("/big"), new, "forgotten, but the file is not");
    w.fs.forget(new, 1);
    w.close(w.open(w.id("/big"), WRITE).unwrap());
    // Names that are entered by way of the old number lead to the new one.
    let linked = w.fs.link(old, NodeId::ROOT, name("third")).unwrap();
    assert_eq!(linked.id, new);
    assert_eq!(w.id("/third"), new);
    w.close(reader);
    let before = w.fs.tree().nodes().len();
    w.fs.forget(new, 3);
    w.fs.forget(old, 1);
    assert_eq!(w.fs.tree().nodes().len(), before - 2, "with the last of them all are gone");
    let fresh = w.id("/big");
    assert_eq!(fresh.0, w.fs.getattr(fresh).unwrap().0.ino, "one number again");
}

#[test]
fn a_number_that_was_never_looked_up_goes_with_its_predecessor() {
    let w = World::new();
    let before = w.fs.tree().nodes().len();
    let old = w.id("/big");
    let reader = w.open(old, READ).unwrap();
    w.open(old, WRITE).unwrap_err();
    w.close(reader);
    w.fs.forget(old, 1);
    assert_eq!(w.fs.tree().nodes().len(), before);
}

#[test]
fn what_may_be_mapped_and_written_is_not_believed() {
    let w = World::new();
    let opened = w.open(w.id("/big"), OpenFlags { is_mappable: true, ..WRITE }).unwrap();
    w.close(opened);
    let id = w.id("/big");
    assert_eq!(w.fs.getattr(id).unwrap().1, Duration::ZERO);
    assert_eq!(w.fs.lookup(NodeId::ROOT, name("big")).unwrap().attr_ttl, Duration::ZERO);
    let plain = w.open(w.id("/small"), WRITE).unwrap();
    w.close(plain);
    assert!(w.fs.getattr(w.id("/small")).unwrap().1 > Duration::ZERO);
}

#[test]
fn privileges_that_are_given_again_are_taken_again() {
    let w = World::new();
    let id = w.id("/small");
    let stranger = Caller { uid: 4242, gid: 4242, pid: 1 };
    let writer = w.open(id, WRITE).unwrap();
    for _ in 0..2 {
        w.fs.setattr(id, None, &SetAttr { perm: Some(0o4755), ..SetAttr::default() }).unwrap();
        w.fs.clear_before_write(writer.handle, stranger).unwrap();
        assert_eq!(w.fs.getattr(id).unwrap().0.perm, 0o755);
    }
    w.close(writer);
}

#[test]
fn workers_are_told_to_go_elsewhere_before_anything_changes() {
    use crate::tree::patience::hurried;
    let w = World::new();
    let id = w.id("/big");
    let ino = w.fs.getattr(id).unwrap().0.ino;
    let must_wait = FsError::MustWait { ino };
    let set = SetAttr { size: Some(5), ..SetAttr::default() };
    let truncate = OpenFlags { truncate: true, ..WRITE };
    assert_eq!(hurried(|| w.open(id, WRITE)).unwrap_err(), must_wait);
    assert_eq!(hurried(|| w.open(id, truncate)).unwrap_err(), must_wait);
    assert_eq!(hurried(|| w.fs.setattr(id, None, &set)).unwrap_err(), must_wait);
    assert_eq!(hurried(|| w.fs.link(id, NodeId::ROOT, name("x"))).unwrap_err(), must_wait);
    assert_eq!(hurried(|| w.fs.unlink(NodeId::ROOT, name("other"))).unwrap_err(), must_wait);
    assert_eq!(hurried(|| w.fs.mv("/big", "/moved")).unwrap_err(), must_wait);
    assert!(hurried(|| w.open(id, READ)).is_ok());
    let upper = std::fs::read_dir(w.sandbox.temp.path().join("upper")).unwrap().count();
    assert_eq!(upper, 0, "something was done");
    w.fs.unlink(NodeId::ROOT, name("other")).unwrap();
}
