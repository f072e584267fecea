//! A store's path does not depend on the working directory after `new`. Alone in its process, which it changes.

use larder::{Error, Store};

#[test]
fn a_relative_path_is_resolved_once() {
    let dir = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    std::env::set_current_dir(dir.path()).unwrap();
    let store = Store::new("music").unwrap();
    std::env::set_current_dir(elsewhere.path()).unwrap();
    store.load().unwrap();
    store.put("c/m", "v").unwrap();
    std::env::set_current_dir(dir.path()).unwrap();
    assert!(matches!(Store::open("music"), Err(Error::Locked { .. })));
    store.close().unwrap();
    assert!(dir.path().join("music/c/m").exists());
    assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 0);
}
