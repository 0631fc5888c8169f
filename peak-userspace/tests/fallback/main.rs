//! The fallback against the RFCs, a file each, tests named by section. Replies are read with `hickory-proto`, which the
//! side under test does not use for its own zones.

mod batches;
mod bounds;
mod fixture;
mod forward;
mod kubernetes;
mod property;
mod rfc1035;
mod rfc2308;
mod rfc6891;
mod rfc7766;
mod rfc8482;
mod rfc8906;
mod rfc9619;
