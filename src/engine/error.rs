// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the engine could not do: one sentence of what, why, and what to do, and the class that decides the exit code.
//!
//! Lower floors have typed errors; up here an error is told to a person, so it is a text with its causes below it.

use std::error::Error as StdError;
use std::fmt;

/// The result of the engine's work.
pub type Result<T, E = EngineError> = std::result::Result<T, E>;

/// Which kind of failure it is; the command line turns it into an exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// It could be judged from the command line alone (exit 2).
    Usage,
    /// The work failed (exit 1).
    Failed,
    /// A check that was asked for found something (exit 3).
    Found,
    /// A command that was to be run is not executable (exit 126).
    NotExecutable,
    /// A command that was to be run does not exist (exit 127).
    NoCommand,
}

/// Why the engine failed: "what: cause: cause; advice".
#[derive(Debug)]
pub struct EngineError {
    class: Class,
    what: String,
    cause: Option<Box<dyn StdError + Send + Sync>>,
    advice: Option<String>,
}

impl EngineError {
    /// Wrong usage.
    pub fn usage(what: impl Into<String>) -> Self {
        Self { class: Class::Usage, what: what.into(), cause: None, advice: None }
    }

    /// A failure.
    pub fn failed(what: impl Into<String>) -> Self {
        Self { class: Class::Failed, what: what.into(), cause: None, advice: None }
    }

    /// The answer of a check that found something.
    pub fn found(what: impl Into<String>) -> Self {
        Self { class: Class::Found, what: what.into(), cause: None, advice: None }
    }

    /// A command that cannot be run, by what the host said.
    pub fn no_command(what: impl Into<String>, cause: std::io::Error) -> Self {
        let is_absent = cause.kind() == std::io::ErrorKind::NotFound;
        let class = if is_absent { Class::NoCommand } else { Class::NotExecutable };
        Self { class, what: what.into(), cause: None, advice: None }.because(cause)
    }

    /// Adds the cause.
    pub fn because(mut self, cause: impl StdError + Send + Sync + 'static) -> Self {
        self.cause = Some(Box::new(cause));
        self
    }

    /// Adds what the user can do.
    pub fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }

    /// The class of the failure.
    pub fn class(&self) -> Class {
        self.class
    }

    /// Did it fail because nobody reads any more?
    pub fn is_broken_pipe(&self) -> bool {
        let mut cause = self.cause.as_deref().map(|c| c as &(dyn StdError + 'static));
        while let Some(error) = cause {
            if error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe) {
                return true;
            }
            cause = match error.downcast_ref::<EngineError>() {
                Some(inner) => inner.cause.as_deref().map(|c| c as &(dyn StdError + 'static)),
                None => error.source(),
            };
        }
        false
    }

    /// The whole sentence: what failed, every cause once, and what to do.
    pub fn sentence(&self) -> String {
        let mut text = self.what.clone();
        let mut advice: Vec<String> = self.advice.iter().cloned().collect();
        let mut cause = self.cause.as_deref().map(|c| c as &(dyn StdError + 'static));
        while let Some(error) = cause {
            let (line, next) = match error.downcast_ref::<EngineError>() {
                Some(inner) => {
                    advice.extend(inner.advice.clone());
                    (inner.what.clone(), inner.cause.as_deref().map(|c| c as &(dyn StdError + 'static)))
                }
                None => (error.to_string(), error.source()),
            };
            // Some error types repeat their cause in their own text.
            if !text.contains(&line) {
                text.push_str(": ");
                text.push_str(&line);
            }
            cause = next;
        }
        for line in advice {
            text.push_str("; ");
            text.push_str(&line);
        }
        text.replace('\n', " ")
    }
}

impl fmt::Display for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence())
    }
}

impl StdError for EngineError {}

/// Turns an error of a lower floor into one of the engine, with what was tried.
pub trait OrFail<T> {
    /// `Err` becomes "what: the error".
    fn or_fail<W: Into<String>>(self, what: impl FnOnce() -> W) -> Result<T>;
}

impl<T, E: StdError + Send + Sync + 'static> OrFail<T> for std::result::Result<T, E> {
    fn or_fail<W: Into<String>>(self, what: impl FnOnce() -> W) -> Result<T> {
        self.map_err(|error| EngineError::failed(what()).because(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_sentence_with_causes_and_advice() {
        let inner =
            EngineError::failed("cannot open /x").because(std::io::Error::from_raw_os_error(2)).advise("make it");
        let outer = EngineError::failed("cannot mount").because(inner);
        assert_eq!(outer.sentence(), "cannot mount: cannot open /x: No such file or directory (os error 2); make it");
    }
}
