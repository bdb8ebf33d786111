//! `--metrics`: what happened so far, for Prometheus.

mod exposition;

use std::{
    collections::{BTreeMap, VecDeque},
    convert::Infallible,
    io::ErrorKind,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use ifmon::{BackendKind, Counters, Event, EventKind, Handle, InterfaceName, NetnsId};
use tokio::{
    net::{TcpListener, TcpStream},
    task::AbortHandle,
    time::timeout,
};

use self::exposition::{Exposition, Format, Kind};
use super::refused::refused;

/// Connections at a time. When there are more, the oldest is closed: those that say nothing must
/// not keep a scrape out.
const CONNECTIONS: usize = 64;
/// How long a connection may last: Prometheus itself gives up after ten seconds.
const LIMIT: Duration = Duration::from_secs(10);

/// An address that is listened at, where nobody answers yet.
#[derive(Debug)]
pub(crate) struct Listener(TcpListener);

/// What was counted so far.
#[derive(Debug)]
pub(crate) struct Metrics {
    told: Arc<Mutex<Totals>>,
}

#[derive(Clone, Debug, Default)]
struct Totals {
    watches: TotalsByWatch,
    /// How often the state of a watch was read again, patterns as well.
    resyncs: u64,
}

type TotalsByWatch = BTreeMap<(NetnsId, InterfaceName), WatchTotals>;

#[derive(Clone, Debug)]
struct WatchTotals {
    /// Its namespace, as a label: the name that it had when the watch began, which must not change
    /// when the namespace loses it.
    netns: String,
    up: bool,
    /// All there can be, each from 0 on: what appears as 1 has not increased, as far as Prometheus
    /// knows.
    events: BTreeMap<&'static str, u64>,
}

impl WatchTotals {
    fn new(netns: String) -> Self {
        Self {
            netns,
            up: false,
            events: EventKind::NAMES.iter().map(|&name| (name, 0)).collect(),
        }
    }
}

impl Listener {
    /// To be made before privileges are given up: a port below 1024 takes them.
    pub(crate) async fn open(address: SocketAddr) -> anyhow::Result<Self> {
        if !address.ip().is_loopback() {
            log::warn!(
                "metrics are served at {address}, to anybody who can reach it, in the clear"
            );
        }
        let listener = TcpListener::bind(address).await.map_err(|error| {
            let tried = format!("cannot serve metrics at {address}");
            if error.kind() == ErrorKind::AddrInUse {
                return anyhow::anyhow!(
                    "{tried}: {error}; stop who listens there, or name another port"
                );
            }
            let to_do = "a port below 1024 takes root or CAP_NET_BIND_SERVICE: name another one";
            refused(error, tried, to_do)
        })?;
        log::info!(
            "serving metrics at http://{}/metrics",
            listener.local_addr()?
        );
        Ok(Self(listener))
    }

    /// Begins to answer.
    pub(crate) fn serve(self, monitor: Handle, backend: BackendKind) -> Metrics {
        let Self(listener) = self;
        let told = Arc::default();
        let metrics = Metrics {
            told: Arc::clone(&told),
        };
        tokio::spawn(async move {
            let mut open: VecDeque<AbortHandle> = VecDeque::new();
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    // Out of descriptors, mostly: those that are open will end.
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    continue;
                };
                let (monitor, told) = (monitor.clone(), Arc::clone(&told));
                let connection = tokio::spawn(async move {
                    let answered = timeout(LIMIT, converse(stream, &monitor, &told, backend));
                    if let Ok(Err(error)) = answered.await {
                        log::debug!("a scrape failed: {error}");
                    }
                });
                open.retain(|connection| !connection.is_finished());
                if open.len() == CONNECTIONS
                    && let Some(oldest) = open.pop_front()
                {
                    oldest.abort();
                }
                open.push_back(connection.abort_handle());
            }
        });
        metrics
    }
}

impl Metrics {
    /// Counts an event.
    pub(crate) fn event(&self, event: &Event) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let Totals { watches, resyncs } = &mut *told;
        *resyncs += u64::from(matches!(event.kind, EventKind::Resynced { .. }));
        if event.pattern.is_some() {
            // Of a pattern there is no other metric.
            return;
        }
        let key = (event.netns, event.interface);
        if !watches.contains_key(&key) {
            let netns = label(event.netns, watches);
            watches.insert(key, WatchTotals::new(netns));
        }
        if let Some(watched) = watches.get_mut(&key) {
            watched.up = event.kind.holder().is_some();
            *watched.events.entry(event.kind.as_str()).or_default() += 1;
        }
    }
}

async fn converse(
    stream: TcpStream,
    monitor: &Handle,
    told: &Mutex<Totals>,
    backend: BackendKind,
) -> hyper::Result<()> {
    let answer = service_fn(async |request: Request<Incoming>| {
        // To HEAD, hyper answers without the body.
        let response = if ![Method::GET, Method::HEAD].contains(request.method()) {
            let mut response = plain(
                StatusCode::METHOD_NOT_ALLOWED,
                "GET and HEAD alone are answered\n",
            );
            let allowed = HeaderValue::from_static("GET, HEAD");
            response.headers_mut().insert(ALLOW, allowed);
            response
        } else if request.uri().path() != "/metrics" {
            plain(StatusCode::NOT_FOUND, "the metrics are at /metrics\n")
        } else {
            let told = told.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let snapshot = Snapshot {
                told,
                counters: monitor.counters().await.unwrap_or_default(),
                backend,
            };
            scrape(&snapshot, Format::wanted(accepted(&request)))
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

/// The lines of the request that say what its answer may be; none of them says that anything will
/// do.
fn accepted(request: &Request<Incoming>) -> impl Iterator<Item = &str> {
    let lines = request.headers().get_all(ACCEPT).into_iter();
    lines.filter_map(|line| line.to_str().ok())
}

fn scrape(snapshot: &Snapshot, format: Format) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(snapshot.expose(format)));
    let content_type = HeaderValue::from_static(format.content_type());
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

/// Everything at one moment.
#[derive(Debug)]
struct Snapshot {
    told: Totals,
    counters: Counters,
    backend: BackendKind,
}

impl Snapshot {
    fn expose(&self, format: Format) -> String {
        let Self {
            told: Totals { watches, resyncs },
            counters,
            backend,
        } = self;
        let mut exposition = Exposition::new(format);
        exposition.family("up", Kind::Gauge, "Does the interface exist");
        for (&(_, interface), watched) in watches {
            exposition.sample(&labels(interface, watched, None), watched.up.into());
        }
        exposition.family("events", Kind::Counter, "Events of a watched interface");
        for (&(_, interface), watched) in watches {
            for (event, &count) in &watched.events {
                exposition.sample(&labels(interface, watched, Some(event)), count);
            }
        }
        let Counters {
            seen,
            matched,
            ignored,
            lost,
            ..
        } = *counters;
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
                Some(*resyncs),
            ),
        ] {
            // What the backend cannot know is left out: a zero would be a claim.
            if let Some(count) = count {
                exposition.family(name, Kind::Counter, help);
                exposition.sample(&[], count);
            }
        }
        exposition.family("backend_info", Kind::Gauge, "How changes are learnt");
        exposition.sample(&[("backend", backend.as_str().to_owned())], 1);
        exposition.family("build_info", Kind::Gauge, "Which ifmon this is");
        exposition.sample(&[("version", env!("CARGO_PKG_VERSION").to_owned())], 1);
        exposition.finish()
    }
}

/// A name that is not UTF-8 reads as it does in JSON, and has its bytes beside it: labels are text,
/// and two names must not become one series.
fn labels(
    interface: InterfaceName,
    watched: &WatchTotals,
    event: Option<&str>,
) -> Vec<(&'static str, String)> {
    let mut labels = vec![
        ("interface", interface.to_string()),
        ("netns", watched.netns.clone()),
    ];
    let bytes = interface.as_bytes();
    if std::str::from_utf8(bytes).is_err() {
        let digits = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        labels.push(("interface_bytes", digits));
    }
    labels.extend(event.map(|event| ("event", event.to_owned())));
    labels
}

/// A label that means the same after a restart of the host, where the namespace has a name. Where
/// another one has that label, the number is left: no two series may be the same.
fn label(id: NetnsId, watches: &TotalsByWatch) -> String {
    let is_taken = |label: &String| {
        let mut others = watches.iter().filter(|((other, _), _)| *other != id);
        others.any(|(_, watched)| watched.netns == *label)
    };
    id.name()
        .filter(|name| !is_taken(name))
        .unwrap_or_else(|| id.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(names: &[&[u8]]) -> Snapshot {
        let watches = names.iter().map(|name| {
            let name = InterfaceName::new(name).expect("a good name");
            ((NetnsId(7), name), WatchTotals::new("web".to_owned()))
        });
        Snapshot {
            told: Totals {
                watches: watches.collect(),
                resyncs: 0,
            },
            counters: Counters::default(),
            backend: BackendKind::Netlink,
        }
    }

    #[track_caller]
    fn assert_has(text: &str, line: &str) {
        assert!(
            text.lines().any(|other| other == line),
            "{line} is not in\n{text}"
        );
    }

    #[test]
    fn what_is_unknown_is_left_out() {
        let mut snapshot = snapshot(&[b"wg0"]);
        snapshot.told.resyncs = 2;
        for watched in snapshot.told.watches.values_mut() {
            watched.up = true;
        }
        for format in [Format::Text, Format::OpenMetrics] {
            let text = snapshot.expose(format);
            assert_has(&text, r#"ifmon_up{interface="wg0",netns="web"} 1"#);
            assert_has(&text, "ifmon_resyncs_total 2");
            assert_has(&text, r#"ifmon_backend_info{backend="netlink"} 1"#);
            assert!(!text.contains("changes_seen"), "{text}");
        }
    }

    #[test]
    fn every_series_is_there_before_its_first_event() {
        let text = snapshot(&[b"wg0"]).expose(Format::Text);
        for event in EventKind::NAMES {
            let series =
                format!(r#"ifmon_events_total{{interface="wg0",netns="web",event="{event}"}} 0"#);
            assert_has(&text, &series);
        }
    }

    #[test]
    fn names_that_are_not_text_are_kept_apart() {
        let snapshot = snapshot(&[b"wg\xfe", b"wg\xff", "wg\u{fffd}".as_bytes()]);
        let text = snapshot.expose(Format::Text);
        let mut series: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        let all = series.len();
        series.sort_unstable();
        series.dedup();
        assert_eq!(series.len(), all, "{text}");
        assert_has(
            &text,
            "ifmon_up{interface=\"wg\u{fffd}\",netns=\"web\",interface_bytes=\"7767ff\"} 0",
        );
    }
}
