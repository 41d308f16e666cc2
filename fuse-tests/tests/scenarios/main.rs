// SPDX-License-Identifier: MIT OR Apache-2.0
//! The same scenarios on kernel overlayfs, fuse-overlayfs and mlfs in its three forms.

mod copy_up;
mod io;
mod links;
mod marks;
mod merge;
mod names;
mod owner;
mod passthrough;
mod rename;
mod special;
mod unlinked;
mod whiteout;
mod xattr;
