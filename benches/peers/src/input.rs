//! Keys and values, the same for all.

use std::fmt::{self, Write};

pub(crate) const COLLECTIONS: usize = 100;

pub(crate) const VALUE: usize = 100;

/// `member000000000042`
pub(crate) const MEMBER: usize = 18;

/// `coll42/member000000000042`
pub(crate) const KEY: usize = 25;

pub(crate) fn set_key(key: &mut String, member: usize) {
    key.clear();
    push_key(key, member % COLLECTIONS, member);
    debug_assert_eq!(key.len(), KEY);
}

fn push_key(keys: &mut String, collection: usize, member: usize) {
    // Writing to a string does not fail.
    _ = write!(keys, "coll{collection:02}/member{member:012}");
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

/// A key, and its parts.
#[derive(Clone, Copy)]
pub(crate) struct Key<'a>(pub(crate) &'a str);

impl<'a> Key<'a> {
    pub(crate) fn collection(self) -> usize {
        let digit = |at: usize| usize::from(self.0.as_bytes()[at] - b'0');
        digit(4) * 10 + digit(5)
    }

    pub(crate) fn member(self) -> &'a str {
        &self.0[KEY - MEMBER..]
    }
}

pub(crate) fn collection(number: usize) -> String {
    format!("coll{number:02}")
}

/// The operations of one thread: their keys, one after the other in memory, so that fetching them costs next to nothing.
pub(crate) struct Ops {
    keys: String,
    puts: Vec<bool>,
}

impl Ops {
    fn of(members: impl Iterator<Item = (usize, usize)>) -> Ops {
        let mut ops = Ops { keys: String::new(), puts: Vec::new() };
        for (collection, member) in members {
            push_key(&mut ops.keys, collection, member);
            ops.puts.push(true);
        }
        ops
    }

    /// These members, once each.
    pub(crate) fn each(members: std::ops::Range<usize>) -> Ops {
        Ops::of(members.map(|member| (member % COLLECTIONS, member)))
    }

    /// So many members of one collection.
    pub(crate) fn of_collection(collection: usize, members: usize) -> Ops {
        Ops::of((0..members).map(|member| (collection, member)))
    }

    pub(crate) fn len(&self) -> usize {
        self.puts.len()
    }

    pub(crate) fn key(&self, at: usize) -> Key<'_> {
        Key(&self.keys[at * KEY..(at + 1) * KEY])
    }

    /// The keys of some operations.
    pub(crate) fn keys(&self, places: std::ops::Range<usize>) -> Vec<&str> {
        places.map(|at| self.key(at).0).collect()
    }

    /// It is a put, and not a get.
    pub(crate) fn is_put(&self, at: usize) -> bool {
        self.puts[at]
    }
}

/// Which members operations go to.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Keys {
    /// Every member as likely as any other.
    Uniform,
    /// The one of rank k with a likelihood of 1 / k^0.99, the ranks being dealt out at random.
    Zipf,
    /// All members once, in their order.
    Each,
}

impl fmt::Display for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Keys::Uniform => "uniform",
            Keys::Zipf => "zipf 0.99",
            Keys::Each => "each once",
        })
    }
}

/// Operations, of which so many in a hundred are puts.
#[derive(Clone, Copy)]
pub(crate) struct Mix {
    pub(crate) keys: Keys,
    pub(crate) puts: u64,
}

impl Mix {
    /// `total` operations on the first `members`, shared out between threads.
    pub(crate) fn operations(self, members: usize, total: usize, threads: usize) -> Vec<Ops> {
        let each = total / threads;
        let zipf = if self.keys == Keys::Zipf { zipf_table(members) } else { Vec::new() };
        let one = |thread: usize| {
            let mut random = Random::new(thread as u64 + 1);
            let mut ops = Ops { keys: String::with_capacity(each * KEY), puts: Vec::with_capacity(each) };
            for number in 0..each {
                let member = match self.keys {
                    Keys::Uniform => random.below(members),
                    Keys::Zipf => {
                        let at = random.unit() * zipf.last().copied().unwrap_or_default();
                        // A prime is a step that comes by all ranks before it comes back.
                        (zipf.partition_point(|sum| *sum <= at) * 7_368_787) % members
                    }
                    Keys::Each => (thread * each + number) % members,
                };
                push_key(&mut ops.keys, member % COLLECTIONS, member);
                ops.puts.push(random.next() % 100 < self.puts);
            }
            ops
        };
        (0..threads).map(one).collect()
    }
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

    /// From 0 to 1.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}
