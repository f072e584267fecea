//! A frame: one change of one member, one clear, one transaction, or a block of values, under checksums of its own.
//!
//! `docs/format.md` has it byte by byte. A frame is all or nothing. Its checksums cover the number of its segment and
//! its place in it, so that bytes that belong elsewhere are never taken for a frame.

use crate::backend::Change;
use crate::codec;
use crate::key::{self, MAX_VALUE};
use crate::map::MAX_VERSION;

/// The bytes of a frame's header.
pub(crate) const HEADER: usize = 24;

/// Frames begin at multiples of this.
pub(crate) const ALIGNMENT: usize = 8;

const CHANGE: u32 = 1;
const TRANSACTION: u32 = 2;
/// Values of one collection that came together, or were put together by a compaction.
const BLOCK: u32 = 3;
/// What a packed segment says of others.
const OTHERS: u32 = 4;

const PUT: u8 = 1;
const DELETE: u8 = 2;
const DEADLINE: u8 = 3;
const CLEAR: u8 = 4;

/// The bytes of a frame with a body of this length, to the beginning of the next.
pub(crate) fn room(body: usize) -> usize {
    (HEADER + body).next_multiple_of(ALIGNMENT)
}

/// Where a frame stands, which its checksums cover.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) segment: u64,
    pub(crate) offset: u64,
}

/// Appends a frame to `out`. `synced` is how far its segment is durable: at the latest where this frame begins.
///
/// A single change makes a frame of its own; several are a transaction.
pub(crate) fn encode(out: &mut Vec<u8>, place: Place, synced: u64, changes: &[Change<'_>]) {
    let start = out.len();
    out.resize(start + HEADER, 0);
    let kind = match changes {
        [change] => {
            encode_change(out, change);
            CHANGE
        }
        changes => {
            encode_transaction(out, changes);
            TRANSACTION
        }
    };
    finish(out, start, place, synced, kind);
}

/// Appends changes, each of which counts by itself. Neighbours that are values of one collection, of one codec, share a
/// block, whose size bounds what one damaged sector costs.
pub(crate) fn encode_each(out: &mut Vec<u8>, mut place: Place, synced: u64, changes: &[Change<'_>]) {
    let mut rest = changes;
    while let Some(first) = rest.first() {
        let start = out.len();
        let (some, others) = rest.split_at(alike(rest));
        rest = others;
        out.resize(start + HEADER, 0);
        let kind = match *first {
            Change::Put { collection, codec, .. } if some.len() > 1 => {
                let base = some.iter().map(Change::version).min().unwrap_or(0);
                begin_block(out, some.len() as u32, base, collection, codec);
                for change in some {
                    if let Change::Put { member, version, deadline, value, .. } = *change {
                        encode_member(out, base, member, version, deadline, value);
                    }
                }
                BLOCK
            }
            _ => {
                encode_change(out, first);
                CHANGE
            }
        };
        finish(out, start, place, synced, kind);
        place.offset += (out.len() - start) as u64;
    }
}

/// How many of these changes, from the first, go into one frame.
fn alike(changes: &[Change<'_>]) -> usize {
    /// The bytes of the members, at most. Larger values stand alone.
    const BLOCK: usize = 4 << 10;
    /// At most as much as a version and two lengths take.
    const NUMBERS: usize = 8 + 2 + 4;

    let Some(Change::Put { collection: first, codec: of_first, .. }) = changes.first() else { return 1 };
    let mut bytes = 0;
    let fits = |change: &&Change<'_>| match change {
        Change::Put { collection, member, codec, value, deadline, .. } if collection == first && codec == of_first => {
            bytes += NUMBERS + member.len() + value.len() + deadline.map_or(0, |deadline| size_of_val(&deadline));
            bytes <= BLOCK
        }
        _ => false,
    };
    changes.iter().take_while(fits).count().max(1)
}

/// The members of a block, in its body's form.
#[derive(Debug)]
pub(crate) struct Block {
    collection: Box<str>,
    codec: Box<str>,
    /// Versions are counted from this one.
    base: u64,
    count: u32,
    members: Vec<u8>,
}

impl Block {
    pub(crate) fn new(collection: &str, codec: &str, base: u64) -> Block {
        Block { collection: collection.into(), codec: codec.into(), base, count: 0, members: Vec::new() }
    }

    pub(crate) fn push(&mut self, member: &str, version: u64, deadline: Option<u64>, value: &[u8]) {
        self.count += 1;
        encode_member(&mut self.members, self.base, member, version, deadline, value);
    }

    /// The bytes of its members.
    pub(crate) fn len(&self) -> usize {
        self.members.len()
    }

    /// Appends it as a frame.
    pub(crate) fn encode(&self, out: &mut Vec<u8>, place: Place, synced: u64) {
        let start = out.len();
        out.resize(start + HEADER, 0);
        begin_block(out, self.count, self.base, &self.collection, &self.codec);
        out.extend_from_slice(&self.members);
        finish(out, start, place, synced, BLOCK);
    }
}

fn begin_block(out: &mut Vec<u8>, count: u32, base: u64, collection: &str, codec: &str) {
    out.extend_from_slice(&count.to_le_bytes());
    out.extend_from_slice(&base.to_le_bytes());
    for name in [collection, codec] {
        out.push(name.len() as u8);
        out.extend_from_slice(name.as_bytes());
    }
}

fn encode_member(out: &mut Vec<u8>, base: u64, member: &str, version: u64, deadline: Option<u64>, value: &[u8]) {
    // Most follow the base; one that does not wraps around.
    encode_varint(out, version.wrapping_sub(base) & MAX_VERSION);
    encode_varint(out, (member.len() as u64) << 1 | u64::from(deadline.is_some()));
    out.extend_from_slice(member.as_bytes());
    if let Some(deadline) = deadline {
        out.extend_from_slice(&deadline.to_le_bytes());
    }
    encode_varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

/// What a packed segment says of others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Others {
    /// It takes the place of these.
    pub(crate) replaced: Vec<u64>,
    /// How far these are durable. The segments that said so may be among those that were replaced.
    pub(crate) ends: Vec<(u64, u64)>,
}

impl Others {
    /// Appends it as a frame.
    pub(crate) fn encode(&self, out: &mut Vec<u8>, place: Place, synced: u64) {
        let start = out.len();
        out.resize(start + HEADER, 0);
        out.extend_from_slice(&(self.replaced.len() as u32).to_le_bytes());
        let ends = self.ends.iter().flat_map(|&(number, end)| [number, end]);
        self.replaced.iter().copied().chain(ends).for_each(|number| out.extend_from_slice(&number.to_le_bytes()));
        finish(out, start, place, synced, OTHERS);
    }
}

/// Seven bits a byte, the lowest first; the highest bit says that there are more (LEB128).
fn encode_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Appends a frame whose body is there already.
pub(crate) fn copy(out: &mut Vec<u8>, place: Place, synced: u64, frame: &Frame<'_>) {
    let start = out.len();
    out.resize(start + HEADER, 0);
    out.extend_from_slice(frame.body);
    finish(out, start, place, synced, frame.kind);
}

fn finish(out: &mut Vec<u8>, start: usize, place: Place, synced: u64, kind: u32) {
    let (header, body) = out[start..].split_at_mut(HEADER);
    header[0..4].copy_from_slice(&(body.len() as u32).to_le_bytes());
    header[4..8].copy_from_slice(&crc32fast::hash(body).to_le_bytes());
    header[8..16].copy_from_slice(&synced.to_le_bytes());
    header[16..20].copy_from_slice(&kind.to_le_bytes());
    let checksum = header_checksum(place, header);
    header[20..24].copy_from_slice(&checksum.to_le_bytes());
    let padded = start + room(body.len());
    out.resize(padded, 0);
}

/// CRC-32 (IEEE 802.3) of the segment's number, the frame's offset, and the header before this checksum.
fn header_checksum(place: Place, header: &[u8]) -> u32 {
    let mut covered = [0; 16 + 20];
    covered[0..8].copy_from_slice(&place.segment.to_le_bytes());
    covered[8..16].copy_from_slice(&place.offset.to_le_bytes());
    covered[16..].copy_from_slice(&header[..20]);
    crc32fast::hash(&covered)
}

/// At least as many bytes as the change takes in a frame.
pub(crate) fn size(change: &Change<'_>) -> usize {
    /// More than numbers and the codec's name take.
    const REST: usize = 64;
    REST + match *change {
        Change::Put { collection, member, value, .. } => collection.len() + member.len() + value.len(),
        Change::Delete { collection, member, .. } | Change::Deadline { collection, member, .. } => {
            collection.len() + member.len()
        }
        Change::Clear { collection, .. } => collection.len(),
    }
}

fn encode_transaction(out: &mut Vec<u8>, changes: &[Change<'_>]) {
    out.extend_from_slice(&(changes.len() as u32).to_le_bytes());
    changes.iter().for_each(|change| encode_change(out, change));
}

fn encode_change(out: &mut Vec<u8>, change: &Change<'_>) {
    let (kind, collection, member) = match *change {
        Change::Put { collection, member, .. } => (PUT, collection, Some(member)),
        Change::Delete { collection, member, .. } => (DELETE, collection, Some(member)),
        Change::Deadline { collection, member, .. } => (DEADLINE, collection, Some(member)),
        Change::Clear { collection, .. } => (CLEAR, collection, None),
    };
    out.push(kind);
    out.extend_from_slice(&change.version().to_le_bytes());
    // A collection is at most 255 bytes, a member at most 1,024, a codec's name at most 32.
    out.push(collection.len() as u8);
    out.extend_from_slice(collection.as_bytes());
    if let Some(member) = member {
        out.extend_from_slice(&(member.len() as u16).to_le_bytes());
        out.extend_from_slice(member.as_bytes());
    }
    if let Change::Put { deadline, .. } | Change::Deadline { deadline, .. } = *change {
        out.extend_from_slice(&deadline.unwrap_or(u64::MAX).to_le_bytes());
    }
    if let Change::Put { codec, value, .. } = *change {
        out.push(codec.len() as u8);
        out.extend_from_slice(codec.as_bytes());
        out.extend_from_slice(&(value.len() as u32).to_le_bytes());
        out.extend_from_slice(value);
    }
}

/// A frame whose checksums are right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    kind: u32,
    /// How far its segment was durable when it was written.
    pub(crate) synced: u64,
    pub(crate) body: &'a [u8],
}

/// A frame's content, apart from the segment that it was read from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Content {
    kind: u32,
    body: Box<[u8]>,
}

impl Frame<'_> {
    /// The bytes of the frame.
    pub(crate) fn size(&self) -> u64 {
        room(self.body.len()) as u64
    }

    pub(crate) fn to_content(self) -> Content {
        Content { kind: self.kind, body: self.body.into() }
    }
}

impl Content {
    /// A transaction of these changes.
    pub(crate) fn of(changes: &[Change<'_>]) -> Content {
        let mut body = Vec::new();
        encode_transaction(&mut body, changes);
        Content { kind: TRANSACTION, body: body.into() }
    }

    /// The bytes of the frame.
    pub(crate) fn size(&self) -> u64 {
        room(self.body.len()) as u64
    }

    pub(crate) fn frame(&self) -> Frame<'_> {
        Frame { kind: self.kind, synced: 0, body: &self.body }
    }
}

/// What stands where a frame could begin.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found<'a> {
    /// A frame, whole.
    Whole(Frame<'a>),
    /// A frame's header, and a body that is damaged, or that goes beyond the end: its length.
    Broken(usize),
    /// Nothing that a frame begins with.
    Nothing,
}

/// Looks for a frame at the beginning of `bytes`, which stand at `place`.
pub(crate) fn find(bytes: &[u8], place: Place) -> Found<'_> {
    let Some((header, rest)) = bytes.split_at_checked(HEADER) else { return Found::Nothing };
    let (length, kind) = (number(&header[0..4]), number(&header[16..20]));
    // Most of what is no frame is zeros, and is told without a checksum.
    if length == 0 || !matches!(kind, CHANGE | TRANSACTION | BLOCK | OTHERS) {
        return Found::Nothing;
    }
    if header_checksum(place, header) != number(&header[20..24]) {
        return Found::Nothing;
    }
    let length = length as usize;
    match rest.get(..length) {
        Some(body) if crc32fast::hash(body) == number(&header[4..8]) => {
            let synced = u64::from(number(&header[8..12])) | u64::from(number(&header[12..16])) << 32;
            Found::Whole(Frame { kind, synced, body })
        }
        _ => Found::Broken(length),
    }
}

/// Four bytes, little end first.
fn number(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |number, &byte| number << 8 | u32::from(byte))
}

impl<'a> Frame<'a> {
    /// The changes in it: `None` if its body is not one that larder writes.
    pub(crate) fn changes(&self) -> Option<Vec<Change<'a>>> {
        // Grows with what is there: a count alone allocates nothing.
        let mut changes = Vec::new();
        self.each(|change| changes.push(change)).then_some(changes)
    }

    /// Calls `found` with each change, in order. False if the body is not one that larder writes: `found` may have been
    /// called all the same.
    pub(crate) fn each(&self, mut found: impl FnMut(Change<'a>)) -> bool {
        let mut body = Body(self.body);
        let whole = match self.kind {
            CHANGE => body.change().map(&mut found),
            TRANSACTION => body.u32().and_then(|count| (0..count).try_for_each(|_| body.change().map(&mut found))),
            BLOCK => body.block(&mut found),
            _ => body.others().map(drop),
        };
        whole.is_some() && body.0.is_empty()
    }

    /// What it says of other segments, if that is what it is for.
    pub(crate) fn others(&self) -> Option<Others> {
        if self.kind == OTHERS { Body(self.body).others() } else { None }
    }

    /// Whether it is the mark of a close: a transaction without changes.
    pub(crate) fn is_mark(&self) -> bool {
        self.kind == TRANSACTION && self.body == [0; 4]
    }
}

/// What is left to read of a body.
struct Body<'a>(&'a [u8]);

impl<'a> Body<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn u32(&mut self) -> Option<u32> {
        self.take(4).map(number)
    }

    fn u64(&mut self) -> Option<u64> {
        let (low, high) = (self.u32()?, self.u32()?);
        Some(u64::from(low) | u64::from(high) << 32)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut number = 0u64;
        for shift in (0..63).step_by(7) {
            let byte = self.u8()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                // Of the spellings of a number only the shortest is larder's.
                return (byte > 0 || shift == 0).then_some(number);
            }
        }
        None
    }

    fn others(&mut self) -> Option<Others> {
        let mut others = Others::default();
        for _ in 0..self.u32()? {
            others.replaced.push(self.u64()?);
        }
        while !self.0.is_empty() {
            others.ends.push((self.u64()?, self.u64()?));
        }
        Some(others)
    }

    fn block(&mut self, found: &mut impl FnMut(Change<'a>)) -> Option<()> {
        let count = self.u32()?;
        let base = self.u64().filter(|&base| base <= MAX_VERSION)?;
        let length = self.u8()?;
        let collection = self.text(length.into())?;
        key::check_collection(collection).ok()?;
        let length = self.u8()?;
        let codec = self.text(length.into()).filter(|codec| codec::is_codec_name(codec))?;
        for _ in 0..count {
            let version = self.varint().filter(|&version| version <= MAX_VERSION)?;
            let version = version.wrapping_add(base) & MAX_VERSION;
            let length = self.varint()?;
            let member = self.text(usize::try_from(length >> 1).ok()?)?;
            key::check_member(collection, member).ok()?;
            // The highest number stands for none, which is not spelled out here.
            let deadline = if length & 1 == 1 { Some(self.u64().filter(|&at| at != u64::MAX)?) } else { None };
            let length = usize::try_from(self.varint()?).ok()?;
            let value = self.take(length).filter(|value| value.len() <= MAX_VALUE)?;
            found(Change::Put { collection, member, version, deadline, codec, value });
        }
        Some(())
    }

    fn text(&mut self, length: usize) -> Option<&'a str> {
        std::str::from_utf8(self.take(length)?).ok()
    }

    fn change(&mut self) -> Option<Change<'a>> {
        let kind = self.u8()?;
        let version = self.u64().filter(|&version| version <= MAX_VERSION)?;
        let length = self.u8()?;
        let collection = self.text(length.into())?;
        key::check_collection(collection).ok()?;
        if kind == CLEAR {
            return Some(Change::Clear { collection, version });
        }
        let length = self.take(2)?;
        let member = self.text(usize::from(length[0]) | usize::from(length[1]) << 8)?;
        key::check_member(collection, member).ok()?;
        if kind == DELETE {
            return Some(Change::Delete { collection, member, version });
        }
        let deadline = Some(self.u64()?).filter(|&deadline| deadline != u64::MAX);
        if kind == DEADLINE {
            return Some(Change::Deadline { collection, member, version, deadline });
        }
        if kind != PUT {
            return None;
        }
        let length = self.u8()?;
        let codec = self.text(length.into()).filter(|codec| codec::is_codec_name(codec))?;
        let length = self.u32()? as usize;
        let value = self.take(length).filter(|value| value.len() <= MAX_VALUE)?;
        Some(Change::Put { collection, member, version, deadline, codec, value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place = Place { segment: 7, offset: 64 };

    fn samples() -> Vec<Vec<Change<'static>>> {
        let put = |member, value, deadline| Change::Put {
            collection: "artist",
            member,
            version: 42,
            deadline,
            codec: "json",
            value,
        };
        vec![
            vec![put("daft_punk", b"{\"quality\":\"epic\"}", None)],
            vec![put("bj\u{f6}rk/\0", b"", Some(0))],
            vec![put("m", &[0xff; 300], Some(1_800_000_000_000))],
            vec![Change::Delete { collection: "artist", member: "m", version: MAX_VERSION }],
            vec![Change::Deadline { collection: "artist", member: "m", version: 1, deadline: Some(7) }],
            vec![Change::Deadline { collection: "artist", member: "m", version: 1, deadline: None }],
            vec![Change::Clear { collection: "a", version: 0 }],
            vec![put("a", b"1", None), Change::Delete { collection: "b", member: "c", version: 43 }],
        ]
    }

    fn encoded(changes: &[Change<'_>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(&mut bytes, PLACE, 0x0102_0304_0506, changes);
        assert_eq!(bytes.len() % ALIGNMENT, 0);
        bytes
    }

    #[test]
    fn every_kind_of_frame_comes_back() {
        for changes in samples() {
            let bytes = encoded(&changes);
            let Found::Whole(frame) = find(&bytes, PLACE) else { panic!("{changes:?}") };
            assert_eq!(room(frame.body.len()), bytes.len());
            assert_eq!(frame.synced, 0x0102_0304_0506);
            assert_eq!(frame.changes().unwrap(), changes);
            let mut again = Vec::new();
            copy(&mut again, PLACE, frame.synced, &frame);
            assert_eq!(again, bytes);
        }
    }

    #[test]
    fn a_frame_that_is_cut_changed_or_elsewhere_is_none() {
        for changes in samples() {
            let bytes = encoded(&changes);
            let Found::Whole(frame) = find(&bytes, PLACE) else { panic!("{changes:?}") };
            let length = HEADER + frame.body.len();
            for end in 0..length {
                assert!(!matches!(find(&bytes[..end], PLACE), Found::Whole(_)), "cut at {end}");
            }
            for at in 0..length {
                let mut damaged = bytes.clone();
                damaged[at] ^= 0x10;
                assert!(!matches!(find(&damaged, PLACE), Found::Whole(_)), "byte {at}");
            }
            assert_eq!(find(&bytes, Place { segment: 8, ..PLACE }), Found::Nothing);
            assert_eq!(find(&bytes, Place { offset: 72, ..PLACE }), Found::Nothing);
        }
    }

    #[test]
    fn a_block_comes_back_and_is_none_when_it_is_cut_or_changed() {
        let members = [
            ("a", 42, None, &b"1"[..]),
            ("bj\u{f6}rk", 7, Some(1_800_000_000_000), b""),
            ("c", MAX_VERSION, None, &[9; 300]),
        ];
        let mut block = Block::new("artist", "json", 42);
        members.iter().for_each(|&(member, version, deadline, value)| block.push(member, version, deadline, value));
        let mut bytes = Vec::new();
        block.encode(&mut bytes, PLACE, 64);
        let Found::Whole(frame) = find(&bytes, PLACE) else { panic!("{bytes:?}") };
        let put = |&(member, version, deadline, value): &(_, _, _, _)| Change::Put {
            collection: "artist",
            member,
            version,
            deadline,
            codec: "json",
            value,
        };
        assert_eq!(frame.changes().unwrap(), members.iter().map(put).collect::<Vec<_>>());
        assert_eq!(frame.others(), None);
        for end in 0..frame.body.len() {
            assert_eq!(Frame { body: &frame.body[..end], ..frame }.changes(), None);
            assert!(!matches!(find(&bytes[..HEADER + end], PLACE), Found::Whole(_)), "cut at {end}");
        }
        for at in 0..HEADER + frame.body.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            assert!(!matches!(find(&damaged, PLACE), Found::Whole(_)), "byte {at}");
        }
    }

    #[test]
    fn neighbours_that_are_alike_share_a_frame_of_a_bounded_size() {
        let large = vec![b'l'; 5000];
        let names: Vec<String> = (0..200).map(|n| format!("member {n}")).collect();
        let put = |collection, codec, member, version, value| Change::Put {
            collection,
            member,
            version,
            deadline: (version % 3 == 0).then_some(version),
            codec,
            value,
        };
        let mut changes = vec![
            Change::Clear { collection: "a", version: 1 },
            put("a", "raw", "m", 9, &b"1"[..]),
            put("a", "raw", "n", 7, b""),
            put("a", "json", "o", 8, b"2"),
            put("b", "json", "o", 10, b"3"),
            Change::Delete { collection: "b", member: "p", version: 11 },
            put("b", "json", "q", 12, b"4"),
            put("b", "json", "r", 13, &large),
            put("b", "json", "s", 14, b"5"),
            put("b", "json", "t", 15, b"6"),
        ];
        let few = [1, 2, 1, 1, 1, 1, 1, 2];
        changes.extend((16..).zip(&names).map(|(version, name)| put("c", "raw", name, version, &[7; 100])));
        let mut bytes = vec![0; 8];
        encode_each(&mut bytes, PLACE, 64, &changes);
        let (mut at, mut found, mut sizes) = (8, Vec::new(), Vec::new());
        while at < bytes.len() {
            let place = Place { offset: PLACE.offset + at as u64 - 8, ..PLACE };
            let Found::Whole(frame) = find(&bytes[at..], place) else { panic!("at {at}") };
            assert_eq!(frame.synced, 64);
            let changes = frame.changes().unwrap();
            sizes.push((changes.len(), frame.body.len()));
            found.extend(changes);
            at += frame.size() as usize;
        }
        assert_eq!(found, changes);
        assert!(sizes.iter().map(|(changes, _)| *changes).take(few.len()).eq(few), "{sizes:?}");
        let blocks = &sizes[few.len()..];
        let is_full = |size: usize| ((3 << 10)..=(4 << 10) + 32).contains(&size);
        assert!(blocks[..blocks.len() - 1].iter().all(|(_, size)| is_full(*size)), "{sizes:?}");
        assert!(blocks.len() > 4 && is_full(blocks[blocks.len() - 1].1.max(3 << 10)), "{sizes:?}");
    }

    #[test]
    fn many_small_members_with_deadlines_fill_no_larger_block() {
        let names: Vec<String> = (0..2000).map(|number| format!("{number}")).collect();
        // One of them is much older.
        let version = |number: usize| if number == 0 { 1 } else { MAX_VERSION - 2000 + number as u64 };
        let changes: Vec<Change<'_>> = names
            .iter()
            .enumerate()
            .map(|(number, member)| Change::Put {
                collection: "c",
                member,
                version: version(number),
                deadline: Some(u64::MAX - 1),
                codec: "raw",
                value: b"",
            })
            .collect();
        let mut bytes = Vec::new();
        encode_each(&mut bytes, PLACE, 64, &changes);
        let (mut at, mut met) = (0, 0);
        while at < bytes.len() {
            let place = Place { offset: PLACE.offset + at as u64, ..PLACE };
            let Found::Whole(frame) = find(&bytes[at..], place) else { panic!("at {at}") };
            assert!(frame.body.len() <= (4 << 10) + 32, "{}", frame.body.len());
            met += frame.changes().unwrap().len();
            at += frame.size() as usize;
        }
        assert_eq!(met, changes.len());
    }

    #[test]
    fn a_block_has_one_spelling() {
        let body = |member: &[u8]| {
            let start = [&[1, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 1][..], b"c\x03raw"].concat();
            [&start[..], member].concat()
        };
        let is_block = |member: &[u8]| Frame { kind: BLOCK, synced: 0, body: &body(member) }.changes().is_some();
        assert!(is_block(b"\x00\x02m\x01v"));
        assert!(!is_block(b"\x80\x00\x02m\x01v"), "a number with a byte too many");
        assert!(!is_block(b"\x00\x82\x00m\x01v") && !is_block(b"\x00\x02m\x81\x00v"));
        assert!(is_block(&[&b"\x00\x03m"[..], &[0xfe; 8], b"\x01v"].concat()));
        assert!(!is_block(&[&b"\x00\x03m"[..], &[0xff; 8], b"\x01v"].concat()), "no deadline, spelled out");
        assert!(!is_block(b"\x00\x00\x01v") && !is_block(b"\x00\x02m\x02v"));
    }

    #[test]
    fn what_is_said_of_others_comes_back_and_holds_no_changes() {
        for others in [
            Others::default(),
            Others { replaced: vec![1, u64::MAX], ends: Vec::new() },
            Others { replaced: vec![7], ends: vec![(8, 64), (9, 1 << 40)] },
        ] {
            let mut bytes = Vec::new();
            others.encode(&mut bytes, PLACE, 64);
            let Found::Whole(frame) = find(&bytes, PLACE) else { panic!("{others:?}") };
            assert_eq!(frame.changes(), Some(Vec::new()));
            assert_eq!(frame.others().as_ref(), Some(&others));
            for end in (0..frame.body.len()).filter(|end| end % 8 != 4) {
                assert_eq!(Frame { body: &frame.body[..end], ..frame }.others(), None);
            }
        }
    }

    #[test]
    fn a_body_that_larder_would_not_write_holds_no_changes() {
        for changes in samples() {
            let bytes = encoded(&changes);
            let Found::Whole(frame) = find(&bytes, PLACE) else { panic!("{changes:?}") };
            let longer = [frame.body, &[0]].concat();
            assert_eq!(Frame { body: &longer, ..frame }.changes(), None);
            for end in 0..frame.body.len() {
                assert_eq!(Frame { body: &frame.body[..end], ..frame }.changes(), None);
            }
        }
        let clear = |collection: &[u8]| {
            let body = [&[CLEAR, 1, 0, 0, 0, 0, 0, 0, 0, collection.len() as u8], collection].concat();
            Frame { kind: CHANGE, synced: 0, body: &body }.changes().is_some()
        };
        assert!(clear(b"a"));
        assert!(!clear(b"") && !clear(b"..") && !clear(b"a/b") && !clear(b"\xff"));
        let many = Frame { kind: TRANSACTION, synced: 0, body: &[0xff; 4] };
        assert_eq!(many.changes(), None, "a count of changes that are not there");
    }
}
