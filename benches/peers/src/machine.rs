//! What the figures were measured on.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Config, Result};

pub(crate) fn describe(config: &Config) -> Result<()> {
    fs::create_dir_all(&config.dir)?;
    let args: Vec<String> = std::env::args().skip(1).collect();
    let dashes = if args.is_empty() { "" } else { " -- " };
    println!("# larder beside its peers\n");
    println!("- command: `cargo run --release{dashes}{}`, in `benches/peers`", args.join(" "));
    println!("- larder's code: {}", code());
    println!("- processor: {}", processor());
    println!("- memory: {}", line_of("/proc/meminfo", "MemTotal"));
    println!("- kernel: {}", first_line("/proc/version"));
    let file_system = file_system(&config.dir);
    println!("- file system: {file_system} on {}", config.dir.canonicalize()?.display());
    if file_system.starts_with("tmpfs") || file_system.starts_with("ramfs") {
        println!("- **this is no disk**: nothing here is durable, and no figure below means anything");
    }
    println!("- compiler: {}", output("rustc", &["--version"]));
    println!("- load average before: {}", load_average());
    println!("- rounds: {}; each figure is the median, with the least and the most in parentheses", config.size.rounds);
    Ok(())
}

pub(crate) fn code() -> String {
    output("git", &["-C", env!("CARGO_MANIFEST_DIR"), "describe", "--always", "--dirty"])
}

pub(crate) fn processor() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{}, {cores} cores", line_of("/proc/cpuinfo", "model name"))
}

pub(crate) fn load_average() -> String {
    first_line("/proc/loadavg")
}

/// What the disk below a directory has done so far, as the system counts it, and nothing where it does not.
pub(crate) fn disk(dir: &Path) -> String {
    let device = dir.metadata().map_or(0, |metadata| metadata.dev());
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).unwrap_or_default()
}

fn output(command: &str, args: &[&str]) -> String {
    let output = Command::new(command).args(args).output().ok().filter(|output| output.status.success());
    output.map_or("unknown".to_owned(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn first_line(path: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().next().unwrap_or("unknown").to_owned()
}

/// The value of the first line that begins with `name` and a colon.
fn line_of(path: impl AsRef<Path>, name: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix(':'));
    value.map_or("unknown", str::trim).to_owned()
}

/// The type of the file system and its device: those of the longest mount point that the path begins with.
fn file_system(path: &Path) -> String {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut best = ("unknown".to_owned(), 0);
    for line in mounts.lines() {
        let mut fields = line.split(' ');
        let (Some(device), Some(point), Some(kind)) = (fields.next(), fields.next(), fields.next()) else { continue };
        if path.starts_with(point) && point.len() >= best.1 {
            best = (format!("{kind} ({device})"), point.len());
        }
    }
    best.0
}

/// The bytes of the disk that a directory takes. A store may be at work in it: what goes meanwhile does not count.
pub(crate) fn taken(dir: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = match entry.metadata() {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            metadata => metadata?,
        };
        sum += metadata.blocks() * 512 + if metadata.is_dir() { taken(&entry.path())? } else { 0 };
    }
    Ok(sum)
}

/// Makes durable what is in a directory: for stores that have no call for it.
pub(crate) fn sync_files(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            sync_files(&path)?;
        } else {
            fs::File::open(path)?.sync_all()?;
        }
    }
    Ok(fs::File::open(dir)?.sync_all()?)
}

/// Has the system forget what it has read of the disk. False where that is not allowed.
pub(crate) fn drop_cache() -> bool {
    fs::write("/proc/sys/vm/drop_caches", "3").is_ok()
}

/// Memory of this process, in bytes, as the system calls it: `VmRSS` or `VmHWM`. NaN where it does not tell.
pub(crate) fn memory(name: &str) -> f64 {
    let line = line_of("/proc/self/status", name);
    let kilobytes = line.strip_suffix(" kB").and_then(|number| number.parse::<f64>().ok());
    kilobytes.map_or(f64::NAN, |kilobytes| kilobytes * 1024.0)
}

/// How long this process has run, on all its threads, in seconds.
pub(crate) fn processor_time() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// How many times the threads of this process that are there have gone to sleep. NaN where the system does not tell.
pub(crate) fn sleeps() -> f64 {
    let Ok(threads) = fs::read_dir("/proc/self/task") else { return f64::NAN };
    let of = |status: PathBuf| line_of(status, "voluntary_ctxt_switches").parse::<f64>().unwrap_or(0.0);
    threads.flatten().map(|thread| of(thread.path().join("status"))).sum()
}
