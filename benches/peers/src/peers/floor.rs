//! What the disk allows.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;

use super::{Contender, Peer, Session};
use crate::Result;
use crate::input::Member;
use crate::measure::Lap;

pub(super) const CONTENDER: Contender = Contender {
    name: "floor",
    version: || "-".to_owned(),
    durable: "one thread; a record of 130 bytes is appended, and `fdatasync`; the file was written to its size, with zeros, \
              beforehand",
    bulk: "the same records, appended 1 MiB at a time, and one `fdatasync`",
    unsynced: "",
    collections: "",
    open: |dir, _| Ok(Box::new(Floor::open(dir)?)),
    makes_files: false,
};

/// A key of 25 bytes, a value of 100, and five for a length and the like.
pub(crate) const RECORD: usize = 130;

/// The file is long enough for a million records. Whoever comes to its end begins again.
const FILE: usize = RECORD << 20;

/// Records go to the system in pieces of this size when they need not be durable one by one.
const PIECE: usize = 1 << 20;

/// One file, to whose end records are appended. The end is not that of the file: there are zeros behind it.
pub(crate) struct Floor {
    file: File,
    end: Mutex<usize>,
}

impl Floor {
    pub(crate) fn open(dir: &Path) -> Result<Floor> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(dir.join("floor"))?;
        if file.metadata()?.len() < FILE as u64 {
            let zeros = vec![0; PIECE];
            for at in (0..FILE).step_by(PIECE) {
                file.write_all_at(&zeros[..PIECE.min(FILE - at)], at as u64)?;
            }
            file.sync_all()?;
        }
        Ok(Floor { file, end: Mutex::new(0) })
    }

    fn append(&self, bytes: &[u8]) -> Result<()> {
        let mut end = self.end.lock().expect("a writer panicked");
        if *end + bytes.len() > FILE {
            *end = 0;
        }
        self.file.write_all_at(bytes, *end as u64)?;
        *end += bytes.len();
        Ok(())
    }

    pub(crate) fn append_durably(&self, record: &[u8; RECORD]) -> Result<()> {
        self.append(record)?;
        Ok(self.file.sync_data()?)
    }
}

fn record(key: &str, value: &[u8]) -> [u8; RECORD] {
    let mut record = [b'.'; RECORD];
    let (name, rest) = record.split_at_mut(key.len());
    name.copy_from_slice(key.as_bytes());
    rest[..value.len()].copy_from_slice(value);
    record
}

impl Peer for Floor {
    fn session(&self) -> Result<Box<dyn Session + '_>> {
        Ok(Box::new(self))
    }

    fn load(&self, members: &[Member], _lap: &mut Lap) -> Result<()> {
        let mut piece = Vec::with_capacity(PIECE);
        for Member { key, value } in members {
            if piece.len() + RECORD > PIECE {
                self.append(&piece)?;
                piece.clear();
            }
            piece.extend(record(key, value));
        }
        self.append(&piece)?;
        self.settle()
    }

    fn settle(&self) -> Result<()> {
        Ok(self.file.sync_data()?)
    }

    /// It cannot look anything up.
    fn holds(&self, _member: &Member) -> Result<bool> {
        Ok(true)
    }

    fn read_all(&self) -> Result<usize> {
        Ok(0)
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

impl Session for &Floor {
    fn put(&mut self, key: &str, value: &[u8]) -> Result<()> {
        self.append_durably(&record(key, value))
    }

    fn get(&mut self, _key: &str, _show: &mut dyn FnMut(&[u8])) -> Result<bool> {
        Err("it cannot look anything up".into())
    }
}
