//! A directory belongs to one store at a time, under any of its names: the second is told at once, and the lock is free
//! as soon as the first is closed, gone, killed, or failed to load.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test, a panic is the report")]

mod lab;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use lab::{LONGEST, Process, assert_tidy, once_more, orders, say, segments, tell, tree, until_at_rest};
use larder::{Durability, Error, Layout, Store, View};

const HELD: &str = "LARDER_TWO_PROCESSES_STORE";

// ---- the other process ----

/// Opens the store and says how that went; then does as it is told.
#[test]
fn child_holds() {
    let Some(path) = std::env::var_os(HELD) else { return };
    let mut store = match Store::options(path).durability(Durability::Interval(Duration::from_secs(3600))).open() {
        Ok(store) => Some(store),
        Err(Error::Locked { holder, .. }) => return say(&format!("locked by {holder}")),
        Err(error) => return say(&format!("error: {error}")),
    };
    say("open");
    for order in orders() {
        match order.as_str() {
            "put" => _ = store.as_ref().unwrap().put("artist/daft_punk", "epic").unwrap(),
            "flush" => store.as_ref().unwrap().flush().unwrap(),
            "close" => _ = store.as_ref().unwrap().close().unwrap(),
            "drop" => drop(store.take()),
            _ => panic!("{order}"),
        }
        say(&format!("done {order}"));
    }
}

const CHANGED: &str = "LARDER_TWO_PROCESSES_CHANGED";
const MEMBERS: usize = 60;
const ROUNDS: u64 = 40;

/// A value that says what wrote it, every byte of it.
fn value_of(key: &str, round: u64) -> String {
    format!("{key} {round} {}", format!("{round}.").repeat(60))
}

/// Changes the store round by round, says which round is durable, and then is quiet.
#[test]
fn child_changes() {
    let Some(path) = std::env::var_os(CHANGED) else { return };
    let store = Store::options(path).max_journal(256 << 10).open().unwrap();
    for round in 1..=ROUNDS {
        for member in 0..MEMBERS {
            for collection in ["kept", "gone"] {
                let key = format!("{collection}/{member}");
                store.put(&key, value_of(&key, round)).unwrap();
            }
        }
        store.flush().unwrap();
        store.delete_all("gone").unwrap();
        if round.is_multiple_of(4) {
            store.compact().unwrap();
        }
        say(&format!("round {round}"));
    }
    store.flush().unwrap();
    store.compact().unwrap();
    until_at_rest(&store);
    say("quiet");
    for order in orders() {
        assert_eq!(order, "close");
        store.close().unwrap();
        say("done close");
    }
}

fn another_process_opens(path: impl AsRef<Path>) -> Process {
    let mut command = once_more("child_holds");
    command.env(HELD, path.as_ref());
    Process::start(command)
}

fn another_process_holds(path: impl AsRef<Path>) -> Process {
    let mut process = another_process_opens(path);
    process.expect("open");
    process
}

impl Process {
    fn does(&mut self, order: &str) {
        self.ask(order);
        self.expect(&format!("done {order}"));
    }
}

// ---- helpers of this one ----

fn new_store() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    (dir, path)
}

/// The same with a store in each layout, which whoever opens it finds by itself.
fn in_each_layout(body: impl Fn(&Path, PathBuf)) {
    for layout in [Layout::Files, Layout::Packed] {
        let (dir, path) = new_store();
        Store::options(&path).layout(layout).open().unwrap().close().unwrap();
        body(dir.path(), path);
    }
}

/// Opens the store on a thread of its own, so that a wait for the lock would be seen.
fn open_at_once(path: &Path) -> larder::Result<Store> {
    let (answer, answered) = mpsc::channel();
    let path = path.to_owned();
    std::thread::spawn(move || answer.send(Store::open(path)));
    answered.recv_timeout(LONGEST).expect("the second store waits for the first")
}

#[track_caller]
fn assert_locked(path: &Path, holder: u32) {
    match open_at_once(path) {
        Err(Error::Locked { holder: told, .. }) => assert_eq!(told, format!("process {holder}")),
        other => panic!("{} is not locked: {other:?}", path.display()),
    }
}

#[track_caller]
fn assert_free(path: &Path) {
    let store = open_at_once(path).unwrap();
    store.close().unwrap();
}

/// The path seen from the working directory, which is somewhere else.
#[cfg(unix)]
fn relative(path: &Path) -> PathBuf {
    let mut relative = PathBuf::new();
    for _ in std::env::current_dir().unwrap().components().skip(1) {
        relative.push("..");
    }
    relative.join(path.strip_prefix("/").unwrap())
}

/// The directory by its other names.
fn aliases(dir: &Path, path: &Path) -> Vec<PathBuf> {
    fs::create_dir_all(dir.join("beside")).unwrap();
    let mut aliases = vec![
        path.to_owned(),
        path.join("."),
        path.join("..").join(path.file_name().unwrap()),
        dir.join("beside").join("..").join(path.file_name().unwrap()),
    ];
    #[cfg(unix)]
    {
        aliases.push(relative(path));
        let link = dir.join("link");
        if !link.exists() {
            std::os::unix::fs::symlink(path, &link).unwrap();
            std::os::unix::fs::symlink(dir, dir.join("parent")).unwrap();
        }
        aliases.push(link);
        aliases.push(dir.join("parent").join(path.file_name().unwrap()));
    }
    aliases
}

// ---- the tests ----

#[test]
fn a_second_process_is_told_at_once_who_has_the_directory_under_any_of_its_names() {
    let (dir, path) = new_store();
    let store = Store::open(&path).unwrap();
    for alias in aliases(dir.path(), &path) {
        another_process_opens(&alias).expect(&format!("locked by process {}", std::process::id()));
    }
    // Relative to a working directory of its own.
    let mut command = once_more("child_holds");
    command.env(HELD, "store").current_dir(dir.path());
    Process::start(command).expect(&format!("locked by process {}", std::process::id()));
    store.close().unwrap();
}

#[test]
fn a_store_that_another_process_has_is_locked_under_any_of_its_names() {
    let (dir, path) = new_store();
    let mut other = another_process_holds(&path);
    let holder = other.id();
    for alias in aliases(dir.path(), &path) {
        assert_locked(&alias, holder);
    }
    other.does("close");
    for alias in aliases(dir.path(), &path) {
        assert_free(&alias);
    }
}

#[test]
fn a_second_store_in_the_same_process_is_locked_out_under_any_name() {
    in_each_layout(|dir, path| {
        let store = Store::open(&path).unwrap();
        store.put("artist/daft_punk", "epic").unwrap();
        for alias in aliases(dir, &path) {
            assert_locked(&alias, std::process::id());
            let second = Store::new(&alias).unwrap();
            assert!(matches!(second.load(), Err(Error::Locked { .. })));
            assert!(matches!(second.get("artist/daft_punk"), Err(Error::NotLoaded { .. })));
        }
        assert_eq!(store.get("artist/daft_punk").unwrap().unwrap(), "epic");
        store.flush().unwrap();
        store.close().unwrap();
        for alias in aliases(dir, &path) {
            let store = open_at_once(&alias).unwrap();
            assert_eq!(store.get("artist/daft_punk").unwrap().unwrap(), "epic");
            store.close().unwrap();
        }
    });
}

#[test]
fn a_store_that_was_locked_out_loads_with_the_same_handle_once_the_lock_is_free() {
    let (_dir, path) = new_store();
    let mut other = another_process_holds(&path);
    let waiting = Store::new(&path).unwrap();
    assert!(matches!(waiting.load(), Err(Error::Locked { .. })));
    other.does("put");
    other.does("close");
    assert_eq!(waiting.load().unwrap().members, 1);
    assert_eq!(waiting.get("artist/daft_punk").unwrap().unwrap(), "epic");
}

#[test]
fn whoever_is_locked_out_changes_nothing_in_the_directory() {
    let (_dir, path) = new_store();
    let store = Store::open(&path).unwrap();
    store.put("artist/daft_punk", "epic").unwrap();
    until_at_rest(&store);
    fs::write(path.join(".larder/tmp/left"), "by a write that is under way").unwrap();
    fs::write(path.join("artist/damaged"), "not a member's file").unwrap();
    assert_eq!(segments(&path).len(), 1, "it is not even replayed");
    let before = tree(&path);
    assert_locked(&path, std::process::id());
    another_process_opens(&path).expect(&format!("locked by process {}", std::process::id()));
    assert_eq!(tree(&path), before);
}

#[test]
fn the_lock_is_free_when_the_holder_has_closed_though_it_lives() {
    let (_dir, path) = new_store();
    let mut other = another_process_holds(&path);
    assert_locked(&path, other.id());
    other.does("close");
    assert_free(&path);
    other.does("drop");
    assert_free(&path);
}

#[test]
fn the_lock_is_free_when_the_last_handle_of_the_holder_is_dropped_and_nothing_is_lost() {
    in_each_layout(|_, path| {
        let mut other = another_process_holds(&path);
        other.does("put");
        other.does("drop");
        let store = open_at_once(&path).unwrap();
        assert_eq!(store.get("artist/daft_punk").unwrap().unwrap(), "epic");
    });
}

#[test]
fn every_kind_of_handle_keeps_the_lock_and_the_last_to_go_frees_it() {
    let (_dir, path) = new_store();
    let store = Store::open(&path).unwrap();
    let clone = store.clone();
    let numbers = store.collection::<u64>("number").unwrap();
    numbers.put("one", 1).unwrap();
    let walk = store.iter("number").unwrap();
    let typed_walk = numbers.iter();
    drop(store);
    assert_locked(&path, std::process::id());
    drop(clone);
    assert_locked(&path, std::process::id());
    drop(numbers);
    assert_locked(&path, std::process::id());
    drop(walk);
    assert_locked(&path, std::process::id());
    drop(typed_walk);
    let store = open_at_once(&path).unwrap();
    assert_eq!(store.get("number/one").unwrap().unwrap(), "1");
}

#[test]
fn the_lock_is_free_when_the_holder_is_killed_and_what_it_flushed_is_there() {
    in_each_layout(|_, path| {
        let mut other = another_process_holds(&path);
        other.does("put");
        other.does("flush");
        assert_locked(&path, other.id());
        other.kill();
        other.wait();
        let store = open_at_once(&path).unwrap();
        assert_eq!(store.load_report().quarantined, []);
        assert_eq!(store.get("artist/daft_punk").unwrap().unwrap(), "epic");
    });
}

#[test]
fn the_lock_is_free_after_a_load_that_failed_and_the_same_handle_loads_later() {
    let (_dir, path) = new_store();
    let store = Store::open(&path).unwrap();
    store.put("artist/daft_punk", "epic").unwrap();
    store.close().unwrap();
    let format = path.join(".larder/format");
    let written = fs::read(&format).unwrap();

    fs::write(&format, "larder format 99\n").unwrap();
    let store = Store::new(&path).unwrap();
    for _ in 0..2 {
        assert!(matches!(store.load(), Err(Error::NewerFormat { found: 99, supported: 1, .. })));
    }
    another_process_opens(&path).expect(&format!(
        "error: store {} has format 99, and this version of larder reads formats up to 1",
        path.canonicalize().unwrap().display()
    ));

    fs::write(&format, written).unwrap();
    assert_free(&path);
    another_process_holds(&path).does("close");
    assert_eq!(store.load().unwrap().members, 1);
    assert_eq!(store.get("artist/daft_punk").unwrap().unwrap(), "epic");
    another_process_opens(&path).expect(&format!("locked by process {}", std::process::id()));
}

#[test]
fn a_process_that_was_started_meanwhile_does_not_keep_the_lock() {
    let (dir, path) = new_store();
    let store = Store::open(&path).unwrap();
    let _bystander = another_process_holds(dir.path().join("another"));
    store.close().unwrap();
    assert_free(&path);
    another_process_holds(&path).does("close");
}

#[test]
fn a_close_on_one_thread_and_an_open_on_another_never_meet_inside() {
    in_each_layout(|_, path| {
        let mut number = 0u64;
        for _ in 0..20 {
            let store = open_at_once(&path).unwrap();
            let found = store.get("count/er").unwrap().map(|value| value.to_str().unwrap().parse::<u64>().unwrap());
            assert_eq!(found.unwrap_or(0), number, "the last store's write is not there");
            number += 1;
            store.put("count/er", number.to_string()).unwrap();
            std::thread::scope(|scope| {
                // Opens as soon as it can, which is after the first store's last write.
                let next = scope.spawn(|| {
                    loop {
                        match Store::open(&path) {
                            Ok(next) => return next,
                            Err(Error::Locked { .. }) => std::thread::yield_now(),
                            Err(error) => panic!("{error}"),
                        }
                    }
                });
                store.close().unwrap();
                let next = next.join().unwrap();
                assert_eq!(next.get("count/er").unwrap().unwrap(), number.to_string());
                next.close().unwrap();
            });
        }
    });
}

#[test]
fn the_lock_file_outlives_every_store_so_that_nobody_is_handed_a_second_lock() {
    let (_dir, path) = new_store();
    let lock = path.join(".larder/lock");
    let store = Store::open(&path).unwrap();
    assert!(lock.is_file());
    store.close().unwrap();
    assert!(lock.is_file());
    // While one store waits to be closed, another that lost the race sees the same file.
    let mut other = another_process_holds(&path);
    assert_locked(&path, other.id());
    other.does("drop");
    assert!(lock.is_file());
    assert_free(&path);
}

/// The highest round of the members that are always there, and the lowest. Every value must have been written.
fn rounds(view: &View) -> (u64, u64) {
    let (mut highest, mut lowest) = (0, u64::MAX);
    for collection in view.collections() {
        for (member, value) in view.get_all(&collection).unwrap() {
            let (key, text) = (format!("{collection}/{member}"), value.to_str().unwrap());
            let round: u64 = text.split(' ').nth(1).unwrap().parse().unwrap();
            assert!(text == value_of(&key, round) && (1..=ROUNDS).contains(&round), "{key}: {text}");
            if collection == "kept" {
                (highest, lowest) = (highest.max(round), lowest.min(round));
            }
        }
    }
    (highest, lowest)
}

#[test]
fn a_view_beside_a_process_that_writes_shows_what_was_written_and_takes_no_lock_and_changes_nothing() {
    in_each_layout(|_, path| {
        let layout = fs::read_to_string(path.join(".larder/format")).unwrap();
        let mut command = once_more("child_changes");
        command.env(CHANGED, &path);
        let mut other = Process::start(command);
        other.expect("round 1");
        let durable = AtomicU64::new(1);
        let mut view = Store::open_read_only(&path).unwrap();
        let (mut looks, mut beside) = (0, 0);
        std::thread::scope(|scope| {
            let heard = scope.spawn(|| {
                while let Some(line) = other.heard() {
                    match line.strip_prefix("round ") {
                        Some(round) => durable.store(round.parse().unwrap(), Ordering::SeqCst),
                        None => return assert_eq!(line, "quiet"),
                    }
                }
                panic!("the child ended by itself");
            });
            while !heard.is_finished() {
                let known = durable.load(Ordering::SeqCst);
                view.refresh().unwrap();
                assert_eq!(view.load_report().quarantined, []);
                let (highest, lowest) = rounds(&view);
                assert!(view.len("kept").unwrap() == MEMBERS && lowest >= known, "{lowest} after {known}: {layout}");
                assert!(highest - lowest <= 1, "{lowest} to {highest}: {layout}");
                looks += 1;
                beside += usize::from(highest < ROUNDS);
            }
            heard.join().unwrap();
        });
        assert!(beside > 0, "all of {looks} looks came too late");
        // Nothing changes by itself any more, and the looks so far have left nothing.
        let before = tree(&path);
        assert_tidy(&path);
        assert_eq!(fs::read_to_string(path.join(".larder/lock")).unwrap(), format!("process {}\n", other.id()));
        view.refresh().unwrap();
        assert_eq!(rounds(&view), (ROUNDS, ROUNDS));
        assert_eq!((view.len("kept").unwrap(), view.len("gone").unwrap()), (MEMBERS, 0));
        let another = Store::open_read_only(&path).unwrap();
        assert!(tree(&path) == before, "a view has changed something: {layout}");
        // What it shows keeps nobody from the store.
        other.does("close");
        assert_free(&path);
        another_process_holds(&path).does("close");
        assert_eq!((rounds(&view), rounds(&another)), ((ROUNDS, ROUNDS), (ROUNDS, ROUNDS)));
        tell(&format!("{looks} looks, {beside} of them while it was written: {}", layout.trim()));
    });
}
