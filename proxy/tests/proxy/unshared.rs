//! Content that serves only who asked for it: everybody is served at the same time.

use crate::lab::{Origin, read_head};
use crate::p2p::{blob, mirror_of};
use darter_proxy::Limits;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{Barrier, Notify};

const CLIENTS: usize = 10;

#[tokio::test]
async fn who_asks_for_what_cannot_be_shared_is_answered_beside_the_others() {
    let (asked, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let together = Arc::new(Barrier::new(CLIENTS - 1));
    let (count, wait) = (asked.clone(), go.clone());
    // The first is answered when it is let to; each of the others only when all of them ask.
    let origin = Origin::raw(move |mut stream| {
        let (count, wait, together) = (count.clone(), wait.clone(), together.clone());
        async move {
            let head = read_head(&mut stream).await;
            if head.starts_with("HEAD ") {
                let yes = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n";
                return stream.write_all(yes).await.unwrap();
            }
            if count.fetch_add(1, Ordering::SeqCst) == 0 {
                wait.notified().await;
            } else {
                together.wait().await;
            }
            let chunked = "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n2\r\nok\r\n0\r\n\r\n";
            stream.write_all(format!("HTTP/1.1 200 OK\r\n{chunked}").as_bytes()).await.unwrap();
        }
    })
    .await;
    let darter = mirror_of(&origin, Limits::default()).await;
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let mut stream = darter.connect().await;
        let head = format!("GET {} HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n", blob(b"ok"));
        stream.write_all(head.as_bytes()).await.unwrap();
        clients.push(stream);
    }
    darter.until("proxy_requests_in_flight", CLIENTS as f64).await;
    while asked.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    go.notify_one();
    // One after the other they would never all be there.
    let answers = async {
        for stream in &mut clients {
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("ok"), "{answer}");
        }
    };
    tokio::time::timeout(Duration::from_secs(60), answers).await.expect("all are asked for at once");
    assert_eq!(asked.load(Ordering::SeqCst), CLIENTS);
    darter.until("proxy_requests_total{outcome=\"relayed\"}", 1.0).await;
    darter.until("proxy_requests_total{outcome=\"bypass\"}", (CLIENTS - 1) as f64).await;
}
