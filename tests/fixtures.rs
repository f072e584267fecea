//! Stores that earlier versions wrote open for ever: each format's fixtures are kept in `tests/fixtures/`.

use std::fs;
use std::path::{Path, PathBuf};

use larder::{Layout, Store};

/// Opening a store changes it: it is done to a copy.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::write(target, fs::read(entry.path()).unwrap()).unwrap();
        }
    }
}

fn copied(name: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().canonicalize().unwrap().join("store");
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name), &path);
    (dir, path)
}

fn open(name: &str) -> (tempfile::TempDir, Store) {
    let (dir, path) = copied(name);
    let store = Store::open(path).unwrap();
    assert_eq!(store.load_report().quarantined, [], "{name}");
    (dir, store)
}

fn get(store: &Store, key: &str) -> Option<Vec<u8>> {
    store.get(key).unwrap().map(|value| value.to_vec())
}

/// What the closed store of format 1 holds apart from its albums.
fn check_the_rest(store: &Store) {
    assert_eq!(get(store, "artist/bj\u{f6}rk").unwrap(), [0, 159, 146, 150]);
    assert_eq!(get(store, "Artist/con").unwrap(), b"a name that Windows keeps for itself");
    assert_eq!(*store.collection::<u32>("year").unwrap().get("discovery").unwrap(), 2001);
    #[cfg(feature = "bincode")]
    {
        let pairs = store.collection_with::<(String, u8), larder::Bincode>("pair").unwrap();
        assert_eq!(*pairs.get("m").unwrap(), ("text".to_owned(), 7));
    }
}

#[test]
fn a_closed_store_of_format_1_opens() {
    let (_dir, store) = open("format-1/closed");
    assert_eq!((store.load_report().members, store.load_report().replayed), (8, 0));
    assert_eq!(get(&store, "album/discovery").unwrap(), b"{ year: 2001 }");
    assert_eq!(get(&store, "album/empty").unwrap(), b"");
    assert_eq!(get(&store, "album/homework"), None);
    assert_eq!(get(&store, "artist/AC/DC").unwrap(), b"a slash, and capitals");
    check_the_rest(&store);
    store.close().unwrap();
}

#[test]
fn a_crashed_store_of_format_1_opens_with_every_kind_of_frame() {
    let (_dir, store) = open("format-1/crashed");
    // Four songs, a deadline, a delete, and a clear.
    assert_eq!(store.load_report().replayed, 7);
    assert_eq!(store.len("album").unwrap(), 0);
    assert_eq!(get(&store, "artist/AC/DC"), None);
    assert_eq!(get(&store, "song/first").unwrap(), b"of two");
    assert_eq!(get(&store, "song/second").unwrap(), b"durable");
    assert_eq!(get(&store, "song/third").unwrap(), b"in a second segment");
    assert_eq!(get(&store, "song/fourth").unwrap(), b"never synced");
    check_the_rest(&store);
    store.close().unwrap();
    // The deadline has reached the file, and numbers go on from the highest.
    let first = fs::read_to_string(store.path().join("song/first")).unwrap();
    assert!(first.starts_with("larder 1 codec=raw version=25 deadline=4102444800000 key=\"song/first\""), "{first}");
    let counter = fs::read_to_string(store.path().join(".larder/counter")).unwrap();
    assert!(counter.starts_with("larder counter 27 "), "{counter}");
    let store = Store::open(store.path()).unwrap();
    assert_eq!(get(&store, "song/first").unwrap(), b"of two");
    assert_eq!(get(&store, "song/fourth").unwrap(), b"never synced");
    check_the_rest(&store);
}

#[test]
fn a_packed_store_of_format_1_opens_with_every_kind_of_frame() {
    let (_dir, store) = open("format-1/packed");
    let report = store.load_report();
    assert_eq!((report.members, report.collections), (8, 2));
    let large = [b'l'; 5000];
    let check = |store: &Store| {
        assert_eq!(store.len("album").unwrap(), 0, "it was cleared");
        assert_eq!(get(store, "song/deleted"), None);
        assert_eq!(get(store, "song/empty"), None);
        assert_eq!(get(store, "song/large").unwrap(), large);
        assert_eq!(get(store, "song/larger").unwrap(), large.repeat(2));
        assert_eq!(get(store, "song/first").unwrap(), b"kept");
        assert_eq!(get(store, "song/second").unwrap(), b"with a deadline");
        assert_eq!(get(store, "song/bj\u{f6}rk").unwrap(), [0, 159, 146, 150]);
        assert_eq!(get(store, "song/third").unwrap(), b"of two");
        assert_eq!(get(store, "song/fourth").unwrap(), b"never synced");
        assert_eq!(*store.collection::<u32>("year").unwrap().get("discovery").unwrap(), 2001);
    };
    check(&store);
    store.compact().unwrap();
    store.close().unwrap();
    let path = store.path().to_owned();
    drop(store);
    let store = Store::open(&path).unwrap();
    check(&store);
    store.close().unwrap();
    drop(store);
    // Numbers go on from the highest, and so do they in the other layout.
    larder::convert(&path, Layout::Files).unwrap();
    let fourth = fs::read_to_string(path.join("song/fourth")).unwrap();
    assert!(fourth.starts_with("larder 1 codec=raw version=15 "), "{fourth}");
    check(&Store::open(&path).unwrap());
}

/// What a damaged or missing list could not tell.
#[track_caller]
fn assert_missed(path: &Path, taken: &str, told_at: &Path) {
    fs::remove_file(path.join(taken)).unwrap();
    let problems = larder::check(path).unwrap().problems;
    assert!(problems.len() == 1 && problems[0].path == *told_at, "{problems:?}");
    let quarantined = Store::open(path).unwrap().load_report().quarantined;
    assert!(quarantined.len() == 1 && quarantined[0].path == *told_at, "{quarantined:?}");
}

#[test]
fn the_number_of_members_that_a_store_of_format_1_was_closed_with_is_read() {
    let (_dir, path) = copied("format-1/counted");
    let report = larder::check(&path).unwrap();
    assert_eq!((report.problems, report.members), (vec![], 8));
    let (_dir, store) = open("format-1/counted");
    check_the_rest(&store);
    assert_missed(&path, "album/discovery", &path);
}

/// What the packed store holds that was closed, and those that were being moved.
fn check_songs(store: &Store) {
    assert_eq!((store.load_report().members, store.load_report().quarantined), (2, vec![]));
    assert_eq!(get(store, "song/first").unwrap(), b"one");
    assert_eq!(get(store, "song/second").unwrap(), b"later");
    assert_eq!(get(store, "song/third"), None);
}

#[test]
fn a_closed_packed_store_of_format_1_opens_and_its_list_of_segments_is_read() {
    let (_dir, store) = open("format-1/packed-closed");
    check_songs(&store);
    let (_dir, path) = copied("format-1/packed-closed");
    let report = larder::check(&path).unwrap();
    assert_eq!((report.problems, report.members), (vec![], 2));
    let list = fs::read_to_string(path.join(".larder/segments")).unwrap();
    let last = format!(".larder/journal/{}", list.lines().last().unwrap().split(' ').next().unwrap());
    assert_missed(&path, &last, &path.join(&last));
}

#[test]
fn a_packed_store_of_format_1_that_was_being_moved_into_files_opens_as_what_it_was_and_the_move_goes_on() {
    let name = "format-1/beside-files";
    let (_dir, store) = open(name);
    check_songs(&store);
    assert!(!store.path().join("song").exists(), "the files count for nothing, and go");
    let format = fs::read_to_string(store.path().join(".larder/format")).unwrap();
    assert_eq!(format, "larder format 1 packed\n");
    for layout in [Layout::Files, Layout::Packed] {
        let (_dir, path) = copied(name);
        let view = Store::open_read_only(&path).unwrap();
        assert_eq!(
            (view.len("song").unwrap(), view.get("song/second").unwrap().unwrap().to_vec()),
            (2, b"later".to_vec())
        );
        let report = larder::check(&path).unwrap();
        assert!(report.is_sound() && report.problems.iter().any(|note| note.explanation.contains("being moved")));
        larder::convert(&path, layout).unwrap();
        assert_eq!(path.join("song/first").exists(), layout == Layout::Files);
        check_songs(&Store::open(&path).unwrap());
        assert!(larder::check(&path).unwrap().problems.is_empty());
    }
}

#[test]
fn a_store_of_files_of_format_1_that_was_being_packed_opens_as_what_it_was_and_the_move_goes_on() {
    let name = "format-1/half-packed";
    let check = |store: &Store| {
        assert_eq!((store.load_report().members, store.load_report().quarantined), (8, vec![]));
        assert_eq!(get(store, "album/discovery").unwrap(), b"{ year: 2001 }");
        check_the_rest(store);
    };
    check(&open(name).1);
    for layout in [Layout::Files, Layout::Packed] {
        let (_dir, path) = copied(name);
        assert!(larder::check(&path).unwrap().is_sound());
        larder::convert(&path, layout).unwrap();
        assert_eq!(path.join("album/discovery").exists(), layout == Layout::Files);
        check(&Store::open(&path).unwrap());
    }
}
