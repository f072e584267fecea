//! Indexes of a table: other orders of the same members, changed together with them.
//!
//! An index holds every member under its sort key, bytes whose order is that of the keys, and the member's value beside it:
//! so whoever asks gets members and values that belong together. Sort keys are made by the caller's code, before any lock
//! is taken; a write whose keys were made before an index was added is refused as stale, and made again.
//!
//! Locks: an index is locked by writers under the lock of the member's shard and before the rings of those who watch, and by
//! readers alone. Several of them are locked in the order in which they were added.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::OnceLock;

use super::{Refused, Stored};
use crate::sync::atomic::{AtomicU8, Ordering};
use crate::sync::{NameHasher, RwLock, RwLockWriteGuard};
use crate::value::Member;

/// Bytes in the order of what they stand for.
pub(crate) type SortKey = Box<[u8]>;

/// A place in an index: the order is that of the keys, and of the members that have the same one.
pub(crate) type Place = (SortKey, Member);

/// Members whose keys are made before they are put in.
pub(super) const MANY_AT_ONCE: usize = 64 << 10;

/// The most indexes of one collection.
pub(crate) const MANY: usize = 16;

/// The indexes of a table, in the order in which they were added. None is ever removed.
pub(super) type Indexes<V> = [OnceLock<Index<V>>; MANY];

type Extract<V> = Box<dyn Fn(&str, &V) -> SortKey + Send + Sync>;

pub(crate) struct Index<V> {
    pub(crate) name: Box<str>,
    pub(crate) unique: bool,
    extract: Extract<V>,
    state: AtomicU8,
    content: RwLock<Content<V>>,
}

/// The states of an index.
mod state {
    /// Every write goes into it; members that were there before may be missing.
    pub(super) const BUILDING: u8 = 0;
    pub(super) const ACTIVE: u8 = 1;
    /// It could not be built, and counts for nothing.
    pub(super) const DEAD: u8 = 2;
}

/// A member in an index.
#[derive(Clone)]
pub(super) struct Entry<V> {
    pub(super) value: V,
    pub(super) deadline: Option<u64>,
}

pub(super) struct Content<V> {
    entries: BTreeMap<Place, Entry<V>>,
    keys: hashbrown::HashMap<Member, SortKey, NameHasher>,
}

/// The indexes of a table, locked.
pub(super) type Held<'a, V> = Vec<RwLockWriteGuard<'a, Content<V>>>;

/// Two members with the same key in an index that allows one.
#[derive(Debug, Clone)]
pub(crate) struct Duplicate {
    pub(crate) index: Box<str>,
    /// The member that has the key.
    pub(crate) holder: Member,
    /// The one that may not have it too.
    pub(crate) refused: Member,
}

impl<V: Stored> Index<V> {
    pub(crate) fn new(name: &str, unique: bool, extract: Extract<V>) -> Index<V> {
        let state = AtomicU8::new(state::BUILDING);
        Index { name: name.into(), unique, extract, state, content: RwLock::new(Content::new()) }
    }

    /// Runs the caller's code: no lock may be held.
    pub(crate) fn key_of(&self, member: &str, value: &V) -> SortKey {
        if self.is_dead() { SortKey::default() } else { (self.extract)(member, value) }
    }

    pub(super) fn is_dead(&self) -> bool {
        self.state.load(Ordering::Acquire) == state::DEAD
    }

    /// Whether a second member with the same key is refused.
    pub(super) fn refuses(&self) -> bool {
        self.unique && self.state.load(Ordering::Acquire) == state::ACTIVE
    }

    pub(super) fn lock(&self) -> RwLockWriteGuard<'_, Content<V>> {
        self.content.write()
    }

    /// Some members between two places, in order, that have not expired by a time. It is asked for when the index is locked:
    /// whoever has put something in the place of what has expired since an earlier time is seen here.
    pub(crate) fn range(
        &self,
        from: Bound<&Place>,
        to: impl Fn(&[u8]) -> bool,
        limit: usize,
        time: impl FnOnce() -> u64,
    ) -> Vec<(Place, V)> {
        let content = self.content.read();
        let reached = time();
        let found = content.entries.range::<Place, _>((from, Bound::Unbounded));
        let there = found.take_while(|((key, _), _)| to(key)).filter(|(_, entry)| entry.shows(reached));
        there.take(limit).map(|(place, entry)| (place.clone(), entry.value.clone())).collect()
    }

    /// Two members with the same key, if there are and only one may have it.
    fn find_duplicate(&self, content: &Content<V>, reached: u64) -> Option<Duplicate> {
        if !self.unique {
            return None;
        }
        let mut before: Option<&Place> = None;
        for (place, _) in content.entries.iter().filter(|(_, entry)| entry.shows(reached)) {
            if let Some((_, holder)) = before.filter(|before| before.0 == place.0) {
                let (index, holder, refused) = (self.name.clone(), holder.clone(), place.1.clone());
                return Some(Duplicate { index, holder, refused });
            }
            before = Some(place);
        }
        None
    }
}

/// An index that is being built. Unless that is done it counts for nothing, also when the caller's code panics.
pub(super) struct Building<'a, V: Stored>(pub(super) &'a Index<V>);

impl<V: Stored> Building<'_, V> {
    /// Every member is in it.
    pub(super) fn done(self, time: impl FnOnce() -> u64) -> Result<(), Duplicate> {
        // Whoever writes waits for the lock, so nothing comes in between.
        let content = self.0.lock();
        match self.0.find_duplicate(&content, time()) {
            Some(duplicate) => Err(duplicate),
            None => {
                self.0.state.store(state::ACTIVE, Ordering::Release);
                Ok(())
            }
        }
    }
}

impl<V: Stored> Drop for Building<'_, V> {
    fn drop(&mut self) {
        let dead = state::DEAD;
        if self.0.state.compare_exchange(state::BUILDING, dead, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            let gone = self.0.lock().clear();
            drop(gone);
        }
    }
}

impl<V> Entry<V> {
    fn shows(&self, reached: u64) -> bool {
        self.deadline.is_none_or(|at| at > reached)
    }
}

impl<V: Stored> Content<V> {
    pub(super) fn new() -> Content<V> {
        Content { entries: BTreeMap::new(), keys: hashbrown::HashMap::default() }
    }

    /// The members that have the key.
    pub(super) fn holders(&self, key: &SortKey, reached: u64) -> Vec<&Member> {
        let from = Bound::Included((key.clone(), Member::from("")));
        let found = self.entries.range((from, Bound::Unbounded)).take_while(|((found, _), _)| found == key);
        found.filter(|(_, entry)| entry.shows(reached)).map(|((_, holder), _)| holder).collect()
    }

    pub(super) fn put(&mut self, member: &Member, key: SortKey, entry: Entry<V>) {
        if let Some(old) = self.keys.insert(member.clone(), key.clone())
            && old != key
        {
            self.entries.remove(&(old, member.clone()));
        }
        self.entries.insert((key, member.clone()), entry);
    }

    /// The value stays, and its deadline is this.
    pub(super) fn touch(&mut self, member: &Member, deadline: Option<u64>) {
        let Some(key) = self.keys.get(member) else { return };
        if let Some(entry) = self.entries.get_mut(&(key.clone(), member.clone())) {
            entry.deadline = deadline;
        }
    }

    pub(super) fn remove(&mut self, member: &Member) {
        if let Some(key) = self.keys.remove(member) {
            self.entries.remove(&(key, member.clone()));
        }
    }

    pub(super) fn has(&self, member: &Member) -> bool {
        self.keys.contains_key(member)
    }

    /// Removes everything. What comes back is to be dropped when nothing is locked.
    pub(super) fn clear(&mut self) -> Content<V> {
        std::mem::replace(self, Content::new())
    }
}

/// Whether the member may have these keys now.
pub(super) fn check_unique<V: Stored>(
    indexes: &[&Index<V>],
    held: &Held<'_, V>,
    member: &str,
    keys: &[SortKey],
    reached: u64,
) -> Result<(), Duplicate> {
    for ((index, content), key) in indexes.iter().zip(held).zip(keys).filter(|((index, _), _)| index.refuses()) {
        if let Some(holder) = content.holders(key, reached).into_iter().find(|holder| ***holder != *member) {
            let (index, holder) = (index.name.clone(), holder.clone());
            return Err(Duplicate { index, holder, refused: Member::from(member) });
        }
    }
    Ok(())
}

/// Why keys are not those of the indexes that there are.
pub(super) fn check_fresh<V>(held: &Held<'_, V>, keys: &[SortKey]) -> Result<(), Refused> {
    if keys.len() == held.len() { Ok(()) } else { Err(Refused::Stale) }
}

/// Calls `make` for each, on all cores if there are many. A panic in it is passed on.
pub(super) fn in_parallel<T: Send, R: Send>(all: Vec<T>, make: impl Fn(&T) -> R + Sync) -> Vec<(T, R)> {
    /// Fewer than this are made sooner than a thread is started.
    const FEW: usize = 4096;

    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let each = all.len().div_ceil(cores).max(FEW);
    if all.len() <= each {
        return all.into_iter().map(|one| (make(&one), one)).map(|(made, one)| (one, made)).collect();
    }
    let mut parts: Vec<Vec<T>> = Vec::new();
    let mut all = all.into_iter().peekable();
    while all.peek().is_some() {
        parts.push(all.by_ref().take(each).collect());
    }
    let make = &make;
    std::thread::scope(|scope| {
        let work = |part: Vec<T>| move || part.into_iter().map(|one| (make(&one), one)).collect::<Vec<_>>();
        let threads: Vec<_> = parts.into_iter().map(|part| scope.spawn(work(part))).collect();
        let mut done = Vec::new();
        for thread in threads {
            match thread.join() {
                Ok(part) => done.extend(part.into_iter().map(|(made, one)| (one, made))),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        done
    })
}
