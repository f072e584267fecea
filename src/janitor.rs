//! The janitor: one thread that drains the channel of dirty keys and brings the changes to the backend.
//!
//! It clears a key's dirty mark before it reads the value, so that a write which comes later sends the key again. What
//! the backend did not take, or could not make durable, it keeps and offers again, as the value is by then: the map is the
//! truth, and nothing is remembered here but keys. Idle, it sleeps in the channel; while it has work it looks about once a
//! millisecond, so that a writer does not wake it up for every key.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use crate::answer::Reply;
use crate::applied::{Applied, ByKey};
use crate::backend::{Backend, Change};
use crate::background::Background;
use crate::core::Core;
use crate::error::{Error, Result};
use crate::key;
use crate::map::{KeyId, Named};
use crate::options::Durability;
use crate::report::Health;
use crate::shelf::{Load, Payload, Shelves, panic_message};
use crate::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use crate::sync::{
    Condvar, Mutex, NameHasher, Receiver, RecvTimeoutError, Sender, ThreadId, bounded, thread, wait_for,
};
use crate::value::{Member, Value};

/// How long the janitor lets keys come together once it has one.
const GATHER: Duration = Duration::from_millis(1);

/// The most keys that are drained from the channel at once: the more, the more of them are of one shard.
const ROUND_KEYS: usize = 32768;

/// The most keys, and about the most bytes, in one batch: what is done to each of them several times stays in the cache.
const BATCH_KEYS: usize = 2048;
const BATCH_BYTES: usize = 8 << 20;

/// The wait after a first failure, and the longest one.
const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(5);

/// How long the janitor looks out for the next write in `Immediate` mode before it sleeps.
const LISTEN: Duration = Duration::from_micros(50);

/// How long a change may wait for its sync in `Buffered` mode.
const CHECKPOINT: Duration = Duration::from_secs(5);

/// What the janitor is told. Keys and clears are sent under the lock of the shard that they concern.
pub(crate) enum Msg {
    /// The member was clean and is dirty.
    Key(KeyId),
    /// The collection was cleared. At which version, it says itself.
    Clear { collection: u32 },
    /// A transaction, sent under the locks of all the shards that it wrote to. Its members' keys are not sent.
    Transaction(Transaction),
    /// Answer when what was sent before this is durable, as far as it concerns whoever asks.
    Flush(Concern, Reply<Result<()>>),
    /// Make what is stored as small as it gets, once what was sent before this is durable.
    Compact(Reply<Result<()>>),
    /// Put a copy of a value aside.
    Quarantine(Box<Exhibit>, Reply<Result<PathBuf>>),
    /// As `Flush`, and then end. Answers with the number of changes stored for it.
    Close(Closing),
    /// Writers wait for room: look, and sync.
    Nudge,
    /// Store what can be stored, and end. Answers when the backend is gone.
    Stop(Reply<Result<()>>),
}

/// What somebody waits for.
pub(crate) enum Concern {
    Everything,
    Member {
        collection: u32,
        member: Member,
    },
    Clear {
        collection: u32,
    },
    /// All transactions that were sent before.
    Transaction,
}

/// What a transaction wrote. It is stored whole, before anything newer of its members is.
pub(crate) struct Transaction {
    pub(crate) writes: Vec<TransactionWrite>,
    /// What it holds, among the bytes not yet durable, until it is durable.
    pub(crate) charge: usize,
}

pub(crate) struct TransactionWrite {
    pub(crate) collection: u32,
    pub(crate) member: Member,
    pub(crate) version: u64,
    pub(crate) codec: u8,
    pub(crate) deadline: Option<u64>,
    /// Encoded; `None` for a delete.
    pub(crate) value: Option<Value>,
}

/// A close that somebody waits for, or gave up waiting for.
pub(crate) struct Closing {
    pub(crate) reply: Reply<Result<usize>>,
    pub(crate) decision: Arc<Decision>,
}

/// Who was first: the janitor, which ends the store, or the caller, who keeps it.
#[derive(Default)]
pub(crate) struct Decision(AtomicU8);

impl Decision {
    const NONE: u8 = 0;
    /// The janitor is ending the store.
    const END: u8 = 1;
    /// The caller has stopped waiting, and the store lives on.
    const KEEP: u8 = 2;
    /// The caller has stopped waiting for an end that the janitor had begun. It is one, however it goes.
    const LEAVE: u8 = 3;

    fn change(&self, from: u8, to: u8) -> bool {
        self.0.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// The caller stops waiting, and goes on with the store. False when it is too late for that.
    pub(crate) fn keep_open(&self) -> bool {
        self.change(Self::NONE, Self::KEEP)
    }

    /// The caller stops waiting, and leaves the store to the janitor. False when an answer is on its way.
    pub(crate) fn leave(&self) -> bool {
        self.change(Self::END, Self::LEAVE)
    }

    /// The caller has stopped waiting, and goes on with the store.
    fn is_given_up(&self) -> bool {
        self.0.load(Ordering::Acquire) == Self::KEEP
    }

    /// The janitor's end has failed: true if the caller hears of it, and false if the end it is.
    fn fail(&self) -> bool {
        self.change(Self::END, Self::NONE) || self.0.load(Ordering::Acquire) != Self::LEAVE
    }
}

/// A value that goes into quarantine.
pub(crate) struct Exhibit {
    pub(crate) collection: String,
    pub(crate) member: Member,
    pub(crate) version: u64,
    pub(crate) codec: String,
    pub(crate) value: Value,
    pub(crate) reason: String,
}

/// What the janitor and everybody else know of each other.
pub(crate) struct Link {
    status: Mutex<Status>,
    /// The janitor panicked, or the backend did: with what.
    dead: OnceLock<String>,
    /// What the backend does beside the janitor.
    pub(crate) background: Arc<Background>,
    /// The janitor is in trouble: `status` says which.
    failing: AtomicBool,
    /// Transactions that are sent, or about to be, and that the janitor has not received.
    transactions: AtomicUsize,
    /// Writers wait for room: sync at once.
    starved: AtomicBool,
    /// Keys that the janitor has received and that are not durable.
    in_hand: AtomicUsize,
    /// Counts batches and syncs: whoever waits can see that something moves.
    progress: AtomicU64,
    /// Counts the occasions on which something became durable or failed, for writers that wait for room.
    freed: Mutex<u64>,
    room: Condvar,
    urgent: Sender<()>,
    /// So many more are expected to wait for a write of theirs, and the janitor lets them come.
    missing: AtomicUsize,
    /// How long the last sync took, in nanoseconds.
    sync: AtomicU64,
    thread: OnceLock<ThreadId>,
}

#[derive(Default)]
struct Status {
    /// Since when, and what, as last seen.
    failure: Option<(SystemTime, Error)>,
    unencodable: BTreeMap<String, (SystemTime, Error)>,
    /// When the oldest key that is not durable was received.
    oldest: Option<Instant>,
    /// When the call that the backend is in began.
    called: Option<(SystemTime, Instant)>,
}

impl Link {
    pub(crate) fn new() -> (Link, Receiver<()>) {
        let (urgent, hurried) = bounded(1);
        let link = Link {
            status: Mutex::new(Status::default()),
            dead: OnceLock::new(),
            background: Arc::default(),
            failing: AtomicBool::new(false),
            transactions: AtomicUsize::new(0),
            starved: AtomicBool::new(false),
            in_hand: AtomicUsize::new(0),
            progress: AtomicU64::new(0),
            freed: Mutex::new(0),
            room: Condvar::new(),
            urgent,
            missing: AtomicUsize::new(0),
            sync: AtomicU64::new(0),
            thread: OnceLock::new(),
        };
        (link, hurried)
    }

    /// Whether no thread has panicked.
    #[inline]
    pub(crate) fn is_alive(&self) -> bool {
        self.dead.get().is_none() && self.background.dead().is_none()
    }

    #[inline]
    pub(crate) fn check_alive(&self) -> Result<()> {
        if self.is_alive() { Ok(()) } else { Err(self.death()) }
    }

    /// Which thread panicked, and with what.
    #[cold]
    fn death(&self) -> Error {
        let of_the_janitor = self.dead.get().map(|panic| format!("the janitor panicked: {panic}"));
        let reason = of_the_janitor.unwrap_or_else(|| self.background.dead().unwrap_or_default().to_owned());
        Error::Degraded { reason, source: None }
    }

    pub(crate) fn on_janitor_thread(&self) -> bool {
        self.thread.get().is_some_and(|janitor| *janitor == thread::current().id())
    }

    /// What fails, if anything does.
    pub(crate) fn failure(&self) -> Option<Error> {
        if let Err(dead) = self.check_alive() {
            return Some(dead);
        }
        if !self.failing.load(Ordering::Relaxed) {
            return None;
        }
        self.status.lock().failure.as_ref().map(|(_, error)| error.clone())
    }

    /// `patience` is how long the backend may take for one call.
    pub(crate) fn health(&self, patience: Duration) -> Health {
        let status = self.status.lock();
        let mut since = Vec::new();
        let mut problems = Vec::new();
        let hangs = |started: Instant| started.elapsed() > patience && self.background.still_for() > patience;
        if let Some((from, _)) = status.called.filter(|(_, started)| hangs(*started)) {
            since.push(from);
            let reason = format!("the backend has not come back for {patience:?}");
            problems.push(Error::Degraded { reason, source: None });
        }
        for (from, error) in status.failure.iter().chain(status.unencodable.values()) {
            since.push(*from);
            problems.push(error.clone());
        }
        drop(status);
        if let Some((from, error)) = self.background.failure() {
            since.push(from);
            problems.push(error);
        }
        if let Err(dead) = self.check_alive() {
            problems.insert(0, dead);
        }
        if problems.is_empty() {
            return Health::Well;
        }
        Health::Failing { since: since.into_iter().min().unwrap_or_else(SystemTime::now), problems }
    }

    /// A transaction is about to write, and to be sent: before its first value can be seen.
    pub(crate) fn transaction_comes(&self) {
        self.transactions.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn in_hand(&self) -> usize {
        self.in_hand.load(Ordering::Relaxed)
    }

    pub(crate) fn oldest(&self) -> Option<Duration> {
        self.status.lock().oldest.map(|since| since.elapsed())
    }

    /// Somebody waits for a write. Ends a pause of the janitor's, if no more are missing.
    pub(crate) fn joins(&self) {
        let missing = self.missing.fetch_update(Ordering::AcqRel, Ordering::Acquire, |missing| missing.checked_sub(1));
        if missing.is_err() || missing == Ok(1) {
            self.hurry();
        }
    }

    /// How long the last sync took.
    fn last_sync(&self) -> Duration {
        Duration::from_nanos(self.sync.load(Ordering::Relaxed))
    }

    /// How long somebody who waits for a write of his watches for the answer before he sleeps: it is worth it where a sync is
    /// quick. One may be under way, and then the next serves him, after others have come.
    pub(crate) fn watch(&self) -> Duration {
        const QUICK: Duration = Duration::from_micros(500);
        let sync = self.last_sync();
        if sync <= QUICK && !cfg!(shuttle) { 4 * sync } else { Duration::ZERO }
    }

    /// Ends a pause of the janitor's.
    pub(crate) fn hurry(&self) {
        // Full means that it is hurrying already.
        _ = self.urgent.try_send(());
    }

    pub(crate) fn progress(&self) -> u64 {
        self.progress.load(Ordering::Relaxed) + self.background.progress()
    }

    /// Counts what became durable: not the bytes, the occasions.
    pub(crate) fn freed(&self) -> u64 {
        *self.freed.lock()
    }

    /// Writers wait for room: the janitor syncs at once.
    pub(crate) fn starve(&self) {
        self.starved.store(true, Ordering::SeqCst);
        self.hurry();
    }

    /// Waits until more has become durable than `seen`, or something has failed, or for `limit`.
    pub(crate) fn wait_for_room(&self, seen: u64, limit: Duration) {
        let freed = self.freed.lock();
        if *freed == seen {
            let (freed, _) = wait_for(&self.room, freed, limit);
            drop(freed);
        }
    }

    /// Calls the backend, and lets `health` see how long it takes.
    fn calling<R>(&self, call: impl FnOnce() -> R) -> R {
        self.status.lock().called = Some((SystemTime::now(), Instant::now()));
        let done = call();
        self.status.lock().called = None;
        self.progress.fetch_add(1, Ordering::Relaxed);
        done
    }

    fn room_was_made(&self) {
        *self.freed.lock() += 1;
        self.room.notify_all();
    }
}

/// Whoever chooses names could not make these slow: the hash is seeded at random.
type HashMap<K, V> = hashbrown::HashMap<K, V, NameHasher>;
type HashSet<K> = hashbrown::HashSet<K, NameHasher>;

/// What was taken of the member with the key of this number, and is to be stored.
struct Taken {
    at: u32,
    /// Its place among those of the batch.
    codec: u8,
    payload: Payload,
    version: u64,
    deadline: Option<u64>,
    /// What it counts among the bytes not yet durable.
    charge: usize,
}

impl Taken {
    fn new(at: usize, load: Load, charge: usize, codec: u8) -> Taken {
        let Load { payload, version, deadline, .. } = load;
        Taken { at: at as u32, codec, payload, version, deadline, charge }
    }
}

/// Those who wait for writes of theirs in `Immediate` mode. Most often those that are answered together write again at once:
/// unless they are let come before the next sync, two groups take turns, and each sync serves half of them.
#[derive(Debug, Default)]
struct Crowd {
    /// How many there were when some of them were last answered.
    size: usize,
    /// They were waited for in vain: so many times they will not be waited for.
    rest: u32,
    /// How many times it was the last time that this happened.
    rested: u32,
}

impl Crowd {
    /// How long those that are missing are waited for, if a sync takes so long: less than one without them would cost.
    fn patience(&mut self, here: usize, sync: Duration) -> Duration {
        if here >= self.size {
            return Duration::ZERO;
        }
        match self.rest.checked_sub(1) {
            Some(rest) => {
                self.rest = rest;
                Duration::ZERO
            }
            None => sync / 2,
        }
    }

    /// They were waited for, and so many of those that were missing came. If it was less than half of them, they are not
    /// waited for the next time, and then twice as many times.
    fn came(&mut self, came: usize, missing: usize) {
        self.rested = if 2 * came >= missing { 0 } else { (2 * self.rested).clamp(1, 64) };
        self.rest = self.rested;
    }
}

/// Runs until the store closes. A panic ends it too: it is told to all who wait and all who write later.
pub(crate) fn run(core: Arc<Core>, backend: Box<dyn Backend>, inbox: Receiver<Msg>, urgent: Receiver<()>) {
    let Some(link) = core.engine().map(|engine| engine.link.clone()) else { return };
    // Only this thread sets it.
    _ = link.thread.set(thread::current().id());
    let mut janitor = Janitor {
        core,
        link: link.clone(),
        backend,
        inbox,
        urgent,
        fresh: Vec::new(),
        pending: HashMap::default(),
        clears: HashMap::default(),
        transactions: VecDeque::new(),
        late: Vec::new(),
        overtaken: Vec::new(),
        applied: ByKey::default(),
        applied_transactions: Vec::new(),
        applied_clears: HashMap::default(),
        applied_since: None,
        unencodable: HashSet::default(),
        flushes: Vec::new(),
        compacts: Vec::new(),
        close: None,
        stop: None,
        // What was recovered and could not be made durable is tried again at once.
        retry: link.background.unsettled().then(|| (Instant::now(), Duration::ZERO)),
        mark: (Instant::now(), 0),
        drained: None,
        crowd: Crowd::default(),
        stored: 0,
    };
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| janitor.work())) {
        // Only here is it set.
        _ = link.dead.set(panic_message(&*panic));
    }
    // Whoever waits for an answer that is in here is told by its going.
    let ended = catch_unwind(AssertUnwindSafe(|| drop(janitor)));
    drop(ended);
    link.room_was_made();
}

struct Janitor {
    core: Arc<Core>,
    link: Arc<Link>,
    backend: Box<dyn Backend>,
    inbox: Receiver<Msg>,
    urgent: Receiver<()>,
    /// Received, and not looked at yet.
    fresh: Vec<KeyId>,
    /// Offered to the backend without success, or not offered because it is failing: with what each counts among the
    /// bytes not yet durable beyond what its slot counts.
    pending: HashMap<KeyId, usize>,
    clears: HashMap<u32, u64>,
    transactions: VecDeque<Transaction>,
    /// Received out of turn.
    late: Vec<Msg>,
    /// Written again since a transaction that has just been offered, or cleared: they come next.
    overtaken: Vec<KeyId>,
    applied: ByKey,
    applied_transactions: Vec<Transaction>,
    applied_clears: HashMap<u32, u64>,
    /// When the oldest of what is applied and not synced came.
    applied_since: Option<Instant>,
    /// Keys whose values do not encode; `status` has them by name, with the reason.
    unencodable: HashSet<KeyId>,
    flushes: Vec<(Concern, Reply<Result<()>>)>,
    compacts: Vec<Reply<Result<()>>>,
    close: Option<Closing>,
    stop: Option<Reply<Result<()>>>,
    /// After a failure: when to try again, and the wait that led there.
    retry: Option<(Instant, Duration)>,
    /// A moment, and how much of what was in the channel then is still there.
    mark: (Instant, usize),
    /// What is in the channel was sent after this.
    drained: Option<Instant>,
    crowd: Crowd,
    /// Changes made durable, ever.
    stored: usize,
}

impl Janitor {
    fn work(&mut self) {
        while self.receive() {
            if self.must_wait() {
                // Failing, and nobody asks: what came in waits with the rest.
                for key in std::mem::take(&mut self.fresh) {
                    self.pending.entry(key).or_insert(0);
                }
                self.show();
                continue;
            }
            let (round, stored_before) = (Instant::now(), self.stored);
            let mut outcome = Ok(());
            loop {
                if let Err(error) = self.store() {
                    outcome = Err(error);
                    break;
                }
                let is_closing = |closing: &Closing| !closing.decision.is_given_up();
                let ending = self.close.as_ref().is_some_and(is_closing) || self.stop.is_some();
                if !(ending && (self.drain() || !self.fresh.is_empty())) {
                    break;
                }
            }
            if self.sync_is_due() {
                outcome = self.sync().and(outcome);
            }
            self.settle(&outcome);
            // Before the answers: whoever hears that all is durable also sees it.
            self.show();
            if outcome.is_ok() && self.applied.is_empty() && self.link.in_hand() > 0 {
                // Written again during this round, or what does not encode; or the channel was not empty even then.
                self.link.status.lock().oldest = Some(self.drained.map_or(round, |drained| drained.min(round)));
            }
            self.answer_flushes(&outcome);
            self.compact(&outcome);
            if let Some(closing) = self.close.take()
                && self.end(outcome, self.stored - stored_before, closing)
            {
                return;
            }
            if let Some(reply) = self.stop.take() {
                self.close_backend_quietly();
                reply.give(Ok(()));
                return;
            }
        }
    }

    fn engine(&self) -> &crate::core::Engine {
        // It is set before the janitor starts, and never unset.
        match self.core.engine() {
            Some(engine) => engine,
            None => unreachable!("the janitor runs after the store is loaded"),
        }
    }

    // ---- receiving ----

    /// Waits for something to do, lets more of it gather, and takes it. False when nobody can send any more.
    fn receive(&mut self) -> bool {
        if !self.fresh.is_empty() || !self.late.is_empty() {
            // Received while the last batch was put together.
            for message in std::mem::take(&mut self.late) {
                self.take_in(message);
            }
            self.drain();
            return true;
        }
        let mut waited = false;
        let first = match self.listen() {
            Some(message) => Some(message),
            None => {
                waited = true;
                match self.next_due() {
                    None => match self.inbox.recv() {
                        Ok(message) => Some(message),
                        Err(_) => return false,
                    },
                    Some(due) => match self.inbox.recv_timeout(due.saturating_duration_since(Instant::now())) {
                        Ok(message) => Some(message),
                        Err(RecvTimeoutError::Timeout) => None,
                        Err(RecvTimeoutError::Disconnected) => return false,
                    },
                }
            }
        };
        // What is in the channel came after it was last drained; if the janitor has waited since, just now.
        let came = if waited { None } else { self.drained }.unwrap_or_else(Instant::now);
        if let Some(message) = first {
            self.take_in(message);
            if self.immediate() && !self.somebody_waits() {
                // Whoever wrote it is about to wait for it.
                if let Some(message) = self.listen() {
                    self.take_in(message);
                }
                self.drain();
            }
            if !self.somebody_waits() && self.inbox.len() < BATCH_KEYS {
                // Nothing is lost if this is cut short or not: it only makes batches larger.
                _ = self.urgent.recv_timeout(GATHER);
            }
        }
        self.drain();
        self.let_them_come();
        if !(self.fresh.is_empty() && self.clears.is_empty() && self.transactions.is_empty()) {
            self.link.status.lock().oldest.get_or_insert(came);
        }
        true
    }

    fn immediate(&self) -> bool {
        self.core.knobs.durability == Durability::Immediate
    }

    /// What is in the channel. In `Immediate` mode a writer that comes back at once is waited for without sleeping: to
    /// fall asleep and be woken up again takes as long as half a sync.
    fn listen(&self) -> Option<Msg> {
        let mut message = self.inbox.try_recv().ok();
        if self.immediate() && !cfg!(shuttle) {
            let until = Instant::now() + LISTEN;
            while message.is_none() && Instant::now() < until {
                // Whoever is about to write may wait for this processor.
                thread::yield_now();
                message = self.inbox.try_recv().ok();
            }
        }
        message
    }

    /// Waits for the rest of those that were answered together.
    fn let_them_come(&mut self) {
        let here = self.flushes.len();
        let patience = if here > 0 { self.crowd.patience(here, self.link.last_sync()) } else { Duration::ZERO };
        if patience.is_zero() {
            return;
        }
        let (missing, until) = (self.crowd.size - here, Instant::now() + patience);
        while self.flushes.len() < self.crowd.size && self.close.is_none() && self.stop.is_none() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            self.link.missing.store(self.crowd.size - self.flushes.len(), Ordering::Release);
            // Whoever came in between has ended this already, or is in the channel.
            _ = self.urgent.recv_timeout(left);
            self.link.missing.store(0, Ordering::Release);
            self.drain();
        }
        self.crowd.came(self.flushes.len() - here, missing);
    }

    /// When there is something to do even if nothing comes in.
    fn next_due(&self) -> Option<Instant> {
        let retry = self.retry.map(|(at, _)| at);
        let sync = self.applied_since.and_then(|since| since.checked_add(self.sync_after()));
        match (retry, sync) {
            (Some(retry), _) => Some(retry),
            (None, sync) => sync,
        }
    }

    /// After this a sync begins: a little early, for it takes a while to be woken up.
    fn sync_after(&self) -> Duration {
        let after = match self.core.knobs.durability {
            Durability::Buffered => CHECKPOINT,
            Durability::Interval(interval) => interval,
            Durability::Immediate => Duration::ZERO,
        };
        after - after / 64
    }

    /// Something was, and waits for its sync: from when it came.
    fn was_applied(&mut self) {
        if self.applied_since.is_none() {
            self.applied_since = Some(self.link.status.lock().oldest.unwrap_or_else(Instant::now));
        }
    }

    /// Takes what is in the channel, as much as one batch holds. True if there was anything.
    fn drain(&mut self) -> bool {
        let mut any = false;
        while self.fresh.len() < ROUND_KEYS {
            match self.inbox.try_recv() {
                Ok(message) => {
                    any = true;
                    self.take_in(message);
                }
                Err(_) => {
                    self.mark = (Instant::now(), 0);
                    self.drained = Some(self.mark.0);
                    break;
                }
            }
        }
        self.count();
        any
    }

    fn take_in(&mut self, message: Msg) {
        self.mark.1 = self.mark.1.saturating_sub(1);
        if self.mark.1 == 0 {
            self.drained = Some(self.mark.0);
            self.mark = (Instant::now(), self.inbox.len());
        }
        match message {
            Msg::Key(key) => {
                self.link.in_hand.fetch_add(1, Ordering::Relaxed);
                self.fresh.push(key);
            }
            Msg::Clear { collection } => {
                let version = self.engine().registry.by_id(collection).clear.swap(0, Ordering::AcqRel);
                let clear = self.clears.entry(collection).or_insert(version);
                *clear = version.max(*clear);
            }
            Msg::Transaction(transaction) => {
                self.link.transactions.fetch_sub(1, Ordering::SeqCst);
                self.link.in_hand.fetch_add(1, Ordering::Relaxed);
                self.transactions.push_back(transaction);
            }
            Msg::Flush(concern, reply) => self.flushes.push((concern, reply)),
            Msg::Compact(reply) => self.compacts.push(reply),
            Msg::Quarantine(exhibit, reply) => self.quarantine(&exhibit, reply),
            Msg::Close(closing) => self.close = Some(closing),
            Msg::Nudge => {}
            Msg::Stop(reply) => self.stop = Some(reply),
        }
    }

    fn quarantine(&mut self, exhibit: &Exhibit, reply: Reply<Result<PathBuf>>) {
        let change = Change::Put {
            collection: &exhibit.collection,
            member: &exhibit.member,
            version: exhibit.version,
            deadline: None,
            codec: &exhibit.codec,
            value: &exhibit.value,
        };
        reply.give(self.backend.quarantine(&change, &exhibit.reason));
    }

    fn somebody_waits(&self) -> bool {
        !self.flushes.is_empty()
            || !self.compacts.is_empty()
            || self.close.is_some()
            || self.stop.is_some()
            || self.link.starved.load(Ordering::SeqCst)
    }

    /// Failing, not due for another try, and nobody waits for one.
    fn must_wait(&self) -> bool {
        let asked = !self.flushes.is_empty() || self.close.is_some() || self.stop.is_some();
        !asked && self.retry.is_some_and(|(at, _)| Instant::now() < at)
    }

    // ---- storing ----

    /// Offers the backend everything that waits, batch by batch.
    fn store(&mut self) -> Result<()> {
        let asked = !self.flushes.is_empty() || self.close.is_some() || self.stop.is_some();
        let mut keys: Vec<KeyId> = std::mem::take(&mut self.fresh);
        keys.extend(self.pending.keys().cloned());
        if asked {
            // What did not encode may by now.
            keys.extend(self.unencodable.iter().cloned());
        }
        let mut outcome = Ok(());
        let (mut keys, mut at) = (by_place(keys), 0);
        let mut again = true;
        loop {
            if at == keys.len() && !self.overtaken.is_empty() {
                // Once more: whoever waits may wait for one of them. What is overtaken then was sent after the waiting began.
                let overtaken = std::mem::take(&mut self.overtaken);
                if !std::mem::replace(&mut again, false) {
                    self.fresh.extend(overtaken);
                    break;
                }
                (keys, at) = (by_place(overtaken), 0);
            }
            if at == keys.len() && self.clears.is_empty() && self.transactions.is_empty() {
                break;
            }
            if let Err(error) = self.store_batch(&mut keys, &mut at) {
                outcome = Err(error);
                for key in keys.drain(at..).chain(std::mem::take(&mut self.overtaken)) {
                    self.pending.entry(key).or_insert(0);
                }
                break;
            }
        }
        self.count();
        outcome
    }

    /// Clears the marks of as many of these keys as one batch holds, and calls `each` with what they marked, one after the
    /// other. Says how many that were.
    fn take(
        &self,
        keys: &[KeyId],
        collections: &mut HashMap<u32, Arc<Shelves>>,
        buffer: &mut Vec<u8>,
        mut each: impl FnMut(usize, Option<Load>),
    ) -> usize {
        let (mut done, mut bytes) = (0, 0);
        for some in keys[..keys.len().min(BATCH_KEYS)].chunk_by(|a, b| a.collection == b.collection) {
            let id = some[0].collection;
            let shelves = collections.entry(id).or_insert_with(|| self.engine().registry.by_id(id));
            let (start, mut came) = (done, 0);
            let mut each = |load: Option<Load>| {
                let at = done;
                bytes += keys[at].member.len() + load.as_ref().map_or(0, |load| load.payload.size());
                each(at, load);
                done += 1;
                bytes < BATCH_BYTES
            };
            shelves.settled(|shelf| shelf.take(some, &mut came, buffer, &mut each));
            if done < start + some.len() || bytes >= BATCH_BYTES {
                break;
            }
        }
        done
    }

    /// Offers the backend one batch, of the keys from number `at` on, which counts those that it came to.
    fn store_batch(&mut self, keys: &mut [KeyId], at: &mut usize) -> Result<()> {
        let core = self.core.clone();
        let Some(engine) = core.engine() else { return Ok(()) };
        let keys = &mut keys[*at..];
        // The names that the changes borrow. Most batches touch few collections, one after the other.
        let mut collections = HashMap::default();
        for &id in self.clears.keys() {
            collections.entry(id).or_insert_with(|| engine.registry.by_id(id));
        }
        let mut buffer = Vec::new();
        let mut taken = Vec::with_capacity(keys.len().min(BATCH_KEYS));
        let all_are_new = self.pending.is_empty() && self.unencodable.is_empty();
        // What the bytes not yet durable change by: told once for the batch, for it is where all writers meet.
        let mut charged = 0;
        let mut codecs: Vec<(u8, Arc<str>)> = Vec::new();
        let mut other = Vec::new();
        *at += self.take(keys, &mut collections, &mut buffer, |at, load| match load {
            Some(load) if all_are_new && load.dirty && !matches!(load.payload, Payload::Unencodable(_)) => {
                let charge = keys[at].member.len() + load.payload.size();
                charged += charge as isize - load.charge as isize;
                let codec = number_of_codec(&mut codecs, load.codec_id, engine);
                taken.push(Taken::new(at, load, charge, codec));
            }
            load => other.push((at, load)),
        });
        for (at, load) in other {
            let key = &keys[at];
            let held_before = self.pending.remove(key);
            let retried = held_before.is_some() || self.unencodable.contains(key);
            let held_before = held_before.unwrap_or(0) as isize;
            let Some(load) = load else {
                // Cleared since: the clear has its own message.
                charged -= held_before;
                self.encodes(key);
                continue;
            };
            if !load.dirty && !retried {
                continue;
            }
            if let Payload::Unencodable(_) = load.payload {
                charged -= held_before + load.charge as isize;
                let codec = engine.codec_name(load.codec_id);
                let collection = collections[&key.collection].name();
                self.does_not_encode(key.clone(), collection, &codec, load.payload);
                continue;
            }
            self.encodes(key);
            let charge = key.member.len() + load.payload.size();
            charged += charge as isize - (held_before + load.charge as isize);
            let codec = number_of_codec(&mut codecs, load.codec_id, engine);
            taken.push(Taken::new(at, load, charge, codec));
        }
        engine.adjust_unsaved(charged);
        if charged < 0 {
            self.link.room_was_made();
        }

        // A value that was taken may be newer than a transaction's that is still in the channel, or be a transaction's
        // own. The transaction goes first, whole.
        self.receive_transactions();
        let covered = match self.store_transactions(engine) {
            Ok(covered) => covered,
            Err(error) => {
                for Taken { at, charge, .. } in taken {
                    *self.pending.entry(std::mem::take(&mut keys[at as usize])).or_insert(0) += charge;
                }
                return Err(error);
            }
        };
        // A clear that came with them may have removed what was taken, and is stored first. What it left behind of a member
        // that was waiting has its own version.
        let clears = std::mem::take(&mut self.clears);
        if !clears.is_empty() {
            // What does not encode may be gone with one.
            let cleared = self.unencodable.iter().filter(|key| clears.contains_key(&key.collection));
            self.overtaken.extend(cleared.cloned());
        }
        if !covered.is_empty() || !clears.is_empty() {
            taken.retain(|Taken { at, version, charge, .. }| {
                let key = &keys[*at as usize];
                let is_over = covered.get(key).is_some_and(|newest| version <= newest)
                    || clears.get(&key.collection).is_some_and(|clear| version < clear);
                if is_over {
                    engine.adjust_unsaved(-(*charge as isize));
                }
                !is_over
            });
        }

        for &id in clears.keys() {
            // It may have come with the transactions.
            collections.entry(id).or_insert_with(|| engine.registry.by_id(id));
        }
        let mut batch = Vec::with_capacity(clears.len() + taken.len());
        for (id, version) in &clears {
            batch.push(Change::Clear { collection: collections[id].name(), version: *version });
        }
        let mut named: Option<(u32, &str)> = None;
        for &Taken { at, codec, ref payload, version, deadline, .. } in &taken {
            let key = &keys[at as usize];
            // They come collection by collection.
            let (_, collection) = match named {
                Some(same) if same.0 == key.collection => same,
                _ => *named.insert((key.collection, collections[&key.collection].name())),
            };
            let (member, codec) = (key.member.as_str(), &codecs[usize::from(codec)].1);
            batch.push(match payload {
                Payload::Shared(value) => Change::Put { collection, member, version, deadline, codec, value },
                Payload::Encoded(range) => {
                    let value = &buffer[range.clone()];
                    Change::Put { collection, member, version, deadline, codec, value }
                }
                Payload::Gone | Payload::Unencodable(_) => Change::Delete { collection, member, version },
            });
        }
        if batch.is_empty() {
            return Ok(());
        }
        let applied = self.link.calling(|| self.backend.apply(&batch));
        let offered_changes = batch.len();
        drop(batch);
        let (mut all, some) = match applied {
            Ok(()) => (None, Vec::new()),
            Err(rejected) => (rejected.all, rejected.some),
        };
        if let Some((_, error)) = some.iter().find(|(index, _)| *index >= offered_changes) {
            // It names a change that was not in the batch: who knows which it meant.
            all = Some(Box::new(error.clone()));
        }
        let failed: HashSet<usize> = some.iter().map(|(index, _)| *index).collect();
        let is_failed = |index: usize| all.is_some() || failed.contains(&index);
        let offset = clears.len();
        // In `Buffered` mode what the system has is at risk no more.
        let buffered = self.core.knobs.durability == Durability::Buffered;
        let mut handed = 0;
        for (index, (id, version)) in clears.into_iter().enumerate() {
            let waiting = if is_failed(index) { &mut self.clears } else { &mut self.applied_clears };
            let clear = waiting.entry(id).or_insert(version);
            *clear = version.max(*clear);
        }
        for (index, Taken { at, payload, version, mut charge, .. }) in taken.into_iter().enumerate() {
            let key = std::mem::take(&mut keys[at as usize]);
            if is_failed(offset + index) {
                *self.pending.entry(key).or_insert(0) += charge;
            } else {
                let deleted = matches!(payload, Payload::Gone);
                let charge = if buffered {
                    handed += std::mem::take(&mut charge);
                    0
                } else {
                    charge
                };
                let applied = Applied { version, deleted, charge };
                // What it replaces is at risk no more.
                handed += self.applied.insert(key, applied).map_or(0, |older| older.charge);
            }
        }
        if handed > 0 {
            engine.adjust_unsaved(-(handed as isize));
            if buffered {
                self.link.room_was_made();
            }
        }
        if !self.applied.is_empty() || !self.applied_clears.is_empty() {
            self.was_applied();
        }
        match all.map(|error| *error).or_else(|| some.into_iter().next().map(|(_, error)| error)) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Takes what is in the channel by now, if there are transactions in it: what was sent before a value that has been
    /// taken was written is there.
    fn receive_transactions(&mut self) {
        let mut again = true;
        while std::mem::take(&mut again) && self.link.transactions.load(Ordering::SeqCst) > 0 {
            let mut left = self.inbox.len();
            while left > 0
                && let Ok(message) = self.inbox.try_recv()
            {
                // It says only now which the last one was, and a transaction may have been sent before that.
                again |= matches!(message, Msg::Clear { .. });
                match message {
                    // They wait for keys of this drain, which come with the next batch.
                    Msg::Flush(..) | Msg::Compact(_) | Msg::Close(_) | Msg::Stop(_) => self.late.push(message),
                    message => self.take_in(message),
                }
                left -= 1;
            }
        }
    }

    /// Offers the transactions to the backend, in their order. Returns what they have written.
    fn store_transactions(&mut self, engine: &crate::core::Engine) -> Result<HashMap<KeyId, u64>> {
        let mut covered = HashMap::default();
        while !self.transactions.is_empty() {
            let Some(transaction) = self.transactions.front() else { break };
            let shelves: Vec<_> =
                transaction.writes.iter().map(|write| engine.registry.by_id(write.collection)).collect();
            let codecs: Vec<_> = transaction.writes.iter().map(|write| engine.codec_name(write.codec)).collect();
            let changes: Vec<Change<'_>> = transaction
                .writes
                .iter()
                .zip(shelves.iter().zip(&codecs))
                .map(|(write, (shelves, codec))| {
                    let (collection, member, version) = (shelves.name(), write.member.as_str(), write.version);
                    let deadline = write.deadline;
                    match &write.value {
                        Some(value) => Change::Put { collection, member, version, deadline, codec, value },
                        None => Change::Delete { collection, member, version },
                    }
                })
                .collect();
            self.link.calling(|| self.backend.apply_transaction(&changes))?;
            drop(changes);
            let Some(transaction) = self.transactions.pop_front() else { break };
            for (write, shelves) in transaction.writes.iter().zip(shelves) {
                let key = shelves.key(write.member.clone());
                // The mark is the transaction's, or was there before it: whoever writes from now on sends the key.
                let taken = shelves.settled(|shelf| shelf.unmark(&write.member)).flatten();
                // What is newer and does not encode has been taken, or is overtaken.
                let is_over = taken.as_ref().is_some_and(|mark| mark.version > write.version);
                let mut charge = 0;
                if let Some(mark) = taken {
                    charge = mark.charge;
                    if is_over && mark.dirty {
                        *self.pending.entry(key.clone()).or_insert(0) += std::mem::take(&mut charge);
                        self.overtaken.push(key.clone());
                    }
                }
                let applied = Applied { version: write.version, deleted: write.value.is_none(), charge };
                if let Some(older) = self.applied.insert(key.clone(), applied) {
                    engine.adjust_unsaved(-(older.charge as isize));
                }
                if !is_over {
                    self.encodes(&key);
                }
                covered.insert(key, write.version);
            }
            self.applied_transactions.push(transaction);
            self.was_applied();
        }
        Ok(covered)
    }

    fn encodes(&mut self, key: &KeyId) {
        if !self.unencodable.is_empty() && self.unencodable.remove(key) {
            let named = self.name(key);
            self.link.status.lock().unencodable.remove(&named);
        }
    }

    /// As people write it.
    fn name(&self, key: &KeyId) -> String {
        key::join(self.engine().registry.by_id(key.collection).name(), &key.member)
    }

    fn does_not_encode(&mut self, key: KeyId, collection: &str, codec: &str, payload: Payload) {
        let Payload::Unencodable(source) = payload else { return };
        let named = key::join(collection, &key.member);
        let error = Error::codec("encode", named.clone(), codec, source);
        let mut status = self.link.status.lock();
        let since = status.unencodable.get(&named).map_or_else(SystemTime::now, |(since, _)| *since);
        status.unencodable.insert(named, (since, error));
        drop(status);
        self.unencodable.insert(key);
    }

    // ---- syncing ----

    fn sync_is_due(&self) -> bool {
        if self.applied.is_empty() && self.applied_clears.is_empty() {
            let asked = !self.flushes.is_empty() || self.close.is_some() || self.retry.is_some();
            return asked && self.link.background.unsettled();
        }
        self.somebody_waits() || self.applied_since.is_some_and(|since| since.elapsed() >= self.sync_after())
    }

    /// Makes durable what was applied. What was not may be lost: it is offered again.
    fn sync(&mut self) -> Result<()> {
        let core = self.core.clone();
        let Some(engine) = core.engine() else { return Ok(()) };
        let began = Instant::now();
        let synced = self.link.calling(|| self.backend.sync());
        self.link.sync.store(began.elapsed().as_nanos() as u64, Ordering::Relaxed);
        self.applied_since = None;
        let clears = std::mem::take(&mut self.applied_clears);
        let mut transactions = std::mem::take(&mut self.applied_transactions);
        if let Err(error) = synced {
            transactions.extend(self.transactions.drain(..));
            self.transactions = transactions.into();
            for (id, version) in clears {
                let clear = self.clears.entry(id).or_insert(version);
                *clear = version.max(*clear);
            }
            for (key, done) in self.applied.drain() {
                *self.pending.entry(key).or_insert(0) += done.charge;
            }
            return Err(error);
        }
        let mut freed = transactions.iter().map(|transaction| transaction.charge).sum::<usize>();
        self.stored += self.applied.len() + clears.len();
        for (key, done) in self.applied.drain() {
            freed += done.charge;
            if done.deleted {
                let shelves = engine.registry.by_id(key.collection);
                shelves.settled(|shelf| shelf.bury(&key.member, done.version));
            }
        }
        engine.adjust_unsaved(-(freed as isize));
        self.link.starved.store(false, Ordering::SeqCst);
        self.link.room_was_made();
        Ok(())
    }

    // ---- telling ----

    /// Notes success or failure for `health`, and when to try again.
    fn settle(&mut self, outcome: &Result<()>) {
        let mut status = self.link.status.lock();
        match outcome {
            Err(error) => {
                let wait = self.retry.map_or(FIRST_RETRY, |(_, last)| (last * 2).clamp(FIRST_RETRY, LAST_RETRY));
                self.retry = Some((Instant::now() + wait, wait));
                let since = status.failure.take().map_or_else(SystemTime::now, |(since, _)| since);
                status.failure = Some((since, error.clone()));
                self.link.failing.store(true, Ordering::Relaxed);
                self.link.starved.store(false, Ordering::SeqCst);
            }
            Ok(()) if self.pending.is_empty() && self.clears.is_empty() && self.transactions.is_empty() => {
                self.retry = None;
                status.failure = None;
                self.link.failing.store(false, Ordering::Relaxed);
            }
            // Only written again meanwhile: it comes with the next round, at once.
            Ok(()) => self.retry = Some((Instant::now(), Duration::ZERO)),
        }
        drop(status);
        if outcome.is_err() {
            // Writers that wait for room learn that there will be none.
            self.link.room_was_made();
        }
    }

    fn answer_flushes(&mut self, outcome: &Result<()>) {
        if self.flushes.is_empty() {
            return;
        }
        self.crowd.size = if self.immediate() { self.engine().waiting_writers() } else { 0 };
        for (concern, reply) in std::mem::take(&mut self.flushes) {
            reply.give(self.answer(concern, outcome));
        }
    }

    /// Has the backend compact what there is, which answers by itself.
    fn compact(&mut self, outcome: &Result<()>) {
        if outcome.is_ok() && !self.applied.is_empty() {
            return;
        }
        for reply in std::mem::take(&mut self.compacts) {
            match outcome {
                Ok(()) => self.backend.compact(Box::new(move |done| reply.give(done))),
                Err(error) => reply.give(Err(error.clone())),
            }
        }
    }

    fn answer(&self, concern: Concern, outcome: &Result<()>) -> Result<()> {
        match concern {
            Concern::Everything => outcome.clone().and_then(|()| self.all_encode()),
            // One that waits may hold the newest value of any member.
            _ if !self.transactions.is_empty() => outcome.clone(),
            Concern::Transaction => Ok(()),
            Concern::Clear { collection } if self.clears.contains_key(&collection) => outcome.clone(),
            // It may have found that all had been deleted already.
            Concern::Clear { collection } if self.pending.keys().any(|key| key.collection == collection) => {
                outcome.clone()
            }
            Concern::Clear { .. } => Ok(()),
            // The clear may have taken the place of what was written.
            Concern::Member { collection, .. } if self.clears.contains_key(&collection) => outcome.clone(),
            Concern::Member { .. } if self.unencodable.is_empty() && self.pending.is_empty() => Ok(()),
            Concern::Member { collection, member } => {
                let key = self.engine().registry.by_id(collection).key(member);
                if self.unencodable.contains(&key) {
                    let named = self.name(&key);
                    self.link.status.lock().unencodable.get(&named).map_or(Ok(()), |(_, error)| Err(error.clone()))
                } else if self.pending.contains_key(&key) {
                    outcome.clone()
                } else {
                    Ok(())
                }
            }
        }
    }

    fn all_encode(&self) -> Result<()> {
        match self.link.status.lock().unencodable.values().next() {
            Some((_, error)) => Err(error.clone()),
            None => Ok(()),
        }
    }

    fn count(&self) {
        let unencodable = self.unencodable.len();
        let in_hand =
            self.fresh.len() + self.pending.len() + self.clears.len() + self.transactions.len() + self.applied.len();
        self.link.in_hand.store(in_hand + self.applied_clears.len() + unencodable, Ordering::Relaxed);
    }

    fn show(&mut self) {
        self.count();
        if self.link.in_hand() == 0 {
            self.link.status.lock().oldest = None;
        }
    }

    // ---- ending ----

    /// Closes the backend if everything is stored, and answers. True when this is the end.
    fn end(&mut self, outcome: Result<()>, flushed: usize, closing: Closing) -> bool {
        let ready = outcome.and_then(|()| self.all_encode()).and_then(|()| self.backend.settle());
        if ready.is_ok() && !closing.decision.change(Decision::NONE, Decision::END) {
            // Given up: the store lives on, and somebody may be writing to it already.
            return false;
        }
        let closed = ready.and_then(|()| {
            let counter = self.engine().version();
            self.backend.close(counter)
        });
        if closed.is_ok() {
            self.engine().waiter.ends_well();
        }
        let ended = closed.is_ok() || !closing.decision.fail();
        if ended {
            // The directory's lock goes with it, before anybody hears that the store is closed.
            self.backend = Box::new(crate::backend::Memory);
            self.show();
        }
        closing.reply.give(closed.map(|()| flushed));
        ended
    }

    fn close_backend_quietly(&mut self) {
        let stored = self.pending.is_empty() && self.clears.is_empty() && self.transactions.is_empty();
        if stored && self.applied.is_empty() {
            let counter = self.engine().version();
            // There is nobody left to tell.
            _ = self.backend.close(counter);
        }
        self.backend = Box::new(crate::backend::Memory);
    }
}

/// Those of one shard together, and each once. It may have been sent twice: who retries clears the mark of a later write, whose
/// key is on its way, and so does a transaction that is stored; then the write after that sends another.
fn by_place(mut keys: Vec<KeyId>) -> Vec<KeyId> {
    if keys.len() < 2 {
        return keys;
    }
    let mut order: Vec<(u64, u32)> = (0..).zip(&keys).map(|(index, key)| (key.order(), index)).collect();
    order.sort_unstable();
    let mut sorted: Vec<KeyId> = Vec::with_capacity(keys.len());
    for (place, index) in order {
        let key = std::mem::take(&mut keys[index as usize]);
        // Others may have the same place.
        let is_there = sorted.iter().rev().take_while(|before| before.order() == place).any(|before| *before == key);
        if !is_there {
            sorted.push(key);
        }
    }
    sorted
}

/// The place of a codec among those that a batch has.
fn number_of_codec(codecs: &mut Vec<(u8, Arc<str>)>, id: u8, engine: &crate::core::Engine) -> u8 {
    let known = codecs.iter().position(|(known, _)| *known == id);
    let number = known.unwrap_or_else(|| {
        codecs.push((id, engine.codec_name(id)));
        codecs.len() - 1
    });
    // There are no more of them than numbers of codecs.
    number as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_came_twice_is_stored_once() {
        let key = |collection, bits, member: &str| KeyId { collection, bits, member: Member::from(member) };
        for times in [1, 2, 50] {
            // Some have the same hash.
            let keys: Vec<_> = (0..times).flat_map(|_| (0..20).map(|n| key(n % 2, n / 4, &n.to_string()))).collect();
            let sorted = by_place(keys);
            assert!(sorted.is_sorted_by_key(KeyId::order));
            let mut members: Vec<u32> = sorted.iter().map(|key| key.member.parse().unwrap()).collect();
            members.sort_unstable();
            assert_eq!(members, (0..20).collect::<Vec<_>>());
        }
        assert!(by_place(Vec::new()).is_empty());
    }

    #[test]
    fn a_crowd_is_waited_for_as_long_as_it_comes() {
        let sync = Duration::from_micros(200);
        let mut crowd = Crowd { size: 16, ..Crowd::default() };
        // All are here.
        assert_eq!(crowd.patience(16, sync), Duration::ZERO);
        for _ in 0..100 {
            assert_eq!(crowd.patience(8, sync), sync / 2);
            crowd.came(4, 8);
        }
        // It does not come any more: it is waited for ever more seldom.
        for rest in [1, 2, 4, 8, 16, 32, 64, 64] {
            assert_eq!(crowd.patience(8, sync), sync / 2);
            crowd.came(3, 8);
            for _ in 0..rest {
                assert_eq!(crowd.patience(8, sync), Duration::ZERO);
            }
        }
        // It is back.
        assert_eq!(crowd.patience(1, sync), sync / 2);
        crowd.came(15, 15);
        assert_eq!(crowd.patience(1, sync), sync / 2);
    }
}
