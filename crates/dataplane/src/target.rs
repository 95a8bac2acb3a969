//! Where the verdict maps send a new connection: one of the shared chains.

use std::fmt;

use portolan_model::{Action, Backend, Masquerade};

/// Indices of `endpoints` from here on belong to `cluster-services`. Above any count of endpoints a Service may
/// have: Services with 100,000 are known (S12).
pub const CLUSTER_OFFSET: u32 = 1 << 20;

/// Which verdict map, and with it which range of indices of `endpoints`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// `services`: every source, unless the other side took it first.
    Outside,
    /// `cluster-services`: pods and this node, for frontends that treat them differently (S45).
    Cluster,
}

/// A shared chain that picks one of `count` endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pick {
    pub side: Side,
    pub masquerade: Masquerade,
    pub count: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    Pick(Pick),
    /// S38.
    Refuse,
    /// S39.
    Drop,
    /// Read from the kernel, never wanted: a verdict we do not write.
    Unknown,
}

impl Side {
    pub const ALL: [Side; 2] = [Side::Outside, Side::Cluster];

    pub fn offset(self) -> u32 {
        match self {
            Side::Outside => 0,
            Side::Cluster => CLUSTER_OFFSET,
        }
    }

    fn prefix(self) -> &'static str {
        match self {
            Side::Outside => "",
            Side::Cluster => "cluster-",
        }
    }
}

impl Target {
    pub fn pick(self) -> Option<Pick> {
        match self {
            Target::Pick(pick) => Some(pick),
            Target::Refuse | Target::Drop | Target::Unknown => None,
        }
    }
}

impl Pick {
    /// The chains that a verdict for this one needs.
    pub fn chains(self) -> impl Iterator<Item = Pick> {
        let marking = (self.masquerade != Masquerade::Never).then_some(self);
        [self.plain()].into_iter().chain(marking)
    }

    /// The chain without marks, which the marking ones go on to.
    pub fn plain(self) -> Pick {
        Pick { masquerade: Masquerade::Never, ..self }
    }

    /// The inverse of [`Pick`]'s `Display`.
    pub fn parse(name: &str) -> Option<Pick> {
        let (side, rest) = match name.strip_prefix(Side::Cluster.prefix()) {
            Some(rest) => (Side::Cluster, rest),
            None => (Side::Outside, name),
        };
        let (stem, count) = rest.rsplit_once('-')?;
        let masquerade = [Masquerade::Never, Masquerade::NonPods, Masquerade::Always]
            .into_iter()
            .find(|m| stem.strip_suffix("pick") == Some(masquerade_prefix(*m)))?;
        let pick = Pick { side, masquerade, count: count.parse().ok()? };
        (pick.count > 0 && pick.to_string() == name).then_some(pick)
    }
}

impl fmt::Display for Pick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}pick-{}", self.side.prefix(), masquerade_prefix(self.masquerade), self.count)
    }
}

fn masquerade_prefix(masquerade: Masquerade) -> &'static str {
    match masquerade {
        Masquerade::Never => "",
        Masquerade::NonPods => "nonpod-",
        Masquerade::Always => "masq-",
    }
}

/// An action in the kernel's words. Without a detector nothing tells pods apart, and `NonPods` is `Never`.
pub fn translate(action: &Action, side: Side, detector: bool) -> (Target, &[Backend]) {
    let balance = match action {
        Action::Balance(balance) => balance,
        Action::Reject => return (Target::Refuse, &[]),
        Action::Drop => return (Target::Drop, &[]),
    };
    let masquerade = match balance.masquerade {
        Masquerade::NonPods if !detector => Masquerade::Never,
        masquerade => masquerade,
    };
    let backends = &balance.backends[..balance.backends.len().min(CLUSTER_OFFSET as usize)];
    match backends.len() as u32 {
        0 => (Target::Refuse, &[]),
        count => (Target::Pick(Pick { side, masquerade, count }), backends),
    }
}
