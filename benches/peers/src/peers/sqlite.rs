//! [SQLite](https://sqlite.org), through [rusqlite](https://docs.rs/rusqlite): a B-tree with a write-ahead log, one writer
//! at a time.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension};

use super::{Contender, Peer, Writer, locked_version};
use crate::Result;
use crate::input::Member;
use crate::measure::Lap;

pub(super) const CONTENDER: Contender = Contender {
    name: "SQLite",
    version: || format!("{} (rusqlite {}, bundled)", rusqlite::version(), locked_version("rusqlite")),
    durable: "`WITHOUT ROWID`, `journal_mode=WAL`, `synchronous=FULL`; a connection for each thread, `busy_timeout`, a \
              prepared statement, each write a transaction",
    bulk: "the same, `cache_size` of 256 MiB, one transaction for all",
    open: |dir, _| Ok(Box::new(Sqlite::open(dir)?)),
};

const TABLE: &str = "CREATE TABLE IF NOT EXISTS members (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID";
const PUT: &str = "INSERT INTO members VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = excluded.value";
const GET: &str = "SELECT value FROM members WHERE key = ?1";

/// More than any writer waits for the others.
const PATIENCE: Duration = Duration::from_secs(60);

/// In KiB, and negative, as SQLite wants it.
const CACHE: i64 = -(256 << 10);

/// One connection stays open: when the last one goes, SQLite puts the log into the database and removes it.
struct Sqlite {
    path: PathBuf,
    first: Mutex<Connection>,
}

impl Sqlite {
    fn open(dir: &Path) -> Result<Sqlite> {
        let path = dir.join("members.sqlite");
        let first = connect(&path)?;
        first.execute_batch(TABLE)?;
        Ok(Sqlite { path, first: Mutex::new(first) })
    }

    fn first(&self) -> std::sync::MutexGuard<'_, Connection> {
        self.first.lock().expect("a user of the first connection panicked")
    }
}

fn connect(path: &Path) -> Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(PATIENCE)?;
    let mode: String = connection.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))?;
    connection.pragma_update(None, "synchronous", "full")?;
    let synchronous: i64 = connection.pragma_query_value(None, "synchronous", |row| row.get(0))?;
    if mode != "wal" || synchronous != 2 {
        return Err(format!("SQLite is in mode {mode}, synchronous {synchronous}").into());
    }
    Ok(connection)
}

impl Peer for Sqlite {
    fn writer(&self) -> Result<Box<dyn Writer + '_>> {
        Ok(Box::new(connect(&self.path)?))
    }

    fn load(&self, members: &[Member], _lap: &mut Lap) -> Result<()> {
        let mut connection = self.first();
        connection.pragma_update(None, "cache_size", CACHE)?;
        let transaction = connection.transaction()?;
        let mut put = transaction.prepare_cached(PUT)?;
        for Member { key, value } in members {
            put.execute((key, &value[..]))?;
        }
        drop(put);
        Ok(transaction.commit()?)
    }

    fn holds(&self, member: &Member) -> Result<bool> {
        let connection = self.first();
        let mut get = connection.prepare_cached(GET)?;
        let value: Option<Vec<u8>> = get.query_row([&member.key], |row| row.get(0)).optional()?;
        Ok(value.is_some_and(|value| value == member.value))
    }

    fn read_all(&self) -> Result<usize> {
        let connection = self.first();
        let mut all = connection.prepare("SELECT key, value FROM members")?;
        let mut rows = all.query([])?;
        let mut bytes = 0;
        while let Some(row) = rows.next()? {
            let (key, value) = (row.get_ref(0)?.as_bytes()?, row.get_ref(1)?.as_bytes()?);
            bytes += key.len() + usize::from(value[0] & 1) + value.len();
        }
        Ok(bytes)
    }

    fn close(self: Box<Self>) -> Result<()> {
        let connection = self.first.into_inner().expect("a user of the first connection panicked");
        connection.close().map_err(|(_, error)| error.into())
    }
}

impl Writer for Connection {
    fn put(&mut self, key: &str, value: &[u8]) -> Result<()> {
        self.prepare_cached(PUT)?.execute((key, value))?;
        Ok(())
    }
}
