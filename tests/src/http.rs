//! What an agent says over HTTP.

use std::{
    io::{Read, Write},
    net::TcpStream,
};

use anyhow::Result;

use crate::Namespace;

/// Asks a server in `namespace` for a path; returns head and body as they came.
///
/// # Errors
/// Nobody answers.
pub fn http_get(namespace: &Namespace, server: &str, path: &str) -> Result<String> {
    let mut said = String::new();
    let mut stream = namespace.run(|| TcpStream::connect(server))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: peak\r\nConnection: close\r\n\r\n"
    )?;
    stream.read_to_string(&mut said)?;
    Ok(said)
}
