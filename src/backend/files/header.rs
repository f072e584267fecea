//! A member's file: one line that says what it is, then the value untouched.
//!
//! ```text
//! larder 1 codec=json version=42 deadline=none key="artist/daft_punk" length=19 crc32=1b2c3d4e
//! ```
//!
//! `docs/format.md` has it byte by byte. The line has one spelling only, and no other is read.

use std::borrow::Cow;

use memchr::memchr;

use crate::codec;
use crate::key;
use crate::map::MAX_VERSION;

/// The version of the format that is written, and the newest that is read.
pub(super) const FORMAT: u64 = 1;

/// No header is longer: a key of 1,280 bytes is at most 7,680 when each of them is escaped.
pub(crate) const MAX_HEADER: usize = 8192;

#[derive(Debug)]
pub(crate) struct Header<'a> {
    key: Cow<'a, str>,
    /// Where the key's slash is.
    slash: usize,
    pub(crate) version: u64,
    /// In milliseconds since 1970.
    pub(crate) deadline: Option<u64>,
    pub(crate) codec: &'a str,
    pub(crate) length: usize,
    checksum: u32,
}

impl Header<'_> {
    pub(crate) fn collection(&self) -> &str {
        &self.key[..self.slash]
    }

    pub(crate) fn member(&self) -> &str {
        &self.key[self.slash + 1..]
    }
}

const CHECKSUM: &str = " crc32=";

/// A key as it stands in the header: a JSON string. (RFC 8259)
fn quoted(key: &str) -> String {
    // Display of a string cannot fail.
    serde_json::Value::from(key).to_string()
}

/// Appends the whole file to `out`.
pub(crate) fn encode(
    out: &mut Vec<u8>,
    collection: &str,
    member: &str,
    version: u64,
    deadline: Option<u64>,
    codec: &str,
    value: &[u8],
) {
    let (key, length) = (quoted(&key::join(collection, member)), value.len());
    let deadline = deadline.map_or_else(|| "none".to_owned(), |deadline| deadline.to_string());
    let start =
        format!("larder {FORMAT} codec={codec} version={version} deadline={deadline} key={key} length={length}");
    let checksum = sum(start.as_bytes(), value);
    out.reserve(start.len() + 16 + value.len());
    out.extend_from_slice(start.as_bytes());
    out.extend_from_slice(format!("{CHECKSUM}{checksum:08x}\n").as_bytes());
    out.extend_from_slice(value);
}

/// CRC-32 (IEEE 802.3, as in zlib and PNG) of the line before the checksum and of the value.
fn sum(start: &[u8], value: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(start);
    hasher.update(value);
    hasher.finalize()
}

/// Reads a whole file: its header and its value.
///
/// # Errors
///
/// The reason, in words, why this is not a member's file, whole and undamaged.
pub(crate) fn decode(file: &[u8]) -> Result<(Header<'_>, &[u8]), String> {
    let (header, line) = parse(&file[..file.len().min(MAX_HEADER)])?;
    let value = &file[line..];
    if value.len() != header.length {
        let at_least = if value.len() > header.length { "at least " } else { "" };
        return Err(format!("it holds {at_least}{} bytes of value and its header says {}", value.len(), header.length));
    }
    let summed = line - 1 - CHECKSUM.len() - 8;
    let found = sum(&file[..summed], value);
    if found != header.checksum {
        return Err(format!("its checksum is {found:08x} and its header says {:08x}", header.checksum));
    }
    Ok((header, value))
}

/// Whether as many bytes follow the first line as it says. Nothing else is looked at.
pub(crate) fn is_as_long_as_it_says(file: &[u8]) -> bool {
    let says = || {
        let end = memchr(b'\n', file)?;
        let length = file[..end.checked_sub(CHECKSUM.len() + 8)?].rsplit(|&b| b == b'=').next()?;
        let length: usize = std::str::from_utf8(length).ok()?.parse().ok()?;
        (end + 1).checked_add(length)
    };
    says() == Some(file.len())
}

/// Reads a header from a file's first bytes, and says where the value begins. The checksum is not looked at.
pub(crate) fn parse(start: &[u8]) -> Result<(Header<'_>, usize), String> {
    if start.is_empty() {
        return Err("it is empty".into());
    }
    if start.iter().all(|&b| b == 0) {
        return Err("it is all zeros".into());
    }
    let Some(end) = memchr(b'\n', start) else {
        return Err("its first line has no end".into());
    };
    let line = std::str::from_utf8(&start[..end]).map_err(|_| "its first line is not UTF-8")?;
    let rest = line.strip_prefix("larder ").ok_or("it does not begin with \"larder\"")?;
    let (format, rest) = until_space(rest).ok_or("its header is cut short")?;
    match number(format, "format")? {
        FORMAT => {}
        0 => return Err("its format is 0, which never was".into()),
        newer => return Err(format!("its format is {newer}, and this version of larder reads up to {FORMAT}")),
    }
    let mut rest = rest;
    let codec = field(&mut rest, "codec=")?;
    let version = number(field(&mut rest, "version=")?, "version")?;
    let deadline = match field(&mut rest, "deadline=")? {
        "none" => None,
        deadline => Some(number(deadline, "deadline")?),
    };
    if deadline == Some(u64::MAX) {
        return Err(format!("its deadline {} is not a time", u64::MAX));
    }
    let quoted = rest.strip_prefix("key=").ok_or("its header has no key")?;
    let (key, mut rest) = unquote(quoted).ok_or("its key is not a JSON string, spelled as larder spells it")?;
    let length = number(field(&mut rest, "length=")?, "length")?;
    let digits = rest.strip_prefix("crc32=").ok_or("its header has no checksum")?;
    if digits.len() != 8 || !digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(format!("its checksum {digits:?} is not eight hexadecimal digits"));
    }
    let checksum = u32::from_str_radix(digits, 16).map_err(|_| "its checksum is not a number")?;
    if !codec::is_codec_name(codec) {
        return Err(format!("its codec {codec:?} is no name of a codec"));
    }
    if version > MAX_VERSION {
        return Err(format!("its version {version} is above {MAX_VERSION}"));
    }
    let length = usize::try_from(length).map_err(|_| "its length is not of this world")?;
    let slash = key::split(&key).map_err(|error| error.to_string())?.0.len();
    Ok((Header { key, slash, version, deadline, codec, length, checksum }, end + 1))
}

/// Reads the JSON string at the beginning of `text`, and the space after it. Returns the rest. A string that is spelled
/// in any other way than `quoted` spells it is none.
fn unquote(text: &str) -> Option<(Cow<'_, str>, &str)> {
    let inner = text.strip_prefix('"')?;
    let plain = inner.bytes().position(|b| b == b'"' || b == b'\\' || b < b' ')?;
    if inner.as_bytes()[plain] == b'"' {
        return Some((Cow::Borrowed(&inner[..plain]), inner[plain + 1..].strip_prefix(' ')?));
    }
    let mut stream = serde_json::Deserializer::from_str(text).into_iter::<String>();
    let key = stream.next()?.ok()?;
    let (spelled, rest) = text.split_at_checked(stream.byte_offset())?;
    if spelled != quoted(&key) {
        return None;
    }
    Some((Cow::Owned(key), rest.strip_prefix(' ')?))
}

fn field<'a>(rest: &mut &'a str, name: &str) -> Result<&'a str, String> {
    let after = rest.strip_prefix(name).ok_or_else(|| format!("its header has no {name:?} where it belongs"))?;
    let (value, after) = until_space(after).ok_or("its header is cut short")?;
    *rest = after;
    Ok(value)
}

/// What stands before the first space, and after it. A value is of few bytes: they are looked at one by one.
fn until_space(text: &str) -> Option<(&str, &str)> {
    let space = text.bytes().position(|b| b == b' ')?;
    Some((&text[..space], &text[space + 1..]))
}

/// Decimal, without a sign and without leading zeros.
fn number(digits: &str, what: &str) -> Result<u64, String> {
    let plain = digits.bytes().all(|b| b.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'));
    let number = digits.parse().ok().filter(|_| plain);
    number.ok_or_else(|| format!("its {what} {digits:?} is not a number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(member: &str, value: &[u8]) -> Vec<u8> {
        let mut file = Vec::new();
        encode(&mut file, "artist", member, 42, None, "json", value);
        file
    }

    #[test]
    fn the_header_is_as_documented() {
        let file = sample("daft_punk", b"{\"quality\":\"epic\"}");
        let expected = "larder 1 codec=json version=42 deadline=none key=\"artist/daft_punk\" length=18 crc32=";
        let text = std::str::from_utf8(&file).unwrap();
        assert!(text.starts_with(expected), "{text}");
        assert!(text.ends_with("\n{\"quality\":\"epic\"}"));
        // python3 -c 'import zlib; print("%08x" % zlib.crc32(line_before_" crc32=" + value))'
        assert_eq!(&text[expected.len()..expected.len() + 8], "8853379c");
    }

    #[test]
    fn every_key_and_value_comes_back() {
        let hostile =
            ["x", "a\nb", "q\"uo\\te", "sl/ash", " length=3 crc32=00000000", "\u{7f}\u{0}\u{1b}", "björk", "🦀"];
        for member in hostile {
            for value in [&b""[..], b"\n", b"\0\xff", &[b'x'; 10_000]] {
                let file = sample(member, value);
                let (header, found) = decode(&file).unwrap();
                assert_eq!((header.collection(), header.member(), header.version), ("artist", member, 42));
                assert_eq!((header.codec, found), ("json", value));
            }
        }
        let longest = "\u{1}".repeat(key::MAX_MEMBER);
        assert!(decode(&sample(&longest, b"v")).is_ok());
    }

    #[test]
    fn a_file_cut_at_any_length_or_with_any_byte_changed_is_refused() {
        let file = sample("daft punk", b"{\"quality\":\"epic\"}");
        for end in 0..file.len() {
            assert!(decode(&file[..end]).is_err(), "cut at {end}");
        }
        for at in 0..file.len() {
            for flip in [1, 0x20, 0x80, 0xff] {
                let mut damaged = file.clone();
                damaged[at] ^= flip;
                assert!(decode(&damaged).is_err(), "byte {at} ^ {flip:#x}");
            }
        }
        for escaped in ["q\"uote", "line\nfeed", "\u{1}", "plain"] {
            let file = sample(escaped, b"v");
            for at in 0..file.len() {
                let mut damaged = file.clone();
                damaged[at] ^= 1;
                assert!(decode(&damaged).is_err(), "{escaped:?}: byte {at}");
            }
        }
        assert!(decode(&[&file[..], b"x"].concat()).is_err(), "a byte too many");
        assert!(decode(&vec![0; file.len()]).is_err(), "zeros of the same length");
    }

    #[test]
    fn a_header_has_one_spelling_only() {
        let text = String::from_utf8(sample("a b", b"v")).unwrap();
        for (right, wrong) in [
            ("version=42", "version=+42"),
            ("version=42", "version=042"),
            ("version=42", "version=42 "),
            ("length=1", "length=01"),
            ("artist/a b", "artist\\/a b"),
            ("artist/a b", "artist/a\\u0020b"),
            ("artist/a b", "artist/a\tb"),
            ("larder 1", "larder 01"),
            ("larder 1", "larder  1"),
            ("codec=json", "codec=JSON"),
            ("deadline=none", "deadline=00"),
            ("deadline=none", "deadline=18446744073709551615"),
        ] {
            let respelled = text.replace(right, wrong);
            assert_ne!(respelled, text);
            assert!(parse(respelled.as_bytes()).is_err(), "{wrong}");
        }
        let (start, rest) = text.split_once("crc32=").unwrap();
        let (_, value) = rest.split_once('\n').unwrap();
        for (digits, right) in [("0a1b2c3d", true), ("0A1B2C3D", false), ("+1234567", false), ("1234567", false)] {
            let respelled = format!("{start}crc32={digits}\n{value}");
            assert_eq!(parse(respelled.as_bytes()).is_ok(), right, "{digits}");
        }
    }
}
