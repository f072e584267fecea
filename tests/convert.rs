//! A store moves between layouts: everything in it comes along, whatever stands in the way is told, and a process that is
//! killed on the way leaves a store that opens.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test, a panic is the report")]

mod lab;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use lab::{
    Chance, Process, assert_only_files, assert_tidy, contents, member_files, names, once_more, say, segments, tell,
    tree,
};
use larder::{Error, Layout, Store, convert};

const BOTH: [Layout; 2] = [Layout::Files, Layout::Packed];

fn other(layout: Layout) -> Layout {
    if layout == Layout::Files { Layout::Packed } else { Layout::Files }
}

fn temporary() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().canonicalize().unwrap().join("store");
    (dir, path)
}

/// A closed store with members by every codec, under names of every kind, and something deleted.
fn filled(path: &Path, layout: Layout) -> BTreeMap<String, Vec<u8>> {
    let store = Store::options(path).layout(layout).open().unwrap();
    for number in 0..300 {
        store.put(format!("Artist {}/Björk/{number}", number % 3), vec![number as u8; number]).unwrap();
    }
    store.collection::<u32>("year").unwrap().put("discovery", 2001).unwrap();
    #[cfg(feature = "bincode")]
    store.collection_with::<(String, u8), larder::Bincode>("pair").unwrap().put("m", ("text".into(), 7)).unwrap();
    store.put("cleared/m", "v").unwrap();
    store.delete_all("cleared").unwrap();
    store.delete("Artist 0/Björk/30").unwrap();
    let members = contents(&store);
    store.close().unwrap();
    members
}

/// Opens without saying the layout: it is this one, and holds this.
#[track_caller]
fn assert_is(path: &Path, layout: Layout, members: &BTreeMap<String, Vec<u8>>) {
    let store = Store::open(path).unwrap();
    assert_eq!((store.load_report().members, store.load_report().quarantined), (members.len(), Vec::new()));
    assert!(contents(&store) == *members);
    store.close().unwrap();
    let format = fs::read_to_string(path.join(".larder/format")).unwrap();
    match layout {
        Layout::Files => {
            assert_eq!(format, "larder format 1\n");
            assert_only_files(path);
            assert_eq!(member_files(path).len(), members.len());
        }
        _ => {
            assert_eq!(format, "larder format 1 packed\n");
            assert_eq!(names(path), [".larder"]);
        }
    }
    assert_tidy(path);
}

#[test]
fn everything_comes_along_in_both_directions() {
    for layout in BOTH {
        let (_dir, path) = temporary();
        let members = filled(&path, layout);
        convert(&path, other(layout)).unwrap();
        assert_is(&path, other(layout), &members);
        let store = Store::open(&path).unwrap();
        assert_eq!(*store.collection::<u32>("year").unwrap().get("discovery").unwrap(), 2001);
        #[cfg(feature = "bincode")]
        {
            let pairs = store.collection_with::<(String, u8), larder::Bincode>("pair").unwrap();
            assert_eq!(*pairs.get("m").unwrap(), ("text".to_owned(), 7));
        }
        store.close().unwrap();
        convert(&path, layout).unwrap();
        assert_is(&path, layout, &members);
    }
}

#[test]
fn files_that_were_packed_and_unpacked_are_the_same_byte_by_byte() {
    let (_dir, path) = temporary();
    let members = filled(&path, Layout::Files);
    let before = tree(&path);
    convert(&path, Layout::Packed).unwrap();
    assert_ne!(tree(&path), before);
    convert(&path, Layout::Files).unwrap();
    // Versions, codecs and the counter's mark too.
    assert_eq!(tree(&path), before);
    assert_is(&path, Layout::Files, &members);
}

#[test]
fn numbers_go_on_where_they_were() {
    let counter = |path: &Path| {
        let text = fs::read_to_string(path.join(".larder/counter")).unwrap();
        text.split(' ').nth(2).unwrap().parse::<u64>().unwrap()
    };
    let (_dir, path) = temporary();
    // Of most numbers nothing is left but the counter.
    let store = Store::options(&path).layout(Layout::Packed).open().unwrap();
    for _ in 0..500 {
        store.put("c/m", "v").unwrap();
        store.delete("c/m").unwrap();
    }
    store.put("c/kept", "v").unwrap();
    store.delete("c/m").unwrap();
    store.put("c/m", "v").unwrap();
    store.delete("c/m").unwrap();
    store.compact().unwrap();
    store.close().unwrap();
    convert(&path, Layout::Files).unwrap();
    let mark = counter(&path);
    assert!(mark >= 1003, "{mark}");
    convert(&path, Layout::Packed).unwrap();
    let store = Store::open(&path).unwrap();
    store.put("c/new", "v").unwrap();
    store.close().unwrap();
    convert(&path, Layout::Files).unwrap();
    assert_eq!(counter(&path), mark + 1);
}

#[test]
fn a_store_that_has_the_layout_is_left_as_it_is() {
    for layout in BOTH {
        let (_dir, path) = temporary();
        let members = filled(&path, layout);
        convert(&path, layout).unwrap();
        let before = tree(&path);
        convert(&path, layout).unwrap();
        let after = tree(&path);
        if layout == Layout::Files {
            assert_eq!(after, before);
        }
        assert_is(&path, layout, &members);
    }
}

#[test]
fn an_empty_store_and_an_empty_directory_take_the_layout() {
    for layout in BOTH {
        let (_dir, path) = temporary();
        Store::options(&path).layout(other(layout)).open().unwrap().close().unwrap();
        convert(&path, layout).unwrap();
        assert_is(&path, layout, &BTreeMap::new());

        let (_dir, path) = temporary();
        fs::create_dir(&path).unwrap();
        convert(&path, layout).unwrap();
        assert_is(&path, layout, &BTreeMap::new());
    }
}

#[test]
fn a_store_that_is_open_is_not_moved() {
    for layout in BOTH {
        let (_dir, path) = temporary();
        let members = filled(&path, layout);
        let store = Store::open(&path).unwrap();
        let before = tree(&path);
        for to in BOTH {
            let error = convert(&path, to).unwrap_err();
            assert!(matches!(&error, Error::Locked { path: told, .. } if *told == path), "{error}");
        }
        assert_eq!(tree(&path), before);
        store.put("c/m", "still open").unwrap();
        store.delete("c/m").unwrap();
        store.close().unwrap();
        assert_is(&path, layout, &members);
    }
}

#[test]
fn what_is_no_store_is_not_moved() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing");
    let (file, foreign) = (dir.path().join("file"), dir.path().join("foreign"));
    fs::write(&file, "a file").unwrap();
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("notes"), "somebody's").unwrap();
    let before = tree(dir.path());
    for path in [&missing, &file, &foreign, &file.join("below"), &PathBuf::new()] {
        for layout in BOTH {
            let error = convert(path, layout).unwrap_err();
            let told = matches!(&error, Error::NotAStore { .. });
            assert!(told, "{}: {error}", path.display());
        }
    }
    assert_eq!(tree(dir.path()), before);
}

#[test]
fn what_is_not_larder_s_stays_where_it_is() {
    let (_dir, path) = temporary();
    let members = filled(&path, Layout::Files);
    let year = path.join("year");
    let foreign = [
        path.join("Notes.TXT"),
        path.join("Somebody's/notes"),
        year.join("Notes.TXT"),
        year.join("below/notes"),
        path.join("empty~0000"),
    ];
    for file in &foreign {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, "somebody's").unwrap();
    }
    let check = || {
        for file in &foreign {
            assert_eq!(fs::read_to_string(file).unwrap(), "somebody's", "{}", file.display());
        }
        let store = Store::open(&path).unwrap();
        assert!(contents(&store) == members);
        assert_eq!(store.load_report().quarantined, []);
        store.close().unwrap();
    };
    convert(&path, Layout::Packed).unwrap();
    check();
    assert_eq!(names(&year), ["Notes.TXT", "below"], "only what is larder's goes");
    convert(&path, Layout::Files).unwrap();
    check();
}

#[test]
fn a_damaged_member_is_put_aside_and_the_others_are_moved() {
    let (_dir, path) = temporary();
    let mut members = filled(&path, Layout::Files);
    fs::write(path.join("year/discovery"), "damaged").unwrap();
    members.remove("year/discovery").unwrap();
    convert(&path, Layout::Packed).unwrap();
    let quarantined = names(&path.join(".larder/quarantine"));
    assert_eq!(quarantined.len(), 2, "{quarantined:?}");
    let store = Store::open(&path).unwrap();
    assert!(contents(&store) == members);
}

// ---- killed ----

const STORE: &str = "LARDER_CONVERT_STORE";
const MEMBERS: usize = 1000;
const KILLS: usize = 60;

#[test]
fn child_converts() {
    let Some(path) = std::env::var_os(STORE) else { return };
    loop {
        for layout in BOTH {
            say(&layout.to_string());
            convert(&path, layout).unwrap();
        }
    }
}

/// A moment of a conversion, to be told from outside.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// So many files of members are there, or more.
    Files(usize),
    /// So many, or fewer.
    FewerFiles(usize),
    TemporaryFiles,
    BesideFiles,
    Segments(usize),
    /// After so many looks.
    Looks(usize),
}

impl Moment {
    fn any(chance: &mut Chance) -> Moment {
        match chance.below(8) {
            0 | 1 => Moment::Files(1 + chance.below(MEMBERS)),
            2 | 3 => Moment::FewerFiles(chance.below(MEMBERS)),
            4 => Moment::TemporaryFiles,
            5 => Moment::BesideFiles,
            6 => Moment::Segments(1 + chance.below(3)),
            _ => Moment::Looks(chance.below(1000)),
        }
    }

    fn is_now(self, path: &Path, looks: usize) -> bool {
        match self {
            Moment::Files(least) => member_count(path) >= least,
            Moment::FewerFiles(most) => member_count(path) <= most,
            Moment::TemporaryFiles => !names(&path.join(".larder/tmp")).is_empty(),
            Moment::BesideFiles => {
                fs::read_to_string(path.join(".larder/format")).is_ok_and(|format| format.contains("beside"))
            }
            Moment::Segments(number) => segments(path).len() == number,
            Moment::Looks(number) => looks >= number,
        }
    }
}

fn member_count(path: &Path) -> usize {
    (0..4).map(|collection| names(&path.join(format!("c{collection}"))).len()).sum()
}

#[test]
fn a_conversion_that_is_killed_anywhere_leaves_all_members_and_goes_on() {
    let (_dir, path) = temporary();
    let store = Store::open(&path).unwrap();
    for number in 0..MEMBERS {
        store.put(format!("c{}/{number}", number % 4), vec![number as u8; number % 200]).unwrap();
    }
    let mut members = contents(&store);
    store.close().unwrap();
    let mut chance = Chance::new(11);
    let (mut in_files, mut packed, mut beside, mut left_over) = (0, 0, 0, 0);
    for kill in 0..KILLS {
        let mut command = once_more("child_converts");
        command.env(STORE, &path);
        let mut child = Process::start(command);
        // Some conversions are let through, so that it is in either direction.
        for _ in 0..1 + chance.below(3) {
            child.heard().expect("the child ended by itself");
        }
        let moment = Moment::any(&mut chance);
        let mut looks = 0;
        // Whether it is met in this conversion or the next one, the child is killed; after many looks anyway.
        while !moment.is_now(&path, looks) && looks < 2000 {
            looks += 1;
        }
        child.kill();
        assert!(!child.wait().success());

        let format = fs::read_to_string(path.join(".larder/format")).unwrap();
        beside += usize::from(format.contains("beside"));
        let layout = if format.contains("packed") { Layout::Packed } else { Layout::Files };
        packed += usize::from(layout == Layout::Packed);
        in_files += usize::from(layout == Layout::Files);
        let has_left = match layout {
            Layout::Packed => member_count(&path) > 0,
            _ => !segments(&path).is_empty(),
        };
        left_over += usize::from(has_left);
        // It is opened as what it is, or the conversion goes on, there or back.
        match chance.below(3) {
            0 => assert_is(&path, layout, &members),
            1 => {
                convert(&path, other(layout)).unwrap();
                assert_is(&path, other(layout), &members);
            }
            _ => {
                convert(&path, layout).unwrap();
                assert_is(&path, layout, &members);
            }
        }
        // What is written from here on is not undone by what was left behind.
        let store = Store::open(&path).unwrap();
        let key = format!("c{}/{}", kill % 4, chance.below(MEMBERS / 4) * 4 + kill % 4);
        if chance.below(2) == 0 {
            store.delete(&key).unwrap();
            members.remove(&key);
        } else {
            let value = format!("after kill {kill}");
            store.put(&key, &value).unwrap();
            members.insert(key, value.into_bytes());
        }
        if chance.below(2) == 0 {
            store.flush().unwrap();
        }
        store.close().unwrap();
    }
    assert!(in_files > 0 && packed > 0 && left_over > 0, "the kills did not come amidst conversions");
    tell(&format!(
        "{KILLS} kills: the store was in files after {in_files}, packed after {packed}, with files beside it after \
         {beside}; something was left over {left_over} times"
    ));
}
