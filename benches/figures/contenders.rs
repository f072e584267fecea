//! The maps that run against each other: larder by key and through typed handles, and dashmap holding the same.
//!
//! All hand out a counted handle of the value, and a put returns what was there. Each operation returns the first byte
//! of the value that it got, 0, and 1 when it fails.

use std::sync::Arc;

use dashmap::DashMap;
use foldhash::fast::RandomState;
use larder::{Bincode, Collection, Store};

use crate::Result;
use crate::input::{self, COLLECTIONS, Keys, Ops, ROW, Row, row_bytes};
use crate::loops::{Loop, drive};

pub(crate) trait Contender: Sync {
    fn get(&self, ops: &Ops, at: usize) -> usize;
    fn put(&self, ops: &Ops, at: usize) -> usize;

    fn gets(&self, all: &[Ops], how: Loop) -> f64 {
        drive(all, how, |ops, at| self.get(ops, at))
    }

    fn puts(&self, all: &[Ops], how: Loop) -> f64 {
        drive(all, how, |ops, at| self.put(ops, at))
    }

    /// With every member once.
    fn fill(&self, members: usize) {
        self.puts(&input::operations(Keys::Each, members, members, 1), Loop::Overlapping);
    }
}

/// dashmap with whole keys and values of bytes.
pub(crate) struct Flat {
    map: DashMap<Box<str>, Arc<[u8]>, RandomState>,
    value: Vec<u8>,
}

impl Flat {
    pub(crate) fn new() -> Flat {
        Flat { map: DashMap::with_hasher(RandomState::default()), value: row_bytes() }
    }

    /// An overwrite that makes no key: what dashmap can do and `insert` does not.
    pub(crate) fn replace(&self, ops: &Ops, at: usize) -> usize {
        let Some(mut entry) = self.map.get_mut(ops.key(at)) else { return 1 };
        let old = std::mem::replace(entry.value_mut(), Arc::from(&self.value[..]));
        // The lock goes before the old value does, as in larder.
        drop(entry);
        old[0].into()
    }
}

impl Contender for Flat {
    fn get(&self, ops: &Ops, at: usize) -> usize {
        let value = self.map.get(ops.key(at)).map(|entry| entry.value().clone());
        value.map_or(1, |value| value[0].into())
    }

    fn put(&self, ops: &Ops, at: usize) -> usize {
        let old = self.map.insert(ops.key(at).into(), Arc::from(&self.value[..]));
        old.map_or(0, |old| old[0].into())
    }
}

/// dashmap with whole keys and values of a type.
pub(crate) struct FlatTyped {
    map: DashMap<Box<str>, Arc<Row>, RandomState>,
}

impl FlatTyped {
    pub(crate) fn new() -> FlatTyped {
        FlatTyped { map: DashMap::with_hasher(RandomState::default()) }
    }

    /// See [`Flat::replace`].
    pub(crate) fn replace(&self, ops: &Ops, at: usize) -> usize {
        let Some(mut entry) = self.map.get_mut(ops.key(at)) else { return 1 };
        let old = std::mem::replace(entry.value_mut(), Arc::new(ROW));
        drop(entry);
        old.zero.into()
    }
}

impl Contender for FlatTyped {
    fn get(&self, ops: &Ops, at: usize) -> usize {
        let value = self.map.get(ops.key(at)).map(|entry| entry.value().clone());
        value.map_or(1, |value| value.zero.into())
    }

    fn put(&self, ops: &Ops, at: usize) -> usize {
        let old = self.map.insert(ops.key(at).into(), Arc::new(ROW));
        old.map_or(0, |old| old.zero.into())
    }
}

/// A store by key, in bytes.
pub(crate) struct ByKey {
    store: Store,
    value: Vec<u8>,
}

impl ByKey {
    pub(crate) fn new(store: Store) -> ByKey {
        ByKey { store, value: row_bytes() }
    }
}

impl Contender for ByKey {
    fn get(&self, ops: &Ops, at: usize) -> usize {
        match self.store.get(ops.key(at)) {
            Ok(Some(value)) => value[0].into(),
            _ => 1,
        }
    }

    fn put(&self, ops: &Ops, at: usize) -> usize {
        match self.store.put(ops.key(at), &self.value[..]) {
            Ok(old) => old.map_or(0, |old| old[0].into()),
            Err(_) => 1,
        }
    }
}

/// A store through the handles of its collections.
pub(crate) struct Typed {
    collections: Vec<Collection<Row>>,
}

impl Typed {
    pub(crate) fn new(store: Store) -> Result<Typed> {
        let open = |number| store.collection_with::<Row, Bincode>(input::collection(number));
        let collections = (0..COLLECTIONS).map(open).collect::<larder::Result<_>>()?;
        Ok(Typed { collections })
    }
}

impl Contender for Typed {
    fn get(&self, ops: &Ops, at: usize) -> usize {
        let value = self.collections[ops.collection(at)].get(ops.member(at));
        value.map_or(1, |value| value.zero.into())
    }

    fn put(&self, ops: &Ops, at: usize) -> usize {
        match self.collections[ops.collection(at)].put(ops.member(at), ROW) {
            Ok(old) => old.map_or(0, |old| old.zero.into()),
            Err(_) => 1,
        }
    }
}
