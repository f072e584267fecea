//! The thread that compacts: it decides when, and does it with what [`pass`] offers.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::pass;
use crate::backend::files::place::Place;
use crate::backend::front;
use crate::background::Background;
use crate::error::{Error, Result};
use crate::journal::{self, Extent, Numbers};
use crate::shelf::panic_message;
use crate::sync::{Condvar, Mutex, thread, wait_for};

/// Below so many bytes nothing is worth a compaction.
const FEW_BYTES: u64 = 2 * journal::SEGMENT;

/// Members are counted again when more than one in so many changes came since.
const COUNT_AGAIN: u64 = 64;

/// More small segments than this are joined.
const MANY_SMALL: usize = 16;

/// The most bytes that are written in a second when nobody waits for it.
const RATE: u64 = 64 << 20;

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
    /// Members when they were last counted, which takes every shard's lock; `None` if nobody could tell.
    members: Option<u64>,
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
    fn found(held: Vec<Held>, members: usize) -> State {
        let records = held.iter().map(|held| held.records).sum();
        State { held, records, members: Some(members as u64), ..State::default() }
    }

    fn aim(&mut self, members: impl FnOnce() -> Option<usize>) -> Option<Aim> {
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
            || self.is_mostly_garbage(members);
        worthwhile.then_some(Aim::Worthwhile)
    }

    /// Whether it is, and another pass would find more of it than the last.
    fn is_mostly_garbage(&mut self, members: impl FnOnce() -> Option<usize>) -> bool {
        let bytes: u64 = self.held.iter().map(|held| held.end).sum();
        if bytes < FEW_BYTES {
            return false;
        }
        if self.members.is_none() || self.uncounted > self.records / COUNT_AGAIN {
            self.count_members(members());
        }
        let garbage = self.garbage();
        let grown = bytes >= self.after_last + (self.after_last / 4).max(journal::SEGMENT);
        garbage > self.records / 2 && (grown || garbage >= self.garbage_after_last + self.records / 4)
    }

    fn count_members(&mut self, members: Option<usize>) {
        (self.members, self.uncounted) = (members.map(|members| members as u64), 0);
    }

    /// Changes that count for nothing; all of them if nobody knows how many members there are.
    fn garbage(&self) -> u64 {
        self.records.saturating_sub(self.members.unwrap_or(0))
    }

    /// A pass begins: another is to find more than there is now.
    fn begins(&mut self, members: Option<usize>) {
        self.after_last = self.held.iter().map(|held| held.end).sum();
        self.count_members(members);
        self.garbage_after_last = self.garbage();
    }

    /// A pass that looked at these segments is over, and has dropped so many changes. What has come meanwhile it has not
    /// seen: that is for another to find.
    fn is_over(&mut self, seen: &[Held], dropped: u64) {
        let seen: HashSet<u64> = seen.iter().map(|held| held.number).collect();
        // Nobody else packs.
        let known = self.held.iter().filter(|held| held.packed || seen.contains(&held.number));
        self.after_last = known.map(|held| held.end).sum();
        self.records = self.records.saturating_sub(dropped);
        self.garbage_after_last = self.garbage_after_last.saturating_sub(dropped);
    }
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
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
        members: usize,
    ) -> Compactor {
        let shared = Arc::new(Shared { state: Mutex::new(State::found(held, members)), changed: Condvar::new() });
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
        state.uncounted = if cleared { u64::MAX } else { state.uncounted.saturating_add(records) };
    }

    /// A segment is complete. One without anything durable in it is there all the same, and has to go.
    pub(super) fn sealed(&self, extent: Extent) {
        let Extent { number, end } = extent;
        self.shared.state.lock().held.push(Held { number, end, packed: false, records: 0, damaged: false });
    }

    /// Whether a pass is due that should see the newest changes, too: a few deletes can make garbage of everything.
    pub(super) fn wants_the_newest(&self) -> bool {
        let mut state = self.shared.state.lock();
        !state.on_hold && state.is_mostly_garbage(|| self.background.members())
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
        if state.aim(|| self.background.members()).is_none() {
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
                let panic = panic_message(&*panic);
                let reason = format!("the thread that compacts panicked: {panic}");
                work.background.dies(panic);
                let waiters = std::mem::take(&mut work.shared.state.lock().waiters);
                waiters
                    .into_iter()
                    .for_each(|done| done(Err(Error::Degraded { reason: reason.clone(), source: None })));
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
            let aim = state.aim(|| self.background.members());
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
        let (held, counter) = {
            let mut state = self.shared.state.lock();
            // They may take long to be worthwhile again, also when this fails.
            state.begins(self.background.members());
            (state.held.clone(), state.counter)
        };
        let pace = Pace { work: self, hurried: aim == Aim::Everything, from: Instant::now() };
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

/// Lets a pass go on, or not, and not too fast.
pub(super) struct Pace<'a> {
    work: &'a Work,
    hurried: bool,
    from: Instant,
}

impl Pace<'_> {
    /// Something was done, and so many bytes have been written in this pass.
    ///
    /// # Errors
    ///
    /// It is to be given up.
    pub(super) fn step(&self, written: u64) -> Result<()> {
        self.work.background.moved();
        let due = self.from + Duration::from_micros(written.saturating_mul(1_000_000) / RATE);
        let mut state = self.work.shared.state.lock();
        loop {
            if state.ending || state.paused {
                return Err(Error::Closed { path: self.work.place.root.path().to_owned() });
            }
            let left = due.saturating_duration_since(Instant::now());
            if self.hurried || !state.waiters.is_empty() || left.is_zero() || cfg!(test) {
                return Ok(());
            }
            (state, _) = wait_for(&self.work.shared.changed, state, left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_during_a_pass_makes_another_worth_its_while() {
        let segment = |number, end| Held { number, end, packed: false, records: 0, damaged: false };
        let held = (1..=5).map(|number| segment(number, journal::SEGMENT)).collect();
        // All members are deleted, in RAM. Of the deletes a few have been appended.
        let mut state = State { held, records: 40_000 + 2_000, ..State::default() };
        let members = || Some(0);
        assert_eq!(state.aim(members), Some(Aim::Worthwhile));
        let seen = state.held.clone();
        state.begins(members());
        assert_eq!(state.aim(members), None, "it would find nothing else");
        // The rest comes while the pass finds next to nothing in what it looks at.
        state.records += 38_000;
        state.held.push(segment(6, journal::SEGMENT / 2));
        state.is_over(&seen, 100);
        assert_eq!(state.aim(members), Some(Aim::Worthwhile));
        // One that finds it all leaves nothing for another.
        let seen = std::mem::take(&mut state.held);
        state.begins(members());
        state.is_over(&seen, 79_900);
        assert_eq!((state.records, state.garbage_after_last, state.after_last), (0, 0, 0));
    }

    #[test]
    fn a_load_is_no_reason_for_a_pass() {
        let segment = |number| Held { number, end: journal::SEGMENT, packed: true, records: 500, damaged: false };
        let held: Vec<_> = (1..=4).map(segment).collect();
        // Nobody can be asked while the store is being loaded.
        assert_eq!(State::found(held.clone(), 1_990).aim(|| None), None);
        assert_eq!(State::found(held, 10).aim(|| None), Some(Aim::Worthwhile));
    }
}
