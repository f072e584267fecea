//! Watching: every change, in order, to whoever asks, and at nobody's cost.

mod lab;

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use larder::{ChangeKind, Changed, Error, ManualClock, Store, Watch, Watched};

fn change<V>(watched: Option<Watched<V>>) -> Changed<V> {
    match watched {
        Some(Watched::Change(change)) => change,
        Some(Watched::Missed(count)) => panic!("missed {count}"),
        _ => panic!("nothing"),
    }
}

/// What is there already.
fn ready<V>(watch: &mut Watch<V>) -> Vec<Watched<V>> {
    std::iter::from_fn(|| watch.next_within(Duration::ZERO)).collect()
}

type Line = (String, Option<String>, ChangeKind, Option<String>, Option<String>);

fn line(change: &Changed<larder::Value>) -> Line {
    let text = |value: &Option<larder::Value>| value.as_ref().map(|value| value.to_str().unwrap().to_owned());
    let member = change.member.as_ref().map(|member| member.to_string());
    (change.collection.to_string(), member, change.kind, text(&change.old), text(&change.new))
}

#[test]
fn every_kind_of_change_is_told_with_what_was_and_what_is() {
    use ChangeKind::{Clear, Deadline, Delete, Expire, Put};
    let clock = ManualClock::new(UNIX_EPOCH + Duration::from_secs(1000));
    let dir = tempfile::tempdir().unwrap();
    let store = Store::options(dir.path().join("store")).clock(&clock).open().unwrap();
    store.put("a/before", "0").unwrap();
    let numbers = store.collection::<u32>("n").unwrap();
    let (mut all, mut some) = (store.watch().unwrap(), numbers.watch().unwrap());

    store.put("a/x", "1").unwrap();
    store.put("a/x", "2").unwrap();
    store.delete("a/x").unwrap();
    store.delete("a/x").unwrap();
    numbers.increment("i", 5).unwrap();
    numbers.update("i", |old| old.map(|old| old + 1)).unwrap();
    assert!(numbers.put_if_absent("i", 0).unwrap().is_some());
    assert_eq!(numbers.compare_and_put("i", 1, 0).unwrap(), None);
    store.put_with_ttl("a/t", "3", Duration::from_millis(10)).unwrap();
    store.expire("a/t", Duration::from_millis(5)).unwrap();
    clock.advance(Duration::from_millis(5));
    let mut found = Vec::new();
    while found.last().is_none_or(|last: &Changed<_>| last.kind != Expire) {
        found.push(change(all.next()));
    }
    let text = |text: &str| Some(text.to_owned());
    let expected = [
        ("a", "x", Put, None, text("1")),
        ("a", "x", Put, text("1"), text("2")),
        ("a", "x", Delete, text("2"), None),
        ("n", "i", Put, None, text("5")),
        ("n", "i", Put, text("5"), text("6")),
        ("a", "t", Put, None, text("3")),
        ("a", "t", Deadline, text("3"), text("3")),
        ("a", "t", Expire, text("3"), None),
    ];
    let expected = expected.map(|(c, m, kind, old, new)| (c.to_owned(), Some(m.to_owned()), kind, old, new));
    assert_eq!(found.iter().map(line).collect::<Vec<_>>(), expected);
    assert!(found.windows(2).all(|pair| pair[0].version < pair[1].version));

    assert_eq!(store.delete_all("a").unwrap(), 1);
    store
        .transaction(|tx| {
            tx.put("a/tx", "4")?;
            let mut numbers = tx.collection(&numbers)?;
            numbers.delete("i")?;
            numbers.put("j", 7)
        })
        .unwrap();
    let clear = change(all.next());
    assert_eq!(line(&clear), ("a".to_owned(), None, Clear, None, None));
    let parts: Vec<_> = (0..3).map(|_| change(all.next())).collect();
    assert!(parts.iter().all(|part| part.version == parts[0].version && part.version > clear.version));
    let kinds: Vec<_> = parts.iter().map(|part| (part.member.as_deref().unwrap(), part.kind)).collect();
    assert_eq!(kinds, [("tx", Put), ("i", Delete), ("j", Put)]);
    assert_eq!(ready(&mut all), []);

    // The collection's own, in its type.
    let own: Vec<Changed<Arc<u32>>> = ready(&mut some).into_iter().map(|watched| change(Some(watched))).collect();
    let own: Vec<_> = own
        .iter()
        .map(|change| (change.kind, change.old.as_deref().copied(), change.new.as_deref().copied()))
        .collect();
    assert_eq!(own, [(Put, None, Some(5)), (Put, Some(5), Some(6)), (Delete, Some(6), None), (Put, None, Some(7))]);
    store.close().unwrap();
    assert!(all.next().is_none() && some.next().is_none() && all.is_over());
}

#[test]
fn a_mirror_that_follows_is_what_the_store_is() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store")).unwrap();
    let watch = store.watch().unwrap();
    let mirror = std::thread::spawn(move || {
        let (mut mirror, mut last) = (std::collections::BTreeMap::new(), 0);
        for watched in watch {
            let change = change(Some(watched));
            assert!(change.version >= last, "they are in the order of their versions");
            last = change.version;
            match (change.member, change.new) {
                (None, _) => mirror.retain(|key: &String, _| !key.starts_with(&format!("{}/", change.collection))),
                (Some(member), Some(new)) => _ = mirror.insert(format!("{}/{member}", change.collection), new.to_vec()),
                (Some(member), None) => _ = mirror.remove(&format!("{}/{member}", change.collection)),
            }
        }
        mirror
    });
    std::thread::scope(|scope| {
        for thread in 0..3u64 {
            let store = &store;
            scope.spawn(move || {
                let mut chance = lab::Chance::new(thread);
                for round in 0..1000 {
                    let key = format!("c{}/{}", chance.below(2), chance.below(5));
                    match chance.below(10) {
                        0 => _ = store.delete_all("c0").unwrap(),
                        1 | 2 => _ = store.delete(&key).unwrap(),
                        3 => store
                            .transaction(|tx| {
                                tx.put(&key, "tx")?;
                                tx.put("c0/0", "tx")
                            })
                            .unwrap(),
                        _ => _ = store.put(&key, format!("{thread}-{round}")).unwrap(),
                    }
                }
            });
        }
    });
    let found = lab::contents(&store);
    store.close().unwrap();
    assert_eq!(mirror.join().unwrap(), found);
}

#[test]
fn who_is_slow_is_told_how_much_it_missed_and_slows_nobody() {
    let store = Store::in_memory();
    let numbers = store.collection::<u32>("n").unwrap();
    let mut slow = numbers.watch().unwrap();
    for number in 0..10_000 {
        numbers.put("k", number).unwrap();
    }
    let Some(Watched::Missed(missed)) = slow.next() else { panic!("nothing was missed") };
    let next = change(slow.next());
    assert_eq!(u64::from(*next.new.unwrap()), missed);
    let rest = ready(&mut slow);
    assert_eq!(missed + 1 + rest.len() as u64, 10_000);

    // To go on from a version, as long as it is held.
    let last = change(rest.into_iter().next_back());
    let mut again = numbers.watch_after(last.version - 3).unwrap();
    let numbers_again: Vec<u32> =
        ready(&mut again).into_iter().map(|watched| *change(Some(watched)).new.unwrap()).collect();
    assert_eq!(numbers_again, [9_997, 9_998, 9_999]);
    assert_eq!(ready(&mut numbers.watch_after(last.version).unwrap()), []);
    let gone = numbers.watch_after(3).unwrap_err();
    assert!(matches!(gone, Error::Missed { asked: 3, oldest } if oldest == next.version - 1), "{gone}");

    // Without anybody who watches nothing is held.
    drop((slow, again));
    numbers.put("k", 1).unwrap();
    assert!(matches!(numbers.watch_after(last.version), Err(Error::Missed { .. })));
}

#[test]
fn a_watch_keeps_no_store_open_and_ends_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let store = Store::open(&path).unwrap();
    let mut watch = store.watch().unwrap();
    let waiting = store.watch().unwrap();
    let waiter = std::thread::spawn(move || waiting.count());
    store.put("c/a", "1").unwrap();
    drop(store);
    assert_eq!(waiter.join().unwrap(), 1);
    // Its lock is free, and what was told can be read still.
    let store = Store::open(&path).unwrap();
    assert_eq!(change(watch.next()).new.unwrap(), "1");
    assert!(watch.next().is_none());
    store.close().unwrap();
    assert!(matches!(store.watch(), Err(Error::Closed { .. })));
}

#[test]
fn a_value_is_dropped_where_no_lock_is_held() {
    #[derive(serde::Serialize, serde::Deserialize)]
    struct Calls {
        #[serde(skip)]
        store: Option<Store>,
    }
    impl Drop for Calls {
        fn drop(&mut self) {
            if let Some(store) = self.store.take() {
                // With the shard or the ring locked this would not come back.
                store.put("calls/k", "from a drop").unwrap();
                store.watch().unwrap();
            }
        }
    }
    let store = Store::in_memory();
    store.put("calls/k", "0").unwrap();
    let calls = store.collection::<Calls>("typed").unwrap();
    let watch = calls.watch().unwrap();
    for round in 0..6000 {
        calls.put("k", Calls { store: (round % 5 == 0).then(|| store.clone()) }).unwrap();
    }
    drop(watch);
    assert_eq!(store.get("calls/k").unwrap().unwrap(), "from a drop");
    calls.delete_all().unwrap();
}

#[cfg(feature = "stream")]
#[test]
fn a_watch_is_a_stream() {
    use futures_core::Stream;
    use std::pin::Pin;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Poll, Wake};

    struct Count(AtomicUsize);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let store = Store::in_memory();
    let mut watch = store.watch().unwrap();
    let woken = Arc::new(Count(AtomicUsize::new(0)));
    let waker = woken.clone().into();
    let mut context = Context::from_waker(&waker);
    let mut poll = || Pin::new(&mut watch).poll_next(&mut context);
    assert!(poll().is_pending() && poll().is_pending());
    store.put("c/a", "1").unwrap();
    assert_eq!(woken.0.load(Ordering::SeqCst), 1, "one wake for one task");
    let Poll::Ready(first) = poll() else { panic!("it was woken for nothing") };
    assert_eq!(change(first).new.unwrap(), "1");
    assert!(poll().is_pending());
    store.close().unwrap();
    assert_eq!(woken.0.load(Ordering::SeqCst), 2);
    assert!(matches!(poll(), Poll::Ready(None)));
}

#[test]
fn who_begins_to_watch_beside_another_is_told_what_it_cannot_have() {
    let store = Store::in_memory();
    for number in 0..5000 {
        store.put(format!("c{number}/m"), "1").unwrap();
    }
    for _ in 0..50 {
        std::thread::scope(|scope| {
            let first = scope.spawn(|| store.watch().unwrap());
            assert!(matches!(store.watch_after(0), Err(Error::Missed { asked: 0, .. })));
            drop(first.join().unwrap());
        });
    }
}
