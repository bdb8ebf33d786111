//! A change of an interface that nobody watches costs no allocation, however many there are.
//!
//! Needs the right to make a network namespace, and `ip`; says so where it has not.

mod common;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

use ifmon::{BackendChoice, BackendKind, EventKind, Monitor};

/// Pairs of links that are made and deleted beside the watched one: each change is a message at
/// least.
const PAIRS: u32 = 300;

/// Counts the allocations of each thread by itself.
struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: the system's allocator, with a count beside that does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: as for the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as for the caller.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of the monitor's thread from one event of the watch to the next, with so many
/// changes of others between.
async fn between_events(monitor: &mut Monitor, namespace: &common::Namespace, others: u32) -> u64 {
    let mut batch = String::new();
    for _ in 0..others {
        batch.push_str("link add other type veth peer name peer\nlink del other\n");
    }
    batch.push_str("link add wg0 type veth peer name wg1\nlink del wg0\n");
    let before = COUNT.get();
    let changes = namespace.ip(batch);
    for wanted in ["appeared or recreated", "deleted"] {
        let event = monitor
            .next()
            .await
            .expect("the watch goes on")
            .expect("no error");
        let right = match event.kind {
            EventKind::Appeared { .. } | EventKind::Recreated { .. } => wanted != "deleted",
            EventKind::Deleted { .. } => wanted == "deleted",
            _ => false,
        };
        assert!(right, "{wanted} wanted, got {event:?}");
    }
    let count = COUNT.get() - before;
    changes.join().expect("ip makes its changes");
    count
}

#[test]
fn what_nobody_watches_costs_no_allocation() {
    let Some(namespace) = common::Namespace::enter_new() else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    for backend in [BackendKind::Netlink, BackendKind::NetlinkUnfiltered] {
        runtime.block_on(async {
            let mut monitor = Monitor::builder()
                .backend(BackendChoice::Only(backend))
                .watch("wg0")
                .start()
                .await
                .expect("netlink works for everybody");
            monitor.next().await.expect("watching").expect("no error");
            // The first events pay for what is made once.
            between_events(&mut monitor, &namespace, 0).await;
            let few = between_events(&mut monitor, &namespace, 0).await;
            let many = between_events(&mut monitor, &namespace, PAIRS).await;
            let others = u64::from(2 * PAIRS);
            println!(
                "{backend}: {few} allocations for two events, {many} with {others} other changes"
            );
            // Far from one for each. Whether the two events are read at one stretch or at two makes
            // some difference.
            assert!(
                many < few + others / 10,
                "{backend}: {many} allocations instead of {few}"
            );
            if backend == BackendKind::NetlinkUnfiltered {
                let seen = monitor.handle().counters().await.expect("counters").seen;
                assert!(
                    seen >= Some(others),
                    "the others were not heard of: {seen:?}"
                );
            }
        });
    }
}
