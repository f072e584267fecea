//! Files and directories, as the backend sees them: each operation is a single system call, relative to an open
//! directory, and follows no symbolic link.
//!
//! [`Fs`] is what tests replace. On Unix the operations go through directory descriptors; elsewhere, and under
//! `--cfg larder_portable`, through paths.

#[cfg(test)]
pub(crate) mod fault;
#[cfg(any(not(unix), larder_portable))]
mod portable;
#[cfg(all(unix, not(larder_portable)))]
mod unix;

use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};

#[cfg(any(not(unix), larder_portable))]
pub(crate) use portable::Native;
#[cfg(all(unix, not(larder_portable)))]
pub(crate) use unix::Native;

/// An open directory.
#[derive(Debug)]
pub(crate) struct Dir {
    path: PathBuf,
    #[cfg(all(unix, not(larder_portable)))]
    fd: std::os::fd::OwnedFd,
}

impl Dir {
    /// For messages, and for what only takes paths.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Dir,
    Other,
}

/// An entry of a directory whose name is UTF-8. Others are never larder's.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    /// Reading in this order reads a cold disk forwards. 0 where there is none.
    pub(crate) inode: u64,
}

pub(crate) trait File: Send {
    /// Reads at the file's position: 0 is the end.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Writes at the file's position, possibly less than all.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;

    /// Makes what was written durable. After an error, never again on the same file.
    fn sync_data(&mut self) -> io::Result<()>;
}

pub(crate) trait Fs: Debug + Send + Sync {
    fn open_root(&self, path: &Path) -> io::Result<Dir>;
    fn open_dir(&self, parent: &Dir, name: &str) -> io::Result<Dir>;
    /// Mode 0700.
    fn make_dir(&self, parent: &Dir, name: &str) -> io::Result<()>;
    fn remove_dir(&self, parent: &Dir, name: &str) -> io::Result<()>;
    fn list(&self, dir: &Dir) -> io::Result<Vec<Entry>>;
    /// What the name stands for, if it stands for anything.
    fn kind(&self, dir: &Dir, name: &str) -> io::Result<Option<Kind>>;
    /// A new file, mode 0600. An error if the name is taken.
    fn create(&self, dir: &Dir, name: &str) -> io::Result<Box<dyn File>>;
    fn open(&self, dir: &Dir, name: &str) -> io::Result<Box<dyn File>>;
    /// Replaces what `to_name` names.
    fn rename(&self, from: &Dir, from_name: &str, to: &Dir, to_name: &str) -> io::Result<()>;
    fn unlink(&self, dir: &Dir, name: &str) -> io::Result<()>;
    /// Makes the directory's names durable, where the system can.
    fn sync_dir(&self, dir: &Dir) -> io::Result<()>;
    /// Makes the whole file system that `dir` is on durable.
    fn sync_fs(&self, dir: &Dir) -> io::Result<()>;
    /// Whether `sync_fs` exists here and tells errors.
    fn has_sync_fs(&self) -> bool;
}

/// Writes all of `bytes`.
pub(crate) fn write_all(file: &mut dyn File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads from the file's position to its end, or until `buffer` is full, and says how much.
pub(crate) fn read_up_to(file: &mut dyn File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Reads on from the file's position, until `buffer` holds `most` bytes or the file ends. `filled` are there already. The
/// buffer grows with what is there, and never ahead of it by more than that.
pub(crate) fn read_on(file: &mut dyn File, buffer: &mut Vec<u8>, mut filled: usize, most: usize) -> io::Result<usize> {
    while filled < most {
        if filled == buffer.len() {
            buffer.resize((filled * 2).min(most), 0);
        }
        let end = buffer.len().min(most);
        let read = read_up_to(file, &mut buffer[filled..end])?;
        filled += read;
        if filled < end {
            break;
        }
    }
    Ok(filled)
}

impl File for std::fs::File {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        io::Read::read(self, buffer)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        io::Write::write(self, bytes)
    }

    fn sync_data(&mut self) -> io::Result<()> {
        std::fs::File::sync_data(self)
    }
}
