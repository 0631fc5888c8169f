//! Name compression (RFC 1035, section 4.1.4) without memory of its own.

use std::convert::Infallible;

use domain::{
    base::{
        name::{Label, ToName},
        wire::Composer,
    },
    dep::octseq::{OctetsBuilder, Truncate},
};

/// RFC 1035, section 4.1.4: a pointer has 14 bits.
const REACH: usize = 1 << 14;
/// The two bits by which a pointer is told from a label's length.
const POINTER: u8 = 0xc0;
/// How many names are remembered. A usual answer has three: the question's, and those of an SOA.
const NAMES: usize = 16;

/// Writes a message into a buffer that is used again and again, and compresses its names.
///
/// Of `domain`'s three compressors two allocate for each message; the third compares label by label with each parent of
/// each name, and learns no more after 24 of these, fewer than a reverse name has. Here only what has the same length is
/// compared, and the last place goes to the latest name: the records of one owner follow one another.
pub(super) struct Compressor<'a> {
    octets: &'a mut Vec<u8>,
    /// By where they stand.
    names: [Written; NAMES],
    known: usize,
}

/// A name that was written.
#[derive(Clone, Copy, Default)]
struct Written {
    /// Where it begins.
    at: usize,
    /// How long it is without compression, in bytes.
    length: usize,
    /// How many bytes of labels stand there, before the root or a pointer.
    labels: usize,
}

impl Written {
    /// Where its parent of some length stands, or itself, if that is not behind its pointer.
    fn parent(&self, message: &[u8], length: usize) -> Option<usize> {
        let skipped = self.length.checked_sub(length)?;
        if skipped >= self.labels {
            return None;
        }
        let (mut at, end) = (self.at, self.at + skipped);
        while at < end {
            at += 1 + usize::from(message[at]);
        }
        (at == end).then_some(at)
    }
}

impl<'a> Compressor<'a> {
    pub(super) fn new(octets: &'a mut Vec<u8>) -> Self {
        Self {
            octets,
            names: [Written::default(); NAMES],
            known: 0,
        }
    }

    /// Where a name of some length stands already, if a pointer can lead there.
    fn find<'n>(
        &self,
        labels: impl Iterator<Item = &'n Label> + Clone,
        length: usize,
    ) -> Option<u16> {
        let names = self.names[..self.known].iter();
        let mut places = names.filter_map(|name| name.parent(self.octets, length));
        let at = places.find(|&at| stands_at(self.octets, at, labels.clone()))?;
        (at < REACH).then_some(at as u16)
    }

    fn remember(&mut self, name: Written) {
        if name.labels > 0 {
            self.known = (self.known + 1).min(NAMES);
            self.names[self.known - 1] = name;
        }
    }
}

/// Whether that is the name which stands there in a message of ours, in any case.
fn stands_at<'n>(message: &[u8], mut at: usize, labels: impl Iterator<Item = &'n Label>) -> bool {
    for label in labels {
        if message[at] & POINTER == POINTER {
            at = usize::from(u16::from_be_bytes([
                message[at] & !POINTER,
                message[at + 1],
            ]));
        }
        let end = at + 1 + label.len();
        if usize::from(message[at]) != label.len()
            || !message[at + 1..end].eq_ignore_ascii_case(label.as_slice())
        {
            return false;
        }
        at = end;
    }
    true
}

impl Composer for Compressor<'_> {
    fn append_compressed_name<N: ToName + ?Sized>(&mut self, name: &N) -> Result<(), Infallible> {
        let (at, length) = (self.octets.len(), usize::from(name.compose_len()));
        let mut labels = name.iter_labels();
        let pointer = loop {
            let written = self.octets.len() - at;
            let rest = labels.clone();
            match labels.next() {
                Some(label) if !label.is_root() => {
                    if let Some(place) = self.find(rest, length - written) {
                        break Some(place);
                    }
                    label.compose(self)?;
                }
                _ => break None,
            }
        };
        let labels = self.octets.len() - at;
        match pointer {
            Some(place) => {
                let [high, low] = place.to_be_bytes();
                self.octets.extend_from_slice(&[high | POINTER, low]);
            }
            None => self.octets.push(0),
        }
        self.remember(Written { at, length, labels });
        Ok(())
    }

    fn can_compress(&self) -> bool {
        true
    }
}

impl OctetsBuilder for Compressor<'_> {
    type AppendError = Infallible;

    fn append_slice(&mut self, slice: &[u8]) -> Result<(), Infallible> {
        self.octets.extend_from_slice(slice);
        Ok(())
    }
}

impl Truncate for Compressor<'_> {
    fn truncate(&mut self, length: usize) {
        self.octets.truncate(length);
        let known = self.names[..self.known].iter();
        self.known = known.filter(|name| name.at < length).count();
    }
}

impl AsRef<[u8]> for Compressor<'_> {
    fn as_ref(&self) -> &[u8] {
        self.octets
    }
}

impl AsMut<[u8]> for Compressor<'_> {
    fn as_mut(&mut self) -> &mut [u8] {
        self.octets
    }
}

#[cfg(test)]
mod tests {
    use domain::base::{MessageBuilder, Name, Rtype, iana::Class, message_builder::HashCompressor};
    use domain::rdata::Cname;
    use proptest::prelude::*;

    use super::*;

    type Names = Vec<Name<Vec<u8>>>;

    /// Writes a question and an alias of each name to the next, and leaves out the pushes that exceed a limit.
    fn message<T: Composer>(target: T, names: &Names, limit: usize) -> Vec<u8>
    where
        T::AppendError: std::fmt::Debug,
    {
        let mut builder = MessageBuilder::from_target(target).unwrap();
        builder.set_push_limit(limit);
        let mut question = builder.question();
        let _ = question.push((&names[0], Rtype::A));
        let mut answer = question.answer();
        for pair in names.windows(2) {
            let _ = answer.push((&pair[0], Class::IN, 5_u32, Cname::new(&pair[1])));
        }
        answer.finish().as_ref().to_vec()
    }

    fn names(count: std::ops::Range<usize>) -> impl Strategy<Value = Names> {
        let label = prop::sample::select(vec!["a", "A", "b", "svc", "SVC", "cluster", "local"]);
        let name = prop::collection::vec(label, 0..5).prop_map(|labels| {
            let text = format!("{}.", labels.join("."));
            text.parse().unwrap()
        });
        prop::collection::vec(name, count)
    }

    /// The SOA of a zone that the client writes in capitals is written so, too: with a pointer.
    #[test]
    fn every_parent_of_a_name_with_many_labels_is_known() {
        let nibbles = "a.".repeat(120);
        let [whole, zone]: [Name<Vec<u8>>; 2] =
            [format!("{nibbles}IP6.ARPA."), "ip6.arpa.".to_owned()]
                .map(|name| name.parse().unwrap());
        let octets = message(
            Compressor::new(&mut Vec::new()),
            &vec![whole, zone.clone(), zone],
            400,
        );
        // Header, question, two records of which each name is a pointer.
        let record = 2 + 10 + 2;
        assert_eq!(octets.len(), 12 + nibbles.len() + 10 + 4 + 2 * record);
    }

    proptest! {
        /// As long as there is room for all names.
        #[test]
        fn it_writes_what_hash_compressor_writes(names in names(1..9), limit in 12_usize..300) {
            let mut octets = b"old".to_vec();
            let ours = message(Compressor::new(&mut octets), &names, limit);
            let theirs = message(HashCompressor::new(Vec::new()), &names, limit);
            prop_assert_eq!(ours, theirs);
        }

        /// However many they are, they can be read.
        #[test]
        fn many_names_can_be_read(names in names(30..400), limit in 1000_usize..40_000) {
            let mut octets = Vec::new();
            let octets = message(Compressor::new(&mut octets), &names, limit);
            let plain = message(Vec::new(), &names, usize::MAX);
            let (read, plain) = (hickory_proto::op::Message::from_vec(&octets), hickory_proto::op::Message::from_vec(&plain));
            let (read, plain) = (read.unwrap().answers, plain.unwrap().answers);
            let mut rest = plain.iter();
            for record in &read {
                prop_assert!(rest.any(|other| other == record));
            }
        }
    }
}
