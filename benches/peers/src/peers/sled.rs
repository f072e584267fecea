//! [sled](https://docs.rs/sled): a tree over a log-structured cache of pages.

use std::path::{Path, PathBuf};

use sled::{Batch, Db};

use super::{Contender, Peer, Session, locked_version, range_of, sorted, weight};
use crate::Result;
use crate::input::Member;
use crate::machine::sync_files;
use crate::measure::Lap;

pub(super) const CONTENDER: Contender = Contender {
    name: "sled",
    version: || locked_version("sled"),
    durable: "",
    bulk: "one tree, `Mode::HighThroughput`; `insert` in the order of the keys, one `flush`, and the bench syncs the files",
    unsynced: "the same, `insert`, or `apply_batch`; it syncs every 500 ms (its default)",
    collections: "`scan_prefix`; what it found is removed in a batch",
    open: |dir, _| Ok(Box::new(Sled::open(dir)?)),
    makes_files: false,
};

struct Sled {
    members: Db,
    dir: PathBuf,
}

impl Sled {
    fn open(dir: &Path) -> Result<Sled> {
        let dir = dir.join("sled");
        let members = sled::Config::new().path(&dir).mode(sled::Mode::HighThroughput).open()?;
        Ok(Sled { members, dir })
    }
}

impl Peer for Sled {
    fn session(&self) -> Result<Box<dyn Session + '_>> {
        Ok(Box::new(self))
    }

    fn load(&self, members: &[Member], lap: &mut Lap) -> Result<()> {
        for Member { key, value } in sorted(members) {
            self.members.insert(key, &value[..])?;
        }
        lap.take();
        self.settle()
    }

    /// Its `flush` calls `sync_file_range`, which leaves what it wrote in the disk's own cache.
    fn settle(&self) -> Result<()> {
        self.members.flush()?;
        sync_files(&self.dir)
    }

    fn read_all(&self) -> Result<usize> {
        let mut sum = 0;
        for entry in self.members.iter() {
            let (key, value) = entry?;
            sum += weight(key.len(), &value);
        }
        Ok(sum)
    }

    /// Dropping is how sled is closed.
    fn close(self: Box<Self>) -> Result<()> {
        self.settle()
    }
}

impl Session for &Sled {
    fn put(&mut self, key: &str, value: &[u8]) -> Result<()> {
        self.members.insert(key, value)?;
        Ok(())
    }

    fn put_batch(&mut self, members: &[(&str, &[u8])]) -> Result<()> {
        let mut batch = Batch::default();
        for &(key, value) in members {
            batch.insert(key, value);
        }
        Ok(self.members.apply_batch(batch)?)
    }

    fn get(&mut self, key: &str, show: &mut dyn FnMut(&[u8])) -> Result<bool> {
        Ok(self.members.get(key)?.map(|value| show(&value)).is_some())
    }

    fn get_all(&mut self, collection: &str, show: &mut dyn FnMut(&[u8], &[u8])) -> Result<()> {
        for entry in self.members.scan_prefix(range_of(collection).start) {
            let (key, value) = entry?;
            show(&key, &value);
        }
        Ok(())
    }

    fn delete_all(&mut self, collection: &str) -> Result<()> {
        let mut batch = Batch::default();
        for key in self.members.scan_prefix(range_of(collection).start).keys() {
            batch.remove(key?);
        }
        Ok(self.members.apply_batch(batch)?)
    }
}
