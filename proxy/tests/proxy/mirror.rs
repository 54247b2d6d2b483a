//! Requests in origin form: the registry mirror, and names of the proxy's own.

use crate::lab::{Darter, Origin, Setup, closed_port, full, h1, text};
use darter_certs::Authority;
use darter_proxy::BasicAuth;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use std::sync::Arc;

fn get(target: &str, headers: &[(&str, &str)]) -> Request<crate::lab::Body> {
    let builder = Request::builder().uri(target).header("host", "mirror.example:65001");
    headers.iter().fold(builder, |it, (name, value)| it.header(*name, *value)).body(full("")).unwrap()
}

async fn send(darter: &Darter, request: Request<crate::lab::Body>) -> Response<Incoming> {
    let (mut client, mut tasks) = h1(darter.connect().await).await;
    let answer = client.send_request(request).await.unwrap();
    tasks.detach_all();
    answer
}

#[tokio::test]
async fn a_request_goes_to_the_registry_that_it_names() {
    let ca = Arc::new(Authority::generate().unwrap());
    let by_ns = Origin::https(&ca, async |_| Response::new(full("by ns"))).await;
    let by_header = Origin::http(async |_| Response::new(full("by header"))).await;
    let by_default = Origin::http(async |_| Response::new(full("by default"))).await;
    let mirror = format!("http://127.0.0.1:{}", by_default.port);
    let darter = Darter::start(Setup { mirror, origin_ca: ca, ..Setup::default() }).await;
    let registry = format!("http://127.0.0.1:{}", by_header.port);

    let path = "/v2/library/a/manifests/latest";
    assert_eq!(text(send(&darter, get(path, &[])).await).await, "by default");
    let header = [("x-dragonfly-registry", registry.as_str())];
    assert_eq!(text(send(&darter, get(path, &header)).await).await, "by header");
    let with_ns = format!("{path}?ns=localhost:{}&n=5", by_ns.port);
    assert_eq!(text(send(&darter, get(&with_ns, &header)).await).await, "by ns");

    let head = by_ns.head(0);
    assert_eq!(head.uri.path_and_query().unwrap(), &format!("{path}?n=5"));
    assert!(!head.headers.contains_key("x-dragonfly-registry"));
    assert_eq!(by_header.head(0).headers["host"], format!("127.0.0.1:{}", by_header.port));
}

#[tokio::test]
async fn a_registry_that_is_down_is_told_in_the_error_format_of_registries() {
    let port = closed_port().await;
    let mirror = format!("http://127.0.0.1:{port}");
    let darter = Darter::start(Setup { mirror, ..Setup::default() }).await;
    let answer = send(&darter, get("/v2/", &[])).await;
    assert_eq!(answer.status(), StatusCode::BAD_GATEWAY);
    assert_eq!(answer.headers()["content-type"], "application/json");
    let body: serde_json::Value = serde_json::from_str(&text(answer).await).unwrap();
    assert_eq!(body["errors"][0]["code"], "UNAVAILABLE");
    let message = body["errors"][0]["message"].as_str().unwrap();
    assert_eq!(message, format!("cannot connect to 127.0.0.1:{port} (127.0.0.1): connection refused"));
}

#[tokio::test]
async fn a_certificate_that_is_not_trusted_is_told_with_its_check() {
    let stranger = Arc::new(Authority::generate().unwrap());
    let origin = Origin::https(&stranger, async |_| Response::new(full(""))).await;
    let darter = Darter::start(Setup::default()).await;
    let answer = send(&darter, get(&format!("/v2/?ns=localhost:{}", origin.port), &[])).await;
    assert_eq!(answer.status(), StatusCode::BAD_GATEWAY);
    let body = text(answer).await;
    assert!(body.contains("signed by an authority that is not trusted here"), "{body}");
}

#[tokio::test]
async fn an_ambiguous_registry_is_400_in_the_error_format_of_registries() {
    let darter = Darter::start(Setup::default()).await;
    let answer = send(&darter, get("/v2/?ns=a.example&ns=b.example", &[])).await;
    assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
    let body: serde_json::Value = serde_json::from_str(&text(answer).await).unwrap();
    assert_eq!(body["errors"][0]["code"], "UNSUPPORTED");
}

#[tokio::test]
async fn the_proxys_own_names_are_served_without_a_password() {
    let basic_auth = Some(BasicAuth::new("user", "pass"));
    let darter = Darter::start(Setup { basic_auth, ..Setup::default() }).await;
    let answer = send(&darter, get("/ca.crt", &[])).await;
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.headers()["content-type"], "application/x-x509-ca-cert");
    assert_eq!(text(answer).await, darter.leaves.authority().certificate_pem());

    let answer = send(&darter, get("/healthy", &[])).await;
    assert_eq!((answer.status(), text(answer).await.as_str()), (StatusCode::OK, "ok\n"));

    let mut request = get("/ca.crt", &[]);
    *request.method_mut() = http::Method::POST;
    let answer = send(&darter, request).await;
    assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(answer.headers()["allow"], "GET, HEAD");

    assert_eq!(send(&darter, get("/v2/", &[])).await.status(), StatusCode::PROXY_AUTHENTICATION_REQUIRED);
    let named = get("/ca.crt", &[("x-dragonfly-registry", "a.example")]);
    assert_eq!(send(&darter, named).await.status(), StatusCode::PROXY_AUTHENTICATION_REQUIRED);
}

#[tokio::test]
async fn a_page_in_a_browser_does_not_get_the_mirror_for_its_own_host() {
    let registry = Origin::http(async |_| Response::new(full("private"))).await;
    let mirror = format!("http://127.0.0.1:{}", registry.port);
    let darter = Darter::start(Setup { mirror, ..Setup::default() }).await;
    let ask = async |host: &str, shown: &[(&str, &str)]| {
        let head: String = shown.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let request =
            format!("GET /v2/a/tags/list HTTP/1.1\r\nHost: {host}\r\n{head}Connection: close\r\n\r\n");
        darter.exchange(&request).await[9..12].to_owned()
    };
    let marks: [&[(&str, &str)]; 4] = [
        &[("user-agent", "Mozilla/5.0"), ("accept-language", "eo")],
        &[("origin", "http://evil.example")],
        &[("referer", "http://evil.example/")],
        &[("sec-fetch-site", "same-origin")],
    ];
    // A name that was made to lead here (DNS rebinding).
    for shown in marks {
        assert_eq!(ask("evil.example:65001", shown).await, "421", "{shown:?}");
    }
    for host in ["127.0.0.1:65001", "[::1]:65001", "localhost:65001", "10.0.0.6"] {
        assert_eq!(ask(host, &marks.concat()).await, "200", "{host}");
    }
    // Container engines and package managers reach a mirror by whatever name leads there.
    for host in ["host.docker.internal:65001", "darter.kube-system.svc:65001", "node1"] {
        for shown in
            [("user-agent", "containerd/2.0"), ("accept-language", "en-US"), ("referer", "install a")]
        {
            assert_eq!(ask(host, &[shown]).await, "200", "{host} {shown:?}");
        }
    }
}
