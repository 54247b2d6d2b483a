//! Through parent proxies. The names end in `.invalid`, so that only a parent can have resolved them.

use crate::lab::{Ca, Server, always, answer, config, fetch, get, read_head, soon};
use crate::parent::{BASIC, Proxy};
use darter_upstream::{
    Fault, Kind, Lookup, Parent, ParentAddress, Permit, Reached, Route, Stage, Timeouts, Upstream,
    UpstreamConfig,
};
use http::StatusCode;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// A route through the parent at `url`, with this trust in everybody.
fn through(url: &str, ca: &Ca) -> Route {
    let (address, credentials) = ParentAddress::parse(url).unwrap();
    let tls = ca.client();
    let parent = Parent { address, credentials, tls: tls.clone(), lookup: Lookup::default() };
    Route { parent: Some(Arc::new(parent)), ..Route::straight(tls) }
}

#[test]
fn it_is_told_who_knows_where_the_parent_is() {
    let servers: Arc<[std::net::SocketAddr]> = ["192.0.2.53:53".parse().unwrap()].into();
    let addresses: Arc<[IpAddr]> = ["192.0.2.7".parse().unwrap()].into();
    for (url, lookup, says) in [
        (
            "http://parent:3128",
            Lookup::AsOthers,
            "; the parent's own name is asked of this host's own resolver",
        ),
        (
            "http://parent:3128",
            Lookup::Servers(servers),
            "; the parent's own name is asked of upstream.hosts[].dnsServers: 192.0.2.53:53",
        ),
        (
            "http://parent:3128",
            Lookup::Given(addresses),
            "; the parent is where upstream.hosts[].addresses says that it is: 192.0.2.7",
        ),
        ("http://192.0.2.8:3128", Lookup::AsOthers, ""),
    ] {
        let mut route = through(url, &Ca::new());
        let parent = Arc::get_mut(route.parent.as_mut().unwrap()).unwrap();
        parent.lookup = lookup;
        let told = Upstream::new(UpstreamConfig { routes: always(route), ..config() }).way("a.example", 443);
        assert_eq!(told, format!("through the parent proxy {url}, which looks it up itself{says}"));
    }
}

fn upstream_through(url: &str, ca: &Ca) -> Upstream {
    Upstream::new(UpstreamConfig { routes: always(through(url, ca)), ..config() })
}

/// Answers every request on a connection with the head that it saw.
async fn mirror() -> Server {
    Server::plain(|mut stream, _| async move {
        loop {
            let head = read_head(&mut stream).await;
            answer(&mut stream, &format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{head}", head.len()))
                .await;
        }
    })
    .await
}

#[tokio::test]
async fn a_plain_request_goes_to_an_http_parent_as_it_is_and_the_password_no_further() {
    let (origin, proxy) = (mirror().await, Proxy::http(true).await);
    let upstream =
        upstream_through(&format!("http://user:secret@127.0.0.1:{}", proxy.server.port), &Ca::new());
    let mut request = get(&origin.url("http", "registry.invalid"));
    request.headers_mut().insert("proxy-authorization", "Basic b3duZXI6b3du".parse().unwrap());
    let response = upstream.send(request).await.unwrap();
    let reached = response.extensions().get::<Reached>().unwrap();
    assert_eq!(reached.address.unwrap().port(), proxy.server.port);
    assert_eq!(reached.parent.as_deref().unwrap(), format!("http://127.0.0.1:{}", proxy.server.port));
    let at_origin = crate::lab::text(response).await.to_lowercase();
    assert!(!at_origin.contains("authorization"), "{at_origin}");
    let at_proxy = &proxy.seen()[0];
    let port = origin.port;
    let line = format!("GET http://registry.invalid:{port}/v2/?token=secret HTTP/1.1\r\n");
    assert!(at_proxy.starts_with(&line), "{at_proxy}");
    assert!(
        at_proxy.to_lowercase().contains(&format!("\r\nhost: registry.invalid:{port}\r\n")),
        "{at_proxy}"
    );
    let authorizations: Vec<_> =
        at_proxy.lines().filter(|line| line.to_lowercase().starts_with("proxy-authorization")).collect();
    assert_eq!(authorizations.len(), 1, "{at_proxy}");
    assert!(authorizations[0].ends_with(BASIC), "{at_proxy}");
}

#[tokio::test]
async fn a_request_over_tls_goes_through_a_tunnel_that_is_kept() {
    let ca = Ca::new();
    let origin = Server::tls(ca.leaf("registry.invalid", |_| {})).await;
    for (scheme, proxy) in [
        ("http", Proxy::http(false).await),
        ("https", Proxy::https(ca.leaf("127.0.0.1", |_| {})).await),
        ("socks5", Proxy::socks(false, 0).await),
    ] {
        let before = origin.accepted();
        let upstream = upstream_through(&format!("{scheme}://127.0.0.1:{}", proxy.server.port), &ca);
        for _ in 0..2 {
            let seen = fetch(&upstream, &origin.url("https", "registry.invalid")).await.unwrap();
            assert!(seen.starts_with("HTTP/2.0 sni=registry.invalid "), "{scheme}: {seen}");
        }
        assert_eq!(origin.accepted() - before, 1, "{scheme}");
        let told = proxy.seen();
        let port = origin.port;
        let expected = match scheme {
            "socks5" => format!("name registry.invalid {port}"),
            _ => format!("CONNECT registry.invalid:{port} HTTP/1.1\r\n"),
        };
        assert!(told.len() == 1 && told[0].starts_with(&expected), "{scheme}: {told:?}");
        // What is asked for is not the parent's to know.
        assert!(!told[0].contains("token"), "{told:?}");
    }
}

#[tokio::test]
async fn a_plain_request_goes_through_an_https_and_a_socks_parent_too() {
    let ca = Ca::new();
    let origin = mirror().await;
    for (scheme, proxy) in [
        ("https", Proxy::https(ca.leaf("127.0.0.1", |_| {})).await),
        ("socks5", Proxy::socks(false, 0).await),
    ] {
        let upstream = upstream_through(&format!("{scheme}://127.0.0.1:{}", proxy.server.port), &ca);
        let seen = fetch(&upstream, &origin.url("http", "registry.invalid")).await.unwrap();
        assert!(seen.starts_with("GET /v2/?token=secret HTTP/1.1"), "{scheme}: {seen}");
        assert_eq!(proxy.seen().len(), 1, "{scheme}");
    }
}

#[tokio::test]
async fn the_right_password_opens_a_tunnel_and_a_wrong_one_is_named_without_being_told() {
    let origin = mirror().await;
    let ca = Ca::new();
    for (scheme, proxy) in [("http", Proxy::http(true).await), ("socks5", Proxy::socks(true, 0).await)] {
        let at = format!("127.0.0.1:{}", proxy.server.port);
        let upstream = upstream_through(&format!("{scheme}://user:secret@{at}"), &ca);
        let mut link = upstream.dial("registry.invalid", origin.port).await.unwrap();
        assert_eq!(link.reached().parent.as_deref().unwrap(), format!("{scheme}://{at}"));
        link.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        assert!(read_head(&mut link).await.starts_with("HTTP/1.1 200 OK"));

        for credentials in ["user:hidden@", ""] {
            let upstream = upstream_through(&format!("{scheme}://{credentials}{at}"), &ca);
            let error = upstream.dial("registry.invalid", origin.port).await.unwrap_err();
            let sentence = error.to_string();
            let expected = format!(
                "the parent proxy {scheme}://{at} refuses to connect to registry.invalid:{}: ",
                origin.port
            );
            assert!(sentence.starts_with(&expected), "{sentence}");
            assert!(
                sentence.contains("user name and password configured for it are missing or wrong"),
                "{sentence}"
            );
            assert!(!format!("{error:?} {sentence}").contains("hidden"), "{error:?}");
            assert_eq!((error.status(), error.is_retryable()), (StatusCode::BAD_GATEWAY, false));
        }
    }
}

#[tokio::test]
async fn a_parents_own_407_never_reaches_a_client() {
    let (origin, proxy) = (mirror().await, Proxy::http(true).await);
    let upstream =
        upstream_through(&format!("http://user:wrong@127.0.0.1:{}", proxy.server.port), &Ca::new());
    let error = upstream.send(get(&origin.url("http", "registry.invalid"))).await.unwrap_err();
    assert!(error.to_string().contains("407 Who Are You"), "{error}");
    assert_eq!(error.status(), StatusCode::BAD_GATEWAY);
    assert_eq!(origin.accepted(), 0);
}

#[tokio::test]
async fn a_parent_that_refuses_is_quoted() {
    for (line, status, retryable) in [
        ("403 Not Today", StatusCode::FORBIDDEN, false),
        ("503 Service Unavailable", StatusCode::BAD_GATEWAY, true),
        ("504 Gateway Timeout", StatusCode::GATEWAY_TIMEOUT, true),
    ] {
        let proxy = Server::plain(move |mut stream, _| async move {
            read_head(&mut stream).await;
            answer(&mut stream, &format!("HTTP/1.1 {line}\r\nContent-Length: 100000\r\n\r\nno")).await;
            // The rest of its words never comes.
            let _ = stream.read_u8().await;
        })
        .await;
        let upstream = upstream_through(&format!("http://127.0.0.1:{}", proxy.port), &Ca::new());
        let error = upstream.dial("registry.invalid", 443).await.unwrap_err();
        assert!(
            error.to_string().ends_with(&format!("refuses to connect to registry.invalid:443: {line}")),
            "{error}"
        );
        assert_eq!((error.status(), error.is_retryable()), (status, retryable), "{line}");
    }
    let proxy = Proxy::socks(false, 2).await;
    let upstream = upstream_through(&format!("socks5://127.0.0.1:{}", proxy.server.port), &Ca::new());
    let error = upstream.dial("10.1.2.3", 443).await.unwrap_err();
    assert!(
        error.to_string().ends_with("refuses to connect to 10.1.2.3:443: its rules do not allow it"),
        "{error}"
    );
    assert_eq!((error.status(), error.verdict().fault), (StatusCode::FORBIDDEN, Fault::Policy));
    assert_eq!(proxy.seen(), ["address 10.1.2.3 443"]);
}

#[tokio::test]
async fn what_a_server_says_first_is_not_lost_behind_the_parents_answer() {
    let origin = Server::plain(|mut stream, _| async move {
        answer(&mut stream, "SSH-2.0-first\r\n").await;
        let _ = stream.read_u8().await;
    })
    .await;
    let together = Server::plain(|mut stream, _| async move {
        read_head(&mut stream).await;
        answer(&mut stream, "HTTP/1.1 200 OK\r\n\r\nSSH-2.0-first\r\n").await;
        let _ = stream.read_u8().await;
    })
    .await;
    let socks = Proxy::socks(false, 0).await;
    for url in
        [format!("http://127.0.0.1:{}", together.port), format!("socks5://127.0.0.1:{}", socks.server.port)]
    {
        let upstream = upstream_through(&url, &Ca::new());
        let mut link = upstream.dial("speaks-first.invalid", origin.port).await.unwrap();
        // Asked twice, as by somebody who waits for either side.
        soon(link.readable()).await.unwrap();
        soon(link.readable()).await.unwrap();
        let mut first = [0; 15];
        soon(link.read_exact(&mut first)).await.unwrap();
        assert_eq!(&first, b"SSH-2.0-first\r\n", "{url}");
    }
}

#[tokio::test]
async fn a_parent_that_cannot_be_reached_or_believed_is_named() {
    let ca = Ca::new();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let upstream = upstream_through(&format!("http://user:secret@127.0.0.1:{closed}"), &ca);
    let error = upstream.dial("registry.invalid", 443).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "cannot reach registry.invalid:443 through the parent proxy http://127.0.0.1:{closed}: \
             cannot connect to 127.0.0.1:{closed} (127.0.0.1): connection refused"
        )
    );
    assert!(error.is_retryable());

    let stranger = Proxy::https(Ca::new().leaf("127.0.0.1", |_| {})).await;
    let upstream = upstream_through(&format!("https://127.0.0.1:{}", stranger.server.port), &ca);
    let error = upstream.send(get("http://registry.invalid/")).await.unwrap_err();
    assert!(error.to_string().contains("signed by an authority that is not trusted"), "{error}");
    assert!(error.to_string().contains("through the parent proxy https://"), "{error}");
    assert_eq!(stranger.seen().len(), 0);

    let upstream = upstream_through("http://nobody.invalid:3128", &ca);
    let error = upstream.dial("registry.invalid", 443).await.unwrap_err();
    assert!(error.to_string().contains("cannot resolve the name nobody.invalid"), "{error}");

    let no_proxy = Server::plain(|mut stream, _| async move {
        read_head(&mut stream).await;
        answer(&mut stream, "220 mail.example ready\r\n").await;
    })
    .await;
    let upstream = upstream_through(&format!("http://127.0.0.1:{}", no_proxy.port), &ca);
    let error = upstream.dial("registry.invalid", 443).await.unwrap_err();
    assert!(
        matches!(&error.kind, Kind::Parent { kind, .. } if matches!(**kind, Kind::Protocol { .. })),
        "{error:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_parent_that_says_nothing_is_given_up() {
    let silent = Server::plain(|mut stream, _| async move {
        let mut sink = Vec::new();
        let _ = stream.read_to_end(&mut sink).await;
    })
    .await;
    for scheme in ["http", "socks5"] {
        let upstream = upstream_through(&format!("{scheme}://127.0.0.1:{}", silent.port), &Ca::new());
        let error = upstream.dial("registry.invalid", 443).await.unwrap_err();
        let Kind::Parent { kind, .. } = &error.kind else { panic!("{error:?}") };
        let after = Timeouts::default().response_header;
        assert_eq!(**kind, Kind::Timeout { stage: Stage::Tunnel, after });
        assert_eq!(error.status(), StatusCode::GATEWAY_TIMEOUT);
    }
    assert!(Timeouts::default().response_header < Duration::from_secs(30));
}

#[tokio::test]
async fn a_destination_is_judged_before_the_parent_hears_of_it_and_the_parent_is_not() {
    let (origin, proxy) = (mirror().await, Proxy::http(false).await);
    let asked = Arc::new(Mutex::new(Vec::new()));
    let record = asked.clone();
    let permit: Permit = Arc::new(move |host: &str, _, address: Option<IpAddr>| {
        record.lock().unwrap().push((host.to_owned(), address));
        if host == "fine.invalid" { Ok(()) } else { Err(format!("{host} is not for you")) }
    });
    let routes = always(through(&format!("http://127.0.0.1:{}", proxy.server.port), &Ca::new()));
    let upstream = Upstream::new(UpstreamConfig { permit, routes, ..config() });
    for host in ["metadata.invalid", "169.254.169.254"] {
        for error in [
            upstream.send(get(&origin.url("http", host))).await.unwrap_err(),
            upstream.send(get(&origin.url("https", host))).await.unwrap_err(),
            upstream.dial(host, origin.port).await.unwrap_err(),
        ] {
            assert_eq!(error.to_string(), format!("{host} is not for you"));
            assert_eq!(error.status(), StatusCode::FORBIDDEN);
        }
    }
    assert_eq!(proxy.server.accepted(), 0);
    fetch(&upstream, &origin.url("http", "fine.invalid")).await.unwrap();
    let asked = asked.lock().unwrap();
    let of = |host: &str| {
        asked.iter().filter(|(name, _)| name == host).map(|(_, address)| *address).collect::<Vec<_>>()
    };
    assert_eq!(of("metadata.invalid"), [None; 3]);
    assert_eq!(of("169.254.169.254"), ["169.254.169.254".parse().ok(); 3]);
    assert_eq!(of("127.0.0.1"), []);
}
