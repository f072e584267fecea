//! A segment: a file of frames. What is read here may have been torn by a crash, or damaged since.
//!
//! Frames, and the header of the segment that follows, say how far a segment was durable when they were written. What is
//! wrong before that point is damage: it is stepped over, and told. What is wrong after it is the torn end of a write
//! that nobody was promised, and everything from there on counts for nothing.

use super::frame::{self, ALIGNMENT, Found, Frame, Place};
use std::ops::Range;

/// The bytes of a segment's header: frames begin after it.
pub(crate) const HEADER: usize = 64;

const MAGIC: &[u8; 8] = b"larderjl";
const FORMAT: u32 = 1;

/// What a segment's file is made larger with. No frame begins in it.
static ZEROS: [u8; 4096] = [0; 4096];

/// What a segment begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) number: u64,
    /// No number above it was in use when the segment was begun.
    pub(crate) counter: u64,
    /// The segment before, or 0.
    pub(crate) previous: u64,
    /// How far that one was durable.
    pub(crate) previous_end: u64,
    /// Where a packed segment ends: it was durable as a whole before it had its name. `None` for one of the journal's.
    pub(crate) packed_end: Option<u64>,
}

impl Header {
    pub(crate) fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        let packed_end = self.packed_end.unwrap_or(0);
        let numbers = [self.number, self.counter, self.previous, self.previous_end, packed_end];
        for (at, number) in (16..).step_by(8).zip(numbers) {
            bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        let checksum = crc32fast::hash(&bytes[..60]);
        bytes[60..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// The header at the beginning of a segment's bytes, if it is whole, undamaged, and of this segment.
    pub(crate) fn decode(bytes: &[u8], number: u64) -> Option<Header> {
        let bytes = bytes.get(..HEADER)?;
        let at = |at: usize| bytes[at..at + 8].iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte));
        let packed_end = Some(at(48)).filter(|&end| end != 0);
        let header = Header { number, counter: at(24), previous: at(32), previous_end: at(40), packed_end };
        (header.counter <= crate::map::MAX_VERSION && header.encode() == bytes).then_some(header)
    }
}

/// What a segment, or a part of one, holds.
#[derive(Debug, Default)]
pub(crate) struct Scan<'a> {
    /// The frames, with where each begins. Those that begin before `durable` were durable.
    pub(crate) frames: Vec<(u64, Frame<'a>)>,
    /// What was durable and is damaged.
    pub(crate) damaged: Vec<Range<u64>>,
    /// How far the segment was durable at least.
    pub(crate) durable: u64,
    /// Where the last of the frames ends.
    pub(crate) end: u64,
}

/// Reads the frames of `bytes`, which stand in segment `number` from `start` on. They are known to have been durable up
/// to `durable`, at least.
pub(crate) fn scan(bytes: &[u8], number: u64, start: u64, durable: u64) -> Scan<'_> {
    let mut scan = Scan { durable, ..Scan::default() };
    let mut gaps: Vec<Range<u64>> = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let offset = start + at as u64;
        match frame::find(&bytes[at..], Place { segment: number, offset }) {
            Found::Whole(found) if found.each(|_| {}) && found.synced <= offset => {
                scan.durable = scan.durable.max(found.synced);
                at += frame::room(found.body.len());
                scan.frames.push((offset, found));
            }
            Found::Whole(Frame { body, .. }) => {
                at += frame::room(body.len());
                gap(&mut gaps, offset..start + at as u64);
            }
            Found::Broken(length) if frame::room(length) <= bytes.len() - at => {
                at += frame::room(length);
                gap(&mut gaps, offset..start + at as u64);
            }
            // The next frame can begin at any aligned place.
            Found::Broken(_) | Found::Nothing => {
                at += ALIGNMENT;
                while bytes[at.min(bytes.len())..].starts_with(&ZEROS) {
                    at += ZEROS.len();
                }
                gap(&mut gaps, offset..start + at as u64);
            }
        }
    }
    let end = start + at as u64;
    if end < scan.durable {
        gap(&mut gaps, end..scan.durable);
    }
    let durable = scan.durable;
    let torn = gaps.iter().find(|gap| gap.end > durable).map_or(u64::MAX, |gap| gap.start.max(durable));
    scan.frames.retain(|(offset, _)| *offset < torn);
    scan.damaged =
        gaps.into_iter().filter(|gap| gap.start < durable).map(|gap| gap.start..gap.end.min(durable)).collect();
    scan.end = scan.frames.last().map_or(start, |(offset, last)| offset + frame::room(last.body.len()) as u64);
    scan
}

/// Adds to the gaps, joining neighbours.
fn gap(gaps: &mut Vec<Range<u64>>, new: Range<u64>) {
    match gaps.last_mut() {
        Some(last) if last.end == new.start => last.end = new.end,
        _ => gaps.push(new),
    }
}
