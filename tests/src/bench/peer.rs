//! The designs that ifmon is compared with, as small as they can be written.

use std::{collections::HashMap, io::Write as _, time::Duration};

use anyhow::Result;
use futures_util::{StreamExt as _, TryStreamExt as _};
use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkMessage},
};
use rtnetlink::MulticastGroup;

/// How often the polling design looks.
const PERIOD: Duration = Duration::from_secs(2);

/// Reads the table of all links every two seconds, and compares.
pub(super) fn poll(interface: &str) -> Result<()> {
    runtime()?.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        let mut known = None;
        loop {
            let mut table = HashMap::new();
            let mut links = handle.link().get().execute();
            while let Some(link) = links.try_next().await? {
                if let Some(name) = name(&link) {
                    table.insert(name.to_owned(), link.header.index);
                }
            }
            let found = Some(table.get(interface).copied());
            if found != known {
                known = found;
                say(interface)?;
            }
            tokio::time::sleep(PERIOD).await;
        }
    })
}

/// Subscribes to all link messages, and decodes each to see whether it is about the interface.
pub(super) fn subscribe(interface: &str) -> Result<()> {
    runtime()?.block_on(async {
        let (connection, handle, mut messages) =
            rtnetlink::new_multicast_connection(&[MulticastGroup::Link])?;
        tokio::spawn(connection);
        let request = handle.link().get().match_name(interface.to_owned());
        // Fails where there is no such link yet.
        let link = request.execute().try_next().await.unwrap_or_default();
        let index = link.map(|link| link.header.index);
        say(interface)?;
        while let Some((message, _)) = messages.next().await {
            if let NetlinkPayload::InnerMessage(
                RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link),
            ) = message.payload
                && (name(&link) == Some(interface) || Some(link.header.index) == index)
            {
                say(interface)?;
            }
        }
        Ok(())
    })
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?)
}

fn name(link: &LinkMessage) -> Option<&str> {
    link.attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.as_str()),
            _ => None,
        })
}

/// A line means: ready, or something happened.
pub(super) fn say(interface: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{interface}")?;
    stdout.flush()?;
    Ok(())
}
