//! What nf_tables' messages are among netlink's.

use portolan_netlink::End;

/// `NFNL_SUBSYS_NFTABLES`.
pub(crate) const SUBSYSTEM: u16 = 10;

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
    portolan_netlink::messages(buffer).map(|message| Message { seq: message.seq, content: content(message) })
}

fn content(message: portolan_netlink::Message<'_>) -> Content<'_> {
    match (message.end(), message.body) {
        (Some(End::Ack), _) => Content::Ack,
        (Some(End::Done), _) => Content::Done,
        (Some(End::Error { errno, text }), _) => Content::Error { errno, text },
        (None, [family, _, _, _, attributes @ ..]) if message.kind >> 8 == SUBSYSTEM => {
            Content::Object { kind: message.kind as u8, family: *family, attributes }
        }
        (None, _) => Content::Other,
    }
}
