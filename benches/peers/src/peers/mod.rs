//! The contenders, and what each of them must be able to do.

mod fjall;
pub(crate) mod floor;
mod larder;
mod lmdb;
mod redb;
mod sqlite;

use std::path::Path;

use crate::Result;
use crate::input::Member;
use crate::measure::Lap;

/// What a store is opened for. Most are set up in the same way for both.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Work {
    /// Single writes, each of which is durable when it returns.
    Durable,
    /// Many members at once.
    Bulk,
}

/// A store that is open.
pub(crate) trait Peer: Send + Sync {
    /// For one thread.
    fn writer(&self) -> Result<Box<dyn Writer + '_>>;

    /// Puts all members, from this thread, in whatever order is best. When it returns they are durable. A lap is taken
    /// when the last put has returned, if each has a call of its own.
    fn load(&self, members: &[Member], lap: &mut Lap) -> Result<()>;

    /// Whether the member is there, with its value.
    fn holds(&self, member: &Member) -> Result<bool>;

    /// Reads every member, in whatever order is best, and returns how many bytes of keys and values there are.
    fn read_all(&self) -> Result<usize>;

    fn close(self: Box<Self>) -> Result<()>;
}

pub(crate) trait Writer {
    /// When it returns the write is durable.
    fn put(&mut self, key: &str, value: &[u8]) -> Result<()>;
}

/// One that takes part.
pub(crate) struct Contender {
    pub(crate) name: &'static str,
    version: fn() -> String,
    /// How it is set up for durable writes, and for bulk loads.
    durable: &'static str,
    bulk: &'static str,
    /// In a directory that is its own, and that may have members from before.
    pub(crate) open: fn(&Path, Work) -> Result<Box<dyn Peer>>,
}

/// The floor first, then larder in both layouts, and then its peers.
pub(crate) const ALL: [Contender; 7] = [
    floor::CONTENDER,
    larder::CONTENDER,
    larder::PACKED,
    redb::CONTENDER,
    fjall::CONTENDER,
    sqlite::CONTENDER,
    lmdb::CONTENDER,
];
pub(crate) const FLOOR: usize = 0;
pub(crate) const LARDER: usize = 1;
pub(crate) const PACKED: usize = 2;
pub(crate) const PEERS: std::ops::Range<usize> = 3..ALL.len();

/// The columns of a table, one for each contender of the range.
pub(crate) fn columns(range: impl Iterator<Item = usize>) -> String {
    range.map(|which| ALL[which].name).collect::<Vec<_>>().join(" | ")
}

pub(crate) fn describe() {
    println!("\n| contender | version | durable writes | bulk load |");
    println!("| --- | --- | --- | --- |");
    for Contender { name, version, durable, bulk, .. } in &ALL {
        println!("| {name} | {} | {durable} | {bulk} |", version());
    }
}

/// Of a crate, as it is locked.
fn locked_version(name: &str) -> String {
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
