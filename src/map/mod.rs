//! The two-level sharded map: [`Registry`] finds a collection by name, [`Table`] holds its members.
//!
//! The map knows nothing of disks. What a write owes to the layer above (is the store open, may it take these bytes, which
//! version is it, who is told) it asks of a [`Ledger`], under the shard's lock.
//!
//! No code of the caller's runs while a lock is held: values that leave the map are moved out and dropped by whoever
//! receives them, after the lock.

mod index;
mod locked;
mod registry;
mod table;

pub(crate) use index::{Duplicate, Index, Place, SortKey};
pub(crate) use locked::{Locked, Reads, Scan};
pub(crate) use registry::{Named, Registry};
pub(crate) use table::{Act, Done, Found, How, New, Only, Seen, Table, Taken, Until, What};

use std::any::Any;
use std::hash::{Hash, Hasher};

use crate::value::{Member, Value};
use crate::watch::ChangeKind;

/// What a member's slot says beside its value: 54 bits of version, 8 of codec, whether there is a deadline, and the dirty
/// mark.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp(u64);

impl Stamp {
    const VERSION: u64 = (1 << 54) - 1;
    const EXPIRES: u64 = 1 << 62;
    const DIRTY: u64 = 1 << 63;

    pub(crate) fn new(version: u64, codec: u8, dirty: bool) -> Stamp {
        debug_assert!(version <= Self::VERSION);
        Stamp((version & Self::VERSION) | u64::from(codec) << 54 | if dirty { Self::DIRTY } else { 0 })
    }

    pub(crate) fn version(self) -> u64 {
        self.0 & Self::VERSION
    }

    pub(crate) fn codec(self) -> u8 {
        (self.0 >> 54) as u8
    }

    /// The key waits in the janitor's channel.
    pub(crate) fn dirty(self) -> bool {
        self.0 & Self::DIRTY != 0
    }

    /// The member has a deadline, which stands in its shard.
    pub(crate) fn expires(self) -> bool {
        self.0 & Self::EXPIRES != 0
    }

    fn expiring(self, yes: bool) -> Stamp {
        Stamp(if yes { self.0 | Self::EXPIRES } else { self.0 & !Self::EXPIRES })
    }

    fn cleaned(self) -> Stamp {
        Stamp(self.0 & !Self::DIRTY)
    }
}

/// The largest version that is read from a disk: half of what a slot can hold, so that writes can go on from any that is
/// read. At ten million writes a second it is reached after 28 years.
pub(crate) const MAX_VERSION: u64 = Stamp::VERSION >> 1;

/// Why the map would not do something. Nothing has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The collection's members live in another table now: look again.
    Moved,
    /// The store is closed.
    Closed,
    /// The bytes not yet durable are at their bound.
    Full,
    /// Its sort keys are not those of the indexes that there are: make them again.
    Stale,
    /// Another member has a key that an index allows once. The change says which.
    Duplicate,
}

/// What the map holds: a handle that is cheap to clone.
pub(crate) trait Stored: Clone + Send + Sync + 'static {
    /// What each weighs, where that says nothing of what it takes when it is stored.
    const WEIGHT: Option<usize>;

    /// Its size in bytes, exact or estimated, the same at every call.
    fn weight(&self) -> usize;

    /// Something that is read where it lies: whoever is about to share many of them reads it of all, so that their ways to
    /// memory overlap. To share one is to write there, and a processor does one such write after the other.
    fn touch(&self) -> usize;

    /// Appends the bytes that it is stored as, if it has them, and if they are at most [`FEW`]. Otherwise it says false.
    fn copy_few(&self, out: &mut Vec<u8>) -> bool;
}

/// So many bytes are copied sooner than their value is shared, which is to write to a line of memory twice.
pub(crate) const FEW: usize = 256;

impl Stored for Value {
    const WEIGHT: Option<usize> = None;

    #[inline]
    fn weight(&self) -> usize {
        self.len()
    }

    #[inline]
    fn touch(&self) -> usize {
        self.len() + self.last().map_or(0, |&last| last.into())
    }

    #[inline]
    fn copy_few(&self, out: &mut Vec<u8>) -> bool {
        let is_small = self.len() <= FEW;
        if is_small {
            out.extend_from_slice(self);
        }
        is_small
    }
}

impl<T: Send + Sync + 'static> Stored for std::sync::Arc<T> {
    const WEIGHT: Option<usize> = Some(size_of::<T>());

    #[inline]
    fn weight(&self) -> usize {
        size_of::<T>()
    }

    #[inline]
    fn touch(&self) -> usize {
        std::sync::Arc::strong_count(self)
    }

    fn copy_few(&self, _: &mut Vec<u8>) -> bool {
        false
    }
}

/// A key, as small as it gets.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct KeyId {
    pub(crate) collection: u32,
    /// What of the name's hash decides about the shard.
    pub(crate) bits: u32,
    pub(crate) member: Member,
}

impl KeyId {
    /// Sorted by it, members of one shard are neighbours.
    pub(crate) fn order(&self) -> u64 {
        u64::from(self.collection) << 32 | u64::from(self.bits.reverse_bits())
    }

    /// As good as a hash for whoever mixes it.
    #[inline]
    pub(crate) fn digest(&self) -> u64 {
        u64::from(self.collection) << 32 | u64::from(self.bits)
    }
}

impl Hash for KeyId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.digest());
    }
}

/// A value of a table, in a box.
pub(crate) type Held = Box<dyn Any + Send + Sync>;

/// What has happened, for whoever watches.
pub(crate) struct Told {
    /// `None` when all of the collection was cleared.
    pub(crate) member: Option<Member>,
    pub(crate) kind: ChangeKind,
    pub(crate) old: Option<Held>,
    pub(crate) new: Option<Held>,
}

/// Somebody watches, and holds still between the number of a change and the word of it.
pub(crate) trait Watching {
    fn tell(&mut self, told: Told, version: u64);
}

/// What a write asks of the layer above. Every method is called under the shard's lock and must not wait.
pub(crate) trait Ledger {
    /// Whether writes are taken.
    fn check_open(&self) -> Result<(), Refused>;

    /// Adds to (or takes from) the bytes not yet durable.
    fn charge(&self, delta: isize) -> Result<(), Refused>;

    /// The next number of the store's one counter.
    fn next_version(&self) -> u64;

    /// Whether there is anything behind the map to store changes in.
    fn persists(&self) -> bool;

    /// The member was clean and is dirty. The bits are its [`KeyId`]'s.
    fn dirty(&self, member: &Member, bits: u32);

    /// The collection was cleared, at this version.
    fn cleared(&self, version: u64);

    /// The member's deadline was one and is another.
    fn schedule(&self, member: &Member, old: Option<u64>, new: Option<u64>);

    /// Whether somebody watches. As [`watch`](Self::watch).
    fn is_watched(&self) -> bool;

    /// Whoever watches, if anybody does. To be asked before [`next_version`](Self::next_version), and kept until the change
    /// has been told.
    fn watch(&self) -> Option<Box<dyn Watching + '_>>;

    /// Somebody copies the store as it was when this was the highest number: values of this version or less are kept
    /// when they are replaced. 0 when nobody does. To be asked after [`next_version`](Self::next_version).
    fn cut(&self) -> u64;
}
