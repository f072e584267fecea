//! Nothing behind the map.

use super::{Backend, Change, Loader, Rejected};
use crate::error::Result;

/// The backend of [`Store::in_memory`](crate::Store::in_memory): it keeps nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Memory;

impl Backend for Memory {
    fn load(&mut self, _loader: &Loader<'_>) -> Result<u64> {
        Ok(0)
    }

    fn apply(&mut self, _batch: &[Change<'_>]) -> Result<(), Rejected> {
        Ok(())
    }

    fn sync(&mut self) -> Result<()> {
        Ok(())
    }

    fn close(&mut self, _counter: u64) -> Result<()> {
        Ok(())
    }

    fn persists(&self) -> bool {
        false
    }
}
