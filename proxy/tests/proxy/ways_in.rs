//! Every way in that is not a plain proxy port: TLS on it, listeners for SNI, redirected connections, load balancers. Where a
//! packet filter would say whom the client called, a load balancer's word stands in for it.

use crate::lab::{Darter, Origin, Setup, full, h1, h2, listed, read_head, text, tls_connect};
use darter_certs::{Authority, Leaves};
use darter_proxy::{Entrance, Forwarded, Limits, Listener, Marks, Mode, PortTls};
use http::{Request, Response, Version};
use rustls::ServerConfig;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Opens another way into a proxy.
async fn listen(darter: &mut Darter, mode: Mode) -> SocketAddr {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    darter.running.spawn(darter_proxy::run(
        Listener { socket, mode },
        darter.proxy.clone(),
        darter.shutdown.clone(),
    ));
    address
}

fn mode(entrance: Entrance) -> Mode {
    Mode { entrance, balancers: Vec::new() }
}

/// A way in behind a load balancer on this host.
fn balanced(entrance: Entrance) -> Mode {
    Mode { entrance, balancers: vec!["127.0.0.0/8".parse().unwrap()] }
}

/// A connection whose client called `destination`, as the load balancer says.
async fn redirected(to: SocketAddr, destination: &str) -> TcpStream {
    let destination: SocketAddr = destination.parse().unwrap();
    let mut stream = TcpStream::connect(to).await.unwrap();
    let header = format!("PROXY TCP4 192.0.2.7 {} 40000 {}\r\n", destination.ip(), destination.port());
    stream.write_all(header.as_bytes()).await.unwrap();
    stream
}

async fn rest(mut stream: TcpStream) -> Vec<u8> {
    let mut rest = Vec::new();
    // A reset after the last words is as good as a close.
    let _ = stream.read_to_end(&mut rest).await;
    rest
}

async fn hello_origin() -> Origin {
    Origin::http(|_| async { Response::new(full("hello")) }).await
}

// === TLS on the proxy port ===

const TLS: Entrance = Entrance::Proxy { tls: Some(0) };

fn with_tls(tls: PortTls) -> Setup {
    Setup { port_tls: vec![tls], ..Setup::default() }
}

fn own_ca() -> PortTls {
    PortTls::OwnCa { names: vec!["proxy.example".parse().unwrap()] }
}

/// A certificate for the proxy by this CA.
async fn certified(authority: &Arc<Authority>) -> Arc<ServerConfig> {
    let leaves = Leaves::new(authority.clone()).unwrap();
    leaves.config_for(&"proxy.example".parse().unwrap()).await.unwrap()
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_at_the_next_handshake_and_connections_stay() {
    let [first, second] = [(); 2].map(|()| Arc::new(Authority::generate().unwrap()));
    let mut darter = Darter::start(with_tls(PortTls::Certificate(certified(&first).await))).await;
    let addr = listen(&mut darter, mode(TLS)).await;
    let connect = async |authority: &Arc<Authority>| {
        tls_connect(TcpStream::connect(addr).await.unwrap(), "proxy.example", authority, &[]).await
    };
    let mut kept = connect(&first).await.unwrap();
    let renewed = with_tls(PortTls::Certificate(certified(&second).await));
    darter.proxy.replace(renewed.settings(&darter.leaves));
    assert!(connect(&second).await.is_ok() && connect(&first).await.is_err());
    kept.write_all(b"GET /healthy HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    assert!(read_head(&mut kept).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_proxy_port_with_tls_speaks_http1_and_http2() {
    let (origin, authority) = (hello_origin().await, Arc::new(Authority::generate().unwrap()));
    let mut darter = Darter::start(with_tls(PortTls::Certificate(certified(&authority).await))).await;
    let addr = listen(&mut darter, mode(TLS)).await;
    let url = format!("http://127.0.0.1:{}/x", origin.port);
    let connect = async |alpn: &[&[u8]]| {
        let stream = TcpStream::connect(addr).await.unwrap();
        tls_connect(stream, "proxy.example", &authority, alpn).await.unwrap()
    };

    let (mut client, _task) = h2(connect(&[b"h2", b"http/1.1"]).await).await;
    let answer = client.send_request(Request::get(&url).body(full("")).unwrap()).await.unwrap();
    assert_eq!((answer.version(), &*text(answer).await), (Version::HTTP_2, "hello"));

    let (mut client, _task) = h1(connect(&[b"http/1.1"]).await).await;
    let host = format!("127.0.0.1:{}", origin.port);
    let request = Request::get(&url).header("host", &host).body(full("")).unwrap();
    assert_eq!(text(client.send_request(request).await.unwrap()).await, "hello");

    // A tunnel within, and the tunnel's own bytes within that.
    let mut stream = connect(&[]).await;
    let head = format!("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 200 "));
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).await.unwrap();
    assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_port_with_tls_is_a_mirror_for_clients_of_http2_too() {
    let registry = Origin::http(async |request: Request<hyper::body::Incoming>| {
        Response::new(full(request.uri().to_string()))
    })
    .await;
    let mirror = format!("http://127.0.0.1:{}", registry.port);
    let mut darter = Darter::start(Setup { mirror, ..with_tls(own_ca()) }).await;
    let addr = listen(&mut darter, mode(TLS)).await;
    let stream = TcpStream::connect(addr).await.unwrap();
    let stream = tls_connect(stream, "127.0.0.1", darter.leaves.authority(), &[b"h2"]).await.unwrap();
    let (mut client, _task) = h2(stream).await;
    let at = format!("https://{addr}");
    let mut get = async |path: &str| {
        let request = Request::get(format!("{at}{path}")).body(full("")).unwrap();
        let answer = client.send_request(request).await.unwrap();
        (answer.status().as_u16(), text(answer).await)
    };
    assert_eq!(get("/v2/a/tags/list?n=1").await, (200, "/v2/a/tags/list?n=1".to_owned()));
    assert_eq!(get("/healthy").await, (200, "ok\n".to_owned()));
}

#[tokio::test]
async fn plain_http_on_a_port_with_tls_is_told_so() {
    let mut darter = Darter::start(with_tls(own_ca())).await;
    let addr = listen(&mut darter, mode(TLS)).await;
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(b"GET /healthy HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let answer = String::from_utf8(rest(stream).await).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{answer}");
    assert!(
        answer.ends_with("\r\n\r\nthis proxy port speaks TLS: the proxy's URL must begin with https://...\n"),
        "{answer}"
    );
    darter.until("proxy_misplaced_connections_total{reason=\"plain\"}", 1.0).await;
}

#[tokio::test]
async fn our_own_ca_signs_for_the_ports_own_names_and_no_others() {
    let mut darter = Darter::start(with_tls(own_ca())).await;
    let addr = listen(&mut darter, mode(TLS)).await;
    for (name, accepted) in [("proxy.example", true), ("127.0.0.1", true), ("bank.example", false)] {
        let stream = TcpStream::connect(addr).await.unwrap();
        let result = tls_connect(stream, name, darter.leaves.authority(), &[]).await;
        assert_eq!(result.is_ok(), accepted, "{name}");
    }
    darter.until("proxy_misplaced_connections_total{reason=\"handshake\"}", 1.0).await;
}

// === SNI ===

#[tokio::test]
async fn the_name_in_the_greeting_says_where_to_and_the_rules_whether_it_is_opened_up() {
    let setup = Setup { intercept: "^localhost:", ..Setup::default() };
    let origin = Origin::https(&setup.origin_ca, |_| async { Response::new(full("hello")) }).await;
    let (mut open, origin_ca) = (Darter::start(setup).await, Arc::new(Authority::generate().unwrap()));
    let addr = listen(&mut open, mode(Entrance::Sni { port: Some(origin.port) })).await;
    let stream = TcpStream::connect(addr).await.unwrap();
    let inside = tls_connect(stream, "localhost", open.leaves.authority(), &[b"h2"]).await.unwrap();
    let (mut client, _task) = h2(inside).await;
    let url = format!("https://localhost:{}/x", origin.port);
    let answer = client.send_request(Request::get(&url).body(full("")).unwrap()).await.unwrap();
    assert_eq!(text(answer).await, "hello");
    open.until("proxy_requests_total{way=\"sni\",outcome=\"intercepted\"}", 1.0).await;

    // Not opened up: the certificate is the origin's own.
    let blind_origin = Origin::https(&origin_ca, |_| async { Response::new(full("blind")) }).await;
    let mut blind = Darter::start(Setup::default()).await;
    let addr = listen(&mut blind, mode(Entrance::Sni { port: Some(blind_origin.port) })).await;
    let stream = TcpStream::connect(addr).await.unwrap();
    let inside = tls_connect(stream, "localhost", &origin_ca, &[b"http/1.1"]).await.unwrap();
    let (mut client, task) = h1(inside).await;
    let request = Request::get("/").header("host", "localhost").body(full("")).unwrap();
    assert_eq!(text(client.send_request(request).await.unwrap()).await, "blind");
    drop((client, task));
    blind.until("proxy_requests_total{way=\"sni\",outcome=\"tunnel\"}", 1.0).await;
}

#[tokio::test]
async fn a_greeting_that_leads_nowhere_ends_with_an_alert() {
    let setup = Setup { white_list: vec![listed("a.example")], ..Setup::default() };
    let mut darter = Darter::start(setup).await;
    let addr = listen(&mut darter, mode(Entrance::Sni { port: None })).await;
    for (name, alert) in [
        // No name: an address is never one (RFC 6066 section 3).
        ("192.0.2.1", "UnrecognisedName"),
        ("b.example", "AccessDenied"),
        ("localhost", "AccessDenied"),
    ] {
        let stream = TcpStream::connect(addr).await.unwrap();
        let error = tls_connect(stream, name, darter.leaves.authority(), &[]).await.unwrap_err();
        assert!(error.to_string().contains(alert), "{name}: {error}");
    }
    darter.until("proxy_requests_total{way=\"sni\",outcome=\"refused\"}", 2.0).await;
    assert_eq!(darter.metric("proxy_misplaced_connections_total{reason=\"nameless\"}"), 1.0);

    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await.unwrap();
    let answer = String::from_utf8(rest(stream).await).unwrap();
    assert!(answer.contains("this port speaks TLS: the name in its greeting says"), "{answer}");
}

#[tokio::test]
async fn a_name_that_leads_back_to_us_is_refused() {
    for intercept in ["$^", "^localhost:"] {
        let mut darter = Darter::start(Setup { intercept, ..Setup::default() }).await;
        let addr = listen(&mut darter, mode(Entrance::Sni { port: None })).await;
        let stream = TcpStream::connect(addr).await.unwrap();
        // localhost at this very port is this very listener.
        let refused = tls_connect(stream, "localhost", darter.leaves.authority(), &[b"http/1.1"]).await;
        let error = refused.unwrap_err().to_string();
        assert!(error.contains("AccessDenied"), "{error}");
    }
}

#[tokio::test]
async fn a_load_balancer_knows_which_port_the_client_called() {
    let setup = Setup { intercept: "^localhost:", ..Setup::default() };
    let origin = Origin::https(&setup.origin_ca, |_| async { Response::new(full("hello")) }).await;
    let mut darter = Darter::start(setup).await;
    let addr = listen(&mut darter, balanced(Entrance::Sni { port: None })).await;
    let stream = redirected(addr, &format!("198.51.100.1:{}", origin.port)).await;
    let inside = tls_connect(stream, "localhost", darter.leaves.authority(), &[b"h2"]).await.unwrap();
    let (mut client, _task) = h2(inside).await;
    let url = format!("https://localhost:{}/x", origin.port);
    let answer = client.send_request(Request::get(&url).body(full("")).unwrap()).await.unwrap();
    assert_eq!(text(answer).await, "hello");
}

// === redirected connections ===

#[tokio::test]
async fn redirected_http_goes_where_its_host_header_says() {
    let origin = hello_origin().await;
    let mut darter = Darter::start(Setup::default()).await;
    let addr = listen(&mut darter, balanced(Entrance::Transparent)).await;
    // Nobody is at the address that the client called: what it said counts.
    let stream = redirected(addr, &format!("198.51.100.1:{}", origin.port)).await;
    let (mut client, _task) = h1(stream).await;
    for (path, host) in
        [("/healthy", format!("localhost:{}", origin.port)), ("/ca.crt", "localhost".to_owned())]
    {
        let request = Request::get(path).header("host", &host).body(full("")).unwrap();
        assert_eq!(text(client.send_request(request).await.unwrap()).await, "hello", "{path} {host}");
        assert_eq!(origin.heads.lock().unwrap().pop().unwrap().uri, path);
    }
    darter.until("proxy_requests_total{way=\"transparent\",outcome=\"direct\"}", 2.0).await;
}

#[tokio::test]
async fn a_host_header_opens_no_way_to_the_address_that_the_client_called() {
    let (allowed, forbidden) =
        (hello_origin().await, Origin::http(|_| async { Response::new(full("forbidden")) }).await);
    let setup = Setup { white_list: vec![listed("localhost")], ..Setup::default() };
    let mut darter = Darter::start(setup).await;
    let addr = listen(&mut darter, balanced(Entrance::Transparent)).await;
    let ask = async |host: &str| {
        let (mut client, _task) = h1(redirected(addr, &format!("127.0.0.2:{}", forbidden.port)).await).await;
        let request = Request::get("/").header("host", host).body(full("")).unwrap();
        let answer = client.send_request(request).await.unwrap();
        (answer.status().as_u16(), text(answer).await)
    };
    // The allowed name is resolved here; what stands at the address that the client called is never given for it.
    assert_eq!(ask(&format!("localhost:{}", allowed.port)).await, (200, "hello".to_owned()));
    let (status, sentence) = ask(&format!("127.0.0.2:{}", forbidden.port)).await;
    assert!(status == 403 && sentence.contains("is a loopback address"), "{status} {sentence}");
    assert!(forbidden.heads.lock().unwrap().is_empty());
}

#[tokio::test]
async fn what_names_no_host_goes_to_the_address_that_the_client_called() {
    let origin = hello_origin().await;
    let banner = Origin::raw(|mut stream| async move {
        let _ = stream.write_all(b"220 ready\r\n").await;
        let mut line = [0; 6];
        let _ = stream.read_exact(&mut line).await;
        let _ = stream.write_all(&line).await;
    })
    .await;
    let mut darter = Darter::start(Setup::default()).await;
    let addr = listen(&mut darter, balanced(Entrance::Transparent)).await;

    // HTTP/1.0 without a Host header.
    let mut stream = redirected(addr, &format!("127.0.0.1:{}", origin.port)).await;
    stream.write_all(b"GET /x HTTP/1.0\r\n\r\n").await.unwrap();
    assert!(String::from_utf8(rest(stream).await).unwrap().ends_with("hello"));

    // The server speaks first.
    let mut stream = redirected(addr, &format!("127.0.0.1:{}", banner.port)).await;
    let mut greeting = [0; 11];
    stream.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"220 ready\r\n");
    stream.write_all(b"QUIT\r\n").await.unwrap();
    assert_eq!(rest(stream).await, b"QUIT\r\n");

    // The client does, in a language of its own.
    let mut stream = redirected(addr, &format!("127.0.0.1:{}", banner.port)).await;
    stream.write_all(b"EHLO\r\n").await.unwrap();
    assert_eq!(rest(stream).await, b"220 ready\r\nEHLO\r\n");
    darter.until("proxy_requests_total{way=\"transparent\",outcome=\"tunnel\"}", 2.0).await;

    // And what may not be reached is not.
    let mut stream = redirected(addr, "169.254.169.254:80").await;
    stream.write_all(b"EHLO\r\n").await.unwrap();
    assert_eq!(rest(stream).await, [0x15, 3, 3, 0, 2, 2, 49], "an alert: access denied");
}

#[tokio::test]
async fn redirected_tls_goes_where_its_greeting_says() {
    let setup = Setup { intercept: "^localhost:", ..Setup::default() };
    let origin = Origin::https(&setup.origin_ca, |_| async { Response::new(full("hello")) }).await;
    let origin_ca = setup.origin_ca.clone();
    let mut darter = Darter::start(setup).await;
    let addr = listen(&mut darter, balanced(Entrance::Transparent)).await;
    let stream = redirected(addr, &format!("198.51.100.1:{}", origin.port)).await;
    let inside = tls_connect(stream, "localhost", darter.leaves.authority(), &[b"h2"]).await.unwrap();
    let (mut client, _task) = h2(inside).await;
    let url = format!("https://localhost:{}/x", origin.port);
    let answer = client.send_request(Request::get(&url).body(full("")).unwrap()).await.unwrap();
    assert_eq!(text(answer).await, "hello");

    // Without a name: blind, to the address. The origin's certificate is for localhost.
    let stream = redirected(addr, &format!("127.0.0.1:{}", origin.port)).await;
    let error = tls_connect(stream, "127.0.0.1", &origin_ca, &[]).await.unwrap_err();
    assert!(error.to_string().contains("not valid for name \"127.0.0.1\""), "{error}");
    darter.until("proxy_requests_total{way=\"transparent\",outcome=\"tunnel\"}", 1.0).await;
}

#[tokio::test]
async fn a_connection_that_nobody_redirected_is_refused() {
    let mut darter = Darter::start(Setup::default()).await;
    let addr = listen(&mut darter, mode(Entrance::Transparent)).await;
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let answer = String::from_utf8(rest(stream).await).unwrap();
    assert!(answer.contains("it is no proxy port"), "{answer}");
    assert_eq!(darter.metric("proxy_misplaced_connections_total{reason=\"not_redirected\"}"), 1.0);
}

// === load balancers ===

#[tokio::test]
async fn only_a_load_balancer_may_introduce_a_client() {
    let mut darter = Darter::start(Setup::default()).await;
    let elsewhere = Mode { balancers: vec!["10.0.0.0/8".parse().unwrap()], ..Mode::default() };
    let addr = listen(&mut darter, elsewhere).await;
    let mut stream = redirected(addr, "127.0.0.1:1").await;
    stream.write_all(b"GET /healthy HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let answer = String::from_utf8(rest(stream).await).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}

#[tokio::test]
async fn a_load_balancer_introduces_its_clients_in_both_versions() {
    let origin = Origin::http(async |_| Response::new(full("ok\n"))).await;
    // What goes on says for whom it is.
    let marks = Marks { forwarded: Forwarded::Standard, ..Marks::default() };
    let mut darter = Darter::start(Setup { marks, ..Setup::default() }).await;
    let addr = listen(&mut darter, balanced(Entrance::default())).await;
    let v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\xc6\x33\x64\x01\x9c\x40\0\x50";
    let local = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
    let v1 = b"PROXY TCP4 192.0.2.8 198.51.100.1 40000 80\r\n";
    for (header, client) in
        [(&v1[..], "192.0.2.8"), (b"PROXY UNKNOWN\r\n", "127.0.0.1"), (v2, "192.0.2.7"), (local, "127.0.0.1")]
    {
        // In one segment with the request, and byte by byte.
        for chunk in [1000, 1] {
            let mut stream = TcpStream::connect(addr).await.unwrap();
            stream.set_nodelay(true).unwrap();
            let at = format!("127.0.0.1:{}", origin.port);
            let request = format!("GET http://{at}/ HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n");
            let all = [header, request.as_bytes()].concat();
            for part in all.chunks(chunk) {
                stream.write_all(part).await.unwrap();
            }
            let answer = String::from_utf8(rest(stream).await).unwrap();
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("ok\n"), "{answer}");
            let head = origin.heads.lock().unwrap().pop().unwrap();
            assert_eq!(head.headers["forwarded"], format!("for={client};proto=http"));
        }
    }
}

#[tokio::test]
async fn a_load_balancer_that_does_not_introduce_its_client_is_not_served() {
    let limits = Limits { handshake_timeout: Duration::from_millis(200), ..Limits::default() };
    let mut darter = Darter::start(Setup { limits, ..Setup::default() }).await;
    let addr = listen(&mut darter, balanced(Entrance::default())).await;
    for said in [&b"GET /healthy HTTP/1.1\r\nHost: x\r\n\r\n"[..], b"PROXY TCP4 192.0.2.7 198.51"] {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(said).await.unwrap();
        // Long, on a machine that does much else.
        let said = tokio::time::timeout(Duration::from_secs(20), rest(stream)).await;
        assert_eq!(said.expect("it is waited for"), b"");
    }
    darter.until("proxy_misplaced_connections_total{reason=\"no_proxy_header\"}", 2.0).await;
}
