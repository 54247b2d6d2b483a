//! What tools expect of any gRPC server: health and reflection; and no word for those who speak for others.

use crate::lab::{Daemon, server};
use darter_protocol::scheduler as proto;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

const SERVICE: &str = "darter.scheduler.v1.Scheduler";

#[tokio::test]
async fn it_says_that_it_serves_and_at_its_end_that_it_does_not() {
    let server = server().await;
    let mut client = HealthClient::new(server.channel().await);
    let of = |service: &str| HealthCheckRequest { service: service.to_owned() };
    for service in [SERVICE, ""] {
        let answer = client.check(of(service)).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service:?}");
    }
    assert_eq!(client.check(of("nobody")).await.unwrap_err().code(), Code::NotFound);
    let mut watch = client.watch(of(SERVICE)).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    drop(server.stop);
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
}

#[tokio::test]
async fn it_describes_itself() {
    let server = server().await;
    let mut client = ServerReflectionClient::new(server.channel().await);
    let ask = |what| {
        tokio_stream::once(ServerReflectionRequest { host: String::new(), message_request: Some(what) })
    };
    let mut answers = client
        .server_reflection_info(ask(MessageRequest::ListServices(String::new())))
        .await
        .unwrap()
        .into_inner();
    let Some(MessageResponse::ListServicesResponse(list)) =
        answers.message().await.unwrap().unwrap().message_response
    else {
        panic!("a list")
    };
    let names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
    assert!(
        names.contains(&SERVICE.to_owned()) && names.contains(&"grpc.health.v1.Health".to_owned()),
        "{names:?}"
    );
    let symbol = MessageRequest::FileContainingSymbol("darter.scheduler.v1.PeerPacket".to_owned());
    let mut answers = client.server_reflection_info(ask(symbol)).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response;
    assert!(matches!(answer, Some(MessageResponse::FileDescriptorResponse(_))), "{answer:?}");
}

#[tokio::test]
async fn both_sides_say_which_protocol_they_speak() {
    let server = server().await;
    let a = Daemon::connect(&server, "a").await;
    let mut line = a.life_line().await;
    let host = proto::Host { version: "9.9".into(), protocol: 7, ..a.host() };
    line.up.send(proto::AnnounceHostRequest { host: Some(host), ..Default::default() }).await.unwrap();
    assert_eq!(line.down.message().await.unwrap().unwrap().protocol, proto::PROTOCOL);
    let hosts =
        a.client.clone().list_hosts(proto::ListHostsRequest::default()).await.unwrap().into_inner().hosts;
    let shown = hosts[0].host.clone().unwrap();
    assert_eq!((shown.version.as_str(), shown.protocol), ("9.9", 7));
}

#[tokio::test]
async fn nobody_speaks_for_a_host_of_another_connection() {
    let server = server().await;
    let (a, thief) = (Daemon::connect(&server, "a").await, Daemon::connect(&server, "a").await);
    let (mut line, _) = a.announce().await;
    a.complete().await.unwrap();
    let goodbye = proto::LeaveHostRequest { host_id: "a".into() };
    assert_eq!(thief.client.clone().leave_host(goodbye).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(thief.register().await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(thief.talk().await.down.message().await.unwrap_err().code(), Code::PermissionDenied);
    // One connection, one host.
    let mut second = a.life_line().await;
    let host = proto::Host { id: "b".into(), ..a.host() };
    second.up.send(proto::AnnounceHostRequest { host: Some(host), ..Default::default() }).await.unwrap();
    assert_eq!(second.down.message().await.unwrap_err().code(), Code::PermissionDenied);
    // The host itself is still there, and may come back by another connection from its address.
    assert!(a.register().await.is_ok());
    let (_line, _) = thief.announce().await;
    assert_eq!(line.down.message().await.unwrap_err().code(), Code::Aborted);
    assert_eq!(a.register().await.unwrap_err().code(), Code::PermissionDenied);
}
