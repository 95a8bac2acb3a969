//! The pure pipeline, objects in and outcomes out: no root, no cluster. One binary, so that it is linked once.

/// docs/services.md: which number is covered by which test.
mod coverage;
/// Every folder of `examples/`, compared with its golden files.
mod examples;
/// The whole line after any history is what a fresh start makes.
mod history;
/// Objects that are wrong, and what they must not do; also what tests/fuzz runs.
mod hostile;
/// Who is masqueraded, refused or dropped: every combination, against a short specification.
mod matrix;
/// Rules of Service semantics that need more than one stage to see.
mod services;
/// `portolan trace` on the examples.
mod trace;
