//! Reads.

use larder::Store;

use crate::contenders::{ByKey, Contender, Flat, FlatTyped, Typed};
use crate::input::{self, Keys};
use crate::loops::Loop;
use crate::measure::in_turns;
use crate::{Config, Result};

pub(crate) fn run(config: &Config) -> Result<()> {
    let members = config.size.members;
    println!("\n## get\n\n{members} members in {} collections; ns per operation.", input::COLLECTIONS);
    let (flat, by_key) = (Flat::new(), ByKey::new(Store::in_memory()));
    flat.fill(members);
    by_key.fill(members);
    table("by key", "1.3", &flat, &by_key, config);
    drop((flat, by_key));

    let (flat, typed) = (FlatTyped::new(), Typed::new(Store::in_memory())?);
    flat.fill(members);
    typed.fill(members);
    table("typed, through handles", "1.1", &flat, &typed, config);
    Ok(())
}

fn table(face: &str, goal: &str, floor: &impl Contender, larder: &impl Contender, config: &Config) {
    println!("\n| get {face} | loop | threads | dashmap | larder | ratio | goal |");
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    let members = config.size.members;
    for keys in [Keys::Uniform, Keys::Zipf] {
        for threads in [1, 2] {
            let ops = input::operations(keys, members, members, threads);
            for how in [Loop::Overlapping, Loop::Dependent] {
                let [floor, larder] =
                    in_turns(config.size.rounds, [&mut || floor.gets(&ops, how), &mut || larder.gets(&ops, how)]);
                let ratio = larder.over(&floor);
                println!("| {keys} | {how} | {threads} | {floor} | {larder} | {ratio:.2} | {goal} |");
            }
        }
    }
}
