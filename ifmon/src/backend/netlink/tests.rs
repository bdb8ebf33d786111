//! What becomes of a subscription that fails.

use tokio::time::Instant;

use super::*;
use crate::tracker::Observed;

fn subscribed() -> (Netlink, InterfaceName) {
    let mut netlink = Netlink::new(true, None).expect("anybody may subscribe");
    let name = InterfaceName::new("no-such-link").expect("a valid name");
    let own = Netns::current().expect("there is always one");
    let holders = netlink
        .watch(&own, &[name], &mut Vec::new())
        .expect("anybody may ask");
    assert_eq!(holders, [None]);
    (netlink, name)
}

#[tokio::test(start_paused = true)]
async fn a_subscription_is_opened_again_and_every_name_looked_up() {
    let (mut netlink, name) = subscribed();
    let begin = Instant::now();
    netlink
        .reopen(0, io::ErrorKind::BrokenPipe.into())
        .await
        .expect("nothing is in the way");
    assert_eq!(begin.elapsed(), Duration::ZERO);
    assert_eq!(netlink.counters().lost, None);
    let mut signals = Vec::new();
    netlink.signals(&mut signals).await.expect("it works again");
    assert!(
        matches!(
            signals[..],
            [Signal::Resync { watch, observed: Observed { holder: None, .. }, lost: None }]
                if watch.name == name
        ),
        "{signals:?}"
    );
}

#[tokio::test]
async fn a_subscription_ends_with_the_last_watch_of_its_namespace() {
    let (mut netlink, first) = subscribed();
    let second = InterfaceName::new("nor-this-one").expect("a valid name");
    let own = Netns::current().expect("there is always one");
    netlink
        .watch(&own, &[second], &mut Vec::new())
        .expect("anybody may ask");
    let netns = own.id();
    netlink.unwatch(Watch { netns, name: first });
    assert_eq!(netlink.subscriptions.len(), 1);
    netlink.unwatch(Watch {
        netns,
        name: second,
    });
    assert!(netlink.subscriptions.is_empty());
}

/// The clock stands still but for the waits, so they can be told exactly.
#[tokio::test(start_paused = true)]
async fn one_that_cannot_be_opened_again_is_an_error_in_the_end() {
    let (mut netlink, _) = subscribed();
    netlink.subscriptions[0].kernel.netns = Netns::unreachable();
    let begin = Instant::now();
    let result = netlink.reopen(0, io::ErrorKind::BrokenPipe.into()).await;
    assert!(matches!(result, Err(Error::Ended(_))), "{result:?}");
    let doubled = [50, 100, 200, 400, 800, 1600, 3200].map(Duration::from_millis);
    let capped = [Duration::from_secs(5); 5];
    let waits = doubled.iter().chain(&capped);
    assert_eq!(waits.clone().count(), ATTEMPTS as usize);
    assert_eq!(begin.elapsed(), waits.sum());
}
