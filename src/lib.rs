//! An embedded store for applications whose data fits in RAM: the reads and writes of a sharded hash map, one readable
//! file per member on the disk, and a written bound on what a crash can take.
//!
//! ```
//! use larder::Store;
//!
//! # let dir = tempfile::tempdir().unwrap();
//! # let path = dir.path().join("music");
//! let store = Store::open(path)?;
//! store.put("artist/daft_punk", "{ quality:'epic' }")?;
//! assert_eq!(store.get("artist/daft_punk")?.unwrap(), "{ quality:'epic' }");
//! store.close()?;
//! # Ok::<(), larder::Error>(())
//! ```
//!
//! # What is what
//!
//! A [`Store`] holds *collections*, a collection holds *members*, and a member has a value. A *key*,
//! `"collection/member"`, is split at its first slash: the member may hold more slashes, and any other character.
//!
//! There are two faces to the same members. **By key**, values are bytes: [`Store::put`], [`get`](Store::get),
//! [`get_all`](Store::get_all), [`delete`](Store::delete), [`delete_all`](Store::delete_all). **By collection**, they are
//! of a type of yours: [`Store::collection`] gives a [`Collection<T>`](Collection), which holds each value as an
//! [`Arc<T>`](std::sync::Arc) and hands it out without decoding. A collection that is open as a type is seen by key as its
//! encoded bytes.
//!
//! # What happens to a write
//!
//! A put changes the map, marks the member dirty, and returns. A janitor thread picks the key up within a millisecond or
//! so, encodes the value, and appends it to a journal; a member that is written again before the janitor comes to it is
//! stored once, as it is by then. The journal is synced, once for however many members there are: that is when a write is
//! durable. From there the changes come to rest in one file per member, in the background, in about a second.
//!
//! [`Store::flush`] returns when everything written before it is durable. [`Durability`] says how soon that happens by
//! itself, and what a crash can take:
//!
//! | [`Options::durability`] | a crash of the process takes | a power cut takes |
//! | --- | --- | --- |
//! | [`Buffered`](Durability::Buffered) | what the janitor has not picked up: about a millisecond | what is not synced: at most 5 s and one sync |
//! | [`Interval(d)`](Durability::Interval), the default with 100 ms | the same | at most `d` and one sync, while the janitor keeps up |
//! | [`Immediate`](Durability::Immediate) | nothing that returned | nothing that returned |
//!
//! No mode can damage a value that was already safe. [`Options::max_unsaved`] bounds what is not durable,
//! [`Options::max_journal`] what is durable and not in files yet. [`Store::close`] waits until all of it is in files.
//!
//! # Files, or packed
//!
//! [`Layout::Files`], the default, keeps each member in a file of its own. [`Layout::Packed`] is for millions of small ones:
//! the journal's segments stay, and are compacted when they are mostly garbage, or by [`Store::compact`]. A store is opened as
//! what it is; [`convert`] moves it.
//!
//! # Looking after a store
//!
//! [`Store::backup`] copies an open store as it is at one moment. [`Store::open_read_only`] shows one beside the process that
//! has it. [`check`] reads all of a closed one and says what is wrong, [`repair`] keeps what can be kept.
//! [`Store::export`] and [`Store::import`] write and read a line of JSON for each member.
//!
//! # More than put and get
//!
//! - **Expiry.** [`put_with_ttl`](Store::put_with_ttl), [`expire`](Store::expire), [`ttl`](Store::ttl),
//!   [`persist`](Store::persist): a member whose time has come is gone from every read at once, and from the disk soon after.
//! - **Atomic changes** of one member: [`update`](Store::update), [`put_if_absent`](Store::put_if_absent),
//!   [`compare_and_put`](Store::compare_and_put), [`take`](Store::take), and [`increment`](Collection::increment) for
//!   counters.
//! - **Transactions** over any members of any collections: [`Store::transaction`].
//! - **Watching** every change: [`Store::watch`], [`Collection::watch`].
//! - **Indexes**: [`Collection::index_by`], [`unique_index_by`](Collection::unique_index_by),
//!   [`ordered`](Collection::ordered).
//! - **Async**: reads and writes do not block. What waits for the disk has awaitable forms, for any runtime:
//!   [`Store::flush_async`], [`write_async`](Store::write_async), [`load_async`](Store::load_async),
//!   [`close_async`](Store::close_async).
//!
//! # Consistency
//!
//! A read returns the last write that finished before it, or one that runs beside it. Order between members is promised by
//! [`flush`](Store::flush), and by [transactions](Store::transaction), which are serializable and recovered whole, each not
//! without those before it. [`get_all`](Store::get_all) and the iterators are not snapshots, but meet each member
//! that is there all the time exactly once. [`delete_all`](Store::delete_all) happens at one moment.
//!
//! # Locking
//!
//! No lock guard reaches the caller, and no code of the caller's (`Serialize`, `Deserialize`, `Drop`, callbacks) runs
//! while a lock is held: no use of the API can deadlock. A call that waits for the janitor, made on the janitor's own
//! thread, is an error ([`Error::Reentrant`]).
//!
//! # When things go wrong
//!
//! Reads always work. While the disk is full, failing or gone, writes go on in RAM up to
//! [`Options::max_unsaved`], and all is stored once it recovers; [`Store::health`], [`flush`](Store::flush) and
//! [`close`](Store::close) say what fails, since when. Damaged files are moved aside by [`load`](Store::load) and listed in
//! its [report](LoadReport). A value that does not encode stays served from RAM, keeps its stored value, and is named.
//!
//! # Features
//!
//! - `bincode` (on by default): the [`Bincode`] codec.
//! - `bytes`: [`Value`] to and from `bytes::Bytes`.
//! - `stream`: [`Watch`] as a `futures_core::Stream`.
#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used))]

mod answer;
mod apart;
mod applied;
pub mod backend;
mod background;
mod clock;
mod codec;
mod collection;
mod core;
#[cfg(test)]
mod crash;
mod error;
mod expiry;
mod fs;
mod future;
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub mod fuzzing;
mod index;
mod janitor;
mod journal;
mod key;
mod lines;
mod map;
mod options;
mod rare;
mod report;
mod shelf;
mod store;
mod sync;
mod transaction;
mod update;
mod value;
mod view;
mod watch;

pub use backend::{
    Backend, CheckReport, Layout, Problem, Progress, Quarantined, RepairReport, Restored, Severity, Stage, check,
    convert, repair,
};
pub use clock::ManualClock;
#[cfg(feature = "bincode")]
pub use codec::Bincode;
pub use codec::{Codec, CodecError, Json};
pub use collection::{Collection, TypedIter};
pub use error::{Cause, Error, Result};
pub use future::Awaited;
pub use index::{Comparable, Cursor, Index, IndexKey, Page};
pub use key::{MAX_COLLECTION, MAX_MEMBER, MAX_VALUE};
pub use options::{Durability, Options};
pub use report::{BackupReport, CloseReport, Health, LoadReport, Stats};
pub use store::{Iter, Store};
pub use transaction::{Transaction, TypedTransaction};
pub use update::Integer;
pub use value::{Member, Value};
pub use view::View;
pub use watch::{ChangeKind, Changed, Watch, Watched};

/// The documents, compiled as tests.
#[cfg(doctest)]
mod documents {
    #[doc = include_str!("../README.md")]
    struct Readme;
    #[doc = include_str!("../docs/format.md")]
    struct Format;
    #[doc = include_str!("../docs/design.md")]
    struct Design;
}
