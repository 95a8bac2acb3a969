//! The tests of this crate as a whole.

/// Clients that are sent where they went before.
mod affinity;
/// Small clusters at random: plans, events and packets.
mod cluster;
/// Tables that something else than we changed.
mod foreign;
/// Chains that have rules only while these are of use.
mod gates;
/// nf_tables as far as we use it.
mod kernel;
/// The same in IPv6, where every frontend remembers its own.
mod ledgers;
/// What happens to packets, case by case.
mod packets;
/// Plans in few words, and packets to them.
mod plans;
/// What holds for any cluster and any sequence of events.
mod properties;
/// What a change costs in commands.
mod steps;
