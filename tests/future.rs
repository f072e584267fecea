//! What waits for the disk, awaited: no runtime, no thread of the caller's that blocks.

mod lab;

use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake};
use std::thread::Thread;

use larder::backend::{Backend, Change, Loader, Rejected};
use larder::{Durability, Error, Store};

struct Unpark(Thread, AtomicUsize);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.unpark();
    }
}

/// Awaits it on this thread, and says how often it was woken.
fn block_on<R>(future: impl Future<Output = R>) -> (R, usize) {
    let mut future = pin!(future);
    let unpark = Arc::new(Unpark(std::thread::current(), AtomicUsize::new(0)));
    let waker = unpark.clone().into();
    loop {
        if let Poll::Ready(done) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return (done, unpark.1.load(Ordering::SeqCst));
        }
        std::thread::park();
    }
}

fn wait<R>(future: impl Future<Output = R>) -> R {
    block_on(future).0
}

fn immediate(path: &Path) -> Store {
    Store::options(path).durability(Durability::Immediate).open().unwrap()
}

/// What a crash at this moment would leave.
fn after_a_crash(path: &Path, name: &str) -> std::collections::BTreeMap<String, Vec<u8>> {
    let image = path.with_file_name(name);
    lab::as_after_a_crash(path, &image);
    lab::contents(&Store::open(image).unwrap())
}

#[test]
fn a_life_is_awaited_from_beginning_to_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let store = Store::new(&path).unwrap();
    assert!(matches!(wait(store.flush_async()), Err(Error::NotLoaded { .. })));
    assert_eq!(wait(store.load_async()).unwrap().members, 0);
    assert!(matches!(wait(store.load_async()), Err(Error::AlreadyLoaded { .. })));
    let second = wait(Store::options(&path).open_async());
    assert!(matches!(second, Err(Error::Locked { .. })));
    store.put("c/a", "1").unwrap();
    let (flushed, wakes) = block_on(store.flush_async());
    flushed.unwrap();
    assert!(wakes <= 1, "{wakes}");
    assert_eq!(after_a_crash(&path, "image")["c/a"], b"1");
    assert_eq!(wait(store.close_async()).unwrap().members, 1);
    assert!(matches!(wait(store.close_async()), Err(Error::Closed { .. })));
    assert!(matches!(wait(store.flush_async()), Err(Error::Closed { .. })));
    let store = wait(Store::options(&path).open_async()).unwrap();
    assert_eq!(store.get("c/a").unwrap().unwrap(), "1");
    wait(Store::in_memory().flush_async()).unwrap();
}

#[test]
fn any_write_is_durable_when_it_was_awaited() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let store = immediate(&path);
    let counters = store.collection::<u64>("n").unwrap();
    assert_eq!(wait(store.write_async(|| store.put("c/a", "1"))).unwrap(), None);
    assert_eq!(wait(store.write_async(|| store.put("c/b", "2"))).unwrap(), None);
    assert_eq!(wait(store.write_async(|| counters.increment("k", 5))).unwrap(), 5);
    wait(store.write_async(|| {
        counters.put("l", 1)?;
        store.transaction(|tx| {
            tx.put("tx/a", "3")?;
            tx.delete("c/b")
        })
    }))
    .unwrap();
    let found = after_a_crash(&path, "first");
    assert_eq!(found.keys().collect::<Vec<_>>(), ["c/a", "n/k", "n/l", "tx/a"]);
    assert_eq!(wait(store.write_async(|| store.delete_all("c"))).unwrap(), 1);
    assert_eq!(after_a_crash(&path, "second").keys().collect::<Vec<_>>(), ["n/k", "n/l", "tx/a"]);

    // Nothing to wait for, or nothing done.
    assert_eq!(wait(store.write_async(|| store.delete("c/a"))).unwrap(), None);
    assert_eq!(wait(store.write_async(|| Ok(7))).unwrap(), 7);
    assert!(matches!(wait(store.write_async(|| store.put("no key", "1"))), Err(Error::InvalidKey { .. })));
    let other = Store::in_memory();
    wait(store.write_async(|| other.put("c/a", "1"))).unwrap();
    // Begun is done, awaited or not.
    drop(store.write_async(|| store.put("c/dropped", "1")));
    assert_eq!(store.get("c/dropped").unwrap().unwrap(), "1");
    store.close().unwrap();
    assert!(matches!(wait(store.write_async(|| store.put("c/a", "1"))), Err(Error::Closed { .. })));
}

#[test]
fn a_panic_among_the_writes_leaves_the_next_ones_as_they_were() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let store = immediate(&path);
    let panics = || drop(store.write_async(|| -> larder::Result<()> { panic!("on purpose") }));
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics)).is_err());
    // This one waits for itself again.
    store.put("c/a", "1").unwrap();
    assert_eq!(after_a_crash(&path, "image")["c/a"], b"1");
    // One within another waits with its own.
    let nested = store.write_async(|| {
        let inner = store.write_async(|| store.put("c/inner", "1"));
        store.put("c/outer", "1")?;
        Ok(inner)
    });
    wait(wait(nested).unwrap()).unwrap();
    assert_eq!(after_a_crash(&path, "nested").len(), 3);
}

#[derive(Default)]
struct Disk {
    fails: AtomicBool,
    syncs: AtomicUsize,
    open: Mutex<bool>,
}

struct Shared(Arc<Disk>);

impl Backend for Shared {
    fn load(&mut self, _loader: &Loader<'_>) -> larder::Result<u64> {
        Ok(0)
    }

    fn apply(&mut self, _batch: &[Change<'_>]) -> Result<(), Rejected> {
        Ok(())
    }

    fn sync(&mut self) -> larder::Result<()> {
        // As long as a test holds it, a sync takes.
        drop(self.0.open.lock().unwrap());
        self.0.syncs.fetch_add(1, Ordering::SeqCst);
        if self.0.fails.load(Ordering::SeqCst) { Err(Error::backend("sync", "on purpose")) } else { Ok(()) }
    }

    fn close(&mut self, _counter: u64) -> larder::Result<()> {
        Ok(())
    }
}

#[test]
fn many_who_await_share_a_sync_and_learn_what_fails() {
    let disk = Arc::new(Disk::default());
    let options = Store::options("own").durability(Durability::Immediate).backend(Shared(disk.clone()));
    let store = options.open().unwrap();
    let held = disk.open.lock().unwrap();
    let awaited: Vec<_> = (0..100).map(|number| store.write_async(|| store.put(format!("c/{number}"), "1"))).collect();
    assert_eq!(store.len("c").unwrap(), 100, "none of them has waited");
    let before = disk.syncs.load(Ordering::SeqCst);
    drop(held);
    for one in awaited {
        assert_eq!(wait(one).unwrap(), None);
    }
    let syncs = disk.syncs.load(Ordering::SeqCst) - before;
    assert!((1..=20).contains(&syncs), "{syncs}");

    disk.fails.store(true, Ordering::SeqCst);
    let failed = wait(store.write_async(|| store.put("c/0", "2")));
    assert!(matches!(failed, Err(Error::Backend { .. })), "{failed:?}");
    assert!(wait(store.flush_async()).is_err() && wait(store.close_async()).is_err());
    disk.fails.store(false, Ordering::SeqCst);
    wait(store.flush_async()).unwrap();
    let last = store.write_async(|| store.put("c/0", "3"));
    wait(store.close_async()).unwrap();
    assert!(matches!(wait(last), Ok(_) | Err(Error::Closed { .. })));
}

#[test]
fn a_waker_that_panics_ends_nobody_else_s_wait() {
    struct Panics;
    impl Wake for Panics {
        fn wake(self: Arc<Self>) {
            panic!("on purpose");
        }
    }
    let disk = Arc::new(Disk::default());
    let store = Store::options("own").backend(Shared(disk.clone())).open().unwrap();
    for round in 0..3 {
        let held = disk.open.lock().unwrap();
        let mut bad = Box::pin(store.write_async(|| store.put("c/a", round.to_string())));
        let waker = Arc::new(Panics).into();
        assert!(bad.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        let good = store.write_async(|| store.put("c/b", round.to_string()));
        drop(held);
        wait(good).unwrap();
        wait(bad).unwrap();
    }
}

#[test]
fn what_was_written_before_an_error_or_a_close_is_durable_when_that_is_told() {
    let disk = Arc::new(Disk::default());
    let options = Store::options("own").durability(Durability::Immediate).backend(Shared(disk.clone()));
    let store = options.open().unwrap();
    let held = disk.open.lock().unwrap();
    let mut failed = Box::pin(store.write_async(|| -> larder::Result<()> {
        store.put("c/a", "1")?;
        Err(Error::aborted("on purpose"))
    }));
    assert!(failed.as_mut().poll(&mut Context::from_waker(std::task::Waker::noop())).is_pending());
    drop(held);
    assert!(matches!(wait(failed), Err(Error::Aborted { .. })));
    let closed = store.write_async(|| {
        store.put("c/b", "2")?;
        store.close()
    });
    assert_eq!(wait(closed).unwrap().members, 2);
}
