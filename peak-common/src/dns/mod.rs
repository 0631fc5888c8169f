//! DNS messages (RFC 1035), as much of them as the fast path reads and writes.

pub mod edns;
pub mod header;
pub mod name;
pub mod question;
