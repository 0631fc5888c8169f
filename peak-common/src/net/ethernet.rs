//! Ethernet II with up to two VLAN tags (IEEE 802.1Q, 802.1ad).

use network_types::eth::EtherType;

use crate::{
    bytes::{get, put, word},
    packet::Packet,
    verdict::PassReason,
    verifier::forget,
};

/// Bytes of two addresses, two tags and the type.
const MAX_HEADER: usize = 22;
const ADDRESSES: usize = 12;
const TAG: usize = 4;

const VLAN: u16 = EtherType::Ieee8021q as u16;
const SERVICE_VLAN: u16 = EtherType::Ieee8021ad as u16;

/// The frame's header.
#[derive(Clone, Copy, Debug)]
pub struct Ethernet {
    /// Destination address: its 6 bytes, the first one lowest.
    pub destination: u64,
    /// Source address, likewise.
    pub source: u64,
    /// Type of the payload, in network byte order.
    pub ether_type: u16,
    /// Where the payload begins: 14, 18 or 22.
    pub end: usize,
}

impl Ethernet {
    /// Reads the header at the frame's start.
    ///
    /// # Errors
    /// [`PassReason::Truncated`].
    #[inline(always)]
    pub fn read<P: Packet>(packet: &P) -> Result<Self, PassReason> {
        let bytes = packet
            .window::<MAX_HEADER>(0)
            .ok_or(PassReason::Truncated)?;
        let [first, second] = [word(bytes, 0), word(bytes, 8)];
        let (mut ether_type, rest) = ((second >> 32) as u16, &bytes[ADDRESSES..]);
        let mut end = ADDRESSES + 2;
        if ether_type == VLAN || ether_type == SERVICE_VLAN {
            ether_type = u16::from_ne_bytes([rest[TAG], rest[TAG + 1]]);
            end += TAG;
            if ether_type == VLAN || ether_type == SERVICE_VLAN {
                ether_type = u16::from_ne_bytes([rest[2 * TAG], rest[2 * TAG + 1]]);
                end += TAG;
            }
        }
        Ok(Self {
            destination: first << 16 >> 16,
            source: first >> 48 | second << 32 >> 16,
            ether_type,
            // Six ways lead on from here, by tags and family: the verifier shall see one, or two.
            end: forget(end, packet.len() as u64) & 31,
        })
    }

    /// Whether the source is a group address, which nobody sends from.
    #[inline(always)]
    #[must_use]
    pub const fn from_group(&self) -> bool {
        self.source & 1 != 0
    }
}

/// Sends the frame back where it came from; its tags stay.
#[inline(always)]
pub fn turn<P: Packet>(packet: &mut P) -> Option<()> {
    let bytes = packet.window_mut::<ADDRESSES>(0)?;
    // Two bytes of the source stand in the first word, four after it.
    let (first, second) = (word(bytes, 0), u32::from_le_bytes(get(bytes, 8)));
    let turned = first >> 48 | u64::from(second) << 16 | first << 48;
    put(bytes, 0, turned.to_le_bytes());
    put(bytes, 8, ((first >> 16) as u32).to_le_bytes());
    Some(())
}
