//! [redb](https://docs.rs/redb): a B-tree in one file, copied on write, one writer at a time.

use std::path::Path;

use redb::{Database, Durability, ReadableDatabase, ReadableTable, Table, TableDefinition};

use super::{Contender, Peer, Session, Work, locked_version, range_of, sorted, weight};
use crate::Result;
use crate::input::Member;
use crate::measure::Lap;

pub(super) const CONTENDER: Contender = Contender {
    name: "redb",
    version: || locked_version("redb"),
    durable: "a write transaction for each write, `Durability::Immediate`, commits in one phase (both its defaults)",
    bulk: "one write transaction for all, the keys sorted beforehand, which is in the time",
    unsynced: "`Durability::None`",
    collections: "`range`, `retain_in`",
    open: |dir, work| Ok(Box::new(Redb::open(dir, work)?)),
    makes_files: false,
};

const MEMBERS: TableDefinition<&str, &[u8]> = TableDefinition::new("members");

struct Redb {
    database: Database,
    durability: Durability,
}

impl Redb {
    fn open(dir: &Path, work: Work) -> Result<Redb> {
        let database = Database::create(dir.join("members.redb"))?;
        let durability = if work == Work::Unsynced { Durability::None } else { Durability::Immediate };
        let redb = Redb { database, durability };
        // The table is there before anybody writes to it.
        redb.write(Durability::Immediate, |_| Ok(()))?;
        Ok(redb)
    }

    fn write(
        &self,
        durability: Durability,
        change: impl FnOnce(&mut Table<&str, &[u8]>) -> Result<(), redb::Error>,
    ) -> Result<()> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(durability)?;
        let mut table = transaction.open_table(MEMBERS)?;
        change(&mut table)?;
        drop(table);
        Ok(transaction.commit()?)
    }

    fn put<'a>(&self, members: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Result<()> {
        self.write(self.durability, |table| {
            for (key, value) in members {
                table.insert(key, value)?;
            }
            Ok(())
        })
    }
}

impl Peer for Redb {
    fn session(&self) -> Result<Box<dyn Session + '_>> {
        Ok(Box::new(self))
    }

    fn load(&self, members: &[Member], _lap: &mut Lap) -> Result<()> {
        self.put(sorted(members).into_iter().map(|member| (member.key.as_str(), &member.value[..])))
    }

    fn settle(&self) -> Result<()> {
        self.write(Durability::Immediate, |_| Ok(()))
    }

    fn read_all(&self) -> Result<usize> {
        let table = self.database.begin_read()?.open_table(MEMBERS)?;
        let mut sum = 0;
        for entry in table.iter()? {
            let (key, value) = entry?;
            sum += weight(key.value().len(), value.value());
        }
        Ok(sum)
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(self.database.close()?)
    }
}

impl Session for &Redb {
    fn put(&mut self, key: &str, value: &[u8]) -> Result<()> {
        Redb::put(self, [(key, value)])
    }

    fn put_batch(&mut self, members: &[(&str, &[u8])]) -> Result<()> {
        Redb::put(self, members.iter().copied())
    }

    fn get(&mut self, key: &str, show: &mut dyn FnMut(&[u8])) -> Result<bool> {
        Ok(self.get_batch(&[key], show)? == 1)
    }

    fn get_batch(&mut self, keys: &[&str], show: &mut dyn FnMut(&[u8])) -> Result<usize> {
        let table = self.database.begin_read()?.open_table(MEMBERS)?;
        let mut found = 0;
        for &key in keys {
            if let Some(value) = table.get(key)? {
                show(value.value());
                found += 1;
            }
        }
        Ok(found)
    }

    fn get_all(&mut self, collection: &str, show: &mut dyn FnMut(&[u8], &[u8])) -> Result<()> {
        let table = self.database.begin_read()?.open_table(MEMBERS)?;
        let range = range_of(collection);
        for entry in table.range(range.start.as_str()..range.end.as_str())? {
            let (key, value) = entry?;
            show(key.value().as_bytes(), value.value());
        }
        Ok(())
    }

    fn delete_all(&mut self, collection: &str) -> Result<()> {
        let range = range_of(collection);
        self.write(
            self.durability,
            |table| Ok(table.retain_in(range.start.as_str()..range.end.as_str(), |_, _| false)?),
        )
    }
}
