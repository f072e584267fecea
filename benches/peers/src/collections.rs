//! Reading and deleting whole collections.

use std::hint::black_box;
use std::time::Instant;

use crate::input::{self, KEY, Ops, VALUE};
use crate::measure::{Samples, Table, turns};
use crate::peers::{self, PACKED, Peer, Work};
use crate::{Config, Result, settle};

/// How many collections there are of each size: of small ones several, so that the clock has something to tell.
const COUNTS: [usize; 3] = [50, 10, 1];

/// Members that are put at once.
const BATCH: usize = 1_000;

pub(crate) fn run(config: &Config) -> Result<()> {
    let sizes = config.size.collections;
    let contenders = peers::with_collections();
    let new = || sizes.map(|_| vec![Samples::default(); contenders.len()]);
    let (mut gets, mut deletes) = (new(), new());
    for round in 0..config.size.rounds {
        for which in turns(round, contenders.len()) {
            let contender = contenders[which];
            let dir = config.temporary()?;
            let peer = (contender.open)(dir.path(), Work::Unsynced)?;
            fill(&*peer, sizes)?;
            peer.settle()?;
            settle(config)?;
            let (got, deleted) =
                one(&*peer, sizes).map_err(|error| format!("collections of {}: {error}", contender.name))?;
            for (samples, times) in [(&mut gets, got), (&mut deletes, deleted)] {
                for (samples, time) in samples.iter_mut().zip(times) {
                    samples[which].push(time);
                }
            }
            peer.close()?;
            dir.close()?;
            progress!(config, round, "collections of {}", contender.name);
        }
    }
    println!("\n## collections\n");
    println!(
        "A store has {COUNTS:?} collections of {sizes:?} members, keys of {KEY} bytes, values of {VALUE}, and nothing else. \
         Each is read, every member looked at once, and then each is deleted; without a sync, by one thread. larder makes \
         a list of the members and hands out their values; the others show what they find."
    );
    let mut times = Table::new("µs", contenders.iter().map(|contender| contender.name));
    for (what, samples) in [("get_all", gets), ("delete_all", deletes)] {
        for (size, samples) in sizes.iter().zip(samples) {
            times.row(format!("{what} of {size}"), samples);
        }
    }
    times.print(1);
    times.over("to larder's", peers::place(&contenders, PACKED)).without(&[PACKED]).print(1);
    Ok(())
}

/// The collections of one size after those of the other; of each the size and the number.
fn all(sizes: [usize; 3]) -> impl Iterator<Item = (usize, String)> {
    let sizes =
        sizes.into_iter().zip(COUNTS).enumerate().flat_map(|(place, (_, count))| std::iter::repeat_n(place, count));
    sizes.enumerate().map(|(number, place)| (place, input::collection(number)))
}

fn fill(peer: &dyn Peer, sizes: [usize; 3]) -> Result<()> {
    let mut session = peer.session()?;
    for (number, (place, _)) in all(sizes).enumerate() {
        let ops = Ops::of_collection(number, sizes[place]);
        let value = input::value(number as u64);
        for first in (0..ops.len()).step_by(BATCH) {
            let keys = ops.keys(first..(first + BATCH).min(ops.len()));
            session.put_batch(&keys.into_iter().map(|key| (key, &value[..])).collect::<Vec<_>>())?;
        }
    }
    Ok(())
}

/// Microseconds for each collection of each size: to get all of it, and to delete all of it.
fn one(peer: &dyn Peer, sizes: [usize; 3]) -> Result<([f64; 3], [f64; 3])> {
    let mut session = peer.session()?;
    let (mut got, mut deleted) = ([0.0; 3], [0.0; 3]);
    let count = |session: &mut dyn peers::Session, collection: &str| -> Result<usize> {
        let (mut members, mut sum) = (0, 0);
        session.get_all(collection, &mut |name, value| {
            members += 1;
            sum += name.len() + usize::from(value[0]);
        })?;
        black_box(sum);
        Ok(members)
    };
    for (place, collection) in all(sizes) {
        let began = Instant::now();
        let found = count(&mut *session, &collection)?;
        got[place] += began.elapsed().as_secs_f64() * 1e6 / COUNTS[place] as f64;
        if found != sizes[place] {
            return Err(format!("{found} members of {}", sizes[place]).into());
        }
    }
    for (place, collection) in all(sizes) {
        let began = Instant::now();
        session.delete_all(&collection)?;
        deleted[place] += began.elapsed().as_secs_f64() * 1e6 / COUNTS[place] as f64;
    }
    for (_, collection) in all(sizes) {
        if count(&mut *session, &collection)? != 0 {
            return Err("a deleted collection has members".into());
        }
    }
    Ok((got, deleted))
}
