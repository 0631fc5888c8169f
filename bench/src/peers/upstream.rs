//! The resolver that servers forward to: it knows some names, says that all others don't exist, and is always at once.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    thread,
};

use anyhow::{Context, Result};
use hickory_proto::{
    op::{Message, MessageType, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, AAAA, SOA},
    },
};

use super::mix::OUTSIDE;
use crate::rig::Rig;

/// Where it listens, at the client's address.
const PORT: u16 = 5300;
/// How long its answers may be kept, seconds: longer than a server is asked.
const TTL: u32 = 300;

/// A name outside.
pub(super) fn name(number: u32) -> String {
    format!("api-{number}.example.com")
}

/// Its addresses.
pub(super) fn addresses(number: u32) -> (Ipv6Addr, Ipv4Addr) {
    (
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1 + number as u16),
        Ipv4Addr::new(192, 0, 2, 1 + number as u8),
    )
}

/// Starts it on the client's side. It ends with this process.
///
/// # Errors
/// Its port is taken.
pub(super) fn start(rig: &Rig) -> Result<SocketAddr> {
    let address = SocketAddr::from((rig.client.v6, PORT));
    rig.as_client(|| {
        let socket = UdpSocket::bind(address)
            .with_context(|| format!("cannot listen on {address} for what is forwarded"))?;
        // The thread keeps the processor and the namespace that it is started in.
        thread::Builder::new()
            .name("upstream".to_owned())
            .spawn(move || serve(&socket))?;
        Ok(address)
    })?
}

fn serve(socket: &UdpSocket) {
    let mut buffer = [0; 4096];
    loop {
        // What can't be read or sent is asked again.
        let Ok((length, client)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        if let Ok(reply) = answer(&buffer[..length]) {
            let _ = socket.send_to(&reply, client);
        }
    }
}

fn answer(query: &[u8]) -> Result<Vec<u8>> {
    let mut reply = Message::from_vec(query)?;
    let question = reply.queries.first().context("no question")?.clone();
    reply.metadata.message_type = MessageType::Response;
    reply.metadata.recursion_available = true;
    reply.additionals.clear();
    // Case is the asker's own: some draw it, to know their answers again.
    let asked = question.name().to_ascii().to_ascii_lowercase();
    let known = (0..OUTSIDE).find(|number| asked == format!("{}.", name(*number)));
    let data = known.and_then(|number| {
        let (v6, v4) = addresses(number);
        match question.query_type() {
            RecordType::A => Some(RData::A(A(v4))),
            RecordType::AAAA => Some(RData::AAAA(AAAA(v6))),
            _ => None,
        }
    });
    match data {
        Some(data) => {
            reply.add_answer(Record::from_rdata(question.name().clone(), TTL, data));
        }
        None => {
            if known.is_none() {
                reply.metadata.response_code = ResponseCode::NXDomain;
            }
            // RFC 2308, section 5: without an SOA nobody may keep the answer.
            let root = Name::root();
            let soa = SOA::new(root.clone(), root.clone(), 1, 1800, 900, 604_800, TTL);
            reply.add_authority(Record::from_rdata(root, TTL, RData::SOA(soa)));
        }
    }
    Ok(reply.to_vec()?)
}

#[cfg(test)]
mod tests {
    use super::{super::mix::query, *};

    #[test]
    fn it_knows_some_names_and_denies_others() -> Result<()> {
        let ask = |name: &str, qtype| {
            Message::from_vec(&answer(&query(name, qtype)?)?).map_err(anyhow::Error::from)
        };
        let known = ask("API-7.example.com", RecordType::AAAA)?;
        assert_eq!(known.metadata.response_code, ResponseCode::NoError);
        assert_eq!(known.answers[0].data.to_string(), "2001:db8::8");
        let other = ask("svc-1", RecordType::A)?;
        assert_eq!(other.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!((other.answers.len(), other.authorities.len()), (0, 1));
        let no_type = ask("api-7.example.com", RecordType::NS)?;
        assert_eq!(no_type.metadata.response_code, ResponseCode::NoError);
        assert_eq!(no_type.authorities.len(), 1);
        Ok(())
    }
}
