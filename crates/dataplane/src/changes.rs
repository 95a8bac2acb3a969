//! Changes as they are found, and in the order in which they are to be written.

use std::array;
use std::iter::Flatten;

use crate::change::{Change, Phase};

/// So many in a piece: what was cut into transactions is free again while the rest of a large load still waits.
const PIECE: usize = 1024;

/// In order of phase, and within a phase in the order in which they came.
#[derive(Debug, Default)]
pub struct Changes {
    phases: [Vec<Vec<Change>>; Phase::COUNT],
    len: usize,
}

impl Changes {
    pub fn push(&mut self, change: Change) {
        let pieces = &mut self.phases[change.phase() as usize];
        self.len += 1;
        match pieces.last_mut() {
            Some(piece) if piece.len() < PIECE => piece.push(change),
            _ => pieces.push(vec![change]),
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn iter(&self) -> impl Iterator<Item = &Change> {
        self.phases.iter().flatten().flatten()
    }
}

impl Extend<Change> for Changes {
    fn extend<I: IntoIterator<Item = Change>>(&mut self, changes: I) {
        changes.into_iter().for_each(|change| self.push(change));
    }
}

impl IntoIterator for Changes {
    type Item = Change;
    type IntoIter = Flatten<Flatten<array::IntoIter<Vec<Vec<Change>>, { Phase::COUNT }>>>;

    fn into_iter(self) -> Self::IntoIter {
        self.phases.into_iter().flatten().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_come_by_phase_then_as_they_were_found() {
        let vip =
            |number: u32, there| Change::Vip { address: std::net::Ipv4Addr::from(number).into(), there };
        let found =
            (0..3 * PIECE as u32).flat_map(|number| [vip(number, number % 2 == 0), Change::Set("a".into())]);
        let mut changes = Changes::default();
        changes.extend(found.clone());
        let mut sorted: Vec<Change> = found.collect();
        sorted.sort_by_key(Change::phase);
        assert_eq!(
            (changes.len(), changes.iter().collect::<Vec<_>>()),
            (sorted.len(), sorted.iter().collect())
        );
        assert_eq!(changes.into_iter().collect::<Vec<_>>(), sorted);
    }
}
