//! A backend of your own: everything in one log, a line of JSON for each change.
//!
//! ```text
//! {"put":{"collection":"artist","member":"bjork","version":3,"codec":"json","text":"{\"albums\":10}"}}
//! {"delete":{"collection":"artist","member":"celine_dion","version":4}}
//! ```
//!
//! The program opens a store on such a log, writes, shows the log, closes, opens again, and then damages the log as a
//! crash would. The numbers in the comments are those of the rules in the documentation of `larder::backend`.
//!
//! What it leaves out for the sake of brevity: lines have no checksum, so damage that still reads as a line goes
//! unnoticed; and the log is compacted only when the store closes.
//!
//! ```text
//! cargo run --example backend
//! ```

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use larder::backend::{Backend, Change, Loader, Rejected};
use larder::{Error, Result, Store};
use serde::{Deserialize, Serialize};

// ---- a line of the log ----

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Line<'a> {
    /// The first line of a compacted log: the store's counter of versions.
    Counter(u64),
    #[serde(borrow)]
    Put(Put<'a>),
    #[serde(borrow)]
    Delete(Delete<'a>),
    #[serde(borrow)]
    Clear(Clear<'a>),
}

#[derive(Serialize, Deserialize)]
struct Put<'a> {
    #[serde(borrow)]
    collection: Cow<'a, str>,
    #[serde(borrow)]
    member: Cow<'a, str>,
    version: u64,
    /// In milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    deadline: Option<u64>,
    #[serde(borrow)]
    codec: Cow<'a, str>,
    #[serde(flatten)]
    value: Bytes<'a>,
}

#[derive(Serialize, Deserialize)]
struct Delete<'a> {
    #[serde(borrow)]
    collection: Cow<'a, str>,
    #[serde(borrow)]
    member: Cow<'a, str>,
    version: u64,
}

#[derive(Serialize, Deserialize)]
struct Clear<'a> {
    #[serde(borrow)]
    collection: Cow<'a, str>,
    version: u64,
}

/// A value, readable if it can be.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Bytes<'a> {
    Text(Cow<'a, str>),
    Bytes(Cow<'a, [u8]>),
}

impl<'a> Bytes<'a> {
    fn new(value: &'a [u8]) -> Self {
        match std::str::from_utf8(value) {
            Ok(text) => Bytes::Text(text.into()),
            Err(_) => Bytes::Bytes(value.into()),
        }
    }

    fn as_slice(&self) -> &[u8] {
        match self {
            Bytes::Text(text) => text.as_bytes(),
            Bytes::Bytes(bytes) => bytes,
        }
    }
}

impl<'a> TryFrom<&Change<'a>> for Line<'a> {
    type Error = Error;

    fn try_from(change: &Change<'a>) -> Result<Self> {
        match *change {
            Change::Put { collection, member, version, deadline, codec, value } => {
                Ok(Line::put(collection, member, version, deadline, codec, value))
            }
            Change::Delete { collection, member, version } => {
                Ok(Line::Delete(Delete { collection: collection.into(), member: member.into(), version }))
            }
            Change::Clear { collection, version } => Ok(Line::Clear(Clear { collection: collection.into(), version })),
            _ => Err(Error::backend("write to the log", "a change of a kind that it does not know")),
        }
    }
}

impl<'a> Line<'a> {
    fn put(
        collection: &'a str,
        member: &'a str,
        version: u64,
        deadline: Option<u64>,
        codec: &'a str,
        value: &'a [u8],
    ) -> Self {
        let (collection, member, codec) = (collection.into(), member.into(), codec.into());
        Line::Put(Put { collection, member, version, deadline, codec, value: Bytes::new(value) })
    }

    fn version(&self) -> u64 {
        match self {
            Line::Counter(counter) => *counter,
            Line::Put(put) => put.version,
            Line::Delete(delete) => delete.version,
            Line::Clear(clear) => clear.version,
        }
    }

    /// Appends the line to `out`. JSON escapes every newline, so the one at the end is the only one.
    fn write(&self, out: &mut Vec<u8>) -> Result<()> {
        serde_json::to_writer(&mut *out, self).map_err(|error| Error::backend("encode a change", error))?;
        out.push(b'\n');
        Ok(())
    }
}

// ---- the log, replayed ----

/// What a log says.
#[derive(Default)]
struct Replay {
    /// By collection and member.
    members: BTreeMap<(String, String), Member>,
    /// The highest version of any line: the counter may not go back below it, even if the member has gone.
    highest: u64,
    /// Lines that cannot be read, with the reason.
    damaged: Vec<(Vec<u8>, String)>,
}

struct Member {
    version: u64,
    deadline: Option<u64>,
    codec: String,
    value: Vec<u8>,
}

impl Replay {
    fn read(path: &Path) -> Result<Replay> {
        let failed = |error| Error::io("read", path, error);
        let mut replay = Replay::default();
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(replay),
            Err(error) => return Err(failed(error)),
        };
        let mut file = BufReader::new(file);
        let mut line = Vec::new();
        while file.read_until(b'\n', &mut line).map_err(failed)? > 0 {
            // A line without an end is one that a crash cut short, even if it reads as a line.
            let Some(whole) = line.strip_suffix(b"\n") else {
                replay.damaged.push((line, "the line has no end".into()));
                break;
            };
            match serde_json::from_slice(whole) {
                Ok(parsed) => replay.apply(parsed),
                Err(error) => replay.damaged.push((line.clone(), error.to_string())),
            }
            line.clear();
        }
        Ok(replay)
    }

    /// Rule 2, once more: a change replaces whatever is there, and a clear takes what has a lower version.
    fn apply(&mut self, line: Line<'_>) {
        self.highest = self.highest.max(line.version());
        match line {
            Line::Counter(_) => {}
            Line::Put(put) => {
                let value = put.value.as_slice().to_vec();
                let member = Member { version: put.version, deadline: put.deadline, codec: put.codec.into(), value };
                self.members.insert((put.collection.into(), put.member.into()), member);
            }
            Line::Delete(delete) => _ = self.members.remove(&(delete.collection.into(), delete.member.into())),
            Line::Clear(clear) => {
                self.members.retain(|(collection, _), member| {
                    *collection != clear.collection || member.version >= clear.version
                });
            }
        }
    }

    /// The shortest log that says the same.
    fn compacted(&self, counter: u64) -> Result<Vec<u8>> {
        let mut log = Vec::new();
        Line::Counter(counter).write(&mut log)?;
        for ((collection, member), Member { version, deadline, codec, value }) in &self.members {
            Line::put(collection, member, *version, *deadline, codec, value).write(&mut log)?;
        }
        Ok(log)
    }
}

// ---- the backend ----

/// The log as a backend. There are no locks in it: all calls come from one thread at a time.
struct JsonLog {
    path: PathBuf,
    /// Between `load` and `close`.
    open: Option<Open>,
}

struct Open {
    path: PathBuf,
    log: File,
    /// Where the last whole batch ends, and where the log ended when it was last durable.
    end: u64,
    synced: u64,
    trouble: Trouble,
    /// Held for as long as the log is open, so that no other process writes to it. Nothing but the backend knows what
    /// it stands for, so keeping others out is the backend's part.
    _lock: File,
}

/// What must be put right before anything else is appended.
#[derive(Clone, Copy, PartialEq)]
enum Trouble {
    None,
    /// An append failed: there may be part of a batch after `end`.
    Torn,
    /// A sync failed: what comes after `synced` may be lost, even if it can still be read. Asking again would prove
    /// nothing, since the system tells the error once and forgets it; so the log goes on in a new file.
    Lost,
}

impl JsonLog {
    fn new(path: impl Into<PathBuf>) -> JsonLog {
        JsonLog { path: path.into(), open: None }
    }

    fn opened(&mut self) -> Result<&mut Open> {
        self.open.as_mut().ok_or_else(|| Error::NotLoaded { path: self.path.clone() })
    }
}

impl Backend for JsonLog {
    /// Rule 1. Nothing of `self` changes before it is sure to succeed, so that it can be tried again.
    fn load(&mut self, loader: &Loader<'_>) -> Result<u64> {
        let lock = take_lock(&self.path)?;
        let mut replay = Replay::read(&self.path)?;
        let mut refused = Vec::new();
        for ((collection, member), Member { version, deadline, codec, value }) in &replay.members {
            match loader.put(collection, member, *version, *deadline, codec, value) {
                Ok(()) => {}
                // Nothing that larder wrote, then. It costs this member, and not the load.
                Err(error @ (Error::InvalidKey { .. } | Error::TooLarge { .. })) => {
                    let mut line = Vec::new();
                    Line::put(collection, member, *version, *deadline, codec, value).write(&mut line)?;
                    refused.push(((collection.clone(), member.clone()), line, error.to_string()));
                }
                Err(error) => return Err(error),
            }
        }
        for (key, line, reason) in refused {
            replay.members.remove(&key);
            replay.damaged.push((line, reason));
        }

        // What cannot be read is copied aside, durably, and only then is the log written without it.
        for (number, (line, reason)) in replay.damaged.iter().enumerate() {
            let aside = put_aside(&self.path, number, line)?;
            loader.quarantined(&self.path, reason, aside);
        }
        let log = File::options().create(true).append(true).open(&self.path);
        let log = log.map_err(|error| Error::io("open", &self.path, error))?;
        let end = log.metadata().map_err(|error| Error::io("look at", &self.path, error))?.len();
        let mut open = Open { path: self.path.clone(), log, end, synced: end, trouble: Trouble::None, _lock: lock };
        if replay.damaged.is_empty() {
            // It may be new, or what a crash left: durable from here on.
            open.log.sync_all().map_err(|error| Error::io("sync", &self.path, error))?;
            sync_parent(&self.path)?;
        } else {
            open.replace(&replay.compacted(replay.highest)?)?;
        }
        self.open = Some(open);
        Ok(replay.highest)
    }

    /// Rule 2, and rule 3: a change is a line, and a line without its end does not count. The whole batch is one
    /// write, after which it is all there or all rejected, and what is rejected comes again (rule 4).
    fn apply(&mut self, batch: &[Change<'_>]) -> Result<(), Rejected> {
        let open = self.opened()?;
        open.put_right()?;
        let mut lines = Vec::new();
        for change in batch {
            Line::try_from(change)?.write(&mut lines)?;
        }
        open.append(&lines)?;
        Ok(())
    }

    /// Rule 5.
    fn sync(&mut self) -> Result<()> {
        self.opened()?.sync()
    }

    /// Everything is applied and durable: what remains is to write it down without its history.
    fn close(&mut self, counter: u64) -> Result<()> {
        let open = self.opened()?;
        let replay = Replay::read(&open.path)?;
        open.replace(&replay.compacted(counter)?)?;
        // Lets go of the lock.
        self.open = None;
        Ok(())
    }

    /// For `Options::quarantine_undecodable`.
    fn quarantine(&mut self, member: &Change<'_>, _reason: &str) -> Result<PathBuf> {
        let mut line = Vec::new();
        Line::try_from(member)?.write(&mut line)?;
        put_aside(&self.opened()?.path, 0, &line)
    }
}

impl Open {
    fn append(&mut self, lines: &[u8]) -> Result<()> {
        if let Err(error) = self.log.write_all(lines) {
            self.trouble = Trouble::Torn;
            return Err(Error::io("append to", &self.path, error));
        }
        self.end += lines.len() as u64;
        Ok(())
    }

    fn sync(&mut self) -> Result<()> {
        if let Err(error) = self.log.sync_data() {
            self.trouble = Trouble::Lost;
            return Err(Error::io("sync", &self.path, error));
        }
        self.synced = self.end;
        Ok(())
    }

    fn put_right(&mut self) -> Result<()> {
        match self.trouble {
            Trouble::None => {}
            Trouble::Torn => {
                self.log.set_len(self.end).map_err(|error| Error::io("cut off the end of", &self.path, error))?;
                self.trouble = Trouble::None;
            }
            Trouble::Lost => {
                // What was durable is still good. All that came after it is offered again.
                let mut kept = Vec::new();
                let log = File::open(&self.path).map_err(|error| Error::io("open", &self.path, error))?;
                let read = log.take(self.synced).read_to_end(&mut kept);
                read.map_err(|error| Error::io("read", &self.path, error))?;
                self.replace(&kept)?;
            }
        }
        Ok(())
    }

    /// Puts a new log in the place of the old one: after a crash there is the one or the other, whole.
    fn replace(&mut self, contents: &[u8]) -> Result<()> {
        let new = beside(&self.path, "new");
        write_durably(&new, contents)?;
        fs::rename(&new, &self.path).map_err(|error| Error::io("replace", &self.path, error))?;
        // Until the new name is durable, so is nothing that is appended.
        self.trouble = Trouble::Lost;
        let log = File::options().append(true).open(&self.path);
        self.log = log.map_err(|error| Error::io("open", &self.path, error))?;
        self.end = contents.len() as u64;
        self.synced = self.end;
        sync_parent(&self.path)?;
        self.trouble = Trouble::None;
        Ok(())
    }
}

// ---- files ----

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

/// The lock's file is never removed: whoever has opened it must not hold a lock on a name that has gone.
fn take_lock(log: &Path) -> Result<File> {
    let path = beside(log, "lock");
    let lock = File::options().create(true).truncate(false).write(true).open(&path);
    let lock = lock.map_err(|error| Error::io("open", &path, error))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => {
            Err(Error::Locked { path: log.to_owned(), holder: "another store".to_owned() })
        }
        Err(TryLockError::Error(error)) => Err(Error::io("lock", &path, error)),
    }
}

/// Writes a line to a file of its own, under a name that is not taken.
fn put_aside(log: &Path, mut number: usize, line: &[u8]) -> Result<PathBuf> {
    loop {
        let aside = beside(log, &format!("damaged-{number}"));
        match File::create_new(&aside) {
            Ok(mut file) => {
                let written = file.write_all(line).and_then(|()| file.sync_all());
                written.map_err(|error| Error::io("write", &aside, error))?;
                sync_parent(&aside)?;
                return Ok(aside);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            Err(error) => return Err(Error::io("create", &aside, error)),
        }
    }
}

fn write_durably(path: &Path, contents: &[u8]) -> Result<()> {
    let mut file = File::create(path).map_err(|error| Error::io("create", path, error))?;
    let written = file.write_all(contents).and_then(|()| file.sync_all());
    written.map_err(|error| Error::io("write", path, error))
}

/// Makes the names in the file's directory durable, where the system has such a thing.
fn sync_parent(path: &Path) -> Result<()> {
    if cfg!(unix) {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let synced = File::open(parent).and_then(|dir| dir.sync_all());
        synced.map_err(|error| Error::io("sync directory", parent, error))?;
    }
    Ok(())
}

// ---- the program ----

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Artist {
    albums: u32,
}

fn open(path: &Path) -> Result<Store> {
    Store::options(path).backend(JsonLog::new(path)).open()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("music.log");

    let store = open(&path)?;
    store.put("label/virgin", "founded 1972")?;
    store.put("label/logo", [0xff, 0xd8, 0xff])?;
    let artists = store.collection::<Artist>("artist")?;
    artists.put("daft_punk", Artist { albums: 4 })?;
    artists.put("celine_dion", Artist { albums: 27 })?;
    store.flush()?;
    artists.put("bjork", Artist { albums: 10 })?;
    artists.delete("celine_dion")?;
    store.delete_all("label")?;
    store.put("label/one_little", "founded 1985")?;
    store.flush()?;
    println!("the log:\n{}", fs::read_to_string(&path)?);

    match open(&path) {
        Err(error @ Error::Locked { .. }) => println!("a second store: {error}\n"),
        other => return Err(format!("a second store was let in: {other:?}").into()),
    }

    // What a crash at this moment would leave. It is not compacted, and it says the same.
    let crashed = dir.path().join("crashed.log");
    fs::copy(&path, &crashed)?;

    let report = store.close()?;
    println!("closed, with {} members; the log:\n{}", report.members, fs::read_to_string(&path)?);

    // And here the crash tore the last line.
    let torn = r#"{"put":{"collection":"artist","mem"#;
    File::options().append(true).open(&crashed)?.write_all(torn.as_bytes())?;

    for path in [&path, &crashed] {
        let store = open(path)?;
        let report = store.load_report();
        println!("{}: {} members", path.display(), report.members);
        for damaged in &report.quarantined {
            println!("damaged: {}; it is in {} now", damaged.reason, damaged.moved_to.display());
        }
        let artists = store.collection::<Artist>("artist")?;
        let is = |member: &str, albums| artists.get(member).as_deref() == Some(&Artist { albums });
        let label = store.get("label/one_little")?.is_some_and(|label| label == "founded 1985");
        if report.members != 3 || !is("daft_punk", 4) || !is("bjork", 10) || !label {
            return Err("it is not what it was".into());
        }
        let report = store.close()?;
        println!("closed, with {} members\n", report.members);
    }
    Ok(())
}
