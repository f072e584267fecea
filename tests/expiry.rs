//! Members that expire: from every read at once, from the disk soon after, and at the same moment whatever happens between.

mod lab;

use std::fs;
use std::time::{Duration, UNIX_EPOCH};

use lab::{until, until_at_rest};
use larder::{Durability, Layout, ManualClock, Store};

const LAYOUTS: [Layout; 2] = [Layout::Files, Layout::Packed];

fn clock() -> ManualClock {
    ManualClock::new(UNIX_EPOCH + Duration::from_secs(1_700_000_000))
}

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn open(path: &std::path::Path, clock: &ManualClock, layout: Layout) -> Store {
    Store::options(path).clock(clock).layout(layout).open().unwrap()
}

#[test]
fn what_has_expired_is_gone_from_every_read_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let store = open(&dir.path().join("store"), &clock, Layout::Files);
    store.put("c/stays", "1").unwrap();
    store.put_with_ttl("c/goes", "2", ms(1000)).unwrap();
    store.put_with_ttl("d/alone", "3", ms(1000)).unwrap();
    assert_eq!(store.ttl("c/goes").unwrap(), Some(ms(1000)));
    assert_eq!(store.ttl("c/stays").unwrap(), None);
    clock.advance(ms(999));
    assert_eq!(store.ttl("c/goes").unwrap(), Some(ms(1)));
    assert_eq!((store.len("c").unwrap(), store.get("c/goes").unwrap().unwrap()), (2, "2".into()));

    clock.advance(ms(1));
    assert_eq!(store.get("c/goes").unwrap(), None);
    assert!(!store.contains("c/goes").unwrap());
    assert_eq!(store.ttl("c/goes").unwrap(), None);
    assert_eq!((store.len("c").unwrap(), store.len("d").unwrap()), (1, 0));
    assert_eq!(store.members("c").unwrap(), ["stays"]);
    assert_eq!(store.get_all("c").unwrap().len(), 1);
    assert_eq!(store.iter("c").unwrap().count(), 1);
    assert_eq!(store.collections().unwrap(), ["c"]);
    assert_eq!((store.is_empty("d").unwrap(), store.stats().members), (true, 1));
    assert!(!store.expire("c/goes", ms(1000)).unwrap(), "it comes back to nobody");
    assert!(!store.persist("c/goes").unwrap());
    assert_eq!(store.delete("c/goes").unwrap(), None);
    assert_eq!(store.put("d/alone", "new").unwrap(), None, "what has expired is nobody's previous value");
    assert_eq!(store.get("d/alone").unwrap().unwrap(), "new");
}

#[test]
fn the_same_holds_for_types() {
    let clock = clock();
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("store"), &clock, Layout::Files);
    let numbers = store.collection::<u32>("n").unwrap();
    numbers.put("stays", 1).unwrap();
    numbers.put_with_ttl("goes", 2, ms(5)).unwrap();
    assert_eq!((numbers.ttl("goes"), numbers.ttl("stays"), numbers.ttl("nobody")), (Some(ms(5)), None, None));
    assert!(numbers.expire("stays", ms(7)).unwrap() && !numbers.expire("nobody", ms(7)).unwrap());
    assert!(numbers.persist("goes").unwrap() && !numbers.persist("goes").unwrap());
    clock.advance(ms(7));
    assert_eq!(numbers.get_all().len(), 1);
    assert_eq!((numbers.get("stays"), numbers.len(), numbers.members()), (None, 1, vec!["goes".into()]));
    assert_eq!(numbers.iter().count(), 1);
    assert_eq!(numbers.delete_all().unwrap(), 1);
}

#[test]
fn a_put_without_a_time_to_live_clears_the_old_one() {
    let clock = clock();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let store = open(&path, &clock, Layout::Files);
    store.put_with_ttl("c/a", "1", ms(10)).unwrap();
    store.put("c/a", "2").unwrap();
    clock.advance(ms(20));
    assert_eq!(store.get("c/a").unwrap().unwrap(), "2");
    store.close().unwrap();
    let store = open(&path, &clock, Layout::Files);
    clock.advance(ms(20));
    assert_eq!(store.get("c/a").unwrap().unwrap(), "2");
    assert_eq!(store.ttl("c/a").unwrap(), None);
}

#[test]
fn deadlines_are_points_in_time_across_reopening() {
    for layout in LAYOUTS {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        let clock = clock();
        let store = open(&path, &clock, layout);
        store.put_with_ttl("c/short", "1", ms(1001)).unwrap();
        store.put_with_ttl("c/long", "2", ms(1002)).unwrap();
        store.put("c/later", "3").unwrap();
        store.expire("c/later", ms(1003)).unwrap();
        store.put_with_ttl("c/kept", "4", ms(1000)).unwrap();
        store.persist("c/kept").unwrap();
        store.close().unwrap();

        clock.advance(ms(1000));
        let store = open(&path, &clock, layout);
        assert_eq!(store.len("c").unwrap(), 4, "{layout:?}");
        assert_eq!(store.ttl("c/short").unwrap(), Some(ms(1)));
        // Opening as a type moves members, and not their deadlines.
        let typed = store.collection::<u32>("c").unwrap();
        assert_eq!(typed.ttl("long"), Some(ms(2)));
        store.close().unwrap();

        clock.advance(ms(1));
        let store = open(&path, &clock, layout);
        let mut members = store.members("c").unwrap();
        members.sort();
        assert_eq!(members, ["kept", "later", "long"], "{layout:?}: what expired while it was closed is gone");
        clock.advance(ms(1));
        assert!(!store.contains("c/long").unwrap());
        clock.advance(ms(1));
        assert_eq!(store.members("c").unwrap(), ["kept"]);
        drop(store);
        let store = open(&path, &clock, layout);
        assert_eq!((store.members("c").unwrap(), store.ttl("c/kept").unwrap()), (vec!["kept".into()], None));
    }
}

#[test]
fn the_file_goes_soon_after() {
    let clock = clock();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let store = open(&path, &clock, Layout::Files);
    store.put_with_ttl("c/a", "1", ms(10)).unwrap();
    until_at_rest(&store);
    let first = fs::read_to_string(path.join("c/a")).unwrap();
    assert!(first.contains(" deadline=1700000000010 "), "{first}");
    clock.advance(ms(10));
    until("the file is gone", || {
        store.flush().unwrap();
        !path.join("c/a").exists()
    });
    store.close().unwrap();
}

#[test]
fn the_clock_of_the_system_does_it_too() {
    let store = Store::in_memory();
    store.put_with_ttl("c/now", "1", Duration::ZERO).unwrap();
    assert_eq!(store.get("c/now").unwrap(), None);
    store.put_with_ttl("c/soon", "1", ms(20)).unwrap();
    store.put_with_ttl("c/never", "1", Duration::MAX).unwrap();
    store.put("c/touched", "1").unwrap();
    store.expire("c/touched", ms(10)).unwrap();
    until("the short-lived ones are gone", || store.len("c").unwrap() == 1);
    assert_eq!(store.members("c").unwrap(), ["never"]);
    assert!(store.ttl("c/never").unwrap().unwrap() > Duration::from_secs(1 << 40));
}

#[test]
fn many_expire_from_a_collection_that_has_split() {
    let clock = clock();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let store = open(&path, &clock, Layout::Packed);
    for number in 0..20_000u32 {
        let (key, value) = (format!("c/{number}"), number.to_string());
        match number % 4 {
            0 => store.put(&key, value).unwrap(),
            other => store.put_with_ttl(&key, value, ms(u64::from(other) * 100)).unwrap(),
        };
    }
    for (moment, left) in [(99, 20_000), (1, 15_000), (100, 10_000), (100, 5_000)] {
        clock.advance(ms(moment));
        assert_eq!(store.len("c").unwrap(), left);
        assert_eq!(store.members("c").unwrap().len(), left);
    }
    store.close().unwrap();
    let store = open(&path, &clock, Layout::Packed);
    assert_eq!(store.len("c").unwrap(), 5_000);
    assert_eq!(store.get("c/4").unwrap().unwrap(), "4");
}

#[test]
fn copies_keep_deadlines() {
    for layout in LAYOUTS {
        let dir = tempfile::tempdir().unwrap();
        let (path, copy) = (dir.path().join("store"), dir.path().join("copy"));
        let clock = clock();
        let store = open(&path, &clock, layout);
        store.put("c/stays", "1").unwrap();
        store.put_with_ttl("c/goes", "2", ms(100)).unwrap();
        store.backup(&copy).unwrap();
        let mut lines = Vec::new();
        store.export(&mut lines).unwrap();
        let text = String::from_utf8(lines).unwrap();
        assert!(text.contains(r#""value":"2","deadline":1700000000100}"#), "{text}");
        store.close().unwrap();

        let other = if layout == Layout::Files { Layout::Packed } else { Layout::Files };
        larder::convert(&path, other).unwrap();
        let imported = Store::options(dir.path().join("imported")).clock(&clock).open().unwrap();
        assert_eq!(imported.import(text.as_bytes()).unwrap(), 2);
        for store in [open(&path, &clock, other), open(&copy, &clock, layout), imported] {
            assert_eq!((store.ttl("c/goes").unwrap(), store.ttl("c/stays").unwrap()), (Some(ms(100)), None));
        }
    }
}

#[test]
fn a_deadline_that_is_none_is_told_when_it_is_imported() {
    let store = Store::in_memory();
    for (deadline, says) in
        [("-1", "milliseconds"), ("18446744073709551615", "milliseconds"), ("\"x\"", "milliseconds")]
    {
        let line = format!(r#"{{"key":"c/a","value":"1","deadline":{deadline}}}"#);
        let error = store.import(line.as_bytes()).unwrap_err().to_string();
        let source = std::error::Error::source(&store.import(line.as_bytes()).unwrap_err()).unwrap().to_string();
        assert!(error.contains('1') && source.contains(says), "{error}: {source}");
    }
    assert!(!store.contains("c/a").unwrap());
}

#[test]
fn a_cleared_collection_forgets_its_deadlines() {
    let clock = clock();
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("store"), &clock, Layout::Files);
    store.put_with_ttl("c/a", "1", ms(10)).unwrap();
    assert_eq!(store.delete_all("c").unwrap(), 1);
    store.put("c/a", "2").unwrap();
    store.put_with_ttl("c/b", "2", ms(10)).unwrap();
    store.delete("c/b").unwrap();
    store.put("c/b", "3").unwrap();
    clock.advance(ms(10));
    store.flush().unwrap();
    assert_eq!(store.len("c").unwrap(), 2);
}

#[test]
fn deadlines_and_what_has_expired_survive_a_crash() {
    for layout in LAYOUTS {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        let clock = clock();
        let options = || Store::options(&path).clock(&clock).layout(layout).durability(Durability::Immediate);
        let store = options().open().unwrap();
        store.put_with_ttl("c/goes", "1", ms(100)).unwrap();
        store.put_with_ttl("c/stays", "2", ms(200)).unwrap();
        store.put_with_ttl("c/kept", "3", ms(100)).unwrap();
        store.persist("c/kept").unwrap();
        store.put("c/touched", "4").unwrap();
        store.expire("c/touched", ms(300)).unwrap();
        let crashed = |name: &str| {
            let image = dir.path().join(name);
            match layout {
                Layout::Files => lab::as_after_a_crash(&path, &image),
                _ => lab::as_a_packed_store_after_a_crash(&path, &image),
            }
            open(&image, &clock, layout)
        };
        let before = crashed("before");
        assert_eq!(before.len("c").unwrap(), 4);
        clock.advance(ms(100));
        // It was open when they expired; the other was not, and was told of nothing.
        until("the deletes are durable", || {
            store.flush().unwrap();
            store.stats().members == 3 && store.stats().dirty == 0
        });
        for found in [before, crashed("after"), crashed("again")] {
            let mut members = found.members("c").unwrap();
            members.sort();
            assert_eq!(members, ["kept", "stays", "touched"], "{layout:?}");
            let ttl = |member: &str| found.ttl(format!("c/{member}")).unwrap();
            assert_eq!((ttl("kept"), ttl("stays"), ttl("touched")), (None, Some(ms(100)), Some(ms(200))));
        }
    }
}

/// A value whose end calls the store, or panics.
#[derive(serde::Serialize, serde::Deserialize)]
struct Ends {
    number: u32,
    #[serde(skip)]
    calls: Option<Store>,
    panics: bool,
}

impl Drop for Ends {
    fn drop(&mut self) {
        if let Some(store) = &self.calls {
            // With the shard's lock held this would not come back.
            assert!(store.len("v").is_ok());
        }
        assert!(!self.panics, "on purpose");
    }
}

#[test]
fn what_has_expired_is_dropped_where_no_lock_is_held() {
    let store = Store::in_memory();
    let values = store.collection::<Ends>("v").unwrap();
    let value = |number| Ends { number, calls: Some(store.clone()), panics: false };
    for number in 0..300 {
        values.put_with_ttl("k", value(number), Duration::ZERO).unwrap();
        assert!(values.put("k", value(number)).unwrap().is_none());
        values.put_with_ttl("t", value(number), Duration::ZERO).unwrap();
        store.transaction(|tx| tx.collection(&values)?.put("t", value(number))).unwrap();
    }
    assert_eq!((values.len(), values.get("k").unwrap().number), (2, 299));
}

#[test]
fn a_value_whose_end_panics_keeps_no_other_from_ending() {
    let clock = clock();
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("store"), &clock, Layout::Files);
    let values = store.collection::<Ends>("v").unwrap();
    for number in 0..100 {
        values
            .put_with_ttl(number.to_string(), Ends { number, calls: None, panics: number % 10 == 3 }, ms(10))
            .unwrap();
    }
    clock.advance(ms(10));
    until("all of them are removed", || store.stats().bytes == 0);
    store.flush().unwrap();
    store.close().unwrap();
}

#[test]
fn what_expired_while_the_store_was_closed_is_removed_and_need_not_decode() {
    for layout in LAYOUTS {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        let clock = clock();
        let store = open(&path, &clock, layout);
        for number in 0..500 {
            store.put_with_ttl(format!("c/{number}"), "no number", ms(10)).unwrap();
        }
        store.put("c/stays", "1").unwrap();
        store.close().unwrap();
        clock.advance(ms(10));
        for _ in 0..3 {
            let store = open(&path, &clock, layout);
            let typed = store.collection::<u32>("c").unwrap();
            assert_eq!((typed.members(), typed.len()), (vec!["stays".into()], 1));
            // A name of 5 bytes, and a number of 4.
            until("all of them are removed", || store.stats().bytes == 9);
            store.close().unwrap();
        }
    }
}
