// SPDX-License-Identifier: MIT OR Apache-2.0
//! Counters of a mount.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of a mount.
#[derive(Debug, Default)]
pub struct Stats {
    operations: AtomicU64,
    errors: AtomicU64,
    panics: AtomicU64,
}

impl Stats {
    /// An operation was answered.
    pub fn count_operation(&self, is_ok: bool) {
        self.operations.fetch_add(1, Ordering::Relaxed);
        if !is_ok {
            self.errors.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A panic was caught; the caller got EIO.
    pub fn count_panic(&self) {
        self.panics.fetch_add(1, Ordering::Relaxed);
    }

    /// Operations answered, of which with an error, and panics caught.
    pub fn snapshot(&self) -> (u64, u64, u64) {
        (
            self.operations.load(Ordering::Relaxed),
            self.errors.load(Ordering::Relaxed),
            self.panics.load(Ordering::Relaxed),
        )
    }
}
