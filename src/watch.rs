//! Watching: every change of a collection, or of a store, in order, to whoever asks.
//!
//! What changes goes into a ring, under the lock under which the change gets its number: so the order in the ring is that
//! of the versions. A writer never waits for a watcher: a ring that is full loses its oldest change, and whoever had not
//! read it is told how many it missed. Without watchers a write looks at two flags and does nothing else.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use crate::collection::Collection;
use crate::core::Engine;
use crate::error::{Error, Result};
use crate::map::{Held, Named, Told};
use crate::shelf::Shelves;
use crate::store::Store;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Condvar, Mutex, MutexGuard, wait_for};
use crate::value::{Member, Value};

/// The changes that a ring holds.
const CAPACITY: usize = 4096;

/// How long a wait for a change lasts before it begins again, without an effect that anybody could see.
const LONG: Duration = Duration::from_secs(3600);

/// What happened to a member, or to all of a collection.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChangeKind {
    /// A value was put in place.
    Put,
    /// The member was deleted.
    Delete,
    /// The member's deadline came.
    Expire,
    /// The value stays, and its deadline is another, or none.
    Deadline,
    /// All members of the collection were deleted.
    Clear,
}

/// One change, as [`Watch`] gives it. `V` is the value: bytes, or an [`Arc`] of your own type.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed<V> {
    /// The collection.
    pub collection: Arc<str>,
    /// The member; `None` if all of the collection was cleared.
    pub member: Option<Member>,
    /// What happened.
    pub kind: ChangeKind,
    /// What was there before, if anything was.
    pub old: Option<V>,
    /// What is there since, if anything is.
    pub new: Option<V>,
    /// The write's number. A later change has a higher one; the changes of a transaction share one, and so do the end of a
    /// member that has expired and the put that takes its place.
    pub version: u64,
}

/// What a [`Watch`] gives.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Watched<V> {
    /// The next change.
    Change(Changed<V>),
    /// So many changes came faster than they were read, and are lost to this watch. What follows came after them.
    Missed(u64),
}

/// A change as it is kept.
pub(crate) struct Event {
    shelves: Arc<Shelves>,
    told: Told,
    version: u64,
}

/// The last changes of one collection, or of the store.
#[derive(Default)]
struct Ring {
    events: VecDeque<Arc<Event>>,
    /// The number of the first that is there, counted from the ring's beginning.
    first: u64,
    /// Every change up to this version is either there or lost.
    lost: u64,
    watches: usize,
}

impl Ring {
    /// Returns what is lost for it, to be dropped when nothing is locked.
    fn push(&mut self, event: Arc<Event>) -> Option<Arc<Event>> {
        let lost = if self.events.len() == CAPACITY { self.events.pop_front() } else { None };
        if let Some(lost) = &lost {
            self.first += 1;
            self.lost = lost.version;
        }
        self.events.push_back(event);
        lost
    }

    fn end(&self) -> u64 {
        self.first + self.events.len() as u64
    }
}

#[derive(Default)]
struct Rings {
    /// By the collection's number; `None` for the store's.
    rings: HashMap<Option<u32>, Ring>,
    wakers: Vec<Waker>,
    ended: bool,
}

/// All rings of a store.
#[derive(Default)]
pub(crate) struct Watches {
    rings: Mutex<Rings>,
    changed: Condvar,
    /// Held by whoever begins to watch.
    beginning: Mutex<()>,
    /// The store as a whole is watched.
    all: AtomicBool,
}

impl Watches {
    /// Whether changes of the collection are to be told.
    #[inline]
    pub(crate) fn wants(&self, shelves: &Shelves) -> bool {
        shelves.watched.load(Ordering::Relaxed) || self.all.load(Ordering::Relaxed)
    }

    /// The store is closed: nothing follows.
    pub(crate) fn end(&self) {
        let wakers = {
            let mut rings = self.rings.lock();
            rings.ended = true;
            std::mem::take(&mut rings.wakers)
        };
        self.changed.notify_all();
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// What a write leaves to be done when it holds no lock any more: to drop what the rings have lost, which may be the last of
/// a caller's value, and to wake who waits for it in a task.
#[derive(Default)]
pub(crate) struct After {
    lost: Vec<Arc<Event>>,
    wakers: Vec<Waker>,
}

impl Drop for After {
    fn drop(&mut self) {
        self.wakers.drain(..).for_each(Waker::wake);
    }
}

/// The rings, held for changes that are about to get their number.
pub(crate) struct Holding<'a> {
    watches: &'a Watches,
    rings: MutexGuard<'a, Rings>,
    after: After,
}

impl<'a> Holding<'a> {
    pub(crate) fn new(watches: &'a Watches) -> Holding<'a> {
        Holding { watches, rings: watches.rings.lock(), after: After::default() }
    }

    pub(crate) fn tell(&mut self, shelves: &Arc<Shelves>, told: Told, version: u64) {
        let event = Arc::new(Event { shelves: shelves.clone(), told, version });
        for key in [Some(shelves.id), None] {
            if let Some(ring) = self.rings.rings.get_mut(&key) {
                self.after.lost.extend(ring.push(event.clone()));
            }
        }
    }

    /// Lets go of the rings. What comes back is to be dropped when nothing is locked.
    pub(crate) fn done(mut self) -> After {
        self.after.wakers.append(&mut self.rings.wakers);
        self.watches.changed.notify_all();
        self.after
    }
}

/// The changes of a collection or of a store, in order, from when it was made. Made by
/// [`Collection::watch`](crate::Collection::watch) and [`Store::watch`]. As an iterator it waits for the next change, and
/// ends when the store is closed.
///
/// It keeps nobody from anything: not a writer from writing, nor the last handle from closing the store. The last 4,096
/// changes of what is watched are held with their old and new values, for all who watch it, as long as anybody does, read or
/// not; who is slower is told how many it has [missed](Watched::Missed).
pub struct Watch<V> {
    watches: Arc<Watches>,
    key: Option<u32>,
    /// The collection, if it is one.
    shelves: Option<Arc<Shelves>>,
    /// The number of the next change in the ring.
    next: u64,
    read: fn(&Event, &Held) -> Option<V>,
}

impl<V> fmt::Debug for Watch<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("next", &self.next).finish_non_exhaustive()
    }
}

/// What there is to give.
enum Next {
    Event(Arc<Event>),
    Missed(u64),
    Nothing,
    End,
}

impl<V> Watch<V> {
    /// From after a version on, or from now on.
    fn new(
        engine: &Engine,
        shelves: Option<Arc<Shelves>>,
        after: Option<u64>,
        read: fn(&Event, &Held) -> Option<V>,
    ) -> Result<Watch<V>> {
        let watches = engine.watches.clone();
        let key = shelves.as_ref().map(|shelves| shelves.id);
        let beginning = watches.clone();
        let _beginning = beginning.beginning.lock();
        let is_new = {
            let mut rings = watches.rings.lock();
            let ring = rings.rings.entry(key).or_default();
            ring.watches += 1;
            match &shelves {
                Some(shelves) => shelves.watched.store(true, Ordering::SeqCst),
                None => watches.all.store(true, Ordering::SeqCst),
            }
            ring.watches == 1
        };
        let mut watch = Watch { watches, key, shelves, next: 0, read };
        // Whoever writes without having seen that is done by then.
        match &watch.shelves {
            Some(shelves) => shelves.barrier(),
            None => engine.registry.all().iter().for_each(|shelves| shelves.barrier()),
        }
        let mut rings = watch.watches.rings.lock();
        let Some(ring) = rings.rings.get_mut(&key) else { unreachable!("this watch keeps it") };
        if is_new {
            ring.lost = engine.moment().max(ring.lost);
        }
        watch.next = match after {
            None => ring.end(),
            Some(after) if after < ring.lost => {
                let oldest = ring.lost;
                drop(rings);
                return Err(Error::Missed { asked: after, oldest });
            }
            Some(after) => ring.first + ring.events.partition_point(|event| event.version <= after) as u64,
        };
        drop(rings);
        Ok(watch)
    }

    fn look(&mut self, rings: &Rings) -> Next {
        let Some(ring) = rings.rings.get(&self.key) else { return Next::End };
        if self.next < ring.first {
            let missed = ring.first - self.next;
            self.next = ring.first;
            return Next::Missed(missed);
        }
        match ring.events.get((self.next - ring.first) as usize) {
            Some(event) => {
                self.next += 1;
                Next::Event(event.clone())
            }
            None if rings.ended => Next::End,
            None => Next::Nothing,
        }
    }

    fn show(&self, event: &Event) -> Watched<V> {
        let read = |held: &Option<Held>| held.as_ref().and_then(|held| (self.read)(event, held));
        Watched::Change(Changed {
            collection: event.shelves.shared_name(),
            member: event.told.member.clone(),
            kind: event.told.kind,
            old: read(&event.told.old),
            new: read(&event.told.new),
            version: event.version,
        })
    }

    /// What there is, after waiting so long for it at most, or for as long as it takes. The error says that there is nothing
    /// yet.
    fn wait(&mut self, limit: Option<Duration>) -> Result<Option<Watched<V>>, Pending> {
        let from = Instant::now();
        let watches = self.watches.clone();
        let mut rings = watches.rings.lock();
        loop {
            match self.look(&rings) {
                Next::Event(event) => {
                    drop(rings);
                    return Ok(Some(self.show(&event)));
                }
                Next::Missed(count) => return Ok(Some(Watched::Missed(count))),
                Next::End => return Ok(None),
                Next::Nothing => {}
            }
            let left = limit.map_or(LONG, |limit| limit.saturating_sub(from.elapsed()));
            if left.is_zero() {
                return Err(Pending);
            }
            (rings, _) = wait_for(&watches.changed, rings, left);
        }
    }

    /// The next change, if there is one already or one comes within this time. `None` also after the store was closed: see
    /// [`is_over`](Self::is_over).
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use larder::{Store, Watched};
    ///
    /// let store = Store::in_memory();
    /// let mut watch = store.watch()?;
    /// assert_eq!(watch.next_within(Duration::ZERO), None);
    /// store.put("artist/bjork", "1")?;
    /// assert!(matches!(watch.next_within(Duration::ZERO), Some(Watched::Change(_))));
    /// # Ok::<(), larder::Error>(())
    /// ```
    pub fn next_within(&mut self, limit: Duration) -> Option<Watched<V>> {
        self.wait(Some(limit)).unwrap_or_default()
    }

    /// Whether the store is closed and everything was read.
    ///
    /// # Examples
    ///
    /// ```
    /// let store = larder::Store::in_memory();
    /// let mut watch = store.watch()?;
    /// store.put("artist/bjork", "1")?;
    /// drop(store);
    /// assert!(!watch.is_over());
    /// watch.next();
    /// assert!(watch.is_over());
    /// # Ok::<(), larder::Error>(())
    /// ```
    pub fn is_over(&self) -> bool {
        let rings = self.watches.rings.lock();
        rings.ended && rings.rings.get(&self.key).is_none_or(|ring| self.next >= ring.end())
    }
}

/// There is nothing yet.
struct Pending;

impl<V> Iterator for Watch<V> {
    type Item = Watched<V>;

    fn next(&mut self) -> Option<Watched<V>> {
        self.wait(None).unwrap_or_default()
    }
}

impl<V> std::iter::FusedIterator for Watch<V> {}

impl<V> Drop for Watch<V> {
    fn drop(&mut self) {
        let gone = {
            let mut rings = self.watches.rings.lock();
            let Some(ring) = rings.rings.get_mut(&self.key) else { return };
            ring.watches -= 1;
            if ring.watches > 0 {
                return;
            }
            match &self.shelves {
                Some(shelves) => shelves.watched.store(false, Ordering::SeqCst),
                None => self.watches.all.store(false, Ordering::SeqCst),
            }
            rings.rings.remove(&self.key)
        };
        // Values that may be the last of theirs, with nothing locked.
        drop(gone);
    }
}

#[cfg(feature = "stream")]
impl<V> futures_core::Stream for Watch<V> {
    type Item = Watched<V>;

    fn poll_next(
        self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Watched<V>>> {
        use std::task::Poll;
        let this = self.get_mut();
        let watches = this.watches.clone();
        let waker = context.waker().clone();
        let mut rings = watches.rings.lock();
        match this.look(&rings) {
            Next::Event(event) => {
                drop(rings);
                Poll::Ready(Some(this.show(&event)))
            }
            Next::Missed(count) => Poll::Ready(Some(Watched::Missed(count))),
            Next::End => Poll::Ready(None),
            Next::Nothing => {
                // The same task may ask many times between two changes.
                if !rings.wakers.iter().any(|waker| waker.will_wake(context.waker())) {
                    rings.wakers.push(waker);
                }
                Poll::Pending
            }
        }
    }
}

/// Every change.
impl Store {
    /// Watches every collection, in bytes. The order is that of the versions.
    ///
    /// A value of a collection that is open as a type is encoded when it is read here; one that does not encode is left out.
    ///
    /// # Errors
    ///
    /// [`Error::NotLoaded`] and [`Error::Closed`].
    ///
    /// # Examples
    ///
    /// ```
    /// use larder::{ChangeKind, Store, Watched};
    ///
    /// let store = Store::in_memory();
    /// let mut watch = store.watch()?;
    /// store.put("artist/bjork", "1")?;
    /// store.delete_all("artist")?;
    /// drop(store);
    ///
    /// let Some(Watched::Change(put)) = watch.next() else { panic!() };
    /// assert_eq!((&*put.collection, put.kind, put.new.unwrap()), ("artist", ChangeKind::Put, "1".into()));
    /// let Some(Watched::Change(clear)) = watch.next() else { panic!() };
    /// assert_eq!((clear.kind, clear.member), (ChangeKind::Clear, None));
    /// assert_eq!(watch.next(), None);
    /// # Ok::<(), larder::Error>(())
    /// ```
    pub fn watch(&self) -> Result<Watch<Value>> {
        Watch::new(self.handle().engine()?, None, None, read_bytes)
    }

    /// The same, beginning with the first change after a version: to go on where an earlier watch has ended. Changes are held
    /// only while somebody watches the store: keep a watch for that, even if nobody reads it.
    ///
    /// # Errors
    ///
    /// [`Error::Missed`] if changes after it are not there any more; as [`watch`](Self::watch).
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use larder::{Store, Watched};
    ///
    /// let store = Store::in_memory();
    /// let keeps = store.watch()?;
    /// let mut watch = store.watch()?;
    /// store.put("artist/bjork", "1")?;
    /// store.put("artist/air", "2")?;
    /// let Some(Watched::Change(first)) = watch.next() else { panic!() };
    /// drop(watch);
    /// let mut again = store.watch_after(first.version)?;
    /// let Some(Watched::Change(second)) = again.next() else { panic!() };
    /// assert_eq!(second.member.unwrap(), "air");
    /// # drop(keeps);
    /// # Ok::<(), larder::Error>(())
    /// ```
    pub fn watch_after(&self, version: u64) -> Result<Watch<Value>> {
        Watch::new(self.handle().engine()?, None, Some(version), read_bytes)
    }
}

fn read_bytes(event: &Event, held: &Held) -> Option<Value> {
    if let Some(bytes) = held.downcast_ref::<Value>() {
        return Some(bytes.clone());
    }
    let member = event.told.member.as_deref().unwrap_or_default();
    event.shelves.current().show(event.shelves.name(), member, held).ok()
}

/// Every change.
impl<T: Send + Sync + 'static> Collection<T> {
    /// Watches the collection. The order is that of the versions.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`].
    ///
    /// # Examples
    ///
    /// ```
    /// use larder::{Store, Watched};
    ///
    /// let store = Store::in_memory();
    /// let prices = store.collection::<u32>("price")?;
    /// let watch = prices.watch()?;
    /// let reader = std::thread::spawn(move || {
    ///     watch.map(|watched| match watched {
    ///         Watched::Change(change) => *change.new.unwrap(),
    ///         Watched::Missed(_) | _ => panic!("too slow"),
    ///     }).sum::<u32>()
    /// });
    /// for price in 1..=100 {
    ///     prices.put("bread", price)?;
    /// }
    /// drop((store, prices));
    /// assert_eq!(reader.join().unwrap(), 5050);
    /// # Ok::<(), larder::Error>(())
    /// ```
    pub fn watch(&self) -> Result<Watch<Arc<T>>> {
        self.watch_from(None)
    }

    /// The same, beginning with the first change after a version: to go on where an earlier watch has ended, while another
    /// one has kept the changes.
    ///
    /// # Errors
    ///
    /// [`Error::Missed`] if changes after it are not there any more; as [`watch`](Self::watch).
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use larder::{Store, Watched};
    ///
    /// let store = Store::in_memory();
    /// let prices = store.collection::<u32>("price")?;
    /// let keeps = prices.watch()?;
    /// prices.put("bread", 3)?;
    /// let (_, version) = prices.get_versioned("bread").unwrap();
    /// prices.put("bread", 4)?;
    /// let mut watch = prices.watch_after(version)?;
    /// let Some(Watched::Change(change)) = watch.next_within(Duration::ZERO) else { panic!() };
    /// assert_eq!(*change.new.unwrap(), 4);
    /// # drop(keeps);
    /// # Ok::<(), larder::Error>(())
    /// ```
    pub fn watch_after(&self, version: u64) -> Result<Watch<Arc<T>>> {
        self.watch_from(Some(version))
    }

    fn watch_from(&self, after: Option<u64>) -> Result<Watch<Arc<T>>> {
        let read = |_: &Event, held: &Held| held.downcast_ref::<Arc<T>>().cloned();
        Watch::new(self.handle().engine()?, Some(self.shelves().clone()), after, read)
    }
}
