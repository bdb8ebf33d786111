//! An assembler for classic BPF. A program is made from its end to its start: classic BPF only
//! jumps forward, so every target is known by then.

/// `struct sock_filter`
pub(crate) type Instruction = libc::sock_filter;

/// `BPF_MAXINSNS` of `include/uapi/linux/bpf_common.h`.
pub(super) const MAX_INSTRUCTIONS: usize = 4096;

// Instruction codes, `include/uapi/linux/bpf_common.h` and `filter.h`.
pub(super) const LD_W_ABS: u16 = 0x20;
pub(super) const LD_H_ABS: u16 = 0x28;
pub(super) const LD_B_ABS: u16 = 0x30;
pub(super) const LD_W_IND: u16 = 0x40;
pub(super) const LD_IMM: u16 = 0x00;
pub(super) const LDX_IMM: u16 = 0x01;
pub(super) const LDX_MEM: u16 = 0x61;
pub(super) const ST: u16 = 0x02;
pub(super) const OR_X: u16 = 0x4c;
pub(super) const AND: u16 = 0x54;
pub(super) const LSH: u16 = 0x64;
pub(super) const TAX: u16 = 0x07;
pub(super) const JEQ: u16 = 0x15;
pub(super) const JGT: u16 = 0x25;
const JA: u16 = 0x05;
const RET: u16 = 0x06;

/// Where an instruction is, counted from the end of the program.
pub(super) type Label = usize;

/// A program under construction, last instruction first.
#[derive(Default)]
pub(super) struct Program {
    reversed: Vec<Instruction>,
}

impl Program {
    /// Puts an instruction before `next`, which must follow it.
    pub(super) fn emit(&mut self, code: u16, k: u32, next: Label) -> Label {
        self.fall_through(next);
        self.push(code, 0, 0, k)
    }

    fn push(&mut self, code: u16, jt: u8, jf: u8, k: u32) -> Label {
        self.reversed.push(Instruction { code, jt, jf, k });
        self.reversed.len()
    }

    /// Makes sure that what is put next runs into `target`.
    fn fall_through(&mut self, target: Label) {
        if self.reversed.len() != target {
            let distance = (self.reversed.len() - target) as u32;
            self.push(JA, 0, 0, distance);
        }
    }

    /// Ends the program: pass the message, whole, or drop it.
    pub(super) fn verdict(&mut self, pass: bool) -> Label {
        self.push(RET, 0, 0, if pass { u32::MAX } else { 0 })
    }

    pub(super) fn pass(&mut self) -> Label {
        self.verdict(true)
    }

    /// Compares A with `k`. A branch reaches 255 instructions; further targets get a jump of their
    /// own.
    pub(super) fn branch(&mut self, code: u16, k: u32, yes: Label, no: Label) -> Label {
        let no = self.near(no);
        let yes = self.near(yes);
        // Making `yes` near may have put `no` one too far.
        let no = self.near(no);
        let here = self.reversed.len();
        self.push(code, (here - yes) as u8, (here - no) as u8, k)
    }

    /// A label within reach of a branch that has yet to be put, with room for one more jump
    /// between.
    pub(super) fn near(&mut self, target: Label) -> Label {
        let distance = self.reversed.len() - target;
        if distance < 254 {
            target
        } else {
            self.push(JA, 0, 0, distance as u32)
        }
    }

    /// A binary search for A among sorted ranges; `hit` is asked for where it is needed, so that it
    /// is always near.
    pub(super) fn search(
        &mut self,
        ranges: &[(u32, u32)],
        miss: Label,
        mut hit: impl FnMut(&mut Self) -> Label + Copy,
    ) -> Label {
        let Some(&(low, high)) = ranges.get(ranges.len() / 2) else {
            // Nothing to find here; keep the target within reach.
            return self.near(miss);
        };
        let (left, right) = ranges.split_at(ranges.len() / 2);
        let right = self.search(right.get(1..).unwrap_or_default(), miss, hit);
        let left = self.search(left, miss, hit);
        let hit = hit(self);
        if low == high {
            let other = self.branch(JGT, low, right, left);
            self.branch(JEQ, low, hit, other)
        } else {
            let upper = self.branch(JGT, high, right, hit);
            match low.checked_sub(1) {
                Some(below) => self.branch(JGT, below, upper, left),
                None => upper,
            }
        }
    }

    pub(super) fn finish(self) -> Vec<Instruction> {
        let Self { mut reversed } = self;
        reversed.reverse();
        reversed
    }
}
