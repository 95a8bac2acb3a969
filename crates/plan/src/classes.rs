use portolan_model::{Name, Service, ServiceType};

/// Which `spec.loadBalancerClass` values are ours (A1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Classes {
    /// Our own, and foreign ones that we serve as well.
    pub names: Vec<Name>,
    /// Services without a class are ours too.
    pub default: bool,
}

impl Default for Classes {
    fn default() -> Self {
        Classes { names: vec!["portolan.dev/lb".into()], default: true }
    }
}

impl Classes {
    /// Whether the Service's load-balancer addresses are ours to give; those of other Services are never touched.
    pub fn own(&self, service: &Service) -> bool {
        let ours = service.class.as_ref().map_or(self.default, |class| self.names.contains(class));
        service.kind == ServiceType::LoadBalancer && ours
    }
}
