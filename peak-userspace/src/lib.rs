//! Peak's agent. One change's way: [`source`] → [`records`] → [`snapshot`] → [`dataplane`] and [`fallback`].

pub mod admin;
pub mod app;
pub mod check;
pub mod cli;
pub mod config;
pub mod dataplane;
pub mod endpoints;
pub mod export;
pub mod fallback;
pub mod interfaces;
pub mod metrics;
pub mod name;
pub mod objects;
pub mod pods;
pub mod records;
mod reverse;
pub mod snapshot;
pub mod source;
pub mod state;
pub mod telemetry;
pub mod validate;
