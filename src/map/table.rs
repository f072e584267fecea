//! Level two: the members of one collection, in shards that split as it grows.
//!
//! A shard is a hash table under its own lock. Shard `i` of depth `d` holds the members whose shard bits ([`shard_bits`]) end
//! in the `d` lowest bits of `i`. When it is full it gives half of them to shard `i | 1 << d` and both go to depth `d + 1`.
//! Shards stand in arrays of doubling size that never move, so that finding one takes no lock: a reader goes to the deepest
//! shard born for its bits, locks it, and, if a split came in between, looks again.
//!
//! So a small collection is one small table, a growing one never stops for longer than one shard takes to split, and a
//! lock is held over one shard only, except by [`Table::lock_all`], which locks every shard from the root down; a split locks
//! parent before child too, so the two cannot block each other.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, Hasher};
use std::num::Wrapping;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use hashbrown::HashTable;
use hashbrown::hash_table::{Entry, OccupiedEntry};

use super::index::{self, Duplicate, Index, Indexes, SortKey};
use super::{FEW, Held, KeyId, Ledger, Refused, Stamp, Stored, Told};
use crate::apart::Apart;
use crate::clock::Clock;
use crate::rare::Rare;
use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use crate::sync::{Mutex, NameHasher, RwLock, RwLockReadGuard, RwLockWriteGuard};
use crate::value::Member;
use crate::watch::ChangeKind;

/// Shards double at most this often: a million of them, more than a thousand million members.
const MAX_DEPTH: u32 = 20;

/// As many members are taken by the janitor under one lock at most: it bounds how long a shard is locked, and what a batch has
/// beyond its bound.
const AT_ONCE: usize = 16;

/// A shard of this many members splits. While there are few shards they split early, for the sake of threads that
/// write beside each other; from then on a shard is as large as one put may take to split. Both are what a table of 64
/// and one of 4,096 places takes before it would grow: what is about to be divided is not put into a larger table first.
fn split_at(own: u32) -> usize {
    match own {
        _ if own < mask(4) => 56,
        _ if own < mask(MAX_DEPTH) => 3584,
        _ => usize::MAX,
    }
}

#[inline]
pub(super) fn hash_name(hasher: &NameHasher, name: &str) -> u64 {
    let mut state = hasher.build_hasher();
    state.write(name.as_bytes());
    state.finish()
}

/// What of a hash decides about the shard. The two lowest bits are those of four classes that get 6, 7, 9 and 10 of 32
/// members, each about a fifth more than the one before: so the shards of a large collection fill, split and have tables of twice
/// the size at four different times, and not all at once.
#[inline]
pub(super) fn shard_bits(hash: u64) -> u32 {
    /// Two bits for each value of five.
    const CLASSES: u64 = {
        let (mut classes, mut of) = (0, 0);
        while of < 32 {
            let class = (of >= 6) as u64 + (of >= 6 + 7) as u64 + (of >= 6 + 7 + 9) as u64;
            classes |= class << (2 * of);
            of += 1;
        }
        classes
    };
    let bits = (hash >> 32) as u32;
    // Five bits that neither number a shard nor are the tag of a name in its table.
    let class = (CLASSES >> (2 * (bits >> MAX_DEPTH & 31))) as u32 & 3;
    bits & !3 | class
}

/// Where a member stands in a walk, as a cursor.
fn place(hash: u64) -> u64 {
    u64::from(shard_bits(hash).reverse_bits())
}

pub(super) const fn mask(depth: u32) -> u32 {
    (1 << depth) - 1
}

pub(super) struct Slot<V> {
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

    /// Clears the dirty mark, and then reads the value.
    fn take(&mut self, charge: usize, deadlines: &Option<Box<Deadlines>>, buffer: &mut Vec<u8>) -> Taken<V> {
        let stamp = self.stamp;
        self.stamp = stamp.cleaned();
        let start = buffer.len();
        let what = match &self.value {
            None => What::Nothing,
            Some(value) if value.copy_few(buffer) => What::Copy(start..buffer.len()),
            Some(value) => What::Value(value.clone()),
        };
        let deadline = if stamp.expires() { Deadlines::get(deadlines, &self.member) } else { None };
        Taken { what, stamp, deadline, charge }
    }
}

pub(super) struct Inner<V> {
    slots: HashTable<Slot<V>>,
    /// Members that are not tombstones.
    live: u32,
    /// Bytes of names and values of live members. Of one shard it means nothing, only the sum over a table does: a split
    /// leaves it where it is, for to learn what each member weighs takes longer than to move it.
    bytes: Wrapping<u64>,
    /// Sum of `at_risk`, likewise.
    at_risk: Wrapping<usize>,
    /// The highest version that was written here.
    pub(super) newest: u64,
    /// Of the members that have one, if any ever had.
    deadlines: Option<Box<Deadlines>>,
}

/// The members of a shard that expire, with their deadlines.
#[derive(Default)]
struct Deadlines {
    of: hashbrown::HashMap<Member, u64, NameHasher>,
    /// None is before this.
    earliest: u64,
}

impl Deadlines {
    fn set(this: &mut Option<Box<Deadlines>>, hasher: &NameHasher, member: &Member, deadline: Option<u64>) {
        match (deadline, this) {
            (Some(deadline), this) => {
                let this = this.get_or_insert_with(|| {
                    let of = hashbrown::HashMap::with_hasher(hasher.clone());
                    Box::new(Deadlines { of, earliest: u64::MAX })
                });
                this.earliest = deadline.min(this.earliest);
                this.of.insert(member.clone(), deadline);
            }
            (None, Some(this)) => _ = this.of.remove(member),
            (None, None) => {}
        }
    }

    fn get(this: &Option<Box<Deadlines>>, member: &str) -> Option<u64> {
        this.as_ref()?.of.get(member).copied()
    }
}

impl<V> Inner<V> {
    /// The deadline of a member of this shard.
    fn deadline(&self, slot: &Slot<V>) -> Option<u64> {
        if slot.stamp.expires() { Deadlines::get(&self.deadlines, &slot.member) } else { None }
    }

    /// Whether a slot's member is there to be seen: it has a value, and its deadline has not come.
    #[inline]
    fn shows(&self, slot: &Slot<V>, clock: &Clock) -> bool {
        slot.value.is_some() && (!slot.stamp.expires() || self.shows_at(slot, clock.reached()))
    }

    /// The same at a time.
    fn shows_at(&self, slot: &Slot<V>, time: u64) -> bool {
        slot.value.is_some() && (!slot.stamp.expires() || self.deadline(slot).is_none_or(|at| at > time))
    }

    /// Members that have expired and are still here.
    pub(super) fn expired(&self, reached: u64) -> usize {
        let some = self.deadlines.as_ref().filter(|some| some.earliest <= reached);
        some.map_or(0, |some| some.of.values().filter(|at| **at <= reached).count())
    }
}

pub(super) struct Shard<V> {
    /// As many ones as it is deep: what of the shard bits it goes by. Written under the lock, read without it. 0 in an unborn
    /// shard, and in the root until its first split.
    mask: AtomicU32,
    pub(super) inner: RwLock<Inner<V>>,
}

impl<V> Shard<V> {
    fn new() -> Self {
        let (bytes, at_risk) = (Wrapping(0), Wrapping(0));
        let inner = Inner { slots: HashTable::new(), live: 0, bytes, at_risk, newest: 0, deadlines: None };
        Shard { mask: AtomicU32::new(0), inner: RwLock::new(inner) }
    }

    /// To be asked under its lock.
    pub(super) fn depth(&self) -> u32 {
        self.mask.load(Ordering::Relaxed).trailing_ones()
    }
}

/// `levels[k]` holds the shards whose number has its highest bit at `k`: 2^k of them. There is a place for every bit of a
/// number, so that none has to be looked at for being too high.
type Levels<V> = [OnceLock<Box<[Apart<Shard<V>>]>>; u32::BITS as usize];

/// In this order: the first shard, what is seldom looked at, and what every call reads. So what is written and what is read
/// stand on different lines of the cache, without the gaps that an alignment would cost each of many small collections.
#[repr(C)]
pub(crate) struct Table<V> {
    root: Shard<V>,
    clock: Arc<Clock>,
    indexes: OnceLock<Box<Indexes<V>>>,
    /// What was replaced while somebody copied the store, and by which version: see [`Ledger::cut`].
    kept: Mutex<Vec<(Found<V>, u64)>>,
    /// How far whoever copies the store has come, as a cursor: what lies before it need not be kept. Written under the
    /// lock of the shard that was copied.
    copied: AtomicU64,
    levels: OnceLock<Box<Levels<V>>>,
    hasher: NameHasher,
    /// That of the deepest shard. Only grows, so a stale value costs a second look.
    mask: AtomicU32,
    /// How many indexes there are. Written with every shard locked, and read under a shard's lock.
    indexed: AtomicU32,
    /// Set with every shard locked: the members live elsewhere. Read under a shard's lock.
    moved: AtomicBool,
}

/// See [`Stored::touch`].
fn touch<'a, V: Stored>(values: impl Iterator<Item = &'a V>) {
    std::hint::black_box(values.map(V::touch).fold(0, usize::wrapping_add));
}

fn values_of<'a, V: 'a>(slots: impl Iterator<Item = &'a Slot<V>>) -> impl Iterator<Item = &'a V> {
    slots.filter_map(|slot| slot.value.as_ref())
}

/// Drops the members of a shard: to drop a value is to write to where it lies, so all are read first.
fn end<V: Stored>(slots: HashTable<Slot<V>>) {
    touch(values_of(slots.iter()));
    drop(slots);
}

fn held<V: Stored>(value: &V) -> Held {
    Box::new(value.clone())
}

/// A member that was found.
pub(crate) struct Found<V> {
    pub(crate) member: Member,
    pub(crate) value: V,
    pub(crate) stamp: Stamp,
    pub(crate) deadline: Option<u64>,
}

/// What the janitor took from a slot.
pub(crate) struct Taken<V> {
    pub(crate) what: What<V>,
    pub(crate) stamp: Stamp,
    pub(crate) deadline: Option<u64>,
    /// What the slot counted among the bytes not yet durable until now.
    pub(crate) charge: usize,
}

pub(crate) enum What<V> {
    /// It is a tombstone.
    Nothing,
    Value(V),
    /// Its few bytes, in the buffer.
    Copy(Range<usize>),
}

/// A member as a change finds it.
#[derive(Debug)]
pub(crate) struct Seen<'a, V> {
    pub(crate) value: &'a V,
    pub(crate) version: u64,
    pub(crate) deadline: Option<u64>,
}

/// What a change may put in place.
#[derive(Debug)]
pub(crate) struct New<V> {
    pub(crate) value: Option<V>,
    pub(crate) codec: u8,
    /// If the table has indexes.
    sorted: Rare<Sorted>,
    /// The value is made when what is there is seen: too late for keys.
    is_made_late: bool,
}

/// What a new value is to the indexes. In a box: most tables have none.
#[derive(Debug)]
struct Sorted {
    /// Under which they have it, one for each. Made by the table.
    keys: Vec<SortKey>,
    /// Why it was refused, if it was as a duplicate.
    duplicate: Option<Duplicate>,
}

impl<V> New<V> {
    #[inline]
    pub(crate) fn put(value: V, codec: u8) -> New<V> {
        New { value: Some(value), codec, sorted: Rare::empty(), is_made_late: false }
    }

    /// For a change that puts nothing, or makes the value when it sees what is there, which a table with indexes refuses
    /// as stale.
    pub(crate) fn nothing(codec: u8) -> New<V> {
        New { value: None, codec, sorted: Rare::empty(), is_made_late: true }
    }

    /// A value whose keys are made already.
    pub(crate) fn with_keys(value: V, codec: u8, keys: Vec<SortKey>) -> New<V> {
        let sorted = Rare::new(Sorted { keys, duplicate: None });
        New { value: Some(value), codec, sorted, is_made_late: false }
    }

    fn keys(&self) -> &[SortKey] {
        self.sorted.get().map_or(&[], |sorted| &sorted.keys)
    }

    /// Why it was refused, if it was as a duplicate.
    pub(crate) fn take_duplicate(&mut self) -> Option<Duplicate> {
        self.sorted.get_mut()?.duplicate.take()
    }
}

/// What becomes of a member's deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until {
    /// There is none from now on.
    Removed,
    At(u64),
    /// It stays as it was.
    Kept,
}

/// When a change is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Only {
    Always,
    /// When the member has this version; 0 when there is none.
    Version(u64),
}

/// How a value is put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct How {
    pub(crate) until: Until,
    pub(crate) only: Only,
}

impl How {
    pub(crate) fn always(until: Until) -> How {
        How { until, only: Only::Always }
    }

    /// If the member has this version. The deadline goes.
    pub(crate) fn only(version: u64) -> How {
        How { until: Until::Removed, only: Only::Version(version) }
    }

    /// If the member has this version. The deadline stays.
    pub(crate) fn kept(version: u64) -> How {
        How { until: Until::Kept, only: Only::Version(version) }
    }
}

impl Only {
    fn allows<V>(self, seen: Option<&Seen<'_, V>>) -> bool {
        match self {
            Only::Always => true,
            Only::Version(version) => seen.map_or(0, |seen| seen.version) == version,
        }
    }
}

/// What a change does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    Leave,
    /// Put the new value in place.
    Put(Until),
    Delete,
    /// Give the value that is there another deadline.
    Touch(Until),
}

/// What a change has done.
#[derive(Debug)]
pub(crate) struct Done<V> {
    /// What was there and is there no more.
    pub(crate) old: Option<V>,
    /// The write's number; 0 if nothing was written.
    pub(crate) version: u64,
    /// What had expired and was here still: nobody's, and to be dropped when no lock is held.
    over: Option<V>,
}

impl<V> Done<V> {
    pub(crate) fn new(old: Option<V>, version: u64) -> Self {
        Done { old, version, over: None }
    }

    pub(crate) fn nothing() -> Self {
        Done::new(None, 0)
    }

    /// Everything that is to be dropped when no lock is held.
    pub(super) fn replaced(self) -> impl Iterator<Item = V> {
        self.old.into_iter().chain(self.over)
    }
}

/// What `clear` removed. The values are in here, for the caller to drop when no lock is held.
pub(crate) struct Cleared<V> {
    members: usize,
    indexed: Vec<index::Content<V>>,
    tables: Vec<HashTable<Slot<V>>>,
    /// Of each shard of which something is here still.
    values: Vec<Vec<V>>,
}

impl<V: Stored> Cleared<V> {
    /// Drops it, and says how many members it had.
    pub(crate) fn end(self) -> usize {
        drop(self.indexed);
        self.tables.into_iter().for_each(end);
        for values in self.values {
            touch(values.iter());
            drop(values);
        }
        self.members
    }
}

/// Every shard of a table, or some, locked: with their numbers, in order.
type Guards<'a, V> = Vec<(u32, RwLockWriteGuard<'a, Inner<V>>)>;

/// What of a shard is counted: live members, bytes, bytes at risk, deadlines.
type Parts<'a> = (&'a mut u32, &'a mut Wrapping<u64>, &'a mut Wrapping<usize>, &'a mut Option<Box<Deadlines>>);

/// What a scan calls with each member.
type Pick<'a, V> = dyn FnMut(&Member, &V, Stamp, Option<u64>) + 'a;

/// One step of a scan.
#[derive(Debug)]
pub(crate) struct Scanned {
    /// Where the part begins, as a cursor.
    pub(super) from: u64,
    /// The last write to it.
    pub(super) newest: u64,
    /// Members that have expired and are here still.
    pub(super) expired: usize,
}

impl<V: Stored> Table<V> {
    pub(crate) fn new(hasher: NameHasher, clock: Arc<Clock>) -> Self {
        Table {
            hasher,
            clock,
            mask: AtomicU32::new(0),
            moved: AtomicBool::new(false),
            root: Shard::new(),
            levels: OnceLock::new(),
            indexed: AtomicU32::new(0),
            indexes: OnceLock::new(),
            kept: Mutex::new(Vec::new()),
            copied: AtomicU64::new(0),
        }
    }

    pub(super) fn hash(&self, member: &str) -> u64 {
        hash_name(&self.hasher, member)
    }

    #[inline]
    pub(super) fn shard(&self, number: u32) -> Option<&Shard<V>> {
        let Some(level) = number.checked_ilog2() else {
            return Some(&self.root);
        };
        let shards = self.levels.get()?[level as usize].get()?;
        Some(&shards[(number - (1 << level)) as usize].0)
    }

    /// The deepest shard born for these bits, as far as can be seen without a lock.
    #[inline]
    pub(super) fn find_shard(&self, bits: u32) -> (u32, &Shard<V>) {
        let mut number = bits & self.mask.load(Ordering::Acquire);
        loop {
            match self.shard(number) {
                Some(shard) if number == 0 || shard.mask.load(Ordering::Acquire) > 0 => return (number, shard),
                _ => number &= mask(number.ilog2()),
            }
        }
    }

    /// Whether the shard, whose lock is held, is the one for these bits.
    #[inline]
    pub(super) fn holds(shard: &Shard<V>, number: u32, bits: u32) -> bool {
        bits & shard.mask.load(Ordering::Relaxed) == number
    }

    /// Locks the shard that holds these members. Inlined: most of what a get does is done here.
    #[inline(always)]
    fn read(&self, hash: u64) -> Result<RwLockReadGuard<'_, Inner<V>>, Refused> {
        let bits = shard_bits(hash);
        loop {
            let (number, shard) = self.find_shard(bits);
            let inner = shard.inner.read();
            if self.moved.load(Ordering::Relaxed) {
                return Err(Refused::Moved);
            }
            if Self::holds(shard, number, bits) {
                return Ok(inner);
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
                self.split_if_full(number, shard, &mut inner);
                return Ok(done);
            }
        }
    }

    #[inline]
    pub(super) fn split_if_full(&self, number: u32, shard: &Shard<V>, inner: &mut Inner<V>) {
        if inner.slots.len() >= split_at(shard.mask.load(Ordering::Relaxed)) {
            self.split(number, shard, inner);
        }
    }

    /// Whether the members live elsewhere. To be asked under a shard's lock.
    pub(super) fn has_moved(&self) -> bool {
        self.moved.load(Ordering::Relaxed)
    }

    /// The deepest depth of any shard, at least.
    pub(super) fn deepest(&self) -> u32 {
        self.mask.load(Ordering::Acquire).trailing_ones()
    }

    /// The version of a member that is there to be seen at a time; 0 if none is.
    pub(super) fn version_in(&self, inner: &Inner<V>, hash: u64, member: &str, time: u64) -> u64 {
        let slot = inner.slots.find(hash, |slot| slot.member == *member);
        slot.filter(|slot| inner.shows_at(slot, time)).map_or(0, |slot| slot.stamp.version())
    }

    pub(super) fn version_at(&self, member: &str, time: u64) -> Result<u64, Refused> {
        let hash = self.hash(member);
        Ok(self.version_in(&*self.read(hash)?, hash, member, time))
    }

    pub(crate) fn reached(&self) -> u64 {
        self.clock.reached()
    }

    /// Gives half of a shard, whose lock is held, to the child that is born of it.
    #[cold]
    fn split(&self, number: u32, parent: &Shard<V>, inner: &mut Inner<V>) {
        let depth = parent.depth();
        let levels = self.levels.get_or_init(|| Box::new(std::array::from_fn(|_| OnceLock::new())));
        let shards = levels[depth as usize].get_or_init(|| (0..1 << depth).map(|_| Apart(Shard::new())).collect());
        let child = &shards[number as usize].0;
        let mut born = child.inner.write();
        born.newest = inner.newest;

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
            if slot.value.is_some() {
                born.live += 1;
                inner.live -= 1;
            }
            if slot.stamp.expires() {
                let deadline = inner.deadlines.as_mut().and_then(|some| some.of.remove(&slot.member));
                Deadlines::set(&mut born.deadlines, &self.hasher, &slot.member, deadline);
            }
            given.insert_unique(hash, slot, rehash);
        }
        inner.slots = kept;
        born.slots = given;
        let deeper = mask(depth + 1);
        child.mask.store(deeper, Ordering::Release);
        parent.mask.store(deeper, Ordering::Release);
        self.mask.fetch_max(deeper, Ordering::Release);
    }

    /// The value of a member of a table that never moves. Never inlined, so that everything in it is.
    #[inline(never)]
    pub(crate) fn get_settled(&self, member: &str) -> Option<V> {
        self.get(member).unwrap_or_default()
    }

    /// For gets by key, into which it is inlined, and for the one above: with a third user the search of the table would be a
    /// call in each. Others [`look`](Self::look).
    #[inline(always)]
    pub(crate) fn get(&self, member: &str) -> Result<Option<V>, Refused> {
        let hash = self.hash(member);
        let inner = self.read(hash)?;
        let Some(slot) = inner.slots.find(hash, |slot| slot.member == *member) else { return Ok(None) };
        if slot.stamp.expires() && !inner.shows(slot, &self.clock) {
            return Ok(None);
        }
        Ok(slot.value.clone())
    }

    /// Shows a member as it is, if it is there.
    pub(crate) fn look<R>(&self, member: &str, f: impl FnOnce(Seen<'_, V>) -> R) -> Result<Option<R>, Refused> {
        let hash = self.hash(member);
        let inner = self.read(hash)?;
        let slot = inner.slots.find(hash, |slot| slot.member == *member);
        let Some(slot) = slot.filter(|slot| inner.shows(slot, &self.clock)) else { return Ok(None) };
        let seen = |value| Seen { value, version: slot.stamp.version(), deadline: inner.deadline(slot) };
        Ok(slot.value.as_ref().map(|value| f(seen(value))))
    }

    pub(crate) fn contains(&self, member: &str) -> Result<bool, Refused> {
        let hash = self.hash(member);
        let inner = self.read(hash)?;
        let slot = inner.slots.find(hash, |slot| slot.member == *member);
        Ok(slot.is_some_and(|slot| inner.shows(slot, &self.clock)))
    }

    /// Changes a member as `decide` says, which sees it under the shard's lock and must be larder's own code. What it
    /// puts in place is taken out of `new`, unless the change is refused.
    #[inline]
    pub(crate) fn change(
        &self,
        member: &str,
        new: &mut New<V>,
        ledger: &(impl Ledger + ?Sized),
        mut decide: impl FnMut(Option<Seen<'_, V>>, &mut Option<V>) -> Act,
    ) -> Result<Done<V>, Refused> {
        let hash = self.hash(member);
        loop {
            if self.indexed.load(Ordering::Relaxed) > 0 && !new.is_made_late {
                let keys = self.keys_of(member, new.value.as_ref());
                new.sorted = Rare::new(Sorted { keys, duplicate: None });
            }
            let done = self
                .write(hash, |inner| self.change_in(inner, hash, member, new, &mut Vec::new(), ledger, &mut decide))?;
            match done {
                // An index was added in between.
                Err(Refused::Stale) if !new.is_made_late => {}
                done => return done,
            }
        }
    }

    /// The same in its shard, which is locked.
    #[inline]
    #[expect(clippy::too_many_arguments, reason = "a change, and all that it has to do with")]
    pub(super) fn change_in<'t>(
        &'t self,
        inner: &mut Inner<V>,
        hash: u64,
        member: &str,
        new: &mut New<V>,
        held_indexes: &mut index::Held<'t, V>,
        ledger: &(impl Ledger + ?Sized),
        decide: impl FnOnce(Option<Seen<'_, V>>, &mut Option<V>) -> Act,
    ) -> Result<Done<V>, Refused> {
        let persists = ledger.persists();
        let is_indexed = self.indexed.load(Ordering::Relaxed) > 0;
        {
            ledger.check_open()?;
            let Inner { slots, live, bytes, at_risk, newest, deadlines } = inner;
            let entry = slots.entry(hash, |slot| slot.member == *member, |slot| hash_name(&self.hasher, &slot.member));
            let mut occupied = match entry {
                Entry::Occupied(occupied) => occupied,
                Entry::Vacant(vacant) => {
                    let Act::Put(until) = decide(None, &mut new.value) else { return Ok(Done::nothing()) };
                    if is_indexed {
                        self.enter(held_indexes, member, new)?;
                    }
                    let weight = member.len() + new.value.as_ref().map_or(0, V::weight);
                    if persists {
                        ledger.charge(weight as isize)?;
                        *at_risk += weight;
                    }
                    let watching = ledger.watch();
                    let version = ledger.next_version();
                    *newest = version;
                    let mut stamp = Stamp::new(version, new.codec, persists);
                    let member = Member::from(member);
                    if persists {
                        ledger.dirty(&member, shard_bits(hash));
                    }
                    if let Until::At(deadline) = until {
                        stamp = stamp.expiring(true);
                        Deadlines::set(deadlines, &self.hasher, &member, Some(deadline));
                        ledger.schedule(&member, None, Some(deadline));
                    }
                    if let Some(mut watching) = watching {
                        let new = new.value.as_ref().map(held);
                        watching.tell(
                            Told { member: Some(member.clone()), kind: ChangeKind::Put, old: None, new },
                            version,
                        );
                    }
                    if is_indexed {
                        let deadline = if let Until::At(deadline) = until { Some(deadline) } else { None };
                        self.index(held_indexes, &member, new, deadline);
                    }
                    vacant.insert(Slot { member, value: new.value.take(), stamp });
                    *live += 1;
                    *bytes += weight as u64;
                    return Ok(Done::new(None, version));
                }
            };

            let slot = occupied.get_mut();
            let old_deadline = if slot.stamp.expires() { Deadlines::get(deadlines, member) } else { None };
            let is_over = old_deadline.is_some_and(|at| at <= self.clock.reached());
            let seen = slot.value.as_ref().filter(|_| !is_over).map(|value| Seen {
                value,
                version: slot.stamp.version(),
                deadline: old_deadline,
            });
            let is_there = seen.is_some();
            let act = decide(seen, &mut new.value);
            let until = match act {
                Act::Put(until) => until,
                Act::Touch(until) if is_there => until,
                Act::Delete if is_there => {
                    let kind = ChangeKind::Delete;
                    let parts = (live, bytes, at_risk, deadlines);
                    let done = self.remove(hash, occupied, parts, held_indexes, kind, ledger)?;
                    *newest = done.version;
                    return Ok(done);
                }
                Act::Leave | Act::Touch(_) | Act::Delete => return Ok(Done::nothing()),
            };
            let is_put = matches!(act, Act::Put(_));
            // Before the rings of those who watch: see `map/index.rs`.
            if is_indexed && is_put {
                self.enter(held_indexes, member, new)?;
            } else if is_indexed {
                self.hold_indexes(held_indexes);
            }
            let placed = if is_put { new.value.as_ref() } else { slot.value.as_ref() };
            let weight = member.len() + placed.map_or(0, V::weight);
            let was_at_risk = slot.at_risk();
            if persists {
                ledger.charge(weight as isize - was_at_risk as isize)?;
                *at_risk -= was_at_risk;
                *at_risk += weight;
            }
            let old_stamp = slot.stamp;
            let watching = ledger.watch();
            let version = ledger.next_version();
            *newest = version;
            let codec = if is_put { new.codec } else { old_stamp.codec() };
            let deadline = match until {
                Until::Removed => None,
                Until::At(deadline) => Some(deadline),
                Until::Kept => old_deadline.filter(|_| is_there),
            };
            slot.stamp = Stamp::new(version, codec, persists).expiring(deadline.is_some());
            if is_indexed && is_put {
                self.index(held_indexes, &slot.member, new, deadline);
            } else if is_indexed {
                held_indexes.iter_mut().for_each(|content| content.touch(&slot.member, deadline));
            }
            let old_value = if is_put { std::mem::replace(&mut slot.value, new.value.take()) } else { None };
            if old_stamp.version() <= ledger.cut() {
                let kept = if is_put { &old_value } else { &slot.value };
                self.keep(hash, &slot.member, kept, old_stamp, old_deadline, version);
            }
            if let Some(mut watching) = watching {
                let member = || Some(slot.member.clone());
                let old = if is_put { &old_value } else { &slot.value }.as_ref().map(held);
                let old = if is_over {
                    let told = Told { member: member(), kind: ChangeKind::Expire, old, new: None };
                    watching.tell(told, version);
                    None
                } else {
                    old
                };
                let kind = if is_put { ChangeKind::Put } else { ChangeKind::Deadline };
                let new = slot.value.as_ref().map(held);
                watching.tell(Told { member: member(), kind, old, new }, version);
            }
            if deadline != old_deadline {
                Deadlines::set(deadlines, &self.hasher, &slot.member, deadline);
                ledger.schedule(&slot.member, old_deadline, deadline);
            }
            if is_put {
                match &old_value {
                    Some(old) => *bytes -= (member.len() + old.weight()) as u64,
                    None => *live += 1,
                }
                *bytes += weight as u64;
            }
            if persists && !old_stamp.dirty() {
                ledger.dirty(&slot.member, shard_bits(hash));
            }
            let (old, over) = if is_over { (None, old_value) } else { (old_value, None) };
            Ok(Done { old, version, over })
        }
    }

    /// The indexes that there are.
    pub(super) fn indexes(&self) -> impl Iterator<Item = &Index<V>> {
        let count = self.indexed.load(Ordering::Acquire) as usize;
        self.indexes.get().into_iter().flat_map(move |indexes| indexes[..count].iter().filter_map(OnceLock::get))
    }

    pub(crate) fn index_named(&self, name: &str) -> Option<&Index<V>> {
        self.indexes().find(|index| *index.name == *name && !index.is_dead())
    }

    /// An index by its place.
    pub(crate) fn index_at(&self, place: usize) -> Option<&Index<V>> {
        self.indexes().nth(place)
    }

    /// The sort keys of a value, for each index. Runs the caller's code: no lock may be held.
    pub(crate) fn keys_of(&self, member: &str, value: Option<&V>) -> Vec<SortKey> {
        let keys = value.map(|value| self.indexes().map(|index| index.key_of(member, value)).collect());
        keys.unwrap_or_default()
    }

    /// Locks the indexes, unless that is done. Under a shard's lock.
    pub(super) fn hold_indexes<'t>(&'t self, held: &mut index::Held<'t, V>) {
        if held.is_empty() {
            held.extend(self.indexes().map(Index::lock));
        }
    }

    /// Locks the indexes, and sees whether the value may go into them.
    #[cold]
    fn enter<'t>(&'t self, held: &mut index::Held<'t, V>, member: &str, new: &mut New<V>) -> Result<(), Refused> {
        // Whoever has locked them before has seen to it.
        let is_checked = !held.is_empty();
        self.hold_indexes(held);
        index::check_fresh(held, new.keys())?;
        if is_checked {
            return Ok(());
        }
        let indexes: Vec<_> = self.indexes().collect();
        let checked = index::check_unique(&indexes, held, member, new.keys(), self.clock.reached());
        checked.map_err(|duplicate| {
            if let Some(sorted) = new.sorted.get_mut() {
                sorted.duplicate = Some(duplicate);
            }
            Refused::Duplicate
        })
    }

    #[cold]
    fn index(&self, held: &mut index::Held<'_, V>, member: &Member, new: &mut New<V>, deadline: Option<u64>) {
        let (Some(value), Some(sorted)) = (&new.value, new.sorted.get_mut()) else { return };
        let keys = sorted.keys.drain(..);
        for ((content, key), _) in held.iter_mut().zip(keys).zip(self.indexes()).filter(|(_, index)| !index.is_dead()) {
            content.put(member, key, index::Entry { value: value.clone(), deadline });
        }
    }

    /// Adds an index of all members, whose sort keys are made by the caller's code with nothing locked. Returns its place.
    ///
    /// From the moment when it is added every write goes into it. The members that were there before follow, each unless
    /// it has been written since.
    ///
    /// # Errors
    ///
    /// Two members with the same key, in one that allows one. `None` stands for too many indexes, or one of the same name.
    pub(crate) fn add_index(&self, index: Index<V>) -> Result<usize, Option<Duplicate>> {
        let all = self.lock_all();
        let place = self.indexed.load(Ordering::Relaxed) as usize;
        if place == index::MANY || self.index_named(&index.name).is_some() {
            drop(all);
            return Err(None);
        }
        let indexes = self.indexes.get_or_init(|| Box::new(std::array::from_fn(|_| OnceLock::new())));
        // Nobody else sets it: every shard is locked.
        let index = indexes[place].get_or_init(|| index);
        self.indexed.store(place as u32 + 1, Ordering::Release);
        drop(all);

        let building = index::Building(index);
        let mut cursor = Some(0);
        while let Some(at) = cursor {
            let mut found = Vec::new();
            // A part is small while the collection is: then there is nothing to share between threads.
            while found.len() < index::MANY_AT_ONCE
                && let Some(at) = cursor
            {
                cursor = self.scan_all(at, |member| found.push(member)).unwrap_or_default();
            }
            // Those whose deadline is changed meanwhile have the value that they had, and come once more.
            while !found.is_empty() {
                let made = index::in_parallel(found, |found| index.key_of(&found.member, &found.value));
                found = self.put_in_index(index, at, made);
            }
        }
        building.done(|| self.clock.reached()).map(|()| place).map_err(Some)
    }

    /// Puts members into an index that is being built, unless they have been written since, which has put them there. Those
    /// that are still missing come back as they are now.
    fn put_in_index(&self, index: &Index<V>, from: u64, made: Vec<(Found<V>, SortKey)>) -> Vec<Found<V>> {
        // By the cursor of the part that each is in.
        let mut made: Vec<_> = made
            .into_iter()
            .map(|(found, key)| {
                let hash = self.hash(&found.member);
                (place(hash), hash, found, key)
            })
            .collect();
        made.sort_unstable_by_key(|(place, ..)| *place);
        let (mut rest, mut from, mut missing) = (&made[..], Some(from), Vec::new());
        while !rest.is_empty()
            && let Some(at) = from
        {
            let mut count = 0;
            let done = self.scan_with(at, |inner, Range { end: next, .. }| {
                count = rest.partition_point(|(place, ..)| *place < next);
                let mut content = index.lock();
                for (_, hash, found, key) in &rest[..count] {
                    let Some(slot) = inner.slots.find(*hash, |slot| slot.member == found.member) else { continue };
                    let (Some(value), false) = (&slot.value, content.has(&slot.member)) else { continue };
                    if slot.stamp.version() == found.stamp.version() {
                        let entry = index::Entry { value: found.value.clone(), deadline: found.deadline };
                        content.put(&found.member, key.clone(), entry);
                    } else {
                        let (member, deadline) = (slot.member.clone(), inner.deadline(slot));
                        missing.push(Found { member, value: value.clone(), stamp: slot.stamp, deadline });
                    }
                }
            });
            debug_assert!(done.is_ok(), "what has indexes does not move");
            from = done.unwrap_or_default();
            rest = &rest[count..];
        }
        missing
    }

    /// What most puts are, and in few steps: no deadline goes or comes, there is no index, and nobody watches. Returns what
    /// was there, or the value itself, with nothing done, when this put is another, is refused, or has to look again, all of
    /// which is for [`put_only`](Self::put_only) to find out.
    #[inline]
    pub(crate) fn put_plainly(
        &self,
        member: &str,
        value: V,
        codec: u8,
        ledger: &(impl Ledger + ?Sized),
    ) -> Result<Option<V>, V> {
        let hash = self.hash(member);
        let bits = shard_bits(hash);
        let (number, shard) = self.find_shard(bits);
        let mut guard = shard.inner.write();
        let is_here = !self.moved.load(Ordering::Relaxed) && Self::holds(shard, number, bits);
        let is_plain = self.indexed.load(Ordering::Relaxed) == 0 && !ledger.is_watched();
        if !is_here || !is_plain || ledger.check_open().is_err() {
            return Err(value);
        }
        let inner = &mut *guard;
        let persists = ledger.persists();
        let weight = member.len() + value.weight();
        let Some(slot) = inner.slots.find_mut(hash, |slot| slot.member == *member) else {
            if persists {
                if ledger.charge(weight as isize).is_err() {
                    return Err(value);
                }
                inner.at_risk += weight;
            }
            let version = ledger.next_version();
            inner.newest = version;
            inner.bytes += weight as u64;
            inner.live += 1;
            let stamp = Stamp::new(version, codec, persists);
            let slot = Slot { member: Member::from(member), value: Some(value), stamp };
            if persists {
                ledger.dirty(&slot.member, bits);
            }
            inner.slots.insert_unique(hash, slot, |slot| hash_name(&self.hasher, &slot.member));
            self.split_if_full(number, shard, inner);
            return Ok(None);
        };
        let (Some(old), false) = (&mut slot.value, slot.stamp.expires()) else { return Err(value) };
        let old_weight = member.len() + old.weight();
        if persists {
            let was_at_risk = if slot.stamp.dirty() { old_weight } else { 0 };
            if ledger.charge(weight as isize - was_at_risk as isize).is_err() {
                return Err(value);
            }
            inner.at_risk -= was_at_risk;
            inner.at_risk += weight;
        }
        let version = ledger.next_version();
        inner.newest = version;
        inner.bytes -= old_weight as u64;
        inner.bytes += weight as u64;
        let old_stamp = std::mem::replace(&mut slot.stamp, Stamp::new(version, codec, persists));
        let old_value = Some(std::mem::replace(old, value));
        if old_stamp.version() <= ledger.cut() {
            self.keep(hash, &slot.member, &old_value, old_stamp, None, version);
        }
        if persists && !old_stamp.dirty() {
            ledger.dirty(&slot.member, bits);
        }
        Ok(old_value)
    }

    /// Puts a value in place, if the member is as it is to be.
    pub(crate) fn put_only(
        &self,
        member: &str,
        new: &mut New<V>,
        how: How,
        ledger: &(impl Ledger + ?Sized),
    ) -> Result<Done<V>, Refused> {
        let decide = |seen: Option<Seen<'_, V>>, _: &mut Option<V>| {
            if how.only.allows(seen.as_ref()) { Act::Put(how.until) } else { Act::Leave }
        };
        self.change(member, new, ledger, decide)
    }

    /// Deletes a member, if it is as it is to be.
    pub(crate) fn delete(&self, member: &str, only: Only, ledger: &(impl Ledger + ?Sized)) -> Result<Done<V>, Refused> {
        let decide = |seen: Option<Seen<'_, V>>, _: &mut Option<V>| {
            if only.allows(seen.as_ref()) { Act::Delete } else { Act::Leave }
        };
        self.change(member, &mut New::nothing(0), ledger, decide)
    }

    /// Removes a member whose deadline this is and has come.
    pub(crate) fn expire(
        &self,
        member: &str,
        deadline: u64,
        ledger: &(impl Ledger + ?Sized),
    ) -> Result<Option<V>, Refused> {
        let hash = self.hash(member);
        self.write(hash, |inner| {
            ledger.check_open()?;
            let Inner { slots, live, bytes, at_risk, newest, deadlines } = inner;
            let has_it = |at: Option<u64>| at == Some(deadline) && deadline <= self.clock.reached();
            match slots.find_entry(hash, |slot| slot.member == *member) {
                Ok(occupied) if occupied.get().stamp.expires() && has_it(Deadlines::get(deadlines, member)) => {
                    let kind = ChangeKind::Expire;
                    let parts = (live, bytes, at_risk, deadlines);
                    let done = self.remove(hash, occupied, parts, &mut Vec::new(), kind, ledger)?;
                    *newest = done.version;
                    Ok(done.old)
                }
                _ => Ok(None),
            }
        })?
    }

    /// Removes the value of a slot that has one.
    fn remove<'t>(
        &'t self,
        hash: u64,
        mut occupied: OccupiedEntry<'_, Slot<V>>,
        (live, bytes, at_risk, deadlines): Parts<'_>,
        held_indexes: &mut index::Held<'t, V>,
        kind: ChangeKind,
        ledger: &(impl Ledger + ?Sized),
    ) -> Result<Done<V>, Refused> {
        let slot = occupied.get_mut();
        let (weight, old_stamp) = (slot.charge(), slot.stamp);
        let name = slot.member.len();
        if ledger.persists() {
            let was_at_risk = slot.at_risk();
            ledger.charge(name as isize - was_at_risk as isize)?;
            *at_risk -= was_at_risk;
            *at_risk += name;
        }
        let is_indexed = self.indexed.load(Ordering::Relaxed) > 0;
        // Before the rings of those who watch: see `map/index.rs`.
        if is_indexed {
            self.hold_indexes(held_indexes);
        }
        let watching = ledger.watch();
        let version = ledger.next_version();
        if let Some(mut watching) = watching {
            let old = slot.value.as_ref().map(held);
            watching.tell(Told { member: Some(slot.member.clone()), kind, old, new: None }, version);
        }
        let deadline = if old_stamp.expires() { Deadlines::get(deadlines, &slot.member) } else { None };
        if old_stamp.version() <= ledger.cut() {
            self.keep(hash, &slot.member, &slot.value, old_stamp, deadline, version);
        }
        if deadline.is_some() {
            Deadlines::set(deadlines, &self.hasher, &slot.member, None);
            ledger.schedule(&slot.member, deadline, None);
        }
        if is_indexed {
            held_indexes.iter_mut().for_each(|content| content.remove(&slot.member));
        }
        *live -= 1;
        *bytes -= weight as u64;
        let old = if ledger.persists() {
            slot.stamp = Stamp::new(version, 0, true);
            if !old_stamp.dirty() {
                ledger.dirty(&slot.member, shard_bits(hash));
            }
            slot.value.take()
        } else {
            occupied.remove().0.value
        };
        Ok(Done::new(old, version))
    }

    /// Puts a member, or a tombstone, that is stored already: clean, and nobody is told. The highest version wins; whether
    /// it was this one is returned.
    pub(crate) fn restore(
        &self,
        member: Member,
        mut value: Option<V>,
        stamp: Stamp,
        deadline: Option<u64>,
    ) -> Result<bool, Refused> {
        let hash = self.hash(&member);
        let weigh = |value: &Option<V>| value.as_ref().map_or(0, |value| (member.len() + value.weight()) as u64);
        let new = weigh(&value);
        let stamp = stamp.expiring(deadline.is_some());
        // What is not kept is dropped when the lock is gone.
        self.write(hash, |inner| {
            let Inner { slots, live, bytes, deadlines, .. } = inner;
            *live += u32::from(value.is_some());
            *bytes += new;
            match slots.entry(hash, |slot| slot.member == member, |slot| hash_name(&self.hasher, &slot.member)) {
                Entry::Occupied(mut occupied) => {
                    let slot = occupied.get_mut();
                    let newer = slot.stamp.version() < stamp.version();
                    if newer {
                        if slot.stamp.expires() || stamp.expires() {
                            Deadlines::set(deadlines, &self.hasher, &member, deadline);
                        }
                        slot.stamp = stamp;
                        std::mem::swap(&mut slot.value, &mut value);
                    }
                    *live -= u32::from(value.is_some());
                    *bytes -= weigh(&value);
                    newer
                }
                Entry::Vacant(vacant) => {
                    if stamp.expires() {
                        Deadlines::set(deadlines, &self.hasher, &member, deadline);
                    }
                    vacant.insert(Slot { member: member.clone(), value: value.take(), stamp });
                    true
                }
            }
        })
    }

    /// The version of a member, or of its tombstone.
    pub(crate) fn version(&self, member: &str) -> Result<Option<u64>, Refused> {
        let hash = self.hash(member);
        let inner = self.read(hash)?;
        Ok(inner.slots.find(hash, |slot| slot.member == *member).map(|slot| slot.stamp.version()))
    }

    /// Gives a stored member a deadline, or takes it, and a higher version. Whether there was a member with a lower one
    /// is returned.
    pub(crate) fn restamp(&self, member: &str, version: u64, deadline: Option<u64>) -> Result<bool, Refused> {
        let hash = self.hash(member);
        self.write(hash, |inner| match inner.slots.find_mut(hash, |slot| slot.member == *member) {
            Some(slot) if slot.value.is_some() && slot.stamp.version() < version => {
                let stamp = Stamp::new(version, slot.stamp.codec(), slot.stamp.dirty());
                slot.stamp = stamp.expiring(deadline.is_some());
                Deadlines::set(&mut inner.deadlines, &self.hasher, &slot.member, deadline);
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
        for (_, inner) in &mut all {
            let Inner { slots, live, bytes, deadlines, .. } = &mut **inner;
            for slot in slots.extract_if(|slot| slot.stamp.version() < version) {
                if slot.stamp.expires() {
                    Deadlines::set(deadlines, &self.hasher, &slot.member, None);
                }
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
        let mut cleared = Cleared { members: 0, indexed: Vec::new(), tables: Vec::new(), values: Vec::new() };
        if all.iter().all(|(_, inner)| inner.live == 0) {
            return Ok(cleared);
        }
        // Before the rings of those who watch, as everywhere.
        let mut indexes = Vec::new();
        self.hold_indexes(&mut indexes);
        let watching = ledger.watch();
        let version = ledger.next_version();
        if let Some(mut watching) = watching {
            watching.tell(Told { member: None, kind: ChangeKind::Clear, old: None, new: None }, version);
        }
        ledger.cleared(version);
        let cut = ledger.cut();
        if cut > 0 {
            for (_, inner) in &all {
                for slot in inner.slots.iter().filter(|slot| slot.stamp.version() <= cut) {
                    let deadline = inner.deadline(slot);
                    self.keep(self.hash(&slot.member), &slot.member, &slot.value, slot.stamp, deadline, version);
                }
            }
        }
        cleared.indexed = indexes.iter_mut().map(|content| content.clear()).collect();
        drop(indexes);
        let mut freed: Wrapping<usize> = all.iter().map(|(_, inner)| inner.at_risk).sum();
        // Every dirty member counts something.
        let some_are_dirty = freed.0 > 0;
        for (_, inner) in &mut all {
            cleared.members += inner.live as usize - inner.expired(self.clock.reached());
            for (member, deadline) in inner.deadlines.take().into_iter().flat_map(|some| some.of) {
                ledger.schedule(&member, Some(deadline), None);
            }
            let slots = std::mem::take(&mut inner.slots);
            inner.at_risk = Wrapping(0);
            if !some_are_dirty || !slots.iter().any(|slot| slot.stamp.dirty()) {
                cleared.tables.push(slots);
            } else {
                let mut values = Vec::with_capacity(slots.len());
                for slot in slots {
                    values.extend(slot.value);
                    if slot.stamp.dirty() {
                        let tombstone = Slot { member: slot.member, value: None, stamp: Stamp::new(version, 0, true) };
                        inner.at_risk += tombstone.at_risk();
                        let hash = self.hash(&tombstone.member);
                        inner.slots.insert_unique(hash, tombstone, |slot| self.hash(&slot.member));
                    }
                }
                freed -= inner.at_risk;
                cleared.values.push(values);
            }
            (inner.live, inner.bytes, inner.newest) = (0, Wrapping(0), version);
        }
        ledger.charge(-(freed.0 as isize))?;
        Ok(cleared)
    }

    /// Keeps what is being replaced, unless it was copied already.
    #[cold]
    fn keep(&self, hash: u64, member: &Member, value: &Option<V>, stamp: Stamp, deadline: Option<u64>, by: u64) {
        if let Some(value) = value.as_ref().filter(|_| place(hash) >= self.copied.load(Ordering::Relaxed)) {
            self.kept.lock().push((Found { member: member.clone(), value: value.clone(), stamp, deadline }, by));
        }
    }

    /// As [`scan`](Self::scan), for whoever copies the store.
    pub(crate) fn copy(&self, cursor: u64, mut pick: impl FnMut(Found<V>)) -> Result<Option<u64>, Refused> {
        let mut pick = |member: &Member, value: &V, stamp, deadline| {
            pick(Found { member: member.clone(), value: value.clone(), stamp, deadline });
        };
        self.scan_then(cursor, false, &mut pick, |next| self.copied.store(next, Ordering::Relaxed))
    }

    /// Nobody copies the store, and somebody may begin to. What comes back is to be dropped when nothing is locked.
    pub(crate) fn take_all_kept(&self) -> Vec<(Found<V>, u64)> {
        // Whoever moves the members holds this lock, and takes over what is set here.
        let first = self.root.inner.read();
        self.copied.store(0, Ordering::Relaxed);
        drop(first);
        std::mem::take(&mut *self.kept.lock())
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
    fn take(&self, member: &str, buffer: &mut Vec<u8>) -> Result<Option<Taken<V>>, Refused> {
        self.uncharge(member, |slot, charge, deadlines| slot.take(charge, deadlines, buffer))
    }

    /// As [`take`](Self::take), of what somebody else has stored: as it was marked, and what it counted among the bytes not
    /// yet durable until now.
    pub(crate) fn unmark(&self, member: &str) -> Result<Option<(Stamp, usize)>, Refused> {
        self.uncharge(member, |slot, charge, _| {
            let stamp = slot.stamp;
            slot.stamp = stamp.cleaned();
            (stamp, charge)
        })
    }

    fn uncharge<R>(
        &self,
        member: &str,
        clean: impl FnOnce(&mut Slot<V>, usize, &Option<Box<Deadlines>>) -> R,
    ) -> Result<Option<R>, Refused> {
        let hash = self.hash(member);
        self.write(hash, |inner| {
            let Inner { slots, at_risk, deadlines, .. } = inner;
            let slot = slots.find_mut(hash, |slot| slot.member == *member)?;
            let charge = slot.at_risk();
            *at_risk -= charge;
            Some(clean(slot, charge, deadlines))
        })
    }

    /// The bits of a [`KeyId`].
    pub(crate) fn bits(&self, member: &str) -> u32 {
        shard_bits(self.hash(member))
    }

    /// As [`take`](Self::take), of these members from number `done` on: some at once where neighbours are of one shard, so
    /// that one lock serves for them and their ways to memory overlap. Calls `each` with nothing locked, for one after the
    /// other, until it returns false. `done` counts those that it was called with. Few bytes go to the end of the buffer.
    pub(crate) fn take_many(
        &self,
        keys: &[KeyId],
        done: &mut usize,
        buffer: &mut Vec<u8>,
        mut each: impl FnMut(Option<Taken<V>>, &mut Vec<u8>) -> bool,
    ) -> Result<(), Refused> {
        let mut taken = Vec::with_capacity(AT_ONCE);
        while let Some(first) = keys.get(*done) {
            let (number, shard) = self.find_shard(first.bits);
            let mask = shard.mask.load(Ordering::Relaxed);
            let rest = &keys[*done..];
            let same = rest.iter().take(AT_ONCE).take_while(|key| key.bits & mask == number).count();
            // None, if it is being divided just now.
            let outcome = self.take_together(number, &rest[..same.max(1)], buffer, &mut taken);
            *done += taken.len();
            let mut go_on = true;
            for taken in taken.drain(..) {
                go_on &= each(taken, buffer);
            }
            outcome?;
            if !go_on {
                break;
            }
        }
        Ok(())
    }

    /// Takes at most [`AT_ONCE`] members that are, or were, in one shard, one after the other until they are found to have
    /// moved.
    fn take_together(
        &self,
        number: u32,
        keys: &[KeyId],
        buffer: &mut Vec<u8>,
        taken: &mut Vec<Option<Taken<V>>>,
    ) -> Result<(), Refused> {
        // Not to be made while others wait for the shard.
        buffer.reserve(AT_ONCE * FEW);
        let all_are_here = self.shard(number).is_some_and(|shard| {
            let mut inner = shard.inner.write();
            let is_here = |key: &KeyId| Self::holds(shard, number, key.bits);
            if self.has_moved() || !keys.iter().all(is_here) {
                return false;
            }
            let Inner { slots, at_risk, deadlines, .. } = &mut *inner;
            // Where the tags say that they are, then whether they are there, then their values: so short that the processor
            // waits for the memory of several at once.
            let mut found = [None; AT_ONCE];
            for (key, found) in keys.iter().zip(&mut found) {
                *found = slots.find_bucket_index(self.hash(&key.member), |_| true);
            }
            let likely = |found: &Option<usize>| slots.get_bucket((*found)?);
            std::hint::black_box(found.iter().filter_map(likely).map(|slot| slot.stamp.version()).sum::<u64>());
            for (key, found) in keys.iter().zip(&mut found) {
                if likely(found).is_some_and(|slot| slot.member != key.member) {
                    *found = slots.find_bucket_index(self.hash(&key.member), |slot| slot.member == key.member);
                }
            }
            touch(values_of(found.iter().filter_map(likely)));
            for found in &found[..keys.len()] {
                let take = |slot: &mut Slot<V>| {
                    // It may be among them twice.
                    let charge = slot.at_risk();
                    *at_risk -= charge;
                    slot.take(charge, deadlines, buffer)
                };
                taken.push(found.and_then(|bucket| slots.get_bucket_mut(bucket)).map(take));
            }
            true
        });
        if !all_are_here {
            // A split came in between, or a move.
            for key in keys {
                taken.push(self.take(&key.member, buffer)?);
            }
        }
        Ok(())
    }

    /// Removes a tombstone that is durable, unless the member was written again.
    pub(crate) fn bury(&self, member: &str, version: u64) -> Result<(), Refused> {
        let hash = self.hash(member);
        self.write(hash, |inner| {
            if let Ok(occupied) = inner.slots.find_entry(hash, |slot| slot.member == *member) {
                let slot = occupied.get();
                // One that a transaction deleted again has an older version than that.
                if slot.value.is_none() && slot.stamp.version() <= version && !slot.stamp.dirty() {
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
        self.scan_then(cursor, false, &mut |member, value, stamp, _| pick(member, value, stamp), |_| {})
    }

    /// Some members, at most so many, of the shard that holds these.
    pub(crate) fn sample(&self, bits: u32, most: usize, mut pick: impl FnMut(&V)) -> Result<(), Refused> {
        let cursor = u64::from(bits.reverse_bits());
        self.scan_with(cursor, |inner, _| values_of(inner.slots.iter()).take(most).for_each(&mut pick)).map(drop)
    }

    /// The same, with members whose deadline has come and that are here still.
    pub(crate) fn scan_all(&self, cursor: u64, mut pick: impl FnMut(Found<V>)) -> Result<Option<u64>, Refused> {
        let mut pick = |member: &Member, value: &V, stamp, deadline| {
            pick(Found { member: member.clone(), value: value.clone(), stamp, deadline });
        };
        self.scan_then(cursor, true, &mut pick, |_| {})
    }

    /// A member for a transaction: its value and version, if it is there, and the last write to its part of the table.
    pub(crate) fn read_for_transaction(&self, member: &str, time: u64) -> Result<(Option<(V, u64)>, u64), Refused> {
        let hash = self.hash(member);
        let inner = self.read(hash)?;
        let slot = inner.slots.find(hash, |slot| slot.member == *member);
        let slot = slot.filter(|slot| inner.shows_at(slot, time));
        let seen = slot.and_then(|slot| Some((slot.value.clone()?, slot.stamp.version())));
        Ok((seen, inner.newest))
    }

    /// What has to be known of a part of the members to tell whether it changes.
    pub(crate) fn mark_part(&self, cursor: u64, time: u64) -> Result<(Scanned, Option<u64>), Refused> {
        let mut scanned = Scanned { from: cursor, newest: 0, expired: 0 };
        let next = self.scan_with(cursor, |inner, _| {
            (scanned.newest, scanned.expired) = (inner.newest, inner.expired(time));
        })?;
        Ok((scanned, next))
    }

    /// A part of the members for a transaction.
    pub(crate) fn scan_part(
        &self,
        cursor: u64,
        time: u64,
        mut pick: impl FnMut(Found<V>),
    ) -> Result<(Scanned, Option<u64>), Refused> {
        let mut scanned = Scanned { from: cursor, newest: 0, expired: 0 };
        let next = self.scan_with(cursor, |inner, _| {
            (scanned.newest, scanned.expired) = (inner.newest, inner.expired(time));
            for slot in inner.slots.iter().filter(|slot| inner.shows_at(slot, time)) {
                if let Some(value) = slot.value.clone() {
                    let (member, deadline) = (slot.member.clone(), inner.deadline(slot));
                    pick(Found { member, value, stamp: slot.stamp, deadline });
                }
            }
        })?;
        Ok((scanned, next))
    }

    /// Calls `done` with where to go on, at the latest 2^32, while the shard is still locked.
    fn scan_then(
        &self,
        cursor: u64,
        all: bool,
        pick: &mut Pick<'_, V>,
        done: impl Fn(u64),
    ) -> Result<Option<u64>, Refused> {
        self.scan_with(cursor, |inner, Range { start, end: next }| {
            touch(values_of(inner.slots.iter()));
            let is_over = |slot: &Slot<V>| start < cursor && place(self.hash(&slot.member)) < cursor;
            for slot in inner.slots.iter().filter(|slot| !is_over(slot)) {
                if let Some(value) = slot.value.as_ref().filter(|_| all || inner.shows(slot, &self.clock)) {
                    pick(&slot.member, value, slot.stamp, inner.deadline(slot));
                }
            }
            done(next);
        })
    }

    /// Calls `look` with the shard where `cursor` points, under its lock, and with the cursors where that begins and where to
    /// go on, at the latest 2^32. It begins before `cursor` if that comes from another table, whose members have moved here.
    fn scan_with(&self, cursor: u64, look: impl FnOnce(&Inner<V>, Range<u64>)) -> Result<Option<u64>, Refused> {
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
            let width = 1 << (32 - shard.depth());
            let begin = cursor & !(width - 1);
            let next = begin + width;
            look(&inner, begin..next);
            return Ok((next < 1 << 32).then_some(next));
        }
    }

    /// Calls `f` with the numbers of every shard in turn: live members, and bytes of names and values.
    pub(crate) fn tally(&self) -> Result<(usize, u64), Refused> {
        let (mut live, mut bytes) = (0, Wrapping(0));
        let mut cursor = Some(0u64);
        while let Some(at) = cursor {
            let bits = (at as u32).reverse_bits();
            let (number, shard) = self.find_shard(bits);
            let inner = shard.inner.read();
            if self.moved.load(Ordering::Relaxed) {
                return Err(Refused::Moved);
            }
            if Self::holds(shard, number, bits) {
                live += inner.live as usize - inner.expired(self.clock.reached());
                bytes += inner.bytes;
                let next = at + (1 << (32 - shard.depth()));
                cursor = (next < 1 << 32).then_some(next);
            }
        }
        Ok((live, bytes.0))
    }

    /// Calls `found` with the members that have a deadline.
    pub(crate) fn each_deadline(&self, mut found: impl FnMut(&Member, u64)) {
        for (_, inner) in &self.lock_all() {
            inner.deadlines.iter().flat_map(|some| &some.of).for_each(|(member, deadline)| found(member, *deadline));
        }
    }

    /// Locks every shard, in the order of their numbers: parents before their children. A shard cannot split while it is
    /// locked, so all children of a locked shard are known.
    pub(super) fn lock_all(&self) -> Guards<'_, V> {
        let mut guards = Vec::new();
        let mut waiting = BTreeSet::from([0u32]);
        while let Some(number) = waiting.pop_first() {
            // A number is only added for a child of a locked parent, whose depth says that the child was born.
            let Some(shard) = self.shard(number) else { continue };
            let inner = shard.inner.write();
            let first = number.checked_ilog2().map_or(0, |top| top + 1);
            waiting.extend((first..shard.depth()).map(|bit| number | 1 << bit));
            guards.push((number, inner));
        }
        guards
    }

    /// Drops all members, of a table that nobody uses any more.
    pub(crate) fn end(&mut self) {
        for (_, mut inner) in self.lock_all() {
            end(std::mem::take(&mut inner.slots));
        }
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
        for (inner, slot) in all.iter().flat_map(|(_, inner)| inner.slots.iter().map(move |slot| (inner, slot))) {
            let Some(value) = &slot.value else { continue };
            live += 1;
            match made.get(&slot.member) {
                Some((_, stamp)) if stamp.version() == slot.stamp.version() => {}
                _ => newer.push(Found {
                    member: slot.member.clone(),
                    value: value.clone(),
                    stamp: slot.stamp,
                    deadline: inner.deadline(slot),
                }),
            }
        }
        if !newer.is_empty() || made.len() != live {
            drop(all);
            return Err(Stale { made, newer });
        }
        let at_risk: Wrapping<usize> = all.iter().map(|(_, inner)| inner.at_risk).sum();
        let mut charge = -(at_risk.0 as isize);
        let mut emptied = Vec::new();
        for (_, inner) in &mut all {
            (inner.live, inner.bytes, inner.at_risk) = (0, Wrapping(0), Wrapping(0));
            let deadlines = inner.deadlines.take();
            for slot in std::mem::take(&mut inner.slots) {
                let deadline = if slot.stamp.expires() { Deadlines::get(&deadlines, &slot.member) } else { None };
                let value = slot.value.is_some().then(|| made.remove(&slot.member).map(|(value, _)| value)).flatten();
                let moved = Slot { member: slot.member, value, stamp: slot.stamp };
                charge += moved.at_risk() as isize;
                emptied.push(slot.value);
                to.adopt(moved, deadline);
            }
        }
        // What was deleted here was deleted there, too.
        let newest = all.iter().map(|(_, inner)| inner.newest).max().unwrap_or(0);
        to.lock_all().iter_mut().for_each(|(_, inner)| inner.newest = newest);
        to.copied.store(self.copied.load(Ordering::Relaxed), Ordering::Relaxed);
        self.moved.store(true, Ordering::Relaxed);
        publish(charge);
        drop(all);
        drop(emptied);
        Ok(())
    }

    /// Takes a slot as it is, marks and all. The table is not shared yet.
    fn adopt(&self, slot: Slot<V>, deadline: Option<u64>) {
        let hash = self.hash(&slot.member);
        let adopted = self.write(hash, |inner| {
            if let Some(value) = &slot.value {
                inner.live += 1;
                inner.bytes += (slot.member.len() + value.weight()) as u64;
            }
            inner.at_risk += slot.at_risk();
            if slot.stamp.expires() {
                Deadlines::set(&mut inner.deadlines, &self.hasher, &slot.member, deadline);
            }
            inner.slots.insert_unique(hash, slot, |slot| hash_name(&self.hasher, &slot.member));
        });
        debug_assert!(adopted.is_ok(), "a table that is being filled has not moved");
    }

    /// Members and tombstones.
    #[cfg(test)]
    pub(crate) fn slots(&self) -> usize {
        self.lock_all().iter().map(|(_, inner)| inner.slots.len()).sum()
    }

    /// How many shards there are.
    #[cfg(test)]
    pub(crate) fn shards(&self) -> usize {
        self.lock_all().len()
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

    /// A ledger that only counts, and whether it is of a store in RAM.
    #[derive(Default)]
    struct Counts(std::sync::atomic::AtomicU64, std::sync::atomic::AtomicIsize, bool);

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
            !self.2
        }
        fn dirty(&self, _member: &Member, _bits: u32) {}
        fn cleared(&self, _version: u64) {}
        fn schedule(&self, _member: &Member, _old: Option<u64>, _new: Option<u64>) {}

        fn is_watched(&self) -> bool {
            false
        }
        fn watch(&self) -> Option<Box<dyn super::super::Watching + '_>> {
            None
        }

        fn cut(&self) -> u64 {
            0
        }
    }

    fn put(table: &Table<Value>, member: &str, value: &str, ledger: &Counts) {
        table.put_plainly(member, Value::from(value), 0, ledger).unwrap();
    }

    fn filled(members: usize) -> (Table<Value>, Counts) {
        let (table, ledger) = (Table::new(NameHasher::default(), Arc::new(Clock::of_system())), Counts::default());
        for number in 0..members {
            put(&table, &number.to_string(), "12345678", &ledger);
        }
        (table, ledger)
    }

    #[test]
    fn a_shard_splits_when_its_table_would_grow() {
        for own in [0, mask(4)] {
            assert_eq!(HashTable::<Slot<Value>>::with_capacity(split_at(own)).capacity(), split_at(own));
        }
    }

    #[test]
    fn a_collection_s_tables_double_at_different_times() {
        let (table, ledger) = filled(0);
        let (mut least, mut most) = (usize::MAX, 0);
        for number in 1..=200_000 {
            put(&table, &number.to_string(), "", &ledger);
            if number >= 50_000 && number % 2_500 == 0 {
                let tables = table.lock_all().iter().map(|(_, inner)| inner.slots.allocation_size()).sum::<usize>();
                (least, most) = (least.min(tables / number), most.max(tables / number));
            }
        }
        // 41 in a table that were full. If all doubled together, it would be 50 and 86.
        assert!(least > 55 && most < 80, "{least} to {most} bytes a member");
    }

    #[test]
    fn many_are_taken_once_each_wherever_they_are_until_somebody_has_enough() {
        let (table, ledger) = filled(1000);
        let at_risk =
            |table: &Table<Value>| table.lock_all().iter().map(|(_, inner)| inner.at_risk).sum::<Wrapping<_>>().0;
        let key = |name: &str| KeyId { collection: 0, bits: table.bits(name), member: Member::from(name) };
        let keys: Vec<KeyId> = (0..1000).chain([5, 5]).map(|n: i32| key(&n.to_string())).collect();
        assert_eq!(at_risk(&table), keys[..1000].iter().map(|key| key.member.len() + 8).sum::<usize>());

        // Eight of what was in the first shard, before it split.
        let mut taken = Vec::new();
        table.take_together(0, &keys[..8], &mut Vec::new(), &mut taken).unwrap();
        assert!(taken.iter().all(|taken| taken.as_ref().is_some_and(|taken| taken.stamp.dirty())));
        assert_eq!(taken.len(), 8);
        // One twice under one lock.
        put(&table, "7", "1", &ledger);
        taken.clear();
        let number = table.find_shard(keys[7].bits).0;
        table.take_together(number, &[key("7"), key("7")], &mut Vec::new(), &mut taken).unwrap();
        let charges: Vec<_> = taken.iter().map(|taken| taken.as_ref().unwrap().charge).collect();
        assert_eq!(charges, [2, 0]);
        put(&table, "3", "123456789", &ledger);

        let (mut done, mut charged, mut buffer, mut ranges) = (0, 0, Vec::new(), Vec::new());
        let mut take = |done: &mut usize, enough: usize| {
            let mut at = *done;
            let outcome = table.take_many(&keys, done, &mut buffer, |taken, _| {
                let taken = taken.unwrap();
                let What::Copy(range) = taken.what else { panic!("a value of few bytes") };
                ranges.push((at, range));
                charged += taken.charge;
                assert_eq!(taken.charge > 0, taken.stamp.dirty(), "{at}");
                assert_eq!(taken.stamp.dirty(), at < 1000 && (at == 3 || at > 7), "{at}");
                at += 1;
                at < enough
            });
            outcome.unwrap();
            assert_eq!(at, *done);
        };
        take(&mut done, 100);
        assert!((100..100 + AT_ONCE).contains(&done), "{done}");
        take(&mut done, usize::MAX);
        assert_eq!(done, keys.len());
        assert_eq!(charged, 10 + keys[8..1000].iter().map(|key| key.member.len() + 8).sum::<usize>());
        assert_eq!(at_risk(&table), 0);

        for (at, range) in ranges {
            let value: &[u8] = match at {
                3 => b"123456789",
                7 => b"1",
                _ => b"12345678",
            };
            assert_eq!(&buffer[range], value, "{at}");
        }

        // What is not there is told.
        let mut none = Vec::new();
        let told = |taken: Option<Taken<Value>>, _: &mut Vec<u8>| {
            none.push(taken.is_none());
            true
        };
        table.take_many(&[key("nobody")], &mut 0, &mut Vec::new(), told).unwrap();
        assert_eq!(none, [true]);
    }

    #[test]
    fn members_of_one_shard_are_neighbours_in_the_order_of_keys() {
        let (table, _) = filled(3000);
        let mut keys: Vec<(u64, u32)> = (0..3000)
            .map(|n| KeyId { collection: 1, bits: table.bits(&n.to_string()), member: Member::default() })
            .map(|key| (key.order(), table.find_shard(key.bits).0))
            .collect();
        keys.sort_unstable();
        assert_eq!(keys.chunk_by(|a, b| a.1 == b.1).count(), table.shards());
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
        assert_eq!(filled(55).0.shards(), 1);
        assert!(filled(56).0.shards() >= 2);
        let (table, _) = filled(100_000);
        let shards = table.shards();
        assert!((32..=64).contains(&shards), "{shards}");
        assert_eq!(
            table.tally().unwrap(),
            (100_000, 800_000 + (0..100_000u32).map(|n| n.to_string().len() as u64).sum::<u64>())
        );
    }

    #[test]
    fn a_walk_meets_every_member_once() {
        for members in [0, 1, 55, 56, 1000, 30_000] {
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
                put(&table, &number.to_string(), "", &ledger);
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

    /// Where members have been deleted there are more shards than as many members make anew.
    #[test]
    fn a_walk_goes_on_where_the_members_have_moved_to() {
        let hasher = NameHasher::default();
        let new = || Table::new(hasher.clone(), Arc::new(Clock::of_system()));
        let mut steps = 0;
        for moves_after in 1.. {
            let (table, ledger) = (new(), Counts { 2: true, ..Counts::default() });
            let names: Vec<String> = (0..10_000).map(|number| number.to_string()).collect();
            names.iter().for_each(|name| put(&table, name, "", &ledger));
            let (left, gone) = names.split_at(300);
            gone.iter().for_each(|name| drop(table.delete(name, Only::Always, &ledger).unwrap()));

            let mut met = Vec::new();
            let mut cursor = Some(0);
            for _ in 0..moves_after {
                cursor = cursor.and_then(|at| table.copy(at, |found| met.push(found.member.to_string())).unwrap());
            }
            let Some(at) = cursor else {
                steps = moves_after;
                break;
            };
            let mut made = hashbrown::HashMap::with_hasher(NameHasher::default());
            let mut all = Some(0);
            while let Some(at) = all {
                let insert = |found: Found<Value>| _ = made.insert(found.member, (found.value, found.stamp));
                all = table.scan_all(at, insert).unwrap();
            }
            let to = new();
            assert!(table.move_to(&to, made, |_| {}).is_ok());
            assert!(to.shards() < table.shards());
            assert_eq!(to.copied.load(Ordering::Relaxed), at);
            while let Some(at) = cursor {
                cursor = to.scan(at, |member, _, _| met.push(member.to_string())).unwrap();
            }
            met.sort_unstable_by_key(|name| name.parse::<usize>().unwrap());
            assert_eq!(met, left, "it has moved after {moves_after} steps");
        }
        assert!(steps > 4, "{steps}");
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
        let sum = |table: &Table<Value>| table.lock_all().iter().map(|(_, inner)| inner.at_risk).sum::<Wrapping<_>>().0;
        let all: usize = (0..1000u32).map(|number| number.to_string().len() + 8).sum();
        assert_eq!(sum(&table), all);
        let buffer = &mut Vec::new();
        let taken = table.take("7", buffer).unwrap().unwrap();
        assert_eq!((taken.charge, taken.stamp.dirty()), (9, true));
        assert_eq!(table.take("7", buffer).unwrap().unwrap().charge, 0);
        assert_eq!(sum(&table), all - 9);
        // What somebody else has stored.
        put(&table, "7", "12345678", &ledger);
        assert_eq!(sum(&table), all);
        let (stamp, charge) = table.unmark("7").unwrap().unwrap();
        assert!(stamp.dirty() && stamp.version() > 1000 && charge == 9);
        let (stamp, charge) = table.unmark("7").unwrap().unwrap();
        assert!(!stamp.dirty() && charge == 0);
        assert!(table.unmark("nobody").unwrap().is_none());
        assert_eq!(sum(&table), all - 9);
        table.delete("8", Only::Always, &ledger).unwrap();
        assert_eq!(sum(&table), all - 9 - 8);
        let before = ledger.1.load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!(table.clear(&ledger).unwrap().end(), 999);
        // What was dirty waits still, as tombstones of the length of their names.
        let names = all - 8 * 1000 - 1;
        assert_eq!(sum(&table), names);
        let freed = before - ledger.1.load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!(freed, (all - 17 - names) as isize);
        assert_eq!((table.tally().unwrap(), walk(&table).len()), ((0, 0), 0));
    }
}
