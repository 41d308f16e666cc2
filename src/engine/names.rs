// SPDX-License-Identifier: MIT OR Apache-2.0
//! Names for containers that were given none: an adjective and a kind of stone, for layers are the work of ages.

use crate::store::Store;

use super::{OrFail, Result};

const ADJECTIVES: [&str; 32] = [
    "amber", "ancient", "banded", "brave", "bright", "calm", "clear", "clever", "coarse", "cool", "dense", "eager",
    "early", "even", "fair", "fine", "fluent", "gentle", "glossy", "grand", "keen", "light", "lively", "mellow",
    "merry", "noble", "patient", "quiet", "rapid", "solid", "steady", "vivid",
];

const STONES: [&str; 32] = [
    "agate",
    "basalt",
    "beryl",
    "breccia",
    "chalk",
    "chert",
    "clay",
    "coral",
    "diorite",
    "dolomite",
    "flint",
    "gabbro",
    "garnet",
    "gneiss",
    "granite",
    "gypsum",
    "jade",
    "jasper",
    "limestone",
    "loess",
    "marble",
    "marl",
    "mica",
    "onyx",
    "opal",
    "pumice",
    "quartz",
    "sandstone",
    "schist",
    "shale",
    "slate",
    "topaz",
];

/// A name that no container has. Two commands may still choose the same one: the store refuses the second.
pub fn fresh(store: &Store) -> Result<String> {
    let taken: Vec<String> =
        store.list_containers().or_fail(|| "cannot list the containers")?.whole.into_iter().map(|c| c.name).collect();
    loop {
        let id = crate::store::container::new_id().or_fail(|| "cannot make a name")?;
        let number = |range| id.get(range).and_then(|d| usize::from_str_radix(d, 16).ok()).unwrap_or(0);
        let adjective = ADJECTIVES.get(number(0..2) % ADJECTIVES.len()).unwrap_or(&"plain");
        let stone = STONES.get(number(2..4) % STONES.len()).unwrap_or(&"stone");
        let short = format!("{adjective}_{stone}");
        let name = if taken.len() < 64 { short } else { format!("{short}_{}", id.get(4..8).unwrap_or("0")) };
        if !taken.contains(&name) {
            return Ok(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Access;

    #[test]
    fn names_are_valid_and_fresh() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Access::Write).unwrap();
        assert!(super::super::spec::is_valid_name(&fresh(&store).unwrap()));
    }
}
