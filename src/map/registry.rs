//! Level one: collection name -> collection. Nothing is ever removed, so an id stays good for ever, and a lookup takes no
//! lock.
//!
//! Names stand in levels, each four times the size of the one before. A name goes into the first free of a few slots that
//! its hash points to, in the first level that has one free; whoever looks for it goes the same way and stops at a free slot.

use std::sync::{Arc, OnceLock};

use super::table::hash_name;
use crate::key;
use crate::sync::{Mutex, NameHasher};

/// Slots in the first level, as a power of two.
const FIRST: u32 = 8;

/// The last level has room for thousands of millions: there is always a free slot.
const LEVELS: usize = 13;

/// Slots that are tried in a level: a line of the cache's worth.
const TRIED: usize = 4;

/// What the registry holds: something with a name.
pub(crate) trait Named {
    fn name(&self) -> &str;
}

type Level<C> = Box<[OnceLock<Arc<C>>]>;

pub(crate) struct Registry<C> {
    hasher: NameHasher,
    levels: [OnceLock<Level<C>>; LEVELS],
    /// By id. Whoever adds a collection holds it.
    by_id: Mutex<Vec<Arc<C>>>,
}

impl<C: Named> Registry<C> {
    pub(crate) fn new(hasher: NameHasher) -> Self {
        Registry { hasher, levels: std::array::from_fn(|_| OnceLock::new()), by_id: Mutex::new(Vec::new()) }
    }

    /// The slots that are tried for a hash in a level, in order.
    #[inline]
    fn tried(level: &[OnceLock<Arc<C>>], hash: u64) -> impl Iterator<Item = &OnceLock<Arc<C>>> {
        let start = (hash >> 32) as usize & (level.len() - TRIED);
        level[start..start + TRIED].iter()
    }

    #[inline]
    pub(crate) fn get(&self, name: &str) -> Option<&Arc<C>> {
        let hash = hash_name(&self.hasher, name);
        for level in &self.levels {
            for slot in Self::tried(level.get()?, hash) {
                let found = slot.get()?;
                if key::is_same(found.name(), name) {
                    return Some(found);
                }
            }
        }
        None
    }

    /// The collection of that name, made with the next id if it is new. `make` must not wait or call back.
    pub(crate) fn get_or_create(&self, name: &str, make: impl FnOnce(u32) -> C) -> &Arc<C> {
        if let Some(found) = self.get(name) {
            return found;
        }
        let mut by_id = self.by_id.lock();
        let hash = hash_name(&self.hasher, name);
        for (number, level) in self.levels.iter().enumerate() {
            let slots = 1usize << (FIRST + 2 * number as u32);
            let level = level.get_or_init(|| (0..slots).map(|_| OnceLock::new()).collect());
            for slot in Self::tried(level, hash) {
                if let Some(found) = slot.get() {
                    if found.name() == name {
                        return found;
                    }
                    continue;
                }
                let new = Arc::new(make(by_id.len() as u32));
                by_id.push(new.clone());
                return slot.get_or_init(|| new);
            }
        }
        unreachable!("the last level is larger than any memory")
    }

    pub(crate) fn by_id(&self, id: u32) -> Arc<C> {
        self.by_id.lock()[id as usize].clone()
    }

    /// Every collection there is at this moment.
    pub(crate) fn all(&self) -> Vec<Arc<C>> {
        self.by_id.lock().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Thing(String, u32);

    impl Named for Thing {
        fn name(&self) -> &str {
            &self.0
        }
    }

    #[test]
    fn every_name_is_found_under_its_own_id() {
        let registry = Registry::new(NameHasher::default());
        let name = |number: u32| format!("collection {number}");
        for number in 0..20_000 {
            assert!(registry.get(&name(number)).is_none());
            let made = registry.get_or_create(&name(number), |id| Thing(name(number), id));
            assert_eq!(made.1, number);
        }
        for number in 0..20_000 {
            let again = registry.get_or_create(&name(number), |_| unreachable!());
            assert_eq!((again.name(), again.1), (name(number).as_str(), number));
            assert_eq!(registry.get(&name(number)).map(|found| found.1), Some(number));
            assert_eq!(registry.by_id(number).name(), name(number));
        }
        assert_eq!(registry.all().len(), 20_000);
    }
}
