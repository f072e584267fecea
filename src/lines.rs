//! Export and import: JSON lines, one member a line.
//!
//! `{"key":"artist/daft_punk","codec":"raw","value":"epic"}`; `deadline`, in milliseconds since 1970, is there if the
//! member has one, and `base64` stands in place of `value` where that is not UTF-8 (RFC 4648, with padding).

use std::borrow::Cow;
use std::fmt;
use std::io::{BufRead, BufReader, Read, Write};
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::de::{DeserializeSeed, Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::clock;
use crate::codec::RAW;
use crate::error::{Cause, Error, Result, Shown};
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
            line(&mut writer, &key, codec, record.deadline, &value).map_err(failed)?;
            count += 1;
            Ok(())
        })?;
        writer.flush().map_err(failed)?;
        Ok(count)
    }

    /// Puts every member that the lines speak of, as [`export`](Self::export) writes them, and returns how many there
    /// were. Lines that are empty are skipped. What is there and is not spoken of stays. It takes RAM for one line at a time,
    /// a few times its length.
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
            let begins = line.len() - line.trim_ascii_start().len();
            let put = parse(text, begins).and_then(|Told { key, codec, deadline, value }| {
                self.put_until(&key, &codec, deadline, value).map(drop).map_err(refused)
            });
            put.map_err(failed)?;
            count += 1;
        }
    }
}

/// Writes a member's line.
pub(crate) fn line(
    writer: &mut impl Write,
    key: &str,
    codec: &str,
    deadline: Option<u64>,
    value: &[u8],
) -> std::io::Result<()> {
    let (name, shown) = match std::str::from_utf8(value) {
        Ok(text) => ("value", Cow::Borrowed(text)),
        Err(_) => ("base64", Cow::Owned(BASE64_STANDARD.encode(value))),
    };
    for (place, (name, text)) in [("key", key), ("codec", codec), (name, &shown)].into_iter().enumerate() {
        write!(writer, "{}\"{name}\":", if place == 0 { '{' } else { ',' })?;
        serde_json::to_writer(&mut *writer, text)?;
    }
    if let Some(deadline) = deadline {
        write!(writer, ",\"deadline\":{deadline}")?;
    }
    writer.write_all(b"}\n")
}

/// What a line says of a member.
pub(crate) struct Told {
    pub(crate) key: String,
    pub(crate) codec: String,
    pub(crate) deadline: Option<u64>,
    pub(crate) value: Value,
}

/// Reads a line, which begins so many bytes into what was read.
pub(crate) fn parse(line: &[u8], begins: usize) -> Result<Told, Cause> {
    let Line { key, codec, deadline, value } =
        serde_json::from_slice(line).or_else(|error| says(without_its_line(&error, begins)))?;
    match (key, value) {
        (Some(key), Some(value)) => Ok(Told { key, codec: codec.unwrap_or_else(|| RAW.to_owned()), deadline, value }),
        (None, _) => says("it has no key"),
        (_, None) => says("it has neither value nor base64"),
    }
}

/// What a line says. Nothing of it is kept that is not said by a member: a line takes no more memory than a few times its
/// length, whatever is in it.
#[derive(Default)]
struct Line {
    key: Option<String>,
    codec: Option<String>,
    deadline: Option<u64>,
    value: Option<Value>,
}

impl<'de> Deserialize<'de> for Line {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Line, D::Error> {
        deserializer.deserialize_map(Fields)
    }
}

struct Fields;

impl<'de> Visitor<'de> for Fields {
    type Value = Line;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a member")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Line, A::Error> {
        let mut line = Line::default();
        while let Some(name) = fields.next_key::<String>()? {
            match &*name {
                "key" => line.key = Some(fields.next_value_seed(Text("key"))?),
                "codec" => line.codec = Some(fields.next_value_seed(Text("codec"))?),
                "value" | "base64" if line.value.is_some() => {
                    return Err(A::Error::custom("it has a value and base64, or one of them twice"));
                }
                "value" => line.value = Some(Value::from(fields.next_value_seed(Text("value"))?.into_bytes())),
                "base64" => {
                    let text = fields.next_value_seed(Text("base64"))?;
                    line.value = Some(Value::from(BASE64_STANDARD.decode(text).map_err(A::Error::custom)?));
                }
                "deadline" => {
                    line.deadline = fields.next_value().map_err(|error| {
                        A::Error::custom(format_args!("\"deadline\" is not milliseconds since 1970: {error}"))
                    })?;
                    if line.deadline > Some(clock::LAST) {
                        return Err(A::Error::custom(
                            "\"deadline\" is not milliseconds since 1970: it is later than can be kept",
                        ));
                    }
                }
                _ => return Err(A::Error::custom(format_args!("{} is not a field of a member", Shown(&name)))),
            }
        }
        Ok(line)
    }
}

/// The string of the field of that name. Anything else is refused before it is read.
struct Text(&'static str);

impl<'de> DeserializeSeed<'de> for Text {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_string(self)
    }
}

impl Visitor<'_> for Text {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} to be a string", self.0)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }

    fn visit_string<E: serde::de::Error>(self, text: String) -> Result<String, E> {
        Ok(text)
    }
}

/// What JSON's reader says, without the line: it was given one line, or one value, and knows of no other.
fn without_its_line(error: &serde_json::Error, begins: usize) -> String {
    let (said, line, column) = (error.to_string(), error.line(), error.column());
    match said.strip_suffix(&format!(" at line {line} column {column}")) {
        Some(said) if line == 1 => format!("{said}, in column {}", begins + column),
        Some(said) => format!("{said}, {} line feeds into the value", line - 1),
        None => said,
    }
}

/// What keeps a value from being put. JSON that does not decode has lines of its own.
fn refused(error: Error) -> Cause {
    match error {
        Error::Codec { key, codec, action, members, source } => {
            let told = source.downcast_ref().map(|error| without_its_line(error, 0));
            let source = told.map_or(source, text);
            Arc::new(Error::Codec { key, codec, action, members, source })
        }
        error => Arc::new(error),
    }
}

fn text(what: impl Into<String>) -> Cause {
    Arc::from(Box::<dyn std::error::Error + Send + Sync>::from(what.into()))
}

fn says<T>(what: impl Into<String>) -> Result<T, Cause> {
    Err(text(what))
}
