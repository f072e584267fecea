//! larder itself, by key.

use std::path::Path;

use larder::{Durability, Layout, Store};

use super::{Contender, Peer, Work, Writer, locked_version};
use crate::Result;
use crate::input::Member;
use crate::measure::Lap;

pub(super) const CONTENDER: Contender = Contender {
    name: "larder",
    version: || locked_version("larder"),
    durable: "`Durability::Immediate`",
    bulk: "default durability, a `put` for each member, `flush`",
    open: |dir, work| open(dir, work, Layout::Files),
};

pub(super) const PACKED: Contender = Contender {
    name: "larder, packed",
    version: || locked_version("larder"),
    durable: "the same, `Layout::Packed`",
    bulk: "the same, `Layout::Packed`",
    open: |dir, work| open(dir, work, Layout::Packed),
};

fn open(dir: &Path, work: Work, layout: Layout) -> Result<Box<dyn Peer>> {
    let options = Store::options(dir.join("store")).layout(layout);
    let options = match work {
        Work::Durable => options.durability(Durability::Immediate),
        Work::Bulk => options,
    };
    Ok(Box::new(Larder(options.open()?)))
}

struct Larder(Store);

impl Peer for Larder {
    fn writer(&self) -> Result<Box<dyn Writer + '_>> {
        Ok(Box::new(self))
    }

    fn load(&self, members: &[Member], lap: &mut Lap) -> Result<()> {
        for Member { key, value } in members {
            self.0.put(key, &value[..])?;
        }
        lap.take();
        Ok(self.0.flush()?)
    }

    fn holds(&self, member: &Member) -> Result<bool> {
        Ok(self.0.get(&member.key)?.is_some_and(|value| value[..] == member.value))
    }

    fn read_all(&self) -> Result<usize> {
        let mut bytes = 0;
        for collection in self.0.collections()? {
            for entry in self.0.iter(&collection)? {
                let (member, value) = entry?;
                bytes += collection.len() + 1 + member.len() + usize::from(value[0] & 1) + value.len();
            }
        }
        Ok(bytes)
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.0.close()?;
        Ok(())
    }
}

impl Writer for &Larder {
    fn put(&mut self, key: &str, value: &[u8]) -> Result<()> {
        self.0.put(key, value)?;
        Ok(())
    }
}
