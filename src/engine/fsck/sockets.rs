// SPDX-License-Identifier: MIT OR Apache-2.0
//! Control sockets that dead daemons have left.

use crate::model::finding::Finding;
use crate::store::container::ContainerRecord;

use super::super::control;
use super::{Check, Done, How, Report};

pub(super) fn check(check: &Check<'_>, containers: &[ContainerRecord], report: &mut Report) {
    let is_live = |socket: &std::path::Path| {
        let id = socket.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let own = containers.iter().find(|c| !id.is_empty() && c.id.starts_with(id));
        own.is_some_and(|record| check.store.is_container_live(&record.id).unwrap_or(true))
    };
    let dead = control::dead_sockets().into_iter().filter(|socket| !is_live(socket));
    let says = "nobody listens to this control socket: its daemon has died";
    let findings = dead.map(|socket| Finding::leftover(socket.clone(), "socket", says, socket)).collect();
    let mut remove = |socket: &std::path::PathBuf| {
        // Another daemon may have taken the place.
        if control::is_dead_socket(socket) {
            control::remove_socket(socket);
        }
        Ok(Done::Whole)
    };
    let mend: Option<&mut dyn FnMut(&std::path::PathBuf) -> super::Result<Done>> =
        if check.how == How::Repair { Some(&mut remove) } else { None };
    report.add(findings, |_| "removed".to_owned(), mend);
}
