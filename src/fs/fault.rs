//! A file system that fails: the n-th operation, once or from then on. For tests.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::sync::{Condvar, Mutex};

use super::{Dir, Entry, File, Fs, Kind, LockFile, Native};

#[derive(Debug, Clone, Copy)]
pub(crate) struct Fault {
    /// Which operation fails, counted from 0.
    pub(crate) at: usize,
    /// All after it fail too, until the fault is lifted.
    pub(crate) sticky: bool,
    pub(crate) kind: io::ErrorKind,
}

/// What becomes of a thread that renames a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trap {
    Panic,
    Hang,
}

#[derive(Debug)]
pub(crate) struct Faulty {
    fault: Fault,
    done: Arc<AtomicUsize>,
    lifted: Arc<AtomicBool>,
    /// The thread that is trapped, by name.
    trap: Mutex<Option<(&'static str, Trap)>>,
    sprung: Condvar,
}

impl Faulty {
    pub(crate) fn new(fault: Fault) -> Arc<Faulty> {
        Arc::new(Faulty::sharing(fault, Arc::default(), Arc::default()))
    }

    /// One that nothing fails on.
    pub(crate) fn sound() -> Arc<Faulty> {
        Faulty::new(Fault { at: usize::MAX, sticky: false, kind: io::ErrorKind::Other })
    }

    fn sharing(fault: Fault, done: Arc<AtomicUsize>, lifted: Arc<AtomicBool>) -> Faulty {
        Faulty { fault, done, lifted, trap: Mutex::new(None), sprung: Condvar::new() }
    }

    /// The next rename on the thread of that name does not return as it should.
    pub(crate) fn set_trap(&self, trap: Option<(&'static str, Trap)>) {
        *self.trap.lock() = trap;
        self.sprung.notify_all();
    }

    fn meet_trap(&self) {
        let mut trap = self.trap.lock();
        while let Some((name, what)) = *trap {
            if std::thread::current().name() != Some(name) {
                return;
            }
            assert_ne!(what, Trap::Panic, "a trap");
            self.sprung.wait(&mut trap);
        }
    }

    pub(crate) fn lift(&self) {
        self.lifted.store(true, Ordering::SeqCst);
    }

    /// Whether the fault has struck, or would have if it had not been lifted.
    pub(crate) fn struck(&self) -> bool {
        self.done.load(Ordering::SeqCst) > self.fault.at
    }

    fn operation(&self) -> io::Result<()> {
        let number = self.done.fetch_add(1, Ordering::SeqCst);
        let strikes = number == self.fault.at || self.fault.sticky && number > self.fault.at;
        if strikes && !self.lifted.load(Ordering::SeqCst) { Err(self.fault.kind.into()) } else { Ok(()) }
    }

    fn wrap(&self, file: Box<dyn File>) -> Box<dyn File> {
        let fs = Faulty::sharing(self.fault, self.done.clone(), self.lifted.clone());
        Box::new(FaultyFile { fs, file })
    }
}

struct FaultyFile {
    fs: Faulty,
    file: Box<dyn File>,
}

impl File for FaultyFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.fs.operation()?;
        self.file.read(buffer)
    }

    fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.fs.operation()?;
        self.file.read_at(buffer, offset)
    }

    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        if let Err(error) = self.fs.operation() {
            self.file.write_at(&bytes[..bytes.len() / 2], offset)?;
            return Err(error);
        }
        self.file.write_at(bytes, offset)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A failing write leaves a part behind.
        if let Err(error) = self.fs.operation() {
            self.file.write(&bytes[..bytes.len() / 2])?;
            return Err(error);
        }
        self.file.write(bytes)
    }

    fn sync_data(&mut self) -> io::Result<()> {
        self.fs.operation()?;
        self.file.sync_data()
    }

    fn set_len(&mut self, length: u64) -> io::Result<()> {
        self.fs.operation()?;
        self.file.set_len(length)
    }
}

impl Fs for Faulty {
    fn kind_at(&self, path: &Path, follow: bool) -> io::Result<Option<Kind>> {
        self.operation()?;
        Native.kind_at(path, follow)
    }

    fn make_root(&self, path: &Path) -> io::Result<()> {
        self.operation()?;
        Native.make_root(path)
    }

    fn open_root(&self, path: &Path) -> io::Result<Dir> {
        self.operation()?;
        Native.open_root(path)
    }

    fn open_dir(&self, parent: &Dir, name: &str) -> io::Result<Dir> {
        self.operation()?;
        Native.open_dir(parent, name)
    }

    fn make_dir(&self, parent: &Dir, name: &str) -> io::Result<()> {
        self.operation()?;
        Native.make_dir(parent, name)
    }

    fn remove_dir(&self, parent: &Dir, name: &str) -> io::Result<()> {
        self.operation()?;
        Native.remove_dir(parent, name)
    }

    fn list(&self, dir: &Dir) -> io::Result<Vec<Entry>> {
        self.operation()?;
        Native.list(dir)
    }

    fn kind(&self, dir: &Dir, name: &str) -> io::Result<Option<Kind>> {
        self.operation()?;
        Native.kind(dir, name)
    }

    fn create(&self, dir: &Dir, name: &str) -> io::Result<Box<dyn File>> {
        self.operation()?;
        Ok(self.wrap(Native.create(dir, name)?))
    }

    fn open(&self, dir: &Dir, name: &str) -> io::Result<Box<dyn File>> {
        self.operation()?;
        Ok(self.wrap(Native.open(dir, name)?))
    }

    fn open_lock(&self, dir: &Dir, name: &str) -> io::Result<Box<dyn LockFile>> {
        self.operation()?;
        Native.open_lock(dir, name)
    }

    fn rename(&self, from: &Dir, from_name: &str, to: &Dir, to_name: &str) -> io::Result<()> {
        self.operation()?;
        self.meet_trap();
        Native.rename(from, from_name, to, to_name)
    }

    fn unlink(&self, dir: &Dir, name: &str) -> io::Result<()> {
        self.operation()?;
        Native.unlink(dir, name)
    }

    fn sync_dir(&self, dir: &Dir) -> io::Result<()> {
        self.operation()?;
        Native.sync_dir(dir)
    }

    fn sync_fs(&self, dir: &Dir) -> io::Result<()> {
        self.operation()?;
        Native.sync_fs(dir)
    }

    fn has_sync_fs(&self) -> bool {
        Native.has_sync_fs()
    }

    fn room(&self, dir: &Dir) -> io::Result<Option<u64>> {
        self.operation()?;
        Native.room(dir)
    }
}
