//! Copying a store, looking at one beside its writer, checking, mending, exporting and importing.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test, a panic is the report")]

mod lab;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use lab::{as_after_a_crash, segments, tree};
use larder::{Error, Layout, Severity, Store, View};

type Members = BTreeMap<String, Vec<u8>>;

const LAYOUTS: [Layout; 2] = [Layout::Files, Layout::Packed];

fn temporary() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().canonicalize().unwrap().join("store");
    (dir, path)
}

fn contents(store: &Store) -> Members {
    let mut contents = Members::new();
    for collection in store.collections().unwrap() {
        for (member, value) in store.get_all(&collection).unwrap() {
            contents.insert(format!("{collection}/{member}"), value.to_vec());
        }
    }
    contents
}

fn shown(view: &View) -> Members {
    let mut contents = Members::new();
    for collection in view.collections() {
        for (member, value) in view.get_all(&collection).unwrap() {
            contents.insert(format!("{collection}/{member}"), value.to_vec());
        }
    }
    contents
}

/// A store with members of several kinds.
fn filled(path: &Path, layout: Layout) -> (Store, Members) {
    let store = Store::options(path).layout(layout).open().unwrap();
    for number in 0..50u8 {
        store.put(format!("song/{number}"), vec![number; usize::from(number) * 10]).unwrap();
    }
    store.put("artist/bj\u{f6}rk/\u{1}", "a name that is not portable").unwrap();
    store.put("artist/empty", "").unwrap();
    store.collection::<Vec<u32>>("years").unwrap().put("discovery", vec![2001, 3]).unwrap();
    store.delete("song/7").unwrap();
    let members = contents(&store);
    (store, members)
}

/// Lets the other thread end when this one panics.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

// ---- backup ----

#[test]
fn a_backup_is_a_store_with_the_same_members_and_the_same_layout() {
    for layout in LAYOUTS {
        let (dir, path) = temporary();
        let (store, members) = filled(&path, layout);
        let copy = dir.path().join("copies/first");
        let report = store.backup(&copy).unwrap();
        assert_eq!((report.members, report.left_out.len()), (members.len(), 0));
        assert_eq!(fs::read_dir(copy.parent().unwrap()).unwrap().count(), 1, "nothing is left beside it");
        assert!(larder::check(&copy).unwrap().problems.is_empty());
        let opened = Store::options(&copy).layout(layout).open().unwrap();
        assert_eq!(contents(&opened), members);
        assert_eq!(*opened.collection::<Vec<u32>>("years").unwrap().get("discovery").unwrap(), [2001, 3]);
        opened.close().unwrap();
        // The store itself goes on.
        store.put("song/7", "again").unwrap();
        store.close().unwrap();
    }
}

#[test]
fn a_backup_shows_one_moment_whatever_is_written_meanwhile() {
    let (dir, path) = temporary();
    let store = Store::options(&path).layout(Layout::Packed).open().unwrap();
    // Enough for several shards, which are copied one after the other.
    for number in 0..5000 {
        store.put(format!("many/{number}"), "0").unwrap();
    }
    store.put("gone/0", "0").unwrap();
    let done = AtomicBool::new(false);
    let (begun, has_begun) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let _ends = Ends(&done);
        scope.spawn(|| {
            // One writer: at any moment a part of the members, from the first on, has the new number.
            let mut round = 0;
            while !done.load(Ordering::Relaxed) {
                round += 1;
                // Nobody listens after the first one.
                _ = begun.send(());
                for number in 0..5000 {
                    store.put(format!("many/{number}"), round.to_string()).unwrap();
                }
                store.put(format!("gone/{round}"), round.to_string()).unwrap();
                if round % 2 == 0 {
                    store.delete(format!("gone/{}", round - 1)).unwrap();
                    store.delete_all("gone").unwrap();
                    store.put(format!("gone/{round}"), round.to_string()).unwrap();
                }
            }
        });
        has_begun.recv().unwrap();
        for copy in 0..20 {
            let copy = dir.path().join(copy.to_string());
            let report = store.backup(&copy).unwrap();
            let copied = Store::open(&copy).unwrap();
            let found = contents(&copied);
            assert_eq!(found.len(), report.members);
            let number = |key: &str| std::str::from_utf8(&found[key]).unwrap().parse::<u64>().unwrap();
            let numbers: Vec<u64> = (0..5000).map(|member| number(&format!("many/{member}"))).collect();
            assert!(numbers.is_sorted_by(|a, b| a >= b), "a later write is there and an earlier one is not");
            assert!(numbers[0] - numbers[4999] <= 1, "{} and {}", numbers[0], numbers[4999]);
            let gone = found.keys().filter(|key| key.starts_with("gone/")).count();
            // What the last clear left, what the round after it put, and what the next puts before it clears.
            assert!(gone <= 3, "{gone} of what is deleted at once");
            copied.close().unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_backup_leaves_out_what_does_not_encode_and_says_so() {
    struct Odd(bool);
    impl serde::Serialize for Odd {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            if self.0 { Err(serde::ser::Error::custom("odd")) } else { serializer.serialize_unit() }
        }
    }
    impl<'de> serde::Deserialize<'de> for Odd {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Odd, D::Error> {
            <()>::deserialize(deserializer).map(|()| Odd(false))
        }
    }
    let (dir, _) = temporary();
    let store = Store::in_memory();
    let odd = store.collection::<Odd>("odd").unwrap();
    odd.put("well", Odd(false)).unwrap();
    odd.put("not", Odd(true)).unwrap();
    let report = store.backup(dir.path().join("copy")).unwrap();
    assert_eq!(report.members, 1);
    let [error @ Error::Codec { key, .. }] = &report.left_out[..] else { panic!("{report:?}") };
    assert!(key == "odd/not" && error.to_string().contains("odd"), "{error}");
    let copy = Store::open(dir.path().join("copy")).unwrap();
    assert_eq!(contents(&copy).into_keys().collect::<Vec<_>>(), ["odd/well"]);
    assert!(matches!(store.export(Vec::new()), Err(Error::Codec { key, .. }) if key == "odd/not"));
}

#[test]
fn a_backup_replaces_nothing_and_leaves_nothing_when_it_fails() {
    let (dir, path) = temporary();
    let (store, _) = filled(&path, Layout::Packed);
    let taken = dir.path().canonicalize().unwrap().join("taken");
    fs::write(&taken, "somebody's").unwrap();
    for target in [&taken, &path, &taken.join("below")] {
        let before: BTreeSet<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        let failed = store.backup(target);
        assert!(
            matches!(&failed, Err(Error::Io { path, .. }) if path.starts_with(dir.path().canonicalize().unwrap())),
            "{failed:?}"
        );
        let after = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(before, after);
    }
    assert_eq!(fs::read(&taken).unwrap(), b"somebody's");
    store.close().unwrap();
    assert!(matches!(store.backup(dir.path().join("late")), Err(Error::Closed { .. })));
    assert!(matches!(Store::new(dir.path().join("new")).unwrap().backup("x"), Err(Error::NotLoaded { .. })));
}

// ---- looking ----

#[test]
fn a_view_shows_what_was_durable_beside_the_writer_and_refreshes() {
    for layout in LAYOUTS {
        let (_dir, path) = temporary();
        let (store, mut members) = filled(&path, layout);
        store.flush().unwrap();
        let mut view = Store::open_read_only(&path).unwrap();
        assert_eq!(shown(&view), members);
        assert_eq!(view.load_report().quarantined, []);
        assert_eq!(*view.typed::<Vec<u32>>("years").unwrap()[0].1, [2001, 3]);
        assert_eq!((view.len("song").unwrap(), view.len("none").unwrap()), (49, 0));
        assert!(view.is_empty("none").unwrap() && !view.is_empty("artist").unwrap());
        assert!(matches!(view.len("a/b"), Err(Error::InvalidKey { .. })));
        assert!(matches!(view.is_empty(""), Err(Error::InvalidKey { .. })));
        let taken = view.taken_at();
        store.put("song/7", "new").unwrap();
        store.delete("song/8").unwrap();
        store.delete_all("artist").unwrap();
        store.flush().unwrap();
        assert_eq!(shown(&view), members, "it stays as it is");
        members = contents(&store);
        view.refresh().unwrap();
        assert_eq!(shown(&view), members);
        assert!(view.len("song").unwrap() == 49 && view.is_empty("artist").unwrap());
        assert!(view.taken_at() >= taken && view.age() <= taken.elapsed().unwrap_or_default());
        store.close().unwrap();
        view.refresh().unwrap();
        assert_eq!(shown(&view), members);
        // A second one, of a closed store, changes nothing there.
        let closed = tree(&path);
        assert_eq!(shown(&Store::open_read_only(&path).unwrap()), members);
        assert_eq!(tree(&path), closed);
    }
}

#[test]
fn a_view_never_shows_less_than_what_was_flushed_before_however_fast_the_store_changes() {
    const MANY: usize = 300;
    for layout in LAYOUTS {
        let (_dir, path) = temporary();
        let store = Store::options(&path).layout(layout).max_journal(64 << 10).open().unwrap();
        store.put("a/0", "0").unwrap();
        store.flush().unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let _ends = Ends(&done);
            scope.spawn(|| {
                let mut round = 0u64;
                while !done.load(Ordering::Relaxed) {
                    round += 1;
                    for collection in ["a", "b"] {
                        for member in 0..MANY {
                            store
                                .put(format!("{collection}/{member}"), format!("{round} {}", "x".repeat(300)))
                                .unwrap();
                        }
                    }
                    store.flush().unwrap();
                    store.delete_all("b").unwrap();
                    store.put("done/round", round.to_string()).unwrap();
                    store.flush().unwrap();
                    if layout == Layout::Packed && round.is_multiple_of(8) {
                        store.compact().unwrap();
                    }
                }
            });
            let number = |value: &[u8]| -> u64 {
                std::str::from_utf8(value).unwrap().split(' ').next().unwrap().parse().unwrap()
            };
            let mut view = Store::open_read_only(&path).unwrap();
            for _ in 0..60 {
                let known = store.get("done/round").unwrap().map_or(0, |value| number(&value));
                // It is in RAM before it is durable: the round before it is.
                let known = known.saturating_sub(1);
                view.refresh().unwrap();
                assert_eq!(view.load_report().quarantined, []);
                let found = shown(&view);
                let round = found.get("done/round").map_or(0, |value| number(value));
                assert!(round >= known, "{layout:?}: round {round} after {known}");
                for member in 0..MANY {
                    let at = found.get(&format!("a/{member}")).map_or(0, |value| number(value));
                    assert!(at >= known, "{layout:?}: a/{member} is of round {at}, after {known}");
                }
            }
            done.store(true, Ordering::Relaxed);
        });
    }
}

#[test]
fn a_view_misses_nothing_beside_a_store_that_is_opened_and_closed_with_more_and_with_fewer_members() {
    let (_dir, path) = temporary();
    filled(&path, Layout::Files).0.close().unwrap();
    let (done, rounds) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let _ends = Ends(&done);
        let writer = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let round = rounds.fetch_add(1, Ordering::Relaxed);
                let store = Store::open(&path).unwrap();
                for number in 0..20 {
                    let key = format!("song/{number}");
                    if round % 2 == 0 {
                        store.put(key, "again").unwrap();
                    } else {
                        store.delete(key).unwrap();
                    }
                }
                store.close().unwrap();
            }
        });
        let mut view = Store::open_read_only(&path).unwrap();
        let mut looks = 0;
        while (looks < 200 || rounds.load(Ordering::Relaxed) < 20) && !writer.is_finished() {
            looks += 1;
            view.refresh().unwrap();
            assert_eq!(view.load_report().quarantined, []);
        }
        done.store(true, Ordering::Relaxed);
        writer.join().unwrap();
    });
}

#[test]
fn a_view_of_nothing_is_an_error_and_makes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let photos = dir.path().join("photos");
    fs::create_dir(&photos).unwrap();
    fs::write(photos.join("cat.jpg"), "meow").unwrap();
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let before = tree(dir.path());
    for path in [&photos, &empty, &dir.path().join("none")] {
        let failed = Store::open_read_only(path).map(|view| view.path().to_owned());
        assert!(matches!(failed, Err(Error::NotAStore { .. })), "{failed:?}");
        for failed in [larder::check(path).err(), larder::repair(path).err()] {
            assert!(matches!(failed, Some(Error::NotAStore { .. })), "{failed:?}");
        }
    }
    assert_eq!(tree(dir.path()), before);
}

#[test]
fn a_view_tells_of_damage_and_leaves_it_where_it_is() {
    let (_dir, path) = temporary();
    let (store, mut members) = filled(&path, Layout::Files);
    store.close().unwrap();
    fs::write(path.join("song/3"), "edited by hand").unwrap();
    members.remove("song/3");
    let before = tree(&path);
    let view = Store::open_read_only(&path).unwrap();
    assert_eq!(shown(&view), members);
    let quarantined = view.load_report().quarantined;
    assert_eq!((quarantined.len(), &quarantined[0].path), (1, &path.join("song/3")));
    assert_eq!(quarantined[0].moved_to, quarantined[0].path);
    assert_eq!(tree(&path), before);
}

// ---- checking and mending ----

/// Whatever there is, as it is.
fn copy_tree(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            fs::create_dir(&to).unwrap();
            copy_tree(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// Checks, finds this of that severity and nothing worse, mends, and finds nothing but notes.
#[track_caller]
fn assert_mends(path: &Path, severity: Severity, at: &Path, expected: &Members) {
    let before = tree(path);
    let report = larder::check(path).unwrap();
    assert_eq!(tree(path), before, "a check changes nothing");
    let worst = report.problems.first().expect("something is wrong");
    assert!(worst.severity == severity && worst.path == at, "{worst}");
    assert!(!worst.explanation.is_empty() && report.is_sound() == (severity == Severity::Note));
    let repaired = larder::repair(path).unwrap();
    assert_eq!(repaired.members, expected.len());
    let again = larder::check(path).unwrap();
    assert!(again.is_sound(), "{:?}", again.problems);
    assert_eq!(again.members, expected.len());
    let store = Store::open(path).unwrap();
    assert_eq!(store.load_report().quarantined, []);
    assert_eq!(contents(&store), *expected);
    store.close().unwrap();
}

#[test]
fn a_sound_store_is_found_sound_and_mending_it_changes_no_member() {
    for layout in LAYOUTS {
        let (dir, path) = temporary();
        let (store, members) = filled(&path, layout);
        assert!(matches!(larder::check(&path), Err(Error::Locked { .. })));
        assert!(matches!(larder::repair(&path), Err(Error::Locked { .. })));
        store.close().unwrap();
        let report = larder::check(&path).unwrap();
        assert_eq!((&report.problems[..], report.members, report.collections), (&[][..], members.len(), 3));
        assert_eq!(larder::repair(&path).unwrap().quarantined, []);
        let store = Store::open(&path).unwrap();
        assert_eq!(contents(&store), members);
        // One that was not closed is sound, too.
        store.put("song/new", "new").unwrap();
        store.flush().unwrap();
        let crashed = dir.path().join("crashed");
        as_after_a_crash(&path, &crashed);
        let report = larder::check(&crashed).unwrap();
        assert!(report.is_sound() && report.members == members.len() + 1, "{:?}", report.problems);
    }
}

#[test]
fn a_damaged_member_costs_itself() {
    let (_dir, path) = temporary();
    let (store, mut members) = filled(&path, Layout::Files);
    store.close().unwrap();
    let file = path.join("song/3");
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&file, bytes).unwrap();
    members.remove("song/3");
    assert_mends(&path, Severity::Loss, &file, &members);
}

#[test]
fn damage_in_a_packed_store_costs_what_it_hit_and_is_written_anew_by_mending() {
    let (_dir, path) = temporary();
    let (store, members) = filled(&path, Layout::Packed);
    store.compact().unwrap();
    store.put("song/after", "the compaction").unwrap();
    store.close().unwrap();
    let packed = segments(&path).remove(0);
    let mut bytes = fs::read(&packed).unwrap();
    // In the middle of a value of the block that has all songs.
    let at = bytes.windows(300).position(|window| window == [40; 300]).unwrap();
    bytes[at] ^= 1;
    fs::write(&packed, bytes).unwrap();
    let mut left = members.clone();
    left.retain(|key, _| !key.starts_with("song/"));
    left.insert("song/after".into(), b"the compaction".to_vec());
    assert_mends(&path, Severity::Loss, &packed, &left);
    assert!(!packed.exists(), "it is written anew");
    assert!(fs::read_dir(path.join(".larder/quarantine")).unwrap().count() > 0, "and was copied before");
}

#[test]
fn a_format_that_is_damaged_or_missing_is_made_again_as_what_there_is() {
    for layout in LAYOUTS {
        for damage in [None, Some("larder fromat 1\n"), Some("")] {
            let (_dir, path) = temporary();
            let (store, members) = filled(&path, layout);
            store.compact().unwrap();
            store.close().unwrap();
            let format = path.join(".larder/format");
            match damage {
                None => fs::remove_file(&format).unwrap(),
                Some(text) => fs::write(&format, text).unwrap(),
            }
            assert!(Store::open(&path).is_err());
            assert_mends(&path, Severity::Mendable, &format, &members);
        }
    }
    let (_dir, path) = temporary();
    let (store, members) = filled(&path, Layout::Files);
    store.close().unwrap();
    fs::remove_dir_all(path.join(".larder")).unwrap();
    let report = larder::check(&path).unwrap();
    assert_eq!(report.problems[0].severity, Severity::Mendable);
    assert_eq!(larder::repair(&path).unwrap().members, members.len());
    assert_eq!(contents(&Store::open(&path).unwrap()), members);
}

/// A closed packed store of three segments, two of the journal and one that is packed.
fn three_segments(path: &Path) -> Members {
    let (store, _) = filled(path, Layout::Packed);
    store.compact().unwrap();
    store.put("song/second", "second").unwrap();
    store.close().unwrap();
    let store = Store::open(path).unwrap();
    store.put("song/third", "third").unwrap();
    let members = contents(&store);
    store.close().unwrap();
    assert_eq!(segments(path).len(), 3);
    members
}

#[test]
fn segments_that_were_swapped_or_renamed_get_their_names_back_and_lose_nothing() {
    for renames in [&[(0, "t"), (1, "0"), (2, "1")][..], &[(0, "free")]] {
        let (_dir, path) = temporary();
        let members = three_segments(&path);
        let found = segments(&path);
        match renames {
            [_] => fs::rename(&found[0], found[0].with_file_name("0000000077-00000001")).unwrap(),
            _ => {
                fs::rename(&found[0], path.join("t")).unwrap();
                fs::rename(&found[1], &found[0]).unwrap();
                fs::rename(path.join("t"), &found[1]).unwrap();
            }
        }
        let report = larder::check(&path).unwrap();
        let mendable = report.problems.iter().filter(|problem| problem.severity == Severity::Mendable).count();
        assert!(!report.is_sound() && mendable == renames.len().min(2), "{:?}", report.problems);
        assert_eq!(larder::repair(&path).unwrap().members, members.len());
        let store = Store::open(&path).unwrap();
        assert_eq!((contents(&store), store.load_report().quarantined), (members, Vec::new()));
    }
}

/// The name of a member's file, by its key.
fn file_of(path: &Path, key: &str) -> PathBuf {
    let files = lab::member_files(path).into_iter();
    let quoted = format!(" key={} ", serde_json::to_string(key).unwrap());
    let is_its = |file: &PathBuf| {
        let bytes = fs::read(file).unwrap();
        bytes.windows(quoted.len()).any(|window| window == quoted.as_bytes())
    };
    files.into_iter().find(is_its).unwrap_or_else(|| panic!("no file of {key}"))
}

#[test]
fn members_files_that_were_swapped_or_renamed_get_their_names_back_and_lose_nothing() {
    let (a, b, c) = ("song/3", "artist/bj\u{f6}rk/\u{1}", "years/discovery");
    for renames in [
        // Swapped; in a ring, beyond collections; to a name that is free, so that the collection is left empty.
        &[(a, "song/4"), ("song/4", a)][..],
        &[(a, b), (b, c), (c, a)],
        &[(c, "song/free")],
        &[(c, "elsewhere/free")],
    ] {
        let (_dir, path) = temporary();
        let (store, members) = filled(&path, Layout::Files);
        store.close().unwrap();
        let moves: Vec<(PathBuf, PathBuf)> = renames
            .iter()
            .map(|(key, to)| {
                let to = if members.contains_key(*to) { file_of(&path, to) } else { path.join(to) };
                (file_of(&path, key), to)
            })
            .collect();
        let taken: Vec<Vec<u8>> = moves.iter().map(|(from, _)| fs::read(from).unwrap()).collect();
        moves.iter().for_each(|(from, _)| fs::remove_file(from).unwrap());
        for ((_, to), bytes) in moves.iter().zip(taken) {
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::write(to, bytes).unwrap();
        }
        let copy = path.with_file_name("copy");
        fs::create_dir(&copy).unwrap();
        copy_tree(&path, &copy);
        let report = larder::check(&copy).unwrap();
        let told: BTreeSet<_> =
            report.problems.iter().map(|problem| (problem.severity, problem.path.clone())).collect();
        let in_copy = |at: &Path| copy.join(at.strip_prefix(&path).unwrap());
        assert_eq!(told, moves.iter().map(|(_, to)| (Severity::Mendable, in_copy(to))).collect());

        let worst = &larder::check(&path).unwrap().problems[0].path.clone();
        assert_mends(&path, Severity::Mendable, worst, &members);
        let repaired = larder::repair(&copy).unwrap();
        let restored: BTreeSet<_> = repaired.restored.into_iter().map(|one| (one.path, one.moved_to)).collect();
        assert_eq!(restored, moves.iter().map(|(from, to)| (in_copy(to), in_copy(from))).collect());
        assert_eq!(repaired.quarantined, []);
        lab::assert_tidy(&copy);
        assert_eq!(lab::member_files(&copy).len(), members.len());
        assert!(!copy.join("elsewhere").exists());
    }
}

#[test]
fn a_member_s_file_under_another_name_gives_way_to_what_is_newer_and_not_to_what_is_older_or_damaged() {
    let (_dir, path) = temporary();
    let (store, mut members) = filled(&path, Layout::Files);
    store.close().unwrap();
    let files: Vec<PathBuf> = ["song/1", "song/2", "song/3"].into_iter().map(|key| file_of(&path, key)).collect();
    let old: Vec<Vec<u8>> = files.iter().map(|file| fs::read(file).unwrap()).collect();
    let store = Store::open(&path).unwrap();
    for key in ["song/1", "song/2", "song/3"] {
        store.put(key, format!("new {key}")).unwrap();
        members.insert(key.to_owned(), format!("new {key}").into_bytes());
    }
    store.close().unwrap();
    let new: Vec<Vec<u8>> = files.iter().map(|file| fs::read(file).unwrap()).collect();
    // Of 1 an old copy lies about. 2 has its old file back, and 3 a damaged one: the new ones lie about, and of 3 an old one.
    fs::write(path.join("song/lies"), &old[0]).unwrap();
    fs::write(&files[1], &old[1]).unwrap();
    fs::write(path.join("song/about"), &new[1]).unwrap();
    fs::write(&files[2], "damaged").unwrap();
    fs::write(path.join("artist/new"), &new[2]).unwrap();
    fs::write(path.join("artist/old"), &old[2]).unwrap();

    let report = larder::check(&path).unwrap();
    let of = |severity| -> BTreeSet<PathBuf> {
        let problems = report.problems.iter().filter(|problem| problem.severity == severity);
        problems.map(|problem| problem.path.clone()).collect()
    };
    assert_eq!(of(Severity::Mendable), [path.join("song/about"), path.join("artist/new")].into());
    assert_eq!(of(Severity::Loss), [path.join("song/lies"), path.join("artist/old"), files[2].clone()].into());

    let repaired = larder::repair(&path).unwrap();
    assert_eq!(repaired.members, members.len());
    let restored: BTreeSet<_> = repaired.restored.into_iter().map(|one| (one.path, one.moved_to)).collect();
    let expected = [(path.join("song/about"), files[1].clone()), (path.join("artist/new"), files[2].clone())];
    assert_eq!(restored, expected.into());
    let aside: Vec<Vec<u8>> = repaired.quarantined.iter().map(|aside| fs::read(&aside.moved_to).unwrap()).collect();
    let kept: BTreeSet<&[u8]> = aside.iter().map(|bytes| &bytes[..]).collect();
    assert_eq!(kept, [&old[0][..], &old[1], &old[2], b"damaged"].into());
    assert!(larder::check(&path).unwrap().is_sound());
    let store = Store::open(&path).unwrap();
    assert_eq!((contents(&store), store.load_report().quarantined), (members, Vec::new()));

    // What the journal has of the member counts beside the file, whichever name that has: here, that it was deleted.
    let fifth = fs::read(path.join("song/5")).unwrap();
    store.delete("song/5").unwrap();
    store.flush().unwrap();
    let crashed = path.with_file_name("crashed");
    as_after_a_crash(&path, &crashed);
    store.close().unwrap();
    _ = fs::remove_file(crashed.join("song/5"));
    fs::write(crashed.join("song/7"), fifth).unwrap();
    assert_eq!(larder::repair(&crashed).unwrap().restored.len(), 1);
    assert!(!Store::open(&crashed).unwrap().contains("song/5").unwrap());
}

#[test]
fn what_is_missing_from_a_packed_store_that_was_closed_is_told() {
    for take in 0..3 {
        for what in ["gone", "empty", "cut"] {
            let (_dir, path) = temporary();
            let members = three_segments(&path);
            let segment = segments(&path).swap_remove(take);
            match what {
                "gone" => fs::remove_file(&segment).unwrap(),
                "empty" => fs::write(&segment, "").unwrap(),
                _ => {
                    let bytes = fs::read(&segment).unwrap();
                    fs::write(&segment, &bytes[..100]).unwrap();
                }
            }
            let report = larder::check(&path).unwrap();
            let told: Vec<_> = report.problems.iter().filter(|problem| problem.severity == Severity::Loss).collect();
            assert!(!told.is_empty() && told.iter().all(|problem| problem.path == segment), "{what}: {told:?}");
            let store = Store::open(&path).unwrap();
            let quarantined = store.load_report().quarantined;
            assert!(!quarantined.is_empty() && quarantined.iter().all(|told| told.path == segment), "{quarantined:?}");
            assert!(contents(&store).iter().all(|(key, value)| members.get(key) == Some(value)));
            store.compact().unwrap();
            store.close().unwrap();
            // What is written anew is not told again.
            assert_eq!(Store::open(&path).unwrap().load_report().quarantined, [], "{what} of {take}");
        }
    }
    let (_dir, path) = temporary();
    three_segments(&path);
    fs::remove_dir_all(path.join(".larder/journal")).unwrap();
    assert!(!larder::check(&path).unwrap().is_sound());
}

#[test]
fn what_stands_in_the_place_of_a_file_of_larder_s_own_is_told_and_put_aside_and_costs_no_member() {
    let own = ["lock", "format", "counter", "members", "segments", "tmp", "quarantine", "journal"];
    let within = ["journal/0000000077-00000001", "tmp/counter.new", "tmp/0"];
    for layout in LAYOUTS {
        // In files: what a packed store keeps in its journal is lost if that is.
        let names = own.iter().filter(|name| layout == Layout::Files || **name != "journal").chain(&within);
        for name in names {
            let (_dir, path) = temporary();
            let (store, members) = filled(&path, layout);
            // Of one segment at least: what the format was can be told.
            store.compact().unwrap();
            store.close().unwrap();
            let at = path.join(".larder").join(name);
            if at.is_dir() {
                fs::remove_dir(&at).unwrap();
                fs::write(&at, "mine").unwrap();
            } else {
                _ = fs::remove_file(&at);
                fs::create_dir(&at).unwrap();
                fs::write(at.join("mine"), "mine").unwrap();
            }
            let severity = if *name == "journal" { Severity::Loss } else { Severity::Mendable };
            let copy = path.with_file_name("copy");
            fs::create_dir(&copy).unwrap();
            copy_tree(&path, &copy);
            let repaired = larder::repair(&copy).unwrap();
            let [aside] = &repaired.quarantined[..] else { panic!("{name}: {:?}", repaired.quarantined) };
            assert!(aside.path == copy.join(".larder").join(name), "{aside:?}");
            let kept = if aside.moved_to.is_dir() { aside.moved_to.join("mine") } else { aside.moved_to.clone() };
            assert_eq!(fs::read(kept).unwrap(), b"mine", "{name}");
            let note = format!("{}.reason", aside.moved_to.display());
            assert!(fs::read_to_string(note).unwrap().contains("should be one"), "{name}");
            assert_mends(&path, severity, &at, &members);
        }
    }
    // A link is not followed.
    #[cfg(unix)]
    for name in ["lock", "format", "counter"] {
        let (dir, path) = temporary();
        let (store, members) = filled(&path, Layout::Files);
        store.close().unwrap();
        let (at, elsewhere) = (path.join(".larder").join(name), dir.path().join("elsewhere"));
        fs::rename(&at, &elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &at).unwrap();
        let before = fs::read(&elsewhere).unwrap();
        assert_mends(&path, Severity::Mendable, &at, &members);
        assert_eq!(fs::read(&elsewhere).unwrap(), before);
    }
}

#[test]
fn what_is_missing_from_a_store_of_files_that_was_closed_is_told() {
    let (dir, path) = temporary();
    let (store, mut members) = filled(&path, Layout::Files);
    let copy = dir.path().join("copy");
    store.backup(&copy).unwrap();
    store.close().unwrap();
    for store in [&path, &copy] {
        let note = fs::read_to_string(store.join(".larder/members")).unwrap();
        assert!(note.starts_with("larder members 52 counter=5"), "{note}");
        fs::remove_file(store.join("song/3")).unwrap();
        fs::remove_dir_all(store.join("years")).unwrap();
    }
    members.retain(|key, _| key != "song/3" && !key.starts_with("years/"));
    assert_mends(&path, Severity::Loss, &path, &members);
    let told = &larder::check(&copy).unwrap().problems;
    assert!(told.len() == 1 && told[0].explanation.contains("closed with 52 members, and 2 of them"), "{told:?}");
    // A load tells it too, and with a view nothing is forgotten.
    let view = Store::open_read_only(&copy).unwrap();
    let store = Store::open(&copy).unwrap();
    for report in [view.load_report(), store.load_report()] {
        assert!(report.quarantined.len() == 1 && report.quarantined[0].path == copy, "{report:?}");
    }
    store.close().unwrap();
    assert!(larder::check(&copy).unwrap().problems.is_empty(), "it was told");
}

#[test]
fn no_member_is_missed_that_was_deleted_or_put_aside_however_the_process_ends() {
    let (dir, path) = temporary();
    let (store, _) = filled(&path, Layout::Files);
    store.close().unwrap();
    // What an end leaves behind beside the note of the close before it.
    let crashed = dir.path().join("crashed");
    let sound_after_a_crash = |what: &str| {
        _ = fs::remove_dir_all(&crashed);
        as_after_a_crash(&path, &crashed);
        let problems = larder::check(&crashed).unwrap().problems;
        assert!(!problems.iter().any(|problem| problem.explanation.contains("missing")), "{what}: {problems:?}");
        assert!(!Store::open(&crashed).unwrap().load_report().quarantined.iter().any(|told| told.path == crashed));
    };
    let store = Store::open(&path).unwrap();
    sound_after_a_crash("a load");
    store.delete_all("song").unwrap();
    lab::until_at_rest(&store);
    sound_after_a_crash("a clear");
    store.close().unwrap();
    assert!(larder::check(&path).unwrap().problems.is_empty());
    // One that is put aside is told once, by the load that did it.
    fs::write(path.join("artist/empty"), "edited by hand").unwrap();
    let store = Store::open(&path).unwrap();
    assert_eq!(store.load_report().quarantined.len(), 1);
    sound_after_a_crash("a load that put a file aside");
    store.close().unwrap();
    // A note that is damaged, or of another close, is none.
    let note = path.join(".larder/members");
    let whole = fs::read_to_string(&note).unwrap();
    fs::remove_dir_all(path.join("years")).unwrap();
    assert!(!larder::check(&path).unwrap().is_sound());
    for other in [whole.replacen('2', "3", 1), String::new(), whole.repeat(20)] {
        fs::write(&note, other).unwrap();
        let problems = larder::check(&path).unwrap().problems;
        assert!(problems.iter().all(|problem| problem.severity == Severity::Note), "{problems:?}");
    }
    fs::write(&note, &whole).unwrap();
    fs::remove_file(path.join(".larder/counter")).unwrap();
    assert!(larder::check(&path).unwrap().is_sound());
}

#[test]
fn a_move_into_files_touches_nothing_of_somebody_else_s() {
    let (_dir, path) = temporary();
    let (store, members) = filled(&path, Layout::Packed);
    store.close().unwrap();
    fs::create_dir(path.join("song")).unwrap();
    fs::write(path.join("song/3"), "mine").unwrap();
    fs::write(path.join("README.TXT"), "mine").unwrap();
    let before = tree(&path.join("song"));
    let refused = larder::convert(&path, Layout::Files);
    assert!(matches!(&refused, Err(Error::Io { path: at, .. }) if *at == path.join("song/3")), "{refused:?}");
    assert_eq!(tree(&path.join("song")), before);
    assert_eq!(contents(&Store::open(&path).unwrap()), members);
    fs::rename(path.join("song"), path.join("My Songs")).unwrap();
    larder::convert(&path, Layout::Files).unwrap();
    assert_eq!(contents(&Store::open(&path).unwrap()), members);
    assert_eq!(fs::read(path.join("My Songs/3")).unwrap(), b"mine");
    assert_eq!(fs::read(path.join("README.TXT")).unwrap(), b"mine");
}

#[test]
fn every_file_is_read_by_a_check_though_there_is_nothing_beside_them() {
    let (_dir, path) = temporary();
    let (store, mut members) = filled(&path, Layout::Files);
    store.close().unwrap();
    fs::remove_dir_all(path.join(".larder")).unwrap();
    let [damaged, one, other] = ["song/3", "song/4", "song/5"].map(|key| file_of(&path, key));
    fs::write(&damaged, "edited by hand").unwrap();
    let bytes = fs::read(&one).unwrap();
    fs::rename(&other, &one).unwrap();
    fs::write(&other, bytes).unwrap();
    fs::write(path.join("notes.txt"), "mine").unwrap();
    members.remove("song/3");
    let before = tree(&path);
    let report = larder::check(&path).unwrap();
    assert_eq!(tree(&path), before);
    assert_eq!((report.members, report.collections), (members.len() - 2, 3), "the two are not where they should be");
    let told: Vec<_> = report.problems.iter().map(|problem| (problem.severity, problem.path.clone())).collect();
    let mendable = [path.join(".larder"), one, other].map(|path| (Severity::Mendable, path));
    let expected = [vec![(Severity::Loss, damaged)], mendable.to_vec(), vec![(Severity::Note, path.join("notes.txt"))]];
    assert_eq!(told, expected.concat());
    assert_eq!(larder::repair(&path).unwrap().members, members.len());
    assert!(larder::check(&path).unwrap().is_sound());
    assert_eq!(contents(&Store::open(&path).unwrap()), members);
}

#[test]
fn a_list_of_segments_or_a_number_of_members_that_is_damaged_is_told_in_words() {
    for (layout, name) in [(Layout::Files, "members"), (Layout::Packed, "segments")] {
        let (_dir, path) = temporary();
        let (store, members) = filled(&path, layout);
        store.close().unwrap();
        let list = path.join(".larder").join(name);
        let whole = fs::read_to_string(&list).unwrap();
        for damaged in [String::new(), "\0".repeat(40), whole.replacen("crc32=", "crc32=0", 1), whole.repeat(2)] {
            fs::write(&list, damaged).unwrap();
            let before = tree(&path);
            let report = larder::check(&path).unwrap();
            let [told] = &report.problems[..] else { panic!("{name}: {:?}", report.problems) };
            assert_eq!((told.severity, &told.path), (Severity::Note, &list));
            assert!(told.explanation.contains("damaged") && told.explanation.contains("missing"), "{told}");
            assert_eq!((report.members, tree(&path)), (members.len(), before));
            let store = Store::open(&path).unwrap();
            assert_eq!((store.load_report().quarantined, contents(&store)), (Vec::new(), members.clone()));
            store.close().unwrap();
            assert_eq!(
                (larder::check(&path).unwrap().problems, fs::read_to_string(&list).unwrap().len()),
                (vec![], whole.len())
            );
        }
    }
}

#[test]
fn a_newer_format_is_refused_by_checking_and_mending() {
    let (_dir, path) = temporary();
    filled(&path, Layout::Packed).0.close().unwrap();
    fs::write(path.join(".larder/format"), "larder format 2 frozen\n").unwrap();
    let before = tree(&path);
    for failed in [larder::check(&path).err(), larder::repair(&path).err()] {
        assert!(matches!(failed, Some(Error::NewerFormat { found: 2, .. })), "{failed:?}");
    }
    assert!(matches!(Store::open_read_only(&path), Err(Error::NewerFormat { .. })));
    assert_eq!(tree(&path), before);
}

#[test]
fn what_is_no_damage_is_noted_in_words() {
    let (_dir, path) = temporary();
    let (store, members) = filled(&path, Layout::Files);
    store.close().unwrap();
    fs::write(path.join("notes.txt"), "mine").unwrap();
    fs::write(path.join(".larder/tmp/left"), "over").unwrap();
    let report = larder::check(&path).unwrap();
    let noted: Vec<_> = report.problems.iter().map(|problem| (problem.severity, problem.path.clone())).collect();
    assert_eq!(noted, [(Severity::Note, path.join(".larder/tmp")), (Severity::Note, path.join("notes.txt"))]);
    assert!(report.is_sound() && report.members == members.len());
    larder::repair(&path).unwrap();
    assert_eq!(fs::read(path.join("notes.txt")).unwrap(), b"mine");
}

// ---- export and import ----

#[test]
fn what_is_exported_and_imported_is_the_same_byte_for_byte() {
    let (_dir, path) = temporary();
    let (store, _) = filled(&path, Layout::Files);
    let strange: Vec<u8> = (0..=255).collect();
    store.put("strange/\"\n\u{7f}\u{1f600}", &strange).unwrap();
    store.put("strange/utf8", "\u{0} \u{1f600} \"quoted\"\n\\").unwrap();
    #[cfg(feature = "bincode")]
    store.collection_with::<(String, u8), larder::Bincode>("pair").unwrap().put("m", ("text".into(), 7)).unwrap();
    let members = contents(&store);
    let mut lines = Vec::new();
    assert_eq!(store.export(&mut lines).unwrap(), members.len() as u64);
    assert_eq!(lines.iter().filter(|&&byte| byte == b'\n').count(), members.len(), "one member a line");

    let other = Store::in_memory();
    other.put("song/kept", "it is not spoken of").unwrap();
    assert_eq!(other.import(&lines[..]).unwrap(), members.len() as u64);
    let mut expected = members.clone();
    expected.insert("song/kept".into(), b"it is not spoken of".to_vec());
    assert_eq!(contents(&other), expected);
    // The codecs came along.
    assert_eq!(*other.collection::<Vec<u32>>("years").unwrap().get("discovery").unwrap(), [2001, 3]);
    #[cfg(feature = "bincode")]
    assert_eq!(other.collection_with::<(String, u8), larder::Bincode>("pair").unwrap().get("m").unwrap().1, 7);
    assert!(matches!(
        other.collection_with::<String, larder::Json>("pair"),
        Ok(_) | Err(Error::Codec { .. } | Error::TypeMismatch { .. })
    ));
    // A view exports the same.
    store.close().unwrap();
    let mut again = Vec::new();
    Store::open_read_only(&path).unwrap().export(&mut again).unwrap();
    let sorted = |lines: &[u8]| lines.split(|&byte| byte == b'\n').map(<[u8]>::to_vec).collect::<BTreeSet<_>>();
    assert_eq!(sorted(&again), sorted(&lines));
}

#[test]
fn a_line_that_is_wrong_is_named_and_what_came_before_it_is_put() {
    for (wrong, rule) in [
        ("nonsense", "expected"),
        ("[]", "invalid type"),
        ("{}", "no key"),
        (r#"{"key":"a/x"}"#, "neither value nor base64"),
        (r#"{"key":"a/x","value":"1","base64":"MQ=="}"#, "value and base64"),
        (r#"{"key":"a/x","value":1}"#, "expected \"value\" to be a string, in column 22"),
        (r#"{"key":["a/x"],"value":"1"}"#, "expected \"key\" to be a string"),
        (r#" {"key":"a/x","value":"1"} {"#, "trailing characters, in column 28"),
        (r#"{"key":"a/x","value":"1","value":"2"}"#, "one of them twice"),
        (r#"{"key":"a/x","base64":"*"}"#, "Invalid"),
        (r#"{"key":"x","value":"1"}"#, "invalid key"),
        (r#"{"key":"../x","value":"1"}"#, "invalid key"),
        (r#"{"key":"a/x","value":"1","codec":"NO"}"#, "codec"),
        (r#"{"key":"a/x","value":"1","colour":"red"}"#, "not a field"),
        (r#"{"key":"a/x","value":"1","deadline":"x"}"#, "deadline"),
        ("{\"key\":\"a/\u{fffd}\",\"value\":\"\u{0}", "control character"),
        (r#"{"key":"years/x","value":"no years","codec":"json"}"#, "decode"),
        (r#"{"key":"years/x","value":"[1,\n\nno]","codec":"json"}"#, "2 line feeds into the value"),
        (r#"{"key":"years/x","value":"[]","codec":"other"}"#, "another codec"),
    ] {
        let store = Store::in_memory();
        store.collection::<Vec<u32>>("years").unwrap();
        let lines =
            format!("{{\"key\":\"a/first\",\"value\":\"1\"}}\n\n{wrong}\n{{\"key\":\"a/last\",\"value\":\"1\"}}\n");
        let failed = store.import(lines.as_bytes()).unwrap_err();
        assert!(matches!(failed, Error::Import { line: 3, .. }), "{wrong}: {failed}");
        assert!(failed.to_string().contains("line 3") && failed.to_string().contains(rule), "{wrong}: {failed}");
        assert_eq!(failed.to_string().matches("line ").count() - usize::from(rule.contains("line ")), 1, "{failed}");
        let mut causes = std::iter::successors(std::error::Error::source(&failed), |cause| cause.source());
        assert!(causes.all(|cause| !cause.to_string().contains(" at line")), "{failed:?}");
        assert_eq!(contents(&store).into_keys().collect::<Vec<_>>(), ["a/first"], "{wrong}");
    }
    // Bytes that are no text, and a reader that fails.
    struct Fails;
    impl std::io::Read for Fails {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("the cable"))
        }
    }
    let store = Store::in_memory();
    assert!(matches!(store.import(&b"\xff\xfe\n"[..]), Err(Error::Import { line: 1, .. })));
    assert!(store.import(Fails).unwrap_err().to_string().contains("the cable"));
    assert!(matches!(store.export(&mut &mut [0u8; 0][..]), Ok(0)));
    store.put("a/b", "c").unwrap();
    assert!(matches!(store.export(&mut &mut [0u8; 3][..]), Err(Error::Export { .. })));
}

#[cfg(target_os = "linux")]
const LINE: &str = "LARDER_UPKEEP_LINE";

/// The most memory that this process has had, in bytes.
#[cfg(target_os = "linux")]
fn peak() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() << 10
}

/// Imports one line, and says how much of the peak it takes, in hundredths of its length.
#[cfg(target_os = "linux")]
#[test]
fn child_imports_a_line() {
    let Ok(part) = std::env::var(LINE) else { return };
    const LENGTH: usize = 16 << 20;
    let [start, again, end] = part.split('~').collect::<Vec<_>>()[..] else { panic!("{part}") };
    let mut line = String::with_capacity(LENGTH + start.len() + end.len());
    line.push_str(start);
    (0..LENGTH / again.len()).for_each(|_| line.push_str(again));
    line.push_str(end);
    let store = Store::in_memory();
    let before = peak();
    _ = store.import(line.as_bytes());
    lab::say(&((peak() - before) * 100 / line.len()).to_string());
}

#[cfg(target_os = "linux")]
#[test]
fn a_line_takes_no_more_memory_than_a_few_times_its_length_whatever_is_in_it() {
    for line in [
        // What is there again and again stands between tildes.
        r#"{"key":"a/b","value":[~{"":0},~0]}"#,
        r#"{"key":"a/b","colours":[~[],~0]}"#,
        r#"{"deadline":[~{"":0},~0]}"#,
        r#"{~"deadline":null,~"key":"a/b"}"#,
        r#"{"key":"a/~aaaa~","value":""}"#,
        r#"{"key":"a/b","~aaaa~":""}"#,
        r#"{"key":"a/b","value":"~a~"}"#,
        r#"{"key":"a/b","value":"~\u0041~"}"#,
        r#"{"key":"a/b","base64":"~AAAA~"}"#,
        "no JSON at all~ at all~",
    ] {
        let mut command = lab::once_more("child_imports_a_line");
        command.env(LINE, line);
        let mut child = lab::Process::start(command);
        let hundredths: usize = child.heard().unwrap().parse().unwrap();
        assert!(child.wait().success());
        // It is read into a buffer that doubles.
        assert!(hundredths < 600, "{line}: {hundredths} hundredths of its length");
    }
}
