//! The program up to a stage: what the next one costs is what the next of these costs more.

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
use peak_common::{
    abi::{Control, Interface},
    bench::STOPPED,
    respond::{self, Decision, Scratch},
    table::{self, Tables},
    verdict::{PassReason, Verdict},
};

use super::restore;
use crate::{
    draw,
    maps::{self, Maps},
    xdp_packet::XdpPacket,
};

/// What precedes and follows every decision: the maps that all packets need, and a counter.
#[xdp(frags)]
pub fn stage_enter(ctx: XdpContext) -> u32 {
    staged(&ctx, |_, _, _, _| Ok(()))
}

/// With the packet read.
#[xdp(frags)]
pub fn stage_parse(ctx: XdpContext) -> u32 {
    staged(&ctx, parse)
}

/// With the name looked up as well.
#[xdp(frags)]
pub fn stage_look_up(ctx: XdpContext) -> u32 {
    staged(&ctx, |packet, scratch, control, interface| {
        parse(packet, scratch, control, interface)?;
        look_up(scratch, control)
    })
}

/// With a frame of the answer's length as well.
#[xdp(frags)]
pub fn stage_make_room(ctx: XdpContext) -> u32 {
    staged(&ctx, |packet, scratch, control, interface| {
        parse(packet, scratch, control, interface)?;
        look_up(scratch, control)?;
        respond::make_room(packet, scratch, interface).map_err(|_| PassReason::NoRoom)
    })
}

/// As [`crate::peak`] on a restored frame, but for the stages.
#[inline(always)]
fn staged(
    ctx: &XdpContext,
    stages: impl FnOnce(
        &mut XdpPacket<'_>,
        &mut Scratch,
        &Control,
        &Interface,
    ) -> Result<(), PassReason>,
) -> u32 {
    if restore(ctx).is_none() {
        return xdp_action::XDP_ABORTED;
    }
    let ifindex = ctx.ingress_ifindex() as u32;
    let (Some((row, interface)), Some(scratch), Some(control)) = (
        table::interface(ifindex, maps::interface),
        maps::scratch(),
        Maps.control(),
    ) else {
        return xdp_action::XDP_ABORTED;
    };
    let outcome = stages(&mut XdpPacket::new(ctx), scratch, control, interface);
    let reason = outcome.err().unwrap_or(STOPPED);
    maps::count(row, Verdict::Passed(reason).index());
    xdp_action::XDP_PASS
}

#[inline(always)]
fn parse(
    packet: &mut XdpPacket<'_>,
    scratch: &mut Scratch,
    control: &Control,
    interface: &Interface,
) -> Result<(), PassReason> {
    respond::parse(packet, scratch, control, &Maps, interface)
}

#[inline(always)]
fn look_up(scratch: &mut Scratch, control: &Control) -> Result<(), PassReason> {
    match respond::look_up(scratch, control, &Maps, draw)? {
        Decision::Answer(_) => Ok(()),
        Decision::Absent => Err(PassReason::ForeignName),
    }
}
