//! The journal: where writes become durable. Append-only segments of checksummed frames, in one directory.
//!
//! It knows nothing of maps, nor of where the changes come to rest. One thread appends and syncs; what is durable may be
//! read by others, from the segment's file. A sync that failed is not repeated: its segment is given up where it was last
//! durable, and whatever came after goes into a new one.

pub(crate) mod frame;
pub(crate) mod segment;

use std::fmt;
#[cfg(not(test))]
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::backend::Change;
use crate::error::{Error, Result};
use crate::fs::{Dir, File, Fs, Kind, read_up_to_at, write_all_at};
use frame::{Frame, Place};
use segment::Header;

/// A segment that has grown to this size is followed by a new one. Most are a little larger. Tests of crashes want
/// disks that are quick to copy, and several segments.
pub(crate) const SEGMENT: u64 = if cfg!(test) { 2 << 10 } else { 8 << 20 };

/// A segment's file grows by zeros, in steps of this, as long as what is appended is small: a sync of bytes that the file
/// has already costs the file system less than one that makes it longer.
const STEP: u64 = if cfg!(test) { 512 } else { 256 << 10 };

/// Zeros are written only if the disk has room for so many steps.
const AMPLE: u64 = 16;

/// What is appended at once and is larger than this goes to the file's end as it is.
const SMALL: usize = 64 << 10;

/// The name of a segment's file: how many were begun before it, and something that nobody can know in advance.
pub(crate) fn file_name(number: u64) -> String {
    format!("{:010}-{:08x}", number >> 32, number as u32)
}

/// The number of the segment in a file of that name.
pub(crate) fn number_of(name: &str) -> Option<u64> {
    let (ordinal, salt) = name.split_once('-')?;
    let (ordinal, salt): (u32, u32) = (ordinal.parse().ok()?, u32::from_str_radix(salt, 16).ok()?);
    let number = u64::from(ordinal) << 32 | u64::from(salt);
    (ordinal > 0 && file_name(number) == name).then_some(number)
}

/// Gives out the numbers of new segments. Their checksums cover them, and half of each is random: so no value can hold
/// bytes that are taken for a frame where the disk has damaged the real ones.
#[derive(Debug)]
pub(crate) struct Numbers {
    last: AtomicU64,
    #[cfg(test)]
    process: u32,
}

#[cfg(test)]
thread_local! {
    /// Tests of crashes want runs that are alike. They say which of a run's processes it is that loads on this thread:
    /// two must not take the same numbers.
    pub(crate) static PROCESS: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

impl Numbers {
    /// Numbers after `last`, which is 0 or a segment's.
    pub(crate) fn after(last: u64) -> Numbers {
        Numbers {
            last: AtomicU64::new(last >> 32),
            #[cfg(test)]
            process: PROCESS.get(),
        }
    }

    pub(crate) fn next(&self) -> u64 {
        let ordinal = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        ordinal << 32 | u64::from(self.salt(ordinal))
    }

    #[cfg(not(test))]
    fn salt(&self, ordinal: u64) -> u32 {
        RandomState::new().hash_one(ordinal) as u32
    }

    #[cfg(test)]
    fn salt(&self, ordinal: u64) -> u32 {
        ordinal as u32 ^ 0x5a17_0000 ^ self.process << 24
    }
}

/// The numbers of the segments in a directory, in order.
pub(crate) fn list(fs: &dyn Fs, dir: &Dir) -> Result<Vec<u64>> {
    let listed = fs.list(dir).map_err(|error| Error::io("list", dir.path(), error))?;
    let files = listed.iter().filter(|entry| entry.kind == Kind::File);
    let mut numbers: Vec<u64> = files.filter_map(|entry| number_of(&entry.name)).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// Reads the bytes of a segment from `start` to `end`, or to the end of its file.
pub(crate) fn read(fs: &dyn Fs, dir: &Dir, number: u64, start: u64, end: u64) -> Result<Vec<u8>> {
    /// What is made room for before it is known to be there.
    const AT_ONCE: u64 = if cfg!(test) { 4 << 10 } else { 64 << 10 };

    let name = file_name(number);
    let failed = |error| Error::io("read", dir.join(&name), error);
    let mut file = fs.open(dir, &name).map_err(failed)?;
    let mut bytes = Vec::new();
    loop {
        let at = start + bytes.len() as u64;
        let wanted = end.saturating_sub(at).min(AT_ONCE.max(bytes.len() as u64)) as usize;
        let filled = bytes.len();
        bytes.resize(filled + wanted, 0);
        let read = read_up_to_at(&mut *file, &mut bytes[filled..], at).map_err(failed)?;
        if read < wanted || wanted == 0 {
            bytes.truncate(filled + read);
            return Ok(bytes);
        }
    }
}

/// Appends to the newest segment.
pub(crate) struct Journal {
    fs: Arc<dyn Fs>,
    dir: Arc<Dir>,
    numbers: Arc<Numbers>,
    /// The last segment, as far as it is durable.
    last: Extent,
    active: Option<Active>,
    /// Closed since somebody last asked.
    sealed: Vec<Extent>,
    /// Reused from one append to the next.
    buffer: Vec<u8>,
}

/// The segment that is written.
struct Active {
    number: u64,
    file: Box<dyn File>,
    /// Where the next frame goes. 0 until the header is written.
    end: u64,
    /// How far it is durable.
    synced: u64,
    /// How far the file reaches, zeros included.
    grown: u64,
    /// Its name is durable.
    named: bool,
    /// A write failed in a way that leaves no trust in the file.
    failed: Option<Error>,
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal").field("dir", &self.dir).field("last", &self.last).finish_non_exhaustive()
    }
}

/// How far a segment is durable, for whoever reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) number: u64,
    pub(crate) end: u64,
}

impl Journal {
    /// Goes on after a segment, which is durable as far as this; number 0 for none.
    pub(crate) fn new(fs: Arc<dyn Fs>, dir: Arc<Dir>, numbers: Arc<Numbers>, last: Extent) -> Journal {
        Journal { fs, dir, numbers, last, active: None, sealed: Vec::new(), buffer: Vec::new() }
    }

    /// Appends a frame for each of the transactions, and one for each of the changes, or for values of one collection that
    /// come together, and hands them to the system.
    /// `counter` is at least the highest number in use.
    ///
    /// # Errors
    ///
    /// Nothing of it counts then.
    pub(crate) fn append(
        &mut self,
        transactions: &[&[Change<'_>]],
        changes: &[Change<'_>],
        counter: u64,
    ) -> Result<()> {
        self.append_with(counter, |buffer, mut place, synced| {
            for changes in transactions {
                let before = buffer.len();
                frame::encode(buffer, place, synced, changes);
                place.offset += (buffer.len() - before) as u64;
            }
            frame::encode_each(buffer, place, synced, changes);
        })
    }

    /// Appends frames of another segment.
    pub(crate) fn append_copies<'a>(&mut self, frames: impl Iterator<Item = Frame<'a>>, counter: u64) -> Result<()> {
        self.append_with(counter, |buffer, mut place, synced| {
            for found in frames {
                let before = buffer.len();
                frame::copy(buffer, place, synced, &found);
                place.offset += (buffer.len() - before) as u64;
            }
        })
    }

    fn append_with(&mut self, counter: u64, fill: impl FnOnce(&mut Vec<u8>, Place, u64)) -> Result<()> {
        if let Some(error) = self.active.as_ref().and_then(|active| active.failed.clone()) {
            return Err(error);
        }
        if self.active.is_none() {
            self.begin()?;
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        let last = self.last;
        let Some(active) = &mut self.active else { unreachable!("a segment was begun") };
        let at = active.end;
        if at == 0 {
            let header = Header {
                number: active.number,
                counter,
                previous: last.number,
                previous_end: last.end,
                packed_end: None,
            };
            buffer.extend_from_slice(&header.encode());
        }
        let place = Place { segment: active.number, offset: at + buffer.len() as u64 };
        fill(&mut buffer, place, active.synced);
        let path = self.dir.join(&file_name(active.number));
        let (fs, dir) = (&self.fs, &self.dir);
        // On a disk that is nearly full the room is for what is to be stored.
        let may_grow = || fs.room(dir).is_ok_and(|room| room.is_some_and(|room| room >= AMPLE * STEP));
        let written =
            active.write(&mut buffer, may_grow).map_err(|error| (is_full(&error), Error::io("append to", path, error)));
        // One large value does not keep its room.
        if buffer.capacity() <= 16 << 20 {
            self.buffer = buffer;
        }
        match written {
            Ok(()) => Ok(()),
            // What was written stands where nothing counts, and its room may be needed for what would make more.
            Err((true, error)) => {
                if active.file.set_len(active.end).is_ok() {
                    active.grown = active.end;
                }
                Err(error)
            }
            // A disk that fails in another way may have lost more than this.
            Err((false, error)) => {
                active.failed = Some(error.clone());
                if active.end == active.synced {
                    self.seal();
                }
                Err(error)
            }
        }
    }

    fn begin(&mut self) -> Result<()> {
        let number = self.numbers.next();
        let name = file_name(number);
        let file = self.fs.create(&self.dir, &name);
        let file = file.map_err(|error| Error::io("create", self.dir.join(&name), error))?;
        self.active = Some(Active { number, file, end: 0, synced: 0, grown: 0, named: false, failed: None });
        Ok(())
    }

    /// Bytes that are not durable yet.
    pub(crate) fn unsynced(&self) -> u64 {
        self.active.as_ref().map_or(0, |active| active.end - active.synced)
    }

    /// The segment that is written, as far as it is durable.
    pub(crate) fn active(&self) -> Option<Extent> {
        self.active.as_ref().map(|active| Extent { number: active.number, end: active.synced })
    }

    /// Whether the segment that is written is as large as one should be.
    pub(crate) fn is_full(&self, size: u64) -> bool {
        self.active.as_ref().is_some_and(|active| active.end >= size)
    }

    /// Makes everything that was appended durable: one sync, whatever there is.
    ///
    /// # Errors
    ///
    /// What was appended since the last success may be lost, and its segment is closed: append it again.
    pub(crate) fn sync(&mut self) -> Result<()> {
        let Some(active) = &mut self.active else { return Ok(()) };
        let path = self.dir.join(&file_name(active.number));
        let synced = match active.failed.take() {
            Some(error) => Err(error),
            None if active.end == active.synced => return Ok(()),
            None => active.file.sync_data().map_err(|error| Error::io("sync", &path, error)),
        };
        let synced = match synced {
            Ok(()) if !active.named => {
                self.fs.sync_dir(&self.dir).map_err(|error| Error::io("sync directory", self.dir.path(), error))
            }
            synced => synced,
        };
        match synced {
            Ok(()) => {
                active.named = true;
                active.synced = active.end;
                Ok(())
            }
            Err(error) => {
                self.seal();
                Err(error)
            }
        }
    }

    /// Gives back the room ahead in the segment that is written. It costs nothing but the room if that fails.
    pub(crate) fn trim(&mut self) {
        if let Some(active) =
            self.active.as_mut().filter(|active| active.grown > active.end && active.end == active.synced)
            && active.file.set_len(active.end).is_ok()
        {
            active.grown = active.end;
        }
    }

    /// Closes the segment that is written, as far as it is durable. The next append begins another.
    pub(crate) fn seal(&mut self) {
        if let Some(active) = self.active.take() {
            let extent = Extent { number: active.number, end: active.synced };
            // The next segment's header says how far the last one was durable, and nothing else does. Of one of which
            // nothing is durable, the header is not either: the one before still has nobody who says it.
            if active.synced > 0 {
                self.last = extent;
            }
            self.sealed.push(extent);
        }
    }

    /// The segments that were closed since this was last called, as far as they are durable. Each of them has a file,
    /// even if nothing in it is durable.
    pub(crate) fn take_sealed(&mut self) -> Vec<Extent> {
        std::mem::take(&mut self.sealed)
    }
}

impl Active {
    /// Writes at the end, with zeros behind it if that makes the next sync cheaper and the disk has room. `bytes` is not looked at again.
    fn write(&mut self, bytes: &mut Vec<u8>, may_grow: impl FnOnce() -> bool) -> std::io::Result<()> {
        let length = bytes.len();
        let end = self.end + length as u64;
        if end > self.grown && length <= SMALL && may_grow() {
            let grown = end.next_multiple_of(STEP);
            bytes.resize(length + (grown - end) as usize, 0);
        }
        let mut written = write_all_at(&mut *self.file, bytes, self.end);
        if bytes.len() > length && written.as_ref().is_err_and(is_full) {
            written = write_all_at(&mut *self.file, &bytes[..length], self.end);
            bytes.truncate(length);
        }
        written?;
        self.grown = self.grown.max(self.end + bytes.len() as u64);
        self.end = end;
        Ok(())
    }
}

/// No room, by whatever name: later there may be.
pub(crate) fn is_full(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::fault::{Fault, Faulty};

    fn store(journal: &mut Journal, version: u64) -> Result<Extent> {
        let put = Change::Put { collection: "c", member: "m", version, deadline: None, codec: "raw", value: b"v" };
        journal.append(&[], &[put], version)?;
        journal.sync()?;
        Ok(journal.active().expect("it was written to"))
    }

    /// Whatever fails while the second segment begins.
    #[test]
    fn the_first_segment_that_is_durable_says_how_far_the_one_before_it_was() {
        for at in 0.. {
            let dir = tempfile::tempdir().unwrap();
            let fs = Faulty::new(Fault { at, sticky: false, kind: std::io::ErrorKind::Other });
            let Ok(root) = fs.open_root(dir.path()) else { continue };
            let nothing = Extent { number: 0, end: 0 };
            let mut journal = Journal::new(fs.clone(), Arc::new(root), Arc::new(Numbers::after(0)), nothing);
            let Ok(first) = store(&mut journal, 1) else { continue };
            journal.seal();
            let next = (2..).find_map(|version| store(&mut journal, version).ok()).unwrap();
            let start = read(&crate::fs::Native, &journal.dir, next.number, 0, segment::HEADER as u64).unwrap();
            let header = Header::decode(&start, next.number).unwrap();
            assert_eq!((header.previous, header.previous_end), (first.number, first.end), "operation {at} failed");
            if !fs.struck() {
                assert!(at > 6, "{at}");
                break;
            }
        }
    }
}
