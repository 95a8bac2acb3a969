//! The real binary on three nodes: kube-apiserver, controllers, routers, packets. Needs root; see CONTRIBUTING.md.
//!
//! - `fixture`: the cluster that all tests share, and workloads of a test's own. `pods`: pods on nodes of a test's choice.
//!   `asking`: requests, and how they must end.
//! - `failing`: what a failed test leaves behind, which is nothing.
//! - `forwarding`: what clients, pods and nodes reach by which address.
//! - `services`: Services that change while they are used.
//! - `kinds`: types that change, several ports, named ports, slices of one's own, ranges of ClusterIPs.
//! - `readiness`: pods that are not ready, that end, that were evicted.
//! - `granular`: who reaches whom by which address, in either family and protocol; pods with the node's network; hostPorts.
//! - `families`: clusters of IPv4 alone, of IPv6 alone, of both.
//! - `announcing`: what the router learns, and in which order things go.
//! - `udp`: flows that never pause go on when their pods are replaced.
//! - `scaling`: requests without pause while endpoints come and go.
//! - `flapping`: the same while one endpoint comes and goes without pause.
//! - `localhost`: node ports on loopback addresses.
//! - `node_addresses`: what a node answers at which of its addresses.
//! - `reload`: the configuration file changes while the agent runs.
//! - `restarts`: agents, controllers and the API server die and return.
//! - `detection`: every way to tell pods from other clients.
//! - `health`: what load balancers ask a node.
//! - `take_over`: the real kube-proxy before and after us; foreign changes to our tables.
//! - `ipvs`: an agent starts in a guest kernel with what kube-proxy's IPVS mode left.
//! - `routers`: the same with FRR in BIRD's place.
//! - `bad_input`: one clear sentence, and nothing else lost.
//! - `hostile`: whatever the API server takes, and nothing else suffers.
//! - `privileges`: what the agent may do, and what it says of what it may not.
//! - `process`: Events on the Node, the pages beside the metrics.
//! - `unattended`: what changes while no agent or no API server is there, and of the agent's own Node.
//! - `own_node`: that Node goes and comes back as another.
//! - `commands`: status, cleanup, crds as an operator runs them.

mod affinity;
mod announcing;
mod asking;
mod bad_input;
mod balancers;
mod commands;
mod detection;
mod failing;
mod families;
mod fixture;
mod flapping;
mod forwarding;
mod granular;
mod health;
mod hostile;
mod invalid;
mod ipvs;
mod kinds;
mod localhost;
mod node_addresses;
mod own_node;
mod pods;
mod privileges;
mod process;
mod readiness;
mod reload;
mod restarts;
mod routers;
mod scaling;
mod services;
mod take_over;
mod topology;
mod udp;
mod unattended;
