//! Locks, atomics, threads and channels: the one place that decides which implementation the crate runs on.
//!
//! Normally that is parking_lot, std and crossbeam-channel. Built with `--cfg shuttle` it is the shuttle model checker,
//! which runs the same code above this module under schedules of its own choosing.

#[cfg(not(shuttle))]
mod real {
    pub(crate) use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
    pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
    pub(crate) use std::sync::atomic;
    pub(crate) use std::thread;

    use std::time::Duration;

    /// Waits for a notification or for `limit` to pass; true when it was the time that ended the wait.
    pub(crate) fn wait_for<'a, T>(
        condvar: &Condvar,
        mut guard: MutexGuard<'a, T>,
        limit: Duration,
    ) -> (MutexGuard<'a, T>, bool) {
        let timed_out = condvar.wait_for(&mut guard, limit).timed_out();
        (guard, timed_out)
    }

    /// The hasher of names in RAM: seeded at random, and never used for anything on a disk.
    pub(crate) use foldhash::fast::RandomState as NameHasher;

    /// What tells one thread from another.
    pub(crate) type ThreadId = std::thread::ThreadId;
}

#[cfg(not(shuttle))]
pub(crate) use real::*;

#[cfg(shuttle)]
mod model {
    pub(crate) use shuttle::sync::atomic;
    pub(crate) use shuttle::thread;

    /// A schedule can be replayed only if nothing else is random.
    pub(crate) use foldhash::fast::FixedState as NameHasher;

    use std::collections::VecDeque;
    use std::sync::PoisonError;
    use std::time::Duration;

    pub(crate) type ThreadId = shuttle::thread::ThreadId;
    pub(crate) type MutexGuard<'a, T> = shuttle::sync::MutexGuard<'a, T>;
    pub(crate) type RwLockWriteGuard<'a, T> = shuttle::sync::RwLockWriteGuard<'a, T>;
    pub(crate) type RwLockReadGuard<'a, T> = shuttle::sync::RwLockReadGuard<'a, T>;
    pub(crate) type Condvar = shuttle::sync::Condvar;

    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(shuttle::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Mutex(shuttle::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }

    #[derive(Debug, Default)]
    pub(crate) struct RwLock<T>(shuttle::sync::RwLock<T>);

    impl<T> RwLock<T> {
        pub(crate) fn new(value: T) -> Self {
            RwLock(shuttle::sync::RwLock::new(value))
        }

        pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
            self.0.read().unwrap_or_else(PoisonError::into_inner)
        }

        pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
            self.0.write().unwrap_or_else(PoisonError::into_inner)
        }
    }

    /// The model has no clock: the wait either is notified or, with nothing else left to run, is a deadlock it reports.
    pub(crate) fn wait_for<'a, T>(
        condvar: &Condvar,
        guard: MutexGuard<'a, T>,
        _limit: Duration,
    ) -> (MutexGuard<'a, T>, bool) {
        (condvar.wait(guard).unwrap_or_else(PoisonError::into_inner), false)
    }

    struct Queue<T> {
        state: Mutex<State<T>>,
        arrived: Condvar,
    }

    struct State<T> {
        items: VecDeque<T>,
        bound: Option<usize>,
        senders: usize,
        receiver_gone: bool,
    }

    pub(crate) struct Sender<T>(std::sync::Arc<Queue<T>>);
    pub(crate) struct Receiver<T>(std::sync::Arc<Queue<T>>);

    impl<T> std::fmt::Debug for Sender<T> {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("Sender")
        }
    }

    #[derive(Debug, PartialEq, Eq)]
    pub(crate) enum TryRecvError {
        Empty,
        Disconnected,
    }

    #[derive(Debug, PartialEq, Eq)]
    pub(crate) enum RecvTimeoutError {
        Timeout,
        Disconnected,
    }

    pub(crate) fn unbounded<T>() -> (Sender<T>, Receiver<T>) {
        channel(None)
    }

    pub(crate) fn bounded<T>(bound: usize) -> (Sender<T>, Receiver<T>) {
        channel(Some(bound))
    }

    fn channel<T>(bound: Option<usize>) -> (Sender<T>, Receiver<T>) {
        let state = State { items: VecDeque::new(), bound, senders: 1, receiver_gone: false };
        let queue = std::sync::Arc::new(Queue { state: Mutex::new(state), arrived: Condvar::new() });
        (Sender(queue.clone()), Receiver(queue))
    }

    impl<T> Sender<T> {
        pub(crate) fn send(&self, item: T) -> Result<(), T> {
            self.try_send(item)
        }

        pub(crate) fn try_send(&self, item: T) -> Result<(), T> {
            let mut state = self.0.state.lock();
            if state.receiver_gone || state.bound.is_some_and(|bound| state.items.len() >= bound) {
                return Err(item);
            }
            state.items.push_back(item);
            drop(state);
            self.0.arrived.notify_one();
            Ok(())
        }

        pub(crate) fn len(&self) -> usize {
            self.0.state.lock().items.len()
        }
    }

    impl<T> Clone for Sender<T> {
        fn clone(&self) -> Self {
            self.0.state.lock().senders += 1;
            Sender(self.0.clone())
        }
    }

    impl<T> Drop for Sender<T> {
        fn drop(&mut self) {
            self.0.state.lock().senders -= 1;
            self.0.arrived.notify_all();
        }
    }

    impl<T> Receiver<T> {
        pub(crate) fn len(&self) -> usize {
            self.0.state.lock().items.len()
        }

        pub(crate) fn recv(&self) -> Result<T, TryRecvError> {
            let mut state = self.0.state.lock();
            loop {
                if let Some(item) = state.items.pop_front() {
                    return Ok(item);
                }
                if state.senders == 0 {
                    return Err(TryRecvError::Disconnected);
                }
                state = self.0.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }

        pub(crate) fn try_recv(&self) -> Result<T, TryRecvError> {
            let mut state = self.0.state.lock();
            match state.items.pop_front() {
                Some(item) => Ok(item),
                None if state.senders == 0 => Err(TryRecvError::Disconnected),
                None => Err(TryRecvError::Empty),
            }
        }

        /// A pause is a chance to run something else. A receiver that needs an item has to come back.
        pub(crate) fn recv_timeout(&self, _limit: Duration) -> Result<T, RecvTimeoutError> {
            shuttle::thread::yield_now();
            self.try_recv().map_err(|error| match error {
                TryRecvError::Empty => RecvTimeoutError::Timeout,
                TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
            })
        }
    }

    impl<T> Drop for Receiver<T> {
        fn drop(&mut self) {
            let items = {
                let mut state = self.0.state.lock();
                state.receiver_gone = true;
                std::mem::take(&mut state.items)
            };
            drop(items);
        }
    }
}

#[cfg(shuttle)]
pub(crate) use model::*;
