//! [SQLite](https://sqlite.org), through [rusqlite](https://docs.rs/rusqlite): a B-tree with a write-ahead log, one writer
//! at a time.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use rusqlite::Connection;

use super::{Contender, Peer, Session, Work, locked_version, range_of, weight};
use crate::Result;
use crate::input::Member;
use crate::measure::Lap;

pub(super) const CONTENDER: Contender = Contender {
    name: "SQLite",
    version: || format!("{} (rusqlite {}, bundled)", rusqlite::version(), locked_version("rusqlite")),
    durable: "`WITHOUT ROWID`, `journal_mode=WAL`, `synchronous=FULL`; a connection for each thread, `busy_timeout`, a \
              prepared statement, each write a transaction",
    bulk: "the same, `cache_size` of 256 MiB, one transaction for all",
    unsynced: "the same, `synchronous=NORMAL`, which syncs at checkpoints only",
    collections: "a range of keys in `WHERE`",
    open: |dir, work| Ok(Box::new(Sqlite::open(dir, work)?)),
    makes_files: false,
};

const TABLE: &str = "CREATE TABLE IF NOT EXISTS members (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID";
const PUT: &str = "INSERT INTO members VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = excluded.value";
const GET: &str = "SELECT value FROM members WHERE key = ?1";
const GET_ALL: &str = "SELECT key, value FROM members WHERE key >= ?1 AND key < ?2";
const DELETE_ALL: &str = "DELETE FROM members WHERE key >= ?1 AND key < ?2";

/// More than any writer waits for the others.
const PATIENCE: Duration = Duration::from_secs(60);

/// In KiB, and negative, as SQLite wants it.
const CACHE: i64 = -(256 << 10);

/// One connection stays open: when the last one goes, SQLite puts the log into the database and removes it.
struct Sqlite {
    path: PathBuf,
    first: Mutex<Connection>,
    work: Work,
}

impl Sqlite {
    fn open(dir: &Path, work: Work) -> Result<Sqlite> {
        let path = dir.join("members.sqlite");
        let first = connect(&path, work)?;
        first.execute_batch(TABLE)?;
        Ok(Sqlite { path, first: Mutex::new(first), work })
    }

    fn first(&self) -> std::sync::MutexGuard<'_, Connection> {
        self.first.lock().expect("a user of the first connection panicked")
    }
}

fn connect(path: &Path, work: Work) -> Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(PATIENCE)?;
    let mode: String = connection.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))?;
    let (name, number) = if work == Work::Unsynced { ("normal", 1) } else { ("full", 2) };
    connection.pragma_update(None, "synchronous", name)?;
    let synchronous: i64 = connection.pragma_query_value(None, "synchronous", |row| row.get(0))?;
    if work != Work::Durable {
        connection.pragma_update(None, "cache_size", CACHE)?;
    }
    if mode != "wal" || synchronous != number {
        return Err(format!("SQLite is in mode {mode}, synchronous {synchronous}").into());
    }
    Ok(connection)
}

/// In a transaction of their own.
fn put_all<'a>(connection: &mut Connection, members: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Result<()> {
    let transaction = connection.transaction()?;
    let mut put = transaction.prepare_cached(PUT)?;
    for member in members {
        put.execute(member)?;
    }
    drop(put);
    Ok(transaction.commit()?)
}

impl Peer for Sqlite {
    fn session(&self) -> Result<Box<dyn Session + '_>> {
        Ok(Box::new(connect(&self.path, self.work)?))
    }

    fn load(&self, members: &[Member], _lap: &mut Lap) -> Result<()> {
        put_all(&mut self.first(), members.iter().map(|Member { key, value }| (key.as_str(), &value[..])))
    }

    fn settle(&self) -> Result<()> {
        let checkpoint = "PRAGMA wal_checkpoint(TRUNCATE)";
        Ok(self.first().query_row(checkpoint, [], |_| Ok(()))?)
    }

    fn read_all(&self) -> Result<usize> {
        let connection = self.first();
        let mut all = connection.prepare("SELECT key, value FROM members")?;
        let mut rows = all.query([])?;
        let mut sum = 0;
        while let Some(row) = rows.next()? {
            sum += weight(row.get_ref(0)?.as_bytes()?.len(), row.get_ref(1)?.as_bytes()?);
        }
        Ok(sum)
    }

    fn close(self: Box<Self>) -> Result<()> {
        let connection = self.first.into_inner().expect("a user of the first connection panicked");
        connection.close().map_err(|(_, error)| error.into())
    }
}

impl Session for Connection {
    fn put(&mut self, key: &str, value: &[u8]) -> Result<()> {
        self.prepare_cached(PUT)?.execute((key, value))?;
        Ok(())
    }

    fn put_batch(&mut self, members: &[(&str, &[u8])]) -> Result<()> {
        put_all(self, members.iter().copied())
    }

    fn get(&mut self, key: &str, show: &mut dyn FnMut(&[u8])) -> Result<bool> {
        let mut get = self.prepare_cached(GET)?;
        let mut rows = get.query([key])?;
        let Some(row) = rows.next()? else { return Ok(false) };
        show(row.get_ref(0)?.as_bytes()?);
        Ok(true)
    }

    fn get_batch(&mut self, keys: &[&str], show: &mut dyn FnMut(&[u8])) -> Result<usize> {
        self.execute_batch("BEGIN")?;
        let mut found = 0;
        for key in keys {
            found += usize::from(self.get(key, show)?);
        }
        self.execute_batch("COMMIT")?;
        Ok(found)
    }

    fn get_all(&mut self, collection: &str, show: &mut dyn FnMut(&[u8], &[u8])) -> Result<()> {
        let range = range_of(collection);
        let mut all = self.prepare_cached(GET_ALL)?;
        let mut rows = all.query([range.start, range.end])?;
        while let Some(row) = rows.next()? {
            show(row.get_ref(0)?.as_bytes()?, row.get_ref(1)?.as_bytes()?);
        }
        Ok(())
    }

    fn delete_all(&mut self, collection: &str) -> Result<()> {
        let range = range_of(collection);
        self.prepare_cached(DELETE_ALL)?.execute([range.start, range.end])?;
        Ok(())
    }
}
