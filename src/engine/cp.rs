// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cp`: between a container and the host, by the rules of `docker cp`.
//!
//! A source that ends in `/.` means what the directory holds, not itself. A destination that is a directory takes the
//! source under its name; one that is not there must have a parent, and the source becomes it. A symlink at the end of a
//! source is copied as it is (followed with `-L`, or before a slash), at the end of a destination it is followed. Links
//! of the container are followed inside the container.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::fs::{Follow, Fs};
use crate::model::ids::NodeId;
use crate::model::{FsError, Kind, Name};
use crate::store::Store;

use super::assemble::{self, OpenAs, open_path};
use super::copy::{Copy, Owners};
use super::inside::{self, path_of};
use super::{EngineError, OrFail, Result, host, pack, state, unpack};

/// One end of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// A path in a container.
    Container {
        /// The container.
        name: String,
        /// The path, relative to its root.
        path: Vec<u8>,
    },
    /// A path of the host.
    Host(PathBuf),
    /// A tar on standard input or output.
    Stream,
}

/// How to copy.
#[derive(Clone, Copy, Debug, Default)]
pub struct CopyOptions {
    /// Keep owners.
    pub keeps_owners: bool,
    /// Follow a symlink at the end of the source.
    pub follows: bool,
}

/// Parses `NAME:PATH`, `PATH` or `-`; a path of the host that holds a colon begins with `/` or `.`.
pub fn parse_end(text: &std::ffi::OsStr) -> Result<End> {
    let bytes = text.as_bytes();
    if bytes == b"-" {
        return Ok(End::Stream);
    }
    let colon = bytes.iter().position(|b| *b == b':');
    if bytes.is_empty() {
        return Err(EngineError::usage("the path to copy is empty"));
    }
    let (Some(colon), false) = (colon, matches!(bytes.first(), Some(b'/' | b'.'))) else {
        return Ok(End::Host(PathBuf::from(text)));
    };
    let (name, path) = (bytes.get(..colon).unwrap_or_default(), bytes.get(colon + 1..).unwrap_or_default());
    let name = std::str::from_utf8(name).map_err(|_| EngineError::usage("the container's name is not UTF-8"))?;
    if name.is_empty() || path.is_empty() {
        return Err(EngineError::usage(format!("\"{}\" is no NAME:PATH", text.to_string_lossy())));
    }
    let path: Vec<u8> = path.iter().copied().skip_while(|b| *b == b'/').collect();
    Ok(End::Container { name: name.to_owned(), path: [b"/", path.as_slice()].concat() })
}

/// One end is in a container, and only one.
pub fn check_ends(from: &End, to: &End) -> Result<()> {
    match (from, to) {
        (End::Container { .. }, End::Container { .. }) => {
            Err(EngineError::usage("copying between containers is not supported: copy to the host first"))
        }
        (End::Host(_) | End::Stream, End::Host(_) | End::Stream) => {
            Err(EngineError::usage("one end must be in a container: write it as NAME:PATH"))
        }
        _ => Ok(()),
    }
}

/// Copies out of a container, or into one.
pub fn copy(
    store: &Store,
    from: &End,
    to: &End,
    options: CopyOptions,
    input: impl Read + Send,
    output: &mut dyn Write,
) -> Result<()> {
    match (from, to) {
        (End::Container { name, path }, End::Host(target)) => {
            let inside = inside::open_readable(store, name, path)?;
            let source = Source::inside(inside.fs(), name, path, options)?;
            let (tree, spot) = Spot::on_host(target)?;
            let (uid, gid) = host::caller();
            let owners = if options.keeps_owners { Owners::AsPossible } else { Owners::Given { uid, gid } };
            place(inside.fs(), &source, &tree, &spot, owners)
        }
        (End::Container { name, path }, End::Stream) => {
            let inside = inside::open_readable(store, name, path)?;
            let source = Source::inside(inside.fs(), name, path, options)?;
            let name = if source.is_content { b"." } else { source.name.as_slice() };
            super::export::flushed(pack::pack_entry(inside.fs(), source.id, name, output)?)
        }
        (End::Host(path), End::Container { name, path: target }) => {
            let (tree, source) = Source::on_host(path, options)?;
            let inside = inside::open_writable(store, name, target)?;
            let spot = Spot::inside(&inside.fs, name, target)?;
            place(&tree, &source, &inside.fs, &spot, owners_inside(store, name, options)?)
                .map_err(|e| explain(e, store, name))
        }
        (End::Stream, End::Container { name, path }) => {
            let inside = inside::open_writable(store, name, path)?;
            let base = inside.fs.canonical(path).or_fail(|| format!("cannot look at {name}"))?;
            match inside.fs.resolve(&path_of(&base), Follow::No) {
                Ok(found) if found.attr.kind == Kind::Dir => {}
                Ok(_) | Err(FsError::NotFound | FsError::NotDir) => {
                    return Err(EngineError::failed(format!("{} is no directory of {name}", shown(path))));
                }
                Err(error) => return Err(EngineError::failed(format!("cannot look at {}", shown(path))).because(error)),
            }
            unpack::unpack(&inside.fs, &base, input, Owners::AsPossible).map_err(|e| explain(e, store, name))
        }
        (End::Container { .. }, End::Container { .. }) | (End::Host(_) | End::Stream, End::Host(_) | End::Stream) => {
            check_ends(from, to)
        }
    }
}

/// Copies into a container belong to its root, as the mount shows it.
fn owners_inside(store: &Store, name: &str, options: CopyOptions) -> Result<Owners> {
    let record = state::find(store, name)?;
    Ok(match options.keeps_owners {
        true => Owners::AsPossible,
        false => Owners::Given { uid: record.uids.to_outer(0), gid: record.gids.to_outer(0) },
    })
}

/// An ordinary user may not write everywhere in his own mount, but he may in the container when it is not mounted.
fn explain(error: EngineError, store: &Store, name: &str) -> EngineError {
    let is_mounted =
        state::find(store, name).and_then(|r| state::state(store, &r)).is_ok_and(|s| s == state::State::Mounted);
    if is_mounted && host::caller().0 != 0 && error.sentence().contains("permi") {
        return error.advise(format!("unmount {name} first, or mount it with `--owner me`"));
    }
    error
}

/// What is copied.
struct Source {
    id: NodeId,
    kind: Kind,
    /// Under this name it goes into a directory.
    name: Vec<u8>,
    /// Not itself, but what it holds.
    is_content: bool,
}

/// What the end of a path says: `x/` is a directory, `x/.` what it holds.
fn ending(path: &[u8]) -> (bool, bool) {
    let is_content = path == b"." || path.ends_with(b"/.");
    (is_content || path.ends_with(b"/"), is_content)
}

impl Source {
    fn new(id: NodeId, kind: Kind, name: Vec<u8>, path: &[u8], place: &str) -> Result<Self> {
        let (is_dir, is_content) = ending(path);
        if is_dir && kind != Kind::Dir {
            return Err(EngineError::failed(format!("{place} is no directory")));
        }
        Ok(Source { id, kind, is_content: is_content || name.is_empty(), name })
    }

    fn inside(fs: &Fs, container: &str, path: &[u8], options: CopyOptions) -> Result<Self> {
        let what = || format!("cannot look at {container}:{}", shown(path));
        let follows = options.follows || ending(path).0;
        let mut written: Vec<&[u8]> = path.split(|b| *b == b'/').filter(|n| !n.is_empty() && *n != b".").collect();
        let last = written.pop().unwrap_or_default().to_vec();
        let is_climbing = last == b"..";
        let names = if follows || is_climbing || last.is_empty() {
            fs.canonical(path).or_fail(what)?
        } else {
            let mut names = fs.canonical(&written.join(&b'/')).or_fail(what)?;
            names.push(last.clone());
            names
        };
        let found = match fs.resolve(&path_of(&names), Follow::No) {
            Err(FsError::NotFound | FsError::NotDir) => {
                return Err(EngineError::failed(format!("{container} has no {}", shown(path))));
            }
            other => other.or_fail(what)?,
        };
        let name = if is_climbing { names.last().cloned().unwrap_or_default() } else { last };
        Source::new(found.id, found.attr.kind, name, path, &format!("{container}:{}", shown(path)))
    }

    fn on_host(path: &Path, options: CopyOptions) -> Result<(Fs, Self)> {
        let what = || format!("cannot copy {}", path.display());
        let bytes = path.as_os_str().as_bytes();
        fs::symlink_metadata(path).or_fail(what)?;
        let follows = options.follows || ending(bytes).0 || path.file_name().is_none();
        let real = if follows { fs::canonicalize(path) } else { std::path::absolute(path) }.or_fail(what)?;
        let name = path.file_name().or(real.file_name()).map(|name| name.as_bytes().to_vec()).unwrap_or_default();
        let (tree, id, kind) = match (real.parent(), real.file_name()) {
            (Some(parent), Some(file)) => {
                let tree = open_dir(parent)?;
                let file = Name::new(file.as_bytes()).or_fail(what)?;
                let found = tree.lookup(NodeId::ROOT, file).or_fail(what)?;
                (tree, found.id, found.attr.kind)
            }
            _ => (open_dir(&real)?, NodeId::ROOT, Kind::Dir),
        };
        let source = Source::new(id, kind, name, bytes, &path.display().to_string())?;
        Ok((tree, source))
    }
}

fn open_dir(path: &Path) -> Result<Fs> {
    let what = || format!("cannot open {}", path.display());
    let fd = open_path(path, OpenAs::Path).or_fail(what)?;
    Fs::new(assemble::host_tree(fd, path.display().to_string())).or_fail(what)
}

/// Where something is put.
struct Spot {
    /// A directory.
    dir: NodeId,
    /// A name in it; without one it is the directory itself.
    name: Option<Vec<u8>>,
    /// Does something stand there (no directory)?
    is_taken: bool,
    /// The path ended in a slash: it must be a directory.
    is_dir: bool,
    shown: String,
}

impl Spot {
    fn inside(fs: &Fs, container: &str, path: &[u8]) -> Result<Self> {
        let shown = format!("{container}:{}", shown(path));
        let what = || format!("cannot look at {shown}");
        let mut names = fs.canonical(path).or_fail(what)?;
        let is_dir = ending(path).0;
        let is_taken = match fs.resolve(&path_of(&names), Follow::No) {
            Ok(found) if found.attr.kind == Kind::Dir => {
                return Ok(Spot { dir: found.id, name: None, is_taken: true, is_dir, shown });
            }
            Ok(_) => true,
            Err(FsError::NotFound) => false,
            Err(error) => return Err(EngineError::failed(what()).because(error)),
        };
        let name = names.pop();
        match fs.resolve(&path_of(&names), Follow::No) {
            Ok(parent) if parent.attr.kind == Kind::Dir => Ok(Spot { dir: parent.id, name, is_taken, is_dir, shown }),
            Ok(_) | Err(FsError::NotFound | FsError::NotDir) => {
                Err(EngineError::failed(format!("the directory for {shown} does not exist")))
            }
            Err(error) => Err(EngineError::failed(what()).because(error)),
        }
    }

    fn on_host(path: &Path) -> Result<(Fs, Self)> {
        let shown = path.display().to_string();
        let is_dir = ending(path.as_os_str().as_bytes()).0;
        let real = host_place(path)?;
        let spot = |name: Option<Vec<u8>>, is_taken| Spot { dir: NodeId::ROOT, name, is_taken, is_dir, shown };
        if real.is_dir() {
            return Ok((open_dir(&real)?, spot(None, true)));
        }
        let is_taken = fs::symlink_metadata(&real).is_ok();
        match (real.parent(), real.file_name()) {
            (Some(parent), Some(name)) if parent.is_dir() => {
                Ok((open_dir(parent)?, spot(Some(name.as_bytes().to_vec()), is_taken)))
            }
            _ => Err(EngineError::failed(format!("the directory for {} does not exist", path.display()))),
        }
    }
}

/// The place that a path of the host leads to, which need not be there: links at its end are followed.
fn host_place(path: &Path) -> Result<PathBuf> {
    let mut place = std::path::absolute(path).or_fail(|| format!("cannot find {}", path.display()))?;
    for _ in 0..40 {
        match fs::read_link(&place) {
            Ok(target) => place = place.parent().unwrap_or(Path::new("/")).join(target),
            Err(_) => return Ok(place),
        }
    }
    Err(EngineError::failed(format!("{} is a link in a circle", path.display())))
}

fn place(from: &Fs, source: &Source, to: &Fs, spot: &Spot, owners: Owners) -> Result<()> {
    let mut copy = Copy::new(from, to, owners);
    let is_dir = source.kind == Kind::Dir;
    match (&spot.name, is_dir) {
        (None, true) if source.is_content => copy.put_content(source.id, spot.dir),
        (None, _) => copy.put(source.id, spot.dir, Name::new(&source.name).or_fail(|| "its name is none")?),
        (Some(_), true) if spot.is_taken => {
            Err(EngineError::failed(format!("cannot copy a directory over {}, which is none", spot.shown)))
        }
        (Some(_), false) if spot.is_dir => {
            Err(EngineError::failed(format!("the directory {} does not exist", spot.shown)))
        }
        (Some(name), _) => copy.put(source.id, spot.dir, Name::new(name).or_fail(|| "its name is none")?),
    }
}

fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Class;

    #[test]
    fn ends_are_told_apart() {
        let end = |text: &str| parse_end(std::ffi::OsStr::new(text));
        let inside = |name: &str, path: &str| End::Container { name: name.into(), path: path.into() };
        assert_eq!(end("box:etc/x").unwrap(), inside("box", "/etc/x"));
        assert_eq!(end("box:/etc/a:b").unwrap(), inside("box", "/etc/a:b"));
        for text in ["./a:b", "/a:b", "../a:b", "plain"] {
            assert_eq!(end(text).unwrap(), End::Host(text.into()), "{text}");
        }
        assert_eq!(end("-").unwrap(), End::Stream);
        for bad in ["", ":x", "box:"] {
            assert_eq!(end(bad).unwrap_err().class(), Class::Usage, "{bad}");
        }
    }

    #[test]
    fn the_end_of_a_path_says_what_is_meant() {
        for (path, is) in [("a", (false, false)), ("a/", (true, false)), ("a/.", (true, true)), (".", (true, true))] {
            assert_eq!(ending(path.as_bytes()), is, "{path}");
        }
        assert_eq!(ending(b"a/.."), (false, false));
    }
}
