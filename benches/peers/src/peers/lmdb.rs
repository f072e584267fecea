//! [LMDB](https://www.symas.com/lmdb), through [heed](https://docs.rs/heed): a B-tree in a mapped file, copied on write.

use std::path::Path;

use heed::types::{Bytes, Str};
use heed::{Database, Env, EnvOpenOptions};

use super::{Contender, Peer, Writer, locked_version, sorted};
use crate::Result;
use crate::input::Member;
use crate::measure::Lap;

pub(super) const CONTENDER: Contender = Contender {
    name: "LMDB",
    version: || format!("heed {}", locked_version("heed")),
    durable: "a write transaction for each write, no flags (its default: durable)",
    bulk: "one write transaction for all, the keys sorted beforehand, which is in the time, and appended",
    open: |dir, _| Ok(Box::new(Lmdb::open(dir)?)),
};

/// More than all that is written: a map that is full refuses writes.
const MAP: usize = 8 << 30;

struct Lmdb {
    env: Env,
    members: Database<Str, Bytes>,
}

impl Lmdb {
    fn open(dir: &Path) -> Result<Lmdb> {
        // SAFETY: nobody else opens or changes this file.
        #[allow(unsafe_code, reason = "a file is mapped")]
        let env = unsafe { EnvOpenOptions::new().map_size(MAP).open(dir)? };
        let mut transaction = env.write_txn()?;
        let members = env.create_database(&mut transaction, None)?;
        transaction.commit()?;
        Ok(Lmdb { env, members })
    }
}

impl Peer for Lmdb {
    fn writer(&self) -> Result<Box<dyn Writer + '_>> {
        Ok(Box::new(self))
    }

    fn load(&self, members: &[Member], _lap: &mut Lap) -> Result<()> {
        let mut transaction = self.env.write_txn()?;
        for member in sorted(members) {
            self.members.put_with_flags(&mut transaction, heed::PutFlags::APPEND, &member.key, &member.value)?;
        }
        Ok(transaction.commit()?)
    }

    fn holds(&self, member: &Member) -> Result<bool> {
        let transaction = self.env.read_txn()?;
        Ok(self.members.get(&transaction, &member.key)?.is_some_and(|value| value == member.value))
    }

    fn read_all(&self) -> Result<usize> {
        let transaction = self.env.read_txn()?;
        let mut bytes = 0;
        for entry in self.members.iter(&transaction)? {
            let (key, value) = entry?;
            bytes += key.len() + usize::from(value[0] & 1) + value.len();
        }
        Ok(bytes)
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.env.prepare_for_closing().wait();
        Ok(())
    }
}

impl Writer for &Lmdb {
    fn put(&mut self, key: &str, value: &[u8]) -> Result<()> {
        let mut transaction = self.env.write_txn()?;
        self.members.put(&mut transaction, key, value)?;
        Ok(transaction.commit()?)
    }
}
