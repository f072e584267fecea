//! Keys and values, the same for all.

use std::fmt::Write;

pub(crate) const COLLECTIONS: usize = 100;

pub(crate) const VALUE: usize = 100;

/// `member000000000042`
pub(crate) const MEMBER: usize = 18;

/// `coll42/member000000000042`
pub(crate) const KEY: usize = 25;

pub(crate) fn set_key(key: &mut String, member: usize) {
    key.clear();
    // Writing to a string does not fail.
    _ = write!(key, "coll{:02}/member{member:012}", member % COLLECTIONS);
    debug_assert_eq!(key.len(), KEY);
}

/// Bytes that do not compress, always the same for a seed.
pub(crate) fn value(seed: u64) -> [u8; VALUE] {
    let mut random = Random::new(seed);
    let mut value = [0; VALUE];
    for chunk in value.chunks_mut(8) {
        chunk.copy_from_slice(&random.next().to_le_bytes()[..chunk.len()]);
    }
    value
}

/// A member as it is put first.
pub(crate) struct Member {
    pub(crate) key: String,
    pub(crate) value: [u8; VALUE],
}

impl Member {
    pub(crate) fn new(member: usize) -> Member {
        let mut key = String::with_capacity(KEY);
        set_key(&mut key, member);
        Member { key, value: value(member as u64) }
    }
}

/// The collections come in turns: the keys are not sorted.
pub(crate) fn members(count: usize) -> Vec<Member> {
    (0..count).map(Member::new).collect()
}

/// splitmix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}
