//! The life of a store: what each call says before the load, after it, and after the close; what load and close tell.

mod lab;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lab::{LONGEST, as_after_a_crash, assert_only_files, member_files, names, segments, until, until_at_rest};
use larder::{Durability, Error, Health, Progress, Stage, Store};

fn temporary() -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("music");
    (dir, path)
}

/// Every call that can fail, with its error.
fn errors(store: &Store) -> Vec<(&'static str, Option<Error>)> {
    vec![
        ("get", store.get("c/m").err()),
        ("put", store.put("c/m", "v").err()),
        ("delete", store.delete("c/m").err()),
        ("get_all", store.get_all("c").err()),
        ("delete_all", store.delete_all("c").err()),
        ("contains", store.contains("c/m").err()),
        ("members", store.members("c").err()),
        ("len", store.len("c").err()),
        ("is_empty", store.is_empty("c").err()),
        ("iter", store.iter("c").err()),
        ("collections", store.collections().err()),
        ("collection", store.collection::<u32>("c").err()),
        ("flush", store.flush().err()),
        ("close", store.close().err()),
    ]
}

#[test]
fn new_creates_nothing_and_load_does() {
    let (_dir, path) = temporary();
    let store = Store::new(&path).unwrap();
    assert!(!path.exists());
    for (call, error) in errors(&store) {
        assert!(matches!(error, Some(Error::NotLoaded { .. })), "{call}: {error:?}");
    }
    assert_eq!(store.stats().members, 0);
    assert!(!path.exists());
    let report = store.load().unwrap();
    assert_eq!((report.members, report.collections), (0, 0));
    assert!(path.join(".larder/lock").exists());
    assert!(matches!(store.load(), Err(Error::AlreadyLoaded { .. })));
    assert_eq!(store.load_report(), report);
}

#[test]
fn after_close_every_call_says_closed() {
    let (_dir, path) = temporary();
    for store in [Store::open(&path).unwrap(), Store::in_memory()] {
        store.put("c/m", "v").unwrap();
        let report = store.close().unwrap();
        assert_eq!((report.members, report.collections), (1, 1));
        for (call, error) in errors(&store) {
            assert!(matches!(error, Some(Error::Closed { .. })), "{call}: {error:?}");
        }
        assert!(matches!(store.load(), Err(Error::Closed { .. })));
        assert_eq!(store.stats().members, 1);
    }
}

#[test]
fn put_and_delete_return_the_previous_value() {
    let (_dir, path) = temporary();
    for store in [Store::open(&path).unwrap(), Store::in_memory()] {
        assert_eq!(store.put("a/m", "1").unwrap(), None);
        assert_eq!(store.put("a/m", &b"2"[..]).unwrap().unwrap(), "1");
        assert_eq!(store.put("a/m", String::from("3")).unwrap().unwrap(), "2");
        assert_eq!(store.put(String::from("a/m"), vec![4u8]).unwrap().unwrap(), "3");
        let value = store.get("a/m").unwrap().unwrap();
        assert_eq!(store.put("a/n", value).unwrap(), None);
        assert_eq!(store.delete("a/m").unwrap().unwrap(), [4]);
        assert_eq!(store.delete("a/m").unwrap(), None);
        assert_eq!(store.put("a/m", "5").unwrap(), None, "a tombstone is no value");
        assert_eq!(store.delete_all("a").unwrap(), 2);
        assert_eq!(store.delete_all("a").unwrap(), 0);
        assert_eq!(store.put("a/m", "6").unwrap(), None);
        assert_eq!(store.collections().unwrap(), ["a"]);
    }
}

#[test]
fn a_value_outlives_what_happens_to_its_member() {
    let store = Store::in_memory();
    store.put("a/m", "before").unwrap();
    let value = store.get("a/m").unwrap().unwrap();
    store.put("a/m", "after").unwrap();
    store.delete_all("a").unwrap();
    store.close().unwrap();
    drop(store);
    assert_eq!(value, "before");
}

#[test]
fn in_memory_is_loaded_and_never_dirty() {
    let store = Store::in_memory();
    for number in 0..1000 {
        store.put(format!("c/{number}"), "v").unwrap();
    }
    store.delete("c/1").unwrap();
    let stats = store.stats();
    assert_eq!((stats.members, stats.dirty, stats.unsaved_bytes, stats.oldest_dirty), (999, 0, 0, None));
    store.flush().unwrap();
}

#[test]
fn stats_say_what_is_there_and_what_waits() {
    let (_dir, path) = temporary();
    let store = Store::open(&path).unwrap();
    store.put("c/a", "12345").unwrap();
    store.put("c/b", "1").unwrap();
    store.put("d/a", "").unwrap();
    store.delete("c/b").unwrap();
    store.flush().unwrap();
    let stats = store.stats();
    assert_eq!((stats.members, stats.collections, stats.bytes), (2, 2, 7));
    assert_eq!((stats.dirty, stats.unsaved_bytes, stats.oldest_dirty), (0, 0, None));
    until_at_rest(&store);
    assert_eq!(
        member_files(&path),
        [path.join("c/a"), path.join("d/a")],
        "what waits in the journal has gone to files"
    );
    store.put("d/b", "").unwrap();
    store.flush().unwrap();
    until("it has", || path.join("d/b").exists());
    store.close().unwrap();
    assert_eq!(store.stats().journal_bytes, 0);
}

#[test]
fn load_reports_progress_on_the_thread_that_loads_and_may_be_called_back() {
    let (_dir, path) = temporary();
    let store = Store::open(&path).unwrap();
    for number in 0..1000 {
        store.put(format!("c{}/{number}", number % 7), "v").unwrap();
    }
    store.close().unwrap();

    let seen: Arc<Mutex<Vec<Progress>>> = Arc::default();
    let handle: Arc<Mutex<Option<Store>>> = Arc::default();
    let (seen_by_callback, handle_in_callback) = (seen.clone(), handle.clone());
    let loading = std::thread::current().id();
    let store = Store::options(&path)
        .on_progress(move |progress| {
            assert_eq!(std::thread::current().id(), loading);
            if let Some(store) = &*handle_in_callback.lock().unwrap() {
                assert!(matches!(store.load(), Err(Error::AlreadyLoaded { .. })));
                assert!(matches!(store.get("c/m"), Err(Error::NotLoaded { .. })));
                assert!(matches!(store.close(), Err(Error::NotLoaded { .. })));
            }
            seen_by_callback.lock().unwrap().push(progress);
        })
        .build()
        .unwrap();
    *handle.lock().unwrap() = Some(store.clone());
    store.load().unwrap();
    *handle.lock().unwrap() = None;
    let seen = seen.lock().unwrap();
    assert!(seen.is_sorted_by_key(|progress| progress.done));
    assert!(seen.iter().all(|progress| progress.stage == Stage::Load));
    assert_eq!((seen[0].done, seen[0].total), (0, 1000));
    assert_eq!(seen.last().unwrap().done, 1000);
}

#[test]
fn a_progress_callback_that_panics_leaves_a_store_that_can_be_loaded() {
    let (_dir, path) = temporary();
    let mut first = true;
    let store = Store::options(&path)
        .on_progress(move |_| assert!(!std::mem::take(&mut first), "it panicked"))
        .build()
        .unwrap();
    let loading = store.clone();
    assert!(std::thread::spawn(move || loading.load().is_ok()).join().is_err());
    assert!(matches!(store.get("c/m"), Err(Error::NotLoaded { .. })));
    store.load().unwrap();
}

const SOME: usize = 1000;

/// Puts this many times `SOME` members, and makes each lot durable by itself.
fn put_many(store: &Store, rounds: usize) {
    for number in 0..rounds * SOME {
        store.put(format!("c{}/{number}", number % 7), number.to_string()).unwrap();
        if number % SOME == 0 {
            store.flush().unwrap();
        }
    }
    store.flush().unwrap();
}

#[track_caller]
fn assert_has_many(store: &Store, rounds: usize) {
    assert_eq!(store.stats().members, rounds * SOME);
    for number in 0..rounds * SOME {
        assert_eq!(store.get(format!("c{}/{number}", number % 7)).unwrap().unwrap(), number.to_string());
    }
}

#[test]
fn close_reports_progress_of_what_is_left_in_the_journal_on_the_thread_that_closes() {
    // As much as it takes for a close to take a while.
    for rounds in (0..10).map(|double| 4 << double) {
        let (_dir, path) = temporary();
        let seen: Arc<Mutex<Vec<Progress>>> = Arc::default();
        let handle: Arc<Mutex<Option<Store>>> = Arc::default();
        let (seen_by_callback, handle_in_callback) = (seen.clone(), handle.clone());
        let closing = std::thread::current().id();
        let store = Store::options(&path)
            .on_progress(move |progress| {
                assert_eq!(std::thread::current().id(), closing);
                if let Some(store) = &*handle_in_callback.lock().unwrap() {
                    assert!(matches!(store.close(), Err(Error::Closed { .. })));
                    assert!(matches!(store.put("c0/0", "v"), Err(Error::Closed { .. })));
                }
                seen_by_callback.lock().unwrap().push(progress);
            })
            // So that it makes two segments.
            .max_journal((rounds * SOME * 40) as u64)
            .open()
            .unwrap();
        put_many(&store, rounds);
        *handle.lock().unwrap() = Some(store.clone());
        seen.lock().unwrap().clear();
        let report = store.close().unwrap();
        assert_eq!(report.members, rounds * SOME);
        *handle.lock().unwrap() = None;
        assert_only_files(&path);
        assert_eq!(member_files(&path).len(), rounds * SOME);

        let seen = seen.lock().unwrap();
        assert!(seen.iter().all(|progress| progress.stage == Stage::Close && progress.done <= progress.total));
        assert!(seen.is_sorted_by_key(|progress| progress.done));
        if seen.iter().any(|progress| 0 < progress.done && progress.done < progress.total) {
            return;
        }
    }
    panic!("no close has shown any progress");
}

#[test]
fn a_progress_callback_that_panics_in_close_leaves_a_store_that_is_closed_or_can_be() {
    for rounds in (0..10).map(|double| 4 << double) {
        let (_dir, path) = temporary();
        let store = Store::options(&path)
            .on_progress(move |progress| assert!(progress.stage != Stage::Close, "it panicked"))
            .open()
            .unwrap();
        put_many(&store, rounds);
        let closing = store.clone();
        if std::thread::spawn(move || closing.close()).join().is_ok() {
            // It was over too soon.
            continue;
        }
        // It may have been too late to give the close up.
        match store.put("c0/0", "0").and_then(|_| store.close()) {
            Ok(report) => assert_eq!(report.members, rounds * SOME),
            Err(error) => assert!(matches!(error, Error::Closed { .. }), "{error}"),
        }
        assert!(matches!(store.get("c0/0"), Err(Error::Closed { .. })));
        assert_only_files(&path);
        let store = Store::open(&path).unwrap();
        assert_has_many(&store, rounds);
        return;
    }
    panic!("no close has shown any progress");
}

#[test]
fn what_a_drop_leaves_in_the_journal_is_replayed_by_the_next_load() {
    // More and more, until it is more than a drop waits for.
    for rounds in (0..10).map(|double| 2 << double) {
        let (_dir, path) = temporary();
        let store = Store::open(&path).unwrap();
        put_many(&store, rounds);
        drop(store);
        let (left, files) = (segments(&path).len(), member_files(&path).len());
        let store = Store::open(&path).unwrap();
        let report = store.load_report();
        assert_eq!((report.members, &report.quarantined[..]), (rounds * SOME, &[][..]));
        assert_eq!(report.replayed, rounds * SOME - files, "what is in no file is in the journal");
        assert_has_many(&store, rounds);
        if report.replayed == 0 {
            continue;
        }
        assert!(left > 0);
        store.close().unwrap();
        assert_only_files(&path);
        assert_eq!(member_files(&path).len(), rounds * SOME);
        let store = Store::open(&path).unwrap();
        assert_eq!(store.load_report().replayed, 0);
        assert_has_many(&store, rounds);
        return;
    }
    panic!("the files follow faster than anything can be written");
}

/// The number in a member's file.
fn version(path: &Path) -> u64 {
    let text = std::fs::read_to_string(path).unwrap();
    text.split("version=").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn the_counter_never_goes_back_across_deletes_and_restarts() {
    let (_dir, mut path) = temporary();
    let mut last = 0;
    for round in 0..9 {
        let store = Store::open(&path).unwrap();
        store.put("c/m", "v").unwrap();
        store.close().unwrap();
        let now = version(&path.join("c/m"));
        assert!(now > last, "{now} after {last}");
        let store = Store::open(&path).unwrap();
        store.delete("c/m").unwrap();
        last = now + 1; // The delete's.
        match round % 3 {
            0 => _ = store.close().unwrap(),
            1 => {
                store.delete_all("c").unwrap();
                drop(store);
            }
            _ => {
                store.flush().unwrap();
                // Its journal alone knows of the delete, or, if the files have followed, of its number.
                let crashed = path.with_extension(round.to_string());
                as_after_a_crash(&path, &crashed);
                path = crashed;
            }
        }
    }
}

#[test]
fn a_counter_that_is_behind_the_journal_is_not_believed() {
    let (dir, path) = temporary();
    let store = Store::open(&path).unwrap();
    store.put("c/m", "v").unwrap();
    store.close().unwrap();
    let store = Store::open(&path).unwrap();
    for _ in 0..100 {
        store.put("c/m", "v").unwrap();
        store.delete("c/m").unwrap();
    }
    // At rest, the journal has the number still, and nothing else does.
    until_at_rest(&store);
    let crashed = dir.path().join("crashed");
    as_after_a_crash(&path, &crashed);
    assert_eq!((segments(&crashed).len(), member_files(&crashed).len()), (1, 0));
    let store = Store::open(&crashed).unwrap();
    store.put("c/m", "v").unwrap();
    store.close().unwrap();
    let counted = version(&crashed.join("c/m"));
    assert!(counted > 201, "{counted}");
    assert!(
        std::fs::read_to_string(crashed.join(".larder/counter"))
            .unwrap()
            .starts_with(&format!("larder counter {counted} "))
    );
}

#[test]
fn close_then_load_gives_back_the_counter_exactly() {
    let (_dir, path) = temporary();
    let store = Store::open(&path).unwrap();
    store.put("c/a", "v").unwrap();
    store.close().unwrap();
    let first = version(&path.join("c/a"));
    let store = Store::open(&path).unwrap();
    store.put("c/a", "v").unwrap();
    store.close().unwrap();
    assert_eq!(version(&path.join("c/a")), first + 1);
}

#[test]
fn each_write_is_on_disk_soon_without_being_asked() {
    let (_dir, path) = temporary();
    let store = Store::open(&path).unwrap();
    store.put("artist/daft_punk", "{ quality:'epic' }").unwrap();
    until("it is stored", || path.join("artist/daft_punk").exists());
    let text = std::fs::read_to_string(path.join("artist/daft_punk")).unwrap();
    assert!(text.ends_with("\n{ quality:'epic' }"), "{text}");
    store.delete("artist/daft_punk").unwrap();
    until("nothing is left of it", || !path.join("artist").exists());
}

#[test]
fn immediate_is_on_disk_when_the_write_returns() {
    let (dir, path) = temporary();
    let store = Store::options(&path).durability(Durability::Immediate).open().unwrap();
    let numbers = store.collection::<u32>("n").unwrap();
    let steps: [(&dyn Fn(), &[&str]); 5] = [
        (&|| _ = store.put("c/m", "v").unwrap(), &["c/m"]),
        (&|| _ = numbers.put("one", 1).unwrap(), &["c/m", "n/one"]),
        (&|| _ = store.delete("c/m").unwrap(), &["n/one"]),
        (&|| _ = store.put("c/m", "v").unwrap(), &["c/m", "n/one"]),
        (&|| _ = store.delete_all("n").unwrap(), &["c/m"]),
    ];
    for (number, (step, expected)) in steps.into_iter().enumerate() {
        step();
        let crashed = dir.path().join(number.to_string());
        as_after_a_crash(&path, &crashed);
        let store = Store::open(&crashed).unwrap();
        let found = store.collections().unwrap().into_iter().flat_map(|collection| {
            let members = store.members(&collection).unwrap();
            members.into_iter().map(move |member| format!("{collection}/{member}"))
        });
        assert_eq!(found.collect::<Vec<_>>(), expected);
    }
}

#[test]
fn a_member_that_the_files_do_not_take_is_durable_all_the_same_and_told_until_it_is_stored() {
    for durability in [Durability::Buffered, Durability::default(), Durability::Immediate] {
        let (dir, path) = temporary();
        let store = Store::options(&path).durability(durability).open().unwrap();
        let blocked = store.path().join("c/bad");
        std::fs::create_dir_all(&blocked).unwrap();
        store.put("c/good", "1").unwrap();
        store.put("c/bad", "2").unwrap();
        store.flush().unwrap();
        until("health tells of it", || !store.health().is_well());
        let Health::Failing { problems, .. } = store.health() else { panic!("well?") };
        assert!(matches!(&problems[..], [Error::Io { path, .. }] if *path == blocked), "{problems:?}");
        assert!(store.stats().journal_bytes > 0);
        assert!(path.join("c/good").is_file());
        store.flush().expect("health is there to tell of the files");
        for _ in 0..2 {
            assert!(matches!(store.close(), Err(Error::Io { path, .. }) if path == blocked));
        }

        let crashed = dir.path().join("crashed");
        as_after_a_crash(&path, &crashed);
        let found = Store::open(&crashed).unwrap();
        assert_eq!(found.get("c/bad").unwrap().unwrap(), "2", "it was durable");
        assert!(found.load_report().replayed > 0 && found.stats().journal_bytes > 0);
        drop(found);

        std::fs::remove_dir(&blocked).unwrap();
        until("all is stored", || store.health().is_well() && store.stats().journal_bytes == 0);
        assert!(blocked.is_file());
        store.close().unwrap();
        assert_only_files(&path);
    }
}

#[test]
fn a_journal_at_its_bound_makes_writes_wait_in_ram_and_then_refuses_them_until_the_files_follow() {
    const KIB: usize = 1024;
    let (_dir, path) = temporary();
    let options = Store::options(&path).max_journal(64 * KIB as u64).max_unsaved(128 * KIB);
    let store = options.write_timeout(LONGEST).open().unwrap();
    let blocked = store.path().join("c/bad");
    std::fs::create_dir_all(&blocked).unwrap();
    store.put("c/bad", "1").unwrap();
    let mut taken = 0;
    let refused = loop {
        match store.put(format!("c/{taken}"), vec![b'x'; KIB]) {
            Ok(_) => taken += 1,
            Err(error) => break error,
        }
        assert!(taken < 10_000, "there is no bound");
    };
    assert!(matches!(refused, Error::Degraded { .. }), "{refused}");
    assert!(refused.to_string().contains(blocked.to_str().unwrap()), "{refused}");
    assert!(store.get(format!("c/{taken}")).unwrap().is_none(), "what was refused is not there");
    assert!(taken > 128 + 32, "{taken}");
    assert_eq!((store.len("c").unwrap(), store.get("c/bad").unwrap().unwrap()), (taken + 1, "1".into()));
    assert!(store.stats().unsaved_bytes <= 128 * KIB);
    // The journal may be larger by a segment and a batch.
    for failed in [store.flush().err(), store.close().err()] {
        let failed = failed.expect("nothing that can be done");
        assert!(failed.to_string().contains(blocked.to_str().unwrap()), "{failed}");
    }
    assert!(!store.health().is_well());

    std::fs::remove_dir(&blocked).unwrap();
    // Nobody asks.
    until("all is stored", || {
        let stats = store.stats();
        store.health().is_well() && (stats.dirty, stats.unsaved_bytes, stats.journal_bytes) == (0, 0, 0)
    });
    store.put("c/again", "2").unwrap();
    store.close().unwrap();
    assert_only_files(&path);
    let store = Store::open(&path).unwrap();
    assert_eq!((store.len("c").unwrap(), store.load_report().replayed), (taken + 2, 0));
}

#[test]
fn a_journal_of_any_size_takes_values_of_any_size() {
    for max_journal in [0, 1, 10_000, u64::MAX] {
        let (_dir, path) = temporary();
        let store = Store::options(&path).max_journal(max_journal).open().unwrap();
        for number in 0..20 {
            store.put(format!("c/{number}"), vec![b'x'; number * 3000]).unwrap();
            store.delete(format!("c/{}", number / 2)).unwrap();
            if number % 4 == 0 {
                store.flush().unwrap();
            }
        }
        store.put("c/large", vec![b'x'; 9 << 20]).unwrap();
        store.put("c/after", "v").unwrap();
        let members = store.len("c").unwrap();
        store.close().unwrap();
        assert_only_files(&path);
        let store = Store::open(&path).unwrap();
        assert_eq!(store.len("c").unwrap(), members);
        assert_eq!(store.get("c/large").unwrap().unwrap().len(), 9 << 20);
    }
}

#[test]
fn the_lock_is_free_when_the_last_handle_has_gone_whatever_could_not_be_stored() {
    let (_dir, path) = temporary();
    for round in 0..20 {
        let store = Store::open(&path).unwrap();
        store.put("c/good", round.to_string()).unwrap();
        std::fs::create_dir_all(path.join("c/bad")).unwrap();
        store.put("c/bad", "1").unwrap();
        drop(store);
        let store = Store::open(&path).unwrap();
        assert_eq!(store.get("c/good").unwrap().unwrap(), round.to_string());
        assert_eq!(store.get("c/bad").unwrap().unwrap(), "1", "what could not be stored is in the journal");
    }
    std::fs::remove_dir(path.join("c/bad")).unwrap();
    Store::open(&path).unwrap().close().unwrap();
    assert_only_files(&path);
    assert_eq!(names(&path.join("c")), ["bad", "good"]);
}

#[test]
fn every_limit_may_be_as_large_or_as_small_as_there_is() {
    for time in [Duration::ZERO, Duration::MAX] {
        for bytes in [0, usize::MAX] {
            let (_dir, path) = temporary();
            let options = Store::options(&path).durability(Durability::Interval(time)).max_unsaved(bytes);
            let store = options.write_timeout(Duration::MAX).stall_timeout(Duration::MAX).open().unwrap();
            for number in 0..20 {
                store.put(format!("c/{number}"), "v").unwrap();
            }
            store.flush().unwrap();
            store.close().unwrap();
        }
    }
}

#[test]
fn clearing_a_collection_leaves_what_was_put_after_it() {
    let (_dir, path) = temporary();
    let store = Store::open(&path).unwrap();
    for round in 0..20 {
        for number in 0..50 {
            store.put(format!("c/{number}"), format!("{round}")).unwrap();
        }
        assert_eq!(store.delete_all("c").unwrap(), if round == 0 { 50 } else { 51 });
        store.put("c/0", "after").unwrap();
        store.put("c/after", "clear").unwrap();
        store.delete("c/0").unwrap();
        store.put("c/zero", "0").unwrap();
        store.delete("c/zero").unwrap();
    }
    store.close().unwrap();
    let store = Store::open(&path).unwrap();
    assert_eq!(store.members("c").unwrap(), ["after"]);
}

#[test]
fn keys_and_collections_in_each_others_places_are_refused() {
    let store = Store::in_memory();
    for key in ["", "artist", "/m", "c/", "./m", "../m"] {
        assert!(matches!(store.get(key), Err(Error::InvalidKey { .. })), "{key}");
        assert!(matches!(store.put(key, ""), Err(Error::InvalidKey { .. })), "{key}");
        assert!(matches!(store.delete(key), Err(Error::InvalidKey { .. })), "{key}");
    }
    for collection in ["", ".", "..", "c/m"] {
        assert!(matches!(store.get_all(collection), Err(Error::InvalidKey { .. })), "{collection}");
        assert!(matches!(store.delete_all(collection), Err(Error::InvalidKey { .. })), "{collection}");
        assert!(matches!(store.collection::<u8>(collection), Err(Error::InvalidKey { .. })), "{collection}");
    }
    let typed = store.collection::<u8>("c").unwrap();
    assert!(matches!(typed.put("", 1), Err(Error::InvalidKey { .. })));
    assert!(matches!(typed.put("m".repeat(larder::MAX_MEMBER + 1), 1), Err(Error::InvalidKey { .. })));
    assert!(typed.get("").is_none());
}

#[test]
fn handles_are_shared_between_threads() {
    fn shared<T: Send + Sync + Clone + 'static>() {}
    shared::<Store>();
    shared::<larder::Collection<u32>>();
    shared::<larder::Value>();
    shared::<larder::Member>();
    shared::<Error>();
}
