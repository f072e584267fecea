//! What the backend has applied and not yet synced: the newest of each key. It knows nothing of backends, nor of what becomes of
//! it: the janitor does.

use std::hash::BuildHasher;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use crate::map::KeyId;
use crate::sync::NameHasher;

/// A change that the backend has applied and not yet synced.
#[derive(Debug)]
pub(crate) struct Applied {
    pub(crate) version: u64,
    pub(crate) deleted: bool,
    /// What it counts among the bytes not yet durable.
    pub(crate) charge: usize,
}

/// Changes by key. They stand one after the other, and are found through their numbers: what has to be looked through for a
/// place is then a tenth as large as they are, and all of them are met without a gap.
#[derive(Debug, Default)]
pub(crate) struct ByKey {
    entries: Vec<(KeyId, Applied)>,
    numbers: HashTable<u32>,
    hasher: NameHasher,
}

impl ByKey {
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Puts a change in place, and returns what was there.
    pub(crate) fn insert(&mut self, key: KeyId, applied: Applied) -> Option<Applied> {
        let ByKey { entries, numbers, hasher } = self;
        let entry = numbers.entry(
            hasher.hash_one(key.digest()),
            |&number| entries[number as usize].0 == key,
            |&number| hasher.hash_one(entries[number as usize].0.digest()),
        );
        match entry {
            Entry::Occupied(number) => Some(std::mem::replace(&mut entries[*number.get() as usize].1, applied)),
            Entry::Vacant(vacant) => {
                // There is no room for more of them in any memory.
                vacant.insert(entries.len() as u32);
                entries.push((key, applied));
                None
            }
        }
    }

    /// Takes them all. The room for as many stays, but for what only an exception needed, and for what is much.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = (KeyId, Applied)> {
        const LITTLE: usize = 1 << 10;
        const MUCH: usize = 1 << 17;

        let most = (4 * self.entries.len()).clamp(LITTLE, MUCH);
        self.numbers.clear();
        self.numbers.shrink_to(most, |_| 0);
        let too_many = if self.entries.len() > most { std::mem::take(&mut self.entries) } else { Vec::new() };
        self.entries.shrink_to(most);
        too_many.into_iter().chain(self.entries.drain(..))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::Member;

    fn key(number: u32) -> KeyId {
        // Many share their bits, and two collections every member.
        KeyId { collection: number % 2, bits: number % 7, member: Member::from((number / 2).to_string()) }
    }

    #[test]
    fn there_is_one_change_a_key_and_it_is_the_last() {
        let mut changes = ByKey::default();
        for round in 0..3 {
            assert!(changes.is_empty());
            for version in 0..100 {
                for number in 0..=round {
                    let applied = Applied { version, deleted: number == 1, charge: number as usize };
                    let older = changes.insert(key(number), applied);
                    let expected = version.checked_sub(1).map(|version| (version, number as usize));
                    assert_eq!(older.map(|older| (older.version, older.charge)), expected);
                }
            }
            assert_eq!(changes.len(), round as usize + 1);
            for (number, (found, applied)) in (0..).zip(changes.drain()) {
                assert_eq!((found, applied.version, applied.deleted), (key(number), 99, number == 1));
            }
        }
    }

    #[test]
    fn room_that_only_an_exception_needed_is_given_back() {
        let mut changes = ByKey::default();
        let mut fill = |many: u32| {
            for number in 0..many {
                let key = KeyId { bits: number.wrapping_mul(0x9e37_79b9), ..key(number) };
                changes.insert(key, Applied { version: 1, deleted: false, charge: 0 });
            }
            assert_eq!(changes.drain().count(), many as usize);
            (changes.entries.capacity(), changes.numbers.capacity())
        };
        let (entries, numbers) = fill(50_000);
        assert!(entries >= 50_000 && numbers >= 50_000, "{entries}, {numbers}");
        assert_eq!(fill(50_000), (entries, numbers));
        let (entries, numbers) = fill(500_000);
        assert!(entries < 300_000 && numbers < 300_000, "{entries}, {numbers}");
        fill(100);
        let (entries, numbers) = fill(100);
        assert!(entries < 2048 && numbers < 2048, "{entries}, {numbers}");
    }
}
