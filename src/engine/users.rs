// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who uses a mount: the processes with open files, maps, or their directory in it. For messages only.

use std::fs;
use std::path::Path;

use crate::store::container::MountedRecord;
use crate::sys::mount;

/// `NAME (pid N)` of each process that uses the mount, as far as /proc lets us see.
///
/// Files are told by the mount's id and device, never by asking the mount itself: it may be dead.
pub fn find(mounted: &MountedRecord) -> Vec<String> {
    let place = Path::new(&mounted.mountpoint);
    let ids: Vec<String> =
        mount::mounts().unwrap_or_default().iter().filter(|m| m.dev == mounted.dev).map(|m| m.id.to_string()).collect();
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let mut users = Vec::new();
    for entry in processes.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().filter(|n| n.bytes().all(|b| b.is_ascii_digit())) else { continue };
        // Whoever asks does not use it: an inherited directory or descriptor is his caller's.
        if pid == mounted.pid.to_string() || pid == std::process::id().to_string() {
            continue;
        }
        let dir = entry.path();
        if has_link(&dir, place) || has_open_file(&dir, &ids) || has_map(&dir, mounted.dev) {
            let command = fs::read_to_string(dir.join("comm")).unwrap_or_default();
            users.push(format!("{} (pid {pid})", command.trim()));
        }
    }
    users
}

fn has_link(process: &Path, place: &Path) -> bool {
    ["cwd", "root"].iter().any(|link| fs::read_link(process.join(link)).is_ok_and(|target| target.starts_with(place)))
}

fn has_open_file(process: &Path, ids: &[String]) -> bool {
    let Ok(files) = fs::read_dir(process.join("fdinfo")) else { return false };
    files.flatten().any(|file| {
        fs::read_to_string(file.path()).is_ok_and(|info| {
            info.lines().filter_map(|line| line.strip_prefix("mnt_id:")).any(|id| ids.iter().any(|i| i == id.trim()))
        })
    })
}

fn has_map(process: &Path, dev: (u32, u32)) -> bool {
    let wanted = format!("{:02x}:{:02x}", dev.0, dev.1);
    fs::read_to_string(process.join("maps"))
        .is_ok_and(|maps| maps.lines().any(|line| line.split_ascii_whitespace().nth(3) == Some(&wanted)))
}
