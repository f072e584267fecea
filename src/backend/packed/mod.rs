//! Many members to a file: the journal's segments are what is stored, and a compaction makes them fewer and smaller.
//!
//! Whatever is durable in the journal stays where it is. [`compactor`] writes the members of segments that are mostly
//! overwritten to a new one, densely, and removes the old ones. `docs/format.md` describes what is on the disk.

mod compactor;
mod pass;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::files::load::{Step, in_parallel};
use super::files::meta::{self, META_DIR, Mark};
use super::files::place::Place;
use super::front::{self, AFTER_DAMAGE, Front, Known, Tails, check_transaction, put_damage_aside};
use super::{Backend, Change, Layout, Loader, Rejected};
use crate::error::{Error, Result};
use crate::fs::{Fs, Native};
use crate::journal::{self, Extent, Numbers, segment};
use crate::sync::Mutex;
use compactor::{Compactor, Held};
pub(super) use pass::Out;

/// The backend for many small members: log segments that are compacted.
///
/// It is made by [`Options::layout`](crate::Options::layout) with [`Layout::Packed`]; it is public for its name and its
/// place in the documentation.
#[derive(Debug)]
pub struct Packed {
    path: PathBuf,
    fs: Arc<dyn Fs>,
    /// Tests of crashes compact whatever there is at each sync, so that runs are alike.
    #[cfg(test)]
    pub(crate) eager: bool,
    /// To compact is to write anew only what is damaged.
    pub(super) mends: bool,
    /// Others only look at what a load finds.
    #[cfg(test)]
    pub(crate) only_looks: bool,
    open: Option<Opened>,
}

#[derive(Debug)]
struct Opened {
    front: Front,
    compactor: Compactor,
    /// Changes that were appended since the last sync.
    appended: u64,
    /// Some of them were clears.
    cleared: bool,
}

impl Packed {
    /// A backend for the directory at `path`, which is resolved now and created by `load`.
    ///
    /// # Errors
    ///
    /// If the path is not a directory, or one that has something in it and is not a store.
    pub fn new(path: impl AsRef<Path>) -> Result<Packed> {
        Packed::on(Arc::new(Native), path.as_ref())
    }

    pub(crate) fn on(fs: Arc<dyn Fs>, path: &Path) -> Result<Packed> {
        let path = meta::absolute(path)?;
        meta::check_path(&*fs, &path)?;
        Ok(Packed {
            path,
            fs,
            mends: false,
            #[cfg(test)]
            eager: false,
            #[cfg(test)]
            only_looks: false,
            open: None,
        })
    }

    /// The store's directory, resolved.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it holds open, which keeps the lock as long as it is held.
    pub(super) fn place(&mut self) -> Result<Arc<Place>> {
        self.opened().map(|open| open.front.place.clone())
    }

    fn opened(&mut self) -> Result<&mut Opened> {
        self.open.as_mut().ok_or_else(|| Error::NotLoaded { path: self.path.clone() })
    }

    /// The next change goes into another segment.
    #[cfg(test)]
    pub(crate) fn seal(&mut self) {
        let open = self.opened().expect("it is loaded");
        open.front.journal.seal();
        open.hand_over();
    }

    /// Packs what was sealed.
    #[cfg(test)]
    pub(crate) fn compact_now(&mut self) {
        self.opened().expect("it is loaded").compactor.compact_now();
    }
}

impl Backend for Packed {
    fn load(&mut self, loader: &Loader<'_>) -> Result<u64> {
        let place = Arc::new(Place::open(&self.path, self.fs.clone(), Layout::Packed)?);
        let found = load(&place, loader)?;
        #[cfg(test)]
        if self.only_looks {
            return Ok(found.counter);
        }
        // Makes the format durable, too, which a conversion that was killed may have left: before what it replaces goes.
        place.forget_segments()?;
        if place.kept == meta::Kept::PackedBesideFiles {
            super::convert::remove_files(&place)?;
        }
        for number in &found.strange {
            place.set_aside(*number)?;
        }
        if !found.was_closed || !found.replaced.is_empty() {
            // A packed segment may have its name of a process that was killed, or failed, before it was durable.
            place.sync_dir(&place.journal)?;
        }
        front::remove(&place, &found.replaced)?;
        let numbers = Arc::new(Numbers::after(found.last.number.max(found.highest)));
        let background = loader.background.clone();
        #[cfg_attr(not(test), expect(unused_mut, reason = "tests change it"))]
        let mut compactor = Compactor::new(place.clone(), numbers.clone(), background, found.held, loader.population());
        #[cfg(test)]
        compactor.stay_on_this_thread(self.eager);
        let front = Front::new(place, numbers, found.last, found.carried, found.counter, journal::SEGMENT);
        let mut open = Opened { front, compactor, appended: 0, cleared: false };
        // If it fails the store is open all the same, and it is tried again before anything else is stored.
        _ = open.carry();
        open.compactor.wake(open.front.counter);
        self.open = Some(open);
        Ok(found.counter)
    }

    fn apply(&mut self, batch: &[Change<'_>]) -> Result<(), Rejected> {
        Ok(self.opened()?.apply(&[], batch)?)
    }

    fn apply_transaction(&mut self, changes: &[Change<'_>]) -> Result<()> {
        check_transaction(changes)?;
        self.opened()?.apply(&[changes], &[])
    }

    fn sync(&mut self) -> Result<()> {
        self.opened()?.sync()?;
        #[cfg(test)]
        if self.eager {
            self.seal();
            // What fails is told by `health`.
            self.compact_now();
        }
        Ok(())
    }

    fn compact(&mut self, done: Box<dyn FnOnce(Result<()>) + Send>) {
        let mends = self.mends;
        match self.opened() {
            Ok(open) if mends => open.compactor.mend(done),
            Ok(open) => {
                open.front.journal.seal();
                open.hand_over();
                open.compactor.compact(done);
            }
            Err(error) => done(Err(error)),
        }
    }

    fn settle(&mut self) -> Result<()> {
        let open = self.opened()?;
        open.sync()?;
        open.compactor.pause();
        Ok(())
    }

    fn close(&mut self, _counter: u64) -> Result<()> {
        self.opened()?.close()?;
        self.open = None;
        Ok(())
    }

    fn quarantine(&mut self, member: &Change<'_>, reason: &str) -> Result<PathBuf> {
        self.opened()?.front.place.quarantine_copy(member, reason)
    }
}

impl Opened {
    /// What an earlier process left behind goes first.
    fn carry(&mut self) -> Result<()> {
        if self.front.has_to_carry() {
            self.compactor.hold(true);
            self.front.carry()?;
            self.compactor.hold(false);
        }
        Ok(())
    }

    fn apply(&mut self, transactions: &[&[Change<'_>]], changes: &[Change<'_>]) -> Result<()> {
        self.carry()?;
        let something_was_taken = self.front.unsynced() > 0;
        let appended = self.front.append(transactions, changes);
        self.compactor.show_unsynced(self.front.unsynced());
        appended?;
        self.appended += transactions.iter().map(|changes| changes.len() as u64).sum::<u64>() + changes.len() as u64;
        let mut all = transactions.iter().copied().flatten().chain(changes);
        self.cleared |= all.any(|change| matches!(change, Change::Clear { .. }));
        if self.front.is_full() {
            // What is sealed here is handed over with the next sync that is asked for: a transaction's record may come
            // after a newer change of one of its members, and before that sync.
            self.front.sync_unasked(something_was_taken)?;
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<()> {
        self.front.was_lost()?;
        self.carry()?;
        let synced = self.front.sync();
        self.compactor.show_unsynced(self.front.unsynced());
        synced?;
        self.hand_over();
        Ok(())
    }

    /// Gives the segments that were sealed to the compactor.
    fn hand_over(&mut self) {
        self.compactor.count(std::mem::take(&mut self.appended), std::mem::take(&mut self.cleared));
        if self.compactor.wants_the_newest() {
            self.front.journal.seal();
        }
        for extent in self.front.journal.take_sealed() {
            self.compactor.sealed(extent);
        }
        self.compactor.wake(self.front.counter);
    }

    fn close(&mut self) -> Result<()> {
        self.sync()?;
        self.compactor.end();
        let closed = self.close_front();
        if closed.is_err() {
            self.compactor.revive();
        }
        closed
    }

    fn close_front(&mut self) -> Result<()> {
        // The next load is to know how far the segment was durable.
        self.front.mark()?;
        self.front.journal.trim();
        self.front.journal.seal();
        for extent in self.front.journal.take_sealed() {
            self.compactor.sealed(extent);
        }
        // Of one in which nothing is durable the name may not be either: a process that was killed left it so.
        let mut extents = self.compactor.extents();
        extents.retain(|extent| extent.end > segment::HEADER as u64);
        match self.front.place.write_segments(&extents) {
            // It is there to find what somebody has taken away. A full disk must not keep a store from being closed.
            Err(Error::Io { source, .. }) if journal::is_full(&source) => Ok(()),
            written => written,
        }
    }
}

/// What a load has found.
struct Found {
    /// The store was closed, and nothing was changed since.
    was_closed: bool,
    held: Vec<Held>,
    /// Others have taken their place.
    replaced: Vec<u64>,
    /// Nothing in them can be read.
    strange: Vec<u64>,
    carried: Vec<journal::frame::Content>,
    /// The last of the journal's segments.
    last: Extent,
    /// The highest number of any segment.
    highest: u64,
    counter: u64,
}

/// What one segment held.
struct Read {
    held: Held,
    tails: Vec<(Vec<u8>, u64)>,
    counter: u64,
    is_strange: bool,
}

/// Gives what there is to the loader, and changes nothing.
pub(super) fn look(place: &Arc<Place>, loader: &Loader<'_>) -> Result<u64> {
    load(place, loader).map(|found| found.counter)
}

fn load(place: &Arc<Place>, loader: &Loader<'_>) -> Result<Found> {
    let (mark, mut counter) = match place.read_mark()? {
        Mark::At(mark) => (Ok(()), mark),
        Mark::Missing => (Ok(()), 0),
        Mark::Damaged(reason) => (Err(reason), 0),
    };
    let front::Segments { mut known, replaced, highest, .. } = front::segments(place)?;
    let closed = place.read_segments()?;
    let was_closed = closed.is_some();
    for Extent { number, end } in closed.unwrap_or_default() {
        let path = place.journal.join(&journal::file_name(number));
        match known.iter_mut().find(|known| known.number == number) {
            Some(known) => known.durable = known.durable.max(end),
            None if replaced.contains(&number) => {}
            None => loader.quarantined(&path, "it is missing: the store was closed with it", &path),
        }
    }

    let clears = Mutex::new(HashMap::<String, u64>::new());
    let reads = Mutex::new(Vec::new());
    // Of one of which nothing is known it is the most that it can be.
    let bytes = |known: &Known| if known.durable > 0 { known.durable } else { journal::SEGMENT };
    let total = known.iter().map(bytes).sum();
    let mut done = 0;
    loader.progress(0, total);
    in_parallel(
        &known,
        |known, step| {
            let read = read(place, known, &clears, loader, step)?;
            reads.lock().push(read);
            Ok(())
        },
        |bytes| {
            // A segment may reach beyond what is known of it.
            done = total.min(done + bytes);
            loader.progress(done, total);
        },
    )?;
    loader.progress(total, total);
    for (collection, &version) in &*clears.lock() {
        loader.apply(&[Change::Clear { collection, version }])?;
    }
    let mut reads = std::mem::take(&mut *reads.lock());
    reads.sort_by_key(|read| read.held.number);
    // What stands beyond the durable end of a segment counts until something was made durable after it: it went first.
    let is_superseded = |number: u64| {
        let mut after = reads.iter().map(|read| read.held).filter(|held| held.number > number && !held.packed);
        after.any(|held| held.end > segment::HEADER as u64)
    };
    let mut tails = Tails::default();
    for read in reads.iter().filter(|read| !read.tails.is_empty() && !is_superseded(read.held.number)) {
        for (bytes, offset) in &read.tails {
            let place = journal::frame::Place { segment: read.held.number, offset: *offset };
            if let journal::frame::Found::Whole(frame) = journal::frame::find(bytes, place) {
                let changes = frame.changes().unwrap_or_default();
                counter = counter.max(changes.iter().map(Change::version).max().unwrap_or(0));
                loader.recover(&changes)?;
                tails.add(&changes, frame);
            }
        }
    }
    counter = counter.max(reads.iter().map(|read| read.counter).max().unwrap_or(0));
    if let Err(reason) = mark {
        place.put_aside(&place.meta, META_DIR, meta::COUNTER_FILE, &reason, 0, loader)?;
        counter = (counter + AFTER_DAMAGE).min(crate::map::MAX_VERSION);
    }
    if reads.iter().any(|read| read.held.damaged) {
        place.sync_quarantine()?;
    }
    let carried = tails.carried(loader);
    loader.recovered();
    let (strange, reads): (Vec<Read>, Vec<Read>) = reads.into_iter().partition(|read| read.is_strange);
    let strange = strange.into_iter().map(|read| read.held.number).collect();
    let held: Vec<Held> = reads.into_iter().map(|read| read.held).collect();
    // Nobody but the next segment's header says how far the last was durable. One of which nothing is durable says it for nobody.
    let last = held.iter().rev().find(|held| !held.packed && held.end > segment::HEADER as u64);
    let last = last.map_or(Extent { number: 0, end: 0 }, |held| Extent { number: held.number, end: held.end });
    Ok(Found { was_closed, held, replaced, strange, carried, last, highest, counter })
}

/// Gives what is in a segment to the loader: what may not be durable is kept for later.
fn read(
    place: &Place,
    known: &Known,
    clears: &Mutex<HashMap<String, u64>>,
    loader: &Loader<'_>,
    step: &Step<'_>,
) -> Result<Read> {
    let bytes = front::read(place, known)?;
    let frames = &bytes[bytes.len().min(segment::HEADER)..];
    let scan = segment::scan(frames, known.number, segment::HEADER as u64, known.durable);
    let damaged = put_damage_aside(place, known, &bytes, &scan, loader)?;
    let given = Mutex::new(Given { records: 0, counter: known.header.map_or(0, |header| header.counter) });
    let mut told = 0;
    in_parallel(
        &parts(&scan),
        |frames, step| {
            let part = give(frames, clears, loader)?;
            {
                let mut given = given.lock();
                given.records += part.records;
                given.counter = given.counter.max(part.counter);
            }
            step(frames.iter().map(|(_, frame)| frame.size()).sum());
            Ok(())
        },
        |bytes| {
            told += bytes;
            step(bytes);
        },
    )?;
    // What is no frame, or not durable.
    step((bytes.len() as u64).saturating_sub(told));
    let mut tails = Vec::new();
    // The mark of a close has nothing in it that could be carried.
    for (offset, frame) in scan.frames.iter().filter(|(offset, frame)| *offset >= scan.durable && !frame.is_mark()) {
        if !known.is_over {
            let at = *offset as usize;
            // What fills up to the next frame may be missing.
            let end = (at + frame.size() as usize).min(bytes.len());
            tails.push((bytes[at..end].to_vec(), *offset));
        }
    }
    let Given { records, counter } = *given.lock();
    let held = Held { number: known.number, end: scan.durable, packed: known.is_packed(), records, damaged };
    let is_strange = scan.frames.is_empty()
        && scan.durable <= segment::HEADER as u64
        && known.header.is_none()
        && bytes.iter().any(|&byte| byte != 0);
    Ok(Read { held, tails, counter, is_strange })
}

type Frames<'a> = [(u64, journal::frame::Frame<'a>)];

/// The durable frames of a segment in parts that several threads may take: a large one is not for one alone.
fn parts<'s, 'b>(scan: &'s segment::Scan<'b>) -> Vec<&'s Frames<'b>> {
    const PART: u64 = 1 << 20;
    let (durable, _) = scan.frames.split_at(scan.frames.partition_point(|(offset, _)| *offset < scan.durable));
    durable.chunk_by(|(a, _), (b, _)| a / PART == b / PART).collect()
}

/// What was given to the loader.
#[derive(Clone, Copy)]
struct Given {
    records: u64,
    /// The highest version.
    counter: u64,
}

/// Gives what is in some frames to the loader.
fn give(frames: &Frames<'_>, clears: &Mutex<HashMap<String, u64>>, loader: &Loader<'_>) -> Result<Given> {
    let (mut given, mut failed) = (Given { records: 0, counter: 0 }, Ok(()));
    let mut cleared: HashMap<&str, u64> = HashMap::new();
    let mut inflow = loader.inflow();
    for (_, frame) in frames {
        frame.each(|change| {
            given.records += 1;
            given.counter = given.counter.max(change.version());
            let done = match change {
                Change::Put { collection, member, version, deadline, codec, value } => {
                    inflow.put(collection, member, version, deadline, codec, value)
                }
                Change::Clear { collection, version } => {
                    let newest = cleared.entry(collection).or_insert(version);
                    *newest = version.max(*newest);
                    Ok(())
                }
                other => loader.apply(&[other]),
            };
            // A result is large, and nearly always empty: it is not to be moved.
            if done.is_err() && failed.is_ok() {
                failed = done;
            }
        });
    }
    failed?;
    if !cleared.is_empty() {
        let mut clears = clears.lock();
        for (collection, version) in cleared {
            let newest = clears.entry(collection.to_owned()).or_insert(version);
            *newest = version.max(*newest);
        }
    }
    Ok(given)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::Engine;

    /// A delete may be all that has used up its number, and is dropped by the next compaction.
    #[test]
    fn what_a_killed_process_left_counts_when_numbers_are_given_out() {
        let dir = tempfile::tempdir().unwrap();
        let mut packed = Packed::new(dir.path().join("store")).unwrap();
        Engine::read(&mut packed).unwrap();
        for version in [1, 9] {
            packed.apply(&[Change::Delete { collection: "a", member: "1", version }]).unwrap();
        }
        // Neither synced nor closed.
        packed.open = None;
        Engine::read(&mut packed).unwrap();
        assert_eq!(packed.opened().unwrap().front.counter, 9);
    }
}
