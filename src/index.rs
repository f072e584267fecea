//! Indexes: a collection's members by something else than their names, and in order.

use std::borrow::Borrow;
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use crate::collection::Collection;
use crate::error::{Error, Result};
use crate::map::{Index as Kept, Named, Place, SortKey};
use crate::shelf::duplicate;
use crate::value::Member;

/// What an index can be by: it becomes bytes that have the same order.
///
/// For strings, integers, `bool`, `char`, bytes, and [`Option`], tuples of two or three, and references of these.
pub trait IndexKey: sealed::Sealed {
    /// Appends it, so that bytes compare as keys do, and no key's bytes begin another's.
    #[doc(hidden)]
    fn write(&self, out: &mut Vec<u8>);
}

mod sealed {
    pub trait Sealed {}
}

/// Text or bytes, whose ends are told by two zeros: a zero within is followed by 255.
fn write_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    for &byte in bytes {
        out.push(byte);
        if byte == 0 {
            out.push(255);
        }
    }
    out.extend([0, 0]);
}

macro_rules! keys {
    ($($key:ty, |$this:ident, $out:ident| $write:expr;)*) => {$(
        impl sealed::Sealed for $key {}
        impl IndexKey for $key {
            fn write(&self, $out: &mut Vec<u8>) {
                let $this = self;
                $write
            }
        }
    )*};
}

keys! {
    str, |this, out| write_bytes(this.as_bytes(), out);
    String, |this, out| write_bytes(this.as_bytes(), out);
    Member, |this, out| write_bytes(this.as_bytes(), out);
    [u8], |this, out| write_bytes(this, out);
    Vec<u8>, |this, out| write_bytes(this, out);
    bool, |this, out| out.push(u8::from(*this));
    char, |this, out| out.extend(u32::from(*this).to_be_bytes());
    (), |_this, _out| ();
}

macro_rules! integers {
    ($($unsigned:ty, $signed:ty;)*) => {$(
        keys! {
            $unsigned, |this, out| out.extend(this.to_be_bytes());
            // The lowest becomes zero.
            $signed, |this, out| out.extend((*this as $unsigned ^ 1 << (<$unsigned>::BITS - 1)).to_be_bytes());
        }
    )*};
}

integers! { u8, i8; u16, i16; u32, i32; u64, i64; u128, i128; usize, isize; }

impl<K: IndexKey + ?Sized> sealed::Sealed for &K {}
impl<K: IndexKey + ?Sized> IndexKey for &K {
    fn write(&self, out: &mut Vec<u8>) {
        (**self).write(out);
    }
}

impl<K: IndexKey> sealed::Sealed for Option<K> {}
impl<K: IndexKey> IndexKey for Option<K> {
    fn write(&self, out: &mut Vec<u8>) {
        out.push(u8::from(self.is_some()));
        if let Some(key) = self {
            key.write(out);
        }
    }
}

impl<A: IndexKey, B: IndexKey> sealed::Sealed for (A, B) {}
impl<A: IndexKey, B: IndexKey> IndexKey for (A, B) {
    fn write(&self, out: &mut Vec<u8>) {
        self.0.write(out);
        self.1.write(out);
    }
}

impl<A: IndexKey, B: IndexKey, C: IndexKey> sealed::Sealed for (A, B, C) {}
impl<A: IndexKey, B: IndexKey, C: IndexKey> IndexKey for (A, B, C) {
    fn write(&self, out: &mut Vec<u8>) {
        self.0.write(out);
        self.1.write(out);
        self.2.write(out);
    }
}

fn sort_key<K: IndexKey + ?Sized>(key: &K) -> SortKey {
    let mut out = Vec::new();
    key.write(&mut out);
    out.into()
}

/// An index of a collection. Made by [`Collection::index_by`], [`unique_index_by`](Collection::unique_index_by) and
/// [`ordered`](Collection::ordered).
///
/// It is kept in RAM, changes together with the members, and lasts until the store is closed. Members come in the order of
/// their keys, and with the same key in the order of their names. A handle: cheap to clone.
pub struct Index<T, K> {
    collection: Collection<T>,
    place: usize,
    _key: PhantomData<fn(&K)>,
}

impl<T, K> Clone for Index<T, K> {
    fn clone(&self) -> Self {
        Index { collection: self.collection.clone(), place: self.place, _key: PhantomData }
    }
}

impl<T: Send + Sync + 'static, K> fmt::Debug for Index<T, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.kept().map(|kept| &*kept.name);
        f.debug_struct("Index").field("collection", &self.collection).field("name", &name).finish()
    }
}

/// Where a page of an index has ended. See [`Index::page`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cursor(Place);

/// What [`Index::page`] gives.
#[derive(Debug, Clone)]
pub struct Page<T> {
    /// The members, in order.
    pub members: Vec<(Member, Arc<T>)>,
    /// Where to go on; `None` at the end. After a full page it may lead to an empty one.
    pub next: Option<Cursor>,
}

impl<T: Send + Sync + 'static> Collection<T> {
    /// Adds an index of the collection by what `key` says of a value. A collection that is not empty is indexed on all cores.
    ///
    /// `key` is called with no lock held, at least once for each value that is put, by whoever puts it; it must say the same
    /// of the same value. It lasts as long as the collection does: one that holds the store keeps it open. Puts cost as much
    /// more as an insertion into a B-tree, under a lock that the whole collection shares.
    ///
    /// # Errors
    ///
    /// [`Error::IndexExists`] if the collection has an index of that name; [`Error::TooManyIndexes`] if it has 16 of them,
    /// counting those that could not be made because of an error or a panic.
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
    /// let artists = Store::in_memory().collection::<Artist>("artist")?;
    /// artists.put("daft_punk", Artist { country: "France".into(), albums: 4 })?;
    /// let by_country = artists.index_by("country", |artist| artist.country.clone())?;
    /// artists.put("bjork", Artist { country: "Iceland".into(), albums: 10 })?;
    /// artists.put("air", Artist { country: "France".into(), albums: 7 })?;
    ///
    /// let french: Vec<_> = by_country.get("France").into_iter().map(|(member, _)| member).collect();
    /// assert_eq!(french, ["air", "daft_punk"]);
    /// let by_albums = artists.index_by("albums", |artist| artist.albums)?;
    /// assert_eq!(by_albums.range(5..).len(), 2);
    /// # Ok::<(), larder::Error>(())
    /// ```
    pub fn index_by<K: IndexKey>(
        &self,
        name: &str,
        key: impl Fn(&T) -> K + Send + Sync + 'static,
    ) -> Result<Index<T, K>> {
        self.add_index(Kept::new(name, false, Box::new(move |_, value: &Arc<T>| sort_key(&key(value)))))
    }

    /// The same, of an index in which a key has one member. A put of a second one is refused. (`None` is a key like others.)
    ///
    /// # Errors
    ///
    /// [`Error::Duplicate`] if two members have the same key already; those of [`index_by`](Self::index_by).
    ///
    /// # Examples
    ///
    /// ```
    /// use larder::{Error, Store};
    ///
    /// let addresses = Store::in_memory().collection::<String>("user")?;
    /// let by_address = addresses.unique_index_by("address", |address| address.to_lowercase())?;
    /// addresses.put("ada", "Ada@example.org".into())?;
    /// let refused = addresses.put("bob", "ada@example.org".into()).unwrap_err();
    /// assert!(matches!(&refused, Error::Duplicate { holder, refused, .. } if holder == "ada" && refused == "bob"));
    /// assert_eq!(by_address.get("ada@example.org")[0].0, "ada");
    /// # Ok::<(), larder::Error>(())
    /// ```
    pub fn unique_index_by<K: IndexKey>(
        &self,
        name: &str,
        key: impl Fn(&T) -> K + Send + Sync + 'static,
    ) -> Result<Index<T, K>> {
        self.add_index(Kept::new(name, true, Box::new(move |_, value: &Arc<T>| sort_key(&key(value)))))
    }

    /// Adds an index of the members by their names, for ranges, prefixes and pages of them. The name of the index is
    /// `"member"`.
    ///
    /// # Errors
    ///
    /// As [`index_by`](Self::index_by).
    ///
    /// # Examples
    ///
    /// ```
    /// let events = larder::Store::in_memory().collection::<u32>("event")?;
    /// let ordered = events.ordered()?;
    /// for day in 1..=31 {
    ///     events.put(format!("2026-10-{day:02}"), day)?;
    /// }
    /// assert_eq!(ordered.prefix("2026-10-1").len(), 10);
    /// let page = ordered.page("2026-10-05".., None, 3);
    /// assert_eq!(page.members[0].0, "2026-10-05");
    /// let page = ordered.page("2026-10-05".., page.next.as_ref(), 3);
    /// assert_eq!(page.members[0].0, "2026-10-08");
    /// # Ok::<(), larder::Error>(())
    /// ```
    pub fn ordered(&self) -> Result<Index<T, String>> {
        self.add_index(Kept::new("member", false, Box::new(|member, _| sort_key(member))))
    }

    fn add_index<K>(&self, index: Kept<Arc<T>>) -> Result<Index<T, K>> {
        let table = &self.shelf().table;
        let name = index.name.clone();
        let exists = |name: &str| {
            let (collection, index) = (self.name().to_owned(), name.to_owned());
            Error::IndexExists { collection, index }
        };
        if table.index_named(&name).is_some() {
            return Err(exists(&name));
        }
        match table.add_index(index) {
            Ok(place) => Ok(Index { collection: self.clone(), place, _key: PhantomData }),
            Err(Some(two)) => Err(duplicate(self.shelves().name(), Some(two))),
            Err(None) if table.index_named(&name).is_some() => Err(exists(&name)),
            Err(None) => Err(Error::TooManyIndexes { collection: self.name().to_owned() }),
        }
    }
}

impl<T: Send + Sync + 'static, K> Index<T, K> {
    fn kept(&self) -> Option<&Kept<Arc<T>>> {
        self.collection.shelf().table.index_at(self.place)
    }

    /// Whether it is of this collection, and its place there.
    pub(crate) fn place_in(&self, collection: &Collection<T>) -> Option<usize> {
        Arc::ptr_eq(self.collection.shelves(), collection.shelves()).then_some(self.place)
    }

    fn find(&self, from: Bound<Place>, to: impl Fn(&[u8]) -> bool, limit: usize) -> Vec<(Place, Arc<T>)> {
        self.find_at(|| self.collection.shelf().table.reached(), from, to, limit)
    }

    /// As it is at a time, as far as members expire.
    pub(crate) fn find_at(
        &self,
        time: impl FnOnce() -> u64,
        from: Bound<Place>,
        to: impl Fn(&[u8]) -> bool,
        limit: usize,
    ) -> Vec<(Place, Arc<T>)> {
        self.kept().map(|kept| kept.range(from.as_ref(), to, limit, time)).unwrap_or_default()
    }
}

impl<T: Send + Sync + 'static, K: IndexKey> Index<T, K> {
    /// The members that have this key, in the order of their names.
    ///
    /// # Examples
    ///
    /// ```
    /// let words = larder::Store::in_memory().collection::<String>("word")?;
    /// let by_word = words.index_by("word", |word| word.clone())?;
    /// for (member, word) in [("1", "beta"), ("2", "alpha"), ("3", "beta")] {
    ///     words.put(member, word.to_owned())?;
    /// }
    ///
    /// assert_eq!(by_word.get("beta").len(), 2);
    /// assert!(by_word.get("bet").is_empty());
    /// # Ok::<(), larder::Error>(())
    /// ```
    pub fn get<Q: IndexKey + ?Sized>(&self, key: &Q) -> Vec<(Member, Arc<T>)>
    where
        K: Borrow<Q>,
    {
        let key = sort_key(key);
        let from = Bound::Included((key.clone(), Member::from("")));
        named(self.find(from, |found| *found == *key, usize::MAX))
    }

    /// All members, in order, as they are at one moment.
    ///
    /// # Examples
    ///
    /// ```
    /// let words = larder::Store::in_memory().collection::<String>("word")?;
    /// let by_word = words.index_by("word", |word| word.clone())?;
    /// for (member, word) in [("1", "beta"), ("2", "alpha"), ("3", "beta")] {
    ///     words.put(member, word.to_owned())?;
    /// }
    ///
    /// let all: Vec<_> = by_word.all().into_iter().map(|(member, _)| member).collect();
    /// assert_eq!(all, ["2", "1", "3"]);
    /// # Ok::<(), larder::Error>(())
    /// ```
    pub fn all(&self) -> Vec<(Member, Arc<T>)> {
        named(self.find(Bound::Unbounded, |_| true, usize::MAX))
    }

    /// The members whose keys are in the range, in order, as they are at one moment.
    ///
    /// # Examples
    ///
    /// ```
    /// let ages = larder::Store::in_memory().collection::<u8>("age")?;
    /// let by_age = ages.index_by("age", |age| *age)?;
    /// for (member, age) in [("ada", 36), ("bob", 7), ("eve", 18)] {
    ///     ages.put(member, age)?;
    /// }
    /// let adults: Vec<_> = by_age.range(18..).into_iter().map(|(member, _)| member).collect();
    /// assert_eq!(adults, ["eve", "ada"]);
    /// # Ok::<(), larder::Error>(())
    /// ```
    pub fn range<Q: IndexKey>(&self, range: impl RangeBounds<Q>) -> Vec<(Member, Arc<T>)>
    where
        K: Comparable<Q>,
    {
        let (from, to) = bounds(&range);
        named(self.find(from, to, usize::MAX))
    }

    /// So many members of a range at most, in order, from where another page has ended. What is put or deleted in between
    /// moves nothing: a member that is there all the time, with the same key, comes once.
    ///
    /// # Examples
    ///
    /// ```
    /// let words = larder::Store::in_memory().collection::<String>("word")?;
    /// let by_word = words.index_by("word", |word| word.clone())?;
    /// for (member, word) in [("1", "beta"), ("2", "alpha"), ("3", "beta")] {
    ///     words.put(member, word.to_owned())?;
    /// }
    ///
    /// let first = by_word.page::<&str>(.., None, 2);
    /// assert_eq!((&first.members[0].0, &first.members[1].0), (&"2".into(), &"1".into()));
    /// words.delete("1")?;
    /// let second = by_word.page::<&str>(.., first.next.as_ref(), 2);
    /// assert_eq!((second.members.len(), &second.members[0].0), (1, &"3".into()));
    /// assert!(second.next.is_none());
    /// # Ok::<(), larder::Error>(())
    /// ```
    pub fn page<Q: IndexKey>(&self, range: impl RangeBounds<Q>, after: Option<&Cursor>, limit: usize) -> Page<T>
    where
        K: Comparable<Q>,
    {
        let (from, to) = bounds(&range);
        let from = match after {
            Some(Cursor(place)) if is_before(&from, place) => Bound::Excluded(place.clone()),
            _ => from,
        };
        let found = self.find(from, to, limit);
        let next = found.last().filter(|_| found.len() == limit).map(|(place, _)| Cursor(place.clone()));
        Page { members: named(found), next }
    }

    /// How many members have this key.
    ///
    /// # Examples
    ///
    /// ```
    /// let words = larder::Store::in_memory().collection::<String>("word")?;
    /// let by_word = words.index_by("word", |word| word.clone())?;
    /// for (member, word) in [("1", "beta"), ("2", "alpha"), ("3", "beta")] {
    ///     words.put(member, word.to_owned())?;
    /// }
    ///
    /// assert_eq!((by_word.count("beta"), by_word.count("gamma")), (2, 0));
    /// # Ok::<(), larder::Error>(())
    /// ```
    pub fn count<Q: IndexKey + ?Sized>(&self, key: &Q) -> usize
    where
        K: Borrow<Q>,
    {
        self.get(key).len()
    }
}

impl<T: Send + Sync + 'static> Index<T, String> {
    /// The members whose keys begin with this, in order.
    ///
    /// # Examples
    ///
    /// ```
    /// let words = larder::Store::in_memory().collection::<String>("word")?;
    /// let by_word = words.index_by("word", |word| word.clone())?;
    /// for (member, word) in [("1", "beta"), ("2", "alpha"), ("3", "beta")] {
    ///     words.put(member, word.to_owned())?;
    /// }
    ///
    /// assert_eq!(by_word.prefix("al").len(), 1);
    /// assert_eq!(by_word.prefix("").len(), 3);
    /// # Ok::<(), larder::Error>(())
    /// ```
    pub fn prefix(&self, prefix: &str) -> Vec<(Member, Arc<T>)> {
        let mut start = sort_key(prefix).into_vec();
        start.truncate(start.len() - 2);
        let from = Bound::Included((start.clone().into(), Member::from("")));
        named(self.find(from, |found| found.starts_with(&start), usize::MAX))
    }
}

/// Keys that compare with the keys of an index.
pub trait Comparable<Q>: sealed::Sealed {}

impl<K: IndexKey> Comparable<K> for K {}
impl Comparable<&str> for String {}
impl Comparable<&[u8]> for Vec<u8> {}

fn named<T>(found: Vec<(Place, Arc<T>)>) -> Vec<(Member, Arc<T>)> {
    found.into_iter().map(|((_, member), value)| (member, value)).collect()
}

/// Where a range begins, and whether a key is before its end.
pub(crate) fn bounds<Q: IndexKey>(range: &impl RangeBounds<Q>) -> (Bound<Place>, impl Fn(&[u8]) -> bool) {
    let from = match range.start_bound() {
        Bound::Unbounded => Bound::Unbounded,
        Bound::Included(key) => Bound::Included((sort_key(key), Member::from(""))),
        // After every member that has the key: no key's bytes begin another's.
        Bound::Excluded(key) => {
            let mut after = sort_key(key).into_vec();
            after.push(0);
            Bound::Included((after.into(), Member::from("")))
        }
    };
    let to = match range.end_bound() {
        Bound::Unbounded => Bound::Unbounded,
        Bound::Included(key) => Bound::Included(sort_key(key)),
        Bound::Excluded(key) => Bound::Excluded(sort_key(key)),
    };
    let is_within = move |found: &[u8]| match &to {
        Bound::Unbounded => true,
        Bound::Included(to) => *found <= **to,
        Bound::Excluded(to) => *found < **to,
    };
    (from, is_within)
}

/// Whether a range that begins there has begun before this place.
fn is_before(from: &Bound<Place>, place: &Place) -> bool {
    match from {
        Bound::Unbounded => true,
        Bound::Included(from) | Bound::Excluded(from) => from <= place,
    }
}
