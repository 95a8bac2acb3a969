//! portolan-api
