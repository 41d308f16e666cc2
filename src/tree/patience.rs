// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which threads may wait for the content of a file to be copied. The few that take the kernel's requests may not:
//! while they wait, nobody is answered. What they cannot do at once ends in [`FsError::MustWait`](crate::model::FsError)
//! before anything has changed, and is done again on a thread that may wait.

use std::cell::Cell;

thread_local! {
    static IS_HURRIED: Cell<bool> = const { Cell::new(false) };
}

/// Restores what was, after a panic too.
struct Restore(bool);

impl Drop for Restore {
    fn drop(&mut self) {
        IS_HURRIED.set(self.0);
    }
}

/// Runs something that must not wait for copies.
pub fn hurried<T>(run: impl FnOnce() -> T) -> T {
    let _restore = Restore(IS_HURRIED.replace(true));
    run()
}

/// May this thread not wait?
pub(super) fn is_hurried() -> bool {
    IS_HURRIED.get()
}
