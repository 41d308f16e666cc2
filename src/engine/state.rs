// SPDX-License-Identifier: MIT OR Apache-2.0
//! Containers as they are now: found by name or mountpoint, and what they are doing.

use std::path::Path;

use crate::store::container::ContainerRecord;
use crate::store::{Lock, Store, StoreError, Wait};

use super::{EngineError, OrFail, Result, mount};

/// What a container is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Never mounted.
    Created,
    /// Mounted: its daemon lives.
    Mounted,
    /// Unmounted.
    Stopped,
    /// Its daemon died without unmounting.
    Dead,
}

impl State {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            State::Created => "created",
            State::Mounted => "mounted",
            State::Stopped => "stopped",
            State::Dead => "dead",
        }
    }
}

/// What a container is doing now.
pub fn state(store: &Store, record: &ContainerRecord) -> Result<State> {
    let is_live = store.is_container_live(&record.id).or_fail(|| format!("cannot look at {}", record.name))?;
    Ok(match (is_live, &record.mounted, &record.finished) {
        (true, ..) => State::Mounted,
        (false, Some(_), _) => State::Dead,
        (false, None, Some(_)) => State::Stopped,
        (false, None, None) => State::Created,
    })
}

/// The lock of a container: whoever changes its record or its mount holds it.
pub fn lock(store: &Store, record: &ContainerRecord) -> Result<Lock> {
    store.lock_container(&record.id, Wait::Block).or_fail(|| format!("cannot lock the container {}", record.name))
}

/// The container with this name or id.
pub fn find(store: &Store, name: &str) -> Result<ContainerRecord> {
    match store.find_container(name) {
        Err(StoreError::NotFound { .. }) => {
            let error = EngineError::failed(format!("no container {name}")).advise("`mlfs ps -a` lists them");
            let damaged = store.list_containers().map(|listing| listing.damaged).unwrap_or_default();
            Err(match damaged.into_iter().next() {
                // Nobody knows its name: it may be this one.
                Some(damaged) => error.because(damaged.error),
                None => error,
            })
        }
        Err(error @ StoreError::Damaged { .. }) => Err(EngineError::failed(format!("cannot use the container {name}"))
            .because(error)
            .advise(format!("mend its record, or remove the container with `mlfs rm {name}`"))),
        other => other.or_fail(|| format!("cannot find the container {name}")),
    }
}

/// The source that `mount` shows: it names the container, whatever it is called later.
pub fn fsname(record: &ContainerRecord) -> String {
    fsname_of(&record.id)
}

/// The source that `mount` shows for the container with this id.
pub fn fsname_of(id: &str) -> String {
    format!("mlfs-{}", id.chars().take(12).collect::<String>())
}

/// The container that is (or was, when its daemon died) mounted at a place.
pub fn find_by_mountpoint(store: &Store, path: &Path) -> Result<Option<ContainerRecord>> {
    let place = mount::place_of(path)?;
    let records = store.list_containers().or_fail(|| "cannot list the containers")?.whole;
    let is_there = |r: &ContainerRecord| r.mounted.as_ref().is_some_and(|m| Path::new(&m.mountpoint) == place);
    // A dead one may have been at the place before the one that lives there.
    let mut dead = None;
    for record in records.into_iter().filter(is_there) {
        if state(store, &record)? == State::Mounted {
            return Ok(Some(record));
        }
        dead = Some(record);
    }
    Ok(dead)
}
