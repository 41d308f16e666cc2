// SPDX-License-Identifier: MIT OR Apache-2.0
//! Errors are fine; panics, endless loops and unbounded memory are bugs. The same function is replayed on stable.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mlfs::engine::fuzz::marks(data));
