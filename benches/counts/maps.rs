//! What is counted: larder by key and through typed handles, and dashmap holding the same.

use std::sync::Arc;

use dashmap::DashMap;
use foldhash::fast::RandomState;
use larder::{Collection, Store};
use serde::{Deserialize, Serialize};

use crate::Result;

/// All members stand in one: which slot a second one gets is up to the seed of the names' hashes, and would be another count
/// each time.
const COLLECTION: &str = "c042";

/// `c042/member-0000000000042`
pub(crate) struct Key(String);

impl Key {
    pub(crate) fn new(number: usize) -> Key {
        Key(format!("{COLLECTION}/member-{number:013}"))
    }

    fn whole(&self) -> &str {
        &self.0
    }

    fn member(&self) -> &str {
        &self.0[COLLECTION.len() + 1..]
    }
}

/// A value of 100 bytes.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Row([[u8; 10]; 10]);

const ROW: Row = Row([*b"helloworld"; 10]);

/// Both say whether the member was there: 1 or 0, to be summed up.
pub(crate) trait Map {
    fn get(&self, key: &Key) -> usize;
    fn put(&self, key: &Key) -> usize;
}

/// Makes any sum wrong.
const FAILED: usize = 1 << 32;

/// As many shards on every machine: by default it is four for each core.
fn dashmap<V>() -> DashMap<Box<str>, Arc<V>, RandomState>
where
    V: ?Sized,
{
    DashMap::with_hasher_and_shard_amount(RandomState::default(), 16)
}

/// dashmap with values of bytes.
pub(crate) struct Flat(DashMap<Box<str>, Arc<[u8]>, RandomState>);

impl Flat {
    pub(crate) fn new() -> Flat {
        Flat(dashmap())
    }
}

impl Map for Flat {
    fn get(&self, key: &Key) -> usize {
        let value = self.0.get(key.whole()).map(|entry| entry.value().clone());
        usize::from(value.is_some())
    }

    fn put(&self, key: &Key) -> usize {
        usize::from(self.0.insert(key.whole().into(), Arc::from(ROW.0.as_flattened())).is_some())
    }
}

/// dashmap with values of a type.
pub(crate) struct FlatTyped(DashMap<Box<str>, Arc<Row>, RandomState>);

impl FlatTyped {
    pub(crate) fn new() -> FlatTyped {
        FlatTyped(dashmap())
    }
}

impl Map for FlatTyped {
    fn get(&self, key: &Key) -> usize {
        let value = self.0.get(key.whole()).map(|entry| entry.value().clone());
        usize::from(value.is_some())
    }

    fn put(&self, key: &Key) -> usize {
        usize::from(self.0.insert(key.whole().into(), Arc::new(ROW)).is_some())
    }
}

/// A store by key, in bytes.
pub(crate) struct ByKey(pub(crate) Store);

impl Map for ByKey {
    fn get(&self, key: &Key) -> usize {
        self.0.get(key.whole()).map_or(FAILED, |value| usize::from(value.is_some()))
    }

    fn put(&self, key: &Key) -> usize {
        self.0.put(key.whole(), ROW.0.as_flattened()).map_or(FAILED, |old| usize::from(old.is_some()))
    }
}

/// A store through a handle.
pub(crate) struct Typed(Collection<Row>);

impl Typed {
    pub(crate) fn new(store: &Store) -> Result<Typed> {
        Ok(Typed(store.collection(COLLECTION)?))
    }
}

impl Map for Typed {
    fn get(&self, key: &Key) -> usize {
        usize::from(self.0.get(key.member()).is_some())
    }

    fn put(&self, key: &Key) -> usize {
        self.0.put(key.member(), ROW).map_or(FAILED, |old| usize::from(old.is_some()))
    }
}
