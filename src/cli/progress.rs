// SPDX-License-Identifier: MIT OR Apache-2.0
//! Progress of loading, on the terminal. The bars need no thread of their own: a mount forks after loading.

use std::collections::HashMap;
use std::sync::Mutex;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::engine::load::{Progress, Silent};
use crate::model::sync::lock;

use super::{Context, output};

/// A bar per layer, on the terminal.
#[derive(Debug, Default)]
pub struct Bars {
    all: MultiProgress,
    bars: Mutex<HashMap<usize, ProgressBar>>,
}

impl Bars {
    /// The bars where somebody sees them, else silence.
    pub fn shown(&self, context: &Context) -> &dyn Progress {
        if output::is_terminal() && !context.is_quiet { self } else { &Silent }
    }

    /// Takes them off the terminal.
    pub fn clear(&self) {
        if let Err(e) = self.all.clear() {
            log::debug!("cannot clear the bars: {e}");
        }
    }
}

impl Progress for Bars {
    fn begin(&self, number: usize, label: &str, bytes: Option<u64>) {
        let style =
            ProgressStyle::with_template("{prefix:>12} {bar:30} {bytes:>11} / {total_bytes:11} {bytes_per_sec}");
        let bar = self.all.add(ProgressBar::new(bytes.unwrap_or(0)));
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_prefix(label.to_owned());
        lock(&self.bars).insert(number, bar);
    }

    fn advance(&self, number: usize, bytes: u64) {
        if let Some(bar) = lock(&self.bars).get(&number) {
            bar.inc(bytes);
        }
    }

    fn end(&self, number: usize) {
        if let Some(bar) = lock(&self.bars).remove(&number) {
            bar.finish_and_clear();
        }
    }
}
