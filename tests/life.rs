//! The life of a store: what each call says before the load, after it, and after the close; what load and close tell.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use larder::{Durability, Error, Progress, Store};

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

/// The number in a member's file.
fn version(path: &std::path::Path) -> u64 {
    let text = std::fs::read_to_string(path).unwrap();
    text.split("version=").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn the_counter_never_goes_back_across_deletes_and_restarts() {
    let (_dir, path) = temporary();
    let mut last = 0;
    for round in 0..6 {
        let store = Store::open(&path).unwrap();
        store.put("c/m", "v").unwrap();
        store.flush().unwrap();
        let now = version(&path.join("c/m"));
        assert!(now > last, "{now} after {last}");
        last = now + 1; // The delete's.
        store.delete("c/m").unwrap();
        match round % 3 {
            0 => _ = store.close().unwrap(),
            1 => {
                store.delete_all("c").unwrap();
                drop(store);
            }
            _ => {
                store.flush().unwrap();
                // As after a crash: the mark that close would have written is not there.
                let mark = std::fs::read(path.join(".larder/counter")).unwrap();
                store.close().unwrap();
                std::fs::write(path.join(".larder/counter"), mark).unwrap();
            }
        }
    }
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
    while !path.join("artist/daft_punk").exists() {
        std::thread::yield_now();
    }
    let text = std::fs::read_to_string(path.join("artist/daft_punk")).unwrap();
    assert!(text.ends_with("\n{ quality:'epic' }"), "{text}");
    store.delete("artist/daft_punk").unwrap();
    while path.join("artist").exists() {
        std::thread::yield_now();
    }
}

#[test]
fn immediate_is_on_disk_when_the_write_returns() {
    let (_dir, path) = temporary();
    let store = Store::options(&path).durability(Durability::Immediate).open().unwrap();
    store.put("c/m", "v").unwrap();
    assert!(path.join("c/m").exists());
    store.delete("c/m").unwrap();
    assert!(!path.join("c/m").exists());
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
    }
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
