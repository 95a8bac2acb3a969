use crate::{HEADER, flag};

/// Of an attribute's type, what are not its two flags.
const TYPE_MASK: u16 = 0x3fff;
/// `sizeof` of `struct nfgenmsg` and of `struct genlmsghdr`.
const GENERIC: usize = 4;
/// `NLMSG_ERROR` and `NLMSG_DONE`.
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// One message with its header read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    pub kind: u16,
    pub flags: u16,
    /// Of the request that it answers.
    pub seq: u32,
    pub body: &'a [u8],
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End<'a> {
    /// The end of a dump.
    Done,
    /// The request was done.
    Ack,
    /// It was not: a positive errno, and the kernel's sentence if it has one.
    Error { errno: i32, text: Option<&'a str> },
}

/// Splits what one `recv` gave into messages. Ends at the first byte that makes no sense.
pub fn messages(buffer: &[u8]) -> impl Iterator<Item = Message<'_>> {
    let mut rest = buffer;
    std::iter::from_fn(move || {
        let len = u32::from_ne_bytes(*rest.first_chunk()?) as usize;
        let message = rest.get(..len).filter(|message| message.len() >= HEADER)?;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        let kind = u16::from_ne_bytes([message[4], message[5]]);
        let flags = u16::from_ne_bytes([message[6], message[7]]);
        let seq = u32::from_ne_bytes([message[8], message[9], message[10], message[11]]);
        Some(Message { kind, flags, seq, body: &message[HEADER..] })
    })
}

impl<'a> Message<'a> {
    /// None for a message that ends nothing.
    pub fn end(&self) -> Option<End<'a>> {
        let code = self.body.first_chunk().map(|code| i32::from_ne_bytes(*code));
        match (self.kind, code) {
            (ERROR, Some(0)) => Some(End::Ack),
            (ERROR, Some(code)) => Some(End::Error { errno: code.saturating_neg(), text: self.sentence() }),
            // A dump that fails half-way says so in its last message.
            (DONE, Some(code)) if code < 0 => Some(End::Error { errno: code.saturating_neg(), text: None }),
            (DONE, _) => Some(End::Done),
            _ => None,
        }
    }

    /// Of `struct nlmsgerr`: the code, the request's header, and the request itself unless capped; then `NLMSGERR_ATTR_MSG`.
    fn sentence(&self) -> Option<&'a str> {
        if self.flags & flag::ACK_TLVS == 0 {
            return None;
        }
        let echoed = u32::from_ne_bytes(*self.body.get(4..)?.first_chunk()?) as usize;
        let request = if self.flags & flag::CAPPED != 0 { HEADER } else { echoed.max(HEADER) };
        let attributes = self.body.get(4usize.checked_add(request.checked_next_multiple_of(4)?)?..)?;
        Attributes(attributes).text(1)
    }

    /// What follows the header of nfnetlink or of generic netlink, which are of one length.
    pub fn attributes(&self) -> Attributes<'a> {
        Attributes(self.body.get(GENERIC..).unwrap_or_default())
    }
}

/// The attributes of a message or of a nested attribute. Ends at the first byte that makes no sense.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a>(pub &'a [u8]);

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
    /// The first of this kind.
    pub fn get(self, kind: u16) -> Option<&'a [u8]> {
        let mut rest = self;
        rest.find(|(k, _)| *k == kind).map(|(_, payload)| payload)
    }

    pub fn nest(self, kind: u16) -> Option<Attributes<'a>> {
        self.get(kind).map(Attributes)
    }

    /// An attribute of exactly this length.
    pub fn array<const N: usize>(self, kind: u16) -> Option<[u8; N]> {
        self.get(kind)?.try_into().ok()
    }

    /// In the network's byte order.
    pub fn u32(self, kind: u16) -> Option<u32> {
        self.array(kind).map(u32::from_be_bytes)
    }

    /// In the network's byte order.
    pub fn u64(self, kind: u16) -> Option<u64> {
        self.array(kind).map(u64::from_be_bytes)
    }

    /// Up to its first zero.
    pub fn text(self, kind: u16) -> Option<&'a str> {
        let bytes = self.get(kind)?;
        let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
        std::str::from_utf8(&bytes[..end]).ok()
    }
}
