// SPDX-License-Identifier: MIT OR Apache-2.0
//! A served connection: workers that answer until the mount is gone.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use fuser::{BackgroundSession, Config, SessionACL};

use super::Adapter;
use crate::fs::Fs;

/// How many requests are answered at once. More than cores, so that one long copy-up does not hold up the rest.
const WORKERS: usize = 16;

/// A served connection.
#[derive(Debug)]
pub struct Session {
    background: BackgroundSession,
}

impl Session {
    pub(super) fn start(device: OwnedFd, fs: Arc<Fs>) -> io::Result<Self> {
        let mut config = Config::default();
        config.n_threads = Some(WORKERS);
        config.clone_fd = false;
        // Who may enter is the kernel's business (allow_other); fuser would refuse root.
        config.acl = SessionACL::All;
        let session = fuser::Session::from_fd(Adapter::new(fs), device, SessionACL::All, config)?;
        Ok(Session { background: session.spawn()? })
    }

    /// Waits until the mount is gone, by whatever end.
    pub fn wait(self) -> io::Result<()> {
        self.background.join()
    }
}
