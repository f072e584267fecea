//! What the tests share: chance that repeats itself, processes to be killed, a look at the disk.
#![allow(dead_code, reason = "each test uses its part")]

pub(crate) mod copies;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Numbers that look like chance and are the same in every run. (Marsaglia, "Xorshift RNGs", 2003)
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn new(seed: u64) -> Chance {
        Chance((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.number() % bound as u64) as usize
    }
}

/// What takes longer hangs. It is there to end a test, and long enough for a machine that has hardly any time for it.
pub(crate) const LONGEST: Duration = Duration::from_secs(300);

/// Waits until it is so.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + LONGEST;
    while !is_so() {
        assert!(Instant::now() < end, "it never came about that {what}");
        std::thread::yield_now();
    }
}

/// Waits until everything that is written is in the members' files, and durable there.
pub(crate) fn until_at_rest(store: &larder::Store) {
    store.flush().unwrap();
    until("the files have followed", || store.stats().journal_bytes == 0);
}

/// Tells something even when the test passes: what is printed with a macro is shown only when it fails.
pub(crate) fn tell(line: &str) {
    std::io::stderr().write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// A line to the test that started this process. It is written at once, and by itself.
pub(crate) fn say(line: &str) {
    // The test runner may have left a line unfinished.
    let line = format!("\n> {line}\n");
    let mut out = std::io::stdout().lock();
    out.write_all(line.as_bytes()).and_then(|()| out.flush()).expect("the test that listens has gone");
}

/// This test binary again, to run one of its tests in a process of its own.
pub(crate) fn once_more(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]);
    command
}

/// Another process, which is killed when this goes.
pub(crate) struct Process {
    child: std::process::Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Process {
    pub(crate) fn start(mut command: Command) -> Process {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Process { child, stdin, stdout }
    }

    /// The next thing that it says; `None` when it has ended. A line that was cut off is not said.
    pub(crate) fn heard(&mut self) -> Option<String> {
        loop {
            let mut line = String::new();
            self.stdout.read_line(&mut line).unwrap();
            match (line.strip_suffix('\n'), line.strip_prefix("> ")) {
                (None, _) => return None,
                (Some(_), None) => {}
                (Some(_), Some(said)) => return Some(said.trim_end().to_owned()),
            }
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    #[track_caller]
    pub(crate) fn expect(&mut self, line: &str) {
        assert_eq!(self.heard().as_deref(), Some(line));
    }

    /// A line on its standard input.
    pub(crate) fn ask(&mut self, line: &str) {
        writeln!(self.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    /// There are no more lines on it.
    pub(crate) fn end_of_orders(&mut self) {
        drop(self.stdin.take());
    }

    /// SIGKILL, where there are signals.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        drop(self.stdin.take());
        self.child.wait().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// Lines from the test that started this process, until it closes the pipe or goes.
pub(crate) fn orders() -> impl Iterator<Item = String> {
    std::io::stdin().lines().map_while(Result::ok)
}

/// The names in a directory, sorted; none if there is no such directory.
pub(crate) fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().expect("a name that is UTF-8")).collect();
    names.sort_unstable();
    names
}

/// The files of a store's members: everything in the directories beside `.larder`.
pub(crate) fn member_files(store: &Path) -> Vec<PathBuf> {
    let dirs = names(store).into_iter().filter(|name| name != ".larder").map(|name| store.join(name));
    dirs.flat_map(|dir| names(&dir).into_iter().map(move |name| dir.join(name))).collect()
}

/// The segments of a store's journal.
pub(crate) fn segments(store: &Path) -> Vec<PathBuf> {
    let journal = store.join(".larder/journal");
    names(&journal).into_iter().map(|name| journal.join(name)).collect()
}

/// What a killed process would leave of a store that is open: everything that was handed to the system. The journal is
/// copied first, so that what moves on to the files meanwhile is in one of them or in both.
pub(crate) fn as_after_a_crash(store: &Path, copy: &Path) {
    fs::create_dir_all(copy.join(".larder")).unwrap();
    copy_dir(&store.join(".larder/journal"), &copy.join(".larder/journal"));
    copy_dir(store, copy);
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for name in names(from) {
        let (from, to) = (from.join(&name), to.join(&name));
        // What has gone since it was listed has moved on.
        let Ok(metadata) = fs::symlink_metadata(&from) else { continue };
        if metadata.is_dir() {
            copy_dir(&from, &to);
        } else if !to.exists() {
            match fs::copy(&from, &to) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                copied => _ = copied.unwrap(),
            }
        }
    }
}

/// The same of a packed store, which has nothing but segments: if one has gone or come meanwhile it is copied again.
pub(crate) fn as_a_packed_store_after_a_crash(store: &Path, copy: &Path) {
    until("nothing is compacted while it is copied", || {
        _ = fs::remove_dir_all(copy);
        let before = segments(store);
        as_after_a_crash(store, copy);
        segments(store) == before
    });
}

/// What a store holds: by key, the value as bytes.
pub(crate) fn contents(store: &larder::Store) -> BTreeMap<String, Vec<u8>> {
    let mut contents = BTreeMap::new();
    for collection in store.collections().unwrap() {
        for (member, value) in store.get_all(&collection).unwrap() {
            contents.insert(format!("{collection}/{member}"), value.to_vec());
        }
    }
    contents
}

/// The bytes of all files below a directory. One that goes meanwhile has none.
pub(crate) fn disk_size(dir: &Path) -> u64 {
    let size = |path: PathBuf| match fs::symlink_metadata(&path) {
        Ok(metadata) if metadata.is_dir() => disk_size(&path),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    names(dir).into_iter().map(|name| size(dir.join(name))).sum()
}

/// The frames of a segment that nothing is wrong with: where each stands, without what fills up to the next, and its kind.
pub(crate) fn frames(segment: &[u8]) -> Vec<(std::ops::Range<usize>, u32)> {
    let number = |at: usize| u32::from_le_bytes(segment[at..at + 4].try_into().unwrap());
    let mut frames = Vec::new();
    let mut at = 64;
    while at + 24 <= segment.len() && number(at) > 0 {
        let end = at + 24 + number(at) as usize;
        frames.push((at..end, number(at + 16)));
        at = end.next_multiple_of(8);
    }
    frames
}

/// The kind of a frame that holds members of a compacted segment.
pub(crate) const BLOCK: u32 = 3;

/// The kind of a frame that says what a compacted segment replaces.
pub(crate) const OTHERS: u32 = 4;

/// Everything below a directory by its path: a file with its bytes, anything else with its kind. Nothing may come or go
/// meanwhile.
pub(crate) fn tree(dir: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    for name in names(dir) {
        let path = dir.join(name);
        if fs::symlink_metadata(&path).unwrap().is_dir() {
            found.extend(tree(&path));
        }
        let what = what_is_at(&path);
        found.insert(path, what);
    }
    found
}

/// A file's bytes, or the kind of anything else.
pub(crate) fn what_is_at(path: &Path) -> String {
    let metadata = fs::symlink_metadata(path).unwrap();
    if metadata.is_dir() {
        "a directory".to_owned()
    } else if metadata.is_file() {
        fs::read(path).unwrap().escape_ascii().to_string()
    } else {
        format!("{:?} to {:?}", metadata.file_type(), fs::read_link(path).unwrap_or_default())
    }
}

/// Of what a store that is closed holds, nothing is in the journal.
#[track_caller]
pub(crate) fn assert_only_files(store: &Path) {
    let left = segments(store);
    assert!(left.is_empty(), "the journal is not empty: {left:?}");
}

/// Nothing is left over, and nothing was put aside.
pub(crate) fn assert_tidy(store: &Path) {
    let meta = store.join(".larder");
    assert_eq!(names(&meta.join("tmp")), [""; 0], "temporary files are left");
    assert_eq!(names(&meta.join("quarantine")), [""; 0], "something is in quarantine");
}
