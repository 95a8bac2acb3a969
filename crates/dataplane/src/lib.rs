//! portolan-dataplane
