//! A host with thousands of veths, and hundreds of containers that make and delete some all the
//! time. Each creation and deletion has to be in the record, with the container that it came from;
//! what the record costs is compared with others that write down as much as they know.

use std::{
    env,
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    os::fd::AsRawFd as _,
    path::PathBuf,
    process::{self, ChildStdin, ChildStdout, Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, bail, ensure};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoData, InfoVeth, LinkAttribute, LinkInfo, LinkMessage},
};
use rtnetlink::LinkUnspec;
use rustix::thread::{UnshareFlags, unshare_unsafe};
use serde_json::Value;

use super::{
    figure::Figures,
    measure::Plan,
    process::{Process, Usage},
    report::number,
    subject::Subject,
};
use crate::{
    backend,
    cgroup::Cgroup,
    namespace::Namespace,
    program::wait_for,
    requests::{Requests, delete},
    scratch::Scratch,
};

const ROW: &str = "churn";
/// The first index of the veths that stay, and of those that come and go: above what the kernel
/// gives.
const STAYING: u32 = 1_000_000;
const COMING: u32 = 2_000_000;
/// So many names each container goes through.
const NAMES: u32 = 50;
/// The nearest that there is today: it takes every change of the host to userspace. A cgroup is a
/// number to it.
const BPFTRACE: &str = r#"
kprobe:register_netdevice {
    printf("new %s by %s %d cgroup %d\n", ((struct net_device *)arg0)->name, comm, pid, cgroup);
}
kprobe:unregister_netdevice_queue {
    printf("gone %s by %s %d cgroup %d\n", ((struct net_device *)arg0)->name, comm, pid, cgroup);
}"#;

pub(super) fn measure(plan: &Plan, figures: &mut Figures) -> Result<()> {
    let staying: u32 = plan.scale(5000, 500, 200);
    let containers: u32 = plan.scale(200, 20, 10);
    let changes: u32 = plan.scale(20_000, 1000, 200);
    let namespace = Namespace::new()?;
    let mut requests = Requests::new(&namespace)?;
    for pair in 0..staying / 2 {
        let names = (format!("cali{pair}a"), format!("cali{pair}b"));
        requests.add_pair(&names.0, &names.1, STAYING + 2 * pair, 0)?;
    }
    let mut containers = (0..containers)
        .map(|number| Container::start(&namespace, number))
        .collect::<Result<Vec<_>>>()?;

    let scratch = Scratch::new("churn")?;
    let mut recorders = Vec::new();
    // Another ifmon may be from before there were patterns.
    let subjects = plan
        .ifmon()
        .filter(|subject| matches!(subject, Subject::Ifmon(_)))
        .map(Recorded::By);
    for subject in subjects.chain([Recorded::By(Subject::IpMonitor), Recorded::Bpftrace]) {
        let path = scratch.path().join(recorders.len().to_string());
        match (
            Recorder::start(subject, &namespace, &mut requests, path),
            subject,
        ) {
            (Err(error), Recorded::Bpftrace) => eprintln!("left out: bpftrace: {error}"),
            (recorder, _) => recorders.push(recorder?),
        }
    }
    let mut before = Vec::new();
    for recorder in &recorders {
        before.push(recorder.usage(0)?);
    }
    let begin = Instant::now();
    let happened = churn(&mut containers, changes)?;
    let count = happened.iter().map(Vec::len).sum();
    let changes = count as f64;
    let rate = changes / begin.elapsed().as_secs_f64();
    figures.push(ROW, "changes a second", "the host", rate, "");

    for (recorder, before) in recorders.iter().zip(before) {
        let after = recorder.usage(count)?;
        let subject = recorder.subject.name();
        let mut push = |what: &str, value, unit| figures.push(ROW, what, &subject, value, unit);
        let cpu = (after.cpu - before.cpu) as f64 / 1e3;
        push("CPU for a change", cpu / changes, "µs");
        push("peak memory", after.peak as f64 / 1e3, "MB");
        if let Some(told) = recorder.told(&happened)? {
            let what = format!("of {} changes, told", number(changes));
            push(&what, told as f64, "");
        }
    }
    Ok(())
}

/// Has the containers make and delete veths, all at the same time, and says what each of them did.
fn churn(containers: &mut [Container], changes: u32) -> Result<Vec<Vec<Change>>> {
    let turns = changes / containers.len() as u32;
    let mut happened: Vec<Vec<Change>> = containers.iter().map(|_| Vec::new()).collect();
    for turn in 0..turns {
        let (request, event) = if turn % 2 == 0 {
            ("add", "appeared")
        } else {
            ("delete", "deleted")
        };
        let veth = |container: &Container| container.number * NAMES + turn / 2 % NAMES;
        for container in &mut *containers {
            container.ask(request, veth(container))?;
        }
        for (container, happened) in containers.iter_mut().zip(&mut happened) {
            container.answered()?;
            happened.push(Change {
                event: event.to_owned(),
                interface: name(veth(container)),
                container: Some(container.id.clone()),
            });
        }
    }
    Ok(happened)
}

fn name(veth: u32) -> String {
    format!("veth{veth}")
}

/// A veth that came or went.
#[derive(Debug, PartialEq, Eq)]
struct Change {
    event: String,
    interface: String,
    /// Whose process it was.
    container: Option<String>,
}

/// A process in a cgroup, as docker makes it, and a network namespace of its own. It makes veths of
/// which one end is in the host's namespace and the other one in its own.
struct Container {
    number: u32,
    id: String,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    // In this order: no cgroup is deleted while a process is in it.
    _process: Process,
    _cgroup: Cgroup,
}

impl Container {
    fn start(namespace: &Namespace, number: u32) -> Result<Self> {
        let id = format!("{number:064x}");
        let parent = format!("ifmon-bench-{}", process::id());
        let cgroup = Cgroup::new(&format!("{parent}/docker-{id}.scope"))?;
        let mut command = Command::new(env::current_exe()?);
        command
            .arg("container")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        namespace.enter(&mut command)?;
        let mut child = command.spawn().context("cannot start a container")?;
        let requests = child.stdin.take().context("no standard input")?;
        let answers = child.stdout.take().context("no standard output")?;
        let process = Process(child);
        cgroup.take(process.pid())?;
        Ok(Self {
            number,
            id,
            requests,
            answers: BufReader::new(answers),
            _process: process,
            _cgroup: cgroup,
        })
    }

    /// Has it do something.
    fn ask(&mut self, request: &str, veth: u32) -> Result<()> {
        writeln!(self.requests, "{request} {veth}").map_err(Into::into)
    }

    /// Waits until it is done.
    fn answered(&mut self) -> Result<()> {
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        ensure!(answer == "done\n", "a container cannot: {answer}");
        Ok(())
    }
}

/// What runs in a container.
pub(super) fn container() -> Result<()> {
    let mut requests = Requests::new(&Namespace::current()?)?;
    // SAFETY: nothing else in this process depends on its namespace.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
    let own = Namespace::current()?;
    for line in std::io::stdin().lines() {
        let line = line?;
        let (request, veth) = line.split_once(' ').context("not a request")?;
        let veth: u32 = veth.parse()?;
        let done = match request {
            "add" => requests.request(add_veth(veth, &own)),
            "delete" => requests.request(delete(COMING + veth)),
            _ => bail!("not a request: {request}"),
        };
        match done {
            Ok(()) => println!("done"),
            Err(error) => println!("{error:#}"),
        }
    }
    Ok(())
}

/// A pair with one end here and the other one, `eth0`, in another namespace.
fn add_veth(veth: u32, there: &Namespace) -> RouteNetlinkMessage {
    let mut peer = LinkMessage::default();
    peer.attributes = vec![
        LinkAttribute::IfName("eth0".to_owned()),
        LinkAttribute::NetNsFd(there.file().as_raw_fd()),
    ];
    let mut message = LinkUnspec::new_with_name(&name(veth))
        .index(COMING + veth)
        .build();
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(netlink_packet_route::link::InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    RouteNetlinkMessage::NewLink(message)
}

/// Who keeps a record.
#[derive(Clone, Copy)]
enum Recorded {
    By(Subject),
    Bpftrace,
}

impl Recorded {
    fn name(self) -> String {
        match self {
            Self::By(subject) => subject.name(),
            Self::Bpftrace => "bpftrace".to_owned(),
        }
    }

    fn command(self) -> Result<Command> {
        match self {
            Self::By(subject) => subject.command(&["veth*".to_owned()]),
            Self::Bpftrace => {
                let mut command = Command::new("bpftrace");
                command.args(["-e", BPFTRACE]);
                Ok(command)
            }
        }
    }
}

/// A program that writes to a file what happens.
struct Recorder {
    subject: Recorded,
    process: Process,
    path: PathBuf,
}

impl Recorder {
    /// Starts it, and waits until it has written something.
    fn start(
        subject: Recorded,
        namespace: &Namespace,
        requests: &mut Requests,
        path: PathBuf,
    ) -> Result<Self> {
        const PROBE: u32 = STAYING - 1;
        let mut command = subject.command()?;
        namespace.enter(&mut command)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(File::create(&path)?)
            .stderr(Stdio::null())
            .spawn()?;
        let mut process = Process(child);
        // Some do not say when they listen: something happens until they say that.
        let is_ifmon = matches!(subject, Recorded::By(subject) if subject.is_ifmon());
        let mut probe = || -> Result<()> {
            if !is_ifmon {
                requests.add_bridge("probe", PROBE)?;
                requests.delete(PROBE)?;
            }
            process.ended().map_or(Ok(()), Err)
        };
        wait_for(|| {
            if let Err(error) = probe() {
                return Some(Err(error));
            }
            let is_there = fs::read_to_string(&path).is_ok_and(|text| {
                text.contains("watching") || text.contains("probe:") || text.contains("new probe")
            });
            is_there.then_some(Ok(()))
        })??;
        Ok(Self {
            subject,
            process,
            path,
        })
    }

    /// What it has used by the time that it has written down so many changes.
    fn usage(&self, changes: usize) -> Result<Usage> {
        let pid = self.process.pid();
        match self.subject {
            Recorded::By(_) => Usage::settled(pid),
            // It is never at rest.
            Recorded::Bpftrace => {
                wait_for(|| {
                    let text = fs::read_to_string(&self.path).ok()?;
                    let is_one =
                        |line: &&str| line.starts_with("new veth") || line.starts_with("gone veth");
                    (text.lines().filter(is_one).count() >= changes).then_some(())
                })
                .context("bpftrace does not write down all")?;
                Usage::of(pid)
            }
        }
    }

    /// How many of the changes it has told; of ifmon that has to be all of them, those of each
    /// container in their order, and with the container where the backend can tell it. `None` for
    /// who has no such lines.
    fn told(&self, happened: &[Vec<Change>]) -> Result<Option<usize>> {
        let Recorded::By(subject @ Subject::Ifmon(name)) = self.subject else {
            return Ok(None);
        };
        let knows_cgroup = backend::who(backend::named(name)?)?.contains("cgroup");
        let mut told: Vec<Vec<Change>> = happened.iter().map(|_| Vec::new()).collect();
        for line in fs::read_to_string(&self.path)?.lines() {
            let line: Value = serde_json::from_str(line)?;
            if line["event"] == "watching" {
                continue;
            }
            let of_whom = told_of(&line).and_then(|number| told.get_mut(number));
            let text = |value: &Value| value.as_str().map(str::to_owned);
            of_whom
                .with_context(|| format!("{} tells what is no change: {line}", subject.name()))?
                .push(Change {
                    event: text(&line["event"]).unwrap_or_default(),
                    interface: text(&line["interface"]).unwrap_or_default(),
                    container: text(&line["by"]["container"]["id"]),
                });
        }
        let mut count = 0;
        for (told, happened) in told.iter().zip(happened) {
            let is_same = |(told, happened): (&Change, &Change)| {
                told.event == happened.event
                    && told.interface == happened.interface
                    && (!knows_cgroup || told.container == happened.container)
            };
            let right = told
                .iter()
                .zip(happened)
                .take_while(|&both| is_same(both))
                .count();
            ensure!(
                right == happened.len() && right == told.len(),
                "{}: after {right} changes of a container {:?} happened, and {:?} is told",
                subject.name(),
                happened.get(right),
                told.get(right)
            );
            count += right;
        }
        Ok(Some(count))
    }
}

/// The number of the container that the veth of a line belongs to.
fn told_of(line: &Value) -> Option<usize> {
    let veth: u32 = line["interface"]
        .as_str()?
        .strip_prefix("veth")?
        .parse()
        .ok()?;
    usize::try_from(veth / NAMES).ok()
}
