// SPDX-License-Identifier: MIT OR Apache-2.0
//! From what the user said to a container's record: the plan of a mount.
//!
//! Nothing is made here but what a layer archive needs in the store: everything that can be refused is refused before
//! anything exists. `assemble.rs` opens what a record names, `lifecycle.rs` carries the plan out.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::fuse::IoChoice;
use crate::model::IoMode;
use crate::model::ids::IdMap;
use crate::oci::reference::Source;
use crate::store::container::{ContainerRecord, LayerRecord, MountRecord, MountSource, OwnershipForm, UPPER, new_id};
use crate::store::volume::VolumeRecord;
use crate::store::{Lock, Mode, Store, Wait, timestamp};
use crate::sys::mount;

use super::load::Progress;
use super::settings::{STOP_TIMEOUT, Settings};
use super::spec::{self, CreateSource, MountSpec, TmpfsSize};
use super::{EngineError, OrFail, Result, host, layers, names, volumes};

/// What is to be mounted.
#[derive(Clone, Debug)]
pub enum Origin {
    /// An image of the store.
    Image(String),
    /// Layers: directories or archives, bottom first.
    Layers(Vec<PathBuf>),
}

/// A whole `mlfs mount`.
#[derive(Clone, Debug)]
pub struct MountRequest {
    /// What.
    pub origin: Origin,
    /// Where.
    pub mountpoint: PathBuf,
    /// How.
    pub settings: Settings,
    /// Whether it will be carried out.
    pub purpose: Purpose,
}

/// What a plan is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To be carried out: what lies outside of the store is loaded.
    Mount,
    /// To be shown (`--dry-run`): nothing is loaded or made.
    Show,
}

/// A planned mount.
#[derive(Debug)]
pub struct Plan {
    /// The store.
    pub store: Store,
    /// The record of the container to be.
    pub record: ContainerRecord,
    /// Holds the store for use: what the record refers to stays until it is written.
    pub in_use: Lock,
}

/// Makes the record of a new container.
///
/// Errors of class `Usage` come first: they need neither store nor host.
pub fn plan(
    open_store: impl FnOnce() -> Result<Store>,
    request: &MountRequest,
    progress: &dyn Progress,
) -> Result<Plan> {
    let settings = &request.settings;
    settings.name.as_deref().map_or(Ok(()), check_name)?;
    let specs = spec::order(settings.mounts.clone()).map_err(|e| EngineError::usage(e.to_string()))?;
    let (uids, gids) = settings.id_maps(host::caller())?;

    check_allow_other(settings.allow_other == Some(true))?;
    check_io(settings.io.unwrap_or_default())?;
    let mountpoint = check_mountpoint(&request.mountpoint)?;
    let upper = settings.upper.as_deref().map(check_upper).transpose()?;
    let mounts = specs.into_iter().map(resolve_mount).collect::<Result<Vec<_>>>()?;
    match &request.origin {
        Origin::Layers(paths) => check_layers(paths, upper.as_deref(), &mountpoint)?,
        Origin::Image(name) => {
            if let Source::Rootfs(dir) = layers::parse_source(name)? {
                check_layers(&[dir], upper.as_deref(), &mountpoint)?;
            }
        }
    }
    let store = open_store()?;
    let in_use = store.lock(Mode::Shared, Wait::Block).or_fail(|| "cannot use the store")?;
    check_outside(("mountpoint", &mountpoint), ("store", store.root()))?;
    if let Some(upper) = &upper {
        check_upper_is_free(&store, upper)?;
        check_outside(("mountpoint", &mountpoint), ("upper", Path::new(upper)))?;
        check_outside(("upper", Path::new(upper)), ("mountpoint", &mountpoint))?;
    }
    let (image, image_name, layers) = resolve_origin(&store, &request.origin, request.purpose, progress)?;

    let is_fixed = matches!(uids, IdMap::Fixed(_));
    let name = match &settings.name {
        Some(name) => name.clone(),
        None => names::fresh(&store)?,
    };
    let record = ContainerRecord {
        id: new_id().or_fail(|| "cannot make an id")?,
        name,
        incomplete: true,
        created: timestamp::now(),
        image,
        image_name,
        layers,
        ownership: upper_form(upper.as_deref(), is_fixed)?,
        upper,
        uids,
        gids,
        mounts,
        read_only: settings.read_only.unwrap_or(false),
        rm: settings.rm.unwrap_or(false),
        allow_other: settings.allow_other.unwrap_or(host::caller().0 == 0),
        io: settings.io.unwrap_or_default(),
        suid: settings.suid.unwrap_or(false),
        dev: settings.dev.unwrap_or(false),
        stop_timeout_ms: settings.stop_timeout.unwrap_or(STOP_TIMEOUT).as_millis().try_into().unwrap_or(u64::MAX),
        labels: settings.labels.clone(),
        mountpoint: Some(text(&mountpoint)?),
        mounted: None,
        finished: None,
    };
    Ok(Plan { store, record, in_use })
}

/// Can a container be called so?
pub fn check_name(name: &str) -> Result<()> {
    if spec::is_valid_name(name) {
        return Ok(());
    }
    let what = format!("\"{name}\" is not a container name: names match [a-zA-Z0-9][a-zA-Z0-9_.-]*");
    Err(EngineError::usage(what))
}

type Resolved = (Option<crate::model::Digest>, Option<String>, Vec<LayerRecord>);

fn resolve_origin(store: &Store, origin: &Origin, purpose: Purpose, progress: &dyn Progress) -> Result<Resolved> {
    match origin {
        Origin::Image(name) => {
            let source = layers::parse_source(name)?;
            if purpose == Purpose::Show && !matches!(source, Source::Store(_) | Source::Rootfs(_)) {
                return Ok((None, Some(name.clone()), Vec::new()));
            }
            if let Source::Rootfs(dir) = source {
                return resolve_origin(store, &Origin::Layers(vec![dir]), purpose, progress);
            }
            let image = layers::resolve_image(store, name, progress)?;
            let stored = image.diff_ids.iter().copied().map(LayerRecord::Stored).collect();
            Ok((Some(image.manifest), Some(name.clone()), stored))
        }
        Origin::Layers(paths) => {
            let mut records = Vec::new();
            for path in paths {
                let is_dir = fs::metadata(path).is_ok_and(|meta| meta.is_dir());
                records.push(if is_dir || purpose == Purpose::Show {
                    LayerRecord::Dir(text(&canonical(path, "the layer")?)?)
                } else {
                    LayerRecord::Stored(layers::load_archive(store, path, progress)?)
                });
            }
            Ok((None, None, records))
        }
    }
}

/// What `--dry-run` prints: the steps of a mount, in their order.
pub fn describe(store: &Store, record: &ContainerRecord) -> Result<Vec<String>> {
    let mut steps = Vec::new();
    if let Some(image) = &record.image_name {
        let is_loaded = record.image.is_some();
        steps.push(if is_loaded { format!("image {image}") } else { format!("load the image {image}") });
    }
    for layer in &record.layers {
        steps.push(format!("layer {}", String::from(layer.clone())));
    }
    steps.push(match &record.upper {
        Some(upper) => format!("upper {upper} (kept)"),
        None => "upper in the store".to_owned(),
    });
    for mount in &record.mounts {
        let what = match &mount.source {
            MountSource::Volume { is_anonymous: true, .. } => "make an anonymous volume".to_owned(),
            MountSource::Volume { name, .. } => {
                let found = store.load_volume(name).or_fail(|| format!("cannot read the volume {name}"))?;
                let make = if found.is_none() { "make the " } else { "" };
                format!("{make}volume {name}")
            }
            MountSource::Bind { path, is_created } => {
                let make = if *is_created && !Path::new(path).exists() { "make the directory and " } else { "" };
                format!("{make}bind {path}")
            }
            MountSource::Tmpfs { .. } => "tmpfs".to_owned(),
        };
        let mode = if mount.read_only { " (read-only)" } else { "" };
        steps.push(format!("{what} at {}{mode}", mount.target));
    }
    let mountpoint = record.mountpoint.as_deref().unwrap_or("");
    let mode = if record.read_only { " read-only" } else { "" };
    let end = if record.rm { ", discarded at unmount" } else { "" };
    steps.push(format!("mount {} at {mountpoint}{mode}{end}", record.name));
    Ok(steps)
}

fn text(path: &Path) -> Result<String> {
    host::path_text(path)
}

fn canonical(path: &Path, what: &str) -> Result<PathBuf> {
    fs::canonicalize(path).or_fail(|| format!("cannot use {what} {}", path.display()))
}

/// An ordinary user may let others in only where root has allowed it.
/// Passthrough that was asked for, and not only welcome, must be possible.
fn check_io(mode: IoMode) -> Result<()> {
    let choice = IoChoice::for_this_process(mode);
    if mode == IoMode::Passthrough && !choice.passes {
        return Err(EngineError::failed(format!("--io passthrough is not possible: {}", choice.why))
            .advise("leave it out: contents are then read and written through the kernel's cache"));
    }
    Ok(())
}

fn check_allow_other(is_asked: bool) -> Result<()> {
    if !is_asked || host::caller().0 == 0 || host::is_allow_other_allowed() {
        return Ok(());
    }
    let path = host::FUSE_CONF;
    Err(EngineError::failed(format!("--allow-other is not allowed to ordinary users by {path}"))
        .advise(format!("let root add the line `user_allow_other` to {path}")))
}

/// A mountpoint must be there, a directory, empty, and no mount of ours; returns it with symlinks resolved.
pub fn check_mountpoint(path: &Path) -> Result<PathBuf> {
    let refuse = |why: &str, advice: &str| {
        EngineError::failed(format!("cannot mount at {}: {why}", path.display())).advise(advice.to_owned())
    };
    check_not_mounted(&place_of(path)?)?;
    let real = match fs::canonicalize(path) {
        Ok(real) => real,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(refuse("it does not exist", &format!("make it with `mkdir {}`", path.display())));
        }
        Err(e) => return Err(EngineError::failed(format!("cannot mount at {}", path.display())).because(e)),
    };
    let entries = match fs::read_dir(&real) {
        Ok(mut entries) => entries.next().is_some(),
        Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => {
            return Err(refuse("it is not a directory", "choose an empty directory"));
        }
        Err(e) => return Err(EngineError::failed(format!("cannot mount at {}", path.display())).because(e)),
    };
    if entries {
        return Err(refuse("the directory is not empty", "choose an empty one"));
    }
    Ok(real)
}

fn check_not_mounted(place: &Path) -> Result<()> {
    match mount::mount_at(place).or_fail(|| "cannot list the mounts")? {
        Some(found) if found.kind == "fuse.mlfs" => {
            let what = format!("cannot mount at {}: an mlfs mount is there already", place.display());
            Err(EngineError::failed(what).advise("unmount it with `mlfs umount`, or choose another place"))
        }
        _ => Ok(()),
    }
}

/// Claims a mountpoint that [`check_mountpoint`] has found free: of two commands at once, one mounts there. The claim is
/// to be held until it is mounted.
pub fn claim_mountpoint(place: &Path) -> Result<OwnedFd> {
    let claim = mount::claim_mountpoint(place).or_fail(|| format!("cannot mount at {}", place.display()))?;
    check_not_mounted(place)?;
    Ok(claim)
}

/// A path with the symlinks of all but its last name resolved, which works on dead mounts too.
pub fn place_of(path: &Path) -> Result<PathBuf> {
    let absolute = std::path::absolute(path).or_fail(|| format!("cannot find {}", path.display()))?;
    if let Ok(real) = fs::canonicalize(&absolute) {
        return Ok(real);
    }
    match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) => Ok(fs::canonicalize(parent).unwrap_or_else(|_| parent.to_owned()).join(name)),
        _ => Ok(absolute),
    }
}

/// The upper that `--upper` names, with symlinks resolved; it may be missing if its parent is there.
fn check_upper(path: &Path) -> Result<String> {
    match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => text(&canonical(path, "the upper")?),
        Ok(_) => Err(EngineError::failed(format!("the upper {} is not a directory", path.display()))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let absolute = std::path::absolute(path).or_fail(|| format!("cannot find {}", path.display()))?;
            let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
                return Err(EngineError::failed(format!("cannot use the upper {}", path.display())).because(e));
            };
            text(&canonical(parent, "the parent of the upper")?.join(name))
        }
        Err(e) => Err(EngineError::failed(format!("cannot use the upper {}", path.display())).because(e)),
    }
}

/// Refuses `inner` equal to or inside `outer`.
fn check_outside((inner_what, inner): (&str, &Path), (outer_what, outer): (&str, &Path)) -> Result<()> {
    let outer_real = fs::canonicalize(outer).unwrap_or_else(|_| outer.to_owned());
    if !inner.starts_with(&outer_real) {
        return Ok(());
    }
    let relation = if inner == outer_real { "is" } else { "lies inside" };
    let (inner, outer) = (inner.display(), outer_real.display());
    Err(EngineError::failed(format!("the {inner_what} {inner} {relation} the {outer_what} {outer}"))
        .advise("choose another place"))
}

/// Layers and the upper must not contain each other, and the mountpoint must lie in none of them.
fn check_layers(paths: &[PathBuf], upper: Option<&str>, mountpoint: &Path) -> Result<()> {
    for path in paths {
        let meta = fs::metadata(path).or_fail(|| format!("cannot use the layer {}", path.display()))?;
        if !meta.is_dir() && !meta.is_file() {
            return Err(EngineError::failed(format!("the layer {} is neither directory nor archive", path.display())));
        }
        if !meta.is_dir() {
            continue;
        }
        let real = canonical(path, "the layer")?;
        check_outside(("mountpoint", mountpoint), ("layer", &real))?;
        if let Some(upper) = upper {
            check_outside(("layer", &real), ("upper", Path::new(upper)))?;
            check_outside(("upper", Path::new(upper)), ("layer", &real))?;
        }
    }
    Ok(())
}

/// One upper belongs to one container at a time.
fn check_upper_is_free(store: &Store, upper: &str) -> Result<()> {
    for other in store.list_containers().or_fail(|| "cannot list the containers")?.whole {
        if other.upper.as_deref() == Some(upper)
            && store.is_container_live(&other.id).or_fail(|| "cannot look at the container")?
        {
            return Err(EngineError::failed(format!("the upper {upper} is in use by the container {}", other.name)));
        }
    }
    Ok(())
}

/// How the upper keeps owners: as it did before, where it has been an upper already.
pub(super) fn upper_form(upper: Option<&str>, is_fixed: bool) -> Result<OwnershipForm> {
    if is_fixed {
        return Ok(OwnershipForm::Fixed);
    }
    let Some(upper) = upper else { return Ok(volumes::default_form()) };
    let mut value = [0u8; 64];
    match rustix::fs::getxattr(upper, crate::layer::whiteout::OVERRIDE_XATTR, &mut value) {
        Ok(_) => Ok(OwnershipForm::Override),
        Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOENT) => {
            Ok(volumes::default_form())
        }
        Err(e) => {
            Err(EngineError::failed(format!("cannot look at the upper {upper}")).because(std::io::Error::from(e)))
        }
    }
}

/// Turns what was asked into what is recorded: absolute paths, names for anonymous volumes.
fn resolve_mount(spec: MountSpec) -> Result<MountRecord> {
    let source = match spec.source {
        spec::Source::Volume { name, labels } => {
            MountSource::Volume { name, is_anonymous: false, no_copy: spec.no_copy, labels }
        }
        spec::Source::Anonymous { labels } => MountSource::Volume {
            name: new_id().or_fail(|| "cannot name a volume")?,
            is_anonymous: true,
            no_copy: spec.no_copy,
            labels,
        },
        spec::Source::Bind { path, create } => {
            let absolute = text(Path::new(&path))?;
            // Where a file was, a directory is never made.
            let mut is_created = create == CreateSource::Make;
            match fs::metadata(&absolute) {
                Ok(meta) => is_created &= meta.is_dir(),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound && is_created => {}
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                    return Err(EngineError::failed(format!("bind source path does not exist: {path}"))
                        .advise("make it first, or use -v, which makes it"));
                }
                Err(e) => return Err(EngineError::failed(format!("cannot use the bind source {path}")).because(e)),
            }
            MountSource::Bind { path: absolute, is_created }
        }
        spec::Source::Tmpfs(options) => {
            let (size, percent) = match options.size {
                Some(TmpfsSize::Bytes(bytes)) => (Some(bytes), None),
                Some(TmpfsSize::Percent(percent)) => (None, Some(percent)),
                None => (None, None),
            };
            MountSource::Tmpfs { size, percent, mode: options.mode, uid: options.uid, gid: options.gid }
        }
    };
    Ok(MountRecord { target: spec.target, source, read_only: spec.read_only })
}

/// Where the work directory of an upper is: beside it.
pub fn work_of(store: &Store, record: &ContainerRecord) -> (PathBuf, PathBuf) {
    match &record.upper {
        Some(upper) => (PathBuf::from(upper), work_beside(Path::new(upper))),
        None => {
            let dir = store.container_dir(&record.id);
            (dir.join(UPPER), dir.join(crate::store::container::WORK))
        }
    }
}

/// The work directory of an upper that a user names.
pub fn work_beside(upper: &Path) -> PathBuf {
    let mut name = upper.as_os_str().to_owned();
    name.push(".work");
    PathBuf::from(name)
}

/// Do two paths lie on one filesystem?
pub fn is_same_filesystem(a: &Path, b: &Path) -> bool {
    matches!((fs::metadata(a), fs::metadata(b)), (Ok(a), Ok(b)) if a.dev() == b.dev())
}

/// Writes the first record. Call it while the plan holds the store for use, so that nobody collects what it refers to.
pub fn register(store: &Store, record: &ContainerRecord) -> Result<()> {
    store.create_container(record).or_fail(|| format!("cannot create the container {}", record.name))
}

/// The record of a volume that a mount needs and nobody has made yet.
pub fn new_volume(name: &str, is_anonymous: bool, labels: &std::collections::BTreeMap<String, String>) -> VolumeRecord {
    let mut record = VolumeRecord::new(name, volumes::default_form());
    record.is_anonymous = is_anonymous;
    record.labels = labels.clone();
    record
}
