//! [`Resolver`]: from a name to its addresses, by the system or by the servers that the operator names.

use crate::config::Dns;
use crate::error::{Kind, io_reason};
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::rdata::SRV;
use hickory_resolver::proto::rr::{RData, RecordType};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;

/// How long one server is waited for. Two tries fit in the time that connecting may take (5 s unless configured).
const SERVER_TIMEOUT: Duration = Duration::from_secs(2);

/// How often a server that says nothing is asked again.
const RETRIES: usize = 1;

/// How many of the system's answers are waited for at once: of the 512 threads that tokio has for what blocks.
const MAX_THREADS: usize = 64;

/// How many answers are remembered, for as long as they say themselves.
const REMEMBERED: u64 = 1024;

/// Resolves names.
pub(crate) struct Resolver {
    /// Whom a name without servers of its own is asked of; `None`: the system.
    servers: Option<Arc<[SocketAddr]>>,
    /// What was asked so far, each with the answers that it remembers: as many as the operator has lists of servers.
    asked: Mutex<HashMap<Arc<[SocketAddr]>, TokioResolver>>,
    system: System,
    ipv6: bool,
}

impl Resolver {
    pub(crate) fn new(dns: &Dns) -> Self {
        let servers = (!dns.servers.is_empty()).then(|| dns.servers.as_slice().into());
        Self { servers, asked: Mutex::default(), system: System::new(ask_system), ipv6: dns.ipv6 }
    }

    /// The addresses of a name, in the order of preference; never none. `own`: the servers that are asked for this one,
    /// and nobody else. Must be used within a tokio runtime.
    pub(crate) async fn resolve(
        &self,
        name: &str,
        own: Option<&Arc<[SocketAddr]>>,
    ) -> Result<Vec<IpAddr>, Kind> {
        let mut found: Vec<IpAddr> = match own.or(self.servers.as_ref()) {
            Some(servers) => {
                let lookup = self.asking(servers).lookup_ip(absolute(name)).await;
                lookup.map_err(|error| Kind::Resolve { reason: servers_reason(&error) })?.iter().collect()
            }
            None => {
                let found = self.system.resolve(name).await;
                found.map_err(|reason| Kind::Resolve { reason: reason.to_string() })?
            }
        };
        found.retain(|address| self.ipv6 || address.is_ipv4());
        if found.is_empty() {
            return Err(Kind::Resolve { reason: NO_ADDRESS.to_owned() });
        }
        Ok(found)
    }

    /// The targets of a service, those of the smallest number of priority; never none.
    pub(crate) async fn services(&self, name: &str) -> Result<Vec<(String, u16)>, Kind> {
        let servers = self.servers.clone().or_else(servers_of_system);
        let servers = servers.ok_or_else(|| Kind::Resolve { reason: "no DNS server is known".to_owned() })?;
        let answer = self.asking(&servers).lookup(absolute(name), RecordType::SRV).await;
        let answer = answer.map_err(|error| Kind::Resolve { reason: servers_reason(&error) })?;
        let found: Vec<SRV> = answer.answers().iter().filter_map(|record| srv(&record.data)).collect();
        let first = found.iter().map(|srv| srv.priority).min();
        // The root as a target: the service is not there (RFC 2782).
        let targets = found.iter().filter(|srv| Some(srv.priority) == first && !srv.target.is_root());
        let targets: Vec<(String, u16)> = targets.map(|srv| (srv.target.to_utf8(), srv.port)).collect();
        if targets.is_empty() {
            return Err(Kind::Resolve { reason: NO_ADDRESS.to_owned() });
        }
        Ok(targets)
    }

    fn asking(&self, servers: &Arc<[SocketAddr]>) -> TokioResolver {
        let mut asked = lock(&self.asked);
        asked.entry(Arc::clone(servers)).or_insert_with(|| asking(servers, self.ipv6)).clone()
    }
}

// === System ===

/// The system's resolver, which keeps a thread for as long as a name takes: nobody can take that back. The disk's threads
/// come from the same pool, so names get a few of them, and a name that is asked for by many gets one.
#[derive(Clone)]
struct System {
    ask: fn(&str) -> Answer,
    threads: Arc<Semaphore>,
    under_way: Arc<Mutex<HashMap<String, Shared<Asking>>>>,
}

type Answer = Result<Vec<IpAddr>, Arc<str>>;
type Asking = BoxFuture<'static, Answer>;

impl System {
    fn new(ask: fn(&str) -> Answer) -> Self {
        Self { ask, threads: Arc::new(Semaphore::new(MAX_THREADS)), under_way: Arc::default() }
    }

    /// # Cancel safety
    /// A question goes on without those who asked it; when it waits for a thread still, it goes with the last of them.
    async fn resolve(&self, name: &str) -> Answer {
        let asking = {
            let mut under_way = lock(&self.under_way);
            // Those who all went away.
            under_way.retain(|_, asking| asking.strong_count().is_some_and(|others| others > 1));
            under_way.entry(name.to_owned()).or_insert_with(|| self.ask(name.to_owned()).shared()).clone()
        };
        asking.await
    }

    fn ask(&self, name: String) -> Asking {
        let (ask, threads, under_way) = (self.ask, Arc::clone(&self.threads), Arc::clone(&self.under_way));
        Box::pin(async move {
            // Nobody closes it.
            let thread = threads.acquire_owned().await.map_err(|_| Arc::from(NO_ADDRESS))?;
            let asked = name.clone();
            let answer = tokio::task::spawn_blocking(move || {
                let _thread = thread;
                ask(&asked)
            });
            let answer = answer.await.unwrap_or_else(|_| Err(NO_ADDRESS.into()));
            lock(&under_way).remove(&name);
            answer
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn ask_system(name: &str) -> Answer {
    let found = (name, 0).to_socket_addrs().map_err(|error| system_reason(&error))?;
    Ok(found.map(|address| address.ip()).collect())
}

const NO_ADDRESS: &str = "it has no address";

fn asking(servers: &[SocketAddr], ipv6: bool) -> TokioResolver {
    let server = |address: &SocketAddr| {
        let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
            connection.port = address.port();
            connection
        });
        NameServerConfig::new(address.ip(), true, connections.into())
    };
    // Neither a domain nor a search list: a name is what it says.
    let config = ResolverConfig::from_parts(None, Vec::new(), servers.iter().map(server).collect());
    let mut options = ResolverOpts::default();
    options.timeout = SERVER_TIMEOUT;
    options.attempts = RETRIES;
    options.cache_size = REMEMBERED;
    options.use_hosts_file = ResolveHosts::Always;
    options.ip_strategy = if ipv6 { LookupIpStrategy::Ipv4AndIpv6 } else { LookupIpStrategy::Ipv4Only };
    TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        .with_options(options)
        .build()
        .expect("only TLS and DNSSEC, which are not in it, can fail to be set up")
}

/// Where the system's resolver would ask, by its file: it itself has no call for services.
fn servers_of_system() -> Option<Arc<[SocketAddr]>> {
    let file = std::fs::read_to_string("/etc/resolv.conf").ok()?;
    let servers: Vec<SocketAddr> = name_servers(&file).collect();
    (!servers.is_empty()).then(|| servers.into())
}

/// The `nameserver` lines (resolv.conf(5)).
fn name_servers(file: &str) -> impl Iterator<Item = SocketAddr> {
    let words = file.lines().map(|line| line.split_whitespace());
    let addresses =
        words.filter_map(|mut words| words.next().filter(|key| *key == "nameserver").and(words.next()));
    addresses.filter_map(|address| Some(SocketAddr::new(address.parse().ok()?, 53)))
}

fn srv(data: &RData) -> Option<SRV> {
    if let RData::SRV(srv) = data { Some(srv.clone()) } else { None }
}

/// The name with the root's dot, so that no search list is tried.
fn absolute(name: &str) -> String {
    if name.ends_with('.') { name.to_owned() } else { format!("{name}.") }
}

fn servers_reason(error: &NetError) -> String {
    match error {
        error if error.is_nx_domain() => "there is no such name".to_owned(),
        error if error.is_no_records_found() => NO_ADDRESS.to_owned(),
        NetError::Timeout => "none of the configured DNS servers answered".to_owned(),
        other => other.to_string().replace('\n', " "),
    }
}

/// The resolver's words without the standard library's preface.
fn system_reason(error: &std::io::Error) -> String {
    let text = io_reason(error);
    text.strip_prefix("failed to lookup address information: ").map(str::to_owned).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Condvar;
    use std::sync::atomic::{AtomicUsize, Ordering};

    static ASKED: AtomicUsize = AtomicUsize::new(0);
    static ANSWERED: (Mutex<bool>, Condvar) = (Mutex::new(false), Condvar::new());

    /// Lets the tarpit answer when it is dropped, also by a test that fails: its runtime waits for the threads.
    struct Release;

    impl Drop for Release {
        fn drop(&mut self) {
            *lock(&ANSWERED.0) = true;
            ANSWERED.1.notify_all();
        }
    }

    /// A resolver whose servers say nothing for a long time.
    fn tarpit(name: &str) -> Answer {
        ASKED.fetch_add(1, Ordering::SeqCst);
        let (answered, changed) = &ANSWERED;
        drop(changed.wait_while(lock(answered), |answered| !*answered));
        Err(name.into())
    }

    #[tokio::test]
    async fn slow_names_leave_threads_for_the_disk_and_one_name_takes_one() {
        let (system, release) = (System::new(tarpit), Release);
        let mut asking = tokio::task::JoinSet::new();
        for number in 0..1000 {
            // Each name twice.
            let (name, system) = (format!("{}.example", number / 2), system.clone());
            asking.spawn(async move { system.resolve(&name).await == Err(name.into()) });
        }
        while ASKED.load(Ordering::SeqCst) < MAX_THREADS {
            tokio::task::yield_now().await;
        }
        // As many as tokio has, less those of the names.
        let disk = (0..400).map(|_| tokio::task::spawn_blocking(|| ()));
        futures_util::future::join_all(disk).await;
        assert_eq!(ASKED.load(Ordering::SeqCst), MAX_THREADS);
        drop(release);
        assert!(asking.join_all().await.into_iter().all(|right| right));
        assert_eq!(ASKED.load(Ordering::SeqCst), 500);
        assert!(lock(&system.under_way).is_empty());
    }

    #[test]
    fn the_systems_servers_are_those_of_its_file() {
        let file = "# nameserver 10.0.0.9\nsearch example.org\nnameserver 10.0.0.1\nnameserver  fd00::1\nnameserver x\n";
        let servers: Vec<String> = name_servers(file).map(|server| server.to_string()).collect();
        assert_eq!(servers, ["10.0.0.1:53", "[fd00::1]:53"]);
    }
}
