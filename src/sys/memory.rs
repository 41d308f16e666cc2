// SPDX-License-Identifier: MIT OR Apache-2.0
//! Giving memory back to the system.

/// Hands what the allocator holds free back to the system. Takes a moment; nothing but glibc needs to be asked.
pub fn give_back() {
    // SAFETY: the call takes no pointer, locks the allocator's arenas by itself and may be made by any thread at any time.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}
