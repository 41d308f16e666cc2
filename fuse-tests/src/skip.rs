// SPDX-License-Identifier: MIT OR Apache-2.0
//! Skipping with a reason: never silently.
//!
//! A skip is printed past libtest's capture and, when `MLFS_TEST_SKIPS` names a file, appended to it as
//! `IDENTITY<TAB>BINARY<TAB>TEST<TAB>REASON`; `scripts/test` counts these lines and refuses those that
//! `fuse-tests/expected-skips` does not list.

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use crate::identity::identity;

struct Skipped(String);

/// Ends the running test as skipped. Only inside [`check`].
pub fn skip(reason: impl Into<String>) -> ! {
    resume_unwind(Box::new(Skipped(reason.into())))
}

/// Runs a test's body; a [`skip`] inside ends it as skipped, any other panic as failed.
pub fn check(body: impl FnOnce()) {
    if let Err(cause) = catch_unwind(AssertUnwindSafe(body)) {
        match cause.downcast::<Skipped>() {
            Ok(skipped) => record(&skipped.0),
            Err(cause) => resume_unwind(cause),
        }
    }
}

/// Runs a body and tells a panic's message, if it panicked; skips pass through.
pub fn panic_message(body: impl FnOnce()) -> Option<String> {
    let cause = catch_unwind(AssertUnwindSafe(body)).err()?;
    if cause.is::<Skipped>() {
        resume_unwind(cause);
    }
    let text = cause.downcast_ref::<String>().cloned();
    Some(text.or_else(|| cause.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default())
}

/// Says past libtest's capture what a running test leaves out.
pub fn note(text: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("unknown");
    writeln!(std::io::stderr(), "NOTE {} {test}: {text}", identity().word()).expect("stderr");
}

fn record(reason: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("unknown");
    let program = std::env::current_exe().ok();
    let program = program.as_ref().and_then(|path| path.file_name()).and_then(|name| name.to_str()).unwrap_or("?");
    let binary = program.rsplit_once('-').map_or(program, |(name, _)| name);
    let reason = reason.replace(['\n', '\t'], " ");
    let who = identity().word();
    writeln!(std::io::stderr(), "SKIP {who} {binary} {test}: {reason}").expect("stderr");
    if let Some(file) = std::env::var_os("MLFS_TEST_SKIPS") {
        let mut file = std::fs::OpenOptions::new().append(true).create(true).open(file).expect("the file of skips");
        file.write_all(format!("{who}\t{binary}\t{test}\t{reason}\n").as_bytes()).expect("the file of skips");
    }
}
