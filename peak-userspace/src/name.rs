//! DNS names: lower-case and in uncompressed wire format, the form in which they are hashed, compared and stored.

use std::{fmt, str::FromStr};

use serde::{Serialize, Serializer};
use thiserror::Error;

/// The longest name in wire format, the root label included (RFC 1035, section 2.3.4), in bytes.
pub const MAX_NAME: usize = 255;
/// The longest label without its length byte (RFC 1035, section 2.3.4), in bytes.
pub const MAX_LABEL: usize = 63;

/// An absolute DNS name, its ASCII letters in lower case.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Box<[u8]>);

/// Why something is not a DNS name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NameError {
    /// The text is empty; the root is written as one dot.
    #[error("it is empty (the root is written \".\")")]
    Empty,
    /// Two dots in a row, or one at the start.
    #[error("a label is empty")]
    EmptyLabel,
    /// A label of more than [`MAX_LABEL`] bytes.
    #[error("a label has {0} bytes, more than {MAX_LABEL}")]
    LabelTooLong(usize),
    /// A name of more than [`MAX_NAME`] bytes.
    #[error("it takes more than {MAX_NAME} bytes")]
    TooLong,
    /// A backslash that is followed by neither three digits up to 255 nor another character.
    #[error("a backslash is followed by neither a character nor a number from 000 to 255")]
    BadEscape,
    /// A compression pointer or one of the extended label types, which stored names never hold.
    #[error("it holds a compression pointer or an extended label")]
    NotPlain,
    /// The bytes end before the root label.
    #[error("its bytes end before the root label")]
    Truncated,
    /// Bytes follow the root label.
    #[error("bytes follow its root label")]
    Trailing,
    /// A label that ought to be in lower case already, as Kubernetes' names are.
    #[error("a label has upper-case letters")]
    UpperCase,
}

impl Name {
    /// The root of the tree.
    pub fn root() -> Self {
        Self(Box::new([0]))
    }

    /// Reads presentation format (RFC 1035, section 5.1: `\.` and `\065` are escapes), with or without the final dot.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        match text {
            "" => return Err(NameError::Empty),
            "." => return Ok(Self::root()),
            _ => {}
        }
        let mut wire = vec![0];
        let mut length_at = 0;
        let mut bytes = text.bytes();
        while let Some(byte) = bytes.next() {
            let byte = match byte {
                b'.' => {
                    close_label(&mut wire, length_at)?;
                    length_at = wire.len();
                    wire.push(0);
                    continue;
                }
                b'\\' => unescape(&mut bytes)?,
                plain => plain,
            };
            wire.push(byte.to_ascii_lowercase());
        }
        // After a final dot, the label begun last is the root's.
        if wire.len() > length_at + 1 {
            close_label(&mut wire, length_at)?;
            wire.push(0);
        }
        Self::from_vec(wire)
    }

    /// Reads exactly one uncompressed name in wire format, in any case.
    pub fn from_wire(wire: &[u8]) -> Result<Self, NameError> {
        Ok(Self(Folded::new(wire)?.as_wire().into()))
    }

    /// The name in wire format, the root label included: 1 to [`MAX_NAME`] bytes.
    pub fn as_wire(&self) -> &[u8] {
        &self.0
    }

    /// The labels from the leftmost on, the root's left out.
    pub fn labels(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        labels(&self.0).collect::<Vec<_>>().into_iter()
    }

    /// The name one label below this one.
    pub fn child(&self, label: &[u8]) -> Result<Self, NameError> {
        self.descendant(&[label])
    }

    /// The name some labels below this one; the leftmost label comes first.
    pub fn descendant(&self, labels: &[&[u8]]) -> Result<Self, NameError> {
        let length = labels.iter().map(|label| 1 + label.len()).sum::<usize>() + self.0.len();
        let mut wire = Vec::with_capacity(length);
        for label in labels {
            match label.len() {
                0 => return Err(NameError::EmptyLabel),
                length @ 1..=MAX_LABEL => wire.push(length as u8),
                length => return Err(NameError::LabelTooLong(length)),
            }
            wire.extend(label.iter().map(u8::to_ascii_lowercase));
        }
        wire.extend_from_slice(&self.0);
        Self::from_vec(wire)
    }

    /// The name without its leftmost label; `None` of the root.
    pub fn parent(&self) -> Option<Self> {
        match self.0[0] {
            0 => None,
            length => Some(Self(self.0[1 + usize::from(length)..].into())),
        }
    }

    /// Whether this name is `zone` or below it.
    pub fn is_within(&self, zone: &Name) -> bool {
        offset_of(&self.0, &zone.0).is_some()
    }

    fn from_vec(wire: Vec<u8>) -> Result<Self, NameError> {
        if wire.len() > MAX_NAME {
            Err(NameError::TooLong)
        } else {
            Ok(Self(wire.into()))
        }
    }
}

/// A name of a query, copied to the stack in lower case.
pub(crate) struct Folded {
    bytes: [u8; MAX_NAME],
    length: usize,
}

impl Folded {
    /// Checks and copies exactly one uncompressed name in wire format.
    pub(crate) fn new(wire: &[u8]) -> Result<Self, NameError> {
        let mut rest = wire;
        loop {
            match rest {
                [] => return Err(NameError::Truncated),
                [0] => break,
                [0, ..] => return Err(NameError::Trailing),
                // RFC 1035, section 4.1.4: a length byte has its two highest bits clear.
                [length, ..] if usize::from(*length) > MAX_LABEL => {
                    return Err(NameError::NotPlain);
                }
                [length, after @ ..] => {
                    rest = after
                        .get(usize::from(*length)..)
                        .ok_or(NameError::Truncated)?;
                }
            }
        }
        if wire.len() > MAX_NAME {
            return Err(NameError::TooLong);
        }
        let mut bytes = [0; MAX_NAME];
        bytes[..wire.len()].copy_from_slice(wire);
        // Length bytes are below 64 and so no letters.
        bytes[..wire.len()].make_ascii_lowercase();
        Ok(Self {
            bytes,
            length: wire.len(),
        })
    }

    pub(crate) fn as_wire(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// The labels of a valid name, from the leftmost on, without the root's.
pub(crate) fn labels(wire: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = wire;
    std::iter::from_fn(move || match rest {
        [] | [0, ..] => None,
        [length, after @ ..] => {
            let (label, below) = after.split_at(usize::from(*length));
            rest = below;
            Some(label)
        }
    })
}

/// Where `zone` begins in `name`, if `name` is `zone` or below it; both valid and in lower case.
pub(crate) fn offset_of(name: &[u8], zone: &[u8]) -> Option<usize> {
    let offset = name.len().checked_sub(zone.len())?;
    if name[offset..] != *zone {
        return None;
    }
    // The same bytes may also stand inside a label: only a label's start counts.
    let mut at = 0;
    while at < offset {
        at += 1 + usize::from(name[at]);
    }
    (at == offset).then_some(offset)
}

/// Writes the length of the label whose length byte stands at `length_at` and whose bytes are the rest of `wire`.
fn close_label(wire: &mut [u8], length_at: usize) -> Result<(), NameError> {
    wire[length_at] = match wire.len() - length_at - 1 {
        0 => return Err(NameError::EmptyLabel),
        length @ 1..=MAX_LABEL => length as u8,
        length => return Err(NameError::LabelTooLong(length)),
    };
    Ok(())
}

/// The byte behind a backslash: `\DDD` is a decimal number, `\X` the character itself.
fn unescape(bytes: &mut std::str::Bytes<'_>) -> Result<u8, NameError> {
    let first = bytes.next().ok_or(NameError::BadEscape)?;
    if !first.is_ascii_digit() {
        return Ok(first);
    }
    let mut value = u16::from(first - b'0');
    for _ in 0..2 {
        let digit = bytes
            .next()
            .filter(u8::is_ascii_digit)
            .ok_or(NameError::BadEscape)?;
        value = value * 10 + u16::from(digit - b'0');
    }
    u8::try_from(value).map_err(|_| NameError::BadEscape)
}

/// Presentation format with the final dot.
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self.0 == [0] {
            return f.write_str(".");
        }
        for label in labels(&self.0) {
            for &byte in label {
                match byte {
                    b'.' | b'\\' | b'"' | b';' | b'@' | b'$' | b'(' | b')' => {
                        write!(f, "\\{}", byte as char)?
                    }
                    b'!'..=b'~' => write!(f, "{}", byte as char)?,
                    _ => write!(f, "\\{byte:03}")?,
                }
            }
            f.write_str(".")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::parse(text)
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> Name {
        Name::parse(text).unwrap()
    }

    #[test]
    fn parses_and_folds() {
        assert_eq!(name("Web.Shop").as_wire(), b"\x03web\x04shop\0");
        assert_eq!(name("web.shop."), name("WEB.shop"));
        assert_eq!(name(".").as_wire(), [0]);
        assert_eq!(name(r"a\.b.\065\000").as_wire(), b"\x03a.b\x02a\0\0");
        assert_eq!(name(r"a\.b.\065\000").to_string(), r"a\.b.a\000.");
    }

    #[test]
    fn refuses_what_is_no_name() {
        let cases = [
            ("", NameError::Empty),
            ("..", NameError::EmptyLabel),
            (".a", NameError::EmptyLabel),
            ("a..b", NameError::EmptyLabel),
            ("a..", NameError::EmptyLabel),
            ("a\\", NameError::BadEscape),
            ("a\\25", NameError::BadEscape),
            ("a\\256", NameError::BadEscape),
        ];
        for (text, error) in cases {
            assert_eq!(Name::parse(text), Err(error), "{text:?}");
        }
        assert_eq!(
            Name::parse(&"a".repeat(64)),
            Err(NameError::LabelTooLong(64))
        );
        assert!(Name::parse(&"a".repeat(63)).is_ok());
        // 127 labels of one byte and the root take 255 bytes: the longest name.
        let longest = "a.".repeat(127);
        assert_eq!(name(&longest).as_wire().len(), MAX_NAME);
        assert_eq!(Name::parse(&format!("{longest}a")), Err(NameError::TooLong));
        assert_eq!(name(&longest).child(b"a"), Err(NameError::TooLong));
    }

    #[test]
    fn reads_wire_format() {
        assert_eq!(Name::from_wire(b"\x03WEB\0"), Ok(name("web")));
        assert_eq!(Name::from_wire(b""), Err(NameError::Truncated));
        assert_eq!(Name::from_wire(b"\x03we"), Err(NameError::Truncated));
        assert_eq!(Name::from_wire(b"\x03web"), Err(NameError::Truncated));
        assert_eq!(Name::from_wire(b"\x03web\0x"), Err(NameError::Trailing));
        assert_eq!(Name::from_wire(b"\xc0\x0c"), Err(NameError::NotPlain));
        let too_long = [b"\x01a".repeat(128), vec![0]].concat();
        assert_eq!(Name::from_wire(&too_long), Err(NameError::TooLong));
    }

    #[test]
    fn children_parents_and_zones() {
        let zone = name("cluster.local");
        let web = zone.child(b"WEB").unwrap();
        assert_eq!(web, name("web.cluster.local"));
        assert_eq!(web.parent(), Some(zone.clone()));
        assert_eq!(Name::root().parent(), None);
        assert_eq!(zone.child(b""), Err(NameError::EmptyLabel));
        assert_eq!(zone.child(&[b'a'; 64]), Err(NameError::LabelTooLong(64)));
        assert_eq!(
            web.labels().rev().collect::<Vec<_>>(),
            [&b"local"[..], b"cluster", b"web"]
        );
        assert!(web.is_within(&zone) && zone.is_within(&zone) && zone.is_within(&Name::root()));
        assert!(!zone.is_within(&web) && !name("xcluster.local").is_within(&zone));
        // The zone's bytes at the end, but inside a label.
        let inside = Name::root().child(b"x\x07cluster\x05local").unwrap();
        assert!(!inside.is_within(&zone));
    }

    proptest! {
        #[test]
        fn display_parses_back(labels in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..20), 0..8)) {
            let name = labels.iter().try_fold(Name::root(), |name, label| name.child(label)).unwrap();
            prop_assert_eq!(&Name::parse(&name.to_string()).unwrap(), &name);
            prop_assert_eq!(&Name::from_wire(name.as_wire()).unwrap(), &name);
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(name) = Name::from_wire(&bytes) {
                prop_assert_eq!(name.as_wire(), bytes.to_ascii_lowercase());
            }
        }

        #[test]
        fn any_text_is_read_without_panic(text in ".{0,80}") {
            if let Ok(name) = Name::parse(&text) {
                prop_assert_eq!(Name::parse(&name.to_string()).unwrap(), name);
            }
        }
    }
}
