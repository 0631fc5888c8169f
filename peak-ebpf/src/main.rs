//! Peak's XDP program: finds out which interface a frame came in on, lets [`peak_common::respond`] decide, and
//! counts what became of it.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![expect(
    missing_docs,
    unreachable_pub,
    reason = "the functions that the `xdp` macro makes"
)]

#[cfg(feature = "bench")]
mod bench;
#[cfg(feature = "bench")]
mod generator;
mod maps;
mod xdp_packet;

use aya_ebpf::{
    bindings::xdp_action, helpers::bpf_get_prandom_u32, macros::xdp, programs::XdpContext,
};
use aya_log_ebpf::{error, info};
use peak_common::{
    abi::Interface,
    respond::{self, Decision},
    table::{self, Tables},
    verdict::{Kind, PassReason, Verdict},
};

use crate::{maps::Maps, xdp_packet::XdpPacket};

// What the loader replaces is in a section of its own: constants of one value are otherwise merged into one, and a
// replaced value would be that of others, such as an array's key 0, too.

/// Of how many packets one is logged with its verdict; 0: none. Set when the program is loaded, so that the
/// verifier removes the branch.
#[unsafe(link_section = ".rodata.loaded")]
#[unsafe(no_mangle)]
static LOG_ONE_IN: u32 = 0;

/// What [`respond::respond`] gets for every random draw, plus one; 0: a real draw. For tests that compare
/// the program with the same function on the host.
#[unsafe(link_section = ".rodata.loaded")]
#[unsafe(no_mangle)]
static FIXED_DRAW: u64 = 0;

/// A constant of the loader's.
fn loaded<T: Copy>(constant: &'static T) -> T {
    // SAFETY: a static is valid and aligned; volatile, because the loader replaces its value.
    unsafe { core::ptr::read_volatile(constant) }
}

fn draw() -> u32 {
    match loaded(&FIXED_DRAW) {
        // SAFETY: the helper has no preconditions.
        0 => unsafe { bpf_get_prandom_u32() },
        fixed => (fixed - 1) as u32,
    }
}

/// Answers queries for the names in the table; everything else goes on its way.
#[xdp(frags)]
pub fn peak(ctx: XdpContext) -> u32 {
    run(ctx)
}

#[inline(always)]
fn run(ctx: XdpContext) -> u32 {
    let ifindex = ctx.ingress_ifindex() as u32;
    let Some((row, interface)) = table::interface(ifindex, maps::interface) else {
        // The agent registers an interface before it attaches the program: this is not ours.
        return xdp_action::XDP_PASS;
    };
    let verdict = respond(&ctx, interface);
    maps::count(row, verdict);

    let one_in = loaded(&LOG_ONE_IN);
    // SAFETY: the helper has no preconditions.
    if one_in != 0 && unsafe { bpf_get_prandom_u32() }.is_multiple_of(one_in) {
        info!(&ctx, "interface {}: verdict {}", ifindex, verdict);
    }
    match Verdict::kind(verdict) {
        Kind::Answered => xdp_action::XDP_TX,
        Kind::Passed => xdp_action::XDP_PASS,
        Kind::Aborted => {
            error!(
                &ctx,
                "interface {}: dropped a half-written reply: verdict {}", ifindex, verdict
            );
            xdp_action::XDP_ABORTED
        }
    }
}

/// As [`peak_common::respond::respond`], and the verdict's index; what only a denial needs are functions that the
/// verifier checks by themselves.
#[inline(always)]
fn respond(ctx: &XdpContext, interface: &Interface) -> usize {
    let (Some(scratch), Some(control)) = (maps::scratch(), Maps.control()) else {
        return Verdict::Passed(PassReason::NotReady).index();
    };
    let decided = respond::parse(&XdpPacket::new(ctx), scratch, control, &Maps, interface)
        .and_then(|()| respond::look_up(scratch, control, &Maps, draw));
    let segment = match decided {
        Ok(Decision::Answer(segment)) => segment,
        Ok(Decision::Absent) => match deny() {
            GO_ON => None,
            verdict => return verdict as usize,
        },
        Err(reason) => return Verdict::Passed(reason).index(),
    };
    let mut packet = XdpPacket::new(ctx);
    let verdict = match respond::make_room(&mut packet, scratch, interface) {
        Ok(()) => respond::write(&mut packet, scratch, control, segment),
        Err(verdict) => verdict,
    };
    verdict.index()
}

/// What [`deny`] returns where an answer is to be written: no verdict's index.
const GO_ON: u32 = u32::MAX;

/// [`respond::deny`]: [`GO_ON`], or a verdict's index.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn deny() -> u32 {
    let Some(scratch) = maps::scratch() else {
        return Verdict::Passed(PassReason::NotReady).index() as u32;
    };
    match respond::deny(scratch, &Maps, |_, labels| {
        below_subtree(labels as u32) != 0
    }) {
        Ok(()) => GO_ON,
        Err(reason) => Verdict::Passed(reason).index() as u32,
    }
}

/// [`respond::below_subtree`]: 0 or 1.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn below_subtree(labels: u32) -> u32 {
    let Some(scratch) = maps::scratch() else {
        return 1;
    };
    u32::from(respond::below_subtree(
        scratch,
        &Maps,
        labels as usize & 0x7f,
    ))
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
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
