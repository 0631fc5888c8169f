//! What a reply has to be, byte by byte.

use std::net::Ipv6Addr;

use anyhow::{Result, ensure};

use super::{HEADER, question_end};

/// Bits of the header (RFC 1035, section 4.1.1).
pub(crate) const QR: u16 = 0x8000;
pub(crate) const AA: u16 = 0x0400;
pub(crate) const RD: u16 = 0x0100;

/// The whole reply with one AAAA record, to a query without OPT: the header, the question as it was asked, and a record whose
/// name points to the question's. `flags` is what the header's second word says.
///
/// # Panics
/// `query` is none.
pub(crate) fn aaaa(query: &[u8], flags: u16, ttl: u32, address: Ipv6Addr) -> Vec<u8> {
    let question = question_end(query).expect("a question");
    let mut reply = query[..2].to_vec();
    for word in [flags, 1, 1, 0, 0] {
        reply.extend(word.to_be_bytes());
    }
    reply.extend(&query[HEADER..question]);
    for word in [0xc00c, 28_u16, 1] {
        reply.extend(word.to_be_bytes());
    }
    reply.extend(ttl.to_be_bytes());
    reply.extend(16_u16.to_be_bytes());
    reply.extend(address.octets());
    reply
}

/// # Errors
/// They differ.
pub(crate) fn same(reply: &[u8], wanted: &[u8]) -> Result<()> {
    ensure!(
        reply == wanted,
        "the reply is {reply:02x?}, and should be {wanted:02x?}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUERY: &[u8] = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03web\0\0\x1c\0\x01";
    const REPLY: &[u8] = b"\x12\x34\x85\0\0\x01\0\x01\0\0\0\0\x03web\0\0\x1c\0\x01\
        \xc0\x0c\0\x1c\0\x01\0\0\0\x05\0\x10\xfd\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x09";

    #[test]
    fn every_byte_counts() {
        let wanted = aaaa(
            QUERY,
            QR | AA | RD,
            5,
            "fd00::9".parse().expect("an address"),
        );
        assert_eq!(wanted, REPLY);
        assert!(same(REPLY, &wanted).is_ok());
        for i in 0..REPLY.len() {
            let mut reply = REPLY.to_vec();
            reply[i] ^= 1;
            assert!(same(&reply, &wanted).is_err());
        }
        let longer = [REPLY, &[0]].concat();
        assert!(same(&longer, &wanted).is_err());
        assert!(same(&REPLY[1..], &wanted).is_err());
    }
}
