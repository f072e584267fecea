//! What waits in the journal behind the segment that is brought to the files. A change of a member that was changed again
//! there need not come to its file: so a member that is overwritten all the time costs a file for all that waits, and not
//! one for each segment.
//!
//! It is read once for all segments that are there at that time: two hashes and a version for each member in them. It
//! knows the journal's frames, and nothing of files, nor of when they are written.

use std::collections::HashMap;

use super::place::Place;
use crate::backend::Change;
use crate::backend::names::{ByName, Names};
use crate::error::Result;
use crate::journal::{self, Extent, segment};

pub(super) struct Ahead {
    names: Names,
    /// The newest value, or delete, of each member.
    newest: ByName<u64>,
    /// How far each segment was read.
    ends: HashMap<u64, u64>,
}

impl Ahead {
    /// Reads segments that are durable so far, and calls `read` after each.
    pub(super) fn of(place: &Place, extents: &[Extent], read: impl Fn()) -> Result<Ahead> {
        let mut ahead = Ahead { names: Names::new(), newest: ByName::default(), ends: HashMap::new() };
        let start = segment::HEADER as u64;
        for extent in extents {
            let bytes = journal::read(&*place.fs, &place.journal, extent.number, start, extent.end)?;
            // What is damaged is told when its turn comes. Until then it stands for nothing.
            for (_, frame) in &segment::scan(&bytes, extent.number, start, extent.end).frames {
                frame.each(|change| ahead.add(&change));
            }
            ahead.ends.insert(extent.number, extent.end);
            read();
        }
        Ok(ahead)
    }

    fn add(&mut self, change: &Change<'_>) {
        // A deadline needs the value before it, and a clear concerns others.
        if let Change::Put { collection, member, version, .. } | Change::Delete { collection, member, version } =
            *change
        {
            let newest = self.newest.entry(self.names.hash(collection, member)).or_insert(version);
            *newest = version.max(*newest);
        }
    }

    /// Whether it was read as far as this.
    pub(super) fn covers(&self, extent: Extent) -> bool {
        self.ends.get(&extent.number).is_some_and(|end| *end >= extent.end)
    }

    /// Whether a newer value, or a delete, of its member is durable.
    pub(super) fn supersedes(&self, change: &Change<'_>) -> bool {
        match *change {
            Change::Put { collection, member, version, .. }
            | Change::Delete { collection, member, version }
            | Change::Deadline { collection, member, version, .. } => {
                let newest = self.newest.get(&self.names.hash(collection, member));
                newest.is_some_and(|newest| *newest > version)
            }
            Change::Clear { .. } => false,
        }
    }
}
