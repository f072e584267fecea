//! The dirty-mark protocol under the model checker: the crate's own code, on schedules that shuttle chooses.
//!
//! Run with `RUSTFLAGS="--cfg shuttle" cargo test --release --test shuttle`. Built without the flag, there is nothing
//! in here. What the janitor does is seen through a backend that remembers what was applied and what was synced.
#![cfg(shuttle)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use larder::backend::{Backend, Change, Loader, Rejected};
use larder::{Durability, Error, Result, Store};
use shuttle::sync::Mutex;
use shuttle::thread;

/// Schedules for each test: enough that each of the bugs named in the tests below is found within the first few hundred.
const SCHEDULES: usize = 3000;

type Members = BTreeMap<String, (u64, Vec<u8>)>;

#[derive(Default)]
struct Disk {
    applied: Members,
    durable: Members,
    closed: bool,
    /// How many of the next batches are refused.
    refuse: usize,
    /// How many of the next syncs fail, and lose what was applied.
    lose: usize,
}

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Disk>>);

impl Shared {
    fn disk(&self) -> shuttle::sync::MutexGuard<'_, Disk> {
        self.0.lock().unwrap()
    }

    fn break_down(&self, refuse: usize, lose: usize) {
        let mut disk = self.disk();
        (disk.refuse, disk.lose) = (refuse, lose);
    }

    fn faults_left(&self) -> usize {
        let disk = self.disk();
        disk.refuse + disk.lose
    }

    fn durable(&self, key: &str) -> Option<Vec<u8>> {
        self.disk().durable.get(key).map(|(_, value)| value.clone())
    }
}

impl Backend for Shared {
    fn load(&mut self, loader: &Loader<'_>) -> Result<u64> {
        for (key, (version, value)) in &self.disk().durable {
            let (collection, member) = key.split_once('/').unwrap();
            loader.put(collection, member, *version, None, "raw", value)?;
        }
        Ok(0)
    }

    fn apply(&mut self, batch: &[Change<'_>]) -> Result<(), Rejected> {
        let mut disk = self.disk();
        if disk.refuse > 0 {
            disk.refuse -= 1;
            return Err(Rejected::all(Error::backend("apply", "refused")));
        }
        let mut seen = std::collections::HashSet::new();
        for change in batch {
            match *change {
                Change::Put { collection, member, version, value, .. } => {
                    assert!(seen.insert((collection, member)), "one change a member in a batch");
                    disk.applied.insert(format!("{collection}/{member}"), (version, value.to_vec()));
                }
                Change::Delete { collection, member, .. } => {
                    assert!(seen.insert((collection, member)), "one change a member in a batch");
                    disk.applied.remove(&format!("{collection}/{member}"));
                }
                Change::Clear { collection, version } => {
                    assert!(seen.is_empty(), "clears come first");
                    let start = format!("{collection}/");
                    disk.applied.retain(|key, value| !key.starts_with(&start) || value.0 >= version);
                }
                _ => unreachable!("nothing else is sent"),
            }
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<()> {
        let mut disk = self.disk();
        if disk.lose > 0 {
            disk.lose -= 1;
            disk.applied = disk.durable.clone();
            return Err(Error::backend("sync", "lost"));
        }
        disk.durable = disk.applied.clone();
        Ok(())
    }

    fn close(&mut self, _counter: u64) -> Result<()> {
        self.disk().closed = true;
        Ok(())
    }
}

/// Every batch is synced at once: the janitor has no reason to look at the time.
fn open(disk: &Shared) -> Store {
    open_with(disk, Durability::Interval(Duration::ZERO))
}

fn open_with(disk: &Shared, durability: Durability) -> Store {
    Store::options("model").durability(durability).backend(disk.clone()).open().unwrap()
}

/// Half of the schedules are random; half run one thread for long stretches, which is what a race with a whole close needs
/// (PCT: Burckhardt et al., "A Randomized Scheduler with Probabilistic Guarantees of Finding Bugs", 2010).
fn check(test: impl Fn() + Send + Sync + Clone + 'static) {
    shuttle::check_random(test.clone(), SCHEDULES);
    shuttle::check_pct(test, SCHEDULES, 3);
}

/// What is in RAM is what is durable.
fn agree(store: &Store, disk: &Shared, collection: &str) {
    let ram: BTreeMap<String, Vec<u8>> = store
        .get_all(collection)
        .unwrap()
        .into_iter()
        .map(|(member, value)| (format!("{collection}/{member}"), value.to_vec()))
        .collect();
    let start = format!("{collection}/");
    let durable: BTreeMap<String, Vec<u8>> = disk
        .disk()
        .durable
        .iter()
        .filter(|(key, _)| key.starts_with(&start))
        .map(|(key, (_, value))| (key.clone(), value.clone()))
        .collect();
    assert_eq!(ram, durable);
}

/// Fails when the dirty mark is cleared after the value was read, or set outside the lock under which the key is sent.
#[test]
fn the_newest_write_is_stored() {
    check(|| {
        let disk = Shared::default();
        let store = open(&disk);
        let writers: Vec<_> = (0..2)
            .map(|writer| {
                let store = store.clone();
                thread::spawn(move || {
                    for number in 0..3u8 {
                        store.put("c/k", [writer, number]).unwrap();
                    }
                })
            })
            .collect();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        store.flush().unwrap();
        assert_eq!(disk.durable("c/k").unwrap(), &store.get("c/k").unwrap().unwrap()[..]);
        store.close().unwrap();
    });
}

#[test]
fn a_flush_covers_every_write_that_returned_before_it() {
    check(|| {
        let disk = Shared::default();
        let store = open(&disk);
        let other = store.clone();
        let writer = thread::spawn(move || {
            for number in 0..3u8 {
                other.put("c/k", [number]).unwrap();
            }
        });
        store.put("c/mine", [1]).unwrap();
        store.put("c/mine", [2]).unwrap();
        store.flush().unwrap();
        assert_eq!(disk.durable("c/mine").unwrap(), [2]);
        writer.join().unwrap();
        store.flush().unwrap();
        assert_eq!(disk.durable("c/k").unwrap(), [2]);
        store.close().unwrap();
    });
}

/// Fails when a tombstone is removed, or a delete is stored, over a newer put.
#[test]
fn a_delete_does_not_take_a_newer_put_with_it() {
    check(|| {
        let disk = Shared::default();
        // Several batches come before one sync.
        let store = open_with(&disk, Durability::Buffered);
        store.put("c/k", [0]).unwrap();
        let other = store.clone();
        let deleter = thread::spawn(move || {
            other.delete("c/k").unwrap();
            other.put("c/k", [1]).unwrap();
            other.delete("c/k").unwrap();
        });
        store.put("c/k", [2]).unwrap();
        deleter.join().unwrap();
        store.flush().unwrap();
        agree(&store, &disk, "c");
        store.close().unwrap();
    });
}

/// Fails when a tombstone is removed with the sync of an older delete.
#[test]
fn a_tombstone_stays_until_its_own_delete_is_durable() {
    check(|| {
        let disk = Shared::default();
        let store = open_with(&disk, Durability::Buffered);
        let other = store.clone();
        let writer = thread::spawn(move || {
            for number in 0..2u8 {
                other.put("c/k", [number]).unwrap();
                other.delete("c/k").unwrap();
            }
        });
        store.flush().unwrap();
        store.flush().unwrap();
        writer.join().unwrap();
        store.flush().unwrap();
        assert_eq!(disk.durable("c/k"), None);
        store.close().unwrap();
    });
}

#[test]
fn a_put_that_races_a_clear_is_wholly_before_or_wholly_after() {
    check(|| {
        let disk = Shared::default();
        let store = open(&disk);
        store.put("c/a", [0]).unwrap();
        let (first, second) = (store.clone(), store.clone());
        let putter = thread::spawn(move || {
            first.put("c/a", [1]).unwrap();
            first.put("c/b", [2]).unwrap();
        });
        let clearer = thread::spawn(move || second.delete_all("c").unwrap());
        store.flush().unwrap();
        putter.join().unwrap();
        clearer.join().unwrap();
        store.flush().unwrap();
        agree(&store, &disk, "c");
        store.close().unwrap();
    });
}

#[test]
fn no_write_that_returned_ok_is_lost_to_a_close() {
    check(|| {
        let disk = Shared::default();
        let store = open(&disk);
        let other = store.clone();
        let writer = thread::spawn(move || {
            let mut last = None;
            for number in 0..4u8 {
                match other.put("c/k", [number]) {
                    Ok(_) => last = Some(vec![number]),
                    Err(Error::Closed { .. }) => break,
                    Err(error) => panic!("{error}"),
                }
            }
            last
        });
        store.close().unwrap();
        assert!(disk.disk().closed);
        assert_eq!(writer.join().unwrap(), disk.durable("c/k"));
        assert!(matches!(store.put("c/k", "late"), Err(Error::Closed { .. })));
    });
}

#[test]
fn the_last_handle_to_go_stores_everything() {
    check(|| {
        let disk = Shared::default();
        let store = open(&disk);
        let numbers = store.collection::<u32>("n").unwrap();
        drop(store);
        let other = numbers.clone();
        let writer = thread::spawn(move || {
            other.put("a", 1).unwrap();
        });
        numbers.put("b", 2).unwrap();
        drop(numbers);
        writer.join().unwrap();
        assert!(disk.disk().closed);
        assert_eq!((disk.durable("n/a").unwrap(), disk.durable("n/b").unwrap()), (b"1".to_vec(), b"2".to_vec()));
    });
}

#[test]
fn what_the_backend_refused_or_lost_is_offered_again() {
    check(|| {
        let disk = Shared::default();
        let store = open(&disk);
        disk.break_down(1, 1);
        let other = store.clone();
        let writer = thread::spawn(move || {
            other.put("c/k", [1]).unwrap();
            other.put("c/k", [2]).unwrap();
            other.delete("c/l").unwrap();
        });
        store.put("c/l", [3]).unwrap();
        let mut failures = 0;
        while store.flush().is_err() {
            failures += 1;
            assert!(failures <= 2, "each fault fails at most one flush");
        }
        assert_eq!(disk.faults_left(), 0);
        writer.join().unwrap();
        store.flush().unwrap();
        agree(&store, &disk, "c");
        assert!(store.health().is_well());
        assert_eq!((store.stats().unsaved_bytes, store.stats().dirty), (0, 0));
        store.close().unwrap();
    });
}

/// Fails when a write finds its collection as bytes and lands there after the members have moved.
#[test]
fn a_collection_opened_as_a_type_misses_no_write_by_key() {
    check(|| {
        let disk = Shared::default();
        let store = open(&disk);
        store.put("n/a", "1").unwrap();
        let other = store.clone();
        let writer = thread::spawn(move || {
            other.put("n/b", "2").unwrap();
            other.put("n/a", "3").unwrap();
            other.delete("n/b").unwrap();
            other.put("n/c", "4").unwrap();
        });
        let opener = {
            let store = store.clone();
            thread::spawn(move || store.collection::<u32>("n").unwrap().len())
        };
        let numbers = store.collection::<u32>("n").unwrap();
        writer.join().unwrap();
        opener.join().unwrap();
        let mut all: Vec<(String, u32)> =
            numbers.get_all().into_iter().map(|(member, value)| (member.into(), *value)).collect();
        all.sort();
        assert_eq!(all, [("a".to_owned(), 3), ("c".to_owned(), 4)]);
        store.flush().unwrap();
        agree(&store, &disk, "n");
        assert_eq!(store.stats().unsaved_bytes, 0);
        store.close().unwrap();
    });
}

#[test]
fn a_shard_that_splits_loses_nothing() {
    shuttle::check_random(
        || {
            let store = Store::in_memory();
            let name = |number: usize| format!("c/{number}");
            for number in 0..64 {
                store.put(name(number), [0]).unwrap();
            }
            let threads: Vec<_> = (0..2)
                .map(|part| {
                    let store = store.clone();
                    thread::spawn(move || {
                        for number in [64 + part, 3 + part, 66 + part] {
                            store.put(name(number), [1]).unwrap();
                            assert_eq!(store.get(name(number)).unwrap().unwrap(), [1]);
                        }
                    })
                })
                .collect();
            let walked: Vec<_> = store.iter("c").unwrap().map(|entry| entry.unwrap().0).collect();
            let mut distinct = walked.clone();
            distinct.sort();
            distinct.dedup();
            assert_eq!(distinct.len(), walked.len(), "nothing is met twice");
            assert!((0..64).all(|number| distinct.iter().any(|member| **member == number.to_string())));
            threads.into_iter().for_each(|thread| thread.join().unwrap());
            assert_eq!(store.len("c").unwrap(), 68);
        },
        SCHEDULES / 10,
    );
}

#[test]
fn writers_at_the_bound_are_let_in_when_room_is_made() {
    check(|| {
        let disk = Shared::default();
        let store = Store::options("model")
            .durability(Durability::Interval(Duration::ZERO))
            .max_unsaved(16)
            .backend(disk.clone())
            .open()
            .unwrap();
        let writers: Vec<_> = (0..2)
            .map(|writer| {
                let store = store.clone();
                thread::spawn(move || {
                    for number in 0..3u8 {
                        store.put(format!("c/{writer}{number}"), [number; 8]).unwrap();
                    }
                })
            })
            .collect();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        store.close().unwrap();
        assert_eq!(disk.disk().durable.len(), 6);
    });
}

#[test]
fn a_copy_shows_one_moment() {
    check(|| {
        let store = Store::in_memory();
        for key in ["a/1", "b/1", "gone/1", "gone/2"] {
            store.put(key, "0").unwrap();
        }
        let writer = {
            let store = store.clone();
            thread::spawn(move || {
                // Each step is visible to whoever sees a later one.
                store.put("a/1", "1").unwrap();
                store.put("b/1", "1").unwrap();
                store.put("c/1", "1").unwrap();
                store.delete("gone/1").unwrap();
                store.delete_all("gone").unwrap();
                store.put("a/1", "2").unwrap();
            })
        };
        let mut lines = Vec::new();
        store.export(&mut lines).unwrap();
        writer.join().unwrap();
        let lines = String::from_utf8(lines).unwrap();
        let has = |key: &str, value: &str| {
            lines.contains(&format!("{{\"key\":\"{key}\",\"codec\":\"raw\",\"value\":\"{value}\"}}"))
        };
        let steps = [
            !has("a/1", "0"),
            has("b/1", "1"),
            has("c/1", "1"),
            !has("gone/1", "0"),
            !has("gone/2", "0"),
            has("a/1", "2"),
        ];
        assert!(steps.is_sorted_by(|a, b| a >= b), "{steps:?} {lines}");
        let count = |part: &str| lines.matches(part).count();
        assert!(count("a/1") == 1 && count("b/1") == 1, "each once: {lines}");
    });
}

/// Reads a number, 0 if there is none.
fn number(tx: &mut larder::Transaction<'_>, key: &str) -> Result<u8> {
    Ok(tx.get(key)?.map_or(0, |value| value[0]))
}

/// Fails when what was read is not looked at again under the locks, or only members that are there.
#[test]
fn of_two_transactions_that_read_what_the_other_writes_one_is_tried_again() {
    for all in [false, true] {
        check(move || {
            let store = Store::in_memory();
            store.put("c/a", [1]).unwrap();
            store.put("c/b", [1]).unwrap();
            let leave = move |store: &Store, who: &str| {
                store.transaction(|tx| {
                    let there = if all {
                        tx.get_all("c")?.len()
                    } else {
                        usize::from(tx.contains("c/a")?) + usize::from(tx.contains("c/b")?)
                    };
                    if there > 1 { tx.delete(who) } else { Ok(()) }
                })
            };
            let other = store.clone();
            let leaver = thread::spawn(move || leave(&other, "c/a").unwrap());
            leave(&store, "c/b").unwrap();
            leaver.join().unwrap();
            assert_eq!(store.len("c").unwrap(), 1);
        });
    }
}

/// Fails when a transaction that only reads is not held to one moment, or an absent member is not.
#[test]
fn a_transaction_that_only_reads_sees_one_moment() {
    check(|| {
        let store = Store::in_memory();
        store.put("c/a", [1]).unwrap();
        store.put("d/b", [1]).unwrap();
        let other = store.clone();
        let writer = thread::spawn(move || {
            other
                .transaction(|tx| {
                    tx.delete("c/a")?;
                    tx.delete("d/b")
                })
                .unwrap();
            other
                .transaction(|tx| {
                    tx.put("c/a", [2])?;
                    tx.put("d/b", [2])
                })
                .unwrap();
        });
        for _ in 0..2 {
            let (a, b) = store.transaction(|tx| Ok((number(tx, "c/a")?, number(tx, "d/b")?))).unwrap();
            assert_eq!(a, b);
        }
        writer.join().unwrap();
    });
}

/// Fails when a member that comes in between is not seen, also in a shard that is born in between.
#[test]
fn what_a_transaction_counts_is_counted_once() {
    check(|| {
        let store = Store::in_memory();
        // One more makes it split.
        for number in 0..64 {
            store.put(format!("c/{number}"), [0]).unwrap();
        }
        let add = |store: &Store, name: &str| {
            store.transaction(|tx| {
                let next = tx.get_all("c")?.len() as u8;
                tx.put(format!("c/{name}"), [next])
            })
        };
        let other = store.clone();
        let adder = thread::spawn(move || add(&other, "x").unwrap());
        add(&store, "y").unwrap();
        adder.join().unwrap();
        let mut numbers = [store.get("c/x").unwrap().unwrap()[0], store.get("c/y").unwrap().unwrap()[0]];
        numbers.sort_unstable();
        assert_eq!(numbers, [64, 65]);
    });
}

/// Fails when a transaction's values reach the backend in parts, or after what is newer.
#[test]
fn a_transaction_is_stored_whole_beside_single_writes_and_failures() {
    check(|| {
        let disk = Shared::default();
        let store = open(&disk);
        disk.break_down(1, 1);
        let other = store.clone();
        let writer = thread::spawn(move || {
            for round in 1..3u8 {
                other
                    .transaction(|tx| {
                        let there = number(tx, "c/a")?;
                        tx.put("c/a", [there + 1])?;
                        tx.put("d/b", [round])
                    })
                    .unwrap();
            }
        });
        store.put("c/a", [100]).unwrap();
        // It may meet a failure, or not.
        _ = store.flush();
        store.delete("d/b").unwrap();
        store.delete_all("e").unwrap();
        store.put("e/a", [1]).unwrap();
        writer.join().unwrap();
        while store.flush().is_err() {}
        agree(&store, &disk, "c");
        agree(&store, &disk, "d");
        agree(&store, &disk, "e");
        assert_eq!((store.stats().dirty, store.stats().unsaved_bytes), (0, 0));
        store.close().unwrap();
    });
}

/// Fails when a value that was taken before a clear is stored after it: they can come into one batch, for a transaction has the
/// janitor look at what was sent since.
#[test]
fn a_clear_that_comes_with_a_transaction_is_stored_after_what_it_has_cleared() {
    check(|| {
        let disk = Shared::default();
        let store = open(&disk);
        store.put("c/a", [1]).unwrap();
        let other = store.clone();
        let writer = thread::spawn(move || {
            other.delete_all("c").unwrap();
            other.transaction(|tx| tx.put("d/x", [2])).unwrap();
            other.put("c/b", [3]).unwrap();
        });
        store.put("c/a", [4]).unwrap();
        store.flush().unwrap();
        writer.join().unwrap();
        store.flush().unwrap();
        agree(&store, &disk, "c");
        agree(&store, &disk, "d");
        assert_eq!((store.stats().dirty, store.stats().unsaved_bytes), (0, 0));
        store.close().unwrap();
    });
}

/// Fails when a version that has been replaced is compared with, or the closure's result is written over another's.
#[test]
fn no_update_is_lost() {
    check(|| {
        let store = Store::in_memory();
        let counters = store.collection::<u32>("c").unwrap();
        let count = |counters: &larder::Collection<u32>| {
            counters.update("k", |old| Some(old.map_or(1, |old| old + 1))).unwrap();
            counters.increment("k", 10).unwrap();
        };
        let other = counters.clone();
        let counter = thread::spawn(move || count(&other));
        count(&counters);
        counter.join().unwrap();
        assert_eq!(*counters.get("k").unwrap(), 22);
    });
}

/// Fails when what expires is removed by its name alone.
#[test]
fn a_put_that_races_a_deadline_stays() {
    check(|| {
        let clock = larder::ManualClock::new(std::time::UNIX_EPOCH + Duration::from_secs(1));
        let disk = Shared::default();
        let store = Store::options("model")
            .clock(&clock)
            .durability(Durability::Buffered)
            .backend(disk.clone())
            .open()
            .unwrap();
        store.put_with_ttl("c/k", [1], Duration::from_millis(5)).unwrap();
        let other = store.clone();
        let putter = thread::spawn(move || other.put_with_ttl("c/k", [2], Duration::from_secs(9)).unwrap());
        clock.advance(Duration::from_millis(5));
        let seen = store.get("c/k").unwrap();
        assert!(seen.is_none_or(|seen| seen == [2]), "it has expired");
        putter.join().unwrap();
        assert_eq!(store.get("c/k").unwrap().unwrap(), [2]);
        store.flush().unwrap();
        agree(&store, &disk, "c");
        store.close().unwrap();
    });
}

/// Fails when an index is added between the keys of a write and the write, or changed outside the lock of the member.
#[test]
fn an_index_is_in_step_with_the_members() {
    check(|| {
        let store = Store::in_memory();
        let numbers = store.collection::<u64>("n").unwrap();
        numbers.put("a", 1).unwrap();
        numbers.put("b", 2).unwrap();
        let other = numbers.clone();
        let writer = thread::spawn(move || {
            other.put("a", 3).unwrap();
            other.delete("b").unwrap();
            other.put("c", 2).unwrap();
        });
        let index = numbers.unique_index_by("number", |number| *number);
        if let Ok(index) = &index {
            let found = index.all().len();
            assert!((1..=2).contains(&found), "{found}");
        }
        writer.join().unwrap();
        let index = index.unwrap();
        let mut members: Vec<_> = numbers.get_all().into_iter().map(|(member, number)| (*number, member)).collect();
        members.sort();
        let found: Vec<_> = index.all().into_iter().map(|(member, number)| (*number, member)).collect();
        assert_eq!(found, members);
    });
}

/// Fails when a put and a change of a deadline take the index and the ring of those who watch in different orders.
#[test]
fn what_is_indexed_and_watched_is_never_waited_for_in_a_circle() {
    check(|| {
        let store = Store::in_memory();
        let numbers = store.collection::<u64>("n").unwrap();
        for number in 0..66 {
            // In more than one shard.
            numbers.put(number.to_string(), number).unwrap();
        }
        let index = numbers.index_by("number", |number| *number).unwrap();
        let mut watch = numbers.watch().unwrap();
        let other = numbers.clone();
        let toucher = thread::spawn(move || {
            for number in 0..3u64 {
                other.persist(number.to_string()).unwrap();
                other.expire(number.to_string(), Duration::from_secs(1000)).unwrap();
            }
        });
        for number in 3..6u64 {
            numbers.put(number.to_string(), 100 + number).unwrap();
            store.transaction(|tx| tx.collection(&numbers)?.put(number.to_string(), number)).unwrap();
        }
        toucher.join().unwrap();
        assert_eq!(index.all().len(), 66);
        let told = std::iter::from_fn(|| watch.next_within(Duration::ZERO)).count();
        assert_eq!(told, 9);
        store.close().unwrap();
    });
}

/// Fails when a member leaves the index after those who watch were told that it has gone.
#[test]
fn who_is_told_that_a_member_has_gone_does_not_find_it_in_an_index() {
    check(|| {
        let store = Store::in_memory();
        let numbers = store.collection::<u64>("n").unwrap();
        let index = numbers.index_by("number", |number| *number).unwrap();
        numbers.put("a", 1).unwrap();
        numbers.put("b", 2).unwrap();
        let mut watch = numbers.watch().unwrap();
        let watcher = thread::spawn(move || {
            for left in [1, 0] {
                while watch.next_within(Duration::ZERO).is_none() {
                    thread::yield_now();
                }
                assert!(index.all().len() <= left);
            }
        });
        numbers.delete("a").unwrap();
        numbers.delete_all().unwrap();
        watcher.join().unwrap();
    });
}

/// Fails when the janitor has gone before whoever waits can know that everything is durable.
#[test]
fn what_a_close_has_stored_is_told_to_whoever_awaits_it() {
    check(|| {
        let disk = Shared::default();
        let store = open_with(&disk, Durability::Immediate);
        let other = store.clone();
        let writer = thread::spawn(move || {
            let put = std::cell::Cell::new(false);
            let written = other.write_async(|| {
                other.put("c/k", [1])?;
                put.set(true);
                Ok(())
            });
            (put.get(), shuttle::future::block_on(written))
        });
        store.close().unwrap();
        let (was_put, written) = writer.join().unwrap();
        assert_eq!(was_put, written.is_ok(), "{written:?}");
        assert_eq!(was_put, disk.durable("c/k").is_some());
    });
}
