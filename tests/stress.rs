//! A hundred threads on 8,192 keys: every read is a whole value that was written to that very key, no read goes back in
//! time, and in the end the disk has what RAM has.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test, a panic is the report")]

mod lab;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lab::{Chance, assert_only_files, assert_tidy, member_files, until_at_rest};
use larder::{Durability, Store};

const THREADS: usize = 100;
const ROUNDS: usize = 5000;
const VALUE: usize = 1000;

/// Seven collections that everybody writes, and one whose members have an owner each, who alone writes them.
const SHARED: [&str; 7] = ["album", "artist", "Genre", "label", "playlist", "song", "Ümlaut"];
const OWNED: &str = "owned";
const MEMBERS: usize = 8192 / 8;

/// For every writer the number of its last write, set before the write begins.
type Issued = [AtomicU64];

/// Half of the names are portable and stand for themselves on the disk; the other half do not.
fn member(number: usize) -> String {
    if number.is_multiple_of(2) { format!("m{number}") } else { format!("M/{number}") }
}

/// 1,000 bytes that no other write has.
fn value(key: &str, writer: usize, number: u64) -> Vec<u8> {
    let mut value = format!("{key} {writer} {number} ").into_bytes();
    let mut chance = Chance::new(number * THREADS as u64 + writer as u64);
    while value.len() < VALUE {
        value.extend_from_slice(&chance.number().to_le_bytes());
    }
    value.truncate(VALUE);
    value
}

/// Checks every byte, and says who wrote it and which of its writes it was.
fn check(key: &str, found: &[u8], issued: &Issued) -> (usize, u64) {
    let words: Vec<&str> =
        found.splitn(4, |&b| b == b' ').map(|word| std::str::from_utf8(word).unwrap_or("")).collect();
    let [for_key, writer, number, _] = words[..] else { panic!("{key} holds {:?}", found.escape_ascii().to_string()) };
    assert_eq!(for_key, key, "a value that was written to another key");
    let (writer, number) = (writer.parse().unwrap(), number.parse().unwrap());
    assert!(found == value(key, writer, number), "{key}: write {number} of {writer} is not whole");
    assert!(number <= issued[writer].load(Ordering::SeqCst), "{key}: a value that nobody has written yet");
    (writer, number)
}

/// One thread's part. Returns what it left in the members that it owns.
fn work(store: &Store, writer: usize, issued: &Issued) -> HashMap<String, Option<u64>> {
    let mut chance = Chance::new(writer as u64);
    let mut owned: HashMap<String, Option<u64>> = HashMap::new();
    let mut seen: HashMap<String, u64> = HashMap::new();
    let mine: Vec<usize> = (0..MEMBERS).filter(|number| number % THREADS == writer).collect();
    let next = || issued[writer].fetch_add(1, Ordering::SeqCst) + 1;
    for _ in 0..ROUNDS {
        let collection = SHARED[chance.below(SHARED.len())];
        let key = format!("{collection}/{}", member(chance.below(MEMBERS)));
        let my_key = format!("{OWNED}/{}", member(mine[chance.below(mine.len())]));
        let their_key = format!("{OWNED}/{}", member(chance.below(MEMBERS)));
        match chance.below(2000) {
            0 => _ = store.delete_all(collection).unwrap(),
            1..=5 => {
                for (member, value) in store.get_all(collection).unwrap() {
                    check(&format!("{collection}/{member}"), &value, issued);
                }
            }
            6..=700 => {
                let old = store.put(&key, value(&key, writer, next())).unwrap();
                old.inspect(|old| _ = check(&key, old, issued));
            }
            701..=900 => {
                store.delete(&key).unwrap().inspect(|old| _ = check(&key, old, issued));
            }
            901..=1300 => {
                store.get(&key).unwrap().inspect(|found| _ = check(&key, found, issued));
            }
            1301..=1600 => {
                let number = next();
                let old = store.put(&my_key, value(&my_key, writer, number)).unwrap();
                let was = owned.insert(my_key.clone(), Some(number)).flatten();
                assert_eq!(old.map(|old| check(&my_key, &old, issued)), was.map(|number| (writer, number)));
            }
            1601..=1700 => {
                let old = store.delete(&my_key).unwrap();
                let was = owned.insert(my_key.clone(), None).flatten();
                assert_eq!(old.map(|old| check(&my_key, &old, issued)), was.map(|number| (writer, number)));
            }
            1701..=1800 => {
                let found = store.get(&my_key).unwrap().map(|found| check(&my_key, &found, issued));
                let last = owned.get(&my_key).copied().flatten();
                assert_eq!(found, last.map(|number| (writer, number)), "{my_key} is not what its only writer left");
            }
            _ => {
                let Some(found) = store.get(&their_key).unwrap() else { continue };
                let (_, number) = check(&their_key, &found, issued);
                let before = seen.insert(their_key.clone(), number).unwrap_or(0);
                assert!(before <= number, "{their_key} went back from {before} to {number}");
            }
        }
    }
    owned
}

fn contents(store: &Store) -> BTreeMap<String, Vec<u8>> {
    let mut contents = BTreeMap::new();
    for collection in store.collections().unwrap() {
        for (member, value) in store.get_all(&collection).unwrap() {
            let twice = contents.insert(format!("{collection}/{member}"), value.to_vec());
            assert_eq!(twice, None, "{collection}/{member} is there twice");
        }
    }
    contents
}

/// The disk has one file for every member and nothing else.
fn assert_only_members(path: &Path, members: usize) {
    assert_eq!(member_files(path).len(), members, "files on the disk, and members");
    assert_tidy(path);
}

#[test]
fn a_hundred_threads_read_only_what_was_written_and_leave_the_same_in_ram_and_on_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    // With a journal so small that the files follow, and segments go, all the time.
    let options = Store::options(&path).durability(Durability::Interval(Duration::from_millis(20)));
    let store = options.max_journal(4 << 20).open().unwrap();
    let issued: Vec<AtomicU64> = (0..THREADS).map(|_| AtomicU64::new(0)).collect();
    let start = Barrier::new(THREADS);

    let mut owned = HashMap::new();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|writer| {
                let (store, issued, start) = (&store, &issued[..], &start);
                scope.spawn(move || {
                    start.wait();
                    work(store, writer, issued)
                })
            })
            .collect();
        for thread in threads {
            owned.extend(thread.join().unwrap());
        }
    });

    store.flush().unwrap();
    let stats = store.stats();
    assert_eq!((stats.dirty, stats.unsaved_bytes), (0, 0), "after a flush nothing waits");
    let in_ram = contents(&store);
    assert_eq!(stats.members, in_ram.len());
    let bytes: usize = in_ram.iter().map(|(key, value)| key.split_once('/').unwrap().1.len() + value.len()).sum();
    assert_eq!(stats.bytes, bytes as u64);
    for (key, value) in &in_ram {
        check(key, value, &issued);
    }
    for (key, last) in &owned {
        let found = in_ram.get(key).map(|found| check(key, found, &issued).1);
        assert_eq!(found, *last, "{key} is not what its only writer left");
    }
    until_at_rest(&store);
    assert_only_members(&path, in_ram.len());

    let report = store.close().unwrap();
    assert_eq!((report.members, report.flushed), (in_ram.len(), 0));
    assert_only_members(&path, in_ram.len());
    assert_only_files(&path);

    let store = Store::open(&path).unwrap();
    assert_eq!((store.load_report().quarantined, store.load_report().replayed), (Vec::new(), 0));
    assert_eq!(store.load_report().members, in_ram.len());
    assert!(contents(&store) == in_ram, "the disk does not have what RAM had");
    store.close().unwrap();
}

#[test]
fn a_collection_that_grows_under_many_threads_loses_nobody_s_members() {
    const ROUNDS: usize = 300;
    const WRITERS: usize = 16;
    const EACH: usize = 100;
    let store = Store::in_memory();
    // A new collection for every round: it is when they are small that they grow often.
    for round in 0..ROUNDS {
        let start = Barrier::new(WRITERS);
        std::thread::scope(|scope| {
            for writer in 0..WRITERS {
                let (store, start) = (&store, &start);
                scope.spawn(move || {
                    let keys: Vec<String> = (0..EACH).map(|number| format!("{round}/{writer} {number}")).collect();
                    start.wait();
                    for key in &keys {
                        assert_eq!(store.put(key, key).unwrap(), None);
                    }
                    for key in &keys {
                        assert_eq!(store.get(key).unwrap().expect("a member that was put"), *key);
                    }
                });
            }
        });
        let members: HashSet<_> = store.members(round.to_string()).unwrap().into_iter().collect();
        assert_eq!((members.len(), store.len(round.to_string()).unwrap()), (WRITERS * EACH, WRITERS * EACH));
    }
}
