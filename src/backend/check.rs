//! Looking for what is wrong with a closed store, and mending it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::files::meta::{self, FORMAT_FILE, Kept, META_DIR, QUARANTINE_DIR, TMP_DIR};
use super::files::place::{self, Place};
use super::files::strays;
use super::{Backend, Change, Files, Layout, Loader, Look, Packed, Quarantined, Rejected, files};
use crate::core::Engine;
use crate::error::{Error, Result};
use crate::fs::{Dir, Fs, Kind, Native};
use crate::journal::{self, Numbers};

/// How bad something is.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Nothing is wrong with any member: it is said for whoever wonders.
    Note,
    /// Something is damaged that can be made again, with no member lost.
    Mendable,
    /// Members, or changes of them, are lost; what is left of them goes into quarantine.
    Loss,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Severity::Note => "note",
            Severity::Mendable => "mendable",
            Severity::Loss => "loss",
        })
    }
}

/// Something that [`check`] has found.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// The file or directory.
    pub path: PathBuf,
    /// What is wrong with it, and what that means.
    pub explanation: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.severity, self.path.display(), self.explanation)
    }
}

/// What [`check`] has found.
#[non_exhaustive]
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Members that are whole.
    pub members: usize,
    /// Collections that have members.
    pub collections: usize,
    /// Everything there is to say, the worst first.
    pub problems: Vec<Problem>,
}

impl CheckReport {
    /// Whether there is nothing but notes.
    pub fn is_sound(&self) -> bool {
        self.problems.iter().all(|problem| problem.severity == Severity::Note)
    }

    /// All problems are told.
    fn of(mut self, members: usize, collections: usize) -> CheckReport {
        self.problems.sort_by(|a, b| b.severity.cmp(&a.severity).then_with(|| a.path.cmp(&b.path)));
        CheckReport { members, collections, ..self }
    }
}

/// What [`repair`] has done.
#[non_exhaustive]
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RepairReport {
    /// Members that the store has now.
    pub members: usize,
    /// Collections that have members.
    pub collections: usize,
    /// What could not be kept, and where it is now.
    pub quarantined: Vec<Quarantined>,
    /// Members' files, and segments, that had the names of others.
    pub restored: Vec<Restored>,
}

/// A file that [`repair`] has given its own name again.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// Where it stood.
    pub path: PathBuf,
    /// Where it is now.
    pub moved_to: PathBuf,
}

/// Reads every file and every frame of the closed store at `path`, and says in words what is wrong. It changes nothing, and holds the store's lock meanwhile if it may.
///
/// # Errors
///
/// [`Error::NotAStore`] if there is none; [`Error::Locked`] if it is open; [`Error::NewerFormat`]; [`Error::Io`] when the
/// disk fails in a way that says nothing about the store. What is damaged is no error.
///
/// # Examples
///
/// ```
/// use larder::Store;
///
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("music");
/// let store = Store::open(&path)?;
/// store.put("artist/daft_punk", "epic")?;
/// store.close()?;
/// assert!(larder::check(&path)?.is_sound());
///
/// std::fs::write(path.join("artist/daft_punk"), "edited by hand").unwrap();
/// let report = larder::check(&path)?;
/// assert!(report.problems[0].path.ends_with("artist/daft_punk"));
/// assert_eq!(larder::repair(&path)?.quarantined.len(), 1);
/// assert!(larder::check(&path)?.is_sound());
/// # Ok::<(), larder::Error>(())
/// ```
pub fn check(path: impl AsRef<Path>) -> Result<CheckReport> {
    check_on(Arc::new(Native), path.as_ref())
}

pub(crate) fn check_on(fs: Arc<dyn Fs>, path: &Path) -> Result<CheckReport> {
    let path = meta::absolute(path)?;
    let root = open_root(&*fs, &path)?;
    let mut report = CheckReport::default();
    let mut say = |severity, path: PathBuf, explanation: String| {
        report.problems.push(Problem { severity, path, explanation });
    };
    let Some(meta) = meta_dir(&*fs, &root)? else {
        if !has_members(&*fs, &root)? {
            return Err(nothing(&path));
        }
        let explanation = "it is missing, with what was in its journal, and there are members' files beside it: `repair` \
                           makes it again";
        say(Severity::Mendable, root.join(META_DIR), explanation.to_owned());
        let (members, collections) =
            read_members(&*fs, &root, &mut Bare { fs: &*fs, root: &root }, Kept::Files, &mut say)?;
        strangers(&*fs, &root, Kept::Files, &mut say)?;
        return Ok(report.of(members, collections));
    };
    let misplaced = misplaced(&*fs, &meta)?;
    let is_other = |name: &str| misplaced.iter().any(|thing| thing.is(name));
    // Nobody can have a lock that is no file.
    let _lock = if is_other(meta::LOCK) { None } else { meta::Lock::hold(&*fs, &path, &meta)? };
    for thing in &misplaced {
        let (severity, and) = match thing.is(meta::JOURNAL_DIR) {
            true => (Severity::Loss, "what was in the journal is not there"),
            false => (Severity::Mendable, "`repair` puts it aside"),
        };
        say(severity, thing.path(&meta), format!("{}: {and}", thing.reason()));
    }
    let read = if is_other(FORMAT_FILE) { Ok(None) } else { meta::read_format(&*fs, &path, &meta) };
    let kept = match read {
        Ok(Some(kept)) => kept,
        Err(error @ Error::NewerFormat { .. }) => return Err(error),
        found => {
            let kept = guess(&*fs, &root, &meta)?;
            let what = match found {
                Err(Error::Corrupt { reason, .. }) => reason,
                Err(error) => return Err(error),
                Ok(_) if is_other(FORMAT_FILE) => "nothing can be read there".to_owned(),
                Ok(_) => "it is missing".to_owned(),
            };
            let explanation = format!("{what}; what is there is a store that keeps its members {}", kept.layout());
            say(Severity::Mendable, meta.join(FORMAT_FILE), explanation);
            kept
        }
    };
    if !is_other(meta::COUNTER_FILE)
        && let meta::Mark::Damaged(reason) = meta::read_mark(&*fs, &meta)?
    {
        let explanation = format!("{reason}; the counter goes on far above every number that is in use");
        say(Severity::Mendable, meta.join(meta::COUNTER_FILE), explanation);
    }
    if kept == Kept::PackedBesideFiles {
        let explanation = "the store was being moved: `convert`, or the next load, goes on with it".to_owned();
        say(Severity::Note, meta.join(FORMAT_FILE), explanation);
    }
    for (name, number) in misnamed(&*fs, &meta)? {
        let path = meta.join(meta::JOURNAL_DIR).join(name);
        let explanation = format!("it holds segment {}: `repair` gives it its name back", journal::file_name(number));
        say(Severity::Mendable, path, explanation);
    }
    for (name, what) in
        [(meta::SEGMENTS_FILE, "segments are missing, or cut"), (meta::MEMBERS_FILE, "files are missing")]
    {
        if !is_other(name) && is_damaged_list(&*fs, &meta, name)? {
            let explanation = format!(
                "it is damaged, as a crash may leave it: it cannot tell whether {what}; a close writes it anew"
            );
            say(Severity::Note, meta.join(name), explanation);
        }
    }
    let mut look = Look::on(fs.clone(), &path)?.assume(kept);
    let (members, collections) = read_members(&*fs, &root, &mut look, kept, &mut say)?;
    leftovers(&*fs, &meta, kept, &mut say)?;
    strangers(&*fs, &root, kept, &mut say)?;
    Ok(report.of(members, collections))
}

/// Whether a list, without which a store is whole, is there and says nothing.
fn is_damaged_list(fs: &dyn Fs, meta: &Dir, name: &str) -> Result<bool> {
    let is_there = fs.kind(meta, name).map_err(|error| Error::io("look at", meta.join(name), error))?.is_some();
    Ok(is_there
        && match name {
            meta::SEGMENTS_FILE => meta::read_segments(fs, meta)?.is_none(),
            _ => meta::read_count(fs, meta)?.is_none(),
        })
}

/// Reads all that a store has, and says what is damaged. The numbers of members and of collections.
fn read_members(
    fs: &dyn Fs,
    root: &Dir,
    backend: &mut dyn Backend,
    kept: Kept,
    say: &mut impl FnMut(Severity, PathBuf, String),
) -> Result<(usize, usize)> {
    let (engine, _) = Engine::read(backend)?;
    let (members, collections, _) = engine.tally();
    let strays = if kept == Kept::Files { strays::find(fs, root)? } else { Vec::new() };
    let newest = strays::newest(fs, root, &strays)?;
    for Quarantined { path, reason, .. } in engine.report().quarantined {
        if path.ends_with(meta::COUNTER_FILE) {
            continue;
        }
        match newest.iter().find(|stray| stray.path(root) == path) {
            Some(stray) => {
                let explanation = format!("it is the file of {:?}: `repair` gives it its name back", stray.key);
                say(Severity::Mendable, path, explanation);
            }
            None => say(Severity::Loss, path, reason),
        }
    }
    Ok((members, collections))
}

/// Members' files with no `.larder` beside them.
struct Bare<'a> {
    fs: &'a dyn Fs,
    root: &'a Dir,
}

impl Backend for Bare<'_> {
    fn load(&mut self, loader: &Loader<'_>) -> Result<u64> {
        let found = files::load::load(self.fs, self.root, loader)?;
        for damaged in found.damaged {
            let path = self.root.join(&damaged.dir).join(&damaged.file);
            loader.quarantined(&path, damaged.reason, &path);
        }
        loader.recovered();
        Ok(found.highest)
    }

    fn apply(&mut self, _batch: &[Change<'_>]) -> Result<(), Rejected> {
        Ok(())
    }

    fn sync(&mut self) -> Result<()> {
        Ok(())
    }

    fn close(&mut self, _counter: u64) -> Result<()> {
        Ok(())
    }

    fn persists(&self) -> bool {
        false
    }
}

/// What is no damage, and may be wondered about.
fn leftovers(fs: &dyn Fs, meta: &Dir, kept: Kept, say: &mut impl FnMut(Severity, PathBuf, String)) -> Result<()> {
    let list = |dir: &Dir| fs.list(dir).map_err(|error| Error::io("list", dir.path(), error));
    let open = |name: &str| open_own(fs, meta, name);
    if let Some(tmp) = open(TMP_DIR)? {
        let count = list(&tmp)?.len();
        if count > 0 {
            let explanation =
                format!("{count} temporary files are left from a process that ended: the next load removes them");
            say(Severity::Note, tmp.path().to_owned(), explanation);
        }
    }
    if let Some(quarantine) = open(QUARANTINE_DIR)? {
        let count = list(&quarantine)?.iter().filter(|entry| !entry.name.ends_with(".reason")).count();
        if count > 0 {
            let explanation = format!("{count} damaged things were put aside here earlier; nobody needs them but you");
            say(Severity::Note, quarantine.path().to_owned(), explanation);
        }
    }
    if let Some(journal) = open(meta::JOURNAL_DIR)? {
        for entry in list(&journal)?.iter().filter(|entry| journal::number_of(&entry.name).is_none()) {
            let explanation = "it is no segment by its name, and is left alone".to_owned();
            say(Severity::Note, journal.join(&entry.name), explanation);
        }
    }
    if let Some(journal) = open(meta::JOURNAL_DIR)?
        && kept == Kept::Files
    {
        let count = journal::list(fs, &journal)?.len();
        if count > 0 {
            let explanation =
                "the store was not closed: the next load brings to the files what is here and is not there yet";
            say(Severity::Note, journal.path().to_owned(), explanation.to_owned());
        }
    }
    Ok(())
}

/// What stands beside `.larder` and is nobody's that larder knows.
fn strangers(fs: &dyn Fs, root: &Dir, kept: Kept, say: &mut impl FnMut(Severity, PathBuf, String)) -> Result<()> {
    for entry in fs.list(root).map_err(|error| Error::io("list", root.path(), error))? {
        let could_be_ours = entry.kind == Kind::Dir && files::name::could_be_ours(&entry.name);
        let is_foreign = !could_be_ours || kept == Kept::Packed;
        if entry.name != META_DIR && is_foreign {
            let explanation = "it is not larder's, and is left alone".to_owned();
            say(Severity::Note, root.join(&entry.name), explanation);
        }
    }
    Ok(())
}

/// One of larder's own directories in `.larder`; `None` if there is none, or something else stands there.
fn open_own(fs: &dyn Fs, meta: &Dir, name: &str) -> Result<Option<Dir>> {
    match fs.open_dir(meta, name) {
        Ok(dir) => Ok(Some(dir)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(_) if meta::is_other(fs, meta, name, Kind::Dir)? => Ok(None),
        Err(error) => Err(Error::io("open directory", meta.join(name), error)),
    }
}

/// Something that stands under a name of larder's own, and is of another kind: nothing can be read or written there.
struct Misplaced {
    /// A directory in `.larder`, or `.larder` itself.
    within: Option<&'static str>,
    name: String,
    should_be: Kind,
}

impl Misplaced {
    fn path(&self, meta: &Dir) -> PathBuf {
        self.within.map_or_else(|| meta.path().to_owned(), |within| meta.join(within)).join(&self.name)
    }

    /// Whether it stands in the place of this one, in `.larder`.
    fn is(&self, name: &str) -> bool {
        self.within.is_none() && self.name == name
    }

    fn reason(&self) -> &'static str {
        if self.should_be == Kind::Dir {
            "it is no directory, and should be one"
        } else {
            "it is no file, and should be one"
        }
    }

    fn put_aside(&self, fs: &dyn Fs, meta: &Dir) -> Result<Quarantined> {
        let Some(within) = self.within else {
            return Place::put_own_aside(fs, meta, (meta, META_DIR), &self.name, self.reason());
        };
        let dir = fs.open_dir(meta, within).map_err(|error| Error::io("open directory", meta.join(within), error))?;
        Place::put_own_aside(fs, meta, (&dir, within), &self.name, self.reason())
    }
}

fn misplaced(fs: &dyn Fs, meta: &Dir) -> Result<Vec<Misplaced>> {
    // The quarantine comes first: the others are put aside in it.
    const OWN: [(&str, Kind); 8] = [
        (QUARANTINE_DIR, Kind::Dir),
        (meta::LOCK, Kind::File),
        (FORMAT_FILE, Kind::File),
        (meta::COUNTER_FILE, Kind::File),
        (meta::MEMBERS_FILE, Kind::File),
        (meta::SEGMENTS_FILE, Kind::File),
        (meta::JOURNAL_DIR, Kind::Dir),
        (TMP_DIR, Kind::Dir),
    ];
    let mut found = Vec::new();
    for (name, should_be) in OWN {
        if meta::is_other(fs, meta, name, should_be)? {
            found.push(Misplaced { within: None, name: name.to_owned(), should_be });
        }
    }
    let listed = fs.list(meta).map_err(|error| Error::io("list", meta.path(), error))?;
    for entry in listed.into_iter().filter(|entry| place::is_on_its_way(&entry.name)) {
        // It stood in the place of the quarantine.
        found.push(Misplaced { within: None, name: entry.name, should_be: Kind::Dir });
    }
    for within in [meta::JOURNAL_DIR, TMP_DIR] {
        let Some(dir) = open_own(fs, meta, within)? else { continue };
        let listed = fs.list(&dir).map_err(|error| Error::io("list", dir.path(), error))?;
        let is_ours = |name: &str| within == TMP_DIR || journal::number_of(name).is_some();
        let others = listed.into_iter().filter(|entry| entry.kind != Kind::File && is_ours(&entry.name));
        found.extend(others.map(|entry| Misplaced { within: Some(within), name: entry.name, should_be: Kind::File }));
    }
    Ok(found)
}

/// The segments that have the name of another, and the numbers that they say they have. Their checksums cover these.
fn misnamed(fs: &dyn Fs, meta: &Dir) -> Result<Vec<(String, u64)>> {
    let Some(journal) = open_own(fs, meta, meta::JOURNAL_DIR)? else { return Ok(Vec::new()) };
    let mut misnamed = Vec::new();
    for number in journal::list(fs, &journal)? {
        let start = journal::read(fs, &journal, number, 0, journal::segment::HEADER as u64)?;
        let stated = start.get(16..24).map(|bytes| bytes.iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte)));
        let is_whole = |stated: &u64| journal::segment::Header::decode(&start, *stated).is_some();
        if let Some(stated) = stated.filter(|&stated| stated != number).filter(is_whole) {
            misnamed.push((journal::file_name(number), stated));
        }
    }
    Ok(misnamed)
}

/// A segment that has another's name.
struct Misnamed {
    /// Where it was found.
    path: PathBuf,
    /// The name it has by now.
    name: String,
    number: u64,
}

/// Gives segments their names back. One whose name another has by right is put aside.
///
/// It is one rename after the other, each of them durable before the next, and a segment always has a segment's name: so
/// wherever this ends, another call goes on.
fn give_names_back(fs: &dyn Fs, meta: &Dir) -> Result<(Vec<Restored>, Vec<Quarantined>)> {
    let (mut restored, mut left) = (Vec::new(), Vec::new());
    let Some(journal) = open_own(fs, meta, meta::JOURNAL_DIR)? else { return Ok((restored, left)) };
    let misnamed = misnamed(fs, meta)?.into_iter();
    let mut waiting: Vec<Misnamed> =
        misnamed.map(|(name, number)| Misnamed { path: journal.join(&name), name, number }).collect();
    let rename = |from: &str, to: &str| {
        let renamed = fs.rename(&journal, from, &journal, to);
        renamed.map_err(|error| Error::io("rename", journal.join(from), error))?;
        fs.sync_dir(&journal).map_err(|error| Error::io("sync directory", journal.path(), error))
    };
    while !waiting.is_empty() {
        let has_room = |one: &Misnamed| !waiting.iter().any(|other| other.name == journal::file_name(one.number));
        if let Some(next) = waiting.iter().position(has_room) {
            let Misnamed { path, name, number } = waiting.swap_remove(next);
            let own = journal::file_name(number);
            if fs.kind(&journal, &own).map_err(|error| Error::io("look at", journal.join(&own), error))?.is_none() {
                rename(&name, &own)?;
                restored.push(Restored { path, moved_to: journal.join(&own) });
            } else {
                let reason = format!("it holds segment {own}, and there is another of that name");
                let aside = Place::put_own_aside(fs, meta, (&journal, meta::JOURNAL_DIR), &name, &reason)?;
                left.push(Quarantined { path, ..aside });
            }
            continue;
        }
        // They have each other's names: one gives its own up for one that is nobody's.
        let last = journal::list(fs, &journal)?.into_iter().chain(waiting.iter().map(|one| one.number)).max();
        let free = journal::file_name(Numbers::after(last.unwrap_or(0)).next());
        if let Some(first) = waiting.first_mut() {
            rename(&first.name, &free)?;
            first.name = free;
        }
    }
    Ok((restored, left))
}

/// Mends the closed store at `path`: keeps everything that can be kept, and moves what cannot into quarantine. After it
/// [`check`] finds the store sound, and it opens.
///
/// It can be interrupted at any point, by a crash too: what has been mended stays so, and the same call goes on.
///
/// What a load does by itself it does too; beyond that it makes a missing or damaged file of the format again, puts aside what
/// is a directory and should be a file of larder's own, or the other way round, gives segments and members' files that have
/// another's name their own, where nothing newer of the member is there, goes on without a segment that cannot be read, and writes what is damaged in a packed store anew.
///
/// # Errors
///
/// Those of [`check`], and of a disk that takes no changes: nothing is lost then.
pub fn repair(path: impl AsRef<Path>) -> Result<RepairReport> {
    repair_on(Arc::new(Native), path.as_ref())
}

pub(crate) fn repair_on(fs: Arc<dyn Fs>, path: &Path) -> Result<RepairReport> {
    let path = meta::absolute(path)?;
    let root = open_root(&*fs, &path)?;
    let (mut quarantined, mut restored) = (Vec::new(), Vec::new());
    let meta = match meta_dir(&*fs, &root)? {
        Some(meta) => meta,
        None if has_members(&*fs, &root)? => {
            let made = fs.make_dir(&root, META_DIR).and_then(|()| fs.open_dir(&root, META_DIR));
            made.map_err(|error| Error::io("create directory", root.join(META_DIR), error))?
        }
        None => return Err(nothing(&path)),
    };
    let misplaced = misplaced(&*fs, &meta)?;
    // Nobody can have a lock that is no file.
    let has_no_lock = misplaced.iter().any(|thing| thing.is(meta::LOCK));
    let is_before = |thing: &Misplaced| has_no_lock && (thing.is(meta::LOCK) || thing.is(QUARANTINE_DIR));
    let (before, others): (Vec<_>, Vec<_>) = misplaced.into_iter().partition(is_before);
    for thing in &before {
        quarantined.push(thing.put_aside(&*fs, &meta)?);
    }
    {
        let _lock = meta::Lock::take(&*fs, &path, &meta)?;
        for thing in &others {
            quarantined.push(thing.put_aside(&*fs, &meta)?);
        }
        match meta::read_format(&*fs, &path, &meta) {
            Ok(Some(_)) => {}
            Err(error @ (Error::NewerFormat { .. } | Error::Io { .. })) => return Err(error),
            found => {
                quarantined.extend(Place::mend_format(&*fs, &root, &meta, guess(&*fs, &root, &meta)?, found.err())?)
            }
        }
        let (segments, left) = give_names_back(&*fs, &meta)?;
        restored.extend(segments);
        quarantined.extend(left);
        if meta::read_format(&*fs, &path, &meta)? == Some(Kept::Files) {
            let (files, left) = strays::bring_back(&*fs, &root, &meta)?;
            restored.extend(files);
            quarantined.extend(left);
        }
    }
    let kept = meta::read_format(&*fs, &path, &meta)?.ok_or_else(|| nothing(&path))?;
    let engine = loop {
        let done = match kept.layout() {
            Layout::Files => Files::on(fs.clone(), &path).and_then(mend),
            Layout::Packed => Packed::on(fs.clone(), &path).and_then(|mut packed| {
                packed.mends = true;
                mend(packed)
            }),
        };
        match done {
            // The medium has lost a whole segment: the rest is worth more.
            Err(Error::Io { path: bad, source, .. })
                if files::load::is_bad_medium(&source) && bad.parent().is_some_and(|dir| dir.ends_with("journal")) =>
            {
                let segment = bad.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                let journal = fs.open_dir(&meta, meta::JOURNAL_DIR);
                let journal =
                    journal.map_err(|error| Error::io("open directory", meta.join(meta::JOURNAL_DIR), error))?;
                let reason = format!("it cannot be read: {source}");
                let aside = Place::put_own_aside(&*fs, &meta, (&journal, meta::JOURNAL_DIR), segment, &reason);
                quarantined.push(aside?);
            }
            done => break done?,
        }
    };
    let (members, collections, _) = engine.tally();
    quarantined.extend(engine.report().quarantined);
    Ok(RepairReport { members, collections, quarantined, restored })
}

/// Loads, writes anew what has to be, and closes.
fn mend(mut backend: impl Backend) -> Result<Engine> {
    let (engine, counter) = Engine::read(&mut backend)?;
    backend.sync()?;
    let (done, finished) = std::sync::mpsc::channel();
    backend.compact(Box::new(move |outcome| _ = done.send(outcome)));
    finished.recv().unwrap_or(Ok(()))?;
    backend.settle()?;
    backend.close(counter)?;
    Ok(engine)
}

fn nothing(path: &Path) -> Error {
    Error::NotAStore { path: path.to_owned(), reason: "there is no store" }
}

fn open_root(fs: &dyn Fs, path: &Path) -> Result<Dir> {
    match fs.kind_at(path, true).map_err(|error| Error::io("look at", path, error))? {
        Some(Kind::Dir) => fs.open_root(path).map_err(|error| Error::io("open directory", path, error)),
        _ => Err(nothing(path)),
    }
}

fn meta_dir(fs: &dyn Fs, root: &Dir) -> Result<Option<Dir>> {
    match fs.open_dir(root, META_DIR) {
        Ok(meta) => Ok(Some(meta)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("open directory", root.join(META_DIR), error)),
    }
}

/// Whether there is a file that verifies as a member's.
fn has_members(fs: &dyn Fs, root: &Dir) -> Result<bool> {
    let list = |dir: &Dir| fs.list(dir).map_err(|error| Error::io("list", dir.path(), error));
    let mut buffer = Vec::new();
    for entry in list(root)?.iter().filter(|entry| entry.kind == Kind::Dir && files::name::could_be_ours(&entry.name)) {
        let path = root.join(&entry.name);
        let dir = fs.open_dir(root, &entry.name).map_err(|error| Error::io("open directory", path, error))?;
        for file in list(&dir)?.iter().filter(|file| file.kind == Kind::File && files::name::could_be_ours(&file.name))
        {
            let read = fs.open(&dir, &file.name).and_then(|mut open| files::load::read_whole(&mut *open, &mut buffer));
            match read {
                Ok(length) if files::header::decode(&buffer[..length]).is_ok() => return Ok(true),
                Err(error) if error.kind() != io::ErrorKind::NotFound && !files::load::is_bad_medium(&error) => {
                    return Err(Error::io("read", dir.join(&file.name), error));
                }
                _ => {}
            }
        }
    }
    Ok(false)
}

/// How a store keeps its members that does not say so.
fn guess(fs: &dyn Fs, root: &Dir, meta: &Dir) -> Result<Kept> {
    let Some(journal) = open_own(fs, meta, meta::JOURNAL_DIR)? else { return Ok(Kept::Files) };
    let numbers = journal::list(fs, &journal)?;
    for number in &numbers {
        let start = journal::read(fs, &journal, *number, 0, journal::segment::HEADER as u64)?;
        let header = journal::segment::Header::decode(&start, *number);
        if header.is_some_and(|header| header.packed_end.is_some()) {
            return Ok(Kept::Packed);
        }
    }
    Ok(if numbers.is_empty() || has_members(fs, root)? { Kept::Files } else { Kept::Packed })
}
