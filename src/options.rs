//! Every knob of a store, with its default.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::backend::{self, Backend, Files, Layout, Memory, Packed, Progress};
use crate::clock::{Clock, ManualClock};
use crate::error::Result;
use crate::report::no_path;
use crate::store::Store;

/// When a write becomes durable: when no crash of the process or the machine can lose it any more.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Handed to the operating system as soon as the janitor comes to it, and made durable by `flush`, `close`, and at
    /// least every five seconds.
    Buffered,
    /// Durable within this time and one sync.
    Interval(Duration),
    /// Durable before the write returns. Writers that wait at the same time share one sync.
    Immediate,
}

impl Default for Durability {
    /// An interval of 100 ms.
    fn default() -> Self {
        Durability::Interval(Duration::from_millis(100))
    }
}

/// Every knob of a store. Made by [`Store::options`].
///
/// ```
/// use std::time::Duration;
/// use larder::{Durability, Store};
///
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("music");
/// let store = Store::options(path)
///     .durability(Durability::Interval(Duration::from_millis(20)))
///     .max_unsaved(16 << 20)
///     .open()?;
/// # Ok::<(), larder::Error>(())
/// ```
#[must_use = "options do nothing until they are opened"]
pub struct Options {
    pub(crate) path: PathBuf,
    pub(crate) knobs: Knobs,
    pub(crate) layout: Option<Layout>,
    pub(crate) backend: Option<Box<dyn Backend>>,
    pub(crate) progress: Option<Box<dyn FnMut(Progress) + Send>>,
    pub(crate) clock: Arc<Clock>,
}

/// The knobs that are plain values.
#[derive(Debug, Clone)]
pub(crate) struct Knobs {
    pub(crate) durability: Durability,
    pub(crate) max_unsaved: usize,
    pub(crate) max_journal: u64,
    pub(crate) write_timeout: Duration,
    pub(crate) stall_timeout: Duration,
    pub(crate) quarantine_undecodable: bool,
}

impl Default for Knobs {
    fn default() -> Self {
        Knobs {
            durability: Durability::default(),
            max_unsaved: 256 << 20,
            max_journal: 256 << 20,
            write_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(30),
            quarantine_undecodable: false,
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options").field("path", &self.path).field("knobs", &self.knobs).finish_non_exhaustive()
    }
}

impl Options {
    pub(crate) fn new(path: PathBuf) -> Options {
        Options {
            path,
            knobs: Knobs::default(),
            layout: None,
            backend: None,
            progress: None,
            clock: Arc::new(Clock::of_system()),
        }
    }

    pub(crate) fn in_memory() -> Options {
        Options::new(no_path()).backend(Memory)
    }

    /// When a write becomes durable. Default: `Interval` of 100 ms.
    pub fn durability(mut self, durability: Durability) -> Self {
        self.knobs.durability = durability;
        self
    }

    /// The most bytes (names and values) that may be written and not yet durable. At this bound writers wait for the
    /// disk; a single larger value is let in alone. A value of a type counts as its size in RAM, without what it points to,
    /// until it is encoded. Default: 256 MiB.
    pub fn max_unsaved(mut self, bytes: usize) -> Self {
        self.knobs.max_unsaved = bytes;
        self
    }

    /// The most bytes in the journal that have not come to rest in files. At this bound the janitor waits for the files,
    /// and with it, once [`max_unsaved`](Self::max_unsaved) is reached too, the writers. The journal's directory can
    /// be larger by one segment, of at most 8 MiB and one value. Default: 256 MiB. In a packed store the journal is where
    /// members are at rest, and this is of no account.
    pub fn max_journal(mut self, bytes: u64) -> Self {
        self.knobs.max_journal = bytes;
        self
    }

    /// How long a write waits at the bound of unsaved bytes before it fails with [`Error::Degraded`](crate::Error::Degraded). While
    /// the disk is failing it does not wait. Default: 10 s.
    pub fn write_timeout(mut self, limit: Duration) -> Self {
        self.knobs.write_timeout = limit;
        self
    }

    /// How long `flush`, `close` and the drop of the last handle wait for a disk that makes no progress at all, and from
    /// when on `health` calls it failing. With zero they do not wait at all, and fail. Default: 30 s.
    pub fn stall_timeout(mut self, limit: Duration) -> Self {
        self.knobs.stall_timeout = limit;
        self
    }

    /// Whether members that do not decode when a collection is opened as a type are put into quarantine, rather than
    /// making the opening fail. They are added to [`Store::load_report`]. Default: no.
    pub fn quarantine_undecodable(mut self, yes: bool) -> Self {
        self.knobs.quarantine_undecodable = yes;
        self
    }

    /// How the store keeps its members. Without it a store that is there is opened as it is, and a new one keeps them in
    /// files of their own. [`convert`](crate::convert) moves a store from one to the other.
    pub fn layout(mut self, layout: Layout) -> Self {
        self.layout = Some(layout);
        self
    }

    /// A backend other than the embedded ones. The path is then no more than the store's name in errors: nothing
    /// is looked for or made there.
    pub fn backend(mut self, backend: impl Backend + 'static) -> Self {
        self.backend = Some(Box::new(backend));
        self
    }

    /// The clock that says when members expire, in place of the system's: for tests.
    pub fn clock(mut self, clock: &ManualClock) -> Self {
        self.clock = clock.0.clone();
        self
    }

    /// Called now and then by `load`, and by a `close` that takes a while, on the thread that loads or closes.
    pub fn on_progress(mut self, callback: impl FnMut(Progress) + Send + 'static) -> Self {
        self.progress = Some(Box::new(callback));
        self
    }

    /// The store, not loaded yet.
    ///
    /// # Errors
    ///
    /// If the path cannot be a store, or what it keeps its members in cannot be told. Nothing is created.
    pub fn build(mut self) -> Result<Store> {
        if self.backend.is_none() {
            let layout = match self.layout {
                Some(layout) => layout,
                None => backend::layout_of(&self.path)?.unwrap_or_default(),
            };
            self.layout = Some(layout);
            let (path, backend): (PathBuf, Box<dyn Backend>) = match layout {
                Layout::Files => {
                    let files = Files::new(&self.path)?.max_journal(self.knobs.max_journal);
                    (files.path().to_owned(), Box::new(files))
                }
                Layout::Packed => {
                    let packed = Packed::new(&self.path)?;
                    (packed.path().to_owned(), Box::new(packed))
                }
            };
            (self.path, self.backend) = (path, Some(backend));
        }
        Ok(Store::from_options(self))
    }

    /// The store, loaded.
    ///
    /// # Errors
    ///
    /// As [`build`](Self::build) and [`Store::load`].
    pub fn open(self) -> Result<Store> {
        let store = self.build()?;
        store.load()?;
        Ok(store)
    }
}
