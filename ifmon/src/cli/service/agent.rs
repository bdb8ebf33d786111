//! The agent: one monitor, and what happens to it handed to all clients.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    ffi::OsString,
    io,
    path::PathBuf,
    pin::pin,
    rc::Rc,
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use ifmon::{BackendKind, Error, Handle, InterfaceName, Monitor, Netns, NetnsId, Origins, Target};
use serde_json::{Value, json};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{Notify, Semaphore},
    time::timeout,
};

use super::{
    call::{Fault, reply},
    connection::Connection,
    hub::{ClientId, ClientItem, Hub, LibraryRequest, Listed, Refusal, ServedNetns},
    limits,
    peer::{ClientPeer, Home},
    policy::Policy,
    socket::ListeningSocket,
};
use crate::cli::{
    Exit,
    args::Args,
    check, memory,
    notify::Notifier,
    output::{facts::EventFacts, json::timestamp},
    privileges,
    signals::Signals,
    watches::WatchKey,
};

/// Where `ip netns` keeps its names (`NETNS_RUN_DIR` of iproute2).
const NETNS_NAMES: &str = "/run/netns";

/// So many clients for which there is no room may have a descriptor at a time.
const REFUSALS: usize = 32;
/// When it is tried again to take a client for which there was no descriptor, and how long one for
/// which there is no room may take to ask.
const PATIENCE: Duration = Duration::from_secs(1);

/// What connections share. One thread, and nothing is borrowed over a wait.
#[derive(Debug)]
pub(super) struct AgentService {
    hub: RefCell<Hub>,
    news: RefCell<HashMap<ClientId, Rc<Notify>>>,
    /// The library may have something to do.
    requests: Notify,
    /// A client has gone.
    room: Notify,
    /// How many more may be told that they are not taken.
    refusals: Semaphore,
    pub(super) home: Home,
    backend: BackendKind,
    handle: Handle,
    /// The reply to `Check`.
    pub(super) check: Rc<[u8]>,
}

/// Serves until a signal asks for an end.
pub(crate) async fn serve(
    args: &Args,
    path: PathBuf,
    handed_over: Option<std::os::unix::net::UnixListener>,
) -> anyhow::Result<Exit> {
    let mut signals = Signals::new().context("cannot handle signals")?;
    let notifier = Notifier::new();
    let socket = ListeningSocket::open(&path, handed_over)?;
    let home = Home::new(socket.group, Policy::new(&args.policy))?;
    let mut check = ifmon::Check::run();
    // It would be this one.
    check
        .backends
        .retain(|&(kind, _)| kind != BackendKind::Agent);
    let check = reply(&check::json(&check), false);
    // A monitor watches something; every namespace has this one.
    let anchor = InterfaceName::new("lo").context("no name")?;
    let mut builder = Monitor::builder()
        .backend(args.backend.into())
        .without_agent()
        .capacity(limits::NAMES.all)
        .watch(Target::from(anchor).in_netns(home.netns.clone()));
    if let Some(bytes) = args.receive_buffer {
        builder = builder.receive_buffer(bytes);
    }
    let mut monitor = builder.start().await?;
    let backend = monitor.backend();
    privileges::keep_for_namespaces().context("cannot give up privileges")?;
    let listener = UnixListener::from_std(socket.listener.try_clone()?).context("cannot listen")?;
    let mut hub = Hub::default();
    let place = ServedNetns {
        netns: home.netns.clone(),
        name: netns_name(&home.netns),
    };
    hub.keep(place, anchor, SystemTime::now());
    let agent = Rc::new(AgentService {
        hub: RefCell::new(hub),
        news: RefCell::default(),
        requests: Notify::new(),
        room: Notify::new(),
        refusals: Semaphore::new(REFUSALS),
        home,
        backend,
        handle: monitor.handle(),
        check,
    });
    notifier.watch_over(monitor.handle());
    tokio::task::spawn_local(Rc::clone(&agent).work(monitor.handle()));
    let status = format!("serving by {backend}");
    log::info!("{status} on {}", socket.place);
    notifier.ready(&status);
    memory::give_back();
    let mut origins = Origins::new();
    // Not begun anew for each event: where there is no descriptor for a client, that is said once.
    let mut accepted = pin!(agent.accept(&listener));
    loop {
        tokio::select! {
            biased;
            () = signals.end() => {
                notifier.stopping();
                return Ok(Exit::Stopped);
            }
            event = monitor.next() => {
                let event = event.unwrap_or(Err(Error::Stopped))?;
                let facts = EventFacts::of(&event, &mut origins, &[]);
                agent.hub.borrow_mut().event(event, facts);
                agent.wake();
            }
            stream = &mut accepted => {
                accepted.set(agent.accept(&listener));
                agent.take(stream);
            }
        }
    }
}

fn netns_name(netns: &Netns) -> Option<Rc<OsString>> {
    let (name, _) = Netns::names().find(|&(_, id)| id == netns.id())?;
    Some(Rc::new(name))
}

impl AgentService {
    /// The next connection. Where there is no descriptor for it, it comes when a client has gone, or
    /// a little later: others on the host can be short of them as well.
    async fn accept(&self, listener: &UnixListener) -> UnixStream {
        let mut is_said = false;
        loop {
            match listener.accept().await {
                Ok((stream, _)) => return stream,
                Err(error) if is_of_the_client(&error) => {}
                Err(error) => {
                    if !std::mem::replace(&mut is_said, true) {
                        log::warn!("cannot take a client: {error}; waiting until one has gone");
                    }
                    let _ = timeout(PATIENCE, self.room.notified()).await;
                }
            }
        }
    }

    fn take(self: &Rc<Self>, stream: UnixStream) {
        let taken = ClientPeer::of(&stream, &self.home)
            .map_err(|error| Fault::NotPermitted(error.to_string()))
            .and_then(|peer| Ok((self.connect(&peer)?, peer)));
        match taken {
            Ok((client, peer)) => {
                let connection = Connection::new(Rc::clone(self), stream, peer, client);
                tokio::task::spawn_local(connection.serve());
            }
            Err(fault) => {
                log::debug!("a client is not taken: {fault:?}");
                let agent = Rc::clone(self);
                tokio::task::spawn_local(async move { agent.refuse(&stream, &fault).await });
            }
        }
    }

    /// Replies to what a client asks first, which takes it a moment.
    async fn refuse(&self, stream: &UnixStream, fault: &Fault) {
        let Ok(_permit) = self.refusals.try_acquire() else {
            return;
        };
        let asked = async {
            let mut call = [0; 1024];
            loop {
                // That is also said of a socket that is new.
                stream.readable().await?;
                match stream.try_read(&mut call) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    result => return result,
                }
            }
        };
        if let Ok(Ok(1..)) = timeout(PATIENCE, asked).await {
            // There is room for that in a new socket.
            let _ = rustix::io::write(stream, &fault.reply());
        }
    }

    /// Does what the hub wants of the library, one after the other.
    async fn work(self: Rc<Self>, handle: Handle) {
        loop {
            let request = self.hub.borrow_mut().request();
            let Some(request) = request else {
                self.requests.notified().await;
                continue;
            };
            let result = match &request {
                LibraryRequest::Watch { place, names, .. } => {
                    let target = |&name| Target::from(name).in_netns(place.netns.clone());
                    handle.watch_all(names.iter().map(target)).await
                }
                &LibraryRequest::Unwatch((netns, name)) => {
                    handle.unwatch(netns, name).await.map(drop)
                }
            };
            let result = result.map_err(|error| error.to_string());
            self.hub.borrow_mut().done(request, result);
            self.wake();
        }
    }

    fn wake(&self) {
        let woken = self.hub.borrow_mut().take_woken();
        let news = self.news.borrow();
        for id in woken {
            if let Some(news) = news.get(&id) {
                news.notify_one();
            }
        }
    }

    pub(super) fn connect(&self, peer: &ClientPeer) -> Result<(ClientId, Rc<Notify>), Refusal> {
        let id = self.hub.borrow_mut().connect(peer.owner(), peer.trust)?;
        let news = Rc::new(Notify::new());
        self.news.borrow_mut().insert(id, Rc::clone(&news));
        Ok((id, news))
    }

    pub(super) fn disconnect(&self, id: ClientId) {
        self.hub.borrow_mut().disconnect(id);
        self.news.borrow_mut().remove(&id);
        self.requests.notify_one();
        self.room.notify_one();
    }

    pub(super) fn watch(
        &self,
        id: ClientId,
        place: &ServedNetns,
        targets: &BTreeMap<InterfaceName, Option<u32>>,
    ) -> Result<(), Fault> {
        let asked = self
            .hub
            .borrow_mut()
            .watch(id, place, targets, SystemTime::now());
        self.requests.notify_one();
        Ok(asked?)
    }

    pub(super) fn next(&self, id: ClientId, now: SystemTime) -> Option<ClientItem> {
        self.hub.borrow_mut().next(id, now)
    }

    /// Is all watched that this client has asked for?
    pub(super) fn are_live(&self, id: ClientId) -> bool {
        self.hub.borrow().are_live(id)
    }

    /// Returns when all that happened before is there for clients to read.
    pub(super) async fn sync(&self) -> Result<(), Error> {
        self.handle.sync().await
    }

    /// The event that says so.
    pub(super) fn synced(&self) -> Value {
        json!({
            "time": timestamp(SystemTime::now()),
            "event": "synced",
            "interface": "",
            "netns": self.home.netns.id().0,
            "restart": false,
            "backend": self.backend.as_str(),
        })
    }

    pub(super) fn list(
        &self,
        netns: Option<NetnsId>,
        after: Option<WatchKey>,
    ) -> (Vec<Listed>, bool) {
        self.hub.borrow().list(netns, after)
    }

    pub(super) fn netns_name(&self, watch: WatchKey) -> Option<String> {
        let hub = self.hub.borrow();
        let name = hub.netns_name(watch)?;
        Some(name.to_string_lossy().into_owned())
    }

    pub(super) fn place(&self, netns: Netns) -> ServedNetns {
        let name = netns_name(&netns);
        ServedNetns { netns, name }
    }

    /// A namespace that root names: never the id of a process, which another one can have by now.
    pub(super) fn find(&self, name: &str) -> Result<ServedNetns, Fault> {
        let path = match name {
            "" | "." | ".." => None,
            path if path.starts_with('/') => Some(path.to_owned()),
            name => (!name.contains('/')).then(|| format!("{NETNS_NAMES}/{name}")),
        };
        let path = path.ok_or_else(|| Fault::InvalidParameter("netns".to_owned()))?;
        let netns = Netns::from_path(path)
            .map_err(|error| Fault::Refused(Refusal::Failed(error.to_string())))?;
        Ok(self.place(netns))
    }

    pub(super) fn info(&self) -> Value {
        let (clients, watches, names) = self.hub.borrow().counts();
        let count = |now, limit: limits::Limit| json!({ "now": now, "limit": limit.all });
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "backend": self.backend.as_str(),
            "clients": count(clients, limits::CLIENTS),
            "watches": count(watches, limits::WATCHES),
            "names": count(names, limits::NAMES),
        })
    }
}

/// Did the client go before it was taken?
fn is_of_the_client(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted
    )
}
