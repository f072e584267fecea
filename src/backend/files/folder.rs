//! The members' files themselves: written under temporary names, renamed into place, unlinked.
//!
//! That nothing is lost here is in the journal's care. So a batch of many files is written and renamed without waiting for
//! the disk, and [`Folder::sync`] makes all of it durable at once; until then a crash may leave a name with its old file, a
//! broken one, or none. A few files, or where the system has no such sync, are made durable one by one before the rename.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;

use super::place::Place;
use super::{header, load, name};
use crate::backend::{Change, Rejected};
use crate::error::{Error, Result};
use crate::fs::{Dir, Kind, read_up_to, write_all};

/// Up to this many files or directories are synced one by one; more go through one sync of the file system, which
/// also waits for what others are writing.
const SYNC_EACH: usize = 8;

/// Collection directories that are kept open. A store holds no more descriptors than these and a dozen, however many
/// collections a batch touches.
const DIRS_KEPT: usize = 32;

#[derive(Debug)]
pub(in crate::backend) struct Folder {
    place: Arc<Place>,
    tmp: Dir,
    /// By directory name.
    dirs: HashMap<String, Arc<Dir>>,
    /// The names of the directories that have changed since the last sync.
    unsynced: HashSet<String>,
    /// A collection directory was made or removed since the last sync.
    root_unsynced: bool,
    /// Files were renamed into place that may not be durable.
    data_unsynced: bool,
    next_temporary: u64,
    sync_fs: bool,
}

impl Folder {
    pub(in crate::backend) fn new(place: Arc<Place>) -> Result<Folder> {
        let (tmp, sync_fs) = (place.tmp()?, place.fs.has_sync_fs());
        Ok(Folder {
            place,
            tmp,
            dirs: HashMap::new(),
            unsynced: HashSet::new(),
            // An earlier process may have made or removed collections without making that durable.
            root_unsynced: true,
            data_unsynced: false,
            next_temporary: 0,
            sync_fs,
        })
    }

    /// The directory of that name, opened, or made if there is none.
    fn dir(&mut self, name: &str) -> Result<Arc<Dir>> {
        if let Some(dir) = self.dirs.get(name) {
            return Ok(dir.clone());
        }
        let place = self.place.clone();
        let path = || place.root.join(name);
        let opened = match place.fs.open_dir(&place.root, name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let made = place.fs.make_dir(&place.root, name);
                made.map_err(|error| Error::io("create directory", path(), error))?;
                self.root_unsynced = true;
                place.fs.open_dir(&place.root, name)
            }
            opened => opened,
        };
        let dir = Arc::new(opened.map_err(|error| Error::io("open directory", path(), error))?);
        self.keep(name, &dir);
        Ok(dir)
    }

    fn keep(&mut self, name: &str, dir: &Arc<Dir>) {
        if self.dirs.len() >= DIRS_KEPT {
            self.dirs.clear();
        }
        self.dirs.insert(name.to_owned(), dir.clone());
    }

    /// The directory of that name if there is one.
    fn existing_dir(&mut self, name: &str) -> Result<Option<Arc<Dir>>> {
        if let Some(dir) = self.dirs.get(name) {
            return Ok(Some(dir.clone()));
        }
        match self.place.fs.open_dir(&self.place.root, name) {
            Ok(dir) => {
                let dir = Arc::new(dir);
                self.keep(name, &dir);
                Ok(Some(dir))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("open directory", self.place.root.join(name), error)),
        }
    }

    /// Calls `between` now and then: for each file that is written, twice.
    pub(in crate::backend) fn apply(&mut self, batch: &[Change<'_>], between: &dyn Fn()) -> Result<(), Rejected> {
        let mut failed = Vec::new();
        // Removals first: on a full disk they make room.
        self.remove(batch, &mut failed);
        self.write(batch, between, &mut failed);
        if failed.is_empty() {
            return Ok(());
        }
        // What was opened may be what fails: look again next time.
        self.dirs.clear();
        failed.sort_by_key(|(index, _)| *index);
        Err(Rejected::some(failed))
    }

    /// Only what `batch` removes.
    pub(in crate::backend) fn remove(&mut self, batch: &[Change<'_>], failed: &mut Vec<(usize, Error)>) {
        let mut emptied = HashSet::new();
        for (index, change) in batch.iter().enumerate() {
            let (collection, removed) = match *change {
                Change::Clear { collection, version } => (collection, self.clear(collection, version)),
                Change::Delete { collection, member, .. } => (collection, self.delete(collection, member)),
                Change::Put { .. } | Change::Deadline { .. } => continue,
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
            if self.place.fs.remove_dir(&self.place.root, &dir).is_ok() {
                self.dirs.remove(&dir);
                self.unsynced.remove(&dir);
                self.root_unsynced = true;
            }
        }
    }

    fn delete(&mut self, collection: &str, member: &str) -> Result<()> {
        let (dir_name, file) = (name::file_name(collection), name::file_name(member));
        let Some(dir) = self.existing_dir(&dir_name)? else {
            self.root_unsynced = true;
            return Ok(());
        };
        if self.is_ours(&dir, &file)? == Some(true) {
            self.place.fs.unlink(&dir, &file).map_err(|error| Error::io("unlink", dir.join(&file), error))?;
        }
        // Also when it was gone already: by an unlink that may not be durable.
        self.unsynced.insert(dir_name);
        Ok(())
    }

    /// Removes every member's file whose version is lower. What does not say its version is left for the next load to
    /// put aside.
    fn clear(&mut self, collection: &str, version: u64) -> Result<()> {
        let dir_name = name::file_name(collection);
        let Some(dir) = self.existing_dir(&dir_name)? else {
            self.root_unsynced = true;
            return Ok(());
        };
        let fs = self.place.fs.clone();
        let listed = fs.list(&dir).map_err(|error| Error::io("list", dir.path(), error))?;
        let mut start = vec![0; header::MAX_HEADER];
        self.unsynced.insert(dir_name);
        for entry in listed.iter().filter(|entry| entry.kind == Kind::File && name::could_be_ours(&entry.name)) {
            let path = || dir.join(&entry.name);
            let read = fs.open(&dir, &entry.name).and_then(|mut file| read_up_to(&mut *file, &mut start));
            let length = match read {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(Error::io("read", path(), error)),
            };
            let Ok((header, _)) = header::parse(&start[..length]) else { continue };
            if header.version < version {
                fs.unlink(&dir, &entry.name).map_err(|error| Error::io("unlink", path(), error))?;
            }
        }
        Ok(())
    }

    /// Writes all, and renames all.
    fn write(&mut self, batch: &[Change<'_>], between: &dyn Fn(), failed: &mut Vec<(usize, Error)>) {
        let is_written = |change: &&Change<'_>| matches!(change, Change::Put { .. } | Change::Deadline { .. });
        let sync_each = !self.sync_fs || batch.iter().filter(is_written).count() <= SYNC_EACH;
        let mut written = Vec::new();
        let mut bytes = Vec::new();
        // What fails for one fails for all that come after it.
        let mut hopeless: Option<Error> = None;
        for (index, change) in batch.iter().enumerate() {
            let (collection, member) = match *change {
                Change::Put { collection, member, .. } | Change::Deadline { collection, member, .. } => {
                    (collection, member)
                }
                Change::Delete { .. } | Change::Clear { .. } => continue,
            };
            if let Some(error) = &hopeless {
                failed.push((index, error.clone()));
                continue;
            }
            between();
            bytes.clear();
            match self.content(change, &mut bytes) {
                Ok(true) => {}
                Ok(false) => continue,
                Err(error) => {
                    failed.push((index, error));
                    continue;
                }
            }
            match self.write_temporary(&bytes, sync_each) {
                Ok(temporary) => written.push((index, temporary, collection, member)),
                Err(error) => {
                    hopeless = Some(error.clone());
                    failed.push((index, error));
                }
            }
        }
        self.data_unsynced |= !sync_each && !written.is_empty();
        for (index, temporary, collection, member) in written {
            between();
            if let Err(error) = self.put_in_place(&temporary, collection, member) {
                self.discard(&temporary);
                failed.push((index, error));
            }
        }
    }

    /// What the member's file is to hold after the change. False for a deadline of a member that is not there.
    fn content(&mut self, change: &Change<'_>, bytes: &mut Vec<u8>) -> Result<bool> {
        match *change {
            Change::Put { collection, member, version, deadline, codec, value } => {
                header::encode(bytes, collection, member, version, deadline, codec, value);
                Ok(true)
            }
            Change::Deadline { collection, member, version, deadline } => {
                let (dir_name, file) = (name::file_name(collection), name::file_name(member));
                let Some(dir) = self.existing_dir(&dir_name)? else { return Ok(false) };
                let mut old = Vec::new();
                let read = self.place.fs.open(&dir, &file).and_then(|mut file| load::read_whole(&mut *file, &mut old));
                match read {
                    Ok(length) => old.truncate(length),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
                    Err(error) => return Err(Error::io("read", dir.join(&file), error)),
                }
                let corrupt = |reason| Error::Corrupt { path: dir.join(&file), reason };
                let (header, value) = header::decode(&old).map_err(corrupt)?;
                if header.version < version && (header.collection(), header.member()) == (collection, member) {
                    header::encode(bytes, collection, member, version, deadline, header.codec, value);
                }
                Ok(!bytes.is_empty())
            }
            Change::Delete { .. } | Change::Clear { .. } => Ok(false),
        }
    }

    fn write_temporary(&mut self, bytes: &[u8], sync: bool) -> Result<String> {
        let temporary = format!("{}", self.next_temporary);
        self.next_temporary += 1;
        let path = || self.tmp.join(&temporary);
        let mut file = match self.place.fs.create(&self.tmp, &temporary) {
            Ok(file) => file,
            Err(error) => {
                let error = Error::io("create", path(), error);
                // Somebody may have removed the directory for temporary files; next time it is there again.
                if let Ok(tmp) = self.place.tmp() {
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
        let kind = self.place.fs.kind(dir, file).map_err(|error| Error::io("look at", dir.join(file), error))?;
        Ok(kind.map(|kind| kind == Kind::File))
    }

    fn put_in_place(&mut self, temporary: &str, collection: &str, member: &str) -> Result<()> {
        let (dir_name, file) = (name::file_name(collection), name::file_name(member));
        let dir = self.dir(&dir_name)?;
        if self.is_ours(&dir, &file)? == Some(false) {
            let foreign = io::Error::new(io::ErrorKind::AlreadyExists, "it is no file, and not larder's to replace");
            return Err(Error::io("replace", dir.join(&file), foreign));
        }
        let renamed = self.place.fs.rename(&self.tmp, temporary, &dir, &file);
        renamed.map_err(|error| Error::io("replace", dir.join(&file), error))?;
        self.unsynced.insert(dir_name);
        Ok(())
    }

    fn discard(&self, temporary: &str) {
        // If it stays, the next load removes it.
        _ = self.place.fs.unlink(&self.tmp, temporary);
    }

    /// Makes everything durable that was applied since the last success. After a failure all of it must be applied again.
    pub(in crate::backend) fn sync(&mut self) -> Result<()> {
        let place = self.place.clone();
        if self.data_unsynced || self.sync_fs && self.unsynced.len() > SYNC_EACH {
            let synced = place.fs.sync_fs(&place.root);
            synced.map_err(|error| Error::io("sync file system of", place.root.path(), error))?;
        } else {
            if self.root_unsynced {
                place.sync_dir(&place.root)?;
            }
            for name in self.unsynced.clone() {
                // One that is gone has no names left to make durable.
                if let Some(dir) = self.existing_dir(&name)? {
                    place.sync_dir(&dir)?;
                }
            }
        }
        self.unsynced.clear();
        (self.root_unsynced, self.data_unsynced) = (false, false);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::fs::sim::{Image, Op, Sim};

    const HOME: &str = "/larder-simulated/store";

    /// The directories that are synced, by name, when `batch` is applied by a process that has not done anything else.
    fn synced(sim: &Sim, batch: &[Change<'_>]) -> usize {
        let place =
            Arc::new(Place::open(Path::new(HOME), Arc::new(sim.clone()), crate::backend::Layout::Files).unwrap());
        let mut folder = Folder::new(place).unwrap();
        sim.record();
        // What opening it did is another matter.
        drop(sim.take_log());
        folder.apply(batch, &|| {}).unwrap();
        folder.sync().unwrap();
        sim.take_log().iter().filter(|op| matches!(op, Op::SyncDir { .. })).count()
    }

    /// A process that was killed may have unlinked and removed without syncing: whoever finds nothing there any more
    /// makes that durable.
    #[test]
    fn removals_that_an_earlier_process_has_made_are_made_durable() {
        let sim = Sim::new(&Image::of_dirs(&["larder-simulated"]), HOME, false);
        let put =
            |member| Change::Put { collection: "c", member, version: 1, deadline: None, codec: "raw", value: b"v" };
        assert_eq!(synced(&sim, &[put("m")]), 2, "the root and the collection");
        let delete = |collection| Change::Delete { collection, member: "gone", version: 2 };
        assert_eq!(synced(&sim, &[delete("c")]), 2, "a file that is gone");
        assert_eq!(synced(&sim, &[delete("gone")]), 1, "a collection that is gone");
        assert_eq!(synced(&sim, &[Change::Clear { collection: "gone", version: 3 }]), 1, "a collection that is gone");
    }
}
