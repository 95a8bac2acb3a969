//! One kept nf_tables socket: whole transactions in, dumps out.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::time::Duration;

use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};
use portolan_nft::{
    Batch, Command, Content, Dumped, DumpedRule, Element, Message, Name, Request, TableId, generation,
    messages,
};

/// `NETLINK_NETFILTER`.
const NETFILTER: isize = 12;
/// A transaction goes out in one piece, which must fit the send buffer: the largest we make, with room.
const SEND_BUFFER: usize = 256 << 20;
/// Holds the errors of a whole chunk of failing commands.
const RECEIVE_BUFFER: usize = 8 << 20;
/// The kernel sends at most 32 KiB at once.
const RECEIVE_LEN: usize = 64 << 10;
/// Other writers may keep changing the ruleset; each try reads it whole.
const DUMP_TRIES: u32 = 10;
/// Of one set that packets change: what the last left out is forgotten another time.
const ELEMENTS_TRIES: u32 = 3;
/// Before another dump of a set that was not whole, and twice as long before each further one.
const WHILE_IT_GROWS: Duration = Duration::from_millis(20);

/// Calls are synchronous and block: the kernel handles a transaction inside `sendto`, so there is nothing to wait for.
pub struct NftSocket {
    socket: Socket,
    buffer: Vec<u8>,
    seq: u32,
}

/// Why a transaction was not done; then nothing of it was.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    #[error("the ruleset is of another generation than the dump that the transaction was made from")]
    Stale,
    /// In the kernel's order.
    #[error("nf_tables refused the transaction: {}", sentence(.0))]
    Refused(Vec<Refusal>),
    /// More errors than the receive buffer holds.
    #[error("nf_tables refused the transaction, with more errors than there was room for")]
    Overrun,
    #[error("nf_tables answered nothing to a transaction")]
    Unanswered,
    #[error("nf_tables socket: {0}")]
    Io(#[from] io::Error),
}

#[derive(Debug)]
pub struct Refusal {
    /// Index of the command; None: the batch as a whole.
    pub command: Option<usize>,
    /// The command in words, with its table.
    pub what: String,
    pub error: io::Error,
    /// The kernel's own sentence, where it has one.
    pub text: Option<String>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.error)?;
        self.text.iter().try_for_each(|text| write!(f, " ({text})"))
    }
}

fn sentence(refusals: &[Refusal]) -> String {
    match refusals {
        [] => "without a reason".into(),
        [only] => only.to_string(),
        [first, rest @ ..] => format!("{first}, and {} more", rest.len()),
    }
}

#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    #[error("the ruleset changed, or was put in another order, under each of {DUMP_TRIES} dumps")]
    Restless,
    #[error(transparent)]
    Malformed(#[from] portolan_nft::Malformed),
    #[error("nf_tables dump: {0}")]
    Io(#[from] io::Error),
}

impl NftSocket {
    /// In the network namespace of the calling thread.
    pub fn open() -> io::Result<NftSocket> {
        let mut socket = Socket::new(NETFILTER)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        // errors come without an echo of the command, and with the kernel's sentence
        socket.set_cap_ack(true)?;
        socket.set_ext_ack(true)?;
        setsockopt(&socket, sockopt::SndBufForce, &SEND_BUFFER)?;
        setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
        Ok(NftSocket { socket, buffer: Vec::with_capacity(RECEIVE_LEN), seq: 0 })
    }

    /// Does all commands or none.
    pub fn commit(&mut self, table: &TableId, commands: &[Command]) -> Result<(), CommitError> {
        self.commit_since(table, commands, None)
    }

    /// As [`NftSocket::commit`], but only while the ruleset is still of this generation.
    pub fn commit_since(
        &mut self,
        table: &TableId,
        commands: &[Command],
        generation: Option<u32>,
    ) -> Result<(), CommitError> {
        let batch = Batch::new(table, commands, generation);
        if batch.is_empty() {
            return Ok(());
        }
        self.send(&batch.bytes)?;
        let mut outcome = Outcome::default();
        let overrun = self.drain(|message| outcome.take(message, &batch, table, commands))?;
        outcome.verdict(overrun)
    }

    /// The table as the kernel has it, and the generation at which it was so. None when there is no such table.
    pub fn dump_table(&mut self, table: &TableId) -> Result<Option<(Dumped, u32)>, DumpError> {
        for attempt in 0..DUMP_TRIES {
            let before = self.generation()?;
            let dumped = self.read_table(table);
            // element dumps say nothing of changes made meanwhile
            if self.generation()? != before {
                continue;
            }
            match dumped? {
                Some(dumped) if !dumped.is_whole() => wait_while_it_grows(attempt),
                dumped => return Ok(dumped.map(|dumped| (dumped, before))),
            }
        }
        Err(DumpError::Restless)
    }

    /// The elements of one set, each once; none where there is no such set. Another writer may change it meanwhile. A dump that
    /// is not [whole](Dumped::is_whole) is followed by others, and what any of them has is given.
    pub fn elements(&mut self, table: &TableId, set: Name) -> Result<Vec<Element>, DumpError> {
        let mut found = BTreeMap::new();
        for attempt in 0..ELEMENTS_TRIES {
            if let Some(before) = attempt.checked_sub(1) {
                wait_while_it_grows(before);
            }
            let mut dumped = Dumped::default();
            match self.read(table, &Request::Elements(set.clone()), &mut dumped) {
                Err(DumpError::Io(error)) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                other => other?,
            }
            let whole = dumped.is_whole();
            let elements = dumped.elements.remove(&set).unwrap_or_default();
            found.extend(elements.into_iter().map(|element| (element.key.clone(), element)));
            if whole {
                break;
            }
        }
        Ok(found.into_values().collect())
    }

    /// The rules of one chain; none where there is no such chain.
    pub fn rules(&mut self, table: &TableId, chain: Name) -> Result<Vec<DumpedRule>, DumpError> {
        let mut dumped = Dumped::default();
        match self.read(table, &Request::RulesOf(chain.clone()), &mut dumped) {
            Err(DumpError::Io(error)) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        }
        Ok(dumped.chains.remove(&chain).map(|chain| chain.rules).unwrap_or_default())
    }

    pub fn has_table(&mut self, table: &TableId) -> io::Result<bool> {
        match self.ask(table, &Request::Table, |_, _, _| {}) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Changes with every transaction of anyone in this network namespace.
    pub fn generation(&mut self) -> io::Result<u32> {
        let table = TableId::new(portolan_nft::TableFamily::Ip, "");
        let mut found = None;
        self.ask(&table, &Request::Generation, |kind, _, attributes| found = generation(kind, attributes))?;
        found.ok_or_else(|| io::Error::other("no generation in the answer"))
    }

    fn read_table(&mut self, table: &TableId) -> Result<Option<Dumped>, DumpError> {
        if !self.has_table(table)? {
            return Ok(None);
        }
        let mut dumped = Dumped::default();
        for request in [Request::Chains, Request::Rules, Request::Sets] {
            self.read(table, &request, &mut dumped)?;
        }
        let sets: Vec<Name> = dumped.sets.keys().cloned().collect();
        for set in sets {
            self.read(table, &Request::Elements(set), &mut dumped)?;
        }
        Ok(Some(dumped))
    }

    fn read(&mut self, table: &TableId, request: &Request, dumped: &mut Dumped) -> Result<(), DumpError> {
        let mut result = Ok(());
        self.ask(table, request, |kind, family, attributes| {
            if result.is_ok() {
                result = dumped.read(table, kind, family, attributes);
            }
        })?;
        Ok(result?)
    }

    /// Hands every object of the answer to `f`; ends with it, or with the kernel's error.
    fn ask(
        &mut self,
        table: &TableId,
        request: &Request,
        mut f: impl FnMut(u8, u8, &[u8]),
    ) -> io::Result<()> {
        self.seq = self.seq.wrapping_add(1);
        let single = matches!(request, Request::Generation | Request::Table);
        self.send(&request.encode(table, self.seq))?;
        loop {
            self.receive(0)?;
            for message in messages(&self.buffer).filter(|message| message.seq == self.seq) {
                match message.content {
                    Content::Object { kind, family, attributes } => {
                        f(kind, family, attributes);
                        if single {
                            return Ok(());
                        }
                    }
                    Content::Error { errno, .. } => return Err(io::Error::from_raw_os_error(errno)),
                    Content::Done | Content::Ack => return Ok(()),
                    Content::Other => {}
                }
            }
        }
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        self.socket.send_to(bytes, &SocketAddr::new(0, 0), 0).map(drop)
    }

    /// Reads what is queued; true when the queue had overrun.
    fn drain(&mut self, mut f: impl FnMut(Message)) -> io::Result<bool> {
        let mut overrun = false;
        loop {
            match self.receive(libc::MSG_DONTWAIT) {
                Ok(()) => messages(&self.buffer).for_each(&mut f),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(overrun),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => overrun = true,
                Err(error) => return Err(error),
            }
        }
    }

    fn receive(&mut self, flags: libc::c_int) -> io::Result<()> {
        loop {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, flags) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other.map(drop),
            }
        }
    }
}

fn wait_while_it_grows(attempt: u32) {
    std::thread::sleep(WHILE_IT_GROWS * 2u32.pow(attempt));
}

/// What came back after a transaction.
#[derive(Default)]
struct Outcome {
    acknowledged: bool,
    refusals: Vec<Refusal>,
}

impl Outcome {
    fn take(&mut self, message: Message, batch: &Batch, table: &TableId, commands: &[Command]) {
        match message.content {
            Content::Ack => self.acknowledged = true,
            Content::Error { errno, text } => {
                let command = batch.command(message.seq);
                let what = match command.and_then(|i| commands.get(i)) {
                    Some(command) => format!("table {table}: {command}"),
                    None => format!("table {table}"),
                };
                let error = io::Error::from_raw_os_error(errno);
                self.refusals.push(Refusal { command, what, error, text: text.map(str::to_owned) });
            }
            Content::Done | Content::Object { .. } | Content::Other => {}
        }
    }

    /// Success is an ACK and no error: the last command's ACK comes even when an earlier one failed.
    fn verdict(self, overrun: bool) -> Result<(), CommitError> {
        let stale = |refusal: &Refusal| {
            refusal.command.is_none() && refusal.error.raw_os_error() == Some(libc::ERESTART)
        };
        match (overrun, self.refusals.is_empty(), self.acknowledged) {
            (true, ..) => Err(CommitError::Overrun),
            (_, false, _) if self.refusals.iter().any(stale) => Err(CommitError::Stale),
            (_, false, _) => Err(CommitError::Refused(self.refusals)),
            (_, true, true) => Ok(()),
            (_, true, false) => Err(CommitError::Unanswered),
        }
    }
}
