//! Keys, values, and the orders in which they come.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

pub(crate) const COLLECTIONS: usize = 100;

/// `c042/member-0000000000042`
pub(crate) const KEY: usize = 25;
const MEMBER: usize = "c042/".len();

pub(crate) fn collection(number: usize) -> String {
    format!("c{number:03}")
}

pub(crate) fn push_key(out: &mut String, member: usize) {
    // Writing to a string does not fail.
    _ = write!(out, "c{:03}/member-{member:013}", member % COLLECTIONS);
}

/// A value of 100 bytes, as a type and encoded. The first byte is 0: see `drive`.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) zero: u8,
    rest: [[u8; 11]; 9],
}

pub(crate) const ROW: Row = Row { zero: 0, rest: [*b"hello world"; 9] };

/// What `Bincode` makes of a `Row`: the same bytes.
pub(crate) fn row_bytes() -> Vec<u8> {
    let mut bytes = vec![ROW.zero];
    bytes.extend(ROW.rest.as_flattened());
    bytes
}

/// The keys of one thread's operations, one after the other in memory, so that fetching them costs next to nothing.
pub(crate) struct Ops {
    keys: String,
    collections: Vec<u8>,
}

impl Ops {
    fn new(members: impl Iterator<Item = usize>) -> Ops {
        let mut ops = Ops { keys: String::new(), collections: Vec::new() };
        for member in members {
            push_key(&mut ops.keys, member);
            ops.collections.push((member % COLLECTIONS) as u8);
        }
        debug_assert_eq!(ops.keys.len(), ops.len() * KEY);
        ops
    }

    pub(crate) fn len(&self) -> usize {
        self.collections.len()
    }

    pub(crate) fn key(&self, at: usize) -> &str {
        &self.keys[at * KEY..(at + 1) * KEY]
    }

    pub(crate) fn member(&self, at: usize) -> &str {
        &self.keys[at * KEY + MEMBER..(at + 1) * KEY]
    }

    pub(crate) fn collection(&self, at: usize) -> usize {
        self.collections[at].into()
    }
}

/// Which members operations go to.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Keys {
    /// Every member as likely as any other.
    Uniform,
    /// The one of rank k with a likelihood of 1 / k^0.99, the ranks being dealt out at random.
    Zipf,
    /// One member, always.
    Hot,
    /// All members once.
    Each,
}

impl std::fmt::Display for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Keys::Uniform => "uniform",
            Keys::Zipf => "zipf 0.99",
            Keys::Hot => "one",
            Keys::Each => "each once",
        })
    }
}

/// `total` operations among `members`, shared out between threads.
pub(crate) fn operations(keys: Keys, members: usize, total: usize, threads: usize) -> Vec<Ops> {
    let each = total / threads;
    let zipf = if keys == Keys::Zipf { zipf_table(members) } else { Vec::new() };
    let one = |thread: usize| {
        let mut random = Random::new(thread as u64 + 1);
        let mut next = |number: usize| match keys {
            Keys::Uniform => random.below(members),
            Keys::Zipf => {
                let at = random.unit() * zipf.last().copied().unwrap_or_default();
                // A prime is a step that comes by all ranks before it comes back.
                (zipf.partition_point(|sum| *sum <= at) * 7_368_787) % members
            }
            Keys::Hot => members / 2,
            Keys::Each => (thread * each + number) % members,
        };
        Ops::new((0..each).map(&mut next))
    };
    (0..threads).map(one).collect()
}

/// The sums of the likelihoods of all ranks up to each.
fn zipf_table(members: usize) -> Vec<f64> {
    let mut sum = 0.0;
    let mut add = |rank: usize| {
        sum += (rank as f64).powf(-0.99);
        sum
    };
    (1..=members).map(&mut add).collect()
}

/// splitmix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014).
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        Random(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    /// From 0 to 1.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}
