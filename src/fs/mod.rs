//! Files and directories, as the backend sees them: each operation is a single system call, relative to an open
//! directory, and follows no symbolic link.
//!
//! [`Fs`] is what tests replace. On Unix the operations go through directory descriptors; elsewhere, and under
//! `--cfg larder_portable`, through paths.

#[cfg(test)]
pub(crate) mod fault;
#[cfg(any(not(unix), larder_portable))]
mod portable;
#[cfg(test)]
pub(crate) mod sim;
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
    /// `None` in a file system that tests made up.
    #[cfg(all(unix, not(larder_portable)))]
    fd: Option<std::os::fd::OwnedFd>,
}

impl Dir {
    /// A directory that is only a path.
    #[cfg(any(test, larder_portable, not(unix)))]
    pub(crate) fn at(path: PathBuf) -> Dir {
        Dir {
            path,
            #[cfg(all(unix, not(larder_portable)))]
            fd: None,
        }
    }

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

/// An entry of a directory.
#[derive(Debug)]
pub(crate) struct Entry {
    /// What is not UTF-8 is never larder's: it is shown as well as can be, as something other than a file or directory.
    pub(crate) name: String,
    pub(crate) kind: Kind,
    /// Reading in this order reads a cold disk forwards. 0 where there is none.
    pub(crate) inode: u64,
}

pub(crate) trait File: Send {
    /// Reads at the file's position: 0 is the end.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Reads at `offset`: 0 is the end. The file's position means nothing after it.
    fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes at the file's position, possibly less than all.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;

    /// Writes at `offset`, possibly less than all. The file's position means nothing after it.
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<usize>;

    /// Makes what was written durable. After an error, never again on the same file.
    fn sync_data(&mut self) -> io::Result<()>;

    /// Cuts the file off at `length`, and gives back what it took beyond.
    fn set_len(&mut self, length: u64) -> io::Result<()>;
}

/// A file that is there to be locked. Its content is a note for people.
pub(crate) trait LockFile: Debug + Send + Sync {
    /// Takes the lock, or says at once that somebody else has it.
    fn try_lock(&mut self) -> io::Result<bool>;
    fn unlock(&mut self) -> io::Result<()>;
    /// Whether the name it was opened by is still this file's. Always, where the system cannot tell.
    fn is_named(&self, path: &Path) -> io::Result<bool>;
    fn read_note(&mut self) -> io::Result<String>;
    fn write_note(&mut self, note: &str) -> io::Result<()>;
}

pub(crate) trait Fs: Debug + Send + Sync {
    /// What the path stands for, links followed if `follow`, if it stands for anything.
    fn kind_at(&self, path: &Path, follow: bool) -> io::Result<Option<Kind>>;
    /// Mode 0700. One directory, not those above it.
    fn make_root(&self, path: &Path) -> io::Result<()>;
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
    /// Opens a file to be locked, mode 0600, and creates it if there is none.
    fn open_lock(&self, dir: &Dir, name: &str) -> io::Result<Box<dyn LockFile>>;
    /// Replaces what `to_name` names.
    fn rename(&self, from: &Dir, from_name: &str, to: &Dir, to_name: &str) -> io::Result<()>;
    fn unlink(&self, dir: &Dir, name: &str) -> io::Result<()>;
    /// Makes the directory's names durable, where the system can.
    fn sync_dir(&self, dir: &Dir) -> io::Result<()>;
    /// Makes the whole file system that `dir` is on durable.
    fn sync_fs(&self, dir: &Dir) -> io::Result<()>;
    /// Whether `sync_fs` exists here and tells errors.
    fn has_sync_fs(&self) -> bool;
    /// How many bytes the file system that `dir` is on has room for, where that is told.
    fn room(&self, dir: &Dir) -> io::Result<Option<u64>> {
        let _ = dir;
        Ok(None)
    }
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

/// Writes all of `bytes` at `offset`.
pub(crate) fn write_all_at(file: &mut dyn File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write_at(bytes, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => (bytes, offset) = (&bytes[written..], offset + written as u64),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads from `offset` to the file's end, or until `buffer` is full, and says how much.
pub(crate) fn read_up_to_at(file: &mut dyn File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
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

    fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        #[cfg(unix)]
        return std::os::unix::fs::FileExt::read_at(self, buffer, offset);
        #[cfg(windows)]
        return std::os::windows::fs::FileExt::seek_read(self, buffer, offset);
        #[cfg(not(any(unix, windows)))]
        return io::Seek::seek(self, io::SeekFrom::Start(offset)).and_then(|_| io::Read::read(self, buffer));
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        io::Write::write(self, bytes)
    }

    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        #[cfg(unix)]
        return std::os::unix::fs::FileExt::write_at(self, bytes, offset);
        #[cfg(windows)]
        return std::os::windows::fs::FileExt::seek_write(self, bytes, offset);
        #[cfg(not(any(unix, windows)))]
        return io::Seek::seek(self, io::SeekFrom::Start(offset)).and_then(|_| io::Write::write(self, bytes));
    }

    fn sync_data(&mut self) -> io::Result<()> {
        std::fs::File::sync_data(self)
    }

    fn set_len(&mut self, length: u64) -> io::Result<()> {
        std::fs::File::set_len(self, length)
    }
}

impl LockFile for std::fs::File {
    fn try_lock(&mut self) -> io::Result<bool> {
        match std::fs::File::try_lock(self) {
            Ok(()) => Ok(true),
            Err(std::fs::TryLockError::WouldBlock) => Ok(false),
            Err(std::fs::TryLockError::Error(error)) => Err(error),
        }
    }

    fn unlock(&mut self) -> io::Result<()> {
        std::fs::File::unlock(self)
    }

    fn is_named(&self, path: &Path) -> io::Result<bool> {
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            let (held, named) = (self.metadata()?, std::fs::symlink_metadata(path)?);
            Ok((held.dev(), held.ino()) == (named.dev(), named.ino()))
        }
        #[cfg(not(unix))]
        {
            _ = path;
            Ok(true)
        }
    }

    fn read_note(&mut self) -> io::Result<String> {
        let mut note = [0; 64];
        let length = io::Read::read(self, &mut note)?;
        Ok(String::from_utf8_lossy(&note[..length]).into_owned())
    }

    fn write_note(&mut self, note: &str) -> io::Result<()> {
        self.set_len(0)?;
        io::Seek::rewind(self)?;
        io::Write::write_all(self, note.as_bytes())
    }
}

/// What `open_lock` of both kinds of `Native` does.
fn open_lock_at(path: &Path) -> io::Result<Box<dyn LockFile>> {
    let mut options = std::fs::File::options();
    options.read(true).write(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600).custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32);
    }
    match options.open(path) {
        // One that is there is opened without asking for a change.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Ok(Box::new(options.create(true).truncate(false).open(path)?))
        }
        opened => Ok(Box::new(opened?)),
    }
}

fn make_root_at(path: &Path) -> io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

fn kind_at_path(path: &Path, follow: bool) -> io::Result<Option<Kind>> {
    let metadata = if follow { std::fs::metadata(path) } else { std::fs::symlink_metadata(path) };
    match metadata {
        Ok(metadata) if metadata.is_file() => Ok(Some(Kind::File)),
        Ok(metadata) if metadata.is_dir() => Ok(Some(Kind::Dir)),
        Ok(_) => Ok(Some(Kind::Other)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
