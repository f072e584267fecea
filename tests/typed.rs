//! Collections of a caller's type: what is handed out, what is stored, and what a type that misbehaves can do.

mod lab;

use std::sync::{Arc, Mutex, OnceLock};

use larder::{Bincode, Codec, CodecError, Error, Health, Json, Store};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Artist {
    country: String,
    albums: u32,
}

fn artist(country: &str, albums: u32) -> Artist {
    Artist { country: country.into(), albums }
}

fn temporary() -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    (dir, path)
}

#[test]
fn reads_hand_out_the_value_that_was_put() {
    let store = Store::in_memory();
    let artists = store.collection::<Artist>("artist").unwrap();
    let shared = Arc::new(artist("France", 4));
    assert!(artists.put_shared("daft_punk", shared.clone()).unwrap().is_none());
    assert!(Arc::ptr_eq(&artists.get("daft_punk").unwrap(), &shared));
    let old = artists.put("daft_punk", artist("France", 5)).unwrap().unwrap();
    assert!(Arc::ptr_eq(&old, &shared));
    assert_eq!((artists.len(), artists.contains("daft_punk"), artists.contains("x")), (1, true, false));
    assert_eq!(artists.get_all()[0].0, "daft_punk");
    assert_eq!(artists.members(), ["daft_punk"]);
    assert_eq!(artists.iter().count(), 1);
    assert_eq!(artists.delete("daft_punk").unwrap().unwrap().albums, 5);
    assert!(artists.is_empty() && artists.delete("daft_punk").unwrap().is_none());
    artists.put("a", artist("x", 1)).unwrap();
    assert_eq!(artists.delete_all().unwrap(), 1);
}

#[test]
fn by_key_a_typed_collection_is_seen_as_its_encoded_bytes() {
    let store = Store::in_memory();
    let artists = store.collection::<Artist>("artist").unwrap();
    artists.put("a", artist("France", 4)).unwrap();
    assert_eq!(store.get("artist/a").unwrap().unwrap(), r#"{"country":"France","albums":4}"#);
    let old = store.put("artist/a", r#"{"albums":5,"country":"Chile"}"#).unwrap().unwrap();
    assert_eq!(old, r#"{"country":"France","albums":4}"#);
    assert_eq!(*artists.get("a").unwrap(), artist("Chile", 5));
    let refused = store.put("artist/a", "no json").unwrap_err();
    assert!(matches!(&refused, Error::Codec { key, action: "decode", .. } if key == "artist/a"), "{refused:?}");
    assert!(store.put("artist/a", r#"{"albums":5,"country":"Chile"} x"#).is_err(), "a rest is not let pass");
    assert_eq!(artists.get("a").unwrap().albums, 5);
    assert_eq!(store.delete("artist/a").unwrap().unwrap(), r#"{"country":"Chile","albums":5}"#);
}

#[test]
fn a_loaded_collection_is_opened_as_a_type_all_or_nothing() {
    let (_dir, path) = temporary();
    let store = Store::open(&path).unwrap();
    store.put("artist/good", r#"{"country":"x","albums":1}"#).unwrap();
    store.put("artist/bad", "[]").unwrap();
    store.put("artist/worse", "").unwrap();
    store.close().unwrap();

    let store = Store::open(&path).unwrap();
    let Error::Codec { key, codec, members, .. } = store.collection::<Artist>("artist").unwrap_err() else {
        panic!("another error")
    };
    assert_eq!((key.as_str(), codec.as_str()), ("artist", "json"));
    assert_eq!(members.iter().map(|(member, _)| member.as_str()).collect::<Vec<_>>(), ["bad", "worse"]);
    assert_eq!(store.get("artist/bad").unwrap().unwrap(), "[]", "nothing is changed");
    assert_eq!(store.len("artist").unwrap(), 3);
    store.delete("artist/bad").unwrap();
    store.delete("artist/worse").unwrap();
    assert_eq!(store.collection::<Artist>("artist").unwrap().get("good").unwrap().albums, 1);
}

#[test]
fn what_does_not_decode_goes_into_quarantine_if_that_is_wanted() {
    let (_dir, path) = temporary();
    let store = Store::options(&path).quarantine_undecodable(true).open().unwrap();
    store.put("artist/good", r#"{"country":"x","albums":1}"#).unwrap();
    store.put("artist/bad", "neither this").unwrap();
    let artists = store.collection::<Artist>("artist").unwrap();
    assert_eq!((artists.len(), artists.contains("good")), (1, true));
    let report = store.load_report();
    assert_eq!(report.quarantined[0].path, std::path::Path::new("artist/bad"));
    assert!(report.quarantined[0].moved_to.exists());
    store.close().unwrap();
    assert!(!path.join("artist/bad").exists());
    let aside: Vec<String> = std::fs::read_dir(path.join(".larder/quarantine"))
        .unwrap()
        .map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap())
        .collect();
    assert_eq!(aside.len(), 2);
    assert!(aside.iter().any(|text| text.ends_with("\nneither this")));
    assert!(aside.iter().any(|note| note.contains("it does not decode")));
}

#[test]
fn a_second_type_or_codec_is_an_error_that_names_both() {
    let store = Store::in_memory();
    let _open = store.collection::<Artist>("artist").unwrap();
    assert!(store.collection::<Artist>("artist").is_ok());
    let mismatch = store.collection::<u32>("artist").unwrap_err().to_string();
    assert!(mismatch.contains("Artist in codec json") && mismatch.contains("u32 in codec json"), "{mismatch}");
    let mismatch = store.collection_with::<Artist, Bincode>("artist").unwrap_err();
    assert!(matches!(mismatch, Error::TypeMismatch { .. }), "{mismatch}");
}

#[test]
fn the_codec_is_in_the_file_and_another_does_not_read_it() {
    let (_dir, path) = temporary();
    let store = Store::open(&path).unwrap();
    store.collection_with::<Artist, Bincode>("b").unwrap().put("a", artist("France", 4)).unwrap();
    store.collection_with::<Artist, Json>("j").unwrap().put("a", artist("France", 4)).unwrap();
    store.close().unwrap();
    assert!(std::fs::read(path.join("b/a")).unwrap().starts_with(b"larder 1 codec=bincode "));
    assert!(std::fs::read_to_string(path.join("j/a")).unwrap().ends_with("\n{\"country\":\"France\",\"albums\":4}"));

    let store = Store::open(&path).unwrap();
    let refused = store.collection::<Artist>("b").unwrap_err().to_string();
    assert!(refused.contains("written by codec bincode"), "{refused}");
    assert_eq!(store.collection_with::<Artist, Bincode>("b").unwrap().get("a").unwrap().albums, 4);
    // What is put by key before that, as bytes, is read by the codec that opens the collection.
    store.put("j/b", r#"{"country":"Chile","albums":1}"#).unwrap();
    assert_eq!(store.collection::<Artist>("j").unwrap().len(), 2);
}

#[test]
fn numbers_come_back_as_they_were() {
    let (_dir, path) = temporary();
    // One that a careless parser reads a little off, the extremes, and the integers that no float holds.
    let numbers = vec![-10.783_333_333_333_333, f64::MIN_POSITIVE, f64::MAX, 5e-324, -0.0, 0.1 + 0.2];
    let whole = (u64::MAX, i64::MIN, u128::MAX);
    let store = Store::open(&path).unwrap();
    store.collection("floats").unwrap().put("a", numbers.clone()).unwrap();
    store.collection("whole").unwrap().put("a", whole).unwrap();
    store.close().unwrap();
    let store = Store::open(&path).unwrap();
    let bits = |numbers: &[f64]| numbers.iter().map(|number| number.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&store.collection::<Vec<f64>>("floats").unwrap().get("a").unwrap()), bits(&numbers));
    assert_eq!(*store.collection::<(u64, i64, u128)>("whole").unwrap().get("a").unwrap(), whole);
}

#[test]
fn an_invalid_name_of_a_codec_is_refused() {
    struct Bad;
    impl Codec for Bad {
        const NAME: &'static str = "Bad name";
        fn encode<T: Serialize>(_: &T, _: &mut Vec<u8>) -> Result<(), CodecError> {
            Ok(())
        }
        fn decode<T: DeserializeOwned>(_: &[u8]) -> Result<T, CodecError> {
            Err("never".into())
        }
    }
    assert!(matches!(Store::in_memory().collection_with::<u8, Bad>("c"), Err(Error::InvalidKey { .. })));
}

/// Encodes, fails or panics, as it says.
#[derive(Debug, Clone, PartialEq, Deserialize)]
enum Mood {
    Fine(u32),
    Fails,
    Panics,
}

impl Serialize for Mood {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Mood::Fine(number) => serializer.serialize_newtype_variant("Mood", 0, "Fine", number),
            Mood::Fails => Err(serde::ser::Error::custom("it is in no mood")),
            Mood::Panics => panic!("it is in a mood"),
        }
    }
}

#[test]
fn a_member_that_does_not_encode_is_served_and_named_and_stops_no_other() {
    let (_dir, path) = temporary();
    // With patience for a janitor that writes down where a value panicked.
    let store = Store::options(&path).stall_timeout(lab::LONGEST).open().unwrap();
    let moods = store.collection::<Mood>("mood").unwrap();
    moods.put("kept", Mood::Fine(1)).unwrap();
    lab::until_at_rest(&store);
    moods.put("kept", Mood::Panics).unwrap();
    moods.put("fails", Mood::Fails).unwrap();
    moods.put("fine", Mood::Fine(2)).unwrap();
    let flushed = store.flush().unwrap_err();
    assert!(matches!(&flushed, Error::Codec { key, action: "encode", .. } if key == "mood/fails"), "{flushed}");
    let Health::Failing { problems, .. } = store.health() else { panic!("well?") };
    let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(
        problems,
        [
            "cannot encode \"mood/fails\" with codec json: it is in no mood",
            "cannot encode \"mood/kept\" with codec json: Serialize panicked: it is in a mood",
        ]
    );
    assert_eq!(*moods.get("kept").unwrap(), Mood::Panics, "served from RAM");
    lab::until("the files have followed", || store.stats().journal_bytes == 0);
    assert!(
        std::fs::read_to_string(path.join("mood/kept")).unwrap().ends_with("{\"Fine\":1}"),
        "keeps its stored value"
    );
    assert!(path.join("mood/fine").exists(), "stops no other");
    assert!(matches!(store.get("mood/fails"), Err(Error::Codec { .. })));
    assert!(store.close().is_err());

    moods.delete("fails").unwrap();
    moods.put("kept", Mood::Fine(3)).unwrap();
    store.flush().unwrap();
    assert!(store.health().is_well());
    assert_eq!(store.stats().unsaved_bytes, 0);
    store.close().unwrap();
    assert_eq!(*moods.get("kept").unwrap(), Mood::Fine(3), "a typed get still answers after close");
    assert!(matches!(moods.put("kept", Mood::Fine(4)), Err(Error::Closed { .. })));
    assert!(matches!(moods.delete("kept"), Err(Error::Closed { .. })));
    assert!(matches!(moods.delete_all(), Err(Error::Closed { .. })));
}

/// Fails when a transaction that is stored has what came after it forgotten.
#[test]
fn what_does_not_encode_is_named_however_close_behind_a_transaction_it_comes() {
    let (_dir, path) = temporary();
    let store = Store::options(&path).stall_timeout(lab::LONGEST).open().unwrap();
    let moods = store.collection::<Mood>("mood").unwrap();
    for _ in 0..100 {
        moods.put("bad", Mood::Fine(1)).unwrap();
        store.transaction(|tx| tx.put("mood/bad", r#"{"Fine":2}"#)).unwrap();
        moods.put("bad", Mood::Fails).unwrap();
        assert!(matches!(store.flush(), Err(Error::Codec { .. })));
        assert!(!store.health().is_well());
        moods.put("bad", Mood::Fine(3)).unwrap();
        store.flush().unwrap();
        assert!(store.health().is_well());
    }
    store.close().unwrap();
}

#[test]
fn what_takes_the_place_of_a_member_that_does_not_encode_makes_all_well_without_being_waited_for() {
    let (_dir, path) = temporary();
    let store = Store::options(&path).stall_timeout(lab::LONGEST).open().unwrap();
    let moods = store.collection::<Mood>("mood").unwrap();
    let replace = || store.transaction(|tx| tx.put("mood/bad", r#"{"Fine":1}"#));
    for way in [&replace as &dyn Fn() -> larder::Result<()>, &|| moods.delete_all().map(drop)] {
        moods.put("bad", Mood::Fails).unwrap();
        lab::until("it is named", || !store.health().is_well());
        way().unwrap();
        lab::until("all is well", || store.health().is_well());
    }
    store.close().unwrap();
}

#[test]
fn an_immediate_write_hears_of_its_own_member_only() {
    let (_dir, path) = temporary();
    let store = Store::options(&path).durability(larder::Durability::Immediate).open().unwrap();
    let moods = store.collection::<Mood>("mood").unwrap();
    assert!(matches!(moods.put("bad", Mood::Fails), Err(Error::Codec { .. })));
    moods.put("good", Mood::Fine(1)).unwrap();
    moods.delete("good").unwrap();
    store.put("other/a", "1").unwrap();
    store.delete_all("other").unwrap();
    assert!(store.flush().is_err());
    moods.delete("bad").unwrap();
    store.flush().unwrap();
}

#[test]
fn what_did_not_encode_is_forgotten_when_its_collection_is_cleared() {
    let (_dir, path) = temporary();
    let store = Store::open(&path).unwrap();
    let moods = store.collection::<Mood>("mood").unwrap();
    moods.put("a", Mood::Fails).unwrap();
    assert!(store.flush().is_err());
    moods.delete_all().unwrap();
    store.flush().unwrap();
    assert!(store.health().is_well());
}

/// A store that a value calls back into when it is encoded and when it is dropped.
static CALLED_BACK: OnceLock<Store> = OnceLock::new();
static ANSWERS: Mutex<Vec<String>> = Mutex::new(Vec::new());

#[derive(Deserialize)]
struct Caller(u32);

impl Serialize for Caller {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if let Some(store) = CALLED_BACK.get() {
            let (flushed, closed) = (store.flush(), store.close());
            for answer in [flushed.err(), closed.err()].into_iter().flatten() {
                ANSWERS.lock().unwrap().push(answer.to_string());
            }
            store.get("caller/none").unwrap();
            store.put(format!("other/{}", self.0), "from Serialize").unwrap();
        }
        serializer.serialize_u32(self.0)
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        if let Some(store) = CALLED_BACK.get() {
            // Would not return if any lock of the collection were held.
            store.delete_all("nothing there").unwrap();
            store.contains("caller/a").unwrap();
            store.len("caller").unwrap();
            _ = store.put("other/dropped", self.0.to_string());
        }
    }
}

#[test]
fn a_callback_that_calls_back_does_not_deadlock() {
    let (_dir, path) = temporary();
    let store = Store::open(&path).unwrap();
    let callers = store.collection::<Caller>("caller").unwrap();
    CALLED_BACK.set(store.clone()).unwrap();
    for number in 0..200 {
        callers.put(format!("{}", number % 100), Caller(number)).unwrap();
    }
    store.flush().unwrap();
    callers.delete("1").unwrap();
    callers.delete_all().unwrap();
    store.flush().unwrap();
    let answers = ANSWERS.lock().unwrap();
    assert!(answers.iter().any(|answer| answer.starts_with("flush waits for the janitor")), "{answers:?}");
    assert!(answers.iter().any(|answer| answer.starts_with("close waits for the janitor")), "{answers:?}");
    assert!(store.contains("other/dropped").unwrap() && store.contains("other/199").unwrap());
}

/// Holds the last handle of a store until it is encoded, which is on the janitor's thread.
static LAST_HANDLE: Mutex<Option<Store>> = Mutex::new(None);

#[derive(Deserialize)]
struct LetsGo;

impl Serialize for LetsGo {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let last = LAST_HANDLE.lock().unwrap().take();
        drop(last);
        serializer.serialize_unit()
    }
}

#[test]
fn the_last_handle_may_go_on_the_janitors_own_thread() {
    let (_dir, path) = temporary();
    let store = Store::open(&path).unwrap();
    let letting_go = store.collection::<LetsGo>("c").unwrap();
    let mut last = LAST_HANDLE.lock().unwrap();
    *last = Some(store);
    letting_go.put("a", LetsGo).unwrap();
    drop(letting_go);
    drop(last);
    // The lock is free once the janitor has ended by itself.
    let store = loop {
        match Store::open(&path) {
            Ok(store) => break store,
            Err(Error::Locked { .. }) => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(store.get("c/a").unwrap().unwrap(), "null");
}

#[test]
fn deeply_nested_input_is_an_error_and_not_a_crash() {
    let store = Store::in_memory();
    store.put("c/deep", "[".repeat(1 << 20)).unwrap();
    assert!(matches!(store.collection::<serde_json::Value>("c"), Err(Error::Codec { .. })));
}

#[derive(Debug, Serialize)]
struct PanicsWhenRead;

impl<'de> Deserialize<'de> for PanicsWhenRead {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        panic!("it cannot be read")
    }
}

#[test]
fn a_deserialize_that_panics_leaves_the_collection_as_it_was() {
    let store = Store::in_memory();
    store.put("c/a", "null").unwrap();
    let opening = store.clone();
    assert!(std::thread::spawn(move || opening.collection::<PanicsWhenRead>("c").is_ok()).join().is_err());
    assert_eq!(store.get("c/a").unwrap().unwrap(), "null");
    store.put("c/b", "null").unwrap();
    assert_eq!(store.collection::<()>("c").unwrap().len(), 2);
}

#[derive(Serialize)]
struct Slow;

impl<'de> Deserialize<'de> for Slow {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <()>::deserialize(deserializer)?;
        if let Some(store) = OPENING.get() {
            store.put("slow/late", "null").unwrap();
            store.put("slow/early", "null").unwrap();
        }
        Ok(Slow)
    }
}

static OPENING: OnceLock<Store> = OnceLock::new();

#[test]
fn a_deserialize_that_writes_to_its_own_collection_ends_in_an_error_and_not_in_a_loop() {
    let store = Store::in_memory();
    store.put("slow/early", "null").unwrap();
    OPENING.set(store.clone()).unwrap();
    let refused = store.collection::<Slow>("slow").unwrap_err();
    assert!(matches!(refused, Error::Degraded { .. }), "{refused}");
}
