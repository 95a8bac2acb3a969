//! portolan-index
