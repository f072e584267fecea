//! File systems of the test's own, on disks whose power can be cut.
//!
//! A disk is a file in memory, and a loop device on it. A seal on the file stops every write to it at one moment: that is
//! the cut. Each file system is mounted in a name space of its own, which goes with the processes in it.
#![allow(dead_code, reason = "each test uses its part")]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::{MemfdFlags, SealFlags, SeekFrom};

use crate::lab::{Process, tell, until};

pub(crate) const FILE_SYSTEMS: [&str; 3] = ["ext4", "xfs", "btrfs"];

pub(crate) struct Disk {
    file: File,
    name: String,
    size: u64,
}

impl Disk {
    fn empty(size: u64) -> Disk {
        static MADE: AtomicUsize = AtomicUsize::new(0);

        let name = format!("larder-{}-{}-", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let file = rustix::fs::memfd_create(&name, MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(file);
        file.set_len(size).unwrap();
        Disk { file, name, size }
    }

    /// A disk with a file system on it, or why there is none.
    pub(crate) fn new(file_system: &str) -> Result<Disk, String> {
        // The smallest that each of them takes without a complaint.
        let (size, force) = match file_system {
            "ext4" => (128 << 20, "-F"),
            "xfs" => (300 << 20, "-f"),
            _ => (256 << 20, "-f"),
        };
        let disk = Disk::empty(size);
        let mkfs = format!("mkfs.{file_system}");
        let output = Command::new(&mkfs).args(["-q", force]).arg(disk.path()).output();
        match output {
            Ok(output) if output.status.success() => Ok(disk),
            Ok(output) => Err(format!("{mkfs}: {}", String::from_utf8_lossy(&output.stderr).replace('\n', " "))),
            Err(error) => Err(format!("{mkfs}: {error}")),
        }
    }

    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// Nothing is written to it from now on.
    pub(crate) fn cut(&self) {
        rustix::fs::fcntl_add_seals(&self.file, SealFlags::WRITE | SealFlags::GROW).unwrap();
    }

    /// Another one with the same on it.
    pub(crate) fn copy(&self) -> Disk {
        let copy = Disk::empty(self.size);
        self.copy_to(&copy.file);
        copy
    }

    /// Keeps what is on it, for people.
    pub(crate) fn save(&self, path: &Path) {
        let file = File::create(path).unwrap();
        file.set_len(self.size).unwrap();
        self.copy_to(&file);
    }

    fn copy_to(&self, to: &File) {
        let mut block = vec![0; 1 << 20];
        let mut end = 0;
        // There is nothing but a hole after the last data.
        while let Ok(start) = rustix::fs::seek(&self.file, SeekFrom::Data(end)) {
            end = rustix::fs::seek(&self.file, SeekFrom::Hole(start)).unwrap();
            let mut at = start;
            while at < end {
                let length = block.len().min((end - at) as usize);
                self.file.read_exact_at(&mut block[..length], at).unwrap();
                to.write_all_at(&block[..length], at).unwrap();
                at += length as u64;
            }
        }
    }

    /// Whether a loop device holds it still.
    fn is_held(&self) -> bool {
        let devices = std::fs::read_dir("/sys/block").into_iter().flatten().flatten();
        let mut backing = devices.filter_map(|entry| {
            // Most have none.
            std::fs::read_to_string(entry.path().join("loop/backing_file")).ok()
        });
        backing.any(|path| path.contains(&self.name))
    }

    /// Returns when the system is done with it.
    pub(crate) fn release(&self) {
        until("the loop device is free", || !self.is_held());
    }
}

/// A file system, mounted where only the processes that are started in it see it.
pub(crate) struct Mount {
    /// Keeps the name space.
    keeper: Process,
    at: tempfile::TempDir,
}

impl Mount {
    /// Mounts it, or says why that cannot be.
    pub(crate) fn new(disk: &Disk, file_system: &str, options: &str) -> Result<Mount, String> {
        let at = tempfile::tempdir().unwrap();
        let script = r#"said=$(mount -t "$0" -o "$1" "$2" "$3" 2>&1 | tr '\n' ' '); mountpoint -q "$3" &&
            echo "> mounted" && exec cat; echo "> ${said:-no name space}""#;
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", script, file_system]).arg(format!("loop{options}"));
        command.arg(disk.path()).arg(at.path()).stderr(Stdio::null());
        let mut keeper = Process::start(command);
        match keeper.heard().as_deref() {
            Some("mounted") => Ok(Mount { keeper, at }),
            said => Err(said.unwrap_or("mount name spaces are not allowed").trim().to_owned()),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.at.path()
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.at.path().join("store")
    }

    /// The command, where the file system can be seen.
    pub(crate) fn within(&self, command: &Command) -> Command {
        let mut within = Command::new("nsenter");
        within.arg(format!("--mount=/proc/{}/ns/mnt", self.keeper.id())).arg("--");
        self.finish(within, command)
    }

    /// The same, out of reach of what ends the processes of the test.
    pub(crate) fn apart(&self, command: &Command) -> Command {
        let mut apart = Command::new("setsid");
        apart.args(["nsenter", &format!("--mount=/proc/{}/ns/mnt", self.keeper.id()), "--"]);
        self.finish(apart, command)
    }

    fn finish(&self, mut outer: Command, command: &Command) -> Command {
        outer.arg(command.get_program()).args(command.get_args());
        outer.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        outer
    }

    /// Takes it away. What was started on it has ended.
    pub(crate) fn unmount(self) {
        let mut command = Command::new("umount");
        command.arg(self.path());
        let output = self.within(&command).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// A file system of this kind on a disk of its own, or a line that says why the test is not run.
pub(crate) fn mounted(test: &str, file_system: &str) -> Option<(Disk, Mount)> {
    let found = |tool: &&str| Command::new(tool).arg("--version").output().is_ok();
    let tools = ["unshare", "nsenter", "setsid", "fsfreeze", "umount"];
    let mounted = match tools.into_iter().find(|tool| !found(tool)) {
        Some(missing) => Err(format!("there is no {missing}")),
        None => Disk::new(file_system).and_then(|disk| Ok((Mount::new(&disk, file_system, "")?, disk))),
    };
    match mounted {
        Ok((mount, disk)) => Some((disk, mount)),
        Err(reason) => {
            tell(&format!("{test}: not run here on {file_system}: {reason}"));
            None
        }
    }
}

/// Whether that can be. Says why not.
pub(crate) fn is_possible(test: &str, file_system: &str) -> bool {
    mounted(test, file_system).is_some_and(|(disk, mount)| {
        mount.unmount();
        disk.release();
        true
    })
}
