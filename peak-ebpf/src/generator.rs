//! The benchmarks' load generator, at the client's end of a veth pair: a program that sends queries, run by `BPF_PROG_TEST_RUN`
//! with live frames, and one that counts what comes back.

use aya_ebpf::{
    bindings::xdp_action,
    btf_maps::{Array, PerCpuArray},
    helpers::{bpf_ktime_get_ns, bpf_xdp_adjust_tail, bpf_xdp_store_bytes},
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use peak_common::{
    bench::FRAME,
    generator::{Arrived, CHECKSUM_AT, DIGITS_AT, Generator, ID_AT, PASSED_ONE_IN, Varied},
    packet::Packet,
};

use crate::xdp_packet::XdpPacket;

#[btf_map]
static GENERATOR: Array<Generator, 1> = Array::new();
#[btf_map]
static ARRIVED: PerCpuArray<Arrived, 1> = PerCpuArray::new();

/// Makes a query of the frame, which may be the reply to one before, and sends it; or drops it, to keep the pace.
#[xdp]
pub fn generate(ctx: XdpContext) -> u32 {
    let Some(generator) = GENERATOR.get_ptr_mut(0) else {
        return xdp_action::XDP_ABORTED;
    };
    // SAFETY: one thread runs this program, and nobody else writes meanwhile.
    let generator = unsafe { &mut *generator };
    // SAFETY: the helper has no preconditions.
    if !generator.grant(|| unsafe { bpf_ktime_get_ns() }) {
        return xdp_action::XDP_DROP;
    }
    match query(&ctx, generator) {
        Some(()) => xdp_action::XDP_TX,
        None => xdp_action::XDP_ABORTED,
    }
}

#[inline(always)]
fn query(ctx: &XdpContext, generator: &mut Generator) -> Option<()> {
    let length = generator.length as u32 & (FRAME as u32 - 1);
    if length == 0 {
        return None;
    }
    // The kernel forgets that a reply has made a frame longer, unless its length is changed here, too.
    let growth = length as i32 - XdpPacket::new(ctx).len() as i32;
    // SAFETY: the context is the kernel's, and no pointer into the packet is kept.
    if unsafe { bpf_xdp_adjust_tail(ctx.ctx, growth) } != 0 {
        return None;
    }
    // SAFETY: the context is the kernel's, the frame in the map is longer than `length`, and the kernel checks the packet's
    // own length. No pointer into the packet is kept.
    let stored =
        unsafe { bpf_xdp_store_bytes(ctx.ctx, 0, generator.frame.as_mut_ptr().cast(), length) };
    if stored != 0 {
        return None;
    }
    let Varied {
        id,
        digits,
        checksum,
    } = generator.draw();
    let mut packet = XdpPacket::new(ctx);
    *packet.window_mut::<2>(CHECKSUM_AT)? = checksum;
    *packet.window_mut::<2>(ID_AT)? = id;
    *packet.window_mut::<8>(DIGITS_AT)? = digits;
    Some(())
}

/// Ethernet's type and the next header of IPv6, and the port of DNS (RFC 1035, section 4.2.1).
const IPV6: [u8; 2] = [0x86, 0xdd];
const UDP: u8 = 17;
const PORT: [u8; 2] = [0, 53];

/// Counts responses, and lets one of many go on to whoever looks at them. Whatever else comes, passes.
#[xdp(frags)]
pub fn arrive(ctx: XdpContext) -> u32 {
    let Some(arrived) = ARRIVED.get_ptr_mut(0) else {
        return xdp_action::XDP_ABORTED;
    };
    // SAFETY: this processor's own, and no other program has it.
    let arrived = unsafe { &mut *arrived };
    // Ethernet, IPv6, UDP and the header of the message.
    let packet = XdpPacket::new(&ctx);
    let Some(frame) = packet.window::<74>(0) else {
        return xdp_action::XDP_PASS;
    };
    if frame[12..14] != IPV6 || frame[20] != UDP || frame[54..56] != PORT {
        return xdp_action::XDP_PASS;
    }
    // RFC 1035, section 4.1.1: QR and RCODE, QDCOUNT and ANCOUNT.
    let answers = frame[64] & 0x80 != 0 && frame[65] & 0xf == 0 && frame[66..70] == [0, 1, 0, 1];
    if !answers {
        arrived.others += 1;
        return xdp_action::XDP_PASS;
    }
    arrived.answers += 1;
    // The first, too.
    if arrived.answers & (PASSED_ONE_IN - 1) == 1 {
        xdp_action::XDP_PASS
    } else {
        xdp_action::XDP_DROP
    }
}
