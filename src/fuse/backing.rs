// SPDX-License-Identifier: MIT OR Apache-2.0
//! Backing files: what the kernel reads and writes by itself (passthrough). Which open may use which file is decided in
//! `fs/open.rs`; here is only the table of the kernel's ids, one per file in use, each dropped with the last handle.

use std::cell::RefCell;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dashmap::DashMap;
use fuser::{BackingId, ReplyCreate, ReplyOpen};

use crate::fs::{Transport, Unlearn};

/// The files that the kernel knows. `I`: its id for one, which drops the file when it is dropped.
#[derive(Debug)]
pub(crate) struct BackingTable<I = BackingId> {
    can_pass: AtomicBool,
    ids: DashMap<u64, Arc<I>>,
    next: AtomicU64,
}

impl<I> Default for BackingTable<I> {
    fn default() -> Self {
        BackingTable { can_pass: AtomicBool::new(false), ids: DashMap::new(), next: AtomicU64::new(0) }
    }
}

impl<I> BackingTable<I> {
    /// The kernel has granted passthrough.
    pub(crate) fn allow(&self) {
        self.can_pass.store(true, Ordering::Relaxed);
    }

    /// Can files be passed at all?
    pub(crate) fn can_pass(&self) -> bool {
        self.can_pass.load(Ordering::Relaxed)
    }

    /// Enters an id; its number.
    fn insert(&self, id: I) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.ids.insert(number, Arc::new(id));
        number
    }

    /// The id of a number.
    pub(crate) fn get(&self, number: u64) -> Option<Arc<I>> {
        self.ids.get(&number).map(|id| Arc::clone(&id))
    }

    /// Nobody uses the file any more.
    pub(crate) fn close(&self, number: u64) {
        self.ids.remove(&number);
    }

    /// How many files the kernel knows.
    pub(crate) fn len(&self) -> usize {
        self.ids.len()
    }
}

/// A reply by whose connection files can be made known.
pub(crate) trait OpensBacking {
    /// Makes the kernel know the file.
    fn open_backing(&self, file: BorrowedFd<'_>) -> io::Result<BackingId>;
}

impl OpensBacking for ReplyOpen {
    fn open_backing(&self, file: BorrowedFd<'_>) -> io::Result<BackingId> {
        ReplyOpen::open_backing(self, file)
    }
}

impl OpensBacking for ReplyCreate {
    fn open_backing(&self, file: BorrowedFd<'_>) -> io::Result<BackingId> {
        ReplyCreate::open_backing(self, file)
    }
}

/// One open on its way through the filesystem.
pub(crate) struct Opener<'a, R> {
    table: &'a BackingTable,
    reply: &'a R,
    unlearn: RefCell<Vec<Unlearn>>,
}

impl<'a, R> Opener<'a, R> {
    pub(crate) fn new(table: &'a BackingTable, reply: &'a R) -> Self {
        Opener { table, reply, unlearn: RefCell::default() }
    }

    /// What the kernel must unlearn before it is answered.
    pub(crate) fn into_unlearn(self) -> Vec<Unlearn> {
        self.unlearn.into_inner()
    }
}

impl<R: OpensBacking> Transport for Opener<'_, R> {
    fn can_pass(&self) -> bool {
        self.table.can_pass()
    }

    fn open_backing(&self, file: BorrowedFd<'_>) -> io::Result<u64> {
        self.reply.open_backing(file).map(|id| self.table.insert(id))
    }

    fn close_backing(&self, number: u64) {
        self.table.close(number);
    }

    fn unlearn(&self, what: Unlearn) {
        self.unlearn.borrow_mut().push(what);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_lives_until_its_file_is_closed() {
        let table = BackingTable::<Arc<()>>::default();
        let kernel = Arc::new(());
        let (a, b) = (table.insert(Arc::clone(&kernel)), table.insert(Arc::clone(&kernel)));
        assert_ne!(a, b);
        assert_eq!((table.len(), Arc::strong_count(&kernel)), (2, 3));
        table.close(a);
        assert!(table.get(a).is_none() && table.get(b).is_some());
        table.close(b);
        assert_eq!((table.len(), Arc::strong_count(&kernel)), (0, 1));
    }
}
