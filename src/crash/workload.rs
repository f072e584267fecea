//! What is done to a store, and what a crash may leave of it: lists of operations, and the values that each member may
//! hold afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use super::states::Rng;
use crate::fs::sim::{Bytes, Hash128, Shown};

/// Whether a write that came after a transaction, to one of its members, may survive a crash only together with the
/// transaction. More than "whole or not there": it is about order between members.
const NOTHING_OVERTAKES_A_TRANSACTION: bool = false;

/// What a store holds, by key.
pub(super) type Members = BTreeMap<String, Bytes>;

/// A part of a transaction: a put of a value of this length, or a delete.
pub(super) type Part = (String, Option<usize>);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Act {
    /// A value of this length, or a little longer.
    Put(String, usize),
    Delete(String),
    DeleteAll(String),
    Flush,
    CloseAndLoad,
    /// Sorted by key.
    Transaction(Vec<Part>),
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Act::Put(key, length) => write!(f, "put {key} ({length} bytes)"),
            Act::Delete(key) => write!(f, "delete {key}"),
            Act::DeleteAll(collection) => write!(f, "delete_all {collection}"),
            Act::Flush => f.write_str("flush"),
            Act::CloseAndLoad => f.write_str("close and load"),
            Act::Transaction(parts) => {
                f.write_str("transaction:")?;
                parts.iter().try_for_each(|(key, put)| match put {
                    Some(length) => write!(f, " put {key} ({length} bytes),"),
                    None => write!(f, " delete {key},"),
                })
            }
        }
    }
}

/// Operations in order. The store is closed after the last one.
pub(super) type Workload = Vec<Act>;

/// The value that the operation of this number puts. No other puts the same, and it has no zero byte.
pub(super) fn value(number: usize, key: &str, length: usize) -> Bytes {
    let mut value = format!("{number}:{key}:").into_bytes();
    for at in value.len()..length {
        value.push(b'a' + ((at * 7 + number) % 26) as u8);
    }
    Arc::new(value)
}

/// A change that an operation makes.
pub(super) enum Effect<'a> {
    Put(&'a str, Bytes),
    Delete(&'a str),
    Clear(&'a str),
}

/// What the operation of this number does.
pub(super) fn effects(number: usize, act: &Act) -> Vec<Effect<'_>> {
    match act {
        Act::Put(key, length) => vec![Effect::Put(key, value(number, key, *length))],
        Act::Delete(key) => vec![Effect::Delete(key)],
        Act::DeleteAll(collection) => vec![Effect::Clear(collection)],
        Act::Flush | Act::CloseAndLoad => Vec::new(),
        Act::Transaction(parts) => {
            let of_part = |(key, put): &'_ (String, Option<usize>)| put.map(|length| value(number, key, length));
            let effect = |part| -> Effect<'_> {
                let (key, _): &Part = part;
                of_part(part).map_or(Effect::Delete(key), |value| Effect::Put(key, value))
            };
            parts.iter().map(effect).collect()
        }
    }
}

pub(super) fn is_in(key: &str, collection: &str) -> bool {
    key.split_once('/').is_some_and(|(start, _)| start == collection)
}

/// An invariant that does not hold, by its name, and how that shows.
#[derive(Debug, Clone)]
pub(super) struct Broken {
    pub(super) invariant: &'static str,
    pub(super) details: String,
}

impl Broken {
    pub(super) fn new(invariant: &'static str, details: impl Into<String>) -> Broken {
        Broken { invariant, details: details.into() }
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BROKEN: {}\n{}", self.invariant, self.details)
    }
}

/// A write to one member: how many operations had begun with it, and the value or `None` for a delete. What was there
/// at the beginning has 0.
type Write = (usize, Option<Bytes>);

/// Everything that is written to a store from a known beginning.
#[derive(Debug)]
pub(super) struct History {
    /// What was durable at the beginning.
    pub(super) base: Members,
    pub(super) workload: Workload,
    /// What each member was given, in order.
    writes: BTreeMap<String, Vec<Write>>,
    /// By operation, how many numbers all writes before it have used up, at least.
    numbers: Vec<u64>,
}

impl History {
    /// `numbers` had been used up by the beginning, at least.
    pub(super) fn new(base: Members, numbers: u64, workload: Workload) -> History {
        let mut writes: BTreeMap<String, Vec<Write>> = BTreeMap::new();
        for (key, value) in &base {
            writes.insert(key.clone(), vec![(0, Some(value.clone()))]);
        }
        for (number, act) in workload.iter().enumerate() {
            for effect in effects(number, act) {
                if let Effect::Put(key, _) | Effect::Delete(key) = effect {
                    writes.entry(key.to_owned()).or_insert_with(|| vec![(0, None)]);
                }
            }
        }
        let mut used = vec![numbers];
        let mut model = base.clone();
        for (number, act) in workload.iter().enumerate() {
            let mut numbers = used[number];
            for effect in effects(number, act) {
                let before = model.len();
                match effect {
                    Effect::Put(key, value) => {
                        writes.entry(key.to_owned()).or_default().push((number + 1, Some(value.clone())));
                        model.insert(key.to_owned(), value);
                        numbers += 1;
                    }
                    Effect::Delete(key) => {
                        writes.entry(key.to_owned()).or_default().push((number + 1, None));
                        model.remove(key);
                    }
                    Effect::Clear(collection) => {
                        let cleared = writes.iter_mut().filter(|(key, _)| is_in(key, collection));
                        cleared.for_each(|(_, writes)| writes.push((number + 1, None)));
                        model.retain(|key, _| !is_in(key, collection));
                    }
                }
                numbers += u64::from(model.len() < before);
            }
            if matches!(act, Act::Transaction(_)) {
                numbers = numbers.min(used[number] + 1);
            }
            used.push(numbers);
        }
        History { base, workload, writes, numbers: used }
    }

    /// What the store holds after this many operations.
    pub(super) fn after(&self, operations: usize) -> Members {
        let last = |(key, writes): (&String, &Vec<Write>)| {
            let value =
                writes.iter().rev().find(|(begun, _)| *begun <= operations).and_then(|(_, value)| value.clone());
            value.map(|value| (key.clone(), value))
        };
        self.writes.iter().filter_map(last).collect()
    }

    /// How many numbers the writes among this many operations have used up, at least.
    pub(super) fn numbers(&self, operations: usize) -> u64 {
        self.numbers[operations]
    }
}

/// What a crash may show when so many operations have begun, and so many are promised to survive it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Expected<'a> {
    pub(super) history: &'a History,
    pub(super) begun: usize,
    pub(super) promised: usize,
}

impl<'a> Expected<'a> {
    /// The writes of a member that may be its last one.
    fn possible(&self, writes: &'a [Write]) -> &'a [Write] {
        let begun = writes.iter().take_while(|(begun, _)| *begun <= self.begun).count();
        let promised = writes.iter().take_while(|(begun, _)| *begun <= self.promised).count();
        &writes[promised.saturating_sub(1)..begun]
    }

    /// The same for the same values.
    pub(super) fn hash(&self) -> u128 {
        let mut hash = Hash128::default();
        for (key, writes) in &self.history.writes {
            hash.add(key.as_bytes());
            for (_, value) in self.possible(writes) {
                match value {
                    None => hash.add_number(u64::MAX),
                    Some(value) => hash.add(value),
                }
            }
        }
        hash.0
    }

    /// # Errors
    ///
    /// The invariant that is broken if a crash leaves this.
    pub(super) fn check(&self, found: &Members) -> Result<(), Broken> {
        for (key, value) in found {
            if !self.history.writes.contains_key(key) {
                return Err(Broken::new("nothing comes from nowhere", format!("{key} holds {}", Shown(value))));
            }
        }
        for (key, writes) in &self.history.writes {
            let value = found.get(key);
            if !self.possible(writes).iter().any(|(_, possible)| possible.as_ref() == value) {
                return Err(self.what_broke(key, writes, value));
            }
        }
        let begun = self.history.workload.iter().enumerate().take(self.begun);
        begun.filter(|(_, act)| matches!(act, Act::Transaction(_))).try_for_each(|(number, act)| {
            let Act::Transaction(parts) = act else { return Ok(()) };
            self.check_transaction(number, parts, found)
        })
    }

    fn what_broke(&self, key: &str, writes: &[Write], value: Option<&Bytes>) -> Broken {
        let shown = |value: Option<&Bytes>| value.map_or("nothing".into(), |value| Shown(value).to_string());
        let possible: Vec<String> = self.possible(writes).iter().map(|(_, value)| shown(value.as_ref())).collect();
        let invariant = if writes.len() == 1 {
            "what is not written to is not touched"
        } else if !writes.iter().any(|(_, written)| written.as_ref() == value) {
            "a member holds a value that was written to it, whole"
        } else if possible == ["nothing"] {
            "what was deleted does not come back"
        } else {
            "nothing that was promised is lost"
        };
        Broken::new(invariant, format!("{key} holds {}; it may hold {}", shown(value), possible.join(", or ")))
    }

    /// A member that shows the transaction's write, and one that shows what was before it, do not go together.
    fn check_transaction(&self, number: usize, parts: &[Part], found: &Members) -> Result<(), Broken> {
        let (mut shows, mut lacks) = (None, None);
        for (key, _) in parts {
            let writes = self.possible(&self.history.writes[key]);
            let can_be = |write: &&Write| write.1.as_ref() == found.get(key);
            let first = writes.iter().find(can_be).map_or(0, |(begun, _)| *begun);
            let last = writes.iter().rev().find(can_be).map_or(0, |(begun, _)| *begun);
            if first == number + 1 || first > number + 1 && NOTHING_OVERTAKES_A_TRANSACTION {
                shows = Some(key);
            }
            if last < number + 1 {
                lacks = Some(key);
            }
        }
        match (shows, lacks) {
            (Some(shows), Some(lacks)) => Err(Broken::new(
                "a transaction is there whole or not at all",
                format!("of operation {number} there is {shows}, and not {lacks}"),
            )),
            _ => Ok(()),
        }
    }
}

// ---- short ones ----

/// What is put: a header and this fit into a sector, as most do.
const SHORT: usize = 16;

/// One of the ways to rename members and collections so that nothing changes but their names.
#[derive(Clone, Copy)]
struct Symmetry {
    collections: bool,
    members: [bool; 2],
}

impl Symmetry {
    fn all() -> impl Iterator<Item = Symmetry> {
        (0..8).map(|bits| Symmetry { collections: bits & 1 != 0, members: [bits & 2 != 0, bits & 4 != 0] })
    }

    fn collection(self, name: &str) -> String {
        let other = if name == "a" { "b" } else { "a" };
        if self.collections { other.to_owned() } else { name.to_owned() }
    }

    fn key(self, key: &str) -> String {
        let (collection, member) = key.split_once('/').unwrap_or((key, ""));
        let swapped = self.members[usize::from(collection == "b")];
        let member = if (member == "1") == swapped { "2" } else { "1" };
        format!("{}/{member}", self.collection(collection))
    }

    fn act(self, act: &Act) -> Act {
        match act {
            Act::Put(key, length) => Act::Put(self.key(key), *length),
            Act::Delete(key) => Act::Delete(self.key(key)),
            Act::DeleteAll(collection) => Act::DeleteAll(self.collection(collection)),
            Act::Flush => Act::Flush,
            Act::CloseAndLoad => Act::CloseAndLoad,
            Act::Transaction(parts) => {
                let mut parts: Vec<Part> = parts.iter().map(|(key, put)| (self.key(key), *put)).collect();
                parts.sort();
                Act::Transaction(parts)
            }
        }
    }
}

/// Every sequence of one to `longest` operations on two members in each of two collections, but of those that differ in
/// names only the first.
pub(super) fn short(longest: usize) -> Vec<Workload> {
    let first = [
        Act::Put("a/1".into(), SHORT),
        Act::Delete("a/1".into()),
        Act::DeleteAll("a".into()),
        Act::Flush,
        Act::CloseAndLoad,
    ];
    let transactions = [
        Act::Transaction(vec![("a/1".into(), Some(SHORT)), ("b/1".into(), Some(SHORT))]),
        Act::Transaction(vec![("a/1".into(), Some(SHORT)), ("a/2".into(), None)]),
    ];
    let mut alphabet: Vec<Act> = Vec::new();
    for act in first.iter().chain(&transactions) {
        for symmetry in Symmetry::all() {
            let act = symmetry.act(act);
            if !alphabet.contains(&act) {
                alphabet.push(act);
            }
        }
    }
    let position = |act: Act| alphabet.iter().position(|other| *other == act).unwrap_or_default();
    let tables: Vec<Vec<usize>> =
        Symmetry::all().map(|symmetry| alphabet.iter().map(|act| position(symmetry.act(act))).collect()).collect();
    let mut found = Vec::new();
    let mut sequences: Vec<Vec<usize>> = vec![Vec::new()];
    for _ in 0..longest {
        let longer = |sequence: &Vec<usize>| {
            let sequence = sequence.clone();
            (0..alphabet.len()).map(move |next| [&*sequence, &[next]].concat())
        };
        sequences = sequences.iter().flat_map(longer).collect();
        sequences.retain(|sequence| {
            let renamed = |table: &Vec<usize>| sequence.iter().map(|&act| table[act]).collect::<Vec<_>>();
            tables.iter().all(|table| renamed(table) >= *sequence)
        });
        found.extend(sequences.iter().map(|sequence| sequence.iter().map(|&act| alphabet[act].clone()).collect()));
    }
    found
}

// ---- long ones ----

/// More files than are synced one by one.
const MANY: usize = 12;

/// Many members and many collections at once, which are synced all together where that can be done.
pub(super) fn many() -> Vec<Workload> {
    let in_one = |number: usize| format!("many/{number}");
    let in_many = |number: usize| format!("many{number}/x");
    let put = |key: &dyn Fn(usize) -> String| (0..MANY).map(|number| Act::Put(key(number), 16)).collect::<Workload>();
    let delete = |key: &dyn Fn(usize) -> String| (0..MANY).map(|number| Act::Delete(key(number))).collect::<Workload>();
    let clear = (0..MANY).map(|number| Act::DeleteAll(format!("many{number}"))).collect::<Workload>();
    let flush = || vec![Act::Flush];
    vec![
        [put(&in_one), flush()].concat(),
        [put(&in_many), flush()].concat(),
        [put(&in_one), flush(), put(&in_one), put(&in_many), flush(), put(&in_many), flush()].concat(),
        [put(&in_many), flush(), delete(&in_many), flush(), put(&in_many), flush()].concat(),
        [put(&in_many), flush(), clear, flush()].concat(),
    ]
}

/// A long workload: few members written often, now and then many at once, in small values and in large ones.
pub(super) fn long(seed: u64) -> Workload {
    let mut rng = Rng(seed);
    let mut workload = Vec::new();
    let length = 6 + rng.below(20);
    while workload.len() < length {
        let key = |rng: &mut Rng| {
            let collection = *rng.pick(&["a", "b", "c", "Ä"]);
            format!("{collection}/{}", *rng.pick(&["1", "2", "3", "Not Portable"]))
        };
        let size = |rng: &mut Rng| *rng.pick(&[0, 16, 16, 16, 300, 700, 3000]);
        match rng.below(24) {
            0..=8 => workload.push(Act::Put(key(&mut rng), size(&mut rng))),
            9..=11 => workload.push(Act::Delete(key(&mut rng))),
            12 => workload.push(Act::DeleteAll((*rng.pick(&["a", "b", "c", "Ä", "many"])).into())),
            13..=15 => workload.push(Act::Flush),
            16 => workload.push(Act::CloseAndLoad),
            17..=19 => {
                let some = many();
                workload.extend_from_slice(&rng.pick(&some)[..MANY]);
            }
            _ => {
                let keys: BTreeSet<String> = (0..2 + rng.below(3)).map(|_| key(&mut rng)).collect();
                let part = |key| (key, (rng.below(4) > 0).then(|| size(&mut rng)));
                workload.push(Act::Transaction(keys.into_iter().map(part).collect()));
            }
        }
    }
    workload
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(workload: &[Act]) -> History {
        let base = [("a/1", "old"), ("c/1", "kept")].map(|(key, value)| (key.into(), Arc::new(value.into())));
        History::new(base.into(), 0, workload.to_vec())
    }

    fn put(key: &str) -> Act {
        Act::Put(key.into(), 0)
    }

    fn broken(history: &History, begun: usize, promised: usize, found: &[(&str, &str)]) -> &'static str {
        let found = found.iter().map(|(key, value)| ((*key).into(), Arc::new(value.as_bytes().to_vec()))).collect();
        Expected { history, begun, promised }.check(&found).map_or_else(|broken| broken.invariant, |()| "")
    }

    #[test]
    fn what_a_crash_may_show_is_what_was_begun_and_nothing_older_than_what_was_promised() {
        let history = history(&[put("a/1"), Act::Delete("a/1".into()), put("a/1"), Act::DeleteAll("a".into())]);
        let kept = ("c/1", "kept");
        let lost = "nothing that was promised is lost";
        assert_eq!(broken(&history, 1, 0, &[("a/1", "old"), kept]), "");
        assert_eq!(broken(&history, 1, 0, &[("a/1", "0:a/1:"), kept]), "");
        assert_eq!(broken(&history, 1, 0, &[kept]), lost);
        assert_eq!(broken(&history, 2, 0, &[kept]), "");
        assert_eq!(broken(&history, 2, 1, &[("a/1", "old"), kept]), lost);
        assert_eq!(broken(&history, 2, 1, &[kept]), "");
        assert_eq!(broken(&history, 3, 2, &[("a/1", "0:a/1:"), kept]), lost);
        assert_eq!(broken(&history, 4, 4, &[("a/1", "2:a/1:"), kept]), "what was deleted does not come back");
        assert_eq!(broken(&history, 4, 4, &[kept]), "");
        assert_eq!(broken(&history, 4, 4, &[]), "what is not written to is not touched");
        assert_eq!(
            broken(&history, 3, 0, &[("a/1", "0:a/"), kept]),
            "a member holds a value that was written to it, whole"
        );
        assert_eq!(broken(&history, 3, 0, &[("a/2", "?"), kept]), "nothing comes from nowhere");
        assert_eq!((history.numbers(0), history.numbers(2), history.numbers(4)), (0, 2, 4));
    }

    #[test]
    fn a_transaction_shows_whole_or_not_at_all_or_overwritten() {
        let parts = vec![("a/1".into(), Some(0)), ("b/1".into(), Some(0)), ("b/2".into(), None)];
        let history = history(&[put("b/2"), Act::Transaction(parts), put("b/1")]);
        let (kept, half) = (("c/1", "kept"), "a transaction is there whole or not at all");
        assert_eq!(broken(&history, 2, 0, &[("a/1", "old"), ("b/2", "0:b/2:"), kept]), "");
        assert_eq!(broken(&history, 2, 0, &[("a/1", "1:a/1:"), ("b/1", "1:b/1:"), kept]), "");
        assert_eq!(broken(&history, 2, 0, &[("a/1", "1:a/1:"), kept]), half);
        assert_eq!(broken(&history, 2, 0, &[("a/1", "1:a/1:"), ("b/1", "1:b/1:"), ("b/2", "0:b/2:"), kept]), half);
        assert_eq!(broken(&history, 3, 0, &[("a/1", "1:a/1:"), ("b/1", "2:b/1:"), kept]), "");
        assert_eq!(broken(&history, 3, 0, &[("a/1", "1:a/1:"), ("b/1", "2:b/1:"), ("b/2", "0:b/2:"), kept]), half);
    }

    #[test]
    fn the_short_workloads_are_all_there_up_to_names() {
        let workloads = short(2);
        // One of each kind; and for each first operation those that differ in how they meet it.
        assert_eq!(workloads.iter().filter(|workload| workload.len() == 1).count(), 7);
        let pairs = [
            vec![put_short("a/1"), put_short("a/1")],
            vec![put_short("a/1"), put_short("a/2")],
            vec![put_short("a/1"), put_short("b/1")],
        ];
        for pair in &pairs {
            assert_eq!(workloads.iter().filter(|workload| *workload == pair).count(), 1, "{pair:?}");
        }
        assert!(!workloads.contains(&vec![put_short("a/2"), put_short("a/1")]));
        assert!(!workloads.contains(&vec![put_short("a/1"), put_short("b/2")]));
    }

    fn put_short(key: &str) -> Act {
        Act::Put(key.into(), SHORT)
    }
}
