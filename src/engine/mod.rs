// SPDX-License-Identifier: MIT OR Apache-2.0
//! Floor 8: what the user means. Configuration, mount, start, stop, remove; the only floor that knows both the store
//! and the filesystem. It plans first, then applies; it never prints.

pub mod assemble;
pub mod commit;
pub mod config;
pub mod control;
pub mod copy;
pub mod cp;
pub mod daemon;
pub mod doctor;
pub mod ending;
pub mod error;
pub mod export;
pub mod filling;
pub mod filter;
pub mod fsck;
pub mod fuzz;
pub mod host;
pub mod image;
pub mod images;
pub mod inside;
pub mod layer_sums;
pub mod layers;
pub mod lifecycle;
pub mod load;
pub mod log_sink;
pub mod look;
pub mod mount;
pub mod names;
pub mod pack;
pub mod populate;
pub mod save;
pub mod settings;
pub mod spec;
pub mod state;
pub mod system;
pub mod unpack;
pub mod users;
pub mod volumes;

pub use error::{Class, EngineError, OrFail, Result};
