// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a check of something on disk has found, and what would mend it. Each floor checks its own formats and names its
//! own repairs; `fsck` gathers, carries out and tells.

use std::path::PathBuf;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grade {
    /// As it must be: told only to those who want every mark explained.
    Fine,
    /// Worth telling, but nothing is wrong.
    Note,
    /// What a crash has left: it takes space and does no harm.
    Leftover,
    /// Something is not as it was written.
    Damage,
}

impl Grade {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Grade::Fine => "ok",
            Grade::Note => "note",
            Grade::Leftover => "leftover",
            Grade::Damage => "damage",
        }
    }

    /// Is it something that must be mended?
    pub fn is_fault(self) -> bool {
        self >= Grade::Leftover
    }
}

/// What can be done about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cure<R> {
    /// Nothing need be done.
    Nothing,
    /// This mends it.
    Repair(R),
    /// It cannot be mended here: why, and what the user can do.
    Refused(String),
}

/// One thing that was found; `R` are the repairs of the floor that found it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding<R> {
    /// Where.
    pub path: PathBuf,
    /// What it is, in a word or two.
    pub kind: &'static str,
    /// How bad.
    pub grade: Grade,
    /// What is wrong, and what follows from it.
    pub says: String,
    /// What can be done.
    pub cure: Cure<R>,
}

impl<R> Finding<R> {
    /// Something that is wrong.
    pub fn damage(path: impl Into<PathBuf>, kind: &'static str, says: impl Into<String>, cure: Cure<R>) -> Self {
        Finding { path: path.into(), kind, grade: Grade::Damage, says: says.into(), cure }
    }

    /// Something that a crash has left.
    pub fn leftover(path: impl Into<PathBuf>, kind: &'static str, says: impl Into<String>, repair: R) -> Self {
        Finding { path: path.into(), kind, grade: Grade::Leftover, says: says.into(), cure: Cure::Repair(repair) }
    }

    /// Something to be told.
    pub fn note(path: impl Into<PathBuf>, kind: &'static str, says: impl Into<String>) -> Self {
        Finding { path: path.into(), kind, grade: Grade::Note, says: says.into(), cure: Cure::Nothing }
    }

    /// Something that is as it must be.
    pub fn fine(path: impl Into<PathBuf>, kind: &'static str, says: impl Into<String>) -> Self {
        Finding { path: path.into(), kind, grade: Grade::Fine, says: says.into(), cure: Cure::Nothing }
    }

    /// The same, of another floor.
    pub fn map<S>(self, repair: impl FnOnce(R) -> S) -> Finding<S> {
        let Finding { path, kind, grade, says, cure } = self;
        let cure = match cure {
            Cure::Nothing => Cure::Nothing,
            Cure::Repair(found) => Cure::Repair(repair(found)),
            Cure::Refused(why) => Cure::Refused(why),
        };
        Finding { path, kind, grade, says, cure }
    }
}
