//! What `.larder/` holds beside members: the lock, the format, the counter's mark.

use std::path::{Path, PathBuf};

use super::header::FORMAT;
use crate::backend::Layout;
use crate::error::{Error, Result};
use crate::fs::{Dir, Fs, Kind, LockFile, read_up_to, write_all};
use crate::journal::{self, Extent};

pub(in crate::backend) const META_DIR: &str = ".larder";
pub(in crate::backend) const TMP_DIR: &str = "tmp";
pub(in crate::backend) const JOURNAL_DIR: &str = "journal";
pub(in crate::backend) const QUARANTINE_DIR: &str = "quarantine";
pub(in crate::backend) const LOCK: &str = "lock";
pub(in crate::backend) const FORMAT_FILE: &str = "format";
pub(in crate::backend) const COUNTER_FILE: &str = "counter";
pub(in crate::backend) const SEGMENTS_FILE: &str = "segments";
pub(in crate::backend) const MEMBERS_FILE: &str = "members";

/// The directory's lock, held while this lives. The file is never unlinked: whoever unlinks a lock hands out a second.
#[derive(Debug)]
pub(in crate::backend) struct Lock {
    file: Box<dyn LockFile>,
}

impl Lock {
    /// Takes the lock of the store at `root`, or says at once who has it.
    pub(in crate::backend) fn take(fs: &dyn Fs, root: &Path, meta: &Dir) -> Result<Lock> {
        let mut lock = Lock::open(fs, root, meta)?;
        // The note is for people. A full disk must not keep a store from being opened and emptied.
        _ = lock.file.write_note(&format!("process {}\n", std::process::id()));
        Ok(lock)
    }

    /// The same, and leaves no trace: without a file for it, there is nobody who could have it.
    pub(in crate::backend) fn hold(fs: &dyn Fs, root: &Path, meta: &Dir) -> Result<Option<Lock>> {
        match fs.kind(meta, LOCK).map_err(|error| Error::io("look at the lock", meta.join(LOCK), error))? {
            Some(_) => match Lock::open(fs, root, meta) {
                // Where nothing can be changed, nobody changes anything.
                Err(Error::Io { source, .. })
                    if matches!(
                        source.kind(),
                        std::io::ErrorKind::ReadOnlyFilesystem | std::io::ErrorKind::PermissionDenied
                    ) =>
                {
                    Ok(None)
                }
                lock => lock.map(Some),
            },
            None => Ok(None),
        }
    }

    fn open(fs: &dyn Fs, root: &Path, meta: &Dir) -> Result<Lock> {
        let path = meta.join(LOCK);
        let mut file = fs.open_lock(meta, LOCK).map_err(|error| Error::io("open the lock", &path, error))?;
        if !file.try_lock().map_err(|error| Error::io("lock", &path, error))? {
            return Err(Error::Locked { path: root.to_owned(), holder: holder(&mut *file) });
        }
        // A lock file that was unlinked or replaced between opening and locking is nobody's.
        if !file.is_named(&path).map_err(|error| Error::io("stat the lock", &path, error))? {
            return Err(Error::Locked { path: root.to_owned(), holder: "a store that replaced the lock".into() });
        }
        Ok(Lock { file })
    }
}

impl Drop for Lock {
    /// Unlocks by name, since a child that was forked meanwhile holds the same open file.
    fn drop(&mut self) {
        // Closing the file, which comes next, unlocks it too.
        _ = self.file.unlock();
    }
}

fn holder(file: &mut dyn LockFile) -> String {
    match file.read_note() {
        Ok(note) if note.starts_with("process ") => note.trim().to_owned(),
        _ => "another store".to_owned(),
    }
}

/// Whether something else than what it must be stands under a name.
pub(in crate::backend) fn is_other(fs: &dyn Fs, dir: &Dir, name: &str, kind: Kind) -> Result<bool> {
    let found = fs.kind(dir, name).map_err(|error| Error::io("look at", dir.join(name), error))?;
    Ok(found.is_some_and(|found| found != kind))
}

/// Reads a small file of the store's own. `None` when there is none.
fn read_small(fs: &dyn Fs, dir: &Dir, name: &str) -> Result<Option<Vec<u8>>> {
    read_own(fs, dir, name, 256)
}

/// The same of one that may be as large as this.
fn read_own(fs: &dyn Fs, dir: &Dir, name: &str, most: usize) -> Result<Option<Vec<u8>>> {
    let mut file = match fs.open(dir, name) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("open", dir.join(name), error)),
    };
    let mut bytes = vec![0; most];
    let length = read_up_to(&mut *file, &mut bytes).map_err(|error| Error::io("read", dir.join(name), error))?;
    bytes.truncate(length);
    Ok(Some(bytes))
}

/// Replaces a small file of the store's own, durably.
fn write_small(fs: &dyn Fs, dir: &Dir, tmp: &Dir, name: &str, text: &str) -> Result<()> {
    let path = dir.join(name);
    let temporary = replace(fs, tmp, name, text, true)?;
    fs.rename(tmp, &temporary, dir, name).map_err(|error| Error::io("replace", &path, error))?;
    fs.sync_dir(dir).map_err(|error| Error::io("sync directory", dir.path(), error))
}

/// Writes what is to replace a small file, under a temporary name.
fn replace(fs: &dyn Fs, tmp: &Dir, name: &str, text: &str, durably: bool) -> Result<String> {
    let temporary = format!("{name}.new");
    match fs.unlink(tmp, &temporary) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::io("unlink", tmp.join(&temporary), error));
        }
        _ => {}
    }
    let mut file = fs.create(tmp, &temporary).map_err(|error| Error::io("create", tmp.join(&temporary), error))?;
    write_all(&mut *file, text.as_bytes())
        .and_then(|()| if durably { file.sync_data() } else { Ok(()) })
        .map_err(|error| Error::io("write", tmp.join(&temporary), error))?;
    Ok(temporary)
}

/// What the file of the format says, beside the format's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kept {
    Files,
    Packed,
    /// Packed, and files of members stand beside it that count for nothing: the store was being moved.
    PackedBesideFiles,
}

impl Kept {
    const ALL: [Kept; 3] = [Kept::Files, Kept::Packed, Kept::PackedBesideFiles];

    pub(in crate::backend) fn layout(self) -> Layout {
        if self == Kept::Files { Layout::Files } else { Layout::Packed }
    }

    pub(crate) fn line(self) -> String {
        let kept = match self {
            Kept::Files => "",
            Kept::Packed => " packed",
            Kept::PackedBesideFiles => " packed, beside files",
        };
        format!("larder format {FORMAT}{kept}\n")
    }
}

/// What a file of the format says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Is(Kept),
    /// Higher than this version of larder reads.
    Newer(u64),
    Damaged,
}

impl Format {
    pub(crate) fn parse(bytes: &[u8]) -> Format {
        let text = std::str::from_utf8(bytes).unwrap_or_default();
        if let Some(kept) = Kept::ALL.into_iter().find(|kept| kept.line() == text) {
            return Format::Is(kept);
        }
        let number = text.strip_prefix("larder format ").and_then(|rest| rest.split([' ', '\n']).next());
        let is_number = |number: &&str| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
        match number.filter(is_number).map(|number| number.parse().unwrap_or(u64::MAX)) {
            Some(found) if found > FORMAT => Format::Newer(found),
            _ => Format::Damaged,
        }
    }
}

/// The store's format: an error when it is newer than this build, `None` when the file is not there.
pub(in crate::backend) fn read_format(fs: &dyn Fs, root: &Path, meta: &Dir) -> Result<Option<Kept>> {
    let Some(bytes) = read_small(fs, meta, FORMAT_FILE)? else {
        return Ok(None);
    };
    match Format::parse(&bytes) {
        Format::Is(kept) => Ok(Some(kept)),
        Format::Newer(found) => Err(Error::NewerFormat { path: root.to_owned(), found, supported: FORMAT }),
        Format::Damaged => Err(Error::Corrupt {
            path: meta.join(FORMAT_FILE),
            reason: format!(
                "it should say {:?} or {:?} and says {:?}",
                Kept::Files.line(),
                Kept::Packed.line(),
                String::from_utf8_lossy(&bytes)
            ),
        }),
    }
}

pub(in crate::backend) fn write_format(fs: &dyn Fs, meta: &Dir, tmp: &Dir, kept: Kept) -> Result<()> {
    write_small(fs, meta, tmp, FORMAT_FILE, &kept.line())
}

/// The segments that a packed store was closed with, and how far they reach; `None` if it was not closed, or the list is
/// damaged: it is there to find what is missing, and nothing else needs it.
pub(in crate::backend) fn read_segments(fs: &dyn Fs, meta: &Dir) -> Result<Option<Vec<Extent>>> {
    Ok(read_own(fs, meta, SEGMENTS_FILE, 4 << 20)?.and_then(|bytes| parse_segments(&bytes)))
}

/// `None` if it is damaged.
pub(crate) fn parse_segments(bytes: &[u8]) -> Option<Vec<Extent>> {
    let text = std::str::from_utf8(bytes).unwrap_or_default();
    let segments: Option<Vec<Extent>> = text
        .lines()
        .filter(|line| !line.starts_with("larder "))
        .map(|line| {
            let (name, end) = line.split_once(' ')?;
            Some(Extent { number: journal::number_of(name)?, end: end.parse().ok()? })
        })
        .collect();
    segments.filter(|segments| segments_text(segments) == text)
}

pub(in crate::backend) fn write_segments(fs: &dyn Fs, meta: &Dir, tmp: &Dir, segments: &[Extent]) -> Result<()> {
    let temporary = replace(fs, tmp, SEGMENTS_FILE, &segments_text(segments), false)?;
    // A crash may take it, or tear it: nobody misses it.
    fs.rename(tmp, &temporary, meta, SEGMENTS_FILE)
        .map_err(|error| Error::io("replace", meta.join(SEGMENTS_FILE), error))
}

pub(crate) fn segments_text(segments: &[Extent]) -> String {
    let lines: String =
        segments.iter().map(|segment| format!("{} {}\n", journal::file_name(segment.number), segment.end)).collect();
    let checksum = crc32fast::hash(lines.as_bytes());
    format!("larder segments crc32={checksum:08x}\n{lines}")
}

/// What the counter's file says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    Missing,
    At(u64),
    Damaged(String),
}

impl Mark {
    pub(crate) fn parse(bytes: &[u8]) -> Mark {
        let text = std::str::from_utf8(bytes).unwrap_or_default();
        let number = text.strip_prefix("larder counter ").and_then(|rest| rest.split(' ').next()?.parse().ok());
        match number {
            Some(mark) if mark <= crate::map::MAX_VERSION && text == mark_line(mark) => Mark::At(mark),
            _ => Mark::Damaged(format!("it says {:?}", String::from_utf8_lossy(bytes))),
        }
    }
}

pub(in crate::backend) fn read_mark(fs: &dyn Fs, meta: &Dir) -> Result<Mark> {
    Ok(read_small(fs, meta, COUNTER_FILE)?.map_or(Mark::Missing, |bytes| Mark::parse(&bytes)))
}

pub(in crate::backend) fn write_mark(fs: &dyn Fs, meta: &Dir, tmp: &Dir, mark: u64) -> Result<()> {
    write_small(fs, meta, tmp, COUNTER_FILE, &mark_line(mark))
}

pub(crate) fn mark_line(mark: u64) -> String {
    let line = format!("larder counter {mark}");
    let checksum = crc32fast::hash(line.as_bytes());
    format!("{line} crc32={checksum:08x}\n")
}

/// How many members' files a store was closed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) files: u64,
    /// The counter's mark of that close: of any other, the number says nothing.
    pub(crate) mark: u64,
}

impl Count {
    /// `None` if it is damaged.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Count> {
        let text = std::str::from_utf8(bytes).unwrap_or_default();
        let numbers = text.strip_prefix("larder members ").and_then(|rest| {
            let (files, rest) = rest.split_once(" counter=")?;
            let (mark, _) = rest.split_once(' ')?;
            Some(Count { files: files.parse().ok()?, mark: mark.parse().ok()? })
        });
        numbers.filter(|count| count.line() == text)
    }

    pub(crate) fn line(self) -> String {
        let line = format!("larder members {} counter={}", self.files, self.mark);
        let checksum = crc32fast::hash(line.as_bytes());
        format!("{line} crc32={checksum:08x}\n")
    }
}

/// `None` if the store was not closed by who counts, or what it says is damaged: it is there to find what is missing, and
/// nothing else needs it.
pub(in crate::backend) fn read_count(fs: &dyn Fs, meta: &Dir) -> Result<Option<Count>> {
    Ok(read_small(fs, meta, MEMBERS_FILE)?.and_then(|bytes| Count::parse(&bytes)))
}

pub(in crate::backend) fn write_count(fs: &dyn Fs, meta: &Dir, tmp: &Dir, count: Count) -> Result<()> {
    let temporary = replace(fs, tmp, MEMBERS_FILE, &count.line(), false)?;
    // A crash may take it, or tear it, or bring the last one back, which has another mark: nobody misses it.
    fs.rename(tmp, &temporary, meta, MEMBERS_FILE).map_err(|error| Error::io("replace", meta.join(MEMBERS_FILE), error))
}

/// Removes it, durably.
pub(in crate::backend) fn forget_count(fs: &dyn Fs, meta: &Dir) -> Result<()> {
    match fs.unlink(meta, MEMBERS_FILE) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io("unlink", meta.join(MEMBERS_FILE), error))
        }
        _ => fs.sync_dir(meta).map_err(|error| Error::io("sync directory", meta.path(), error)),
    }
}

/// Refuses a path that is no store and cannot become one. Creates nothing.
pub(in crate::backend) fn check_path(fs: &dyn Fs, path: &Path) -> Result<()> {
    let not_a_store = |reason| Err(Error::NotAStore { path: path.to_owned(), reason });
    let looked = |error| Error::io("look at", path, error);
    match fs.kind_at(path, true) {
        Ok(Some(Kind::Dir)) => {}
        Ok(Some(_)) => return not_a_store("it is not a directory"),
        Ok(None) => {
            return match fs.kind_at(path, false).map_err(looked)? {
                Some(_) => not_a_store("it is a symbolic link to nothing"),
                None => Ok(()),
            };
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {
            return not_a_store("a part of its path is not a directory");
        }
        Err(error) => return Err(looked(error)),
    }
    let meta = path.join(META_DIR);
    match fs.kind_at(&meta, false).map_err(|error| Error::io("look at", &meta, error))? {
        Some(Kind::Dir) => return Ok(()),
        Some(_) => return not_a_store("its .larder is not a directory"),
        None => {}
    }
    let listed = fs.open_root(path).and_then(|root| fs.list(&root)).map_err(|error| Error::io("list", path, error))?;
    if listed.is_empty() { Ok(()) } else { not_a_store("it is not empty and has no .larder") }
}

/// Makes the directory, and those above it that are missing.
pub(in crate::backend) fn make_path(fs: &dyn Fs, path: &Path) -> Result<()> {
    let failed = |error| Error::io("create directory", path, error);
    if fs.kind_at(path, true).is_ok_and(|kind| kind == Some(Kind::Dir)) {
        return Ok(());
    }
    match fs.make_root(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        // What stands there has been looked at.
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Ok(()),
        made => return made.map_err(failed),
    }
    if let Some(parent) = path.parent() {
        make_path(fs, parent)?;
        fs.make_root(path).map_err(failed)?;
        // The store's own directory is synced when it is complete.
        sync_path(fs, parent.parent())?;
    }
    Ok(())
}

/// Makes durable what a directory outside the store names. One that may not be opened is not ours to sync.
pub(in crate::backend) fn sync_path(fs: &dyn Fs, path: Option<&Path>) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    match fs.open_root(path) {
        Ok(dir) => fs.sync_dir(&dir).map_err(|error| Error::io("sync directory", path, error)),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Ok(()),
        Err(error) => Err(Error::io("open directory", path, error)),
    }
}

/// The path, independent of the working directory: what exists of it is resolved, the rest stays as it is.
pub(in crate::backend) fn absolute(path: &Path) -> Result<PathBuf> {
    if path.as_os_str().is_empty() {
        return Err(Error::NotAStore { path: path.to_owned(), reason: "its path is empty" });
    }
    let absolute = std::path::absolute(path).map_err(|error| Error::io("resolve", path, error))?;
    Ok(std::fs::canonicalize(&absolute).unwrap_or(absolute))
}
