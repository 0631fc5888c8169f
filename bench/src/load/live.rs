//! Queries from the kernel itself: a program at the client's end, run with live frames, sends them (`peak-ebpf`'s `generator.rs`),
//! another one counts what comes back.
//!
//! No socket and no copy is on the way, so that it can be asked faster than anybody's stack would; and the frames have room to
//! grow, as those of a NIC have. The UDP checksum is whole, where a local socket leaves it partial.

use std::{
    fs,
    net::{Ipv6Addr, SocketAddr, UdpSocket},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use aya::{
    Ebpf, EbpfLoader, Pod, TestRun, TestRunAttrs, TestRunOptions,
    maps::{Array, MapData, PerCpuArray, PerCpuValues},
    programs::{NetworkInterface, Xdp, xdp::XdpMode},
    util::nr_cpus,
};
use etherparse::PacketBuilder;
use peak_common::{
    bench::FRAME,
    generator::{Arrived, CHECKSUM_AT, DIGITS_AT, Generator, ID_AT},
};

use super::{Check, HEADER, Outcome};
use crate::rig::Rig;

/// Frames of one run of the program's, at most what the kernel takes, and fewer than a veth end holds.
const BATCH: u32 = 64;
/// Runs of one system call, after which samples are looked at.
const RUNS: u32 = 1 << 18;
/// On how many frames it has to be too early once, or it can't send any faster.
const EARLY_ONE_IN: u64 = 100;
/// How long the last replies may take.
const LAST: Duration = Duration::from_millis(50);
/// Where DNS is served (RFC 1035, section 4.2.1).
const PORT: u16 = 53;
const HOP_LIMIT: u8 = 64;
/// Ethernet, IPv6, UDP.
const HEADERS: usize = 14 + 40 + 8;
const IPV6: usize = 14;
const UDP: usize = 54;

/// The generator, in place of the program that passes everything at the client's end.
pub(crate) struct Live<'r> {
    rig: &'r Rig,
    programs: Ebpf,
    generator: Array<MapData, Shared<Generator>>,
    arrived: PerCpuArray<MapData, Shared<Arrived>>,
    template: Generator,
    /// Where the replies go that are looked at.
    socket: UdpSocket,
}

/// What both sides know the layout of.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Shared<T>(T);
// SAFETY: integers and bytes, without padding.
unsafe impl Pod for Shared<Generator> {}
// SAFETY: as above.
unsafe impl Pod for Shared<Arrived> {}

impl<'r> Live<'r> {
    /// `query` is a message whose name begins with a label of eight digits after three letters; `names` is how many numbers
    /// they are drawn from. `object` is the benchmarks' build of the XDP program.
    ///
    /// # Errors
    /// The kernel refuses a program; an end has another one; `query` is no such message.
    pub(crate) fn new(rig: &'r Rig, object: &Path, query: &[u8], names: u32) -> Result<Self> {
        let object =
            fs::read(object).with_context(|| format!("cannot read {}", object.display()))?;
        let mut programs = EbpfLoader::new().load(&object)?;
        let socket = rig.client.namespace.run(|| -> Result<_> {
            let socket = UdpSocket::bind((rig.client.v6, 0))?;
            socket.connect(SocketAddr::from((rig.node.v6, PORT)))?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        })?;
        let port = socket.local_addr()?.port();
        let template = template(rig, port, query, names)?;
        let generator = programs.take_map("GENERATOR").context("no GENERATOR")?;
        let arrived = programs.take_map("ARRIVED").context("no ARRIVED")?;

        program(&mut programs, "generate")?.load()?;
        let arrive = program(&mut programs, "arrive")?;
        arrive.load()?;
        rig.without_pass();
        // Interfaces are looked up in the namespace of the thread that attaches.
        rig.client
            .namespace
            .run(|| arrive.attach(NetworkInterface::Index(rig.client.index), XdpMode::Driver))
            .with_context(|| format!("cannot attach a program to {}", rig.client.interface))?;
        Ok(Self {
            rig,
            programs,
            generator: generator.try_into()?,
            arrived: arrived.try_into()?,
            template,
            socket,
        })
    }

    /// Sends queries at a rate, or as fast as it goes. `check` judges a reply by the number of its name.
    ///
    /// # Errors
    /// The kernel's; replies that are wrong are none, see [`Outcome::right`].
    pub(crate) fn ask(
        &mut self,
        rate: Option<f64>,
        duration: Duration,
        check: &Check<'_>,
    ) -> Result<Outcome> {
        let rate = rate.map_or(0, |rate| (rate.round() as u64).max(1));
        let generator = Generator {
            rate,
            ..self.template
        };
        self.generator.set(0, &Shared(generator), 0)?;
        let processors = nr_cpus().map_err(|(_, error)| error)?.get() as usize;
        let zeros = vec![Shared(Arrived::default()); processors];
        self.arrived.set(0, PerCpuValues::try_from(zeros)?, 0)?;
        let intended = if rate == 0 {
            Duration::MAX / 2
        } else {
            duration
        };
        let mut outcome = Outcome::new(intended);

        let begin = Instant::now();
        while begin.elapsed() < duration {
            self.run()?;
            self.look(&mut outcome, check)?;
        }
        outcome.sending = begin.elapsed();
        // A reply comes within microseconds, or not at all.
        std::thread::sleep(LAST);
        self.look(&mut outcome, check)?;

        let Arrived { answers, others } = self.arrived()?;
        let Generator { sent, early, .. } = self.generator.get(&0, 0)?.0;
        outcome.sent = sent;
        outcome.answered = answers;
        outcome.wrong += others;
        if others > 0 {
            outcome
                .complaint
                .get_or_insert("errors, or none or several records".to_owned());
        }
        // Where it was never too early, the rate is more than what it can send. While something else ran on its processor it
        // sent nothing: its rate is what came of it, and not what was asked for.
        if rate > 0 && early > sent / EARLY_ONE_IN {
            outcome.intended = outcome.sending;
        }
        Ok(outcome)
    }

    /// One system call of the generator.
    fn run(&mut self) -> Result<()> {
        /// `struct xdp_md` of linux/bpf.h.
        #[repr(C)]
        struct Context {
            data: u32,
            data_end: u32,
            data_meta: u32,
            ingress_ifindex: u32,
            rx_queue_index: u32,
            egress_ifindex: u32,
        }
        let frame = self.template.frame;
        let context = Context {
            data: 0,
            data_end: FRAME as u32,
            data_meta: 0,
            ingress_ifindex: self.rig.client.index,
            rx_queue_index: 0,
            egress_ifindex: 0,
        };
        // SAFETY: numbers without padding.
        let context = unsafe {
            std::slice::from_raw_parts((&raw const context).cast(), size_of::<Context>())
        };
        let program = program(&mut self.programs, "generate")?;
        self.rig
            .as_client(|| {
                program.test_run(TestRunOptions {
                    data_in: Some(&frame),
                    ctx_in: Some(context),
                    repeat: RUNS,
                    attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
                    ..TestRunOptions::default()
                })
            })?
            .context("cannot send live frames")?;
        Ok(())
    }

    /// Looks at the replies that have come through to the socket.
    fn look(&self, outcome: &mut Outcome, check: &Check<'_>) -> Result<()> {
        let mut reply = [0; 2048];
        loop {
            let length = match self.socket.recv(&mut reply) {
                Ok(length) => length,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            outcome.checked += 1;
            if let Err(error) = self.judge(&reply[..length], check) {
                outcome.wrong += 1;
                outcome
                    .complaint
                    .get_or_insert_with(|| format!("{error:#}"));
            }
        }
    }

    fn judge(&self, reply: &[u8], check: &Check<'_>) -> Result<()> {
        let at = DIGITS_AT - HEADERS;
        let digits = reply.get(at..at + 8).context("no name")?;
        let number: u32 = std::str::from_utf8(digits)?.parse()?;
        let mut query = self.template.frame[HEADERS..self.template.length as usize].to_vec();
        query[..2].copy_from_slice(&Generator::id(number).to_ne_bytes());
        query[at..at + 8].copy_from_slice(digits);
        check(number as usize, &query, reply)
    }

    fn arrived(&self) -> Result<Arrived> {
        let each: PerCpuValues<Shared<Arrived>> = self.arrived.get(&0, 0)?;
        Ok(each.iter().fold(Arrived::default(), |sum, one| Arrived {
            answers: sum.answers + one.0.answers,
            others: sum.others + one.0.others,
        }))
    }
}

impl Drop for Live<'_> {
    fn drop(&mut self) {
        // The program goes, and the one before it comes back, or nothing would be received any more.
        if let Some(program) = self.programs.program_mut("arrive")
            && let Ok(program) = <&mut Xdp>::try_from(program)
        {
            let _ = program.unload();
        }
        if let Err(error) = self.rig.with_pass() {
            eprintln!("error: {error:#}");
        }
    }
}

fn program<'p>(programs: &'p mut Ebpf, name: &str) -> Result<&'p mut Xdp> {
    let program = programs.program_mut(name);
    let program = program.with_context(|| format!("the object has no program {name}"))?;
    Ok(program.try_into()?)
}

/// The frame of a query, and all of its checksum that doesn't vary.
fn template(rig: &Rig, port: u16, query: &[u8], names: u32) -> Result<Generator> {
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2(rig.client.mac, rig.node.mac)
        .ipv6(rig.client.v6.octets(), rig.node.v6.octets(), HOP_LIMIT)
        .udp(port, PORT)
        .write(&mut bytes, query)?;
    ensure!(
        query.len() >= HEADER && bytes.len() < FRAME,
        "a query of {} bytes",
        query.len()
    );
    for varied in [CHECKSUM_AT..CHECKSUM_AT + 2, ID_AT..ID_AT + 2] {
        bytes[varied].fill(0);
    }
    let digits = bytes.get_mut(DIGITS_AT..DIGITS_AT + 8);
    let digits = digits.filter(|digits| digits.iter().all(u8::is_ascii_digit));
    digits.context("a name with eight digits")?.fill(0);
    let mut frame = [0; FRAME];
    frame[..bytes.len()].copy_from_slice(&bytes);
    Ok(Generator {
        rate: 0,
        granted_until: 0,
        credit: 0,
        sent: 0,
        early: 0,
        sum: sum(&bytes),
        names,
        random: fastrand::u32(1..),
        length: bytes.len() as u64,
        frame,
    })
}

/// RFC 8200, section 8.1: of addresses, length, next header and the datagram; in native words, as RFC 1071 allows.
fn sum(frame: &[u8]) -> u64 {
    let words = |bytes: &[u8]| -> u64 {
        let words = bytes.chunks(2).map(|word| match *word {
            [a, b] => u16::from_ne_bytes([a, b]).into(),
            [a] => u16::from_ne_bytes([a, 0]).into(),
            _ => 0,
        });
        words.sum()
    };
    let datagram = &frame[UDP..];
    let addresses = 2 * size_of::<Ipv6Addr>();
    let pseudo = [datagram.len() as u16, 17].map(|word| u64::from(word.to_be()));
    words(&frame[IPV6 + 8..IPV6 + 8 + addresses]) + pseudo.iter().sum::<u64>() + words(datagram)
}

#[cfg(test)]
mod tests {
    use etherparse::SlicedPacket;

    use super::*;

    #[test]
    fn checksums_are_right_whatever_is_drawn() -> Result<()> {
        let query = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x0bweb00000000\0\0\x1c\0\x01";
        let (from, to) = (
            "fd00::1".parse::<Ipv6Addr>()?,
            "fd00::2".parse::<Ipv6Addr>()?,
        );
        let mut bytes = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv6(from.octets(), to.octets(), HOP_LIMIT)
            .udp(1234, PORT)
            .write(&mut bytes, query)?;
        for range in [
            CHECKSUM_AT..CHECKSUM_AT + 2,
            ID_AT..ID_AT + 2,
            DIGITS_AT..DIGITS_AT + 8,
        ] {
            bytes[range].fill(0);
        }
        let mut generator = Generator {
            rate: 0,
            granted_until: 0,
            credit: 0,
            sent: 0,
            early: 0,
            sum: sum(&bytes),
            names: 100_000,
            random: 7,
            length: bytes.len() as u64,
            frame: [0; FRAME],
        };
        for _ in 0..10_000 {
            let varied = generator.draw();
            let mut frame = bytes.clone();
            frame[CHECKSUM_AT..CHECKSUM_AT + 2].copy_from_slice(&varied.checksum);
            frame[ID_AT..ID_AT + 2].copy_from_slice(&varied.id);
            frame[DIGITS_AT..DIGITS_AT + 8].copy_from_slice(&varied.digits);
            assert!(varied.digits.iter().all(u8::is_ascii_digit));
            let packet = SlicedPacket::from_ethernet(&frame)?;
            let Some(etherparse::TransportSlice::Udp(udp)) = packet.transport else {
                panic!("a datagram");
            };
            let header = udp.to_header();
            let wanted =
                header.calc_checksum_ipv6_raw(from.octets(), to.octets(), udp.payload())?;
            assert_eq!(header.checksum, wanted);
        }
        Ok(())
    }
}
