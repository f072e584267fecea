//! [`Store`]: its life, and the face by key, in bytes.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec::{Codec, Json, RAW};
use crate::collection::Collection;
use crate::core::{Core, Engine};
use crate::error::{Error, Result};
use crate::janitor::Concern;
use crate::key;
use crate::map::{Done, How, Named, New, Only, Refused, Until};
use crate::options::Options;
use crate::report::{BackupReport, CloseReport, Health, LoadReport, Stats};
use crate::shelf::{AnyShelf, Shelves, Stop};
use crate::value::{Member, Value};

/// An embedded store of collections and members, served from RAM and stored behind the scenes.
///
/// A handle: cheap to clone, and to be shared between threads. When the last handle of a store has gone, collections'
/// included, the store is closed as well as it can be; [`close`](Self::close) does it with a report.
///
/// # Examples
///
/// ```
/// use larder::Store;
///
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("music");
/// let store = Store::open(path)?;
/// store.put("artist/daft_punk", "{ quality:'epic' }")?;
/// assert_eq!(store.get("artist/daft_punk")?.unwrap(), "{ quality:'epic' }");
/// assert_eq!(store.get_all("artist")?.len(), 1);
/// store.delete("artist/daft_punk")?;
/// store.close()?;
/// # Ok::<(), larder::Error>(())
/// ```
#[derive(Clone)]
pub struct Store {
    handle: Arc<Handle>,
}

/// What the users of a store hold in common, and the janitor does not: when it goes, the store closes.
pub(crate) struct Handle {
    pub(crate) core: Arc<Core>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.core.abandon();
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("path", &self.path()).finish_non_exhaustive()
    }
}

/// The life of a store.
impl Store {
    /// A store at `path`, which is resolved now, so that a later change of the working directory does not matter.
    /// Nothing is created: that is [`load`](Self::load)'s part.
    ///
    /// # Errors
    ///
    /// [`Error::NotAStore`] if there is something at the path that is no directory, or a directory that has something
    /// in it and no `.larder`.
    #[doc(alias = "NewStore")]
    pub fn new(path: impl AsRef<Path>) -> Result<Store> {
        Store::options(path).build()
    }

    /// A store at `path`, loaded: [`new`](Self::new) and [`load`](Self::load). What the load found is in
    /// [`load_report`](Self::load_report).
    ///
    /// # Errors
    ///
    /// As `new` and `load`.
    pub fn open(path: impl AsRef<Path>) -> Result<Store> {
        Store::options(path).open()
    }

    /// A store with nothing behind it, loaded already: everything works, and nothing outlives it.
    pub fn in_memory() -> Store {
        let store = Store::from_options(Options::in_memory());
        let loaded = store.load();
        debug_assert!(loaded.is_ok(), "there is nothing to load that could fail");
        store
    }

    /// Every knob, to be set before the store is opened.
    pub fn options(path: impl AsRef<Path>) -> Options {
        Options::new(path.as_ref().to_owned())
    }

    pub(crate) fn from_options(options: Options) -> Store {
        Store { handle: Arc::new(Handle { core: Arc::new(Core::new(options)) }) }
    }

    /// Takes the directory's lock, recovers what is stored, and starts the janitor. Creates the directory, private to
    /// its owner, if there is none.
    ///
    /// Damaged files are moved into quarantine, and the report lists them; files that are not larder's are left alone.
    ///
    /// # Errors
    ///
    /// [`Error::Locked`] at once if another store, here or in another process, has the directory;
    /// [`Error::NewerFormat`] if a newer larder wrote it; [`Error::AlreadyLoaded`]; [`Error::Closed`], for a closed store is
    /// not loaded again; [`Error::Io`], also when a single file cannot be read for a reason that lies outside it, such as its
    /// permissions. The lock is not held after an error, and `load` may be called again.
    #[doc(alias = "Load")]
    pub fn load(&self) -> Result<LoadReport> {
        self.handle.core.load()
    }

    /// What the load found; empty before it.
    pub fn load_report(&self) -> LoadReport {
        self.handle.core.report()
    }

    /// The store's directory.
    pub fn path(&self) -> &Path {
        &self.handle.core.path
    }

    /// Returns when every write made before the call is durable: no crash loses it.
    ///
    /// # Errors
    ///
    /// Why it is not: [`Error::Io`] with path and action, [`Error::Codec`] with the key of a value that does not encode,
    /// [`Error::Degraded`] when nothing has moved for [`Options::stall_timeout`]. Everything is kept in RAM, and tried
    /// again.
    pub fn flush(&self) -> Result<()> {
        self.handle.core.flush()
    }

    /// Writes a copy of the store, as it is at one moment, to a new store at `path`, durably. Writers go on meanwhile: what
    /// they replace is kept in RAM until it is copied. The copy has the layout that this store has, or files of their own
    /// if this store has neither.
    ///
    /// The copy gets its name when it is whole. A crash leaves nothing there, or a directory beside it with `.partial-` in
    /// its name, which nobody needs.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], also if there is something at the path; [`Error::NotLoaded`], [`Error::Closed`]. A value that does not
    /// encode is left out, and reported. Nothing is at the path then; but a disk that fails to make the name durable, and
    /// then to take it back, leaves the copy there, whole.
    ///
    /// # Examples
    ///
    /// ```
    /// use larder::Store;
    ///
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let (path, copy) = (dir.path().join("music"), dir.path().join("copy"));
    /// let store = Store::open(path)?;
    /// store.put("artist/daft_punk", "epic")?;
    /// let report = store.backup(&copy)?;
    /// assert_eq!((report.members, report.left_out.len()), (1, 0));
    ///
    /// let copy = Store::open(copy)?;
    /// assert_eq!(copy.get("artist/daft_punk")?.unwrap(), "epic");
    /// # Ok::<(), larder::Error>(())
    /// ```
    pub fn backup(&self, path: impl AsRef<Path>) -> Result<BackupReport> {
        self.handle.core.backup(path.as_ref())
    }

    pub(crate) fn handle(&self) -> &Arc<Handle> {
        &self.handle
    }

    pub(crate) fn core_handle(&self) -> &Arc<Core> {
        &self.handle.core
    }

    pub(crate) fn core(&self) -> &Core {
        &self.handle.core
    }

    /// Makes what is stored as small as it gets, and returns when it is: with [`Layout::Packed`](crate::Layout::Packed) every
    /// member is written once, densely, and nothing else is kept. It need not be called: what is mostly garbage is compacted
    /// by itself. Reads and writes go on meanwhile. A store that keeps its members in files has nothing to do.
    ///
    /// # Errors
    ///
    /// As [`flush`](Self::flush): what is stored is as safe as before.
    pub fn compact(&self) -> Result<()> {
        self.handle.core.compact()
    }

    /// Stores what is not stored yet, stops the janitor, and gives up the directory's lock. No write that returned
    /// `Ok` on another thread is lost to it.
    ///
    /// # Errors
    ///
    /// As [`flush`](Self::flush). The store is open still then, and can be closed again.
    #[doc(alias = "Close")]
    pub fn close(&self) -> Result<CloseReport> {
        self.handle.core.close()
    }

    /// The store in numbers. All 0 before it is loaded.
    pub fn stats(&self) -> Stats {
        let Some(engine) = self.handle.core.engine() else { return Stats::default() };
        let (members, collections, bytes) = engine.tally();
        let unsaved_bytes = engine.unsaved();
        Stats {
            members,
            collections,
            bytes,
            // A key that is on its way from the channel to the janitor's hand is in neither.
            dirty: (engine.waiting() + engine.link.in_hand()).max(usize::from(unsaved_bytes > 0)),
            oldest_dirty: engine.link.oldest(),
            unsaved_bytes,
            journal_bytes: engine.link.background.waiting(),
        }
    }

    /// Whether writes are reaching the disk, and if not, what fails since when.
    pub fn health(&self) -> Health {
        self.handle
            .core
            .engine()
            .map_or(Health::Well, |engine| engine.link.health(self.handle.core.knobs.stall_timeout))
    }
}

/// By key, in bytes. A key is `"collection/member"`.
///
/// A collection that is open as a type is seen as its encoded bytes; a put decodes first, and is refused if it does not.
///
/// All of these fail with [`Error::NotLoaded`] before the load, [`Error::Closed`] after the close, and
/// [`Error::InvalidKey`] on a key that breaks a rule. A `Serialize` or `Deserialize` of yours that panics, panics in the
/// call that needs it; the store stays as it is, and a put or delete whose previous value it was asked for is done.
impl Store {
    /// The member's value.
    ///
    /// # Errors
    ///
    /// [`Error::Codec`] if the collection is open as a type and the value does not encode.
    #[doc(alias = "Get")]
    pub fn get(&self, key: impl AsRef<str>) -> Result<Option<Value>> {
        let (collection, member) = key::split(key.as_ref())?;
        let Some(shelves) = self.handle.core.open()?.registry.get(collection) else { return Ok(None) };
        // One that is open as a type has moved.
        match shelves.raw.table.get(member) {
            Ok(found) => Ok(found),
            Err(_) => self.read(shelves, |shelf| shelf.get(collection, member)),
        }
    }

    /// Whether there is such a member.
    ///
    /// # Errors
    ///
    /// Those of every call by key.
    pub fn contains(&self, key: impl AsRef<str>) -> Result<bool> {
        let (collection, member) = key::split(key.as_ref())?;
        self.read_collection(collection, |shelf| Ok(shelf.contains(member)?))
    }

    /// Puts a value in place, and returns the one that was there.
    ///
    /// # Errors
    ///
    /// [`Error::Degraded`] when the bytes not yet durable are at their bound and the disk does not take them;
    /// [`Error::TooLarge`]; [`Error::Codec`] if the collection is open as a type and the value does not decode. Nothing
    /// has changed then. Two errors come after the write: in `Immediate` mode those of [`flush`](Self::flush), and
    /// `Codec` with the action `encode` when the previous value cannot be shown as bytes.
    #[doc(alias = "Put")]
    pub fn put(&self, key: impl AsRef<str>, value: impl Into<Value>) -> Result<Option<Value>> {
        let (key, value) = (key.as_ref(), value.into());
        let (collection, member) = key::split(key)?;
        let core = &self.handle.core;
        let engine = core.open()?;
        core.check_size(collection, member, value.len())?;
        let shelves = engine.shelves(collection);
        core.begin_write(engine)?;
        // One that is open as a type has moved.
        match shelves.raw.table.put_plainly(member, value, 0, &core.lane(engine, shelves)) {
            Ok(old) => {
                core.end_write(engine, shelves.one(member))?;
                Ok(old)
            }
            Err(value) => Ok(self.put_how(key, RAW, How::always(Until::Removed), value)?.old),
        }
    }

    /// Puts a value in place that expires: when so much time has passed the member is gone from every read. A later put
    /// without a time to live takes the deadline away. Deadlines are kept to the millisecond, as points in time, across
    /// reopening. With a time of zero the member is gone at once, for everybody but those who watch.
    ///
    /// # Errors
    ///
    /// As [`put`](Self::put), and [`Error::Io`] if the thread that waits for deadlines cannot be started: nothing has
    /// changed then.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use larder::Store;
    ///
    /// let store = Store::in_memory();
    /// store.put_with_ttl("session/abc", "{}", Duration::from_secs(1800))?;
    /// assert!(store.ttl("session/abc")? > Some(Duration::from_secs(1700)));
    /// store.persist("session/abc")?;
    /// assert_eq!(store.ttl("session/abc")?, None);
    /// store.expire("session/abc", Duration::ZERO)?;
    /// assert_eq!(store.get("session/abc")?, None);
    /// # Ok::<(), larder::Error>(())
    /// ```
    pub fn put_with_ttl(&self, key: impl AsRef<str>, value: impl Into<Value>, ttl: Duration) -> Result<Option<Value>> {
        let deadline = self.handle.deadline_after(ttl)?;
        Ok(self.put_how(key.as_ref(), RAW, How::always(Until::At(deadline)), value.into())?.old)
    }

    /// How long the member has left; `None` if it has no deadline, or is not there.
    ///
    /// # Errors
    ///
    /// Those of every call by key.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let store = larder::Store::in_memory();
    /// store.put("session/a", "Ada")?;
    /// assert_eq!(store.ttl("session/a")?, None);
    /// store.expire("session/a", Duration::from_secs(60))?;
    /// assert!(store.ttl("session/a")? <= Some(Duration::from_secs(60)));
    /// # Ok::<(), larder::Error>(())
    /// ```
    pub fn ttl(&self, key: impl AsRef<str>) -> Result<Option<Duration>> {
        let (collection, member) = key::split(key.as_ref())?;
        let now = self.handle.engine()?.clock.now();
        let deadline = self.read_collection(collection, |shelf| Ok(shelf.deadline(member)?))?.flatten();
        Ok(deadline.map(|at| Duration::from_millis(at.saturating_sub(now))))
    }

    /// Gives the member, as it is, so long to live from now on. False if there is no such member.
    ///
    /// # Errors
    ///
    /// As [`put_with_ttl`](Self::put_with_ttl).
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let store = larder::Store::in_memory();
    /// store.put("session/a", "Ada")?;
    /// assert!(store.expire("session/a", Duration::ZERO)?);
    /// assert!(!store.contains("session/a")?);
    /// assert!(!store.expire("session/a", Duration::ZERO)?);
    /// # Ok::<(), larder::Error>(())
    /// ```
    pub fn expire(&self, key: impl AsRef<str>, ttl: Duration) -> Result<bool> {
        let deadline = self.handle.deadline_after(ttl)?;
        Ok(self.touch(key.as_ref(), Until::At(deadline))?.is_some())
    }

    /// Takes the member's deadline away. False if it has none, or is not there.
    ///
    /// # Errors
    ///
    /// As [`put`](Self::put).
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let store = larder::Store::in_memory();
    /// store.put_with_ttl("session/a", "Ada", Duration::from_secs(60))?;
    /// assert!(store.persist("session/a")?);
    /// assert_eq!(store.ttl("session/a")?, None);
    /// assert!(!store.persist("session/a")?);
    /// # Ok::<(), larder::Error>(())
    /// ```
    pub fn persist(&self, key: impl AsRef<str>) -> Result<bool> {
        Ok(self.touch(key.as_ref(), Until::Removed)?.flatten().is_some())
    }

    fn touch(&self, key: &str, until: Until) -> Result<Option<Option<u64>>> {
        let (collection, member) = key::split(key)?;
        let core = &self.handle.core;
        let engine = core.open()?;
        let Some(shelves) = engine.registry.get(collection) else { return Ok(None) };
        let lane = core.lane(engine, shelves);
        core.write(engine, shelves.one(member), || Ok(shelves.current().touch(member, until, &lane)?))
    }

    /// Puts a value that a codec has written and that may have a deadline.
    pub(crate) fn put_until(
        &self,
        key: &str,
        codec: &str,
        deadline: Option<u64>,
        value: Value,
    ) -> Result<Option<Value>> {
        let until = match deadline {
            None => Until::Removed,
            Some(deadline) => {
                self.handle.deadline_after(Duration::ZERO)?;
                Until::At(deadline)
            }
        };
        Ok(self.put_how(key, codec, How::always(until), value)?.old)
    }

    /// Puts a value that a codec has written.
    pub(crate) fn put_how(&self, key: &str, codec: &str, how: How, value: Value) -> Result<Done<Value>> {
        let (collection, member) = key::split(key)?;
        let core = &self.handle.core;
        let engine = core.open()?;
        let codec = if codec == RAW { 0 } else { engine.codec_id(codec)? };
        core.check_size(collection, member, value.len())?;
        let shelves = engine.shelves(collection);
        let lane = core.lane(engine, shelves);
        let mut new = New::put(value, codec);
        core.write(engine, shelves.one(member), || match (shelves.typed.get(), &new.value) {
            (Some(typed), Some(value)) => typed.put(collection, member, value, codec, how, &lane),
            _ => Ok(shelves.raw.table.put_only(member, &mut new, how, &lane)?),
        })
    }

    /// Deletes a member, and returns the value that was there.
    ///
    /// # Errors
    ///
    /// As [`put`](Self::put).
    #[doc(alias = "Delete")]
    pub fn delete(&self, key: impl AsRef<str>) -> Result<Option<Value>> {
        let (collection, member) = key::split(key.as_ref())?;
        let core = &self.handle.core;
        let engine = core.open()?;
        let Some(shelves) = engine.registry.get(collection) else { return Ok(None) };
        let lane = core.lane(engine, shelves);
        Ok(core
            .write(engine, shelves.one(member), || shelves.current().delete(collection, member, Only::Always, &lane))?
            .old)
    }

    /// All members of a collection with their values, in no particular order. Not a snapshot: a member written
    /// meanwhile may be there in its old form or its new one.
    ///
    /// # Errors
    ///
    /// [`Error::Codec`] if the collection is open as a type and a value does not encode.
    #[doc(alias = "GetAll")]
    pub fn get_all(&self, collection: impl AsRef<str>) -> Result<Vec<(Member, Value)>> {
        let mut all = Vec::new();
        let mut walk = self.iter(collection)?;
        while walk.fill()? {
            if all.is_empty() {
                std::mem::swap(&mut all, &mut walk.ready);
            } else {
                all.append(&mut walk.ready);
            }
        }
        Ok(all)
    }

    /// Deletes all members of a collection at one moment, and says how many there were.
    ///
    /// # Errors
    ///
    /// As [`put`](Self::put).
    #[doc(alias = "DeleteAll")]
    pub fn delete_all(&self, collection: impl AsRef<str>) -> Result<usize> {
        let collection = collection.as_ref();
        key::check_collection(collection)?;
        let core = &self.handle.core;
        let engine = core.open()?;
        let Some(shelves) = engine.registry.get(collection) else { return Ok(0) };
        let lane = core.lane(engine, shelves);
        core.write(engine, || Concern::Clear { collection: shelves.id }, || shelves.current().clear(&lane))
    }

    /// The names of all members of a collection, in no particular order.
    ///
    /// # Errors
    ///
    /// Those of every call by key.
    pub fn members(&self, collection: impl AsRef<str>) -> Result<Vec<Member>> {
        let mut names = Vec::new();
        let mut cursor = Some(0);
        while let Some(at) = cursor {
            cursor = self.read_collection(collection.as_ref(), |shelf| Ok(shelf.names(at, &mut names)?))?;
        }
        Ok(names)
    }

    /// How many members a collection has.
    ///
    /// # Errors
    ///
    /// Those of every call by key.
    pub fn len(&self, collection: impl AsRef<str>) -> Result<usize> {
        self.read_collection(collection.as_ref(), |shelf| Ok(shelf.tally()?.0))
    }

    /// Whether a collection has no members.
    ///
    /// # Errors
    ///
    /// Those of every call by key.
    pub fn is_empty(&self, collection: impl AsRef<str>) -> Result<bool> {
        Ok(self.len(collection)? == 0)
    }

    /// The names of all collections that have members, sorted.
    ///
    /// # Errors
    ///
    /// [`Error::NotLoaded`] and [`Error::Closed`].
    pub fn collections(&self) -> Result<Vec<String>> {
        let engine = self.handle.core.open()?;
        let mut names = Vec::new();
        for shelves in engine.registry.all() {
            if shelves.settled(|shelf| shelf.tally()).is_some_and(|(members, _)| members > 0) {
                names.push(shelves.name().to_owned());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Walks a collection without copying it whole: a few thousand members at most are held at a time. A member that is
    /// there from the beginning to the end is met exactly once, in the form that it has when the walk comes to it. A walk
    /// that was begun goes on after a close, from RAM.
    ///
    /// # Errors
    ///
    /// Those of every call by key.
    pub fn iter(&self, collection: impl AsRef<str>) -> Result<Iter> {
        let collection = collection.as_ref();
        key::check_collection(collection)?;
        let shelves = self.handle.core.open()?.registry.get(collection).cloned();
        Ok(Iter { store: self.clone(), cursor: shelves.is_some().then_some(0), shelves, ready: Vec::new() })
    }

    pub(crate) fn read_collection<R: Default>(
        &self,
        collection: &str,
        f: impl FnMut(&dyn AnyShelf) -> Result<R, Stop>,
    ) -> Result<R> {
        key::check_collection(collection)?;
        match self.handle.core.open()?.registry.get(collection) {
            Some(shelves) => self.read(shelves, f),
            None => Ok(R::default()),
        }
    }

    /// Does a read: again when the members have moved.
    fn read<R>(&self, shelves: &Shelves, mut f: impl FnMut(&dyn AnyShelf) -> Result<R, Stop>) -> Result<R> {
        loop {
            match f(shelves.current()) {
                Ok(done) => return Ok(done),
                Err(Stop::Refused(Refused::Moved)) => {}
                Err(Stop::Refused(_)) => return Err(Error::Closed { path: self.path().to_owned() }),
                Err(Stop::Failed(error)) => return Err(error),
            }
        }
    }
}

/// In your own types.
impl Store {
    /// The collection, as values of `T` stored as JSON. See [`collection_with`](Self::collection_with).
    ///
    /// # Errors
    ///
    /// As `collection_with`.
    pub fn collection<T>(&self, name: impl AsRef<str>) -> Result<Collection<T>>
    where
        T: Serialize + DeserializeOwned + Send + Sync + 'static,
    {
        self.collection_with::<T, Json>(name)
    }

    /// The collection, as values of `T` stored through the codec `C`.
    ///
    /// A collection that was loaded as bytes is decoded, once, by whoever opens it first: all of it, or, if a member
    /// does not decode, nothing. Members that were put by key decode with `C`; a member written by another codec does
    /// not decode. The call holds no lock while it decodes, and starts over with what is written meanwhile.
    ///
    /// # Errors
    ///
    /// [`Error::TypeMismatch`] if the collection is open as another type or through another codec; [`Error::Codec`] with
    /// the members that do not decode, unless
    /// [`Options::quarantine_undecodable`](crate::Options::quarantine_undecodable) is set; [`Error::InvalidKey`].
    pub fn collection_with<T, C>(&self, name: impl AsRef<str>) -> Result<Collection<T>>
    where
        T: Serialize + DeserializeOwned + Send + Sync + 'static,
        C: Codec,
    {
        Collection::open::<C>(&self.handle, name.as_ref())
    }
}

/// A walk over a collection. See [`Store::iter`].
pub struct Iter {
    store: Store,
    shelves: Option<Arc<Shelves>>,
    cursor: Option<u64>,
    ready: Vec<(Member, Value)>,
}

impl fmt::Debug for Iter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Iter").field("ready", &self.ready.len()).finish_non_exhaustive()
    }
}

impl Iter {
    /// Makes sure that something is ready. False at the end.
    fn fill(&mut self) -> Result<bool> {
        while self.ready.is_empty() {
            let (Some(at), Some(shelves)) = (self.cursor, &self.shelves) else { return Ok(false) };
            let ready = &mut self.ready;
            let next = self.store.read(shelves, |shelf| {
                ready.clear();
                shelf.scan(shelves.name(), at, ready)
            });
            // An error ends the walk: what follows is not known to be whole.
            self.cursor = next.as_ref().map_or(None, |next| *next);
            next?;
        }
        Ok(true)
    }
}

impl Iterator for Iter {
    type Item = Result<(Member, Value)>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.fill() {
            Ok(true) => self.ready.pop().map(Ok),
            Ok(false) => None,
            Err(error) => Some(Err(error)),
        }
    }
}

impl std::iter::FusedIterator for Iter {}

/// The path and the engine, for the rooms that are opened from a handle.
impl Handle {
    pub(crate) fn engine(&self) -> Result<&Engine> {
        self.core.open()
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.core.path.clone()
    }

    /// The deadline of what has so long to live from now on.
    pub(crate) fn deadline_after(&self, ttl: Duration) -> Result<u64> {
        self.core.deadline_after(self.engine()?, ttl)
    }
}
