//! What stands behind the map: the [`Backend`] trait, and the backends that come with the crate.
//!
//! A backend does four things: [`load`](Backend::load) gives the store everything it holds, [`apply`](Backend::apply) takes a
//! batch of changes, [`sync`](Backend::sync) makes what was applied durable, and [`close`](Backend::close) ends.
//! All four are called from one thread at a time, the caller's for `load` and the janitor's from then on, so a backend
//! needs no locks of its own.
//!
//! # Writing one
//!
//! The rules, all of them:
//!
//! 1. **`load`** calls [`Loader::put`] once for each member, from as many threads as it likes, and returns the highest
//!    number that it knows to be used up: what the last `close` was given, or the version of a later change, deletes
//!    included. (The versions of the members themselves count anyway.) What cannot be read is put aside, never thrown
//!    away, and reported with [`Loader::quarantined`]; so is a member that `Loader::put` refuses. An error makes the whole
//!    load fail, and it may be tried again on the same backend. Where two processes could open the same place, it is
//!    `load` that keeps the second out, with [`Error::Locked`].
//! 2. **`apply`** takes a batch that holds at most one put or delete for each member, and at most one clear for each
//!    collection. Clears come first. A clear removes the members of its collection whose version is *lower* than its
//!    own. A delete of a member that is not there is not an error. A put or delete replaces whatever is there.
//! 3. **Atomicity is per change.** After a crash each member must hold the old value or the new one, whole. Nothing is
//!    asked about order between members.
//! 4. **Errors.** `apply` returns [`Rejected::all`] (or just `?`) when the batch failed, and [`Rejected::some`] when
//!    certain changes did. What was rejected is offered again, later, with newer values if there are any; offering
//!    the same change twice must do no harm. What was applied before, and not synced yet, is not offered again for it.
//! 5. **`sync`** returns when everything applied before is durable. When it fails, everything applied since the last
//!    success is offered again: never report success for what an earlier, failed sync lost.
//! 6. **The end.** `close` is called when all is synced; then, or without it when the store ends in trouble, the backend is
//!    dropped, on the janitor's thread.
//! 7. **Transactions** come through [`apply_transaction`](Backend::apply_transaction), one at a time, before the batch that holds
//!    what was written after them; the batch may hold a clear with a lower version than theirs. After a crash all of one must
//!    be there, or none, and a later one not without those before it. One that is rejected is offered again as it is, and
//!    nothing is stored past it: reject one only for what will pass.
//! 8. Nothing that a backend does may call the store: it would wait for itself.
//!
//! A panic in a backend is caught, and makes every later write an error.
//!
//! # Examples
//!
//! A backend that keeps everything in one JSON file. (`examples/backend.rs` has one that is of use: a log.)
//!
//! ```
//! use std::collections::BTreeMap;
//! use std::path::PathBuf;
//! use larder::backend::{Backend, Change, Loader, Rejected};
//! use larder::{Error, Result, Store};
//!
//! #[derive(Default, serde::Serialize, serde::Deserialize)]
//! struct Content {
//!     /// The highest number used up.
//!     counter: u64,
//!     /// By key: version, deadline, codec, bytes.
//!     members: BTreeMap<String, (u64, Option<u64>, String, Vec<u8>)>,
//! }
//!
//! struct OneFile {
//!     path: PathBuf,
//!     content: Content,
//! }
//!
//! impl Backend for OneFile {
//!     fn load(&mut self, loader: &Loader<'_>) -> Result<u64> {
//!         let text = match std::fs::read(&self.path) {
//!             Ok(text) => text,
//!             Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
//!             Err(error) => return Err(Error::io("read", &self.path, error)),
//!         };
//!         self.content = serde_json::from_slice(&text).map_err(|error| Error::backend("parse the file", error))?;
//!         for (key, (version, deadline, codec, bytes)) in &self.content.members {
//!             let (collection, member) = key.split_once('/').unwrap_or((key, ""));
//!             loader.put(collection, member, *version, *deadline, codec, bytes)?;
//!         }
//!         Ok(self.content.counter)
//!     }
//!
//!     fn apply(&mut self, batch: &[Change<'_>]) -> Result<(), Rejected> {
//!         let members = &mut self.content.members;
//!         for change in batch {
//!             match *change {
//!                 Change::Put { collection, member, version, deadline, codec, value } => {
//!                     let key = format!("{collection}/{member}");
//!                     members.insert(key, (version, deadline, codec.to_owned(), value.to_vec()));
//!                 }
//!                 Change::Delete { collection, member, .. } => {
//!                     members.remove(&format!("{collection}/{member}"));
//!                 }
//!                 Change::Clear { collection, version } => {
//!                     let start = format!("{collection}/");
//!                     members.retain(|key, value| !key.starts_with(&start) || value.0 >= version);
//!                 }
//!                 _ => return Err(Error::backend("apply", "a change of a kind that it does not know").into()),
//!             }
//!             self.content.counter = self.content.counter.max(change.version());
//!         }
//!         Ok(())
//!     }
//!
//!     fn sync(&mut self) -> Result<()> {
//!         let text = serde_json::to_vec(&self.content).map_err(|error| Error::backend("encode the file", error))?;
//!         let temporary = self.path.with_extension("new");
//!         std::fs::write(&temporary, text).map_err(|error| Error::io("write", &temporary, error))?;
//!         let file = std::fs::File::open(&temporary).map_err(|error| Error::io("open", &temporary, error))?;
//!         file.sync_all().map_err(|error| Error::io("sync", &temporary, error))?;
//!         std::fs::rename(&temporary, &self.path).map_err(|error| Error::io("replace", &self.path, error))
//!         // One that must survive a power cut syncs the directory here, too.
//!     }
//!
//!     fn close(&mut self, counter: u64) -> Result<()> {
//!         self.content.counter = counter;
//!         self.sync()
//!     }
//! }
//!
//! # let dir = tempfile::tempdir().unwrap();
//! # let path = dir.path().join("one.json");
//! let backend = || OneFile { path: path.clone(), content: Content::default() };
//! let store = Store::options(&path).backend(backend()).open()?;
//! store.put("artist/daft_punk", "epic")?;
//! store.close()?;
//! let store = Store::options(&path).backend(backend()).open()?;
//! assert_eq!(store.get("artist/daft_punk")?.unwrap(), "epic");
//! # Ok::<(), larder::Error>(())
//! ```

pub(crate) mod backup;
mod check;
mod convert;
pub(crate) mod files;
mod front;
mod look;
mod memory;
mod names;
mod packed;
mod writer;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use check::{CheckReport, Problem, RepairReport, Restored, Severity, check, repair};
#[cfg(test)]
pub(crate) use check::{check_on, repair_on};
pub use convert::convert;
#[cfg(test)]
pub(crate) use convert::convert_on;
pub use files::Files;
pub(crate) use look::Look;
pub use memory::Memory;
pub use packed::Packed;

use crate::background::{Background, Population};
use crate::error::{Error, Result};
use crate::fs::{Fs, Native};

/// Where changes come to rest. See the [module's page](self) for the rules.
///
/// The trait is unstable until a database has been built on it: a minor version may add to it.
pub trait Backend: Send {
    /// Gives `loader` everything that is stored, and returns the highest number that is known to be used up.
    ///
    /// # Errors
    ///
    /// When it cannot be known what is stored. A damaged member is no error: put it aside and report it.
    fn load(&mut self, loader: &Loader<'_>) -> Result<u64>;

    /// Takes a batch of changes.
    ///
    /// # Errors
    ///
    /// Says which changes, or that all, were not applied. They are offered again.
    fn apply(&mut self, batch: &[Change<'_>]) -> Result<(), Rejected>;

    /// Takes the changes of one transaction: after a crash all of them must be there, or none. The provided one applies
    /// them as a batch, and so promises no more than [`apply`](Self::apply) does.
    ///
    /// # Errors
    ///
    /// When not all were applied. They are offered again, all of them.
    fn apply_transaction(&mut self, changes: &[Change<'_>]) -> Result<()> {
        match self.apply(changes) {
            Ok(()) => Ok(()),
            Err(rejected) => Err(rejected.into_error()),
        }
    }

    /// Makes everything applied so far durable.
    ///
    /// # Errors
    ///
    /// When it may not be. Everything applied since the last success is offered again.
    fn sync(&mut self) -> Result<()>;

    /// Does what has to be done before an end and can take long; [`close`](Self::close) follows, and should be quick. Whoever
    /// waits for the end may give up meanwhile: the store goes on then as if nobody had asked. The provided one does
    /// nothing.
    ///
    /// # Errors
    ///
    /// When the end cannot come now. The store stays open.
    fn settle(&mut self) -> Result<()> {
        Ok(())
    }

    /// Makes what is stored as small as it gets, in the background, and calls `done` in the end. The provided one has
    /// nothing to do. Everything is applied and synced.
    fn compact(&mut self, done: Box<dyn FnOnce(Result<()>) + Send>) {
        done(Ok(()));
    }

    /// Ends: everything is applied and synced. `counter` is to be returned by the next `load`.
    ///
    /// # Errors
    ///
    /// When the end cannot be made durable. The store stays open then, and `close` may be called again.
    fn close(&mut self, counter: u64) -> Result<()>;

    /// Puts a copy of a member aside, durably, and says where. It is called when a collection is opened as a type
    /// with [`Options::quarantine_undecodable`](crate::Options::quarantine_undecodable), before the member is deleted.
    ///
    /// # Errors
    ///
    /// The provided one always: nothing is deleted then.
    fn quarantine(&mut self, member: &Change<'_>, reason: &str) -> Result<PathBuf> {
        let _ = (member, reason);
        Err(Error::backend("quarantine a member", "this backend has no quarantine"))
    }

    /// Whether anything is stored at all. A store on a backend that says no is never dirty and has no janitor.
    fn persists(&self) -> bool {
        true
    }
}

/// One change of what is stored.
///
/// Versions come from one counter of the store: a member's later change has the higher one. The changes of a transaction share
/// one.
/// Kinds may be added: a backend refuses one that it does not know.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change<'a> {
    /// The member has this value now.
    Put {
        /// The collection.
        collection: &'a str,
        /// The member.
        member: &'a str,
        /// The write's number.
        version: u64,
        /// When the member expires, in milliseconds since 1970.
        deadline: Option<u64>,
        /// The name of the codec that wrote `value`; `raw` for bytes put by key.
        codec: &'a str,
        /// The value, encoded.
        value: &'a [u8],
    },
    /// The member is gone.
    Delete {
        /// The collection.
        collection: &'a str,
        /// The member.
        member: &'a str,
        /// The write's number.
        version: u64,
    },
    /// The member's value stays, and its deadline is this now. (The store sends the whole value instead.)
    Deadline {
        /// The collection.
        collection: &'a str,
        /// The member.
        member: &'a str,
        /// The write's number.
        version: u64,
        /// When the member expires, in milliseconds since 1970.
        deadline: Option<u64>,
    },
    /// Every member of the collection with a lower version is gone.
    Clear {
        /// The collection.
        collection: &'a str,
        /// The write's number.
        version: u64,
    },
}

impl Change<'_> {
    /// The write's number.
    pub fn version(&self) -> u64 {
        match *self {
            Change::Put { version, .. }
            | Change::Delete { version, .. }
            | Change::Deadline { version, .. }
            | Change::Clear { version, .. } => version,
        }
    }

    pub(crate) fn collection(&self) -> &str {
        match *self {
            Change::Put { collection, .. }
            | Change::Delete { collection, .. }
            | Change::Deadline { collection, .. }
            | Change::Clear { collection, .. } => collection,
        }
    }

    /// `None` is all.
    pub(crate) fn member(&self) -> Option<&str> {
        match *self {
            Change::Put { member, .. } | Change::Delete { member, .. } | Change::Deadline { member, .. } => {
                Some(member)
            }
            Change::Clear { .. } => None,
        }
    }
}

/// Which changes of a batch were not applied, and why.
#[derive(Debug, Clone)]
pub struct Rejected {
    pub(crate) all: Option<Box<Error>>,
    pub(crate) some: Vec<(usize, Error)>,
}

impl Rejected {
    /// Nothing, or nobody knows what, was applied.
    pub fn all(error: Error) -> Rejected {
        Rejected { all: Some(Box::new(error)), some: Vec::new() }
    }

    /// The first error, whichever changes it is of.
    pub(crate) fn into_error(self) -> Error {
        let some = self.some.into_iter().map(|(_, error)| error).next();
        self.all.map(|error| *error).or(some).unwrap_or_else(|| Error::backend("apply", "nobody knows why"))
    }

    /// All but these were applied; each is given by its place in the batch.
    pub fn some(failed: Vec<(usize, Error)>) -> Rejected {
        Rejected { all: None, some: failed }
    }
}

impl From<Error> for Rejected {
    fn from(error: Error) -> Rejected {
        Rejected::all(error)
    }
}

/// How a store keeps its members on the disk.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Layout {
    /// One file per member, to be looked at with any tool: for thousands of members, and for large ones.
    #[default]
    Files,
    /// Many members to a file: for many small ones.
    Packed,
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Layout::Files => "in files of their own",
            Layout::Packed => "packed",
        })
    }
}

/// How far a load, or a close, has come.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What it is the progress of.
    pub stage: Stage,
    /// What is done so far. Of a load: members read; of a packed store bytes of its segments. Of a close: bytes of the journal
    /// brought to the files.
    pub done: u64,
    /// What there is to do: all of them, or the bytes that there were when the close began.
    pub total: u64,
}

/// What may take a while.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Loading: what is stored is read.
    Load,
    /// Closing: what the journal holds comes to rest in files.
    Close,
}

/// A file, or whatever a backend keeps its members in, that was put aside because it is damaged.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    /// Where it stood.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
    /// Where it is now.
    pub moved_to: PathBuf,
}

/// How the store at `path` keeps its members, if there is one.
pub(crate) fn layout_of(path: &Path) -> Result<Option<Layout>> {
    let path = files::meta::absolute(path)?;
    files::meta::check_path(&Native, &path)?;
    layout_on(&Native, &path)
}

fn layout_on(fs: &dyn Fs, path: &Path) -> Result<Option<Layout>> {
    let opened = fs.open_root(path).and_then(|root| fs.open_dir(&root, files::meta::META_DIR));
    match opened {
        Ok(meta) => match files::meta::read_format(fs, path, &meta) {
            Ok(kept) => Ok(kept.map(files::meta::Kept::layout)),
            Err(error @ Error::Io { .. }) => Err(error),
            // What is wrong with the file that says so is told by the load, which quarantines nothing by then.
            Err(_) => Ok(None),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("open directory", path, error)),
    }
}

/// What a [`Backend`] gives its members to when it loads.
pub struct Loader<'a> {
    pub(crate) sink: &'a dyn Sink,
    pub(crate) background: Arc<Background>,
}

impl fmt::Debug for Loader<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Loader")
    }
}

/// The store's side of a load.
pub(crate) trait Sink: Sync {
    fn inflow(&self) -> Box<dyn Inflow + '_>;
    /// Changes, in their order, beside members of any version. Whether they were recovered, or were at rest.
    fn recover(&self, changes: &[Change<'_>], at_rest: bool) -> Result<()>;
    /// The newest version that has been recovered or loaded of a member, or of a deadline or a delete of it; `None` if there was
    /// none, or it was cleared since. Before `recovered` is called.
    fn newest(&self, collection: &str, member: &str) -> Option<u64>;
    /// All have been.
    fn recovered(&self);
    /// What there is by now.
    fn population(&self) -> Population;
    fn quarantined(&self, what: Quarantined);
    fn progress(&self, progress: Progress);
}

/// Where one thread gives the members that it has read. See [`Loader::put`].
pub(crate) trait Inflow {
    fn put(
        &mut self,
        collection: &str,
        member: &str,
        version: u64,
        deadline: Option<u64>,
        codec: &str,
        value: &[u8],
    ) -> Result<()>;
}

impl Loader<'_> {
    /// Gives one member: its newest version wins if it is given twice. `deadline` is when it expires, in milliseconds since
    /// 1970; one that is over is given all the same.
    ///
    /// # Errors
    ///
    /// If a name breaks a rule, the value is too large, the version is above 2^53 - 1, or the codec's name is not one.
    pub fn put(
        &self,
        collection: &str,
        member: &str,
        version: u64,
        deadline: Option<u64>,
        codec: &str,
        value: &[u8],
    ) -> Result<()> {
        self.sink.inflow().put(collection, member, version, deadline, codec, value)
    }

    /// For a thread that gives many members.
    pub(crate) fn inflow(&self) -> Box<dyn Inflow + '_> {
        self.sink.inflow()
    }

    /// Reports something that was put aside.
    pub fn quarantined(&self, path: impl Into<PathBuf>, reason: impl Into<String>, moved_to: impl Into<PathBuf>) {
        self.sink.quarantined(Quarantined { path: path.into(), reason: reason.into(), moved_to: moved_to.into() });
    }

    /// Reports progress: calls the callback given to [`Options::on_progress`](crate::Options::on_progress), if any, on this
    /// thread.
    pub fn progress(&self, done: u64, total: u64) {
        self.sink.progress(Progress { stage: Stage::Load, done, total });
    }

    pub(crate) fn recover(&self, changes: &[Change<'_>]) -> Result<()> {
        self.sink.recover(changes, false)
    }

    /// The same of changes that were at rest, and are no news.
    pub(crate) fn apply(&self, changes: &[Change<'_>]) -> Result<()> {
        self.sink.recover(changes, true)
    }

    pub(crate) fn newest(&self, collection: &str, member: &str) -> Option<u64> {
        self.sink.newest(collection, member)
    }

    pub(crate) fn recovered(&self) {
        self.sink.recovered();
    }

    /// What there is by now.
    pub(crate) fn population(&self) -> Population {
        self.sink.population()
    }
}
