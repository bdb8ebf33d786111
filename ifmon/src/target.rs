//! What a caller asks to have watched.

use crate::{Error, InterfaceName, InvalidName, InvalidPattern, Netns, Pattern};

/// What to watch: a name, in a network namespace, and perhaps the device that its user expects to
/// hold it; or a pattern for names.
///
/// ```no_run
/// # fn main() -> Result<(), ifmon::Error> {
/// use ifmon::{Identity, Netns, Target};
///
/// let target = Target::new("wg0")?
///     .in_netns(Netns::find("web")?)
///     .expect(Identity::of_ifindex(7));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Target {
    pub(crate) what: NameOrPattern,
    pub(crate) netns: Option<Netns>,
    pub(crate) is_everywhere: bool,
    pub(crate) expected: Option<Identity>,
}

/// A name, or all that match.
#[derive(Clone, Debug)]
pub(crate) enum NameOrPattern {
    Name(InterfaceName),
    Pattern(Pattern),
}

impl Target {
    /// An interface of the caller's own network namespace: that of the thread which awaits
    /// [`Builder::start`](crate::Builder::start) or [`Handle::watch`](crate::Handle::watch).
    ///
    /// # Errors
    /// When no interface can have this name.
    pub fn new(name: impl AsRef<[u8]>) -> Result<Self, InvalidName> {
        InterfaceName::new(name).map(Self::from)
    }

    /// All interfaces of the caller's own network namespace whose names match a [`Pattern`]: those
    /// that there are, and those to come. `new` takes each character as it is.
    ///
    /// Its events are `Watching`, with the number of those that match; `Appeared`, for an interface
    /// that was made, renamed into the pattern or moved here; `Renamed`, `Moved` and `Deleted`; and
    /// `Resynced`. A pattern keeps its network namespace alive.
    ///
    /// A BPF backend that has no pattern at its start takes none later, unless
    /// [`Builder::pattern_capacity`](crate::Builder::pattern_capacity) made room. Patterns of one namespace that are narrowed to different kinds
    /// ([`Pattern::of_kinds`]) are compared with all of these in the kernel, so that it may be woken for
    /// what matches by its name alone.
    ///
    /// # Errors
    /// When no name matches.
    pub fn pattern(pattern: impl AsRef<[u8]>) -> Result<Self, InvalidPattern> {
        Pattern::new(pattern).map(Self::from)
    }

    /// The same in another network namespace.
    pub fn in_netns(self, netns: Netns) -> Self {
        Self {
            netns: Some(netns),
            is_everywhere: false,
            ..self
        }
    }

    /// The same in all network namespaces, those to come as well. A name is a pattern then that this
    /// name alone matches.
    ///
    /// Takes the backends `fentry` or `kprobe`, and is for the start: [`Handle::watch`] refuses it where
    /// there are other patterns, as it does those beside it, and has room for as many namespaces then as
    /// [`Builder::pattern_capacity`](crate::Builder::pattern_capacity) has made. No namespace is kept alive by it. There
    /// is one `Watching`, with all that match and [`NetnsId::ALL`]; every other event has the
    /// namespace that it is about. A namespace that neither `/proc/PID/ns/net` of any process nor a
    /// mount shows is watched from the first change on that is made in it. A device is known by its
    /// index there: one that takes the index and the name of another while events are lost is not told
    /// from it.
    ///
    /// ```no_run
    /// use ifmon::{EventKind, Monitor, Target};
    ///
    /// # async fn watch() -> Result<(), Box<dyn std::error::Error>> {
    /// let all = Target::pattern("veth*")?.in_all_netns();
    /// let mut monitor = Monitor::builder().watch_all([all]).start().await?;
    /// while let Some(event) = monitor.next().await {
    ///     let event = event?;
    ///     if let EventKind::Appeared { ifindex } = event.kind {
    ///         println!("{} in namespace {}: {ifindex}", event.interface, event.netns);
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// [`Handle::watch`]: crate::Handle::watch
    /// [`NetnsId::ALL`]: crate::NetnsId::ALL
    pub fn in_all_netns(self) -> Self {
        Self {
            what: NameOrPattern::Pattern(match self.what {
                NameOrPattern::Name(name) => Pattern::from(name),
                NameOrPattern::Pattern(pattern) => pattern,
            }),
            netns: None,
            is_everywhere: true,
            expected: None,
        }
    }

    /// The device that should hold the name. When another one does as the watch begins, or none,
    /// `Watching` is followed by what became of it. Of a pattern nothing is expected, and of a watch
    /// that is there already nothing more.
    pub fn expect(self, identity: Identity) -> Self {
        Self {
            expected: Some(identity),
            ..self
        }
    }

    /// Its name; `None` for a pattern.
    pub const fn name(&self) -> Option<InterfaceName> {
        match self.what {
            NameOrPattern::Name(name) => Some(name),
            NameOrPattern::Pattern(_) => None,
        }
    }
}

impl From<InterfaceName> for Target {
    fn from(name: InterfaceName) -> Self {
        Self {
            what: NameOrPattern::Name(name),
            netns: None,
            is_everywhere: false,
            expected: None,
        }
    }
}

impl From<Pattern> for Target {
    fn from(pattern: Pattern) -> Self {
        Self {
            what: NameOrPattern::Pattern(pattern),
            netns: None,
            is_everywhere: false,
            expected: None,
        }
    }
}

macro_rules! targets {
    ($($kind:ty),*) => {$(
        impl TryFrom<$kind> for Target {
            type Error = InvalidName;

            fn try_from(name: $kind) -> Result<Self, InvalidName> {
                Self::new(name)
            }
        }
    )*};
}

targets!(&str, &&str, &String, String, &[u8]);

/// By what a device is told from others, from outside the kernel.
///
/// With the feature `serde` it can be kept, and read again after a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Identity {
    /// The kernel's index of the device within its namespace.
    pub ifindex: u32,
    /// Inode number of the device's directory in sysfs (`stat -L /sys/class/net/NAME`), where it
    /// is known. It survives renames and moves to other namespaces, and no other device gets
    /// it before the host starts anew.
    pub inode: Option<u64>,
}

impl Identity {
    /// A device of which only the index is known.
    pub const fn of_ifindex(ifindex: u32) -> Self {
        Self {
            ifindex,
            inode: None,
        }
    }

    /// The same with its inode number.
    #[must_use]
    pub const fn with_inode(self, inode: u64) -> Self {
        Self {
            inode: Some(inode),
            ..self
        }
    }

    /// The inode number, where this is the device with that index.
    pub(crate) fn inode_of(self, ifindex: u32) -> Option<u64> {
        self.inode.filter(|_| self.ifindex == ifindex)
    }

    /// Does nothing speak against it that this is that device?
    pub(crate) fn may_be(self, other: Self) -> bool {
        match (self.inode, other.inode) {
            // A device that was moved away and back can have another index.
            (Some(one), Some(other)) => one == other,
            (None, _) | (_, None) => self.ifindex == other.ifindex,
        }
    }
}

/// So that a [`Target`] and whatever can become one are taken alike.
impl From<std::convert::Infallible> for Error {
    fn from(never: std::convert::Infallible) -> Self {
        match never {}
    }
}
