//! [fjall](https://docs.rs/fjall): a log-structured tree with a journal in front.

use std::path::Path;

use fjall::{Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode};

use super::{Contender, Peer, Session, Work, locked_version, range_of, sorted, weight};
use crate::Result;
use crate::input::Member;
use crate::measure::Lap;

pub(super) const CONTENDER: Contender = Contender {
    name: "fjall",
    version: || locked_version("fjall"),
    durable: "one keyspace; a batch for each write, committed with `PersistMode::SyncData`",
    bulk: "`Keyspace::start_ingestion`, the keys sorted beforehand, which is in the time",
    unsynced: "`insert`, or a batch",
    collections: "`prefix`; what it found is removed in a batch",
    open: |dir, work| Ok(Box::new(Fjall::open(dir, work)?)),
    makes_files: false,
};

struct Fjall {
    members: Keyspace,
    database: Database,
    persist: Option<PersistMode>,
}

impl Fjall {
    fn open(dir: &Path, work: Work) -> Result<Fjall> {
        let database = Database::builder(dir.join("fjall")).open()?;
        let members = database.keyspace("members", KeyspaceCreateOptions::default)?;
        let persist = (work == Work::Durable).then_some(PersistMode::SyncData);
        Ok(Fjall { members, database, persist })
    }

    fn batch(&self) -> OwnedWriteBatch {
        self.database.batch().durability(self.persist)
    }
}

impl Peer for Fjall {
    fn session(&self) -> Result<Box<dyn Session + '_>> {
        Ok(Box::new(self))
    }

    fn load(&self, members: &[Member], _lap: &mut Lap) -> Result<()> {
        let mut ingestion = self.members.start_ingestion()?;
        for Member { key, value } in sorted(members) {
            ingestion.write(key.as_str(), &value[..])?;
        }
        Ok(ingestion.finish()?)
    }

    fn settle(&self) -> Result<()> {
        Ok(self.database.persist(PersistMode::SyncAll)?)
    }

    fn read_all(&self) -> Result<usize> {
        let mut sum = 0;
        for entry in self.members.iter() {
            let (key, value) = entry.into_inner()?;
            sum += weight(key.len(), &value);
        }
        Ok(sum)
    }

    /// Dropping is how fjall is closed.
    fn close(self: Box<Self>) -> Result<()> {
        // What would go wrong from here on is told to nobody.
        self.settle()
    }
}

impl Session for &Fjall {
    fn put(&mut self, key: &str, value: &[u8]) -> Result<()> {
        match self.persist {
            Some(_) => self.put_batch(&[(key, value)]),
            None => Ok(self.members.insert(key, value)?),
        }
    }

    fn put_batch(&mut self, members: &[(&str, &[u8])]) -> Result<()> {
        let mut batch = self.batch();
        for &(key, value) in members {
            batch.insert(&self.members, key, value);
        }
        Ok(batch.commit()?)
    }

    fn get(&mut self, key: &str, show: &mut dyn FnMut(&[u8])) -> Result<bool> {
        Ok(self.members.get(key)?.map(|value| show(&value)).is_some())
    }

    fn get_all(&mut self, collection: &str, show: &mut dyn FnMut(&[u8], &[u8])) -> Result<()> {
        for entry in self.members.prefix(range_of(collection).start) {
            let (key, value) = entry.into_inner()?;
            show(&key, &value);
        }
        Ok(())
    }

    fn delete_all(&mut self, collection: &str) -> Result<()> {
        let mut batch = self.batch();
        for entry in self.members.prefix(range_of(collection).start) {
            batch.remove(&self.members, entry.key()?);
        }
        Ok(batch.commit()?)
    }
}
