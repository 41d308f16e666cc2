// SPDX-License-Identifier: MIT OR Apache-2.0
//! The harness of the tests on real mounts.
//!
//! One scenario is one function over a [`scene::Scene`]; it runs on every [`driver::Driver`]: kernel overlayfs is the
//! judge, fuse-overlayfs the rival, mlfs the subject. The suite runs as whoever starts it (root, an ordinary user, the
//! root of a user namespace): [`identity`] finds out who that is, and what cannot run there is skipped by
//! [`skip::skip`] with a reason that is printed, counted and compared with `fuse-tests/expected-skips`.
//!
//! The harness speaks to mlfs through its command line only and never looks into the code under test.

pub mod cli;
pub mod difficult;
pub mod driver;
pub mod ground;
pub mod host;
pub mod identity;
pub mod image;
pub mod kernel;
pub mod layers;
pub mod nfs_like;
pub mod oracle;
pub mod random;
pub mod sandbox;
pub mod scene;
pub mod skip;
pub mod tar;
pub mod tree;
pub mod world;

pub use layers::LayerSpec;
pub use sandbox::Sandbox;
pub use scene::Scene;
pub use skip::{check, note, skip};
pub use tree::{Compare, Tree};
