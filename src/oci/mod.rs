// SPDX-License-Identifier: MIT OR Apache-2.0
//! Floor 2: formats of others: image names, manifests, layouts, archives.
