//! Peak's agent. One change's way: [`source`] → [`records`] → [`snapshot`] → [`dataplane`] and [`fallback`].

pub mod check;
pub mod cli;
pub mod config;
pub mod dataplane;
pub mod fallback;
pub mod name;
pub mod records;
pub mod snapshot;
pub mod source;
pub mod validate;
