//! When something is to happen next.

use std::time::{Duration, Instant};

/// The timers of one connection (RFC 4271 10, RFC 9687). A peer has one more, ConnectRetry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timer {
    Hold,
    Keepalive,
    SendHold,
}

impl Timer {
    const ALL: [Timer; 3] = [Timer::Hold, Timer::Keepalive, Timer::SendHold];
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Timers([Option<Instant>; Timer::ALL.len()]);

impl Timers {
    pub(crate) fn set(&mut self, timer: Timer, at: Option<Instant>) {
        self.0[timer as usize] = at;
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        self.0.iter().flatten().min().copied()
    }

    /// Stops one of the timers that have expired, and tells which.
    pub(crate) fn pop(&mut self, now: Instant) -> Option<Timer> {
        let timer =
            Timer::ALL.into_iter().find(|timer| self.0[*timer as usize].is_some_and(|at| at <= now))?;
        self.set(timer, None);
        Some(timer)
    }
}

/// RFC 4271 10: timers run for 0.75 to 1.0 of their time, so that peers do not act in step. The sequence follows from
/// the seed alone (splitmix64).
#[derive(Clone, Debug)]
pub(crate) struct Jitter(u64);

impl Jitter {
    pub(crate) fn new(seed: u64) -> Self {
        Jitter(seed)
    }

    pub(crate) fn of(&mut self, time: Duration) -> Duration {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let parts = ((x ^ (x >> 31)) % 257) as u32;
        time * 3 / 4 + time / 4 * parts / 256
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_stays_in_three_quarters_to_one_rfc4271_10() {
        let mut jitter = Jitter::new(7);
        let times: Vec<_> = (0..1000).map(|_| jitter.of(Duration::from_secs(40)).as_millis()).collect();
        assert!(times.iter().all(|time| (30_000..=40_000).contains(time)));
        assert!(times.iter().any(|time| *time < 30_500) && times.iter().any(|time| *time > 39_500));
    }
}
