//! Changes of one member that depend on what is there: nothing comes between, whoever else writes.

mod lab;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use larder::{Durability, Error, ManualClock, Store};

/// Calls `work` on several threads at the same time.
fn together(work: impl Fn(usize) + Sync) {
    let barrier = std::sync::Barrier::new(4);
    std::thread::scope(|scope| {
        for number in 0..4 {
            let (work, barrier) = (&work, &barrier);
            scope.spawn(move || {
                barrier.wait();
                work(number);
            });
        }
    });
}

#[test]
fn no_update_is_lost_and_no_increment() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let store = Store::open(&path).unwrap();
    let typed = store.collection::<u64>("typed").unwrap();
    together(|_| {
        for _ in 0..2000 {
            typed.update("sum", |sum| Some(sum.copied().unwrap_or(0) + 1)).unwrap();
            typed.increment("counter", 2).unwrap();
            store
                .update("raw/sum", |sum| {
                    let sum: u64 = sum.map_or(0, |sum| sum.to_str().unwrap().parse().unwrap());
                    Some((sum + 1).to_string())
                })
                .unwrap();
        }
    });
    assert_eq!((*typed.get("sum").unwrap(), *typed.get("counter").unwrap()), (8000, 16000));
    store.close().unwrap();
    let store = Store::open(&path).unwrap();
    assert_eq!(store.get("raw/sum").unwrap().unwrap(), "8000");
    let typed = store.collection::<u64>("typed").unwrap();
    assert_eq!((*typed.get("sum").unwrap(), typed.increment("counter", 1).unwrap()), (8000, 16001));
}

#[test]
fn an_update_sees_what_is_there_and_returns_what_is_there_then() {
    let store = Store::in_memory();
    let words = store.collection::<String>("word").unwrap();
    assert_eq!(words.update("a", |old| old.cloned()).unwrap(), None, "nothing was made of nothing");
    assert_eq!(*words.update("a", |old| old.is_none().then(|| "first".into())).unwrap().unwrap(), "first");
    assert_eq!(*words.update("a", |old| Some(format!("{}!", old.unwrap()))).unwrap().unwrap(), "first!");
    assert_eq!(store.get("word/a").unwrap().unwrap(), r#""first!""#);
    assert_eq!(words.update("a", |_| None).unwrap(), None);
    assert!(!words.contains("a"));

    // By key, where the collection is open as a type.
    let kept = store.update("word/b", |old| old.is_none().then_some(r#""by key""#)).unwrap().unwrap();
    assert_eq!((kept, words.get("b").unwrap().as_str()), (r#""by key""#.into(), "by key"));
    let wrong = store.update("word/b", |_| Some("no json")).unwrap_err();
    assert!(matches!(wrong, Error::Codec { action: "decode", .. }), "{wrong}");
    assert_eq!(store.update("word/b", |_| None::<&str>).unwrap(), None);
    assert!(!words.contains("b"));
    for key in ["word", "", "/a", "word/"] {
        assert!(matches!(store.update(key, |_| Some("x")), Err(Error::InvalidKey { .. })), "{key}");
    }
    assert!(matches!(words.update("", |_| None), Err(Error::InvalidKey { .. })));
    assert!(matches!(words.update("", |_| Some("x".into())), Err(Error::InvalidKey { .. })));
}

#[test]
fn a_closure_may_use_the_store_and_may_panic() {
    let store = Store::in_memory();
    let words = store.collection::<String>("word").unwrap();
    words.put("a", "old".into()).unwrap();
    let mut calls = 0;
    let new = words.update("a", |old| {
        calls += 1;
        if calls == 1 {
            words.put("a", "between".into()).unwrap();
            assert_eq!(words.get_all().len(), 1);
        }
        Some(format!("{}, changed", old.unwrap()))
    });
    assert_eq!((new.unwrap().unwrap().as_str(), calls), ("between, changed", 2));
    let update = || words.update("a", |_| panic!("on purpose"));
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(update)).is_err());
    assert_eq!(*words.get("a").unwrap(), "between, changed");
}

#[test]
fn of_many_who_put_where_nothing_is_one_wins() {
    let store = Store::in_memory();
    let slots = store.collection::<usize>("slot").unwrap();
    let (winners, raw_winners) = (AtomicUsize::new(0), AtomicUsize::new(0));
    together(|number| {
        for slot in 0..500 {
            let there = slots.put_if_absent(slot.to_string(), number).unwrap();
            winners.fetch_add(usize::from(there.is_none()), Ordering::Relaxed);
            let there = store.put_if_absent(format!("raw/{slot}"), number.to_string()).unwrap();
            raw_winners.fetch_add(usize::from(there.is_none()), Ordering::Relaxed);
        }
    });
    assert_eq!((winners.into_inner(), raw_winners.into_inner()), (500, 500));
    let there = slots.put_if_absent("0", 99).unwrap().unwrap();
    assert_eq!(slots.get("0").unwrap(), there);
}

#[test]
fn of_many_who_take_one_gets_it() {
    let store = Store::in_memory();
    let jobs = store.collection::<usize>("job").unwrap();
    for job in 0..1000 {
        jobs.put(job.to_string(), job).unwrap();
    }
    let (taken, sum) = (AtomicUsize::new(0), AtomicUsize::new(0));
    together(|_| {
        for job in 0..1000 {
            if let Some(value) = jobs.take(job.to_string()).unwrap() {
                taken.fetch_add(1, Ordering::Relaxed);
                sum.fetch_add(*value, Ordering::Relaxed);
            }
        }
    });
    assert_eq!((taken.into_inner(), sum.into_inner(), jobs.len()), (1000, 499_500, 0));
    store.put("raw/a", "1").unwrap();
    assert_eq!((store.take("raw/a").unwrap().unwrap(), store.take("raw/a").unwrap()), ("1".into(), None));
}

#[test]
fn a_put_that_compares_is_refused_when_anything_came_between() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let store = Store::open(&path).unwrap();
    assert_eq!(store.get_versioned("c/a").unwrap(), None);
    assert_eq!(store.compare_and_put("c/a", 7, "x").unwrap(), None);
    let first = store.compare_and_put("c/a", 0, "1").unwrap().unwrap();
    assert_eq!(store.compare_and_put("c/a", 0, "x").unwrap(), None);
    assert_eq!(store.get_versioned("c/a").unwrap(), Some(("1".into(), first)));
    let second = store.compare_and_put("c/a", first, "2").unwrap().unwrap();
    assert!(second > first);
    store.expire("c/a", Duration::from_secs(1000)).unwrap();
    assert_eq!(store.compare_and_put("c/a", second, "x").unwrap(), None, "its deadline has changed");
    let (_, third) = store.get_versioned("c/a").unwrap().unwrap();
    store.close().unwrap();

    let store = Store::open(&path).unwrap();
    assert_eq!(store.get_versioned("c/a").unwrap(), Some(("2".into(), third)), "versions outlive the process");
    let typed = store.collection::<u32>("c").unwrap();
    assert_eq!(typed.get_versioned("a"), Some((Arc::new(2), third)));
    assert_eq!(typed.compare_and_put("a", second, 0).unwrap(), None);
    let fourth = typed.compare_and_put("a", third, 3).unwrap().unwrap();
    assert_eq!(store.get_versioned("c/a").unwrap(), Some(("3".into(), fourth)));
    typed.delete("a").unwrap();
    typed.put("a", 4).unwrap();
    assert_eq!(typed.compare_and_put("a", fourth, 5).unwrap(), None, "it was away in between");
    assert_eq!(typed.compare_and_put("b", 0, 5).unwrap().map(|version| version > fourth), Some(true));
}

#[test]
fn counters_count_to_the_ends_of_their_type_and_no_further() {
    let store = Store::in_memory();
    let small = store.collection::<i8>("small").unwrap();
    assert_eq!(small.increment("a", 100).unwrap(), 100);
    let error = small.increment("a", 28).unwrap_err();
    assert!(matches!(&error, Error::Overflow { key } if key == "small/a") && error.to_string().contains("small/a"));
    assert_eq!(*small.get("a").unwrap(), 100);
    assert_eq!(small.increment("a", -128).unwrap(), -28);
    let large = store.collection::<u64>("large").unwrap();
    assert_eq!(large.increment("a", u64::MAX).unwrap(), u64::MAX);
    assert!(large.increment("a", 1).is_err());
    assert!(matches!(large.increment("", 1), Err(Error::InvalidKey { .. })));
}

#[test]
fn a_change_keeps_the_deadline_and_a_put_does_not() {
    let clock = ManualClock::new(UNIX_EPOCH + Duration::from_secs(1000));
    let dir = tempfile::tempdir().unwrap();
    let store = Store::options(dir.path().join("store")).clock(&clock).open().unwrap();
    let counters = store.collection::<u64>("c").unwrap();
    for member in ["updated", "incremented", "compared", "put"] {
        counters.put_with_ttl(member, 1, Duration::from_millis(10)).unwrap();
    }
    counters.update("updated", |old| old.map(|old| old + 1)).unwrap();
    counters.increment("incremented", 1).unwrap();
    let (_, version) = counters.get_versioned("compared").unwrap();
    counters.compare_and_put("compared", version, 2).unwrap().unwrap();
    counters.put("put", 2).unwrap();
    clock.advance(Duration::from_millis(10));
    let mut left = counters.members();
    left.sort();
    assert_eq!(left, ["compared", "put"]);
    // What has expired is no more, for any of them.
    assert_eq!(counters.increment("incremented", 5).unwrap(), 5);
    assert_eq!(counters.update("updated", |old| Some(old.map_or(7, |_| 0))).unwrap(), Some(Arc::new(7)));
    assert_eq!((counters.ttl("incremented"), counters.ttl("updated")), (None, None));
}

#[test]
fn changes_are_durable_like_any_write_and_refused_like_any() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let store = Store::options(&path).durability(Durability::Immediate).open().unwrap();
    let counters = store.collection::<u64>("c").unwrap();
    counters.increment("a", 1).unwrap();
    counters.update("b", |_| Some(2)).unwrap();
    counters.compare_and_put("d", 0, 3).unwrap().unwrap();
    counters.put_if_absent("e", 4).unwrap();
    let image = dir.path().join("image");
    lab::as_after_a_crash(&path, &image);
    let copied = Store::open(&image).unwrap();
    assert_eq!(
        lab::contents(&copied).values().map(|value| value.to_vec()).collect::<Vec<_>>(),
        [b"1", b"2", b"3", b"4"]
    );
    store.close().unwrap();
    assert!(matches!(counters.increment("a", 1), Err(Error::Closed { .. })));
    assert!(matches!(counters.update("a", |_| None), Err(Error::Closed { .. })));
    assert!(matches!(counters.compare_and_put("a", 0, 1), Err(Error::Closed { .. })));
    assert!(matches!(counters.put_if_absent("x", 1), Err(Error::Closed { .. })));
    assert!(matches!(store.update("c/a", |_| Some("1")), Err(Error::Closed { .. })));
}
