//! A process that writes is killed two hundred times, anywhere: each time the store loads, every member is whole, and
//! none is older than what the process was told of it: by a flush, a close, a write in `Immediate` mode, or because
//! nothing was left that was not handed over. No deleted member returns. And what is killed while it copies its store leaves
//! copies that are whole, and of one moment.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test, a panic is the report")]

mod lab;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lab::{
    Chance, Process, as_after_a_crash, assert_only_files, assert_tidy, copies, member_files, once_more, say, segments,
    tell, until,
};
use larder::{Durability, Layout, Store};

const KILLS: usize = 200;

/// Each thread of the child writes its own keys: in the collection `keep-<thread>`, and in `clear-<thread>`, which it
/// clears now and then.
const THREADS: usize = 2;
const KEPT: usize = 24;
const CLEARED: usize = 8;

const STORE: &str = "LARDER_SIGKILL_STORE";
const DURABILITY: &str = "LARDER_SIGKILL_DURABILITY";
const MAX_JOURNAL: &str = "LARDER_SIGKILL_MAX_JOURNAL";
const ALONE: &str = "LARDER_SIGKILL_ALONE";
const LAYOUT: &str = "LARDER_SIGKILL_LAYOUT";
const FIRST: &str = "LARDER_SIGKILL_FIRST";

/// A value that says which write it is, of a length and with bytes that no other write has.
fn value(key: &str, number: u64) -> Vec<u8> {
    let mut value = format!("{key} {number} ").into_bytes();
    let mut chance = Chance::new(number);
    let length = value.len() + chance.below(3000);
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

/// The keys of one thread, and whether they are in the collection that it clears.
fn keys(thread: usize) -> Vec<(String, bool)> {
    let kept = (0..KEPT).map(|member| (format!("keep-{thread}/{member}"), false));
    let cleared = (0..CLEARED).map(|member| (format!("clear-{thread}/Member {member}"), true));
    kept.chain(cleared).collect()
}

// ---- the child ----

#[test]
fn child_writes() {
    let Some(path) = std::env::var_os(STORE) else { return };
    let durability = match std::env::var(DURABILITY).unwrap().as_str() {
        "immediate" => Durability::Immediate,
        "buffered" => Durability::Buffered,
        _ => Durability::Interval(Duration::from_millis(2)),
    };
    let max_journal = std::env::var(MAX_JOURNAL).unwrap().parse().unwrap();
    let next = AtomicU64::new(std::env::var(FIRST).unwrap().parse().unwrap());
    let layout = if std::env::var(LAYOUT).unwrap() == "packed" { Layout::Packed } else { Layout::Files };
    let open = || {
        let options = Store::options(&path).durability(durability).max_journal(max_journal);
        options.layout(layout).open().unwrap()
    };
    let store = open();
    say("open");
    if std::env::var_os(ALONE).is_some() {
        return write_alone_until_killed(store, open, &next);
    }
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (store, next) = (&store, &next);
            scope.spawn(move || write_until_killed(store, thread, next));
        }
    });
}

fn write_until_killed(store: &Store, thread: usize, next: &AtomicU64) {
    let mut chance = Chance::new(next.load(Ordering::SeqCst) + thread as u64);
    loop {
        if chance.below(100) < 92 {
            write(store, thread, next, &mut chance);
        } else {
            let number = next.fetch_add(1, Ordering::SeqCst);
            say(&format!("try {thread} {number} flush"));
            // In files there is nothing to compact.
            if chance.below(3) == 0 {
                store.compact().unwrap();
            }
            store.flush().unwrap();
            say(&format!("did {thread} {number}"));
        }
    }
}

/// One put, delete or clear. True for a clear.
fn write(store: &Store, thread: usize, next: &AtomicU64, chance: &mut Chance) -> bool {
    let keys = keys(thread);
    let number = next.fetch_add(1, Ordering::SeqCst);
    let (key, _) = &keys[chance.below(keys.len())];
    let what = chance.below(92);
    match what {
        0..70 => {
            say(&format!("try {thread} {number} put {key}"));
            store.put(key, value(key, number)).unwrap();
        }
        70..88 => {
            say(&format!("try {thread} {number} delete {key}"));
            store.delete(key).unwrap();
        }
        _ => {
            say(&format!("try {thread} {number} clear"));
            store.delete_all(format!("clear-{thread}")).unwrap();
        }
    }
    say(&format!("did {thread} {number}"));
    what >= 88
}

/// One thread, which can tell when nothing of its own waits any more, and closes and opens again, or lets go.
fn write_alone_until_killed(mut store: Store, open: impl Fn() -> Store, next: &AtomicU64) {
    let mut chance = Chance::new(next.load(Ordering::SeqCst));
    loop {
        let mut cleared = false;
        for _ in 0..chance.below(20) {
            cleared |= write(&store, 0, next, &mut chance);
        }
        let number = next.fetch_add(1, Ordering::SeqCst);
        say(&format!("try 0 {number} flush"));
        match chance.below(8) {
            0 => {
                store.close().unwrap();
                store = open();
            }
            1 => {
                drop(store);
                store = open();
            }
            2 => {
                store.compact().unwrap();
                store.flush().unwrap();
            }
            // A clear alone has no bytes.
            3 => store.flush().unwrap(),
            _ if cleared => store.flush().unwrap(),
            _ => until("all is handed over", || store.stats().unsaved_bytes == 0),
        }
        say(&format!("did 0 {number}"));
    }
}

// ---- the parent ----

enum Act {
    Put(String),
    Delete(String),
    Clear,
    /// With how many of each thread's acts were done before it began.
    Flush([usize; THREADS]),
}

/// What a child said that it did, act by act.
#[derive(Default)]
struct Said {
    tried: [Vec<(u64, Act)>; THREADS],
    /// How many of them returned.
    done: [usize; THREADS],
    /// How many of them no crash may lose.
    safe: [usize; THREADS],
}

impl Said {
    fn hear(&mut self, line: &str, immediate: bool) {
        let words: Vec<&str> = line.splitn(5, ' ').collect();
        let [word, thread, number, ..] = words[..] else { return };
        let (thread, number): (usize, u64) = (thread.parse().unwrap(), number.parse().unwrap());
        if word == "did" {
            let (tried, act) = &self.tried[thread][self.done[thread]];
            assert_eq!(*tried, number);
            if let Act::Flush(before) = *act {
                self.safe = std::array::from_fn(|thread| self.safe[thread].max(before[thread]));
            }
            self.done[thread] += 1;
            if immediate {
                self.safe[thread] = self.done[thread];
            }
            return;
        }
        let act = match words[3..] {
            ["put", key] => Act::Put(key.to_owned()),
            ["delete", key] => Act::Delete(key.to_owned()),
            ["clear"] => Act::Clear,
            ["flush"] => Act::Flush(self.done),
            _ => panic!("{line}"),
        };
        self.tried[thread].push((number, act));
    }

    /// What a key may hold after the crash: what it held when it was last safe, or after any later act.
    fn possible(&self, thread: usize, key: &str, cleared: bool, before: Option<u64>) -> Vec<Option<u64>> {
        let mut possible = vec![before];
        for (position, (number, act)) in self.tried[thread].iter().enumerate() {
            let after = match act {
                Act::Put(put) if put == key => Some(*number),
                Act::Delete(deleted) if deleted == key => None,
                Act::Clear if cleared => None,
                _ => continue,
            };
            if position < self.safe[thread] {
                possible.clear();
            }
            possible.push(after);
        }
        possible
    }
}

/// A store that lives on from crash to crash.
struct Victim {
    dir: tempfile::TempDir,
    layout: Layout,
    durability: &'static str,
    max_journal: u64,
    alone: bool,
    /// What was in it after the last crash: by key, which write it is.
    held: BTreeMap<String, u64>,
    first: u64,
}

impl Victim {
    fn new(layout: Layout, (durability, max_journal, alone): (&'static str, u64, bool)) -> Victim {
        Victim {
            dir: tempfile::tempdir().unwrap(),
            layout,
            durability,
            max_journal,
            alone,
            held: BTreeMap::new(),
            first: 1,
        }
    }

    fn path(&self) -> std::path::PathBuf {
        self.dir.path().join("store")
    }

    /// Lets a child write, and kills it once it has said so much.
    fn kill_after(&mut self, lines: usize) -> Said {
        let mut command = once_more("child_writes");
        command.env(STORE, self.path()).env(DURABILITY, self.durability).env(FIRST, self.first.to_string());
        command.env(MAX_JOURNAL, self.max_journal.to_string());
        command.env(LAYOUT, if self.layout == Layout::Packed { "packed" } else { "files" });
        if self.alone {
            command.env(ALONE, "yes");
        }
        let mut child = Process::start(command);
        let mut said = Said::default();
        let immediate = self.durability == "immediate";
        for _ in 0..lines {
            let line = child.heard().expect("the child ended by itself");
            said.hear(&line, immediate);
        }
        child.kill();
        // What it said before it died holds too.
        while let Some(line) = child.heard() {
            said.hear(&line, immediate);
        }
        let ended = child.wait();
        #[cfg(unix)]
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&ended), Some(9), "{ended}");
        assert!(!ended.success());
        said
    }

    /// Loads what the child left, or a copy of it, so that the next child finds what a child has left.
    fn check(&mut self, said: &Said, in_place: bool) -> Checked {
        let path = if in_place { self.path() } else { self.dir.path().join("copy") };
        if !in_place {
            as_after_a_crash(&self.path(), &path);
        }
        let left = (segments(&path).len(), member_files(&path).len());
        let store = Store::open(&path).unwrap();
        let report = store.load_report();
        assert_eq!(report.quarantined, []);
        assert_tidy(&path);
        let found = contents(&store);
        for thread in 0..THREADS {
            for (key, cleared) in keys(thread) {
                let possible = said.possible(thread, &key, cleared, self.held.get(&key).copied());
                let is = found.get(&key).copied();
                assert!(possible.contains(&is), "{key} holds {is:?}, and may hold {possible:?} ({})", self.durability);
            }
        }
        let known: Vec<String> = (0..THREADS).flat_map(keys).map(|(key, _)| key).collect();
        assert!(found.keys().all(|key| known.contains(key)), "a key that nobody wrote: {found:?}");
        store.close().unwrap();
        assert_tidy(&path);
        if self.layout == Layout::Files {
            assert_only_files(&path);
            assert_eq!(member_files(&path).len(), found.len(), "files on the disk, and members");
        } else {
            assert_eq!(member_files(&path).len(), 0);
        }
        let store = Store::open(&path).unwrap();
        assert_eq!(contents(&store), found);
        if self.layout == Layout::Files {
            assert_eq!(store.load_report().replayed, 0);
        }
        drop(store);
        if !in_place {
            std::fs::remove_dir_all(&path).unwrap();
        }
        self.first = said.tried.iter().flatten().map(|(number, _)| number + 1).chain([self.first]).max().unwrap();
        self.held = found;
        let amidst = left.0 > 1 && (left.1 > 0 || self.layout == Layout::Packed);
        Checked { members: self.held.len(), replayed: report.replayed, amidst }
    }
}

struct Checked {
    members: usize,
    replayed: usize,
    /// The files were following when the kill came, or there was something to compact.
    amidst: bool,
}

/// By key, which write it is.
fn contents(store: &Store) -> BTreeMap<String, u64> {
    let mut contents = BTreeMap::new();
    for collection in store.collections().unwrap() {
        for (member, value) in store.get_all(&collection).unwrap() {
            let key = format!("{collection}/{member}");
            let number = number_of(&key, &value).unwrap_or_else(|| panic!("{key} is not whole: {value:?}"));
            contents.insert(key, number);
        }
    }
    contents
}

#[test]
fn no_kill_loses_what_a_process_was_told_is_safe_or_tears_a_member() {
    kill_again_and_again(Layout::Files);
}

#[test]
fn no_kill_of_a_packed_store_loses_what_is_safe_or_tears_a_member() {
    kill_again_and_again(Layout::Packed);
}

fn kill_again_and_again(layout: Layout) {
    // With a small journal the files follow, and segments come and go, all the time.
    const SMALL: u64 = 64 << 10;
    const LARGE: u64 = 256 << 20;
    let mut victims = [
        ("immediate", SMALL, false),
        ("interval", SMALL, true),
        ("buffered", SMALL, false),
        ("immediate", LARGE, true),
        ("interval", LARGE, false),
        ("buffered", SMALL, true),
        ("interval", SMALL, false),
        ("buffered", LARGE, true),
    ]
    .map(|kind| Victim::new(layout, kind));
    let mut chance = Chance::new(200);
    let (mut members, mut acts, mut safe, mut replayed, mut amidst) = (0, 0, 0, 0, 0);
    for kill in 0..KILLS {
        let victim = &mut victims[kill % 8];
        // One in eight dies while it opens the store, or soon after.
        let lines = if chance.below(8) == 0 { chance.below(4) } else { chance.below(400) };
        let said = victim.kill_after(lines);
        let checked = victim.check(&said, chance.below(4) == 0);
        acts += said.done.iter().sum::<usize>();
        safe += said.safe.iter().sum::<usize>();
        members += checked.members;
        replayed += checked.replayed;
        amidst += usize::from(checked.amidst);
    }
    assert!(safe > KILLS, "the children were killed before anything of theirs was safe");
    // A packed store is in its journal: nothing of it is called recovered but what may not have been durable.
    let recovered = layout == Layout::Packed || replayed > KILLS;
    assert!(recovered && amidst > KILLS / 8, "the kills did not come while there was something to lose");
    tell(&format!(
        "{KILLS} kills of a store {layout}, {amidst} of them with something left to do; {acts} acts, {safe} of them safe before the kill; {members} \
         members checked, {replayed} of them from the journal"
    ));
}

// ---- copies of a store that is being written ----

/// In each layout.
const COPY_KILLS: usize = 24;

const COPIES: &str = "LARDER_SIGKILL_COPIES";

#[test]
fn child_writes_and_copies() {
    let Some(path) = std::env::var_os(COPIES) else { return };
    let path = Path::new(&path);
    let layout = if std::env::var(LAYOUT).unwrap() == "packed" { Layout::Packed } else { Layout::Files };
    let durability = Durability::Interval(Duration::from_millis(2));
    let store = Store::options(path.join("store")).durability(durability).layout(layout).open().unwrap();
    let first = std::env::var(FIRST).unwrap().parse().unwrap();
    copies::write_and_copy(&store, &path.join("copies"), first).unwrap();
}

#[test]
fn a_process_that_is_killed_while_it_copies_leaves_whole_copies_of_one_moment_or_none() {
    for layout in [Layout::Files, Layout::Packed] {
        let dir = tempfile::tempdir().unwrap();
        let mut chance = Chance::new(24);
        let mut said = copies::Said::default();
        let (mut whole, mut amidst, mut untold) = (0, 0, 0);
        for _ in 0..COPY_KILLS {
            let first = said.highest + 1;
            said = said.next();
            let mut command = once_more("child_writes_and_copies");
            command.env(COPIES, dir.path()).env(FIRST, first.to_string());
            command.env(LAYOUT, if layout == Layout::Packed { "packed" } else { "files" });
            let mut child = Process::start(command);
            // After some copies, or before the first one. Writers speak all the time, so it is anywhere in a copy.
            let copies = chance.below(6);
            let mut lines = chance.below(20);
            while lines > 0 || said.copies().1 < copies {
                said.hear(&child.heard().expect("the child ended by itself"));
                lines = lines.saturating_sub(usize::from(said.copies().1 >= copies));
            }
            child.kill();
            // What it said before it died holds too.
            while let Some(line) = child.heard() {
                said.hear(&line);
            }
            assert!(!child.wait().success());

            let copies = dir.path().join("copies");
            let (found, unfinished, mut wrong) = copies::look(&copies);
            wrong.extend(said.wrong_in(&found));
            assert_eq!(wrong, [""; 0], "{layout}");
            assert!(unfinished <= 1, "{unfinished} copies were being made at once");
            whole += found.len();
            amidst += unfinished;
            untold += found.len() - said.copies().1;
            if copies.exists() {
                std::fs::remove_dir_all(&copies).unwrap();
            }

            let store = Store::open(dir.path().join("store")).unwrap();
            assert_eq!(store.load_report().quarantined, []);
            assert_eq!(said.wrong_in_the_store(&lab::contents(&store)), [""; 0], "{layout}");
            store.close().unwrap();
        }
        tell(&format!(
            "{COPY_KILLS} kills of a store {layout} that was being copied: {whole} copies were whole, {untold} of them before \
             that was told; {amidst} were not finished"
        ));
        assert!(whole > COPY_KILLS && amidst > COPY_KILLS / 4, "the kills did not come while there were copies");
    }
}

#[test]
fn a_value_with_any_byte_changed_is_not_taken_for_whole() {
    let whole = value("keep-0/1", 7);
    assert_eq!(number_of("keep-0/1", &whole), Some(7));
    for at in 0..whole.len() {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        assert_eq!(number_of("keep-0/1", &changed), None, "byte {at}");
    }
    assert_eq!(number_of("keep-0/1", &whole[..whole.len() - 1]), None);
}

#[test]
fn a_flush_makes_safe_what_returned_before_it_began_and_no_more() {
    let mut said = Said::default();
    for line in [
        "try 0 1 put keep-0/1",
        "did 0 1",
        "try 1 2 flush",
        "try 0 3 put keep-0/1",
        "did 0 3",
        "did 1 2",
        "try 0 4 delete keep-0/1",
    ] {
        said.hear(line, false);
    }
    assert_eq!(said.possible(0, "keep-0/1", false, Some(0)), [Some(1), Some(3), None]);
    assert_eq!(said.possible(0, "keep-0/2", false, Some(0)), [Some(0)]);
}
