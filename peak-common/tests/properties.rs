//! What holds for any bytes.

use peak_common::{
    abi::{Control, Interface, Segment, Served, mapped, served_slot, service_key},
    bench::digits,
    dns::name::{Name, NameBuffer},
    hash::{self, hash_name},
    net::checksum::Sum,
    packet::{Buffer, First, Packet, ResizeError},
    respond::{Scratch, respond},
    table::Tables,
    verdict::{PassReason, Verdict},
    word::Word,
};
use proptest::{collection::vec, prelude::*};

const IFINDEX: u32 = 7;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const SERVER: [u8; 4] = [10, 1, 0, 1];

/// Maps that serve one address, and hold a zone without any index: nothing can be said of any name.
struct Nothing {
    control: Box<Control>,
    served: Vec<Served>,
}

impl Nothing {
    fn new() -> Self {
        let zeros = || Word::new(0);
        let control = Box::new(Control {
            abi_version: zeros(),
            flags: Word::new(Control::ENABLED | Control::COMPLETE),
            index: zeros(),
            generation: zeros(),
            names: zeros(),
            zone_count: zeros(),
            subtree_depths: std::array::from_fn(|_| zeros()),
            hash_key: std::array::from_fn(|i| {
                Word::new(0x1234_5678_9abc_def1_u64.wrapping_mul(i as u64 + 1))
            }),
            zones: std::array::from_fn(|_| peak_common::abi::Zone {
                suffix: std::array::from_fn(|_| zeros()),
                length: zeros(),
                labels: zeros(),
                serial: zeros(),
                ttl: zeros(),
            }),
        });
        let served: Vec<_> = (0..peak_common::abi::SERVED_SLOTS)
            .map(|_| Served {
                address: [zeros(), zeros()],
                service: zeros(),
                reserved: 0,
            })
            .collect();
        let (address, service) = (mapped(SERVER), service_key(IFINDEX, 53_u16.to_be()));
        let slot = &served[served_slot(address, service) as usize];
        slot.address[0].store(address[0]);
        slot.address[1].store(address[1]);
        slot.service.store(service);
        Self { control, served }
    }
}

impl Tables for Nothing {
    fn control(&self) -> Option<&Control> {
        Some(&self.control)
    }
    fn index_segment(&self, _: u32) -> Option<&Segment> {
        None
    }
    fn heap_segment(&self, _: u32) -> Option<&Segment> {
        None
    }
    fn served(&self, slot: u32) -> Option<&Served> {
        self.served.get(slot as usize)
    }
}

fn interface() -> Interface {
    let [a, b, c, d, e, f] = MAC;
    Interface {
        ifindex: Word::new(IFINDEX.into()),
        mtu: Word::new(1500),
        mac: Word::new(u64::from_le_bytes([a, b, c, d, e, f, 0, 0])),
        head_first: Word::new(0),
    }
}

/// A frame that carries `message` to the served address.
fn frame(message: &[u8]) -> Vec<u8> {
    let mut frame = [&MAC[..], &[2, 0, 0, 0, 0, 2], &[8, 0]].concat();
    let length = (message.len() + 28) as u16;
    let mut header = vec![0x45, 0];
    header.extend(length.to_be_bytes());
    header.extend([0, 0, 0, 0, 64, 17, 0, 0, 10, 1, 0, 2]);
    header.extend(SERVER);
    let words = header
        .chunks(2)
        .map(|pair| u64::from(u16::from_le_bytes([pair[0], pair[1]])));
    let sum = !words.fold(Sum::ZERO, Sum::with).fold();
    header[10..12].copy_from_slice(&sum.to_le_bytes());
    frame.extend(header);
    frame.extend([0x30, 0x39, 0, 53]);
    frame.extend((length - 20).to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(message);
    frame
}

fn verdict(frame: &[u8]) -> (Verdict, Vec<u8>) {
    let mut packet = Buffer::<4096>::new(frame, 256, 64);
    let mut scratch = Scratch::EMPTY;
    let verdict = respond(
        &mut packet,
        &mut scratch,
        &Nothing::new(),
        &interface(),
        || 0,
    );
    (verdict, packet.frame().to_vec())
}

/// Labels of a name of at most 255 bytes.
fn labels() -> impl Strategy<Value = Vec<u8>> {
    vec(vec(1..=255_u8, 1..=63), 0..=8).prop_map(|labels| {
        let mut wire = Vec::new();
        for label in labels {
            if wire.len() + label.len() + 2 <= 255 {
                wire.push(label.len() as u8);
                wire.extend(label);
            }
        }
        wire.push(0);
        wire
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Arbitrary frames, and arbitrary messages in frames that are otherwise right.
    #[test]
    fn nothing_panics_and_what_is_passed_is_as_it_came(
        bytes in vec(any::<u8>(), 0..1600),
        cut in 0..1600_usize,
    ) {
        let whole = frame(&bytes);
        for frame in [&bytes[..], &whole, &whole[..cut.min(whole.len())]] {
            let (verdict, after) = verdict(frame);
            prop_assert!(matches!(verdict, Verdict::Passed(_)), "{:?}", verdict);
            prop_assert_eq!(&after, frame);
        }
    }

    /// A well-formed query gets as far as the table.
    #[test]
    fn a_query_for_any_name_is_looked_up(wire in labels(), aaaa in any::<bool>()) {
        let mut message = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        message.extend(&wire);
        message.extend([0, if aaaa { 28 } else { 1 }, 0, 1]);
        let (verdict, _) = verdict(&frame(&message));
        prop_assert_eq!(verdict, Verdict::Passed(PassReason::AskFallback));
    }

    /// The walk over a packet and the hash of a name in memory agree, in any case, wherever the frame ends.
    #[test]
    fn a_scanned_name_has_the_hash_of_its_bytes(
        wire in labels(),
        before in 8..80_usize,
        after in vec(any::<u8>(), 0..12),
    ) {
        let tables = Nothing::new();
        let control = tables.control().unwrap();
        let key = std::array::from_fn(|i| control.hash_key[i].load());
        for cased in [wire.clone(), wire.to_ascii_uppercase(), wire.to_ascii_lowercase()] {
            let bytes = [&vec![0xff; before][..], &cased, &after].concat();
            let packet = Buffer::<512>::new(&bytes, 0, 0);
            let mut buffer = NameBuffer::EMPTY;
            let name = Name::scan(&packet, before, control, &mut buffer).unwrap();
            prop_assert_eq!(name.length, wire.len());
            prop_assert_eq!(name.hash, hash_name(&key, &cased));
            let padded = [&cased[..], &[0; 8]].concat();
            let folded = wire.to_ascii_lowercase();
            let stored = |i: usize| {
                let mut word = [0; 8];
                for (to, from) in word.iter_mut().zip(folded.iter().skip(8 * i)) {
                    *to = *from;
                }
                u64::from_le_bytes(word)
            };
            // What `letters` takes for letters and is none is never stored.
            let confusing = |&byte: &u8| matches!(byte, 0x60 | 0x7b..=0xff);
            if !folded.iter().any(confusing) && !wire.iter().any(|b| *b == b'@' || (b'['..=b'_').contains(b)) {
                prop_assert!(name.matches(&buffer, stored), "{:?}", padded);
            }
            let sum = padded.as_chunks::<8>().0.iter()
                .fold(Sum::ZERO, |sum, word| sum.with(u64::from_le_bytes(*word)));
            prop_assert_eq!(name.sum.fold(), sum.fold());
        }
    }

    /// The sum of any bytes is the plain sum of RFC 1071, wherever they begin.
    #[test]
    fn sums_are_those_of_the_rfc(bytes in vec(any::<u8>(), 0..200)) {
        let plain = |bytes: &[u8]| {
            let mut sum = 0_u32;
            for pair in bytes.chunks(2) {
                sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
                sum = (sum & 0xffff) + (sum >> 16);
            }
            sum as u16
        };
        let sum = |bytes: &[u8]| {
            bytes.chunks(8).fold(Sum::ZERO, |sum, chunk| {
                let mut word = [0; 8];
                word[..chunk.len()].copy_from_slice(chunk);
                sum.with(u64::from_le_bytes(word))
            })
        };
        prop_assert_eq!(sum(&bytes).fold().to_be(), plain(&bytes));
        let odd = [&[0][..], &bytes].concat();
        prop_assert_eq!(sum(&bytes).at_odd_offset().fold().to_be(), plain(&odd));
        let (first, second) = bytes.split_at(bytes.len() / 16 * 8);
        prop_assert_eq!(sum(first).and(sum(second)).fold().to_be(), plain(&bytes));
    }

    /// The digits that benchmarks put into names.
    #[test]
    fn digits_are_those_of_the_number(number in 0..100_000_000_u32) {
        prop_assert_eq!(digits(number).to_le_bytes().to_vec(), format!("{number:08}").into_bytes());
    }

    /// Room at the tail, room at the head, or none: what is kept is kept, and without room nothing changes.
    #[test]
    fn resizing_keeps_what_it_is_told_to(
        bytes in vec(any::<u8>(), 60..300),
        growth in 0..200_usize,
        headroom in 0..256_usize,
        tailroom in 0..64_usize,
        first in prop_oneof![Just(First::Tail), Just(First::Head)],
    ) {
        let mut packet = Buffer::<1024>::new(&bytes, headroom, tailroom);
        let keep = bytes.len();
        match packet.resize(keep + growth + 8, keep, first) {
            Ok(()) => {
                prop_assert_eq!(packet.len(), keep + growth + 8);
                prop_assert_eq!(&packet.frame()[..keep], &bytes[..]);
            }
            Err(error) => {
                prop_assert_eq!(error, ResizeError::NoRoom);
                prop_assert!(growth + 8 > headroom && growth + 8 > tailroom);
                prop_assert_eq!(packet.frame(), &bytes[..]);
            }
        }
    }
}

#[test]
fn folding_touches_letters_alone() {
    for byte in (0..=0x5f_u8).chain(b'a'..=b'z') {
        let letter = byte.is_ascii_lowercase();
        assert_eq!(
            hash::letters(byte.into()),
            if letter { 0x20 } else { 0 },
            "{byte:#x}"
        );
    }
}
