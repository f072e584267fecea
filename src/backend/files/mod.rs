//! One file per member, in one directory per collection, behind a journal.
//!
//! A batch of changes goes to the journal, and [`sync`](Backend::sync) makes it durable there, with one sync whatever it
//! holds. The files follow in the background: [`follower`]. `docs/format.md` describes what is on the disk.

#[cfg(test)]
mod faults;
#[cfg(test)]
mod fixture;
mod folder;
mod follower;
pub(crate) mod header;
mod load;
mod meta;
mod name;
mod place;

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::{Backend, Change, Loader, Rejected};
use crate::error::{Error, Result};
use crate::fs::{Fs, Native};
use crate::journal::frame::{Content, Frame};
use crate::journal::{self, Extent, Journal, segment};
use folder::Folder;
use follower::Follower;
use meta::{META_DIR, Mark};
use place::Place;

/// How far the counter jumps when its mark is lost: past every number that deletes may have used up since the highest
/// version that is still there.
const AFTER_DAMAGE: u64 = 1 << 32;

/// The most bytes of one transaction: it is one frame.
const MAX_TRANSACTION: usize = 2 << 30;

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
    place: Arc<Place>,
    journal: Journal,
    follower: Follower,
    /// Frames that an earlier process appended and may not have made durable. They go first.
    carried: Vec<Content>,
    /// The highest number that is known.
    counter: u64,
    /// What the counter's file says; `None` if there is none, or a damaged one.
    mark: Option<u64>,
    /// A segment of this size is followed by another.
    segment: u64,
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

    fn opened(&mut self) -> Result<&mut Opened> {
        self.open.as_mut().ok_or_else(|| Error::NotLoaded { path: self.path.clone() })
    }
}

impl Backend for Files {
    fn load(&mut self, loader: &Loader<'_>) -> Result<u64> {
        let place = Arc::new(Place::open(&self.path, self.fs.clone())?);
        let mut open = Opened::load(place, self.max_journal, loader)?;
        #[cfg(test)]
        if self.only_looks {
            return Ok(open.counter);
        }
        // If it fails the store is open all the same, and it is tried again before anything else is stored.
        _ = open.carry();
        open.tell_follower();
        // Nor is it one that the files do not follow yet.
        _ = open.follower.start();
        let counter = open.counter;
        self.open = Some(open);
        Ok(counter)
    }

    fn apply(&mut self, batch: &[Change<'_>]) -> Result<(), Rejected> {
        Ok(self.opened()?.apply(&[], batch)?)
    }

    fn apply_transaction(&mut self, changes: &[Change<'_>]) -> Result<()> {
        let size = changes.iter().map(journal::frame::size).sum();
        if size > MAX_TRANSACTION {
            return Err(Error::TooLarge { key: "a transaction".into(), size, limit: MAX_TRANSACTION });
        }
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
        self.opened()?.place.quarantine_copy(member, reason)
    }
}

/// A segment that was found, and what its neighbours say of it.
struct Known {
    number: u64,
    header: Option<segment::Header>,
    /// How far the one that follows says that it was durable.
    durable: u64,
}

impl Opened {
    fn load(place: Arc<Place>, max_journal: u64, loader: &Loader<'_>) -> Result<Opened> {
        let (mut damaged, highest) = load::load(&*place.fs, &place.root, loader)?;
        let (mark, mut counter) = match meta::read_mark(&*place.fs, &place.meta)? {
            Mark::At(mark) => (Some(mark), mark),
            Mark::Missing => (None, 0),
            Mark::Damaged(reason) => {
                place.put_aside(&place.meta, META_DIR, meta::COUNTER_FILE, &reason, 0, loader)?;
                (None, (highest + AFTER_DAMAGE).min(crate::map::MAX_VERSION))
            }
        };
        counter = counter.max(highest);

        let background = loader.background.clone();
        let follower = Follower::new(place.clone(), background, max_journal / 2);
        let mut tails = Tails::default();
        let mut replaced = HashSet::new();
        let mut last = Extent { number: 0, end: 0 };
        let mut aside = !damaged.is_empty();
        for known in segments(&place)? {
            let bytes = journal::read(&*place.fs, &place.journal, known.number, 0, u64::MAX)?;
            let (start, frames) = bytes.split_at(bytes.len().min(segment::HEADER));
            let scan = segment::scan(frames, known.number, segment::HEADER as u64, known.durable);
            let name = journal::file_name(known.number);
            if known.header.is_none() && scan.durable > 0 {
                let reason = "its header is damaged: its frames are not";
                place.put_part_aside(&name, 0, start, reason, loader)?;
                aside = true;
            }
            for gap in &scan.damaged {
                let part = |at: u64| (at as usize).min(bytes.len());
                let reason =
                    format!("its bytes {} to {} are damaged, and the changes in them lost", gap.start, gap.end);
                place.put_part_aside(&name, gap.start, &bytes[part(gap.start)..part(gap.end)], &reason, loader)?;
                aside = true;
            }
            counter = counter.max(known.header.map_or(0, |header| header.counter));
            let mut rested = 0;
            for (offset, frame) in &scan.frames {
                let changes = frame.changes().unwrap_or_default();
                if changes.is_empty() {
                    // The mark of a close: see `mark_rest`.
                    rested = offset + frame.size();
                    tails = Tails::default();
                }
                counter = counter.max(changes.iter().map(Change::version).max().unwrap_or(0));
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
        let journal = Journal::new(place.fs.clone(), place.journal.clone(), last.number, last.end);
        let segment = journal::SEGMENT.min((max_journal / 4).max(4 << 10));
        Ok(Opened { place, journal, follower, carried, counter, mark, segment, max_journal })
    }

    /// Makes durable again, in a segment of this process, what an earlier one left behind without making it durable.
    fn carry(&mut self) -> Result<()> {
        if self.carried.is_empty() {
            return Ok(());
        }
        self.follower.hold(true);
        self.journal.append_copies(self.carried.iter().map(Content::frame), self.counter)?;
        let carried = std::mem::take(&mut self.carried);
        if let Err(error) = self.sync_journal() {
            self.carried = carried;
            return Err(error);
        }
        self.follower.hold(false);
        Ok(())
    }

    fn apply(&mut self, transactions: &[&[Change<'_>]], changes: &[Change<'_>]) -> Result<()> {
        self.carry()?;
        if self.follower.waiting() >= self.max_journal {
            // What is not durable cannot come to rest.
            self.sync()?;
            self.follower.wait_below(self.max_journal, PATIENCE)?;
        }
        let versions = transactions.iter().copied().flatten().chain(changes).map(Change::version);
        self.counter = self.counter.max(versions.max().unwrap_or(0));
        let mut appended = self.journal.append(transactions, changes, self.counter);
        if matches!(&appended, Err(Error::Io { source, .. }) if journal::is_full(source)) && self.make_room(changes) {
            appended = self.journal.append(transactions, changes, self.counter);
        }
        self.tell_follower();
        appended?;
        if self.journal.is_full(self.segment) {
            self.sync()?;
        }
        Ok(())
    }

    /// On a full disk nothing could be removed if a removal had to be in the journal first. Removed before, the
    /// members may come back after a crash, as they may until their removal is durable.
    fn make_room(&self, changes: &[Change<'_>]) -> bool {
        let removals = changes.iter().filter(|change| matches!(change, Change::Delete { .. } | Change::Clear { .. }));
        let removals: Vec<Change<'_>> = removals.copied().collect();
        let Ok(mut folder) = Folder::new(self.place.clone()) else { return false };
        // What cannot be removed now is removed when the files follow.
        folder.remove(&removals, &mut Vec::new());
        !removals.is_empty()
    }

    fn sync(&mut self) -> Result<()> {
        self.carry()?;
        self.sync_journal()
    }

    fn sync_journal(&mut self) -> Result<()> {
        let synced = self.journal.sync();
        if synced.is_ok() && self.journal.is_full(self.segment) {
            self.journal.seal();
        }
        self.tell_follower();
        if synced.is_ok() {
            // What keeps its thread from starting is told by `health`, and by the next who waits for it.
            _ = self.follower.start();
        }
        synced
    }

    /// How far each segment is durable that has changed, and every segment that there is a file of.
    fn tell_follower(&mut self) {
        let carried: u64 = self.carried.iter().map(Content::size).sum();
        let unsynced = self.journal.unsynced() + carried;
        for extent in self.journal.take_sealed() {
            self.follower.durable(extent, true, unsynced);
        }
        if let Some(extent) = self.journal.active() {
            self.follower.durable(extent, false, unsynced);
        } else {
            self.follower.unsynced(unsynced);
        }
    }

    /// Says in the segment that stays after a close that all of it has come to rest: by a transaction without changes, in
    /// bytes that the file mostly has already. Without it the next load would have to bring it to the files again.
    fn mark_rest(&mut self) {
        if self.journal.active().is_some() {
            _ = self.journal.append(&[&[]], &[], self.counter).and_then(|()| self.journal.sync());
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
            match self.place.write_counter(counter) {
                // The header of the last segment, and its frames, have it too.
                Err(Error::Io { source, .. }) if journal::is_full(&source) && !self.follower.is_empty() => {
                    but_the_last = true;
                    self.mark_rest();
                }
                written => {
                    written?;
                    self.mark = Some(counter);
                }
            }
        }
        self.journal.seal();
        self.tell_follower();
        self.follower.retire_all(but_the_last)
    }
}

/// Frames that may not be durable, by the version of their first change. A clear shares its version with the deletes that
/// it makes of members that were waiting.
#[derive(Default)]
struct Tails(BTreeSet<(u64, Content)>);

impl Tails {
    fn add(&mut self, changes: &[Change<'_>], frame: Frame<'_>) {
        if let Some(first) = changes.first() {
            self.0.insert((first.version(), frame.to_content()));
        }
    }

    fn is_durable(&mut self, changes: &[Change<'_>], frame: Frame<'_>) {
        if let Some(first) = changes.first().filter(|_| !self.0.is_empty()) {
            self.0.remove(&(first.version(), frame.to_content()));
        }
    }

    /// What of it is the newest that there is of its member. The rest must not be appended again: it would come after
    /// what is newer.
    fn carried(self, loader: &Loader<'_>) -> Vec<Content> {
        let newest = |content: &Content| {
            let frame = content.frame();
            let changes = frame.changes().unwrap_or_default();
            let (newest, older): (Vec<_>, Vec<_>) = changes.iter().partition(|change| loader.is_newest(change));
            match (newest.is_empty(), older.is_empty()) {
                (true, _) => None,
                (false, true) => Some(frame.to_content()),
                (false, false) => Some(Content::of(&newest)),
            }
        };
        self.0.iter().filter_map(|(_, content)| newest(content)).collect()
    }
}

/// The segments that are there, in order. One that cannot be read makes the load fail, and stays: it holds too much to be
/// put aside for an error that may pass.
fn segments(place: &Place) -> Result<Vec<Known>> {
    let mut found: Vec<Known> = Vec::new();
    for number in journal::list(&*place.fs, &place.journal)? {
        let start = journal::read(&*place.fs, &place.journal, number, 0, segment::HEADER as u64)?;
        let header = segment::Header::decode(&start, number);
        if let (Some(header), Some(last)) = (header, found.last_mut())
            && header.previous == last.number
        {
            last.durable = header.previous_end;
        }
        found.push(Known { number, header, durable: 0 });
    }
    Ok(found)
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
