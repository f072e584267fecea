//! Level one: collection name -> collection. Nothing is ever removed, so an id stays good for ever, and a lookup takes no
//! lock.
//!
//! Names stand in levels, each four times the size of the one before, and in a level in groups of three, which fill a line of
//! the cache. A name's hash points to a group in each level; the name goes to the first free place in the first of these
//! groups that has one, and whoever looks for it goes the same way. Some bits of each name's hash stand in its group, so
//! that a lookup follows one pointer and not those of the names before it. The later levels are made sixteen groups at a time,
//! where a name comes to stand: a few stragglers do not cost a level's memory.

use std::sync::{Arc, OnceLock};

use super::table::hash_name;
use crate::key;
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::{Mutex, NameHasher};

/// Groups in the first level: so many that of a hundred names most are alone in theirs, which is what a processor then
/// expects.
const FIRST: usize = 256;

/// Levels after the first. The last has room for thousands of millions: there is always a free place.
const LATER: usize = 11;

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

/// What of a later level is made at once.
const CHUNK: usize = 16;

type Chunk<C> = OnceLock<Box<[Group<C>; CHUNK]>>;

/// So many, and never on a stack, which may be smaller than that.
fn new_groups<C, const N: usize>() -> Box<[Group<C>; N]> {
    let groups: Box<[_]> = (0..N).map(|_| Group::new()).collect();
    let Ok(groups) = groups.try_into() else { unreachable!("they are so many") };
    groups
}

pub(crate) struct Registry<C> {
    hasher: NameHasher,
    first: Box<[Group<C>; FIRST]>,
    later: [OnceLock<Box<[Chunk<C>]>>; LATER],
    /// By id. Whoever adds a collection holds it.
    by_id: Mutex<Vec<Arc<C>>>,
}

impl<C: Named> Registry<C> {
    pub(crate) fn new(hasher: NameHasher) -> Self {
        Registry {
            hasher,
            first: new_groups(),
            later: std::array::from_fn(|_| OnceLock::new()),
            by_id: Mutex::new(Vec::new()),
        }
    }

    #[inline]
    fn tag(hash: u64) -> u32 {
        hash as u32 | 1
    }

    /// The groups that a name goes to, as far as there are.
    fn groups(&self, hash: u64) -> impl Iterator<Item = &Group<C>> {
        let later = self.later.iter().zip(1..).map_while(move |(level, number)| {
            let (chunk, at) = Self::place(level.get()?, number, hash);
            Some(&chunk.get()?[at])
        });
        std::iter::once(self.first_group(hash)).chain(later)
    }

    #[inline]
    fn first_group(&self, hash: u64) -> &Group<C> {
        &self.first[(hash >> 32) as usize % FIRST]
    }

    /// Where the group is in a later level. Each level goes by other bits: those that crowded together in one do not in the
    /// next. They are mixed once more: of names that differ in a few digits, and with some seeds, the hashes have bits that
    /// differ too little for that.
    fn place(level: &[Chunk<C>], number: usize, hash: u64) -> (&Chunk<C>, usize) {
        /// 2^64 divided by the golden ratio: D. E. Knuth, The Art of Computer Programming, volume 3, 6.4.
        const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
        let group = (hash.rotate_left(17 * number as u32).wrapping_mul(GOLDEN) >> 32) as usize;
        (&level[(group / CHUNK) & (level.len() - 1)], group % CHUNK)
    }

    /// A name that stands in the first place of the first level is found in few steps, which are inlined.
    #[inline(always)]
    pub(crate) fn get(&self, name: &str) -> Option<&Arc<C>> {
        let hash = hash_name(&self.hasher, name);
        let group = self.first_group(hash);
        if group.tags[0].load(Ordering::Acquire) == Self::tag(hash)
            && let Some(found) = group.places[0].get()
            && key::is_same(found.name(), name)
        {
            return Some(found);
        }
        self.find(name, hash)
    }

    #[inline(never)]
    fn find(&self, name: &str, hash: u64) -> Option<&Arc<C>> {
        let tag = Self::tag(hash);
        for group in self.groups(hash) {
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
    #[inline(always)]
    pub(crate) fn get_or_create(&self, name: &str, make: impl FnOnce(u32) -> C) -> &Arc<C> {
        self.get(name).unwrap_or_else(|| self.create(name, make))
    }

    #[cold]
    fn create(&self, name: &str, make: impl FnOnce(u32) -> C) -> &Arc<C> {
        let mut by_id = self.by_id.lock();
        // Somebody may have made it in between.
        if let Some(found) = self.get(name) {
            return found;
        }
        let hash = hash_name(&self.hasher, name);
        for number in 0..=LATER {
            let group = match number.checked_sub(1) {
                None => self.first_group(hash),
                Some(at) => {
                    let chunks = || (0..(FIRST / CHUNK) << (2 * number)).map(|_| OnceLock::new()).collect();
                    let (chunk, group) = Self::place(self.later[at].get_or_init(chunks), number, hash);
                    &chunk.get_or_init(new_groups)[group]
                }
            };
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
    fn stragglers_cost_no_level_s_memory() {
        // Whatever the seed.
        for most in [10_000; 20].into_iter().chain([100_000]) {
            let registry = Registry::new(NameHasher::default());
            for number in 0..most {
                let name = format!("collection {number}");
                registry.get_or_create(&name, |id| Thing(name.clone(), id));
                if [1_000, 10_000, 100_000].contains(&(number + 1)) {
                    let chunks = registry.later.iter().filter_map(OnceLock::get).flat_map(|level| level.iter());
                    let later = CHUNK * chunks.filter(|chunk| chunk.get().is_some()).count();
                    // If every level were made whole, 65,280 for ten thousand, and over a million for a hundred thousand.
                    assert!(PLACES * later < 4 * (number + 1), "{later} later groups for {} names", number + 1);
                }
            }
        }
    }
}
