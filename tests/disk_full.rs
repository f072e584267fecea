//! When the disk takes no more: reads go on, writes go on up to their bound, everybody is told which path and why, and
//! all is stored once the disk recovers.
//!
//! Full and read-only disks are small file systems in memory, mounted in a name space of the test's own. Where that is
//! not allowed, the tests that need one say so on standard error.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test, a panic is the report")]

mod lab;

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use lab::{assert_only_files, member_files, names, segments, tree, until, until_at_rest};
use larder::{Error, Health, Layout, Store};

type Members = BTreeMap<String, Vec<u8>>;

fn contents(store: &Store) -> Members {
    let mut contents = BTreeMap::new();
    for collection in store.collections().unwrap() {
        for (member, value) in store.get_all(&collection).unwrap() {
            contents.insert(format!("{collection}/{member}"), value.to_vec());
        }
    }
    contents
}

/// The path that an error of the disk names, and the kind of error.
#[track_caller]
fn path_and_kind(error: &Error) -> (PathBuf, ErrorKind) {
    match error {
        Error::Io { path, source, .. } => (path.clone(), source.kind()),
        other => panic!("not an error of the disk: {other}"),
    }
}

/// The journal takes nothing: `flush`, `close` and `health` tell of the same trouble, below this path.
#[track_caller]
fn assert_told(store: &Store, below: &Path, kind: ErrorKind) {
    let (path, is) = path_and_kind(&store.flush().expect_err("a flush that cannot be"));
    assert!(path.starts_with(below) && is == kind, "{path:?}: {is}");
    assert_close_and_health_tell(store, below, kind);
}

/// The journal takes it, and the files do not: `flush` is right to succeed; `close` and `health` tell of the trouble,
/// below this path.
#[track_caller]
fn assert_files_told(store: &Store, below: &Path, kind: ErrorKind) {
    store.flush().expect("it is durable in the journal");
    assert_close_and_health_tell(store, below, kind);
    assert!(store.stats().journal_bytes > 0);
}

#[track_caller]
fn assert_close_and_health_tell(store: &Store, below: &Path, kind: ErrorKind) {
    let closed = store.close().expect_err("a close that cannot be");
    let Health::Failing { problems, .. } = store.health() else { panic!("health is well, after {closed}") };
    for error in [&closed].into_iter().chain(&problems) {
        let (path, is) = path_and_kind(error);
        assert!(path.starts_with(below) && is == kind, "{error}");
    }
}

/// Waits until there is nothing left to do, and no trouble. Nobody asks for it.
fn until_all_is_stored(store: &Store) {
    until("all is stored", || {
        let stats = store.stats();
        store.health().is_well() && (stats.dirty, stats.unsaved_bytes, stats.journal_bytes) == (0, 0, 0)
    });
}

/// What was written of files that could not be is gone. It is tried again and again, so a part of one may be there at
/// times.
fn until_nothing_is_left_over(store: &Store) {
    until("what was written in vain is gone", || names(&store.path().join(".larder/tmp")).is_empty());
}

/// Closes, opens again, and finds the same; a store in files has nothing else.
#[track_caller]
fn assert_comes_back(store: &Store, expected: &Members) {
    assert!(contents(store) == *expected, "RAM has something else");
    store.close().unwrap();
    let is_packed = fs::read_to_string(store.path().join(".larder/format")).unwrap().contains("packed");
    if !is_packed {
        assert_only_files(store.path());
    }
    let store = Store::open(store.path()).unwrap();
    assert_eq!(store.load_report().quarantined, []);
    assert!(contents(&store) == *expected, "the disk has something else");
    assert_eq!(member_files(store.path()).len(), if is_packed { 0 } else { expected.len() });
    store.close().unwrap();
}

#[cfg(target_os = "linux")]
mod mounted {
    use std::fs::File;
    use std::io::Write;
    use std::process::{Command, Output};

    use super::*;
    use lab::{LONGEST, once_more, tell};
    use larder::Durability;

    const DISK: &str = "LARDER_DISK_FULL_DISK";
    const MOUNT: &str = "LARDER_DISK_FULL_MOUNT";
    const LAYOUT: &str = "LARDER_DISK_FULL_LAYOUT";
    const KIB: usize = 1024;

    /// A shell script in a name space where it may mount.
    fn in_name_space(mut command: Command, script: &str, disk: &Path, options: &str) -> std::io::Result<Output> {
        let mut unshare = Command::new("unshare");
        unshare.args(["-rm", "sh", "-c", script]).arg(command.get_program()).args(command.get_args());
        unshare.env(DISK, disk).env(MOUNT, options);
        command = unshare;
        command.output()
    }

    /// Runs `body` on a file system of its own, which it is given: in this process if it is the one that was started
    /// for it, in a new one if not.
    fn on_a_disk(test: &str, options: &str, body: impl FnOnce(&Path)) {
        on_a_disk_in(Layout::Files, test, options, body);
    }

    /// The same in each layout, on a disk for each.
    fn in_each_layout(test: &str, options: &str, body: impl Fn(&Path, Layout)) {
        for layout in [Layout::Files, Layout::Packed] {
            let is_asked = std::env::var(LAYOUT).is_ok_and(|asked| asked != layout.to_string());
            if !is_asked {
                on_a_disk_in(layout, test, options, |disk| body(disk, layout));
            }
        }
    }

    fn on_a_disk_in(layout: Layout, test: &str, options: &str, body: impl FnOnce(&Path)) {
        if let Some(disk) = std::env::var_os(DISK) {
            return body(Path::new(&disk));
        }
        let disk = tempfile::tempdir().unwrap();
        let mount = r#"mount -t tmpfs -o "$LARDER_DISK_FULL_MOUNT" larder "$LARDER_DISK_FULL_DISK""#;
        let allowed = in_name_space(Command::new("true"), mount, disk.path(), options);
        if !allowed.as_ref().is_ok_and(|output| output.status.success()) {
            return tell(&format!("{test}: not run here: user namespaces are not allowed"));
        }
        let script = format!(r#"{mount} && exec "$0" "$@""#);
        let mut command = Command::new("env");
        let again = once_more(&format!("mounted::{test}"));
        command.arg(format!("{LAYOUT}={layout}")).arg(again.get_program()).args(again.get_args());
        let output = in_name_space(command, &script, disk.path(), options).unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && out.contains("1 passed"), "{out}{err}");
    }

    /// Takes all the room that is left, to the last byte.
    fn fill(path: &Path) {
        let mut filler = File::create(path).unwrap();
        for block in [&[0; 4096][..], &[0; 1]] {
            while filler.write_all(block).is_ok() {}
        }
        let told = filler.write_all(&[0]).expect_err("there is room still");
        assert_eq!(told.kind(), ErrorKind::StorageFull);
    }

    fn value(number: usize) -> Vec<u8> {
        format!("{number} ").into_bytes().repeat(4000).into_iter().take(4000).collect()
    }

    fn put(store: &Store, members: &mut Members, number: usize) -> larder::Result<()> {
        let key = format!("song/{number}");
        store.put(&key, value(number))?;
        members.insert(key, value(number));
        Ok(())
    }

    /// Puts and flushes until a flush fails: the journal has all the room there was. Returns what the store took.
    fn fill_by_putting(store: &Store) -> Members {
        let mut members = Members::new();
        while store.flush().is_ok() {
            let number = members.len();
            put(store, &mut members, number).unwrap();
        }
        assert!(members.len() > 20, "the disk was full at once");
        assert_told(store, store.path(), ErrorKind::StorageFull);
        assert!(contents(store) == members, "reads are right while the disk is full");
        members
    }

    /// Puts until no more is taken, on a disk that takes nothing.
    fn fill_to_the_bound(store: &Store, members: &mut Members, kind: ErrorKind) {
        let taken_before = members.len();
        let refused = loop {
            let number = members.len();
            if let Err(error) = put(store, members, number) {
                break error;
            }
            assert!(number < 10_000, "there is no bound");
        };
        assert!(members.len() > taken_before + 40, "writes go on in RAM");
        let mut source = &refused;
        while let Error::Degraded { source: Some(deeper), .. } = source {
            source = deeper;
        }
        let (path, is) = path_and_kind(source);
        assert!(path.starts_with(store.path()) && is == kind, "{refused}");
        assert_eq!(store.get(format!("song/{}", members.len())).unwrap(), None, "what was refused is not there");

        let stats = store.stats();
        assert!(stats.unsaved_bytes <= 256 * KIB, "{stats:?}");
        assert!(stats.unsaved_bytes > 256 * KIB - 2 * value(0).len(), "refused before the bound: {stats:?}");
        assert!(stats.dirty > 0 && stats.oldest_dirty.is_some());
        assert_told(store, store.path(), kind);
        assert!(contents(store) == *members, "reads are right at the bound");
    }

    /// Deletes these members.
    fn delete(store: &Store, members: &mut Members, numbers: std::ops::Range<usize>) {
        for number in numbers {
            let key = format!("song/{number}");
            assert_eq!(store.delete(&key).unwrap().unwrap(), members.remove(&key).unwrap());
        }
    }

    /// Puts so many members, which come to rest in files.
    fn put_to_rest(store: &Store, count: usize) -> Members {
        let mut members = Members::new();
        (0..count).for_each(|number| put(store, &mut members, number).unwrap());
        until_at_rest(store);
        members
    }

    fn small_store(disk: &Path) -> Store {
        small_store_in(Layout::Files, disk)
    }

    fn small_store_in(layout: Layout, disk: &Path) -> Store {
        let options = Store::options(disk.join("store")).layout(layout).max_unsaved(256 * KIB);
        options.write_timeout(LONGEST).open().unwrap()
    }

    #[test]
    fn a_full_disk_is_told_and_all_is_stored_once_somebody_makes_room() {
        in_each_layout("a_full_disk_is_told_and_all_is_stored_once_somebody_makes_room", "size=3m", |disk, layout| {
            fs::write(disk.join("filler"), vec![0; 2560 * KIB]).unwrap();
            let store = small_store_in(layout, disk);
            let mut members = fill_by_putting(&store);
            fill_to_the_bound(&store, &mut members, ErrorKind::StorageFull);
            fs::remove_file(disk.join("filler")).unwrap();
            until_all_is_stored(&store);
            assert_comes_back(&store, &members);
        });
    }

    #[test]
    fn deleting_members_makes_room_on_a_full_disk() {
        on_a_disk("deleting_members_makes_room_on_a_full_disk", "size=1m", |disk| {
            let store = small_store(disk);
            let mut members = put_to_rest(&store, 60);
            fill(&disk.join("filler"));
            // As much as the journal has room for.
            until("the disk is full", || {
                let number = members.len();
                put(&store, &mut members, number).unwrap();
                store.flush().is_err()
            });
            assert_told(&store, store.path(), ErrorKind::StorageFull);
            let more = members.len() + 5;
            (members.len()..more).for_each(|number| put(&store, &mut members, number).unwrap());
            assert_told(&store, store.path(), ErrorKind::StorageFull);
            assert!(contents(&store) == members, "reads are right while the disk is full");
            delete(&store, &mut members, 0..60);
            store.flush().unwrap();
            until_all_is_stored(&store);
            assert_comes_back(&store, &members);
        });
    }

    #[test]
    fn delete_all_makes_room_on_a_full_disk() {
        on_a_disk("delete_all_makes_room_on_a_full_disk", "size=1m", |disk| {
            let store = small_store(disk);
            let mut members = put_to_rest(&store, 60);
            fill(&disk.join("filler"));
            fill_to_the_bound(&store, &mut members, ErrorKind::StorageFull);
            assert_eq!(store.delete_all("song").unwrap(), members.len());
            store.put("artist/daft_punk", "epic").unwrap();
            store.flush().unwrap();
            until_all_is_stored(&store);
            assert_comes_back(&store, &BTreeMap::from([("artist/daft_punk".to_owned(), b"epic".to_vec())]));
        });
    }

    #[test]
    fn a_disk_without_room_for_another_file_is_told_and_heals() {
        on_a_disk("a_disk_without_room_for_another_file_is_told_and_heals", "size=16m,nr_inodes=80", |disk| {
            let store = small_store(disk);
            let mut members = Members::new();
            (0..200).for_each(|number| put(&store, &mut members, number).unwrap());
            assert_files_told(&store, store.path(), ErrorKind::StorageFull);
            assert!(contents(&store) == members, "reads are right while there is no room");
            delete(&store, &mut members, 0..10);
            assert_files_told(&store, store.path(), ErrorKind::StorageFull);
            assert!(contents(&store) == members, "ten are too few");
            delete(&store, &mut members, 10..150);
            until_all_is_stored(&store);
            assert_comes_back(&store, &members);
        });
    }

    #[test]
    fn a_store_on_a_full_disk_opens_and_can_be_emptied() {
        on_a_disk("a_store_on_a_full_disk_opens_and_can_be_emptied", "size=512k", |disk| {
            let path = disk.join("store");
            let store = Store::open(&path).unwrap();
            let mut members = Members::new();
            (0..40).for_each(|number| put(&store, &mut members, number).unwrap());
            store.close().unwrap();
            fill(&disk.join("filler"));

            let store = Store::open(&path).unwrap();
            assert!(contents(&store) == members);
            delete(&store, &mut members, 0..20);
            store.flush().unwrap();
            put(&store, &mut members, 100).unwrap();
            store.flush().unwrap();
            until_all_is_stored(&store);
            assert_comes_back(&store, &members);
        });
    }

    /// Bytes that the disk has room for.
    fn room(disk: &Path) -> u64 {
        let found = rustix::fs::statvfs(disk).unwrap();
        found.f_bavail * found.f_frsize
    }

    #[test]
    fn a_conversion_that_a_full_disk_ends_gives_the_room_back_and_goes_through_once_there_is_more() {
        let test = "a_conversion_that_a_full_disk_ends_gives_the_room_back_and_goes_through_once_there_is_more";
        in_each_layout(test, "size=2m", |disk, layout| {
            let to = if layout == Layout::Files { Layout::Packed } else { Layout::Files };
            let store = small_store_in(layout, disk);
            let mut members = put_to_rest(&store, 60);
            store.put("artist/daft_punk", "epic").unwrap();
            members.insert("artist/daft_punk".to_owned(), b"epic".to_vec());
            store.close().unwrap();
            let path = store.path();
            // From room for next to nothing to room for nearly all of it.
            let needed = 60 * 4096;
            for left in [0, 4096, 3 * 4096, needed / 2, needed - 3 * 4096] {
                let filler = File::create(disk.join("filler")).unwrap();
                while (&filler).write_all(&[0; 4096]).is_ok() {}
                filler.set_len(filler.metadata().unwrap().len().saturating_sub(left)).unwrap();
                let (before, room_before) = (tree(path), room(disk));
                let failed = larder::convert(path, to).unwrap_err();
                assert_eq!(path_and_kind(&failed).1, ErrorKind::StorageFull, "{failed}");
                // Whoever has the lock leaves a note in it.
                let mut after = tree(path);
                after.insert(path.join(".larder/lock"), before[&path.join(".larder/lock")].clone());
                let named = |tree: &BTreeMap<PathBuf, String>| tree.keys().cloned().collect::<Vec<_>>();
                assert_eq!(named(&after), named(&before), "with {left} bytes left");
                assert!(after == before, "with {left} bytes left");
                assert!(room(disk) >= room_before, "{} of {room_before} bytes, with {left} left", room(disk));
                fs::remove_file(disk.join("filler")).unwrap();
                assert!(larder::check(path).unwrap().problems.is_empty());
            }
            larder::convert(path, to).unwrap();
            let store = Store::options(path).layout(to).open().unwrap();
            assert_comes_back(&store, &members);
        });
    }

    #[test]
    fn a_store_that_has_stored_everything_closes_on_a_full_disk() {
        in_each_layout("a_store_that_has_stored_everything_closes_on_a_full_disk", "size=512k", |disk, layout| {
            let store = small_store_in(layout, disk);
            let members = put_to_rest(&store, 40);
            fill(&disk.join("filler"));
            store.flush().unwrap();
            assert!(store.health().is_well());
            // One segment may stay, for its counter.
            let mut store = store;
            for _ in 0..3 {
                store.close().unwrap();
                let may_stay = layout == Layout::Packed || segments(store.path()).len() <= 1;
                assert!(may_stay, "{:?}", segments(store.path()));
                store = Store::open(store.path()).unwrap();
                assert!(contents(&store) == members);
                assert!(store.health().is_well());
            }
            store.close().unwrap();
            fs::remove_file(disk.join("filler")).unwrap();
            assert_comes_back(&Store::open(store.path()).unwrap(), &members);
        });
    }

    #[test]
    fn a_compaction_without_room_is_told_and_harms_nothing() {
        on_a_disk("a_compaction_without_room_is_told_and_harms_nothing", "size=1m", |disk| {
            let store = small_store_in(Layout::Packed, disk);
            let mut members = put_to_rest(&store, 60);
            fill(&disk.join("filler"));
            let (path, kind) = path_and_kind(&store.compact().expect_err("a compaction that cannot be"));
            assert!(path.starts_with(store.path()) && kind == ErrorKind::StorageFull, "{path:?}: {kind}");
            assert!(contents(&store) == members);
            store.flush().expect("it is as durable as it was");
            fs::remove_file(disk.join("filler")).unwrap();
            delete(&store, &mut members, 0..30);
            store.compact().unwrap();
            until_all_is_stored(&store);
            assert_comes_back(&store, &members);
        });
    }

    #[test]
    fn a_store_with_a_damaged_file_on_a_full_disk_opens_and_can_be_emptied() {
        on_a_disk("a_store_with_a_damaged_file_on_a_full_disk_opens_and_can_be_emptied", "size=512k", |disk| {
            let path = disk.join("store");
            let store = Store::open(&path).unwrap();
            let mut members = Members::new();
            (0..40).for_each(|number| put(&store, &mut members, number).unwrap());
            store.close().unwrap();
            let damaged = path.join("song").join("7");
            let length = fs::metadata(&damaged).unwrap().len();
            File::options().write(true).open(&damaged).unwrap().set_len(length - 1).unwrap();
            fill(&disk.join("filler"));

            let store = Store::open(&path).unwrap();
            members.remove("song/7");
            assert!(contents(&store) == members, "the damaged file costs its own member only");
            assert_eq!(store.load_report().quarantined.len(), 1);
            assert_eq!(store.load_report().quarantined[0].path, store.path().join("song/7"));
            store.delete_all("song").unwrap();
            store.flush().unwrap();
            until_all_is_stored(&store);
            store.close().unwrap();
            assert!(member_files(&path).is_empty());
        });
    }

    #[test]
    fn deletes_make_room_however_many_writes_came_before_them_on_the_full_disk() {
        let name = "deletes_make_room_however_many_writes_came_before_them_on_the_full_disk";
        on_a_disk(name, "size=1m", |disk| {
            let store = small_store(disk);
            let mut members = put_to_rest(&store, 60);
            fill(&disk.join("filler"));
            let same = value(0);
            for _ in 0..70_000 {
                store.put("song/0", &same).unwrap();
            }
            delete(&store, &mut members, 10..60);
            store.flush().unwrap();
            until_all_is_stored(&store);
            assert_comes_back(&store, &members);
        });
    }

    #[test]
    fn a_value_that_does_not_fit_leaves_the_one_that_was_stored() {
        on_a_disk("a_value_that_does_not_fit_leaves_the_one_that_was_stored", "size=512k", |disk| {
            let path = disk.join("store");
            let store = Store::open(&path).unwrap();
            store.put("artist/daft_punk", "epic").unwrap();
            until_at_rest(&store);
            let stored = tree(&path.join("artist"));
            store.put("artist/daft_punk", vec![b'x'; 1024 * KIB]).unwrap();
            assert_told(&store, store.path(), ErrorKind::StorageFull);
            assert_eq!(tree(&path.join("artist")), stored);
            assert_eq!(names(&path.join(".larder/tmp")), [""; 0], "what was written of it is gone");
            // A smaller one, put later, is stored beside it.
            store.put("artist/justice", "cross").unwrap();
            assert_told(&store, store.path(), ErrorKind::StorageFull);
            store.put("artist/daft_punk", "discovery").unwrap();
            store.flush().unwrap();
            until_all_is_stored(&store);
            let expected = [("artist/daft_punk", "discovery"), ("artist/justice", "cross")];
            assert_comes_back(&store, &expected.map(|(key, value)| (key.to_owned(), value.into())).into());
        });
    }

    #[test]
    fn a_value_that_fits_into_the_journal_and_not_into_a_file_as_well_is_durable_and_told() {
        let name = "a_value_that_fits_into_the_journal_and_not_into_a_file_as_well_is_durable_and_told";
        on_a_disk(name, "size=1m", |disk| {
            let store = Store::open(disk.join("store")).unwrap();
            store.put("artist/daft_punk", "epic").unwrap();
            until_at_rest(&store);
            let large = vec![b'x'; 600 * KIB];
            store.put("artist/daft_punk", &large).unwrap();
            assert_files_told(&store, store.path(), ErrorKind::StorageFull);
            assert!(fs::read(store.path().join("artist/daft_punk")).unwrap().ends_with(b"\nepic"));
            until_nothing_is_left_over(&store);
            assert_eq!(store.get("artist/daft_punk").unwrap().unwrap(), large);
            store.put("artist/daft_punk", "discovery").unwrap();
            until_all_is_stored(&store);
            assert_comes_back(&store, &[("artist/daft_punk".to_owned(), b"discovery".to_vec())].into());
        });
    }

    #[test]
    fn a_write_that_is_to_be_durable_at_once_fails_on_a_full_disk_and_is_in_ram() {
        let name = "a_write_that_is_to_be_durable_at_once_fails_on_a_full_disk_and_is_in_ram";
        in_each_layout(name, "size=1m", |disk, layout| {
            let store =
                Store::options(disk.join("store")).layout(layout).durability(Durability::Immediate).open().unwrap();
            let mut members = Members::new();
            put(&store, &mut members, 0).unwrap();
            fill(&disk.join("filler"));
            // The journal has some room ahead.
            let failed = loop {
                let number = members.len();
                if let Err(error) = put(&store, &mut members, number) {
                    members.insert(format!("song/{number}"), value(number));
                    break error;
                }
                assert!(number < 200, "there is room still");
            };
            let (path, kind) = path_and_kind(&failed);
            assert!(path.starts_with(store.path()) && kind == ErrorKind::StorageFull, "{path:?}");
            assert!(contents(&store) == members);
            fs::remove_file(disk.join("filler")).unwrap();
            let number = members.len();
            put(&store, &mut members, number).unwrap();
            until_all_is_stored(&store);
            assert_comes_back(&store, &members);
        });
    }

    #[test]
    fn the_last_handle_dropped_on_a_full_disk_frees_the_lock_and_keeps_what_was_durable() {
        let name = "the_last_handle_dropped_on_a_full_disk_frees_the_lock_and_keeps_what_was_durable";
        in_each_layout(name, "size=1m", |disk, layout| {
            let store = small_store_in(layout, disk);
            let mut members = put_to_rest(&store, 20);
            fill(&disk.join("filler"));
            // In the journal, as long as it has room, and not in files.
            let mut tried = members.clone();
            while store.flush().is_ok() {
                members = tried.clone();
                let number = tried.len();
                put(&store, &mut tried, number).unwrap();
            }
            store.put("song/0", "not durable").unwrap();
            assert_told(&store, store.path(), ErrorKind::StorageFull);
            let path = store.path().to_owned();
            drop(store);
            let lock = File::open(path.join(".larder/lock")).unwrap();
            until("the lock is free", || lock.try_lock().is_ok());
            drop(lock);
            fs::remove_file(disk.join("filler")).unwrap();
            let store = Store::open(&path).unwrap();
            assert_eq!(store.load_report().quarantined, []);
            let found = contents(&store);
            // What was promised to nobody may be there.
            let may_be = |key: &str, value: &[u8]| tried[key] == value || key == "song/0" && value == b"not durable";
            assert!(found.iter().all(|(key, value)| may_be(key, value)));
            assert!(members.keys().all(|key| found.contains_key(key)));
            assert_comes_back(&store, &found);
        });
    }

    fn mount(arguments: &[&str], on: &Path) -> bool {
        Command::new("mount").args(arguments).arg(on).output().unwrap().status.success()
    }

    #[test]
    fn a_disk_that_becomes_read_only_is_told_and_all_is_stored_once_it_can_be_written() {
        let name = "a_disk_that_becomes_read_only_is_told_and_all_is_stored_once_it_can_be_written";
        in_each_layout(name, "size=8m", |disk, layout| {
            // A file that is open for writing keeps a disk from becoming read-only, so the lock's is on another.
            let (path, other) = (disk.join("disk"), disk.join("other"));
            for dir in [&path, &other] {
                fs::create_dir(dir).unwrap();
                assert!(mount(&["-t", "tmpfs", "larder"], dir));
            }
            let store = path.join("store");
            Store::options(&store).layout(layout).open().unwrap().close().unwrap();
            File::create(other.join("lock")).unwrap();
            assert!(mount(&["--bind", other.join("lock").to_str().unwrap()], &store.join(".larder/lock")));

            // With segments that are soon full: it is busy while there is one to append to.
            let options = Store::options(store).max_unsaved(256 * KIB).max_journal(512 * KIB as u64);
            let store = options.write_timeout(LONGEST).open().unwrap();
            let mut members = Members::new();
            until("the disk is read-only", || {
                let number = members.len();
                put(&store, &mut members, number).unwrap();
                mount(&["-o", "remount,ro"], &path)
            });
            // One that comes for certain after it.
            let number = members.len();
            put(&store, &mut members, number).unwrap();
            until("the janitor sees it", || !store.health().is_well());
            assert_told(&store, store.path(), ErrorKind::ReadOnlyFilesystem);
            fill_to_the_bound(&store, &mut members, ErrorKind::ReadOnlyFilesystem);
            delete(&store, &mut members, 1..2);

            assert!(mount(&["-o", "remount,rw"], &path));
            until_all_is_stored(&store);
            assert_comes_back(&store, &members);
        });
    }

    #[test]
    fn a_store_on_a_read_only_disk_does_not_load_and_the_same_handle_loads_later() {
        let name = "a_store_on_a_read_only_disk_does_not_load_and_the_same_handle_loads_later";
        on_a_disk(name, "size=1m", |disk| {
            let path = disk.join("store");
            let store = Store::open(&path).unwrap();
            store.put("artist/daft_punk", "epic").unwrap();
            store.close().unwrap();
            assert!(mount(&["-o", "remount,ro"], disk));
            let before = tree(disk);

            let store = Store::new(&path).unwrap();
            let (told, kind) = path_and_kind(&store.load().expect_err("a load that cannot be"));
            assert!(told.starts_with(&path) && kind == ErrorKind::ReadOnlyFilesystem, "{told:?}");
            let fresh = Store::new(disk.join("fresh")).unwrap();
            let (told, kind) = path_and_kind(&fresh.load().expect_err("a load that cannot be"));
            assert!(told.starts_with(disk.join("fresh")) && kind == ErrorKind::ReadOnlyFilesystem, "{told:?}");
            assert_eq!(tree(disk), before);

            assert!(mount(&["-o", "remount,rw"], disk));
            assert_eq!(store.load().unwrap().members, 1);
            assert_eq!(fresh.load().unwrap().members, 0);
        });
    }
}

#[test]
fn a_file_in_the_place_of_a_collection_is_named_and_costs_no_other_collection_anything() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store")).unwrap();
    let blocked = store.path().join("blocked");
    fs::write(&blocked, "somebody's file").unwrap();
    store.put("blocked/x", "1").unwrap();
    store.put("fine/y", "2").unwrap();
    assert_files_told(&store, &blocked, ErrorKind::NotADirectory);
    assert!(store.path().join("fine/y").is_file(), "the other collection's member is stored");
    store.put("fine/z", "3").unwrap();
    assert_files_told(&store, &blocked, ErrorKind::NotADirectory);
    assert!(store.path().join("fine/z").is_file(), "and later ones are, too");
    assert_eq!(store.get("blocked/x").unwrap().unwrap(), "1");
    assert_eq!(fs::read(&blocked).unwrap(), b"somebody's file");
    until_nothing_is_left_over(&store);

    fs::remove_file(&blocked).unwrap();
    until_all_is_stored(&store);
    let expected = [("blocked/x", "1"), ("fine/y", "2"), ("fine/z", "3")];
    assert_comes_back(&store, &expected.map(|(key, value)| (key.to_owned(), value.into())).into());
}

#[test]
fn a_directory_in_the_place_of_a_member_is_named_and_costs_no_other_member_anything() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store")).unwrap();
    let blocked = store.path().join("artist/daft_punk");
    fs::create_dir_all(blocked.join("inside")).unwrap();
    store.put("artist/daft_punk", "epic").unwrap();
    store.put("artist/justice", "cross").unwrap();
    assert_files_told(&store, &blocked, ErrorKind::AlreadyExists);
    assert!(store.path().join("artist/justice").is_file());
    assert!(blocked.join("inside").is_dir());
    // Whatever else is written meanwhile, and however often.
    for round in 0..100 {
        store.put("artist/justice", format!("cross {round}")).unwrap();
        store.put("artist/daft_punk", format!("epic {round}")).unwrap();
        store.flush().unwrap();
    }
    assert_files_told(&store, &blocked, ErrorKind::AlreadyExists);
    assert!(fs::read(store.path().join("artist/justice")).unwrap().ends_with(b"\ncross 99"));

    fs::remove_dir_all(&blocked).unwrap();
    until_all_is_stored(&store);
    let expected = [("artist/daft_punk", "epic 99"), ("artist/justice", "cross 99")];
    assert_comes_back(&store, &expected.map(|(key, value)| (key.to_owned(), value.into())).into());
}

#[test]
fn deleting_a_member_that_the_files_do_not_take_ends_the_trouble() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store")).unwrap();
    let blocked = ["artist/one", "artist/two", "song/three"].map(|key| store.path().join(key));
    for (path, key) in blocked.iter().zip(["artist/one", "artist/two", "song/three"]) {
        fs::create_dir_all(path).unwrap();
        store.put(key, "blocked").unwrap();
    }
    store.put("artist/fine", "stored").unwrap();
    assert_files_told(&store, store.path(), ErrorKind::AlreadyExists);
    store.delete("artist/one").unwrap();
    assert_files_told(&store, store.path(), ErrorKind::AlreadyExists);
    store.delete("artist/two").unwrap();
    store.delete_all("song").unwrap();
    until_all_is_stored(&store);
    assert!(blocked.iter().all(|path| path.is_dir()), "they are not larder's");
    fs::remove_dir_all(store.path().join("song")).unwrap();
    blocked[..2].iter().for_each(|path| fs::remove_dir(path).unwrap());
    assert_comes_back(&store, &[("artist/fine".to_owned(), b"stored".to_vec())].into());
}

#[test]
fn directories_that_somebody_removed_are_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store")).unwrap();
    store.put("artist/daft_punk", "epic").unwrap();
    until_at_rest(&store);

    fs::remove_dir_all(store.path().join("artist")).unwrap();
    store.put("artist/daft_punk", "discovery").unwrap();
    store.flush().unwrap();
    until_all_is_stored(&store);

    fs::remove_dir_all(store.path().join(".larder/tmp")).unwrap();
    store.put("artist/justice", "cross").unwrap();
    store.flush().unwrap();
    until_all_is_stored(&store);

    let expected = [("artist/daft_punk", "discovery"), ("artist/justice", "cross")];
    assert_comes_back(&store, &expected.map(|(key, value)| (key.to_owned(), value.into())).into());
}

#[test]
fn a_journal_that_somebody_removed_is_told_and_costs_no_more_than_was_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store")).unwrap();
    store.put("artist/daft_punk", "epic").unwrap();
    until_at_rest(&store);
    fs::remove_dir_all(store.path().join(".larder/journal")).unwrap();
    store.put("artist/justice", "cross").unwrap();
    let closed = store.close().expect_err("what was written is nowhere");
    assert!(path_and_kind(&closed).0.starts_with(store.path().join(".larder/journal")), "{closed}");
    assert!(!store.health().is_well());
    assert_eq!(store.get("artist/justice").unwrap().unwrap(), "cross");
    let path = store.path().to_owned();
    drop(store);
    let store = Store::open(&path).unwrap();
    assert_comes_back(&store, &[("artist/daft_punk".to_owned(), b"epic".to_vec())].into());
}

#[test]
fn a_store_whose_directory_was_removed_is_served_from_ram_and_never_hangs() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store")).unwrap();
    store.put("artist/daft_punk", "epic").unwrap();
    until_at_rest(&store);
    fs::remove_dir_all(store.path()).unwrap();

    store.put("artist/justice", "cross").unwrap();
    // A flush may find the journal, which is open, to be as it was.
    _ = store.flush();
    assert_close_and_health_tell(&store, store.path(), ErrorKind::NotFound);
    assert_eq!(store.get("artist/daft_punk").unwrap().unwrap(), "epic");
    assert_eq!(store.get("artist/justice").unwrap().unwrap(), "cross");
    drop(store);
    assert_eq!(names(dir.path()), [""; 0], "nothing is made in the place of what was removed");
}

#[cfg(unix)]
#[test]
fn a_link_in_the_place_of_a_collection_is_named_and_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let elsewhere = dir.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let store = Store::open(dir.path().join("store")).unwrap();
    let link = store.path().join("artist");
    std::os::unix::fs::symlink(&elsewhere, &link).unwrap();
    store.put("artist/daft_punk", "epic").unwrap();
    store.flush().unwrap();
    let (path, _) = path_and_kind(&store.close().expect_err("a close that cannot be"));
    assert_eq!(path, link);
    assert!(!store.health().is_well());
    assert_eq!(names(&elsewhere), [""; 0]);
    fs::remove_file(&link).unwrap();
    until_all_is_stored(&store);
    assert_comes_back(&store, &[("artist/daft_punk".to_owned(), b"epic".to_vec())].into());
}
