//! Beginning and end: of connections, and of the proxy.

use crate::lab::{Body, Darter, Origin, Setup, full, h2, read_head, text, ticking, tls_connect};
use darter_proxy::{Entrance, Limits, Listener, Mode, PortTls};
use http::{Request, Response};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Notify;

#[tokio::test]
async fn draining_ends_the_idle_and_waits_for_the_rest() {
    let (asked, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (tell, wait) = (asked.clone(), go.clone());
    let origin = Origin::http(move |_| {
        let (tell, wait) = (tell.clone(), wait.clone());
        async move {
            tell.notify_one();
            wait.notified().await;
            Response::new(full("late"))
        }
    })
    .await;
    let echo = Origin::raw(async |mut stream| {
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await;
    let mut darter = Darter::start(Setup::default()).await;

    // Nothing said yet; one request answered; one under way; a tunnel.
    let mut silent = darter.connect().await;
    let mut idle = darter.connect().await;
    idle.write_all(b"GET /healthy HTTP/1.1\r\nHost: proxy.example\r\n\r\n").await.unwrap();
    read_head(&mut idle).await;
    let mut busy = darter.connect().await;
    let at = format!("127.0.0.1:{}", origin.port);
    busy.write_all(format!("GET http://{at}/ HTTP/1.1\r\nHost: {at}\r\n\r\n").as_bytes()).await.unwrap();
    asked.notified().await;
    let mut tunnel = darter.tunnel(&format!("127.0.0.1:{}", echo.port)).await;
    darter.until("proxy_connections", 4.0).await;

    darter.shutdown.cancel();
    let mut rest = Vec::new();
    silent.read_to_end(&mut rest).await.unwrap();
    assert!(rest.is_empty());
    idle.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"ok\n");
    tokio::net::TcpStream::connect(darter.addr).await.unwrap_err();

    // What was under way goes on to its end.
    tunnel.write_all(b"ping").await.unwrap();
    let mut pong = [0; 4];
    tunnel.read_exact(&mut pong).await.unwrap();
    go.notify_one();
    let mut answer = String::new();
    busy.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("late"), "{answer}");
    assert!(darter.running.try_join_next().is_none());
    drop(tunnel);
    darter.running.join_next().await.unwrap().unwrap();
    assert_eq!(darter.metric("proxy_connections"), 0.0);
}

#[tokio::test(start_paused = true)]
async fn draining_does_not_wait_for_a_client_of_http2_that_says_nothing() {
    // Nothing behind the preface; everything that is due, and then no answer to any ping.
    for settings in [&[][..], &[0, 0, 0, 4, 0, 0, 0, 0, 0]] {
        let mut darter = Darter::start(Setup::default()).await;
        let mut silent = darter.connect().await;
        silent.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        silent.write_all(settings).await.unwrap();
        // Its settings, so that it is served.
        silent.read_exact(&mut [0; 9]).await.unwrap();
        darter.shutdown.cancel();
        let begun = tokio::time::Instant::now();
        darter.running.join_next().await.unwrap().unwrap();
        // Long before what is under way is cut off (`drainTimeout`).
        assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn dropping_the_proxy_cuts_everything() {
    let origin = Origin::raw(async |mut stream| {
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    })
    .await;
    let mut darter = Darter::start(Setup::default()).await;
    let mut tunnel = darter.tunnel(&format!("127.0.0.1:{}", origin.port)).await;
    let mut idle = darter.connect().await;
    darter.until("proxy_connections", 2.0).await;
    darter.running.shutdown().await;
    let mut rest = Vec::new();
    for stream in [&mut tunnel, &mut idle] {
        // A close or a reset: the end either way.
        let _ = stream.read_to_end(&mut rest).await;
    }
    assert!(rest.is_empty());
    assert_eq!(darter.metric("proxy_connections"), 0.0);
}

#[tokio::test]
async fn as_many_clients_as_there_may_be_are_served_and_the_next_waits() {
    let limits = Limits { connections: 2, ..Limits::default() };
    let darter = Darter::start(Setup { limits, ..Setup::default() }).await;
    let (one, two) = (darter.connect().await, darter.connect().await);
    darter.until("proxy_connections", 2.0).await;
    let mut three = darter.connect().await;
    three.write_all(b"GET /healthy HTTP/1.1\r\nHost: proxy.example\r\n\r\n").await.unwrap();
    drop(one);
    assert!(read_head(&mut three).await.starts_with("HTTP/1.1 200 OK\r\n"));
    drop((two, three));
    darter.until("proxy_connections", 0.0).await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_finishes_its_head_is_dropped() {
    let darter = Darter::start(Setup::default()).await;
    for begun in [
        "",
        "P",
        "PRI * HTTP/2.0\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "GET /healthy HTT",
        "GET /healthy HTTP/1.1\r\nHost: a.example\r\nX-Slow: ",
    ] {
        let mut stream = darter.connect().await;
        stream.write_all(begun.as_bytes()).await.unwrap();
        let begun_at = tokio::time::Instant::now();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
        assert!(begun_at.elapsed() <= Limits::default().header_timeout + Duration::from_secs(1));
    }
}

const HEALTHY: &[u8] = b"GET /healthy HTTP/1.1\r\nHost: proxy.example\r\n\r\n";

/// Reads the answer to [`HEALTHY`].
async fn read_healthy(stream: &mut tokio::net::TcpStream) {
    assert!(read_head(stream).await.starts_with("HTTP/1.1 200 OK\r\n"));
    let mut body = [0; 3];
    stream.read_exact(&mut body).await.unwrap();
    assert_eq!(&body, b"ok\n");
}

/// A connection that has had an answer and come to rest.
async fn resting(darter: &Darter) -> tokio::net::TcpStream {
    let mut stream = darter.connect().await;
    stream.write_all(HEALTHY).await.unwrap();
    read_healthy(&mut stream).await;
    // A paused clock passes only where something sleeps.
    while darter.metric("proxy_resting_connections") != 1.0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    stream
}

#[tokio::test]
async fn a_connection_at_rest_goes_on_where_it_was() {
    let darter = Darter::start(Setup::default()).await;
    let mut stream = resting(&darter).await;
    for _ in 0..3 {
        // The head in two parts, and behind it another and a half.
        let (first, second) = HEALTHY.split_at(7);
        stream.write_all(first).await.unwrap();
        darter.until("proxy_resting_connections", 0.0).await;
        stream.write_all(&[second, HEALTHY, first].concat()).await.unwrap();
        for _ in 0..2 {
            read_healthy(&mut stream).await;
        }
        stream.write_all(second).await.unwrap();
        read_healthy(&mut stream).await;
        darter.until("proxy_resting_connections", 1.0).await;
    }
    darter.shutdown.cancel();
    assert_eq!(stream.read(&mut [0; 16]).await.unwrap(), 0);
    darter.until("proxy_resting_connections", 0.0).await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_at_rest_is_closed_when_its_time_is_up() {
    let darter = Darter::start(Setup::default()).await;
    for (begun, times) in [("", 1), ("GET /hea", 2)] {
        let mut stream = resting(&darter).await;
        let answered = tokio::time::Instant::now();
        stream.write_all(begun.as_bytes()).await.unwrap();
        let _ = stream.read(&mut [0; 16]).await;
        let limit = Limits::default().header_timeout;
        let took = answered.elapsed();
        assert!(took >= limit - Duration::from_secs(2) && took <= times * limit, "{begun}: {took:?}");
        darter.until("proxy_connections", 0.0).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_has_come_of_the_next_request_is_not_lost_when_a_connection_comes_to_rest() {
    let darter = Darter::start(Setup::default()).await;
    let mut stream = darter.connect().await;
    let (first, second) = HEALTHY.split_at(7);
    stream.write_all(&[HEALTHY, first].concat()).await.unwrap();
    read_healthy(&mut stream).await;
    for _ in 0..1000 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    stream.write_all(second).await.unwrap();
    read_healthy(&mut stream).await;
}

#[tokio::test]
async fn a_connection_whose_client_does_not_take_its_answer_is_not_at_rest() {
    const LENGTH: usize = 32 << 20;
    let origin = Origin::http(|_| async { Response::new(full(vec![b'x'; LENGTH])) }).await;
    let darter = Darter::start(Setup::default()).await;
    let mut slow = darter.connect().await;
    let at = format!("127.0.0.1:{}", origin.port);
    slow.write_all(format!("GET http://{at}/ HTTP/1.1\r\nHost: {at}\r\n\r\n").as_bytes()).await.unwrap();
    read_head(&mut slow).await;
    // Another one rests in the meantime.
    drop(resting(&darter).await);
    darter.until("proxy_resting_connections", 0.0).await;
    let mut body = vec![0; LENGTH];
    slow.read_exact(&mut body).await.unwrap();
    slow.write_all(HEALTHY).await.unwrap();
    read_healthy(&mut slow).await;
}

async fn with_tls() -> Darter {
    let own_ca = PortTls::OwnCa { names: vec!["127.0.0.1".parse().unwrap()] };
    Darter::start(Setup { port_tls: vec![own_ca], ..Setup::default() }).await
}

/// A client of HTTP/2 that keeps its connection, and what drives it: it ends with the connection.
type Client = (hyper::client::conn::http2::SendRequest<Body>, tokio::task::JoinSet<()>);

/// Asks for a page of the proxy's own.
async fn ask((client, _): &mut Client, darter: &Darter) {
    let request = Request::get(format!("http://{}/healthy", darter.addr)).body(full("")).unwrap();
    client.ready().await.unwrap();
    assert_eq!(text(client.send_request(request).await.unwrap()).await, "ok\n");
}

#[tokio::test]
async fn when_too_many_connections_of_http2_are_idle_those_idle_longest_are_told_to_go() {
    let asked = Arc::new(Notify::new());
    let tell = asked.clone();
    let origin = Origin::http(move |_| {
        tell.notify_one();
        std::future::pending()
    })
    .await;
    let limits = Limits { idle_http2: NonZeroUsize::new(2).unwrap(), ..Limits::default() };
    let darter = Darter::start(Setup { limits, ..Setup::default() }).await;
    // An answer is owed to this one however long others are idle.
    let (mut busy, mut busy_tasks) = h2(darter.connect().await).await;
    let slow = Request::get(format!("http://127.0.0.1:{}/", origin.port)).body(full("")).unwrap();
    let answer = busy.send_request(slow);
    asked.notified().await;
    let mut clients = Vec::new();
    for number in 1..=6 {
        let mut client = h2(darter.connect().await).await;
        ask(&mut client, &darter).await;
        clients.push(client);
        if number > 2 {
            // The one that is idle longest hears of it, and has no other answer to wait for.
            let (_, mut told) = clients.remove(0);
            told.join_next().await.unwrap().unwrap();
            darter.until("proxy_connections_crowded_out_total", (number - 2) as f64).await;
        }
    }
    darter.until("proxy_connections", 3.0).await;
    // Whoever asks again is not the one that is idle longest.
    ask(&mut clients[0], &darter).await;
    let mut last = h2(darter.connect().await).await;
    ask(&mut last, &darter).await;
    clients.remove(1).1.join_next().await.unwrap().unwrap();
    ask(&mut clients[0], &darter).await;
    assert!(busy_tasks.try_join_next().is_none());
    drop(answer);
}

#[tokio::test(start_paused = true)]
async fn those_that_were_told_and_do_not_listen_are_closed_when_too_many_leave() {
    let idle_http2 = NonZeroUsize::new(3).unwrap();
    let darter =
        Darter::start(Setup { limits: Limits { idle_http2, ..Limits::default() }, ..Setup::default() }).await;
    let begun = tokio::time::Instant::now();
    let mut deaf = Vec::new();
    for _ in 0..20 {
        let mut stream = darter.connect().await;
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
        // The head of its settings, so that it is served.
        let mut said = vec![0; 9];
        stream.read_exact(&mut said).await.unwrap();
        deaf.push((stream, said));
    }
    // Three that are idle, and one that leaves: not by any clock.
    while darter.metric("proxy_connections") != 4.0 {
        assert!(begun.elapsed() < Duration::from_secs(5), "{}", darter.metric("proxy_connections"));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // Each has been told before.
    let (mut first, mut said) = deaf.swap_remove(0);
    first.read_to_end(&mut said).await.unwrap();
    const GOAWAY: u8 = 7;
    let mut rest = &said[..];
    let mut kinds = Vec::new();
    while let [high, middle, low, kind, ..] = *rest {
        kinds.push(kind);
        rest = &rest[9 + u32::from_be_bytes([0, high, middle, low]) as usize..];
    }
    assert!(kinds.contains(&GOAWAY), "{kinds:?}");
}

/// A connection over TLS on which HTTP/2 was agreed.
async fn agreed(darter: &mut Darter) -> tokio_rustls::client::TlsStream<tokio::net::TcpStream> {
    let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = socket.local_addr().unwrap();
    let mode = Mode { entrance: Entrance::Proxy { tls: Some(0) }, ..Mode::default() };
    let listener = Listener { socket, mode };
    darter.running.spawn(darter_proxy::run(listener, darter.proxy.clone(), darter.shutdown.clone()));
    let stream = tokio::net::TcpStream::connect(addr).await.unwrap();
    tls_connect(stream, "127.0.0.1", darter.leaves.authority(), &[b"h2"]).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_client_of_http2_that_asks_for_nothing_is_dropped() {
    let limit = Limits::default().header_timeout;
    for begun in ["", "PRI * HTTP/2.0\r\n"] {
        let mut darter = with_tls().await;
        let mut stream = ticking(agreed(&mut darter)).await;
        stream.write_all(begun.as_bytes()).await.unwrap();
        let begun_at = tokio::time::Instant::now();
        let ended = ticking(tokio::time::timeout(limit * 3, stream.read_to_end(&mut Vec::new()))).await;
        assert!(ended.is_ok() && begun_at.elapsed() <= limit + Duration::from_secs(2), "{begun}");
    }
    // One that answers pings, and has asked for something before.
    let mut darter = with_tls().await;
    let (mut client, _task) = h2(ticking(agreed(&mut darter)).await).await;
    let request = Request::get(format!("http://{}/healthy", darter.addr)).body(full("")).unwrap();
    ticking(client.send_request(request)).await.unwrap();
    ticking(tokio::time::sleep(limit * 3)).await;
    darter.until("proxy_connections", 0.0).await;
}
