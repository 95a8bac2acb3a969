//! Whether the core that this thread runs on is all ours at the moment. On machines like ours a core may be half of one, whose other
//! half belongs to someone else: while that one works, everything takes up to 1.8 times as long, for tenths of a second or for many.

use std::time::{Duration, Instant};

use crate::usage::thread_cpu;

/// How much slower than the quickest counts as alone.
const TOLERANCE: f64 = 1.15;

/// The quickest pace that was seen so far, in any unit.
#[derive(Clone, Copy, Debug)]
pub struct Quickest(f64);

impl Default for Quickest {
    fn default() -> Self {
        Quickest(f64::INFINITY)
    }
}

impl Quickest {
    /// Takes note of how long the same work took now.
    pub fn note(&mut self, took: f64) {
        self.0 = self.0.min(took);
    }

    /// Whether work that took so long had the core to itself.
    pub fn is_alone(&self, took: f64) -> bool {
        took <= self.0 * TOLERANCE
    }
}

/// What those of `rounds` gave that had the core to themselves, once they are enough. Each comes with how long a piece of work that
/// is always the same took beside it.
pub fn alone<T: Copy>(rounds: &[(f64, T)], quickest: Quickest, enough: usize) -> Option<Vec<T>> {
    let alone: Vec<T> =
        rounds.iter().filter(|(pace, _)| quickest.is_alone(*pace)).map(|(_, of)| *of).collect();
    (alone.len() >= enough).then_some(alone)
}

/// Those beside the quickest references, where too few had the core to themselves.
pub fn quickest<T: Copy>(rounds: &[(f64, T)], many: usize) -> Vec<T> {
    let mut rounds = rounds.to_vec();
    rounds.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    rounds.into_iter().take(many).map(|(_, of)| of).collect()
}

/// Says that [`quickest`] was needed.
pub fn was_never_alone() {
    eprintln!("  the core was not ours alone for long enough: the quickest rounds count");
}

/// A fixed piece of work, by the thread's CPU time in milliseconds.
pub fn reference() -> f64 {
    let start = thread_cpu();
    let mut state = 1u64;
    let mut numbers: Vec<u64> = (0..16_384)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        })
        .collect();
    numbers.sort();
    std::hint::black_box(&numbers);
    (thread_cpu() - start).as_secs_f64() * 1e3
}

/// Ends a search for quiet moments.
#[derive(Clone, Copy, Debug)]
pub struct Patience(Instant);

impl Patience {
    /// A thirtieth of the time in a quick run.
    pub fn of(time: Duration, quick: bool) -> Patience {
        Patience(Instant::now() + if quick { time / 30 } else { time })
    }

    pub fn is_over(&self) -> bool {
        Instant::now() > self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_on_half_a_core_do_not_count() {
        let mut best = Quickest::default();
        let rounds: Vec<(f64, u32)> = (0..9).map(|n| if n % 3 == 0 { (1.0, n) } else { (1.8, n) }).collect();
        rounds.iter().for_each(|(pace, _)| best.note(*pace));
        assert_eq!(alone(&rounds, best, 3), Some(vec![0, 3, 6]));
        assert_eq!(alone(&rounds, best, 4), None);
        assert_eq!(quickest(&rounds, 4), [0, 3, 6, 1]);
    }

    #[test]
    fn the_reference_is_work() {
        assert!(reference() > 0.01);
    }
}
