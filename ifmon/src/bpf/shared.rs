//! What the programs are told and what they count, in memory that they share with this process.
//!
//! Not by bpf(2), as after each record somebody asks for the counters: on a processor where a process
//! is inside such a call for a map, the kernel runs no program of a kprobe
//! (`bpf_disable_instrumentation`). Where the kernel can be preempted there, whoever came next would
//! change a device unseen.

use std::{
    fmt::Display,
    fs,
    mem::offset_of,
    os::fd::AsFd as _,
    ptr::{self, NonNull},
    sync::atomic::{AtomicU32, Ordering, fence},
};

use aya::{Ebpf, maps::Map};
use ifmon_ebpf::{Control, Counters, Shared as Element};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::Unavailable;

/// The kernel's list of all processors that there can be, as `0-3,8`.
const POSSIBLE: &str = "/sys/devices/system/cpu/possible";

/// How many elements `SHARED` needs: a `Control`, and one for each number that a processor can have.
pub(super) fn elements() -> Result<u32, Unavailable> {
    let list = fs::read_to_string(POSSIBLE);
    if let Err(error) = &list
        && error.raw_os_error() == Some(libc::EMFILE)
    {
        return Err(Unavailable::OpenFiles);
    }
    let cpus = list.ok().and_then(|list| cpus_of(&list));
    cpus.and_then(|cpus| cpus.checked_add(1)).ok_or_else(|| {
        unreadable(format_args!(
            "without the number of processors; show this process {POSSIBLE}"
        ))
    })
}

/// Then a loss would go unnoticed.
fn unreadable(why: impl Display) -> Unavailable {
    Unavailable::other(format!("the program's counters cannot be read {why}"))
}

fn cpus_of(list: &str) -> Option<u32> {
    let last = list.trim().rsplit([',', '-']).next()?;
    last.parse::<u32>().ok()?.checked_add(1)
}

/// The map `SHARED`, mapped.
pub(super) struct Shared {
    elements: NonNull<Element>,
    count: usize,
}

// SAFETY: the memory is of the process, and given back once. What is written is atomic or not looked at meanwhile.
unsafe impl Send for Shared {}

impl Shared {
    pub(super) fn take(object: &mut Ebpf) -> Result<Self, Unavailable> {
        let Some(Map::Array(map)) = object.take_map("SHARED") else {
            return Err(Unavailable::other("a map is not in the object"));
        };
        let count = elements()? as usize;
        // SAFETY: a new mapping, wherever there is room.
        let start = unsafe {
            let (access, shared) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
            let length = count * size_of::<Element>();
            mmap(ptr::null_mut(), length, access, shared, map.fd().as_fd(), 0)
        };
        let start = start.map_err(|error| unreadable(format_args!("in shared memory: {error}")))?;
        let elements = NonNull::new(start.cast())
            .ok_or_else(|| unreadable("in shared memory: it has no address"))?;
        Ok(Self { elements, count })
    }

    /// The sum of all processors.
    pub(super) fn counters(&self) -> Counters {
        // Whoever has read the ring buffer empty is to see each event by now that found it full.
        fence(Ordering::SeqCst);
        let mut sum = Counters::default();
        for element in 1..self.count {
            // SAFETY: so many are mapped, until this is dropped; any bits are valid.
            let cpu: Counters = unsafe { self.elements.add(element).cast().read_volatile() };
            sum.seen += cpu.seen;
            sum.matched += cpu.matched;
            sum.ignored += cpu.ignored;
            sum.dropped += cpu.dropped;
            sum.refused += cpu.refused;
        }
        sum
    }

    /// Has every change sent that threads of this name make.
    pub(super) fn trace(&mut self, comm: [u8; 16]) {
        // SAFETY: the first element; the programs do not look at the name while `traced` is 0.
        unsafe { (&raw mut (*self.elements.as_ptr().cast::<Control>()).comm).write_volatile(comm) };
        self.set(offset_of!(Control, traced), 1);
    }

    pub(super) fn trace_nobody(&mut self) {
        self.set(offset_of!(Control, traced), 0);
    }

    /// Has every change of every device sent, or no longer.
    pub(super) fn set_open(&mut self, is_open: bool) {
        self.set(offset_of!(Control, open), u32::from(is_open));
    }

    /// With more devices than this, those that can be missed are forgotten.
    pub(super) fn set_crowd(&mut self, crowd: u32) {
        self.set(offset_of!(Control, crowd), crowd);
    }

    /// In how many namespaces there are patterns.
    pub(super) fn set_patterned(&mut self, count: u32) {
        self.set(offset_of!(Control, patterned), count);
    }

    /// So many were inserted in `DEVICES`; wraps around for those that were taken out.
    pub(super) fn count_devices(&mut self, summand: u32) {
        let devices = self.field(offset_of!(Control, devices));
        devices.fetch_add(summand, Ordering::SeqCst);
    }

    fn set(&mut self, offset: usize, value: u32) {
        self.field(offset).store(value, Ordering::SeqCst);
    }

    /// `offset` is that of a field of the `Control`.
    fn field(&mut self, offset: usize) -> &AtomicU32 {
        // SAFETY: in the first element, and aligned. The programs read and change it in one piece.
        unsafe { AtomicU32::from_ptr(self.elements.as_ptr().byte_add(offset).cast()) }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let length = self.count * size_of::<Element>();
        // SAFETY: it was mapped with this length, and nobody has a reference into it. It cannot fail then.
        let _ = unsafe { munmap(self.elements.as_ptr().cast(), length) };
    }
}

#[cfg(test)]
mod tests {
    use super::cpus_of;

    #[test]
    fn there_is_an_element_for_the_last_processor() {
        assert_eq!(cpus_of("0\n"), Some(1));
        assert_eq!(cpus_of("0-3\n"), Some(4));
        assert_eq!(cpus_of("0-3,8\n"), Some(9));
        assert_eq!(cpus_of("0,2-127\n"), Some(128));
        assert_eq!(cpus_of("\n"), None);
    }
}
