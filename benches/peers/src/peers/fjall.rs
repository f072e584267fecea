//! [fjall](https://docs.rs/fjall): a log-structured tree with a journal in front.

use std::path::Path;

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use super::{Contender, Peer, Writer, locked_version, sorted};
use crate::Result;
use crate::input::Member;
use crate::measure::Lap;

pub(super) const CONTENDER: Contender = Contender {
    name: "fjall",
    version: || locked_version("fjall"),
    durable: "one keyspace; a batch for each write, committed with `PersistMode::SyncData`",
    bulk: "`Keyspace::start_ingestion`, the keys sorted beforehand, which is in the time",
    open: |dir, _| Ok(Box::new(Fjall::open(dir)?)),
};

struct Fjall {
    members: Keyspace,
    database: Database,
}

impl Fjall {
    fn open(dir: &Path) -> Result<Fjall> {
        let database = Database::builder(dir.join("fjall")).open()?;
        let members = database.keyspace("members", KeyspaceCreateOptions::default)?;
        Ok(Fjall { members, database })
    }
}

impl Peer for Fjall {
    fn writer(&self) -> Result<Box<dyn Writer + '_>> {
        Ok(Box::new(self))
    }

    fn load(&self, members: &[Member], _lap: &mut Lap) -> Result<()> {
        let mut ingestion = self.members.start_ingestion()?;
        for Member { key, value } in sorted(members) {
            ingestion.write(key.as_str(), &value[..])?;
        }
        Ok(ingestion.finish()?)
    }

    fn holds(&self, member: &Member) -> Result<bool> {
        Ok(self.members.get(&member.key)?.is_some_and(|value| value[..] == member.value))
    }

    fn read_all(&self) -> Result<usize> {
        let mut bytes = 0;
        for entry in self.members.iter() {
            let (key, value) = entry.into_inner()?;
            bytes += key.len() + usize::from(value[0] & 1) + value.len();
        }
        Ok(bytes)
    }

    /// Dropping is how fjall is closed.
    fn close(self: Box<Self>) -> Result<()> {
        let Fjall { members, database } = *self;
        drop(members);
        // What would go wrong from here on is told to nobody.
        database.persist(PersistMode::SyncAll)?;
        drop(database);
        Ok(())
    }
}

impl Writer for &Fjall {
    fn put(&mut self, key: &str, value: &[u8]) -> Result<()> {
        let mut batch = self.database.batch().durability(Some(PersistMode::SyncData));
        batch.insert(&self.members, key, value);
        Ok(batch.commit()?)
    }
}
