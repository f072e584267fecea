//! Writes: in RAM, and with the janitor storing beside the writer.

use larder::Store;
use tempfile::TempDir;

use crate::contenders::{ByKey, Contender, Flat, FlatTyped, Typed};
use crate::counting::give_back;
use crate::input::{self, COLLECTIONS, Keys, Ops};
use crate::loops::{Loop, drive};
use crate::measure::in_turns;
use crate::{Config, Result};

const GOAL_OVERWRITE: &str = "1.5";
const GOAL_NEW: &str = "1.2";
const GOAL_HOT: &str = "1.2";

pub(crate) fn run(config: &Config) -> Result<()> {
    let members = config.size.members;
    println!("\n## put\n\n{members} members in {COLLECTIONS} collections; ns per operation.");
    let (flat, by_key) = (Flat::new(), ByKey::new(Store::in_memory()));
    flat.fill(members);
    by_key.fill(members);
    in_memory(
        "by key",
        config,
        &flat,
        |ops, at| flat.replace(ops, at),
        &by_key,
        (Flat::new, || Ok(ByKey::new(Store::in_memory()))),
    )?;
    drop(by_key);

    let (flat_typed, typed) = (FlatTyped::new(), Typed::new(Store::in_memory())?);
    flat_typed.fill(members);
    typed.fill(members);
    in_memory(
        "typed",
        config,
        &flat_typed,
        |ops, at| flat_typed.replace(ops, at),
        &typed,
        (FlatTyped::new, || Typed::new(Store::in_memory())),
    )?;
    drop(typed);

    println!(
        "\nWith the janitor storing beside the writer, one file per member, in default durability. {} puts in a round of \
         overwrites; what they leave to the janitor is stored before the next contender's turn.",
        config.size.puts_to_files
    );
    let dir = tempfile::tempdir_in(&config.dir)?;
    let store = Store::open(dir.path().join("store"))?;
    let by_key = ByKey::new(store.clone());
    by_key.fill(members);
    store.flush()?;
    let stored = |store: &Store| Ok(store.flush()?);
    on_files("by key", config, &flat, &by_key, || stored(&store), (Flat::new, |store| Ok(ByKey::new(store))))?;

    // The same members, from now on as a type.
    let typed = Typed::new(store.clone())?;
    on_files("typed", config, &flat_typed, &typed, || stored(&store), (FlatTyped::new, Typed::new))?;
    _ = store.close()?;
    Ok(())
}

/// The tables of what happens in RAM only. `empty` makes empty contenders, to put new members into.
fn in_memory<F: Contender, L: Contender>(
    face: &str,
    config: &Config,
    floor: &F,
    replace: impl Fn(&Ops, usize) -> usize + Sync,
    larder: &L,
    empty: (impl Fn() -> F, impl Fn() -> Result<L>),
) -> Result<()> {
    let (members, rounds) = (config.size.members, config.size.rounds);
    println!("\n| put {face}, in memory | keys | loop | threads | dashmap insert | get_mut | larder | ratio | goal |");
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    for (what, keys, goal) in [
        ("overwrite", Keys::Uniform, GOAL_OVERWRITE),
        ("overwrite", Keys::Zipf, GOAL_OVERWRITE),
        ("overwrite", Keys::Hot, GOAL_HOT),
    ] {
        for threads in [1, 2] {
            let ops = input::operations(keys, members, members, threads);
            for how in [Loop::Overlapping, Loop::Dependent] {
                let [insert, replaced, put] = in_turns(
                    rounds,
                    [&mut || floor.puts(&ops, how), &mut || drive(&ops, how, &replace), &mut || larder.puts(&ops, how)],
                );
                let ratio = put.over(&insert);
                println!(
                    "| {what} | {keys} | {how} | {threads} | {insert} | {replaced} | {put} | {ratio:.2} | {goal} |"
                );
            }
        }
    }
    for threads in [1, 2] {
        let ops = input::operations(Keys::Each, members, members, threads);
        let how = Loop::Overlapping;
        let mut failed = None;
        let [insert, put] = in_turns(
            rounds,
            [&mut || into_new(&empty.0(), &ops), &mut || match empty.1() {
                Ok(larder) => into_new(&larder, &ops),
                Err(error) => {
                    failed = Some(error);
                    f64::NAN
                }
            }],
        );
        if let Some(error) = failed {
            return Err(error);
        }
        let ratio = put.over(&insert);
        println!("| new | each once | {how} | {threads} | {insert} | - | {put} | {ratio:.2} | {GOAL_NEW} |");
    }
    Ok(())
}

/// The tables of a store on files. `flush` waits for what `larder` has written.
fn on_files<F: Contender, L: Contender>(
    face: &str,
    config: &Config,
    floor: &F,
    larder: &L,
    flush: impl Fn() -> Result<()>,
    empty: (impl Fn() -> F, impl Fn(Store) -> Result<L>),
) -> Result<()> {
    let (members, rounds) = (config.size.members, config.size.rounds);
    println!("\n| put {face}, on files | keys | threads | dashmap insert | larder | ratio | goal |");
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    let how = Loop::Overlapping;
    for (keys, puts, goal) in
        [(Keys::Uniform, config.size.puts_to_files, GOAL_OVERWRITE), (Keys::Hot, members, GOAL_HOT)]
    {
        for threads in [1, 2] {
            let ops = input::operations(keys, members, puts, threads);
            let mut flushed = Ok(());
            let [insert, put] = in_turns(
                rounds,
                [&mut || floor.puts(&ops, how), &mut || {
                    let took = larder.puts(&ops, how);
                    flushed = std::mem::replace(&mut flushed, Ok(())).and_then(|()| flush());
                    took
                }],
            );
            flushed?;
            let ratio = put.over(&insert);
            println!("| overwrite | {keys} | {threads} | {insert} | {put} | {ratio:.2} | {goal} |");
        }
    }
    for threads in [1, 2] {
        let ops = input::operations(Keys::Each, members, members, threads);
        let mut failed = None;
        let [insert, put] = in_turns(
            rounds,
            [&mut || into_new(&empty.0(), &ops), &mut || {
                new_on_files(&ops, config, &empty.1).unwrap_or_else(|error| {
                    failed = Some(error);
                    f64::NAN
                })
            }],
        );
        if let Some(error) = failed {
            return Err(error);
        }
        let ratio = put.over(&insert);
        println!("| new | each once | {threads} | {insert} | {put} | {ratio:.2} | {GOAL_NEW} |");
    }
    Ok(())
}

fn into_new(map: &impl Contender, ops: &[Ops]) -> f64 {
    give_back();
    map.puts(ops, Loop::Overlapping)
}

/// Puts all members into a new store, and then clears them away, so that most of them need not be stored.
fn new_on_files<L: Contender>(ops: &[Ops], config: &Config, open: impl Fn(Store) -> Result<L>) -> Result<f64> {
    let dir: TempDir = tempfile::tempdir_in(&config.dir)?;
    let store = Store::open(dir.path().join("store"))?;
    let larder = open(store.clone())?;
    let took = into_new(&larder, ops);
    for number in 0..COLLECTIONS {
        store.delete_all(input::collection(number))?;
    }
    _ = store.close()?;
    Ok(took)
}
