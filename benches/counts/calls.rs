//! The system calls that a store makes: run by [`crate::valgrind`], each in a process of its own, which marks in the trace
//! where what is counted begins and ends.

use std::fmt;
use std::fs::File;

use larder::{Layout, Store};

use crate::Result;
use crate::gate::Gate;
use crate::maps::{ByKey, Key, Map};

/// Writes, or reads.
pub(crate) const TIMES: usize = 1_000;

/// Neither is there. Whoever tries to open them is seen in the trace.
pub(crate) const BEGIN: &str = "/larder-counts/begin";
pub(crate) const END: &str = "/larder-counts/end";

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Calls {
    /// By the thread that calls, the janitor being held.
    Get,
    PutNew,
    OverwriteDirty,
    /// By all threads, until the store is closed. The janitor is held until all is put: how often it comes round in the
    /// meantime would depend on the time.
    StoreNew(Layout),
    StoreOverwritten(Layout),
}

impl Calls {
    pub(crate) const ALL: [Calls; 7] = [
        Calls::Get,
        Calls::PutNew,
        Calls::OverwriteDirty,
        Calls::StoreNew(Layout::Files),
        Calls::StoreOverwritten(Layout::Files),
        Calls::StoreNew(Layout::Packed),
        Calls::StoreOverwritten(Layout::Packed),
    ];

    /// Whether it is only the calling thread that is counted, with the janitor held.
    pub(crate) fn alone(self) -> bool {
        matches!(self, Calls::Get | Calls::PutNew | Calls::OverwriteDirty)
    }

    /// What goes wrong on the way is an error; what is counted is in the trace.
    pub(crate) fn run(self) -> Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("store");
        let keys: Vec<Key> = (0..TIMES).map(Key::new).collect();
        let (layout, overwrites) = match self {
            Calls::StoreNew(layout) => (layout, false),
            Calls::StoreOverwritten(layout) => (layout, true),
            Calls::PutNew => (Layout::Packed, false),
            Calls::Get | Calls::OverwriteDirty => (Layout::Packed, true),
        };
        if overwrites {
            let store = Store::options(&path).layout(layout).open()?;
            put(&store, &keys, 0)?;
            store.close()?;
        }
        let gate = Gate::default();
        let store = gate.store(&path, layout)?;
        gate.shut(&store)?;
        let there = if overwrites { TIMES } else { 0 };
        if self == Calls::OverwriteDirty {
            put(&store, &keys, there)?;
        }
        mark(BEGIN);
        match self {
            Calls::Get => {
                let map = ByKey(store.clone());
                expect(keys.iter().map(|key| map.get(key)).sum(), TIMES)?;
            }
            _ => put(&store, &keys, there)?,
        }
        if self.alone() {
            mark(END);
            dir.close()?;
            // The janitor stands at the gate, and nobody wants what it holds.
            std::process::exit(0)
        }
        gate.open();
        store.close()?;
        mark(END);
        Ok(())
    }
}

fn mark(name: &str) {
    _ = File::open(name);
}

fn put(store: &Store, keys: &[Key], there: usize) -> Result<()> {
    let map = ByKey(store.clone());
    expect(keys.iter().map(|key| map.put(key)).sum(), there)
}

fn expect(found: usize, expected: usize) -> Result<()> {
    if found == expected { Ok(()) } else { Err(format!("{found} members were there, not {expected}").into()) }
}

/// As in `counts.txt`.
impl fmt::Display for Calls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Calls::Get => "gets, by whoever reads",
            Calls::PutNew => "puts of new members, by whoever writes",
            Calls::OverwriteDirty => "overwrites of dirty members, by whoever writes",
            Calls::StoreNew(Layout::Packed) => "new members, packed, until closed",
            Calls::StoreNew(_) => "new members, in files, until closed",
            Calls::StoreOverwritten(Layout::Packed) => "overwrites, packed, until closed",
            Calls::StoreOverwritten(_) => "overwrites, in files, until closed",
        })
    }
}
