// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who reads and writes contents: what `--io` asked for, what was chosen, and why.

use crate::model::IoMode;
use crate::sys::proc;

/// What was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IoChoice {
    /// Does the kernel read and write the host's files by itself?
    pub passes: bool,
    /// Why, or why not.
    pub why: String,
}

impl IoChoice {
    /// Chooses for this process. The ioctl that makes the kernel know a file needs `CAP_SYS_ADMIN` in the initial user
    /// namespace; INIT would grant passthrough to anybody.
    pub fn for_this_process(mode: IoMode) -> Self {
        Self::new(mode, proc::is_administrator())
    }

    fn new(mode: IoMode, is_able: bool) -> Self {
        let (passes, why) = match (mode, is_able) {
            (IoMode::Cached, _) => (false, "asked for by --io cached"),
            (_, false) => (false, "passthrough needs CAP_SYS_ADMIN in the initial user namespace"),
            (IoMode::Passthrough, true) => (true, "asked for by --io passthrough"),
            (IoMode::Auto, true) => (true, "the process may give files to the kernel"),
        };
        IoChoice { passes, why: why.to_owned() }
    }

    /// What is left of it when the kernel has answered.
    pub(super) fn with_kernel(self, is_granted: bool) -> Self {
        if self.passes && !is_granted {
            return IoChoice { passes: false, why: "this kernel has no passthrough (since 6.9)".to_owned() };
        }
        self
    }

    /// The word for it.
    pub fn word(&self) -> &'static str {
        if self.passes { "passthrough" } else { "cached" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passthrough_is_chosen_where_it_works_and_the_reason_is_told() {
        for (mode, is_able, is_granted, passes, why) in [
            (IoMode::Auto, true, true, true, "may give files"),
            (IoMode::Auto, false, false, false, "CAP_SYS_ADMIN"),
            (IoMode::Auto, true, false, false, "kernel"),
            (IoMode::Passthrough, true, true, true, "asked for"),
            (IoMode::Passthrough, false, false, false, "CAP_SYS_ADMIN"),
            (IoMode::Cached, true, false, false, "--io cached"),
        ] {
            let choice = IoChoice::new(mode, is_able).with_kernel(is_granted);
            assert_eq!(choice.passes, passes, "{mode:?} {is_able} {is_granted}");
            assert!(choice.why.contains(why), "{}", choice.why);
        }
        assert!(["auto", "passthrough", "cached"].iter().all(|word| IoMode::parse(word).unwrap().word() == *word));
        assert_eq!(IoMode::parse("direct"), None);
    }
}
