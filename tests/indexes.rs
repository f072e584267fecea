//! Indexes: always in step with the members, in order, and unique where they are to be.

mod lab;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use lab::Chance;
use larder::{Collection, Error, Index, Layout, ManualClock, Store};
use proptest::prelude::*;

fn names<T>(found: Vec<(larder::Member, Arc<T>)>) -> Vec<String> {
    found.into_iter().map(|(member, _)| member.to_string()).collect()
}

#[test]
fn lookups_ranges_prefixes_and_pages_are_in_order() {
    let store = Store::in_memory();
    let words = store.collection::<String>("word").unwrap();
    for (member, word) in
        [("1", "beta"), ("2", "alpha"), ("3", "beta"), ("4", "gamma"), ("5", ""), ("6", "al\0pha"), ("7", "al")]
    {
        words.put(member, word.to_owned()).unwrap();
    }
    let by_word = words.index_by("word", |word| word.clone()).unwrap();
    let by_length = words.index_by("length", |word| (word.len() as i32 - 4, word.is_empty())).unwrap();
    assert_eq!(names(by_word.get("beta")), ["1", "3"]);
    assert_eq!((by_word.count("beta"), by_word.count("bet"), by_word.get("al").len()), (2, 0, 1));
    assert_eq!(names(by_word.all()), ["5", "7", "6", "2", "1", "3", "4"]);
    assert_eq!(names(by_word.range("al".."beta")), ["7", "6", "2"]);
    assert_eq!(names(by_word.range("alpha"..="beta")), ["2", "1", "3"]);
    assert_eq!(names(by_word.range::<&str>((Bound::Excluded("al"), Bound::Excluded("gamma")))), ["6", "2", "1", "3"]);
    assert_eq!(names(by_word.range::<&str>((Bound::Excluded("beta"), Bound::Unbounded::<&str>))), ["4"]);
    assert_eq!((names(by_word.prefix("al")), by_word.prefix("").len()), (vec!["7".into(), "6".into(), "2".into()], 7));
    assert_eq!(names(by_length.range((-100, false)..(0, false))), ["5", "7"]);
    assert_eq!(names(by_length.get(&(-4, true))), ["5"]);

    // Pages, while what is around them changes.
    let mut pages = Vec::new();
    let mut after = None;
    loop {
        let page = by_word.page::<&str>(.., after.as_ref(), 2);
        pages.extend(names(page.members));
        words.put("0", format!("{} is before what comes next", pages.len())).unwrap();
        words.delete(pages.last().unwrap()).unwrap();
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    pages.retain(|member| member != "0");
    assert_eq!(pages, ["5", "7", "6", "2", "1", "3", "4"]);
    assert!(by_word.page("x".., None, 10).next.is_none());
    assert!(by_word.page::<&str>(.., None, 0).members.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_order_of_an_index_is_that_of_its_keys(
        mut keys in prop::collection::vec((".{0,3}|[\u{0}\u{1}ab]{0,4}", any::<Option<i64>>(), prop::collection::vec(any::<u8>(), 0..4)), 0..40)
    ) {
        let all = Store::in_memory().collection::<(String, Option<i64>, Vec<u8>)>("c").unwrap();
        let index = all.index_by("all", Clone::clone).unwrap();
        let halves = all.index_by("half", |key| (key.2.clone(), key.0.clone())).unwrap();
        for (number, key) in keys.iter().enumerate() {
            all.put(format!("{number:03}"), key.clone()).unwrap();
        }
        let found: Vec<_> = index.all().into_iter().map(|(_, key)| (*key).clone()).collect();
        for key in &keys {
            prop_assert!(index.get(key).iter().all(|(_, found)| **found == *key) && !index.get(key).is_empty());
        }
        keys.sort();
        prop_assert_eq!(&found, &keys);
        if let (Some(first), Some(last)) = (keys.first(), keys.get(keys.len() / 2)) {
            let expected = keys.iter().filter(|key| first < key && *key < last).count();
            let range = (Bound::Excluded(first.clone()), Bound::Excluded(last.clone()));
            prop_assert_eq!(index.range(range).len(), expected);
        }
        keys.sort_by_key(|key| (key.2.clone(), key.0.clone()));
        let found: Vec<_> = halves.all().into_iter().map(|(_, key)| (key.2.clone(), key.0.clone())).collect();
        prop_assert_eq!(found, keys.into_iter().map(|key| (key.2, key.0)).collect::<Vec<_>>());
    }
}

/// What the index is to be, from the members.
fn expected(numbers: &Collection<u64>, key: impl Fn(u64) -> u64) -> Vec<(u64, String, u64)> {
    let mut all: Vec<_> =
        numbers.get_all().into_iter().map(|(member, value)| (key(*value), member.to_string(), *value)).collect();
    all.sort();
    all
}

fn indexed(index: &Index<u64, u64>, key: impl Fn(u64) -> u64) -> Vec<(u64, String, u64)> {
    index.all().into_iter().map(|(member, value)| (key(*value), member.to_string(), *value)).collect()
}

#[test]
fn whatever_is_done_the_index_is_in_step() {
    let clock = ManualClock::new(UNIX_EPOCH + Duration::from_secs(1000));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let open = || Store::options(&path).clock(&clock).open().unwrap();
    let mut store = open();
    let mut chance = Chance::new(7);
    for round in 0..3 {
        let numbers = store.collection::<u64>("n").unwrap();
        let index = numbers.index_by("tens", |number| number / 10).unwrap();
        assert_eq!(indexed(&index, |number| number / 10), expected(&numbers, |number| number / 10), "after loading");
        for _ in 0..2000 {
            let (member, value) = (chance.below(50).to_string(), chance.below(100) as u64);
            match chance.below(13) {
                0 => _ = numbers.delete(&member).unwrap(),
                1 => _ = numbers.put_with_ttl(&member, value, Duration::from_millis(value)).unwrap(),
                2 => _ = numbers.expire(&member, Duration::from_millis(value)).unwrap(),
                3 => _ = numbers.persist(&member).unwrap(),
                4 => _ = numbers.increment(&member, 7).unwrap(),
                5 => _ = numbers.update(&member, |old| old.map(|old| old + 1).filter(|new| new % 5 > 0)).unwrap(),
                6 => _ = store.put(format!("n/{member}"), value.to_string()).unwrap(),
                7 => clock.advance(Duration::from_millis(value / 10)),
                8 if value < 3 => _ = numbers.delete_all().unwrap(),
                9 => _ = numbers.put_if_absent(&member, value).unwrap(),
                10 => {
                    let change = |tx: &mut larder::Transaction<'_>| {
                        let mut numbers = tx.collection(&numbers)?;
                        numbers.put(&member, value)?;
                        numbers.delete(format!("{}", value % 50))?;
                        numbers.put(format!("{}", (value + 1) % 50), value + 3)
                    };
                    store.transaction(change).unwrap();
                }
                _ => _ = numbers.put(&member, value).unwrap(),
            }
            assert_eq!(indexed(&index, |number| number / 10), expected(&numbers, |number| number / 10), "{round}");
        }
        store.close().unwrap();
        store = open();
    }
}

#[test]
fn who_looks_sees_every_member_once_while_they_move() {
    let store = Store::in_memory();
    let places = store.collection::<u64>("place").unwrap();
    let index = places.index_by("place", |place| *place).unwrap();
    for member in 0..20 {
        places.put(member.to_string(), 0).unwrap();
    }
    let left = AtomicUsize::new(2);
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let (places, left) = (&places, &left);
            scope.spawn(move || {
                let mut chance = Chance::new(thread);
                for _ in 0..20_000 {
                    places.put(chance.below(20).to_string(), chance.below(1000) as u64).unwrap();
                }
                left.fetch_sub(1, Ordering::Relaxed);
            });
        }
        while left.load(Ordering::Relaxed) > 0 {
            let all = index.all();
            assert!(all.is_sorted_by_key(|(member, place)| (**place, member.clone())));
            let mut members = names(all);
            members.sort();
            members.dedup();
            assert_eq!(members.len(), 20);
        }
    });
}

#[test]
fn an_index_added_while_others_write_misses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let store = Store::options(&path).layout(Layout::Packed).open().unwrap();
    for member in 0..20_000 {
        store.put(format!("n/{member}"), member.to_string()).unwrap();
    }
    store.close().unwrap();
    let store = Store::options(&path).layout(Layout::Packed).open().unwrap();
    let numbers = store.collection::<u64>("n").unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let (mut chance, mut rounds) = (Chance::new(1), 0);
            while !done.load(Ordering::Relaxed) || rounds < 1000 {
                let member = chance.below(21_000).to_string();
                match chance.below(5) {
                    0 => _ = numbers.delete(&member).unwrap(),
                    1 => _ = numbers.increment(&member, 5).unwrap(),
                    2 => {
                        _ = numbers.expire(&member, Duration::from_secs(1000)).unwrap();
                        _ = numbers.persist((chance.below(21_000)).to_string()).unwrap();
                    }
                    _ => _ = numbers.put(&member, chance.below(1 << 20) as u64).unwrap(),
                }
                rounds += 1;
            }
        });
        let indexes: Vec<_> = (0..4)
            .map(|shift| numbers.index_by(&format!("by {shift}"), move |number| number >> shift).unwrap())
            .collect();
        done.store(true, Ordering::Relaxed);
        writer.join().unwrap();
        for (shift, index) in indexes.iter().enumerate() {
            assert_eq!(indexed(index, |number| number >> shift), expected(&numbers, |number| number >> shift));
        }
    });
    assert!(matches!(numbers.index_by("by 3", |number| *number), Err(Error::IndexExists { .. })));
    for more in 4..16 {
        numbers.index_by(&format!("by {more}"), |number| *number).unwrap();
    }
    let many = numbers.index_by("one more", |number| *number).unwrap_err();
    assert!(matches!(&many, Error::TooManyIndexes { .. }) && many.to_string().contains("16"), "{many}");
}

/// The members of an error about two, and that nothing else has changed.
fn refused<R: std::fmt::Debug>(done: larder::Result<R>) -> (String, String) {
    match done {
        Err(ref error @ Error::Duplicate { ref holder, ref refused, ref index, ref collection }) => {
            assert_eq!((&**index, &**collection), ("mail", "user"));
            let text = error.to_string();
            assert!(text.contains(&**holder) && text.contains(&**refused) && text.contains("mail"), "{text}");
            (holder.to_string(), refused.to_string())
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_unique_index_refuses_whoever_comes_second_by_whatever_way() {
    let clock = ManualClock::new(UNIX_EPOCH + Duration::from_secs(1000));
    let dir = tempfile::tempdir().unwrap();
    let store = Store::options(dir.path().join("store")).clock(&clock).open().unwrap();
    let users = store.collection::<String>("user").unwrap();
    users.put("ada", "a@x".into()).unwrap();
    users.put("eve", "a@x".into()).unwrap();
    assert_eq!(refused(users.unique_index_by("mail", |mail| mail.clone())), ("ada".into(), "eve".into()));
    users.delete("eve").unwrap();
    let by_mail = users.unique_index_by("mail", |mail| mail.clone()).unwrap();
    users.put("bob", "b@x".into()).unwrap();

    let two = ("ada".to_owned(), "bob".to_owned());
    assert_eq!(refused(users.put("bob", "a@x".into())), two);
    assert_eq!(refused(users.put_with_ttl("bob", "a@x".into(), Duration::from_secs(1))), two);
    assert_eq!(refused(users.update("bob", |_| Some("a@x".into()))), two);
    let (_, version) = users.get_versioned("bob").unwrap();
    assert_eq!(refused(users.compare_and_put("bob", version, "a@x".into())), two);
    assert_eq!(refused(users.put_if_absent("new", "b@x".into())), ("bob".into(), "new".into()));
    assert_eq!(refused(store.put("user/bob", r#""a@x""#)), two);
    assert_eq!(refused(store.update("user/bob", |_| Some(r#""a@x""#))), two);
    let both = store.transaction(|tx| {
        tx.put("other/x", "1")?;
        tx.collection(&users)?.put("bob", "a@x".into())
    });
    assert_eq!(refused(both), two);
    let own = store.transaction(|tx| {
        let mut users = tx.collection(&users)?;
        users.put("x", "n@x".into())?;
        users.put("y", "n@x".into())
    });
    assert_eq!(refused(own), ("x".into(), "y".into()));
    assert_eq!((users.len(), store.len("other").unwrap(), by_mail.all().len()), (2, 0, 2));
    assert_eq!((&**users.get("ada").unwrap(), &**users.get("bob").unwrap()), ("a@x", "b@x"));

    // In a transaction they may swap, and take what is given up.
    store
        .transaction(|tx| {
            let mut users = tx.collection(&users)?;
            users.put("ada", "b@x".into())?;
            users.put("bob", "a@x".into())
        })
        .unwrap();
    assert_eq!(names(by_mail.get("a@x")), ["bob"]);
    store
        .transaction(|tx| {
            let mut users = tx.collection(&users)?;
            users.delete("bob")?;
            users.put("carl", "a@x".into())
        })
        .unwrap();
    assert_eq!((names(by_mail.get("a@x")), users.contains("bob")), (vec!["carl".into()], false));
    // The same again is no other; what has expired is nobody's; what is cleared is free.
    users.put("carl", "a@x".into()).unwrap();
    users.put_with_ttl("short", "s@x".into(), Duration::from_millis(5)).unwrap();
    assert_eq!(refused(users.put("long", "s@x".into())), ("short".into(), "long".into()));
    clock.advance(Duration::from_millis(5));
    assert!(by_mail.get("s@x").is_empty());
    users.put("long", "s@x".into()).unwrap();
    assert_eq!(names(by_mail.get("s@x")), ["long"]);
    users.delete_all().unwrap();
    assert!(by_mail.all().is_empty());
    users.put("new", "s@x".into()).unwrap();
    store.flush().unwrap();
    assert_eq!((store.stats().unsaved_bytes, names(by_mail.get("s@x"))), (0, vec!["new".into()]));
}

#[test]
fn of_many_who_want_a_unique_key_one_gets_it() {
    let store = Store::in_memory();
    let users = store.collection::<u64>("user").unwrap();
    users.unique_index_by("number", |number| *number).unwrap();
    let won = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (store, users, won) = (&store, &users, &won);
            scope.spawn(move || {
                for number in 0..1000 {
                    let member = format!("{thread}-{number}");
                    let put = if thread == 2 {
                        store.transaction(|tx| tx.collection(users)?.put(&member, number))
                    } else {
                        users.put(&member, number).map(drop)
                    };
                    match put {
                        Ok(()) => _ = won.fetch_add(1, Ordering::Relaxed),
                        Err(Error::Duplicate { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
    });
    assert_eq!((won.into_inner(), users.len()), (1000, 1000));
    let numbers: BTreeMap<u64, ()> = users.get_all().into_iter().map(|(_, number)| (*number, ())).collect();
    assert_eq!(numbers.len(), 1000);
}

#[test]
fn a_key_is_made_with_nothing_locked_and_a_panic_in_it_changes_nothing() {
    let store = Store::in_memory();
    let numbers = store.collection::<u64>("n").unwrap();
    let (other, own) = (store.clone(), numbers.clone());
    let index = numbers
        .index_by("odd", move |number| {
            assert!(*number != 13, "on purpose");
            // With a lock held this would not come back.
            other.put("calls/last", number.to_string()).unwrap();
            assert_eq!(own.len(), own.get_all().len());
            number % 2
        })
        .unwrap();
    numbers.put("a", 1).unwrap();
    let put = || numbers.put("a", 13);
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(put)).is_err());
    let change = || store.transaction(|tx| tx.collection(&numbers)?.put("a", 13));
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(change)).is_err());
    assert_eq!((*numbers.get("a").unwrap(), index.all().len()), (1, 1));
    numbers.put("a", 2).unwrap();
    assert_eq!((index.get(&0).len(), index.get(&1).len()), (1, 0));
    let panics = || numbers.index_by("none", |_| -> u64 { panic!("on purpose") });
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics)).is_err());
    numbers.put("b", 3).unwrap();
    assert_eq!(numbers.index_by("none", |number| *number).unwrap().all().len(), 2);
}

#[test]
fn in_a_transaction_an_index_is_of_its_moment_and_shows_its_own_writes() {
    let store = Store::in_memory();
    let doctors = store.collection::<bool>("doctor").unwrap();
    let on_call = doctors.index_by("on call", |on_call| *on_call).unwrap();
    for doctor in ["ada", "bob", "eve"] {
        doctors.put(doctor, true).unwrap();
    }
    store
        .transaction(|tx| {
            let mut doctors = tx.collection(&doctors)?;
            doctors.put("ada", false)?;
            doctors.put("new", true)?;
            doctors.delete("eve")?;
            assert_eq!(names(doctors.find(&on_call, true)?), ["bob", "new"]);
            assert_eq!(names(doctors.find_range(&on_call, false..)?), ["ada", "bob", "new"]);
            Ok(())
        })
        .unwrap();
    let other = store.collection::<bool>("other").unwrap();
    let wrong = store.transaction(|tx| tx.collection(&other)?.find(&on_call, true).map(drop));
    assert!(matches!(wrong, Err(Error::InvalidKey { .. })));

    // Two who may go home if another stays, and who are found by the index alone.
    for round in 0..1000 {
        doctors.delete_all().unwrap();
        doctors.put("ada", true).unwrap();
        doctors.put("bob", true).unwrap();
        let barrier = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            for who in ["ada", "bob"] {
                let (store, doctors, on_call, barrier) = (&store, &doctors, &on_call, &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    let goes = |tx: &mut larder::Transaction<'_>| {
                        let mut doctors = tx.collection(doctors)?;
                        if doctors.find(on_call, true)?.len() > 1 { doctors.put(who, false) } else { Ok(()) }
                    };
                    store.transaction(goes).unwrap();
                });
            }
        });
        assert_eq!(on_call.get(&true).len(), 1, "{round}");
    }
}

#[test]
fn a_counter_in_an_index_counts_to_its_end_and_stays_there() {
    let store = Store::in_memory();
    let small = store.collection::<u8>("n").unwrap();
    small.put("k", 254).unwrap();
    let index = small.index_by("value", |value| *value).unwrap();
    assert_eq!(small.increment("k", 1).unwrap(), 255);
    let before = small.get_versioned("k");
    assert!(matches!(small.increment("k", 1), Err(Error::Overflow { .. })));
    assert_eq!((small.get_versioned("k"), names(index.get(&255))), (before, vec!["k".into()]));
}

#[test]
fn an_index_that_could_not_be_made_keeps_nothing_from_being_put() {
    let store = Store::in_memory();
    let users = store.collection::<String>("user").unwrap();
    users.put("ada", "same".into()).unwrap();
    users.put("bob", "same".into()).unwrap();
    assert!(matches!(users.unique_index_by("mail", |mail| mail.clone()), Err(Error::Duplicate { .. })));
    users.put("eve", "same".into()).unwrap();
    store.transaction(|tx| tx.collection(&users)?.put("joe", "same".into())).unwrap();
    assert_eq!(users.len(), 4);
    users.delete("ada").unwrap();
    let again = users.index_by("mail", |mail| mail.clone()).unwrap();
    assert_eq!(names(again.get("same")), ["bob", "eve", "joe"]);
}
