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

/// One message with its header read.
pub(crate) struct Message<'a> {
    pub kind: u16,
    pub seq: u32,
    pub body: &'a [u8],
}

/// How a request ended.
pub(crate) enum End {
    Done,
    Ack,
    Error(i32),
}

/// Splits what one `recv` gave into messages. Ends at the first byte that makes no sense.
pub(crate) fn messages(buffer: &[u8]) -> impl Iterator<Item = Message<'_>> {
    let mut rest = buffer;
    std::iter::from_fn(move || {
        let len = u32::from_ne_bytes(*rest.first_chunk()?) as usize;
        let message = rest.get(..len).filter(|message| message.len() >= HEADER)?;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        let kind = u16::from_ne_bytes([message[4], message[5]]);
        let seq = u32::from_ne_bytes([message[8], message[9], message[10], message[11]]);
        Some(Message { kind, seq, body: &message[HEADER..] })
    })
}

impl<'a> Message<'a> {
    /// None for a message that ends nothing.
    pub fn end(&self) -> Option<End> {
        const ERROR: u16 = 2;
        const DONE: u16 = 3;
        let code = self.body.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
        match self.kind {
            ERROR if code == 0 => Some(End::Ack),
            ERROR => Some(End::Error(code.saturating_neg())),
            // A dump that fails half-way says so in its last message.
            DONE if code < 0 => Some(End::Error(code.saturating_neg())),
            DONE => Some(End::Done),
            _ => None,
        }
    }

    /// What follows the header of nfnetlink or of generic netlink, which are of one length.
    pub fn attributes(&self) -> Attributes<'a> {
        Attributes(self.body.get(GENERIC..).unwrap_or_default())
    }
}

/// Reads what one `recv` gave. Ends at the first byte that makes no sense.
pub fn answers(buffer: &[u8]) -> impl Iterator<Item = Answer> {
    messages(buffer).map(|message| Answer { seq: message.seq, content: content(&message) })
}

fn content(message: &Message) -> Content {
    const NEW: u16 = SUBSYSTEM << 8 | msg::NEW as u16;
    match message.end() {
        Some(End::Ack) => Content::Ack,
        Some(End::Done) => Content::Done,
        Some(End::Error(errno)) => Content::Error(errno),
        None if message.kind == NEW => Flow::read(message.attributes()).map_or(Content::Other, Content::Flow),
        None => Content::Other,
    }
}

/// A growing buffer of messages.
#[derive(Default)]
pub(crate) struct Writer(pub Vec<u8>);

impl Writer {
    /// Appends a message of ctnetlink; `family` is an `NFPROTO_*`.
    pub fn message(&mut self, kind: u8, flags: u16, seq: u32, family: u8, f: impl FnOnce(&mut Writer)) {
        self.any(SUBSYSTEM << 8 | u16::from(kind), flags, seq, &[family, 0, 0, 0], f);
    }

    /// Appends a message of any kind; `header` is what its kind has between netlink's header and the attributes.
    pub fn any(&mut self, kind: u16, flags: u16, seq: u32, header: &[u8], f: impl FnOnce(&mut Writer)) {
        let at = self.0.len();
        self.0.extend_from_slice(&[0; 4]);
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(&(flags | flag::REQUEST).to_ne_bytes());
        self.0.extend_from_slice(&seq.to_ne_bytes());
        self.0.extend_from_slice(&[0; 4]);
        self.0.extend_from_slice(header);
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
