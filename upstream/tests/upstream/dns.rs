//! Name servers of the operator's choice, for all hosts and for single ones.

use crate::lab::{Ca, Server, config, fetch};
use crate::name_server::{A, NameServer, Services};
use darter_upstream::{Dns, Kind, Lookup, Permit, Route, Routes, Stage, Timeouts, Upstream, UpstreamConfig};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::net::UdpSocket;

const AAAA: u16 = 28;

fn upstream(servers: Vec<SocketAddr>, ipv6: bool) -> Upstream {
    Upstream::new(UpstreamConfig { dns: Dns { servers, ipv6 }, ..config() })
}

#[tokio::test]
async fn names_are_resolved_by_the_configured_server() {
    let origin = Server::h2c().await;
    let names = NameServer::start(&[Ipv4Addr::LOCALHOST]);
    let link = upstream(vec![names.address], true).dial("registry.example", origin.port).await.unwrap();
    assert_eq!(link.reached().address, Some(SocketAddr::from(([127, 0, 0, 1], origin.port))));
    let name = "registry.example.".to_owned();
    assert_eq!(names.asked(), [(name.clone(), A), (name, AAAA)]);
    // /etc/hosts comes first, and literals are nobody's question.
    upstream(vec![names.address], true).dial("127.0.0.1", origin.port).await.unwrap();
    assert_eq!(names.asked().len(), 2);
}

#[tokio::test]
async fn an_answer_that_is_too_long_for_udp_is_asked_for_over_tcp() {
    let origin = Server::h2c().await;
    let (names, over_tcp) = NameServer::start_long(Ipv4Addr::LOCALHOST);
    let link = upstream(vec![names.address], false).dial("registry.example", origin.port).await.unwrap();
    assert_eq!(link.reached().address, Some(SocketAddr::from(([127, 0, 0, 1], origin.port))));
    assert_eq!(names.asked(), [("registry.example.".to_owned(), A)]);
    assert_eq!(over_tcp.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn without_ipv6_nobody_asks_for_it() {
    let origin = Server::h2c().await;
    let names = NameServer::start(&[Ipv4Addr::LOCALHOST]);
    upstream(vec![names.address], false).dial("registry.example", origin.port).await.unwrap();
    assert_eq!(names.asked(), [("registry.example.".to_owned(), A)]);

    // The system's answers are sorted out; on most machines localhost has both.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let link = upstream(Vec::new(), false).dial("localhost", port).await.unwrap();
    assert!(link.reached().address.unwrap().is_ipv4());
}

#[tokio::test]
async fn a_name_that_changes_its_mind_gets_nowhere() {
    let origin = Server::http1().await;
    let forbidden = Ipv4Addr::new(127, 0, 0, 9);
    let names = NameServer::start(&[Ipv4Addr::LOCALHOST, forbidden]);
    let permit: Permit = Arc::new(move |host: &str, _, address: Option<IpAddr>| {
        let address = address.unwrap();
        if address == forbidden { Err(format!("destination {host} leads to {address}")) } else { Ok(()) }
    });
    let dns = Dns { servers: vec![names.address], ipv6: false };
    let upstream = Upstream::new(UpstreamConfig { permit, dns, ..config() });
    let url = format!("http://registry.example:{}/close", origin.port);
    fetch(&upstream, &url).await.unwrap();
    let error = fetch(&upstream, &url).await.unwrap_err();
    assert_eq!(error.to_string(), "destination registry.example leads to 127.0.0.9");
    assert!(matches!(error.kind, Kind::NotPermitted { .. }), "{error:?}");
    assert_eq!(origin.accepted(), 1);
}

#[tokio::test]
async fn a_name_that_is_not_there_is_one_clear_sentence() {
    let names = NameServer::start(&[]);
    let error = upstream(vec![names.address], true).dial("nobody.example", 443).await.unwrap_err();
    assert_eq!(error.to_string(), "cannot resolve the name nobody.example: there is no such name");
}

#[tokio::test]
async fn the_next_server_is_asked_when_one_fails() {
    let origin = Server::h2c().await;
    let closed = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let names = NameServer::start(&[Ipv4Addr::LOCALHOST]);
    upstream(vec![closed, names.address], false).dial("registry.example", origin.port).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn servers_that_say_nothing_are_given_up_in_time() {
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let error =
        upstream(vec![silent.local_addr().unwrap()], true).dial("registry.example", 443).await.unwrap_err();
    let after = Timeouts::default().dial;
    let gave_up = matches!(&error.kind, Kind::Resolve { reason } if reason.contains("answered"));
    assert!(gave_up || error.kind == Kind::Timeout { stage: Stage::Resolve, after }, "{error:?}");
}

// === of single hosts ===

/// Hosts below `inside.example` have this name server, and others have none of their own.
fn inside_by(server: &NameServer) -> Routes {
    let (tls, servers) = (Ca::new().client(), Lookup::Servers([server.address].into()));
    Arc::new(move |host, _| {
        let lookup = if host.ends_with(".inside.example") { servers.clone() } else { Lookup::AsOthers };
        Route { lookup, ..Route::straight(tls.clone()) }
    })
}

#[tokio::test]
async fn a_hosts_own_server_is_asked_for_it_and_for_no_other() {
    let origin = Server::h2c().await;
    let (all, own) = (NameServer::start(&[]), NameServer::start(&[Ipv4Addr::LOCALHOST]));
    let dns = Dns { servers: vec![all.address], ipv6: false };
    let upstream = Upstream::new(UpstreamConfig { dns, routes: inside_by(&own), ..config() });
    let link = upstream.dial("registry.inside.example", origin.port).await.unwrap();
    assert_eq!(link.reached().address, Some(SocketAddr::from(([127, 0, 0, 1], origin.port))));
    assert_eq!(own.asked(), [("registry.inside.example.".to_owned(), A)]);
    assert_eq!(all.asked(), []);

    let error = upstream.dial("registry.example", origin.port).await.unwrap_err();
    assert_eq!(error.to_string(), "cannot resolve the name registry.example: there is no such name");
    assert_eq!(own.asked().len(), 1);
    assert_eq!(all.asked(), [("registry.example.".to_owned(), A)]);
    for (host, way) in [
        (
            "a.inside.example",
            format!("straight; its name is asked of upstream.hosts[].dnsServers: {}", own.address),
        ),
        ("a.example", format!("straight; its name is asked of upstream.dnsServers: {}", all.address)),
        ("127.0.0.1", "straight to 127.0.0.1".to_owned()),
    ] {
        assert_eq!(upstream.way(host, 443), way);
    }
}

#[tokio::test]
async fn what_a_hosts_own_server_says_is_judged() {
    let own = NameServer::start(&[Ipv4Addr::new(169, 254, 169, 254)]);
    let permit: Permit = Arc::new(|host, _, address| Err(format!("{host} leads to {}", address.unwrap())));
    let upstream = Upstream::new(UpstreamConfig { permit, routes: inside_by(&own), ..config() });
    let error = upstream.dial("a.inside.example", 443).await.unwrap_err();
    assert_eq!(error.to_string(), "a.inside.example leads to 169.254.169.254");
    assert!(matches!(error.kind, Kind::NotPermitted { .. }), "{error:?}");
}

#[tokio::test]
async fn another_configuration_asks_another_server() {
    let origin = Server::http1().await;
    let (before, after) =
        (NameServer::start(&[Ipv4Addr::LOCALHOST]), NameServer::start(&[Ipv4Addr::LOCALHOST]));
    let upstream = Upstream::new(UpstreamConfig { routes: inside_by(&before), ..config() });
    let url = format!("http://a.inside.example:{}/", origin.port);
    fetch(&upstream, &url).await.unwrap();
    assert!(!before.asked().is_empty() && after.asked().is_empty());
    let asked = before.asked().len();
    upstream.replace(UpstreamConfig { routes: inside_by(&after), ..config() });
    fetch(&upstream, &url).await.unwrap();
    assert!(before.asked().len() == asked && !after.asked().is_empty());
}

#[tokio::test]
async fn the_targets_of_a_service_are_names_with_ports() {
    let services = Services::default();
    let names = NameServer::with_services(&[Ipv4Addr::LOCALHOST], services.clone());
    let upstream = upstream(vec![names.address], true);
    assert!(upstream.services("_darter._tcp.cluster.test").await.is_err(), "there is none");
    *services.lock().unwrap() = vec![("one.test".to_owned(), 8002), ("two.test".to_owned(), 8003)];
    let mut found = upstream.services("_darter._tcp.cluster.test").await.unwrap();
    found.sort();
    assert_eq!(found, [("one.test.".to_owned(), 8002), ("two.test.".to_owned(), 8003)]);
    assert_eq!(upstream.addresses("one.test.").await.unwrap(), [Ipv4Addr::LOCALHOST]);
}
