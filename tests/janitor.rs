//! What the janitor owes to writers, flushes and closes, seen through a backend that can be held, broken and watched.

mod lab;

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use lab::LONGEST;
use larder::backend::{Backend, Change, Loader, Rejected};
use larder::{Durability, Error, Health, Options, Result, Store};

#[derive(Default)]
struct State {
    members: BTreeMap<String, Vec<u8>>,
    /// Batches and changes that reached `apply`.
    batches: usize,
    changes: usize,
    /// `apply` waits while this is set.
    held: bool,
    /// `apply` is waiting.
    waiting: bool,
    fail: bool,
    /// All from this batch on fail, counted from 1.
    fail_from: Option<usize>,
    fail_member: Option<String>,
    /// Rejects a change that is not in the batch.
    fail_beyond: bool,
    panic: bool,
    closed: bool,
    /// Each batch brings another write.
    goes_on: Option<Store>,
}

#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<State>, Condvar)>);

impl Gate {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.0.1.notify_all();
    }

    fn wait_until(&self, condition: impl Fn(&State) -> bool) {
        let mut state = self.state();
        while !condition(&state) {
            state = self.0.1.wait(state).unwrap();
        }
    }

    /// Waits for another batch.
    fn wait_until_after(&self, batches: usize) {
        lab::until("there is another batch", || self.state().batches > batches);
    }

    /// With patience for a janitor that is slow, as one is that writes down where it panicked.
    fn options(&self) -> Options {
        let options = Store::options("gate").durability(Durability::Interval(Duration::ZERO));
        options.stall_timeout(LONGEST).backend(self.clone())
    }

    fn open(&self) -> Store {
        self.options().open().unwrap()
    }

    /// Holds the janitor inside `apply`.
    fn hold(&self, store: &Store) {
        self.change(|state| state.held = true);
        store.put("held/k", "").unwrap();
        self.wait_until(|state| state.waiting);
    }

    fn release(&self) {
        self.change(|state| state.held = false);
    }
}

impl Backend for Gate {
    fn load(&mut self, _loader: &Loader<'_>) -> Result<u64> {
        Ok(0)
    }

    fn apply(&mut self, batch: &[Change<'_>]) -> Result<(), Rejected> {
        self.change(|state| state.waiting = state.held);
        self.wait_until(|state| !state.held);
        let goes_on = self.state().goes_on.clone();
        if let Some(store) = goes_on {
            store.put("c/more", self.state().batches.to_string()).unwrap();
        }
        let mut state = self.state();
        state.waiting = false;
        assert!(!state.panic, "the backend broke");
        state.batches += 1;
        state.changes += batch.len();
        if state.fail || state.fail_from.is_some_and(|from| state.batches >= from) {
            return Err(Rejected::all(Error::backend("write", "the disk is gone")));
        }
        if state.fail_beyond {
            return Err(Rejected::some(vec![(batch.len(), Error::backend("write", "it cannot count"))]));
        }
        let mut failed = Vec::new();
        for (index, change) in batch.iter().enumerate() {
            match *change {
                Change::Put { member, .. } if state.fail_member.as_deref() == Some(member) => {
                    failed.push((index, Error::backend("write", "not this one")));
                }
                Change::Put { collection, member, value, .. } => {
                    state.members.insert(format!("{collection}/{member}"), value.to_vec());
                }
                Change::Delete { collection, member, .. } => {
                    state.members.remove(&format!("{collection}/{member}"));
                }
                Change::Clear { collection, .. } => {
                    let start = format!("{collection}/");
                    state.members.retain(|key, _| !key.starts_with(&start));
                }
                _ => unreachable!("nothing else is sent"),
            }
        }
        if failed.is_empty() { Ok(()) } else { Err(Rejected::some(failed)) }
    }

    fn sync(&mut self) -> Result<()> {
        Ok(())
    }

    fn close(&mut self, _counter: u64) -> Result<()> {
        self.change(|state| state.closed = true);
        Ok(())
    }
}

#[test]
fn a_key_waits_once_however_often_it_is_written() {
    let gate = Gate::default();
    let store = gate.open();
    gate.hold(&store);
    for number in 0..1000u32 {
        store.put("c/hot", number.to_string()).unwrap();
    }
    assert_eq!(store.stats().dirty, 2, "the key in hand and the hot one");
    gate.release();
    store.flush().unwrap();
    assert_eq!(gate.state().members["c/hot"], b"999");
    assert_eq!(gate.state().changes, 2);
    assert_eq!((store.stats().dirty, store.stats().unsaved_bytes, store.stats().oldest_dirty), (0, 0, None));
}

#[test]
fn the_backlog_is_bounded_by_the_keys_and_not_by_what_is_done_to_them() {
    let gate = Gate::default();
    let store = gate.open();
    gate.hold(&store);
    for round in 0..200 {
        for member in 0..10 {
            store.put(format!("c/{member}"), round.to_string()).unwrap();
        }
        store.delete("c/0").unwrap();
        assert_eq!(store.delete_all("c").unwrap(), 9);
    }
    assert_eq!(store.stats().dirty, 1 + 10 + 1, "the key in hand, ten keys, one clear");
    assert_eq!(store.stats().unsaved_bytes, "k".len() + 10, "the names of what is gone");
    store.put("c/3", "last").unwrap();
    assert_eq!(store.stats().dirty, 12);
    gate.release();
    store.flush().unwrap();
    assert_eq!(gate.state().members.keys().collect::<Vec<_>>(), ["c/3", "held/k"]);
    assert_eq!((store.stats().dirty, store.stats().unsaved_bytes), (0, 0));
}

#[test]
fn a_key_that_is_applied_again_before_the_sync_counts_once() {
    let gate = Gate::default();
    let store = gate.options().durability(Durability::Buffered).open().unwrap();
    for round in 0..20u8 {
        let before = gate.state().batches;
        store.put("c/hot", [round; 10]).unwrap();
        gate.wait_until_after(before);
    }
    assert!(store.stats().dirty <= 2, "{:?}", store.stats());
    assert!(store.stats().unsaved_bytes <= 2 * 13, "{:?}", store.stats());
    store.flush().unwrap();
    assert_eq!((store.stats().dirty, store.stats().unsaved_bytes), (0, 0));
}

#[test]
fn a_member_put_and_deleted_while_the_janitor_is_busy_leaves_nothing() {
    let gate = Gate::default();
    let store = gate.open();
    gate.hold(&store);
    store.put("c/a", "1").unwrap();
    store.delete("c/a").unwrap();
    store.put("d/a", "1").unwrap();
    assert_eq!(store.delete_all("d").unwrap(), 1);
    store.put("d/b", "2").unwrap();
    gate.release();
    store.flush().unwrap();
    assert_eq!(gate.state().members.keys().collect::<Vec<_>>(), ["d/b", "held/k"]);
    assert_eq!(store.stats().unsaved_bytes, 0);
}

#[test]
fn what_is_not_durable_is_bounded_and_a_larger_value_is_let_in_alone() {
    let gate = Gate::default();
    let store = gate.options().max_unsaved(1000).write_timeout(Duration::ZERO).open().unwrap();
    assert_eq!(store.put("big/one", vec![0; 5000]).unwrap(), None);
    store.flush().unwrap();
    gate.hold(&store);
    for number in 0..9 {
        store.put(format!("c/{number}"), vec![number; 100]).unwrap();
    }
    let refused = store.put("c/9", vec![9; 100]).unwrap_err();
    assert!(matches!(refused, Error::Degraded { .. }), "{refused}");
    assert!(refused.to_string().contains("1000"), "{refused}");
    assert!(matches!(store.put("big/two", vec![0; 5000]), Err(Error::Degraded { .. })));
    assert!(store.get("c/9").unwrap().is_none(), "what was refused has not happened");
    assert_eq!(store.get("c/8").unwrap().unwrap(), vec![8; 100], "reads always work");
    // What takes no more room is let in: the same size again, or less, or a delete of what is waiting.
    store.put("c/8", vec![88; 100]).unwrap();
    store.put("c/8", "short").unwrap();
    store.delete("c/7").unwrap();
    assert!(store.stats().unsaved_bytes <= 1000);
    gate.release();
    store.flush().unwrap();
    store.put("c/9", vec![9; 100]).unwrap();
    store.close().unwrap();
    assert_eq!(gate.state().members.len(), 11);
}

#[test]
fn a_writer_at_the_bound_goes_on_when_there_is_room() {
    let gate = Gate::default();
    let store = gate.options().max_unsaved(100).write_timeout(Duration::from_secs(3600)).open().unwrap();
    gate.hold(&store);
    store.put("c/a", vec![0; 90]).unwrap();
    let writer = {
        let store = store.clone();
        std::thread::spawn(move || store.put("c/b", vec![1; 90]))
    };
    gate.release();
    assert!(writer.join().unwrap().unwrap().is_none());
    store.close().unwrap();
}

#[test]
fn a_failing_backend_is_told_by_health_flush_and_close_and_everything_is_stored_when_it_recovers() {
    let gate = Gate::default();
    let store = gate.open();
    gate.change(|state| state.fail = true);
    store.put("c/a", "1").unwrap();
    store.put("c/b", "2").unwrap();
    store.delete("c/b").unwrap();
    let failed = store.flush().unwrap_err();
    assert_eq!(failed.to_string(), "backend cannot write: the disk is gone");
    let Health::Failing { problems, .. } = store.health() else { panic!("well?") };
    assert_eq!(problems.len(), 1);
    assert!(store.close().is_err());
    store.put("c/c", "3").expect("a store that could not be closed is open still");
    assert_eq!(store.get("c/a").unwrap().unwrap(), "1");
    gate.change(|state| state.fail = false);
    store.flush().unwrap();
    assert!(store.health().is_well());
    assert_eq!(gate.state().members.keys().collect::<Vec<_>>(), ["c/a", "c/c"]);
    assert_eq!((store.stats().dirty, store.stats().unsaved_bytes), (0, 0));
    store.close().unwrap();
    assert!(gate.state().closed);
}

#[test]
fn a_failing_backend_is_tried_again_without_being_asked() {
    let gate = Gate::default();
    let store = gate.open();
    gate.change(|state| state.fail = true);
    store.put("c/a", "1").unwrap();
    gate.wait_until_after(0);
    // At one moment: the next try may come at any time.
    let mut before = 0;
    gate.change(|state| (state.fail, before) = (false, state.batches));
    // The janitor's next try, which nobody asks for.
    gate.wait_until_after(before);
    store.flush().unwrap();
    assert!(store.health().is_well());
}

#[test]
fn one_member_that_cannot_be_stored_stops_no_other() {
    let gate = Gate::default();
    let store = gate.open();
    gate.change(|state| state.fail_member = Some("bad".into()));
    for member in ["a", "bad", "z"] {
        store.put(format!("c/{member}"), "1").unwrap();
    }
    assert_eq!(store.flush().unwrap_err().to_string(), "backend cannot write: not this one");
    assert_eq!(gate.state().members.keys().collect::<Vec<_>>(), ["c/a", "c/z"]);
    gate.change(|state| state.fail_member = None);
    store.flush().unwrap();
    assert_eq!(gate.state().members.len(), 3);
}

#[test]
fn a_backend_that_rejects_what_was_not_offered_has_rejected_all() {
    let gate = Gate::default();
    let store = gate.open();
    gate.change(|state| state.fail_beyond = true);
    store.put("c/a", "1").unwrap();
    assert!(store.flush().is_err() && store.flush().is_err());
    gate.change(|state| state.fail_beyond = false);
    store.flush().unwrap();
    assert_eq!(gate.state().members["c/a"], b"1");
}

#[test]
fn without_a_quarantine_what_does_not_decode_is_named() {
    let gate = Gate::default();
    let store = gate.options().quarantine_undecodable(true).open().unwrap();
    store.put("n/bad", "zz").unwrap();
    let Err(Error::Codec { members, .. }) = store.collection::<u32>("n") else { panic!("another error") };
    assert_eq!(members[0].0, "bad");
    assert_eq!(store.get("n/bad").unwrap().unwrap(), "zz");
}

#[test]
fn a_panic_in_the_background_is_an_error_for_all_later_writes() {
    let gate = Gate::default();
    let store = gate.open();
    gate.change(|state| state.panic = true);
    store.put("c/a", "1").unwrap();
    let flushed = store.flush().unwrap_err();
    assert!(flushed.to_string().contains("the backend broke"), "{flushed}");
    for failed in [store.put("c/a", "2").err(), store.delete("c/a").err(), store.delete_all("c").err()] {
        assert!(matches!(failed, Some(Error::Degraded { .. })), "{failed:?}");
    }
    assert_eq!(store.get("c/a").unwrap().unwrap(), "1");
    assert!(matches!(store.close(), Err(Error::Degraded { .. })));
    assert!(!store.health().is_well());
    drop(store);
}

#[test]
fn writers_that_wait_are_told_of_a_panic_in_the_background() {
    // One waits until its write is durable, the other until there is room for it.
    let immediate = |options: Options| options.durability(Durability::Immediate);
    let bounded = |options: Options| options.max_unsaved(100).write_timeout(LONGEST);
    for configure in [&immediate as &dyn Fn(Options) -> Options, &bounded] {
        let gate = Gate::default();
        let store = configure(gate.options()).open().unwrap();
        gate.change(|state| state.held = true);
        let writers = ["c/first", "c/second"].map(|key| {
            let store = store.clone();
            std::thread::spawn(move || store.put(key, vec![0; 90]))
        });
        gate.wait_until(|state| state.waiting);
        // The second waits in RAM, or has not come so far: it is told in any case.
        gate.change(|state| state.panic = true);
        gate.release();
        let told = writers.map(|writer| writer.join().unwrap());
        let told: Vec<_> = told.into_iter().filter_map(Result::err).collect();
        assert!(!told.is_empty());
        for error in told {
            assert!(error.to_string().contains("the backend broke"), "{error}");
        }
    }
}

#[test]
fn the_age_of_the_oldest_is_told_whatever_the_janitor_hears_first() {
    let gate = Gate::default();
    let store = gate.open();
    gate.hold(&store);
    // In the channel there is a flush, and after it a key.
    let flushing = store.clone();
    let flush = std::thread::spawn(move || flushing.flush());
    lab::until("the flush waits in the channel", || store.stats().dirty == 2);
    store.put("c/a", "1").unwrap();
    gate.change(|state| state.fail_from = Some(2));
    gate.release();
    flush.join().unwrap().unwrap_err();
    lab::until("it fails", || !store.health().is_well());
    let stats = store.stats();
    assert_eq!(stats.dirty, 1);
    assert!(stats.oldest_dirty.is_some(), "{stats:?}");
}

#[test]
fn a_hung_backend_hangs_neither_flush_nor_close_nor_drop() {
    let gate = Gate::default();
    let store = gate.options().stall_timeout(Duration::from_millis(20)).open().unwrap();
    gate.hold(&store);
    store.put("c/a", "1").unwrap();
    let flushed = store.flush().unwrap_err();
    assert!(flushed.to_string().contains("no progress"), "{flushed}");
    assert!(!store.health().is_well());
    assert!(matches!(store.close(), Err(Error::Degraded { .. })));
    // The close that was given up does not come back and end a store that is in use.
    gate.release();
    store.put("c/b", "2").unwrap();
    // A janitor that is slow may be given up for hung once more.
    lab::until("a flush goes through", || store.flush().is_ok());
    lab::until("health sees it", || store.health().is_well());
    assert!(!gate.state().closed);
    assert_eq!(gate.state().members.keys().collect::<Vec<_>>(), ["c/a", "c/b", "held/k"]);

    gate.hold(&store);
    drop(store);
    assert!(!gate.state().closed);
    gate.release();
    gate.wait_until(|state| state.closed);
}

/// One that was given up is no reason to go on without an answer for as long as somebody writes.
#[test]
fn a_flush_after_a_close_that_was_given_up_is_answered_beside_writers() {
    let gate = Gate::default();
    let options = gate.options().durability(Durability::Buffered).stall_timeout(Duration::from_millis(20));
    let store = options.open().unwrap();
    gate.hold(&store);
    store.put("c/a", "1").unwrap();
    assert!(matches!(store.close(), Err(Error::Degraded { .. })));
    gate.change(|state| state.goes_on = Some(store.clone()));
    gate.release();
    lab::until("a flush goes through", || store.flush().is_ok());
    let other = gate.state().goes_on.take();
    drop(other);
    lab::until("a close goes through", || store.close().is_ok());
}

#[test]
fn a_clear_of_nothing_waits_for_the_deletes_before_it() {
    let gate = Gate::default();
    let store = gate.options().durability(Durability::Immediate).open().unwrap();
    store.put("c/a", "1").unwrap();
    gate.change(|state| state.fail = true);
    assert!(store.delete("c/a").is_err(), "not durable, and says so");
    assert!(store.delete_all("c").is_err(), "nor is this");
    gate.change(|state| state.fail = false);
    store.delete_all("c").unwrap();
    assert_eq!(gate.state().members.len(), 0);
}

/// Whoever waits for room is woken by what does not encode, too.
#[test]
fn a_value_that_does_not_encode_makes_room_for_others() {
    #[derive(serde::Deserialize)]
    struct Never;

    impl serde::Serialize for Never {
        fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom("never"))
        }
    }

    let gate = Gate::default();
    let store = gate.options().max_unsaved(100).write_timeout(Duration::from_secs(3600)).open().unwrap();
    let values = store.collection::<Never>("never").unwrap();
    gate.hold(&store);
    values.put("a-name-of-a-length".repeat(5), Never).unwrap();
    let writer = {
        let store = store.clone();
        std::thread::spawn(move || store.put("c/b", vec![1; 90]))
    };
    gate.release();
    assert!(writer.join().unwrap().unwrap().is_none());
}

#[test]
fn immediate_returns_once_durable() {
    let gate = Gate::default();
    let store = gate.options().durability(Durability::Immediate).open().unwrap();
    let numbers = store.collection::<u32>("n").unwrap();
    let writers: Vec<_> = (0..8u32)
        .map(|writer| {
            let (store, numbers, gate) = (store.clone(), numbers.clone(), gate.clone());
            std::thread::spawn(move || {
                for number in 0..20 {
                    store.put(format!("c/{writer}"), number.to_string()).unwrap();
                    assert_eq!(gate.state().members[&format!("c/{writer}")], number.to_string().as_bytes());
                    numbers.put(writer.to_string(), number).unwrap();
                    assert_eq!(gate.state().members[&format!("n/{writer}")], number.to_string().as_bytes());
                }
                store.delete(format!("c/{writer}")).unwrap();
                assert!(!gate.state().members.contains_key(&format!("c/{writer}")));
            })
        })
        .collect();
    writers.into_iter().for_each(|writer| writer.join().unwrap());
    gate.change(|state| state.fail = true);
    assert!(store.put("c/a", "1").is_err(), "not durable, and says so");
    assert_eq!(store.get("c/a").unwrap().unwrap(), "1", "but it stands, and is tried again");
}

#[test]
fn buffered_applies_at_once_and_syncs_with_flush() {
    let gate = Gate::default();
    let store = gate.options().durability(Durability::Buffered).open().unwrap();
    store.put("c/a", "1").unwrap();
    gate.wait_until_after(0);
    store.flush().unwrap();
    assert_eq!(store.stats().dirty, 0);
}

#[test]
fn handles_going_one_by_one_close_the_store_with_the_last() {
    let gate = Gate::default();
    let store = gate.open();
    let other = store.clone();
    let numbers = store.collection::<u32>("n").unwrap();
    drop(store);
    other.put("c/a", "1").unwrap();
    other.flush().unwrap();
    drop(other);
    assert!(!gate.state().closed);
    numbers.put("a", 1).unwrap();
    drop(numbers);
    assert!(gate.state().closed);
    assert_eq!(gate.state().members.len(), 2);
}
