//! Damage of every kind costs its own member only: the load succeeds, the file is put aside and reported, and
//! everything else is as it was. What is not larder's is left alone.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test, a panic is the report")]

mod lab;

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use lab::{as_after_a_crash, assert_only_files, assert_tidy, contents, names, segments, tree, until, until_at_rest};
use larder::{Bincode, Error, Health, Quarantined, Store};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Debug, Clone, PartialEq)]
struct Artist {
    country: String,
    albums: Vec<u16>,
}

/// By key, the value as bytes.
type Members = BTreeMap<String, Vec<u8>>;

/// A closed store of three collections: bytes, JSON and bincode.
struct Closed {
    _dir: tempfile::TempDir,
    path: PathBuf,
    members: Members,
}

impl Closed {
    fn new() -> Closed {
        let dir = tempfile::tempdir().unwrap();
        // Resolved, as it is in reports.
        let path = dir.path().canonicalize().unwrap().join("store");
        let store = Store::open(&path).unwrap();
        for (member, value) in [("one", &b"first"[..]), ("Two", b"\0second\n\xff"), ("three", b"")] {
            store.put(format!("raw/{member}"), value).unwrap();
        }
        let artist = |country: &str, albums: &[u16]| Artist { country: country.into(), albums: albums.into() };
        let json = store.collection::<Artist>("json").unwrap();
        let bincode = store.collection_with::<Artist, Bincode>("bincode").unwrap();
        for (member, value) in [
            ("daft_punk", artist("France", &[1997, 2001, 2005, 2013])),
            ("Björk", artist("Ísland", &[1993])),
            ("none", artist("", &[])),
        ] {
            json.put(member, value.clone()).unwrap();
            bincode.put(member, value).unwrap();
        }
        let members = contents(&store);
        drop((json, bincode));
        store.close().unwrap();
        assert_only_files(&path);
        assert_eq!(members.len(), 9);
        Closed { _dir: dir, path, members }
    }

    fn meta(&self, name: &str) -> PathBuf {
        self.path.join(".larder").join(name)
    }

    /// Loads, and finds exactly these members, by key and in their types.
    #[track_caller]
    fn load_and_expect(&self, expected: &Members) -> Store {
        let store = Store::open(&self.path).unwrap();
        assert_eq!(contents(&store), *expected);
        assert_eq!(store.load_report().members, expected.len());
        let json = store.collection::<Artist>("json").unwrap();
        let bincode = store.collection_with::<Artist, Bincode>("bincode").unwrap();
        let of = |name: &str| expected.keys().filter(|key| key.starts_with(name)).count();
        assert_eq!((json.len(), bincode.len()), (of("json/"), of("bincode/")));
        assert_eq!(contents(&store), *expected, "opening a collection as a type changes nothing");
        store
    }

    fn without(&self, key: &str) -> Members {
        let mut members = self.members.clone();
        members.remove(key).unwrap();
        members
    }

    /// Loads a store in which the file at `path`, of the member `key`, now is `damaged`: that member is missing, and
    /// the file is in quarantine as it was, with a note.
    #[track_caller]
    fn costs_only(&self, key: &str, path: &Path, damaged: &[u8]) -> String {
        let store = self.load_and_expect(&self.without(key));
        let report = store.load_report();
        let [quarantined] = &report.quarantined[..] else { panic!("{:?}", report.quarantined) };
        self.assert_put_aside(quarantined, path, damaged);
        assert_eq!(store.get(key).unwrap(), None);
        store.close().unwrap();
        quarantined.reason.clone()
    }

    #[track_caller]
    fn assert_put_aside(&self, quarantined: &Quarantined, path: &Path, damaged: &[u8]) {
        assert_eq!(quarantined.path, path);
        assert!(!quarantined.reason.is_empty());
        assert!(!path.exists(), "it is still where it was");
        assert_eq!(quarantined.moved_to.parent().unwrap(), self.meta("quarantine"));
        assert_eq!(fs::read(&quarantined.moved_to).unwrap(), damaged);
        let note = fs::read_to_string(format!("{}.reason", quarantined.moved_to.display())).unwrap();
        assert_eq!(note, format!("{}\n{}\n", path.display(), quarantined.reason));
    }

    /// Puts everything back as it was.
    fn restore(&self, path: &Path, whole: &[u8]) {
        fs::write(path, whole).unwrap();
        for name in names(&self.meta("quarantine")) {
            fs::remove_file(self.meta("quarantine").join(name)).unwrap();
        }
    }

    /// The file of a member, which is found by what is in its header.
    fn file_of(&self, key: &str) -> PathBuf {
        let quoted = format!("key={}", serde_json::to_string(key).unwrap());
        let mut files = lab::member_files(&self.path).into_iter();
        files.find(|path| fs::read(path).unwrap().escape_ascii().to_string().contains(&escaped(&quoted))).unwrap()
    }
}

fn escaped(text: &str) -> String {
    text.as_bytes().escape_ascii().to_string()
}

/// A member's file as larder writes it, whatever its header says.
fn file(header: &str, value: &[u8]) -> Vec<u8> {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(header.as_bytes());
    hasher.update(value);
    [header.as_bytes(), format!(" crc32={:08x}\n", hasher.finalize()).as_bytes(), value].concat()
}

/// The number in the header of a member's file.
fn version(path: &Path) -> u64 {
    let text = String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned();
    let (_, rest) = text.split_once(" version=").unwrap();
    rest.split(' ').next().unwrap().parse().unwrap()
}

// ---- one member's file ----

#[test]
fn a_file_cut_at_any_length_costs_its_own_member_only() {
    let store = Closed::new();
    for key in ["raw/Two", "json/Björk", "bincode/daft_punk"] {
        let path = store.file_of(key);
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            store.costs_only(key, &path, &whole[..length]);
            store.restore(&path, &whole);
        }
    }
    store.load_and_expect(&store.members);
}

#[test]
fn a_file_with_any_byte_changed_costs_its_own_member_only() {
    let store = Closed::new();
    for key in ["raw/Two", "json/Björk", "bincode/daft_punk"] {
        let path = store.file_of(key);
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1 << (at % 8);
            fs::write(&path, &damaged).unwrap();
            store.costs_only(key, &path, &damaged);
            store.restore(&path, &whole);
        }
    }
    store.load_and_expect(&store.members);
}

#[test]
fn whatever_a_file_holds_instead_costs_its_own_member_only() {
    let store = Closed::new();
    let key = "json/daft_punk";
    let path = store.file_of(key);
    let whole = fs::read(&path).unwrap();
    let (value, version) = (&store.members[key], version(&path));
    let header = |format: u64, rest: &str| {
        format!("larder {format} codec=json version={version} deadline={rest} length={}", value.len())
    };
    let mut noise = lab::Chance::new(1);
    let noise: Vec<u8> = (0..1 << 20).map(|_| noise.number() as u8).collect();
    let good = "none key=\"json/daft_punk\"";
    assert_eq!(file(&header(1, good), value), whole, "only what is changed below is wrong");

    for (damaged, reason) in [
        (Vec::new(), "empty"),
        (vec![0; whole.len()], "zeros"),
        (vec![0; 100_000], "zeros"),
        (b"\n".to_vec(), "larder"),
        (b"somebody's notes".to_vec(), ""),
        (whole.repeat(2), "bytes of value"),
        ([&whole[..], b"\n"].concat(), "bytes of value"),
        (noise[..100].to_vec(), ""),
        (noise.clone(), ""),
        (vec![b'x'; 1 << 20], "no end"),
        ([&b"larder 1 codec="[..], &vec![b'x'; 1 << 20]].concat(), "no end"),
        (format!("larder 1 {}\n", "[".repeat(7000)).into_bytes(), ""),
        (file(&header(2, good), value), "format is 2"),
        (file(&header(u64::MAX, good), value), "format is"),
        (file(&header(0, good), value), "format is"),
        (file(&header(1, "tomorrow key=\"json/daft_punk\""), value), "deadline"),
        (file(&header(1, "018934560000000 key=\"json/daft_punk\""), value), "deadline"),
        (file(&header(1, "18446744073709551615 key=\"json/daft_punk\""), value), "deadline"),
        (file(&header(1, "none key=\"json/justice\""), value), "another key"),
        (file(&header(1, "none key=\"other/daft_punk\""), value), "another key"),
        (file(&header(1, "none key=\"../daft_punk\""), value), "not named"),
        (file(&header(1, "none key=\"json/\""), value), "not empty"),
        (file(&header(1, "none key=\"json/daft\\u005fpunk\""), value), "spelled"),
        (file("larder 1 codec=json version=5 deadline=none key=\"json/daft_punk\" length=1000000000000", b""), "bytes"),
        (
            file("larder 1 codec=json version=18014398509481984 deadline=none key=\"json/daft_punk\" length=0", b""),
            "above",
        ),
        (file("larder 1 codec=JSON version=5 deadline=none key=\"json/daft_punk\" length=0", b""), "codec"),
    ] {
        fs::write(&path, &damaged).unwrap();
        let told = store.costs_only(key, &path, &damaged);
        assert!(told.contains(reason), "{told:?} does not say {reason:?}");
        store.restore(&path, &whole);
    }
    store.load_and_expect(&store.members);
}

#[test]
fn a_file_under_the_name_of_another_member_is_not_that_member() {
    let store = Closed::new();
    let (from, to) = (store.file_of("raw/one"), store.file_of("raw/Two"));
    let one = fs::read(&from).unwrap();
    fs::rename(&from, &to).unwrap();
    let mut expected = store.without("raw/one");
    expected.remove("raw/Two");
    let loaded = store.load_and_expect(&expected);
    let report = loaded.load_report();
    let [missing, quarantined] = &report.quarantined[..] else { panic!("{:?}", report.quarantined) };
    assert!(missing.path == store.path && missing.reason.contains("1 of them"), "{missing:?}");
    store.assert_put_aside(quarantined, &to, &one);
    assert!(quarantined.reason.contains("raw/one"), "{}", quarantined.reason);
}

#[test]
fn a_file_copied_beside_the_store_s_own_is_put_aside_and_the_own_is_kept() {
    let store = Closed::new();
    let from = store.file_of("raw/one");
    let copies = [
        store.path.join("raw/copy"),
        store.path.join("json/one"),
        store.path.join("elsewhere/one"),
        store.path.join("raw/one~590a34408cfed52d0fc682d0c112dc26"),
    ];
    fs::create_dir(store.path.join("elsewhere")).unwrap();
    for copy in &copies {
        fs::copy(&from, copy).unwrap();
    }
    let loaded = store.load_and_expect(&store.members);
    let report = loaded.load_report();
    assert_eq!(report.quarantined.len(), copies.len());
    for quarantined in &report.quarantined {
        assert!(copies.contains(&quarantined.path), "{quarantined:?}");
        store.assert_put_aside(quarantined, &quarantined.path, &fs::read(&from).unwrap());
    }
}

#[test]
fn many_damaged_files_are_all_put_aside_and_all_reported() {
    let store = Closed::new();
    let files = lab::member_files(&store.path);
    for path in &files {
        fs::write(path, "damaged").unwrap();
    }
    let loaded = Store::open(&store.path).unwrap();
    let mut reported: Vec<PathBuf> = loaded.load_report().quarantined.into_iter().map(|q| q.path).collect();
    reported.sort();
    assert_eq!(reported, files);
    assert_eq!(loaded.stats().members, 0);
    assert_eq!(names(&store.meta("quarantine")).len(), files.len() * 2);
    loaded.close().unwrap();
    let again = Store::open(&store.path).unwrap();
    assert_eq!(again.load_report().quarantined, [], "it is reported once");
    assert_eq!(names(&store.meta("quarantine")).len(), files.len() * 2, "and never deleted");
}

#[test]
fn a_member_that_was_put_aside_can_be_put_again() {
    let store = Closed::new();
    let path = store.file_of("raw/one");
    fs::write(&path, "damaged").unwrap();
    let loaded = store.load_and_expect(&store.without("raw/one"));
    assert_eq!(loaded.put("raw/one", "first").unwrap(), None);
    loaded.close().unwrap();
    let loaded = store.load_and_expect(&store.members);
    assert_eq!(loaded.load_report().quarantined, []);
    assert_eq!(names(&store.meta("quarantine")).len(), 2);
}

#[test]
fn a_file_that_is_damaged_while_the_store_is_open_is_written_anew_by_the_next_put() {
    let store = Closed::new();
    let loaded = store.load_and_expect(&store.members);
    let path = store.file_of("raw/one");
    fs::write(&path, "damaged").unwrap();
    loaded.put("raw/one", "first").unwrap();
    loaded.close().unwrap();
    store.load_and_expect(&store.members);
    assert_tidy(&store.path);
}

// ---- what is not larder's ----

/// What no store would make, and what must be there for ever.
fn plant_foreign_files(store: &Path) {
    for dir in ["raw", "json"] {
        for name in [".DS_Store", "README.txt", "._one", "Thumbs.db", "x~", "one.swp~", "a b", "Ünï", "-rf", "con"] {
            fs::write(store.join(dir).join(name), format!("the {name} of {dir}")).unwrap();
        }
        fs::create_dir_all(store.join(dir).join("sub/directory")).unwrap();
        fs::write(store.join(dir).join("sub/one"), "not in a collection").unwrap();
        fs::write(store.join(dir).join("sub/directory/two"), "nor this").unwrap();
        fs::create_dir(store.join(dir).join("empty")).unwrap();
    }
    for name in [".DS_Store", "notes", "README.md", "desktop.ini"] {
        fs::write(store.join(name), format!("the {name} of the store")).unwrap();
    }
    for name in [".git", "Backup", ".Trash-1000"] {
        fs::create_dir(store.join(name)).unwrap();
        fs::write(store.join(name).join("one"), "somebody's").unwrap();
    }
}

/// Everything that is not larder's.
fn foreign(store: &Path) -> BTreeMap<PathBuf, String> {
    let mut tree = tree(store);
    tree.retain(|path, what| !path.starts_with(store.join(".larder")) && !what.starts_with("larder 1 "));
    tree
}

/// Each is looked at by itself: a store that is open makes and removes files of its own beside them at any time.
#[track_caller]
fn assert_untouched(foreign: &BTreeMap<PathBuf, String>) {
    for (path, what) in foreign {
        assert_eq!(lab::what_is_at(path), *what, "{}", path.display());
    }
}

#[test]
fn foreign_files_are_left_alone_by_load_put_delete_delete_all_and_close() {
    let store = Closed::new();
    plant_foreign_files(&store.path);
    let foreign = foreign(&store.path);
    assert_eq!(foreign.len(), 2 * (10 + 5) + 4 + 6 + 3, "what was planted, and three collections");

    let loaded = store.load_and_expect(&store.members);
    assert_eq!(loaded.load_report().quarantined, []);
    assert_untouched(&foreign);
    // Members whose names are those of foreign files.
    for member in [".DS_Store", "README.txt", "x~", "one.swp~", "a b", "sub/one", "con", "Ünï"] {
        loaded.put(format!("raw/{member}"), "a member").unwrap();
    }
    loaded.put("Backup/one", "a member").unwrap();
    loaded.put(".git/one", "a member").unwrap();
    until_at_rest(&loaded);
    assert_untouched(&foreign);
    loaded.delete("raw/.DS_Store").unwrap();
    loaded.delete("Backup/one").unwrap();
    until_at_rest(&loaded);
    assert_eq!(loaded.delete_all("raw").unwrap(), 10);
    assert_eq!(loaded.delete_all("json").unwrap(), 3);
    until_at_rest(&loaded);
    assert_untouched(&foreign);
    loaded.close().unwrap();
    assert_untouched(&foreign);
    let loaded = Store::open(&store.path).unwrap();
    assert_eq!(loaded.load_report().quarantined, []);
    assert_eq!(loaded.collections().unwrap(), [".git", "bincode"]);
    drop(loaded);
    assert_untouched(&foreign);
}

#[cfg(unix)]
#[test]
fn what_is_no_regular_file_under_a_member_s_name_is_left_alone_and_not_followed() {
    let store = Closed::new();
    let victim = store.path.parent().unwrap().join("victim");
    let whole = fs::read(store.file_of("raw/one")).unwrap();
    fs::write(&victim, &whole).unwrap();
    fs::remove_file(store.file_of("raw/one")).unwrap();
    std::os::unix::fs::symlink(&victim, store.path.join("raw/one")).unwrap();
    std::os::unix::fs::symlink("nowhere", store.path.join("raw/dangling")).unwrap();
    std::os::unix::fs::symlink(store.path.join("json"), store.path.join("linked")).unwrap();
    fs::create_dir(store.path.join("raw/directory")).unwrap();
    let made = std::process::Command::new("mkfifo").arg(store.path.join("raw/pipe")).status().unwrap();
    assert!(made.success());
    let socket = std::os::unix::net::UnixListener::bind(store.path.join("raw/socket")).unwrap();

    let foreign = foreign(&store.path);
    assert_eq!(foreign.len(), 6 + 3, "what was planted, and three collections");
    let loaded = store.load_and_expect(&store.without("raw/one"));
    let told = loaded.load_report().quarantined;
    assert!(told.len() == 1 && told[0].path == store.path && told[0].reason.contains("1 of them"), "{told:?}");
    assert_untouched(&foreign);
    loaded.put("raw/four", "fourth").unwrap();
    loaded.delete("raw/Two").unwrap();
    until_at_rest(&loaded);
    loaded.delete_all("raw").unwrap();
    loaded.close().unwrap();
    assert_untouched(&foreign);
    drop(socket);

    // A put under such a name neither replaces what stands there nor writes through it: it waits until the name is free.
    let loaded = Store::open(&store.path).unwrap();
    for member in ["one", "dangling", "directory", "pipe"] {
        let file = store.path.join("raw").join(member);
        loaded.put(format!("raw/{member}"), "new").unwrap();
        loaded.put(format!("free/{member}"), "new").unwrap();
        loaded.flush().expect("it is durable in the journal");
        match loaded.close() {
            Err(Error::Io { path, action: "replace", .. }) => assert_eq!(path, file),
            other => panic!("{member}: {other:?}"),
        }
        let Health::Failing { problems, .. } = loaded.health() else { panic!("well?") };
        assert!(matches!(&problems[..], [Error::Io { path, .. }] if *path == file), "{problems:?}");
        assert_untouched(&foreign);
        until("it stops no other", || store.path.join("free").join(member).exists());
        loaded.delete(format!("raw/{member}")).unwrap();
        until_at_rest(&loaded);
        assert!(loaded.health().is_well());
        assert_untouched(&foreign);
    }
    loaded.put("raw/one", "new").unwrap();
    fs::remove_file(store.path.join("raw/one")).unwrap();
    loaded.close().unwrap();
    assert_eq!(fs::read(&victim).unwrap(), whole);
    assert!(fs::symlink_metadata(store.path.join("raw/one")).unwrap().is_file());
}

#[cfg(unix)]
#[test]
fn links_in_the_place_of_larder_s_own_files_are_not_followed() {
    for name in ["lock", "format", "counter", "tmp", "quarantine", "journal"] {
        let store = Closed::new();
        let victim = store.path.parent().unwrap().join("victim");
        let own = store.meta(name);
        if own.is_dir() {
            fs::create_dir(&victim).unwrap();
            fs::write(victim.join("precious"), "precious").unwrap();
            fs::remove_dir_all(&own).unwrap();
        } else {
            fs::rename(&own, &victim).unwrap();
        }
        let before = tree(victim.parent().unwrap());
        std::os::unix::fs::symlink(&victim, &own).unwrap();
        match Store::open(&store.path) {
            Err(Error::Io { path, .. }) => assert_eq!(path, own),
            other => panic!("{name}: {other:?}"),
        }
        fs::remove_file(&own).unwrap();
        let mut after = tree(victim.parent().unwrap());
        after.retain(|path, _| before.contains_key(path));
        assert_eq!(after, before, "{name}");
    }
}

// ---- the store's own files ----

#[test]
fn temporary_files_left_by_a_crash_are_removed_and_never_members() {
    let store = Closed::new();
    let whole = fs::read(store.file_of("raw/one")).unwrap();
    for (name, bytes) in
        [("0", &whole[..]), ("1", &whole[..9]), ("counter.new", b"larder c"), ("one", &whole), ("17", b"")]
    {
        fs::write(store.meta("tmp").join(name), bytes).unwrap();
    }
    let loaded = store.load_and_expect(&store.members);
    assert_eq!(loaded.load_report().quarantined, []);
    assert_tidy(&store.path);
    loaded.put("raw/one", "first").unwrap();
    loaded.close().unwrap();
    assert_tidy(&store.path);
}

#[test]
fn a_damaged_counter_is_put_aside_and_numbers_do_not_go_back() {
    for damaged in [
        &b""[..],
        b"larder counter 1 crc32=00000000\n",
        b"larder counter 99999999999999999999\n",
        &[0; 40],
        &[b'9'; 9999],
    ] {
        let store = Closed::new();
        let highest = lab::member_files(&store.path).iter().map(|path| version(path)).max().unwrap();
        fs::write(store.meta("counter"), damaged).unwrap();
        let loaded = store.load_and_expect(&store.members);
        let report = loaded.load_report();
        let [quarantined] = &report.quarantined[..] else { panic!("{:?}", report.quarantined) };
        assert_eq!(quarantined.path, store.meta("counter"));
        assert_eq!(fs::read(&quarantined.moved_to).unwrap(), damaged);
        loaded.put("raw/four", "fourth").unwrap();
        loaded.close().unwrap();
        assert!(version(&store.file_of("raw/four")) > highest);
        assert_eq!(Store::open(&store.path).unwrap().load_report().quarantined, []);
    }
}

#[test]
fn numbers_do_not_go_back_without_a_counter_or_after_deletes() {
    let store = Closed::new();
    let highest = lab::member_files(&store.path).iter().map(|path| version(path)).max().unwrap();
    fs::remove_file(store.meta("counter")).unwrap();
    let loaded = store.load_and_expect(&store.members);
    assert_eq!(loaded.load_report().quarantined, []);
    loaded.put("raw/four", "fourth").unwrap();
    until_at_rest(&loaded);
    let fourth = version(&store.file_of("raw/four"));
    assert!(fourth > highest);
    loaded.delete_all("raw").unwrap();
    loaded.close().unwrap();

    let loaded = Store::open(&store.path).unwrap();
    loaded.put("raw/five", "fifth").unwrap();
    loaded.close().unwrap();
    assert!(version(&store.file_of("raw/five")) > fourth + 1, "the delete had a number too");
}

#[test]
fn a_damaged_format_is_an_error_that_names_it_and_changes_nothing() {
    for damaged in [
        &b""[..],
        b"larder",
        b"larder format 0\n",
        b"larder format one\n",
        b"larder format 1",
        b"\xff\xfe",
        &[b'x'; 9999],
    ] {
        let store = Closed::new();
        fs::write(store.meta("format"), damaged).unwrap();
        let before = tree(&store.path);
        let handle = Store::new(&store.path).unwrap();
        match handle.load() {
            Err(Error::Corrupt { path, .. }) => assert_eq!(path, store.meta("format")),
            other => panic!("{other:?}"),
        }
        assert_eq!(tree(&store.path), before);
        fs::write(store.meta("format"), "larder format 1\n").unwrap();
        assert_eq!(handle.load().unwrap().members, 9);
    }
}

#[test]
fn a_newer_format_is_refused_and_changes_nothing() {
    for newer in [2, 99, u64::MAX] {
        let store = Closed::new();
        fs::write(store.meta("format"), format!("larder format {newer}\n")).unwrap();
        let before = tree(&store.path);
        match Store::open(&store.path) {
            Err(Error::NewerFormat { path, found, supported: 1 }) => {
                assert_eq!((path, found), (store.path.clone(), newer))
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(tree(&store.path), before);
    }
}

#[test]
fn a_format_that_is_missing_beside_members_is_an_error_and_costs_none_of_them() {
    let store = Closed::new();
    let format = fs::read(store.meta("format")).unwrap();
    fs::remove_file(store.meta("format")).unwrap();
    let before = tree(&store.path);
    match Store::open(&store.path) {
        Err(Error::Corrupt { path, .. }) => assert_eq!(path, store.meta("format")),
        other => panic!("{other:?}"),
    }
    assert_eq!(tree(&store.path), before);
    fs::write(store.meta("format"), format).unwrap();
    store.load_and_expect(&store.members);
}

#[test]
fn a_store_that_was_being_made_when_the_crash_came_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    // Every prefix of what making a store does.
    let steps: [&dyn Fn(); 7] = [
        &|| fs::create_dir(&path).unwrap(),
        &|| fs::create_dir(path.join(".larder")).unwrap(),
        &|| fs::write(path.join(".larder/lock"), "").unwrap(),
        &|| fs::create_dir(path.join(".larder/tmp")).unwrap(),
        &|| fs::create_dir(path.join(".larder/quarantine")).unwrap(),
        &|| fs::create_dir(path.join(".larder/journal")).unwrap(),
        &|| fs::write(path.join(".larder/tmp/format.new"), "larder f").unwrap(),
    ];
    for count in 0..=steps.len() {
        steps[..count].iter().for_each(|step| step());
        let store = Store::open(&path).unwrap();
        store.put("artist/daft_punk", "epic").unwrap();
        store.close().unwrap();
        let store = Store::open(&path).unwrap();
        assert_eq!(store.load_report().members, 1);
        drop(store);
        assert_tidy(&path);
        fs::remove_dir_all(&path).unwrap();
    }
}

// ---- the journal ----

/// What a crash leaves of a store whose writes are in one segment, each flushed by itself.
struct Crashed {
    _dir: tempfile::TempDir,
    path: PathBuf,
    members: Members,
    /// The segment, as far as there are frames in it, and where each frame stands.
    segment: PathBuf,
    bytes: Vec<u8>,
    frames: Vec<Range<usize>>,
}

impl Crashed {
    fn new() -> Crashed {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap().join("crashed");
        let mut members = Members::new();
        let store = Store::open(dir.path().join("store")).unwrap();
        for (number, value) in [&b"first"[..], b"", b"\0third\n\xff", b"fourth", b"the last"].into_iter().enumerate() {
            let key = format!("artist/{number}");
            store.put(&key, value).unwrap();
            store.flush().unwrap();
            members.insert(key, value.to_vec());
        }
        as_after_a_crash(store.path(), &path);
        let [segment] = &segments(&path)[..] else { panic!("one segment holds it all") };
        let (segment, mut bytes) = (segment.clone(), fs::read(segment).unwrap());
        let (mut frames, mut at) = (Vec::new(), 64);
        while let Some(length @ 1..) =
            bytes.get(at..at + 4).map(|length| u32::from_le_bytes(length.try_into().unwrap()))
        {
            frames.push(at..at + 24 + length as usize);
            at = (at + 24 + length as usize).next_multiple_of(8);
        }
        assert_eq!(frames.len(), members.len(), "a frame for each write");
        bytes.truncate(at);
        Crashed { _dir: dir, path, members, segment, bytes, frames }
    }

    /// The members whose frames these are.
    fn members_of(&self, wanted: impl Fn(usize) -> bool) -> Members {
        let wanted = self.members.iter().enumerate().filter(|(number, _)| wanted(*number));
        wanted.map(|(_, (key, value))| (key.clone(), value.clone())).collect()
    }

    /// The members, with nothing of them in a file, and a segment that holds this.
    fn with_segment(&self, bytes: &[u8]) -> PathBuf {
        let path = self.path.with_file_name("damaged");
        _ = fs::remove_dir_all(&path);
        as_after_a_crash(&self.path, &path);
        _ = fs::remove_dir_all(path.join("artist"));
        fs::write(self.segment_in(&path), bytes).unwrap();
        path
    }

    fn segment_in(&self, store: &Path) -> PathBuf {
        store.join(self.segment.strip_prefix(&self.path).unwrap())
    }
}

/// Loads, finds this, closes, and finds it again, in files alone. Returns what was put aside.
#[track_caller]
fn loads_with(path: &Path, expected: &Members) -> Vec<Quarantined> {
    let store = Store::open(path).unwrap();
    assert_eq!(contents(&store), *expected);
    let quarantined = store.load_report().quarantined;
    store.close().unwrap();
    assert_only_files(path);
    assert_eq!(lab::member_files(path).len(), expected.len());
    let store = Store::open(path).unwrap();
    assert_eq!((contents(&store), store.load_report().replayed), (expected.clone(), 0));
    assert_eq!(store.load_report().quarantined, [], "it is reported once");
    quarantined
}

/// Not every byte, which takes a minute, and yet every field of a header or of a frame: none is at a multiple of this in
/// each of them. (The unit tests of frames look at every byte.)
const STEP: usize = 7;

#[test]
fn a_segment_cut_at_any_length_costs_what_came_after_it_only() {
    let crashed = Crashed::new();
    for length in (0..=crashed.bytes.len()).step_by(STEP) {
        let path = crashed.with_segment(&crashed.bytes[..length]);
        let expected = crashed.members_of(|number| crashed.frames[number].end <= length);
        // Nobody can know of what was cut off that it was ever there.
        assert_eq!(loads_with(&path, &expected), [], "cut at {length}");
    }
}

#[test]
fn a_segment_with_any_byte_changed_costs_that_write_only_and_is_told() {
    let crashed = Crashed::new();
    let last = crashed.frames.len() - 1;
    for at in (0..crashed.bytes.len()).step_by(STEP) {
        let mut damaged = crashed.bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        let hit = crashed.frames.iter().position(|frame| frame.contains(&at));
        let path = crashed.with_segment(&damaged);
        let quarantined = loads_with(&path, &crashed.members_of(|number| Some(number) != hit));
        let in_header = at < crashed.frames[0].start;
        if !in_header && hit.is_none_or(|number| number == last) {
            // What fills up to the next frame, or a write of which nobody can know that it was whole.
            assert_eq!(quarantined, [], "byte {at}");
            continue;
        }
        let [quarantined] = &quarantined[..] else { panic!("byte {at}: {quarantined:?}") };
        assert_eq!(quarantined.path, crashed.segment_in(&path), "byte {at}");
        let aside = fs::read(&quarantined.moved_to).unwrap();
        let part = hit.map_or(0..crashed.frames[0].start, |number| crashed.frames[number].clone());
        assert!(aside.windows(part.len()).any(|window| *window == damaged[part.clone()]), "byte {at}");
        let note = fs::read_to_string(format!("{}.reason", quarantined.moved_to.display())).unwrap();
        assert_eq!(note, format!("{}\n{}\n", quarantined.path.display(), quarantined.reason));
    }
}

#[test]
fn what_a_crash_left_behind_the_end_of_a_segment_is_nothing() {
    let crashed = Crashed::new();
    let mut noise = lab::Chance::new(2);
    let noise: Vec<u8> = (0..10_000).map(|_| noise.number() as u8).collect();
    // The last one is a piece of the segment itself, at another place.
    for rest in [&[0; 5000][..], &[0xff; 3], &noise, &crashed.bytes] {
        let path = crashed.with_segment(&[&crashed.bytes, rest].concat());
        assert_eq!(loads_with(&path, &crashed.members), []);
    }
}

#[test]
fn a_member_s_file_that_the_journal_replaces_may_be_anything_and_no_other_may() {
    let crashed = Crashed::new();
    let another = fs::read(Closed::new().file_of("raw/one")).unwrap();
    let held = [&b""[..], &[0; 300], b"larder 1 codec=raw ver", &another];
    let path = crashed.with_segment(&crashed.bytes);
    fs::create_dir(path.join("artist")).unwrap();
    for (number, held) in (0..crashed.frames.len()).zip(held.into_iter().cycle()) {
        fs::write(path.join("artist").join(number.to_string()), held).unwrap();
    }
    fs::write(path.join("artist/another"), "").unwrap();
    let put_aside: Vec<PathBuf> = loads_with(&path, &crashed.members).into_iter().map(|q| q.path).collect();
    assert_eq!(put_aside, [path.join("artist/another")]);
}

#[test]
fn what_was_deleted_does_not_come_back_from_a_file_that_a_crash_left() {
    let dir = tempfile::tempdir().unwrap();
    let (path, crashed) = (dir.path().join("store"), dir.path().join("crashed"));
    let store = Store::open(&path).unwrap();
    for key in ["artist/kept", "artist/deleted", "song/cleared", "song/put again"] {
        store.put(key, "before").unwrap();
    }
    store.close().unwrap();
    let files: Vec<(PathBuf, Vec<u8>)> =
        lab::member_files(&path).into_iter().map(|file| (file.clone(), fs::read(file).unwrap())).collect();
    let store = Store::open(&path).unwrap();
    store.delete("artist/deleted").unwrap();
    // Some of them on their way to the journal when they are cleared.
    for number in 0..50 {
        store.put(format!("song/{number}"), "before").unwrap();
    }
    store.delete_all("song").unwrap();
    store.put("song/put again", "after").unwrap();
    store.flush().unwrap();
    as_after_a_crash(&path, &crashed);
    // The files may have followed already.
    for (file, bytes) in files {
        fs::write(crashed.join(file.strip_prefix(&path).unwrap()), bytes).unwrap();
    }
    let expected = [("artist/kept", "before"), ("song/put again", "after")];
    let expected: Members = expected.map(|(key, value)| (key.to_owned(), value.into())).into();
    assert_eq!(loads_with(&crashed, &expected), []);
}

#[test]
fn what_is_no_segment_is_left_alone_in_the_journal_s_directory() {
    let crashed = Crashed::new();
    let path = crashed.with_segment(&crashed.bytes);
    let journal = path.join(".larder/journal");
    for name in [
        "notes.txt",
        "1",
        "000000000001",
        "0000000000-00000000",
        "00000000001-00000000",
        "0000000001-0000000A",
        "0000000001-0000000g",
        "0000000001-000000000",
        "0000000001-00000001~",
    ] {
        fs::write(journal.join(name), format!("somebody's {name}")).unwrap();
    }
    fs::create_dir(journal.join("0000000099-00000000")).unwrap();
    let mut foreign = tree(&journal);
    foreign.remove(&crashed.segment_in(&path)).unwrap();
    let store = Store::open(&path).unwrap();
    assert_eq!((contents(&store), store.load_report().quarantined), (crashed.members.clone(), Vec::new()));
    store.put("artist/new", "new").unwrap();
    store.close().unwrap();
    assert_eq!(tree(&journal), foreign);
}

#[test]
fn what_a_segment_s_checksums_cover_cannot_be_known_before_it_is_begun() {
    let names: Vec<_> = (0..8).map(|_| Crashed::new().segment.file_name().unwrap().to_owned()).collect();
    let distinct: std::collections::BTreeSet<_> = names.iter().collect();
    // Each is one of 2^32.
    assert!(distinct.len() >= 7, "{names:?}");
}

// ---- what cannot be a store ----

#[test]
fn a_directory_of_somebody_else_s_is_refused_and_nothing_is_made_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let photos = dir.path().join("photos");
    fs::create_dir(&photos).unwrap();
    fs::write(photos.join("cat.jpg"), "meow").unwrap();
    let before = tree(dir.path());
    for attempt in [Store::new(&photos), Store::open(&photos)] {
        match attempt {
            Err(Error::NotAStore { path, .. }) => assert_eq!(path, photos.canonicalize().unwrap()),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(tree(dir.path()), before);
}

#[test]
fn a_directory_that_fills_between_new_and_load_is_refused_by_load() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let store = Store::new(&path).unwrap();
    assert!(!path.exists(), "new makes nothing");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("cat.jpg"), "meow").unwrap();
    let before = tree(dir.path());
    assert!(matches!(store.load(), Err(Error::NotAStore { .. })));
    assert_eq!(tree(dir.path()), before);
    fs::remove_file(path.join("cat.jpg")).unwrap();
    store.load().unwrap();
}

#[test]
fn a_path_that_is_no_directory_is_refused_and_nothing_is_made() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "a file").unwrap();
    fs::create_dir_all(dir.path().join("odd")).unwrap();
    fs::write(dir.path().join("odd/.larder"), "a file").unwrap();
    let mut refused = vec!["file", "odd"];
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("nowhere", dir.path().join("dangling")).unwrap();
        std::os::unix::fs::symlink("file", dir.path().join("link")).unwrap();
        refused.extend(["dangling", "link"]);
    }
    let before = tree(dir.path());
    for name in refused {
        match Store::new(dir.path().join(name)) {
            Err(Error::NotAStore { path, reason }) => assert!(path.starts_with(dir.path()), "{path:?}: {reason}"),
            other => panic!("{name}: {other:?}"),
        }
    }
    assert!(Store::new(dir.path().join("file/below")).and_then(|store| store.load()).is_err());
    assert_eq!(tree(dir.path()), before);
}

// ---- who may read it ----

#[cfg(unix)]
#[test]
fn directories_are_for_their_owner_alone_and_so_are_files() {
    use std::os::unix::fs::PermissionsExt;
    let store = Closed::new();
    fs::write(store.file_of("raw/one"), "damaged").unwrap();
    let loaded = store.load_and_expect(&store.without("raw/one"));
    loaded.put("new/member", "value").unwrap();
    loaded.put("New/Member", "value").unwrap();
    until_at_rest(&loaded);
    let mode = |path: &Path| fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&store.path), 0o700);
    let tree = tree(&store.path);
    for path in tree.keys() {
        let expected = if path.is_dir() { 0o700 } else { 0o600 };
        assert_eq!(mode(path), expected, "{}: {:o}", path.display(), mode(path));
    }
    for name in ["lock", "format", "counter", "tmp", "quarantine", "journal"] {
        assert!(tree.contains_key(&store.meta(name)), "{name}");
    }
    assert_eq!(segments(&store.path).len(), 1, "the newest stays while the store is open");
    assert_eq!(names(&store.meta("quarantine")).len(), 2);
    assert_eq!(lab::member_files(&store.path).len(), 8 + 2);
}
