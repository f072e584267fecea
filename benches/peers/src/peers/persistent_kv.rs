//! [persistent-kv](https://docs.rs/persistent-kv): hash maps in memory, a log, and snapshots of everything.

use std::path::{Path, PathBuf};

use persistent_kv::{Config, PersistentKeyValueStore, SyncMode};

use super::{Contender, Peer, Session, Work, locked_version, weight};
use crate::Result;
use crate::input::Member;
use crate::machine::sync_files;
use crate::measure::Lap;

pub(super) const CONTENDER: Contender = Contender {
    name: "persistent-kv",
    version: || locked_version("persistent-kv"),
    durable: "`SyncMode::BlockAndSync`; a snapshot every million writes, not every 10,000 as by default",
    bulk: "the same, with `SyncMode::BlockNoExplicitSync` (its default); no call of it syncs, so the bench syncs the files",
    unsynced: "the same, without that; there are no batches",
    collections: "",
    open: |dir, work| Ok(Box::new(PersistentKv::open(dir, work)?)),
    makes_files: false,
};

/// Each snapshot writes all members: with the default it would do nothing else while a million are put.
const SNAPSHOT_INTERVAL: u64 = 1_000_000;

struct PersistentKv {
    members: PersistentKeyValueStore<String, Vec<u8>>,
    dir: PathBuf,
}

impl PersistentKv {
    fn open(dir: &Path, work: Work) -> Result<PersistentKv> {
        let sync_mode = if work == Work::Durable { SyncMode::BlockAndSync } else { SyncMode::BlockNoExplicitSync };
        let config = Config { silent: true, snapshot_interval: SNAPSHOT_INTERVAL, sync_mode, ..Config::default() };
        let dir = dir.join("persistent-kv");
        std::fs::create_dir_all(&dir)?;
        Ok(PersistentKv { members: PersistentKeyValueStore::new(&dir, config)?, dir })
    }
}

impl Peer for PersistentKv {
    fn session(&self) -> Result<Box<dyn Session + '_>> {
        Ok(Box::new(self))
    }

    fn load(&self, members: &[Member], lap: &mut Lap) -> Result<()> {
        for Member { key, value } in members {
            self.members.set(key, &value[..])?;
        }
        lap.take();
        self.settle()
    }

    fn settle(&self) -> Result<()> {
        sync_files(&self.dir)
    }

    fn read_all(&self) -> Result<usize> {
        Ok(self.members.iter().map(|(key, value)| weight(key.len(), &value)).sum())
    }

    /// Dropping is how it is closed.
    fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

impl Session for &PersistentKv {
    fn put(&mut self, key: &str, value: &[u8]) -> Result<()> {
        self.members.set(key, value)
    }

    fn get(&mut self, key: &str, show: &mut dyn FnMut(&[u8])) -> Result<bool> {
        Ok(self.members.get(key).map(|value| show(&value)).is_some())
    }
}
