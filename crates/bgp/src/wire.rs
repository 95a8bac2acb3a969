//! Messages as values, and as bytes (RFC 4271 section 4).
//!
//! Every decoder takes any bytes and gives a value or the [`Notification`] that ends the session; none panics.
//! What we send and what we understand are the same types, so `decode(encode(x)) == x`.

mod attributes;
mod capability;
mod message;
mod nlri;
mod notification;
mod open;
mod pack;
mod reader;
mod update;

pub use attributes::{AttributeError, Disposition, Origin, PathAttributes};
pub use capability::Capability;
pub use message::{MAX_LEN, Message, frame};
pub use notification::Notification;
pub use open::{AS_TRANS, Open};
pub use pack::{announce, fits, withdraw};
pub use update::{Announcement, Update};

/// What the two ends agreed on that changes how an UPDATE is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// AS numbers in AS_PATH take four octets (RFC 6793).
    pub four_octet_as: bool,
    /// The peer is of our own AS.
    pub internal: bool,
}
