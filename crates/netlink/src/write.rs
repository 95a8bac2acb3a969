use crate::{NESTED, flag};

/// A growing buffer of messages, or of attributes.
#[derive(Clone, Debug, Default)]
pub struct Writer(pub Vec<u8>);

/// `struct nfgenmsg`: what messages of nfnetlink have between netlink's header and the attributes.
pub fn nfnetlink(family: u8, res_id: u16) -> [u8; 4] {
    let [high, low] = res_id.to_be_bytes();
    [family, 0, high, low]
}

impl Writer {
    /// Appends a message; `header` is what its kind has between netlink's header, whose length is filled in, and the attributes that
    /// `f` writes.
    pub fn message(&mut self, kind: u16, flags: u16, seq: u32, header: &[u8], f: impl FnOnce(&mut Writer)) {
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

    /// An attribute; `payload` must be shorter than 64 KiB.
    pub fn bytes(&mut self, kind: u16, payload: &[u8]) {
        self.0.extend_from_slice(&(4 + payload.len() as u16).to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(payload);
        self.pad();
    }

    /// With the zero at its end.
    pub fn text(&mut self, kind: u16, text: &str) {
        self.0.extend_from_slice(&(5 + text.len() as u16).to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(text.as_bytes());
        self.0.push(0);
        self.pad();
    }

    /// In the network's byte order.
    pub fn u32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// In the network's byte order.
    pub fn u64(&mut self, kind: u16, value: u64) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// An attribute of the attributes that `f` writes, together shorter than 64 KiB.
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
