// SPDX-License-Identifier: MIT OR Apache-2.0
//! Floor 1: plain values and errors. No input, no output, no system calls.

pub mod acl;
pub mod attr;
pub mod cookie;
pub mod digest;
pub mod error;
pub mod finding;
pub mod ids;
pub mod io_mode;
pub mod name;
pub mod sync;

pub use attr::{Attr, Kind, Time};
pub use cookie::Cookie;
pub use digest::Digest;
pub use error::FsError;
pub use io_mode::IoMode;
pub use name::{Name, NameBuf};
