//! The stores that take part, and what each of them must be able to do.

mod fjall;
pub(crate) mod floor;
mod larder;
mod lmdb;
mod persistent_kv;
mod pickledb;
mod redb;
mod sled;
mod sqlite;

use std::path::Path;

use crate::Result;
use crate::input::Member;
use crate::measure::Lap;

/// What a store is opened for. Most are set up in the same way for several of them.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Work {
    /// Single writes, each of which is durable when it returns.
    Durable,
    /// Many members at once, all of them durable at the end.
    Bulk,
    /// Reads, and writes that a power cut may take.
    Unsynced,
}

/// A store that is open.
pub(crate) trait Peer: Send + Sync {
    /// For one thread.
    fn session(&self) -> Result<Box<dyn Session + '_>>;

    /// Puts all members, from this thread, in whatever order is best. When it returns they are durable. A lap is taken
    /// when the last put has returned, if each has a call of its own.
    fn load(&self, members: &[Member], lap: &mut Lap) -> Result<()>;

    /// Writes to the disk what was put without a sync, as far as the store lets one ask for it.
    fn settle(&self) -> Result<()>;

    /// Reads every member, in whatever order is best, and returns the sum of their [`weight`]s.
    fn read_all(&self) -> Result<usize>;

    fn close(self: Box<Self>) -> Result<()>;

    /// Whether the member is there, with its value.
    fn holds(&self, member: &Member) -> Result<bool> {
        let mut same = false;
        let found = self.session()?.get(&member.key, &mut |value| same = value == member.value)?;
        Ok(found && same)
    }
}

/// What one thread does with a store. It may keep what the store wants to be kept for a thread: a connection, for one.
pub(crate) trait Session {
    /// In a transaction of its own, where there are any. What it promises depends on what the store was opened for.
    fn put(&mut self, key: &str, value: &[u8]) -> Result<()>;

    /// Several at once, where a store has a way to.
    fn put_batch(&mut self, members: &[(&str, &[u8])]) -> Result<()> {
        members.iter().try_for_each(|(key, value)| self.put(key, value))
    }

    /// Shows the value, in a transaction of its own, where there are any. False if there is none.
    fn get(&mut self, key: &str, show: &mut dyn FnMut(&[u8])) -> Result<bool>;

    /// Several in one transaction, where there are any. Returns how many there were.
    fn get_batch(&mut self, keys: &[&str], show: &mut dyn FnMut(&[u8])) -> Result<usize> {
        let mut found = 0;
        for key in keys {
            found += usize::from(self.get(key, show)?);
        }
        Ok(found)
    }

    /// Shows the name in whatever form, and the value, of every member of a collection.
    fn get_all(&mut self, _collection: &str, _show: &mut dyn FnMut(&[u8], &[u8])) -> Result<()> {
        Err("it cannot read a part of what it has".into())
    }

    /// Deletes every member of a collection.
    fn delete_all(&mut self, _collection: &str) -> Result<()> {
        Err("it cannot delete a part of what it has".into())
    }
}

/// One that takes part.
pub(crate) struct Contender {
    pub(crate) name: &'static str,
    version: fn() -> String,
    /// How it is set up for each kind of work, and how it reads and deletes a collection. Where there is nothing, it
    /// takes no part.
    durable: &'static str,
    bulk: &'static str,
    unsynced: &'static str,
    collections: &'static str,
    /// In a directory that is its own, and that may have members from before.
    pub(crate) open: fn(&Path, Work) -> Result<Box<dyn Peer>>,
    /// One for each member: some sections give it fewer of them.
    pub(crate) makes_files: bool,
}

impl Contender {
    fn does(&self, work: Work) -> bool {
        !self.set_up(work).is_empty()
    }

    fn set_up(&self, work: Work) -> &'static str {
        match work {
            Work::Durable => self.durable,
            Work::Bulk => self.bulk,
            Work::Unsynced => self.unsynced,
        }
    }

    /// Of a section whose figures are taken for `full` members.
    pub(crate) fn members(&self, full: usize, files: usize) -> usize {
        if self.makes_files { files.min(full) } else { full }
    }
}

/// The floor first, then larder in both layouts, and then its peers.
pub(crate) const ALL: [Contender; 10] = [
    floor::CONTENDER,
    larder::CONTENDER,
    larder::PACKED,
    redb::CONTENDER,
    fjall::CONTENDER,
    sled::CONTENDER,
    sqlite::CONTENDER,
    lmdb::CONTENDER,
    persistent_kv::CONTENDER,
    pickledb::CONTENDER,
];

/// Those that do such work.
pub(crate) fn doing(work: Work) -> Vec<&'static Contender> {
    const { &ALL }.iter().filter(|contender| contender.does(work)).collect()
}

/// Those that can do something with a collection.
pub(crate) fn with_collections() -> Vec<&'static Contender> {
    const { &ALL }.iter().filter(|contender| !contender.collections.is_empty()).collect()
}

/// Where one of them stands.
pub(crate) fn place(contenders: &[&Contender], name: &str) -> usize {
    contenders.iter().position(|contender| contender.name == name).expect("it takes part")
}

pub(crate) const FLOOR: &str = floor::CONTENDER.name;
pub(crate) const LARDER: &str = larder::CONTENDER.name;
pub(crate) const PACKED: &str = larder::PACKED.name;

pub(crate) fn describe() {
    println!("\n| store | version | durable writes | bulk load | reads, and writes without a sync | collections |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for Contender { name, version, durable, bulk, unsynced, collections, .. } in &ALL {
        let cells = [durable, bulk, unsynced, collections].map(|cell| if cell.is_empty() { &"-" } else { cell });
        let [durable, bulk, unsynced, collections] = cells;
        println!("| {name} | {} | {durable} | {bulk} | {unsynced} | {collections} |", version());
    }
}

/// Of a crate, as it is locked.
pub(crate) fn locked_version(name: &str) -> String {
    let mut lines = include_str!("../../Cargo.lock").lines();
    let name = format!("name = \"{name}\"");
    let version = lines.find(|line| *line == name).and_then(|_| lines.next());
    let version = version.and_then(|line| line.strip_prefix("version = ")).unwrap_or("unknown");
    version.trim_matches('"').to_owned()
}

/// In the order of the keys, as trees like it best.
fn sorted(members: &[Member]) -> Vec<&Member> {
    let mut sorted: Vec<&Member> = members.iter().collect();
    sorted.sort_unstable_by(|one, other| one.key.cmp(&other.key));
    sorted
}

/// What [`Peer::read_all`] counts for a member: both have been looked at.
pub(crate) fn weight(key_length: usize, value: &[u8]) -> usize {
    key_length + usize::from(value[0] & 1) + value.len()
}

/// All keys of a collection are in this range, and no others: `0` comes after `/`.
fn range_of(collection: &str) -> std::ops::Range<String> {
    format!("{collection}/")..format!("{collection}0")
}
