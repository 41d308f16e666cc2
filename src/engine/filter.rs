// SPDX-License-Identifier: MIT OR Apache-2.0
//! `--filter KEY=VALUE` of listings, as Docker has them: conditions on labels all hold, of others with one key any.

use std::collections::BTreeMap;

use super::state::State;
use super::{EngineError, Result};

/// A condition on labels: `label=KEY[=VALUE]`, `label!=KEY[=VALUE]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelFilter {
    /// The label.
    pub key: String,
    /// Its value, if it matters.
    pub value: Option<String>,
    /// Has it, or has it not?
    pub is_wanted: bool,
}

impl LabelFilter {
    /// Of what stands before the first `=` of a filter and after it; `None` for other filters.
    pub fn parse(word: &str, text: &str) -> Option<Self> {
        let is_wanted = match word {
            "label" => true,
            "label!" => false,
            _ => return None,
        };
        let (key, value) = text.split_once('=').map_or((text, None), |(k, v)| (k, Some(v.to_owned())));
        (!key.is_empty()).then(|| LabelFilter { key: key.to_owned(), value, is_wanted })
    }

    /// Does something with these labels meet it?
    pub fn is_met(&self, labels: &BTreeMap<String, String>) -> bool {
        let has = labels.get(&self.key).is_some_and(|v| self.value.as_ref().is_none_or(|wanted| wanted == v));
        has == self.is_wanted
    }
}

/// Conditions on containers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerFilter {
    labels: Vec<LabelFilter>,
    /// The name contains one of these.
    names: Vec<String>,
    /// It is in one of these states.
    states: Vec<State>,
}

impl ContainerFilter {
    /// Parses all `--filter`s.
    pub fn parse(texts: &[String]) -> Result<Self> {
        let mut filter = ContainerFilter::default();
        for text in texts {
            let bad =
                || EngineError::usage(format!("invalid filter '{text}': write label=, label!=, name= or status="));
            let (key, value) = text.split_once('=').ok_or_else(bad)?;
            if let Some(label) = LabelFilter::parse(key, value) {
                filter.labels.push(label);
                continue;
            }
            let states = [State::Created, State::Mounted, State::Stopped, State::Dead];
            match key {
                "name" => filter.names.push(value.to_owned()),
                "status" => filter.states.push(states.into_iter().find(|s| s.word() == value).ok_or_else(bad)?),
                _ => return Err(bad()),
            }
        }
        Ok(filter)
    }

    /// Is there no condition?
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Does it say which states are wanted? Then those that are not mounted are meant too.
    pub fn has_states(&self) -> bool {
        !self.states.is_empty()
    }

    /// Does a container meet all conditions?
    pub fn is_met(&self, name: &str, labels: &BTreeMap<String, String>, state: State) -> bool {
        self.labels.iter().all(|label| label.is_met(labels))
            && (self.names.is_empty() || self.names.iter().any(|part| name.contains(part)))
            && (self.states.is_empty() || self.states.contains(&state))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_all_hold_and_others_by_any() {
        let labels: BTreeMap<String, String> = [("team".into(), "a".into()), ("gpu".into(), String::new())].into();
        let is_met = |texts: &[&str]| {
            let texts: Vec<String> = texts.iter().map(|t| (*t).to_owned()).collect();
            ContainerFilter::parse(&texts).unwrap().is_met("box", &labels, State::Stopped)
        };
        for yes in [&[][..], &["label=team"], &["label=team=a", "label=gpu"], &["label!=x"], &["name=o", "name=z"]] {
            assert!(is_met(yes), "{yes:?}");
        }
        for no in [&["label=team=b"][..], &["label=team", "label=x"], &["label!=gpu"], &["status=mounted"], &["name=z"]]
        {
            assert!(!is_met(no), "{no:?}");
        }
        assert!(is_met(&["status=mounted", "status=stopped"]));
        for bad in ["team", "status=odd", "size=1", "label="] {
            assert!(ContainerFilter::parse(&[bad.to_owned()]).is_err(), "{bad}");
        }
    }
}
