// SPDX-License-Identifier: MIT OR Apache-2.0
//! mlfs: a FUSE filesystem for layered container storage.
//!
//! The floors of the house, bottom first (`ARCHITECTURE.md` has the plan and its reasons): a file imports
//! from its own folder and from lower floors only; `fuse-tests/tests/tidy.rs` keeps it so.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

pub mod model;
pub mod oci;
pub mod sys;

pub mod layer;
pub mod store;

pub mod upper;

pub mod tree;

pub mod fs;

pub mod fuse;

pub mod engine;

pub mod compat;

pub mod cli;
