//! One file per member, in one directory per collection.
//!
//! Every batch is written with the barriers that keep a crash from damaging what was there: all new files are written
//! under temporary names and made durable, then all are renamed into place, and `sync` makes the directories durable.
//! `docs/format.md` describes what is on the disk.

#[cfg(test)]
mod faults;
mod header;
mod load;
mod meta;
mod name;

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::{Backend, Change, Loader, Rejected};
use crate::error::{Error, Result};
use crate::fs::{Dir, Fs, Kind, Native, read_up_to, write_all};
use meta::{Lock, META_DIR, Mark, QUARANTINE_DIR, TMP_DIR};

/// How far the counter's durable mark runs ahead of the versions in use, so that it is seldom written.
const MARK_AHEAD: u64 = 1 << 16;

/// How far the counter jumps when its mark is lost: past every number that deletes may have used up since the highest
/// version that is still there.
const AFTER_DAMAGE: u64 = 1 << 32;

/// Up to this many files or directories are synced one by one; more go through one sync of the file system, which
/// also waits for what others are writing.
const SYNC_EACH: usize = 8;

/// Collection directories that are kept open. A store holds no more descriptors than these and a dozen, however many
/// collections a batch touches.
const DIRS_KEPT: usize = 32;

/// The default backend: one readable file per member.
///
/// It is made by [`Store::options`](crate::Store::options) from the store's path; it is public for its name and its
/// place in the documentation.
#[derive(Debug)]
pub struct Files {
    path: PathBuf,
    fs: Arc<dyn Fs>,
    open: Option<Opened>,
}

/// What a loaded store holds open. The lock comes last: it is released after everything else is closed.
#[derive(Debug)]
struct Opened {
    fs: Arc<dyn Fs>,
    root: Dir,
    meta: Dir,
    tmp: Dir,
    quarantine: Dir,
    /// By directory name.
    dirs: HashMap<String, Arc<Dir>>,
    /// The names of the directories that have changed since the last sync.
    unsynced: HashSet<String>,
    /// A collection directory was made since the last sync.
    root_unsynced: bool,
    next_temporary: u64,
    /// The counter's durable mark.
    mark: u64,
    sync_fs: bool,
    _lock: Lock,
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

    /// The store's directory, resolved.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn on(fs: Arc<dyn Fs>, path: &Path) -> Result<Files> {
        let path = meta::absolute(path)?;
        meta::check_path(&*fs, &path)?;
        Ok(Files { path, fs, open: None })
    }

    fn opened(&mut self) -> Result<&mut Opened> {
        self.open.as_mut().ok_or_else(|| Error::NotLoaded { path: self.path.clone() })
    }
}

impl Backend for Files {
    fn load(&mut self, loader: &Loader<'_>) -> Result<u64> {
        let mut open = Opened::open(&self.path, self.fs.clone())?;
        let mark = open.load(loader)?;
        self.open = Some(open);
        Ok(mark)
    }

    fn apply(&mut self, batch: &[Change<'_>]) -> Result<(), Rejected> {
        self.opened()?.apply(batch)
    }

    fn sync(&mut self) -> Result<()> {
        self.opened()?.sync()
    }

    fn close(&mut self, counter: u64) -> Result<()> {
        let open = self.opened()?;
        match meta::write_mark(&*open.fs, &open.meta, &open.tmp, counter) {
            // The mark that is there covers it: numbers only skip some.
            Err(_) if counter <= open.mark => {}
            written => written?,
        }
        self.open = None;
        Ok(())
    }

    fn quarantine(&mut self, member: &Change<'_>, reason: &str) -> Result<PathBuf> {
        self.opened()?.quarantine_copy(member, reason)
    }
}

impl Opened {
    /// Opens the directory and takes its lock, creating what is missing.
    fn open(path: &Path, fs: Arc<dyn Fs>) -> Result<Opened> {
        meta::check_path(&*fs, path)?;
        meta::make_path(&*fs, path)?;
        let root = fs.open_root(path).map_err(|error| Error::io("open directory", path, error))?;
        let meta = open_or_make(&*fs, &root, META_DIR)?;
        let lock = Lock::take(&*fs, path, &meta)?;
        let format = meta::read_format(&*fs, path, &meta)?;
        let tmp = open_or_make(&*fs, &meta, TMP_DIR)?;
        let quarantine = open_or_make(&*fs, &meta, QUARANTINE_DIR)?;
        let sync_fs = fs.has_sync_fs();
        let mut open = Opened {
            fs,
            root,
            meta,
            tmp,
            quarantine,
            dirs: HashMap::new(),
            unsynced: HashSet::new(),
            root_unsynced: false,
            next_temporary: 0,
            mark: 0,
            sync_fs,
            _lock: lock,
        };
        if format.is_none() {
            open.initialise()?;
        }
        Ok(open)
    }

    /// The format is written last: without it there is nothing in the directory that counts.
    fn initialise(&mut self) -> Result<()> {
        let listed = self.fs.list(&self.root).map_err(|error| Error::io("list", self.root.path(), error))?;
        if listed.iter().any(|entry| entry.name != META_DIR) {
            let path = self.meta.join(meta::FORMAT_FILE);
            return Err(Error::Corrupt { path, reason: "it is missing, and there is something beside .larder".into() });
        }
        self.sync_one(&self.meta)?;
        self.sync_one(&self.root)?;
        if let Some(parent) = self.root.path().parent() {
            // The store's own name. A parent that cannot be opened is not ours to sync.
            if let Ok(parent) = self.fs.open_root(parent) {
                self.sync_one(&parent)?;
            }
        }
        meta::write_format(&*self.fs, &self.meta, &self.tmp)
    }

    fn sync_one(&self, dir: &Dir) -> Result<()> {
        self.fs.sync_dir(dir).map_err(|error| Error::io("sync directory", dir.path(), error))
    }

    fn load(&mut self, loader: &Loader<'_>) -> Result<u64> {
        self.remove_temporaries()?;
        let (mut damaged, highest) = load::load(&*self.fs, &self.root, loader)?;
        // What is durable, and what numbers go on from.
        let counter;
        (self.mark, counter) = match meta::read_mark(&*self.fs, &self.meta)? {
            Mark::At(mark) => (mark, mark),
            Mark::Missing => (0, 0),
            Mark::Damaged(reason) => {
                self.put_aside(&self.meta, META_DIR, meta::COUNTER_FILE, &reason, 0, loader)?;
                (0, (highest + AFTER_DAMAGE).min(crate::map::MAX_VERSION))
            }
        };
        damaged.sort_by(|a, b| (&a.dir, &a.file).cmp(&(&b.dir, &b.file)));
        for (number, damaged) in damaged.iter().enumerate() {
            let dir = self.dir(&damaged.dir)?;
            self.put_aside(&dir, &damaged.dir, &damaged.file, &damaged.reason, number + 1, loader)?;
            self.unsynced.insert(damaged.dir.clone());
        }
        if !damaged.is_empty() {
            self.sync_one(&self.quarantine)?;
            self.sync()?;
        }
        Ok(counter.max(highest))
    }

    /// Whatever stands in the directory for temporary files is left over from a crash.
    fn remove_temporaries(&mut self) -> Result<()> {
        let listed = self.fs.list(&self.tmp).map_err(|error| Error::io("list", self.tmp.path(), error))?;
        for entry in listed.iter().filter(|entry| entry.kind == Kind::File) {
            let removed = self.fs.unlink(&self.tmp, &entry.name);
            removed.map_err(|error| Error::io("unlink", self.tmp.join(&entry.name), error))?;
        }
        Ok(())
    }

    /// Moves a damaged file into quarantine, with a note beside it that says where it was and what is wrong with it.
    fn put_aside(
        &self,
        dir: &Dir,
        dir_name: &str,
        file: &str,
        reason: &str,
        number: usize,
        loader: &Loader<'_>,
    ) -> Result<()> {
        let from = dir.join(file);
        let target = load::quarantine_name(now(), number, dir_name, file);
        self.write_note(&target, &from, reason)?;
        let moved = self.fs.rename(dir, file, &self.quarantine, &target);
        moved.map_err(|error| Error::io("quarantine", &from, error))?;
        loader.quarantined(from, reason, self.quarantine.join(&target));
        Ok(())
    }

    /// The note is created first: it must not exist yet, so its name keeps the file's from being taken twice. On a full
    /// disk the file is put aside without one, for the store must open to be emptied.
    fn write_note(&self, target: &str, from: &Path, reason: &str) -> Result<()> {
        let note = format!("{target}.reason");
        let text = format!("{}\n{reason}\n", from.display());
        let written =
            self.fs.create(&self.quarantine, &note).and_then(|mut file| write_all(&mut *file, text.as_bytes()));
        match written {
            Err(error) if error.kind() == io::ErrorKind::StorageFull => Ok(()),
            written => written.map_err(|error| Error::io("write", self.quarantine.join(&note), error)),
        }
    }

    fn quarantine_copy(&mut self, member: &Change<'_>, reason: &str) -> Result<PathBuf> {
        let Change::Put { collection, member, version, codec, value } = *member else {
            return Err(Error::backend("quarantine a member", "only a value can be put aside"));
        };
        let (dir, file) = (name::file_name(collection), name::file_name(member));
        let from = self.root.path().join(&dir).join(&file);
        let target = load::quarantine_name(now(), version as usize, &dir, &file);
        self.write_note(&target, &from, reason)?;
        let mut bytes = Vec::new();
        header::encode(&mut bytes, collection, member, version, codec, value);
        let to = self.quarantine.join(&target);
        let failed = |error| Error::io("quarantine", &from, error);
        let mut copy = self.fs.create(&self.quarantine, &target).map_err(failed)?;
        write_all(&mut *copy, &bytes).and_then(|()| copy.sync_data()).map_err(failed)?;
        self.sync_one(&self.quarantine)?;
        Ok(to)
    }

    /// Makes the counter's mark durable before a version above it is.
    fn raise_mark(&mut self, version: u64) -> Result<()> {
        if version < self.mark {
            return Ok(());
        }
        let mark = (version + MARK_AHEAD).min(crate::map::MAX_VERSION);
        meta::write_mark(&*self.fs, &self.meta, &self.tmp, mark)?;
        self.mark = mark;
        Ok(())
    }

    /// The directory of that name, opened, or made if there is none.
    fn dir(&mut self, name: &str) -> Result<Arc<Dir>> {
        if let Some(dir) = self.dirs.get(name) {
            return Ok(dir.clone());
        }
        let path = || self.root.join(name);
        let opened = match self.fs.open_dir(&self.root, name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.fs.make_dir(&self.root, name).map_err(|error| Error::io("create directory", path(), error))?;
                self.root_unsynced = true;
                self.fs.open_dir(&self.root, name)
            }
            opened => opened,
        };
        let dir = Arc::new(opened.map_err(|error| Error::io("open directory", path(), error))?);
        if self.dirs.len() >= DIRS_KEPT {
            self.dirs.clear();
        }
        self.dirs.insert(name.to_owned(), dir.clone());
        Ok(dir)
    }

    /// The directory of that name if there is one.
    fn existing_dir(&mut self, name: &str) -> Result<Option<Arc<Dir>>> {
        if let Some(dir) = self.dirs.get(name) {
            return Ok(Some(dir.clone()));
        }
        match self.fs.open_dir(&self.root, name) {
            Ok(dir) => Ok(Some(Arc::new(dir))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("open directory", self.root.join(name), error)),
        }
    }

    fn apply(&mut self, batch: &[Change<'_>]) -> Result<(), Rejected> {
        let mut failed = Vec::new();
        // Removals first: on a full disk they make room.
        self.remove(batch, &mut failed);
        self.write(batch, &mut failed);
        if failed.is_empty() {
            return Ok(());
        }
        // What was opened may be what fails: look again next time.
        self.dirs.clear();
        failed.sort_by_key(|(index, _)| *index);
        Err(Rejected::some(failed))
    }

    fn remove(&mut self, batch: &[Change<'_>], failed: &mut Vec<(usize, Error)>) {
        let mut emptied = HashSet::new();
        for (index, change) in batch.iter().enumerate() {
            let (collection, removed) = match *change {
                Change::Clear { collection, version } => (collection, self.clear(collection, version)),
                Change::Delete { collection, member, .. } => (collection, self.delete(collection, member)),
                Change::Put { .. } => continue,
            };
            match removed {
                Ok(()) => _ = emptied.insert(name::file_name(collection)),
                Err(error) => failed.push((index, error)),
            }
        }
        for change in batch {
            if let Change::Put { collection, .. } = change {
                emptied.remove(&name::file_name(collection));
            }
        }
        for dir in emptied {
            // It goes if it is empty. Its names need not be made durable any more; if it comes back, it comes back empty.
            if self.fs.remove_dir(&self.root, &dir).is_ok() {
                self.dirs.remove(&dir);
                self.unsynced.remove(&dir);
                self.root_unsynced = true;
            }
        }
    }

    fn delete(&mut self, collection: &str, member: &str) -> Result<()> {
        let (dir_name, file) = (name::file_name(collection), name::file_name(member));
        let Some(dir) = self.existing_dir(&dir_name)? else { return Ok(()) };
        if self.is_ours(&dir, &file)? == Some(true) {
            self.fs.unlink(&dir, &file).map_err(|error| Error::io("unlink", dir.join(&file), error))?;
            self.unsynced.insert(dir_name);
        }
        Ok(())
    }

    /// Removes every member's file whose version is lower. What does not say its version is left for the next load to
    /// put aside.
    fn clear(&mut self, collection: &str, version: u64) -> Result<()> {
        let dir_name = name::file_name(collection);
        let Some(dir) = self.existing_dir(&dir_name)? else { return Ok(()) };
        let listed = self.fs.list(&dir).map_err(|error| Error::io("list", dir.path(), error))?;
        let mut start = vec![0; header::MAX_HEADER];
        self.unsynced.insert(dir_name);
        for entry in listed.iter().filter(|entry| entry.kind == Kind::File && name::could_be_ours(&entry.name)) {
            let path = || dir.join(&entry.name);
            let read = self.fs.open(&dir, &entry.name).and_then(|mut file| read_up_to(&mut *file, &mut start));
            let length = match read {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(Error::io("read", path(), error)),
            };
            let Ok((header, _)) = header::parse(&start[..length]) else { continue };
            if header.version < version {
                self.fs.unlink(&dir, &entry.name).map_err(|error| Error::io("unlink", path(), error))?;
            }
        }
        Ok(())
    }

    /// Writes all, makes all durable, renames all.
    fn write(&mut self, batch: &[Change<'_>], failed: &mut Vec<(usize, Error)>) {
        let puts: Vec<u64> =
            batch.iter().filter(|change| matches!(change, Change::Put { .. })).map(Change::version).collect();
        let Some(highest) = puts.iter().max() else { return };
        let sync_each = !self.sync_fs || puts.len() <= SYNC_EACH;
        let mut written = Vec::with_capacity(puts.len());
        let mut bytes = Vec::new();
        // What fails for one fails for all that come after it.
        let mut hopeless: Option<Error> = self.raise_mark(*highest).err();
        for (index, change) in batch.iter().enumerate() {
            let Change::Put { collection, member, version, codec, value } = *change else { continue };
            if let Some(error) = &hopeless {
                failed.push((index, error.clone()));
                continue;
            }
            bytes.clear();
            header::encode(&mut bytes, collection, member, version, codec, value);
            match self.write_temporary(&bytes, sync_each) {
                Ok(temporary) => written.push((index, temporary, collection, member)),
                Err(error) => {
                    hopeless = Some(error.clone());
                    failed.push((index, error));
                }
            }
        }
        if written.is_empty() {
            return;
        }
        if !sync_each && let Err(error) = self.fs.sync_fs(&self.root) {
            let error = Error::io("sync file system of", self.root.path(), error);
            for (index, temporary, ..) in written {
                self.discard(&temporary);
                failed.push((index, error.clone()));
            }
            return;
        }
        for (index, temporary, collection, member) in written {
            if let Err(error) = self.put_in_place(&temporary, collection, member) {
                self.discard(&temporary);
                failed.push((index, error));
            }
        }
    }

    fn write_temporary(&mut self, bytes: &[u8], sync: bool) -> Result<String> {
        let temporary = format!("{}", self.next_temporary);
        self.next_temporary += 1;
        let path = || self.tmp.join(&temporary);
        let mut file = match self.fs.create(&self.tmp, &temporary) {
            Ok(file) => file,
            Err(error) => {
                let error = Error::io("create", path(), error);
                // Somebody may have removed the directory for temporary files; next time it is there again.
                if let Ok(tmp) = open_or_make(&*self.fs, &self.meta, TMP_DIR) {
                    self.tmp = tmp;
                }
                return Err(error);
            }
        };
        let done = write_all(&mut *file, bytes).map_err(|error| Error::io("write", path(), error)).and_then(|()| {
            if sync { file.sync_data().map_err(|error| Error::io("sync", path(), error)) } else { Ok(()) }
        });
        drop(file);
        match done {
            Ok(()) => Ok(temporary),
            Err(error) => {
                self.discard(&temporary);
                Err(error)
            }
        }
    }

    /// Whether what stands under the name is a file. What is not is foreign, and stays.
    fn is_ours(&self, dir: &Dir, file: &str) -> Result<Option<bool>> {
        let kind = self.fs.kind(dir, file).map_err(|error| Error::io("look at", dir.join(file), error))?;
        Ok(kind.map(|kind| kind == Kind::File))
    }

    fn put_in_place(&mut self, temporary: &str, collection: &str, member: &str) -> Result<()> {
        let (dir_name, file) = (name::file_name(collection), name::file_name(member));
        let dir = self.dir(&dir_name)?;
        if self.is_ours(&dir, &file)? == Some(false) {
            let foreign = io::Error::new(io::ErrorKind::AlreadyExists, "it is no file, and not larder's to replace");
            return Err(Error::io("replace", dir.join(&file), foreign));
        }
        let renamed = self.fs.rename(&self.tmp, temporary, &dir, &file);
        renamed.map_err(|error| Error::io("replace", dir.join(&file), error))?;
        self.unsynced.insert(dir_name);
        Ok(())
    }

    fn discard(&self, temporary: &str) {
        // If it stays, the next load removes it.
        _ = self.fs.unlink(&self.tmp, temporary);
    }

    /// Makes the names durable: the collections' directories, and the root's if a collection is new.
    fn sync(&mut self) -> Result<()> {
        let many = self.sync_fs && self.unsynced.len() > SYNC_EACH;
        if many {
            let synced = self.fs.sync_fs(&self.root);
            synced.map_err(|error| Error::io("sync file system of", self.root.path(), error))?;
        } else {
            if self.root_unsynced {
                self.sync_one(&self.root)?;
            }
            for name in self.unsynced.clone() {
                // One that is gone has no names left to make durable.
                if let Some(dir) = self.existing_dir(&name)? {
                    self.sync_one(&dir)?;
                }
            }
        }
        self.unsynced.clear();
        self.root_unsynced = false;
        Ok(())
    }
}

fn open_or_make(fs: &dyn Fs, parent: &Dir, name: &str) -> Result<Dir> {
    match fs.make_dir(parent, name) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(Error::io("create directory", parent.join(name), error));
        }
        _ => {}
    }
    fs.open_dir(parent, name).map_err(|error| Error::io("open directory", parent.join(name), error))
}

/// Milliseconds since 1970.
fn now() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis())
}
