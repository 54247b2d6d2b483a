//! What a proxy does in docker-registry-proxy's place.

use crate::lab::{Darter, Origin, Setup, full};
use crate::p2p::{ask, blob, bytes, content, serve_range};
use darter_proxy::Marks;
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;

const STATUS: &str = "x-docker-registry-proxy-cache-upstream-status";
const TYPE: &str = "x-docker-registry-proxy-cache-type";

/// A registry with one blob, and a proxy that mirrors it.
async fn registry(setup: Setup) -> (Origin, Darter) {
    let origin = Origin::http(|request: Request<Incoming>| {
        let answer = match request.uri().path().contains("/blobs/") {
            true => serve_range(&content(), request.headers()),
            false => Response::new(full("{}")),
        };
        async move { answer }
    })
    .await;
    let mirror = format!("http://127.0.0.1:{}", origin.port);
    let darter = Darter::start(Setup { mirror, ..setup }).await;
    (origin, darter)
}

#[tokio::test]
async fn scripts_find_the_headers_that_they_know() {
    let marks = Marks { docker_registry_proxy: true, ..Marks::default() };
    let (_origin, darter) = registry(Setup { marks, ..Setup::default() }).await;
    let layer = blob(&content());
    let came = async || {
        let answer = ask(&darter, Method::GET, &layer, &[]).await;
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.headers()[TYPE], "blob-by-digest");
        let came = answer.headers()[STATUS].to_str().unwrap().to_owned();
        bytes(answer).await;
        came
    };
    assert_eq!(came().await, "MISS");
    // Until it has been checked and lies on disk.
    while came().await != "HIT" {}
    let answer = ask(&darter, Method::GET, "/v2/a/b/manifests/latest", &[]).await;
    assert_eq!(
        (&answer.headers()[STATUS], &answer.headers()[TYPE]),
        (&"MISS".parse().unwrap(), &"manifest-default-disabled".parse().unwrap())
    );
    let answer = ask(&darter, Method::GET, "/v2/", &[]).await;
    assert!(!answer.headers().contains_key(STATUS));

    let (_origin, plain) = registry(Setup::default()).await;
    assert!(!ask(&plain, Method::GET, &layer, &[]).await.headers().contains_key(STATUS));
}

#[tokio::test]
async fn pushes_are_refused_where_nobody_may_and_all_else_is_not() {
    let (origin, darter) = registry(Setup { allow_push: false, ..Setup::default() }).await;
    for method in [Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
        let answer = ask(&darter, method.clone(), "/v2/a/b/blobs/uploads/", &[]).await;
        assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED, "{method}");
        assert_eq!(answer.headers()["allow"], "GET, HEAD");
        let body = String::from_utf8(bytes(answer).await.to_vec()).unwrap();
        assert!(body.contains("proxy.allowPush"), "{body}");
    }
    assert!(origin.heads.lock().unwrap().is_empty());
    // A client signs in by POST.
    for (method, path) in [(Method::GET, "/v2/"), (Method::POST, "/token")] {
        assert_eq!(ask(&darter, method, path, &[]).await.status(), StatusCode::OK, "{path}");
    }
    let (origin, open) = registry(Setup::default()).await;
    assert_eq!(ask(&open, Method::PUT, "/v2/a/b/manifests/latest", &[]).await.status(), StatusCode::OK);
    assert_eq!(origin.heads.lock().unwrap().len(), 1);
}
