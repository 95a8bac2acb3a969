//! The schemas of field types that several kinds share: what the API server checks before we ever see an object.

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

/// Longest text of an address or range: two IPv6 addresses in full, a dash, and blanks around it.
const RANGE_CHARS: u32 = 84;
const CIDR_CHARS: u32 = 43;
const IP_CHARS: u32 = 39;
const NAME_CHARS: u32 = 253;

fn quoted(text: &str) -> String {
    format!("\"'\" + self + \"' {text}\"")
}

fn range() -> Value {
    let is_range = "self.split('-').size() == 2 && self.split('-').all(end, isIP(end.trim()))";
    json!({
        "type": "string",
        "maxLength": RANGE_CHARS,
        "x-kubernetes-validations": [
            {
                "rule": format!("isCIDR(self) || ({is_range})"),
                "message": "must be a CIDR such as 192.0.2.0/24 or a range such as 192.0.2.10-192.0.2.20",
                "messageExpression":
                    quoted("is neither a CIDR such as 192.0.2.0/24 nor a range such as 192.0.2.10-192.0.2.20"),
            },
            {
                "rule": "!isCIDR(self) || cidr(self) == cidr(self).masked()",
                "message": "a CIDR must not have host bits set",
                "messageExpression": quoted("has host bits set: write the first address of the network"),
            },
            {
                "rule": format!(
                    "isCIDR(self) || !({is_range}) || \
                     ip(self.split('-')[0].trim()).family() == ip(self.split('-')[1].trim()).family()"
                ),
                "message": "both ends of a range must be of one family",
                "messageExpression": quoted("has ends of two families"),
            },
        ],
    })
}

/// `addresses` of a pool: at least one range.
pub fn ranges(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "minItems": 1, "maxItems": 128, "items": range() })
}

/// `exclude` of a pool: any number of ranges.
pub fn optional_ranges(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "maxItems": 128, "items": range() })
}

pub fn cidrs(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 64,
        "items": {
            "type": "string",
            "maxLength": CIDR_CHARS,
            "x-kubernetes-validations": [
                {
                    "rule": "isCIDR(self)",
                    "message": "must be a CIDR such as 198.51.100.0/24",
                    "messageExpression": quoted("is not a CIDR such as 198.51.100.0/24"),
                },
                {
                    "rule": "!isCIDR(self) || cidr(self) == cidr(self).masked()",
                    "message": "a CIDR must not have host bits set",
                },
            ],
        },
    })
}

pub fn ip(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "maxLength": IP_CHARS,
        "x-kubernetes-validations": [{
            "rule": "isIP(self)",
            "message": "must be an IP address",
            "messageExpression": quoted("is not an IP address"),
        }],
    })
}

/// Go's duration text with whole numbers, from 0 to 24 hours; each kind narrows the bounds with a rule of its own.
pub fn duration(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "maxLength": 16,
        "pattern": "^([0-9]+(h|m|s|ms))+$",
    })
}

/// 0..4294967295. The format must be int64: API servers refuse the maximum with int32.
pub fn uint32(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "integer", "format": "int64", "minimum": 0, "maximum": u32::MAX })
}

pub fn asn(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "integer", "format": "int64", "minimum": 1, "maximum": u32::MAX })
}

pub fn peer_asn(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "x-kubernetes-int-or-string": true,
        "x-kubernetes-validations": [{
            "rule": "type(self) == int ? self >= 1 && self <= 4294967295 : self in ['external', 'internal', 'any']",
            "message": "must be an AS number from 1 to 4294967295, or one of external, internal, any",
        }],
    })
}

pub fn port(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "integer", "format": "int32", "minimum": 1, "maximum": 65535 })
}

/// An integer within bounds.
pub fn within(minimum: u32, maximum: u32) -> Schema {
    json_schema!({ "type": "integer", "format": "int32", "minimum": minimum, "maximum": maximum })
}

pub fn prefix_length_v4(_: &mut SchemaGenerator) -> Schema {
    within(1, 32)
}

pub fn prefix_length_v6(_: &mut SchemaGenerator) -> Schema {
    within(1, 128)
}

pub fn prepend(_: &mut SchemaGenerator) -> Schema {
    within(0, 10)
}

pub fn ttl(_: &mut SchemaGenerator) -> Schema {
    within(1, 255)
}

pub fn priority(_: &mut SchemaGenerator) -> Schema {
    within(1, 10_000)
}

/// A count that we report.
pub fn count(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "integer", "format": "int64", "minimum": 0 })
}

/// Names of objects of another kind.
pub fn names(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "maxItems": 64, "items": { "type": "string", "maxLength": NAME_CHARS } })
}

pub fn namespaces(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 256,
        "items": { "type": "string", "maxLength": 63, "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$" },
    })
}

/// Label selectors of which any may match (vips.md 2.0, 5).
pub fn selectors(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "maxItems": 16, "items": selector() })
}

/// `metav1.LabelSelector`, with the operators that exist and their values checked.
fn selector() -> Value {
    json!({
        "type": "object",
        "properties": {
            "matchLabels": {
                "type": "object",
                "maxProperties": 32,
                "additionalProperties": { "type": "string", "maxLength": 63 },
            },
            "matchExpressions": {
                "type": "array",
                "maxItems": 16,
                "items": {
                    "type": "object",
                    "required": ["key", "operator"],
                    "properties": {
                        "key": { "type": "string", "maxLength": 317 },
                        "operator": { "type": "string", "enum": ["In", "NotIn", "Exists", "DoesNotExist"] },
                        "values": {
                            "type": "array",
                            "maxItems": 64,
                            "items": { "type": "string", "maxLength": 63 },
                        },
                    },
                    "x-kubernetes-validations": [{
                        "rule": "(self.operator in ['In', 'NotIn']) == (has(self.values) && self.values.size() > 0)",
                        "message": "values must be given with In and NotIn, and only with them",
                    }],
                },
            },
        },
    })
}

/// `a:b`, `large:a:b:c`, or a well-known name.
pub fn communities(_: &mut SchemaGenerator) -> Schema {
    let standard = "([0-9]{1,5}:[0-9]{1,5})";
    let large = "(large:[0-9]{1,10}:[0-9]{1,10}:[0-9]{1,10})";
    let names = crate::advertisement::WELL_KNOWN_COMMUNITIES.map(|(name, _)| name).join("|");
    json_schema!({
        "type": "array",
        "maxItems": 63,
        "items": {
            "type": "string",
            "maxLength": 40,
            "pattern": format!("^({standard}|{large}|{names})$"),
            "x-kubernetes-validations": [{
                "rule": "self.split(':').all(part, !part.matches('^[0-9]+$') || \
                         int(part) <= (self.startsWith('large:') ? 4294967295 : 65535))",
                "message": "each number must be at most 65535, or 4294967295 in a large community",
            }],
        },
    })
}

/// `metav1.Condition`s, merged by type so that two writers do not undo each other.
pub fn conditions(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 16,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["type", "status", "lastTransitionTime", "reason", "message"],
            "properties": {
                "type": { "type": "string", "maxLength": 316 },
                "status": { "type": "string", "enum": ["True", "False", "Unknown"] },
                "observedGeneration": { "type": "integer", "format": "int64", "minimum": 0 },
                "lastTransitionTime": { "type": "string", "format": "date-time" },
                "reason": { "type": "string", "maxLength": 1024, "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$" },
                "message": { "type": "string", "maxLength": 32768 },
            },
        },
    })
}
