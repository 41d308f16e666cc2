// SPDX-License-Identifier: MIT OR Apache-2.0
//! Looking inside images and containers without mounting them: the same [`Fs`], opened so that nothing is written.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;

use crate::fs::{Change, Follow, Fs, FsSpec, MountAt};
use crate::layer::Layer;
use crate::layer::index::Limits;
use crate::model::ids::IdMap;
use crate::model::{FsError, Kind};
use crate::oci::reference::Source;
use crate::store::container::{ContainerRecord, MountSource};
use crate::store::{Access, StagingDir, Store};
use crate::tree::{Base, BranchSpec};
use crate::upper::UpperSpec;

use super::assemble::{self, OpenAs, open_path};
use super::layers::{self, LayerInfo};
use super::{EngineError, OrFail, Result, load, mount, state};

/// What a command looks into.
#[derive(Debug)]
pub enum Target {
    /// A container, mounted or not.
    Container(Box<ContainerRecord>),
    /// An image of the store.
    Image(String),
    /// An image that lies elsewhere, or a directory with a root filesystem.
    Source(Source),
}

/// Finds a target: a container by name, a mountpoint written as a path, a source, an image, else a mountpoint here.
pub fn find(store: &Store, text: &str) -> Result<Target> {
    match store.find_container(text) {
        Ok(record) => return Ok(Target::Container(Box::new(record))),
        Err(e) if e.is_not_found() => {}
        Err(e) => return Err(EngineError::failed(format!("cannot find {text}")).because(e)),
    }
    let is_path = text.starts_with('/') || text.starts_with('.');
    if is_path && let Some(record) = state::find_by_mountpoint(store, Path::new(text))? {
        return Ok(Target::Container(Box::new(record)));
    }
    match Source::parse(OsStr::new(text)) {
        Ok(Source::Store(_)) => match store.find_image(text) {
            // `mnt` may be the directory here that something is mounted at.
            Err(e) if e.is_not_found() => Ok(match state::find_by_mountpoint(store, Path::new(text))? {
                Some(record) => Target::Container(Box::new(record)),
                None => Target::Image(text.to_owned()),
            }),
            _ => Ok(Target::Image(text.to_owned())),
        },
        Ok(source) => Ok(Target::Source(source)),
        // Perhaps a path below a mountpoint, or a name that no image can have.
        Err(_) => Err(EngineError::failed(format!("no image, container or mountpoint {text}"))
            .advise("`mlfs image ls` and `mlfs ps -a` list them")),
    }
}

/// A target, opened for looking.
#[derive(Debug)]
pub struct View {
    /// The whole tree, volumes and binds included.
    pub fs: Fs,
    /// Its layers, bottom first.
    pub layers: Vec<LayerInfo>,
    /// Where the tmpfs of a container are: what is in them nobody but the mount knows.
    pub tmpfs: Vec<String>,
    /// A store for the time of looking, which goes with the view.
    _lent: Option<StagingDir>,
}

/// Which part of a target is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// All of it.
    Whole,
    /// The root alone: layers and upper, without volumes and binds.
    Root,
    /// As `Root`, with ids as layers and upper hold them, whatever the mount shows.
    Stored,
    /// One layer, by number (1 is the bottom) or digest.
    Layer(&'a str),
}

/// The layers of a target.
#[derive(Debug)]
pub struct Layers {
    /// Bottom first.
    pub infos: Vec<LayerInfo>,
    /// A store for the time of looking, which goes with them.
    lent: Option<StagingDir>,
}

/// The layers of a target. An image that lies elsewhere is loaded into a store inside the staging of this one: its
/// digests are verified, and nothing of it stays.
pub fn layers(store: &Store, target: &Target) -> Result<Layers> {
    let in_store = |infos| Layers { infos, lent: None };
    match target {
        Target::Container(record) => layers::describe(store, record).map(in_store),
        Target::Image(name) => layers::describe_image(store, name).map(in_store),
        Target::Source(Source::Rootfs(dir)) => Ok(in_store(vec![LayerInfo::of(layers::open_dir(dir)?)])),
        Target::Source(source) => {
            let writable =
                Store::open(store.root(), Access::Write).or_fail(|| "an image can be looked into in a store only")?;
            let staging = writable.stage("look").or_fail(|| "cannot look into the image")?;
            let lent =
                Store::open(&staging.path().join("store"), Access::Write).or_fail(|| "cannot look into the image")?;
            let loaded = load::load_image(&lent, source, None, &Limits::default(), &load::Silent)?;
            let infos = layers::describe_image(&lent, &loaded.manifest.to_string())?;
            Ok(Layers { infos, lent: Some(staging) })
        }
    }
}

/// Opens a target.
pub fn open(store: &Store, target: &Target, part: Part<'_>) -> Result<View> {
    let Layers { infos, lent } = layers(store, target)?;
    let record = match target {
        Target::Container(record) => Some(&**record),
        Target::Image(_) | Target::Source(_) => None,
    };
    if let Part::Layer(wanted) = part {
        let info = find_layer(&infos, wanted)?;
        let spec = FsSpec {
            root: lowers_only(vec![Arc::clone(&info.layer)]),
            mounts: Vec::new(),
            uids: IdMap::Identity,
            gids: IdMap::Identity,
        };
        let fs = Fs::new(spec).or_fail(|| "cannot open the layer")?;
        return Ok(View { fs, layers: infos, tmpfs: Vec::new(), _lent: lent });
    }
    let top_first: Vec<Arc<dyn Layer>> = infos.iter().rev().map(|info| Arc::clone(&info.layer)).collect();
    let Some(record) = record else {
        let root = lowers_only(top_first);
        let spec = FsSpec { root, mounts: Vec::new(), uids: IdMap::Identity, gids: IdMap::Identity };
        let fs = Fs::new(spec).or_fail(|| "cannot put the layers together")?;
        return Ok(View { fs, layers: infos, tmpfs: Vec::new(), _lent: lent });
    };
    let mut mounts: Vec<usize> = Vec::new();
    let mut tmpfs = Vec::new();
    let mut fs = build(store, record, &top_first, &mounts, part)?;
    if part == Part::Whole {
        for (index, mount) in record.mounts.iter().enumerate() {
            if let MountSource::Tmpfs { .. } = mount.source {
                tmpfs.push(mount.target.clone());
                continue;
            }
            // Building would make a missing mount point; looking must not. It is missing only before the first mount.
            match fs.resolve(mount.target.as_bytes(), Follow::Yes) {
                Ok(_) => mounts.push(index),
                Err(FsError::NotFound | FsError::NotDir) => continue,
                Err(error) => {
                    return Err(EngineError::failed(format!("cannot look at {}", mount.target)).because(error));
                }
            }
            fs = build(store, record, &top_first, &mounts, part)?;
        }
    }
    Ok(View { fs, layers: infos, tmpfs, _lent: lent })
}

fn lowers_only(lowers: Vec<Arc<dyn Layer>>) -> BranchSpec {
    BranchSpec {
        label: "image".to_owned(),
        base: Base::Merge { upper: None, lowers },
        is_read_only: true,
        is_shared: false,
    }
}

/// Builds the view of a container with some of its mounts (by their index).
fn build(
    store: &Store,
    record: &ContainerRecord,
    top_first: &[Arc<dyn Layer>],
    mounts: &[usize],
    part: Part<'_>,
) -> Result<Fs> {
    let (upper, work) = mount::work_of(store, record);
    let open = |path: &Path| open_path(path, OpenAs::Directory).or_fail(|| format!("cannot open {}", path.display()));
    let upper = UpperSpec {
        dir: open(&upper)?,
        work: Some(open(&work)?),
        ownership: assemble::ownership(record.ownership),
        is_volatile: false,
        is_view: true,
    };
    let root = BranchSpec {
        label: record.name.clone(),
        base: Base::Merge { upper: Some(upper), lowers: top_first.to_vec() },
        is_read_only: true,
        is_shared: false,
    };
    let mut opened = Vec::new();
    for index in mounts {
        let Some(mount) = record.mounts.get(*index) else { continue };
        let mut branch = match &mount.source {
            MountSource::Volume { name, .. } => assemble::open_volume(store, name, true, None)?,
            MountSource::Bind { path, .. } => assemble::open_bind(path, mount, None)?,
            MountSource::Tmpfs { .. } => continue,
        };
        branch.is_read_only = true;
        opened.push(MountAt { target: mount.target.clone().into_bytes(), branch });
    }
    let (uids, gids) = match part {
        Part::Stored => (IdMap::Identity, IdMap::Identity),
        Part::Whole | Part::Root | Part::Layer(_) => (record.uids.clone(), record.gids.clone()),
    };
    let spec = FsSpec { root, mounts: opened, uids, gids };
    Fs::new(spec).or_fail(|| format!("cannot look into {}", record.name))
}

/// The layer with this number (1 is the bottom), digest, or beginning of a digest (at least 6 digits).
fn find_layer<'a>(layers: &'a [LayerInfo], wanted: &str) -> Result<&'a LayerInfo> {
    let by_number = wanted.parse::<usize>().ok().filter(|n| *n > 0).and_then(|n| layers.get(n - 1));
    let digits = wanted.strip_prefix("sha256:").unwrap_or(wanted);
    let has_digits = |name: &str| name.strip_prefix("sha256:").is_some_and(|hex| hex.starts_with(digits));
    let is_named = |info: &&LayerInfo| {
        let diff_id = info.diff_id.map(|d| d.to_string());
        info.name == wanted || digits.len() >= 6 && (has_digits(&info.name) || diff_id.is_some_and(|d| has_digits(&d)))
    };
    by_number.or_else(|| layers.iter().find(is_named)).ok_or_else(|| {
        EngineError::failed(format!("no layer {wanted}")).advise(format!("there are {}, 1 at the bottom", layers.len()))
    })
}

/// What a container has changed against its layers.
pub fn diff(store: &Store, name: &str) -> Result<Vec<Change>> {
    let record = state::find(store, name)?;
    let view = open(store, &Target::Container(Box::new(record)), Part::Root)?;
    view.fs.changes().or_fail(|| format!("cannot compare {name} with its layers"))
}

/// A word for a kind of file.
pub fn kind_word(kind: Kind) -> &'static str {
    match kind {
        Kind::File => "file",
        Kind::Dir => "directory",
        Kind::Symlink => "symlink",
        Kind::Fifo => "fifo",
        Kind::Char => "character device",
        Kind::Block => "block device",
        Kind::Socket => "socket",
    }
}
