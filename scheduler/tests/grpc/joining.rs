//! What somebody is refused who has only come to join, and shows no certificate.
use crate::lab::requests;
use crate::members::{LIMIT, Secure, refused};
use darter_certs::{MemberKey, Named};
use darter_enrol::{Home, Membership, Metrics, Terms, Token, channel, joining};
use darter_protocol::enrolment::enrolment_client::EnrolmentClient;
use darter_protocol::enrolment::{EnrolRequest, Enrolled, RenewRequest};
use darter_protocol::scheduler as proto;
use darter_protocol::scheduler::scheduler_client::SchedulerClient;
use rustls_pki_types::CertificateDer;
use std::time::{Duration, SystemTime};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

/// As many connections may be silent at once.
const MOST: usize = 512;

fn door(scheduler: &Secure, token: &Token) -> Channel {
    joining(&scheduler.address, token).unwrap()
}

/// What a host sends that joins by this token.
fn request(token: &Token, name: &str) -> EnrolRequest {
    let text = token.text();
    let secret = text.reveal().split('.').nth(2).unwrap();
    EnrolRequest {
        token_id: token.id().to_owned(),
        secret: secret.to_owned(),
        public_key: MemberKey::generate().unwrap().public_key().into(),
        name: name.to_owned(),
    }
}

async fn enrol(channel: &Channel, request: EnrolRequest) -> Result<Enrolled, Status> {
    Ok(EnrolmentClient::new(channel.clone()).enrol(request).await?.into_inner())
}

#[tokio::test]
async fn who_comes_to_join_may_ask_nothing_else() {
    let scheduler = Secure::start().await;
    let token = scheduler.token(1, false);
    let channel = door(&scheduler, &token);
    let mut client = SchedulerClient::new(channel.clone());
    let stat = client.stat_cluster(proto::StatClusterRequest {}).await.unwrap_err();
    assert!(stat.message().contains("is one to join by, and for nothing else"), "{stat}");
    let (up, outgoing) = requests();
    let host = proto::Host { id: "a".into(), ip: "127.0.0.1".into(), piece_port: 1, ..Default::default() };
    up.send(proto::AnnounceHostRequest { host: Some(host), ..Default::default() }).await.unwrap();
    let announce = client.announce_host(outgoing).await.unwrap_err();
    let leave = client.leave_host(proto::LeaveHostRequest { host_id: "a".into() }).await.unwrap_err();
    let health = HealthClient::new(channel.clone()).check(HealthCheckRequest::default()).await.unwrap_err();
    let renew = EnrolmentClient::new(channel.clone()).renew(RenewRequest {}).await.unwrap_err();
    for status in [stat, announce, leave, health, renew] {
        assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    }
    assert_eq!(unknown(&channel).await.code(), Code::Unimplemented);
    assert!(enrol(&channel, request(&token, "a")).await.is_ok(), "the connection is good for joining");
}

/// What a method answers that there is not.
async fn unknown(channel: &Channel) -> Status {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<RenewRequest, Enrolled>::default();
    let path = http::uri::PathAndQuery::from_static("/darter.enrolment.v1.Enrolment/GiveMeTheCa");
    client.unary(tonic::Request::new(RenewRequest {}), path, codec).await.unwrap_err()
}

#[tokio::test]
async fn a_member_does_not_join_over_its_certificate() {
    let scheduler = Secure::start().await;
    let member = scheduler.member("a").await;
    let channel = channel(&member.membership, &scheduler.address, |endpoint| endpoint).unwrap();
    let refused = enrol(&channel, request(&scheduler.token(1, true), "b")).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
}

#[tokio::test]
async fn a_request_to_join_that_is_not_good_is_refused_and_costs_no_use() {
    let scheduler = Secure::start().await;
    let token = scheduler.token(1, false);
    let channel = door(&scheduler, &token);
    let good = request(&token, "a");
    let wrong = EnrolRequest { secret: "AAAAAAAAAAAAAAAAAAAAAA".into(), ..good.clone() };
    let nobody = EnrolRequest { token_id: "00000000".into(), ..good.clone() };
    let junk = EnrolRequest { public_key: vec![7; 91].into(), ..good.clone() };
    let long_key = EnrolRequest { public_key: vec![7; 4000].into(), ..good.clone() };
    let nothing = EnrolRequest { public_key: Vec::new().into(), ..good.clone() };
    let long = EnrolRequest { name: "a".repeat(9000), ..good.clone() };
    let terms = Terms { ttl: Duration::ZERO, uses: None, seed: false };
    let expired = scheduler.issuer.create_token(terms, SystemTime::now()).unwrap();
    for (what, request, code) in [
        ("a wrong secret", wrong, Code::Unauthenticated),
        ("an unknown token", nobody, Code::Unauthenticated),
        ("an expired token", request(&expired, "a"), Code::PermissionDenied),
        ("junk for a key", junk, Code::InvalidArgument),
        ("a key that is too long", long_key, Code::InvalidArgument),
        ("no key", nothing, Code::InvalidArgument),
        ("a message of 9 KB", long, Code::OutOfRange),
    ] {
        let refused = enrol(&channel, request).await.expect_err(what);
        assert_eq!(refused.code(), code, "{what}: {refused}");
    }
    assert_eq!(scheduler.issuer.tokens().list().unwrap()[0].uses_left, Some(1));
    assert!(enrol(&channel, good).await.is_ok());
    let again = enrol(&channel, request(&token, "b")).await.unwrap_err();
    assert_eq!(again.code(), Code::PermissionDenied, "it was good once: {again}");
}

#[tokio::test]
async fn nobody_is_given_another_role_or_anothers_name_than_his_token_and_key_say() {
    let scheduler = Secure::start().await;
    let victim = scheduler.member("victim").await;
    let id = victim.membership.member().unwrap().id;
    let token = scheduler.token(9, false);
    let channel = door(&scheduler, &token);
    for name in ["seed/a", "darter://scheduler/a", "../operator/a", "a\0b", id.as_str(), "victim"] {
        let given = enrol(&channel, request(&token, name)).await.unwrap();
        let named = Named::of(&CertificateDer::from(given.certificate.to_vec())).unwrap();
        let theirs = named.uri.strip_prefix("darter://node/").expect(&named.uri);
        assert!(theirs != id.as_str() && !theirs.contains('/'), "{name}: {theirs}");
    }
}

#[tokio::test]
async fn nobody_holds_the_door_by_connections_that_say_nothing() {
    let scheduler = Secure::start().await;
    let mut silent = Vec::new();
    // As many of one address, the same that everybody has here, and then some of many.
    for n in 0..MOST {
        silent.push(silent_connection(&scheduler, 1).await);
        if n >= MOST / 2 {
            silent.push(silent_connection(&scheduler, 2 + (n % 16) as u8).await);
        }
    }
    refused(&scheduler.metrics, &["too_many"]).await;
    let cut = tokio::time::timeout(LIMIT, silent[0].read(&mut [0])).await.expect("the oldest is cut off");
    assert!(matches!(cut, Ok(0) | Err(_)), "{cut:?}");
    let token = scheduler.token(1, false);
    assert!(enrol(&door(&scheduler, &token), request(&token, "a")).await.is_ok(), "others come in");
    drop(silent);
}

#[tokio::test]
async fn who_is_hung_up_on_reads_that_and_not_that_there_is_no_tls() {
    let scheduler = Secure::start().await;
    let token = scheduler.token(1, false);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let _hangs_up = JoinSet::from_iter([async move { while listener.accept().await.is_ok() {} }]);
    let folder = tempfile::tempdir().unwrap();
    let home = Home::open_or_make(folder.path()).unwrap();
    let membership = Membership::of_home(&home, Metrics::default()).unwrap();
    let said = darter_enrol::enrol(&membership, &home, &token, "a", &[address]).await.unwrap_err();
    assert!(said.to_string().contains("it hung up before the TLS handshake was done"), "{said}");
}

/// From this address of loopback.
async fn silent_connection(scheduler: &Secure, host: u8) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, host], 0).into()).unwrap();
    socket.connect(scheduler.address.parse().unwrap()).await.unwrap()
}
