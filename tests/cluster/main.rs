//! The real binary on three nodes: kube-apiserver, controllers, routers, packets. Needs root; see CONTRIBUTING.md.
//!
//! - `fixture`: the cluster that all tests share, and workloads of a test's own.
//! - `forwarding`: what clients, pods and nodes reach by which address.
//! - `services`: Services that change while they are used.
//! - `announcing`: what the router learns, and in which order things go.
//! - `udp`: flows that never pause go on when their pods are replaced.
//! - `scaling`: requests without pause while endpoints come and go.
//! - `flapping`: the same while one endpoint comes and goes without pause.
//! - `localhost`: node ports on loopback addresses.
//! - `reload`: the configuration file changes while the agent runs.
//! - `restarts`: agents, controllers and the API server die and return.
//! - `detection`: every way to tell pods from other clients.
//! - `health`: what load balancers ask a node.
//! - `take_over`: the real kube-proxy before and after us; foreign changes to our tables.
//! - `routers`: the same with FRR in BIRD's place.
//! - `bad_input`: one clear sentence, and nothing else lost.
//! - `hostile`: whatever the API server takes, and nothing else suffers.
//! - `commands`: status, cleanup, crds as an operator runs them.

mod announcing;
mod bad_input;
mod commands;
mod detection;
mod fixture;
mod flapping;
mod forwarding;
mod health;
mod hostile;
mod localhost;
mod reload;
mod restarts;
mod routers;
mod scaling;
mod services;
mod take_over;
mod udp;
