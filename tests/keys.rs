//! Any key that the rules allow is stored and comes back, whatever it holds; nothing leaves the store's directory, and
//! no name on the disk is one that some file system cannot hold.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test, a panic is the report")]

mod lab;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use lab::{assert_only_files, assert_tidy, member_files, tree, until_at_rest};
use larder::{Error, MAX_COLLECTION, MAX_MEMBER, Store};
use proptest::prelude::*;

/// By collection and member, the value.
type Members = BTreeMap<(String, String), Vec<u8>>;

/// Members, and collections where they may be: whatever a file system, a shell or a path could trip over.
#[rustfmt::skip]
const HOSTILE: &[&str] = &[
    // Paths.
    ".", "..", "../x", "../../../../etc/passwd", "a/../../b", "a//b", "/", "//", "/etc/passwd", "./x", "x/.", "x/..",
    "x/", "...", "....", "~", "~root", "$HOME", "C:\\x", "\\\\server\\share", "..\\..\\x", "file:///etc/passwd",
    "%2e%2e%2f", "%00",
    // Control characters, and what looks like something else.
    "\0", "a\0b", "\n", "a\nb", "\r\n", "\t", "\u{1b}[31m", "\u{7f}", "\u{85}", "\u{200b}", "\u{202e}txt.exe",
    "\u{feff}x", " ", "  ", " x", "x ", "x.", "x. ", ".x", "-rf", "--", "*", "?", "a*b", "<>:\"|?*", "'", "\"", "`",
    "key=\"x\" length=0 crc32=00000000\n", "larder 1 codec=raw",
    // Names that differ in case or in normalisation only.
    "case", "Case", "CASE", "ß", "ss", "SS", "\u{fb03}", "ffi", "\u{130}", "i", "\u{131}", "I", "K", "\u{212a}",
    "caf\u{e9}", "cafe\u{301}", "\u{1e9b}\u{323}", "\u{1e9b}\u{307}\u{323}", "\u{ac01}", "\u{1100}\u{1161}\u{11a8}",
    "\u{c5}", "\u{212b}", "A\u{30a}",
    // Other scripts, and characters of four bytes.
    "björk", "Ελλάδα", "日本語", "עברית", "🦀", "👩\u{200d}👩\u{200d}👧", "\u{10ffff}", "\u{fffd}",
    // Names of devices, larder's own names, and those of other programs.
    "con", "CON", "con.txt", "prn", "aux", "aux.c", "nul", "NUL", "com1", "com9.log", "lpt1", "LPT9", "conin$",
    "com\u{b9}", ".larder", "larder", "lock", "tmp", "journal", "quarantine", "format", "counter", ".hidden", ".DS_Store",
    "Thumbs.db", "desktop.ini", "0", "-0", "1e9", "null", "true", "__proto__", "constructor",
    // What larder makes of other names, or looks like it.
    "bj_rk~590a34408cfed52d0fc682d0c112dc26", "x~", "x~y", "~590a34408cfed52d0fc682d0c112dc26",
    "con~00000000000000000000000000000000",
];

/// Those, and names at both sides of every length that could matter.
fn hostile_names() -> Vec<String> {
    let mut names: Vec<String> = HOSTILE.iter().map(|&name| name.to_owned()).collect();
    for length in [99, 100, 101, 143, 144, 200, 254, 255] {
        names.extend(["x", "X", "/"].map(|character| character.repeat(length)));
    }
    names.push("é".repeat(127));
    names.push("🦀".repeat(63));
    let different: BTreeSet<&String> = names.iter().collect();
    assert_eq!(different.len(), names.len(), "a name is listed twice");
    names
}

fn long_members() -> Vec<String> {
    let mut members = vec!["🦀".repeat(MAX_MEMBER / 4), "\0".repeat(MAX_MEMBER), "../".repeat(341)];
    for length in [256, 512, MAX_MEMBER - 1, MAX_MEMBER] {
        members.push("m".repeat(length));
        members.push("M".repeat(length - 1) + "n");
    }
    members
}

fn contents(store: &Store) -> Members {
    let mut contents = Members::new();
    for collection in store.collections().unwrap() {
        for (member, value) in store.get_all(&collection).unwrap() {
            contents.insert((collection.clone(), member.to_string()), value.to_vec());
        }
    }
    contents
}

/// Every name below a store is one that any file system takes.
#[track_caller]
fn assert_plain_names(store: &Path) {
    let safe = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'~' | b'-');
    for path in tree(store).keys() {
        let below = path.strip_prefix(store).unwrap();
        assert!(below.components().count() <= 3, "{below:?}");
        for name in below.components().map(|component| component.as_os_str().to_str().unwrap()) {
            assert!(name.bytes().all(safe) && name.len() <= 255, "{name:?}");
            if name == ".larder" {
                continue;
            }
            assert!(!name.starts_with('.') && !name.ends_with('.'), "{name:?}");
            let stem = name.split('.').next().unwrap();
            let device = ["con", "prn", "aux", "nul"].contains(&stem)
                || stem.len() == 4
                    && (stem.starts_with("com") || stem.starts_with("lpt"))
                    && stem.as_bytes()[3] != b'0';
            assert!(!device, "{name:?} is a device on Windows");
        }
    }
}

/// A store in a directory of its own, so that whatever leaves it is seen.
struct Home {
    dir: tempfile::TempDir,
}

impl Home {
    fn new() -> Home {
        Home { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("a/b/store")
    }

    /// Puts all, closes, opens again, and finds all; deletes all, and finds nothing.
    fn takes(&self, members: &Members) {
        let store = Store::open(self.path()).unwrap();
        for ((collection, member), value) in members {
            assert_eq!(store.put(format!("{collection}/{member}"), value).unwrap(), None, "{collection:?} {member:?}");
        }
        for ((collection, member), value) in members {
            assert_eq!(store.get(format!("{collection}/{member}")).unwrap().unwrap(), *value);
        }
        store.close().unwrap();
        assert_only_files(&self.path());
        assert_eq!(member_files(&self.path()).len(), members.len(), "a file for every member");
        assert_plain_names(&self.path());
        self.assert_nothing_outside();

        let store = Store::open(self.path()).unwrap();
        assert_eq!(store.load_report().quarantined, []);
        assert!(contents(&store) == *members, "not all has come back");
        for ((collection, member), value) in members {
            let key = format!("{collection}/{member}");
            assert_eq!(store.get(&key).unwrap().unwrap(), *value, "{key:?}");
            assert!(store.members(collection).unwrap().iter().any(|name| name == member));
            assert_eq!(store.delete(&key).unwrap().unwrap(), *value, "{key:?}");
        }
        store.close().unwrap();
        assert!(member_files(&self.path()).is_empty());
        self.assert_nothing_outside();
        assert_eq!(Store::open(self.path()).unwrap().stats().members, 0);
        assert_tidy(&self.path());
    }

    fn assert_nothing_outside(&self) {
        let outside: Vec<PathBuf> =
            tree(self.dir.path()).into_keys().filter(|path| !path.starts_with(self.path())).collect();
        assert_eq!(outside, [self.dir.path().join("a"), self.dir.path().join("a/b")]);
    }
}

/// A value that no other key has.
fn value(collection: &str, member: &str) -> Vec<u8> {
    format!("{collection}\0{member}").into_bytes()
}

#[test]
fn hostile_members_come_back_and_stay_inside() {
    let names = hostile_names().into_iter().chain(long_members());
    let members: Members = names.map(|name| (("Artist".to_owned(), name.clone()), value("Artist", &name))).collect();
    assert!(members.len() > 150);
    Home::new().takes(&members);
}

#[test]
fn hostile_collections_come_back_and_stay_inside() {
    let mut names = hostile_names();
    names.retain(|name| !name.contains('/') && name != "." && name != "..");
    names.push("c".repeat(MAX_COLLECTION));
    let mut members = Members::new();
    for name in &names {
        for member in ["one", "../../two", "One"] {
            members.insert((name.clone(), member.to_owned()), value(name, member));
        }
    }
    assert!(members.len() > 300);
    Home::new().takes(&members);
}

#[test]
fn the_longest_names_come_back_and_longer_ones_are_refused() {
    let (collection, member) = ("é".repeat(127) + "c", "🦀".repeat(256));
    assert_eq!((collection.len(), member.len()), (MAX_COLLECTION, MAX_MEMBER));
    Home::new().takes(&Members::from([((collection.clone(), member.clone()), b"v".to_vec())]));

    let home = Home::new();
    let store = Store::open(home.path()).unwrap();
    for key in [format!("{collection}c/m"), format!("c/{member}m"), "/m".into(), "c/".into(), "c".into(), String::new()]
    {
        for refused in [store.put(&key, "v").map(drop), store.get(&key).map(drop), store.delete(&key).map(drop)] {
            match refused {
                Err(Error::InvalidKey { key: named, .. }) => assert_eq!(named, key),
                other => panic!("{key:?}: {other:?}"),
            }
        }
    }
    store.close().unwrap();
    assert!(member_files(&home.path()).is_empty());
}

#[test]
fn a_collection_named_as_the_way_out_is_refused_and_nothing_is_made() {
    let home = Home::new();
    let store = Store::open(home.path()).unwrap();
    for key in ["./x", "../x", "../../etc/passwd", "..//", "./.larder/lock"] {
        assert!(matches!(store.put(key, "v"), Err(Error::InvalidKey { .. })), "{key}");
    }
    for name in [".", "..", "a/b", "", "/"] {
        assert!(matches!(store.delete_all(name), Err(Error::InvalidKey { .. })), "{name:?}");
        assert!(matches!(store.collection::<u8>(name), Err(Error::InvalidKey { .. })), "{name:?}");
    }
    store.close().unwrap();
    assert!(member_files(&home.path()).is_empty());
    home.assert_nothing_outside();
}

#[test]
fn a_name_that_larder_makes_of_another_is_a_member_of_its_own() {
    let home = Home::new();
    let store = Store::open(home.path()).unwrap();
    store.put("artist/björk", "the singer").unwrap();
    store.close().unwrap();
    let file = member_files(&home.path())[0].file_name().unwrap().to_str().unwrap().to_owned();
    assert!(file.contains('~'));
    // And what it makes of that, and so on.
    let mut members = Members::from([(("artist".to_owned(), "björk".to_owned()), b"the singer".to_vec())]);
    let mut name = file;
    for depth in 0..5 {
        let store = Store::open(home.path()).unwrap();
        assert_eq!(store.put(format!("artist/{name}"), format!("depth {depth}")).unwrap(), None);
        members.insert(("artist".to_owned(), name.clone()), format!("depth {depth}").into_bytes());
        store.close().unwrap();
        let header = format!("key=\"artist/{name}\"");
        let path = member_files(&home.path())
            .into_iter()
            .find(|path| String::from_utf8_lossy(&std::fs::read(path).unwrap()).contains(&header))
            .unwrap();
        name = path.file_name().unwrap().to_str().unwrap().to_owned();
    }
    let store = Store::open(home.path()).unwrap();
    assert!(contents(&store) == members);
}

#[test]
fn a_portable_name_is_the_name_of_the_file() {
    let home = Home::new();
    let store = Store::open(home.path()).unwrap();
    let names = ["daft_punk", "0", "a.b-c_d", "_", "console", "com0", "x.tar.gz"];
    for name in names {
        store.put(format!("artist/{name}"), "v").unwrap();
    }
    until_at_rest(&store);
    for name in names {
        assert!(home.path().join("artist").join(name).is_file(), "{name}");
    }
}

#[test]
fn no_file_is_named_so_that_a_command_takes_it_for_an_option() {
    let home = Home::new();
    let store = Store::open(home.path()).unwrap();
    for name in ["-rf", "--", "-", "-/x"] {
        store.put(format!("artist/{name}"), "v").unwrap();
        store.put(format!("{}/x", name.replace('/', "")), "v").unwrap();
    }
    until_at_rest(&store);
    assert_eq!(member_files(&home.path()).len(), 8);
    for path in tree(&home.path()).keys() {
        assert!(!path.file_name().unwrap().to_str().unwrap().starts_with('-'), "{}", path.display());
    }
}

/// Names of any characters, with those that make trouble more often than chance would.
fn name(longest: usize) -> impl Strategy<Value = String> {
    let trouble =
        prop::sample::select(vec!['/', '.', '~', '\\', '\0', '\n', ' ', 'A', 'a', 'é', '\u{301}', '-', '_', '"']);
    let character = prop_oneof![2 => trouble, 1 => any::<char>()];
    prop::collection::vec(character, 1..40).prop_map(move |characters| {
        let mut name = String::from_iter(characters);
        while name.len() > longest {
            name.pop();
        }
        name
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_keys_come_back_and_stay_inside(
        keys in prop::collection::btree_set((name(MAX_COLLECTION), name(MAX_MEMBER)), 1..60),
    ) {
        let allowed = |name: &str| !matches!(name, "" | "." | "..") && !name.contains('/');
        let mut members = Members::new();
        for (collection, member) in keys {
            let collection = if allowed(&collection) { collection } else { collection.replace(['/', '.'], "_") + "c" };
            let value = value(&collection, &member);
            members.insert((collection, member), value);
        }
        Home::new().takes(&members);
    }
}
