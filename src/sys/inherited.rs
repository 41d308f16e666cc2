// SPDX-License-Identifier: MIT OR Apache-2.0
//! Descriptors that the caller left open for us: a daemon must not keep them, they may be pipes that somebody reads to
//! the end, or locks (`flock 9; mlfs mount ...`).

use std::sync::OnceLock;

static INHERITED: OnceLock<Vec<i32>> = OnceLock::new();

/// Notes which descriptors above 2 are open. Call it first thing in the program, before anything is opened.
pub fn remember() {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return };
    let numbers: Vec<i32> =
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(|fd| *fd > 2).collect();
    // The descriptor of the listing itself was among them and is closed by now.
    let is_open = |fd: &i32| std::fs::symlink_metadata(format!("/proc/self/fd/{fd}")).is_ok();
    INHERITED.get_or_init(|| numbers.into_iter().filter(is_open).collect());
}

/// Closes what was noted.
pub fn close() {
    for fd in INHERITED.get().into_iter().flatten() {
        // SAFETY: nothing in this program owns or uses these numbers: they were open before it opened anything, and it
        // never closes them elsewhere, so they cannot have been given out again.
        if unsafe { libc::close(*fd) } != 0 {
            log::debug!("descriptor {fd} was closed already");
        }
    }
}
