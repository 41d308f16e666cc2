// SPDX-License-Identifier: MIT OR Apache-2.0
//! `--io`: who reads and writes contents.

/// What was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IoMode {
    /// Passthrough where it works.
    #[default]
    Auto,
    /// Passthrough or nothing.
    Passthrough,
    /// Through the kernel's cache and us.
    Cached,
}

impl IoMode {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            IoMode::Auto => "auto",
            IoMode::Passthrough => "passthrough",
            IoMode::Cached => "cached",
        }
    }

    /// The mode of a word.
    pub fn parse(word: &str) -> Option<Self> {
        [IoMode::Auto, IoMode::Passthrough, IoMode::Cached].into_iter().find(|mode| mode.word() == word)
    }
}
