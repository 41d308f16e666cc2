// SPDX-License-Identifier: MIT OR Apache-2.0
//! Floor 9: other people's front doors: programs that call mlfs in the place of another one.

pub mod mount_options;
pub mod mount_program;
