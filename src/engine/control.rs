// SPDX-License-Identifier: MIT OR Apache-2.0
//! The control socket of a mounted container: where it is, who may speak, and the messages.
//!
//! The only file that names `bincode`. A message is a head (magic, version, length) and a bincode value; both sides
//! refuse another version in words. The socket lies in `$XDG_RUNTIME_DIR/mlfs`, for root in `/run/mlfs`, else below `/tmp`,
//! never in the store (NFS, 108 bytes); only the mount's owner and root are heard.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bincode::{Decode, Encode};

use crate::store::container::new_id;
use crate::sys::proc;

use super::{EngineError, OrFail, Result, host};

const MAGIC: [u8; 4] = *b"mlfs";
/// The version of the messages.
const VERSION: u16 = 2;
/// Longer messages are not ours.
const LENGTH_MAX: u32 = 64 << 10;
/// The longest path of a socket (`sun_path` with its NUL).
const PATH_MAX: usize = 107;

/// What a command asks of a container's daemon.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Request {
    /// How are you?
    Status,
    /// Unmount now, if idle.
    Unmount,
    /// Detach now; open files are served until they are closed.
    Detach,
    /// Serve until idle, at most this long, then detach.
    Shutdown {
        /// Milliseconds.
        timeout: u64,
    },
    /// Detach and end now, whatever is open.
    Kill,
}

/// What the daemon answers.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Answer {
    /// To [`Request::Status`].
    Status {
        /// The daemon's process id.
        pid: u32,
        /// The container's id.
        id: String,
        /// Who reads and writes contents: `passthrough` or `cached`.
        io: String,
        /// Why.
        io_why: String,
        /// How many files the kernel reads and writes by itself now.
        backing_files: u64,
    },
    /// It is done; the daemon ends when all is written.
    Done,
    /// Files are open.
    Busy,
    /// It did not work, for this reason.
    Failed(String),
}

/// Where sockets may lie, best first. Records tell the path of each, so any folder will do that is ours alone.
fn socket_dirs() -> Result<Vec<PathBuf>> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|p| p.is_absolute());
    let mut dirs: Vec<PathBuf> = runtime.map(|dir| dir.join("mlfs")).into_iter().collect();
    if proc::is_real_root() {
        dirs.push("/run/mlfs".into());
    }
    let uid = host::caller().0;
    // Inode numbers of namespaces are given to others at once, so the name tells whose namespace it is.
    let who = match (proc::is_initial_user_namespace(), fs::metadata("/proc/self/ns/user")) {
        (false, Ok(meta)) => format!("{}-{uid}-{}", proc::outer_uid().unwrap_or(uid), meta.ino()),
        _ => uid.to_string(),
    };
    dirs.push(format!("/tmp/mlfs-{who}").into());
    // Anybody can make a folder of that name, and nobody one of this.
    let chance: String = new_id().or_fail(|| "cannot name a folder")?.chars().take(8).collect();
    dirs.push(format!("/tmp/mlfs-{who}-{chance}").into());
    Ok(dirs)
}

/// Makes a folder of sockets when missing; it must be ours alone.
fn own_dir(dir: &Path, uid: u32) -> Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            return Err(EngineError::failed(format!("cannot create {}", dir.display())).because(e));
        }
        _ => {}
    }
    let meta = fs::symlink_metadata(dir).or_fail(|| format!("cannot look at {}", dir.display()))?;
    if !meta.is_dir() || meta.uid() != uid || meta.permissions().mode() & 0o077 != 0 {
        return Err(EngineError::failed(format!("{} is not a folder of ours alone (mode 0700)", dir.display())));
    }
    Ok(())
}

/// The daemon's end.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ControlSocket {
    /// Makes the socket of the container `id`. Call it while holding the container's liveness lock: what a dead
    /// daemon left at the path is removed.
    pub fn bind(id: &str) -> Result<Self> {
        Self::bind_in(&socket_dirs()?, id)
    }

    fn bind_in(dirs: &[PathBuf], id: &str) -> Result<Self> {
        let name = socket_name(id);
        let mut last = EngineError::failed("there is no folder for control sockets");
        for dir in dirs.iter().filter(|dir| dir.as_os_str().len() + 1 + name.len() <= PATH_MAX) {
            match Self::bind_at(dir, &name) {
                Ok(socket) => return Ok(socket),
                Err(error) => {
                    log::debug!("no control socket there: {error}");
                    last = error;
                }
            }
        }
        Err(last)
    }

    fn bind_at(dir: &Path, name: &str) -> Result<Self> {
        let uid = host::caller().0;
        let path = dir.join(name);
        let mut attempts = 0;
        let listener = loop {
            attempts += 1;
            own_dir(dir, uid)?;
            match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(EngineError::failed(format!("cannot remove {}", path.display())).because(e));
                }
                _ => {}
            }
            match UnixListener::bind(&path) {
                // Another daemon has just removed the folder with its own socket, which was the last one.
                Err(e) if e.kind() == io::ErrorKind::NotFound && attempts < 100 => {}
                other => break other.or_fail(|| format!("cannot make the socket {}", path.display()))?,
            }
        };
        let mode = fs::Permissions::from_mode(0o600);
        fs::set_permissions(&path, mode).or_fail(|| format!("cannot close the socket {}", path.display()))?;
        listener.set_nonblocking(true).or_fail(|| "cannot listen")?;
        Ok(ControlSocket { listener, path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// For polling.
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Takes the next caller and its request, if there is one. A caller that may not ask, or asks nonsense, is
    /// turned away here.
    pub fn accept(&self) -> Option<(UnixStream, Request)> {
        let (mut stream, _) = self.listener.accept().ok()?;
        match hear(&mut stream) {
            Ok(request) => Some((stream, request)),
            Err(error) => {
                log::warn!("a caller of the control socket was turned away: {error}");
                answer(&mut stream, &Answer::Failed(error.to_string()));
                None
            }
        }
    }

    /// Removes the socket's name.
    pub fn remove(self) {
        remove_socket(&self.path);
    }
}

/// Where the control socket of a container may be.
pub fn sockets_of(id: &str) -> Vec<PathBuf> {
    let dirs = socket_dirs().unwrap_or_default();
    dirs.into_iter().map(|dir| dir.join(socket_name(id))).collect()
}

fn socket_name(id: &str) -> String {
    id.chars().take(16).collect::<String>() + ".sock"
}

/// Removes the control socket of a container at a path that its record tells. Anything that no daemon of it can have
/// made stays: records may come from others.
pub fn remove_socket_of(id: &str, path: &Path) {
    if is_socket_of(id, path) {
        remove_socket(path);
    } else {
        log::warn!("{} is no control socket of {id}: it stays", path.display());
    }
}

/// Can it be a control socket of this container? By its name, in a folder that is its owner's alone.
pub fn is_socket_of(id: &str, path: &Path) -> bool {
    let is_named_so = path.file_name().is_some_and(|name| *name == *socket_name(id));
    let meta = |path: &Path| fs::symlink_metadata(path).ok();
    let is_ours = || {
        let (socket, dir) = meta(path).zip(path.parent().and_then(meta))?;
        let is_private = dir.is_dir() && dir.permissions().mode() & 0o077 == 0 && dir.uid() == socket.uid();
        Some(socket.file_type().is_socket() && is_private)
    };
    is_named_so && is_ours().unwrap_or(false)
}

/// Removes the name of a socket, and its folder when it was the last one in it.
fn remove_socket(path: &Path) {
    if let Err(e) = fs::remove_file(path) {
        log::debug!("cannot remove {}: {e}", path.display());
    }
    let Some(dir) = path.parent() else { return };
    let is_ours = dir.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"mlfs"));
    if is_ours && let Err(e) = fs::remove_dir(dir) {
        log::debug!("{} stays: {e}", dir.display());
    }
}

fn hear(stream: &mut UnixStream) -> io::Result<Request> {
    let uid = rustix::net::sockopt::socket_peercred(&*stream)?.uid.as_raw();
    if uid != host::caller().0 && uid != 0 {
        return Err(io::Error::other(format!("user {uid} is not the owner of this mount")));
    }
    // Nobody may hold up the daemon's one loop.
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.set_write_timeout(Some(Duration::from_secs(1)))?;
    read_message(stream)
}

/// Answers a caller. One that has gone away needs no answer.
pub fn answer(stream: &mut UnixStream, answer: &Answer) {
    if let Err(error) = write_message(stream, answer) {
        log::debug!("a caller went away without its answer: {error}");
    }
}

/// Asks the daemon that listens at `path`.
pub fn ask(path: &Path, request: &Request, patience: Duration) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(patience))?;
    write_message(&mut stream, request)?;
    read_message(&mut stream)
}

fn write_message<T: Encode>(stream: &mut impl Write, message: &T) -> io::Result<()> {
    let body = bincode::encode_to_vec(message, bincode::config::standard()).map_err(io::Error::other)?;
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    let mut bytes = MAGIC.to_vec();
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(length.to_le_bytes());
    bytes.extend(body);
    stream.write_all(&bytes)
}

fn read_message<T: Decode<()>>(stream: &mut impl Read) -> io::Result<T> {
    let (mut magic, mut version, mut length) = ([0u8; 4], [0u8; 2], [0u8; 4]);
    stream.read_exact(&mut magic)?;
    stream.read_exact(&mut version)?;
    stream.read_exact(&mut length)?;
    let (version, length) = (u16::from_le_bytes(version), u32::from_le_bytes(length));
    if magic != MAGIC || length > LENGTH_MAX {
        return Err(io::Error::other("not a message of mlfs"));
    }
    if version != VERSION {
        return Err(io::Error::other(format!("the other side speaks version {version}, this mlfs {VERSION}")));
    }
    let mut body = vec![0; length as usize];
    stream.read_exact(&mut body)?;
    let config = bincode::config::standard().with_limit::<{ LENGTH_MAX as usize }>();
    let (message, used) = bincode::decode_from_slice(&body, config).map_err(io::Error::other)?;
    if used != body.len() {
        return Err(io::Error::other("a message with something after its end"));
    }
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_round_trip_and_others_are_refused() {
        let request = Request::Shutdown { timeout: 1234 };
        let mut bytes = Vec::new();
        write_message(&mut bytes, &request).unwrap();
        assert_eq!(read_message::<Request>(&mut bytes.as_slice()).unwrap(), request);
        for (index, value) in [(0, b'x'), (4, 9), (9, 255), (10, 77)] {
            let mut broken = bytes.clone();
            broken[index] = value;
            assert!(read_message::<Request>(&mut broken.as_slice()).is_err(), "{index}");
        }
        for end in 0..bytes.len() {
            assert!(read_message::<Request>(&mut &bytes[..end]).is_err());
        }
    }

    #[test]
    fn a_foreign_folder_is_passed_over_and_the_last_socket_takes_its_folder_along() {
        let temp = tempfile::tempdir().unwrap();
        let foreign = temp.path().join("mlfs-0");
        fs::create_dir(&foreign).unwrap();
        fs::set_permissions(&foreign, fs::Permissions::from_mode(0o755)).unwrap();
        let own = temp.path().join("mlfs-0-chance");
        let dirs = [foreign.clone(), own.clone()];
        let sockets = ["a", "b"].map(|id| ControlSocket::bind_in(&dirs, id).unwrap());
        assert!(sockets.iter().all(|socket| socket.path().starts_with(&own)));
        for (socket, is_there_after) in sockets.into_iter().zip([true, false]) {
            socket.remove();
            assert_eq!(own.exists(), is_there_after);
        }
        assert!(foreign.exists());
    }

    #[test]
    fn a_question_is_answered_over_the_socket() {
        let id = crate::store::container::new_id().unwrap();
        let socket = ControlSocket::bind(&id).unwrap();
        let path = socket.path().to_owned();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let asker = std::thread::spawn(move || ask(&path, &Request::Status, Duration::from_secs(5)).unwrap());
        let (mut stream, request) = loop {
            match socket.accept() {
                Some(pair) => break pair,
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        assert_eq!(request, Request::Status);
        answer(&mut stream, &Answer::Busy);
        assert_eq!(asker.join().unwrap(), Answer::Busy);
        let path = socket.path().to_owned();
        socket.remove();
        assert!(!path.exists());
    }
}
