//! Ethernet II with up to two VLAN tags (IEEE 802.1Q, 802.1ad).

use network_types::eth::EtherType;

use crate::{packet::Packet, verdict::PassReason, verifier::forget};

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
        let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, rest @ ..] = *bytes;
        let mut ether_type = u16::from_ne_bytes([rest[0], rest[1]]);
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
            destination: u64::from_le_bytes([d0, d1, d2, d3, d4, d5, 0, 0]),
            source: u64::from_le_bytes([s0, s1, s2, s3, s4, s5, 0, 0]),
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
    let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5] = *bytes;
    *bytes = [s0, s1, s2, s3, s4, s5, d0, d1, d2, d3, d4, d5];
    Some(())
}
