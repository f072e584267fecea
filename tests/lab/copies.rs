//! Writers whose members belong together, so that a copy of their store shows whether it is of one moment.
//!
//! Each writer goes round its own members, always in the same order, and puts the round's number into each. So at any moment
//! the first of them, up to some place, are of one round, and the rest of the round before. At the end of a round it puts a
//! token of this one and deletes that of the last.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use larder::{Result, Store};

use super::{Chance, contents, names, say};

pub(crate) const WRITERS: usize = 2;
const MEMBERS: usize = 40;

/// Neighbours are in different collections, and so not copied one after the other.
fn key(writer: usize, member: usize) -> String {
    format!("part-{writer}-{}/{member}", member % 4)
}

/// It says of which round it is, and has a length and bytes that those of no other have.
fn value(writer: usize, member: usize, round: u64) -> Vec<u8> {
    let mut chance = Chance::new(round * 1000 + (writer * MEMBERS + member) as u64);
    let mut value = format!("{round} ").into_bytes();
    let length = value.len() + chance.below(600);
    while value.len() < length {
        value.extend_from_slice(&chance.number().to_le_bytes());
    }
    value
}

/// Of which round it is, if it is whole.
fn round_of(writer: usize, member: usize, found: &[u8]) -> Option<u64> {
    let round = std::str::from_utf8(found.split(|&byte| byte == b' ').next()?).ok()?.parse().ok()?;
    (found == value(writer, member, round)).then_some(round)
}

fn write_round(store: &Store, writer: usize, round: u64) -> Result<()> {
    for member in 0..MEMBERS {
        store.put(key(writer, member), value(writer, member, round))?;
    }
    store.put(format!("token-{writer}/{round}"), "")?;
    store.delete(format!("token-{writer}/{}", round - 1)).map(drop)
}

/// Writes from this round on, and copies the store again and again, until something fails. Says which rounds are safe; of
/// each copy, which rounds were over before it, and once it is there, which had begun.
pub(crate) fn write_and_copy(store: &Store, copies: &Path, first: u64) -> Result<()> {
    // After a crash the members are of any rounds since the last that was safe.
    for writer in 0..WRITERS {
        store.delete_all(format!("token-{writer}"))?;
        write_round(store, writer, first)?;
        store.flush()?;
        say(&format!("safe {writer} {first}"));
    }
    let begun: [AtomicU64; WRITERS] = std::array::from_fn(|_| AtomicU64::new(first));
    let done: [AtomicU64; WRITERS] = std::array::from_fn(|_| AtomicU64::new(first));
    let shown = |rounds: &[AtomicU64; WRITERS]| {
        rounds.iter().map(|round| format!(" {}", round.load(Ordering::SeqCst))).collect::<String>()
    };
    std::thread::scope(|scope| {
        let writers: [_; WRITERS] = std::array::from_fn(|writer| {
            let (begun, done) = (&begun[writer], &done[writer]);
            scope.spawn(move || -> Result<()> {
                for round in first + 1.. {
                    begun.store(round, Ordering::SeqCst);
                    write_round(store, writer, round)?;
                    done.store(round, Ordering::SeqCst);
                    store.flush()?;
                    say(&format!("safe {writer} {round}"));
                }
                Ok(())
            })
        });
        for copy in 0.. {
            say(&format!("copying {copy}{}", shown(&done)));
            if let Err(error) = store.backup(copies.join(copy.to_string())) {
                // The writers have the same disk.
                say(&format!("failed to copy: {error}"));
                break;
            }
            say(&format!("copied {copy}{}", shown(&begun)));
        }
        writers.into_iter().try_for_each(|writer| writer.join().unwrap())
    })
}

/// What a process that wrote and copied has said.
#[derive(Default)]
pub(crate) struct Said {
    /// By writer, the round that no crash may take.
    pub(crate) safe: [u64; WRITERS],
    /// The highest round that was spoken of.
    pub(crate) highest: u64,
    /// By copy, the rounds that must be in it, and once it is there, the last that may be.
    copies: BTreeMap<u64, ([u64; WRITERS], Option<[u64; WRITERS]>)>,
}

impl Said {
    /// Of the next process.
    pub(crate) fn next(self) -> Said {
        Said { copies: BTreeMap::new(), ..self }
    }

    pub(crate) fn hear(&mut self, line: &str) {
        let mut words = line.split(' ');
        let word = words.next().unwrap();
        let numbers: Vec<u64> = words.map_while(|word| word.parse().ok()).collect();
        match (word, &numbers[..]) {
            ("safe", &[writer, round]) => self.safe[writer as usize] = round,
            ("copying", &[copy, ref rounds @ ..]) => {
                _ = self.copies.insert(copy, (rounds.try_into().unwrap(), None));
            }
            ("copied", &[copy, ref rounds @ ..]) => {
                self.copies.get_mut(&copy).unwrap().1 = Some(rounds.try_into().unwrap());
            }
            _ => panic!("{line}"),
        }
        self.highest = numbers.into_iter().chain([self.highest]).max().unwrap();
    }

    /// How many copies were begun, and how many of these were told to be there.
    pub(crate) fn copies(&self) -> (usize, usize) {
        (self.copies.len(), self.copies.values().filter(|(_, most)| most.is_some()).count())
    }

    /// What must not be, of these copies and the rounds in them.
    pub(crate) fn wrong_in(&self, found: &BTreeMap<u64, [u64; WRITERS]>) -> Vec<String> {
        let mut wrong = Vec::new();
        for (copy, (least, most)) in &self.copies {
            let most = most.unwrap_or([u64::MAX; WRITERS]);
            match found.get(copy) {
                Some(rounds) if (0..WRITERS).all(|of| (least[of]..=most[of]).contains(&rounds[of])) => {}
                Some(rounds) => wrong.push(format!("copy {copy} is of {rounds:?}, and not of {least:?} to {most:?}")),
                None if most == [u64::MAX; WRITERS] => {}
                None => wrong.push(format!("copy {copy} was made, and is not there")),
            }
        }
        wrong.extend(found.keys().filter(|copy| !self.copies.contains_key(copy)).map(|copy| format!("a copy {copy}")));
        wrong
    }

    /// What must not be in the store itself.
    pub(crate) fn wrong_in_the_store(&self, held: &BTreeMap<String, Vec<u8>>) -> Vec<String> {
        let mut wrong = Vec::new();
        for (writer, &safe) in self.safe.iter().enumerate().filter(|(_, safe)| **safe > 0) {
            for member in 0..MEMBERS {
                let key = key(writer, member);
                let round = held.get(&key).and_then(|value| round_of(writer, member, value));
                if round.is_none_or(|round| round < safe) {
                    wrong.push(format!("{key} is of round {round:?}, and round {safe} was safe"));
                }
            }
            let start = format!("token-{writer}/");
            let tokens = held.keys().filter_map(|key| key.strip_prefix(&start)?.parse::<u64>().ok());
            wrong.extend(tokens.filter(|round| *round < safe).map(|round| format!("token {round} is back")));
        }
        wrong
    }
}

/// The last round that each writer had begun, if this is what there was at one moment.
pub(crate) fn moment(found: &BTreeMap<String, Vec<u8>>) -> Result<[u64; WRITERS], String> {
    let mut rounds = [0; WRITERS];
    let mut known = 0;
    for (writer, begun) in rounds.iter_mut().enumerate() {
        let mut of = Vec::new();
        for member in 0..MEMBERS {
            let key = key(writer, member);
            let value = found.get(&key).ok_or_else(|| format!("{key} is missing"))?;
            of.push(round_of(writer, member, value).ok_or_else(|| format!("{key} is not whole"))?);
        }
        let (first, last) = (of[0], of[MEMBERS - 1]);
        if !of.is_sorted_by(|a, b| a >= b) || first - last > 1 {
            return Err(format!("writer {writer}: the rounds are {of:?}"));
        }
        let start = format!("token-{writer}/");
        let tokens: Vec<u64> =
            found.keys().filter_map(|key| key.strip_prefix(&start)).map(|round| round.parse().unwrap()).collect();
        let may_be =
            if first > last { vec![vec![last]] } else { vec![vec![first - 1], vec![first - 1, first], vec![first]] };
        let mut sorted = tokens.clone();
        sorted.sort_unstable();
        if !may_be.contains(&sorted) {
            return Err(format!("writer {writer}: rounds {first} to {last}, and tokens {tokens:?}"));
        }
        known += MEMBERS + tokens.len();
        *begun = first;
    }
    if known == found.len() { Ok(rounds) } else { Err(format!("members that nobody wrote: {:?}", found.keys())) }
}

/// What stands where the copies go: those that are whole, with the rounds that are in them; how many were left unfinished; and
/// what must not be.
pub(crate) fn look(copies: &Path) -> (BTreeMap<u64, [u64; WRITERS]>, usize, Vec<String>) {
    let (mut whole, mut unfinished, mut wrong) = (BTreeMap::new(), 0, Vec::new());
    for name in names(copies) {
        let Ok(copy) = name.parse() else {
            if name.starts_with(".larder.partial-") {
                unfinished += 1;
            } else {
                wrong.push(format!("something else, {name}"));
            }
            continue;
        };
        match look_at(&copies.join(&name)) {
            Ok(rounds) => _ = whole.insert(copy, rounds),
            Err(error) => wrong.push(format!("copy {name}: {error}")),
        }
    }
    (whole, unfinished, wrong)
}

/// The rounds that are in a copy, if nothing is wrong with it.
fn look_at(copy: &Path) -> Result<[u64; WRITERS], String> {
    let told = |error: larder::Error| error.to_string();
    let report = larder::check(copy).map_err(told)?;
    // The worst comes first. After a power cut a file may have its temporary name, too, which is no more than noted.
    if let Some(problem) = report.problems.first().filter(|_| !report.is_sound()) {
        return Err(problem.to_string());
    }
    let store = Store::open(copy).map_err(told)?;
    let report = store.load_report();
    if !report.quarantined.is_empty() || report.replayed > 0 {
        return Err(format!("{report:?}"));
    }
    let rounds = moment(&contents(&store))?;
    store.close().map_err(told)?;
    Ok(rounds)
}
