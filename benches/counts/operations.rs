//! What one operation takes, on the thread of whoever calls it: run by [`crate::valgrind`], each in a process of its own.

use std::fmt;
use std::hint::black_box;

use larder::{Layout, Store};

use crate::Result;
use crate::allocator::asked;
use crate::gate::Gate;
use crate::maps::{ByKey, Flat, FlatTyped, Key, Map, Typed};

/// Each operation is done to so many members. They fill 16 shards of a collection, and 16 of dashmap, to between a half and seven
/// eighths, so that hardly any seed of the names' hashes makes one of them grow or split once more, or once less.
pub(crate) const MEMBERS: usize = 16 * 1_330;

/// Where misses of the cache are counted: so many members, and so many operations.
pub(crate) const MANY: usize = 1_000_000;
pub(crate) const SOME: usize = 100_000;

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Where {
    Dashmap,
    Memory,
    Directory,
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Face {
    ByKey,
    Typed,
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum What {
    GetHit,
    GetMiss,
    PutNew,
    /// In a directory: of a member whose last write is durable.
    Overwrite,
    OverwriteDirty,
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) struct Operation {
    pub(crate) what: What,
    pub(crate) face: Face,
    pub(crate) place: Where,
}

impl Operation {
    pub(crate) fn all() -> Vec<Operation> {
        let mut all = Vec::new();
        for what in [What::GetHit, What::GetMiss, What::PutNew, What::Overwrite, What::OverwriteDirty] {
            for face in [Face::ByKey, Face::Typed] {
                for place in [Where::Dashmap, Where::Memory, Where::Directory] {
                    // Nothing is dirty that is stored nowhere.
                    if what != What::OverwriteDirty || place == Where::Directory {
                        all.push(Operation { what, face, place });
                    }
                }
            }
        }
        all
    }

    /// The same done to dashmap.
    pub(crate) fn yardstick(self) -> Operation {
        let what = if self.what == What::OverwriteDirty { What::Overwrite } else { self.what };
        Operation { what, place: Where::Dashmap, ..self }
    }

    pub(crate) fn gets(self) -> bool {
        matches!(self.what, What::GetHit | What::GetMiss)
    }

    /// Those whose misses are counted: in RAM, where there are many members.
    pub(crate) fn counted_for_misses() -> Vec<(usize, Operation)> {
        let all = Operation::all().into_iter().enumerate();
        all.filter(|(_, operation)| operation.place != Where::Directory && operation.what != What::GetMiss).collect()
    }

    /// Does it to a million members, in an order that has nothing to do with where they lie. For [`crate::valgrind::misses`].
    pub(crate) fn run_among_many(self) -> Result<()> {
        match (self.place, self.face) {
            (Where::Dashmap, Face::ByKey) => self.among_many(&Flat::new()),
            (Where::Dashmap, Face::Typed) => self.among_many(&FlatTyped::new()),
            (_, Face::ByKey) => self.among_many(&ByKey(Store::in_memory())),
            (_, Face::Typed) => self.among_many(&Typed::new(&Store::in_memory())?),
        }
        // Freeing a million values would take as long as all the rest.
        std::process::exit(0)
    }

    fn among_many(self, map: &impl Map) {
        /// Has no divisor in common with `MANY`: each is met once, far from the one before.
        const STEP: usize = 7_368_787;
        for number in 0..MANY {
            puts(map, &[Key::new(number)]);
        }
        let is_new = self.what == What::PutNew;
        measured(&mut || {
            for at in 0..SOME {
                // New ones are a tenth of what there is.
                let number = if is_new { MANY + at } else { (at * STEP) % MANY };
                let key = [Key::new(number)];
                // The same two as in `count`: with a third that calls it, what it calls would not be inlined there.
                black_box(if self.gets() { gets(map, &key) } else { puts(map, &key) });
            }
        });
    }

    /// Runs it, and prints what it asked the allocator for: how often, and for how many bytes.
    pub(crate) fn run(self) -> Result<()> {
        match (self.place, self.face) {
            (Where::Dashmap, Face::ByKey) => self.count(&Flat::new(), || Ok(())),
            (Where::Dashmap, Face::Typed) => self.count(&FlatTyped::new(), || Ok(())),
            (Where::Memory, face) => self.count_store(&Store::in_memory(), face, || Ok(())),
            (Where::Directory, face) => {
                let dir = tempfile::tempdir()?;
                let gate = Gate::default();
                // Nothing but the janitor works behind a packed one.
                let store = gate.store(&dir.path().join("store"), Layout::Packed)?;
                self.count_store(&store, face, || gate.shut(&store))?;
                dir.close()?;
                // The janitor stands at the gate, and nobody wants what it holds.
                std::process::exit(0)
            }
        }
    }

    fn count_store(self, store: &Store, face: Face, hold: impl Fn() -> Result<()>) -> Result<()> {
        match face {
            Face::ByKey => self.count(&ByKey(store.clone()), hold),
            Face::Typed => self.count(&Typed::new(store)?, hold),
        }
    }

    fn count(self, map: &impl Map, hold: impl Fn() -> Result<()>) -> Result<()> {
        let keys: Vec<Key> = (0..MEMBERS).map(Key::new).collect();
        let others: Vec<Key> = (MEMBERS..2 * MEMBERS).map(Key::new).collect();
        // Whoever comes first makes the collection.
        puts(map, &[Key::new(2 * MEMBERS)]);
        if self.what != What::PutNew {
            puts(map, &keys);
        }
        hold()?;
        if self.what == What::OverwriteDirty {
            puts(map, &keys);
        }
        let mut found = 0;
        let before = asked();
        measured(&mut || {
            found = match self.what {
                What::GetHit => gets(map, &keys),
                What::GetMiss => gets(map, &others),
                What::PutNew | What::Overwrite | What::OverwriteDirty => puts(map, &keys),
            }
        });
        let after = asked();
        let expected = if matches!(self.what, What::GetMiss | What::PutNew) { 0 } else { MEMBERS };
        if found != expected {
            return Err(format!("{self}: {found} members were there, not {expected}").into());
        }
        println!("{} {}", after.times - before.times, after.bytes - before.bytes);
        Ok(())
    }
}

/// What callgrind counts is what happens in here, on this thread. Nothing else may have this word in its name.
#[inline(never)]
fn measured(work: &mut dyn FnMut()) {
    work();
    // Without it the call above would be a jump, and this function at its end before it has begun.
    black_box(());
}

fn gets(map: &impl Map, keys: &[Key]) -> usize {
    keys.iter().map(|key| map.get(key)).sum()
}

fn puts(map: &impl Map, keys: &[Key]) -> usize {
    keys.iter().map(|key| map.put(key)).sum()
}

/// As in `counts.txt`.
impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = if self.gets() { "get" } else { "put" };
        let face = match self.face {
            Face::ByKey => "by key",
            Face::Typed => "typed",
        };
        let what = match (self.what, self.place) {
            (What::GetHit, _) => "hit",
            (What::GetMiss, _) => "miss",
            (What::PutNew, _) => "new member",
            (What::Overwrite, Where::Directory) => "overwrite of a clean member",
            (What::Overwrite, _) => "overwrite",
            (What::OverwriteDirty, _) => "overwrite of a dirty member",
        };
        let place = match self.place {
            Where::Dashmap => "dashmap",
            Where::Memory => "in memory",
            Where::Directory => "in a directory",
        };
        write!(f, "{verb} {face}, {what}, {place}")
    }
}
