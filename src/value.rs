//! The handles that the store gives out: `Value`, a run of bytes, and `Member`, a member's name.
//!
//! Both are larder's own, so that what is inside can change. A `Value` is one pointer to a counted allocation; a
//! `Member` holds a name of up to 23 bytes in itself and shares a longer one.

use std::borrow::{Borrow, Cow};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;

use smol_str::SmolStr;
use triomphe::ThinArc;

use crate::key;

/// A stored value: immutable bytes, cheap to clone, and still there after the member is overwritten or deleted.
///
/// ```
/// use larder::Value;
/// let value = Value::from("{ quality:'epic' }");
/// assert_eq!(value, "{ quality:'epic' }");
/// assert_eq!(value.len(), 18);
/// ```
#[derive(Clone)]
pub struct Value(ThinArc<(), u8>);

impl Value {
    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0.slice
    }

    /// The bytes as text, if they are UTF-8.
    pub fn to_str(&self) -> Result<&str, std::str::Utf8Error> {
        std::str::from_utf8(self)
    }
}

impl Deref for Value {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0.slice
    }
}

impl AsRef<[u8]> for Value {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Borrow<[u8]> for Value {
    fn borrow(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b\"{}\"", self.escape_ascii())
    }
}

impl Default for Value {
    fn default() -> Self {
        Value::from(&[][..])
    }
}

impl PartialEq for Value {
    fn eq(&self, other: &Value) -> bool {
        **self == **other
    }
}

impl Eq for Value {}

impl PartialOrd for Value {
    fn partial_cmp(&self, other: &Value) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Value {
    fn cmp(&self, other: &Value) -> std::cmp::Ordering {
        (**self).cmp(&**other)
    }
}

impl Hash for Value {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

macro_rules! bytes_equal {
    ($($other:ty),*) => {$(
        impl PartialEq<$other> for Value {
            fn eq(&self, other: &$other) -> bool {
                let bytes: &[u8] = other.as_ref();
                **self == *bytes
            }
        }
        impl PartialEq<Value> for $other {
            fn eq(&self, other: &Value) -> bool {
                other == self
            }
        }
    )*};
}

bytes_equal!([u8], &[u8], Vec<u8>, str, &str, String);

impl<const N: usize> PartialEq<[u8; N]> for Value {
    fn eq(&self, other: &[u8; N]) -> bool {
        **self == other[..]
    }
}

impl<const N: usize> PartialEq<&[u8; N]> for Value {
    fn eq(&self, other: &&[u8; N]) -> bool {
        **self == other[..]
    }
}

impl From<&[u8]> for Value {
    fn from(bytes: &[u8]) -> Value {
        Value(ThinArc::from_header_and_slice((), bytes))
    }
}

impl<const N: usize> From<&[u8; N]> for Value {
    fn from(bytes: &[u8; N]) -> Value {
        Value::from(&bytes[..])
    }
}

impl<const N: usize> From<[u8; N]> for Value {
    fn from(bytes: [u8; N]) -> Value {
        Value::from(&bytes[..])
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::from(text.as_bytes())
    }
}

impl From<&String> for Value {
    fn from(text: &String) -> Value {
        Value::from(text.as_bytes())
    }
}

impl From<&Vec<u8>> for Value {
    fn from(bytes: &Vec<u8>) -> Value {
        Value::from(&bytes[..])
    }
}

impl From<&Value> for Value {
    fn from(value: &Value) -> Value {
        value.clone()
    }
}

impl From<String> for Value {
    fn from(text: String) -> Value {
        Value::from(text.as_bytes())
    }
}

impl From<Vec<u8>> for Value {
    fn from(bytes: Vec<u8>) -> Value {
        Value::from(&bytes[..])
    }
}

impl From<Box<[u8]>> for Value {
    fn from(bytes: Box<[u8]>) -> Value {
        Value::from(&bytes[..])
    }
}

impl From<Cow<'_, str>> for Value {
    fn from(text: Cow<'_, str>) -> Value {
        Value::from(text.as_bytes())
    }
}

impl From<Value> for Vec<u8> {
    fn from(value: Value) -> Vec<u8> {
        value.to_vec()
    }
}

#[cfg(feature = "bytes")]
#[cfg_attr(docsrs, doc(cfg(feature = "bytes")))]
impl From<Value> for bytes::Bytes {
    /// Shares the allocation.
    fn from(value: Value) -> bytes::Bytes {
        bytes::Bytes::from_owner(value)
    }
}

#[cfg(feature = "bytes")]
#[cfg_attr(docsrs, doc(cfg(feature = "bytes")))]
impl From<bytes::Bytes> for Value {
    /// Copies, so that a small value does not keep a large buffer alive.
    fn from(bytes: bytes::Bytes) -> Value {
        Value::from(&bytes[..])
    }
}

/// The name of a member inside its collection: text, cheap to clone.
///
/// ```
/// use larder::Member;
/// let member = Member::from("daft_punk");
/// assert_eq!(member, "daft_punk");
/// assert!(member.starts_with("daft"));
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Member(SmolStr);

impl Member {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Deref for Member {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Member {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Member {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self)
    }
}

impl From<&str> for Member {
    fn from(name: &str) -> Member {
        Member(SmolStr::new(name))
    }
}

impl From<String> for Member {
    fn from(name: String) -> Member {
        Member(SmolStr::from(name))
    }
}

impl From<Member> for String {
    fn from(member: Member) -> String {
        member.0.into()
    }
}

impl PartialEq<str> for Member {
    #[inline]
    fn eq(&self, other: &str) -> bool {
        key::is_same(self, other)
    }
}

impl PartialEq<&str> for Member {
    fn eq(&self, other: &&str) -> bool {
        **self == **other
    }
}

impl PartialEq<String> for Member {
    fn eq(&self, other: &String) -> bool {
        **self == **other
    }
}

impl PartialEq<Member> for str {
    fn eq(&self, other: &Member) -> bool {
        *self == **other
    }
}

impl PartialEq<Member> for &str {
    fn eq(&self, other: &Member) -> bool {
        **self == **other
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_value_is_made_of_anything_that_is_bytes() {
        let bytes = b"epic".to_vec();
        let values = [
            Value::from("epic"),
            Value::from(&b"epic"[..]),
            Value::from(b"epic"),
            Value::from(*b"epic"),
            Value::from(String::from("epic")),
            Value::from(&String::from("epic")),
            Value::from(bytes.clone()),
            Value::from(&bytes),
            Value::from(bytes.clone().into_boxed_slice()),
            Value::from(Cow::from("epic")),
            Value::from(&Value::from("epic")),
        ];
        assert!(values.iter().all(|value| *value == bytes && *value == "epic" && value == b"epic"));
        assert_eq!(values.iter().collect::<HashSet<_>>().len(), 1);
        assert_eq!((format!("{:?}", values[0]), values[0].to_str()), ("b\"epic\"".to_owned(), Ok("epic")));
        let (less, more) = (Value::from("a"), Value::from("b"));
        assert!(Value::default().is_empty() && less < more);
        assert!(Value::from([0xff]).to_str().is_err());
        assert_eq!(Vec::from(values[0].clone()), bytes);
    }

    #[cfg(feature = "bytes")]
    #[test]
    fn a_value_becomes_bytes_without_a_copy() {
        let value = Value::from("epic");
        let bytes = bytes::Bytes::from(value.clone());
        assert_eq!((&bytes[..], bytes.as_ptr()), (&value[..], value.as_ptr()));
        assert_eq!(Value::from(bytes.slice(1..3)), "pi");
    }

    #[test]
    fn a_member_is_text_of_any_length() {
        for name in ["", "daft_punk", &"x".repeat(23), &"x".repeat(24), "björk"] {
            let member = Member::from(name);
            assert_eq!((member.as_str(), String::from(member.clone()).as_str()), (name, name));
            assert_eq!((&member, member == *name), (&Member::from(name.to_owned()), true));
        }
        assert_eq!(format!("{:>5}|{:?}", Member::from("a"), Member::from("b")), "    a|\"b\"");
    }
}
