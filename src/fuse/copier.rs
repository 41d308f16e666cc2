// SPDX-License-Identifier: MIT OR Apache-2.0
//! Threads for what takes long: copies of content, and syncing. The workers that take the kernel's requests never wait
//! for these, so whatever is copied, everything else is answered.
//!
//! Jobs have a key, the file. One thread at a time works on a key, in the order of the jobs: the first opener of a file
//! copies it, those who came meanwhile find it copied. So the number of threads is bounded by that of files in work,
//! however many wait for each.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::model::sync::lock;

/// How many files are worked on at once. Threads that wait cost next to nothing.
const THREADS_MAX: usize = 64;

/// How long a thread without work stays.
const IDLE: Duration = Duration::from_secs(5);

type Job = Box<dyn FnOnce() + Send>;

/// The threads and what waits for them.
#[derive(Default)]
pub(crate) struct Copier {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    queues: Mutex<Queues>,
    wake: Condvar,
}

#[derive(Default)]
struct Queues {
    /// The jobs of each file that is worked on or waits for a thread.
    jobs: HashMap<u64, VecDeque<Job>>,
    /// Files that wait for a thread.
    ready: VecDeque<u64>,
    threads: usize,
    idle: usize,
}

impl std::fmt::Debug for Copier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Copier").finish_non_exhaustive()
    }
}

impl Copier {
    /// Has `job` done after all earlier ones of the same key. Here and now if there can be no thread for it.
    pub(crate) fn run(&self, key: u64, job: impl FnOnce() + Send + 'static) {
        let needs_thread = {
            let mut queues = lock(&self.shared.queues);
            if let Some(jobs) = queues.jobs.get_mut(&key) {
                jobs.push_back(Box::new(job));
                return;
            }
            queues.jobs.insert(key, VecDeque::from([Box::new(job) as Job]));
            queues.ready.push_back(key);
            let needs_thread = queues.idle < queues.ready.len() && queues.threads < THREADS_MAX;
            queues.threads += usize::from(needs_thread);
            needs_thread
        };
        if !needs_thread {
            self.shared.wake.notify_one();
            return;
        }
        let shared = Arc::clone(&self.shared);
        let spawned = std::thread::Builder::new().name("copier".into()).spawn(move || shared.work());
        if let Err(error) = spawned {
            log::warn!("no thread for a copy: {error}");
            // Slow, but done: what is ready here and now.
            self.shared.work_while_ready();
            lock(&self.shared.queues).threads -= 1;
        }
    }
}

impl Shared {
    fn work(&self) {
        loop {
            self.work_while_ready();
            let mut queues = lock(&self.queues);
            if !queues.ready.is_empty() {
                continue;
            }
            queues.idle += 1;
            let (mut queues, waited) = self.wake.wait_timeout(queues, IDLE).unwrap_or_else(PoisonError::into_inner);
            queues.idle -= 1;
            if waited.timed_out() && queues.ready.is_empty() {
                queues.threads -= 1;
                return;
            }
        }
    }

    fn work_while_ready(&self) {
        while let Some(key) = { lock(&self.queues).ready.pop_front() } {
            while let Some(job) = self.next_job(key) {
                job();
            }
        }
    }

    /// The next job of a key; without one the key is done.
    fn next_job(&self, key: u64) -> Option<Job> {
        let mut queues = lock(&self.queues);
        let job = queues.jobs.get_mut(&key).and_then(VecDeque::pop_front);
        if job.is_none() {
            queues.jobs.remove(&key);
        }
        job
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn jobs_of_one_file_come_one_after_the_other_and_hold_up_no_other_file() {
        let copier = Copier::default();
        let (done, results) = mpsc::channel();
        let (go, gate) = mpsc::channel::<()>();
        let first = done.clone();
        copier.run(1, move || {
            gate.recv().unwrap();
            first.send(0).unwrap();
        });
        for number in 1..100 {
            let done = done.clone();
            copier.run(1, move || done.send(number).unwrap());
        }
        let other = done.clone();
        copier.run(2, move || other.send(1000).unwrap());
        assert_eq!(results.recv().unwrap(), 1000);
        go.send(()).unwrap();
        assert_eq!((0..100).map(|_| results.recv().unwrap()).collect::<Vec<_>>(), (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn more_files_than_threads_are_all_worked_on() {
        let copier = Copier::default();
        let (done, results) = mpsc::channel();
        let count = THREADS_MAX as u64 * 3;
        for key in 0..count {
            let done = done.clone();
            copier.run(key, move || done.send(key).unwrap());
        }
        let mut got: Vec<u64> = (0..count).map(|_| results.recv().unwrap()).collect();
        got.sort_unstable();
        assert_eq!(got, (0..count).collect::<Vec<_>>());
        assert!(lock(&copier.shared.queues).threads <= THREADS_MAX);
    }
}
