//! Targets as numbers: what `services` and `cluster-services` give for a frontend, and `targets` takes.
//!
//! The number says all of its target, so that it is the same in every agent and is read back without a table. nft shows it as
//! `<major>:<minor>`, both hexadecimal: `2200:3` is `nonpod-pick-3-from-2`.

use portolan_model::Masquerade;

use crate::shard::Shard;
use crate::target::{Pick, Side, Target};

/// Endpoints, at most [`CLUSTER_OFFSET`](crate::target::CLUSTER_OFFSET).
const COUNT: u32 = (1 << 24) - 1;
const AFFINE: u32 = 1 << 24;
const NONPODS: u32 = 1 << 25;
const MASQUERADE: u32 = 1 << 26;
const CLUSTER: u32 = 1 << 27;
/// Two bits: the number of the shard.
const SHARD_SHIFT: u32 = 28;
/// What has no endpoints.
const FIXED: u32 = 1 << 31;

impl Target {
    pub fn code(self) -> u32 {
        match self {
            Target::Pick(pick) => pick.code(),
            Target::Refuse => FIXED | 1,
            Target::RefuseOnLocalhost => FIXED | 2,
            Target::Drop => FIXED | 3,
            Target::Unknown => 0,
        }
    }

    /// The inverse of [`Target::code`]; Unknown for what we do not write.
    pub fn of_code(code: u32) -> Target {
        let masquerade = match code & (NONPODS | MASQUERADE) {
            0 => Masquerade::Never,
            NONPODS => Masquerade::NonPods,
            _ => Masquerade::Always,
        };
        let side = if code & CLUSTER == 0 { Side::Outside } else { Side::Cluster };
        let shard = Shard::ALL[(code >> SHARD_SHIFT) as usize % Shard::COUNT];
        let pick = Pick { side, masquerade, affine: code & AFFINE != 0, count: code & COUNT, shard };
        let pick = Some(Target::Pick(pick)).filter(|_| pick.count > 0);
        let known = Target::FIXED.into_iter().chain(pick);
        known.into_iter().find(|target| target.code() == code).unwrap_or(Target::Unknown)
    }
}

impl Pick {
    pub fn code(self) -> u32 {
        let when = |on, bit| if on { bit } else { 0 };
        let masquerade = match self.masquerade {
            Masquerade::Never => 0,
            Masquerade::NonPods => NONPODS,
            Masquerade::Always => MASQUERADE,
        };
        u32::from(self.shard.number()) << SHARD_SHIFT
            | when(self.side == Side::Cluster, CLUSTER)
            | masquerade
            | when(self.affine, AFFINE)
            | self.count & COUNT
    }
}

#[cfg(test)]
mod tests {
    use itertools::Itertools;
    use portolan_nft::Atom;

    use super::*;
    use crate::target::CLUSTER_OFFSET;

    #[test]
    fn numbers_are_targets_and_back() {
        let masquerades = [Masquerade::Never, Masquerade::NonPods, Masquerade::Always];
        let shapes = masquerades.into_iter().flat_map(|m| [(m, false), (m, true)]);
        let picks = shapes.flat_map(|(masquerade, affine)| {
            let sizes = [1, 65_536, CLUSTER_OFFSET].into_iter().cartesian_product(Shard::ALL);
            let places = Side::ALL.into_iter().cartesian_product(sizes);
            places.map(move |(side, (count, shard))| Pick { side, masquerade, affine, count, shard })
        });
        for target in Target::FIXED.into_iter().chain(picks.map(Target::Pick)) {
            assert_eq!(Target::of_code(target.code()), target, "{:#x}", target.code());
        }
    }

    #[test]
    fn other_numbers_are_of_nobody() {
        for code in [
            0,
            FIXED,
            FIXED | 4,
            FIXED | AFFINE | 1,
            FIXED | 1 << 28 | 1,
            1 << 30 | 3,
            CLUSTER,
            NONPODS | MASQUERADE | 3,
        ] {
            assert_eq!(Target::of_code(code), Target::Unknown, "{code:#x}");
        }
        assert_eq!(Target::of_code(u32::MAX), Target::Unknown);
    }

    #[test]
    fn what_nft_shows_of_them() {
        let check = |target: Target, shown| {
            assert_eq!(Atom::Priority(target.code()).to_string(), shown, "{target:?}")
        };
        let pick = |chain| Target::Pick(Pick::parse(chain).unwrap());
        check(pick("pick-10-from-0"), "0:a");
        check(pick("nonpod-pick-3-from-2"), "2200:3");
        check(pick("cluster-masq-affine-pick-70000-from-3"), "3d01:1170");
        check(Target::Refuse, "8000:1");
    }
}
