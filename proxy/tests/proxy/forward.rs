//! Requests in absolute form.

use crate::lab::{Darter, Origin, Setup, full, h1, h2, text};
use darter_proxy::BasicAuth;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;

fn get(url: String) -> Request<crate::lab::Body> {
    let authority = url.parse::<http::Uri>().unwrap().authority().unwrap().to_string();
    Request::builder().uri(url).header("host", authority).body(full("")).unwrap()
}

#[tokio::test]
async fn the_origins_answer_comes_as_it_is() {
    let origin = Origin::http(async |_| {
        Response::builder()
            .status(401)
            .header("www-authenticate", "Bearer realm=\"https://auth.example/token\"")
            .header("www-authenticate", "Basic realm=\"r\"")
            .header("retry-after", "7")
            .header("location", "../elsewhere?x=1")
            .header("keep-alive", "timeout=5")
            .header("connection", "x-hop")
            .header("x-hop", "1")
            .body(full("{\"errors\":[]}"))
            .unwrap()
    })
    .await;
    let darter = Darter::start(Setup::default()).await;
    let (mut client, _tasks) = h1(darter.connect().await).await;
    let answer = client.send_request(get(format!("http://127.0.0.1:{}/a?b=c", origin.port))).await.unwrap();
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    let headers = answer.headers();
    assert_eq!(headers.get_all("www-authenticate").iter().count(), 2);
    assert_eq!(
        (&headers["retry-after"], &headers["location"]),
        (&"7".parse().unwrap(), &"../elsewhere?x=1".parse().unwrap())
    );
    assert!(!headers.contains_key("x-hop") && !headers.contains_key("keep-alive"), "{headers:?}");
    assert_eq!(text(answer).await, "{\"errors\":[]}");
}

#[tokio::test]
async fn the_origin_gets_what_is_meant_for_it() {
    let origin = Origin::http(async |_| Response::new(full("ok"))).await;
    let darter = Darter::start(Setup::default()).await;
    let (mut client, _tasks) = h1(darter.connect().await).await;
    let mut request = get(format!("http://127.0.0.1:{}/a%2Fb?c=d", origin.port));
    *request.method_mut() = Method::DELETE;
    for (name, value) in [
        ("accept", "a/b"),
        ("accept", "c/d"),
        ("authorization", "Bearer t"),
        ("connection", "keep-alive, x-hop"),
        ("x-hop", "1"),
        ("proxy-connection", "keep-alive"),
        ("proxy-authorization", "Basic eDp5"),
        ("te", "trailers, deflate"),
        ("x-dragonfly-tag", "t"),
    ] {
        request.headers_mut().append(name, value.parse().unwrap());
    }
    assert_eq!(text(client.send_request(request).await.unwrap()).await, "ok");
    let head = origin.head(0);
    assert_eq!((head.method, head.uri.to_string()), (Method::DELETE, "/a%2Fb?c=d".to_owned()));
    assert_eq!(head.headers["host"], format!("127.0.0.1:{}", origin.port));
    assert_eq!(head.headers.get_all("accept").iter().collect::<Vec<_>>(), ["a/b", "c/d"]);
    assert_eq!(
        (&head.headers["authorization"], &head.headers["te"]),
        (&"Bearer t".parse().unwrap(), &"trailers".parse().unwrap())
    );
    for gone in ["connection", "x-hop", "proxy-connection", "proxy-authorization", "x-dragonfly-tag"] {
        assert!(!head.headers.contains_key(gone), "{gone}");
    }
}

#[tokio::test]
async fn a_request_that_traces_its_way_is_counted_down_and_ends_here() {
    let origin = Origin::http(async |_| Response::new(full("ok"))).await;
    let darter = Darter::start(Setup::default()).await;
    let (mut client, _tasks) = h1(darter.connect().await).await;
    for (method, left, status, reaches) in [
        (Method::OPTIONS, "5", 200, Some("4")),
        (Method::OPTIONS, "0", 204, None),
        (Method::TRACE, "1", 200, Some("0")),
        (Method::TRACE, "0", 405, None),
        // Of other methods it says nothing.
        (Method::GET, "0", 200, Some("0")),
    ] {
        let mut request = get(format!("http://127.0.0.1:{}/x", origin.port));
        *request.method_mut() = method.clone();
        request.headers_mut().insert("max-forwards", left.parse().unwrap());
        let answer = client.send_request(request).await.unwrap();
        assert_eq!(answer.status(), status, "{method} {left}");
        let _ = answer.into_body().collect().await;
        let head = origin.heads.lock().unwrap().pop();
        let seen = head.map(|head| head.headers["max-forwards"].to_str().unwrap().to_owned());
        assert_eq!(seen.as_deref(), reaches, "{method} {left}");
    }
}

#[tokio::test]
async fn an_answer_to_head_keeps_its_length() {
    let origin =
        Origin::http(async |_| Response::builder().header("content-length", "12345").body(full("")).unwrap())
            .await;
    let darter = Darter::start(Setup::default()).await;
    let (mut client, _tasks) = h1(darter.connect().await).await;
    let mut request = get(format!("http://127.0.0.1:{}/", origin.port));
    *request.method_mut() = Method::HEAD;
    let answer = client.send_request(request).await.unwrap();
    assert_eq!(answer.headers()["content-length"], "12345");
    assert_eq!(text(answer).await, "");
    darter.until("proxy_requests_total{way=\"forward\",outcome=\"direct\"}", 1.0).await;
    assert_eq!(darter.metric("proxy_bodies_cut_total{by=\"client\"}"), 0.0);
}

#[tokio::test]
async fn trailers_pass_both_ways() {
    let origin = Origin::http(async |request: Request<hyper::body::Incoming>| {
        let body = request.into_body().collect().await.unwrap();
        let trailers = body.trailers().cloned().unwrap();
        let end = http_body::Frame::trailers(trailers);
        let body = http_body_util::StreamBody::new(futures_util::stream::iter([Ok(end)]));
        Response::builder().header("trailer", "x-sum").body(body.boxed_unsync()).unwrap()
    })
    .await;
    let darter = Darter::start(Setup::default()).await;
    let (mut client, _tasks) = h1(darter.connect().await).await;
    let mut request = get(format!("http://127.0.0.1:{}/", origin.port));
    *request.method_mut() = Method::POST;
    request.headers_mut().insert("te", "trailers".parse().unwrap());
    request.headers_mut().insert("trailer", "x-sum".parse().unwrap());
    let sums = http::HeaderMap::from_iter([("x-sum".parse().unwrap(), "42".parse().unwrap())]);
    let frames = [Ok(http_body::Frame::data("data".into())), Ok(http_body::Frame::trailers(sums))];
    *request.body_mut() = http_body_util::StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync();
    let answer = client.send_request(request).await.unwrap().into_body().collect().await.unwrap();
    assert_eq!(answer.trailers().unwrap()["x-sum"], "42");
}

#[tokio::test]
async fn http2_to_the_port_is_a_forward_proxys() {
    let origin = Origin::http(async |_| Response::new(full("ok"))).await;
    let darter = Darter::start(Setup::default()).await;
    let (mut client, _tasks) = h2(darter.connect().await).await;
    let request =
        Request::builder().uri(format!("http://127.0.0.1:{}/x", origin.port)).body(full("")).unwrap();
    assert_eq!(text(client.send_request(request).await.unwrap()).await, "ok");
}

#[tokio::test]
async fn a_refused_destination_is_403_with_a_sentence() {
    let darter = Darter::start(Setup { white_list: Vec::new(), ..Setup::default() }).await;
    let (mut client, _tasks) = h1(darter.connect().await).await;
    for host in ["127.0.0.1", "localhost", "169.254.169.254"] {
        let answer = client.send_request(get(format!("http://{host}:1/?token=secret"))).await.unwrap();
        assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{host}");
        let status = answer.headers()["proxy-status"].to_str().unwrap().to_owned();
        assert!(status.starts_with("darter; error=destination_ip_prohibited; details=\""), "{status}");
        let sentence = text(answer).await;
        assert!(sentence.contains(host) && sentence.contains("proxy.whiteList"), "{sentence}");
        assert!(!sentence.contains("secret"), "{sentence}");
    }
    darter.until("proxy_requests_total{way=\"forward\",outcome=\"refused\"}", 3.0).await;
}

#[tokio::test]
async fn a_name_that_resolves_to_a_refused_address_is_403() {
    // The name itself is allowed: its address is not.
    let anything = darter_rules::WhiteListEntry::default();
    let darter = Darter::start(Setup { white_list: vec![anything], ..Setup::default() }).await;
    let name = hostname_of_loopback();
    let answer = darter
        .exchange(&format!("GET http://{name}:1/ HTTP/1.1\r\nHost: {name}:1\r\nConnection: close\r\n\r\n"))
        .await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
}

/// A name other than localhost that /etc/hosts maps to a loopback address; `ip6-localhost` on Debian.
fn hostname_of_loopback() -> String {
    let hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
    let names = hosts.lines().filter(|line| line.starts_with("127.") || line.starts_with("::1"));
    let mut names = names.flat_map(|line| line.split_whitespace().skip(1));
    names.find(|name| *name != "localhost").unwrap_or("localhost").to_owned()
}

#[tokio::test]
async fn an_origin_that_is_down_is_502_with_a_sentence() {
    let port = crate::lab::closed_port().await;
    let darter = Darter::start(Setup::default()).await;
    let (mut client, _tasks) = h1(darter.connect().await).await;
    let answer = client.send_request(get(format!("http://127.0.0.1:{port}/"))).await.unwrap();
    assert_eq!(answer.status(), StatusCode::BAD_GATEWAY);
    assert_eq!(
        text(answer).await,
        format!("cannot connect to 127.0.0.1:{port} (127.0.0.1): connection refused\n")
    );
    darter.until("proxy_requests_total{way=\"forward\",outcome=\"failed\"}", 1.0).await;
}

#[tokio::test]
async fn a_password_is_asked_for_and_goes_no_further() {
    let origin = Origin::http(async |_| Response::new(full("ok"))).await;
    let basic_auth = Some(BasicAuth::new("user", "pass"));
    let darter = Darter::start(Setup { basic_auth, ..Setup::default() }).await;
    let (mut client, _tasks) = h1(darter.connect().await).await;
    let url = format!("http://127.0.0.1:{}/", origin.port);
    let mut request = get(url.clone());
    // The origin's own header does not count.
    request.headers_mut().insert("authorization", "Basic dXNlcjpwYXNz".parse().unwrap());
    let answer = client.send_request(request).await.unwrap();
    assert_eq!(answer.status(), StatusCode::PROXY_AUTHENTICATION_REQUIRED);
    assert!(answer.headers()["proxy-authenticate"].to_str().unwrap().starts_with("Basic realm="));
    text(answer).await;

    let mut request = get(url);
    request.headers_mut().insert("proxy-authorization", "Basic dXNlcjpwYXNz".parse().unwrap());
    request.headers_mut().insert("authorization", "Basic b3RoZXI6b25l".parse().unwrap());
    assert_eq!(text(client.send_request(request).await.unwrap()).await, "ok");
    assert_eq!(origin.heads.lock().unwrap().len(), 1);
    assert_eq!(origin.head(0).headers["authorization"], "Basic b3RoZXI6b25l");
}

#[tokio::test]
async fn an_old_client_gets_a_body_that_ends_with_the_connection() {
    let origin = Origin::http(async |_| {
        let frames =
            [Ok(http_body::Frame::data("of unknown ".into())), Ok(http_body::Frame::data("length".into()))];
        Response::new(http_body_util::StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync())
    })
    .await;
    let darter = Darter::start(Setup::default()).await;
    let answer = darter.exchange(&format!("GET http://127.0.0.1:{}/ HTTP/1.0\r\n\r\n", origin.port)).await;
    assert!(answer.starts_with("HTTP/1.0 200 OK\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nof unknown length"), "{answer}");
    assert_eq!(origin.head(0).version, http::Version::HTTP_11);
}
