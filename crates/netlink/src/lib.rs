//! Netlink's framing: attributes inside messages, messages inside buffers. What they mean is for those who use it.
//!
//! ```text
//!   Writer: message(kind, header, |attributes| ...) ──> bytes
//!   bytes ──messages──> Message: end(), attributes() ──> Attributes: get(kind), nest(kind)
//! ```
//!
//! Numbers in netlink's own headers are in the machine's byte order; those of nf_tables and conntrack inside attributes are in that of
//! the network. Knows no sockets. Malformed bytes end what is read, and are no error.

mod read;
mod write;

pub use read::{Attributes, End, Message, messages};
pub use write::{Writer, nfnetlink};

/// `sizeof(struct nlmsghdr)`.
const HEADER: usize = 16;
/// `NLA_F_NESTED`; the byte-order flag beside it is never used here.
const NESTED: u16 = 0x8000;

/// `NLM_F_*`.
pub mod flag {
    /// Every message that we write has it.
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

#[cfg(test)]
mod tests;
