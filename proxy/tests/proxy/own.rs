//! What the proxy serves under its own name: for people, for scripts, for clients.

use crate::lab::{Body, Darter, Setup, full, h1, text};
use darter_proxy::BasicAuth;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use std::process::{Command, Stdio};

const HOST: &str = "proxy.example:65001";

fn get(target: &str, accept: &str) -> Request<Body> {
    Request::get(target).header("host", HOST).header("accept", accept).body(full("")).unwrap()
}

async fn send(darter: &Darter, request: Request<Body>) -> Response<Incoming> {
    let (mut client, mut tasks) = h1(darter.connect().await).await;
    let answer = client.send_request(request).await.unwrap();
    tasks.detach_all();
    answer
}

#[tokio::test]
async fn people_are_told_what_this_is_and_what_to_paste() {
    let darter = Darter::start(Setup::default()).await;
    let fingerprint = darter.leaves.authority().fingerprint_sha256();
    for (path, words) in [
        ("/", ["http://proxy.example:65001", "/setup.sh"]),
        ("/setup", [fingerprint.as_str(), "--proxy http://proxy.example:65001 --cacert"]),
    ] {
        let answer = send(&darter, get(path, "text/html,*/*")).await;
        assert_eq!(
            (answer.status(), &answer.headers()["content-type"]),
            (StatusCode::OK, &"text/html; charset=utf-8".parse().unwrap())
        );
        assert_eq!(
            answer.headers()["content-security-policy"],
            "default-src 'none'; style-src 'unsafe-inline'"
        );
        let html = text(answer).await;
        assert!(
            html.starts_with("<!doctype html>") && words.iter().all(|word| html.contains(word)),
            "{html}"
        );
        let answer = send(&darter, get(path, "*/*")).await;
        assert_eq!(answer.headers()["content-type"], "text/plain; charset=utf-8");
        let plain = text(answer).await;
        assert!(!plain.contains("<pre>") && words.iter().all(|word| plain.contains(word)), "{plain}");
    }
    let setup = text(send(&darter, get("/setup", "*/*")).await).await;
    for client in
        ["dockerd", "containerd", "podman, skopeo", "curl", "apt", "dnf", "pip", "npm", "cargo", "git"]
    {
        assert!(setup.contains(&format!("== {client}")), "{client}: {setup}");
    }
}

#[tokio::test]
async fn the_certificate_comes_in_both_forms() {
    let darter = Darter::start(Setup::default()).await;
    let answer = send(&darter, get("/ca.der", "*/*")).await;
    assert_eq!(answer.headers()["content-type"], "application/pkix-cert");
    let der = answer.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(&der[..], &darter.leaves.authority().certificate_der()[..]);
}

/// A shell reads each whole, and what it would run is what is meant.
#[tokio::test]
async fn the_scripts_hold_this_proxys_address() {
    let darter = Darter::start(Setup::default()).await;
    for (path, last) in [
        ("/setup.sh", "main --proxy 'http://proxy.example:65001' \"$@\"\n"),
        ("/setup/systemd", "main --proxy 'http://proxy.example:65001' --use docker --restart \"$@\"\n"),
    ] {
        let script = text(send(&darter, get(path, "*/*")).await).await;
        assert!(script.starts_with("#!/bin/sh\n") && script.ends_with(last), "{script}");
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("setup.sh");
        std::fs::write(&file, &script).unwrap();
        let read = Command::new("sh").arg("-n").arg(&file).status().unwrap();
        assert!(read.success(), "{path}");
        let helped = Command::new("sh").arg(&file).arg("--help").stdout(Stdio::null()).status().unwrap();
        assert!(helped.success(), "{path}");
    }
}

#[tokio::test]
async fn what_a_shell_would_run_is_no_address() {
    let darter = Darter::start(Setup::default()).await;
    for host in ["a';id;'", "$(id)", "`id`", "a b", "a<b>", "user:x@a", "a\\", "a&b", "a%24(id)"] {
        for path in ["/setup.sh", "/setup/systemd", "/setup", "/"] {
            let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
            let answer = darter.exchange(&request).await;
            assert!(answer.starts_with("HTTP/1.1 400 ") && !answer.contains("main"), "{host}: {answer}");
        }
    }
    let answer = darter.exchange("GET /setup.sh HTTP/1.0\r\n\r\n").await;
    assert!(answer.contains(" 400 the request does not say by which name it has come here"), "{answer}");
}

#[tokio::test]
async fn methods_and_paths_that_there_are_not_are_told_which_there_are() {
    let darter =
        Darter::start(Setup { basic_auth: Some(BasicAuth::new("u", "p")), ..Setup::default() }).await;
    for path in ["/", "/ca.crt", "/ca.der", "/setup", "/setup.sh", "/setup/systemd", "/healthy"] {
        let mut head = get(path, "*/*");
        *head.method_mut() = Method::HEAD;
        let answer = send(&darter, head).await;
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        let length = answer.headers()["content-length"].clone();
        assert_eq!(text(answer).await, "");
        let whole = send(&darter, get(path, "*/*")).await.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(length, whole.len().to_string());
        let mut post = get(path, "*/*");
        *post.method_mut() = Method::POST;
        let answer = send(&darter, post).await;
        assert_eq!(
            (answer.status(), &answer.headers()["allow"]),
            (StatusCode::METHOD_NOT_ALLOWED, &"GET, HEAD".parse().unwrap())
        );
    }
    for path in ["/ca.pem", "/setup/docker"] {
        let answer = send(&darter, get(path, "*/*")).await;
        assert_eq!(answer.status(), StatusCode::NOT_FOUND);
        let sentence = text(answer).await;
        assert!(sentence.contains("/setup/systemd"), "{sentence}");
    }
}
