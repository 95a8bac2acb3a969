//! Tables as `nft -f` text, in a fixed order: sets, then chains, by name; elements by key.

use std::fmt::{self, Display, Formatter};
use std::net::IpAddr;
use std::time::Duration;

use crate::{
    Atom, Base, Chain, Element, Field, Hook, KeyType, Range, Rule, Set, Statement, Table, TableFamily, Value,
    ValueType, Verdict, userdata,
};

impl Display for Table {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "table {} {{", self.id)?;
        for (name, set) in &self.sets {
            let elements = self.elements.get(name).map(Vec::as_slice).unwrap_or_default();
            write_set(f, self.id.family, name, set, elements)?;
        }
        for (name, chain) in &self.chains {
            write_chain(f, self.id.family, name, chain)?;
        }
        writeln!(f, "}}")
    }
}

fn write_set(
    f: &mut Formatter<'_>,
    family: TableFamily,
    name: &str,
    set: &Set,
    elements: &[Element],
) -> fmt::Result {
    writeln!(f, "\t{} {name} {{", if set.value.is_some() { "map" } else { "set" })?;
    let by_expression = userdata::is_typeof(&set.key);
    write!(f, "\t\t{} ", if by_expression { "typeof" } else { "type" })?;
    write_types(f, family, &set.key, by_expression)?;
    match &set.value {
        None => {}
        Some(ValueType::Verdict) => write!(f, " : verdict")?,
        Some(ValueType::Concat(types)) => {
            write!(f, " : ")?;
            write_types(f, family, types, by_expression)?;
        }
    }
    writeln!(f)?;
    if let Some(size) = set.size {
        writeln!(f, "\t\tsize {size}")?;
    }
    let timeouts = set.timeouts && set.timeout.is_none();
    let flags = [(set.dynamic, "dynamic"), (set.interval, "interval"), (timeouts, "timeout")];
    let flags: Vec<_> = flags.iter().filter(|(on, _)| *on).map(|(_, name)| *name).collect();
    if !flags.is_empty() {
        writeln!(f, "\t\tflags {}", flags.join(","))?;
    }
    if let Some(timeout) = &set.timeout {
        writeln!(f, "\t\ttimeout {}", Span(timeout))?;
    }
    if let Some(comment) = &set.comment {
        writeln!(f, "\t\tcomment \"{}\"", userdata::cut(comment))?;
    }
    write_elements(f, family, set, elements)?;
    writeln!(f, "\t}}")
}

fn write_types(
    f: &mut Formatter<'_>,
    family: TableFamily,
    types: &[KeyType],
    by_expression: bool,
) -> fmt::Result {
    for (i, kind) in types.iter().enumerate() {
        let joint = if i > 0 { " . " } else { "" };
        let name = if by_expression { kind.expression(family) } else { kind.name(family) };
        write!(f, "{joint}{name}")?;
    }
    Ok(())
}

impl KeyType {
    fn name(self, family: TableFamily) -> &'static str {
        match (self, family) {
            (KeyType::Address, TableFamily::Ip) => "ipv4_addr",
            (KeyType::Address, TableFamily::Ip6) => "ipv6_addr",
            (KeyType::Protocol, _) => "inet_proto",
            (KeyType::Port, _) => "inet_service",
            (KeyType::Mark, _) => "mark",
            (KeyType::Priority, _) => "classid",
            (KeyType::Interface, _) => "ifname",
            (KeyType::Index, _) => "integer",
            (KeyType::Other(_), _) => "unknown",
        }
    }

    fn expression(self, family: TableFamily) -> &'static str {
        match (self, family) {
            (KeyType::Address, TableFamily::Ip) => "ip daddr",
            (KeyType::Address, TableFamily::Ip6) => "ip6 daddr",
            (KeyType::Protocol, _) => "meta l4proto",
            (KeyType::Port, _) => "th dport",
            (KeyType::Mark, _) => "meta mark",
            (KeyType::Priority, _) => "meta priority",
            (KeyType::Interface, _) => "meta iifname",
            (KeyType::Index, _) => "numgen random mod 2",
            (KeyType::Other(_), _) => "unknown",
        }
    }
}

fn write_elements(
    f: &mut Formatter<'_>,
    family: TableFamily,
    set: &Set,
    elements: &[Element],
) -> fmt::Result {
    let mut sorted: Vec<_> = elements.iter().collect();
    // where two ranges of one field touch, the end of one comes before the start of the other
    sorted.sort_by_key(|element| (&element.key, !is_end(element), *element));
    if sorted.is_empty() {
        return Ok(());
    }
    writeln!(f, "\t\telements = {{")?;
    let mut sorted = sorted.into_iter().peekable();
    while let Some(element) = sorted.next() {
        // in a set of one field, the end of a range is an element of its own
        let end = sorted.next_if(|next| is_end(next));
        write!(f, "\t\t\t")?;
        write_element(f, family, set, element, end)?;
        writeln!(f, ",")?;
    }
    writeln!(f, "\t\t}}")
}

fn is_end(element: &Element) -> bool {
    element.range_end() == Some(&Range::End)
}

fn write_element(
    f: &mut Formatter<'_>,
    family: TableFamily,
    set: &Set,
    element: &Element,
    end: Option<&Element>,
) -> fmt::Result {
    let key = element.key.atoms(family, &set.key);
    let last = match (element.range_end(), end) {
        (Some(Range::To(last)), _) => last.atoms(family, &set.key),
        (_, Some(end)) => before(&end.key).atoms(family, &set.key),
        _ if set.interval && set.key.len() == 1 => {
            crate::Bytes::new(&vec![0xff; element.key.len()]).atoms(family, &set.key)
        }
        _ => None,
    };
    match key {
        Some(key) => write_key(f, &key, last.as_deref())?,
        None => write!(f, "{:?}", element.key)?,
    }
    if let Some(timeout) = element.extra.as_ref().and_then(|extra| extra.timeout) {
        write!(f, " timeout {}", Span(&timeout))?;
    }
    match (&element.value, &set.value) {
        (Value::None, _) => Ok(()),
        (Value::Verdict(verdict), _) => write!(f, " : {verdict}"),
        (Value::Bytes(bytes), Some(ValueType::Concat(types))) => match bytes.atoms(family, types) {
            Some(atoms) => {
                write!(f, " : ")?;
                write_key(f, &atoms, None)
            }
            None => write!(f, " : {bytes:?}"),
        },
        (Value::Bytes(bytes), _) => write!(f, " : {bytes:?}"),
    }
}

/// The key just below.
fn before(key: &[u8]) -> crate::Bytes {
    let mut bytes = key.to_vec();
    for byte in bytes.iter_mut().rev() {
        let (less, borrow) = byte.overflowing_sub(1);
        *byte = less;
        if !borrow {
            break;
        }
    }
    crate::Bytes::new(&bytes)
}

fn write_key(f: &mut Formatter<'_>, key: &[Atom], last: Option<&[Atom]>) -> fmt::Result {
    for (i, atom) in key.iter().enumerate() {
        let joint = if i > 0 { " . " } else { "" };
        write!(f, "{joint}{atom}")?;
        match last.and_then(|last| last.get(i)) {
            Some(last) if last != atom => write!(f, "-{last}")?,
            _ => {}
        }
    }
    Ok(())
}

fn write_chain(f: &mut Formatter<'_>, family: TableFamily, name: &str, chain: &Chain) -> fmt::Result {
    writeln!(f, "\tchain {name} {{")?;
    if let Some(Base { kind, hook, priority }) = &chain.base {
        writeln!(f, "\t\ttype {} hook {hook} priority {priority}", kind.name())?;
    }
    for rule in &chain.rules {
        writeln!(f, "\t\t{}", rule.text(family))?;
    }
    writeln!(f, "\t}}")
}

impl Display for Hook {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Hook::Prerouting => "prerouting",
            Hook::Input => "input",
            Hook::Forward => "forward",
            Hook::Output => "output",
            Hook::Postrouting => "postrouting",
        })
    }
}

impl Rule {
    /// The rule as nft text, in a table of this family.
    pub fn text(&self, family: TableFamily) -> String {
        let statements: Vec<_> = self.statements.iter().map(|statement| statement.text(family)).collect();
        let comment = self.comment.as_ref().map(|comment| format!(" comment \"{}\"", userdata::cut(comment)));
        statements.join(" ") + &comment.unwrap_or_default()
    }
}

impl Statement {
    fn text(&self, family: TableFamily) -> String {
        let key = |fields: &[Field]| key_text(fields, family);
        match self {
            Statement::Compare { field, value, negate } => {
                format!("{} {}{value}", field.text(family), not(*negate))
            }
            Statement::IifPrefix(prefix) => format!("{} \"{prefix}*\"", Field::Iif.text(family)),
            Statement::InPrefix { field, address, length, negate } => {
                format!("{} {}{address}/{length}", field.text(family), not(*negate))
            }
            Statement::LastByte { field, mask, value } => {
                let address = |byte| match family {
                    TableFamily::Ip => IpAddr::from([0, 0, 0, byte]),
                    TableFamily::Ip6 => IpAddr::from(u128::from(byte).to_be_bytes()),
                };
                format!("{} & {} == {}", field.text(family), address(*mask), address(*value))
            }
            Statement::InSet { key: fields, set, negate } => {
                format!("{} {}@{set}", key(fields), not(*negate))
            }
            Statement::MarkTest { mask, value } => format!("meta mark & {mask:#010x} == {value:#010x}"),
            Statement::MarkOr(bits) => format!("meta mark set meta mark or {bits:#010x}"),
            Statement::MarkXor(bits) => format!("meta mark set meta mark xor {bits:#010x}"),
            Statement::SetPriority(number) => format!("meta priority set {}", Atom::Priority(*number)),
            Statement::SetPriorityRandom { modulus, offset } => {
                let random = Field::Numgen { modulus: *modulus, offset: *offset };
                format!("meta priority set {}", random.text(family))
            }
            Statement::SetPriorityFrom { key: fields, map } => {
                format!("meta priority set {} map @{map}", key(fields))
            }
            Statement::CtStatusDnat => "ct status dnat".into(),
            Statement::DaddrIsLocal => "fib daddr type local".into(),
            Statement::Vmap { key: fields, map } => format!("{} vmap @{map}", key(fields)),
            Statement::Dnat { key: fields, map, port } => {
                let port = port.map_or(String::new(), |port| format!(":{port}"));
                format!("dnat {family} to {} map @{map}{port}", key(fields))
            }
            Statement::Masquerade { fully_random: true } => "masquerade fully-random".into(),
            Statement::Masquerade { fully_random: false } => "masquerade".into(),
            Statement::Counter => "counter".into(),
            Statement::Reject => "reject".into(),
            Statement::RejectTcpReset => "reject with tcp reset".into(),
            Statement::Verdict(verdict) => verdict.to_string(),
            Statement::Update { set, key: fields, value, timeout } => {
                let timeout = timeout.as_ref().map(|t| format!(" timeout {}", Span(t))).unwrap_or_default();
                let value = if value.is_empty() { String::new() } else { format!(" : {}", key(value)) };
                format!("update @{set} {{ {}{timeout}{value} }}", key(fields))
            }
        }
    }
}

fn not(negate: bool) -> &'static str {
    if negate { "!= " } else { "" }
}

fn key_text(fields: &[Field], family: TableFamily) -> String {
    fields.iter().map(|field| field.text(family)).collect::<Vec<_>>().join(" . ")
}

impl Field {
    fn text(&self, family: TableFamily) -> String {
        match self {
            Field::Saddr => format!("{family} saddr"),
            Field::Daddr => format!("{family} daddr"),
            Field::L4Proto => "meta l4proto".into(),
            Field::Sport => "th sport".into(),
            Field::Dport => "th dport".into(),
            Field::Numgen { modulus, offset: 0 } => format!("numgen random mod {modulus}"),
            Field::Numgen { modulus, offset } => format!("numgen random mod {modulus} offset {offset}"),
            Field::CtOriginalSaddr => format!("ct original {family} saddr"),
            Field::CtOriginalDaddr => format!("ct original {family} daddr"),
            Field::CtOriginalDport => "ct original proto-dst".into(),
            Field::CtReplySport => "ct reply proto-src".into(),
            Field::Mark => "meta mark".into(),
            Field::Priority => "meta priority".into(),
            Field::Iif => "meta iifname".into(),
            Field::Oif => "meta oifname".into(),
        }
    }
}

impl Display for Verdict {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Accept => f.write_str("accept"),
            Verdict::Drop => f.write_str("drop"),
            Verdict::Return => f.write_str("return"),
            Verdict::Jump(chain) => write!(f, "jump {chain}"),
            Verdict::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}

impl Display for Atom {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Atom::Address(IpAddr::V4(ip)) => write!(f, "{ip}"),
            Atom::Address(IpAddr::V6(ip)) => write!(f, "{ip}"),
            Atom::Protocol(6) => f.write_str("tcp"),
            Atom::Protocol(17) => f.write_str("udp"),
            Atom::Protocol(132) => f.write_str("sctp"),
            Atom::Protocol(number) => write!(f, "{number}"),
            Atom::Port(port) => write!(f, "{port}"),
            Atom::Index(index) => write!(f, "{index}"),
            Atom::Mark(mark) => write!(f, "{mark:#010x}"),
            Atom::Priority(0) => f.write_str("none"),
            Atom::Priority(u32::MAX) => f.write_str("root"),
            Atom::Priority(number) => write!(f, "{:x}:{:x}", number >> 16, number & 0xffff),
            Atom::Interface(name) => write!(f, "\"{name}\""),
        }
    }
}

/// A duration in nft's words.
struct Span<'a>(&'a Duration);

impl Display for Span<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0.subsec_millis() {
            0 => write!(f, "{}s", self.0.as_secs()),
            _ => write!(f, "{}ms", self.0.as_millis()),
        }
    }
}
