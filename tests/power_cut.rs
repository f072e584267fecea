//! The power is cut while a store is written: on ext4, XFS and btrfs, each time the store opens on what the disk had by
//! then, nothing is in quarantine, every member is whole, and none is older than what was acknowledged. A copy of it that
//! was made by then is there, and whole; one that was being made is whole or not there.
//!
//! `LARDER_POWER_CUTS` says how many cuts there are for each file system, `LARDER_POWER_SEED` gives other runs of chance.
//! It takes root, for the mounts; where they are not possible, the tests say so on standard error. What the disk took is
//! kept, in the order in which it took it: there is no cache in the disk that loses anything.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test, a panic is the report")]

mod disk;
mod lab;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use disk::{Disk, Mount, is_possible};
use lab::{Chance, Process, assert_tidy, copies, member_files, names, once_more, orders, say, segments, tell};
use larder::{Durability, Layout, Severity, Store};

/// Each thread of a writer writes its own members: in the collection `keep-<thread>`, and in `clear-<thread>-<n>`, which
/// it clears now and then. All of these but the first few have one member only, so that their directories come and go.
const THREADS: usize = 3;
const KEPT: usize = 80;
const CLEARED: usize = 25;
const CLEARS: usize = 2;
const BRIEF: usize = 8;

const STORE: &str = "LARDER_POWER_STORE";
const DURABILITY: &str = "LARDER_POWER_DURABILITY";
const JOURNAL: &str = "LARDER_POWER_JOURNAL";
const LAYOUT: &str = "LARDER_POWER_LAYOUT";
const FIRST: &str = "LARDER_POWER_FIRST";
const LIMIT: &str = "LARDER_POWER_LIMIT";

/// By key, which write it is.
type Contents = BTreeMap<String, u64>;

/// A value that says which write it is, of a length and with bytes that no other write has.
fn value(key: &str, number: u64) -> Vec<u8> {
    let mut value = format!("{key} {number} ").into_bytes();
    let mut chance = Chance::new(number);
    let most = if chance.below(50) == 0 { 150_000 } else { 2500 };
    let length = value.len() + chance.below(most);
    while value.len() < length {
        value.extend_from_slice(&chance.number().to_le_bytes());
    }
    value
}

/// Which write it is, if it is whole: every byte is looked at.
fn number_of(key: &str, found: &[u8]) -> Option<u64> {
    let start = found.strip_prefix(key.as_bytes())?.strip_prefix(b" ")?;
    let number = std::str::from_utf8(start.split(|&b| b == b' ').next()?).ok()?.parse().ok()?;
    (found == value(key, number)).then_some(number)
}

/// The keys of one thread. Those that are cleared begin with the collection's name and a slash.
fn keys(thread: usize) -> Vec<String> {
    let kept = (0..KEPT).map(|member| format!("keep-{thread}/{member}"));
    let cleared = (0..CLEARS).flat_map(|clear| (0..CLEARED).map(move |member| (clear, member)));
    let cleared = cleared.chain((CLEARS..CLEARS + BRIEF).map(|clear| (clear, 0)));
    kept.chain(cleared.map(|(clear, member)| format!("clear-{thread}-{clear}/Member {member}"))).collect()
}

fn contents(store: &Store) -> Contents {
    let mut contents = Contents::new();
    for collection in store.collections().unwrap() {
        for (member, value) in store.get_all(&collection).unwrap() {
            let key = format!("{collection}/{member}");
            let number = number_of(&key, &value).unwrap_or_else(|| panic!("{key} is not whole: {value:?}"));
            contents.insert(key, number);
        }
    }
    contents
}

fn say_contents(store: &Store) {
    for damaged in store.load_report().quarantined {
        say(&format!("quarantined {}: {}", damaged.path.display(), damaged.reason));
    }
    for (key, number) in contents(store) {
        say(&format!("found {number} {key}"));
    }
}

// ---- the processes on the disk ----

#[test]
fn child_writes() {
    let Some(path) = std::env::var_os(STORE) else { return };
    let number = |name| std::env::var(name).unwrap().parse::<u64>().unwrap();
    let durability = match std::env::var(DURABILITY).unwrap().as_str() {
        "immediate" => Durability::Immediate,
        "interval" => Durability::Interval(Duration::from_millis(2)),
        _ => Durability::Buffered,
    };
    let next = AtomicU64::new(number(FIRST));
    let end = next.load(Ordering::SeqCst) + number(LIMIT);
    let layout = if std::env::var(LAYOUT).unwrap() == "packed" { Layout::Packed } else { Layout::Files };
    let mut options = Store::options(path).durability(durability).layout(layout);
    if number(JOURNAL) > 0 {
        options = options.max_journal(number(JOURNAL));
    }
    // Whatever fails is told: it is well if the power was cut by then.
    let store = match options.open() {
        Ok(store) => store,
        Err(error) => return say(&format!("failed to open: {error}")),
    };
    say_contents(&store);
    say("open");
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (store, next) = (&store, &next);
            scope.spawn(move || {
                if let Err(error) = write(store, thread, next, end) {
                    say(&format!("failed: {error}"));
                }
            });
        }
    });
    say("try close");
    match store.close() {
        Ok(_) => say("did close"),
        Err(error) => say(&format!("failed to close: {error}")),
    }
}

fn write(store: &Store, thread: usize, next: &AtomicU64, end: u64) -> larder::Result<()> {
    let keys = keys(thread);
    let lies = std::env::var(DURABILITY).unwrap() == LIAR;
    let mut chance = Chance::new(next.load(Ordering::SeqCst) + thread as u64);
    loop {
        let number = next.fetch_add(1, Ordering::SeqCst);
        if number >= end {
            return Ok(());
        }
        let brief = chance.below(4) == 0;
        let key = &keys[if brief { keys.len() - 1 - chance.below(BRIEF) } else { chance.below(keys.len()) }];
        match chance.below(100) {
            0..60 => {
                say(&format!("try {thread} {number} put {key}"));
                store.put(key, value(key, number))?;
            }
            60..88 => {
                say(&format!("try {thread} {number} delete {key}"));
                store.delete(key)?;
            }
            88..93 => {
                let collection = format!("clear-{thread}-{}", chance.below(CLEARS + BRIEF));
                say(&format!("try {thread} {number} clear {collection}"));
                store.delete_all(collection)?;
            }
            _ if lies => continue,
            _ => {
                say(&format!("try {thread} {number} flush"));
                // In files there is nothing to compact.
                if chance.below(4) == 0 {
                    store.compact()?;
                }
                store.flush()?;
            }
        }
        say(&format!("did {thread} {number}"));
    }
}

/// Buffered writes that are taken for durable ones, and no flush.
const LIAR: &str = "none, and it says that it is";

/// Has the file system commit its journal, and write back parts of the store's files, in any order.
#[test]
fn child_commits() {
    let Some(store) = std::env::var_os(STORE).map(PathBuf::from) else { return };
    let mut own = File::create(store.with_file_name("own")).unwrap();
    let mut chance = Chance::new(store.as_os_str().len() as u64);
    // Once the power is cut, all of it fails.
    for order in orders() {
        match order.as_str() {
            "write back" => _ = write_back(&store, &mut chance),
            "write all back" => _ = rustix::fs::syncfs(&own),
            _ => {}
        }
        _ = own.write_all(b"more").and_then(|()| own.sync_all());
    }
}

/// Some pages of one file.
fn write_back(store: &Path, chance: &mut Chance) -> std::io::Result<()> {
    let mut some = |dir: &Path| -> std::io::Result<PathBuf> {
        let paths: Vec<PathBuf> = std::fs::read_dir(dir)?.filter_map(|entry| Some(entry.ok()?.path())).collect();
        if paths.is_empty() {
            Err(std::io::ErrorKind::NotFound.into())
        } else {
            Ok(paths[chance.below(paths.len())].clone())
        }
    };
    let dir = some(store)?;
    let dir = if dir.ends_with(".larder") { dir.join("journal") } else { dir };
    let file = File::open(some(&dir)?)?;
    let pages = file.metadata()?.len() / 4096 + 1;
    let (first, count) = (chance.below(pages as usize) as u64, 1 + chance.below(8) as u64);
    Ok(rustix::fs::fadvise(&file, first * 4096, NonZeroU64::new(count * 4096), rustix::fs::Advice::DontNeed)?)
}

/// Opens the store, says what is in it, closes it, and opens it again.
#[test]
fn child_looks() {
    let Some(path) = std::env::var_os(STORE).map(PathBuf::from) else { return };
    let store = Store::open(&path).unwrap();
    say_contents(&store);
    let found = contents(&store);
    store.close().unwrap();
    let is_packed = std::fs::read_to_string(path.join(".larder/format")).unwrap().contains("packed");
    let files = if is_packed { 0 } else { found.len() };
    assert_eq!(member_files(&path).len(), files, "files on the disk, and members");
    let store = Store::open(&path).unwrap();
    assert_eq!(store.load_report().quarantined, []);
    assert!(contents(&store) == found, "it holds something else when it is opened again");
    store.close().unwrap();
    assert_tidy(&path);
    say("looked");
}

// ---- the test ----

#[derive(Debug)]
enum Act {
    Put(String),
    Delete(String),
    Clear(String),
    /// With how many of each thread's acts were done before it began.
    Flush([usize; THREADS]),
    /// A process opened the store, and found this.
    Found(Rc<Contents>),
}

impl Act {
    /// What the member is after it; `None` if it has nothing to do with it.
    fn leaves(&self, number: u64, key: &str) -> Option<Option<u64>> {
        match self {
            Act::Put(put) => (put == key).then_some(Some(number)),
            Act::Delete(deleted) => (deleted == key).then_some(None),
            Act::Clear(collection) => {
                key.strip_prefix(collection.as_str()).is_some_and(|rest| rest.starts_with('/')).then_some(None)
            }
            Act::Flush(_) => None,
            Act::Found(found) => Some(found.get(key).copied()),
        }
    }
}

/// What the writers said that they did, act by act, from one cut to the next.
#[derive(Default)]
struct Said {
    tried: [Vec<(u64, Act)>; THREADS],
    /// How many of them returned.
    done: [usize; THREADS],
    /// How many of them no crash may lose.
    safe: [usize; THREADS],
    /// What was done before the close that was begun.
    closing: [usize; THREADS],
    /// What the process that opens the store has found so far.
    finding: Contents,
    /// What must not be.
    wrong: Vec<String>,
}

impl Said {
    /// After what is on the disk for certain.
    fn after(held: Contents) -> Said {
        let mut said = Said::default();
        said.opened(held);
        said.safe = said.done;
        said
    }

    fn opened(&mut self, found: Contents) {
        let found = Rc::new(found);
        for thread in 0..THREADS {
            self.tried[thread].push((0, Act::Found(found.clone())));
            // What a process did not live to see returning is over too.
            self.done[thread] = self.tried[thread].len();
        }
    }

    fn hear(&mut self, line: &str, at_once: bool) {
        let words: Vec<&str> = line.splitn(5, ' ').collect();
        match words[..] {
            ["found", number, ..] => {
                let key = line.splitn(3, ' ').nth(2).unwrap();
                self.finding.insert(key.to_owned(), number.parse().unwrap());
            }
            ["open"] => {
                let found = std::mem::take(&mut self.finding);
                let wrong = self.wrong_in(&found);
                self.wrong.extend(wrong.into_iter().map(|wrong| format!("after a kill, before the cut: {wrong}")));
                self.opened(found);
            }
            ["try", "close"] => self.closing = self.done,
            ["did", "close"] => self.safe = self.closing,
            ["try", thread, number, ref act @ ..] => {
                let act = match *act {
                    ["put", key] => Act::Put(key.to_owned()),
                    ["delete", key] => Act::Delete(key.to_owned()),
                    ["clear", collection] => Act::Clear(collection.to_owned()),
                    ["flush"] => Act::Flush(self.done),
                    _ => panic!("{line}"),
                };
                self.tried[thread.parse::<usize>().unwrap()].push((number.parse().unwrap(), act));
            }
            ["did", thread, number] => {
                let thread: usize = thread.parse().unwrap();
                let (tried, act) = &self.tried[thread][self.done[thread]];
                assert_eq!(tried.to_string(), number);
                if let Act::Flush(before) = *act {
                    self.safe = std::array::from_fn(|thread| self.safe[thread].max(before[thread]));
                }
                self.done[thread] += 1;
                if at_once {
                    self.safe[thread] = self.done[thread];
                }
            }
            _ => self.wrong.push(line.to_owned()),
        }
    }

    /// What a key may hold after the cut: what it held when it was last safe, or after any later act.
    fn possible(&self, thread: usize, key: &str) -> Vec<Option<u64>> {
        let mut possible = vec![None];
        for (position, (number, act)) in self.tried[thread].iter().enumerate() {
            let Some(after) = act.leaves(*number, key) else { continue };
            if position < self.safe[thread] {
                possible.clear();
            }
            possible.push(after);
        }
        possible
    }

    fn wrong_in(&self, found: &Contents) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut known = 0;
        for thread in 0..THREADS {
            for key in keys(thread) {
                let (is, possible) = (found.get(&key).copied(), self.possible(thread, &key));
                known += usize::from(is.is_some());
                if !possible.contains(&is) {
                    let acts = self.tried[thread].iter().enumerate().filter_map(|(position, (number, act))| {
                        let after = act.leaves(*number, &key)?;
                        let safe = if position < self.safe[thread] { "safe" } else { "not safe" };
                        Some(format!("{number} -> {after:?} ({safe})"))
                    });
                    let acts: Vec<String> = acts.collect();
                    wrong.push(format!("{key} holds {is:?}, and may hold {possible:?}: {}", acts.join(", ")));
                }
            }
        }
        if known != found.len() {
            wrong.push(format!("there are members that nobody wrote: {found:?}"));
        }
        wrong
    }

    /// How many writes were acknowledged as durable.
    fn acknowledged(&self) -> usize {
        let safe = (0..THREADS).flat_map(|thread| &self.tried[thread][..self.safe[thread]]);
        safe.filter(|(_, act)| !matches!(act, Act::Flush(_) | Act::Found(_))).count()
    }

    fn next_number(&self) -> u64 {
        let found = self.tried.iter().flatten().filter_map(|(_, act)| match act {
            Act::Found(found) => found.values().max().copied(),
            _ => None,
        });
        let tried = self.tried.iter().flatten().map(|(number, _)| *number);
        tried.chain(found).max().unwrap_or(0) + 1
    }
}

#[derive(Default)]
struct Figures {
    cuts: usize,
    kills: usize,
    closes: usize,
    acknowledged: usize,
    checked: usize,
}

/// A disk that lives on from cut to cut.
struct Victim {
    file_system: &'static str,
    durability: &'static str,
    layout: Layout,
    disk: Disk,
    /// What was in the store after the last cut.
    held: Contents,
}

impl Victim {
    fn new(file_system: &'static str, durability: &'static str, layout: Layout) -> Victim {
        Victim { file_system, durability, layout, disk: Disk::new(file_system).unwrap(), held: Contents::new() }
    }

    fn mount_options(&self, chance: &mut Chance) -> &'static str {
        match (self.file_system, chance.below(3)) {
            // It writes a file's data back before another takes its name, unless it is told not to.
            ("ext4", 0) => ",noauto_da_alloc",
            ("ext4", 1) => ",noauto_da_alloc,data=writeback",
            _ => "",
        }
    }

    /// Lets processes write, one after the other, and cuts the power while the last of them does.
    fn cut(&self, chance: &mut Chance, figures: &mut Figures) -> Said {
        let mount = Mount::new(&self.disk, self.file_system, self.mount_options(chance)).unwrap();
        let mut commits = once_more("child_commits");
        commits.env(STORE, mount.store());
        let mut commits = Process::start(mount.within(&commits));
        let mut said = Said::after(self.held.clone());
        let at_once = matches!(self.durability, "immediate" | LIAR);
        // Each but the last is killed, or closes its store.
        let writers = [1, 2, 2, 3, 4][chance.below(5)];
        for writer in 1..=writers {
            let closes = chance.below(5) == 0;
            let limit = if closes { 1 + chance.below(400) } else { 1 << 40 };
            let mut command = once_more("child_writes");
            command.env(STORE, mount.store()).env(DURABILITY, self.durability);
            command.env(LAYOUT, if self.layout == Layout::Packed { "packed" } else { "files" });
            command.env(JOURNAL, ["0", "16384", "262144"][chance.below(3)]);
            command.env(FIRST, said.next_number().to_string()).env(LIMIT, limit.to_string());
            let mut child = Process::start(mount.within(&command));
            // One in eight while it opens the store, or soon after.
            let lines = if chance.below(8) == 0 { chance.below(8) } else { chance.below(2000) };
            let mut heard = 0;
            while heard < lines || (closes && writer < writers) {
                let Some(line) = child.heard() else { break };
                said.hear(&line, at_once);
                heard += 1;
                match chance.below(100) {
                    0..4 => commits.ask("commit"),
                    4..8 if self.durability != LIAR => commits.ask("write back"),
                    8 if self.durability != LIAR && chance.below(4) == 0 => commits.ask("write all back"),
                    _ => {}
                }
            }
            if writer == writers {
                self.disk.cut();
            }
            child.kill();
            // What it said before it died holds too.
            while let Some(line) = child.heard() {
                if writer < writers || !line.starts_with("failed") {
                    said.hear(&line, at_once);
                }
            }
            child.wait();
            // The next one says it all.
            said.finding.clear();
            figures.kills += usize::from(writer < writers && !closes);
            figures.closes += usize::from(writer < writers && closes);
        }
        commits.kill();
        commits.wait();
        mount.unmount();
        figures.cuts += 1;
        figures.acknowledged += said.acknowledged();
        said
    }

    /// Starts again on what the disk had when the power was cut. Returns what must not be, and the dark disk.
    fn restart(&mut self, mut said: Said, figures: &mut Figures) -> (Vec<String>, Disk) {
        let copy = self.disk.copy();
        let dark = std::mem::replace(&mut self.disk, copy);
        // They are the same file system, and the system would mix them up.
        dark.release();
        let mut wrong = std::mem::take(&mut said.wrong);
        let mount = Mount::new(&self.disk, self.file_system, "").unwrap();
        let mut command = once_more("child_looks");
        command.env(STORE, mount.store());
        let mut child = Process::start(mount.within(&command));
        let mut found = Contents::new();
        let mut looked = false;
        while let Some(line) = child.heard() {
            match line.splitn(3, ' ').collect::<Vec<_>>()[..] {
                ["found", number, key] => _ = found.insert(key.to_owned(), number.parse().unwrap()),
                ["looked"] => looked = true,
                _ => wrong.push(line),
            }
        }
        child.wait();
        if !looked {
            wrong.push("the store does not open, or not twice alike: see above".to_owned());
        }
        wrong.extend(said.wrong_in(&found));
        mount.unmount();
        figures.checked += found.len();
        self.held = found;
        (wrong, dark)
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |number| number.parse().unwrap())
}

fn cut_again_and_again(test: &str, file_system: &'static str, layout: Layout) {
    if !is_possible(test, file_system) {
        return;
    }
    let (cuts, seed) = (number("LARDER_POWER_CUTS", 3), number("LARDER_POWER_SEED", 0));
    let mut chance = Chance::new(seed);
    let mut figures = Figures::default();
    let mut victims =
        ["immediate", "interval", "buffered"].map(|durability| Victim::new(file_system, durability, layout));
    for cut in 0..cuts {
        let victim = &mut victims[(cut % 3) as usize];
        if chance.below(3) == 0 {
            let new = Victim::new(file_system, victim.durability, layout);
            std::mem::replace(victim, new).disk.release();
        }
        let said = victim.cut(&mut chance, &mut figures);
        let (wrong, dark) = victim.restart(said, &mut figures);
        if !wrong.is_empty() {
            let image = std::env::temp_dir().join(format!("larder-{file_system}-{}-{cut}.img", std::process::id()));
            dark.save(&image);
            let durability = victim.durability;
            panic!(
                "{file_system}, {layout}, {durability}, cut {cut}, disk in {}: {}",
                image.display(),
                wrong.join("\n")
            );
        }
    }
    victims.into_iter().for_each(|victim| victim.disk.release());
    let Figures { cuts, kills, closes, acknowledged, checked } = figures;
    tell(&format!(
        "{file_system}, {layout}: {cuts} cuts, {kills} kills and {closes} closes before them, \
         {acknowledged} acknowledged writes, {checked} members found whole"
    ));
}

#[test]
fn no_power_cut_on_ext4_loses_what_was_acknowledged() {
    cut_again_and_again("no_power_cut_on_ext4_loses_what_was_acknowledged", "ext4", Layout::Files);
}

#[test]
fn no_power_cut_on_ext4_loses_what_was_acknowledged_of_a_packed_store() {
    cut_again_and_again("no_power_cut_on_ext4_loses_what_was_acknowledged_of_a_packed_store", "ext4", Layout::Packed);
}

#[test]
fn no_power_cut_on_xfs_loses_what_was_acknowledged() {
    cut_again_and_again("no_power_cut_on_xfs_loses_what_was_acknowledged", "xfs", Layout::Files);
}

#[test]
fn no_power_cut_on_xfs_loses_what_was_acknowledged_of_a_packed_store() {
    cut_again_and_again("no_power_cut_on_xfs_loses_what_was_acknowledged_of_a_packed_store", "xfs", Layout::Packed);
}

#[test]
fn no_power_cut_on_btrfs_loses_what_was_acknowledged() {
    cut_again_and_again("no_power_cut_on_btrfs_loses_what_was_acknowledged", "btrfs", Layout::Files);
}

#[test]
fn no_power_cut_on_btrfs_loses_what_was_acknowledged_of_a_packed_store() {
    cut_again_and_again("no_power_cut_on_btrfs_loses_what_was_acknowledged_of_a_packed_store", "btrfs", Layout::Packed);
}

// ---- copies of a store that is being written ----

const COPIES: &str = "LARDER_POWER_COPIES";

#[test]
fn child_writes_and_copies() {
    let Some(path) = std::env::var_os(COPIES).map(PathBuf::from) else { return };
    let layout = if std::env::var(LAYOUT).unwrap() == "packed" { Layout::Packed } else { Layout::Files };
    let options = Store::options(path.join("store")).durability(Durability::Interval(Duration::from_millis(2)));
    let first = std::env::var(FIRST).unwrap().parse().unwrap();
    // Whatever fails is told: it is well if the power was cut by then.
    let opened = options.layout(layout).open();
    if let Err(error) = opened.and_then(|store| copies::write_and_copy(&store, &path.join("copies"), first)) {
        say(&format!("failed: {error}"));
    }
}

/// Says what is in the copies, and in the store.
#[test]
fn child_looks_at_copies() {
    let Some(path) = std::env::var_os(COPIES).map(PathBuf::from) else { return };
    let (found, unfinished, wrong) = copies::look(&path.join("copies"));
    let lines = wrong.into_iter().chain(
        found.iter().map(|(copy, rounds)| format!("copy {copy} {}", rounds.map(|round| round.to_string()).join(" "))),
    );
    lines.for_each(|line| say(&line));
    let store = Store::open(path.join("store")).unwrap();
    assert_eq!(store.load_report().quarantined, []);
    let mut said = copies::Said::default();
    orders().for_each(|line| said.hear(&line));
    said.wrong_in_the_store(&lab::contents(&store)).iter().for_each(|wrong| say(wrong));
    store.close().unwrap();
    say(&format!("looked {unfinished}"));
}

fn cut_while_it_copies(test: &str, file_system: &'static str) {
    if !is_possible(test, file_system) {
        return;
    }
    let (cuts, seed) = (number("LARDER_POWER_CUTS", 3), number("LARDER_POWER_SEED", 0));
    let mut chance = Chance::new(seed + 100);
    for layout in [Layout::Files, Layout::Packed] {
        let (mut told, mut whole, mut left) = (0, 0, 0);
        for cut in 0..cuts {
            let victim = Victim::new(file_system, "interval", layout);
            let mount = Mount::new(&victim.disk, file_system, victim.mount_options(&mut chance)).unwrap();
            let mut commits = once_more("child_commits");
            commits.env(STORE, mount.store());
            let mut commits = Process::start(mount.within(&commits));
            let mut command = once_more("child_writes_and_copies");
            command.env(COPIES, mount.path()).env(FIRST, "1");
            command.env(LAYOUT, if layout == Layout::Packed { "packed" } else { "files" });
            let mut child = Process::start(mount.within(&command));
            let mut said = copies::Said::default();
            let copies = 1 + chance.below(5);
            let mut lines = chance.below(20);
            while lines > 0 || said.copies().1 < copies {
                said.hear(&child.heard().expect("the child ended by itself"));
                lines = lines.saturating_sub(usize::from(said.copies().1 >= copies));
                match chance.below(100) {
                    0..20 => commits.ask("commit"),
                    20..30 => commits.ask("write all back"),
                    _ => {}
                }
            }
            victim.disk.cut();
            child.kill();
            // What it said before it died holds too.
            while let Some(line) = child.heard() {
                if !line.starts_with("failed") {
                    said.hear(&line);
                }
            }
            child.wait();
            commits.kill();
            commits.wait();
            mount.unmount();

            let disk = victim.disk.copy();
            // They are the same file system, and the system would mix them up.
            victim.disk.release();
            let mount = Mount::new(&disk, file_system, "").unwrap();
            let mut command = once_more("child_looks_at_copies");
            command.env(COPIES, mount.path());
            let mut child = Process::start(mount.within(&command));
            for (writer, round) in said.safe.iter().enumerate() {
                child.ask(&format!("safe {writer} {round}"));
            }
            child.end_of_orders();
            let (mut found, mut looked, mut wrong) = (BTreeMap::new(), false, Vec::new());
            while let Some(line) = child.heard() {
                let numbers: Vec<u64> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
                match (line.split(' ').next(), &numbers[..]) {
                    (Some("copy"), &[copy, ref rounds @ ..]) if rounds.len() == copies::WRITERS => {
                        _ = found.insert(copy, rounds.try_into().unwrap());
                    }
                    (Some("looked"), &[unfinished]) => (looked, left) = (true, left + unfinished),
                    _ => wrong.push(line),
                }
            }
            child.wait();
            mount.unmount();
            disk.release();
            wrong.extend(said.wrong_in(&found));
            if !looked {
                wrong.push("the store does not open: see above".to_owned());
            }
            if !wrong.is_empty() {
                let image =
                    std::env::temp_dir().join(format!("larder-{file_system}-{}-copy-{cut}.img", std::process::id()));
                disk.save(&image);
                panic!("{file_system}, {layout}, cut {cut}, disk in {}: {}", image.display(), wrong.join("\n"));
            }
            told += said.copies().1;
            whole += found.len();
        }
        tell(&format!(
            "{file_system}, {layout}: {cuts} cuts while it was copied, {told} copies told to be there, {whole} found \
             whole, {left} not finished"
        ));
    }
}

#[test]
fn no_power_cut_on_ext4_leaves_a_part_of_a_copy_or_takes_one() {
    cut_while_it_copies("no_power_cut_on_ext4_leaves_a_part_of_a_copy_or_takes_one", "ext4");
}

#[test]
fn no_power_cut_on_xfs_leaves_a_part_of_a_copy_or_takes_one() {
    cut_while_it_copies("no_power_cut_on_xfs_leaves_a_part_of_a_copy_or_takes_one", "xfs");
}

#[test]
fn no_power_cut_on_btrfs_leaves_a_part_of_a_copy_or_takes_one() {
    cut_while_it_copies("no_power_cut_on_btrfs_leaves_a_part_of_a_copy_or_takes_one", "btrfs");
}

// ---- a store that is moved to the other layout and back ----

const MOVED: &str = "LARDER_POWER_MOVED";

fn to_be_moved() -> Contents {
    (0..250).map(|number| (format!("moved-{}/{number}", number % 5), number)).collect()
}

fn told_layout(layout: Layout) -> &'static str {
    if layout == Layout::Packed { "packed" } else { "files" }
}

/// Moves a store there and back, and says how far it is.
#[test]
fn child_moves() {
    let Some(path) = std::env::var_os(MOVED).map(PathBuf::from) else { return };
    let store = Store::open(&path).unwrap();
    for (key, number) in to_be_moved() {
        store.put(&key, value(&key, number)).unwrap();
    }
    store.close().unwrap();
    say("filled");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (done, path) = (&done, &path);
        scope.spawn(move || {
            let mut last = (0, 0, 0);
            while !done.load(Ordering::Relaxed) {
                let temporary = names(&path.join(".larder/tmp")).len();
                let now = (member_files(path).len(), segments(path).len(), temporary);
                if now != last {
                    say(&format!("now {now:?}"));
                    last = now;
                }
            }
        });
        for layout in [Layout::Packed, Layout::Files].into_iter().cycle() {
            say(&format!("try {}", told_layout(layout)));
            // Whatever fails is told: it is well if the power was cut by then.
            if let Err(error) = larder::convert(path, layout) {
                say(&format!("failed: {error}"));
                break;
            }
            say(&format!("did {}", told_layout(layout)));
        }
        done.store(true, Ordering::Relaxed);
    });
}

/// Says what is wrong with a store that was being moved, and which layout it has; then it goes on with the move, or goes back.
#[test]
fn child_looks_at_what_was_moved() {
    let Some(path) = std::env::var_os(MOVED).map(PathBuf::from) else { return };
    let format = std::fs::read_to_string(path.join(".larder/format")).unwrap();
    let layout = if format.contains("packed") { Layout::Packed } else { Layout::Files };
    let other = if layout == Layout::Packed { Layout::Files } else { Layout::Packed };
    let moves = if orders().next().as_deref() == Some("back") { [layout, other] } else { [other, layout] };
    let report = larder::check(&path).unwrap();
    for problem in report.problems.iter().filter(|problem| problem.severity > Severity::Note) {
        say(&format!("wrong: {problem}"));
    }
    let look = |when: &str| {
        let store = Store::open(&path).unwrap();
        assert_eq!(store.load_report().quarantined, [], "{when}");
        assert!(contents(&store) == to_be_moved(), "{when} it holds something else");
        store.close().unwrap();
        assert_tidy(&path);
    };
    if moves[0] == layout {
        look("at first");
    }
    for layout in moves {
        larder::convert(&path, layout).unwrap();
        let files = if layout == Layout::Packed { 0 } else { to_be_moved().len() };
        assert_eq!(member_files(&path).len(), files, "files on the disk, and members");
        look("when it was moved");
    }
    let beside = if format.contains("beside") { "beside" } else { "alone" };
    say(&format!("looked {} {beside}", told_layout(layout)));
}

fn cut_while_it_moves(test: &str, file_system: &'static str) {
    if !is_possible(test, file_system) {
        return;
    }
    let (cuts, seed) = (number("LARDER_POWER_CUTS", 6), number("LARDER_POWER_SEED", 0));
    let mut chance = Chance::new(seed + 200);
    let (mut moved, mut amidst, mut beside) = (0, 0, 0);
    for cut in 0..cuts {
        let victim = Victim::new(file_system, "interval", Layout::Files);
        let mount = Mount::new(&victim.disk, file_system, victim.mount_options(&mut chance)).unwrap();
        let mut commits = once_more("child_commits");
        commits.env(STORE, mount.store());
        let mut commits = Process::start(mount.within(&commits));
        let mut command = once_more("child_moves");
        command.env(MOVED, mount.store());
        let mut child = Process::start(mount.within(&command));
        child.expect("filled");
        // The layout that it has for certain, and the one that it may have by now.
        let (mut has, mut may_have) = ("files".to_owned(), "files".to_owned());
        let mut hear = |line: &str| match line.split_once(' ') {
            Some(("try", layout)) => layout.clone_into(&mut may_have),
            Some(("did", layout)) => {
                layout.clone_into(&mut has);
                moved += 1;
            }
            _ => {}
        };
        for _ in 0..chance.below(150) {
            hear(&child.heard().expect("the child ended by itself"));
            match chance.below(100) {
                0..10 => commits.ask("commit"),
                10..14 => commits.ask("write back"),
                14..17 => commits.ask("write all back"),
                _ => {}
            }
        }
        victim.disk.cut();
        child.kill();
        // What it said before it died holds too.
        while let Some(line) = child.heard() {
            hear(&line);
        }
        child.wait();
        commits.kill();
        commits.wait();
        mount.unmount();
        amidst += usize::from(has != may_have);

        let disk = victim.disk.copy();
        // They are the same file system, and the system would mix them up.
        victim.disk.release();
        let mount = Mount::new(&disk, file_system, "").unwrap();
        let mut command = once_more("child_looks_at_what_was_moved");
        command.env(MOVED, mount.store());
        let mut child = Process::start(mount.within(&command));
        child.ask(if chance.below(2) == 0 { "back" } else { "on" });
        let (mut looked, mut wrong) = (false, Vec::new());
        while let Some(line) = child.heard() {
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["looked", layout, how] => {
                    looked = true;
                    beside += usize::from(how == "beside");
                    if layout != has && layout != may_have {
                        wrong.push(format!("it is {layout}, and was {has} or {may_have}"));
                    }
                }
                _ => wrong.push(line),
            }
        }
        child.wait();
        mount.unmount();
        if !looked {
            wrong.push("it does not open, or holds something else: see above".to_owned());
        }
        if !wrong.is_empty() {
            let image =
                std::env::temp_dir().join(format!("larder-{file_system}-{}-move-{cut}.img", std::process::id()));
            disk.save(&image);
            panic!("{file_system}, cut {cut}, disk in {}: {}", image.display(), wrong.join("\n"));
        }
        disk.release();
    }
    tell(&format!(
        "{file_system}: {cuts} cuts while it was moved, {amidst} of them amidst a move, after {moved} that were done; \
         {beside} times there were files beside what is packed"
    ));
}

#[test]
fn no_power_cut_on_ext4_takes_a_member_of_a_store_that_is_being_moved() {
    cut_while_it_moves("no_power_cut_on_ext4_takes_a_member_of_a_store_that_is_being_moved", "ext4");
}

#[test]
fn no_power_cut_on_xfs_takes_a_member_of_a_store_that_is_being_moved() {
    cut_while_it_moves("no_power_cut_on_xfs_takes_a_member_of_a_store_that_is_being_moved", "xfs");
}

#[test]
fn no_power_cut_on_btrfs_takes_a_member_of_a_store_that_is_being_moved() {
    cut_while_it_moves("no_power_cut_on_btrfs_takes_a_member_of_a_store_that_is_being_moved", "btrfs");
}

/// What is lost here is lost by right: it was not flushed. It shows that the test above can find a loss.
#[test]
fn a_writer_that_takes_buffered_writes_for_durable_ones_is_found_out() {
    let file_system = "ext4";
    if !is_possible("a_writer_that_takes_buffered_writes_for_durable_ones_is_found_out", file_system) {
        return;
    }
    let mut chance = Chance::new(1);
    let mut figures = Figures::default();
    let mut losses = 0;
    for _ in 0..3 {
        let mut victim = Victim::new(file_system, LIAR, Layout::Files);
        let said = victim.cut(&mut chance, &mut figures);
        losses += victim.restart(said, &mut figures).0.len();
        victim.disk.release();
    }
    tell(&format!("{losses} losses found, of {} writes that were not flushed", figures.acknowledged));
    assert!(losses > 0);
}

#[test]
fn an_acknowledgement_rules_out_what_came_before_it_and_nothing_that_came_after() {
    let mut said = Said::after(Contents::from([("keep-0/1".to_owned(), 1), ("keep-0/2".to_owned(), 2)]));
    for line in [
        "try 0 3 put keep-0/1",
        "did 0 3",
        "try 1 4 flush",
        "try 0 5 put keep-0/1",
        "did 0 5",
        "did 1 4",
        "try 0 6 delete keep-0/1",
    ] {
        said.hear(line, false);
    }
    assert_eq!(said.possible(0, "keep-0/1"), [Some(3), Some(5), None]);
    assert_eq!(said.possible(0, "keep-0/2"), [Some(2)]);
    assert_eq!(said.acknowledged(), 1);

    // A process that was killed, and another: what it found is one more thing that may be.
    for line in ["found 5 keep-0/1", "found 2 keep-0/2", "open", "try 0 7 clear keep-0"] {
        said.hear(line, false);
    }
    assert_eq!(said.wrong, [""; 0]);
    assert_eq!(said.possible(0, "keep-0/1"), [Some(3), Some(5), None, Some(5), None]);
    for line in ["did 0 7", "try close", "did close"] {
        said.hear(line, false);
    }
    assert_eq!(said.possible(0, "keep-0/1"), [None]);
    assert_eq!(said.wrong_in(&Contents::new()), [""; 0]);
    assert_eq!(said.wrong_in(&Contents::from([("keep-0/2".to_owned(), 2)])).len(), 1);
    assert_eq!(said.wrong_in(&Contents::from([("else/where".to_owned(), 2)])).len(), 1);
}
