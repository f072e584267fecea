//! larder itself, by key.

use std::path::Path;

use larder::{Durability, Layout, Store};

use super::{Contender, Peer, Session, Work, locked_version, weight};
use crate::Result;
use crate::input::Member;
use crate::measure::Lap;

pub(super) const CONTENDER: Contender = Contender {
    name: "larder",
    version: || locked_version("larder"),
    durable: "`Durability::Immediate`",
    bulk: "default durability, a `put` for each member, `flush`",
    unsynced: "",
    collections: "",
    open: |dir, work| open(dir, work, Layout::Files),
    makes_files: true,
};

pub(super) const PACKED: Contender = Contender {
    name: "larder, packed",
    version: || locked_version("larder"),
    durable: "the same, `Layout::Packed`",
    bulk: "the same, `Layout::Packed`",
    unsynced: "default durability, `Layout::Packed`; there are no batches",
    collections: "`get_all`, `delete_all`",
    open: |dir, work| open(dir, work, Layout::Packed),
    makes_files: false,
};

fn open(dir: &Path, work: Work, layout: Layout) -> Result<Box<dyn Peer>> {
    let options = Store::options(dir.join("store")).layout(layout);
    let options = match work {
        Work::Durable => options.durability(Durability::Immediate),
        Work::Bulk | Work::Unsynced => options,
    };
    Ok(Box::new(Larder(options.open()?)))
}

struct Larder(Store);

impl Peer for Larder {
    fn session(&self) -> Result<Box<dyn Session + '_>> {
        Ok(Box::new(self))
    }

    fn load(&self, members: &[Member], lap: &mut Lap) -> Result<()> {
        for Member { key, value } in members {
            self.0.put(key, &value[..])?;
        }
        lap.take();
        self.settle()
    }

    fn settle(&self) -> Result<()> {
        Ok(self.0.flush()?)
    }

    fn read_all(&self) -> Result<usize> {
        let mut sum = 0;
        for collection in self.0.collections()? {
            for entry in self.0.iter(&collection)? {
                let (member, value) = entry?;
                sum += weight(collection.len() + 1 + member.len(), &value);
            }
        }
        Ok(sum)
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.0.close()?;
        Ok(())
    }
}

impl Session for &Larder {
    fn put(&mut self, key: &str, value: &[u8]) -> Result<()> {
        self.0.put(key, value)?;
        Ok(())
    }

    fn get(&mut self, key: &str, show: &mut dyn FnMut(&[u8])) -> Result<bool> {
        Ok(self.0.get(key)?.map(|value| show(&value)).is_some())
    }

    fn get_all(&mut self, collection: &str, show: &mut dyn FnMut(&[u8], &[u8])) -> Result<()> {
        for (member, value) in self.0.get_all(collection)? {
            show(member.as_bytes(), &value);
        }
        Ok(())
    }

    fn delete_all(&mut self, collection: &str) -> Result<()> {
        self.0.delete_all(collection)?;
        Ok(())
    }
}
