//! Commands to the bytes of one transaction.

use portolan_netlink::{Writer, flag, nfnetlink};

use crate::netlink::{SUBSYSTEM, msg};
use crate::wire::millis;
use crate::{Base, ChainKind, Command, Element, Hook, Name, Range, Rule, TableId, Value, userdata};

/// NFNL_MSG_BATCH_BEGIN and _END.
const BEGIN: u16 = 16;
const END: u16 = 17;
/// An attribute ends below 64 KiB; an element takes fewer than 512 bytes.
const ELEMENTS_LEN: usize = u16::MAX as usize - 512;

/// One transaction, encoded: send `bytes` in one piece.
///
/// It was done when an ACK came and no error: the last command's ACK can come although the batch failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    pub bytes: Vec<u8>,
    /// Index of the command of each message, by sequence number.
    commands: Vec<u32>,
}

impl Batch {
    /// `generation`: the transaction fails as a whole (ERESTART) when the ruleset's generation is another one.
    pub fn new(table: &TableId, commands: &[Command], generation: Option<u32>) -> Batch {
        let mut encoder =
            Encoder { table, out: Writer::default(), commands: Vec::new(), command: 0, last: 0 };
        encoder.out.message(BEGIN, 0, 0, &nfnetlink(0, SUBSYSTEM), |w| {
            if let Some(generation) = generation {
                w.u32(1, generation);
            }
        });
        for (i, command) in commands.iter().enumerate() {
            encoder.command = i as u32;
            encoder.command(command);
        }
        encoder.finish()
    }

    /// True when there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.commands.is_empty()
    }

    /// The index of the command that an error's sequence number speaks of. None: the batch as a whole.
    pub fn command(&self, seq: u32) -> Option<usize> {
        let i = (seq as usize).checked_sub(1)?;
        self.commands.get(i).map(|command| *command as usize)
    }
}

struct Encoder<'a> {
    table: &'a TableId,
    out: Writer,
    commands: Vec<u32>,
    command: u32,
    /// Where the last message starts.
    last: usize,
}

impl Encoder<'_> {
    fn message(&mut self, kind: u8, flags: u16, f: impl FnOnce(&mut Writer)) {
        self.commands.push(self.command);
        self.last = self.out.0.len();
        let seq = self.commands.len() as u32;
        let family = self.table.family.number();
        let table = &self.table.name;
        self.out.message(SUBSYSTEM << 8 | kind as u16, flags, seq, &nfnetlink(family, 0), |w| {
            w.text(1, table);
            f(w);
        });
    }

    fn finish(mut self) -> Batch {
        if !self.commands.is_empty() {
            let at = self.last + 6;
            let flags = u16::from_ne_bytes([self.out.0[at], self.out.0[at + 1]]) | flag::ACK;
            self.out.0[at..at + 2].copy_from_slice(&flags.to_ne_bytes());
        }
        let seq = self.commands.len() as u32 + 1;
        self.out.message(END, 0, seq, &nfnetlink(0, SUBSYSTEM), |_| {});
        Batch { bytes: self.out.0, commands: self.commands }
    }

    fn command(&mut self, command: &Command) {
        match command {
            // no flags: also wakes a table that someone made dormant
            Command::AddTable => self.message(msg::NEWTABLE, flag::CREATE, |w| w.u32(2, 0)),
            Command::DeleteTable => self.message(msg::DELTABLE, 0, |_| {}),
            Command::AddChain { chain, base } => self.message(msg::NEWCHAIN, flag::CREATE, |w| {
                w.text(3, chain);
                if let Some(base) = base {
                    base.encode(w);
                }
            }),
            Command::DeleteChain { chain } => self.message(msg::DELCHAIN, 0, |w| w.text(3, chain)),
            Command::FlushChain { chain } => self.message(msg::DELRULE, 0, |w| w.text(2, chain)),
            Command::AddRule { chain, rule } => self.rule(chain, rule),
            Command::DeleteRule { chain, handle } => self.message(msg::DELRULE, 0, |w| {
                w.text(2, chain);
                w.u64(3, *handle);
            }),
            Command::AddSet { name, set } => {
                let (id, family) = (self.commands.len() as u32 + 1, self.table.family);
                self.message(msg::NEWSET, flag::CREATE, |w| {
                    w.text(2, name);
                    set.encode(w, family, id);
                });
            }
            Command::DeleteSet { name } => self.message(msg::DELSET, 0, |w| w.text(2, name)),
            Command::AddElements { set, elements } => {
                self.elements(msg::NEWSETELEM, flag::CREATE | flag::EXCL, set, elements, true);
            }
            Command::DeleteElements { set, elements } => {
                self.elements(msg::DELSETELEM, 0, set, elements, false);
            }
            Command::FlushSet { set } => self.message(msg::DELSETELEM, 0, |w| w.text(2, set)),
        }
    }

    fn rule(&mut self, chain: &Name, rule: &Rule) {
        let family = self.table.family;
        self.message(msg::NEWRULE, flag::CREATE | flag::APPEND, |w| {
            w.text(2, chain);
            w.nest(4, |w| {
                for expr in rule.compile(family) {
                    w.nest(1, |w| expr.encode(w, family));
                }
            });
            if let Some(comment) = &rule.comment {
                w.bytes(7, &userdata::of_rule(comment));
            }
        });
    }

    fn elements(&mut self, kind: u8, flags: u16, set: &Name, elements: &[Element], whole: bool) {
        let mut rest = elements;
        while !rest.is_empty() {
            self.message(kind, flags, |w| {
                w.text(2, set);
                w.nest(3, |w| {
                    let start = w.0.len();
                    while let Some((element, tail)) = rest.split_first()
                        && w.0.len() - start < ELEMENTS_LEN
                    {
                        w.nest(1, |w| element.encode(w, whole));
                        rest = tail;
                    }
                });
            });
        }
    }
}

impl Element {
    /// Deletion names an element by its key and range alone.
    fn encode(&self, w: &mut Writer, whole: bool) {
        w.nest(1, |w| w.bytes(1, &self.key));
        let extra = self.extra.as_deref();
        match extra.and_then(|extra| extra.range.as_ref()) {
            Some(Range::To(last)) => w.nest(10, |w| w.bytes(1, last)),
            Some(Range::End) => w.u32(3, 1),
            None => {}
        }
        if !whole {
            return;
        }
        match &self.value {
            Value::None => {}
            Value::Verdict(verdict) => w.nest(2, |w| w.nest(2, |w| verdict.encode(w))),
            Value::Bytes(bytes) => w.nest(2, |w| w.bytes(1, bytes)),
        }
        if let Some(timeout) = extra.and_then(|extra| extra.timeout.as_ref()) {
            w.u64(4, millis(timeout));
        }
    }
}

impl Base {
    fn encode(&self, w: &mut Writer) {
        w.nest(4, |w| {
            w.u32(1, self.hook.number());
            w.u32(2, self.priority as u32);
        });
        w.u32(5, 1); // policy accept
        w.text(7, self.kind.name());
    }
}

impl ChainKind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            ChainKind::Filter => "filter",
            ChainKind::Nat => "nat",
            ChainKind::Route => "route",
            ChainKind::Other => "",
        }
    }
}

impl Hook {
    pub(crate) const ALL: [Hook; 5] =
        [Hook::Prerouting, Hook::Input, Hook::Forward, Hook::Output, Hook::Postrouting];

    /// NF_INET_*.
    pub(crate) fn number(self) -> u32 {
        self as u32
    }
}
