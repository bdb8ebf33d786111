//! One client: reads its calls and writes what it is told. Waits for nobody else.

use std::{
    io::{self, ErrorKind},
    rc::Rc,
    time::SystemTime,
};

use serde_json::{Value, json};
use tokio::{net::UnixStream, sync::Notify};

use super::{
    agent::AgentService,
    call::{Call, Fault, Method, WatchParameters, reply},
    hub::{ClientId, ClientItem, Listed, Refusal},
    limits,
    peer::ClientPeer,
};
use crate::cli::output::json::timestamp;

/// A client and its connection.
pub(super) struct Connection {
    agent: Rc<AgentService>,
    stream: UnixStream,
    peer: ClientPeer,
    id: ClientId,
    /// There is something to read for it.
    news: Rc<Notify>,
    /// What was received and not yet taken.
    input: Vec<u8>,
}

/// The client has gone, or says what no client says.
struct ClientGone;

impl From<io::Error> for ClientGone {
    fn from(_: io::Error) -> Self {
        Self
    }
}

impl Connection {
    pub(super) fn new(
        agent: Rc<AgentService>,
        stream: UnixStream,
        peer: ClientPeer,
        (id, news): (ClientId, Rc<Notify>),
    ) -> Self {
        Self {
            agent,
            stream,
            peer,
            id,
            news,
            input: Vec::new(),
        }
    }

    /// Answers until the client goes.
    pub(super) async fn serve(mut self) {
        while let Ok(message) = self.message().await {
            let Ok(call) = Call::parse(&message) else {
                return;
            };
            drop(message);
            if self.answer(call).await.is_err() {
                return;
            }
        }
    }

    /// The next call, without its NUL.
    async fn message(&mut self) -> Result<Vec<u8>, ClientGone> {
        let mut searched = 0;
        loop {
            let unsearched = self.input.get(searched..).unwrap_or_default();
            if let Some(at) = unsearched.iter().position(|&byte| byte == 0) {
                let mut message: Vec<u8> = self.input.drain(..=searched + at).collect();
                message.pop();
                if self.input.is_empty() {
                    // Most clients call once.
                    self.input = Vec::new();
                }
                return Ok(message);
            }
            searched = self.input.len();
            self.receive().await?;
        }
    }

    /// Waits for more input. Nothing is lost when the future is dropped.
    async fn receive(&mut self) -> Result<(), ClientGone> {
        let room = limits::CALL_BYTES.saturating_sub(self.input.len());
        if room == 0 {
            return Err(ClientGone);
        }
        loop {
            self.stream.readable().await?;
            let mut bytes = [0; 4096];
            let part = bytes.len().min(room);
            match self
                .stream
                .try_read(bytes.get_mut(..part).unwrap_or_default())
            {
                Ok(0) => return Err(ClientGone),
                Ok(count) => {
                    self.input
                        .extend_from_slice(bytes.get(..count).unwrap_or_default());
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn write(&self, mut bytes: &[u8]) -> Result<(), ClientGone> {
        while !bytes.is_empty() {
            self.stream.writable().await?;
            match self.stream.try_write(bytes) {
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    async fn answer(&mut self, call: Call) -> Result<(), ClientGone> {
        let Call {
            method,
            more,
            oneway,
        } = call;
        let answer = match method {
            Ok(Method::Watch(watch)) if more && !oneway => match self.begin(watch).await {
                Ok(()) => return self.follow().await,
                Err(fault) => fault.reply(),
            },
            Ok(Method::Watch(_)) => Fault::ExpectedMore.reply(),
            // There is nothing to wait for without a watch.
            Ok(Method::Sync) => reply(&json!({}), false),
            Ok(Method::List) if !oneway => return self.list(more).await,
            Ok(Method::List) => return Ok(()),
            Ok(Method::Info) => reply(&self.agent.info(), false),
            Ok(Method::Check) => Rc::clone(&self.agent.check),
            Ok(Method::GetInfo) => reply(&service_info(), false),
            Ok(Method::GetInterfaceDescription(description)) => {
                reply(&json!({ "description": description }), false)
            }
            Err(fault) => fault.reply(),
        };
        if oneway {
            return Ok(());
        }
        self.write(&answer).await
    }

    async fn begin(&self, watch: WatchParameters) -> Result<(), Fault> {
        self.peer.may_watch(&self.agent.home)?;
        let WatchParameters { targets, netns } = watch;
        let place = match netns {
            None => self
                .agent
                .place(self.peer.netns(&self.stream, &self.agent.home)?),
            Some(netns) => {
                self.peer.may_name(&netns, &self.agent.home)?;
                self.agent.find(&netns)?
            }
        };
        // Others may watch the name, and what the client knows be ahead of what they were told.
        let synced = self.agent.sync().await;
        synced.map_err(|error| Refusal::Failed(error.to_string()))?;
        self.agent.watch(self.id, &place, &targets)
    }

    /// Tells the client what happens, until it goes or its call fails.
    async fn follow(&mut self) -> Result<(), ClientGone> {
        loop {
            let mut refusal = self.tell().await?;
            if refusal.is_none() && self.input.contains(&0) {
                refusal = self.sync().await?;
                if refusal.is_none() {
                    continue;
                }
            }
            if let Some(refusal) = refusal {
                return self.write(&Fault::from(refusal).reply()).await;
            }
            let news = Rc::clone(&self.news);
            tokio::select! {
                () = news.notified() => {}
                received = self.receive() => received?,
            }
        }
    }

    /// Tells the client what there is to be told; why its call fails, if it does.
    async fn tell(&self) -> Result<Option<Refusal>, ClientGone> {
        while let Some(next) = self.agent.next(self.id, SystemTime::now()) {
            match next {
                ClientItem::Event(told) => self.write(told.reply(self.peer.trust)).await?,
                ClientItem::Refused(refusal) => return Ok(Some(refusal)),
            }
        }
        Ok(None)
    }

    /// Answers what a client asks while it watches; why its call fails, if it does. The call of the
    /// watch never ends by itself, so that no other one would ever be answered but `Sync`, which wants
    /// no reply of its own.
    async fn sync(&mut self) -> Result<Option<Refusal>, ClientGone> {
        let message = self.message().await?;
        match Call::parse(&message) {
            Ok(Call {
                method: Ok(Method::Sync),
                oneway: true,
                ..
            }) => {}
            Ok(_) | Err(_) => return Err(ClientGone),
        }
        // A name that is new to the agent is not watched yet.
        while !self.agent.are_live(self.id) {
            self.news.notified().await;
            if let Some(refusal) = self.tell().await? {
                return Ok(Some(refusal));
            }
        }
        self.agent.sync().await.map_err(|_| ClientGone)?;
        if let Some(refusal) = self.tell().await? {
            return Ok(Some(refusal));
        }
        self.write(&reply(&self.agent.synced(), true)).await?;
        Ok(None)
    }

    async fn list(&self, more: bool) -> Result<(), ClientGone> {
        let scope = self
            .peer
            .may_watch(&self.agent.home)
            .and_then(|()| self.peer.scope(&self.stream, &self.agent.home));
        let scope = match scope {
            Ok(scope) => scope,
            Err(fault) => return self.write(&fault.reply()).await,
        };
        let mut after = None;
        loop {
            let (page, is_last) = self.agent.list(scope, after);
            if !is_last && !more {
                return self.write(&Fault::ExpectedMore.reply()).await;
            }
            let interfaces: Vec<Value> = page.iter().map(|listed| self.show(listed)).collect();
            let page_reply = reply(&json!({ "interfaces": interfaces }), !is_last);
            self.write(&page_reply).await?;
            if is_last {
                return Ok(());
            }
            after = page.last().map(|listed| listed.watch);
        }
    }

    fn show(&self, listed: &Listed) -> Value {
        let Listed {
            watch,
            ifindex,
            since,
            clients,
        } = listed;
        let (netns, interface) = watch;
        let mut shown = json!({
            "interface": interface.to_string(),
            "netns": netns.0,
            "ifindex": ifindex,
            "since": timestamp(*since),
            "clients": clients,
        });
        if self.peer.sees_all
            && let Some(name) = self.agent.netns_name(*watch)
        {
            shown["netns_name"] = name.into();
        }
        shown
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.agent.disconnect(self.id);
    }
}

fn service_info() -> Value {
    json!({
        "vendor": "ifmon",
        "product": "ifmon",
        "version": env!("CARGO_PKG_VERSION"),
        "url": concat!("https://docs.rs/", env!("CARGO_PKG_NAME")),
        "interfaces": ["org.varlink.service", "io.ifmon"],
    })
}
