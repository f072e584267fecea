//! Transactions over any collections: optimistic, serializable, all or nothing.
//!
//! The caller's closure runs without locks. What it reads is as of one moment: a version says when a member was written,
//! and what is newer than the moment is read only if everything read before is still so, which moves the moment on. So
//! the closure never sees what no moment had. (The scheme is that of TL2 with timestamp extension: Dice, Shalev and
//! Shavit, "Transactional Locking II", 2006; Riegel, Felber and Fetzer, "A Lazy Snapshot Algorithm", 2006.) What it writes
//! is kept aside. In the end the shards of everything that was read or written are locked, in the order of collections
//! and of shards' numbers; if all that was read is still so, everything is written, under one version, and sent to the
//! janitor as one message before the locks go.
//!
//! Phantoms: to read all members is to read every shard, by the last write to it. So a member that comes, goes or expires
//! in between is seen.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;
use std::time::Duration;

use crate::codec::RAW;
use crate::collection::Collection;
use crate::core::{Engine, Lane};
use crate::error::{Error, Result};
use crate::index::{Comparable, Index, IndexKey, bounds};
use crate::janitor::{self, Concern, Msg};
use crate::key::{self, MAX_VALUE};
use crate::map::{Held, Ledger, Named, Reads, Refused, Scan, SortKey, Told, Until, Watching};
use crate::shelf::{AnyLocked, AnyShelf, Put, Shelves, Stop, duplicate};
use crate::store::{Handle, Store};
use crate::sync::thread;
use crate::value::{Member, Value};
use crate::watch::Holding;

/// How often a transaction is tried.
const ATTEMPTS: u32 = 500;

/// From this attempt on it waits between them, at first for a microsecond or two, in the end for about a millisecond.
const PATIENT: u32 = 4;

/// How often an index is looked at until nothing is written meanwhile, before the transaction begins again.
const LOOKS: usize = 10;

/// What a write takes in the record beside its member's name and value, at most: numbers, the collection's name, the codec's.
const EACH: usize = 320;

/// The most bytes that a transaction writes: it is one record of the journal.
const MOST_BYTES: usize = MAX_VALUE;

impl Store {
    /// Reads and writes any members of any collections as if nobody else did meanwhile: all of what `work` writes is there
    /// at one moment, after a crash as well, or nothing is. Transactions are serializable, among each other and with every
    /// other call; this holds for members that come or go while [`get_all`](Transaction::get_all) is used, too.
    ///
    /// `work` runs without a lock, and runs again when what it has read was changed by others before it was done. It should
    /// do nothing that cannot be done twice, and should write through its argument: to the store itself, what it writes is
    /// written at once, and is a change by others. When it fails or panics, nothing has changed.
    ///
    /// Members expire at a moment of their own: a transaction sees them as of one time. A put in it takes a deadline away, as
    /// every put does. A transaction within another one is one by itself, and is done when it returns. At the
    /// [bound](crate::Options::max_unsaved) of what is not durable it waits, and fails, as a put does.
    ///
    /// In [`Immediate`](crate::Durability::Immediate) mode it is durable when the call returns; in the others it is as
    /// durable as any write made at the same time.
    ///
    /// # Errors
    ///
    /// What `work` returns: an error of your own is made with [`Error::aborted`]. [`Error::Conflict`] if others have come
    /// between a few hundred times; [`Error::TooLarge`] if its record takes more than 1 GiB, names and about 300 bytes for each write included; those of [`put`](Self::put).
    ///
    /// # Examples
    ///
    /// ```
    /// use larder::{Error, Store};
    ///
    /// let store = Store::in_memory();
    /// let accounts = store.collection::<i64>("account")?;
    /// accounts.put("ada", 100)?;
    /// let paid = store.transaction(|tx| {
    ///     let mut accounts = tx.collection(&accounts)?;
    ///     let balance = accounts.get("ada")?.map_or(0, |balance| *balance);
    ///     if balance < 30 {
    ///         return Err(Error::aborted("not enough money"));
    ///     }
    ///     accounts.put("ada", balance - 30)?;
    ///     let there = accounts.get("bob")?.map_or(0, |balance| *balance);
    ///     accounts.put("bob", there + 30)?;
    ///     tx.put("log/1", "ada paid bob 30")?;
    ///     Ok(30)
    /// })?;
    /// assert_eq!((paid, *accounts.get("ada").unwrap(), *accounts.get("bob").unwrap()), (30, 70, 30));
    /// # Ok::<(), larder::Error>(())
    /// ```
    pub fn transaction<R>(&self, mut work: impl FnMut(&mut Transaction<'_>) -> Result<R>) -> Result<R> {
        let handle = self.handle();
        let engine = handle.engine()?;
        for attempt in 0..ATTEMPTS {
            let (start, time) = (engine.moment(), engine.clock.reached());
            let mut transaction =
                Transaction { handle, engine, start, time, conflict: false, touched: BTreeMap::new() };
            let done = work(&mut transaction);
            if !transaction.conflict {
                // Whatever went wrong did so with what was there at one moment.
                let done = done?;
                match transaction.commit() {
                    Ok(()) => return Ok(done),
                    Err(Error::Conflict { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            pause(attempt);
        }
        Err(Error::Conflict { attempts: ATTEMPTS })
    }
}

/// Lets others be done.
fn pause(attempt: u32) {
    if attempt < PATIENT || cfg!(shuttle) {
        thread::yield_now();
        return;
    }
    let longest = 1u64 << (attempt - PATIENT).min(10);
    let chance = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), attempt);
    std::thread::sleep(Duration::from_micros(1 + chance % longest));
}

/// A transaction under way: what [`Store::transaction`] gives its closure. By key and in bytes; in your own types through
/// [`collection`](Self::collection).
///
/// It reads what it has written itself. What it has read of others is as of one moment.
pub struct Transaction<'a> {
    handle: &'a Arc<Handle>,
    engine: &'a Engine,
    /// Everything that was read is as it was when this was the highest version.
    start: u64,
    /// And as it is at this time, as far as members expire.
    time: u64,
    /// It cannot be done any more, and is to be tried again.
    conflict: bool,
    /// By the collections' numbers.
    touched: BTreeMap<u32, Touched>,
}

/// What a transaction has to do with one collection.
struct Touched {
    shelves: Arc<Shelves>,
    is_typed: bool,
    reads: Reads,
    /// `None` is a delete.
    writes: BTreeMap<Member, Option<Placed>>,
}

struct Placed {
    value: Held,
    codec: u8,
    /// Encoded, if it is to be stored.
    bytes: Option<Value>,
    until: Until,
    /// Under which the indexes are to have it.
    keys: Vec<SortKey>,
}

impl Touched {
    /// The shelf that the collection was read from, if its members have not moved since.
    fn shelf(&self) -> Option<&dyn AnyShelf> {
        (self.is_typed == self.shelves.typed.get().is_some()).then(|| self.shelves.current())
    }
}

impl fmt::Debug for Transaction<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction").field("start", &self.start).finish_non_exhaustive()
    }
}

/// By key, in bytes.
impl<'a> Transaction<'a> {
    /// The member's value.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidKey`], [`Error::Codec`] as in [`Store::get`]; [`Error::Conflict`], which is to be passed on: the
    /// transaction is tried again.
    pub fn get(&mut self, key: impl AsRef<str>) -> Result<Option<Value>> {
        let (collection, member) = key::split(key.as_ref())?;
        let id = self.touch(collection);
        if let Some(written) = self.touched[&id].writes.get(member) {
            let Some(placed) = written else { return Ok(None) };
            if let Some(bytes) = &placed.bytes {
                return Ok(Some(bytes.clone()));
            }
            let Some(shelf) = self.touched[&id].shelf() else { return Err(self.fail()) };
            return shelf.show(collection, member, &placed.value).map(Some);
        }
        self.read(id, member, |shelves, time| shelves.current().read_for_transaction(collection, member, time))
    }

    /// Whether there is such a member.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub fn contains(&mut self, key: impl AsRef<str>) -> Result<bool> {
        Ok(self.get(key)?.is_some())
    }

    /// All members of a collection with their values, in no particular order.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub fn get_all(&mut self, collection: impl AsRef<str>) -> Result<Vec<(Member, Value)>> {
        let collection = collection.as_ref();
        key::check_collection(collection)?;
        let id = self.touch(collection);
        let mut all = self.read_all(id, |shelves, time, scan, out| {
            shelves.current().scan_for_transaction(collection, time, scan, out)
        })?;
        let touched = &self.touched[&id];
        all.retain(|(member, _)| !touched.writes.contains_key(member));
        for (member, placed) in touched.writes.iter().filter_map(|(member, placed)| Some((member, placed.as_ref()?))) {
            let value = match (&placed.bytes, touched.shelf()) {
                (Some(bytes), _) => bytes.clone(),
                (None, Some(shelf)) => shelf.show(collection, member, &placed.value)?,
                (None, None) => return Err(self.fail()),
            };
            all.push((member.clone(), value));
        }
        Ok(all)
    }

    /// Puts a value in place when the transaction is done.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidKey`], [`Error::TooLarge`]; [`Error::Codec`] if the collection is open as a type and the value does
    /// not decode; [`Error::Conflict`], which is to be passed on.
    pub fn put(&mut self, key: impl AsRef<str>, value: impl Into<Value>) -> Result<()> {
        self.put_until(key.as_ref(), value.into(), Until::Removed)
    }

    /// The same, of a value that expires. See [`Store::put_with_ttl`].
    ///
    /// # Errors
    ///
    /// As [`put`](Self::put).
    pub fn put_with_ttl(&mut self, key: impl AsRef<str>, value: impl Into<Value>, ttl: Duration) -> Result<()> {
        let deadline = self.handle.deadline_after(ttl)?;
        self.put_until(key.as_ref(), value.into(), Until::At(deadline))
    }

    fn put_until(&mut self, key: &str, bytes: Value, until: Until) -> Result<()> {
        let (collection, member) = key::split(key)?;
        self.handle.core.check_size(collection, member, bytes.len())?;
        let id = self.touch(collection);
        let codec = self.engine.codec_id(RAW)?;
        let Some(shelf) = self.touched[&id].shelf() else { return Err(self.fail()) };
        let (value, codec) = shelf.hold(collection, member, &bytes, codec)?;
        let keys = shelf.keys_of(member, &value);
        self.write(id, member, Some(Placed { value, codec, bytes: Some(bytes), until, keys }));
        Ok(())
    }

    /// Deletes a member when the transaction is done.
    ///
    /// # Errors
    ///
    /// As [`put`](Self::put).
    pub fn delete(&mut self, key: impl AsRef<str>) -> Result<()> {
        let (collection, member) = key::split(key.as_ref())?;
        let id = self.touch(collection);
        self.write(id, member, None);
        Ok(())
    }

    /// A collection in your own type.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidKey`] if it is another store's.
    pub fn collection<T: Send + Sync + 'static>(
        &mut self,
        collection: &Collection<T>,
    ) -> Result<TypedTransaction<'_, 'a, T>> {
        if !Arc::ptr_eq(self.handle, collection.handle()) {
            let rule = "the collection is another store's than the transaction";
            return Err(Error::InvalidKey { key: collection.name().to_owned(), rule });
        }
        let id = self.touch(collection.name());
        Ok(TypedTransaction { transaction: self, collection: collection.clone(), id })
    }
}

/// A collection within a transaction, in your own type. Made by [`Transaction::collection`].
pub struct TypedTransaction<'t, 'a, T> {
    transaction: &'t mut Transaction<'a>,
    collection: Collection<T>,
    id: u32,
}

impl<T> fmt::Debug for TypedTransaction<'_, '_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TypedTransaction").field("transaction", &self.transaction).finish_non_exhaustive()
    }
}

impl<T: Send + Sync + 'static> TypedTransaction<'_, '_, T> {
    /// The member's value.
    ///
    /// # Errors
    ///
    /// [`Error::Conflict`], which is to be passed on: the transaction is tried again.
    pub fn get(&mut self, member: impl AsRef<str>) -> Result<Option<Arc<T>>> {
        let member = member.as_ref();
        if let Some(written) = self.transaction.touched[&self.id].writes.get(member) {
            return Ok(written.as_ref().and_then(Self::own));
        }
        let table = &self.collection.shelf().table;
        self.transaction.read(self.id, member, |_, time| Ok(table.read_for_transaction(member, time)?))
    }

    /// Whether there is such a member.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub fn contains(&mut self, member: impl AsRef<str>) -> Result<bool> {
        Ok(self.get(member)?.is_some())
    }

    /// All members with their values, in no particular order.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub fn get_all(&mut self) -> Result<Vec<(Member, Arc<T>)>> {
        let table = &self.collection.shelf().table;
        let mut all = self.transaction.read_all(self.id, |_, time, scan, out| {
            let mut cursor = Some(0);
            while let Some(at) = cursor {
                let (scanned, next) = table.scan_part(at, time, |found| out.push((found.member, found.value)))?;
                scan.add(&scanned);
                cursor = next;
            }
            Ok(())
        })?;
        let writes = &self.transaction.touched[&self.id].writes;
        all.retain(|(member, _)| !writes.contains_key(member));
        all.extend(writes.iter().filter_map(|(member, placed)| Some((member.clone(), Self::own(placed.as_ref()?)?))));
        Ok(all)
    }

    /// The members that have this key in an index of the collection, in the order of their names.
    ///
    /// # Errors
    ///
    /// As [`find_range`](Self::find_range).
    ///
    /// # Examples
    ///
    /// ```
    /// let store = larder::Store::in_memory();
    /// let users = store.collection::<String>("user")?;
    /// let by_mail = users.index_by("mail", |mail| mail.clone())?;
    /// users.put("ada", "ada@example.org".into())?;
    /// let found = store.transaction(|tx| tx.collection(&users)?.find(&by_mail, "ada@example.org"))?;
    /// assert_eq!(found[0].0, "ada");
    /// # Ok::<(), larder::Error>(())
    /// ```
    pub fn find<K: IndexKey + Comparable<Q>, Q: IndexKey + Clone>(
        &mut self,
        index: &Index<T, K>,
        key: Q,
    ) -> Result<Vec<(Member, Arc<T>)>> {
        self.find_range(index, key.clone()..=key)
    }

    /// The members whose keys in an index of the collection are in the range, in order. Any change of the collection by others
    /// before the transaction is done makes it be tried again: steady writes end it as a conflict.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidKey`] if the index is another collection's; as [`get`](Self::get).
    ///
    /// # Examples
    ///
    /// ```
    /// let store = larder::Store::in_memory();
    /// let stock = store.collection::<u32>("stock")?;
    /// let by_number = stock.index_by("number", |number| *number)?;
    /// stock.put("apples", 2)?;
    /// stock.put("pears", 70)?;
    /// store.transaction(|tx| {
    ///     let mut stock = tx.collection(&stock)?;
    ///     for (member, number) in stock.find_range(&by_number, ..10)? {
    ///         stock.put(member, *number + 100)?;
    ///     }
    ///     Ok(())
    /// })?;
    /// assert_eq!(by_number.range(..10).len(), 0);
    /// # Ok::<(), larder::Error>(())
    /// ```
    pub fn find_range<K: IndexKey + Comparable<Q>, Q: IndexKey>(
        &mut self,
        index: &Index<T, K>,
        range: impl RangeBounds<Q>,
    ) -> Result<Vec<(Member, Arc<T>)>> {
        let Some(place) = index.place_in(&self.collection) else {
            let rule = "the index is another collection's than it is asked in";
            return Err(Error::InvalidKey { key: self.collection.name().to_owned(), rule });
        };
        let table = &self.collection.shelf().table;
        let mut found = self.transaction.read_all(self.id, |_, time, scan, out| {
            // Nothing was written between two looks that are the same.
            for _ in 0..LOOKS {
                *scan = table.mark(time)?;
                let (from, to) = bounds(&range);
                let found = index.find_at(|| time, from, to, usize::MAX);
                if table.mark(time)? == *scan {
                    out.extend(found.into_iter().map(|(place, value)| (place.1.clone(), (place, value))));
                    return Ok(());
                }
            }
            Err(Stop::Refused(Refused::Stale))
        })?;
        let writes = &self.transaction.touched[&self.id].writes;
        found.retain(|(member, _)| !writes.contains_key(member));
        let (from, is_within) = bounds(&range);
        let starts = |key: &SortKey| match &from {
            Bound::Unbounded => true,
            Bound::Included((from, _)) | Bound::Excluded((from, _)) => from <= key,
        };
        for (member, placed) in writes.iter().filter_map(|(member, placed)| Some((member, placed.as_ref()?))) {
            let Some(key) = placed.keys.get(place) else {
                // It was put before the index was there.
                return Err(self.transaction.fail());
            };
            if let Some(value) = Self::own(placed)
                && starts(key)
                && is_within(key)
            {
                found.push((member.clone(), ((key.clone(), member.clone()), value)));
            }
        }
        found.sort_by(|(_, (a, _)), (_, (b, _))| a.cmp(b));
        Ok(found.into_iter().map(|(member, (_, value))| (member, value)).collect())
    }

    /// Puts a value in place when the transaction is done. It is encoded now.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidKey`]; [`Error::Codec`] if it does not encode.
    pub fn put(&mut self, member: impl AsRef<str>, value: T) -> Result<()> {
        self.put_until(member.as_ref(), value, Until::Removed)
    }

    /// The same, of a value that expires. See [`Store::put_with_ttl`].
    ///
    /// # Errors
    ///
    /// As [`put`](Self::put).
    pub fn put_with_ttl(&mut self, member: impl AsRef<str>, value: T, ttl: Duration) -> Result<()> {
        let deadline = self.transaction.handle.deadline_after(ttl)?;
        self.put_until(member.as_ref(), value, Until::At(deadline))
    }

    fn put_until(&mut self, member: &str, value: T, until: Until) -> Result<()> {
        let name = self.collection.name();
        key::check_member(name, member)?;
        let value: Held = Box::new(Arc::new(value));
        let shelf = self.collection.shelf();
        let bytes = match self.transaction.engine.persists() {
            true => Some(shelf.show(name, member, &value)?),
            false => None,
        };
        if let Some(bytes) = &bytes {
            self.transaction.handle.core.check_size(name, member, bytes.len())?;
        }
        let (codec, keys) = (self.collection.codec(), shelf.keys_of(member, &value));
        self.transaction.write(self.id, member, Some(Placed { value, codec, bytes, until, keys }));
        Ok(())
    }

    /// Deletes a member when the transaction is done.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidKey`].
    pub fn delete(&mut self, member: impl AsRef<str>) -> Result<()> {
        let member = member.as_ref();
        key::check_member(self.collection.name(), member)?;
        self.transaction.write(self.id, member, None);
        Ok(())
    }

    fn own(placed: &Placed) -> Option<Arc<T>> {
        placed.value.downcast_ref::<Arc<T>>().cloned()
    }
}

impl Transaction<'_> {
    /// Takes a collection in, and says its number.
    fn touch(&mut self, collection: &str) -> u32 {
        let shelves = self.engine.shelves(collection);
        self.touched.entry(shelves.id).or_insert_with(|| Touched {
            shelves: shelves.clone(),
            is_typed: shelves.typed.get().is_some(),
            reads: Reads::default(),
            writes: BTreeMap::new(),
        });
        shelves.id
    }

    fn write(&mut self, id: u32, member: &str, placed: Option<Placed>) {
        if let Some(touched) = self.touched.get_mut(&id) {
            touched.writes.insert(Member::from(member), placed);
        }
    }

    /// It is to be tried again.
    fn fail(&mut self) -> Error {
        self.conflict = true;
        Error::Conflict { attempts: 1 }
    }

    /// Moves the moment on, if everything that was read is still so.
    fn extend(&mut self) -> Result<()> {
        let (now, time) = (self.engine.moment(), self.engine.clock.reached());
        let agrees =
            |touched: &Touched| touched.shelf().is_some_and(|shelf| shelf.agrees(&touched.reads, time) == Ok(true));
        if self.conflict || !self.touched.values().all(agrees) {
            return Err(self.fail());
        }
        (self.start, self.time) = (now, time);
        Ok(())
    }

    /// Reads a member with `look`, which gives its value and version, and the last write to its part of the collection.
    fn read<V>(
        &mut self,
        id: u32,
        member: &str,
        look: impl Fn(&Shelves, u64) -> Result<(Option<(V, u64)>, u64), Stop>,
    ) -> Result<Option<V>> {
        loop {
            if self.touched[&id].shelf().is_none() {
                return Err(self.fail());
            }
            let (seen, newest) = match look(&self.touched[&id].shelves, self.time) {
                Ok(found) => found,
                Err(Stop::Refused(_)) => return Err(self.fail()),
                Err(Stop::Failed(error)) => return Err(error),
            };
            let version = seen.as_ref().map_or(0, |(_, version)| *version);
            let written = if seen.is_some() { version } else { newest };
            if written > self.start {
                self.extend()?;
                continue;
            }
            let Some(touched) = self.touched.get_mut(&id) else { return Err(self.fail()) };
            let before = touched.reads.members.entry(Member::from(member)).or_insert(version);
            if *before != version {
                // It has expired since.
                return Err(self.fail());
            }
            return Ok(seen.map(|(value, _)| value));
        }
    }

    /// Reads all members of a collection.
    fn read_all<V>(
        &mut self,
        id: u32,
        look: impl Fn(&Shelves, u64, &mut Scan, &mut Vec<(Member, V)>) -> Result<(), Stop>,
    ) -> Result<Vec<(Member, V)>> {
        if self.touched[&id].shelf().is_none() {
            return Err(self.fail());
        }
        let (mut scan, mut out) = (Scan::default(), Vec::new());
        match look(&self.touched[&id].shelves, self.time, &mut scan, &mut out) {
            Ok(()) => {}
            Err(Stop::Refused(_)) => return Err(self.fail()),
            Err(Stop::Failed(error)) => return Err(error),
        }
        let is_newer = scan.newest() > self.start;
        if let Some(touched) = self.touched.get_mut(&id) {
            // An earlier one of this transaction is as of the same moment.
            touched.reads.scan.get_or_insert(scan);
        }
        if is_newer {
            self.extend()?;
        }
        Ok(out)
    }

    /// Writes everything, if nothing that was read has changed.
    fn commit(&self) -> Result<()> {
        if self.touched.values().all(|touched| touched.writes.is_empty()) {
            // All that was read was there at one moment.
            return Ok(());
        }
        let writes = self.touched.values().flat_map(|touched| &touched.writes);
        let bytes = writes.map(|(member, placed)| {
            let value = placed.as_ref().and_then(|placed| placed.bytes.as_ref());
            EACH + member.len() + value.map_or(0, |value| value.len())
        });
        let size = bytes.sum();
        if size > MOST_BYTES {
            return Err(Error::TooLarge { key: "a transaction".into(), size, limit: MOST_BYTES });
        }
        self.handle.core.write(self.engine, || Concern::Transaction, || self.try_to_commit(size))
    }

    /// `size` is what its record takes.
    fn try_to_commit(&self, size: usize) -> Result<(), Stop> {
        let (core, engine) = (&self.handle.core, self.engine);
        let conflict = || Stop::Failed(Error::Conflict { attempts: 1 });
        let concerned = self.touched.values().filter(|touched| !touched.reads.is_empty() || !touched.writes.is_empty());
        let mut locked: Vec<(&Touched, Box<dyn AnyLocked + '_>)> = Vec::new();
        // In the order of their numbers.
        for touched in concerned {
            let mut members = touched.reads.members.keys().chain(touched.writes.keys());
            let shelf = touched.shelf().ok_or_else(conflict)?;
            let shards = shelf.lock(&mut members, touched.reads.scan.is_some()).map_err(|_| conflict())?;
            locked.push((touched, shards));
        }
        let time = engine.clock.reached();
        if !locked.iter().all(|(touched, shards)| shards.agrees(&touched.reads, time)) {
            return Err(conflict());
        }

        for (touched, shards) in locked.iter_mut().filter(|(touched, _)| !touched.writes.is_empty()) {
            let mut writes = Vec::with_capacity(touched.writes.len());
            for (member, placed) in &touched.writes {
                writes.push((member, placed.as_ref().map(|placed| &placed.keys[..])));
            }
            match shards.prepare(&writes) {
                Ok(()) => {}
                Err(Ok(two)) => return Err(duplicate(touched.shelves.name(), Some(two)).into()),
                Err(Err(_)) => return Err(conflict()),
            }
        }
        let mut charge = 0;
        for (touched, shards) in &locked {
            let weigh = |(member, placed): (&Member, &Option<Placed>)| {
                member.len() + placed.as_ref().map_or(0, |placed| shards.weigh(&placed.value))
            };
            charge += touched.writes.iter().map(weigh).sum::<usize>();
        }
        let Some((first, _)) = locked.first() else { return Ok(()) };
        let lane = core.lane(engine, &first.shelves);
        lane.check_open()?;
        if engine.persists() {
            // The values stand in the map, and in the record that waits.
            lane.charge((charge + size) as isize)?;
            engine.link.transaction_comes();
        }
        let is_watched = |touched: &Touched| !touched.writes.is_empty() && engine.watches.wants(&touched.shelves);
        let holding = self.touched.values().any(is_watched).then(|| RefCell::new(Holding::new(&engine.watches)));
        let version = lane.next_version();
        let mut sent = janitor::Transaction { writes: Vec::new(), charge: size };
        let mut charged = 0;
        for (touched, shards) in &mut locked {
            let lane = core.lane(engine, &touched.shelves);
            let (holding, shelves) = (holding.as_ref(), &touched.shelves);
            let share = Share { lane, shelves, version, holding, charged: Cell::new(0) };
            for (member, placed) in &touched.writes {
                let new = placed.as_ref().map(|placed| Put {
                    value: &placed.value,
                    codec: placed.codec,
                    until: placed.until,
                    keys: &placed.keys,
                });
                shards.write(member, new, &share)?;
                // A delete of what is not there is told, too: it may be there still on the disk, and must not be after a
                // crash that the transaction survives.
                if engine.persists() {
                    let (codec, deadline) = match placed {
                        Some(Placed { codec, until: Until::At(deadline), .. }) => (*codec, Some(*deadline)),
                        Some(Placed { codec, .. }) => (*codec, None),
                        None => (0, None),
                    };
                    let value = placed.as_ref().and_then(|placed| placed.bytes.clone());
                    let (collection, member) = (touched.shelves.id, member.clone());
                    let write = janitor::TransactionWrite { collection, member, version, codec, deadline, value };
                    sent.writes.push(write);
                }
            }
            charged += share.charged.get();
        }
        if engine.persists() {
            engine.adjust_unsaved(charged - charge as isize);
            engine.send(Msg::Transaction(sent));
        }
        let after = holding.map(|holding| holding.into_inner().done());
        // What was replaced is dropped when the last lock is gone.
        let replaced: Vec<Box<dyn Any>> = locked.into_iter().map(|(_, shards)| shards.unlock()).collect();
        drop((replaced, after));
        Ok(())
    }
}

/// The way into the map of one of the writes of a transaction, which has seen to everything already.
struct Share<'a, 'h> {
    lane: Lane<'a>,
    shelves: &'a Arc<Shelves>,
    version: u64,
    /// The rings, if anybody watches any of it.
    holding: Option<&'a RefCell<Holding<'h>>>,
    /// What all of them have changed the bytes not yet durable by.
    charged: Cell<isize>,
}

impl Ledger for Share<'_, '_> {
    fn check_open(&self) -> Result<(), Refused> {
        Ok(())
    }

    fn charge(&self, delta: isize) -> Result<(), Refused> {
        self.charged.set(self.charged.get() + delta);
        Ok(())
    }

    fn next_version(&self) -> u64 {
        self.version
    }

    fn persists(&self) -> bool {
        self.lane.persists()
    }

    /// The transaction's message goes for all of them.
    fn dirty(&self, _member: &Member, _bits: u32) {}

    fn cleared(&self, _version: u64) {}

    fn schedule(&self, member: &Member, old: Option<u64>, new: Option<u64>) {
        self.lane.schedule(member, old, new);
    }

    fn is_watched(&self) -> bool {
        self.holding.is_some() && self.lane.is_watched()
    }

    fn watch(&self) -> Option<Box<dyn Watching + '_>> {
        let holding = self.holding.filter(|_| self.lane.is_watched())?;
        Some(Box::new(Part { holding, shelves: self.shelves }))
    }

    fn cut(&self) -> u64 {
        self.lane.cut()
    }
}

/// The word of one of the writes.
struct Part<'a, 'h> {
    holding: &'a RefCell<Holding<'h>>,
    shelves: &'a Arc<Shelves>,
}

impl Watching for Part<'_, '_> {
    fn tell(&mut self, told: Told, version: u64) {
        self.holding.borrow_mut().tell(self.shelves, told, version);
    }
}
