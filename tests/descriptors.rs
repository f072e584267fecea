//! A store needs few file descriptors, however many collections are written at a time.
#![cfg(unix)]

mod lab;

use larder::Store;

const COLLECTIONS: usize = 500;

#[test]
fn few_descriptors_are_enough_for_many_collections() {
    let dir = tempfile::tempdir().unwrap();
    let test = lab::once_more("writes_many_collections");
    let limited = std::process::Command::new("sh")
        .args(["-c", "ulimit -n 80 && exec \"$0\" \"$@\""])
        .arg(test.get_program())
        .args(test.get_args())
        .env("LARDER_MANY_COLLECTIONS", dir.path().join("store"))
        .output()
        .unwrap();
    assert!(limited.status.success(), "{}", String::from_utf8_lossy(&limited.stdout));
    let store = Store::open(dir.path().join("store")).unwrap();
    assert_eq!(store.load_report().members, COLLECTIONS);
}

/// In the other process.
#[test]
fn writes_many_collections() {
    let Some(path) = std::env::var_os("LARDER_MANY_COLLECTIONS") else { return };
    let store = Store::open(&path).unwrap();
    let write = |store: &Store, value: &str| {
        for number in 0..COLLECTIONS {
            store.put(format!("c{number}/m"), value).unwrap();
        }
    };
    write(&store, "1");
    store.flush().unwrap();
    write(&store, "2");
    store.put("gone/m", "3").unwrap();
    store.delete_all("gone").unwrap();
    drop(store);
    let store = Store::open(&path).unwrap();
    assert_eq!(store.get("c7/m").unwrap().unwrap(), "2");
    store.close().unwrap();
}
