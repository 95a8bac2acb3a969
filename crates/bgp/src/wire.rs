//! Messages as values, and as bytes (RFC 4271 section 4).

mod notification;

pub use notification::Notification;
