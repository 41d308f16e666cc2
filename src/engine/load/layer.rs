// SPDX-License-Identifier: MIT OR Apache-2.0
//! One layer on its way into the store: read, sum up, inflate, sum up again, index, store the bodies.
//!
//! ```text
//! reader thread --blob bytes--> inflating thread --tar bytes--> this thread: index, bodies --> pool
//!  hashes and keeps the blob                     \--tar bytes--> hashing thread: diffID
//! ```
//! A layer without compression is its own tar: one hash, and no inflating thread. All streams are bounded. When a
//! later stage fails, the reader goes on to the end of the blob: a wrong digest explains the failure best.

use std::io::{self, BufRead, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest as _, Sha256};

use super::Progress;
use super::pipe::{PipeReader, Sender, pipe, read_buffer};
use super::pool::{Pool, PoolSink};
use crate::engine::{EngineError, OrFail, Result};
use crate::layer::index::{Budget, BuildError, Builder, FeedError, Stats, feed};
use crate::model::Digest;
use crate::model::sync::lock;
use crate::oci::compression::Compression;
use crate::oci::tar::{Ending, TarReader};
use crate::store::StoreError;
use crate::store::blob::{BlobWriter, StagedBlob};

/// The largest extended header of a tar, beside what the limit of extended attributes allows.
const HEADER_LIMIT: u64 = 1 << 20;

/// What is known of a layer before it is read.
pub struct LayerSource<'a> {
    /// Its number in the image (for progress), from 0.
    pub number: usize,
    /// What messages call it.
    pub label: String,
    /// Its bytes, maybe compressed.
    pub reader: Box<dyn Read + Send + 'a>,
    /// What digest and size the blob must have.
    pub blob: Option<(Digest, u64)>,
    /// What digest the tar must have. Without one, the tar must have an end mark: nothing else tells that it is whole.
    pub diff_id: Option<Digest>,
    /// Keep the blob as it is.
    pub is_blob_kept: bool,
}

/// A layer that is staged: nothing of it is visible yet.
#[derive(Debug)]
pub struct StagedLayer {
    /// The digest of its tar.
    pub diff_id: Digest,
    /// The blob, when it is kept.
    pub blob: Option<StagedBlob>,
    /// The index.
    pub index: PathBuf,
    /// Sums over the layer.
    pub stats: Stats,
}

/// What all layers of one load share.
pub struct Shared<'a> {
    /// The staging folder.
    pub staging: &'a Path,
    /// The limits, and what is used of them.
    pub budget: &'a Budget,
    /// Told how far it is.
    pub progress: &'a dyn Progress,
    /// Set when a layer has failed: the others need not go on.
    pub failure: &'a Failure,
}

/// The first failure among the layers of one load.
#[derive(Debug, Default)]
pub struct Failure {
    is_set: AtomicBool,
    error: Mutex<Option<EngineError>>,
}

impl Failure {
    /// Keeps `error` if it is the first.
    pub fn set(&self, error: EngineError) {
        let mut first = lock(&self.error);
        if first.is_none() {
            *first = Some(error);
        }
        self.is_set.store(true, Ordering::Relaxed);
    }

    /// Has a layer failed?
    pub fn is_set(&self) -> bool {
        self.is_set.load(Ordering::Relaxed)
    }

    /// The failure, if there was one.
    pub fn into_result(self) -> Result<()> {
        let error = self.error.into_inner().unwrap_or_else(PoisonError::into_inner);
        error.map_or(Ok(()), Err)
    }
}

/// Where a layer is staged, and what messages call it.
struct Place<'a> {
    dir: &'a Path,
    label: &'a str,
}

/// The blob's side: digest, size and the kept file.
struct BlobEnd {
    digest: Digest,
    size: u64,
    staged: Option<StagedBlob>,
}

/// Reads one layer into the staging folder.
pub fn stage_layer(shared: &Shared<'_>, pool: Pool, source: LayerSource<'_>) -> Result<StagedLayer> {
    let number = source.number;
    let dir = shared.staging.join(format!("layer.{number}"));
    std::fs::create_dir(&dir).map_err(|e| StoreError::writing("create", &dir, e)).or_fail(|| "cannot stage a layer")?;
    let wanted = (source.blob, source.diff_id);
    let place = Place { dir: &dir, label: &source.label };
    let (blob, tar) = std::thread::scope(|scope| {
        let (to_inflate, blob_bytes) = pipe();
        let (to_plain, blob_digest) = channel();
        let keep = source.is_blob_kept.then(|| dir.clone());
        let mut reader = source.reader;
        let blob = source.blob;
        let reading = scope.spawn(move || {
            let end = read_blob(shared, number, &mut *reader, blob, keep.as_deref(), &to_inflate)?;
            if to_plain.send(end.digest).is_err() {
                log::debug!("the layer is compressed: its tar has a digest of its own");
            }
            Ok(end)
        });
        let unpacked = unpack(scope, shared, pool, &place, blob_bytes, blob_digest, wanted.1.is_none());
        let blob_end = joined(reading.join());
        combine(wanted, blob_end, unpacked)
    })?;
    shared.progress.end(number);
    Ok(StagedLayer { diff_id: tar.diff_id, blob, index: dir.join("index"), stats: tar.stats })
}

/// A panic of a thread is one of ours: it goes on.
pub(super) fn joined<T>(result: std::thread::Result<T>) -> T {
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Which of the two sides tells best what is wrong: the digest of the blob, the tar, the digest of the tar.
fn combine(
    wanted: (Option<(Digest, u64)>, Option<Digest>),
    blob: Result<BlobEnd>,
    tar: Result<TarEnd>,
) -> Result<(Option<StagedBlob>, TarEnd)> {
    // When the blob cannot be read or kept (a full disk), that is the reason.
    let blob = blob?;
    if let Some((digest, size)) = wanted.0 {
        if blob.digest != digest {
            let what = format!("the layer {digest} is damaged: its digest is {}", blob.digest);
            return Err(EngineError::failed(what));
        }
        if blob.size != size {
            let what = format!("the layer {digest} has {} bytes, its manifest tells of {size}", blob.size);
            return Err(EngineError::failed(what));
        }
    }
    let tar = tar?;
    match wanted.1 {
        Some(diff_id) if diff_id != tar.diff_id => Err(EngineError::failed(format!(
            "the layer with the diffID {diff_id} is damaged: the digest of its uncompressed tar is {}",
            tar.diff_id
        ))),
        _ => Ok((blob.staged, tar)),
    }
}

fn read_blob(
    shared: &Shared<'_>,
    number: usize,
    source: &mut dyn Read,
    wanted: Option<(Digest, u64)>,
    keep: Option<&Path>,
    out: &Sender,
) -> Result<BlobEnd> {
    let mut kept = keep.map(|dir| BlobWriter::new(dir, "blob")).transpose().or_fail(|| "cannot store a layer")?;
    let mut hash = Sha256::new();
    let mut size = 0u64;
    let mut is_wanted = true;
    loop {
        if shared.failure.is_set() {
            return Err(EngineError::failed("another layer has failed"));
        }
        let buffer = read_buffer(source).or_fail(|| "cannot read a layer")?;
        if buffer.is_empty() {
            break;
        }
        size += buffer.len() as u64;
        shared.progress.advance(number, buffer.len() as u64);
        // More than was told: that is known to be wrong, and may have no end.
        if let Some((digest, limit)) = wanted
            && size > limit
        {
            let what = format!("the layer {digest} has more than the {limit} bytes that its manifest tells of");
            return Err(EngineError::failed(what));
        }
        match &mut kept {
            Some(writer) => writer.write(&buffer).or_fail(|| "cannot store a layer")?,
            None => hash.update(&buffer),
        }
        if is_wanted && send(out, Ok(Arc::new(buffer))).is_none() {
            // The other side has failed. Go on with the sum alone, if a digest can still explain the failure.
            is_wanted = false;
            if wanted.is_none() {
                return Err(EngineError::failed("the layer cannot be unpacked"));
            }
        }
    }
    let staged = kept.map(BlobWriter::finish);
    let digest = staged.as_ref().map_or_else(|| Digest(hash.finalize().into()), |b| b.digest);
    Ok(BlobEnd { digest, size, staged })
}

/// `None` when nobody reads any more.
fn send(out: &Sender, item: io::Result<Arc<Vec<u8>>>) -> Option<()> {
    out.send(item).ok()
}

/// The tar's side: digest and sums.
struct TarEnd {
    diff_id: Digest,
    stats: Stats,
}

fn unpack<'scope>(
    scope: &'scope std::thread::Scope<'scope, '_>,
    shared: &Shared<'_>,
    pool: Pool,
    place: &Place<'_>,
    mut blob: PipeReader,
    blob_digest: Receiver<Digest>,
    needs_mark: bool,
) -> Result<TarEnd> {
    let head = blob.fill_buf().or_fail(|| "cannot read a layer")?;
    let compression = Compression::detect(head);
    if compression == Compression::Plain {
        // The blob is the tar, and is summed up by its reader.
        return index_tar(shared, pool, place, blob, needs_mark, || {
            blob_digest.recv().or_fail(|| "cannot read a layer")
        });
    }
    let (to_parser, tar_bytes) = pipe();
    let (to_hasher, hash_bytes) = pipe();
    let inflating = scope.spawn(move || inflate(compression, blob, &to_parser, &to_hasher));
    let hashing = scope.spawn(move || sum(hash_bytes));
    let digest = || joined(hashing.join()).or_fail(|| "cannot read a layer");
    let result = index_tar(shared, pool, place, tar_bytes, needs_mark, digest);
    joined(inflating.join());
    result
}

fn inflate(compression: Compression, blob: PipeReader, to_parser: &Sender, to_hasher: &Sender) {
    let run = || -> io::Result<()> {
        let mut plain = compression.decode(blob)?;
        loop {
            let buffer = Arc::new(read_buffer(&mut *plain)?);
            // Whoever stopped reading has failed, and tells.
            if buffer.is_empty()
                || send(to_parser, Ok(Arc::clone(&buffer))).is_none()
                || send(to_hasher, Ok(buffer)).is_none()
            {
                return Ok(());
            }
        }
    };
    if let Err(e) = run() {
        let again = io::Error::new(e.kind(), e.to_string());
        if send(to_parser, Err(e)).or(send(to_hasher, Err(again))).is_none() {
            log::debug!("nobody waits for the end of a layer");
        }
    }
}

fn sum(mut bytes: PipeReader) -> io::Result<Digest> {
    let mut hash = Sha256::new();
    while let Some(buffer) = bytes.next_buffer()? {
        hash.update(&*buffer);
    }
    Ok(Digest(hash.finalize().into()))
}

fn index_tar(
    shared: &Shared<'_>,
    pool: Pool,
    place: &Place<'_>,
    tar_bytes: PipeReader,
    needs_mark: bool,
    diff_id: impl FnOnce() -> Result<Digest>,
) -> Result<TarEnd> {
    let budget = shared.budget;
    let mut builder = Builder::new(place.dir, budget).map_err(|e| told(place, e.into()))?;
    let header_limit = budget.limits().max_xattr_bytes.saturating_mul(2).saturating_add(HEADER_LIMIT);
    let mut counted = Counted { inner: tar_bytes, budget, size: 0, limit: None };
    let mut sink = PoolSink::new(pool);
    let fed = feed(&mut TarReader::new(&mut counted, header_limit), &mut builder, &mut sink);
    let objects = sink.finish();
    if let Some(limit) = counted.limit.take() {
        return Err(told(place, limit.into()));
    }
    // When a body could not be stored, the reason is the pool's.
    let (ending, objects) = match (fed, objects) {
        (Ok(ending), objects) => (ending, objects.or_fail(|| "cannot store a layer")?),
        (Err(FeedError::Sink(_)), Err(error)) => return Err(EngineError::failed("cannot store a layer").because(error)),
        (Err(error), _) => return Err(told(place, error)),
    };
    if ending == Ending::Eof && needs_mark {
        return Err(EngineError::failed(format!("{} is cut short: its tar has no end mark", place.label)));
    }
    // What follows the end mark counts for the digest only.
    let drained = io::copy(&mut counted, &mut io::sink());
    if let Some(limit) = counted.limit.take() {
        return Err(told(place, limit.into()));
    }
    drained.or_fail(|| "cannot read a layer to its end")?;
    let tar_size = counted.size;
    drop(counted);
    for (node, digest) in objects {
        builder.set_object(node, digest);
    }
    let diff_id = diff_id()?;
    let written = builder.finish(diff_id, tar_size).map_err(|e| told(place, e.into()))?;
    Ok(TarEnd { diff_id, stats: written.stats })
}

/// A failure to write the index is one of the store's (a full disk gets its sentence).
fn told(place: &Place<'_>, error: FeedError) -> EngineError {
    match error {
        FeedError::Build(BuildError::Write(e)) => {
            EngineError::failed("cannot store a layer").because(StoreError::writing("write", place.dir, e))
        }
        other => EngineError::failed(format!("{} is refused", place.label)).because(other),
    }
}

/// Counts the bytes of the tar against the limit.
struct Counted<'a> {
    inner: PipeReader,
    budget: &'a Budget,
    size: u64,
    limit: Option<BuildError>,
}

impl Counted<'_> {
    fn count(&mut self, bytes: u64) -> io::Result<()> {
        self.size += bytes;
        self.budget.take_tar_bytes(bytes).map_err(|e| {
            self.limit = Some(e);
            io::Error::other("too many bytes")
        })
    }
}

impl Read for Counted<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buf)?;
        self.count(count as u64)?;
        Ok(count)
    }
}

impl crate::oci::tar::Forward for &mut Counted<'_> {
    fn forward(&mut self, count: u64) -> io::Result<()> {
        self.inner.forward(count)?;
        self.count(count)
    }
}
