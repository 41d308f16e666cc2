// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the caller left us: open descriptors and a file mode creation mask.
//!
//! A daemon must not keep the descriptors: they may be pipes that somebody reads to the end, or locks (`flock 9; mlfs
//! mount ...`). The mask is the caller's taste for his own files; what we make (volumes, bind sources) has the modes that
//! the documentation says. A command that we run for him gets it back.

use std::sync::OnceLock;

use super::proc;

static INHERITED: OnceLock<Vec<i32>> = OnceLock::new();
static UMASK: OnceLock<u32> = OnceLock::new();

/// The mask for what this program makes.
const OWN_UMASK: u32 = 0o022;

/// Notes which descriptors above 2 are open, and the mask, and sets our own. Call it first thing in the program, before
/// anything is opened.
pub fn remember() {
    UMASK.get_or_init(|| proc::set_umask(OWN_UMASK));
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return };
    let numbers: Vec<i32> =
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(|fd| *fd > 2).collect();
    // The descriptor of the listing itself was among them and is closed by now.
    let is_open = |fd: &i32| std::fs::symlink_metadata(format!("/proc/self/fd/{fd}")).is_ok();
    INHERITED.get_or_init(|| numbers.into_iter().filter(is_open).collect());
}

/// The caller's mask.
pub fn umask() -> u32 {
    UMASK.get().copied().unwrap_or(OWN_UMASK)
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
