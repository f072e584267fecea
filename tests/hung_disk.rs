//! A disk that takes nothing and refuses nothing: its file system is frozen under a running store. Whoever waits for it
//! gets an error in the end, reads go on, and all is stored once it is thawed.
//!
//! It takes root, for the mounts; where they are not possible, the tests say so on standard error.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test, a panic is the report")]

mod disk;
mod lab;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use disk::{FILE_SYSTEMS, Mount, mounted};
use lab::{LONGEST, Process, assert_tidy, member_files, once_more, orders, say, until};
use larder::{Durability, Error, Health, Layout, Options, Store};

const STORE: &str = "LARDER_HUNG_STORE";
const LAYOUT: &str = "LARDER_HUNG_LAYOUT";

/// How long the store is told to wait for the disk.
const PATIENCE: Duration = Duration::from_millis(300);

type Members = BTreeMap<String, Vec<u8>>;

// ---- the process with the store ----

fn layout() -> Layout {
    if std::env::var(LAYOUT).unwrap() == "packed" { Layout::Packed } else { Layout::Files }
}

fn options(path: &Path) -> Options {
    Store::options(path).layout(layout()).stall_timeout(PATIENCE).write_timeout(PATIENCE).max_unsaved(64 << 10)
}

/// Runs `body` in a process that the test has started, on a disk that freezes at its word.
fn on_the_disk(body: impl FnOnce(&Path, &mut dyn FnMut(&str))) {
    let Some(path) = std::env::var_os(STORE).map(PathBuf::from) else { return };
    let mut orders = orders();
    body(&path, &mut |wish| {
        say(wish);
        assert_eq!(orders.next().as_deref(), Some("done"), "the test has gone");
    });
    say("ended");
}

fn put(store: &Store, members: &mut Members, key: &str, value: &str) -> larder::Result<()> {
    let done = store.put(key, value);
    members.insert(key.to_owned(), value.into());
    done.map(drop)
}

fn contents(store: &Store) -> Members {
    let mut contents = Members::new();
    for collection in store.collections().unwrap() {
        for (member, value) in store.get_all(&collection).unwrap() {
            contents.insert(format!("{collection}/{member}"), value.to_vec());
        }
    }
    contents
}

/// The call has returned, and says that it waited for the disk in vain.
#[track_caller]
fn assert_degraded<T: std::fmt::Debug>(call: &str, done: larder::Result<T>) {
    assert!(matches!(done, Err(Error::Degraded { .. })), "{call}: {done:?}");
    say(call);
}

#[track_caller]
fn assert_reads(store: &Store, members: &Members) {
    assert!(contents(store) == *members);
    let (key, value) = members.first_key_value().unwrap();
    assert_eq!(store.get(key).unwrap().unwrap(), value.as_slice());
    assert!(store.contains(key).unwrap());
    let (collection, _) = key.split_once('/').unwrap();
    assert!(!store.members(collection).unwrap().is_empty() && store.iter(collection).unwrap().count() > 0);
    assert_eq!(store.stats().members, members.len());
    say("reads");
}

/// Waits until what was written is durable. A disk that is slow may be given up for hung before.
fn until_durable(store: &Store) {
    until("it is durable", || store.flush().is_ok() && store.health().is_well());
}

/// Everything is stored, and told to be; another process's store would find the same.
#[track_caller]
fn assert_recovers(store: &Store, members: &Members) {
    until("all is stored", || store.health().is_well() && store.stats().dirty == 0);
    until_durable(store);
    // As in a flush; and whose end alone is slow, it ends without anybody waiting for it.
    until("it is closed", || matches!(store.close(), Ok(_) | Err(Error::Closed { .. })));
    assert_holds(store.path(), members);
}

/// Opens it when whoever has it has gone.
fn open_once_free(path: &Path) -> Store {
    let mut opened = None;
    until("the lock is free", || {
        opened = match Store::open(path) {
            Err(Error::Locked { .. }) => None,
            other => Some(other.unwrap()),
        };
        opened.is_some()
    });
    opened.unwrap()
}

#[track_caller]
fn assert_holds(path: &Path, members: &Members) {
    let store = open_once_free(path);
    assert_eq!(store.load_report().quarantined, []);
    assert!(contents(&store) == *members, "the disk has something else");
    store.close().unwrap();
    assert_eq!(member_files(path).len(), if layout() == Layout::Packed { 0 } else { members.len() });
    assert_tidy(path);
}

#[test]
fn child_flushes_and_closes() {
    on_the_disk(|path, wish| {
        let mut members = Members::new();
        let store = options(path).open().unwrap();
        put(&store, &mut members, "artist/daft_punk", "epic").unwrap();
        until_durable(&store);
        wish("freeze");
        put(&store, &mut members, "artist/daft_punk", "discovery").unwrap();
        put(&store, &mut members, "artist/justice", "cross").unwrap();
        assert_degraded("flush", store.flush());
        assert_reads(&store, &members);
        until("the store is known to be failing", || !store.health().is_well());
        let Health::Failing { problems, .. } = store.health() else { panic!("it is well again") };
        assert!(!problems.is_empty());
        assert_degraded("a second flush", store.flush());
        assert_degraded("compact", store.compact());
        assert_degraded("close", store.close());
        // It is open still.
        put(&store, &mut members, "song/phantom", "1").unwrap();
        store.delete("artist/justice").unwrap();
        members.remove("artist/justice");
        assert_degraded("a second close", store.close());
        assert_reads(&store, &members);
        wish("thaw");
        assert_recovers(&store, &members);
    });
}

#[test]
fn child_writes_to_be_durable_at_once() {
    on_the_disk(|path, wish| {
        let mut members = Members::new();
        let store = options(path).durability(Durability::Immediate).open().unwrap();
        for (key, value) in [("artist/daft_punk", "epic"), ("song/phantom", "1")] {
            // It stands, even if it was given up.
            _ = put(&store, &mut members, key, value);
        }
        until_durable(&store);
        wish("freeze");
        assert_degraded("put", put(&store, &mut members, "artist/daft_punk", "discovery"));
        std::thread::scope(|scope| {
            for thread in 0..3 {
                let store = &store;
                scope.spawn(move || {
                    assert_degraded("put beside others", store.put(format!("beside/{thread}"), "others"));
                });
            }
        });
        members.extend((0..3).map(|thread| (format!("beside/{thread}"), b"others".to_vec())));
        assert_degraded("delete_all", store.delete_all("song"));
        members.remove("song/phantom");
        assert_reads(&store, &members);
        wish("thaw");
        assert_recovers(&store, &members);
    });
}

#[test]
fn child_writes_to_the_bound() {
    on_the_disk(|path, wish| {
        let mut members = Members::new();
        let store = options(path).open().unwrap();
        put(&store, &mut members, "artist/daft_punk", "epic").unwrap();
        until_durable(&store);
        wish("freeze");
        let refused = (0..).find_map(|number| {
            let (key, value) = (format!("song/{number}"), "x".repeat(1000));
            let done = store.put(&key, value.as_str());
            if done.is_ok() {
                members.insert(key, value.into());
            }
            done.err()
        });
        assert_degraded("put at the bound", refused.map_or(Ok(()), Err));
        assert!((30..=66).contains(&members.len()), "{} were taken", members.len());
        std::thread::scope(|scope| {
            for thread in 0..3 {
                let store = &store;
                scope.spawn(move || {
                    let done = store.put(format!("beside/{thread}"), "x".repeat(2000));
                    assert_degraded("put at the bound beside others", done);
                });
            }
        });
        assert_reads(&store, &members);
        wish("thaw");
        until("there is room", || put(&store, &mut members, "beside/0", "there is room").is_ok());
        assert_recovers(&store, &members);
    });
}

#[test]
fn child_drops() {
    on_the_disk(|path, wish| {
        let mut members = Members::new();
        let store = options(path).open().unwrap();
        put(&store, &mut members, "artist/daft_punk", "epic").unwrap();
        until_durable(&store);
        wish("freeze");
        put(&store, &mut members, "artist/justice", "cross").unwrap();
        drop(store);
        say("drop");
        let lock = File::open(path.join(".larder/lock")).unwrap();
        assert!(lock.try_lock().is_err(), "a thread has the directory still");
        drop(lock);
        wish("thaw");
        // What hung comes to an end, and gives up the lock.
        let store = open_once_free(path);
        let found = contents(&store);
        let without = Members::from([("artist/daft_punk".to_owned(), b"epic".to_vec())]);
        assert!(found == members || found == without, "{found:?}");
        store.close().unwrap();
        assert_holds(path, &found);
    });
}

// ---- the test ----

/// Thaws the file system when it goes, or when this process ends, however it does: nothing that waits for a frozen one
/// can be killed.
struct Frozen(Process);

impl Frozen {
    fn freeze(mount: &Mount) -> Frozen {
        // Ready to thaw before there is anything to be thawed.
        let mut command = Command::new("sh");
        command.args(["-c", r#"trap "" HUP INT TERM; echo "> ready"; cat > /dev/null; fsfreeze -u "$0""#]);
        let mut thaw = Process::start(mount.apart(command.arg(mount.path())));
        thaw.expect("ready");
        let frozen = Frozen(thaw);
        let mut command = Command::new("fsfreeze");
        command.arg("-f").arg(mount.path());
        assert!(mount.within(&command).status().unwrap().success());
        frozen
    }

    fn thaw(mut self) {
        assert!(self.0.wait().success());
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // It is too late for an error, and after `thaw` nothing is left to do.
        _ = self.0.wait();
    }
}

/// Runs the child on a disk, which freezes and thaws when the child says so. All that it says while the disk is frozen,
/// it must say before it is thawed.
fn with_a_disk_that_hangs(test: &str, child: &str, expected: &[&str]) {
    for file_system in FILE_SYSTEMS {
        for layout in ["files", "packed"] {
            hang(test, child, file_system, layout, expected);
        }
    }
}

fn hang(test: &str, child: &str, file_system: &str, layout: &str, expected: &[&str]) {
    let Some((disk, mount)) = mounted(test, file_system) else { return };
    let mut command = once_more(child);
    command.env(STORE, mount.store()).env(LAYOUT, layout);
    let (lines, heard) = mpsc::channel();
    let (asks, asked) = mpsc::channel::<()>();
    let mut child = Process::start(mount.within(&command));
    std::thread::scope(|scope| {
        let talk = scope.spawn(move || {
            while let Some(line) = child.heard() {
                let wishes = line == "freeze" || line == "thaw";
                if lines.send(line).is_err() || wishes && asked.recv().is_err() {
                    break;
                }
                if wishes {
                    child.ask("done");
                }
            }
            drop(lines);
            child.wait().success()
        });
        // Dropped in a panic, before the scope waits for the thread: the child sees an end then.
        let (asks, mut frozen, mut said) = (asks, None, Vec::new());
        loop {
            let line = match heard.recv_timeout(LONGEST) {
                Ok(line) => line,
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
                Err(mpsc::RecvTimeoutError::Timeout) => panic!("{file_system}, {layout}: it hangs after {said:?}"),
            };
            match line.as_str() {
                "freeze" => {
                    frozen = Some(Frozen::freeze(&mount));
                    asks.send(()).unwrap();
                }
                "thaw" => {
                    frozen.take().unwrap().thaw();
                    asks.send(()).unwrap();
                }
                _ => said.push(line),
            }
        }
        drop(frozen);
        assert!(talk.join().unwrap(), "{file_system}, {layout}: the child failed after {said:?}");
        assert_eq!(said, [expected, &["ended"]].concat(), "{file_system}, {layout}");
    });
    mount.unmount();
    disk.release();
}

#[test]
fn flush_and_close_return_while_the_disk_hangs_and_reads_go_on() {
    let test = "flush_and_close_return_while_the_disk_hangs_and_reads_go_on";
    let said = ["flush", "reads", "a second flush", "compact", "close", "a second close", "reads"];
    with_a_disk_that_hangs(test, "child_flushes_and_closes", &said);
}

#[test]
fn writes_that_are_to_be_durable_at_once_return_while_the_disk_hangs() {
    let test = "writes_that_are_to_be_durable_at_once_return_while_the_disk_hangs";
    let beside = "put beside others";
    let said = ["put", beside, beside, beside, "delete_all", "reads"];
    with_a_disk_that_hangs(test, "child_writes_to_be_durable_at_once", &said);
}

#[test]
fn writers_at_the_bound_return_while_the_disk_hangs() {
    let test = "writers_at_the_bound_return_while_the_disk_hangs";
    let beside = "put at the bound beside others";
    let said = ["put at the bound", beside, beside, beside, "reads"];
    with_a_disk_that_hangs(test, "child_writes_to_the_bound", &said);
}

#[test]
fn the_last_handle_is_dropped_while_the_disk_hangs_and_the_lock_is_free_once_it_does_not() {
    let test = "the_last_handle_is_dropped_while_the_disk_hangs_and_the_lock_is_free_once_it_does_not";
    with_a_disk_that_hangs(test, "child_drops", &["drop"]);
}
