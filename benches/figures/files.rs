//! Storing and loading: larder against the bare system calls.

use crate::{Config, Result};

#[cfg(not(target_os = "linux"))]
pub(crate) fn run(_config: &Config) -> Result<()> {
    println!("\n## store and load\n\nThe bare loops are written for Linux: there is nothing to compare with here.");
    Ok(())
}

#[cfg(target_os = "linux")]
pub(crate) use linux::run;

#[cfg(target_os = "linux")]
mod linux {
    use std::os::fd::OwnedFd;
    use std::path::{Path, PathBuf};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Instant;

    use larder::Store;
    use rustix::fs::{FileType, Mode, OFlags};

    use super::{Config, Result};
    use crate::input::{self, COLLECTIONS, Keys, Ops};
    use crate::measure::Samples;

    /// With larder's header a file is about 130 bytes.
    const VALUE: usize = 26;

    /// As many as larder's janitor stores in one batch.
    const BATCH: usize = 4096;

    pub(crate) fn run(config: &Config) -> Result<()> {
        let files = config.size.files;
        let dir = tempfile::tempdir_in(&config.dir)?;
        let Some(ops) = input::operations(Keys::Each, files, files, 1).pop() else { return Ok(()) };
        let mut rates = Rates::default();
        let cold = config.cold && config.wants("load") && drop_caches();
        for round in 0..config.size.rounds {
            let raw = Raw::make(&dir.path().join(format!("raw-{round}")), &ops)?;
            let over = Raw::make(&dir.path().join(format!("over-{round}")), &ops)?;
            let path = dir.path().join(format!("larder-{round}"));
            if config.wants("store") {
                store(&mut rates, &ops, round, &path, &raw, &over)?;
            } else {
                let store = Store::open(&path)?;
                larder_stores(&store, &ops, 0)?;
                // A drop leaves to the next load what takes too long.
                store.close()?;
            }
            if config.wants("load") {
                load(&mut rates, &path, files, round, cold)?;
            }
        }
        rates.print(config, cold);
        Ok(())
    }

    /// Members per second, of each round.
    #[derive(Default)]
    struct Rates {
        new: [Vec<f64>; 2],
        again: [Vec<f64>; 3],
        warm: [Vec<f64>; 3],
        cold: [Vec<f64>; 3],
    }

    impl Rates {
        fn print(self, config: &Config, was_cold: bool) {
            let files = config.size.files;
            if config.wants("store") {
                println!(
                    "\n## store\n\n{files} members, files of 130 bytes, in {COLLECTIONS} collections; per second.\n"
                );
                println!(
                    "| until flush returns | bare calls, same barriers | bare rename over, one sync | larder | ratio | goal |"
                );
                println!("| --- | --- | --- | --- | --- | --- |");
                let [raw, larder] = self.new.map(Samples::new);
                println!("| new members | {raw} | - | {larder} | {:.2} | 0.8 |", larder.over(&raw));
                let [raw, over, larder] = self.again.map(Samples::new);
                let (to_raw, to_over) = (larder.over(&raw), larder.over(&over));
                println!("| overwritten, to the same barriers | {raw} | - | {larder} | {to_raw:.2} | - |");
                println!("| overwritten, to rename over | - | {over} | {larder} | {to_over:.2} | 2 |");
            }
            if config.wants("load") {
                println!(
                    "\n## load\n\n{files} members, files of 130 bytes, in {COLLECTIONS} collections; per second.\n"
                );
                println!("| open | bare reads, 2 threads | 8 threads | larder | ratio to 2 | ratio to 8 | goal |");
                println!("| --- | --- | --- | --- | --- | --- | --- |");
                for (what, rates) in [("warm", self.warm), ("cold", self.cold)] {
                    let [two, eight, larder] = rates.map(Samples::new);
                    let (to_two, to_eight) = (larder.over(&two), larder.over(&eight));
                    println!("| {what} | {two} | {eight} | {larder} | {to_two:.2} | {to_eight:.2} | 0.8 |");
                }
                if !was_cold {
                    println!("\nCold was not measured: --quick, or /proc/sys/vm/drop_caches cannot be written here.");
                }
            }
        }
    }

    // ---- storing ----

    fn store(rates: &mut Rates, ops: &Ops, round: usize, path: &Path, raw: &Raw, over: &Raw) -> Result<()> {
        let per_second = |started: Instant| ops.len() as f64 / started.elapsed().as_secs_f64();
        let store = Store::open(path)?;
        // In turns: who comes first in one round comes last in the next.
        let mut bare = || -> Result<()> {
            let started = Instant::now();
            raw.write_with_barriers()?;
            rates.new[0].push(per_second(started));
            Ok(())
        };
        if round.is_multiple_of(2) {
            bare()?;
        }
        let started = Instant::now();
        larder_stores(&store, ops, 0)?;
        let larder_new = per_second(started);
        if !round.is_multiple_of(2) {
            bare()?;
        }
        rates.new[1].push(larder_new);
        over.write_with_barriers()?;

        for turn in 0..3 {
            let started = Instant::now();
            let which = (round + turn) % 3;
            match which {
                0 => raw.write_with_barriers()?,
                1 => over.rename_over()?,
                _ => larder_stores(&store, ops, 1)?,
            }
            rates.again[which].push(per_second(started));
        }
        _ = store.close()?;
        Ok(())
    }

    fn larder_stores(store: &Store, ops: &Ops, fill: u8) -> Result<()> {
        let value = [fill; VALUE];
        for at in 0..ops.len() {
            store.put(ops.key(at), value)?;
        }
        Ok(store.flush()?)
    }

    /// One file per member by the shortest way that is safe.
    struct Raw<'a> {
        ops: &'a Ops,
        root: OwnedFd,
        temporary: OwnedFd,
        dirs: Vec<OwnedFd>,
        contents: Vec<u8>,
    }

    impl<'a> Raw<'a> {
        fn make(path: &Path, ops: &'a Ops) -> Result<Raw<'a>> {
            let make = |path: PathBuf| -> Result<OwnedFd> {
                std::fs::create_dir(&path)?;
                open_dir(&path)
            };
            let root = make(path.to_owned())?;
            let temporary = make(path.join("tmp"))?;
            let dirs = (0..COLLECTIONS).map(|number| make(path.join(input::collection(number))));
            let dirs = dirs.collect::<Result<_>>()?;
            Ok(Raw { ops, root, temporary, dirs, contents: vec![b'x'; 104 + VALUE] })
        }

        fn write_temporary(&self, name: &str) -> Result<()> {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = rustix::fs::openat(&self.temporary, name, flags, Mode::RUSR | Mode::WUSR)?;
            if rustix::io::write(&file, &self.contents)? < self.contents.len() {
                return Err("a short write".into());
            }
            Ok(())
        }

        fn put_in_place(&self, at: usize, name: &str) -> Result<()> {
            let dir = &self.dirs[self.ops.collection(at)];
            Ok(rustix::fs::renameat(&self.temporary, name, dir, self.ops.member(at))?)
        }

        /// In batches: writes all, makes all durable, renames all, makes the names durable.
        fn write_with_barriers(&self) -> Result<()> {
            let names: Vec<String> = (0..BATCH).map(|number| number.to_string()).collect();
            let mut first = 0;
            while first < self.ops.len() {
                let batch = BATCH.min(self.ops.len() - first);
                for name in &names[..batch] {
                    self.write_temporary(name)?;
                }
                rustix::fs::syncfs(&self.root)?;
                for (number, name) in names[..batch].iter().enumerate() {
                    self.put_in_place(first + number, name)?;
                }
                // There are many directories: one call is quicker than syncing each.
                rustix::fs::syncfs(&self.root)?;
                first += batch;
            }
            Ok(())
        }

        /// One after the other, over what is there. It leaves it to the file system that the data comes before the name.
        fn rename_over(&self) -> Result<()> {
            for at in 0..self.ops.len() {
                self.write_temporary("next")?;
                self.put_in_place(at, "next")?;
            }
            Ok(rustix::fs::syncfs(&self.root)?)
        }
    }

    fn open_dir(path: &Path) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(rustix::fs::open(path, flags, Mode::empty())?)
    }

    // ---- loading ----

    fn load(rates: &mut Rates, path: &Path, files: usize, round: usize, cold: bool) -> Result<()> {
        read_all(path, 2)?;
        for (rates, first_drop) in [(&mut rates.warm, false), (&mut rates.cold, true)] {
            if first_drop && !cold {
                continue;
            }
            for turn in 0..3 {
                let which = (round + turn) % 3;
                if first_drop && !drop_caches() {
                    return Err("the caches could be dropped before, and cannot be now".into());
                }
                let started = Instant::now();
                let (found, store) = match which {
                    0 => (read_all(path, 2)?, None),
                    1 => (read_all(path, 8)?, None),
                    _ => {
                        let store = Store::open(path)?;
                        (store.load_report().members, Some(store))
                    }
                };
                rates[which].push(found as f64 / started.elapsed().as_secs_f64());
                // Closes it, which does not belong to the load.
                drop(store);
                if found != files {
                    return Err(format!("{found} files were read, of {files}").into());
                }
            }
        }
        Ok(())
    }

    /// Whether the caches of the file system have been dropped: that is the superuser's privilege.
    fn drop_caches() -> bool {
        rustix::fs::sync();
        std::fs::write("/proc/sys/vm/drop_caches", "3").is_ok()
    }

    /// Reads every file of every collection's directory, and says how many there are.
    fn read_all(path: &Path, threads: usize) -> Result<usize> {
        let mut dirs = Vec::new();
        for entry in std::fs::read_dir(path)? {
            let entry = entry?;
            if entry.file_name() != ".larder" {
                dirs.push(open_dir(&entry.path())?);
            }
        }
        let next = AtomicUsize::new(0);
        let read_some = || {
            let mut files = 0;
            while let Some(dir) = dirs.get(next.fetch_add(1, Ordering::Relaxed)) {
                files += read_dir(dir)?;
            }
            Ok::<usize, rustix::io::Errno>(files)
        };
        let read = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..threads).map(|_| scope.spawn(read_some)).collect();
            let files = threads.into_iter().map(|thread| thread.join().unwrap_or(Err(rustix::io::Errno::IO)));
            files.sum::<rustix::io::Result<usize>>()
        });
        Ok(read?)
    }

    /// In the order of the inodes, which is nearly that of the disk.
    fn read_dir(dir: &OwnedFd) -> rustix::io::Result<usize> {
        let mut files = Vec::new();
        for entry in rustix::fs::Dir::read_from(dir)? {
            let entry = entry?;
            if entry.file_type() == FileType::RegularFile {
                files.push((entry.ino(), entry.file_name().to_owned()));
            }
        }
        files.sort_unstable_by_key(|(inode, _)| *inode);
        let mut buffer = vec![0; 16 << 10];
        for (_, name) in &files {
            let file = rustix::fs::openat(dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
            // A file that is shorter than the buffer is read in one call.
            std::hint::black_box(rustix::io::read(&file, &mut buffer)?);
        }
        Ok(files.len())
    }
}
