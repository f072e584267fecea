//! The thread that compacts: it decides when, and does it with what [`pass`] offers.

use std::cell::Cell;
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::pass;
use crate::backend::files::place::Place;
use crate::backend::front;
use crate::background::{Background, Population};
use crate::error::{Error, Result};
use crate::journal::{self, Extent, Numbers};
use crate::sync::{Condvar, Mutex, thread, wait_for};

/// Below so many bytes nothing is worth a compaction.
const FEW_BYTES: u64 = 2 * journal::SEGMENT;

/// What there is is counted again when more than one in so many changes came since.
const COUNT_AGAIN: u64 = 64;

/// And after this for each look that it takes, of some 200 ns, if anything came: that is a hundredth of the time.
const PER_LOOK: Duration = Duration::from_micros(20);

/// Where it takes so few it is done at once.
const FEW_LOOKS: u64 = 64;

/// What a member takes in a segment beside its name and its value, at most: more is garbage.
const AROUND: u64 = 64;

/// More small segments than this are joined.
const MANY_SMALL: usize = 16;

/// The most bytes that are read and written in a second when nobody waits for it, and less than three quarters of what is
/// there is garbage. Where it is more the disk would be full before it comes back.
const RATE: u64 = 128 << 20;

const FIRST_RETRY: Duration = Duration::from_millis(200);
const LAST_RETRY: Duration = Duration::from_secs(10);
const LONG: Duration = Duration::from_secs(3600);

/// A segment that nothing is added to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Held {
    pub(super) number: u64,
    /// How far it is durable.
    pub(super) end: u64,
    pub(super) packed: bool,
    /// Changes in it, as far as they were counted.
    pub(super) records: u64,
    /// Something in it is damaged, and has been told.
    pub(super) damaged: bool,
}

type Done = Box<dyn FnOnce(Result<()>) + Send>;

#[derive(Default)]
struct State {
    held: Vec<Held>,
    /// Segments that count for nothing, and are to be removed before anything else is.
    gone: Vec<u64>,
    /// Changes in all of them, and in what is written.
    records: u64,
    /// What there was after the last pass: another is not worth its while until there is a good part more.
    after_last: u64,
    /// The same of the changes that count for nothing: deletes make many of them in few bytes.
    garbage_after_last: u64,
    /// Changes that were appended since the last pass began. The map knows of deletes before the segments do: a pass may have
    /// looked in vain for what these make garbage of.
    appended: u64,
    /// So many passes in a row have found next to nothing.
    fruitless: u32,
    /// What there was when it was last counted, which takes every shard's lock; `None` if nobody could tell.
    population: Option<Population>,
    counted_at: Option<Instant>,
    /// Changes since, at most as many as members have come or gone.
    uncounted: u64,
    /// The highest number in use.
    counter: u64,
    /// Nothing may go: what an earlier process left is not durable in a newer segment yet.
    on_hold: bool,
    paused: bool,
    ending: bool,
    waiters: Vec<Done>,
    failed: bool,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("held", &self.held).finish_non_exhaustive()
    }
}

/// What a pass is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Aim {
    /// What is mostly overwritten, small or damaged goes.
    Worthwhile,
    /// Everything is packed.
    Everything,
}

impl State {
    /// What a load has found.
    fn found(held: Vec<Held>, population: Population) -> State {
        let records = held.iter().map(|held| held.records).sum();
        State { held, records, population: Some(population), ..State::default() }
    }

    fn aim(&self) -> Option<Aim> {
        if self.on_hold || self.paused || self.held.is_empty() && self.gone.is_empty() {
            return None;
        }
        if !self.waiters.is_empty() {
            return Some(Aim::Everything);
        }
        let small = self.held.iter().filter(|held| pass::is_small(held.end)).count();
        let worthwhile = self.held.iter().any(|held| held.damaged)
            || !self.gone.is_empty()
            || small > MANY_SMALL
            || self.is_mostly_garbage();
        worthwhile.then_some(Aim::Worthwhile)
    }

    fn bytes(&self) -> u64 {
        self.held.iter().map(|held| held.end).sum()
    }

    /// Whether it is to be counted again what there is, before anybody asks whether that is mostly garbage.
    fn wants_a_count(&self) -> bool {
        let looks = self.population.map_or(0, |population| population.looks);
        let soon = looks <= FEW_LOOKS || self.counted_at.is_none_or(|at| at.elapsed() >= PER_LOOK * looks as u32);
        let enough = if soon { 0 } else { self.records / COUNT_AGAIN };
        self.uncounted > enough && !self.on_hold && self.bytes() >= FEW_BYTES
    }

    /// Whether it is, as changes or as bytes, and another pass would find more of it than the last.
    fn is_mostly_garbage(&self) -> bool {
        let bytes = self.bytes();
        if bytes < FEW_BYTES {
            return false;
        }
        let (garbage, waste) = (self.garbage(), self.waste(bytes));
        let grown = bytes >= self.after_last + (self.after_last / 4).max(journal::SEGMENT);
        let news = self.appended > 0 && self.appended >= (self.records / COUNT_AGAIN).max(1) << self.fruitless.min(8);
        garbage > self.records / 2 && (grown || garbage >= self.garbage_after_last + self.records / 4)
            || waste > bytes / 2 && (grown || news)
    }

    /// Changes that count for nothing.
    fn garbage(&self) -> u64 {
        self.records.saturating_sub(self.population.map_or(0, |population| population.members))
    }

    /// Of so many bytes in segments those that count for nothing, as far as is known without reading them. What a few large
    /// members leave behind shows here, and what many small ones do in the number of changes.
    fn waste(&self, bytes: u64) -> u64 {
        let Some(Population { members, bytes: live, .. }) = self.population else { return 0 };
        bytes.saturating_sub(live.saturating_add(members * AROUND))
    }

    /// Whether the space is wanted more than the disk's time.
    fn is_nearly_all_garbage(&self) -> bool {
        let bytes = self.bytes();
        self.garbage() > self.records / 4 * 3 || self.waste(bytes) > bytes / 4 * 3
    }

    /// A pass begins: another is to find more than there is now.
    fn begins(&mut self) {
        self.after_last = self.bytes();
        self.garbage_after_last = self.garbage();
        self.appended = 0;
    }

    /// A pass that looked at these segments is over, and has dropped so many changes. What has come meanwhile it has not
    /// seen: that is for another to find.
    fn is_over(&mut self, seen: &[Held], dropped: u64) {
        let seen: HashSet<u64> = seen.iter().map(|held| held.number).collect();
        // Nobody else packs.
        let known = self.held.iter().filter(|held| held.packed || seen.contains(&held.number));
        let before = std::mem::replace(&mut self.after_last, known.map(|held| held.end).sum());
        self.fruitless = if self.after_last > before / 8 * 7 { self.fruitless + 1 } else { 0 };
        self.records = self.records.saturating_sub(dropped);
        self.garbage_after_last = self.garbage_after_last.saturating_sub(dropped);
    }
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    /// Counts what there is. That may run the caller's code, which encodes: no lock may be held.
    fn count(&self, background: &Background) {
        let seen = self.state.lock().uncounted;
        let population = background.population();
        let mut state = self.state.lock();
        (state.population, state.counted_at) = (population, Some(Instant::now()));
        // What has come meanwhile may not be in it.
        state.uncounted = state.uncounted.saturating_sub(seen);
    }
}

/// The janitor's end.
#[derive(Debug)]
pub(super) struct Compactor {
    shared: Arc<Shared>,
    place: Arc<Place>,
    numbers: Arc<Numbers>,
    background: Arc<Background>,
    thread: Option<thread::JoinHandle<()>>,
    #[cfg(test)]
    never_starts: bool,
}

impl Compactor {
    pub(super) fn new(
        place: Arc<Place>,
        numbers: Arc<Numbers>,
        background: Arc<Background>,
        held: Vec<Held>,
        population: Population,
    ) -> Compactor {
        let shared = Arc::new(Shared { state: Mutex::new(State::found(held, population)), changed: Condvar::new() });
        Compactor {
            shared,
            place,
            numbers,
            background,
            thread: None,
            #[cfg(test)]
            never_starts: false,
        }
    }

    /// No thread is started.
    #[cfg(test)]
    pub(super) fn stay_on_this_thread(&mut self, yes: bool) {
        self.never_starts = yes;
    }

    /// Nothing may go until this is taken back.
    pub(super) fn hold(&self, on: bool) {
        self.shared.state.lock().on_hold = on;
        self.background.set_unsettled(on);
    }

    pub(super) fn show_unsynced(&self, bytes: u64) {
        self.background.set_waiting(bytes);
    }

    /// So many changes were appended. A clear is one of them, and can take any number of members with it.
    pub(super) fn count(&self, records: u64, cleared: bool) {
        let mut state = self.shared.state.lock();
        state.records += records;
        state.appended += records;
        state.uncounted = if cleared { u64::MAX } else { state.uncounted.saturating_add(records) };
    }

    /// A segment is complete. One without anything durable in it is there all the same, and has to go.
    pub(super) fn sealed(&self, extent: Extent) {
        let Extent { number, end } = extent;
        self.shared.state.lock().held.push(Held { number, end, packed: false, records: 0, damaged: false });
    }

    /// Whether a pass is due that should see the newest changes, too: a few deletes can make garbage of everything.
    pub(super) fn wants_the_newest(&self) -> bool {
        if self.shared.state.lock().wants_a_count() {
            self.shared.count(&self.background);
        }
        let state = self.shared.state.lock();
        !state.on_hold && state.is_mostly_garbage()
    }

    /// The segments, as far as they are durable.
    pub(super) fn extents(&self) -> Vec<Extent> {
        self.shared.state.lock().held.iter().map(|held| Extent { number: held.number, end: held.end }).collect()
    }

    /// Looks whether there is something to do, and has the thread do it. `counter` is the highest number in use.
    pub(super) fn wake(&mut self, counter: u64) {
        let mut state = self.shared.state.lock();
        state.counter = counter;
        state.paused = false;
        if state.aim().is_none() {
            return;
        }
        drop(state);
        self.shared.changed.notify_all();
        if let Err(error) = self.start() {
            self.background.fails(error);
        }
    }

    /// Packs everything, and calls `done` in the end.
    pub(super) fn compact(&mut self, done: Done) {
        {
            let mut state = self.shared.state.lock();
            if state.held.is_empty() {
                drop(state);
                return done(Ok(()));
            }
            state.waiters.push(done);
        }
        self.shared.changed.notify_all();
        if let Err(error) = self.start() {
            let waiters = std::mem::take(&mut self.shared.state.lock().waiters);
            waiters.into_iter().for_each(|done| done(Err(error.clone())));
        }
    }

    /// Writes anew what is worthwhile, what is damaged above all, on this thread, and calls `done` in the end.
    pub(super) fn mend(&mut self, done: Done) {
        self.end();
        self.shared.state.lock().ending = false;
        done(self.work().pass(Aim::Worthwhile));
    }

    /// The same, on this thread, and whatever there is is packed.
    #[cfg(test)]
    pub(super) fn compact_now(&mut self) {
        if !self.shared.state.lock().on_hold {
            let work = self.work();
            work.settle(Aim::Everything, work.pass(Aim::Everything));
        }
    }

    fn work(&self) -> Work {
        let (shared, place) = (self.shared.clone(), self.place.clone());
        Work { shared, place, numbers: self.numbers.clone(), background: self.background.clone() }
    }

    fn start(&mut self) -> Result<()> {
        #[cfg(test)]
        if self.never_starts {
            return Ok(());
        }
        if self.thread.is_some() {
            return Ok(());
        }
        self.shared.state.lock().ending = false;
        let work = self.work();
        let spawned = thread::Builder::new().name("larder-compact".into()).spawn(move || {
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| work.run())) {
                let dead = work.background.dies("the thread that compacts", &*panic);
                let waiters = std::mem::take(&mut work.shared.state.lock().waiters);
                waiters.into_iter().for_each(|done| done(Err(dead.clone())));
            }
            // The place, and with it a share of the lock, goes before anybody who joins this thread goes on.
            drop(work);
        });
        let path = self.place.root.path();
        self.thread = Some(spawned.map_err(|error| Error::io("start the thread that compacts", path, error))?);
        Ok(())
    }

    /// Nothing more is begun until it is woken, and what is under way is given up.
    pub(super) fn pause(&self) {
        self.shared.state.lock().paused = true;
        self.shared.changed.notify_all();
    }

    /// Ends the thread, when it has given up what it does.
    pub(super) fn end(&mut self) {
        let waiters = {
            let mut state = self.shared.state.lock();
            state.ending = true;
            std::mem::take(&mut state.waiters)
        };
        self.shared.changed.notify_all();
        let closed = Error::Closed { path: self.place.root.path().to_owned() };
        waiters.into_iter().for_each(|done| done(Err(closed.clone())));
        if let Some(thread) = self.thread.take() {
            // Its panics are caught and told.
            _ = thread.join();
        }
    }
}

impl Compactor {
    /// It was not the end.
    pub(super) fn revive(&mut self) {
        let mut state = self.shared.state.lock();
        (state.ending, state.paused) = (false, false);
    }
}

impl Drop for Compactor {
    fn drop(&mut self) {
        self.end();
    }
}

struct Work {
    shared: Arc<Shared>,
    place: Arc<Place>,
    numbers: Arc<Numbers>,
    background: Arc<Background>,
}

impl Work {
    fn run(&self) {
        let mut wait = Duration::ZERO;
        while let Some(aim) = self.next(wait) {
            let done = self.pass(aim);
            wait = if done.is_ok() { Duration::ZERO } else { (wait * 2).clamp(FIRST_RETRY, LAST_RETRY) };
            self.settle(aim, done);
        }
    }

    /// Waits for something to do; `None` is the end. After a failure it waits, unless somebody asks.
    fn next(&self, wait: Duration) -> Option<Aim> {
        let mut state = self.shared.state.lock();
        let from = Instant::now();
        loop {
            if state.ending {
                return None;
            }
            if state.wants_a_count() && state.waiters.is_empty() {
                drop(state);
                self.shared.count(&self.background);
                state = self.shared.state.lock();
                continue;
            }
            let aim = state.aim();
            let left = wait.saturating_sub(from.elapsed());
            match aim {
                Some(aim) if left.is_zero() || aim == Aim::Everything => return Some(aim),
                _ => {}
            }
            let patience = if aim.is_some() { left } else { LONG };
            (state, _) = wait_for(&self.shared.changed, state, patience);
        }
    }

    /// Tells how it went.
    fn settle(&self, aim: Aim, done: Result<()>) {
        let mut state = self.shared.state.lock();
        let gave_up = done.as_ref().is_err_and(|error| matches!(error, Error::Closed { .. }));
        let waiters = if aim == Aim::Everything && !gave_up { std::mem::take(&mut state.waiters) } else { Vec::new() };
        match &done {
            Ok(()) if state.failed => {
                state.failed = false;
                self.background.works();
            }
            // Whoever asked is told; nobody else misses what was not worth its while.
            Err(error) if !gave_up && aim == Aim::Worthwhile => {
                state.failed = true;
                self.background.fails(error.clone());
            }
            _ => {}
        }
        drop(state);
        waiters.into_iter().for_each(|waiter| waiter(done.clone()));
    }

    /// Removes what counts for nothing. Nothing more is dropped until that is done.
    fn clean(&self) -> Result<()> {
        let gone = self.shared.state.lock().gone.clone();
        front::remove(&self.place, &gone)?;
        self.shared.state.lock().gone.clear();
        Ok(())
    }

    /// One round over all segments.
    ///
    /// # Errors
    ///
    /// Of the disk; or that it was given up.
    fn pass(&self, aim: Aim) -> Result<()> {
        self.clean()?;
        self.shared.count(&self.background);
        let (held, counter, urgent) = {
            let mut state = self.shared.state.lock();
            // They may take long to be worthwhile again, also when this fails.
            state.begins();
            (state.held.clone(), state.counter, state.is_nearly_all_garbage())
        };
        let pace = Pace { work: self, hurried: urgent || aim == Aim::Everything, budget: Cell::default() };
        let mut index = pass::Index::of(&self.place, &held, &pace)?;
        while let Some(chosen) = index.choose(aim) {
            let mut gone = Vec::new();
            let packed = index.pack(&self.place, &self.numbers, &chosen, counter, &pace, &mut gone);
            {
                let mut state = self.shared.state.lock();
                state.held.retain(|held| !gone.contains(&held.number));
                state.gone.append(&mut gone);
                state.held.extend(packed.as_ref().ok().copied().flatten());
            }
            packed?;
            self.clean()?;
        }
        self.shared.state.lock().is_over(&held, index.dropped());
        Ok(())
    }
}

/// Spreads what is read and written over time.
#[derive(Debug, Clone, Copy, Default)]
struct Budget {
    /// When what was spent last is paid for.
    due: Option<Instant>,
}

impl Budget {
    /// How long to wait before so many bytes more are read or written. What was not spent is not saved.
    fn wait(&self, now: Instant) -> Duration {
        self.due.map_or(Duration::ZERO, |due| due.saturating_duration_since(now))
    }

    fn spend(&mut self, bytes: u64, now: Instant) {
        let from = self.due.map_or(now, |due| due.max(now));
        self.due = from.checked_add(Duration::from_micros(bytes.saturating_mul(1_000_000) / RATE));
    }
}

/// Lets a pass go on, or not, and not too fast.
pub(super) struct Pace<'a> {
    work: &'a Work,
    hurried: bool,
    budget: Cell<Budget>,
}

impl Pace<'_> {
    /// So many bytes are about to be read or written.
    ///
    /// # Errors
    ///
    /// It is to be given up.
    pub(super) fn step(&self, bytes: u64) -> Result<()> {
        self.work.background.moved();
        let mut state = self.work.shared.state.lock();
        loop {
            if state.ending || state.paused {
                return Err(Error::Closed { path: self.work.place.root.path().to_owned() });
            }
            let (now, mut budget) = (Instant::now(), self.budget.get());
            let left = budget.wait(now);
            if self.hurried || !state.waiters.is_empty() || left.is_zero() {
                budget.spend(bytes, now);
                self.budget.set(budget);
                return Ok(());
            }
            (state, _) = wait_for(&self.work.shared.changed, state, left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Members of ten bytes.
    fn members(members: u64) -> Option<Population> {
        Some(Population { members, bytes: 10 * members, looks: 1 })
    }

    #[test]
    fn what_comes_during_a_pass_makes_another_worth_its_while() {
        let segment = |number, end| Held { number, end, packed: false, records: 0, damaged: false };
        let held = (1..=5).map(|number| segment(number, journal::SEGMENT)).collect();
        // All members are deleted, in RAM. Of the deletes a few have been appended.
        let mut state = State { held, records: 40_000 + 2_000, population: members(0), ..State::default() };
        assert_eq!(state.aim(), Some(Aim::Worthwhile));
        let seen = state.held.clone();
        state.begins();
        assert_eq!(state.aim(), None, "it would find nothing else");
        // The rest comes while the pass finds next to nothing in what it looks at.
        state.records += 38_000;
        state.held.push(segment(6, journal::SEGMENT / 2));
        state.is_over(&seen, 100);
        assert_eq!(state.aim(), Some(Aim::Worthwhile));
        // One that finds it all leaves nothing for another.
        let seen = std::mem::take(&mut state.held);
        state.begins();
        state.is_over(&seen, 79_900);
        assert_eq!((state.records, state.garbage_after_last, state.after_last), (0, 0, 0));
    }

    #[test]
    fn a_load_is_no_reason_for_a_pass() {
        let end = journal::SEGMENT;
        let segment = |number| Held { number, end, packed: true, records: 5, damaged: false };
        let held: Vec<_> = (1..=4).map(segment).collect();
        let found = |members, bytes| State::found(held.clone(), Population { members, bytes, looks: 1 });
        assert!(!found(19, 3 * end).wants_a_count());
        assert_eq!(found(19, 3 * end).aim(), None);
        // Most changes count for nothing; or most bytes do.
        assert_eq!(found(1, 3 * end).aim(), Some(Aim::Worthwhile));
        assert_eq!(found(19, end).aim(), Some(Aim::Worthwhile));
    }

    #[test]
    fn a_pass_reads_and_writes_no_more_than_its_rate_allows() {
        let start = Instant::now();
        let mut budget = Budget::default();
        let mut now = start;
        let mut spent = 0;
        // A large segment is read, and what took no time is followed by small pieces; then something takes long.
        for (bytes, took) in [(RATE / 2, 0), (RATE / 8, 0), (RATE / 8, 0), (1 << 20, 10_000), (RATE, 0), (RATE, 0)] {
            now += budget.wait(now);
            let allowed = (now - start).as_secs_f64() * RATE as f64;
            assert!(spent as f64 <= allowed + 1e6, "{spent} bytes, and {allowed} are allowed");
            budget.spend(bytes, now);
            spent += bytes;
            now += Duration::from_millis(took);
        }
        // Ten seconds that were not used do not count later.
        assert_eq!(budget.wait(now), Duration::from_secs(1));
        assert_eq!(now - start, Duration::from_millis(750 + 10_000 + 1000));
    }

    #[test]
    fn what_a_pass_cannot_find_is_not_looked_for_again_and_again() {
        let end = journal::SEGMENT;
        let segment = |number| Held { number, end, packed: false, records: 0, damaged: false };
        let held: Vec<_> = (1..=8).map(segment).collect();
        let mut state = State { held, records: 100, population: members(90), ..State::default() };
        assert_eq!(state.aim(), Some(Aim::Worthwhile), "few bytes of many count");
        let seen = state.held.clone();
        state.begins();
        state.is_over(&seen, 0);
        assert_eq!(state.aim(), None);
        state.held.push(segment(9));
        assert_eq!(state.aim(), None, "an eighth more");
        state.held.push(segment(10));
        assert_eq!(state.aim(), Some(Aim::Worthwhile), "a quarter more");
    }

    #[test]
    fn what_is_deleted_in_the_map_before_it_is_in_the_segments_is_looked_for_again() {
        let end = 8 * journal::SEGMENT;
        let segment = |number| Held { number, end, packed: false, records: 0, damaged: false };
        let held: Vec<_> = (1..=8).map(segment).collect();
        // Large members have gone from the map; of their deletes half are in the segments, and half come after a while.
        let mut state = State { held: held.clone(), records: 100, population: members(60), ..State::default() };
        assert_eq!(state.aim(), Some(Aim::Worthwhile));
        let seen = state.held.clone();
        state.begins();
        state.held.truncate(4);
        state.is_over(&seen, 20);
        assert_eq!(state.aim(), None, "nothing has come");
        (state.records, state.appended) = (100, 20);
        assert_eq!(state.aim(), Some(Aim::Worthwhile));
        // What is there is taken for garbage, and is none: it is looked at ever more rarely, be it ever so few.
        let few = State { held, records: 20, population: members(15), ..State::default() };
        for mut state in [state, few] {
            for worthwhile in [2, 4] {
                let seen = state.held.clone();
                state.begins();
                state.is_over(&seen, 0);
                state.appended = worthwhile - 1;
                assert_eq!(state.aim(), None, "{worthwhile}");
                state.appended = worthwhile;
                assert_eq!(state.aim(), Some(Aim::Worthwhile));
            }
        }
    }
}
