//! The name of a file or directory for a member or collection, safe on every file system.
//!
//! A name that is portable stands for itself. Any other becomes `part~hash`: what is readable of it, and the first 128
//! bits of its SHA-256. Case, Unicode normalisation, reserved names, length and forbidden characters never matter,
//! since nothing but `a-z 0-9 . _ - ~` reaches the file system. The exact key is in the file's header.

use sha2::{Digest, Sha256};

/// The longest name that stands for itself.
const MAX_PLAIN: usize = 100;

/// The longest readable part before a hash.
const MAX_PART: usize = 40;

/// Hexadecimal digits of the hash: 128 bits.
const HASH_DIGITS: usize = 32;

/// Names that Windows gives to devices, whatever follows a dot. (Microsoft, "Naming Files, Paths, and Namespaces")
const RESERVED: [&str; 22] = [
    "con", "prn", "aux", "nul", "com1", "com2", "com3", "com4", "com5", "com6", "com7", "com8", "com9", "lpt1", "lpt2",
    "lpt3", "lpt4", "lpt5", "lpt6", "lpt7", "lpt8", "lpt9",
];

/// The file name of a member, or the directory name of a collection.
pub(in crate::backend) fn file_name(name: &str) -> String {
    if is_portable(name) {
        return name.to_owned();
    }
    let mut encoded: String = name.chars().take(MAX_PART).map(readable).collect();
    // No command takes it for an option.
    if encoded.starts_with('-') {
        encoded.replace_range(..1, "_");
    }
    encoded.push('~');
    for byte in &Sha256::digest(name.as_bytes())[..HASH_DIGITS / 2] {
        encoded.push(char::from(HEX[usize::from(byte >> 4)]));
        encoded.push(char::from(HEX[usize::from(byte & 15)]));
    }
    encoded
}

/// Whether `file` is the name that `file_name` gives to `name`.
pub(in crate::backend) fn is_name_of(file: &str, name: &str) -> bool {
    if file == name { is_portable(name) } else { file.contains('~') && file_name(name) == file }
}

const HEX: &[u8; 16] = b"0123456789abcdef";

/// Whether `file_name` gives this name to something.
pub(in crate::backend) fn could_be_ours(name: &str) -> bool {
    match name.split_once('~') {
        None => is_portable(name),
        Some((part, hash)) => {
            part.len() <= MAX_PART
                && !part.starts_with('-')
                && part.chars().all(|c| readable(c) == c)
                && hash.len() == HASH_DIGITS
                && hash.bytes().all(|b| HEX.contains(&b))
        }
    }
}

fn readable(c: char) -> char {
    match c.to_ascii_lowercase() {
        c @ ('a'..='z' | '0'..='9' | '-' | '_') => c,
        _ => '_',
    }
}

fn is_portable(name: &str) -> bool {
    let allowed = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
    let stem = name.split('.').next().unwrap_or_default();
    name.len() <= MAX_PLAIN
        && name.bytes().all(allowed)
        && name.starts_with(|c: char| c != '.' && c != '-')
        && !name.ends_with('.')
        && !RESERVED.contains(&stem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_portable_name_stands_for_itself() {
        for name in ["daft_punk", "0", "a.b-c_d", "_", "console", "com0", &"x".repeat(MAX_PLAIN)] {
            assert_eq!(file_name(name), name);
            assert!(could_be_ours(name), "{name}");
        }
    }

    #[test]
    fn any_other_name_becomes_a_readable_part_and_a_hash() {
        // printf %s 'björk' | sha256sum
        assert_eq!(file_name("björk"), "bj_rk~590a34408cfed52d0fc682d0c112dc26");
        let long = "x".repeat(MAX_PLAIN + 1);
        let hostile = [
            "",
            "Björk",
            ".",
            "..",
            ".hidden",
            "-rf",
            "a/b",
            "../../etc/passwd",
            "a\0b",
            "a\nb",
            "con",
            "con.txt",
            "nul",
            "lpt9.x",
            "trailing.",
            "trailing ",
            "A",
            "a~b",
            "~",
            "C:\\x",
            "a:b",
            "\u{202e}x",
            "🦀",
            &long,
            "bj_rk~590a34408cfed52d0fc682d0c112dc26",
        ];
        let mut seen = std::collections::HashSet::new();
        for name in hostile {
            let file = file_name(name);
            assert_ne!(file, name);
            assert!(file.len() <= MAX_PART + 1 + HASH_DIGITS && could_be_ours(&file), "{name:?} -> {file}");
            assert!(file.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'~')), "{file}");
            assert!(seen.insert(file), "{name:?}");
        }
    }

    #[test]
    fn names_that_differ_only_in_case_or_normalisation_get_different_files() {
        let folded = |name: &str| file_name(name).to_lowercase();
        assert_ne!(folded("Ushuaia"), folded("ushuaia"));
        assert_ne!(folded("caf\u{e9}"), folded("cafe\u{301}"));
    }

    #[test]
    fn foreign_names_are_known_as_such() {
        for name in [".DS_Store", "README.txt", "x~", "x~12", "Thumbs.db", "a b", ".tmp", "._x", "", "x.swp~"] {
            assert!(!could_be_ours(name), "{name}");
        }
    }
}
