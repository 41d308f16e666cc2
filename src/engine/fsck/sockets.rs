// SPDX-License-Identifier: MIT OR Apache-2.0
//! Control sockets that dead daemons of this store's containers have left. Those of other stores are not judged.

use std::path::PathBuf;

use crate::model::finding::Finding;
use crate::store::container::ContainerRecord;

use super::super::control;
use super::{Check, Done, How, Mend, Report};

pub(super) fn check(check: &Check<'_>, containers: &[ContainerRecord], report: &mut Report) {
    // Whoever makes a socket holds the liveness lock before.
    let is_live = |record: &ContainerRecord| check.store.is_container_live(&record.id).unwrap_or(true);
    let dead = |record: &&ContainerRecord| !is_live(record);
    let mut found: Vec<(PathBuf, &ContainerRecord)> = Vec::new();
    for record in containers.iter().filter(dead) {
        let noted = record.mounted.as_ref().and_then(|mounted| mounted.socket.as_deref()).map(PathBuf::from);
        let usual = control::sockets_of(&record.id).into_iter();
        for socket in noted.into_iter().chain(usual) {
            if control::is_socket_of(&record.id, &socket) && !found.iter().any(|(known, _)| *known == socket) {
                found.push((socket, record));
            }
        }
    }
    let says =
        |record: &ContainerRecord| format!("nobody listens to this socket: the daemon of {} has ended", record.name);
    let findings = found.into_iter().map(|(socket, record)| {
        let repair = (socket.clone(), record.clone());
        Finding::leftover(socket, "socket", says(record), repair)
    });
    let mut remove = |(socket, record): &(PathBuf, ContainerRecord)| {
        // Another daemon may have taken the place.
        if !is_live(record) {
            control::remove_socket_of(&record.id, socket);
        }
        Ok(Done::Whole)
    };
    let mend: Mend<'_, (PathBuf, ContainerRecord)> = if check.how == How::Repair { Some(&mut remove) } else { None };
    report.add(findings.collect(), |_| "removed".to_owned(), mend);
}
