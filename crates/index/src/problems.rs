use portolan_model::Problem;

use crate::{Key, Kind};

/// Collects what is wrong with one object while it is parsed.
pub struct Problems<'a> {
    kind: Kind,
    key: &'a Key,
    found: Vec<Problem>,
}

impl<'a> Problems<'a> {
    pub fn new(kind: Kind, key: &'a Key) -> Self {
        Problems { kind, key, found: Vec::new() }
    }

    pub fn add(&mut self, field: impl Into<String>, reason: &'static str, message: impl Into<String>) {
        let object = self.key.object(self.kind);
        self.found.push(Problem { object, field: field.into(), reason, message: message.into() });
    }

    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    pub fn last(&self) -> Option<&Problem> {
        self.found.last()
    }

    pub fn into_vec(self) -> Vec<Problem> {
        self.found
    }
}
