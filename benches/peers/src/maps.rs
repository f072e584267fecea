//! The maps that hold everything in RAM, and hand out counted values: std, dashmap, papaya, scc, and larder by key and
//! through the handles of its collections.
//!
//! The maps have whole keys and foldhash. Every operation returns the first byte of the value that it got, which is 0,
//! and 1 when it fails. A put makes the value, and the key where the map wants one, as an application does.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::hint::black_box;
use std::path::Path;
use std::sync::{Arc, RwLock};

use dashmap::DashMap;
use foldhash::fast::RandomState;
use larder::{Bincode, Collection, Layout, Store};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Result;
use crate::input::{self, COLLECTIONS, Key, Keys, Mix, Ops, VALUE};
use crate::loops::{Loop, drive};
use crate::peers::locked_version;

// ---- what they hold ----

/// A value that maps hold counted.
pub(crate) trait Held: Send + Sync + 'static {
    type Shared: Clone + Send + Sync;

    fn share(&self) -> Self::Shared;

    /// Its first byte, or number.
    fn zero(shared: &Self::Shared) -> usize;
}

/// Held as bytes.
pub(crate) struct Bytes([u8; VALUE]);

impl Held for Bytes {
    type Shared = Arc<[u8]>;

    fn share(&self) -> Arc<[u8]> {
        Arc::from(&self.0[..])
    }

    fn zero(shared: &Arc<[u8]>) -> usize {
        shared[0].into()
    }
}

/// A type, which is what a typed collection holds.
pub(crate) trait Typed: Clone + Serialize + DeserializeOwned + Send + Sync + 'static {
    fn zero(&self) -> usize;
}

impl<T: Typed> Held for T {
    type Shared = Arc<T>;

    fn share(&self) -> Arc<T> {
        Arc::new(self.clone())
    }

    fn zero(shared: &Arc<T>) -> usize {
        Typed::zero(&**shared)
    }
}

/// As many bytes as [`Bytes`], as a type.
#[derive(Clone, Serialize, serde::Deserialize)]
pub(crate) struct Row {
    zero: u8,
    rest: [[u8; 11]; 9],
}

impl Typed for Row {
    fn zero(&self) -> usize {
        self.zero.into()
    }
}

pub(crate) const BYTES: Bytes = Bytes([0; VALUE]);
pub(crate) const ROW: Row = Row { zero: 0, rest: [*b"hello world"; 9] };

// ---- what they do ----

pub(crate) trait Map: Send + Sync {
    fn get(&self, key: Key) -> usize;

    fn put(&self, key: Key) -> usize;

    /// Brings to the disk what was put, where there is one.
    fn settle(&self) -> Result<()> {
        Ok(())
    }

    /// Does all operations; see [`drive`].
    fn run(&self, all: &[Ops], how: Loop) -> f64 {
        drive(all, how, |ops, at| if ops.is_put(at) { self.put(ops.key(at)) } else { self.get(ops.key(at)) })
    }
}

/// With every member once.
pub(crate) fn fill(map: &dyn Map, members: usize) -> Result<()> {
    map.run(&Mix { keys: Keys::Each, puts: 100 }.operations(members, members, 1), Loop::Overlapping);
    map.settle()
}

/// One that takes part. A directory of its own is for those that want one.
pub(crate) struct MapContender {
    pub(crate) name: &'static str,
    set_up: fn() -> String,
    pub(crate) new: fn(&Path) -> Result<Box<dyn Map>>,
}

pub(crate) const ALL: [MapContender; 8] = [
    MapContender {
        name: "loop",
        set_up: || "no map: the key is hashed; a put makes the key and the value, too".to_owned(),
        new: |_| Ok(Box::new(Bare { hasher: RandomState::default(), value: BYTES })),
    },
    MapContender {
        name: "larder, by key",
        set_up: || "`Store::in_memory`, bytes".to_owned(),
        new: |_| Ok(Box::new(ByKey { store: Store::in_memory(), value: BYTES })),
    },
    MapContender {
        name: "larder, handles",
        set_up: || "`Store::in_memory`, a `Collection` for each collection, a struct of as many bytes".to_owned(),
        new: |_| Ok(Box::new(Handles::new(Store::in_memory(), ROW)?)),
    },
    MapContender {
        name: "larder, handles, packed",
        set_up: || "the same, on the disk: default durability, `Layout::Packed`; the janitor works beside".to_owned(),
        new: |dir| Ok(Box::new(Handles::new(packed(dir)?, ROW)?)),
    },
    MapContender {
        name: "std",
        set_up: || "`RwLock<HashMap>`, foldhash, `Arc<[u8]>`".to_owned(),
        new: |_| Ok(Box::new(Std { map: RwLock::default(), value: BYTES })),
    },
    MapContender {
        name: "dashmap",
        set_up: || format!("{}, foldhash, `Arc<[u8]>`", locked_version("dashmap")),
        new: |_| Ok(Box::new(Dash { map: DashMap::default(), value: BYTES })),
    },
    MapContender {
        name: "papaya",
        set_up: || format!("{}, foldhash, `Arc<[u8]>`", locked_version("papaya")),
        new: |_| Ok(Box::new(Papaya { map: papaya::HashMap::default(), value: BYTES })),
    },
    MapContender {
        name: "scc",
        set_up: || format!("{}, foldhash, `Arc<[u8]>`; `read_sync`, `upsert_sync`", locked_version("scc")),
        new: |_| Ok(Box::new(Scc { map: scc::HashMap::default(), value: BYTES })),
    },
];

pub(crate) const LOOP: &str = ALL[0].name;
pub(crate) const BY_KEY: usize = 1;
pub(crate) const HANDLES: usize = 2;
pub(crate) const ON_DISK: usize = 3;

pub(crate) fn describe() {
    println!("\n| map | set up |\n| --- | --- |");
    for MapContender { name, set_up, .. } in &ALL {
        println!("| {name} | {} |", set_up());
    }
}

/// The one of this name.
pub(crate) fn named(name: &str) -> Result<&'static MapContender> {
    const { &ALL }.iter().find(|map| map.name == name).ok_or_else(|| format!("{name:?} is no map").into())
}

/// Maps of a struct, in the order of [`ALL`], those that make sense for one.
pub(crate) fn typed<T: Typed>(dir: &Path, value: &T) -> Result<Vec<(&'static str, Box<dyn Map>)>> {
    let value = || value.clone();
    let on_disk = typed_on_disk(dir, value())?;
    Ok(vec![
        ("larder, handles", Box::new(Handles::new(Store::in_memory(), value())?)),
        ("larder, handles, packed", on_disk),
        ("std", Box::new(Std { map: RwLock::default(), value: value() })),
        ("dashmap", Box::new(Dash { map: DashMap::default(), value: value() })),
        ("papaya", Box::new(Papaya { map: papaya::HashMap::default(), value: value() })),
        ("scc", Box::new(Scc { map: scc::HashMap::default(), value: value() })),
    ])
}

pub(crate) fn typed_on_disk<T: Typed>(dir: &Path, value: T) -> Result<Box<dyn Map>> {
    Ok(Box::new(Handles::new(packed(dir)?, value)?))
}

// ---- the contenders ----

/// What every map has to do in any case.
struct Bare {
    hasher: RandomState,
    value: Bytes,
}

impl Map for Bare {
    fn get(&self, key: Key) -> usize {
        black_box(self.hasher.hash_one(key.0));
        0
    }

    fn put(&self, key: Key) -> usize {
        let key: Box<str> = key.0.into();
        black_box(self.hasher.hash_one(&key));
        Bytes::zero(&black_box(self.value.share()))
    }
}

struct Std<T: Held> {
    map: RwLock<HashMap<Box<str>, T::Shared, RandomState>>,
    value: T,
}

impl<T: Held> Map for Std<T> {
    fn get(&self, key: Key) -> usize {
        let value = self.map.read().expect("an operation panicked").get(key.0).cloned();
        value.map_or(1, |value| T::zero(&value))
    }

    fn put(&self, key: Key) -> usize {
        let (key, value) = (key.0.into(), self.value.share());
        // The lock goes before the old value does.
        let old = self.map.write().expect("an operation panicked").insert(key, value);
        old.map_or(0, |old| T::zero(&old))
    }
}

struct Dash<T: Held> {
    map: DashMap<Box<str>, T::Shared, RandomState>,
    value: T,
}

impl<T: Held> Map for Dash<T> {
    fn get(&self, key: Key) -> usize {
        let value = self.map.get(key.0).map(|entry| entry.value().clone());
        value.map_or(1, |value| T::zero(&value))
    }

    fn put(&self, key: Key) -> usize {
        let old = self.map.insert(key.0.into(), self.value.share());
        old.map_or(0, |old| T::zero(&old))
    }
}

struct Papaya<T: Held> {
    map: papaya::HashMap<Box<str>, T::Shared, RandomState>,
    value: T,
}

impl<T: Held> Map for Papaya<T> {
    fn get(&self, key: Key) -> usize {
        let value = self.map.pin().get(key.0).cloned();
        value.map_or(1, |value| T::zero(&value))
    }

    fn put(&self, key: Key) -> usize {
        let map = self.map.pin();
        let old = map.insert(key.0.into(), self.value.share());
        old.map_or(0, T::zero)
    }
}

struct Scc<T: Held> {
    map: scc::HashMap<Box<str>, T::Shared, RandomState>,
    value: T,
}

impl<T: Held> Map for Scc<T> {
    fn get(&self, key: Key) -> usize {
        let value = self.map.read_sync(key.0, |_, value| value.clone());
        value.map_or(1, |value| T::zero(&value))
    }

    fn put(&self, key: Key) -> usize {
        let old = self.map.upsert_sync(key.0.into(), self.value.share());
        old.map_or(0, |old| T::zero(&old))
    }
}

fn packed(dir: &Path) -> Result<Store> {
    Ok(Store::options(dir.join("store")).layout(Layout::Packed).open()?)
}

/// A store by key, in bytes.
struct ByKey {
    store: Store,
    value: Bytes,
}

impl Map for ByKey {
    fn get(&self, key: Key) -> usize {
        match self.store.get(key.0) {
            Ok(Some(value)) => value[0].into(),
            _ => 1,
        }
    }

    fn put(&self, key: Key) -> usize {
        match self.store.put(key.0, &self.value.0[..]) {
            Ok(old) => old.map_or(0, |old| old[0].into()),
            Err(_) => 1,
        }
    }

    fn settle(&self) -> Result<()> {
        Ok(self.store.flush()?)
    }
}

/// A store through the handles of its collections.
struct Handles<T> {
    store: Store,
    collections: Vec<Collection<T>>,
    value: T,
}

impl<T: Typed> Handles<T> {
    fn new(store: Store, value: T) -> Result<Handles<T>> {
        let open = |number| store.collection_with::<T, Bincode>(input::collection(number));
        let collections = (0..COLLECTIONS).map(open).collect::<larder::Result<_>>()?;
        Ok(Handles { store, collections, value })
    }
}

impl<T: Typed> Map for Handles<T> {
    fn get(&self, key: Key) -> usize {
        self.collections[key.collection()].get(key.member()).map_or(1, |value| Typed::zero(&*value))
    }

    fn put(&self, key: Key) -> usize {
        match self.collections[key.collection()].put(key.member(), self.value.clone()) {
            Ok(old) => old.map_or(0, |old| Typed::zero(&*old)),
            Err(_) => 1,
        }
    }

    fn settle(&self) -> Result<()> {
        Ok(self.store.flush()?)
    }
}
