//! Traces, as a collector gets them.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::trace::v1::Span;
use rustix::process::Signal;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use crate::process::{Running, health};
use crate::serving::Daemon;

/// What a collector was sent.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        if request.metadata().get("x-key").is_none_or(|key| key != "hunter2-of-the-collector") {
            return Err(Status::unauthenticated("no key"));
        }
        self.0.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Serves on a thread of its own until the test's process ends.
    fn start() -> (Self, SocketAddr) {
        let (collector, listener) = (Self::default(), TcpListener::bind("127.0.0.1:0").unwrap());
        let addr = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let service = TraceServiceServer::new(collector.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let incoming = TcpIncoming::from(tokio::net::TcpListener::from_std(listener).unwrap());
                tonic::transport::Server::builder()
                    .add_service(service)
                    .serve_with_incoming(incoming)
                    .await
                    .unwrap();
            });
        });
        (collector, addr)
    }

    fn spans(&self) -> Vec<Span> {
        let requests = self.0.lock().unwrap();
        let resources = requests.iter().flat_map(|request| &request.resource_spans);
        resources.flat_map(|resource| &resource.scope_spans).flat_map(|scope| scope.spans.clone()).collect()
    }
}

/// Asks `proxy` for a path of an origin that answers once; gives what the origin was sent.
fn ask(proxy: SocketAddr, headers: &str) -> String {
    let origin = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = origin.local_addr().unwrap();
    let mut client = TcpStream::connect(proxy).unwrap();
    write!(
        client,
        "GET http://{at}/path?sig=hunter2 HTTP/1.1\r\nHost: {at}\r\n{headers}Connection: close\r\n\r\n"
    )
    .unwrap();
    let (mut server, _) = origin.accept().unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        server.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    server.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("\r\n\r\nok"), "{answer}");
    String::from_utf8(head).unwrap()
}

fn ended_well(running: Running) -> String {
    running.signal(Signal::TERM);
    let (code, log) = running.end();
    assert_eq!(code, 0, "{log}");
    log
}

#[test]
fn a_request_goes_on_with_its_clients_trace_and_reaches_the_collector_without_a_secret() {
    let (collector, addr) = Collector::start();
    let config = format!(
        "tracing: {{protocol: grpc, endpoint: {addr}, headers: {{x-key: hunter2-of-the-collector}}}}\nservice-name: node-7\n"
    );
    let Daemon { mut running, dir: _dir } = Daemon::start(&config);
    let (probes, proxy) = (running.listening("health"), running.listening("proxy"));
    health(probes, "200");
    let trace = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n";
    let secrets = "Authorization: Bearer hunter2\r\nCookie: a=hunter2\r\n";
    let sent = ask(proxy, &format!("{trace}{secrets}"));
    // As it came: the origin's part of the trace, if it has one, is its client's business.
    assert!(sent.contains(trace), "{sent}");
    let untraced = ask(proxy, secrets);
    assert!(!untraced.contains("traceparent"), "{untraced}");
    // What waits is sent when the process ends.
    let log = ended_well(running);

    let spans = collector.spans();
    let id = [0x0a, 0xf7, 0x65, 0x19, 0x16, 0xcd, 0x43, 0xdd, 0x84, 0x48, 0xeb, 0x21, 0x1c, 0x80, 0x31, 0x9c];
    let request = spans.iter().find(|span| span.name == "request" && span.trace_id == id).unwrap();
    assert_eq!(request.parent_span_id, [0xb7, 0xad, 0x6b, 0x71, 0x69, 0x20, 0x33, 0x31]);
    let origin = spans.iter().find(|span| span.name == "origin" && span.trace_id == id).unwrap();
    assert_eq!(origin.parent_span_id, request.span_id);
    assert_eq!(spans.iter().filter(|span| span.name == "request").count(), 2);
    let said = format!("{:?}", collector.0.lock().unwrap());
    for words in ["node-7", "/path?sig=*", "direct", "http.response.status_code"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert!(!said.contains("hunter2") && !log.contains("hunter2"), "{said}\n{log}");
}

#[test]
fn a_collector_that_is_dead_costs_a_line_and_no_request() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let config = format!("tracing: {{protocol: grpc, endpoint: {closed}}}\n");
    let Daemon { mut running, dir: _dir } = Daemon::start(&config);
    let (probes, proxy) = (running.listening("health"), running.listening("proxy"));
    health(probes, "200");
    ask(proxy, "");
    running.line_with("traces cannot be sent to");
    ask(proxy, "");
    let log = ended_well(running);
    assert_eq!(log.matches("traces cannot be sent to").count(), 1, "{log}");
}
