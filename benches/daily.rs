//! The daily look at speed: one or two of each operation, in a minute and a half.
//!
//! ```text
//! cargo bench --bench daily                 # everything
//! cargo bench --bench daily -- get          # what has "get" in its name
//! cargo bench --bench daily -- --test       # that it runs
//! ```
//!
//! It compares with its own last run, on the same machine. What larder is compared with by others is in `figures`, and what
//! does not depend on the machine in `counts`.

#![allow(missing_docs)]

use std::cell::Cell;
use std::path::PathBuf;
use std::time::Duration;

use criterion::{BatchSize, Bencher, Criterion, criterion_group, criterion_main};
use larder::{Collection, Error, Layout, Result, Store};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

const MEMBERS: usize = 10_000;

/// Members of a collection that is read or cleared as a whole, and of a flush.
const SOME: usize = 1_000;

/// A value of 100 bytes.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct Row([[u8; 10]; 10]);

const ROW: Row = Row([*b"helloworld"; 10]);

fn bytes() -> &'static [u8] {
    ROW.0.as_flattened()
}

fn key(number: usize) -> String {
    format!("c042/member-{number:013}")
}

/// Keys in an order that jumps about: 7,919 and the number of members have no divisor in common.
fn keys(from: usize) -> Vec<String> {
    (0..MEMBERS).map(|number| key(from + number * 7_919 % MEMBERS)).collect()
}

/// The part of a key that a handle wants.
fn member(key: &str) -> &str {
    &key["c042/".len()..]
}

/// One of them after the other, for ever.
struct InTurn {
    keys: Vec<String>,
    at: Cell<usize>,
}

impl InTurn {
    fn new(keys: Vec<String>) -> InTurn {
        InTurn { keys, at: Cell::new(0) }
    }

    fn next(&self) -> &str {
        let at = self.at.get();
        self.at.set(if at + 1 == self.keys.len() { 0 } else { at + 1 });
        &self.keys[at]
    }
}

fn filled(store: &Store, members: usize) -> Result<()> {
    for number in 0..members {
        store.put(key(number), bytes())?;
    }
    Ok(())
}

fn typed(store: &Store) -> Result<Collection<Row>> {
    store.collection("c042")
}

/// Beside the build, which is on a disk: what is measured is not how fast a file system in RAM is.
fn directory() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary directory");
    let path = dir.path().join("store");
    (dir, path)
}

/// Runs `operation` again and again; what fails ends the bench.
fn run<T>(bencher: &mut Bencher<'_>, mut operation: impl FnMut() -> Result<T>) {
    bencher.iter(|| operation().expect("the operation succeeds"));
}

fn gets(c: &mut Criterion) {
    let store = Store::in_memory();
    filled(&store, MEMBERS).expect("puts in memory succeed");
    let (hits, misses) = (InTurn::new(keys(0)), InTurn::new(keys(MEMBERS)));
    c.bench_function("get by key, hit", |b| run(b, || store.get(hits.next())));
    c.bench_function("get by key, miss", |b| run(b, || store.get(misses.next())));
    let rows = typed_store().1;
    c.bench_function("get typed, hit", |b| b.iter(|| rows.get(member(hits.next()))));
    c.bench_function("get typed, miss", |b| b.iter(|| rows.get(member(misses.next()))));
}

/// A store in memory that holds `Row`s, and its handle.
fn typed_store() -> (Store, Collection<Row>) {
    let store = Store::in_memory();
    let rows = typed(&store).expect("a new collection opens");
    for number in 0..MEMBERS {
        rows.put(member(&key(number)), ROW).expect("puts in memory succeed");
    }
    (store, rows)
}

fn puts(c: &mut Criterion) {
    let turn = InTurn::new(keys(0));
    let all = keys(0);
    let new = |store: Store| all.iter().try_for_each(|key| store.put(key, bytes()).map(drop));
    let new_typed = |rows: Collection<Row>| all.iter().try_for_each(|key| rows.put(member(key), ROW).map(drop));

    let store = Store::in_memory();
    filled(&store, MEMBERS).expect("puts in memory succeed");
    c.bench_function("put by key in memory, overwrite", |b| run(b, || store.put(turn.next(), bytes())));
    c.bench_function("put by key in memory, one member", |b| run(b, || store.put(&turn.keys[0], bytes())));
    c.bench_function("put by key in memory, 10,000 new", |b| {
        b.iter_batched(Store::in_memory, |store| new(store).expect("puts succeed"), BatchSize::PerIteration);
    });
    let (_store, rows) = typed_store();
    c.bench_function("put typed in memory, overwrite", |b| run(b, || rows.put(member(turn.next()), ROW)));
    c.bench_function("put typed in memory, one member", |b| run(b, || rows.put(member(&turn.keys[0]), ROW)));
    c.bench_function("put typed in memory, 10,000 new", |b| {
        let open = || typed(&Store::in_memory()).expect("a new collection opens");
        b.iter_batched(open, |rows| new_typed(rows).expect("puts succeed"), BatchSize::PerIteration);
    });

    // The janitor stores beside the writer.
    let (_dir, path) = directory();
    let store = Store::options(path).layout(Layout::Packed).open().expect("a new store opens");
    filled(&store, MEMBERS).expect("puts succeed");
    c.bench_function("put by key in a directory, overwrite", |b| run(b, || store.put(turn.next(), bytes())));
    c.bench_function("put by key in a directory, one member", |b| run(b, || store.put(&turn.keys[0], bytes())));
    store.close().expect("the store closes");
}

fn more(c: &mut Criterion) {
    let store = Store::in_memory();
    filled(&store, SOME).expect("puts in memory succeed");
    c.bench_function("get_all of 1,000", |b| run(b, || store.get_all("c042")));
    c.bench_function("delete_all of 1,000", |b| {
        let fill = || filled(&store, SOME).expect("puts in memory succeed");
        b.iter_batched(fill, |()| store.delete_all("c042").expect("it succeeds"), BatchSize::PerIteration);
    });

    let (store, rows) = typed_store();
    let turn = InTurn::new(keys(0));
    c.bench_function("update", |b| run(b, || rows.update(member(turn.next()), |row| row.copied())));
    let counters = store.collection::<u64>("counter").expect("a new collection opens");
    c.bench_function("increment", |b| run(b, || counters.increment(member(turn.next()), 1)));
    c.bench_function("transaction of two members", |b| {
        run(b, || {
            let (one, other) = (member(turn.next()), member(turn.next()));
            store.transaction(|tx| {
                let mut rows = tx.collection(&rows)?;
                let missing = || Error::aborted("a member is missing");
                let (first, second) = (rows.get(one)?.ok_or_else(missing)?, rows.get(other)?.ok_or_else(missing)?);
                rows.put(one, *second)?;
                rows.put(other, *first)
            })
        });
    });
    c.bench_function("put with a deadline", |b| {
        run(b, || rows.put_with_ttl(member(turn.next()), ROW, Duration::from_secs(3600)));
    });

    let numbers = store.collection::<u64>("number").expect("a new collection opens");
    let tens = numbers.index_by("tens", |number| number / 10).expect("there is no such index yet");
    for (number, key) in turn.keys.iter().enumerate() {
        numbers.put(member(key), number as u64).expect("puts in memory succeed");
    }
    let ten = Cell::new(0);
    c.bench_function("index lookup of ten", |b| {
        b.iter(|| {
            ten.set((ten.get() + 1) % (MEMBERS as u64 / 10));
            tens.get(&ten.get())
        });
    });
}

fn disk(c: &mut Criterion) {
    for (layout, name) in [(Layout::Files, "files"), (Layout::Packed, "packed")] {
        let (_dir, path) = directory();
        let store = Store::options(&path).layout(layout).open().expect("a new store opens");
        filled(&store, SOME).expect("puts succeed");
        for many in [1, SOME] {
            c.bench_function(&format!("{name}: put and flush of {many}"), |b| {
                run(b, || {
                    filled(&store, many)?;
                    store.flush()
                });
            });
        }
        filled(&store, MEMBERS).expect("puts succeed");
        store.close().expect("the store closes");
        drop(store);
        c.bench_function(&format!("{name}: open and close of 10,000"), |b| {
            run(b, || {
                let store = Store::open(&path)?;
                assert_eq!(store.len("c042")?, MEMBERS);
                store.close()
            });
        });
    }
}

/// Shorter than criterion's own, so that all of it is run before a commit.
fn config(samples: usize, time: Duration) -> Criterion {
    Criterion::default().sample_size(samples).warm_up_time(Duration::from_millis(200)).measurement_time(time)
}

criterion_group! {
    name = quick;
    config = config(50, Duration::from_secs(1));
    targets = gets, puts, more
}
criterion_group! {
    name = slow;
    // A sync takes as long as it takes.
    config = config(10, Duration::from_secs(2));
    targets = disk
}
criterion_main!(quick, slow);
