//! NOTIFICATION (RFC 4271 4.5 and 6), with the shutdown communication of RFC 9003.

use std::fmt;

/// Why a session ends, as one end tells the other.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Notification {
    pub code: u8,
    pub subcode: u8,
    pub data: Vec<u8>,
}

/// A shutdown communication is at most this long (RFC 9003).
const MAX_COMMUNICATION: usize = 255;

const CEASE: u8 = 6;

impl Notification {
    pub const fn new(code: u8, subcode: u8) -> Self {
        Notification { code, subcode, data: Vec::new() }
    }

    pub fn with_data(code: u8, subcode: u8, data: impl Into<Vec<u8>>) -> Self {
        Notification { code, subcode, data: data.into() }
    }

    pub const CONNECTION_NOT_SYNCHRONIZED: Notification = Notification::new(1, 1);
    pub const MALFORMED_OPEN: Notification = Notification::new(2, 0);
    pub const BAD_PEER_AS: Notification = Notification::new(2, 2);
    pub const BAD_BGP_IDENTIFIER: Notification = Notification::new(2, 3);
    pub const UNSUPPORTED_OPTIONAL_PARAMETER: Notification = Notification::new(2, 4);
    pub const UNACCEPTABLE_HOLD_TIME: Notification = Notification::new(2, 6);
    pub const MALFORMED_ATTRIBUTE_LIST: Notification = Notification::new(3, 1);
    pub const OPTIONAL_ATTRIBUTE_ERROR: Notification = Notification::new(3, 9);
    pub const INVALID_NETWORK_FIELD: Notification = Notification::new(3, 10);
    pub const HOLD_TIMER_EXPIRED: Notification = Notification::new(4, 0);
    /// RFC 9687.
    pub const SEND_HOLD_TIMER_EXPIRED: Notification = Notification::new(8, 0);
    pub const PEER_DECONFIGURED: Notification = Notification::new(CEASE, 3);
    pub const OTHER_CONFIGURATION_CHANGE: Notification = Notification::new(CEASE, 6);
    pub const CONNECTION_COLLISION: Notification = Notification::new(CEASE, 7);

    /// The length field itself is the data (RFC 4271 6.1).
    pub fn bad_message_length(length: u16) -> Self {
        Notification::with_data(1, 2, length.to_be_bytes())
    }

    pub fn bad_message_type(kind: u8) -> Self {
        Notification::with_data(1, 3, [kind])
    }

    /// The data is the largest version we know (RFC 4271 6.2).
    pub fn unsupported_version() -> Self {
        Notification::with_data(2, 1, 4u16.to_be_bytes())
    }

    /// The data lists the capabilities that are missing (RFC 5492 5).
    pub fn unsupported_capability(capabilities: Vec<u8>) -> Self {
        Notification::with_data(2, 7, capabilities)
    }

    /// Cease, Administrative Shutdown, with a text for the person at the other end (RFC 9003); a longer text is cut
    /// at a character's boundary.
    pub fn administrative_shutdown(text: &str) -> Self {
        let mut end = text.len().min(MAX_COMMUNICATION);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let mut data = vec![end as u8];
        data.extend_from_slice(&text.as_bytes()[..end]);
        Notification::with_data(CEASE, 2, data)
    }

    /// The text of a shutdown communication: Cease with Administrative Shutdown or Administrative Reset.
    pub fn communication(&self) -> Option<String> {
        let &[length, ref text @ ..] = self.data.as_slice() else { return None };
        let text = text.get(..usize::from(length))?;
        let carries = self.code == CEASE && matches!(self.subcode, 2 | 4) && length > 0;
        // RFC 9003 2: what is not UTF-8 is the peer's mistake, and is shown as far as it can be.
        carries.then(|| String::from_utf8_lossy(text).into_owned())
    }

    fn name(&self) -> (&'static str, &'static str) {
        match self.code {
            1 => ("Message Header Error", name(self.subcode, &HEADER)),
            2 => ("OPEN Message Error", name(self.subcode, &OPEN)),
            3 => ("UPDATE Message Error", name(self.subcode, &UPDATE)),
            4 => ("Hold Timer Expired", ""),
            5 => ("Finite State Machine Error", name(self.subcode, &FSM)),
            CEASE => ("Cease", name(self.subcode, &CEASES)),
            7 => ("ROUTE-REFRESH Message Error", name(self.subcode, &["", "Invalid Message Length"])),
            8 => ("Send Hold Timer Expired", ""),
            _ => ("Unknown Error", ""),
        }
    }
}

impl fmt::Display for Notification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (code, subcode) = self.name();
        write!(f, "{}/{} {code}", self.code, self.subcode)?;
        if !subcode.is_empty() {
            write!(f, ", {subcode}")?;
        }
        match self.communication() {
            // The text is the peer's: no control characters of its choosing in our logs.
            Some(text) => write!(f, ": \"{}\"", text.escape_debug()),
            None => Ok(()),
        }
    }
}

fn name(subcode: u8, names: &[&'static str]) -> &'static str {
    names.get(usize::from(subcode)).copied().unwrap_or("")
}

const HEADER: [&str; 4] = ["", "Connection Not Synchronized", "Bad Message Length", "Bad Message Type"];

const OPEN: [&str; 12] = [
    "",
    "Unsupported Version Number",
    "Bad Peer AS",
    "Bad BGP Identifier",
    "Unsupported Optional Parameter",
    "",
    "Unacceptable Hold Time",
    "Unsupported Capability",
    "",
    "",
    "",
    "Role Mismatch",
];

const UPDATE: [&str; 12] = [
    "",
    "Malformed Attribute List",
    "Unrecognized Well-known Attribute",
    "Missing Well-known Attribute",
    "Attribute Flags Error",
    "Attribute Length Error",
    "Invalid ORIGIN Attribute",
    "",
    "Invalid NEXT_HOP Attribute",
    "Optional Attribute Error",
    "Invalid Network Field",
    "Malformed AS_PATH",
];

/// RFC 6608.
const FSM: [&str; 4] = [
    "",
    "Unexpected Message in OpenSent State",
    "Unexpected Message in OpenConfirm State",
    "Unexpected Message in Established State",
];

/// RFC 4486, RFC 8538, RFC 9384.
const CEASES: [&str; 11] = [
    "",
    "Maximum Number of Prefixes Reached",
    "Administrative Shutdown",
    "Peer De-configured",
    "Administrative Reset",
    "Connection Rejected",
    "Other Configuration Change",
    "Connection Collision Resolution",
    "Out of Resources",
    "Hard Reset",
    "BFD Down",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_names_code_subcode_and_text_b14() {
        let check = |notification: Notification, expect: &str| assert_eq!(notification.to_string(), expect);
        check(Notification::BAD_PEER_AS, "2/2 OPEN Message Error, Bad Peer AS");
        check(Notification::HOLD_TIMER_EXPIRED, "4/0 Hold Timer Expired");
        check(
            Notification::administrative_shutdown("node drain"),
            "6/2 Cease, Administrative Shutdown: \"node drain\"",
        );
        check(Notification::new(77, 3), "77/3 Unknown Error");
        check(Notification::with_data(6, 2, [200, b'x']), "6/2 Cease, Administrative Shutdown");
        check(
            Notification::with_data(6, 4, [2, 0xff, b'\n']),
            "6/4 Cease, Administrative Reset: \"\u{fffd}\\n\"",
        );
    }

    #[test]
    fn shutdown_text_is_cut_at_a_character_rfc9003() {
        let notification = Notification::administrative_shutdown(&"ä".repeat(200));
        assert_eq!(notification.data.len(), 1 + 254);
        assert_eq!(notification.communication().unwrap(), "ä".repeat(127));
    }
}
