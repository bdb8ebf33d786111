//! `--state`: what is known of each watch is kept in a directory, so that a change while ifmon was
//! not running is told at its next start.
//!
//! A record says which device held the name when all that was known until then had been told: its
//! line was written, and its hook and the command of `--on-restart`, where there are any, had
//! ended. Only after that the record is replaced. So when ifmon is killed in between, the change is
//! told *again* at the next start, with `recovered`; it is never left out. Nothing can write a line
//! and a record at once, and to restart twice does less harm than not at all.
//!
//! Where the record says that nobody has the name, whoever takes it goes on record as soon as its
//! line is written: of a device that is not on record nobody would be told that it is gone. So
//! where that device still has the name at the next start, its hook is not run again.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::{OsStr, OsString},
    fs::{self, File, OpenOptions},
    io,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
};

use anyhow::Context as _;
use ifmon::{Handle, Identity, Inspector, Netns, NetnsId};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use tokio::{sync::mpsc, task::JoinSet};

use super::{
    refused::refused,
    watches::{WatchKey, Watches},
};

/// The one that uses the directory holds a lock on this file.
const LOCK: &str = "lock";
/// What is added to the name of a file that is being written. No name of an interface has a colon.
const NEW: &str = ":new";

/// What is known of one watch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    place: RecordScope,
    /// Null while nobody has the name.
    holder: Option<RecordedHolder>,
}

/// Where what a record says is true.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RecordScope {
    /// The kernel makes one up at each boot (`random(4)`).
    boot_id: String,
    netns: u32,
    /// The number of a namespace that has ended is given to the next one, the cookie is not. Null
    /// before Linux 5.14.
    netns_cookie: Option<u64>,
}

/// A device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct RecordedHolder {
    ifindex: u32,
    /// Of its directory in sysfs, where that is known.
    inode: Option<u64>,
}

impl RecordedHolder {
    const fn identity(self) -> Identity {
        let identity = Identity::of_ifindex(self.ifindex);
        match self.inode {
            Some(inode) => identity.with_inode(inode),
            None => identity,
        }
    }
}

/// What a file says about a watch that begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RecordSays {
    /// This device is to be expected.
    Expect(RecordedHolder),
    /// Nobody had the name, so nobody is missing.
    Absent,
    /// Nothing: it is about another namespace, which had the same number.
    ElsewhereThen,
    /// Nothing, and whoever relies on it should know: it is from another boot.
    OtherBoot,
    /// The same: it is no record.
    Damaged,
}

/// What a stored record and the present state lead to.
fn compare(stored: &[u8], here: &RecordScope) -> RecordSays {
    let Ok(Record { place, holder }) = serde_json::from_slice(stored) else {
        return RecordSays::Damaged;
    };
    if place.boot_id != here.boot_id {
        return RecordSays::OtherBoot;
    }
    if place != *here {
        return RecordSays::ElsewhereThen;
    }
    holder.map_or(RecordSays::Absent, RecordSays::Expect)
}

/// The directory.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    boot_id: String,
    places: BTreeMap<NetnsId, RecordScope>,
    /// Opened while there is the right to do so.
    inspectors: BTreeMap<NetnsId, Inspector>,
    /// Why files that are there say nothing, and how many.
    other_boot: usize,
    damaged: usize,
    /// Locked as long as it is open.
    _lock: File,
}

/// The records, which follow what is told.
#[derive(Debug)]
pub(crate) struct StateRecords {
    directory: Directory,
    monitor: Handle,
    /// What is still to be done about events that were told.
    unfinished: HashMap<WatchKey, Weak<Done>>,
    finished: (
        mpsc::UnboundedSender<WatchKey>,
        mpsc::UnboundedReceiver<WatchKey>,
    ),
    questions: JoinSet<Result<HolderAnswer, ifmon::Error>>,
    /// What will never be told by this process.
    untold: Vec<Unfinished>,
}

/// Who holds a name, and how many lines of it there were when that was asked.
type HolderAnswer = (WatchKey, u64, Option<Identity>);

/// Is held by whoever has something to do about an event that was told. When nobody has any more,
/// the record follows.
#[derive(Clone, Debug)]
pub(crate) struct Unfinished(#[expect(dead_code, reason = "it counts who holds it")] Arc<Done>);

#[derive(Debug)]
struct Done {
    watch: WatchKey,
    to: mpsc::UnboundedSender<WatchKey>,
}

impl Drop for Done {
    fn drop(&mut self) {
        // At the end nobody listens any more.
        let _ = self.to.send(self.watch);
    }
}

impl Directory {
    /// Makes it where it is missing. A second process that uses it would undo what the first one
    /// knows.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let may_not = |error, tried| {
            let to_do = "name one that the user who runs ifmon may write to";
            refused(error, format_args!("{tried} {shown}"), to_do)
        };
        fs::create_dir_all(path).map_err(|error| may_not(error, "cannot make the directory"))?;
        let lock = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path.join(LOCK))
            .map_err(|error| may_not(error, "cannot write in the directory"))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|error| match error {
            rustix::io::Errno::WOULDBLOCK => anyhow::anyhow!(
                "another ifmon keeps its state in {shown}; give each a directory of its own"
            ),
            error => anyhow::Error::new(error).context(format!("cannot lock {shown}/{LOCK}")),
        })?;
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .context("cannot tell this boot from others, which --state needs")?;
        Ok(Self {
            path: path.to_owned(),
            boot_id: boot_id.trim().to_owned(),
            places: BTreeMap::new(),
            inspectors: BTreeMap::new(),
            other_boot: 0,
            damaged: 0,
            _lock: lock,
        })
    }

    /// Makes sure that records can be written.
    pub(crate) fn try_out(&self) -> anyhow::Result<()> {
        let tried = self.path.join(NEW);
        File::create(&tried)
            .and_then(|_| fs::remove_file(&tried))
            .map_err(|error| {
                let shown = self.path.display();
                let to_do = "its owner has to be the user who runs ifmon, which keeps no right to write elsewhere";
                refused(error, format_args!("cannot write in the directory {shown}"), to_do)
            })
    }

    /// Something is watched in this namespace.
    pub(crate) fn enter(&mut self, netns: &Netns) -> RecordScope {
        let NetnsId(inum) = netns.id();
        if !self.inspectors.contains_key(&netns.id())
            && let Ok(inspector) = Inspector::new(netns)
        {
            self.inspectors.insert(netns.id(), inspector);
        }
        let boot_id = &self.boot_id;
        let place = self
            .places
            .entry(netns.id())
            .or_insert_with(|| RecordScope {
                boot_id: boot_id.clone(),
                netns: inum,
                netns_cookie: netns.cookie().ok(),
            });
        place.clone()
    }

    /// Lets the namespaces go that ifmon is not in, and that it would keep alive. Of those who have names
    /// there the index alone goes on record.
    pub(crate) fn leave_others(&mut self) {
        let own = Netns::current().ok().map(|own| own.id());
        self.inspectors.retain(|netns, _| Some(*netns) == own);
    }

    /// The device that is to be expected for a watch that begins.
    pub(crate) fn expected(&mut self, netns: &Netns, watch: WatchKey) -> Option<Identity> {
        let stored = match fs::read(self.file(watch)) {
            Ok(stored) => stored,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                log::debug!("{}: {error}", self.file(watch).display());
                self.damaged += 1;
                return None;
            }
        };
        let here = self.enter(netns);
        match compare(&stored, &here) {
            RecordSays::Expect(holder) => return Some(holder.identity()),
            RecordSays::Absent | RecordSays::ElsewhereThen => {}
            RecordSays::OtherBoot => self.other_boot += 1,
            RecordSays::Damaged => self.damaged += 1,
        }
        None
    }

    /// One warning for all that cannot be told.
    fn warn(&self) {
        let reasons = [
            (self.other_boot, "from another boot"),
            (self.damaged, "damaged"),
        ];
        let reasons: Vec<String> = reasons
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, why)| format!("{count} {why}"))
            .collect();
        if !reasons.is_empty() {
            log::warn!(
                "what changed while ifmon was not running cannot be told of every watch: of the records in {}, {}",
                self.path.display(),
                reasons.join(" and ")
            );
        }
    }

    /// Which device has the name now, as far as that can be read.
    fn identity(&mut self, (netns, interface): WatchKey) -> Option<Identity> {
        let inspector = self.inspectors.get_mut(&netns)?;
        match inspector.identity(interface) {
            Ok(identity) => identity,
            Err(error) => {
                log::warn!("cannot read which device {interface} is: {error}");
                None
            }
        }
    }

    /// An interface's name has neither a slash nor a colon in it.
    fn file(&self, (NetnsId(netns), interface): WatchKey) -> PathBuf {
        let mut name = OsString::from(format!("{netns}:"));
        name.push(OsStr::from_bytes(interface.as_bytes()));
        self.path.join(name)
    }

    /// Replaces a record, whole or not at all.
    fn write(&self, watch: WatchKey, record: &Record) -> io::Result<()> {
        let path = self.file(watch);
        let mut new = path.clone().into_os_string();
        new.push(NEW);
        // Not synchronised with the disk, which may take long: it outlives the process, and says nothing
        // after the next boot.
        fs::write(&new, serde_json::to_vec(record)?)?;
        fs::rename(&new, &path)
    }
}

impl StateRecords {
    pub(crate) fn new(directory: Directory, monitor: Handle) -> Self {
        directory.warn();
        Self {
            directory,
            monitor,
            unfinished: HashMap::new(),
            finished: mpsc::unbounded_channel(),
            questions: JoinSet::new(),
            untold: Vec::new(),
        }
    }

    /// An event is told. The record follows when nobody holds what this returns any more.
    pub(crate) fn told(&mut self, watch: WatchKey) -> Unfinished {
        let unfinished = self.unfinished.entry(watch).or_default();
        let done = unfinished.upgrade().unwrap_or_else(|| {
            let to = self.finished.0.clone();
            Arc::new(Done { watch, to })
        });
        *unfinished = Arc::downgrade(&done);
        Unfinished(done)
    }

    /// Something happened that will not be told any more: the record stays as it is.
    pub(crate) fn leave_untold(&mut self, watch: WatchKey) {
        let told = self.told(watch);
        self.untold.push(told);
    }

    /// Would no device be missed at the next start?
    pub(crate) fn expects_nobody(&self, watch: WatchKey) -> bool {
        let stored = fs::read(self.directory.file(watch));
        let here = self.directory.places.get(&watch.0);
        let said = stored.ok().zip(here);
        !said.is_some_and(|(stored, here)| matches!(compare(&stored, here), RecordSays::Expect(_)))
    }

    fn is_finished(&self, watch: WatchKey) -> bool {
        let unfinished = self.unfinished.get(&watch);
        unfinished.is_none_or(|done| done.strong_count() == 0)
    }

    /// Does what comes next: asks who holds a name once all is done about it, or writes the answer
    /// down.
    ///
    /// To be awaited only while no event waits to be told. Nothing is lost when the future is
    /// dropped.
    pub(crate) async fn next(&mut self, watches: &Watches) {
        tokio::select! {
            Some(watch) = self.finished.1.recv() => {
                if let Some(account) = watches.account(watch).filter(|_| self.is_finished(watch)) {
                    let (monitor, delivered) = (self.monitor.clone(), account.delivered);
                    let identity = self.directory.identity(watch);
                    self.questions.spawn(async move {
                        // The answer may be about something that is still to be told: after this it was.
                        monitor.sync().await?;
                        Ok((watch, delivered, identity))
                    });
                }
            }
            Some(answer) = self.questions.join_next() => {
                // There is none when the monitor has ended.
                if let Ok(Ok((watch, delivered, identity))) = answer
                    && let Some(account) = watches.account(watch)
                    && account.delivered == delivered
                    && self.is_finished(watch)
                {
                    self.unfinished.remove(&watch);
                    let inode_of = |ifindex| {
                        identity.filter(|identity| identity.ifindex == ifindex)?.inode
                    };
                    let holder = account.holder().map(|ifindex| RecordedHolder {
                        ifindex,
                        inode: inode_of(ifindex),
                    });
                    self.write(watch, holder);
                }
            }
        }
    }

    fn write(&self, watch: WatchKey, holder: Option<RecordedHolder>) {
        let (netns, interface) = watch;
        let Some(place) = self.directory.places.get(&netns).cloned() else {
            return;
        };
        if let Err(error) = self.directory.write(watch, &Record { place, holder }) {
            log::warn!(
                "cannot keep the state of {interface} in {}, so what was told may be told again at the next start: {error}",
                self.directory.path.display()
            );
        }
    }

    /// Is there nothing to be written, or nothing that could be?
    pub(crate) fn is_idle(&self) -> bool {
        self.questions.is_empty() && self.finished.1.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here() -> RecordScope {
        RecordScope {
            boot_id: "b2".to_owned(),
            netns: 7,
            netns_cookie: Some(3),
        }
    }

    fn record(place: RecordScope, holder: Option<RecordedHolder>) -> Vec<u8> {
        serde_json::to_vec(&Record { place, holder }).expect("it can be written")
    }

    const HOLDER: RecordedHolder = RecordedHolder {
        ifindex: 5,
        inode: Some(99),
    };

    #[test]
    fn a_record_of_another_time_or_place_says_nothing() {
        let other_boot = RecordScope {
            boot_id: "b1".to_owned(),
            ..here()
        };
        let same_number = RecordScope {
            netns_cookie: Some(2),
            ..here()
        };
        for (stored, said) in [
            (record(here(), Some(HOLDER)), RecordSays::Expect(HOLDER)),
            (record(here(), None), RecordSays::Absent),
            (record(other_boot, Some(HOLDER)), RecordSays::OtherBoot),
            (record(same_number, Some(HOLDER)), RecordSays::ElsewhereThen),
        ] {
            assert_eq!(compare(&stored, &here()), said);
        }
    }

    #[test]
    fn a_record_that_was_cut_off_or_is_none_says_nothing() {
        let whole = record(here(), Some(HOLDER));
        for length in 0..whole.len() {
            assert_eq!(
                compare(&whole[..length], &here()),
                RecordSays::Damaged,
                "{length}"
            );
        }
        for other in [&b"{}"[..], b"\xff", b"null", b"[]"] {
            assert_eq!(compare(other, &here()), RecordSays::Damaged);
        }
    }

    #[test]
    fn a_directory_is_for_one_and_a_record_is_replaced_whole() {
        let path = std::env::temp_dir().join(format!("ifmon-state-{}", std::process::id()));
        let netns = Netns::current().expect("it has one");
        let watch = |name: &str| {
            let name = ifmon::InterfaceName::new(name).expect("a good name");
            (netns.id(), name)
        };
        let (wg0, wg1) = (watch("wg0"), watch("wg1"));
        let mut directory = Directory::open(&path).expect("it can be made");
        let refused = Directory::open(&path)
            .expect_err("it is in use")
            .to_string();
        assert!(refused.contains("another ifmon"), "{refused}");
        assert_eq!(directory.expected(&netns, wg0), None);
        let place = directory.enter(&netns);
        let holder = Some(HOLDER);
        directory
            .write(wg0, &Record { place, holder })
            .expect("it can be written");
        // As a process leaves it that ends while it writes.
        let mut cut = directory.file(wg0).into_os_string();
        cut.push(NEW);
        fs::write(cut, "{").expect("it can be written");
        fs::write(directory.file(wg1), "{").expect("it can be written");
        drop(directory);

        let mut directory = Directory::open(&path).expect("nobody uses it");
        assert_eq!(directory.expected(&netns, wg0), Some(HOLDER.identity()));
        assert_eq!(directory.expected(&netns, wg1), None);
        assert_eq!((directory.damaged, directory.other_boot), (1, 0));
        fs::remove_dir_all(&path).expect("it can be removed");
    }
}
