//! Single reads and writes: the maps in RAM, and the stores that persist, without a sync.

use std::time::Duration;

use crate::counting::give_back;
use crate::input::{self, COLLECTIONS, KEY, Keys, Mix, Ops, Random, VALUE};
use crate::loops::Loop;
use crate::maps::{self, BY_KEY, HANDLES, LOOP, Map, ON_DISK};
use crate::measure::{Samples, Table, steps, turns};
use crate::peers::{self, Contender, PACKED, Peer, Work};
use crate::{Config, Result, settle};

pub(crate) fn run(config: &Config) -> Result<()> {
    println!("\n## operations\n");
    println!("{} members in {COLLECTIONS} collections, keys of {KEY} bytes, values of {VALUE}.", config.size.members);
    maps::describe();
    in_ram(config)?;
    in_stores(config)
}

// ---- maps ----

const MIXES: [(&str, u64); 4] = [("get", 0), ("get 95, put 5", 5), ("get 50, put 50", 50), ("put, overwrite", 100)];

fn in_ram(config: &Config) -> Result<()> {
    let (members, rounds) = (config.size.members, config.size.rounds);
    let dir = config.temporary()?;
    let all: Vec<Box<dyn Map>> = maps::ALL.iter().map(|map| (map.new)(dir.path())).collect::<Result<_>>()?;
    for map in &all {
        maps::fill(&**map, members)?;
    }
    let mut times = Table::new("ns | keys | loop | threads", maps::ALL.iter().map(|map| map.name));
    let mut row = |name: String, one: &dyn Fn(usize) -> Result<f64>| -> Result<()> {
        let mut samples = vec![Samples::default(); all.len()];
        for round in 0..rounds {
            for which in turns(round, all.len()) {
                samples[which].push(one(which)?);
            }
        }
        eprintln!("operations in RAM: {name}");
        times.row(name, samples);
        Ok(())
    };
    for (what, puts) in MIXES {
        for keys in [Keys::Uniform, Keys::Zipf] {
            for threads in [1, 2] {
                let ops = Mix { keys, puts }.operations(members, members, threads);
                for how in [Loop::Overlapping, Loop::Dependent] {
                    row(format!("{what} | {keys} | {how} | {threads}"), &|which| {
                        let time = all[which].run(&ops, how);
                        all[which].settle()?;
                        Ok(time)
                    })?;
                }
            }
        }
    }
    let keys = Keys::Each;
    for threads in [1, 2] {
        let ops = Mix { keys, puts: 100 }.operations(members, members, threads);
        let how = Loop::Overlapping;
        row(format!("put, new | {keys} | {how} | {threads}"), &|which| {
            let dir = config.temporary()?;
            let map = (maps::ALL[which].new)(dir.path())?;
            give_back();
            let time = map.run(&ops, how);
            map.settle()?;
            drop(map);
            dir.close()?;
            Ok(time)
        })?;
    }
    drop(all);
    times.print(0);
    for mine in [BY_KEY, HANDLES, ON_DISK] {
        let name = maps::ALL[mine].name;
        let others = [LOOP, maps::ALL[BY_KEY].name, maps::ALL[HANDLES].name, maps::ALL[ON_DISK].name];
        times.under(&format!("{name}, to | keys | loop | threads"), mine).without(&others).print(2);
    }
    println!("\nThe goals: by key 1.3 of dashmap, through handles 1.1; puts 1.2 when new, and 1.5.");
    Ok(dir.close()?)
}

// ---- stores ----

/// Members in a batch.
const BATCH: usize = 1_000;

/// What is done with a store that has all members.
#[derive(Clone, Copy)]
enum Task {
    Get(Keys, usize),
    GetBatch,
    Overwrite,
    OverwriteBatch,
    New,
    NewBatch,
}

const TASKS: [(&str, Task); 8] = [
    ("get, uniform", Task::Get(Keys::Uniform, 1)),
    ("get, zipf 0.99", Task::Get(Keys::Zipf, 1)),
    ("get, uniform, 2 threads", Task::Get(Keys::Uniform, 2)),
    ("get, uniform, batches of 1,000", Task::GetBatch),
    ("put, overwrite, uniform", Task::Overwrite),
    ("put, overwrite, uniform, batches of 1,000", Task::OverwriteBatch),
    ("put, new", Task::New),
    ("put, new, batches of 1,000", Task::NewBatch),
];

fn in_stores(config: &Config) -> Result<()> {
    let contenders = peers::doing(Work::Unsynced);
    let members = input::members(config.size.members);
    let mut dirs = Vec::new();
    for contender in &contenders {
        let dir = config.temporary()?;
        let peer = (contender.open)(dir.path(), Work::Bulk)?;
        peer.load(&members, &mut crate::measure::Lap::start())?;
        peer.close()?;
        eprintln!("operations in stores: {} is filled", contender.name);
        dirs.push(dir);
    }
    drop(members);
    let mut samples = TASKS.map(|_| vec![Samples::default(); contenders.len()]);
    for round in 0..config.size.rounds {
        for which in turns(round, contenders.len()) {
            let Contender { name, open, .. } = contenders[which];
            settle(config)?;
            let peer = open(dirs[which].path(), Work::Unsynced)?;
            // Who reads what it needs has it in memory then.
            peer.read_all()?;
            let mut run = Run { config, peer: &*peer, next: config.size.members + round * 2 * config.size.store_ops };
            for ((what, task), samples) in TASKS.iter().zip(&mut samples) {
                let time = run.task(*task).map_err(|error| format!("{name}: {what}: {error}"))?;
                samples[which].push(time / 1e3);
                peer.settle()?;
            }
            peer.close()?;
            progress!(config, round, "operations in stores: {name}");
        }
    }
    let mut times = Table::new("µs", contenders.iter().map(|contender| contender.name));
    for ((what, _), samples) in TASKS.iter().zip(samples) {
        times.row(*what, samples);
    }
    times.print(2);
    times.over("to larder's", peers::place(&contenders, PACKED)).without(&[PACKED]).print(1);
    println!(
        "\nNothing is synced by the one who puts. {} operations of each kind, or as many as there are in {:?}; one \
         thread, but where it says two. What is left to be written is written before the next row.",
        config.size.store_ops, config.size.store_time
    );
    Ok(())
}

/// One store's turn.
struct Run<'a> {
    config: &'a Config,
    peer: &'a dyn Peer,
    /// The first member that is not there.
    next: usize,
}

impl Run<'_> {
    /// Nanoseconds per member.
    fn task(&mut self, task: Task) -> Result<f64> {
        let (count, time) = (self.config.size.store_ops, self.config.size.store_time);
        let members = self.config.size.members;
        let uniform = |threads| Mix { keys: Keys::Uniform, puts: 0 }.operations(members, count, threads);
        match task {
            Task::Get(keys, threads) => {
                let ops = Mix { keys, puts: 0 }.operations(members, count, threads);
                self.get(&ops, time)
            }
            Task::GetBatch => self.batches(&uniform(1), |session, keys| {
                let found = session.get_batch(keys, &mut |value| assert_eq!(value.len(), VALUE))?;
                if found == keys.len() { Ok(()) } else { Err("a get found nothing".into()) }
            }),
            Task::Overwrite => self.put(&uniform(1)),
            Task::OverwriteBatch => self.put_batches(&uniform(1)),
            Task::New => {
                let ops = self.new_members();
                self.put(&ops)
            }
            Task::NewBatch => {
                let ops = self.new_members();
                self.put_batches(&ops)
            }
        }
    }

    fn new_members(&mut self) -> Vec<Ops> {
        let first = self.next;
        self.next += self.config.size.store_ops;
        vec![Ops::each(first..self.next)]
    }

    fn get(&self, all: &[Ops], time: Duration) -> Result<f64> {
        let one = |ops: &Ops| -> Result<f64> {
            let mut session = self.peer.session()?;
            steps(ops.len(), 1, time, |at| {
                let found = session.get(ops.key(at).0, &mut |value| assert_eq!(value.len(), VALUE))?;
                if found { Ok(()) } else { Err("a get found nothing".into()) }
            })
        };
        std::thread::scope(|scope| {
            let one = &one;
            let threads: Vec<_> = all.iter().map(|ops| scope.spawn(move || one(ops))).collect();
            // Together they do as many in a second as each of them does, added up.
            let rates = threads.into_iter().map(|thread| Ok(1.0 / thread.join().expect("a reader panicked")?));
            Ok(1.0 / rates.sum::<Result<f64>>()?)
        })
    }

    fn put(&self, all: &[Ops]) -> Result<f64> {
        let (ops, value) = (&all[0], random_value());
        let mut session = self.peer.session()?;
        steps(ops.len(), 1, self.config.size.store_time, |at| session.put(ops.key(at).0, &value))
    }

    fn put_batches(&self, all: &[Ops]) -> Result<f64> {
        let value = random_value();
        self.batches(all, |session, keys| {
            let members: Vec<(&str, &[u8])> = keys.iter().map(|key| (*key, &value[..])).collect();
            session.put_batch(&members)
        })
    }

    fn batches(
        &self,
        all: &[Ops],
        mut batch: impl FnMut(&mut dyn peers::Session, &[&str]) -> Result<()>,
    ) -> Result<f64> {
        let ops = &all[0];
        let mut session = self.peer.session()?;
        steps(ops.len(), BATCH, self.config.size.store_time, |at| {
            batch(&mut *session, &ops.keys(at..(at + BATCH).min(ops.len())))
        })
    }
}

fn random_value() -> [u8; VALUE] {
    input::value(Random::new(17).next())
}
