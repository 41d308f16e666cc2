// SPDX-License-Identifier: MIT OR Apache-2.0
//! The index of an image layer: all metadata of one tar as data, immutable, mapped into memory.
//!
//! Nothing is chowned and nothing needs root: owners, devices and capabilities are numbers in records, so root and an
//! ordinary user see the same tree. `format.rs` has the bytes, `build.rs` turns members of a tar into a tree,
//! `feed.rs` reads the tar into it, `write.rs` writes it, `read.rs` validates and reads it. See `docs/decisions/0001-index-format.md`.

pub mod build;
pub mod feed;
pub mod format;
pub mod read;
pub mod stack;
pub mod write;

pub use build::{BodyPlan, Budget, BuildError, Builder, Limits, NodeId};
pub use feed::{BodySink, FeedError, feed};
pub use read::{Index, IndexError};
pub use write::{Stats, Written};

#[cfg(test)]
mod tests;
