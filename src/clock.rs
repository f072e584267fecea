//! The time, as a store knows it.
//!
//! A read does not ask the system: it compares a deadline with a number in memory, which whoever has asked brings up to
//! date, above all the thread that waits for the next deadline. The number never goes back, so that what is gone stays gone.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, Ordering};

/// Somebody who waits for a time to come.
pub(crate) trait Waits: Send + Sync {
    /// The time has been changed by hand.
    fn look_again(&self);
}

/// Milliseconds since 1970, up to the last that larder can write.
pub(crate) const LAST: u64 = u64::MAX - 1;

pub(crate) struct Clock {
    /// What has a deadline of this or less is gone.
    reached: AtomicU64,
    /// The time is what somebody says.
    by_hand: bool,
    waiting: Mutex<Vec<Weak<dyn Waits>>>,
}

impl Clock {
    pub(crate) fn of_system() -> Clock {
        Clock { reached: AtomicU64::new(0), by_hand: false, waiting: Mutex::new(Vec::new()) }
    }

    /// The time as it was last known: for reads.
    #[inline]
    pub(crate) fn reached(&self) -> u64 {
        self.reached.load(Ordering::Acquire)
    }

    /// The time, asked of the system.
    pub(crate) fn now(&self) -> u64 {
        if self.by_hand {
            return self.reached();
        }
        let now = milliseconds(SystemTime::now());
        self.reached.fetch_max(now, Ordering::AcqRel).max(now)
    }

    /// The deadline of what has so long to live.
    pub(crate) fn after(&self, ttl: Duration) -> u64 {
        // One that is begun counts: nothing expires early.
        let ttl = u64::try_from(ttl.as_nanos().div_ceil(1_000_000)).unwrap_or(LAST);
        self.now().saturating_add(ttl).min(LAST)
    }

    /// How long it is until then, at most, as far as that can be told.
    pub(crate) fn until(&self, deadline: u64) -> Option<Duration> {
        (!self.by_hand).then(|| Duration::from_millis(deadline.saturating_sub(self.now())))
    }

    pub(crate) fn register(&self, waits: Weak<dyn Waits>) {
        let mut waiting = self.waiting.lock();
        waiting.retain(|other| other.strong_count() > 0);
        waiting.push(waits);
    }
}

fn milliseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(LAST)
}

/// A clock that goes when you say so, for tests of what expires. Give it to a store with
/// [`Options::clock`](crate::Options::clock).
///
/// A handle: clones show the same time.
///
/// # Examples
///
/// ```
/// use std::time::{Duration, UNIX_EPOCH};
/// use larder::{ManualClock, Store};
///
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("sessions");
/// let clock = ManualClock::new(UNIX_EPOCH + Duration::from_secs(1_000_000_000));
/// let store = Store::options(path).clock(&clock).open()?;
/// store.put_with_ttl("session/abc", "{}", Duration::from_secs(60))?;
/// clock.advance(Duration::from_millis(59_999));
/// assert!(store.contains("session/abc")?);
/// clock.advance(Duration::from_millis(1));
/// assert!(!store.contains("session/abc")?);
/// # Ok::<(), larder::Error>(())
/// ```
#[derive(Clone)]
pub struct ManualClock(pub(crate) Arc<Clock>);

impl ManualClock {
    /// A clock that shows this time, to the millisecond.
    pub fn new(time: SystemTime) -> ManualClock {
        let reached = AtomicU64::new(milliseconds(time));
        ManualClock(Arc::new(Clock { reached, by_hand: true, waiting: Mutex::new(Vec::new()) }))
    }

    /// Goes on by so long; parts of a millisecond are left out.
    pub fn advance(&self, by: Duration) {
        let by = u64::try_from(by.as_millis()).unwrap_or(LAST);
        let later = |time: u64| Some(time.saturating_add(by).min(LAST));
        // It always gives one.
        _ = self.0.reached.fetch_update(Ordering::AcqRel, Ordering::Acquire, later);
        let waiting: Vec<_> = self.0.waiting.lock().iter().filter_map(Weak::upgrade).collect();
        waiting.iter().for_each(|waits| waits.look_again());
    }

    /// The time that it shows.
    pub fn now(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.0.reached().min(LAST >> 12))
    }
}

impl fmt::Debug for ManualClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ManualClock").field(&self.now()).finish()
    }
}
