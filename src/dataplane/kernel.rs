//! Our two tables in the kernel: observed, written, removed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::Context;
use portolan_dataplane::{Dataplane, KernelState, Step, table_id};
use portolan_model::Family;
use portolan_nft::{Command, Dumped, TableId};

use super::nft::{CommitError, NftSocket};

const FORGET_TRIES: usize = 3;

/// What writing took, and whom it failed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    pub took: BTreeMap<Family, Duration>,
    pub failed: BTreeSet<Family>,
}

/// Blocks: the kernel does a transaction while it is sent.
pub struct Kernel {
    socket: NftSocket,
    lacks: Option<Family>,
}

impl Kernel {
    /// In the network namespace of the calling thread.
    pub fn open() -> anyhow::Result<Kernel> {
        Ok(Kernel { socket: NftSocket::open().context("nf_tables socket")?, lacks: lacking_family() })
    }

    /// The family that it has nothing for (S77): nothing of it is read or written.
    pub fn lacks(&self) -> Option<Family> {
        self.lacks
    }

    /// Reads both tables whole: for the start and after a failure, never for a change.
    pub fn observe(&mut self) -> anyhow::Result<KernelState> {
        Ok(KernelState { ipv4: self.dump(Family::Ipv4)?, ipv6: self.dump(Family::Ipv6)? })
    }

    /// One transaction: done whole, or an error and nothing done. Where it takes endpoints away, clients that were
    /// remembered for them meanwhile are forgotten in a second one.
    pub fn apply(&mut self, step: &Step) -> anyhow::Result<()> {
        let context = || format!("table {}", step.table());
        if step.forgets().is_empty() {
            return self.socket.commit(&step.table(), &step.commands()).with_context(context);
        }
        self.commit_and_forget(step, step.commands()).with_context(context)?;
        self.commit_and_forget(step, Vec::new()).with_context(context)
    }

    /// What is to be forgotten may expire before it is deleted, and then nothing is done.
    fn commit_and_forget(&mut self, step: &Step, commands: Vec<Command>) -> anyhow::Result<()> {
        let table = step.table();
        let mut tries = FORGET_TRIES;
        loop {
            let mut remembered = BTreeMap::new();
            for map in step.forgets() {
                remembered.insert(map.clone(), self.socket.elements(&table, map)?);
            }
            let mut commands = commands.clone();
            commands.extend(step.forget(&remembered));
            tries -= 1;
            match self.socket.commit(&table, &commands) {
                Err(CommitError::Refused(_)) if tries > 0 => {}
                other => return Ok(other?),
            }
        }
    }

    /// Writes all that `dataplane` has left to write, and returns the number of transactions. A family that fails does not
    /// keep the other from being written. After an error `dataplane` needs an observation before it goes on; what was
    /// written stays.
    pub fn write(&mut self, dataplane: &mut Dataplane) -> anyhow::Result<usize> {
        self.write_measured(dataplane, &mut Measured::default())
    }

    /// The same, and adds to `measured` what each family had of it.
    pub fn write_measured(
        &mut self,
        dataplane: &mut Dataplane,
        measured: &mut Measured,
    ) -> anyhow::Result<usize> {
        let lacks = self.lacks.map(table_id);
        let steps = dataplane.steps().into_iter().filter(|step| Some(step.table()) != lacks);
        let steps: Vec<Step> = steps.collect();
        let many = steps.len();
        let mut failed: BTreeMap<TableId, anyhow::Error> = BTreeMap::new();
        for step in steps {
            // The steps of one table build on each other.
            if failed.contains_key(&step.table()) {
                continue;
            }
            let start = Instant::now();
            let applied = self.apply(&step);
            *measured.took.entry(step.family()).or_default() += start.elapsed();
            match applied {
                Ok(()) => dataplane.applied(&step),
                Err(error) => {
                    measured.failed.insert(step.family());
                    failed.insert(step.table(), error);
                }
            }
        }
        if failed.is_empty() {
            return Ok(many);
        }
        dataplane.failed();
        Err(joined(failed.into_values()))
    }

    /// Removes both tables, and with them everything of ours in nf_tables.
    pub fn cleanup(&mut self) -> anyhow::Result<()> {
        for family in Family::ALL.into_iter().filter(|family| self.lacks != Some(*family)) {
            let table = table_id(family);
            let commands = [Command::AddTable, Command::DeleteTable];
            self.socket.commit(&table, &commands).with_context(|| format!("delete table {table}"))?;
        }
        Ok(())
    }

    /// Changes with every transaction of anyone in this network namespace.
    pub fn generation(&mut self) -> anyhow::Result<u32> {
        Ok(self.socket.generation()?)
    }

    fn dump(&mut self, family: Family) -> anyhow::Result<Option<Dumped>> {
        if self.lacks == Some(family) {
            return Ok(None);
        }
        let table = table_id(family);
        let dumped = self.socket.dump_table(&table).with_context(|| format!("read table {table}"))?;
        Ok(dumped.map(|(dumped, _)| dumped))
    }
}

/// IPv4 is always there; IPv6 may be left out of a kernel, or switched off when it starts.
fn lacking_family() -> Option<Family> {
    let refused = std::net::UdpSocket::bind((std::net::Ipv6Addr::UNSPECIFIED, 0)).err();
    refused.filter(|error| error.raw_os_error() == Some(libc::EAFNOSUPPORT)).map(|_| Family::Ipv6)
}

/// Several errors as one sentence.
pub fn joined(errors: impl Iterator<Item = anyhow::Error>) -> anyhow::Error {
    anyhow::anyhow!("{}", errors.map(|error| format!("{error:#}")).collect::<Vec<_>>().join("; "))
}
