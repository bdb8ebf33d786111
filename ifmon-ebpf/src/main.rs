//! The BPF programs of ifmon: two ways onto the same function, one piece of logic behind both.

#![no_std]
#![no_main]

mod filter;
mod maps;
mod netdev;
mod send;

use aya_ebpf::{
    EbpfContext,
    macros::{fentry, kprobe},
    programs::{FEntryContext, ProbeContext},
};

use crate::netdev::Event;

// int rtnetlink_event(struct notifier_block *this, unsigned long event, void *ptr)

#[fentry(function = "rtnetlink_event")]
fn ifmon_fentry(ctx: FEntryContext) -> i32 {
    handle(&ctx, ctx.arg(1), ctx.arg(2));
    0
}

#[kprobe]
fn ifmon_kprobe(ctx: ProbeContext) -> u32 {
    if let (Some(event), Some(info)) = (ctx.arg(1), ctx.arg(2)) {
        handle(&ctx, event, info);
    }
    0
}

/// The notifier chain carries some forty kinds of event; the first comparison drops all but three.
#[inline(always)]
fn handle<C: EbpfContext>(ctx: &C, event: u64, info: u64) {
    let Some(event) = Event::of(event) else {
        return;
    };
    let Some(seen) = filter::observe(event, info) else {
        return;
    };
    #[cfg(feature = "log")]
    aya_log_ebpf::debug!(
        ctx,
        "event {} of ifindex {} in netns {}: flags {}",
        event as u32,
        seen.ifindex,
        seen.netns,
        seen.flags
    );
    #[cfg(not(feature = "log"))]
    let (_, _, _, _) = (ctx, seen.netns, seen.ifindex, seen.flags);
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // No code path reaches this: the verifier would refuse the loop.
    loop {}
}

// The helpers that the programs call are offered to GPL-compatible programs only (`kernel/trace/bpf_trace.c`).
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
