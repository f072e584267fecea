//! [PickleDB](https://docs.rs/pickledb): a hash map of encoded values, written to its file as a whole.

use std::path::{Path, PathBuf};
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use pickledb::{PickleDb, PickleDbDumpPolicy, SerializationMethod};

use super::{Contender, Peer, Session, locked_version, weight};
use crate::Result;
use crate::input::Member;
use crate::machine::sync_files;
use crate::measure::Lap;

pub(super) const CONTENDER: Contender = Contender {
    name: "PickleDB",
    version: || locked_version("pickledb"),
    durable: "",
    bulk: "`DumpUponRequest`, `SerializationMethod::Bin`, behind a `RwLock`; a `set` for each member and one `dump`; it \
           never syncs, so the bench syncs the file",
    unsynced: "the same; a put is one to memory, `dump` is not in the time; there are no batches",
    collections: "",
    open: |dir, _| Ok(Box::new(Pickle::open(dir)?)),
    makes_files: false,
};

struct Pickle {
    members: RwLock<PickleDb>,
    dir: PathBuf,
}

impl Pickle {
    fn open(dir: &Path) -> Result<Pickle> {
        let dir = dir.join("pickledb");
        std::fs::create_dir_all(&dir)?;
        let path = dir.join("members.db");
        let (policy, method) = (PickleDbDumpPolicy::DumpUponRequest, SerializationMethod::Bin);
        let members = if path.exists() {
            PickleDb::load(path, policy, method).map_err(|error| error.to_string())?
        } else {
            PickleDb::new(path, policy, method)
        };
        Ok(Pickle { members: RwLock::new(members), dir })
    }

    fn read(&self) -> RwLockReadGuard<'_, PickleDb> {
        self.members.read().expect("a user panicked")
    }

    fn write(&self) -> RwLockWriteGuard<'_, PickleDb> {
        self.members.write().expect("a user panicked")
    }
}

impl Peer for Pickle {
    fn session(&self) -> Result<Box<dyn Session + '_>> {
        Ok(Box::new(self))
    }

    fn load(&self, members: &[Member], lap: &mut Lap) -> Result<()> {
        let mut session = self;
        for Member { key, value } in members {
            session.put(key, value)?;
        }
        lap.take();
        self.settle()
    }

    fn settle(&self) -> Result<()> {
        self.write().dump().map_err(|error| error.to_string())?;
        sync_files(&self.dir)
    }

    fn read_all(&self) -> Result<usize> {
        let members = self.read();
        let weights = members.iter().map(|entry| {
            let value: Option<Vec<u8>> = entry.get_value();
            value.map_or(0, |value| weight(entry.get_key().len(), &value))
        });
        Ok(weights.sum())
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

impl Session for &Pickle {
    fn put(&mut self, key: &str, value: &[u8]) -> Result<()> {
        Ok(self.write().set(key, &value).map_err(|error| error.to_string())?)
    }

    fn get(&mut self, key: &str, show: &mut dyn FnMut(&[u8])) -> Result<bool> {
        let value: Option<Vec<u8>> = self.read().get(key);
        Ok(value.map(|value| show(&value)).is_some())
    }
}
