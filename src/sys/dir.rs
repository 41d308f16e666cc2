// SPDX-License-Identifier: MIT OR Apache-2.0
//! Directories of the host that cannot be escaped.

/// A directory.
#[derive(Debug)]
pub struct Dir;
