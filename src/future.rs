//! Awaitable forms of what waits for the disk, for any async runtime.
//!
//! Reads and writes do not wait for the disk, but for writes in `Immediate` mode and at the bound of what is not durable, so they are
//! plain calls. What waits is done by threads: one for each store that is asked
//! waits for what is to become durable, for all who await it; a load and a close have one each.

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};

use crate::core::{Core, Engine, Patience};
use crate::error::{Error, Result};
use crate::janitor::Concern;
use crate::options::Options;
use crate::report::{CloseReport, LoadReport};
use crate::store::Store;
use crate::sync::{Condvar, Mutex, thread};

/// Something that is being done, and its result: for `.await`.
///
/// It is begun already, and is done whether or not anybody awaits it.
#[must_use = "what went wrong is told to whoever awaits it"]
pub struct Awaited<R>(Arc<Mutex<State<R>>>);

struct State<R> {
    done: Option<Result<R>>,
    taken: bool,
    waker: Option<Waker>,
}

/// Whoever does it. When it goes without a result, it tells that.
struct Doer<R>(Arc<Mutex<State<R>>>);

fn awaited<R>() -> (Doer<R>, Awaited<R>) {
    let state = Arc::new(Mutex::new(State { done: None, taken: false, waker: None }));
    (Doer(state.clone()), Awaited(state))
}

impl<R> Doer<R> {
    fn done(&self, result: Result<R>) {
        let waker = {
            let mut state = self.0.lock();
            if state.done.is_some() || state.taken {
                return;
            }
            state.done = Some(result);
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<R> Drop for Doer<R> {
    fn drop(&mut self) {
        self.done(Err(Error::Degraded { reason: "the thread that was to do it has gone".into(), source: None }));
    }
}

impl<R> fmt::Debug for Awaited<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Awaited").field("done", &self.0.lock().done.is_some()).finish()
    }
}

impl<R> Future for Awaited<R> {
    type Output = Result<R>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<R>> {
        // A waker's ways are the caller's code: with nothing locked.
        let mut waker = Some(context.waker().clone());
        let mut state = self.0.lock();
        let polled = match state.done.take() {
            Some(done) => {
                state.taken = true;
                Poll::Ready(done)
            }
            None => {
                std::mem::swap(&mut state.waker, &mut waker);
                Poll::Pending
            }
        };
        drop(state);
        drop(waker);
        polled
    }
}

thread_local! {
    /// The store whose writes do not wait on this thread, and what is to be waited for instead.
    static DEFERRED: RefCell<Option<(*const Core, Vec<Concern>)>> = const { RefCell::new(None) };
}

/// For more writes than this at once everything is waited for.
const MANY: usize = 256;

/// Somebody has used it: until then no write looks.
static USED: AtomicBool = AtomicBool::new(false);

/// Takes a write's concern, if its wait is left to somebody else. Otherwise it comes back.
pub(crate) fn defer(core: &Core, concern: Concern) -> Result<(), Concern> {
    DEFERRED.with_borrow_mut(|deferred| match deferred {
        Some((of, concerns)) if std::ptr::eq(*of, core) => {
            concerns.push(concern);
            Ok(())
        }
        _ => Err(concern),
    })
}

/// Whether writes to the store leave their wait to somebody else.
#[inline]
pub(crate) fn is_deferred(core: &Core) -> bool {
    let asks = |deferred: &RefCell<Option<(*const Core, Vec<Concern>)>>| {
        deferred.borrow().as_ref().is_some_and(|(of, _)| std::ptr::eq(*of, core))
    };
    // A thread that is ending has nothing deferred.
    USED.load(Ordering::Relaxed) && DEFERRED.try_with(asks).unwrap_or(false)
}

/// Puts back what was deferred before, also when the caller's code panics.
struct Restore(Option<(*const Core, Vec<Concern>)>);

impl Drop for Restore {
    fn drop(&mut self) {
        DEFERRED.set(self.0.take());
    }
}

/// What somebody awaits the durability of.
struct Job {
    concerns: Vec<Concern>,
    done: Box<dyn FnOnce(Result<()>) + Send>,
}

/// The thread that waits, for everybody.
#[derive(Default)]
pub(crate) struct Waiter {
    state: Mutex<Jobs>,
    changed: Condvar,
}

#[derive(Default)]
struct Jobs {
    jobs: Vec<Job>,
    started: bool,
    ending: bool,
    /// The janitor has stored everything, and gone.
    ended_well: bool,
}

impl Waiter {
    fn add(self: &Arc<Self>, core: &Arc<Core>, job: Job) {
        let mut state = self.state.lock();
        if state.ending {
            let done = if state.ended_well { Ok(()) } else { Err(core.closed()) };
            drop(state);
            return (job.done)(done);
        }
        if !state.started {
            let (waiter, weak) = (self.clone(), Arc::downgrade(core));
            let spawned = thread::Builder::new().name("larder-await".into()).spawn(move || waiter.run(&weak));
            if let Err(error) = spawned {
                drop(state);
                return (job.done)(Err(Error::io("start the thread that waits for", &core.path, error)));
            }
            state.started = true;
        }
        state.jobs.push(job);
        drop(state);
        self.changed.notify_all();
    }

    /// Nothing more is taken; what is there is still answered.
    pub(crate) fn end(&self) {
        self.state.lock().ending = true;
        self.changed.notify_all();
    }

    /// Everything is durable, and nothing will be written any more. To be told before the janitor stops to answer.
    pub(crate) fn ends_well(&self) {
        self.state.lock().ended_well = true;
    }

    fn run(&self, core: &Weak<Core>) {
        loop {
            let jobs = {
                let mut state = self.state.lock();
                loop {
                    if !state.jobs.is_empty() {
                        break std::mem::take(&mut state.jobs);
                    }
                    if state.ending {
                        return;
                    }
                    (state, _) = crate::sync::wait_for(&self.changed, state, std::time::Duration::from_secs(3600));
                }
            };
            // All are asked for before the first is waited for: they share a sync.
            let core = core.upgrade();
            let gone = || Error::Degraded { reason: "the store has gone".into(), source: None };
            let ask = |concerns| core.as_ref().ok_or_else(gone)?.ask_all(concerns);
            let asked: Vec<_> = jobs.into_iter().map(|job| (ask(job.concerns), job.done)).collect();
            // They wait at the same time: so they share their patience, too.
            let mut patience = Patience::default();
            let mut wait =
                |answers: Vec<_>| core.as_ref().map_or(Ok(()), |core| core.wait_for_all(&answers, &mut patience));
            for (asked, done) in asked {
                let waited = asked.and_then(&mut wait);
                // A close that went well has made everything durable.
                let waited = if waited.is_err() && self.state.lock().ended_well { Ok(()) } else { waited };
                // A waker, or the end of a result, is the caller's code.
                _ = catch_unwind(AssertUnwindSafe(|| done(waited)));
            }
        }
    }
}

impl Store {
    /// As [`flush`](Self::flush), for `.await`.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn block_on<R>(future: impl Future<Output = R>) -> R {
    /// #     let (mut future, waker) = (std::pin::pin!(future), std::task::Waker::noop());
    /// #     loop {
    /// #         if let std::task::Poll::Ready(done) = future.as_mut().poll(&mut std::task::Context::from_waker(waker)) {
    /// #             return done;
    /// #         }
    /// #     }
    /// # }
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let path = dir.path().join("music");
    /// # block_on(async {
    /// let store = larder::Store::open(path)?;
    /// store.put("artist/bjork", "Iceland")?;
    /// store.flush_async().await?;
    /// # Ok::<(), larder::Error>(())
    /// # })?;
    /// # Ok::<(), larder::Error>(())
    /// ```
    pub fn flush_async(&self) -> Awaited<()> {
        let (doer, awaited) = awaited();
        match self.handle().engine() {
            Err(error) => doer.done(Err(error)),
            Ok(engine) => self.wait_for(engine, vec![Concern::Everything], move |done| doer.done(done)),
        }
        awaited
    }

    /// Runs `writes`, now and on this thread, and gives its result when everything that it has written to this store is durable,
    /// also if that is an error, whatever the store's [`Durability`](crate::Durability): the awaitable form of any write. Its
    /// writes do not wait for the disk even in `Immediate` mode, unless the bytes not yet durable are at their
    /// [bound](crate::Options::max_unsaved).
    ///
    /// One within another waits for its own writes; those to another store than its own wait at once.
    ///
    /// The errors are those of `writes`, and of [`flush`](Self::flush) for what it has written.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn block_on<R>(future: impl Future<Output = R>) -> R {
    /// #     let (mut future, waker) = (std::pin::pin!(future), std::task::Waker::noop());
    /// #     loop {
    /// #         if let std::task::Poll::Ready(done) = future.as_mut().poll(&mut std::task::Context::from_waker(waker)) {
    /// #             return done;
    /// #         }
    /// #     }
    /// # }
    /// use larder::{Durability, Store};
    ///
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let path = dir.path().join("music");
    /// # block_on(async {
    /// let store = Store::options(path).durability(Durability::Immediate).open_async().await?;
    /// let artists = store.collection::<String>("artist")?;
    /// let old = store.write_async(|| artists.put("bjork", "Iceland".into())).await?;
    /// assert_eq!(old, None);
    /// store.close_async().await?;
    /// # Ok::<(), larder::Error>(())
    /// # })?;
    /// # Ok::<(), larder::Error>(())
    /// ```
    pub fn write_async<R: Send + 'static>(&self, writes: impl FnOnce() -> Result<R>) -> Awaited<R> {
        let (doer, awaited) = awaited();
        USED.store(true, Ordering::Relaxed);
        let core = Arc::as_ptr(self.core_handle());
        let restore = Restore(DEFERRED.replace(Some((core, Vec::new()))));
        let written = writes();
        let mut concerns = DEFERRED.take().map(|(_, concerns)| concerns).unwrap_or_default();
        if concerns.len() > MANY {
            concerns = vec![Concern::Everything];
        }
        drop(restore);
        // Also one that is closed by now, which may have made everything durable.
        match self.core().engine().filter(|_| !concerns.is_empty()) {
            None => doer.done(written),
            Some(engine) => {
                self.wait_for(engine, concerns, move |done| {
                    doer.done(written.and_then(|written| done.map(|()| written)));
                });
            }
        }
        awaited
    }

    fn wait_for(&self, engine: &Engine, concerns: Vec<Concern>, done: impl FnOnce(Result<()>) + Send + 'static) {
        if !engine.persists() {
            return done(Ok(()));
        }
        engine.waiter.add(self.core_handle(), Job { concerns, done: Box::new(done) });
    }

    /// As [`load`](Self::load), for `.await`.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn block_on<R>(future: impl Future<Output = R>) -> R {
    /// #     let (mut future, waker) = (std::pin::pin!(future), std::task::Waker::noop());
    /// #     loop {
    /// #         if let std::task::Poll::Ready(done) = future.as_mut().poll(&mut std::task::Context::from_waker(waker)) {
    /// #             return done;
    /// #         }
    /// #     }
    /// # }
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let path = dir.path().join("music");
    /// # block_on(async {
    /// let store = larder::Store::new(path)?;
    /// let report = store.load_async().await?;
    /// assert_eq!(report.members, 0);
    /// # Ok::<(), larder::Error>(())
    /// # })?;
    /// # Ok::<(), larder::Error>(())
    /// ```
    pub fn load_async(&self) -> Awaited<LoadReport> {
        let store = self.clone();
        on_a_thread("larder-load", self, move || store.load())
    }

    /// As [`close`](Self::close), for `.await`.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn block_on<R>(future: impl Future<Output = R>) -> R {
    /// #     let (mut future, waker) = (std::pin::pin!(future), std::task::Waker::noop());
    /// #     loop {
    /// #         if let std::task::Poll::Ready(done) = future.as_mut().poll(&mut std::task::Context::from_waker(waker)) {
    /// #             return done;
    /// #         }
    /// #     }
    /// # }
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let path = dir.path().join("music");
    /// # block_on(async {
    /// let store = larder::Store::open(path)?;
    /// store.put("artist/bjork", "Iceland")?;
    /// assert_eq!(store.close_async().await?.members, 1);
    /// # Ok::<(), larder::Error>(())
    /// # })?;
    /// # Ok::<(), larder::Error>(())
    /// ```
    pub fn close_async(&self) -> Awaited<CloseReport> {
        let store = self.clone();
        on_a_thread("larder-close", self, move || store.close())
    }
}

impl Options {
    /// As [`open`](Self::open), for `.await`.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn block_on<R>(future: impl Future<Output = R>) -> R {
    /// #     let (mut future, waker) = (std::pin::pin!(future), std::task::Waker::noop());
    /// #     loop {
    /// #         if let std::task::Poll::Ready(done) = future.as_mut().poll(&mut std::task::Context::from_waker(waker)) {
    /// #             return done;
    /// #         }
    /// #     }
    /// # }
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let path = dir.path().join("music");
    /// # block_on(async {
    /// let store = larder::Store::options(path).open_async().await?;
    /// assert!(store.collections()?.is_empty());
    /// # Ok::<(), larder::Error>(())
    /// # })?;
    /// # Ok::<(), larder::Error>(())
    /// ```
    pub async fn open_async(self) -> Result<Store> {
        let store = self.build()?;
        store.load_async().await?;
        Ok(store)
    }
}

fn on_a_thread<R: Send + 'static>(
    name: &str,
    store: &Store,
    work: impl FnOnce() -> Result<R> + Send + 'static,
) -> Awaited<R> {
    let (doer, awaited) = awaited();
    let doer = Arc::new(doer);
    let for_thread = doer.clone();
    let spawned = thread::Builder::new().name(name.into()).spawn(move || for_thread.done(work()));
    if let Err(error) = spawned {
        doer.done(Err(Error::io("start a thread for", store.path(), error)));
    }
    awaited
}
