//! [LMDB](https://www.symas.com/lmdb), through [heed](https://docs.rs/heed): a B-tree in a mapped file, copied on write.

use std::ops::Bound;
use std::path::Path;

use heed::types::{Bytes, Str};
use heed::{Database, Env, EnvFlags, EnvOpenOptions, PutFlags, RwTxn};

use super::{Contender, Peer, Session, Work, locked_version, range_of, sorted, weight};
use crate::Result;
use crate::input::Member;
use crate::measure::Lap;

pub(super) const CONTENDER: Contender = Contender {
    name: "LMDB",
    version: || format!("heed {}", locked_version("heed")),
    durable: "a write transaction for each write, no flags (its default: durable)",
    bulk: "one write transaction for all, the keys sorted beforehand, which is in the time, and appended",
    unsynced: "`NO_SYNC` and `WRITE_MAP`",
    collections: "`prefix_iter`, `delete_range`",
    open: |dir, work| Ok(Box::new(Lmdb::open(dir, work)?)),
    makes_files: false,
};

/// More than all that is written: a map that is full refuses writes.
const MAP: usize = 8 << 30;

struct Lmdb {
    env: Env,
    members: Database<Str, Bytes>,
}

impl Lmdb {
    fn open(dir: &Path, work: Work) -> Result<Lmdb> {
        let mut options = EnvOpenOptions::new();
        options.map_size(MAP);
        let flags = if work == Work::Unsynced { EnvFlags::NO_SYNC | EnvFlags::WRITE_MAP } else { EnvFlags::empty() };
        // SAFETY: nobody else opens or changes this file; a power cut ends the bench.
        #[allow(unsafe_code, reason = "a file is mapped")]
        let env = unsafe { options.flags(flags).open(dir)? };
        let mut transaction = env.write_txn()?;
        let members = env.create_database(&mut transaction, None)?;
        transaction.commit()?;
        Ok(Lmdb { env, members })
    }

    fn write<T>(&self, change: impl FnOnce(&mut RwTxn) -> heed::Result<T>) -> Result<()> {
        let mut transaction = self.env.write_txn()?;
        change(&mut transaction)?;
        Ok(transaction.commit()?)
    }
}

impl Peer for Lmdb {
    fn session(&self) -> Result<Box<dyn Session + '_>> {
        Ok(Box::new(self))
    }

    fn load(&self, members: &[Member], _lap: &mut Lap) -> Result<()> {
        self.write(|transaction| {
            let mut all = sorted(members).into_iter();
            all.try_for_each(|Member { key, value }| {
                self.members.put_with_flags(transaction, PutFlags::APPEND, key, value)
            })
        })
    }

    fn settle(&self) -> Result<()> {
        Ok(self.env.force_sync()?)
    }

    fn read_all(&self) -> Result<usize> {
        let transaction = self.env.read_txn()?;
        let mut sum = 0;
        for entry in self.members.iter(&transaction)? {
            let (key, value) = entry?;
            sum += weight(key.len(), value);
        }
        Ok(sum)
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.env.prepare_for_closing().wait();
        Ok(())
    }
}

impl Session for &Lmdb {
    fn put(&mut self, key: &str, value: &[u8]) -> Result<()> {
        self.put_batch(&[(key, value)])
    }

    fn put_batch(&mut self, members: &[(&str, &[u8])]) -> Result<()> {
        self.write(|transaction| members.iter().try_for_each(|&(key, value)| self.members.put(transaction, key, value)))
    }

    fn get(&mut self, key: &str, show: &mut dyn FnMut(&[u8])) -> Result<bool> {
        Ok(self.get_batch(&[key], show)? == 1)
    }

    fn get_batch(&mut self, keys: &[&str], show: &mut dyn FnMut(&[u8])) -> Result<usize> {
        let transaction = self.env.read_txn()?;
        let mut found = 0;
        for key in keys {
            found += usize::from(self.members.get(&transaction, key)?.map(&mut *show).is_some());
        }
        Ok(found)
    }

    fn get_all(&mut self, collection: &str, show: &mut dyn FnMut(&[u8], &[u8])) -> Result<()> {
        let transaction = self.env.read_txn()?;
        for entry in self.members.prefix_iter(&transaction, &range_of(collection).start)? {
            let (key, value) = entry?;
            show(key.as_bytes(), value);
        }
        Ok(())
    }

    fn delete_all(&mut self, collection: &str) -> Result<()> {
        let range = range_of(collection);
        let bounds = (Bound::Included(range.start.as_str()), Bound::Excluded(range.end.as_str()));
        self.write(|transaction| self.members.delete_range(transaction, &bounds))
    }
}
