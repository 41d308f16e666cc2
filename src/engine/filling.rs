// SPDX-License-Identifier: MIT OR Apache-2.0
//! The first use of an empty volume fills it with what the image holds at its target; a crash is never taken for done.
//!
//! The copy is made aside and synced. With the mark `incomplete` in the volume's record it then goes, whole, beside the
//! content (in a directory of the host: into it, under a name of ours), and its entries are moved in one by one: the
//! volume's directory stays the same one, since others may have it open. The mark goes last. Where it is found, a copy
//! that is there is moved in to its end; without one nothing has been moved, and the volume is filled anew if it is
//! still empty. What somebody has put in meanwhile stays.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::fs::{Follow, Fs};
use crate::layer::Layer;
use crate::model::ids::NodeId;
use crate::model::{FsError, Kind};
use crate::store::atomic::remove_tree;
use crate::store::volume::VolumeRecord;
use crate::store::{Store, Wait, atomic};
use crate::sys::proc;

use super::copy::{Owners, finish};
use super::populate::{copy_into, open_image, open_plain, sync};
use super::{EngineError, OrFail, Result};

/// The whole copy in a directory of the host, while its entries are moved out.
const HOST_COPY: &str = ".mlfs-fill";
/// The copy there while it is made.
const HOST_PARTIAL: &str = ".mlfs-fill.partial";

/// Fills the volume from what `layers` (bottom first) hold at `target`, if it is empty and they hold a directory there.
pub fn fill(store: &Store, name: &str, layers: &[Arc<dyn Layer>], target: &str) -> Result<()> {
    let what = || format!("cannot fill the volume {name} from the image's {target}");
    let _lock = store.lock_volume(name, Wait::Block).or_fail(what)?;
    let mut filling = Filling::open(store, name).or_fail(what)?;
    filling.fill(layers, target).map_err(|e| EngineError::failed(what()).because(e))
}

/// Ends what a crash has left half done, for a use that would not fill the volume.
pub fn complete(store: &Store, name: &str) -> Result<()> {
    let what = || format!("cannot fill the volume {name} to its end");
    let _lock = store.lock_volume(name, Wait::Block).or_fail(what)?;
    let mut filling = Filling::open(store, name).or_fail(what)?;
    filling.recover().map(drop).map_err(|e| EngineError::failed(what()).because(e))
}

/// Removes what is left in a directory of the host, because the volume goes. Call it under the volume's lock.
pub fn forget(store: &Store, volume: &VolumeRecord) -> Result<()> {
    let Some(device) = volume.device().filter(|_| volume.incomplete) else { return Ok(()) };
    for name in [HOST_PARTIAL, HOST_COPY] {
        let path = Path::new(device).join(name);
        remove_tree(&path)
            .or_fail(|| format!("cannot remove {} of the store {}", path.display(), store.root().display()))?;
    }
    Ok(())
}

/// The copy gets exactly the modes of the image.
fn with_exact_modes<T>(work: impl FnOnce() -> T) -> T {
    let umask = proc::set_umask(0);
    let result = work();
    proc::set_umask(umask);
    result
}

/// A volume whose lock is held.
struct Filling<'s> {
    store: &'s Store,
    volume: VolumeRecord,
    data: PathBuf,
    /// Where the whole copy is while its entries are moved.
    copy: PathBuf,
}

impl<'s> Filling<'s> {
    fn open(store: &'s Store, name: &str) -> std::result::Result<Self, crate::store::StoreError> {
        let volume = store.find_volume(name)?;
        let data = store.volume_data(&volume);
        let copy = match volume.device() {
            Some(_) => data.join(HOST_COPY),
            None => store.volume_copy(&volume),
        };
        Ok(Filling { store, volume, data, copy })
    }

    fn fill(&mut self, layers: &[Arc<dyn Layer>], target: &str) -> Result<()> {
        if self.recover()? {
            return Ok(());
        }
        let is_empty = fs::read_dir(&self.data).or_fail(|| "cannot list the volume")?.next().is_none();
        if !is_empty {
            return self.mark(false);
        }
        let image = open_image(layers.to_vec())?;
        let source = match image.resolve(target.as_bytes(), Follow::Yes) {
            Ok(entry) if entry.attr.kind == Kind::Dir => entry.id,
            // Nothing there, or something that the mount will complain about.
            Ok(_) | Err(FsError::NotFound | FsError::NotDir) => return Ok(()),
            Err(error) => return Err(EngineError::failed("cannot look into the image").because(error)),
        };
        self.stage(&image, source)?;
        self.move_in()
    }

    /// Ends the filling that a crash has interrupted; false when nothing of it is left (or there was none).
    fn recover(&mut self) -> Result<bool> {
        if !self.volume.incomplete {
            return Ok(false);
        }
        log::info!("the volume {} was not filled to its end", self.volume.name);
        if self.is_copied() {
            self.move_in()?;
            return Ok(true);
        }
        if self.volume.device().is_some() {
            let partial = self.data.join(HOST_PARTIAL);
            remove_tree(&partial).or_fail(|| format!("cannot remove {}", partial.display()))?;
        }
        Ok(false)
    }

    /// Is the whole copy there? In a directory of the host somebody may have put something else under its name.
    fn is_copied(&self) -> bool {
        fs::symlink_metadata(&self.copy).is_ok_and(|meta| meta.is_dir())
    }

    /// Makes the copy; when it is where it is found again, the record has the mark.
    fn stage(&mut self, image: &Fs, source: NodeId) -> Result<()> {
        if self.volume.device().is_some() {
            return self.stage_in_host(image, source);
        }
        let staged = self.store.stage("fill").or_fail(|| "cannot stage")?;
        let aside = staged.path().join("data");
        self.copy_to(image, source, &aside)?;
        self.mark(true)?;
        self.put(&aside)
    }

    /// A directory of the host may lie on another filesystem than the store.
    fn stage_in_host(&mut self, image: &Fs, source: NodeId) -> Result<()> {
        self.mark(true)?;
        let partial = self.data.join(HOST_PARTIAL);
        let result = self.copy_to(image, source, &partial).and_then(|()| self.put(&partial));
        if result.is_err() && !self.is_copied() {
            match remove_tree(&partial) {
                Ok(()) => self.mark(false)?,
                Err(e) => log::warn!("cannot remove {}: {e}", partial.display()),
            }
        }
        result
    }

    fn copy_to(&self, image: &Fs, source: NodeId, aside: &Path) -> Result<()> {
        fs::DirBuilder::new().mode(0o700).create(aside).or_fail(|| format!("cannot make {}", aside.display()))?;
        with_exact_modes(|| copy_into(image, source, aside, &self.volume))?;
        sync(aside)
    }

    fn put(&self, aside: &Path) -> Result<()> {
        fs::rename(aside, &self.copy).or_fail(|| format!("cannot make {}", self.copy.display()))?;
        self.sync_copys_name()
    }

    fn sync_copys_name(&self) -> Result<()> {
        self.copy.parent().map_or(Ok(()), atomic::sync_dir).or_fail(|| "cannot sync")
    }

    /// Moves the entries of the whole copy into the volume.
    fn move_in(&mut self) -> Result<()> {
        let list = || format!("cannot list {}", self.copy.display());
        let copy = open_plain(&self.copy, &self.volume)?;
        // As they are before the names go.
        let attr = copy.getattr(NodeId::ROOT).or_fail(list)?.0;
        let entries: io::Result<Vec<_>> = fs::read_dir(&self.copy).or_fail(list)?.collect();
        for entry in entries.or_fail(list)? {
            let to = self.data.join(entry.file_name());
            move_entry(&entry.path(), &to).or_fail(|| format!("cannot put {} in place", to.display()))?;
        }
        let data = open_plain(&self.data, &self.volume)?;
        finish(&copy, NodeId::ROOT, &data, NodeId::ROOT, &attr, Owners::of(&self.volume))
            .or_fail(|| "cannot set the volume's owner")?;
        drop((copy, data));
        sync(&self.data)?;
        remove_tree(&self.copy).or_fail(|| format!("cannot remove {}", self.copy.display()))?;
        self.sync_copys_name()?;
        self.mark(false)
    }

    fn mark(&mut self, incomplete: bool) -> Result<()> {
        if self.volume.incomplete == incomplete {
            return Ok(());
        }
        self.volume.incomplete = incomplete;
        self.store.replace_volume(&self.volume).or_fail(|| "cannot write the volume's record")
    }
}

/// Moves one entry; what somebody else has made under its name stays.
fn move_entry(from: &Path, to: &Path) -> io::Result<()> {
    let rename = || match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(Errno::EXIST | Errno::NOTEMPTY) => Ok(()),
        // Not every filesystem knows the flag.
        Err(Errno::INVAL | Errno::NOSYS) if fs::symlink_metadata(to).is_ok() => Ok(()),
        Err(Errno::INVAL | Errno::NOSYS) => fs::rename(from, to),
        other => other.map_err(io::Error::from),
    };
    match rename() {
        Err(e) if e.kind() == ErrorKind::PermissionDenied && fs::symlink_metadata(from)?.is_dir() => {
            // An ordinary user moves directories only when he may write them.
            let mode = fs::symlink_metadata(from)?.permissions().mode();
            fs::set_permissions(from, fs::Permissions::from_mode(mode | 0o200))?;
            let moved = rename();
            let at = if fs::symlink_metadata(from).is_ok() { from } else { to };
            fs::set_permissions(at, fs::Permissions::from_mode(mode))?;
            moved
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::assemble::{OpenAs, open_path};
    use crate::engine::volumes::default_form;
    use crate::layer::dir::{DirLayer, HostForm};
    use crate::store::Access;
    use crate::store::container::OwnershipForm;
    use std::os::unix::fs::{MetadataExt, symlink};

    fn layer(dir: &Path) -> Arc<dyn Layer> {
        let fd = open_path(dir, OpenAs::Directory).unwrap();
        Arc::new(DirLayer::open(fd, "l".into(), HostForm::default()).unwrap())
    }

    struct World {
        dir: tempfile::TempDir,
        store: Store,
        layers: Vec<Arc<dyn Layer>>,
    }

    /// An image with `data/{a,ro,s,sub/b}`; `a` and `b` are one file.
    fn world() -> World {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("image/data");
        fs::create_dir_all(source.join("sub")).unwrap();
        fs::write(source.join("a"), "one").unwrap();
        fs::hard_link(source.join("a"), source.join("sub/b")).unwrap();
        symlink("a", source.join("s")).unwrap();
        // No ordinary user moves it just so.
        fs::create_dir(source.join("ro")).unwrap();
        fs::set_permissions(source.join("ro"), fs::Permissions::from_mode(0o555)).unwrap();
        fs::set_permissions(source.join("a"), fs::Permissions::from_mode(0o640)).unwrap();
        fs::set_permissions(&source, fs::Permissions::from_mode(0o1777)).unwrap();
        let time = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1000));
        fs::File::open(source.join("sub")).unwrap().set_times(time).unwrap();
        let store = Store::open(&dir.path().join("store"), Access::Write).unwrap();
        let layers = vec![layer(&dir.path().join("image"))];
        World { dir, store, layers }
    }

    impl World {
        /// A new volume, in the store or of a directory of the host, and where its content is.
        fn volume(&self, name: &str, is_host: bool) -> PathBuf {
            let mut record = VolumeRecord::new(name, default_form());
            if is_host {
                record.ownership = OwnershipForm::Native;
                let device = self.dir.path().join(name);
                fs::create_dir(&device).unwrap();
                record.options.insert("device".into(), device.to_str().unwrap().into());
            }
            self.store.create_volume(&record).unwrap();
            self.store.volume_data(&record)
        }

        fn fill(&self, name: &str) {
            fill(&self.store, name, &self.layers, "/data").unwrap();
        }

        /// Makes the copy, as a filling that is killed then.
        fn stage(&self, name: &str) -> PathBuf {
            let image = open_image(self.layers.clone()).unwrap();
            let source = image.resolve(b"/data", Follow::Yes).unwrap().id;
            let mut filling = Filling::open(&self.store, name).unwrap();
            filling.stage(&image, source).unwrap();
            filling.copy
        }

        fn check_full(&self, name: &str) {
            let volume = self.store.find_volume(name).unwrap();
            assert!(!volume.incomplete, "{name}");
            let data = self.store.volume_data(&volume);
            let mut names: Vec<_> = fs::read_dir(&data).unwrap().map(|e| e.unwrap().file_name()).collect();
            names.sort();
            assert_eq!(names, ["a", "ro", "s", "sub"], "{name}");
            let meta = |entry: &str| fs::symlink_metadata(data.join(entry)).unwrap();
            assert_eq!(fs::read(data.join("a")).unwrap(), b"one");
            assert_eq!(meta("a").ino(), meta("sub/b").ino(), "{name}: one file stays one");
            assert_eq!(meta("a").permissions().mode() & 0o7777, 0o640);
            let is_native = volume.device().is_some() || volume.ownership == OwnershipForm::Native;
            assert_eq!(meta("ro").permissions().mode() & 0o777, if is_native { 0o555 } else { 0o755 });
            assert_eq!(meta("").permissions().mode() & 0o777, 0o777);
            assert_eq!(meta("sub").mtime(), 1000);
            assert_eq!(fs::read_link(data.join("s")).unwrap(), Path::new("a"));
            assert!(!self.store.volume_copy(&volume).exists());
        }
    }

    #[test]
    fn an_empty_volume_takes_the_images_content_once() {
        let w = world();
        for (name, is_host) in [("v", false), ("h", true)] {
            let data = w.volume(name, is_host);
            w.fill(name);
            w.check_full(name);
            fs::remove_file(data.join("a")).unwrap();
            w.fill(name);
            assert!(!data.join("a").exists());
        }
        let other = w.volume("w", false);
        fill(&w.store, "w", &w.layers, "/absent").unwrap();
        assert!(fs::read_dir(other).unwrap().next().is_none());
    }

    #[test]
    fn the_directory_of_a_filled_volume_stays_the_one_that_others_have_open() {
        let w = world();
        let data = w.volume("v", false);
        let before = fs::metadata(&data).unwrap().ino();
        w.fill("v");
        w.check_full("v");
        assert_eq!(fs::metadata(&data).unwrap().ino(), before);
    }

    #[test]
    fn a_volume_that_was_filled_half_is_filled_to_its_end() {
        let w = world();
        for (number, moved) in [&[][..], &["a"], &["a", "sub"], &["a", "s", "sub"]].into_iter().enumerate() {
            for is_host in [false, true] {
                for is_filling in [false, true] {
                    let name = format!("v{number}{is_host}{is_filling}");
                    let data = w.volume(&name, is_host);
                    let copy = w.stage(&name);
                    for entry in moved {
                        fs::rename(copy.join(entry), data.join(entry)).unwrap();
                    }
                    if is_filling {
                        w.fill(&name);
                    } else {
                        complete(&w.store, &name).unwrap();
                    }
                    w.check_full(&name);
                }
            }
        }
    }

    #[test]
    fn a_volume_whose_copy_was_not_whole_is_filled_anew() {
        let w = world();
        for (name, is_host) in [("v", false), ("h", true)] {
            let data = w.volume(name, is_host);
            let mut filling = Filling::open(&w.store, name).unwrap();
            filling.mark(true).unwrap();
            if is_host {
                fs::create_dir_all(data.join(HOST_PARTIAL).join("sub")).unwrap();
            }
            w.fill(name);
            w.check_full(name);
        }
    }

    #[test]
    fn what_users_put_into_a_half_filled_volume_stays() {
        let w = world();
        let data = w.volume("v", false);
        w.stage("v");
        fs::write(data.join("a"), "mine").unwrap();
        w.fill("v");
        assert_eq!(fs::read(data.join("a")).unwrap(), b"mine");
        assert!(data.join("sub/b").exists() && !w.store.find_volume("v").unwrap().incomplete);

        let data = w.volume("w", false);
        Filling::open(&w.store, "w").unwrap().mark(true).unwrap();
        fs::write(data.join("x"), "mine").unwrap();
        w.fill("w");
        assert!(data.join("x").exists() && !data.join("a").exists());
        assert!(!w.store.find_volume("w").unwrap().incomplete);
    }

    #[test]
    fn a_removed_volume_leaves_nothing_of_its_filling_in_the_host() {
        let w = world();
        let data = w.volume("h", true);
        w.stage("h");
        crate::engine::volumes::remove(&w.store, "h").unwrap();
        assert!(fs::read_dir(data).unwrap().next().is_none());
    }
}
