//! Removes what a kube-proxy left in the kernel of this network namespace (S74): what goes is decided in
//! `portolan_dataplane::take_over`.

pub mod ipvs;

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use portolan_dataplane::take_over::{self, KUBE_PROXY, Removal};
use portolan_nft::TableId;

use super::nft::{CommitError, NftSocket};

/// Others may write between our look at a table and our transaction; each try looks again.
const TRIES: usize = 5;
/// iptables' older half: the tables that the kernel has, and the programs that read and write them.
const LEGACY: [[&str; 3]; 2] = [
    ["ip_tables_names", "iptables-legacy-save", "iptables-legacy-restore"],
    ["ip6_tables_names", "ip6tables-legacy-save", "ip6tables-legacy-restore"],
];

/// What became of the leftovers: one failure does not keep the rest.
#[derive(Debug, Default)]
pub struct Outcome {
    /// A sentence for each table.
    pub removed: Vec<String>,
    pub failed: Vec<anyhow::Error>,
}

/// Removes nftables tables, iptables chains, and the sets that these asked; IPVS's servers are for [`ipvs::remove`]. Connections
/// that stand go on as long as some nat chain is left in the kernel, so our own rules must be there before (and serve).
pub fn remove() -> Outcome {
    let mut outcome = Outcome::default();
    match NftSocket::open().context("nf_tables socket") {
        Ok(mut socket) => take_over::tables().for_each(|table| {
            outcome.count(remove_from(&mut socket, &table).with_context(|| format!("table {table}")));
        }),
        Err(error) => outcome.failed.push(error),
    }
    for [names, save, restore] in LEGACY {
        outcome.count(remove_legacy(names, save, restore));
    }
    outcome.count(ipvs::remove_sets());
    outcome
}

impl Outcome {
    fn count(&mut self, result: anyhow::Result<Option<String>>) {
        match result {
            Ok(removed) => self.removed.extend(removed),
            Err(error) => self.failed.push(error),
        }
    }
}

fn remove_from(socket: &mut NftSocket, table: &TableId) -> anyhow::Result<Option<String>> {
    for _ in 0..TRIES {
        let Some((removal, generation)) = look(socket, table)? else { return Ok(None) };
        match socket.commit_since(table, &removal.commands, generation) {
            Ok(()) => return Ok(Some(format!("table {table}: {}", removal.summary))),
            Err(CommitError::Stale) => {}
            Err(error) => return Err(error.into()),
        }
    }
    bail!("it changed under each of {TRIES} attempts: does a kube-proxy run?")
}

/// Rules go by their handles, so the transaction holds for the generation that was looked at.
fn look(socket: &mut NftSocket, table: &TableId) -> anyhow::Result<Option<(Removal, Option<u32>)>> {
    if !socket.has_table(table)? {
        return Ok(None);
    }
    if *table.name == *KUBE_PROXY {
        return Ok(take_over::removal(table, &Default::default()).map(|removal| (removal, None)));
    }
    let found = socket.dump_table(table)?;
    Ok(found.and_then(|(found, generation)| Some((take_over::removal(table, &found)?, Some(generation)))))
}

fn remove_legacy(names: &str, save: &str, restore: &str) -> anyhow::Result<Option<String>> {
    let tables = std::fs::read_to_string(format!("/proc/thread-self/net/{names}")).unwrap_or_default();
    if tables.trim().is_empty() {
        return Ok(None);
    }
    let saved = Command::new(save).stdin(Stdio::null()).output();
    let saved = saved.with_context(|| {
        format!("{save} is needed to look for a kube-proxy's chains in {}", tables.trim().replace('\n', ", "))
    })?;
    anyhow::ensure!(saved.status.success(), "{save}: {}", String::from_utf8_lossy(&saved.stderr).trim());
    let Some((input, summaries)) = take_over::legacy_removal(&String::from_utf8_lossy(&saved.stdout)) else {
        return Ok(None);
    };
    restore_from(restore, &input)?;
    let said: Vec<String> = summaries.iter().map(|(table, what)| format!("table {table}: {what}")).collect();
    Ok(Some(format!("by {restore}: {}", said.join("; "))))
}

fn restore_from(restore: &str, input: &str) -> anyhow::Result<()> {
    let mut command = Command::new(restore);
    command.args(["--noflush", "--wait"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| restore.to_owned())?;
    child.stdin.take().context("stdin")?.write_all(input.as_bytes()).with_context(|| restore.to_owned())?;
    let ended = child.wait_with_output()?;
    anyhow::ensure!(ended.status.success(), "{restore}: {}", String::from_utf8_lossy(&ended.stderr).trim());
    Ok(())
}
