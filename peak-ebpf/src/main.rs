//! Peak's XDP program: finds out which interface a frame came in on, lets [`peak_common::respond`] decide, and
//! counts what became of it.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod maps;
mod xdp_packet;

use aya_ebpf::{
    bindings::xdp_action, helpers::bpf_get_prandom_u32, macros::xdp, programs::XdpContext,
};
use aya_log_ebpf::{error, info};
use peak_common::{
    respond, table,
    verdict::{AbortReason, Verdict},
};

use crate::{maps::Maps, xdp_packet::XdpPacket};

/// Of how many packets one is logged with its verdict; 0: none. Set when the program is loaded, so that the
/// verifier removes the branch.
#[unsafe(no_mangle)]
static LOG_ONE_IN: u32 = 0;

/// What [`respond::respond`] gets for every random draw, less one; 0: a real draw. For tests that compare
/// the program with the same function on the host.
#[unsafe(no_mangle)]
static FIXED_DRAW: u32 = 0;

/// A constant of the loader's.
fn loaded(constant: &'static u32) -> u32 {
    // SAFETY: a static is valid and aligned; volatile, because the loader replaces its value.
    unsafe { core::ptr::read_volatile(constant) }
}

fn draw() -> u32 {
    match loaded(&FIXED_DRAW) {
        // SAFETY: the helper has no preconditions.
        0 => unsafe { bpf_get_prandom_u32() },
        fixed => fixed - 1,
    }
}

/// Answers queries for the names in the table; everything else goes on its way.
#[xdp(frags)]
pub fn peak(ctx: XdpContext) -> u32 {
    let ifindex = ctx.ingress_ifindex() as u32;
    let Some((row, interface)) = table::interface(ifindex, maps::interface) else {
        // The agent registers an interface before it attaches the program: this is not ours.
        return xdp_action::XDP_PASS;
    };
    let mut packet = XdpPacket::new(&ctx);
    let verdict = respond::handle(&mut packet, &Maps, interface, draw);
    maps::count(row, verdict);

    let one_in = loaded(&LOG_ONE_IN);
    if one_in != 0 && draw() % one_in == 0 {
        info!(&ctx, "interface {}: verdict {}", ifindex, verdict.index());
    }
    match verdict {
        Verdict::Answered(..) => xdp_action::XDP_TX,
        Verdict::Passed(_) => xdp_action::XDP_PASS,
        Verdict::Aborted(reason) => {
            let why = match reason {
                AbortReason::Resized => "the frame was not resized as asked",
                AbortReason::Table => "the table changed under its reader",
            };
            error!(
                &ctx,
                "interface {}: dropped a half-written reply: {}", ifindex, why
            );
            xdp_action::XDP_ABORTED
        }
    }
}

/// Passes everything. A veth device delivers frames that its peer sends by XDP_TX only if it has a program of
/// its own; and benchmarks subtract what this costs.
#[xdp(frags)]
pub fn pass(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: the verifier refuses a program from which this could be reached.
    unsafe { core::hint::unreachable_unchecked() }
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 17] = *b"Dual MIT/GPL\0\0\0\0\0";
