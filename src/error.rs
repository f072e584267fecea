//! What can go wrong, and how it is told: every error names the thing and the rule, or the path and the action.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::backend::Layout;
use crate::value::Member;

/// The result of everything in larder that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Any cause that an error can chain.
pub type Cause = Arc<dyn StdError + Send + Sync>;

/// Everything that can go wrong, by what the caller can do about it.
///
/// Cheap to clone, since one failure of the disk may be told to several callers.
#[non_exhaustive]
#[derive(Debug, Clone)]
pub enum Error {
    /// The store has not been loaded: call [`Store::load`](crate::Store::load) first.
    NotLoaded {
        /// The store's path.
        path: PathBuf,
    },
    /// The store is loaded, or being loaded, already.
    AlreadyLoaded {
        /// The store's path.
        path: PathBuf,
    },
    /// The store is closed.
    Closed {
        /// The store's path.
        path: PathBuf,
    },
    /// Another store has the directory, in this process or in another one.
    Locked {
        /// The store's path.
        path: PathBuf,
        /// What the holder wrote about itself, for people.
        holder: String,
    },
    /// A key, a collection's name or a member's name breaks a rule.
    InvalidKey {
        /// What was given.
        key: String,
        /// The rule it breaks.
        rule: &'static str,
    },
    /// A value is larger than [`MAX_VALUE`](crate::MAX_VALUE).
    TooLarge {
        /// The key it was meant for.
        key: String,
        /// The value's size in bytes.
        size: usize,
        /// The largest size in bytes.
        limit: usize,
    },
    /// Others have changed what a transaction had read, each time that it was tried.
    Conflict {
        /// How often it was tried.
        attempts: u32,
    },
    /// The collection has as many indexes as one can have: 16, those counted that could not be made.
    TooManyIndexes {
        /// The collection.
        collection: String,
    },
    /// The collection has an index of that name.
    IndexExists {
        /// The collection.
        collection: String,
        /// The index.
        index: String,
    },
    /// Two members would have the same key in an index that allows one. Nothing has changed.
    Duplicate {
        /// The collection.
        collection: String,
        /// The index.
        index: String,
        /// The member that has the key.
        holder: Member,
        /// The member that may not have it, too.
        refused: Member,
    },
    /// Changes after the version asked for are not held any more.
    Missed {
        /// The version asked for.
        asked: u64,
        /// The lowest version after which all changes are held.
        oldest: u64,
    },
    /// A transaction was given up by its closure. See [`Error::aborted`].
    Aborted {
        /// What the closure said.
        source: Cause,
    },
    /// A counter's sum is none of its type's.
    Overflow {
        /// The counter's key.
        key: String,
    },
    /// A value does not encode or does not decode.
    Codec {
        /// The key, or the collection when it was being opened.
        key: String,
        /// The codec's name.
        codec: String,
        /// `"encode"` or `"decode"`.
        action: &'static str,
        /// When a collection was being opened: every member that does not decode, with the reason.
        members: Vec<(Member, String)>,
        /// What the codec said, of the first of them.
        source: Cause,
    },
    /// A collection is open as one type and was asked for as another.
    TypeMismatch {
        /// The collection.
        collection: String,
        /// The type and codec that it is open as.
        opened: String,
        /// The type and codec asked for.
        requested: String,
    },
    /// A file of the store's own, not of a single member, does not say what it must.
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The path cannot be a store.
    NotAStore {
        /// The path.
        path: PathBuf,
        /// Why not.
        reason: &'static str,
    },
    /// The store was written by a newer version of larder.
    NewerFormat {
        /// The store's path.
        path: PathBuf,
        /// The format version found.
        found: u64,
        /// The newest format version that this build reads.
        supported: u64,
    },
    /// The store keeps its members in another way than was asked for: see [`convert`](crate::convert).
    OtherLayout {
        /// The store's path.
        path: PathBuf,
        /// How it keeps them.
        found: Layout,
        /// What was asked for.
        asked: Layout,
    },
    /// An export could not be written.
    Export {
        /// What the writer said.
        source: Arc<io::Error>,
    },
    /// A line could not be imported. Those before it have been.
    Import {
        /// The line's number, from 1.
        line: u64,
        /// What is wrong with it.
        source: Cause,
    },
    /// An operation of the file system failed.
    Io {
        /// What was being done.
        action: &'static str,
        /// To which path.
        path: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// A backend other than the embedded ones failed.
    Backend {
        /// What was being done.
        action: String,
        /// What the backend said.
        source: Cause,
    },
    /// The store cannot promise what was asked for: writes are not reaching the disk.
    Degraded {
        /// What was being waited for.
        reason: String,
        /// The failure behind it, where one is known.
        source: Option<Arc<Error>>,
    },
    /// A call that waits for the janitor was made on the janitor's own thread, from inside a `Serialize` or a `Drop`.
    Reentrant {
        /// The call.
        action: &'static str,
    },
}

impl Error {
    /// An operation of the file system failed: `action` says what was being done, as in `"sync directory"`.
    pub fn io(action: &'static str, path: impl AsRef<Path>, source: io::Error) -> Error {
        Error::Io { action, path: path.as_ref().to_owned(), source: Arc::new(source) }
    }

    /// A backend of your own failed, doing `action`.
    pub fn backend(action: impl Into<String>, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
        Error::Backend { action: action.into(), source: Arc::from(source.into()) }
    }

    /// A transaction's closure gives it up, for a reason of yours.
    pub fn aborted(reason: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
        Error::Aborted { source: Arc::from(reason.into()) }
    }

    pub(crate) fn codec(
        action: &'static str,
        key: String,
        codec: &str,
        source: Box<dyn StdError + Send + Sync>,
    ) -> Error {
        Error::Codec { key, codec: codec.to_owned(), action, members: Vec::new(), source: Arc::from(source) }
    }
}

/// Keys come from callers and may be long or hold control characters: what is shown is neither.
pub(crate) struct Shown<'a>(pub(crate) &'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MOST: usize = 120;
        match self.0.char_indices().nth(MOST) {
            Some((end, _)) => write!(f, "{:?}… ({} bytes)", &self.0[..end], self.0.len()),
            None => write!(f, "{:?}", self.0),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::NotLoaded { path } => write!(f, "store {} is not loaded", path.display()),
            Error::AlreadyLoaded { path } => write!(f, "store {} is loaded already", path.display()),
            Error::Closed { path } => write!(f, "store {} is closed", path.display()),
            Error::Locked { path, holder } => write!(f, "store {} is in use by {holder}", path.display()),
            Error::InvalidKey { key, rule } => write!(f, "invalid key {}: {rule}", Shown(key)),
            Error::TooLarge { key, size, limit } => {
                write!(f, "value of {} is {size} bytes, and the most is {limit}", Shown(key))
            }
            Error::Conflict { attempts } => {
                write!(f, "others have changed what the transaction had read, {attempts} times")
            }
            Error::TooManyIndexes { collection } => write!(f, "collection {} has 16 indexes", Shown(collection)),
            Error::IndexExists { collection, index } => {
                write!(f, "collection {} has an index {index:?} already", Shown(collection))
            }
            Error::Duplicate { collection, index, holder, refused } => write!(
                f,
                "{} and {} would have the same key in index {index:?} of collection {}",
                Shown(refused),
                Shown(holder),
                Shown(collection)
            ),
            Error::Missed { asked, oldest } => {
                write!(f, "changes after version {asked} are not held any more: only those after {oldest} are")
            }
            Error::Aborted { source } => write!(f, "the transaction was given up: {source}"),
            Error::Overflow { key } => write!(f, "{} cannot count so far in its type", Shown(key)),
            Error::Codec { key, codec, action, members, source } if members.is_empty() => {
                write!(f, "cannot {action} {} with codec {codec}: {source}", Shown(key))
            }
            Error::Codec { key, codec, action, members, .. } => {
                write!(f, "cannot {action} {} members of {} with codec {codec}: ", members.len(), Shown(key))?;
                for (position, (member, reason)) in members.iter().take(8).enumerate() {
                    let comma = if position == 0 { "" } else { "; " };
                    write!(f, "{comma}{}: {reason}", Shown(member))?;
                }
                if members.len() > 8 { write!(f, "; and {} more", members.len() - 8) } else { Ok(()) }
            }
            Error::TypeMismatch { collection, opened, requested } => {
                write!(f, "collection {} is {opened} and cannot be opened as {requested}", Shown(collection))
            }
            Error::Corrupt { path, reason } => write!(f, "{} is damaged: {reason}", path.display()),
            Error::NotAStore { path, reason } => write!(f, "{} is not a store: {reason}", path.display()),
            Error::NewerFormat { path, found, supported } => write!(
                f,
                "store {} has format {found}, and this version of larder reads formats up to {supported}",
                path.display()
            ),
            Error::OtherLayout { path, found, asked } => {
                write!(f, "store {} keeps its members {found} and was asked to keep them {asked}", path.display())
            }
            Error::Export { source } => write!(f, "cannot write the export: {source}"),
            Error::Import { line, source } => write!(f, "cannot import line {line}: {source}"),
            Error::Io { action, path, source } => write!(f, "cannot {action} {}: {source}", path.display()),
            Error::Backend { action, source } => write!(f, "backend cannot {action}: {source}"),
            Error::Degraded { reason, source: None } => write!(f, "writes are not reaching the disk: {reason}"),
            Error::Degraded { reason, source: Some(source) } => {
                write!(f, "writes are not reaching the disk: {reason}: {source}")
            }
            Error::Reentrant { action } => {
                write!(f, "{action} waits for the janitor and was called on the janitor's own thread")
            }
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Error::Io { source, .. } | Error::Export { source } => Some(&**source),
            Error::Import { source, .. } | Error::Aborted { source } => Some(&**source),
            Error::Codec { source, .. } | Error::Backend { source, .. } => Some(&**source),
            Error::Degraded { source: Some(source), .. } => Some(&**source),
            _ => None,
        }
    }
}
