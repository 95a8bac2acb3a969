use std::time::Duration;

use crate::{Bytes, Name};

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    Accept,
    Drop,
    Return,
    Jump(Name),
    Goto(Name),
}

/// What an element of a map gives.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Value {
    /// An element of a plain set.
    #[default]
    None,
    Verdict(Verdict),
    Bytes(Bytes),
}

/// An element of a set with `flags interval`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Range {
    /// The last key (inclusive) of a range that starts at the element's key: sets of several fields.
    To(Bytes),
    /// The element's key ends (exclusive) the range that an earlier element starts: sets of one field.
    End,
}

/// One element of a set or map: 72 bytes while the key has at most 30.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Element {
    pub key: Bytes,
    pub value: Value,
    /// What most elements have not.
    pub extra: Option<Box<Extra>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Extra {
    pub range: Option<Range>,
    /// Instead of the set's own.
    pub timeout: Option<Duration>,
    /// Left until the element goes; only in dumps.
    pub expires: Option<Duration>,
}

impl Element {
    pub fn new(key: Bytes, value: Value) -> Self {
        Element { key, value, extra: None }
    }

    /// An element of a plain set.
    pub fn member(key: Bytes) -> Self {
        Element::new(key, Value::None)
    }

    /// A range in a set of several fields: from `key` to `last`, both included.
    pub fn range(key: Bytes, last: Bytes) -> Self {
        Element {
            key,
            value: Value::None,
            extra: Some(Box::new(Extra { range: Some(Range::To(last)), ..Extra::default() })),
        }
    }
    /// The addresses of a prefix, or any range, in a set of one field: from `first` to `last`, both included.
    pub fn interval(first: Bytes, last: &Bytes) -> Vec<Element> {
        let mut after = last.to_vec();
        let carried = after.iter_mut().rev().all(|byte| {
            *byte = byte.wrapping_add(1);
            *byte == 0
        });
        let extra = Some(Box::new(Extra { range: Some(Range::End), ..Extra::default() }));
        let end = Element { key: Bytes::new(&after), value: Value::None, extra };
        // a range up to the very last key has no end
        if carried { vec![Element::member(first)] } else { vec![Element::member(first), end] }
    }

    pub(crate) fn range_end(&self) -> Option<&Range> {
        self.extra.as_ref()?.range.as_ref()
    }
}
