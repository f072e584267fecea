//! [redb](https://docs.rs/redb): a B-tree in one file, copied on write, one writer at a time.

use std::path::Path;

use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};

use super::{Contender, Peer, Writer, locked_version, sorted};
use crate::Result;
use crate::input::Member;
use crate::measure::Lap;

pub(super) const CONTENDER: Contender = Contender {
    name: "redb",
    version: || locked_version("redb"),
    durable: "a write transaction for each write, `Durability::Immediate`, commits in one phase (both its defaults)",
    bulk: "one write transaction for all, the keys sorted beforehand, which is in the time",
    open: |dir, _| Ok(Box::new(Redb::open(dir)?)),
};

const MEMBERS: TableDefinition<&str, &[u8]> = TableDefinition::new("members");

struct Redb(Database);

impl Redb {
    fn open(dir: &Path) -> Result<Redb> {
        let database = Database::create(dir.join("members.redb"))?;
        // The table is there before anybody writes to it.
        let transaction = database.begin_write()?;
        transaction.open_table(MEMBERS)?;
        transaction.commit()?;
        Ok(Redb(database))
    }

    fn commit<'a>(&self, members: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Result<()> {
        let mut transaction = self.0.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        let mut table = transaction.open_table(MEMBERS)?;
        for (key, value) in members {
            table.insert(key, value)?;
        }
        drop(table);
        Ok(transaction.commit()?)
    }
}

impl Peer for Redb {
    fn writer(&self) -> Result<Box<dyn Writer + '_>> {
        Ok(Box::new(self))
    }

    fn load(&self, members: &[Member], _lap: &mut Lap) -> Result<()> {
        self.commit(sorted(members).into_iter().map(|member| (member.key.as_str(), &member.value[..])))
    }

    fn holds(&self, member: &Member) -> Result<bool> {
        let table = self.0.begin_read()?.open_table(MEMBERS)?;
        Ok(table.get(member.key.as_str())?.is_some_and(|value| value.value() == member.value))
    }

    fn read_all(&self) -> Result<usize> {
        let table = self.0.begin_read()?.open_table(MEMBERS)?;
        let mut bytes = 0;
        for entry in table.iter()? {
            let (key, value) = entry?;
            bytes += key.value().len() + usize::from(value.value()[0] & 1) + value.value().len();
        }
        Ok(bytes)
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(self.0.close()?)
    }
}

impl Writer for &Redb {
    fn put(&mut self, key: &str, value: &[u8]) -> Result<()> {
        self.commit([(key, value)])
    }
}
