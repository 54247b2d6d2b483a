//! What messages say of the proxy, requests that come round, and URLs that could be read in two ways.

use crate::lab::{Darter, Origin, Setup, full, h2, listed, text};
use darter_proxy::{Forwarded, Marks};
use darter_rules::ProxyRule;
use http::{Request, Response, StatusCode};

async fn ask(darter: &Darter, url: &str, headers: &[(&str, &str)]) -> Response<hyper::body::Incoming> {
    let (mut client, mut tasks) = h2(darter.connect().await).await;
    let request = Request::builder().uri(url);
    let request = headers.iter().fold(request, |it, (name, value)| it.header(*name, *value));
    let answer = client.send_request(request.body(full("")).unwrap()).await.unwrap();
    tasks.detach_all();
    answer
}

#[tokio::test]
async fn nothing_is_said_of_the_proxy_unless_wanted() {
    let origin = Origin::http(async |_| Response::new(full("ok"))).await;
    let darter = Darter::start(Setup::default()).await;
    let answer = ask(&darter, &format!("http://127.0.0.1:{}/", origin.port), &[("via", "1.0 before")]).await;
    assert!(!answer.headers().contains_key("via"));
    let head = origin.head(0);
    assert_eq!(head.headers.get_all("via").iter().collect::<Vec<_>>(), ["1.0 before"]);
    assert!(!head.headers.contains_key("forwarded") && !head.headers.contains_key("x-forwarded-for"));
}

#[tokio::test]
async fn via_is_said_in_both_directions_and_what_comes_round_is_refused() {
    let origin = Origin::http(async |_| Response::new(full("ok"))).await;
    let marks = Marks { via: true, forwarded: Forwarded::Standard, ..Marks::default() };
    let darter = Darter::start(Setup { marks, ..Setup::default() }).await;
    let url = format!("http://127.0.0.1:{}/", origin.port);
    let answer = ask(&darter, &url, &[("via", "1.0 before"), ("connection-id", "x")]).await;
    let back = answer.headers()["via"].to_str().unwrap().to_owned();
    let head = origin.head(0);
    let via: Vec<&str> = head.headers.get_all("via").iter().map(|it| it.to_str().unwrap()).collect();
    assert_eq!((via.len(), via[0]), (2, "1.0 before"));
    // The client spoke HTTP/2, the origin HTTP/1.1.
    let name = via[1].strip_prefix("2.0 darter-").unwrap();
    assert_eq!(back, format!("1.1 darter-{name}"));
    assert_eq!(head.headers["forwarded"], "for=127.0.0.1;proto=http");

    let answer = ask(&darter, &url, &[("via", &format!("1.0 before, 1.1 darter-{name} (x)"))]).await;
    assert_eq!(answer.status(), StatusCode::LOOP_DETECTED);
    let sentence = text(answer).await;
    assert!(sentence.contains("went through this proxy before"), "{sentence}");
    assert_eq!(origin.heads.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn the_proxy_does_not_ask_itself_but_answers_for_itself() {
    let darter = Darter::start(Setup::default()).await;
    let at = format!("127.0.0.1:{}", darter.addr.port());
    let asked = format!("GET http://{at}/v2/ HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n");
    let refused = darter.exchange(&asked).await;
    assert!(refused.starts_with("HTTP/1.1 403 "), "{refused}");
    assert!(refused.contains(&format!("destination {at} is this proxy itself")), "{refused}");
    let refused =
        darter.exchange(&format!("CONNECT {at} HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n")).await;
    assert!(refused.starts_with("HTTP/1.1 403 "), "{refused}");
    // As a client asks whose every http URL goes through the proxy.
    assert_eq!(text(ask(&darter, &format!("http://{at}/healthy"), &[]).await).await, "ok\n");
    // Another server's is another's.
    let origin = Origin::http(async |_| Response::new(full("another"))).await;
    let other = format!("http://127.0.0.1:{}/healthy", origin.port);
    assert_eq!(text(ask(&darter, &other, &[]).await).await, "another");
}

#[tokio::test]
async fn what_the_process_serves_beside_the_proxy_is_not_reached_through_it() {
    let darter = Darter::start(Setup::default()).await;
    // Kept as long as the reservation, which is for ever: another test's origin could get the port otherwise.
    let pieces = Box::leak(Box::new(std::net::TcpListener::bind("127.0.0.1:0").unwrap()));
    let port = pieces.local_addr().unwrap().port();
    darter_proxy::reserve(std::net::SocketAddr::from(([0, 0, 0, 0], port)));
    for at in ["127.0.0.1", "127.0.0.2", "localhost"] {
        let at = format!("{at}:{port}");
        let answer = ask(&darter, &format!("http://{at}/tasks/x/data"), &[]).await;
        assert_eq!(answer.status(), StatusCode::FORBIDDEN);
        let sentence = text(answer).await;
        assert!(sentence.contains("is this daemon's own port"), "{sentence}");
        let refused = darter
            .exchange(&format!("CONNECT {at} HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n"))
            .await;
        assert!(refused.starts_with("HTTP/1.1 403 "), "{refused}");
    }
    pieces.set_nonblocking(true).unwrap();
    let nobody = pieces.accept().map_err(|error| error.kind());
    assert_eq!(nobody.err(), Some(std::io::ErrorKind::WouldBlock));
}

#[tokio::test]
async fn a_mirror_that_is_its_own_registry_is_told_so() {
    // The port is known only when the proxy is there.
    let darter = Darter::start(Setup::default()).await;
    let own = Setup { mirror: format!("http://127.0.0.1:{}", darter.addr.port()), ..Setup::default() };
    darter.proxy.replace(own.settings(&darter.leaves));
    let answer = darter
        .exchange("GET /v2/x/tags/list HTTP/1.1\r\nHost: proxy.example\r\nConnection: close\r\n\r\n")
        .await;
    assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("is this proxy itself"), "{answer}");
}

#[tokio::test]
async fn what_the_rules_judged_is_what_is_fetched() {
    let origin = Origin::http(async |request: Request<hyper::body::Incoming>| {
        Response::new(full(request.uri().to_string()))
    })
    .await;
    // Everything goes through the peers, but for what is under /private/.
    let rule = |regx: &str, direct| ProxyRule { direct, ..ProxyRule::new(regx.parse().unwrap()) };
    let proxies = vec![rule("/private/", true), rule(".*", false)];
    let white_list = vec![listed("127.0.0.0/8")];
    let darter = Darter::start(Setup { proxies, white_list, ..Setup::default() }).await;
    for path in [
        "/public/../private/x",
        "/public/%2e%2e/private/x",
        "/public/%2E./private/x",
        "/public/.%2e/private/x",
        "/public/./x",
        "/public/%2e/x",
        "/..",
        "/../x",
        "//x//y",
        "///",
        "/a%2fb/%5c..%5cx",
        "/x;/../y",
        "/x?../../y",
        "/x/?a=/../b",
        "/%252e%252e/x",
        "/x\\..\\y",
        "/x\"y",
        "/{x}|y^z",
        "/x?a='b'",
        "/x'y",
        "/~x/%7Ey",
        "/x+y%2By",
        "/%",
        "/%zz",
    ] {
        let request = format!(
            "GET http://127.0.0.1:{0}{path} HTTP/1.1\r\nHost: 127.0.0.1:{0}\r\nConnection: close\r\n\r\n",
            origin.port
        );
        let answer = darter.exchange(&request).await;
        if answer.starts_with("HTTP/1.1 4") {
            assert!(origin.heads.lock().unwrap().is_empty(), "{path}: {answer}");
            continue;
        }
        assert!(answer.starts_with("HTTP/1.1 200 "), "{path}: {answer}");
        let heads = std::mem::take(&mut *origin.heads.lock().unwrap());
        assert!(!heads.is_empty(), "{path}");
        for head in heads {
            assert_eq!(head.uri, path, "{answer}");
        }
    }
}
