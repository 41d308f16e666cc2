// SPDX-License-Identifier: MIT OR Apache-2.0
//! How one request is served: guarded against panics, counted, logged, its errno picked; and on which thread. Workers
//! take requests and never wait for content; what must wait goes to the copier, what makes the kernel forget something
//! first to the thread of notices.

use std::any::Any;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};

use fuser::{Errno, INodeNo, Notifier};

use super::backing::BackingTable;
use super::convert::errno;
use super::copier::Copier;
use crate::fs::{Fs, Unlearn};
use crate::model::FsError;
use crate::model::sync::lock;
use crate::tree::patience::hurried;

/// Something to do on the thread of notices.
pub(super) type Notice = Box<dyn FnOnce(&Notifier) + Send>;

/// Everything that answers need, whatever thread they are made on.
#[derive(Debug)]
pub(crate) struct Server {
    pub(super) fs: Arc<Fs>,
    pub(super) backings: Arc<BackingTable>,
    copier: Copier,
    notices: Mutex<Option<Sender<Notice>>>,
}

impl Server {
    pub(super) fn new(fs: Arc<Fs>, backings: Arc<BackingTable>, notices: Option<Sender<Notice>>) -> Arc<Self> {
        Arc::new(Server { fs, backings, copier: Copier::default(), notices: Mutex::new(notices) })
    }

    /// Runs one operation; a panic in it is an input/output error.
    fn guard<T>(&self, what: &str, run: impl FnOnce() -> Result<T, FsError>) -> Result<T, FsError> {
        catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
            self.fs.stats().count_panic();
            log::error!("panic in {what}: {}", panic_text(&*panic));
            Err(FsError::IO)
        })
    }

    fn count<T>(&self, what: &str, result: Result<T, FsError>) -> Result<T, Errno> {
        self.fs.stats().count_operation(result.is_ok());
        result.map_err(|error| {
            match &error {
                FsError::Corrupt { .. } | FsError::Host { errno: libc::EIO } => log::error!("{what}: {error}"),
                _ => log::trace!("{what}: {error}"),
            }
            errno(&error)
        })
    }

    /// Runs an operation that never waits for content.
    pub(super) fn call<T>(&self, what: &str, run: impl FnOnce(&Fs) -> Result<T, FsError>) -> Result<T, Errno> {
        let result = self.guard(what, || hurried(|| run(&self.fs)));
        self.count(what, result)
    }

    /// Runs an operation that may have to wait for content, and answers: here if it need not wait, else on the copier,
    /// from the beginning.
    pub(super) fn answer<R, T>(
        self: &Arc<Self>,
        what: &'static str,
        reply: R,
        run: impl Fn(&Server, &R) -> Result<T, FsError> + Send + 'static,
        send: impl FnOnce(&Server, R, Result<T, Errno>) + Send + 'static,
    ) where
        R: Send + 'static,
    {
        match self.guard(what, || hurried(|| run(self, &reply))) {
            Err(FsError::MustWait { ino }) => {
                let server = Arc::clone(self);
                self.copier.run(ino, move || {
                    let result = server.guard(what, || run(&server, &reply));
                    let result = server.count(what, result);
                    send(&server, reply, result);
                });
            }
            result => send(self, reply, self.count(what, result)),
        }
    }

    /// Runs an operation that waits for the disk, on the copier, and answers.
    pub(super) fn answer_later<R, T>(
        self: &Arc<Self>,
        what: &'static str,
        key: u64,
        reply: R,
        run: impl FnOnce(&Fs) -> Result<T, FsError> + Send + 'static,
        send: impl FnOnce(R, Result<T, Errno>) + Send + 'static,
    ) where
        R: Send + 'static,
    {
        let server = Arc::clone(self);
        // A range of keys of its own: files that are synced and files that are copied do not wait for each other.
        self.copier.run(!key, move || {
            let result = server.guard(what, || run(&server.fs));
            send(reply, server.count(what, result));
        });
    }

    /// Makes the kernel unlearn names and attributes, then does `after`. Not here: what must be unlearnt may be locked
    /// by a request that waits for us.
    pub(super) fn unlearn(&self, what: Vec<Unlearn>, after: impl FnOnce() + Send + 'static) {
        let notice: Notice = Box::new(move |notifier| {
            for Unlearn { node, names } in what {
                // Attributes only: nothing of the content is cached for a node that is open straight on a file.
                let attributes = notifier.inval_inode(INodeNo(node.0), -1, 0);
                let mut results = vec![attributes];
                for (dir, name) in names {
                    let name = OsStr::from_bytes(name.as_name().bytes());
                    results.push(notifier.inval_entry(INodeNo(dir.0), name));
                }
                for error in results.into_iter().filter_map(Result::err) {
                    log::debug!("the kernel did not unlearn node {}: {error}", node.0);
                }
            }
            after();
        });
        // Without a session there is no kernel that knows anything.
        let unsent = match &*lock(&self.notices) {
            Some(sender) => sender.send(notice).err().map(|error| error.0),
            None => None,
        };
        if unsent.is_some() {
            log::debug!("the session has ended: nobody is left to unlearn");
        }
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}
