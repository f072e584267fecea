//! One file per member, in one directory per collection, behind a journal.
//!
//! A batch of changes goes to the journal, and [`sync`](Backend::sync) makes it durable there, with one sync whatever it
//! holds. The files follow in the background: [`follower`]. `docs/format.md` describes what is on the disk.

mod ahead;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod fixture;
pub(super) mod folder;
mod follower;
pub(crate) mod header;
pub(super) mod load;
pub(crate) mod meta;
pub(super) mod name;
pub(super) mod place;
pub(super) mod strays;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::front::{self, AFTER_DAMAGE, Front, Tails, check_transaction, put_damage_aside};
use super::{Backend, Change, Layout, Loader, Rejected};
use crate::error::{Error, Result};
use crate::fs::{Fs, Native};
use crate::journal::{self, Extent, Numbers, segment};
use folder::Folder;
use follower::Follower;
use meta::{Count, META_DIR, Mark};
use place::Place;

/// How long a full journal may wait for files that make no progress at all.
const PATIENCE: Duration = Duration::from_secs(10);

/// The default backend: a journal, and one readable file per member.
///
/// It is made by [`Store::options`](crate::Store::options) from the store's path; it is public for its name and its
/// place in the documentation.
#[derive(Debug)]
pub struct Files {
    path: PathBuf,
    fs: Arc<dyn Fs>,
    max_journal: u64,
    /// Tests of crashes have the files follow at each sync, so that runs are alike.
    #[cfg(test)]
    pub(crate) eager: bool,
    /// Others only look at what a load finds: the files do not follow.
    #[cfg(test)]
    pub(crate) only_looks: bool,
    open: Option<Opened>,
}

#[derive(Debug)]
struct Opened {
    front: Front,
    follower: Follower,
    /// What the counter's file says; `None` if there is none, or a damaged one.
    mark: Option<u64>,
    /// The mark with which the number of files is noted that there are.
    counted: Option<u64>,
    max_journal: u64,
}

impl Files {
    /// A backend for the directory at `path`, which is resolved now and created by `load`.
    ///
    /// # Errors
    ///
    /// If the path is not a directory, or one that has something in it and is not a store.
    pub fn new(path: impl AsRef<Path>) -> Result<Files> {
        Files::on(Arc::new(Native), path.as_ref())
    }

    pub(crate) fn on(fs: Arc<dyn Fs>, path: &Path) -> Result<Files> {
        let path = meta::absolute(path)?;
        meta::check_path(&*fs, &path)?;
        Ok(Files {
            path,
            fs,
            max_journal: 256 << 20,
            #[cfg(test)]
            eager: false,
            #[cfg(test)]
            only_looks: false,
            open: None,
        })
    }

    /// The most bytes in the journal that have not come to rest in files. See
    /// [`Options::max_journal`](crate::Options::max_journal).
    pub fn max_journal(mut self, bytes: u64) -> Self {
        self.max_journal = bytes;
        self
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
}

impl Backend for Files {
    fn load(&mut self, loader: &Loader<'_>) -> Result<u64> {
        let place = Arc::new(Place::open(&self.path, self.fs.clone(), Layout::Files)?);
        let mut open = Opened::load(place, self.max_journal, loader)?;
        #[cfg(test)]
        if self.only_looks {
            return Ok(open.front.counter);
        }
        // If it fails the store is open all the same, and it is tried again before anything else is stored.
        _ = open.carry();
        open.tell_follower();
        open.start();
        let counter = open.front.counter;
        self.open = Some(open);
        Ok(counter)
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
            // What the files do not take is told by `health`, and by `close`.
            _ = self.opened()?.follower.finish();
        }
        Ok(())
    }

    fn settle(&mut self) -> Result<()> {
        self.opened()?.settle().map(drop)
    }

    fn close(&mut self, counter: u64) -> Result<()> {
        self.opened()?.close(counter)?;
        self.open = None;
        Ok(())
    }

    fn quarantine(&mut self, member: &Change<'_>, reason: &str) -> Result<PathBuf> {
        self.opened()?.front.place.quarantine_copy(member, reason)
    }
}

/// Gives what there is to the loader, and changes nothing.
pub(super) fn look(place: Arc<Place>, loader: &Loader<'_>) -> Result<u64> {
    Opened::load(place, 0, loader).map(|open| open.front.counter)
}

impl Opened {
    fn load(place: Arc<Place>, max_journal: u64, loader: &Loader<'_>) -> Result<Opened> {
        // Beside a writer, what is in the journal now is in the files a moment later, and not the other way round.
        let early = if place.is_only_looked_at() { Some(Early::read(&place)?) } else { None };
        let closed = place.read_count()?;
        let load::Found { mut damaged, highest, files } = load::load(&*place.fs, &place.root, loader)?;
        // Beside a writer: before the mark is looked at, for a close writes that before it removes the last segment.
        let is_at_rest = journal::list(&*place.fs, &place.journal)?.is_empty();
        let (mut mark, mut counter) = match place.read_mark()? {
            Mark::At(mark) => (Some(mark), mark),
            Mark::Missing => (None, 0),
            Mark::Damaged(reason) => {
                place.put_aside(&place.meta, META_DIR, meta::COUNTER_FILE, &reason, 0, loader)?;
                (None, (highest + AFTER_DAMAGE).min(crate::map::MAX_VERSION))
            }
        };
        counter = counter.max(highest);
        let closed = closed.filter(|closed| is_at_rest && Some(closed.mark) == mark);
        if let Some(closed) = closed.filter(|closed| files < closed.files) {
            let missing = closed.files - files;
            let reason =
                format!("the store was closed with {} members, and {missing} of them are missing", closed.files);
            loader.quarantined(place.root.path(), reason, place.root.path());
        }
        let counted = closed.filter(|closed| closed.files == files && damaged.is_empty()).map(|closed| closed.mark);

        let background = loader.background.clone();
        let follower = Follower::new(place.clone(), background, max_journal / 2);
        let mut tails = Tails::default();
        let mut replaced = HashSet::new();
        let mut last = Extent { number: 0, end: 0 };
        let mut aside = !damaged.is_empty();
        let (segments, mut read) = match early {
            Some(Early { segments, read }) => (segments, read),
            None => (front::segments(&place)?, HashMap::new()),
        };
        let front::Segments { known: found, replaced: gone, highest, any_is_packed: was_packed } = segments;
        // If the store was packed, or was about to be, its files say everything, and the order of the segments nothing.
        for known in &found {
            let bytes = match read.remove(&known.number) {
                Some(bytes) => bytes,
                None => front::read(&place, known)?,
            };
            let frames = &bytes[bytes.len().min(segment::HEADER)..];
            let scan = segment::scan(frames, known.number, segment::HEADER as u64, known.durable);
            counter = counter.max(known.header.map_or(0, |header| header.counter));
            if was_packed {
                let versions = scan.frames.iter().flat_map(|(_, frame)| frame.changes().unwrap_or_default());
                counter = counter.max(versions.map(|change| change.version()).max().unwrap_or(0));
                continue;
            }
            aside |= put_damage_aside(&place, known, &bytes, &scan, loader)?;
            let mut rested = 0;
            for (offset, frame) in &scan.frames {
                let changes = frame.changes().unwrap_or_default();
                if frame.is_mark() {
                    // Of a close that could not remove the segment.
                    rested = offset + frame.size();
                    tails.clear();
                }
                counter = counter.max(changes.iter().map(Change::version).max().unwrap_or(0));
                if known.is_over && *offset >= scan.durable {
                    continue;
                }
                loader.recover(&changes)?;
                if *offset >= scan.durable {
                    tails.add(&changes, *frame);
                } else {
                    tails.is_durable(&changes, *frame);
                }
                if !damaged.is_empty() {
                    replaced.extend(changes.iter().filter_map(file_of));
                }
            }
            // The mark of a close may be lost to a crash; what the next segment says of this one must not be.
            last = Extent { number: known.number, end: scan.durable };
            follower.found(Extent { end: scan.durable.max(rested), ..last }, rested);
        }
        let carried = tails.carried(loader);
        loader.recovered();

        // A file that a frame replaces may be anything: the crash came between its name and its bytes.
        damaged.retain(|damaged| !replaced.contains(&(damaged.dir.clone(), damaged.file.clone())));
        damaged.sort_by(|a, b| (&a.dir, &a.file).cmp(&(&b.dir, &b.file)));
        if !damaged.is_empty() && !place.is_only_looked_at() {
            place.forget_count()?;
        }
        for (number, damaged) in damaged.iter().enumerate() {
            let dir = place.fs.open_dir(&place.root, &damaged.dir);
            let dir = dir.map_err(|error| Error::io("open directory", place.root.join(&damaged.dir), error))?;
            place.put_aside(&dir, &damaged.dir, &damaged.file, &damaged.reason, number + 1, loader)?;
        }
        if aside {
            place.sync_quarantine()?;
        }
        let emptied: BTreeSet<&str> = damaged.iter().map(|damaged| damaged.dir.as_str()).collect();
        for dir in emptied {
            let opened = place.fs.open_dir(&place.root, dir);
            place.sync_dir(&opened.map_err(|error| Error::io("open directory", place.root.join(dir), error))?)?;
        }
        let segment = journal::SEGMENT.min((max_journal / 4).max(4 << 10));
        if was_packed && !place.is_only_looked_at() {
            if mark != Some(counter) {
                place.write_counter(counter)?;
                mark = Some(counter);
            }
            front::remove_packed(&place, &found, &gone)?;
        } else {
            front::remove_replaced(&place, &gone)?;
        }
        let numbers = Arc::new(Numbers::after(last.number.max(highest)));
        let front = Front::new(place, numbers, last, carried, counter, segment);
        Ok(Opened { front, follower, mark, counted, max_journal })
    }

    /// What an earlier process left behind goes first.
    fn carry(&mut self) -> Result<()> {
        if self.front.has_to_carry() {
            self.follower.hold(true);
            let carried = self.front.carry();
            self.tell_follower();
            carried?;
            self.follower.hold(false);
            self.start();
        }
        Ok(())
    }

    fn apply(&mut self, transactions: &[&[Change<'_>]], changes: &[Change<'_>]) -> Result<()> {
        self.carry()?;
        if self.follower.waiting() >= self.max_journal {
            // What is not durable cannot come to rest.
            self.sync_unasked(self.front.unsynced() > 0)?;
            self.follower.wait_below(self.max_journal, PATIENCE)?;
        }
        let something_was_taken = self.front.unsynced() > 0;
        let mut appended = self.front.append(transactions, changes);
        if matches!(&appended, Err(Error::Io { source, .. }) if journal::is_full(source)) && self.make_room(changes) {
            appended = self.front.append(transactions, changes);
        }
        self.tell_follower();
        appended?;
        if self.front.is_full() {
            self.sync_unasked(something_was_taken)?;
        }
        Ok(())
    }

    /// On a full disk nothing could be removed if a removal had to be in the journal first. Removed before, the
    /// members may come back after a crash, as they may until their removal is durable.
    fn make_room(&self, changes: &[Change<'_>]) -> bool {
        let removals = changes.iter().filter(|change| matches!(change, Change::Delete { .. } | Change::Clear { .. }));
        let removals: Vec<Change<'_>> = removals.copied().collect();
        let Ok(mut folder) = Folder::new(self.front.place.clone()) else { return false };
        if removals.is_empty() {
            return false;
        }
        // Nothing but the number of files could say later that they were there.
        _ = self.front.place.forget_count();
        // What cannot be removed now is removed when the files follow.
        folder.remove(&removals, &mut Vec::new());
        true
    }

    fn sync(&mut self) -> Result<()> {
        self.front.was_lost()?;
        self.carry()?;
        let synced = self.front.sync();
        self.followed(synced)
    }

    fn sync_unasked(&mut self, something_was_taken: bool) -> Result<()> {
        self.carry()?;
        let synced = self.front.sync_unasked(something_was_taken);
        self.followed(synced)
    }

    /// The files follow what was made durable.
    fn followed(&mut self, synced: Result<()>) -> Result<()> {
        self.tell_follower();
        if synced.is_ok() {
            self.start();
        }
        synced
    }

    /// What keeps the follower's thread from starting is told by `health`, and by the next who waits for it.
    fn start(&mut self) {
        _ = self.follower.start();
    }

    /// How far each segment is durable that has changed, and every segment that there is a file of.
    fn tell_follower(&mut self) {
        let unsynced = self.front.unsynced();
        for extent in self.front.journal.take_sealed() {
            self.follower.durable(extent, true, unsynced);
        }
        if let Some(extent) = self.front.journal.active() {
            self.follower.durable(extent, false, unsynced);
        } else {
            self.follower.unsynced(unsynced);
        }
    }

    /// Brings everything to the files, unless there is a limit to it, which comes first. True if everything is there.
    fn settle(&mut self) -> Result<bool> {
        self.sync()?;
        self.follower.finish()
    }

    fn close(&mut self, counter: u64) -> Result<()> {
        let settled = self.settle()?;
        self.follower.end();
        if !settled {
            // The next load does the rest.
            return Ok(());
        }
        let mut but_the_last = false;
        if self.mark != Some(counter) {
            match self.front.place.write_counter(counter) {
                // The header of the last segment, and its frames, have it too.
                Err(Error::Io { source, .. }) if journal::is_full(&source) && !self.follower.is_empty() => {
                    but_the_last = true;
                    // Without it the next load would bring all of it to the files again.
                    _ = self.front.mark();
                }
                written => {
                    written?;
                    self.mark = Some(counter);
                }
            }
        }
        if !but_the_last && self.counted != Some(counter) && self.count(counter).is_ok() {
            self.counted = Some(counter);
        }
        self.front.journal.seal();
        self.tell_follower();
        self.follower.retire_all(but_the_last)
    }

    /// Notes how many files there are, to find what somebody takes away. Nothing needs it: if it fails, there is none of
    /// this close, and that is all.
    fn count(&self, mark: u64) -> Result<()> {
        let place = &self.front.place;
        let files = load::count(&*place.fs, &place.root)?;
        place.write_count(Count { files, mark })
    }
}

/// The journal, read before the files.
struct Early {
    segments: front::Segments,
    read: HashMap<u64, Vec<u8>>,
}

impl Early {
    fn read(place: &Place) -> Result<Early> {
        let mut segments = front::segments(place)?;
        let mut read = HashMap::new();
        for known in &segments.known {
            match front::read(place, known) {
                Ok(bytes) => _ = read.insert(known.number, bytes),
                // What was in it is in the files.
                Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        segments.known.retain(|known| read.contains_key(&known.number));
        Ok(Early { segments, read })
    }
}

/// The directory and the file of a member whose content the change replaces.
fn file_of(change: &Change<'_>) -> Option<(String, String)> {
    match *change {
        Change::Put { collection, member, .. } | Change::Delete { collection, member, .. } => {
            Some((name::file_name(collection), name::file_name(member)))
        }
        Change::Deadline { .. } | Change::Clear { .. } => None,
    }
}
