//! Every operation of the file system fails in turn, once and from then on: the store says so, serves what it has,
//! and heals when the fault goes.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Files;
use crate::backend::Packed;
use crate::error::{Error, Result};
use crate::fs::fault::{Fault, Faulty, Trap};
use crate::options::Options;
use crate::store::Store;

type Model = BTreeMap<String, String>;

struct Run {
    store: Store,
    fs: Arc<Faulty>,
    model: Model,
}

impl Run {
    fn put(&mut self, key: &str, value: &str) {
        self.store.put(key, value).unwrap();
        self.model.insert(key.into(), value.into());
    }

    fn delete(&mut self, key: &str) {
        self.store.delete(key).unwrap();
        self.model.remove(key);
    }

    fn clear(&mut self, collection: &str) {
        self.store.delete_all(collection).unwrap();
        let start = format!("{collection}/");
        self.model.retain(|key, _| !key.starts_with(&start));
    }

    /// A flush succeeds, or it fails with a path and leaves the store failing; RAM is right in any case.
    fn flush(&mut self, fault: Fault) {
        if let Err(error) = self.store.flush() {
            assert!(self.fs.struck(), "{error}");
            assert!(matches!(&error, Error::Io { path, .. } if path.is_absolute()), "{error}");
            if fault.sticky {
                assert!(!self.store.health().is_well(), "{error}");
            } else {
                self.store.flush().unwrap();
            }
        }
        self.agree();
    }

    fn agree(&self) {
        for (key, value) in &self.model {
            assert_eq!(self.store.get(key).unwrap().unwrap(), value.as_str());
        }
        let mut found = Model::new();
        for collection in self.store.collections().unwrap() {
            for (member, value) in self.store.get_all(&collection).unwrap() {
                found.insert(format!("{collection}/{member}"), value.to_str().unwrap().into());
            }
        }
        assert_eq!(found, self.model, "fault {:?}", self.fs);
        assert_eq!(self.store.stats().members, self.model.len());
    }
}

/// Everything a store does, with `fault` in it. False when the fault was never reached.
fn run(path: &Path, fault: Fault) -> bool {
    let fs = Faulty::new(fault);
    let files = Files::on(fs.clone(), path).unwrap_or_else(|error| {
        assert!(matches!(&error, Error::Io { .. }), "{error}");
        fs.lift();
        Files::on(fs.clone(), path).unwrap()
    });
    let store = Store::options(path).backend(files).build().unwrap();
    if let Err(error) = store.load() {
        assert!(matches!(&error, Error::Io { .. }), "{error}");
        fs.lift();
        store.load().unwrap();
    }
    assert_eq!(store.load_report().quarantined, [], "a fault is no damage");
    let mut model = Model::new();
    for collection in store.collections().unwrap() {
        for (member, value) in store.get_all(&collection).unwrap() {
            model.insert(format!("{collection}/{member}"), value.to_str().unwrap().into());
        }
    }
    assert_eq!(model, start(), "nothing is lost to a load that failed");

    let mut run = Run { store, fs, model };
    run.put("a/1", "one");
    run.put("a/2", "two");
    run.put("A/1", "one");
    run.flush(fault);
    run.put("a/1", "another");
    run.delete("a/2");
    run.clear("b");
    run.put("b/after", "the clear");
    run.flush(fault);
    // More than are synced one by one.
    for number in 0..20 {
        run.put(&format!("many{number}/x"), "x");
    }
    run.flush(fault);
    if let Err(error) = run.store.close() {
        assert!(run.fs.struck(), "{error}");
        run.put("a/3", "still open");
        run.fs.lift();
        run.flush(fault);
        run.store.close().unwrap();
    }
    let struck = run.fs.struck();
    let store = Store::open(path).unwrap();
    assert_eq!(store.load_report().quarantined, []);
    Run { store, fs: run.fs, model: run.model }.agree();
    struck
}

/// More than a segment holds comes behind what was taken and is not synced, so that a batch has to be. False when the fault
/// was never reached.
fn fill_a_segment(path: &Path, packed: bool, fault: Fault) -> bool {
    let fs = Faulty::new(fault);
    let options = Store::options(path);
    let opened = match packed {
        true => Packed::on(fs.clone(), path).and_then(|packed| options.backend(packed).open()),
        false => Files::on(fs.clone(), path).and_then(|files| options.backend(files).open()),
    };
    let Ok(store) = opened else { return true };
    let mut run = Run { store, fs, model: Model::new() };
    run.put("b/1", "old");
    run.flush(fault);
    run.store.transaction(|tx| tx.put("a/1", "one").and_then(|()| tx.put("c/1", "two"))).unwrap();
    run.model.extend([("a/1", "one"), ("c/1", "two")].map(|(key, value)| (key.into(), value.into())));
    run.delete("b/1");
    run.put("d/1", &"x".repeat(3000));
    run.flush(fault);
    if run.store.close().is_err() {
        assert!(run.fs.struck());
        run.store.close().unwrap();
    }
    let store = Store::open(path).unwrap();
    assert_eq!(store.load_report().quarantined, []);
    let run = Run { store, fs: run.fs, model: run.model };
    run.agree();
    run.fs.struck()
}

#[test]
fn what_was_taken_is_not_lost_to_a_sync_that_nobody_asked_for() {
    for packed in [false, true] {
        let mut at = 0;
        loop {
            let dir = directory();
            let path = dir.path().join("store");
            let fault = Fault { at, sticky: false, kind: ErrorKind::Other };
            if !fill_a_segment(&path, packed, fault) {
                break;
            }
            at += 1;
        }
        assert!(at > 20, "{at}");
    }
}

fn start() -> Model {
    [("b/1", "old"), ("b/2", "old"), ("c/1", "old")].map(|(key, value)| (key.into(), value.into())).into()
}

/// Memory is as good as a disk here, and faster to sync.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn sweep(sticky: bool, kind: ErrorKind) {
    let mut at = 0;
    loop {
        let dir = directory();
        let path: PathBuf = dir.path().join("store");
        let store = Store::open(&path).unwrap();
        for (key, value) in start() {
            store.put(key, value).unwrap();
        }
        store.close().unwrap();
        if !run(&path, Fault { at, sticky, kind }) {
            break;
        }
        at += 1;
    }
    println!("{kind:?}, sticky {sticky}: {at} operations failed in turn");
    assert!(at > 100, "{at}");
}

#[test]
fn a_full_disk_at_any_operation_once() {
    sweep(false, ErrorKind::StorageFull);
}

#[test]
fn a_full_disk_from_any_operation_on() {
    sweep(true, ErrorKind::StorageFull);
}

#[test]
fn a_read_only_disk_from_any_operation_on() {
    sweep(true, ErrorKind::ReadOnlyFilesystem);
}

#[test]
fn a_failing_operation_anywhere_once() {
    sweep(false, ErrorKind::TimedOut);
}

const JANITOR: &str = "larder-janitor";
const FOLLOWER: &str = "larder-files";
const COMPACTOR: &str = "larder-compact";

/// A store that waits for next to nothing, and the file system below it.
fn impatient(path: &Path) -> (Options, Arc<Faulty>) {
    let fs = Faulty::sound();
    let files = Files::on(fs.clone(), path).unwrap();
    (Store::options(path).backend(files).stall_timeout(Duration::from_millis(50)), fs)
}

/// What takes longer hangs.
const LONGEST: Duration = Duration::from_secs(300);

/// Asks again as long as nothing is told but that the janitor is slow.
fn patiently<R>(mut ask: impl FnMut() -> Result<R>) -> Result<R> {
    let end = Instant::now() + LONGEST;
    loop {
        match ask() {
            Err(Error::Degraded { reason, .. }) if reason.contains("made no progress") && Instant::now() < end => {}
            done => return done,
        }
    }
}

/// The lock is free, and what was written is there.
fn assert_comes_back(path: &Path, expected: &[(&str, &str)]) {
    let store = loop {
        match Store::open(path) {
            Err(Error::Locked { .. }) => std::thread::yield_now(),
            opened => break opened.unwrap(),
        }
    };
    assert_eq!(store.load_report().quarantined, []);
    for (key, value) in expected {
        assert_eq!(store.get(key).unwrap().unwrap(), *value);
    }
    assert_eq!(store.stats().members, expected.len());
    store.close().unwrap();
}

#[test]
fn a_panic_in_the_thread_that_writes_files_is_told_and_hangs_nobody() {
    let dir = directory();
    let (options, fs) = impatient(&dir.path().join("store"));
    let store = options.open().unwrap();
    fs.set_trap(Some((FOLLOWER, Trap::Panic)));
    store.put("a/1", "one").unwrap();
    patiently(|| store.flush()).expect("it is durable in the journal");
    let told = |error: Error| assert!(error.to_string().contains("the thread that writes files panicked"), "{error}");
    store.close().expect_err("the thread panics");
    while store.health().is_well() {
        std::thread::yield_now();
    }
    told(store.put("a/2", "two").unwrap_err());
    patiently(|| store.flush()).expect("all that was taken is durable");
    told(patiently(|| store.close()).unwrap_err());
    assert_eq!(store.get("a/1").unwrap().unwrap(), "one");
    let path = store.path().to_owned();
    drop(store);
    assert_comes_back(&path, &[("a/1", "one")]);
}

#[test]
fn a_panic_in_the_thread_that_compacts_is_told_and_hangs_nobody() {
    let dir = directory();
    let path = dir.path().join("store");
    let fs = Faulty::sound();
    let packed = Packed::on(fs.clone(), &path).unwrap();
    let store = Store::options(&path).backend(packed).open().unwrap();
    store.put("a/1", "one").unwrap();
    fs.set_trap(Some((COMPACTOR, Trap::Panic)));
    let told = |error: Error| assert!(error.to_string().contains("the thread that compacts panicked"), "{error}");
    told(store.compact().unwrap_err());
    told(store.put("a/2", "two").unwrap_err());
    assert!(!store.health().is_well());
    store.flush().expect("all that was taken is durable");
    assert_eq!(store.get("a/1").unwrap().unwrap(), "one");
    store.close().expect("nothing is lost");
    drop(store);
    assert_comes_back(&path, &[("a/1", "one")]);
}

#[test]
fn a_close_whose_last_step_hangs_is_given_up_and_is_the_end() {
    let dir = directory();
    let (options, fs) = impatient(&dir.path().join("store"));
    let store = options.open().unwrap();
    store.put("a/1", "one").unwrap();
    // The mark of the counter is the only file that the janitor writes itself.
    fs.set_trap(Some((JANITOR, Trap::Hang)));
    // One that is given up before its last step is no end.
    let end = Instant::now() + LONGEST;
    while !matches!(store.get("a/1"), Err(Error::Closed { .. })) {
        assert!(Instant::now() < end, "it is never closed");
        let given_up = store.close();
        assert!(matches!(given_up, Err(Error::Degraded { .. })), "{given_up:?}");
    }
    assert!(matches!(store.put("a/2", "two"), Err(Error::Closed { .. })), "it is closed, but for the lock");
    assert!(matches!(Store::open(store.path()), Err(Error::Locked { .. })));
    fs.set_trap(None);
    assert_comes_back(store.path(), &[("a/1", "one")]);
}

#[test]
fn a_close_is_given_up_while_the_files_hang_and_the_store_lives_on() {
    let dir = directory();
    let (options, fs) = impatient(&dir.path().join("store"));
    let store = options.open().unwrap();
    fs.set_trap(Some((FOLLOWER, Trap::Hang)));
    store.put("a/1", "one").unwrap();
    patiently(|| store.flush()).expect("it is durable in the journal");
    for value in ["two", "three"] {
        let given_up = store.close();
        assert!(matches!(given_up, Err(Error::Degraded { .. })), "{given_up:?}");
        store.put("a/2", value).unwrap();
    }
    fs.set_trap(None);
    // One whose last step is slow ends without anybody waiting for it.
    let closed = patiently(|| store.close());
    assert!(matches!(closed, Ok(_) | Err(Error::Closed { .. })), "{closed:?}");
    assert_comes_back(store.path(), &[("a/1", "one"), ("a/2", "three")]);
}

#[test]
fn a_store_is_dropped_while_the_files_hang_and_nothing_is_lost() {
    let dir = directory();
    let path = dir.path().join("store");
    let (options, fs) = impatient(&path);
    let store = options.open().unwrap();
    fs.set_trap(Some((FOLLOWER, Trap::Hang)));
    store.put("a/1", "one").unwrap();
    drop(store);
    fs.set_trap(None);
    assert_comes_back(&path, &[("a/1", "one")]);
}
