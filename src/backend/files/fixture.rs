//! What this version writes is what the fixtures hold, byte by byte: `tests/fixtures/` is how it was when the format was
//! fixed, and `tests/fixtures.rs` opens it. Run with `LARDER_WRITE_FIXTURES=1` to write a new one for a new format.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::header;
use super::meta::Kept;
use super::place::Place;
use crate::backend::packed::Out;
use crate::backend::{Backend, Change, Packed};
use crate::core::Engine;
use crate::fs::Native;
use crate::journal::{Extent, Journal, Numbers};
use crate::store::Store;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/format-1")
}

/// A store that was closed.
fn write_closed(path: &Path) {
    let store = Store::open(path).unwrap();
    store.put("album/discovery", "{ year: 2001 }").unwrap();
    store.put("album/homework", "to be deleted").unwrap();
    store.put("album/empty", "").unwrap();
    store.put("album/cleared", "by the journal").unwrap();
    store.put("artist/bj\u{f6}rk", [0, 159, 146, 150]).unwrap();
    store.put("artist/AC/DC", "a slash, and capitals").unwrap();
    store.put("Artist/con", "a name that Windows keeps for itself").unwrap();
    let years = store.collection::<u32>("year").unwrap();
    years.put("discovery", 2001).unwrap();
    #[cfg(feature = "bincode")]
    store.collection_with::<(String, u8), crate::Bincode>("pair").unwrap().put("m", ("text".into(), 7)).unwrap();
    store.delete("album/homework").unwrap();
    store.close().unwrap();
}

/// The same store, later, as a killed process has left it: every kind of frame, in two segments.
fn write_crashed(path: &Path) {
    write_closed(path);
    let place = Place::open(path, Arc::new(Native), crate::backend::Layout::Files).unwrap();
    let mut journal = Journal::new(
        place.fs.clone(),
        place.journal.clone(),
        Arc::new(Numbers::after(0)),
        Extent { number: 0, end: 0 },
    );
    let put = |member, version, value| Change::Put {
        collection: "song",
        member,
        version,
        deadline: None,
        codec: "raw",
        value,
    };
    let counter = 20;
    let transaction =
        [put("first", 22, b"of two"), Change::Delete { collection: "artist", member: "AC/DC", version: 23 }];
    journal.append(&[&transaction], &[Change::Clear { collection: "album", version: 21 }], counter).unwrap();
    journal.sync().unwrap();
    let deadline =
        Change::Deadline { collection: "song", member: "first", version: 25, deadline: Some(4_102_444_800_000) };
    journal.append(&[], &[put("second", 24, b"durable"), deadline], 24).unwrap();
    journal.sync().unwrap();
    journal.seal();
    journal.append(&[], &[put("third", 26, b"in a second segment")], 26).unwrap();
    journal.sync().unwrap();
    journal.append(&[], &[put("fourth", 27, b"never synced")], 27).unwrap();
}

/// A packed store that a killed process has left: a compacted segment, another that was compacted later and holds a
/// delete, a deadline and a clear of what is in the first, and a segment of the journal whose last frame was never synced.
fn write_packed(path: &Path) {
    let mut packed = Packed::on(Arc::new(Native), path).unwrap();
    // Compacts at each sync, on this thread.
    packed.eager = true;
    Engine::read(&mut packed).unwrap();
    let put = |collection, member, version, codec, value| Change::Put {
        collection,
        member,
        version,
        deadline: None,
        codec,
        value,
    };
    let (large, larger) = ([b'l'; 5000], [b'l'; 10_000]);
    packed
        .apply(&[
            put("album", "discovery", 1, "raw", b"2001"),
            put("song", "large", 2, "raw", &large),
            put("song", "larger", 3, "raw", &larger),
            put("song", "deleted", 4, "raw", b"1"),
            put("song", "first", 5, "raw", b"kept"),
            put("year", "discovery", 6, "json", b"2001"),
        ])
        .unwrap();
    packed.sync().unwrap();
    packed
        .apply(&[
            Change::Clear { collection: "album", version: 7 },
            Change::Delete { collection: "song", member: "deleted", version: 8 },
            Change::Deadline { collection: "song", member: "first", version: 9, deadline: Some(4_102_444_800_000) },
            Change::Put {
                collection: "song",
                member: "second",
                version: 11,
                deadline: Some(4_102_444_800_000),
                codec: "raw",
                value: b"with a deadline",
            },
            put("song", "bj\u{f6}rk", 10, "raw", &[0, 159, 146, 150]),
            put("song", "empty", 12, "raw", b""),
        ])
        .unwrap();
    packed.sync().unwrap();
    packed.eager = false;
    let transaction = [
        put("song", "third", 13, "raw", b"of two"),
        Change::Delete { collection: "song", member: "empty", version: 14 },
    ];
    packed.apply_transaction(&transaction).unwrap();
    packed.sync().unwrap();
    packed.apply(&[put("song", "fourth", 15, "raw", b"never synced")]).unwrap();
}

/// A packed store that was closed: a compacted segment, one of the journal, and the list of both.
fn write_packed_closed(path: &Path) {
    let mut packed = Packed::on(Arc::new(Native), path).unwrap();
    packed.eager = true;
    Engine::read(&mut packed).unwrap();
    packed.apply(&MOVED.map(|(member, version, value)| put_song(member, version, value))).unwrap();
    packed.sync().unwrap();
    packed.eager = false;
    packed
        .apply(&[put_song("second", 4, b"later"), Change::Delete { collection: "song", member: "third", version: 5 }])
        .unwrap();
    packed.sync().unwrap();
    packed.settle().unwrap();
    packed.close(5).unwrap();
}

const MOVED: [(&str, u64, &[u8]); 3] = [("first", 1, b"one"), ("second", 2, b"two"), ("third", 3, b"three")];

fn put_song<'a>(member: &'a str, version: u64, value: &'a [u8]) -> Change<'a> {
    Change::Put { collection: "song", member, version, deadline: None, codec: "raw", value }
}

/// The same, as a crash has left it amidst a move into files: one of them is there, and a part of another.
fn write_beside_files(path: &Path) {
    write_packed_closed(path);
    let place = Place::open(path, Arc::new(Native), crate::backend::Layout::Packed).unwrap();
    place.forget_segments().unwrap();
    place.write_kept(Kept::PackedBesideFiles).unwrap();
    let mut file = Vec::new();
    header::encode(&mut file, "song", "first", 1, None, "raw", b"one");
    fs::create_dir(path.join("song")).unwrap();
    fs::write(path.join("song/first"), &file).unwrap();
    header::encode(&mut file, "song", "second", 4, None, "raw", b"later");
    fs::write(path.join("song/second"), &file[..30]).unwrap();
}

/// A store of files, as a crash has left it amidst a move into segments: some members are in one.
fn write_half_packed(path: &Path) {
    write_closed(path);
    let place = Place::open(path, Arc::new(Native), crate::backend::Layout::Files).unwrap();
    let place = Arc::new(place);
    let mut out = Out::new(&place, Numbers::after(0).next());
    out.put("album", &Arc::from("raw"), "discovery", 1, None, b"{ year: 2001 }").unwrap();
    out.finish(1).unwrap();
}

/// Every file by its path, without the lock. If it is not to be `exact`, without the zeros that a segment ends with, and without
/// the number of members, which nothing needs: there are stores that were closed without it.
fn tree(root: &Path, exact: bool) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
                continue;
            }
            let mut bytes = fs::read(&path).unwrap();
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().replace('\\', "/");
            // A packed segment says where it ends, and has no zeros to spare.
            if !exact && name.contains("journal/") && bytes[48..56] == [0; 8] {
                let end = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
                bytes.truncate(end.next_multiple_of(8));
            }
            if name != ".larder/lock" && (exact || name != ".larder/members") {
                found.insert(name, bytes);
            }
        }
    }
    found
}

#[cfg(feature = "bincode")]
#[test]
fn what_is_written_is_what_the_fixtures_hold() {
    let fixtures_of = [
        ("closed", write_closed as fn(&Path), false),
        ("crashed", write_crashed, false),
        ("packed", write_packed, false),
        ("counted", write_closed, true),
        ("packed-closed", write_packed_closed, true),
        ("beside-files", write_beside_files, true),
        ("half-packed", write_half_packed, true),
    ];
    for (name, write, exact) in fixtures_of {
        let dir = tempfile::tempdir().unwrap();
        write(&dir.path().join("store"));
        let (written, fixture) = (tree(&dir.path().join("store"), exact), fixtures().join(name));
        if std::env::var_os("LARDER_WRITE_FIXTURES").is_some() {
            for (path, bytes) in &written {
                fs::create_dir_all(fixture.join(path).parent().unwrap()).unwrap();
                fs::write(fixture.join(path), bytes).unwrap();
            }
        }
        assert_eq!(written, tree(&fixture, exact), "{name}");
    }
}
