// SPDX-License-Identifier: MIT OR Apache-2.0
//! Threads that hash and write bodies into the object store, shared by all layers of an image.
//!
//! Small bodies travel in batches (a hand-over costs more than a small file), big ones in pieces, so that memory is
//! bounded whatever the sizes are.

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use crate::layer::index::{BodySink, NodeId};
use crate::model::Digest;
use crate::model::sync::lock;
use crate::store::StoreError;
use crate::store::object::ObjectBatch;

/// Bodies up to this size travel whole.
const WHOLE_MAX: u64 = 256 << 10;
/// A batch is handed over at so many bytes, or at so many bodies.
const BATCH_BYTES: usize = 512 << 10;
const BATCH_BODIES: usize = 64;
/// How many batches or big bodies may wait.
const WAITING: usize = 8;
/// How many pieces of one big body may wait.
const PIECES: usize = 8;

/// A piece of a big body.
enum Piece {
    Data(Vec<u8>),
    Hole(u64),
    /// The body is complete; without this piece its sender has given up.
    End,
}

enum Job {
    Batch(Vec<(NodeId, Vec<u8>)>, Replies),
    Big(NodeId, Receiver<Piece>, Replies),
}

type Reply = Result<(NodeId, Digest), StoreError>;
type Replies = Sender<Reply>;

/// The way to the threads.
#[derive(Clone)]
pub struct Pool {
    jobs: SyncSender<Job>,
}

/// Runs `work` with a pool of `threads` that write into `objects`. They end when all clones of the pool are gone.
pub fn with_pool<T>(objects: &ObjectBatch, threads: usize, work: impl FnOnce(Pool) -> T) -> T {
    let (jobs, waiting) = sync_channel(WAITING);
    let waiting = Mutex::new(waiting);
    let number = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let job = lock(&waiting).recv();
                    match job {
                        Ok(job) => run(objects, job, number.fetch_add(1, Ordering::Relaxed)),
                        Err(_) => break,
                    }
                }
            });
        }
        work(Pool { jobs })
    })
}

fn run(objects: &ObjectBatch, job: Job, number: u64) {
    let send = |replies: &Replies, reply: Reply| {
        if replies.send(reply).is_err() {
            log::debug!("a layer that has failed does not want its objects any more");
        }
    };
    match job {
        Job::Batch(bodies, replies) => {
            for (node, bytes) in bodies {
                send(&replies, objects.put(&bytes).map(|digest| (node, digest)));
            }
        }
        Job::Big(node, pieces, replies) => {
            if let Some(reply) = write_big(objects, number, &pieces).transpose() {
                send(&replies, reply.map(|digest| (node, digest)));
            }
        }
    }
}

/// Writes a body that comes in pieces; `None` when its sender gave up.
fn write_big(objects: &ObjectBatch, number: u64, pieces: &Receiver<Piece>) -> Result<Option<Digest>, StoreError> {
    let mut writer = objects.begin(number)?;
    loop {
        match pieces.recv() {
            Ok(Piece::Data(bytes)) => writer.write(&bytes)?,
            Ok(Piece::Hole(len)) => writer.skip(len)?,
            Ok(Piece::End) => return writer.finish().map(Some),
            Err(_) => return Ok(None),
        }
    }
}

/// Sends the bodies of one layer to the pool and gathers the digests.
pub struct PoolSink {
    pool: Pool,
    replies: Replies,
    answers: Receiver<Reply>,
    batch: Vec<(NodeId, Vec<u8>)>,
    batch_bytes: usize,
    current: Current,
}

enum Current {
    None,
    Whole(NodeId, Vec<u8>),
    Big(SyncSender<Piece>),
}

impl PoolSink {
    /// A sink for one layer.
    pub fn new(pool: Pool) -> Self {
        let (replies, answers) = channel();
        PoolSink { pool, replies, answers, batch: Vec::new(), batch_bytes: 0, current: Current::None }
    }

    /// Waits for all bodies; the digests come in any order.
    pub fn finish(mut self) -> Result<Vec<(NodeId, Digest)>, StoreError> {
        let handed_over = self.hand_over();
        // A big body that was begun and not ended has failed: its thread must not wait for more.
        self.current = Current::None;
        let PoolSink { replies, answers, .. } = self;
        drop(replies);
        let digests = answers.iter().collect::<Result<Vec<_>, _>>()?;
        handed_over.map_err(|e| StoreError::reading("store objects of", std::path::Path::new("the layer"), e))?;
        Ok(digests)
    }

    fn hand_over(&mut self) -> io::Result<()> {
        self.batch_bytes = 0;
        let batch = std::mem::take(&mut self.batch);
        if batch.is_empty() {
            return Ok(());
        }
        self.pool.jobs.send(Job::Batch(batch, self.replies.clone())).map_err(|_| stopped())
    }

    fn send_piece(&mut self, piece: Piece) -> io::Result<()> {
        match &self.current {
            // The reason why the thread has stopped is among the answers.
            Current::Big(pieces) => pieces.send(piece).map_err(|_| stopped()),
            Current::None | Current::Whole(..) => Err(stopped()),
        }
    }
}

fn stopped() -> io::Error {
    io::Error::other("the writing of objects has stopped")
}

impl BodySink for PoolSink {
    fn begin(&mut self, node: NodeId, size: u64) -> io::Result<()> {
        if size <= WHOLE_MAX {
            self.current = Current::Whole(node, Vec::new());
            return Ok(());
        }
        let (pieces, receiver) = sync_channel(PIECES);
        self.current = Current::Big(pieces);
        self.pool.jobs.send(Job::Big(node, receiver, self.replies.clone())).map_err(|_| stopped())
    }

    fn data(&mut self, bytes: Vec<u8>) -> io::Result<()> {
        match &mut self.current {
            Current::Whole(_, body) if body.is_empty() => *body = bytes,
            Current::Whole(_, body) => body.extend_from_slice(&bytes),
            Current::Big(_) | Current::None => self.send_piece(Piece::Data(bytes))?,
        }
        Ok(())
    }

    fn hole(&mut self, len: u64) -> io::Result<()> {
        match &mut self.current {
            // Not longer than the body, which is small.
            Current::Whole(_, body) => body.resize(body.len() + len as usize, 0),
            Current::Big(_) | Current::None => self.send_piece(Piece::Hole(len))?,
        }
        Ok(())
    }

    fn end(&mut self) -> io::Result<()> {
        if let Current::Big(_) = self.current {
            self.send_piece(Piece::End)?;
        }
        if let Current::Whole(node, body) = std::mem::replace(&mut self.current, Current::None) {
            self.batch_bytes += body.len();
            self.batch.push((node, body));
            if self.batch_bytes >= BATCH_BYTES || self.batch.len() >= BATCH_BODIES {
                self.hand_over()?;
            }
        }
        Ok(())
    }
}
