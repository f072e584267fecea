//! A store's directory: what makes it one, its lock, and what stands in `.larder`.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use super::meta::{self, Count, JOURNAL_DIR, Kept, Lock, META_DIR, QUARANTINE_DIR, TMP_DIR};
use super::{header, load, name};
use crate::backend::{Change, Layout, Loader, Quarantined};
use crate::error::{Error, Result};
use crate::fs::{Dir, Fs, Kind, write_all};
use crate::journal::{self, Extent};

/// What a loaded store holds open. The lock comes last: it is released after everything else is closed.
#[derive(Debug)]
pub(in crate::backend) struct Place {
    pub(in crate::backend) fs: Arc<dyn Fs>,
    pub(in crate::backend) root: Dir,
    pub(in crate::backend) meta: Dir,
    pub(in crate::backend) journal: Arc<Dir>,
    quarantine: Dir,
    /// What the format said when it was opened.
    pub(in crate::backend) kept: Kept,
    /// `None` for one that is only looked at: nothing is changed there.
    lock: Option<Lock>,
    /// What is of another kind than it must be has been told, and is taken for missing.
    is_checked: bool,
}

impl Place {
    /// Opens the directory and takes its lock, creating what is missing, in this layout.
    pub(in crate::backend) fn open(path: &Path, fs: Arc<dyn Fs>, layout: Layout) -> Result<Place> {
        let place = Place::open_any(path, fs, layout)?;
        let found = place.kept.layout();
        if found != layout {
            return Err(Error::OtherLayout { path: path.to_owned(), found, asked: layout });
        }
        Ok(place)
    }

    /// The same, in whichever layout it has; a new one in this.
    pub(in crate::backend) fn open_any(path: &Path, fs: Arc<dyn Fs>, layout: Layout) -> Result<Place> {
        meta::check_path(&*fs, path)?;
        meta::make_path(&*fs, path)?;
        let root = fs.open_root(path).map_err(|error| Error::io("open directory", path, error))?;
        let meta = open_or_make(&*fs, &root, META_DIR)?;
        let lock = Lock::take(&*fs, path, &meta)?;
        let format = meta::read_format(&*fs, path, &meta)?;
        let tmp = open_or_make(&*fs, &meta, TMP_DIR)?;
        let quarantine = open_or_make(&*fs, &meta, QUARANTINE_DIR)?;
        let journal = Arc::new(open_or_make(&*fs, &meta, JOURNAL_DIR)?);
        let kept = format.unwrap_or(if layout == Layout::Files { Kept::Files } else { Kept::Packed });
        let place = Place { fs, root, meta, journal, quarantine, kept, lock: Some(lock), is_checked: false };
        if format.is_none() {
            place.initialise(&tmp)?;
        } else if place.was_left_unclosed()? {
            place.sync_dir(&place.meta)?;
        }
        place.remove_temporaries(&tmp)?;
        Ok(place)
    }

    /// Opens the directory of a store that may belong to somebody else, to look at it.
    /// `kept` is what the format says if it says nothing; who gives it has seen what is wrong with the rest, and goes on
    /// without it.
    pub(in crate::backend) fn look(path: &Path, fs: Arc<dyn Fs>, kept: Option<Kept>) -> Result<Place> {
        let nothing = || Error::NotAStore { path: path.to_owned(), reason: "there is no store" };
        let open = |parent: &Dir, name: &str| {
            fs.open_dir(parent, name).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => nothing(),
                _ => Error::io("open directory", parent.join(name), error),
            })
        };
        let root = fs.open_root(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => nothing(),
            _ => Error::io("open directory", path, error),
        })?;
        let meta = open(&root, META_DIR)?;
        let is_checked = kept.is_some();
        let kept = match kept {
            Some(kept) => kept,
            None => meta::read_format(&*fs, path, &meta)?.ok_or_else(nothing)?,
        };
        // One that is not there holds nothing, as this one does: no name in it is a segment's.
        let or_meta = |name| match fs.open_dir(&meta, name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => open(&root, META_DIR),
            Err(_) if is_checked && meta::is_other(&*fs, &meta, name, Kind::Dir)? => open(&root, META_DIR),
            opened => opened.map_err(|error| Error::io("open directory", meta.join(name), error)),
        };
        let (journal, quarantine) = (Arc::new(or_meta(JOURNAL_DIR)?), or_meta(QUARANTINE_DIR)?);
        Ok(Place { fs, root, meta, journal, quarantine, kept, lock: None, is_checked })
    }

    pub(in crate::backend) fn is_only_looked_at(&self) -> bool {
        self.lock.is_none()
    }

    /// Whether there is nothing to be read of a file of larder's own, since something else stands there.
    fn is_no_file(&self, name: &str) -> Result<bool> {
        Ok(self.is_checked && meta::is_other(&*self.fs, &self.meta, name, Kind::File)?)
    }

    pub(in crate::backend) fn read_mark(&self) -> Result<meta::Mark> {
        let missing = self.is_no_file(meta::COUNTER_FILE)?;
        if missing { Ok(meta::Mark::Missing) } else { meta::read_mark(&*self.fs, &self.meta) }
    }

    pub(in crate::backend) fn read_count(&self) -> Result<Option<Count>> {
        if self.is_no_file(meta::MEMBERS_FILE)? { Ok(None) } else { meta::read_count(&*self.fs, &self.meta) }
    }

    pub(in crate::backend) fn read_segments(&self) -> Result<Option<Vec<Extent>>> {
        if self.is_no_file(meta::SEGMENTS_FILE)? { Ok(None) } else { meta::read_segments(&*self.fs, &self.meta) }
    }

    /// Whether nobody can know that the names in `.larder` are durable. A load that failed may have left the format
    /// without making it so, and a process that was killed in its close the counter, too: what is stored must not come
    /// before the one, nor the journal go before the other. What is packed needs no counter, and its list of segments
    /// goes with a sync.
    fn was_left_unclosed(&self) -> Result<bool> {
        let at_rest = journal::list(&*self.fs, &self.journal)?.is_empty();
        if !at_rest && self.kept == Kept::Files {
            return Ok(true);
        }
        for name in [meta::COUNTER_FILE, meta::SEGMENTS_FILE] {
            let kind = self.fs.kind(&self.meta, name);
            if kind.map_err(|error| Error::io("look at", self.meta.join(name), error))?.is_some() {
                return Ok(false);
            }
        }
        Ok(at_rest)
    }

    /// Makes the file of the format again. What it was goes into quarantine.
    pub(in crate::backend) fn mend_format(
        fs: &dyn Fs,
        root: &Dir,
        meta: &Dir,
        kept: Kept,
        damaged: Option<Error>,
    ) -> Result<Option<Quarantined>> {
        let tmp = open_or_make(fs, meta, TMP_DIR)?;
        let moved = damaged
            .map(|error| Place::put_own_aside(fs, meta, (meta, META_DIR), meta::FORMAT_FILE, &error.to_string()));
        let moved = moved.transpose()?;
        for dir in [meta, root] {
            fs.sync_dir(dir).map_err(|error| Error::io("sync directory", dir.path(), error))?;
        }
        meta::write_format(fs, meta, &tmp, kept)?;
        Ok(moved)
    }

    /// Moves what stands in `dir` into quarantine, whatever it is, with a note that is durable before it moves. Wherever
    /// that ends, it stands where it stood, or in quarantine beside its note.
    ///
    /// What stands in the place of the quarantine itself goes by way of a name in `.larder`: see [`is_on_its_way`].
    pub(in crate::backend) fn put_own_aside(
        fs: &dyn Fs,
        meta: &Dir,
        (dir, dir_name): (&Dir, &str),
        name: &str,
        reason: &str,
    ) -> Result<Quarantined> {
        let path = dir.join(name);
        let failed = |error| Error::io("quarantine", &path, error);
        let sync = |dir: &Dir| fs.sync_dir(dir).map_err(|error| Error::io("sync directory", dir.path(), error));
        // Things of one name may be put aside at once.
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let target = load::quarantine_name(now(), NUMBER.fetch_add(1, Ordering::Relaxed), dir_name, name);
        let (dir, name) = if dir_name == META_DIR && name == QUARANTINE_DIR {
            fs.rename(dir, name, meta, &target).map_err(failed)?;
            sync(meta)?;
            (meta, &*target)
        } else {
            (dir, name)
        };
        let quarantine = open_or_make(fs, meta, QUARANTINE_DIR)?;
        sync(meta)?;
        write_note(fs, &quarantine, &target, &path, reason, true)?;
        sync(&quarantine)?;
        fs.rename(dir, name, &quarantine, &target).map_err(failed)?;
        [&quarantine, dir].into_iter().try_for_each(sync)?;
        let moved_to = quarantine.join(&target);
        Ok(Quarantined { path, reason: reason.to_owned(), moved_to })
    }

    /// The format is written last: without it there is nothing in the directory that counts.
    fn initialise(&self, tmp: &Dir) -> Result<()> {
        let listed = self.fs.list(&self.root).map_err(|error| Error::io("list", self.root.path(), error))?;
        let segments = journal::list(&*self.fs, &self.journal)?;
        if !segments.is_empty() || listed.iter().any(|entry| entry.name != META_DIR) {
            let path = self.meta.join(meta::FORMAT_FILE);
            return Err(Error::Corrupt { path, reason: "it is missing, and there are members".into() });
        }
        self.sync_dir(&self.meta)?;
        self.sync_dir(&self.root)?;
        meta::sync_path(&*self.fs, self.root.path().parent())?;
        meta::write_format(&*self.fs, &self.meta, tmp, self.kept)
    }

    /// Whatever stands in the directory for temporary files is left over from a crash.
    pub(in crate::backend) fn remove_temporaries(&self, tmp: &Dir) -> Result<()> {
        let listed = self.fs.list(tmp).map_err(|error| Error::io("list", tmp.path(), error))?;
        for entry in listed.iter().filter(|entry| entry.kind == Kind::File) {
            let removed = self.fs.unlink(tmp, &entry.name);
            removed.map_err(|error| Error::io("unlink", tmp.join(&entry.name), error))?;
        }
        Ok(())
    }

    /// The directory for temporary files, made again if somebody has removed it.
    pub(in crate::backend) fn tmp(&self) -> Result<Dir> {
        open_or_make(&*self.fs, &self.meta, TMP_DIR)
    }

    pub(in crate::backend) fn sync_dir(&self, dir: &Dir) -> Result<()> {
        if self.is_only_looked_at() {
            return Ok(());
        }
        self.fs.sync_dir(dir).map_err(|error| Error::io("sync directory", dir.path(), error))
    }

    pub(in crate::backend) fn write_kept(&self, kept: Kept) -> Result<()> {
        meta::write_format(&*self.fs, &self.meta, &self.tmp()?, kept)
    }

    /// Whether the format says so now. Not if it cannot be read.
    pub(in crate::backend) fn is_kept(&self, kept: Kept) -> bool {
        meta::read_format(&*self.fs, self.root.path(), &self.meta).is_ok_and(|found| found == Some(kept))
    }

    /// Notes the segments of a packed store that is closed, and how far they reach.
    pub(in crate::backend) fn write_segments(&self, segments: &[Extent]) -> Result<()> {
        meta::write_segments(&*self.fs, &self.meta, &self.tmp()?, segments)
    }

    /// They are about to change.
    pub(in crate::backend) fn forget_segments(&self) -> Result<()> {
        match self.fs.unlink(&self.meta, meta::SEGMENTS_FILE) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io("unlink", self.meta.join(meta::SEGMENTS_FILE), error))
            }
            // A load that failed may have removed it without making that durable.
            _ => self.sync_dir(&self.meta),
        }
    }

    /// Notes how many members' files a store is closed with.
    pub(in crate::backend) fn write_count(&self, count: Count) -> Result<()> {
        meta::write_count(&*self.fs, &self.meta, &self.tmp()?, count)
    }

    /// Some of them are about to go, without a change of the store.
    pub(in crate::backend) fn forget_count(&self) -> Result<()> {
        meta::forget_count(&*self.fs, &self.meta)
    }

    /// Moves a segment of which nothing can be read, and nothing is known to have been durable, out of the way: a crash may
    /// have left it so, and then nobody misses it.
    pub(in crate::backend) fn set_aside(&self, number: u64) -> Result<()> {
        let name = journal::file_name(number);
        let from = self.journal.join(&name);
        let reason = "nothing in it can be read, and nothing says that anything in it was durable";
        let target = self.write_note((JOURNAL_DIR, &name), 1, &from, reason)?;
        let moved = self.fs.rename(&self.journal, &name, &self.quarantine, &target);
        moved.map_err(|error| Error::io("quarantine", &from, error))
    }

    pub(in crate::backend) fn write_counter(&self, counter: u64) -> Result<()> {
        meta::write_mark(&*self.fs, &self.meta, &self.tmp()?, counter)
    }

    /// Moves a damaged file into quarantine, with a note beside it that says where it was and what is wrong with it.
    pub(in crate::backend) fn put_aside(
        &self,
        dir: &Dir,
        dir_name: &str,
        file: &str,
        reason: &str,
        number: usize,
        loader: &Loader<'_>,
    ) -> Result<()> {
        let from = dir.join(file);
        if self.is_only_looked_at() {
            loader.quarantined(&from, reason, &from);
            return Ok(());
        }
        let target = self.write_note((dir_name, file), number, &from, reason)?;
        let moved = self.fs.rename(dir, file, &self.quarantine, &target);
        moved.map_err(|error| Error::io("quarantine", &from, error))?;
        loader.quarantined(from, reason, self.quarantine.join(&target));
        Ok(())
    }

    /// Puts a copy of a damaged part of a segment into quarantine. On a full disk the part is only told: it stays where it
    /// is until the segment has come to rest.
    pub(in crate::backend) fn put_part_aside(
        &self,
        segment: &str,
        at: u64,
        part: &[u8],
        reason: &str,
        loader: &Loader<'_>,
    ) -> Result<()> {
        let from = self.journal.join(segment);
        if self.is_only_looked_at() {
            loader.quarantined(&from, reason, &from);
            return Ok(());
        }
        let target = self.write_note((JOURNAL_DIR, segment), at as usize, &from, reason)?;
        match self.write_copy(&target, part) {
            Err(error) if crate::journal::is_full(&error) => {}
            written => written.map_err(|error| Error::io("quarantine a part of", &from, error))?,
        }
        loader.quarantined(from, reason, self.quarantine.join(&target));
        Ok(())
    }

    pub(in crate::backend) fn sync_quarantine(&self) -> Result<()> {
        self.sync_dir(&self.quarantine)
    }

    /// Writes the note of a file in a directory, and returns the name that is the file's in quarantine.
    fn write_note(&self, (dir, file): (&str, &str), mut number: usize, from: &Path, reason: &str) -> Result<String> {
        let last = number + 100;
        loop {
            let target = load::quarantine_name(now(), number, dir, file);
            match write_note(&*self.fs, &self.quarantine, &target, from, reason, false) {
                // A load that failed may have written it in the same millisecond.
                Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists && number < last => {
                    number += 1;
                }
                written => return written.map(|()| target),
            }
        }
    }

    fn write_copy(&self, target: &str, bytes: &[u8]) -> io::Result<()> {
        let mut copy = self.fs.create(&self.quarantine, target)?;
        write_all(&mut *copy, bytes).and_then(|()| copy.sync_data())
    }

    pub(in crate::backend) fn quarantine_copy(&self, member: &Change<'_>, reason: &str) -> Result<PathBuf> {
        let Change::Put { collection, member, version, deadline, codec, value } = *member else {
            return Err(Error::backend("quarantine a member", "only a value can be put aside"));
        };
        let (dir, file) = (name::file_name(collection), name::file_name(member));
        let from = self.root.path().join(&dir).join(&file);
        let target = self.write_note((&dir, &file), version as usize, &from, reason)?;
        let mut bytes = Vec::new();
        header::encode(&mut bytes, collection, member, version, deadline, codec, value);
        self.write_copy(&target, &bytes).map_err(|error| Error::io("quarantine", &from, error))?;
        self.sync_quarantine()?;
        Ok(self.quarantine.join(&target))
    }
}

/// Whether it is the name, in `.larder`, of what stood in the place of the quarantine, and was on its way there when a process
/// ended.
pub(in crate::backend) fn is_on_its_way(name: &str) -> bool {
    let number = name.strip_suffix(QUARANTINE_DIR).and_then(|rest| rest.strip_suffix(&format!("-{META_DIR}-")));
    number.is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-'))
}

/// The note is created first: it must not exist yet, so its name keeps the file's from being taken twice. On a full
/// disk the file is put aside without one, for the store must open to be emptied.
fn write_note(fs: &dyn Fs, quarantine: &Dir, target: &str, from: &Path, reason: &str, durably: bool) -> Result<()> {
    let note = format!("{target}.reason");
    let text = format!("{}\n{reason}\n", from.display());
    let written = fs.create(quarantine, &note).and_then(|mut file| {
        write_all(&mut *file, text.as_bytes())?;
        if durably { file.sync_data() } else { Ok(()) }
    });
    match written {
        Err(error) if journal::is_full(&error) => Ok(()),
        written => written.map_err(|error| Error::io("write", quarantine.join(&note), error)),
    }
}

/// What is there already is opened without a call that changes anything: a disk that takes no changes must not keep
/// anybody from hearing that the store is locked.
pub(in crate::backend) fn open_or_make(fs: &dyn Fs, parent: &Dir, name: &str) -> Result<Dir> {
    let opened = match fs.open_dir(parent, name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            match fs.make_dir(parent, name) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(Error::io("create directory", parent.join(name), error));
                }
                _ => {}
            }
            fs.open_dir(parent, name)
        }
        opened => opened,
    };
    opened.map_err(|error| Error::io("open directory", parent.join(name), error))
}

/// Milliseconds since 1970.
fn now() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis())
}
