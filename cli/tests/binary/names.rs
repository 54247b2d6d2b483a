//! Name servers of single hosts, as the configuration names them.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};

use rustix::process::Signal;

use crate::name_server::NameServer;
use crate::process::{darter, health};
use crate::reload::origin;
use crate::serving::{Daemon, configuration};

/// Everything is asked of `all`, and `inside.example` of `own`.
fn upstream(all: &NameServer, own: &NameServer) -> String {
    format!(
        "reload: {{interval: 0s}}\n\
         upstream: {{ipv6: false, dnsServers: ['{}'], hosts: [{{regx: '^inside[.]example:', dnsServers: ['{}']}}]}}\n",
        all.address, own.address
    )
}

/// The whole answer to a request for this host's page.
fn asked(proxy: SocketAddr, host: &str, port: u16) -> String {
    let mut stream = TcpStream::connect(proxy).unwrap();
    let at = format!("{host}:{port}");
    write!(stream, "GET http://{at}/ HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_hosts_own_name_server_is_asked_judged_explained_and_exchanged() {
    let (origin, _) = origin();
    let nobody = NameServer::start(&[]);
    let (own, other) =
        (NameServer::start(&[Ipv4Addr::LOCALHOST]), NameServer::start(&[Ipv4Addr::new(169, 254, 169, 254)]));
    let mut daemon = Daemon::start(&upstream(&nobody, &own));
    let (probes, proxy) = (daemon.running.listening("health"), daemon.running.listening("proxy"));
    health(probes, "200");
    let answer = asked(proxy, "inside.example", origin.port());
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(nobody.asked(), []);
    let answer = asked(proxy, "other.example", origin.port());
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    assert_eq!(nobody.asked().len(), 1);
    assert!(own.asked().iter().all(|(name, _)| name == "inside.example."), "{:?}", own.asked());

    let file = daemon.dir.path().join("darter.yaml");
    let ended = darter(&["explain", "--config", file.to_str().unwrap(), "http://inside.example/"]);
    let says = format!(
        "inside.example is reached straight; its name is asked of upstream.hosts[].dnsServers: {}",
        own.address
    );
    assert!(
        ended.stdout.lines().any(|line| line.starts_with("origin ") && line.ends_with(&says)),
        "{}",
        ended.stdout
    );

    configuration(daemon.dir.path(), &upstream(&nobody, &other));
    daemon.running.signal(Signal::HUP);
    let line = daemon.running.line_with("the configuration was read again");
    assert!(line.contains("changed=upstream.hosts[0].dnsServers[0]"), "{line}");
    let before = own.asked().len();
    let answer = asked(proxy, "inside.example", origin.port());
    assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("169.254.169.254"), "{answer}");
    assert!(own.asked().len() == before && !other.asked().is_empty());
}
