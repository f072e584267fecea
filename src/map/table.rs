//! Level two: the members of one collection, in shards that split as it grows.
//!
//! A shard is a hash table under its own lock. Shard `i` of depth `d` holds the members whose shard bits (the upper half
//! of the hash) end in the `d` lowest bits of `i`. When it is full it gives half of them to shard `i | 1 << d` and both go
//! to depth `d + 1`. Shards stand in arrays of doubling size that never move, so that finding one takes no lock: a
//! reader goes to the deepest shard born for its bits, locks it, and, if a split came in between, looks again.
//!
//! So a small collection is one small table, a growing one never stops for longer than one shard takes to split, and a
//! lock is held over one shard only, except by [`Table::lock_all`], which locks every shard from the root down; a split locks
//! parent before child too, so the two cannot block each other.

use std::hash::{BuildHasher, Hasher};
use std::sync::OnceLock;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use super::{Ledger, Refused, Stamp, Stored};
use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use crate::sync::{Mutex, NameHasher, RwLock, RwLockWriteGuard};
use crate::value::Member;

/// Shards double at most this often: a million of them, three thousand million members.
const MAX_DEPTH: u32 = 20;

/// A shard of this many members splits. While there are few shards they split early, for the sake of threads that
/// write beside each other; from then on a shard is as large as one put may take to split.
fn split_above(depth: u32) -> usize {
    match depth {
        0..4 => 64,
        4..MAX_DEPTH => 3000,
        _ => usize::MAX,
    }
}

#[inline]
pub(super) fn hash_name(hasher: &NameHasher, name: &str) -> u64 {
    let mut state = hasher.build_hasher();
    state.write(name.as_bytes());
    state.finish()
}

fn shard_bits(hash: u64) -> u32 {
    (hash >> 32) as u32
}

fn mask(depth: u32) -> u32 {
    (1 << depth) - 1
}

struct Slot<V> {
    member: Member,
    /// `None` is a tombstone: deleted, and not yet durably so.
    value: Option<V>,
    stamp: Stamp,
}

impl<V: Stored> Slot<V> {
    /// What this member counts among the bytes not yet durable while it is dirty.
    fn charge(&self) -> usize {
        self.member.len() + self.value.as_ref().map_or(0, V::weight)
    }

    fn at_risk(&self) -> usize {
        if self.stamp.dirty() { self.charge() } else { 0 }
    }
}

struct Inner<V> {
    slots: HashTable<Slot<V>>,
    /// Members that are not tombstones.
    live: u32,
    /// Bytes of names and values of live members.
    bytes: u64,
    /// Sum of `at_risk`.
    at_risk: usize,
}

#[repr(align(64))]
struct Shard<V> {
    /// Written under the lock, read without it. An unborn shard has depth 0; so has the root until its first split.
    depth: AtomicU32,
    inner: RwLock<Inner<V>>,
}

impl<V> Shard<V> {
    fn new() -> Self {
        let inner = Inner { slots: HashTable::new(), live: 0, bytes: 0, at_risk: 0 };
        Shard { depth: AtomicU32::new(0), inner: RwLock::new(inner) }
    }
}

/// `levels[k]` holds the shards whose number has its highest bit at `k`: 2^k of them.
type Levels<V> = [OnceLock<Box<[Shard<V>]>>; MAX_DEPTH as usize];

pub(crate) struct Table<V> {
    hasher: NameHasher,
    /// The deepest depth of any shard. Only grows, so a stale value costs a second look.
    depth: AtomicU32,
    /// Set with every shard locked: the members live elsewhere. Read under a shard's lock.
    moved: AtomicBool,
    root: Shard<V>,
    levels: OnceLock<Box<Levels<V>>>,
    /// What was replaced while somebody copied the store, and by which version: see [`Ledger::cut`].
    kept: Mutex<Vec<(Found<V>, u64)>>,
    /// How far whoever copies the store has come, as a cursor: what lies before it need not be kept. Written under the
    /// lock of the shard that was copied.
    copied: AtomicU64,
}

/// A member that was found.
pub(crate) struct Found<V> {
    pub(crate) member: Member,
    pub(crate) value: V,
    pub(crate) stamp: Stamp,
}

/// What the janitor took from a slot.
pub(crate) struct Taken<V> {
    /// `None` for a tombstone.
    pub(crate) value: Option<V>,
    pub(crate) stamp: Stamp,
    /// What the slot counted among the bytes not yet durable until now.
    pub(crate) charge: usize,
}

/// What `clear` removed. The values are in here, for the caller to drop when no lock is held.
pub(crate) struct Cleared<V> {
    pub(crate) members: usize,
    _tables: Vec<HashTable<Slot<V>>>,
    _values: Vec<V>,
}

/// Every shard of a table, locked.
struct AllShards<'a, V> {
    guards: Vec<RwLockWriteGuard<'a, Inner<V>>>,
    #[cfg(test)]
    numbers: Vec<u32>,
}

/// A table that a transaction writes to, with every shard locked.
#[cfg(test)]
pub(crate) struct Locked<'a, V> {
    table: &'a Table<V>,
    all: AllShards<'a, V>,
}

#[cfg(test)]
impl<V: Stored> Locked<'_, V> {
    /// Writes a member, or a tombstone: dirty, with nobody told. Returns what was at risk there before.
    pub(crate) fn write(&mut self, member: &str, value: Option<V>, stamp: Stamp) -> usize {
        let hash = self.table.hash(member);
        let (number, _) = self.table.find_shard(shard_bits(hash));
        let at = self.all.numbers.iter().position(|&found| found == number).expect("every shard is locked");
        let Inner { slots, live, bytes, at_risk } = &mut *self.all.guards[at];
        let new = Slot { member: Member::from(member), value, stamp };
        *at_risk += new.at_risk();
        *live += u32::from(new.value.is_some());
        *bytes += if new.value.is_some() { new.charge() as u64 } else { 0 };
        match slots.entry(hash, |slot| slot.member == *member, |slot| hash_name(&self.table.hasher, &slot.member)) {
            Entry::Occupied(mut occupied) => {
                let old = std::mem::replace(occupied.get_mut(), new);
                *at_risk -= old.at_risk();
                *live -= u32::from(old.value.is_some());
                *bytes -= if old.value.is_some() { old.charge() as u64 } else { 0 };
                old.at_risk()
            }
            Entry::Vacant(vacant) => {
                vacant.insert(new);
                0
            }
        }
    }
}

impl<V: Stored> Table<V> {
    pub(crate) fn new(hasher: NameHasher) -> Self {
        Table {
            hasher,
            depth: AtomicU32::new(0),
            moved: AtomicBool::new(false),
            root: Shard::new(),
            levels: OnceLock::new(),
            kept: Mutex::new(Vec::new()),
            copied: AtomicU64::new(0),
        }
    }

    fn hash(&self, member: &str) -> u64 {
        hash_name(&self.hasher, member)
    }

    #[inline]
    fn shard(&self, number: u32) -> Option<&Shard<V>> {
        let Some(level) = number.checked_ilog2() else {
            return Some(&self.root);
        };
        let shards = self.levels.get()?[level as usize].get()?;
        Some(&shards[(number - (1 << level)) as usize])
    }

    /// The deepest shard born for these bits, as far as can be seen without a lock.
    #[inline]
    fn find_shard(&self, bits: u32) -> (u32, &Shard<V>) {
        let mut number = bits & mask(self.depth.load(Ordering::Acquire));
        loop {
            match self.shard(number) {
                Some(shard) if number == 0 || shard.depth.load(Ordering::Acquire) > 0 => return (number, shard),
                _ => number &= mask(number.ilog2()),
            }
        }
    }

    /// Whether the shard, whose lock is held, is the one for these bits.
    #[inline]
    fn holds(shard: &Shard<V>, number: u32, bits: u32) -> bool {
        bits & mask(shard.depth.load(Ordering::Relaxed)) == number
    }

    #[inline]
    fn read<R>(&self, hash: u64, f: impl FnOnce(&Inner<V>) -> R) -> Result<R, Refused> {
        let bits = shard_bits(hash);
        loop {
            let (number, shard) = self.find_shard(bits);
            let inner = shard.inner.read();
            if self.moved.load(Ordering::Relaxed) {
                return Err(Refused::Moved);
            }
            if Self::holds(shard, number, bits) {
                return Ok(f(&inner));
            }
        }
    }

    #[inline]
    fn write<R>(&self, hash: u64, f: impl FnOnce(&mut Inner<V>) -> R) -> Result<R, Refused> {
        let bits = shard_bits(hash);
        loop {
            let (number, shard) = self.find_shard(bits);
            let mut inner = shard.inner.write();
            if self.moved.load(Ordering::Relaxed) {
                return Err(Refused::Moved);
            }
            if Self::holds(shard, number, bits) {
                let done = f(&mut inner);
                let depth = shard.depth.load(Ordering::Relaxed);
                if inner.slots.len() > split_above(depth) {
                    self.split(number, depth, shard, &mut inner);
                }
                return Ok(done);
            }
        }
    }

    /// Gives half of a shard, whose lock is held, to the child that is born of it.
    fn split(&self, number: u32, depth: u32, parent: &Shard<V>, inner: &mut Inner<V>) {
        let levels = self.levels.get_or_init(|| Box::new(std::array::from_fn(|_| OnceLock::new())));
        let shards = levels[depth as usize].get_or_init(|| (0..1 << depth).map(|_| Shard::new()).collect());
        let child = &shards[number as usize];
        let mut born = child.inner.write();

        let expected = inner.slots.len() / 2 + inner.slots.len() / 16;
        let mut kept = HashTable::with_capacity(expected);
        let mut given = HashTable::with_capacity(expected);
        let rehash = |slot: &Slot<V>| self.hash(&slot.member);
        for slot in std::mem::take(&mut inner.slots) {
            let hash = rehash(&slot);
            if shard_bits(hash) & (1 << depth) == 0 {
                kept.insert_unique(hash, slot, rehash);
                continue;
            }
            if let Some(value) = &slot.value {
                let bytes = (slot.member.len() + value.weight()) as u64;
                born.live += 1;
                born.bytes += bytes;
                inner.live -= 1;
                inner.bytes -= bytes;
            }
            born.at_risk += slot.at_risk();
            inner.at_risk -= slot.at_risk();
            given.insert_unique(hash, slot, rehash);
        }
        inner.slots = kept;
        born.slots = given;
        child.depth.store(depth + 1, Ordering::Release);
        parent.depth.store(depth + 1, Ordering::Release);
        self.depth.fetch_max(depth + 1, Ordering::Release);
    }

    #[inline]
    pub(crate) fn get(&self, member: &str) -> Result<Option<V>, Refused> {
        let hash = self.hash(member);
        self.read(hash, |inner| inner.slots.find(hash, |slot| slot.member == *member)?.value.clone())
    }

    pub(crate) fn contains(&self, member: &str) -> Result<bool, Refused> {
        let hash = self.hash(member);
        let found = |slot: &Slot<V>| slot.value.is_some();
        self.read(hash, |inner| inner.slots.find(hash, |slot| slot.member == *member).is_some_and(found))
    }

    /// Moves the value out of `value` into its place and returns the one that was there. Refused, it leaves `value`
    /// as it was.
    #[inline]
    pub(crate) fn put(
        &self,
        member: &str,
        value: &mut Option<V>,
        codec: u8,
        ledger: &(impl Ledger + ?Sized),
    ) -> Result<Option<V>, Refused> {
        let hash = self.hash(member);
        let weight = member.len() + value.as_ref().map_or(0, V::weight);
        let persists = ledger.persists();
        self.write(hash, |inner| {
            ledger.check_open()?;
            let Inner { slots, live, bytes, at_risk } = inner;
            let entry = slots.entry(hash, |slot| slot.member == *member, |slot| hash_name(&self.hasher, &slot.member));
            match entry {
                Entry::Occupied(mut occupied) => {
                    let slot = occupied.get_mut();
                    let was_at_risk = slot.at_risk();
                    if persists {
                        ledger.charge(weight as isize - was_at_risk as isize)?;
                        *at_risk = *at_risk - was_at_risk + weight;
                    }
                    let was_dirty = slot.stamp.dirty();
                    let old_stamp = slot.stamp;
                    slot.stamp = Stamp::new(ledger.next_version(), codec, persists);
                    let old = std::mem::replace(&mut slot.value, value.take());
                    if old_stamp.version() <= ledger.cut() {
                        self.keep(hash, &slot.member, &old, old_stamp, slot.stamp.version());
                    }
                    match &old {
                        Some(old) => *bytes -= (member.len() + old.weight()) as u64,
                        None => *live += 1,
                    }
                    *bytes += weight as u64;
                    if persists && !was_dirty {
                        ledger.dirty(&slot.member);
                    }
                    Ok(old)
                }
                Entry::Vacant(vacant) => {
                    if persists {
                        ledger.charge(weight as isize)?;
                        *at_risk += weight;
                    }
                    let stamp = Stamp::new(ledger.next_version(), codec, persists);
                    let member = Member::from(member);
                    if persists {
                        ledger.dirty(&member);
                    }
                    vacant.insert(Slot { member, value: value.take(), stamp });
                    *live += 1;
                    *bytes += weight as u64;
                    Ok(None)
                }
            }
        })?
    }

    /// Puts a member, or a tombstone, that is stored already: clean, and nobody is told. The highest version wins; whether
    /// it was this one is returned.
    pub(crate) fn restore(&self, member: Member, mut value: Option<V>, stamp: Stamp) -> Result<bool, Refused> {
        let hash = self.hash(&member);
        let weigh = |value: &Option<V>| value.as_ref().map_or(0, |value| (member.len() + value.weight()) as u64);
        let new = weigh(&value);
        // What is not kept is dropped when the lock is gone.
        self.write(hash, |inner| {
            let Inner { slots, live, bytes, .. } = inner;
            *live += u32::from(value.is_some());
            *bytes += new;
            match slots.entry(hash, |slot| slot.member == member, |slot| hash_name(&self.hasher, &slot.member)) {
                Entry::Occupied(mut occupied) => {
                    let slot = occupied.get_mut();
                    let newer = slot.stamp.version() < stamp.version();
                    if newer {
                        slot.stamp = stamp;
                        std::mem::swap(&mut slot.value, &mut value);
                    }
                    *live -= u32::from(value.is_some());
                    *bytes -= weigh(&value);
                    newer
                }
                Entry::Vacant(vacant) => {
                    vacant.insert(Slot { member: member.clone(), value: value.take(), stamp });
                    true
                }
            }
        })
    }

    /// The version of a member, or of its tombstone.
    pub(crate) fn version(&self, member: &str) -> Result<Option<u64>, Refused> {
        let hash = self.hash(member);
        self.read(hash, |inner| Some(inner.slots.find(hash, |slot| slot.member == *member)?.stamp.version()))
    }

    /// Gives a stored member a higher version. Whether there was a member with a lower one is returned.
    pub(crate) fn restamp(&self, member: &str, version: u64) -> Result<bool, Refused> {
        let hash = self.hash(member);
        self.write(hash, |inner| match inner.slots.find_mut(hash, |slot| slot.member == *member) {
            Some(slot) if slot.value.is_some() && slot.stamp.version() < version => {
                slot.stamp = Stamp::new(version, slot.stamp.codec(), slot.stamp.dirty());
                true
            }
            _ => false,
        })
    }

    /// Removes the stored members that have a lower version, and says how many those were.
    pub(crate) fn restore_clear(&self, version: u64) -> Result<usize, Refused> {
        let mut all = self.lock_all();
        if self.moved.load(Ordering::Relaxed) {
            return Err(Refused::Moved);
        }
        let mut removed = Vec::new();
        for inner in &mut all.guards {
            let Inner { slots, live, bytes, .. } = &mut **inner;
            for slot in slots.extract_if(|slot| slot.stamp.version() < version) {
                if let Some(value) = slot.value {
                    *live -= 1;
                    *bytes -= (slot.member.len() + value.weight()) as u64;
                    removed.push(value);
                }
            }
        }
        drop(all);
        Ok(removed.len())
    }

    /// Deletes a member, if it has the version given or none is given, and returns the value that was there.
    pub(crate) fn delete(
        &self,
        member: &str,
        only: Option<u64>,
        ledger: &(impl Ledger + ?Sized),
    ) -> Result<Option<V>, Refused> {
        let hash = self.hash(member);
        self.write(hash, |inner| {
            ledger.check_open()?;
            let Inner { slots, live, bytes, at_risk } = inner;
            let Ok(mut occupied) = slots.find_entry(hash, |slot| slot.member == *member) else {
                return Ok(None);
            };
            let slot = occupied.get_mut();
            if slot.value.is_none() || only.is_some_and(|version| version != slot.stamp.version()) {
                return Ok(None);
            }
            let (weight, old_stamp) = (slot.charge(), slot.stamp);
            let (old, version) = if ledger.persists() {
                let was_at_risk = slot.at_risk();
                ledger.charge(member.len() as isize - was_at_risk as isize)?;
                *at_risk = *at_risk - was_at_risk + member.len();
                let was_dirty = slot.stamp.dirty();
                let version = ledger.next_version();
                slot.stamp = Stamp::new(version, 0, true);
                if !was_dirty {
                    ledger.dirty(&slot.member);
                }
                (slot.value.take(), version)
            } else {
                let version = ledger.next_version();
                (occupied.remove().0.value, version)
            };
            if old_stamp.version() <= ledger.cut() {
                self.keep(hash, &Member::from(member), &old, old_stamp, version);
            }
            *live -= 1;
            *bytes -= weight as u64;
            Ok(old)
        })?
    }

    /// Removes every member at one moment: a put that races it is wholly before or wholly after.
    ///
    /// A member whose key waits in the channel leaves a tombstone behind, so that a put after the clear does not send the
    /// key a second time, and the backlog stays bounded.
    pub(crate) fn clear(&self, ledger: &(impl Ledger + ?Sized)) -> Result<Cleared<V>, Refused> {
        let mut all = self.lock_all();
        if self.moved.load(Ordering::Relaxed) {
            return Err(Refused::Moved);
        }
        ledger.check_open()?;
        let mut cleared = Cleared { members: 0, _tables: Vec::new(), _values: Vec::new() };
        if all.guards.iter().all(|inner| inner.live == 0) {
            return Ok(cleared);
        }
        let version = ledger.next_version();
        ledger.cleared(version);
        let cut = ledger.cut();
        if cut > 0 {
            for slot in all.guards.iter().flat_map(|inner| &inner.slots).filter(|slot| slot.stamp.version() <= cut) {
                self.keep(self.hash(&slot.member), &slot.member, &slot.value, slot.stamp, version);
            }
        }
        let mut freed = 0;
        for inner in &mut all.guards {
            cleared.members += inner.live as usize;
            freed += inner.at_risk;
            let slots = std::mem::take(&mut inner.slots);
            if inner.at_risk == 0 {
                cleared._tables.push(slots);
            } else {
                inner.at_risk = 0;
                for slot in slots {
                    cleared._values.extend(slot.value);
                    if slot.stamp.dirty() {
                        let tombstone = Slot { member: slot.member, value: None, stamp: Stamp::new(version, 0, true) };
                        inner.at_risk += tombstone.at_risk();
                        let hash = self.hash(&tombstone.member);
                        inner.slots.insert_unique(hash, tombstone, |slot| self.hash(&slot.member));
                    }
                }
                freed -= inner.at_risk;
            }
            (inner.live, inner.bytes) = (0, 0);
        }
        ledger.charge(-(freed as isize))?;
        Ok(cleared)
    }

    /// Keeps what is being replaced, unless it was copied already.
    #[cold]
    fn keep(&self, hash: u64, member: &Member, value: &Option<V>, stamp: Stamp, by: u64) {
        let place = u64::from(shard_bits(hash).reverse_bits());
        if let Some(value) = value.as_ref().filter(|_| place >= self.copied.load(Ordering::Relaxed)) {
            self.kept.lock().push((Found { member: member.clone(), value: value.clone(), stamp }, by));
        }
    }

    /// As [`scan`](Self::scan), for whoever copies the store.
    pub(crate) fn copy(&self, cursor: u64, mut pick: impl FnMut(&Member, &V, Stamp)) -> Result<Option<u64>, Refused> {
        self.scan_then(cursor, &mut pick, |next| self.copied.store(next, Ordering::Relaxed))
    }

    /// Nobody copies the store, and somebody may begin to.
    pub(crate) fn forget_kept(&self) {
        self.copied.store(0, Ordering::Relaxed);
        drop(std::mem::take(&mut *self.kept.lock()));
    }

    /// What was there at that moment and was replaced since, as far as it was not copied.
    pub(crate) fn take_kept(&self, moment: u64) -> Vec<Found<V>> {
        let kept = std::mem::take(&mut *self.kept.lock());
        // Before the moment was known more was kept.
        let was_there =
            |(found, by): (Found<V>, u64)| (found.stamp.version() <= moment && by > moment).then_some(found);
        kept.into_iter().filter_map(was_there).collect()
    }

    /// Clears the dirty mark, and then reads the value: a write that comes after the mark was cleared sends the key
    /// again. `None` when there is no such slot, as after a `clear`.
    pub(crate) fn take(&self, member: &str) -> Result<Option<Taken<V>>, Refused> {
        let hash = self.hash(member);
        self.write(hash, |inner| {
            let slot = inner.slots.find_mut(hash, |slot| slot.member == *member)?;
            let stamp = slot.stamp;
            let charge = slot.at_risk();
            slot.stamp = stamp.cleaned();
            inner.at_risk -= charge;
            Some(Taken { value: slot.value.clone(), stamp, charge })
        })
    }

    /// Removes a tombstone that is durable, unless the member was written again.
    pub(crate) fn bury(&self, member: &str, version: u64) -> Result<(), Refused> {
        let hash = self.hash(member);
        self.write(hash, |inner| {
            if let Ok(occupied) = inner.slots.find_entry(hash, |slot| slot.member == *member) {
                let slot = occupied.get();
                if slot.value.is_none() && slot.stamp.version() == version && !slot.stamp.dirty() {
                    occupied.remove();
                }
            }
        })
    }

    /// Collects the live members of one shard, the one where `cursor` points, through `pick`, and returns where to go
    /// on. Begin with 0; the end is `None`. A member that is there from the first step to the last is met exactly once.
    ///
    /// The cursor is the shard bits read backwards, in the upper half: in that order, splitting a shard only
    /// divides the range that it covers.
    pub(crate) fn scan(&self, cursor: u64, mut pick: impl FnMut(&Member, &V, Stamp)) -> Result<Option<u64>, Refused> {
        self.scan_then(cursor, &mut pick, |_| {})
    }

    /// Calls `done` with where to go on, at the latest 2^32, while the shard is still locked.
    fn scan_then(
        &self,
        cursor: u64,
        pick: &mut dyn FnMut(&Member, &V, Stamp),
        done: impl Fn(u64),
    ) -> Result<Option<u64>, Refused> {
        let bits = (cursor as u32).reverse_bits();
        loop {
            let (number, shard) = self.find_shard(bits);
            let inner = shard.inner.read();
            if self.moved.load(Ordering::Relaxed) {
                return Err(Refused::Moved);
            }
            if !Self::holds(shard, number, bits) {
                continue;
            }
            for slot in &inner.slots {
                if let Some(value) = &slot.value {
                    pick(&slot.member, value, slot.stamp);
                }
            }
            let next = cursor + (1 << (32 - shard.depth.load(Ordering::Relaxed)));
            done(next);
            return Ok((next < 1 << 32).then_some(next));
        }
    }

    /// Calls `f` with the numbers of every shard in turn: live members, and bytes of names and values.
    pub(crate) fn tally(&self) -> Result<(usize, u64), Refused> {
        let (mut live, mut bytes) = (0, 0);
        let mut cursor = Some(0u64);
        while let Some(at) = cursor {
            let bits = (at as u32).reverse_bits();
            let (number, shard) = self.find_shard(bits);
            let inner = shard.inner.read();
            if self.moved.load(Ordering::Relaxed) {
                return Err(Refused::Moved);
            }
            if Self::holds(shard, number, bits) {
                live += inner.live as usize;
                bytes += inner.bytes;
                let next = at + (1 << (32 - shard.depth.load(Ordering::Relaxed)));
                cursor = (next < 1 << 32).then_some(next);
            }
        }
        Ok((live, bytes))
    }

    /// Locks every shard, parents before their children. A shard cannot split while it is locked, so all children of
    /// a locked shard are known.
    fn lock_all(&self) -> AllShards<'_, V> {
        let mut guards = Vec::new();
        #[cfg(test)]
        let mut numbers = Vec::new();
        let mut waiting = vec![0u32];
        while let Some(number) = waiting.pop() {
            // A number is only pushed for a child of a locked parent, whose depth says that the child was born.
            let Some(shard) = self.shard(number) else { continue };
            let inner = shard.inner.write();
            let first = number.checked_ilog2().map_or(0, |top| top + 1);
            waiting.extend((first..shard.depth.load(Ordering::Relaxed)).map(|bit| number | 1 << bit));
            guards.push(inner);
            #[cfg(test)]
            numbers.push(number);
        }
        AllShards {
            guards,
            #[cfg(test)]
            numbers,
        }
    }

    #[cfg(test)]
    pub(crate) fn lock(&self) -> Locked<'_, V> {
        Locked { table: self, all: self.lock_all() }
    }

    /// Passes through every shard's lock: whatever was set before is seen by every write that comes after.
    pub(crate) fn barrier(&self) {
        drop(self.lock_all());
    }

    /// Hands everything over to `to`, at one moment, if it is still what `made` was made from: `made` holds, for each
    /// member, the value in its new form. Otherwise nothing changes, and `made` comes back with what is newer, to be made
    /// too; when nothing is newer, members have gone, and all must be made anew.
    pub(crate) fn move_to<W: Stored>(
        &self,
        to: &Table<W>,
        mut made: hashbrown::HashMap<Member, (W, Stamp), NameHasher>,
        publish: impl FnOnce(isize),
    ) -> Result<(), Stale<V, W>> {
        let mut all = self.lock_all();
        if self.moved.load(Ordering::Relaxed) {
            drop(all);
            return Err(Stale { made, newer: Vec::new() });
        }
        let mut newer = Vec::new();
        let mut live = 0;
        for slot in all.guards.iter().flat_map(|inner| &inner.slots) {
            let Some(value) = &slot.value else { continue };
            live += 1;
            match made.get(&slot.member) {
                Some((_, stamp)) if stamp.version() == slot.stamp.version() => {}
                _ => newer.push(Found { member: slot.member.clone(), value: value.clone(), stamp: slot.stamp }),
            }
        }
        if !newer.is_empty() || made.len() != live {
            drop(all);
            return Err(Stale { made, newer });
        }
        let mut charge = 0isize;
        let mut emptied = Vec::new();
        for inner in &mut all.guards {
            charge -= inner.at_risk as isize;
            (inner.live, inner.bytes, inner.at_risk) = (0, 0, 0);
            for slot in std::mem::take(&mut inner.slots) {
                let value = slot.value.is_some().then(|| made.remove(&slot.member).map(|(value, _)| value)).flatten();
                let moved = Slot { member: slot.member, value, stamp: slot.stamp };
                charge += moved.at_risk() as isize;
                emptied.push(slot.value);
                to.adopt(moved);
            }
        }
        self.moved.store(true, Ordering::Relaxed);
        publish(charge);
        drop(all);
        drop(emptied);
        Ok(())
    }

    /// Takes a slot as it is, marks and all. The table is not shared yet.
    fn adopt(&self, slot: Slot<V>) {
        let hash = self.hash(&slot.member);
        let adopted = self.write(hash, |inner| {
            if let Some(value) = &slot.value {
                inner.live += 1;
                inner.bytes += (slot.member.len() + value.weight()) as u64;
            }
            inner.at_risk += slot.at_risk();
            inner.slots.insert_unique(hash, slot, |slot| hash_name(&self.hasher, &slot.member));
        });
        debug_assert!(adopted.is_ok(), "a table that is being filled has not moved");
    }

    /// How many shards there are.
    #[cfg(test)]
    pub(crate) fn shards(&self) -> usize {
        self.lock_all().guards.len()
    }
}

/// What stopped `move_to`: the table has changed since.
pub(crate) struct Stale<V, W> {
    pub(crate) made: hashbrown::HashMap<Member, (W, Stamp), NameHasher>,
    /// Members that are not in `made`, or are there with an older value.
    pub(crate) newer: Vec<Found<V>>,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::value::Value;

    /// A ledger that only counts.
    #[derive(Default)]
    struct Counts(std::sync::atomic::AtomicU64, std::sync::atomic::AtomicIsize);

    impl Ledger for Counts {
        fn check_open(&self) -> Result<(), Refused> {
            Ok(())
        }
        fn charge(&self, delta: isize) -> Result<(), Refused> {
            self.1.fetch_add(delta, std::sync::atomic::Ordering::Relaxed);
            Ok(())
        }
        fn next_version(&self) -> u64 {
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1
        }
        fn persists(&self) -> bool {
            true
        }
        fn dirty(&self, _member: &Member) {}
        fn cleared(&self, _version: u64) {}

        fn cut(&self) -> u64 {
            0
        }
    }

    fn filled(members: usize) -> (Table<Value>, Counts) {
        let (table, ledger) = (Table::new(NameHasher::default()), Counts::default());
        for number in 0..members {
            let old = table.put(&number.to_string(), &mut Some(Value::from("12345678")), 0, &ledger);
            assert!(old == Ok(None));
        }
        (table, ledger)
    }

    fn walk(table: &Table<Value>) -> Vec<String> {
        let (mut met, mut cursor) = (Vec::new(), Some(0));
        while let Some(at) = cursor {
            cursor = table.scan(at, |member, _, _| met.push(member.to_string())).unwrap();
        }
        met
    }

    #[test]
    fn a_small_collection_is_one_shard_and_a_large_one_many() {
        assert_eq!(filled(10).0.shards(), 1);
        assert_eq!(filled(64).0.shards(), 1);
        assert!(filled(65).0.shards() >= 2);
        let (table, _) = filled(100_000);
        let shards = table.shards();
        assert!((32..=128).contains(&shards), "{shards}");
        assert_eq!(
            table.tally().unwrap(),
            (100_000, 800_000 + (0..100_000u32).map(|n| n.to_string().len() as u64).sum::<u64>())
        );
    }

    #[test]
    fn a_walk_meets_every_member_once() {
        for members in [0, 1, 64, 65, 1000, 30_000] {
            let (table, _) = filled(members);
            let met = walk(&table);
            assert_eq!(met.len(), members);
            assert_eq!(met.into_iter().collect::<BTreeSet<_>>().len(), members);
        }
    }

    #[test]
    fn a_walk_over_a_growing_table_meets_what_was_there_once() {
        let (table, ledger) = filled(500);
        let (mut met, mut cursor, mut next) = (Vec::new(), Some(0), 500);
        while let Some(at) = cursor {
            cursor = table.scan(at, |member, _, _| met.push(member.parse::<usize>().unwrap())).unwrap();
            for number in next..next + 5000 {
                table.put(&number.to_string(), &mut Some(Value::from("")), 0, &ledger).unwrap();
            }
            next += 5000;
            if next > 60_000 {
                next = 0; // Overwrites from here on: nothing grows for ever.
            }
        }
        let mut early: Vec<usize> = met.iter().copied().filter(|number| *number < 500).collect();
        early.sort_unstable();
        assert_eq!(early, (0..500).collect::<Vec<_>>());
        assert_eq!(met.iter().collect::<BTreeSet<_>>().len(), met.len());
    }

    #[test]
    fn a_stamp_holds_its_parts() {
        for (version, codec, dirty) in [(0, 0, false), (Stamp::VERSION, 255, true), (1 << 53, 1, false)] {
            let stamp = Stamp::new(version, codec, dirty);
            assert_eq!((stamp.version(), stamp.codec(), stamp.dirty()), (version, codec, dirty));
        }
    }

    #[test]
    fn what_is_at_risk_is_what_is_dirty() {
        let (table, ledger) = filled(1000);
        let sum = |table: &Table<Value>| table.lock_all().guards.iter().map(|inner| inner.at_risk).sum::<usize>();
        let all: usize = (0..1000u32).map(|number| number.to_string().len() + 8).sum();
        assert_eq!(sum(&table), all);
        let taken = table.take("7").unwrap().unwrap();
        assert_eq!((taken.charge, taken.stamp.dirty()), (9, true));
        assert_eq!(table.take("7").unwrap().unwrap().charge, 0);
        assert_eq!(sum(&table), all - 9);
        table.delete("8", None, &ledger).unwrap();
        assert_eq!(sum(&table), all - 9 - 8);
        let before = ledger.1.load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!(table.clear(&ledger).unwrap().members, 999);
        // What was dirty waits still, as tombstones of the length of their names.
        let names = all - 8 * 1000 - 1;
        assert_eq!(sum(&table), names);
        let freed = before - ledger.1.load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!(freed, (all - 17 - names) as isize);
        assert_eq!((table.tally().unwrap(), walk(&table).len()), ((0, 0), 0));
    }
}
