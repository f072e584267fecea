//! [`Collection`]: the typed face. Values live in RAM as `T`, and the janitor does the encoding.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::answer::question;
use crate::backend::Quarantined;
use crate::codec::{Codec, CodecError, RAW};
use crate::core::{Engine, Lane};
use crate::error::{Error, Result};
use crate::janitor::{Concern, Exhibit, Msg};
use crate::key;
use crate::map::{Done, Found, How, Named, New, Only, Refused, Table, Until};
use crate::shelf::{AnyShelf, Form, Shelf, Shelves, Stop};
use crate::store::Handle;

use crate::value::{Member, Value};

/// How often a collection that changes while it is decoded is started over, and how many rounds of what has changed are
/// decoded each time. A round is as long as the decoding of what changed in the one before, so few are needed unless the
/// collection changes faster than it can be decoded.
const ATTEMPTS: usize = 10;
const ROUNDS: usize = 100;

/// A collection of values of your own type. Made by [`Store::collection`](crate::Store::collection).
///
/// A handle: cheap to clone, and to be shared between threads. Reads hand out an [`Arc`] of the value that is in the
/// map, with no decoding and no copying; they answer from RAM even after the store is closed. Once it is open as a type,
/// a collection stays so until the store is closed, whether or not a handle is left.
///
/// # Examples
///
/// ```
/// use larder::Store;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct Artist {
///     country: String,
///     albums: u32,
/// }
///
/// let store = Store::in_memory();
/// let artists = store.collection::<Artist>("artist")?;
/// artists.put("daft_punk", Artist { country: "France".into(), albums: 4 })?;
/// assert_eq!(artists.get("daft_punk").unwrap().albums, 4);
/// assert_eq!(store.get("artist/daft_punk")?.unwrap(), r#"{"country":"France","albums":4}"#);
/// # Ok::<(), larder::Error>(())
/// ```
pub struct Collection<T> {
    handle: Arc<Handle>,
    shelves: Arc<Shelves>,
    shelf: Arc<Shelf<Arc<T>>>,
}

impl<T> Clone for Collection<T> {
    fn clone(&self) -> Self {
        Collection { handle: self.handle.clone(), shelves: self.shelves.clone(), shelf: self.shelf.clone() }
    }
}

impl<T> fmt::Debug for Collection<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Collection")
            .field("name", &self.shelves.name())
            .field("type", &std::any::type_name::<T>())
            .finish_non_exhaustive()
    }
}

impl<T: Serialize + DeserializeOwned + Send + Sync + 'static> Collection<T> {
    pub(crate) fn open<C: Codec>(handle: &Arc<Handle>, name: &str) -> Result<Self> {
        let engine = handle.engine()?;
        key::check_collection(name)?;
        if C::NAME == RAW {
            let rule = "the codec name \"raw\" is for bytes put by key";
            return Err(Error::InvalidKey { key: name.to_owned(), rule });
        }
        let codec_id = engine.codec_id(C::NAME)?;
        let shelves = engine.shelves(name);
        let shelf = Arc::new(Shelf {
            table: Table::new(engine.hasher(), engine.clock.clone()),
            form: Form::typed::<C>(codec_id),
        });
        for _ in 0..ATTEMPTS {
            if let Some(open) = shelves.typed.get() {
                let shelf = Self::same(name, open, &shelf.form)?;
                return Ok(Collection { handle: handle.clone(), shelves: shelves.clone(), shelf });
            }
            Self::decode_all(handle, engine, shelves, &shelf)?;
        }
        let reason = format!("collection {name:?} changes faster than it can be decoded");
        Err(Error::Degraded { reason, source: None })
    }

    /// The shelf that is open, if it is what is asked for.
    fn same(name: &str, open: &Arc<dyn AnyShelf>, wanted: &Form<Arc<T>>) -> Result<Arc<Shelf<Arc<T>>>> {
        let requested = || format!("{} in codec {}", wanted.type_name, wanted.codec);
        let mismatch =
            || Error::TypeMismatch { collection: name.to_owned(), opened: open.describe(), requested: requested() };
        let shelf = open.clone().as_any().downcast::<Shelf<Arc<T>>>().map_err(|_| mismatch())?;
        if shelf.form.codec == wanted.codec { Ok(shelf) } else { Err(mismatch()) }
    }

    /// Decodes all members and moves them over, unless they change all the time: then the caller starts over.
    fn decode_all(handle: &Handle, engine: &Engine, shelves: &Shelves, shelf: &Arc<Shelf<Arc<T>>>) -> Result<()> {
        let codec_name = |id| engine.codec_name(id);
        let mut made = hashbrown::HashMap::with_hasher(engine.hasher());
        let mut failed = Vec::new();
        let mut cursor = Some(0);
        while let Some(at) = cursor {
            let mut found = Vec::new();
            let scanned = shelves.raw.table.scan_all(at, |member| found.push(member));
            let Ok(next) = scanned else { return Ok(()) };
            Self::drop_expired(handle, engine, shelves, &mut found);
            failed.extend(shelves.decode_into(found, &shelf.form, codec_name, &mut made));
            cursor = next;
        }
        for _ in 0..ROUNDS {
            if !failed.is_empty() {
                return Self::refuse(handle, engine, shelves, shelf.form.codec, failed);
            }
            let stale = shelves.raw.table.move_to(&shelf.table, made, |charge| {
                engine.adjust_unsaved(charge);
                // Only the one that moves the members comes here.
                _ = shelves.typed.set(shelf.clone());
            });
            match stale {
                Ok(()) => return Ok(()),
                // Somebody else has moved them, or members are gone.
                Err(stale) if stale.newer.is_empty() => return Ok(()),
                Err(mut stale) => {
                    made = stale.made;
                    Self::drop_expired(handle, engine, shelves, &mut stale.newer);
                    failed = shelves.decode_into(stale.newer, &shelf.form, codec_name, &mut made);
                }
            }
        }
        Ok(())
    }

    /// Removes those whose deadline has come: nobody has to decode them.
    fn drop_expired(handle: &Handle, engine: &Engine, shelves: &Shelves, found: &mut Vec<Found<Value>>) {
        let reached = engine.clock.reached();
        found.retain(|found| {
            let over = found.deadline.filter(|at| *at <= reached);
            over.is_none_or(|at| handle.core.expire(shelves.id, &found.member, at).is_err())
        });
    }

    /// Puts the members that do not decode into quarantine, or makes an error of them.
    fn refuse(
        handle: &Handle,
        engine: &Engine,
        shelves: &Shelves,
        codec: &str,
        mut failed: Vec<(Found<Value>, CodecError)>,
    ) -> Result<()> {
        if handle.core.knobs.quarantine_undecodable && engine.persists() {
            match Self::put_aside(handle, engine, shelves, &failed) {
                // A backend that has no quarantine.
                Err(Error::Backend { .. }) => {}
                done => return done,
            }
        }
        failed.sort_by(|(a, _), (b, _)| a.member.cmp(&b.member));
        let members = failed.iter().map(|(found, error)| (found.member.clone(), error.to_string())).collect();
        let Some((_, first)) = failed.into_iter().next() else { return Ok(()) };
        Err(Error::Codec {
            key: shelves.name().to_owned(),
            codec: codec.to_owned(),
            action: "decode",
            members,
            source: Arc::from(first),
        })
    }

    fn put_aside(
        handle: &Handle,
        engine: &Engine,
        shelves: &Shelves,
        failed: &[(Found<Value>, CodecError)],
    ) -> Result<()> {
        for (found, error) in failed {
            let (member, version) = (&found.member, found.stamp.version());
            let exhibit = Exhibit {
                collection: shelves.name().to_owned(),
                member: member.clone(),
                version,
                codec: engine.codec_name(found.stamp.codec()).to_string(),
                value: found.value.clone(),
                reason: format!("it does not decode: {error}"),
            };
            let (path, reason) = (PathBuf::from(key::join(shelves.name(), member)), exhibit.reason.clone());
            let (reply, answer) = question();
            let message = Msg::Quarantine(Box::new(exhibit), reply);
            let moved_to = handle.core.ask(engine, "quarantine", message, &answer)?;
            engine.add_quarantined(Quarantined { path, reason, moved_to });
            let lane = handle.core.lane(engine, shelves);
            handle.core.write(engine, shelves.one(member), || {
                match shelves.raw.table.delete(member, Only::Version(version), &lane) {
                    // Somebody has opened it meanwhile, so it did decode by then.
                    Err(Refused::Moved) => Ok(()),
                    deleted => {
                        deleted?;
                        Ok(())
                    }
                }
            })?;
        }
        Ok(())
    }
}

impl<T: Send + Sync + 'static> Collection<T> {
    /// The collection's name.
    pub fn name(&self) -> &str {
        self.shelves.name()
    }

    /// The member's value.
    pub fn get(&self, member: impl AsRef<str>) -> Option<Arc<T>> {
        // A typed shelf never moves, and reads do not ask whether the store is open.
        self.shelf.table.get_settled(member.as_ref())
    }

    /// Whether there is such a member.
    pub fn contains(&self, member: impl AsRef<str>) -> bool {
        self.shelf.table.contains(member.as_ref()).unwrap_or_default()
    }

    /// Puts a value in place, and returns the one that was there. The value is encoded later, by the janitor.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidKey`], [`Error::Closed`], and [`Error::Degraded`] when the bytes not yet durable are at their
    /// bound and the disk does not take them. Nothing has changed then, except that in `Immediate` mode the errors of
    /// [`Store::flush`](crate::Store::flush) come after the write.
    pub fn put(&self, member: impl AsRef<str>, value: T) -> Result<Option<Arc<T>>> {
        self.put_shared(member, Arc::new(value))
    }

    /// As [`put`](Self::put), with a value that is shared already.
    ///
    /// # Errors
    ///
    /// As `put`.
    pub fn put_shared(&self, member: impl AsRef<str>, value: Arc<T>) -> Result<Option<Arc<T>>> {
        let member = member.as_ref();
        key::check_member(self.name(), member)?;
        let core = &self.handle.core;
        let engine = self.engine()?;
        core.begin_write(engine)?;
        match self.shelf.table.put_plainly(member, value, self.codec(), &core.lane(engine, &self.shelves)) {
            Ok(old) => {
                core.end_write(engine, self.shelves.one(member))?;
                Ok(old)
            }
            Err(value) => Ok(self.put_how(member, value, How::always(Until::Removed))?.old),
        }
    }

    /// Puts a value in place that expires: when so much time has passed the member is gone from every read. A later put
    /// without a time to live takes the deadline away. Deadlines are kept to the millisecond, as points in time, across
    /// reopening.
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
    /// let sessions = Store::in_memory().collection::<String>("session")?;
    /// sessions.put_with_ttl("abc", "Ada".to_owned(), Duration::from_secs(1800))?;
    /// assert!(sessions.ttl("abc") > Some(Duration::from_secs(1700)));
    /// sessions.put("abc", "Grace".to_owned())?;
    /// assert_eq!(sessions.ttl("abc"), None);
    /// # Ok::<(), larder::Error>(())
    /// ```
    pub fn put_with_ttl(&self, member: impl AsRef<str>, value: T, ttl: Duration) -> Result<Option<Arc<T>>> {
        let member = member.as_ref();
        key::check_member(self.name(), member)?;
        let until = Until::At(self.handle.deadline_after(ttl)?);
        Ok(self.put_how(member, Arc::new(value), How::always(until))?.old)
    }

    /// How long the member has left; `None` if it has no deadline, or is not there.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let store = larder::Store::in_memory();
    /// let sessions = store.collection::<String>("session")?;
    /// sessions.put("a", "Ada".into())?;
    /// assert_eq!(sessions.ttl("a"), None);
    /// sessions.expire("a", Duration::from_secs(60))?;
    /// assert!(sessions.ttl("a") <= Some(Duration::from_secs(60)));
    /// # Ok::<(), larder::Error>(())
    /// ```
    pub fn ttl(&self, member: impl AsRef<str>) -> Option<Duration> {
        let now = self.handle.core.engine()?.clock.now();
        let deadline = self.shelf.table.look(member.as_ref(), |seen| seen.deadline).ok()??;
        deadline.map(|at| Duration::from_millis(at.saturating_sub(now)))
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
    /// let sessions = store.collection::<String>("session")?;
    /// sessions.put("a", "Ada".into())?;
    /// assert!(sessions.expire("a", Duration::ZERO)?);
    /// assert!(!sessions.contains("a"));
    /// # Ok::<(), larder::Error>(())
    /// ```
    pub fn expire(&self, member: impl AsRef<str>, ttl: Duration) -> Result<bool> {
        let until = Until::At(self.handle.deadline_after(ttl)?);
        Ok(self.touch(member.as_ref(), until)?.is_some())
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
    /// let sessions = store.collection::<String>("session")?;
    /// sessions.put_with_ttl("a", "Ada".into(), Duration::from_secs(60))?;
    /// assert!(sessions.persist("a")?);
    /// assert_eq!(sessions.ttl("a"), None);
    /// # Ok::<(), larder::Error>(())
    /// ```
    pub fn persist(&self, member: impl AsRef<str>) -> Result<bool> {
        Ok(self.touch(member.as_ref(), Until::Removed)?.flatten().is_some())
    }

    fn touch(&self, member: &str, until: Until) -> Result<Option<Option<u64>>> {
        key::check_member(self.name(), member)?;
        self.write(self.shelves.one(member), |lane| Ok(self.shelf.touch(member, until, lane)?))
    }

    pub(crate) fn to_put(&self, value: Arc<T>) -> New<Arc<T>> {
        New::put(value, self.codec())
    }

    pub(crate) fn codec(&self) -> u8 {
        self.shelf.form.codec_id.unwrap_or_default()
    }

    pub(crate) fn handle(&self) -> &Arc<Handle> {
        &self.handle
    }

    pub(crate) fn shelves(&self) -> &Arc<Shelves> {
        &self.shelves
    }

    pub(crate) fn shelf(&self) -> &Shelf<Arc<T>> {
        &self.shelf
    }

    /// Deletes a member, and returns the value that was there.
    ///
    /// # Errors
    ///
    /// As [`put`](Self::put).
    pub fn delete(&self, member: impl AsRef<str>) -> Result<Option<Arc<T>>> {
        let member = member.as_ref();
        key::check_member(self.name(), member)?;
        self.write(self.shelves.one(member), |lane| Ok(self.shelf.table.delete(member, Only::Always, lane)?.old))
    }

    /// Deletes all members at one moment, and says how many there were.
    ///
    /// # Errors
    ///
    /// As [`put`](Self::put).
    pub fn delete_all(&self) -> Result<usize> {
        // What is cleared is dropped here, when no lock is held.
        let concern = || Concern::Clear { collection: self.shelves.id };
        Ok(self.write(concern, |lane| Ok(self.shelf.table.clear(lane)?))?.end())
    }

    /// All members with their values, in no particular order. Not a snapshot: a member written meanwhile may be there
    /// in its old form or its new one.
    pub fn get_all(&self) -> Vec<(Member, Arc<T>)> {
        let mut all = Vec::with_capacity(self.len());
        let mut cursor = Some(0);
        while let Some(at) = cursor {
            cursor = self.scan(at, &mut all);
        }
        all
    }

    /// The names of all members, in no particular order.
    pub fn members(&self) -> Vec<Member> {
        let mut names = Vec::with_capacity(self.len());
        let mut cursor = Some(0);
        while let Some(at) = cursor {
            cursor = self.shelf.names(at, &mut names).unwrap_or_default();
        }
        names
    }

    /// How many members there are.
    pub fn len(&self) -> usize {
        self.shelf.table.tally().map_or(0, |(members, _)| members)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Walks the collection without copying it whole: a few thousand members at most are held at a time. A member that
    /// is there from the beginning to the end is met exactly once, in the form that it has when the walk comes to it.
    pub fn iter(&self) -> TypedIter<T> {
        TypedIter { collection: self.clone(), cursor: Some(0), ready: Vec::new() }
    }

    fn scan(&self, cursor: u64, out: &mut Vec<(Member, Arc<T>)>) -> Option<u64> {
        let scanned = self.shelf.table.scan(cursor, |member, value, _| out.push((member.clone(), value.clone())));
        scanned.unwrap_or_default()
    }

    #[inline]
    fn engine(&self) -> Result<&Engine> {
        self.handle.core.engine().ok_or_else(|| Error::NotLoaded { path: self.handle.path() })
    }

    /// Puts a value in place, if the member is as it is to be.
    pub(crate) fn put_how(&self, member: &str, value: Arc<T>, how: How) -> Result<Done<Arc<T>>> {
        key::check_member(self.name(), member)?;
        let mut new = self.to_put(value);
        self.write(self.shelves.one(member), |lane| self.shelf.put_in(self.name(), member, &mut new, how, lane))
    }

    pub(crate) fn write<R>(
        &self,
        concern: impl FnOnce() -> Concern,
        mut f: impl FnMut(&Lane<'_>) -> Result<R, Stop>,
    ) -> Result<R> {
        let core = &self.handle.core;
        let engine = self.engine()?;
        let lane = core.lane(engine, &self.shelves);
        core.write(engine, concern, || f(&lane))
    }
}

impl<T: Send + Sync + 'static> IntoIterator for &Collection<T> {
    type Item = (Member, Arc<T>);
    type IntoIter = TypedIter<T>;

    fn into_iter(self) -> TypedIter<T> {
        self.iter()
    }
}

/// A walk over a typed collection. See [`Collection::iter`].
pub struct TypedIter<T> {
    collection: Collection<T>,
    cursor: Option<u64>,
    ready: Vec<(Member, Arc<T>)>,
}

impl<T> fmt::Debug for TypedIter<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TypedIter").field("ready", &self.ready.len()).finish_non_exhaustive()
    }
}

impl<T: Send + Sync + 'static> Iterator for TypedIter<T> {
    type Item = (Member, Arc<T>);

    fn next(&mut self) -> Option<Self::Item> {
        while self.ready.is_empty() {
            self.cursor = self.collection.scan(self.cursor?, &mut self.ready);
        }
        self.ready.pop()
    }
}

impl<T: Send + Sync + 'static> std::iter::FusedIterator for TypedIter<T> {}
