//! Who may use the proxy by its address, and how much. Clients come from loopback, which is no client, so a load balancer
//! introduces them.

use crate::lab::{Darter, Origin, Setup, full, read_head, tls_connect};
use darter_certs::Authority;
use darter_proxy::{Clients, Entrance, Listener, Mode, PerClient, Rate};
use http::Response;
use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// A way in behind a load balancer on this host.
async fn listen(darter: &mut Darter, entrance: Entrance) -> SocketAddr {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let mode = Mode { entrance, balancers: vec!["127.0.0.0/8".parse().unwrap()] };
    let listener = Listener { socket, mode };
    darter.running.spawn(darter_proxy::run(listener, darter.proxy.clone(), darter.shutdown.clone()));
    address
}

/// A connection of a client at `from`.
async fn connect(to: SocketAddr, from: &str) -> TcpStream {
    let mut stream = TcpStream::connect(to).await.unwrap();
    let (family, us) = if from.contains(':') { ("TCP6", "2001:db8::1") } else { ("TCP4", "192.0.2.1") };
    stream.write_all(format!("PROXY {family} {from} {us} 40000 443\r\n").as_bytes()).await.unwrap();
    stream
}

/// What is said until the connection closes.
async fn said(mut stream: TcpStream) -> Vec<u8> {
    let mut said = Vec::new();
    // A reset is as good as a close.
    let _ = stream.read_to_end(&mut said).await;
    said
}

async fn exchange(to: SocketAddr, from: &str, request: &str) -> String {
    let mut stream = connect(to, from).await;
    stream.write_all(request.as_bytes()).await.unwrap();
    String::from_utf8_lossy(&said(stream).await).into_owned()
}

fn only(nets: &[&str]) -> Clients {
    Clients { allowed: nets.iter().map(|net| net.parse().unwrap()).collect(), ..Clients::default() }
}

fn per_client(connections: usize, requests: Option<(u32, u32)>) -> Clients {
    let positive = |number| NonZeroU32::new(number).unwrap();
    let requests =
        requests.map(|(per_second, burst)| Rate { per_second: positive(per_second), burst: positive(burst) });
    let per_client = PerClient { connections: NonZeroUsize::new(connections), requests };
    Clients { per_client, ..Clients::default() }
}

const HEALTHY: &str = "GET /healthy HTTP/1.1\r\nHost: proxy.example\r\nConnection: close\r\n\r\n";

#[tokio::test]
async fn who_is_not_listed_is_told_so_in_its_own_language() {
    let setup = Setup { clients: only(&["192.0.2.0/25", "2001:db8::/32"]), ..Setup::default() };
    let mut darter = Darter::start(setup).await;
    let port = listen(&mut darter, Entrance::default()).await;
    for welcome in ["192.0.2.7", "::ffff:192.0.2.7", "2001:db8::7"] {
        let answer = exchange(port, welcome, HEALTHY).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{welcome}: {answer}");
    }
    let sentence = "this proxy does not serve clients at 192.0.2.200 (proxy.clients)";
    let answer = exchange(port, "192.0.2.200", &HEALTHY.replace("close", "keep-alive")).await;
    assert!(answer.starts_with(&format!("HTTP/1.1 403 {sentence}\r\n")), "{answer}");
    assert!(answer.ends_with(&format!("\r\n\r\n{sentence}\n")), "{answer}");
    let connect = "CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n";
    let answer = exchange(port, "::ffff:192.0.2.200", connect).await;
    assert!(answer.starts_with(&format!("HTTP/1.1 403 {sentence}\r\n")), "{answer}");
    let registry = "GET /v2/ HTTP/1.1\r\nHost: proxy.example\r\n\r\n";
    let answer = exchange(port, "192.0.2.200", registry).await;
    assert!(answer.contains("\"code\":\"DENIED\"") && answer.contains(sentence), "{answer}");
    // Loopback is as good as any other address.
    assert!(darter.exchange(HEALTHY).await.starts_with("HTTP/1.1 403 "));
    darter.until("proxy_turned_away_total{reason=\"client\"}", 4.0).await;
}

#[tokio::test]
async fn ways_in_without_a_proxys_manners_are_closed_to_strangers_too() {
    let setup = Setup { clients: only(&["192.0.2.7/32"]), ..Setup::default() };
    let origin = Origin::https(&setup.origin_ca, async |_| Response::new(full("hello"))).await;
    let (ca, port) = (setup.origin_ca.clone(), Some(origin.port));
    let mut darter = Darter::start(setup).await;
    let sni = listen(&mut darter, Entrance::Sni { port }).await;
    let redirected = listen(&mut darter, Entrance::Transparent).await;
    assert!(tls_connect(connect(sni, "192.0.2.7").await, "localhost", &ca, &[]).await.is_ok());
    for entrance in [sni, redirected] {
        let refused = tls_connect(connect(entrance, "192.0.2.8").await, "localhost", &ca, &[]).await;
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains("AccessDenied"), "{refused}");
    }
    let request = "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n";
    let answer = exchange(redirected, "192.0.2.8", request).await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    darter.until("proxy_turned_away_total{reason=\"client\"}", 3.0).await;
}

#[tokio::test(start_paused = true)]
async fn a_stranger_that_says_nothing_is_not_waited_for() {
    let setup = Setup { clients: only(&["192.0.2.7/32"]), ..Setup::default() };
    let mut darter = Darter::start(setup).await;
    for entrance in [Entrance::default(), Entrance::Transparent] {
        let port = listen(&mut darter, entrance).await;
        let (stranger, begun) = (connect(port, "192.0.2.8").await, tokio::time::Instant::now());
        assert!(said(stranger).await.is_empty());
        assert!(begun.elapsed() < std::time::Duration::from_secs(30), "{:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn a_client_has_as_many_connections_as_it_may_and_its_tunnels_count() {
    let setup = Setup { clients: per_client(2, None), ..Setup::default() };
    let origin = Origin::raw(async |mut stream: TcpStream| {
        let _ = stream.read_u8().await;
    })
    .await;
    let mut darter = Darter::start(setup).await;
    let port = listen(&mut darter, Entrance::default()).await;
    let tunnel = async |from| {
        let mut stream = connect(port, from).await;
        let authority = format!("127.0.0.1:{}", origin.port);
        let request = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 200 "));
        stream
    };
    let (first, _second) = (tunnel("192.0.2.7").await, tunnel("192.0.2.7").await);
    assert_eq!(exchange(port, "192.0.2.7", HEALTHY).await, "");
    darter.until("proxy_turned_away_total{reason=\"connections\"}", 1.0).await;
    // The same host by IPv6 is another client, and so is another host; addresses of one /64 are one.
    let _others = [tunnel("192.0.2.8").await, tunnel("2001:db8::1").await, tunnel("2001:db8::2").await];
    assert_eq!(exchange(port, "2001:db8::3", HEALTHY).await, "");
    // This host itself is none.
    assert!(darter.exchange(HEALTHY).await.starts_with("HTTP/1.1 200 "));

    drop(first);
    darter.until("proxy_connections", 4.0).await;
    assert!(exchange(port, "192.0.2.7", HEALTHY).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test(start_paused = true)]
async fn requests_beyond_the_rate_are_told_when_to_come_again() {
    let setup = Setup { clients: per_client(0, Some((1, 2))), ..Setup::default() };
    let mut darter = Darter::start(setup).await;
    let port = listen(&mut darter, Entrance::default()).await;
    let mut client = connect(port, "192.0.2.7").await;
    let kept = HEALTHY.replace("close", "keep-alive");
    for status in ["200", "200", "429"] {
        client.write_all(kept.as_bytes()).await.unwrap();
        let head = read_head(&mut client).await;
        assert!(head.contains(&format!("HTTP/1.1 {status} ")), "{head}");
        if status == "429" {
            assert!(head.contains("\r\nretry-after: 1\r\n"), "{head}");
        }
    }
    let registry = "GET /v2/ HTTP/1.1\r\nHost: proxy.example\r\nConnection: close\r\n\r\n";
    let answer = exchange(port, "192.0.2.7", registry).await;
    assert!(answer.starts_with("HTTP/1.1 429 ") && answer.contains("TOOMANYREQUESTS"), "{answer}");
    assert!(exchange(port, "192.0.2.8", HEALTHY).await.starts_with("HTTP/1.1 200 "));
    tokio::time::advance(std::time::Duration::from_secs(1)).await;
    assert!(exchange(port, "192.0.2.7", HEALTHY).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_tunnel_that_nobody_asked_for_with_a_request_counts_as_one() {
    let setup = Setup { clients: per_client(0, Some((1, 1))), ..Setup::default() };
    let stranger = std::sync::Arc::new(Authority::generate().unwrap());
    let origin = Origin::https(&stranger, async |_| Response::new(full("hello"))).await;
    let mut darter = Darter::start(setup).await;
    let sni = listen(&mut darter, Entrance::Sni { port: Some(origin.port) }).await;
    assert!(tls_connect(connect(sni, "192.0.2.7").await, "localhost", &stranger, &[]).await.is_ok());
    let refused = tls_connect(connect(sni, "192.0.2.7").await, "localhost", &stranger, &[]).await;
    assert!(refused.unwrap_err().to_string().contains("AccessDenied"));
    darter.until("proxy_turned_away_total{reason=\"requests\"}", 1.0).await;
}

#[tokio::test]
async fn other_clients_and_limits_hold_from_the_next_request_on() {
    let mut darter = Darter::start(Setup::default()).await;
    let port = listen(&mut darter, Entrance::default()).await;
    let mut client = connect(port, "192.0.2.7").await;
    let kept = HEALTHY.replace("close", "keep-alive");
    client.write_all(kept.as_bytes()).await.unwrap();
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 200 "));

    // Those that are open count already.
    darter.proxy.replace(Setup { clients: per_client(1, None), ..Setup::default() }.settings(&darter.leaves));
    assert_eq!(exchange(port, "192.0.2.7", HEALTHY).await, "");
    let closed = Setup { clients: only(&["192.0.2.8/32"]), ..Setup::default() };
    darter.proxy.replace(closed.settings(&darter.leaves));
    client.write_all(kept.as_bytes()).await.unwrap();
    let answer = String::from_utf8(said(client).await).unwrap();
    assert!(answer.contains("HTTP/1.1 403 "), "{answer}");
}
