//! `--metrics`: what happened so far, for Prometheus.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::CONTENT_TYPE,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use ifmon::{BackendKind, Counters, Event, EventKind, Handle, InterfaceName, NetnsId};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _, text::encode},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};

/// Scrapes at a time; more of them wait.
const CONNECTIONS: usize = 8;
/// How long a connection may last: Prometheus itself gives up after ten seconds.
const LIMIT: Duration = Duration::from_secs(10);

/// An address that is listened at, where nobody answers yet.
#[derive(Debug)]
pub(crate) struct Listener(TcpListener);

/// What was counted so far.
#[derive(Debug)]
pub(crate) struct Metrics {
    watches: Arc<Mutex<Watches>>,
}

type Watches = BTreeMap<(NetnsId, InterfaceName), Watched>;

#[derive(Clone, Debug, Default)]
struct Watched {
    /// Name of the namespace when the watch began: it must not change when the namespace loses it.
    netns: String,
    up: bool,
    events: BTreeMap<&'static str, u64>,
}

impl Listener {
    /// To be made before privileges are given up: a port below 1024 takes them.
    pub(crate) async fn open(address: SocketAddr) -> anyhow::Result<Self> {
        if !address.ip().is_loopback() {
            log::warn!(
                "metrics are served at {address}, to anybody who can reach it, in the clear"
            );
        }
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot serve metrics at {address}"))?;
        log::info!(
            "serving metrics at http://{}/metrics",
            listener.local_addr()?
        );
        Ok(Self(listener))
    }

    /// Begins to answer.
    pub(crate) fn serve(self, monitor: Handle, backend: BackendKind) -> Metrics {
        let Self(listener) = self;
        let watches = Arc::default();
        let metrics = Metrics {
            watches: Arc::clone(&watches),
        };
        let free = Arc::new(Semaphore::new(CONNECTIONS));
        tokio::spawn(async move {
            loop {
                let Ok(permit) = Arc::clone(&free).acquire_owned().await else {
                    return;
                };
                let Ok((stream, _)) = listener.accept().await else {
                    // Out of descriptors, mostly: those that are open will end.
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    continue;
                };
                let (monitor, watches) = (monitor.clone(), Arc::clone(&watches));
                tokio::spawn(async move {
                    let answered = timeout(LIMIT, converse(stream, &monitor, &watches, backend));
                    if let Ok(Err(error)) = answered.await {
                        log::debug!("a scrape failed: {error}");
                    }
                    drop(permit);
                });
            }
        });
        metrics
    }
}

impl Metrics {
    /// Counts an event.
    pub(crate) fn event(&self, event: &Event) {
        let mut watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
        let watched = watches
            .entry((event.netns, event.interface))
            .or_insert_with(|| Watched {
                netns: label(event.netns),
                ..Watched::default()
            });
        watched.up = is_up(&event.kind);
        *watched.events.entry(event.kind.as_str()).or_default() += 1;
    }
}

async fn converse(
    stream: TcpStream,
    monitor: &Handle,
    watches: &Mutex<Watches>,
    backend: BackendKind,
) -> hyper::Result<()> {
    let answer = service_fn(async |request: Request<Incoming>| {
        let response = if request.method() != Method::GET {
            plain(StatusCode::METHOD_NOT_ALLOWED, "GET alone is answered\n")
        } else if request.uri().path() != "/metrics" {
            plain(StatusCode::NOT_FOUND, "the metrics are at /metrics\n")
        } else {
            let watches = watches
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone();
            scrape(Snapshot {
                watches,
                counters: monitor.counters().await.unwrap_or_default(),
                backend,
            })
        };
        Ok::<_, Infallible>(response)
    });
    http1::Builder::new()
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), answer)
        .await
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response
}

fn scrape(snapshot: Snapshot) -> Response<Full<Bytes>> {
    let mut registry = Registry::with_prefix("ifmon");
    registry.register_collector(Box::new(snapshot));
    let mut text = String::new();
    if encode(&mut text, &registry).is_err() {
        return plain(StatusCode::INTERNAL_SERVER_ERROR, "");
    }
    let mut response = Response::new(Full::from(text));
    response.headers_mut().insert(
        CONTENT_TYPE,
        hyper::header::HeaderValue::from_static(
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        ),
    );
    response
}

/// Everything at one moment.
#[derive(Debug)]
struct Snapshot {
    watches: Watches,
    counters: Counters,
    backend: BackendKind,
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut metric =
            encoder.encode_descriptor("up", "Does the interface exist", None, MetricType::Gauge)?;
        for ((_, interface), watched) in &self.watches {
            let interface = interface.to_string();
            let labels = [
                ("interface", interface.as_str()),
                ("netns", watched.netns.as_str()),
            ];
            ConstGauge::new(u32::from(watched.up)).encode(metric.encode_family(&labels)?)?;
        }
        let mut metric = encoder.encode_descriptor(
            "events",
            "Events of a watched interface",
            None,
            MetricType::Counter,
        )?;
        for ((_, interface), watched) in &self.watches {
            let interface = interface.to_string();
            for (&event, &count) in &watched.events {
                let labels = [
                    ("interface", interface.as_str()),
                    ("netns", watched.netns.as_str()),
                    ("event", event),
                ];
                ConstCounter::new(count).encode(metric.encode_family(&labels)?)?;
            }
        }
        let resyncs = self
            .watches
            .values()
            .filter_map(|watched| watched.events.get("resynced"))
            .sum();
        let Counters {
            seen,
            matched,
            ignored,
            lost,
            ..
        } = self.counters;
        for (name, help, count) in [
            (
                "changes_seen",
                "Changes of any interface that reached the filter",
                seen,
            ),
            ("changes_matched", "Changes that concerned a watch", matched),
            (
                "changes_ignored",
                "Changes that concerned no watch",
                ignored,
            ),
            (
                "changes_lost",
                "Changes that concerned a watch and were lost on the way",
                lost,
            ),
            (
                "resyncs",
                "Watches whose state was read again after a loss",
                Some(resyncs),
            ),
        ] {
            // What the backend cannot know is left out: a zero would be a claim.
            if let Some(count) = count {
                let counter = ConstCounter::new(count);
                let metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
                counter.encode(metric)?;
            }
        }
        let mut metric = encoder.encode_descriptor(
            "backend_info",
            "How changes are learnt",
            None,
            MetricType::Gauge,
        )?;
        let labels = [("backend", self.backend.as_str())];
        ConstGauge::new(1_u32).encode(metric.encode_family(&labels)?)
    }
}

/// Does the name belong to a device after this event?
fn is_up(kind: &EventKind) -> bool {
    match kind {
        EventKind::Deleted { .. } | EventKind::Renamed { .. } | EventKind::Moved { .. } => false,
        kind => kind.ifindex().is_some(),
    }
}

/// A label that means the same after a restart of the host, where the namespace has a name.
fn label(id: NetnsId) -> String {
    id.name().unwrap_or_else(|| id.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_unknown_is_left_out() {
        let wg0 = InterfaceName::new("wg0").expect("a good name");
        let watched = Watched {
            netns: "web".to_owned(),
            up: true,
            events: BTreeMap::from([("watching", 1), ("resynced", 2)]),
        };
        let snapshot = Snapshot {
            watches: BTreeMap::from([((NetnsId(7), wg0), watched)]),
            counters: Counters::default(),
            backend: BackendKind::Netlink,
        };
        let mut registry = Registry::with_prefix("ifmon");
        registry.register_collector(Box::new(snapshot));
        let mut text = String::new();
        encode(&mut text, &registry).expect("a string can be written");
        for line in [
            r#"ifmon_up{interface="wg0",netns="web"} 1"#,
            r#"ifmon_events_total{interface="wg0",netns="web",event="watching"} 1"#,
            "ifmon_resyncs_total 2",
            r#"ifmon_backend_info{backend="netlink"} 1"#,
        ] {
            assert!(
                text.lines().any(|other| other == line),
                "{line} is not in\n{text}"
            );
        }
        assert!(!text.contains("changes_seen"), "{text}");
    }
}
