//! Plays the scenarios against the backends, on the kernel that it runs on.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{self, Write as _},
    panic::{self, AssertUnwindSafe},
    process::ExitCode,
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use ifmon::BackendKind;
use rustix::{
    mount::{MountFlags, MountPropagationFlags, mount, mount_change},
    thread::{UnshareFlags, unshare_unsafe},
};
use tests::{
    backend::{self, BACKENDS},
    room::{Device, Room},
    stage::{LeftOut, Stage},
    table::{Devices, Scenario, scenarios},
};

const USAGE: &str = "scenarios [--backends LIST] [--emulated] [--of-kernel] [--list] [PART OF A NAME]...

LIST is comma-separated: fentry, kprobe, netlink-ebpf, netlink, netlink-unfiltered. IFMON in the environment is the program to test.
With --emulated, what is done by the thousand is done by the hundred, and what other scenarios show as well is left out
unless it is named. With --of-kernel, what the program alone decides is left out unless it is named.
Ends with 0 when nothing failed, 1 when something did, 2 on wrong usage. The first line is the kernel's version; one for
each scenario follows; the last ones are for each backend: backend NAME passed=N failed=N left-out=N EVENT=N...";

struct Options {
    backends: Vec<BackendKind>,
    is_emulated: bool,
    is_of_kernel: bool,
    filter: Vec<String>,
}

fn main() -> ExitCode {
    let result = Options::parse().map_or_else(
        |error| {
            eprintln!("scenarios: {error:#}\n\n{USAGE}");
            Ok(ExitCode::from(2))
        },
        |options| options.map_or(Ok(ExitCode::SUCCESS), |options| run(&options)),
    );
    result.unwrap_or_else(|error| {
        eprintln!("scenarios: {error:#}");
        ExitCode::FAILURE
    })
}

impl Options {
    /// `None` when all that was asked for is done.
    fn parse() -> Result<Option<Self>> {
        let mut options = Self {
            backends: BACKENDS.to_vec(),
            is_emulated: false,
            is_of_kernel: false,
            filter: Vec::new(),
        };
        let mut args = env::args().skip(1);
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--backends" => {
                    let list = args.next().context("--backends wants a list")?;
                    options.backends =
                        list.split(',').map(backend::named).collect::<Result<_>>()?;
                }
                "--emulated" => options.is_emulated = true,
                "--of-kernel" => options.is_of_kernel = true,
                "--list" => {
                    for scenario in scenarios() {
                        println!("{}", scenario.name);
                    }
                    return Ok(None);
                }
                "--help" => {
                    println!("{USAGE}");
                    return Ok(None);
                }
                option if option.starts_with('-') => bail!("there is no option {option}"),
                part => options.filter.push(part.to_owned()),
            }
        }
        Ok(Some(options))
    }

    fn wants(&self, scenario: &Scenario, backend: BackendKind) -> bool {
        if !scenario.backends.contains(&backend) {
            return false;
        }
        if self.filter.is_empty() {
            return (scenario.is_for_emulated || !self.is_emulated)
                && (scenario.is_of_kernel || !self.is_of_kernel);
        }
        // What is asked for by name is played everywhere.
        self.filter.iter().any(|part| scenario.name.contains(part))
    }
}

#[derive(Default)]
struct Tally {
    passed: u32,
    failed: u32,
    left_out: u32,
    verdicts: BTreeMap<String, u64>,
}

fn run(options: &Options) -> Result<ExitCode> {
    own_mounts().context("this needs root")?;
    let version = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    println!("kernel {}", version.trim());
    let missing = missing_devices();
    let mut tallies = Vec::new();
    for &backend in &options.backends {
        let mut tally = Tally::default();
        for scenario in scenarios().filter(|scenario| options.wants(scenario, backend)) {
            for device in Device::ALL {
                if scenario.devices == Devices::Veth && device != Device::Veth {
                    continue;
                }
                let begin = Instant::now();
                let result = match missing.get(&device.to_string()) {
                    Some(why) => Err(LeftOut(why.clone()).into()),
                    None => Stage::new(backend, device).and_then(|mut stage| {
                        stage.is_emulated = options.is_emulated;
                        play(&scenario, stage, &mut tally.verdicts)
                    }),
                };
                let what = format!("{backend}: {} ({device})", scenario.name);
                report(&what, result, begin, &mut tally)?;
            }
        }
        tallies.push((backend, tally));
    }
    let failed = tallies.iter().any(|(_, tally)| tally.failed > 0);
    for (backend, tally) in tallies {
        let Tally {
            passed,
            failed,
            left_out,
            verdicts,
        } = tally;
        print!("backend {backend} passed={passed} failed={failed} left-out={left_out}");
        for (event, count) in verdicts {
            print!(" {event}={count}");
        }
        println!();
    }
    Ok(ExitCode::from(u8::from(failed)))
}

fn play(scenario: &Scenario, mut stage: Stage, verdicts: &mut BTreeMap<String, u64>) -> Result<()> {
    let result = panic::catch_unwind(AssertUnwindSafe(|| (scenario.play)(&mut stage)));
    let result = result.unwrap_or_else(|_| Err(anyhow::anyhow!("panicked")));
    if result.is_ok() {
        for (event, count) in stage.verdicts() {
            *verdicts.entry(event.clone()).or_default() += count;
        }
    }
    result
}

fn report(what: &str, result: Result<()>, begin: Instant, tally: &mut Tally) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match result {
        Ok(()) => {
            tally.passed += 1;
            let milliseconds = begin.elapsed().as_millis();
            writeln!(stdout, "ok {what} {milliseconds} ms")?;
        }
        Err(error) => match error.downcast_ref() {
            Some(LeftOut(why)) => {
                tally.left_out += 1;
                writeln!(stdout, "left out {what}: {why}")?;
            }
            None => {
                tally.failed += 1;
                writeln!(stdout, "FAILED {what}: {error:#}")?;
            }
        },
    }
    stdout.flush()
}

/// Names of namespaces are files in /run; these are to be seen by nobody else, and to be gone
/// afterwards.
fn own_mounts() -> Result<()> {
    // SAFETY: this process has one thread yet.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .or_else(|error| {
        // The first file system, where an initramfs is, is no mount that could be shared.
        if error == rustix::io::Errno::INVAL {
            Ok(())
        } else {
            Err(error)
        }
    })?;
    mount("tmpfs", "/run", "tmpfs", MountFlags::empty(), None)?;
    Ok(())
}

/// The kinds of devices that this kernel does not have, and why not.
fn missing_devices() -> BTreeMap<String, String> {
    Device::ALL
        .into_iter()
        .filter_map(|device| {
            let tried = Room::new(device).and_then(|room| room.add("try0", 100));
            let why = format!("no {device} here: {:#}", tried.err()?);
            Some((device.to_string(), why))
        })
        .collect()
}
