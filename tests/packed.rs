//! The packed layout, from outside: what it holds survives closes, crashes, compactions and conversions; its disk space
//! comes back; damage costs what it hit and no more.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test, a panic is the report")]

mod lab;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use lab::{
    BLOCK, Chance, OTHERS, as_a_packed_store_after_a_crash, assert_tidy, contents, disk_size, frames, member_files,
    segments, tell, tree, until,
};
use larder::{Error, Layout, Progress, Stage, Store};
use proptest::prelude::*;
use serde::{Deserialize, Serialize};

fn temporary() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    // Resolved, as it is in reports and errors.
    let path = dir.path().canonicalize().unwrap().join("store");
    (dir, path)
}

fn packed(path: &Path) -> Store {
    Store::options(path).layout(Layout::Packed).open().unwrap()
}

/// Opens what is there, which is packed and undamaged.
#[track_caller]
fn reopen(path: &Path) -> Store {
    let store = Store::open(path).unwrap();
    assert_eq!(store.load_report().quarantined, []);
    assert!(member_files(path).is_empty(), "a packed store has no files of members");
    store
}

/// A value of this length that only this write has.
fn value(key: &str, number: u64, length: usize) -> Vec<u8> {
    let mut chance = Chance::new(number ^ u64::from(crc32fast::hash(key.as_bytes())) << 32);
    let mut value = Vec::new();
    while value.len() < length {
        value.extend_from_slice(&chance.number().to_le_bytes());
    }
    value.truncate(length);
    value
}

// ---- what it holds ----

#[test]
fn bytes_types_deletes_and_clears_survive_closes_and_compactions_again_and_again() {
    let (_dir, path) = temporary();
    let mut expected = BTreeMap::new();
    for round in 0..8u64 {
        let store = if round == 0 { packed(&path) } else { reopen(&path) };
        assert_eq!(contents(&store), expected, "round {round}");
        assert_eq!(store.load_report().members, expected.len());
        {
            let years = store.collection::<u64>("year").unwrap();
            years.put(format!("y{round}"), round).unwrap();
            years.put("latest", round).unwrap();
            #[cfg(feature = "bincode")]
            {
                let pairs = store.collection_with::<(String, u64), larder::Bincode>("pair").unwrap();
                assert_eq!(pairs.get("latest").map(|pair| pair.1), round.checked_sub(1));
                pairs.put("latest", ("text".to_owned(), round)).unwrap();
            }
            assert_eq!(years.len() as u64, round + 2);
        }
        for number in 0..60 {
            let key = format!("raw {}/Björk/{number}", number % 3);
            store.put(&key, value(&key, round, number * 7)).unwrap();
        }
        store.put("raw 0/empty", "").unwrap();
        if round % 2 == 1 {
            assert_eq!(store.delete_all("raw 1").unwrap(), 20);
            assert!(store.delete("raw 0/Björk/3").unwrap().is_some());
        }
        expected = contents(&store);
        assert_eq!(
            expected.len() as u64,
            if round % 2 == 1 { 40 } else { 61 } + round + 2 + u64::from(cfg!(feature = "bincode"))
        );
        // In every order of writes, compactions and closes.
        if round % 4 < 2 {
            store.compact().unwrap();
            assert_eq!(contents(&store), expected, "a compaction changes nothing");
        }
        if round % 4 == 1 {
            store.delete("raw 2/Björk/2").unwrap();
            expected.remove("raw 2/Björk/2").unwrap();
        }
        if round % 3 == 0 {
            drop(store);
        } else {
            store.close().unwrap();
        }
        assert_tidy(&path);
    }
}

#[test]
fn a_store_is_opened_in_the_layout_that_it_has() {
    let (_dir, path) = temporary();
    packed(&path).put("c/m", "v").unwrap();
    for open in [|path: &Path| Store::open(path).unwrap(), packed] {
        let store = open(&path);
        assert_eq!(store.get("c/m").unwrap().unwrap(), "v");
        assert!(member_files(&path).is_empty());
        store.close().unwrap();
    }
}

#[test]
fn the_wrong_layout_is_an_error_that_names_both_and_changes_nothing() {
    for (layout, other) in [(Layout::Files, Layout::Packed), (Layout::Packed, Layout::Files)] {
        let (_dir, path) = temporary();
        let store = Store::options(&path).layout(layout).open().unwrap();
        store.put("c/m", "v").unwrap();
        store.close().unwrap();
        let before = tree(&path);
        let error = Store::options(&path).layout(other).open().unwrap_err();
        let Error::OtherLayout { path: told, found, asked } = &error else { panic!("{error}") };
        assert_eq!((told, *found, *asked), (&path, layout, other));
        let text = error.to_string();
        for part in [path.to_str().unwrap(), &layout.to_string(), &other.to_string()] {
            assert!(text.contains(part), "{text:?} does not say {part:?}");
        }
        assert_eq!(tree(&path), before);
        assert_eq!(Store::open(&path).unwrap().get("c/m").unwrap().unwrap(), "v");
    }
}

#[test]
fn a_counter_goes_on_after_a_compaction_and_a_crash() {
    let (_dir, path) = temporary();
    let store = packed(&path);
    store.put("c/m", "first").unwrap();
    for number in 0..100 {
        store.put("c/other", number.to_string()).unwrap();
        store.delete("c/other").unwrap();
    }
    store.compact().unwrap();
    let copy = path.with_extension("copy");
    as_a_packed_store_after_a_crash(&path, &copy);
    // Of the deletes' numbers nothing is left but what the segment's header says.
    larder::convert(&copy, Layout::Files).unwrap();
    let mark = fs::read_to_string(copy.join(".larder/counter")).unwrap();
    let mark: u64 = mark.split(' ').nth(2).unwrap().parse().unwrap();
    assert!(mark >= 201, "{mark}");
}

// ---- whatever is done ----

/// The numbers are of members and of writes.
#[derive(Debug, Clone)]
enum Op {
    Put(usize, usize),
    Delete(usize),
    DeleteAll(usize),
    Flush,
    Compact,
    Reopen,
    Drop,
    Crash,
    /// There, or there and back.
    Convert(bool),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        24 => (0..40usize, 0..500usize).prop_map(|(member, length)| Op::Put(member, length)),
        10 => (0..40usize).prop_map(Op::Delete),
        2 => (0..3usize).prop_map(Op::DeleteAll),
        2 => Just(Op::Flush),
        3 => Just(Op::Compact),
        1 => Just(Op::Reopen),
        1 => Just(Op::Drop),
        2 => Just(Op::Crash),
        1 => any::<bool>().prop_map(Op::Convert),
    ];
    proptest::collection::vec(op, 1..100)
}

struct Run {
    _dir: tempfile::TempDir,
    path: PathBuf,
    store: Store,
    layout: Layout,
    model: BTreeMap<String, Vec<u8>>,
    number: u64,
    crashes: u64,
}

impl Run {
    fn new() -> Run {
        let (dir, path) = temporary();
        let store = packed(&path);
        Run { _dir: dir, path, store, layout: Layout::Packed, model: BTreeMap::new(), number: 0, crashes: 0 }
    }

    fn key(member: usize) -> String {
        format!("{}/member {member}", ["a", "B", "c~"][member % 3])
    }

    fn step(&mut self, op: &Op) {
        self.number += 1;
        match *op {
            Op::Put(member, length) => {
                let key = Run::key(member);
                let value = value(&key, self.number, length);
                let old = self.store.put(&key, &value).unwrap();
                assert_eq!(old.map(Vec::from), self.model.insert(key, value));
            }
            Op::Delete(member) => {
                let key = Run::key(member);
                assert_eq!(self.store.delete(&key).unwrap().map(Vec::from), self.model.remove(&key));
            }
            Op::DeleteAll(collection) => {
                let collection = ["a", "B", "c~"][collection];
                self.store.delete_all(collection).unwrap();
                self.model.retain(|key, _| !key.starts_with(&format!("{collection}/")));
            }
            Op::Flush => self.store.flush().unwrap(),
            Op::Compact => self.store.compact().unwrap(),
            Op::Reopen => {
                self.store.close().unwrap();
                self.reopen();
            }
            Op::Drop => {
                self.store = Store::in_memory();
                self.reopen();
            }
            Op::Crash => self.crash(),
            Op::Convert(back) => {
                self.store.close().unwrap();
                let other = if self.layout == Layout::Packed { Layout::Files } else { Layout::Packed };
                larder::convert(&self.path, other).unwrap();
                if back {
                    larder::convert(&self.path, self.layout).unwrap();
                } else {
                    self.layout = other;
                }
                self.reopen();
            }
        }
        assert_eq!(contents(&self.store), self.model);
    }

    /// Goes on with what a killed process would have left.
    fn crash(&mut self) {
        self.store.flush().unwrap();
        self.crashes += 1;
        let copy = self.path.with_extension(self.crashes.to_string());
        match self.layout {
            Layout::Packed => as_a_packed_store_after_a_crash(&self.path, &copy),
            _ => lab::as_after_a_crash(&self.path, &copy),
        }
        self.store = Store::in_memory();
        self.path = copy;
        self.reopen();
    }

    fn reopen(&mut self) {
        self.store = Store::options(&self.path).layout(self.layout).open().unwrap();
        let report = self.store.load_report();
        assert_eq!((report.members, report.quarantined), (self.model.len(), Vec::new()));
        assert_tidy(&self.path);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_store_says_what_a_map_says_whatever_is_done(ops in ops()) {
        let mut run = Run::new();
        ops.iter().for_each(|op| run.step(op));
        run.step(&Op::Drop);
        run.step(&Op::Compact);
        run.step(&Op::Reopen);
    }
}

#[test]
fn no_deleted_member_comes_back_after_compactions_and_crashes() {
    const KEYS: usize = 300;
    let (_dir, path) = temporary();
    let mut store = packed(&path);
    let mut chance = Chance::new(7);
    let mut model = BTreeMap::new();
    let mut path = path;
    for round in 0..60u64 {
        for _ in 0..chance.below(KEYS) {
            let key = format!("c{}/{}", chance.below(3), chance.below(KEYS / 3));
            if chance.below(2) == 0 {
                store.delete(&key).unwrap();
                model.remove(&key);
            } else {
                let value = value(&key, round, 50);
                store.put(&key, &value).unwrap();
                model.insert(key, value);
            }
        }
        if chance.below(4) == 0 {
            store.delete_all("c1").unwrap();
            model.retain(|key: &String, _| !key.starts_with("c1/"));
        }
        store.flush().unwrap();
        match chance.below(3) {
            0 => store.compact().unwrap(),
            1 => {
                let copy = path.with_extension(round.to_string());
                as_a_packed_store_after_a_crash(&path, &copy);
                drop(store);
                path = copy;
                store = reopen(&path);
                assert_eq!(contents(&store), model, "round {round}");
                if chance.below(2) == 0 {
                    store.compact().unwrap();
                }
            }
            _ => {}
        }
        assert_eq!(contents(&store), model, "round {round}");
    }
    store.compact().unwrap();
    drop(store);
    assert_eq!(contents(&reopen(&path)), model);
}

#[test]
fn a_delete_outlives_compactions_that_leave_its_member_where_it_is() {
    let (_dir, path) = temporary();
    let mut store = packed(&path);
    store.put("few/a", "cleared").unwrap();
    store.put("few/b", "cleared").unwrap();
    fill(&store, 30_000, 100, 0);
    store.compact().unwrap();
    let [large] = &segments(&path)[..] else { panic!("{:?}", segments(&path)) };
    for round in 0..6u64 {
        store.delete(format!("collection/{round:08}")).unwrap();
        if round == 2 {
            store.delete_all("few").unwrap();
        }
        store.compact().unwrap();
        if round % 2 == 0 {
            drop(store);
            store = reopen(&path);
        }
        assert!(large.exists(), "there is too little garbage in it to write it again");
        assert_eq!(store.len("collection").unwrap() as u64, 29_999 - round);
        assert_eq!(store.len("few").unwrap(), if round < 2 { 2 } else { 0 });
    }
    store.close().unwrap();
    let store = reopen(&path);
    assert_eq!((store.len("collection").unwrap(), store.len("few").unwrap()), (29_994, 0));
}

// ---- what it takes ----

/// Puts members of this length, and waits until they are durable. The bytes of keys and values.
fn fill(store: &Store, members: usize, length: usize, round: u64) -> u64 {
    let mut bytes = 0;
    for number in 0..members {
        let key = format!("collection/{number:08}");
        let value = value(&key, round, length);
        bytes += (key.len() + value.len()) as u64;
        store.put(key, value).unwrap();
    }
    store.flush().unwrap();
    bytes
}

#[test]
fn compacted_members_take_little_more_than_their_keys_and_values() {
    let (_dir, path) = temporary();
    let store = packed(&path);
    let mut bytes = 0;
    for round in 0..12 {
        bytes = fill(&store, 20_000, 100, round);
    }
    let before = disk_size(&path);
    store.compact().unwrap();
    let after = disk_size(&path);
    tell(&format!("{bytes} bytes of keys and values: {before} on the disk, {after} once it is compacted"));
    assert!(after * 100 < bytes * 115, "{after} for {bytes}");
    store.close().unwrap();
    assert!(disk_size(&path) * 100 < bytes * 115, "a close makes it larger");
    let store = reopen(&path);
    assert_eq!(store.len("collection").unwrap(), 20_000);
    let key = "collection/00019999";
    assert_eq!(store.get(key).unwrap().unwrap(), value(key, 11, 100));
    // Nothing is gained by another one.
    let size = disk_size(&path);
    store.compact().unwrap();
    assert!(disk_size(&path) <= size);
}

/// One segment, which is more than one part of the work.
#[test]
fn a_load_of_one_segment_shows_how_far_it_has_come_on_the_thread_that_loads() {
    let (_dir, path) = temporary();
    let store = packed(&path);
    fill(&store, 20_000, 200, 0);
    store.compact().unwrap();
    store.close().unwrap();
    assert_eq!(segments(&path).len(), 1);

    let seen: Arc<Mutex<Vec<Progress>>> = Arc::default();
    let (told, loading) = (seen.clone(), std::thread::current().id());
    let store = Store::options(&path).on_progress(move |progress| {
        assert_eq!(std::thread::current().id(), loading);
        told.lock().unwrap().push(progress);
    });
    let store = store.open().unwrap();
    assert_eq!(store.len("collection").unwrap(), 20_000);
    let seen = seen.lock().unwrap();
    let size = fs::metadata(&segments(&path)[0]).unwrap().len();
    assert!(seen.is_sorted_by_key(|progress| progress.done));
    assert!(seen.iter().all(|progress| (progress.stage, progress.total) == (Stage::Load, size)));
    assert_eq!((seen[0].done, seen.last().unwrap().done), (0, size));
    assert!(seen.iter().filter(|progress| 0 < progress.done && progress.done < size).count() > 2, "{seen:?}");
}

#[test]
fn the_space_of_what_is_overwritten_comes_back_by_itself() {
    let (_dir, path) = temporary();
    let store = packed(&path);
    let mut bytes = 0;
    for round in 0..30 {
        bytes = fill(&store, 5000, 1000, round);
    }
    until("what was overwritten has gone", || disk_size(&path) < 8 * bytes);
    drop(store);
    assert_eq!(reopen(&path).len("collection").unwrap(), 5000);
}

#[test]
fn the_space_of_what_is_deleted_comes_back_by_itself() {
    let one_by_one = |store: &Store| {
        for number in 0..40_000 {
            store.delete(format!("collection/{number:08}")).unwrap();
        }
    };
    let at_once = |store: &Store| assert_eq!(store.delete_all("collection").unwrap(), 40_000);
    for delete in [&one_by_one as &dyn Fn(&Store), &at_once] {
        let (_dir, path) = temporary();
        let store = packed(&path);
        let bytes = fill(&store, 40_000, 1000, 0);
        assert!(disk_size(&path) > bytes);
        delete(&store);
        until("what was deleted has gone", || disk_size(&path) < bytes / 2);
        drop(store);
        assert_eq!(reopen(&path).len("collection").unwrap(), 0);
    }
}

#[derive(Serialize, Deserialize)]
struct Page {
    text: String,
}

/// A tenth of the members hold nearly all of the bytes.
#[test]
fn the_space_of_a_few_large_members_comes_back_by_itself() {
    let large = "x".repeat(50_000);
    let by_key = |store: &Store, name: &str, text: &str| drop(store.put(format!("pages/{name}"), text).unwrap());
    let typed = |store: &Store, name: &str, text: &str| {
        drop(store.collection::<Page>("pages").unwrap().put(name, Page { text: text.to_owned() }).unwrap());
    };
    for put in [&by_key as &dyn Fn(&Store, &str, &str), &typed] {
        for again in [false, true] {
            let (_dir, path) = temporary();
            let store = packed(&path);
            for number in 0..10_000 {
                put(&store, &format!("small {number}"), "\"small\"");
            }
            for number in 0..1000 {
                put(&store, &format!("large {number}"), &large);
            }
            store.flush().unwrap();
            assert!(disk_size(&path) > 50_000_000);
            // Nothing else is written after them.
            for number in 0..1000 {
                if again {
                    put(&store, &format!("large {number}"), "\"small now\"");
                } else {
                    store.delete(format!("pages/large {number}")).unwrap();
                }
            }
            until("what was large has gone", || disk_size(&path) < 25_000_000);
            drop(store);
            assert_eq!(reopen(&path).len("pages").unwrap(), if again { 11_000 } else { 10_000 });
        }
    }
}

#[test]
fn reads_and_writes_go_on_during_compactions() {
    const KEYS: u64 = 2000;
    const COMPACTIONS: usize = 12;
    let (_dir, path) = temporary();
    let store = packed(&path);
    fill(&store, 20_000, 200, 0);
    let over = AtomicBool::new(false);
    let written = std::thread::scope(|scope| {
        let (store, over) = (&store, &over);
        let writers = [0, 1].map(|thread| {
            scope.spawn(move || {
                let mut newest = BTreeMap::new();
                let mut chance = Chance::new(thread);
                for number in 1.. {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    let key = format!("live-{thread}/{}", chance.below(KEYS as usize));
                    assert_eq!(store.get(&key).unwrap().map(Vec::from), newest.get(&key).cloned());
                    if number % 5 == 0 {
                        store.delete(&key).unwrap();
                        newest.remove(&key);
                    } else {
                        let value = value(&key, number, 60);
                        store.put(&key, &value).unwrap();
                        newest.insert(key, value);
                    }
                }
                newest
            })
        });
        for _ in 0..COMPACTIONS {
            let before = store.stats().members;
            store.compact().unwrap();
            assert!(before >= 20_000);
        }
        over.store(true, Ordering::Relaxed);
        writers.map(|writer| writer.join().unwrap())
    });
    let check = |store: &Store| {
        for (thread, newest) in written.iter().enumerate() {
            let live = store.get_all(format!("live-{thread}")).unwrap();
            let live: BTreeMap<String, Vec<u8>> =
                live.into_iter().map(|(member, value)| (format!("live-{thread}/{member}"), value.to_vec())).collect();
            assert!(live == *newest, "thread {thread}");
        }
        assert_eq!(store.len("collection").unwrap(), 20_000);
    };
    check(&store);
    store.flush().unwrap();
    let copy = path.with_extension("copy");
    as_a_packed_store_after_a_crash(&path, &copy);
    check(&reopen(&copy));
    store.close().unwrap();
    check(&reopen(&path));
}

// ---- damage ----

/// A closed store that was compacted into one segment of several blocks.
struct Compacted {
    _dir: tempfile::TempDir,
    path: PathBuf,
    segment: PathBuf,
    whole: Vec<u8>,
    members: BTreeMap<String, Vec<u8>>,
}

impl Compacted {
    fn new() -> Compacted {
        let (dir, path) = temporary();
        let store = packed(&path);
        for number in 0..500 {
            let key = format!("{}/member-{number:04}", ["one", "two"][number % 2]);
            store.put(&key, value(&key, 0, 150)).unwrap();
        }
        store.put("one/gone", "deleted").unwrap();
        store.delete("one/gone").unwrap();
        store.compact().unwrap();
        let members = contents(&store);
        store.close().unwrap();
        let [segment] = &segments(&path)[..] else { panic!("{:?}", segments(&path)) };
        let (segment, whole) = (segment.clone(), fs::read(segment).unwrap());
        assert!(frames(&whole).iter().filter(|(_, kind)| *kind == BLOCK).count() > 4);
        Compacted { _dir: dir, path, segment, whole, members }
    }

    /// The members in a part of the segment, by name.
    fn members_in(&self, part: &[u8]) -> Vec<String> {
        let is_in = |key: &&String| {
            let (_, member) = key.split_once('/').unwrap();
            part.windows(member.len()).any(|window| window == member.as_bytes())
        };
        self.members.keys().filter(is_in).cloned().collect()
    }

    /// Loads it with the segment changed to this: all but these members are there, and if anything is `told`, a copy of
    /// what is damaged is in quarantine. A compaction removes the damage.
    #[track_caller]
    fn costs_only(&self, damaged: &[u8], lost: &[String], told: bool) {
        let path = self.path.with_extension("damaged");
        _ = fs::remove_dir_all(&path);
        lab::as_after_a_crash(&self.path, &path);
        let segment = path.join(self.segment.strip_prefix(&self.path).unwrap());
        fs::write(&segment, damaged).unwrap();
        let mut expected = self.members.clone();
        expected.retain(|key, _| !lost.contains(key));

        let store = Store::open(&path).unwrap();
        let report = store.load_report();
        assert!(contents(&store) == expected, "{} of {} are there", report.members, expected.len());
        assert_eq!(!report.quarantined.is_empty(), told, "{:?}", report.quarantined);
        for quarantined in &report.quarantined {
            assert_eq!(quarantined.path, segment);
            assert!(quarantined.reason.contains("damaged"), "{}", quarantined.reason);
            let copy = fs::read(&quarantined.moved_to).unwrap();
            assert!(!copy.is_empty() || damaged.len() < self.whole.len());
            let note = fs::read_to_string(format!("{}.reason", quarantined.moved_to.display())).unwrap();
            assert_eq!(note, format!("{}\n{}\n", segment.display(), quarantined.reason));
        }
        // What is damaged is not deleted: the next write of such a member is like any other.
        if let Some(key) = lost.first() {
            assert_eq!(store.put(key, "again").unwrap(), None);
            expected.insert(key.clone(), b"again".to_vec());
        }
        store.compact().unwrap();
        store.close().unwrap();
        if told {
            assert!(!segment.exists(), "the damaged segment is still there");
        }
        let store = reopen(&path);
        assert!(contents(&store) == expected);
    }
}

#[test]
fn a_damaged_block_costs_its_own_members_only_and_goes_with_a_compaction() {
    let store = Compacted::new();
    let mut chance = Chance::new(3);
    for (place, kind) in frames(&store.whole) {
        let lost = store.members_in(&store.whole[place.clone()]);
        assert_eq!(lost.is_empty(), kind != BLOCK);
        assert!(lost.len() < store.members.len() / 4);
        let inside = [place.start, place.start + 4, place.start + 9, place.start + 20, place.start + 24, place.end - 1];
        for at in inside.into_iter().chain([place.start + chance.below(place.len())]) {
            let mut damaged = store.whole.clone();
            damaged[at] ^= 1 << chance.below(8);
            // The last frame has no meaning in a segment whose header is whole.
            store.costs_only(&damaged, &lost, true);
        }
        let mut zeros = store.whole.clone();
        zeros[place].fill(0);
        store.costs_only(&zeros, &lost, true);
    }
}

#[test]
fn two_damaged_blocks_cost_the_members_of_both() {
    let store = Compacted::new();
    let blocks: Vec<_> = frames(&store.whole).into_iter().filter(|(_, kind)| *kind == BLOCK).collect();
    let mut damaged = store.whole.clone();
    let mut lost = Vec::new();
    for (place, _) in [&blocks[0], &blocks[2]] {
        lost.extend(store.members_in(&store.whole[place.clone()]));
        damaged[place.start + 100] ^= 0xff;
    }
    store.costs_only(&damaged, &lost, true);
}

#[test]
fn damage_anywhere_in_the_header_of_a_packed_segment_costs_no_member() {
    let store = Compacted::new();
    for at in 0..64 {
        let mut damaged = store.whole.clone();
        damaged[at] ^= 1 << (at % 8);
        store.costs_only(&damaged, &[], true);
    }
    let mut zeros = store.whole.clone();
    zeros[..64].fill(0);
    store.costs_only(&zeros, &[], true);
}

#[test]
fn what_a_packed_segment_says_of_others_may_be_damaged_without_loss() {
    let store = Compacted::new();
    let (place, kind) = frames(&store.whole)[0].clone();
    assert_eq!(kind, OTHERS);
    for at in place {
        let mut damaged = store.whole.clone();
        damaged[at] ^= 1 << (at % 8);
        store.costs_only(&damaged, &[], true);
    }
}

#[test]
fn a_packed_segment_cut_short_costs_what_is_cut_off() {
    let store = Compacted::new();
    for (place, _) in frames(&store.whole) {
        for end in [place.start, place.start + 8, place.start + 25, place.end - 1] {
            let (kept, cut) = store.whole.split_at(end);
            let lost = store.members_in(cut).into_iter().chain(store.members_in(&kept[place.start.min(end)..]));
            store.costs_only(kept, &lost.collect::<Vec<_>>(), true);
        }
    }
}

#[test]
fn a_block_that_is_damaged_while_the_store_is_open_loses_nothing_that_is_in_memory() {
    let compacted = Compacted::new();
    let store = reopen(&compacted.path);
    let mut damaged = compacted.whole.clone();
    let (place, _) = frames(&damaged)[1].clone();
    damaged[place.start + 100] ^= 1;
    fs::write(&compacted.segment, &damaged).unwrap();
    // Enough to make the segment worth compacting.
    for key in compacted.members.keys() {
        store.put(key, "new").unwrap();
    }
    let error = store.compact().unwrap_err();
    assert!(matches!(&error, Error::Corrupt { path, .. } if *path == compacted.segment), "{error}");
    assert_eq!(fs::read(&compacted.segment).unwrap(), damaged, "what is damaged stays until it is told");
    store.flush().unwrap();
    store.put("one/another", "written afterwards").unwrap();
    let expected = contents(&store);
    store.close().unwrap();
    let store = Store::open(&compacted.path).unwrap();
    assert_eq!(store.load_report().quarantined.len(), 1);
    assert!(contents(&store) == expected);
    store.compact().unwrap();
    store.close().unwrap();
    assert!(contents(&reopen(&compacted.path)) == expected);
}

#[test]
fn a_damaged_frame_that_was_not_compacted_costs_its_own_members_only() {
    let (_dir, path) = temporary();
    let store = packed(&path);
    for number in 0..20 {
        store.put(format!("c/member-{number:02}"), vec![b'v'; 1500]).unwrap();
    }
    store.close().unwrap();
    let [segment] = &segments(&path)[..] else { panic!("{:?}", segments(&path)) };
    let mut bytes = fs::read(segment).unwrap();
    let (place, _) = frames(&bytes)[4].clone();
    let is_hit =
        |number: &i32| bytes[place.clone()].windows(9).any(|window| window == format!("member-{number:02}").as_bytes());
    let hit: Vec<i32> = (0..20).filter(is_hit).collect();
    // No more than fit into a block of 4 KiB.
    assert!((1..=2).contains(&hit.len()), "{hit:?}");
    bytes[place.start + 40] ^= 4;
    fs::write(segment, &bytes).unwrap();
    let store = Store::open(&path).unwrap();
    assert_eq!(store.load_report().quarantined.len(), 1);
    assert_eq!(store.len("c").unwrap(), 20 - hit.len());
    for number in &hit {
        assert_eq!(store.get(format!("c/member-{number:02}")).unwrap(), None);
    }
    until("the damaged segment has been compacted by itself", || !segment.exists());
    drop(store);
    assert_eq!(reopen(&path).len("c").unwrap(), 20 - hit.len());
}
