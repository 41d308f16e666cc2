// SPDX-License-Identifier: MIT OR Apache-2.0
//! The control socket of a mounted container: where it is, who may speak, and the messages.
//!
//! The only file that names `bincode`. A message is a head (magic, version, length) and a bincode value; both sides
//! refuse another version in words. The socket lies in `$XDG_RUNTIME_DIR/mlfs` or `/tmp/mlfs-UID`, never in the store
//! (NFS, 108 bytes); only the mount's owner and root are heard.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bincode::{Decode, Encode};

use super::{EngineError, OrFail, Result, host};

const MAGIC: [u8; 4] = *b"mlfs";
/// The version of the messages.
const VERSION: u16 = 1;
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
    },
    /// It is done; the daemon ends when all is written.
    Done,
    /// Files are open.
    Busy,
    /// It did not work, for this reason.
    Failed(String),
}

/// The folder of sockets, made when missing: ours alone.
fn socket_dir() -> Result<PathBuf> {
    let mut last = EngineError::failed("there is no folder for control sockets");
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|p| p.is_absolute());
    let uid = host::caller().0;
    let mut candidates: Vec<PathBuf> = runtime.map(|dir| dir.join("mlfs")).into_iter().collect();
    candidates.push(format!("/tmp/mlfs-{uid}").into());
    // In a user namespace, uid 0 may find the folder of the real root at that name.
    if let Ok(meta) = fs::metadata("/proc/self/ns/user") {
        candidates.push(format!("/tmp/mlfs-{uid}-{}", meta.ino()).into());
    }
    for dir in candidates.into_iter().filter(|d| d.as_os_str().len() + 24 <= PATH_MAX) {
        match own_dir(&dir, uid) {
            Ok(()) => return Ok(dir),
            Err(error) => last = error,
        }
    }
    Err(last)
}

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
        let name: String = id.chars().take(16).collect();
        let path = socket_dir()?.join(name + ".sock");
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(EngineError::failed(format!("cannot remove {}", path.display())).because(e));
            }
            _ => {}
        }
        let listener = UnixListener::bind(&path).or_fail(|| format!("cannot make the socket {}", path.display()))?;
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
        if let Err(e) = fs::remove_file(&self.path) {
            log::debug!("cannot remove {}: {e}", self.path.display());
        }
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
