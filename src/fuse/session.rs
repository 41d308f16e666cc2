// SPDX-License-Identifier: MIT OR Apache-2.0
//! A served connection: workers that answer until the mount is gone.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, mpsc};

use fuser::{BackgroundSession, Config, SessionACL};

use super::backing::BackingTable;
use super::server::{Notice, Server};
use super::{Adapter, IoChoice};
use crate::fs::Fs;

/// How many requests are taken at once. More than cores, since a read or a write may wait for the disk; no more are
/// needed for anything long, which has threads of its own (`copier.rs`).
const WORKERS: usize = 16;

/// A served connection.
#[derive(Debug)]
pub struct Session {
    background: BackgroundSession,
    io: IoMeter,
}

/// How contents are read and written, and how many files the kernel reads and writes by itself now.
#[derive(Clone, Debug)]
pub struct IoMeter {
    choice: IoChoice,
    backings: Arc<BackingTable>,
}

impl IoMeter {
    /// What was chosen.
    pub fn choice(&self) -> &IoChoice {
        &self.choice
    }

    /// How many files the kernel has been given.
    pub fn backing_files(&self) -> usize {
        self.backings.len()
    }
}

impl Session {
    pub(super) fn start(device: OwnedFd, fs: Arc<Fs>, io: IoChoice) -> io::Result<Self> {
        let mut config = Config::default();
        config.n_threads = Some(WORKERS);
        config.clone_fd = false;
        // Who may enter is the kernel's business (allow_other); fuser would refuse root.
        config.acl = SessionACL::All;
        let backings = Arc::new(BackingTable::default());
        let (sender, notices) = mpsc::channel::<Notice>();
        let server = Server::new(fs, Arc::clone(&backings), Some(sender));
        let session = fuser::Session::from_fd(Adapter::new(server, io.clone()), device, SessionACL::All, config)?;
        let notifier = session.notifier();
        // It ends when the last one who could send a notice is gone.
        std::thread::Builder::new().name("notices".into()).spawn(move || {
            for notice in notices {
                notice(&notifier);
            }
        })?;
        let io = IoMeter { choice: io.with_kernel(backings.can_pass()), backings };
        Ok(Session { background: session.spawn()?, io })
    }

    /// How contents are read and written.
    pub fn io(&self) -> &IoMeter {
        &self.io
    }

    /// Waits until the mount is gone, by whatever end.
    pub fn wait(self) -> io::Result<()> {
        self.background.join()
    }
}
