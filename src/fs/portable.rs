//! The operations through paths, with nothing but std. A symbolic link is looked for before a name is used, which
//! keeps out links that stand there, not one who puts them there at the same moment: the directory is private.

use std::fs;
use std::io;
use std::path::Path;

use super::{Dir, Entry, File, Fs, Kind, LockFile};

#[derive(Debug)]
pub(crate) struct Native;

/// The entry itself, not what it links to.
fn kind_of(path: &Path) -> io::Result<Kind> {
    let kind = fs::symlink_metadata(path)?.file_type();
    Ok(match kind {
        kind if kind.is_file() => Kind::File,
        kind if kind.is_dir() => Kind::Dir,
        _ => Kind::Other,
    })
}

fn no_follow(path: &Path, wanted: Kind) -> io::Result<()> {
    if kind_of(path)? == wanted {
        return Ok(());
    }
    Err(match wanted {
        Kind::Dir => io::Error::new(io::ErrorKind::NotADirectory, "not a directory"),
        _ => io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"),
    })
}

impl Fs for Native {
    fn kind_at(&self, path: &Path, follow: bool) -> io::Result<Option<Kind>> {
        super::kind_at_path(path, follow)
    }

    fn make_root(&self, path: &Path) -> io::Result<()> {
        super::make_root_at(path)
    }

    fn open_root(&self, path: &Path) -> io::Result<Dir> {
        if !fs::metadata(path)?.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        Ok(Dir::at(path.to_owned()))
    }

    fn open_dir(&self, parent: &Dir, name: &str) -> io::Result<Dir> {
        let path = parent.join(name);
        no_follow(&path, Kind::Dir)?;
        Ok(Dir::at(path))
    }

    fn make_dir(&self, parent: &Dir, name: &str) -> io::Result<()> {
        super::make_root_at(&parent.join(name))
    }

    fn remove_dir(&self, parent: &Dir, name: &str) -> io::Result<()> {
        fs::remove_dir(parent.join(name))
    }

    fn list(&self, dir: &Dir) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(dir.path())? {
            let entry = entry?;
            let (name, readable) = match entry.file_name().into_string() {
                Ok(name) => (name, true),
                Err(name) => (name.to_string_lossy().into_owned(), false),
            };
            let kind = match entry.file_type()? {
                _ if !readable => Kind::Other,
                kind if kind.is_file() => Kind::File,
                kind if kind.is_dir() => Kind::Dir,
                _ => Kind::Other,
            };
            #[cfg(unix)]
            let inode = std::os::unix::fs::DirEntryExt::ino(&entry);
            #[cfg(not(unix))]
            let inode = 0;
            entries.push(Entry { name, kind, inode });
        }
        Ok(entries)
    }

    fn kind(&self, dir: &Dir, name: &str) -> io::Result<Option<Kind>> {
        match kind_of(&dir.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            kind => kind.map(Some),
        }
    }

    fn create(&self, dir: &Dir, name: &str) -> io::Result<Box<dyn File>> {
        let mut options = fs::OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        Ok(Box::new(options.open(dir.join(name))?))
    }

    fn open(&self, dir: &Dir, name: &str) -> io::Result<Box<dyn File>> {
        let path = dir.join(name);
        no_follow(&path, Kind::File)?;
        Ok(Box::new(fs::File::open(path)?))
    }

    fn open_lock(&self, dir: &Dir, name: &str) -> io::Result<Box<dyn LockFile>> {
        super::open_lock_at(&dir.join(name))
    }

    fn rename(&self, from: &Dir, from_name: &str, to: &Dir, to_name: &str) -> io::Result<()> {
        fs::rename(from.join(from_name), to.join(to_name))
    }

    fn unlink(&self, dir: &Dir, name: &str) -> io::Result<()> {
        fs::remove_file(dir.join(name))
    }

    /// A directory opens as a file on Unix only; elsewhere its names are made durable by the system in its own time.
    fn sync_dir(&self, dir: &Dir) -> io::Result<()> {
        if cfg!(unix) { fs::File::open(dir.path())?.sync_all() } else { Ok(()) }
    }

    fn sync_fs(&self, _dir: &Dir) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn has_sync_fs(&self) -> bool {
        false
    }
}
