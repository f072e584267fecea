//! Level one: collection name -> collection. Nothing is ever removed, so an id stays good for ever, and a lookup takes no
//! lock.
//!
//! Names stand in levels, each four times the size of the one before, and in a level in groups of three, which fill a line of
//! the cache. A name's hash points to a group in each level; the name goes to the first free place in the first of these
//! groups that has one, and whoever looks for it goes the same way. Some bits of each name's hash stand in its group, so
//! that a lookup follows one pointer and not those of the names before it.

use std::sync::{Arc, OnceLock};

use super::table::hash_name;
use crate::key;
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::{Mutex, NameHasher};

/// Groups in the first level, as a power of two: so many that of a hundred names most are alone in theirs, which is what a
/// processor then expects.
const FIRST: u32 = 8;

/// The last level has room for thousands of millions: there is always a free place.
const LEVELS: usize = 12;

/// What the registry holds: something with a name.
pub(crate) trait Named {
    fn name(&self) -> &str;
}

/// What a line of the cache has room for.
const PLACES: usize = 3;

#[repr(align(64))]
struct Group<C> {
    /// Of the hash of the name in each place; 0 while it is free. Written after the place, by whoever holds `by_id`.
    tags: [AtomicU32; PLACES],
    places: [OnceLock<Arc<C>>; PLACES],
}

impl<C> Group<C> {
    fn new() -> Self {
        Group { tags: [const { AtomicU32::new(0) }; PLACES], places: [const { OnceLock::new() }; PLACES] }
    }
}

pub(crate) struct Registry<C> {
    hasher: NameHasher,
    levels: [OnceLock<Box<[Group<C>]>>; LEVELS],
    /// By id. Whoever adds a collection holds it.
    by_id: Mutex<Vec<Arc<C>>>,
}

impl<C: Named> Registry<C> {
    pub(crate) fn new(hasher: NameHasher) -> Self {
        Registry { hasher, levels: std::array::from_fn(|_| OnceLock::new()), by_id: Mutex::new(Vec::new()) }
    }

    #[inline]
    fn tag(hash: u64) -> u32 {
        hash as u32 | 1
    }

    /// The group in a level. Each level goes by other bits: those that crowded together in one do not in the next, and
    /// no straggler makes a level four times as large necessary.
    #[inline]
    fn group(level: &[Group<C>], number: usize, hash: u64) -> &Group<C> {
        &level[(hash.rotate_left(17 * number as u32) >> 32) as usize & (level.len() - 1)]
    }

    #[inline]
    pub(crate) fn get(&self, name: &str) -> Option<&Arc<C>> {
        let hash = hash_name(&self.hasher, name);
        let tag = Self::tag(hash);
        for (number, level) in self.levels.iter().enumerate() {
            let group = Self::group(level.get()?, number, hash);
            for (found, place) in group.tags.iter().zip(&group.places) {
                match found.load(Ordering::Acquire) {
                    0 => return None,
                    found if found == tag => {
                        let found = place.get()?;
                        if key::is_same(found.name(), name) {
                            return Some(found);
                        }
                    }
                    _ => {}
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
        // Somebody may have made it in between.
        if let Some(found) = self.get(name) {
            return found;
        }
        let hash = hash_name(&self.hasher, name);
        for (number, level) in self.levels.iter().enumerate() {
            let groups = 1usize << (FIRST + 2 * number as u32);
            let level = level.get_or_init(|| (0..groups).map(|_| Group::new()).collect());
            let group = Self::group(level, number, hash);
            let free = group.places.iter().zip(&group.tags).find(|(place, _)| place.get().is_none());
            if let Some((place, tag)) = free {
                let new = Arc::new(make(by_id.len() as u32));
                by_id.push(new.clone());
                let new = place.get_or_init(|| new);
                tag.store(Self::tag(hash), Ordering::Release);
                return new;
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

    #[test]
    fn stragglers_need_no_larger_level() {
        // With the same bits for each level a fifth of these stores need a fifth one; with others two in ten thousand.
        let mut larger = 0;
        for _ in 0..40 {
            let registry = Registry::new(NameHasher::default());
            for number in 0..10_000 {
                let name = format!("collection {number}");
                registry.get_or_create(&name, |id| Thing(name.clone(), id));
            }
            larger += usize::from(registry.levels[4].get().is_some());
        }
        assert!(larger <= 2, "{larger} of 40");
    }
}
