//! Export and import: JSON lines, one member a line.
//!
//! `{"key":"artist/daft_punk","codec":"raw","value":"epic"}`; `deadline`, in milliseconds since 1970, is there if the
//! member has one, and `base64` stands in place of `value` where that is not UTF-8 (RFC 4648, with padding).

use std::borrow::Cow;
use std::io::{BufRead, BufReader, Read, Write};
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value as Json};

use crate::clock;
use crate::codec::RAW;
use crate::error::{Cause, Error, Result};
use crate::key;
use crate::store::Store;
use crate::value::Value;

/// The longest line that is read: the longest value, every byte of it escaped, and its names.
const LONGEST: u64 = (key::MAX_VALUE as u64) * 6 + (64 << 10);

impl Store {
    /// Writes every member as a line of JSON, as they are at one moment, and returns how many lines. Writers go on
    /// meanwhile. The order is unspecified.
    ///
    /// A line has `key`, `codec`, and `value`, a string; bytes that are not UTF-8 stand in `base64` instead. `deadline` is
    /// there, in milliseconds since 1970, if the member expires. What was exported and is [imported](Self::import) is the same, byte for byte.
    ///
    /// # Errors
    ///
    /// [`Error::Export`] with what the writer said; [`Error::Codec`] if a value does not encode; [`Error::NotLoaded`],
    /// [`Error::Closed`].
    ///
    /// # Examples
    ///
    /// ```
    /// use larder::Store;
    ///
    /// let store = Store::in_memory();
    /// store.put("artist/daft_punk", "epic")?;
    /// let mut lines = Vec::new();
    /// store.export(&mut lines)?;
    /// assert_eq!(lines, b"{\"key\":\"artist/daft_punk\",\"codec\":\"raw\",\"value\":\"epic\"}\n");
    ///
    /// let other = Store::in_memory();
    /// assert_eq!(other.import(&lines[..])?, 1);
    /// assert_eq!(other.get("artist/daft_punk")?.unwrap(), "epic");
    /// # Ok::<(), larder::Error>(())
    /// ```
    pub fn export(&self, writer: impl Write) -> Result<u64> {
        let engine = self.core().open()?;
        let mut writer = std::io::BufWriter::new(writer);
        let mut count = 0;
        let failed = |error: std::io::Error| Error::Export { source: Arc::new(error) };
        engine.walk_at_once(|collection, codec, record| {
            let key = key::join(collection, &record.member);
            let value = match record.value {
                Ok(value) => value,
                Err(error) => return Err(Error::codec("encode", key, codec, error)),
            };
            let text = std::str::from_utf8(&value).ok();
            let (name, shown) = match text {
                Some(text) => ("value", Cow::Borrowed(text)),
                None => ("base64", Cow::Owned(BASE64_STANDARD.encode(&value))),
            };
            let fields = [("key", &*key), ("codec", codec), (name, &shown)];
            line(&mut writer, fields, record.deadline).map_err(failed)?;
            count += 1;
            Ok(())
        })?;
        writer.flush().map_err(failed)?;
        Ok(count)
    }

    /// Puts every member that the lines speak of, as [`export`](Self::export) writes them, and returns how many there
    /// were. Lines that are empty are skipped. What is there and is not spoken of stays.
    ///
    /// # Errors
    ///
    /// [`Error::Import`] with the line's number, and what is wrong with it; what came before it has been put. Those of
    /// [`put`](Self::put).
    pub fn import(&self, reader: impl Read) -> Result<u64> {
        let mut reader = BufReader::new(reader);
        let (mut count, mut number, mut line) = (0, 0u64, Vec::new());
        loop {
            number += 1;
            line.clear();
            let failed = |source: Cause| Error::Import { line: number, source };
            let read = (&mut reader).take(LONGEST).read_until(b'\n', &mut line);
            if read.map_err(|error| failed(Arc::new(error)))? == 0 {
                return Ok(count);
            }
            let text = line.trim_ascii();
            if text.is_empty() {
                continue;
            }
            let put = parse(text).and_then(|Line { key, codec, deadline, value }| {
                let put = self.put_until(&key, &codec, deadline, value);
                put.map(drop).map_err(|error| Arc::new(error) as Cause)
            });
            put.map_err(failed)?;
            count += 1;
        }
    }
}

fn line(writer: &mut impl Write, fields: [(&str, &str); 3], deadline: Option<u64>) -> std::io::Result<()> {
    for (place, (name, text)) in fields.into_iter().enumerate() {
        write!(writer, "{}\"{name}\":", if place == 0 { '{' } else { ',' })?;
        serde_json::to_writer(&mut *writer, text)?;
    }
    if let Some(deadline) = deadline {
        write!(writer, ",\"deadline\":{deadline}")?;
    }
    writer.write_all(b"}\n")
}

/// What a line says.
struct Line {
    key: String,
    codec: String,
    deadline: Option<u64>,
    value: Value,
}

fn parse(line: &[u8]) -> Result<Line, Cause> {
    let fields: Map<String, Json> = serde_json::from_slice(line).map_err(|error| Arc::new(error) as Cause)?;
    let (mut key, mut codec, mut deadline, mut value) = (None, None, None, None);
    for (name, field) in fields {
        match (&*name, field) {
            ("key", Json::String(text)) => key = Some(text),
            ("codec", Json::String(text)) => codec = Some(text),
            ("value", Json::String(text)) if value.is_none() => value = Some(Value::from(text.into_bytes())),
            ("base64", Json::String(text)) if value.is_none() => {
                let bytes = BASE64_STANDARD.decode(text).map_err(|error| Arc::new(error) as Cause)?;
                value = Some(Value::from(bytes));
            }
            ("value" | "base64", Json::String(_)) => return says("it has a value and base64"),
            ("key" | "codec" | "value" | "base64", _) => return says(format!("{name:?} is not a string")),
            ("deadline", Json::Null) => {}
            ("deadline", Json::Number(number)) => match number.as_u64().filter(|&at| at <= clock::LAST) {
                Some(at) => deadline = Some(at),
                None => return says(format!("its deadline {number} is not a number of milliseconds since 1970")),
            },
            ("deadline", _) => return says("its deadline is not a number"),
            _ => return says(format!("{name:?} is not a field of a member")),
        }
    }
    match (key, value) {
        (Some(key), Some(value)) => Ok(Line { key, codec: codec.unwrap_or_else(|| RAW.to_owned()), deadline, value }),
        (None, _) => says("it has no key"),
        (_, None) => says("it has neither value nor base64"),
    }
}

fn says<T>(what: impl Into<String>) -> Result<T, Cause> {
    Err(Arc::from(Box::<dyn std::error::Error + Send + Sync>::from(what.into())))
}
