//! What a caller may do to a running monitor, and what must not get lost meanwhile.
//!
//! Needs root and `ip`; says so where it has not, and where a backend does not work.

mod common;

use std::{
    fs,
    pin::pin,
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Context, Waker},
};

use ifmon::{
    BackendChoice, BackendKind, Check, Error, Event, EventKind, Handle, Identity, Inspector,
    InterfaceName, Monitor, Netns, Target, Unavailable,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use common::Namespace;

/// The limit on descriptors is the whole process's, so the tests take turns.
static TURN: Mutex<()> = Mutex::new(());

/// Runs a test with each backend that can be had without tracing, in a namespace of its own.
fn with_each_backend(test: impl AsyncFn(&Namespace, BackendKind)) {
    let _turn: MutexGuard<'_, ()> = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let check = runtime.block_on(async { Check::run() });
    for kind in [
        BackendKind::NetlinkEbpf,
        BackendKind::Netlink,
        BackendKind::NetlinkUnfiltered,
    ] {
        let Some(namespace) = Namespace::enter_new() else {
            return;
        };
        match check.backends.iter().find(|(found, _)| *found == kind) {
            Some((_, Ok(()))) => runtime.block_on(test(&namespace, kind)),
            why => eprintln!("left out: {kind} does not work here ({why:?})"),
        }
    }
}

async fn start(kind: BackendKind, targets: &[&str]) -> (Monitor, Handle) {
    let builder = Monitor::builder().backend(BackendChoice::Only(kind));
    let monitor = builder.watch_all(targets.iter().copied()).start().await;
    let monitor = monitor.expect("the backend works");
    let handle = monitor.handle();
    (monitor, handle)
}

fn name(name: &str) -> InterfaceName {
    InterfaceName::new(name).expect("a good name")
}

fn own() -> Netns {
    Netns::current().expect("/proc is mounted")
}

/// Makes changes, and does not let the monitor run meanwhile.
fn ip(namespace: &Namespace, batch: &str) {
    namespace.ip(batch).join().expect("ip makes its changes");
}

/// All that happened so far.
async fn told(monitor: &mut Monitor) -> Vec<Event> {
    let handle = monitor.handle();
    let mut sync = pin!(handle.sync());
    let mut events = Vec::new();
    loop {
        tokio::select! {
            biased;
            event = monitor.next() => {
                events.push(event.expect("the watch goes on").expect("no error"));
            }
            result = &mut sync => {
                result.expect("the monitor runs");
                return events;
            }
        }
    }
}

/// The same in words.
async fn words(monitor: &mut Monitor) -> Vec<String> {
    told(monitor)
        .await
        .iter()
        .map(|event| format!("{} {}", event.interface, event.kind.as_str()))
        .collect()
}

/// What of the process a watch could leave behind: its descriptors.
fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd")
        .expect("/proc is mounted")
        .count()
}

#[test]
fn a_watch_that_begins_again_is_told_what_happens_from_then_on() {
    with_each_backend(async |namespace, kind| {
        ip(namespace, "link add wg0 type veth peer name p0\n");
        ip(namespace, "link add n0 type veth peer name p1\n");
        let (mut monitor, handle) = start(kind, &["wg0", "n0"]).await;
        assert_eq!(words(&mut monitor).await, ["wg0 watching", "n0 watching"]);

        // All of this is still queued when the watch ends and begins again.
        ip(
            namespace,
            &"link set n0 name n1\nlink set n1 name n0\n".repeat(60),
        );
        ip(namespace, "link set wg0 name x0\nlink set x0 name wg0\n");
        let wg0 = || Ok::<_, Error>(Target::new("wg0")?.in_netns(own()));
        let ended = handle.unwatch(own().id(), name("wg0")).await;
        assert!(ended.expect("the monitor runs"));
        handle
            .watch(wg0().expect("a good name"))
            .await
            .expect("a watch");
        ip(
            namespace,
            "link del wg0\nlink add wg0 type veth peer name p0\nlink del wg0\n",
        );

        let mut events = words(&mut monitor).await;
        let others = events.extract_if(.., |event| !event.starts_with("wg0"));
        assert_eq!(others.count(), 120, "{kind}");
        assert_eq!(
            events,
            [
                "wg0 watching",
                "wg0 deleted",
                "wg0 recreated",
                "wg0 deleted"
            ],
            "{kind}"
        );
        let lost = handle.counters().await.expect("the monitor runs").lost;
        assert_eq!(lost, Some(0), "{kind}");
    });
}

#[test]
fn a_watch_that_ended_is_told_nothing_more() {
    with_each_backend(async |namespace, kind| {
        ip(namespace, "link add wg0 type veth peer name wg1\n");
        let (mut monitor, handle) = start(kind, &["wg0", "wg1"]).await;
        told(&mut monitor).await;
        // Queued, and of a watch that ends before anybody reads of it.
        ip(namespace, "link set wg0 name x0\n");
        let netns = own().id();
        assert!(handle.unwatch(netns, name("wg0")).await.expect("runs"));
        ip(namespace, "link set x0 name wg0\nlink del wg0\n");
        assert_eq!(words(&mut monitor).await, ["wg1 deleted"], "{kind}");
        assert!(!handle.unwatch(netns, name("wg0")).await.expect("runs"));
    });
}

/// A limit on descriptors, until it is dropped.
struct Limit(Rlimit);

impl Limit {
    /// So many can be opened, and no more.
    fn free(count: usize) -> Self {
        let listed = fs::read_dir("/proc/self/fd").expect("/proc is mounted");
        let mut used: Vec<String> = listed
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        // The descriptor of the list itself is closed by now.
        used.retain(|number| fs::metadata(format!("/proc/self/fd/{number}")).is_ok());
        let is_free = |number: &u64| !used.contains(&number.to_string());
        let usual = getrlimit(Resource::Nofile);
        let limited = Rlimit {
            current: (0..).filter(is_free).nth(count),
            ..usual
        };
        setrlimit(Resource::Nofile, limited).expect("a lower limit is for everybody");
        Self(usual)
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        setrlimit(Resource::Nofile, self.0).expect("the hard limit is as it was");
    }
}

#[test]
fn a_watch_that_fails_swallows_nothing_and_leaves_nothing() {
    with_each_backend(async |namespace, kind| {
        let Some(other) = Namespace::enter_new() else {
            return;
        };
        let elsewhere = own();
        namespace.enter();
        ip(namespace, "link add wg0 type veth peer name p0\n");
        let (mut monitor, handle) = start(kind, &["wg0"]).await;
        told(&mut monitor).await;
        let names = ["new0", "new1"];
        let target =
            |name: &&str| Target::new(name).map(|target| target.in_netns(elsewhere.clone()));
        let targets: Vec<Target> = names
            .iter()
            .map(|name| target(name).expect("good"))
            .collect();

        let before = descriptors();
        let mut failures = 0;
        loop {
            ip(namespace, "link del wg0\n");
            let limit = Limit::free(failures);
            let result = handle.watch_all(targets.clone()).await;
            drop(limit);
            let mut events = words(&mut monitor).await;
            events.retain(|event| event != "new0 watching" && event != "new1 watching");
            assert_eq!(events, ["wg0 deleted"], "{kind}, {failures}");
            ip(namespace, "link add wg0 type veth peer name p0\n");
            assert_eq!(
                words(&mut monitor).await,
                ["wg0 recreated"],
                "{kind}, {failures}"
            );
            let Err(error) = result else {
                break;
            };
            assert!(
                matches!(
                    error,
                    Error::Subscribe(_) | Error::Recheck(_) | Error::Filter(_)
                ),
                "{kind}, {failures}: {error:?}"
            );
            assert_eq!(
                descriptors(),
                before,
                "{kind}, {failures}: something stayed open"
            );
            for name in names.map(name) {
                let ended = handle.unwatch(elsewhere.id(), name).await.expect("runs");
                assert!(!ended, "{kind}, {failures}: {name} is watched");
            }
            failures += 1;
        }
        assert!(
            failures > 1,
            "{kind}: a namespace takes more than one descriptor"
        );
        ip(&other, "link add new0 type veth peer name p0\n");
        assert_eq!(words(&mut monitor).await, ["new0 appeared"], "{kind}");
    });
}

#[test]
fn thousands_begin_at_once() {
    const NAMES: usize = 5000;
    with_each_backend(async |namespace, kind| {
        let builder = Monitor::builder().backend(BackendChoice::Only(kind));
        let monitor = builder.watch("wg0").capacity(NAMES + 1).start().await;
        let mut monitor = monitor.expect("the backend works");
        let names: Vec<String> = (0..NAMES).map(|number| format!("n{number}")).collect();
        let handle = monitor.handle();
        handle.watch_all(&names).await.expect("there is room");
        let events = words(&mut monitor).await;
        let begun = names.iter().map(|name| format!("{name} watching"));
        assert!(
            events.iter().skip(1).cloned().eq(begun),
            "{kind}: {} events",
            events.len()
        );
        ip(namespace, "link add n4711 type veth peer name x0\n");
        assert_eq!(words(&mut monitor).await, ["n4711 appeared"], "{kind}");
        // One after the other, each with a filter of its own: some are enough.
        for name in &names[4700..4720] {
            let ended = handle.unwatch(own().id(), self::name(name)).await;
            assert!(ended.expect("the monitor runs"), "{kind}: {name}");
        }
        ip(namespace, "link del n4711\n");
        assert!(told(&mut monitor).await.is_empty(), "{kind}");
    });
}

#[test]
fn more_than_there_is_room_for_is_refused_whole() {
    with_each_backend(async |namespace, kind| {
        let (mut monitor, handle) = start(kind, &["wg0"]).await;
        told(&mut monitor).await;
        let names = (0..3000).map(|number| format!("n{number}"));
        let result = handle.watch_all(names).await;
        let begun = words(&mut monitor).await.len();
        if kind.is_ebpf() {
            assert!(matches!(result, Err(Error::Filter(_))), "{result:?}");
            assert_eq!(begun, 0);
            // Nothing of them takes the room of others.
            let fitting = (0..1000).map(|number| format!("m{number}"));
            handle.watch_all(fitting).await.expect("there is room");
            assert_eq!(words(&mut monitor).await.len(), 1000);
        } else {
            result.expect("there is always room");
            assert_eq!(begun, 3000);
        }
        ip(namespace, "link add wg0 type veth peer name n7\n");
        let events = words(&mut monitor).await;
        let seven = usize::from(!kind.is_ebpf());
        assert!(events.contains(&"wg0 appeared".to_owned()), "{events:?}");
        assert_eq!(events.len(), 1 + seven, "{events:?}");
    });
}

/// Polls a future a few times, lets the monitor run in between, and drops it.
async fn begin(future: impl Future, polls: u32) {
    let mut future = pin!(future);
    for _ in 0..polls {
        let mut context = Context::from_waker(Waker::noop());
        if future.as_mut().poll(&mut context).is_ready() {
            return;
        }
        tokio::task::yield_now().await;
    }
}

#[test]
fn a_future_that_is_dropped_half_way_changes_nothing_else() {
    with_each_backend(async |namespace, kind| {
        for polls in 0..6 {
            let (mut monitor, handle) = start(kind, &["wg0"]).await;
            told(&mut monitor).await;
            ip(namespace, "link add wg0 type veth peer name wg1\n");
            let netns = own().id();
            begin(handle.watch("wg1"), polls).await;
            begin(handle.sync(), polls).await;
            begin(handle.unwatch(netns, name("wg1")), polls).await;
            begin(handle.counters(), polls).await;
            begin(handle.watch("wg1"), polls).await;
            begin(monitor.next(), polls.min(1)).await;
            ip(namespace, "link del wg0\n");
            // Whatever was begun, this is how it ends.
            handle.watch("wg1").await.expect("a watch");
            ip(namespace, "link add wg0 type veth peer name wg1\n");
            let events = words(&mut monitor).await;
            let of = |name: &str| -> Vec<&str> {
                let events = events.iter().filter_map(|event| event.strip_prefix(name));
                events.map(str::trim_start).collect()
            };
            let wg0 = of("wg0");
            let whole = ["appeared", "deleted", "recreated"];
            // `next` may have had the first one handed to it.
            assert!(
                wg0 == whole || wg0 == whole[1..],
                "{kind}, {polls}: {events:?}"
            );
            let wg1 = of("wg1");
            assert!(
                matches!(wg1.as_slice(), [.., "appeared" | "recreated"]),
                "{kind}, {polls}: {events:?}"
            );
            let begun = wg1.iter().filter(|event| **event == "watching").count();
            assert_eq!(
                wg1.first(),
                Some(&"watching"),
                "{kind}, {polls}: {events:?}"
            );
            assert!((1..=2).contains(&begun), "{kind}, {polls}: {events:?}");
            ip(namespace, "link del wg0\n");
        }
    });
}

#[test]
fn an_expected_device_that_is_not_there_is_told() {
    with_each_backend(async |namespace, kind| {
        ip(namespace, "link add wg0 type veth peer name p0\n");
        let inspector = Inspector::new(&own());
        let here = inspector.expect("a namespace").identity(name("wg0"));
        let here = here.expect("an answer").expect("a device");
        let inode = here.inode.expect("root sees sysfs");
        let (mut monitor, handle) = start(kind, &["lo"]).await;
        told(&mut monitor).await;

        let ifindex = here.ifindex;
        let other = ifindex + 1000;
        let recreated = |old_ifindex| {
            Some(EventKind::Recreated {
                ifindex,
                old_ifindex,
            })
        };
        let gone = Some(EventKind::Deleted { ifindex: other });
        for (name, expected, then) in [
            ("wg0", Identity::of_ifindex(ifindex), None),
            ("wg0", here, None),
            ("wg0", Identity::of_ifindex(other), recreated(other)),
            // The index is the same, and the device is another one.
            (
                "wg0",
                here.with_inode(inode + 1_000_000),
                recreated(ifindex),
            ),
            ("wg7", Identity::of_ifindex(other), gone),
        ] {
            // It may be named without the device as well.
            let target = Target::new(name).expect("a good name");
            let targets = [target.clone(), target.expect(expected)];
            handle.watch_all(targets).await.expect("a watch");
            let events = told(&mut monitor).await;
            let (first, rest) = events.split_first().expect("the watch begins");
            assert_eq!(first.kind.as_str(), "watching", "{kind}");
            assert_eq!(rest.first().map(|event| event.kind.clone()), then, "{kind}");
            assert!(rest.iter().all(|event| event.recovered), "{kind}: {rest:?}");
            assert!(rest.len() < 2, "{kind}: {rest:?}");
            handle
                .unwatch(own().id(), self::name(name))
                .await
                .expect("runs");
        }
    });
}

/// Programs for names alone are loaded where no pattern is to be expected.
#[test]
fn a_pattern_needs_room_from_the_start_with_bpf_alone() {
    with_each_backend(async |namespace, kind| {
        let pattern = || Target::pattern("wg*").expect("a good pattern");
        let (mut monitor, handle) = start(kind, &["lo"]).await;
        told(&mut monitor).await;
        match handle.watch(pattern()).await {
            Ok(()) => assert!(!kind.is_ebpf(), "{kind}"),
            Err(Error::Filter(error)) => {
                assert!(kind.is_ebpf(), "{kind}");
                assert!(error.to_string().contains("pattern_capacity"), "{error}");
            }
            Err(error) => panic!("{kind}: {error:?}"),
        }

        let builder = Monitor::builder().backend(BackendChoice::Only(kind));
        let monitor = builder.watch("lo").pattern_capacity(1).start().await;
        let mut monitor = monitor.expect("the backend works");
        told(&mut monitor).await;
        let watched = monitor.handle().watch(pattern()).await;
        assert!(watched.is_ok(), "{kind}: {watched:?}");
        told(&mut monitor).await;
        ip(namespace, "link add wg7 type veth peer name p7\n");
        assert_eq!(words(&mut monitor).await, ["wg7 appeared"], "{kind}");
        ip(namespace, "link del wg7\n");
    });
}

/// Such a backend hears of one namespace at a time, and the watches that it has stay what they are.
#[test]
fn all_namespaces_are_not_for_backends_that_hear_of_one() {
    with_each_backend(async |namespace, kind| {
        let target = || Target::pattern("wg*").map(Target::in_all_netns);
        let target = || target().expect("a good pattern");
        let is_refused = |result: Result<(), Error>| match result {
            Err(Error::Unavailable {
                backend,
                reason: reason @ Unavailable::OneNamespace,
            }) => backend == kind && reason.to_string().contains("take fentry or kprobe"),
            _ => false,
        };
        let builder = Monitor::builder().backend(BackendChoice::Only(kind));
        let started = builder.watch_all([target()]).start().await;
        assert!(is_refused(started.map(drop)), "{kind}");

        let (mut monitor, handle) = start(kind, &["wg7"]).await;
        told(&mut monitor).await;
        assert!(is_refused(handle.watch(target()).await), "{kind}");
        ip(namespace, "link add wg7 type veth peer name p7\n");
        assert_eq!(words(&mut monitor).await, ["wg7 appeared"], "{kind}");
        ip(namespace, "link del wg7\n");
    });
}

/// And not when the first thing fails that is worth a second attempt.
#[test]
fn a_runtime_without_a_timer_is_found_at_the_start() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .expect("a runtime");
    let start = || runtime.block_on(Monitor::builder().watch("lo").start());
    let started = std::panic::catch_unwind(std::panic::AssertUnwindSafe(start));
    assert!(started.is_err());
}
