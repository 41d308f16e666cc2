// SPDX-License-Identifier: MIT OR Apache-2.0
//! The same scenarios on kernel overlayfs, fuse-overlayfs and mlfs in its three forms.

mod acl;
mod append;
mod calls;
mod copy_up;
mod copy_up_keeps;
mod io;
mod links;
mod locks;
mod mapping;
mod marks;
mod merge;
mod names;
mod owner;
mod passthrough;
mod privilege;
mod programs;
mod ranges;
mod removed;
mod rename;
mod special;
mod times;
mod unlinked;
mod whiteout;
mod xattr;
