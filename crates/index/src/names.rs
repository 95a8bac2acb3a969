//! One string for each name that many objects say: namespaces, nodes, zones, names of ports and labels.

use std::collections::BTreeMap;
use std::sync::Arc;

use portolan_model::{Endpoint, EndpointSlice, Name, Service};

/// Never fewer than this are swept.
const SWEEP_AT_LEAST: usize = 1024;

#[derive(Clone, Debug, Default)]
pub struct Names {
    /// By hash, because comparing numbers is what makes it quick; of two names with one hash only one is shared.
    known: BTreeMap<u64, Name>,
    /// When so many are known, those that nobody says any more go.
    sweep_at: usize,
}

impl Names {
    pub fn share_service(&mut self, service: &mut Service) {
        self.share(&mut service.id.namespace);
        service.ports.iter_mut().for_each(|port| self.share(&mut port.name));
        // Of labels the values are often each Service's own.
        service.labels.replace_keys(|key| self.share(key));
    }

    pub fn share_slice(&mut self, slice: &mut EndpointSlice) {
        slice.ports.iter_mut().for_each(|(name, _, _)| self.share(name));
        slice.endpoints.iter_mut().for_each(|endpoint| self.share_endpoint(endpoint));
    }

    fn share_endpoint(&mut self, endpoint: &mut Endpoint) {
        let hints = endpoint
            .hints
            .iter_mut()
            .flat_map(|hints| hints.zones.iter_mut().chain(&mut hints.nodes))
            .flatten();
        hints.chain(&mut endpoint.node).chain(&mut endpoint.zone).for_each(|name| self.share(name));
    }

    pub fn share(&mut self, name: &mut Name) {
        let hash = fnv(name);
        match self.known.get(&hash) {
            Some(known) if known == name => *name = known.clone(),
            Some(_) => {}
            None => self.add(hash, name.clone()),
        }
    }

    fn add(&mut self, hash: u64, name: Name) {
        if self.known.len() >= self.sweep_at.max(SWEEP_AT_LEAST) {
            self.known.retain(|_, known| Arc::strong_count(known) > 1);
            self.sweep_at = 2 * self.known.len();
        }
        self.known.insert(hash, name);
    }
}

/// FNV-1a of 64 bits.
fn fnv(name: &str) -> u64 {
    name.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_names_are_one_string_and_what_nobody_says_goes() {
        let mut names = Names::default();
        let (mut a, mut b): (Name, Name) = ("n1".into(), "n1".into());
        names.share(&mut a);
        names.share(&mut b);
        assert!(Arc::ptr_eq(&a, &b));
        for number in 0..10 * SWEEP_AT_LEAST {
            names.share(&mut number.to_string().into());
        }
        assert!(names.known.len() <= SWEEP_AT_LEAST);
        assert!(names.known.values().any(|name| &**name == "n1"));
    }
}
