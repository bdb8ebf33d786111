//! The BPF programs of ifmon: three ways to hear of a change, one filter behind them.

#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![expect(
    internal_features,
    reason = "the only name that an atomic addition has on BPF"
)]

mod constants;
mod maps;
mod netlink;
mod read;
mod tracing;
mod who;

use aya_ebpf::{
    EbpfContext,
    macros::{fentry, kprobe, socket_filter},
    programs::{FEntryContext, ProbeContext, SkBuffContext},
};
use ifmon_ebpf::filter::{self, Notice};

use crate::{
    maps::Maps,
    who::{ANYTHING, NOTHING, PID_AND_CGROUP},
};

// int rtnetlink_event(struct notifier_block *this, unsigned long event, void *ptr)

#[fentry(function = "rtnetlink_event")]
fn ifmon_fentry(ctx: FEntryContext) -> i32 {
    observe::<_, ANYTHING, true>(&ctx, tracing::notice(ctx.arg(1), ctx.arg(2)));
    0
}

#[kprobe]
fn ifmon_kprobe(ctx: ProbeContext) -> u32 {
    if let (Some(code), Some(info)) = (ctx.arg(1), ctx.arg(2)) {
        observe::<_, ANYTHING, true>(&ctx, tracing::notice(code, info));
    }
    0
}

/// Runs for each message and each socket that is subscribed to it, in the task that makes the
/// change (`do_one_broadcast` in `net/netlink/af_netlink.c`). Returning 0 it lets nothing through:
/// whoever waits for the socket is not woken, and its queue stays empty.
#[socket_filter]
fn ifmon_socket(ctx: SkBuffContext) -> i64 {
    observe::<_, ANYTHING, false>(&ctx, netlink::notice(&ctx));
    0
}

/// The same for who has no CAP_PERFMON before 6.17.
#[socket_filter]
fn ifmon_socket_pid(ctx: SkBuffContext) -> i64 {
    observe::<_, PID_AND_CGROUP, false>(&ctx, netlink::notice(&ctx));
    0
}

/// The same where he may not even ask that, before 6.10.
#[socket_filter]
fn ifmon_socket_nobody(ctx: SkBuffContext) -> i64 {
    observe::<_, NOTHING, false>(&ctx, netlink::notice(&ctx));
    0
}

#[inline(always)]
fn observe<C: EbpfContext, const ASKS: u8, const IS_TRACING: bool>(
    ctx: &C,
    notice: Option<Notice>,
) {
    let Some(notice) = notice else {
        return;
    };
    let flags = filter::observe(&mut Maps::<ASKS, IS_TRACING>, &notice).unwrap_or_default();
    #[cfg(feature = "log")]
    aya_log_ebpf::debug!(
        ctx,
        "event {} of ifindex {} in netns {}: flags {}",
        notice.event as u32,
        notice.here.ifindex,
        notice.here.netns,
        flags
    );
    #[cfg(not(feature = "log"))]
    let (_, _) = (ctx, flags);
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // No code path reaches this: the verifier would refuse the loop.
    loop {}
}

// The helpers that the programs call are offered to GPL-compatible programs only
// (`kernel/trace/bpf_trace.c`).
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
