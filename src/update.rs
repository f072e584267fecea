//! Atomic change of one member: what is put depends on what is there, and nothing comes between.

use std::sync::Arc;

use crate::codec::RAW;
use crate::collection::Collection;
use crate::error::{Error, Result};
use crate::key;
use crate::map::{Act, Done, How, New, Only, Refused, Seen, Until};
use crate::shelf::Stop;
use crate::store::Store;
use crate::value::Value;

/// Types that [`Collection::increment`] counts in: the integers of Rust.
pub trait Integer: sealed::Sealed + Copy + Send + Sync + 'static {
    #[doc(hidden)]
    fn plus(self, by: Self) -> Option<Self>;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! integers {
    ($($integer:ty)*) => {$(
        impl sealed::Sealed for $integer {}
        impl Integer for $integer {
            fn plus(self, by: Self) -> Option<Self> {
                self.checked_add(by)
            }
        }
    )*};
}

integers!(u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize);

/// Changes of one member that depend on what is there.
impl<T: Send + Sync + 'static> Collection<T> {
    /// Changes a member to what `change` makes of it, and returns what it is now. `None` deletes it. A deadline stays.
    ///
    /// If somebody else writes the member meanwhile, `change` is called again with what is there by then. No lock is held
    /// while it runs, so it may use the store; if it panics nothing has changed.
    ///
    /// # Errors
    ///
    /// As [`put`](Self::put).
    ///
    /// # Examples
    ///
    /// ```
    /// # let store = larder::Store::in_memory();
    /// let lists = store.collection::<Vec<u32>>("list")?;
    /// for number in 1..=3 {
    ///     lists.update("primes", |list| {
    ///         let mut list = list.cloned().unwrap_or_default();
    ///         list.push(number);
    ///         Some(list)
    ///     })?;
    /// }
    /// assert_eq!(*lists.get("primes").unwrap(), [1, 2, 3]);
    /// # Ok::<(), larder::Error>(())
    /// ```
    pub fn update(
        &self,
        member: impl AsRef<str>,
        mut change: impl FnMut(Option<&T>) -> Option<T>,
    ) -> Result<Option<Arc<T>>> {
        let member = member.as_ref();
        loop {
            let seen = self.get_versioned(member);
            let (old, version) = seen.map_or((None, 0), |(value, version)| (Some(value), version));
            let new = change(old.as_deref()).map(Arc::new);
            if new.is_none() && old.is_none() {
                key::check_member(self.name(), member)?;
                return Ok(None);
            }
            let done = match &new {
                Some(new) => self.put_how(member, new.clone(), How::kept(version))?,
                None => self.delete_only(member, Only::Version(version))?,
            };
            if done.version > 0 {
                return Ok(new);
            }
        }
    }

    /// Puts a value in place if there is none. Otherwise nothing changes, and what is there is returned.
    ///
    /// # Errors
    ///
    /// As [`put`](Self::put).
    ///
    /// # Examples
    ///
    /// ```
    /// let store = larder::Store::in_memory();
    /// let names = store.collection::<String>("name")?;
    /// assert_eq!(names.put_if_absent("a", "Ada".into())?, None);
    /// assert_eq!(*names.put_if_absent("a", "Bob".into())?.unwrap(), "Ada");
    /// # Ok::<(), larder::Error>(())
    /// ```
    pub fn put_if_absent(&self, member: impl AsRef<str>, value: T) -> Result<Option<Arc<T>>> {
        let (member, value) = (member.as_ref(), Arc::new(value));
        loop {
            let done = self.put_how(member, value.clone(), How::only(0))?;
            match self.get(member) {
                _ if done.version > 0 => return Ok(None),
                Some(there) => return Ok(Some(there)),
                // It has gone in between.
                None => {}
            }
        }
    }

    /// The member's value, and the version that [`compare_and_put`](Self::compare_and_put) compares. Every change of a
    /// member, and of its deadline, gives it a higher one, across reopening, too. After a crash that took the last writes
    /// their numbers may be given again: a version that is kept elsewhere should be one that was durable.
    ///
    /// # Examples
    ///
    /// ```
    /// let store = larder::Store::in_memory();
    /// let names = store.collection::<String>("name")?;
    /// names.put("a", "Ada".into())?;
    /// let (_, first) = names.get_versioned("a").unwrap();
    /// names.put("a", "Bob".into())?;
    /// assert!(names.get_versioned("a").unwrap().1 > first);
    /// # Ok::<(), larder::Error>(())
    /// ```
    pub fn get_versioned(&self, member: impl AsRef<str>) -> Option<(Arc<T>, u64)> {
        self.shelf().table.look(member.as_ref(), |seen| (seen.value.clone(), seen.version)).ok()?
    }

    /// Puts a value in place if the member has this version still; 0 stands for no member. Returns the new version, or
    /// `None` if nothing has changed because the version is another.
    ///
    /// # Errors
    ///
    /// As [`put`](Self::put).
    ///
    /// # Examples
    ///
    /// ```
    /// # let store = larder::Store::in_memory();
    /// let pages = store.collection::<String>("page")?;
    /// let first = pages.compare_and_put("home", 0, "draft".to_owned())?.expect("there was none");
    /// let (text, version) = pages.get_versioned("home").unwrap();
    /// assert_eq!((text.as_str(), version), ("draft", first));
    /// pages.put("home", "somebody else's".to_owned())?;
    /// assert_eq!(pages.compare_and_put("home", version, "mine".to_owned())?, None);
    /// # Ok::<(), larder::Error>(())
    /// ```
    pub fn compare_and_put(&self, member: impl AsRef<str>, version: u64, value: T) -> Result<Option<u64>> {
        let done = self.put_how(member.as_ref(), Arc::new(value), How::only(version))?;
        Ok((done.version > 0).then_some(done.version))
    }

    /// Removes a member and hands it out: of any number of callers one gets it.
    ///
    /// # Errors
    ///
    /// As [`put`](Self::put).
    ///
    /// # Examples
    ///
    /// ```
    /// let store = larder::Store::in_memory();
    /// let jobs = store.collection::<String>("job")?;
    /// jobs.put("1", "paint".into())?;
    /// assert_eq!(*jobs.take("1")?.unwrap(), "paint");
    /// assert_eq!(jobs.take("1")?, None);
    /// # Ok::<(), larder::Error>(())
    /// ```
    pub fn take(&self, member: impl AsRef<str>) -> Result<Option<Arc<T>>> {
        self.delete(member)
    }

    fn delete_only(&self, member: &str, only: Only) -> Result<Done<Arc<T>>> {
        key::check_member(self.name(), member)?;
        self.write(self.shelves().one(member), |lane| Ok(self.shelf().table.delete(member, only, lane)?))
    }
}

/// Counters.
impl<T: Integer> Collection<T> {
    /// Adds to a member, and returns the sum. A member that is not there counts as 0; a deadline stays. It never loops,
    /// however many count at the same time, unless the collection has an index.
    ///
    /// # Errors
    ///
    /// [`Error::Overflow`] if the sum is none of the type's; as [`put`](Self::put).
    ///
    /// # Examples
    ///
    /// ```
    /// # let store = larder::Store::in_memory();
    /// let hits = store.collection::<u64>("hits")?;
    /// assert_eq!(hits.increment("home", 5)?, 5);
    /// assert_eq!(hits.increment("home", 1)?, 6);
    /// # Ok::<(), larder::Error>(())
    /// ```
    pub fn increment(&self, member: impl AsRef<str>, by: T) -> Result<T> {
        let member = member.as_ref();
        key::check_member(self.name(), member)?;
        let mut new = New::nothing(self.codec());
        let overflow = || Error::Overflow { key: key::join(self.name(), member) };
        if self.shelf().table.index_at(0).is_some() {
            return self.increment_indexed(member, by, overflow);
        }
        let sum = self.write(self.shelves().one(member), |lane| {
            let mut sum = None;
            let done = self.shelf().table.change(member, &mut new, lane, |seen: Option<Seen<'_, Arc<T>>>, value| {
                sum = seen.map_or(Some(by), |seen| seen.value.plus(by));
                *value = sum.map(Arc::new);
                if sum.is_some() { Act::Put(Until::Kept) } else { Act::Leave }
            });
            match done {
                Ok(_) => Ok(Some(sum.ok_or_else(overflow)?)),
                // The sums are in an index, whose keys the caller's code makes: that cannot be done under a lock.
                Err(Refused::Stale) => Ok(None),
                Err(refused) => Err(Stop::from(refused)),
            }
        })?;
        match sum {
            Some(sum) => Ok(sum),
            None => self.increment_indexed(member, by, overflow),
        }
    }

    fn increment_indexed(&self, member: &str, by: T, overflow: impl Fn() -> Error) -> Result<T> {
        loop {
            let seen = self.get_versioned(member);
            let (old, version) = seen.map_or((None, 0), |(value, version)| (Some(value), version));
            let sum = old.map_or(Some(by), |old| old.plus(by)).ok_or_else(&overflow)?;
            if self.put_how(member, Arc::new(sum), How::kept(version))?.version > 0 {
                return Ok(sum);
            }
        }
    }
}

/// By key: changes of one member that depend on what is there.
impl Store {
    /// Changes a member to what `change` makes of it, and returns what it is now. `None` deletes it. A deadline stays.
    ///
    /// If somebody else writes the member meanwhile, `change` is called again with what is there by then. No lock is held
    /// while it runs, so it may use the store; if it panics nothing has changed.
    ///
    /// # Errors
    ///
    /// As [`put`](Self::put).
    ///
    /// # Examples
    ///
    /// ```
    /// let store = larder::Store::in_memory();
    /// store.put("count/home", "1")?;
    /// let now = store.update("count/home", |old| {
    ///     let old: u32 = old.and_then(|old| std::str::from_utf8(old).ok()?.parse().ok()).unwrap_or(0);
    ///     Some((old + 1).to_string())
    /// })?;
    /// assert_eq!(now.unwrap(), "2");
    /// # Ok::<(), larder::Error>(())
    /// ```
    pub fn update<B: Into<Value>>(
        &self,
        key: impl AsRef<str>,
        mut change: impl FnMut(Option<&Value>) -> Option<B>,
    ) -> Result<Option<Value>> {
        let key = key.as_ref();
        loop {
            let seen = self.get_versioned(key)?;
            let (old, version) = seen.map_or((None, 0), |(value, version)| (Some(value), version));
            let new: Option<Value> = change(old.as_ref()).map(Into::into);
            if new.is_none() && old.is_none() {
                return Ok(None);
            }
            let done = match &new {
                Some(new) => self.put_how(key, RAW, How::kept(version), new.clone())?,
                None => self.delete_only(key, Only::Version(version))?,
            };
            if done.version > 0 {
                return Ok(new);
            }
        }
    }

    /// Puts a value in place if there is none. Otherwise nothing changes, and what is there is returned.
    ///
    /// # Errors
    ///
    /// As [`put`](Self::put).
    ///
    /// # Examples
    ///
    /// ```
    /// let store = larder::Store::in_memory();
    /// assert_eq!(store.put_if_absent("name/a", "Ada")?, None);
    /// assert_eq!(store.put_if_absent("name/a", "Bob")?.unwrap(), "Ada");
    /// # Ok::<(), larder::Error>(())
    /// ```
    pub fn put_if_absent(&self, key: impl AsRef<str>, value: impl Into<Value>) -> Result<Option<Value>> {
        let (key, value) = (key.as_ref(), value.into());
        loop {
            if self.put_how(key, RAW, How::only(0), value.clone())?.version > 0 {
                return Ok(None);
            }
            // Otherwise it has gone in between.
            if let Some(there) = self.get(key)? {
                return Ok(Some(there));
            }
        }
    }

    /// The member's value, and the version that [`compare_and_put`](Self::compare_and_put) compares. Every change of a
    /// member, and of its deadline, gives it a higher one.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    ///
    /// # Examples
    ///
    /// ```
    /// let store = larder::Store::in_memory();
    /// store.put("name/a", "Ada")?;
    /// let (value, first) = store.get_versioned("name/a")?.unwrap();
    /// assert_eq!(value, "Ada");
    /// store.put("name/a", "Ada")?;
    /// assert!(store.get_versioned("name/a")?.unwrap().1 > first);
    /// # Ok::<(), larder::Error>(())
    /// ```
    pub fn get_versioned(&self, key: impl AsRef<str>) -> Result<Option<(Value, u64)>> {
        let (collection, member) = key::split(key.as_ref())?;
        self.read_collection(collection, |shelf| shelf.get_versioned(collection, member))
    }

    /// Puts a value in place if the member has this version still; 0 stands for no member. Returns the new version, or
    /// `None` if nothing has changed because the version is another.
    ///
    /// # Errors
    ///
    /// As [`put`](Self::put).
    ///
    /// # Examples
    ///
    /// ```
    /// # let store = larder::Store::in_memory();
    /// store.put("page/home", "draft")?;
    /// let (_, version) = store.get_versioned("page/home")?.unwrap();
    /// assert!(store.compare_and_put("page/home", version, "final")? > Some(version));
    /// assert_eq!(store.compare_and_put("page/home", version, "too late")?, None);
    /// # Ok::<(), larder::Error>(())
    /// ```
    pub fn compare_and_put(&self, key: impl AsRef<str>, version: u64, value: impl Into<Value>) -> Result<Option<u64>> {
        let done = self.put_how(key.as_ref(), RAW, How::only(version), value.into())?;
        Ok((done.version > 0).then_some(done.version))
    }

    /// Removes a member and hands it out: of any number of callers one gets it.
    ///
    /// # Errors
    ///
    /// As [`put`](Self::put).
    ///
    /// # Examples
    ///
    /// ```
    /// let store = larder::Store::in_memory();
    /// store.put("job/1", "paint")?;
    /// assert_eq!(store.take("job/1")?.unwrap(), "paint");
    /// assert_eq!(store.take("job/1")?, None);
    /// # Ok::<(), larder::Error>(())
    /// ```
    pub fn take(&self, key: impl AsRef<str>) -> Result<Option<Value>> {
        self.delete(key)
    }

    fn delete_only(&self, key: &str, only: Only) -> Result<Done<Value>> {
        let (collection, member) = key::split(key)?;
        let core = self.core();
        let engine = core.open()?;
        let Some(shelves) = engine.registry.get(collection) else { return Ok(Done::nothing()) };
        let lane = core.lane(engine, shelves);
        core.write(engine, shelves.one(member), || shelves.current().delete(collection, member, only, &lane))
    }
}
