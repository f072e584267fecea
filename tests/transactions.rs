//! Transactions: serializable, all or nothing, in RAM and on the disk.

mod lab;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use lab::Chance;
use larder::{Durability, Error, Layout, ManualClock, Store, Transaction};

fn number(value: Option<larder::Value>) -> u64 {
    value.map_or(0, |value| value.to_str().unwrap().parse().unwrap())
}

#[test]
fn it_reads_what_it_has_written_and_others_see_all_of_it_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let store = Store::open(&path).unwrap();
    let typed = store.collection::<u32>("typed").unwrap();
    store.put("raw/old", "1").unwrap();
    typed.put("old", 1).unwrap();
    let returned = store.transaction(|tx| {
        assert_eq!(tx.get("raw/old")?.unwrap(), "1");
        tx.put("raw/new", "2")?;
        tx.delete("raw/old")?;
        assert_eq!((tx.get("raw/new")?.unwrap(), tx.get("raw/old")?), ("2".into(), None));
        assert_eq!(tx.get_all("raw")?, [("new".into(), "2".into())]);
        let mut numbers = tx.collection(&typed)?;
        assert_eq!(*numbers.get("old")?.unwrap(), 1);
        numbers.put("new", 2)?;
        numbers.delete("old")?;
        assert!(numbers.contains("new")? && !numbers.contains("old")?);
        assert_eq!(numbers.get_all()?.len(), 1);
        assert_eq!(tx.get("typed/new")?.unwrap(), "2");
        tx.put("typed/by key", "3")?;
        assert_eq!(tx.collection(&typed)?.get("by key")?.as_deref(), Some(&3));
        // Nobody else sees any of it.
        assert_eq!((store.len("raw")?, typed.len(), store.contains("raw/new")?), (1, 1, false));
        Ok("done")
    });
    assert_eq!(returned.unwrap(), "done");
    let expected = [("raw/new", "2"), ("typed/by key", "3"), ("typed/new", "2")];
    let found = |store: &Store| {
        let found = lab::contents(store).into_iter();
        found.map(|(key, value)| (key, String::from_utf8(value).unwrap())).collect::<Vec<_>>()
    };
    let expected = expected.map(|(key, value)| (key.to_owned(), value.to_owned()));
    assert_eq!(found(&store), expected);
    store.close().unwrap();
    assert_eq!(found(&Store::open(&path).unwrap()), expected);
}

#[test]
fn an_error_or_a_panic_leaves_nothing() {
    let store = Store::in_memory();
    store.put("c/a", "1").unwrap();
    let aborted = store.transaction(|tx| {
        tx.put("c/a", "2")?;
        tx.put("d/b", "2")?;
        Err::<(), _>(Error::aborted("on purpose"))
    });
    let aborted = aborted.unwrap_err();
    assert!(matches!(aborted, Error::Aborted { .. }) && aborted.to_string().contains("on purpose"), "{aborted}");
    let panics = || {
        store.transaction(|tx| -> larder::Result<()> {
            tx.put("c/a", "3")?;
            panic!("on purpose")
        })
    };
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics)).is_err());
    for key in ["", "c", "/a", "c/", "../a"] {
        let wrong = store.transaction(|tx| {
            tx.put("c/a", "4")?;
            tx.get(key).map(drop)
        });
        assert!(matches!(wrong, Err(Error::InvalidKey { .. })), "{key}");
    }
    assert_eq!(lab::contents(&store), BTreeMap::from([("c/a".to_owned(), b"1".to_vec())]));
    store.transaction(|tx| tx.delete("c/a")).unwrap();
    assert_eq!(store.len("c").unwrap(), 0);
}

#[test]
fn a_value_that_does_not_encode_or_decode_stops_all_of_it() {
    struct Odd(u32);
    impl serde::Serialize for Odd {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            if self.0 % 2 == 1 { Err(serde::ser::Error::custom("odd")) } else { serializer.serialize_u32(self.0) }
        }
    }
    impl<'de> serde::Deserialize<'de> for Odd {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            serde::Deserialize::deserialize(deserializer).map(Odd)
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store")).unwrap();
    let odds = store.collection::<Odd>("odd").unwrap();
    let failed = store.transaction(|tx| {
        tx.put("c/a", "1")?;
        tx.collection(&odds)?.put("a", Odd(1))
    });
    assert!(matches!(failed, Err(Error::Codec { action: "encode", .. })), "{failed:?}");
    let failed = store.transaction(|tx| {
        tx.put("c/a", "1")?;
        tx.put("odd/a", "no number")
    });
    assert!(matches!(failed, Err(Error::Codec { action: "decode", .. })), "{failed:?}");
    assert_eq!(store.stats().members, 0);
    let other = Store::in_memory();
    let foreign = other.transaction(|tx| tx.collection(&odds).map(drop));
    assert!(matches!(foreign, Err(Error::InvalidKey { .. })), "{foreign:?}");
}

#[test]
fn money_is_neither_made_nor_lost() {
    const ACCOUNTS: usize = 8;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let store = Store::options(&path).layout(Layout::Packed).open().unwrap();
    let accounts = store.collection::<i64>("account").unwrap();
    for account in 0..ACCOUNTS {
        accounts.put(account.to_string(), 100).unwrap();
    }
    let left = AtomicUsize::new(3);
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (store, accounts, left) = (&store, &accounts, &left);
            scope.spawn(move || {
                let mut chance = Chance::new(thread);
                for _ in 0..3000 {
                    let (from, to) = (chance.below(ACCOUNTS).to_string(), chance.below(ACCOUNTS).to_string());
                    let amount = chance.below(50) as i64;
                    store
                        .transaction(|tx| {
                            let mut accounts = tx.collection(accounts)?;
                            let there = *accounts.get(&from)?.unwrap();
                            if there < amount {
                                return Ok(());
                            }
                            accounts.put(&from, there - amount)?;
                            let there = *accounts.get(&to)?.unwrap();
                            accounts.put(&to, there + amount)
                        })
                        .unwrap();
                }
                left.fetch_sub(1, Ordering::Relaxed);
            });
        }
        // Whoever looks sees all of the money, by key, in one type or the other.
        while left.load(Ordering::Relaxed) > 0 {
            let all = store.transaction(|tx| tx.collection(&accounts)?.get_all()).unwrap();
            assert_eq!(all.iter().map(|(_, balance)| **balance).sum::<i64>(), 100 * ACCOUNTS as i64);
            let sum = |tx: &mut Transaction<'_>| {
                (0..ACCOUNTS)
                    .map(|account| Ok(number(tx.get(format!("account/{account}"))?)))
                    .sum::<larder::Result<u64>>()
            };
            assert_eq!(store.transaction(sum).unwrap(), 100 * ACCOUNTS as u64);
        }
    });
    assert!(accounts.get_all().iter().all(|(_, balance)| **balance >= 0));
    store.close().unwrap();
    let store = Store::open(&path).unwrap();
    assert_eq!(lab::contents(&store).values().map(|value| number(Some(value.as_slice().into()))).sum::<u64>(), 800);
}

/// Two doctors on call, either of whom may go home if the other stays: what each reads, the other writes.
#[test]
fn two_that_read_what_the_other_writes_do_not_both_go_through() {
    let store = Store::in_memory();
    for round in 0..2000 {
        store.put("on call/ada", "1").unwrap();
        store.put("on call/bob", "1").unwrap();
        let barrier = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            for who in ["ada", "bob"] {
                let (store, barrier) = (&store, &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    let goes = |tx: &mut Transaction<'_>| {
                        let on_call = if round % 2 == 0 {
                            usize::from(tx.contains("on call/ada")?) + usize::from(tx.contains("on call/bob")?)
                        } else {
                            tx.get_all("on call")?.len()
                        };
                        if on_call > 1 { tx.delete(format!("on call/{who}")) } else { Ok(()) }
                    };
                    store.transaction(goes).unwrap();
                });
            }
        });
        assert_eq!(store.len("on call").unwrap(), 1, "round {round}");
    }
}

/// Each numbers what it adds by how many there are: no number comes twice, and none is left out.
#[test]
fn what_comes_in_between_is_seen_by_whoever_has_read_all() {
    let store = Store::in_memory();
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let store = &store;
            scope.spawn(move || {
                for entry in 0..200 {
                    let add = |tx: &mut Transaction<'_>| {
                        let next = tx.get_all("log")?.len();
                        tx.put(format!("log/{thread}-{entry}"), next.to_string())
                    };
                    store.transaction(add).unwrap();
                }
            });
        }
    });
    let numbers: BTreeSet<u64> =
        store.get_all("log").unwrap().into_iter().map(|(_, value)| number(Some(value))).collect();
    assert_eq!(numbers, (0..600).collect());
}

/// What one transaction has read and written, for the history.
#[derive(Debug, Clone, Default)]
struct Recorded {
    reads: BTreeMap<String, u64>,
    writes: BTreeMap<String, u64>,
}

/// Random transactions whose every write has a value of its own. From what each read it follows who was before whom:
/// whoever wrote a value before whoever read it, whoever read a value before whoever replaced it, whoever wrote before
/// whoever replaced. If that goes around in a circle, no order of one after the other explains what was read. (Adya,
/// "Weak Consistency", 1999.)
#[test]
fn a_recorded_history_has_an_order() {
    const KEYS: usize = 6;
    for seed in 0..8 {
        let store = Store::in_memory();
        let (next, history) = (AtomicU64::new(1), Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (store, next, history) = (&store, &next, &history);
                scope.spawn(move || {
                    let mut chance = Chance::new(seed * 100 + thread);
                    for _ in 0..300 {
                        let acts: Vec<(usize, usize)> =
                            (0..1 + chance.below(4)).map(|_| (chance.below(5), chance.below(KEYS))).collect();
                        let run = |tx: &mut Transaction<'_>| {
                            let mut recorded = Recorded::default();
                            for (act, key) in &acts {
                                let key = format!("c/{key}");
                                match act {
                                    0 | 1 if !recorded.writes.contains_key(&key) => {
                                        recorded.reads.insert(key.clone(), number(tx.get(&key)?));
                                    }
                                    2 if recorded.writes.is_empty() => {
                                        let all: BTreeMap<String, u64> = tx
                                            .get_all("c")?
                                            .into_iter()
                                            .map(|(member, value)| (format!("c/{member}"), number(Some(value))))
                                            .collect();
                                        for key in (0..KEYS).map(|key| format!("c/{key}")) {
                                            let found = all.get(&key).copied().unwrap_or(0);
                                            let before = recorded.reads.insert(key, found);
                                            assert!(before.is_none_or(|before| before == found), "two answers in one");
                                        }
                                    }
                                    _ => {
                                        // It is read first, so that its place among the writes is known.
                                        if !recorded.writes.contains_key(&key) {
                                            recorded.reads.insert(key.clone(), number(tx.get(&key)?));
                                        }
                                        let value = next.fetch_add(1, Ordering::Relaxed);
                                        tx.put(&key, value.to_string())?;
                                        recorded.writes.insert(key, value);
                                    }
                                }
                            }
                            Ok(recorded)
                        };
                        let recorded = store.transaction(run).unwrap();
                        history.lock().unwrap().push(recorded);
                    }
                });
            }
        });
        assert_ordered(&history.into_inner().unwrap());
    }
}

/// Fails if no order of one after the other explains what the transactions have read.
fn assert_ordered(history: &[Recorded]) {
    let mut writer: BTreeMap<(&str, u64), usize> = BTreeMap::new();
    let mut replacer: BTreeMap<(&str, u64), usize> = BTreeMap::new();
    for (index, recorded) in history.iter().enumerate() {
        for (key, value) in &recorded.writes {
            writer.insert((key, *value), index);
            let replaced = replacer.insert((key, recorded.reads[key]), index);
            assert!(replaced.is_none(), "two replaced the same value of {key}: an update was lost");
        }
    }
    let mut after: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); history.len()];
    for (index, recorded) in history.iter().enumerate() {
        for (key, value) in &recorded.reads {
            if *value > 0 {
                let from = writer.get(&(key.as_str(), *value)).expect("a value that no finished transaction wrote");
                after[*from].insert(index);
            }
            if let Some(next) = replacer.get(&(key.as_str(), *value)) {
                after[index].insert(*next);
            }
        }
    }
    let mut before = vec![0; history.len()];
    for (from, to) in after.iter().enumerate().flat_map(|(from, to)| to.iter().map(move |to| (from, *to))) {
        before[to] += usize::from(from != to);
    }
    let mut ready: Vec<usize> = (0..history.len()).filter(|index| before[*index] == 0).collect();
    let mut ordered = 0;
    while let Some(index) = ready.pop() {
        ordered += 1;
        for to in after[index].iter().filter(|to| **to != index) {
            before[*to] -= 1;
            if before[*to] == 0 {
                ready.push(*to);
            }
        }
    }
    assert_eq!(ordered, history.len(), "they go around in a circle");
}

#[test]
fn the_check_of_histories_finds_what_is_wrong() {
    let recorded = |reads: &[(&str, u64)], writes: &[(&str, u64)]| {
        let map = |pairs: &[(&str, u64)]| pairs.iter().map(|(key, value)| ((*key).to_owned(), *value)).collect();
        Recorded { reads: map(reads), writes: map(writes) }
    };
    let fine = [recorded(&[("a", 0)], &[("a", 1)]), recorded(&[("a", 1), ("b", 0)], &[("b", 2)])];
    assert_ordered(&fine);
    let lost = [recorded(&[("a", 0)], &[("a", 1)]), recorded(&[("a", 0)], &[("a", 2)])];
    let skewed = [recorded(&[("a", 0), ("b", 0)], &[("a", 1)]), recorded(&[("a", 0), ("b", 0)], &[("b", 2)])];
    let torn = [recorded(&[("a", 0), ("b", 0)], &[("a", 1), ("b", 2)]), recorded(&[("a", 1), ("b", 0)], &[])];
    for wrong in [&lost[..], &skewed, &torn] {
        assert!(std::panic::catch_unwind(|| assert_ordered(wrong)).is_err(), "{wrong:?}");
    }
}

#[test]
fn what_it_sees_is_of_one_moment_even_if_it_fails_in_the_end() {
    let store = Store::in_memory();
    store.put("c/a", "0").unwrap();
    store.put("c/b", "0").unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1..=40_000u64 {
                let write = |tx: &mut Transaction<'_>| {
                    if round % 2 == 0 {
                        tx.delete("c/a")?;
                        return tx.delete("c/b");
                    }
                    tx.put("c/a", round.to_string())?;
                    tx.put("c/b", round.to_string())
                };
                store.transaction(write).unwrap();
            }
            done.store(true, Ordering::Relaxed);
        });
        while !done.load(Ordering::Relaxed) {
            let look = |tx: &mut Transaction<'_>| {
                let (a, b) = (number(tx.get("c/a")?), number(tx.get("c/b")?));
                // Seen inside: it does not help that such a transaction would be tried again.
                assert_eq!(a, b);
                Ok(())
            };
            store.transaction(look).unwrap();
        }
    });
}

#[test]
fn one_that_is_always_disturbed_ends_in_an_error() {
    let store = Store::in_memory();
    store.put("c/a", "0").unwrap();
    let mut tries = 0;
    let disturbed = store.transaction(|tx| {
        tries += 1;
        let there = number(tx.get("c/a")?);
        store.put("c/a", (there + 1).to_string())?;
        tx.put("c/b", "never")
    });
    assert!(matches!(disturbed, Err(Error::Conflict { attempts }) if attempts == tries), "{disturbed:?}");
    assert_eq!((number(store.get("c/a").unwrap()), store.get("c/b").unwrap()), (u64::from(tries), None));
}

#[test]
fn what_expires_in_between_is_a_change_too() {
    let clock = ManualClock::new(UNIX_EPOCH + Duration::from_secs(1000));
    let dir = tempfile::tempdir().unwrap();
    let store = Store::options(dir.path().join("store")).clock(&clock).open().unwrap();
    for all in [false, true] {
        store.put_with_ttl("c/short", "1", Duration::from_millis(10)).unwrap();
        let mut seen = Vec::new();
        store
            .transaction(|tx| {
                let there = if all { !tx.get_all("c")?.is_empty() } else { tx.contains("c/short")? };
                seen.push(there);
                clock.advance(Duration::from_millis(10));
                tx.put("d/seen", there.to_string())
            })
            .unwrap();
        assert_eq!(seen, [true, false], "{all}");
        assert_eq!(store.get("d/seen").unwrap().unwrap(), "false");
    }
    store.transaction(|tx| tx.put_with_ttl("c/new", "1", Duration::from_millis(5))).unwrap();
    assert_eq!(store.ttl("c/new").unwrap(), Some(Duration::from_millis(5)));
    store.close().unwrap();
    let store = Store::options(dir.path().join("store")).clock(&clock).open().unwrap();
    assert_eq!(store.ttl("c/new").unwrap(), Some(Duration::from_millis(5)));
    clock.advance(Duration::from_millis(5));
    assert!(!store.contains("c/new").unwrap());
}

#[test]
fn it_is_durable_when_it_returns_in_immediate_mode() {
    for layout in [Layout::Files, Layout::Packed] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        let store = Store::options(&path).layout(layout).durability(Durability::Immediate).open().unwrap();
        let typed = store.collection::<Vec<u32>>("typed").unwrap();
        for round in 0..20u32 {
            let write = |tx: &mut Transaction<'_>| {
                tx.put("raw/a", round.to_string())?;
                tx.collection(&typed)?.put("b", vec![round; 3])
            };
            store.transaction(write).unwrap();
        }
        let image = dir.path().join("image");
        if layout == Layout::Files {
            lab::as_after_a_crash(&path, &image);
        } else {
            lab::as_a_packed_store_after_a_crash(&path, &image);
        }
        let copied = Store::open(&image).unwrap();
        assert_eq!(
            (copied.get("raw/a").unwrap().unwrap(), copied.get("typed/b").unwrap().unwrap()),
            ("19".into(), "[19,19,19]".into())
        );
        store.close().unwrap();
        assert!(matches!(store.transaction(|tx| tx.put("raw/a", "x")), Err(Error::Closed { .. })));
        assert!(matches!(store.transaction(|_| Ok(())), Err(Error::Closed { .. })));
    }
}

#[test]
fn a_collection_that_becomes_typed_meanwhile_is_read_again() {
    let store = Store::in_memory();
    store.put("c/a", "1").unwrap();
    let mut tries = 0;
    store
        .transaction(|tx| {
            tries += 1;
            let there = number(tx.get("c/a")?);
            store.collection::<u64>("c").unwrap();
            tx.put("c/a", (there + 1).to_string())?;
            tx.put("d/b", "1")
        })
        .unwrap();
    assert_eq!((tries, *store.collection::<u64>("c").unwrap().get("a").unwrap()), (2, 2));
}

#[test]
fn large_ones_split_what_they_fill() {
    let store = Store::in_memory();
    let write =
        |tx: &mut Transaction<'_>| (0..50_000).try_for_each(|number| tx.put(format!("c/{number}"), number.to_string()));
    store.transaction(write).unwrap();
    assert_eq!(store.len("c").unwrap(), 50_000);
    let clear = |tx: &mut Transaction<'_>| {
        let all = tx.get_all("c")?;
        all.iter().try_for_each(|(member, _)| tx.delete(format!("c/{member}")))?;
        Ok(all.len())
    };
    assert_eq!(store.transaction(clear).unwrap(), 50_000);
    assert!(store.is_empty("c").unwrap());
}

#[test]
fn one_member_written_all_the_time_holds_up_no_flush_and_stays_within_the_bound() {
    for layout in [Layout::Files, Layout::Packed] {
        let dir = tempfile::tempdir().unwrap();
        let options = Store::options(dir.path().join("store")).layout(layout).max_unsaved(1 << 20);
        let store = options.write_timeout(lab::LONGEST).open().unwrap();
        let done = std::sync::atomic::AtomicBool::new(false);
        let (begun, has_begun) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 1u64.. {
                    if done.load(Ordering::Relaxed) {
                        return;
                    }
                    store
                        .transaction(|tx| {
                            tx.put("a/x", round.to_string().repeat(1000))?;
                            tx.put("b/x", round.to_string())
                        })
                        .unwrap();
                    // A clear that comes to the janitor with a transaction.
                    store.put(format!("c{}/m", round % 50), "1").unwrap();
                    store.delete_all(format!("c{}", (round + 25) % 50)).unwrap();
                    // Less than that, and what the queue can hold until it is looked at.
                    assert!(store.stats().unsaved_bytes <= 1 << 20);
                    let _ = begun.send(round);
                }
            });
            has_begun.recv().unwrap();
            for _ in 0..50 {
                store.flush().unwrap();
            }
            done.store(true, Ordering::Relaxed);
        });
        store.flush().unwrap();
        assert_eq!((store.stats().dirty, store.stats().unsaved_bytes), (0, 0));
        store.close().unwrap();
    }
}

#[test]
fn it_sees_members_that_expire_together_come_to_their_end_together() {
    let clock = ManualClock::new(UNIX_EPOCH + Duration::from_secs(1000));
    let dir = tempfile::tempdir().unwrap();
    let store = Store::options(dir.path().join("store")).clock(&clock).open().unwrap();
    for round in 0..200 {
        let ttl = Duration::from_millis(5);
        store
            .transaction(|tx| {
                tx.put_with_ttl("c/a", "1", ttl)?;
                tx.put_with_ttl("c/b", "1", ttl)
            })
            .unwrap();
        let seen = store.transaction(|tx| {
            let a = tx.contains("c/a")?;
            clock.advance(ttl);
            Ok((a, tx.contains("c/b")?, tx.get_all("c")?.len()))
        });
        let seen = seen.unwrap();
        assert!(seen == (true, true, 2) || seen == (false, false, 0), "{round}: {seen:?}");
    }
}

#[test]
fn what_was_deleted_before_a_collection_was_opened_as_a_type_was_deleted() {
    let store = Store::in_memory();
    store.put("raw/m", "1").unwrap();
    let mut first = true;
    let seen = store.transaction(|tx| {
        let there = tx.contains("b/x")?;
        if std::mem::take(&mut first) {
            store.transaction(|other| {
                other.delete("raw/m")?;
                other.put("b/x", "1")
            })?;
            store.collection::<u32>("raw")?;
        }
        Ok((there, tx.contains("raw/m")?))
    });
    assert_eq!(seen.unwrap(), (true, false), "one of the two is there at any moment");
}
