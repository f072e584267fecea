//! What every handle of a store shares: its life, the map, and what a write owes to the janitor.

use std::any::Any;
use std::cell::Cell;
use std::collections::HashMap;
use std::hash::BuildHasher;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::answer::{Answer, Unanswered, question};
use crate::apart::Apart;
use crate::backend::backup::back_up;
use crate::backend::{Backend, Change, Inflow, Layout, Loader, Progress, Quarantined, Sink, Stage};
use crate::background::Population;
use crate::clock::Clock;
use crate::codec;
use crate::error::{Error, Result};
use crate::expiry::Agenda;
use crate::fs::Native;
use crate::future::{self, Waiter};
use crate::janitor::{self, Concern, Link, Msg};
use crate::key::{self, MAX_VALUE};
use crate::map::{KeyId, Ledger, MAX_VERSION, Named, Refused, Registry, Stamp, Told, Watching};
use crate::options::{Durability, Knobs, Options};
use crate::rare::Rare;
use crate::report::{BackupReport, CloseReport, LoadReport};
use crate::shelf::{Record, Shelves, Stop};
use crate::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Mutex, MutexGuard, NameHasher, Sender, bounded, thread};
use crate::value::{Member, Value};
use crate::watch::{After, Holding, Watches};

/// The states of a store's life, in the order in which they follow each other; a load that fails goes back to
/// `NEW`, a close that fails to `OPEN`.
mod life {
    pub(super) const NEW: u8 = 0;
    pub(super) const LOADING: u8 = 1;
    pub(super) const OPEN: u8 = 2;
    pub(super) const CLOSING: u8 = 3;
    pub(super) const CLOSED: u8 = 4;
}

/// How often somebody who waits looks whether anything moves.
const LOOK: Duration = Duration::from_millis(100);

/// How long the drop of the last handle lets the files follow the journal. What is left is left to the next load.
const LEAVE_AFTER: Duration = Duration::from_secs(1);

type OnProgress = Box<dyn FnMut(Progress) + Send>;

pub(crate) struct Core {
    /// Of the embedded backend, and of copies.
    layout: Layout,
    pub(crate) path: PathBuf,
    pub(crate) knobs: Knobs,
    life: AtomicU8,
    /// Until the store is loaded.
    backend: Mutex<Option<Box<dyn Backend>>>,
    on_progress: Mutex<Option<OnProgress>>,
    engine: OnceLock<Engine>,
    clock: Arc<Clock>,
    janitor: Mutex<Option<thread::JoinHandle<()>>>,
}

/// What there is once the store is loaded.
pub(crate) struct Engine {
    pub(crate) registry: Registry<Shelves>,
    pub(crate) clock: Arc<Clock>,
    pub(crate) agenda: Arc<Agenda>,
    pub(crate) watches: Arc<Watches>,
    pub(crate) waiter: Arc<Waiter>,
    hasher: NameHasher,
    codecs: Codecs,
    /// The number of the last write.
    version: Apart<AtomicU64>,
    /// Bytes written and not yet durable.
    unsaved: Apart<AtomicUsize>,
    /// `None` when nothing is behind the map.
    outbox: Option<Sender<Msg>>,
    pub(crate) link: Arc<Link>,
    report: Mutex<LoadReport>,
    /// See [`Ledger::cut`].
    cut: AtomicU64,
    /// Held by whoever copies the store.
    copying: Mutex<()>,
}

/// A copy of the store as it was at one moment, being made.
struct Cut<'a> {
    engine: &'a Engine,
    copying: Option<MutexGuard<'a, ()>>,
}

impl Drop for Cut<'_> {
    fn drop(&mut self) {
        self.engine.cut.store(0, Ordering::SeqCst);
        // What was kept may be the last of the caller's values: it is dropped with nothing locked.
        let kept = self.engine.take_all_kept();
        drop(self.copying.take());
        drop(kept);
    }
}

/// The names of codecs, by the small number that a member's stamp has room for.
struct Codecs(Mutex<Vec<Arc<str>>>);

impl Codecs {
    fn new() -> Codecs {
        Codecs(Mutex::new(vec![codec::RAW.into()]))
    }

    fn id(&self, name: &str) -> Result<u8> {
        let invalid = |rule| Err(Error::InvalidKey { key: name.to_owned(), rule });
        if !codec::is_codec_name(name) {
            return invalid("a codec's name is 1 to 32 characters of a-z, 0-9, - and _");
        }
        let mut names = self.0.lock();
        if let Some(id) = names.iter().position(|known| **known == *name) {
            return Ok(id as u8);
        }
        if names.len() > usize::from(u8::MAX) {
            return invalid("a store knows at most 255 codecs");
        }
        names.push(name.into());
        Ok((names.len() - 1) as u8)
    }

    fn name(&self, id: u8) -> Arc<str> {
        self.0.lock()[usize::from(id)].clone()
    }
}

impl Engine {
    fn new(outbox: Option<Sender<Msg>>, link: Arc<Link>, clock: Arc<Clock>) -> Engine {
        let hasher = NameHasher::default();
        Engine {
            registry: Registry::new(hasher.clone()),
            agenda: Agenda::new(clock.clone()),
            watches: Arc::default(),
            waiter: Arc::default(),
            clock,
            hasher,
            codecs: Codecs::new(),
            version: Apart(AtomicU64::new(0)),
            unsaved: Apart(AtomicUsize::new(0)),
            outbox,
            link,
            report: Mutex::new(LoadReport::default()),
            cut: AtomicU64::new(0),
            copying: Mutex::new(()),
        }
    }

    /// Takes in what a backend has, and how far its counter is.
    fn load(
        backend: &mut dyn Backend,
        outbox: Option<Sender<Msg>>,
        link: Link,
        clock: Arc<Clock>,
        on_progress: &mut Option<OnProgress>,
        started: Instant,
    ) -> Result<(Engine, LoadReport, u64)> {
        let engine = Engine::new(outbox, Arc::new(link), clock);
        let intake = Intake {
            engine: &engine,
            quarantined: Mutex::new(Vec::new()),
            replayed: AtomicUsize::new(0),
            removed: Mutex::new(Vec::new()),
            cleared: Mutex::new(HashMap::new()),
            on_progress: Mutex::new(on_progress.take()),
        };
        let loaded = backend.load(&Loader { sink: &intake, background: engine.link.background.clone() });
        let Intake { quarantined, on_progress: callback, replayed, .. } = intake;
        *on_progress = std::mem::take(&mut *callback.lock());
        let quarantined = std::mem::take(&mut *quarantined.lock());
        let counter = loaded?;
        if counter > MAX_VERSION {
            return Err(Error::backend("load", format!("its counter {counter} is above 2^53 - 1")));
        }
        engine.version.0.fetch_max(counter, Ordering::Relaxed);
        let (members, collections, _) = engine.tally();
        let (replayed, elapsed) = (replayed.into_inner(), started.elapsed());
        let report = LoadReport { members, collections, replayed, quarantined, elapsed };
        *engine.report.lock() = report.clone();
        let counter = engine.version();
        Ok((engine, report, counter))
    }

    /// All that a backend has, in RAM, and the highest number in use. Nothing of it expires.
    pub(crate) fn read(backend: &mut dyn Backend) -> Result<(Engine, u64)> {
        let clock = Arc::new(Clock::of_system());
        let loaded = Engine::load(backend, None, Link::new().0, clock, &mut None, Instant::now());
        loaded.map(|(engine, _, counter)| (engine, counter))
    }

    /// Calls `found` with the collection, the codec, and each member. Nothing is locked meanwhile. No two at a time.
    pub(crate) fn walk(&self, mut found: impl FnMut(&str, &Arc<str>, Record) -> Result<()>) -> Result<()> {
        let mut codec = (0, self.codec_name(0));
        for shelves in self.registry.all() {
            let mut cursor = 0;
            loop {
                let mut records = Vec::new();
                let next = shelves.settled(|shelf| shelf.records(cursor, &mut records)).flatten();
                for record in records {
                    if codec.0 != record.codec_id {
                        codec = (record.codec_id, self.codec_name(record.codec_id));
                    }
                    found(shelves.name(), &codec.1, record)?;
                }
                match next {
                    Some(next) => cursor = next,
                    None => break,
                }
            }
        }
        Ok(())
    }

    /// Calls `found` with the collection, the codec, and each member as it was at one moment. Writers go on meanwhile, and what they replace is kept until it was found. Returns the number of the moment.
    pub(crate) fn walk_at_once(&self, mut found: impl FnMut(&str, &Arc<str>, Record) -> Result<()>) -> Result<u64> {
        let _cut = Cut { engine: self, copying: Some(self.copying.lock()) };
        drop(self.take_all_kept());
        // From here on what is replaced is kept. Whoever gets a number after the next one sees that.
        self.cut.store(u64::MAX, Ordering::SeqCst);
        let moment = self.version.0.fetch_add(1, Ordering::AcqRel) + 1;
        self.cut.store(moment, Ordering::SeqCst);
        self.walk(
            |collection, codec, record| {
                if record.version <= moment { found(collection, codec, record) } else { Ok(()) }
            },
        )?;
        let mut failed = Ok(());
        self.each_kept(moment, |collection, record| {
            if failed.is_ok() {
                failed = found(collection, &self.codec_name(record.codec_id), record);
            }
        });
        failed.map(|()| moment)
    }

    /// Nobody copies the store any more, or somebody is about to. What comes back is to be dropped.
    fn take_all_kept(&self) -> Vec<Box<dyn Any>> {
        let mut kept = Vec::new();
        for shelves in self.registry.all() {
            kept.push(crate::shelf::AnyShelf::take_all_kept(&shelves.raw));
            kept.extend(shelves.typed.get().map(|typed| typed.take_all_kept()));
        }
        kept
    }

    fn each_kept(&self, moment: u64, mut found: impl FnMut(&str, Record)) {
        for shelves in self.registry.all() {
            let mut kept = Vec::new();
            crate::shelf::AnyShelf::kept(&shelves.raw, moment, &mut kept);
            if let Some(typed) = shelves.typed.get() {
                typed.kept(moment, &mut kept);
            }
            kept.into_iter().for_each(|record| found(shelves.name(), record));
        }
    }

    /// The collection of that name, made if there is none.
    #[inline]
    pub(crate) fn shelves(&self, name: &str) -> &Arc<Shelves> {
        self.registry.get_or_create(name, |id| Shelves::new(name, id, self.hasher.clone(), self.clock.clone()))
    }

    pub(crate) fn hasher(&self) -> NameHasher {
        self.hasher.clone()
    }

    pub(crate) fn report(&self) -> LoadReport {
        self.report.lock().clone()
    }

    /// Puts what was loaded with a deadline on the agenda, and says how much that is.
    fn schedule_all(&self) -> usize {
        let mut count = 0;
        for shelves in self.registry.all() {
            crate::shelf::AnyShelf::each_deadline(&shelves.raw, &mut |member, deadline| {
                self.agenda.set(shelves.id, member, None, Some(deadline));
                count += 1;
            });
        }
        count
    }

    /// Something was put aside after the load.
    pub(crate) fn add_quarantined(&self, what: Quarantined) {
        self.report.lock().quarantined.push(what);
    }

    pub(crate) fn codec_id(&self, name: &str) -> Result<u8> {
        self.codecs.id(name)
    }

    pub(crate) fn codec_name(&self, id: u8) -> Arc<str> {
        self.codecs.name(id)
    }

    pub(crate) fn version(&self) -> u64 {
        self.version.0.load(Ordering::Relaxed)
    }

    /// The number of the last write, for whoever is about to look at what was written up to it.
    pub(crate) fn moment(&self) -> u64 {
        // Nothing that is read after this is read before it.
        self.version.0.load(Ordering::Acquire)
    }

    pub(crate) fn unsaved(&self) -> usize {
        self.unsaved.0.load(Ordering::Relaxed)
    }

    /// Corrects the bytes not yet durable, whatever the bound says.
    pub(crate) fn adjust_unsaved(&self, delta: isize) {
        if delta >= 0 {
            self.unsaved.0.fetch_add(delta as usize, Ordering::Relaxed);
        } else {
            self.unsaved.0.fetch_sub(delta.unsigned_abs(), Ordering::Relaxed);
        }
    }

    pub(crate) fn send(&self, message: Msg) -> bool {
        self.outbox.as_ref().is_some_and(|outbox| outbox.send(message).is_ok())
    }

    #[inline]
    pub(crate) fn persists(&self) -> bool {
        self.outbox.is_some()
    }

    /// Threads that wait for a write of theirs.
    pub(crate) fn waiting_writers(&self) -> usize {
        self.link.background.waiters()
    }

    /// Keys that wait for the janitor.
    pub(crate) fn waiting(&self) -> usize {
        self.outbox.as_ref().map_or(0, Sender::len)
    }

    pub(crate) fn tally(&self) -> (usize, usize, u64) {
        let (mut members, mut collections, mut bytes) = (0, 0, 0);
        for shelves in self.registry.all() {
            let (live, size) = shelves.settled(|shelf| shelf.tally()).unwrap_or_default();
            members += live;
            collections += usize::from(live > 0);
            bytes += size;
        }
        (members, collections, bytes)
    }

    /// What there is, as it is stored.
    pub(crate) fn population(&self) -> Population {
        /// How many values of the caller's types are encoded to see what they take, and how many of one place; fewer if
        /// they take so many bytes.
        const SAMPLE: u64 = 256;
        const AT_ONCE: u64 = 8;
        const ENOUGH: usize = 4 << 20;
        /// What is encoded while one shard is looked at, about.
        const PER_LOOK: u64 = 256;
        /// About as many members are in a shard.
        const SHARD: u64 = 1000;
        let mut found = Population::default();
        // By collection: how many values there are of which it is not known what they take, up to its last.
        let mut unknown: Vec<(u64, Arc<Shelves>)> = Vec::new();
        let mut last = 0;
        for shelves in self.registry.all() {
            let (members, bytes, values) = shelves.settled(|shelf| shelf.stored()).unwrap_or_default();
            found.members += members;
            found.bytes += bytes;
            found.looks += 1 + members / SHARD;
            if values > 0 {
                last += values;
                unknown.push((last, shelves));
            }
        }
        let (mut sizes, mut total) = (Vec::new(), 0);
        for part in 0..SAMPLE / AT_ONCE {
            if last == 0 || total > ENOUGH {
                break;
            }
            let chance = self.hasher().hash_one((part, self.version()));
            let at = chance % last;
            if let Some((_, shelves)) = unknown.get(unknown.partition_point(|(last, _)| *last <= at)) {
                shelves.settled(|shelf| shelf.sample((chance >> 32) as u32, AT_ONCE as usize, &mut sizes));
            }
            total = sizes.iter().sum();
        }
        if !sizes.is_empty() {
            let mean = total as f64 / sizes.len() as f64;
            found.bytes += (mean * last as f64) as u64;
            found.looks += sizes.len() as u64 + total as u64 / PER_LOOK;
        }
        found
    }
}

/// A write's way into the map: see [`Ledger`].
pub(crate) struct Lane<'a> {
    core: &'a Core,
    engine: &'a Engine,
    shelves: &'a Shelves,
    /// Dropped with the lane, when no lock is held.
    after: Cell<Rare<After>>,
}

/// Who watches, while a change of one member gets its number.
struct Watcher<'a> {
    holding: Option<Holding<'a>>,
    shelves: Arc<Shelves>,
    after: &'a Cell<Rare<After>>,
}

impl Watching for Watcher<'_> {
    fn tell(&mut self, told: Told, version: u64) {
        if let Some(holding) = &mut self.holding {
            holding.tell(&self.shelves, told, version);
        }
    }
}

impl Drop for Watcher<'_> {
    fn drop(&mut self) {
        if let Some(holding) = self.holding.take() {
            let older = self.after.replace(Rare::new(holding.done()));
            debug_assert!(older.get().is_none(), "a lane is for one change");
        }
    }
}

impl Lane<'_> {
    #[cold]
    fn hold(&self) -> Box<dyn Watching + '_> {
        let holding = Some(Holding::new(&self.engine.watches));
        Box::new(Watcher { holding, shelves: self.engine.registry.by_id(self.shelves.id), after: &self.after })
    }
}

impl Ledger for Lane<'_> {
    #[inline]
    fn check_open(&self) -> Result<(), Refused> {
        // Under the shard's lock, which the closing thread passes through after it has set this.
        if self.core.life.load(Ordering::Relaxed) == life::OPEN { Ok(()) } else { Err(Refused::Closed) }
    }

    #[inline]
    fn charge(&self, delta: isize) -> Result<(), Refused> {
        if delta <= 0 {
            if delta < 0 {
                self.engine.adjust_unsaved(delta);
            }
            return Ok(());
        }
        let added = delta as usize;
        let before = self.engine.unsaved.0.fetch_add(added, Ordering::Relaxed);
        if before == 0 || before.saturating_add(added) <= self.core.knobs.max_unsaved {
            return Ok(());
        }
        self.engine.unsaved.0.fetch_sub(added, Ordering::Relaxed);
        Err(Refused::Full)
    }

    #[inline]
    fn next_version(&self) -> u64 {
        // Whoever has a number above a cut sees the cut.
        self.engine.version.0.fetch_add(1, Ordering::Acquire) + 1
    }

    #[inline]
    fn is_watched(&self) -> bool {
        self.engine.watches.wants(self.shelves)
    }

    #[inline]
    fn watch(&self) -> Option<Box<dyn Watching + '_>> {
        if self.is_watched() { Some(self.hold()) } else { None }
    }

    #[inline]
    fn cut(&self) -> u64 {
        self.engine.cut.load(Ordering::Relaxed)
    }

    #[inline]
    fn persists(&self) -> bool {
        self.engine.persists()
    }

    #[inline]
    fn dirty(&self, member: &Member, bits: u32) {
        // Fails only when the janitor is dead, which every write finds out before it comes here or after.
        let member = member.clone();
        self.engine.send(Msg::Key(KeyId { collection: self.shelves.id, bits, member }));
    }

    fn schedule(&self, member: &Member, old: Option<u64>, new: Option<u64>) {
        self.engine.agenda.set(self.shelves.id, member, old, new);
    }

    fn cleared(&self, version: u64) {
        if self.shelves.clear.swap(version, Ordering::AcqRel) == 0 {
            self.engine.send(Msg::Clear { collection: self.shelves.id });
        }
    }
}

impl Core {
    pub(crate) fn new(options: Options) -> Core {
        Core {
            path: options.path,
            layout: options.layout.unwrap_or_default(),
            knobs: options.knobs,
            life: AtomicU8::new(life::NEW),
            backend: Mutex::new(options.backend),
            on_progress: Mutex::new(options.progress),
            clock: options.clock,
            engine: OnceLock::new(),
            janitor: Mutex::new(None),
        }
    }

    /// The engine, if the store takes calls.
    #[inline]
    pub(crate) fn open(&self) -> Result<&Engine> {
        match (self.life.load(Ordering::Acquire), self.engine.get()) {
            (life::OPEN, Some(engine)) => Ok(engine),
            (life, engine) => Err(self.not_open(life, engine.is_some())),
        }
    }

    #[cold]
    fn not_open(&self, life: u8, was_loaded: bool) -> Error {
        let is_closed = was_loaded && !matches!(life, life::NEW | life::LOADING);
        if is_closed { self.closed() } else { Error::NotLoaded { path: self.path.clone() } }
    }

    /// The engine, if the store was ever loaded: what reads of typed collections work on, even after a close.
    #[inline]
    pub(crate) fn engine(&self) -> Option<&Engine> {
        self.engine.get()
    }

    pub(crate) fn closed(&self) -> Error {
        Error::Closed { path: self.path.clone() }
    }

    pub(crate) fn report(&self) -> LoadReport {
        self.engine.get().map(|engine| engine.report.lock().clone()).unwrap_or_default()
    }

    // ---- load ----

    pub(crate) fn load(self: &Arc<Self>) -> Result<LoadReport> {
        match self.life.compare_exchange(life::NEW, life::LOADING, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => {}
            Err(life::CLOSING | life::CLOSED) => return Err(self.closed()),
            Err(_) => return Err(Error::AlreadyLoaded { path: self.path.clone() }),
        }
        let mut loading = Loading { core: self, backend: self.backend.lock().take(), done: false };
        let report = loading.run()?;
        Ok(report)
    }

    // ---- writes ----

    #[inline]
    pub(crate) fn lane<'a>(&'a self, engine: &'a Engine, shelves: &'a Shelves) -> Lane<'a> {
        Lane { core: self, engine, shelves, after: Cell::new(Rare::empty()) }
    }

    /// Does a write: again when the collection's members have moved, and after waiting when the bytes not yet durable
    /// are at their bound. In `Immediate` mode it waits until the write, which is `concern`, is durable.
    #[inline]
    pub(crate) fn write<R>(
        &self,
        engine: &Engine,
        concern: impl FnOnce() -> Concern,
        mut attempt: impl FnMut() -> Result<R, Stop>,
    ) -> Result<R> {
        self.begin_write(engine)?;
        let mut full = Full::default();
        let done = loop {
            match attempt() {
                Ok(done) => break done,
                Err(Stop::Refused(Refused::Moved | Refused::Stale)) => {}
                Err(Stop::Refused(Refused::Closed)) => return Err(self.closed()),
                Err(Stop::Refused(Refused::Duplicate)) => unreachable!("whoever puts says which"),
                Err(Stop::Refused(Refused::Full)) => self.wait_for_room(engine, &mut full)?,
                Err(Stop::Failed(error)) => return Err(error),
            }
        };
        self.end_write(engine, concern)?;
        Ok(done)
    }

    /// What comes before every write.
    #[inline]
    pub(crate) fn begin_write(&self, engine: &Engine) -> Result<()> {
        if engine.persists() { engine.link.check_alive() } else { Ok(()) }
    }

    /// What comes after it: most often nothing, which is found out in place.
    #[inline(always)]
    pub(crate) fn end_write(&self, engine: &Engine, concern: impl FnOnce() -> Concern) -> Result<()> {
        let is_stored = engine.persists();
        let is_awaited = is_stored && (self.knobs.durability == Durability::Immediate || future::is_deferred(self));
        // Dead now means that the write may not have been heard.
        if is_awaited || (is_stored && !engine.link.is_alive()) {
            return self.end_awaited_write(engine, concern());
        }
        Ok(())
    }

    #[inline(never)]
    fn end_awaited_write(&self, engine: &Engine, concern: Concern) -> Result<()> {
        engine.link.check_alive()?;
        match future::defer(self, concern) {
            Ok(()) => Ok(()),
            Err(concern) => self.wait_for_write(engine, concern),
        }
    }

    /// Begins to wait for deadlines: before anything gets one. Returns that of something that has so long to live.
    pub(crate) fn deadline_after(self: &Arc<Self>, engine: &Engine, ttl: Duration) -> Result<u64> {
        engine.agenda.start(self)?;
        Ok(engine.clock.after(ttl))
    }

    /// Removes a member whose deadline has come.
    pub(crate) fn expire(&self, collection: u32, member: &Member, deadline: u64) -> Result<(), Refused> {
        // It is being loaded: later.
        let Some(engine) = self.engine.get() else { return Err(Refused::Closed) };
        let shelves = engine.registry.by_id(collection);
        let lane = self.lane(engine, &shelves);
        loop {
            match shelves.current().expire(member, deadline, &lane) {
                Err(Refused::Moved) => {}
                done => return done,
            }
        }
    }

    /// Waits until some bytes have become durable, or until it is clear that they will not in time. The first time it
    /// only notes how things stand: what becomes durable between then and the second refusal ends the wait.
    fn wait_for_room(&self, engine: &Engine, full: &mut Full) -> Result<()> {
        let link = &engine.link;
        if link.on_janitor_thread() {
            return Err(Error::Reentrant { action: "a write at the bound of unsaved bytes" });
        }
        let since = *full.since.get_or_insert_with(Instant::now);
        let degraded = |source: Option<Error>| Error::Degraded {
            reason: format!("{} bytes are not durable, and the most is {}", engine.unsaved(), self.knobs.max_unsaved),
            source: source.map(Arc::new),
        };
        if let Some(failure) = link.failure() {
            return Err(degraded(Some(failure)));
        }
        let left = self.knobs.write_timeout.saturating_sub(since.elapsed());
        if left.is_zero() {
            return Err(degraded(None));
        }
        match full.seen.take() {
            None => full.seen = Some(link.freed()),
            Some(seen) => {
                link.starve();
                engine.send(Msg::Nudge);
                link.wait_for_room(seen, left);
            }
        }
        Ok(())
    }

    #[inline]
    pub(crate) fn check_size(&self, collection: &str, member: &str, size: usize) -> Result<()> {
        if size <= MAX_VALUE {
            return Ok(());
        }
        Err(Error::TooLarge { key: key::join(collection, member), size, limit: MAX_VALUE })
    }

    // ---- flush and close ----

    pub(crate) fn flush(&self) -> Result<()> {
        let engine = self.open()?;
        if !engine.persists() {
            return Ok(());
        }
        self.wait_until_durable(engine, "flush", Concern::Everything)
    }

    pub(crate) fn backup(&self, path: &Path) -> Result<BackupReport> {
        back_up(Arc::new(Native), self.open()?, self.layout, path)
    }

    pub(crate) fn compact(&self) -> Result<()> {
        let engine = self.open()?;
        if !engine.persists() {
            return Ok(());
        }
        let (reply, answer) = question();
        self.ask(engine, "compact", Msg::Compact(reply), &answer)
    }

    fn wait_until_durable(&self, engine: &Engine, action: &'static str, concern: Concern) -> Result<()> {
        let (reply, answer) = question();
        self.ask(engine, action, Msg::Flush(concern, reply), &answer)
    }

    /// Asks for all of it to be made durable.
    pub(crate) fn ask_all(&self, concerns: Vec<Concern>) -> Result<Vec<Answer<Result<()>>>> {
        // Also while the store is being closed, which makes everything durable.
        let engine = self.engine.get().ok_or_else(|| self.closed())?;
        let ask = |concern| {
            let (reply, answer) = question();
            self.send(engine, "an awaited write", Msg::Flush(concern, reply)).map(|()| answer)
        };
        concerns.into_iter().map(ask).collect()
    }

    /// Waits for the answers.
    pub(crate) fn wait_for_all(&self, answers: &[Answer<Result<()>>], patience: &mut Patience) -> Result<()> {
        let Some(engine) = self.engine.get() else { return Ok(()) };
        answers.iter().try_for_each(|answer| {
            let answered = self.wait_patiently(engine, answer, patience, |_| {});
            answered.unwrap_or_else(|| Err(self.stalled(engine, "an awaited write")))
        })
    }

    /// As `wait_until_durable`. Where a sync is quick, whoever waits for it does not fall asleep for as long as it usually takes:
    /// to wake one thread up takes a part of that, to wake up sixteen as long. It keeps watch on a thread that has nothing
    /// else to do, and lets others have the processor, for the janitor may be among them; it does not do the janitor's work, which
    /// could not be given up when the disk hangs.
    fn wait_for_write(&self, engine: &Engine, concern: Concern) -> Result<()> {
        let action = "an Immediate write";
        let (reply, answer) = question();
        let waiting = engine.link.background.wait();
        self.tell(engine, action, Msg::Flush(concern, reply))?;
        engine.link.joins();
        let until = Instant::now() + engine.link.watch();
        while Instant::now() < until {
            if let Ok(answer) = answer.get() {
                return answer;
            }
            thread::yield_now();
        }
        let answered = self.wait_for_answer(engine, &answer, |_| {});
        drop(waiting);
        answered.unwrap_or_else(|| Err(self.stalled(engine, action)))
    }

    /// Sends the janitor a question and waits for the answer while it makes progress.
    pub(crate) fn ask<R>(
        &self,
        engine: &Engine,
        action: &'static str,
        question: Msg,
        answer: &Answer<Result<R>>,
    ) -> Result<R> {
        self.send(engine, action, question)?;
        self.wait_for_answer(engine, answer, |_| {}).unwrap_or_else(|| Err(self.stalled(engine, action)))
    }

    fn send(&self, engine: &Engine, action: &'static str, question: Msg) -> Result<()> {
        self.tell(engine, action, question)?;
        engine.link.hurry();
        Ok(())
    }

    /// Sends the janitor something, and lets it take its time.
    fn tell(&self, engine: &Engine, action: &'static str, message: Msg) -> Result<()> {
        if engine.link.on_janitor_thread() {
            return Err(Error::Reentrant { action });
        }
        if engine.send(message) { Ok(()) } else { Err(self.gone(engine)) }
    }

    fn gone(&self, engine: &Engine) -> Error {
        engine.link.check_alive().err().unwrap_or_else(|| self.closed())
    }

    fn stalled(&self, engine: &Engine, action: &'static str) -> Error {
        let reason = format!("{action} made no progress for {:?}", self.knobs.stall_timeout);
        Error::Degraded { reason, source: engine.link.failure().map(Arc::new) }
    }

    /// `None` when nothing at all has moved for as long as is allowed. `look` is called now and then.
    fn wait_for_answer<R>(
        &self,
        engine: &Engine,
        answer: &Answer<Result<R>>,
        look: impl FnMut(&Engine),
    ) -> Option<Result<R>> {
        self.wait_patiently(engine, answer, &mut Patience::default(), look)
    }

    /// The same, of one of several answers that are waited for at the same time.
    fn wait_patiently<R>(
        &self,
        engine: &Engine,
        answer: &Answer<Result<R>>,
        patience: &mut Patience,
        mut look: impl FnMut(&Engine),
    ) -> Option<Result<R>> {
        let limit = self.knobs.stall_timeout;
        let progress = patience.0.get_or_insert_with(|| (engine.link.progress(), Instant::now()));
        loop {
            match answer.wait(limit.saturating_sub(progress.1.elapsed()).min(LOOK)) {
                Ok(answer) => return Some(answer),
                Err(Unanswered::Gone) => return Some(Err(self.gone(engine))),
                Err(Unanswered::NotYet) if cfg!(shuttle) => {}
                Err(Unanswered::NotYet) => {
                    look(engine);
                    let now = engine.link.progress();
                    if now != progress.0 {
                        *progress = (now, Instant::now());
                    } else if progress.1.elapsed() >= limit {
                        return None;
                    }
                }
            }
        }
    }

    pub(crate) fn close(&self) -> Result<CloseReport> {
        let started = Instant::now();
        match self.life.compare_exchange(life::OPEN, life::CLOSING, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => {}
            Err(life::NEW | life::LOADING) => return Err(Error::NotLoaded { path: self.path.clone() }),
            Err(_) => return Err(self.closed()),
        }
        let mut closing = Closing { core: self, done: false };
        let Some(engine) = self.engine.get() else {
            return Err(Error::NotLoaded { path: self.path.clone() });
        };
        // Whoever still writes does so before its shard is passed; whoever comes after sees that the store is closing.
        engine.registry.all().iter().for_each(|shelves| shelves.barrier());
        let mut seen = Seen::default();
        let flushed = if engine.persists() { self.end_janitor(engine, &mut seen) } else { Ok(0) };
        if flushed.is_ok() || seen.left {
            closing.done = true;
            self.life.store(life::CLOSED, Ordering::Release);
        }
        if closing.done {
            engine.agenda.end();
            engine.watches.end();
            engine.waiter.end();
        }
        if let Some(panic) = seen.panic {
            resume_unwind(panic);
        }
        let flushed = flushed?;
        let (members, collections, _) = engine.tally();
        Ok(CloseReport { members, collections, flushed, elapsed: started.elapsed() })
    }

    fn end_janitor(&self, engine: &Engine, seen: &mut Seen) -> Result<usize> {
        let (reply, answer) = question();
        let decision = Arc::new(janitor::Decision::default());
        let message = Msg::Close(janitor::Closing { reply, decision: decision.clone() });
        self.send(engine, "close", message)?;
        let flushed = loop {
            match self.wait_for_answer(engine, &answer, |engine| self.show_closing(engine, seen)) {
                Some(answer) => break answer?,
                None if decision.keep_open() => return Err(self.stalled(engine, "close")),
                // All is durable and at rest; only the end itself hangs.
                None if decision.leave() => {
                    seen.left = true;
                    drop(self.janitor.lock().take());
                    return Err(self.stalled(engine, "close"));
                }
                None => {}
            }
        };
        self.join();
        Ok(flushed)
    }

    /// Calls the caller's callback with what is left to do, unless it is being called or has panicked. Its panic waits for
    /// the end of the close.
    fn show_closing(&self, engine: &Engine, seen: &mut Seen) {
        let left = engine.link.background.waiting();
        seen.total = left.max(seen.total);
        let progress = Progress { stage: Stage::Close, done: seen.total - left, total: seen.total };
        // Taken out for the call, so that no lock is held while the caller's code runs.
        let callback = self.on_progress.lock().take();
        if let Some(mut callback) = callback {
            match catch_unwind(AssertUnwindSafe(|| callback(progress))) {
                Ok(()) => *self.on_progress.lock() = Some(callback),
                Err(panic) => seen.panic = Some(panic),
            }
        }
    }

    fn join(&self) {
        let janitor = self.janitor.lock().take();
        if let Some(janitor) = janitor {
            // Its panics are caught and told through the link; there is nothing more to learn here.
            _ = janitor.join();
        }
    }

    /// The last handle has gone: closes if that can be done, and lets the janitor end if not. Never waits on the
    /// janitor's own thread.
    pub(crate) fn abandon(&self) {
        let Some(engine) = self.engine.get() else { return };
        if !engine.persists() {
            self.life.store(life::CLOSED, Ordering::Release);
        }
        if self.life.load(Ordering::Acquire) != life::OPEN {
            engine.agenda.end();
            engine.watches.end();
            engine.waiter.end();
            return;
        }
        let own_thread = engine.link.on_janitor_thread();
        engine.link.background.limit_closing(Instant::now().checked_add(LEAVE_AFTER));
        let closed = if own_thread { Err(Error::Reentrant { action: "close" }) } else { self.close().map(drop) };
        if closed.is_ok() {
            return;
        }
        self.life.store(life::CLOSED, Ordering::Release);
        engine.agenda.end();
        engine.watches.end();
        engine.waiter.end();
        engine.registry.all().iter().for_each(|shelves| shelves.barrier());
        let (reply, answer) = question();
        engine.send(Msg::Stop(reply));
        engine.link.hurry();
        // One that hangs, or on whose thread this is, is not waited for. Dropping its handle lets the thread end alone.
        if !own_thread && !matches!(closed, Err(Error::Degraded { .. })) {
            self.wait_for_answer(engine, &answer, |_| {});
        }
        drop(self.janitor.lock().take());
    }
}

/// How far things had come when somebody who waits saw them move last, and when that was.
#[derive(Default)]
pub(crate) struct Patience(Option<(u64, Instant)>);

/// How a close has gone so far.
#[derive(Default)]
struct Seen {
    /// The most that was left at any time.
    total: u64,
    /// The store is left to the janitor: it is closed as soon as the janitor can.
    left: bool,
    /// What the caller's callback panicked with.
    panic: Option<Box<dyn Any + Send>>,
}

/// A write that found the bytes not yet durable at their bound.
#[derive(Default)]
struct Full {
    since: Option<Instant>,
    /// What had been freed when it was refused.
    seen: Option<u64>,
}

/// Takes the life back to where it was unless the close is done, also when it unwinds.
struct Closing<'a> {
    core: &'a Core,
    done: bool,
}

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.core.life.store(life::OPEN, Ordering::Release);
        }
    }
}

/// A load under way. Unless it is done, the backend goes back and the store is as it was before, also when it unwinds.
struct Loading<'a> {
    core: &'a Arc<Core>,
    backend: Option<Box<dyn Backend>>,
    done: bool,
}

impl Drop for Loading<'_> {
    fn drop(&mut self) {
        if !self.done {
            *self.core.backend.lock() = self.backend.take();
            self.core.life.store(life::NEW, Ordering::Release);
        }
    }
}

impl Loading<'_> {
    fn run(&mut self) -> Result<LoadReport> {
        let started = Instant::now();
        let core = self.core;
        let Some(backend) = self.backend.as_mut() else {
            return Err(Error::NotLoaded { path: core.path.clone() });
        };
        let (outbox, inbox) = crate::sync::unbounded();
        let (link, urgent) = Link::new();
        let outbox = backend.persists().then_some(outbox);
        let mut on_progress = core.on_progress.lock().take();
        let loaded = Engine::load(&mut **backend, outbox, link, core.clock.clone(), &mut on_progress, started);
        *core.on_progress.lock() = on_progress;
        let (engine, report, _) = loaded?;
        core.clock.now();
        if engine.schedule_all() > 0 {
            engine.agenda.start(core)?;
        }

        if engine.persists() {
            let (start, starting) = bounded(1);
            let janitor_core = core.clone();
            let spawned = thread::Builder::new().name("larder-janitor".into()).spawn(move || {
                if let Ok(backend) = starting.recv() {
                    janitor::run(janitor_core, backend, inbox, urgent);
                }
            });
            let handle = spawned.map_err(|error| {
                engine.agenda.end();
                Error::io("start the janitor's thread of", &core.path, error)
            })?;
            *core.janitor.lock() = Some(handle);
            self.done = true;
            let counted = Arc::downgrade(core);
            engine.link.background.set_census(Box::new(move || {
                let core = counted.upgrade()?;
                core.engine().map(Engine::population)
            }));
            // Nobody else sets it: only one load is under way, and none comes after one that is done.
            _ = core.engine.set(engine);
            core.life.store(life::OPEN, Ordering::Release);
            if let Some(backend) = self.backend.take() {
                // The thread waits for it.
                _ = start.send(backend);
            }
        } else {
            self.done = true;
            _ = core.engine.set(engine);
            core.life.store(life::OPEN, Ordering::Release);
        }
        Ok(report)
    }
}

/// The store's side of a load.
struct Intake<'a> {
    engine: &'a Engine,
    quarantined: Mutex<Vec<Quarantined>>,
    /// Recovered changes that were news.
    replayed: AtomicUsize,
    /// What recovered deletes have left tombstones of.
    removed: Mutex<Vec<(u32, Member, u64)>>,
    /// By collection: the newest clear that was recovered. A copy of what it has cleared may come behind it.
    cleared: Mutex<HashMap<u32, u64>>,
    on_progress: Mutex<Option<OnProgress>>,
}

impl Intake<'_> {
    fn recover_one(&self, change: &Change<'_>) -> Result<bool> {
        let member = |name: &str| Member::from(name);
        let version = change.version();
        let shelves = self.engine.shelves(change.collection());
        let table = &shelves.raw.table;
        self.engine.version.0.fetch_max(version, Ordering::Relaxed);
        {
            let mut cleared = self.cleared.lock();
            if let Change::Clear { .. } = change {
                let newest = cleared.entry(shelves.id).or_insert(version);
                *newest = version.max(*newest);
            } else if cleared.get(&shelves.id).is_some_and(|clear| version < *clear) {
                return Ok(false);
            }
        }
        let news = match *change {
            Change::Put { member: name, codec, value, deadline, .. } => {
                let stamp = Stamp::new(version, self.engine.codec_id(codec)?, false);
                table.restore(member(name), Some(Value::from(value)), stamp, deadline)
            }
            Change::Delete { member: name, .. } => {
                self.removed.lock().push((shelves.id, member(name), version));
                table.restore(member(name), None, Stamp::new(version, 0, false), None)
            }
            Change::Deadline { member: name, deadline, .. } => table.restamp(name, version, deadline),
            Change::Clear { .. } => table.restore_clear(version).map(|removed| removed > 0),
        };
        // A table that is being loaded is open to nobody else, so it cannot refuse.
        debug_assert!(news.is_ok());
        Ok(news.unwrap_or(false))
    }
}

/// One thread's way into a store that is being loaded. What it looked up last is most likely asked for next.
struct Inlet<'a> {
    engine: &'a Engine,
    shelves: Option<Arc<Shelves>>,
    codec: (String, u8),
    /// The highest version that came this way.
    highest: u64,
}

impl Inlet<'_> {
    fn shelves(&mut self, collection: &str) -> Result<&Arc<Shelves>> {
        let known = self.shelves.take().filter(|known| known.name() == collection);
        let shelves = match known {
            Some(known) => known,
            None => {
                key::check_collection(collection)?;
                self.engine.shelves(collection).clone()
            }
        };
        Ok(self.shelves.insert(shelves))
    }
}

impl Inflow for Inlet<'_> {
    fn put(
        &mut self,
        collection: &str,
        member: &str,
        version: u64,
        deadline: Option<u64>,
        codec: &str,
        value: &[u8],
    ) -> Result<()> {
        if self.codec.0 != codec {
            self.codec = (codec.to_owned(), self.engine.codec_id(codec)?);
        }
        let codec = self.codec.1;
        let shelves = self.shelves(collection)?;
        key::check_member(collection, member)?;
        if version > MAX_VERSION {
            let key = key::join(collection, member);
            return Err(Error::InvalidKey { key, rule: "a version is at most 2^53 - 1" });
        }
        if value.len() > MAX_VALUE {
            let key = key::join(collection, member);
            return Err(Error::TooLarge { key, size: value.len(), limit: MAX_VALUE });
        }
        let stamp = Stamp::new(version, codec, false);
        // A table that is being loaded is open to nobody else, so it cannot refuse.
        let restored = shelves.raw.table.restore(Member::from(member), Some(Value::from(value)), stamp, deadline);
        debug_assert!(restored.is_ok());
        self.highest = version.max(self.highest);
        Ok(())
    }
}

impl Drop for Inlet<'_> {
    fn drop(&mut self) {
        self.engine.version.0.fetch_max(self.highest, Ordering::Relaxed);
    }
}

impl Sink for Intake<'_> {
    fn inflow(&self) -> Box<dyn Inflow + '_> {
        Box::new(Inlet { engine: self.engine, shelves: None, codec: (codec::RAW.to_owned(), 0), highest: 0 })
    }

    fn recover(&self, changes: &[Change<'_>], at_rest: bool) -> Result<()> {
        for change in changes {
            let news = self.recover_one(change)? && !at_rest;
            self.replayed.fetch_add(usize::from(news), Ordering::Relaxed);
        }
        Ok(())
    }

    fn newest(&self, collection: &str, member: &str) -> Option<u64> {
        self.engine.shelves(collection).raw.table.version(member).unwrap_or_default()
    }

    fn recovered(&self) {
        for (collection, member, version) in std::mem::take(&mut *self.removed.lock()) {
            // As above.
            _ = self.engine.registry.by_id(collection).raw.table.bury(&member, version);
        }
    }

    fn population(&self) -> Population {
        self.engine.population()
    }

    fn quarantined(&self, what: Quarantined) {
        self.quarantined.lock().push(what);
    }

    fn progress(&self, progress: Progress) {
        // Taken out for the call, so that no lock is held while the caller's code runs.
        let callback = self.on_progress.lock().take();
        if let Some(mut callback) = callback {
            callback(progress);
            *self.on_progress.lock() = Some(callback);
        }
    }
}

impl Shelves {
    pub(crate) fn barrier(&self) {
        use crate::shelf::AnyShelf;
        // Both: a write that found the first before the members moved has passed it by now.
        self.raw.barrier();
        if let Some(typed) = self.typed.get() {
            typed.barrier();
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::store::Store;

    #[test]
    fn a_transaction_comes_back_whole_beside_older_and_newer_writes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        let store = Store::open(&path).unwrap();
        for round in 0..50u32 {
            let value = round.to_string();
            store.put("a/old", &value).unwrap();
            store.put("b/gone", &value).unwrap();
            let write = |tx: &mut crate::Transaction<'_>| {
                tx.put("a/old", "tx")?;
                tx.put("a/new", &value)?;
                tx.delete("b/gone")
            };
            store.transaction(write).unwrap();
            assert_eq!(store.get("a/old").unwrap().unwrap(), "tx");
            if round % 2 == 1 {
                store.put("a/old", "after").unwrap();
                store.delete_all("b").unwrap();
            }
        }
        store.flush().unwrap();
        assert_eq!((store.stats().dirty, store.stats().unsaved_bytes), (0, 0));
        store.close().unwrap();
        let store = Store::open(&path).unwrap();
        assert_eq!(store.get("a/old").unwrap().unwrap(), "after");
        assert_eq!(store.get("a/new").unwrap().unwrap(), "49");
        assert_eq!(store.get("b/gone").unwrap(), None);
        assert_eq!(store.stats().members, 2);
    }

    #[test]
    fn a_delete_in_a_transaction_leaves_no_tombstone_behind() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("store")).unwrap();
        for _ in 0..100 {
            store.put("c/k", "1").unwrap();
            store.delete("c/k").unwrap();
            store.transaction(|tx| tx.delete("c/k")).unwrap();
            store.flush().unwrap();
        }
        let shelves = store.core().engine().unwrap().shelves("c");
        assert_eq!(shelves.raw.table.slots(), 0);
    }
}
