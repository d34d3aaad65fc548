//! Addresses of a server's name.
//!
//! This binary is static and has no NSS of its own, so the system's `getent` is asked, which knows
//! what the system knows. `*.localhost` is this machine without asking (RFC 6761): not every
//! system knows that.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _},
    process::Stdio,
};

use anyhow::{Context as _, bail};
use tokio::process::Command;

/// The addresses to try, in order; at least one.
pub(super) async fn resolve(host: &str, port: u16) -> anyhow::Result<Vec<SocketAddr>> {
    let found = match known(host) {
        Some(addresses) => addresses,
        None => ask(host).await.with_context(|| format!("cannot look up {host}"))?,
    };
    if found.is_empty() {
        bail!("there is no address of {host}: is the name right? (docs/operations.md, \"Names\")");
    }
    Ok(found.into_iter().map(|address| SocketAddr::new(address, port)).collect())
}

/// What needs no asking.
fn known(host: &str) -> Option<Vec<IpAddr>> {
    if let Ok(address) = host.parse() {
        return Some(vec![address]);
    }
    let name = host.trim_end_matches('.').to_ascii_lowercase();
    let local = name == "localhost" || name.ends_with(".localhost");
    local.then(|| vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()])
}

async fn ask(host: &str) -> io::Result<Vec<IpAddr>> {
    let answer = Command::new("getent").args(["ahosts", "--", host]).stdin(Stdio::null()).output().await;
    match answer {
        Ok(answer) => Ok(addresses(&String::from_utf8_lossy(&answer.stdout))),
        // Systems without it, such as macOS, do not link statically.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let host = host.to_owned();
            tokio::task::spawn_blocking(move || without_getent(&host)).await.map_err(io::Error::other)?
        }
        Err(error) => Err(error),
    }
}

#[expect(clippy::disallowed_methods, reason = "only where the system's own program is missing")]
fn without_getent(host: &str) -> io::Result<Vec<IpAddr>> {
    Ok((host, 0).to_socket_addrs()?.map(|address| address.ip()).collect())
}

/// The addresses of `getent ahosts`: one a line and kind of socket.
fn addresses(text: &str) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for line in text.lines() {
        let address = line.split_whitespace().next().and_then(|word| word.parse().ok());
        if let Some(address) = address.filter(|address| !found.contains(address)) {
            found.push(address);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_local_names_need_no_asking() {
        let local: Vec<IpAddr> = vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        assert_eq!(known("198.51.100.7"), Some(vec!["198.51.100.7".parse().unwrap()]));
        assert_eq!(known("::1"), Some(vec![Ipv6Addr::LOCALHOST.into()]));
        assert_eq!(known("api.firkin.LOCALHOST."), Some(local));
        assert_eq!(known("notlocalhost"), None);
        assert_eq!(known("api.example.com"), None);
    }

    #[test]
    fn each_address_of_getent_is_tried_once() {
        let text =
            "203.0.113.5     STREAM api.example.com\n203.0.113.5     DGRAM  \n2001:db8::1 STREAM \n\nx\n";
        let expected: Vec<IpAddr> = vec!["203.0.113.5".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        assert_eq!(addresses(text), expected);
    }
}
