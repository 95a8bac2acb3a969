use std::fmt;

use crate::ObjectId;

/// Something wrong in user input: reported on its object (condition, Event, log), never thrown.
///
/// Prints as one sentence that names the object and the field:
/// `IPAddressPool lab: spec.addresses[1]: "10.0.0.300" is not a CIDR or a range a-b`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    pub object: ObjectId,
    /// The path of the field as users write it, for example `spec.addresses[1]`.
    pub field: String,
    /// A CamelCase word for conditions and Events, for example `RequestedIPNotInPool` (vips.md 2.7).
    pub reason: &'static str,
    /// The sentence, without the object's and the field's names.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.object, self.field, self.message)
    }
}
