//! What a transaction needs of a table: to read as of a moment, to look whether what it read is still so, and to hold
//! the shards that it concerns while it writes.

use std::collections::BTreeMap;

use super::index::{self, Duplicate, SortKey};
use super::table::{Inner, Scanned, Table, mask, shard_bits};
use super::{Act, Ledger, New, Refused, Stored, Until};
use crate::sync::{NameHasher, RwLockWriteGuard};
use crate::value::Member;

/// What a transaction has read of a table.
#[derive(Debug, Default)]
pub(crate) struct Reads {
    /// The version of each member that was looked for; 0 if there was none.
    pub(crate) members: hashbrown::HashMap<Member, u64, NameHasher>,
    /// All members were read.
    pub(crate) scan: Option<Scan>,
}

impl Reads {
    pub(crate) fn is_empty(&self) -> bool {
        self.members.is_empty() && self.scan.is_none()
    }
}

/// What all members were read of: where each part began, and the last write that it had seen.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Scan {
    parts: Vec<(u64, u64)>,
    /// Members that had expired and had not been removed.
    expired: usize,
}

impl Scan {
    pub(crate) fn add(&mut self, scanned: &Scanned) {
        self.parts.push((scanned.from, scanned.newest));
        self.expired += scanned.expired;
    }

    /// The last write to any part.
    pub(crate) fn newest(&self) -> u64 {
        self.parts.iter().map(|(_, newest)| *newest).max().unwrap_or(0)
    }

    /// Whether nothing was written to the part that begins there. Parts only divide.
    fn covers(&self, from: u64, newest: u64) -> bool {
        let at = self.parts.partition_point(|(start, _)| *start <= from);
        at > 0 && self.parts[at - 1].1 == newest
    }
}

/// Shards of a table, locked.
pub(crate) struct Locked<'a, V> {
    table: &'a Table<V>,
    /// In order.
    guards: Vec<(u32, RwLockWriteGuard<'a, Inner<V>>)>,
    /// The indexes, once something is about to be written.
    indexes: index::Held<'a, V>,
    /// What was replaced: to be dropped when nothing is locked any more.
    replaced: Vec<V>,
}

impl<V: Stored> Table<V> {
    /// As if all members were read.
    pub(crate) fn mark(&self, time: u64) -> Result<Scan, Refused> {
        let (mut scan, mut cursor) = (Scan::default(), Some(0));
        while let Some(at) = cursor {
            let (scanned, next) = self.mark_part(at, time)?;
            scan.add(&scanned);
            cursor = next;
        }
        Ok(scan)
    }

    /// Whether what was read is still so.
    pub(crate) fn agrees(&self, reads: &Reads, time: u64) -> Result<bool, Refused> {
        for (member, version) in &reads.members {
            if self.version_at(member, time)? != *version {
                return Ok(false);
            }
        }
        let Some(scan) = &reads.scan else { return Ok(true) };
        let (mut cursor, mut expired) = (Some(0), 0);
        while let Some(at) = cursor {
            let (scanned, next) = self.mark_part(at, time)?;
            if !scan.covers(scanned.from, scanned.newest) {
                return Ok(false);
            }
            expired += scanned.expired;
            cursor = next;
        }
        Ok(expired == scan.expired)
    }

    /// Locks the shards of these members, or all.
    pub(crate) fn lock<'m>(
        &self,
        members: impl Iterator<Item = &'m Member>,
        all: bool,
    ) -> Result<Locked<'_, V>, Refused> {
        let guards = if all {
            self.lock_all()
        } else {
            let mut waiting: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
            for bits in members.map(|member| shard_bits(self.hash(member))) {
                waiting.entry(self.find_shard(bits).0).or_default().push(bits);
            }
            let mut guards = Vec::new();
            while let Some((number, bits)) = waiting.pop_first() {
                // It was found, so it is there.
                let Some(shard) = self.shard(number) else { continue };
                let inner = shard.inner.write();
                // A split may have come in between. Children have higher numbers: they are locked later.
                for bits in bits.into_iter().filter(|bits| !Self::holds(shard, number, *bits)) {
                    waiting.entry(self.find_shard(bits).0).or_default().push(bits);
                }
                guards.push((number, inner));
            }
            guards
        };
        let locked = Locked { table: self, guards, indexes: Vec::new(), replaced: Vec::new() };
        if self.has_moved() { Err(Refused::Moved) } else { Ok(locked) }
    }
}

impl<V: Stored> Locked<'_, V> {
    fn place(&self, member: &str) -> (u64, usize) {
        let hash = self.table.hash(member);
        let mut bits = shard_bits(hash);
        // The deepest shard for these bits is the one with the highest number that is locked.
        for depth in (0..=self.table.deepest()).rev() {
            bits &= mask(depth);
            if let Ok(at) = self.guards.binary_search_by_key(&bits, |(number, _)| *number) {
                return (hash, at);
            }
        }
        unreachable!("the shards of all members of a transaction are locked")
    }

    /// Whether what was read is still so.
    pub(crate) fn agrees(&self, reads: &Reads, time: u64) -> bool {
        let same = |(member, version): (&Member, &u64)| {
            let (hash, at) = self.place(member);
            self.table.version_in(&self.guards[at].1, hash, member, time) == *version
        };
        let Some(scan) = &reads.scan else { return reads.members.iter().all(same) };
        let is_covered = |(number, inner): &(u32, RwLockWriteGuard<'_, Inner<V>>)| {
            scan.covers(u64::from(number.reverse_bits()), inner.newest)
        };
        self.guards.iter().all(is_covered)
            && self.guards.iter().map(|(_, inner)| inner.expired(time)).sum::<usize>() == scan.expired
            && reads.members.iter().all(same)
    }

    /// Locks the indexes, and sees whether all this may be written: each member with its sort keys, or without for a delete.
    pub(crate) fn prepare<'m>(
        &mut self,
        writes: impl Iterator<Item = (&'m Member, Option<&'m [SortKey]>)> + Clone,
    ) -> Result<(), Result<Duplicate, Refused>> {
        self.table.hold_indexes(&mut self.indexes);
        if self.indexes.is_empty() {
            let is_fresh = writes.clone().all(|(_, keys)| keys.is_none_or(<[SortKey]>::is_empty));
            return if is_fresh { Ok(()) } else { Err(Err(Refused::Stale)) };
        }
        let reached = self.table.reached();
        let indexes: Vec<_> = self.table.indexes().collect();
        let written: BTreeMap<&Member, Option<&[SortKey]>> = writes.clone().collect();
        if writes.clone().any(|(_, keys)| keys.is_some_and(|keys| keys.len() != indexes.len())) {
            return Err(Err(Refused::Stale));
        }
        for (at, index) in indexes.iter().enumerate().filter(|(_, index)| index.refuses()) {
            let mut taken: BTreeMap<&SortKey, &Member> = BTreeMap::new();
            for (member, keys) in writes.clone().filter_map(|(member, keys)| Some((member, keys?))) {
                let key = &keys[at];
                // Whoever has the key may be about to lose it.
                let holders = self.indexes[at].holders(key, reached);
                let there = holders.into_iter().find(|holder| *holder != member && !written.contains_key(holder));
                let holder = there.or_else(|| taken.insert(key, member));
                if let Some(holder) = holder {
                    let (index, holder) = (index.name.clone(), holder.clone());
                    return Err(Ok(Duplicate { index, holder, refused: member.clone() }));
                }
            }
        }
        Ok(())
    }

    /// Writes a member, or deletes it. What is put has been prepared.
    pub(crate) fn write(
        &mut self,
        member: &str,
        new: &mut New<V>,
        until: Until,
        ledger: &(impl Ledger + ?Sized),
    ) -> Result<(), Refused> {
        let (hash, at) = self.place(member);
        let act = if new.value.is_some() { Act::Put(until) } else { Act::Delete };
        let inner = &mut self.guards[at].1;
        let done = self.table.change_in(inner, hash, member, new, &mut self.indexes, ledger, |_, _| act)?;
        self.replaced.extend(done.replaced());
        Ok(())
    }

    /// Splits what has become too large, and unlocks. What comes back is for the caller to drop when no other table is
    /// locked.
    pub(crate) fn unlock(mut self) -> Vec<V> {
        self.indexes.clear();
        for (number, inner) in &mut self.guards {
            if let Some(shard) = self.table.shard(*number) {
                self.table.split_if_full(*number, shard, inner);
            }
        }
        self.replaced
    }
}
