//! [`View`]: a store that is only looked at.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::backend::Look;
use crate::codec::{Codec, Json};
use crate::error::Result;
use crate::options::Options;
use crate::report::{LoadReport, Stats};
use crate::store::{Iter, Store};
use crate::value::{Member, Value};
use crate::{Collection, Error};

/// A store as it was found on the disk, in RAM: for looking at one that another process, or nobody, has open.
///
/// Made by [`Store::open_read_only`]. It takes no lock and changes nothing on the disk. It shows what the disk held when it
/// was opened, or last [refreshed](Self::refresh): every write that was durable then, and some that were on their way.
///
/// # Examples
///
/// ```
/// use larder::Store;
///
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("music");
/// let store = Store::open(&path)?;
/// store.put("artist/daft_punk", "epic")?;
/// store.flush()?;
///
/// let mut view = Store::open_read_only(&path)?;
/// assert_eq!(view.get("artist/daft_punk")?.unwrap(), "epic");
/// assert_eq!(view.len("artist")?, 1);
/// store.put("artist/daft_punk", "discovery")?;
/// store.flush()?;
/// view.refresh()?;
/// assert_eq!(view.get("artist/daft_punk")?.unwrap(), "discovery");
/// # Ok::<(), larder::Error>(())
/// ```
pub struct View {
    path: PathBuf,
    shown: Store,
    taken: (Instant, SystemTime),
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View").field("path", &self.path).field("age", &self.age()).finish_non_exhaustive()
    }
}

impl Store {
    /// What the store at `path` holds on the disk, to be looked at: beside a process that has it open, too.
    ///
    /// # Errors
    ///
    /// [`Error::NotAStore`] if there is none; [`Error::NewerFormat`]; [`Error::Corrupt`] if what it keeps its members in
    /// cannot be told; [`Error::Io`]; [`Error::Degraded`] if it changes too fast to be read. Damaged members are no error:
    /// they are in [`View::load_report`].
    pub fn open_read_only(path: impl AsRef<Path>) -> Result<View> {
        let look = Look::new(path.as_ref())?;
        let path = look.path().to_owned();
        let (shown, taken) = look_at(&path, look)?;
        Ok(View { path, shown, taken })
    }
}

/// How often it begins again when the store changes while it is read.
const TRIES: usize = 100;

fn look_at(path: &Path, look: Look) -> Result<(Store, (Instant, SystemTime))> {
    let mut look = Some(look);
    let mut last = None;
    for _ in 0..TRIES {
        let taken = (Instant::now(), SystemTime::now());
        let look = look.take().map_or_else(|| Look::new(path), Ok)?;
        let shown = Store::from_options(Options::new(path.to_owned()).backend(look));
        match shown.load() {
            Ok(_) => return Ok((shown, taken)),
            // A segment, or a collection, went while it was read: what it held is in another place by now.
            Err(Error::Io { source, path, action }) if source.kind() == std::io::ErrorKind::NotFound => {
                last = Some(Arc::new(Error::Io { source, path, action }));
            }
            Err(error) => return Err(error),
        }
    }
    let reason = format!("{} changes faster than it can be read", path.display());
    Err(Error::Degraded { reason, source: last })
}

impl View {
    /// Reads the disk again. What was handed out before stays as it is.
    ///
    /// # Errors
    ///
    /// As [`Store::open_read_only`]: the view shows what it showed before.
    pub fn refresh(&mut self) -> Result<()> {
        (self.shown, self.taken) = look_at(&self.path, Look::new(&self.path)?)?;
        Ok(())
    }

    /// How old what it shows is, at most: how long ago it began to read.
    pub fn age(&self) -> Duration {
        self.taken.0.elapsed()
    }

    /// When it began to read what it shows.
    pub fn taken_at(&self) -> SystemTime {
        self.taken.1
    }

    /// The store's directory, resolved.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What was found: also what is damaged, which stays where it is: what it was `moved_to` is where it stands.
    pub fn load_report(&self) -> LoadReport {
        self.shown.load_report()
    }

    /// The store in numbers.
    pub fn stats(&self) -> Stats {
        self.shown.stats()
    }

    /// The value of a member.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidKey`].
    pub fn get(&self, key: impl AsRef<str>) -> Result<Option<Value>> {
        self.shown.get(key)
    }

    /// Whether there is such a member.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidKey`].
    pub fn contains(&self, key: impl AsRef<str>) -> Result<bool> {
        self.shown.contains(key)
    }

    /// All members of a collection with their values, in no particular order.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidKey`].
    pub fn get_all(&self, collection: impl AsRef<str>) -> Result<Vec<(Member, Value)>> {
        self.shown.get_all(collection)
    }

    /// The names of a collection's members.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidKey`].
    pub fn members(&self, collection: impl AsRef<str>) -> Result<Vec<Member>> {
        self.shown.members(collection)
    }

    /// How many members a collection has.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidKey`].
    pub fn len(&self, collection: impl AsRef<str>) -> Result<usize> {
        self.shown.len(collection)
    }

    /// Whether a collection has no members.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidKey`].
    pub fn is_empty(&self, collection: impl AsRef<str>) -> Result<bool> {
        self.shown.is_empty(collection)
    }

    /// The names of the collections that have members.
    pub fn collections(&self) -> Vec<String> {
        self.shown.collections().unwrap_or_default()
    }

    /// Walks a collection in chunks.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidKey`].
    pub fn iter(&self, collection: impl AsRef<str>) -> Result<Iter> {
        self.shown.iter(collection)
    }

    /// A collection's values as a type, stored as JSON, with the names of their members.
    ///
    /// # Errors
    ///
    /// As [`Store::collection`].
    pub fn typed<T>(&self, collection: impl AsRef<str>) -> Result<Vec<(Member, Arc<T>)>>
    where
        T: Serialize + DeserializeOwned + Send + Sync + 'static,
    {
        self.typed_with::<T, Json>(collection)
    }

    /// The same, stored with another codec.
    ///
    /// # Errors
    ///
    /// As [`Store::collection_with`].
    pub fn typed_with<T, C>(&self, collection: impl AsRef<str>) -> Result<Vec<(Member, Arc<T>)>>
    where
        T: Serialize + DeserializeOwned + Send + Sync + 'static,
        C: Codec,
    {
        let collection: Collection<T> = self.shown.collection_with::<T, C>(collection)?;
        Ok(collection.get_all())
    }

    /// Writes every member as a line of JSON: see [`Store::export`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn export(&self, writer: impl std::io::Write) -> Result<u64, Error> {
        self.shown.export(writer)
    }
}
