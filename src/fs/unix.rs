//! The operations through directory descriptors.

use std::io;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};

use super::{Dir, Entry, File, Fs, Kind, LockFile};

#[derive(Debug)]
pub(crate) struct Native;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const PRIVATE_DIR: Mode = Mode::RWXU;
const PRIVATE_FILE: Mode = Mode::RUSR.union(Mode::WUSR);

fn kind_of(kind: FileType) -> Kind {
    match kind {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Dir,
        _ => Kind::Other,
    }
}

impl Dir {
    fn fd(&self) -> io::Result<&std::os::fd::OwnedFd> {
        self.fd.as_ref().ok_or_else(|| io::Error::other("this directory is of another file system"))
    }
}

impl Fs for Native {
    fn kind_at(&self, path: &Path, follow: bool) -> io::Result<Option<Kind>> {
        super::kind_at_path(path, follow)
    }

    fn make_root(&self, path: &Path) -> io::Result<()> {
        super::make_root_at(path)
    }

    fn open_root(&self, path: &Path) -> io::Result<Dir> {
        let fd = rustix::fs::open(path, DIRECTORY, Mode::empty())?;
        Ok(Dir { path: path.to_owned(), fd: Some(fd) })
    }

    fn open_dir(&self, parent: &Dir, name: &str) -> io::Result<Dir> {
        let fd = rustix::fs::openat(parent.fd()?, name, DIRECTORY.union(OFlags::NOFOLLOW), Mode::empty())?;
        Ok(Dir { path: parent.join(name), fd: Some(fd) })
    }

    fn make_dir(&self, parent: &Dir, name: &str) -> io::Result<()> {
        Ok(rustix::fs::mkdirat(parent.fd()?, name, PRIVATE_DIR)?)
    }

    fn remove_dir(&self, parent: &Dir, name: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(parent.fd()?, name, AtFlags::REMOVEDIR)?)
    }

    fn list(&self, dir: &Dir) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for entry in rustix::fs::Dir::read_from(dir.fd()?)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else {
                let name = entry.file_name().to_string_lossy().into_owned();
                entries.push(Entry { name, kind: Kind::Other, inode: entry.ino() });
                continue;
            };
            if name == "." || name == ".." {
                continue;
            }
            let kind = match entry.file_type() {
                FileType::Unknown => self.kind(dir, name)?,
                known => Some(kind_of(known)),
            };
            let Some(kind) = kind else { continue };
            entries.push(Entry { name: name.to_owned(), kind, inode: entry.ino() });
        }
        Ok(entries)
    }

    fn kind(&self, dir: &Dir, name: &str) -> io::Result<Option<Kind>> {
        match rustix::fs::statat(dir.fd()?, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(kind_of(FileType::from_raw_mode(stat.st_mode)))),
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn create(&self, dir: &Dir, name: &str) -> io::Result<Box<dyn File>> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(dir.fd()?, name, flags, PRIVATE_FILE)?;
        Ok(Box::new(std::fs::File::from(fd)))
    }

    fn open(&self, dir: &Dir, name: &str) -> io::Result<Box<dyn File>> {
        // Not blocking, so that a pipe planted under a member's name cannot hang a load.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = rustix::fs::openat(dir.fd()?, name, flags, Mode::empty())?;
        Ok(Box::new(std::fs::File::from(fd)))
    }

    fn open_lock(&self, dir: &Dir, name: &str) -> io::Result<Box<dyn LockFile>> {
        super::open_lock_at(&dir.join(name))
    }

    fn rename(&self, from: &Dir, from_name: &str, to: &Dir, to_name: &str) -> io::Result<()> {
        Ok(rustix::fs::renameat(from.fd()?, from_name, to.fd()?, to_name)?)
    }

    fn unlink(&self, dir: &Dir, name: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(dir.fd()?, name, AtFlags::empty())?)
    }

    fn sync_dir(&self, dir: &Dir) -> io::Result<()> {
        match rustix::fs::fsync(dir.fd()?) {
            // Some file systems (FUSE, FAT, network) cannot sync a directory; they have nothing better to offer.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOTSUP) => Ok(()),
            done => Ok(done?),
        }
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn sync_fs(&self, dir: &Dir) -> io::Result<()> {
        Ok(rustix::fs::syncfs(dir.fd()?)?)
    }

    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    fn sync_fs(&self, _dir: &Dir) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn room(&self, dir: &Dir) -> io::Result<Option<u64>> {
        let found = rustix::fs::fstatvfs(dir.fd()?)?;
        Ok(Some(found.f_bavail.saturating_mul(found.f_frsize)))
    }

    /// Linux tells errors of `syncfs` since 5.8 (sync(2), "Errors").
    fn has_sync_fs(&self) -> bool {
        if !cfg!(any(target_os = "linux", target_os = "android")) {
            return false;
        }
        let uname = rustix::system::uname();
        let release = uname.release().to_string_lossy();
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse::<u32>().ok());
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (5, 8)
    }
}
