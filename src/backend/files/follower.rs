//! The thread that brings what the journal holds to the members' files, and retires segments behind itself.
//!
//! It takes only what is durable in the journal, reads it from there, and so never stands in the way of a write. A
//! segment goes, oldest first, when everything in it is durable in the files; the removal is durable before the next.

use std::collections::{HashMap, HashSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ahead::Ahead;
use super::folder::Folder;
use super::place::Place;
use crate::backend::Change;
use crate::background::Background;
use crate::error::{Error, Result};
use crate::journal::{self, Extent, segment};
use crate::sync::{Condvar, Mutex, thread, wait_for};

/// How long a change waits, once it is durable in the journal, for others of the same member to come and take its place.
const GATHER: Duration = Duration::from_secs(1);

/// Changes that are applied at once: between two lots the thread can be told to end.
const LOT: usize = 1024;

/// The wait after a first failure, and the longest one. Tests wait until it heals.
const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_millis(if cfg!(test) { 100 } else { 5000 });

/// A wait without a reason to end it.
const LONG: Duration = Duration::from_secs(3600);

/// A segment, as far as it is durable.
#[derive(Debug)]
struct Part {
    number: u64,
    end: u64,
    /// Nothing will be added to it.
    sealed: bool,
    /// What is damaged in it has been told.
    told: bool,
}

/// What is in the journal and not at rest.
#[derive(Debug, Default)]
struct State {
    parts: VecDeque<Part>,
    /// How far the first of them is at rest.
    rested: u64,
    /// Bytes that were appended and are not durable.
    unsynced: u64,
    /// Since when something has waited.
    since: Option<Instant>,
    /// No segment may go: the last one's end is not in a newer one yet.
    held: bool,
    /// Somebody waits for all of it.
    hurried: bool,
    ending: bool,
    failed: Option<Error>,
    /// Counts attempts that have begun.
    begun: u64,
    /// Counts attempts that have ended.
    attempts: u64,
}

impl State {
    fn waiting(&self) -> u64 {
        let header = segment::HEADER as u64;
        let parts: u64 = self.parts.iter().map(|part| part.end.saturating_sub(header)).sum();
        parts - self.rested.saturating_sub(header) + self.unsynced
    }

    /// What is durable and not at rest, in the first segment.
    fn ready(&self) -> bool {
        self.parts.front().is_some_and(|part| part.end > self.rested)
    }

    fn can_retire(&self) -> bool {
        // The newest stays: its header has the counter.
        let over = self.parts.front().is_some_and(|part| part.sealed && part.end <= self.rested);
        over && self.parts.len() > 1 && !self.held
    }
}

/// What the janitor's thread and the follower's share.
#[derive(Debug)]
struct Trail {
    state: Mutex<State>,
    changed: Condvar,
    background: Arc<Background>,
    /// From this many waiting bytes on nothing is waited for.
    much: u64,
}

/// The janitor's end.
#[derive(Debug)]
pub(super) struct Follower {
    trail: Arc<Trail>,
    place: Arc<Place>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Follower {
    pub(super) fn new(place: Arc<Place>, background: Arc<Background>, much: u64) -> Follower {
        let state = Mutex::new(State { rested: segment::HEADER as u64, ..State::default() });
        Follower { trail: Arc::new(Trail { state, changed: Condvar::new(), background, much }), place, thread: None }
    }

    /// A segment was found when the store was loaded, and is at rest up to `rested` at least.
    pub(super) fn found(&self, extent: Extent, rested: u64) {
        let mut state = self.trail.state.lock();
        if state.parts.is_empty() {
            state.rested = state.rested.max(rested);
        }
        state.parts.push_back(Part { number: extent.number, end: extent.end, sealed: true, told: true });
        state.since.get_or_insert_with(Instant::now);
        self.trail.background.set_waiting(state.waiting());
    }

    /// No segment may go until this is taken back.
    pub(super) fn hold(&self, held: bool) {
        self.trail.state.lock().held = held;
        self.trail.background.set_unsettled(held);
        self.trail.changed.notify_all();
    }

    pub(super) fn waiting(&self) -> u64 {
        self.trail.state.lock().waiting()
    }

    /// So many bytes are not durable, and no segment is written.
    pub(super) fn unsynced(&self, unsynced: u64) {
        let mut state = self.trail.state.lock();
        state.unsynced = unsynced;
        self.trail.background.set_waiting(state.waiting());
    }

    /// A segment is durable as far as this, and sealed or not.
    pub(super) fn durable(&mut self, extent: Extent, sealed: bool, unsynced: u64) {
        let mut state = self.trail.state.lock();
        state.unsynced = unsynced;
        match state.parts.back_mut() {
            Some(last) if last.number == extent.number => (last.end, last.sealed) = (extent.end, sealed),
            _ => state.parts.push_back(Part { number: extent.number, end: extent.end, sealed, told: false }),
        }
        let much = state.waiting() >= self.trail.much;
        // One that waits already is woken for more only if it is more than should wait.
        let wake = state.since.is_none() || much;
        if state.ready() || state.parts.len() > 1 {
            state.since.get_or_insert_with(Instant::now);
        }
        self.trail.background.set_waiting(state.waiting());
        drop(state);
        if wake {
            self.trail.changed.notify_all();
        }
    }

    /// Starts the thread if it does not run and there is something to do.
    pub(super) fn start(&mut self) -> Result<()> {
        if self.thread.is_some() || self.trail.state.lock().parts.is_empty() {
            return Ok(());
        }
        self.trail.state.lock().ending = false;
        let mut work = self.work();
        let background = self.trail.background.clone();
        let spawned = thread::Builder::new().name("larder-files".into()).spawn(move || {
            let trail = work.trail.clone();
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| work.run())) {
                trail.state.lock().failed = Some(background.dies("the thread that writes files", &*panic));
                trail.changed.notify_all();
            }
            // The folder, and with it its share of the lock, goes before anybody who joins this thread goes on.
            drop(catch_unwind(AssertUnwindSafe(|| drop(work))));
        });
        match spawned {
            Ok(thread) => {
                self.thread = Some(thread);
                Ok(())
            }
            Err(error) => {
                let error = Error::io("start the thread that writes files of", self.place.root.path(), error);
                self.trail.background.fails(error.clone());
                Err(error)
            }
        }
    }

    /// What the thread does, to be begun.
    fn work(&self) -> Work {
        Work {
            trail: self.trail.clone(),
            folder: None,
            place: self.place.clone(),
            tried: 0,
            stuck: HashSet::new(),
            ahead: None,
        }
    }

    /// Ends the thread, when what it does at the moment is done.
    pub(super) fn end(&mut self) {
        self.trail.state.lock().ending = true;
        self.trail.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // Its panics are caught and told.
            _ = thread.join();
        }
    }

    /// Waits until everything durable is at rest: true. False when there is a limit to it, which comes
    /// first.
    pub(super) fn finish(&mut self) -> Result<bool> {
        self.start()?;
        let limit = self.trail.background.closing_limit();
        let mut state = self.trail.state.lock();
        // Whatever is under way began before there was a reason to hurry: how it ends says nothing.
        let begun = state.begun;
        loop {
            if !state.ready() && state.parts.iter().skip(1).all(|part| part.end <= segment::HEADER as u64) {
                return Ok(true);
            }
            if let Some(error) = &state.failed
                && (state.attempts > begun || self.trail.background.dead().is_some())
            {
                return Err(error.clone());
            }
            if limit.is_some_and(|limit| Instant::now() >= limit) {
                return Ok(false);
            }
            state.hurried = true;
            self.trail.changed.notify_all();
            let patience = limit.map_or(LONG, |limit| limit.saturating_duration_since(Instant::now()));
            (state, _) = wait_for(&self.trail.changed, state, patience);
        }
    }

    /// Waits until fewer than `limit` bytes wait.
    ///
    /// # Errors
    ///
    /// What keeps them from getting fewer, or that nothing has moved for `patience`.
    pub(super) fn wait_below(&mut self, limit: u64, patience: Duration) -> Result<()> {
        self.start()?;
        let mut state = self.trail.state.lock();
        let mut moved = (self.trail.background.progress(), Instant::now());
        loop {
            if state.waiting() < limit || state.waiting() == 0 {
                return Ok(());
            }
            let full = |source: Option<Error>| Error::Degraded {
                reason: format!("{} bytes of the journal wait for the files, and the most is {limit}", state.waiting()),
                source: source.map(Arc::new),
            };
            if let Some(error) = &state.failed {
                return Err(full(Some(error.clone())));
            }
            let progress = self.trail.background.progress();
            if progress != moved.0 {
                moved = (progress, Instant::now());
            } else if moved.1.elapsed() >= patience {
                return Err(full(None));
            }
            state.hurried = true;
            self.trail.changed.notify_all();
            (state, _) = wait_for(&self.trail.changed, state, patience);
        }
    }

    /// Removes every segment, oldest first. Everything must be at rest, and the thread ended.
    pub(super) fn retire_all(&self, but_the_last: bool) -> Result<()> {
        let keep = usize::from(but_the_last);
        loop {
            let number = {
                let state = self.trail.state.lock();
                match state.parts.front() {
                    Some(part) if state.parts.len() > keep => part.number,
                    _ => return Ok(()),
                }
            };
            retire(&self.place, number)?;
            self.trail.retired();
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.trail.state.lock().parts.is_empty()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.end();
    }
}

impl Trail {
    /// Lets those who wait for a write have the processor, unless so much waits that they will soon wait for this thread.
    fn give_way(&self) {
        if self.background.waiters() > 0 && self.background.waiting() < self.much {
            thread::yield_now();
        }
    }

    fn retired(&self) {
        let mut state = self.state.lock();
        state.parts.pop_front();
        state.rested = segment::HEADER as u64;
        // Whoever sees that nothing waits any more sees that nothing fails.
        self.background.works();
        self.background.set_waiting(state.waiting());
        self.background.moved();
    }
}

fn retire(place: &Place, number: u64) -> Result<()> {
    let name = journal::file_name(number);
    match place.fs.unlink(&place.journal, &name) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::io("unlink", place.journal.join(&name), error));
        }
        _ => {}
    }
    place.sync_dir(&place.journal)
}

/// What the thread is to do next.
enum Task {
    Apply(Extent, bool),
    Retire(u64),
}

struct Work {
    trail: Arc<Trail>,
    place: Arc<Place>,
    /// Once there is something to apply.
    folder: Option<Folder>,
    /// How far the first segment has been applied, but for what is stuck.
    tried: u64,
    /// Members and collections whose change the files do not take.
    stuck: HashSet<(String, Option<String>)>,
    /// What other segments hold, if any wait behind the first.
    ahead: Option<Ahead>,
}

impl Work {
    fn run(&mut self) {
        let mut wait = Duration::ZERO;
        while let Some(task) = self.next(wait) {
            let done = match task {
                Task::Apply(extent, told) => self.apply(extent, told),
                Task::Retire(number) => retire(&self.place, number).map(|()| self.forget()),
            };
            let mut state = self.trail.state.lock();
            state.attempts += 1;
            match done {
                Ok(()) => {
                    (state.failed, wait) = (None, Duration::ZERO);
                }
                Err(error) => {
                    wait = (wait * 2).clamp(FIRST_RETRY, LAST_RETRY);
                    self.trail.background.fails(error.clone());
                    state.failed = Some(error);
                }
            }
            drop(state);
            self.trail.changed.notify_all();
        }
    }

    /// Waits for something to do; `None` is the end. After a failure it waits, unless somebody is in a hurry.
    fn next(&self, wait: Duration) -> Option<Task> {
        let mut state = self.trail.state.lock();
        let from = Instant::now();
        loop {
            if state.ending {
                return None;
            }
            let hurried = state.hurried;
            let work = state.ready() || state.can_retire();
            let due = if wait.is_zero() { state.since.map(|since| since + GATHER) } else { Some(from + wait) };
            let now = Instant::now();
            let much = wait.is_zero() && state.waiting() >= self.trail.much;
            if work && (hurried || much || due.is_some_and(|due| now >= due) || wait.is_zero() && state.can_retire()) {
                state.hurried = false;
                state.begun += 1;
                return match state.parts.front() {
                    Some(part) if state.can_retire() => Some(Task::Retire(part.number)),
                    Some(part) => Some(Task::Apply(Extent { number: part.number, end: part.end }, part.told)),
                    None => None,
                };
            }
            let patience = due.filter(|_| work).map_or(LONG, |due| due.saturating_duration_since(now));
            (state, _) = wait_for(&self.trail.changed, state, patience);
        }
    }

    /// Brings the first segment's changes to the files, up to where it is durable, and makes them durable there.
    fn apply(&mut self, extent: Extent, told: bool) -> Result<()> {
        let rested = self.look_ahead(extent);
        self.tried = self.tried.max(rested);
        let bytes = journal::read(&*self.place.fs, &self.place.journal, extent.number, rested, extent.end)?;
        let scan = segment::scan(&bytes, extent.number, rested, extent.end);
        if let Some(damaged) = scan.damaged.first().filter(|_| !told) {
            let path = self.place.journal.join(&journal::file_name(extent.number));
            let reason = format!("it was durable, and its bytes {} to {} are damaged", damaged.start, damaged.end);
            return Err(Error::Corrupt { path, reason });
        }
        let mut last = Latest::default();
        for (offset, frame) in &scan.frames {
            for change in frame.changes().unwrap_or_default() {
                last.add(*offset, change);
            }
        }
        if self.folder.is_none() {
            self.folder = Some(Folder::new(self.place.clone())?);
        }
        let Some(folder) = &mut self.folder else { unreachable!("it was made") };
        let (tried, stuck, ahead) = (self.tried, &self.stuck, &self.ahead);
        let batch = last.batch(|offset, change| {
            let is_superseded = ahead.as_ref().is_some_and(|ahead| ahead.supersedes(change));
            !is_superseded && (offset >= tried || stuck.contains(&name_of(change)))
        });
        let mut failed = Vec::new();
        for lot in batch.chunks(LOT) {
            if self.trail.state.lock().ending {
                // What was applied is applied again: by the next load, or when the thread is started again.
                return Err(Error::Degraded { reason: "the store is being dropped".into(), source: None });
            }
            if let Err(rejected) = folder.apply(lot, &|| self.trail.give_way()) {
                if let Some(error) = rejected.all {
                    return Err(*error);
                }
                failed.extend(rejected.some.into_iter().map(|(index, error)| (name_of(&lot[index]), error)));
            }
            self.trail.background.moved();
        }
        folder.sync()?;
        self.tried = extent.end;
        let error = failed.first().map(|(_, error)| error.clone());
        self.stuck = failed.into_iter().map(|(name, _)| name).collect();
        match error {
            Some(error) => Err(error),
            None => {
                self.come_to_rest(extent);
                Ok(())
            }
        }
    }

    /// Learns what waits behind the first segment, unless that was done for this one. Returns how far it is at rest.
    fn look_ahead(&mut self, extent: Extent) -> u64 {
        let (rested, waiting) = {
            let state = self.trail.state.lock();
            let extents = state.parts.iter().map(|part| Extent { number: part.number, end: part.end });
            (state.rested, extents.filter(|part| part.end > segment::HEADER as u64).collect::<Vec<_>>())
        };
        if waiting.len() < 2 {
            self.ahead = None;
        } else if !self.ahead.as_ref().is_some_and(|ahead| ahead.covers(extent)) {
            // The one before goes first: it is as large.
            self.ahead = None;
            // What cannot be read is told when its turn comes.
            self.ahead = Ahead::of(&self.place, &waiting, || self.trail.background.moved()).ok();
        }
        rested
    }

    fn come_to_rest(&mut self, extent: Extent) {
        let mut state = self.trail.state.lock();
        state.rested = extent.end;
        let more = state.ready() || state.parts.iter().skip(1).any(|part| part.end > segment::HEADER as u64);
        state.since = more.then(Instant::now);
        // Whoever waits for all is not done with one segment.
        state.hurried |= more && state.parts.len() > 1;
        // Before the number, as in `retired`.
        self.trail.background.works();
        self.trail.background.set_waiting(state.waiting());
        self.trail.background.moved();
    }

    fn forget(&mut self) {
        self.trail.retired();
        (self.tried, self.stuck) = (0, HashSet::new());
    }
}

fn name_of(change: &Change<'_>) -> (String, Option<String>) {
    match *change {
        Change::Put { collection, member, .. }
        | Change::Delete { collection, member, .. }
        | Change::Deadline { collection, member, .. } => (collection.to_owned(), Some(member.to_owned())),
        Change::Clear { collection, .. } => (collection.to_owned(), None),
    }
}

/// The last change of each member and the last clear of each collection, with where they stand.
#[derive(Default)]
struct Latest<'a> {
    members: HashMap<(&'a str, &'a str), (u64, Change<'a>)>,
    clears: HashMap<&'a str, (u64, Change<'a>)>,
}

impl<'a> Latest<'a> {
    fn add(&mut self, offset: u64, new: Change<'a>) {
        match new {
            Change::Clear { collection, version } => {
                let clear = self.clears.entry(collection).or_insert((offset, new));
                if clear.1.version() <= version {
                    *clear = (offset, new);
                }
            }
            Change::Put { collection, member, .. }
            | Change::Delete { collection, member, .. }
            | Change::Deadline { collection, member, .. } => {
                let last = self.members.entry((collection, member)).or_insert((offset, new));
                if last.1.version() <= new.version() {
                    *last = (offset, merged(last.1, new));
                }
            }
        }
    }

    /// What is to be applied, clears first, of what `wanted` says yes to.
    fn batch(self, wanted: impl Fn(u64, &Change<'a>) -> bool) -> Vec<Change<'a>> {
        let cleared =
            |collection: &str, version| self.clears.get(collection).is_some_and(|(_, clear)| clear.version() > version);
        // What a clear has taken is removed by name: after a crash its file may not say its version.
        let members = self.members.into_values().map(|(offset, change)| match change {
            Change::Put { collection, member, version, .. } | Change::Deadline { collection, member, version, .. }
                if cleared(collection, version) =>
            {
                (offset, Change::Delete { collection, member, version })
            }
            change => (offset, change),
        });
        let mut members: Vec<_> = members.filter(|(offset, change)| wanted(*offset, change)).collect();
        // Removals first: on a full disk they make room. The rest in the order of the journal.
        members.sort_by_key(|(offset, change)| (!matches!(change, Change::Delete { .. }), *offset));
        let clears = self.clears.values().filter(|(offset, change)| wanted(*offset, change));
        clears.map(|(_, change)| *change).chain(members.into_iter().map(|(_, change)| change)).collect()
    }
}

/// A new deadline changes the value that it follows.
fn merged<'a>(old: Change<'a>, new: Change<'a>) -> Change<'a> {
    match (old, new) {
        (Change::Put { collection, member, codec, value, .. }, Change::Deadline { version, deadline, .. }) => {
            Change::Put { collection, member, version, deadline, codec, value }
        }
        (Change::Delete { .. }, Change::Deadline { .. }) => old,
        _ => new,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::backend::Layout;
    use crate::backend::files::header;
    use crate::fs::sim::{Image, Op, Sim};
    use crate::journal::{Journal, Numbers};

    const HOME: &str = "/larder-simulated/store";

    fn put(member: &str, version: u64) -> Change<'_> {
        Change::Put { collection: "c", member, version, deadline: None, codec: "raw", value: b"v" }
    }

    fn delete(member: &str, version: u64) -> Change<'_> {
        Change::Delete { collection: "c", member, version }
    }

    /// Brings segments with these changes to the files, the first before the others if they come `late`. Returns how many
    /// files were put in place, and the versions of those that are there.
    fn follow(segments: &[&[Change<'_>]], late: bool) -> (usize, Vec<(String, u64)>) {
        let sim = Sim::new(&Image::of_dirs(&["larder-simulated"]), HOME, false);
        let place = Arc::new(Place::open(Path::new(HOME), Arc::new(sim.clone()), Layout::Files).unwrap());
        let (numbers, last) = (Arc::new(Numbers::after(0)), Extent { number: 0, end: 0 });
        let mut journal = Journal::new(place.fs.clone(), place.journal.clone(), numbers, last);
        let mut follower = Follower::new(place.clone(), Arc::default(), u64::MAX);
        let mut work = follower.work();
        // The thread is not started: this one does its work.
        let mut rest = |follower: &Follower| {
            let front = follower.trail.state.lock().parts.front().map(|part| (part.number, part.end));
            let Some((number, end)) = front else { return false };
            work.apply(Extent { number, end }, false).unwrap();
            retire(&place, number).unwrap();
            work.forget();
            true
        };
        sim.record();
        for (at, changes) in segments.iter().enumerate() {
            journal.append(&[], changes, 100).unwrap();
            journal.sync().unwrap();
            journal.seal();
            for extent in journal.take_sealed() {
                follower.durable(extent, true, 0);
            }
            if late && at == 0 {
                assert!(rest(&follower));
            }
        }
        while rest(&follower) {}
        let renamed = sim.take_log().iter().filter(|op| matches!(op, Op::Rename { .. })).count();
        let Ok(dir) = place.fs.open_dir(&place.root, "c") else { return (renamed, Vec::new()) };
        let mut there = Vec::new();
        for entry in place.fs.list(&dir).unwrap() {
            let (mut file, mut bytes) = (place.fs.open(&dir, &entry.name).unwrap(), Vec::new());
            let length = crate::backend::files::load::read_whole(&mut *file, &mut bytes).unwrap();
            there.push((entry.name, header::decode(&bytes[..length]).unwrap().0.version));
        }
        there.sort();
        (renamed, there)
    }

    #[test]
    fn a_member_that_was_overwritten_in_many_segments_costs_one_file() {
        let segments: Vec<Vec<Change<'_>>> =
            (0..20).map(|at| vec![put("often", 2 * at + 1), put("too", 2 * at + 2)]).collect();
        let segments: Vec<&[Change<'_>]> = segments.iter().map(Vec::as_slice).collect();
        let last = vec![("often".to_owned(), 39), ("too".to_owned(), 40)];
        assert_eq!(follow(&segments, false), (2, last.clone()));
        // What comes after the first has been brought to its file is another matter.
        assert_eq!(follow(&segments, true), (4, last));
    }

    #[test]
    fn what_is_deleted_put_again_or_cleared_later_is_as_it_was_left() {
        let there = |names: &[(&str, u64)]| names.iter().map(|(name, version)| (name.to_string(), *version)).collect();
        let clear = |version| Change::Clear { collection: "c", version };
        for late in [false, true] {
            let more = usize::from(late);
            // Of what is deleted in a later segment no file is made.
            let (renamed, found) = follow(&[&[put("a", 1), put("b", 2)], &[delete("a", 3)]], late);
            assert_eq!((renamed, found), (1 + more, there(&[("b", 2)])));
            let (renamed, found) = follow(&[&[put("a", 1)], &[delete("a", 2)], &[put("a", 3)]], late);
            assert_eq!((renamed, found), (1 + more, there(&[("a", 3)])));
            // A clear takes what is before it, and no more.
            let (_, found) = follow(&[&[put("a", 1), put("b", 2)], &[clear(3)], &[put("a", 4)]], late);
            assert_eq!(found, there(&[("a", 4)]));
            // A deadline needs the value that it was given to.
            let deadline = Change::Deadline { collection: "c", member: "a", version: 2, deadline: Some(5) };
            let (_, found) = follow(&[&[put("a", 1)], &[deadline]], late);
            assert_eq!(found, there(&[("a", 2)]));
            let (_, found) = follow(&[&[put("a", 1)], &[deadline], &[put("a", 3)]], late);
            assert_eq!(found, there(&[("a", 3)]));
        }
    }
}
