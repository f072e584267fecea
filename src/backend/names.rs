//! Members' names, as small as they get where only their being the same matters.

use std::hash::{BuildHasher, RandomState};

/// 128 bits of a member's name, seeded at random: two of ten million are alike once in 10^24 times.
pub(super) struct Names(RandomState, RandomState);

impl Names {
    pub(super) fn new() -> Names {
        Names(RandomState::new(), RandomState::new())
    }

    pub(super) fn hash(&self, collection: &str, member: &str) -> u128 {
        let key = (collection, member);
        u128::from(self.0.hash_one(key)) << 64 | u128::from(self.1.hash_one(key))
    }
}

/// By such a hash, which nobody can choose.
pub(super) type ByName<T> = hashbrown::HashMap<u128, T, foldhash::fast::RandomState>;
