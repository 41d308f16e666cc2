// SPDX-License-Identifier: MIT OR Apache-2.0
//! Volumes as the user means them: make, list, remove, prune. Mounting them is `mount.rs`, filling them `filling.rs`.

use std::collections::BTreeMap;
use std::io::{BufWriter, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::store::container::{OwnershipForm, new_id};
use crate::store::volume::VolumeRecord;
use crate::store::{Store, StoreError, Wait};

use super::copy::Owners;
use super::export::flushed;
use super::filter::LabelFilter;
use super::populate::{open_plain, sync};
use super::{EngineError, OrFail, Result, pack, spec, unpack};

/// What `volume create` was asked for.
#[derive(Clone, Debug, Default)]
pub struct VolumeRequest {
    /// The name; a new anonymous volume without one.
    pub name: Option<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Driver options: `type=none`, `o=bind`, `device=DIR`.
    pub options: BTreeMap<String, String>,
}

/// How a volume made by this process keeps owners.
///
/// Native for real root and for a namespace with a range of ids; else in extended attributes.
pub fn default_form() -> OwnershipForm {
    OwnershipForm::possible_here()
}

/// Makes a volume, or finds the one with the same name and options.
pub fn create(store: &Store, request: &VolumeRequest) -> Result<VolumeRecord> {
    let name = match &request.name {
        Some(name) => {
            spec::volume_name(name).map_err(|e| EngineError::usage(e.to_string()))?;
            name.clone()
        }
        None => new_id().or_fail(|| "cannot name the volume")?,
    };
    check_options(&request.options)?;
    let lock = store.lock_volume(&name, Wait::Block).or_fail(|| format!("cannot create the volume {name}"))?;
    if let Some(existing) = store.load_volume(&name).or_fail(|| format!("cannot read the volume {name}"))? {
        let differs =
            |asked: &BTreeMap<String, String>, has: &BTreeMap<String, String>| !asked.is_empty() && asked != has;
        if differs(&request.options, &existing.options) || differs(&request.labels, &existing.labels) {
            return Err(EngineError::failed(format!("the volume {name} exists with other options or labels"))
                .advise(format!("see `mlfs volume inspect {name}`, or choose another name")));
        }
        return Ok(existing);
    }
    let mut record = VolumeRecord::new(&name, form_for(&request.options));
    record.is_anonymous = request.name.is_none();
    record.labels = request.labels.clone();
    record.options = request.options.clone();
    if let Err(error) = store.create_volume(&record) {
        lock.remove().or_fail(|| "cannot unlock")?;
        return Err(EngineError::failed(format!("cannot create the volume {name}")).because(error));
    }
    Ok(record)
}

/// A directory of the host belongs to the host: its owners are as they are there.
fn form_for(options: &BTreeMap<String, String>) -> OwnershipForm {
    if options.contains_key("device") { OwnershipForm::Native } else { default_form() }
}

/// The options of Docker's local driver that make a volume of a host directory; all others are refused.
fn check_options(options: &BTreeMap<String, String>) -> Result<()> {
    for (key, value) in options {
        let is_known = match key.as_str() {
            "type" => value == "none" || value == "bind",
            "o" => value == "bind" || value == "rbind",
            "device" => Path::new(value).is_absolute(),
            _ => false,
        };
        if !is_known {
            return Err(EngineError::usage(format!(
                "the volume option {key}={value} is not built yet in mlfs (only type=none, o=bind, device=/DIR)"
            )));
        }
    }
    match (options.is_empty(), options.get("device"), options.contains_key("o")) {
        (true, ..) => Ok(()),
        (false, Some(device), true) => match std::fs::metadata(device) {
            Ok(meta) if meta.is_dir() => Ok(()),
            Ok(_) => Err(EngineError::failed(format!("the volume's device {device} is not a directory"))),
            Err(e) => Err(EngineError::failed(format!("cannot use the volume's device {device}")).because(e)),
        },
        _ => {
            Err(EngineError::usage("a volume of a host directory needs the options type=none, o=bind and device=/DIR"))
        }
    }
}

/// Writes what a volume holds as a tar, owners as containers see them.
pub fn export(store: &Store, name: &str, out: &mut dyn Write) -> Result<()> {
    let volume = store.find_volume(name).or_fail(|| "cannot export the volume")?;
    if volume.incomplete {
        return Err(EngineError::failed(format!("the volume {name} was not filled to its end"))
            .advise("mount a container that uses it first, or run `mlfs fsck --repair`"));
    }
    let tree = open_plain(&store.volume_data(&volume), &volume)?;
    let out = BufWriter::with_capacity(1 << 17, out);
    flushed(pack::pack(&pack::Plan::whole(&tree), out)?)
}

/// Makes a volume of a tar: whole, or not at all.
pub fn import(store: &Store, name: &str, input: impl Read + Send) -> Result<()> {
    check_import(name)?;
    let what = || format!("cannot import the volume {name}");
    let lock = store.lock_volume(name, Wait::Block).or_fail(what)?;
    if store.load_volume(name).or_fail(what)?.is_some() {
        return Err(
            EngineError::failed(format!("the volume {name} exists")).advise("choose another name, or remove it")
        );
    }
    let record = VolumeRecord::new(name, default_form());
    let imported = (|| {
        let staged = store.stage_volume(&record).or_fail(what)?;
        crate::sys::proc::set_umask(0);
        let tree = open_plain(&staged.data(), &record)?;
        unpack::unpack(&tree, &[], input, Owners::Exact)?;
        drop(tree);
        sync(&staged.data())?;
        staged.publish(store).or_fail(what)
    })();
    if imported.is_err() {
        lock.remove().or_fail(|| "cannot unlock")?;
    }
    imported.map_err(|error: EngineError| EngineError::failed(what()).because(error))
}

/// Can a volume be called so?
pub fn check_import(name: &str) -> Result<()> {
    spec::volume_name(name).map(drop).map_err(|e| EngineError::usage(e.to_string()))
}

/// Removes a volume that nobody uses.
pub fn remove(store: &Store, name: &str) -> Result<()> {
    let lock = match store.lock_volume(name, Wait::Block) {
        Err(e) => return Err(EngineError::failed(format!("cannot remove the volume {name}")).because(e)),
        Ok(lock) => lock,
    };
    let volume = match store.load_volume(name) {
        Ok(Some(volume)) => Some(volume),
        Ok(None) => {
            lock.remove().or_fail(|| "cannot unlock")?;
            return Err(EngineError::failed(format!("no volume {name} in the store {}", store.root().display())));
        }
        // Removing it is the way out.
        Err(StoreError::Damaged { .. }) => None,
        Err(error) => return Err(EngineError::failed(format!("cannot read the volume {name}")).because(error)),
    };
    let users = store.volume_users(name).or_fail(|| format!("cannot tell who uses the volume {name}"))?;
    if !users.is_empty() {
        return Err(EngineError::failed(format!("volume is in use - [{}]", users.join(", ")))
            .advise(format!("remove its containers first, then the volume {name}")));
    }
    if let Some(volume) = &volume {
        super::filling::forget(store, volume)?;
    }
    store.remove_volume(name).or_fail(|| format!("cannot remove the volume {name}"))?;
    lock.remove().or_fail(|| format!("cannot unlock the volume {name}"))
}

/// A condition on volumes: `name=TEXT`, `label=KEY[=VALUE]`, `label!=..`, `dangling=BOOL`, `driver=local`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    /// The name contains this.
    Name(String),
    /// It has (or has not) a label.
    Label(LabelFilter),
    /// No container uses it (or one does).
    Dangling(bool),
    /// The driver's name.
    Driver(String),
}

/// Parses one `--filter`.
pub fn parse_filter(text: &str) -> Result<Filter> {
    let bad =
        || EngineError::usage(format!("invalid filter '{text}': write name=, label=, label!=, dangling= or driver="));
    let (key, value) = text.split_once('=').ok_or_else(bad)?;
    if let Some(label) = LabelFilter::parse(key, value) {
        return Ok(Filter::Label(label));
    }
    Ok(match key {
        "name" => Filter::Name(value.to_owned()),
        "dangling" => Filter::Dangling(match value {
            "true" | "1" => true,
            "false" | "0" => false,
            _ => return Err(bad()),
        }),
        "driver" => Filter::Driver(value.to_owned()),
        _ => return Err(bad()),
    })
}

impl Filter {
    fn is_met(&self, volume: &VolumeRecord, is_used: bool) -> bool {
        match self {
            Filter::Name(part) => volume.name.contains(part.as_str()),
            Filter::Label(label) => label.is_met(&volume.labels),
            Filter::Dangling(wanted) => *wanted != is_used,
            Filter::Driver(name) => name == "local",
        }
    }
}

/// The volumes that meet all filters.
pub fn list(store: &Store, filters: &[Filter]) -> Result<Vec<VolumeRecord>> {
    let containers = store.list_containers().or_fail(|| "cannot list the containers")?.whole;
    let volumes = store.list_volumes().or_fail(|| "cannot list the volumes")?;
    for damaged in &volumes.damaged {
        log::warn!("{}; `mlfs volume rm {}` removes the volume", damaged.error, damaged.id);
    }
    let is_met = |v: &VolumeRecord| {
        let is_used = containers.iter().any(|c| c.is_using_volume(&v.name));
        filters.iter().all(|f| f.is_met(v, is_used))
    };
    Ok(volumes.whole.into_iter().filter(is_met).collect())
}

/// What a prune removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// The volumes.
    pub names: Vec<String>,
    /// What they held on disk, in bytes.
    pub bytes: u64,
}

/// Removes the unused volumes that meet all filters: anonymous ones, and with `is_all` named ones too.
pub fn prune(store: &Store, is_all: bool, filters: &[Filter]) -> Result<Pruned> {
    // A container that cannot be read may use any volume.
    store.load_containers().or_fail(|| "cannot tell which volumes are used")?;
    let mut pruned = Pruned::default();
    for volume in list(store, filters)? {
        if !(is_all || volume.is_anonymous) {
            continue;
        }
        // The bytes of a host directory stay where they are.
        let bytes = if volume.device().is_none() { disk_bytes(&store.volume_data(&volume)) } else { 0 };
        match remove(store, &volume.name) {
            Ok(()) => {
                pruned.bytes = pruned.bytes.saturating_add(bytes);
                pruned.names.push(volume.name);
            }
            Err(e) => log::debug!("kept the volume {}: {e}", volume.name),
        }
    }
    Ok(pruned)
}

/// What a tree holds on disk; what cannot be read does not count. For messages only.
pub fn disk_bytes(path: &Path) -> u64 {
    let Ok(meta) = std::fs::symlink_metadata(path) else { return 0 };
    let own = meta.blocks().saturating_mul(512);
    if !meta.is_dir() {
        return own;
    }
    let Ok(entries) = std::fs::read_dir(path) else { return own };
    entries.flatten().fold(own, |sum, entry| sum.saturating_add(disk_bytes(&entry.path())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Class;
    use crate::store::Access;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("s"), Access::Write).unwrap();
        (dir, store)
    }

    fn request(name: &str, labels: &[(&str, &str)]) -> VolumeRequest {
        VolumeRequest {
            name: Some(name.into()),
            labels: labels.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
            options: BTreeMap::new(),
        }
    }

    #[test]
    fn the_same_name_is_the_same_volume_and_other_options_an_error() {
        let (_dir, store) = store();
        let first = create(&store, &request("data", &[("a", "b")])).unwrap();
        assert_eq!(create(&store, &request("data", &[("a", "b")])).unwrap(), first);
        assert_eq!(create(&store, &request("data", &[])).unwrap(), first);
        assert_eq!(create(&store, &request("data", &[("a", "c")])).unwrap_err().class(), Class::Failed);
        assert_eq!(create(&store, &request("a/b", &[])).unwrap_err().class(), Class::Usage);
        let anonymous = create(&store, &VolumeRequest::default()).unwrap();
        assert!(anonymous.is_anonymous && anonymous.name.len() == 64);
    }

    #[test]
    fn host_directories_and_other_options() {
        let (dir, store) = store();
        let mut with = request("d", &[]);
        for (key, value) in [("type", "none"), ("o", "bind"), ("device", dir.path().to_str().unwrap())] {
            with.options.insert(key.into(), value.into());
        }
        assert_eq!(create(&store, &with).unwrap().device(), dir.path().to_str());
        assert!(create(&store, &VolumeRequest { name: Some("d".into()), ..with.clone() }).is_ok());
        let mut nfs = request("n", &[]);
        nfs.options.insert("type".into(), "nfs".into());
        assert!(create(&store, &nfs).unwrap_err().to_string().contains("not built yet"));
        with.name = Some("e".into());
        with.options.insert("device".into(), "/does/not/exist".into());
        assert_eq!(create(&store, &with).unwrap_err().class(), Class::Failed);
    }

    #[test]
    fn a_damaged_volume_hides_no_other_and_can_be_removed() {
        let (_dir, store) = store();
        create(&store, &request("data", &[])).unwrap();
        create(&store, &request("bad", &[])).unwrap();
        std::fs::write(store.layout().volume("bad").join("volume.json"), "{").unwrap();
        assert_eq!(list(&store, &[]).unwrap().len(), 1);
        assert!(create(&store, &request("bad", &[])).is_err());
        remove(&store, "bad").unwrap();
        assert!(!store.layout().volume("bad").exists());
    }

    #[test]
    fn a_damaged_container_keeps_every_volume() {
        let (_dir, store) = store();
        create(&store, &request("data", &[])).unwrap();
        let bad = crate::store::container::tests::record("bad");
        store.create_container(&bad).unwrap();
        std::fs::write(store.container_dir(&bad.id).join("container.json"), "{").unwrap();
        assert_eq!(list(&store, &[]).unwrap().len(), 1);
        assert!(remove(&store, "data").is_err());
        assert!(prune(&store, true, &[]).is_err());
    }

    #[test]
    fn filters_remove_and_prune() {
        let (_dir, store) = store();
        create(&store, &request("data", &[("k", "v")])).unwrap();
        create(&store, &request("other", &[])).unwrap();
        let anonymous = create(&store, &VolumeRequest::default()).unwrap();
        store.create_container(&crate::store::container::tests::record("c")).unwrap();
        let names = |filters: &[&str]| -> Vec<String> {
            let filters: Vec<Filter> = filters.iter().map(|f| parse_filter(f).unwrap()).collect();
            list(&store, &filters).unwrap().into_iter().map(|v| v.name).collect()
        };
        assert_eq!(names(&["name=ata"]), ["data"]);
        assert_eq!(names(&["label=k"]), ["data"]);
        assert!(names(&["label=k=w"]).is_empty());
        assert_eq!(names(&["label!=k", "name=other"]), ["other"]);
        assert_eq!(names(&["dangling=false"]), ["data"]);
        assert_eq!(names(&["driver=nfs"]).len(), 0);
        assert!(parse_filter("size=1").is_err() && parse_filter("x").is_err() && parse_filter("dangling=x").is_err());
        assert!(remove(&store, "data").unwrap_err().to_string().starts_with("volume is in use - [c]"));
        assert!(remove(&store, "none").unwrap_err().to_string().starts_with("no volume none"));
        assert_eq!(prune(&store, false, &[]).unwrap().names, [anonymous.name]);
        assert_eq!(prune(&store, true, &[]).unwrap().names, ["other"]);
        assert_eq!(names(&[]), ["data"]);
    }
}
