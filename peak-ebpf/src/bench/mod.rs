//! What benchmarks measure by: programs for `BPF_PROG_TEST_RUN` that no agent ever loads.
//!
//! Repeated runs get the frame that the run before has left, which is a reply. So each begins by making it a query again,
//! and one with another name than before.

mod floor;
mod stage;

use aya_ebpf::{
    bindings::xdp_action,
    btf_maps::{Array, HashMap},
    helpers::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_store_bytes},
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use peak_common::{
    bench::{FRAME, KEY, NAME, NAME_AT, Template},
    packet::Packet,
};

use crate::xdp_packet::XdpPacket;

#[btf_map]
static TEMPLATE: Array<Template, 1> = Array::new();

/// [`crate::peak`] on a restored frame.
#[xdp(frags)]
pub fn restored(ctx: XdpContext) -> u32 {
    match restore(&ctx) {
        Some(()) => crate::run(ctx),
        None => xdp_action::XDP_ABORTED,
    }
}

/// What [`restored`] does before the program begins.
#[xdp(frags)]
pub fn restore_only(ctx: XdpContext) -> u32 {
    match restore(&ctx) {
        Some(()) => xdp_action::XDP_PASS,
        None => xdp_action::XDP_ABORTED,
    }
}

/// Makes the frame the template again, with digits drawn anew. They are made here, because a list of them would take the cache
/// from the table.
#[inline(always)]
fn restore(ctx: &XdpContext) -> Option<()> {
    // SAFETY: benchmarks run one program at a time.
    let template = unsafe { &mut *TEMPLATE.get_ptr_mut(0)? };
    let length = template.length & (FRAME as u32 - 1);
    if length == 0 {
        return None;
    }
    let growth = length as i32 - XdpPacket::new(ctx).len() as i32;
    // SAFETY: the context is the kernel's; the frame is longer than the template or made so by these calls, the kernel
    // checks it, and no pointer into it is kept.
    unsafe {
        let resized = if template.by_head != 0 {
            bpf_xdp_adjust_head(ctx.ctx, -growth)
        } else {
            bpf_xdp_adjust_tail(ctx.ctx, growth)
        };
        if resized != 0
            || bpf_xdp_store_bytes(ctx.ctx, 0, template.frame.as_mut_ptr().cast(), length) != 0
        {
            return None;
        }
    }
    let varied = template.varied as usize & (FRAME - 1);
    *XdpPacket::new(ctx).window_mut::<8>(varied)? = template.draw().to_le_bytes();
    Some(())
}

#[btf_map]
static YARDSTICK: HashMap<[u8; KEY], u64, 1> = HashMap::new();

/// The measure of other machines: copies 64 bytes of the frame, and looks them up in the kernel's own hash map.
#[xdp(frags)]
pub fn yardstick(ctx: XdpContext) -> u32 {
    let Some(key) = XdpPacket::new(&ctx).window::<KEY>(0).copied() else {
        return xdp_action::XDP_ABORTED;
    };
    // SAFETY: nobody changes the map meanwhile.
    match unsafe { YARDSTICK.get(&key) } {
        Some(_) => xdp_action::XDP_PASS,
        None => xdp_action::XDP_ABORTED,
    }
}

#[btf_map]
static NAMES: HashMap<[u8; NAME], u64, 1> = HashMap::new();

/// What there would be instead of our table: looks the name up, as it stands in the frame, in the kernel's hash map.
#[xdp(frags)]
pub fn hash_map(ctx: XdpContext) -> u32 {
    match restore(&ctx).and_then(|()| name(&ctx)) {
        // SAFETY: nobody changes the map meanwhile.
        Some(name) if unsafe { NAMES.get(&name) }.is_some() => xdp_action::XDP_PASS,
        _ => xdp_action::XDP_ABORTED,
    }
}

#[inline(always)]
fn name(ctx: &XdpContext) -> Option<[u8; NAME]> {
    XdpPacket::new(ctx).window::<NAME>(NAME_AT).copied()
}
