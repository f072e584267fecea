//! Two states of larder's code, doing the same in turns: see `run`.

use std::hint::black_box;
use std::time::Instant;

#[allow(dead_code, reason = "the other benches use the rest")]
#[path = "../figures/input.rs"]
mod input;

use input::{COLLECTIONS, Keys, Ops, ROW, Row, row_bytes};

/// Members in all: what fits the caches, where instructions decide, and what does not, where the memory does.
const SIZES: [usize; 2] = [1_000, 1_000_000];
/// A turn is at least so many operations.
const OPERATIONS: usize = 100_000;
/// Rounds for each size. Where the memory decides, which pages a store was given decides, too: the rounds are shared among
/// so many pairs of stores.
const ROUNDS: usize = 42;
const PAIRS: usize = 6;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// One side. The same text, compiled against each of the two.
macro_rules! side {
    ($name:ident) => {
        mod $name {
            use super::*;
            use ::$name::{Bincode, Collection, Store};

            pub(crate) struct Side {
                store: Store,
                value: Vec<u8>,
                collections: Vec<Collection<Row>>,
            }

            impl Side {
                /// Empty, by key or with its collections open as a type.
                pub(crate) fn new(typed: bool) -> Result<Side> {
                    let store = Store::in_memory();
                    let open = |number| store.collection_with::<Row, Bincode>(input::collection(number));
                    let count = if typed { COLLECTIONS } else { 0 };
                    let collections = (0..count).map(open).collect::<std::result::Result<_, _>>()?;
                    Ok(Side { store, value: row_bytes(), collections })
                }
            }

            /// Each returns how many operations failed: a value's first byte is 0.
            #[inline(never)]
            pub(crate) fn work(side: &Side, what: What, ops: &Ops) -> usize {
                let all = 0..ops.len();
                black_box(match what {
                    What::GetByKey => all
                        .map(|at| match side.store.get(ops.key(at)) {
                            Ok(Some(value)) => usize::from(value[0]),
                            _ => 1,
                        })
                        .sum(),
                    What::GetTyped => all
                        .map(|at| {
                            let found = side.collections[ops.collection(at)].get(ops.member(at));
                            found.map_or(1, |value| usize::from(value.zero))
                        })
                        .sum(),
                    What::PutByKey => all
                        .map(|at| match side.store.put(ops.key(at), &side.value[..]) {
                            Ok(old) => old.map_or(0, |old| usize::from(old[0])),
                            Err(_) => 1,
                        })
                        .sum(),
                    What::PutTyped => all
                        .map(|at| match side.collections[ops.collection(at)].put(ops.member(at), ROW) {
                            Ok(old) => old.map_or(0, |old| usize::from(old.zero)),
                            Err(_) => 1,
                        })
                        .sum(),
                })
            }
        }
    };
}

side!(before);
side!(after);

#[derive(Clone, Copy)]
enum What {
    GetByKey,
    GetTyped,
    PutByKey,
    PutTyped,
}

impl What {
    fn is_typed(self) -> bool {
        matches!(self, What::GetTyped | What::PutTyped)
    }
}

/// Nanoseconds per operation, of all threads together.
fn time(all: &[Ops], work: impl Fn(&Ops) -> usize + Sync) -> f64 {
    let began = Instant::now();
    let failed: usize = match all {
        [ops] => work(ops),
        _ => std::thread::scope(|scope| {
            let work = &work;
            let threads: Vec<_> = all.iter().map(|ops| scope.spawn(move || work(ops))).collect();
            threads.into_iter().map(|thread| thread.join().expect("an operation panicked")).sum()
        }),
    };
    let took = began.elapsed().as_nanos() as f64;
    assert!(failed == 0, "a get found nothing, or a put failed");
    took / all.iter().map(Ops::len).sum::<usize>() as f64
}

/// Times of the two, round by round.
#[derive(Default)]
struct Rounds(Vec<(f64, f64)>);

impl Rounds {
    fn add(&mut self, mut before: impl FnMut() -> Result<f64>, mut after: impl FnMut() -> Result<f64>) -> Result<()> {
        if self.0.len() % 2 == 0 {
            let first = before()?;
            self.0.push((first, after()?));
        } else {
            let first = after()?;
            self.0.push((before()?, first));
        }
        Ok(())
    }

    fn print(&self, name: &str) {
        let sorted = |figure: fn(&(f64, f64)) -> f64| {
            let mut all: Vec<f64> = self.0.iter().map(figure).collect();
            all.sort_by(f64::total_cmp);
            all
        };
        let middle = |all: &[f64]| all[all.len() / 2];
        let (before, after, ratios) = (sorted(|turn| turn.0), sorted(|turn| turn.1), sorted(|turn| turn.1 / turn.0));
        let (low, high) = (ratios[ratios.len() / 4], ratios[ratios.len() * 3 / 4]);
        let (before, after, ratio) = (middle(&before), middle(&after), middle(&ratios));
        println!("| {name} | {before:.1} | {after:.1} | {ratio:.2} ({low:.2}–{high:.2}) |");
    }
}

fn main() -> Result<()> {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    println!(
        "Nanoseconds per operation; the ratio is the median of {ROUNDS} rounds' own, with the middle half of them.\n"
    );
    println!("| | before | after | ratio |\n| --- | --- | --- | --- |");
    for members in SIZES {
        for (what, verb) in [
            (What::GetByKey, "get by key"),
            (What::GetTyped, "get typed"),
            (What::PutByKey, "put by key"),
            (What::PutTyped, "put typed"),
        ] {
            for (keys, threads) in
                [(Keys::Hot, 1), (Keys::Uniform, 1), (Keys::Uniform, 2), (Keys::Each, 1), (Keys::Each, 2)]
            {
                let is_new = matches!(keys, Keys::Each);
                let name = match keys {
                    Keys::Each => format!("{verb}, new, {members} members, {threads} threads"),
                    keys => format!("{verb}, {keys}, {members} members, {threads} threads"),
                };
                let is_put = matches!(what, What::PutByKey | What::PutTyped);
                if (is_new && !is_put) || !(wanted.is_empty() || wanted.iter().any(|part| name.contains(part))) {
                    continue;
                }
                row(what, keys, members, threads)?.print(&name);
            }
        }
    }
    Ok(())
}

fn row(what: What, keys: Keys, members: usize, threads: usize) -> Result<Rounds> {
    let mut rounds = Rounds::default();
    let fill = input::operations(Keys::Each, members, members, 1);
    let put = if what.is_typed() { What::PutTyped } else { What::PutByKey };
    if matches!(keys, Keys::Each) {
        let ops = input::operations(keys, members, members, threads);
        // Some empty stores, one after the other, for a turn of some length.
        let stores = (OPERATIONS / members).max(1);
        let average = |turn: &mut dyn FnMut() -> Result<f64>| -> Result<f64> {
            let sum = (0..stores).map(|_| turn()).sum::<Result<f64>>()?;
            Ok(sum / stores as f64)
        };
        let count = if stores > 1 { ROUNDS } else { ROUNDS / PAIRS };
        for _ in 0..count {
            rounds.add(
                || {
                    average(&mut || {
                        let side = before::Side::new(what.is_typed())?;
                        Ok(time(&ops, |ops| before::work(&side, what, ops)))
                    })
                },
                || {
                    average(&mut || {
                        let side = after::Side::new(what.is_typed())?;
                        Ok(time(&ops, |ops| after::work(&side, what, ops)))
                    })
                },
            )?;
        }
        return Ok(rounds);
    }
    let ops = input::operations(keys, members, OPERATIONS, threads);
    for pair in 0..PAIRS {
        let (before, after) = (before::Side::new(what.is_typed())?, after::Side::new(what.is_typed())?);
        // The one that is filled first gets the better pages.
        if pair % 2 == 0 {
            before::work(&before, put, &fill[0]);
            after::work(&after, put, &fill[0]);
        } else {
            after::work(&after, put, &fill[0]);
            before::work(&before, put, &fill[0]);
        }
        for _ in 0..ROUNDS / PAIRS {
            rounds.add(
                || Ok(time(&ops, |ops| before::work(&before, what, ops))),
                || Ok(time(&ops, |ops| after::work(&after, what, ops))),
            )?;
        }
    }
    Ok(rounds)
}
