//! Framing: attributes inside messages, messages inside buffers.

use crate::Flow;

/// `sizeof(struct nlmsghdr)`.
const HEADER: usize = 16;
/// `sizeof(struct nfgenmsg)`.
const GENERIC: usize = 4;
/// `NFNL_SUBSYS_CTNETLINK`.
const SUBSYSTEM: u16 = 1;
/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;
/// An attribute's type without its two flags.
const TYPE_MASK: u16 = 0x3fff;

pub(crate) mod flag {
    pub const REQUEST: u16 = 1;
    pub const ACK: u16 = 4;
    pub const DUMP: u16 = 0x300;
}

/// `enum cntl_msg_types`.
pub(crate) mod msg {
    pub const NEW: u8 = 0;
    pub const GET: u8 = 1;
    pub const DELETE: u8 = 2;
}

/// One message that the kernel sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Of the request that it answers.
    pub seq: u32,
    pub content: Content,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    Flow(Flow),
    /// The end of a dump.
    Done,
    /// The request was done.
    Ack,
    /// It was not: a positive errno.
    Error(i32),
    /// Something that is not ours to read: an entry without ports, a foreign message.
    Other,
}

/// Splits what one `recv` gave into messages. Ends at the first byte that makes no sense.
pub fn answers(buffer: &[u8]) -> impl Iterator<Item = Answer> {
    let mut rest = buffer;
    std::iter::from_fn(move || {
        let len = u32::from_ne_bytes(*rest.first_chunk()?) as usize;
        let message = rest.get(..len).filter(|message| message.len() >= HEADER)?;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        let kind = u16::from_ne_bytes([message[4], message[5]]);
        let seq = u32::from_ne_bytes([message[8], message[9], message[10], message[11]]);
        Some(Answer { seq, content: content(kind, &message[HEADER..]) })
    })
}

fn content(kind: u16, body: &[u8]) -> Content {
    const ERROR: u16 = 2;
    const DONE: u16 = 3;
    const NEW: u16 = SUBSYSTEM << 8 | msg::NEW as u16;
    let code = || body.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
    match kind {
        ERROR if code() == 0 => Content::Ack,
        ERROR => Content::Error(code().saturating_neg()),
        // A dump that fails half-way says so in its last message.
        DONE if code() < 0 => Content::Error(code().saturating_neg()),
        DONE => Content::Done,
        NEW => {
            let attributes = Attributes(body.get(GENERIC..).unwrap_or_default());
            Flow::read(attributes).map_or(Content::Other, Content::Flow)
        }
        _ => Content::Other,
    }
}

/// A growing buffer of messages.
#[derive(Default)]
pub(crate) struct Writer(pub Vec<u8>);

impl Writer {
    /// Appends a message of ctnetlink; `family` is an `NFPROTO_*`.
    pub fn message(&mut self, kind: u8, flags: u16, seq: u32, family: u8, f: impl FnOnce(&mut Writer)) {
        let at = self.0.len();
        self.0.extend_from_slice(&[0; 4]);
        self.0.extend_from_slice(&(SUBSYSTEM << 8 | u16::from(kind)).to_ne_bytes());
        self.0.extend_from_slice(&(flags | flag::REQUEST).to_ne_bytes());
        self.0.extend_from_slice(&seq.to_ne_bytes());
        self.0.extend_from_slice(&[0; 4]);
        self.0.extend_from_slice(&[family, 0, 0, 0]);
        f(self);
        let len = (self.0.len() - at) as u32;
        self.0[at..at + 4].copy_from_slice(&len.to_ne_bytes());
    }

    pub fn bytes(&mut self, kind: u16, payload: &[u8]) {
        self.0.extend_from_slice(&(4 + payload.len() as u16).to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(payload);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    pub fn nest(&mut self, kind: u16, f: impl FnOnce(&mut Writer)) {
        let at = self.0.len();
        self.0.extend_from_slice(&[0; 2]);
        self.0.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        f(self);
        let len = (self.0.len() - at) as u16;
        self.0[at..at + 2].copy_from_slice(&len.to_ne_bytes());
    }
}

/// The attributes of a message or of a nested attribute. Ends at the first byte that makes no sense.
#[derive(Clone, Copy)]
pub(crate) struct Attributes<'a>(pub &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let len = u16::from_ne_bytes(*self.0.first_chunk()?) as usize;
        let kind = u16::from_ne_bytes(*self.0.get(2..)?.first_chunk()?);
        let payload = self.0.get(4..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & TYPE_MASK, payload))
    }
}

impl<'a> Attributes<'a> {
    pub fn get(self, kind: u16) -> Option<&'a [u8]> {
        let mut rest = self;
        rest.find(|(k, _)| *k == kind).map(|(_, payload)| payload)
    }

    /// An attribute of exactly this length.
    pub fn array<const N: usize>(self, kind: u16) -> Option<[u8; N]> {
        self.get(kind)?.try_into().ok()
    }

    pub fn nest(self, kind: u16) -> Option<Attributes<'a>> {
        self.get(kind).map(Attributes)
    }
}
