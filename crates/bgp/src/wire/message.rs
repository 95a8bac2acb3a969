//! The message header (RFC 4271 4.1), and which message is behind it.

use super::{Format, Notification, Open, Update};
use crate::Family;

/// We never negotiate longer ones (RFC 8654, B10).
pub const MAX_LEN: usize = 4096;

const HEADER_LEN: usize = 19;
const MARKER: [u8; 16] = [0xff; 16];

const OPEN: u8 = 1;
const UPDATE: u8 = 2;
const NOTIFICATION: u8 = 3;
const KEEPALIVE: u8 = 4;
/// RFC 2918.
const ROUTE_REFRESH: u8 = 5;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    Open(Open),
    Update(Update),
    Notification(Notification),
    Keepalive,
    /// None: for a family we do not carry.
    RouteRefresh(Option<Family>),
}

/// The length of the first message in `bytes`, or None while it is not all there.
pub fn frame(bytes: &[u8]) -> Result<Option<usize>, Notification> {
    let Some(header) = bytes.first_chunk::<HEADER_LEN>() else { return Ok(None) };
    if header[..16] != MARKER {
        return Err(Notification::CONNECTION_NOT_SYNCHRONIZED);
    }
    let length = u16::from_be_bytes([header[16], header[17]]);
    let kind = header[18];
    // RFC 4271 6.1: the shortest of each type, and a KEEPALIVE has one length only.
    let allowed = match kind {
        OPEN => 29..=MAX_LEN,
        UPDATE => 23..=MAX_LEN,
        NOTIFICATION => 21..=MAX_LEN,
        KEEPALIVE => HEADER_LEN..=HEADER_LEN,
        ROUTE_REFRESH => 23..=MAX_LEN,
        _ => return Err(Notification::bad_message_type(kind)),
    };
    match allowed.contains(&usize::from(length)) {
        false => Err(Notification::bad_message_length(length)),
        true => Ok(Some(usize::from(length)).filter(|length| *length <= bytes.len())),
    }
}

impl Message {
    /// `bytes` is one whole message, as [`frame`] found it.
    pub fn decode(bytes: &[u8], format: Format) -> Result<Message, Notification> {
        if frame(bytes)? != Some(bytes.len()) {
            return Err(Notification::bad_message_length(bytes.len() as u16));
        }
        let (kind, body) = (bytes[HEADER_LEN - 1], &bytes[HEADER_LEN..]);
        match kind {
            OPEN => Open::decode(body).map(Message::Open),
            UPDATE => Update::decode(body, format).map(Message::Update),
            NOTIFICATION => Ok(Message::Notification(Notification::with_data(body[0], body[1], &body[2..]))),
            KEEPALIVE => Ok(Message::Keepalive),
            // Longer ones carry outbound route filters (RFC 5291), which we do not offer: the family is enough.
            ROUTE_REFRESH => {
                Ok(Message::RouteRefresh(Family::from_code(u16::from_be_bytes([body[0], body[1]]), body[3])))
            }
            _ => Err(Notification::bad_message_type(kind)),
        }
    }

    /// At most [`MAX_LEN`] bytes, provided that an UPDATE is one of [`super::announce`] or [`super::withdraw`] and that
    /// no capability is longer than 255 octets.
    pub fn encode(&self, format: Format) -> Vec<u8> {
        let mut out = MARKER.to_vec();
        out.extend_from_slice(&[0, 0, self.kind()]);
        match self {
            Message::Open(open) => open.encode(&mut out),
            Message::Update(update) => update.encode(format, &mut out),
            Message::Notification(notification) => {
                out.extend_from_slice(&[notification.code, notification.subcode]);
                // An echo of what was wrong may be as long as it was.
                let room = MAX_LEN - out.len();
                out.extend_from_slice(&notification.data[..notification.data.len().min(room)]);
            }
            Message::Keepalive => {}
            Message::RouteRefresh(family) => {
                let (afi, safi) = family.map_or((0, 0), Family::code);
                out.extend_from_slice(&afi.to_be_bytes());
                out.extend_from_slice(&[0, safi]);
            }
        }
        let length = out.len() as u16;
        out[16..18].copy_from_slice(&length.to_be_bytes());
        out
    }

    fn kind(&self) -> u8 {
        match self {
            Message::Open(_) => OPEN,
            Message::Update(_) => UPDATE,
            Message::Notification(_) => NOTIFICATION,
            Message::Keepalive => KEEPALIVE,
            Message::RouteRefresh(_) => ROUTE_REFRESH,
        }
    }
}
