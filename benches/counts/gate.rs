//! Holds a store's janitor, so that what a writer does is the same each time: a member that was written stays dirty, and
//! a writer never wakes anybody up.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use larder::backend::{Backend, Change, Files, Loader, Packed, Rejected};
use larder::{Layout, Store};

use crate::Result;

#[derive(Clone, Default)]
pub(crate) struct Gate(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    shut: bool,
    /// Whether the janitor stands before it.
    waited_at: bool,
}

impl Gate {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_while(&self, condition: impl Fn(&State) -> bool) {
        let state = self.0.changed.wait_while(self.state(), |state| condition(state));
        drop(state.unwrap_or_else(PoisonError::into_inner));
    }

    /// A store in a directory, with the gate between its janitor and its files.
    pub(crate) fn store(&self, path: &Path, layout: Layout) -> Result<Store> {
        let inner: Box<dyn Backend> = match layout {
            Layout::Packed => Box::new(Packed::new(path)?),
            _ => Box::new(Files::new(path)?),
        };
        let backend = Gated { inner, gate: self.clone() };
        Ok(Store::options(path).backend(backend).open()?)
    }

    /// Everything that was written is durable, and nothing more is taken: the janitor stands still.
    pub(crate) fn shut(&self, store: &Store) -> Result<()> {
        store.flush()?;
        self.state().shut = true;
        store.put("plug/plug", "")?;
        self.wait_while(|state| !state.waited_at);
        Ok(())
    }

    pub(crate) fn open(&self) {
        self.state().shut = false;
        self.0.changed.notify_all();
    }

    fn pass(&self) {
        self.state().waited_at = true;
        self.0.changed.notify_all();
        self.wait_while(|state| state.shut);
        self.state().waited_at = false;
    }
}

struct Gated {
    inner: Box<dyn Backend>,
    gate: Gate,
}

impl Backend for Gated {
    fn load(&mut self, loader: &Loader<'_>) -> larder::Result<u64> {
        self.inner.load(loader)
    }

    fn apply(&mut self, batch: &[Change<'_>]) -> Result<(), Rejected> {
        self.gate.pass();
        self.inner.apply(batch)
    }

    fn apply_transaction(&mut self, changes: &[Change<'_>]) -> larder::Result<()> {
        self.gate.pass();
        self.inner.apply_transaction(changes)
    }

    fn sync(&mut self) -> larder::Result<()> {
        self.inner.sync()
    }

    fn settle(&mut self) -> larder::Result<()> {
        self.inner.settle()
    }

    fn close(&mut self, counter: u64) -> larder::Result<()> {
        self.inner.close(counter)
    }

    fn quarantine(&mut self, member: &Change<'_>, reason: &str) -> larder::Result<PathBuf> {
        self.inner.quarantine(member, reason)
    }
}
