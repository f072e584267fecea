//! What expires, and when: the deadlines of a store in their order, and the thread that waits for the next.
//!
//! Reads do not depend on the thread to be quick: they compare deadlines with the [clock](crate::clock), which the thread
//! brings up to date when a deadline has come, and only then it removes the members, as deletes that anybody might have made.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::clock::{Clock, Waits};
use crate::core::Core;
use crate::error::{Error, Result};
use crate::sync::{Condvar, Mutex, thread, wait_for};
use crate::value::Member;

/// The longest sleep while something has a deadline: somebody may set the system's clock.
const LOOK: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(3600);

/// The wait before what could not be removed is tried again.
const RETRY: Duration = Duration::from_millis(50);

/// How many members are removed before the thread looks whether it is to end.
const LOT: usize = 256;

pub(crate) struct Agenda {
    pub(crate) clock: Arc<Clock>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Deadline, collection, member: each that has one, once.
    entries: BTreeSet<(u64, u32, Member)>,
    thread: Option<thread::JoinHandle<()>>,
    started: bool,
    ending: bool,
}

impl Agenda {
    pub(crate) fn new(clock: Arc<Clock>) -> Arc<Agenda> {
        let agenda = Arc::new(Agenda { clock, state: Mutex::new(State::default()), changed: Condvar::new() });
        let waits: Weak<dyn Waits> = Arc::downgrade(&agenda) as Weak<dyn Waits>;
        agenda.clock.register(waits);
        agenda
    }

    /// A member's deadline was one and is another. Called under its shard's lock.
    pub(crate) fn set(&self, collection: u32, member: &Member, old: Option<u64>, new: Option<u64>) {
        let mut state = self.state.lock();
        if let Some(old) = old {
            state.entries.remove(&(old, collection, member.clone()));
        }
        let Some(new) = new else { return };
        let is_first = state.entries.first().is_none_or(|(first, ..)| new < *first);
        state.entries.insert((new, collection, member.clone()));
        drop(state);
        if is_first {
            self.changed.notify_all();
        }
    }

    /// Starts the thread, unless it runs: before anything gets a deadline.
    pub(crate) fn start(self: &Arc<Self>, core: &Arc<Core>) -> Result<()> {
        let mut state = self.state.lock();
        if state.started || state.ending {
            return Ok(());
        }
        let (agenda, weak) = (self.clone(), Arc::downgrade(core));
        let spawned = thread::Builder::new().name("larder-expiry".into()).spawn(move || agenda.run(&weak));
        let failed = |error| Error::io("start the thread that waits for deadlines of", &core.path, error);
        state.thread = Some(spawned.map_err(failed)?);
        state.started = true;
        Ok(())
    }

    /// Ends the thread. It is not waited for on itself.
    pub(crate) fn end(&self) {
        let thread = {
            let mut state = self.state.lock();
            state.ending = true;
            state.thread.take()
        };
        self.changed.notify_all();
        if let Some(thread) = thread
            && thread.thread().id() != thread::current().id()
        {
            // Its panics are caught.
            _ = thread.join();
        }
    }

    /// How many members have a deadline.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.state.lock().entries.len()
    }

    fn run(&self, core: &Weak<Core>) {
        while let Some(due) = self.next() {
            let Some(core) = core.upgrade() else { return };
            let refused = |(deadline, collection, member): &(u64, u32, Member)| {
                // A `Drop` of the caller's may panic: what it belongs to is gone by then, and the others still come.
                let expired = catch_unwind(AssertUnwindSafe(|| core.expire(*collection, member, *deadline)));
                matches!(expired, Ok(Err(_)))
            };
            if let Some(first) = due.iter().position(refused) {
                // There is no room for the delete, or the store is being closed, which may fail. For readers the members
                // are gone; they come back to be removed.
                let mut state = self.state.lock();
                state.entries.extend(due.into_iter().skip(first));
                if !state.ending {
                    drop(wait_for(&self.changed, state, RETRY));
                }
            }
        }
    }

    /// Waits for members whose deadline has come; `None` is the end.
    fn next(&self) -> Option<Vec<(u64, u32, Member)>> {
        let mut state = self.state.lock();
        loop {
            if state.ending {
                return None;
            }
            let first = state.entries.first().map(|(first, ..)| *first);
            let left = match first {
                None => LONG,
                Some(first) if first <= self.clock.now() => break,
                Some(first) => self.clock.until(first).map_or(LONG, |left| left.min(LOOK)),
            };
            (state, _) = wait_for(&self.changed, state, left);
        }
        let now = self.clock.reached();
        let mut due = Vec::new();
        while due.len() < LOT
            && let Some(entry) = state.entries.pop_first()
        {
            if entry.0 > now {
                state.entries.insert(entry);
                break;
            }
            due.push(entry);
        }
        Some(due)
    }
}

impl Waits for Agenda {
    fn look_again(&self) {
        drop(self.state.lock());
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Store;

    #[test]
    fn each_deadline_is_on_the_agenda_once_however_often_it_changes() {
        let store = Store::in_memory();
        let numbers = store.collection::<u64>("n").unwrap();
        let (hour, agenda) = (Duration::from_secs(3600), &store.core().engine().unwrap().agenda);
        for round in 0..1000u32 {
            for member in ["put", "touched", "both"] {
                numbers.put_with_ttl(member, 1, hour * (round % 7 + 1)).unwrap();
            }
            numbers.expire("touched", hour * (round % 5 + 1)).unwrap();
            numbers.put("put", 2).unwrap();
            numbers.persist("both").unwrap();
            assert_eq!(agenda.len(), 1);
        }
        numbers.put_with_ttl("deleted", 1, hour).unwrap();
        numbers.delete("deleted").unwrap();
        assert_eq!(agenda.len(), 1);
        assert_eq!(numbers.delete_all().unwrap(), 3);
        assert_eq!(agenda.len(), 0);
    }

    #[test]
    fn a_store_without_deadlines_has_no_thread_for_them() {
        let store = Store::in_memory();
        store.put("c/a", "1").unwrap();
        assert_eq!(store.ttl("c/a").unwrap(), None);
        assert!(!store.core().engine().unwrap().agenda.state.lock().started);
    }
}
