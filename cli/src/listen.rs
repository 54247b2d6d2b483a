//! Sockets, bound before anything starts, so that an address that is taken ends the process before it has done anything,
//! and so that port 0 can be asked for.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use darter_listen::BindError;
use tokio::net::TcpListener;

use crate::config::{Listen, Ports};
use crate::exit::{self, Failure};

/// A bound socket that nobody serves yet.
#[derive(Debug)]
pub(crate) struct Bound {
    pub(crate) listener: TcpListener,
    /// With the port that it really has.
    pub(crate) addr: SocketAddr,
}

/// Binds the first free port of `listen` for `component`. `setting` is the key or flag that an operator would change.
/// Clients of the proxy get there only as clients of what listens there: not through the proxy.
///
/// # Errors
/// When no port is free, or the address is not this host's.
pub(crate) async fn bind(component: &'static str, listen: &Listen, setting: &str) -> exit::Result<Bound> {
    let Ports { first, last } = listen.ports;
    let mut failed = None;
    for port in first..=last {
        match bound(listen, port) {
            Ok(Bound { listener, addr }) => {
                // Tests and scripts read this line to learn the port.
                let namespace = listen.namespace.as_ref().map(|path| path.display().to_string());
                tracing::info!(%component, %addr, namespace, "listening");
                darter_proxy::reserve(addr);
                return Ok(Bound { listener, addr });
            }
            Err(error) => failed = Some(error),
        }
    }
    let why = failed.map(|error| reason(&error)).unwrap_or_default();
    let ports = if first == last { first.to_string() } else { format!("{first} to {last}") };
    let ip = if listen.ip.is_ipv6() { format!("[{}]", listen.ip) } else { listen.ip.to_string() };
    Err(Failure::unavailable(format!("cannot listen on {ip}:{ports} ({component}, set by {setting}): {why}")))
}

/// The address by which a program on this machine reaches a listener.
pub(crate) fn local(addr: SocketAddr) -> SocketAddr {
    let ip = match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, addr.port())
}

fn bound(listen: &Listen, port: u16) -> Result<Bound, BindError> {
    let listener = darter_listen::bind(SocketAddr::new(listen.ip, port), listen.namespace.as_deref())?;
    Ok(Bound { addr: listener.local_addr()?, listener })
}

fn reason(error: &BindError) -> String {
    let socket = match error {
        BindError::Socket(socket) => socket,
        BindError::Namespace { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            return format!("{error}; it takes CAP_SYS_ADMIN");
        }
        BindError::Namespace { .. } => return error.to_string(),
    };
    match socket.kind() {
        io::ErrorKind::AddrInUse => "another program listens there already".to_owned(),
        io::ErrorKind::AddrNotAvailable => "this host has no such address".to_owned(),
        io::ErrorKind::PermissionDenied => {
            "not permitted; ports below 1024 need root or CAP_NET_BIND_SERVICE".to_owned()
        }
        _ => socket.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(first: u16, last: u16) -> Listen {
        Listen { ip: Ipv4Addr::LOCALHOST.into(), ports: Ports { first, last }, namespace: None }
    }

    #[tokio::test]
    async fn port_0_is_bound_and_known() {
        let bound = bind("proxy", &on(0, 0), "--proxy-addr").await.unwrap();
        assert_ne!(bound.addr.port(), 0);
    }

    #[tokio::test]
    async fn a_taken_port_is_named_with_its_setting() {
        let other = bind("proxy", &on(0, 0), "x").await.unwrap();
        let taken = other.addr.port();
        let failure = format!("{:?}", bind("proxy", &on(taken, taken), "proxy.tcpListen").await.unwrap_err());
        let expected = format!(
            "cannot listen on 127.0.0.1:{taken} (proxy, set by proxy.tcpListen): another program listens there already"
        );
        assert!(failure.contains(&expected), "{failure}");
    }

    #[tokio::test]
    async fn a_range_gives_its_first_free_port() {
        let taken = bind("proxy", &on(0, 0), "x").await.unwrap();
        let port = taken.addr.port();
        let bound = bind("proxy", &on(port, port.saturating_add(20)), "x").await.unwrap();
        assert!(bound.addr.port() > port);
    }

    #[tokio::test]
    async fn an_address_of_another_host_is_said_to_be_one() {
        let listen = Listen::at(SocketAddr::from(([192, 0, 2, 1], 0)));
        let failure = format!("{:?}", bind("proxy", &listen, "x").await.unwrap_err());
        assert!(failure.contains("this host has no such address"), "{failure}");
    }
}
