//! What a backend does in the background, as the rest of the store sees it: how much waits, whether it moves, what fails. And
//! what it has to know of the rest of the store meanwhile: how many threads wait for a write of theirs. It starts no thread.

use std::any::Any;
use std::fmt;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

use crate::apart::Apart;
use crate::error::Error;
use crate::shelf::panic_message;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

#[derive(Default)]
pub(crate) struct Background {
    /// Threads that wait for a write of theirs to become durable. Each of them writes here.
    waiters: Apart<AtomicUsize>,
    /// Bytes in the journal that have not come to rest.
    waiting: AtomicU64,
    /// Counts whatever is done: whoever waits can see that something moves.
    progress: AtomicU64,
    /// Something that was recovered is not durable yet: a flush has to see to it.
    unsettled: AtomicBool,
    status: Mutex<Status>,
    /// A thread of the backend's panicked: which, and with what.
    dead: OnceLock<String>,
    census: OnceLock<Census>,
}

/// What there is in a store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Population {
    pub(crate) members: u64,
    /// Of names and values as they are stored. What values of the caller's types take is estimated from a sample.
    pub(crate) bytes: u64,
    /// What was looked at to find this out: collections, shards, members of the sample.
    pub(crate) looks: u64,
}

type Census = Box<dyn Fn() -> Option<Population> + Send + Sync>;

#[derive(Default)]
struct Status {
    failure: Option<(SystemTime, Error)>,
    /// When something was last done.
    moved: Option<Instant>,
    /// Until when the backend may go on with what waits when it is closed; `None` for as long as it takes.
    limit: Option<Instant>,
}

impl fmt::Debug for Background {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Background").field("waiting", &self.waiting()).finish_non_exhaustive()
    }
}

/// One of those that wait for their writes, until it goes.
pub(crate) struct Waiting<'a>(&'a Background);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiters.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Background {
    /// This thread waits for a write of its own.
    pub(crate) fn wait(&self) -> Waiting<'_> {
        self.waiters.0.fetch_add(1, Ordering::Relaxed);
        Waiting(self)
    }

    /// Threads that wait for a write of theirs.
    pub(crate) fn waiters(&self) -> usize {
        self.waiters.0.load(Ordering::Relaxed)
    }

    pub(crate) fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Acquire)
    }

    pub(crate) fn set_waiting(&self, bytes: u64) {
        self.waiting.store(bytes, Ordering::Release);
    }

    pub(crate) fn progress(&self) -> u64 {
        self.progress.load(Ordering::Relaxed)
    }

    pub(crate) fn moved(&self) {
        self.progress.fetch_add(1, Ordering::Relaxed);
        self.status.lock().moved = Some(Instant::now());
    }

    pub(crate) fn unsettled(&self) -> bool {
        self.unsettled.load(Ordering::Relaxed)
    }

    pub(crate) fn set_unsettled(&self, yes: bool) {
        self.unsettled.store(yes, Ordering::Relaxed);
    }

    /// How long nothing has moved.
    pub(crate) fn still_for(&self) -> Duration {
        self.status.lock().moved.map_or(Duration::MAX, |moved| moved.elapsed())
    }

    /// Notes what fails, since when it has.
    pub(crate) fn fails(&self, error: Error) {
        let mut status = self.status.lock();
        let since = status.failure.take().map_or_else(SystemTime::now, |(since, _)| since);
        status.failure = Some((since, error));
    }

    pub(crate) fn works(&self) {
        self.status.lock().failure = None;
    }

    pub(crate) fn failure(&self) -> Option<(SystemTime, Error)> {
        self.status.lock().failure.clone()
    }

    /// A thread of the backend's panicked. Returns what is told of it.
    pub(crate) fn dies(&self, thread: &str, panic: &(dyn Any + Send)) -> Error {
        let reason = format!("{thread} panicked: {}", panic_message(panic));
        // The first panic is the one to tell.
        _ = self.dead.set(reason.clone());
        Error::Degraded { reason, source: None }
    }

    #[inline]
    pub(crate) fn dead(&self) -> Option<&str> {
        self.dead.get().map(String::as_str)
    }

    /// How the backend learns what there is.
    pub(crate) fn set_census(&self, census: Census) {
        // A store is loaded once.
        _ = self.census.set(census);
    }

    /// What there is, when somebody can tell. Takes every shard's lock.
    pub(crate) fn population(&self) -> Option<Population> {
        self.census.get().and_then(|census| census())
    }

    pub(crate) fn limit_closing(&self, limit: Option<Instant>) {
        self.status.lock().limit = limit;
    }

    pub(crate) fn closing_limit(&self) -> Option<Instant> {
        self.status.lock().limit
    }
}
