//! [`Lab`]: hosts in network namespaces of their own, on one bridge, with addresses and names.
//!
//! Go's HTTP client never sends a loopback destination to a proxy, so that real container engines can only be tested with
//! hosts that have other addresses. Nothing of the machine is touched: the bridge stands in a namespace too, names come from
//! an /etc/hosts that is mounted for one program at a time, and all of it goes when the lab is dropped. What a killed run
//! left behind is removed by the next one: a lab's namespaces carry the id of the process that made them.

use crate::process::run;
use anyhow::{Context, Result, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Where `ip netns` keeps namespaces.
const NAMESPACES: &str = "/run/netns";

/// What the names of our namespaces begin with; the process id and the host's number follow.
const PREFIX: &str = "darter-lab";

/// Stands before the program itself in the arguments of a command that enters a host.
pub(crate) const ENTERED: &str = "in-lab";

/// Not the machine's own way out, not another daemon, not the machine's own idea of whom to trust.
const NOT_PASSED_ON: [&str; 26] = [
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "DOCKER_HOST",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "CURL_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
    "GIT_SSL_CAINFO",
    "GIT_CONFIG_GLOBAL",
    "GNUPGHOME",
    "PIP_CERT",
    "PIP_INDEX_URL",
    "PIP_EXTRA_INDEX_URL",
    "PIP_FIND_LINKS",
    "PIP_CONFIG_FILE",
    "CARGO_HTTP_CAINFO",
    "CARGO_HTTP_PROXY",
    "NPM_CONFIG_REGISTRY",
    "NPM_CONFIG_USERCONFIG",
    "npm_config_registry",
    "npm_config_cafile",
];

/// Which congestion control the connections of a namespace use, as seen from within it.
const CONGESTION_CONTROL: &str = "/proc/sys/net/ipv4/tcp_congestion_control";

/// How long a command of `ip` or `tc` may take.
const IP_LIMIT: Duration = Duration::from_secs(20);

/// Numbers the labs of this process.
static LABS: AtomicU32 = AtomicU32::new(0);

/// A network of hosts.
pub struct Lab {
    switch: Namespace,
    // A host lives as long as its network, whoever still knows it.
    hosts: Vec<Host>,
    number: u32,
    folder: tempfile::TempDir,
}

/// A host: a network namespace with one interface.
#[derive(Clone)]
pub struct Host(Arc<HostInner>);

struct HostInner {
    namespace: Namespace,
    /// The other end of its cable: the switch's namespace, and the port.
    socket: (String, String),
    name: String,
    address: Ipv4Addr,
    folder: PathBuf,
    names: PathBuf,
    resolver: PathBuf,
}

/// How to start a program on a host.
#[derive(Default)]
pub struct Launch {
    /// Folders or files that it sees in place of the machine's own: (what it sees, where).
    pub mounts: Vec<(PathBuf, PathBuf)>,
    /// Whether its children, however daemonic, die with it.
    pub family: bool,
}

/// A network namespace, removed when it is dropped.
struct Namespace(String);

impl Lab {
    /// An empty network. What dead runs left is removed first.
    ///
    /// # Errors
    /// When this process may not make namespaces: that takes root.
    pub fn new() -> Result<Self> {
        remove_stale()?;
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let folder =
            tempfile::Builder::new().prefix(&format!("{PREFIX}-{}-", std::process::id())).tempdir()?;
        let switch = Namespace::new(format!("{PREFIX}-{}-{number}-switch", std::process::id()))?;
        ip(&["-n", &switch.0, "link", "add", "switch", "type", "bridge"])?;
        ip(&["-n", &switch.0, "link", "set", "switch", "up"])?;
        std::fs::write(folder.path().join("hosts"), "127.0.0.1 localhost\n")?;
        // Nobody answers there: a name that is not in the hosts file fails at once.
        std::fs::write(
            folder.path().join("resolv.conf"),
            "nameserver 127.0.0.1\noptions attempts:1 timeout:1\n",
        )?;
        Ok(Self { switch, hosts: Vec::new(), number, folder })
    }

    /// Adds a host that answers to `names`, the first of which is its own.
    pub fn host(&mut self, names: &[&str]) -> Result<Host> {
        let number = u8::try_from(self.hosts.len() + 1).context("too many hosts")?;
        let name = *names.first().context("a host has a name")?;
        let address = Ipv4Addr::new(10, 79, 0, number);
        let namespace =
            Namespace::new(format!("{PREFIX}-{}-{}-{}", std::process::id(), self.number, number))?;
        let port = format!("port{number}");
        ip(&[
            "link",
            "add",
            "eth0",
            "netns",
            &namespace.0,
            "type",
            "veth",
            "peer",
            "name",
            &port,
            "netns",
            &self.switch.0,
        ])?;
        ip(&["-n", &self.switch.0, "link", "set", &port, "master", "switch", "up"])?;
        ip(&["-n", &namespace.0, "address", "add", &format!("{address}/24"), "dev", "eth0"])?;
        ip(&["-n", &namespace.0, "link", "set", "eth0", "up"])?;
        ip(&["-n", &namespace.0, "link", "set", "lo", "up"])?;
        // What most machines use, whatever this one does. BBR would take its first packets, which pass a bucket that is
        // still full, for the line's delay, and send at half of its rate from then on. A namespace may have cubic only where it is
        // the machine's default, or allowed to all; reno is always, and no other on lines as short as these.
        let choose = format!("echo cubic > {CONGESTION_CONTROL} || echo reno > {CONGESTION_CONTROL}");
        ip(&["netns", "exec", &namespace.0, "sh", "-c", &choose])?;

        let folder = self.folder.path().join(name);
        std::fs::create_dir(&folder)?;
        let hosts_file = self.folder.path().join("hosts");
        let known = std::fs::read_to_string(&hosts_file)?;
        // Written in place: the file is mounted where programs of other hosts run already.
        std::fs::write(&hosts_file, format!("{known}{address} {}\n", names.join(" ")))?;
        let host = Host(Arc::new(HostInner {
            namespace,
            socket: (self.switch.0.clone(), port),
            name: name.to_owned(),
            address,
            folder,
            names: hosts_file,
            resolver: self.folder.path().join("resolv.conf"),
        }));
        self.hosts.push(host.clone());
        Ok(host)
    }

    /// A folder that goes with the lab.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Host {
    /// Its first name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Its address.
    pub fn address(&self) -> Ipv4Addr {
        self.0.address
    }

    /// Its address and a port.
    pub fn port(&self, port: u16) -> SocketAddr {
        SocketAddr::V4(SocketAddrV4::new(self.0.address, port))
    }

    /// Its network namespace, as a file.
    pub fn namespace(&self) -> PathBuf {
        Path::new(NAMESPACES).join(&self.0.namespace.0)
    }

    /// A folder that goes with the lab.
    pub fn folder(&self) -> &Path {
        &self.0.folder
    }

    /// Makes a new empty folder in [`Self::folder`].
    pub fn new_folder(&self, name: &str) -> Result<PathBuf> {
        let folder = tempfile::Builder::new().prefix(&format!("{name}.")).tempdir_in(&self.0.folder)?;
        Ok(folder.keep())
    }

    /// A program on this host, in the machine's own files but for names.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        self.launch(program, &Launch::default())
    }

    /// A program on this host.
    ///
    /// The process that results is the program itself (unless `family` is asked for), so that its id is its own.
    pub fn launch(&self, program: impl AsRef<std::ffi::OsStr>, launch: &Launch) -> Command {
        let inner = &self.0;
        let mut mounts = launch.mounts.clone();
        // After the others: one of them may be the whole of /etc.
        mounts.push((inner.names.clone(), "/etc/hosts".into()));
        mounts.push((inner.resolver.clone(), "/etc/resolv.conf".into()));
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={NAMESPACES}/{}", inner.namespace.0));
        // `ip netns exec` would mount a new /sys and so hide the control groups, which dockerd needs.
        command.args(["unshare", "--mount", "--propagation", "private"]);
        if launch.family {
            command.args(["--pid", "--fork", "--kill-child", "--mount-proc"]);
        }
        let mut script = String::from("set -e\n");
        for index in 0..mounts.len() {
            let [from, to] = [2 * index + 1, 2 * index + 2];
            script.push_str(&format!("mount --bind \"${{{from}}}\" \"${{{to}}}\"\n"));
        }
        // One more: the word that says where the program itself begins.
        script.push_str(&format!("shift {}\nexec \"$@\"\n", 2 * mounts.len() + 1));
        command.args(["sh", "-c", &script, "lab"]);
        for (from, to) in mounts {
            command.arg(from).arg(to);
        }
        command.arg(ENTERED).arg(program);
        for name in NOT_PASSED_ON {
            command.env_remove(name);
        }
        command
    }

    /// Limits what this host sends, and what it is sent, to so many bits per second each.
    pub fn limit(&self, bits_per_second: u64) -> Result<()> {
        let rate = bits_per_second.to_string();
        let (switch, port) = &self.0.socket;
        for (namespace, device) in [(&self.0.namespace.0, "eth0"), (switch, port.as_str())] {
            let args = ["-n", namespace, "qdisc", "replace", "dev", device, "root", "tbf"];
            let shape = ["rate", &rate, "burst", "256k", "latency", "100ms"];
            run(Command::new("tc").args(args).args(shape), IP_LIMIT)?.ok()?;
        }
        Ok(())
    }

    /// Pulls the cable: nothing reaches this host any more, and nobody is told.
    pub fn cut(&self) -> Result<()> {
        let (switch, port) = &self.0.socket;
        ip(&["-n", switch, "link", "set", port, "nomaster"]).map(drop)
    }

    /// Connects from this host.
    pub fn connect(&self, to: SocketAddr) -> Result<TcpStream> {
        self.inside(|| TcpStream::connect_timeout(&to, Duration::from_secs(5)))
            .with_context(|| format!("{} cannot connect to {to}", self.0.name))
    }

    /// Listens on this host.
    pub fn listen(&self, port: u16) -> Result<TcpListener> {
        let address = self.port(port);
        self.inside(|| TcpListener::bind(address)).with_context(|| format!("cannot listen on {address}"))
    }

    /// Makes a socket on this host: a socket stays where it was made, whoever uses it.
    fn inside<T: Send>(&self, make: impl FnOnce() -> std::io::Result<T> + Send) -> Result<T> {
        let namespace = std::fs::File::open(self.namespace())?;
        // A namespace is entered by a thread, which ends there.
        let made = std::thread::scope(|scope| {
            let enter = move || {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
                make()
            };
            scope.spawn(enter).join().expect("making a socket does not panic")
        });
        Ok(made?)
    }
}

// === impl Namespace ===

impl Namespace {
    fn new(name: String) -> Result<Self> {
        ip(&["netns", "add", &name])?;
        Ok(Self(name))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.0) {
            eprintln!("{error:#}");
        }
    }
}

/// What this process made and did not remove: namespaces and folders. Empty when it has cleaned up.
pub fn left_behind() -> Vec<PathBuf> {
    let ours = format!("{PREFIX}-{}-", std::process::id());
    let places = [PathBuf::from(NAMESPACES), std::env::temp_dir()];
    let entries = places.iter().filter_map(|place| std::fs::read_dir(place).ok()).flatten().flatten();
    let left = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&ours));
    left.map(|entry| entry.path()).collect()
}

/// Removes a namespace and ends whatever still runs in it.
fn remove(name: &str) -> Result<()> {
    let inside = ip(&["netns", "pids", name])?;
    for id in inside.split_whitespace() {
        let id = id.parse().ok().and_then(rustix::process::Pid::from_raw).context("an odd process id")?;
        // Gone in the meantime is what was wanted.
        let _ = rustix::process::kill_process(id, rustix::process::Signal::KILL);
    }
    ip(&["netns", "delete", name]).map(drop)
}

/// Removes the namespaces and folders of runs that are dead.
fn remove_stale() -> Result<()> {
    for name in stale_in(Path::new(NAMESPACES)) {
        remove(&name)?;
    }
    for name in stale_in(&std::env::temp_dir()) {
        std::fs::remove_dir_all(std::env::temp_dir().join(name))?;
    }
    Ok(())
}

/// What in `folder` has a name of ours with the id of a process that is no more.
fn stale_in(folder: &Path) -> Vec<String> {
    // No folder: nobody ever made a namespace here.
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let owner = |name: &str| Some(name.strip_prefix(PREFIX)?.split('-').nth(1)?.to_owned());
    names.filter(|name| owner(name).is_some_and(|id| !Path::new("/proc").join(id).exists())).collect()
}

fn ip(args: &[&str]) -> Result<String> {
    let output = run(Command::new("ip").args(args), IP_LIMIT)?;
    ensure!(output.status.success(), "ip {}: {}", args.join(" "), output.stderr.trim());
    Ok(output.stdout)
}
