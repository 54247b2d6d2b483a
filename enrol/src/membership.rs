//! [`Membership`]: what this process is in its cluster, now: its certificate, the CAs that it believes, whom it refuses.
//!
//! Certificates are renewed and hosts expelled while connections live: what is new counts for every handshake from then
//! on, and an expulsion ends the connections of the expelled one at once.

use crate::cuts::{Cut, Cuts};
use crate::expulsion::{ExpulsionFile, Expulsions, Statement, key};
use crate::file::FileError;
use crate::home::{Home, Papers};
use crate::issuer::{Issuer, IssuerError};
use crate::member::{Member, Role};
use crate::metrics::Metrics;
use crate::newcomers::{Newcomer, Newcomers};
use crate::refused::Refused;
use crate::service::{Caller, Enrolment, Who};
use crate::stream::{Secured, Tls};
use crate::tls;
use darter_certs::{MemberKey, MemberRoots, Named};
use darter_protocol::HostId;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, CommonState, HandshakeKind, ServerConfig};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};
use tokio::io::BufReader;
use tokio::net::{TcpStream, ToSocketAddrs};
use tokio::sync::watch;
use tokio_rustls::{LazyConfigAcceptor, TlsConnector};

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// How long a client that connects may take until it has said its first word, and somebody who wants to join for all of it.
const HELLO: Duration = Duration::from_secs(3);
pub(crate) const JOINING: Duration = Duration::from_secs(30);

/// Sessions are resumed where certificates hold at least so long: a ticket is good for twelve hours, and a certificate is
/// renewed when a third of its time is left.
const RESUMABLE: Duration = Duration::from_secs(48 * 3600);

/// What is read of a socket at once, in bytes: by whom content comes to, and by whom only requests come to.
const READ_CONTENT: usize = 128 << 10;
const READ_REQUESTS: usize = 4 << 10;

/// How often a scheduler looks whether somebody was expelled.
const LOOK: Duration = Duration::from_secs(1);

/// How often it reads its CA again.
const LOOK_AT_CA: u32 = 60;

/// Who may be at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// A scheduler.
    Scheduler,
    /// This host.
    Host(HostId),
    /// Any daemon.
    Daemon,
    /// Whoever may ask a scheduler: daemons, operators, and hosts that join.
    Asker,
}

/// See the head of this file. Cheap to clone.
#[derive(Clone)]
pub struct Membership {
    secure: Option<Arc<Secure>>,
    metrics: Metrics,
}

struct Secure {
    state: Arc<State>,
    server: Arc<ServerConfig>,
    joining: Arc<ServerConfig>,
    client: RwLock<Arc<ClientConfig>>,
    /// What was learned is kept there.
    expelled: Option<ExpulsionFile>,
    changed: watch::Sender<u64>,
    issuer: Option<Issuer>,
    newcomers: Newcomers,
    metrics: Metrics,
}

/// What handshakes look at.
#[derive(Debug, Default)]
pub(crate) struct State {
    own: RwLock<Option<Own>>,
    expulsions: RwLock<Expulsions>,
    /// By whom connections end when he is expelled: by the key that his name ends with, as expulsions count.
    cuts: Cuts,
}

#[derive(Debug, Clone)]
struct Own {
    shown: Arc<CertifiedKey>,
    member: Member,
    from: SystemTime,
    roots: MemberRoots,
}

// === impl Membership ===

impl Membership {
    /// Nobody is asked who he is, and nothing is encrypted: whoever reaches a port can use it.
    pub fn insecure(metrics: Metrics) -> Self {
        metrics.insecure.set(1);
        Self { secure: None, metrics }
    }

    /// Of nothing yet: until it has joined somewhere, everybody is refused. That is also the state of a cluster of one.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn none(metrics: Metrics) -> Result<Self, rustls::Error> {
        Self::with(metrics, None, None)
    }

    /// That of the host with this folder, if it has joined; otherwise as [`Self::none`]. Blocks for the disk.
    ///
    /// # Errors
    /// When something in the folder cannot be used.
    pub fn of_home(home: &Home, metrics: Metrics) -> Result<Self, FileError> {
        let failed =
            |error: &dyn fmt::Display| FileError::new(std::path::Path::new("TLS"), error.to_string());
        let membership =
            Self::with(metrics, Some(home.expelled_file()), None).map_err(|error| failed(&error))?;
        if let Some(papers) = home.papers()? {
            membership.take(home.key(), papers).map_err(|why| failed(&why))?;
        }
        membership.learn_file()?;
        Ok(membership)
    }

    /// That of a scheduler, or of an operator who looks at one, which makes its certificate itself. `name` is for people.
    ///
    /// # Errors
    /// When the CA cannot be used.
    pub fn of_issuer(issuer: &Issuer, role: Role, name: &str, metrics: Metrics) -> Result<Self, IssuerError> {
        let keeps = (role == Role::Scheduler).then(|| issuer.clone());
        let membership = Self::with(metrics, Some(issuer.expelled_file()), keeps)
            .map_err(|error| darter_certs::SigningError::because(error.to_string()))?;
        membership.issue(issuer, role, name, SystemTime::now())?;
        membership.learn_file()?;
        Ok(membership)
    }

    fn with(
        metrics: Metrics,
        expelled: Option<ExpulsionFile>,
        issuer: Option<Issuer>,
    ) -> Result<Self, rustls::Error> {
        let state = Arc::default();
        let secure = Secure {
            server: tls::server(&state)?,
            joining: tls::server_of_joining(&state)?,
            client: RwLock::new(tls::client(&state, false)?),
            expelled,
            changed: watch::Sender::new(0),
            issuer,
            newcomers: Newcomers::default(),
            metrics: metrics.clone(),
            state,
        };
        Ok(Self { secure: Some(Arc::new(secure)), metrics })
    }

    /// Whether nobody is asked who he is.
    pub fn is_insecure(&self) -> bool {
        self.secure.is_none()
    }

    /// Who this process is; `None` before it has joined, and where nobody asks.
    pub fn member(&self) -> Option<Member> {
        Some(self.secure.as_ref()?.state.own()?.member)
    }

    /// When its certificate is to be renewed: when a third of its time is left.
    pub(crate) fn renew_at(&self) -> Option<SystemTime> {
        let own = self.secure.as_ref()?.state.own()?;
        let lifetime = own.member.until.duration_since(own.from).ok()?;
        // It begins an hour before it was made.
        let lifetime = lifetime.saturating_sub(Duration::from_secs(3600));
        own.member.until.checked_sub(lifetime / 3)
    }

    /// The gRPC service by which hosts join, where this is a scheduler's.
    pub fn enrolment(&self) -> Option<Enrolment> {
        let secure = self.secure.as_ref()?;
        Some(Enrolment::new(secure.issuer.clone()?))
    }

    /// From now on it shows this certificate.
    pub(crate) fn take(&self, key: &MemberKey, papers: Papers) -> Result<(), String> {
        let Some(secure) = &self.secure else { return Ok(()) };
        let named = Named::of(&papers.certificate)?;
        let member = Member::of(&named).ok_or("the certificate names nobody of ours")?;
        let chain = vec![papers.certificate];
        let shown = key.certified(chain).map_err(|error| error.to_string())?;
        secure.show(Own { shown, member, from: named.from, roots: papers.roots })
    }

    /// Gives a host its certificate, in the process of the issuer.
    ///
    /// # Errors
    /// When it cannot be signed or kept.
    pub fn issue_to(&self, home: &Home, issuer: &Issuer, role: Role, name: &str) -> Result<(), IssuerError> {
        let because = |why: String| darter_certs::SigningError::because(why);
        let certificate = issuer.own(role, name, home.key(), SystemTime::now())?;
        let papers = Papers { certificate, roots: issuer.roots()? };
        home.keep(&papers)?;
        self.take(home.key(), papers).map_err(because)?;
        Ok(())
    }

    /// Makes this process's own certificate, as of `now`.
    pub(crate) fn issue(
        &self,
        issuer: &Issuer,
        role: Role,
        name: &str,
        now: SystemTime,
    ) -> Result<(), IssuerError> {
        let Some(secure) = &self.secure else { return Ok(()) };
        let because = |why: String| darter_certs::SigningError::because(why);
        let key = MemberKey::generate()?;
        let certificate = issuer.own(role, name, &key, now)?;
        let named = Named::of(&certificate).map_err(because)?;
        let member = Member::of(&named).ok_or(IssuerError::Nobody)?;
        let chain = vec![certificate, issuer.signer()];
        let shown = key.certified(chain).map_err(|error| because(error.to_string()))?;
        secure.show(Own { shown, member, from: named.from, roots: issuer.roots()? }).map_err(because)?;
        Ok(())
    }

    /// Keeps a scheduler's certificate from ending, and looks whether an operator has expelled somebody. Never returns.
    pub async fn keep_issued(&self, name: String) -> Infallible {
        let Some(issuer) = self.secure.as_ref().and_then(|secure| secure.issuer.clone()) else {
            return std::future::pending().await;
        };
        let (mut looks, mut failed) = (0, false);
        loop {
            tokio::time::sleep(LOOK).await;
            looks += 1;
            let due = self.renew_at().is_none_or(|at| at <= SystemTime::now()) || looks % LOOK_AT_CA == 0;
            let (this, issuer, name) = (self.clone(), issuer.clone(), name.clone());
            let looked = tokio::task::spawn_blocking(move || {
                if due {
                    issuer.reload()?;
                    this.issue(&issuer, Role::Scheduler, &name, SystemTime::now())?;
                }
                Ok::<_, IssuerError>(this.learn_file()?)
            });
            match looked.await {
                Ok(Ok(())) => failed = false,
                Ok(Err(error)) if !std::mem::replace(&mut failed, true) => {
                    tracing::error!(%error, "cannot look after the cluster's CA; what was in force stays");
                }
                _ => {}
            }
        }
    }

    // --- expulsion ---

    /// Who was expelled, as statements to pass on, without those that `told` has; which it gets.
    pub fn news(&self, told: &mut std::collections::HashSet<HostId>) -> Vec<CertificateDer<'static>> {
        let Some(secure) = &self.secure else { return Vec::new() };
        let expulsions = secure.state.expulsions.read().unwrap_or_else(PoisonError::into_inner);
        let new = expulsions.statements().filter(|(host, _)| told.insert((*host).clone()));
        new.map(|(_, statement)| statement.clone()).collect()
    }

    /// Changes whenever somebody was expelled.
    pub fn expelled(&self) -> watch::Receiver<u64> {
        match &self.secure {
            Some(secure) => secure.changed.subscribe(),
            None => watch::Sender::new(0).subscribe(),
        }
    }

    /// Takes in what another says of who was expelled; what our CAs did not sign is passed over.
    pub fn learn<'a>(&self, statements: impl IntoIterator<Item = &'a [u8]>) {
        let Some(secure) = &self.secure else { return };
        for statement in statements {
            if secure.learn(statement)
                && let Some(file) = &secure.expelled
                && let Err(error) = file.add(&CertificateDer::from(statement))
            {
                tracing::error!(%error, "cannot write down who was expelled: after a restart he must be told again");
            }
        }
    }

    fn learn_file(&self) -> Result<(), FileError> {
        let Some(secure) = &self.secure else { return Ok(()) };
        if let Some(file) = &secure.expelled {
            for statement in file.read()? {
                secure.learn(&statement);
            }
        }
        Ok(())
    }

    // --- connections ---

    /// What somebody who has connected is.
    ///
    /// # Errors
    /// When he is nobody of ours, or not one of `expected`. It is counted; there is nobody to tell.
    pub async fn accept(
        &self,
        stream: TcpStream,
        remote: SocketAddr,
        expected: &Expected,
    ) -> Result<Secured, Refused> {
        let Some(secure) = &self.secure else { return Ok(Secured::plain(stream, remote)) };
        let newcomer = secure.newcomers.come(remote.ip());
        let cut = newcomer.cut();
        let shaking = secure.accept(stream, remote, expected, newcomer);
        let shaken = tokio::select! {
            shaken = tokio::time::timeout(HANDSHAKE, shaking) => shaken.unwrap_or(Err(Refused::NoTls)),
            () = cut.cancelled() => Err(Refused::TooMany),
        };
        self.counted(shaken, remote)
    }

    /// A connection to `address`, where `expected` is.
    ///
    /// # Errors
    /// When nobody is there, or somebody else; then it holds a [`Refused`].
    pub async fn connect(&self, address: impl ToSocketAddrs, expected: &Expected) -> io::Result<Secured> {
        let stream = TcpStream::connect(address).await?;
        // Requests are small writes, and each would wait for the answer to the one before.
        stream.set_nodelay(true)?;
        let remote = stream.peer_addr()?;
        let Some(secure) = &self.secure else { return Ok(Secured::plain(stream, remote)) };
        let shaken = tokio::time::timeout(HANDSHAKE, secure.connect(stream, remote, expected)).await;
        self.counted(shaken.unwrap_or(Err(Refused::NoTls)), remote).map_err(io::Error::other)
    }

    #[cfg(test)]
    pub(crate) fn newcomers(&self) -> Option<&Newcomers> {
        self.secure.as_ref().map(|secure| &secure.newcomers)
    }

    fn counted(&self, shaken: Result<Secured, Refused>, remote: SocketAddr) -> Result<Secured, Refused> {
        shaken.inspect_err(|refused| {
            self.metrics.refused(refused);
            tracing::debug!(%remote, reason = %refused, "refused a connection");
        })
    }
}

impl fmt::Debug for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Membership({:?})", self.member().map(|member| member.id))
    }
}

// === impl Secure ===

impl Secure {
    fn show(&self, own: Own) -> Result<(), String> {
        let lifetime = own.member.until.duration_since(own.from).unwrap_or_default();
        self.metrics.certificate_until(own.member.until);
        *self.state.own.write().unwrap_or_else(PoisonError::into_inner) = Some(own);
        // Sessions in which another certificate was shown are not resumed.
        let client = tls::client(&self.state, lifetime >= RESUMABLE).map_err(|error| error.to_string())?;
        *self.client.write().unwrap_or_else(PoisonError::into_inner) = client;
        Ok(())
    }

    /// Gives whether it is new.
    fn learn(&self, statement: &[u8]) -> bool {
        let Some(own) = self.state.own() else { return false };
        let now = SystemTime::now();
        // Checked before the lock is taken that every handshake needs.
        let known = |statement: &Statement| {
            self.state.expulsions.read().unwrap_or_else(PoisonError::into_inner).knows(statement)
        };
        let statement = Statement::read(statement).filter(|statement| !known(statement));
        let Some(statement) = statement.and_then(|it| it.checked(&own.roots, now)) else { return false };
        let mut expulsions = self.state.expulsions.write().unwrap_or_else(PoisonError::into_inner);
        let Some(host) = expulsions.add(statement, now) else { return false };
        self.metrics.expelled.set(expulsions.hosts().count() as i64);
        drop(expulsions);
        if host == own.member.id {
            tracing::error!("this node was expelled from the cluster: it serves its own clients alone");
        } else {
            tracing::warn!(%host, "a host was expelled: its connections end, and it is refused");
        }
        self.changed.send_modify(|times| *times += 1);
        self.state.cuts.cut(key(&host));
        true
    }

    async fn accept(
        &self,
        stream: TcpStream,
        remote: SocketAddr,
        expected: &Expected,
        newcomer: Newcomer,
    ) -> Result<Secured, Refused> {
        let stream = BufReader::with_capacity(READ_REQUESTS, stream);
        let hello = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream);
        let hello = tokio::time::timeout(HELLO, hello).await.map_err(|_| Refused::NoTls)?;
        let hello = hello.map_err(|error| Refused::of(&error))?;
        let joins = self.issuer.is_some()
            && *expected == Expected::Asker
            && hello.client_hello().alpn().is_some_and(|mut said| said.any(|it| it == tls::JOINING));
        let config = if joins { &self.joining } else { &self.server };
        let stream = hello.into_stream(Arc::clone(config)).await;
        let stream: Tls = stream.map_err(|error| Refused::of(&error))?.into();
        if joins {
            return Ok(Secured::joining(stream, remote, JOINING, Some(newcomer)));
        }
        self.secured(stream, remote, expected)
    }

    async fn connect(
        &self,
        stream: TcpStream,
        remote: SocketAddr,
        expected: &Expected,
    ) -> Result<Secured, Refused> {
        if self.state.own().is_none() {
            return Err(Refused::ByThem("this host has no certificate of a cluster yet"));
        }
        let config = Arc::clone(&self.client.read().unwrap_or_else(PoisonError::into_inner));
        let stream = BufReader::with_capacity(READ_CONTENT, stream);
        let connected = TlsConnector::from(config).connect(session_of(expected, remote), stream).await;
        self.secured(connected.map_err(|error| Refused::of(&error))?.into(), remote, expected)
    }

    /// Looks at who is at the other end of a handshake that is done. Resumed sessions show no certificate anew.
    fn secured(&self, stream: Tls, remote: SocketAddr, expected: &Expected) -> Result<Secured, Refused> {
        let session: &CommonState = stream.get_ref().1;
        let resumed = session.handshake_kind() == Some(HandshakeKind::Resumed);
        let shown = session.peer_certificates().and_then(<[_]>::first).ok_or(Refused::NoCertificate)?;
        let member = self.state.look(shown, SystemTime::now())?;
        let fits = match expected {
            Expected::Scheduler => member.role == Role::Scheduler,
            Expected::Host(host) => member.role.is_daemon() && member.id == *host,
            Expected::Daemon => member.role.is_daemon(),
            Expected::Asker => member.role.is_daemon() || member.role == Role::Operator,
        };
        if !fits {
            return Err(Refused::Other);
        }
        let cut = self.state.cut_of(&member.id).ok_or(Refused::Expelled)?;
        self.metrics.shook_hands(resumed);
        Ok(Secured::tls(stream, Caller { remote, who: Who::Member(member) }, cut))
    }
}

/// By which name sessions with the other end are kept. It is not sent.
fn session_of(expected: &Expected, remote: SocketAddr) -> ServerName<'static> {
    let key = match expected {
        // The end of an id is a hash of its host's key, and a name by its form.
        Expected::Host(host) => host.as_str().rsplit('-').next(),
        _ => None,
    };
    let name = key.and_then(|key| ServerName::try_from(key.to_owned()).ok());
    name.unwrap_or(ServerName::IpAddress(remote.ip().into()))
}

// === impl State ===

impl State {
    fn own(&self) -> Option<Own> {
        self.own.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What is shown in handshakes.
    pub(crate) fn shown(&self) -> Option<Arc<CertifiedKey>> {
        self.own().map(|own| own.shown)
    }

    /// Whose certificate it is, with its signature and its time checked.
    pub(crate) fn judge(&self, certificate: &CertificateDer<'_>, now: UnixTime) -> Result<Member, Refused> {
        let own = self.own().ok_or(Refused::Stranger)?;
        own.roots.check(certificate, now).map_err(|error| Refused::of(&io::Error::other(error)))?;
        self.look(certificate, SystemTime::UNIX_EPOCH + Duration::from_secs(now.as_secs()))
    }

    /// The same of one that was checked before, in a session that is resumed.
    fn look(&self, certificate: &CertificateDer<'_>, now: SystemTime) -> Result<Member, Refused> {
        let named = Named::of(certificate).map_err(|_| Refused::Stranger)?;
        let member = Member::of(&named).ok_or(Refused::Stranger)?;
        if member.until < now {
            return Err(Refused::Time);
        }
        let expulsions = self.expulsions.read().unwrap_or_else(PoisonError::into_inner);
        if member.role.is_daemon() && expulsions.contains(&member.id) {
            return Err(Refused::Expelled);
        }
        Ok(member)
    }

    /// What ends when this one is expelled; `None`: it was, a moment ago.
    fn cut_of(&self, id: &HostId) -> Option<Cut> {
        let expelled = || self.expulsions.read().unwrap_or_else(PoisonError::into_inner).contains(id);
        self.cuts.open(key(id), expelled)
    }
}
