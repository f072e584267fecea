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

/// The time at which every run begins that does not say otherwise, in milliseconds since 1970.
pub(super) const BEGIN: u64 = 1_000_000;

/// So long to live, or a little longer: each operation gives deadlines of its own.
pub(super) const SOON: u64 = 10;

/// The same, for what outlives most.
pub(super) const LATE: u64 = 1000;

/// What had been given [`SOON`] is gone when so long has passed.
pub(super) const A_WHILE: u64 = 100;

/// What is stored of a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) value: Bytes,
    pub(super) deadline: Option<u64>,
}

impl Held {
    pub(super) fn add_to(&self, hash: &mut Hash128) {
        hash.add(&self.value);
        hash.add_number(self.deadline.unwrap_or(0));
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Shown(&self.value))?;
        self.deadline.map_or(Ok(()), |at| write!(f, " until {at}"))
    }
}

/// What a store holds, by key.
pub(super) type Members = BTreeMap<String, Held>;

/// What of it can be seen at a time.
pub(super) fn visible(members: &Members, time: u64) -> Members {
    let is_visible = |held: &Held| held.deadline.is_none_or(|at| at > time);
    members.iter().filter(|(_, held)| is_visible(held)).map(|(key, held)| (key.clone(), held.clone())).collect()
}

/// What a transaction puts: a value of this length, with so long to live.
pub(super) type Put = (usize, Option<u64>);

/// A part of a transaction: a put, or a delete.
pub(super) type Part = (String, Option<Put>);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Act {
    /// A value of this length, or a little longer.
    Put(String, usize),
    /// The same, with so long to live.
    PutFor(String, usize, u64),
    /// The member gets so long to live, or no deadline.
    Expire(String, Option<u64>),
    /// So much time, and what has expired by then is removed.
    Pass(u64),
    /// The same, but nobody waits for what has expired to be removed.
    Slip(u64),
    Delete(String),
    DeleteAll(String),
    Flush,
    /// So much time passes in between.
    CloseAndLoad(u64),
    /// The process is killed when so many calls of a close have changed something or made it durable, and the next one
    /// opens the store; perhaps only after another one that was killed so many calls into its load. What has expired is
    /// removed.
    Kill(usize, Option<usize>),
    /// Sorted by key.
    Transaction(Vec<Part>),
}

impl Act {
    /// Whether it gives or takes a deadline, or lets time pass.
    fn is_of_time(&self) -> bool {
        match self {
            Act::PutFor(..) | Act::Expire(..) | Act::Pass(_) | Act::Slip(_) => true,
            Act::CloseAndLoad(time) => *time > 0,
            Act::Transaction(parts) => parts.iter().any(|(_, put)| put.is_some_and(|(_, ttl)| ttl.is_some())),
            Act::Put(..) | Act::Delete(_) | Act::DeleteAll(_) | Act::Flush | Act::Kill(..) => false,
        }
    }
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Act::Put(key, length) => write!(f, "put {key} ({length} bytes)"),
            Act::PutFor(key, length, ttl) => write!(f, "put {key} ({length} bytes) for {ttl} ms"),
            Act::Expire(key, Some(ttl)) => write!(f, "expire {key} in {ttl} ms"),
            Act::Expire(key, None) => write!(f, "persist {key}"),
            Act::Pass(time) => write!(f, "{time} ms pass"),
            Act::Slip(time) => write!(f, "{time} ms pass unawaited"),
            Act::Delete(key) => write!(f, "delete {key}"),
            Act::DeleteAll(collection) => write!(f, "delete_all {collection}"),
            Act::Flush => f.write_str("flush"),
            Act::CloseAndLoad(0) => f.write_str("close and load"),
            Act::CloseAndLoad(time) => write!(f, "close and load {time} ms later"),
            Act::Kill(0, None) => f.write_str("kill and load"),
            Act::Kill(closing, None) => write!(f, "kill at call {closing} of a close, and load"),
            Act::Kill(closing, Some(loading)) => {
                write!(f, "kill at call {closing} of a close, load, kill at call {loading} of it, and load")
            }
            Act::Transaction(parts) => {
                f.write_str("transaction:")?;
                parts.iter().try_for_each(|(key, put)| match put {
                    Some((length, None)) => write!(f, " put {key} ({length} bytes),"),
                    Some((length, Some(ttl))) => write!(f, " put {key} ({length} bytes) for {ttl} ms,"),
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
    /// With so long to live.
    Put(&'a str, Bytes, Option<u64>),
    Expire(&'a str, Option<u64>),
    Pass(u64),
    Slip(u64),
    Delete(&'a str),
    Clear(&'a str),
}

/// What the operation of this number does.
pub(super) fn effects<'a>(number: usize, act: &'a Act) -> Vec<Effect<'a>> {
    // No two operations give the same deadline unless time passes between them.
    let ttl = |ttl: u64| ttl + number as u64;
    match act {
        Act::Put(key, length) => vec![Effect::Put(key, value(number, key, *length), None)],
        Act::PutFor(key, length, time) => vec![Effect::Put(key, value(number, key, *length), Some(ttl(*time)))],
        Act::Expire(key, time) => vec![Effect::Expire(key, time.map(ttl))],
        Act::Pass(time) | Act::CloseAndLoad(time) => vec![Effect::Pass(*time)],
        Act::Slip(time) => vec![Effect::Slip(*time)],
        Act::Delete(key) => vec![Effect::Delete(key)],
        Act::DeleteAll(collection) => vec![Effect::Clear(collection)],
        Act::Flush | Act::Kill(..) => Vec::new(),
        Act::Transaction(parts) => {
            let effect = |(key, put): &'a Part| match put {
                Some((length, time)) => Effect::Put(key, value(number, key, *length), time.map(ttl)),
                None => Effect::Delete(key),
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

/// A write to one member.
#[derive(Debug)]
struct Write {
    /// How many operations had begun with it. What was there at the beginning has 0.
    begun: usize,
    /// `None` for a delete.
    left: Option<Held>,
    /// It is done when its operation is. Otherwise it may come later, or never.
    awaited: bool,
    /// When so many operations have begun it is known that it never came to the disk.
    gone_from: usize,
}

impl Write {
    fn new(begun: usize, left: Option<Held>) -> Write {
        Write { begun, left, awaited: true, gone_from: usize::MAX }
    }
}

/// What a process that was killed has left, as the next one finds it.
#[derive(Debug, Clone)]
pub(super) struct Killed {
    /// Expired or not.
    pub(super) found: Members,
    /// How many operations were promised when it was killed.
    pub(super) promised: usize,
}

/// Everything that is written to a store from a known beginning.
#[derive(Debug)]
pub(super) struct History {
    /// What was durable at the beginning, expired or not.
    pub(super) base: Members,
    pub(super) workload: Workload,
    /// What each of the kills left, as far as that is known. Of the others it is taken that they took nothing.
    kills: Vec<Killed>,
    /// By operation, the time at which it begins.
    times: Vec<u64>,
    /// What each member was given, in order.
    writes: BTreeMap<String, Vec<Write>>,
    /// By operation, how many numbers all writes before it have used up, at least.
    numbers: Vec<u64>,
}

impl History {
    /// `numbers` had been used up by the beginning, at least.
    pub(super) fn new(base: Members, numbers: u64, time: u64, workload: Workload) -> History {
        History::with(base, numbers, time, workload, Vec::new())
    }

    /// The same when it is known what the next of the kills has left.
    pub(super) fn killed(mut self, killed: Killed) -> History {
        self.kills.push(killed);
        History::with(self.base, self.numbers[0], self.times[0], self.workload, self.kills)
    }

    fn with(base: Members, numbers: u64, time: u64, workload: Workload, kills: Vec<Killed>) -> History {
        let mut writes: BTreeMap<String, Vec<Write>> = BTreeMap::new();
        for (key, held) in &base {
            writes.insert(key.clone(), vec![Write::new(0, Some(held.clone()))]);
        }
        for (number, act) in workload.iter().enumerate() {
            for effect in effects(number, act) {
                if let Effect::Put(key, ..) | Effect::Delete(key) = effect {
                    writes.entry(key.to_owned()).or_insert_with(|| vec![Write::new(0, None)]);
                }
            }
        }
        let (mut used, mut times) = (vec![numbers], vec![time]);
        let mut model = base.clone();
        // What has expired, and may not be removed yet.
        let mut overdue: BTreeSet<String> = BTreeSet::new();
        let mut known = kills.iter();
        for (number, act) in workload.iter().enumerate() {
            let (mut numbers, mut time) = (used[number], times[number]);
            let killed = if let Act::Kill(..) = act { known.next() } else { None };
            if let Some(Killed { found, promised }) = killed {
                model = visible(found, time);
                overdue.clear();
                numbers = used[*promised] + u64::from(model.len() < found.len());
                for (key, writes) in &mut writes {
                    let left = found.get(key).cloned();
                    // What had not come to the disk is gone with the process. What is there may be durable or not.
                    let last = writes.iter().rposition(|write| write.left == left).unwrap_or(0);
                    writes[last + 1..].iter_mut().for_each(|write| write.gone_from = write.gone_from.min(number + 1));
                    writes.push(Write::new(number + 1, left));
                    if found.contains_key(key) && !model.contains_key(key) {
                        writes.push(Write::new(number + 1, None));
                    }
                }
            }
            for effect in effects(number, act) {
                let before = model.len();
                match effect {
                    Effect::Put(key, value, ttl) => {
                        let held = Held { value, deadline: ttl.map(|ttl| time + ttl) };
                        writes.entry(key.to_owned()).or_default().push(Write::new(number + 1, Some(held.clone())));
                        overdue.remove(key);
                        model.insert(key.to_owned(), held);
                        numbers += 1;
                    }
                    Effect::Expire(key, ttl) => {
                        let deadline = ttl.map(|ttl| time + ttl);
                        let changes = |held: &&mut Held| ttl.is_some() || held.deadline.is_some();
                        if let Some(held) = model.get_mut(key).filter(changes) {
                            held.deadline = deadline;
                            writes.entry(key.to_owned()).or_default().push(Write::new(number + 1, Some(held.clone())));
                            numbers += 1;
                        }
                    }
                    Effect::Pass(by) | Effect::Slip(by) => {
                        time += by;
                        let left = visible(&model, time);
                        overdue.extend(model.keys().filter(|key| !left.contains_key(*key)).cloned());
                        let awaited = matches!(effect, Effect::Pass(_));
                        for key in &overdue {
                            let write = Write { awaited, ..Write::new(number + 1, None) };
                            writes.entry(key.clone()).or_default().push(write);
                        }
                        model = left;
                        if awaited {
                            numbers += u64::from(!overdue.is_empty());
                            overdue.clear();
                        }
                        continue;
                    }
                    // It is not there any more for a delete, which leaves it to whoever removes it.
                    Effect::Delete(key) if overdue.contains(key) && !matches!(act, Act::Transaction(_)) => {}
                    Effect::Delete(key) => {
                        writes.entry(key.to_owned()).or_default().push(Write::new(number + 1, None));
                        overdue.remove(key);
                        model.remove(key);
                    }
                    Effect::Clear(collection) => {
                        let cleared = writes.iter_mut().filter(|(key, _)| is_in(key, collection));
                        cleared.for_each(|(_, writes)| writes.push(Write::new(number + 1, None)));
                        overdue.retain(|key| !is_in(key, collection));
                        model.retain(|key, _| !is_in(key, collection));
                    }
                }
                numbers += u64::from(model.len() < before);
            }
            if matches!(act, Act::Transaction(_)) {
                numbers = numbers.min(used[number] + 1);
            }
            used.push(numbers);
            times.push(time);
        }
        History { base, workload, kills, times, writes, numbers: used }
    }

    /// When an operation begins.
    pub(super) fn time(&self, operation: usize) -> u64 {
        self.times[operation]
    }

    /// What could be seen at the beginning.
    pub(super) fn before(&self) -> Members {
        visible(&self.base, self.times[0])
    }

    /// What the store holds after this many operations.
    pub(super) fn after(&self, operations: usize) -> Members {
        let last = |(key, writes): (&String, &Vec<Write>)| {
            let held = writes.iter().rev().find(|write| write.begun <= operations).and_then(|write| write.left.clone());
            held.map(|held| (key.clone(), held))
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
    fn possible(&self, writes: &'a [Write]) -> impl DoubleEndedIterator<Item = &'a Write> {
        let begun = writes.iter().take_while(|write| write.begun <= self.begun).count();
        let promised = writes.iter().rposition(|write| write.awaited && write.begun <= self.promised);
        let now = self.begun;
        writes[promised.unwrap_or(0)..begun].iter().filter(move |write| now < write.gone_from)
    }

    /// The same for the same values.
    pub(super) fn hash(&self) -> u128 {
        let mut hash = Hash128::default();
        for (key, writes) in &self.history.writes {
            hash.add(key.as_bytes());
            for write in self.possible(writes) {
                match &write.left {
                    None => hash.add_number(u64::MAX),
                    Some(held) => held.add_to(&mut hash),
                }
            }
        }
        hash.0
    }

    /// # Errors
    ///
    /// The invariant that is broken if a crash leaves this.
    pub(super) fn check(&self, found: &Members) -> Result<(), Broken> {
        for (key, held) in found {
            if !self.history.writes.contains_key(key) {
                return Err(Broken::new("nothing comes from nowhere", format!("{key} holds {held}")));
            }
        }
        for (key, writes) in &self.history.writes {
            let held = found.get(key);
            if !self.possible(writes).any(|possible| possible.left.as_ref() == held) {
                return Err(self.what_broke(key, writes, held));
            }
        }
        let begun = self.history.workload.iter().enumerate().take(self.begun);
        begun.filter(|(_, act)| matches!(act, Act::Transaction(_))).try_for_each(|(number, act)| {
            let Act::Transaction(parts) = act else { return Ok(()) };
            self.check_transaction(number, parts, found)
        })
    }

    fn what_broke(&self, key: &str, writes: &[Write], held: Option<&Held>) -> Broken {
        let shown = |held: Option<&Held>| held.map_or("nothing".into(), Held::to_string);
        let possible: Vec<String> = self.possible(writes).map(|write| shown(write.left.as_ref())).collect();
        let value_of = |held: Option<&Held>| held.map(|held| held.value.clone());
        let is_value = |write: &Write| value_of(write.left.as_ref()) == value_of(held);
        let invariant = if writes.len() == 1 {
            "what is not written to is not touched"
        } else if !writes.iter().any(is_value) {
            "a member holds a value that was written to it, whole"
        } else if !writes.iter().any(|write| write.left.as_ref() == held) {
            "a value and its deadline are of one write"
        } else if possible.iter().all(|possible| possible == "nothing") {
            "what was deleted does not come back"
        } else {
            "nothing that was promised is lost"
        };
        Broken::new(invariant, format!("{key} holds {}; it may hold {}", shown(held), possible.join(", or ")))
    }

    /// A member that shows the transaction's write, and one that shows what was before it, do not go together.
    fn check_transaction(&self, number: usize, parts: &[Part], found: &Members) -> Result<(), Broken> {
        let (mut shows, mut lacks) = (None, None);
        for (key, _) in parts {
            let writes = || self.possible(&self.history.writes[key]);
            let can_be = |write: &&Write| write.left.as_ref() == found.get(key);
            let first = writes().find(can_be).map_or(0, |write| write.begun);
            let last = writes().rev().find(can_be).map_or(0, |write| write.begun);
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
            Act::PutFor(key, length, ttl) => Act::PutFor(self.key(key), *length, *ttl),
            Act::Expire(key, ttl) => Act::Expire(self.key(key), *ttl),
            Act::Pass(time) => Act::Pass(*time),
            Act::Slip(time) => Act::Slip(*time),
            Act::Delete(key) => Act::Delete(self.key(key)),
            Act::DeleteAll(collection) => Act::DeleteAll(self.collection(collection)),
            Act::Flush => Act::Flush,
            Act::CloseAndLoad(time) => Act::CloseAndLoad(*time),
            Act::Kill(closing, loading) => Act::Kill(*closing, *loading),
            Act::Transaction(parts) => {
                let mut parts: Vec<Part> = parts.iter().map(|(key, put)| (self.key(key), *put)).collect();
                parts.sort();
                Act::Transaction(parts)
            }
        }
    }
}

/// What is done to members whether they expire or not, on the first one.
fn timeless() -> Vec<Act> {
    vec![
        Act::Put("a/1".into(), SHORT),
        Act::Delete("a/1".into()),
        Act::DeleteAll("a".into()),
        Act::Flush,
        Act::CloseAndLoad(0),
        Act::Transaction(vec![("a/1".into(), Some((SHORT, None))), ("b/1".into(), Some((SHORT, None)))]),
        Act::Transaction(vec![("a/1".into(), Some((SHORT, None))), ("a/2".into(), None)]),
    ]
}

/// Every sequence of one to `longest` operations on two members in each of two collections, but of those that differ in
/// names only the first. Nothing in it expires.
pub(super) fn short(longest: usize) -> Vec<Workload> {
    sequences(&timeless(), longest)
}

/// The same with deadlines, as far as there are any: up to `longest` operations on one member, and up to two on
/// several.
pub(super) fn expiring(longest: usize) -> Vec<Workload> {
    let put = Act::PutFor("a/1".into(), SHORT, SOON);
    let transaction =
        Act::Transaction(vec![("a/1".into(), Some((SHORT, Some(SOON)))), ("b/1".into(), Some((SHORT, None)))]);
    let on_several = [timeless(), vec![put.clone(), Act::Pass(A_WHILE), transaction]].concat();
    let on_one = [
        Act::Put("a/1".into(), SHORT),
        put,
        Act::Expire("a/1".into(), Some(LATE)),
        Act::Expire("a/1".into(), None),
        Act::Pass(A_WHILE),
        Act::Slip(A_WHILE),
        Act::Delete("a/1".into()),
        Act::Flush,
        Act::CloseAndLoad(0),
        Act::CloseAndLoad(A_WHILE),
    ];
    let mut found = sequences(&on_several, longest.min(2));
    let mut ones = vec![Workload::new()];
    for _ in 0..longest {
        let longer =
            |one: &Workload| on_one.iter().map(|next| [&one[..], std::slice::from_ref(next)].concat()).collect();
        ones = ones.iter().flat_map::<Vec<_>, _>(longer).collect();
        let new: Vec<Workload> = ones.iter().filter(|one| !found.contains(one)).cloned().collect();
        found.extend(new);
    }
    found.retain(|workload| workload.iter().any(Act::is_of_time));
    found
}

/// The calls of a close, and of a load that has something to do, are about as many.
const CALLS: usize = 28;

/// Up to two operations, a process that is killed, and what the next one does: with every way to be killed, by and by.
pub(super) fn killed() -> Vec<Workload> {
    let put = || Act::Put("a/1".into(), SHORT);
    let acts = timeless();
    let (simple, transactions): (Vec<Act>, Vec<Act>) = (acts[..4].to_vec(), acts[5..].to_vec());
    let mut begins = sequences(&simple, 2);
    begins.extend(sequences(&transactions, 1));
    let ends = [
        vec![],
        vec![Act::Flush],
        vec![put(), Act::Flush],
        vec![Act::Delete("a/1".into()), Act::Flush],
        vec![Act::Flush, Act::CloseAndLoad(0), put(), Act::Flush],
    ];
    let mut found = Vec::new();
    // What the next one does not write again may be lost with what it finds.
    for begin in [vec![put()], vec![Act::Delete("a/1".into()), Act::Flush]] {
        for calls in 0..CALLS {
            let end = ends[calls % 2].clone();
            found.push([begin.clone(), vec![Act::Kill(calls, None)], end].concat());
        }
    }
    for (number, begin) in begins.into_iter().enumerate() {
        for calls in (0..CALLS).filter(|calls| calls % 4 == number % 4) {
            let turn = number + calls / 4;
            let loading = [None, None, Some((turn * 5) % CALLS)][turn % 3];
            let end = ends[turn % ends.len()].clone();
            // What was flushed before the kill, and what was not, are different matters.
            let flush = if begin.last() == Some(&Act::Flush) || turn % 2 == 0 { vec![] } else { vec![Act::Flush] };
            found.push([begin.clone(), flush, vec![Act::Kill(calls, loading)], end].concat());
        }
    }
    found
}

/// Every sequence of one to `longest` of these operations under all names, but of those that differ in names only the
/// first.
fn sequences(acts: &[Act], longest: usize) -> Vec<Workload> {
    let mut alphabet: Vec<Act> = Vec::new();
    for act in acts {
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
        let time = |rng: &mut Rng| *rng.pick(&[SOON, SOON, A_WHILE, LATE]);
        match rng.below(34) {
            0..=8 => workload.push(Act::Put(key(&mut rng), size(&mut rng))),
            9..=11 => workload.push(Act::Delete(key(&mut rng))),
            12 => workload.push(Act::DeleteAll((*rng.pick(&["a", "b", "c", "Ä", "many"])).into())),
            13..=15 => workload.push(Act::Flush),
            16 => workload.push(Act::CloseAndLoad(*rng.pick(&[0, 0, SOON, A_WHILE]))),
            17..=19 => {
                let some = many();
                workload.extend_from_slice(&rng.pick(&some)[..MANY]);
            }
            20..=21 => workload.push(Act::PutFor(key(&mut rng), size(&mut rng), time(&mut rng))),
            22 => {
                // Members that expire together, and outnumber what is synced one by one.
                let ttl = time(&mut rng);
                workload.extend((0..MANY).map(|number| Act::PutFor(format!("many/{number}"), 16, ttl)));
            }
            23..=24 => workload.push(Act::Expire(key(&mut rng), (rng.below(3) > 0).then(|| time(&mut rng)))),
            25..=26 => {
                let passed = *rng.pick(&[1, SOON, SOON, A_WHILE, LATE]);
                workload.push(if rng.below(3) == 0 { Act::Pass(passed) } else { Act::Slip(passed) });
            }
            27..=28 => workload.push(Act::Kill(
                if rng.below(3) == 0 { 0 } else { rng.below(2 * CALLS) },
                (rng.below(4) == 0).then(|| rng.below(CALLS)),
            )),
            _ => {
                let keys: BTreeSet<String> = (0..2 + rng.below(3)).map(|_| key(&mut rng)).collect();
                let ttl = |rng: &mut Rng| (rng.below(3) == 0).then(|| time(rng));
                let part = |key| (key, (rng.below(4) > 0).then(|| (size(&mut rng), ttl(&mut rng))));
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
        let base = [("a/1", "old"), ("c/1", "kept")].map(|(key, value)| (key.into(), held(value, None)));
        History::new(base.into(), 0, BEGIN, workload.to_vec())
    }

    fn held(value: &str, deadline: Option<u64>) -> Held {
        Held { value: Arc::new(value.as_bytes().to_vec()), deadline }
    }

    fn put(key: &str) -> Act {
        Act::Put(key.into(), 0)
    }

    fn broken(history: &History, begun: usize, promised: usize, found: &[(&str, &str)]) -> &'static str {
        let found: Vec<_> = found.iter().map(|(key, value)| (*key, *value, None)).collect();
        broken_of(history, begun, promised, &found)
    }

    fn broken_of(
        history: &History,
        begun: usize,
        promised: usize,
        found: &[(&str, &str, Option<u64>)],
    ) -> &'static str {
        let found = found.iter().map(|(key, value, deadline)| ((*key).into(), held(value, *deadline))).collect();
        Expected { history, begun, promised }.check(&found).map_or_else(|broken| broken.invariant, |()| "")
    }

    #[test]
    fn a_deadline_goes_with_its_value_and_what_has_expired_is_gone() {
        let acts = [
            Act::PutFor("a/1".into(), 0, SOON),
            Act::Expire("a/1".into(), Some(LATE)),
            Act::Expire("a/1".into(), None),
            Act::Expire("a/1".into(), Some(SOON)),
            Act::Pass(SOON + 3),
        ];
        let history = history(&acts);
        let kept = ("c/1", "kept", None);
        let a = |deadline: Option<u64>| [("a/1", "0:a/1:", deadline.map(|after| BEGIN + after)), kept];
        let (lost, mixed) = ("nothing that was promised is lost", "a value and its deadline are of one write");
        assert_eq!(broken_of(&history, 1, 1, &a(Some(SOON))), "");
        assert_eq!(broken_of(&history, 1, 1, &a(None)), lost);
        assert_eq!(broken_of(&history, 1, 1, &a(Some(LATE))), mixed);
        assert_eq!(broken_of(&history, 2, 1, &a(Some(LATE + 1))), "");
        assert_eq!(broken_of(&history, 2, 2, &a(Some(SOON))), lost);
        assert_eq!(broken_of(&history, 4, 3, &a(None)), "");
        assert_eq!(broken_of(&history, 4, 3, &[("a/1", "old", Some(BEGIN + SOON)), kept]), mixed);
        assert_eq!(broken_of(&history, 5, 4, &a(Some(SOON + 3))), "");
        assert_eq!(broken_of(&history, 5, 4, &[kept]), "");
        assert_eq!(broken_of(&history, 5, 5, &a(Some(SOON + 3))), "what was deleted does not come back");
        assert!(history.after(4).contains_key("a/1") && !history.after(5).contains_key("a/1"));
        assert_eq!(history.numbers(5), 5);
    }

    #[test]
    fn what_nobody_waits_for_is_promised_to_nobody() {
        let acts = [
            Act::PutFor("a/1".into(), 0, SOON),
            Act::Slip(SOON),
            Act::Delete("a/1".into()),
            Act::Flush,
            Act::Pass(0),
            Act::Flush,
        ];
        let history = history(&acts);
        let kept = ("c/1", "kept", None);
        let there = [("a/1", "0:a/1:", Some(BEGIN + SOON)), kept];
        assert_eq!(broken_of(&history, 4, 4, &there), "");
        assert_eq!(broken_of(&history, 4, 4, &[kept]), "");
        assert_eq!(broken_of(&history, 4, 4, &[("a/1", "old", None), kept]), "nothing that was promised is lost");
        assert_eq!(broken_of(&history, 6, 6, &[kept]), "");
        assert_eq!(broken_of(&history, 6, 6, &there), "what was deleted does not come back");
        assert_eq!((history.numbers(4), history.numbers(6)), (1, 2));
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
        let part = |key: &str| (key.into(), Some((0, None)));
        let parts = vec![part("a/1"), part("b/1"), ("b/2".into(), None)];
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
    fn what_a_killed_process_left_may_go_until_the_next_promises_it_and_what_it_took_along_never_comes() {
        let acts = [put("a/1"), Act::Flush, put("a/1"), put("a/1"), Act::Kill(0, None), Act::Flush, put("a/1")];
        let kept = ("c/1", "kept");
        let left = Killed {
            found: [("a/1".into(), held("2:a/1:", None)), ("c/1".into(), held("kept", None))].into(),
            promised: 2,
        };
        let history = history(&acts).killed(left);
        let lost = "nothing that was promised is lost";
        // It has not been killed yet.
        assert_eq!(broken(&history, 4, 2, &[("a/1", "3:a/1:"), kept]), "");
        // What the next one shows may not be durable.
        assert_eq!(broken(&history, 5, 2, &[("a/1", "0:a/1:"), kept]), "");
        assert_eq!(broken(&history, 5, 2, &[("a/1", "2:a/1:"), kept]), "");
        assert_eq!(broken(&history, 5, 2, &[("a/1", "3:a/1:"), kept]), lost);
        assert_eq!(broken(&history, 5, 2, &[("a/1", "old"), kept]), lost);
        assert_eq!(broken(&history, 6, 6, &[("a/1", "2:a/1:"), kept]), "");
        assert_eq!(broken(&history, 6, 6, &[("a/1", "0:a/1:"), kept]), lost);
        assert_eq!(broken(&history, 7, 6, &[("a/1", "6:a/1:"), kept]), "");
        assert_eq!(history.after(5)["a/1"], held("2:a/1:", None));
        assert_eq!((history.numbers(4), history.numbers(5), history.numbers(7)), (3, 1, 2));
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

    #[test]
    fn the_short_workloads_with_deadlines_are_all_there_once() {
        let workloads = expiring(3);
        let put = || Act::PutFor("a/1".into(), SHORT, SOON);
        let expire = |ttl| Act::Expire("a/1".into(), ttl);
        let wanted = [
            vec![put()],
            vec![put(), Act::Pass(A_WHILE)],
            vec![put(), put_short("b/1")],
            vec![put(), Act::Flush, put_short("a/1")],
            vec![expire(Some(LATE)), Act::Flush, expire(None)],
            vec![put(), Act::CloseAndLoad(A_WHILE), put_short("a/1")],
            vec![Act::Slip(A_WHILE), put_short("a/1")],
        ];
        for wanted in wanted {
            assert_eq!(workloads.iter().filter(|workload| **workload == wanted).count(), 1, "{wanted:?}");
        }
        assert!(!workloads.contains(&vec![put_short("a/1"), Act::Flush]), "nothing of it is of time");
    }

    fn put_short(key: &str) -> Act {
        Act::Put(key.into(), SHORT)
    }
}
