//! What both embedded backends begin with: a journal, and what an earlier process left in it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::{Change, Loader};
use crate::backend::files::place::Place;
use crate::error::{Error, Result};
use crate::journal::frame::{self, Content, Frame};
use crate::journal::segment::{self, Scan};
use crate::journal::{self, Extent, Journal, Numbers};

/// The most bytes of one transaction: it is one frame.
pub(super) const MAX_TRANSACTION: usize = 2 << 30;

/// How far the counter jumps when its mark is lost: past every number that deletes may have used up since the highest
/// version that is still there.
pub(super) const AFTER_DAMAGE: u64 = 1 << 32;

/// The janitor's end of a journal, and what must go into it before anything else.
#[derive(Debug)]
pub(super) struct Front {
    pub(super) place: Arc<Place>,
    pub(super) journal: Journal,
    /// Frames that an earlier process appended and may not have made durable. They go first.
    carried: Vec<Content>,
    /// The highest number that is known.
    pub(super) counter: u64,
    /// A segment of this size is followed by another.
    segment: u64,
    /// Why a sync failed that nobody had asked for, with something in it that had been taken.
    lost: Option<Error>,
}

impl Front {
    pub(super) fn new(
        place: Arc<Place>,
        numbers: Arc<Numbers>,
        last: Extent,
        carried: Vec<Content>,
        counter: u64,
        segment: u64,
    ) -> Front {
        let journal = Journal::new(place.fs.clone(), place.journal.clone(), numbers, last);
        Front { place, journal, carried, counter, segment, lost: None }
    }

    pub(super) fn has_to_carry(&self) -> bool {
        !self.carried.is_empty()
    }

    /// Makes durable again, in a segment of this process, what an earlier one left behind without making it durable.
    ///
    /// # Errors
    ///
    /// It is to be tried again before anything else is appended.
    pub(super) fn carry(&mut self) -> Result<()> {
        self.journal.append_copies(self.carried.iter().map(Content::frame), self.counter)?;
        let carried = std::mem::take(&mut self.carried);
        let synced = self.sync();
        if synced.is_err() {
            self.carried = carried;
        }
        synced
    }

    pub(super) fn append(&mut self, transactions: &[&[Change<'_>]], changes: &[Change<'_>]) -> Result<()> {
        let versions = transactions.iter().copied().flatten().chain(changes).map(Change::version);
        self.counter = self.counter.max(versions.max().unwrap_or(0));
        self.journal.append(transactions, changes, self.counter)
    }

    /// Makes what was appended durable, and begins another segment if this one is large enough.
    pub(super) fn sync(&mut self) -> Result<()> {
        let synced = self.journal.sync();
        if synced.is_ok() && self.is_full() {
            self.journal.seal();
        }
        synced
    }

    /// The same, unasked: to have room, or because the segment is full. If it fails, what had been taken by then may be lost as
    /// after any sync that fails, and whoever asks for the next one hears of that: [`was_lost`](Self::was_lost).
    pub(super) fn sync_unasked(&mut self, something_was_taken: bool) -> Result<()> {
        let synced = self.sync();
        if let Err(error) = &synced
            && something_was_taken
        {
            self.lost = Some(error.clone());
        }
        synced
    }

    /// For whoever asks for a sync, before it: what a sync that nobody had asked for may have lost.
    pub(super) fn was_lost(&mut self) -> Result<()> {
        self.lost.take().map_or(Ok(()), Err)
    }

    pub(super) fn is_full(&self) -> bool {
        self.journal.is_full(self.segment)
    }

    /// Bytes that are not durable.
    pub(super) fn unsynced(&self) -> u64 {
        self.journal.unsynced() + self.carried.iter().map(Content::size).sum::<u64>()
    }

    /// Says that everything before it in the segment is at rest, or is all that there is: by a transaction without
    /// changes, in bytes that the file mostly has already.
    pub(super) fn mark(&mut self) -> Result<()> {
        if self.journal.active().is_none() {
            return Ok(());
        }
        self.journal.append(&[&[]], &[], self.counter)?;
        self.journal.sync()
    }
}

/// The size of a transaction must be known to fit before anything of it is appended.
pub(super) fn check_transaction(changes: &[Change<'_>]) -> Result<()> {
    let size = changes.iter().map(journal::frame::size).sum();
    if size > MAX_TRANSACTION {
        return Err(Error::TooLarge { key: "a transaction".into(), size, limit: MAX_TRANSACTION });
    }
    Ok(())
}

/// Frames that may not be durable, by the version of their first change. A clear shares its version with the deletes that
/// it makes of members that were waiting.
#[derive(Default)]
pub(super) struct Tails(BTreeSet<(u64, Content)>);

impl Tails {
    pub(super) fn add(&mut self, changes: &[Change<'_>], frame: Frame<'_>) {
        if let Some(first) = changes.first() {
            self.0.insert((first.version(), frame.to_content()));
        }
    }

    pub(super) fn is_durable(&mut self, changes: &[Change<'_>], frame: Frame<'_>) {
        if let Some(first) = changes.first().filter(|_| !self.0.is_empty()) {
            self.0.remove(&(first.version(), frame.to_content()));
        }
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// What of it is the newest that there is of its member, or comes before that in here. The rest must not be appended again:
    /// it would come after what is newer.
    pub(super) fn carried(self, loader: &Loader<'_>) -> Vec<Content> {
        let all: Vec<Vec<Change<'_>>> =
            self.0.iter().map(|(_, content)| content.frame().changes().unwrap_or_default()).collect();
        // By collection and member, and by collection what clears it.
        let mut in_here: HashMap<(&str, Option<&str>), u64> = HashMap::new();
        for change in all.iter().flatten() {
            let newest = in_here.entry((change.collection(), change.member())).or_default();
            *newest = change.version().max(*newest);
        }
        let is_last = |change: &&Change<'_>| {
            let (collection, version) = (change.collection(), change.version());
            let Some(member) = change.member() else { return true };
            match loader.newest(collection, member) {
                Some(newest) if newest > version => in_here.get(&(collection, Some(member))) == Some(&newest),
                Some(newest) => newest == version,
                // Cleared.
                None => in_here.get(&(collection, None)).is_some_and(|clear| *clear > version),
            }
        };
        let newest = |(content, changes): (&Content, &Vec<Change<'_>>)| {
            let frame = content.frame();
            let (newest, older): (Vec<_>, Vec<_>) = changes.iter().partition(is_last);
            match (newest.is_empty(), older.is_empty()) {
                (true, _) => None,
                (false, true) => Some(frame.to_content()),
                (false, false) => Some(Content::of(&newest)),
            }
        };
        self.0.iter().map(|(_, content)| content).zip(&all).filter_map(newest).collect()
    }
}

/// A segment that was found, and what another says of it.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) number: u64,
    pub(super) header: Option<segment::Header>,
    /// How far it was durable, at least.
    pub(super) durable: u64,
    /// What stands beyond that counts for nothing: what came after it may have been packed since, and left out.
    pub(super) is_over: bool,
}

impl Known {
    /// Whether it was written as a whole, before it had its name.
    pub(super) fn is_packed(&self) -> bool {
        self.header.is_some_and(|header| header.packed_end.is_some())
    }
}

/// What stands in the journal's directory.
#[derive(Debug)]
pub(super) struct Segments {
    /// In order.
    pub(super) known: Vec<Known>,
    /// Packed ones have taken the place of these: they count for nothing.
    pub(super) replaced: Vec<u64>,
    /// The highest number of any.
    pub(super) highest: u64,
    /// One of them is packed.
    pub(super) any_is_packed: bool,
}

/// The most segments that are packed into one, and the most that one speaks of.
pub(super) const MANY: usize = 1 << 16;

/// The bytes of the longest list of segments, as a frame.
const LONGEST_LIST: u64 = (frame::HEADER + 4 + MANY * 8 + MANY * 16) as u64;

/// The numbers of the segments. Beside a writer a listing may miss both a segment and the one that takes its place: two
/// that are the same do not.
fn list(place: &Place) -> Result<Vec<u64>> {
    let list = || journal::list(&*place.fs, &place.journal);
    let mut numbers = list()?;
    while place.is_only_looked_at() {
        let again = list()?;
        if again == numbers {
            break;
        }
        numbers = again;
    }
    Ok(numbers)
}

/// The segments that are there, in order. One that cannot be read makes the load fail, and stays: it holds too much to be
/// put aside for an error that may pass.
pub(super) fn segments(place: &Place) -> Result<Segments> {
    let mut found: Vec<Known> = Vec::new();
    let mut ends = HashMap::new();
    for number in list(place)? {
        let start = journal::read(&*place.fs, &place.journal, number, 0, segment::HEADER as u64)?;
        let header = segment::Header::decode(&start, number);
        if let Some(header) = header {
            ends.insert(header.previous, header.previous_end);
        }
        let durable = header.and_then(|header| header.packed_end).unwrap_or(0);
        found.push(Known { number, header, durable, is_over: false });
    }
    let (mut replaced, mut over) = (HashSet::new(), HashSet::new());
    for known in found.iter().filter(|known| known.is_packed()) {
        let start = segment::HEADER as u64;
        let bytes = journal::read(&*place.fs, &place.journal, known.number, start, start + LONGEST_LIST)?;
        let at = frame::Place { segment: known.number, offset: start };
        if let frame::Found::Whole(frame) = frame::find(&bytes, at) {
            let others = frame.others().unwrap_or_default();
            replaced.extend(others.replaced);
            over.extend(others.ends.iter().map(|(number, _)| *number));
            ends.extend(others.ends);
        }
    }
    for known in &mut found {
        if let Some(end) = ends.get(&known.number) {
            known.durable = known.durable.max(*end);
        }
        known.is_over = over.contains(&known.number);
    }
    let any_is_packed = found.iter().any(Known::is_packed);
    let highest = found.iter().map(|known| known.number).max().unwrap_or(0);
    let (replaced, known): (Vec<Known>, Vec<Known>) =
        found.into_iter().partition(|known| replaced.contains(&known.number));
    let replaced = replaced.into_iter().map(|known| known.number).collect();
    Ok(Segments { known, replaced, highest, any_is_packed })
}

/// Removes segments that others have taken the place of, as a load finds them. Whoever has put those there may have been
/// killed before their names were durable.
pub(super) fn remove_replaced(place: &Place, numbers: &[u64]) -> Result<()> {
    if numbers.is_empty() {
        return Ok(());
    }
    place.sync_dir(&place.journal)?;
    remove(place, numbers)
}

/// Removes the journal of a store of files that has packed segments in it. As long as one of them is there none of the
/// others counts, so they go last.
pub(super) fn remove_packed(place: &Place, known: &[Known], replaced: &[u64]) -> Result<()> {
    // Whoever has put them there may have been killed before their names were durable.
    place.sync_dir(&place.journal)?;
    let numbers =
        |packed: bool| known.iter().filter(move |known| known.is_packed() == packed).map(|known| known.number);
    let others: Vec<u64> = numbers(false).chain(replaced.iter().copied()).collect();
    remove(place, &others)?;
    remove(place, &numbers(true).collect::<Vec<_>>())
}

/// Removes segments, durably.
pub(super) fn remove(place: &Place, numbers: &[u64]) -> Result<()> {
    if numbers.is_empty() || place.is_only_looked_at() {
        return Ok(());
    }
    for number in numbers {
        let name = journal::file_name(*number);
        match place.fs.unlink(&place.journal, &name) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("unlink", place.journal.join(&name), error));
            }
            _ => {}
        }
    }
    place.sync_dir(&place.journal)
}

/// Reads a segment.
///
/// Beside its writer a part may be read before it is written, and what follows it after: that looks like damage, and goes
/// when it is read again.
pub(super) fn read(place: &Place, known: &Known) -> Result<Vec<u8>> {
    let read = || journal::read(&*place.fs, &place.journal, known.number, 0, u64::MAX);
    let mut bytes = read()?;
    while place.is_only_looked_at() {
        let frames = &bytes[bytes.len().min(segment::HEADER)..];
        if segment::scan(frames, known.number, segment::HEADER as u64, known.durable).damaged.is_empty() {
            break;
        }
        let again = read()?;
        if again == bytes {
            break;
        }
        bytes = again;
    }
    Ok(bytes)
}

/// Puts copies of what is damaged in a segment into quarantine. True if there is anything.
pub(super) fn put_damage_aside(
    place: &Place,
    known: &Known,
    bytes: &[u8],
    scan: &Scan<'_>,
    loader: &Loader<'_>,
) -> Result<bool> {
    let name = journal::file_name(known.number);
    // Beside its writer one may have been met before it had its header.
    let is_headless = scan.durable > 0 && segment::Header::decode(bytes, known.number).is_none();
    if is_headless {
        let reason = "its header is damaged: its frames are not";
        place.put_part_aside(&name, 0, &bytes[..bytes.len().min(segment::HEADER)], reason, loader)?;
    }
    for gap in &scan.damaged {
        let part = |at: u64| (at as usize).min(bytes.len());
        let reason = format!("its bytes {} to {} are damaged, and the changes in them lost", gap.start, gap.end);
        place.put_part_aside(&name, gap.start, &bytes[part(gap.start)..part(gap.end)], &reason, loader)?;
    }
    Ok(is_headless || !scan.damaged.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Backend, Rejected};
    use crate::core::Engine;

    /// What a process that was killed has left: transactions, of which some may be durable.
    struct Left {
        frames: Vec<(Vec<Change<'static>>, bool)>,
        carried: Vec<Content>,
    }

    impl Backend for Left {
        fn load(&mut self, loader: &Loader<'_>) -> Result<u64> {
            let mut tails = Tails::default();
            for (changes, is_durable) in &self.frames {
                loader.recover(changes)?;
                if !is_durable {
                    tails.add(changes, Content::of(changes).frame());
                }
            }
            self.carried = tails.carried(loader);
            Ok(0)
        }
        fn apply(&mut self, _: &[Change<'_>]) -> Result<(), Rejected> {
            Ok(())
        }
        fn sync(&mut self) -> Result<()> {
            Ok(())
        }
        fn close(&mut self, _: u64) -> Result<()> {
            Ok(())
        }
    }

    fn delete(member: &'static str, version: u64) -> Change<'static> {
        Change::Delete { collection: "c", member, version }
    }

    #[test]
    fn a_transaction_is_carried_whole_if_what_is_newer_of_its_members_comes_after_it() {
        let transaction = || vec![delete("a", 1), delete("b", 2)];
        let carried = |newer: Change<'static>, is_durable| {
            let frames = vec![(transaction(), false), (vec![newer], is_durable)];
            let mut left = Left { frames, carried: Vec::new() };
            Engine::read(&mut left).unwrap();
            left.carried.iter().map(|content| content.frame().changes().unwrap().len()).collect::<Vec<_>>()
        };
        let clear = || Change::Clear { collection: "c", version: 3 };
        assert_eq!(carried(delete("a", 3), false), [2, 1]);
        assert_eq!(carried(clear(), false), [2, 1]);
        // It is there already.
        assert_eq!(carried(delete("a", 3), true), [1]);
        // So is what came after a clear that is none of it.
        let frames = vec![(vec![delete("a", 1)], false), (vec![clear()], false), (vec![delete("a", 5)], true)];
        let mut left = Left { frames, carried: Vec::new() };
        Engine::read(&mut left).unwrap();
        let carried: Vec<_> = left.carried.iter().map(|content| content.frame().changes().unwrap()).collect();
        assert_eq!(carried, [[clear()]]);
    }

    /// A copy, of which a crash has torn the clear off.
    #[test]
    fn what_was_carried_in_part_does_not_come_back_behind_its_clear() {
        let put = || {
            vec![Change::Put { collection: "c", member: "a", version: 1, deadline: None, codec: "raw", value: b"v" }]
        };
        for is_durable in [false, true] {
            let clear = vec![Change::Clear { collection: "c", version: 2 }];
            let frames = vec![(put(), false), (clear, is_durable), (put(), false)];
            let mut left = Left { frames, carried: Vec::new() };
            let (engine, _) = Engine::read(&mut left).unwrap();
            assert_eq!(engine.tally().0, 0);
            // Both, or none.
            assert_eq!(left.carried.len(), if is_durable { 0 } else { 2 });
        }
    }
}
