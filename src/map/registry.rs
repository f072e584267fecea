//! Level one: collection name -> collection. Read-mostly, and nothing is ever removed, so an id stays good for ever.

use std::sync::Arc;

use hashbrown::HashTable;

use super::table::hash_name;
use crate::sync::{NameHasher, RwLock};

/// Enough that threads working in different collections seldom meet at one lock.
const SHARDS: usize = 32;

/// What the registry holds: something with a name.
pub(crate) trait Named {
    fn name(&self) -> &str;
}

#[repr(align(64))]
struct Shard<C>(RwLock<HashTable<Arc<C>>>);

pub(crate) struct Registry<C> {
    hasher: NameHasher,
    shards: Box<[Shard<C>]>,
    /// By id. Taken after a shard's lock, never before one.
    by_id: RwLock<Vec<Arc<C>>>,
}

impl<C: Named> Registry<C> {
    pub(crate) fn new(hasher: NameHasher) -> Self {
        let shards = (0..SHARDS).map(|_| Shard(RwLock::new(HashTable::new()))).collect();
        Registry { hasher, shards, by_id: RwLock::new(Vec::new()) }
    }

    fn place(&self, name: &str) -> (u64, &RwLock<HashTable<Arc<C>>>) {
        let hash = hash_name(&self.hasher, name);
        (hash, &self.shards[(hash >> 32) as usize % SHARDS].0)
    }

    /// Calls `f` with the collection, holding the registry's lock: `f` is the map's own work and does not wait.
    pub(crate) fn with<R>(&self, name: &str, f: impl FnOnce(&Arc<C>) -> R) -> Option<R> {
        let (hash, shard) = self.place(name);
        shard.read().find(hash, |collection| collection.name() == name).map(f)
    }

    pub(crate) fn get(&self, name: &str) -> Option<Arc<C>> {
        self.with(name, Arc::clone)
    }

    /// The collection of that name, made with the next id if it is new. `make` must not wait or call back.
    pub(crate) fn get_or_create(&self, name: &str, make: impl FnOnce(u32) -> C) -> Arc<C> {
        if let Some(found) = self.get(name) {
            return found;
        }
        let (hash, shard) = self.place(name);
        let mut shard = shard.write();
        if let Some(found) = shard.find(hash, |collection| collection.name() == name) {
            return found.clone();
        }
        let mut by_id = self.by_id.write();
        let made = Arc::new(make(by_id.len() as u32));
        by_id.push(made.clone());
        shard.insert_unique(hash, made.clone(), |collection| hash_name(&self.hasher, collection.name()));
        made
    }

    pub(crate) fn by_id(&self, id: u32) -> Arc<C> {
        self.by_id.read()[id as usize].clone()
    }

    /// Every collection there is at this moment.
    pub(crate) fn all(&self) -> Vec<Arc<C>> {
        self.by_id.read().clone()
    }
}
