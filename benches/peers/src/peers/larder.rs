//! larder itself, by key.

use larder::{Durability, Store};

use super::{Contender, Peer, Work, Writer, locked_version};
use crate::Result;
use crate::input::Member;
use crate::measure::Lap;

pub(super) const CONTENDER: Contender = Contender {
    name: "larder",
    version: || locked_version("larder"),
    durable: "`Durability::Immediate`",
    bulk: "default durability, a `put` for each member, `flush`",
    open: |dir, work| {
        let options = Store::options(dir.join("store"));
        let options = match work {
            Work::Durable => options.durability(Durability::Immediate),
            Work::Bulk => options,
        };
        Ok(Box::new(Larder(options.open()?)))
    },
};

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
