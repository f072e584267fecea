//! One compaction: what of the segments counts, which of them are worth writing anew, and writing them.
//!
//! What counts is found in the segments alone. A pass reads all of them, and so knows the newest change of each member;
//! it may miss what is newer still, and then keeps too much. The new segment names those whose place it takes, and is
//! durable as a whole before it has a name: so a crash finds either it or them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::compactor::{Aim, Held, Pace};
use crate::backend::Change;
use crate::backend::files::place::Place;
use crate::backend::front::MANY;
use crate::backend::names::{ByName, Names};
use crate::error::{Error, Result};
use crate::fs::{File, write_all_at};
use crate::journal::frame::{self, Block};
use crate::journal::segment::{self, Header, Scan};
use crate::journal::{self, Numbers};

/// The bytes of a packed segment's content, about.
const PACKED: u64 = if cfg!(test) { 8 << 10 } else { 64 << 20 };

/// The bytes of a block, about: what one damaged sector costs at most, but for a large value.
const BLOCK: usize = if cfg!(test) { 256 } else { 16 << 10 };

/// Blocks that wait to be filled hold no more than this together.
const BUFFERED: usize = 8 << 20;

/// What is written at once.
const CHUNK: usize = if cfg!(test) { 512 } else { 1 << 20 };

/// The changes that are not values of members, in one frame.
const OTHERS: usize = 1024;

/// What a tombstone, a clear or a deadline takes, about.
const SMALL_CHANGE: u64 = 64;

/// A segment of this size or less is better joined with others.
pub(super) fn is_small(bytes: u64) -> bool {
    bytes <= journal::SEGMENT / 4
}

/// The newest change of a member.
struct Entry {
    version: u64,
    segment: u32,
    size: u32,
    /// The collection's place in the list.
    collection: u32,
    /// How many values of the member there are in segments, dead ones included.
    puts: u32,
    is_delete: bool,
}

/// What is in the segments, as they were when the pass began.
pub(super) struct Index {
    segments: Vec<Counted>,
    names: Names,
    members: ByName<Entry>,
    collections: HashMap<Box<str>, u32>,
    /// By collection: the newest clear.
    clears: HashMap<u32, u64>,
    /// By member: the newest deadline given after its value.
    deadlines: HashMap<u128, u64>,
    dropped: u64,
}

struct Counted {
    held: Held,
    live: u64,
    /// The lowest version of a value in it.
    oldest_put: u64,
}

impl Index {
    pub(super) fn of(place: &Place, held: &[Held], pace: &Pace<'_>) -> Result<Index> {
        let mut index = Index {
            segments: Vec::new(),
            names: Names::new(),
            members: ByName::default(),
            collections: HashMap::new(),
            clears: HashMap::new(),
            deadlines: HashMap::new(),
            dropped: 0,
        };
        for &held in held {
            index.segments.push(Counted { held, live: 0, oldest_put: u64::MAX });
            pace.step(held.end)?;
            with_frames(place, &held, |scan| {
                for (_, frame) in &scan.frames {
                    frame.each(|change| index.add(&change));
                }
                Ok(())
            })?;
        }
        index.apply_clears();
        Ok(index)
    }

    fn collection(&mut self, name: &str) -> u32 {
        if let Some(&id) = self.collections.get(name) {
            return id;
        }
        let id = self.collections.len() as u32;
        self.collections.insert(name.into(), id);
        id
    }

    fn add(&mut self, change: &Change<'_>) {
        let segment = self.segments.len() - 1;
        let (collection, member, size, is_delete) = match *change {
            Change::Put { collection, member, version, value, .. } => {
                let counted = &mut self.segments[segment];
                counted.oldest_put = counted.oldest_put.min(version);
                (collection, member, (member.len() + value.len() + 8) as u64, false)
            }
            Change::Delete { collection, member, .. } => (collection, member, SMALL_CHANGE, true),
            Change::Clear { collection, version } => {
                let id = self.collection(collection);
                let newest = self.clears.entry(id).or_insert(version);
                *newest = version.max(*newest);
                return;
            }
            Change::Deadline { collection, member, version, .. } => {
                let newest = self.deadlines.entry(self.names.hash(collection, member)).or_insert(version);
                *newest = version.max(*newest);
                return;
            }
        };
        let (version, id) = (change.version(), self.collection(collection));
        let size = u32::try_from(size).unwrap_or(u32::MAX);
        let new = Entry { version, segment: segment as u32, size, collection: id, puts: 0, is_delete };
        let entry =
            self.members.entry(self.names.hash(collection, member)).or_insert_with(|| Entry { version: 0, ..new });
        entry.puts += u32::from(!is_delete);
        if entry.version < version {
            if entry.version > 0 {
                self.segments[entry.segment as usize].live -= u64::from(entry.size);
            }
            self.segments[segment].live += u64::from(size);
            *entry = Entry { puts: entry.puts, ..new };
        }
    }

    fn apply_clears(&mut self) {
        if self.clears.is_empty() {
            return;
        }
        for entry in self.members.values() {
            if self.clears.get(&entry.collection).is_some_and(|&clear| entry.version < clear) {
                self.segments[entry.segment as usize].live -= u64::from(entry.size);
            }
        }
    }

    /// Changes that were left out of what was written.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// The segments to be packed next, into one.
    pub(super) fn choose(&self, aim: Aim) -> Option<Vec<Held>> {
        let small = self.segments.iter().filter(|segment| is_small(segment.held.end)).count() > 1;
        let is_worth = |counted: &&Counted| {
            let Held { end, packed, .. } = counted.held;
            let first = counted.held.damaged;
            let garbage = end.saturating_sub(counted.live + segment::HEADER as u64);
            match aim {
                Aim::Everything => !packed || first || garbage * 50 > end || small && is_small(end),
                // What is not packed may be half headers of frames, where small changes came one by one.
                Aim::Worthwhile => first || garbage * 2 > end || small && is_small(end),
            }
        };
        let mut worth: Vec<&Counted> = self.segments.iter().filter(is_worth).collect();
        worth.sort_by(|a, b| {
            let less_is_live = (a.live * b.held.end.max(1)).cmp(&(b.live * a.held.end.max(1)));
            b.held.damaged.cmp(&a.held.damaged).then(less_is_live)
        });
        let mut live = 0;
        let fits = |counted: &&Counted| {
            live += counted.live;
            live <= PACKED.max(counted.live)
        };
        let chosen: Vec<Held> = worth.into_iter().take(MANY).take_while(fits).map(|counted| counted.held).collect();
        (!chosen.is_empty()).then_some(chosen)
    }

    fn is_cleared(&self, collection: &str, version: u64) -> bool {
        let id = self.collections.get(collection);
        id.and_then(|id| self.clears.get(id)).is_some_and(|&clear| version < clear)
    }

    /// Writes what counts of the chosen segments to a new one, if there is anything, and returns it. What has to go then is
    /// added to `gone`.
    ///
    /// # Errors
    ///
    /// Of the disk: the chosen still count. Or that it was given up.
    pub(super) fn pack(
        &mut self,
        place: &Arc<Place>,
        numbers: &Numbers,
        chosen: &[Held],
        counter: u64,
        pace: &Pace<'_>,
        gone: &mut Vec<u64>,
    ) -> Result<Option<Held>> {
        self.segments.retain(|counted| !chosen.iter().any(|chosen| chosen.number == counted.held.number));
        let oldest_elsewhere = self.segments.iter().map(|counted| counted.oldest_put).min().unwrap_or(u64::MAX);
        let mut out = Out::new(place, numbers.next());
        let packed = self.write(&mut out, place, chosen, counter, oldest_elsewhere, pace);
        if packed.is_err() {
            out.give_up();
            // If its name is there, the next pass must not begin before it has gone.
            gone.push(out.number);
        }
        let packed = packed?;
        gone.extend(chosen.iter().map(|held| held.number));
        Ok(packed)
    }

    fn write(
        &mut self,
        out: &mut Out<'_>,
        place: &Place,
        chosen: &[Held],
        counter: u64,
        oldest_elsewhere: u64,
        pace: &Pace<'_>,
    ) -> Result<Option<Held>> {
        let replaced = chosen.iter().map(|held| held.number).collect();
        // What the chosen say of those before them must not go with them.
        let others = self.segments.iter().map(|counted| counted.held).filter(|held| !held.packed);
        let ends: Vec<(u64, u64)> = others.map(|held| (held.number, held.end)).take(MANY).collect();
        let is_witness = ends.iter().any(|(number, _)| chosen.iter().any(|held| held.number > *number));
        out.speak_of(&frame::Others { replaced, ends });
        let empty = out.end();
        let mut others = Others::default();
        let mut records = 0;
        for held in chosen {
            pace.step(held.end)?;
            with_frames(place, held, |scan| {
                for (_, frame) in &scan.frames {
                    let mut failed = Ok(());
                    frame.each(|change| {
                        if failed.is_ok() {
                            failed = self.keep(&change, out, &mut others, oldest_elsewhere, &mut records);
                        }
                    });
                    failed?;
                    if out.written > out.told + CHUNK as u64 {
                        pace.step(out.written - out.told)?;
                        out.told = out.written;
                    }
                }
                Ok(())
            })?;
        }
        // Only now it is known of which deleted members there is a value elsewhere.
        others.changes.retain(|kept| match kept {
            Kept::Delete { name, .. } => self.members.get(name).is_some_and(|entry| entry.puts > 0),
            _ => true,
        });
        records += others.changes.len() as u64;
        self.dropped = self.dropped.saturating_sub(others.changes.len() as u64);
        for some in others.changes.chunks(OTHERS) {
            let changes: Vec<Change<'_>> = some.iter().map(Kept::change).collect();
            out.frame(|bytes, at, synced| frame::encode(bytes, at, synced, &changes));
            out.write_out(CHUNK)?;
        }
        if out.is_empty_from(empty) && chosen.len() == 1 && !is_witness {
            // Nothing of it counts, and nothing else depends on it: it can go by itself.
            return Ok(None);
        }
        out.finish(counter)?;
        Ok(Some(Held { number: out.number, end: out.end(), packed: true, records, damaged: false }))
    }

    /// Takes a change over if it counts.
    fn keep(
        &mut self,
        change: &Change<'_>,
        out: &mut Out<'_>,
        others: &mut Others,
        oldest_elsewhere: u64,
        records: &mut u64,
    ) -> Result<()> {
        self.dropped += 1;
        match *change {
            Change::Put { collection, member, version, deadline, codec, value } => {
                let name = self.names.hash(collection, member);
                let cleared = self.is_cleared(collection, version);
                let Some(entry) = self.members.get_mut(&name) else { return Ok(()) };
                entry.puts = entry.puts.saturating_sub(1);
                if entry.version != version || cleared {
                    return Ok(());
                }
                *records += 1;
                self.dropped -= 1;
                out.put(collection, codec, member, version, deadline, value)
            }
            Change::Delete { collection, member, version } => {
                let name = self.names.hash(collection, member);
                let is_newest = self.members.get(&name).is_some_and(|entry| entry.version == version);
                if is_newest && !self.is_cleared(collection, version) {
                    let (collection, member) = (collection.to_owned(), member.to_owned());
                    others.add(Kept::Delete { name, collection, member, version });
                }
                Ok(())
            }
            Change::Clear { collection, version } => {
                let is_newest = self.collections.get(collection).and_then(|id| self.clears.get(id)) == Some(&version);
                if is_newest && oldest_elsewhere < version {
                    others.add(Kept::Clear { collection: collection.to_owned(), version });
                }
                Ok(())
            }
            Change::Deadline { collection, member, version, deadline } => {
                let name = self.names.hash(collection, member);
                let follows = |entry: &Entry| !entry.is_delete && entry.version < version;
                if self.deadlines.get(&name) == Some(&version)
                    && self.members.get(&name).is_some_and(follows)
                    && !self.is_cleared(collection, version)
                {
                    let (collection, member) = (collection.to_owned(), member.to_owned());
                    others.add(Kept::Deadline { collection, member, version, deadline });
                }
                Ok(())
            }
        }
    }
}

/// What is kept beside values.
#[derive(Default)]
struct Others {
    changes: Vec<Kept>,
    seen: HashSet<(u64, u128)>,
}

impl Others {
    /// Adds it once.
    fn add(&mut self, kept: Kept) {
        let id = match &kept {
            Kept::Delete { name, version, .. } => (*version, *name),
            Kept::Clear { version, .. } | Kept::Deadline { version, .. } => (*version, 0),
        };
        if self.seen.insert(id) {
            self.changes.push(kept);
        }
    }
}

enum Kept {
    Delete { name: u128, collection: String, member: String, version: u64 },
    Clear { collection: String, version: u64 },
    Deadline { collection: String, member: String, version: u64, deadline: Option<u64> },
}

impl Kept {
    fn change(&self) -> Change<'_> {
        match self {
            Kept::Delete { collection, member, version, .. } => {
                Change::Delete { collection, member, version: *version }
            }
            Kept::Clear { collection, version } => Change::Clear { collection, version: *version },
            Kept::Deadline { collection, member, version, deadline } => {
                Change::Deadline { collection, member, version: *version, deadline: *deadline }
            }
        }
    }
}

/// Reads the durable part of a segment.
fn with_frames<R>(place: &Place, held: &Held, with: impl FnOnce(&Scan<'_>) -> Result<R>) -> Result<R> {
    let start = segment::HEADER as u64;
    if held.end <= start {
        return with(&Scan::default());
    }
    let bytes = journal::read(&*place.fs, &place.journal, held.number, start, held.end)?;
    let scan = segment::scan(&bytes, held.number, start, held.end);
    if let Some(damaged) = scan.damaged.first().filter(|_| !held.damaged) {
        let path = place.journal.join(&journal::file_name(held.number));
        let reason = format!("it was durable, and its bytes {} to {} are damaged", damaged.start, damaged.end);
        return Err(Error::Corrupt { path, reason });
    }
    with(&scan)
}

/// A packed segment that is being written, under a temporary name.
pub(in crate::backend) struct Out<'a> {
    place: &'a Arc<Place>,
    pub(in crate::backend) number: u64,
    file: Option<Box<dyn File>>,
    /// What is to be written next, and where it goes.
    buffer: Vec<u8>,
    written: u64,
    told: u64,
    /// By collection and codec: what is being filled.
    blocks: BTreeMap<(Box<str>, Box<str>), Block>,
    in_blocks: usize,
}

impl<'a> Out<'a> {
    pub(in crate::backend) fn new(place: &'a Arc<Place>, number: u64) -> Out<'a> {
        // The header is written last.
        let buffer = vec![0; segment::HEADER];
        Out { place, number, file: None, buffer, written: 0, told: 0, blocks: BTreeMap::new(), in_blocks: 0 }
    }

    fn temporary(&self) -> String {
        format!("{}.new", journal::file_name(self.number))
    }

    /// Where the next frame begins.
    pub(in crate::backend) fn end(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    /// Whether nothing has been added since it ended there.
    fn is_empty_from(&self, end: u64) -> bool {
        self.end() == end && self.in_blocks == 0
    }

    /// Whether it is as large as one should be.
    pub(in crate::backend) fn is_large(&self) -> bool {
        self.end() + self.in_blocks as u64 >= PACKED
    }

    /// What it says of other segments. It must come first.
    pub(in crate::backend) fn speak_of(&mut self, others: &frame::Others) {
        self.frame(|bytes, at, synced| others.encode(bytes, at, synced));
    }

    fn frame(&mut self, encode: impl FnOnce(&mut Vec<u8>, frame::Place, u64)) {
        let offset = self.end();
        // It is durable as a whole, or not there.
        encode(&mut self.buffer, frame::Place { segment: self.number, offset }, offset);
    }

    pub(in crate::backend) fn put(
        &mut self,
        collection: &str,
        codec: &str,
        member: &str,
        version: u64,
        deadline: Option<u64>,
        value: &[u8],
    ) -> Result<()> {
        let key = (Box::from(collection), Box::from(codec));
        let block = self.blocks.entry(key).or_insert_with(|| Block::new(collection, codec, version));
        let before = block.len();
        block.push(member, version, deadline, value);
        self.in_blocks += block.len() - before;
        if block.len() >= BLOCK {
            let block = self.blocks.remove(&(Box::from(collection), Box::from(codec)));
            if let Some(block) = block {
                self.in_blocks -= block.len();
                self.frame(|bytes, at, synced| block.encode(bytes, at, synced));
            }
        } else if self.in_blocks >= BUFFERED {
            self.flush_blocks()?;
        }
        self.write_out(CHUNK)
    }

    pub(in crate::backend) fn flush_blocks(&mut self) -> Result<()> {
        for block in std::mem::take(&mut self.blocks).into_values() {
            self.frame(|bytes, at, synced| block.encode(bytes, at, synced));
            self.write_out(CHUNK)?;
        }
        self.in_blocks = 0;
        Ok(())
    }

    /// Writes what there is, if it is as much as this.
    fn write_out(&mut self, least: usize) -> Result<()> {
        if self.buffer.len() < least {
            return Ok(());
        }
        let (fs, name) = (&self.place.fs, self.temporary());
        let tmp = self.place.tmp()?;
        let failed = |action| {
            let path = tmp.join(&name);
            move |error| Error::io(action, path, error)
        };
        if self.file.is_none() {
            self.file = Some(fs.create(&tmp, &name).map_err(failed("create"))?);
        }
        let Some(file) = &mut self.file else { unreachable!("it was created") };
        write_all_at(&mut **file, &self.buffer, self.written).map_err(failed("write"))?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Makes it durable, and then one of the segments. `counter` is the highest number in use.
    pub(in crate::backend) fn finish(&mut self, counter: u64) -> Result<()> {
        self.flush_blocks()?;
        // Says that everything before it was durable, should the header be lost.
        self.frame(|bytes, at, synced| frame::encode(bytes, at, synced, &[]));
        self.write_out(0)?;
        let (name, tmp) = (self.temporary(), self.place.tmp()?);
        let header =
            Header { number: self.number, counter, previous: 0, previous_end: 0, packed_end: Some(self.written) };
        let path = tmp.join(&name);
        let Some(file) = &mut self.file else { unreachable!("something was written") };
        write_all_at(&mut **file, &header.encode(), 0).map_err(|error| Error::io("write", &path, error))?;
        file.sync_data().map_err(|error| Error::io("sync", &path, error))?;
        let place = self.place;
        let renamed = place.fs.rename(&tmp, &name, &place.journal, &journal::file_name(self.number));
        renamed.map_err(|error| Error::io("rename", &path, error))?;
        self.file = None;
        place.sync_dir(&place.journal)
    }

    /// Leaves nothing behind. What cannot be removed goes with the next load.
    fn give_up(&mut self) {
        if self.file.take().is_some()
            && let Ok(tmp) = self.place.tmp()
        {
            _ = self.place.fs.unlink(&tmp, &self.temporary());
        }
    }
}
