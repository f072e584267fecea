//! What a contender takes of memory and of the disk for each member, and what it does when there is nothing to do.

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::input::{self, COLLECTIONS, KEY, Member, VALUE};
use crate::maps::{self, LOOP, Map};
use crate::measure::{Samples, Table, turns};
use crate::peers::{self, Contender, FLOOR, Session, Work};
use crate::{Config, Result, child, counting, machine};

pub(crate) const NAME: &str = "footprint";

const FIGURES: [&str; 5] = [
    "memory asked for, bytes per member",
    "resident, bytes per member",
    "disk, bytes per member",
    "idle: processor time, ms per second",
    "idle: sleeps per second",
];

/// Opens nothing: what the program itself does.
const NOTHING: &str = "no store";

/// A store that does nothing for so long has nothing to do: larder's files follow a second behind.
const REST: Duration = Duration::from_millis(1_500);

/// What counts as nothing, in seconds of processor time: to look at it takes some, too.
const NEXT_TO_NOTHING: f64 = 0.001;

/// For a store to come to rest. Some never do.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn run(config: &Config) -> Result<()> {
    let mut names = vec![NOTHING];
    names.extend(maps::ALL.iter().map(|map| map.name).filter(|name| *name != LOOP));
    names.extend(stores().iter().map(|store| store.name));
    let members = |name: &str| {
        let store = stores().into_iter().find(|store| store.name == name);
        store.map_or(config.size.members, |store| store.members(config.size.members, config.size.files))
    };
    let mut figures = FIGURES.map(|_| vec![Samples::default(); names.len()]);
    for round in 0..config.size.rounds {
        for which in turns(round, names.len()) {
            let (name, members) = (names[which], members(names[which]));
            let dir = config.temporary()?;
            let path = dir.path().to_str().ok_or("the directory has no plain name")?;
            let idle = config.size.idle.as_secs_f64().to_string();
            let [asked, resident, processor, sleeps] =
                child::exactly(NAME, &[name, &members.to_string(), path, &idle])?;
            let disk = machine::taken(dir.path())? as f64;
            let per_member = |bytes: f64| if name == NOTHING { f64::NAN } else { bytes / members as f64 };
            let seen = [per_member(asked), per_member(resident), per_member(disk), processor * 1e3, sleeps];
            for (samples, seen) in figures.iter_mut().zip(seen) {
                if !seen.is_nan() {
                    samples[which].push(seen);
                }
            }
            dir.close()?;
            progress!(config, round, "footprint of {name}");
        }
    }
    println!("\n## footprint\n");
    println!(
        "{} members, {} where each is a file, in {COLLECTIONS} collections; keys of {KEY} bytes, values of {VALUE}. Each \
         contender in a process of its own. Asked for: by Rust code that uses the allocator, so nothing of LMDB's and \
         SQLite's own. Resident: by how much the process has grown, with what is mapped. Disk: blocks, after the close. \
         Idle: {:?} after all was written, the store open.",
        config.size.members,
        members(peers::LARDER),
        config.size.idle
    );
    let mut table = Table::new("", names.iter().copied());
    for (what, samples) in FIGURES.iter().zip(figures) {
        table.row(*what, samples);
    }
    table.turned("").print(1);
    Ok(())
}

fn stores() -> Vec<&'static Contender> {
    peers::doing(Work::Bulk).into_iter().filter(|store| store.name != FLOOR).collect()
}

/// In a process of its own.
pub(crate) fn part(args: &[String]) -> Result<Vec<f64>> {
    let [name, members, dir, idle] = args else { return Err("a name and three more are wanted".into()) };
    let (members, dir, idle) = (members.parse()?, Path::new(dir), Duration::from_secs_f64(idle.parse()?));
    if name == NOTHING {
        return Ok([vec![0.0, 0.0], idles(idle)].concat());
    }
    if let Some(store) = stores().into_iter().find(|store| store.name == name) {
        let peer = (store.open)(dir, Work::Unsynced)?;
        let mut session = peer.session()?;
        let mut figures = taken(|| {
            fill(&mut *session, members)?;
            peer.settle()
        })?;
        comes_to_rest();
        figures.extend(idles(idle));
        drop(session);
        peer.close()?;
        return Ok(figures);
    }
    let map = (maps::named(name)?.new)(dir)?;
    let figures = taken(|| fill_map(&*map, members))?;
    // What is on no disk has nothing to do in any case.
    Ok([figures, vec![f64::NAN, f64::NAN]].concat())
}

/// The memory that something asks for and keeps, and by how much the process grows.
pub(crate) fn taken(fill: impl FnOnce() -> Result<()>) -> Result<Vec<f64>> {
    let before = machine::memory("VmRSS");
    counting::count_from_now_on(true);
    fill()?;
    counting::count_from_now_on(false);
    let (asked, _) = counting::counted();
    counting::give_back();
    Ok(vec![asked as f64, machine::memory("VmRSS") - before])
}

/// Members that are put at once. Keys are made on the way: held, they would count as memory.
const BATCH: usize = 1_000;

fn fill(session: &mut dyn Session, members: usize) -> Result<()> {
    for first in (0..members).step_by(BATCH) {
        let batch: Vec<Member> = (first..(first + BATCH).min(members)).map(Member::new).collect();
        let batch: Vec<(&str, &[u8])> = batch.iter().map(|member| (member.key.as_str(), &member.value[..])).collect();
        session.put_batch(&batch)?;
    }
    Ok(())
}

pub(crate) fn fill_map(map: &dyn Map, members: usize) -> Result<()> {
    let mut key = String::with_capacity(KEY);
    for member in 0..members {
        input::set_key(&mut key, member);
        if map.put(input::Key(&key)) != 0 {
            return Err("a put failed".into());
        }
    }
    map.settle()
}

/// Processor time and sleeps, per second, while nobody asks for anything.
fn idles(time: Duration) -> Vec<f64> {
    let (began, processor, sleeps) = (Instant::now(), machine::processor_time(), machine::sleeps());
    sleep(time);
    let (processor, sleeps) = (machine::processor_time() - processor, machine::sleeps() - sleeps);
    let time = began.elapsed().as_secs_f64();
    vec![processor / time, sleeps / time]
}

fn comes_to_rest() {
    let (began, mut before) = (Instant::now(), machine::processor_time());
    while began.elapsed() < PATIENCE {
        sleep(REST);
        let now = machine::processor_time();
        if now - before < NEXT_TO_NOTHING {
            return;
        }
        before = now;
    }
}
