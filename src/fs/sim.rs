//! A file system in memory that remembers what was done to it, in order. For tests of crashes and of faults.
//!
//! It behaves as [`Native`](super::Native) does, with two differences: a directory is known by its path, not by a
//! descriptor, and nothing takes time. A process that uses it can be killed: what it has done stays, and it does nothing
//! more. What a crash makes of the record is not its concern: see `crate::crash::states`.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::io;
use std::path::{Component, Path};
use std::sync::Arc;
use std::thread::{self, ThreadId};

use super::{Dir, Entry, File, Fs, Kind, LockFile};
use crate::journal::{self, segment};
use crate::sync::{Mutex, MutexGuard};

/// A file or directory, whatever its names are. Numbers are given in order and never again.
pub(crate) type Inode = usize;
pub(crate) type Name = Arc<str>;
pub(crate) type Bytes = Arc<Vec<u8>>;

/// The directory that everything else is in. It is always durable.
pub(crate) const ROOT: Inode = 0;

/// What is on a disk: every path, from the root and without a leading slash, with a file's bytes or `None` for a
/// directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Image(pub(crate) BTreeMap<String, Option<Bytes>>);

impl Image {
    /// An empty directory at each of the paths, in order.
    pub(crate) fn of_dirs(paths: &[&str]) -> Image {
        Image(paths.iter().map(|path| ((*path).to_owned(), None)).collect())
    }

    pub(crate) fn hash(&self) -> u128 {
        let mut hash = Hash128::default();
        for (path, bytes) in &self.0 {
            hash.add(path.as_bytes());
            match bytes {
                None => hash.add_number(u64::MAX),
                Some(bytes) => hash.add(bytes),
            }
        }
        hash.0
    }
}

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (path, bytes) in &self.0 {
            match bytes {
                None => writeln!(f, "  {path}/")?,
                Some(bytes) => writeln!(f, "  {path}  {}", Shown(bytes))?,
            }
        }
        Ok(())
    }
}

/// Bytes, as people read them, and not too many.
pub(crate) struct Shown<'a>(pub(crate) &'a [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MOST: usize = 160;
        let start = &self.0[..self.0.len().min(MOST)];
        write!(f, "{} bytes", self.0.len())?;
        if self.0.is_empty() {
            return Ok(());
        }
        if self.0.iter().all(|&byte| byte == 0) {
            return write!(f, ", all zeros");
        }
        write!(f, " \"{}{}\"", start.escape_ascii(), if self.0.len() > MOST { "…" } else { "" })
    }
}

/// 128 bits that two different inputs do not share by chance. Against those who mean it, it is nothing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hash128(pub(crate) u128);

impl Default for Hash128 {
    fn default() -> Self {
        Hash128(0x243f_6a88_85a3_08d3_1319_8a2e_0370_7344)
    }
}

impl Hash128 {
    pub(crate) fn add_number(&mut self, number: u64) {
        const ODD: u128 = 0x2d35_8dcc_aa6c_78a5_8bb8_4b93_962e_acc9;
        let mixed = (self.0 ^ u128::from(number)).wrapping_mul(ODD);
        self.0 = mixed ^ (mixed >> 67) ^ (mixed << 31);
    }

    pub(crate) fn add(&mut self, bytes: &[u8]) {
        self.add_number(bytes.len() as u64);
        let mut words = bytes.chunks_exact(8);
        for word in &mut words {
            self.add_number(u64::from_le_bytes(word.try_into().unwrap_or_default()));
        }
        let mut last = [0; 8];
        last[..words.remainder().len()].copy_from_slice(words.remainder());
        self.add_number(u64::from_le_bytes(last));
    }
}

/// Something that was done. Names and inodes are as they were at that moment.
#[derive(Debug, Clone)]
pub(crate) enum Op {
    Create {
        dir: Inode,
        name: Name,
        inode: Inode,
    },
    MakeDir {
        dir: Inode,
        name: Name,
        inode: Inode,
    },
    Write {
        inode: Inode,
        offset: u64,
        bytes: Bytes,
    },
    Cut {
        inode: Inode,
        length: u64,
    },
    Rename {
        from: Inode,
        from_name: Name,
        to: Inode,
        to_name: Name,
        inode: Inode,
        is_dir: bool,
    },
    Unlink {
        dir: Inode,
        name: Name,
    },
    RemoveDir {
        dir: Inode,
        name: Name,
    },
    SyncData {
        inode: Inode,
    },
    SyncDir {
        dir: Inode,
    },
    SyncFs,
    /// What was written to the file may be lost from now on, and no later sync of it says so.
    SyncDataFailed {
        inode: Inode,
    },
    /// The same, of every file.
    SyncFsFailed,
    /// A barrier of the class that does nothing.
    Skipped(Barrier),
    Mark(Mark),
}

/// What a test says about its own progress, in the order of the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mark {
    /// The operation of this number is about to be called.
    Began(usize),
    /// No crash may lose what the operations before this number did.
    Promised(usize),
}

/// A class of barriers: what is called, where, and for what.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Barrier {
    pub(crate) call: &'static str,
    pub(crate) place: String,
    /// What was done there last, and whether it is a load that makes it durable.
    pub(crate) what: String,
}

impl Barrier {
    /// Nobody has changed what it makes durable since that was last done.
    pub(crate) fn is_idle(&self) -> bool {
        self.what.starts_with("after no change")
    }
}

impl fmt::Display for Barrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Barrier { call, place, what } = self;
        write!(f, "{call} of {place}{}{what}", if what.is_empty() { "" } else { ", " })
    }
}

/// Barriers that do nothing: those of a place, or only some of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Without {
    pub(crate) call: &'static str,
    pub(crate) place: String,
    pub(crate) what: Option<String>,
}

impl Without {
    pub(crate) fn covers(&self, barrier: &Barrier) -> bool {
        let same = self.call == barrier.call && self.place == barrier.place;
        same && self.what.as_ref().is_none_or(|what| *what == barrier.what)
    }
}

impl fmt::Display for Without {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.call, self.place)?;
        self.what.iter().try_for_each(|what| write!(f, ", {what}"))
    }
}

/// What kind of call it is: not every error strikes every one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    /// Looks at names, and changes nothing.
    Look,
    /// Takes a descriptor.
    Open,
    Read,
    /// Takes a descriptor, and changes something.
    Create,
    Change,
    Sync,
}

/// An error that strikes: the call of that number, counted from 0 among those that it can strike.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fault {
    pub(crate) at: usize,
    /// All after it fail too, until the fault is lifted.
    pub(crate) sticky: bool,
    pub(crate) errno: i32,
}

pub(crate) const EIO: i32 = 5;
pub(crate) const EMFILE: i32 = 24;
pub(crate) const ENOSPC: i32 = 28;
pub(crate) const EROFS: i32 = 30;

impl Fault {
    fn can_strike(&self, call: Call) -> bool {
        match self.errno {
            EMFILE => matches!(call, Call::Open | Call::Create),
            ENOSPC | EROFS => matches!(call, Call::Create | Call::Change | Call::Sync),
            _ => true,
        }
    }
}

#[derive(Debug)]
enum Content {
    Dir(BTreeMap<Name, Inode>),
    File(Bytes),
}

#[derive(Debug)]
struct Node {
    content: Content,
    /// Where it stands, or last stood.
    parent: Inode,
    name: Name,
    /// A file: from where on it was written since the last sync.
    unsynced: Option<usize>,
    /// A directory: the last change of its names since the last sync.
    changed: Option<String>,
}

#[derive(Debug)]
struct World {
    nodes: Vec<Node>,
    log: Vec<Op>,
    recording: bool,
    locked: HashSet<Inode>,
    without: Option<Without>,
    barriers: BTreeSet<Barrier>,
    fault: Option<Fault>,
    /// Calls that the fault could have struck.
    strikable: usize,
    struck: usize,
    /// The process that lives: those of lower numbers are dead.
    process: u64,
    /// So many more calls that change something, or make it durable, and it is killed.
    fuse: Option<usize>,
    /// The thread that is loading a store.
    loads: Option<ThreadId>,
}

/// The file system. A clone is the same one, used by the same process.
#[derive(Debug, Clone)]
pub(crate) struct Sim {
    world: Arc<Mutex<World>>,
    process: u64,
    /// The store's directory: barriers are named as seen from there.
    home: Arc<str>,
    sync_fs: bool,
}

fn fails<T>(kind: io::ErrorKind) -> io::Result<T> {
    Err(kind.into())
}

impl World {
    fn new(image: &Image) -> World {
        let node = |content, parent, name| Node { content, parent, name, unsynced: None, changed: None };
        let mut nodes = vec![node(Content::Dir(BTreeMap::new()), ROOT, Name::from(""))];
        let mut dirs: HashMap<&str, Inode> = [("", ROOT)].into();
        for (path, bytes) in &image.0 {
            let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
            let (parent, name, inode) = (dirs[parent], Name::from(name), nodes.len());
            let content = match bytes {
                Some(bytes) => Content::File(bytes.clone()),
                None => Content::Dir(BTreeMap::new()),
            };
            if bytes.is_none() {
                dirs.insert(path, inode);
            }
            if let Content::Dir(names) = &mut nodes[parent].content {
                names.insert(name.clone(), inode);
            }
            nodes.push(node(content, parent, name));
        }
        World {
            nodes,
            log: Vec::new(),
            recording: false,
            locked: HashSet::new(),
            without: None,
            barriers: BTreeSet::new(),
            fault: None,
            strikable: 0,
            struck: 0,
            process: 0,
            fuse: None,
            loads: None,
        }
    }

    /// The process ends here. Its locks go, and what it has changed stays, durable or not.
    fn kill(&mut self) {
        self.process += 1;
        (self.fuse, self.loads) = (None, None);
        self.locked.clear();
        for changed in self.nodes.iter_mut().filter_map(|node| node.changed.as_mut()) {
            *changed = "a kill".to_owned();
        }
    }

    /// Counts a call of the process that lives.
    fn burn(&mut self) {
        match self.fuse {
            Some(0) => self.kill(),
            Some(left) => self.fuse = Some(left - 1),
            None => {}
        }
    }

    fn find(&self, path: &Path) -> io::Result<Inode> {
        let mut at = ROOT;
        for component in path.components() {
            let Component::Normal(name) = component else { continue };
            let Some(&next) = self.names(at)?.get(name.to_str().unwrap_or_default()) else {
                return fails(io::ErrorKind::NotFound);
            };
            at = next;
        }
        Ok(at)
    }

    fn names(&self, dir: Inode) -> io::Result<&BTreeMap<Name, Inode>> {
        match &self.nodes[dir].content {
            Content::Dir(names) => Ok(names),
            Content::File(_) => fails(io::ErrorKind::NotADirectory),
        }
    }

    fn names_mut(&mut self, dir: Inode) -> io::Result<&mut BTreeMap<Name, Inode>> {
        match &mut self.nodes[dir].content {
            Content::Dir(names) => Ok(names),
            Content::File(_) => fails(io::ErrorKind::NotADirectory),
        }
    }

    fn dir(&self, path: &Path) -> io::Result<Inode> {
        let inode = self.find(path)?;
        self.names(inode).map(|_| inode)
    }

    fn is_dir(&self, inode: Inode) -> bool {
        matches!(self.nodes[inode].content, Content::Dir(_))
    }

    fn lookup(&self, dir: &Path, name: &str) -> io::Result<(Inode, Option<Inode>)> {
        let dir = self.dir(dir)?;
        Ok((dir, self.names(dir)?.get(name).copied()))
    }

    /// A new file or directory under a free name.
    fn add(&mut self, dir: &Path, name: &str, content: Content) -> io::Result<Inode> {
        let (dir, found) = self.lookup(dir, name)?;
        if found.is_some() {
            return fails(io::ErrorKind::AlreadyExists);
        }
        let (name, inode) = (Name::from(name), self.nodes.len());
        let is_dir = matches!(content, Content::Dir(_));
        self.nodes.push(Node { content, parent: dir, name: name.clone(), unsynced: None, changed: None });
        self.names_mut(dir)?.insert(name.clone(), inode);
        self.changed(dir, if is_dir { "mkdir" } else { "create" }, &name);
        self.note(if is_dir { Op::MakeDir { dir, name, inode } } else { Op::Create { dir, name, inode } });
        Ok(inode)
    }

    fn note(&mut self, op: Op) {
        if self.recording {
            self.log.push(op);
        }
    }

    fn write(&mut self, inode: Inode, offset: u64, bytes: &[u8]) {
        let Content::File(content) = &mut self.nodes[inode].content else { return };
        let (content, start) = (Arc::make_mut(content), offset as usize);
        let end = start + bytes.len();
        if content.len() < end {
            content.resize(end, 0);
        }
        content[start..end].copy_from_slice(bytes);
        self.is_written(inode, start);
        if !bytes.is_empty() {
            self.note(Op::Write { inode, offset, bytes: Arc::new(bytes.to_vec()) });
        }
    }

    fn cut(&mut self, inode: Inode, length: u64) {
        let Content::File(content) = &mut self.nodes[inode].content else { return };
        Arc::make_mut(content).truncate(length as usize);
        self.is_written(inode, length as usize);
        self.note(Op::Cut { inode, length });
    }

    fn is_written(&mut self, inode: Inode, from: usize) {
        let unsynced = &mut self.nodes[inode].unsynced;
        *unsynced = Some(unsynced.map_or(from, |earlier| earlier.min(from)));
    }

    /// What of a segment a sync of it makes durable.
    fn part_of_segment(&self, inode: Inode) -> Option<&'static str> {
        let node = &self.nodes[inode];
        let (from, number) = (node.unsynced?, journal::number_of(&node.name)?);
        let Content::File(bytes) = &node.content else { return None };
        let scan = segment::scan(bytes.get(from..)?, number, from as u64, 0);
        match from {
            0 => Some("of a new segment"),
            _ if scan.frames.iter().all(|(_, frame)| frame.is_mark()) => Some("of a mark"),
            _ => Some("of what was appended"),
        }
    }

    fn read(&self, inode: Inode, offset: usize, buffer: &mut [u8]) -> usize {
        let Content::File(content) = &self.nodes[inode].content else { return 0 };
        let rest = content.get(offset..).unwrap_or_default();
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        length
    }

    /// Notes a barrier, or that it was left out.
    fn barrier(&mut self, call: &'static str, place: String, what: impl Into<String>, op: Op) {
        let mut what = what.into();
        if self.loads.is_some_and(|thread| thread == thread::current().id()) {
            what.push_str(if what.is_empty() { "in a load" } else { ", in a load" });
        }
        let barrier = Barrier { call, place, what };
        if self.without.as_ref().is_some_and(|without| without.covers(&barrier)) {
            self.note(Op::Skipped(barrier));
        } else {
            self.barriers.insert(barrier);
            self.note(op);
        }
    }

    fn changed(&mut self, dir: Inode, what: &str, name: &str) {
        let inside = self.path_of(dir);
        let name = if inside.contains(".larder") { pattern(name) } else { "*" };
        self.nodes[dir].changed = Some(if name.is_empty() { what.to_owned() } else { format!("{what} {name}") });
    }

    fn path_of(&self, mut inode: Inode) -> String {
        let mut parts = Vec::new();
        while inode != ROOT {
            parts.push(&*self.nodes[inode].name);
            inode = self.nodes[inode].parent;
        }
        parts.reverse();
        parts.join("/")
    }

    fn image(&self) -> Image {
        let mut image = Image::default();
        let mut dirs = vec![(ROOT, String::new())];
        while let Some((dir, path)) = dirs.pop() {
            let Content::Dir(names) = &self.nodes[dir].content else { continue };
            for (name, &inode) in names {
                let path = if path.is_empty() { name.to_string() } else { format!("{path}/{name}") };
                match &self.nodes[inode].content {
                    Content::File(bytes) => _ = image.0.insert(path, Some(bytes.clone())),
                    Content::Dir(_) => {
                        image.0.insert(path.clone(), None);
                        dirs.push((inode, path));
                    }
                }
            }
        }
        image
    }
}

/// Names that hold a number differ from run to run: they are all one.
fn pattern(name: &str) -> &str {
    if name.bytes().any(|byte| byte.is_ascii_digit()) { "*" } else { name }
}

impl Sim {
    /// A disk with this on it, all of it durable. The store is to be at `home`.
    pub(crate) fn new(image: &Image, home: &str, sync_fs: bool) -> Sim {
        let home = Arc::from(home.trim_start_matches('/'));
        Sim { world: Arc::new(Mutex::new(World::new(image))), process: 0, home, sync_fs }
    }

    /// Kills the process that lives: none of its threads reads or changes anything from now on.
    pub(crate) fn kill(&self) {
        self.world.lock().kill();
    }

    /// The same, when it has done so many more calls that change something or make it durable.
    pub(crate) fn kill_after(&self, calls: usize) {
        self.world.lock().fuse = Some(calls);
    }

    /// The same file system, used by the process that lives now.
    pub(crate) fn next_process(&self) -> Sim {
        Sim { process: self.world.lock().process, ..self.clone() }
    }

    /// How many were killed before.
    pub(crate) fn process(&self) -> u32 {
        self.process as u32
    }

    /// What this thread does from now on is part of a load, or no longer is.
    pub(crate) fn set_loading(&self, loads: bool) {
        self.world.lock().loads = loads.then(|| thread::current().id());
    }

    /// From now on everything that changes the disk is kept in the record.
    pub(crate) fn record(&self) {
        self.world.lock().recording = true;
    }

    pub(crate) fn mark(&self, mark: Mark) {
        self.world.lock().note(Op::Mark(mark));
    }

    /// Takes the record out.
    pub(crate) fn take_log(&self) -> Vec<Op> {
        std::mem::take(&mut self.world.lock().log)
    }

    pub(crate) fn logged(&self) -> usize {
        self.world.lock().log.len()
    }

    pub(crate) fn image(&self) -> Image {
        self.world.lock().image()
    }

    /// Makes a class of barriers do nothing.
    pub(crate) fn leave_out(&self, without: Option<Without>) {
        self.world.lock().without = without;
    }

    /// The classes of barriers that were met and did something.
    pub(crate) fn barriers(&self) -> BTreeSet<Barrier> {
        self.world.lock().barriers.clone()
    }

    pub(crate) fn set_fault(&self, fault: Option<Fault>) {
        let mut world = self.world.lock();
        (world.fault, world.strikable) = (fault, 0);
    }

    /// How many calls have failed.
    pub(crate) fn struck(&self) -> usize {
        self.world.lock().struck
    }

    /// The world, unless the call fails.
    fn call(&self, call: Call) -> io::Result<MutexGuard<'_, World>> {
        let mut world = self.world.lock();
        if world.process == self.process && matches!(call, Call::Create | Call::Change | Call::Sync) {
            world.burn();
        }
        if world.process != self.process {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        if let Some(fault) = world.fault.filter(|fault| fault.can_strike(call)) {
            let number = world.strikable;
            world.strikable += 1;
            if number == fault.at || fault.sticky && number > fault.at {
                world.struck += 1;
                return Err(io::Error::from_raw_os_error(fault.errno));
            }
        }
        Ok(world)
    }

    /// The world, for what a call that failed leaves behind all the same: of a process that is dead, nothing.
    fn left_behind(&self) -> Option<MutexGuard<'_, World>> {
        Some(self.world.lock()).filter(|world| world.process == self.process)
    }

    /// Where a directory is, for whoever counts barriers.
    fn place(&self, path: &str) -> String {
        let Some(inside) = path.strip_prefix(&*self.home) else {
            return if self.home.starts_with(path) { "the directory above".into() } else { "elsewhere".into() };
        };
        let inside = inside.trim_start_matches('/');
        if inside.is_empty() {
            return "the store's directory".into();
        }
        if !inside.starts_with(".larder") {
            return "a collection's directory".into();
        }
        inside.split('/').map(pattern).collect::<Vec<_>>().join("/")
    }

    fn file(&self, inode: Inode, reads: bool) -> Box<dyn File> {
        Box::new(SimFile { sim: self.clone(), inode, position: 0, reads })
    }
}

/// An open file. It stays what it is when its name goes.
struct SimFile {
    sim: Sim,
    inode: Inode,
    position: u64,
    /// What is opened to be read cannot be written, and the other way round.
    reads: bool,
}

impl SimFile {
    fn check(&self, reads: bool) -> io::Result<()> {
        const EBADF: i32 = 9;
        if self.reads == reads { Ok(()) } else { Err(io::Error::from_raw_os_error(EBADF)) }
    }
}

impl File for SimFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.read_at(buffer, self.position)?;
        self.position += length as u64;
        Ok(length)
    }

    fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.check(true)?;
        Ok(self.sim.call(Call::Read)?.read(self.inode, offset as usize, buffer))
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.write_at(bytes, self.position)?;
        self.position += length as u64;
        Ok(length)
    }

    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.check(false)?;
        match self.sim.call(Call::Change) {
            Ok(mut world) => world.write(self.inode, offset, bytes),
            Err(error) => {
                // A failing write leaves a part behind.
                if let Some(mut world) = self.sim.left_behind() {
                    world.write(self.inode, offset, &bytes[..bytes.len() / 2]);
                }
                return Err(error);
            }
        }
        Ok(bytes.len())
    }

    fn sync_data(&mut self) -> io::Result<()> {
        let inode = self.inode;
        let mut world = match self.sim.call(Call::Sync) {
            Ok(world) => world,
            Err(error) => {
                if let Some(mut world) = self.sim.left_behind() {
                    world.note(Op::SyncDataFailed { inode });
                }
                return Err(error);
            }
        };
        let node = &world.nodes[inode];
        let place = self.sim.place(&world.path_of(node.parent));
        let file = if place.starts_with('.') { pattern(&node.name) } else { "*" };
        let what = if place == ".larder/journal" { world.part_of_segment(inode) } else { None };
        let place = format!("{place}/{file}");
        world.nodes[inode].unsynced = None;
        world.barrier("sync_data", place, what.unwrap_or_default(), Op::SyncData { inode });
        Ok(())
    }

    fn set_len(&mut self, length: u64) -> io::Result<()> {
        self.check(false)?;
        self.sim.call(Call::Change)?.cut(self.inode, length);
        Ok(())
    }
}

/// The file that is locked. Its note is for people: it is not kept.
#[derive(Debug)]
struct SimLock {
    sim: Sim,
    inode: Inode,
    held: bool,
}

impl LockFile for SimLock {
    fn try_lock(&mut self) -> io::Result<bool> {
        let taken = self.sim.call(Call::Look)?.locked.insert(self.inode);
        self.held |= taken;
        Ok(taken)
    }

    fn unlock(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.held) {
            // A process that was killed has none.
            self.sim.left_behind().map(|mut world| world.locked.remove(&self.inode));
        }
        Ok(())
    }

    fn is_named(&self, path: &Path) -> io::Result<bool> {
        Ok(self.sim.call(Call::Look)?.find(path)? == self.inode)
    }

    fn read_note(&mut self) -> io::Result<String> {
        Ok(String::new())
    }

    fn write_note(&mut self, _note: &str) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for SimLock {
    fn drop(&mut self) {
        // It cannot fail, and there is nobody to tell.
        _ = self.unlock();
    }
}

impl Fs for Sim {
    fn kind_at(&self, path: &Path, _follow: bool) -> io::Result<Option<Kind>> {
        let world = self.call(Call::Look)?;
        match world.find(path) {
            Ok(inode) => Ok(Some(if world.is_dir(inode) { Kind::Dir } else { Kind::File })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn make_root(&self, path: &Path) -> io::Result<()> {
        let mut world = self.call(Call::Change)?;
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return fails(io::ErrorKind::AlreadyExists);
        };
        world.add(parent, name.to_str().unwrap_or_default(), Content::Dir(BTreeMap::new()))?;
        Ok(())
    }

    fn open_root(&self, path: &Path) -> io::Result<Dir> {
        self.call(Call::Open)?.dir(path)?;
        Ok(Dir::at(path.to_owned()))
    }

    fn open_dir(&self, parent: &Dir, name: &str) -> io::Result<Dir> {
        let path = parent.join(name);
        self.call(Call::Open)?.dir(&path)?;
        Ok(Dir::at(path))
    }

    fn make_dir(&self, parent: &Dir, name: &str) -> io::Result<()> {
        self.call(Call::Change)?.add(parent.path(), name, Content::Dir(BTreeMap::new()))?;
        Ok(())
    }

    fn remove_dir(&self, parent: &Dir, name: &str) -> io::Result<()> {
        let mut world = self.call(Call::Change)?;
        let (dir, found) = world.lookup(parent.path(), name)?;
        let Some(found) = found else { return fails(io::ErrorKind::NotFound) };
        if !world.names(found)?.is_empty() {
            return fails(io::ErrorKind::DirectoryNotEmpty);
        }
        world.names_mut(dir)?.remove(name);
        world.changed(dir, "rmdir", name);
        world.note(Op::RemoveDir { dir, name: Name::from(name) });
        Ok(())
    }

    fn list(&self, dir: &Dir) -> io::Result<Vec<Entry>> {
        let world = self.call(Call::Open)?;
        let names = world.names(world.dir(dir.path())?)?;
        let entry = |(name, &inode): (&Name, &Inode)| {
            let kind = if world.is_dir(inode) { Kind::Dir } else { Kind::File };
            Entry { name: name.to_string(), kind, inode: inode as u64 }
        };
        Ok(names.iter().map(entry).collect())
    }

    fn kind(&self, dir: &Dir, name: &str) -> io::Result<Option<Kind>> {
        let world = self.call(Call::Look)?;
        let (_, found) = world.lookup(dir.path(), name)?;
        Ok(found.map(|inode| if world.is_dir(inode) { Kind::Dir } else { Kind::File }))
    }

    fn create(&self, dir: &Dir, name: &str) -> io::Result<Box<dyn File>> {
        let inode = self.call(Call::Create)?.add(dir.path(), name, Content::File(Bytes::default()))?;
        Ok(self.file(inode, false))
    }

    fn open(&self, dir: &Dir, name: &str) -> io::Result<Box<dyn File>> {
        let world = self.call(Call::Open)?;
        match world.lookup(dir.path(), name)?.1 {
            None => fails(io::ErrorKind::NotFound),
            Some(inode) if world.is_dir(inode) => fails(io::ErrorKind::IsADirectory),
            Some(inode) => Ok(self.file(inode, true)),
        }
    }

    fn open_lock(&self, dir: &Dir, name: &str) -> io::Result<Box<dyn LockFile>> {
        let mut world = self.call(Call::Create)?;
        let inode = match world.lookup(dir.path(), name)?.1 {
            None => world.add(dir.path(), name, Content::File(Bytes::default()))?,
            Some(inode) if world.is_dir(inode) => return fails(io::ErrorKind::IsADirectory),
            Some(inode) => inode,
        };
        Ok(Box::new(SimLock { sim: self.clone(), inode, held: false }))
    }

    fn rename(&self, from: &Dir, from_name: &str, to: &Dir, to_name: &str) -> io::Result<()> {
        let mut world = self.call(Call::Change)?;
        let (from, found) = world.lookup(from.path(), from_name)?;
        let Some(inode) = found else { return fails(io::ErrorKind::NotFound) };
        let (to, replaced) = world.lookup(to.path(), to_name)?;
        let is_dir = world.is_dir(inode);
        match replaced {
            Some(replaced) if replaced == inode => return Ok(()),
            Some(replaced) => match (is_dir, world.is_dir(replaced)) {
                (false, true) => return fails(io::ErrorKind::IsADirectory),
                (true, false) => return fails(io::ErrorKind::NotADirectory),
                (true, true) if !world.names(replaced)?.is_empty() => {
                    return fails(io::ErrorKind::DirectoryNotEmpty);
                }
                _ => {}
            },
            None => {}
        }
        let (from_name, to_name) = (Name::from(from_name), Name::from(to_name));
        world.names_mut(from)?.remove(&from_name);
        world.names_mut(to)?.insert(to_name.clone(), inode);
        world.nodes[inode].parent = to;
        world.nodes[inode].name = to_name.clone();
        world.changed(to, "rename to", &to_name);
        world.note(Op::Rename { from, from_name, to, to_name, inode, is_dir });
        Ok(())
    }

    fn unlink(&self, dir: &Dir, name: &str) -> io::Result<()> {
        let mut world = self.call(Call::Change)?;
        let (dir, found) = world.lookup(dir.path(), name)?;
        match found {
            None => return fails(io::ErrorKind::NotFound),
            Some(inode) if world.is_dir(inode) => return fails(io::ErrorKind::IsADirectory),
            Some(_) => {}
        }
        world.names_mut(dir)?.remove(name);
        world.changed(dir, "unlink", name);
        world.note(Op::Unlink { dir, name: Name::from(name) });
        Ok(())
    }

    fn sync_dir(&self, dir: &Dir) -> io::Result<()> {
        let mut world = self.call(Call::Sync)?;
        let inode = world.dir(dir.path())?;
        let change = world.nodes[inode].changed.take().unwrap_or_else(|| "no change".into());
        let place = self.place(&world.path_of(inode));
        world.barrier("sync_dir", place, format!("after {change}"), Op::SyncDir { dir: inode });
        Ok(())
    }

    fn sync_fs(&self, _dir: &Dir) -> io::Result<()> {
        if !self.sync_fs {
            return fails(io::ErrorKind::Unsupported);
        }
        let mut world = match self.call(Call::Sync) {
            Ok(world) => world,
            Err(error) => {
                if let Some(mut world) = self.left_behind() {
                    world.note(Op::SyncFsFailed);
                }
                return Err(error);
            }
        };
        let mut change = "no change";
        for node in &mut world.nodes {
            let (written, changed) = (node.unsynced.take().is_some(), node.changed.take().is_some());
            if written {
                change = "writes";
            } else if changed && change == "no change" {
                change = "changes of names only";
            }
        }
        world.barrier("sync_fs", "everything".into(), format!("after {change}"), Op::SyncFs);
        Ok(())
    }

    fn has_sync_fs(&self) -> bool {
        self.sync_fs
    }

    fn room(&self, _dir: &Dir) -> io::Result<Option<u64>> {
        Ok(Some(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::{Native, read_up_to, write_all, write_all_at};

    fn kinds<T>(result: io::Result<T>) -> Result<(), io::ErrorKind> {
        result.map(drop).map_err(|error| error.kind())
    }

    /// What both file systems are asked: the outcome of every call, as text.
    fn asked(fs: &dyn Fs, home: &Path) -> Vec<String> {
        let mut heard = Vec::new();
        let mut hear = |what: &str, outcome: &dyn fmt::Debug| heard.push(format!("{what}: {outcome:?}"));
        hear("no root", &kinds(fs.open_root(home)));
        hear("no parent", &kinds(fs.make_root(&home.join("none/below"))));
        hear("make root", &kinds(fs.make_root(home)));
        hear("make root again", &kinds(fs.make_root(home)));
        let root = fs.open_root(home).unwrap();
        hear("make a", &kinds(fs.make_dir(&root, "a")));
        hear("make a again", &kinds(fs.make_dir(&root, "a")));
        hear("make b", &kinds(fs.make_dir(&root, "b")));
        hear("open none", &kinds(fs.open_dir(&root, "none")));
        let (a, b) = (fs.open_dir(&root, "a").unwrap(), fs.open_dir(&root, "b").unwrap());

        let mut file = fs.create(&a, "x").unwrap();
        hear("create again", &kinds(fs.create(&a, "x")));
        write_all(&mut *file, b"some ").unwrap();
        write_all(&mut *file, b"bytes").unwrap();
        write_all_at(&mut *file, b"far", 15).unwrap();
        write_all_at(&mut *file, b"S", 0).unwrap();
        hear("read what is written", &kinds(file.read(&mut [0; 4])));
        hear("sync", &kinds(file.sync_data()));
        let mut open = fs.open(&a, "x").unwrap();
        hear("write what is read", &kinds(open.write(b"x")));
        let mut buffer = [0; 64];
        let length = read_up_to(&mut *open, &mut buffer).unwrap();
        hear("content", &&buffer[..length]);
        hear("read at", &(open.read_at(&mut buffer, 5).unwrap(), open.read_at(&mut buffer, 18).unwrap(), &buffer[..5]));
        hear("read beyond", &open.read_at(&mut buffer, 100).unwrap());

        hear("kind", &(fs.kind(&a, "x").unwrap(), fs.kind(&root, "a").unwrap(), fs.kind(&a, "none").unwrap()));
        hear("kind at", &(fs.kind_at(&home.join("a/x"), true).unwrap(), fs.kind_at(&home.join("c"), false).unwrap()));
        hear("kind below a file", &kinds(fs.kind_at(&home.join("a/x/y"), true)));
        hear("open a directory's name as a directory", &kinds(fs.open_dir(&a, "x")));
        hear("open none", &kinds(fs.open(&a, "none")));
        hear("remove a full one", &kinds(fs.remove_dir(&root, "a")));
        hear("remove none", &kinds(fs.remove_dir(&root, "none")));
        hear("remove a file", &kinds(fs.remove_dir(&a, "x")));
        hear("unlink none", &kinds(fs.unlink(&a, "none")));
        hear("rename none", &kinds(fs.rename(&a, "none", &b, "x")));
        hear("rename over a directory", &kinds(fs.rename(&a, "x", &root, "b")));
        drop(fs.create(&b, "y").unwrap());
        hear("rename over a file", &kinds(fs.rename(&a, "x", &b, "y")));
        let names = |dir: &Dir| {
            let mut names: Vec<_> = fs.list(dir).unwrap().into_iter().map(|entry| (entry.name, entry.kind)).collect();
            names.sort_by(|one, other| one.0.cmp(&other.0));
            names
        };
        hear("lists", &(names(&root), names(&a), names(&b)));
        hear("sync dir", &kinds(fs.sync_dir(&a)));
        hear("unlink", &kinds(fs.unlink(&b, "y")));
        hear("still open", &(open.read_at(&mut buffer, 0).unwrap(), &buffer[..4]));
        hear("remove", &(kinds(fs.remove_dir(&root, "b")), names(&root)));
        hear("create in what is gone", &kinds(fs.create(&b, "z")));

        let (mut one, mut two) = (fs.open_lock(&a, "lock").unwrap(), fs.open_lock(&a, "lock").unwrap());
        hear("lock", &(one.try_lock().unwrap(), two.try_lock().unwrap(), one.is_named(&home.join("a/lock")).unwrap()));
        one.unlock().unwrap();
        hear("lock again", &two.try_lock().unwrap());
        drop(two);
        hear("and again", &one.try_lock().unwrap());
        heard
    }

    #[test]
    fn it_answers_as_the_real_one_does() {
        let dir = tempfile::tempdir().unwrap();
        let native = asked(&Native, &dir.path().join("home"));
        let sim = Sim::new(&Image::default(), "/home", true);
        assert_eq!(asked(&sim, Path::new("/home")), native);
    }

    #[test]
    fn a_process_that_was_killed_does_nothing_more_and_what_it_did_stays() {
        let first = Sim::new(&Image::of_dirs(&["home"]), "/home", true);
        first.record();
        let home = first.open_root("/home".as_ref()).unwrap();
        let mut lock = first.open_lock(&home, "lock").unwrap();
        assert!(lock.try_lock().unwrap());
        let mut file = first.create(&home, "x").unwrap();
        file.write_at(b"ab", 0).unwrap();
        first.kill_after(1);
        file.write_at(b"cd", 2).unwrap();
        file.sync_data().unwrap_err();
        let left = (first.image(), first.logged());
        file.write_at(b"ef", 4).unwrap_err();
        first.sync_fs(&home).unwrap_err();
        first.open(&home, "x").map(drop).unwrap_err();
        first.unlink(&home, "x").unwrap_err();
        assert_eq!((first.image(), first.logged()), left);
        assert_eq!(left.0.0["home/x"], Some(Arc::new(b"abcd".to_vec())));

        let second = first.next_process();
        let home = second.open_root("/home".as_ref()).unwrap();
        let mut again = second.open_lock(&home, "lock").unwrap();
        assert!(again.try_lock().unwrap(), "its lock went with it");
        drop(lock);
        assert!(!second.open_lock(&home, "lock").unwrap().try_lock().unwrap(), "and it takes no other's along");
        second.sync_dir(&home).unwrap();
        assert_eq!(
            second.barriers().iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["sync_dir of the store's directory, after a kill"]
        );
        assert!(second.open(&home, "x").is_ok());
    }

    #[test]
    fn an_image_comes_out_as_it_went_in() {
        let sim = Sim::new(&Image::default(), "/home", true);
        asked(&sim, Path::new("/home"));
        let image = sim.image();
        assert_eq!(image.0.keys().collect::<Vec<_>>(), ["home", "home/a", "home/a/lock"]);
        assert_eq!(Sim::new(&image, "/home", true).image(), image);
        assert_eq!(Sim::new(&image, "/home", true).image().hash(), image.hash());
    }
}
