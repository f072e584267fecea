//! What a key is: `"collection/member"`, split at the first slash.

use crate::error::{Error, Result};

/// The longest name of a collection, in bytes of UTF-8.
pub const MAX_COLLECTION: usize = 255;

/// The longest name of a member, in bytes of UTF-8.
pub const MAX_MEMBER: usize = 1024;

/// The largest value, in bytes, as it is stored: 1 GiB.
pub const MAX_VALUE: usize = 1 << 30;

/// Splits `key` into collection and member, both checked. Inlined, so that what it finds stays in registers.
#[inline(always)]
pub(crate) fn split(key: &str) -> Result<(&str, &str)> {
    if let Some(slash) = first_slash(key.as_bytes()) {
        let (collection, member) = (&key[..slash], &key[slash + 1..]);
        // Of these lengths no name breaks a rule.
        let is_plain = matches!(collection.len(), 3..=MAX_COLLECTION) || broken_by_collection(collection).is_none();
        if is_plain && broken_by_member(member).is_none() {
            return Ok((collection, member));
        }
    }
    Err(invalid(key))
}

/// Why a key is none.
#[cold]
fn invalid(key: &str) -> Error {
    let rule = match key.split_once('/') {
        _ if key.is_empty() => Some("a key is not empty"),
        None => Some("a key is \"collection/member\", and this one names a collection only"),
        Some((collection, member)) => broken_by_collection(collection).or_else(|| broken_by_member(member)),
    };
    Error::InvalidKey { key: key.to_owned(), rule: rule.unwrap_or_default() }
}

/// Whether two names are the same. They are short: to compare what they begin with and what they end with is quicker than a
/// call that is made for long texts.
#[inline]
pub(crate) fn is_same(a: &str, b: &str) -> bool {
    #[inline]
    fn ends<const N: usize>(name: &[u8]) -> Option<(&[u8; N], &[u8; N])> {
        Some((name.first_chunk()?, name.last_chunk()?))
    }
    let (a, b) = (a.as_bytes(), b.as_bytes());
    match a.len() {
        length if length != b.len() => false,
        length if length <= 16 => match length {
            8.. => ends::<8>(a) == ends(b),
            4.. => ends::<4>(a) == ends(b),
            2.. => ends::<2>(a) == ends(b),
            _ => a == b,
        },
        17..=32 => ends::<16>(a) == ends(b),
        _ => a == b,
    }
}

/// Keys are short: looking at eight bytes at once is quicker than a search made for long texts.
#[inline]
fn first_slash(key: &[u8]) -> Option<usize> {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGH: u64 = ONES << 7;
    let mut rest = key;
    while let Some((word, after)) = rest.split_first_chunk() {
        // Zero where there is a slash. Taking one away from each byte sets the high bit of the first that is zero; what it
        // does to those after it is of no account.
        let other = u64::from_le_bytes(*word) ^ (ONES * u64::from(b'/'));
        let found = other.wrapping_sub(ONES) & !other & HIGH;
        if found != 0 {
            return Some(key.len() - rest.len() + found.trailing_zeros() as usize / 8);
        }
        rest = after;
    }
    let found = rest.iter().position(|byte| *byte == b'/');
    found.map(|at| key.len() - rest.len() + at)
}

pub(crate) fn check_collection(name: &str) -> Result<()> {
    let rule = match name.split_once('/') {
        Some(_) => Some("a collection is wanted here, and a slash makes it a member's key"),
        None => broken_by_collection(name),
    };
    rule.map_or(Ok(()), |rule| Err(Error::InvalidKey { key: name.to_owned(), rule }))
}

/// `collection` is only for the error.
#[inline]
pub(crate) fn check_member(collection: &str, member: &str) -> Result<()> {
    match broken_by_member(member) {
        Some(rule) => Err(Error::InvalidKey { key: join(collection, member), rule }),
        None => Ok(()),
    }
}

pub(crate) fn join(collection: &str, member: &str) -> String {
    format!("{collection}/{member}")
}

#[inline]
pub(crate) fn broken_by_collection(name: &str) -> Option<&'static str> {
    match name.len() {
        0 => Some("the collection's name is not empty"),
        1 | 2 if matches!(name, "." | "..") => Some("a collection is not named \".\" or \"..\""),
        length if length > MAX_COLLECTION => Some("the collection's name is at most 255 bytes"),
        _ => None,
    }
}

#[inline]
pub(crate) fn broken_by_member(name: &str) -> Option<&'static str> {
    match name.len() {
        0 => Some("the member's name is not empty"),
        length if length > MAX_MEMBER => Some("the member's name is at most 1024 bytes"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_splits_at_its_first_slash() {
        assert_eq!(split("America/Argentina/Ushuaia").unwrap(), ("America", "Argentina/Ushuaia"));
        assert_eq!(split("a//").unwrap(), ("a", "/"));
    }

    #[test]
    fn a_slash_is_found_wherever_it_stands() {
        // What differs from a slash in one bit, or by one, before it and after.
        for other in ["a", ".", "0", "\u{1}", "\u{ef}", "\u{2f}\u{2f}", "\u{af}", "o"] {
            for length in 0..40 {
                let before = other.replace('/', "_").repeat(length);
                let key = format!("{before}/{other}/{other}");
                assert_eq!(first_slash(key.as_bytes()), Some(before.len()), "{key:?}");
                assert_eq!(first_slash(before.as_bytes()), None, "{before:?}");
            }
        }
    }

    #[test]
    fn names_are_the_same_when_every_byte_is() {
        let text = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKL";
        let copy = text.to_owned();
        for length in 0..text.len() {
            let name = &text[..length];
            assert!(is_same(name, &copy[..length]));
            assert!(!is_same(name, &text[..length + 1]) && !is_same(&text[..length + 1], name));
            for at in 0..length {
                let mut other = name.to_owned();
                other.replace_range(at..=at, "_");
                assert!(!is_same(name, &other) && !is_same(&other, name), "{other}");
            }
        }
    }

    #[test]
    fn an_invalid_key_is_named_with_the_rule_it_breaks() {
        let long_collection = format!("{}/m", "c".repeat(MAX_COLLECTION + 1));
        let long_member = format!("c/{}", "m".repeat(MAX_MEMBER + 1));
        for (key, word) in [
            ("", "not empty"),
            ("artist", "collection only"),
            ("/member", "collection's name is not empty"),
            ("artist/", "member's name is not empty"),
            ("./x", "not named"),
            ("../x", "not named"),
            (long_collection.as_str(), "255"),
            (long_member.as_str(), "1024"),
        ] {
            match split(key) {
                Err(Error::InvalidKey { key: named, rule }) => {
                    assert_eq!(named, key);
                    assert!(rule.contains(word), "{key}: {rule}");
                }
                other => panic!("{key}: {other:?}"),
            }
        }
        assert!(split(&format!("{}/{}", "c".repeat(MAX_COLLECTION), "m".repeat(MAX_MEMBER))).is_ok());
        assert!(check_collection("artist/daft_punk").is_err());
    }
}
