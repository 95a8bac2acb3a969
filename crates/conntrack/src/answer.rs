//! What ctnetlink answers.

use portolan_netlink::{End, Message, messages};

use crate::Flow;

/// `NFNL_SUBSYS_CTNETLINK`.
pub(crate) const SUBSYSTEM: u16 = 1 << 8;

/// `enum cntl_msg_types`.
pub(crate) mod msg {
    pub const NEW: u16 = 0;
    pub const GET: u16 = 1;
    pub const DELETE: u16 = 2;
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

/// Reads what one `recv` gave. Ends at the first byte that makes no sense.
pub fn answers(buffer: &[u8]) -> impl Iterator<Item = Answer> {
    messages(buffer).map(|message| Answer { seq: message.seq, content: content(&message) })
}

fn content(message: &Message) -> Content {
    const NEW: u16 = SUBSYSTEM | msg::NEW;
    match message.end() {
        Some(End::Ack) => Content::Ack,
        Some(End::Done) => Content::Done,
        Some(End::Error { errno, .. }) => Content::Error(errno),
        None if message.kind == NEW => Flow::read(message.attributes()).map_or(Content::Other, Content::Flow),
        None => Content::Other,
    }
}
