// SPDX-License-Identifier: MIT OR Apache-2.0
//! Floor 3: the store: blobs, objects, layer indexes, images, containers and volumes on disk.
//!
//! Every record is one JSON file, replaced whole (`atomic.rs`); large things are written in `staging/` and renamed
//! into place when whole. `meta.json` carries a version and three feature lists, after ext4's example. `docs/store.md`
//! describes the format. The store knows `layer/` (whose indexes it keeps), never the other way round; it does not
//! know what a mount is.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub mod atomic;
pub mod blob;
pub mod check;
pub mod container;
pub mod error;
pub mod gc;
pub mod image;
pub mod layout;
pub mod lock;
pub mod object;
pub mod plain;
pub mod publish;
pub mod timestamp;
pub mod volume;

pub use atomic::StagingDir;
pub use error::StoreError;
pub use layout::Layout;
pub use lock::{Lock, Mode, Wait};
pub use publish::{Existing, Publication};

use crate::sys::lock::Kind;
use error::At;

/// The format version this mlfs writes and the newest it reads.
pub const FORMAT_VERSION: u32 = 1;
/// An `index.json` without images.
const EMPTY_INDEX: &str =
    "{\"schemaVersion\":2,\"mediaType\":\"application/vnd.oci.image.index.v1+json\",\"manifests\":[]}\n";
/// What `oci-layout` says.
const OCI_LAYOUT_BYTES: &str = "{\"imageLayoutVersion\":\"1.0.0\"}\n";
/// Features that change the format so that older versions must not even read it.
const INCOMPATIBLE: &[&str] = &[FCNTL_LOCKS];
/// The feature of a store that is locked by fcntl: it was made where flock is refused. Others lock by flock.
const FCNTL_LOCKS: &str = "fcntl-locks";
/// Features that older versions may read but not write.
const READ_ONLY_COMPATIBLE: &[&str] = &[];

/// The lock of those who make the store.
const CREATE_LOCK: &str = "store-create";

/// What the caller wants to do with a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Only read. A store that does not exist is an empty one; nothing is created.
    Read,
    /// Read and write. A store that does not exist is created.
    Write,
}

/// `meta.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    version: u32,
    #[serde(default)]
    compatible: Vec<String>,
    #[serde(default)]
    read_only_compatible: Vec<String>,
    #[serde(default)]
    incompatible: Vec<String>,
}

impl Meta {
    fn locks(&self) -> Kind {
        if self.incompatible.iter().any(|feature| feature == FCNTL_LOCKS) { Kind::Fcntl } else { Kind::Flock }
    }
}

/// The records of one kind, and those among them that cannot be read: one of these must not hide the others.
#[derive(Debug)]
pub struct Listing<T> {
    /// The records.
    pub whole: Vec<T>,
    /// What cannot be understood, by the names of the folders.
    pub damaged: Vec<DamagedRecord>,
}

/// A record that cannot be read.
#[derive(Debug)]
pub struct DamagedRecord {
    /// The name of its folder: a container's id, a volume's name.
    pub id: String,
    /// What is wrong with it.
    pub error: StoreError,
}

impl<T> Listing<T> {
    /// All records, for those who must know every one: an error when one cannot be read.
    pub fn all(self) -> Result<Vec<T>, StoreError> {
        match self.damaged.into_iter().next() {
            None => Ok(self.whole),
            Some(damaged) => Err(damaged.error),
        }
    }
}

/// A store.
#[derive(Clone, Debug)]
pub struct Store {
    layout: Layout,
    access: Access,
    locks: Kind,
}

impl Store {
    /// Opens the store at `root`; with [`Access::Write`] it is created when missing.
    ///
    /// Errors: `Newer` for a format from the future, `NotAStore` for a directory with other things in it,
    /// `NotWritable`, `NoSpace`, `Damaged` (unreadable `meta.json`).
    pub fn open(root: &Path, access: Access) -> Result<Self, StoreError> {
        // Containers change their working directory when they become daemons.
        let root = std::path::absolute(root).reading("find", root)?;
        let mut store = Store { layout: Layout::new(root), access, locks: Kind::Flock };
        match store.load_meta()? {
            Some(meta) => {
                store.check_meta(&meta)?;
                store.locks = meta.locks();
                // Copies of stores may lack empty folders.
                if access == Access::Write && !store.layout.locks().is_dir() {
                    store.make_folders()?;
                }
            }
            None if access == Access::Read => store.check_foreign()?,
            None => store.create()?,
        }
        Ok(store)
    }

    /// The paths of the store.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The directory of the store.
    pub fn root(&self) -> &Path {
        self.layout.root()
    }

    /// How its files are locked.
    pub fn lock_kind(&self) -> Kind {
        self.locks
    }

    /// What the store was opened for.
    pub fn access(&self) -> Access {
        self.access
    }

    /// The store's own lock: shared to use, exclusive to collect.
    pub fn lock(&self, mode: Mode, wait: Wait) -> Result<Lock, StoreError> {
        let path = self.layout.locks().join("store");
        match self.access {
            Access::Write => Lock::take(&path, self.locks, mode, wait),
            Access::Read if mode == Mode::Shared => Lock::take_read_only(&path, self.locks),
            Access::Read => Err(StoreError::OpenedReadOnly { path: self.root().to_owned() }),
        }
    }

    /// The lock of a load, to be taken before it looks what the store has: nothing of that goes away until its end.
    pub fn lock_loads(&self) -> Result<Lock, StoreError> {
        self.check_writable()?;
        Lock::take(&self.layout.locks().join("loads"), self.locks, Mode::Shared, Wait::Block)
    }

    /// The exclusive lock of one record, `kind` being "container", "volume", ...; `id` must be a plain file name.
    pub fn lock_record(&self, kind: &str, id: &str, wait: Wait) -> Result<Lock, StoreError> {
        self.check_writable()?;
        Lock::take(&self.layout.locks().join(format!("{kind}-{id}")), self.locks, Mode::Exclusive, wait)
    }

    /// Replaces the record `dir/name` (a folder of this store) by `value` as JSON; see [`atomic::replace`].
    pub fn replace_record<T: Serialize>(&self, dir: &Path, name: &str, value: &T) -> Result<(), StoreError> {
        let mut bytes = serde_json::to_vec_pretty(value)
            .map_err(|e| StoreError::writing("write", &dir.join(name), std::io::Error::other(e)))?;
        bytes.push(b'\n');
        self.replace(dir, name, &bytes)
    }

    /// Replaces the file `dir/name` (a folder of this store) by `bytes`; see [`atomic::replace`].
    pub fn replace(&self, dir: &Path, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        self.check_writable()?;
        atomic::replace(&self.layout.staging(), self.locks, dir, name, bytes)
    }

    /// Reads a JSON record; `None` when there is no such file, `Damaged` when it cannot be understood.
    pub fn load_record<T: serde::de::DeserializeOwned>(&self, path: &Path) -> Result<Option<T>, StoreError> {
        let Some(bytes) = plain::read(path)? else { return Ok(None) };
        serde_json::from_slice(&bytes).map(Some).map_err(|e| StoreError::damaged(path, e.to_string()))
    }

    /// Reads the record of every folder in `dir`. A folder that vanishes meanwhile, or has no record, is passed over.
    fn list_records<T: serde::de::DeserializeOwned>(&self, dir: &Path, record: &str) -> Result<Listing<T>, StoreError> {
        let mut listing = Listing { whole: Vec::new(), damaged: Vec::new() };
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(listing),
            Err(e) => return Err(StoreError::reading("list", dir, e)),
        };
        for entry in entries {
            // Names that are not UTF-8 are none of ours.
            let Ok(id) = entry.reading("list", dir)?.file_name().into_string() else { continue };
            match self.load_record(&dir.join(&id).join(record)) {
                Ok(found) => listing.whole.extend(found),
                Err(error) => listing.damaged.push(DamagedRecord { id, error }),
            }
        }
        listing.damaged.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(listing)
    }

    /// A staging folder that disappears when dropped.
    pub fn stage(&self, hint: &str) -> Result<StagingDir, StoreError> {
        self.check_writable()?;
        StagingDir::new(&self.layout.staging(), self.locks, hint)
    }

    /// Removes what dead processes left: staged files and folders, and locks of records that are gone.
    pub fn clear_leftovers(&self) -> Result<(), StoreError> {
        self.check_writable()?;
        atomic::clear_abandoned(&self.layout.staging(), self.locks)?;
        let folder = atomic::Folder::open(&self.layout.locks())?;
        for name in folder.names()? {
            let record = match name.to_str().and_then(|name| name.split_once('-')) {
                Some(("container", id)) => self.layout.container(id),
                Some(("volume", name)) => self.layout.volume(name),
                _ => continue,
            };
            let is_gone = || fs::symlink_metadata(&record).is_err_and(|e| e.kind() == ErrorKind::NotFound);
            // Who makes a record holds its lock before the record is there.
            if is_gone()
                && let Ok(lock) = Lock::take(&folder.path(&name), self.locks, Mode::Exclusive, Wait::Try)
                && is_gone()
            {
                lock.remove()?;
            }
        }
        Ok(())
    }

    /// Removes a tree of this store: first renamed to `trash/`, so that it is gone at once and never half there.
    /// What a crash leaves in the trash is removed by the next call.
    pub fn discard(&self, path: &Path) -> Result<(), StoreError> {
        self.check_writable()?;
        let trash = self.layout.trash();
        let aside = trash.join(atomic::fresh_name("t"));
        let folder = atomic::Folder::open(&trash)?;
        fs::rename(path, &aside).writing("remove", path)?;
        if let Some(parent) = path.parent() {
            atomic::sync_dir(parent)?;
        }
        for name in folder.names()? {
            match folder.remove(&name) {
                Err(e) if trash.join(&name) == aside => return Err(StoreError::writing("remove", &aside, e)),
                Err(e) => log::debug!("cannot remove {}: {e}", trash.join(&name).display()),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// Removes what crashes have left in the trash.
    pub fn clear_trash(&self) -> Result<(), StoreError> {
        self.check_writable()?;
        let trash = self.layout.trash();
        let folder = atomic::Folder::open(&trash)?;
        for name in folder.names()? {
            folder.remove(&name).writing("remove", &trash.join(&name))?;
        }
        Ok(())
    }

    /// An error unless the store was opened for writing.
    pub fn check_writable(&self) -> Result<(), StoreError> {
        match self.access {
            Access::Write => Ok(()),
            Access::Read => Err(StoreError::OpenedReadOnly { path: self.root().to_owned() }),
        }
    }

    fn load_meta(&self) -> Result<Option<Meta>, StoreError> {
        self.load_record(&self.layout.meta())
    }

    fn check_meta(&self, meta: &Meta) -> Result<(), StoreError> {
        let newer = |what: String| Err(StoreError::Newer { path: self.root().to_owned(), what });
        if meta.version > FORMAT_VERSION {
            return newer(format!("format version {}", meta.version));
        }
        if let Some(feature) = meta.incompatible.iter().find(|f| !INCOMPATIBLE.contains(&f.as_str())) {
            return newer(format!("the feature \"{feature}\""));
        }
        let unknown = meta.read_only_compatible.iter().find(|f| !READ_ONLY_COMPATIBLE.contains(&f.as_str()));
        match (unknown, self.access) {
            (Some(feature), Access::Write) => newer(format!("the feature \"{feature}\" (for writing)")),
            _ => Ok(()),
        }
    }

    /// A directory with other things than a store's is not ours to use.
    fn check_foreign(&self) -> Result<(), StoreError> {
        let root = self.root();
        let entries = match fs::read_dir(root) {
            Ok(entries) => entries,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(StoreError::reading("list", root, e)),
        };
        for entry in entries {
            let name = entry.reading("list", root)?.file_name();
            let name = name.to_string_lossy();
            if !Layout::is_ours(&name) && name != "lost+found" {
                return Err(StoreError::NotAStore { path: root.to_owned(), found: name.into_owned() });
            }
        }
        Ok(())
    }

    /// Makes the folders and records; `meta.json` last, it says that all is there. Safe for concurrent first users.
    fn create(&mut self) -> Result<(), StoreError> {
        self.check_foreign()?;
        let root = self.root().to_owned();
        make_dir_all(&root)?;
        self.make_folders()?;
        self.locks = self.choose_locks()?;
        let _lock = Lock::take(&self.layout.locks().join(CREATE_LOCK), self.locks, Mode::Exclusive, Wait::Block)?;
        if let Some(meta) = self.load_meta()? {
            self.locks = meta.locks();
            return self.check_meta(&meta);
        }
        let staging = self.layout.staging();
        // A store that has only lost its `meta.json` keeps the names of its images.
        for (name, bytes) in [(layout::OCI_LAYOUT, OCI_LAYOUT_BYTES), (layout::OCI_INDEX, EMPTY_INDEX)] {
            if fs::symlink_metadata(root.join(name)).is_err_and(|e| e.kind() == ErrorKind::NotFound) {
                atomic::replace(&staging, self.locks, &root, name, bytes.as_bytes())?;
            }
        }
        self.write_meta()
    }

    /// The kind of lock for a new store; where there is none, what was made of the store goes again.
    fn choose_locks(&self) -> Result<Kind, StoreError> {
        let path = self.layout.locks().join(CREATE_LOCK);
        let chosen = lock::probe(&path, lock::Make::Yes);
        let Err(StoreError::NoLocks { kind, source, .. }) = chosen else { return chosen };
        let removed = fs::remove_file(&path);
        let folders = layout::FOLDERS.iter().rev().map(|(folder, _)| self.root().join(folder));
        let all = folders.chain([self.root().to_owned()]);
        // Whatever holds something was there before us.
        for error in all.map(fs::remove_dir).chain([removed]).filter_map(Result::err) {
            log::debug!("something of the store stays: {error}");
        }
        Err(StoreError::NoLocks { path: self.root().to_owned(), kind, source })
    }

    /// Writes `meta.json` as this mlfs makes it.
    fn write_meta(&self) -> Result<(), StoreError> {
        let meta = Meta {
            version: FORMAT_VERSION,
            compatible: Vec::new(),
            read_only_compatible: Vec::new(),
            incompatible: if self.locks == Kind::Fcntl { vec![FCNTL_LOCKS.to_owned()] } else { Vec::new() },
        };
        self.replace_record(self.root(), layout::META, &meta)
    }
}

impl Store {
    fn make_folders(&self) -> Result<(), StoreError> {
        layout::FOLDERS.iter().try_for_each(|(folder, mode)| make_dir(&self.root().join(folder), *mode))
    }
}

/// Makes a directory for the owner alone where none is, and its parents as `mkdir -p` does.
fn make_dir_all(path: &Path) -> Result<(), StoreError> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        let existing: Option<PathBuf> = parent.ancestors().find(|p| p.exists()).map(Path::to_owned);
        fs::create_dir_all(parent).writing("create", existing.as_deref().unwrap_or(parent))?;
    }
    make_dir(path, 0o700)
}

fn make_dir(path: &Path, mode: u32) -> Result<(), StoreError> {
    match fs::DirBuilder::new().mode(mode).create(path) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(()),
        other => other.writing("create", path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(error: &dyn std::error::Error) -> String {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(s) = source {
            text += &format!(": {s}");
            source = s.source();
        }
        text
    }

    #[test]
    fn a_store_that_has_lost_its_meta_keeps_the_names_of_its_images() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Access::Write).unwrap();
        let names = "{\"schemaVersion\":2,\"manifests\":[],\"annotations\":{\"mine\":\"x\"}}";
        std::fs::write(store.layout().oci_index(), names).unwrap();
        std::fs::remove_file(store.layout().meta()).unwrap();
        Store::open(dir.path(), Access::Write).unwrap();
        assert!(store.layout().meta().is_file());
        assert_eq!(std::fs::read_to_string(store.layout().oci_index()).unwrap(), names);
    }

    #[test]
    fn a_store_is_created_on_first_use_and_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("a/b");
        assert!(Store::open(&root, Access::Read).is_ok() && !root.exists());
        Store::open(&root, Access::Write).unwrap();
        let store = Store::open(&root, Access::Read).unwrap();
        assert!(store.layout().blobs().is_dir() && store.layout().oci_layout().is_file());
        assert!(matches!(store.lock_record("c", "x", Wait::Try), Err(StoreError::OpenedReadOnly { .. })));
        store.lock(Mode::Shared, Wait::Block).unwrap();
    }

    #[test]
    fn a_newer_format_is_refused_in_one_sentence() {
        let dir = tempfile::tempdir().unwrap();
        Store::open(dir.path(), Access::Write).unwrap();
        for (meta, reads) in [
            ("{\"version\":2}", false),
            ("{\"version\":1,\"incompatible\":[\"ranges\"]}", false),
            ("{\"version\":1,\"readOnlyCompatible\":[\"x\"]}", true),
            ("{\"version\":1,\"compatible\":[\"x\"],\"other\":3}", true),
        ] {
            fs::write(dir.path().join("meta.json"), meta).unwrap();
            assert_eq!(Store::open(dir.path(), Access::Read).is_ok(), reads, "{meta}");
            let error = Store::open(dir.path(), Access::Write).err().map(|e| e.to_string());
            if meta.contains("version\":2") {
                assert_eq!(
                    error.unwrap(),
                    format!(
                        "the store {} has format version 2, which this mlfs does not know; use a newer mlfs",
                        dir.path().display()
                    )
                );
            }
        }
        fs::write(dir.path().join("meta.json"), "{").unwrap();
        assert!(matches!(Store::open(dir.path(), Access::Read), Err(StoreError::Damaged { .. })));
    }

    #[test]
    fn other_directories_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("passwd"), "x").unwrap();
        assert!(matches!(Store::open(dir.path(), Access::Write), Err(StoreError::NotAStore { .. })));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let file = dir.path().join("passwd");
        assert!(Store::open(&file, Access::Write).is_err());
        assert!(chain(&Store::open(Path::new("/proc/x"), Access::Write).unwrap_err()).contains("/proc"));
    }

    #[test]
    fn locks_of_what_is_gone_are_cleared() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Access::Write).unwrap();
        fs::create_dir(store.layout().volume("there")).unwrap();
        for (kind, id) in [("container", "gone"), ("volume", "gone"), ("volume", "there"), ("names", "containers")] {
            drop(store.lock_record(kind, id, Wait::Try).unwrap());
        }
        let _held = store.lock_record("container", "held", Wait::Try).unwrap();
        store.clear_leftovers().unwrap();
        let names =
            fs::read_dir(store.layout().locks()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| !name.starts_with("store")).collect();
        names.sort();
        assert_eq!(names, ["container-held", "names-containers", "volume-there"]);
    }

    #[test]
    fn a_store_that_is_locked_by_fcntl_keeps_to_it() {
        let dir = tempfile::tempdir().unwrap();
        drop(Store::open(dir.path(), Access::Write).unwrap());
        fs::write(dir.path().join("meta.json"), "{\"version\":1,\"incompatible\":[\"fcntl-locks\"]}").unwrap();
        let (one, two) =
            (Store::open(dir.path(), Access::Write).unwrap(), Store::open(dir.path(), Access::Write).unwrap());
        assert_eq!(one.lock_kind(), Kind::Fcntl);
        let held = one.lock_record("container", "x", Wait::Try).unwrap();
        assert!(matches!(two.lock_record("container", "x", Wait::Try), Err(StoreError::Locked { .. })));
        rustix::fs::flock(held.file().unwrap(), rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
        drop(held);
        two.lock_record("container", "x", Wait::Try).unwrap();
        let staged = one.stage("load").unwrap();
        two.clear_leftovers().unwrap();
        two.stage("other").unwrap();
        assert!(staged.path().is_dir(), "another process removes what is being staged");
        // Made anew, the record says the same: it is asked of the filesystem, which has flock here.
        let checked = Store::open_to_check(dir.path(), Access::Write).unwrap().0;
        assert_eq!(checked.lock_kind(), Kind::Fcntl);
    }

    #[test]
    fn discarding_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Access::Write).unwrap();
        let container = store.layout().container("x");
        fs::create_dir_all(container.join("upper/deep")).unwrap();
        store.discard(&container).unwrap();
        assert!(!container.exists());
        assert_eq!(fs::read_dir(store.layout().trash()).unwrap().count(), 0);
    }

    #[test]
    fn concurrent_first_users_agree() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("s");
        std::thread::scope(|s| {
            for _ in 0..8 {
                s.spawn(|| Store::open(&root, Access::Write).unwrap());
            }
        });
        assert!(Store::open(&root, Access::Write).is_ok());
    }
}
