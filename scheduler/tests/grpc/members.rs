//! Who is served, and for whom he speaks, where hosts prove who they are.
use crate::lab::{Talk, requests};
use darter_enrol::{EnrolError, Home, Issuer, Membership, Metrics, Role, Terms, Token, channel, enrol};
use darter_protocol::scheduler as proto;
use darter_protocol::scheduler::scheduler_client::SchedulerClient;
use darter_scheduler::{RunError, Scheduler};
use prometheus_client::registry::Registry;
use std::path::Path;
use std::time::{Duration, SystemTime};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::transport::Channel;

/// So long something may take that happens at once, so that a test that waits for nothing fails.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// A scheduler with a CA.
pub(crate) struct Secure {
    pub(crate) address: String,
    pub(crate) issuer: Issuer,
    folder: tempfile::TempDir,
    pub(crate) metrics: Metrics,
    _running: JoinSet<Result<(), RunError>>,
    _kept: JoinSet<()>,
}

impl Secure {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Issuer::open_or_make(folder.path()).unwrap();
        Self::start_in(folder).await
    }

    /// Another one of the same cluster.
    async fn beside(&self) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for file in ["ca.crt", "ca.key"] {
            std::fs::copy(self.folder.path().join(file), folder.path().join(file)).unwrap();
        }
        Self::start_in(folder).await
    }

    async fn start_in(folder: tempfile::TempDir) -> Self {
        let issuer = Issuer::open(folder.path()).unwrap();
        let metrics = Metrics::default();
        let membership = Membership::of_issuer(&issuer, Role::Scheduler, "s", metrics.clone()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let scheduler = Scheduler::new(membership.clone(), &mut Registry::default());
        let running =
            JoinSet::from_iter([darter_scheduler::run(listener, scheduler, CancellationToken::new())]);
        let kept = JoinSet::from_iter([async move { match membership.keep_issued("s".to_owned()).await {} }]);
        Self { address, issuer, folder, metrics, _running: running, _kept: kept }
    }

    pub(crate) fn token(&self, uses: u32, seed: bool) -> Token {
        let terms = Terms { ttl: Duration::from_secs(600), uses: Some(uses), seed };
        self.issuer.create_token(terms, SystemTime::now()).unwrap()
    }

    pub(crate) async fn member(&self, name: &str) -> Member {
        Member::join(self, &self.token(1, false), name).await.unwrap()
    }
}

/// A daemon with a certificate.
pub(crate) struct Member {
    id: String,
    pub(crate) membership: Membership,
    home: Home,
    client: SchedulerClient<Channel>,
    folder: tempfile::TempDir,
}

impl Member {
    async fn join(scheduler: &Secure, token: &Token, name: &str) -> Result<Self, EnrolError> {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::open_or_make(folder.path()).unwrap();
        let membership = Membership::of_home(&home, Metrics::default()).unwrap();
        enrol(&membership, &home, token, name, std::slice::from_ref(&scheduler.address)).await?;
        let id = membership.member().unwrap().id.to_string();
        let client = client(&membership, scheduler);
        Ok(Self { id, membership, home, client, folder })
    }

    fn host(&self) -> proto::Host {
        let (id, ip) = (self.id.clone(), "127.0.0.1".to_owned());
        proto::Host { id, ip, piece_port: 65002, ..Default::default() }
    }

    async fn announce(
        &self,
        host: proto::Host,
    ) -> Result<Talk<proto::AnnounceHostRequest, proto::AnnounceHostResponse>, tonic::Status> {
        let (up, outgoing) = requests();
        up.send(proto::AnnounceHostRequest { host: Some(host), ..Default::default() }).await.unwrap();
        let mut down = self.client.clone().announce_host(outgoing).await?.into_inner();
        down.message().await?.unwrap();
        Ok(Talk { up, down })
    }

    async fn leave(&self, host_id: &str) -> Result<(), tonic::Status> {
        let request = proto::LeaveHostRequest { host_id: host_id.to_owned() };
        self.client.clone().leave_host(request).await.map(drop)
    }
}

fn client(membership: &Membership, scheduler: &Secure) -> SchedulerClient<Channel> {
    SchedulerClient::new(channel(membership, &scheduler.address, |endpoint| endpoint).unwrap())
}

async fn stat(membership: &Membership, scheduler: &Secure) -> Result<u64, tonic::Status> {
    let asked = client(membership, scheduler).stat_cluster(proto::StatClusterRequest {}).await;
    asked.map(|said| said.into_inner().hosts)
}

/// Waits until somebody was refused for one of these reasons: who refuses says so to the other side before it counts it.
pub(crate) async fn refused(metrics: &Metrics, reasons: &[&'static str]) {
    let counted = async {
        while reasons.iter().all(|reason| metrics.refusals(reason) == 0) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, counted).await.expect("it is counted");
}

fn join_error(result: Result<Member, EnrolError>) -> String {
    match result {
        Ok(_) => panic!("it joined"),
        Err(error) => error.to_string(),
    }
}

#[tokio::test]
async fn a_daemon_speaks_for_the_host_of_its_certificate_alone() {
    let scheduler = Secure::start().await;
    let (one, two) = (scheduler.member("one").await, scheduler.member("two").await);
    let squatted = one.announce(two.host()).await.unwrap_err();
    assert_eq!(squatted.code(), Code::PermissionDenied, "{squatted}");
    let _line = two.announce(two.host()).await.unwrap();
    assert_eq!(one.leave(&two.id).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(stat(&one.membership, &scheduler).await.unwrap(), 1, "two is still there");
    two.leave(&two.id).await.unwrap();
}

#[tokio::test]
async fn a_seed_is_one_by_its_certificate() {
    let scheduler = Secure::start().await;
    let one = scheduler.member("one").await;
    let refused = one.announce(proto::Host { seed: true, ..one.host() }).await.unwrap_err();
    assert!(refused.message().contains("darter token create --seed"), "{refused}");
    let mut later = one.announce(one.host()).await.unwrap();
    let promoted = proto::Host { seed: true, ..one.host() };
    later.up.send(proto::AnnounceHostRequest { host: Some(promoted), ..Default::default() }).await.unwrap();
    assert_eq!(
        later.down.message().await.unwrap_err().code(),
        Code::PermissionDenied,
        "nor in its second word"
    );
    let seed = Member::join(&scheduler, &scheduler.token(1, true), "two").await.unwrap();
    assert!(seed.announce(proto::Host { seed: true, ..seed.host() }).await.is_ok());
}

#[tokio::test]
async fn who_shows_no_certificate_of_the_cluster_is_not_served() {
    let (scheduler, other) = (Secure::start().await, Secure::start().await);
    let stranger = other.member("x").await;
    for nobody in [Membership::insecure(Metrics::default()), stranger.membership.clone()] {
        let status = stat(&nobody, &scheduler).await.unwrap_err();
        // The connection fails, and no service has said so.
        assert!(std::error::Error::source(&status).is_some(), "{status}");
    }
    refused(&scheduler.metrics, &["no_tls", "stranger", "by_them"]).await;
    let operator = Membership::of_issuer(&scheduler.issuer, Role::Operator, "o", Metrics::default()).unwrap();
    assert_eq!(stat(&operator, &scheduler).await.unwrap(), 0, "whoever has the CA may look");
    let who = proto::Host { id: "o".into(), ip: "127.0.0.1".into(), piece_port: 1, ..Default::default() };
    let (up, outgoing) = requests();
    up.send(proto::AnnounceHostRequest { host: Some(who), ..Default::default() }).await.unwrap();
    let mut down = client(&operator, &scheduler).announce_host(outgoing).await.unwrap().into_inner();
    assert_eq!(down.message().await.unwrap_err().code(), Code::PermissionDenied, "and be no host");
}

#[tokio::test]
async fn each_way_in_which_a_token_is_not_good_is_one_sentence() {
    let (scheduler, other) = (Secure::start().await, Secure::start().await);
    let once = scheduler.token(1, false);
    Member::join(&scheduler, &once, "a").await.unwrap();
    let says = join_error(Member::join(&scheduler, &once, "b").await);
    assert!(says.contains("the join token is used up: make another"), "{says}");
    let terms = Terms { ttl: Duration::ZERO, uses: Some(1), seed: false };
    let expired = scheduler.issuer.create_token(terms, SystemTime::now()).unwrap();
    let says = join_error(Member::join(&scheduler, &expired, "b").await);
    assert!(says.contains("the join token has expired: make another"), "{says}");
    let revoked = scheduler.token(1, false);
    scheduler.issuer.tokens().revoke(revoked.id()).unwrap();
    let says = join_error(Member::join(&scheduler, &revoked, "b").await);
    assert!(says.contains("does not know the join token"), "{says}");
    let says = join_error(Member::join(&scheduler, &other.token(1, false), "b").await);
    assert!(says.contains("its CA is another"), "the scheduler is known before the token is told: {says}");
    assert!(!says.contains('\n'));
}

#[tokio::test]
async fn who_is_expelled_is_cut_off_and_refused_and_others_are_told() {
    let scheduler = Secure::start().await;
    let (one, two) = (scheduler.member("one").await, scheduler.member("two").await);
    let mut theirs = one.announce(one.host()).await.unwrap();
    let mut line = two.announce(two.host()).await.unwrap();
    let id = one.id.parse().unwrap();
    scheduler.issuer.expel(&id, SystemTime::now()).unwrap();
    // It may hear of it itself before.
    let ended = async { while let Ok(Some(_)) = theirs.down.message().await {} };
    tokio::time::timeout(LIMIT, ended).await.expect("its line ends");
    let told = tokio::time::timeout(LIMIT, line.down.message()).await.expect("the other is told");
    let told = told.unwrap().unwrap().expulsions;
    two.membership.learn(told.iter().map(AsRef::as_ref));
    assert!(stat(&one.membership, &scheduler).await.is_err());
    refused(&scheduler.metrics, &["expelled"]).await;
    assert_eq!(stat(&two.membership, &scheduler).await.unwrap(), 1);

    // What was told is kept: after a restart it is still known.
    let again = Home::open(two.folder.path()).unwrap();
    let again = Membership::of_home(&again, Metrics::default()).unwrap();
    assert_eq!(again.news(&mut Default::default()).len(), 1);

    // And it comes to the other schedulers with the daemons that know it.
    let second = scheduler.beside().await;
    assert!(stat(&one.membership, &second).await.is_ok(), "nobody has told it yet");
    let (up, outgoing) = requests();
    let known = two.membership.news(&mut Default::default());
    let expulsions = known.iter().map(|it| it.to_vec().into()).collect();
    up.send(proto::AnnounceHostRequest { host: Some(two.host()), expulsions }).await.unwrap();
    let mut down = client(&two.membership, &second).announce_host(outgoing).await.unwrap().into_inner();
    down.message().await.unwrap().unwrap();
    assert!(stat(&one.membership, &second).await.is_err());
    let kept = Issuer::open(second.folder.path()).unwrap().expulsions(SystemTime::now()).unwrap();
    assert!(kept.contains(&id), "and stays there over a restart");
}

#[tokio::test]
async fn a_certificate_is_renewed_over_itself_and_not_over_an_expelled_one() {
    let folder = tempfile::tempdir().unwrap();
    let short = Issuer::open_or_make(folder.path()).unwrap().lasting(Duration::from_secs(6));
    let scheduler = Secure::start_in(folder).await;
    let token = scheduler.token(1, false);
    let one = Member::join(&scheduler, &token, "one").await.unwrap();
    // One that is to be renewed soon, of this host and key: as the scheduler would make it.
    one.membership.issue_to(&one.home, &short, Role::Node, "one").unwrap();
    let before = one.membership.member().unwrap();
    assert_eq!(before.id.as_str(), one.id);
    let addresses = vec![scheduler.address.clone()];
    let kept = darter_enrol::keep_renewed(one.membership.clone(), one.home.clone(), None, move || {
        std::future::ready(addresses.clone())
    });
    let renewed = async {
        while one.membership.member().unwrap().until <= before.until {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        _ = kept => {}
        done = tokio::time::timeout(LIMIT, renewed) => done.expect("it is renewed"),
    }
    let after = one.membership.member().unwrap();
    assert_eq!((after.id, after.role), (before.id, before.role));
    assert!(on_disk(one.folder.path()) > before.until, "and kept");
    assert!(stat(&one.membership, &scheduler).await.is_ok());
}

fn on_disk(folder: &Path) -> SystemTime {
    let home = Home::open(folder).unwrap();
    Membership::of_home(&home, Metrics::default()).unwrap().member().unwrap().until
}
