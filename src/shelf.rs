//! What one collection holds, in one of two forms: bytes, or values of a caller's type. [`AnyShelf`] is the face that both
//! have: everything by key, and what the janitor needs.
//!
//! A collection begins as bytes, as it was loaded. Opening it as a type decodes all of it into a second shelf and moves
//! the members over at one moment; from then on the first is empty and refuses with [`Refused::Moved`].

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::clock::Clock;
use crate::codec::{Codec, CodecError, RAW};
use crate::error::{Error, Result};
use crate::janitor::Concern;
use crate::key;
use crate::map::{
    Act, Done, Duplicate, Found, Held, How, KeyId, Ledger, Locked, Named, New, Only, Reads, Refused, Scan, Seen,
    SortKey, Stamp, Stored, Table, Taken, Until, What,
};
use crate::sync::NameHasher;
use crate::sync::atomic::{AtomicBool, AtomicU64};
use crate::value::{Member, Value};

/// Why a shelf would not do something.
pub(crate) enum Stop {
    Refused(Refused),
    Failed(Error),
}

impl From<Refused> for Stop {
    fn from(refused: Refused) -> Stop {
        Stop::Refused(refused)
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Stop {
        Stop::Failed(error)
    }
}

/// How the values of a shelf become bytes, and back.
pub(crate) struct Form<V> {
    pub(crate) type_name: &'static str,
    pub(crate) codec: &'static str,
    /// `None` for bytes, whose codec is in each member's stamp.
    pub(crate) codec_id: Option<u8>,
    encode: Encode<V>,
    decode: fn(&Value) -> Result<V, CodecError>,
}

enum Encode<V> {
    /// It is bytes already.
    Share(fn(V) -> Value),
    Write(fn(&V, &mut Vec<u8>) -> Result<(), CodecError>),
}

impl Form<Value> {
    fn raw() -> Self {
        Form {
            type_name: "bytes",
            codec: RAW,
            codec_id: None,
            encode: Encode::Share(|value| value),
            decode: |value| Ok(value.clone()),
        }
    }
}

impl<T: Serialize + DeserializeOwned + Send + Sync + 'static> Form<Arc<T>> {
    pub(crate) fn typed<C: Codec>(codec_id: u8) -> Self {
        Form {
            type_name: std::any::type_name::<T>(),
            codec: C::NAME,
            codec_id: Some(codec_id),
            encode: Encode::Write(|value, out| C::encode::<T>(value, out)),
            decode: |value| C::decode::<T>(value).map(Arc::new),
        }
    }
}

impl<V: Clone> Form<V> {
    pub(crate) fn decode(&self, bytes: &Value) -> Result<V, CodecError> {
        (self.decode)(bytes)
    }

    fn to_value(&self, value: &V) -> Result<Value, CodecError> {
        match self.encode {
            Encode::Share(share) => Ok(share(value.clone())),
            Encode::Write(write) => {
                let mut bytes = Vec::new();
                write(value, &mut bytes)?;
                Ok(Value::from(bytes))
            }
        }
    }
}

/// In this order: what is only read stands beside the end of the table, which is only read, too.
#[repr(C)]
pub(crate) struct Shelf<V> {
    pub(crate) table: Table<V>,
    pub(crate) form: Form<V>,
}

/// What the janitor took: a member as it is to be stored.
pub(crate) struct Load {
    pub(crate) payload: Payload,
    pub(crate) version: u64,
    /// `None` for the codec that the shelf's form has.
    pub(crate) codec_id: u8,
    /// It was waiting to be stored; otherwise somebody was here before.
    pub(crate) dirty: bool,
    pub(crate) deadline: Option<u64>,
    /// What it counted among the bytes not yet durable until now.
    pub(crate) charge: usize,
}

/// What a member's slot said until its mark was cleared.
pub(crate) struct Mark {
    pub(crate) version: u64,
    pub(crate) dirty: bool,
    /// What it counted among the bytes not yet durable.
    pub(crate) charge: usize,
}

/// A member as it is, for whoever copies all of them.
pub(crate) struct Record {
    pub(crate) member: Member,
    pub(crate) version: u64,
    /// As in [`Load`].
    pub(crate) codec_id: u8,
    pub(crate) deadline: Option<u64>,
    pub(crate) value: Result<Value, CodecError>,
}

pub(crate) enum Payload {
    /// Deleted.
    Gone,
    Shared(Value),
    /// Appended to the buffer, from here to its end.
    Encoded(std::ops::Range<usize>),
    Unencodable(CodecError),
}

impl Payload {
    /// In bytes.
    pub(crate) fn size(&self) -> usize {
        match self {
            Payload::Gone | Payload::Unencodable(_) => 0,
            Payload::Shared(value) => value.len(),
            Payload::Encoded(range) => range.len(),
        }
    }
}

/// Everything by key, and what the janitor needs. `collection` is only for errors.
pub(crate) trait AnyShelf: Send + Sync {
    fn get(&self, collection: &str, member: &str) -> Result<Option<Value>, Stop>;
    /// `codec_id` is the codec that the bytes are of; 0 if nobody says.
    fn put(
        &self,
        collection: &str,
        member: &str,
        value: &Value,
        codec_id: u8,
        how: How,
        ledger: &dyn Ledger,
    ) -> Result<Done<Value>, Stop>;
    fn get_versioned(&self, collection: &str, member: &str) -> Result<Option<(Value, u64)>, Stop>;
    /// Gives the member that is there another deadline, and says what it was; `None` if there is no such member.
    fn touch(&self, member: &str, until: Until, ledger: &dyn Ledger) -> Result<Option<Option<u64>>, Refused>;
    /// The deadline of the member, if it is there.
    fn deadline(&self, member: &str) -> Result<Option<Option<u64>>, Refused>;
    /// Removes a member whose deadline this is and has come.
    fn expire(&self, member: &str, deadline: u64, ledger: &dyn Ledger) -> Result<(), Refused>;
    fn each_deadline(&self, found: &mut dyn FnMut(&Member, u64));
    fn delete(&self, collection: &str, member: &str, only: Only, ledger: &dyn Ledger) -> Result<Done<Value>, Stop>;
    fn clear(&self, ledger: &dyn Ledger) -> Result<usize, Stop>;
    fn contains(&self, member: &str) -> Result<bool, Refused>;
    /// Appends the members of one part, and says where to go on. See [`Table::scan`].
    fn scan(&self, collection: &str, cursor: u64, out: &mut Vec<(Member, Value)>) -> Result<Option<u64>, Stop>;
    /// The same, as it is stored. A value that does not encode stops nobody.
    fn records(&self, cursor: u64, out: &mut Vec<Record>) -> Result<Option<u64>, Refused>;
    /// Appends what was kept for whoever copies the store as it was at that moment.
    fn kept(&self, moment: u64, out: &mut Vec<Record>);
    fn take_all_kept(&self) -> Box<dyn Any>;
    fn names(&self, cursor: u64, out: &mut Vec<Member>) -> Result<Option<u64>, Refused>;
    fn tally(&self) -> Result<(usize, u64), Refused>;
    /// Live members; what of them is known of bytes as they are stored; and of how many the value's are not.
    fn stored(&self) -> Result<(u64, u64, u64), Refused>;
    /// Adds what the values of some members take when they are stored, at most so many of those whose hashes are near these
    /// bits.
    fn sample(&self, bits: u32, most: usize, sizes: &mut Vec<usize>) -> Result<(), Refused>;
    fn barrier(&self);
    /// Clears the marks of these members from number `done` on, and reads what they marked: see [`Table::take_many`].
    /// What has to be encoded is appended to the buffer.
    fn take(
        &self,
        keys: &[KeyId],
        done: &mut usize,
        buffer: &mut Vec<u8>,
        each: &mut dyn FnMut(Option<Load>) -> bool,
    ) -> Result<(), Refused>;
    /// As `take`, of what somebody else has stored.
    fn unmark(&self, member: &str) -> Result<Option<Mark>, Refused>;
    fn bury(&self, member: &str, version: u64) -> Result<(), Refused>;
    /// A member with its version, if it is there, and the last write to its part of the collection.
    fn read_for_transaction(
        &self,
        collection: &str,
        member: &str,
        time: u64,
    ) -> Result<(Option<(Value, u64)>, u64), Stop>;
    /// All members, and what has to be known of them to tell whether they change.
    fn scan_for_transaction(
        &self,
        collection: &str,
        time: u64,
        scan: &mut Scan,
        out: &mut Vec<(Member, Value)>,
    ) -> Result<(), Stop>;
    /// Whether what was read is still so.
    fn agrees(&self, reads: &Reads, time: u64) -> Result<bool, Refused>;
    /// Locks the shards of these members, or all.
    fn lock(&self, members: &mut dyn Iterator<Item = &Member>, all: bool) -> Result<Box<dyn AnyLocked + '_>, Refused>;
    /// A value as the shelf holds it, and its codec.
    fn hold(&self, collection: &str, member: &str, value: &Value, codec_id: u8) -> Result<(Held, u8)>;
    /// The sort keys of a value that the shelf can hold.
    fn keys_of(&self, member: &str, held: &Held) -> Vec<SortKey>;
    /// A value that the shelf can hold, as the caller by key sees it.
    fn show(&self, collection: &str, member: &str, held: &Held) -> Result<Value>;
    /// The type and the codec, for errors.
    fn describe(&self) -> String;
    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}

/// What a transaction puts.
#[derive(Clone, Copy)]
pub(crate) struct Put<'a> {
    pub(crate) value: &'a Held,
    pub(crate) codec: u8,
    pub(crate) until: Until,
    pub(crate) keys: &'a [SortKey],
}

/// Shards of a shelf, locked.
pub(crate) trait AnyLocked {
    fn agrees(&self, reads: &Reads, time: u64) -> bool;
    /// The size that the value counts.
    fn weigh(&self, held: &Held) -> usize;
    /// Writes a member, with its codec and what becomes of its deadline, or deletes it if it is there.
    fn write(&mut self, member: &str, new: Option<Put<'_>>, ledger: &dyn Ledger) -> Result<(), Refused>;
    /// Sees whether all this may be written: each member with its sort keys, or without for a delete.
    fn prepare(&mut self, writes: &[(&Member, Option<&[SortKey]>)]) -> Result<(), Result<Duplicate, Refused>>;
    /// What comes back is to be dropped when nothing is locked.
    fn unlock(self: Box<Self>) -> Box<dyn Any>;
}

impl<V: Stored> AnyLocked for Locked<'_, V> {
    fn agrees(&self, reads: &Reads, time: u64) -> bool {
        Locked::agrees(self, reads, time)
    }

    fn weigh(&self, held: &Held) -> usize {
        held.downcast_ref::<V>().map_or(0, V::weight)
    }

    fn write(&mut self, member: &str, new: Option<Put<'_>>, ledger: &dyn Ledger) -> Result<(), Refused> {
        let put = new.and_then(|put| Some((put.value.downcast_ref::<V>()?.clone(), put)));
        let (mut new, until) = match put {
            Some((value, put)) => (New::with_keys(value, put.codec, put.keys.to_vec()), put.until),
            None => (New::nothing(0), Until::Removed),
        };
        Locked::write(self, member, &mut new, until, ledger)
    }

    fn prepare(&mut self, writes: &[(&Member, Option<&[SortKey]>)]) -> Result<(), Result<Duplicate, Refused>> {
        Locked::prepare(self, writes.iter().copied())
    }

    fn unlock(self: Box<Self>) -> Box<dyn Any> {
        Box::new(Locked::unlock(*self))
    }
}

impl<V: Stored> AnyShelf for Shelf<V> {
    fn get(&self, collection: &str, member: &str) -> Result<Option<Value>, Stop> {
        let found = self.table.look(member, |seen| seen.value.clone())?;
        self.shown(collection, member, found)
    }

    fn put(
        &self,
        collection: &str,
        member: &str,
        value: &Value,
        codec_id: u8,
        how: How,
        ledger: &dyn Ledger,
    ) -> Result<Done<Value>, Stop> {
        let written_by_another = codec_id != 0 && self.form.codec_id.is_some_and(|own| own != codec_id);
        if written_by_another {
            let source = "it was written by another codec".into();
            return Err(Error::codec("decode", key::join(collection, member), self.form.codec, source).into());
        }
        let decoded = self
            .form
            .decode(value)
            .map_err(|source| Error::codec("decode", key::join(collection, member), self.form.codec, source))?;
        let mut new = New::put(decoded, self.form.codec_id.unwrap_or(codec_id));
        let done = self.put_in(collection, member, &mut new, how, ledger)?;
        Ok(Done::new(self.shown(collection, member, done.old)?, done.version))
    }

    fn get_versioned(&self, collection: &str, member: &str) -> Result<Option<(Value, u64)>, Stop> {
        let found = self.table.look(member, |seen| (seen.value.clone(), seen.version))?;
        let Some((value, version)) = found else { return Ok(None) };
        Ok(self.shown(collection, member, Some(value))?.map(|value| (value, version)))
    }

    fn touch(&self, member: &str, until: Until, ledger: &dyn Ledger) -> Result<Option<Option<u64>>, Refused> {
        let mut was = None;
        let decide = |seen: Option<Seen<'_, V>>, _: &mut Option<V>| {
            was = seen.as_ref().map(|seen| seen.deadline);
            match was {
                None => Act::Leave,
                Some(None) if until == Until::Removed => Act::Leave,
                Some(_) => Act::Touch(until),
            }
        };
        self.table.change(member, &mut New::nothing(0), ledger, decide)?;
        Ok(was)
    }

    fn deadline(&self, member: &str) -> Result<Option<Option<u64>>, Refused> {
        self.table.look(member, |seen| seen.deadline)
    }

    fn expire(&self, member: &str, deadline: u64, ledger: &dyn Ledger) -> Result<(), Refused> {
        // What was there is dropped here, when no lock is held.
        self.table.expire(member, deadline, ledger).map(drop)
    }

    fn each_deadline(&self, found: &mut dyn FnMut(&Member, u64)) {
        self.table.each_deadline(found);
    }

    fn delete(&self, collection: &str, member: &str, only: Only, ledger: &dyn Ledger) -> Result<Done<Value>, Stop> {
        let done = self.table.delete(member, only, ledger)?;
        Ok(Done::new(self.shown(collection, member, done.old)?, done.version))
    }

    fn clear(&self, ledger: &dyn Ledger) -> Result<usize, Stop> {
        Ok(self.table.clear(ledger)?.end())
    }

    fn contains(&self, member: &str) -> Result<bool, Refused> {
        self.table.contains(member)
    }

    fn scan(&self, collection: &str, cursor: u64, out: &mut Vec<(Member, Value)>) -> Result<Option<u64>, Stop> {
        if let Encode::Share(share) = self.form.encode {
            return Ok(self.table.scan(cursor, |member, value, _| out.push((member.clone(), share(value.clone()))))?);
        }
        // Encoding is the caller's code: nothing may be locked.
        let mut found = Vec::new();
        let next = self.table.scan(cursor, |member, value, _| found.push((member.clone(), value.clone())))?;
        for (member, value) in found {
            if let Some(value) = self.shown(collection, &member, Some(value))? {
                out.push((member, value));
            }
        }
        Ok(next)
    }

    fn records(&self, cursor: u64, out: &mut Vec<Record>) -> Result<Option<u64>, Refused> {
        let mut found = Vec::new();
        let next = self.table.copy(cursor, |member| found.push(member))?;
        out.extend(found.into_iter().map(|found| self.record(found)));
        Ok(next)
    }

    fn take_all_kept(&self) -> Box<dyn Any> {
        Box::new(self.table.take_all_kept())
    }

    fn kept(&self, moment: u64, out: &mut Vec<Record>) {
        out.extend(self.table.take_kept(moment).into_iter().map(|found| self.record(found)));
    }

    fn names(&self, cursor: u64, out: &mut Vec<Member>) -> Result<Option<u64>, Refused> {
        self.table.scan(cursor, |member, _, _| out.push(member.clone()))
    }

    fn tally(&self) -> Result<(usize, u64), Refused> {
        self.table.tally()
    }

    fn stored(&self) -> Result<(u64, u64, u64), Refused> {
        let (members, bytes) = self.table.tally()?;
        let members = members as u64;
        Ok(match V::WEIGHT {
            None => (members, bytes, 0),
            Some(weight) => (members, bytes.saturating_sub(members * weight as u64), members),
        })
    }

    fn sample(&self, bits: u32, most: usize, sizes: &mut Vec<usize>) -> Result<(), Refused> {
        let mut found = Vec::new();
        self.table.sample(bits, most, |value| found.push(value.clone()))?;
        let mut buffer = Vec::new();
        for value in found {
            buffer.clear();
            match self.form.encode {
                Encode::Share(_) => sizes.push(value.weight()),
                // One that does not encode is not stored.
                Encode::Write(write) => sizes.extend(encode_guarded(write, value, &mut buffer).map(|()| buffer.len())),
            }
        }
        Ok(())
    }

    fn barrier(&self) {
        self.table.barrier();
    }

    fn take(
        &self,
        keys: &[KeyId],
        done: &mut usize,
        buffer: &mut Vec<u8>,
        each: &mut dyn FnMut(Option<Load>) -> bool,
    ) -> Result<(), Refused> {
        let each = |taken: Option<Taken<V>>, buffer: &mut Vec<u8>| each(taken.map(|taken| self.load(taken, buffer)));
        self.table.take_many(keys, done, buffer, each)
    }

    fn unmark(&self, member: &str) -> Result<Option<Mark>, Refused> {
        let mark = |(stamp, charge): (Stamp, usize)| Mark { version: stamp.version(), dirty: stamp.dirty(), charge };
        Ok(self.table.unmark(member)?.map(mark))
    }

    fn bury(&self, member: &str, version: u64) -> Result<(), Refused> {
        self.table.bury(member, version)
    }

    fn read_for_transaction(
        &self,
        collection: &str,
        member: &str,
        time: u64,
    ) -> Result<(Option<(Value, u64)>, u64), Stop> {
        let (seen, newest) = self.table.read_for_transaction(member, time)?;
        let Some((value, version)) = seen else { return Ok((None, newest)) };
        Ok((self.shown(collection, member, Some(value))?.map(|value| (value, version)), newest))
    }

    fn scan_for_transaction(
        &self,
        collection: &str,
        time: u64,
        scan: &mut Scan,
        out: &mut Vec<(Member, Value)>,
    ) -> Result<(), Stop> {
        let mut cursor = Some(0);
        while let Some(at) = cursor {
            let mut found = Vec::new();
            let (scanned, next) = self.table.scan_part(at, time, |member| found.push((member.member, member.value)))?;
            scan.add(&scanned);
            for (member, value) in found {
                if let Some(value) = self.shown(collection, &member, Some(value))? {
                    out.push((member, value));
                }
            }
            cursor = next;
        }
        Ok(())
    }

    fn agrees(&self, reads: &Reads, time: u64) -> Result<bool, Refused> {
        self.table.agrees(reads, time)
    }

    fn lock(&self, members: &mut dyn Iterator<Item = &Member>, all: bool) -> Result<Box<dyn AnyLocked + '_>, Refused> {
        Ok(Box::new(self.table.lock(members, all)?))
    }

    fn hold(&self, collection: &str, member: &str, value: &Value, codec_id: u8) -> Result<(Held, u8)> {
        let decoded = self.form.decode(value);
        let failed = |source| Error::codec("decode", key::join(collection, member), self.form.codec, source);
        Ok((Box::new(decoded.map_err(failed)?), self.form.codec_id.unwrap_or(codec_id)))
    }

    fn keys_of(&self, member: &str, held: &Held) -> Vec<SortKey> {
        self.table.keys_of(member, held.downcast_ref::<V>())
    }

    fn show(&self, collection: &str, member: &str, held: &Held) -> Result<Value> {
        let shown = match held.downcast_ref::<V>() {
            Some(value) => self.form.to_value(value),
            None => Err("it is of another type".into()),
        };
        shown.map_err(|source| Error::codec("encode", key::join(collection, member), self.form.codec, source))
    }

    fn describe(&self) -> String {
        format!("{} in codec {}", self.form.type_name, self.form.codec)
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

/// Two members with the same key in an index that allows one.
#[cold]
pub(crate) fn duplicate(collection: &str, duplicate: Option<Duplicate>) -> Error {
    let (index, holder, refused) = match duplicate {
        Some(Duplicate { index, holder, refused }) => (index.into(), holder, refused),
        None => (String::new(), Member::from(""), Member::from("")),
    };
    Error::Duplicate { collection: collection.to_owned(), index, holder, refused }
}

/// Runs a caller's `Serialize`, and its `Drop` if this was the last handle, so that a panic in either ends here.
fn encode_guarded<V>(
    write: fn(&V, &mut Vec<u8>) -> Result<(), CodecError>,
    value: V,
    buffer: &mut Vec<u8>,
) -> Result<(), CodecError> {
    let encoded = catch_unwind(AssertUnwindSafe(|| write(&value, buffer)));
    let dropped = catch_unwind(AssertUnwindSafe(|| drop(value)));
    // What the value says when it goes has no bearing on what was encoded.
    drop(dropped);
    encoded.unwrap_or_else(|panic| Err(format!("Serialize panicked: {}", panic_message(&*panic)).into()))
}

/// What a panic said, if it was text.
pub(crate) fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

impl<V: Stored> Shelf<V> {
    /// A member as it is stored.
    fn record(&self, Found { member, value, stamp, deadline }: Found<V>) -> Record {
        Record {
            member,
            deadline,
            version: stamp.version(),
            codec_id: self.form.codec_id.unwrap_or(stamp.codec()),
            value: match &self.form.encode {
                Encode::Share(share) => Ok(share(value)),
                Encode::Write(write) => {
                    let mut bytes = Vec::new();
                    encode_guarded(*write, value, &mut bytes).map(|()| Value::from(bytes))
                }
            },
        }
    }

    /// Puts a value in place, if the member is as it is to be.
    pub(crate) fn put_in(
        &self,
        collection: &str,
        member: &str,
        new: &mut New<V>,
        how: How,
        ledger: &(impl Ledger + ?Sized),
    ) -> Result<Done<V>, Stop> {
        match self.table.put_only(member, new, how, ledger) {
            Err(Refused::Duplicate) => Err(duplicate(collection, new.take_duplicate()).into()),
            put => Ok(put?),
        }
    }

    /// What was taken, as it is to be stored.
    fn load(&self, taken: Taken<V>, buffer: &mut Vec<u8>) -> Load {
        let payload = match (taken.what, &self.form.encode) {
            (What::Nothing, _) => Payload::Gone,
            (What::Copy(range), _) => Payload::Encoded(range),
            (What::Value(value), Encode::Share(share)) => Payload::Shared(share(value)),
            (What::Value(value), Encode::Write(write)) => {
                let start = buffer.len();
                let encoded = encode_guarded(*write, value, buffer);
                match encoded {
                    Ok(()) if buffer.len() - start <= key::MAX_VALUE => Payload::Encoded(start..buffer.len()),
                    Ok(()) => {
                        let size = buffer.len() - start;
                        buffer.truncate(start);
                        Payload::Unencodable(format!("{size} bytes are more than {}", key::MAX_VALUE).into())
                    }
                    Err(error) => {
                        buffer.truncate(start);
                        Payload::Unencodable(error)
                    }
                }
            }
        };
        Load {
            payload,
            version: taken.stamp.version(),
            codec_id: self.form.codec_id.unwrap_or(taken.stamp.codec()),
            dirty: taken.stamp.dirty(),
            deadline: taken.deadline,
            charge: taken.charge,
        }
    }

    /// A value as the caller by key sees it.
    fn shown(&self, collection: &str, member: &str, value: Option<V>) -> Result<Option<Value>, Stop> {
        let Some(value) = value else { return Ok(None) };
        let shown = self.form.to_value(&value);
        let failed = |source| Error::codec("encode", key::join(collection, member), self.form.codec, source);
        Ok(Some(shown.map_err(failed)?))
    }
}

/// A collection: its bytes, and once it is opened as a type, its values. In this order, as in [`Shelf`].
#[repr(C)]
pub(crate) struct Shelves {
    pub(crate) raw: Shelf<Value>,
    name: Arc<str>,
    pub(crate) id: u32,
    /// Somebody watches the collection.
    pub(crate) watched: AtomicBool,
    pub(crate) typed: OnceLock<Arc<dyn AnyShelf>>,
    /// The version of the last clear that the janitor has not come to; 0 for none. Written with all shards locked, and
    /// taken by the janitor, which is told when it stops being 0: so a clear, too, waits once.
    pub(crate) clear: AtomicU64,
}

impl Shelves {
    pub(crate) fn new(name: &str, id: u32, hasher: NameHasher, clock: Arc<Clock>) -> Self {
        let raw = Shelf { table: Table::new(hasher, clock), form: Form::raw() };
        Shelves {
            name: name.into(),
            id,
            watched: AtomicBool::new(false),
            raw,
            typed: OnceLock::new(),
            clear: AtomicU64::new(0),
        }
    }

    pub(crate) fn shared_name(&self) -> Arc<str> {
        self.name.clone()
    }

    /// What a writer of one member waits for.
    pub(crate) fn one(&self, member: &str) -> impl FnOnce() -> Concern {
        move || Concern::Member { collection: self.id, member: Member::from(member) }
    }

    /// A member's key, for the janitor.
    pub(crate) fn key(&self, member: Member) -> KeyId {
        KeyId { collection: self.id, bits: self.raw.table.bits(&member), member }
    }

    /// The shelf that holds the members now.
    pub(crate) fn current(&self) -> &dyn AnyShelf {
        match self.typed.get() {
            Some(typed) => &**typed,
            None => &self.raw,
        }
    }

    /// Calls `f` with the shelf that holds the members, again if they move meanwhile.
    pub(crate) fn settled<R>(&self, mut f: impl FnMut(&dyn AnyShelf) -> Result<R, Refused>) -> Option<R> {
        loop {
            match f(self.current()) {
                Ok(done) => return Some(done),
                Err(Refused::Moved) => {}
                Err(Refused::Closed | Refused::Full | Refused::Stale | Refused::Duplicate) => return None,
            }
        }
    }

    /// The members of the raw shelf, decoded into another form: what decodes, and what does not.
    pub(crate) fn decode_into<V: Stored>(
        &self,
        found: Vec<Found<Value>>,
        form: &Form<V>,
        codec_name: impl Fn(u8) -> Arc<str>,
        made: &mut hashbrown::HashMap<Member, (V, Stamp), NameHasher>,
    ) -> Vec<(Found<Value>, CodecError)> {
        let mut failed = Vec::new();
        for found in found {
            let written_by = found.stamp.codec();
            let decoded = if written_by == 0 || form.codec_id == Some(written_by) {
                form.decode(&found.value)
            } else {
                Err(format!("it was written by codec {}", codec_name(written_by)).into())
            };
            match decoded {
                Ok(value) => _ = made.insert(found.member, (value, found.stamp)),
                Err(error) => {
                    made.remove(&found.member);
                    failed.push((found, error));
                }
            }
        }
        failed
    }
}

impl Drop for Shelves {
    fn drop(&mut self) {
        self.raw.table.end();
    }
}

impl Named for Shelves {
    #[inline]
    fn name(&self) -> &str {
        &self.name
    }
}
#[cfg(test)]
mod tests {
    use super::*;

    /// There may be a hundred thousand of them. (On a machine of 64 bits.)
    #[test]
    fn the_frame_of_a_collection_is_small() {
        assert!(size_of::<Shelves>() <= 312, "{}", size_of::<Shelves>());
    }
}
