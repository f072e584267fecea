//! How a value of your own type becomes the bytes of a file, and back.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// What a codec says when a value does not encode or does not decode.
pub type CodecError = Box<dyn std::error::Error + Send + Sync>;

/// The name under which values put by key, as bytes, are stored.
pub(crate) const RAW: &str = "raw";

/// The longest name of a codec, in bytes.
pub(crate) const MAX_CODEC: usize = 32;

/// How a collection's values are encoded.
///
/// The functions are called on the caller's thread when a collection is opened or used by key, and on the janitor's
/// thread when a value is stored; never while a lock of the store is held.
///
/// # Examples
///
/// A codec of pretty-printed JSON, for files that are read by people:
///
/// ```
/// use larder::{Codec, CodecError, Store};
/// use serde::{Serialize, de::DeserializeOwned};
///
/// struct Pretty;
///
/// impl Codec for Pretty {
///     const NAME: &'static str = "json-pretty";
///
///     fn encode<T: Serialize>(value: &T, out: &mut Vec<u8>) -> Result<(), CodecError> {
///         Ok(serde_json::to_writer_pretty(out, value)?)
///     }
///
///     fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
///         Ok(serde_json::from_slice(bytes)?)
///     }
/// }
///
/// let store = Store::in_memory();
/// let lists = store.collection_with::<Vec<u32>, Pretty>("lists")?;
/// lists.put("primes", vec![2, 3, 5])?;
/// assert_eq!(store.get("lists/primes")?.unwrap(), "[\n  2,\n  3,\n  5\n]");
/// # Ok::<(), larder::Error>(())
/// ```
pub trait Codec: 'static {
    /// The name that stands in the header of every file written with it: 1 to 32 characters from `a-z`, `0-9`, `-`
    /// and `_`, and not `raw`. It stands for the encoding: change one, change the other.
    const NAME: &'static str;

    /// Appends the encoded value to `out`.
    ///
    /// # Errors
    ///
    /// Whatever makes the value impossible to encode.
    fn encode<T: Serialize>(value: &T, out: &mut Vec<u8>) -> Result<(), CodecError>;

    /// Decodes a value from all of `bytes`.
    ///
    /// # Errors
    ///
    /// When `bytes` is not an encoded `T`, and when anything is left over after it: a codec that lets a rest pass
    /// loses data in silence.
    fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError>;
}

/// JSON, the default for types: readable, and survives an added field that has a `#[serde(default)]`.
///
/// Every finite number comes back as it was. JSON has no NaN and no infinity: they are written as `null`, which does not
/// decode as a number again. For values that may hold them take `Bincode`, or an `Option`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Json {}

impl Codec for Json {
    const NAME: &'static str = "json";

    fn encode<T: Serialize>(value: &T, out: &mut Vec<u8>) -> Result<(), CodecError> {
        Ok(serde_json::to_writer(out, value)?)
    }

    fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
        Ok(serde_json::from_slice(bytes)?)
    }
}

/// bincode 2, little-endian with variable-length integers: compact and quick to load, for types that do not change.
///
/// bincode is no longer maintained (RUSTSEC-2025-0141). It is here because it was asked for, pinned, and behind the
/// feature `bincode`, which is on by default.
#[cfg(feature = "bincode")]
#[cfg_attr(docsrs, doc(cfg(feature = "bincode")))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bincode {}

#[cfg(feature = "bincode")]
impl Codec for Bincode {
    const NAME: &'static str = "bincode";

    fn encode<T: Serialize>(value: &T, out: &mut Vec<u8>) -> Result<(), CodecError> {
        bincode::serde::encode_into_std_write(value, out, bincode::config::standard())?;
        Ok(())
    }

    fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
        let (value, used) = bincode::serde::decode_from_slice(bytes, bincode::config::standard())?;
        match bytes.len() - used {
            0 => Ok(value),
            rest => Err(format!("{rest} bytes are left over after the value").into()),
        }
    }
}

/// Whether `name` can stand in a file's header.
pub(crate) fn is_codec_name(name: &str) -> bool {
    (1..=MAX_CODEC).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn consumes_its_input_whole<C: Codec>() {
        let mut bytes = Vec::new();
        C::encode(&(7u64, "alice".to_owned()), &mut bytes).unwrap();
        assert_eq!(C::decode::<(u64, String)>(&bytes).unwrap(), (7, "alice".to_owned()));
        bytes.push(b'1');
        assert!(C::decode::<(u64, String)>(&bytes).is_err());
    }

    #[test]
    fn codecs_consume_their_input_whole() {
        consumes_its_input_whole::<Json>();
        #[cfg(feature = "bincode")]
        consumes_its_input_whole::<Bincode>();
    }
}
