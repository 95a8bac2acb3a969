//! Netlink's framing: attributes inside messages, messages inside buffers.

/// `NFNL_SUBSYS_NFTABLES`.
pub(crate) const SUBSYSTEM: u16 = 10;
/// `sizeof(struct nlmsghdr)`.
const HEADER: usize = 16;
/// `sizeof(struct nfgenmsg)`.
const GENERIC: usize = 4;

pub(crate) mod flag {
    pub const REQUEST: u16 = 1;
    pub const ACK: u16 = 4;
    pub const DUMP: u16 = 0x300;
    pub const EXCL: u16 = 0x200;
    pub const CREATE: u16 = 0x400;
    pub const APPEND: u16 = 0x800;
    /// In an error: extended-ack attributes follow.
    pub const ACK_TLVS: u16 = 0x200;
    /// In an error: the request is not echoed.
    pub const CAPPED: u16 = 0x100;
}

/// Message types (`enum nf_tables_msg_types`).
pub(crate) mod msg {
    pub const NEWTABLE: u8 = 0;
    pub const GETTABLE: u8 = 1;
    pub const DELTABLE: u8 = 2;
    pub const NEWCHAIN: u8 = 3;
    pub const GETCHAIN: u8 = 4;
    pub const DELCHAIN: u8 = 5;
    pub const NEWRULE: u8 = 6;
    pub const GETRULE: u8 = 7;
    pub const DELRULE: u8 = 8;
    pub const NEWSET: u8 = 9;
    pub const GETSET: u8 = 10;
    pub const DELSET: u8 = 11;
    pub const NEWSETELEM: u8 = 12;
    pub const GETSETELEM: u8 = 13;
    pub const DELSETELEM: u8 = 14;
    pub const NEWGEN: u8 = 15;
    pub const GETGEN: u8 = 16;
}

/// A growing buffer of attributes.
#[derive(Default)]
pub(crate) struct Writer(pub Vec<u8>);

impl Writer {
    /// Appends a message with its headers; its length is filled in.
    pub fn message(
        &mut self,
        kind: u16,
        flags: u16,
        seq: u32,
        family: u8,
        res_id: u16,
        f: impl FnOnce(&mut Writer),
    ) {
        let at = self.0.len();
        self.0.extend_from_slice(&[0; 4]);
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(&(flags | flag::REQUEST).to_ne_bytes());
        self.0.extend_from_slice(&seq.to_ne_bytes());
        self.0.extend_from_slice(&[0; 4]);
        self.0.extend_from_slice(&[family, 0]);
        self.0.extend_from_slice(&res_id.to_be_bytes());
        f(self);
        let len = (self.0.len() - at) as u32;
        self.0[at..at + 4].copy_from_slice(&len.to_ne_bytes());
    }

    pub fn bytes(&mut self, kind: u16, payload: &[u8]) {
        self.0.extend_from_slice(&(4 + payload.len() as u16).to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(payload);
        self.pad();
    }

    pub fn text(&mut self, kind: u16, text: &str) {
        self.0.extend_from_slice(&(5 + text.len() as u16).to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(text.as_bytes());
        self.0.push(0);
        self.pad();
    }

    pub fn u32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub fn u64(&mut self, kind: u16, value: u64) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub fn nest(&mut self, kind: u16, f: impl FnOnce(&mut Writer)) {
        let at = self.0.len();
        self.0.extend_from_slice(&[0; 2]);
        self.0.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        f(self);
        let len = (self.0.len() - at) as u16;
        self.0[at..at + 2].copy_from_slice(&len.to_ne_bytes());
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

/// `NLA_F_NESTED`; the byte-order flag beside it is never used here.
const NESTED: u16 = 0x8000;
const TYPE_MASK: u16 = 0x3fff;

/// The attributes of a message or of a nested attribute. Ends at the first byte that makes no sense.
#[derive(Clone, Copy)]
pub(crate) struct Attributes<'a>(pub &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let len = u16::from_ne_bytes(self.0.get(..2)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(self.0.get(2..4)?.try_into().ok()?);
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

    pub fn nest(self, kind: u16) -> Option<Attributes<'a>> {
        self.get(kind).map(Attributes)
    }

    pub fn u32(self, kind: u16) -> Option<u32> {
        Some(u32::from_be_bytes(self.get(kind)?.try_into().ok()?))
    }

    pub fn u64(self, kind: u16) -> Option<u64> {
        Some(u64::from_be_bytes(self.get(kind)?.try_into().ok()?))
    }

    pub fn text(self, kind: u16) -> Option<&'a str> {
        let bytes = self.get(kind)?;
        let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
        std::str::from_utf8(&bytes[..end]).ok()
    }
}

/// One message that the kernel sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    pub seq: u32,
    pub content: Content<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content<'a> {
    /// The request of this sequence number was done.
    Ack,
    /// It was not: a positive errno, and the kernel's sentence if it has one.
    Error { errno: i32, text: Option<&'a str> },
    /// The end of a dump.
    Done,
    /// An object of nf_tables: `kind` without the subsystem, `family` of its table, then attributes.
    Object { kind: u8, family: u8, attributes: &'a [u8] },
    /// Something not meant for us.
    Other,
}

/// Splits what one `recv` gave into messages. Ends at the first byte that makes no sense.
pub fn messages(buffer: &[u8]) -> impl Iterator<Item = Message<'_>> {
    let mut rest = buffer;
    std::iter::from_fn(move || {
        let len = u32::from_ne_bytes(rest.get(..4)?.try_into().ok()?) as usize;
        let message = rest.get(..len).filter(|m| m.len() >= HEADER)?;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        let kind = u16::from_ne_bytes([message[4], message[5]]);
        let flags = u16::from_ne_bytes([message[6], message[7]]);
        let seq = u32::from_ne_bytes([message[8], message[9], message[10], message[11]]);
        Some(Message { seq, content: content(kind, flags, &message[HEADER..]) })
    })
}

fn content(kind: u16, flags: u16, body: &[u8]) -> Content<'_> {
    const ERROR: u16 = 2;
    const DONE: u16 = 3;
    match kind {
        ERROR => error(flags, body).unwrap_or(Content::Other),
        // a dump that fails half-way says so in its last message
        DONE => match body.first_chunk().map(|code| i32::from_ne_bytes(*code)) {
            Some(code) if code < 0 => Content::Error { errno: code.saturating_neg(), text: None },
            _ => Content::Done,
        },
        _ if kind >> 8 == SUBSYSTEM && body.len() >= GENERIC => {
            Content::Object { kind: kind as u8, family: body[0], attributes: &body[GENERIC..] }
        }
        _ => Content::Other,
    }
}

fn error(flags: u16, body: &[u8]) -> Option<Content<'_>> {
    let code = i32::from_ne_bytes(*body.first_chunk()?);
    if code == 0 {
        return Some(Content::Ack);
    }
    // struct nlmsgerr: the code, the request's header, and the request itself unless capped
    let echoed = u32::from_ne_bytes(*body.get(4..)?.first_chunk()?) as usize;
    let request = if flags & flag::CAPPED != 0 { HEADER } else { echoed.max(HEADER) };
    let text = (flags & flag::ACK_TLVS != 0)
        .then(|| body.get(4usize.checked_add(request.checked_next_multiple_of(4)?)?..))
        .flatten()
        .and_then(|tlvs| Attributes(tlvs).text(1));
    Some(Content::Error { errno: code.saturating_neg(), text })
}
