//! Reading a store: every directory and every file, on several threads.

use std::cell::RefCell;
use std::io;

use super::header;
use super::name;
use crate::backend::{Inflow, Loader};
use crate::error::{Error, Result};
use crate::fs::{Dir, File, Fs, Kind, read_on, read_up_to};
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Mutex, thread, unbounded};

/// Files that one thread reads in a row: in order of their inodes, which is nearly that of a cold disk.
const CHUNK: usize = 256;

/// A file under a name of larder's that is not a member's, whole and undamaged.
pub(in crate::backend) struct Damaged {
    pub(in crate::backend) dir: String,
    pub(in crate::backend) file: String,
    pub(in crate::backend) reason: String,
}

/// What is read of a file before its header is looked at. Most are smaller.
const FIRST_READ: usize = 16 << 10;

struct Chunk {
    dir: String,
    files: Vec<String>,
}

/// What stands in a store's directory.
#[derive(Default)]
pub(in crate::backend) struct Found {
    pub(in crate::backend) damaged: Vec<Damaged>,
    /// The highest version.
    pub(in crate::backend) highest: u64,
    /// Files that are members', or damaged.
    pub(in crate::backend) files: u64,
}

/// The directories of collections.
pub(super) fn collections(fs: &dyn Fs, root: &Dir) -> Result<Vec<String>> {
    let listed = fs.list(root).map_err(|error| Error::io("list", root.path(), error))?;
    let is_collection = |entry: &crate::fs::Entry| entry.kind == Kind::Dir && name::could_be_ours(&entry.name);
    Ok(listed.into_iter().filter(is_collection).map(|entry| entry.name).collect())
}

/// How many files there are that could be members'.
pub(in crate::backend) fn count(fs: &dyn Fs, root: &Dir) -> Result<u64> {
    let chunks = Mutex::new(Vec::new());
    in_parallel(&collections(fs, root)?, |dir, _| list(fs, root, dir, &chunks), |_| {})?;
    Ok(chunks.lock().iter().map(|chunk: &Chunk| chunk.files.len() as u64).sum())
}

/// Gives every member below `root` to the loader.
pub(in crate::backend) fn load(fs: &dyn Fs, root: &Dir, loader: &Loader<'_>) -> Result<Found> {
    let chunks = Mutex::new(Vec::new());
    in_parallel(&collections(fs, root)?, |dir, _| list(fs, root, dir, &chunks), |_| {})?;
    let chunks = std::mem::take(&mut *chunks.lock());

    let total = chunks.iter().map(|chunk: &Chunk| chunk.files.len() as u64).sum();
    let found = Mutex::new(Found { files: total, ..Found::default() });
    let mut done = 0;
    loader.progress(0, total);
    in_parallel(
        &chunks,
        |chunk, step| {
            let (mut damaged, version) = read(fs, root, chunk, loader)?;
            let mut found = found.lock();
            found.damaged.append(&mut damaged);
            found.highest = found.highest.max(version);
            step(chunk.files.len() as u64);
            Ok(())
        },
        |files| {
            done += files;
            loader.progress(done, total);
        },
    )?;
    Ok(std::mem::take(&mut *found.lock()))
}

fn list(fs: &dyn Fs, root: &Dir, name: &str, chunks: &Mutex<Vec<Chunk>>) -> Result<()> {
    let dir = match fs.open_dir(root, name) {
        Ok(dir) => dir,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io("open directory", root.join(name), error)),
    };
    let mut files = fs.list(&dir).map_err(|error| Error::io("list", dir.path(), error))?;
    files.retain(|entry| entry.kind == Kind::File && name::could_be_ours(&entry.name));
    files.sort_unstable_by_key(|entry| entry.inode);
    let mut files = files.into_iter().map(|entry| entry.name).peekable();
    while files.peek().is_some() {
        let chunk = Chunk { dir: name.to_owned(), files: files.by_ref().take(CHUNK).collect() };
        chunks.lock().push(chunk);
    }
    Ok(())
}

fn read(fs: &dyn Fs, root: &Dir, chunk: &Chunk, loader: &Loader<'_>) -> Result<(Vec<Damaged>, u64)> {
    let dir =
        fs.open_dir(root, &chunk.dir).map_err(|error| Error::io("open directory", root.join(&chunk.dir), error))?;
    let mut damaged = Vec::new();
    let mut highest = 0;
    let mut buffer = Vec::new();
    let mut inflow = loader.inflow();
    for file in &chunk.files {
        let read = fs.open(&dir, file).and_then(|mut open| read_whole(&mut *open, &mut buffer));
        let reason = match read {
            Ok(length) => match member(&buffer[..length], &chunk.dir, file, &mut *inflow)? {
                Ok(version) => {
                    highest = highest.max(version);
                    continue;
                }
                Err(reason) => reason,
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) if is_bad_medium(&error) => format!("it cannot be read: {error}"),
            // The reason lies outside the file, which may be whole: it stays where it is.
            Err(error) => return Err(Error::io("read", dir.join(file), error)),
        };
        damaged.push(Damaged { dir: chunk.dir.clone(), file: file.clone(), reason });
    }
    Ok((damaged, highest))
}

/// Reads a file, but no further than its header says, and one byte: what cannot be a member's file is not read whole.
///
/// A read that gives less than it was asked for has come to the end (but for a signal, or a disk that fails, in the middle).
/// Where that is the end that the header tells of, it is not asked for again: that would be one of the four calls that a
/// file takes.
pub(in crate::backend) fn read_whole(file: &mut dyn File, buffer: &mut Vec<u8>) -> io::Result<usize> {
    buffer.resize(buffer.len().max(FIRST_READ), 0);
    let start = &mut buffer[..FIRST_READ];
    let mut filled = file.read(start).or_else(|error| match error.kind() {
        io::ErrorKind::Interrupted => Ok(0),
        _ => Err(error),
    })?;
    if filled == FIRST_READ || !header::is_as_long_as_it_says(&start[..filled]) {
        filled += read_up_to(file, &mut start[filled..])?;
    }
    if filled < FIRST_READ {
        return Ok(filled);
    }
    match header::parse(&buffer[..header::MAX_HEADER]) {
        Ok((header, line)) => {
            let whole = line.saturating_add(header.length.min(crate::key::MAX_VALUE));
            read_on(file, buffer, filled, whole + 1)
        }
        Err(_) => Ok(filled),
    }
}

/// EIO; on Windows ERROR_CRC and ERROR_IO_DEVICE. std has no kind for them.
pub(in crate::backend) fn is_bad_medium(error: &io::Error) -> bool {
    let codes: &[i32] = if cfg!(windows) { &[23, 1117] } else { &[5] };
    error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

/// Gives one file's member to the loader. The inner error is the reason why the file is damaged.
fn member(file: &[u8], dir: &str, file_name: &str, inflow: &mut dyn Inflow) -> Result<Result<u64, String>> {
    let (header, value) = match header::decode(file) {
        Ok(decoded) => decoded,
        Err(reason) => return Ok(Err(reason)),
    };
    if !name::is_name_of(dir, header.collection()) || !name::is_name_of(file_name, header.member()) {
        let key = crate::key::join(header.collection(), header.member());
        return Ok(Err(format!("it is the file of another key, {key:?}")));
    }
    let (collection, member) = (header.collection(), header.member());
    match inflow.put(collection, member, header.version, header.deadline, header.codec, value) {
        Ok(()) => Ok(Ok(header.version)),
        Err(error @ (Error::InvalidKey { .. } | Error::TooLarge { .. })) => Ok(Err(error.to_string())),
        Err(error) => Err(error),
    }
}

/// Says how far some work has come: by so much more.
pub(in crate::backend) type Step<'a> = dyn Fn(u64) + 'a;

/// Does `work` on every item, on several threads, and calls `stepped` on this one with each step of it. The first error
/// ends it.
pub(in crate::backend) fn in_parallel<I: Sync>(
    items: &[I],
    work: impl Fn(&I, &Step<'_>) -> Result<()> + Sync,
    mut stepped: impl FnMut(u64),
) -> Result<()> {
    // A cold disk answers many readers faster than one per core; a warm one is as fast with either.
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = (cores * 4).clamp(4, 32).min(items.len());
    // A disk in memory has nothing to gain from threads, and a hundred thousand of them to lose.
    if threads <= 1 || cfg!(test) {
        let stepped = RefCell::new(stepped);
        return items.iter().try_for_each(|item| work(item, &|by| (stepped.borrow_mut())(by)));
    }
    let next = AtomicUsize::new(0);
    let (told, steps) = unbounded();
    thread::scope(|scope| {
        for _ in 0..threads {
            let (told, work, next) = (told.clone(), &work, &next);
            scope.spawn(move || {
                // Who hears of it is there until all have ended.
                let step = |by| _ = told.send(Ok(by));
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(error) = work(item, &step) {
                        _ = told.send(Err(error));
                        break;
                    }
                }
            });
        }
        drop(told);
        let mut first_error = Ok(());
        while let Ok(step) = steps.recv() {
            match step {
                Ok(by) => stepped(by),
                Err(error) => {
                    // Nobody takes another item; what is under way is waited for.
                    next.store(items.len(), Ordering::Relaxed);
                    first_error = Err(error);
                }
            }
        }
        first_error
    })
}

/// Where a damaged file goes: `<when>-<number>-<directory>-<file>`.
pub(in crate::backend) fn quarantine_name(when: u128, number: usize, damaged_dir: &str, damaged_file: &str) -> String {
    format!("{when}-{number}-{damaged_dir}-{damaged_file}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file that begins as given and never ends.
    struct Endless {
        start: Vec<u8>,
        read: usize,
    }

    impl File for Endless {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            for byte in &mut *buffer {
                *byte = self.start.get(self.read).copied().unwrap_or(b'x');
                self.read += 1;
            }
            Ok(buffer.len())
        }

        fn read_at(&mut self, _buffer: &mut [u8], _offset: u64) -> io::Result<usize> {
            unreachable!("it is read in order")
        }

        fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
            unreachable!("it is only read")
        }

        fn write_at(&mut self, _bytes: &[u8], _offset: u64) -> io::Result<usize> {
            unreachable!("it is only read")
        }

        fn sync_data(&mut self) -> io::Result<()> {
            unreachable!("it is only read")
        }

        fn set_len(&mut self, _length: u64) -> io::Result<()> {
            unreachable!("it is only read")
        }
    }

    /// A file that is read in pieces of this size.
    struct Piecewise(Endless, usize);

    impl File for Piecewise {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let rest = &self.0.start[self.0.read..];
            let length = rest.len().min(buffer.len()).min(self.1);
            buffer[..length].copy_from_slice(&rest[..length]);
            self.0.read += length;
            Ok(length)
        }

        fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
            self.0.read_at(buffer, offset)
        }

        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.write(bytes)
        }

        fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<usize> {
            self.0.write_at(bytes, offset)
        }

        fn sync_data(&mut self) -> io::Result<()> {
            self.0.sync_data()
        }

        fn set_len(&mut self, length: u64) -> io::Result<()> {
            self.0.set_len(length)
        }
    }

    #[test]
    fn a_file_is_read_to_its_end_in_whatever_pieces_it_comes() {
        for (length, junk) in [(0, ""), (5, ""), (20_000, ""), (5, "x"), (5, "and more")] {
            let mut whole = Vec::new();
            header::encode(&mut whole, "c", "m", 1, None, "raw", &vec![b'='; length]);
            let is_whole = junk.is_empty();
            whole.extend_from_slice(junk.as_bytes());
            for piece in [1, 7, 50, 1000, usize::MAX] {
                let mut file = Piecewise(Endless { start: whole.clone(), read: 0 }, piece);
                let mut buffer = Vec::new();
                let filled = read_whole(&mut file, &mut buffer).unwrap();
                assert_eq!(header::decode(&buffer[..filled]).is_ok(), is_whole, "{length} and {junk:?} by {piece}");
            }
        }
    }

    #[test]
    fn no_more_is_read_of_a_file_than_its_header_says_and_a_byte() {
        for (length, most) in [(5, FIRST_READ), (100_000, 100_200), (0, FIRST_READ)] {
            let mut start = Vec::new();
            header::encode(&mut start, "c", "m", 1, None, "raw", &vec![b'v'; length]);
            let mut file = Endless { start, read: 0 };
            let mut buffer = vec![0; FIRST_READ];
            let filled = read_whole(&mut file, &mut buffer).unwrap();
            assert!(filled <= most && file.read <= most && buffer.len() <= 2 * most, "{filled} of {length}");
            assert!(header::decode(&buffer[..filled]).is_err(), "it is longer than it says");
        }
        // A length that nothing has.
        for length in [u64::from(u32::MAX), u64::MAX] {
            let bytes =
                format!("larder 1 codec=raw version=1 deadline=none key=\"c/m\" length={length} crc32=00000000\nv");
            let mut file = Piecewise(Endless { start: bytes.clone().into_bytes(), read: 0 }, usize::MAX);
            let mut buffer = Vec::new();
            let filled = read_whole(&mut file, &mut buffer).unwrap();
            assert_eq!(&buffer[..filled], bytes.as_bytes());
            assert!(header::decode(&buffer[..filled]).is_err());
        }
        let mut file = Endless { start: b"a log, perhaps".to_vec(), read: 0 };
        read_whole(&mut file, &mut vec![0; FIRST_READ]).unwrap();
        assert_eq!(file.read, FIRST_READ);
    }
}
