//! What the fuzz targets in `fuzz/` run, and a test in small: properties of all that reads bytes from the disk, or
//! that are imported.
//!
//! Each function takes the bytes of the fuzzer. The first chooses a mode: bytes as they are; bytes whose checksums are
//! put right first, or nothing behind a checksum would ever be reached; or bytes that say what to write, and how to
//! damage it, so that it is known what must be read.

use std::ops::Range;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use crate::Store;
use crate::backend::Change;
use crate::backend::files::header;
use crate::backend::files::meta::{self, Count, Format, Kept, Mark};
use crate::journal::Extent;
use crate::journal::frame::{self, ALIGNMENT, Block, Content, Found, Frame, Others, Place};
use crate::journal::segment::{self, Scan};
use crate::map::MAX_VERSION;
use crate::{clock, codec, key, lines};

/// Does the work, and says how many bytes were allocated at once for it, at most. One that cannot tell says 0.
pub type Meter<'a> = &'a dyn Fn(&mut dyn FnMut()) -> usize;

/// A member of a block takes 4 bytes of a body, and 96 of a vector, which doubles and is there twice while it moves.
const MOST_PER_BYTE: usize = 72;

/// Messages, and what a small vector begins with.
const MOST_AT_ALL: usize = 4096;

/// Does the work on an input of this length, which bounds what it may allocate.
fn bounded<R>(meter: Meter<'_>, input: usize, mut work: impl FnMut() -> R) -> R {
    let mut result = None;
    let peak = meter(&mut || result = Some(work()));
    let most = input * MOST_PER_BYTE + MOST_AT_ALL;
    assert!(peak <= most, "{peak} bytes were allocated for an input of {input}");
    let Some(result) = result else { unreachable!("the meter does the work") };
    result
}

/// The fuzzer's bytes. At their end there are zeros.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn number(&mut self, bytes: usize) -> u64 {
        little_end_first(self.take(bytes))
    }

    fn byte(&mut self) -> u8 {
        self.number(1) as u8
    }

    /// Text of 1 to `longest` bytes. Now and then it is as long as it may be.
    fn text(&mut self, longest: usize) -> String {
        let control = usize::from(self.byte());
        let mut text = String::from_utf8_lossy(self.take(1 + control % 24)).into_owned();
        if matches!(control, 0xf1 | 0xf2) && !text.is_empty() {
            text = text.repeat(longest / text.len() + 1);
        }
        let mut end = longest.min(text.len());
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        if text.is_empty() { "x".to_owned() } else { text }
    }

    fn version(&mut self) -> u64 {
        match self.byte() {
            0xff => MAX_VERSION,
            small @ 0x80.. => u64::from(small),
            _ => self.number(8) & MAX_VERSION,
        }
    }

    fn deadline(&mut self) -> Option<u64> {
        match self.byte() {
            0xff => Some(u64::MAX - 1),
            byte if byte.is_multiple_of(2) => None,
            // The highest number stands for none.
            _ => Some(self.number(8)).filter(|&deadline| deadline != u64::MAX),
        }
    }

    fn value(&mut self) -> Vec<u8> {
        let control = usize::from(self.byte());
        match control {
            // Zeros, and more of them than are stepped over at once.
            0xf1 | 0xf2 => vec![self.byte() & 1; (control - 0xf0) * 4200],
            _ => self.take(control % 64).to_vec(),
        }
    }

    fn made(&mut self) -> Made {
        const LETTERS: &[u8; 38] = b"abcdefghijklmnopqrstuvwxyz0123456789-_";
        let kind = self.byte();
        let mut collection = self.text(key::MAX_COLLECTION).replace('/', "_");
        if collection.starts_with('.') {
            collection.replace_range(..1, "d");
        }
        let made = Made {
            kind,
            collection,
            member: self.text(key::MAX_MEMBER),
            version: self.version(),
            deadline: self.deadline(),
            codec: (0..=self.byte() % codec::MAX_CODEC as u8)
                .map(|_| char::from(LETTERS[usize::from(self.byte()) % LETTERS.len()]))
                .collect(),
            value: self.value(),
        };
        assert!(key::check_collection(&made.collection).is_ok() && codec::is_codec_name(&made.codec));
        assert!(key::check_member(&made.collection, &made.member).is_ok());
        made
    }
}

fn little_end_first(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

/// A change as the input says.
struct Made {
    kind: u8,
    collection: String,
    member: String,
    version: u64,
    deadline: Option<u64>,
    codec: String,
    value: Vec<u8>,
}

impl Made {
    fn change(&self) -> Change<'_> {
        let Made { kind, collection, member, version, deadline, codec, value } = self;
        let (version, deadline) = (*version, *deadline);
        match kind % 4 {
            0 => Change::Put { collection, member, version, deadline, codec, value },
            1 => Change::Delete { collection, member, version },
            2 => Change::Deadline { collection, member, version, deadline },
            _ => Change::Clear { collection, version },
        }
    }
}

/// The kind of a frame of members that a compaction has put away, as the format has it.
const BLOCK: u64 = 3;

/// The kind of a frame that speaks of other segments.
const OTHERS: u64 = 4;

/// What is written into one frame.
#[derive(Clone, Copy)]
enum Shape {
    Changes,
    Block,
    Others,
}

impl Shape {
    fn of(number: u8) -> Shape {
        match number % 4 {
            2 => Shape::Block,
            3 => Shape::Others,
            _ => Shape::Changes,
        }
    }

    /// A block needs a collection: without one it is a transaction.
    fn block(self, made: &[Made]) -> Option<&Made> {
        if matches!(self, Shape::Block) { made.first() } else { None }
    }

    fn encode(self, out: &mut Vec<u8>, place: Place, synced: u64, made: &[Made]) {
        if let Some(others) = self.others(made) {
            return others.encode(out, place, synced);
        }
        let Some(first) = self.block(made) else {
            return frame::encode(out, place, synced, &self.changes(made));
        };
        // Every second one begins with its lowest version, as most do; in the others some wrap around.
        let lowest = made.iter().map(|made| made.version).min().unwrap_or(0);
        let base = if first.kind & 4 == 0 { lowest } else { first.version };
        let mut block = Block::new(&first.collection, &first.codec, base);
        for Made { member, version, deadline, value, .. } in made {
            block.push(member, *version, *deadline, value);
        }
        block.encode(out, place, synced);
    }

    /// What is to be read of it.
    fn changes(self, made: &[Made]) -> Vec<Change<'_>> {
        if self.others(made).is_some() {
            return Vec::new();
        }
        let Some(first) = self.block(made) else { return made.iter().map(Made::change).collect() };
        let (collection, codec) = (&first.collection, &first.codec);
        made.iter()
            .map(|made| {
                let Made { member, version, deadline, value, .. } = made;
                let (version, deadline) = (*version, *deadline);
                Change::Put { collection, member, version, deadline, codec, value }
            })
            .collect()
    }

    fn others(self, made: &[Made]) -> Option<Others> {
        let is_replaced = |made: &&Made| made.kind.is_multiple_of(2);
        let replaced = made.iter().filter(is_replaced).map(|made| made.version).collect();
        let ends = made.iter().filter(|made| !is_replaced(made)).map(|made| (made.version, made.value.len() as u64));
        matches!(self, Shape::Others).then(|| Others { replaced, ends: ends.collect() })
    }
}

/// Damages bytes as media, crashes and people do. `other` is of the same kind, from elsewhere.
///
/// The input never says what bytes are written: a fuzzer sees the numbers that are compared, and would write the right
/// checksum, which no damage does.
fn damage(input: &mut Input<'_>, bytes: &mut Vec<u8>, other: impl Fn() -> Vec<u8>) {
    for _ in 0..input.byte() % 4 {
        if bytes.is_empty() {
            return;
        }
        let how = input.byte();
        let at = input.number(2) as usize % bytes.len();
        let length = 1 + input.number(2) as usize % (bytes.len() - at);
        let part = at..at + length;
        match how % 8 {
            0 => bytes[at] ^= 1 << (how >> 5),
            1 => bytes[at] ^= (how >> 3).max(1),
            2 => bytes[part].fill(0),
            3 => bytes[part].fill(0xff),
            4 => noise(how.into(), &mut bytes[part]),
            5 => bytes.truncate(at),
            6 => {
                let to = input.number(2) as usize % (bytes.len() - length + 1);
                bytes.copy_within(part, to);
            }
            _ => {
                let other = other();
                let end = part.end.min(other.len());
                if at < end {
                    bytes[at..end].copy_from_slice(&other[at..end]);
                }
            }
        }
    }
}

/// Bytes that mean nothing. (xorshift64)
fn noise(seed: u64, bytes: &mut [u8]) {
    let mut state = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for byte in bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *byte = (state >> 32) as u8;
    }
}

/// One frame: [`frame::find`], [`Frame::changes`], and that they are the inverse of [`frame::encode`].
pub fn frame(data: &[u8], meter: Meter<'_>) {
    let mut input = Input(data);
    let mode = input.byte();
    let place = Place { segment: input.number(2), offset: input.number(2) * ALIGNMENT as u64 };
    match mode % 4 {
        0 => read_frame(input.0, place, meter),
        1 => {
            let mut bytes = input.0.to_vec();
            repair_frame(&mut bytes, place, mode >> 2);
            read_frame(&bytes, place, meter);
        }
        how => {
            let synced = input.number(4);
            let made: Vec<Made> = (0..(mode >> 2) % 5).map(|_| input.made()).collect();
            let shape = Shape::of(mode >> 5);
            let changes = shape.changes(&made);
            let encode = |place| {
                let mut bytes = Vec::new();
                shape.encode(&mut bytes, place, synced, &made);
                bytes
            };
            let bytes = encode(place);
            let Found::Whole(found) = frame::find(&bytes, place) else { panic!("it was just written") };
            assert_eq!((frame::room(found.body.len()), found.synced), (bytes.len(), synced));
            assert_eq!(bounded(meter, bytes.len(), || found.changes()).as_deref(), Some(&changes[..]));
            assert_eq!(found.others(), shape.others(&made));
            read_frame(&bytes, place, meter);
            if how == 2 {
                return;
            }
            let mut damaged = bytes.clone();
            damage(&mut input, &mut damaged, || encode(Place { segment: place.segment + 1, ..place }));
            let whole = frame::HEADER + found.body.len();
            match frame::find(&damaged, place) {
                Found::Whole(other) => assert_eq!((damaged.get(..whole), other), (Some(&bytes[..whole]), found)),
                _ => assert_ne!(damaged.get(..whole), Some(&bytes[..whole]), "it is not damaged"),
            }
            read_frame(&damaged, place, meter);
        }
    }
}

/// The checksum of a frame's header, as the format has it.
fn header_checksum(header: &[u8], place: Place) -> u32 {
    let covered = [&place.segment.to_le_bytes()[..], &place.offset.to_le_bytes(), &header[..20]].concat();
    crc32fast::hash(&covered)
}

/// Puts right what stands where a frame could begin, but for what the bits of `how` leave as it is. Returns how much
/// room the frame takes.
fn repair_frame(bytes: &mut [u8], place: Place, how: u8) -> Option<usize> {
    let (header, rest) = bytes.split_at_mut_checked(frame::HEADER)?;
    let mut length = little_end_first(&header[..4]) as usize;
    if how & 1 == 0 && !(1..=rest.len()).contains(&length) && !rest.is_empty() {
        length = 1 + length % rest.len();
        header[..4].copy_from_slice(&(length as u32).to_le_bytes());
    }
    if how & 2 == 0 {
        let kind = 1 + u32::from(header[16] % 4);
        header[16..20].copy_from_slice(&kind.to_le_bytes());
    }
    if how & 4 == 0 {
        let checksum = crc32fast::hash(rest.get(..length).unwrap_or_default());
        header[4..8].copy_from_slice(&checksum.to_le_bytes());
    }
    if how & 8 == 0 {
        let synced = little_end_first(&header[8..16]) % (place.offset + 1);
        header[8..16].copy_from_slice(&synced.to_le_bytes());
    }
    let checksum = header_checksum(header, place);
    header[20..24].copy_from_slice(&checksum.to_le_bytes());
    Some(frame::room(length))
}

fn read_frame(bytes: &[u8], place: Place, meter: Meter<'_>) {
    let mut found = Found::Nothing;
    let peak = meter(&mut || found = frame::find(bytes, place));
    assert_eq!(peak, 0, "to look for a frame allocates nothing");
    let body = |length: usize| bytes.get(frame::HEADER..frame::HEADER + length);
    match found {
        Found::Nothing => {}
        Found::Broken(length) => {
            assert_eq!(length as u64, little_end_first(&bytes[..4]));
            let right = |body| u64::from(crc32fast::hash(body)) == little_end_first(&bytes[4..8]);
            assert!(!body(length).is_some_and(right), "nothing is wrong with it");
        }
        Found::Whole(found) => {
            assert_eq!(body(found.body.len()), Some(found.body));
            check_frame(bytes, place, &found);
            for elsewhere in [
                Place { segment: place.segment ^ 1, ..place },
                Place { offset: place.offset ^ ALIGNMENT as u64, ..place },
            ] {
                assert_eq!(frame::find(bytes, elsewhere), Found::Nothing);
            }
            let kind = little_end_first(&bytes[16..20]);
            let others = bounded(meter, found.body.len(), || found.others());
            if let Some(changes) = bounded(meter, found.body.len(), || found.changes()) {
                assert_eq!(others.is_some(), kind == OTHERS);
                check_changes(&found, kind, place, &changes, others);
            }
        }
    }
}

/// A frame is written again as it was read. The bytes after it are in no checksum, and may have been anything.
fn check_frame(bytes: &[u8], place: Place, found: &Frame<'_>) {
    let whole = frame::HEADER + found.body.len();
    let mut again = Vec::new();
    frame::copy(&mut again, place, found.synced, found);
    assert_eq!(again.len(), frame::room(found.body.len()));
    assert_eq!(again[..whole], bytes[..whole]);
    assert!(again[whole..].iter().all(|&byte| byte == 0));
    assert_eq!(found.to_content().frame().body, found.body);
}

/// A frame's changes are ones that larder takes, and make the same frame again.
fn check_changes(found: &Frame<'_>, kind: u64, place: Place, changes: &[Change<'_>], others: Option<Others>) {
    for change in changes {
        assert!(change.version() <= MAX_VERSION);
        let (collection, member) = match *change {
            Change::Put { collection, member, codec, deadline, .. } => {
                assert!(codec::is_codec_name(codec) && deadline != Some(u64::MAX));
                (collection, member)
            }
            Change::Delete { collection, member, .. } | Change::Deadline { collection, member, .. } => {
                (collection, member)
            }
            Change::Clear { collection, .. } => (collection, "any"),
        };
        let joined = key::join(collection, member);
        assert_eq!(key::split(&joined).ok(), Some((collection, member)));
    }
    let mut right = Vec::new();
    frame::copy(&mut right, place, found.synced, found);
    let mut spelled = Vec::new();
    if let Some(others) = others {
        assert!(changes.is_empty());
        others.encode(&mut spelled, place, found.synced);
        return assert_eq!(spelled, right, "it has another spelling");
    }
    if kind == BLOCK {
        // Of one without members the names are nowhere else.
        let Some(&Change::Put { collection, codec, .. }) = changes.first() else { return assert!(changes.is_empty()) };
        let mut block = Block::new(collection, codec, little_end_first(&found.body[4..12]));
        for change in changes {
            let Change::Put { member, version, deadline, value, .. } = *change else { panic!("{change:?} in a block") };
            block.push(member, version, deadline, value);
        }
        block.encode(&mut spelled, place, found.synced);
        return assert_eq!(spelled, right, "it has another spelling");
    }
    let (mut encoded, mut transaction) = (Vec::new(), Vec::new());
    frame::encode(&mut encoded, place, found.synced, changes);
    frame::copy(&mut transaction, place, found.synced, &Content::of(changes).frame());
    // One change may stand alone, or be what is left of a transaction.
    assert!(encoded == right || transaction == right && changes.len() == 1, "it has another spelling");
}

/// A segment: [`segment::scan`] and [`segment::Header`].
pub fn segment(data: &[u8], meter: Meter<'_>) {
    let mut input = Input(data);
    let mode = input.byte();
    match mode % 4 {
        0 => segment_header(&mut input, mode >> 2),
        1 => written_segment(&mut input, meter),
        how => {
            let number = input.number(1);
            let start = segment::HEADER as u64 + input.number(1) * ALIGNMENT as u64;
            let durable = match input.byte() % 4 {
                0 => 0,
                1 => start + input.number(2),
                2 => start + input.0.len() as u64,
                _ => input.number(8),
            };
            let mut bytes = input.0.to_vec();
            if how == 2 {
                let mut at = 0;
                while at < bytes.len() {
                    let place = Place { segment: number, offset: start + at as u64 };
                    // What is left unrepaired in one frame is not in the next: there is more to find behind it.
                    let left = (mode >> 2).rotate_left((at / ALIGNMENT) as u32 % 8);
                    let Some(length) = repair_frame(&mut bytes[at..], place, left & !1) else { break };
                    at += length;
                }
            }
            let scan = bounded(meter, bytes.len(), || segment::scan(&bytes, number, start, durable));
            check_scan(&bytes, number, start, durable, &scan);
        }
    }
}

fn segment_header(input: &mut Input<'_>, how: u8) {
    let number = input.number(8);
    let mut bytes = if how.is_multiple_of(4) {
        let header = segment::Header {
            number,
            counter: input.number(8),
            previous: input.number(8),
            previous_end: input.number(8),
            packed_end: Some(input.number(8)).filter(|&end| end > 0),
        };
        let bytes = header.encode();
        let right = (header.counter <= MAX_VERSION).then_some(header);
        assert_eq!(segment::Header::decode(&bytes, number), right);
        assert_eq!(segment::Header::decode(&bytes, number ^ 1), None);
        let mut damaged = bytes.to_vec();
        damage(input, &mut damaged, Vec::new);
        assert_eq!(segment::Header::decode(&damaged, number).is_some(), right.is_some() && damaged == bytes);
        damaged
    } else {
        input.0.to_vec()
    };
    if how % 2 == 1
        && let Some(header) = bytes.get_mut(..segment::HEADER)
    {
        if how % 4 == 3 {
            header[16..24].copy_from_slice(&number.to_le_bytes());
        }
        let checksum = crc32fast::hash(&header[..60]);
        header[60..].copy_from_slice(&checksum.to_le_bytes());
    }
    if let Some(header) = segment::Header::decode(&bytes, number) {
        assert_eq!(header.number, number);
        assert!(header.counter <= MAX_VERSION);
        assert_eq!(header.encode(), bytes[..segment::HEADER]);
    }
}

/// What is true of the scan of any bytes.
fn check_scan(bytes: &[u8], number: u64, start: u64, durable: u64, scan: &Scan<'_>) {
    assert!(scan.durable >= durable);
    let length = |frame: &Frame<'_>| frame::room(frame.body.len()) as u64;
    let mut pieces: Vec<Range<u64>> = Vec::new();
    for (offset, frame) in &scan.frames {
        let place = Place { segment: number, offset: *offset };
        let bytes = &bytes[(offset - start) as usize..];
        assert_eq!(frame::find(bytes, place), Found::Whole(*frame));
        check_frame(bytes, place, frame);
        assert!(frame.changes().is_some() && frame.synced <= *offset && frame.synced <= scan.durable);
        pieces.push(*offset..offset + length(frame));
    }
    assert!(pieces.is_sorted_by_key(|piece| piece.start));
    assert!(scan.damaged.is_sorted_by_key(|piece| piece.start));
    assert!(scan.damaged.iter().all(|piece| piece.start < piece.end && piece.end <= scan.durable));
    let end = pieces.last().map_or(start, |last| last.end);
    assert_eq!(scan.end, end);

    // Up to the durable point every byte is in a frame or told to be damaged; and beyond it the frames have no gap.
    pieces.extend_from_slice(&scan.damaged);
    pieces.sort_by_key(|piece| piece.start);
    let mut at = start;
    for piece in &pieces {
        assert!(piece.start == at, "{pieces:?}");
        at = at.max(piece.end);
    }
    assert!(at >= scan.durable, "{pieces:?} of {}", scan.durable);

    let tail = |from: u64, to: u64| {
        let part = &bytes[(from - start) as usize..bytes.len().min((to - start) as usize)];
        segment::scan(part, number, from, scan.durable)
    };
    // What comes after the last frame says nothing of those before.
    let again = tail(start, end);
    assert_eq!(again.frames, scan.frames);
    assert_eq!((&again.damaged, again.durable, again.end), (&scan.damaged, scan.durable, scan.end));
    // Nor does what comes before a frame say anything of it and of those after.
    let half = scan.frames.len() / 2;
    if let Some((from, _)) = scan.frames.get(half) {
        let rest = tail(*from, u64::MAX);
        assert_eq!(rest.frames, scan.frames[half..]);
        assert_eq!((rest.durable, rest.end), (scan.durable, scan.end));
    }
}

/// A frame that was written to a segment.
struct Written {
    at: Range<usize>,
    /// Where its body ends. What comes after is in no checksum.
    body_end: usize,
    synced: u64,
    shape: Shape,
    made: Range<usize>,
}

/// Writes a segment as the journal does, damages it, and looks for what must be found.
fn written_segment(input: &mut Input<'_>, meter: Meter<'_>) {
    let number = 1 + input.number(1);
    let mut made: Vec<Made> = Vec::new();
    let mut written: Vec<Written> = Vec::new();
    let mut synced = 0;
    let mut shapes = Vec::new();
    for _ in 0..input.byte() % 8 {
        let shape = input.byte();
        let before = made.len();
        made.extend((0..if shape & 3 == 3 { shape >> 5 } else { 1 }).map(|_| input.made()));
        shapes.push((shape & 4 != 0, Shape::of(shape >> 3), before..made.len()));
    }
    let tail = usize::from(input.byte()) * 64;
    let mut bytes = vec![0x11; segment::HEADER];
    for (sync, shape, range) in shapes {
        let start = bytes.len();
        if sync {
            synced = start as u64;
        }
        let place = Place { segment: number, offset: start as u64 };
        shape.encode(&mut bytes, place, synced, &made[range.clone()]);
        let body = little_end_first(&bytes[start..start + 4]) as usize;
        let body_end = start + frame::HEADER + body;
        written.push(Written { at: start..bytes.len(), body_end, synced, shape, made: range });
    }
    let end = bytes.len();
    bytes.resize(end + tail, 0);

    // Scans begin where a frame does, and are told how far the segment is durable by who saw it synced, or by nobody.
    let mut boundary = |most: usize| {
        let boundaries = written.iter().map(|frame| frame.at.start).chain([end]);
        let at = usize::from(input.byte()) % (written.len() + 1);
        boundaries.filter(|&at| at <= most).nth(at).unwrap_or(segment::HEADER)
    };
    let (start, told) = (boundary(end), boundary(end) as u64);
    let truly_durable = told.max(synced);

    let mut damaged = bytes.clone();
    // What the same appends would be in another segment: files get mixed up.
    damage(input, &mut damaged, || {
        let mut other = vec![0x22; segment::HEADER];
        for frame in &written {
            let place = Place { segment: number + 1, offset: other.len() as u64 };
            frame.shape.encode(&mut other, place, frame.synced, &made[frame.made.clone()]);
        }
        other
    });
    let differs = |at: usize| damaged.get(at) != bytes.get(at);
    let first = bytes.iter().zip(&damaged).position(|(was, is)| was != is).unwrap_or(damaged.len().min(bytes.len()));

    let part = damaged.get(start..).unwrap_or_default();
    let scan = bounded(meter, part.len(), || segment::scan(part, number, start as u64, told));
    check_scan(part, number, start as u64, told, &scan);

    assert!(scan.durable <= truly_durable, "nobody said that it is durable up to {}", scan.durable);
    for (offset, found) in &scan.frames {
        let frame = written.iter().find(|frame| frame.at.start as u64 == *offset);
        let Some(frame) = frame else { panic!("no frame was written at {offset}") };
        assert_eq!(found.synced, frame.synced);
        assert_eq!(found.body, &bytes[frame.at.start + frame::HEADER..frame.body_end]);
        assert_eq!(found.changes(), Some(frame.shape.changes(&made[frame.made.clone()])));
        assert_eq!(found.others(), frame.shape.others(&made[frame.made.clone()]));
    }
    let mut unbroken = true;
    for frame in written.iter().filter(|frame| frame.at.start >= start) {
        let (from, to) = (frame.at.start as u64, frame.at.end as u64);
        let found = scan.frames.iter().any(|(offset, _)| *offset == from);
        let intact = damaged.get(frame.at.start..frame.body_end) == Some(&bytes[frame.at.start..frame.body_end]);
        if frame.body_end <= first {
            assert!(found, "a frame before all damage is not found");
        }
        if from < scan.durable {
            assert_eq!(found, intact, "of what is durable, what is intact is found, and nothing else");
            // One damage may be told in two parts, if the file ends where no frame could begin.
            let told = scan.damaged.iter().fold(
                from,
                |told, damage| {
                    if damage.start <= told { told.max(damage.end) } else { told }
                },
            );
            assert!(found || told >= to.min(scan.durable), "a durable frame at {from} is lost and not told: {scan:?}");
        } else {
            unbroken &= intact;
            assert_eq!(found, unbroken, "of what is not durable, what is before the first gap is found");
        }
    }
    // Damage beyond what is durable was promised to nobody, and is not told.
    for range in &scan.damaged {
        assert!((range.start as usize..range.end as usize).any(differs), "{range:?} is told and undamaged");
    }
}

/// A member's file: [`header::decode`] and [`header::parse`].
pub fn file(data: &[u8], meter: Meter<'_>) {
    let mut input = Input(data);
    let mode = input.byte();
    match mode % 4 {
        0 => read_file(input.0, meter),
        1 | 2 => {
            let mut bytes = input.0.to_vec();
            repair_file(&mut bytes, mode % 4 == 2);
            read_file(&bytes, meter);
        }
        _ => {
            let made = input.made();
            let encode = |version| {
                let Made { collection, member, deadline, codec, value, .. } = &made;
                let mut bytes = Vec::new();
                header::encode(&mut bytes, collection, member, version, *deadline, codec, value);
                bytes
            };
            let bytes = encode(made.version);
            let (header, value) = match header::decode(&bytes) {
                Ok(decoded) => decoded,
                Err(reason) => panic!("it was just written, and {reason}"),
            };
            assert_eq!((header.collection(), header.member()), (&*made.collection, &*made.member));
            assert_eq!((header.version, header.codec, value), (made.version, &*made.codec, &*made.value));
            read_file(&bytes, meter);
            let mut damaged = bytes.clone();
            let other = encode(made.version / 2);
            damage(&mut input, &mut damaged, || other.clone());
            // Of two whole files the one may have become the other.
            let whole = damaged == bytes || damaged == other;
            let read = header::decode(&damaged).is_ok();
            assert_eq!(read, whole, "{}\nwas\n{}", damaged.escape_ascii(), bytes.escape_ascii());
            read_file(&damaged, meter);
        }
    }
}

/// Puts right the checksum of a file, and what its header says of the length of its value.
fn repair_file(bytes: &mut Vec<u8>, length: bool) {
    let Some(end) = bytes.iter().position(|&byte| byte == b'\n') else { return };
    let (line, value) = (&bytes[..end], &bytes[end + 1..]);
    let find = |what: &[u8]| line.windows(what.len()).rposition(|window| window == what);
    let Some(mut start) = find(b" crc32=").map(|at| line[..at].to_vec()) else { return };
    if length && let Some(at) = find(b" length=") {
        start.truncate(at);
        start.extend_from_slice(format!(" length={}", value.len()).as_bytes());
    }
    let checksum = crc32fast::hash(&[&start[..], value].concat());
    let mut repaired = start;
    repaired.extend_from_slice(format!(" crc32={checksum:08x}\n").as_bytes());
    repaired.extend_from_slice(value);
    *bytes = repaired;
}

fn read_file(bytes: &[u8], meter: Meter<'_>) {
    let start = &bytes[..bytes.len().min(header::MAX_HEADER)];
    let parsed = bounded(meter, start.len(), || header::parse(start));
    let decoded = bounded(meter, bytes.len(), || header::decode(bytes));
    let (header, end) = match parsed {
        Ok(parsed) => parsed,
        Err(reason) => {
            assert!(!reason.is_empty());
            assert_eq!(decoded.err(), Some(reason), "what is no header is no file");
            return;
        }
    };
    // Its line is the one that the format has, spelled without the code that is tested.
    let (line, value) = bytes.split_at(end);
    let Ok(line) = std::str::from_utf8(line) else { panic!("a header is text") };
    let deadline = line.split(' ').find_map(|field| field.strip_prefix("deadline=")).unwrap_or_default();
    let checksum = &line[line.len() - 9..line.len() - 1];
    let key = key::join(header.collection(), header.member());
    let (codec, version, length) = (header.codec, header.version, header.length);
    let quoted = serde_json::Value::from(&*key);
    let start = format!("larder 1 codec={codec} version={version} deadline={deadline}");
    assert_eq!(line, format!("{start} key={quoted} length={length} crc32={checksum}\n"));
    assert!(version <= MAX_VERSION && codec::is_codec_name(codec));
    assert_eq!(key::split(&key).ok(), Some((header.collection(), header.member())));
    let deadline = match deadline {
        "none" => None,
        deadline => match deadline.parse() {
            Ok(deadline) if deadline < u64::MAX => Some(deadline),
            _ => panic!("{deadline} is no deadline"),
        },
    };

    let summed = [&line.as_bytes()[..line.len() - " crc32=00000000\n".len()], value].concat();
    let right = length == value.len() && format!("{:08x}", crc32fast::hash(&summed)) == checksum;
    assert_eq!(decoded.is_ok(), right);
    if let Ok((_, found)) = decoded {
        assert_eq!(found, value);
        let mut again = Vec::new();
        header::encode(&mut again, header.collection(), header.member(), version, deadline, codec, value);
        assert_eq!(again, bytes);
    }
}

/// The small files of a store's own: [`Format`], [`Mark`], [`Count`] and [`meta::parse_segments`].
pub fn own(data: &[u8], meter: Meter<'_>) {
    let mut input = Input(data);
    let mode = input.byte();
    let which = Own::ALL[usize::from(mode % 4)];
    match mode >> 2 & 3 {
        0 => which.read(input.0, meter),
        1 => {
            let mut bytes = input.0.to_vec();
            which.repair(&mut bytes);
            which.read(&bytes, meter);
        }
        how => {
            let made: Vec<u64> = (0..2 + (mode >> 4)).map(|_| input.number(8)).collect();
            let bytes = which.encode(&made);
            which.read(&bytes, meter);
            assert!(which.is_whole(&bytes) || made[1] > MAX_VERSION && which == Own::Counter, "it was just written");
            if how == 3 {
                let other = which.encode(&made.iter().map(|number| number / 2).collect::<Vec<u64>>());
                let mut damaged = bytes.clone();
                damage(&mut input, &mut damaged, || other.clone());
                let same = [&bytes, &other].into_iter().any(|whole| *whole == damaged);
                // Of the format there are few, and no checksum.
                if which != Own::Format {
                    assert!(same || !which.is_whole(&damaged), "{}", damaged.escape_ascii());
                }
                which.read(&damaged, meter);
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Own {
    Format,
    Counter,
    Members,
    Segments,
}

impl Own {
    const ALL: [Own; 4] = [Own::Format, Own::Counter, Own::Members, Own::Segments];

    /// A file of this kind; there are two numbers at least.
    fn encode(self, numbers: &[u64]) -> Vec<u8> {
        let text = match self {
            Own::Format => [Kept::Files, Kept::Packed, Kept::PackedBesideFiles][(numbers[0] % 3) as usize].line(),
            Own::Counter => meta::mark_line(numbers[1]),
            Own::Members => Count { files: numbers[0], mark: numbers[1] }.line(),
            Own::Segments => {
                let extents = numbers.chunks_exact(2).map(|pair| Extent { number: pair[0] | 1 << 32, end: pair[1] });
                meta::segments_text(&extents.collect::<Vec<Extent>>())
            }
        };
        text.into_bytes()
    }

    fn is_whole(self, bytes: &[u8]) -> bool {
        match self {
            Own::Format => matches!(Format::parse(bytes), Format::Is(_)),
            Own::Counter => matches!(Mark::parse(bytes), Mark::At(_)),
            Own::Members => Count::parse(bytes).is_some(),
            Own::Segments => meta::parse_segments(bytes).is_some(),
        }
    }

    /// Puts the checksum right.
    fn repair(self, bytes: &mut Vec<u8>) {
        let end = bytes.iter().position(|&byte| byte == b'\n').unwrap_or(bytes.len());
        let (line, rest) = bytes.split_at(end);
        let at = line.windows(7).rposition(|window| window == b" crc32=").unwrap_or(end);
        let (start, rest) = (&line[..at], rest.get(1..).unwrap_or_default());
        let checksum = crc32fast::hash(if self == Own::Segments { rest } else { start });
        *bytes = [start, format!(" crc32={checksum:08x}\n").as_bytes(), rest].concat();
    }

    /// What is read of a file is what it says, spelled here without the code that is tested.
    fn read(self, bytes: &[u8], meter: Meter<'_>) {
        let summed = |text: &str| format!("{text} crc32={:08x}\n", crc32fast::hash(text.as_bytes()));
        let said = match self {
            Own::Format => match bounded(meter, bytes.len(), || Format::parse(bytes)) {
                Format::Is(Kept::Files) => "larder format 1\n".to_owned(),
                Format::Is(Kept::Packed) => "larder format 1 packed\n".to_owned(),
                Format::Is(Kept::PackedBesideFiles) => "larder format 1 packed, beside files\n".to_owned(),
                Format::Newer(found) => {
                    assert!(found > 1 && bytes.starts_with(b"larder format "));
                    return;
                }
                Format::Damaged => return,
            },
            Own::Counter => match bounded(meter, bytes.len(), || Mark::parse(bytes)) {
                Mark::At(mark) => {
                    assert!(mark <= MAX_VERSION);
                    summed(&format!("larder counter {mark}"))
                }
                Mark::Damaged(reason) => return assert!(!reason.is_empty()),
                Mark::Missing => panic!("it is there"),
            },
            Own::Members => match bounded(meter, bytes.len(), || Count::parse(bytes)) {
                Some(Count { files, mark }) => summed(&format!("larder members {files} counter={mark}")),
                None => return,
            },
            Own::Segments => match bounded(meter, bytes.len(), || meta::parse_segments(bytes)) {
                Some(segments) => {
                    let line = |Extent { number, end }: &Extent| {
                        format!("{:010}-{:08x} {end}\n", number >> 32, number & 0xffff_ffff)
                    };
                    let lines: String = segments.iter().map(line).collect();
                    format!("larder segments crc32={:08x}\n{lines}", crc32fast::hash(lines.as_bytes()))
                }
                None => return,
            },
        };
        assert_eq!(said.as_bytes(), bytes, "{}", bytes.escape_ascii());
    }
}

/// Lines to be imported: [`lines::parse`], and that it is the inverse of [`lines::line`]; and all of an import.
pub fn import(data: &[u8], meter: Meter<'_>) {
    let mut input = Input(data);
    let mode = input.byte();
    match mode % 4 {
        0 => input.0.split(|&byte| byte == b'\n').for_each(|line| read_line(line, meter)),
        1 => import_all(input.0),
        how => {
            let made = input.made();
            let key = key::join(&made.collection, &made.member);
            let deadline = made.deadline.map(|deadline| deadline.min(clock::LAST));
            let mut bytes = Vec::new();
            let written = lines::line(&mut bytes, &key, &made.codec, deadline, &made.value);
            assert!(written.is_ok() && bytes.pop() == Some(b'\n') && !bytes.contains(&b'\n'), "one member a line");
            match lines::parse(&bytes, 0) {
                Ok(told) => {
                    assert_eq!((told.key, told.codec, told.deadline), (key, made.codec, deadline));
                    assert_eq!(&*told.value, &*made.value);
                }
                Err(error) => panic!("it was just written, and {error}"),
            }
            if how == 3 {
                damage(&mut input, &mut bytes, || data.to_vec());
            }
            read_line(&bytes, meter);
        }
    }
}

/// What is read of a line is what any reader of JSON reads there.
fn read_line(line: &[u8], meter: Meter<'_>) {
    let told = match bounded(meter, line.len(), || lines::parse(line, 0)) {
        Ok(told) => told,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let Ok(serde_json::Value::Object(fields)) = serde_json::from_slice(line) else { panic!("it is no object") };
    let text = |name| fields.get(name).and_then(serde_json::Value::as_str);
    assert_eq!(text("key"), Some(&*told.key));
    assert_eq!(text("codec").unwrap_or(codec::RAW), told.codec);
    assert_eq!(fields.get("deadline").and_then(serde_json::Value::as_u64), told.deadline);
    assert!(told.deadline <= Some(clock::LAST));
    match (text("value"), text("base64")) {
        (Some(value), None) => assert_eq!(*told.value, *value.as_bytes()),
        (None, Some(encoded)) => assert_eq!(BASE64_STANDARD.encode(&*told.value), encoded),
        fields => panic!("{fields:?}"),
    }
}

/// What was imported is exported, and makes the same store again.
fn import_all(bytes: &[u8]) {
    // What has a deadline goes by a thread, which takes its time.
    if bytes.windows(8).any(|window| window == b"deadline") || bytes.contains(&b'\\') {
        return;
    }
    let exported = |store: &Store| {
        let mut lines = Vec::new();
        assert!(store.export(&mut lines).is_ok());
        let mut lines: Vec<Vec<u8>> = lines.split(|&byte| byte == b'\n').map(<[u8]>::to_vec).collect();
        lines.sort_unstable();
        lines
    };
    let store = Store::in_memory();
    let imported = store.import(bytes);
    let (lines, again) = (exported(&store), Store::in_memory());
    // There is an empty one after the last.
    let most = bytes.iter().filter(|&&byte| byte == b'\n').count() + 1;
    assert!(lines.len() <= most + 1);
    match imported {
        Ok(count) => assert!(count as usize >= lines.len() - 1),
        Err(error) => assert!(matches!(error, crate::Error::Import { line, .. } if line as usize <= most), "{error}"),
    }
    assert_eq!(again.import(&*lines.join(&b'\n')).ok(), Some(lines.len() as u64 - 1));
    assert_eq!(exported(&again), lines);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// Without a fuzzer: the committed inputs, each of them changed a little, and noise.
    fn in_small(name: &str, target: fn(&[u8], Meter<'_>)) {
        let run = |data: &[u8]| {
            target(data, &|work| {
                work();
                0
            });
        };
        let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
        // The package that is published has none.
        if fuzz.exists() {
            let mut seeds = 0;
            for entry in std::fs::read_dir(fuzz.join("seeds").join(name)).unwrap() {
                let seed = std::fs::read(entry.unwrap().path()).unwrap();
                run(&seed);
                for change in 0..16 {
                    let mut changed = seed.clone();
                    let mut places = [0; 4];
                    noise(change, &mut places);
                    for place in places {
                        if let Some(byte) = changed.get_mut(usize::from(place)) {
                            *byte = byte.wrapping_add(place | 1);
                        }
                    }
                    run(&changed);
                }
                seeds += 1;
            }
            assert!(seeds > 0, "there are inputs to begin with");
        }
        for seed in 0..4000 {
            let mut data = vec![0; seed as usize % 400];
            noise(seed, &mut data);
            run(&data);
        }
    }

    #[test]
    fn frames_are_read_as_they_are_written() {
        in_small("frame", frame);
    }

    #[test]
    fn segments_are_read_as_they_are_written() {
        in_small("segment", segment);
    }

    #[test]
    fn files_are_read_as_they_are_written() {
        in_small("file", file);
    }

    #[test]
    fn small_files_of_a_store_s_own_are_read_as_they_are_written() {
        in_small("own", own);
    }

    #[test]
    fn lines_are_imported_as_they_are_exported() {
        in_small("import", import);
    }
}
