//! Values of the configuration that are texts in the file.

use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use portolan_model::Name;
use portolan_plan::node_ports::Selector;
use serde::{Deserialize, Deserializer, Serializer, de};

pub const HEALTHZ_PORT: u16 = 10256;
pub const METRICS_PORT: u16 = 10249;

pub fn healthz_address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
    address(deserializer, HEALTHZ_PORT)
}

pub fn metrics_address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
    address(deserializer, METRICS_PORT)
}

/// `ADDRESS:PORT`, or only the address; empty for none.
fn address<'de, D: Deserializer<'de>>(deserializer: D, port: u16) -> Result<Option<SocketAddr>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let without_port = || text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, port));
    match text.is_empty() {
        true => Ok(None),
        false => text.parse().or_else(|_| without_port()).map(Some).map_err(de::Error::custom),
    }
}

pub fn bind_address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<IpAddr>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() {
        return Ok(None);
    }
    let ip: IpAddr = text.parse().map_err(de::Error::custom)?;
    Ok(Some(ip).filter(|ip| !ip.is_unspecified()))
}

pub fn selectors<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Selector>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    texts.iter().map(|text| text.parse().map_err(de::Error::custom)).collect()
}

pub fn interface<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Name>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let is_name = |c: char| c.is_ascii_graphic() && !"/*\"".contains(c);
    match text.len() <= 15 && text.chars().all(is_name) {
        true => Ok(Some(text.into()).filter(|name: &Name| !name.is_empty())),
        false => {
            Err(de::Error::custom(format!("{text:?} cannot be an interface's name, or the beginning of one")))
        }
    }
}

pub fn label_value<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Name>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let is_inner = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let ends = |c: Option<char>| c.is_none_or(|c| c.is_ascii_alphanumeric());
    let is_value = text.len() <= 63 && text.chars().all(is_inner);
    match is_value && ends(text.chars().next()) && ends(text.chars().last()) {
        true => Ok(Some(text.into()).filter(|name: &Name| !name.is_empty())),
        false => Err(de::Error::custom(format!("{text:?} cannot be the value of a label"))),
    }
}

pub fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    let parsed = text.parse::<jiff::SignedDuration>().map_err(de::Error::custom)?;
    parsed.try_into().map_err(|_| de::Error::custom(format!("{text} is negative")))
}

pub fn as_texts<S: Serializer>(selectors: &[Selector], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(selectors.iter().map(Selector::to_string))
}

/// Empty for none.
pub fn as_text<T: Display, S: Serializer>(value: &Option<T>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&value.as_ref().map(T::to_string).unwrap_or_default())
}

/// `24h0m0s`.
pub fn as_go_duration<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    let secs = duration.as_secs();
    let (hours, minutes, secs) = (secs / 3600, secs / 60 % 60, secs % 60);
    serializer.collect_str(&match (hours, minutes) {
        (0, 0) => format!("{secs}s"),
        (0, _) => format!("{minutes}m{secs}s"),
        (_, _) => format!("{hours}h{minutes}m{secs}s"),
    })
}
