//! Moving a store from one layout to the other.
//!
//! Members are written in the new layout beside the old one, and then the file of the format says which of the two counts:
//! that is the one moment. Before it what is new is left over, after it what is old, and both are told by the format
//! and removed by whoever comes next.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::files::meta::{self, Kept};
use super::files::place::Place;
use super::packed::Out;
use super::writer::Writer;
use super::{Backend, Files, Layout, Packed, files, front};
use crate::core::Engine;
use crate::error::{Error, Result};
use crate::fs::{Dir, Entry, Fs, Kind, Native};
use crate::journal::{self, Extent, Numbers};

/// Moves the closed store at `path` to `layout`. A store that has it already is left as it is.
///
/// An empty directory becomes an empty store. All members, their versions and the store's counter are kept. It needs room for both layouts at once, and RAM for all
/// members; if it fails before the new one counts, as on a full disk, it removes what it has written. To be moved into files, a packed store must have no files beside it, in directories, that could be taken for
/// members'. It can be interrupted at any point, by a crash too: the store opens then as what it was, or as what it was to
/// become, with everything in it, and the same call goes on.
///
/// # Errors
///
/// [`Error::NotAStore`] if there is none; [`Error::Locked`] if it is open; what [`Store::load`](crate::Store::load) says;
/// and of the disk.
///
/// # Examples
///
/// ```
/// use larder::{Layout, Store};
///
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("music");
/// let store = Store::open(&path)?;
/// store.put("artist/daft_punk", "epic")?;
/// store.close()?;
///
/// larder::convert(&path, Layout::Packed)?;
/// let store = Store::open(&path)?;
/// assert_eq!(store.get("artist/daft_punk")?.unwrap(), "epic");
/// # Ok::<(), larder::Error>(())
/// ```
pub fn convert(path: impl AsRef<Path>, layout: Layout) -> Result<()> {
    convert_on(Arc::new(Native), path.as_ref(), layout)
}

pub(crate) fn convert_on(fs: Arc<dyn Fs>, path: &Path, layout: Layout) -> Result<()> {
    let path = meta::absolute(path)?;
    meta::check_path(&*fs, &path)?;
    let root = fs.kind_at(&path, true).map_err(|error| Error::io("look at", &path, error))?;
    if root.is_none() {
        return Err(Error::NotAStore { path, reason: "there is nothing" });
    }
    // An empty directory becomes a store of the layout.
    let found = super::layout_on(&*fs, &path)?.unwrap_or(layout);
    match (found, layout) {
        (Layout::Files, Layout::Packed) => pack(fs, &path),
        (Layout::Packed, Layout::Files) => unpack(fs, &path),
        // What an earlier call has left is removed.
        (Layout::Packed, Layout::Packed) => finish(Packed::on(fs, &path)?),
        (Layout::Files, Layout::Files) => finish(Files::on(fs, &path)?),
    }
}

/// Loads, and closes.
fn finish(mut backend: impl Backend) -> Result<()> {
    let (_, counter) = Engine::read(&mut backend)?;
    backend.settle()?;
    backend.close(counter)
}

fn pack(fs: Arc<dyn Fs>, path: &Path) -> Result<()> {
    let mut files = Files::on(fs, path)?;
    let (engine, counter) = Engine::read(&mut files)?;
    files.settle()?;
    let place = files.place()?;
    files.close(counter)?;

    // What a close on a full disk has left is not ours to remove.
    let before = journal::list(&*place.fs, &place.journal)?;
    let written = write_all(&place, &engine, Layout::Packed, counter);
    let moved = written.and_then(|()| place.write_kept(Kept::PackedBesideFiles));
    if moved.is_err() {
        // What cannot be removed goes with the next load.
        _ = undo_pack(&place, &before);
    }
    moved?;
    remove_files(&place)
}

/// Removes what was packed, unless it counts already. A part of it says nothing that the files do not say.
fn undo_pack(place: &Place, before: &[u64]) -> Result<()> {
    if !place.is_kept(Kept::Files) {
        return Ok(());
    }
    place.remove_temporaries(&place.tmp()?)?;
    remove_new_segments(place, before)
}

/// Removes all but those that were there before.
fn remove_new_segments(place: &Place, before: &[u64]) -> Result<()> {
    let mut numbers = journal::list(&*place.fs, &place.journal)?;
    numbers.retain(|number| !before.contains(number));
    front::remove(place, &numbers)
}

/// Writes all members in a layout, beside the other.
fn write_all(place: &Arc<Place>, engine: &Engine, layout: Layout, counter: u64) -> Result<()> {
    let mut writer = Writer::new(place, layout)?;
    engine.walk(|collection, codec, record| writer.put(collection, codec, record))?;
    writer.finish(counter)
}

fn unpack(fs: Arc<dyn Fs>, path: &Path) -> Result<()> {
    let mut packed = Packed::on(fs, path)?;
    let (engine, counter) = Engine::read(&mut packed)?;
    packed.settle()?;
    let place = packed.place()?;
    packed.close(counter)?;

    if place.kept == Kept::Packed {
        refuse_foreign(&place)?;
    }
    let segments = place.read_segments()?;
    let before = journal::list(&*place.fs, &place.journal)?;
    place.forget_segments()?;
    let begun = place.write_kept(Kept::PackedBesideFiles);
    let written = begun.and_then(|()| write_all(&place, &engine, Layout::Files, counter));
    let moved =
        written.and_then(|()| end_segments(&place, &before, counter)).and_then(|()| place.write_kept(Kept::Files));
    if moved.is_err() {
        // What cannot be removed goes with the next load.
        _ = undo_unpack(&place, &before, segments);
    }
    moved?;
    let front::Segments { known, replaced, .. } = front::segments(&place)?;
    front::remove_packed(&place, &known, &replaced)
}

/// Writes a packed segment with nothing in it. To a packed store it says nothing, to one of files that none of the segments
/// counts: a part of them is not what the files say, nor are all of them in the order of their numbers.
fn end_segments(place: &Arc<Place>, before: &[u64], counter: u64) -> Result<()> {
    let numbers = Numbers::after(before.iter().copied().max().unwrap_or(0));
    Out::new(place, numbers.next()).finish(counter)
}

/// Removes the files that were written, unless they count already.
fn undo_unpack(place: &Place, before: &[u64], segments: Option<Vec<Extent>>) -> Result<()> {
    let is_begun = place.is_kept(Kept::PackedBesideFiles);
    if !is_begun && !place.is_kept(Kept::Packed) {
        return Ok(());
    }
    place.remove_temporaries(&place.tmp()?)?;
    if is_begun {
        remove_new_segments(place, before)?;
        remove_files(place)?;
    }
    // Nothing has changed in them since the close.
    segments.map_or(Ok(()), |segments| place.write_segments(&segments))
}

/// A file that could be taken for a member's, where members' files are to be written, is somebody's: it must go first, and
/// not by our hand.
fn refuse_foreign(place: &Place) -> Result<()> {
    let list = |dir: &Dir| place.fs.list(dir).map_err(|error| Error::io("list", dir.path(), error));
    let could_be_ours = |entry: &&Entry| files::name::could_be_ours(&entry.name);
    for collection in list(&place.root)?.iter().filter(could_be_ours).filter(|entry| entry.kind == Kind::Dir) {
        let path = place.root.join(&collection.name);
        let dir = place.fs.open_dir(&place.root, &collection.name);
        let dir = dir.map_err(|error| Error::io("open directory", path, error))?;
        if let Some(file) = list(&dir)?.iter().filter(could_be_ours).find(|entry| entry.kind == Kind::File) {
            return Err(Error::io("convert: move away", dir.join(&file.name), io::ErrorKind::AlreadyExists.into()));
        }
    }
    Ok(())
}

/// Whether a crash may have left a member's file so: empty, zeros, or a part of one.
fn is_unfinished(bytes: &[u8]) -> bool {
    const BEGINS: &[u8] = b"larder 1 ";
    bytes.iter().all(|&byte| byte == 0) || bytes.starts_with(BEGINS) || BEGINS.starts_with(bytes)
}

/// Removes the members' files beside a packed store. What is not larder's stays.
pub(super) fn remove_files(place: &Place) -> Result<()> {
    let fs = &*place.fs;
    let listed = fs.list(&place.root).map_err(|error| Error::io("list", place.root.path(), error))?;
    let collections = listed.iter().filter(|entry| entry.kind == Kind::Dir && files::name::could_be_ours(&entry.name));
    for collection in collections {
        let path = place.root.join(&collection.name);
        let dir = fs.open_dir(&place.root, &collection.name);
        let dir = dir.map_err(|error| Error::io("open directory", &path, error))?;
        let listed = fs.list(&dir).map_err(|error| Error::io("list", &path, error))?;
        let mut buffer = Vec::new();
        for file in listed.iter().filter(|entry| entry.kind == Kind::File && files::name::could_be_ours(&entry.name)) {
            let failed = |error| Error::io("remove", dir.join(&file.name), error);
            let mut open = fs.open(&dir, &file.name).map_err(failed)?;
            let length = files::load::read_whole(&mut *open, &mut buffer).map_err(failed)?;
            // One that was being written when a crash came is ours as well, and broken.
            let is_ours = match files::header::decode(&buffer[..length]) {
                Ok((header, _)) => {
                    files::name::is_name_of(&collection.name, header.collection())
                        && files::name::is_name_of(&file.name, header.member())
                }
                Err(_) => is_unfinished(&buffer[..length]),
            };
            if is_ours {
                fs.unlink(&dir, &file.name).map_err(failed)?;
            }
        }
        place.sync_dir(&dir)?;
        // It goes if it is empty.
        _ = fs.remove_dir(&place.root, &collection.name);
    }
    place.sync_dir(&place.root)?;
    place.write_kept(Kept::Packed)
}
