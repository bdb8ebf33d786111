//! The decisions of a run: drawn from a seed, or taken from a list, which can be made shorter.

/// Where a run's decisions come from. When they are used up the run comes to its end.
///
/// They come in turns, each of which decides on something of its own: so a turn can be left out,
/// and what is decided in the others is still decided in the same places.
#[derive(Debug)]
pub(crate) struct Decisions {
    random: u64,
    /// How many turns are still to be drawn.
    left: u32,
    is_recorded: bool,
    turns: Vec<Vec<u32>>,
    /// Which turn it is, counted from 1, and how many of its decisions were taken.
    at: (usize, usize),
}

impl Decisions {
    /// So many turns, which depend on the seed alone.
    pub(crate) const fn drawn(seed: u64, turns: u32) -> Self {
        Self {
            random: seed,
            left: turns,
            is_recorded: false,
            turns: Vec::new(),
            at: (0, 0),
        }
    }

    /// The same, to be had as a list afterwards.
    fn recorded(seed: u64, turns: u32) -> Self {
        Self {
            is_recorded: true,
            ..Self::drawn(seed, turns)
        }
    }

    fn listed(turns: Vec<Vec<u32>>) -> Self {
        Self {
            turns,
            ..Self::drawn(0, 0)
        }
    }

    /// None at all: always the tamest.
    pub(crate) const fn none() -> Self {
        Self::drawn(0, 0)
    }

    /// To be taken once more.
    pub(crate) fn again(&self) -> Self {
        Self::listed(self.turns.clone())
    }

    /// Those that were taken.
    pub(crate) fn turns(&self) -> &[Vec<u32>] {
        &self.turns
    }

    /// Begins the next turn; false when there is none.
    pub(crate) fn turn(&mut self) -> bool {
        if self.left > 0 {
            self.left -= 1;
            if self.is_recorded {
                self.turns.push(Vec::new());
            }
            self.at.0 += 1;
            return true;
        }
        self.at = (self.at.0 + 1, 0);
        self.at.0 <= self.turns.len() && !self.is_recorded
    }

    /// A number below this one, which is not 0. Of two the lower one is the tamer decision, and 0
    /// when there are no more.
    pub(crate) fn below(&mut self, end: u32) -> u32 {
        if self.left > 0 || self.random != 0 {
            let decision = (mixed(&mut self.random) >> 32) as u32 % end;
            if self.is_recorded
                && let Some(turn) = self.turns.last_mut()
            {
                turn.push(decision);
            }
            return decision;
        }
        let (turn, at) = self.at;
        self.at.1 += 1;
        let turn = self.turns.get(turn.wrapping_sub(1));
        turn.and_then(|turn| turn.get(at))
            .copied()
            .unwrap_or_default()
            % end
    }

    pub(crate) fn index(&mut self, end: usize) -> usize {
        self.below(end as u32) as usize
    }

    /// True once in so many times.
    pub(crate) fn chance(&mut self, once_in: u32) -> bool {
        self.below(once_in) + 1 == once_in
    }
}

/// The next of the numbers that look random and depend on the seed alone (SplitMix64).
pub(crate) fn mixed(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *seed;
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

/// Makes a failing run as small as it gets: tries it without some of its turns, and with tamer
/// decisions. `fails` says whether it still does.
pub(crate) fn shrink(
    seed: u64,
    turns: u32,
    mut fails: impl FnMut(&mut Decisions) -> bool,
) -> Decisions {
    let mut decisions = Decisions::recorded(seed, turns);
    let has_failed = fails(&mut decisions);
    debug_assert!(has_failed, "a run depends on its decisions alone");
    let mut turns = decisions.turns;
    let mut try_out = |turns: &mut Vec<Vec<u32>>, tamer: Vec<Vec<u32>>| {
        let mut decisions = Decisions::listed(tamer);
        let fails = fails(&mut decisions);
        if fails {
            // What was not asked for by then is of no use.
            decisions.turns.truncate(decisions.at.0);
            *turns = decisions.turns;
        }
        fails
    };
    for _ in 0..ROUNDS {
        let before = turns.clone();
        // The first turn decides on the setting.
        let mut size = turns.len() / 2;
        while size > 0 {
            let mut at = 1;
            while at < turns.len() {
                let end = (at + size).min(turns.len());
                let mut fewer = turns.clone();
                fewer.drain(at..end);
                if !try_out(&mut turns, fewer) {
                    at += size;
                }
            }
            size /= 2;
        }
        let mut turn = 0;
        while turn < turns.len() {
            let mut at = 0;
            while turn < turns.len() && at < turns[turn].len() {
                let decision = turns[turn][at];
                for tamer in [0, decision / 2, decision.saturating_sub(1)] {
                    let mut tried = turns.clone();
                    tried[turn][at] = tamer;
                    if tamer < decision && try_out(&mut turns, tried) {
                        break;
                    }
                }
                at += 1;
            }
            turn += 1;
        }
        if turns == before {
            break;
        }
    }
    for turn in &mut turns {
        let end = turn.iter().rposition(|&decision| decision != 0);
        turn.truncate(end.map_or(0, |end| end + 1));
    }
    Decisions::listed(turns)
}

/// How often all of that is done.
const ROUNDS: usize = 6;
