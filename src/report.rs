//! What the store tells about itself.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use crate::backend::Quarantined;
use crate::error::Error;

/// What a load found.
#[non_exhaustive]
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Members loaded.
    pub members: usize,
    /// Collections that have members.
    pub collections: usize,
    /// Changes that were recovered from the journal: those that were not in the files yet.
    pub replayed: usize,
    /// What was damaged, and was put aside.
    pub quarantined: Vec<Quarantined>,
    /// How long it took.
    pub elapsed: Duration,
}

/// What a close did.
#[non_exhaustive]
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CloseReport {
    /// Members that are stored.
    pub members: usize,
    /// Collections that have members.
    pub collections: usize,
    /// Changes that the close itself had to store.
    pub flushed: usize,
    /// How long it took.
    pub elapsed: Duration,
}

/// What a backup did.
#[non_exhaustive]
#[derive(Debug, Clone, Default)]
pub struct BackupReport {
    /// Members that were copied.
    pub members: usize,
    /// Why some were not: one error for each member that does not encode, with its key.
    pub left_out: Vec<Error>,
    /// How long it took.
    pub elapsed: Duration,
}

/// The store in numbers, at one moment or nearly so.
#[non_exhaustive]
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// Members.
    pub members: usize,
    /// Collections that have members.
    pub collections: usize,
    /// Bytes of members' names and values; of a typed collection, its values' size in RAM without what they point to.
    /// A member that has expired counts until it is removed, a moment later.
    pub bytes: u64,
    /// Keys not yet durable: at most this many, since one that is written again while it is stored counts twice.
    pub dirty: usize,
    /// How long the oldest of them has waited, to within a millisecond or the time of one batch.
    pub oldest_dirty: Option<Duration>,
    /// Bytes written and not yet durable, the records of transactions included, which [`Options::max_unsaved`](crate::Options::max_unsaved) bounds.
    pub unsaved_bytes: usize,
    /// Bytes in the journal that have not come to rest in files, which
    /// [`Options::max_journal`](crate::Options::max_journal) bounds. Of a packed store: that are not durable.
    pub journal_bytes: u64,
}

/// Whether writes are reaching the disk.
#[non_exhaustive]
#[derive(Debug, Clone)]
pub enum Health {
    /// They are.
    Well,
    /// They are not, or not all. Everything is served from RAM, and what can be tried again is.
    Failing {
        /// When the trouble began.
        since: SystemTime,
        /// What fails: the disk, with path and action, and each member that does not encode, with its key.
        problems: Vec<Error>,
    },
}

impl Health {
    /// Whether all is well.
    pub fn is_well(&self) -> bool {
        matches!(self, Health::Well)
    }
}

/// The path that stands in errors of a store that has none.
pub(crate) fn no_path() -> PathBuf {
    PathBuf::from("(in memory)")
}
