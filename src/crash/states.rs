//! What a crash may leave of what was done: every image, or a sample of them where there are too many.
//!
//! A [`Disk`] follows a record and knows at each moment what is durable and which effects are not. Each effect that is
//! not durable meets a [`Fate`]; fates make an image.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::fs::sim::{Bytes, Hash128, Image, Inode, Name, Op, ROOT};

/// What a file system promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Model {
    /// What the standard says, and no more: names persist each for itself, in any order, until their directory is
    /// synced.
    Posix,
    /// A journaling file system with delayed allocation, as ext4 and XFS are: names persist in order, and any sync
    /// makes all before it durable. Bytes follow when they are synced.
    Ordered,
}

pub(super) const MODELS: [Model; 2] = [Model::Posix, Model::Ordered];

/// What became of an effect that was not durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Kept,
    Dropped,
    /// A write: the size is there, and the bytes are zeros.
    Zeroed,
    /// A write: only this many bytes of it are there.
    Cut(usize),
    /// A write: this many bytes of it are there, and then zeros.
    CutZeros(usize),
    /// A write: this many zeros, and then the rest of it.
    Headless(usize),
}

/// The fates of all effects that were not durable, by their place in the record.
pub(super) type Fates = Vec<(usize, Fate)>;

/// A small generator of numbers that look random and are the same for the same seed.
#[derive(Debug, Clone)]
pub(super) struct Rng(pub(super) u64);

impl Rng {
    /// SplitMix64 (Steele, Lea, Flood 2014).
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(super) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    pub(super) fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    inode: Inode,
    is_dir: bool,
}

/// All names there are, by the directory they are in.
type Names = BTreeMap<(Inode, Name), Entry>;

/// A change of names, in the order of the record.
#[derive(Debug)]
struct Change {
    at: usize,
    op: Op,
    durable: bool,
}

impl Change {
    /// The names that it decides, the last of which is in the directory whose sync makes it durable.
    fn slots(&self) -> impl Iterator<Item = (Inode, &Name)> {
        let (first, last) = match &self.op {
            Op::Create { dir, name, .. } | Op::MakeDir { dir, name, .. } => (None, Some((*dir, name))),
            Op::Unlink { dir, name } | Op::RemoveDir { dir, name } => (None, Some((*dir, name))),
            Op::Rename { from, from_name, to, to_name, .. } => (Some((*from, from_name)), Some((*to, to_name))),
            _ => (None, None),
        };
        first.into_iter().chain(last)
    }

    fn dir(&self) -> Option<Inode> {
        self.slots().last().map(|(dir, _)| dir)
    }

    fn apply(&self, names: &mut Names) {
        match &self.op {
            Op::Create { dir, name, inode } => {
                names.insert((*dir, name.clone()), Entry { inode: *inode, is_dir: false });
            }
            Op::MakeDir { dir, name, inode } => {
                names.insert((*dir, name.clone()), Entry { inode: *inode, is_dir: true });
            }
            Op::Unlink { dir, name } | Op::RemoveDir { dir, name } => {
                names.remove(&(*dir, name.clone()));
            }
            Op::Rename { from, from_name, to, to_name, inode, is_dir } => {
                names.remove(&(*from, from_name.clone()));
                names.insert((*to, to_name.clone()), Entry { inode: *inode, is_dir: *is_dir });
            }
            _ => {}
        }
    }
}

#[derive(Debug)]
struct Write {
    at: usize,
    offset: usize,
    bytes: Bytes,
    durable: bool,
    /// A sync of it failed: no later one makes it durable.
    lost_track: bool,
    /// It writes nothing: the file ends at its offset.
    cuts: bool,
}

/// A file's bytes: what is durable, and the writes from the first one on that is not.
#[derive(Debug, Default)]
struct Content {
    durable: Bytes,
    writes: Vec<Write>,
}

/// A disk sector: what of a write lies within one persists as a whole or, in a small write, is torn all the same.
const SECTOR: usize = 512;

impl Write {
    fn end(&self) -> usize {
        self.offset + self.bytes.len()
    }

    /// Where in the write a sector begins.
    fn sectors(&self) -> impl Iterator<Item = usize> {
        let first = SECTOR - self.offset % SECTOR;
        (first..self.bytes.len()).step_by(SECTOR)
    }

    /// The fates worth a try, when the file had this length before it.
    fn fates(&self, length_before: usize) -> Vec<Fate> {
        let length = self.bytes.len();
        let mut fates = vec![Fate::Kept, Fate::Dropped];
        if self.cuts {
            return fates;
        }
        let grows = self.end() > length_before;
        if grows {
            fates.push(Fate::Zeroed);
        }
        let sectors: Vec<usize> = self.sectors().collect();
        let mut cuts = BTreeSet::new();
        if let (Some(first), Some(last)) = (sectors.first(), sectors.last()) {
            cuts.extend([*first, *last, sectors[sectors.len() / 2]]);
            if grows {
                fates.extend([Fate::CutZeros(*last), Fate::Headless(*first)]);
            }
        }
        if length <= 2 * SECTOR {
            cuts.extend([1, length / 2, length - 1]);
            if grows {
                fates.push(Fate::CutZeros(length / 2));
            }
        }
        fates.extend(cuts.into_iter().filter(|&cut| cut > 0 && cut < length).map(Fate::Cut));
        fates
    }

    /// Any fate.
    fn random_fate(&self, length_before: usize, rng: &mut Rng) -> Fate {
        let length = self.bytes.len();
        if self.cuts || rng.below(2) == 0 {
            return *rng.pick(&self.fates(length_before));
        }
        let sectors: Vec<usize> = self.sectors().collect();
        let cut = if length <= 2 * SECTOR || sectors.is_empty() { rng.below(length) } else { *rng.pick(&sectors) };
        match rng.below(3) {
            0 if self.end() > length_before => Fate::CutZeros(cut),
            1 if self.end() > length_before && !sectors.is_empty() => Fate::Headless(*rng.pick(&sectors)),
            _ => Fate::Cut(cut),
        }
    }

    fn apply(&self, fate: Fate, durable_length: usize, content: &mut Vec<u8>) {
        if self.cuts {
            if fate == Fate::Kept {
                content.truncate(self.offset);
            }
            return;
        }
        let length = self.bytes.len();
        // The bytes that are written, and up to where there are zeros around them.
        let (written, size) = match fate {
            Fate::Dropped => return,
            Fate::Kept => (0..length, length),
            Fate::Zeroed => (0..0, length),
            Fate::Cut(cut) => (0..cut, cut),
            Fate::CutZeros(cut) => (0..cut, length),
            Fate::Headless(start) => (start..length, length),
        };
        if content.len() < self.offset + size {
            content.resize(self.offset + size, 0);
        }
        // Where durable bytes are overwritten they are not lost: what is not written is as it was.
        let zeros = self.offset.max(durable_length)..(self.offset + size).max(durable_length);
        if fate != Fate::Kept && zeros.end <= content.len() {
            content[zeros].fill(0);
        }
        content[self.offset + written.start..self.offset + written.end].copy_from_slice(&self.bytes[written]);
    }
}

impl Content {
    fn take_durable(&mut self) {
        let done = self.writes.iter().position(|write| !write.durable).unwrap_or(self.writes.len());
        if done == 0 {
            return;
        }
        let length = self.durable.len();
        let durable = Arc::make_mut(&mut self.durable);
        for write in self.writes.drain(..done) {
            write.apply(Fate::Kept, length, durable);
        }
    }

    fn make(&self, mut fate_of: impl FnMut(&Write) -> Fate) -> Bytes {
        if self.writes.is_empty() {
            return self.durable.clone();
        }
        let mut content = self.durable.to_vec();
        for write in &self.writes {
            let fate = if write.durable { Fate::Kept } else { fate_of(write) };
            write.apply(fate, self.durable.len(), &mut content);
        }
        Arc::new(content)
    }

    fn pending(&self) -> impl Iterator<Item = &Write> {
        self.writes.iter().filter(|write| !write.durable)
    }
}

/// A disk, as it may be after a crash at this moment of the record.
#[derive(Debug)]
pub(super) struct Disk {
    model: Model,
    /// The names that every change before the first of `changes` has made.
    names: Names,
    /// From the first one on that is not durable.
    changes: Vec<Change>,
    contents: BTreeMap<Inode, Content>,
}

/// Names that a crash may leave, and what can be reached by them.
struct Tree {
    kept: Vec<bool>,
    /// Every path, with the file that is there or `None` for a directory.
    paths: Vec<(String, Option<Inode>)>,
    /// The files among them that have writes which are not durable.
    unsynced: Vec<Inode>,
}

/// How the fates of the writes are chosen.
#[derive(Clone, Copy)]
enum Choice {
    /// The same for all.
    All(Fate),
    /// The first for all but the n-th write, which has its own m-th.
    But(Fate, usize, usize),
    /// All fates of all writes, numbered.
    Number(usize),
    Random(u64),
}

impl Disk {
    /// All that is in the image is durable. The record is of a `Sim` of the same image.
    pub(super) fn new(model: Model, image: &Image) -> Disk {
        let mut disk = Disk { model, names: Names::new(), changes: Vec::new(), contents: BTreeMap::new() };
        let mut dirs: BTreeMap<&str, Inode> = [("", ROOT)].into();
        // As a `Sim` numbers them.
        for (inode, (path, bytes)) in (ROOT + 1..).zip(&image.0) {
            let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
            disk.names.insert((dirs[parent], Name::from(name)), Entry { inode, is_dir: bytes.is_none() });
            match bytes {
                Some(bytes) => _ = disk.contents.insert(inode, Content { durable: bytes.clone(), writes: Vec::new() }),
                None => _ = dirs.insert(path, inode),
            }
        }
        disk
    }

    /// Takes the next of the record, which is at this place in it. True if it is something that a crash can undo.
    pub(super) fn follow(&mut self, at: usize, op: &Op) -> bool {
        match op {
            Op::Create { .. } | Op::MakeDir { .. } | Op::Rename { .. } | Op::Unlink { .. } | Op::RemoveDir { .. } => {
                self.changes.push(Change { at, op: op.clone(), durable: false });
                return true;
            }
            Op::Write { inode, offset, bytes } => {
                let (offset, bytes) = (*offset as usize, bytes.clone());
                let write = Write { at, offset, bytes, durable: false, lost_track: false, cuts: false };
                self.contents.entry(*inode).or_default().writes.push(write);
                return true;
            }
            Op::Cut { inode, length } => {
                let (offset, bytes) = (*length as usize, Bytes::default());
                let write = Write { at, offset, bytes, durable: false, lost_track: false, cuts: true };
                self.contents.entry(*inode).or_default().writes.push(write);
                return true;
            }
            Op::SyncData { inode } => {
                self.sync_data(*inode);
                if self.model == Model::Ordered {
                    self.sync_names(|_| true);
                }
            }
            Op::SyncDir { dir } => {
                let all = self.model == Model::Ordered;
                self.sync_names(|change| all || change.dir() == Some(*dir));
            }
            Op::SyncFs => {
                let unsynced: Vec<Inode> = self.contents.keys().copied().collect();
                unsynced.into_iter().for_each(|inode| self.sync_data(inode));
                self.sync_names(|_| true);
            }
            Op::SyncDataFailed { inode } => self.lose_track(*inode),
            Op::SyncFsFailed => {
                let unsynced: Vec<Inode> = self.contents.keys().copied().collect();
                unsynced.into_iter().for_each(|inode| self.lose_track(inode));
            }
            Op::Skipped(_) | Op::Mark(_) => {}
        }
        false
    }

    fn sync_data(&mut self, inode: Inode) {
        if let Some(content) = self.contents.get_mut(&inode) {
            content.writes.iter_mut().for_each(|write| write.durable |= !write.lost_track);
            content.take_durable();
        }
    }

    fn lose_track(&mut self, inode: Inode) {
        if let Some(content) = self.contents.get_mut(&inode) {
            content.writes.iter_mut().for_each(|write| write.lost_track = true);
        }
    }

    fn sync_names(&mut self, is_synced: impl Fn(&Change) -> bool) {
        for change in &mut self.changes {
            change.durable |= is_synced(change);
        }
        // What a later, durable change decides is decided.
        let mut decided = BTreeSet::new();
        for change in self.changes.iter().rev().filter(|change| change.durable) {
            decided.extend(change.slots().map(|(dir, name)| (change.at, dir, name.clone())));
        }
        self.changes.retain(|change| {
            let is_decided = |(dir, name): (Inode, &Name)| {
                decided.iter().any(|(at, other, decided)| *at > change.at && (dir, name) == (*other, decided))
            };
            change.durable || !change.slots().all(is_decided)
        });
        let done = self.changes.iter().position(|change| !change.durable).unwrap_or(self.changes.len());
        for change in self.changes.drain(..done) {
            change.apply(&mut self.names);
        }
    }

    /// Calls `visit` with every image that a crash at this moment may leave, or with about `most` of them: everything
    /// kept, nothing kept, each effect alone dropped and alone kept, as far as `most` goes, and others at random. With
    /// `last`, which is the last effect's place in the record, only images in which it has left a trace. `visit` says
    /// whether to go on.
    pub(super) fn images(
        &self,
        last: Option<usize>,
        most: usize,
        rng: &mut Rng,
        visit: &mut dyn FnMut(Image, Fates) -> bool,
    ) {
        let kept = self.choices_of_names(last, most, rng);
        let mut seen = BTreeSet::new();
        let mut trees = Vec::new();
        for kept in kept.chosen {
            let tree = self.tree(kept);
            let mut hash = Hash128::default();
            for (path, inode) in &tree.paths {
                hash.add(path.as_bytes());
                hash.add_number(inode.map_or(u64::MAX, |inode| inode as u64));
            }
            if seen.insert(hash.0) && self.shows(&tree, last) {
                let variants = self.variants(&tree, last);
                trees.push((tree, variants));
            }
        }
        let total = trees.iter().fold(0, |sum: usize, (_, variants)| sum.saturating_add(*variants));
        let all = kept.all && total <= most;
        if !all && trees.len() > most.div_ceil(2).max(2) {
            // Room for what may become of the bytes. The first two are the extremes.
            while trees.len() > most.div_ceil(2).max(2) {
                trees.swap_remove(2 + rng.below(trees.len() - 2));
            }
        }
        let mut left = most;
        for (number, (tree, variants)) in trees.iter().enumerate() {
            let share = match number {
                _ if all => *variants,
                // With all names kept, what becomes of the bytes shows most.
                0 => most.div_ceil(2),
                _ => (left / (trees.len() - number)).max(1),
            };
            for choice in self.choices_of_writes(tree, *variants, share, rng) {
                let Some(fates) = self.fates(tree, last, choice) else { continue };
                left = left.saturating_sub(1);
                if !visit(self.image(tree, &fates), fates) {
                    return;
                }
            }
        }
    }

    /// The image that these fates make. What they do not name is kept. `None` if no crash leaves that.
    pub(super) fn image_of(&self, fates: &Fates) -> Option<Image> {
        let dropped = |at: usize| fates.iter().any(|(place, fate)| *place == at && *fate == Fate::Dropped);
        let kept: Vec<bool> = self.changes.iter().map(|change| change.durable || !dropped(change.at)).collect();
        if self.model == Model::Ordered && kept.is_sorted_by(|one, next| one >= next) || self.model == Model::Posix {
            return Some(self.image(&self.tree(kept), fates));
        }
        None
    }

    fn choices_of_names(&self, last: Option<usize>, most: usize, rng: &mut Rng) -> ChosenNames {
        let count = self.changes.len();
        let is_last = |index: usize| last == Some(self.changes[index].at);
        if self.model == Model::Ordered {
            let from = if (0..count).any(is_last) { count } else { 0 };
            let prefix = |length: usize| (0..count).map(|index| index < length).collect::<Vec<bool>>();
            let mut lengths: Vec<usize> = (from..=count).rev().collect();
            let all = lengths.len() <= most;
            if !all {
                // Everything and nothing.
                lengths.swap(1, count - from);
            }
            while lengths.len() > most.max(2) {
                lengths.swap_remove(2 + rng.below(lengths.len() - 2));
            }
            return ChosenNames { chosen: lengths.into_iter().map(prefix).collect(), all };
        }
        let free: Vec<usize> = (0..count).filter(|&index| !self.changes[index].durable && !is_last(index)).collect();
        let with = |is_kept: &mut dyn FnMut(usize) -> bool| {
            let mut kept = vec![true; count];
            free.iter().enumerate().for_each(|(bit, &index)| kept[index] = is_kept(bit));
            kept
        };
        if free.len() < 16 && 1 << free.len() <= most {
            let chosen = (0..1usize << free.len()).map(|bits| with(&mut |bit| bits & (1 << bit) == 0)).collect();
            return ChosenNames { chosen, all: true };
        }
        let mut chosen = vec![with(&mut |_| true), with(&mut |_| false)];
        for odd in 0..free.len() {
            chosen.push(with(&mut |bit| bit != odd));
            chosen.push(with(&mut |bit| bit == odd));
        }
        while chosen.len() < most {
            // Some with most names kept, some with few.
            let kept_of_8 = 1 + rng.below(7);
            chosen.push(with(&mut |_| rng.below(8) < kept_of_8));
        }
        while chosen.len() > most.max(4) {
            chosen.swap_remove(2 + rng.below(chosen.len() - 2));
        }
        ChosenNames { chosen, all: false }
    }

    fn tree(&self, kept: Vec<bool>) -> Tree {
        let mut names = self.names.clone();
        for (change, _) in self.changes.iter().zip(&kept).filter(|(change, kept)| change.durable || **kept) {
            change.apply(&mut names);
        }
        let (mut paths, mut unsynced) = (Vec::with_capacity(names.len()), Vec::new());
        let mut dirs = vec![(ROOT, String::new())];
        let first = Name::from("");
        while let Some((dir, path)) = dirs.pop() {
            for ((_, name), entry) in names.range((dir, first.clone())..(dir + 1, first.clone())) {
                let path = if path.is_empty() { name.to_string() } else { format!("{path}/{name}") };
                if entry.is_dir {
                    dirs.push((entry.inode, path.clone()));
                    paths.push((path, None));
                } else {
                    if self.contents.get(&entry.inode).is_some_and(|content| content.pending().next().is_some()) {
                        unsynced.push(entry.inode);
                    }
                    paths.push((path, Some(entry.inode)));
                }
            }
        }
        Tree { kept, paths, unsynced }
    }

    /// The writes whose fates make a difference, with the length that their file may have had.
    fn writes<'a>(&'a self, tree: &'a Tree) -> impl Iterator<Item = (&'a Write, usize)> {
        let contents = tree.unsynced.iter().filter_map(|inode| self.contents.get(inode));
        contents.flat_map(|content| content.pending().map(|write| (write, content.durable.len())))
    }

    /// Whether the last effect can be seen in the tree: a write in a file that has no name cannot.
    fn shows(&self, tree: &Tree, last: Option<usize>) -> bool {
        let Some(last) = last else { return true };
        self.changes.iter().any(|change| change.at == last) || self.writes(tree).any(|(write, _)| write.at == last)
    }

    /// How many choices there are of the writes' fates.
    fn variants(&self, tree: &Tree, last: Option<usize>) -> usize {
        let of_write =
            |(write, length): (&Write, usize)| write.fates(length).len() - usize::from(last == Some(write.at));
        self.writes(tree).map(of_write).fold(1, usize::saturating_mul)
    }

    fn choices_of_writes(&self, tree: &Tree, variants: usize, share: usize, rng: &mut Rng) -> Vec<Choice> {
        if variants <= share {
            return (0..variants).map(Choice::Number).collect();
        }
        let mut choices = vec![Choice::All(Fate::Kept), Choice::All(Fate::Dropped), Choice::All(Fate::Zeroed)];
        if share == 1 {
            choices.extend((0..3).map(|_| Choice::Random(rng.next())));
            return vec![*rng.pick(&choices)];
        }
        let mut odd = Vec::new();
        for (index, (write, length)) in self.writes(tree).enumerate() {
            odd.push(Choice::But(Fate::Dropped, index, 0));
            odd.extend((1..write.fates(length).len()).map(|fate| Choice::But(Fate::Kept, index, fate)));
        }
        choices.truncate(share);
        let random = (share - choices.len()) / 3;
        while !odd.is_empty() && choices.len() + random < share {
            choices.push(odd.swap_remove(rng.below(odd.len())));
        }
        choices.extend((choices.len()..share).map(|_| Choice::Random(rng.next())));
        choices
    }

    /// `None` when the last effect would leave no trace.
    fn fates(&self, tree: &Tree, last: Option<usize>, choice: Choice) -> Option<Fates> {
        let mut fates: Fates = Vec::new();
        for (change, kept) in self.changes.iter().zip(&tree.kept).filter(|(change, _)| !change.durable) {
            fates.push((change.at, if *kept { Fate::Kept } else { Fate::Dropped }));
        }
        let (mut number, mut rng) = match choice {
            Choice::Number(number) => (number, Rng(0)),
            Choice::Random(seed) => (0, Rng(seed)),
            _ => (0, Rng(0)),
        };
        let kept_of_8 = 1 + rng.below(7);
        for (index, (write, length)) in self.writes(tree).enumerate() {
            let is_last = last == Some(write.at);
            let fate = match choice {
                Choice::All(Fate::Dropped) if is_last => Fate::Kept,
                Choice::All(Fate::Zeroed) if write.cuts || write.end() <= length => Fate::Kept,
                Choice::All(fate) => fate,
                Choice::But(_, odd, fate) if odd == index => *write.fates(length).get(fate)?,
                Choice::But(fate, ..) => fate,
                Choice::Number(_) => {
                    let mut possible = write.fates(length);
                    possible.retain(|fate| !(is_last && *fate == Fate::Dropped));
                    let fate = possible[number % possible.len()];
                    number /= possible.len();
                    fate
                }
                Choice::Random(_) if rng.below(8) < kept_of_8 => Fate::Kept,
                Choice::Random(_) => write.random_fate(length, &mut rng),
            };
            if is_last && fate == Fate::Dropped {
                return None;
            }
            fates.push((write.at, fate));
        }
        Some(fates)
    }

    fn image(&self, tree: &Tree, fates: &Fates) -> Image {
        let fate_of =
            |write: &Write| fates.iter().find(|(at, _)| *at == write.at).map_or(Fate::Kept, |(_, fate)| *fate);
        let content = |inode: &Inode| self.contents.get(inode).map_or_else(Bytes::default, |file| file.make(fate_of));
        let paths = tree.paths.iter();
        Image(paths.map(|(path, inode)| (path.clone(), inode.as_ref().map(content))).collect())
    }
}

struct ChosenNames {
    /// Which of the changes are kept.
    chosen: Vec<Vec<bool>>,
    /// Whether these are all there are.
    all: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::sim::Sim;
    use crate::fs::{Fs, write_all};

    /// Every image that a crash at the end of the record leaves, in a few words each.
    fn images(model: Model, image: &Image, done: impl FnOnce(&dyn Fs)) -> BTreeSet<String> {
        let sim = Sim::new(image, "/", true);
        sim.record();
        done(&sim);
        let mut disk = Disk::new(model, image);
        for (at, op) in sim.take_log().iter().enumerate() {
            disk.follow(at, op);
        }
        let mut images = BTreeSet::new();
        disk.images(None, 100_000, &mut Rng(1), &mut |image, fates| {
            assert_eq!(disk.image_of(&fates).as_ref(), Some(&image));
            images.insert(words(&image));
            true
        });
        images
    }

    fn words(image: &Image) -> String {
        let word = |(path, bytes): (&String, &Option<Bytes>)| match bytes {
            None => format!("{path}/"),
            Some(bytes) => format!("{path}={}", String::from_utf8_lossy(bytes).replace('\0', "0")),
        };
        image.0.iter().map(word).collect::<Vec<_>>().join(" ")
    }

    fn set(words: &[&str]) -> BTreeSet<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    fn put(fs: &dyn Fs, dir: &str, name: &str, bytes: &str, sync: bool) {
        let dir = fs.open_root(std::path::Path::new(dir)).unwrap();
        let mut file = fs.create(&dir, name).unwrap();
        write_all(&mut *file, bytes.as_bytes()).unwrap();
        if sync {
            file.sync_data().unwrap();
        }
    }

    #[test]
    fn a_file_without_any_sync_may_be_whole_torn_zeros_empty_or_not_there() {
        let expected = set(&["", "x=", "x=0000", "x=a", "x=ab", "x=ab00", "x=abc", "x=abcd"]);
        for model in MODELS {
            assert_eq!(images(model, &Image::default(), |fs| put(fs, "/", "x", "abcd", false)), expected, "{model:?}");
        }
    }

    #[test]
    fn synced_bytes_are_whole_and_their_name_is_another_matter() {
        let done = |fs: &dyn Fs| put(fs, "/", "x", "abcd", true);
        assert_eq!(images(Model::Posix, &Image::default(), done), set(&["", "x=abcd"]));
        assert_eq!(images(Model::Ordered, &Image::default(), done), set(&["x=abcd"]));
    }

    /// Two directories, each with the old file.
    fn start() -> Image {
        let mut image = Image::of_dirs(&["a", "b"]);
        image.0.insert("a/x".into(), Some(Arc::new(b"old".to_vec())));
        image.0.insert("b/x".into(), Some(Arc::new(b"old".to_vec())));
        image
    }

    #[test]
    fn renames_may_be_lost_each_for_itself_or_in_order() {
        let done = |fs: &dyn Fs| {
            let (a, b) = (fs.open_root("/a".as_ref()).unwrap(), fs.open_root("/b".as_ref()).unwrap());
            put(fs, "/a", "t", "new", true);
            fs.sync_dir(&a).unwrap();
            put(fs, "/b", "t", "new", true);
            fs.sync_dir(&b).unwrap();
            fs.rename(&a, "t", &a, "x").unwrap();
            fs.rename(&b, "t", &b, "x").unwrap();
        };
        let (none, all) = ("a/ a/t=new a/x=old b/ b/t=new b/x=old", "a/ a/x=new b/ b/x=new");
        let (first, second) = ("a/ a/x=new b/ b/t=new b/x=old", "a/ a/t=new a/x=old b/ b/x=new");
        assert_eq!(images(Model::Posix, &start(), done), set(&[none, first, second, all]));
        assert_eq!(images(Model::Ordered, &start(), done), set(&[none, first, all]));
    }

    #[test]
    fn a_rename_is_durable_with_its_target_directory_and_takes_the_old_name_along() {
        let moved = |sync: &'static str| {
            move |fs: &dyn Fs| {
                let (a, b) = (fs.open_root("/a".as_ref()).unwrap(), fs.open_root("/b".as_ref()).unwrap());
                fs.rename(&a, "x", &b, "y").unwrap();
                fs.sync_dir(&fs.open_root(sync.as_ref()).unwrap()).unwrap();
            }
        };
        let (before, after) = ("a/ a/x=old b/ b/x=old", "a/ b/ b/x=old b/y=old");
        assert_eq!(images(Model::Posix, &start(), moved("/a")), set(&[before, after]));
        assert_eq!(images(Model::Posix, &start(), moved("/b")), set(&[after]));
        assert_eq!(images(Model::Ordered, &start(), moved("/a")), set(&[after]));
    }

    #[test]
    fn unlinked_files_come_back_until_their_directory_is_synced() {
        let unlink = |fs: &dyn Fs| fs.unlink(&fs.open_root("/a".as_ref()).unwrap(), "x").unwrap();
        let synced = |fs: &dyn Fs| {
            unlink(fs);
            fs.sync_dir(&fs.open_root("/a".as_ref()).unwrap()).unwrap();
        };
        for model in MODELS {
            assert_eq!(images(model, &start(), unlink), set(&["a/ a/x=old b/ b/x=old", "a/ b/ b/x=old"]));
            assert_eq!(images(model, &start(), synced), set(&["a/ b/ b/x=old"]));
        }
    }

    #[test]
    fn a_directory_that_was_never_durable_takes_what_is_in_it_along() {
        let done = |fs: &dyn Fs| {
            fs.make_root("/c".as_ref()).unwrap();
            put(fs, "/c", "x", "new", true);
            fs.sync_dir(&fs.open_root("/c".as_ref()).unwrap()).unwrap();
        };
        assert_eq!(images(Model::Posix, &Image::default(), done), set(&["", "c/ c/x=new"]));
        assert_eq!(images(Model::Ordered, &Image::default(), done), set(&["c/ c/x=new"]));
    }

    #[test]
    fn a_sync_of_everything_leaves_no_doubt() {
        let done = |fs: &dyn Fs| {
            fs.make_root("/c".as_ref()).unwrap();
            put(fs, "/c", "x", "new", false);
            fs.sync_fs(&fs.open_root("/".as_ref()).unwrap()).unwrap();
        };
        for model in MODELS {
            assert_eq!(images(model, &Image::default(), done), set(&["c/ c/x=new"]));
        }
    }

    #[test]
    fn appended_bytes_are_torn_and_what_was_durable_stays() {
        let done = |fs: &dyn Fs| {
            let root = fs.open_root("/".as_ref()).unwrap();
            let mut file = fs.create(&root, "x").unwrap();
            file.write_at(b"ab", 0).unwrap();
            file.sync_data().unwrap();
            fs.sync_dir(&root).unwrap();
            file.write_at(b"cd", 2).unwrap();
            file.write_at(b"ef", 4).unwrap();
        };
        let images = images(Model::Posix, &Image::default(), done);
        assert!(images.iter().all(|image| image.starts_with("x=ab")), "{images:?}");
        for expected in ["x=ab", "x=abc", "x=abcd", "x=abcdef", "x=ab00ef", "x=abcde", "x=abcd00", "x=ab0000"] {
            assert!(images.contains(expected), "{expected} of {images:?}");
        }
    }

    #[test]
    fn what_a_failed_sync_covered_is_not_made_durable_by_the_next() {
        let sim = Sim::new(&Image::default(), "/", true);
        sim.record();
        let root = sim.open_root("/".as_ref()).unwrap();
        let mut file = sim.create(&root, "x").unwrap();
        sim.sync_dir(&root).unwrap();
        file.write_at(b"ab", 0).unwrap();
        sim.set_fault(Some(crate::fs::sim::Fault { at: 0, sticky: false, errno: crate::fs::sim::EIO }));
        file.sync_data().unwrap_err();
        file.sync_data().unwrap();
        let mut disk = Disk::new(Model::Ordered, &Image::default());
        for (at, op) in sim.take_log().iter().enumerate() {
            disk.follow(at, op);
        }
        let mut found = BTreeSet::new();
        disk.images(None, 100, &mut Rng(1), &mut |image, _| {
            found.insert(words(&image));
            true
        });
        assert_eq!(found, set(&["x=", "x=00", "x=a", "x=a0", "x=ab"]));
    }
}
