//! Each host in its own way: where it is, what is spoken, who we are to it.

use crate::lab::{Ca, Server, always, answer, config, fetch, get, read_head, server_config, soon};
use bytes::Bytes;
use darter_certs::{ClientIdentity, ExtraRoots, Verification, client_config_as};
use darter_upstream::{BoxError, HttpVersion, Kind, Lookup, Permit, Route, Upstream, UpstreamConfig};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::net::IpAddr;
use std::sync::Arc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

fn upstream(route: Route) -> Upstream {
    Upstream::new(UpstreamConfig { routes: always(route), ..config() })
}

#[tokio::test]
async fn the_version_is_agreed_upon_or_as_configured() {
    use HttpVersion::{Auto, Http1, Http2};
    const BOTH: &[&[u8]] = &[b"h2", b"http/1.1"];
    let ca = Ca::new();
    for (alpn, http, expected) in [
        (BOTH, Auto, "HTTP/2.0"),
        (BOTH, Http1, "HTTP/1.1"),
        (BOTH, Http2, "HTTP/2.0"),
        (&BOTH[1..], Auto, "HTTP/1.1"),
        (&BOTH[..1], Auto, "HTTP/2.0"),
        (&BOTH[..1], Http2, "HTTP/2.0"),
        (&[], Auto, "HTTP/1.1"),
        (&[], Http1, "HTTP/1.1"),
        // What cannot be agreed upon is an error that says so.
        (&[], Http2, "it does not speak HTTP/2 there (ALPN)"),
        (&BOTH[..1], Http1, "(ALPN)"),
        (&BOTH[1..], Http2, "(ALPN)"),
    ] {
        let server = Server::https(server_config(ca.leaf("localhost", |_| {}), alpn)).await;
        let upstream = upstream(Route { http, ..Route::straight(ca.client()) });
        match fetch(&upstream, &server.url("https", "localhost")).await {
            Ok(seen) => assert!(seen.starts_with(expected), "{alpn:?} {http:?}: {seen}"),
            Err(error) => {
                assert!(error.to_string().contains(expected), "{alpn:?} {http:?}: {error}");
                assert!(matches!(error.kind, Kind::Tls { .. }), "{error:?}");
            }
        }
    }
    let server = Server::h2c().await;
    let upstream = upstream(Route { http: Http2, ..Route::straight(ca.client()) });
    let seen = fetch(&upstream, &server.url("http", "localhost")).await.unwrap();
    assert!(seen.starts_with("HTTP/2.0 no tls"), "{seen}");
}

#[tokio::test]
async fn a_host_that_is_placed_keeps_its_name() {
    let ca = Ca::new();
    let server = Server::tls(ca.leaf("registry.invalid", |_| {})).await;
    // Nobody listens at the first of them.
    let addresses: Arc<[IpAddr]> = ["127.0.0.2", "127.0.0.1"].map(|text| text.parse().unwrap()).into();
    let route = Route { lookup: Lookup::Given(addresses), ..Route::straight(ca.client()) };
    let seen = fetch(&upstream(route.clone()), &server.url("https", "registry.invalid")).await.unwrap();
    let expected = format!(
        " sni=registry.invalid resumed=false certificate=false https://registry.invalid:{}/",
        server.port
    );
    assert!(seen.contains(&expected), "{seen}");

    // Placed, but not above the rules.
    let permit: Permit = Arc::new(|host, _, address| Err(format!("{host} at {} no", address.unwrap())));
    let upstream = Upstream::new(UpstreamConfig { permit, routes: always(route), ..config() });
    let error = fetch(&upstream, &server.url("https", "registry.invalid")).await.unwrap_err();
    assert_eq!(error.to_string(), "registry.invalid at 127.0.0.2 no");
}

#[tokio::test]
async fn a_host_that_asks_who_we_are_sees_our_certificate() {
    let (ours, other) = (Ca::new(), Ca::new());
    let demanded =
        "it demands a client certificate, and none is configured for it (upstream.hosts[].clientCert)";
    let refused = "it does not accept the client certificate that is configured for it (upstream.hosts[].clientCert): it refused";
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        for (demands, shown, expected) in [
            (true, None, Err(demanded)),
            (true, Some(&other), Err(refused)),
            (true, Some(&ours), Ok(" certificate=true ")),
            (false, None, Ok(" certificate=false ")),
            (false, Some(&ours), Ok(" certificate=true ")),
        ] {
            let server = Server::https(asking(&ours, version, demands)).await;
            let upstream = upstream(Route::straight(knowing(&ours, shown)));
            assert_eq!(upstream.certificate("localhost", server.port).is_some(), shown.is_some());
            // What the first request would meet, a probe meets.
            let probed = upstream.probe("localhost", server.port).await.map_err(|error| error.to_string());
            let seen =
                fetch(&upstream, &server.url("https", "localhost")).await.map_err(|error| error.to_string());
            let case = format!("{version:?} {demands} {}: {probed:?} {seen:?}", shown.is_some());
            match (expected, seen) {
                (Ok(words), Ok(seen)) => assert!(seen.contains(words) && probed.is_ok(), "{case}"),
                (Err(words), Err(error)) => {
                    let expected = format!("cannot speak TLS with localhost:{}: {words}", server.port);
                    assert!(error.starts_with(&expected) && probed == Err(error), "{case}");
                }
                _ => panic!("{case}"),
            }
        }
    }
}

/// A server that asks its clients for a certificate of `ca`, and demands it or not.
fn asking(
    ca: &Ca,
    version: &'static rustls::SupportedProtocolVersion,
    demands: bool,
) -> rustls::ServerConfig {
    let leaf = ca.leaf("localhost", |_| {});
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.0.der().clone()).unwrap();
    let verifier = rustls::server::WebPkiClientVerifier::builder(Arc::new(roots));
    let verifier = if demands { verifier } else { verifier.allow_unauthenticated() };
    let mut server = rustls::ServerConfig::builder_with_protocol_versions(&[version])
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(vec![leaf.der], leaf.key)
        .unwrap();
    server.alpn_protocols = vec![b"h2".to_vec()];
    server
}

/// Trust in `ca`, and a certificate to show that `shown` has signed.
fn knowing(ca: &Ca, shown: Option<&Ca>) -> Arc<rustls::ClientConfig> {
    let extra_roots = ExtraRoots::from_der(vec![ca.0.der().clone()]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let identity = shown.map(|shown| {
        let own = shown.leaf("node", |params| {
            params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        });
        let write = |name: &str, label: &str, der: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, pem(label, der)).unwrap();
            path
        };
        let certificate = write("node.crt", "CERTIFICATE", &own.der);
        ClientIdentity::read(&certificate, &write("node.key", "PRIVATE KEY", own.key.secret_der())).unwrap()
    });
    client_config_as(&Verification::Verified { extra_roots }, identity.as_ref(), &[])
}

fn pem(label: &str, der: &[u8]) -> String {
    let base64 = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, der);
    let lines: Vec<&str> =
        base64.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

#[tokio::test]
async fn the_next_connection_resumes_the_tls_session() {
    let ca = Ca::new();
    let server = Server::https(server_config(ca.leaf("localhost", |_| {}), &[b"http/1.1"])).await;
    let upstream = upstream(Route::straight(ca.client()));
    let url = format!("https://localhost:{}/close", server.port);
    for resumed in [false, true, true] {
        let seen = fetch(&upstream, &url).await.unwrap();
        assert!(seen.contains(&format!(" resumed={resumed} ")), "{seen}");
    }
    assert_eq!(server.accepted(), 3);
}

#[tokio::test]
async fn a_switch_of_protocols_works_with_an_origin_that_prefers_http2() {
    let ca = Ca::new();
    let leaf = ca.leaf("localhost", |_| {});
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server_config(leaf, &[b"h2", b"http/1.1"])));
    let server = Server::plain(move |stream, _| {
        let acceptor = acceptor.clone();
        async move {
            let mut stream = acceptor.accept(stream).await.unwrap();
            assert_eq!(stream.get_ref().1.alpn_protocol(), Some(b"http/1.1".as_slice()));
            let head = read_head(&mut stream).await.to_lowercase();
            assert!(head.contains("\r\nupgrade: echo\r\n"), "{head}");
            answer(
                &mut stream,
                "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n",
            )
            .await;
            let mut said = [0; 5];
            stream.read_exact(&mut said).await.unwrap();
            stream.write_all(&said).await.unwrap();
        }
    })
    .await;
    let mut request = get(&server.url("https", "localhost"));
    request.headers_mut().insert("connection", "upgrade".parse().unwrap());
    request.headers_mut().insert("upgrade", "echo".parse().unwrap());
    let response = soon(upstream(Route::straight(ca.client())).send(request)).await.unwrap();
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    let mut switched = TokioIo::new(soon(hyper::upgrade::on(response)).await.unwrap());
    switched.write_all(b"hello").await.unwrap();
    let mut said = [0; 5];
    soon(switched.read_exact(&mut said)).await.unwrap();
    assert_eq!(&said, b"hello");
}

/// An origin that echoes frame by frame, trailers included.
async fn echo(request: Request<Incoming>) -> Result<Response<Incoming>, std::convert::Infallible> {
    Ok(Response::new(request.into_body()))
}

#[tokio::test]
async fn http2_streams_both_ways_at_once_and_carries_trailers() {
    let ca = Ca::new();
    let acceptor =
        tokio_rustls::TlsAcceptor::from(Arc::new(server_config(ca.leaf("localhost", |_| {}), &[b"h2"])));
    let server = Server::plain(move |stream, _| {
        let acceptor = acceptor.clone();
        async move {
            let io = TokioIo::new(acceptor.accept(stream).await.unwrap());
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let _ = builder.serve_connection(io, hyper::service::service_fn(echo)).await;
        }
    })
    .await;
    let (say, frames) = mpsc::channel::<Result<Frame<Bytes>, BoxError>>(1);
    let body = BodyExt::boxed_unsync(StreamBody::new(ReceiverStream::new(frames)));
    let request = Request::post(server.url("https", "localhost")).body(body).unwrap();
    let response = soon(upstream(Route::straight(ca.client())).send(request)).await.unwrap();
    let mut body = response.into_body();
    // Each part is said only when the one before came back.
    for part in ["one", "two", "three"] {
        say.send(Ok(Frame::data(Bytes::from(part)))).await.unwrap();
        let frame = soon(body.frame()).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), part);
    }
    let trailers = HeaderMap::from_iter([("x-checksum".parse().unwrap(), "abc".parse().unwrap())]);
    say.send(Ok(Frame::trailers(trailers.clone()))).await.unwrap();
    drop(say);
    assert_eq!(body.frame().await.unwrap().unwrap().into_trailers().unwrap(), trailers);
    assert!(body.frame().await.is_none());
}

#[tokio::test]
async fn a_probe_says_what_a_request_would_and_its_connection_is_used() {
    let ca = Ca::new();
    let server = Server::tls(ca.leaf("localhost", |_| {})).await;
    let error =
        upstream(Route::straight(Ca::new().client())).probe("localhost", server.port).await.unwrap_err();
    assert!(error.to_string().contains("signed by an authority that is not trusted"), "{error}");

    let before = server.accepted();
    let upstream = upstream(Route::straight(ca.client()));
    upstream.probe("LOCALHOST", server.port).await.unwrap();
    upstream.probe("localhost", server.port).await.unwrap();
    fetch(&upstream, &server.url("https", "localhost")).await.unwrap();
    assert_eq!(server.accepted() - before, 1);
}

#[tokio::test]
async fn a_probed_connection_that_was_closed_is_not_used() {
    let ca = Ca::new();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server_config(
        ca.leaf("localhost", |_| {}),
        &[b"http/1.1"],
    )));
    let (closed, mut is_closed) = mpsc::channel(1);
    let server = Server::plain(move |stream, number| {
        let (acceptor, closed) = (acceptor.clone(), closed.clone());
        async move {
            let mut stream = acceptor.accept(stream).await.unwrap();
            if number == 0 {
                drop(stream);
                closed.send(()).await.unwrap();
                return;
            }
            read_head(&mut stream).await;
            answer(&mut stream, "HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n").await;
        }
    })
    .await;
    let upstream = upstream(Route::straight(ca.client()));
    upstream.probe("localhost", server.port).await.unwrap();
    is_closed.recv().await.unwrap();
    // What is not safe is not sent twice: it would fail on the closed connection.
    let mut request = get(&server.url("https", "localhost"));
    *request.method_mut() = http::Method::POST;
    let response = upstream.send(request).await;
    assert_eq!(
        response.map(|response| response.status()).map_err(|error| error.to_string()),
        Ok(StatusCode::CREATED)
    );
}
