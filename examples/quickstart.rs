//! The first five minutes: a store of artists, by key in bytes, and then in a type of your own.
//!
//! ```text
//! cargo run --example quickstart
//! ```

use larder::Store;
use serde::{Deserialize, Serialize};

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Artist {
    quality: String,
    albums: u32,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("music");

    // Takes the directory, recovers what is in it, and starts the janitor.
    let store = Store::open(&path)?;

    // By key, in bytes. A key is "collection/member", and a put returns what was there before.
    assert_eq!(store.put("artist/daft_punk", "{ quality:'epic' }")?, None);
    assert_eq!(store.put("artist/celine_dion", "{ quality:'meh' }")?, None);
    let value = store.get("artist/daft_punk")?.ok_or("daft_punk is gone")?;
    println!("artist/daft_punk is {}", value.to_str()?);
    for (member, value) in store.get_all("artist")? {
        println!("among all: {member} is {}", value.to_str()?);
    }
    let deleted = store.delete("artist/celine_dion")?;
    assert_eq!(deleted.as_deref(), Some(&b"{ quality:'meh' }"[..]));
    assert_eq!(store.delete_all("artist")?, 1);

    // The same collection in your own type: reads hand out an Arc of the value in RAM, and the janitor writes it as JSON.
    let artists = store.collection::<Artist>("artist")?;
    artists.put("daft_punk", Artist { quality: "epic".into(), albums: 4 })?;
    let artist = artists.get("daft_punk").ok_or("daft_punk is gone")?;
    println!("{:?} has {} albums", artist.quality, artist.albums);
    assert_eq!(store.get("artist/daft_punk")?.ok_or("daft_punk is gone")?, r#"{"quality":"epic","albums":4}"#);

    // Everything is served from RAM and put away behind the scenes; close waits for that, and says what there is.
    let report = store.close()?;
    println!("closed: {} member in {} collection", report.members, report.collections);

    // It is all there again, in one file per member.
    let store = Store::open(&path)?;
    let artists = store.collection::<Artist>("artist")?;
    assert_eq!(artists.get("daft_punk").as_deref(), Some(&Artist { quality: "epic".into(), albums: 4 }));
    let file = path.join("artist/daft_punk");
    println!("{} holds:\n{}", file.display(), std::fs::read_to_string(&file)?);
    Ok(())
}
